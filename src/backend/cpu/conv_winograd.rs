//! The convolutions of `conv` in Winograd's form F(4x4, 3x3): the same operations and parameters
//! with four times fewer multiplications, for training. Depends on the transforms of `winograd`.

use super::arena::Shared;
use super::conv::torch_index;
use super::rows::{row_outer, row_sum};
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Parts, Task, Workspace, exceeds_cache};
use super::tiling::{Rows, groups, pack, tiles};
use super::winograd::{
    CHUNK, Chunk, Output, POINTS, Points, Span, gather_lanes, multiply_and_store, point_stride,
    products, transform_gradient, transform_input,
};
use crate::plan::{Conv, ConvBack};

/// Tiles of a weight gradient taken at a time: enough to keep sums in registers, few enough to stay
/// in cache.
const OUTER_TILES: usize = 32;

/// Outputs of a tile along a side.
const OUT: usize = 4;

/// Whether a convolution is computed in this form.
pub fn applies(c: &Conv) -> bool {
    !c.tile_invariant && c.cin.is_multiple_of(LANES) && c.cout.is_multiple_of(LANES)
}

/// f32 elements of transformed weights.
fn transformed(c: &Conv) -> usize {
    POINTS * c.cin * c.cout
}

/// Tap of a pair of channels, in f64.
fn tap(c: &Conv, weight: &[f32], lane: usize, ci: usize, tap: usize) -> f64 {
    f64::from(weight[torch_index(c, lane, ci, tap / 3, tap % 3)])
}

/// Workspace of the forward operation: weights, biases and zeros; transformed inputs and products.
pub fn workspace(c: &Conv) -> Workspace {
    Workspace {
        shared: transformed(c) + c.cout + c.extent.w * c.cin,
        scratch: POINTS * point_stride(CHUNK * c.cin) + products(),
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
        // SAFETY: the output's rows `start..end` are this task's, and channels are whole vectors
        // (`applies`), so that pixels begin at multiples of 64; the rest is `Task::run`'s contract
        unsafe {
            let v = self.parts.scratch().at(0);
            let m = v.add(POINTS * point_stride(CHUNK * cin));
            let shared = self.parts.shared();
            let bias = shared.at(transformed(self.op));
            let far = exceeds_cache(extent, cout);
            let source = Rows {
                source: self.input,
                zeros: bias.add(cout),
                image,
                h,
                w,
                c: cin,
            };
            for y in (start..end).step_by(OUT) {
                let rows = source.get(y as isize - 1, h);
                for first in (0..tiles::<OUT>(w)).step_by(CHUNK) {
                    let count = CHUNK.min(tiles::<OUT>(w) - first);
                    let points = Points {
                        base: v,
                        point_stride: point_stride(CHUNK * cin),
                        tile_stride: cin,
                    };
                    transform_input::<S, OUT>(
                        rows,
                        Span {
                            first,
                            count,
                            w,
                            c: cin,
                        },
                        points,
                    );
                    let chunk = Chunk {
                        v,
                        k: cin,
                        count,
                        m,
                    };
                    for (lane, two) in groups(cout) {
                        let rows = std::array::from_fn(|r| {
                            (y + r < end)
                                .then(|| self.output.at((image * h + y + r) * w * cout + lane))
                        });
                        let out = Output {
                            rows,
                            stride: cout,
                            x: OUT * first,
                            w,
                            far,
                        };
                        let u = shared.at(lane * POINTS * cin);
                        match cin {
                            16 => multiply_and_store::<S, 16, OUT>(
                                &chunk,
                                u,
                                two,
                                bias.add(lane),
                                out,
                            ),
                            _ => {
                                multiply_and_store::<S, 0, OUT>(&chunk, u, two, bias.add(lane), out)
                            }
                        }
                    }
                }
            }
            S::fence();
        }
    }
}

