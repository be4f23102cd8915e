// The Nano block x + gamma * conv2(gelu(dw(conv1(x)))) of 16 features and 32 hidden channels: one
// kernel a pass, with all intermediate values in shared memory and registers. conv1, conv2 are 1x1,
// dw is depthwise 3x3 with zero padding. The kernels are in nano_mma.cuh (half precision) and
// nano_plain.cuh (f32).
//
// nano_block: grid: persistent. Least traffic: one pixel read, one written.
//
// nano_block_back: partials are in the order of the parameters without gamma: d_output x gelu(z) in
// conv2's place, the sum of d_output in its bias's place. A block takes `tiles` tiles one after
// another in their order. At most 256 blocks. Least traffic: two pixels read, one written.
#include "sums.cuh"
#if PRECISION == 0
#include "nano_plain.cuh"
#else
#include "nano_mma.cuh"
#endif

// The part of reduce_sums for a Nano block: from the total of a sum to gradients. The gradients are
// in the order of the parameters, which is that of the sums, followed by gamma's. conv2's sums are
// without gamma: times gamma they are the gradients of conv2, and their products with conv2's
// parameters, added up, are the gradient of gamma. The sums of one row of conv2 are one chunk,
// whose threads add the bias's part. `own`: the thread has the total of sum chunk x SUM_LANES +
// lane.
DEVICE void finish_nano_block(const SumJob& job, int chunk, bool own, TwoFloats total, TwoFloats* shared, const DeviceScalars* scalars) {
    const int products = NANO_W2, biases = NANO_B2, gammas = NANO_COUNT;
    static_assert(HIDDEN == SUM_LANES && products % SUM_LANES == 0, "a row of conv2 is a chunk");
    const float* gamma = job.parameters + gammas;
    float* gradients = job.gradients;
    int i = chunk * SUM_LANES + (int)threadIdx.x % SUM_LANES, row = chunk - products / SUM_LANES;
    if (own) {
        float value = to_float(total);
        if (i >= products) value *= gamma[i < biases ? row : i - biases];
        store_gradient(gradients + i, value, scalars);
    }
    if (row < 0 || row >= FEATURES) return;
    TwoFloats part = {0, 0};
    if (own) add_product(part, job.parameters[i], total);
    const float* partials = job.partials + biases + row;
    for (int b = threadIdx.x; b < job.blocks; b += 256) add_product(part, job.parameters[biases + row], {partials[(long long)b * gammas], 0});
    // every thread has read the sums of its group
    barrier();
    TwoFloats sum = block_sum<256>(shared, part);
    if (threadIdx.x == 0) store_gradient(gradients + gammas + row, to_float(sum), scalars);
}
