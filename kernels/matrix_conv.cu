// Dense 3x3 convolutions of 16 inputs or more and any number of outputs on tensor cores, and their
// gradients, in half precision. Depends on plain.cuh and mma.cuh.
//
// matrix_conv: a block of 8 warps computes HIGH x 16 pixels and OUTPUTS outputs, a warp four rows of
// 16 pixels and 32 outputs in 64 registers. Inputs come in chunks of 16: the tile with a border of
// one pixel, activated and rounded to half precision, and the chunk's weights are in shared memory.
// For a column of taps a warp loads six rows of pixels and 3 x 2 fragments of weights for 48
// instructions on tensor cores. matrix_conv has 16 rows and 64 outputs, matrix_conv_narrow 32 rows and
// 32 outputs. `transposed` arguments make them the gradient of the input. Grid: blocks of pixels x
// slabs of outputs. Least traffic a pixel: its inputs read and its outputs written once.
//
// matrix_conv_pack converts the weights to half precision in the order in which lanes hold them, once
// for every launch of the other two.
#pragma once
#include "mma.cuh"
#include "plain.cuh"

#if PRECISION != 0

// Blocks that a multiprocessor holds. Cards before sm_80 multiply 8 values along k at a time, which
// takes more registers.
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ < 800
#define MATRIX_BLOCKS 1
#else
#define MATRIX_BLOCKS 2
#endif
#define MATRIX_ROW (TILE + 2)
// A pixel of a tile takes one 16-byte piece more than its values: see PIXEL_PIECES in conv.cu.
#define MATRIX_PIECES 3
static_assert(MATRIX_CONV_TILE == (TILE + 2) * MATRIX_ROW * MATRIX_PIECES * 16 && MATRIX_CONV_NARROW_TILE == (2 * TILE + 2) * MATRIX_ROW * MATRIX_PIECES * 16,
              "the lowering reserves what a tile needs");

// The functions of plain.cuh that these kernels take, in few registers: values are rounded to half
// precision afterwards, so approximations of one instruction are enough.
DEVICE float quick_sigmoid(float z) { return fast_reciprocal(1.0f + fast_exp2(-1.44269504f * z)); }
DEVICE float slope_below_0(const ChannelFunction& f, int channel) {
    return f.kind == FUNCTION_PRELU ? prelu_slope(f, channel) : f.kind == FUNCTION_LEAKY_RELU ? f.slope : 0.0f;
}
DEVICE float quick_function(const ChannelFunction& f, float z, int channel) {
    if (f.kind == FUNCTION_NONE) return z;
    if (f.kind == FUNCTION_SILU) return z * quick_sigmoid(z);
    return z > 0.0f ? z : slope_below_0(f, channel) * z;
}
DEVICE float quick_slope(const ChannelFunction& f, float z, int channel) {
    if (f.kind == FUNCTION_SILU) {
        float s = quick_sigmoid(z);
        return s * (1.0f + z * (1.0f - s));
    }
    return z > 0.0f ? 1.0f : slope_below_0(f, channel);
}

// Copies eight inputs of a pixel from channel `channel` on, of which those from `end` on become 0:
// activated and rounded again, two at a time, because registers are short in these kernels.
DEVICE void put_inputs(Wide* to, const act* from, const ChannelFunction& f, int channel, int end) {
    if (f.kind == FUNCTION_NONE && channel + 8 <= end) {
        *to = *(const Wide*)from;
        return;
    }
    ROLLED
    for (int k = 0; k < 4; k++) {
        u32 word = ((const u32*)from)[k];
        int c = channel + 2 * k;
        float low = c < end ? quick_function(f, low_half(word), c) : 0.0f;
        float high = c + 1 < end ? quick_function(f, high_half(word), c + 1) : 0.0f;
        ((u32*)to)[k] = pack_half(low, high);
    }
}
// Loads EACH x 8 channels of a tile of LINES x WIDTH pixels whose first pixel is (y, x), which may
// be outside of the image; pixels there are 0. A pixel of the tile has a stride of EACH + 1 pieces.
template <int LINES, int WIDTH, int EACH>
DEVICE void load_matrix_tile(unsigned char* tile, const View& v, const ChannelFunction& f, int image, int y, int x, int h, int w, int first, int end) {
    const act* from = v.values + (long long)image * h * w * v.stride + v.first;
    ROLLED
    for (int i = threadIdx.x; i < LINES * WIDTH * EACH; i += 256) {
        int pixel = i / EACH, piece = i % EACH, line = pixel / WIDTH, row = y + line, column = x + pixel - line * WIDTH;
        int channel = first + 8 * piece;
        Wide* to = (Wide*)tile + pixel * (EACH + 1) + piece;
        if (inside(row, column, h, w) && channel < end) {
            put_inputs(to, from + (long long)(row * w + column) * v.stride + channel, f, channel, end);
        } else {
            *to = {{0, 0, 0, 0}};
        }
    }
}

