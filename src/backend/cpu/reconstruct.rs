//! The end of the network in one operation: upsampling convolution, pixel shuffle, `conv_out`, gain
//! and base, as the 5x5 convolution of `folded_conv`. Forward and backward in Winograd's form F(2x2,
//! 5x5), inference directly, so that its bits do not depend on where a tile begins. Depends on
//! `winograd`, the row kernels and the base.

use super::arena::Shared;
use super::base::{self, BaseBand, base_scratch};
use super::border::{MOST_FEATURES, Ring, shape};
use super::folded_conv::{Convolutions, Gradients, TAPS, compose, decompose};
use super::rows::{RowProduct, Start, pad_row, row_outer, row_product, row_sum};
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Parts, Task, Workspace, exceeds_cache, whole};
use super::tiling::{Rows, groups, pack, tiles};
use super::winograd::{
    CHUNK, Chunk, IN, Output, POINTS, Points, Span, gather_lanes, multiply_and_store, point_stride,
    products, transform_gradient, transform_input,
};
use crate::plan::{Reconstruct, ReconstructBack};

/// Outputs of a tile along a side, LQ pixels.
const OUT: usize = 2;
/// Tiles of a weight gradient taken at a time.
const OUTER_TILES: usize = 16;
/// Rows of the output's gradient in flight: six for a tile's inputs, and room for the next two.
const RING: usize = 8;

/// Lanes of the composition in whole vectors.
fn padded(head: &Reconstruct) -> usize {
    whole(shape(head).lanes())
}

/// Where packed weights lie in the shared part, f32 elements.
struct Packed {
    up: usize,
    up_bias: usize,
    /// `conv_out`.
    out: usize,
    /// The composition in f64, only while it is packed.
    kernel: usize,
    /// Its bias times gain, `[lane]`.
    bias: usize,
    /// The composition times gain, as the form at hand takes it.
    weights: usize,
    /// A row of zeros.
    zeros: usize,
    len: usize,
}

fn packed(op: &Reconstruct, backward: bool) -> Packed {
    let (s, f, lanes) = (shape(op), op.features, padded(op));
    let mut at = 0;
    let mut take = |len: usize| {
        at += whole(len);
        at - whole(len)
    };
    let (up, up_bias, out) = (
        take(s.up_weights()),
        take(f * s.scale * s.scale),
        take(s.out_weights()),
    );
    let (kernel, bias) = (take(2 * (s.kernel() + s.lanes())), take(lanes.max(f)));
    let weights = take(if op.tile_invariant && !backward {
        TAPS * TAPS * f * lanes
    } else {
        POINTS * f * lanes
    });
    let zeros = take(op.extent.w * lanes.max(f));
    Packed {
        up,
        up_bias,
        out,
        kernel,
        bias,
        weights,
        zeros,
        len: at,
    }
}

/// What the packed parameters are multiplied by once, `detail_gain`; and the parameters in the
/// orders of `folded_conv`.
struct Parameters<'a> {
    gain: f32,
    convolutions: Convolutions<'a>,
}

