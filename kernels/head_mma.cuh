// conv_out and its gradients on tensor cores, for halves. The kernels and their arguments are described in head.cu. A warp takes 8
// columns and 4 rows of a tile. Depends on base.cuh.
#pragma once
#include "base.cuh"
#include "mma.cuh"

KERNEL_CROWDED(head, 256, 3, const float* weight, const float* bias, const float* gain, const float* input, const act* features, float* output,
       const u8* target, const u8* codes, int images, int h, int w, int scale, float alpha) {
    Wide* tile = (Wide*)shared_memory();  // [HALO][HALO] pixels
    Pair* b = (Pair*)(tile + HALO * HALO * 2);  // [9][32]: the taps as every lane of a warp takes them
    float* detail = (float*)(b + 9 * 32);
    Base base = base_arrays(detail + TILE * TILE * 3, scale);
    Lane l = lane_place();
    int hr_h = h * scale, hr_w = w * scale, tx = l.warp % 2 * 8 + l.group, ty = l.warp / 2 * 4;
    ROLLED
    for (int i = threadIdx.x; i < 9 * 32; i += 256) {
        int tap = i / 32, o = i % 32 / 4;
        const float* from = weight + (o * FEATURES + 4 * (i % 4)) * 9 + tap;
        Pair v = {{0, 0}};
        if (o < 3) {
            v.word[0] = pack_half(from[0], from[9]);
            v.word[1] = pack_half(from[18], from[27]);
        }
        b[i] = v;
    }
    float strength = *gain, biases[3] = {bias[0], bias[1], bias[2]};
    ROLLED
    for (int index = blockIdx.x; index < tile_count(images, hr_h, hr_w); index += gridDim.x) {
        Tile t = tile_at(index, hr_h, hr_w);
        long long start = (long long)t.image * hr_h * hr_w;
        // all loads are on their way before the first is waited for
        const Wide* from_image = (const Wide*)features + start * 2;
        const int rounds = (HALO * HALO * 2 + 255) / 256;
        Wide loaded[rounds];
        UNROLL
        for (int round = 0; round < rounds; round++) {
            u32 i = threadIdx.x + 256 * round, line = i / (2 * HALO);
            int y = t.y - 1 + (int)line, x = t.x - 1 + (int)(i / 2 - line * HALO);
            loaded[round] = {{0, 0, 0, 0}};
            if (i < HALO * HALO * 2 && inside(y, x, hr_h, hr_w))
                loaded[round] = from_image[(y * hr_w + x) * 2 + (int)(i % 2)];
        }
        UNROLL
        for (int round = 0; round < rounds; round++) {
            u32 i = threadIdx.x + 256 * round;
            if (i < HALO * HALO * 2) tile[i] = loaded[round];
        }
        // its barriers are those of the features, too
        base_tile(base, input + (long long)t.image * h * w * 3, h, w, t.y, t.x, alpha, target != nullptr);
        float d[2][4];
        for (int i = 0; i < 4; i++) d[0][i] = d[1][i] = 0;
        UNROLL
        for (int kx = 0; kx < 3; kx++) {
            Pair rows[6];
            UNROLL
            for (int r = 0; r < 6; r++) rows[r] = ((const Pair*)(tile + ((ty + r) * HALO + tx + kx) * 2))[l.t];
            UNROLL
            for (int ky = 0; ky < 3; ky++) {
                Pair taps = b[(ky * 3 + kx) * 32 + threadIdx.x % 32];
                UNROLL
                for (int r = 0; r < 2; r++) {
                    const Pair &upper = rows[2 * r + ky], &lower = rows[2 * r + ky + 1];
                    u32 a[4] = {upper.word[0], lower.word[0], upper.word[1], lower.word[1]};
                    mma_16x8x16(d[r], a, taps.word);
                }
            }
        }
        // columns 0, 1 and 2 of the result are RGB
        UNROLL
        for (int r = 0; r < 4; r++) {
            float* to = detail + ((ty + r) * TILE + tx) * 3 + 2 * l.t;
            if (l.t < 2) to[0] = d[r / 2][r % 2 * 2];
            if (l.t == 0) to[1] = d[r / 2][r % 2 * 2 + 1];
        }
        barrier();
        {
            // a thread finishes a pixel; values go out row by row
            int row = threadIdx.x / TILE, column = threadIdx.x % TILE, y = t.y + row, x = t.x + column;
            float wanted[3] = {0, 0, 0}, value[3];
            if (target && y < hr_h && x < hr_w) {
                const u8* pixel = target + (start + augmented(codes[t.image], y, x, hr_h, hr_w)) * 3;
                UNROLL
                for (int o = 0; o < 3; o++) wanted[o] = (float)pixel[o];
            }
            base_pixel(base, row, column, target != nullptr, wanted, value);
            UNROLL
            for (int o = 0; o < 3; o++) detail[threadIdx.x * 3 + o] = value[o] + strength * (biases[o] + detail[threadIdx.x * 3 + o]);
        }
        // a warp has written the two rows that it sends
        warp_barrier();
        {
            int across = (hr_w - t.x < TILE ? hr_w - t.x : TILE) * 3;
            float* to = output + (start + (long long)t.y * hr_w + t.x) * 3;
            UNROLL
            for (u32 k = 0; k < 3; k++) {
                u32 i = threadIdx.x % 32 + 32 * k, line = i / (TILE * 3), at = i % (TILE * 3);
                int row = threadIdx.x / 32 * 2 + (int)line;
                if (t.y + row < hr_h && (int)at < across) to[row * hr_w * 3 + (int)at] = detail[row * TILE * 3 + at];
            }
        }
        barrier();
    }
}

