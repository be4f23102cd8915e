// Convolutions of any odd kernel, dilation and groups, for any number of channels, and their
// gradients. Depends on plain.cuh.
//
// plain_conv: a block takes tiles of 4 x 256 / octets pixels and 8 x octets outputs; a thread four
// pixels and eight outputs. Inputs come in chunks: the tile with its halo, activated and as f32, and
// the weights of the chunk are in shared memory. For an input and a tap a thread loads four pixels
// (adjacent lanes, adjacent words) and eight weights (two words of 16 bytes, the same for a warp if
// a warp has one octet) for 32 multiply-adds: 38 of about 43 instructions are either, so 3x3 at 64
// channels is bound by the multiply-adds at three quarters of their peak. `transposed` makes it the
// gradient of the input. Grid: blocks of pixels x slabs of outputs (groups x tiles of outputs).
// Least traffic a pixel: its inputs read and its outputs written once.
#include "plain.cuh"

struct __attribute__((aligned(16))) Four {
    float value[4];
};

// A tile of pixels of plain_conv.
struct ConvTile {
    int wide, high;  // pixels
    int reach;       // pixels of the halo
    int row, pixels;  // f32 of a row and of the tile, with the halo
    int plane;        // f32 from one input to the next, odd, so that inputs lie in different banks
};
DEVICE ConvTile conv_tile(int lanes, int kernel, int dilation) {
    ConvTile t;
    t.wide = lanes >= 128 ? 32 : 16;
    t.high = 4 * lanes / t.wide;
    t.reach = kernel / 2 * dilation;
    t.row = t.wide + 2 * t.reach;
    t.pixels = (t.high + 2 * t.reach) * t.row;
    t.plane = t.pixels | 1;
    return t;
}

// Loads a chunk of `count` inputs from channel `first` on: activated, 0 outside of the image. A
// thread has one input; its pixels are 256 / chunk apart.
DEVICE void load_inputs(float* tile, const PlainConvArguments& arg, const ConvTile& t, int image, int y, int x, int first, int count) {
    int input = threadIdx.x & ((1 << arg.chunk_bits) - 1), channel = first + input, end = input < count ? t.pixels : 0;
    for (int i = threadIdx.x >> arg.chunk_bits; i < end; i += 256 >> arg.chunk_bits) {
        int line = (u32)i / (u32)t.row, row = y - t.reach + line, column = x - t.reach + i - line * t.row;
        float value = 0;
        if (inside(row, column, arg.h, arg.w))
            value = function_value(arg.function, view_value(arg.input, image, row, column, arg.h, arg.w, channel), channel);
        tile[input * t.plane + i] = value;
    }
}
// Loads the weights of `count` inputs of a group from `first` on, to [input][tap][pitch]: those of
// the outputs from `output` on, 0 for outputs that do not exist. A weight is [output][input][tap] in
// memory, or, transposed, [input][output][taps from the last]. A warp takes one output at a time.
DEVICE void load_weights(float* weights, const PlainConvArguments& arg, int group, int output, int first, int count, int pitch, float gain) {
    int taps = arg.kernel * arg.kernel, each = count * taps;
    for (int o = threadIdx.x / 32; o < 8 * arg.octets; o += 8) {
        bool exists = output + o < arg.outputs;
        for (int i = threadIdx.x % 32; i < each; i += 32) {
            float value = 0;
            if (exists && arg.transposed) {
                int input = (u32)i / (u32)taps, tap = i - input * taps;
                value = arg.weight[((long long)(group * arg.inputs + first + input) * arg.outputs + output + o) * taps + taps - 1 - tap];
            } else if (exists) {
                value = arg.weight[((long long)(group * arg.outputs + output + o) * arg.inputs + first) * taps + i];
            }
            weights[i * pitch + o] = gain * value;
        }
    }
}

