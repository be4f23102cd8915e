// SSIM and MS-SSIM of the clamped luma with their gradients; definitions and arithmetic are those
// of src/backend/cpu/structural.rs. The arithmetic works on s = x + y - 1 and d = x - y of the two
// lumas x and y. For each of its levels, an image has three slopes of every window, by patches of 32
// x 32 windows; and for the coarser ones planes [h][w] of s, d and the gradient. At the finest level
// s and d are computed from the pixels wherever they are needed, which takes less time than to write
// and read them. Outside the image both lumas are 0: s = -1, d = 0.
//
// Positions among all pixels, and among the floats of a launch, fit an int; the lowering checks it.
#include "pixel_terms.cuh"

// One level of an image.
struct Level {
    int h, w;
    int pad;                // zeros around the image that windows reach: half a window where the image is smaller than one
    int rows, columns;      // of windows
    int across, patches;    // over the pixels; there are no more windows than pixels
    int start;              // of its floats among those of the image
    int index, first;       // number of the level, and of its first patch
};
DEVICE Level first_level(int h, int w) {
    Level l = {h, w, 0, 0, 0, 0, 0, 0, 0, 0};
    l.pad = (h < w ? h : w) < WINDOW ? WINDOW / 2 : 0;
    l.rows = h + 2 * l.pad + 1 - WINDOW;
    l.columns = w + 2 * l.pad + 1 - WINDOW;
    l.across = (w + PATCH_W - 1) / PATCH_W;
    l.patches = (h + PATCH_H - 1) / PATCH_H * l.across;
    return l;
}
DEVICE Level next_level(const Level& fine) {
    Level l = first_level((fine.h + 1) / 2, (fine.w + 1) / 2);
    l.start = fine.start + fine.patches * SLOPES + (fine.index == 0 ? 0 : 3 * fine.h * fine.w);
    l.index = fine.index + 1;
    l.first = fine.first + fine.patches;
    return l;
}
// Where, after its start, a level has its planes, and the first slope of a window; the other two
// follow at a distance of a patch each.
DEVICE int plane_of(const Level& l, int plane) { return l.patches * SLOPES + plane * l.h * l.w; }
DEVICE int slope_of(const Level& l, u32 row, u32 column) {
    u32 patch = row / PATCH_H * l.across + column / PATCH_W;
    return patch * SLOPES + row % PATCH_H * PATCH_W + column % PATCH_W;
}

// The part of a level that a block takes.
struct Patch {
    Level level;
    int number, top, left;
};
DEVICE Patch patch_of(int h, int w, int number) {
    Patch p = {first_level(h, w), number, 0, 0};
    while (number >= p.level.first + p.level.patches) p.level = next_level(p.level);
    int own = number - p.level.first;
    p.top = own / p.level.across * PATCH_H;
    p.left = own % p.level.across * PATCH_W;
    return p;
}

DEVICE bool within(int at, int size) { return (u32)at < (u32)size; }
// The same position where it is within the size, else one that may be read.
DEVICE int readable(int at, int size) { return (u32)at < (u32)size ? at : size - 1; }

// Where the prediction and the target of an image are.
struct Image {
    int first, w;  // pixels before it
    Steps steps;   // from `first` on, of a target of bytes
};
DEVICE Image image_of(const Predictions& p, int image) {
    Image m = {image * p.h * p.w, p.w, {0, 0, 0}};
    if (p.target_bytes) m.steps = augmentation(p.codes[image], p.h, p.w);
    m.steps.start += m.first;
    return m;
}
// A pixel as it is loaded: prediction - target, and the target, which is 0 .. 255 where it is bytes
// and 0 .. 1 where it is floats. `bytes` must be `p.target_bytes != nullptr`.
struct Pixel {
    float difference[3], target[3];
};
DEVICE Pixel load_pixel(const Predictions& p, const Image& m, bool bytes, int y, int x) {
    Pixel pixel;
    int at = (m.first + y * m.w + x) * 3, stored = (m.steps.start + y * m.steps.down + x * m.steps.across) * 3;
    UNROLL
    for (int c = 0; c < 3; c++) pixel.difference[c] = p.values[at + c];
    UNROLL
    for (int c = 0; c < 3; c++) {
        if (bytes) {
            pixel.target[c] = (float)p.target_bytes[stored + c];
        } else {
            float t = p.target_floats[at + c];
            pixel.target[c] = t < 0.0f ? 0.0f : t > 1.0f ? 1.0f : t;
            pixel.difference[c] -= pixel.target[c];
        }
    }
    return pixel;
}
// Makes a pixel's target 0 .. 1.
DEVICE void divide_target(bool bytes, Pixel& pixel) {
    UNROLL
    for (int c = 0; c < 3; c++) pixel.target[c] = bytes ? over_255(pixel.target[c]) : pixel.target[c];
}
// s and d of a pixel.
struct Lumas {
    float s, d;
};
// Makes a difference that of the clamped prediction; a NaN stays.
DEVICE float clamped(float d, float target) { return least_or_nan(greatest_or_nan(d, -target), 1.0f - target); }
DEVICE Lumas lumas_of(const Pixel& pixel) {
    Lumas l = {-1.0f, 0.0f};
    UNROLL
    for (int c = 0; c < 3; c++) {
        float t = pixel.target[c], v = clamped(pixel.difference[c], t);
        l.s += LUMA[c] * (2.0f * t + v);
        l.d += LUMA[c] * v;
    }
    return l;
}

