//! The convolutions of `conv` in Winograd's form F(4x4, 3x3), for training: the same operations and
//! parameters with four times fewer multiplications. Depends on `tiling` and `winograd`.

use super::arena::SharedPtr;
use super::layout::torch_index;
use super::rows::{row_outer, row_sum};
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache};
use super::tiling::{
    GradientTiles, ImageRows, TileRow, convolution_scratch, convolve_tiles, gradient_scratch, pack,
    tiles,
};
use super::winograd::{POINTS, gather_lanes};
use crate::plan::{Conv, ConvBack};

/// Tiles that a weight gradient transforms at a time: enough to keep sums in registers, few enough
/// to stay in cache.
const OUTER_TILES: usize = 32;

/// Outputs of a tile along a side, pixels.
const OUT: usize = 4;

/// Whether a convolution is computed in this form.
pub fn applies(c: &Conv) -> bool {
    !c.tile_invariant && c.cin.is_multiple_of(LANES) && c.cout.is_multiple_of(LANES)
}

/// f32 elements of transformed weights.
fn transformed(c: &Conv) -> usize {
    POINTS * c.cin * c.cout
}

/// The weight of output channel `lane`, input channel `ci` and tap `tap`, in f64.
fn tap(c: &Conv, weight: &[f32], lane: usize, ci: usize, tap: usize) -> f64 {
    f64::from(weight[torch_index(c, lane, ci, tap / 3, tap % 3)])
}

/// Workspace of the forward operation. Shared: weights, biases and a row of zeros. Scratch:
/// transformed inputs and products.
pub fn workspace(c: &Conv) -> Workspace {
    Workspace {
        shared: transformed(c) + c.cout + c.extent.w * c.cin,
        scratch: convolution_scratch(c.cin),
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
        // SAFETY: rows `start..end` of the output are this task's. Channels are multiples of 16
        // (`applies`), so pixels begin at multiples of 64 bytes. The rest is the contract of
        // `Task::run`.
        unsafe {
            let shared = self.parts.shared();
            let bias = shared.at(transformed(self.op));
            let source = ImageRows {
                source: self.input,
                zeros: bias.add(cout),
                image,
                h,
                w,
                c: cin,
            };
            for y in (start..end).step_by(OUT) {
                let row = |r: usize| self.output.at((image * h + y + r) * w * cout);
                convolve_tiles::<S, OUT>(&TileRow {
                    inputs: source.get(y as isize - 1, h),
                    c: cin,
                    depth: cin,
                    w,
                    scratch: self.parts.scratch().at(0),
                    weights: shared.at(0),
                    bias,
                    lanes: cout,
                    outputs: std::array::from_fn(|r| (y + r < end).then(|| row(r))),
                    non_temporal: exceeds_cache(extent, cout),
                });
            }
            S::fence();
        }
    }
}

