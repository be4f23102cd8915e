// SSIM and MS-SSIM of the clamped luma with their gradients; definitions and arithmetic are those
// of src/backend/cpu/structural.rs. The arithmetic works on s = x + y - 1 and d = x - y of the two
// lumas. A few images are computed at a time; each has, for each of its levels, planes [h][w] of s,
// d and gradient, and three of slopes, with one value a window. Outside the image both lumas are 0:
// s = -1, d = 0.
#include "common.cuh"

// One level of an image.
struct Level {
    int h, w;
    int pad;                // zeros around the image that windows reach: half a window where the image is smaller than one
    int rows, columns;      // of windows
    int patches;            // over the pixels; there are no more windows than pixels
    long long start;        // offset of its planes among the floats of an image
    int index, first;       // number of the level, and of its first patch
};
DEVICE Level first_level(int h, int w) {
    Level l = {h, w, 0, 0, 0, 0, 0, 0, 0};
    l.pad = (h < w ? h : w) < WINDOW ? WINDOW / 2 : 0;
    l.rows = h + 2 * l.pad + 1 - WINDOW;
    l.columns = w + 2 * l.pad + 1 - WINDOW;
    l.patches = ((h + PATCH_H - 1) / PATCH_H) * ((w + PATCH_W - 1) / PATCH_W);
    return l;
}
DEVICE Level next_level(const Level& fine) {
    Level l = first_level((fine.h + 1) / 2, (fine.w + 1) / 2);
    l.start = fine.start + (long long)PLANES * fine.h * fine.w;
    l.index = fine.index + 1;
    l.first = fine.first + fine.patches;
    return l;
}
// The level of a block's patch.
DEVICE Level level_of_patch(int h, int w, int patch) {
    Level l = first_level(h, w);
    while (patch >= l.first + l.patches) l = next_level(l);
    return l;
}

// The window applied to 11 values `step` apart.
DEVICE float gaussian(const float* from, int step) {
    float sum = 0;
    for (int t = 0; t < 5; t++) sum += GAUSSIAN[t] * (from[t * step] + from[(10 - t) * step]);
    return sum + GAUSSIAN[5] * from[5 * step];
}

DEVICE float clamp_unit(float v) { return v < 0.0f ? 0.0f : v > 1.0f ? 1.0f : v; }

// Reads the target of a pixel, in 0 .. 1, and prediction - target.
DEVICE void read_pixel(const Predictions& p, int pixel, float (&target)[3], float (&difference)[3]) {
    int image = pixel / (p.h * p.w), inside = pixel % (p.h * p.w);
    long long stored = pixel;
    if (p.target_bytes) stored = (long long)image * p.h * p.w + augmented(p.codes[image], inside / p.w, inside % p.w, p.h, p.w);
    for (int c = 0; c < 3; c++) {
        float value = p.values[(long long)pixel * 3 + c];
        target[c] = p.target_bytes ? (float)p.target_bytes[stored * 3 + c] / 255.0f : clamp_unit(p.target_floats[stored * 3 + c]);
        difference[c] = p.target_bytes ? value : value - target[c];
    }
}

// s and d of the finest level. One thread a pixel. Grid: ceil(images x h x w / 256). Least traffic
// a pixel: 12 + 3 bytes read, 8 written.
KERNEL(structural_planes) {
    const int h = arg.predictions.h, w = arg.predictions.w;
    int pixel = blockIdx.x * 256 + threadIdx.x;
    if (pixel >= arg.images * h * w) return;
    int image = pixel / (h * w), inside = pixel % (h * w);
    float t[3], d[3], sum = -1.0f, difference = 0.0f;
    read_pixel(arg.predictions, pixel, t, d);
    for (int c = 0; c < 3; c++) {
        // difference of the clamped prediction; a NaN stays
        float v = d[c] < -t[c] ? -t[c] : d[c] > 1.0f - t[c] ? 1.0f - t[c] : d[c];
        sum += LUMA[c] * (2.0f * t[c] + v);
        difference += LUMA[c] * v;
    }
    float* to = arg.planes + (long long)image * arg.floats_each;
    to[inside] = sum;
    to[h * w + inside] = difference;
}

