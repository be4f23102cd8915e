//! 3x3 convolutions with an optional pixel shuffle, forward and backward. In NHWC a shuffle costs nothing: the `shuffle`
//! output rows of one LQ row are each a plain convolution whose lanes are (dx, channel). Depends on the row kernels; hands
//! over to `conv_winograd` where that form applies.

use super::arena::Shared;
use super::conv_winograd;
use super::rows::{MAX_ROWS, RowProduct, Start, pad_row, row_outer, row_product, row_sum, row_to_rgb};
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Parts, Task, Workspace, whole};
use crate::plan::{Conv, ConvBack};

/// Lanes of one output row: (dx, channel).
pub(super) fn lanes(c: &Conv) -> usize {
    c.shuffle * c.cout
}

/// f32 elements of the packed forward weights `[dy][ky][kx, ci][dx, c]`.
fn packed(c: &Conv) -> usize {
    c.shuffle * 9 * c.cin * lanes(c)
}

/// Index into PyTorch's `[c * s^2 + dy * s + dx][ci][ky][kx]`.
pub(super) fn torch_index(c: &Conv, dy: usize, lane: usize, ci: usize, ky: usize, kx: usize) -> usize {
    let (dx, channel) = (lane / c.cout, lane % c.cout);
    let out = channel * c.shuffle * c.shuffle + dy * c.shuffle + dx;
    ((out * c.cin + ci) * 3 + ky) * 3 + kx
}

