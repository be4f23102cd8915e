//! The order of a 3x3 convolution's weights in the parameter buffer. Both forms of the convolution,
//! direct and Winograd, pack from it. Depends on the plan's operations alone.

use crate::plan::Conv;

/// Index of a weight in PyTorch's order `[co][ci][ky][kx]`.
pub fn torch_index(c: &Conv, co: usize, ci: usize, ky: usize, kx: usize) -> usize {
    ((co * c.cin + ci) * 3 + ky) * 3 + kx
}
