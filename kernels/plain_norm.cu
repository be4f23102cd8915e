// RMSNorm over channels, and channel attention. Depends on plain.cuh. Bound by memory.
#pragma once
#include "plain.cuh"

// Eight lanes share a pixel of the forward pass; a warp has four.
#define NORM_LANES 8
// Pixels that a thread of the backward pass has at a time.
#define NORM_PIXELS 2
DEVICE float over_lanes(float value, int lanes) {
    for (int mask = lanes / 2; mask > 0; mask >>= 1) value += shuffle_xor(value, mask);
    return value;
}
// The pixel of the unpadded image that is at `pixel` of the padded one, or -1.
DEVICE int unpadded(int pixel, int h, int w, int padded_h, int padded_w) {
    int line = pixel / padded_w, x = pixel - line * padded_w, image = line / padded_h, y = line - image * padded_h;
    return y < h && x < w ? (image * h + y) * w + x : -1;
}
DEVICE int padded(int pixel, int h, int w, int padded_h, int padded_w) {
    int line = pixel / w, x = pixel - line * w, image = line / h, y = line - image * h;
    return (image * padded_h + y) * padded_w + x;
}

// scale x r + bias with r = 1 / sqrt(mean(x^2) + epsilon); zeros in the padding. Grid: persistent.
KERNEL(plain_rms_norm) {
    int part = threadIdx.x % NORM_LANES * PIECE, pixels = arg.images * arg.padded_h * arg.padded_w;
    for (int first = blockIdx.x * (256 / NORM_LANES); first < pixels; first += gridDim.x * (256 / NORM_LANES)) {
        int to = first + (int)threadIdx.x / NORM_LANES, from = to < pixels ? unpadded(to, arg.h, arg.w, arg.padded_h, arg.padded_w) : -1;
        float squares = 0;
        for (int c = part; c < arg.stride && from >= 0; c += NORM_LANES * PIECE) {
            float v[PIECE];
            load_piece(arg.input + (long long)from * arg.stride + c, v);
            UNROLL
            for (int k = 0; k < PIECE; k++) squares = fmaf(v[k], v[k], squares);
        }
        warp_barrier();
        float root = 1.0f / sqrtf(over_lanes(squares, NORM_LANES) / (float)arg.channels + arg.epsilon);
        for (int c = part; c < arg.stride && to < pixels; c += NORM_LANES * PIECE) {
            float v[PIECE];
            UNROLL
            for (int k = 0; k < PIECE; k++) v[k] = 0;
            if (from >= 0) load_piece(arg.input + (long long)from * arg.stride + c, v);
            UNROLL
            for (int k = 0; k < PIECE; k++) v[k] = from >= 0 && c + k < arg.channels ? fmaf(v[k] * root, arg.scale[c + k], arg.bias[c + k]) : 0.0f;
            store_piece(arg.output + (long long)to * arg.stride + c, v);
        }
    }
}

// d x = r (scale d - x r^2 mean(scale d x)), and the sums for the gradients of scale and bias: of d x
// r and of d. `lanes` lanes share a pixel, and each has one piece of it. Grid: as many blocks
// as sum on the card. Partials: [blocks][2][channels]. Least traffic: x and d read once, d x written once.
KERNEL(plain_rms_norm_back) {
    const int lanes = arg.lanes, part = threadIdx.x % lanes * PIECE, pixels = arg.images * arg.h * arg.w, row = 256 / lanes;
    bool works = part < arg.stride;
    float factor[PIECE], scale[PIECE], bias[PIECE];
    UNROLL
    for (int k = 0; k < PIECE; k++) {
        factor[k] = part + k < arg.channels ? arg.scale[part + k] : 0.0f;
        scale[k] = bias[k] = 0;
    }
    for (int first = blockIdx.x * NORM_PIXELS * row; first < pixels; first += gridDim.x * NORM_PIXELS * row) {
        // all loads are issued together
        float v[NORM_PIXELS][PIECE], d[NORM_PIXELS][PIECE];
        UNROLL
        for (int i = 0; i < NORM_PIXELS; i++) {
            int pixel = first + i * row + (int)threadIdx.x / lanes;
            UNROLL
            for (int k = 0; k < PIECE; k++) v[i][k] = d[i][k] = 0;
            if (!works || pixel >= pixels) continue;
            load_piece(arg.input + (long long)pixel * arg.stride + part, v[i]);
            load_piece(arg.d_output + (long long)padded(pixel, arg.h, arg.w, arg.padded_h, arg.padded_w) * arg.stride + part, d[i]);
        }
        UNROLL
        for (int i = 0; i < NORM_PIXELS; i++) {
            int pixel = first + i * row + (int)threadIdx.x / lanes;
            float squares = 0, products = 0;
            UNROLL
            for (int k = 0; k < PIECE; k++) {
                squares = fmaf(v[i][k], v[i][k], squares);
                products = fmaf(v[i][k] * d[i][k], factor[k], products);
            }
            warp_barrier();
            float root = 1.0f / sqrtf(over_lanes(squares, lanes) / (float)arg.channels + arg.epsilon);
            float mean = over_lanes(products, lanes) / (float)arg.channels * root * root;
            UNROLL
            for (int k = 0; k < PIECE; k++) {
                scale[k] = fmaf(d[i][k] * root, v[i][k], scale[k]);
                bias[k] += d[i][k];
                d[i][k] = part + k < arg.channels ? root * (factor[k] * d[i][k] - v[i][k] * mean) : 0.0f;
            }
            if (works && pixel < pixels && arg.d_input) put_piece(arg.d_input + (long long)pixel * arg.stride + part, d[i], arg.add);
        }
    }
    Pieces p = {part, works ? (int)threadIdx.x / lanes : row, row};
    float* partials = arg.partials + (long long)blockIdx.x * 2 * arg.channels;
    store_channel_sums(scale, p, arg.stride, arg.channels, partials);
    store_channel_sums(bias, p, arg.stride, arg.channels, partials + arg.channels);
}

