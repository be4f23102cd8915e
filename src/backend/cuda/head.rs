//! Lowering of the head, base + gain x conv_out, and its gradients.

use super::launch::Lowering;
use super::reduce;
use super::sizing::SUM_BLOCKS;
use crate::plan::{Head, HeadBack};
use anyhow::{Result, bail};

/// HR pixels of one tile, which a block takes at a time.
const TILE_PIXELS: usize = 256;

/// Sums of one block: weights and bias; the gradient of the gain follows from them.
pub(super) fn sum_count(o: &HeadBack) -> usize {
    o.forward.weight.len + o.forward.bias.len
}

fn sum_blocks(o: &HeadBack) -> usize {
    let h = &o.forward;
    h.extent.scaled(h.scale).pixels().div_ceil(TILE_PIXELS).min(SUM_BLOCKS as usize)
}

pub(super) fn workspace(o: &HeadBack) -> u64 {
    reduce::workspace(sum_count(o), sum_blocks(o))
}

pub(super) fn forward(_: &mut Lowering<'_>, _: &Head) -> Result<()> {
    bail!("no kernel for head")
}

pub(super) fn backward(_: &mut Lowering<'_>, _: &HeadBack) -> Result<()> {
    bail!("no kernel for head back")
}
