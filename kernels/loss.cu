// Pixel losses: L1, Charbonnier and MSE as a weighted sum, with the gradient left in place of the prediction or beside it.
// The network's end has subtracted the u8 target already where there is one, and where nothing else reads the
// prediction it has done this, too.
#include "pixel_terms.cuh"
#include "sums.cuh"

// prediction, d_prediction [images][h][w][3] f32, which may be the same memory. target: laid out as the
// prediction, or null, and the prediction holds prediction - target. partials: an f64 a block. `pixels`: of all images; `whole`: values of
// the whole micro-batch, which the mean is over. Grid: blocks, each walking pixels with a stride of the grid. Shared memory:
// 256 f64. Floor: 12 bytes read and written a pixel.
KERNEL(pixel_loss) {
    PixelTerms terms = pixel_terms(arg.l1, arg.charbonnier, arg.mse, arg.whole, arg.scalars);
    double sum = 0;
    for (int pixel = blockIdx.x * 256 + threadIdx.x; pixel < arg.pixels; pixel += gridDim.x * 256) {
        float losses = 0;
        UNROLL
        for (int c = 0; c < 3; c++) {
            long long i = (long long)pixel * 3 + c;
            float d = arg.target ? arg.prediction[i] - arg.target[i] : arg.prediction[i];
            losses += pixel_term(terms, d);
            arg.d_prediction[i] = d;
        }
        sum += (double)losses;
    }
    double total = block_sum<256>((double*)shared_memory(), sum);
    if (threadIdx.x == 0) arg.partials[blockIdx.x] = total;
}

// Adds the blocks' losses, at the end of reduce_sums, to those of the slices before: all of one block of threads. After the last slice the mean,
// over job.count values, goes to metrics[0], added to that of the micro-batches before.
DEVICE void finish_pixel_loss(const SumJob& job, double* shared, const DeviceScalars* scalars) {
    double part = 0;
    for (int b = threadIdx.x; b < job.blocks; b += 256) part += job.loss_partials[b];
    double sum = block_sum<256>(shared, part);
    if (threadIdx.x != 0) return;
    sum = (job.before ? *job.before : 0.0) + sum;
    double* to = job.totals;
    if (job.kind == LOSS_TO_METRICS) {
        double loss = sum / (double)job.count * (double)scalars->micro_scale;
        sum = scalars->accumulate ? *to + loss : loss;
    }
    *to = sum;
}
