//! The operations of the networks, forward and backward, as plain loops over f64 tensors in
//! `[N, C, H, W]`. A fast kernel is compared with these functions. Depends on `tensor` and `erf`
//! alone; promises to be obvious rather than fast. A function `x_backward` takes the gradient of a
//! scalar with respect to the output of `x` and returns the gradients with respect to its inputs.
//!
//! A test of a kernel that works on `[N, H, W, C]` converts on both sides:
//!
//! ```text
//! let x = Tensor::from_nhwc([n, h, w, c], &input);
//! let expected = plain::conv2d(&x, &weight, &bias, Convolution::dense(3)).to_nhwc();
//! let [d_x, d_weight, d_bias] = plain::conv2d_backward(&x, &weight, &grad, Convolution::dense(3));
//! ```

pub mod attention;
pub mod convolution;
pub mod linear;
pub mod normalisation;
pub mod pointwise;
pub mod resampling;

pub use attention::*;
pub use convolution::*;
pub use linear::*;
pub use normalisation::*;
pub use pointwise::*;
pub use resampling::*;