/// Packs parameters and composes them; the kernel `[lane][5 x 5][ci]` and bias are handed to
/// `then`, to be packed.
fn pack_parameters<'a>(
    ctx: &Context<'_>,
    op: &Reconstruct,
    parts: Parts,
    p: &Packed,
    then: impl FnOnce(&[f64], &[f64], f64),
) -> Parameters<'a> {
    let s = shape(op);
    // SAFETY: the ranges lie inside the parameters, the pieces inside the workspace (see `packed`),
    // where they do not overlap and begin at whole vectors, which aligns the f64 as well; no task
    // runs yet, and none writes them later
    unsafe {
        let get =
            |range: crate::plan::ParamRange| &*ctx.param(op.parameters, range).slice(0, range.len);
        let shared = parts.shared();
        let (up, up_bias) = (
            shared.slice(p.up, s.up_weights()),
            shared.slice(p.up_bias, s.features * s.scale * s.scale),
        );
        let out = shared.slice(p.out, s.out_weights());
        let (weight, bias, out_weight) = (get(op.up_weight), get(op.up_bias), get(op.weight));
        up.iter_mut()
            .enumerate()
            .for_each(|(i, u)| *u = weight[s.torch_up(i)]);
        bias.iter()
            .enumerate()
            .for_each(|(i, &b)| up_bias[s.bias_of_torch(i)] = b);
        out_weight
            .iter()
            .enumerate()
            .for_each(|(i, &w)| out[s.out_of_torch(i)] = w);
        shared.slice(p.zeros, p.len - p.zeros).fill(0.0);
        let convolutions = Convolutions {
            up,
            up_bias,
            out,
            out_bias: get(op.bias),
        };
        let gain = get(op.gain)[0];
        let kernel = std::slice::from_raw_parts_mut(
            shared.at(p.kernel).cast::<f64>(),
            s.kernel() + s.lanes(),
        );
        let (kernel, bias) = kernel.split_at_mut(s.kernel());
        compose(s, convolutions, kernel, bias);
        then(kernel, bias, f64::from(gain));
        Parameters { gain, convolutions }
    }
}

