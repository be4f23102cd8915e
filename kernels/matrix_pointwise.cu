// Dense 1x1 convolutions of 16 inputs or more and any number of outputs on tensor cores, and their
// gradients, in half precision. Depends on plain_conv.cu, matrix_conv.cu and plain_norm.cu.
//
// A pixel needs nothing of its neighbours, so a warp takes 32 consecutive pixels, whatever image they
// are in, and reads its operands from device memory into registers: of every 32 inputs lane t has 8t
// .. 8t+7, and of every 32 outputs too, so each access is 16 bytes and four lanes take 64 bytes of a
// pixel. Only the weights are in shared memory, from before the first pixel to the last one, so that
// no warp waits for another. `transposed` packing makes both kernels the gradient of the input. A
// block takes 256 pixels at a time. Least traffic a pixel: its inputs read and its outputs written
// once, which both kernels keep to in one launch.
//
// matrix_pointwise: up to 64 inputs, which stay in registers for up to 256 outputs of a launch, 32 at a time.
// matrix_pointwise_norm: the same of the RMSNorm of the inputs.
// matrix_pointwise_deep: the sums of 64 outputs stay in registers for any number of inputs, 32 at a
// time. It also has the sums for PReLU's slopes.
// More outputs take more launches. Grid: persistent, or, with sums, as many blocks as sum on the card.
#pragma once
#include "matrix_conv.cu"
#include "plain_norm.cu"

#if PRECISION != 0

// 16-byte pieces of the weights of 32 inputs and 32 outputs: [step along k, pair of 8 x 8 tiles][lane].
#define POINTWISE_SHARE 128
static_assert(POINTWISE_SHARE * 16 == MATRIX_POINTWISE_SHARE, "the lowering reserves what the weights need");

DEVICE float pointwise_gelu(float z) { return EIGHTHS * gelu_half(z * (1 / EIGHTHS)); }
DEVICE float pointwise_gelu_slope(float z) {
    float value, slope;
    gelu_pair(z * (1 / EIGHTHS), value, slope);
    return slope;
}
// Applies a function, whose value at 0 is 0, to eight inputs from channel `channel` on, of which those
// from `end` on become 0; if none exists they are 0 already. GELU takes all values at once, so that the
// instructions of one do not wait for those of another; for the other functions the words take turns in
// the first place, so that their code exists once and the piece stays in registers.
DEVICE void activate_piece(Wide& piece, const ChannelFunction& f, int channel, int end) {
    if (channel >= end) return;
    if (channel + 8 > end) {
        UNROLL
        for (int k = 0; k < 4; k++) piece.word[k] = channel + 2 * k + 1 < end ? piece.word[k] : channel + 2 * k < end ? piece.word[k] & 0xffffu : 0;
    }
    if (f.kind == FUNCTION_NONE) return;
    if (f.kind == FUNCTION_GELU) {
        UNROLL
        for (int k = 0; k < 4; k++) piece.word[k] = pack_half(pointwise_gelu(low_half(piece.word[k])), pointwise_gelu(high_half(piece.word[k])));
        return;
    }
    ROLLED
    for (int c = channel; c < channel + 8; c += 2) {
        u32 word = piece.word[0];
        UNROLL
        for (int k = 0; k < 3; k++) piece.word[k] = piece.word[k + 1];
        piece.word[3] = pack_half(quick_function(f, low_half(word), c), quick_function(f, high_half(word), c + 1));
    }
}

// Weights as [32 outputs][32 inputs][POINTWISE_SHARE] x 16 bytes, 0 where there is no input or output:
// b[0], b[1] of an instruction, then of the next one. A thread makes 16 bytes.
KERNEL(matrix_pointwise_pack) {
    int i = blockIdx.x * 256 + threadIdx.x, lane = i % 32, part = i / 32 % 4, chunks = (arg.inputs + 31) / 32;
    int chunk = i / POINTWISE_SHARE % chunks, group = i / POINTWISE_SHARE / chunks;
    if (32 * group >= arg.outputs) return;
    float gain = arg.gain ? *arg.gain : 1.0f;
    Wide piece;
    UNROLL
    for (int word = 0; word < 4; word++) {
        int column = lane / 4, tile = part % 2 * 2 + word / 2;
        int output = 32 * group + column / 2 * 8 + 2 * tile + column % 2, input = 32 * chunk + lane % 4 * 8 + part / 2 * 4 + word % 2 * 2;
        float pair[2];
        UNROLL
        for (int k = 0; k < 2; k++) {
            bool exists = output < arg.outputs && input + k < arg.inputs;
            long long at = arg.transposed ? (long long)(input + k) * arg.outputs + output : (long long)output * arg.inputs + input + k;
            pair[k] = exists ? gain * arg.weight[exists ? at : 0] : 0.0f;
        }
        piece.word[word] = pack_half(pair[0], pair[1]);
    }
    ((Wide*)arg.packed)[i] = piece;
}

