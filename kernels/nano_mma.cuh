// The Nano block on tensor cores, for halves. Kernels and their arguments are described in nano_block.cu. Depends on features.cuh.
//
// A warp takes eight pixels a row; with group = lane / 4 and t = lane % 4 a lane has pixel `group`, features 4t .. 4t+3 and hidden
// channels 8t .. 8t+7, which is one 16-byte piece of a pixel in shared memory and, without any exchange between lanes, its share of the
// operands and results of both 1x1 convolutions. Pieces are turned by the pixel's number, so that eight neighbours read the same
// word of theirs from different banks, too.
#pragma once
#include "features.cuh"
#include "mma.cuh"

#define HIDDEN (2 * FEATURES)

// Blocks of the forward kernel that a multiprocessor should hold; generation 7.5 has room for fewer.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define NANO_BLOCKS 2
#else
#define NANO_BLOCKS 3
#endif

// Hidden channel of column `group` of result word `word` (0 .. 3).
DEVICE int fragment_hidden(int group, int word) { return 8 * (group / 2) + 2 * word + group % 2; }

// Piece t of pixel p in shared memory.
DEVICE int piece(int p, int t) { return p * 4 + (t ^ (p >> 1 & 3)); }

// gelu(z) and its slope. erf after Abramowitz and Stegun, "Handbook of mathematical functions", 7.1.26: 1.5e-7 at most from exact.
DEVICE void gelu_pair(float z, float& value, float& slope) {
    float bell = fast_exp(-0.5f * z * z), r = fast_reciprocal(1.0f + 0.23164189f * fabsf(z));
    float tail = ((((0.5307027145f * r - 0.7265760135f) * r + 0.7107068705f) * r - 0.142248368f) * r + 0.127414796f) * r * bell;
    float cdf = z < 0.0f ? tail : 1.0f - tail;
    value = z * cdf;
    slope = cdf + z * 0.39894228f * bell;
}

// f32 weights in shared memory that every lane reads 8 neighbours of: depthwise taps [9][32], then biases of conv1 and of it.
#define MMA_B1 (9 * HIDDEN)
#define MMA_DB (MMA_B1 + HIDDEN)
#define MMA_WEIGHTS (MMA_DB + HIDDEN)

DEVICE void load_mma_weights(float* weights, const float* b1, const float* dw, const float* db) {
    for (int i = threadIdx.x; i < 9 * HIDDEN; i += 256) weights[i] = dw[i % HIDDEN * 9 + i / HIDDEN];
    if (threadIdx.x < HIDDEN) {
        weights[MMA_B1 + threadIdx.x] = b1[threadIdx.x];
        weights[MMA_DB + threadIdx.x] = db[threadIdx.x];
    }
}
DEVICE void load_eight(const float* from, float (&v)[8]) {
    for (int i = 0; i < 2; i++) {
        Wide piece = ((const Wide*)from)[i];
        for (int k = 0; k < 4; k++) v[4 * i + k] = bits_to_float(piece.word[k]);
    }
}

// conv1 of `side` x `side` pixels from (y, x) on, into pieces; zero outside the image, where not even the bias reaches.
DEVICE void mma_hidden(Wide* hidden, const float* weights, const float* w1, const act* image, int y, int x, int side, int h, int w, Lane l) {
    u32 b[4][2];
    for (int j = 0; j < 4; j++) {
        const float* row = w1 + fragment_hidden(l.group, j) * FEATURES + 4 * l.t;
        b[j][0] = pack_half(row[0], row[1]);
        b[j][1] = pack_half(row[2], row[3]);
    }
    ROLLED
    for (int start = l.warp * 16; start < side * side; start += 8 * 16) {
        u32 a[4] = {0, 0, 0, 0};
        bool within[2];
        for (int k = 0; k < 2; k++) {
            int p = start + 8 * k + l.group, row = y + p / side, column = x + p % side;
            within[k] = p < side * side && inside(row, column, h, w);
            if (within[k]) {
                Pair v = load_pair(image + ((long long)row * w + column) * FEATURES, l.t);
                a[k] = v.word[0];
                a[2 + k] = v.word[1];
            }
        }
        float bias[8];
        load_eight(weights + MMA_B1 + 8 * l.t, bias);
        Wide to[2];
        for (int j = 0; j < 4; j++) {
            float d[4] = {bias[2 * j], bias[2 * j + 1], bias[2 * j], bias[2 * j + 1]};
            mma_16x8x16(d, a, b[j]);
            to[0].word[j] = within[0] ? pack_half(d[0], d[1]) : 0;
            to[1].word[j] = within[1] ? pack_half(d[2], d[3]) : 0;
        }
        for (int k = 0; k < 2; k++) {
            int p = start + 8 * k + l.group;
            if (p < side * side) hidden[piece(p, l.t)] = to[k];
        }
    }
}