// Channel attention: sums of x and, with d_output, of x d over the pixels of an image. Grid: blocks
// of an image x images. Partials: [images][blocks][2][stride].
KERNEL(plain_channel_sums) {
    Pieces p = pieces_of(arg.stride);
    float plain[PIECE], products[PIECE];
    UNROLL
    for (int k = 0; k < PIECE; k++) plain[k] = products[k] = 0;
    long long image = (long long)blockIdx.y * arg.pixels;
    for (int pixel = first_pixel(p, arg.pixels); pixel < arg.pixels; pixel += next_pixel(p)) {
        long long at = (image + pixel) * arg.stride + p.channel;
        float v[PIECE], d[PIECE];
        load_piece(arg.input + at, v);
        UNROLL
        for (int k = 0; k < PIECE; k++) plain[k] += v[k];
        if (!arg.d_output) continue;
        load_piece(arg.d_output + at, d);
        UNROLL
        for (int k = 0; k < PIECE; k++) products[k] = fmaf(v[k], d[k], products[k]);
    }
    float* partials = arg.partials + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * 2 * arg.stride;
    store_channel_sums(plain, p, arg.stride, arg.stride, partials);
    store_channel_sums(products, p, arg.stride, arg.stride, partials + arg.stride);
}

// The factors of an image, sigmoid(up gelu(down mean)), and with `partials` of the weights' gradients
// [images][down, up] those, and the gradients of the means over all pixels. Grid: images. Shared
// memory: (2 x stride + 3 x hidden) f64. Everything is f64, because products and sums can be small differences of
// large values.
KERNEL(plain_channel_factors) {
    const int channels = arg.channels, hidden = arg.hidden, stride = arg.stride, image = blockIdx.x;
    double* mean = (double*)shared_memory();
    double* product = mean + stride;
    double* value = product + stride;  // of the hidden values: gelu, slope, gradient
    double* slope = value + hidden;
    double* d_hidden = slope + hidden;
    for (int c = threadIdx.x; c < stride; c += 256) {
        double sum = 0, products = 0;
        for (int b = 0; b < arg.blocks; b++) {
            const float* from = arg.sums + ((long long)image * arg.blocks + b) * 2 * stride + c;
            sum += (double)from[0];
            products += (double)from[stride];
        }
        mean[c] = sum / (double)arg.pixels;
        product[c] = products;
    }
    barrier();
    for (int j = threadIdx.x; j < hidden; j += 256) {
        double sum = 0;
        for (int c = 0; c < channels; c++) sum += (double)arg.down[j * channels + c] * mean[c];
        double below = 0.5 * (1.0 + erf(sum * 0.70710678118654752));
        value[j] = sum * below;
        slope[j] = below + sum * 0.39894228040143268 * exp(-0.5 * sum * sum);
    }
    barrier();
    float* partials = arg.partials ? arg.partials + (long long)image * 2 * channels * hidden : nullptr;
    for (int c = threadIdx.x; c < stride; c += 256) {
        double sum = 0;
        for (int j = 0; j < hidden && c < channels; j++) sum += (double)arg.up[c * hidden + j] * value[j];
        double e = exp(-fabs(sum)), inverse = 1.0 / (1.0 + e);
        float factor = c >= channels ? 0.0f : (float)(sum < 0.0 ? e * inverse : inverse);
        arg.factors[image * stride + c] = factor;
        // the slope of the sigmoid; 1 - factor would have few bits where the factor is nearly 1
        product[c] *= e * inverse * inverse;
        if (!partials || c >= channels) continue;
        for (int j = 0; j < hidden; j++) partials[channels * hidden + c * hidden + j] = (float)(product[c] * value[j]);
    }
    barrier();
    for (int j = threadIdx.x; j < hidden; j += 256) {
        double sum = 0;
        for (int c = 0; c < channels; c++) sum += product[c] * (double)arg.up[c * hidden + j];
        d_hidden[j] = sum * slope[j];
    }
    barrier();
    for (int c = threadIdx.x; c < stride && partials; c += 256) {
        double sum = 0;
        for (int j = 0; j < hidden && c < channels; j++) {
            partials[j * channels + c] = (float)(d_hidden[j] * mean[c]);
            sum += (double)arg.down[j * channels + c] * d_hidden[j];
        }
        arg.d_means[image * stride + c] = (float)(sum / (double)arg.pixels);
    }
}

// x factor, or with d_means d factor + d_mean. Grid: blocks of an image x images.
KERNEL(plain_channel_scale) {
    Pieces p = pieces_of(arg.stride);
    long long image = (long long)blockIdx.y * arg.pixels;
    const float* factors = arg.factors + blockIdx.y * arg.stride;
    for (int pixel = first_pixel(p, arg.pixels); pixel < arg.pixels; pixel += next_pixel(p)) {
        long long at = (image + pixel) * arg.stride + p.channel;
        float v[PIECE];
        load_piece(arg.input + at, v);
        UNROLL
        for (int k = 0; k < PIECE; k++) {
            float mean = arg.d_means ? arg.d_means[blockIdx.y * arg.stride + p.channel + k] : 0.0f;
            v[k] = fmaf(v[k], factors[p.channel + k], mean);
        }
        put_piece(arg.output + at, v, arg.add);
    }
}