/// Workspace of the forward operation.
pub fn workspace(op: &Reconstruct) -> Workspace {
    let Reconstruct {
        extent,
        features: f,
        scale,
        ..
    } = *op;
    let rows = if op.tile_invariant {
        TAPS * whole((extent.w + TAPS - 1) * f)
    } else {
        POINTS * point_stride(CHUNK * f) + products()
    };
    Workspace {
        shared: packed(op, false).len,
        scratch: OUT * extent.w * padded(op)
            + whole(extent.w * scale * 3)
            + base_scratch(op)
            + rows,
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a Reconstruct,
    parts: Parts,
    bands: Bands,
    parameters: Parameters<'a>,
    input: Shared<f32>,
    features: Shared<f32>,
    output: Shared<f32>,
    bytes: Shared<u8>,
}

impl Forward<'_> {
    /// The composition of up to two LQ rows from `y` on, `[row][w][lane]`, in tiles.
    ///
    /// # Safety
    /// As [`Task::run`] of a task with rows up to `end`; `v` has room for a chunk of transformed
    /// inputs and products, `detail` for rows.
    #[inline(always)]
    unsafe fn tiled<S: Simd>(
        &self,
        image: usize,
        y: usize,
        end: usize,
        v: *mut f32,
        detail: *mut f32,
    ) {
        let Reconstruct {
            extent,
            features: f,
            ..
        } = *self.op;
        let (p, lanes, w) = (packed(self.op, false), padded(self.op), extent.w);
        // SAFETY: features hold the image's rows, the workspace weights, biases and a row of zeros
        // as `forward` packed them, and the caller gives the rest of the room; features and padded
        // lanes are whole vectors
        unsafe {
            let shared = self.parts.shared();
            let m = v.add(POINTS * point_stride(CHUNK * f));
            let source = Rows {
                source: self.features,
                zeros: shared.at(p.zeros),
                image,
                h: extent.h,
                w,
                c: f,
            };
            let rows = source.get::<IN>(y as isize - 2, extent.h);
            for first in (0..tiles::<OUT>(w)).step_by(CHUNK) {
                let count = CHUNK.min(tiles::<OUT>(w) - first);
                let points = Points {
                    base: v,
                    point_stride: point_stride(CHUNK * f),
                    tile_stride: f,
                };
                transform_input::<S, OUT>(
                    rows,
                    Span {
                        first,
                        count,
                        w,
                        c: f,
                    },
                    points,
                );
                let chunk = Chunk { v, k: f, count, m };
                for (lane, two) in groups(lanes) {
                    let rows = std::array::from_fn(|r| {
                        (y + r < end).then(|| detail.add(r * w * lanes + lane))
                    });
                    let out = Output {
                        rows,
                        stride: lanes,
                        x: OUT * first,
                        w,
                        far: false,
                    };
                    let u = shared.at(p.weights + lane * POINTS * f);
                    match f {
                        16 => multiply_and_store::<S, 16, OUT>(
                            &chunk,
                            u,
                            two,
                            shared.at(p.bias + lane),
                            out,
                        ),
                        _ => multiply_and_store::<S, 0, OUT>(
                            &chunk,
                            u,
                            two,
                            shared.at(p.bias + lane),
                            out,
                        ),
                    }
                }
            }
        }
    }

    /// The composition of one LQ row, directly.
    ///
    /// # Safety
    /// As [`Task::run`]; `slot` gives the padded rows around `y`, which are loaded, and `detail`
    /// has room for the row.
    #[inline(always)]
    unsafe fn direct<S: Simd>(&self, y: usize, slot: impl Fn(isize) -> *mut f32, detail: *mut f32) {
        let Reconstruct {
            extent,
            features: f,
            ..
        } = *self.op;
        let p = packed(self.op, false);
        // SAFETY: a padded row holds `w + 4` pixels, lanes are whole vectors, weights and biases
        // are packed for them, and `detail` has room, as the caller says
        unsafe {
            let rows: [*const f32; TAPS] =
                std::array::from_fn(|k| slot(y as isize - 2 + k as isize).cast_const());
            let product = RowProduct {
                rows: &rows,
                stride: f,
                taps: TAPS * f,
                weights: self.parts.shared().at(p.weights),
                lanes: padded(self.op),
                start: Start::Bias(self.parts.shared().at(p.bias)),
                out: detail,
                w: extent.w,
                far: false,
            };
            match f {
                16 => row_product::<S, 16>(&product),
                _ => row_product::<S, 0>(&product),
            }
        }
    }

    /// Takes the ring's share away from HR rows `first..end`.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose rows these are.
    #[inline(always)]
    unsafe fn correct<S: Simd>(&self, image: usize, first: usize, end: usize) {
        let Reconstruct {
            extent,
            features: f,
            scale,
            ..
        } = *self.op;
        let c = self.parameters.convolutions;
        let ring = Ring {
            head: self.op,
            convolutions: c,
            features: self.features,
            image,
        };
        for at in ring.pixels(first as isize - 1, end as isize) {
            let mut u = [0.0; MOST_FEATURES];
            // SAFETY: rows `first..end` are this task's and `seen_by` gives pixels of the image;
            // features are whole vectors, of which `u` has room for the most, and `conv_out` has 27
            // times as many weights
            unsafe {
                ring.features::<S>(at, u.as_mut_ptr());
                for (tap, row, column) in ring
                    .seen_by(at)
                    .filter(|&(_, row, _)| row >= first && row < end)
                {
                    let out = self
                        .output
                        .at(((image * extent.h * scale + row) * extent.w * scale + column) * 3);
                    for o in 0..3 {
                        let mut sum = S::splat(0.0);
                        for lane in (0..f).step_by(LANES) {
                            let weight = S::load(c.out.as_ptr().add((tap * 3 + o) * f + lane));
                            sum = S::fma(weight, S::load(u.as_ptr().add(lane)), sum);
                        }
                        *out.add(o) -= self.parameters.gain * S::sum(sum);
                    }
                }
            }
        }
    }
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Reconstruct {
            extent,
            features: f,
            scale,
            ..
        } = *self.op;
        let (w, lanes, wide) = (extent.w, padded(self.op), extent.w * scale * 3);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: HR rows `start * scale..end * scale` of the output are this task's, and the
        // pieces of the scratch lie one behind the other as in `workspace`; the rest is
        // `Task::run`'s contract
        unsafe {
            let scratch = self.parts.scratch();
            let detail = scratch.at(0);
            let base_row = scratch.slice(OUT * w * lanes, wide);
            let mut at = OUT * w * lanes + whole(wide);
            let mut base = BaseBand::new(
                self.op,
                self.input,
                self.bytes,
                image,
                start..end,
                Shared::new(scratch.at(at)),
            );
            at += base_scratch(self.op);
            let room = scratch.at(at);
            let slot = |row: isize| room.add((row + 2) as usize % TAPS * whole((w + TAPS - 1) * f));
            let load = |row: isize| {
                let inside = row >= 0 && row < extent.h as isize;
                let source = inside.then(|| {
                    self.features
                        .at((image * extent.h + row as usize) * w * f)
                        .cast_const()
                });
                pad_row(source, 2 * f, w * f, slot(row));
            };
            if self.op.tile_invariant {
                (start as isize - 2..start as isize + 2).for_each(load);
            }
            for y in (start..end).step_by(OUT) {
                let rows = OUT.min(end - y);
                if self.op.tile_invariant {
                    for r in 0..rows {
                        load((y + r) as isize + 2);
                        self.direct::<S>(y + r, slot, detail.add(r * w * lanes));
                    }
                } else {
                    self.tiled::<S>(image, y, end, room, detail);
                }
                for (r, dy) in (0..rows).flat_map(|r| (0..scale).map(move |dy| (r, dy))) {
                    let row = (y + r) * scale + dy;
                    base.row(row, base_row);
                    let out = self
                        .output
                        .slice((image * extent.h * scale + row) * wide, wide);
                    let detail = std::slice::from_raw_parts(
                        detail.add(r * w * lanes + dy * 3 * scale),
                        w * lanes - dy * 3 * scale,
                    );
                    match scale {
                        2 => add_detail::<6>(base_row, detail, lanes, out),
                        3 => add_detail::<9>(base_row, detail, lanes, out),
                        4 => add_detail::<12>(base_row, detail, lanes, out),
                        _ => add_detail::<24>(base_row, detail, lanes, out),
                    }
                }
            }
            self.correct::<S>(image, start * scale, end * scale);
        }
    }
}

