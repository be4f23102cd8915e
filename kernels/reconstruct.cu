// The network's end, base(x) + gain * conv_out(shuffle(up.0(f))), and its gradients. The two convolutions are the one of folded_conv.cuh, so that
// nothing but the prediction is ever stored at HR; the base is made of the f32 input, tile by tile, and never stored.
//
// reconstruct: composed as made by fold_conv; gain [1] f32; input [images][h][w][3] f32; features [images][h][w][16] act; output
// [images][h x scale][w x scale][3] f32. With target (u8 HR patches, and their codes) the output is the prediction less its target,
// subtracted while base and target are exact integers. A block of 256 threads walks over tiles of 16 x 16 LQ pixels with the grid as
// stride. With loss_partials, an f64 a block, the output is the gradient of the pixel losses instead, whose sums go there; weights and `whole` are
// those of pixel_loss. Floor: a pixel of features and 12 bytes read, 12 x scale^2 bytes written and 3 x scale^2 of target read, an LQ pixel.
//
// reconstruct_back: composed; gain [1] (f32 alone reads it, halves have it in their weights); features; d_output [images][h x scale][w x scale][3] f32;
// d_features [images][h][w][16] act. `part` says what of it a launch does:
//   1  d_features; grid: walkers
//   2  sums: partials [blocks][groups][INTERIOR_SUMS] f32, and of the edges edge_partials [edge_blocks][groups][4][EDGE_SUMS].
//      Grid: (blocks, groups of slots); each takes a share of the edges first
//   3  both in one pass (one group of slots, halves)
// Floor: a pixel of features read and one written, 12 x scale^2 bytes read, an LQ pixel.
#include "base.cuh"
#include "folded_conv.cuh"
#include "pixel_terms.cuh"

