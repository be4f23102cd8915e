// 3x3 convolutions from 16 features to 16, and their gradients.
//
// A block of 8 warps computes tiles of 16 x 16 pixels in shared memory, two rows a warp. Half
// precision goes through tensor cores, f32 through plain multiply-adds. Weights are PyTorch's f32
// [16][16][3][3] and are converted to half precision while they are loaded.
#pragma once
#include "features.cuh"
#include "mma.cuh"

#define WIDE_TILE (TILE + 2)
// 16-byte pieces of one pixel's features.
#define PIECES (FEATURES * (int)sizeof(act) / 16)
#define WEIGHTS (TAPS * FEATURES * FEATURES)

// Where a tile with `BORDER` pixels more on each side has its pixels in shared memory, in pieces.
template <int BORDER>
struct TileLayout {
    static const int SIDE = TILE + 2 * BORDER;
#if PRECISION == 0
    // a pixel has one piece more than its features fill: with a stride of 5, equal pieces of eight
    // consecutive pixels are in different banks
    static const int PIXEL = PIECES + BANK_GAP / 16, ROW = SIDE * PIXEL;
    DEVICE_MEMBER static int at(int y, int x, int piece) { return y * ROW + x * PIXEL + piece; }
    // Column 2 x `index` + `odd`.
    DEVICE_MEMBER static int at(int y, int odd, int index, int piece) { return at(y, 2 * index + odd, piece); }
#else
    // a row has its even columns first and then its odd ones: every second of 16 columns are the eight
    // pixels of a matrix of a tensor core's operand. Three taps on 16 pixels need four such matrices, and
    // six of neighbours. The two pieces of a pixel change places where `index` has bit 2, so that a
    // matrix, and the four pixels that eight threads store, have all their pieces in different banks
    static const int ROW = PIECES * (ODD_COLUMNS + SIDE / 2);
    DEVICE_MEMBER static int at(int y, int odd, int index, int piece) {
        return y * ROW + PIECES * (odd * ODD_COLUMNS + index) + (piece ^ index / 4 % 2);
    }
#endif
    static const int BYTES = SIDE * ROW * 16;
};

// A tile of activations [images][h][w][16] on its way from device to shared memory, with `BORDER`
// pixels more on each side; pixels outside the image are zeros. All loads of a tile are issued
// before the first value is stored. A thread has the same piece of the same column in every round.
template <int BORDER>
struct TileInput {
    typedef TileLayout<BORDER> Layout;
    static const int COLUMNS = Layout::SIDE * PIECES, ROWS = 256 / COLUMNS, ROUNDS = (Layout::SIDE + ROWS - 1) / ROWS;
    Wide values[ROUNDS];

    DEVICE_MEMBER void load(const act* from, Tile at, int h, int w) {
        int row = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
        int top = at.y - BORDER + row, x = at.x - BORDER + column / PIECES;
        bool on = row < ROWS && (u32)x < (u32)w;
        // offsets within one image fit an int
        const Wide* image = (const Wide*)from + (long long)at.image * (h * w * PIECES);
        UNROLL
        for (int round = 0; round < ROUNDS; round++) {
            int y = top + round * ROWS;
            values[round] = {{0, 0, 0, 0}};
            if (on && in_tile(row, round) && (u32)y < (u32)h) values[round] = image[(y * w + x) * PIECES + column % PIECES];
        }
    }
    DEVICE_MEMBER void store(unsigned char* to) const {
        int row = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
        Wide* first = (Wide*)to + Layout::at(row, column / PIECES % 2, column / PIECES / 2, column % PIECES);
        UNROLL
        for (int round = 0; round < ROUNDS; round++)
            if (row < ROWS && in_tile(row, round)) first[round * ROWS * Layout::ROW] = values[round];
    }
    DEVICE_MEMBER static bool in_tile(int row, int round) { return (round + 1) * ROWS <= Layout::SIDE || row < Layout::SIDE - round * ROWS; }
};

