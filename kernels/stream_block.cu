// The block of Stream on tensor cores, for half precision and 32 features. Depends on nano_mma.cuh,
// whose depthwise step it shares, and on plain.cuh.
//
//   both = (depthwise of x, depthwise of x with dilation 3), t = fuse(both), p = proj(t),
//   (a, b) = gate(p), m = clamp(a b), y = x + gamma out(m)
//
// A block of 8 warps takes tiles of 16 x 16 pixels. It computes t on the tile and one pixel around it,
// where a warp has 16 pixels three times and keeps them in registers as operands of proj. The hidden
// channels of p come 32 at a time, 16 of a and the 16 of b that they are multiplied with: these
// values are in shared memory with a border of one pixel, everything after them is in registers again.
// As in nano_mma.cuh a depthwise step is products whose other side has weights on its diagonals.
//
// stream_block: y. Least traffic a pixel: x read and y written once.
// stream_block_back: what the backward pass reads: both, t, p, m, and the gradients of a and b from that
// of y. Least traffic a pixel: x and the gradient of y read, these values written once.
// stream_block_proj_back: the gradients of p and t from that of gate's results. Least traffic a pixel: the
// latter read, both written once.
// stream_block_input_back: the gradients of both and x from those of t and y. Least traffic a pixel: two
// values read and two written once.
// stream_block_pack: the weights of a block as these kernels have them in shared memory, once for each
// pass.
// stream_block_gradients: the gradients of out and gamma from the sums over pixels of m and the gradient
// of y.
// Grid of the first four: persistent.
#pragma once
#include "plain.cuh"

#if PRECISION != 0

// Pixels of a row of t and p, and of x; 16-byte pieces from one plane of eight channels to the next,
// such that the lanes that write neighbouring pixels use different banks.
#define STREAM_SIDE (TILE + 2)
#define STREAM_WIDE (TILE + 8)
#define STREAM_PLANE (STREAM_SIDE * STREAM_SIDE + 6)
#define STREAM_X_PLANE (STREAM_WIDE * STREAM_WIDE + 4)
#define STREAM_HIDDEN (4 * STREAM_FEATURES)
// Times that a warp takes 16 pixels of t.
#define STREAM_TIMES ((STREAM_SIDE * STREAM_SIDE + 127) / 128)
#define STREAM_DEPTHWISE (2 * STREAM_FEATURES + STREAM_HIDDEN)
static_assert(2 * STREAM_X_PLANE <= 4 * STREAM_PLANE && 4 * STREAM_PLANE * 16 == STREAM_PLANES, "the lowering reserves what the values need");

// The weights in shared memory. Channels of depthwise steps: 32 of dw1, 32 of dw3, 128 of gate, then
// zeros, which the lanes beside the diagonal read.
struct StreamDepthwiseWeights {
    Wide taps[2][STREAM_DEPTHWISE + 1];  // taps 0 .. 3 and 4 .. 7, each in the half of a word that belongs to its channel
    u32 last[STREAM_DEPTHWISE + 4];      // tap 8
    u32 starts[STREAM_DEPTHWISE + 4];    // biases: rounded to half precision, and the remainder
};
struct StreamWeights {
    StreamDepthwiseWeights depthwise;
    Wide fuse[4][2][32];     // [16 inputs][two times 8 outputs][lane]
    Wide proj[4][2][2][32];  // [32 hidden channels][16 inputs][two times 8 outputs][lane]
    Wide out[4][2][32];      // forward [16 inputs][two times 8 outputs][lane], backward [16 hidden channels][16 gradients][lane]
    float fuse_bias[STREAM_FEATURES], proj_bias[STREAM_HIDDEN], out_bias[STREAM_FEATURES], gamma[STREAM_FEATURES];
};
// What the backward pass has beside them.
struct StreamTurnedWeights {
    Wide proj[4][2][2][32];  // [32 hidden channels][16 of them][two times 8 gradients of t][lane]
    Wide fuse[2][2][2][32];  // [32 channels of both][16 gradients of t][two times 8 of the channels][lane]
};
static_assert(sizeof(StreamWeights) == STREAM_WEIGHTS && sizeof(StreamTurnedWeights) == STREAM_TURNED_WEIGHTS, "the lowering reserves what the weights need");

// The first hidden channel of plane 0 .. 3 of a chunk: two planes of a, then two of b.
DEVICE int stream_channel(int chunk, int plane) { return plane / 2 * (STREAM_HIDDEN / 2) + 16 * chunk + plane % 2 * 8; }
// The same of both: two planes of the near results, then two of the far ones.
DEVICE int stream_both(int chunk, int plane) { return plane / 2 * STREAM_FEATURES + 16 * chunk + plane % 2 * 8; }
// The output at column `group` of 8 outputs number `tile` of 32: lane t then has outputs 8t .. 8t + 7.
DEVICE int stream_output(int group, int tile) { return group / 2 * 8 + 2 * tile + group % 2; }

