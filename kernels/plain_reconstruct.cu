// The parts of the reconstruction that are no convolutions, for any number of features: up.0 and
// conv_out are plain convolutions there, with the features at HR in a workspace. Depends on base.cuh.
#include "base.cuh"

// Adds the Magic Kernel base to the detail that is in the output, and subtracts the u8 target while
// the base is exact. One thread an LQ pixel of a tile. Grid: persistent. Least traffic an LQ pixel:
// 12 bytes of input, 24 x scale^2 of output and 3 x scale^2 of target.
KERNEL(plain_base) {
    const int h = arg.h, w = arg.w, scale = arg.scale, high = h * scale, wide = w * scale;
    float* cells = (float*)shared_memory();
    float* taps = cells + BASE_CELLS;
    float* raw = taps + BASE_TAPS;
    float* rows = raw + BASE_RAW;
    int ty = threadIdx.x / TILE, tx = threadIdx.x % TILE;
    base_taps(taps, scale);
    for (int index = blockIdx.x; index < tile_count(arg.images, h, w); index += gridDim.x) {
        Tile t = tile_at(index, h, w);
        BaseInput<256> base_in;
        base_in.load(arg.input + (long long)t.image * h * w * 3, h, w, t.y, t.x);
        base_in.store(raw, arg.target != nullptr);
        base_cells<256>(raw, rows, cells, h, w, t.y, t.x, arg.alpha);
        barrier();
        int y = t.y + ty, x = t.x + tx;
        u32 code = arg.target ? arg.codes[t.image] : 0u;
        ROLLED
        for (int dy = 0; dy < scale && y < h && x < w; dy++) {
            Blurred blurred[1];
            const Quad row_taps[1] = {((const Quad*)taps)[dy]};
            base_rows(blurred, cells, ty, tx, row_taps);
            ROLLED
            for (int dx = 0; dx < scale; dx++) {
                long long image = (long long)t.image * high * wide;
                int hr_y = y * scale + dy, hr_x = x * scale + dx;
                float target[3] = {0, 0, 0}, value[3];
                if (arg.target) {
                    const u8* pixel = arg.target + (image + augmented(code, hr_y, hr_x, high, wide)) * 3;
                    UNROLL
                    for (int c = 0; c < 3; c++) target[c] = (float)pixel[c];
                }
                base_pixel(blurred[0], ((const Quad*)taps)[dx], arg.target != nullptr, target, value);
                float* to = arg.output + (image + (long long)hr_y * wide + hr_x) * 3;
                UNROLL
                for (int c = 0; c < 3; c++) to[c] += value[c];
            }
        }
    }
}

// The gradients of conv_out and of the gain from the sums of d_output x features at HR: the gain
// multiplies both, and its own gradient is the sum of parameters x sums. One block.
KERNEL(plain_gain) {
    double* shared = (double*)shared_memory();
    double gain = (double)*arg.gain, part = 0;
    for (int i = threadIdx.x; i < arg.count; i += 256) {
        store_gradient(arg.gradients + i, (float)(gain * arg.totals[i]), arg.scalars);
        part += (double)arg.parameters[i] * arg.totals[i];
    }
    double sum = block_sum<256>(shared, part);
    if (threadIdx.x == 0) store_gradient(arg.d_gain, (float)sum, arg.scalars);
}
