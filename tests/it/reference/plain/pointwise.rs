//! Operations on values, on pairs of values and on whole channels.

use super::{channel_sums, dot};
use crate::reference::{erf, tensor::Tensor};

/// An activation without parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// max(z, 0)
    Relu,
    /// z where z > 0, else slope * z
    LeakyRelu(f64),
    /// z * sigmoid(z)
    Silu,
    /// The exact one: z * (1 + erf(z / sqrt(2))) / 2
    Gelu,
    /// 1 / (1 + exp(-z))
    Sigmoid,
}

impl Activation {
    pub fn value(self, z: f64) -> f64 {
        match self {
            Activation::Relu => z.max(0.0),
            Activation::LeakyRelu(slope) => {
                if z > 0.0 {
                    z
                } else {
                    slope * z
                }
            }
            Activation::Silu => z * Activation::Sigmoid.value(z),
            Activation::Gelu => erf::gelu(z),
            Activation::Sigmoid => 1.0 / (1.0 + (-z).exp()),
        }
    }

    /// The derivative. At a kink it is that of the negative side, as in PyTorch.
    pub fn slope(self, z: f64) -> f64 {
        let s = 1.0 / (1.0 + (-z).exp());
        match self {
            Activation::Relu => f64::from(u8::from(z > 0.0)),
            Activation::LeakyRelu(slope) => {
                if z > 0.0 {
                    1.0
                } else {
                    slope
                }
            }
            Activation::Silu => s * (1.0 + z * (1.0 - s)),
            Activation::Gelu => erf::gelu_slope(z),
            Activation::Sigmoid => s * (1.0 - s),
        }
    }
}

pub fn activate(x: &Tensor, activation: Activation) -> Tensor {
    x.map(|z| activation.value(z))
}

pub fn activate_backward(x: &Tensor, grad: &Tensor, activation: Activation) -> Tensor {
    x.zip(grad, |z, g| g * activation.slope(z))
}

/// The channel of value `i` of a `[N, C, H, W]` tensor.
fn channel_of(x: &Tensor) -> impl Fn(usize) -> usize {
    let [_, c, h, w] = x.nchw();
    move |i| i / (h * w) % c
}

/// Applies `f(value, channel)` to every value.
fn map_channels(x: &Tensor, f: impl Fn(f64, usize) -> f64) -> Tensor {
    let channel = channel_of(x);
    let values = x.data.iter().enumerate();
    x.with(values.map(|(i, &v)| f(v, channel(i))).collect())
}

/// z where z > 0, else slopes[channel] * z; `slopes` is `[C]`.
pub fn prelu(x: &Tensor, slopes: &Tensor) -> Tensor {
    map_channels(x, |z, c| if z > 0.0 { z } else { slopes.data[c] * z })
}

/// Gradients of [`prelu`] with respect to input and slopes.
pub fn prelu_backward(x: &Tensor, slopes: &Tensor, grad: &Tensor) -> [Tensor; 2] {
    let factors = map_channels(x, |z, c| if z > 0.0 { 1.0 } else { slopes.data[c] });
    let negative = x.zip(grad, |z, g| g * z.min(0.0));
    [
        grad.zip(&factors, |g, f| g * f),
        slopes.with(channel_sums(&negative).data),
    ]
}

/// `clamp(a * b, -limit, limit)`. Stream's gate has the limit 65504, the largest finite f16; an
/// infinite limit makes this the plain product.
pub fn product(a: &Tensor, b: &Tensor, limit: f64) -> Tensor {
    a.zip(b, |a, b| (a * b).clamp(-limit, limit))
}

/// Gradients of [`product`] with respect to both factors: zero where the product is beyond the
/// limit.
pub fn product_backward(a: &Tensor, b: &Tensor, grad: &Tensor, limit: f64) -> [Tensor; 2] {
    let passed = a
        .zip(b, |a, b| f64::from(u8::from((a * b).abs() <= limit)))
        .zip(grad, |inside, g| inside * g);
    [passed.zip(b, |g, b| g * b), passed.zip(a, |g, a| g * a)]
}

