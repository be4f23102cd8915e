// The reconstruction and its gradients on tensor cores, for half precision. The kernels are
// described in reconstruct.cu. Depends on base.cuh and folded_conv.cuh.
//
// A tile of 16 values a pixel (features, or the slots of a gradient) is two planes of eight,
// HALF_PLANE 16-byte pieces apart, so that any eight neighbours, and the two planes, are in
// different banks.
#pragma once
#include "base.cuh"
#include "folded_conv.cuh"
#include "mma.cuh"


// The accumulators of 16 values of 16 pixels of a row, for two rows.
struct Square {
    float sum[2][2][4];  // [row][matrix of 8 columns][see mma_16x8x16]
};
// Starts from four values, the same for every pixel: those of results 4t .. 4t+3.
DEVICE void start(Square& s, Quad from) {
    UNROLL
    for (int i = 0; i < 16; i++) s.sum[i / 8][i / 4 % 2][i % 4] = from.value[i / 4 % 2 * 2 + i % 2];
}

// The address in a tile that a lane gives to load_matrices for the strip of 16 pixels from (row,
// column) on.
DEVICE const Wide* strip_at(const Wide* tile, int row, int column) {
    int lane = threadIdx.x % 32;
    return tile + lane / 16 * HALF_PLANE + row * REACHED + column + lane % 16;
}

// Adds the products of the 5x5 neighbourhood of a warp's two rows of pixels and the weights. Each
// fragment of weights is used for two rows, each fragment of pixels for up to five rows of taps.
DEVICE void multiply(Square& s, const Wide* tile, const Wide* weights) {
    const Wide* first = strip_at(tile, threadIdx.x / 32 * 2, 0);
    const Wide* fragments = weights + threadIdx.x % 32;
    UNROLL
    for (int v = 0; v < 5; v++) {
        u32 a[6][4];
        UNROLL
        for (int row = 0; row < 6; row++) load_matrices(a[row], first + row * REACHED + v);
        UNROLL
        for (int u = 0; u < 5; u++) {
            Wide f = fragments[(u * 5 + v) * FRAGMENT];
            u32 low[2] = {f.word[0], f.word[1]}, high[2] = {f.word[2], f.word[3]};
            UNROLL
            for (int row = 0; row < 2; row++) {
                mma_16x8x16(s.sum[row][0], a[row + u], low);
                mma_16x8x16(s.sum[row][1], a[row + u], high);
            }
        }
    }
}

// Adds the products of one entry for the pixel `column` of a strip, or for all its pixels (-1).
DEVICE void multiply_entry(float (&sum)[2][4], const Wide* pixels, const Wide* fragment, int column) {
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
    Wide f = fragment[threadIdx.x % 32];
    u32 low[2] = {f.word[0], f.word[1]}, high[2] = {f.word[2], f.word[3]};
    mma_16x8x16(sum[0], a, low);
    mma_16x8x16(sum[1], a, high);
}

// Adds biases times the gain to the same pixels.
DEVICE void add_bias(float (&sum)[2][4], const float* biases, float gain, int column) {
    Quad bias = ((const Quad*)biases)[threadIdx.x % 4];
    int group = threadIdx.x % 32 / 4;
    UNROLL
    for (int i = 0; i < 8; i++) {
        bool on = column < 0 || group + i % 4 / 2 * 8 == column;
        sum[i / 4][i % 4] += on ? gain * bias.value[i / 4 * 2 + i % 2] : 0.0f;
    }
}

// Adds the corrections of pixels at the image's edges. `fragments`: all entries, in device memory,
// since few tiles read them. `folded`: for the biases, in the forward pass; else null. All lanes of
// a warp take the same branches.
DEVICE void multiply_edges(Square& s, const Wide* tile, const Wide* fragments, const float* folded, float gain, Tile t, int h, int w) {
    if (t.y > 0 && t.x > 0 && t.y + TILE < h && t.x + TILE < w) return;
    UNROLL
    for (int row = 0; row < 2; row++) {
        int own = threadIdx.x / 32 * 2 + row, y = t.y + own;
        if (y >= h) continue;
        ROLLED
        for (int edge = 0; edge < 2; edge++) {
            const Wide* across = fragments + (25 + 7 * edge) * FRAGMENT;
            const Wide* down = across + 14 * FRAGMENT;
            int column = edge * (w - 1) - t.x;
            bool on = y == edge * (h - 1);
            if (on) {
                ROLLED
                for (int tap = 0; tap < 5; tap++) multiply_entry(s.sum[row], strip_at(tile, own + 2, tap), across + tap * FRAGMENT, -1);
                if (folded) add_bias(s.sum[row], folded + bias_at(edge, 0), gain, -1);
                ROLLED
                for (int corner = 0; corner < 2; corner++) {
                    int place = corner * (w - 1) - t.x;
                    if (place < 0 || place >= TILE) continue;
                    multiply_entry(s.sum[row], strip_at(tile, own + 2, 2), across + (5 + corner) * FRAGMENT, place);
                    if (folded) add_bias(s.sum[row], folded + bias_at(edge, 1 + corner), gain, place);
                }
            }
            if (column < 0 || column >= TILE) continue;
            ROLLED
            for (int tap = 0; tap < 5; tap++) multiply_entry(s.sum[row], strip_at(tile, own + tap, 2), down + tap * FRAGMENT, column);
            if (folded) add_bias(s.sum[row], folded + bias_at(2 + edge, 0), gain, column);
        }
    }
}

