//! The two-dimensional convolution, as PyTorch's `conv2d` with stride 1 defines it.

use crate::reference::tensor::Tensor;
use std::ops::Range;

/// What the shapes of the operands do not say. The output has
/// `H + 2 * padding[0] - dilation * (kh - 1)` rows, columns likewise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Convolution {
    /// Output channel `o` reads the input channels of group `o / (out / groups)`.
    pub groups: usize,
    /// Distance of neighbouring taps, in pixels.
    pub dilation: usize,
    /// Rings of zeros around the input: rows, columns.
    pub padding: [usize; 2],
}

impl Convolution {
    /// Every output channel reads every input channel; a `k` x `k` kernel keeps the size.
    pub fn dense(k: usize) -> Convolution {
        Convolution::depthwise(1, k, 1)
    }

    /// One `k` x `k` kernel for each of the `channels`; keeps the size.
    pub fn depthwise(channels: usize, k: usize, dilation: usize) -> Convolution {
        Convolution {
            groups: channels,
            dilation,
            padding: [dilation * (k / 2); 2],
        }
    }

    /// `[N, out, oh, ow]` for an input and a weight.
    pub fn output_shape(self, input: &Tensor, weight: &Tensor) -> [usize; 4] {
        let [n, ci, h, w] = input.nchw();
        let [co, per_group, kh, kw] = weight.nchw();
        assert_eq!(ci, per_group * self.groups, "channels of input and weight");
        assert!(co.is_multiple_of(self.groups), "channels of groups");
        let size = |size, k, padding| size + 2 * padding - self.dilation * (k - 1);
        [
            n,
            co,
            size(h, kh, self.padding[0]),
            size(w, kw, self.padding[1]),
        ]
    }

    /// Rows and columns of the input with its padding. Outputs are computed in planes of this size
    /// too, from the top left corner.
    fn frame(self, input: &Tensor) -> [usize; 2] {
        let [.., h, w] = input.nchw();
        [h + 2 * self.padding[0], w + 2 * self.padding[1]]
    }

    /// Calls `visit(output range, input range, weight index)` for every weight of every image. The
    /// ranges have the same length and point into the data of planes of the size [`Self::frame`],
    /// where all that a weight reads is contiguous, and all that it contributes to: one long range is
    /// faster than a short one for every row.
    fn for_weights(
        self,
        input: &Tensor,
        weight: &Tensor,
        mut visit: impl FnMut(Range<usize>, Range<usize>, usize),
    ) {
        let [n, co, oh, ow] = self.output_shape(input, weight);
        let [_, ci, ..] = input.nchw();
        let [_, per_group, kh, kw] = weight.nchw();
        let [rows, columns] = self.frame(input);
        // from the first value of the output to the last, with the rest of the rows between
        let length = (oh - 1) * columns + ow;
        for image in 0..n {
            for o in 0..co {
                for i in 0..per_group {
                    let channel = o / (co / self.groups) * per_group + i;
                    for ky in 0..kh {
                        for kx in 0..kw {
                            let tap = ((o * per_group + i) * kh + ky) * kw + kx;
                            let to = (image * co + o) * rows * columns;
                            let from = (image * ci + channel) * rows * columns
                                + ky * self.dilation * columns
                                + kx * self.dilation;
                            visit(to..to + length, from..from + length, tap);
                        }
                    }
                }
            }
        }
    }
}

/// Copies every plane into a plane of `size` rows and columns at the offset `[top, left]`; the rest
/// is 0.
pub fn framed(x: &Tensor, size: [usize; 2], [top, left]: [usize; 2]) -> Tensor {
    let [n, c, h, w] = x.nchw();
    let mut out = Tensor::zeros(&[n, c, size[0], size[1]]);
    for plane in 0..n * c {
        for y in 0..h {
            let row = &x.data[(plane * h + y) * w..][..w];
            out.data[((plane * size[0]) + top + y) * size[1] + left..][..w].copy_from_slice(row);
        }
    }
    out
}

/// The part of every plane with `size` rows and columns at the offset `[top, left]`.
pub fn cut(x: &Tensor, size: [usize; 2], [top, left]: [usize; 2]) -> Tensor {
    let [n, c, h, w] = x.nchw();
    let mut out = Tensor::zeros(&[n, c, size[0], size[1]]);
    for plane in 0..n * c {
        for y in 0..size[0] {
            let row = &x.data[(plane * h + top + y) * w + left..][..size[1]];
            out.data[(plane * size[0] + y) * size[1]..][..size[1]].copy_from_slice(row);
        }
    }
    out
}

