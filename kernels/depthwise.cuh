// The depthwise 3x3 convolution of a Nano block for half precision, forward and for the gradient of
// its input, by either of the units that compute it. Depends on features.cuh and mma.cuh.
//
// TensorDepthwise: eight channels and two taps are the 16 columns of one operand, and the weights
// are on the diagonals of the other. Seven eighths of the products are with zeros, but one
// instruction replaces 8 multiply-adds and the unpacking of halves: faster where tensor cores
// multiply eight or sixteen times as fast as the other units.
//
// PlainDepthwise: f32 multiply-adds of unpacked halves, with taps in f32: faster where tensor cores
// are only twice as fast, as on consumer cards.
//
// Both take the same matrices from shared memory: of plane j a lane has channels 8j + 2t and 8j +
// 2t + 1 of pixel `group` in each row, and so are the results. A pixel's sum has the same order in
// every row. `BACK`: the taps are rotated by 180 degrees and nothing is added to the sum, else the
// bias is.
#pragma once
#include "features.cuh"
#include "mma.cuh"

// Bytes of shared memory of the taps and biases, enough for either form.
#define DEPTHWISE_BYTES ((HIDDEN + 1) * 10 * 4)

// Two ones in half precision.
#if PRECISION == 1
#define ONES 0x3f803f80u
#else
#define ONES 0x3c003c00u
#endif

// A lane's taps of a plane as operands: zero except where the lane's row and column are the same
// channel, because lanes off the diagonal read zeros.
template <bool BACK>
struct TensorDepthwise {
    // Of a hidden channel and, at number HIDDEN, of none.
    struct Shared {
        Wide* taps;   // eight of the nine, in two arrays
        u32* last;    // the ninth
        u32* starts;  // biases, rounded to half precision, and the remainder
    };
    // the upper and the lower tap of each column; the middle taps of the first two columns; the
    // third, next to the bias, which is two rows of an operand whose other side is ones
    u32 outer[3][2], middle[2], last[2];

    DEVICE_MEMBER static Shared shared(Wide* at) {
        u32* words = (u32*)(at + 2 * (HIDDEN + 1));
        return {at, words, words + HIDDEN + 1};
    }
    DEVICE_MEMBER static void store_tap(Wide* at, int channel, int row, int column, float tap) {
        Shared to = shared(at);
        int place = row == 1 ? 6 + column : 2 * column + row / 2;
        // the value goes to the half of the word that belongs to the channel
        u32 word = pack_half(tap, 0.0f) << (channel % 2 * 16);
        if (place < 8)
            to.taps[place / 4 * (HIDDEN + 1) + channel].word[place % 4] = word;
        else
            to.last[channel] = word;
    }
    DEVICE_MEMBER static void store_start(Wide* at, int channel, float start) {
        shared(at).starts[channel] = pack_half(start, start - low_half(pack_half(start, 0.0f)));
    }
    // The zeros, by the threads i of a block.
    DEVICE_MEMBER static void store_rest(Wide* at, u32 i) {
        Shared to = shared(at);
        if (i < 8) to.taps[i / 4 * (HIDDEN + 1) + HIDDEN].word[i % 4] = 0;
        if (i < 2) to.last[i * (HIDDEN + 1) + HIDDEN] = 0;
    }
    DEVICE_MEMBER void load(Wide* at, int plane, Lane l) {
        Shared from = shared(at);
        int channel = l.group / 2 == l.t ? 8 * plane + l.group : HIDDEN;
        Wide a = from.taps[channel], b = from.taps[HIDDEN + 1 + channel];
        u32 ninth = from.last[channel];
        if (BACK) {
            *this = {{{b.word[1], b.word[0]}, {a.word[3], a.word[2]}, {a.word[1], a.word[0]}}, {ninth, b.word[3]}, {b.word[2], 0}};
        } else {
            u32 start = from.starts[l.t == 0 ? 8 * plane + l.group : HIDDEN];
            *this = {{{a.word[0], a.word[1]}, {a.word[2], a.word[3]}, {b.word[0], b.word[1]}}, {b.word[2], b.word[3]}, {ninth, start}};
        }
    }