// The products of a chunk.
DEVICE void multiply_chunk(float (&sums)[4][8], const float* tile, const float* weights, const PlainConvArguments& arg, const ConvTile& t, const int (&at)[4], int count,
                           int pitch) {
    ROLLED
    for (int input = 0; input < count; input++) {
        ROLLED
        for (int ky = 0; ky < arg.kernel; ky++) {
            const float* line = tile + input * t.plane + ky * arg.dilation * t.row;
            ROLLED
            for (int kx = 0; kx < arg.kernel; kx++) {
                Four low = ((const Four*)weights)[0], high = ((const Four*)weights)[1];
                UNROLL
                for (int i = 0; i < 4; i++) {
                    float value = line[at[i]];
                    UNROLL
                    for (int o = 0; o < 4; o++) {
                        sums[i][o] = fmaf(value, low.value[o], sums[i][o]);
                        sums[i][4 + o] = fmaf(value, high.value[o], sums[i][4 + o]);
                    }
                }
                line += arg.dilation;
                weights += pitch;
            }
        }
    }
}

// Stores the eight outputs of a pixel from channel `channel` on, of which `count` exist.
DEVICE void store_octet(const Place& p, const float (&v)[8], long long image, int y, int x, int h, int w, int channel, int count) {
#if PRECISION != 0
    // an octet of a group of channels need not begin at 16 bytes
    if (count >= 8 && !p.floats && !p.add && (p.first + channel) % 8 == 0) {
        store_piece(p.values + element(p.stride, p.first, image, y, x, h, w, channel), v);
        return;
    }
#endif
    UNROLL
    for (int o = 0; o < 8; o++)
        if (o < count) put_value(p, image, y, x, h, w, channel + o, v[o]);
}

// The block's sums of a slope's gradient: [lanes][8 x octets] to one value for each output.
DEVICE void store_slope_sums(const float (&sums)[8], const PlainConvArguments& arg, int lane, int octet, int lanes, int channel, int count, float* partials) {
    float* shared = (float*)shared_memory();
    int outputs = 8 * arg.octets;
    barrier();
    UNROLL
    for (int o = 0; o < 8; o++) shared[lane * outputs + 8 * octet + o] = sums[o];
    barrier();
    for (int o = threadIdx.x; o < outputs && o < count; o += 256) {
        float total = 0;
        for (int i = 0; i < lanes; i++) total += shared[i * outputs + o];
        partials[channel + o] = total;
    }
}

KERNEL(plain_conv) {
    const int h = arg.h, w = arg.w, lanes = 256 / arg.octets, pitch = 8 * arg.octets + 4;
    ConvTile t = conv_tile(lanes, arg.kernel, arg.dilation);
    float* tile = (float*)shared_memory();
    float* weights = tile + (((t.plane << arg.chunk_bits) + 3) & ~3);
    int lane = threadIdx.x % lanes, octet = threadIdx.x / lanes;
    int slabs = arg.groups * arg.slabs, slab = blockIdx.x % slabs, group = slab / arg.slabs, output = (slab - group * arg.slabs) * 8 * arg.octets;
    // the outputs of this slab; the last group also has the channels that fill the buffer
    int limit = (group == arg.groups - 1 ? arg.filled - group * arg.outputs : arg.outputs) - output - 8 * octet;
    int channel = group * arg.outputs + output + 8 * octet, across = (w + t.wide - 1) / t.wide, down = (h + t.high - 1) / t.high;
    float gain = arg.gain ? *arg.gain : 1.0f;
    int at[4];
    UNROLL
    for (int i = 0; i < 4; i++) at[i] = (lane + i * lanes) / t.wide * t.row + (lane + i * lanes) % t.wide;
    float slope_sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int index = blockIdx.x / slabs; index < arg.images * down * across; index += gridDim.x / slabs) {
        int line = index / across, image = line / down, y = (line - image * down) * t.high, x = (index - line * across) * t.wide;
        float sums[4][8];
        UNROLL
        for (int o = 0; o < 8; o++) {
            float bias = arg.bias && output + 8 * octet + o < arg.outputs ? gain * arg.bias[channel + o] : 0.0f;
            UNROLL
            for (int i = 0; i < 4; i++) sums[i][o] = bias;
        }
        for (int first = 0; first < arg.inputs; first += 1 << arg.chunk_bits) {
            int count = arg.inputs - first < 1 << arg.chunk_bits ? arg.inputs - first : 1 << arg.chunk_bits;
            barrier();
            load_inputs(tile, arg, t, image, y, x, group * arg.inputs + first, count);
            load_weights(weights, arg, group, output, first, count, pitch, gain);
            barrier();
            multiply_chunk(sums, tile, weights + 8 * octet, arg, t, at, count, pitch);
        }
        UNROLL
        for (int i = 0; i < 4; i++) {
            int row = y + (lane + i * lanes) / t.wide, column = x + (lane + i * lanes) % t.wide;
            if (row >= h || column >= w || limit <= 0) continue;
            if (arg.transposed && arg.back.kind != FUNCTION_NONE) {
                UNROLL
                for (int o = 0; o < 8; o++) {
                    if (output + 8 * octet + o >= arg.outputs) continue;
                    float z = view_value(arg.z, image, row, column, h, w, channel + o);
                    slope_sums[o] += sums[i][o] * (z < 0.0f ? z : 0.0f);
                    sums[i][o] *= function_slope(arg.back, z, channel + o);
                }
            }
            store_octet(arg.output, sums[i], image, row, column, h, w, channel, limit);
        }
    }
    if (arg.slope_partials)
        store_slope_sums(slope_sums, arg, lane, octet, lanes, group * arg.outputs + output, arg.outputs - output,
                         arg.slope_partials + (long long)(blockIdx.x / slabs) * arg.groups * arg.outputs);
}