// Weights as [chunk of 16 inputs][slab of outputs][tap][16 outputs][lane] x 16 bytes, 0 where there is
// no input or output. A lane's four words are b[0], b[1] of the instruction for outputs 4i and 4i + 1,
// then for 4i + 2 and 4i + 3 (fragment_feature), so its results for a pixel are four neighbours. A
// thread makes 16 bytes.
KERNEL(matrix_conv_pack) {
    int i = blockIdx.x * 256 + threadIdx.x, lane = i % 32, rest = i / 32, tiles = arg.slab_outputs / 16;
    int tile = rest % tiles, tap = rest / tiles % TAPS, slab = rest / tiles / TAPS % arg.slabs, chunk = rest / tiles / TAPS / arg.slabs;
    if (chunk * 16 >= arg.inputs) return;
    int group = lane / 4, t = lane % 4;
    float gain = arg.gain ? *arg.gain : 1.0f;
    Wide piece;
    UNROLL
    for (int word = 0; word < 4; word++) {
        int output = slab * arg.slab_outputs + tile * 16 + fragment_feature(group, word / 2), input = chunk * 16 + 2 * t + word % 2 * 8;
        float pair[2];
        UNROLL
        for (int k = 0; k < 2; k++) {
            bool exists = output < arg.outputs && input + k < arg.inputs;
            long long at = arg.transposed ? ((long long)(input + k) * arg.outputs + output) * TAPS + TAPS - 1 - tap : ((long long)output * arg.inputs + input + k) * TAPS + tap;
            pair[k] = exists ? gain * arg.weight[exists ? at : 0] : 0.0f;
        }
        piece.word[word] = pack_half(pair[0], pair[1]);
    }
    ((Wide*)arg.packed)[i] = piece;
}

// Four neighbouring outputs of a pixel: the derivative of `back`, and the sums for its slopes.
DEVICE void finish_outputs(const MatrixConvArguments& arg, float (&v)[4], float (&slopes)[4], long long pixel, int channel) {
    if (arg.back.kind == FUNCTION_NONE) return;
    Pair z = *(const Pair*)(arg.z.values + pixel * arg.z.stride + arg.z.first + channel);
    UNROLL
    for (int k = 0; k < 4; k++) {
        if (channel + k >= arg.outputs) continue;
        float at = k % 2 ? high_half(z.word[k / 2]) : low_half(z.word[k / 2]);
        slopes[k] += v[k] * (at < 0.0f ? at : 0.0f);
        v[k] *= quick_slope(arg.back, at, channel + k);
    }
}
DEVICE void store_outputs(const MatrixConvArguments& arg, float (&v)[4], long long pixel, int channel) {
    Pair* to = (Pair*)(arg.output.values + pixel * arg.output.stride + arg.output.first + channel);
    if (arg.output.add) {
        Pair before = *to;
        UNROLL
        for (int k = 0; k < 4; k++) v[k] += k % 2 ? high_half(before.word[k / 2]) : low_half(before.word[k / 2]);
    }
    Pair values = {{pack_half(v[0], v[1]), pack_half(v[2], v[3])}};
    *to = values;
}

