// The network's first 3x3 convolution, f32 RGB -> 16 features, and its gradients, in tiles of 16 x
// 16 pixels as in conv.cu. Half precision goes through tensor cores (conv_rgb_mma.cuh).
//
// conv_rgb: with `units` the input is multiples of 1/255 and is multiplied as integers, which half
// precision holds exactly. With `patches` of a staged batch and their codes the input is not read
// but written, as unpack writes it. Grid: persistent. Least traffic a pixel: 12 bytes read (or
// written, and 3 read) and 32 written (half precision).
//
// conv_rgb_weights: grid: blocks. Least traffic a pixel: 12 + 32 bytes read (half precision).
#include "conv.cu"

#define RGB_TAPS (3 * TAPS)

// Where the input comes from: f32 values, or a staged batch, which is unpacked while it is read.
struct Source {
    float* floats;
    const u8* patches;
    const u8* codes;
};
DEVICE Source floats_alone(const float* input) { return {(float*)input, nullptr, nullptr}; }
// One image of the input, read pixel by pixel: in units of 1 (f32) or 1/255 (bytes).
struct Reader {
    float* image;
    const u8* patches;  // of all images: the compiler knows that a pointer from the arguments is global, not one made from it
    long long patch;    // where the image's patch starts
    Steps steps;
    int w;
};
DEVICE Reader reader(const Source& s, int image, int h, int w) {
    long long start = (long long)image * h * w * 3;
    Reader r = {s.floats + start, s.patches, start, {0, 0, 0}, w};
    if (s.patches) r.steps = augmentation(s.codes[image], h, w);
    return r;
}
DEVICE void read_rgb(const Reader& r, int y, int x, float (&v)[3]) {
    // offsets within one image fit an int
    long long bytes = r.patch + (r.steps.start + y * r.steps.down + x * r.steps.across) * 3;
    const float* floats = r.image + (y * r.w + x) * 3;
    UNROLL
    for (int c = 0; c < 3; c++) v[c] = r.patches ? (float)r.patches[bytes + c] : floats[c];
}
// Stores a pixel that was read as bytes where the other kernels read the input.
DEVICE void leave_rgb(const Reader& r, int y, int x, const float (&v)[3]) {
    float* to = r.image + (y * r.w + x) * 3;
    UNROLL
    for (int c = 0; c < 3; c++) to[c] = over_255(v[c]);
}

#if PRECISION == 0
// Loads the tile with a border of 1; zeros outside the image.
DEVICE void load_rgb(float* to, const Source& source, Tile at, int h, int w) {
    Reader r = reader(source, at.image, h, w);
    for (int i = threadIdx.x; i < WIDE_TILE * WIDE_TILE; i += 256) {
        int line = i / WIDE_TILE, column = i % WIDE_TILE, y = at.y - 1 + line, x = at.x - 1 + column;
        float v[3] = {0, 0, 0};
        if (inside(y, x, h, w)) {
            read_rgb(r, y, x, v);
            bool own = line >= 1 && line <= TILE && column >= 1 && column <= TILE;
            if (r.patches && own) leave_rgb(r, y, x, v);
        }
        for (int c = 0; c < 3; c++) to[i * 3 + c] = r.patches ? over_255(v[c]) : v[c];
    }
}

// A thread computes 8 channels of two pixels, so that two threads write one pixel's channels next
// to each other. Shared memory: 972 f32 of tile, weights [27: tap, input channel][16].
KERNEL(conv_rgb) {
    const int h = arg.h, w = arg.w;
    float* weights = (float*)shared_memory();
    float* tile = weights + RGB_TAPS * FEATURES;
    int tiles = tile_count(arg.images, h, w), part = threadIdx.x % 2 * 8;
    for (int i = threadIdx.x; i < RGB_TAPS * FEATURES; i += 256) {
        int co = i / RGB_TAPS, ci = i % RGB_TAPS / 9, tap = i % 9;
        weights[(tap * 3 + ci) * FEATURES + co] = arg.weight[i];
    }
    float start[8];
    UNROLL
    for (int c = 0; c < 8; c++) start[c] = arg.bias[part + c];
    const Source source = {arg.input, arg.patches, arg.codes};
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
        Tile at = tile_at(t, h, w);
        barrier();
        load_rgb(tile, source, at, h, w);
        barrier();
        float sum[2][8];
        UNROLL
        for (int c = 0; c < 16; c++) sum[c / 8][c % 8] = start[c % 8];
        int y = threadIdx.x / 2 / TILE, x = threadIdx.x / 2 % TILE;
        UNROLL
        for (int ky = 0; ky < 3; ky++) {
            UNROLL
            for (int i = 0; i < 9; i++) {
                const float* row = weights + (ky * 9 + i) * FEATURES + part;
                float upper = tile[((y + ky) * WIDE_TILE + x) * 3 + i], lower = tile[((y + 8 + ky) * WIDE_TILE + x) * 3 + i];
                UNROLL
                for (int c = 0; c < 8; c++) {
                    sum[0][c] += upper * row[c];
                    sum[1][c] += lower * row[c];
                }
            }
        }
        UNROLL
        for (int half = 0; half < 2; half++) {
            int row = at.y + y + half * 8, column = at.x + x;
            if (row >= h || column >= w) continue;
            Wide* to = (Wide*)(arg.output + ((long long)(at.image * h + row) * w + column) * FEATURES + part);
            const float* s = sum[half];
            Wide low = {{float_to_bits(s[0]), float_to_bits(s[1]), float_to_bits(s[2]), float_to_bits(s[3])}};
            Wide high = {{float_to_bits(s[4]), float_to_bits(s[5]), float_to_bits(s[6]), float_to_bits(s[7])}};
            to[0] = low;
            to[1] = high;
        }
    }
}

