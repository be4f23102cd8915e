// The first convolution and its weight gradient on tensor cores, for half precision. The kernels
// are described in conv_rgb.cu. Depends on features.cuh.
//
// The 27 products of a pixel's neighbours take three steps of 16: four taps a step, and for a tap
// R, G, B and a zero. Lane t of a step has tap 4 step + t. Taps 10 and 11 do not exist; the one
// after the ninth is a constant 1, whose gradient is that of the bias. A warp computes 8 columns
// and 4 rows of a tile.
#pragma once
#include "features.cuh"
#include "mma.cuh"

#define STEPS 3
// 1 in half precision, in the lower half of a register.
#if PRECISION == 1
#define ONE 0x3f80u
#else
#define ONE 0x3c00u
#endif

// Loads the tile with a border of 1 in half precision: R, G, B and a zero; zeros outside the image.
// With `units` in units of 1/255.
DEVICE void load_rgb(Pair* to, const Source& source, Tile at, int h, int w, bool units) {
    Reader r = reader(source, at.image, h, w);
    // all loads are issued before the first value is used
    float loaded[2][3];
    UNROLL
    for (int round = 0; round < 2; round++) {
        int i = threadIdx.x + 256 * round, line = i / WIDE_TILE, y = at.y - 1 + line, x = at.x - 1 + (i - line * WIDE_TILE);
        UNROLL
        for (int c = 0; c < 3; c++) loaded[round][c] = 0;
        if (i < WIDE_TILE * WIDE_TILE && inside(y, x, h, w)) read_rgb(r, y, x, loaded[round]);
    }
    UNROLL
    for (int round = 0; round < 2; round++) {
        int i = threadIdx.x + 256 * round, line = i / WIDE_TILE, column = i - line * WIDE_TILE, y = at.y - 1 + line, x = at.x - 1 + column;
        if (i >= WIDE_TILE * WIDE_TILE) continue;
        float(&v)[3] = loaded[round];
        if (r.patches) {
            bool own = line >= 1 && line <= TILE && column >= 1 && column <= TILE;
            if (own && inside(y, x, h, w)) leave_rgb(r, y, x, v);
        } else if (units) {
            UNROLL
            for (int c = 0; c < 3; c++) v[c] = rintf(v[c] * 255.0f);
        }
        to[i] = {{pack_half(v[0], v[1]), pack_half(v[2], 0.0f)}};
    }
}

// Offsets of a lane's tap of every step, from the upper left neighbour of its pixel; -1 for taps
// that do not exist.
DEVICE void tap_offsets(int (&offset)[STEPS], int t) {
    UNROLL
    for (int s = 0; s < STEPS; s++) {
        int tap = 4 * s + t;
        offset[s] = tap < TAPS ? tap / 3 * WIDE_TILE + tap % 3 : -1;
    }
}

