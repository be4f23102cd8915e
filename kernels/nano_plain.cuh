// The Nano block without tensor cores: f32 multiply-adds, as exact as on the CPU. A few hidden
// channels at a time are in shared memory. The kernels are described in nano_block.cu. Depends on
// features.cuh.
#pragma once
#include "features.cuh"

DEVICE void load_plain_weights(float* weights, const NanoParameters& p) {
    for (int i = threadIdx.x; i < HIDDEN * FEATURES; i += 256) {
        weights[NANO_W1 + i] = p.w1[i];
        weights[NANO_W2 + i] = p.gamma[i / HIDDEN] * p.w2[i];
    }
    for (int i = threadIdx.x; i < 9 * HIDDEN; i += 256) weights[NANO_DW + i] = p.dw[i];
    if (threadIdx.x < HIDDEN) {
        weights[NANO_B1 + threadIdx.x] = p.b1[threadIdx.x];
        weights[NANO_DB + threadIdx.x] = p.db[threadIdx.x];
    }
    if (threadIdx.x < FEATURES) weights[NANO_B2 + threadIdx.x] = p.gamma[threadIdx.x] * p.b2[threadIdx.x];
}

// Computes hidden channels first .. first + COUNT of conv1 on the tile and `halo` pixels around it:
// hidden[pixel][COUNT + 1]. Pixels outside the image are the zero padding of the depthwise step, so
// they are zero, without conv1's bias.
template <int COUNT>
DEVICE void plain_hidden(float* hidden, const float* weights, const act* image, Tile t, int halo, int h, int w, int first) {
    int side = TILE + 2 * halo;
    for (int i = threadIdx.x; i < side * side; i += 256) {
        int y = t.y - halo + i / side, x = t.x - halo + i % side;
        float* to = hidden + i * (COUNT + 1);
        if (!inside(y, x, h, w)) {
            for (int e = 0; e < COUNT; e++) to[e] = 0.0f;
            continue;
        }
        float v[FEATURES];
        load_features(image + ((long long)y * w + x) * FEATURES, v);
        for (int e = 0; e < COUNT; e++) {
            const float* row = weights + NANO_W1 + (first + e) * FEATURES;
            float sum = weights[NANO_B1 + first + e];
            for (int c = 0; c < FEATURES; c++) sum += row[c] * v[c];
            to[e] = sum;
        }
    }
}

// Depthwise 3x3 around a pixel. `from` points to its upper left neighbour's value; `pitch` is the
// distance of pixels, `row` that of rows.
DEVICE float plain_depthwise(const float* from, int pitch, int row, const float* taps) {
    float sum = 0;
    for (int ky = 0; ky < 3; ky++)
        for (int kx = 0; kx < 3; kx++) sum += taps[ky * 3 + kx] * from[ky * row + kx * pitch];
    return sum;
}

