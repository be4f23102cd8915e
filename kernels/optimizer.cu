// The optimizer step: the sum over ranks, global gradient norm, clipping, Adam (Kingma and Ba, 2015) or AdamW
// (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, in PyTorch's order of
// operations) and EMA. After a loss or norm that is not finite nothing is changed.
#include "common.cuh"

// Stores the numbers of a step where the other kernels read them. A captured graph keeps the
// arguments of its launches, so they cannot be arguments of the other kernels.
KERNEL(set_scalars) {
    if (threadIdx.x == 0) *arg.out = arg.values;
}

// The sum of squares of `each` gradients, in f64, without the loss scale. Shared memory: 256 f64.
// Least traffic: 4 bytes a parameter.
KERNEL(gradient_squares) {
    int start = blockIdx.x * arg.each, end = start + arg.each < arg.count ? start + arg.each : arg.count;
    float unscale = 1.0f / arg.scalars->loss_scale;
    double sum = 0;
    for (int i = start + threadIdx.x; i < end; i += 256) {
        double g = (double)(arg.gradients[i] * unscale);
        sum += g * g;
    }
    double total = block_sum<256>((double*)shared_memory(), sum);
    if (threadIdx.x == 0) arg.partials[blockIdx.x] = total;
}

// Adds the gradients of all ranks for a round, in the order of the ranks, to the sums of the rounds
// before: the order, and so the bits, of one process that adds whole gradients one after another. One
// thread a parameter. Least traffic: 4 bytes read for each rank and 4 written a parameter.
KERNEL(add_gradients) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= arg.count) return;
    float sum = arg.first ? 0.0f : arg.sums[i];
    const float* received = arg.received + i;
    for (int rank = 0; rank < arg.ranks; rank++) {
        float value = rank == arg.rank ? arg.own[i] : *received;
        if (rank != arg.rank) received += arg.stride;
        // -0 + 0 would be 0, so the first gradient is taken as it is
        sum = arg.first && rank == 0 ? value : sum + value;
    }
    arg.out[i] = sum;
}

// One thread a parameter; every thread adds the blocks' squares itself, in the same order. Least
// traffic: 20 bytes read and 16 written a parameter.
KERNEL(adam) {
    int i = blockIdx.x * 256 + threadIdx.x;
    // loaded while the norm is added up
    const DeviceScalars s = *arg.scalars;
    float p = 0, g = 0, m = 0, v = 0, e = 0;
    if (i < arg.count) {
        p = arg.parameters[i];
        g = arg.gradients[i];
        m = arg.moment1[i];
        v = arg.moment2[i];
        e = arg.ema[i];
    }
    double total = 0;
    for (int b = 0; b < arg.blocks; b++) total += arg.squares[b];
    double norm = sqrt(total), loss = arg.metrics[0];
    // comparisons with NaN are false, so this is true for finite numbers alone
    bool good = norm <= 1.7e308 && loss <= 1.7e308 && loss >= -1.7e308;
    if (i == 0) {
        arg.metrics[1] = norm;
        arg.metrics[2] = good ? 0.0 : 1.0;
    }
    if (!good || i >= arg.count) return;
    double share = (double)s.clip / (norm + 1e-6);
    float factor = share < 1.0 ? (float)share : 1.0f;
    g = g * (1.0f / s.loss_scale) * factor + arg.penalty * p;
    m = arg.beta1 * m + arg.rest1 * g;
    v = arg.beta2 * v + arg.rest2 * g * g;
    p = p * s.keep - s.step_size * m / (sqrtf(v) / s.root_correction + arg.epsilon);
    arg.moment1[i] = m;
    arg.moment2[i] = v;
    arg.parameters[i] = p;
    arg.ema[i] = s.ema_decay * e + s.ema_rest * p;
}
