//! The operation [`Reconstruct`](crate::plan::Reconstruct): upsampling convolution, pixel shuffle,
//! `conv_out`, gain and base, computed as the 5x5 convolution of `folded_conv`. Training uses
//! Winograd's form F(2x2, 5x5); inference uses the direct form, so that its bits do not depend on
//! where a tile begins. Depends on `tiling`, the row kernels, the base and the border's correction.

mod backward;
mod border_backward;
mod forward;
mod pack;

pub use backward::{backward, workspace_back};
pub use forward::{forward, workspace};

/// Outputs of a Winograd tile along a side, LQ pixels.
const OUT: usize = 2;
