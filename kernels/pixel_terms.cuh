// L1, Charbonnier and MSE, as a weighted sum, and their slopes: for pixel_loss, the structural losses
// and the reconstruction. Depends on common.cuh.
#pragma once
#include "common.cuh"

struct PixelTerms {
    float l1, charbonnier, mse;
    float scale;  // of the gradient: share of the mean x micro_scale x loss_scale
};
// `whole`: number of values that the mean is over.
DEVICE PixelTerms pixel_terms(float l1, float charbonnier, float mse, int whole, const DeviceScalars* scalars) {
    PixelTerms t = {l1, charbonnier, mse, (float)((double)scalars->micro_scale / (double)whole) * scalars->loss_scale};
    return t;
}
// Returns the loss of a difference and replaces the difference by the gradient.
DEVICE float pixel_term(const PixelTerms& t, float& d) {
    float sign = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : 0.0f;
    float loss = t.l1 * fabsf(d) + t.mse * (d * d), slope = t.l1 * sign + t.mse * (2.0f * d);
    // a root and a division are most of the work, and rarely needed
    if (t.charbonnier != 0.0f) {
        float root = sqrtf(d * d + CHARBONNIER_EPSILON);
        loss += t.charbonnier * root;
        slope += t.charbonnier * (d / root);
    }
    // a NaN has no sign; it must reach the gradient, where the optimizer finds it
    d = (d == d ? slope : d) * t.scale;
    return loss;
}
// The same for several differences, with the same gradients; returns the sum of their losses. What is
// rarely needed is behind one branch.
template <int COUNT>
DEVICE float pixel_losses(const PixelTerms& t, float (&d)[COUNT]) {
    float losses = 0, slopes[COUNT];
    UNROLL
    for (int i = 0; i < COUNT; i++) {
        losses += t.l1 * fabsf(d[i]);
        // a NaN, which has no sign, stays
        slopes[i] = d[i] > 0.0f ? t.l1 : d[i] < 0.0f ? -t.l1 : 0.0f * d[i];
    }
    if (t.charbonnier != 0.0f || t.mse != 0.0f) {
        UNROLL
        for (int i = 0; i < COUNT; i++) {
            float root = sqrtf(d[i] * d[i] + CHARBONNIER_EPSILON);
            losses += t.mse * (d[i] * d[i]) + t.charbonnier * root;
            slopes[i] += t.mse * (2.0f * d[i]);
            slopes[i] += t.charbonnier * (d[i] / root);
        }
    }
    UNROLL
    for (int i = 0; i < COUNT; i++) d[i] = slopes[i] * t.scale;
    return losses;
}