// s and d of a level as 2x2 means of the finer one; with an odd size the first mean includes a row
// or column of zeros before the image. Grid: (ceil(pixels of the coarse level / 256), images).
// Least traffic: 15 bytes read a pixel of the finest level, 8 of others; 8 written a coarse one.
KERNEL(structural_pool) {
    const bool bytes = arg.predictions.target_bytes;
    Level fine = first_level(arg.predictions.h, arg.predictions.w);
    for (int i = 1; i < arg.level; i++) fine = next_level(fine);
    Level coarse = next_level(fine);
    int pixel = blockIdx.x * 256 + threadIdx.x, size = coarse.h * coarse.w;
    if (pixel >= size) return;
    int y = pixel / coarse.w * 2 - fine.h % 2, x = pixel % coarse.w * 2 - fine.w % 2, own = blockIdx.y * arg.floats_each;
    const float* from = arg.floats + own + fine.start;
    Image image = image_of(arg.predictions, blockIdx.y);
    Lumas value[4];
    for (int i = 0; i < 4; i++) {
        int row = y + i / 2, column = x + i % 2, at = row * fine.w + column;
        value[i] = {-1.0f, 0.0f};
        // only rows and columns before the image can be outside
        if (row < 0 || column < 0) continue;
        if (fine.index == 0) {
            Pixel finest = load_pixel(arg.predictions, image, bytes, row, column);
            divide_target(bytes, finest);
            value[i] = lumas_of(finest);
        } else {
            value[i] = {from[plane_of(fine, 0) + at], from[plane_of(fine, 1) + at]};
        }
    }
    float* to = arg.floats + own + coarse.start + pixel;
    to[plane_of(coarse, 0)] = 0.25f * ((value[0].s + value[1].s) + (value[2].s + value[3].s));
    to[plane_of(coarse, 1)] = 0.25f * ((value[0].d + value[1].d) + (value[2].d + value[3].d));
}

// The window along a row: a thread of the first 5.25 warps has eight neighbouring results of one of
// the patch's 42 rows, and loads the 18 values that they reach (and two more) once. A row's results
// take the place of its values, which the four lanes of the row have loaded by then. The length of a row,
// REACH_ROW, gives lanes that load or store together different banks.
struct __attribute__((aligned(16))) Four {
    float value[4];
};
const int ALONG = 8, ALONG_UNITS = REACH_H * (PATCH_W / ALONG), ALONG_THREADS = (ALONG_UNITS + 31) / 32 * 32;
const int PLANE = REACH_H * REACH_ROW;
// Lanes without a row load the last one.
DEVICE int along_row() {
    int row = threadIdx.x / (PATCH_W / ALONG);
    return row < REACH_H ? row : REACH_H - 1;
}
DEVICE int along_column() { return threadIdx.x % (PATCH_W / ALONG) * ALONG; }
DEVICE void load_along(const float* plane, float (&to)[20]) {
    const Four* from = (const Four*)(plane + along_row() * REACH_ROW + along_column());
    UNROLL
    for (int i = 0; i < 5; i++) {
        Four four = from[i];
        UNROLL
        for (int j = 0; j < 4; j++) to[4 * i + j] = four.value[j];
    }
}
struct Along {
    Four part[ALONG / 4];
};
DEVICE Along filter_along(const float (&from)[20]) {
    Along sums;
    UNROLL
    for (int at = 0; at < ALONG; at++) {
        float sum = GAUSSIAN[5] * from[at + 5];
        UNROLL
        for (int t = 0; t < 5; t++) sum += GAUSSIAN[t] * (from[at + t] + from[at + 10 - t]);
        sums.part[at / 4].value[at % 4] = sum;
    }
    return sums;
}
DEVICE void store_along(const Along& sums, float* filtered) {
    if (threadIdx.x >= ALONG_UNITS) return;
    *(Along*)(filtered + along_row() * REACH_ROW + along_column()) = sums;
}