/// One HR row: `out[x][i] = base[x][i] + detail[x * stride + i]`, N values from an LQ pixel.
#[inline(always)]
fn add_detail<const N: usize>(base: &[f32], detail: &[f32], stride: usize, out: &mut [f32]) {
    for ((out, base), detail) in out
        .chunks_exact_mut(N)
        .zip(base.chunks_exact(N))
        .zip(detail.chunks(stride))
    {
        for i in 0..N {
            out[i] = base[i] + detail[i];
        }
    }
}

/// Runs the operation.
pub fn forward(ctx: &Context<'_>, op: &Reconstruct) {
    let parts = ctx.parts(op.workspace, workspace(op));
    let (p, s, lanes, f) = (packed(op, false), shape(op), padded(op), op.features);
    let parameters = pack_parameters(ctx, op, parts, &p, |kernel, bias, gain| {
        // SAFETY: these pieces of the workspace lie apart from those that `pack_parameters` uses,
        // and no task runs yet
        let (biases, weights) = unsafe {
            (
                parts.shared().slice(p.bias, lanes),
                parts.shared().slice(p.weights, p.zeros - p.weights),
            )
        };
        biases.fill(0.0);
        biases
            .iter_mut()
            .zip(bias)
            .for_each(|(to, &b)| *to = (gain * b) as f32);
        let value = |lane: usize, tap: usize, ci: usize| match lane < s.lanes() {
            true => gain * kernel[(lane * TAPS * TAPS + tap) * f + ci],
            false => 0.0,
        };
        if op.tile_invariant {
            for (i, to) in weights.iter_mut().enumerate() {
                *to = value(i % lanes, i / lanes / f, i / lanes % f) as f32;
            }
        } else {
            pack::<TAPS>(weights, f, lanes, |lane, ci, tap| value(lane, tap, ci));
        }
    });
    let bands = Bands::new(op.extent);
    let task = Forward {
        op,
        parts,
        bands,
        parameters,
        input: ctx.floats(op.input),
        features: ctx.floats(op.features_in),
        output: ctx.floats(op.output),
        bytes: op
            .target
            .map_or(Shared::new(std::ptr::null_mut()), |batch| {
                ctx.pointer(batch.buffer)
            }),
    };
    ctx.parallel(bands.tasks(), &task);
}

