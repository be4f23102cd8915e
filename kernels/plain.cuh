// What the plain kernels share: they compute an operation for any number of channels, with f32
// arithmetic for every type of activations. Depends on features.cuh and sums.cuh.
//
// How a plain kernel is written:
//  - Products (plain_conv.cu, plain_attention.cu): a block keeps a tile of values as f32 in shared
//    memory, a thread several results in registers. Everything else takes 16-byte pieces of pixels.
//  - A kernel that sums over pixels writes one f32 partial sum for each of a bounded number of
//    blocks; reduce_sums adds them as two f32 in a fixed order. The number of blocks depends on the
//    shapes and the card, so the bits are always those of the same kind of card. There are no atomics.
//  - No barrier and no warp instruction is inside a branch that depends on the thread; threads
//    without work take part with values that are not stored.
//  - Addresses are 64-bit; an address is formed only for an element that exists.
//  - Channels that fill the last group of an activation are written as 0 and never read as values.
#pragma once
#include "features.cuh"
#include "sums.cuh"

// Values of a 16-byte piece of a pixel.
#define PIECE ((int)(16 / sizeof(act)))

DEVICE void load_piece(const act* from, float (&v)[PIECE]) {
    Wide piece = *(const Wide*)from;
    UNROLL
    for (int k = 0; k < 4; k++) {
#if PRECISION == 0
        v[k] = bits_to_float(piece.word[k]);
#else
        v[2 * k] = from_half((u16)piece.word[k]);
        v[2 * k + 1] = from_half((u16)(piece.word[k] >> 16));
#endif
    }
}
DEVICE void store_piece(act* to, const float (&v)[PIECE]) {
    Wide piece;
    UNROLL
    for (int k = 0; k < 4; k++) {
#if PRECISION == 0
        piece.word[k] = float_to_bits(v[k]);
#else
        piece.word[k] = pack_half(v[2 * k], v[2 * k + 1]);
#endif
    }
    *(Wide*)to = piece;
}
// Stores a piece, or adds it to what is there.
DEVICE void put_piece(act* to, float (&v)[PIECE], int add) {
    if (add) {
        float before[PIECE];
        load_piece(to, before);
        UNROLL
        for (int k = 0; k < PIECE; k++) v[k] += before[k];
    }
    store_piece(to, v);
}

// The element of a View or Place: of pixel (y, x) of an image of h x w, channel `channel`.
DEVICE long long element(int stride, int first, long long image, int y, int x, int h, int w, int channel) {
    return ((image * h + y) * w + x) * stride + first + channel;
}
DEVICE float view_value(const View& v, long long image, int y, int x, int h, int w, int channel) {
    long long at = element(v.stride, v.first, image, y, x, h, w, channel);
    return v.floats ? v.floats[at] : to_float(v.values[at]);
}
DEVICE void put_value(const Place& p, long long image, int y, int x, int h, int w, int channel, float value) {
    long long at = element(p.stride, p.first, image, y, x, h, w, channel);
    if (p.floats) {
        p.floats[at] = p.add ? p.floats[at] + value : value;
    } else {
        p.values[at] = to_act(p.add ? to_float(p.values[at]) + value : value);
    }
}

DEVICE float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

// A function of single values, and its derivative. Channels from f.channels on have slope 0.
DEVICE float prelu_slope(const ChannelFunction& f, int channel) { return channel < f.channels ? f.slopes[channel] : 0.0f; }
DEVICE float function_value(const ChannelFunction& f, float z, int channel) {
    switch (f.kind) {
        case FUNCTION_RELU: return z > 0.0f ? z : 0.0f;
        case FUNCTION_LEAKY_RELU: return z > 0.0f ? z : f.slope * z;
        case FUNCTION_PRELU: return z > 0.0f ? z : prelu_slope(f, channel) * z;
        case FUNCTION_SILU: return z * sigmoid(z);
        case FUNCTION_GELU: return gelu(z);
        case FUNCTION_NORMALIZE: return (z - (channel == 0 ? f.mean[0] : channel == 1 ? f.mean[1] : f.mean[2])) * f.factor;
        default: return z;
    }
}
DEVICE float function_slope(const ChannelFunction& f, float z, int channel) {
    switch (f.kind) {
        case FUNCTION_RELU: return z > 0.0f ? 1.0f : 0.0f;
        case FUNCTION_LEAKY_RELU: return z > 0.0f ? 1.0f : f.slope;
        case FUNCTION_PRELU: return z > 0.0f ? 1.0f : prelu_slope(f, channel);
        case FUNCTION_SILU: {
            float s = sigmoid(z);
            return s * (1.0f + z * (1.0f - s));
        }
        case FUNCTION_GELU: return gelu_slope(z);
        case FUNCTION_NORMALIZE: return f.factor;
        default: return 1.0f;
    }
}

// How the threads of a block share pixels of `stride` channels: a thread has the same piece of
// every lanes-th pixel. stride is at most 256 pieces.
struct Pieces {
    int channel;  // the piece's first channel
    int lane, lanes;
};
DEVICE Pieces pieces_of(int stride) {
    int count = stride / PIECE;
    Pieces p;
    p.lanes = 256 / count;
    p.lane = threadIdx.x / count;
    p.channel = (threadIdx.x - p.lane * count) * PIECE;
    return p;
}
// A thread's first pixel, and its distance to the next one; a thread without work begins at the end.
DEVICE int first_pixel(const Pieces& p, int pixels) { return p.lane < p.lanes ? (int)blockIdx.x * p.lanes + p.lane : pixels; }
DEVICE int next_pixel(const Pieces& p) { return (int)gridDim.x * p.lanes; }

// Adds up the sums of a block's threads for each channel in a fixed order, and writes those of the
// first `channels` to `partials`. Shared memory: 256 x PIECE f32, free again after the next barrier.
DEVICE void store_channel_sums(const float (&sums)[PIECE], const Pieces& p, int stride, int channels, float* partials) {
    float* shared = (float*)shared_memory();
    barrier();
    if (p.lane < p.lanes) {
        UNROLL
        for (int k = 0; k < PIECE; k++) shared[p.lane * stride + p.channel + k] = sums[k];
    }
    barrier();
    for (int c = threadIdx.x; c < channels; c += 256) {
        float total = 0;
        for (int lane = 0; lane < p.lanes; lane++) total += shared[lane * stride + c];
        partials[c] = total;
    }
}