// s and d of a level as 2x2 means of the finer one; with an odd size the first mean includes a row
// or column of zeros before the image. Grid: (ceil(pixels of the coarse level / 256), images).
// Least traffic: 8 bytes read a fine pixel, 8 written a coarse one.
KERNEL(structural_pool) {
    Level fine = first_level(arg.h, arg.w);
    for (int i = 1; i < arg.level; i++) fine = next_level(fine);
    Level coarse = next_level(fine);
    int pixel = blockIdx.x * 256 + threadIdx.x, size = coarse.h * coarse.w;
    if (pixel >= size) return;
    int y = pixel / coarse.w * 2 - fine.h % 2, x = pixel % coarse.w * 2 - fine.w % 2;
    const float* from = arg.planes + (long long)blockIdx.y * arg.floats_each + fine.start;
    float* to = arg.planes + (long long)blockIdx.y * arg.floats_each + coarse.start;
    for (int plane = 0; plane < 2; plane++) {
        float outside = plane == 0 ? -1.0f : 0.0f, value[2][2];
        for (int i = 0; i < 4; i++) {
            int row = y + i / 2, column = x + i % 2;
            // only rows and columns before the image can be outside
            value[i / 2][i % 2] = row >= 0 && column >= 0 ? from[plane * fine.h * fine.w + row * fine.w + column] : outside;
        }
        to[plane * size + pixel] = 0.25f * ((value[0][0] + value[0][1]) + (value[1][0] + value[1][1]));
    }
}

// The distances 1 - similarity of all windows of all levels, summed by block, and three slopes for
// each window's share in the mean similarity: with respect to the filtered s plus d, s^2, d^2.
// Grid: (patches of all levels, images). Shared memory: s and d of 42 x 26 pixels, then four fields
// filtered along 26 rows of 32. Least traffic: 8 bytes read a pixel, 12 written a window.
KERNEL(structural_windows) {
    float* s = (float*)shared_memory();
    float* d = s + REACH_H * REACH_W;
    float* filtered = d + REACH_H * REACH_W;
    Level l = level_of_patch(arg.h, arg.w, blockIdx.x);
    float* own = arg.planes + (long long)blockIdx.y * arg.floats_each + l.start;
    int size = l.h * l.w, across = (l.w + PATCH_W - 1) / PATCH_W, patch = blockIdx.x - l.first;
    int top = patch / across * PATCH_H, left = patch % across * PATCH_W;
    for (int i = threadIdx.x; i < REACH_H * REACH_W; i += 256) {
        int y = top + i / REACH_W - l.pad, x = left + i % REACH_W - l.pad;
        bool inside = y >= 0 && y < l.h && x >= 0 && x < l.w;
        s[i] = inside ? own[y * l.w + x] : -1.0f;
        d[i] = inside ? own[size + y * l.w + x] : 0.0f;
    }
    barrier();
    const int field = REACH_H * PATCH_W;
    for (int i = threadIdx.x; i < field; i += 256) {
        int at = i / PATCH_W * REACH_W + i % PATCH_W;
        float s2 = 0, d2 = 0;
        for (int t = 0; t < 5; t++) {
            float a = s[at + t], b = s[at + 10 - t], e = d[at + t], f = d[at + 10 - t];
            s2 += GAUSSIAN[t] * (a * a + b * b);
            d2 += GAUSSIAN[t] * (e * e + f * f);
        }
        filtered[i] = gaussian(s + at, 1);
        filtered[field + i] = gaussian(d + at, 1);
        filtered[2 * field + i] = s2 + GAUSSIAN[5] * (s[at + 5] * s[at + 5]);
        filtered[3 * field + i] = d2 + GAUSSIAN[5] * (d[at + 5] * d[at + 5]);
    }
    barrier();
    double sum = 0;
    int windows = l.rows * l.columns;
    float share = 1.0f / (float)windows;
    for (int i = threadIdx.x; i < PATCH_H * PATCH_W; i += 256) {
        int y = top + i / PATCH_W, x = left + i % PATCH_W;
        if (y >= l.rows || x >= l.columns) continue;
        float a = gaussian(filtered + i, PATCH_W), b = gaussian(filtered + field + i, PATCH_W);
        float var_s = gaussian(filtered + 2 * field + i, PATCH_W) - a * a;
        float var_d = gaussian(filtered + 3 * field + i, PATCH_W) - b * b;
        float inverse = 1.0f / (var_s + var_d + 2.0f * SSIM_C2);
        // 1 - contrast-structure, at most 1; a NaN stays
        float raw = 2.0f * var_d * inverse;
        float distance = raw > 1.0f ? 1.0f : raw;
        float open = raw < 1.0f ? inverse * share : 0.0f;
        float slope_s = raw * open, slope_d = -2.0f * (var_s + 2.0f * SSIM_C2) * inverse * open, slope = 0.0f;
        if (arg.luminance) {
            float both = a + 1.0f, rest = 1.0f / (0.5f * (both * both + b * b) + SSIM_C1);
            float dark = b * b * rest;
            slope = (1.0f - distance) * share * rest * (dark * both + b * (dark - 2.0f));
            slope_s *= 1.0f - dark;
            slope_d *= 1.0f - dark;
            distance = dark + distance - dark * distance;
        }
        sum += (double)distance;
        // a variance is the mean of squares minus the squared mean; the factor 2 is from the
        // derivative of a pixel's square
        float* slopes = own + 3LL * size + y * l.columns + x;
        slopes[0] = slope - 2.0f * (a * slope_s + b * slope_d);
        slopes[windows] = 2.0f * slope_s;
        slopes[2LL * windows] = 2.0f * slope_d;
    }
    // s and d are no longer needed
    double total = block_sum<256>((double*)shared_memory(), sum);
    if (threadIdx.x == 0) arg.partials[(long long)blockIdx.y * gridDim.x + blockIdx.x] = total;
}

