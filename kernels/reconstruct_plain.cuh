// The reconstruction and its gradients without tensor cores. The kernels are described in
// reconstruct.cu. Depends on base.cuh and folded_conv.cuh.
//
// A tile of 16 f32 a pixel is four planes of four, FLOAT_PLANE 16-byte pieces apart.
#pragma once
#include "base.cuh"
#include "folded_conv.cuh"

// Weights of one HR pixel's four slots: [tap][input channel] Quads.
#define TAP_QUADS (25 * FEATURES)

DEVICE void load_tile(Quad* tile, const float* features, Tile t, int h, int w, int chunk, int chunks) {
    const Quad* image = (const Quad*)features + ((long long)t.image * h * w * chunks + chunk) * 4;
    for (int i = threadIdx.x; i < REACHED * REACHED * 4; i += 256) {
        int pixel = i / 4, y = t.y - 2 + pixel / REACHED, x = t.x - 2 + pixel % REACHED;
        Quad v = {{0, 0, 0, 0}};
        if (inside(y, x, h, w)) v = image[(y * w + x) * chunks * 4 + i % 4];
        tile[i % 4 * FLOAT_PLANE + pixel] = v;
    }
}
// Loads the gradient of a group's slots; a thread has the same four in every round.
DEVICE void load_slots(Quad* tile, const float* d_output, int group, Tile t, int h, int w, int scale) {
    Slot s = slot_of(group, threadIdx.x % 4 * 4, scale);
    const float* image = d_output + ((long long)t.image * h * scale + s.dy) * w * scale * 3 + s.dx * 3;
    for (int i = threadIdx.x; i < REACHED * REACHED * 4; i += 256) {
        int pixel = i / 4, y = t.y - 2 + pixel / REACHED, x = t.x - 2 + pixel % REACHED;
        Quad v = {{0, 0, 0, 0}};
        if (s.exists && inside(y, x, h, w)) {
            const float* from = image + (long long)(y * scale * w + x) * scale * 3;
            for (int o = 0; o < 3; o++) v.value[o] = from[o];
        }
        tile[threadIdx.x % 4 * FLOAT_PLANE + pixel] = v;
    }
}
// Loads the weights of HR pixel k of a group's slots, times the gain.
DEVICE void load_taps(Quad* taps, const float* folded, int k, float gain) {
    for (int i = threadIdx.x; i < TAP_QUADS; i += 256) {
        Quad v = ((const Quad*)folded)[i * 4 + k];
        for (int o = 0; o < 4; o++) v.value[o] *= gain;
        taps[i] = v;
    }
}

// The corrections of pixels at the image's edges, one tap after another.
#define EDGE_TAPS 24
struct EdgeTap {
    int entry, u, v;  // row and column of the 5x5
};
// Describes tap i; returns whether it applies to pixel (y, x).
DEVICE bool edge_tap(EdgeTap& e, int i, int y, int x, int h, int w) {
    bool corner = i >= 20;
    int edge = corner ? (i - 20) / 2 : i / 5, tap = corner ? (i - 20) % 2 : i % 5;
    bool on = edge < 2 ? y == edge * (h - 1) : x == (edge - 2) * (w - 1);
    if (corner) on = on && x == tap * (w - 1);
    e.entry = 25 + 7 * edge + tap + (corner ? 5 : 0);
    e.u = corner || edge < 2 ? 2 : tap;
    e.v = corner || edge >= 2 ? 2 : tap;
    return on;
}

DEVICE bool on_edge(int y, int x, int h, int w) { return y == 0 || x == 0 || y == h - 1 || x == w - 1; }

// HR pixel k of a group's slots in a thread's LQ pixel, from a chunk of the features, without the
// corrections at edges.
DEVICE Quad folded_pixel(const float* folded, const Quad* tile, const Quad* taps, int k, float gain, int ty, int tx) {
    Quad sum = ((const Quad*)(folded + bias_at(-1, 0)))[k];
    UNROLL
    for (int o = 0; o < 4; o++) sum.value[o] *= gain;
    ROLLED
    for (int tap = 0; tap < 25; tap++) {
        const Quad* pixel = tile + (ty + tap / 5) * REACHED + tx + tap % 5;
        UNROLL
        for (int ci = 0; ci < FEATURES; ci++) {
            float value = pixel[ci / 4 * FLOAT_PLANE].value[ci % 4];
            Quad weight = taps[tap * FEATURES + ci];
            UNROLL
            for (int o = 0; o < 4; o++) sum.value[o] += value * weight.value[o];
        }
    }
    return sum;
}
// Adds the corrections of pixel (y, x), which is at (ty, tx) of its tile.
DEVICE void add_edges(Quad& sum, const float* folded, const Quad* tile, int k, float gain, int y, int x, int ty, int tx, int h, int w) {
    ROLLED
    for (int i = 0; i < EDGE_TAPS; i++) {
        EdgeTap e;
        if (!edge_tap(e, i, y, x, h, w)) continue;
        const Quad* pixel = tile + (ty + e.u) * REACHED + tx + e.v;
        const Quad* weights = (const Quad*)(folded + entry_at(e.entry)) + k;
        // one bias for each edge and each corner, with the first of its taps
        int kind = i < 20 ? 0 : 1 + i % 2, edge = i < 20 ? i / 5 : (i - 20) / 2;
        if (i >= 20 || i % 5 == 0) {
            const Quad bias = ((const Quad*)(folded + bias_at(edge, kind)))[k];
            UNROLL
            for (int o = 0; o < 4; o++) sum.value[o] += gain * bias.value[o];
        }
        ROLLED
        for (int ci = 0; ci < FEATURES; ci++) {
            float value = gain * pixel[ci / 4 * FLOAT_PLANE].value[ci % 4];
            UNROLL
            for (int o = 0; o < 4; o++) sum.value[o] += value * weights[ci * 4].value[o];
        }
    }
}

