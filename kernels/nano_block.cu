// The Nano block x + gamma * conv2(gelu(dw(conv1(x)))) of 16 features and 32 hidden channels, each pass one kernel: whatever is
// between input and output stays in the block. conv1, conv2 are 1x1, dw is depthwise 3x3 with zero padding.
//
// nano_block: w1 [32][16], b1 [32], dw [32][3][3], db [32], w2 [16][32], b2 [16], gamma [16] f32; input, output [images][h][w][16]
// act. A block of 256 threads walks over tiles of 16 x 16 pixels with the grid as stride. Floor: one pixel read, one written.
//
// nano_block_back: also d_output, d_input [images][h][w][16] act; partials [blocks][1392] f32, in the order of the parameters
// without gamma: d_output x gelu(z) stands in conv2's place, the sum of d_output in its bias's. At most 256 blocks. Floor: two
// pixels read, one written.
#if PRECISION == 0
#include "nano_plain.cuh"
#else
#include "nano_mma.cuh"
#endif

// Totals of a backward pass to gradients. conv2's hold sums without gamma: times gamma they are the gradients of conv2, and against
// conv2 they give that of gamma. Grid: a thread for every sum, and one for every gamma.
KERNEL(finish_nano_block, 256, const double* totals, const float* w2, const float* b2, const float* gamma, float* d_w1, float* d_b1,
       float* d_dw, float* d_db, float* d_w2, float* d_b2, float* d_gamma, const Scalars* scalars) {
    const int hidden = 2 * FEATURES, products = hidden * (FEATURES + 1 + 9 + 1), biases = products + FEATURES * hidden;
    int i = blockIdx.x * 256 + threadIdx.x, k = i;
    float* to;
    float value;
    if (i < products) {
        value = (float)totals[i];
        if (k < hidden * FEATURES) {
            to = d_w1 + k;
        } else if ((k -= hidden * FEATURES) < hidden) {
            to = d_b1 + k;
        } else if ((k -= hidden) < 9 * hidden) {
            to = d_dw + k;
        } else {
            to = d_db + (k - 9 * hidden);
        }
    } else if (i < biases) {
        k = i - products;
        to = d_w2 + k;
        value = gamma[k / hidden] * (float)totals[i];
    } else if (i < biases + FEATURES) {
        k = i - biases;
        to = d_b2 + k;
        value = gamma[k] * (float)totals[i];
    } else if (i < biases + 2 * FEATURES) {
        k = i - biases - FEATURES;
        to = d_gamma + k;
        double sum = (double)b2[k] * totals[biases + k];
        for (int e = 0; e < hidden; e++) sum += (double)w2[k * hidden + e] * totals[products + k * hidden + e];
        value = (float)sum;
    } else {
        return;
    }
    *to = scalars->accumulate ? *to + value : value;
}