// Word number i of a piece of products' weights. `natural`: inputs are in the order of depthwise
// results, 2t, 2t + 1 and 2t + 8, 2t + 9 of 16; else lane t has 8t .. 8t + 7 of 32.
DEVICE int stream_input(int lane, int step, int word, bool natural) {
    return natural ? 16 * step + 8 * word + lane % 4 * 2 : lane % 4 * 8 + 4 * step + 2 * word;
}
DEVICE u32 stream_product_word(const StreamBlockPackArguments& arg, int i) {
    const int lane = i / 4 % 32, tile = i / 2 % 2, word = i % 2, part = i / 128, group = lane / 4;
    if (part < 8) {
        const float* from = arg.fuse + stream_output(group, part % 2 * 2 + tile) * 2 * STREAM_FEATURES + stream_input(lane, part / 2, word, true);
        return pack_half(from[0], from[1]);
    }
    if (part < 24) {
        int output = stream_output(group, part % 2 * 2 + tile), hidden = stream_channel((part - 8) / 4, output / 8) + output % 8;
        const float* from = arg.proj + hidden * STREAM_FEATURES + stream_input(lane, part / 2 % 2, word, false);
        return pack_half(from[0], from[1]);
    }
    int chunk = (part - 24) / 2, step = part % 2;
    if (arg.back) {
        const float* from = arg.out + stream_input(lane, step, word, false) * 2 * STREAM_FEATURES + 16 * chunk + 8 * tile + group;
        return pack_half(from[0], from[2 * STREAM_FEATURES]);
    }
    const float* from = arg.out + stream_output(group, 2 * step + tile) * 2 * STREAM_FEATURES + stream_input(lane, chunk, word, true);
    return pack_half(from[0], from[1]);
}
// The same of StreamTurnedWeights.
DEVICE u32 stream_turned_word(const StreamBlockPackArguments& arg, int i) {
    const int lane = i / 4 % 32, tile = i / 2 % 2, word = i % 2, part = i / 128, group = lane / 4, f = STREAM_FEATURES;
    int to = stream_output(group, part % 2 * 2 + tile);
    if (part < 16) {
        const float* from = arg.proj + (stream_channel(part / 4, part / 2 % 2 * 2 + word) + lane % 4 * 2) * f + to;
        return pack_half(from[0], from[f]);
    }
    const float* from = arg.fuse + stream_input(lane, part / 2 % 2, word, false) * 2 * f + stream_both(part / 4 - 4, to / 8) + to % 8;
    return pack_half(from[0], from[2 * f]);
}
// Tap `tap` (9: the bias) of depthwise channel `channel`.
DEVICE float stream_tap(const StreamBlockPackArguments& arg, int channel, int tap) {
    const StreamDepthwise& d = channel < STREAM_FEATURES ? arg.near : channel < 2 * STREAM_FEATURES ? arg.far : arg.gate;
    int at = channel < 2 * STREAM_FEATURES ? channel % STREAM_FEATURES : channel - 2 * STREAM_FEATURES;
    return tap == TAPS ? d.bias[at] : d.weight[at * TAPS + tap];
}
// A thread makes a word.
KERNEL(stream_block_pack) {
    const int taps = 8 * (STREAM_DEPTHWISE + 1), lasts = STREAM_DEPTHWISE + 4, products = 32 * 128;
    int i = blockIdx.x * 256 + threadIdx.x, at = i;
    if (i >= (STREAM_WEIGHTS + (arg.back ? STREAM_TURNED_WEIGHTS : 0)) / 4) return;
    u32 word = 0;
    if (at < taps) {
        int channel = at / 4 % (STREAM_DEPTHWISE + 1), tap = at / 4 / (STREAM_DEPTHWISE + 1) * 4 + at % 4;
        if (channel < STREAM_DEPTHWISE) word = pack_half(stream_tap(arg, channel, tap), 0.0f) << (channel % 2 * 16);
    } else if ((at -= taps) < lasts) {
        if (at < STREAM_DEPTHWISE) word = pack_half(stream_tap(arg, at, TAPS - 1), 0.0f) << (at % 2 * 16);
    } else if ((at -= lasts) < lasts) {
        float bias = at < STREAM_DEPTHWISE ? stream_tap(arg, at, TAPS) : 0.0f;
        word = pack_half(bias, bias - low_half(pack_half(bias, 0.0f)));
    } else if ((at -= lasts) < products) {
        word = stream_product_word(arg, at);
    } else if ((at -= products) >= STREAM_HIDDEN + 3 * STREAM_FEATURES) {
        word = stream_turned_word(arg, at - STREAM_HIDDEN - 3 * STREAM_FEATURES);
    } else {
        const int f = STREAM_FEATURES, h = STREAM_HIDDEN;
        word = float_to_bits(at < f ? arg.fuse_bias[at] : at < f + h ? arg.proj_bias[at - f] : at < 2 * f + h ? arg.out_bias[at - f - h] : arg.gamma[at - 2 * f - h]);
    }
    ((u32*)arg.packed)[i] = word;
}

