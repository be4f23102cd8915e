// The reconstruction and its gradients on tensor cores, for half precision. The kernels are
// described in reconstruct.cu. Depends on base.cuh and folded_conv.cuh.
//
// An LQ pixel has twelve results, and a product has columns, or steps, of eight. So the first eight
// places (folded_conv.cuh) of a pixel are computed by themselves, and the last four of two pixels, one
// below the other, together: eight again.
//
// A tile of 16 values a pixel is two planes of eight, HALF_PLANE 16-byte pieces apart, so that any eight
// neighbours, and the two planes, are in different banks. Of features these are the channels 0 .. 7 and 8
// .. 15; of a gradient the first eight places, and the last four of the pixel and of the pixel below it.
#pragma once
#include "base.cuh"
#include "folded_conv.cuh"
#include "mma.cuh"

// Blocks for each multiprocessor; sm_75 has room for one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define RECONSTRUCT_BLOCKS 1
#else
#define RECONSTRUCT_BLOCKS 2
#endif

// The address in a tile that a lane gives to load_matrices for both planes of the strip of 16 pixels from
// (row, column) on.
DEVICE const Wide* strip_at(const Wide* tile, int row, int column) {
    int lane = threadIdx.x % 32;
    return tile + lane / 16 * HALF_PLANE + row * REACHED + column + lane % 16;
}
// The lower or the upper words of a fragment: the operand of the first or the second eight columns.
struct Halves {
    u32 low[2], high[2];
};
DEVICE Halves halves(Wide f) { return {{f.word[0], f.word[1]}, {f.word[2], f.word[3]}}; }

// The forward results of 16 pixels of a row, for two rows.
struct Results {
    float first[2][4];  // [row][see mma_16x8x16]: the first eight places
    float last[4];      // columns 0 .. 3: the last four places of the upper row, 4 .. 7: of the lower row
};
// The folded biases of a lane's results: of places 2t and 2t + 1, and of two of the last four.
struct Biases {
    float first[2], last[2];
};
DEVICE Biases load_biases(const float* of_slots, const float* gain) {
    int t = threadIdx.x % 4;
    float strength = FOLDED_SCALE * *gain;
    Biases b;
    UNROLL
    for (int i = 0; i < 2; i++) {
        b.first[i] = strength * of_slots[slot_at(2 * t + i)];
        b.last[i] = strength * of_slots[slot_at(8 + t % 2 * 2 + i)];
    }
    return b;
}
DEVICE void add(Results& s, Biases b) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        s.first[0][i] += b.first[i % 2];
        s.first[1][i] += b.first[i % 2];
        s.last[i] += b.last[i % 2];
    }
}

// Adds the products of the 5x5 neighbourhood of a warp's two rows of pixels and the weights. Each
// fragment of pixels is used for up to five rows of taps. The order of a result's sum is the same in both
// rows, but for products with zeros.
template <bool UNROLLED>
DEVICE void multiply(Results& s, const Wide* tile, const Wide* weights) {
    const Wide* first = strip_at(tile, threadIdx.x / 32 * 2, 0);
    const Wide* fragments = weights + threadIdx.x % 32;
    const Pair* lowest = (const Pair*)(weights + 25 * FRAGMENT) + threadIdx.x % 32;
    UNROLL_IF(UNROLLED)
    for (int v = 0; v < 5; v++) {
        u32 a[6][4];
        UNROLL
        for (int row = 0; row < 6; row++) load_matrices(a[row], first + row * REACHED + v);
        UNROLL
        for (int u = 0; u < 5; u++) {
            Halves f = halves(fragments[(u * 5 + v) * FRAGMENT]);
            mma_16x8x16(s.first[0], a[u], f.low);
            mma_16x8x16(s.first[1], a[u + 1], f.low);
            mma_16x8x16(s.last, a[u], f.high);
        }
        mma_16x8x16(s.last, a[5], lowest[v * FRAGMENT].word);
    }
}
// All bits in the lanes that have the last four places of row `row`, none in others. The compiler must not know
// it, or it makes one of two loops for either kind of lanes, which have to run products together.
DEVICE u32 lanes_of(int row, int lane_half) { return (u32)anew(lane_half == row ? -1 : 0); }
// Edges are computed for one row after the other, which then is the first of the two.
DEVICE void exchange_rows(Results& s) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        float first = s.first[0][i];
        s.first[0][i] = s.first[1][i];
        s.first[1][i] = first;
    }
}
// Adds the products of an entry of an edge for pixels of row `row`.
DEVICE void multiply_row(Results& s, int row, const u32 (&a)[4], Halves f) {
    // as the operand has them, column by column
    u32 own = lanes_of(row, threadIdx.x % 32 / 16);
    mma_16x8x16(s.first[0], a, f.low);
    mma_16x8x16(s.last, a, {f.high[0] & own, f.high[1] & own});
}

