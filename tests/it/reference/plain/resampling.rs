//! Operations that change the number of pixels, and the classical upsampler built on them.

use super::{Convolution, conv2d, cut, framed};
use crate::reference::{BLUR, SHARP, tensor::Tensor};

/// Calls `visit(index in [N, C, H * s, W * s], index in [N, C * s * s, H, W])` for every value:
/// channel `c * s * s + dy * s + dx` of pixel `(y, x)` becomes channel `c` of pixel
/// `(y * s + dy, x * s + dx)`.
fn for_shuffle(high: [usize; 4], s: usize, mut visit: impl FnMut(usize, usize)) {
    let [n, c, h, w] = high;
    let mut to = 0;
    for image in 0..n {
        for channel in 0..c {
            for y in 0..h {
                for x in 0..w {
                    let from_channel = (image * c + channel) * s * s + (y % s) * s + x % s;
                    visit(to, (from_channel * (h / s) + y / s) * (w / s) + x / s);
                    to += 1;
                }
            }
        }
    }
}

/// `[N, C * s * s, H, W]` to `[N, C, H * s, W * s]`.
pub fn pixel_shuffle(low: &Tensor, s: usize) -> Tensor {
    let [n, c, h, w] = low.nchw();
    assert!(c.is_multiple_of(s * s));
    let shape = [n, c / (s * s), h * s, w * s];
    let mut high = Tensor::zeros(&shape);
    for_shuffle(shape, s, |to, from| high.data[to] = low.data[from]);
    high
}

/// Gradient of [`pixel_shuffle`]: its inverse.
pub fn pixel_shuffle_backward(grad: &Tensor, s: usize) -> Tensor {
    let [n, c, h, w] = grad.nchw();
    let mut low = Tensor::zeros(&[n, c * s * s, h / s, w / s]);
    for_shuffle(grad.nchw(), s, |from, to| low.data[to] = grad.data[from]);
    low
}

/// Enlarges by nearest neighbour: pixel `(y, x)` becomes a cell of `s` x `s` equal pixels.
pub fn nearest(low: &Tensor, s: usize) -> Tensor {
    let [n, c, h, w] = low.nchw();
    let mut high = Tensor::zeros(&[n, c, h * s, w * s]);
    for (i, value) in high.data.iter_mut().enumerate() {
        let (plane, y, x) = (i / (h * s * w * s), i / (w * s) % (h * s), i % (w * s));
        *value = low.data[(plane * h + y / s) * w + x / s];
    }
    high
}

/// Gradient of [`nearest`]: the sum over every cell.
pub fn nearest_backward(grad: &Tensor, s: usize) -> Tensor {
    let [n, c, h, w] = grad.nchw();
    let mut low = Tensor::zeros(&[n, c, h / s, w / s]);
    for (i, value) in grad.data.iter().enumerate() {
        let (plane, y, x) = (i / (h * w), i / w % h, i % w);
        low.data[(plane * (h / s) + y / s) * (w / s) + x / s] += value;
    }
    low
}

/// Adds zeros at the bottom and at the right, up to the size `[H, W]`.
pub fn pad(x: &Tensor, size: [usize; 2]) -> Tensor {
    let [.., h, w] = x.nchw();
    assert!(h <= size[0] && w <= size[1]);
    framed(x, size, [0, 0])
}

/// Gradient of [`pad`] for an input of the size `[H, W]`.
pub fn pad_backward(grad: &Tensor, size: [usize; 2]) -> Tensor {
    crop(grad, size)
}

/// Keeps the size `[H, W]` from the top left corner.
pub fn crop(x: &Tensor, size: [usize; 2]) -> Tensor {
    let [.., h, w] = x.nchw();
    assert!(size[0] <= h && size[1] <= w);
    cut(x, size, [0, 0])
}

/// Gradient of [`crop`] for an input of the size `[H, W]`.
pub fn crop_backward(grad: &Tensor, size: [usize; 2]) -> Tensor {
    pad(grad, size)
}

/// `[N, C, H, W]` to `[N, C, 1, 1]`: the mean of every channel of an image.
pub fn channel_means(x: &Tensor) -> Tensor {
    let [n, c, h, w] = x.nchw();
    let planes = x.data.chunks_exact(h * w);
    let means = planes.map(|plane| plane.iter().sum::<f64>() / (h * w) as f64);
    Tensor::new(&[n, c, 1, 1], means.collect())
}

/// Gradient of [`channel_means`] for an input of the size `[H, W]`.
pub fn channel_means_backward(grad: &Tensor, [h, w]: [usize; 2]) -> Tensor {
    let [n, c, ..] = grad.nchw();
    let share = |g: &f64| std::iter::repeat_n(g / (h * w) as f64, h * w);
    Tensor::new(&[n, c, h, w], grad.data.iter().flat_map(share).collect())
}

/// `taps` along the rows, then along the columns, zeros outside, every channel by itself. The taps
/// of this network are symmetric, so the matrix of this filter is symmetric and the filter is its
/// own backward.
fn separable(x: &Tensor, taps: &[f64]) -> Tensor {
    let c = x.nchw()[1];
    let k = taps.len();
    let per_channel: Vec<f64> = taps.iter().copied().cycle().take(c * k).collect();
    let bias = Tensor::zeros(&[c]);
    let filter = |x: &Tensor, kernel: [usize; 2]| {
        let weight = Tensor::new(&[c, 1, kernel[0], kernel[1]], per_channel.clone());
        let settings = Convolution {
            groups: c,
            dilation: 1,
            padding: kernel.map(|k| k / 2),
        };
        conv2d(x, &weight, &bias, settings)
    };
    filter(&filter(x, [1, k]), [k, 1])
}

/// `x + alpha * (sharp(x) - x)`; symmetric, like [`separable`].
fn sharpen(x: &Tensor, alpha: f64) -> Tensor {
    x.zip(&separable(x, &SHARP), |x, sharp| x + alpha * (sharp - x))
}

/// Magic Kernel Sharp 2021 by `s`, as the ParagonSR2 networks use it: sharpen with the strength
/// `alpha`, enlarge by nearest neighbour, blur.
pub fn magic_kernel(x: &Tensor, s: usize, alpha: f64) -> Tensor {
    separable(&nearest(&sharpen(x, alpha), s), &BLUR)
}

/// Gradient of [`magic_kernel`] with respect to its input.
pub fn magic_kernel_backward(grad: &Tensor, s: usize, alpha: f64) -> Tensor {
    sharpen(&nearest_backward(&separable(grad, &BLUR), s), alpha)
}