// The window down a column: a lane has a column of the patch, a thread four neighbouring results.
const int DOWN = 4;
DEVICE int down_row() { return threadIdx.x / PATCH_W * DOWN; }
DEVICE int down_column() { return threadIdx.x % PATCH_W; }
DEVICE void filter_down(const float* filtered, float (&to)[DOWN]) {
    const float* from = filtered + down_row() * REACH_ROW + down_column();
    float value[DOWN + 10];
    UNROLL
    for (int i = 0; i < DOWN + 10; i++) value[i] = from[i * REACH_ROW];
    UNROLL
    for (int i = 0; i < DOWN; i++) {
        float sum = GAUSSIAN[5] * value[i + 5];
        UNROLL
        for (int t = 0; t < 5; t++) sum += GAUSSIAN[t] * (value[i + t] + value[i + 10 - t]);
        to[i] = sum;
    }
}

// Loads s and d of the pixels that a patch's windows reach, COUNT pixels a thread with bytes as
// targets: the loads of all are issued before the first one is used.
template <int COUNT>
DEVICE void load_lumas(const Predictions& from, const Image& image, const Patch& p, int first, float* s, float* d) {
    const Level& l = p.level;
    Pixel pixel[COUNT];
    bool inside[COUNT];
    UNROLL
    for (int k = 0; k < COUNT; k++) {
        u32 i = first + 256 * k + threadIdx.x;
        int y = p.top - l.pad + (int)(i / REACH_W), x = p.left - l.pad + (int)(i % REACH_W);
        inside[k] = within(y, l.h) && within(x, l.w);
        pixel[k] = load_pixel(from, image, true, readable(y, l.h), readable(x, l.w));
    }
    UNROLL
    for (int k = 0; k < COUNT; k++) {
        u32 i = first + 256 * k + threadIdx.x, to = i + i / REACH_W * (REACH_ROW - REACH_W);
        if (i >= REACH_H * REACH_W) continue;
        divide_target(true, pixel[k]);
        Lumas v = lumas_of(pixel[k]);
        s[to] = inside[k] ? v.s : -1.0f;
        d[to] = inside[k] ? v.d : 0.0f;
    }
}

// The sum of a value of every thread of a block, of which `warps` has those of the eight warps.
DEVICE double warps_sum(const TwoFloats* warps) {
    TwoFloats sum = {0, 0};
    UNROLL
    for (int i = 0; i < 8; i++) add(sum, warps[i]);
    return to_double(sum);
}

// The similarity of a window, from its filtered fields: 1 - similarity, and three slopes, with
// respect to the filtered s plus d, s^2, d^2.
struct Similarity {
    float distance, slope, slope_s, slope_d;
};
DEVICE Similarity similarity(float a, float b, float squares_s, float squares_d, bool luminance, float share) {
    Similarity r;
    float var_s = squares_s - a * a, var_d = squares_d - b * b;
    float inverse = fast_reciprocal(var_s + var_d + 2.0f * SSIM_C2);
    // 1 - contrast-structure, at most 1; a NaN stays
    float raw = 2.0f * var_d * inverse;
    r.distance = raw > 1.0f ? 1.0f : raw;
    float open = raw < 1.0f ? inverse * share : 0.0f;
    float slope_s = raw * open, slope_d = -2.0f * (var_s + 2.0f * SSIM_C2) * inverse * open, slope = 0.0f;
    if (luminance) {
        float both = a + 1.0f, rest = fast_reciprocal(0.5f * (both * both + b * b) + SSIM_C1);
        float dark = b * b * rest;
        slope = (1.0f - r.distance) * share * rest * (dark * both + b * (dark - 2.0f));
        slope_s *= 1.0f - dark;
        slope_d *= 1.0f - dark;
        r.distance = dark + r.distance - dark * r.distance;
    }
    // a variance is the mean of squares minus the squared mean; the factor 2 is from the derivative
    // of a pixel's square
    r.slope = slope - 2.0f * (a * slope_s + b * slope_d);
    r.slope_s = 2.0f * slope_s;
    r.slope_d = 2.0f * slope_d;
    return r;
}

