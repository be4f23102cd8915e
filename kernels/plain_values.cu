// Functions, products and sums of activations value by value, copies of channels, and the pixel
// shuffle. Depends on plain.cuh. All are bound by memory: every value is read and written once.
#include "plain.cuh"

// Grid: blocks of pixels. The backward kernel adds up the gradient of PReLU's slopes, if there are
// partials: [blocks][channels].
KERNEL(plain_activate) {
    Pieces p = pieces_of(arg.stride);
    for (int pixel = first_pixel(p, arg.pixels); pixel < arg.pixels; pixel += next_pixel(p)) {
        long long at = (long long)pixel * arg.stride + p.channel;
        float v[PIECE];
        load_piece(arg.input + at, v);
        UNROLL
        for (int k = 0; k < PIECE; k++) v[k] = function_value(arg.function, v[k], p.channel + k);
        store_piece(arg.output + at, v);
    }
}
KERNEL(plain_activate_back) {
    Pieces p = pieces_of(arg.stride);
    float sums[PIECE];
    UNROLL
    for (int k = 0; k < PIECE; k++) sums[k] = 0;
    for (int pixel = first_pixel(p, arg.pixels); pixel < arg.pixels; pixel += next_pixel(p)) {
        long long at = (long long)pixel * arg.stride + p.channel;
        float z[PIECE], d[PIECE];
        load_piece(arg.input + at, z);
        load_piece(arg.d_output + at, d);
        UNROLL
        for (int k = 0; k < PIECE; k++) {
            sums[k] += d[k] * (z[k] < 0.0f ? z[k] : 0.0f);
            d[k] *= function_slope(arg.function, z[k], p.channel + k);
        }
        put_piece(arg.d_input + at, d, arg.add);
    }
    if (arg.partials) store_channel_sums(sums, p, arg.stride, arg.function.channels, arg.partials + (long long)blockIdx.x * arg.function.channels);
}

// sigmoid(a) - 1/2 without losing the bits of a small a.
DEVICE float centred_sigmoid(float a) { return 0.5f * tanhf(0.5f * a); }

// Without b: the product of the halves of a's channels, clamped to +-limit; with b SPAN's attention
// (a + b) (sigmoid(a) - 1/2). stride is that of the output.
KERNEL(plain_gate) {
    Pieces p = pieces_of(arg.stride);
    for (int pixel = first_pixel(p, arg.pixels); pixel < arg.pixels; pixel += next_pixel(p)) {
        long long at = (long long)pixel * arg.stride + p.channel, wide = at + (arg.b ? 0 : (long long)pixel * arg.stride);
        float a[PIECE], b[PIECE];
        load_piece(arg.a + wide, a);
        load_piece(arg.b ? arg.b + at : arg.a + wide + arg.stride, b);
        UNROLL
        for (int k = 0; k < PIECE; k++) {
            if (arg.b) {
                a[k] = (a[k] + b[k]) * centred_sigmoid(a[k]);
            } else {
                float product = a[k] * b[k];
                // in this order NaN stays NaN
                product = product < -arg.limit ? -arg.limit : product;
                a[k] = product > arg.limit ? arg.limit : product;
            }
        }
        store_piece(arg.output + at, a);
    }
}
KERNEL(plain_gate_back) {
    Pieces p = pieces_of(arg.stride);
    for (int pixel = first_pixel(p, arg.pixels); pixel < arg.pixels; pixel += next_pixel(p)) {
        long long at = (long long)pixel * arg.stride + p.channel, wide = at + (arg.b ? 0 : (long long)pixel * arg.stride);
        float a[PIECE], b[PIECE], d[PIECE];
        load_piece(arg.a + wide, a);
        load_piece(arg.b ? arg.b + at : arg.a + wide + arg.stride, b);
        load_piece(arg.d_output + at, d);
        UNROLL
        for (int k = 0; k < PIECE; k++) {
            float x = a[k], y = b[k];
            if (arg.b) {
                float half = centred_sigmoid(x);
                a[k] = d[k] * (half + (x + y) * (0.25f - half * half));
                b[k] = d[k] * half;
            } else {
                float product = x * y, passed = fabsf(product) > arg.limit ? 0.0f : d[k];
                a[k] = passed * y;
                b[k] = passed * x;
            }
        }
        put_piece(arg.d_a + wide, a, arg.add_a);
        if (!arg.b) put_piece(arg.d_a + wide + arg.stride, b, arg.add_a);
        if (arg.d_b) put_piece(arg.d_b + at, b, arg.add_b);
    }
}

// Copies `count` channels of every pixel, and writes zeros (or adds nothing) to `filled` - `count`
// channels after them. One thread a channel. Grid: persistent.
KERNEL(plain_copy) {
    u32 total = (u32)arg.pixels * arg.filled;
    for (u32 i = blockIdx.x * 256 + threadIdx.x; i < total; i += gridDim.x * 256) {
        int pixel = i / (u32)arg.filled, c = i - (u32)pixel * arg.filled;
        float value = c < arg.count ? to_float(arg.from[(long long)pixel * arg.from_stride + arg.from_first + c]) : 0.0f;
        act* to = arg.to + (long long)pixel * arg.to_stride + arg.to_first + c;
        *to = to_act(arg.add ? to_float(*to) + value : value);
    }
}