// A lane's taps of the plane that begins with depthwise channel `first`; they are zero except where
// the lane's row and column are the same channel.
struct StreamTaps {
    Wide low, high;
    u32 last, start;
};
DEVICE StreamTaps load_stream_taps(const StreamDepthwiseWeights& n, int first, Lane l) {
    int at = l.group / 2 == l.t ? first + l.group : STREAM_DEPTHWISE;
    return {n.taps[0][at], n.taps[1][at], n.last[at], n.starts[l.t == 0 ? first + l.group : STREAM_DEPTHWISE]};
}
// The taps rotated by 180 degrees, for the gradient of the input; without the bias.
DEVICE StreamTaps turned_taps(const StreamTaps& v) {
    return {{{v.last, v.high.word[3], v.high.word[2], v.high.word[1]}}, {{v.high.word[0], v.low.word[3], v.low.word[2], v.low.word[1]}}, v.low.word[0], 0};
}
// Depthwise 3x3 with its bias, of 16 pixels of a plane with rows of `SIDE` pixels, added to sum.
// `from`: a lane's address: lane i gives the upper left neighbour of pixel i % 16, and from lane 16 on
// the one DILATION to the right of it.
template <int DILATION, int SIDE>
DEVICE void stream_depthwise(float (&sum)[4], const Wide* from, const StreamTaps& taps, int lane) {
    const int row = DILATION * SIDE;
    // of taps 2 and 3 the second is in the next row
    const Wide* turned = from + (lane < 16 ? 2 * DILATION : row - DILATION);
    u32 m[4], last[2];
    load_matrices(m, from);
    mma_16x8x16(sum, m, {taps.low.word[0], taps.low.word[1]});
    load_matrices(m, turned);
    mma_16x8x16(sum, m, {taps.low.word[2], taps.low.word[3]});
    load_matrices(m, from + row + DILATION);
    mma_16x8x16(sum, m, {taps.high.word[0], taps.high.word[1]});
    load_matrices(m, from + 2 * row);
    mma_16x8x16(sum, m, {taps.high.word[2], taps.high.word[3]});
    load_two_matrices(last, from + 2 * row + (lane < 16 ? 2 : 1) * DILATION);
    mma_16x8x16(sum, {last[0], last[1], ONES, ONES}, {taps.last, taps.start});
}
// The taps as depthwise.cuh has them, which takes four rows of eight pixels at once.
template <bool BACK>
DEVICE nano_family::TensorDepthwise<BACK> row_taps(const StreamTaps& v) {
    return {{{v.low.word[0], v.high.word[2]}, {v.low.word[1], v.high.word[3]}, {v.low.word[2], v.last}}, {v.low.word[3], v.high.word[0]}, {v.high.word[1], v.start}};
}

// Copies 16 channels of the tile's x with a border of four pixels; 0 outside of the image.
DEVICE void load_stream_tile(Wide* planes, const act* input, Tile t, int h, int w, int half) {
    const int rounds = (2 * STREAM_WIDE * STREAM_WIDE + 255) / 256;
    Wide loaded[rounds];
    const int thread = thread_anew();
    UNROLL
    for (int i = 0; i < rounds; i++) {
        int at = thread + 256 * i, pixel = at / 2, row = t.y - 4 + pixel / STREAM_WIDE, column = t.x - 4 + pixel % STREAM_WIDE;
        loaded[i] = {{0, 0, 0, 0}};
        if (pixel < STREAM_WIDE * STREAM_WIDE && inside(row, column, h, w))
            loaded[i] = *(const Wide*)(input + (long long)((t.image * h + row) * w + column) * STREAM_FEATURES + 16 * half + at % 2 * 8);
    }
    UNROLL
    for (int i = 0; i < rounds; i++) {
        int at = thread + 256 * i;
        if (at / 2 < STREAM_WIDE * STREAM_WIDE) planes[at % 2 * STREAM_X_PLANE + at / 2] = loaded[i];
    }
}

// Pixel number i of t's: its number, whether it is in the image, and whether in the tile, too.
struct StreamPixel {
    int at;
    bool exists, own;
};
DEVICE StreamPixel stream_pixel(int i, Tile t, int h, int w) {
    StreamPixel p;
    int row = (u32)i / STREAM_SIDE, column = i - row * STREAM_SIDE, y = t.y - 1 + row, x = t.x - 1 + column;
    p.exists = i < STREAM_SIDE * STREAM_SIDE && inside(y, x, h, w);
    p.own = p.exists && (u32)(row - 1) < TILE && (u32)(column - 1) < TILE;
    p.at = (t.image * h + y) * w + x;
    return p;
}

// Adds the products of 16 channels of `both` to the sums of t.
template <bool BACK>
DEVICE void stream_fuse(float (&sums)[STREAM_TIMES][4][4], const StreamBlockArguments& arg, const StreamWeights& n, const Wide* planes, Tile t, int half) {
    UNROLL
    for (int time = 0; time < STREAM_TIMES; time++) {
        Lane l = lane_position(thread_anew());
        const int first = (time * 8 + l.warp) * 16, most = STREAM_SIDE * STREAM_SIDE - 1;
        if (first > most) continue;
        int i = first + l.lane % 16 < most ? first + l.lane % 16 : most;
        const Wide* from = planes + i / STREAM_SIDE * STREAM_WIDE + i % STREAM_SIDE;
        UNROLL
        for (int far = 0; far < 2; far++) {
            u32 a[4];
            UNROLL
            for (int j = 0; j < 2; j++) {
                // one after another, or the compiler loads ahead into more registers than there are
                warp_barrier();
                float z[4] = {0, 0, 0, 0};
                StreamTaps taps = load_stream_taps(n.depthwise, far * STREAM_FEATURES + 16 * half + 8 * j, l);
                if (far)
                    stream_depthwise<3, STREAM_WIDE>(z, from + j * STREAM_X_PLANE + (l.lane < 16 ? 0 : 3), taps, l.lane);
                else
                    stream_depthwise<1, STREAM_WIDE>(z, from + j * STREAM_X_PLANE + 2 * STREAM_WIDE + 2 + (l.lane < 16 ? 0 : 1), taps, l.lane);
                a[2 * j] = pack_half(z[0], z[1]);
                a[2 * j + 1] = pack_half(z[2], z[3]);
            }
            UNROLL
            for (int pair = 0; pair < 2; pair++) {
                Wide b = n.fuse[2 * far + half][pair][l.lane];
                mma_16x8x16(sums[time][2 * pair], a, {b.word[0], b.word[1]});
                mma_16x8x16(sums[time][2 * pair + 1], a, {b.word[2], b.word[3]});
            }
            UNROLL
            for (int r = 0; r < 2 && BACK; r++) {
                StreamPixel p = stream_pixel(first + 8 * r + l.group, t, arg.h, arg.w);
                u32* to = (u32*)(arg.both + (long long)p.at * 2 * STREAM_FEATURES) + far * 16 + 8 * half + l.t;
                if (p.own) {
                    to[0] = a[r];
                    to[4] = a[2 + r];
                }
            }
        }
    }
}

