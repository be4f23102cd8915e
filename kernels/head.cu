// The last step at HR, base(x) + gain * conv_out(u), and its gradients. conv_out is 3x3 from 16 features to RGB; the base is made
// of the f32 input tile by tile and never stored.
//
// head: weight [3][16][3][3], bias [3], gain [1] f32; input [images][h][w][3] f32; features [images][H][W][16] act; output
// [images][H][W][3] f32; H = h x scale. With target (u8 HR patches, and their codes) the output is the prediction less its target,
// subtracted while base and target are exact integers. A block of 256 threads walks over tiles of 16 x 16 HR pixels with the grid as
// stride. Floor: a pixel of features read, 12 bytes written, 3 of target read.
//
// head_back: features and d_features [images][h][w][16] act at HR, which may be the same memory (a thread reads only the features that it
// overwrites itself, or its block's own pixels before a barrier); d_output [images][h][w][3] f32; partials [blocks][435] f32, in the order
// of weight and bias, without the gain. At most 256 blocks. Floor: a pixel of features read and written, 12 bytes read.
#include "base.cuh"

#define HALO (TILE + 2)
#define HEAD_WEIGHTS (27 * FEATURES)
#define HEAD_SUMS (HEAD_WEIGHTS + 3)

#if PRECISION == 0
#include "head_plain.cuh"
#else
#include "head_mma.cuh"
#endif

// Totals of a backward pass to gradients: times the gain they are those of conv_out, against conv_out that of the gain. One block;
// shared memory: 512 f64.
KERNEL(finish_head, 512, const double* totals, const float* weight, const float* bias, const float* gain, float* d_weight,
       float* d_bias, float* d_gain, const Scalars* scalars) {
    int i = threadIdx.x, weights = 27 * FEATURES;
    double product = 0;
    if (i < weights + 3) {
        float value = *gain * (float)totals[i];
        float* to = i < weights ? d_weight + i : d_bias + (i - weights);
        product = totals[i] * (double)(i < weights ? weight[i] : bias[i - weights]);
        *to = scalars->accumulate ? *to + value : value;
    }
    float total = (float)block_sum<512>((double*)shared_memory(), product);
    if (i == 0) *d_gain = scalars->accumulate ? *d_gain + total : total;
}

// One value of the upsampling and blur, transposed: what LQ pixel (y, x) is to channel c of d_output, [H][W][3].
DEVICE double base_gather(const float* d_output, int y, int x, int c, int h, int w, int scale) {
    double sum = 0;
    for (int row = y * scale - 2; row < y * scale + scale + 2; row++) {
        for (int column = x * scale - 2; column < x * scale + scale + 2; column++) {
            if (!inside(row, column, h * scale, w * scale)) continue;
            double down = 0, across = 0;
            for (int k = 0; k < 5; k++) {
                if (floor_divide(row + k - 2, scale) == y) down += (double)BLUR_TAPS[k];
                if (floor_divide(column + k - 2, scale) == x) across += (double)BLUR_TAPS[k];
            }
            sum += down * across * (double)d_output[((long long)row * (w * scale) + column) * 3 + c];
        }
    }
    return sum;
}

// The gradient that reaches the input through the base; d_input [images][h][w][3] f32. Plain and slow: training never asks for it, tests
// do. A thread a value.
KERNEL(head_base_back, 256, const float* d_output, float* d_input, int images, int h, int w, int scale, float alpha) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= images * h * w * 3) return;
    int c = i % 3, x = i / 3 % w, y = i / 3 / w % h, image = i / 3 / w / h;
    const float* from = d_output + (long long)image * h * w * scale * scale * 3;
    double sum = base_gather(from, y, x, c, h, w, scale);
    if (alpha > 0.0f) {
        double sharp = 0;
        for (int ky = -3; ky <= 3; ky++) {
            for (int kx = -3; kx <= 3; kx++) {
                float tap = SHARP_TAPS[ky + 3] * SHARP_TAPS[kx + 3];
                if (tap != 0.0f && inside(y + ky, x + kx, h, w)) sharp += (double)tap * base_gather(from, y + ky, x + kx, c, h, w, scale);
            }
        }
        sum += (double)alpha * (sharp - sum);
    }
    d_input[i] = (float)sum;
}