// Loads a lane's share of 32 inputs of the warp's pixels, from channel `channel` on: piece r is of
// pixel `pixel` + 8r. Pixels and channels that do not exist are 0.
DEVICE void load_pointwise(Wide (&a)[4], const View& v, int pixel, int pixels, int channel, int end) {
    const act* from = v.values + (long long)pixel * v.stride + v.first + channel;
    UNROLL
    for (int r = 0; r < 4; r++) {
        a[r] = {{0, 0, 0, 0}};
        if (pixel + 8 * r < pixels && channel < end) a[r] = *(const Wide*)(from + 8 * r * v.stride);
    }
}

// Loads a lane's share of the inputs of the warp's pixels as load_pointwise does, and their RMSNorm in
// place of them: a[c] has channels 32c + 8t .. 32c + 8t + 7. Four lanes have a pixel. `factors`: the
// scale of 64 channels, then the bias. The order of the sum is that of plain_rms_norm, whose lanes have
// a piece each, so the bits are the same.
DEVICE void load_normed(Wide (&a)[2][4], const MatrixConvArguments& arg, const float* factors, int pixel, int pixels) {
    const PixelNorm& n = arg.norm;
    const int part = threadIdx.x % 4 * 8;
    bool whole = n.h == arg.h && n.w == arg.w;
    int from[4];
    UNROLL
    for (int r = 0; r < 4; r++) {
        int to = pixel + 8 * r;
        from[r] = to >= pixels ? -1 : whole ? to : unpadded(to, n.h, n.w, arg.h, arg.w);
        UNROLL
        for (int c = 0; c < 2; c++) {
            a[c][r] = {{0, 0, 0, 0}};
            if (from[r] >= 0 && 32 * c + part < arg.inputs) a[c][r] = *(const Wide*)(arg.input.values + (long long)from[r] * arg.input.stride + arg.input.first + 32 * c + part);
        }
    }
    float root[4];
    UNROLL
    for (int r = 0; r < 4; r++) {
        float squares[2] = {0, 0};
        UNROLL
        for (int i = 0; i < 8; i++) {
            float low = low_half(a[i / 4][r].word[i % 4]), high = high_half(a[i / 4][r].word[i % 4]);
            squares[i / 4] = fmaf(high, high, fmaf(low, low, squares[i / 4]));
        }
        root[r] = 1.0f / sqrtf(over_lanes(squares[0] + squares[1], 4) / (float)arg.inputs + n.epsilon);
    }
    UNROLL
    for (int c = 0; c < 2; c++) {
        const Four* scale = (const Four*)(factors + 32 * c + part);
        const Four* bias = scale + 16;
        Four scales[2] = {scale[0], scale[1]}, biases[2] = {bias[0], bias[1]};
        UNROLL
        for (int r = 0; r < 4; r++) {
            Wide& piece = a[c][r];
            UNROLL
            for (int i = 0; i < 4; i++) {
                const float *s = scales[i / 2].value + i % 2 * 2, *b = biases[i / 2].value + i % 2 * 2;
                float low = fmaf(low_half(piece.word[i]) * root[r], s[0], b[0]), high = fmaf(high_half(piece.word[i]) * root[r], s[1], b[1]);
                piece.word[i] = from[r] >= 0 ? pack_half(low, high) : 0;
            }
            int to = pixel + 8 * r;
            if (n.output && to < pixels && 32 * c + part < arg.inputs) *(Wide*)(n.output + (long long)to * arg.inputs + 32 * c + part) = piece;
        }
    }
}