// Loads the weights as 9 matrices [k][column], one for each tap. Forward: k is the input channel,
// column the output channel. Backward they are exchanged and the taps are mirrored, because a
// gradient comes from the output pixel on the opposite side.
DEVICE void load_weights(unsigned char* to, const float* weight, bool backward) {
    int ci = threadIdx.x % FEATURES, co = threadIdx.x / FEATURES;
    const float* from = weight + threadIdx.x * TAPS;
    int k = backward ? co : ci, column = backward ? ci : co;
    UNROLL
    for (int tap = 0; tap < TAPS; tap++) {
        int out = backward ? TAPS - 1 - tap : tap;
#if PRECISION == 0
        ((float*)to)[(out * FEATURES + k) * FEATURES + column] = from[tap];
#else
        // in the order of a lane's registers: 16 bytes hold b[0], b[1] of the first 8 x 16 matrix,
        // then of the second; columns are distributed over the two so that a lane's four results of
        // one pixel are neighbouring channels
        int lane = ((column >> 2) * 2 + (column & 1)) * 4 + k % 8 / 2, word = (column >> 1 & 1) * 2 + k / 8;
        ((u16*)to)[(((out * 32 + lane) * 4) + word) * 2 + k % 2] = to_half(from[tap]);
#endif
    }
}

// The 16 channels of the pixels that a thread (f32) or a warp (half precision) computes: the
// accumulators, and their store.
#if PRECISION == 0
struct __attribute__((aligned(16))) Four {
    float value[4];
};
struct Product {
    float sum[FEATURES];
};
DEVICE void start(Product& p, const float* bias) {
    for (int c = 0; c < FEATURES; c++) p.sum[c] = bias ? bias[c] : 0.0f;
}
// Adds the products of the 3x3 neighbourhood of a thread's pixel, in a tile with a border of 1, and
// the weights.
DEVICE void multiply(Product& p, const unsigned char* tile, const unsigned char* weights) {
    int y = threadIdx.x / TILE, x = threadIdx.x % TILE;
    for (int tap = 0; tap < TAPS; tap++) {
        const Four* pixel = (const Four*)tile + TileLayout<1>::at(y + tap / 3, x + tap % 3, 0);
        for (int piece = 0; piece < 4; piece++) {
            Four values = pixel[piece];
            UNROLL
            for (int i = 0; i < 4; i++) {
                const Four* row = (const Four*)weights + (tap * FEATURES + piece * 4 + i) * 4;
                UNROLL
                for (int c = 0; c < FEATURES; c++) p.sum[c] += values.value[i] * row[c / 4].value[c % 4];
            }
        }
    }
}
DEVICE void store(const Product& p, act* to, Tile at, int h, int w) {
    int y = at.y + (int)threadIdx.x / TILE, x = at.x + (int)threadIdx.x % TILE;
    if (y >= h || x >= w) return;
    Four* pixel = (Four*)to + ((long long)(at.image * h + y) * w + x) * PIECES;
    for (int piece = 0; piece < 4; piece++) {
        Four values = {{p.sum[piece * 4], p.sum[piece * 4 + 1], p.sum[piece * 4 + 2], p.sum[piece * 4 + 3]}};
        pixel[piece] = values;
    }
}
#else
struct Product {
    float sum[2][2][4];  // [row][matrix of 8 columns][see mma_16x8x16]
};
DEVICE void start(Product& p, const float* bias) {
    int t = threadIdx.x % 4;
    UNROLL
    for (int row = 0; row < 2; row++)
        UNROLL
        for (int n = 0; n < 2; n++)
            UNROLL
            for (int i = 0; i < 4; i++) p.sum[row][n][i] = bias ? bias[4 * t + 2 * n + i % 2] : 0.0f;
}
// A lane's share of load_weights' matrices.
struct Operands {
    Wide tap[TAPS];
};
// They stay in registers while a block loops over tiles.
DEVICE void load_operands(Operands& o, const unsigned char* weights) {
    UNROLL
    for (int tap = 0; tap < TAPS; tap++) o.tap[tap] = ((const Wide*)weights)[tap * 32 + threadIdx.x % 32];
}
// Adds the products of the 3x3 neighbourhood of a warp's two rows, in a tile with a border of 1,
// and the weights. Rows of the operand are the even columns of the tile's row, then the odd ones:
// for each column of taps two of the four matrices that begin at columns 0 .. 3.
DEVICE void multiply(Product& p, const unsigned char* tile, const Operands& weights) {
    typedef TileLayout<1> Layout;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, odd = lane / 8 % 2, index = lane % 8;
    // matrices 0 and 1, or 2 and 3, of channels 0-7, then of 8-15
    const Wide *left = (const Wide*)tile + Layout::at(2 * warp, odd, index, lane / 16), *right = (const Wide*)tile + Layout::at(2 * warp, odd, index + 1, lane / 16);
    UNROLL
    for (int row = 0; row < 4; row++) {
        u32 a[3][4];
        load_matrices(a[0], left + row * Layout::ROW);
        load_matrices(a[2], right + row * Layout::ROW);
        UNROLL
        for (int i = 0; i < 4; i += 2) {
            a[1][i] = a[0][i + 1];
            a[1][i + 1] = a[2][i];
        }
        UNROLL
        for (int kx = 0; kx < 3; kx++) {
            UNROLL
            for (int y = 0; y < 2; y++) {
                if (row < y || row > y + 2) continue;
                const Wide& f = weights.tap[(row - y) * 3 + kx];
                u32 first[2] = {f.word[0], f.word[1]}, second[2] = {f.word[2], f.word[3]};
                mma_16x8x16(p.sum[y][0], a[kx], first);
                mma_16x8x16(p.sum[y][1], a[kx], second);
            }
        }
    }
}
DEVICE void store(const Product& p, act* to, Tile at, int h, int w) {
    int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4;
    int y = at.y + 2 * warp, x = at.x + 2 * group;
    // offsets within one image fit an int
    Pair* pixel = (Pair*)to + (long long)at.image * (h * w * 4) + ((y * w + x) * 4 + (int)threadIdx.x % 4);
    UNROLL
    for (int row = 0; row < 2; row++) {
        UNROLL
        for (int half = 0; half < 2; half++) {
            const float(*sum)[4] = p.sum[row];
            // four lanes write the 32 bytes of a pixel
            Pair values = {{pack_half(sum[0][half * 2], sum[0][half * 2 + 1]), pack_half(sum[1][half * 2], sum[1][half * 2 + 1])}};
            if (y + row < h && x + half < w) pixel[row * w * 4 + half * 4] = values;
        }
    }
}
#endif