    // Two rows of eight pixels of two planes, which are given to finish(0 or 1, results). `from`: a lane's
    // address in the first plane: lane 8r + i points r rows below pixel i's upper left neighbour; two rows
    // of results need these four rows. `pitch`: pieces from one plane to the next. The products of the
    // planes alternate, so that they do not wait for one another. The upper and the lower tap of a column
    // are one product, because two rows of results then use a column's four matrices as they were loaded.
    template <class Finish>
    DEVICE_MEMBER static void two_planes(const TensorDepthwise (&plane)[2], const Wide* from, int pitch, const Finish& finish) {
        float sum[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        u32 m[2][4], before[2][2] = {{0, 0}, {0, 0}};
        UNROLL
        for (int kx = 0; kx < 3; kx++) {
            UNROLL
            for (int j = 0; j < 2; j++) load_matrices(m[j], from + j * pitch + kx);
            UNROLL
            for (int j = 0; j < 2; j++) mma_16x8x16(sum[j], m[j], plane[j].outer[kx]);
            UNROLL
            for (int j = 0; j < 2; j++) {
                if (kx == 1) mma_16x8x16(sum[j], {before[j][0], before[j][1], m[j][1], m[j][2]}, plane[j].middle);
                before[j][0] = m[j][1];
                before[j][1] = m[j][2];
            }
        }
        UNROLL
        for (int j = 0; j < 2; j++) mma_16x8x16(sum[j], {m[j][1], m[j][2], ONES, ONES}, plane[j].last);
        finish(0, sum[0]);
        finish(1, sum[1]);
    }

    // Four rows, which need six, two of which both halves use.
    DEVICE_MEMBER void four_rows(float (&upper)[4], float (&lower)[4], const Wide* from, int side, int lane) const {
        u32 m[4], below[2], before[4] = {0, 0, 0, 0};
        // rows 4 and 5; the upper half of the warp gives the addresses of the lower half
        const Wide* last_rows = from + (lane < 16 ? 4 : 2) * side;
        UNROLL
        for (int i = 0; i < 4; i++) upper[i] = lower[i] = 0;
        UNROLL
        for (int kx = 0; kx < 3; kx++) {
            load_matrices(m, from + kx);
            load_two_matrices(below, last_rows + kx);
            mma_16x8x16(upper, m, outer[kx]);
            mma_16x8x16(lower, {m[2], m[3], below[0], below[1]}, outer[kx]);
            if (kx == 1) {
                mma_16x8x16(upper, {before[0], before[1], m[1], m[2]}, middle);
                mma_16x8x16(lower, {before[2], before[3], m[3], below[0]}, middle);
            }
            before[0] = m[1];
            before[1] = m[2];
            before[2] = m[3];
            before[3] = below[0];
        }
        if (BACK) {
            mma_16x8x8(upper, m[1], m[2], last[0], upper);
            mma_16x8x8(lower, m[3], below[0], last[0], lower);
        } else {
            mma_16x8x16(upper, {m[1], m[2], ONES, ONES}, last);
            mma_16x8x16(lower, {m[3], below[0], ONES, ONES}, last);
        }
    }
};

// A lane has the taps of its two channels in registers.
template <bool BACK>
struct PlainDepthwise {
    struct __attribute__((aligned(16))) TwoRows {
        float tap[2][2];
    };
    struct __attribute__((aligned(8))) Row {
        float tap[2];
    };
    // Of channels 2t and 2t + 1 of a plane; of every column the upper two taps, then the lower one.
    // The places of four neighbouring pairs of channels are in different banks.
    struct Shared {
        TwoRows upper[3];
        Row lower[3], start;
    };
    static_assert(HIDDEN / 2 * sizeof(Shared) <= DEPTHWISE_BYTES, "the taps have room");
    Shared taps;