// The gradient of 16 features of 16 pixels of a row, for two rows.
struct Square {
    float sum[2][2][4];  // [row][matrix of 8 features][see mma_16x8x16]
};
DEVICE void multiply(Square& s, int row, const u32 (&a)[4], Halves f) {
    mma_16x8x16(s.sum[row][0], a, f.low);
    mma_16x8x16(s.sum[row][1], a, f.high);
}
DEVICE void exchange_rows(Square& s) {
    UNROLL
    for (int i = 0; i < 8; i++) {
        float first = s.sum[0][i / 4][i % 4];
        s.sum[0][i / 4][i % 4] = s.sum[1][i / 4][i % 4];
        s.sum[1][i / 4][i % 4] = first;
    }
}
DEVICE void multiply_row(Square& s, int, const u32 (&a)[4], Halves f) { multiply(s, 0, a, f); }
// Adds the products of the 5x5 neighbourhood of a warp's two rows and the weights: the taps are in the order of `weights` (folded_conv.cuh). Steps
// of eight are: the first eight places of a row, or the last four of a row and of the next.
DEVICE void multiply(Square& s, const Wide* d_tile, const Wide* weights) {
    int lane = threadIdx.x % 32, top = threadIdx.x / 32 * 2;
    const Wide* two_columns = d_tile + top * REACHED + lane % 16 + lane / 16;
    const Wide* fragments = weights + lane;
    u32 a[6][4];
    // the first eight places, then the last four, of taps 0 and 1 of a row, then of 2 and 3
    UNROLL
    for (int part = 0; part < 4; part++) {
        int last = part / 2, v = part % 2;
        UNROLL
        for (int row = 0; row < 6; row++) load_matrices(a[row], two_columns + last * HALF_PLANE + row * REACHED + 2 * v);
        UNROLL
        for (int u = 0; u < 5; u += 1 + last) {
            Halves f = halves(fragments[(last ? 10 + u / 2 * 2 + v : u * 2 + v) * FRAGMENT]);
            UNROLL
            for (int row = 0; row < 2; row++) multiply(s, row, a[u + row], f);
        }
    }
    // both of tap 4 of a row; the last four belong to the rows of taps 0, 2 and 4 only
    const Wide* both = strip_at(d_tile, top, 4);
    UNROLL
    for (int row = 0; row < 6; row++) load_matrices(a[row], both + row * REACHED);
    UNROLL
    for (int u = 0; u < 5; u++) {
        Halves f = halves(fragments[(16 + u) * FRAGMENT]);
        UNROLL
        for (int row = 0; row < 2; row++) {
            const u32(&own)[4] = a[u + row];
            if (u % 2 == 0) {
                multiply(s, row, own, f);
            } else {
                mma_16x8x8(s.sum[row][0], own[0], own[1], f.low[0], s.sum[row][0]);
                mma_16x8x8(s.sum[row][1], own[0], own[1], f.high[0], s.sum[row][1]);
            }
        }
    }
}

// Adds the products of one entry for the pixel `column` of a strip of a row, or for all its pixels (-1).
template <class Sums>
DEVICE void multiply_entry(Sums& s, int row, const Wide* pixels, Wide fragment, int column) {
    u32 a[4];
    load_matrices(a, pixels);
    if (column >= 0) {
        int group = threadIdx.x % 32 / 4;
        bool upper = group == column, lower = group + 8 == column;
        a[0] = upper ? a[0] : 0;
        a[2] = upper ? a[2] : 0;
        a[1] = lower ? a[1] : 0;
        a[3] = lower ? a[3] : 0;
    }
    multiply_row(s, row, a, halves(fragment));
}
// Adds the products of five entries along an edge for strips from (y, x) on, `down` or across.
// `AHEAD`: their loads are issued together, which needs 20 registers.
template <bool AHEAD, class Sums>
DEVICE void multiply_entries(Sums& s, int row, const Wide* tile, int y, int x, bool down, const Wide* from, int column) {
    from += threadIdx.x % 32;
    if constexpr (AHEAD) {
        Wide fragments[5];
        UNROLL
        for (int tap = 0; tap < 5; tap++) fragments[tap] = from[tap * FRAGMENT];
        UNROLL
        for (int tap = 0; tap < 5; tap++) multiply_entry(s, row, strip_at(tile, down ? y + tap : y, down ? x : x + tap), fragments[tap], column);
    } else {
        ROLLED
        for (int tap = 0; tap < 5; tap++) multiply_entry(s, row, strip_at(tile, down ? y + tap : y, down ? x : x + tap), from[tap * FRAGMENT], column);
    }
}

// Adds biases to the same pixels. In the backward pass there are none.
DEVICE void add_bias(Results& s, int row, const float* of_slots, const float* gain, int column) {
    Biases b = load_biases(of_slots, gain);
    int group = threadIdx.x % 32 / 4;
    // as the results have them
    u32 own = lanes_of(row, threadIdx.x % 4 / 2);
    UNROLL
    for (int i = 0; i < 4; i++) {
        bool on = column < 0 || group + i / 2 * 8 == column;
        s.first[0][i] += on ? b.first[i % 2] : 0.0f;
        s.last[i] += on ? bits_to_float(float_to_bits(b.last[i % 2]) & own) : 0.0f;
    }
}
DEVICE void add_bias(Square&, int, const float*, const float*, int) {}

