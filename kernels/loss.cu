// Pixel losses: L1, Charbonnier and MSE as a weighted sum, with the gradient left in place of the prediction or beside it.
// The head has subtracted the u8 target already where there is one.
#include "common.cuh"

// Charbonnier's epsilon, under the root.
#define CHARBONNIER_EPSILON 1e-12f

// prediction, d_prediction [images][h][w][3] f32, which may be the same memory. target: laid out as the
// prediction, or null, and the prediction holds prediction - target. partials: an f64 a block. `pixels`: of all images; `whole`: values of
// the whole micro-batch, which the mean is over. Grid: at most 256 blocks, each walking pixels with a stride of the grid. Shared memory:
// 256 f64. Floor: 12 bytes read and written a pixel.
KERNEL(pixel_loss, 256, const float* prediction, float* d_prediction, const float* target, double* partials, int pixels, int whole,
       float l1, float charbonnier, float mse, const Scalars* scalars) {
    float scale = (float)((double)scalars->micro_scale / (double)whole) * scalars->loss_scale;
    double sum = 0;
    for (int pixel = blockIdx.x * 256 + threadIdx.x; pixel < pixels; pixel += gridDim.x * 256) {
        float losses = 0;
        UNROLL
        for (int c = 0; c < 3; c++) {
            long long i = (long long)pixel * 3 + c;
            float d = target ? prediction[i] - target[i] : prediction[i];
            float sign = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : 0.0f;
            float loss = l1 * fabsf(d) + mse * (d * d), slope = l1 * sign + mse * (2.0f * d);
            // a root and a division are most of the work, and seldom asked for
            if (charbonnier != 0.0f) {
                float root = sqrtf(d * d + CHARBONNIER_EPSILON);
                loss += charbonnier * root;
                slope += charbonnier * (d / root);
            }
            losses += loss;
            // a NaN has no sign; it must reach the gradient, where the optimizer sees it
            d_prediction[i] = (d == d ? slope : d) * scale;
        }
        sum += (double)losses;
    }
    double total = block_sum<256>((double*)shared_memory(), sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// Adds the blocks' losses to those of the slices before (flags & 1); after the last slice (flags & 2) the mean goes to metrics[0], added to
// that of the micro-batches before. One warp, one lane at work: at most 256 numbers.
KERNEL(finish_pixel_loss, 32, const double* partials, double* total, double* metrics, int blocks, int flags, int whole,
       const Scalars* scalars) {
    if (threadIdx.x != 0) return;
    double sum = flags & 1 ? *total : 0.0;
    for (int b = 0; b < blocks; b++) sum += partials[b];
    *total = sum;
    if (!(flags & 2)) return;
    double loss = sum / (double)whole * (double)scalars->micro_scale;
    metrics[0] = scalars->accumulate ? metrics[0] + loss : loss;
}