// Starts sums of a lane's pixels (two times 16 of the warp's) and eight outputs with the biases.
DEVICE void start_pointwise(float (&sums)[2][4][4], const float* biases) {
    Four low = ((const Four*)biases)[0], high = ((const Four*)biases)[1];
    UNROLL
    for (int i = 0; i < 32; i++) {
        int k = i / 4 % 4 * 2 + i % 2;
        sums[i / 16][i / 4 % 4][i % 4] = k < 4 ? low.value[k % 4] : high.value[k % 4];
    }
}
// Adds the products of 32 inputs and 32 outputs; `weights` is where the lane's begin.
DEVICE void multiply_pointwise(float (&sums)[2][4][4], const Wide (&a)[4], const Wide* weights) {
    UNROLL
    for (int part = 0; part < 4; part++) {
        Wide f = weights[part * 32];
        u32 low[2] = {f.word[0], f.word[1]}, high[2] = {f.word[2], f.word[3]};
        int word = part / 2 * 2, tile = part % 2 * 2;
        UNROLL
        for (int m = 0; m < 2; m++) {
            u32 x[4] = {a[2 * m].word[word], a[2 * m + 1].word[word], a[2 * m].word[word + 1], a[2 * m + 1].word[word + 1]};
            mma_16x8x16(sums[m][tile], x, low);
            mma_16x8x16(sums[m][tile + 1], x, high);
        }
    }
}
// Multiplies eight gradients with the derivative of f at z. With `slopes`, which has a stride of 256,
// they are added to the sums for PReLU's slopes. GELU takes all values at once, as in activate_piece.
DEVICE void multiply_slopes(float (&v)[8], Wide z, const ChannelFunction& f, int channel, float* slopes) {
    if (f.kind == FUNCTION_GELU) {
        UNROLL
        for (int k = 0; k < 8; k++) v[k] *= pointwise_gelu_slope(k % 2 ? high_half(z.word[k / 2]) : low_half(z.word[k / 2]));
        return;
    }
    ROLLED
    for (int k = 0; k < 8; k += 2) {
        float at[2] = {low_half(z.word[0]), high_half(z.word[0])}, d[2] = {v[0], v[1]};
        UNROLL
        for (int i = 0; i < 2; i++) {
            if (slopes) slopes[(k + i) * 256] += d[i] * (at[i] < 0.0f ? at[i] : 0.0f);
            d[i] *= quick_slope(f, at[i], channel + k + i);
        }
        UNROLL
        for (int i = 0; i < 6; i++) v[i] = v[i + 2];
        UNROLL
        for (int i = 0; i < 3; i++) z.word[i] = z.word[i + 1];
        v[6] = d[0];
        v[7] = d[1];
    }
}
// Stores a lane's eight outputs, from channel `channel` on, of its pixels.
DEVICE void finish_pointwise(const MatrixConvArguments& arg, const float (&sums)[2][4][4], float* slopes, int pixel, int pixels, int channel) {
    UNROLL
    for (int r = 0; r < 4; r++) {
        long long at = pixel + 8 * r;
        if (at >= pixels || channel >= arg.filled) continue;
        float v[8];
        UNROLL
        for (int k = 0; k < 8; k++) v[k] = sums[r / 2][k / 2][r % 2 * 2 + k % 2];
        if (arg.back.kind != FUNCTION_NONE) multiply_slopes(v, *(const Wide*)(arg.z.values + at * arg.z.stride + arg.z.first + channel), arg.back, channel, slopes);
        put_piece(arg.output.values + at * arg.output.stride + arg.output.first + channel, v, arg.output.add);
    }
}

// What a block has in shared memory: the weights and biases of some outputs; ahead of a norm its
// factors, of 64 channels each; with sums for slopes [8 x 32s of outputs][thread] f32.
struct PointwiseShared {
    Wide* weights;
    float *biases, *factors, *slopes;
};
// Fills weights and biases of `count` groups of 32 outputs, and the factors of a norm.
template <bool NORM = false>
DEVICE PointwiseShared share_pointwise(const MatrixConvArguments& arg, int count) {
    int chunks = (arg.inputs + 31) / 32, pieces = count * chunks * POINTWISE_SHARE;
    PointwiseShared s;
    s.weights = (Wide*)shared_memory();
    s.biases = (float*)(s.weights + pieces);
    s.factors = s.biases + 32 * count;
    s.slopes = arg.slope_partials ? s.biases + 32 * count + threadIdx.x : nullptr;
    const Wide* packed = (const Wide*)arg.packed + (long long)arg.first * chunks * POINTWISE_SHARE;
    float gain = arg.gain ? *arg.gain : 1.0f;
    ROLLED
    for (int i = threadIdx.x; i < pieces; i += 1024) {
        // loaded together, so that a warp waits once
        Wide loaded[4];
        UNROLL
        for (int k = 0; k < 4; k++)
            if (i + 256 * k < pieces) loaded[k] = packed[i + 256 * k];
        UNROLL
        for (int k = 0; k < 4; k++)
            if (i + 256 * k < pieces) s.weights[i + 256 * k] = loaded[k];
    }
    if (NORM && threadIdx.x < 128) {
        int channel = threadIdx.x % 64;
        s.factors[threadIdx.x] = channel < arg.inputs ? (threadIdx.x < 64 ? arg.norm.scale : arg.norm.bias)[channel] : 0.0f;
    }
    for (int i = threadIdx.x; i < 32 * count; i += 256) s.biases[i] = arg.bias && 32 * arg.first + i < arg.outputs ? gain * arg.bias[32 * arg.first + i] : 0.0f;
    barrier();
    return s;
}