// Adds the corrections of pixels at the image's edges. `fragments`: those of the edges, in device memory,
// since few tiles read them. `folded`: for the biases, in the forward pass. All lanes of
// a warp take the same branches.
template <bool AHEAD, class Sums>
DEVICE void multiply_edges(Sums& s, const Wide* tile, const Wide* fragments, const float* folded, const float* gain, Tile t, int h, int w) {
    if (t.y > 0 && t.x > 0 && t.y + TILE < h && t.x + TILE < w) return;
    const int top = threadIdx.x / 32 * 2;
    ROLLED
    for (int edge = 0; edge < 2; edge++) {
        const Wide* across = fragments + 7 * edge * FRAGMENT;
        int column = edge * (w - 1) - t.x;
        if (column >= 0 && column < TILE) {
            UNROLL_IF(AHEAD)
            for (int row = 0; row < 2; row++) {
                multiply_entries<AHEAD>(s, row, tile, top + row, 2, true, across + 14 * FRAGMENT, column);
                add_bias(s, row, folded + bias_at(2 + edge, 0), gain, column);
                exchange_rows(s);
            }
        }
        UNROLL_IF(AHEAD)
        for (int row = 0; row < 2; row++, exchange_rows(s)) {
            if (t.y + top + row != edge * (h - 1)) continue;
            multiply_entries<AHEAD>(s, row, tile, top + row + 2, 0, false, across, -1);
            add_bias(s, row, folded + bias_at(edge, 0), gain, -1);
            ROLLED
            for (int corner = 0; corner < 2; corner++) {
                int place = corner * (w - 1) - t.x;
                if (place < 0 || place >= TILE) continue;
                multiply_entry(s, row, strip_at(tile, top + row + 2, 2), across[(5 + corner) * FRAGMENT + threadIdx.x % 32], place);
                add_bias(s, row, folded + bias_at(edge, 1 + corner), gain, place);
            }
        }
    }
}

// A chunk of a tile's features on its way from device to shared memory: a thread has one piece of a
// pixel in every LINES rows. All loads of a tile are issued before the first value is stored.
struct FeatureInput {
    static const int ROW_PIECES = REACHED * 2, LINES = 256 / ROW_PIECES, ROUNDS = (REACHED + LINES - 1) / LINES;
    Wide loaded[ROUNDS];

    DEVICE_MEMBER void load(const act* features, Tile t, int h, int w, int chunk, int chunks) {
        int first = threadIdx.x / ROW_PIECES, piece = threadIdx.x - first * ROW_PIECES, x = t.x - 2 + piece / 2;
        bool within = first < LINES && (u32)x < (u32)w;
        // offsets within one image fit an int
        const Wide* image = (const Wide*)features + ((long long)t.image * h * w * chunks + chunk) * 2;
        UNROLL
        for (int round = 0; round < ROUNDS; round++) {
            int y = t.y - 2 + first + LINES * round;
            loaded[round] = {{0, 0, 0, 0}};
            if (within && (u32)y < (u32)h) loaded[round] = image[(y * w + x) * chunks * 2 + piece % 2];
        }
    }
    DEVICE_MEMBER void store(Wide* tile) const {
        int first = threadIdx.x / ROW_PIECES, piece = threadIdx.x - first * ROW_PIECES;
        Wide* to = tile + piece % 2 * HALF_PLANE + first * REACHED + piece / 2;
        UNROLL
        for (int round = 0; round < ROUNDS; round++) {
            bool last = LINES * (round + 1) > REACHED && first + LINES * round >= REACHED;
            if (first < LINES && !last) to[LINES * REACHED * round] = loaded[round];
        }
    }
};

// Copies COUNT words of fragments to shared memory.
template <int COUNT>
DEVICE void copy_fragments(Wide* to, const Wide* from) {
    UNROLL
    for (int round = 0; round < (COUNT + 255) / 256; round++) {
        int i = threadIdx.x + 256 * round;
        if (i < COUNT) to[i] = from[i];
    }
}

// The tiles of a block in rounds of all blocks. With each round a block moves SPREAD places on: tiles at an edge
// of the image cost more, and images are often as many tiles wide as divide the number of blocks, so without
// that some blocks would have edges only and the launch would wait for them. 0 needs a register less.
template <int SPREAD>
struct SpreadTiles {
    int round = SPREAD ? 0 : blockIdx.x, place = SPREAD ? blockIdx.x : 0;
    DEVICE_MEMBER int index() const { return round + place; }
    DEVICE_MEMBER void move_on() {
        round += gridDim.x;
        if (SPREAD) place = (u32)(place + SPREAD) % gridDim.x;
    }
};

