//! Helpers for all integration tests: the location of the reference data, golden trajectories,
//! child processes for single tests, and comparisons of numbers.

pub mod place;
pub mod process;
pub mod trajectory;

use safetensors::{Dtype, SafeTensors};

/// A tensor of any type as f64; the test fails if the name is absent.
pub fn tensor(file: &SafeTensors, name: &str) -> Vec<f64> {
    let view = file
        .tensor(name)
        .unwrap_or_else(|_| panic!("no tensor {name}"));
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => bytes
            .chunks_exact(4)
            .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
            .collect(),
        Dtype::F64 => bytes
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        Dtype::U8 => bytes.iter().map(|&b| f64::from(b)).collect(),
        other => panic!("{name} has type {other:?}"),
    }
}

/// `[N, C, H, W]` to `[N, H, W, C]`.
pub fn nhwc(x: &[f64], [n, c, h, w]: [usize; 4]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (i, out) in out.iter_mut().enumerate() {
        let (ci, xi, yi, ni) = (i % c, i / c % w, i / c / w % h, i / c / w / h);
        *out = x[((ni * c + ci) * h + yi) * w + xi] as f32;
    }
    debug_assert_eq!(x.len(), n * c * h * w);
    out
}

/// `|a - b| / |b|` in the L2 norm.
pub fn relative_error(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    let mut b = b.into_iter();
    for a in a {
        let Some(b) = b.next() else {
            panic!("more values than expected")
        };
        difference += (a - b) * (a - b);
        size += b * b;
    }
    assert!(b.next().is_none(), "fewer values than expected");
    (difference / size.max(f64::MIN_POSITIVE)).sqrt()
}

/// f32 to f64, for [`relative_error`].
pub fn wide(x: &[f32]) -> impl Iterator<Item = f64> + '_ {
    x.iter().map(|&v| f64::from(v))
}