// sum[r] += depthwise 3x3 of ROWS pixels under one another; `first` is the number of the pixel up and left of the first of them, in a
// picture `side` wide. FLIPPED: taps turned by 180 degrees. A value is loaded once for the rows it counts for.
template <int ROWS, bool FLIPPED>
DEVICE void mma_depthwise(float (&sum)[ROWS][8], const Wide* from, int first, int side, const float* weights, int t) {
    ROLLED
    for (int kx = 0; kx < 3; kx++) {
        float taps[3][8];
        for (int ky = 0; ky < 3; ky++) {
            int tap = ky * 3 + kx;
            load_eight(weights + (FLIPPED ? 8 - tap : tap) * HIDDEN + 8 * t, taps[ky]);
        }
        UNROLL
        for (int r = 0; r < ROWS + 2; r++) {
            Wide v = from[piece(first + r * side + kx, t)];
            UNROLL
            for (int i = 0; i < 8; i++) {
                float value = i % 2 ? high_half(v.word[i / 2]) : low_half(v.word[i / 2]);
                UNROLL
                for (int ky = 0; ky < 3; ky++)
                    if (r - ky >= 0 && r - ky < ROWS) sum[r - ky][i] += taps[ky][i] * value;
            }
        }
    }
}

KERNEL_CROWDED(nano_block, 256, NANO_BLOCKS, const float* w1, const float* b1, const float* dw, const float* db, const float* w2, const float* b2,
       const float* gamma, const act* input, act* output, int images, int h, int w) {
    const int side = TILE + 2;
    Wide* hidden = (Wide*)shared_memory();
    float* weights = (float*)(hidden + side * side * 4);
    Lane l = lane_place();
    load_mma_weights(weights, b1, dw, db);
    barrier();
    // a warp's pixels: 8 columns, 4 rows
    int tx = l.warp % 2 * 8 + l.group, ty = l.warp / 2 * 4;
    for (int index = blockIdx.x; index < tile_count(images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        long long start = (long long)t.image * h * w * FEATURES;
        mma_hidden(hidden, weights, w1, input + start, t.y - 1, t.x - 1, side, h, w, l);
        barrier();
        u32 active[4][4];
        {
            float z[4][8];
            for (int r = 0; r < 4; r++) load_eight(weights + MMA_DB + 8 * l.t, z[r]);
            mma_depthwise<4, false>(z, hidden, ty * side + tx, side, weights, l.t);
            for (int r = 0; r < 4; r++) {
                for (int i = 0; i < 4; i++) {
                    float g[2], slope;
                    gelu_pair(z[r][2 * i], g[0], slope);
                    gelu_pair(z[r][2 * i + 1], g[1], slope);
                    active[r][i] = pack_half(g[0], g[1]);
                }
            }
        }
        barrier();
        u32 b[2][2][2];
        float bias[2][2];
        for (int m = 0; m < 2; m++) {
            int c = fragment_feature(l.group, m);
            float strength = gamma[c];
            for (int i = 0; i < 4; i++) {
                const float* pair = w2 + c * HIDDEN + 8 * l.t + 2 * i;
                b[m][i / 2][i % 2] = pack_half(strength * pair[0], strength * pair[1]);
            }
            for (int i = 0; i < 2; i++) bias[m][i] = gamma[4 * l.t + 2 * m + i] * b2[4 * l.t + 2 * m + i];
        }
        for (int r = 0; r < 4; r += 2) {
            float d[2][4];
            for (int m = 0; m < 2; m++) {
                for (int i = 0; i < 4; i++) d[m][i] = bias[m][i % 2];
                for (int s = 0; s < 2; s++) {
                    u32 a[4] = {active[r][2 * s], active[r + 1][2 * s], active[r][2 * s + 1], active[r + 1][2 * s + 1]};
                    mma_16x8x16(d[m], a, b[m][s]);
                }
            }
            for (int k = 0; k < 2; k++) {
                int y = t.y + ty + r + k, x = t.x + tx;
                if (!inside(y, x, h, w)) continue;
                long long at = start + ((long long)y * w + x) * FEATURES;
                Pair v = load_pair(input + at, l.t);
                for (int m = 0; m < 2; m++)
                    v.word[m] = pack_half(low_half(v.word[m]) + d[m][2 * k], high_half(v.word[m]) + d[m][2 * k + 1]);
                store_pair(output + at, l.t, v);
            }
        }
    }
}

// Sums of a block in the order of the parameters; the partial sums of the warps meet in shared memory at the end.
#define SUM_B1 (HIDDEN * FEATURES)
#define SUM_DW (SUM_B1 + HIDDEN)
#define SUM_DB (SUM_DW + 9 * HIDDEN)
#define SUM_W2 (SUM_DB + HIDDEN)
#define SUM_B2 (SUM_W2 + HIDDEN * FEATURES)
#define SUM_COUNT (SUM_B2 + FEATURES)

// Sums of eight values over the eight lanes of equal t, of which each lane gets that of v[group]: 7 exchanges instead of 24.
DEVICE float spread_sum(float (&v)[8], int group) {
    UNROLL
    for (int half = 4; half > 0; half /= 2) {
        bool upper = group & half;
        UNROLL
        for (int i = 0; i < half; i++) {
            float give = upper ? v[i] : v[i + half], keep = upper ? v[i + half] : v[i];
            v[i] = keep + shuffle_xor(give, 4 * half);
        }
    }
    return v[0];
}

// Over the eight lanes of equal t.
DEVICE float group_sum(float value) {
    for (int mask = 4; mask < 32; mask *= 2) value += shuffle_xor(value, mask);
    return value;
}

KERNEL_CROWDED(nano_block_back, 256, 2, const float* w1, const float* b1, const float* dw, const float* db, const float* w2, const float* b2,
       const float* gamma, const act* input, const act* d_output, act* d_input, float* partials, int images, int h, int w) {
    const int side = TILE + 4, dz_side = TILE + 2;
    Wide* hidden = (Wide*)shared_memory();
    Wide* dz = hidden + side * side * 4;
    float* weights = (float*)(dz + dz_side * dz_side * 4);
    Lane l = lane_place();
    load_mma_weights(weights, b1, dw, db);
    // sums over the block's tiles: d_output x gelu(z) and input x d hidden, [feature][hidden], as tensor cores leave them; d_output of
    // one's own features; d hidden of channel 8t + group; depthwise taps (numbers 2 tap + channel) and biases (18 + channel)
    float product[4][4], product1[4][4], sum_d[4], sum_hidden = 0, sum_taps[3] = {0, 0, 0};
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) product[i][j] = product1[i][j] = 0;
        sum_d[i] = 0;
    }
    barrier();
    for (int index = blockIdx.x; index < tile_count(images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        long long start = (long long)t.image * h * w * FEATURES;
        const act *x_image = input + start, *d_image = d_output + start;
        mma_hidden(hidden, weights, w1, x_image, t.y - 2, t.x - 2, side, h, w, l);
        barrier();
        {
            // d z on the tile and one pixel around it: 9 pairs of rows of 18 columns, eight pairs a warp at a time
            u32 b[4][2];
            for (int j = 0; j < 4; j++) {
                int e = fragment_hidden(l.group, j);
                for (int i = 0; i < 2; i++) {
                    int c = 4 * l.t + 2 * i;
                    b[j][i] = pack_half(gamma[c] * w2[c * HIDDEN + e], gamma[c + 1] * w2[(c + 1) * HIDDEN + e]);
                }
            }
            const int pairs = dz_side / 2 * dz_side;
            ROLLED
            for (int at = l.warp * 8; at < pairs; at += 8 * 8) {
                int unit = at + l.group, px = unit % dz_side, py = unit / dz_side * 2;
                bool real = unit < pairs;
                if (!real) px = py = 0;
                float z[2][8];
                for (int r = 0; r < 2; r++) load_eight(weights + MMA_DB + 8 * l.t, z[r]);
                mma_depthwise<2, false>(z, hidden, py * side + px, side, weights, l.t);
                // d output, zero where there is none; in the tile it takes part in sums
                u32 a[4] = {0, 0, 0, 0}, a_turned[4];
                for (int k = 0; k < 2; k++) {
                    int y = t.y - 1 + py + k, x = t.x - 1 + px;
                    if (real && inside(y, x, h, w)) {
                        Pair d = load_pair(d_image + ((long long)y * w + x) * FEATURES, l.t);
                        a[k] = d.word[0];
                        a[2 + k] = d.word[1];
                    }
                    bool tile = real && py + k >= 1 && py + k <= TILE && px >= 1 && px <= TILE;
                    for (int i = 0; i < 2; i++) {
                        u32 word = tile ? a[2 * i + k] : 0;
                        sum_d[2 * i] += low_half(word);
                        sum_d[2 * i + 1] += high_half(word);
                        a_turned[2 * k + i] = transpose(word);
                    }
                }
                Wide to[2];
                for (int j = 0; j < 4; j++) {
                    float dg[4] = {0, 0, 0, 0};
                    mma_16x8x16(dg, a, b[j]);
                    u32 turned[2];
                    for (int k = 0; k < 2; k++) {
                        float g[2], slope[2];
                        for (int i = 0; i < 2; i++) gelu_pair(z[k][2 * j + i], g[i], slope[i]);
                        to[k].word[j] = pack_half(dg[2 * k] * slope[0], dg[2 * k + 1] * slope[1]);
                        turned[k] = transpose(pack_half(g[0], g[1]));
                    }
                    mma_16x8x16(product[j], a_turned, turned);
                }
                if (real)
                    for (int k = 0; k < 2; k++) dz[piece((py + k) * dz_side + px, l.t)] = to[k];
            }
        }
        barrier();
        {
            // depthwise taps: a warp takes two channels a lane, eight in all, of one half of the tile's columns
            const u32 *h_words = (const u32*)hidden, *dz_words = (const u32*)dz;
            int part = l.warp % 4, px = l.warp / 4 * 8 + l.group;
            float taps[3][8];
            for (int k = 0; k < 24; k++) taps[k / 8][k % 8] = 0;
            float d[3][2];  // of the rows y - 2, y - 1, y
            for (int k = 0; k < 3; k++) d[k][0] = d[k][1] = 0;
            // row y of the hidden values, from one above the tile to one below it, meets the d z of rows y - 1, y, y + 1
            ROLLED
            for (int y = -1; y <= TILE; y++) {
                for (int i = 0; i < 2; i++) {
                    d[0][i] = d[1][i];
                    d[1][i] = d[2][i];
                }
                u32 word = y + 1 < TILE ? dz_words[piece((y + 2) * dz_side + px + 1, part) * 4 + l.t] : 0;
                d[2][0] = low_half(word);
                d[2][1] = high_half(word);
                taps[2][2] += d[2][0];
                taps[2][3] += d[2][1];
                for (int kx = 0; kx < 3; kx++) {
                    u32 v = h_words[piece((y + 2) * side + px + 1 + kx, part) * 4 + l.t];
                    // d z of row y + 1 sees this row as its upper one
                    for (int ky = 0; ky < 3; ky++) {
                        int number = 2 * (ky * 3 + kx);
                        taps[number / 8][number % 8] += d[2 - ky][0] * low_half(v);
                        taps[number / 8][number % 8 + 1] += d[2 - ky][1] * high_half(v);
                    }
                }
            }
            for (int k = 0; k < 3; k++) sum_taps[k] += spread_sum(taps[k], l.group);
        }
        {
            // d hidden and what follows from it: 8 columns, 4 rows a warp, two rows at a time
            u32 b[2][2][2];
            for (int m = 0; m < 2; m++) {
                const float* column = w1 + fragment_feature(l.group, m);
                for (int i = 0; i < 4; i++) {
                    int e = 8 * l.t + 2 * i;
                    b[m][i / 2][i % 2] = pack_half(column[e * FEATURES], column[(e + 1) * FEATURES]);
                }
            }
            int tx = l.warp % 2 * 8 + l.group;
            ROLLED
            for (int r = 0; r < 4; r += 2) {
                int ty = l.warp / 2 * 4 + r;
                float d[2][8];
                for (int k = 0; k < 2; k++)
                    for (int i = 0; i < 8; i++) d[k][i] = 0;
                mma_depthwise<2, true>(d, dz, ty * dz_side + tx, dz_side, weights, l.t);
                u32 words[2][4], x_turned[4];
                bool within[2];
                for (int k = 0; k < 2; k++) {
                    int y = t.y + ty + k, x = t.x + tx;
                    within[k] = inside(y, x, h, w);
                    Pair v = {{0, 0}};
                    if (within[k]) v = load_pair(x_image + ((long long)y * w + x) * FEATURES, l.t);
                    for (int i = 0; i < 8; i++) {
                        if (!within[k]) d[k][i] = 0;
                    }
                    for (int i = 0; i < 4; i++) words[k][i] = pack_half(d[k][2 * i], d[k][2 * i + 1]);
                    for (int i = 0; i < 2; i++) x_turned[2 * k + i] = transpose(v.word[i]);
                }
                for (int i = 0; i < 8; i++) d[0][i] += d[1][i];
                sum_hidden += spread_sum(d[0], l.group);
                for (int j = 0; j < 4; j++) {
                    u32 turned[2] = {transpose(words[0][j]), transpose(words[1][j])};
                    mma_16x8x16(product1[j], x_turned, turned);
                }
                float dx[2][4];
                for (int m = 0; m < 2; m++) {
                    for (int i = 0; i < 4; i++) dx[m][i] = 0;
                    for (int s = 0; s < 2; s++) {
                        u32 a[4] = {words[0][2 * s], words[1][2 * s], words[0][2 * s + 1], words[1][2 * s + 1]};
                        mma_16x8x16(dx[m], a, b[m][s]);
                    }
                }
                for (int k = 0; k < 2; k++) {
                    if (!within[k]) continue;
                    long long at = ((long long)(t.y + ty + k) * w + t.x + tx) * FEATURES;
                    Pair v = load_pair(d_image + at, l.t);
                    for (int m = 0; m < 2; m++)
                        v.word[m] = pack_half(low_half(v.word[m]) + dx[m][2 * k], high_half(v.word[m]) + dx[m][2 * k + 1]);
                    store_pair(d_input + start + at, l.t, v);
                }
            }
        }
        barrier();
    }
    // every warp's sums, then those of the block; depthwise sums exist in the two warps of their channels
    float* all = (float*)shared_memory();
    float* own = all + l.warp * SUM_COUNT;
    for (int j = 0; j < 4; j++) {
        for (int i = 0; i < 4; i++) {
            int c = fragment_feature(l.group, i / 2), e = 8 * l.t + 2 * j + i % 2;
            own[SUM_W2 + c * HIDDEN + e] = product[j][i];
            own[e * FEATURES + c] = product1[j][i];
        }
    }
    own[SUM_B1 + 8 * l.t + l.group] = sum_hidden;
    for (int k = 0; k < 3; k++) {
        int number = 8 * k + l.group, e = l.warp % 4 * 8 + 2 * l.t + number % 2;
        if (number < 18) own[SUM_DW + e * 9 + number / 2] = sum_taps[k];
        if (number == 18 || number == 19) own[SUM_DB + e] = sum_taps[k];
    }
    for (int i = 0; i < 4; i++) {
        float sum = group_sum(sum_d[i]);
        if (l.group == 0) own[SUM_B2 + 4 * l.t + i] = sum;
    }
    barrier();
    for (int i = threadIdx.x; i < SUM_COUNT; i += 256) {
        float sum = 0;
        if (i >= SUM_DW && i < SUM_W2) {
            int channel = i < SUM_DB ? (i - SUM_DW) / 9 : i - SUM_DB;
            sum = all[channel / 8 * SUM_COUNT + i] + all[(channel / 8 + 4) * SUM_COUNT + i];
        } else {
            for (int warp = 0; warp < 8; warp++) sum += all[warp * SUM_COUNT + i];
        }
        partials[(long long)blockIdx.x * SUM_COUNT + i] = sum;
    }
}