KERNEL(nano_block) {
    const int h = arg.h, w = arg.w;
    const int side = TILE + 2, pitch = PLAIN_FORWARD + 1;
    float* weights = (float*)shared_memory();
    float* hidden = weights + NANO_COUNT;
    load_plain_weights(weights, arg.parameters);
    barrier();
    int ty = threadIdx.x / TILE, tx = threadIdx.x % TILE;
    for (int index = blockIdx.x; index < tile_count(arg.images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        const act* image = arg.input + (long long)t.image * h * w * FEATURES;
        float sum[FEATURES];
        for (int c = 0; c < FEATURES; c++) sum[c] = weights[NANO_B2 + c];
        for (int first = 0; first < HIDDEN; first += PLAIN_FORWARD) {
            plain_hidden<PLAIN_FORWARD>(hidden, weights, image, t, 1, h, w, first);
            barrier();
            for (int e = 0; e < PLAIN_FORWARD; e++) {
                const float* taps = weights + NANO_DW + (first + e) * 9;
                float z = weights[NANO_DB + first + e];
                z += plain_depthwise(hidden + (ty * side + tx) * pitch + e, pitch, side * pitch, taps);
                float g = gelu(z);
                for (int c = 0; c < FEATURES; c++) sum[c] += weights[NANO_W2 + c * HIDDEN + first + e] * g;
            }
            barrier();
        }
        int y = t.y + ty, x = t.x + tx;
        if (inside(y, x, h, w)) {
            long long at = ((long long)y * w + x) * FEATURES;
            float v[FEATURES];
            load_features(image + at, v);
            for (int c = 0; c < FEATURES; c++) v[c] += sum[c];
            store_features(arg.output + (long long)t.image * h * w * FEATURES + at, v);
        }
    }
}

KERNEL(nano_block_back) {
    const int h = arg.h, w = arg.w;
    const int side = TILE + 4, dz_side = TILE + 2, pitch = PLAIN_BACKWARD + 1, tid = threadIdx.x;
    float* weights = (float*)shared_memory();
    float* hidden = weights + NANO_COUNT;
    float* dz = hidden + side * side * pitch;
    float* values = dz + dz_side * dz_side * pitch;  // gelu(z), later d hidden, of the tile's pixels
    load_plain_weights(weights, arg.parameters);
    // the sums of this block, in the order of the parameters; each is updated by one thread
    float* own = arg.partials + (long long)blockIdx.x * NANO_COUNT;
    barrier();
    int ty = tid / TILE, tx = tid % TILE;
    int first = blockIdx.x * arg.tiles;
    for (int index = first; index < first + arg.tiles; index++) {
        Tile t = tile_at(index, h, w);
        if (t.image >= arg.images) break;
        bool add = index > first;
        long long start = (long long)t.image * h * w * FEATURES;
        const act *x_image = arg.input + start, *d_image = arg.d_output + start;
        bool within = inside(t.y + ty, t.x + tx, h, w);
        long long at = ((long long)(t.y + ty) * w + t.x + tx) * FEATURES;
        float d_x[FEATURES];
        for (int c = 0; c < FEATURES; c++) d_x[c] = 0;
        for (int first = 0; first < HIDDEN; first += PLAIN_BACKWARD) {
            plain_hidden<PLAIN_BACKWARD>(hidden, weights, x_image, t, 2, h, w, first);
            barrier();
            for (int i = tid; i < dz_side * dz_side; i += 256) {
                int py = i / dz_side, px = i % dz_side, y = t.y - 1 + py, x = t.x - 1 + px;
                bool image = inside(y, x, h, w), tile = py >= 1 && py <= TILE && px >= 1 && px <= TILE;
                float d[FEATURES];
                if (image) load_features(d_image + ((long long)y * w + x) * FEATURES, d);
                for (int e = 0; e < PLAIN_BACKWARD; e++) {
                    float g = 0, slope = 0;
                    if (image) {
                        float z = weights[NANO_DB + first + e];
                        z += plain_depthwise(hidden + (py * side + px) * pitch + e, pitch, side * pitch,
                                             weights + NANO_DW + (first + e) * 9);
                        float dg = 0;
                        for (int c = 0; c < FEATURES; c++) dg += weights[NANO_W2 + c * HIDDEN + first + e] * d[c];
                        g = gelu(z);
                        slope = dg * gelu_slope(z);
                    }
                    dz[i * pitch + e] = slope;
                    if (tile) values[((py - 1) * TILE + px - 1) * pitch + e] = g;
                }
            }
            barrier();
            // two threads compute a sum, each over half of the tile's pixels
            int half = tid % 2, sum = tid / 2;
            {
                int e = sum / FEATURES, c = sum % FEATURES;
                float product = 0, plain = 0, taps = 0;
                for (int p = half * 128; p < half * 128 + 128; p++) {
                    int y = t.y + p / TILE, x = t.x + p % TILE;
                    if (inside(y, x, h, w)) {
                        float d = to_float(d_image[((long long)y * w + x) * FEATURES + c]);
                        product += values[p * pitch + e] * d;
                        plain += d;
                    }
                }
                product += shuffle_xor(product, 1);
                plain += shuffle_xor(plain, 1);
                // depthwise taps 0 .. 8, then its bias
                int channel = sum % PLAIN_BACKWARD, tap = sum / PLAIN_BACKWARD;
                if (tap < 10) {
                    for (int p = half * 128; p < half * 128 + 128; p++) {
                        int py = p / TILE, px = p % TILE;
                        float slope = dz[((py + 1) * dz_side + px + 1) * pitch + channel];
                        taps += tap == 9 ? slope : slope * hidden[((py + 1 + tap / 3) * side + px + 1 + tap % 3) * pitch + channel];
                    }
                }
                taps += shuffle_xor(taps, 1);
                if (half == 0) {
                    float* to = own + NANO_W2 + c * HIDDEN + first + e;
                    *to = (add ? *to : 0.0f) + product;
                    if (first == 0 && e == 0) own[NANO_B2 + c] = (add ? own[NANO_B2 + c] : 0.0f) + plain;
                    if (tap < 10) {
                        to = own + (tap == 9 ? NANO_DB + first + channel : NANO_DW + (first + channel) * 9 + tap);
                        *to = (add ? *to : 0.0f) + taps;
                    }
                }
            }
            barrier();
            // the transposed depthwise step: taps rotated by 180 degrees
            for (int e = 0; e < PLAIN_BACKWARD; e++) {
                const float* taps = weights + NANO_DW + (first + e) * 9;
                float d = 0;
                for (int ky = 0; ky < 3; ky++)
                    for (int kx = 0; kx < 3; kx++) d += taps[8 - ky * 3 - kx] * dz[((ty + ky) * dz_side + tx + kx) * pitch + e];
                if (!within) d = 0;
                for (int c = 0; c < FEATURES; c++) d_x[c] += weights[NANO_W1 + (first + e) * FEATURES + c] * d;
                values[tid * pitch + e] = d;
            }
            barrier();
            {
                int e = sum / FEATURES, c = sum % FEATURES;
                float product = 0, plain = 0;
                for (int p = half * 128; p < half * 128 + 128; p++) {
                    int y = t.y + p / TILE, x = t.x + p % TILE;
                    float d = values[p * pitch + e];
                    if (inside(y, x, h, w)) product += d * to_float(x_image[((long long)y * w + x) * FEATURES + c]);
                    plain += d;
                }
                product += shuffle_xor(product, 1);
                plain += shuffle_xor(plain, 1);
                if (half == 0) {
                    float* to = own + (first + e) * FEATURES + c;
                    *to = (add ? *to : 0.0f) + product;
                    if (c == 0) own[NANO_B1 + first + e] = (add ? own[NANO_B1 + first + e] : 0.0f) + plain;
                }
            }
        }
        if (within) {
            float d[FEATURES];
            load_features(d_image + at, d);
            for (int c = 0; c < FEATURES; c++) d[c] += d_x[c];
            store_features(arg.d_input + start + at, d);
        }
    }
}