// The distances 1 - similarity of all windows of all levels, summed by block, and the slopes of each
// window's share in the mean similarity. Grid: (patches of all levels, images). Shared memory: s and
// d of 42 x 42 pixels; then, in their place and behind it, four fields filtered along 42 rows of 32. Least
// traffic: 15 bytes read a pixel (8 at coarser levels), 12 written a window.
KERNEL(structural_windows) {
    float* s = (float*)shared_memory();
    float* d = s + PLANE;
    Patch p = patch_of(arg.predictions.h, arg.predictions.w, blockIdx.x);
    Level l = p.level;
    float* own = arg.floats + (int)blockIdx.y * arg.floats_each + l.start;
    Image image = image_of(arg.predictions, blockIdx.y);
    if (l.index == 0 && arg.predictions.target_bytes) {
        load_lumas<4>(arg.predictions, image, p, 0, s, d);
        load_lumas<3>(arg.predictions, image, p, 4 * 256, s, d);
    } else {
        ROLLED
        for (int i = threadIdx.x; i < REACH_H * REACH_W; i += 256) {
            int y = p.top + i / REACH_W - l.pad, x = p.left + i % REACH_W - l.pad, to = i / REACH_W * REACH_ROW + i % REACH_W, at = y * l.w + x;
            Lumas v = {-1.0f, 0.0f};
            if (within(y, l.h) && within(x, l.w))
                v = l.index == 0 ? lumas_of(load_pixel(arg.predictions, image, false, y, x)) : Lumas{own[plane_of(l, 0) + at], own[plane_of(l, 1) + at]};
            s[to] = v.s;
            d[to] = v.d;
        }
    }
    barrier();
    if (threadIdx.x < ALONG_THREADS) {
        UNROLL
        for (int f = 0; f < 2; f++) {
            float value[20];
            load_along(s + f * PLANE, value);
            Along sums = filter_along(value);
            warp_barrier();
            store_along(sums, s + f * PLANE);
            UNROLL
            for (int i = 0; i < 20; i++) value[i] *= value[i];
            store_along(filter_along(value), s + (2 + f) * PLANE);
        }
    }
    barrier();
    float fields[4][DOWN];
    UNROLL
    for (int f = 0; f < 4; f++) filter_down(s + f * PLANE, fields[f]);
    int x = p.left + down_column();
    float share = 1.0f / (float)(l.rows * l.columns);
    // a mean near 0 is what is left of 1 - sum, so f32 would have few of its bits
    TwoFloats sum = {0, 0};
    float* slopes = own + (p.number - l.first) * SLOPES + threadIdx.x / PATCH_W * DOWN * PATCH_W + down_column();
    UNROLL
    for (int k = 0; k < DOWN; k++) {
        int y = p.top + down_row() + k;
        if (y >= l.rows || x >= l.columns) continue;
        Similarity r = similarity(fields[0][k], fields[1][k], fields[2][k], fields[3][k], arg.luminance, share);
        add(sum, r.distance);
        slopes[k * PATCH_W] = r.slope;
        slopes[k * PATCH_W + SLOPES / 3] = r.slope_s;
        slopes[k * PATCH_W + SLOPES / 3 * 2] = r.slope_d;
    }
    TwoFloats* warps = (TwoFloats*)(s + 4 * PLANE);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    barrier();
    if (threadIdx.x == 0) arg.partials[(long long)blockIdx.y * gridDim.x + blockIdx.x] = warps_sum(warps);
}