KERNEL_CROWDED(reconstruct, 1) {
    const int h = arg.h, w = arg.w, scale = arg.scale, chunks = arg.chunks;
    Quad* tile = (Quad*)shared_memory();
    float* cells = (float*)(tile + 4 * FLOAT_PLANE);
    float* base_taps_at = cells + BASE_CELLS;
    float* raw = base_taps_at + BASE_TAPS;
    float* rows = raw + BASE_RAW;
    // the base's scratch is free once its cells are made
    Quad* taps = (Quad*)raw;
    int ty = threadIdx.x / TILE, tx = threadIdx.x % TILE;
    base_taps(base_taps_at, scale);
    SquareOutput f = {base_taps_at, cells, arg.output, arg.target, 0, arg.loss_partials != nullptr, {0, 0, 0, 0}, 0, h, w, scale};
    if (f.losses) f.terms = pixel_terms(arg.l1, arg.charbonnier, arg.mse, arg.whole, arg.scalars);
    TwoFloats lost = {0, 0};
    float strength = *arg.gain;
    for (int index = blockIdx.x; index < tile_count(arg.images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        f.code = arg.target ? arg.codes[t.image] : 0u;
        BaseInput<256> base_in;
        base_in.load(arg.input + (long long)t.image * h * w * 3, h, w, t.y, t.x);
        load_tile(tile, arg.features, t, h, w, 0, chunks);
        base_in.store(raw, arg.target != nullptr);
        base_cells<256>(raw, rows, cells, h, w, t.y, t.x, arg.alpha);
        barrier();
        bool edge = on_edge(t.y + ty, t.x + tx, h, w);
        for (int group = 0; group < slot_groups(scale); group++) {
            f.group = group;
            Quad sums[4];
            ROLLED
            for (int chunk = 0; chunk < chunks; chunk++) {
                const float* own = arg.folded + (group * chunks + chunk) * GROUP_SUMS;
                if (chunks > 1 && (group > 0 || chunk > 0)) load_tile(tile, arg.features, t, h, w, chunk, chunks);
                UNROLL
                for (int k = 0; k < 4; k++) {
                    load_taps(taps, own, k, strength);
                    barrier();
                    // each chunk by itself: short sums lose fewer bits to rounding
                    Quad sum = folded_pixel(own, tile, taps, k, strength, ty, tx);
                    if (edge) add_edges(sum, own, tile, k, strength, t.y + ty, t.x + tx, ty, tx, h, w);
                    UNROLL
                    for (int o = 0; o < 4; o++) sums[k].value[o] = chunk > 0 ? sums[k].value[o] + sum.value[o] : sum.value[o];
                    barrier();
                }
            }
            float detail[12];
            UNROLL
            for (int i = 0; i < 12; i++) detail[i] = sums[i / 3].value[i % 3];
            add(lost, store_square(f, detail, t, ty, tx));
        }
        barrier();
    }
    if (!f.losses) return;
    TwoFloats total = block_sum<256>((TwoFloats*)shared_memory(), lost);
    if (threadIdx.x == 0) arg.loss_partials[blockIdx.x] = to_double(total);
}

// The gradient of a chunk of the features of the block's tiles, one group of slots after another.
DEVICE void data_gradient(const ReconstructBackArguments& arg, float gain) {
    const int h = arg.h, w = arg.w, scale = arg.scale, chunks = arg.chunks, chunk = blockIdx.y;
    Quad* tile = (Quad*)shared_memory();
    Quad* taps = tile + 4 * FLOAT_PLANE;
    int ty = threadIdx.x / TILE, tx = threadIdx.x % TILE;
    for (int index = blockIdx.x; index < tile_count(arg.images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        bool edge = on_edge(t.y + ty, t.x + tx, h, w);
        float total[FEATURES];
        UNROLL
        for (int ci = 0; ci < FEATURES; ci++) total[ci] = 0;
        for (int group = 0; group < slot_groups(scale); group++) {
            const float* own = arg.folded + (group * chunks + chunk) * GROUP_SUMS;
            load_slots(tile, arg.d_output, group, t, h, w, scale);
            for (int k = 0; k < 4; k++) {
                load_taps(taps, own, k, 1.0f);
                barrier();
                // each HR pixel by itself: short sums lose fewer bits to rounding
                float sum[FEATURES];
                UNROLL
                for (int ci = 0; ci < FEATURES; ci++) sum[ci] = 0;
                const Quad* plane = tile + k * FLOAT_PLANE;
                ROLLED
                for (int tap = 0; tap < 25; tap++) {
                    Quad d = plane[(ty + 4 - tap / 5) * REACHED + tx + 4 - tap % 5];
                    UNROLL
                    for (int ci = 0; ci < FEATURES; ci++) {
                        Quad weight = taps[tap * FEATURES + ci];
                        UNROLL
                        for (int o = 0; o < 3; o++) sum[ci] += d.value[o] * weight.value[o];
                    }
                }
                ROLLED
                for (int i = 0; edge && i < EDGE_TAPS; i++) {
                    EdgeTap e;
                    if (!edge_tap(e, i, t.y + ty, t.x + tx, h, w)) continue;
                    Quad d = plane[(ty + 4 - e.u) * REACHED + tx + 4 - e.v];
                    const Quad* weights = (const Quad*)(own + entry_at(e.entry)) + k;
                    UNROLL
                    for (int ci = 0; ci < FEATURES; ci++) {
                        UNROLL
                        for (int o = 0; o < 3; o++) sum[ci] += d.value[o] * weights[ci * 4].value[o];
                    }
                }
                UNROLL
                for (int ci = 0; ci < FEATURES; ci++) total[ci] += sum[ci];
                barrier();
            }
        }
        if (t.y + ty < h && t.x + tx < w) {
            float* to = arg.d_features + ((((long long)t.image * h + t.y + ty) * w + t.x + tx) * chunks + chunk) * FEATURES;
            UNROLL
            for (int ci = 0; ci < FEATURES; ci++) total[ci] *= gain;
            store_features(to, total);
        }
    }
}

// The sums of one edge, a strip of 16 of its pixels at a time. Thread (input channel, slot).
// `first`: the strip to begin with; `memory`: 36 x 16 f32.
DEVICE void edge_sums(float* memory, const ReconstructBackArguments& arg, int edge, int first, int unit, int units, int scale) {
    const int h = arg.h, w = arg.w;
    float* d = memory;               // [16][slot]
    float* f = memory + 16 * 16;     // [20][channel]
    int major = threadIdx.x / 16, minor = threadIdx.x % 16;
    bool rows = edge < 2;
    int length = rows ? w : h, strips = (length + 15) / 16, fixed = edge % 2 == 0 ? 0 : (rows ? h : w) - 1;
    int group = unit / arg.chunks, chunk = unit - group * arg.chunks;
    Slot slot = slot_of(group, minor, scale);
    float total[7], bias[3];
    UNROLL
    for (int i = 0; i < 7; i++) total[i] = 0;
    UNROLL
    for (int i = 0; i < 3; i++) bias[i] = 0;
    ROLLED
    for (int strip = first; strip < arg.images * strips; strip += arg.edge_blocks) {
        int image = strip / strips, start = (strip - image * strips) * 16;
        long long pixels = (long long)image * h * w;
        int at = start + major, y = rows ? fixed : at, x = rows ? at : fixed;
        float value = 0;
        if (at < length && slot.exists)
            value = arg.d_output[(pixels * scale * scale + (long long)(y * scale + slot.dy) * (w * scale) + x * scale + slot.dx) * 3 + slot.channel];
        d[threadIdx.x] = value;
        ROLLED
        for (int i = threadIdx.x; i < 20 * 16; i += 256) {
            int along = start - 2 + i / 16;
            value = 0;
            if (along >= 0 && along < length) value = to_float(arg.features[(pixels + (rows ? fixed * w + along : along * w + fixed)) * FEATURES * arg.chunks + chunk * FEATURES + i % 16]);
            f[i] = value;
        }
        barrier();
        // each strip by itself: short sums lose fewer bits to rounding
        float part[5], window[5], sum = 0;
        UNROLL
        for (int i = 0; i < 5; i++) {
            part[i] = 0;
            window[i] = f[i * 16 + major];
        }
        ROLLED
        for (int i = 0; i < 16; i++) {
            float value = d[i * 16 + minor];
            window[4] = f[(i + 4) * 16 + major];
            sum += value;
            UNROLL
            for (int tap = 0; tap < 5; tap++) part[tap] += window[tap] * value;
            // corners belong to the first and the last row
            if (rows && start + i == 0) {
                total[5] += window[2] * value;
                bias[1] += value;
            }
            if (rows && start + i == length - 1) {
                total[6] += window[2] * value;
                bias[2] += value;
            }
            UNROLL
            for (int tap = 0; tap < 4; tap++) window[tap] = window[tap + 1];
        }
        UNROLL
        for (int i = 0; i < 5; i++) total[i] += part[i];
        bias[0] += sum;
        barrier();
    }
    float* out = arg.edge_partials + (((long long)first * units + unit) * 4 + edge) * EDGE_SUMS;
    UNROLL
    for (int i = 0; i < 7; i++) out[i * ENTRY + threadIdx.x] = total[i];
    if (major > 0) return;
    UNROLL
    for (int i = 0; i < 3; i++) out[7 * ENTRY + i * 16 + minor] = bias[i];
}

// A block's share of the four edges; `edge_blocks` blocks share each edge. Blocks that did nothing
// else would take the places of others on the multiprocessors.
DEVICE void all_edge_sums(float* memory, const ReconstructBackArguments& arg, int units, int scale) {
    ROLLED
    for (int i = blockIdx.x; i < 4 * arg.edge_blocks; i += gridDim.x)
        edge_sums(memory, arg, i % 4, i / 4, blockIdx.y, units, scale);
}

// The sums of one unit over the block's tiles. Thread (input channel, slot).
DEVICE void interior_sums(const ReconstructBackArguments& arg) {
    const int h = arg.h, w = arg.w, scale = arg.scale, block = blockIdx.x, blocks = gridDim.x;
    Quad* tile = (Quad*)shared_memory();
    float* d = (float*)(tile + 4 * FLOAT_PLANE);  // [16 x 16 pixels][slot]
    int ci = threadIdx.x / 16, slot = threadIdx.x % 16, unit = blockIdx.y, group = unit / arg.chunks;
    Slot s = slot_of(group, slot, scale);
    float total[25], bias = 0;
    UNROLL
    for (int tap = 0; tap < 25; tap++) total[tap] = 0;
    for (int index = block; index < tile_count(arg.images, h, w); index += blocks) {
        Tile t = tile_at(index, h, w);
        load_tile(tile, arg.features, t, h, w, unit - group * arg.chunks, arg.chunks);
        // a thread has one slot of a row of pixels
        for (int x = 0; x < TILE; x++) {
            float value = 0;
            if (s.exists && inside(t.y + ci, t.x + x, h, w)) {
                long long row = ((long long)t.image * h + t.y + ci) * scale + s.dy;
                value = arg.d_output[(row * w * scale + (t.x + x) * scale + s.dx) * 3 + s.channel];
            }
            d[(ci * TILE + x) * 16 + slot] = value;
        }
        barrier();
        const float* f = (const float*)(tile + ci / 4 * FLOAT_PLANE) + ci % 4;
        ROLLED
        for (int y = 0; y < TILE; y++) {
            // one row at a time: short sums lose fewer bits to rounding
            float sum[25], window[5][5], row = 0;
            UNROLL
            for (int tap = 0; tap < 25; tap++) {
                sum[tap] = 0;
                window[tap / 5][tap % 5] = tap % 5 < 4 ? f[((y + tap / 5) * REACHED + tap % 5) * 4] : 0.0f;
            }
            ROLLED
            for (int x = 0; x < TILE; x++) {
                float value = d[(y * TILE + x) * 16 + slot];
                row += value;
                UNROLL
                for (int u = 0; u < 5; u++) {
                    window[u][4] = f[((y + u) * REACHED + x + 4) * 4];
                    UNROLL
                    for (int v = 0; v < 5; v++) sum[u * 5 + v] += window[u][v] * value;
                    UNROLL
                    for (int v = 0; v < 4; v++) window[u][v] = window[u][v + 1];
                }
            }
            UNROLL
            for (int tap = 0; tap < 25; tap++) total[tap] += sum[tap];
            bias += row;
        }
        barrier();
    }
    float* out = arg.partials + ((long long)block * gridDim.y + unit) * INTERIOR_SUMS;
    UNROLL
    for (int tap = 0; tap < 25; tap++) out[tap * ENTRY + threadIdx.x] = total[tap];
    if (ci == 0) out[25 * ENTRY + slot] = bias;
}

KERNEL_CROWDED(reconstruct_back, 1) {
    if (arg.part == PART_DATA) return data_gradient(arg, *arg.gain);
    all_edge_sums((float*)shared_memory(), arg, gridDim.y, arg.scale);
    interior_sums(arg);
}
