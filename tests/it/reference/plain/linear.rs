//! Linear layers, which act on the channels of each pixel, and the layout of a list of tokens.

use super::{add_multiple, channel_sums, dot};
use crate::reference::tensor::Tensor;

/// `[image, channel]` of the planes of a `[N, C, H, W]` tensor, by their offsets in its data.
fn plane(x: &Tensor, image: usize, channel: usize) -> std::ops::Range<usize> {
    let [_, c, h, w] = x.nchw();
    let start = (image * c + channel) * h * w;
    start..start + h * w
}

/// `out[n, o, y, x] = bias[o] + sum over i of weight[o, i] * input[n, i, y, x]`: PyTorch's linear
/// layer, applied to every pixel. `weight` is `[out, in]`, `bias` `[out]` or absent.
pub fn linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let [n, inputs, h, w] = input.nchw();
    assert_eq!(weight.shape[1..], [inputs]);
    let outputs = weight.shape[0];
    let mut out = Tensor::zeros(&[n, outputs, h, w]);
    for image in 0..n {
        for o in 0..outputs {
            let to = plane(&out, image, o);
            let to = &mut out.data[to];
            to.fill(bias.map_or(0.0, |bias| bias.data[o]));
            for i in 0..inputs {
                let from = &input.data[plane(input, image, i)];
                add_multiple(to, weight.data[o * inputs + i], from);
            }
        }
    }
    out
}

/// Gradients of [`linear`] with respect to input, weight and bias.
pub fn linear_backward(input: &Tensor, weight: &Tensor, grad: &Tensor) -> [Tensor; 3] {
    let [n, inputs, ..] = input.nchw();
    let mut grad_input = Tensor::zeros(&input.shape);
    let mut grad_weight = Tensor::zeros(&weight.shape);
    for image in 0..n {
        for o in 0..weight.shape[0] {
            let row = &grad.data[plane(grad, image, o)];
            for i in 0..inputs {
                let (tap, from) = (o * inputs + i, plane(input, image, i));
                grad_weight.data[tap] += dot(&input.data[from.clone()], row);
                add_multiple(&mut grad_input.data[from], weight.data[tap], row);
            }
        }
    }
    [grad_input, grad_weight, channel_sums(grad)]
}

/// `[1, T, C]`, a list of T tokens, to the "image" `[1, C, T, 1]` with one token in each row.
pub fn token_rows(tokens: &Tensor) -> Tensor {
    let [1, t, c] = tokens.shape[..] else {
        panic!("{:?} is not [1, T, C]", tokens.shape)
    };
    Tensor::from_nhwc([1, t, 1, c], &tokens.data)
}

/// Gradient of [`token_rows`]: its inverse.
pub fn token_rows_backward(grad: &Tensor) -> Tensor {
    let [_, c, t, _] = grad.nchw();
    Tensor::new(&[1, t, c], grad.to_nhwc())
}
