//! Lowering of the structural losses (SSIM, MS-SSIM), a few images' planes at a time.

use super::launch::Lowering;
use super::sizing::STRUCTURAL_IMAGES;
use crate::backend::cpu::structural::{Similarity, scratch_floats};
use crate::plan::{StructuralLoss, StructuralLossKind};
use anyhow::{Result, bail};

/// The planes of the images at work, and two f64 a term.
pub(super) fn workspace(o: &StructuralLoss) -> u64 {
    let kind = |kind| match kind {
        StructuralLossKind::Ssim => Similarity::Ssim,
        StructuralLossKind::MultiScale => Similarity::MultiScale { luminance: false },
    };
    let image = o.terms.iter().map(|&(k, _)| scratch_floats(kind(k), o.extent.h, o.extent.w)).max().unwrap_or(0);
    4 * (image * o.extent.n.min(STRUCTURAL_IMAGES)) as u64 + 16 * o.terms.len() as u64
}

pub(super) fn loss(_: &mut Lowering<'_>, _: &StructuralLoss) -> Result<()> {
    bail!("no kernel for structural loss")
}
