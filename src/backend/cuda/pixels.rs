//! Lowering of what reads the staged batch value by value: unpacking, and the pixel losses.

use super::launch::{Arg, Lowering, int};
use super::reduce::{Sums, To};
use crate::plan::{PixelLoss, PixelLossKind, Target, Unpack};
use anyhow::Result;

pub(super) fn unpack(l: &mut Lowering<'_>, o: &Unpack) -> Result<()> {
    let b = o.batch;
    let args = vec![
        l.at_bytes(b.buffer, b.lq_of(0)),
        l.at_bytes(b.buffer, b.augment_of(0)),
        l.at(o.output),
        int(b.count)?,
        int(b.lq.0)?,
        int(b.lq.1)?,
    ];
    l.launch(
        "unpack",
        [(b.count * b.lq.0 * b.lq.1).div_ceil(256), 1, 1],
        256,
        0,
        args,
    )
}

/// Blocks of the pixel loss at most: a few for every multiprocessor of any card.
const LOSS_BLOCKS: usize = 1024;

/// An f64 for every block.
pub(super) fn loss_workspace() -> u64 {
    8 * LOSS_BLOCKS as u64
}

/// What every kernel that computes the losses is told: values that the mean is over, weights,
/// scalars.
pub(super) fn loss_terms(l: &Lowering<'_>, o: &PixelLoss) -> Result<[Arg; 5]> {
    let mut weights = [0f32; 3];
    for &(kind, weight) in &o.terms {
        weights[match kind {
            PixelLossKind::L1 => 0,
            PixelLossKind::Charbonnier => 1,
            PixelLossKind::Mse => 2,
        }] += weight;
    }
    let [l1, charbonnier, mse] = weights.map(Arg::Float);
    Ok([int(values(o))?, l1, charbonnier, mse, l.scalars()?])
}

fn values(o: &PixelLoss) -> usize {
    o.slice.of * o.extent.h * o.extent.w * 3
}

pub(super) fn loss(l: &mut Lowering<'_>, o: &PixelLoss) -> Result<()> {
    let blocks = o.extent.pixels().div_ceil(256).min(LOSS_BLOCKS);
    let target = match o.target {
        Target::Float(buffer) => l.at(buffer),
        Target::Subtracted(_) => Arg::Null,
    };
    let partials = l.at(l.workspace(o.workspace)?);
    let mut args = vec![
        l.at(o.prediction),
        l.at(o.d_prediction),
        target,
        partials,
        int(o.extent.pixels())?,
    ];
    args.extend(loss_terms(l, o)?);
    l.launch("pixel_loss", [blocks, 1, 1], 256, 256 * 8, args)?;
    add_up(l, o, blocks)
}

/// What is left of a loss of which every block has its part.
pub(super) fn add_up(l: &mut Lowering<'_>, o: &PixelLoss, blocks: usize) -> Result<()> {
    let sums = Sums::of_loss(l, l.workspace(o.workspace)?, o.slice, values(o), blocks)?;
    sums.later(l, o.slice, To::Loss(l.at(o.metrics)))
}
