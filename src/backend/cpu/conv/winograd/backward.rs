//! The gradients of convolutions in Winograd's form: for each band of rows those of the weights, then
//! that of the input. Depends on the parent module and the kernels.

use super::super::super::arena::SharedPtr;
use super::super::super::rows::row_sum;
use super::super::super::simd::{LANES, Simd};
use super::super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache};
use super::super::super::tiling::ImageRows;
use super::super::super::winograd::{
    BlockValues, Output, POINTS, Span, gather_lanes, outer_blocks, transform_gradient,
};
use super::super::{Finish, pack_channels, slope_values, store_gradients};
use super::{
    BLOCK_PIXELS, Convolution, Direction, GROUP_BLOCKS, InputRows, OUT, Pack, Shared, Tiles,
    points, ring_floats, rows_apart, transform_block,
};
use crate::plan::{Conv, ConvBack};

/// f32 values of the weight gradients at the points.
fn sums_floats(c: &Conv) -> usize {
    POINTS * c.cin * c.output_stride
}

/// f32 elements of a task's partial: gradients of the weights `[tap][input][lane]`, then of the
/// biases `[lane]` and of the slopes.
fn gradients(c: &Conv) -> usize {
    bias_at(c) + c.output_stride + slope_values(c)
}

fn bias_at(c: &Conv) -> usize {
    9 * c.cin * c.output_stride
}

/// f32 values of a block of a gradient before it is finished.
fn unfinished_floats(op: &ConvBack) -> usize {
    let c = &op.forward;
    let only_stores = c.activation.is_none() && op.d_input.is_none_or(|d| !d.add);
    if only_stores {
        0
    } else {
        OUT * BLOCK_PIXELS * c.input_stride
    }
}

/// Workspace of the backward operation. Shared: weights, zeros and slopes. Scratch: activated rows,
/// transformed values or products of inputs and of gradients, and then either the sums at the points
/// or a block of the gradient.
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let c = &op.forward;
    let direction = Direction::backward(c);
    Workspace {
        shared: Shared::new(c, direction).len,
        partial: gradients(c),
        tasks: Bands::new(c.extent).tasks(),
        scratch: ring_floats(c) + direction.scratch() + sums_floats(c).max(unfinished_floats(op)),
    }
}

struct Backward<'a> {
    op: &'a ConvBack,
    parts: WorkspaceParts,
    bands: Bands,
    /// `[N, h, w, input_stride]`
    input: SharedPtr<f32>,
    /// `[N, h, w, output_stride]`
    d_output: SharedPtr<f32>,
    /// `[N, h, w, input_stride]`, if asked for, and whether to add.
    d_input: Option<(SharedPtr<f32>, bool)>,
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let c = &self.op.forward;
        let (image, start, end) = self.bands.task(task);
        let direction = Direction::backward(c);
        // SAFETY: rows `start..end` of `d_input` and the partial are this task's. Channels of the
        // buffers are multiples of 16 (`check`), so pixels begin at multiples of 64 bytes. The rest
        // is the contract of `Task::run`.
        unsafe {
            let partial = self.parts.partial(task).at(0);
            partial
                .add(bias_at(c))
                .write_bytes(0, gradients(c) - bias_at(c));
            let (shared, at) = (self.parts.shared(), Shared::new(c, direction));
            let (zeros, slopes) = (shared.at(at.zeros), shared.at(at.slopes));
            let ring = self.parts.scratch().at(0);
            let inputs = InputRows::new(c, self.input, zeros, slopes, (image, start), ring);
            let band = BandOfGradients {
                task: self,
                gradients: ImageRows {
                    source: self.d_output,
                    c: c.output_stride,
                    ..inputs.rows
                },
                inputs,
                tiles: Tiles {
                    start,
                    end,
                    w: c.extent.w,
                    rows_apart: rows_apart(c),
                },
                values: ring.add(ring_floats(c)),
                rest: ring.add(ring_floats(c) + direction.scratch()),
                partial,
            };
            let band = band.weights::<S>();
            if let Some(d_input) = self.d_input {
                band.inputs::<S>(d_input, (shared.at(0), shared.at(at.bias)));
            }
            S::fence();
        }
    }
}

/// The gradients of a band of rows: first those of the weights, then that of the input, so that the
/// sums of the former need not share the cache with the weights of the latter.
struct BandOfGradients<'a> {
    task: &'a Backward<'a>,
    inputs: InputRows,
    gradients: ImageRows,
    tiles: Tiles,
    /// Room for transformed inputs and gradients of a group.
    values: *mut f32,
    /// Room for the sums at the points, and for an unfinished block.
    rest: *mut f32,
    partial: *mut f32,
}