// a + gamma x b, gamma being 1 where it is null. The output may be a.
DEVICE float gamma_of(const float* gamma, int channel, int channels) { return !gamma ? 1.0f : channel < channels ? gamma[channel] : 0.0f; }
KERNEL(plain_sum) {
    Pieces p = pieces_of(arg.stride);
    for (int pixel = first_pixel(p, arg.pixels); pixel < arg.pixels; pixel += next_pixel(p)) {
        long long at = (long long)pixel * arg.stride + p.channel;
        float a[PIECE], b[PIECE];
        load_piece(arg.a + at, a);
        load_piece(arg.b + at, b);
        UNROLL
        for (int k = 0; k < PIECE; k++) a[k] += gamma_of(arg.gamma, p.channel + k, arg.channels) * b[k];
        store_piece(arg.output + at, a);
    }
}
// Partials of gamma's gradient: [blocks][channels].
KERNEL(plain_sum_back) {
    Pieces p = pieces_of(arg.stride);
    float sums[PIECE];
    UNROLL
    for (int k = 0; k < PIECE; k++) sums[k] = 0;
    for (int pixel = first_pixel(p, arg.pixels); pixel < arg.pixels; pixel += next_pixel(p)) {
        long long at = (long long)pixel * arg.stride + p.channel;
        float d[PIECE], v[PIECE];
        load_piece(arg.d_output + at, d);
        if (arg.partials) {
            load_piece(arg.b + at, v);
            UNROLL
            for (int k = 0; k < PIECE; k++) sums[k] += d[k] * v[k];
        }
        if (arg.d_b) {
            UNROLL
            for (int k = 0; k < PIECE; k++) v[k] = gamma_of(arg.gamma, p.channel + k, arg.channels) * d[k];
            put_piece(arg.d_b + at, v, arg.add_b);
        }
        if (arg.d_a) put_piece(arg.d_a + at, d, arg.add_a);
    }
    if (arg.partials) store_channel_sums(sums, p, arg.stride, arg.channels, arg.partials + (long long)blockIdx.x * arg.channels);
}

// Pixel shuffle to RGB, plus the nearest pixel of `base`, minus the u8 target; base - target is
// exact in units of 1/255. One thread an HR pixel. Grid: persistent.
KERNEL(plain_shuffle) {
    const int scale = arg.scale, wide = arg.w * scale, high = arg.h * scale;
    int pixels = arg.images * wide * high;
    for (int pixel = blockIdx.x * 256 + threadIdx.x; pixel < pixels; pixel += gridDim.x * 256) {
        int line = pixel / wide, x = pixel - line * wide, image = line / high, y = line - image * high;
        long long lq = ((long long)image * arg.h + y / scale) * arg.w + x / scale;
        const act* from = arg.input + lq * arg.stride + y % scale * scale + x % scale;
        const u8* target = nullptr;
        if (arg.target) target = arg.target + ((long long)image * high * wide + augmented(arg.codes[image], y, x, high, wide)) * 3;
        for (int c = 0; c < 3; c++) {
            float value = arg.base ? arg.base[lq * 3 + c] : 0.0f;
            if (target) value = ((arg.base ? rintf(value * 255.0f) : 0.0f) - (float)target[c]) / 255.0f;
            arg.output[(long long)pixel * 3 + c] = value + to_float(from[c * scale * scale]);
        }
    }
}
// One thread a channel of an LQ pixel; the first three also add up the gradient of the base.
KERNEL(plain_shuffle_back) {
    const int scale = arg.scale, square = scale * scale, wide = arg.w * scale;
    u32 total = (u32)(arg.images * arg.h * arg.w) * arg.stride;
    for (u32 i = blockIdx.x * 256 + threadIdx.x; i < total; i += gridDim.x * 256) {
        int pixel = i / (u32)arg.stride, channel = i - (u32)pixel * arg.stride, line = pixel / arg.w, x = pixel - line * arg.w;
        // `line` counts the LQ rows of all images
        const float* from = arg.d_output + ((long long)line * scale * wide + x * scale) * 3;
        int c = channel / square, phase = channel - c * square;
        float value = c < 3 ? from[((long long)(phase / scale) * wide + phase % scale) * 3 + c] : 0.0f;
        act* to = arg.d_input + (long long)pixel * arg.stride + channel;
        *to = to_act(arg.add ? to_float(*to) + value : value);
        if (!arg.d_base || channel >= 3) continue;
        float sum = 0;
        for (int k = 0; k < square; k++) sum += from[((long long)(k / scale) * wide + k % scale) * 3 + channel];
        arg.d_base[(long long)pixel * 3 + channel] = sum;
    }
}
