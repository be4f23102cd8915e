// SPAN's Conv3XC: three convolutions in a row and one beside them, composed to one 3x3 convolution,
// and the gradients of their eight tensors. Depends on plain.cuh. Sums are f32, in a fixed order; a
// thread has one result.
#include "plain.cuh"

// two[o][k][tap] = sum over m of last[o][m] middle[m][k][tap], and with d_composed its gradient
// sum over i of dW[o][i][tap] first[k][i] + db[o] first_bias[k]. Grid: ceil(b x 2a x 9 / 256).
KERNEL(compose_two) {
    const int a = arg.cin, b = arg.cout, inner = 2 * a * 9;
    int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= b * inner) return;
    int o = at / inner, rest = at - o * inner, k = rest / 9, tap = rest - 9 * k;
    float sum = 0;
    for (int m = 0; m < 2 * b; m++) sum = fmaf(arg.weights.last[o * 2 * b + m], arg.weights.middle[m * inner + rest], sum);
    arg.two[at] = sum;
    if (!arg.d_composed) return;
    sum = arg.d_composed[b * a * 9 + o] * arg.weights.first_bias[k];
    for (int i = 0; i < a; i++) sum = fmaf(arg.d_composed[(o * a + i) * 9 + tap], arg.weights.first[k * a + i], sum);
    arg.d_two[at] = sum;
}

// The composed weights [b][a][9], then the biases. Grid: ceil((b x a x 9 + b) / 256).
KERNEL(compose_conv) {
    const int a = arg.cin, b = arg.cout, inner = 2 * a * 9;
    int at = blockIdx.x * 256 + threadIdx.x, weights = b * a * 9;
    if (at >= weights + b) return;
    float sum = 0;
    if (at < weights) {
        int o = at / (a * 9), i = at / 9 - o * a, tap = at % 9;
        for (int k = 0; k < 2 * a; k++) sum = fmaf(arg.two[o * inner + k * 9 + tap], arg.weights.first[k * a + i], sum);
        if (tap == 4) sum += arg.weights.skip[o * a + i];
    } else {
        int o = at - weights;
        for (int k = 0; k < 2 * a; k++) {
            float taps = 0;
            for (int tap = 0; tap < 9; tap++) taps += arg.two[o * inner + k * 9 + tap];
            sum = fmaf(taps, arg.weights.first_bias[k], sum);
        }
        for (int m = 0; m < 2 * b; m++) sum = fmaf(arg.weights.last[o * 2 * b + m], arg.weights.middle_bias[m], sum);
        sum += arg.weights.last_bias[o] + arg.weights.skip_bias[o];
    }
    arg.output[at] = sum;
}

// The gradients of the eight tensors, one thread each, in the order of ComposeGradients. Grid:
// ceil(all / 256).
KERNEL(compose_conv_back) {
    const int a = arg.cin, b = arg.cout, inner = 2 * a * 9;
    const ComposeWeights& w = arg.weights;
    const float* bias = arg.d_composed + b * a * 9;
    int at = blockIdx.x * 256 + threadIdx.x;
    float sum = 0;
    float* to = nullptr;
    if (at < b * a) {
        sum = arg.d_composed[at * 9 + 4];
        to = arg.gradients.skip + at;
    } else if ((at -= b * a) < 2 * b) {
        sum = bias[at % b];
        to = at < b ? arg.gradients.skip_bias + at : arg.gradients.last_bias + (at - b);
    } else if ((at -= 2 * b) < 2 * a * a) {
        int k = at / a, i = at - k * a;
        for (int o = 0; o < b; o++)
            for (int tap = 0; tap < 9; tap++) sum = fmaf(arg.two[o * inner + k * 9 + tap], arg.d_composed[(o * a + i) * 9 + tap], sum);
        to = arg.gradients.first + at;
    } else if ((at -= 2 * a * a) < 2 * a) {
        for (int o = 0; o < b; o++) {
            float taps = 0;
            for (int tap = 0; tap < 9; tap++) taps += arg.two[o * inner + at * 9 + tap];
            sum = fmaf(bias[o], taps, sum);
        }
        to = arg.gradients.first_bias + at;
    } else if ((at -= 2 * a) < 2 * b * inner) {
        int m = at / inner, rest = at - m * inner;
        for (int o = 0; o < b; o++) sum = fmaf(w.last[o * 2 * b + m], arg.d_two[o * inner + rest], sum);
        to = arg.gradients.middle + at;
    } else if ((at -= 2 * b * inner) < 2 * b) {
        for (int o = 0; o < b; o++) sum = fmaf(w.last[o * 2 * b + at], bias[o], sum);
        to = arg.gradients.middle_bias + at;
    } else if ((at -= 2 * b) < 2 * b * b) {
        int o = at / (2 * b), m = at - o * 2 * b;
        sum = bias[o] * w.middle_bias[m];
        for (int i = 0; i < inner; i++) sum = fmaf(arg.d_two[o * inner + i], w.middle[m * inner + i], sum);
        to = arg.gradients.last + at;
    }
    if (to) store_gradient(to, sum, arg.scalars);
}