/// Where the sums of a backward task lie in its partial, f32 elements; none carries the gain yet.
struct Sums {
    /// `[5 x 5][lane][ci]`
    kernel: usize,
    /// `[lane]`
    bias: usize,
    /// The ring's part, in the orders of [`Convolutions`].
    up: usize,
    up_bias: usize,
    out: usize,
    len: usize,
}

fn sums(head: &Reconstruct) -> Sums {
    let s = shape(head);
    let kernel = 0;
    let bias = s.kernel();
    let up = bias + padded(head);
    let up_bias = up + s.up_weights();
    let out = up_bias + s.features * s.scale * s.scale;
    Sums {
        kernel,
        bias,
        up,
        up_bias,
        out,
        len: out + s.out_weights(),
    }
}

/// Tiles of a weight gradient taken at a time in rows of `w` pixels.
fn outer_tiles(w: usize) -> usize {
    OUTER_TILES.min(tiles::<OUT>(w))
}

/// Lanes from one tile to the next in the transformed gradient: those of a single vector are packed
/// tightly, since what a store writes behind them the next tile overwrites.
fn depth(head: &Reconstruct) -> usize {
    if padded(head) == LANES {
        shape(head).lanes()
    } else {
        padded(head)
    }
}

/// Workspace of the backward operation: weights; sums; sums at the points, gradient rows, and
/// transformed values.
pub fn workspace_back(op: &ReconstructBack) -> Workspace {
    let head = &op.forward;
    let (f, w, lanes) = (head.features, head.extent.w, padded(head));
    let span = outer_tiles(w);
    let outer = POINTS * (point_stride(span * f) + point_stride(span * lanes));
    let product = POINTS * point_stride(CHUNK * depth(head)) + products();
    Workspace {
        shared: packed(&op.forward, true).len,
        partial: sums(head).len,
        tasks: Bands::new(head.extent).tasks(),
        scratch: POINTS * shape(head).lanes() * f + RING * w * lanes + outer.max(product),
    }
}

struct Backward<'a> {
    op: &'a Reconstruct,
    parts: Parts,
    bands: Bands,
    parameters: Parameters<'a>,
    features: Shared<f32>,
    d_output: Shared<f32>,
    d_features: Shared<f32>,
}

