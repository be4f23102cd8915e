//! The backward operation of a Stream block. It recomputes everything up to m from the block's
//! input, one row before the gradients that need it. "Gradient of" a value means that of the loss
//! with respect to it.
//!
//! A task computes the gradients of dw1's and dw3's outputs for the rows of its band alone. Their
//! contribution to the input's gradient in the three rows above and below the band goes to the
//! task's border in the workspace, and is added to those rows after all tasks have finished:
//! recomputing the gradients for six more rows would add an eighth to the time of a band of 32.

mod steps;

use super::super::arena::SharedPtr;
use super::super::simd::{LANES, Simd};
use super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts};
use super::pack::{Packed, SQUARE, TAPS, pack};
use super::rows::add_row;
use super::{FEATURES, GROUP, GROUPS, HIDDEN, PIECE, Projected, REACH, Ring, Strip, place};
use crate::plan::{ParamRange, StreamBlock, StreamBlockBack};

/// The rings of the recomputed rows. The gradients of a row of p are computed two rows after p
/// itself. They need t and the outputs of dw1 and dw3 of the same row, and x from three rows above
/// it to three rows below.
type Rows = Projected<{ 2 * REACH + 3 }, 3>;

/// Columns on each side of a strip for which the gradients of dw1's and dw3's outputs, the gradient
/// of the gate's output, and p are computed.
const REACH_DW: usize = REACH;
const REACH_GATE: usize = REACH_DW + 1;
const REACH_P: usize = REACH_GATE + 1;
/// Columns of x on each side of a strip.
const MARGIN: usize = REACH_P + REACH;

/// The place of each sum in the partial of a backward task, f32 elements.
struct Sums;

impl Sums {
    /// Gradients of the taps `[ky][kx][f]` of dw1, then of dw3.
    const DW: usize = 0;
    /// Gradients of their biases, `[2][f]`.
    const DW_BIAS: usize = Self::DW + 2 * TAPS;
    /// Gradient of fuse, `[input][output]`.
    const FUSE: usize = Self::DW_BIAS + 2 * FEATURES;
    /// `[f]`
    const FUSE_BIAS: usize = Self::FUSE + 2 * SQUARE;
    /// Gradient of proj, `[group][f][GROUP]`.
    const PROJ: usize = Self::FUSE_BIAS + FEATURES;
    /// `[group][GROUP]`
    const PROJ_BIAS: usize = Self::PROJ + GROUPS * SQUARE;
    /// Gradient of the gate's taps, `[group][ky][kx][GROUP]`.
    const GATE: usize = Self::PROJ_BIAS + GROUPS * GROUP;
    /// `[group][GROUP]`
    const GATE_BIAS: usize = Self::GATE + GROUPS * TAPS;
    /// Sum of d output x m, `[f][e]`. Its product with gamma is the gradient of out; its product
    /// with out is the gradient of gamma.
    const PRODUCT: usize = Self::GATE_BIAS + GROUPS * GROUP;
    /// Sum of d output, `[f]`.
    const D_OUTPUT: usize = Self::PRODUCT + FEATURES * HIDDEN;
    /// Elements of all sums.
    const LEN: usize = Self::D_OUTPUT + FEATURES;
}

/// f32 values of a task's border `[2 * REACH][w][F]`: the rows above the band, then those below; 0
/// if a band is a whole image.
fn border(op: &StreamBlock) -> usize {
    if op.extent.h > Bands::new(op.extent).rows() {
        2 * REACH * op.extent.w * FEATURES
    } else {
        0
    }
}

/// The place of the first task's border in the shared part.
const BORDERS: usize = Packed::BACKWARD.next_multiple_of(LANES);

/// Workspace of the backward operation.
pub fn workspace(op: &StreamBlockBack) -> Workspace {
    let block = &op.forward;
    let columns = Strip::row_columns(block.extent.w, MARGIN);
    let tasks = Bands::new(block.extent).tasks();
    Workspace {
        shared: BORDERS + tasks * border(block),
        partial: Sums::LEN,
        tasks,
        scratch: Rows::floats(columns)
            + Ring::<3, GROUPS>::floats(columns)
            + Ring::<{ 2 * REACH + 1 }, 2>::floats(columns)
            + Ring::<1, 1>::floats(columns)
            + PIECE * (HIDDEN + GROUPS * GROUP + FEATURES),
    }
}

