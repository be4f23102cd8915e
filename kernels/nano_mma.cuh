// The Nano block on tensor cores, for half precision. The kernels are described in nano_block.cu.
// Depends on depthwise.cuh.
//
// The depthwise step and its data gradient exist twice (depthwise.cuh), as products with diagonal
// matrices and as multiply-adds, and so does every kernel; the program launches the one that suits
// the card. The gradient of the taps is the diagonal of a product over pixels in both. With group =
// lane / 4 and t = lane % 4 a lane has hidden channels 8j + 2t and 8j + 2t + 1 of pixel `group`, as
// the results of all products do and as the 1x1 convolutions take them.
//
// In shared memory the hidden channels of a tile are four planes of 16-byte pieces: plane j has
// channels 8j .. 8j + 7 of every pixel. Rows and columns are constant distances apart, and eight
// neighbours of a plane are 128 consecutive bytes, from which matrices are loaded without bank
// conflicts.
#pragma once
#include "depthwise.cuh"

#define HIDDEN_PLANES (HIDDEN / 8)

// Blocks of the forward kernel for each multiprocessor; sm_75 has room for fewer.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define NANO_BLOCKS 2
#else
#define NANO_BLOCKS 3
#endif

// Pieces from one plane to the next. The gap after the 18 x 18 or 20 x 20 pixels puts the four
// pieces that mma_hidden's lanes write for a pixel into different banks.
DEVICE constexpr int plane_pieces(int side) { return side * side + PLANE_GAP; }

// Weights in shared memory, after the planes. GELU takes z in units of eight (common.cuh): conv1 and
// everything added to it are divided by EIGHTHS here; results are multiplied again where that costs
// nothing.
struct NanoWeights {
    Wide* conv1;   // [feature word][conv1_place(hidden channel)]: features 4t and 4t + 1, then 4t + 2 and 4t + 3
    Pair* conv2;   // operands in the order of the lanes. Forward: [word][16 hidden channels][lane], backward: [plane][lane]
    Wide* taps;    // of the depthwise step with its bias: DEPTHWISE_BYTES, in the form that its unit takes
    float* biases; // of conv1
};
static_assert(2 * HIDDEN * sizeof(Wide) + 4 * 32 * sizeof(Pair) + DEPTHWISE_BYTES + HIDDEN * sizeof(float) == MMA_WEIGHTS,
              "the lowering reserves what the weights need");
DEVICE NanoWeights nano_weights(Wide* after) {
    NanoWeights n;
    n.conv1 = after;
    n.conv2 = (Pair*)(n.conv1 + 2 * HIDDEN);
    n.taps = (Wide*)(n.conv2 + 4 * 32);
    n.biases = (float*)((unsigned char*)n.taps + DEPTHWISE_BYTES);
    return n;
}
// Index of a hidden channel's weights, chosen such that neither eight neighbours (conv1's operands)
// nor the same two channels of every plane (those of its data gradient) share banks.
DEVICE int conv1_place(int channel) { return channel / 8 * 8 + (channel + channel / 8 * 2) % 8; }

// A thread's share of the weights that both kernels need, on its way from device to shared memory.
// All loads are issued before the first value is stored, so that a block waits for memory once.
struct NanoShare {
    float taps[2], bias, start, pair[2];
    DEVICE_MEMBER void load(const NanoParameters& p) {
        u32 i = threadIdx.x;
        UNROLL
        for (int k = 0; k < 2; k++) {
            u32 at = i + 256 * k;
            taps[k] = at < TAPS * HIDDEN ? p.dw[at % HIDDEN * TAPS + at / HIDDEN] : 0.0f;
        }
        bias = p.b1[i % HIDDEN] / EIGHTHS;
        start = p.db[i % HIDDEN] / EIGHTHS;
        const float* from = p.w1 + i / 8 * FEATURES + i % 4 * 4 + i / 4 % 2 * 2;
        pair[0] = from[0] / EIGHTHS;
        pair[1] = from[1] / EIGHTHS;
    }
    template <class Depthwise>
    DEVICE_MEMBER void store(const NanoWeights& n) const {
        u32 i = threadIdx.x;
        UNROLL
        for (int k = 0; k < 2; k++) {
            int tap = (int)(i / HIDDEN) + 8 * k;
            if (tap < TAPS) Depthwise::store_tap(n.taps, i % HIDDEN, tap / 3, tap % 3, taps[k]);
        }
        if (i < HIDDEN) {
            n.biases[i] = bias;
            Depthwise::store_start(n.taps, i, start);
        }
        Depthwise::store_rest(n.taps, i);
        n.conv1[i / 4 % 2 * HIDDEN + conv1_place(i / 8)].word[i % 4] = pack_half(pair[0], pair[1]);
    }
};
// A pixel of a plane of SIDE x SIDE pixels, and whether it exists.
struct PlanePixel {
    int row, column;
    bool real;
};