impl Backward<'_> {
    /// The gradient of an LQ row's values, `[w][lane]`, from the HR rows it became; zeros outside
    /// the image.
    ///
    /// # Safety
    /// As [`Task::run`]; `to` has room for the row.
    #[inline(always)]
    unsafe fn load(&self, image: usize, row: isize, to: *mut f32) {
        let Reconstruct { extent, scale, .. } = *self.op;
        let (w, lanes, n) = (extent.w, padded(self.op), 3 * scale);
        // SAFETY: the gradient of the output holds the HR rows of every LQ row of the image; for
        // the scales there are (2, 3, 4, 8) the `scale` pieces of 3 `scale` values fit into the
        // lanes of a pixel
        unsafe {
            if row < 0 || row >= extent.h as isize {
                to.write_bytes(0, w * lanes);
                return;
            }
            for dy in 0..scale {
                let from = self
                    .d_output
                    .at((image * extent.h * scale + row as usize * scale + dy) * w * n)
                    .cast_const();
                match scale {
                    2 => spread::<6>(from, w, to.add(dy * n), lanes),
                    3 => spread::<9>(from, w, to.add(dy * n), lanes),
                    4 => spread::<12>(from, w, to.add(dy * n), lanes),
                    _ => spread::<24>(from, w, to.add(dy * n), lanes),
                }
            }
            for lane in scale * n..lanes {
                for x in 0..w {
                    *to.add(x * lanes + lane) = 0.0;
                }
            }
        }
    }

    /// Takes away what the ring had no part in: from the gradient of the features in LQ rows
    /// `start..end`, and from the sums where the ring's pixel is this band's.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose rows and partial these are.
    #[inline(always)]
    unsafe fn correct<S: Simd>(
        &self,
        image: usize,
        (start, end): (usize, usize),
        partial: Shared<f32>,
    ) {
        let Reconstruct {
            extent,
            features: f,
            scale,
            ..
        } = *self.op;
        let (shape, sums, c) = (shape(self.op), sums(self.op), self.parameters.convolutions);
        let ring = Ring {
            head: self.op,
            convolutions: c,
            features: self.features,
            image,
        };
        let (hh, s) = ((extent.h * scale) as isize, scale as isize);
        for at in ring.pixels((start as isize - 1) * s, (end as isize + 1) * s - 1) {
            let owner = at.y.clamp(0, hh - 1).div_euclid(s) as usize;
            let own = owner >= start && owner < end;
            let (lq, phase) = ring.place(at);
            let (mut u, mut d) = ([0.0; MOST_FEATURES], [0.0f32; MOST_FEATURES]);
            // SAFETY: rows `start..end` and the partial are this task's, `seen_by` and `inside`
            // give pixels of the image; features are whole vectors, of which `u` and `d` have
            // room for the most, and weights and their sums are indexed alike
            unsafe {
                if own {
                    ring.features::<S>(at, u.as_mut_ptr());
                }
                for (tap, row, column) in ring.seen_by(at) {
                    let d_out =
                        self.d_output
                            .at(((image * extent.h * scale + row) * extent.w * scale + column) * 3);
                    for o in 0..3 {
                        let slope = S::splat(-*d_out.add(o));
                        for lane in (0..f).step_by(LANES) {
                            let weight = (tap * 3 + o) * f + lane;
                            let to = d.as_mut_ptr().add(lane);
                            S::store(
                                to,
                                S::fma(slope, S::load(c.out.as_ptr().add(weight)), S::load(to)),
                            );
                            if own {
                                let to = partial.at(sums.out + weight);
                                S::store(
                                    to,
                                    S::fma(slope, S::load(u.as_ptr().add(lane)), S::load(to)),
                                );
                            }
                        }
                    }
                }
                if own {
                    for (channel, &d) in d[..f].iter().enumerate() {
                        *partial.at(sums.up_bias + (phase.0 * scale + phase.1) * f + channel) += d;
                    }
                }
                for (t, row, column) in ring.inside(lq) {
                    let mine = row >= start && row < end;
                    for lane in (0..f).step_by(LANES) {
                        let value = S::load(ring.feature(row, column).add(lane));
                        let mut sum = S::splat(0.0);
                        for (channel, &d) in d[..f].iter().enumerate() {
                            let at = shape.up_at(phase, channel, t) + lane;
                            sum = S::fma(S::splat(d), S::load(c.up.as_ptr().add(at)), sum);
                            if own {
                                let to = partial.at(sums.up + at);
                                S::store(to, S::fma(S::splat(d), value, S::load(to)));
                            }
                        }
                        if mine {
                            let to = self
                                .d_features
                                .at(((image * extent.h + row) * extent.w + column) * f + lane);
                            S::store(to, S::fma(S::splat(self.parameters.gain), sum, S::load(to)));
                        }
                    }
                }
            }
        }
    }
}