// Adds the products of a chunk: `tile` is where the warp's rows begin, `weights` its outputs'.
template <int OUTPUTS>
DEVICE void multiply_matrix(float (&sums)[4][4][4], const unsigned char* tile, const Wide* weights) {
    int lane = threadIdx.x % 32;
    const Wide* first = (const Wide*)tile + (lane % 16) * MATRIX_PIECES + lane / 16;
    ROLLED
    for (int kx = 0; kx < 3; kx++) {
        u32 a[4][4];
        UNROLL
        for (int row = 0; row < 3; row++) load_matrices(a[row], first + (row * MATRIX_ROW + kx) * MATRIX_PIECES);
        UNROLL
        for (int ky = 0; ky < 3; ky++) {
            // the instructions stay in this order, so rows are loaded late: registers are short
            load_matrices(a[(ky + 3) % 4], first + ((ky + 3) * MATRIX_ROW + kx) * MATRIX_PIECES);
            UNROLL
            for (int half = 0; half < 2; half++) {
                Wide f = weights[((ky * 3 + kx) * (OUTPUTS / 16) + half) * 32 + lane];
                u32 low[2] = {f.word[0], f.word[1]}, high[2] = {f.word[2], f.word[3]};
                UNROLL
                for (int row = 0; row < 4; row++) {
                    mma_16x8x16(sums[row][2 * half], a[(row + ky) % 4], low);
                    mma_16x8x16(sums[row][2 * half + 1], a[(row + ky) % 4], high);
                }
            }
        }
    }
}