impl BandOfGradients<'_> {
    /// Computes the gradients of weights and biases.
    ///
    /// # Safety
    /// As [`Task::run`] of the task that has made `self`.
    #[inline(always)]
    unsafe fn weights<S: Simd>(mut self) -> Self {
        let c = &self.task.op.forward;
        let (w, end, lanes) = (c.extent.w, self.tiles.end, c.output_stride);
        let v = BlockValues {
            base: self.values,
            stride: c.input_stride,
        };
        // SAFETY: the scratch has room for the values of a group, for the sums, and for a partial;
        // the rest is the caller's contract
        unsafe {
            let z = BlockValues {
                base: self
                    .values
                    .add(BlockValues::floats(GROUP_BLOCKS, c.input_stride)),
                stride: lanes,
            };
            let (sums, partial, mut done) = (self.rest, self.partial, 0);
            while let Some(group) = self.tiles.group(done) {
                for (at, block) in group.blocks() {
                    let rows = self.inputs.get::<S>(block.y as isize - 1);
                    transform_block::<S>(rows, w, block, &v, at);
                    // the weights' gradient counts rows of this band only
                    let own = self.gradients.get::<OUT>(block.y as isize, end);
                    let span = Span {
                        first: block.first,
                        count: block.count,
                        w,
                        c: lanes,
                    };
                    transform_gradient::<S, OUT>(own, span, points(&z, at));
                    if block.first == 0 {
                        for d in &own[..OUT.min(end - block.y)] {
                            row_sum::<S>(*d, lanes, w, partial.add(bias_at(c)));
                        }
                    }
                }
                outer_blocks::<S>(&v, &z, group.counts(), c.cin, sums, done > 0);
                done += group.len;
            }
            let values = c.cin * lanes;
            for at in (0..values).step_by(LANES) {
                gather_lanes::<S, 3>(sums.add(at), values, partial.add(at), values);
            }
        }
        self
    }

    /// Computes the gradient of the input.
    ///
    /// # Safety
    /// As [`BandOfGradients::weights`].
    #[inline(always)]
    unsafe fn inputs<S: Simd>(
        &self,
        (d_input, add): (SharedPtr<f32>, bool),
        (weights, bias): (*const f32, *const f32),
    ) {
        let op = self.task.op;
        let c = &op.forward;
        let (w, h, end, cin) = (c.extent.w, c.extent.h, self.tiles.end, c.input_stride);
        let packed = Direction::backward(c);
        let convolution = Convolution::new(packed, self.values, (weights, bias));
        let only_stores = unfinished_floats(op) == 0;
        let mut done = 0;
        // SAFETY: rows below `end` are this task's; an unfinished block has room for its pixels
        unsafe {
            let row = |y: usize| d_input.at((self.inputs.rows.image * h + y) * w * cin);
            let unfinished = |r: usize| self.rest.add(r * BLOCK_PIXELS * cin);
            while let Some(group) = self.tiles.group(done) {
                for (at, block) in group.blocks() {
                    let rows = self.gradients.get(block.y as isize - 1, h);
                    transform_block::<S>(rows, w, block, &convolution.v, at);
                }
                convolution.multiply::<S>(group.counts());
                for (at, block) in group.blocks() {
                    let (y, x) = (block.y, OUT * block.first);
                    let place = |r: usize| {
                        if only_stores {
                            row(y + r)
                        } else {
                            unfinished(r)
                        }
                    };
                    let out = Output {
                        rows: std::array::from_fn(|r| (y + r < end).then(|| place(r))),
                        stride: cin,
                        x: if only_stores { x } else { 0 },
                        w: if only_stores { w } else { BLOCK_PIXELS },
                        non_temporal: only_stores && exceeds_cache(c.extent, cin),
                    };
                    convolution.store::<S>(at, block, out);
                    let rows = if only_stores { 0 } else { OUT.min(end - y) };
                    for r in 0..rows {
                        let finish = Finish {
                            activation: self.inputs.ring.activation,
                            z: self.inputs.ring.stored(y + r).add(x * cin),
                            c: cin,
                            len: BLOCK_PIXELS.min(w - x) * cin,
                            out: row(y + r).add(x * cin),
                            add,
                            slope_sums: self.partial.add(bias_at(c) + c.output_stride),
                        };
                        finish.run::<S>(unfinished(r));
                    }
                }
                done += group.len;
            }
        }
    }
}

/// Runs the backward operation.
pub fn backward(ctx: &Context<'_>, op: &ConvBack) {
    let c = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    let direction = Direction::backward(c);
    let (shared, at) = (parts.shared(), Shared::new(c, direction));
    if op.d_input.is_some() {
        Pack {
            op: c,
            direction,
            weight: ctx.param(c.parameters, c.weight),
            out: shared,
        }
        .run(ctx);
    }
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    unsafe {
        shared.slice(at.bias, at.len - at.bias).fill(0.0);
        pack_channels(ctx, c, None, shared.at(at.slopes));
    }
    let bands = Bands::new(c.extent);
    let task = Backward {
        op,
        parts,
        bands,
        input: ctx.floats(c.input),
        d_output: ctx.floats(op.d_output),
        d_input: op.d_input.map(|d| (ctx.floats(d.buffer), d.add)),
    };
    ctx.parallel(bands.tasks(), &task);
    if !ctx.reduce(parts, op.slice) {
        return;
    }
    store_gradients(ctx, op, parts, bias_at(c), |co, ci, tap| {
        (tap * c.cin + ci) * c.output_stride + co
    });
}
