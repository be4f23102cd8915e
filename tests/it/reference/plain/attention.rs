//! Attention: weighted means of values, whose weights are a softmax over scalar products.
//!
//! The matrices here have a row for each channel and a column for each token.

use super::{add_multiple, dot};
use crate::reference::tensor::Tensor;

/// The weights that token `i` of `queries` gives to the `keys`: the softmax over all keys of
/// `dot(query, key) / sqrt(D)` with D channels.
fn weights(queries: &Tensor, keys: &Tensor, i: usize) -> Vec<f64> {
    let [d, count] = columns(queries);
    let keys_count = columns(keys)[1];
    let root = (d as f64).sqrt();
    let mut scores = vec![0.0; keys_count];
    for c in 0..d {
        let factor = queries.data[c * count + i] / root;
        add_multiple(&mut scores, factor, row(keys, c));
    }
    softmax(&mut scores);
    scores
}

/// Replaces every score by its exponential, divided by the sum of all. (Plain loops: see
/// [`add_multiple`].)
fn softmax(scores: &mut [f64]) {
    let mut largest = f64::MIN;
    let mut i = 0;
    while i < scores.len() {
        if scores[i] > largest {
            largest = scores[i];
        }
        i += 1;
    }
    let mut sum = 0.0;
    i = 0;
    while i < scores.len() {
        let value = (scores[i] - largest).exp();
        scores[i] = value;
        sum += value;
        i += 1;
    }
    i = 0;
    while i < scores.len() {
        scores[i] /= sum;
        i += 1;
    }
}

/// Rows and columns of a matrix.
fn columns(matrix: &Tensor) -> [usize; 2] {
    matrix.shape[..].try_into().expect("a matrix")
}

fn row(matrix: &Tensor, channel: usize) -> &[f64] {
    let count = columns(matrix)[1];
    &matrix.data[channel * count..][..count]
}

fn row_mut(matrix: &mut Tensor, channel: usize) -> &mut [f64] {
    let count = columns(matrix)[1];
    &mut matrix.data[channel * count..][..count]
}

/// `softmax(queries^T keys / sqrt(D))` applied to the values: `[D, queries]`, `[D, keys]` and
/// `[V, keys]` to `[V, queries]`.
pub fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Tensor {
    let (count, channels) = (columns(queries)[1], columns(values)[0]);
    let mut out = Tensor::zeros(&[channels, count]);
    for i in 0..count {
        let weights = weights(queries, keys, i);
        for c in 0..channels {
            out.data[c * count + i] = dot(&weights, row(values, c));
        }
    }
    out
}

/// Gradients of [`attend`] with respect to queries, keys and values. For the weights `p` of a query
/// and their gradient `g`, the gradient of its scores is `p * (g - sum of p g)`.
pub fn attend_backward(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    grad: &Tensor,
) -> [Tensor; 3] {
    let [d, count] = columns(queries);
    let mut grads = [queries, keys, values].map(|x| Tensor::zeros(&x.shape));
    let [grad_queries, grad_keys, grad_values] = &mut grads;
    for i in 0..count {
        let weights = weights(queries, keys, i);
        let mut scores = vec![0.0; weights.len()];
        for c in 0..columns(values)[0] {
            let g = grad.data[c * count + i];
            add_multiple(row_mut(grad_values, c), g, &weights);
            add_multiple(&mut scores, g, row(values, c));
        }
        let mean = dot(&weights, &scores);
        let root = (d as f64).sqrt();
        let mut j = 0;
        while j < scores.len() {
            scores[j] = weights[j] * (scores[j] - mean) / root;
            j += 1;
        }
        for c in 0..d {
            grad_queries.data[c * count + i] = dot(&scores, row(keys, c));
            add_multiple(row_mut(grad_keys, c), queries.data[c * count + i], &scores);
        }
    }
    grads
}

/// How an image is cut for window attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Windows {
    /// Heads, each with as many adjacent channels.
    pub heads: usize,
    /// Pixels along a side of a window.
    pub window: usize,
    /// Rows and columns by which the image is rolled up and to the left before it is cut.
    pub shift: usize,
}

impl Windows {
    /// The pixels of every window, row by row, as offsets in a plane of `h` x `w` pixels.
    fn pixels(self, h: usize, w: usize) -> Vec<Vec<usize>> {
        let Windows { window, shift, .. } = self;
        assert!(h.is_multiple_of(window) && w.is_multiple_of(window));
        let mut windows = Vec::new();
        for top in (0..h).step_by(window) {
            for left in (0..w).step_by(window) {
                let tokens = (0..window * window).map(|t| {
                    let (y, x) = (top + t / window, left + t % window);
                    (y + shift) % h * w + (x + shift) % w
                });
                windows.push(tokens.collect());
            }
        }
        windows
    }
}