// GROUPS: warps that have rows of their own.
template <int GROUPS>
DEVICE void matrix_conv_blocks(const MatrixConvArguments& arg) {
    const int HIGH = 4 * GROUPS, OUTPUTS = 256 / GROUPS, SHARE = TAPS * (OUTPUTS / 16) * 32;
    const int h = arg.h, w = arg.w;
    unsigned char* tile = shared_memory();
    Wide* weights = (Wide*)(tile + (HIGH + 2) * MATRIX_ROW * MATRIX_PIECES * 16);
    Lane l = lane_position();
    int rows = l.warp % GROUPS * 4, part = l.warp / GROUPS * 32;
    int slab = blockIdx.x % arg.slabs, across = (w + TILE - 1) / TILE, down = (h + HIGH - 1) / HIGH;
    int channel = slab * OUTPUTS + part + 4 * l.t;  // and 16 after it
    float gain = arg.gain ? *arg.gain : 1.0f, slopes[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    for (int index = blockIdx.x / arg.slabs; index < arg.images * down * across; index += gridDim.x / arg.slabs) {
        int line = index / across, image = line / down, y = (line - image * down) * HIGH, x = (index - line * across) * TILE;
        float sums[4][4][4];
        UNROLL
        for (int n = 0; n < 4; n++) {
            UNROLL
            for (int i = 0; i < 2; i++) {
                int c = channel + n / 2 * 16 + n % 2 * 2 + i;
                float bias = arg.bias && c < arg.outputs ? gain * arg.bias[c] : 0.0f;
                UNROLL
                for (int row = 0; row < 4; row++) sums[row][n][i] = sums[row][n][2 + i] = bias;
            }
        }
        ROLLED
        for (int chunk = 0; 16 * chunk < arg.inputs; chunk++) {
            barrier();
            load_matrix_tile<HIGH + 2, MATRIX_ROW, 2>(tile, arg.input, arg.function, image, y - 1, x - 1, h, w, 16 * chunk, arg.inputs);
            const Wide* packed = (const Wide*)arg.packed + (long long)(chunk * arg.slabs + slab) * SHARE;
            ROLLED
            for (int i = threadIdx.x; i < SHARE; i += 256) weights[i] = packed[i];
            barrier();
            // an offset that the compiler does not know keeps it from holding weights of a later column
            multiply_matrix<OUTPUTS>(sums, tile + rows * MATRIX_ROW * MATRIX_PIECES * 16, weights + anew(part / 16 * 32));
        }
        UNROLL
        for (int row = 0; row < 4; row++) {
            UNROLL
            for (int half = 0; half < 2; half++) {
                int py = y + rows + row, px = x + l.group + half * 8;
                if (py >= h || px >= w) continue;
                long long pixel = ((long long)image * h + py) * w + px;
                UNROLL
                for (int n = 0; n < 2; n++) {
                    int c = channel + 16 * n;
                    if (c >= arg.filled) continue;
                    float v[4] = {sums[row][2 * n][2 * half], sums[row][2 * n][2 * half + 1], sums[row][2 * n + 1][2 * half], sums[row][2 * n + 1][2 * half + 1]};
                    finish_outputs(arg, v, slopes[n], pixel, c);
                    store_outputs(arg, v, pixel, c);
                }
            }
        }
    }
    if (!arg.slope_partials) return;
    // [warp][group][32 outputs]
    float* shared = (float*)shared_memory();
    barrier();
    UNROLL
    for (int i = 0; i < 8; i++) shared[(l.warp * 8 + l.group) * 32 + i / 4 * 16 + 4 * l.t + i % 4] = slopes[i / 4][i % 4];
    barrier();
    int o = threadIdx.x, first = slab * OUTPUTS;
    if (o >= OUTPUTS || first + o >= arg.outputs) return;
    float total = 0;
    for (int i = 0; i < GROUPS * 8; i++) total += shared[(o / 32 * GROUPS * 8 + i) * 32 + o % 32];
    arg.slope_partials[(long long)(blockIdx.x / arg.slabs) * arg.outputs + first + o] = total;
}
KERNEL_CROWDED(matrix_conv, MATRIX_BLOCKS) { matrix_conv_blocks<4>(arg); }
KERNEL_CROWDED(matrix_conv_narrow, MATRIX_BLOCKS) { matrix_conv_blocks<8>(arg); }

// matrix_conv_weights: sums over pixels of output gradient x activated input. A block takes 32 inputs
// and 32 outputs; a warp the nine taps of 16 x 16 of them for eight rows of each tile, as the product of
// input (channels x pixels) and gradient (pixels x channels), both transposed while they are read from
// shared memory. Grid: splits of the tiles x groups of 32 outputs x groups of 32 inputs. Partials:
// [split][weights, biases] in the parameters' order.
#define MATRIX_WEIGHT_PIECES 5
static_assert(MATRIX_CONV_WEIGHT_TILES == (MATRIX_ROW * MATRIX_ROW + TILE * TILE) * MATRIX_WEIGHT_PIECES * 16, "the lowering reserves what the tiles need");

struct MatrixOuter {
    float sum[TAPS][2][4], bias[2];
};
// Adds eight rows of a tile: `x` and `d` are the addresses that a lane gives for the first rows of the
// input, whose tile has a border of one pixel, and of the gradient.
DEVICE void accumulate_matrix(MatrixOuter& o, const Wide* x, const Wide* d) {
    u32 b[3][4];
    UNROLL
    for (int row = 0; row < 10; row++) {
        if (row < 8) {
            u32(&r)[4] = b[row % 3];
            load_matrices_transposed(r, d + row * TILE * MATRIX_WEIGHT_PIECES);
            UNROLL
            for (int i = 0; i < 4; i++) o.bias[i / 2] += low_half(r[i]) + high_half(r[i]);
        }
        UNROLL
        for (int kx = 0; kx < 3; kx++) {
            u32 a[4];
            load_matrices_transposed(a, x + (row * MATRIX_ROW + kx) * MATRIX_WEIGHT_PIECES);
            UNROLL
            for (int ky = 0; ky < 3; ky++) {
                int y = row - ky;
                if (y < 0 || y > 7) continue;
                const u32(&r)[4] = b[y % 3];
                u32 low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
                mma_16x8x16(o.sum[ky * 3 + kx][0], a, low);
                mma_16x8x16(o.sum[ky * 3 + kx][1], a, high);
            }
        }
    }
}

KERNEL_CROWDED(matrix_conv_weights, MATRIX_BLOCKS) {
    const int h = arg.h, w = arg.w;
    unsigned char* x_tile = shared_memory();
    unsigned char* d_tile = x_tile + MATRIX_ROW * MATRIX_ROW * MATRIX_WEIGHT_PIECES * 16;
    Lane l = lane_position();
    int inputs_at = l.warp % 2 * 16, outputs_at = l.warp / 2 % 2 * 16, rows = l.warp / 4 * 8;
    int split = blockIdx.x % arg.splits, part = blockIdx.x / arg.splits;
    int first_input = part % arg.input_tiles * 32, first_output = part / arg.input_tiles * 32;
    int across = (w + TILE - 1) / TILE, down = (h + TILE - 1) / TILE;
    // input: pixels 0-7, channels 0-7 and 8-15, then pixels 8-15; gradient: pixels 0-7 and 8-15,
    // channels 0-7, then channels 8-15
    const Wide* x_first = (const Wide*)x_tile + (rows * MATRIX_ROW + l.lane / 16 * 8 + l.lane % 8) * MATRIX_WEIGHT_PIECES + inputs_at / 8 + l.lane / 8 % 2;
    const Wide* d_first = (const Wide*)d_tile + (rows * TILE + l.lane % 16) * MATRIX_WEIGHT_PIECES + outputs_at / 8 + l.lane / 16;
    ChannelFunction none;
    none.kind = FUNCTION_NONE;
    MatrixOuter o;
    UNROLL
    for (int i = 0; i < TAPS * 8; i++) o.sum[i / 8][i / 4 % 2][i % 4] = 0;
    o.bias[0] = o.bias[1] = 0;
    for (int index = split; index < arg.images * down * across; index += arg.splits) {
        int line = index / across, image = line / down, y = (line - image * down) * TILE, x = (index - line * across) * TILE;
        barrier();
        load_matrix_tile<MATRIX_ROW, MATRIX_ROW, 4>(x_tile, arg.input, arg.function, image, y - 1, x - 1, h, w, first_input, arg.inputs);
        load_matrix_tile<TILE, TILE, 4>(d_tile, arg.d_output, none, image, y, x, h, w, first_output, arg.outputs);
        barrier();
        accumulate_matrix(o, x_first, d_first);
    }
    UNROLL
    for (int n = 0; n < 2; n++) {
        o.bias[n] += shuffle_xor(o.bias[n], 1);
        o.bias[n] += shuffle_xor(o.bias[n], 2);
    }
    // the sums of the lower rows are added to those of the upper ones: [warp of 4][72 + 2][lane]
    float* lower = (float*)shared_memory() + (l.warp % 4 * 74) * 32 + l.lane;
    barrier();
    if (l.warp >= 4) {
        UNROLL
        for (int i = 0; i < TAPS * 8; i++) lower[i * 32] = o.sum[i / 8][i / 4 % 2][i % 4];
        lower[72 * 32] = o.bias[0];
        lower[73 * 32] = o.bias[1];
    }
    barrier();
    if (l.warp >= 4) return;
    long long weights = (long long)arg.outputs * arg.inputs * TAPS;
    float* partials = arg.partials + split * (weights + arg.outputs);
    UNROLL
    for (int n = 0; n < 2; n++) {
        UNROLL
        for (int i = 0; i < 4; i++) {
            int output = first_output + outputs_at + 8 * n + 2 * l.t + i % 2, input = first_input + inputs_at + l.group + i / 2 * 8;
            if (output >= arg.outputs || input >= arg.inputs) continue;
            float* to = partials + ((long long)output * arg.inputs + input) * TAPS;
            UNROLL
            for (int tap = 0; tap < TAPS; tap++) to[tap] = o.sum[tap][n][i] + lower[((tap * 2 + n) * 4 + i) * 32];
        }
        int output = first_output + outputs_at + 8 * n + l.group;
        if (first_input + inputs_at == 0 && l.t == 0 && output < arg.outputs) partials[weights + output] = o.bias[n] + lower[(72 + n) * 32];
    }
}
#endif
