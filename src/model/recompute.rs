//! The levels at which a training plan trades memory for work, and what they mean for these
//! networks. Depends on nothing.

use serde::{Deserialize, Serialize};

/// What a training plan keeps between forward and backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// The same as block: a fused block has nothing else to keep, since reading its inside back
    /// would cost more than making it again
    None,
    /// Only the blocks' inputs are kept; the HR tail runs on the whole micro-batch at once
    #[default]
    Block,
    /// The HR tail, from conv_mid to the loss and back, also runs a few images at a time, so that
    /// nothing of HR size exists for the micro-batch; the same bits
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

/// HR pixels of a slice at least, where the micro-batch has them: enough threads for a GPU and for
/// the cores of a CPU.
const SLICE_PIXELS: usize = 1 << 17;

impl Recompute {
    /// Images of one slice of the HR tail, for a micro-batch of images of so many HR pixels each.
    pub fn slice_images(self, batch: usize, hr_pixels: usize) -> usize {
        match self {
            Recompute::None | Recompute::Block => batch,
            Recompute::Full => (SLICE_PIXELS / hr_pixels.max(1)).clamp(1, batch.max(1)),
        }
    }
}