/// `to[x * stride + i] = from[x * N + i]`.
///
/// # Safety
/// `from` holds `w` times N values, and `to`, apart from it and nobody else's, has room for N from
/// each multiple of `stride` on.
#[inline(always)]
unsafe fn spread<const N: usize>(from: *const f32, w: usize, to: *mut f32, stride: usize) {
    for x in 0..w {
        // SAFETY: `x` is below `w`, and the caller says that there are N values to read and to
        // write
        unsafe {
            to.add(x * stride)
                .cast::<[f32; N]>()
                .write_unaligned(from.add(x * N).cast::<[f32; N]>().read_unaligned())
        };
    }
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let head = self.op;
        let (extent, f, w, h) = (head.extent, head.features, head.extent.w, head.extent.h);
        let (count, lanes, depth) = (shape(head).lanes(), padded(head), depth(head));
        let (p, s) = (packed(self.op, true), sums(head));
        let (image, start, end) = self.bands.task(task);
        // SAFETY: rows `start..end` of `d_features` and the partial are this task's, and the pieces
        // of the scratch lie one behind the other as in `workspace_back`; the rest is `Task::run`'s
        // contract
        unsafe {
            let partial = self.parts.partial(task);
            partial.at(0).write_bytes(0, s.len);
            let points = self.parts.scratch().at(0);
            points.write_bytes(0, POINTS * count * f);
            let ring = points.add(POINTS * count * f);
            let room = ring.add(RING * w * lanes);
            let slot = |row: isize| ring.add((row + 2) as usize % RING * w * lanes);
            let shared = self.parts.shared();
            let far = exceeds_cache(extent, f);
            let inputs = Rows {
                source: self.features,
                zeros: shared.at(p.zeros),
                image,
                h,
                w,
                c: f,
            };
            (start as isize - 2..start as isize + 2)
                .for_each(|row| self.load(image, row, slot(row)));
            for y in (start..end).step_by(OUT) {
                let row = y as isize;
                (row + 2..row + 4).for_each(|row| self.load(image, row, slot(row)));
                let own = OUT.min(end - y);
                for r in 0..own {
                    row_sum::<S>(slot(row + r as isize), lanes, w, partial.at(s.bias));
                }
                // the weights' gradient counts rows of this band only
                let gradients: [*const f32; OUT] = std::array::from_fn(|r| {
                    if r < own {
                        slot(row + r as isize).cast_const()
                    } else {
                        shared.at(p.zeros).cast_const()
                    }
                });
                let span = outer_tiles(w);
                let (v_stride, z_stride) = (point_stride(span * f), point_stride(span * lanes));
                let (v, z) = (room, room.add(POINTS * v_stride));
                for first in (0..tiles::<OUT>(w)).step_by(span) {
                    let tiles = span.min(tiles::<OUT>(w) - first);
                    let to = Points {
                        base: v,
                        point_stride: v_stride,
                        tile_stride: f,
                    };
                    transform_input::<S, OUT>(
                        inputs.get(row - 2, h),
                        Span {
                            first,
                            count: tiles,
                            w,
                            c: f,
                        },
                        to,
                    );
                    let to = Points {
                        base: z,
                        point_stride: z_stride,
                        tile_stride: lanes,
                    };
                    transform_gradient::<S, OUT>(
                        gradients,
                        Span {
                            first,
                            count: tiles,
                            w,
                            c: lanes,
                        },
                        to,
                    );
                    for point in 0..POINTS {
                        let (v, z) = (v.add(point * v_stride), z.add(point * z_stride));
                        row_outer::<S>(z, lanes, count, v, f, tiles, points.add(point * count * f));
                    }
                }
                let rows: [*const f32; IN] =
                    std::array::from_fn(|k| slot(row - 2 + k as isize).cast_const());
                let stride = point_stride(CHUNK * depth);
                let (v, m) = (room, room.add(POINTS * stride));
                for first in (0..tiles::<OUT>(w)).step_by(CHUNK) {
                    let tiles = CHUNK.min(tiles::<OUT>(w) - first);
                    let to = Points {
                        base: v,
                        point_stride: stride,
                        tile_stride: depth,
                    };
                    transform_input::<S, OUT>(
                        rows,
                        Span {
                            first,
                            count: tiles,
                            w,
                            c: lanes,
                        },
                        to,
                    );
                    let chunk = Chunk {
                        v,
                        k: depth,
                        count: tiles,
                        m,
                    };
                    for (lane, two) in groups(f) {
                        let rows = std::array::from_fn(|r| {
                            (y + r < end)
                                .then(|| self.d_features.at((image * h + y + r) * w * f + lane))
                        });
                        let out = Output {
                            rows,
                            stride: f,
                            x: OUT * first,
                            w,
                            far,
                        };
                        let (u, zero) = (
                            shared.at(p.weights + lane * POINTS * depth),
                            shared.at(p.bias + lane),
                        );
                        match depth {
                            12 => multiply_and_store::<S, 12, OUT>(&chunk, u, two, zero, out),
                            _ => multiply_and_store::<S, 0, OUT>(&chunk, u, two, zero, out),
                        }
                    }
                }
            }
            for at in (0..count * f).step_by(LANES) {
                gather_lanes::<S, TAPS>(
                    points.add(at),
                    count * f,
                    partial.at(s.kernel + at),
                    count * f,
                );
            }
            S::fence();
            self.correct::<S>(image, (start, end), partial);
        }
    }
}

