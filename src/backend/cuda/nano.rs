//! Lowering of the fused Nano block and its gradients.

use super::launch::Lowering;
use super::reduce;
use super::sizing::SUM_BLOCKS;
use crate::plan::{NanoBlock, NanoBlockBack};
use anyhow::{Result, bail};

/// Pixels of one tile, which a block takes at a time.
const TILE_PIXELS: usize = 256;

/// Sums of one block: everything but gamma, whose gradient follows from them.
pub(super) fn sum_count(o: &NanoBlockBack) -> usize {
    let p = &o.forward.params;
    [p.conv1_weight, p.conv1_bias, p.dw_weight, p.dw_bias, p.conv2_weight, p.conv2_bias].iter().map(|r| r.len).sum()
}

fn sum_blocks(o: &NanoBlockBack) -> usize {
    o.forward.extent.pixels().div_ceil(TILE_PIXELS).min(SUM_BLOCKS as usize)
}

pub(super) fn workspace(o: &NanoBlockBack) -> u64 {
    reduce::workspace(sum_count(o), sum_blocks(o))
}

pub(super) fn forward(_: &mut Lowering<'_>, _: &NanoBlock) -> Result<()> {
    bail!("no kernel for nano block")
}

pub(super) fn backward(_: &mut Lowering<'_>, _: &NanoBlockBack) -> Result<()> {
    bail!("no kernel for nano block back")
}
