// The folded convolution: up.0, its pixel shuffle and conv_out as one. Nothing between them is
// nonlinear, so conv_out(shuffle(up(f))) is a 5x5 convolution of the LQ features whose outputs are
// the 3 s^2 values of an LQ pixel's HR square. The kernels here fold the two convolutions into it,
// and turn its gradients into theirs. Depends on features.cuh.
//
// The border differs: for conv_out features outside the HR image are zero, while the folded
// convolution sees what up.0 would have made there from the LQ pixels of the edge. So a correction
// is subtracted from HR pixels in the first and last row and column. It depends on LQ pixels of the
// same edge alone, since up.0 maps the zeros outside the image to zero: five taps along the edge;
// and where two edges meet, the one tap that both have subtracted is added once. These corrections
// are convolutions like the first, of few pixels, with weights and gradients of their own.
//
// The outputs of an LQ pixel are in groups of 16 "slots": four HR pixels (dy, dx) of its square,
// row by row, with R, G, B and an unused slot each. A group has 53 "entries", each [input
// channel][slot]:
//   0 .. 24          the 5x5 taps
//   25 + 7 e + 0..4  taps along edge e: first row, last row, first column, last column
//   25 + 7 e + 5, 6  of the first and last row: the tap where it meets the first and last column
// There is one bias [slot] for all pixels, one for each edge, and one for each end of the first and
// last row. Sums over pixels have the same layout.
//
// The features come in chunks of FEATURES. A group and a chunk are a "unit", number group x chunks +
// chunk, with entries of its own. The biases of a group are those of its first chunk, and 0 in the
// others; all chunks have the same sums for them.
#pragma once
#include "features.cuh"

#if PRECISION != 0
// The places of a pixel's twelve values in the products of tensor cores: eight, of which the third of
// every four is blue of the third or fourth HR pixel, then red and green of these two.
DEVICE constexpr int place_of(int slot) { return slot < 8 ? slot : slot % 4 == 2 ? slot / 4 * 4 - 5 : 8 + (slot - 8) / 4 * 2 + slot % 4; }
DEVICE constexpr int slot_at(int place) { return place >= 8 ? 8 + (place - 8) / 2 * 4 + place % 2 : place % 4 < 3 ? place : place + 7; }
static_assert(place_of(10) == 3 && place_of(14) == 7 && place_of(13) == 11 && slot_at(3) == 10 && slot_at(7) == 14 && slot_at(11) == 13, "inverse of each other");

// 16-byte words of the operands of a unit: of the forward pass, then of the backward pass. Each has those
// of the 25 taps, which are copied to shared memory, then those of the edges' entries.
//
// Forward: of each tap the first eight places, and the last four of the row of pixels and of the row
// below, whose tap is one row further up; then the last four of a sixth row (Pairs), which only the row
// below has.
// Backward: of two taps of a row the first eight places (10 fragments: for every row columns 0 and 1, then 2
// and 3); of two rows and two columns the last four (6; rows 0 and 1, 2 and 3, 4); and of column 4 the
// first eight of one row with the last four of it and the next (5; rows 1 and 3 without these).
#define FORWARD_FRAGMENTS (FORWARD_TAPS + EDGE_ENTRIES * FRAGMENT)
static_assert(FORWARD_TAPS == 25 * FRAGMENT + 5 * FRAGMENT / 2 && BACKWARD_TAPS == 21 * FRAGMENT, "the lowering reserves what the operands need");
static_assert(GROUP_FRAGMENTS == FORWARD_FRAGMENTS + BACKWARD_TAPS + EDGE_ENTRIES * FRAGMENT, "the lowering reserves what the operands need");