// The hidden values of a chunk: those of t's pixels, 0 outside of the image.
template <bool BACK>
DEVICE void stream_hidden(Wide* planes, const Wide (&t_pieces)[STREAM_TIMES][2], const StreamBlockArguments& arg, const StreamWeights& n, Tile t, int chunk) {
    UNROLL
    for (int time = 0; time < STREAM_TIMES; time++) {
        Lane l = lane_position(thread_anew());
        const int first = (time * 8 + l.warp) * 16;
        if (first >= STREAM_SIDE * STREAM_SIDE) continue;
        warp_barrier();
        const float* bias = n.proj_bias + stream_channel(chunk, l.t);
        float d[4][4];
        UNROLL
        for (int i = 0; i < 16; i++) d[i / 4][i % 4] = bias[i / 4 * 2 + i % 2];
        UNROLL
        for (int s = 0; s < 2; s++) {
            const Wide* v = t_pieces[time];
            u32 a[4] = {v[0].word[2 * s], v[1].word[2 * s], v[0].word[2 * s + 1], v[1].word[2 * s + 1]};
            UNROLL
            for (int pair = 0; pair < 2; pair++) {
                Wide b = n.proj[chunk][s][pair][l.lane];
                mma_16x8x16(d[2 * pair], a, {b.word[0], b.word[1]});
                mma_16x8x16(d[2 * pair + 1], a, {b.word[2], b.word[3]});
            }
        }
        UNROLL
        for (int r = 0; r < 2; r++) {
            int i = first + 8 * r + l.group;
            StreamPixel p = stream_pixel(i, t, arg.h, arg.w);
            Wide piece;
            UNROLL
            for (int j = 0; j < 4; j++) piece.word[j] = p.exists ? pack_half(d[j][2 * r], d[j][2 * r + 1]) : 0;
            if (i < STREAM_SIDE * STREAM_SIDE) planes[l.t * STREAM_PLANE + i] = piece;
            if (BACK && p.own) *(Wide*)(arg.p + (long long)p.at * STREAM_HIDDEN + stream_channel(chunk, l.t)) = piece;
        }
    }
}

// Depthwise results of a plane of a chunk, for a warp's four rows of eight pixels.
DEVICE void stream_gate(float (&z)[2][4], const Wide* planes, const StreamWeights& n, int chunk, int plane) {
    Lane l = lane_position(thread_anew());
    const Wide* from = planes + (l.warp / 2 * 4 + l.lane / 8) * STREAM_SIDE + l.warp % 2 * 8 + l.lane % 8;
    nano_family::TensorDepthwise<false> taps = row_taps<false>(load_stream_taps(n.depthwise, 2 * STREAM_FEATURES + stream_channel(chunk, plane), l));
    taps.four_rows(z[0], z[1], from + plane * STREAM_PLANE, STREAM_SIDE, l.lane);
}

// A warp's four rows of eight pixels of a tile: those of lane group `group`.
struct StreamRows {
    int at, rows;  // the first one's pixel; how many exist
};
DEVICE StreamRows stream_rows(Lane l, Tile t, int h, int w) {
    int y = t.y + l.warp / 2 * 4, x = t.x + l.warp % 2 * 8 + l.group;
    return {(t.image * h + y) * w + x, x < w ? h - y : 0};
}

// A lane's gradients of y times gamma, as the operands of two times two rows.
DEVICE void load_stream_gradients(u32 (&d)[2][2][4], const StreamBlockArguments& arg, const StreamWeights& n, Tile t) {
    Lane l = lane_position(thread_anew());
    StreamRows own = stream_rows(l, t, arg.h, arg.w);
    Wide v[4];
    UNROLL
    for (int r = 0; r < 4; r++) {
        v[r] = {{0, 0, 0, 0}};
        if (r < own.rows) v[r] = *(const Wide*)(arg.d_output + (long long)(own.at + r * arg.w) * STREAM_FEATURES + 8 * l.t);
    }
    const float* gamma = n.gamma + 8 * l.t;
    UNROLL
    for (int i = 0; i < 16; i++) {
        int r = i / 4, k = i % 4;
        d[r / 2][k / 2][k % 2 * 2 + r % 2] = pack_half(gamma[2 * k] * low_half(v[r].word[k]), gamma[2 * k + 1] * high_half(v[r].word[k]));
    }
}