// SCALE: 2, or 0 for any scale. CHUNKS: 1, or 0 for any number of features.
template <int SCALE, int CHUNKS>
DEVICE void reconstruct_tiles(const ReconstructArguments& arg) {
    // the kernel with the fewest indices has registers for what is loaded ahead of its use
    const bool AHEAD = SCALE == 2 && CHUNKS == 1;
    const int h = arg.h, w = arg.w;
    const int scale = SCALE ? SCALE : arg.scale, groups = slot_groups(scale), chunks = CHUNKS ? CHUNKS : arg.chunks;
    Wide* tile = (Wide*)shared_memory();
    Wide* weights = tile + 2 * HALF_PLANE;
    float* cells = (float*)(weights + FORWARD_TAPS);
    float* raw = cells + BASE_CELLS;
    float* rows = raw + BASE_RAW;
    float* taps = rows + BASE_ROWS;
    const Wide* fragments = (const Wide*)(arg.folded + groups * chunks * GROUP_SUMS);
    base_taps(taps, scale);
    if (SCALE == 2) copy_fragments<FORWARD_TAPS>(weights, fragments);
    SquareOutput f = {taps, cells, arg.output, arg.target, 0, arg.loss_partials != nullptr, {0, 0, 0, 0}, 0, h, w, scale};
    if (f.losses) f.terms = pixel_terms(arg.l1, arg.charbonnier, arg.mse, arg.whole, arg.scalars);
    TwoFloats lost = {0, 0};
    ROLLED
    for (SpreadTiles<13> own; own.index() < tile_count(arg.images, h, w); own.move_on()) {
        Tile t = tile_at(own.index(), h, w);
        // loads return in order, so the values that are needed first are loaded last
        f.code = arg.target ? arg.codes[t.image] : 0u;
        Biases biases = {{0, 0}, {0, 0}};
        if (AHEAD) biases = load_biases(arg.folded + bias_at(-1, 0), arg.gain);
        FeatureInput in;
        in.load(arg.features, t, h, w, 0, chunks);
        BaseInput<256> base_in;
        base_in.load(arg.input + (long long)t.image * h * w * 3, h, w, t.y, t.x);
        in.store(tile);
        // those of the last chunk are there
        if (SCALE == 2 && chunks > 1) copy_fragments<FORWARD_TAPS>(weights, fragments);
        base_in.store(raw, arg.target != nullptr);
        // its barriers also make the features visible
        base_cells<256>(raw, rows, cells, h, w, t.y, t.x, arg.alpha);
        ROLLED
        for (int group = 0; group < groups; group++) {
            const float* f32 = arg.folded + group * chunks * GROUP_SUMS;
            Results s = {{{0, 0, 0, 0}, {0, 0, 0, 0}}, {0, 0, 0, 0}};
            if (AHEAD) add(s, biases);
            // counted from after the base's loops, which lanes leave at different times
            ROLLED
            for (int chunk = CHUNKS ? 0 : anew(0); chunk < chunks; chunk++) {
                const Wide* own = fragments + (group * chunks + chunk) * GROUP_FRAGMENTS;
                if (SCALE != 2 || chunk > 0) {
                    if (group > 0 || chunk > 0) barrier();
                    copy_fragments<FORWARD_TAPS>(weights, own);
                    if (chunks > 1 && (group > 0 || chunk > 0)) {
                        FeatureInput next;
                        next.load(arg.features, t, h, w, chunk, chunks);
                        next.store(tile);
                    }
                    barrier();
                }
                multiply<SCALE == 2>(s, tile, weights);
                multiply_edges<AHEAD>(s, tile, own + FORWARD_TAPS, f32 + chunk * GROUP_SUMS, arg.gain, t, h, w);
            }
            if (!AHEAD) add(s, load_biases(f32 + bias_at(-1, 0), arg.gain));
            // makes the base visible; with a single group of slots the tile and the scratch are
            // free from here on
            if (group == 0) {
                barrier();
            }
            // the square that a lane finishes, once it has exchanged its results for those of one LQ
            // pixel
            u32 thread = thread_anew();
            int lane = thread % 4, row = thread / 32 * 2 + lane / 2, column = thread % 32 / 4 + lane % 2 * 8;
            TargetSquare target_rgb;
            if (SCALE == 2) load_target(target_rgb, f, t, row, column);
            // lane t of four has places 2t and 2t + 1 of four LQ pixels: (row, half) 0 .. 3. It needs all
            // of LQ pixel t: a transposition in two rounds
            float value[4][2];
            UNROLL
            for (int i = 0; i < 8; i++) value[i / 2][i % 2] = s.first[i / 4][i % 4];
            UNROLL
            for (int bit = 1; bit < 4; bit *= 2) {
                bool odd = lane & bit;
                UNROLL
                for (int i = 0; i < 4; i++) {
                    if (i & bit) continue;
                    UNROLL
                    for (int o = 0; o < 2; o++) {
                        float sent = shuffle_xor(odd ? value[i][o] : value[i + bit][o], bit);
                        if (odd) value[i][o] = sent;
                        else value[i + bit][o] = sent;
                    }
                }
            }
            // of the last four places it has two of both halves of its row, and its neighbour the others
            float place[12];
            UNROLL
            for (int i = 0; i < 8; i++) place[i] = value[i / 2][i % 2];
            UNROLL
            for (int i = 0; i < 2; i++) {
                bool odd = lane % 2;
                float kept = odd ? s.last[2 + i] : s.last[i], other = shuffle_xor(odd ? s.last[i] : s.last[2 + i], 1);
                place[8 + i] = odd ? other : kept;
                place[10 + i] = odd ? kept : other;
            }
            float detail[12];
            UNROLL
            for (int i = 0; i < 12; i++) detail[i] = place[place_of(i / 3 * 4 + i % 3)] * (1.0f / FOLDED_SCALE);
            f.group = group;
            add(lost, SCALE == 2 ? store_square_x2(f, detail, target_rgb, t, row, column) : store_square(f, detail, t, row, column));
        }
        if (SCALE != 2) barrier();
    }
    if (!f.losses) return;
    barrier();
    TwoFloats total = block_sum<256>((TwoFloats*)shared_memory(), lost);
    if (threadIdx.x == 0) arg.loss_partials[blockIdx.x] = to_double(total);
}