// Groups of 32 outputs of a launch that takes up to `most`.
DEVICE int pointwise_groups(const MatrixConvArguments& arg, int most) {
    int left = (arg.outputs + 31) / 32 - arg.first;
    return left < most ? left : most;
}

template <bool NORM>
DEVICE void pointwise_tiles(const MatrixConvArguments& arg) {
    const int pixels = arg.images * arg.h * arg.w, tiles = (pixels + MATRIX_POINTWISE_PIXELS - 1) / MATRIX_POINTWISE_PIXELS;
    const int chunks = (arg.inputs + 31) / 32, count = pointwise_groups(arg, MATRIX_POINTWISE_GROUPS);
    Lane l = lane_position();
    PointwiseShared s = share_pointwise<NORM>(arg, count);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int pixel = tile * MATRIX_POINTWISE_PIXELS + l.warp * 32 + l.group;
        Wide a[2][4];
        if (NORM) load_normed(a, arg, s.factors, pixel, pixels);
        UNROLL
        for (int c = 0; c < 2 && !NORM; c++) load_pointwise(a[c], arg.input, pixel, pixels, 32 * c + 8 * l.t, arg.inputs);
        UNROLL
        for (int i = 0; i < 8 && !NORM; i++) activate_piece(a[i / 4][i % 4], arg.function, i / 4 * 32 + 8 * l.t, arg.inputs);
        ROLLED
        for (int g = 0; g < count; g++) {
            float sums[2][4][4];
            start_pointwise(sums, s.biases + 32 * g + 8 * l.t);
            multiply_pointwise(sums, a[0], s.weights + g * chunks * POINTWISE_SHARE + l.lane);
            if (chunks > 1) multiply_pointwise(sums, a[1], s.weights + (g * chunks + 1) * POINTWISE_SHARE + l.lane);
            finish_pointwise(arg, sums, nullptr, pixel, pixels, 32 * (arg.first + g) + 8 * l.t);
        }
    }
}
KERNEL_CROWDED(matrix_pointwise, 2) { pointwise_tiles<false>(arg); }
KERNEL_CROWDED(matrix_pointwise_norm, 2) { pointwise_tiles<true>(arg); }

KERNEL_CROWDED(matrix_pointwise_deep, 2) {
    const int pixels = arg.images * arg.h * arg.w, tiles = (pixels + MATRIX_POINTWISE_PIXELS - 1) / MATRIX_POINTWISE_PIXELS;
    const int chunks = (arg.inputs + 31) / 32, count = pointwise_groups(arg, MATRIX_POINTWISE_DEEP_GROUPS);
    Lane l = lane_position();
    PointwiseShared s = share_pointwise(arg, count);
    for (int i = 0; s.slopes && i < 8 * count; i++) s.slopes[i * 256] = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int pixel = tile * MATRIX_POINTWISE_PIXELS + l.warp * 32 + l.group;
        float sums[2][2][4][4];
        UNROLL
        for (int g = 0; g < 2; g++) start_pointwise(sums[g], s.biases + (g < count ? 32 * g : 0) + 8 * l.t);
        ROLLED
        for (int c = 0; c < chunks; c++) {
            Wide a[4];
            load_pointwise(a, arg.input, pixel, pixels, 32 * c + 8 * l.t, arg.inputs);
            UNROLL
            for (int r = 0; r < 4; r++) activate_piece(a[r], arg.function, 32 * c + 8 * l.t, arg.inputs);
            multiply_pointwise(sums[0], a, s.weights + c * POINTWISE_SHARE + l.lane);
            if (count > 1) multiply_pointwise(sums[1], a, s.weights + (chunks + c) * POINTWISE_SHARE + l.lane);
        }
        UNROLL
        for (int g = 0; g < 2; g++)
            if (g < count) finish_pointwise(arg, sums[g], s.slopes ? s.slopes + 8 * g * 256 : nullptr, pixel, pixels, 32 * (arg.first + g) + 8 * l.t);
    }
    if (!arg.slope_partials) return;
    // of the lanes that have an output, in the order of their pixels
    barrier();
    int o = threadIdx.x;
    if (o >= 32 * count || 32 * arg.first + o >= arg.outputs) return;
    const float* from = s.biases + 32 * count + (o / 32 * 8 + o % 8) * 256 + o % 32 / 8;
    float total = 0;
    for (int i = 0; i < 64; i++) total += from[4 * i];
    arg.slope_partials[(long long)blockIdx.x * arg.outputs + 32 * arg.first + o] = total;
}

