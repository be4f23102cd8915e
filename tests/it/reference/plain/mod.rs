//! The operations of the networks, forward and backward, as plain loops over f64 tensors in
//! `[N, C, H, W]`. A fast kernel is compared with these functions. Depends on `tensor` and `erf`
//! alone; promises to be obvious rather than fast. A function `x_backward` takes the gradient of a
//! scalar with respect to the output of `x` and returns the gradients with respect to its inputs.

pub mod convolution;
pub mod pointwise;
pub mod resampling;

pub use convolution::*;
pub use pointwise::*;
pub use resampling::*;
