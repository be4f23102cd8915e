//! How much a training plan recomputes in order to need less memory. Depends on nothing.

use serde::{Deserialize, Serialize};

/// What a training plan keeps between the forward and the backward pass. The result has the same
/// bits in every case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Every value is kept. A fused block (those of Nano and Stream) has none but its input: reading
    /// more back would cost more than computing it again
    None,
    /// Of a block only its input is kept; everything of HR size exists for the whole micro-batch at
    /// once
    #[default]
    Block,
    /// In addition, the network runs on a few images at a time from conv_mid to the loss and back
    /// (Nano and Stream) or as a whole (the others), so that nothing of HR size exists for the whole
    /// micro-batch; the result has the same bits
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

/// Most operations of all slices together: each slice has its own, and a plan of very many takes
/// long to make.
const MAX_OPERATIONS: usize = 1 << 13;
/// Operations of a block in one slice: forward, again, and backward.
const OPERATIONS_PER_BLOCK: usize = 50;
/// Most slices of a micro-batch.
const MAX_SLICES: usize = 128;

impl Recompute {
    /// Images in one slice, for a micro-batch of `batch` images with `hr_pixels` HR pixels each, in a
    /// network of `blocks` blocks that are computed again.
    pub fn slice_images(self, batch: usize, hr_pixels: usize, blocks: usize) -> usize {
        match self {
            Recompute::None | Recompute::Block => batch,
            Recompute::Full => {
                let slices = MAX_OPERATIONS / (OPERATIONS_PER_BLOCK * blocks).max(1);
                let fewest = batch.div_ceil(slices.clamp(1, MAX_SLICES));
                let enough = (SLICE_PIXELS / hr_pixels.max(1)).max(fewest);
                enough.clamp(1, batch.max(1))
            }
        }
    }
}
