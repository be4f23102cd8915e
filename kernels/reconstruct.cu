// The reconstruction, base(input) + gain * conv_out(shuffle(up.0(features))), and its gradients.
// The two convolutions are computed as the one of folded_conv.cuh, so that nothing but the
// prediction is stored at HR; the base is computed from the f32 input, tile by tile, and never
// stored.
//
// reconstruct: with a target the output is prediction - target, subtracted while base and target
// are exact integers. With loss_partials the output is the gradient of the pixel losses, and each
// block stores its sum of the losses there. Grid: persistent, or with loss_partials as many blocks
// as sum on the card. Least traffic an LQ pixel: a pixel of features and 12 bytes read, 12 x scale^2
// bytes written and 3 x scale^2 of target read.
//
// reconstruct_back: `part` says what a launch computes:
//   PART_DATA  d_features. Grid: (tiles, chunks)
//   PART_SUMS  sums of all pixels, and of edges. Grid: (blocks, units); a block starts with its share
//   of the edges
//   both       in one pass (one group of slots, half precision). Grid: (blocks, chunks)
// Least traffic an LQ pixel: a pixel of features read and one written, 12 x scale^2 bytes read.
#include "base.cuh"
#include "folded_conv.cuh"
#include "pixel_terms.cuh"

// What every thread needs to finish the four HR pixels of a group of slots in the HR square of one
// LQ pixel.
struct SquareOutput {
    const float* taps;
    const float* cells;
    float* output;
    const u8* target;
    u32 code;  // of the tile's image
    bool losses;
    PixelTerms terms;
    int group, h, w, scale;

    // Offset of the image's prediction and of its target, and how the target is stored.
    DEVICE_MEMBER long long start(int image) const { return (long long)image * h * scale * w * scale * 3; }
    DEVICE_MEMBER Steps steps() const { return augmentation(code, h * scale, w * scale); }
};

// At scale 2, the target of an LQ pixel's square: RGB of every HR pixel. It is loaded before the
// work that hides the wait.
struct TargetSquare {
    u32 value[12];
};
DEVICE void load_target(TargetSquare& target_rgb, const SquareOutput& f, Tile t, int row, int column) {
    int y = t.y + row, x = t.x + column;
    UNROLL
    for (int i = 0; i < 12; i++) target_rgb.value[i] = 0;
    if (!f.target || y >= f.h || x >= f.w) return;
    Steps s = f.steps();
    // offsets within one image fit an int
    const u8* target = f.target + f.start(t.image) + (s.start + 2 * (y * s.down + x * s.across)) * 3;
    UNROLL
    for (int i = 0; i < 12; i++) target_rgb.value[i] = target[(i / 6 * s.down + i / 3 % 2 * s.across) * 3 + i % 3];
}

DEVICE float store_square_x2(const SquareOutput& f, const float (&detail)[12], const TargetSquare& target_rgb, Tile t, int row, int column) {
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
            const u32* rgb = target_rgb.value + (2 * dy + dx) * 3;
            float target[3] = {(float)rgb[0], (float)rgb[1], (float)rgb[2]};
            base_pixel(blurred[dy], taps[dx], f.target != nullptr, target, value[dx]);
            UNROLL
            for (int o = 0; o < 3; o++) {
                value[dx][o] += detail[(2 * dy + dx) * 3 + o];
                if (f.losses) lost += pixel_term(f.terms, value[dx][o]);
            }
        }
        // two neighbouring pixels are 24 bytes, aligned to eight
        UNROLL
        for (int i = 0; i < 3; i++) ((Two*)(output + dy * f.w * 6))[i] = {{value[2 * i / 3][2 * i % 3], value[(2 * i + 1) / 3][(2 * i + 1) % 3]}};
    }
    return lost;
}

// The same at any scale.
DEVICE float store_square(const SquareOutput& f, const float (&detail)[12], Tile t, int row, int column) {
    int y = t.y + row, x = t.x + column, hr_w = f.w * f.scale;
    float lost = 0;
    if (y >= f.h || x >= f.w) return lost;
    // offsets within one image fit an int
    float* output = f.output + f.start(t.image);
    const u8* target = f.target + f.start(t.image);
    Steps steps = f.steps();
    int dy = f.group * 4 / f.scale, dx = f.group * 4 - dy * f.scale;
    int hr_y = y * f.scale + dy, hr_x = x * f.scale + dx;
    Blurred blurred[1];
    ROLLED
    for (int k = 0; k < 4 && dy < f.scale; k++) {
        // needed for the first pixel of each row; further rows begin with dx == 0
        if (k == 0 || dx == 0) base_rows(blurred, f.cells, row, column, {((const Quad*)f.taps)[dy]});
        float target_rgb[3] = {0, 0, 0}, value[3];
        if (f.target) {
            const u8* pixel = target + (steps.start + hr_y * steps.down + hr_x * steps.across) * 3;
            UNROLL
            for (int o = 0; o < 3; o++) target_rgb[o] = (float)pixel[o];
        }
        base_pixel(blurred[0], ((const Quad*)f.taps)[dx], f.target != nullptr, target_rgb, value);
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
#include "reconstruct_back_mma.cuh"
#endif

// The transposed upsampling and blur for one value: the gradient of LQ pixel (y, x) from channel c
// of d_output, [H][W][3].
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

// The gradient of the input through the base. Simple and slow, because only tests need it. One
// thread a value.
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