struct Backward<'a> {
    op: &'a StreamBlock,
    parts: WorkspaceParts,
    bands: Bands,
    /// This and the gradients: `[N, h, w, F]`.
    input: SharedPtr<f32>,
    d_output: SharedPtr<f32>,
    d_input: SharedPtr<f32>,
}

/// One strip of the band of a backward task, and its memory.
struct StripOfBand<'a> {
    task: &'a Backward<'a>,
    /// First row.
    start: usize,
    /// The row after the last one.
    end: usize,
    rows: Rows,
    /// Gradient of the output of `gate`.
    d_gate: Ring<3, GROUPS>,
    /// Gradient of the output of dw1, then of dw3.
    d_dw: Ring<{ 2 * REACH + 1 }, 2>,
    /// A row of zeros, for the rows of `d_dw` outside the band.
    zeros: Ring<1, 1>,
    /// A piece of the gradient of m, and then of m, `[PIECE, E]`.
    m: *mut f32,
    /// A piece of the gradient of p, `[group][PIECE][GROUP]`.
    d_p: *mut f32,
    /// A piece of the gradient of t, `[PIECE, F]`.
    d_t: *mut f32,
    /// The task's partial, laid out as [`Sums`].
    partial: SharedPtr<f32>,
    /// The task's border.
    border: *mut f32,
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (w, h) = (self.op.extent.w, self.op.extent.h);
        let (image, start, end) = self.bands.task(task);
        let columns = Strip::row_columns(w, MARGIN);
        // SAFETY: rows `start..end` of `d_input`, the partial and the border are this task's, and
        // the scratch has room for the pieces by `workspace`. The rest is the contract of
        // `Task::run`.
        unsafe {
            let partial = self.parts.partial(task);
            partial.at(0).write_bytes(0, Sums::LEN);
            let shared = self.parts.shared();
            let border = shared.at(BORDERS + task * border(self.op));
            for strip in Strip::all(w, MARGIN) {
                let mut scratch = self.parts.scratch().at(0);
                let rows = Rows {
                    weights: shared,
                    input: self.input,
                    image,
                    h,
                    strip,
                    reach: REACH_P,
                    x: Ring::take(&mut scratch, columns),
                    u: Ring::take(&mut scratch, columns),
                    t: Ring::take(&mut scratch, columns),
                    p: Ring::take(&mut scratch, columns),
                };
                let part = StripOfBand {
                    task: self,
                    start,
                    end,
                    rows,
                    d_gate: Ring::take(&mut scratch, columns),
                    d_dw: Ring::take(&mut scratch, columns),
                    zeros: Ring::take(&mut scratch, columns),
                    m: scratch,
                    d_p: scratch.add(PIECE * HIDDEN),
                    d_t: scratch.add(PIECE * (HIDDEN + GROUPS * GROUP)),
                    partial,
                    border,
                };
                part.run::<S>();
            }
            S::fence();
        }
    }
}

/// Adds the borders of the neighbours to the rows of a band.
struct AddBorders<'a>(&'a Backward<'a>);

impl Task for AddBorders<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Backward {
            op, parts, bands, ..
        } = *self.0;
        let (len, h, shared) = (op.extent.w * FEATURES, op.extent.h, parts.shared());
        let (image, start, end) = bands.task(task);
        // SAFETY: rows `start..end` of `d_input` are this task's. The tasks of the bands above and
        // below have written all rows of their borders that are in the image, and no task writes
        // borders now. All bands but an image's last have at least REACH rows, so no row is within
        // REACH of a third band. The rest is the contract of `Task::run`.
        unsafe {
            let border_row = |task: usize, row: usize| {
                let border = BORDERS + task * border(op);
                shared.at(border + row * len).cast_const()
            };
            if start > 0 {
                for y in start..end.min(start + REACH) {
                    let to = self.0.d_input.at((image * h + y) * len);
                    add_row::<S>(border_row(task - 1, REACH + y - start), len, to);
                }
            }
            if end < h {
                for y in end - REACH..end {
                    let to = self.0.d_input.at((image * h + y) * len);
                    add_row::<S>(border_row(task + 1, y + REACH - end), len, to);
                }
            }
        }
    }
}

