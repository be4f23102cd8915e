// The second stage of every sum over pixels: partial sums of blocks, added in a fixed order in f64.
#include "common.cuh"

// totals[i] = (add ? totals[i] : 0) + sum over blocks of partials[block][i]. 64 sums a block of threads; four threads share one, each
// taking a quarter of the blocks, so the order is the same for any device. Shared memory: 256 f64. Floor: 4 bytes a partial.
KERNEL(reduce_sums, 256, const float* partials, double* totals, int count, int blocks, int add) {
    double* quarters = (double*)shared_memory();
    int lane = threadIdx.x % 64, quarter = threadIdx.x / 64, i = blockIdx.x * 64 + lane;
    double sum = 0;
    if (i < count) {
        int each = (blocks + 3) / 4, end = (quarter + 1) * each < blocks ? (quarter + 1) * each : blocks;
        for (int b = quarter * each; b < end; b++) sum += (double)partials[(long long)b * count + i];
    }
    quarters[threadIdx.x] = sum;
    barrier();
    if (quarter == 0 && i < count) {
        double total = ((quarters[lane] + quarters[lane + 64]) + quarters[lane + 128]) + quarters[lane + 192];
        totals[i] = (add ? totals[i] : 0.0) + total;
    }
}

// gradients[i] = total, added to those of the micro-batches before.
KERNEL(store_gradient, 256, const double* totals, float* gradients, int count, const Scalars* scalars) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    float total = (float)totals[i];
    gradients[i] = scalars->accumulate ? gradients[i] + total : total;
}
