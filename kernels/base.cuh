// The base of the reconstruction, Magic Kernel Sharp 2021 (sharpening, nearest-neighbour
// upsampling, blur; separable, zero padded), for one tile of LQ pixels. The blur's five HR taps
// cover at most three LQ pixels, so all of it is computed at LQ: sharpened once a tile, then three
// rows and columns for every HR pixel. Depends on features.cuh.
#pragma once
#include "features.cuh"

// Sides of the arrays: the tile and one pixel around it, which the blur needs; and three pixels
// more, which sharpening needs.
#define BLURRED (TILE + 2)
#define SHARPENED (TILE + 8)
// A row of cells: columns 0 .. 9, then 8 .. 17, so that lanes eight columns apart read different
// banks.
#define CELL_PITCH (BLURRED + 2)
static_assert(BASE_RAW == SHARPENED * SHARPENED * 3 && BASE_ROWS == SHARPENED * BLURRED * 3 && BASE_CELLS == BLURRED * CELL_PITCH * 6,
              "the lowering reserves what the arrays need");

// a / b, rounded down; a must be at least -16 x b.
DEVICE int floor_divide(int a, int b) { return (int)((u32)(a + 16 * b) / (u32)b) - 16; }

// Four f32 side by side, and two.
struct __attribute__((aligned(16))) Quad {
    float value[4];
};
struct __attribute__((aligned(8))) Two {
    float value[2];
};

// The seven taps of the sharpening filter (two of them are zero) along `step`, for the three
// channels of a pixel.
DEVICE void sharpen(const float* from, int step, float (&sum)[3]) {
    UNROLL
    for (int c = 0; c < 3; c++) {
        const float* at = from + c;
        sum[c] = SHARP_TAPS[3] * at[3 * step];
        sum[c] += SHARP_TAPS[2] * (at[2 * step] + at[4 * step]);
        sum[c] += SHARP_TAPS[0] * (at[0] + at[6 * step]);
    }
}

// Computes the blur's weights for each HR row (or column) inside an LQ pixel: those of the LQ pixel
// before, of the pixel itself, and of the one after. `taps`: BASE_TAPS f32, one Quad for each HR
// row. They are visible after the next barrier.
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

// A thread's share of a tile of the input image on its way from device to shared memory: one
// element in every LINES lines. Loads and stores are apart, so that other loads can be under way at
// the same time. `image`: [h][w][3], for the tile whose first LQ pixel is (y, x).
template <int THREADS>
struct BaseInput {
    static const int WIDE = SHARPENED * 3, LINES = THREADS / WIDE, ROUNDS = (SHARPENED + LINES - 1) / LINES;
    float loaded[ROUNDS];

    DEVICE_MEMBER void load(const float* image, int h, int w, int y, int x) {
        int first = threadIdx.x / WIDE, from = (x - 4) * 3 + (int)threadIdx.x - first * WIDE;
        bool within = first < LINES && from >= 0 && from < 3 * w;
        UNROLL
        for (int round = 0; round < ROUNDS; round++) {
            int row = y - 4 + first + LINES * round;
            loaded[round] = 0;
            if (within && (u32)row < (u32)h) loaded[round] = image[row * w * 3 + from];
        }
    }
    // With `units` the values are multiplied by 255 and rounded to the integers that they came
    // from.
    DEVICE_MEMBER void store(float* raw, bool units) const {
        int first = threadIdx.x / WIDE;
        UNROLL
        for (int round = 0; round < ROUNDS; round++) {
            bool last = LINES * (round + 1) > SHARPENED && first + LINES * round >= SHARPENED;
            if (first < LINES && !last) raw[threadIdx.x + LINES * WIDE * round] = units ? rintf(loaded[round] * 255.0f) : loaded[round];
        }
    }
};

// Fills `cells` from the tile's input in `raw`: for every pixel from (y - 1, x - 1) on a Quad and,
// after all Quads, a Two, which hold the pixel's RGB, then what sharpening adds to each. In units
// of 1/255 the RGB are integers and their blur is exact. `raw` and `rows` are scratch and free
// again afterwards. All THREADS threads of a block call it once `raw` is stored; the first thing
// inside is a barrier. The cells are visible after the next barrier.
template <int THREADS>
DEVICE void base_cells(const float* raw, float* rows, float* cells, int h, int w, int y, int x, float alpha) {
    const int wide = SHARPENED * 3, narrow = BLURRED * 3;
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
        UNROLL
        for (int part = 0; part < 2; part++) {
            int to = line * CELL_PITCH + column + 2 * part;
            if (part ? column < TILE / 2 : column > TILE / 2 + 1) continue;
            ((Quad*)cells)[to] = {{plain[0], plain[1], plain[2], add[0]}};
            ((Two*)(cells + BLURRED * CELL_PITCH * 4))[to] = {{add[1], add[2]}};
        }
    }
}

// The neighbourhood of one LQ pixel, blurred along columns for one row of HR pixels: for each of
// three LQ columns RGB, then what sharpening adds.
struct Blurred {
    float value[3][6];
};
// Blurs the neighbourhood of the LQ pixel at a row and column of the tile for several rows of HR
// pixels, reading it once. `taps`: the blur's weights of each HR row.
template <int ROWS>
DEVICE void base_rows(Blurred (&b)[ROWS], const float* cells, int row, int column, const Quad (&taps)[ROWS]) {
    int at = row * CELL_PITCH + column + ((column & TILE / 2) >> 2);
    const Quad* low = (const Quad*)cells + at;
    const Two* high = (const Two*)(cells + BLURRED * CELL_PITCH * 4) + at;
    UNROLL
    for (int i = 0; i < 9; i++) {
        int x = i / 3, y = i % 3;
        Quad four = low[y * CELL_PITCH + x];
        Two two = high[y * CELL_PITCH + x];
        UNROLL
        for (int k = 0; k < 6; k++) {
            UNROLL
            for (int r = 0; r < ROWS; r++) {
                float part = taps[r].value[y] * (k < 4 ? four.value[k % 4] : two.value[k % 2]);
                b[r].value[x][k] = y == 0 ? part : b[r].value[x][k] + part;
            }
        }
    }
}

// One pixel of the base, or with `units` base - target, where the target is a u8's value. `taps`:
// the blur's weights of the HR column.
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
