// The base of the head, Magic Kernel Sharp 2021 (sharpening, nearest-neighbour upsampling, blur; separable, zero padded), for one tile
// of the HR picture. The blur's five taps fall on at most three LQ pixels, which is all of it that is done at HR. Depends on features.cuh.
#pragma once
#include "features.cuh"

CONSTANT float SHARP_TAPS[7] = {-1.0f / 32, 0.0f, 9.0f / 32, 16.0f / 32, 9.0f / 32, 0.0f, -1.0f / 32};
CONSTANT float BLUR_TAPS[5] = {1.0f / 16, 4.0f / 16, 6.0f / 16, 4.0f / 16, 1.0f / 16};

// Rows (or columns) of the LQ picture under the 16 + 4 HR rows that a tile's blur looks at.
DEVICE int base_side(int scale) { return (18 + scale) / scale + 1; }
// Rounded down; a is -16 x b at least.
DEVICE int floor_divide(int a, int b) { return (int)((u32)(a + 16 * b) / (u32)b) - 16; }

// Four f32 side by side.
struct __attribute__((aligned(16))) Quad {
    float value[4];
};

// The arrays of one tile in shared memory, f32. What the blur is taken of stands in two parts: the picture itself, and what sharpening
// adds to it. In units of 1/255 the first is an integer and its blur exact.
struct Base {
    Quad* taps;         // [2][TILE]: of the tile's HR rows and columns, weights of three LQ pixels and the first one's number
    float* raw;         // [side + 6][side + 6][3]
    float* sharpened;   // [side + 6][side][3]
    float* low;         // [2][side][side][3]
    float* across;      // [2][side][TILE][3]: blurred along rows
    int scale, side, y, x;  // y, x: LQ pixel of low[0][0]
    u32 row_part, wide_part;  // 2^16 / (3 side) and 2^16 / (3 (side + 6)), rounded up
};
// f32 elements of the arrays, as backend/cuda/head.rs counts them. `memory` is 16-byte aligned.
DEVICE Base base_arrays(float* memory, int scale) {
    int side = base_side(scale), wide = side + 6;
    Base b;
    b.scale = scale;
    b.side = side;
    b.taps = (Quad*)memory;
    b.raw = memory + 2 * TILE * 4;
    b.sharpened = b.raw + wide * wide * 3;
    b.low = b.sharpened + wide * side * 3;
    b.across = b.low + 2 * side * side * 3;
    b.y = b.x = 0;
    b.row_part = 65536 / (3 * side) + 1;
    b.wide_part = 65536 / (3 * wide) + 1;
    return b;
}
// i / n for the arrays' elements, with `part` as above: exact as long as i x n < 2^16, and there are at most 17 x 51 elements.
DEVICE int array_row(int i, u32 part) { return (int)((u32)i * part >> 16); }

// The taps of a thread's row or column; the tile's first HR pixel is (y, x). A scale of at least 2 puts the five taps on three LQ pixels at
// most; at the array's end the last three stand for fewer, so that none lies beyond it.
DEVICE void base_taps(const Base& b, int y, int x) {
    if (threadIdx.x >= 2 * TILE) return;
    bool column = threadIdx.x >= TILE;
    int at = (column ? x : y) + (int)threadIdx.x % TILE - 2, low = floor_divide(at, b.scale), rest = at - low * b.scale;
    int number = low - (column ? b.x : b.y), first = number < b.side - 3 ? number : b.side - 3;
    Quad taps = {{0, 0, 0, bits_to_float((u32)first)}};
    UNROLL
    for (int k = 0; k < 5; k++) {
        int cell = number - first + (rest + k >= b.scale) + (rest + k >= 2 * b.scale);
        UNROLL
        for (int i = 0; i < 3; i++) taps.value[i] += cell == i ? BLUR_TAPS[k] : 0.0f;
    }
    b.taps[threadIdx.x] = taps;
}

