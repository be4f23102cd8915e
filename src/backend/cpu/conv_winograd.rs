//! The convolutions of `conv` in Winograd's form: the same operations, the same shuffles and the same parameters, with four
//! times fewer multiplications, for training. Depends on the transforms of `winograd`.

use super::arena::Shared;
use super::conv::{lanes, torch_index};
use super::rows::{row_outer, row_sum};
use super::simd::{Isa, LANES, Simd};
use super::tasks::{Bands, Context, Parts, Task, Workspace, exceeds_cache};
use super::winograd::{
    CHUNK, Chunk, GROUP, OUT, Output, POINTS, Points, Span, gather_lanes, multiply_and_store, point_stride, products, tiles,
    transform_gradient, transform_input, transform_weights,
};
use crate::plan::{Conv, ConvBack};

/// Tiles of a weight gradient taken at a time: enough to keep sums in registers, few enough to stay in cache.
const OUTER_TILES: usize = 32;

/// Whether a convolution is computed in this form.
pub fn applies(c: &Conv, _isa: Isa) -> bool {
    !c.position_free && c.cin.is_multiple_of(LANES) && c.cout.is_multiple_of(LANES)
}

/// Output channels before the shuffle, in the order (dy, dx, channel).
fn all_lanes(c: &Conv) -> usize {
    c.shuffle * lanes(c)
}

/// f32 elements of transformed weights.
fn transformed(c: &Conv) -> usize {
    POINTS * c.cin * all_lanes(c)
}

/// Lanes `0..n` in the groups that are multiplied together: (first lane, whether two vectors).
fn groups(n: usize) -> impl Iterator<Item = (usize, bool)> {
    (0..n).step_by(GROUP).map(move |lane| (lane, lane + GROUP <= n))
}

/// Writes weights `[point][k][lanes of a group]`, group behind group, for `n` rows of `per_row` lanes; `value(lane, k)` gives the taps.
fn pack(out: &mut [f32], k: usize, (rows, per_row): (usize, usize), value: impl Fn(usize, usize) -> [f32; 9]) {
    for row in 0..rows {
        for (first, two) in groups(per_row) {
            let width = if two { GROUP } else { LANES };
            let first = row * per_row + first;
            let group = &mut out[first * POINTS * k..];
            for i in 0..k {
                for lane in 0..width {
                    for (point, value) in transform_weights(value(first + lane, i)).into_iter().enumerate() {
                        group[(point * k + i) * width + lane] = value;
                    }
                }
            }
        }
    }
}

/// Taps of a pair of channels, turned by 180 degrees for the data gradient.
fn taps(c: &Conv, weight: &[f32], lane: usize, ci: usize, turned: bool) -> [f32; 9] {
    let per_row = lanes(c);
    std::array::from_fn(|tap| {
        let tap = if turned { 8 - tap } else { tap };
        weight[torch_index(c, lane / per_row, lane % per_row, ci, tap / 3, tap % 3)]
    })
}

/// Rows `[w][c]` of one image of an activation whose rows lie in `parts` pieces.
#[derive(Clone, Copy)]
struct Rows {
    source: Shared<f32>,
    /// A row of zeros, for those outside.
    zeros: *const f32,
    image: usize,
    h: usize,
    w: usize,
    c: usize,
    parts: usize,
}

impl Rows {
    /// `N` rows from `first` on; those at `end` and behind, and those before the picture, are zeros.
    #[inline(always)]
    unsafe fn get<const N: usize>(&self, first: isize, end: usize, part: usize) -> [*const f32; N] {
        std::array::from_fn(|k| {
            let row = first + k as isize;
            if row < 0 || row >= end as isize {
                return self.zeros;
            }
            let at = ((self.image * self.h + row as usize) * self.parts + part) * self.w * self.c;
            // SAFETY: inside the activation
            unsafe { self.source.at(at).cast_const() }
        })
    }
}