// The transposed filter: the gradient of each level's mean similarity, from the slopes of all
// windows that contain a pixel. Grid: (patches of all levels, images). Shared memory: three slopes
// of 42 x 26 windows, then filtered along 26 rows of 32. Least traffic a pixel: 20 bytes read, 4
// written.
KERNEL(structural_spread) {
    float* slopes = (float*)shared_memory();
    float* filtered = slopes + 3 * REACH_H * REACH_W;
    Level l = level_of_patch(arg.h, arg.w, blockIdx.x);
    float* own = arg.planes + (long long)blockIdx.y * arg.floats_each + l.start;
    int size = l.h * l.w, across = (l.w + PATCH_W - 1) / PATCH_W, patch = blockIdx.x - l.first;
    int top = patch / across * PATCH_H, left = patch % across * PATCH_W;
    for (int i = threadIdx.x; i < REACH_H * REACH_W; i += 256) {
        int y = top + l.pad - (WINDOW - 1) + i / REACH_W, x = left + l.pad - (WINDOW - 1) + i % REACH_W;
        bool inside = y >= 0 && y < l.rows && x >= 0 && x < l.columns;
        const float* from = own + 3LL * size + y * l.columns + x;
        for (int f = 0; f < 3; f++) slopes[f * REACH_H * REACH_W + i] = inside ? from[(long long)f * l.rows * l.columns] : 0.0f;
    }
    barrier();
    const int field = REACH_H * PATCH_W;
    for (int i = threadIdx.x; i < field; i += 256) {
        int at = i / PATCH_W * REACH_W + i % PATCH_W;
        for (int f = 0; f < 3; f++) filtered[f * field + i] = gaussian(slopes + f * REACH_H * REACH_W + at, 1);
    }
    barrier();
    for (int i = threadIdx.x; i < PATCH_H * PATCH_W; i += 256) {
        int y = top + i / PATCH_W, x = left + i % PATCH_W;
        if (y >= l.h || x >= l.w) continue;
        float plain = gaussian(filtered + i, PATCH_W), times_s = gaussian(filtered + field + i, PATCH_W);
        float times_d = gaussian(filtered + 2 * field + i, PATCH_W);
        int pixel = y * l.w + x;
        own[2LL * size + pixel] = plain + (own[pixel] * times_s + own[size + pixel] * times_d);
    }
}