// plain_conv_weights: sums over pixels of output gradient x activated input. A block takes 4 x quads
// outputs, and up to nine units of 16 inputs: taps of 16 inputs, or for 1x1 groups of 16 inputs.
// Thread (input of 16, quad of outputs, share of the pixels) adds 4 x units sums in registers: for a
// pixel it loads four output gradients (the same for 16 lanes) and a value for each unit (adjacent
// lanes, adjacent words), 36 multiply-adds for ten loads. Grid: splits of the pixels x output tiles
// x groups of 16 inputs x chunks of units. Partials: [split][weights, biases] in the parameters'
// order.
#define WEIGHT_TILE_H 4
#define WEIGHT_TILE_W 16
#define MOST_UNITS 9

KERNEL(plain_conv_weights) {
    const int h = arg.h, w = arg.w, taps = arg.kernel * arg.kernel, outputs = 4 * arg.quads, shares = 16 / arg.quads;
    bool pointwise = taps == 1;
    int input = threadIdx.x % 16, quad = threadIdx.x / 16 % arg.quads, share = threadIdx.x / 16 / arg.quads;
    // which part of the sums is the block's
    int rest = blockIdx.x, split = rest % arg.splits;
    rest /= arg.splits;
    int chunk = rest % arg.chunks;
    rest /= arg.chunks;
    int inputs_at = rest % arg.input_tiles;
    rest /= arg.input_tiles;
    int output = rest % arg.output_tiles * outputs, group = rest / arg.output_tiles;
    int first_input = inputs_at * arg.tile_inputs, width = arg.tile_inputs;
    int units = pointwise ? width / 16 : taps - chunk * MOST_UNITS < MOST_UNITS ? taps - chunk * MOST_UNITS : MOST_UNITS;
    int reach = arg.kernel / 2 * arg.dilation, row = WEIGHT_TILE_W + 2 * reach;
    int with_halo = (WEIGHT_TILE_H + 2 * reach) * row;
    float* gradients = (float*)shared_memory();  // [64][outputs]
    float* tile = gradients + WEIGHT_TILE_H * WEIGHT_TILE_W * outputs;  // [with halo][width]
    int offset[MOST_UNITS];
    float sums[MOST_UNITS][4], bias[4] = {0, 0, 0, 0};
    UNROLL
    for (int u = 0; u < MOST_UNITS; u++) {
        int tap = chunk * MOST_UNITS + u, ky = tap / arg.kernel, kx = tap - ky * arg.kernel;
        offset[u] = pointwise ? 16 * u : (ky * row + kx) * arg.dilation * width;
        UNROLL
        for (int o = 0; o < 4; o++) sums[u][o] = 0;
    }
    int across = (w + WEIGHT_TILE_W - 1) / WEIGHT_TILE_W, down = (h + WEIGHT_TILE_H - 1) / WEIGHT_TILE_H;
    for (int index = split; index < arg.images * down * across; index += arg.splits) {
        int line = index / across, image = line / down, y = (line - image * down) * WEIGHT_TILE_H, x = (index - line * across) * WEIGHT_TILE_W;
        barrier();
        for (int i = threadIdx.x; i < WEIGHT_TILE_H * WEIGHT_TILE_W * outputs; i += 256) {
            int pixel = (u32)i / (u32)outputs, o = i - pixel * outputs, py = y + pixel / WEIGHT_TILE_W, px = x + pixel % WEIGHT_TILE_W;
            float value = 0;
            if (py < h && px < w && output + o < arg.outputs) value = view_value(arg.d_output, image, py, px, h, w, group * arg.outputs + output + o);
            gradients[i] = value;
        }
        for (int i = threadIdx.x; i < with_halo * width; i += 256) {
            int pixel = (u32)i / (u32)width, c = first_input + i - pixel * width, py = (u32)pixel / (u32)row;
            int px = x - reach + pixel - py * row, channel = group * arg.inputs + c;
            py += y - reach;
            float value = 0;
            if (inside(py, px, h, w) && c < arg.inputs) value = function_value(arg.function, view_value(arg.input, image, py, px, h, w, channel), channel);
            tile[i] = value;
        }
        barrier();
        ROLLED
        for (int pixel = share; pixel < WEIGHT_TILE_H * WEIGHT_TILE_W; pixel += shares) {
            Four d = ((const Four*)gradients)[pixel * arg.quads + quad];
            const float* from = tile + (pixel / WEIGHT_TILE_W * row + pixel % WEIGHT_TILE_W) * width + input;
            UNROLL
            for (int u = 0; u < MOST_UNITS; u++) {
                if (u >= units) continue;
                float value = from[offset[u]];
                UNROLL
                for (int o = 0; o < 4; o++) sums[u][o] = fmaf(value, d.value[o], sums[u][o]);
            }
            UNROLL
            for (int o = 0; o < 4; o++) bias[o] += d.value[o];
        }
    }
    long long weights = (long long)arg.groups * arg.outputs * arg.inputs * taps;
    float* partials = arg.partials + split * (weights + arg.groups * arg.outputs);
    Four* shared = (Four*)shared_memory();  // [256]
    UNROLL
    for (int u = 0; u <= MOST_UNITS; u++) {
        if (u < MOST_UNITS && u >= units) continue;
        barrier();
        UNROLL
        for (int o = 0; o < 4; o++) shared[threadIdx.x].value[o] = u < MOST_UNITS ? sums[u % MOST_UNITS][o] : bias[o];
        barrier();
        int c = first_input + (pointwise ? 16 * u : 0) + input, tap = pointwise ? 0 : chunk * MOST_UNITS + u;
        bool biases = u == MOST_UNITS, stores = biases ? inputs_at == 0 && chunk == 0 && input == 0 : c < arg.inputs;
        UNROLL
        for (int o = 0; o < 4; o++) {
            int co = output + 4 * quad + o;
            if (share > 0 || !stores || co >= arg.outputs) continue;
            float total = 0;
            for (int i = 0; i < shares; i++) total += shared[threadIdx.x + 16 * arg.quads * i].value[o];
            co += group * arg.outputs;
            partials[biases ? weights + co : ((long long)co * arg.inputs + c) * taps + tap] = total;
        }
    }
}