// Forward; any h, w. The weights stay in shared memory (f32) or registers while a block loops over
// tiles. Grid: persistent. Shared memory: a tile with border, weights, biases. Least traffic a pixel:
// 32 bytes read and 32 written (half precision).
KERNEL(conv) {
    const int h = arg.h, w = arg.w;
    unsigned char* tile = shared_memory();
    unsigned char* weights = tile + TileLayout<1>::BYTES;
    float* biases = (float*)(weights + WEIGHTS * (int)sizeof(act));
    int tiles = tile_count(arg.images, h, w);
    load_weights(weights, arg.weight, false);
    if (threadIdx.x < FEATURES) biases[threadIdx.x] = arg.bias[threadIdx.x];
#if PRECISION != 0
    barrier();
    Operands operands;
    load_operands(operands, weights);
#endif
    const Tiles tile_of(h, w);
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
        Tile at = tile_of.at(t, h, w);
        TileInput<1> in;
        in.load(arg.input, at, h, w);
        barrier();
        in.store(tile);
        barrier();
        Product p;
        start(p, biases);
#if PRECISION != 0
        multiply(p, tile, operands);
#else
        multiply(p, tile, weights);
#endif
        store(p, arg.output, at, h, w);
    }
}

#if PRECISION == 0
// Data gradient in f32 (half precision has conv_gradients). Grid: persistent. Shared memory: a tile
// with border, weights. Least traffic a pixel: 64 bytes read and 64 written.
KERNEL_CROWDED(conv_data, 2) {
    const int h = arg.h, w = arg.w;
    unsigned char* tile = shared_memory();
    unsigned char* weights = tile + TileLayout<1>::BYTES;
    int tiles = tile_count(arg.images, h, w);
    load_weights(weights, arg.weight, true);
    const Tiles tile_of(h, w);
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
        Tile at = tile_of.at(t, h, w);
        TileInput<1> in;
        in.load(arg.d_output, at, h, w);
        barrier();
        in.store(tile);
        barrier();
        Product p;
        start(p, nullptr);
        multiply(p, tile, weights);
        store(p, arg.d_input, at, h, w);
    }
}
#endif