// An image's score, the product of its levels' means to the power of their exponents, and the
// factor of each level's gradient. Grid: images. Shared memory: 256 f64.
KERNEL(structural_score) {
    double means[LEVELS];
    Level l = first_level(arg.h, arg.w);
    for (int level = 0; level < LEVELS; level++) {
        double sum = 0;
        const double* own = arg.partials + (long long)blockIdx.x * arg.patches + l.first;
        if (level < arg.levels)
            for (int i = threadIdx.x; i < l.patches; i += 256) sum += own[i];
        double total = block_sum<256>((double*)shared_memory(), sum);
        double mean = 1.0 - total / ((double)l.rows * (double)l.columns);
        means[level] = mean < 0.0 ? 0.0 : mean;  // rounding can make it negative; NaN stays
        barrier();
        l = next_level(l);
    }
    if (threadIdx.x != 0) return;
    double score = 1.0;
    for (int level = 0; level < arg.levels; level++) score *= arg.levels == 1 ? means[0] : pow(means[level], MS_SSIM_EXPONENTS[level]);
    arg.scores[blockIdx.x] = score;
    double slope = -arg.scalars->micro_scale / (double)arg.of * (double)arg.weight * (double)arg.scalars->loss_scale;
    for (int level = 0; level < arg.levels; level++) {
        // a level with mean 0 has gradient 0, because its limit is infinite or undefined
        double exponent = arg.levels == 1 ? 1.0 : MS_SSIM_EXPONENTS[level];
        arg.factors[blockIdx.x * LEVELS + level] = score > 0.0 ? (float)(slope * exponent * score / means[level]) : 0.0f;
    }
}

// Adds all levels' gradients of a pixel, through luma and clamp, to d_prediction. One thread a
// pixel. Grid: ceil(images x h x w / 256). Least traffic a pixel: 4 x 1.33 + 27 bytes read, 12
// written.
KERNEL(structural_gradient) {
    const int h = arg.predictions.h, w = arg.predictions.w;
    int pixel = blockIdx.x * 256 + threadIdx.x;
    if (pixel >= arg.images * h * w) return;
    int image = pixel / (h * w), y = pixel % (h * w) / w, x = pixel % w;
    const float* own = arg.planes + (long long)image * arg.floats_each;
    Level l = first_level(h, w);
    float sum = 0, share = 1.0f;
    for (int level = 0; level < arg.levels; level++) {
        sum += share * arg.factors[image * LEVELS + level] * own[l.start + 2LL * l.h * l.w + y * l.w + x];
        share *= 0.25f;
        y = (y + l.h % 2) / 2;
        x = (x + l.w % 2) / 2;
        l = next_level(l);
    }
    float t[3], d[3];
    read_pixel(arg.predictions, pixel, t, d);
    for (int c = 0; c < 3; c++)
        if (d[c] >= -t[c] && d[c] <= 1.0f - t[c]) arg.d_prediction[(long long)pixel * 3 + c] += LUMA[c] * sum;
}

// Adds the images' scores to those of earlier slices; after the last slice the weighted loss of
// their mean is added to metrics[0]. One lane of one warp works.
KERNEL(finish_structural) {
    if (threadIdx.x != 0) return;
    double sum = arg.flags & SLICE_CONTINUES ? *arg.total : 0.0;
    for (int i = 0; i < arg.images; i++) sum += arg.scores[i];
    *arg.total = sum;
    if (!(arg.flags & SLICE_LAST)) return;
    double mean = sum / (double)arg.of;
    double inside = mean < 0.0 ? 0.0 : mean > 1.0 ? 1.0 : mean;
    arg.metrics[0] += (double)arg.weight * (1.0 - inside) * arg.scalars->micro_scale;
}