// plain_depthwise: one input and one output for each group, 16 bytes of a pixel a thread. The weights
// [tap][channel] are in shared memory. `transposed` makes it the gradient of the input. Grid:
// persistent.
KERNEL(plain_depthwise) {
    const int h = arg.h, w = arg.w, taps = arg.kernel * arg.kernel, channels = arg.channels, reach = arg.kernel / 2 * arg.dilation;
    int padded = (channels + 15) / 16 * 16, pieces = padded / PIECE;
    float* weights = (float*)shared_memory();  // [taps][padded], then biases [padded]
    for (int i = threadIdx.x; i < (taps + 1) * padded; i += 256) {
        int tap = i / padded, c = i - tap * padded;
        float value = 0;
        if (c < channels) value = tap < taps ? arg.weight[c * taps + (arg.transposed ? taps - 1 - tap : tap)] : arg.bias ? arg.bias[c] : 0.0f;
        weights[i] = value;
    }
    barrier();
    u32 count = (u32)(arg.images * h * w) * pieces;
    for (u32 i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) {
        int pixel = i / (u32)pieces, channel = (int)(i - (u32)pixel * pieces) * PIECE;
        int line = pixel / w, x = pixel - line * w, image = line / h, y = line - image * h;
        float sums[PIECE];
        UNROLL
        for (int k = 0; k < PIECE; k++) sums[k] = weights[taps * padded + channel + k];
        ROLLED
        for (int tap = 0; tap < taps; tap++) {
            int row = y - reach + tap / arg.kernel * arg.dilation, column = x - reach + tap % arg.kernel * arg.dilation;
            if (!inside(row, column, h, w)) continue;
            float v[PIECE];
            load_piece(arg.input.values + element(arg.input.stride, arg.input.first, image, row, column, h, w, channel), v);
            UNROLL
            for (int k = 0; k < PIECE; k++) sums[k] = fmaf(function_value(arg.function, v[k], channel + k), weights[tap * padded + channel + k], sums[k]);
        }
        if (arg.transposed && arg.back.kind != FUNCTION_NONE) {
            float z[PIECE];
            load_piece(arg.z.values + element(arg.z.stride, arg.z.first, image, y, x, h, w, channel), z);
            UNROLL
            for (int k = 0; k < PIECE; k++) sums[k] *= function_slope(arg.back, z[k], channel + k);
        }
        put_piece(arg.output.values + element(arg.output.stride, arg.output.first, image, y, x, h, w, channel), sums, arg.output.add);
    }
}

