//! The forward pass. Depends on the rounded rows and the row products.

use super::super::super::arena::SharedPtr;
use super::super::super::bf16::{Bf16Unit, Session, Start, as_floats};
use super::super::super::simd::{LANES, Simd};
use super::super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts};
use super::super::{pack_channels, row_activation, slope_values};
use super::rows::{RoundedRows, activated_floats, row_values};
use super::weights::Pack;
use super::{Ahead, Output, RowProduct, halves, pixel_steps, reach, rows_together};
use crate::plan::Conv;

/// Slots of the ring: the rows that are computed together read these.
fn slots(c: &Conv) -> usize {
    rows_together(c.extent.w) + 2 * reach(c)
}

/// f32 values of the ring.
fn ring_floats(c: &Conv) -> usize {
    as_floats(slots(c) * row_values(c.extent.w, c.input_stride, reach(c)))
}

/// Workspace of the forward operation. Shared: weights, biases and slopes. Scratch: the ring of
/// input rows, room to activate them, and narrow rows of the output.
pub fn workspace(c: &Conv) -> Workspace {
    let product = RowProduct::forward(c);
    Workspace {
        shared: as_floats(product.packed()) + c.output_stride + slope_values(c),
        scratch: ring_floats(c)
            + activated_floats(c.input_stride).next_multiple_of(LANES)
            + product.narrow(),
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a Conv,
    unit: Bf16Unit,
    parts: WorkspaceParts,
    bands: Bands,
    /// `[N, h, w, input_stride]`
    input: SharedPtr<f32>,
    /// `[N, h, w, output_stride]`
    output: SharedPtr<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let c = self.op;
        let (w, h, reach) = (c.extent.w, c.extent.h, reach(c) as isize);
        let (image, start, end) = self.bands.task(task);
        let product = RowProduct::forward(c);
        let session = Session::begin(self.unit);
        // SAFETY: rows `start..end` of the output are this task's, the scratch holds the ring and
        // both rooms, and `output_stride` is a multiple of 16 (`check`). The rest is the contract of
        // `Task::run`.
        unsafe {
            let (shared, scratch) = (self.parts.shared(), self.parts.scratch());
            let bias = shared.at(as_floats(product.packed()));
            let activated = scratch.at(ring_floats(c));
            let inputs = RoundedRows {
                source: self.input,
                activation: row_activation(c, bias.add(c.output_stride)),
                image,
                h,
                w,
                c: c.input_stride,
                pad: reach as usize,
                slots: slots(c),
                ring: halves(scratch.at(0)),
                activated: SharedPtr::new(activated),
            };
            let row = w * c.output_stride;
            let mut loaded = start as isize - reach;
            for y in (start..end).step_by(rows_together(w)) {
                let rows = rows_together(w).min(end - y);
                while loaded < (y + rows) as isize + reach {
                    inputs.load::<S>(loaded);
                    loaded += 1;
                }
                let outputs = Output {
                    first: self.output.at((image * h + y) * row),
                    stride: row,
                    rows,
                    narrow: activated.add(activated_floats(c.input_stride).next_multiple_of(LANES)),
                };
                let input =
                    |r: usize, ky: usize| inputs.row((y + r + ky) as isize - reach).cast_const();
                let weights = halves(shared.at(0)).at(0).cast_const();
                let next = loaded as usize;
                let count = rows_together(w).min(h.saturating_sub(next));
                let calls = rows * (c.output_stride / LANES).div_ceil(2) * pixel_steps(w);
                let following = rows_together(w).min(end - y - rows);
                let written = self.output.at((image * h + y + rows) * row).cast_const();
                let written = (written, following * row);
                let mut ahead = Ahead::new(&[&inputs], (next, count), written, calls);
                let factors = (weights, Start::Row(bias));
                product.run::<S>(&session, input, factors, &outputs, &mut ahead);
            }
        }
    }
}

/// Runs the forward operation.
pub fn forward(ctx: &Context<'_>, op: &Conv, unit: Bf16Unit) {
    let parts = ctx.parts(op.workspace, workspace(op));
    let (product, shared) = (RowProduct::forward(op), parts.shared());
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    unsafe {
        Pack {
            op,
            product,
            weight: ctx.param(op.parameters, op.weight),
            out: halves(shared.at(0)),
            backward: false,
        }
        .run(ctx);
        let bias = shared.at(as_floats(product.packed()));
        pack_channels(ctx, op, Some(bias), bias.add(op.output_stride));
    }
    let bands = Bands::new(op.extent);
    let task = Forward {
        op,
        unit,
        parts,
        bands,
        input: ctx.floats(op.input),
        output: ctx.floats(op.output),
    };
    ctx.parallel(bands.tasks(), &task);
}