// Where a value of an operand is: row k of 16 and column of 8, in the order of a lane's registers: 16
// bytes hold b[0], b[1] of the first eight columns, then of the second.
DEVICE int fragment_half(int fragment, int k, int column, bool second) {
    return ((fragment * FRAGMENT + column * 4 + k % 8 / 2) * 4 + second * 2 + k / 8) * 2 + k % 2;
}
// Stores the value of an entry of the forward pass: of a tap (e < 25), or of an edge.
DEVICE void store_forward(u16* to, int e, int ci, int slot, u16 value) {
    int place = place_of(slot), column = place % 8, u = e / 5, v = e % 5;
    if (slot % 4 == 3) return;
    if (e >= 25) {
        u16* entry = to + (FORWARD_TAPS + (e - 25) * FRAGMENT) * 8;
        entry[fragment_half(0, ci, column, place >= 8)] = value;
        if (place >= 8) entry[fragment_half(0, ci, column + 4, true)] = value;
        return;
    }
    if (place < 8) {
        to[fragment_half(e, ci, column, false)] = value;
        return;
    }
    // of strip row `row`: the row of pixels itself, and the row below
    auto store = [&](int row, int column, u16 value) {
        if (row < 5) to[fragment_half(row * 5 + v, ci, column, true)] = value;
        else to[25 * FRAGMENT * 8 + ((v * FRAGMENT + column * 4 + ci % 8 / 2) * 2 + ci / 8) * 2 + ci % 2] = value;
    };
    store(u, column, value);
    store(u + 1, column + 4, value);
    if (u == 0) store(0, column + 4, 0);
    if (u == 4) store(5, column, 0);
}
// The same of the backward pass; taps are mirrored.
DEVICE void store_backward(u16* to, int e, int ci, int slot, u16 value) {
    // columns are distributed over the two eights so that a lane's four results of one pixel are neighbours
    int column = (ci >> 2) * 2 + (ci & 1), place = place_of(slot);
    bool second = ci >> 1 & 1, last = place >= 8;
    if (e >= 25) {
        int tap = (e - 25) % 7, turned = tap < 5 ? e - tap + 4 - tap : e;
        u16* entry = to + (BACKWARD_TAPS + (turned - 25) * FRAGMENT) * 8;
        // rows 12 .. 15 are those of the pixel below, which has no part in it
        if (slot % 4 == 3) entry[fragment_half(0, 12 + slot / 4, column, second)] = 0;
        else entry[fragment_half(0, place, column, second)] = value;
        return;
    }
    if (slot % 4 == 3) return;
    int u = 4 - e / 5, v = 4 - e % 5, k = last ? u % 2 * 4 + place - 8 : place;
    int fragment = v < 4 ? (last ? 10 + u / 2 * 2 : u * 2) + v / 2 : 16 + (last ? u / 2 * 2 : u);
    k += v < 4 ? v % 2 * 8 : last ? 8 : 0;
    to[fragment_half(fragment, k, column, second)] = value;
    // there is no row after the last one
    if (last && u == 4) to[fragment_half(fragment, k + 4, column, second)] = 0;
}
#endif

// The operands are multiplied by it, and results are divided by it: with a small gain the weights
// are subnormal in fp16 (below 6e-5), which would round them coarsely. A power of two does not
// change the rounding of other weights.
#if PRECISION == 2
#define FOLDED_SCALE 256.0f
#else
#define FOLDED_SCALE 1.0f
#endif

DEVICE int slot_groups(int scale) { return (scale * scale + 3) / 4; }

// The HR pixel of an LQ pixel's square that a slot belongs to, and its channel.
struct Slot {
    int dy, dx, channel;
    bool exists;
};
DEVICE Slot slot_of(int group, int slot, int scale) {
    Slot s;
    int place = group * 4 + slot / 4;
    s.dy = place / scale;
    s.dx = place - s.dy * scale;
    s.channel = slot % 4;
    s.exists = place < scale * scale && s.channel < 3;
    return s;
}

// Along one side: for tap k of conv_out at HR position `place` of a square, the position `place`
// that it reads in that LQ pixel's square, and by how many LQ pixels up.0's taps are shifted within
// the five of the folded convolution.
struct Reach {
    int place, shift;
};
DEVICE Reach reach(int scale, int place, int k) {
    int at = scale + place + k - 1;
    Reach r;
    r.shift = at / scale;
    r.place = at - r.shift * scale;
    return r;
}

// The taps of conv_out that an entry is made of, and its position among the 5x5. A bias has the
// same taps as the first entry of its kind.
struct Entry {
    int u, v;            // row and column of the 5x5
    int ky, ky_end;      // rows of conv_out's taps
    int kx, kx_end;      // columns
    float sign;
};
DEVICE Entry entry_of(int e, Slot s, int scale) {
    Entry n = {2, 2, 0, 3, 0, 3, 1.0f};
    if (e < 25) {
        n.u = e / 5;
        n.v = e % 5;
        return n;
    }
    int edge = (e - 25) / 7, j = (e - 25) % 7;
    bool rows = edge < 2, corner = j >= 5;
    n.sign = corner ? 1.0f : -1.0f;
    if (!corner) (rows ? n.v : n.u) = j;
    int down = rows ? edge : -1, across = rows ? (corner ? j - 5 : -1) : edge - 2;
    // only the first or last position of a square is at an edge, and only through conv_out's first
    // or last tap
    if (down >= 0) {
        n.ky = 2 * down;
        n.ky_end = s.dy == down * (scale - 1) ? n.ky + 1 : n.ky;
    }
    if (across >= 0) {
        n.kx = 2 * across;
        n.kx_end = s.dx == across * (scale - 1) ? n.kx + 1 : n.kx;
    }
    if (corner && !rows) n.ky_end = n.ky;
    return n;
}