/// Workspace of the forward operation: weights, biases and zeros; transformed inputs and products.
pub fn workspace(c: &Conv) -> Workspace {
    Workspace {
        shared: transformed(c) + all_lanes(c) + c.extent.w * c.cin,
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
        let Conv { extent, cin, shuffle, .. } = *self.op;
        let (per_row, all, w, h) = (lanes(self.op), all_lanes(self.op), extent.w, extent.h);
        let (image, start, end) = self.bands.task(task);
        unsafe {
            let v = self.parts.scratch().at(0);
            let m = v.add(POINTS * point_stride(CHUNK * cin));
            let shared = self.parts.shared();
            let bias = shared.at(transformed(self.op));
            let far = exceeds_cache(extent, all);
            let source = Rows { source: self.input, zeros: bias.add(all), image, h, w, c: cin, parts: 1 };
            for y in (start..end).step_by(OUT) {
                let rows = source.get(y as isize - 1, h, 0);
                for first in (0..tiles(w)).step_by(CHUNK) {
                    let count = CHUNK.min(tiles(w) - first);
                    let points = Points { base: v, point_stride: point_stride(CHUNK * cin), tile_stride: cin };
                    transform_input::<S>(rows, Span { first, count, w, c: cin }, points);
                    let chunk = Chunk { v, k: cin, count, m };
                    for dy in 0..shuffle {
                        for (lane, two) in groups(per_row) {
                            let rows = std::array::from_fn(|r| {
                                let at = (((image * h + y + r) * shuffle + dy) * w) * per_row + lane;
                                (y + r < end).then(|| self.output.at(at))
                            });
                            let out = Output { rows, stride: per_row, x: OUT * first, w, far };
                            let lane = dy * per_row + lane;
                            let u = shared.at(lane * POINTS * cin);
                            match cin {
                                16 => multiply_and_store::<S, 16>(&chunk, u, two, bias.add(lane), out),
                                _ => multiply_and_store::<S, 0>(&chunk, u, two, bias.add(lane), out),
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
    let (all, per_row) = (all_lanes(op), lanes(op));
    // SAFETY: parameters and workspace are live; nothing else runs yet
    unsafe {
        let weight = ctx.param(op.parameters, op.weight).slice(0, op.weight.len);
        let bias = ctx.param(op.parameters, op.bias).slice(0, op.bias.len);
        let shared = parts.shared().slice(0, workspace(op).shared);
        pack(shared, op.cin, (op.shuffle, per_row), |lane, ci| taps(op, weight, lane, ci, false));
        let (biases, zeros) = shared[transformed(op)..].split_at_mut(all);
        for (lane, out) in biases.iter_mut().enumerate() {
            let (dy, dx, channel) = (lane / per_row, lane % per_row / op.cout, lane % op.cout);
            *out = bias[channel * op.shuffle * op.shuffle + dy * op.shuffle + dx];
        }
        zeros.fill(0.0);
    }
    let bands = Bands::new(op.extent);
    ctx.parallel(bands.tasks(), &Forward { op, parts, bands, input: ctx.floats(op.input), output: ctx.floats(op.output) });
}

/// Tiles of a weight gradient taken at a time in rows of `w` pixels.
fn outer_tiles(w: usize) -> usize {
    OUTER_TILES.min(tiles(w))
}

/// f32 elements of a task's partial: gradients of the taps `[tap][ci][lane]`, then of the biases.
fn gradients(c: &Conv) -> usize {
    9 * c.cin * all_lanes(c) + all_lanes(c)
}

/// Workspace of the backward operation: weights and zeros; sums at the points, and transformed values.
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let c = &op.forward;
    let (w, all) = (c.extent.w, all_lanes(c));
    let outer = POINTS * (point_stride(outer_tiles(w) * c.cin) + point_stride(outer_tiles(w) * all));
    let product = POINTS * point_stride(CHUNK * all) + products();
    Workspace {
        shared: transformed(c) + c.cin + w * c.cin.max(lanes(c)),
        partial: gradients(c),
        tasks: Bands::new(c.extent).tasks(),
        scratch: transformed(c) + outer.max(product),
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
        let (per_row, all, w, h) = (lanes(self.op), all_lanes(self.op), extent.w, extent.h);
        let (image, start, end) = self.bands.task(task);
        unsafe {
            let partial = self.parts.partial(task);
            let biases = partial.at(9 * cin * all);
            biases.write_bytes(0, all);
            let sums = self.parts.scratch().at(0);
            sums.write_bytes(0, transformed(self.op));
            let room = sums.add(transformed(self.op));
            let shared = self.parts.shared();
            let zeros = shared.at(transformed(self.op) + cin).cast_const();
            let far = exceeds_cache(extent, cin);
            let inputs = Rows { source: self.input, zeros, image, h, w, c: cin, parts: 1 };
            let gradients = Rows { source: self.d_output, zeros, image, h, w, c: per_row, parts: shuffle };
            for y in (start..end).step_by(OUT) {
                let span = outer_tiles(w);
                let (v_stride, z_stride) = (point_stride(span * cin), point_stride(span * all));
                let (v, z) = (room, room.add(POINTS * v_stride));
                for first in (0..tiles(w)).step_by(span) {
                    let count = span.min(tiles(w) - first);
                    let points = Points { base: v, point_stride: v_stride, tile_stride: cin };
                    transform_input::<S>(inputs.get(y as isize - 1, h, 0), Span { first, count, w, c: cin }, points);
                    for dy in 0..shuffle {
                        let points = Points { base: z.add(dy * per_row), point_stride: z_stride, tile_stride: all };
                        transform_gradient::<S>(gradients.get(y as isize, end, dy), Span { first, count, w, c: per_row }, points);
                    }
                    for point in 0..POINTS {
                        let (v, z) = (v.add(point * v_stride), z.add(point * z_stride));
                        row_outer::<S>(v, cin, cin, z, all, count, sums.add(point * cin * all));
                    }
                }
                for dy in 0..shuffle {
                    for d in &gradients.get::<OUT>(y as isize, end, dy)[..OUT.min(end - y)] {
                        row_sum::<S>(*d, per_row, w, biases.add(dy * per_row));
                    }
                }
                let Some(d_input) = self.d_input else { continue };
                let stride = point_stride(CHUNK * all);
                let (v, m) = (room, room.add(POINTS * stride));
                for first in (0..tiles(w)).step_by(CHUNK) {
                    let count = CHUNK.min(tiles(w) - first);
                    for dy in 0..shuffle {
                        let points = Points { base: v.add(dy * per_row), point_stride: stride, tile_stride: all };
                        transform_input::<S>(gradients.get(y as isize - 1, h, dy), Span { first, count, w, c: per_row }, points);
                    }
                    let chunk = Chunk { v, k: all, count, m };
                    for (lane, two) in groups(cin) {
                        let rows = std::array::from_fn(|r| (y + r < end).then(|| d_input.at((image * h + y + r) * w * cin + lane)));
                        let out = Output { rows, stride: cin, x: OUT * first, w, far };
                        let (u, zero) = (shared.at(lane * POINTS * all), shared.at(transformed(self.op) + lane));
                        match all {
                            16 => multiply_and_store::<S, 16>(&chunk, u, two, zero, out),
                            64 => multiply_and_store::<S, 64>(&chunk, u, two, zero, out),
                            _ => multiply_and_store::<S, 0>(&chunk, u, two, zero, out),
                        }
                    }
                }
            }
            for ci in 0..cin {
                for lane in (0..all).step_by(LANES) {
                    let at = ci * all + lane;
                    gather_lanes::<S>(sums.add(at), cin * all, partial.at(at), cin * all);
                }
            }
            S::fence();
        }
    }
}

/// Runs the gradients of a convolution.
pub fn backward(ctx: &Context<'_>, op: &ConvBack) {
    let c = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    let (all, per_row) = (all_lanes(c), lanes(c));
    // SAFETY: parameters and workspace are live; nothing else runs yet
    unsafe {
        let weight = ctx.param(c.parameters, c.weight).slice(0, c.weight.len);
        let shared = parts.shared().slice(0, workspace_back(op).shared);
        pack(shared, all, (1, c.cin), |ci, lane| taps(c, weight, lane, ci, true));
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
    // SAFETY: the sums are complete
    let sums = unsafe { parts.sums().slice(0, gradients(c)) };
    let lane_of = |out: usize| {
        let (channel, sub) = (out / (c.shuffle * c.shuffle), out % (c.shuffle * c.shuffle));
        sub / c.shuffle * per_row + sub % c.shuffle * c.cout + channel
    };
    ctx.store_gradient(op.gradients, c.weight, |i| {
        let (tap, ci, lane) = (i % 9, i / 9 % c.cin, lane_of(i / 9 / c.cin));
        sums[(tap * c.cin + ci) * all + lane]
    });
    ctx.store_gradient(op.gradients, c.bias, |out| sums[9 * c.cin * all + lane_of(out)]);
}
