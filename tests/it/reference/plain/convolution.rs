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

    /// Calls `visit(output row, input row, weight index)` for every weight and every output row
    /// that it contributes to. Both rows are ranges of the same length in the data of output and
    /// input: the columns whose tap is inside the image. Zero padding contributes nothing.
    fn for_rows(
        self,
        input: &Tensor,
        weight: &Tensor,
        mut visit: impl FnMut(Range<usize>, Range<usize>, usize),
    ) {
        let [n, co, mut oh, mut ow] = self.output_shape(input, weight);
        let [_, ci, mut h, mut w] = input.nchw();
        let [_, per_group, kh, kw] = weight.nchw();
        let [pad_y, pad_x] = self.padding;
        if [kh, kw, pad_y, pad_x] == [1, 1, 0, 0] {
            // rows do not matter, and one long row is faster
            (oh, ow) = (1, oh * ow);
            (h, w) = (1, h * w);
        }
        for image in 0..n {
            for o in 0..co {
                for i in 0..per_group {
                    let channel = o / (co / self.groups) * per_group + i;
                    for ky in 0..kh {
                        for kx in 0..kw {
                            let tap = ((o * per_group + i) * kh + ky) * kw + kx;
                            let (dy, dx) = (ky * self.dilation, kx * self.dilation);
                            // output column x reads input column x + dx - pad_x
                            let columns =
                                pad_x.saturating_sub(dx)..(w + pad_x).saturating_sub(dx).min(ow);
                            if columns.is_empty() {
                                continue;
                            }
                            for y in
                                pad_y.saturating_sub(dy)..(h + pad_y).saturating_sub(dy).min(oh)
                            {
                                let to = ((image * co + o) * oh + y) * ow + columns.start;
                                let from = ((image * ci + channel) * h + y + dy - pad_y) * w
                                    + columns.start
                                    + dx
                                    - pad_x;
                                visit(to..to + columns.len(), from..from + columns.len(), tap);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `out[n, o, y, x] = bias[o] + sum over i, ky, kx of
/// weight[o, i, ky, kx] * input[n, i, y + ky * dilation - padding, x + kx * dilation - padding]`,
/// where the input is zero outside. `weight` is `[out, in / groups, kh, kw]`, `bias` `[out]`.
pub fn conv2d(input: &Tensor, weight: &Tensor, bias: &Tensor, settings: Convolution) -> Tensor {
    let mut out = Tensor::zeros(&settings.output_shape(input, weight));
    let [_, co, oh, ow] = out.nchw();
    assert_eq!(bias.shape, [co]);
    for (channel, values) in out.data.chunks_exact_mut(oh * ow).enumerate() {
        values.fill(bias.data[channel % co]);
    }
    settings.for_rows(input, weight, |to, from, tap| {
        add_multiple(&mut out.data[to], weight.data[tap], &input.data[from]);
    });
    out
}

/// Gradients of [`conv2d`] with respect to input, weight and bias.
pub fn conv2d_backward(
    input: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
    settings: Convolution,
) -> [Tensor; 3] {
    assert_eq!(grad.shape, settings.output_shape(input, weight));
    let mut grad_input = Tensor::zeros(&input.shape);
    let mut grad_weight = Tensor::zeros(&weight.shape);
    settings.for_rows(input, weight, |to, from, tap| {
        let row = &grad.data[to];
        grad_weight.data[tap] += dot(&input.data[from.clone()], row);
        add_multiple(&mut grad_input.data[from], weight.data[tap], row);
    });
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