// Offset of an entry among the f32 of its unit; and of a bias: of all pixels (edge -1), or of kind
// 0 .. 2 of an edge (the edge, its two ends).
DEVICE int entry_at(int e) { return e < 25 ? e * ENTRY : INTERIOR_SUMS + (e - 25) / 7 * EDGE_SUMS + (e - 25) % 7 * ENTRY; }
DEVICE int bias_at(int edge, int kind) { return edge < 0 ? 25 * ENTRY : INTERIOR_SUMS + edge * EDGE_SUMS + 7 * ENTRY + kind * 16; }

// Folds the convolutions: writes the f32 entries without the gain and, in half precision, the
// operands times the gain and FOLDED_SCALE, once for the forward pass and once with taps mirrored and
// channels exchanged for the backward pass. Grid: (54, units), one block for each entry; the last one makes
// all biases.
KERNEL(fold_conv) {
    const int scale = arg.scale, features = FEATURES * arg.chunks;
    int e = blockIdx.x, unit = blockIdx.y, group = unit / arg.chunks, chunk = unit - group * arg.chunks;
    int slot = threadIdx.x % 16, ci = threadIdx.x / 16, squares = scale * scale;
    Slot s = slot_of(group, slot, scale);
    float* own = arg.folded + unit * GROUP_SUMS;
    if (e == ENTRIES) {
        // thirteen biases: one of all pixels, three of each edge
        int kind = ci - 1, edge = kind < 0 ? -1 : kind / 3;
        if (kind >= 12) return;
        Entry n = entry_of(kind < 0 ? 0 : 25 + 7 * edge + (kind % 3 ? 4 + kind % 3 : 0), s, scale);
        bool counts = s.exists && chunk == 0;
        float sum = kind < 0 && counts ? arg.parameters.bias[s.channel] : 0.0f;
        if (counts) {
            for (int ky = n.ky; ky < n.ky_end; ky++) {
                for (int kx = n.kx; kx < n.kx_end; kx++) {
                    const float* from = arg.parameters.up_bias + reach(scale, s.dy, ky).place * scale + reach(scale, s.dx, kx).place;
                    for (int c = 0; c < features; c++)
                        sum += n.sign * arg.parameters.weight[(s.channel * features + c) * 9 + ky * 3 + kx] * from[c * squares];
                }
            }
        }
        own[bias_at(edge, kind < 0 ? 0 : kind % 3) + slot] = sum;
        return;
    }
    Entry n = entry_of(e, s, scale);
    float sum = 0;
    if (s.exists) {
        for (int ky = n.ky; ky < n.ky_end; ky++) {
            Reach down = reach(scale, s.dy, ky);
            for (int kx = n.kx; kx < n.kx_end; kx++) {
                Reach across = reach(scale, s.dx, kx);
                int ty = n.u - down.shift, tx = n.v - across.shift;
                if (ty < 0 || ty > 2 || tx < 0 || tx > 2) continue;
                const float* weight = arg.parameters.weight + s.channel * features * 9 + ky * 3 + kx;
                const float* from = arg.parameters.up_weight + ((down.place * scale + across.place) * features + chunk * FEATURES + ci) * 9 + ty * 3 + tx;
                // a chunk's loads are issued together
                ROLLED
                for (int first = 0; first < features; first += FEATURES) {
                    UNROLL
                    for (int c = first; c < first + FEATURES; c++) sum += weight[c * 9] * from[c * squares * features * 9];
                }
            }
        }
    }
    sum *= n.sign;
    own[entry_at(e) + threadIdx.x] = sum;
#if PRECISION != 0
    u16* fragments = (u16*)(arg.folded + gridDim.y * GROUP_SUMS) + unit * GROUP_FRAGMENTS * 8;
    u16 half = to_half(FOLDED_SCALE * *arg.parameters.gain * sum);
    store_forward(fragments, e, ci, slot, half);
    store_backward(fragments + FORWARD_FRAGMENTS * 8, e, ci, slot, half);
#endif
}

