//! 3x3 convolutions, forward and backward, in the direct form. Depends on the row kernels; calls
//! `conv_winograd` for the convolutions that this faster form applies to.

use super::arena::SharedPtr;
use super::conv_winograd;
use super::layout::torch_index;
use super::operation::{CpuOperation, MAX_CHANNELS, check_extent};
use super::padded_rows::PaddedRows;
use super::rows::{RowProduct, RowStart, row_outer, row_product, row_sum, row_to_rgb};
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, round_up_to_lanes};
use crate::plan::{Conv, ConvBack};
use anyhow::{Result, ensure};

/// f32 elements of the packed weights `[ky][kx, ci][co]`.
fn packed(c: &Conv) -> usize {
    9 * c.cin * c.cout
}

/// Workspace of the forward operation.
fn workspace(c: &Conv) -> Workspace {
    if conv_winograd::applies(c) {
        return conv_winograd::workspace(c);
    }
    Workspace {
        shared: round_up_to_lanes(packed(c)) + c.cout,
        scratch: PaddedRows::<3>::floats(c.extent.w, c.cin),
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a Conv,
    parts: WorkspaceParts,
    bands: Bands,
    /// `[N, h, w, cin]`
    input: SharedPtr<f32>,
    /// `[N, h, w, cout]`
    output: SharedPtr<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Conv {
            extent, cin, cout, ..
        } = *self.op;
        let (w, h) = (extent.w, extent.h);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: rows `start..end` of the output are this task's, the scratch holds the padded
        // rows, and `cout` is a multiple of 16 (`check`). The rest is the contract of
        // `Task::run`.
        unsafe {
            let inputs = PaddedRows::<3> {
                source: self.input,
                image,
                h,
                w,
                c: cin,
                ring: self.parts.scratch(),
            };
            inputs.load(start as isize - 1);
            inputs.load(start as isize);
            for y in start..end {
                inputs.load(y as isize + 1);
                let product = RowProduct {
                    rows: &inputs.around(y),
                    stride: cin,
                    taps: 3 * cin,
                    weights: self.parts.shared().at(0),
                    lanes: cout,
                    start: RowStart::Bias(
                        self.parts.shared().at(round_up_to_lanes(packed(self.op))),
                    ),
                    out: self.output.at((image * h + y) * w * cout),
                    w,
                    non_temporal: false,
                };
                match cin {
                    3 => row_product::<S, 3>(&product),
                    16 => row_product::<S, 16>(&product),
                    _ => row_product::<S, 0>(&product),
                }
            }
        }
    }
}

/// Runs the forward operation.
fn forward(ctx: &Context<'_>, op: &Conv) {
    if conv_winograd::applies(op) {
        return conv_winograd::forward(ctx, op);
    }
    let parts = ctx.parts(op.workspace, workspace(op));
    let (weight, bias) = (
        ctx.param(op.parameters, op.weight),
        ctx.param(op.parameters, op.bias),
    );
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    // yet
    unsafe {
        let weight = weight.slice(0, op.weight.len);
        let pack = parts.shared().slice(0, packed(op));
        for (i, out) in pack.iter_mut().enumerate() {
            let (co, tap) = (i % op.cout, i / op.cout);
            let (ci, kx, ky) = (tap % op.cin, tap / op.cin % 3, tap / op.cin / 3);
            *out = weight[torch_index(op, co, ci, ky, kx)];
        }
        let biases = parts.shared().slice(round_up_to_lanes(packed(op)), op.cout);
        biases.copy_from_slice(bias.slice(0, op.cout));
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

/// Workspace of the backward operation.
fn workspace_back(op: &ConvBack) -> Workspace {
    let c = &op.forward;
    if conv_winograd::applies(c) {
        return conv_winograd::workspace_back(op);
    }
    Workspace {
        shared: packed(c) + LANES.max(c.cin),
        partial: packed(c) + c.cout,
        tasks: Bands::new(c.extent).tasks(),
        scratch: PaddedRows::<3>::floats(c.extent.w, c.cin)
            + PaddedRows::<3>::floats(c.extent.w, c.cout),
    }
}

struct Backward<'a> {
    op: &'a Conv,
    parts: WorkspaceParts,
    bands: Bands,
    /// `[N, h, w, cin]`
    input: SharedPtr<f32>,
    /// `[N, h, w, cout]`
    d_output: SharedPtr<f32>,
    /// `[N, h, w, cin]`, if asked for.
    d_input: Option<SharedPtr<f32>>,
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Conv {
            extent, cin, cout, ..
        } = *self.op;
        let (w, h) = (extent.w, extent.h);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: the partial is this task's, the scratch holds the padded rows of both
        // activations, and channels are multiples of 16, but for inputs of 3 (`check`). The
        // rest is the contract of `Task::run`.
        unsafe {
            let partial = self.parts.partial(task);
            partial.at(0).write_bytes(0, packed(self.op) + cout);
            let inputs = PaddedRows::<3> {
                source: self.input,
                image,
                h,
                w,
                c: cin,
                ring: self.parts.scratch(),
            };
            let gradients = PaddedRows::<3> {
                source: self.d_output,
                c: cout,
                ring: SharedPtr::new(inputs.ring.at(PaddedRows::<3>::floats(w, cin))),
                ..inputs
            };
            for row in [start as isize - 1, start as isize] {
                inputs.load(row);
                gradients.load(row);
            }
            for y in start..end {
                inputs.load(y as isize + 1);
                gradients.load(y as isize + 1);
                let gradient = gradients.row(y as isize).add(cout).cast_const();
                for (ky, x) in inputs.around(y).into_iter().enumerate() {
                    let sum = partial.at(ky * 3 * cin * cout);
                    row_outer::<S>(x, cin, 3 * cin, gradient, cout, w, sum);
                }
                row_sum::<S>(gradient, cout, w, partial.at(packed(self.op)));
                if let Some(d_input) = self.d_input {
                    let out = d_input.at((image * h + y) * w * cin);
                    self.input_gradient::<S>(&gradients.around(y), out);
                }
            }
        }
    }
}