// The seven taps of the sharpening filter, two of which are zero.
DEVICE float sharpen(const float* from, int step) {
    float sum = SHARP_TAPS[3] * from[3 * step];
    sum += SHARP_TAPS[2] * (from[2 * step] + from[4 * step]);
    return sum + SHARP_TAPS[0] * (from[0] + from[6 * step]);
}

// Fills `across` for the tile whose first HR pixel is (y, x); `image` [h][w][3]. With `units` the picture is in 255ths, rounded to the
// integers it came from. All 256 threads call it; barriers inside, and one at the end.
DEVICE void base_tile(Base& b, const float* image, int h, int w, int y, int x, float alpha, bool units) {
    int side = b.side, row_length = 3 * side, wide_length = row_length + 18;
    b.y = floor_divide(y - 2, b.scale);
    b.x = floor_divide(x - 2, b.scale);
    base_taps(b, y, x);
    // of a row of values [x][3] that starts three pixels left of b.x, those inside the picture
    int left = 3 * (3 - b.x), right = left + 3 * w;
    // at most 17 x 17 pixels: all loads are on their way before the first is waited for
    const int rounds = 4;
    float loaded[rounds];
    UNROLL
    for (int round = 0; round < rounds; round++) {
        int i = threadIdx.x + 256 * round, line = array_row(i, b.wide_part), at = i - line * wide_length, row = b.y - 3 + line;
        loaded[round] = 0;
        if (line < side + 6 && row >= 0 && row < h && at >= left && at < right) loaded[round] = image[row * w * 3 + (at - left)];
    }
    UNROLL
    for (int round = 0; round < rounds; round++) {
        int i = threadIdx.x + 256 * round;
        if (i < (side + 6) * wide_length) b.raw[i] = units ? rintf(loaded[round] * 255.0f) : loaded[round];
    }
    barrier();
    if (alpha > 0.0f) {
        ROLLED
        for (int i = threadIdx.x; i < (side + 6) * row_length; i += 256) b.sharpened[i] = sharpen(b.raw + i + 18 * array_row(i, b.row_part), 3);
        barrier();
    }
    ROLLED
    for (int i = threadIdx.x; i < side * row_length; i += 256) {
        int line = array_row(i, b.row_part), at = i - line * row_length, row = b.y + line;
        float plain = b.raw[(line + 3) * wide_length + 9 + at], add = 0;
        if (alpha > 0.0f && row >= 0 && row < h && at + 9 >= left && at + 9 < right) add = alpha * (sharpen(b.sharpened + i, row_length) - plain);
        b.low[i] = plain;
        b.low[side * row_length + i] = add;
    }
    barrier();
    ROLLED
    for (int i = threadIdx.x; i < side * TILE * 3; i += 256) {
        int line = i / (TILE * 3), at = i % (TILE * 3);
        Quad taps = b.taps[TILE + at / 3];
        const float* from = b.low + line * row_length + (int)float_to_bits(taps.value[3]) * 3 + at % 3;
        UNROLL
        for (int part = 0; part < 2; part++) {
            b.across[part * side * TILE * 3 + i] = taps.value[0] * from[0] + taps.value[1] * from[3] + taps.value[2] * from[6];
            from += side * row_length;
        }
    }
    barrier();
}

// A pixel of the base, or with a target (in units of 1/255) of the base less the target; row and column of the tile.
DEVICE void base_pixel(const Base& b, int row, int column, bool units, const float (&target)[3], float (&value)[3]) {
    Quad taps = b.taps[row];
    const float* from = b.across + ((int)float_to_bits(taps.value[3]) * TILE + column) * 3;
    UNROLL
    for (int c = 0; c < 3; c++) {
        float part[2];
        UNROLL
        for (int i = 0; i < 2; i++) {
            const float* at = from + i * b.side * TILE * 3 + c;
            part[i] = taps.value[0] * at[0] + taps.value[1] * at[TILE * 3] + taps.value[2] * at[2 * TILE * 3];
        }
        value[c] = units ? (part[0] - target[c] + part[1]) * (1.0f / 255) : part[0] + part[1];
    }
}