// The sums of a backward pass, without the gain: over all pixels, and over the pixels of edges.
struct FoldedSums {
    const TwoFloats* interior;  // [units][INTERIOR_SUMS]
    const TwoFloats* edges;     // [units][4][EDGE_SUMS]
    int scale, chunks;
};

// What a sum over all pixels is without that over an edge, or with it again: rounded as f32 where the
// upper parts do not cancel, like the partial sums that both are made of.
DEVICE void subtract(TwoFloats& sum, TwoFloats edge) {
    sum.high -= edge.high;
    sum.low -= edge.low;
}
DEVICE void add_again(TwoFloats& sum, TwoFloats corner) {
    sum.high += corner.high;
    sum.low += corner.low;
}

// A tap of conv_out at a position of the square, along one side: which folded sums it contributes
// to, and the edge at which it reads zeros.
struct SideTap {
    Reach reach;
    int edge;  // 0 first, 1 last, -1 none
};
DEVICE SideTap side_tap(int scale, int place, int k) {
    SideTap m;
    m.reach = reach(scale, place, k);
    m.edge = place + k == 0 ? 0 : place + k == scale + 1 ? 1 : -1;
    return m;
}

// The gradient of the product of conv_out's tap (given along both sides) and tap (ty, tx) of up.0
// for input channel `ci`.
DEVICE TwoFloats tap_gradient(const FoldedSums& t, const SideTap& down, const SideTap& across, int dy, int dx, int channel, int ci, int ty, int tx) {
    int place = dy * t.scale + dx, unit = place / 4 * t.chunks + ci / FEATURES, at = ci % FEATURES * 16 + place % 4 * 4 + channel;
    int u = down.reach.shift + ty, v = across.reach.shift + tx;
    const TwoFloats* edges = t.edges + unit * 4 * EDGE_SUMS + at;
    TwoFloats sum = t.interior[unit * INTERIOR_SUMS + (u * 5 + v) * ENTRY + at];
    bool row = down.edge >= 0 && u == 2, column = across.edge >= 0 && v == 2;
    if (row) subtract(sum, edges[down.edge * EDGE_SUMS + v * ENTRY]);
    if (column) subtract(sum, edges[(2 + across.edge) * EDGE_SUMS + u * ENTRY]);
    if (row && column) add_again(sum, edges[down.edge * EDGE_SUMS + (5 + across.edge) * ENTRY]);
    return sum;
}
// The same with up.0's bias.
DEVICE TwoFloats bias_gradient(const FoldedSums& t, const SideTap& down, const SideTap& across, int dy, int dx, int channel) {
    int place = dy * t.scale + dx, unit = place / 4 * t.chunks, at = place % 4 * 4 + channel;
    const TwoFloats* edges = t.edges + unit * 4 * EDGE_SUMS + 7 * ENTRY + at;
    TwoFloats sum = t.interior[unit * INTERIOR_SUMS + 25 * ENTRY + at];
    if (down.edge >= 0) subtract(sum, edges[down.edge * EDGE_SUMS]);
    if (across.edge >= 0) subtract(sum, edges[(2 + across.edge) * EDGE_SUMS]);
    if (down.edge >= 0 && across.edge >= 0) add_again(sum, edges[down.edge * EDGE_SUMS + (1 + across.edge) * 16]);
    return sum;
}

DEVICE void add_gradient(float* to, float value, const DeviceScalars* scalars) { *to = scalars->accumulate ? *to + value : value; }

