//! How much a training plan recomputes in order to need less memory. Depends on nothing.

use serde::{Deserialize, Serialize};

/// What a training plan keeps between the forward and the backward pass. The result has the same
/// bits in every case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// The same as block: a fused block keeps nothing else, because reading its intermediate values
    /// back would cost more than computing them again
    None,
    /// Only the blocks' inputs are kept; everything of HR size exists for the whole micro-batch at
    /// once
    #[default]
    Block,
    /// In addition, the part from conv_mid to the loss and back runs on a few images at a time, so
    /// that nothing of HR size exists for the whole micro-batch; the result has the same bits
    Full,
}

impl std::fmt::Display for Recompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Recompute::None => "none",
            Recompute::Block => "block",
            Recompute::Full => "full",
        })
    }
}

/// Fewest HR pixels of a slice, if the micro-batch has as many: enough parallel work for a GPU and
/// for the cores of a CPU.
const SLICE_PIXELS: usize = 1 << 17;

/// Most slices of a micro-batch: each has operations of its own, and a plan of very many takes long
/// to make.
const MAX_SLICES: usize = 128;

impl Recompute {
    /// Images in one slice, for a micro-batch of `batch` images with `hr_pixels` HR pixels each.
    pub fn slice_images(self, batch: usize, hr_pixels: usize) -> usize {
        match self {
            Recompute::None | Recompute::Block => batch,
            Recompute::Full => {
                let enough = (SLICE_PIXELS / hr_pixels.max(1)).max(batch.div_ceil(MAX_SLICES));
                enough.clamp(1, batch.max(1))
            }
        }
    }
}