/// `out[n, o, y, x] = bias[o] + sum over i, ky, kx of
/// weight[o, i, ky, kx] * input[n, i, y + ky * dilation - padding, x + kx * dilation - padding]`,
/// where the input is zero outside. `weight` is `[out, in / groups, kh, kw]`, `bias` `[out]`.
pub fn conv2d(input: &Tensor, weight: &Tensor, bias: &Tensor, settings: Convolution) -> Tensor {
    let [n, co, oh, ow] = settings.output_shape(input, weight);
    assert_eq!(bias.shape, [co]);
    let frame = settings.frame(input);
    let mut out = Tensor::zeros(&[n, co, frame[0], frame[1]]);
    for (channel, values) in out.data.chunks_exact_mut(frame[0] * frame[1]).enumerate() {
        values.fill(bias.data[channel % co]);
    }
    let padded = framed(input, frame, settings.padding);
    settings.for_weights(input, weight, |to, from, tap| {
        add_multiple(&mut out.data[to], weight.data[tap], &padded.data[from]);
    });
    cut(&out, [oh, ow], [0, 0])
}

/// Gradients of [`conv2d`] with respect to input, weight and bias.
pub fn conv2d_backward(
    input: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
    settings: Convolution,
) -> [Tensor; 3] {
    assert_eq!(grad.shape, settings.output_shape(input, weight));
    let [.., h, w] = input.nchw();
    let frame = settings.frame(input);
    let padded = framed(input, frame, settings.padding);
    // the zeros between the rows of the gradient contribute nothing
    let rows = framed(grad, frame, [0, 0]);
    let mut grad_input = Tensor::zeros(&padded.shape);
    let mut grad_weight = Tensor::zeros(&weight.shape);
    settings.for_weights(input, weight, |to, from, tap| {
        let row = &rows.data[to];
        grad_weight.data[tap] += dot(&padded.data[from.clone()], row);
        add_multiple(&mut grad_input.data[from], weight.data[tap], row);
    });
    let grad_input = cut(&grad_input, [h, w], settings.padding);
    [grad_input, grad_weight, channel_sums(grad)]
}

/// `y += factor * x`. This and [`dot`] take nearly all of the time. Without optimisation, eight values
/// written out in an iteration are several times as fast as one.
pub fn add_multiple(y: &mut [f64], factor: f64, x: &[f64]) {
    assert_eq!(y.len(), x.len());
    let (y, y_rest) = y.as_chunks_mut::<8>();
    let (x, x_rest) = x.as_chunks::<8>();
    let mut i = 0;
    while i < y.len() {
        let (y, x) = (&mut y[i], &x[i]);
        y[0] += factor * x[0];
        y[1] += factor * x[1];
        y[2] += factor * x[2];
        y[3] += factor * x[3];
        y[4] += factor * x[4];
        y[5] += factor * x[5];
        y[6] += factor * x[6];
        y[7] += factor * x[7];
        i += 1;
    }
    i = 0;
    while i < y_rest.len() {
        y_rest[i] += factor * x_rest[i];
        i += 1;
    }
}

/// The sum of the products.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sum = 0.0;
    let mut i = 0;
    while i < a.len() {
        let (a, b) = (&a[i], &b[i]);
        sum += (a[0] * b[0] + a[1] * b[1])
            + (a[2] * b[2] + a[3] * b[3])
            + ((a[4] * b[4] + a[5] * b[5]) + (a[6] * b[6] + a[7] * b[7]));
        i += 1;
    }
    i = 0;
    while i < a_rest.len() {
        sum += a_rest[i] * b_rest[i];
        i += 1;
    }
    sum
}

/// `[C]`: the sum of every channel over images and pixels.
pub fn channel_sums(x: &Tensor) -> Tensor {
    let [_, c, h, w] = x.nchw();
    let mut sums = Tensor::zeros(&[c]);
    for (i, values) in x.data.chunks_exact(h * w).enumerate() {
        sums.data[i % c] += values.iter().sum::<f64>();
    }
    sums
}