// Turns the sums into the gradients of everything that the folded convolution is made of. Blocks:
// one for every 256 weights of up.0; a warp for every weight of conv_out; one for both
// biases; one for the gain, whose gradient is the sum of all folded weights times their gradients.
// Shared memory: 8 bytes a thread.
KERNEL(unfold_gradients) {
    const int scale = arg.scale, features = FEATURES * arg.chunks;
    FoldedSums t = {arg.interior, arg.edges, scale, arg.chunks};
    int squares = scale * scale, weights = features * squares * features * 9, block = blockIdx.x, blocks = (weights + 255) / 256;
    float strength = *arg.parameters.gain;
    if (block < blocks) {
        int i = block * 256 + threadIdx.x;
        if (i >= weights) return;
        int tap = i % 9, ci = i / 9 % features, out = i / 9 / features, c = out / squares, py = out % squares / scale, px = out % scale;
        TwoFloats sum = {0, 0};
        for (int ky = 0; ky < 3; ky++) {
            int dy = (py - ky + 1 + scale) % scale;
            SideTap down = side_tap(scale, dy, ky);
            for (int kx = 0; kx < 3; kx++) {
                int dx = (px - kx + 1 + scale) % scale;
                SideTap across = side_tap(scale, dx, kx);
                UNROLL
                for (int o = 0; o < 3; o++)
                    add_product(sum, arg.parameters.weight[(o * features + c) * 9 + ky * 3 + kx], tap_gradient(t, down, across, dy, dx, o, ci, tap / 3, tap % 3));
            }
        }
        add_gradient(arg.gradients.up_weight + i, strength * to_float(sum), arg.scalars);
        return;
    }
    block -= blocks;
    if (block < 27 * features / 8) {
        int i = block * 8 + threadIdx.x / 32, k = i % 9, c = i / 9 % features, o = i / 9 / features;
        TwoFloats sum = {0, 0};
        for (int place = 0; place < squares; place++) {
            int dy = place / scale, dx = place - dy * scale;
            SideTap down = side_tap(scale, dy, k / 3), across = side_tap(scale, dx, k % 3);
            int out = (c * scale + down.reach.place) * scale + across.reach.place;
            for (int j = threadIdx.x % 32; j < features * 9; j += 32)
                add_product(sum, arg.parameters.up_weight[out * features * 9 + j], tap_gradient(t, down, across, dy, dx, o, j / 9, j % 9 / 3, j % 3));
            if (threadIdx.x % 32 == 0) add_product(sum, arg.parameters.up_bias[out], bias_gradient(t, down, across, dy, dx, o));
        }
        // lanes are added in memory, in the order of a tree
        TwoFloats* lanes = (TwoFloats*)shared_memory() + threadIdx.x / 32 * 32;
        int lane = threadIdx.x % 32;
        lanes[lane] = sum;
        warp_barrier();
        for (int half = 16; half > 0; half /= 2) {
            if (lane < half) add(lanes[lane], lanes[lane + half]);
            warp_barrier();
        }
        if (lane == 0) add_gradient(arg.gradients.weight + i, strength * to_float(lanes[0]), arg.scalars);
        return;
    }
    block -= 27 * features / 8;
    if (block == 0) {
        for (int i = threadIdx.x; i < features * squares + 3; i += 256) {
            TwoFloats sum = {0, 0};
            if (i >= features * squares) {
                int o = i - features * squares;
                for (int place = 0; place < squares; place++) add(sum, arg.interior[place / 4 * arg.chunks * INTERIOR_SUMS + 25 * ENTRY + place % 4 * 4 + o]);
                add_gradient(arg.gradients.bias + o, strength * to_float(sum), arg.scalars);
                continue;
            }
            int c = i / squares, py = i % squares / scale, px = i % scale;
            for (int ky = 0; ky < 3; ky++) {
                int dy = (py - ky + 1 + scale) % scale;
                // their loads are issued together
                UNROLL
                for (int kx = 0; kx < 3; kx++) {
                    int dx = (px - kx + 1 + scale) % scale;
                    for (int o = 0; o < 3; o++)
                        add_product(sum, arg.parameters.weight[(o * features + c) * 9 + ky * 3 + kx],
                                    bias_gradient(t, side_tap(scale, dy, ky), side_tap(scale, dx, kx), dy, dx, o));
                }
            }
            add_gradient(arg.gradients.up_bias + i, strength * to_float(sum), arg.scalars);
        }
        return;
    }
    TwoFloats product = {0, 0};
    for (int i = threadIdx.x; i < slot_groups(scale) * arg.chunks * GROUP_SUMS; i += 256) {
        int unit = i / GROUP_SUMS, at = i % GROUP_SUMS;
        TwoFloats sum = at < INTERIOR_SUMS ? arg.interior[unit * INTERIOR_SUMS + at] : arg.edges[unit * 4 * EDGE_SUMS + at - INTERIOR_SUMS];
        add_product(product, arg.folded[i], sum);
    }
    TwoFloats total = block_sum<256>((TwoFloats*)shared_memory(), product);
    if (threadIdx.x == 0) add_gradient(arg.gradients.gain, to_float(total), arg.scalars);
}