// The sums of one edge: a strip of 16 of its pixels at a time. Thread (input channel, slot); those from 256 on do nothing but wait. `memory`: 36 x 16
// f32.
DEVICE void edge_sums(float* memory, const ReconstructBackArguments& arg, int edge, int first, int group, int groups, int scale) {
    const int h = arg.h, w = arg.w;
    float* d = memory;               // [16][slot]
    float* f = memory + 16 * 16;     // [20][channel]
    int major = threadIdx.x / 16, minor = threadIdx.x % 16;
    bool rows = edge < 2, works = threadIdx.x < 256;
    int length = rows ? w : h, strips = (length + 15) / 16, fixed = edge % 2 == 0 ? 0 : (rows ? h : w) - 1;
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
        if (works && at < length && slot.exists)
            value = arg.d_output[(pixels * scale * scale + (long long)(y * scale + slot.dy) * (w * scale) + x * scale + slot.dx) * 3 + slot.channel];
        if (works) d[threadIdx.x] = value;
        ROLLED
        for (int i = threadIdx.x; works && i < 20 * 16; i += 256) {
            int along = start - 2 + i / 16;
            value = 0;
            if (along >= 0 && along < length) value = to_float(arg.features[(pixels + (rows ? fixed * w + along : along * w + fixed)) * FEATURES + i % 16]);
            f[i] = value;
        }
        barrier();
        // a strip by itself: short sums keep their bits
        float part[5], window[5], sum = 0;
        UNROLL
        for (int i = 0; i < 5; i++) {
            part[i] = 0;
            window[i] = f[i * 16 + major % 16];
        }
        ROLLED
        for (int i = 0; works && i < 16; i++) {
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
    if (!works) return;
    float* out = arg.edge_partials + (((long long)first * groups + group) * 4 + edge) * EDGE_SUMS;
    UNROLL
    for (int i = 0; i < 7; i++) out[i * ENTRY + threadIdx.x] = total[i];
    if (major > 0) return;
    UNROLL
    for (int i = 0; i < 3; i++) out[7 * ENTRY + i * 16 + minor] = bias[i];
}

// A block's share of the four edges, each of which is shared by `edge_blocks`: blocks that did nothing else would keep others waiting for
// their place.
DEVICE void all_edge_sums(float* memory, const ReconstructBackArguments& arg, int groups, int scale) {
    ROLLED
    for (int i = blockIdx.x; i < 4 * arg.edge_blocks; i += gridDim.x)
        edge_sums(memory, arg, i % 4, i / 4, blockIdx.y, groups, scale);
}

// The four HR pixels of a group of slots in the square of one LQ pixel, finished and written: base and `detail` (RGB of each). Returns the
// pixel losses, where they are asked for.
struct Finish {
    const float* taps;
    const float* cells;
    float* output;
    const u8* target;
    u32 code;  // of the tile's image
    bool losses;
    PixelTerms terms;
    int group, h, w, scale;

    // Where the image's prediction and its target begin, and how the target is stored.
    DEVICE_MEMBER long long start(int image) const { return (long long)image * h * scale * w * scale * 3; }
    DEVICE_MEMBER Steps steps() const { return augmentation(code, h * scale, w * scale); }
};

// At scale 2 the target of a pixel's square, asked for ahead of the work that it waits for: RGB of every HR pixel.
struct Wanted {
    u32 value[12];
};
DEVICE void load_wanted(Wanted& wanted, const Finish& f, Tile t, int row, int column) {
    int y = t.y + row, x = t.x + column;
    UNROLL
    for (int i = 0; i < 12; i++) wanted.value[i] = 0;
    if (!f.target || y >= f.h || x >= f.w) return;
    Steps s = f.steps();
    // positions in one image fit an int
    const u8* target = f.target + f.start(t.image) + (s.start + 2 * (y * s.down + x * s.across)) * 3;
    UNROLL
    for (int i = 0; i < 12; i++) wanted.value[i] = target[(i / 6 * s.down + i / 3 % 2 * s.across) * 3 + i % 3];
}

DEVICE float finish_double(const Finish& f, const float (&detail)[12], const Wanted& wanted, Tile t, int row, int column) {
    int y = t.y + row, x = t.x + column;
    float lost = 0;
    if (y >= f.h || x >= f.w) return lost;
    float* output = f.output + f.start(t.image) + (4 * y * f.w + 2 * x) * 3;
    const Quad taps[2] = {((const Quad*)f.taps)[0], ((const Quad*)f.taps)[1]};
    Blurred blurred[2];
    base_rows(blurred, f.cells, row, column, taps);
    UNROLL
    for (int dy = 0; dy < 2; dy++) {
        float value[2][3];
        UNROLL
        for (int dx = 0; dx < 2; dx++) {
            const u32* rgb = wanted.value + (2 * dy + dx) * 3;
            float target[3] = {(float)rgb[0], (float)rgb[1], (float)rgb[2]};
            base_pixel(blurred[dy], taps[dx], f.target != nullptr, target, value[dx]);
            UNROLL
            for (int o = 0; o < 3; o++) {
                value[dx][o] += detail[(2 * dy + dx) * 3 + o];
                if (f.losses) lost += pixel_term(f.terms, value[dx][o]);
            }
        }
        // two pixels side by side are 24 bytes, aligned to eight
        UNROLL
        for (int i = 0; i < 3; i++) ((Two*)(output + dy * f.w * 6))[i] = {{value[2 * i / 3][2 * i % 3], value[(2 * i + 1) / 3][(2 * i + 1) % 3]}};
    }
    return lost;
}

// The same at any scale.
DEVICE float finish_square(const Finish& f, const float (&detail)[12], Tile t, int row, int column) {
    int y = t.y + row, x = t.x + column, hr_w = f.w * f.scale;
    float lost = 0;
    if (y >= f.h || x >= f.w) return lost;
    // positions in one image fit an int
    float* output = f.output + f.start(t.image);
    const u8* target = f.target + f.start(t.image);
    Steps steps = f.steps();
    int dy = f.group * 4 / f.scale, dx = f.group * 4 - dy * f.scale;
    int hr_y = y * f.scale + dy, hr_x = x * f.scale + dx;
    Blurred blurred[1];
    ROLLED
    for (int k = 0; k < 4 && dy < f.scale; k++) {
        // the first of a row; of the others there is at least one
        if (k == 0 || dx == 0) base_rows(blurred, f.cells, row, column, {((const Quad*)f.taps)[dy]});
        float wanted[3] = {0, 0, 0}, value[3];
        if (f.target) {
            const u8* pixel = target + (steps.start + hr_y * steps.down + hr_x * steps.across) * 3;
            UNROLL
            for (int o = 0; o < 3; o++) wanted[o] = (float)pixel[o];
        }
        base_pixel(blurred[0], ((const Quad*)f.taps)[dx], f.target != nullptr, wanted, value);
        float* to = output + (hr_y * hr_w + hr_x) * 3;
        UNROLL
        for (int o = 0; o < 3; o++) {
            value[o] += k < 2 ? k < 1 ? detail[o] : detail[3 + o] : k < 3 ? detail[6 + o] : detail[9 + o];
            if (f.losses) lost += pixel_term(f.terms, value[o]);
            to[o] = value[o];
        }
        hr_x++;
        if (++dx == f.scale) {
            dx = 0;
            dy++;
            hr_x -= f.scale;
            hr_y++;
        }
    }
    return lost;
}

#if PRECISION == 0
#include "reconstruct_plain.cuh"
#else
#include "reconstruct_mma.cuh"
#endif

// One value of the upsampling and blur, transposed: what LQ pixel (y, x) is to channel c of d_output, [H][W][3].
DEVICE double base_gather(const float* d_output, int y, int x, int c, int h, int w, int scale) {
    double sum = 0;
    for (int row = y * scale - 2; row < y * scale + scale + 2; row++) {
        for (int column = x * scale - 2; column < x * scale + scale + 2; column++) {
            if (!inside(row, column, h * scale, w * scale)) continue;
            double down = 0, across = 0;
            for (int k = 0; k < 5; k++) {
                if (floor_divide(row + k - 2, scale) == y) down += (double)BLUR_TAPS[k];
                if (floor_divide(column + k - 2, scale) == x) across += (double)BLUR_TAPS[k];
            }
            sum += down * across * (double)d_output[((long long)row * (w * scale) + column) * 3 + c];
        }
    }
    return sum;
}

// The gradient that reaches the input through the base; d_input [images][h][w][3] f32. Plain and slow: training never asks for it, tests
// do. A thread a value.
KERNEL(base_back) {
    const int h = arg.h, w = arg.w, scale = arg.scale;
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= arg.images * h * w * 3) return;
    int c = i % 3, x = i / 3 % w, y = i / 3 / w % h, image = i / 3 / w / h;
    const float* from = arg.d_output + (long long)image * h * w * scale * scale * 3;
    double sum = base_gather(from, y, x, c, h, w, scale);
    if (arg.alpha > 0.0f) {
        double sharp = 0;
        for (int ky = -3; ky <= 3; ky++) {
            for (int kx = -3; kx <= 3; kx++) {
                float tap = SHARP_TAPS[ky + 3] * SHARP_TAPS[kx + 3];
                if (tap != 0.0f && inside(y + ky, x + kx, h, w)) sharp += (double)tap * base_gather(from, y + ky, x + kx, c, h, w, scale);
            }
        }
        sum += (double)arg.alpha * (sharp - sum);
    }
    arg.d_input[i] = (float)sum;
}
