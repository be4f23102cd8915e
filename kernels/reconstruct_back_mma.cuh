// The gradients of the reconstruction on tensor cores, for half precision. The kernels are described in
// reconstruct.cu. Depends on reconstruct_mma.cuh, whose tiles and edges it shares.
#pragma once
#include "reconstruct_mma.cuh"

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
// Adds the products of the 5x5 neighbourhood of a warp's two rows of the gradient and the weights, in the
// order that these have (folded_conv.cuh). A step of eight is the first eight places of a row of pixels, or
// the last four of a row and of the next.
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
// There are no biases in the backward pass.
DEVICE void add_bias(Square&, int, const float*, const float*, int) {}

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
// The last four places of pixels and of those below. `d` begins with the row above the tile, of which only
// the pixels below count; of the tile's last row only the pixels themselves do.
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
