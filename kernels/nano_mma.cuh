// The Nano block on tensor cores, for halves. Kernels and their arguments are described in nano_block.cu. Depends on features.cuh.
//
// The depthwise step goes through tensor cores, too: eight channels and two taps are the 16 columns of one operand, and the weights
// stand on the diagonals of the other. Seven eighths of the products are by zero, but one instruction takes the place of 8 multiply-adds, the
// unpacking of halves and most loads, and instructions are what the kernels were short of. Its gradient is the diagonal of a product over
// pixels. With group = lane / 4 and t = lane % 4 a lane has hidden channels 8j + 2t and 8j + 2t + 1 of pixel `group`, as the results of all
// products do, and which the 1x1 convolutions take as they are.
//
// In shared memory a picture of hidden channels is four planes of 16-byte pieces, plane j with channels 8j .. 8j + 7 of every pixel. Rows and
// columns are constant distances, and eight neighbours of a plane are 128 bytes in a row, which matrices are loaded from without conflict.
#pragma once
#include "features.cuh"
#include "mma.cuh"

#define HIDDEN (2 * FEATURES)
#define HIDDEN_PLANES (HIDDEN / 8)
#define TAPS 9

// Blocks of the forward kernel that a multiprocessor should hold; generation 7.5 has room for fewer.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define NANO_BLOCKS 2
#else
#define NANO_BLOCKS 3
#endif

// Pieces from one plane to the next: two more than a picture of 18 x 18 or 20 x 20 pixels has, so that the four pieces that mma_hidden's
// lanes write of a pixel lie in different banks. backend/cuda/nano.rs has the same number.
DEVICE constexpr int plane_pieces(int side) { return side * side + 2; }

// gelu(z) and its slope: the normal distribution as 1 / (1 + exp(-L)) with an odd polynomial L. At most 4e-5 and 1e-4 from exact, far less
// than a half rounds; beyond the clamp the distribution is 0 or 1 to 1e-8.
DEVICE float normal_share(float z, float square) {
    return fast_reciprocal(1.0f + fast_exp2(z * ((1.0027653e-3f * square - 0.10677052f) * square - 2.3008759f)));
}
DEVICE float gelu_half(float z) { return z * normal_share(z, fminf(z * z, 36.0f)); }
DEVICE void gelu_pair(float z, float& value, float& slope) {
    float square = fminf(z * z, 36.0f), share = normal_share(z, square);
    value = z * share;
    float inner = value * ((-3.4753199e-3f * square + 0.22202305f) * square + 1.5948457f);
    slope = (share + inner) - inner * share;
}

// Weights in shared memory, behind the pictures.
struct NanoWeights {
    u32* taps;      // [tap][channel]: depthwise, a half in that half of the word where the channel stands on the diagonal
    float* biases;  // of conv1
    Wide* starts;   // [plane][t]: biases of the depthwise step, as a lane's four results start with them
    Pair* conv2;    // operands as every lane of a warp takes them. Forward: [word][16 hidden channels][lane], backward: [plane][lane]
    Pair* conv1;    // forward alone: [word][lane]
};
DEVICE NanoWeights nano_weights(Wide* after, const float* b1, const float* dw, const float* db) {
    NanoWeights n;
    n.taps = (u32*)after;
    n.biases = (float*)(n.taps + TAPS * HIDDEN);
    n.starts = (Wide*)(n.biases + HIDDEN);
    n.conv2 = (Pair*)(n.starts + 4 * HIDDEN_PLANES);
    n.conv1 = n.conv2 + 4 * 32;
    for (int i = threadIdx.x; i < TAPS * HIDDEN; i += 256) n.taps[i] = pack_half(dw[i % HIDDEN * TAPS + i / HIDDEN], 0.0f) << (i % 2 * 16);
    if (threadIdx.x < HIDDEN) n.biases[threadIdx.x] = b1[threadIdx.x];
    if (threadIdx.x < 2 * HIDDEN) ((float*)n.starts)[threadIdx.x] = db[threadIdx.x / 4 * 2 + threadIdx.x % 2];
    return n;
}
// What z of plane j starts from.
DEVICE void load_start(float (&z)[4], const NanoWeights& n, int j, int t) {
    Wide v = n.starts[4 * j + t];
    UNROLL
    for (int i = 0; i < 4; i++) z[i] = bits_to_float(v.word[i]);
}
// conv1's operand of word j: its results are hidden channels 8t + 2j and 8t + 2j + 1, so that a lane ends with a whole piece.
DEVICE Pair conv1_operand(const float* w1, int j, int group, int t) {
    const float* row = w1 + (8 * (group / 2) + 2 * j + group % 2) * FEATURES + 4 * t;
    return {{pack_half(row[0], row[1]), pack_half(row[2], row[3])}};
}
// A lane's depthwise operands of plane j: weights where its row and column meet. FLIPPED: taps turned by 180 degrees.
template <bool FLIPPED>
DEVICE void load_taps(u32 (&taps)[TAPS], const NanoWeights& n, int j, Lane l) {
    UNROLL
    for (int tap = 0; tap < TAPS; tap++) {
        u32 word = n.taps[(FLIPPED ? TAPS - 1 - tap : tap) * HIDDEN + 8 * j + l.group];
        taps[tap] = l.group / 2 == l.t ? word : 0;
    }
}

