//! The forward operation of a Stream block.

use super::super::arena::SharedPtr;
use super::super::rows::{RowProduct, RowStart, row_product};
use super::super::simd::{LANES, Simd};
use super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache};
use super::pack::{Packed, TAPS, pack};
use super::rows::{Gate, Taps, row_gate};
use super::{FEATURES, GROUP, GROUPS, HIDDEN, PIECE, Projected, REACH, Ring, Strip, pieces};
use crate::plan::StreamBlock;

/// The rings of the forward operation: seven rows of x, and one row of what is read once.
type Rows = Projected<{ 2 * REACH + 1 }, 1>;

/// Columns on each side of a strip: one of p, and the reach of the convolutions on x.
const MARGIN: usize = 1 + REACH;

/// Workspace of the forward operation.
pub fn workspace(op: &StreamBlock) -> Workspace {
    let columns = Strip::row_columns(op.extent.w, MARGIN);
    Workspace {
        shared: Packed::FORWARD,
        scratch: Rows::floats(columns) + PIECE * HIDDEN,
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a StreamBlock,
    parts: WorkspaceParts,
    bands: Bands,
    /// This and the output: `[N, h, w, F]`.
    input: SharedPtr<f32>,
    output: SharedPtr<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (w, h) = (self.op.extent.w, self.op.extent.h);
        let (image, start, end) = self.bands.task(task);
        let columns = Strip::row_columns(w, MARGIN);
        for strip in Strip::all(w, MARGIN) {
            // SAFETY: rows `start..end` of the output are this task's, and the scratch has room for
            // the rings and m by `workspace`. The rest is the contract of `Task::run`.
            unsafe {
                let mut scratch = self.parts.scratch().at(0);
                let rows = Rows {
                    weights: self.parts.shared(),
                    input: self.input,
                    image,
                    h,
                    strip,
                    reach: 1,
                    x: Ring::take(&mut scratch, columns),
                    u: Ring::take(&mut scratch, columns),
                    t: Ring::take(&mut scratch, columns),
                    p: Ring::take(&mut scratch, columns),
                };
                let first = start as isize - 1;
                for row in first - REACH as isize..first + REACH as isize {
                    rows.load(row);
                }
                for row in first..=end as isize {
                    rows.fill::<S>(row);
                    // the first output row needs three rows of p in the ring
                    if row > start as isize {
                        self.output_row::<S>(&rows, row as usize - 1, scratch);
                    }
                }
            }
        }
        // SAFETY: `Isa::run` chose S for this processor
        unsafe { S::fence() }
    }
}

impl Forward<'_> {
    /// Writes row `y` of the strip to the output; `m` is room for a piece of m.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose row this is; the rows of p around `y` are in the ring,
    /// and `m` has room for `[PIECE, HIDDEN]` values.
    #[inline(always)]
    unsafe fn output_row<S: Simd>(&self, rows: &Rows, y: usize, m: *mut f32) {
        let (strip, weights) = (rows.strip, rows.weights);
        // SAFETY: `pack` wrote the weights, and a pixel is F = 32 values, so pixels begin at
        // multiples of 64 bytes; the rest is the caller's contract
        unsafe {
            for (c, n) in pieces((strip.start, strip.end)) {
                for group in 0..GROUPS {
                    let taps = Taps {
                        rows: rows.p.around(y as isize, 1, group, strip.at(c, 1)),
                        weights: weights.at(Packed::GATE + group * TAPS),
                    };
                    let gate = Gate {
                        taps,
                        bias: weights.at(Packed::GATE_BIAS + group * GROUP),
                        m: m.add(group * LANES),
                    };
                    row_gate::<S>(gate, n);
                }
                let at = ((rows.image * rows.h + y) * strip.w + c) * FEATURES;
                let (x, bias) = (self.input.at(at), weights.at(Packed::OUT_BIAS));
                row_product::<S, HIDDEN>(&RowProduct {
                    rows: &[m.cast_const()],
                    stride: HIDDEN,
                    taps: HIDDEN,
                    weights: weights.at(Packed::OUT),
                    lanes: FEATURES,
                    start: RowStart::RowPlusBias(x, bias),
                    out: self.output.at(at),
                    w: n,
                    non_temporal: exceeds_cache(self.op.extent, FEATURES),
                });
            }
        }
    }
}

/// Runs the forward operation.
pub fn forward(ctx: &Context<'_>, op: &StreamBlock) {
    let parts = ctx.parts(op.workspace, workspace(op));
    pack(ctx, op, parts, false);
    let bands = Bands::new(op.extent);
    let task = Forward {
        op,
        parts,
        bands,
        input: ctx.floats(op.input),
        output: ctx.floats(op.output),
    };
    ctx.parallel(bands.tasks(), &task);
}
