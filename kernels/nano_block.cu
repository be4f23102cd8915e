// The Nano block x + gamma * conv2(gelu(dw(conv1(x)))) of 16 features and 32 hidden channels, each pass one kernel: whatever is
// between input and output stays in the block. conv1, conv2 are 1x1, dw is depthwise 3x3 with zero padding.
//
// nano_block: w1 [32][16], b1 [32], dw [32][3][3], db [32], w2 [16][32], b2 [16], gamma [16] f32; input, output [images][h][w][16]
// act. A block of 256 threads walks over tiles of 16 x 16 pixels with the grid as stride. Floor: one pixel read, one written.
//
// nano_block_back: also d_output, d_input [images][h][w][16] act; partials [blocks][1392] f32, in the order of the parameters
// without gamma: d_output x gelu(z) stands in conv2's place, the sum of d_output in its bias's; tiles: how many a block takes, one after
// another as they are numbered. At most 256 blocks. Floor: two pixels read, one written.
#include "sums.cuh"
#if PRECISION == 0
#include "nano_plain.cuh"
#else
#include "nano_mma.cuh"
#endif

// From the total of a block's sum to gradients, at the end of reduce_sums. The gradients lie in the order of the parameters, which is that of the
// sums, with gamma's behind them. conv2's sums are without gamma: times gamma they are the gradients of conv2, and against conv2
// they give that of gamma. The sums of one row of conv2 are one chunk, whose threads add what the bias has to it. `own`: the
// thread has the total of sum chunk x SUM_LANES + lane.
DEVICE void finish_nano_block(const SumJob& job, int chunk, bool own, double total, double* shared, const DeviceScalars* scalars) {
    const int products = NANO_W2, biases = NANO_B2, gammas = NANO_COUNT;
    static_assert(HIDDEN == SUM_LANES && products % SUM_LANES == 0, "a row of conv2 is a chunk");
    const float* gamma = job.parameters + gammas;
    float* gradients = job.gradients;
    int i = chunk * SUM_LANES + (int)threadIdx.x % SUM_LANES, row = chunk - products / SUM_LANES;
    if (own) {
        float value = (float)total;
        if (i >= products) value *= gamma[i < biases ? row : i - biases];
        store_gradient(gradients + i, value, scalars);
    }
    if (row < 0 || row >= FEATURES) return;
    double part = own ? (double)job.parameters[i] * total : 0.0;
    const float* partials = job.partials + biases + row;
    for (int b = threadIdx.x; b < job.blocks; b += 256) part += (double)job.parameters[biases + row] * (double)partials[(long long)b * gammas];
    // the sums of the groups have been read
    barrier();
    double sum = block_sum<256>(shared, part);
    if (threadIdx.x == 0) store_gradient(gradients + gammas + row, (float)sum, scalars);
}