/// Runs the backward operation.
pub fn backward(ctx: &Context<'_>, op: &StreamBlockBack) {
    let block = &op.forward;
    let parts = ctx.parts(op.workspace, workspace(op));
    pack(ctx, block, parts, true);
    let bands = Bands::new(block.extent);
    let task = Backward {
        op: block,
        parts,
        bands,
        input: ctx.floats(block.input),
        d_output: ctx.floats(op.d_output),
        d_input: ctx.floats(op.d_input),
    };
    ctx.parallel(bands.tasks(), &task);
    if border(block) > 0 {
        ctx.parallel(bands.tasks(), &AddBorders(&task));
    }
    if ctx.reduce(parts, op.slice) {
        store_gradients(ctx, op, parts);
    }
}

/// Stores the gradients of all parameters from the sums over the micro-batch.
fn store_gradients(ctx: &Context<'_>, op: &StreamBlockBack, parts: WorkspaceParts) {
    let (block, params) = (&op.forward, &op.forward.params);
    // SAFETY: the tasks have finished, and the sums hold as many values as a partial
    let sum = unsafe { parts.sums().view(0, Sums::LEN) };
    let get = |range: ParamRange| -> &[f32] {
        // SAFETY: the ranges lie inside the parameters, which nothing writes now
        unsafe { ctx.param(block.parameters, range).view(0, range.len) }
    };
    let store = |range: ParamRange, value: &dyn Fn(usize) -> f32| {
        ctx.store_gradient(op.gradients, range, value);
    };
    for (i, [weight, bias]) in [params.dw1, params.dw3].into_iter().enumerate() {
        store(weight, &|k| {
            sum[Sums::DW + i * TAPS + k % 9 * GROUP + k / 9]
        });
        store(bias, &|f| sum[Sums::DW_BIAS + i * FEATURES + f]);
    }
    store(params.fuse[0], &|i| {
        let (output, input) = (i / (2 * FEATURES), i % (2 * FEATURES));
        sum[Sums::FUSE + input * FEATURES + output]
    });
    store(params.fuse[1], &|f| sum[Sums::FUSE_BIAS + f]);
    store(params.proj[0], &|i| {
        let (place, f) = (place(i / FEATURES), i % FEATURES);
        sum[Sums::PROJ + place / GROUP * SQUARE + f * GROUP + place % GROUP]
    });
    store(params.proj[1], &|i| sum[Sums::PROJ_BIAS + place(i)]);
    store(params.gate[0], &|i| {
        let (place, tap) = (place(i / 9), i % 9);
        sum[Sums::GATE + place / GROUP * TAPS + tap * GROUP + place % GROUP]
    });
    store(params.gate[1], &|i| sum[Sums::GATE_BIAS + place(i)]);
    let (gamma, weight, bias) = (get(params.gamma), get(params.out[0]), get(params.out[1]));
    store(params.out[0], &|i| {
        gamma[i / HIDDEN] * sum[Sums::PRODUCT + i]
    });
    store(params.out[1], &|f| gamma[f] * sum[Sums::D_OUTPUT + f]);
    // d gamma = sum of d output x (out(m) + bias). The sums contain every product of it.
    store(params.gamma, &|f| {
        let products: f64 = (f * HIDDEN..(f + 1) * HIDDEN)
            .map(|k| f64::from(weight[k]) * f64::from(sum[Sums::PRODUCT + k]))
            .sum();
        (products + f64::from(bias[f]) * f64::from(sum[Sums::D_OUTPUT + f])) as f32
    });
}