// A product of the gate, clamped; NaN stays NaN.
DEVICE float within_limit(float product, float limit) {
    product = product < -limit ? -limit : product;
    return product > limit ? limit : product;
}
// Of eight channels of a chunk: their products and the gradients of both factors.
DEVICE void stream_gate_back(const float (&a)[2][4], const float (&b)[2][4], const u32 (&d)[2][2][4], const StreamBlockArguments& arg, const StreamWeights& n, Tile t,
                             int chunk, int plane) {
    Lane l = lane_position(thread_anew());
    StreamRows own = stream_rows(l, t, arg.h, arg.w);
    float dm[2][4];
    UNROLL
    for (int i = 0; i < 8; i++) dm[i / 4][i % 4] = 0;
    UNROLL
    for (int s = 0; s < 2; s++) {
        const Wide& w = n.out[chunk][s][l.lane];
        u32 weights[2] = {plane ? w.word[2] : w.word[0], plane ? w.word[3] : w.word[1]};
        UNROLL
        for (int half = 0; half < 2; half++) mma_16x8x16(dm[half], d[half][s], weights);
    }
    u32* m_to = (u32*)(arg.m + (long long)own.at * 2 * STREAM_FEATURES + 16 * chunk + 8 * plane) + l.t;
    u32* d_to = (u32*)(arg.d_gate + (long long)own.at * STREAM_HIDDEN + 16 * chunk + 8 * plane) + l.t;
    UNROLL
    for (int r = 0; r < 4; r++) {
        float product[2], d_a[2], d_b[2];
        UNROLL
        for (int k = 0; k < 2; k++) {
            float x = a[r / 2][r % 2 * 2 + k], y = b[r / 2][r % 2 * 2 + k], all = x * y;
            float passed = fabsf(all) > arg.limit ? 0.0f : dm[r / 2][r % 2 * 2 + k];
            product[k] = within_limit(all, arg.limit);
            d_a[k] = passed * y;
            d_b[k] = passed * x;
        }
        if (r < own.rows) {
            m_to[(long long)r * arg.w * STREAM_FEATURES] = pack_half(product[0], product[1]);
            u32* to = d_to + (long long)r * arg.w * (STREAM_HIDDEN / 2);
            to[0] = pack_half(d_a[0], d_a[1]);
            to[STREAM_HIDDEN / 4] = pack_half(d_b[0], d_b[1]);
        }
    }
}

// Adds out's products with eight channels of the gate's.
DEVICE void stream_out(float (&sums)[2][4][4], const float (&a)[2][4], const float (&b)[2][4], float limit, const Wide (&weights)[2][32], int plane, int lane) {
    u32 m[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        const float *x = a[i / 2] + i % 2 * 2, *y = b[i / 2] + i % 2 * 2;
        m[i] = pack_half(within_limit(x[0] * y[0], limit), within_limit(x[1] * y[1], limit));
    }
    UNROLL
    for (int pair = 0; pair < 2; pair++) {
        const Wide& w = weights[pair][lane];
        u32 words[2] = {plane ? w.word[1] : w.word[0], plane ? w.word[3] : w.word[2]};
        UNROLL
        for (int i = 0; i < 4; i++) {
            float(&sum)[4] = sums[i / 2][2 * pair + i % 2];
            mma_16x8x8(sum, m[i / 2 * 2], m[i / 2 * 2 + 1], words[i % 2], sum);
        }
    }
}

// x + gamma times the sums.
DEVICE void finish_stream(const float (&sums)[2][4][4], const StreamBlockArguments& arg, const StreamWeights& n, Tile t) {
    Lane l = lane_position(thread_anew());
    StreamRows own = stream_rows(l, t, arg.h, arg.w);
    const float* gamma = n.gamma + 8 * l.t;
    UNROLL
    for (int half = 0; half < 2; half++) {
        Wide v[2];
        UNROLL
        for (int r = 0; r < 2; r++) {
            v[r] = {{0, 0, 0, 0}};
            if (2 * half + r < own.rows) v[r] = *(const Wide*)(arg.input + (long long)(own.at + (2 * half + r) * arg.w) * STREAM_FEATURES + 8 * l.t);
        }
        UNROLL
        for (int r = 0; r < 2; r++) {
            UNROLL
            for (int k = 0; k < 4; k++) {
                const float* s = sums[half][k] + 2 * r;
                v[r].word[k] = pack_half(fmaf(gamma[2 * k], s[0], low_half(v[r].word[k])), fmaf(gamma[2 * k + 1], s[1], high_half(v[r].word[k])));
            }
            if (2 * half + r < own.rows) *(Wide*)(arg.output + (long long)(own.at + (2 * half + r) * arg.w) * STREAM_FEATURES + 8 * l.t) = v[r];
        }
        warp_barrier();
    }
}