// Scale 2 has kernels of its own, which need half as many registers for indices: for 16 features, and
// for more.
KERNEL_CROWDED(reconstruct, RECONSTRUCT_BLOCKS) { reconstruct_tiles<0, 0>(arg); }
KERNEL_CROWDED(reconstruct_x2, RECONSTRUCT_BLOCKS) { reconstruct_tiles<2, 1>(arg); }
KERNEL_CROWDED(reconstruct_x2_deep, RECONSTRUCT_BLOCKS) { reconstruct_tiles<2, 0>(arg); }

// The gradient of a group's slots on its way to shared memory in half precision, with two pixels
// more on each side; a thread has an HR pixel of an LQ pixel in every LINES rows.
struct SlotInput {
    static const int LINES = 256 / (REACHED * 4), ROUNDS = (REACHED + LINES - 1) / LINES;
    float d[ROUNDS][3];

    DEVICE_MEMBER void load(const float* d_output, int group, Tile t, int h, int w, int scale) {
        int first = threadIdx.x / (REACHED * 4), x = t.x - 2 + (int)threadIdx.x / 4 - first * REACHED;
        Slot s = slot_of(group, threadIdx.x % 4 * 4, scale);
        bool within = first < LINES && s.exists && (u32)x < (u32)w;
        // offsets within one image fit an int
        int step = scale * 3, pitch = w * scale * step;
        const float* image = d_output + (long long)t.image * h * pitch + (s.dy * w * scale + s.dx) * 3 + x * step;
        UNROLL
        for (int round = 0; round < ROUNDS; round++) {
            int y = t.y - 2 + first + LINES * round;
            bool there = within && (u32)y < (u32)h;
            UNROLL
            for (int o = 0; o < 3; o++) d[round][o] = there ? image[y * pitch + o] : 0.0f;
        }
    }
    // Stores them at their places, and adds those of the tile itself to `sums`.
    DEVICE_MEMBER void store(Wide* tile, float (&sums)[3]) const {
        int first = threadIdx.x / (REACHED * 4), column = threadIdx.x / 4 - first * REACHED, square = threadIdx.x % 4, half = square % 2;
        bool own = column >= 2 && column < TILE + 2, last = square >= 2;
        Wide* pixel = tile + first * REACHED + column;
        UNROLL
        for (int round = 0; round < ROUNDS; round++) {
            int line = first + LINES * round;
            if (first >= LINES || (LINES * (round + 1) > REACHED && line >= REACHED)) continue;
            UNROLL
            for (int o = 0; o < 3; o++) sums[o] += own && line >= 2 && line < TILE + 2 ? d[round][o] : 0.0f;
            Wide* to = pixel + LINES * REACHED * round;
            u32 two = pack_half(d[round][0], d[round][1]);
            ((u16*)to)[4 * half + 2 + last] = to_half(d[round][2]);
            if (last) {
                to[HALF_PLANE].word[half] = two;
                // the pixel above has it as that of the pixel below
                if (line > 0) to[HALF_PLANE - REACHED].word[2 + half] = two;
            } else {
                to->word[2 * half] = two;
            }
        }
    }
};
// The last row has no row below it; the weights are zero there.
DEVICE void clear_below(Wide* d_tile) {
    if (threadIdx.x >= REACHED) return;
    Wide* to = d_tile + HALF_PLANE + (REACHED - 1) * REACHED + threadIdx.x;
    to->word[2] = to->word[3] = 0;
}

