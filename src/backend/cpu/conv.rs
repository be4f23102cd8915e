//! 3x3 convolutions, forward and backward, directly. Depends on the row kernels; hands over to
//! `conv_winograd` where that form applies.

use super::arena::Shared;
use super::conv_winograd;
use super::rows::{RowProduct, Start, pad_row, row_outer, row_product, row_sum, row_to_rgb};
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Parts, Task, Workspace, whole};
use crate::plan::{Conv, ConvBack};

/// f32 elements of the packed weights `[ky][kx, ci][co]`.
fn packed(c: &Conv) -> usize {
    9 * c.cin * c.cout
}

/// Index into PyTorch's `[co][ci][ky][kx]`.
pub(super) fn torch_index(c: &Conv, co: usize, ci: usize, ky: usize, kx: usize) -> usize {
    ((co * c.cin + ci) * 3 + ky) * 3 + kx
}

/// Workspace of the forward operation.
pub fn workspace(c: &Conv) -> Workspace {
    if conv_winograd::applies(c) {
        return conv_winograd::workspace(c);
    }
    Workspace {
        shared: whole(packed(c)) + c.cout,
        scratch: 3 * whole((c.extent.w + 2) * c.cin),
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a Conv,
    parts: Parts,
    bands: Bands,
    input: Shared<f32>,
    output: Shared<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Conv {
            extent, cin, cout, ..
        } = *self.op;
        let (w, h) = (extent.w, extent.h);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: the output's rows `start..end` are this task's, padded rows fit into the scratch,
        // and `cout` is whole vectors in every plan; the rest is `Task::run`'s contract
        unsafe {
            let ring = self.parts.scratch();
            let slot = |row: isize| ring.at((row + 1) as usize % 3 * whole((w + 2) * cin));
            let load = |row: isize| {
                let inside = row >= 0 && row < h as isize;
                let source = inside.then(|| {
                    self.input
                        .at((image * h + row as usize) * w * cin)
                        .cast_const()
                });
                pad_row(source, cin, w * cin, slot(row));
            };
            load(start as isize - 1);
            load(start as isize);
            for y in start..end {
                let row = y as isize;
                load(row + 1);
                let rows = [
                    slot(row - 1).cast_const(),
                    slot(row).cast_const(),
                    slot(row + 1).cast_const(),
                ];
                let product = RowProduct {
                    rows: &rows,
                    stride: cin,
                    taps: 3 * cin,
                    weights: self.parts.shared().at(0),
                    lanes: cout,
                    start: Start::Bias(self.parts.shared().at(whole(packed(self.op)))),
                    out: self.output.at((image * h + y) * w * cout),
                    w,
                    far: false,
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

/// Runs a convolution.
pub fn forward(ctx: &Context<'_>, op: &Conv) {
    if conv_winograd::applies(op) {
        return conv_winograd::forward(ctx, op);
    }
    let parts = ctx.parts(op.workspace, workspace(op));
    let (weight, bias) = (
        ctx.param(op.parameters, op.weight),
        ctx.param(op.parameters, op.bias),
    );
    // SAFETY: the pieces lie inside parameters and workspace, do not overlap, and no task runs yet
    unsafe {
        let weight = weight.slice(0, op.weight.len);
        let pack = parts.shared().slice(0, packed(op));
        for (i, out) in pack.iter_mut().enumerate() {
            let (co, tap) = (i % op.cout, i / op.cout);
            let (ci, kx, ky) = (tap % op.cin, tap / op.cin % 3, tap / op.cin / 3);
            *out = weight[torch_index(op, co, ci, ky, kx)];
        }
        let biases = parts.shared().slice(whole(packed(op)), op.cout);
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
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let c = &op.forward;
    if conv_winograd::applies(c) {
        return conv_winograd::workspace_back(op);
    }
    Workspace {
        shared: packed(c) + LANES.max(c.cin),
        partial: packed(c) + c.cout,
        tasks: Bands::new(c.extent).tasks(),
        scratch: 3 * whole((c.extent.w + 2) * c.cin) + 3 * whole((c.extent.w + 2) * c.cout),
    }
}

struct Backward<'a> {
    op: &'a Conv,
    parts: Parts,
    bands: Bands,
    input: Shared<f32>,
    d_output: Shared<f32>,
    d_input: Option<Shared<f32>>,
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Conv {
            extent, cin, cout, ..
        } = *self.op;
        let (w, h) = (extent.w, extent.h);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: rows `start..end` of `d_input` and the partial are this task's, padded rows fit
        // into the scratch, and `cout`, as `cin` unless it is 3, is whole vectors in every plan;
        // the rest is `Task::run`'s contract
        unsafe {
            let partial = self.parts.partial(task);
            partial.at(0).write_bytes(0, packed(self.op) + cout);
            let (x_len, d_len) = (whole((w + 2) * cin), whole((w + 2) * cout));
            let x_ring = self.parts.scratch();
            let d_ring = Shared::new(x_ring.at(3 * x_len));
            let slot = |row: isize| (row + 1) as usize % 3;
            let (x_slot, d_slot) = (
                |row| x_ring.at(slot(row) * x_len),
                |row| d_ring.at(slot(row) * d_len),
            );
            let load = |row: isize| {
                let inside =
                    (row >= 0 && row < h as isize).then_some(image * h + row.max(0) as usize);
                pad_row(
                    inside.map(|r| self.input.at(r * w * cin).cast_const()),
                    cin,
                    w * cin,
                    x_slot(row),
                );
                pad_row(
                    inside.map(|r| self.d_output.at(r * w * cout).cast_const()),
                    cout,
                    w * cout,
                    d_slot(row),
                );
            };
            load(start as isize - 1);
            load(start as isize);
            for y in start..end {
                let row = y as isize;
                load(row + 1);
                let gradient = d_slot(row).add(cout).cast_const();
                for ky in 0..3 {
                    let x = x_slot(row - 1 + ky as isize);
                    row_outer::<S>(
                        x,
                        cin,
                        3 * cin,
                        gradient,
                        cout,
                        w,
                        partial.at(ky * 3 * cin * cout),
                    );
                }
                row_sum::<S>(gradient, cout, w, partial.at(packed(self.op)));
                let Some(d_input) = self.d_input else {
                    continue;
                };
                let out = d_input.at((image * h + y) * w * cin);
                let rows = [
                    d_slot(row - 1).cast_const(),
                    gradient.sub(cout),
                    d_slot(row + 1).cast_const(),
                ];
                if cin == 3 {
                    row_to_rgb::<S>(rows, self.parts.shared().at(0), [0.0; 3], cout, w, out);
                    continue;
                }
                let product = RowProduct {
                    rows: &rows,
                    stride: cout,
                    taps: 3 * cout,
                    weights: self.parts.shared().at(0),
                    lanes: cin,
                    start: Start::Bias(self.parts.shared().at(packed(self.op))),
                    out,
                    w,
                    far: false,
                };
                match cout {
                    16 => row_product::<S, 16>(&product),
                    _ => row_product::<S, 0>(&product),
                }
            }
        }
    }
}

/// Runs the gradients of a convolution.
pub fn backward(ctx: &Context<'_>, op: &ConvBack) {
    let c = &op.forward;
    if conv_winograd::applies(c) {
        return conv_winograd::backward(ctx, op);
    }
    let parts = ctx.parts(op.workspace, workspace_back(op));
    let weight = ctx.param(c.parameters, c.weight);
    // SAFETY: the pieces lie inside parameters and workspace, do not overlap, and no task runs yet
    unsafe {
        let weight = weight.slice(0, c.weight.len);
        let pack = parts.shared().slice(0, packed(c) + LANES.max(c.cin));
        pack.fill(0.0);
        for (ky, kx) in (0..9).map(|k| (k / 3, k % 3)) {
            for (co, ci) in (0..c.cout).flat_map(|co| (0..c.cin).map(move |ci| (co, ci))) {
                // the gradient at a pixel comes from the output pixel on the other side: taps are
                // flipped
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
        d_input: op.d_input.map(|id| ctx.floats(id)),
    };
    ctx.parallel(bands.tasks(), &task);
    if !ctx.reduce(parts, op.slice) {
        return;
    }
    // SAFETY: the tasks are done, and the sums hold as many values as a partial
    let sums = unsafe { parts.sums().slice(0, packed(c) + c.cout) };
    ctx.store_gradient(op.gradients, c.weight, |i| {
        let (kx, ky, ci, co) = (i % 3, i / 3 % 3, i / 9 % c.cin, i / 9 / c.cin);
        sums[((ky * 3 + kx) * c.cin + ci) * c.cout + co]
    });
    ctx.store_gradient(op.gradients, c.bias, |co| sums[packed(c) + co]);
}