// sum += depthwise 3x3 of two rows of eight pixels of a plane. `from`: a lane's place in the plane. Lane 8r + i has that of pixel i's
// upper left neighbour, r rows down: four rows are all that two rows of results take.
DEVICE void mma_depthwise(float (&sum)[4], const Wide* from, const u32 (&taps)[TAPS]) {
    // the upper and the lower tap go together, since both rows of results then take a column's four matrices as they were loaded
    u32 m[3][4];
    UNROLL
    for (int kx = 0; kx < 3; kx++) {
        u32 b[2] = {taps[kx], taps[6 + kx]};
        load_matrices(m[kx], from + kx);
        mma_16x8x16(sum, m[kx], b);
    }
    u32 a[4] = {m[0][1], m[0][2], m[1][1], m[1][2]}, b[2] = {taps[3], taps[4]};
    mma_16x8x16(sum, a, b);
    mma_16x8x8(sum, m[2][1], m[2][2], taps[5], sum);
}

// conv1 of SIDE x SIDE pixels from (y, x) on, into planes; zero outside the image, where not even the bias reaches.
template <int SIDE>
DEVICE void mma_hidden(Wide* hidden, const Pair (&b)[4], const float* biases, const act* image, int y, int x, int h, int w, Lane l) {
    float bias[8];
    UNROLL
    for (int i = 0; i < 8; i++) bias[i] = biases[8 * l.t + i];
    Wide* plane = hidden + l.t * plane_pieces(SIDE);
    const Pair* pixels = (const Pair*)image + l.t;
    ROLLED
    for (int start = l.warp * 16; start < SIDE * SIDE; start += 8 * 16) {
        u32 a[4] = {0, 0, 0, 0};
        bool within[2];
        UNROLL
        for (int k = 0; k < 2; k++) {
            u32 p = start + 8 * k + l.group;
            int row = y + (int)(p / SIDE), column = x + (int)(p % SIDE);
            within[k] = p < SIDE * SIDE && inside(row, column, h, w);
            if (within[k]) {
                Pair v = pixels[(row * w + column) * 4];
                a[k] = v.word[0];
                a[2 + k] = v.word[1];
            }
        }
        Wide to[2];
        UNROLL
        for (int j = 0; j < 4; j++) {
            float d[4], c[4] = {bias[2 * j], bias[2 * j + 1], bias[2 * j], bias[2 * j + 1]};
            mma_16x8x16(d, a, b[j].word, c);
            to[0].word[j] = within[0] ? pack_half(d[0], d[1]) : 0;
            to[1].word[j] = within[1] ? pack_half(d[2], d[3]) : 0;
        }
        UNROLL
        for (int k = 0; k < 2; k++) {
            int p = start + 8 * k + l.group;
            if (p < SIDE * SIDE) plane[p] = to[k];
        }
    }
}