/// Channels `first..first + count` at some pixels of an image: the matrix `[count, pixels]`.
fn gather(x: &Tensor, image: usize, first: usize, count: usize, pixels: &[usize]) -> Tensor {
    let [_, c, h, w] = x.nchw();
    let mut matrix = Tensor::zeros(&[count, pixels.len()]);
    for channel in 0..count {
        let plane = &x.data[(image * c + first + channel) * h * w..][..h * w];
        let values = row_mut(&mut matrix, channel).iter_mut().zip(pixels);
        values.for_each(|(value, &pixel)| *value = plane[pixel]);
    }
    matrix
}

/// The inverse of [`gather`].
fn scatter(x: &mut Tensor, image: usize, first: usize, pixels: &[usize], matrix: &Tensor) {
    let [_, c, h, w] = x.nchw();
    for channel in 0..columns(matrix)[0] {
        let plane = &mut x.data[(image * c + first + channel) * h * w..][..h * w];
        let values = row(matrix, channel).iter().zip(pixels);
        values.for_each(|(&value, &pixel)| plane[pixel] = value);
    }
}

/// Calls `visit(image, pixels of a window, first channel of a head, channels of a head)` for every
/// window and head of a `[N, 3C, H, W]` tensor.
fn for_heads(qkv: &Tensor, windows: Windows, mut visit: impl FnMut(usize, &[usize], usize, usize)) {
    let [n, c3, h, w] = qkv.nchw();
    assert!(c3.is_multiple_of(3 * windows.heads));
    let d = c3 / 3 / windows.heads;
    for pixels in windows.pixels(h, w) {
        for image in 0..n {
            for head in 0..windows.heads {
                visit(image, &pixels, head * d, d);
            }
        }
    }
}

/// Attention of the pixels of each window with each other. `qkv` is `[N, 3C, H, W]`, the queries,
/// keys and values one after the other; H and W are multiples of the window. Returns `[N, C, H, W]`.
/// There is no mask: a window that the roll has put together from opposite edges is one window.
pub fn window_attention(qkv: &Tensor, windows: Windows) -> Tensor {
    let [n, c3, h, w] = qkv.nchw();
    let c = c3 / 3;
    let mut out = Tensor::zeros(&[n, c, h, w]);
    for_heads(qkv, windows, |image, pixels, first, d| {
        let [q, k, v] = [0, c, 2 * c].map(|part| gather(qkv, image, part + first, d, pixels));
        scatter(&mut out, image, first, pixels, &attend(&q, &k, &v));
    });
    out
}

/// Gradient of [`window_attention`] with respect to `qkv`.
pub fn window_attention_backward(qkv: &Tensor, grad: &Tensor, windows: Windows) -> Tensor {
    let c = grad.nchw()[1];
    let mut grad_qkv = Tensor::zeros(&qkv.shape);
    for_heads(qkv, windows, |image, pixels, first, d| {
        let parts = [0, c, 2 * c];
        let [q, k, v] = parts.map(|part| gather(qkv, image, part + first, d, pixels));
        let grad = gather(grad, image, first, d, pixels);
        let grads = attend_backward(&q, &k, &v, &grad);
        for (part, grad) in parts.into_iter().zip(&grads) {
            scatter(&mut grad_qkv, image, part + first, pixels, grad);
        }
    });
    grad_qkv
}

/// Attention of every pixel to the same T tokens: queries `[N, D, H, W]`, keys `[1, D, T, 1]` and
/// values `[1, V, T, 1]` to `[N, V, H, W]`.
pub fn token_attention(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Tensor {
    let [n, d, h, w] = queries.nchw();
    let channels = values.nchw()[1];
    let [keys, values] = [keys, values].map(token_matrix);
    let all: Vec<usize> = (0..h * w).collect();
    let mut out = Tensor::zeros(&[n, channels, h, w]);
    for image in 0..n {
        let queries = gather(queries, image, 0, d, &all);
        scatter(&mut out, image, 0, &all, &attend(&queries, &keys, &values));
    }
    out
}

/// `[1, C, T, 1]` as the matrix `[C, T]`.
fn token_matrix(tokens: &Tensor) -> Tensor {
    let [1, c, t, 1] = tokens.nchw() else {
        panic!("{:?} is not [1, C, T, 1]", tokens.shape)
    };
    Tensor::new(&[c, t], tokens.data.clone())
}

/// Gradients of [`token_attention`] with respect to queries, keys and values.
pub fn token_attention_backward(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    grad: &Tensor,
) -> [Tensor; 3] {
    let [n, d, h, w] = queries.nchw();
    let [key_matrix, value_matrix] = [keys, values].map(token_matrix);
    let all: Vec<usize> = (0..h * w).collect();
    let mut grads = [queries, keys, values].map(|x| Tensor::zeros(&x.shape));
    for image in 0..n {
        let queries = gather(queries, image, 0, d, &all);
        let grad = gather(grad, image, 0, grad.nchw()[1], &all);
        let [of_queries, of_keys, of_values] =
            attend_backward(&queries, &key_matrix, &value_matrix, &grad);
        scatter(&mut grads[0], image, 0, &all, &of_queries);
        add_multiple(&mut grads[1].data, 1.0, &of_keys.data);
        add_multiple(&mut grads[2].data, 1.0, &of_values.data);
    }
    grads
}