// The 27 products of a pixel's neighbours stand in three steps of 16: four taps a step, and of a tap R, G, B and nothing. Lane t of a step
// has tap 4 step + t; the taps 9, 10 and 11 do not exist.
KERNEL_CROWDED(head_back, 256, 3, const float* weight, const float* gain, const act* features, const float* d_output, act* d_features,
       float* partials, int images, int h, int w) {
    Pair* d_tile = (Pair*)shared_memory();  // [HALO][HALO] x RGB and nothing
    Lane l = lane_place();
    int tx = l.warp % 2 * 8 + l.group, ty = l.warp / 2 * 4;
    float sum_d[3] = {0, 0, 0}, product[3][2][4];
    int offset[3];
    Pair* b = d_tile + HALO * HALO;  // [3][2][32]: the weights as every lane of a warp takes them
    if (threadIdx.x < 3 * 2 * 32) {
        int tap = threadIdx.x / 64 * 4 + l.t;
        const float* from = weight + fragment_feature(l.group, threadIdx.x / 32 % 2) * 9 + tap;
        Pair v = {{0, 0}};
        if (tap < 9) {
            v.word[0] = pack_half(*gain * from[0], *gain * from[FEATURES * 9]);
            v.word[1] = pack_half(*gain * from[2 * FEATURES * 9], 0.0f);
        }
        b[threadIdx.x] = v;
    }
    UNROLL
    for (int s = 0; s < 3; s++) {
        int tap = 4 * s + l.t;
        offset[s] = tap < 9 ? (2 - tap / 3) * HALO + 2 - tap % 3 : -1;
        UNROLL
        for (int m = 0; m < 2; m++) {
            UNROLL
            for (int i = 0; i < 4; i++) product[s][m][i] = 0;
        }
    }
    ROLLED
    for (int index = blockIdx.x; index < tile_count(images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        long long start = (long long)t.image * h * w;
        ROLLED
        for (int i = threadIdx.x; i < HALO * HALO; i += 256) {
            int row = i / HALO, column = i % HALO, y = t.y - 1 + row, x = t.x - 1 + column;
            Pair v = {{0, 0}};
            if (inside(y, x, h, w)) {
                const float* from = d_output + (start + (long long)y * w + x) * 3;
                float d[3] = {from[0], from[1], from[2]};
                v.word[0] = pack_half(d[0], d[1]);
                v.word[1] = pack_half(d[2], 0.0f);
                if (row >= 1 && row <= TILE && column >= 1 && column <= TILE)
                    for (int o = 0; o < 3; o++) sum_d[o] += d[o];
            }
            d_tile[i] = v;
        }
        barrier();
        ROLLED
        for (int r = 0; r < 4; r += 2) {
            // features are read by the lane that overwrites them, and by no other
            bool within[2];
            u32 turned[2][2];
            act* pixels[2];
            UNROLL
            for (int k = 0; k < 2; k++) {
                int y = t.y + ty + r + k, x = t.x + tx;
                within[k] = inside(y, x, h, w);
                long long at = (start + (long long)y * w + x) * FEATURES;
                Pair u = {{0, 0}};
                if (within[k]) u = load_pair(features + at, l.t);
                pixels[k] = d_features + at;
                UNROLL
                for (int m = 0; m < 2; m++) turned[m][k] = transpose(u.word[m]);
            }
            float d[2][4];
            for (int i = 0; i < 4; i++) d[0][i] = d[1][i] = 0;
            UNROLL
            for (int s = 0; s < 3; s++) {
                const Pair* at = d_tile + (ty + r) * HALO + tx + offset[s];
                Pair upper = {{0, 0}}, lower = {{0, 0}};
                if (offset[s] >= 0) {
                    upper = at[0];
                    lower = at[HALO];
                }
                u32 a[4] = {upper.word[0], lower.word[0], upper.word[1], lower.word[1]};
                u32 a_turned[4] = {transpose(upper.word[0]), transpose(upper.word[1]), transpose(lower.word[0]), transpose(lower.word[1])};
                UNROLL
                for (int m = 0; m < 2; m++) {
                    mma_16x8x16(d[m], a, b[(s * 2 + m) * 32 + threadIdx.x % 32].word);
                    mma_16x8x16(product[s][m], a_turned, turned[m]);
                }
            }
            UNROLL
            for (int k = 0; k < 2; k++) {
                Pair v = {{pack_half(d[0][2 * k], d[0][2 * k + 1]), pack_half(d[1][2 * k], d[1][2 * k + 1])}};
                if (within[k]) store_pair(pixels[k], l.t, v);
            }
        }
        barrier();
    }
    // every warp's sums, then those of the block
    float* all = (float*)shared_memory();
    float* own = all + l.warp * HEAD_SUMS;
    UNROLL
    for (int s = 0; s < 3; s++) {
        UNROLL
        for (int m = 0; m < 2; m++) {
            UNROLL
            for (int i = 0; i < 4; i++) {
                int tap = 4 * s + l.group / 2, o = i / 2 * 2 + l.group % 2, c = 4 * l.t + 2 * m + i % 2;
                if (tap < 9 && o < 3) own[(o * FEATURES + c) * 9 + tap] = product[s][m][i];
            }
        }
    }
    UNROLL
    for (int o = 0; o < 3; o++) {
        float sum = warp_sum(sum_d[o]);
        if (threadIdx.x % 32 == 0) own[HEAD_WEIGHTS + o] = sum;
    }
    barrier();
    for (int i = threadIdx.x; i < HEAD_SUMS; i += 256) {
        float sum = 0;
        for (int warp = 0; warp < 8; warp++) sum += all[warp * HEAD_SUMS + i];
        partials[(long long)blockIdx.x * HEAD_SUMS + i] = sum;
    }
}