// Shared memory: the tile.
KERNEL_CROWDED(conv_rgb, 4) {
    const int h = arg.h, w = arg.w;
    Pair* tile = (Pair*)shared_memory();
    Lane l = lane_position();
    int tx = l.warp % 2 * 8 + l.group, ty = l.warp / 2 * 4, offset[STEPS];
    tap_offsets(offset, l.t);
    // operands and biases stay in registers
    Pair b[STEPS][2];
    float biases[4], unit = arg.units ? 1.0f / 255 : 1.0f;
    UNROLL
    for (int i = 0; i < 4; i++) biases[i] = arg.bias[4 * l.t + i];
    UNROLL
    for (int s = 0; s < STEPS; s++) {
        UNROLL
        for (int m = 0; m < 2; m++) {
            int tap = 4 * s + l.t;
            const float* from = arg.weight + fragment_feature(l.group, m) * 27 + tap;
            Pair v = {{0, 0}};
            if (tap < TAPS) v = {{pack_half(from[0], from[9]), pack_half(from[18], 0.0f)}};
            b[s][m] = v;
        }
    }
    const Source source = {arg.input, arg.patches, arg.codes};
    for (int index = blockIdx.x; index < tile_count(arg.images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        barrier();
        load_rgb(tile, source, t, h, w, arg.units);
        barrier();
        // offsets within one image fit an int
        act* image = arg.output + (long long)t.image * h * w * FEATURES;
        UNROLL
        for (int r = 0; r < 4; r += 2) {
            float d[2][4];
            for (int i = 0; i < 8; i++) d[i / 4][i % 4] = 0;
            UNROLL
            for (int s = 0; s < STEPS; s++) {
                const Pair* at = tile + (ty + r) * WIDE_TILE + tx + offset[s];
                Pair upper = {{0, 0}}, lower = {{0, 0}};
                if (offset[s] >= 0) {
                    upper = at[0];
                    lower = at[WIDE_TILE];
                }
                u32 a[4] = {upper.word[0], lower.word[0], upper.word[1], lower.word[1]};
                UNROLL
                for (int m = 0; m < 2; m++) mma_16x8x16(d[m], a, b[s][m].word);
            }
            UNROLL
            for (int k = 0; k < 2; k++) {
                int y = t.y + ty + r + k, x = t.x + tx;
                if (!inside(y, x, h, w)) continue;
                float v[4];
                UNROLL
                for (int i = 0; i < 4; i++) v[i] = d[i / 2][2 * k + i % 2] * unit + biases[i];
                store_pair(image + (y * w + x) * FEATURES, l.t, {{pack_half(v[0], v[1]), pack_half(v[2], v[3])}});
            }
        }
    }
}

#define RGB_SUMS (27 * FEATURES + FEATURES)

// Shared memory: the tile; at the end the sums of eight warps.
KERNEL(conv_rgb_weights) {
    const int h = arg.h, w = arg.w;
    Pair* tile = (Pair*)shared_memory();
    Lane l = lane_position();
    int tx = l.warp % 2 * 8 + l.group, ty = l.warp / 2 * 4, offset[STEPS];
    tap_offsets(offset, l.t);
    float sum[STEPS][2][4];
    UNROLL
    for (int i = 0; i < STEPS * 8; i++) sum[i / 8][i / 4 % 2][i % 4] = 0;
    for (int index = blockIdx.x; index < tile_count(arg.images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        const act* image = arg.d_output + (long long)t.image * h * w * FEATURES;
        Pair d[4];
        UNROLL
        for (int k = 0; k < 4; k++) {
            int y = t.y + ty + k, x = t.x + tx;
            d[k] = {{0, 0}};
            if (inside(y, x, h, w)) d[k] = load_pair(image + (y * w + x) * FEATURES, l.t);
        }
        barrier();
        load_rgb(tile, floats_alone(arg.input), t, h, w, arg.units);
        barrier();
        UNROLL
        for (int r = 0; r < 4; r += 2) {
            u32 turned[2][2];
            UNROLL
            for (int i = 0; i < 4; i++) turned[i / 2][i % 2] = transpose(d[r + i % 2].word[i / 2]);
            UNROLL
            for (int s = 0; s < STEPS; s++) {
                const Pair* at = tile + (ty + r) * WIDE_TILE + tx + offset[s];
                Pair upper = {{4 * s + l.t == TAPS ? ONE : 0, 0}}, lower = upper;
                if (offset[s] >= 0) {
                    upper = at[0];
                    lower = at[WIDE_TILE];
                }
                u32 a[4] = {transpose(upper.word[0]), transpose(upper.word[1]), transpose(lower.word[0]), transpose(lower.word[1])};
                UNROLL
                for (int m = 0; m < 2; m++) mma_16x8x16(sum[s][m], a, turned[m]);
            }
        }
    }
    barrier();
    // the sums of every warp, then those of the block
    float* all = (float*)shared_memory();
    float* own = all + l.warp * RGB_SUMS;
    float unit = arg.units ? 1.0f / 255 : 1.0f;
    UNROLL
    for (int s = 0; s < STEPS; s++) {
        UNROLL
        for (int i = 0; i < 8; i++) {
            int tap = 4 * s + l.group / 2, rgb = i % 4 / 2 * 2 + l.group % 2, c = 4 * l.t + i / 4 * 2 + i % 2;
            float value = sum[s][i / 4][i % 4];
            if (tap < TAPS && rgb < 3) own[(c * 3 + rgb) * TAPS + tap] = value * unit;
            if (tap == TAPS && rgb == 0) own[27 * FEATURES + c] = value;
        }
    }
    barrier();
    for (int i = threadIdx.x; i < RGB_SUMS; i += 256) {
        float total = 0;
        for (int warp = 0; warp < 8; warp++) total += all[warp * RGB_SUMS + i];
        arg.partials[(long long)blockIdx.x * RGB_SUMS + i] = total;
    }
}