// Computes conv1 for pixels of planes whose first pixel is at (y, x) of an image; zero outside the
// image, without even the bias. A warp takes 16 pixels BATCH times, those at place(time, 0 .. 15),
// and issues all loads before it uses the first value.
template <int SIDE, int BATCH, class Placing>
DEVICE void mma_hidden(Wide* hidden, const NanoWeights& n, const act* images, int image, int y, int x, int h, int w, Lane l, const Placing& place) {
    Wide* plane = hidden + l.t * plane_pieces(SIDE);
    // may be before the first image; nothing is read there
    u32 corner = ((u32)(image * h + y) * w + x) * 4 + l.t;
    Pair v[BATCH][2];
    u32 within = 0;  // bit 2 x time + pixel: inside the image
    UNROLL
    for (int i = 0; i < 2 * BATCH; i++) {
        PlanePixel p = place(i / 2, 8 * (i % 2) + l.group);
        int row = y + p.row, column = x + p.column;
        v[i / 2][i % 2] = {{0, 0}};
        if (p.real && inside(row, column, h, w)) {
            // word by word, so that the values arrive in the registers that the operand uses
            const u32* from = ((const Pair*)images)[corner + ((u32)p.row * w + p.column) * 4].word;
            v[i / 2][i % 2].word[0] = from[0];
            v[i / 2][i % 2].word[1] = from[1];
            within |= 1u << i;
        }
    }
    float bias[8];
    UNROLL
    for (int i = 0; i < 8; i++) bias[i] = n.biases[8 * l.t + i];
    // the results of word j are hidden channels 8t + 2j and 8t + 2j + 1, so that a lane ends with a
    // whole piece. Four channels on is one bit of the index
    int from = conv1_place(8 * (l.lane % 8 / 2) + 2 * (l.lane / 16) + l.lane % 2);
    u32 b[2][4];
    UNROLL
    for (int j = 0; j < 4; j += 2) load_matrices(b[j / 2], n.conv1 + l.lane / 8 % 2 * HIDDEN + (from ^ 2 * j));
    UNROLL
    for (int time = 0; time < BATCH; time++) {
        // one after another, or the compiler keeps more results than there are registers
        if (time > 0) warp_barrier();
        u32 a[4] = {v[time][0].word[0], v[time][1].word[0], v[time][0].word[1], v[time][1].word[1]};
        Wide to[2];
        UNROLL
        for (int j = 0; j < 4; j++) {
            float d[4], c[4] = {bias[2 * j], bias[2 * j + 1], bias[2 * j], bias[2 * j + 1]};
            mma_16x8x16(d, a, {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]}, c);
            to[0].word[j] = within >> (2 * time) & 1 ? pack_half(d[0], d[1]) : 0;
            to[1].word[j] = within >> (2 * time) & 2 ? pack_half(d[2], d[3]) : 0;
        }
        UNROLL
        for (int k = 0; k < 2; k++) {
            PlanePixel p = place(time, 8 * k + l.group);
            if (p.real) plane[p.row * SIDE + p.column] = to[k];
        }
    }
}