DEVICE int* stream_kept(Wide* planes) { return (int*)(planes + 4 * STREAM_PLANE - 1); }
template <bool BACK>
DEVICE void stream_tile(const StreamBlockArguments& arg, Wide* planes, const StreamWeights& n, int index) {
    // forward the tile's number waits in the gap behind the last plane, because registers are short
    int* kept = stream_kept(planes);
    if (!BACK && thread_anew() == 0) *kept = index;
    auto tile = [&]() { return tile_at(BACK ? anew(index) : *kept, arg.h, arg.w); };
    Wide t_pieces[STREAM_TIMES][2];
    {
        Lane l = lane_position(thread_anew());
        float sums[STREAM_TIMES][4][4];
        UNROLL
        for (int i = 0; i < 16 * STREAM_TIMES; i++) sums[i / 16][i / 4 % 4][i % 4] = n.fuse_bias[8 * l.t + i / 4 % 4 * 2 + i % 2];
        load_stream_tile(planes, arg.input, tile_at(index, arg.h, arg.w), arg.h, arg.w, 0);
        barrier();
        stream_fuse<BACK>(sums, arg, n, planes, tile(), 0);
        barrier();
        load_stream_tile(planes, arg.input, tile(), arg.h, arg.w, 1);
        barrier();
        stream_fuse<BACK>(sums, arg, n, planes, tile(), 1);
        UNROLL
        for (int i = 0; i < 8 * STREAM_TIMES; i++) {
            const float* s = sums[i / 8][i % 4] + i / 4 % 2 * 2;
            t_pieces[i / 8][i / 4 % 2].word[i % 4] = pack_half(s[0], s[1]);
        }
        Tile t = tile();
        UNROLL
        for (int i = 0; i < 2 * STREAM_TIMES && BACK; i++) {
            StreamPixel p = stream_pixel((i / 2 * 8 + l.warp) * 16 + i % 2 * 8 + l.group, t, arg.h, arg.w);
            if (p.own) *(Wide*)(arg.t + (long long)p.at * STREAM_FEATURES + 8 * l.t) = t_pieces[i / 2][i % 2];
        }
    }
    u32 d[2][2][4];
    if (BACK) load_stream_gradients(d, arg, n, tile());
    float sums[2][4][4];
    UNROLL
    for (int i = 0; i < 32 && !BACK; i++) sums[i / 16][i / 4 % 4][i % 4] = n.out_bias[thread_anew() % 4 * 8 + i / 4 % 4 * 2 + i % 2];
    ROLLED
    for (int number = 0; number < STREAM_FEATURES / 8; number++) {
        // anew, or the compiler keeps an address for everything that it is an index of
        const int chunk = anew(number);
        barrier();
        stream_hidden<BACK>(planes, t_pieces, arg, n, tile(), chunk);
        barrier();
        // one after another, or the compiler keeps more results than there are registers
        ROLLED
        for (int plane = 0; plane < 2; plane++) {
            float a[2][4], b[2][4];
            warp_barrier();
            stream_gate(a, planes, n, chunk, plane);
            warp_barrier();
            stream_gate(b, planes, n, chunk, 2 + plane);
            if (BACK)
                stream_gate_back(a, b, d, arg, n, tile(), chunk, plane);
            else
                stream_out(sums, a, b, arg.limit, n.out[chunk], plane, thread_anew() % 32);
        }
    }
    if (!BACK) finish_stream(sums, arg, n, tile());
}

// Copies 16-byte pieces, all of which are loaded before the first is stored.
template <int COUNT>
DEVICE void copy_weights(Wide* to, const Wide* from) {
    const int rounds = (COUNT + 255) / 256;
    Wide loaded[rounds];
    UNROLL
    for (int i = 0; i < rounds; i++)
        if (256 * i + threadIdx.x < (u32)COUNT) loaded[i] = from[256 * i + threadIdx.x];
    UNROLL
    for (int i = 0; i < rounds; i++)
        if (256 * i + threadIdx.x < (u32)COUNT) to[256 * i + threadIdx.x] = loaded[i];
}

template <bool BACK>
DEVICE void stream_tiles(const StreamBlockArguments& arg) {
    Wide* planes = (Wide*)shared_memory();
    Wide* weights = planes + 4 * STREAM_PLANE;
    copy_weights<sizeof(StreamWeights) / 16>(weights, (const Wide*)arg.packed);
    // the sizes anew, or their number has a register of its own
    for (int index = blockIdx.x; index < tile_count(anew(arg.images), anew(arg.h), anew(arg.w)); index = (BACK ? index : *stream_kept(planes)) + gridDim.x) {
        barrier();
        stream_tile<BACK>(arg, planes, *(const StreamWeights*)weights, index);
    }
}
// A multiprocessor before sm_80 has shared memory for one block.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define STREAM_BLOCKS 1
#else
#define STREAM_BLOCKS 2
#endif
KERNEL_CROWDED(stream_block, STREAM_BLOCKS) { stream_tiles<false>(arg); }
KERNEL_CROWDED(stream_block_back, 2) { stream_tiles<true>(arg); }

// Copies a chunk of the gradients of gate's results on a tile and one pixel around it; 0 outside of the
// image.
DEVICE void load_gate_gradients(Wide* planes, const StreamBlockProjBackArguments& arg, Tile t, int chunk) {
    const int pieces = 4 * STREAM_SIDE * STREAM_SIDE, rounds = (pieces + 255) / 256, thread = thread_anew();
    Wide loaded[rounds];
    UNROLL
    for (int i = 0; i < rounds; i++) {
        StreamPixel p = stream_pixel((thread + 256 * i) / 4, t, arg.h, arg.w);
        loaded[i] = {{0, 0, 0, 0}};
        if (p.exists) loaded[i] = *(const Wide*)(arg.d_gate + (long long)p.at * STREAM_HIDDEN + stream_channel(chunk, thread % 4));
    }
    UNROLL
    for (int i = 0; i < rounds; i++)
        if (thread + 256 * i < pieces) planes[thread % 4 * STREAM_PLANE + (thread + 256 * i) / 4] = loaded[i];
}