// matrix_pointwise_weights: sums over pixels of output gradient x activated input. A block takes 32
// x part_inputs inputs and 64 x part_outputs outputs, at most eight products of 32 x 64 sums, one for
// each warp; where there are fewer, several warps share the pixels of each. `tile` pixels at a time are
// in shared memory, and both operands are transposed while they are read from it. Grid: splits of the
// pixels x parts of the inputs x parts of the outputs. Partials: [split][weights, biases] in the
// parameters' order. Least traffic a pixel: inputs and gradients read once, if there is one part.
struct PointwiseOuter {
    float sum[2][8][4], bias[8];
};
// Adds 16 pixels: `x` and `d` are the addresses that a lane gives for the first rows.
DEVICE void accumulate_pointwise(PointwiseOuter& o, const Wide* x, const Wide* d, bool biases) {
    u32 a[2][4];
    UNROLL
    for (int m = 0; m < 2; m++) load_matrices_transposed(a[m], x + 2 * m);
    UNROLL
    for (int n = 0; n < 4; n++) {
        u32 r[4];
        load_matrices_transposed(r, d + 2 * n);
        if (biases) {
            UNROLL
            for (int i = 0; i < 4; i++) o.bias[2 * n + i / 2] += low_half(r[i]) + high_half(r[i]);
        }
        u32 low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
        UNROLL
        for (int m = 0; m < 2; m++) {
            mma_16x8x16(o.sum[m][2 * n], a[m], low);
            mma_16x8x16(o.sum[m][2 * n + 1], a[m], high);
        }
    }
}
// Loads `count` pieces, from channel `first` on, of `size` pixels; what does not exist is 0. A pixel
// has a stride of one piece more, so that neighbours are in different banks.
DEVICE void load_outer_tile(Wide* tile, const View& v, const ChannelFunction& f, int pixel, int size, int pixels, int first, int end, int count) {
    int row = threadIdx.x / count, piece = threadIdx.x - row * count, rows = 256 / count, rest = 256 - rows * count;
    ROLLED
    while (row < size) {
        Wide loaded[4];
        int at[4], channels[4];
        UNROLL
        for (int k = 0; k < 4; k++) {
            at[k] = row < size ? row * (count + 1) + piece : -1;
            channels[k] = first + 8 * piece;
            loaded[k] = {{0, 0, 0, 0}};
            if (row < size && pixel + row < pixels && channels[k] < end) loaded[k] = *(const Wide*)(v.values + (long long)(pixel + row) * v.stride + v.first + channels[k]);
            piece += rest;
            row += rows + (piece >= count);
            piece -= piece >= count ? count : 0;
        }
        UNROLL
        for (int k = 0; k < 4; k++) {
            activate_piece(loaded[k], f, channels[k], end);
            if (at[k] >= 0) tile[at[k]] = loaded[k];
        }
    }
}

// A warp's share of a block's sums: the first input and output of its product, and which of the warps
// with the same product it is; warps that are left over have a number from `shares` on.
struct OuterPart {
    int first_input, first_output, input, output, product, share, shares;
};
DEVICE OuterPart outer_part(const MatrixPointwiseWeightsArguments& arg, u32 thread) {
    int products = arg.part_inputs * arg.part_outputs, part = blockIdx.x / arg.splits;
    OuterPart p;
    p.first_input = part % arg.input_parts * 32 * arg.part_inputs;
    p.first_output = part / arg.input_parts * 64 * arg.part_outputs;
    p.shares = 8 / products;
    p.share = (int)(thread / 32) / products;
    p.product = (int)(thread / 32) - p.share * products;
    p.input = p.product % arg.part_inputs * 32;
    p.output = p.product / arg.part_inputs * 64;
    return p;
}