// A strip of 16 pixels of an edge, as a warp has it in shared memory: the features of 20 pixels, two
// planes of eight channels; the gradient in half precision, two planes of eight slots.
struct EdgeStrip {
    Wide features[2][20], gradient[2][16];
};
static_assert(sizeof(EdgeStrip) + EDGE_SUMS * sizeof(float) == EDGE_BYTES, "the lowering reserves what a warp needs");
// The sums of one edge; EDGE_WARPS warps take strips of their own. `first`: the block's first strip; `all`:
// EDGE_SUMS f32 for each warp.
DEVICE void edge_sums(EdgeStrip* strip, float* all, const ReconstructBackArguments& arg, int edge, int first, int unit, int units, int scale) {
    const int h = arg.h, w = arg.w;
    Lane l = lane_position();
    strip += l.warp;
    bool rows = edge < 2;
    int length = rows ? w : h, strips = (length + 15) / 16, fixed = edge % 2 == 0 ? 0 : (rows ? h : w) - 1;
    int group = unit / arg.chunks, chunk = unit - group * arg.chunks;
    Slot slot = slot_of(group, l.t * 4, scale);
    // warps that have a strip
    int left = (arg.images * strips - first + arg.edge_blocks - 1) / arg.edge_blocks, warps = left < EDGE_WARPS ? left : EDGE_WARPS;
    float sum[7][2][4], bias[3][3];  // of seven entries; of all pixels and both ends, the channels of an HR pixel
    UNROLL
    for (int i = 0; i < 56; i++) sum[i / 8][i / 4 % 2][i % 4] = 0;
    UNROLL
    for (int i = 0; i < 9; i++) bias[i / 3][i % 3] = 0;
    ROLLED
    for (int mine = l.warp; mine < left && l.warp < warps; mine += warps) {
        int number = first + mine * arg.edge_blocks;
        int image = number / strips, start = (number - image * strips) * 16, end = length - 1 - start;
        long long pixels = (long long)image * h * w;
        UNROLL
        for (int i = 0; i < 2; i++) {
            int piece = l.lane + 32 * i, along = start - 2 + piece / 2;
            if (piece >= 40) continue;
            Wide v = {{0, 0, 0, 0}};
            if (along >= 0 && along < length)
                v = ((const Wide*)arg.features)[((pixels + (rows ? fixed * w + along : along * w + fixed)) * arg.chunks + chunk) * 2 + piece % 2];
            strip->features[piece % 2][piece / 2] = v;
        }
        UNROLL
        for (int i = 0; i < 2; i++) {
            int place = l.group + 8 * i, at = start + place, y = rows ? fixed : at, x = rows ? at : fixed;
            const float* from = arg.d_output + (pixels * scale * scale + (long long)(y * scale + slot.dy) * (w * scale) + x * scale + slot.dx) * 3;
            float d[3];
            UNROLL
            for (int o = 0; o < 3; o++) {
                d[o] = at < length && slot.exists ? from[o] : 0.0f;
                bias[0][o] += d[o];
                bias[1][o] += rows && at == 0 ? d[o] : 0.0f;
                bias[2][o] += rows && place == end ? d[o] : 0.0f;
            }
            ((Pair*)&strip->gradient[l.t / 2][place])[l.t % 2] = {{pack_half(d[0], d[1]), pack_half(d[2], 0.0f)}};
        }
        warp_barrier();
        u32 b[4];
        load_matrices_transposed(b, &strip->gradient[l.lane / 16][l.lane % 16]);
        UNROLL
        for (int tap = 0; tap < 5; tap++) {
            u32 a[4];
            load_matrices_transposed(a, &strip->features[l.lane / 8 % 2][l.lane / 16 * 8 + l.lane % 8 + tap]);
            UNROLL
            for (int m = 0; m < 2; m++) mma_16x8x16(sum[tap][m], a, {b[2 * m], b[2 * m + 1]});
            // the pixel at either end by itself; corners belong to the first and the last row
            UNROLL
            for (int corner = 0; tap == 2 && corner < 2; corner++) {
                int only = corner ? end : start == 0 ? 0 : -1;
                if (!rows || only < 0 || only >= 16) continue;
                u32 mask = only % 8 / 2 == l.t ? 0xffffu << only % 2 * 16 : 0;
                UNROLL
                for (int m = 0; m < 2; m++) mma_16x8x16(sum[5 + corner][m], a, {only < 8 ? b[2 * m] & mask : 0, only < 8 ? 0 : b[2 * m + 1] & mask});
            }
        }
        warp_barrier();
    }
    ROLLED
    for (int own = l.warp; own < warps; own += 8) {
        float* to = all + own * EDGE_SUMS;
        UNROLL
        for (int i = 0; i < 56; i++) to[i / 8 * ENTRY + (l.group + i % 4 / 2 * 8) * 16 + i / 4 % 2 * 8 + 2 * l.t + i % 2] = sum[i / 8][i / 4 % 2][i % 4];
        UNROLL
        for (int i = 0; i < 12; i++) {
            float value = i % 4 < 3 ? bias[i / 4][i % 4 % 3] : 0.0f;
            value += shuffle_xor(value, 4);
            value += shuffle_xor(value, 8);
            value += shuffle_xor(value, 16);
            if (l.group == 0) to[7 * ENTRY + i / 4 * 16 + 4 * l.t + i % 4] = value;
        }
    }
    barrier();
    float* out = arg.edge_partials + (((long long)first * units + unit) * 4 + edge) * EDGE_SUMS;
    for (int i = threadIdx.x; i < EDGE_SUMS; i += 256) {
        float total = all[i];
        UNROLL
        for (int other = 1; other < EDGE_WARPS; other++) total += other < warps ? all[other * EDGE_SUMS + i] : 0.0f;
        out[i] = total;
    }
    barrier();
}
// A block's share of the four edges; `edge_blocks` blocks share each edge. Blocks that did nothing
// else would take the places of others on the multiprocessors.
DEVICE void all_edge_sums(unsigned char* memory, const ReconstructBackArguments& arg, int units, int scale) {
    EdgeStrip* strips = (EdgeStrip*)memory;
    ROLLED
    for (int i = blockIdx.x; i < 4 * arg.edge_blocks; i += gridDim.x) edge_sums(strips, (float*)(strips + EDGE_WARPS), arg, i % 4, i / 4, blockIdx.y, units, scale);
}