/// Runs a convolution.
pub fn forward(ctx: &Context<'_>, op: &Conv) {
    let parts = ctx.parts(op.workspace, workspace(op));
    // SAFETY: the pieces lie inside parameters and workspace, do not overlap, and no task runs yet
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

/// Tiles of a weight gradient taken at a time in rows of `w` pixels.
fn outer_tiles(w: usize) -> usize {
    OUTER_TILES.min(tiles::<OUT>(w))
}

/// f32 elements of a task's partial: gradients of the taps `[tap][ci][lane]`, then of the biases.
fn gradients(c: &Conv) -> usize {
    9 * c.cin * c.cout + c.cout
}

/// Workspace of the backward operation: weights and zeros; sums at the points, and transformed
/// values.
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let Conv {
        extent, cin, cout, ..
    } = op.forward;
    let w = extent.w;
    let outer = POINTS * (point_stride(outer_tiles(w) * cin) + point_stride(outer_tiles(w) * cout));
    let product = POINTS * point_stride(CHUNK * cout) + products();
    Workspace {
        shared: transformed(&op.forward) + cin + w * cin.max(cout),
        partial: gradients(&op.forward),
        tasks: Bands::new(extent).tasks(),
        scratch: transformed(&op.forward) + outer.max(product),
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
        // SAFETY: rows `start..end` of `d_input` and the partial are this task's, and channels are
        // whole vectors (`applies`), so that pixels begin at multiples of 64; the rest is
        // `Task::run`'s contract
        unsafe {
            let partial = self.parts.partial(task);
            let biases = partial.at(9 * cin * cout);
            biases.write_bytes(0, cout);
            let sums = self.parts.scratch().at(0);
            sums.write_bytes(0, transformed(self.op));
            let room = sums.add(transformed(self.op));
            let shared = self.parts.shared();
            let zeros = shared.at(transformed(self.op) + cin).cast_const();
            let far = exceeds_cache(extent, cin);
            let inputs = Rows {
                source: self.input,
                zeros,
                image,
                h,
                w,
                c: cin,
            };
            let gradients = Rows {
                source: self.d_output,
                zeros,
                image,
                h,
                w,
                c: cout,
            };
            for y in (start..end).step_by(OUT) {
                let span = outer_tiles(w);
                let (v_stride, z_stride) = (point_stride(span * cin), point_stride(span * cout));
                let (v, z) = (room, room.add(POINTS * v_stride));
                // the weights' gradient counts rows of this band only
                let own = gradients.get::<OUT>(y as isize, end);
                for first in (0..tiles::<OUT>(w)).step_by(span) {
                    let count = span.min(tiles::<OUT>(w) - first);
                    let points = Points {
                        base: v,
                        point_stride: v_stride,
                        tile_stride: cin,
                    };
                    transform_input::<S, OUT>(
                        inputs.get(y as isize - 1, h),
                        Span {
                            first,
                            count,
                            w,
                            c: cin,
                        },
                        points,
                    );
                    let points = Points {
                        base: z,
                        point_stride: z_stride,
                        tile_stride: cout,
                    };
                    transform_gradient::<S, OUT>(
                        own,
                        Span {
                            first,
                            count,
                            w,
                            c: cout,
                        },
                        points,
                    );
                    for point in 0..POINTS {
                        let (v, z) = (v.add(point * v_stride), z.add(point * z_stride));
                        row_outer::<S>(v, cin, cin, z, cout, count, sums.add(point * cin * cout));
                    }
                }
                for d in &own[..OUT.min(end - y)] {
                    row_sum::<S>(*d, cout, w, biases);
                }
                let Some(d_input) = self.d_input else {
                    continue;
                };
                let stride = point_stride(CHUNK * cout);
                let (v, m) = (room, room.add(POINTS * stride));
                for first in (0..tiles::<OUT>(w)).step_by(CHUNK) {
                    let count = CHUNK.min(tiles::<OUT>(w) - first);
                    let points = Points {
                        base: v,
                        point_stride: stride,
                        tile_stride: cout,
                    };
                    transform_input::<S, OUT>(
                        gradients.get(y as isize - 1, h),
                        Span {
                            first,
                            count,
                            w,
                            c: cout,
                        },
                        points,
                    );
                    let chunk = Chunk {
                        v,
                        k: cout,
                        count,
                        m,
                    };
                    for (lane, two) in groups(cin) {
                        let rows = std::array::from_fn(|r| {
                            (y + r < end).then(|| d_input.at((image * h + y + r) * w * cin + lane))
                        });
                        let out = Output {
                            rows,
                            stride: cin,
                            x: OUT * first,
                            w,
                            far,
                        };
                        let (u, zero) = (
                            shared.at(lane * POINTS * cout),
                            shared.at(transformed(self.op) + lane),
                        );
                        match cout {
                            16 => multiply_and_store::<S, 16, OUT>(&chunk, u, two, zero, out),
                            _ => multiply_and_store::<S, 0, OUT>(&chunk, u, two, zero, out),
                        }
                    }
                }
            }
            for at in (0..cin * cout).step_by(LANES) {
                gather_lanes::<S, 3>(sums.add(at), cin * cout, partial.at(at), cin * cout);
            }
            S::fence();
        }
    }
}

/// Runs the gradients of a convolution.
pub fn backward(ctx: &Context<'_>, op: &ConvBack) {
    let c = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    // SAFETY: the pieces lie inside parameters and workspace, do not overlap, and no task runs yet
    unsafe {
        let weight = ctx.param(c.parameters, c.weight).slice(0, c.weight.len);
        let shared = parts.shared().slice(0, workspace_back(op).shared);
        // the gradient at a pixel comes from the outputs on the other side: taps are turned
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
        d_input: op.d_input.map(|id| ctx.floats(id)),
    };
    ctx.parallel(bands.tasks(), &task);
    if !ctx.reduce(parts, op.slice) {
        return;
    }
    // SAFETY: the tasks are done, and the sums hold as many values as a partial
    let sums = unsafe { parts.sums().slice(0, gradients(c)) };
    ctx.store_gradient(op.gradients, c.weight, |i| {
        let (tap, ci, lane) = (i % 9, i / 9 % c.cin, i / 9 / c.cin);
        sums[(tap * c.cin + ci) * c.cout + lane]
    });
    ctx.store_gradient(op.gradients, c.bias, |lane| sums[9 * c.cin * c.cout + lane]);
}
