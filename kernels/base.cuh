// The base of the head, Magic Kernel Sharp 2021 (sharpening, nearest-neighbour upsampling, blur; separable, zero padded), for one tile
// of the HR picture. The blur's five taps fall on at most three LQ pixels, which is all of it that is done at HR. Depends on features.cuh.
#pragma once
#include "features.cuh"

CONSTANT float SHARP_TAPS[7] = {-1.0f / 32, 0.0f, 9.0f / 32, 16.0f / 32, 9.0f / 32, 0.0f, -1.0f / 32};
CONSTANT float BLUR_TAPS[5] = {1.0f / 16, 4.0f / 16, 6.0f / 16, 4.0f / 16, 1.0f / 16};

// Rows (or columns) of the LQ picture under the 16 + 4 HR rows that a tile's blur looks at.
DEVICE int base_side(int scale) { return (18 + scale) / scale + 1; }
DEVICE int floor_divide(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// The arrays of one tile in shared memory, f32. What the blur is taken of stands in two parts: the picture itself, and what sharpening
// adds to it. In units of 1/255 the first is an integer and its blur exact.
struct Base {
    float* taps;        // [2][TILE][4]: of the tile's HR rows and columns, weights of three LQ pixels and the first one's number
    float* raw;         // [side + 6][side + 6][3]
    float* sharpened;   // [side + 6][side][3]
    float* low;         // [2][side][side][3]
    float* across;      // [2][side][TILE][3]: blurred along rows
    int scale, side, y, x;  // y, x: LQ pixel of low[0][0]
};
// f32 elements of the arrays, as backend/cuda/head.rs counts them.
DEVICE Base base_arrays(float* memory, int scale) {
    int side = base_side(scale), wide = side + 6;
    Base b;
    b.scale = scale;
    b.side = side;
    b.taps = memory;
    b.raw = b.taps + 2 * TILE * 4;
    b.sharpened = b.raw + wide * wide * 3;
    b.low = b.sharpened + wide * side * 3;
    b.across = b.low + 2 * side * side * 3;
    b.y = b.x = 0;
    return b;
}

// The taps of thread's row or column; the tile's first HR pixel is (y, x).
DEVICE void base_taps(const Base& b, int y, int x) {
    if (threadIdx.x >= 2 * TILE) return;
    bool column = threadIdx.x >= TILE;
    int at = (column ? x : y) + (int)threadIdx.x % TILE, first = floor_divide(at - 2, b.scale);
    float sum[3] = {0, 0, 0};
    UNROLL
    for (int k = 0; k < 5; k++) {
        int cell = floor_divide(at + k - 2, b.scale) - first;
        UNROLL
        for (int i = 0; i < 3; i++) sum[i] += cell == i ? BLUR_TAPS[k] : 0.0f;
    }
    float* to = b.taps + threadIdx.x * 4;
    for (int i = 0; i < 3; i++) to[i] = sum[i];
    to[3] = bits_to_float((u32)(first - (column ? b.x : b.y)));
}

// Fills `across` for the tile whose first HR pixel is (y, x); `image` [h][w][3]. With `units` the picture is in 255ths, rounded to the
// integers it came from. All threads call it; barriers inside, and one at the end.
DEVICE void base_tile(Base& b, const float* image, int h, int w, int y, int x, float alpha, bool units) {
    int side = b.side, wide = side + 6, threads = blockDim.x;
    b.y = floor_divide(y - 2, b.scale);
    b.x = floor_divide(x - 2, b.scale);
    base_taps(b, y, x);
    for (int i = threadIdx.x; i < wide * wide * 3; i += threads) {
        int c = i % 3, row = b.y - 3 + i / 3 / wide, column = b.x - 3 + i / 3 % wide;
        float v = inside(row, column, h, w) ? image[((long long)row * w + column) * 3 + c] : 0.0f;
        b.raw[i] = units ? rintf(v * 255.0f) : v;
    }
    barrier();
    if (alpha > 0.0f) {
        for (int i = threadIdx.x; i < wide * side * 3; i += threads) {
            const float* from = b.raw + (i / (side * 3) * wide * 3 + i % (side * 3));
            float sum = 0;
            for (int k = 0; k < 7; k++) sum += SHARP_TAPS[k] * from[3 * k];
            b.sharpened[i] = sum;
        }
        barrier();
    }
    for (int i = threadIdx.x; i < side * side * 3; i += threads) {
        int row = i / (side * 3), column = i % (side * 3);
        float plain = b.raw[((row + 3) * wide + 3) * 3 + column], add = 0;
        if (alpha > 0.0f && inside(b.y + row, b.x + column / 3, h, w)) {
            float sum = 0;
            for (int k = 0; k < 7; k++) sum += SHARP_TAPS[k] * b.sharpened[(row + k) * side * 3 + column];
            add = alpha * (sum - plain);
        }
        b.low[i] = plain;
        b.low[side * side * 3 + i] = add;
    }
    barrier();
    for (int i = threadIdx.x; i < 2 * side * TILE * 3; i += threads) {
        int c = i % 3, column = i / 3 % TILE, row = i / 3 / TILE;
        const float* weights = b.taps + (TILE + column) * 4;
        const float* from = b.low + (row * side + (int)float_to_bits(weights[3])) * 3 + c;
        float sum = weights[0] * from[0];
        // a weight of zero may stand for a pixel beyond the array
        if (weights[1] != 0.0f) sum += weights[1] * from[3];
        if (weights[2] != 0.0f) sum += weights[2] * from[6];
        b.across[i] = sum;
    }
    barrier();
}

// One value of the base, or with a target (in units of 1/255) of the base less the target; row and column of the tile.
DEVICE float base_value(const Base& b, int row, int column, int c, bool units, float target) {
    const float* weights = b.taps + row * 4;
    int at = ((int)float_to_bits(weights[3]) * TILE + column) * 3 + c, part = b.side * TILE * 3;
    float plain = 0, add = 0;
    for (int k = 0; k < 3; k++) {
        if (weights[k] != 0.0f) {
            plain += weights[k] * b.across[at + k * TILE * 3];
            add += weights[k] * b.across[part + at + k * TILE * 3];
        }
    }
    return units ? (plain - target + add) / 255.0f : plain + add;
}
