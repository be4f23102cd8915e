//! RMSNorm.

use super::channel_sums;
use crate::reference::tensor::Tensor;

/// Added to the mean of the squares in [`rms_norm`].
pub const RMS_EPSILON: f64 = 1e-6;

/// `x / sqrt(mean over channels of x^2 + RMS_EPSILON)`, and the inverse of the root for every pixel
/// of every image, `[N, H * W]`.
fn normalised(x: &Tensor) -> (Tensor, Vec<f64>) {
    let [n, c, h, w] = x.nchw();
    let mut squares = vec![0.0; n * h * w];
    let pixel = |i: usize| i / (c * h * w) * (h * w) + i % (h * w);
    for (i, v) in x.data.iter().enumerate() {
        squares[pixel(i)] += v * v;
    }
    let inverse = |sum: &f64| 1.0 / (sum / c as f64 + RMS_EPSILON).sqrt();
    let inverse: Vec<f64> = squares.iter().map(inverse).collect();
    let values = x.data.iter().enumerate();
    let values = values.map(|(i, v)| v * inverse[pixel(i)]).collect();
    (x.with(values), inverse)
}

/// `out[n, c, y, x] = scale[c] * x[n, c, y, x] / r[n, y, x] + bias[c]` with `r` the root of the mean
/// square of the pixel's channels. `scale` and `bias` are `[C, 1, 1]`.
pub fn rms_norm(x: &Tensor, scale: &Tensor, bias: &Tensor) -> Tensor {
    super::channel_affine(&normalised(x).0, scale, bias)
}

/// Gradients of [`rms_norm`] with respect to input, scale and bias. With `z = x / r` and
/// `g = scale * grad`, the gradient of the input is `(g - z * mean over channels of g z) / r`.
pub fn rms_norm_backward(x: &Tensor, scale: &Tensor, grad: &Tensor) -> [Tensor; 3] {
    let [n, c, h, w] = x.nchw();
    let (z, inverse) = normalised(x);
    let scale_at = |i: usize| scale.data[i / (h * w) % c];
    let pixel = |i: usize| i / (c * h * w) * (h * w) + i % (h * w);
    let mut means = vec![0.0; n * h * w];
    for (i, (g, z)) in grad.data.iter().zip(&z.data).enumerate() {
        means[pixel(i)] += scale_at(i) * g * z / c as f64;
    }
    let values = grad.data.iter().zip(&z.data).enumerate();
    let grad_input = values
        .map(|(i, (g, z))| (scale_at(i) * g - z * means[pixel(i)]) * inverse[pixel(i)])
        .collect();
    let products = z.zip(grad, |z, g| z * g);
    [
        x.with(grad_input),
        scale.with(channel_sums(&products).data),
        scale.with(channel_sums(grad).data),
    ]
}