/// Runs the gradients.
pub fn backward(ctx: &Context<'_>, op: &ReconstructBack) {
    let head = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    let (p, s, f) = (packed(head, true), shape(head), head.features);
    let parameters = pack_parameters(ctx, head, parts, &p, |kernel, _, gain| {
        // SAFETY: these pieces of the workspace lie apart from those that `pack_parameters` uses,
        // and no task runs yet
        let (zeros, weights) = unsafe {
            (
                parts.shared().slice(p.bias, f),
                parts.shared().slice(p.weights, p.zeros - p.weights),
            )
        };
        zeros.fill(0.0);
        // the gradient at a pixel comes from the outputs on the other side: taps are turned
        pack::<TAPS>(weights, depth(head), f, |ci, lane, tap| {
            match lane < s.lanes() {
                true => gain * kernel[(lane * TAPS * TAPS + TAPS * TAPS - 1 - tap) * f + ci],
                false => 0.0,
            }
        });
    });
    let bands = Bands::new(head.extent);
    let task = Backward {
        op: head,
        parts,
        bands,
        parameters,
        features: ctx.floats(head.features_in),
        d_output: ctx.floats(op.d_output),
        d_features: ctx.floats(op.d_features),
    };
    ctx.parallel(bands.tasks(), &task);
    if let Some(d_input) = op.d_input {
        base::backward_batch(
            ctx.floats(op.d_output),
            head.extent,
            head.scale,
            head.alpha,
            ctx.floats(d_input),
        );
    }
    if !ctx.reduce(parts, op.slice) {
        return;
    }
    let sums_of = sums(head);
    // SAFETY: the tasks are done, the sums hold as many values as a partial, and nothing else uses
    // them
    let sum = unsafe { parts.sums().slice(0, sums_of.len) };
    let (folded, ring) = sum.split_at_mut(sums_of.up);
    let (up, rest) = ring.split_at_mut(s.up_weights());
    let (up_bias, out) = rest.split_at_mut(f * s.scale * s.scale);
    let (kernel, bias) = (
        &folded[..sums_of.bias],
        &folded[sums_of.bias..][..s.lanes()],
    );
    let Parameters { gain, convolutions } = task.parameters;
    decompose(
        s,
        convolutions,
        Gradients { kernel, bias },
        up,
        up_bias,
        out,
    );
    let d_sum = |o: usize| {
        bias.iter()
            .skip(o)
            .step_by(3)
            .map(|&b| f64::from(b))
            .sum::<f64>()
    };
    ctx.store_gradient(op.gradients, head.up_weight, |i| {
        gain * up[s.up_of_torch(i)]
    });
    ctx.store_gradient(op.gradients, head.up_bias, |i| {
        gain * up_bias[s.bias_of_torch(i)]
    });
    ctx.store_gradient(op.gradients, head.weight, |i| gain * out[s.out_of_torch(i)]);
    ctx.store_gradient(op.gradients, head.bias, |o| gain * d_sum(o) as f32);
    // detail is linear in conv_out, whose gradient therefore holds every term of the gain's
    ctx.store_gradient(op.gradients, head.gain, |_| {
        let products: f64 = convolutions
            .out
            .iter()
            .zip(&*out)
            .map(|(&w, &d)| f64::from(w) * f64::from(d))
            .sum();
        let biases: f64 = convolutions
            .out_bias
            .iter()
            .enumerate()
            .map(|(o, &b)| f64::from(b) * d_sum(o))
            .sum();
        (products + biases) as f32
    });
}