KERNEL_CROWDED(stream_block_proj_back, 2) {
    Wide* planes = (Wide*)shared_memory();
    const StreamDepthwiseWeights& n = *(const StreamDepthwiseWeights*)(planes + 4 * STREAM_PLANE);
    Wide(&proj)[4][2][2][32] = *(Wide(*)[4][2][2][32])(&n + 1);
    copy_weights<sizeof(StreamDepthwiseWeights) / 16>((Wide*)&n, (const Wide*)arg.packed);
    copy_weights<sizeof(proj) / 16>(proj[0][0][0], (const Wide*)arg.packed + sizeof(StreamWeights) / 16);
    for (int index = blockIdx.x; index < tile_count(arg.images, arg.h, arg.w); index += gridDim.x) {
        Tile t = tile_at(index, arg.h, arg.w);
        float sums[2][4][4];
        UNROLL
        for (int i = 0; i < 32; i++) sums[i / 16][i / 4 % 4][i % 4] = 0;
        ROLLED
        for (int chunk = 0; chunk < STREAM_FEATURES / 8; chunk++) {
            barrier();
            load_gate_gradients(planes, arg, t, chunk);
            barrier();
            Lane l = lane_position(thread_anew());
            StreamRows own = stream_rows(l, t, arg.h, arg.w);
            const Wide* from = planes + (l.warp / 2 * 4 + l.lane / 8) * STREAM_SIDE + l.warp % 2 * 8 + l.lane % 8;
            ROLLED
            for (int s = 0; s < 2; s++) {
                u32 words[2][4];
                UNROLL
                for (int k = 0; k < 2; k++) {
                    int plane = 2 * s + k;
                    float z[2][4];
                    nano_family::TensorDepthwise<true> taps = row_taps<true>(turned_taps(load_stream_taps(n, 2 * STREAM_FEATURES + stream_channel(chunk, plane), l)));
                    taps.four_rows(z[0], z[1], from + plane * STREAM_PLANE, STREAM_SIDE, l.lane);
                    UNROLL
                    for (int r = 0; r < 4; r++) {
                        u32 word = pack_half(z[r / 2][r % 2 * 2], z[r / 2][r % 2 * 2 + 1]);
                        words[r / 2][2 * k + r % 2] = word;
                        if (r < own.rows) ((u32*)(arg.d_p + (long long)(own.at + r * arg.w) * STREAM_HIDDEN + stream_channel(chunk, plane)))[l.t] = word;
                    }
                }
                UNROLL
                for (int pair = 0; pair < 2; pair++) {
                    const Wide& b = proj[chunk][s][pair][l.lane];
                    UNROLL
                    for (int half = 0; half < 2; half++) {
                        mma_16x8x16(sums[half][2 * pair], words[half], {b.word[0], b.word[1]});
                        mma_16x8x16(sums[half][2 * pair + 1], words[half], {b.word[2], b.word[3]});
                    }
                }
            }
        }
        Lane l = lane_position(thread_anew());
        StreamRows own = stream_rows(l, t, arg.h, arg.w);
        UNROLL
        for (int r = 0; r < 4; r++) {
            Wide v;
            UNROLL
            for (int k = 0; k < 4; k++) v.word[k] = pack_half(sums[r / 2][k][r % 2 * 2], sums[r / 2][k][r % 2 * 2 + 1]);
            if (r < own.rows) *(Wide*)(arg.d_t + (long long)(own.at + r * arg.w) * STREAM_FEATURES + 8 * l.t) = v;
        }
    }
}

// Pixels of a row with the three of dilation 3 on each side; pieces of a plane; times that a warp takes
// 16 pixels.
#define STREAM_REACHED (TILE + 6)
#define STREAM_REACHED_PLANE (STREAM_REACHED * STREAM_REACHED + 2)
#define STREAM_REACHED_TIMES ((STREAM_REACHED * STREAM_REACHED + 127) / 128)
static_assert(4 * STREAM_REACHED_PLANE * 16 == STREAM_REACHED_PLANES, "the lowering reserves what the values need");

// A chunk of the gradient of both on a tile and three pixels around it, from that of t.
DEVICE void stream_both_gradients(Wide* planes, const Wide (&fuse)[2][2][2][32], const StreamBlockInputBackArguments& arg, Tile t, int chunk) {
    Lane l = lane_position(thread_anew());
    Wide b[2][2];
    UNROLL
    for (int i = 0; i < 4; i++) b[i / 2][i % 2] = fuse[chunk][i / 2][i % 2][l.lane];
    Wide v[STREAM_REACHED_TIMES][2];
    int at[STREAM_REACHED_TIMES][2];
    UNROLL
    for (int i = 0; i < 2 * STREAM_REACHED_TIMES; i++) {
        int pixel = (i / 2 * 8 + l.warp) * 16 + i % 2 * 8 + l.group, row = (u32)pixel / STREAM_REACHED, column = pixel - row * STREAM_REACHED;
        int y = t.y - 3 + row, x = t.x - 3 + column;
        bool exists = row < STREAM_REACHED && inside(y, x, arg.h, arg.w);
        Wide& to = v[i / 2][i % 2];
        to = {{0, 0, 0, 0}};
        at[i / 2][i % 2] = exists ? (t.image * arg.h + y) * arg.w + x : -1;
        if (exists) to = *(const Wide*)(arg.d_t + (long long)at[i / 2][i % 2] * STREAM_FEATURES + 8 * l.t);
        bool own = exists && (u32)(row - 3) < TILE && (u32)(column - 3) < TILE;
        if (!own) at[i / 2][i % 2] = -1;
    }
    UNROLL
    for (int time = 0; time < STREAM_REACHED_TIMES; time++) {
        float d[4][4];
        UNROLL
        for (int i = 0; i < 16; i++) d[i / 4][i % 4] = 0;
        UNROLL
        for (int s = 0; s < 2; s++) {
            u32 a[4] = {v[time][0].word[2 * s], v[time][1].word[2 * s], v[time][0].word[2 * s + 1], v[time][1].word[2 * s + 1]};
            UNROLL
            for (int j = 0; j < 4; j++) mma_16x8x16(d[j], a, {b[s][j / 2].word[j % 2 * 2], b[s][j / 2].word[j % 2 * 2 + 1]});
        }
        UNROLL
        for (int r = 0; r < 2; r++) {
            int pixel = (time * 8 + l.warp) * 16 + 8 * r + l.group;
            Wide piece;
            UNROLL
            for (int j = 0; j < 4; j++) piece.word[j] = pack_half(d[j][2 * r], d[j][2 * r + 1]);
            if (pixel < STREAM_REACHED * STREAM_REACHED) planes[l.t * STREAM_REACHED_PLANE + pixel] = piece;
            if (at[time][r] >= 0) *(Wide*)(arg.d_both + (long long)at[time][r] * 2 * STREAM_FEATURES + stream_both(chunk, l.t)) = piece;
        }
    }
}

