//! Depthwise 3x3 convolutions: each channel by itself. Depends on the row kernels and activations.
//! The bits of an output do not depend on where the pixel is.

use super::super::arena::SharedPtr;
use super::super::rows::{row_depthwise, row_depthwise_outer, row_sum};
use super::super::simd::Simd;
use super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts};
use super::input::RowRing;
use super::{Finish, pack_channels, row_activation, slope_values, store_gradients};
use crate::plan::{Conv, ConvBack};

/// Rows of an image that are in a ring at once.
const SLOTS: usize = 3;

/// Whether this file computes a convolution.
pub fn applies(c: &Conv) -> bool {
    let own = c.groups == c.cin && c.cin == c.cout;
    own && (c.kernel, c.dilation) == (3, 1) && c.input_stride == c.output_stride
}

/// f32 values of the packed weights `[tap][channel]`.
fn packed(c: &Conv) -> usize {
    9 * c.input_stride
}

/// Packs the weights, with 0 for channels that fill the last vector. `backward`: with the taps
/// turned by 180 degrees, for the gradient with respect to the input.
///
/// # Safety
/// `out` has room for the weights, and no task runs.
unsafe fn pack(ctx: &Context<'_>, c: &Conv, backward: bool, out: *mut f32) {
    // SAFETY: by the caller's contract and the parameter table
    unsafe {
        let weight = ctx.param(c.parameters, c.weight).view(0, c.weight.len);
        let out = SharedPtr::new(out).slice(0, packed(c));
        for (tap, out) in out.chunks_exact_mut(c.input_stride).enumerate() {
            let tap = if backward { 8 - tap } else { tap };
            out.fill(0.0);
            for (out, weights) in out.iter_mut().zip(weight.chunks_exact(9)) {
                *out = weights[tap];
            }
        }
    }
}

fn ring(c: &Conv, source: SharedPtr<f32>, image: usize, ring: SharedPtr<f32>) -> RowRing {
    RowRing {
        source,
        activation: None,
        image,
        h: c.extent.h,
        w: c.extent.w,
        c: c.input_stride,
        pad: 1,
        slots: SLOTS,
        ring,
    }
}

fn ring_floats(c: &Conv) -> usize {
    RowRing::floats(c.extent.w, c.input_stride, 1, SLOTS)
}

/// The three rows around row `y` that a ring holds.
///
/// # Safety
/// As [`RowRing::get`] for each of them.
#[inline(always)]
unsafe fn around(ring: &RowRing, y: usize) -> [*const f32; 3] {
    // SAFETY: by the caller's contract
    std::array::from_fn(|ky| unsafe { ring.get((y + ky) as isize - 1) })
}

/// Workspace of the forward operation. Shared: weights, biases and slopes. Scratch: the ring of
/// input rows.
pub fn workspace(c: &Conv) -> Workspace {
    Workspace {
        shared: packed(c) + c.output_stride + slope_values(c),
        scratch: ring_floats(c),
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a Conv,
    parts: WorkspaceParts,
    bands: Bands,
    /// `[N, h, w, C]`
    input: SharedPtr<f32>,
    /// `[N, h, w, C]`
    output: SharedPtr<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let c = self.op;
        let (w, h, stride) = (c.extent.w, c.extent.h, c.input_stride);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: rows `start..end` of the output are this task's, the scratch holds the ring, and
        // a pixel is whole vectors (`check`). The rest is the contract of `Task::run`.
        unsafe {
            let weights = self.parts.shared().at(0);
            let bias = weights.add(packed(c));
            let inputs = RowRing {
                activation: row_activation(c, bias.add(stride)),
                ..ring(c, self.input, image, self.parts.scratch())
            };
            for y in start as isize - 2..end as isize {
                inputs.load::<S>(y + 1);
                if y < start as isize {
                    continue; // the first output row needs all rows around it
                }
                let y = y as usize;
                let out = self.output.at((image * h + y) * w * stride);
                let rows = around(&inputs, y);
                row_depthwise::<S>(rows, weights, Some(bias.cast_const()), stride, w, out);
            }
        }
    }
}