// The sums of a block over the pixels of its tiles: input channel times gradient for each tap, and
// the gradient itself. f32: a thread has the nine taps of one pair of channels. Half precision: a
// warp has those of 8 output channels for four rows of each tile, as the product of input (channels
// x pixels) and gradient (pixels x channels); both are transposed while they are read from shared
// memory.
#if PRECISION == 0
struct Outer {
    float sum[TAPS], bias;
};
DEVICE void start(Outer& o) {
    UNROLL
    for (int tap = 0; tap < TAPS; tap++) o.sum[tap] = 0;
    o.bias = 0;
}
// Adds a tile. The input's tile has a border of 1, the gradient's none.
DEVICE void accumulate(Outer& o, const unsigned char* x_tile, const unsigned char* d_tile) {
    int ci = threadIdx.x % FEATURES, co = threadIdx.x / FEATURES;
    for (int y = 0; y < TILE; y++) {
        // one row at a time: short sums lose fewer bits to rounding
        float sum[TAPS], window[3][3], bias = 0;
        UNROLL
        for (int tap = 0; tap < TAPS; tap++) sum[tap] = 0;
        UNROLL
        for (int i = 0; i < 6; i++) window[i / 2][i % 2] = ((const float*)x_tile)[TileLayout<1>::at(y + i / 2, i % 2, 0) * 4 + ci];
        ROLLED
        for (int x = 0; x < TILE; x++) {
            float d = ((const float*)d_tile)[TileLayout<0>::at(y, x, 0) * 4 + co];
            bias += d;
            UNROLL
            for (int ky = 0; ky < 3; ky++) {
                window[ky][2] = ((const float*)x_tile)[TileLayout<1>::at(y + ky, x + 2, 0) * 4 + ci];
                UNROLL
                for (int kx = 0; kx < 3; kx++) sum[ky * 3 + kx] += window[ky][kx] * d;
                window[ky][0] = window[ky][1];
                window[ky][1] = window[ky][2];
            }
        }
        UNROLL
        for (int tap = 0; tap < TAPS; tap++) o.sum[tap] += sum[tap];
        o.bias += bias;
    }
}
DEVICE void finish(const Outer& o, float* out) {
    int ci = threadIdx.x % FEATURES, co = threadIdx.x / FEATURES;
    UNROLL
    for (int tap = 0; tap < TAPS; tap++) out[(co * FEATURES + ci) * TAPS + tap] = o.sum[tap];
    if (ci == 0) out[WEIGHTS + co] = o.bias;
}
#else
struct Outer {
    float sum[TAPS][4], bias;
};
DEVICE void start(Outer& o) {
    UNROLL
    for (int tap = 0; tap < TAPS; tap++)
        UNROLL
        for (int i = 0; i < 4; i++) o.sum[tap][i] = 0;
    o.bias = 0;
}
// Adds a tile: the pairs of pixels whose input is in it. So the gradient has a border and is loaded for
// every tap, and the input is loaded once; of the two operands the gradient is the smaller one. The
// bias sums the tile's own pixels.
DEVICE void accumulate(Outer& o, const unsigned char* x_tile, const unsigned char* d_tile) {
    typedef TileLayout<0> Input;
    typedef TileLayout<1> Gradient;
    int lane = threadIdx.x % 32, half = threadIdx.x / 32 % 2, top = threadIdx.x / 64 * 4;
    // the matrix rows that a lane provides. Input: even columns, channels 0-7 and 8-15, then odd
    // columns. Gradient: the four matrices that begin at columns 0 .. 3
    const Wide* x_first = (const Wide*)x_tile + Input::at(top, lane / 16, lane % 8, lane / 8 % 2);
    const Wide* d_first = (const Wide*)d_tile + Gradient::at(top, lane / 8 % 2, lane / 16 + lane % 8, half);
    u32 x[4][4];
    UNROLL
    for (int row = 0; row < 6; row++) {
        if (row < 4) load_matrices_transposed(x[row], x_first + row * Input::ROW);
        u32 d[4];
        load_matrices_transposed(d, d_first + row * Gradient::ROW);
        if (row >= 1 && row <= 4) o.bias += low_half(d[1]) + high_half(d[1]) + low_half(d[2]) + high_half(d[2]);
        UNROLL
        for (int kx = 0; kx < 3; kx++) {
            u32 b[2] = {d[2 - kx], d[3 - kx]};
            UNROLL
            for (int y = 0; y < 4; y++)
                if (row >= y && row <= y + 2) mma_16x8x16(o.sum[(y + 2 - row) * 3 + kx], x[y], b);
        }
    }
}
// The warps' sums are added in shared memory: [tap][four rows][input channel][output channel], then
// biases [four rows][output channel].
DEVICE void finish(const Outer& o, float* out) {
    int ci = threadIdx.x % FEATURES, co = threadIdx.x / FEATURES;
    int lane = threadIdx.x % 32, half = threadIdx.x / 32 % 2, rows = threadIdx.x / 64, group = lane / 4, t = lane % 4;
    float *all = (float*)shared_memory(), *biases = all + TAPS * 4 * FEATURES * FEATURES;
    float bias = o.bias;
    bias += shuffle_xor(bias, 1);
    bias += shuffle_xor(bias, 2);
    barrier();
    UNROLL
    for (int tap = 0; tap < TAPS; tap++) {
        UNROLL
        for (int i = 0; i < 4; i++)
            all[((tap * 4 + rows) * FEATURES + group + i / 2 * 8) * FEATURES + half * 8 + 2 * t + i % 2] = o.sum[tap][i];
    }
    biases[rows * FEATURES + half * 8 + group] = bias;
    barrier();
    UNROLL
    for (int tap = 0; tap < TAPS; tap++) {
        float sum = 0;
        UNROLL
        for (int other = 0; other < 4; other++) sum += all[((tap * 4 + other) * FEATURES + ci) * FEATURES + co];
        out[(co * FEATURES + ci) * TAPS + tap] = sum;
    }
    float sum = 0;
    UNROLL
    for (int other = 0; other < 4; other++) sum += biases[other * FEATURES + co];
    if (ci == 0) out[WEIGHTS + co] = sum;
}
#endif

