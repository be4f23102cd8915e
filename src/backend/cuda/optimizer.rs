//! Lowering of the optimizer: the squares of the gradient by block, then norm, clip, Adam or AdamW
//! and EMA in one pass (kernels/optimizer.cu). Depends on the lowering's state and the sums.

use super::constants::BLOCK_THREADS;
use super::launch::Shape;
use super::lowering::{Lowering, int};
use super::reduce::{self, BLOCK_SUM_BYTES};
use super::signatures::{ADAM, AdamArguments, GRADIENT_SQUARES, GradientSquaresArguments};
use crate::plan::{OptimizerKind, Update};
use anyhow::Result;

/// Gradients of one block of the norm.
const NORM_ELEMENTS: usize = 1024;

fn norm_blocks(o: &Update) -> usize {
    o.trainable.div_ceil(NORM_ELEMENTS)
}

/// One f64 for each block of the norm.
pub(super) fn workspace(o: &Update) -> u64 {
    8 * norm_blocks(o) as u64
}

/// Lowers an update; pending sums are flushed, because it reads the gradients.
pub(super) fn update(l: &mut Lowering<'_>, o: &Update) -> Result<()> {
    reduce::flush(l)?;
    let (workspace, blocks) = (l.workspace(o.workspace)?, norm_blocks(o));
    let squares = l.doubles_at(workspace, 0);
    let arguments = GradientSquaresArguments {
        gradients: l.gradient(o.gradients, 0),
        partials: squares,
        scalars: l.scalars()?,
        count: int(o.trainable)?,
        each: int(NORM_ELEMENTS)?,
    };
    l.launch(
        &GRADIENT_SQUARES,
        Shape::of(blocks, BLOCK_SUM_BYTES),
        arguments,
    )?;
    let arguments = AdamArguments {
        parameters: l.parameter(o.parameters, 0),
        gradients: l.gradient(o.gradients, 0),
        moment1: l.floats(o.moment1),
        moment2: l.floats(o.moment2),
        ema: l.floats(o.ema),
        squares,
        metrics: l.doubles_at(o.metrics, 0),
        scalars: l.scalars()?,
        count: int(o.trainable)?,
        blocks: int(blocks)?,
        beta1: o.beta1 as f32,
        rest1: (1.0 - o.beta1) as f32,
        beta2: o.beta2 as f32,
        rest2: (1.0 - o.beta2) as f32,
        epsilon: o.epsilon as f32,
        // AdamW's decay is part of the scalars, since it changes with the learning rate
        penalty: if o.optimizer == OptimizerKind::Adam {
            o.weight_decay as f32
        } else {
            0.0
        },
    };
    l.launch(
        &ADAM,
        Shape::of(o.trainable.div_ceil(BLOCK_THREADS), 0),
        arguments,
    )
}