// A chunk of a tile's features on its way from device to shared memory: a thread has one piece of a
// pixel in every LINES rows. All loads of a tile are issued before the first value is stored.
template <int THREADS>
struct FeatureInput {
    static const int ROW_PIECES = REACHED * 2, LINES = THREADS / ROW_PIECES, ROUNDS = (REACHED + LINES - 1) / LINES;
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

// Copies the fragments of the 25 taps to shared memory.
template <int THREADS>
DEVICE void copy_fragments(Wide* to, const Wide* from) {
    UNROLL
    for (int round = 0; round < (25 * FRAGMENT + THREADS - 1) / THREADS; round++) {
        int i = threadIdx.x + THREADS * round;
        if (i < 25 * FRAGMENT) to[i] = from[i];
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
    const int h = arg.h, w = arg.w;
    const int scale = SCALE ? SCALE : arg.scale, groups = slot_groups(scale), chunks = CHUNKS ? CHUNKS : arg.chunks;
    Wide* tile = (Wide*)shared_memory();
    Wide* weights = tile + 2 * HALF_PLANE;
    float* cells = (float*)(weights + 25 * FRAGMENT);
    float* raw = cells + BASE_CELLS;
    float* rows = raw + BASE_RAW;
    float* taps = rows + BASE_ROWS;
    const Wide* fragments = (const Wide*)(arg.folded + groups * chunks * GROUP_SUMS);
    base_taps(taps, scale);
    if (SCALE == 2) copy_fragments<256>(weights, fragments);
    SquareOutput f = {taps, cells, arg.output, arg.target, 0, arg.loss_partials != nullptr, {0, 0, 0, 0}, 0, h, w, scale};
    if (f.losses) f.terms = pixel_terms(arg.l1, arg.charbonnier, arg.mse, arg.whole, arg.scalars);
    TwoFloats lost = {0, 0};
    ROLLED
    for (SpreadTiles<13> own; own.index() < tile_count(arg.images, h, w); own.move_on()) {
        Tile t = tile_at(own.index(), h, w);
        // loads return in order, so the values that are needed first are loaded last
        f.code = arg.target ? arg.codes[t.image] : 0u;
        Quad bias = {{0, 0, 0, 0}};
        float strength = 0;
        if (SCALE == 2) {
            strength = FOLDED_SCALE * *arg.gain;
            bias = ((const Quad*)(arg.folded + bias_at(-1, 0)))[threadIdx.x % 4];
        }
        FeatureInput<256> in;
        in.load(arg.features, t, h, w, 0, chunks);
        BaseInput<256> base_in;
        base_in.load(arg.input + (long long)t.image * h * w * 3, h, w, t.y, t.x);
        in.store(tile);
        // those of the last chunk are there
        if (SCALE == 2 && chunks > 1) copy_fragments<256>(weights, fragments);
        base_in.store(raw, arg.target != nullptr);
        // its barriers also make the features visible
        base_cells<256>(raw, rows, cells, h, w, t.y, t.x, arg.alpha);
        ROLLED
        for (int group = 0; group < groups; group++) {
            const float* f32 = arg.folded + group * chunks * GROUP_SUMS;
            if (SCALE != 2) {
                strength = FOLDED_SCALE * *arg.gain;
                bias = ((const Quad*)(f32 + bias_at(-1, 0)))[threadIdx.x % 4];
            }
            UNROLL
            for (int i = 0; i < 4; i++) bias.value[i] *= strength;
            Square s;
            start(s, bias);
            ROLLED
            for (int chunk = 0; chunk < chunks; chunk++) {
                const Wide* own = fragments + (group * chunks + chunk) * GROUP_FRAGMENTS;
                if (SCALE != 2 || chunk > 0) {
                    if (group > 0 || chunk > 0) barrier();
                    copy_fragments<256>(weights, own);
                    if (chunks > 1 && (group > 0 || chunk > 0)) {
                        FeatureInput<256> next;
                        next.load(arg.features, t, h, w, chunk, chunks);
                        next.store(tile);
                    }
                    barrier();
                }
                multiply(s, tile, weights);
                multiply_edges(s, tile, own, f32 + chunk * GROUP_SUMS, strength, t, h, w);
            }
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
            // lane t of four has HR pixel t of four LQ pixels: (row, half) 0 .. 3. It needs all
            // four of LQ pixel t: a transposition in two rounds
            float value[4][3], detail[12];
            UNROLL
            for (int i = 0; i < 4; i++) {
                const float(*sum)[4] = s.sum[i / 2];
                value[i][0] = sum[0][i % 2 * 2];
                value[i][1] = sum[0][i % 2 * 2 + 1];
                value[i][2] = sum[1][i % 2 * 2];
            }
            UNROLL
            for (int bit = 1; bit < 4; bit *= 2) {
                bool odd = lane & bit;
                UNROLL
                for (int i = 0; i < 4; i++) {
                    if (i & bit) continue;
                    UNROLL
                    for (int o = 0; o < 3; o++) {
                        float sent = shuffle_xor(odd ? value[i][o] : value[i + bit][o], bit);
                        if (odd) value[i][o] = sent;
                        else value[i + bit][o] = sent;
                    }
                }
            }
            UNROLL
            for (int i = 0; i < 12; i++) detail[i] = value[i / 3][i % 3] * (1.0f / FOLDED_SCALE);
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
KERNEL_CROWDED(reconstruct, 2) { reconstruct_tiles<0, 0>(arg); }
KERNEL_CROWDED(reconstruct_x2, 2) { reconstruct_tiles<2, 1>(arg); }
KERNEL_CROWDED(reconstruct_x2_deep, 2) { reconstruct_tiles<2, 0>(arg); }

// The gradient of a group's slots on its way to shared memory in half precision, with two pixels
// more on each side; a thread has the same slots of a pixel in every LINES rows.
template <int THREADS>
struct SlotInput {
    static const int LINES = THREADS / (REACHED * 4), ROUNDS = REACHED / LINES;
    static_assert(LINES * REACHED * 4 == THREADS && ROUNDS * LINES == REACHED, "every thread has a part of every round");
    float d[ROUNDS][3];

    DEVICE_MEMBER void load(const float* d_output, int group, Tile t, int h, int w, int scale) {
        int first = threadIdx.x / (REACHED * 4), x = t.x - 2 + (int)threadIdx.x / 4 - first * REACHED;
        Slot s = slot_of(group, threadIdx.x % 4 * 4, scale);
        bool within = s.exists && (u32)x < (u32)w;
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
    // Stores them, and adds those of the tile itself to `sums`.
    DEVICE_MEMBER void store(Wide* tile, float (&sums)[3]) const {
        int first = threadIdx.x / (REACHED * 4), column = threadIdx.x / 4 - first * REACHED;
        bool own = column >= 2 && column < TILE + 2;
        Pair* to = (Pair*)(tile + threadIdx.x % 4 / 2 * HALF_PLANE + first * REACHED + column) + threadIdx.x % 2;
        UNROLL
        for (int round = 0; round < ROUNDS; round++) {
            int line = first + LINES * round;
            UNROLL
            for (int o = 0; o < 3; o++) sums[o] += own && line >= 2 && line < TILE + 2 ? d[round][o] : 0.0f;
            Pair v = {{pack_half(d[round][0], d[round][1]), pack_half(d[round][2], 0.0f)}};
            to[LINES * REACHED * 2 * round] = v;
        }
    }
};

// Blocks for each multiprocessor; sm_75 has room for one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define BACK_BLOCKS 1
#else
#define BACK_BLOCKS 2
#endif
#define BACK_THREADS (32 * BACK_WARPS)
struct Outer {
    float sum[3][2][4];  // [tap][matrix of 8 slots][see mma_16x8x16]: input channel x slot
};
DEVICE void accumulate(Outer& o, const Wide* f_tile, const Wide* d_tile) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, v = warp % 5, u = warp / 5 * 3;
    // features: pixels 0-7, channels 0-7 and 8-15, then pixels 8-15. Gradient: pixels 0-7 and 8-15,
    // slots 0-7, then 8-15
    const Wide* f = f_tile + lane / 8 % 2 * HALF_PLANE + u * REACHED + v + lane / 16 * 8 + lane % 8;
    const Wide* d = strip_at(d_tile, 2, 2);
    // a row of features is multiplied with the same row of the gradient and the one or two before
    // it
    u32 b[3][4];
    UNROLL
    for (int i = 0; i < 3; i++)
        UNROLL
        for (int k = 0; k < 4; k++) b[i][k] = 0;
    UNROLL
    for (int row = 0; row < TILE + 2; row++) {
        // warps with two rows of taps end a row earlier
        if (row == TILE + 1 && u > 0) continue;
        u32 a[4];
        load_matrices_transposed(a, f + row * REACHED);
        UNROLL
        for (int k = 0; k < 4; k++) b[row % 3][k] = 0;
        if (row < TILE) load_matrices_transposed(b[row % 3], d + row * REACHED);
        UNROLL
        for (int tap = 0; tap < 3; tap++) {
            if (row < tap || row - tap >= TILE || (tap == 2 && u > 0)) continue;
            const u32(&from)[4] = b[(row - tap) % 3];
            u32 low[2] = {from[0], from[1]}, high[2] = {from[2], from[3]};
            mma_16x8x16(o.sum[tap][0], a, low);
            mma_16x8x16(o.sum[tap][1], a, high);
        }
    }
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
    if (sums) all_edge_sums((float*)shared_memory(), arg, groups * chunks, scale);
    const Wide* fragments = (const Wide*)(arg.folded + groups * chunks * GROUP_SUMS) + ENTRIES * FRAGMENT;
    if (SCALE) copy_fragments<BACK_THREADS>(weights, fragments + blockIdx.y * GROUP_FRAGMENTS);
    Outer outer;
    UNROLL
    for (int i = 0; i < 24; i++) outer.sum[i / 8][i / 4 % 2][i % 4] = 0;
    float bias[3] = {0, 0, 0};
    ROLLED
    for (SpreadTiles<SCALE ? 13 : 0> own; own.index() < tile_count(arg.images, h, w); own.move_on()) {
        Tile t = tile_at(own.index(), h, w);
        Square s;
        start(s, {{0, 0, 0, 0}});
        FeatureInput<BACK_THREADS> in;
        if (sums) in.load(arg.features, t, h, w, chunk, chunks);
        // at any scale there are not enough registers to have both loads under way
        if (sums && !SCALE) in.store(f_tile);
        ROLLED
        for (int group = first_group; group < (sums ? first_group + 1 : groups); group++) {
            const Wide* own = fragments + (group * chunks + chunk) * GROUP_FRAGMENTS;
            SlotInput<BACK_THREADS> slots;
            slots.load(arg.d_output, group, t, h, w, scale);
            if (SCALE) in.store(f_tile);
            slots.store(d_tile, bias);
            if (data && !SCALE) copy_fragments<BACK_THREADS>(weights, own);
            barrier();
            if (data && threadIdx.x < 256) {
                multiply(s, d_tile, weights);
                multiply_edges(s, d_tile, own, nullptr, 0.0f, t, h, w);
            }
            if (sums) accumulate(outer, f_tile, d_tile);
            barrier();
        }
        if (data && threadIdx.x < 256) {
            Lane l = lane_position();
            UNROLL
            for (int i = 0; i < 4; i++) {
                int y = t.y + l.warp * 2 + i / 2, x = t.x + l.group + i % 2 * 8;
                if (y >= h || x >= w) continue;
                float d[4];
                UNROLL
                for (int k = 0; k < 4; k++) d[k] = s.sum[i / 2][k / 2][i % 2 * 2 + k % 2] * (1.0f / FOLDED_SCALE);
                Pair v = {{pack_half(d[0], d[1]), pack_half(d[2], d[3])}};
                store_pair(arg.d_features + ((((long long)t.image * h + y) * w + x) * chunks + chunk) * FEATURES, l.t, v);
            }
        }
    }
    if (!sums) return;
    float* out = arg.partials + ((long long)block * groups * chunks + blockIdx.y) * INTERIOR_SUMS;
    Lane l = lane_position();
    int v = l.warp % 5, u = l.warp / 5 * 3;
    UNROLL
    for (int tap = 0; tap < 3; tap++) {
        UNROLL
        for (int i = 0; i < 8; i++) {
            int ci = l.group + i % 4 / 2 * 8, slot = i / 4 * 8 + 2 * l.t + i % 2;
            if (u + tap < 5) out[((u + tap) * 5 + v) * ENTRY + ci * 16 + slot] = outer.sum[tap][i / 4][i % 4];
        }
    }
    // every warp's sums of its slots, then those of the block
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
    for (int warp = 0; warp < BACK_WARPS; warp++) sum += all[warp * 16 + threadIdx.x];
    out[25 * ENTRY + threadIdx.x] = sum;
}

KERNEL_CROWDED(reconstruct_back, BACK_BLOCKS) { reconstruct_back_tiles<0>(arg); }
KERNEL_CROWDED(reconstruct_back_x2, BACK_BLOCKS) { reconstruct_back_tiles<2>(arg); }