    DEVICE_MEMBER static void store_tap(Wide* at, int channel, int row, int column, float tap) {
        Shared* to = (Shared*)at + channel / 2;
        if (row < 2)
            to->upper[column].tap[row][channel % 2] = tap;
        else
            to->lower[column].tap[channel % 2] = tap;
    }
    DEVICE_MEMBER static void store_start(Wide* at, int channel, float start) { ((Shared*)at)[channel / 2].start.tap[channel % 2] = start; }
    DEVICE_MEMBER static void store_rest(Wide*, u32) {}
    DEVICE_MEMBER void load(Wide* at, int plane, Lane l) { taps = ((const Shared*)at)[4 * plane + l.t]; }

    // Adds a column of the 3x3 to ROWS rows of two channels each. `word`: those of ROWS + 2 rows.
    template <int ROWS>
    DEVICE_MEMBER void add_column(float (&sum)[ROWS][2], const u32 (&word)[ROWS + 2], int column) const {
        TwoRows upper = taps.upper[BACK ? 2 - column : column];
        Row lower = taps.lower[BACK ? 2 - column : column];
        UNROLL
        for (int c = 0; c < 2; c++) {
            float first = BACK ? lower.tap[c] : upper.tap[0][c], third = BACK ? upper.tap[0][c] : lower.tap[c];
            UNROLL
            for (int r = 0; r < ROWS + 2; r++) {
                float value = c ? high_half(word[r]) : low_half(word[r]);
                if (r < ROWS) sum[r][c] = fmaf(first, value, sum[r][c]);
                if (r > 0 && r <= ROWS) sum[r - 1][c] = fmaf(upper.tap[1][c], value, sum[r - 1][c]);
                if (r > 1) sum[r - 2][c] = fmaf(third, value, sum[r - 2][c]);
            }
        }
    }
    template <int ROWS>
    DEVICE_MEMBER void begin(float (&sum)[ROWS][2]) const {
        Row start = BACK ? Row{{0, 0}} : taps.start;
        UNROLL
        for (int i = 0; i < 2 * ROWS; i++) sum[i / 2][i % 2] = start.tap[i % 2];
    }

    // As those of TensorDepthwise.
    template <class Finish>
    DEVICE_MEMBER static void two_planes(const PlainDepthwise (&plane)[2], const Wide* from, int pitch, const Finish& finish) {
        float result[4];
        plane[0].two_rows(result, from);
        finish(0, result);
        plane[1].two_rows(result, from + pitch);
        finish(1, result);
    }
    DEVICE_MEMBER void two_rows(float (&result)[4], const Wide* from) const {
        float sum[2][2];
        begin(sum);
        UNROLL
        for (int kx = 0; kx < 3; kx++) {
            u32 m[4];
            load_matrices(m, from + kx);
            add_column<2>(sum, m, kx);
        }
        UNROLL
        for (int i = 0; i < 4; i++) result[i] = sum[i / 2][i % 2];
    }
    DEVICE_MEMBER void four_rows(float (&upper)[4], float (&lower)[4], const Wide* from, int side, int lane) const {
        const Wide* last_rows = from + (lane < 16 ? 4 : 2) * side;
        float sum[4][2];
        begin(sum);
        UNROLL
        for (int kx = 0; kx < 3; kx++) {
            u32 m[4], below[2];
            load_matrices(m, from + kx);
            load_two_matrices(below, last_rows + kx);
            add_column<4>(sum, {m[0], m[1], m[2], m[3], below[0], below[1]}, kx);
        }
        UNROLL
        for (int i = 0; i < 4; i++) {
            upper[i] = sum[i / 2][i % 2];
            lower[i] = sum[2 + i / 2][i % 2];
        }
    }
};