#if PRECISION == 0
// Weight and bias gradient in f32, block by block. Grid: blocks, each looping over tiles with its
// sums in registers. Shared memory: input tile with border, d_output tile. Least traffic a pixel:
// 128 bytes read.
KERNEL(conv_weights) {
    const int h = arg.h, w = arg.w;
    unsigned char* x_tile = shared_memory();
    unsigned char* d_tile = x_tile + TileLayout<1>::BYTES;
    int tiles = tile_count(arg.images, h, w);
    Outer o;
    start(o);
    const Tiles tile_of(h, w);
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
        Tile at = tile_of.at(t, h, w);
        TileInput<1> x_in;
        TileInput<0> d_in;
        barrier();
        x_in.load(arg.input, at, h, w);
        x_in.store(x_tile);
        d_in.load(arg.d_output, at, h, w);
        d_in.store(d_tile);
        barrier();
        accumulate(o, x_tile, d_tile);
    }
    finish(o, arg.partials + (long long)blockIdx.x * (WEIGHTS + FEATURES));
}
#else
// All gradients in one pass over the tiles (half precision; f32 tiles are too large for it). Grid:
// blocks, no more than tiles. Shared memory: input tile, gradient tile with border, weights. Least
// traffic a pixel: 64 bytes read and 32 written.
KERNEL_CROWDED(conv_gradients, 2) {
    const int h = arg.h, w = arg.w;
    unsigned char* x_tile = shared_memory();
    unsigned char* d_tile = x_tile + TileLayout<0>::BYTES;
    unsigned char* weights = d_tile + TileLayout<1>::BYTES;
    int tiles = tile_count(arg.images, h, w), t = blockIdx.x;
    const Tiles tile_of(h, w);
    Tile at = tile_of.at(t, h, w);
    TileInput<0> x_in;
    TileInput<1> d_in;
    // the first tile and the weights are on their way at the same time
    x_in.load(arg.input, at, h, w);
    d_in.load(arg.d_output, at, h, w);
    load_weights(weights, arg.weight, true);
    barrier();
    Operands operands;
    load_operands(operands, weights);
    Outer o;
    start(o);
    while (true) {
        x_in.store(x_tile);
        d_in.store(d_tile);
        barrier();
        Product p;
        start(p, nullptr);
        multiply(p, d_tile, operands);
        store(p, arg.d_input, at, h, w);
        accumulate(o, x_tile, d_tile);
        t += gridDim.x;
        if (t >= tiles) break;
        at = tile_of.at(t, h, w);
        x_in.load(arg.input, at, h, w);
        d_in.load(arg.d_output, at, h, w);
        barrier();
    }
    finish(o, arg.partials + (long long)blockIdx.x * (WEIGHTS + FEATURES));
}
#endif