// The sums over pixels of features times gradient of a warp: [input channel x place] of five taps.
// Warps 0 .. 4 have the first eight places of a column of taps. The others share the last four, of two
// rows of taps at a time, because what is multiplied has those of the pixel below as well: of taps 1 and
// 0, 3 and 2, and 4, of each column.
struct Outer {
    float sum[5][4];  // [tap][see mma_16x8x16]
};
// The taps that warp 5 + `other` has sums of: all of column 2 x other, and two of a column beside it.
struct LastTap {
    int row, column;  // row: of the tap for the pixel itself; that for the pixel below is the one before

    DEVICE_MEMBER LastTap(int other, int i) {
        // of warps 5, 6 and 7: rows 1, 4, 3 of columns 1, 1, 3; rows 3, 1, 4 of columns 1, 3, 3
        int rows = i == 3 ? 0x341 : 0x413, columns = i == 3 ? 0x311 : 0x331;
        row = i == 0 ? 1 : i < 3 ? i + 2 : rows >> 4 * other & 15;
        column = i < 3 ? 2 * other : columns >> 4 * other & 15;
    }
};
// The first eight places. `f` and `d`: a lane's address in a column of features, and in the gradient; two
// rows of the gradient are loaded at a time.
DEVICE void accumulate_first(Outer& o, const Wide* f, const Wide* d) {
    u32 b[6][2];  // of rows of the gradient
    UNROLL
    for (int row = 0; row < TILE + 4; row++) {
        u32 a[4];
        load_matrices_transposed(a, f + row * REACHED);
        if (row < TILE && row % 2 == 0) {
            u32 r[4];
            load_matrices_transposed(r, d + row * REACHED);
            UNROLL
            for (int i = 0; i < 4; i++) b[(row + i / 2) % 6][i % 2] = r[i];
        }
        UNROLL
        for (int tap = 0; tap < 5; tap++)
            if (row >= tap && row - tap < TILE) mma_16x8x16(o.sum[tap], a, b[(row - tap) % 6]);
    }
}
// The last four places of pixels and of those below. The gradient begins with the row above the tile, of which only the pixels
// below count; of the tile's last row only the pixels themselves do.
DEVICE void accumulate_last(Outer& o, const Wide* f, const Wide* d, int other) {
    bool below = threadIdx.x % 32 >= 16;
    const Wide* beside[2];
    UNROLL
    for (int i = 0; i < 2; i++) {
        LastTap tap(other, 3 + i);
        beside[i] = f + (tap.row - 1) * REACHED + tap.column;
    }
    u32 b[6][2];
    UNROLL
    for (int row = 0; row < TILE + 4; row++) {
        if (row <= TILE && row % 2 == 0) {
            u32 r[4];
            load_matrices_transposed(r, d + row * REACHED);
            if ((row == 0 && !below) || (row == TILE && below)) r[0] = r[1] = 0;
            UNROLL
            for (int i = 0; i < 4; i++) b[(row + i / 2) % 6][i % 2] = r[i];
        }
        u32 a[4];
        load_matrices_transposed(a, f + 2 * other + row * REACHED);
        UNROLL
        for (int i = 0; i < 3; i++) {
            int back = i == 0 ? 0 : i + 1;
            if (row >= back && row - back <= TILE) mma_16x8x16(o.sum[i], a, b[(row - back) % 6]);
        }
        if (row > TILE) continue;
        UNROLL
        for (int i = 0; i < 2; i++) {
            load_matrices_transposed(a, beside[i] + row * REACHED);
            mma_16x8x16(o.sum[3 + i], a, b[row % 6]);
        }
    }
}
// Both tiles have two pixels more on each side.
DEVICE void accumulate(Outer& o, const Wide* f_tile, const Wide* d_tile) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // features: pixels 0-7, channels 0-7 and 8-15, then pixels 8-15. Gradient: pixels 0-7 and 8-15 of
    // a row, then of the next
    const Wide* f = f_tile + lane / 8 % 2 * HALF_PLANE + lane / 16 * 8 + lane % 8;
    const Wide* d = d_tile + lane / 16 * REACHED + lane % 16 + 2;
    if (warp < 5) accumulate_first(o, f + warp, d + 2 * REACHED);
    else accumulate_last(o, f, d + HALF_PLANE + REACHED, warp - 5);
}
// Stores the sums of a warp as [tap][input channel][slot].
DEVICE void store_sums(const Outer& o, float* out) {
    Lane l = lane_position();
    bool first = l.warp < 5, below = !first && l.t >= 2;
    int slots[2];
    UNROLL
    for (int k = 0; k < 2; k++) slots[k] = slot_at(first ? 2 * l.t + k : 8 + l.t % 2 * 2 + k);
    UNROLL
    for (int i = 0; i < 5; i++) {
        LastTap last(first ? 0 : l.warp - 5, i);
        int u = first ? i : last.row - below, v = first ? l.warp : last.column;
        float* to = out + (u * 5 + v) * ENTRY + l.group * 16;
        // tap 3 of the pixels below exists twice
        if (below && u == 3) continue;
        UNROLL
        for (int k = 0; k < 4; k++) to[k / 2 * 128 + slots[k % 2]] = o.sum[i][k];
    }
    // the slots that are no channel
    for (int i = threadIdx.x; i < 25 * ENTRY / 4; i += 256) out[4 * i + 3] = 0;
}

