//! Lowering of the operations that read the staged batch value by value: unpacking, and the pixel
//! losses (kernels/unpack.cu, kernels/loss.cu). Depends on the lowering's state and the sums.

use super::arguments::Address;
use super::constants::BLOCK_THREADS;
use super::launch::Shape;
use super::lowering::{Lowering, int};
use super::reduce::{self, BLOCK_SUM_BYTES, LossSum};
use super::signatures::{PIXEL_LOSS, PixelLossArguments, UNPACK, UnpackArguments};
use super::structural;
use crate::plan::{PixelLoss, PixelLossKind, Target, Unpack};
use anyhow::Result;

/// Lowers the unpacking of a batch.
pub(super) fn unpack(l: &mut Lowering<'_>, o: &Unpack) -> Result<()> {
    let b = o.batch;
    let arguments = UnpackArguments {
        lq: l.pixels_at(b.buffer, b.lq_of(0)),
        codes: l.codes_at(b.buffer, b.augment_of(0)),
        output: l.floats(o.output),
        images: int(b.count)?,
        h: int(b.lq.0)?,
        w: int(b.lq.1)?,
    };
    let pixels = b.count * b.lq.0 * b.lq.1;
    l.launch(
        &UNPACK,
        Shape::of(pixels.div_ceil(BLOCK_THREADS), 0),
        arguments,
    )
}

/// Blocks of the pixel loss at most: a few for every multiprocessor of any card.
const LOSS_BLOCKS: usize = 1024;

/// One f64 for every block, of whichever kernel computes the loss.
pub(super) fn loss_workspace(o: &PixelLoss) -> u64 {
    8 * LOSS_BLOCKS.max(structural::patches_of(o.extent)) as u64
}

/// The weights of the pixel losses, and what their mean is over.
#[derive(Default)]
pub(super) struct LossTerms {
    /// Values of the whole micro-batch, which the mean is over.
    pub whole: i32,
    /// Weight of the L1 loss.
    pub l1: f32,
    /// Weight of the Charbonnier loss.
    pub charbonnier: f32,
    /// Weight of the MSE loss.
    pub mse: f32,
}

/// The terms of a loss; a kind that it does not have has weight 0.
pub(super) fn loss_terms(o: &PixelLoss) -> Result<LossTerms> {
    let mut terms = LossTerms {
        whole: int(values(o))?,
        ..LossTerms::default()
    };
    for &(kind, weight) in &o.terms {
        *match kind {
            PixelLossKind::L1 => &mut terms.l1,
            PixelLossKind::Charbonnier => &mut terms.charbonnier,
            PixelLossKind::Mse => &mut terms.mse,
        } += weight;
    }
    Ok(terms)
}

fn values(o: &PixelLoss) -> usize {
    o.slice.of * o.extent.h * o.extent.w * 3
}

/// Lowers the pixel losses as a launch of their own.
pub(super) fn loss(l: &mut Lowering<'_>, o: &PixelLoss) -> Result<()> {
    let blocks = o.extent.pixels().div_ceil(BLOCK_THREADS).min(LOSS_BLOCKS);
    let workspace = l.workspace(o.workspace)?;
    let terms = loss_terms(o)?;
    let arguments = PixelLossArguments {
        prediction: l.floats(o.prediction),
        d_prediction: l.floats(o.d_prediction),
        target: match o.target {
            Target::Float(buffer) => l.floats(buffer),
            Target::Subtracted(_) => Address::NULL,
        },
        partials: l.doubles_at(workspace, 0),
        scalars: l.scalars()?,
        pixels: int(o.extent.pixels())?,
        whole: terms.whole,
        l1: terms.l1,
        charbonnier: terms.charbonnier,
        mse: terms.mse,
    };
    l.launch(&PIXEL_LOSS, Shape::of(blocks, BLOCK_SUM_BYTES), arguments)?;
    defer_loss(l, o, blocks)
}

/// Defers the sum of a loss of which `blocks` blocks have written their parts.
pub(super) fn defer_loss(l: &mut Lowering<'_>, o: &PixelLoss, blocks: usize) -> Result<()> {
    defer_sum(l, o, blocks, values(o))
}

/// The same where the blocks have written shares of the mean.
pub(super) fn defer_shares(l: &mut Lowering<'_>, o: &PixelLoss, blocks: usize) -> Result<()> {
    defer_sum(l, o, blocks, 1)
}

fn defer_sum(l: &mut Lowering<'_>, o: &PixelLoss, blocks: usize, values: usize) -> Result<()> {
    let workspace = l.workspace(o.workspace)?;
    let counts = (values, blocks);
    let sum = LossSum::new(l, workspace, o.slice.carry, o.metrics, counts);
    reduce::defer_loss(l, &sum, o.slice)
}
