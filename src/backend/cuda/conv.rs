//! Lowering of the 3x3 convolutions and their gradients.

use super::launch::Lowering;
use super::reduce;
use super::sizing::SUM_BLOCKS;
use crate::plan::{Conv, ConvBack};
use anyhow::{Result, bail};

/// LQ pixels of one tile, which a block takes at a time.
const TILE_PIXELS: usize = 256;

/// Sums of one block: weights and bias, in the order of the parameters.
pub(super) fn sum_count(o: &ConvBack) -> usize {
    o.forward.weight.len + o.forward.bias.len
}

fn sum_blocks(o: &ConvBack) -> usize {
    o.forward.extent.pixels().div_ceil(TILE_PIXELS).min(SUM_BLOCKS as usize)
}

pub(super) fn workspace(o: &ConvBack) -> u64 {
    reduce::workspace(sum_count(o), sum_blocks(o))
}

pub(super) fn forward(_: &mut Lowering<'_>, _: &Conv) -> Result<()> {
    bail!("no kernel for conv")
}

pub(super) fn backward(_: &mut Lowering<'_>, _: &ConvBack) -> Result<()> {
    bail!("no kernel for conv back")
}
