// conv_out and its gradients without tensor cores. The kernels and their arguments are described in head.cu. Depends on base.cuh.
#pragma once
#include "base.cuh"

#define PITCH (FEATURES + 1)

KERNEL(head, 256, const float* weight, const float* bias, const float* gain, const float* input, const act* features, float* output,
       const u8* target, const u8* codes, int images, int h, int w, int scale, float alpha) {
    float* weights = (float*)shared_memory();
    float* tile = weights + HEAD_WEIGHTS;
    Base base = base_arrays(tile + HALO * HALO * PITCH, scale);
    int hr_h = h * scale, hr_w = w * scale, ty = threadIdx.x / TILE, tx = threadIdx.x % TILE;
    for (int i = threadIdx.x; i < HEAD_WEIGHTS; i += 256) weights[i] = weight[i];
    float strength = *gain, biases[3] = {bias[0], bias[1], bias[2]};
    for (int index = blockIdx.x; index < tile_count(images, hr_h, hr_w); index += gridDim.x) {
        Tile t = tile_at(index, hr_h, hr_w);
        long long start = (long long)t.image * hr_h * hr_w;
        for (int i = threadIdx.x; i < HALO * HALO; i += 256) {
            int y = t.y - 1 + i / HALO, x = t.x - 1 + i % HALO;
            float v[FEATURES];
            for (int c = 0; c < FEATURES; c++) v[c] = 0;
            if (inside(y, x, hr_h, hr_w)) load_features(features + (start + (long long)y * hr_w + x) * FEATURES, v);
            for (int c = 0; c < FEATURES; c++) tile[i * PITCH + c] = v[c];
        }
        base_tile(base, input + (long long)t.image * h * w * 3, h, w, t.y, t.x, alpha, target != nullptr);
        float sum[3] = {0, 0, 0};
        ROLLED
        for (int tap = 0; tap < 9; tap++) {
            const float* from = tile + ((ty + tap / 3) * HALO + tx + tap % 3) * PITCH;
            for (int c = 0; c < FEATURES; c++)
                for (int o = 0; o < 3; o++) sum[o] += weights[(o * FEATURES + c) * 9 + tap] * from[c];
        }
        int y = t.y + ty, x = t.x + tx;
        if (inside(y, x, hr_h, hr_w)) {
            float wanted[3] = {0, 0, 0}, value[3];
            const u8* pixel = target;
            if (target) pixel += (start + augmented(codes[t.image], y, x, hr_h, hr_w)) * 3;
            for (int o = 0; target && o < 3; o++) wanted[o] = (float)pixel[o];
            base_pixel(base, ty, tx, target != nullptr, wanted, value);
            for (int o = 0; o < 3; o++) output[(start + (long long)y * hr_w + x) * 3 + o] = value[o] + strength * (biases[o] + sum[o]);
        }
        barrier();
    }
}

KERNEL(head_back, 256, const float* weight, const float* gain, const act* features, const float* d_output, act* d_features,
       float* partials, int images, int h, int w) {
    float* weights = (float*)shared_memory();
    float* d_tile = weights + HEAD_WEIGHTS;
    float* tile = d_tile + HALO * HALO * 3;
    int ty = threadIdx.x / TILE, tx = threadIdx.x % TILE;
    float strength = *gain, sums[2] = {0, 0};
    double plain = 0;
    for (int i = threadIdx.x; i < HEAD_WEIGHTS; i += 256) weights[i] = strength * weight[i];
    for (int index = blockIdx.x; index < tile_count(images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        long long start = (long long)t.image * h * w, at = start + (long long)(t.y + ty) * w + t.x + tx;
        bool within = inside(t.y + ty, t.x + tx, h, w);
        for (int i = threadIdx.x; i < HALO * HALO * 3; i += 256) {
            int y = t.y - 1 + i / 3 / HALO, x = t.x - 1 + i / 3 % HALO;
            d_tile[i] = inside(y, x, h, w) ? d_output[(start + (long long)y * w + x) * 3 + i % 3] : 0.0f;
        }
        float v[FEATURES];
        for (int c = 0; c < FEATURES; c++) v[c] = 0;
        if (within) load_features(features + at * FEATURES, v);
        for (int c = 0; c < FEATURES; c++) tile[threadIdx.x * PITCH + c] = v[c];
        barrier();
        for (int c = 0; c < FEATURES; c++) v[c] = 0;
        ROLLED
        for (int tap = 0; tap < 9; tap++) {
            const float* d = d_tile + ((ty + 2 - tap / 3) * HALO + tx + 2 - tap % 3) * 3;
            for (int o = 0; o < 3; o++)
                for (int c = 0; c < FEATURES; c++) v[c] += weights[(o * FEATURES + c) * 9 + tap] * d[o];
        }
        if (within) store_features(d_features + at * FEATURES, v);
        // every sum belongs to one thread; one row at a time: short sums keep their bits
        UNROLL
        for (int k = 0; k < 2; k++) {
            int s = threadIdx.x + 256 * k, tap = s % 9, c = s / 9 % FEATURES, o = s / 9 / FEATURES;
            ROLLED
            for (int row = 0; s < HEAD_SUMS && row < TILE; row++) {
                const float* d = d_tile + (row + 1) * HALO * 3 + 3;
                if (k == 0 || s < HEAD_WEIGHTS) {
                    float sum = 0;
                    d += ((1 - tap / 3) * HALO + 1 - tap % 3) * 3 + o;
                    ROLLED
                    for (int x = 0; x < TILE; x++) sum += tile[(row * TILE + x) * PITCH + c] * d[x * 3];
                    sums[k] += sum;
                } else {
                    // a structural loss hardly asks for another brightness: its gradients, added up, nearly cancel
                    float part[4] = {0, 0, 0, 0};
                    ROLLED
                    for (int x = 0; x < TILE; x += 4) {
                        UNROLL
                        for (int i = 0; i < 4; i++) part[i] += d[(x + i) * 3 + s - HEAD_WEIGHTS];
                    }
                    plain += (double)((part[0] + part[1]) + (part[2] + part[3]));
                }
            }
        }
        barrier();
    }
    for (int k = 0; k < 2; k++) {
        int s = threadIdx.x + 256 * k;
        if (s < HEAD_SUMS) partials[(long long)blockIdx.x * HEAD_SUMS + s] = s < HEAD_WEIGHTS ? sums[k] : (float)plain;
    }
}
