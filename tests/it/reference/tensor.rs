//! A tensor of the f64 reference: numbers and a shape. Depends on nothing; promises PyTorch's
//! layouts (activations `[N, C, H, W]`, convolution weights `[out, in / groups, kh, kw]`).

/// Numbers in row-major order. A scalar has the shape `[]` and one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Tensor {
    pub fn new(shape: &[usize], data: Vec<f64>) -> Tensor {
        assert_eq!(
            shape.iter().product::<usize>(),
            data.len(),
            "the shape {shape:?} does not fit {} values",
            data.len()
        );
        Tensor {
            shape: shape.to_vec(),
            data,
        }
    }

    pub fn zeros(shape: &[usize]) -> Tensor {
        Tensor::new(shape, vec![0.0; shape.iter().product()])
    }

    /// Uniform in `low..high`. Every value is rounded to f32, so that an f32 implementation can be
    /// given the very same numbers. The same seed gives the same values on every machine.
    pub fn random(shape: &[usize], low: f64, high: f64, seed: u64) -> Tensor {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut uniform = move || {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        };
        let count = shape.iter().product();
        let data = (0..count)
            .map(|_| f64::from((low + (high - low) * uniform()) as f32))
            .collect();
        Tensor::new(shape, data)
    }

    /// A tensor of the same shape with other values.
    pub fn with(&self, data: Vec<f64>) -> Tensor {
        Tensor::new(&self.shape, data)
    }

    /// Applies `f` to every value.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Tensor {
        self.with(self.data.iter().map(|&v| f(v)).collect())
    }

    /// Applies `f` to every pair of values of two tensors with the same shape.
    pub fn zip(&self, other: &Tensor, f: impl Fn(f64, f64) -> f64) -> Tensor {
        assert_eq!(self.shape, other.shape);
        let pairs = self.data.iter().zip(&other.data);
        self.with(pairs.map(|(&a, &b)| f(a, b)).collect())
    }

    /// Adds `other`, value by value.
    pub fn accumulate(&mut self, other: &Tensor) {
        assert_eq!(self.shape, other.shape);
        let pairs = self.data.iter_mut().zip(&other.data);
        pairs.for_each(|(a, b)| *a += b);
    }

    /// `[N, C, H, W]`; fails for a tensor without four dimensions.
    pub fn nchw(&self) -> [usize; 4] {
        self.shape[..]
            .try_into()
            .unwrap_or_else(|_| panic!("{:?} is not [N, C, H, W]", self.shape))
    }

    /// From values in the order `[N, H, W, C]`.
    pub fn from_nhwc([n, h, w, c]: [usize; 4], values: &[f64]) -> Tensor {
        let mut out = Tensor::zeros(&[n, c, h, w]);
        assert_eq!(values.len(), out.data.len());
        for (i, value) in values.iter().enumerate() {
            let (image, pixel, channel) = (i / c / (h * w), i / c % (h * w), i % c);
            out.data[(image * c + channel) * h * w + pixel] = *value;
        }
        out
    }

    /// The values of a `[N, C, H, W]` tensor in the order `[N, H, W, C]`.
    pub fn to_nhwc(&self) -> Vec<f64> {
        let [_, c, h, w] = self.nchw();
        let count = self.data.len();
        (0..count)
            .map(|i| {
                let (image, pixel, channel) = (i / c / (h * w), i / c % (h * w), i % c);
                self.data[(image * c + channel) * h * w + pixel]
            })
            .collect()
    }
}
