//! The operation [`Reconstruct`](crate::plan::Reconstruct): upsampling convolution, pixel shuffle,
//! `conv_out`, gain and base, computed as the 5x5 convolution of `folded_conv`. Training uses
//! Winograd's form F(2x2, 5x5), and so does inference of networks whose tiles begin at even rows
//! and columns; other networks use the direct form there, so that the bits do not depend on where a
//! tile begins. Depends on `tiling`, the row kernels, the base and the border's correction.

mod backward;
mod border_backward;
mod forward;
mod pack;

use super::border::MAX_FEATURES;
use super::operation::{CpuOperation, check_extent};
use super::simd::LANES;
use super::tasks::{Bands, Context, Workspace};
use crate::plan::{Reconstruct, ReconstructBack};
use anyhow::{Result, ensure};

/// Scales that [`super::base`] and this operation have inner loops for.
const SCALES: [usize; 4] = [2, 3, 4, 8];

/// Outputs of a Winograd tile along a side, LQ pixels.
const OUT: usize = 2;

/// Whether the forward pass uses Winograd's form.
fn winograd(op: &Reconstruct) -> bool {
    !op.tile_invariant || op.tile_alignment.is_multiple_of(OUT)
}

/// The bands of the forward pass. In inference they begin at whole tiles of Winograd's form, as the
/// bits must not depend on the height of the image.
pub fn bands(op: &Reconstruct) -> Bands {
    let bands = Bands::new(op.extent);
    if op.tile_invariant && winograd(op) {
        bands.aligned(OUT)
    } else {
        bands
    }
}

impl CpuOperation for Reconstruct {
    fn check(&self) -> Result<()> {
        let Reconstruct {
            extent,
            scale,
            features,
            ..
        } = *self;
        ensure!(
            SCALES.contains(&scale),
            "scale {scale}: the scales {SCALES:?} are supported"
        );
        ensure!(
            features > 0 && features.is_multiple_of(LANES) && features <= MAX_FEATURES,
            "{features} features: multiples of {LANES} up to {MAX_FEATURES} are supported"
        );
        check_extent(extent)?;
        check_extent(extent.scaled(scale))
    }

    fn workspace(&self) -> Workspace {
        forward::workspace(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        forward::forward(ctx, self);
    }
}

impl CpuOperation for ReconstructBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        backward::workspace_back(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        backward::backward(ctx, self);
    }
}
