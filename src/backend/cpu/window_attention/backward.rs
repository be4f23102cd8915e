//! The backward pass of window attention: the weights of sixteen queries are computed again, then
//! their gradients, which give d_q at once and are added to d_k and d_v. Depends on `tiles` and on
//! what both passes share.
//!
//! With the weights e before the division, their sum l, and the gradients g of the output:
//! `d_weights = g v`, `dots = sum of e d_weights / l`, `d_scores = e (d_weights - dots) / l`. The
//! division is applied to q and g where they are factors of d_k and d_v, and to d_q.

use super::super::arena::SharedPtr;
use super::super::elementwise::{Output, Store};
use super::super::simd::{LANES, Simd};
use super::super::tasks::{Context, Task, Workspace, WorkspaceParts};
use super::forward::QUERY_FACTOR;
use super::tiles::{
    self, AddTransposed, Scores, TILE, WeightGradients, compute, softmax, softmax_back,
    sum_products, sum_rows, transpose_tiles,
};
use super::{HEAD, Qkv, WindowPixels, chunk, gather, key_tiles, start_scores, take};
use crate::plan::{WindowAttention, WindowAttentionBack};

/// Tiles of the scratch that do not depend on the window.
const FIXED_TILES: usize = 3;

/// The parts of the scratch of a window's task. All but the last are tiles.
struct Scratch {
    /// q times [`QUERY_FACTOR`], `[query][channel]`.
    q: *mut f32,
    /// The output's gradient, `[query][channel]`.
    d: *mut f32,
    /// k, `[key][channel]`, and `[tile][channel][16 keys]`.
    k_rows: *mut f32,
    k: *mut f32,
    /// v, `[tile][channel][16 keys]`.
    v: *mut f32,
    /// The sums of d_k (times a factor) and d_v, `[tile][channel][16 keys]`.
    d_k: *mut f32,
    d_v: *mut f32,
    /// Scores of sixteen queries, then their weights: `[tile][query][16 keys]`.
    weights: *mut f32,
    /// The gradients of the weights, then of the scores: `[tile][query][16 keys]`.
    d_weights: *mut f32,
    /// `[query][16]`: the largest scores, sums, d_q.
    rows: *mut f32,
    /// q and d of sixteen queries over the sums of their weights.
    q_scaled: *mut f32,
    d_scaled: *mut f32,
    /// What scores start with, `[key]`.
    start: *mut f32,
    /// One over the sums of 16 queries' weights, and the dots of the weights and their gradients.
    inverse: *mut f32,
    dots: *mut f32,
}

/// The layout of the workspace.
pub(super) fn workspace(op: &WindowAttentionBack) -> Workspace {
    let tiles = key_tiles(&op.forward);
    Workspace {
        scratch: (9 * tiles + FIXED_TILES) * TILE + tiles * LANES + 2 * LANES,
        ..Workspace::default()
    }
}

impl Scratch {
    /// # Safety
    /// The scratch has the layout of [`workspace`] for windows of `tiles` tiles.
    unsafe fn new(mut scratch: *mut f32, tiles: usize) -> Scratch {
        let rest = &mut scratch;
        // SAFETY: `workspace` counts these parts
        unsafe {
            let [q, d, k_rows, k, v, d_k, d_v, weights, d_weights] =
                [tiles; 9].map(|n| take(rest, n));
            let [rows, q_scaled, d_scaled] = [1; FIXED_TILES].map(|n| take(rest, n));
            let inverse = scratch.add(tiles * LANES);
            Scratch {
                q,
                d,
                k_rows,
                k,
                v,
                d_k,
                d_v,
                weights,
                d_weights,
                rows,
                q_scaled,
                d_scaled,
                start: scratch,
                inverse,
                dots: inverse.add(LANES),
            }
        }
    }

    /// The gradients of the scores of the queries of a block, times the sums of the weights, and
    /// what they add to d_k and d_v.
    ///
    /// # Safety
    /// As [`Simd`]. All parts are of `tiles` tiles and hold what their names state.
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, block: usize, tiles: usize) {
        // SAFETY: the caller's contract
        unsafe {
            let (q, d) = (self.q.add(block * TILE), self.d.add(block * TILE));
            let scores = Scores {
                q,
                k: self.k,
                start: self.start,
                scores: self.weights,
                largest: self.rows,
            };
            compute::<S, _>(scores, tiles);
            softmax::<S>(self.weights, tiles, self.rows, self.inverse);
            let d_weights = WeightGradients {
                d,
                v: self.v,
                weights: self.weights,
                d_weights: self.d_weights,
                dots: self.rows,
            };
            compute::<S, _>(d_weights, tiles);
            sum_rows::<S>(self.rows, self.dots);
            let dots = S::mul(S::load(self.dots), S::load(self.inverse));
            S::store(self.dots, dots);
            softmax_back::<S>(self.weights, self.d_weights, tiles, self.dots);
            tiles::scale_rows::<S>(q, self.inverse, self.q_scaled);
            tiles::scale_rows::<S>(d, self.inverse, self.d_scaled);
            for (a, b, out) in [
                (self.q_scaled, self.d_weights, self.d_k),
                (self.d_scaled, self.weights, self.d_v),
            ] {
                compute::<S, _>(AddTransposed { a, b, out }, tiles);
            }
        }
    }
}