// MS-SSIM: an image's score, the product of its levels' means to the power of their exponents, and
// the factor of each level's gradient. Grid: images. Shared memory: twice 256 f64, in turns, so that
// no thread adds up a level while others still read the sum of the one before.
KERNEL(structural_score) {
    double means[LEVELS];
    Level l = first_level(arg.h, arg.w);
    for (int level = 0; level < arg.levels; level++) {
        double sum = 0;
        const double* own = arg.partials + (long long)blockIdx.x * arg.patches + l.first;
        for (int i = threadIdx.x; i < l.patches; i += 256) sum += own[i];
        double total = block_sum<256>((double*)shared_memory() + level % 2 * 256, sum);
        double mean = 1.0 - total / ((double)l.rows * (double)l.columns);
        means[level] = mean < 0.0 ? 0.0 : mean;  // rounding can make it negative; NaN stays
        l = next_level(l);
    }
    if (threadIdx.x != 0) return;
    double score = 1.0;
    for (int level = 0; level < arg.levels; level++) score *= pow(means[level], MS_SSIM_EXPONENTS[level]);
    arg.scores[blockIdx.x] = score;
    double slope = -arg.scalars->micro_scale / (double)arg.of * (double)arg.weight * (double)arg.scalars->loss_scale;
    for (int level = 0; level < arg.levels; level++) {
        // a level with mean 0 has gradient 0, because its limit is infinite or undefined
        double exponent = MS_SSIM_EXPONENTS[level];
        arg.factors[blockIdx.x * LEVELS + level] = score > 0.0 ? (float)(slope * exponent * score / means[level]) : 0.0f;
    }
}

// A patch's share in the loss. The first patch has all of MS-SSIM's, which is known only of whole
// images.
DEVICE double structural_share(const structural_spread_arguments& arg, const Patch& p, int image) {
    if (arg.scores && p.number != 0) return 0.0;
    double distance = arg.scores ? 1.0 - arg.scores[image] : arg.partials[(long long)image * p.level.patches + p.number];
    // rounding can make it negative; a NaN stays
    return (distance < 0.0 ? 0.0 : distance) * arg.share;
}

// The gradients of the coarser levels for the pixels of a thread at the finest one.
DEVICE void coarse_gradients(const structural_spread_arguments& arg, int image, int y, int x, float (&sums)[DOWN]) {
    const float* own = arg.floats + image * arg.floats_each;
    Level l = first_level(arg.predictions.h, arg.predictions.w);
    int rows[DOWN];
    for (int k = 0; k < DOWN; k++) {
        rows[k] = y + k;
        sums[k] = 0;
    }
    float share = 1.0f;
    ROLLED
    for (int level = 1; level < LEVELS; level++) {
        int odd_y = l.h % 2, odd_x = l.w % 2;
        x = (x + odd_x) / 2;
        l = next_level(l);
        share *= 0.25f;
        float factor = share * arg.factors[image * LEVELS + level];
        UNROLL
        for (int k = 0; k < DOWN; k++) {
            rows[k] = (rows[k] + odd_y) / 2;
            if (rows[k] < l.h && x < l.w) sums[k] += factor * own[l.start + plane_of(l, 2) + rows[k] * l.w + x];
        }
    }
}