KERNEL_CROWDED(nano_block, 256, NANO_BLOCKS, const float* w1, const float* b1, const float* dw, const float* db, const float* w2, const float* b2,
       const float* gamma, const act* input, act* output, int images, int h, int w) {
    const int side = TILE + 2, pitch = plane_pieces(side);
    Wide* hidden = (Wide*)shared_memory();
    NanoWeights n = nano_weights(hidden + HIDDEN_PLANES * pitch, b1, dw, db);
    float* conv2_biases = (float*)(n.conv1 + 4 * 32);
    Lane own = lane_place();
    if (threadIdx.x < 4 * 32) {
        n.conv1[threadIdx.x] = conv1_operand(w1, own.warp, own.group, own.t);
    } else {
        int at = threadIdx.x - 4 * 32, c = fragment_feature(own.group, at / 64);
        const float* row = w2 + c * HIDDEN + at / 32 % 2 * 16 + 2 * own.t;
        n.conv2[at] = {{pack_half(gamma[c] * row[0], gamma[c] * row[1]), pack_half(gamma[c] * row[8], gamma[c] * row[9])}};
    }
    if (threadIdx.x < FEATURES) conv2_biases[threadIdx.x] = gamma[threadIdx.x] * b2[threadIdx.x];
    barrier();
    for (int index = blockIdx.x; index < tile_count(images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        long long start = (long long)t.image * h * w * FEATURES;
        Lane l = lane_place(thread_anew());
        // a warp's pixels: 8 columns, 4 rows
        int left = l.warp % 2 * 8, top = l.warp / 2 * 4, lane = l.lane;
        Pair conv1[4];
        UNROLL
        for (int j = 0; j < 4; j++) conv1[j] = n.conv1[j * 32 + lane];
        mma_hidden<side>(hidden, conv1, n.biases, input + start, t.y - 1, t.x - 1, h, w, l);
        barrier();
        const Wide* from = hidden + (top + lane / 8) * side + left + lane % 8;
        const Pair* from_image = (const Pair*)(input + start) + l.t;
        Pair* to_image = (Pair*)(output + start) + l.t;
        ROLLED
        for (int r = 0; r < 4; r += 2) {
            u32 active[HIDDEN_PLANES][2];
            UNROLL
            for (int j = 0; j < HIDDEN_PLANES; j++) {
                u32 taps[TAPS];
                load_taps<false>(taps, n, j, l);
                float z[4];
                load_start(z, n, j, l.t);
                mma_depthwise(z, from + j * pitch + r * side, taps);
                UNROLL
                for (int k = 0; k < 2; k++) active[j][k] = pack_half(gelu_half(z[2 * k]), gelu_half(z[2 * k + 1]));
            }
            float d[2][4];
            UNROLL
            for (int m = 0; m < 2; m++) {
                UNROLL
                for (int i = 0; i < 4; i++) d[m][i] = conv2_biases[4 * l.t + 2 * m + i % 2];
                UNROLL
                for (int s = 0; s < 2; s++) {
                    u32 a[4] = {active[2 * s][0], active[2 * s][1], active[2 * s + 1][0], active[2 * s + 1][1]};
                    mma_16x8x16(d[m], a, n.conv2[(2 * m + s) * 32 + lane].word);
                }
            }
            UNROLL
            for (int k = 0; k < 2; k++) {
                int y = t.y + top + r + k, x = t.x + left + l.group;
                if (!inside(y, x, h, w)) continue;
                int at = (y * w + x) * 4;
                Pair v = from_image[at];
                UNROLL
                for (int m = 0; m < 2; m++)
                    v.word[m] = pack_half(low_half(v.word[m]) + d[m][2 * k], high_half(v.word[m]) + d[m][2 * k + 1]);
                to_image[at] = v;
            }
        }
        barrier();
    }
}

// Sums of a block in the order of the parameters; the partial sums of the warps meet in shared memory at the end.
#define SUM_B1 (HIDDEN * FEATURES)
#define SUM_DW (SUM_B1 + HIDDEN)
#define SUM_DB (SUM_DW + TAPS * HIDDEN)
#define SUM_W2 (SUM_DB + HIDDEN)
#define SUM_B2 (SUM_W2 + HIDDEN * FEATURES)
#define SUM_COUNT (SUM_B2 + FEATURES)

// Two halves of 1.
#if PRECISION == 1
#define ONES 0x3f803f80u
#else
#define ONES 0x3c003c00u
#endif

// Sums of COUNT = 8 or 4 values over as many lanes of equal t, of which each lane gets that of v[group % COUNT]: COUNT - 1 exchanges.
template <int COUNT>
DEVICE float spread_sum(float (&v)[COUNT], int group) {
    UNROLL
    for (int half = COUNT / 2; half > 0; half /= 2) {
        bool upper = group & half;
        UNROLL
        for (int i = 0; i < half; i++) {
            float give = upper ? v[i] : v[i + half], keep = upper ? v[i + half] : v[i];
            v[i] = keep + shuffle_xor(give, 4 * half);
        }
    }
    return v[0];
}

// What a warp adds up over a block's tiles; few registers, since they are held throughout.
struct NanoSums {
    // d_output x gelu(z) of planes 2 (warp % 2) and the next, input x d hidden of all planes: [feature][hidden] as tensor cores leave them
    float product[2][4], product1[HIDDEN_PLANES][4];
    float hidden;     // d hidden of channel 8 (group / 2) + 2t + group % 2
    float taps[3];    // of channel 8 (warp % 4) + group: numbers t, t + 4 and t + 8 of nine taps and d z
};

// d z on the tile and one pixel around it, and conv2's sums: 9 pairs of rows of 18 columns, eight pairs a warp at a time, two planes a warp.
DEVICE void nano_back_slopes(NanoSums& sums, const Wide* hidden, u32* dz, const NanoWeights& n, const act* d_output, Tile tile, int h, int w) {
    Lane l = lane_place(thread_anew());
    const int side = TILE + 4, dz_side = TILE + 2, pairs = dz_side / 2 * dz_side;
    int first = l.warp % 2 * 2, lane = l.lane;
    u32 taps[2][TAPS];
    UNROLL
    for (int j = 0; j < 2; j++) load_taps<false>(taps[j], n, first + j, l);
    const Pair* pixels = (const Pair*)d_output + (long long)tile.image * h * w * 4 + l.t;
    ROLLED
    for (u32 at = l.warp / 2 * 8; at < pairs; at += 4 * 8) {
        // beyond the last pair a lane repeats it, and what comes of it goes nowhere
        u32 row = at + lane % 8 < pairs ? at + lane % 8 : pairs - 1;
        const Wide* from = hidden + first * plane_pieces(side) + (row / dz_side * 2 + lane / 8) * side + row % dz_side;
        u32 unit = at + l.group;
        bool real = unit < pairs;
        int py = (int)(unit / dz_side) * 2, px = (int)(unit % dz_side);
        // d output, zero where there is none; in the tile it takes part in sums
        u32 a[4] = {0, 0, 0, 0}, a_turned[4];
        UNROLL
        for (int k = 0; k < 2; k++) {
            int y = tile.y - 1 + py + k, x = tile.x - 1 + px;
            if (real && inside(y, x, h, w)) {
                Pair d = pixels[(y * w + x) * 4];
                a[k] = d.word[0];
                a[2 + k] = d.word[1];
            }
            bool within = real && (u32)(py + k - 1) < TILE && (u32)(px - 1) < TILE;
            UNROLL
            for (int i = 0; i < 2; i++) a_turned[2 * k + i] = transpose(within ? a[2 * i + k] : 0);
        }
        UNROLL
        for (int j = 0; j < 2; j++) {
            warp_barrier();
            const float none[4] = {0, 0, 0, 0};
            float dg[4], z[4];
            load_start(z, n, first + j, l.t);
            mma_16x8x16(dg, a, n.conv2[(first + j) * 32 + lane].word, none);
            mma_depthwise(z, from + j * plane_pieces(side), taps[j]);
            u32 turned[2];
            UNROLL
            for (int k = 0; k < 2; k++) {
                float g[2], slope[2];
                UNROLL
                for (int i = 0; i < 2; i++) gelu_pair(z[2 * k + i], g[i], slope[i]);
                u32* to = dz + ((first + j) * plane_pieces(dz_side) + (py + k) * dz_side + px) * 4 + l.t;
                if (real) *to = pack_half(dg[2 * k] * slope[0], dg[2 * k + 1] * slope[1]);
                turned[k] = transpose(pack_half(g[0], g[1]));
            }
            mma_16x8x16(sums.product[j], a_turned, turned);
        }
    }
}

// The gradient of the depthwise taps and biases: of one plane and half of the tile's columns a warp, two rows at a time. Channels of two
// taps are the rows of a product over pixels, channels of d z its columns; the diagonals count.
DEVICE void nano_back_taps(NanoSums& sums, const Wide* hidden, const Wide* dz) {
    Lane l = lane_place(thread_anew());
    const int side = TILE + 4, dz_side = TILE + 2;
    int plane = l.warp % 4, left = l.warp / 4 * 8, lane = l.lane;
    // rows y and y + 2 of the tile go together: a column's four matrices from row y - 1 on then stand as the upper and the middle tap take them
    const Wide* h_from = hidden + plane * plane_pieces(side) + (1 + lane / 8) * side + left + 1 + lane % 8;
    const Wide* h_below = hidden + plane * plane_pieces(side) + 5 * side + left + 1 + (lane / 8 < 3 ? lane / 8 : 0) + lane % 8;
    const Wide* dz_from = dz + plane * plane_pieces(dz_side) + (1 + lane / 16 + lane / 8 % 2 * 2) * dz_side + left + 1 + lane % 8;
    float d[5][4];
    UNROLL
    for (int i = 0; i < 20; i++) d[i / 4][i % 4] = 0;
    ROLLED
    for (int y = 0; y < TILE; y += 4) {
        u32 slopes[4];
        load_matrices_transposed(slopes, dz_from + y * dz_side);
        UNROLL
        for (int r = 0; r < 2; r++) {
            u32 m[3][4], below[4], b[2] = {slopes[2 * r], slopes[2 * r + 1]};
            UNROLL
            for (int kx = 0; kx < 3; kx++) {
                load_matrices_transposed(m[kx], h_from + (y + r) * side + kx);
                mma_16x8x16(d[kx], m[kx], b);
            }
            load_matrices_transposed(below, h_below + (y + r) * side);
            u32 a[4] = {m[0][2], m[1][2], below[0], below[1]}, last[4] = {m[2][2], ONES, below[2], ONES};
            mma_16x8x16(d[3], a, b);
            mma_16x8x16(d[4], last, b);
        }
    }
    // from the lane on the diagonal to the four of its row
    UNROLL
    for (int i = 0; i < 10; i++) {
        // taps 0 .. 2 stand over 3 .. 5, 6 over 7, 8 over d z
        int number = i < 6 ? i % 3 : i / 2, half = i < 6 ? i / 3 : i % 2;
        float sum = shuffle(l.group % 2 ? d[number][2 * half + 1] : d[number][2 * half], l.group * 4 + l.group / 2);
        sums.taps[i / 4] += i % 4 == l.t ? sum : 0.0f;
    }
}

// d hidden of a warp's 8 columns and 4 rows and what follows from it: conv1's sums and d input.
DEVICE void nano_back_input(NanoSums& sums, const Wide* dz, const NanoWeights& n, const float* w1, const act* input, const act* d_output, act* d_input,
                            Tile tile, int h, int w) {
    Lane l = lane_place(thread_anew());
    const int dz_side = TILE + 2;
    int left = l.warp % 2 * 8, top = l.warp / 2 * 4, lane = l.lane;
    const Wide* from = dz + (top + lane / 8) * dz_side + left + lane % 8;
    int y = tile.y + top, x = tile.x + left + l.group;
    long long at = ((long long)(tile.image * h + y) * w + x) * 4 + l.t;
    float sum_hidden[8], sum_output[4] = {0, 0, 0, 0};
    UNROLL
    for (int i = 0; i < 8; i++) sum_hidden[i] = 0;
    ROLLED
    for (int r = 0; r < 4; r += 2, y += 2, at += 2 * w * 4) {
        bool within[2];
        u32 x_turned[4];
        UNROLL
        for (int k = 0; k < 2; k++) {
            within[k] = inside(y + k, x, h, w);
            Pair v = {{0, 0}};
            if (within[k]) v = ((const Pair*)input)[at + k * w * 4];
            UNROLL
            for (int i = 0; i < 2; i++) x_turned[2 * k + i] = transpose(v.word[i]);
        }
        float dx[2][4];
        UNROLL
        for (int i = 0; i < 8; i++) dx[i / 4][i % 4] = 0;
        UNROLL
        for (int s = 0; s < 2; s++) {
            u32 words[4];  // [plane][row], as an operand has them
            UNROLL
            for (int m = 0; m < 2; m++) {
                int j = 2 * s + m;
                u32 taps[TAPS];
                // one plane after another, or the compiler loads ahead into more registers than there are
                warp_barrier();
                load_taps<true>(taps, n, j, l);
                float d[4] = {0, 0, 0, 0};
                mma_depthwise(d, from + j * plane_pieces(dz_side) + r * dz_side, taps);
                u32 turned[2];
                UNROLL
                for (int k = 0; k < 2; k++) {
                    UNROLL
                    for (int i = 0; i < 2; i++) {
                        d[2 * k + i] = within[k] ? d[2 * k + i] : 0.0f;
                        sum_hidden[2 * j + i] += d[2 * k + i];
                    }
                    words[2 * m + k] = pack_half(d[2 * k], d[2 * k + 1]);
                    turned[k] = transpose(words[2 * m + k]);
                }
                mma_16x8x16(sums.product1[j], x_turned, turned);
            }
            warp_barrier();
            UNROLL
            for (int m = 0; m < 2; m++) {
                const float* column = w1 + (16 * s + 2 * l.t) * FEATURES + fragment_feature(l.group, m);
                u32 b[2];
                UNROLL
                for (int i = 0; i < 2; i++) b[i] = pack_half(column[8 * i * FEATURES], column[(8 * i + 1) * FEATURES]);
                mma_16x8x16(dx[m], words, b);
            }
        }
        UNROLL
        for (int k = 0; k < 2; k++) {
            if (!within[k]) continue;
            Pair v = ((const Pair*)d_output)[at + k * w * 4];
            UNROLL
            for (int m = 0; m < 2; m++) {
                float d[2] = {low_half(v.word[m]), high_half(v.word[m])};
                UNROLL
                for (int i = 0; i < 2; i++) sum_output[2 * m + i] += d[i];
                v.word[m] = pack_half(d[0] + dx[m][2 * k], d[1] + dx[m][2 * k + 1]);
            }
            ((Pair*)d_input)[at + k * w * 4] = v;
        }
    }
    sums.hidden += spread_sum(sum_hidden, l.group);
    // features 4t + group % 4 of lanes 0 and 1 of a row go to lanes 2 and 3 of rows 0 .. 3, those of 2 and 3 to rows 4 .. 7
    float output = spread_sum(sum_output, l.group);
    output += shuffle_xor(output, 16);
    output = shuffle(output, (l.group % 4) * 4 + l.group / 4 * 2 + l.t % 2);
    sums.taps[2] += l.t >= 2 ? output : 0.0f;
}

KERNEL_CROWDED(nano_block_back, 256, 2, const float* w1, const float* b1, const float* dw, const float* db, const float* w2, const float* b2,
       const float* gamma, const act* input, const act* d_output, act* d_input, float* partials, int images, int h, int w) {
    const int side = TILE + 4, dz_side = TILE + 2;
    Wide* hidden = (Wide*)shared_memory();
    Wide* dz = hidden + HIDDEN_PLANES * plane_pieces(side);
    NanoWeights n = nano_weights(dz + HIDDEN_PLANES * plane_pieces(dz_side), b1, dw, db);
    if (threadIdx.x < 4 * 32) {
        int e = threadIdx.x / 4;
        Pair v;
        UNROLL
        for (int i = 0; i < 2; i++) {
            int c = 4 * (threadIdx.x % 4) + 2 * i;
            v.word[i] = pack_half(gamma[c] * w2[c * HIDDEN + e], gamma[c + 1] * w2[(c + 1) * HIDDEN + e]);
        }
        n.conv2[threadIdx.x] = v;
    }
    NanoSums sums;
    UNROLL
    for (int i = 0; i < 16; i++) {
        if (i < 8) sums.product[i / 4][i % 4] = 0;
        sums.product1[i / 4][i % 4] = 0;
        if (i < 3) sums.taps[i] = 0;
    }
    sums.hidden = 0;
    barrier();
    for (int index = blockIdx.x;; index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        if (t.image >= images) break;
        Lane l = lane_place(thread_anew());
        Pair conv1[4];
        UNROLL
        for (int j = 0; j < 4; j++) conv1[j] = conv1_operand(w1, j, l.group, l.t);
        mma_hidden<side>(hidden, conv1, n.biases, input + (long long)t.image * h * w * FEATURES, t.y - 2, t.x - 2, h, w, l);
        barrier();
        nano_back_slopes(sums, hidden, (u32*)dz, n, d_output, t, h, w);
        barrier();
        nano_back_taps(sums, hidden, dz);
        // hidden values make room for those of the next tile; its d z waits for one more barrier
        barrier();
        nano_back_input(sums, dz, n, w1, input, d_output, d_input, t, h, w);
    }
    barrier();
    // every warp's sums, then those of the block
    Lane l = lane_place();
    float* all = (float*)shared_memory();
    float* own = all + l.warp * SUM_COUNT;
    UNROLL
    for (int j = 0; j < HIDDEN_PLANES; j++) {
        UNROLL
        for (int i = 0; i < 4; i++) {
            int c = fragment_feature(l.group, i / 2), e = 8 * j + 2 * l.t + i % 2;
            own[e * FEATURES + c] = sums.product1[j][i];
            if (j < 2) own[SUM_W2 + c * HIDDEN + 16 * (l.warp % 2) + e] = sums.product[j][i];
        }
    }
    own[SUM_B1 + 8 * (l.group / 2) + 2 * l.t + l.group % 2] = sums.hidden;
    UNROLL
    for (int i = 0; i < 3; i++) {
        int channel = 8 * (l.warp % 4) + l.group, tap = 4 * i + l.t;
        if (tap < TAPS) own[SUM_DW + channel * TAPS + tap] = sums.taps[i];
        if (tap == TAPS) own[SUM_DB + channel] = sums.taps[i];
    }
    if (l.t >= 2) own[SUM_B2 + 4 * (l.group / 4 * 2 + l.t % 2) + l.group % 4] = sums.taps[2];
    barrier();
    for (int i = threadIdx.x; i < SUM_COUNT; i += 256) {
        // depthwise sums exist in the two warps of their plane, conv2's in the four of theirs
        int warp = 0, step = 1;
        if (i >= SUM_DW && i < SUM_W2) {
            warp = (i < SUM_DB ? (i - SUM_DW) / TAPS : i - SUM_DB) / 8;
            step = 4;
        } else if (i >= SUM_W2 && i < SUM_B2) {
            warp = (i - SUM_W2) % HIDDEN / 16;
            step = 2;
        }
        float sum = 0;
        for (; warp < 8; warp += step) sum += all[warp * SUM_COUNT + i];
        partials[(long long)blockIdx.x * SUM_COUNT + i] = sum;
    }
}
