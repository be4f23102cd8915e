// The optimizer step: global gradient norm, clip, Adam (Kingma and Ba, 2015) or AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, in
// PyTorch's order of operations) and EMA. A loss or norm that is not finite leaves everything as it was.
#include "common.cuh"

// Puts the numbers of a step where the other kernels read them: launch arguments travel by themselves, and a graph keeps its own.
KERNEL(set_scalars, 32, Scalars* out, float step_size, float root_correction, float keep, float ema_decay, float ema_rest, float clip,
       float loss_scale, float micro_scale, int accumulate) {
    if (threadIdx.x != 0) return;
    out->step_size = step_size;
    out->root_correction = root_correction;
    out->keep = keep;
    out->ema_decay = ema_decay;
    out->ema_rest = ema_rest;
    out->clip = clip;
    out->loss_scale = loss_scale;
    out->micro_scale = micro_scale;
    out->accumulate = (u32)accumulate;
}

// partials[block] = sum of squares of `each` gradients, in f64, with the loss scale divided out. Shared memory: 256 f64. Floor: 4 bytes a
// parameter.
KERNEL(gradient_squares, 256, const float* gradients, double* partials, int count, int each, const Scalars* scalars) {
    int start = blockIdx.x * each, end = start + each < count ? start + each : count;
    float unscale = 1.0f / scalars->loss_scale;
    double sum = 0;
    for (int i = start + threadIdx.x; i < end; i += 256) {
        double g = (double)(gradients[i] * unscale);
        sum += g * g;
    }
    double total = block_sum<256>((double*)shared_memory(), sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// `penalty`: Adam's weight decay, added to the gradient; AdamW's is in scalars->keep. One thread a parameter; every thread adds the blocks'
// squares itself, in the same order. metrics: loss, norm, skipped. Floor: 20 bytes read and 16 written a parameter.
KERNEL(adam, 256, float* parameters, const float* gradients, float* moment1, float* moment2, float* ema, const double* squares,
       double* metrics, int count, int blocks, float beta1, float rest1, float beta2, float rest2, float epsilon,
       float penalty, const Scalars* scalars) {
    int i = blockIdx.x * 256 + threadIdx.x;
    // on their way while the norm is added up
    const Scalars s = *scalars;
    float p = 0, g = 0, m = 0, v = 0, e = 0;
    if (i < count) {
        p = parameters[i];
        g = gradients[i];
        m = moment1[i];
        v = moment2[i];
        e = ema[i];
    }
    double total = 0;
    for (int b = 0; b < blocks; b++) total += squares[b];
    double norm = sqrt(total), loss = metrics[0];
    // comparisons with NaN are false, so this holds for finite numbers alone
    bool good = norm <= 1.7e308 && loss <= 1.7e308 && loss >= -1.7e308;
    if (i == 0) {
        metrics[1] = norm;
        metrics[2] = good ? 0.0 : 1.0;
    }
    if (!good || i >= count) return;
    double share = (double)s.clip / (norm + 1e-6);
    float factor = share < 1.0 ? (float)share : 1.0f;
    g = g * (1.0f / s.loss_scale) * factor + penalty * p;
    m = beta1 * m + rest1 * g;
    v = beta2 * v + rest2 * g * g;
    p = p * s.keep - s.step_size * m / (sqrtf(v) / s.root_correction + epsilon);
    moment1[i] = m;
    moment2[i] = v;
    parameters[i] = p;
    ema[i] = s.ema_decay * e + s.ema_rest * p;
}