/// Runs the forward operation.
pub fn forward(ctx: &Context<'_>, op: &Conv) {
    let parts = ctx.parts(op.workspace, workspace(op));
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    // yet
    unsafe {
        let weight = ctx.param(op.parameters, op.weight).slice(0, op.weight.len);
        let shared = parts.shared().slice(0, workspace(op).shared);
        pack::<3>(shared, op.cin, op.cout, |lane, ci, at| {
            tap(op, weight, lane, ci, at)
        });
        let (biases, zeros) = shared[transformed(op)..].split_at_mut(op.cout);
        biases.copy_from_slice(ctx.param(op.parameters, op.bias).slice(0, op.bias.len));
        zeros.fill(0.0);
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

/// Tiles that a weight gradient transforms at a time in rows of `w` pixels.
fn outer_tiles(w: usize) -> usize {
    OUTER_TILES.min(tiles::<OUT>(w))
}

/// f32 elements of a task's partial: gradients of the weights `[tap][ci][lane]`, then of the biases
/// `[lane]`.
fn gradients(c: &Conv) -> usize {
    9 * c.cin * c.cout + c.cout
}

/// Workspace of the backward operation. Shared: weights and zeros. Scratch: sums at the points, and
/// transformed values.
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let Conv {
        extent, cin, cout, ..
    } = op.forward;
    let w = extent.w;
    let outer = gradient_scratch(outer_tiles(w), cin, cout);
    Workspace {
        shared: transformed(&op.forward) + cin + w * cin.max(cout),
        partial: gradients(&op.forward),
        tasks: Bands::new(extent).tasks(),
        scratch: transformed(&op.forward) + outer.max(convolution_scratch(cout)),
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
        // SAFETY: rows `start..end` of `d_input` and the partial are this task's. Channels are
        // multiples of 16 (`applies`), so pixels begin at multiples of 64 bytes. The rest is the
        // contract of `Task::run`.
        unsafe {
            let partial = self.parts.partial(task);
            let biases = partial.at(9 * cin * cout);
            biases.write_bytes(0, cout);
            let sums = self.parts.scratch().at(0);
            sums.write_bytes(0, transformed(self.op));
            let scratch = sums.add(transformed(self.op));
            let shared = self.parts.shared();
            let zeros = shared.at(transformed(self.op) + cin).cast_const();
            let inputs = ImageRows {
                source: self.input,
                zeros,
                image,
                h,
                w,
                c: cin,
            };
            let gradients = ImageRows {
                source: self.d_output,
                c: cout,
                ..inputs
            };
            for y in (start..end).step_by(OUT) {
                // the weights' gradient counts rows of this band only
                let own = gradients.get::<OUT>(y as isize, end);
                let both = GradientTiles {
                    inputs: inputs.get(y as isize - 1, h),
                    c: cin,
                    gradients: own,
                    lanes: cout,
                    w,
                    span: outer_tiles(w),
                    scratch,
                };
                add_weight_gradient::<S>(&both, sums);
                for d in &own[..OUT.min(end - y)] {
                    row_sum::<S>(*d, cout, w, biases);
                }
                let Some(d_input) = self.d_input else {
                    continue;
                };
                let row = |r: usize| d_input.at((image * h + y + r) * w * cin);
                convolve_tiles::<S, OUT>(&TileRow {
                    inputs: gradients.get(y as isize - 1, h),
                    c: cout,
                    depth: cout,
                    w,
                    scratch,
                    weights: shared.at(0),
                    bias: shared.at(transformed(self.op)),
                    lanes: cin,
                    outputs: std::array::from_fn(|r| (y + r < end).then(|| row(r))),
                    non_temporal: exceeds_cache(extent, cin),
                });
            }
            for at in (0..cin * cout).step_by(LANES) {
                gather_lanes::<S, 3>(sums.add(at), cin * cout, partial.at(at), cin * cout);
            }
            S::fence();
        }
    }
}

/// Adds the weight gradient of a row of tiles at the points to `sums`, `[POINTS][cin][cout]`.
///
/// # Safety
/// As [`GradientTiles::transform`]; `sums` has room for its values, and no other thread uses it.
#[inline(always)]
unsafe fn add_weight_gradient<S: Simd>(both: &GradientTiles<OUT>, sums: *mut f32) {
    let GradientTiles {
        c: cin,
        lanes: cout,
        w,
        span,
        ..
    } = *both;
    for first in (0..tiles::<OUT>(w)).step_by(span) {
        let count = span.min(tiles::<OUT>(w) - first);
        // SAFETY: at most `span` tiles are transformed, and points stay below 36
        unsafe {
            both.transform::<S>(first, count);
            for point in 0..POINTS {
                let ((v, z), sums) = (both.at(point), sums.add(point * cin * cout));
                row_outer::<S>(v, cin, cin, z, cout, count, sums);
            }
        }
    }
}

/// Runs the backward operation.
pub fn backward(ctx: &Context<'_>, op: &ConvBack) {
    let c = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    // yet
    unsafe {
        let weight = ctx.param(c.parameters, c.weight).slice(0, c.weight.len);
        let shared = parts.shared().slice(0, workspace_back(op).shared);
        // A pixel's gradient comes from the outputs on the opposite side, so the taps are turned by
        // 180 degrees.
        pack::<3>(shared, c.cout, c.cin, |ci, lane, at| {
            tap(c, weight, lane, ci, 8 - at)
        });
        shared[transformed(c)..].fill(0.0);
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
    let sums = unsafe { parts.sums().slice(0, gradients(c)) };
    ctx.store_gradient(op.gradients, c.weight, |i| {
        let (tap, ci, lane) = (i % 9, i / 9 % c.cin, i / 9 / c.cin);
        sums[(tap * c.cin + ci) * c.cout + lane]
    });
    ctx.store_gradient(op.gradients, c.bias, |lane| sums[9 * c.cin * c.cout + lane]);
}
