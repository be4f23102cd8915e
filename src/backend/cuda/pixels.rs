//! Lowering of what reads the staged batch value by value: unpacking, and the pixel losses.

use super::launch::{Arg, Lowering, int};
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

/// An f64 for every block, and the total.
pub(super) fn loss_workspace(o: &PixelLoss) -> u64 {
    8 * (loss_blocks(o) as u64 + 1)
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
    let total = o.slice.carry.map_or_else(|| l.at_bytes(workspace, 8 * blocks), |carry| l.at(carry));
    let whole = int(o.slice.of * e.h * e.w * 3)?;
    let mut args = vec![l.at(o.prediction), l.at(o.d_prediction), target, l.at(workspace), int(e.pixels())?, whole];
    args.extend(weights.map(Arg::Float));
    args.push(l.scalars()?);
    l.launch("pixel_loss", [blocks, 1, 1], 256, 256 * 8, args)?;
    let flags = i32::from(!o.slice.first) | i32::from(o.slice.last) << 1;
    let args = vec![l.at(workspace), total, l.at(o.metrics), int(blocks)?, Arg::Int(flags), whole, l.scalars()?];
    l.launch("finish_pixel_loss", [1, 1, 1], 32, 0, args)
}