template <class Depthwise>
DEVICE void nano_forward(const NanoBlockArguments& arg) {
    const int h = arg.h, w = arg.w;
    const int side = TILE + 2, pitch = plane_pieces(side);
    Wide* hidden = (Wide*)shared_memory();
    NanoWeights n = nano_weights(hidden + HIDDEN_PLANES * pitch);
    float* conv2_biases = n.biases + HIDDEN;
    NanoShare share;
    share.load(arg.parameters);
    Lane own = lane_position();
    int c = fragment_feature(own.group, own.warp / 2 % 2);
    const float* row = arg.parameters.w2 + c * HIDDEN + own.warp % 2 * 16 + 2 * own.t;
    float factor = EIGHTHS * arg.parameters.gamma[c], v[4] = {row[0], row[1], row[8], row[9]};
    float bias = arg.parameters.gamma[threadIdx.x % FEATURES] * arg.parameters.b2[threadIdx.x % FEATURES];
    share.store<Depthwise>(n);
    if (threadIdx.x < 4 * 32) n.conv2[threadIdx.x] = {{pack_half(factor * v[0], factor * v[1]), pack_half(factor * v[2], factor * v[3])}};
    if (threadIdx.x < FEATURES) conv2_biases[threadIdx.x] = bias;
    barrier();
    for (int index = blockIdx.x; index < tile_count(arg.images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        Lane l = lane_position(thread_anew());
        // a warp's pixels: 8 columns, 4 rows
        int left = l.warp % 2 * 8, top = l.warp / 2 * 4, lane = l.lane;
        mma_hidden<side, 3>(hidden, n, arg.input, t.image, t.y - 1, t.x - 1, h, w, l, [&](int time, int pixel) -> PlanePixel {
            u32 p = (time * 8 + l.warp) * 16 + pixel;
            return {(int)(p / side), (int)(p % side), p < side * side};
        });
        // the accumulators start with the input and the bias; these loads are issued before the
        // earlier ones are waited for
        u32 at = ((u32)(t.image * h + t.y + top) * w + t.x + left + l.group) * 4 + l.t;
        int rows = t.x + left + l.group < w ? h - t.y - top : 0;
        Pair residual[4];
        UNROLL
        for (int r = 0; r < 4; r++) {
            residual[r] = {{0, 0}};
            if (r < rows) residual[r] = ((const Pair*)arg.input)[at + r * w * 4];
        }
        barrier();
        const Wide* from = hidden + (top + lane / 8) * side + left + lane % 8;
        float d[2][2][4];  // [upper or lower two rows][word]
        UNROLL
        for (int i = 0; i < 16; i++) {
            u32 word = residual[i / 8 * 2 + i / 2 % 2].word[i / 4 % 2];
            d[i / 8][i / 4 % 2][i % 4] = (i % 2 ? high_half(word) : low_half(word)) + conv2_biases[4 * l.t + 2 * (i / 4 % 2) + i % 2];
        }
        ROLLED
        for (int s = 0; s < 2; s++) {
            u32 active[2][4];  // as the operand takes two planes
            UNROLL
            for (int k = 0; k < 2; k++) {
                int j = 2 * s + k;
                if (k > 0) warp_barrier();
                Depthwise depthwise;
                depthwise.load(n.taps, j, l);
                float z[2][4];
                depthwise.four_rows(z[0], z[1], from + j * pitch, side, lane);
                UNROLL
                for (int i = 0; i < 4; i++)
                    active[i / 2][2 * k + i % 2] = pack_half(gelu_half(z[i / 2][i % 2 * 2]), gelu_half(z[i / 2][i % 2 * 2 + 1]));
            }
            UNROLL
            for (int m = 0; m < 2; m++) {
                Pair b = n.conv2[(2 * m + s) * 32 + lane];
                UNROLL
                for (int half = 0; half < 2; half++) mma_16x8x16(d[half][m], active[half], b.word);
            }
        }
        UNROLL
        for (int r = 0; r < 4; r++) {
            if (r >= rows) break;
            Pair v;
            UNROLL
            for (int m = 0; m < 2; m++) v.word[m] = pack_half(d[r / 2][m][r % 2 * 2], d[r / 2][m][r % 2 * 2 + 1]);
            ((Pair*)arg.output)[at + r * w * 4] = v;
        }
        barrier();
    }
}
KERNEL_CROWDED(nano_block, NANO_BLOCKS) { nano_forward<TensorDepthwise<false>>(arg); }
KERNEL_CROWDED(nano_block_plain, NANO_BLOCKS) { nano_forward<PlainDepthwise<false>>(arg); }

// Stores sum `number` of a hidden channel, of nine taps and d z; higher numbers are no sums.
DEVICE void store_tap_sum(float* to, int channel, int number, float sum) {
    if (number < TAPS) to[NANO_DW + channel * TAPS + number] = EIGHTHS * sum;
    if (number == TAPS) to[NANO_DB + channel] = sum;
}

// The gradient of the depthwise taps and biases: a warp takes plane warp % 4 and half of the tile's
// columns, four rows at a time.
//
// By products: channels of two taps are the rows of a product over pixels, channels of d z its
// columns; only the diagonals are used. Six rows of hidden values are enough: the upper two taps of
// rows y and y + 2 and the lower two of y + 1 and y + 3 are operands as they were loaded; the lower
// tap of the former and the upper tap of the latter are put together from them.
struct TensorTapSums {
    float sum[3];  // of channel 8 (warp % 4) + group: numbers t, t + 4 and t + 8 of nine taps and d z; then d_output

    // `outputs`: the sums of d_output over some pixels as tensor cores return them, equal in all
    // columns.
    DEVICE_MEMBER void add_outputs(const float (&outputs)[4], Lane l) { sum[2] += l.t == 2 ? outputs[0] : l.t == 3 ? outputs[2] : 0.0f; }
    DEVICE_MEMBER void add_tile(const Wide* hidden, const Wide* dz) {
        Lane l = lane_position(thread_anew());
        const int side = TILE + 4, dz_side = TILE + 2;
        int plane = l.warp % 4, left = l.warp / 4 * 8, lane = l.lane;
        const Wide* h_from = hidden + plane * plane_pieces(side) + (1 + lane / 8) * side + left + 1 + lane % 8;
        const Wide* dz_from = dz + plane * plane_pieces(dz_side) + (1 + lane / 16 + lane / 8 % 2 * 2) * dz_side + left + 1 + lane % 8;
        // [rows y and y + 2, y + 1 and y + 3][three columns; two of the remaining tap; its third and d
        // z]
        float d[2][5][4];
        UNROLL
        for (int i = 0; i < 40; i++) d[i / 20][i / 4 % 5][i % 4] = 0;
        // rows y and y + 1, which have been loaded with the four rows of d z before these
        u32 shared[3][2];
        UNROLL
        for (int kx = 0; kx < 3; kx++) {
            u32 r[4];
            load_matrices_transposed(r, h_from + kx);
            shared[kx][0] = r[0];
            shared[kx][1] = r[1];
        }
        UNROLL
        for (int y = 0; y < TILE; y += 4) {
            u32 slopes[4], m[2][3][4];
            load_matrices_transposed(slopes, dz_from + y * dz_side);
            UNROLL
            for (int kx = 0; kx < 3; kx++) {
                load_matrices_transposed(m[1][kx], h_from + (y + 2) * side + kx);
                UNROLL
                for (int i = 0; i < 2; i++) {
                    m[0][kx][i] = shared[kx][i];
                    m[0][kx][2 + i] = m[1][kx][i];
                    shared[kx][i] = m[1][kx][2 + i];
                }
                UNROLL
                for (int r = 0; r < 2; r++) mma_16x8x16(d[r][kx], m[r][kx], {slopes[2 * r], slopes[2 * r + 1]});
            }
            UNROLL
            for (int r = 0; r < 2; r++) {
                const u32(*o)[4] = m[1 - r];
                u32 b[2] = {slopes[2 * r], slopes[2 * r + 1]};
                mma_16x8x16(d[r][3], {o[0][r], o[1][r], o[0][2 + r], o[1][2 + r]}, b);
                mma_16x8x16(d[r][4], {o[2][r], ONES, o[2][2 + r], ONES}, b);
            }
        }
        // the diagonal of a product's upper or lower rows, in the lanes that have it
        auto own = [&](int r, int number, int half) { return l.group % 2 ? d[r][number][2 * half + 1] : d[r][number][2 * half]; };
        UNROLL
        for (int i = 0; i < TAPS + 1; i++) {
            int ky = i / 3, kx = i % 3, last = kx == 2 ? 4 : 3;
            float total = ky == 0   ? own(0, kx, 0) + own(1, last, kx % 2)
                        : ky == 1 ? own(0, kx, 1) + own(1, kx, 0)
                        : ky == 2 ? own(1, kx, 1) + own(0, last, kx % 2)
                                  : own(0, 4, 1) + own(1, 4, 1);
            // to the four lanes of its row
            total = shuffle(total, l.group * 4 + l.group / 2);
            sum[i / 4] += i % 4 == l.t ? total : 0.0f;
        }
    }
    // Stores what the lane has among the sums of its warp.
    DEVICE_MEMBER void store(float* to, Lane l) const {
        UNROLL
        for (int i = 0; i < 3; i++) store_tap_sum(to, 8 * (l.warp % 4) + l.group, 4 * i + l.t, sum[i]);
        if (l.t >= 2) to[NANO_B2 + fragment_feature(l.group, l.t - 2)] = sum[2];
    }
};

// By multiply-adds: a lane has two channels of a column of pixels; at the end of a tile the lanes of
// a channel are added up.
struct PlainTapSums {
    float sum[3];  // of channel 8 (warp % 4) + 2t + group % 2: three of nine taps and d z
    float output;  // d_output, in lanes with t < 2

    // Of 2 x COUNT sums a lane keeps the first half, or the upper one, and gets the other lane's share
    // of it for the half that it gives away.
    template <int COUNT>
    DEVICE_MEMBER static void share_sums(float (&d)[24], bool upper, int mask) {
        UNROLL
        for (int i = 0; i < COUNT; i++) {
            float given = upper ? d[i] : d[i + COUNT];
            d[i] = (upper ? d[i + COUNT] : d[i]) + shuffle_xor(given, mask);
        }
    }
    DEVICE_MEMBER void add_outputs(const float (&outputs)[4], Lane l) { output += l.t == 0 ? outputs[0] : outputs[2]; }
    DEVICE_MEMBER void add_tile(const Wide* hidden, const Wide* dz) {
        Lane l = lane_position(thread_anew());
        const int side = TILE + 4, dz_side = TILE + 2;
        int plane = l.warp % 4, left = l.warp / 4 * 8, lane = l.lane;
        const Wide* h_from = hidden + plane * plane_pieces(side) + (1 + lane / 8) * side + left + 1 + lane % 8;
        const Wide* last_rows = h_from + (lane < 16 ? 4 : 2) * side;
        const Wide* dz_from = dz + plane * plane_pieces(dz_side) + (1 + lane / 8) * dz_side + left + 1 + lane % 8;
        // [channel][nine taps, d z and two that stay zero]
        float d[2 * 12];
        UNROLL
        for (int i = 0; i < 24; i++) d[i] = 0;
        ROLLED
        for (int y = 0; y < TILE; y += 4) {
            u32 slopes[4];
            load_matrices(slopes, dz_from + y * dz_side);
            UNROLL
            for (int kx = 0; kx < 3; kx++) {
                u32 m[4], below[2];
                load_matrices(m, h_from + y * side + kx);
                load_two_matrices(below, last_rows + y * side + kx);
                UNROLL
                for (int i = 0; i < 8; i++) {
                    int c = i / 4, r = i % 4;
                    float slope = c ? high_half(slopes[r]) : low_half(slopes[r]);
                    UNROLL
                    for (int ky = 0; ky < 3; ky++) {
                        u32 word = r + ky < 4 ? m[(r + ky) % 4] : below[(r + ky) % 2];
                        d[12 * c + 3 * ky + kx] = fmaf(c ? high_half(word) : low_half(word), slope, d[12 * c + 3 * ky + kx]);
                    }
                    if (kx == 0) d[12 * c + 9] += slope;
                }
            }
        }
        share_sums<12>(d, l.group & 1, 4);
        share_sums<6>(d, l.group & 2, 8);
        share_sums<3>(d, l.group & 4, 16);
        UNROLL
        for (int i = 0; i < 3; i++) sum[i] += d[i];
    }
    DEVICE_MEMBER void store(float* to, Lane l) const {
        UNROLL
        for (int i = 0; i < 3; i++) store_tap_sum(to, 8 * (l.warp % 4) + 2 * l.t + l.group % 2, l.group / 2 % 2 * 6 + l.group / 4 * 3 + i, sum[i]);
        if (l.t < 2) to[NANO_B2 + fragment_feature(l.group, l.t)] = output;
    }
};

// The sums of a warp over a block's tiles. They take few registers, since these are occupied all
// the time. `TapSums`: those of the taps, of d z, and of d_output.
template <class TapSums>
struct NanoSums {
    // d_output x gelu(z) of planes 2 (warp % 2) and the next; input x d hidden of all planes:
    // [feature][hidden] as tensor cores return them
    float product[2][4], product1[HIDDEN_PLANES][4];
    float hidden;  // d hidden of channel 8 (group / 2) + 2t + group % 2
    TapSums taps;
};

// A block's tiles are neighbours from left to right, as long as a row of tiles lasts, and what two
// of them share is computed once: the last four columns of hidden values and the last two of d z
// become the first columns of the next tile. The warp that will overwrite them moves them.
struct SharedTiles {
    bool carried;  // the tile before is the left neighbour of this one
    bool more;     // the next tile is its right neighbour
};

// Hidden values of the tile and two pixels around it: rows of 16 columns; and, where the left four
// columns are not carried, four of their rows at a time.
DEVICE void nano_back_hidden(Wide* hidden, const NanoWeights& n, const act* input, Tile t, SharedTiles shared, int h, int w) {
    const int side = TILE + 4;
    Lane l = lane_position(thread_anew());
    if (shared.carried) {
        Wide* to = hidden + l.lane % 16 / 4 * plane_pieces(side) + (l.warp + l.lane / 16 * 8) * side + l.lane % 4;
        *to = to[TILE];
        if (l.warp < 4 && l.lane < 16) to[TILE * side] = to[TILE * side + TILE];
        warp_barrier();
    }
    mma_hidden<side, 3>(hidden, n, input, t.image, t.y - 2, t.x - 2, h, w, l, [&](int time, int pixel) -> PlanePixel {
        return {l.warp + 8 * time, 4 + pixel, time < 2 || l.warp < 4};
    });
    ROLLED
    for (int row = shared.carried || l.warp < 4 ? side : 4 * (l.warp - 4); row < side; row += 16)
        mma_hidden<side, 1>(hidden, n, input, t.image, t.y - 2, t.x - 2, h, w, l, [&](int, int pixel) -> PlanePixel {
            return {row + pixel / 4, pixel % 4, true};
        });
}

// d z on the tile and one pixel around it, and conv2's sums. A warp takes two planes of eight pairs
// of rows at a time: of the 16 columns on the right half a pair of rows; of the two on the left,
// where they are not carried, four pairs of rows.
template <class Depthwise, class TapSums>
DEVICE void nano_back_slopes(NanoSums<TapSums>& sums, const Wide* hidden, u32* dz, const NanoWeights& n, const act* d_output, Tile tile, SharedTiles shared,
                             int h, int w) {
    const int side = TILE + 4, dz_side = TILE + 2;
    const u32 ones[2] = {ONES, ONES};
    const float none[4] = {0, 0, 0, 0};
    ROLLED
    for (int left = 0; left <= (shared.carried ? 0 : 1); left++) {
        Lane l = lane_position(thread_anew());
        int plane = l.warp % 2 * 2, half = l.warp / 2 % 2, odd = l.warp / 4, lane = l.lane;
        const Pair* conv2 = n.conv2 + 32 * plane + lane;
        if (shared.carried && half == 1) {
            // the rows that follow, two columns of two planes
            Wide* moved = (Wide*)dz + (plane + lane / 16) * plane_pieces(dz_side) + (2 * odd + lane / 4 % 4 * 4 + lane / 2 % 2) * dz_side + lane % 2;
            *moved = moved[TILE];
            if (odd == 0 && lane % 16 < 4) moved[TILE * dz_side] = moved[TILE * dz_side + TILE];
            warp_barrier();
        }
        Depthwise depthwise[2];
        UNROLL
        for (int j = 0; j < 2; j++) depthwise[j].load(n.taps, plane + j, l);
        // the left columns take two times four pairs of rows and one more pair
        int first = odd ? 8 * half : TILE, trips = left ? (odd || half == 0 ? 1 : 0) : 5 - odd;
        int row = left ? first + l.group / 2 * 2 : 2 * odd, column = left ? l.group % 2 : 2 + 8 * half + l.group;
        int upper = left ? first + (odd ? lane % 8 / 2 * 2 : 0) : 2 * odd, at = left ? lane % 2 : 2 + 8 * half + lane % 8;
        const Wide* from = hidden + plane * plane_pieces(side) + (upper + lane / 8) * side + at;
        u32* to = dz + (plane * plane_pieces(dz_side) + row * dz_side + column) * 4 + l.t;
        int x = tile.x - 1 + column;
        bool counted = (u32)(column - 1) < (shared.more ? TILE + 1 : TILE), across = (u32)x < (u32)w;
        // d_output of a lane's two pixels, zero where they do not exist; as the operand takes them
        u32 corner = ((u32)(tile.image * h + tile.y - 1) * w + x) * 4 + l.t;
        u32 d[4];
        auto load = [&]() {
            UNROLL
            for (int k = 0; k < 2; k++) {
                Pair v = {{0, 0}};
                if (across && (u32)(tile.y - 1 + row + k) < (u32)h) v = ((const Pair*)d_output)[corner + (u32)(row + k) * w * 4];
                d[k] = v.word[0];
                d[2 + k] = v.word[1];
            }
        };
        load();
        ROLLED
        for (int trip = 0; trip < trips; trip++) {
            bool there = row < dz_side;
            u32 d_turned[4];
            UNROLL
            for (int i = 0; i < 4; i++) {
                bool within = counted && (u32)(row + i / 2 - 1) < TILE;
                d_turned[i] = transpose(within ? d[i / 2 + i % 2 * 2] : 0);
            }
            float dg[2][4];
            UNROLL
            for (int j = 0; j < 2; j++)
                mma_16x8x16(dg[j], d, conv2[32 * j].word, none);
            // the loads of the next pair of rows are issued now
            row += 4;
            load();
            // the sum of d_output, as a product with ones
            float outputs[4];
            mma_16x8x16(outputs, d_turned, ones, none);
            sums.taps.add_outputs(outputs, l);
            auto finish = [&](int j, const float(&z)[4]) {
                u32 turned[2];
                UNROLL
                for (int k = 0; k < 2; k++) {
                    float g[2], slope[2];
                    UNROLL
                    for (int i = 0; i < 2; i++) gelu_pair(z[2 * k + i], g[i], slope[i]);
                    u32 value = pack_half(dg[j][2 * k] * slope[0], dg[j][2 * k + 1] * slope[1]);
                    if (there) to[(j * plane_pieces(dz_side) + k * dz_side) * 4] = value;
                    turned[k] = transpose(pack_half(g[0], g[1]));
                }
                mma_16x8x16(sums.product[j], d_turned, turned);
            };
            Depthwise::two_planes(depthwise, from, plane_pieces(side), finish);
            from += 4 * side;
            to += 4 * dz_side * 4;
        }
    }
}

// d hidden of a warp's 8 columns and 4 rows, and from it conv1's sums and d_input.
template <class Depthwise, class TapSums>
DEVICE void nano_back_input(NanoSums<TapSums>& sums, const Wide* dz, const NanoWeights& n, const act* input, const act* d_output, act* d_input, Tile tile,
                            int h, int w) {
    Lane l = lane_position(thread_anew());
    const int dz_side = TILE + 2;
    int left = l.warp % 2 * 8, top = l.warp / 2 * 4, lane = l.lane;
    const Wide* from = dz + (top + lane / 8) * dz_side + left + lane % 8;
    int y = tile.y + top, x = tile.x + left + l.group;
    u32 at = ((u32)(tile.image * h + y) * w + x) * 4 + l.t;
    int rows = x < w ? h - y : 0;
    // ones where pixels 2t and 2t + 1 exist, in every row: the product with them is the sum of a
    // plane's channels
    int columns = w - tile.x - left - 2 * l.t;
    const u32 real = columns > 1 ? ONES : columns > 0 ? ONES & 0xffffu : 0;
    u32 words[2][2][4];  // [16 hidden channels][upper or lower two rows][plane, row], as the operand takes them
    UNROLL
    for (int i = 0; i < 16; i++) words[i / 8][i / 4 % 2][i % 4] = 0;
    // two planes at a time, or the compiler loads ahead into more registers than there are
    ROLLED
    for (int s = 0; s < 2; s++) {
        UNROLL
        for (int i = 0; i < 8; i++) words[0][i / 4][i % 4] = words[1][i / 4][i % 4];
        UNROLL
        for (int m = 0; m < 2; m++) {
            float d[2][4];
            Depthwise depthwise;
            depthwise.load(n.taps, 2 * s + m, l);
            depthwise.four_rows(d[0], d[1], from + (2 * s + m) * plane_pieces(dz_side), dz_side, lane);
            UNROLL
            for (int i = 0; i < 4; i++) words[1][i / 2][2 * m + i % 2] = pack_half(d[i / 2][i % 2 * 2], d[i / 2][i % 2 * 2 + 1]);
        }
    }
    Pair in[4];
    UNROLL
    for (int r = 0; r < 4; r++) {
        in[r] = {{0, 0}};
        if (r < rows) in[r] = ((const Pair*)input)[at + r * w * 4];
    }
    Pair d_out[4];
    UNROLL
    for (int r = 0; r < 4; r++) {
        d_out[r] = {{0, 0}};
        if (r < rows) d_out[r] = ((const Pair*)d_output)[at + r * w * 4];
    }
    u32 x_turned[2][4];
    UNROLL
    for (int i = 0; i < 8; i++) x_turned[i / 4][i % 4] = transpose(in[i / 2].word[i % 2]);
    UNROLL
    for (int j = 0; j < HIDDEN_PLANES; j++) {
        float sum[4] = {0, 0, 0, 0};
        UNROLL
        for (int half = 0; half < 2; half++) {
            u32 turned[2] = {transpose(words[j / 2][half][j % 2 * 2]), transpose(words[j / 2][half][j % 2 * 2 + 1])};
            mma_16x8x16(sums.product1[j], x_turned[half], turned);
            mma_16x8x16(sum, {y + 2 * half < h ? real : 0, 0, y + 2 * half + 1 < h ? real : 0, 0}, turned);
        }
        sums.hidden += l.group / 2 == j ? (l.group % 2 ? sum[1] : sum[0]) : 0.0f;
    }
    warp_barrier();
    float dx[2][2][4];
    UNROLL
    for (int i = 0; i < 16; i++) dx[i / 8][i / 4 % 2][i % 4] = 0;
    int place = conv1_place(lane % 16);
    UNROLL
    for (int s = 0; s < 2; s++) {
        // hidden channels 16s .. 16s + 15 of both feature words
        u32 b[4];
        load_matrices_transposed(b, n.conv1 + lane / 16 * HIDDEN + (place ^ 4 * s) + 16 * s);
        UNROLL
        for (int i = 0; i < 4; i++) mma_16x8x16(dx[i / 2][i % 2], words[s][i / 2], {b[i % 2 * 2], b[i % 2 * 2 + 1]});
    }
    UNROLL
    for (int r = 0; r < 4; r++) {
        Pair v;
        UNROLL
        for (int m = 0; m < 2; m++) {
            const float* d = dx[r / 2][m] + r % 2 * 2;
            v.word[m] = pack_half(low_half(d_out[r].word[m]) + EIGHTHS * d[0], high_half(d_out[r].word[m]) + EIGHTHS * d[1]);
        }
        if (r < rows) ((Pair*)d_input)[at + r * w * 4] = v;
    }
}

// `Depthwise`: forward; `DepthwiseBack`: its data gradient.
template <class Depthwise, class DepthwiseBack, class TapSums>
DEVICE void nano_back(const NanoBlockBackArguments& arg) {
    const int h = arg.h, w = arg.w;
    const int side = TILE + 4, dz_side = TILE + 2;
    Wide* hidden = (Wide*)shared_memory();
    Wide* dz = hidden + HIDDEN_PLANES * plane_pieces(side);
    NanoWeights n = nano_weights(dz + HIDDEN_PLANES * plane_pieces(dz_side));
    NanoShare share;
    share.load(arg.parameters);
    Lane own = lane_position();
    float v[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        int c = 4 * own.t + i;
        v[i] = arg.parameters.gamma[c] * arg.parameters.w2[c * HIDDEN + threadIdx.x / 4 % HIDDEN];
    }
    share.store<Depthwise>(n);
    if (threadIdx.x < 4 * 32) n.conv2[threadIdx.x] = {{pack_half(v[0], v[1]), pack_half(v[2], v[3])}};
    NanoSums<TapSums> sums = {};
    barrier();
    int first = blockIdx.x * arg.tiles, end = first + arg.tiles;
    Tile t = tile_at(first, h, w);
    for (int index = first; index < end && t.image < arg.images; index++, t.move_on(h, w)) {
        SharedTiles shared = {index > first && t.x > 0, index + 1 < end && t.x + TILE < w};
        nano_back_hidden(hidden, n, arg.input, t, shared, h, w);
        barrier();
        nano_back_slopes<Depthwise>(sums, hidden, (u32*)dz, n, arg.d_output, t, shared, h, w);
        barrier();
        sums.taps.add_tile(hidden, dz);
        // the hidden values may be overwritten by those of the next tile; its d z comes after one
        // more barrier
        barrier();
        nano_back_input<DepthwiseBack>(sums, dz, n, arg.input, arg.d_output, arg.d_input, t, h, w);
    }
    barrier();
    // the sums of every warp, then those of the block
    Lane l = lane_position();
    float* all = (float*)shared_memory();
    float* mine = all + l.warp * NANO_COUNT;
    UNROLL
    for (int j = 0; j < HIDDEN_PLANES; j++) {
        UNROLL
        for (int i = 0; i < 4; i++) {
            int c = fragment_feature(l.group, i / 2), e = 8 * j + 2 * l.t + i % 2;
            mine[e * FEATURES + c] = sums.product1[j][i];
            if (j < 2) mine[NANO_W2 + c * HIDDEN + 16 * (l.warp % 2) + e] = EIGHTHS * sums.product[j][i];
        }
    }
    mine[NANO_B1 + 8 * (l.group / 2) + 2 * l.t + l.group % 2] = sums.hidden;
    sums.taps.store(mine, l);
    barrier();
    for (int i = threadIdx.x; i < NANO_COUNT; i += 256) {
        // two warps have the depthwise sums of a plane, four have conv2's, and the sums of d_output
        // exist twice
        int warp = 0, step = 1;
        if (i >= NANO_DW && i < NANO_W2) {
            warp = (i < NANO_DB ? (i - NANO_DW) / TAPS : i - NANO_DB) / 8;
            step = 4;
        } else if (i >= NANO_W2) {
            warp = i < NANO_B2 ? (i - NANO_W2) % HIDDEN / 16 : 0;
            step = 2;
        }
        float sum = 0;
        for (; warp < 8; warp += step) sum += all[warp * NANO_COUNT + i];
        arg.partials[(long long)blockIdx.x * NANO_COUNT + i] = sum;
    }
}
KERNEL_CROWDED(nano_block_back, 2) { nano_back<TensorDepthwise<false>, TensorDepthwise<true>, TensorTapSums>(arg); }
KERNEL_CROWDED(nano_block_back_plain, 2) { nano_back<PlainDepthwise<false>, PlainDepthwise<true>, PlainTapSums>(arg); }