// plain_depthwise_weights: sums over pixels of output gradient x activated input, for 3 x 3 taps of a
// kernel at a time. A thread has two channels of a column and walks down its rows, with the 3 x 3
// inputs that the taps see in registers: for each row it loads three inputs and a gradient, and
// neighbouring threads load the same inputs at the same time. So inputs and gradients are read once
// from device memory, but for the columns and rows beside a strip. With a dilation it takes every
// dilation-th row. Grid: splits of the strips x groups of `group` channels x parts of the taps.
// Partials as in plain_conv_weights.
#define STRIP_ROWS 12

struct __attribute__((aligned(8))) TwoFloats {
    float value[2];
};
DEVICE void load_two(const act* from, float (&v)[2]) {
#if PRECISION == 0
    TwoFloats loaded = *(const TwoFloats*)from;
    v[0] = loaded.value[0];
    v[1] = loaded.value[1];
#else
    u32 loaded = *(const u32*)from;
    v[0] = low_half(loaded);
    v[1] = high_half(loaded);
#endif
}

// Loads what three columns of a row have of two channels: activated, 0 outside of the image.
DEVICE void load_window(float (&v)[3][2], const PlainDepthwiseWeightsArguments& arg, int image, int y, int x, int channel) {
    const act* from = arg.input.values + ((long long)image * arg.h + y) * arg.w * arg.input.stride + arg.input.first + channel;
    UNROLL
    for (int i = 0; i < 3; i++) {
        int column = x + i * arg.dilation;
        UNROLL
        for (int k = 0; k < 2; k++) v[i][k] = 0;
        if (inside(y, column, arg.h, arg.w)) load_two(from + (long long)column * arg.input.stride, v[i]);
    }
    if (arg.function.kind == FUNCTION_NONE) return;
    UNROLL
    for (int i = 0; i < 3; i++) {
        UNROLL
        for (int k = 0; k < 2; k++)
            if (inside(y, x + i * arg.dilation, arg.h, arg.w)) v[i][k] = function_value(arg.function, v[i][k], channel + k);
    }
}

