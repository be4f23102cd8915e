// The base of the head, Magic Kernel Sharp 2021 (sharpening, nearest-neighbour upsampling, blur; separable, zero padded), for one tile
// of LQ pixels. The blur's five HR taps fall on at most three LQ pixels, so that all of it is done at LQ: sharpened once a tile, then three
// rows and columns for every HR pixel. Depends on features.cuh.
#pragma once
#include "features.cuh"

CONSTANT float SHARP_TAPS[7] = {-1.0f / 32, 0.0f, 9.0f / 32, 16.0f / 32, 9.0f / 32, 0.0f, -1.0f / 32};
CONSTANT float BLUR_TAPS[5] = {1.0f / 16, 4.0f / 16, 6.0f / 16, 4.0f / 16, 1.0f / 16};

// Sides of the arrays: the tile with the pixel around it that the blur sees, and with the three more that sharpening sees.
#define BLURRED (TILE + 2)
#define SHARPENED (TILE + 8)
// f32 elements of the arrays; the lowering (src/backend/cuda/up_head.rs) has the same numbers.
#define BASE_RAW (SHARPENED * SHARPENED * 3)
#define BASE_ROWS (SHARPENED * BLURRED * 3)
#define BASE_CELLS (BLURRED * BLURRED * 8)
#define BASE_TAPS 32

// Rounded down; a is -16 x b at least.
DEVICE int floor_divide(int a, int b) { return (int)((u32)(a + 16 * b) / (u32)b) - 16; }

// Four f32 side by side.
struct __attribute__((aligned(16))) Quad {
    float value[4];
};

// The seven taps of the sharpening filter, two of which are zero, for the three channels of a pixel.
DEVICE void sharpen(const float* from, int step, float (&sum)[3]) {
    UNROLL
    for (int c = 0; c < 3; c++) {
        const float* at = from + c;
        sum[c] = SHARP_TAPS[3] * at[3 * step];
        sum[c] += SHARP_TAPS[2] * (at[2 * step] + at[4 * step]);
        sum[c] += SHARP_TAPS[0] * (at[0] + at[6 * step]);
    }
}

// What the blur does to an HR pixel at each place inside its LQ pixel: weights of the LQ pixel before, of its own, and of the one behind.
// `taps`: BASE_TAPS f32, one Quad a place. Visible after the next barrier.
DEVICE void base_taps(float* taps, int scale) {
    int phase = threadIdx.x;
    if (phase >= scale) return;
    Quad q = {{0, 0, 0, 0}};
    UNROLL
    for (int k = 0; k < 5; k++) {
        int at = phase + k - 2, cell = at < 0 ? 0 : at < scale ? 1 : 2;
        UNROLL
        for (int i = 0; i < 3; i++) q.value[i] += cell == i ? BLUR_TAPS[k] : 0.0f;
    }
    ((Quad*)taps)[phase] = q;
}

// Fills `cells` for the tile whose first LQ pixel is (y, x): of every pixel from (y - 1, x - 1) on eight f32, the picture's RGB, what
// sharpening adds to it, and two that are left free. In units of 1/255 the first is an integer and its blur exact. `image`
// [h][w][3]; with `units` the picture is in 255ths, rounded to the integers it came from. `raw` and `rows` are scratch, free again
// afterwards. All threads of a block of THREADS call it; barriers inside, and one at the end.
template <int THREADS>
DEVICE void base_cells(float* raw, float* rows, float* cells, const float* image, int h, int w, int y, int x, float alpha, bool units) {
    const int wide = SHARPENED * 3, narrow = BLURRED * 3, lines = THREADS / wide, rounds = (SHARPENED + lines - 1) / lines;
    // a thread has one place in every few lines; all loads are on their way before the first is waited for
    int first = threadIdx.x / wide, at = threadIdx.x - first * wide, from = (x - 4) * 3 + at;
    bool loads = first < lines, within = loads && from >= 0 && from < 3 * w;
    float loaded[rounds];
    UNROLL
    for (int round = 0; round < rounds; round++) {
        int row = y - 4 + first + lines * round;
        loaded[round] = 0;
        if (within && (u32)row < (u32)h) loaded[round] = image[row * w * 3 + from];
    }
    UNROLL
    for (int round = 0; round < rounds; round++) {
        bool last = lines * (round + 1) > SHARPENED && first + lines * round >= SHARPENED;
        if (loads && !last) raw[threadIdx.x + lines * wide * round] = units ? rintf(loaded[round] * 255.0f) : loaded[round];
    }
    barrier();
    if (alpha > 0.0f) {
        ROLLED
        for (int i = threadIdx.x; i < SHARPENED * BLURRED; i += THREADS) {
            float sum[3];
            sharpen(raw + 3 * (i + i / BLURRED * (SHARPENED - BLURRED)), 3, sum);
            UNROLL
            for (int c = 0; c < 3; c++) rows[3 * i + c] = sum[c];
        }
        barrier();
    }
    ROLLED
    for (int i = threadIdx.x; i < BLURRED * BLURRED; i += THREADS) {
        int line = i / BLURRED, column = i - line * BLURRED;
        const float* plain = raw + (line + 3) * wide + 3 * (column + 3);
        float add[3] = {0, 0, 0};
        if (alpha > 0.0f && inside(y - 1 + line, x - 1 + column, h, w)) {
            sharpen(rows + 3 * i, narrow, add);
            UNROLL
            for (int c = 0; c < 3; c++) add[c] = alpha * (add[c] - plain[c]);
        }
        Quad low = {{plain[0], plain[1], plain[2], add[0]}}, high = {{add[1], add[2], 0, 0}};
        ((Quad*)cells)[2 * i] = low;
        ((Quad*)cells)[2 * i + 1] = high;
    }
    barrier();
}

// The neighbourhood of one LQ pixel, blurred down to one row of HR pixels: per column of three the picture's RGB, then what sharpening adds.
struct Blurred {
    float value[3][6];
};
// Row and column of the tile; `taps` of the HR row's place.
DEVICE void base_rows(Blurred& b, const float* cells, int row, int column, Quad taps) {
    const Quad* from = (const Quad*)cells + (row * BLURRED + column) * 2;
    UNROLL
    for (int x = 0; x < 3; x++) {
        UNROLL
        for (int i = 0; i < 6; i++) b.value[x][i] = 0;
        UNROLL
        for (int y = 0; y < 3; y++) {
            Quad low = from[(y * BLURRED + x) * 2], high = from[(y * BLURRED + x) * 2 + 1];
            UNROLL
            for (int i = 0; i < 6; i++) b.value[x][i] += taps.value[y] * (i < 4 ? low.value[i] : high.value[i - 4]);
        }
    }
}

// A pixel of the base, or with `units` of the base less `target` (a u8's value); `taps` of the HR column's place.
DEVICE void base_pixel(const Blurred& b, Quad taps, bool units, const float (&target)[3], float (&value)[3]) {
    UNROLL
    for (int c = 0; c < 3; c++) {
        float part[2];
        UNROLL
        for (int i = 0; i < 2; i++)
            part[i] = taps.value[0] * b.value[0][3 * i + c] + taps.value[1] * b.value[1][3 * i + c] + taps.value[2] * b.value[2][3 * i + c];
        value[c] = units ? (part[0] - target[c] + part[1]) * (1.0f / 255) : part[0] + part[1];
    }
}
