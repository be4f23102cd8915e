//! SPAN's convolutions in composed form, and the chain rule to their eight tensors. Depends on the
//! products of small matrices in `product`. The composition is computed in f64, so that its result
//! is the exact one rounded once; its gradients in f32.
//!
//! With a input and b output channels, k a channel after the first 1x1 convolution (2a of them) and
//! m one after the 3x3 convolution (2b of them), and t one of nine taps:
//!
//! ```text
//! through[o, k, t] = sum over m of last[o, m] middle[m, k, t]
//! weight[o, i, t] = sum over k of first[k, i] through[o, k, t]  (+ skip[o, i] in the centre)
//! bias[o] = last_bias[o] + skip_bias[o] + sum over m of last[o, m] middle_bias[m]
//!           + sum over k, t of first_bias[k] through[o, k, t]
//! ```
//!
//! `first_bias` is treated as one more input channel of `first`, whose value is always 1.

mod backward;
mod forward;
mod product;
#[cfg(test)]
mod tests;

use super::arena::SharedPtr;
use super::operation::{CpuOperation, MAX_CHANNELS};
use super::simd::LANES;
use super::tasks::{Context, Workspace};
use crate::plan::{BufferId, ComposeConv, ComposeConvBack, ParamRange};
use anyhow::{Result, ensure};

/// Rows of a task: output channels, or those of a tensor whose gradient is computed.
const ROWS: usize = 8;
/// Taps of a 3x3 kernel.
const TAPS: usize = 9;

/// The sizes that follow from the channels.
#[derive(Clone, Copy)]
struct Sizes {
    /// Input channels.
    a: usize,
    /// Output channels.
    b: usize,
    /// Values of a row of `middle` and of `through`, `[2a, 9]`.
    row: usize,
    /// Input channels and the one of `first_bias`, rounded up to whole vectors of f32.
    inputs: usize,
    /// Channels after the first convolution, rounded up to whole vectors of f32.
    inner: usize,
}

impl Sizes {
    fn new(op: &ComposeConv) -> Sizes {
        Sizes {
            a: op.cin,
            b: op.cout,
            row: 2 * op.cin * TAPS,
            inputs: (op.cin + 1).next_multiple_of(LANES),
            inner: (2 * op.cin).next_multiple_of(LANES),
        }
    }

    /// Tasks for that many rows.
    fn tasks(rows: usize) -> usize {
        rows.div_ceil(ROWS)
    }
}

/// The eight tensors, or their gradients.
#[derive(Clone, Copy)]
struct Tensors {
    skip: [SharedPtr<f32>; 2],
    first: [SharedPtr<f32>; 2],
    middle: [SharedPtr<f32>; 2],
    last: [SharedPtr<f32>; 2],
}

impl Tensors {
    fn new(ctx: &Context<'_>, op: &ComposeConv, buffer: BufferId) -> Tensors {
        let pointers = |ranges: [ParamRange; 2]| ranges.map(|range| ctx.param(buffer, range));
        Tensors {
            skip: pointers(op.params.skip),
            first: pointers(op.params.first),
            middle: pointers(op.params.middle),
            last: pointers(op.params.last),
        }
    }
}

impl CpuOperation for ComposeConv {
    fn check(&self) -> Result<()> {
        let (a, b) = (self.cin, self.cout);
        ensure!(
            (1..=MAX_CHANNELS).contains(&a) && (1..=MAX_CHANNELS).contains(&b),
            "{a} to {b} channels: 1 to {MAX_CHANNELS} are supported"
        );
        let expected = [
            (self.params.skip, [a * b, b]),
            (self.params.first, [2 * a * a, 2 * a]),
            (self.params.middle, [4 * a * b * TAPS, 2 * b]),
            (self.params.last, [2 * b * b, b]),
        ];
        for (ranges, lens) in expected {
            ensure!(
                ranges.map(|range| range.len) == lens,
                "tensors of {ranges:?}, not of {lens:?} values"
            );
        }
        Ok(())
    }

    fn workspace(&self) -> Workspace {
        forward::workspace(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        forward::forward(ctx, self);
    }
}

impl CpuOperation for ComposeConvBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        backward::workspace(&self.forward)
    }

    fn run(&self, ctx: &Context<'_>) {
        backward::backward(ctx, self);
    }
}