/// `scale[channel] * x + shift[channel]`; both have one value a channel, in any shape
/// (LayerScale's is `[1, C, 1, 1]`).
pub fn channel_affine(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Tensor {
    let channels = x.nchw()[1];
    assert_eq!([scale.data.len(), shift.data.len()], [channels; 2]);
    map_channels(x, |v, c| scale.data[c] * v + shift.data[c])
}

/// Gradients of [`channel_affine`] with respect to input, scale and shift, in the shapes of these.
pub fn channel_affine_backward(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    grad: &Tensor,
) -> [Tensor; 3] {
    let products = x.zip(grad, |x, g| x * g);
    [
        map_channels(grad, |g, c| g * scale.data[c]),
        scale.with(channel_sums(&products).data),
        shift.with(channel_sums(grad).data),
    ]
}

/// `factors[n, c] * x[n, c, y, x]`; `factors` is `[N, C, 1, 1]`.
pub fn image_factors(x: &Tensor, factors: &Tensor) -> Tensor {
    let [n, c, h, w] = x.nchw();
    assert_eq!(factors.shape, [n, c, 1, 1]);
    let values = x.data.iter().enumerate();
    x.with(values.map(|(i, v)| factors.data[i / (h * w)] * v).collect())
}

/// Gradients of [`image_factors`] with respect to input and factors.
pub fn image_factors_backward(x: &Tensor, factors: &Tensor, grad: &Tensor) -> [Tensor; 2] {
    let [.., h, w] = x.nchw();
    let planes = x
        .data
        .chunks_exact(h * w)
        .zip(grad.data.chunks_exact(h * w));
    let sums = planes.map(|(x, grad)| dot(x, grad));
    [image_factors(grad, factors), factors.with(sums.collect())]
}

/// `gain * x` for one number `gain`, shape `[]`.
pub fn gain(x: &Tensor, gain: &Tensor) -> Tensor {
    assert_eq!(gain.data.len(), 1);
    x.map(|v| v * gain.data[0])
}

/// Gradients of [`gain()`] with respect to input and gain.
pub fn gain_backward(x: &Tensor, gain: &Tensor, grad: &Tensor) -> [Tensor; 2] {
    let sum = x.zip(grad, |x, g| x * g).data.iter().sum();
    [grad.map(|g| g * gain.data[0]), gain.with(vec![sum])]
}

/// Joins tensors along their channels.
pub fn concat(parts: &[&Tensor]) -> Tensor {
    let [n, _, h, w] = parts[0].nchw();
    let channels: usize = parts.iter().map(|part| part.nchw()[1]).sum();
    let mut data = Vec::with_capacity(n * channels * h * w);
    for image in 0..n {
        for part in parts {
            let [pn, c, ph, pw] = part.nchw();
            assert_eq!([pn, ph, pw], [n, h, w]);
            data.extend_from_slice(&part.data[image * c * h * w..][..c * h * w]);
        }
    }
    Tensor::new(&[n, channels, h, w], data)
}

/// Gradients of [`concat`] with respect to the parts, which have `channels` channels each.
pub fn concat_backward(grad: &Tensor, channels: &[usize]) -> Vec<Tensor> {
    let mut first = 0;
    channels
        .iter()
        .map(|&count| {
            let part = select_channels(grad, first, count);
            first += count;
            part
        })
        .collect()
}

/// Channels `first..first + count`.
pub fn select_channels(x: &Tensor, first: usize, count: usize) -> Tensor {
    let [n, c, h, w] = x.nchw();
    assert!(first + count <= c);
    let mut data = Vec::with_capacity(n * count * h * w);
    for image in x.data.chunks_exact(c * h * w) {
        data.extend_from_slice(&image[first * h * w..][..count * h * w]);
    }
    Tensor::new(&[n, count, h, w], data)
}

/// Gradient of [`select_channels`] with respect to an input of `channels` channels.
pub fn select_channels_backward(grad: &Tensor, first: usize, channels: usize) -> Tensor {
    let [n, count, h, w] = grad.nchw();
    let mut out = Tensor::zeros(&[n, channels, h, w]);
    for image in 0..n {
        out.data[(image * channels + first) * h * w..][..count * h * w]
            .copy_from_slice(&grad.data[image * count * h * w..][..count * h * w]);
    }
    out
}