KERNEL_CROWDED(plain_depthwise_weights, 2) {
    const int h = arg.h, w = arg.w, taps = arg.kernel * arg.kernel, reach = arg.kernel / 2 * arg.dilation, sides = (arg.kernel + 2) / 3;
    int rest = blockIdx.x, split = rest % arg.splits;
    rest /= arg.splits;
    int part = rest % (sides * sides), pairs = arg.group / 2, columns = 256 / pairs, lane = threadIdx.x / pairs;
    int channel = rest / (sides * sides) * arg.group + ((int)threadIdx.x - lane * pairs) * 2;
    bool works = lane < columns && channel < arg.channels;
    int first_row = part / sides * 3, first_column = part % sides * 3;
    float sums[10][2];
    UNROLL
    for (int i = 0; i < 20; i++) sums[i / 2][i % 2] = 0;
    int across = (w + columns - 1) / columns, lines = (h + arg.dilation - 1) / arg.dilation, strips = (lines + STRIP_ROWS - 1) / STRIP_ROWS;
    int strips_of_image = strips * arg.dilation * across;
    for (int index = split; works && index < arg.images * strips_of_image; index += arg.splits) {
        int image = index / strips_of_image, at = index - image * strips_of_image, strip = at / across;
        int x = (at - strip * across) * columns + lane, phase = strip / strips;
        int y = (strip - phase * strips) * STRIP_ROWS * arg.dilation + phase;
        if (x >= w) continue;
        int row = y - reach + first_row * arg.dilation, column = x - reach + first_column * arg.dilation;
        float window[3][3][2];
        load_window(window[0], arg, image, row, column, channel);
        load_window(window[1], arg, image, row + arg.dilation, column, channel);
        const act* gradients = arg.d_output.values + ((long long)image * h * w + x) * arg.d_output.stride + arg.d_output.first + channel;
        ROLLED
        for (int i = 0; i < STRIP_ROWS && y < h; i += 3) {
            // the newest row takes the place of the oldest
            UNROLL
            for (int k = 0; k < 3; k++) {
                float d[2] = {0, 0};
                if (y < h) load_two(gradients + (long long)y * w * arg.d_output.stride, d);
                load_window(window[(k + 2) % 3], arg, image, row + 2 * arg.dilation, column, channel);
                UNROLL
                for (int tap = 0; tap < 9; tap++) {
                    UNROLL
                    for (int c = 0; c < 2; c++) sums[tap][c] = fmaf(window[(k + tap / 3) % 3][tap % 3][c], d[c], sums[tap][c]);
                }
                UNROLL
                for (int c = 0; c < 2; c++) sums[9][c] += d[c];
                y += arg.dilation;
                row += arg.dilation;
            }
        }
    }
    float* partials = arg.partials + (long long)split * arg.channels * (taps + 1);
    TwoFloats* shared = (TwoFloats*)shared_memory();  // [256]
    UNROLL
    for (int u = 0; u < 10; u++) {
        int ky = first_row + u / 3, kx = first_column + u % 3;
        bool biases = u == 9, stores = works && lane == 0 && (biases ? part == 0 : ky < arg.kernel && kx < arg.kernel);
        barrier();
        UNROLL
        for (int c = 0; c < 2; c++) shared[threadIdx.x].value[c] = sums[u][c];
        barrier();
        UNROLL
        for (int c = 0; c < 2; c++) {
            if (!stores || channel + c >= arg.channels) continue;
            float total = 0;
            for (int i = 0; i < columns; i++) total += shared[threadIdx.x + i * pairs].value[c];
            partials[biases ? arg.channels * taps + channel + c : (channel + c) * taps + ky * arg.kernel + kx] = total;
        }
    }
}