// Thread (part, channel) sums row `part` of every tile of its block. Each value of d_output is used
// by one thread, so it does not go through shared memory. Shared memory: 16 x 28 x 16 f32, of which
// the first 972 are the tile until the rows' sums are added.
KERNEL(conv_rgb_weights) {
    const int h = arg.h, w = arg.w;
    float* tile = (float*)shared_memory();
    int tiles = tile_count(arg.images, h, w), channel = threadIdx.x % FEATURES, part = threadIdx.x / FEATURES;
    float total[RGB_TAPS + 1];
    UNROLL
    for (int i = 0; i <= RGB_TAPS; i++) total[i] = 0;
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
        Tile at = tile_at(t, h, w);
        barrier();
        load_rgb(tile, floats_alone(arg.input), at, h, w);
        float d[TILE];
        int y = at.y + part;
        UNROLL
        for (int x = 0; x < TILE; x++) {
            bool inside = y < h && at.x + x < w;
            d[x] = inside ? to_float(arg.d_output[((long long)(at.image * h + y) * w + at.x + x) * FEATURES + channel]) : 0.0f;
        }
        barrier();
        UNROLL
        for (int ky = 0; ky < 3; ky++) {
            const float* row = tile + (part + ky) * WIDE_TILE * 3;
            UNROLL
            for (int i = 0; i < 9; i++) {
                float sum = 0;
                UNROLL
                for (int x = 0; x < TILE; x++) sum += d[x] * row[x * 3 + i];
                total[ky * 9 + i] += sum;
            }
        }
        float sum = 0;
        UNROLL
        for (int x = 0; x < TILE; x++) sum += d[x];
        total[RGB_TAPS] += sum;
    }
    barrier();
    UNROLL
    for (int i = 0; i <= RGB_TAPS; i++) tile[(part * (RGB_TAPS + 1) + i) * FEATURES + channel] = total[i];
    barrier();
    for (int i = threadIdx.x; i < (RGB_TAPS + 1) * FEATURES; i += 256) {
        float sum = 0;
        for (int p = 0; p < TILE; p++) sum += tile[p * (RGB_TAPS + 1) * FEATURES + i];
        int co = i % FEATURES, k = i / FEATURES;
        int to = k < RGB_TAPS ? co * RGB_TAPS + k % 3 * 9 + k / 3 : FEATURES * RGB_TAPS + co;
        arg.partials[(long long)blockIdx.x * (RGB_TAPS + 1) * FEATURES + to] = sum;
    }
}

#else
#include "conv_rgb_mma.cuh"
#endif

// Data gradient, which only tests need. One thread a pixel. Grid: ceil(pixels / 256).
KERNEL(conv_rgb_data) {
    const int h = arg.h, w = arg.w;
    int pixel = blockIdx.x * 256 + threadIdx.x;
    if (pixel >= arg.images * h * w) return;
    int image = pixel / (h * w), y = pixel / w % h, x = pixel % w;
    float sum[3] = {0, 0, 0};
    for (int tap = 0; tap < 9; tap++) {
        int row = y + 1 - tap / 3, column = x + 1 - tap % 3;
        if (row < 0 || row >= h || column < 0 || column >= w) continue;
        const act* d = arg.d_output + ((long long)(image * h + row) * w + column) * FEATURES;
        for (int co = 0; co < FEATURES; co++)
            for (int ci = 0; ci < 3; ci++) sum[ci] += to_float(d[co]) * arg.weight[(co * 3 + ci) * 9 + tap];
    }
    for (int ci = 0; ci < 3; ci++) arg.d_input[(long long)pixel * 3 + ci] = sum[ci];
}
