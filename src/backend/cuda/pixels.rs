//! Lowering of what reads the staged batch value by value: unpacking, and the pixel losses.

use super::launch::{Arg, Lowering, int};
use super::reduce::{Sums, To};
use super::sizing::SUM_BLOCKS;
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
    l.launch("unpack", [(b.count * b.lq.0 * b.lq.1).div_ceil(256), 1, 1], 256, 0, args)
}

/// Blocks of the pixel loss: fixed, so that the order of its sum is.
fn loss_blocks(o: &PixelLoss) -> usize {
    o.extent.pixels().div_ceil(256).min(SUM_BLOCKS as usize)
}

/// An f64 for every block.
pub(super) fn loss_workspace(o: &PixelLoss) -> u64 {
    8 * loss_blocks(o) as u64
}

pub(super) fn loss(l: &mut Lowering<'_>, o: &PixelLoss) -> Result<()> {
    let mut weights = [0f32; 3];
    for &(kind, weight) in &o.terms {
        weights[match kind {
            PixelLossKind::L1 => 0,
            PixelLossKind::Charbonnier => 1,
            PixelLossKind::Mse => 2,
        }] += weight;
    }
    let target = match o.target {
        Target::Float(buffer) => l.at(buffer),
        Target::Subtracted(_) => Arg::Null,
    };
    let e = o.extent;
    let (workspace, blocks) = (l.workspace(o.workspace)?, loss_blocks(o));
    let whole = o.slice.of * e.h * e.w * 3;
    let mut args = vec![l.at(o.prediction), l.at(o.d_prediction), target, l.at(workspace), int(e.pixels())?, int(whole)?];
    args.extend(weights.map(Arg::Float));
    args.push(l.scalars()?);
    l.launch("pixel_loss", [blocks, 1, 1], 256, 256 * 8, args)?;
    Sums::of_loss(l, workspace, o.slice, whole, blocks)?.later(l, o.slice, To::Loss(l.at(o.metrics)))
}