impl Backward<'_> {
    /// One row `[w, cin]` of the gradient with respect to the input, from the three padded rows of
    /// the output's gradient around it.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose row `out` is.
    #[inline(always)]
    unsafe fn input_gradient<S: Simd>(&self, rows: &[*const f32; 3], out: *mut f32) {
        let Conv {
            extent, cin, cout, ..
        } = *self.op;
        // SAFETY: `backward` packed the weights and the zeros, the rows hold `w + 2` pixels, and
        // `out` is a row of this task
        unsafe {
            let weights = self.parts.shared();
            if cin == 3 {
                row_to_rgb::<S>(*rows, weights.at(0), [0.0; 3], cout, extent.w, out);
                return;
            }
            let product = RowProduct {
                rows,
                stride: cout,
                taps: 3 * cout,
                weights: weights.at(0),
                lanes: cin,
                start: RowStart::Bias(weights.at(packed(self.op))),
                out,
                w: extent.w,
                non_temporal: false,
            };
            match cout {
                16 => row_product::<S, 16>(&product),
                _ => row_product::<S, 0>(&product),
            }
        }
    }
}

/// Runs the backward operation.
fn backward(ctx: &Context<'_>, op: &ConvBack) {
    let c = &op.forward;
    if conv_winograd::applies(c) {
        return conv_winograd::backward(ctx, op);
    }
    let parts = ctx.parts(op.workspace, workspace_back(op));
    let weight = ctx.param(c.parameters, c.weight);
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    // yet
    unsafe {
        let weight = weight.slice(0, c.weight.len);
        let pack = parts.shared().slice(0, packed(c) + LANES.max(c.cin));
        pack.fill(0.0);
        for (ky, kx) in (0..9).map(|k| (k / 3, k % 3)) {
            for (co, ci) in (0..c.cout).flat_map(|co| (0..c.cin).map(move |ci| (co, ci))) {
                // A pixel's gradient comes from the outputs on the opposite side, so the taps are
                // turned by 180 degrees.
                let (value, tap) = (weight[torch_index(c, co, ci, 2 - ky, 2 - kx)], ky * 3 + kx);
                pack[if c.cin == 3 {
                    (tap * 3 + ci) * c.cout + co
                } else {
                    (tap * c.cout + co) * c.cin + ci
                }] = value;
            }
        }
    }
    let bands = Bands::new(c.extent);
    let task = Backward {
        op: c,
        parts,
        bands,
        input: ctx.floats(c.input),
        d_output: ctx.floats(op.d_output),
        d_input: op.d_input.map(|d| ctx.floats(d.buffer)),
    };
    ctx.parallel(bands.tasks(), &task);
    if !ctx.reduce(parts, op.slice) {
        return;
    }
    // SAFETY: the tasks have finished, and the sums hold as many values as a partial
    let sums = unsafe { parts.sums().slice(0, packed(c) + c.cout) };
    ctx.store_gradient(op.gradients, c.weight, |i| {
        let (kx, ky, ci, co) = (i % 3, i / 3 % 3, i / 9 % c.cin, i / 9 / c.cin);
        sums[((ky * 3 + kx) * c.cin + ci) * c.cout + co]
    });
    ctx.store_gradient(op.gradients, c.bias, |co| sums[packed(c) + co]);
}

impl CpuOperation for Conv {
    fn check(&self) -> Result<()> {
        let Conv { cin, cout, .. } = *self;
        let whole_vectors = |channels: usize| {
            channels > 0 && channels <= MAX_CHANNELS && channels.is_multiple_of(LANES)
        };
        ensure!(
            (cin == 3 || whole_vectors(cin)) && whole_vectors(cout),
            "{cin} to {cout} channels: inputs of 3 or a multiple of {LANES} channels and outputs \
             of a multiple of {LANES} are supported, up to {MAX_CHANNELS}"
        );
        ensure!(
            self.is_plain_3x3(),
            "only plain 3x3 convolutions are supported"
        );
        check_extent(self.extent)
    }

    fn workspace(&self) -> Workspace {
        workspace(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        forward(ctx, self);
    }
}

impl CpuOperation for ConvBack {
    fn check(&self) -> Result<()> {
        ensure!(
            self.accumulates && self.d_input.is_none_or(|d| !d.add),
            "gradients that are added to others are not supported"
        );
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        workspace_back(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        backward(ctx, self);
    }
}