KERNEL_CROWDED(stream_block_input_back, 2) {
    Wide* planes = (Wide*)shared_memory();
    const StreamDepthwiseWeights& n = *(const StreamDepthwiseWeights*)(planes + 4 * STREAM_REACHED_PLANE);
    Wide(&fuse)[2][2][2][32] = *(Wide(*)[2][2][2][32])(&n + 1);
    copy_weights<sizeof(StreamDepthwiseWeights) / 16>((Wide*)&n, (const Wide*)arg.packed);
    copy_weights<sizeof(fuse) / 16>(fuse[0][0][0], (const Wide*)arg.packed + (sizeof(StreamWeights) + sizeof(StreamTurnedWeights::proj)) / 16);
    for (int index = blockIdx.x; index < tile_count(arg.images, arg.h, arg.w); index += gridDim.x) {
        Tile t = tile_at(index, arg.h, arg.w);
        ROLLED
        for (int chunk = 0; chunk < STREAM_FEATURES / 16; chunk++) {
            barrier();
            stream_both_gradients(planes, fuse, arg, t, chunk);
            barrier();
            Lane l = lane_position(thread_anew());
            StreamRows own = stream_rows(l, t, arg.h, arg.w);
            // the upper left neighbour at distance 1 of a lane's pixel of four rows, and at distance 3 of
            // one of two rows
            const Wide* near = planes + (l.warp / 2 * 4 + l.lane / 8 + 2) * STREAM_REACHED + l.warp % 2 * 8 + l.lane % 8 + 2;
            const Wide* far = planes + (l.warp / 2 * 4 + l.lane / 8 % 2) * STREAM_REACHED + l.warp % 2 * 8 + l.lane % 8 + (l.lane < 16 ? 0 : 3);
            UNROLL
            for (int plane = 0; plane < 2; plane++) {
                const int channel = 16 * chunk + 8 * plane;
                u32 d[4];
                UNROLL
                for (int r = 0; r < 4; r++)
                    d[r] = r < own.rows ? ((const u32*)(arg.d_output + (long long)(own.at + r * arg.w) * STREAM_FEATURES + channel))[l.t] : 0;
                float z[2][4];
                row_taps<true>(turned_taps(load_stream_taps(n, channel, l))).four_rows(z[0], z[1], near + plane * STREAM_REACHED_PLANE, STREAM_REACHED, l.lane);
                StreamTaps taps = turned_taps(load_stream_taps(n, STREAM_FEATURES + channel, l));
                UNROLL
                for (int half = 0; half < 2; half++)
                    stream_depthwise<3, STREAM_REACHED>(z[half], far + (2 + plane) * STREAM_REACHED_PLANE + 2 * half * STREAM_REACHED, taps, l.lane);
                UNROLL
                for (int r = 0; r < 4; r++) {
                    const float* s = z[r / 2] + r % 2 * 2;
                    u32 word = pack_half(low_half(d[r]) + s[0], high_half(d[r]) + s[1]);
                    if (r < own.rows) ((u32*)(arg.d_input + (long long)(own.at + r * arg.w) * STREAM_FEATURES + channel))[l.t] = word;
                }
            }
        }
    }
}

// One block. `sums`: those of out's weights and biases as if gamma were 1, [output][input], then
// [output].
KERNEL(stream_block_gradients) {
    const int f = STREAM_FEATURES, weights = 2 * f * f;
    for (int i = threadIdx.x; i < weights + f; i += 256) store_gradient(arg.d_out + i, arg.gamma[i < weights ? i / (2 * f) : i - weights] * arg.sums[i], arg.scalars);
    if (threadIdx.x >= f) return;
    double total = (double)arg.bias[threadIdx.x] * (double)arg.sums[weights + threadIdx.x];
    for (int k = 0; k < 2 * f; k++) total += (double)arg.weight[threadIdx.x * 2 * f + k] * (double)arg.sums[threadIdx.x * 2 * f + k];
    store_gradient(arg.d_gamma + threadIdx.x, (float)total, arg.scalars);
}
#endif
