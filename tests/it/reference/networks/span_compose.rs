//! The composition of SPAN's `Conv3XC`: four convolutions with eight tensors are together one 3x3
//! convolution with zero padding, because nothing between them is nonlinear. Depends on `tensor`
//! alone; promises the exact composition and its chain rule.
//!
//! With the matrices `W0` (conv.0), `W1[t]` (conv.1, tap t), `W2` (conv.2) and `S` (sk):
//!
//! ```text
//! weight[t] = W2 W1[t] W0            + S in the central tap
//! bias      = W2 (sum over t of W1[t] b0 + b1) + b2 + bs
//! ```
//!
//! `b0` counts in all nine taps, also at the border, because the ring of zeros around the input
//! is added before conv.0 and so carries `b0`.

use crate::reference::{Parameters, plain::add_multiple, tensor::Tensor};

/// The parts of a `Conv3XC`, by the names of their modules.
const PARTS: [&str; 4] = ["sk", "conv.0", "conv.1", "conv.2"];
/// Taps of a 3x3 kernel, and the one in the centre.
const TAPS: usize = 9;
const CENTRE: usize = 4;

/// The tensors of one `Conv3XC(a -> b)`, or the gradients with respect to them.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv3xc {
    /// `sk`: `[b, a, 1, 1]`, `[b]`.
    pub skip: ConvTensors,
    /// `conv.0`: `[2a, a, 1, 1]`, `[2a]`.
    pub first: ConvTensors,
    /// `conv.1`: `[2b, 2a, 3, 3]`, `[2b]`.
    pub middle: ConvTensors,
    /// `conv.2`: `[b, 2b, 1, 1]`, `[b]`.
    pub last: ConvTensors,
}

/// Weight and bias of a convolution, or the gradients with respect to them.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvTensors {
    pub weight: Tensor,
    pub bias: Tensor,
}

impl ConvTensors {
    fn read(params: &Parameters, name: &str) -> ConvTensors {
        let tensor = |part: &str| {
            let (shape, values) = &params[&format!("{name}.{part}")];
            Tensor::new(shape, values.clone())
        };
        ConvTensors {
            weight: tensor("weight"),
            bias: tensor("bias"),
        }
    }

    fn write(self, params: &mut Parameters, name: &str) {
        for (part, tensor) in [("weight", self.weight), ("bias", self.bias)] {
            params.insert(format!("{name}.{part}"), (tensor.shape, tensor.data));
        }
    }
}

impl Conv3xc {
    /// The tensors `{name}.sk.weight` and so on.
    pub fn read(params: &Parameters, name: &str) -> Conv3xc {
        let [skip, first, middle, last] =
            PARTS.map(|part| ConvTensors::read(params, &format!("{name}.{part}")));
        Conv3xc {
            skip,
            first,
            middle,
            last,
        }
    }

    fn write(self, params: &mut Parameters, name: &str) {
        let parts = [self.skip, self.first, self.middle, self.last];
        for (tensors, part) in parts.into_iter().zip(PARTS) {
            tensors.write(params, &format!("{name}.{part}"));
        }
    }

    /// The 3x3 convolution with zero padding 1 that equals this one: `[b, a, 3, 3]` and `[b]`.
    pub fn compose(&self) -> ConvTensors {
        let (w0, w2) = (
            Matrix::of(&self.first.weight),
            Matrix::of(&self.last.weight),
        );
        let b0 = Matrix::column(&self.first.bias);
        let mut sum = Matrix::column(&self.middle.bias);
        let mut weight = Tensor::zeros(&[w2.rows, w0.columns, 3, 3]);
        for t in 0..TAPS {
            let w1 = Matrix::tap(&self.middle.weight, t);
            let mut composed = w2.times(&w1).times(&w0);
            if t == CENTRE {
                composed = composed.plus(&Matrix::of(&self.skip.weight));
            }
            composed.store_tap(&mut weight, t);
            sum = sum.plus(&w1.times(&b0));
        }
        let bias = w2
            .times(&sum)
            .plus(&Matrix::column(&self.last.bias))
            .plus(&Matrix::column(&self.skip.bias));
        ConvTensors {
            weight,
            bias: self.last.bias.with(bias.data),
        }
    }

