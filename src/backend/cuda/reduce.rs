//! Sums over pixels in two stages: every block of a kernel writes its partial sums, `reduce_sums` adds them in block order in f64, to
//! those of the slices before, and a last kernel makes gradients of the totals. No atomics, so the same bits in every run.

use super::launch::{Arg, Lowering, int};
use crate::plan::{BufferId, ParamRange, Slice};
use anyhow::Result;

/// The sums of one operation: where partials and totals lie.
pub(super) struct Sums {
    /// f32 `[blocks][count]`.
    pub partials: Arg,
    /// f64 `[count]`: in the workspace, or where the slices of a micro-batch carry them.
    pub totals: Arg,
    count: usize,
    blocks: usize,
}

/// Workspace bytes for `count` sums of `blocks` blocks.
pub(super) fn workspace(count: usize, blocks: usize) -> u64 {
    partial_bytes(count, blocks) as u64 + 8 * count as u64
}

/// Bytes of the blocks' partial sums.
pub(super) fn partial_bytes(count: usize, blocks: usize) -> usize {
    (4 * count * blocks).next_multiple_of(8)
}

impl Sums {
    /// Sums whose places are known.
    pub fn new(partials: Arg, totals: Arg, count: usize, blocks: usize) -> Sums {
        Sums { partials, totals, count, blocks }
    }

    /// The only sums of an operation: partials at the start of its workspace, totals behind them or where slices carry them.
    pub fn of(l: &Lowering<'_>, workspace: BufferId, slice: Slice, count: usize, blocks: usize) -> Sums {
        let totals = match slice.carry {
            Some(carry) => l.at(carry),
            None => l.at_bytes(workspace, partial_bytes(count, blocks)),
        };
        Sums::new(l.at(workspace), totals, count, blocks)
    }

    /// Adds the partials to the totals.
    pub fn reduce(&self, l: &mut Lowering<'_>, slice: Slice) -> Result<()> {
        let args = vec![self.partials, self.totals, int(self.count)?, int(self.blocks)?, Arg::Int((!slice.first).into())];
        l.launch("reduce_sums", [self.count.div_ceil(64), 1, 1], 256, 256 * 8, args)
    }

    /// Writes (or, in later micro-batches, adds) totals from `first` on to the gradients of a range of parameters.
    pub fn store(&self, l: &mut Lowering<'_>, gradients: BufferId, first: usize, range: ParamRange) -> Result<()> {
        let Arg::At(buffer, at) = self.totals else { anyhow::bail!("totals without a place") };
        let args = vec![Arg::At(buffer, at + 8 * first as u64), l.element(gradients, range.offset), int(range.len)?, l.scalars()?];
        l.launch("store_gradient", [range.len.div_ceil(256), 1, 1], 256, 0, args)
    }
}