/// Workspace of the forward operation.
pub fn workspace(c: &Conv) -> Workspace {
    if conv_winograd::applies(c) {
        return conv_winograd::workspace(c);
    }
    Workspace { shared: whole(packed(c)) + c.shuffle * lanes(c), scratch: 3 * whole((c.extent.w + 2) * c.cin), ..Workspace::default() }
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
        let Conv { extent, cin, shuffle, .. } = *self.op;
        let (lanes, w, h) = (lanes(self.op), extent.w, extent.h);
        let (image, start, end) = self.bands.task(task);
        unsafe {
            let ring = self.parts.scratch();
            let slot = |row: isize| ring.at((row + 1) as usize % 3 * whole((w + 2) * cin));
            let load = |row: isize| {
                let inside = row >= 0 && row < h as isize;
                let source = inside.then(|| self.input.at((image * h + row as usize) * w * cin).cast_const());
                pad_row(source, cin, w * cin, slot(row));
            };
            load(start as isize - 1);
            load(start as isize);
            for y in start..end {
                let row = y as isize;
                load(row + 1);
                let rows = [slot(row - 1).cast_const(), slot(row).cast_const(), slot(row + 1).cast_const()];
                for dy in 0..shuffle {
                    let product = RowProduct {
                        rows: &rows,
                        stride: cin,
                        taps: 3 * cin,
                        weights: self.parts.shared().at(dy * 9 * cin * lanes),
                        lanes,
                        start: Start::Bias(self.parts.shared().at(whole(packed(self.op)) + dy * lanes)),
                        out: self.output.at(((image * h + y) * shuffle + dy) * w * lanes),
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
}

/// Runs a convolution.
pub fn forward(ctx: &Context<'_>, op: &Conv) {
    if conv_winograd::applies(op) {
        return conv_winograd::forward(ctx, op);
    }
    let parts = ctx.parts(op.workspace, workspace(op));
    let (weight, bias) = (ctx.param(op.parameters, op.weight), ctx.param(op.parameters, op.bias));
    let lanes = lanes(op);
    // SAFETY: parameters and workspace are live; nothing else runs yet
    unsafe {
        let weight = weight.slice(0, op.weight.len);
        let pack = parts.shared().slice(0, packed(op));
        for (i, out) in pack.iter_mut().enumerate() {
            let (lane, tap) = (i % lanes, i / lanes);
            let (ci, kx, ky, dy) = (tap % op.cin, tap / op.cin % 3, tap / op.cin / 3 % 3, tap / op.cin / 9);
            *out = weight[torch_index(op, dy, lane, ci, ky, kx)];
        }
        let biases = parts.shared().slice(whole(packed(op)), op.shuffle * lanes);
        for (i, out) in biases.iter_mut().enumerate() {
            let (lane, dy) = (i % lanes, i / lanes);
            *out = *bias.at(lane % op.cout * op.shuffle * op.shuffle + dy * op.shuffle + lane / op.cout);
        }
    }
    let bands = Bands::new(op.extent);
    ctx.parallel(bands.tasks(), &Forward { op, parts, bands, input: ctx.floats(op.input), output: ctx.floats(op.output) });
}

/// Workspace of the backward operation.
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let c = &op.forward;
    if conv_winograd::applies(c) {
        return conv_winograd::workspace_back(op);
    }
    Workspace {
        shared: packed(c) + LANES.max(c.cin),
        partial: packed(c) + c.shuffle * lanes(c),
        tasks: Bands::new(c.extent).tasks(),
        scratch: 3 * whole((c.extent.w + 2) * c.cin) + 3 * c.shuffle * whole((c.extent.w + 2) * lanes(c)),
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
        let Conv { extent, cin, shuffle, .. } = *self.op;
        let (lanes, w, h) = (lanes(self.op), extent.w, extent.h);
        let (image, start, end) = self.bands.task(task);
        unsafe {
            let partial = self.parts.partial(task);
            partial.at(0).write_bytes(0, packed(self.op) + shuffle * lanes);
            let (x_len, d_len) = (whole((w + 2) * cin), whole((w + 2) * lanes));
            let x_ring = self.parts.scratch();
            let d_ring = Shared::new(x_ring.at(3 * x_len));
            let x_slot = |row: isize| x_ring.at((row + 1) as usize % 3 * x_len);
            let d_slot = |row: isize, dy: usize| d_ring.at(((row + 1) as usize % 3 * shuffle + dy) * d_len);
            let load = |row: isize| {
                let inside = (row >= 0 && row < h as isize).then_some(image * h + row.max(0) as usize);
                pad_row(inside.map(|r| self.input.at(r * w * cin).cast_const()), cin, w * cin, x_slot(row));
                for dy in 0..shuffle {
                    let source = inside.map(|r| self.d_output.at((r * shuffle + dy) * w * lanes).cast_const());
                    pad_row(source, lanes, w * lanes, d_slot(row, dy));
                }
            };
            load(start as isize - 1);
            load(start as isize);
            for y in start..end {
                let row = y as isize;
                load(row + 1);
                for dy in 0..shuffle {
                    let gradient = d_slot(row, dy).add(lanes).cast_const();
                    for ky in 0..3 {
                        let x = x_slot(row - 1 + ky as isize);
                        row_outer::<S>(x, cin, 3 * cin, gradient, lanes, w, partial.at((dy * 3 + ky) * 3 * cin * lanes));
                    }
                    row_sum::<S>(gradient, lanes, w, partial.at(packed(self.op) + dy * lanes));
                }
                let Some(d_input) = self.d_input else { continue };
                let out = d_input.at((image * h + y) * w * cin);
                if cin == 3 {
                    let rows = std::array::from_fn(|k| d_slot(row - 1 + k as isize, 0).cast_const());
                    row_to_rgb::<S>(rows, self.parts.shared().at(0), [0.0; 3], lanes, w, out);
                    continue;
                }
                let mut rows = [std::ptr::null(); MAX_ROWS];
                for dy in 0..shuffle {
                    for k in 0..3 {
                        rows[dy * 3 + k] = d_slot(row - 1 + k as isize, dy).cast_const();
                    }
                }
                let product = RowProduct {
                    rows: &rows[..3 * shuffle],
                    stride: lanes,
                    taps: 3 * lanes,
                    weights: self.parts.shared().at(0),
                    lanes: cin,
                    start: Start::Bias(self.parts.shared().at(packed(self.op))),
                    out,
                    w,
                    far: false,
                };
                match lanes {
                    16 => row_product::<S, 16>(&product),
                    32 => row_product::<S, 32>(&product),
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
    let lanes = lanes(c);
    let weight = ctx.param(c.parameters, c.weight);
    // SAFETY: parameters and workspace are live; nothing else runs yet
    unsafe {
        let weight = weight.slice(0, c.weight.len);
        let pack = parts.shared().slice(0, packed(c) + LANES.max(c.cin));
        pack.fill(0.0);
        for dy in 0..c.shuffle {
            for (ky, kx) in (0..9).map(|k| (k / 3, k % 3)) {
                for lane in 0..lanes {
                    for ci in 0..c.cin {
                        // the gradient at a pixel comes from the output pixel on the other side: taps are flipped
                        let value = weight[torch_index(c, dy, lane, ci, 2 - ky, 2 - kx)];
                        let tap = (dy * 3 + ky) * 3 + kx;
                        let at = if c.cin == 3 { (tap * 3 + ci) * lanes + lane } else { (tap * lanes + lane) * c.cin + ci };
                        pack[at] = value;
                    }
                }
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
    // SAFETY: the sums are complete
    let sums = unsafe { parts.sums().slice(0, packed(c) + c.shuffle * lanes) };
    let split = |out: usize| {
        let (channel, sub) = (out / (c.shuffle * c.shuffle), out % (c.shuffle * c.shuffle));
        (sub / c.shuffle, sub % c.shuffle * c.cout + channel)
    };
    ctx.store_gradient(op.gradients, c.weight, |i| {
        let (kx, ky, ci, out) = (i % 3, i / 3 % 3, i / 9 % c.cin, i / 9 / c.cin);
        let (dy, lane) = split(out);
        sums[(((dy * 3 + ky) * 3 + kx) * c.cin + ci) * lanes + lane]
    });
    ctx.store_gradient(op.gradients, c.bias, |out| {
        let (dy, lane) = split(out);
        sums[packed(c) + dy * lanes + lane]
    });
}
