// The reconstruction on tensor cores, for half precision, and what it shares with its gradients
// (reconstruct_back_mma.cuh). The kernels are described in reconstruct.cu. Depends on base.cuh and
// folded_conv.cuh.
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

// Adds biases to the same pixels.
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
