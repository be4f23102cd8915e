//! The convolutions of `conv` in Winograd's form: the same operations, the same shuffles and the same parameters, with 2.25
//! times fewer multiplications, for training. Depends on the transforms of `winograd`.

use super::arena::Shared;
use super::conv::{lanes, torch_index};
use super::rows::{row_outer, row_sum};
use super::simd::{Isa, LANES, Simd};
use super::tasks::{Bands, Context, Parts, Task, Workspace, whole};
use super::winograd::{
    CHUNK, Chunk, GROUP, Output, POINTS, gather_weights, multiply_and_store, pad_row, padded, tiles, transform_gradient, transform_input,
    transform_weights,
};
use crate::plan::{Conv, ConvBack};

/// Tiles of a weight gradient taken at a time: enough to keep sums in registers, few enough to stay in cache.
const OUTER_TILES: usize = 64;
/// Rows in flight: the four that two output rows depend on.
const RING: usize = 4;

/// Whether a convolution is computed in this form. With the sixteen registers of AVX2 the transforms cost more than they save
/// (measured: 0.86 times the speed of the direct form).
pub fn applies(c: &Conv, isa: Isa) -> bool {
    isa != Isa::Avx2 && !c.position_free && c.cin.is_multiple_of(LANES) && c.cout.is_multiple_of(LANES)
}

/// Output channels before the shuffle, in the order (dy, dx, channel).
fn all_lanes(c: &Conv) -> usize {
    c.shuffle * lanes(c)
}

/// f32 elements of transformed weights.
fn transformed(c: &Conv) -> usize {
    POINTS * c.cin * all_lanes(c)
}

/// Transformed weights of a pair of channels, taps turned by 180 degrees for the data gradient.
fn weights_of(c: &Conv, weight: &[f32], lane: usize, ci: usize, turned: bool) -> [f32; POINTS] {
    let per_row = lanes(c);
    transform_weights(std::array::from_fn(|tap| {
        let tap = if turned { 8 - tap } else { tap };
        weight[torch_index(c, lane / per_row, lane % per_row, ci, tap / 3, tap % 3)]
    }))
}

/// A ring of padded rows, each in `parts` pieces of `c` channels.
#[derive(Clone, Copy)]
struct Ring {
    base: Shared<f32>,
    source: Shared<f32>,
    image: usize,
    h: usize,
    w: usize,
    c: usize,
    parts: usize,
}

impl Ring {
    fn floats(w: usize, c: usize, parts: usize) -> usize {
        RING * parts * whole(padded(w) * c)
    }

    #[inline(always)]
    unsafe fn slot(&self, row: isize, part: usize) -> *mut f32 {
        unsafe { self.base.at(((row + 1) as usize % RING * self.parts + part) * whole(padded(self.w) * self.c)) }
    }

    #[inline(always)]
    unsafe fn load(&self, row: isize) {
        unsafe {
            for part in 0..self.parts {
                let inside = row >= 0 && row < self.h as isize;
                let at = |row: usize| ((self.image * self.h + row) * self.parts + part) * self.w * self.c;
                pad_row(inside.then(|| self.source.at(at(row as usize)).cast_const()), self.c, self.w, self.slot(row, part));
            }
        }
    }

    /// Makes sure rows y - 1 to y + 2 are there, given that they were for y - 2 unless `first`.
    #[inline(always)]
    unsafe fn advance(&self, y: usize, first: bool) {
        let y = y as isize;
        for row in (if first { y - 1 } else { y + 1 })..y + 3 {
            unsafe { self.load(row) };
        }
    }

    #[inline(always)]
    unsafe fn rows(&self, y: usize, part: usize) -> [*const f32; 4] {
        unsafe { std::array::from_fn(|k| self.slot(y as isize - 1 + k as isize, part).cast_const()) }
    }
}

/// Workspace of the forward operation.
pub fn workspace(c: &Conv) -> Workspace {
    Workspace {
        shared: transformed(c) + all_lanes(c),
        scratch: Ring::floats(c.extent.w, c.cin, 1) + POINTS * CHUNK * (c.cin + GROUP),
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
            let scratch = self.parts.scratch();
            let ring = Ring { base: scratch, source: self.input, image, h, w, c: cin, parts: 1 };
            let v = scratch.at(Ring::floats(w, cin, 1));
            let m = v.add(POINTS * CHUNK * cin);
            let bias = self.parts.shared().at(transformed(self.op));
            for y in (start..end).step_by(2) {
                ring.advance(y, y == start);
                let rows = ring.rows(y, 0);
                for first in (0..tiles(w)).step_by(CHUNK) {
                    let count = CHUNK.min(tiles(w) - first);
                    transform_input::<S>(rows, cin, first, count, v, (CHUNK * cin, cin));
                    let chunk = Chunk { v, k: cin, lanes: all, count, m };
                    for dy in 0..shuffle {
                        for lane in (0..per_row).step_by(GROUP) {
                            let two = lane + GROUP <= per_row;
                            let row = |r: usize| {
                                let at = (((image * h + y + r) * shuffle + dy) * w) * per_row + lane;
                                (y + r < end).then(|| self.output.at(at))
                            };
                            let out = Output { rows: [row(0), row(1)], stride: per_row, x: 2 * first, w };
                            let u = self.parts.shared().at(dy * per_row + lane);
                            let bias = bias.add(dy * per_row + lane);
                            match cin {
                                16 => multiply_and_store::<S, 16>(&chunk, u, two, bias, out),
                                _ => multiply_and_store::<S, 0>(&chunk, u, two, bias, out),
                            }
                        }
                    }
                }
            }
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
        let shared = parts.shared().slice(0, transformed(op) + all);
        for lane in 0..all {
            for ci in 0..op.cin {
                for (point, value) in weights_of(op, weight, lane, ci, false).into_iter().enumerate() {
                    shared[(point * op.cin + ci) * all + lane] = value;
                }
            }
            let (dy, dx, channel) = (lane / per_row, lane % per_row / op.cout, lane % op.cout);
            shared[transformed(op) + lane] = bias[channel * op.shuffle * op.shuffle + dy * op.shuffle + dx];
        }
    }
    let bands = Bands::new(op.extent);
    ctx.parallel(bands.tasks(), &Forward { op, parts, bands, input: ctx.floats(op.input), output: ctx.floats(op.output) });
}

