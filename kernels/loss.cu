// Pixel losses: L1, Charbonnier and MSE as a weighted sum, with their gradient. The reconstruction
// has already subtracted the u8 target where there is one; where nothing else reads the prediction,
// it also computes these losses itself, and this kernel is not launched.
#include "pixel_terms.cuh"
#include "sums.cuh"

// Grid: blocks, each with its pixels a grid's threads apart. Shared memory: 8 bytes a thread. Least
// traffic: 12 bytes read and written a pixel.
KERNEL(pixel_loss) {
    PixelTerms terms = pixel_terms(arg.l1, arg.charbonnier, arg.mse, arg.whole, arg.scalars);
    TwoFloats sum = {0, 0};
    for (int pixel = blockIdx.x * 256 + threadIdx.x; pixel < arg.pixels; pixel += gridDim.x * 256) {
        long long first = (long long)pixel * 3;
        float d[3];
        UNROLL
        for (int c = 0; c < 3; c++) d[c] = arg.target ? arg.prediction[first + c] - arg.target[first + c] : arg.prediction[first + c];
        add(sum, pixel_losses(terms, d));
        UNROLL
        for (int c = 0; c < 3; c++) arg.d_prediction[first + c] = d[c];
    }
    TwoFloats total = block_sum<256>((TwoFloats*)shared_memory(), sum);
    if (threadIdx.x == 0) arg.partials[blockIdx.x] = to_double(total);
}

// The part of reduce_sums for a loss, by one block: adds the blocks' losses and those of the slices
// before. After the last slice their mean, over job.count values, goes to metrics[0], where it is
// added to that of the micro-batches before, or of another loss of this one.
DEVICE void finish_loss(const SumJob& job, double* shared, const DeviceScalars* scalars) {
    double part = 0;
    for (int b = threadIdx.x; b < job.blocks; b += 256) part += job.loss_partials[b];
    double sum = block_sum<256>(shared, part);
    if (threadIdx.x != 0) return;
    sum = (job.loss_before ? *job.loss_before : 0.0) + sum;
    double* to = job.loss_total;
    if (job.kind != LOSS_TO_TOTAL) {
        double loss = sum / (double)job.count * (double)scalars->micro_scale;
        sum = scalars->accumulate || job.kind == LOSS_ADDED ? *to + loss : loss;
    }
    *to = sum;
}
