//! Lowering of the optimizer: the squares of the gradient in blocks, then norm, clip, Adam or AdamW
//! and EMA in one pass.

use super::launch::{Arg, Lowering, int};
use crate::plan::{OptimizerKind, Update};
use anyhow::Result;

/// Elements of one block of the norm.
const NORM_ELEMENTS: usize = 1024;

fn norm_blocks(o: &Update) -> usize {
    o.trainable.div_ceil(NORM_ELEMENTS)
}

/// An f64 a block.
pub(super) fn workspace(o: &Update) -> u64 {
    8 * norm_blocks(o) as u64
}

pub(super) fn update(l: &mut Lowering<'_>, o: &Update) -> Result<()> {
    // it takes the gradients
    l.add_up()?;
    let (workspace, blocks) = (l.workspace(o.workspace)?, norm_blocks(o));
    let args = vec![
        l.at(o.gradients),
        l.at(workspace),
        int(o.trainable)?,
        int(NORM_ELEMENTS)?,
        l.scalars()?,
    ];
    l.launch("gradient_squares", [blocks, 1, 1], 256, 256 * 8, args)?;
    let rest = |share: f64| [Arg::Float(share as f32), Arg::Float((1.0 - share) as f32)];
    let mut args = vec![
        l.at(o.parameters),
        l.at(o.gradients),
        l.at(o.moment1),
        l.at(o.moment2),
        l.at(o.ema),
    ];
    args.extend([
        l.at(workspace),
        l.at(o.metrics),
        int(o.trainable)?,
        int(blocks)?,
    ]);
    args.extend(rest(o.beta1).into_iter().chain(rest(o.beta2)));
    // AdamW's decay is part of the scalars, since it goes with the learning rate
    let penalty = if o.optimizer == OptimizerKind::Adam {
        o.weight_decay
    } else {
        0.0
    };
    args.extend([
        Arg::Float(o.epsilon as f32),
        Arg::Float(penalty as f32),
        l.scalars()?,
    ]);
    l.launch("adam", [o.trainable.div_ceil(256), 1, 1], 256, 0, args)
}