/// The gradients of all heads in a window.
struct Backward<'a> {
    op: &'a WindowAttention,
    parts: WorkspaceParts,
    qkv: Qkv,
    /// `[N, h, w, C]`
    d_output: SharedPtr<f32>,
    /// `[N, padded h, padded w, 3C]`
    d_qkv: Output,
}

impl Backward<'_> {
    /// Stores the rows of tiles at `from`, times `factor`, as part `part` (0: q, 1: k, 2: v) of a
    /// head's gradients in these pixels.
    ///
    /// # Safety
    /// As [`Simd`]. There are as many rows as pixels, and the pixels are this task's.
    #[inline(always)]
    unsafe fn store<S: Simd>(
        &self,
        (part, head): (usize, usize),
        pixels: &[usize],
        from: *const f32,
        factor: f32,
    ) {
        for (i, &pixel) in pixels.iter().enumerate() {
            // SAFETY: the caller's contract
            unsafe {
                let value = S::mul(S::load(from.add(i * LANES)), S::splat(factor));
                let at = pixel * self.qkv.stride() + self.qkv.channel(part, head);
                self.d_qkv.put::<S>(at, value);
            }
        }
    }

    /// The gradients of one head.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose window this is; the scratch is its thread's.
    #[inline(always)]
    unsafe fn head<S: Simd>(&self, window: &WindowPixels, scratch: &Scratch, head: usize) {
        let tiles = window.tiles();
        let (queries, keys) = (window.query_pixels(), window.key_pixels());
        let (channels, values) = (self.op.channels, self.qkv);
        // the factor of q, without the logarithm
        const FACTOR: f32 = QUERY_FACTOR * std::f32::consts::LN_2;
        // SAFETY: the scratch has room for the window's tiles, and all buffers hold its pixels
        unsafe {
            values.gather::<S>((0, head), queries, QUERY_FACTOR, scratch.q, tiles);
            values.gather::<S>((1, head), keys, 1.0, scratch.k_rows, tiles);
            transpose_tiles::<S>(scratch.k_rows, scratch.k, tiles);
            values.gather_transposed::<S>((2, head), keys, scratch.v, tiles);
            let d_output = self.d_output.at(head * HEAD);
            let inside = window.inside_pixels();
            gather::<S>(d_output, channels, inside, 1.0, scratch.d, tiles);
            scratch.d_k.write_bytes(0, tiles * TILE);
            scratch.d_v.write_bytes(0, tiles * TILE);
            for (block, pixels) in queries.chunks(LANES).enumerate() {
                scratch.block::<S>(block, tiles);
                sum_products::<S>(scratch.d_weights, scratch.k_rows, tiles, scratch.rows);
                tiles::scale_rows::<S>(scratch.rows, scratch.inverse, scratch.rows);
                self.store::<S>((0, head), pixels, scratch.rows, FACTOR);
                if head + 1 < self.op.heads {
                    values.prefetch::<S>(head + 1, chunk(keys, block));
                    for pixel in chunk(inside, block) {
                        S::prefetch(d_output.add(pixel * channels + HEAD));
                    }
                }
            }
            for &pixel in &keys[queries.len()..] {
                let at = pixel * values.stride() + values.channel(0, head);
                self.d_qkv.put::<S>(at, S::splat(0.0));
            }
            transpose_tiles::<S>(scratch.d_k, scratch.d_k, tiles);
            // q has its factor and the logarithm in it
            self.store::<S>((1, head), keys, scratch.d_k, std::f32::consts::LN_2);
            transpose_tiles::<S>(scratch.d_v, scratch.d_v, tiles);
            self.store::<S>((2, head), keys, scratch.d_v, 1.0);
        }
    }
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let window = WindowPixels::new(self.op, task);
        // SAFETY: windows are disjoint, so these pixels of the gradients are this task's, and the
        // scratch is its thread's; a head's channels are whole lines of 64 bytes
        unsafe {
            let scratch = Scratch::new(self.parts.scratch().at(0), window.tiles());
            start_scores(scratch.start, window.keys, window.tiles());
            for head in 0..self.op.heads {
                self.head::<S>(&window, &scratch, head);
            }
            S::fence();
        }
    }
}

/// Runs the operation.
pub(super) fn backward(ctx: &Context<'_>, op: &WindowAttentionBack) {
    let forward = &op.forward;
    let task = Backward {
        op: forward,
        parts: ctx.parts(op.workspace, workspace(op)),
        qkv: Qkv {
            values: ctx.floats(forward.qkv),
            channels: forward.channels,
        },
        d_output: ctx.floats(op.d_output),
        d_qkv: Output {
            values: ctx.floats(op.d_qkv),
            store: Store::new(forward.padded, 3 * forward.channels, false),
        },
    };
    ctx.parallel(WindowPixels::windows(forward), &task);
}