// The transposed filter: the gradient of each level's mean similarity, from the slopes of all
// windows that contain a pixel. At coarser levels it is stored. At the finest level those of all
// levels go through luma and clamp to d_prediction, to which they are added; WITH_PIXEL_LOSS computes
// the pixel losses of a u8 target first, and their gradient with these goes there. The shares of a
// block's patch in the losses are added up.
template <bool WITH_PIXEL_LOSS>
DEVICE void spread(const structural_spread_arguments& arg) {
    float* slopes = (float*)shared_memory();
    float* scales = slopes + 3 * PLANE;
    Patch p = patch_of(arg.predictions.h, arg.predictions.w, arg.first + (int)blockIdx.x);
    Level l = p.level;
    int image = blockIdx.y, y = p.top + down_row(), x = p.left + down_column();
    float* own = arg.floats + image * arg.floats_each + l.start;
    const bool finest = WITH_PIXEL_LOSS || l.index == 0, bytes = WITH_PIXEL_LOSS || arg.predictions.target_bytes;
    const int each = (REACH_H * REACH_W + 255) / 256;
    float loaded[each][3];
    UNROLL
    for (int k = 0; k < each; k++) {
        u32 i = 256 * k + threadIdx.x;
        int row = p.top + l.pad - (WINDOW - 1) + (int)(i / REACH_W), column = p.left + l.pad - (WINDOW - 1) + (int)(i % REACH_W);
        bool inside = within(row, l.rows) && within(column, l.columns);
        int at = slope_of(l, readable(row, l.rows), readable(column, l.columns));
        UNROLL
        for (int f = 0; f < 3; f++) loaded[k][f] = inside ? own[at + f * (SLOPES / 3)] : 0.0f;
    }
    // the pixels arrive while the slopes are filtered
    Image prediction = image_of(arg.predictions, image);
    Pixel pixels[DOWN];
    UNROLL
    for (int k = 0; k < DOWN; k++) {
        pixels[k] = {{0, 0, 0}, {0, 0, 0}};
        if (finest) pixels[k] = load_pixel(arg.predictions, prediction, bytes, readable(y + k, l.h), readable(x, l.w));
    }
    UNROLL
    for (int k = 0; k < each; k++) {
        u32 i = 256 * k + threadIdx.x, to = i + i / REACH_W * (REACH_ROW - REACH_W);
        if (i >= REACH_H * REACH_W) continue;
        UNROLL
        for (int f = 0; f < 3; f++) slopes[f * PLANE + to] = loaded[k][f];
    }
    barrier();
    double share = 0;
    double* shares = arg.shares + (long long)image * l.patches + p.number;
    if (threadIdx.x < ALONG_THREADS) {
        UNROLL
        for (int f = 0; f < 3; f++) {
            float value[20];
            load_along(slopes + f * PLANE, value);
            Along sums = filter_along(value);
            warp_barrier();
            store_along(sums, slopes + f * PLANE);
        }
    } else if (threadIdx.x == 255 && finest) {
        // Its warp has nothing else to do meanwhile. The gradient of SSIM's only level does not
        // depend on the score: where all windows have the least similarity, so that the mean is 0,
        // all slopes are 0.
        share = (arg.adds ? *shares : 0.0) + structural_share(arg, p, image);
        double scale = (double)arg.scalars->micro_scale;
        scales[0] = (float)(scale * arg.per_value) * arg.scalars->loss_scale;
        scales[1] = arg.factors ? arg.factors[image * LEVELS] : (float)(scale * arg.slope * (double)arg.scalars->loss_scale);
    }
    barrier();
    float fields[3][DOWN];
    UNROLL
    for (int f = 0; f < 3; f++) filter_down(slopes + f * PLANE, fields[f]);
    if (!finest) {
        for (int k = 0; k < DOWN; k++) {
            int at = (y + k) * l.w + x;
            if (y + k >= l.h || x >= l.w) continue;
            float v = own[plane_of(l, 0) + at] * fields[1][k] + own[plane_of(l, 1) + at] * fields[2][k];
            own[plane_of(l, 2) + at] = fields[0][k] + v;
        }
        return;
    }
    float coarse[DOWN] = {0, 0, 0, 0}, losses = 0;
    if (arg.factors) coarse_gradients(arg, image, y, x, coarse);
    const PixelTerms terms = {arg.l1, arg.charbonnier, arg.mse, scales[0]};
    const float factor = scales[1];
    UNROLL
    for (int k = 0; k < DOWN; k++) {
        if (y + k >= l.h || x >= l.w) continue;
        divide_target(bytes, pixels[k]);
        Lumas v = lumas_of(pixels[k]);
        float sum = factor * (fields[0][k] + (v.s * fields[1][k] + v.d * fields[2][k])) + coarse[k];
        float* to = arg.d_prediction + (prediction.first + (y + k) * l.w + x) * 3;
        float gradient[3];
        UNROLL
        for (int c = 0; c < 3; c++) gradient[c] = WITH_PIXEL_LOSS ? pixels[k].difference[c] : to[c];
        if (WITH_PIXEL_LOSS) losses += pixel_losses(terms, gradient);
        UNROLL
        for (int c = 0; c < 3; c++) {
            float d = pixels[k].difference[c];
            to[c] = d == clamped(d, pixels[k].target[c]) ? gradient[c] + LUMA[c] * sum : gradient[c];
        }
    }
    TwoFloats* warps = (TwoFloats*)(scales + 2);
    losses = warp_sum(losses);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = {losses, 0};
    barrier();
    if (threadIdx.x == 255) *shares = share + warps_sum(warps) * arg.per_value;
}

// Grid: (patches from the first one on, images). Shared memory: three slopes of 42 x 42 windows,
// then, in their place, these filtered along 42 rows of 32; eighteen f32. Least traffic a pixel: 39 bytes read
// (28 at coarser levels, where s and d are stored), 12 written (4).
KERNEL_CROWDED(structural_spread, 3) { spread<false>(arg); }

// The same for the patches of the finest level and u8 targets. Least traffic a pixel: 27 bytes read,
// 12 written.
KERNEL_CROWDED(structural_spread_losses, 3) { spread<true>(arg); }