/// Runs the forward operation.
pub fn forward(ctx: &Context<'_>, op: &Conv) {
    let parts = ctx.parts(op.workspace, workspace(op));
    // SAFETY: the pieces lie inside the workspace and do not overlap, and no task runs
    unsafe {
        let shared = parts.shared().at(0);
        pack(ctx, op, false, shared);
        let biases = shared.add(packed(op));
        pack_channels(ctx, op, Some(biases), biases.add(op.output_stride));
    }
    let bands = Bands::new(op.extent);
    ctx.parallel(
        bands.tasks(),
        &Forward {
            op,
            parts,
            bands,
            input: ctx.floats(op.input),
            output: ctx.floats(op.output),
        },
    );
}

/// Workspace of the backward operation. Shared: weights and slopes. Partials: gradients of the
/// packed weights, the biases and the slopes. Scratch: rings of inputs and gradients, and a row of
/// the gradient.
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let c = &op.forward;
    Workspace {
        shared: packed(c) + slope_values(c),
        partial: packed(c) + c.output_stride + slope_values(c),
        tasks: Bands::new(c.extent).tasks(),
        scratch: 2 * ring_floats(c) + c.extent.w * c.input_stride,
    }
}

struct Backward<'a> {
    op: &'a Conv,
    parts: WorkspaceParts,
    bands: Bands,
    /// `[N, h, w, C]`
    input: SharedPtr<f32>,
    /// `[N, h, w, C]`
    d_output: SharedPtr<f32>,
    /// `[N, h, w, C]`, if asked for, and whether to add.
    d_input: Option<(SharedPtr<f32>, bool)>,
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let c = self.op;
        let (w, h, stride) = (c.extent.w, c.extent.h, c.input_stride);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: the partial is this task's, the scratch holds both rings and a row, and a pixel is
        // whole vectors (`check`). The rest is the contract of `Task::run`.
        unsafe {
            let sums = self.parts.partial(task).at(0);
            let (bias_sums, slope_sums) =
                (sums.add(packed(c)), sums.add(packed(c) + c.output_stride));
            sums.write_bytes(0, packed(c) + c.output_stride + slope_values(c));
            let weights = self.parts.shared().at(0);
            let activation = row_activation(c, weights.add(packed(c)));
            let scratch = self.parts.scratch();
            let inputs = RowRing {
                activation,
                ..ring(c, self.input, image, scratch)
            };
            let rest = SharedPtr::new(scratch.at(ring_floats(c)));
            let gradients = ring(c, self.d_output, image, rest);
            let row = rest.at(ring_floats(c));
            for y in start as isize - 2..end as isize {
                inputs.load::<S>(y + 1);
                gradients.load::<S>(y + 1);
                if y < start as isize {
                    continue; // the first row needs all rows around it
                }
                let y = y as usize;
                let gradient = gradients.stored(y);
                row_depthwise_outer::<S>(around(&inputs, y), gradient, stride, w, sums);
                row_sum::<S>(gradient, stride, w, bias_sums);
                let Some((d_input, add)) = self.d_input else {
                    continue;
                };
                let finish = Finish {
                    activation,
                    z: inputs.stored(y),
                    c: stride,
                    len: w * stride,
                    out: d_input.at((image * h + y) * w * stride),
                    add,
                    slope_sums,
                };
                let direct = finish.only_stores();
                let d = if direct { finish.out } else { row };
                row_depthwise::<S>(around(&gradients, y), weights, None, stride, w, d);
                if !direct {
                    finish.run::<S>(d);
                }
            }
        }
    }
}

/// Runs the backward operation.
pub fn backward(ctx: &Context<'_>, op: &ConvBack) {
    let c = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    // SAFETY: the pieces lie inside the workspace and do not overlap, and no task runs
    unsafe {
        let shared = parts.shared().at(0);
        pack(ctx, c, true, shared);
        pack_channels(ctx, c, None, shared.add(packed(c)));
    }
    let bands = Bands::new(c.extent);
    let task = Backward {
        op: c,
        parts,
        bands,
        input: ctx.floats(c.input),
        d_output: ctx.floats(op.d_output),
        d_input: op.d_input.map(|d| (ctx.floats(d.buffer), d.add)),
    };
    ctx.parallel(bands.tasks(), &task);
    if ctx.reduce(parts, op.slice) {
        store_gradients(ctx, op, parts, packed(c), |co, _, tap| {
            tap * c.input_stride + co
        });
    }
}