// SCALE: 2 for both parts in one pass, or 0 for any scale and part.
template <int SCALE>
DEVICE void reconstruct_back_tiles(const ReconstructBackArguments& arg) {
    const int h = arg.h, w = arg.w;
    const int scale = SCALE ? SCALE : arg.scale, groups = slot_groups(scale), chunks = arg.chunks;
    Wide* d_tile = (Wide*)shared_memory();
    Wide* f_tile = d_tile + 2 * HALF_PLANE;
    Wide* weights = f_tile + 2 * HALF_PLANE;
    const bool data = SCALE || arg.part & PART_DATA, sums = SCALE || arg.part & PART_SUMS;
    // a block that sums has one unit, others a chunk of all groups
    const int first_group = SCALE || !sums ? 0 : blockIdx.y / chunks, chunk = SCALE ? blockIdx.y : blockIdx.y % chunks;
    int block = blockIdx.x;
    if (sums) all_edge_sums(shared_memory(), arg, groups * chunks, scale);
    clear_below(d_tile);
    const Wide* fragments = (const Wide*)(arg.folded + groups * chunks * GROUP_SUMS) + FORWARD_FRAGMENTS;
    if (SCALE) copy_fragments<BACKWARD_TAPS>(weights, fragments + blockIdx.y * GROUP_FRAGMENTS);
    Outer outer;
    UNROLL
    for (int i = 0; i < 20; i++) outer.sum[i / 4][i % 4] = 0;
    float bias[3] = {0, 0, 0};
    const Tiles tiles(h, w);
    ROLLED
    for (SpreadTiles<SCALE ? 13 : 0> own; own.index() < tile_count(arg.images, h, w); own.move_on()) {
        Tile t = tiles.at(own.index(), h, w);
        Square s;
        UNROLL
        for (int i = 0; i < 16; i++) s.sum[i / 8][i / 4 % 2][i % 4] = 0;
        FeatureInput in;
        if (sums) in.load(arg.features, t, h, w, chunk, chunks);
        // at any scale there are not enough registers to have both loads under way
        if (sums && !SCALE) in.store(f_tile);
        ROLLED
        for (int group = first_group; group < (sums ? first_group + 1 : groups); group++) {
            const Wide* own = fragments + (group * chunks + chunk) * GROUP_FRAGMENTS;
            SlotInput slots;
            slots.load(arg.d_output, group, t, h, w, scale);
            if (SCALE) in.store(f_tile);
            slots.store(d_tile, bias);
            if (data && !SCALE) copy_fragments<BACKWARD_TAPS>(weights, own);
            barrier();
            if (data) {
                multiply(s, d_tile, weights);
                multiply_edges<SCALE == 2>(s, d_tile, own + BACKWARD_TAPS, nullptr, nullptr, t, h, w);
            }
            if (sums) accumulate(outer, f_tile, d_tile);
            barrier();
        }
        if (data) {
            Lane l = lane_position();
            int y = t.y + l.warp * 2, x = t.x + l.group;
            // offsets from one of a lane's pixels to the next fit an int
            act* first = arg.d_features + ((((long long)t.image * h + y) * w + x) * chunks + chunk) * FEATURES;
            UNROLL
            for (int i = 0; i < 4; i++) {
                if (y + i / 2 >= h || x + i % 2 * 8 >= w) continue;
                float d[4];
                UNROLL
                for (int k = 0; k < 4; k++) d[k] = s.sum[i / 2][k / 2][i % 2 * 2 + k % 2] * (1.0f / FOLDED_SCALE);
                Pair v = {{pack_half(d[0], d[1]), pack_half(d[2], d[3])}};
                store_pair(first + (i / 2 * w + i % 2 * 8) * chunks * FEATURES, l.t, v);
            }
        }
    }
    if (!sums) return;
    float* out = arg.partials + ((long long)block * groups * chunks + blockIdx.y) * INTERIOR_SUMS;
    store_sums(outer, out);
    // every warp's sums of its slots, then those of the block
    Lane l = lane_position();
    float* all = (float*)shared_memory();
    UNROLL
    for (int o = 0; o < 3; o++) {
        float sum = bias[o];
        sum += shuffle_xor(sum, 4);
        sum += shuffle_xor(sum, 8);
        sum += shuffle_xor(sum, 16);
        if (l.group == 0) all[l.warp * 16 + l.t * 4 + o] = sum;
    }
    if (l.group == 0) all[l.warp * 16 + l.t * 4 + 3] = 0;
    barrier();
    if (threadIdx.x >= 16) return;
    float sum = 0;
    for (int warp = 0; warp < 8; warp++) sum += all[warp * 16 + threadIdx.x];
    out[25 * ENTRY + threadIdx.x] = sum;
}

KERNEL_CROWDED(reconstruct_back, RECONSTRUCT_BLOCKS) { reconstruct_back_tiles<0>(arg); }
KERNEL_CROWDED(reconstruct_back_x2, RECONSTRUCT_BLOCKS) { reconstruct_back_tiles<2>(arg); }