/// Workspace of the backward operation.
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let c = &op.forward;
    let (w, all) = (c.extent.w, all_lanes(c));
    let outer = POINTS * OUTER_TILES.min(tiles(w)) * (c.cin + all);
    let product = POINTS * CHUNK * (all + GROUP);
    Workspace {
        shared: transformed(c) + c.cin,
        partial: transformed(c) + all,
        tasks: Bands::new(c.extent).tasks(),
        scratch: Ring::floats(w, c.cin, 1) + Ring::floats(w, lanes(c), c.shuffle) + outer.max(product),
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
            partial.at(0).write_bytes(0, transformed(self.op) + all);
            let scratch = self.parts.scratch();
            let inputs = Ring { base: scratch, source: self.input, image, h, w, c: cin, parts: 1 };
            let base = Shared::new(scratch.at(Ring::floats(w, cin, 1)));
            let gradients = Ring { base, source: self.d_output, image, h, w, c: per_row, parts: shuffle };
            let room = base.at(Ring::floats(w, per_row, shuffle));
            for y in (start..end).step_by(2) {
                inputs.advance(y, y == start);
                gradients.advance(y, y == start);
                let row = |r: usize, dy: usize| {
                    let at = ((image * h + y + r) * shuffle + dy) * w * per_row;
                    (y + r < end).then(|| self.d_output.at(at).cast_const())
                };
                for r in 0..2 {
                    for dy in 0..shuffle {
                        if let Some(d) = row(r, dy) {
                            row_sum::<S>(d, per_row, w, partial.at(transformed(self.op) + dy * per_row));
                        }
                    }
                }
                let span = OUTER_TILES.min(tiles(w));
                let (v, z) = (room, room.add(POINTS * span * cin));
                for first in (0..tiles(w)).step_by(span) {
                    let count = span.min(tiles(w) - first);
                    transform_input::<S>(inputs.rows(y, 0), cin, first, count, v, (span * cin, cin));
                    for dy in 0..shuffle {
                        transform_gradient::<S>(
                            [row(0, dy), row(1, dy)],
                            per_row,
                            w,
                            (first, count),
                            z.add(dy * per_row),
                            (span * all, all),
                        );
                    }
                    for point in 0..POINTS {
                        let (v, z) = (v.add(point * span * cin), z.add(point * span * all));
                        row_outer::<S>(v, cin, cin, z, all, count, partial.at(point * cin * all));
                    }
                }
                let Some(d_input) = self.d_input else { continue };
                let (v, m) = (room, room.add(POINTS * CHUNK * all));
                for first in (0..tiles(w)).step_by(CHUNK) {
                    let count = CHUNK.min(tiles(w) - first);
                    for dy in 0..shuffle {
                        transform_input::<S>(gradients.rows(y, dy), per_row, first, count, v.add(dy * per_row), (CHUNK * all, all));
                    }
                    let chunk = Chunk { v, k: all, lanes: cin, count, m };
                    for lane in (0..cin).step_by(GROUP) {
                        let two = lane + GROUP <= cin;
                        let row = |r: usize| (y + r < end).then(|| d_input.at((image * h + y + r) * w * cin + lane));
                        let out = Output { rows: [row(0), row(1)], stride: cin, x: 2 * first, w };
                        let (u, zero) = (self.parts.shared().at(lane), self.parts.shared().at(transformed(self.op) + lane));
                        match all {
                            16 => multiply_and_store::<S, 16>(&chunk, u, two, zero, out),
                            64 => multiply_and_store::<S, 64>(&chunk, u, two, zero, out),
                            _ => multiply_and_store::<S, 0>(&chunk, u, two, zero, out),
                        }
                    }
                }
            }
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
        let shared = parts.shared().slice(0, transformed(c) + c.cin);
        shared.fill(0.0);
        for lane in 0..all {
            for ci in 0..c.cin {
                for (point, value) in weights_of(c, weight, lane, ci, true).into_iter().enumerate() {
                    shared[(point * all + lane) * c.cin + ci] = value;
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
    let sums = unsafe { parts.sums().slice(0, transformed(c) + all) };
    let lane_of = |out: usize| {
        let (channel, sub) = (out / (c.shuffle * c.shuffle), out % (c.shuffle * c.shuffle));
        sub / c.shuffle * per_row + sub % c.shuffle * c.cout + channel
    };
    ctx.store_gradient(op.gradients, c.weight, |i| {
        let (tap, ci, lane) = (i % 9, i / 9 % c.cin, lane_of(i / 9 / c.cin));
        gather_weights(std::array::from_fn(|point| sums[(point * c.cin + ci) * all + lane]))[tap]
    });
    ctx.store_gradient(op.gradients, c.bias, |out| sums[transformed(c) + lane_of(out)]);
}