    /// From the gradients with respect to the composed convolution to those with respect to the
    /// eight tensors. With `G[t]` and `g` for the gradients of composed weight and bias:
    ///
    /// ```text
    /// dW0 = sum over t of W1[t]^T W2^T G[t]        db0 = sum over t of W1[t]^T W2^T g
    /// dW1[t] = W2^T (G[t] W0^T + g b0^T)           db1 = W2^T g
    /// dW2 = sum over t of G[t] (W1[t] W0)^T + g (sum over t of W1[t] b0 + b1)^T
    /// dS = G[centre]                               db2 = dbs = g
    /// ```
    pub fn compose_backward(&self, grad: &ConvTensors) -> Conv3xc {
        let (w0, w2) = (
            Matrix::of(&self.first.weight),
            Matrix::of(&self.last.weight),
        );
        let b0 = Matrix::column(&self.first.bias);
        let g = Matrix::column(&grad.bias);
        let through_last = w2.transposed().times(&g);
        let mut sum = Matrix::column(&self.middle.bias);
        let mut d_w0 = Matrix::zeros(w0.rows, w0.columns);
        let mut d_b0 = Matrix::zeros(w0.rows, 1);
        let mut d_w1 = Tensor::zeros(&self.middle.weight.shape);
        let mut d_w2 = Matrix::zeros(w2.rows, w2.columns);
        for t in 0..TAPS {
            let w1 = Matrix::tap(&self.middle.weight, t);
            let d_weight = Matrix::tap(&grad.weight, t);
            let back = w2.transposed().times(&d_weight);
            d_w0 = d_w0.plus(&w1.transposed().times(&back));
            d_b0 = d_b0.plus(&w1.transposed().times(&through_last));
            back.times(&w0.transposed())
                .plus(&through_last.times(&b0.transposed()))
                .store_tap(&mut d_w1, t);
            d_w2 = d_w2.plus(&d_weight.times(&w1.times(&w0).transposed()));
            sum = sum.plus(&w1.times(&b0));
        }
        d_w2 = d_w2.plus(&g.times(&sum.transposed()));
        let part = |of: &ConvTensors, weight: Vec<f64>, bias: &Matrix| ConvTensors {
            weight: of.weight.with(weight),
            bias: of.bias.with(bias.data.clone()),
        };
        Conv3xc {
            skip: part(&self.skip, Matrix::tap(&grad.weight, CENTRE).data, &g),
            first: part(&self.first, d_w0.data, &d_b0),
            middle: part(&self.middle, d_w1.data, &through_last),
            last: part(&self.last, d_w2.data, &g),
        }
    }
}

/// The names of all `Conv3XC` modules.
fn modules(params: &Parameters) -> Vec<String> {
    let names = params
        .keys()
        .filter_map(|name| name.strip_suffix(".sk.weight"));
    names.map(String::from).collect()
}

/// The parameters, and `{module}.eval_conv.weight` and `.bias` composed from the others.
pub fn compose_all(params: &Parameters) -> Parameters {
    let mut all = params.clone();
    for name in modules(params) {
        let composed = Conv3xc::read(params, &name).compose();
        composed.write(&mut all, &format!("{name}.eval_conv"));
    }
    all
}

/// Replaces the gradients of `eval_conv` by those of the tensors that it is composed from.
pub fn expand_gradients(params: &Parameters, mut grads: Parameters) -> Parameters {
    for name in modules(params) {
        let composed = format!("{name}.eval_conv");
        let grad = ConvTensors::read(&grads, &composed);
        grads.remove(&format!("{composed}.weight"));
        grads.remove(&format!("{composed}.bias"));
        let parts = Conv3xc::read(params, &name).compose_backward(&grad);
        parts.write(&mut grads, &name);
    }
    grads
}

/// A matrix in row-major order.
struct Matrix {
    rows: usize,
    columns: usize,
    data: Vec<f64>,
}

impl Matrix {
    fn zeros(rows: usize, columns: usize) -> Matrix {
        let data = vec![0.0; rows * columns];
        Matrix {
            rows,
            columns,
            data,
        }
    }

    /// A 1x1 weight `[out, in, 1, 1]`.
    fn of(weight: &Tensor) -> Matrix {
        Matrix::tap(weight, 0)
    }

    /// `[out, in]`: tap `t` of a weight `[out, in, kh, kw]`.
    fn tap(weight: &Tensor, t: usize) -> Matrix {
        let [rows, columns, kh, kw] = weight.nchw();
        let data = weight.data.iter().skip(t).step_by(kh * kw);
        Matrix {
            rows,
            columns,
            data: data.copied().collect(),
        }
    }

    fn store_tap(&self, weight: &mut Tensor, t: usize) {
        let slots = weight.data.iter_mut().skip(t).step_by(TAPS);
        slots.zip(&self.data).for_each(|(slot, v)| *slot = *v);
    }

    fn column(bias: &Tensor) -> Matrix {
        Matrix {
            rows: bias.data.len(),
            columns: 1,
            data: bias.data.clone(),
        }
    }

    fn transposed(&self) -> Matrix {
        let mut out = Matrix::zeros(self.columns, self.rows);
        for r in 0..self.rows {
            for c in 0..self.columns {
                out.data[c * self.rows + r] = self.data[r * self.columns + c];
            }
        }
        out
    }

    fn times(&self, other: &Matrix) -> Matrix {
        assert_eq!(self.columns, other.rows);
        let mut out = Matrix::zeros(self.rows, other.columns);
        for r in 0..self.rows {
            for k in 0..self.columns {
                let factor = self.data[r * self.columns + k];
                let [to, from] = [r, k].map(|row| row * other.columns..(row + 1) * other.columns);
                add_multiple(&mut out.data[to], factor, &other.data[from]);
            }
        }
        out
    }

    fn plus(&self, other: &Matrix) -> Matrix {
        assert_eq!([self.rows, self.columns], [other.rows, other.columns]);
        let pairs = self.data.iter().zip(&other.data);
        Matrix {
            data: pairs.map(|(a, b)| a + b).collect(),
            ..*self
        }
    }
}