KERNEL_CROWDED(matrix_pointwise_weights, 2) {
    const int x_pieces = 4 * arg.part_inputs, d_pieces = 8 * arg.part_outputs;
    Wide* x_tile = (Wide*)shared_memory();
    Wide* d_tile = x_tile + arg.tile * (x_pieces + 1);
    PointwiseOuter o;
    UNROLL
    for (int i = 0; i < 64; i++) o.sum[i / 32][i / 4 % 8][i % 4] = 0;
    UNROLL
    for (int i = 0; i < 8; i++) o.bias[i] = 0;
    ChannelFunction none;
    none.kind = FUNCTION_NONE;
    for (int pixel = blockIdx.x % arg.splits * arg.tile; pixel < arg.pixels; pixel += arg.splits * arg.tile) {
        // computed anew, because registers are short
        OuterPart p = outer_part(arg, thread_anew());
        Lane l = lane_position();
        barrier();
        load_outer_tile(x_tile, arg.input, arg.function, pixel, arg.tile, arg.pixels, p.first_input, arg.inputs, x_pieces);
        load_outer_tile(d_tile, arg.d_output, none, pixel, arg.tile, arg.pixels, p.first_output, arg.outputs, d_pieces);
        barrier();
        // input: pixels 0-7, channels 0-7 and 8-15, then pixels 8-15; gradient: pixels 0-7 and 8-15,
        // channels 0-7, then channels 8-15
        const Wide* x = x_tile + (l.lane / 16 * 8 + l.lane % 8) * (x_pieces + 1) + p.input / 8 + l.lane / 8 % 2;
        const Wide* d = d_tile + l.lane % 16 * (d_pieces + 1) + p.output / 8 + l.lane / 16;
        ROLLED
        for (int at = p.share < p.shares ? 16 * p.share : arg.tile; at < arg.tile; at += 16 * p.shares)
            accumulate_pointwise(o, x + at * (x_pieces + 1), d + at * (d_pieces + 1), p.first_input + p.input == 0);
    }
    UNROLL
    for (int n = 0; n < 8; n++) {
        o.bias[n] += shuffle_xor(o.bias[n], 1);
        o.bias[n] += shuffle_xor(o.bias[n], 2);
    }
    OuterPart p = outer_part(arg, thread_anew());
    Lane l = lane_position();
    // the sums of the later half of the shares are added to those of the earlier half: [share, product][sum][lane]
    ROLLED
    for (int half = p.shares / 2; half > 0; half /= 2) {
        float* slot = (float*)shared_memory() + (p.share % half * arg.part_inputs * arg.part_outputs + p.product) * MATRIX_POINTWISE_SUMS * 32 + l.lane;
        barrier();
        if (p.share >= half && p.share < 2 * half) {
            UNROLL
            for (int i = 0; i < 64; i++) slot[i * 32] = o.sum[i / 32][i / 4 % 8][i % 4];
            UNROLL
            for (int i = 0; i < 8; i++) slot[(64 + i) * 32] = o.bias[i];
        }
        barrier();
        if (p.share < half) {
            UNROLL
            for (int i = 0; i < 64; i++) o.sum[i / 32][i / 4 % 8][i % 4] += slot[i * 32];
            UNROLL
            for (int i = 0; i < 8; i++) o.bias[i] += slot[(64 + i) * 32];
        }
    }
    if (p.share > 0) return;
    long long weights = (long long)arg.outputs * arg.inputs;
    float* partials = arg.partials + blockIdx.x % arg.splits * (weights + arg.outputs);
    UNROLL
    for (int n = 0; n < 8; n++) {
        UNROLL
        for (int i = 0; i < 8; i++) {
            int output = p.first_output + p.output + 8 * n + 2 * l.t + i % 2, input = p.first_input + p.input + i / 4 * 16 + i / 2 % 2 * 8 + l.group;
            if (output < arg.outputs && input < arg.inputs) partials[(long long)output * arg.inputs + input] = o.sum[i / 4][n][i % 4];
        }
        int output = p.first_output + p.output + 8 * n + l.group;
        if (p.first_input + p.input == 0 && l.t == 0 && output < arg.outputs) partials[weights + output] = o.bias[n];
    }
}
#endif
