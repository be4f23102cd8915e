//! The backward pass, with the formulas of the f32 form: the weights of 32 queries are computed
//! again, then their gradients, which give d_q at once and are added to d_k and d_v. Depends on the
//! products of this module.

use super::super::super::arena::SharedPtr;
use super::super::super::bf16::{
    Bf16Unit, BlockProduct, HALF_TILE, HalfStep, Rows, STEP, Session, Start, TILE as BF16_TILE,
    as_floats, paired_column, round_pairs, round_rows, rows_as_columns, score_gradients,
    softmax_pairs, transpose_scaled,
};
use super::super::super::elementwise::{Output, Store};
use super::super::super::simd::{LANES, Simd};
use super::super::super::tasks::{Context, Task, Workspace, WorkspaceParts};
use super::super::forward::QUERY_FACTOR;
use super::super::tiles::{TILE, transpose_tiles};
use super::super::{HEAD, Qkv, WindowPixels, gather, key_tiles, start_scores};
use super::{BLOCK, multiply_keys, score_stride, start_of, take, weight_stride};
use crate::plan::{WindowAttention, WindowAttentionBack};

/// The parts of the scratch of a window's task.
struct Scratch {
    /// q and the output's gradient in f32, `[query][channel]`.
    q: *mut f32,
    d: *mut f32,
    /// k or v in f32, `[key][channel]`; later d_q of a block.
    values: *mut f32,
    /// q and the output's gradient as left factors, `[query][STEP]`.
    q_rows: *mut u16,
    d_rows: *mut u16,
    /// k or v as a left factor.
    rows: *mut u16,
    /// k and v as right factors of their transposes, and k as a right factor: pairs of keys.
    k: *mut u16,
    v: *mut u16,
    k_pairs: *mut u16,
    /// Of 16 queries: scores, then their weights; gradients of the weights. `[query][score_stride]`
    scores: *mut f32,
    d_weights: *mut f32,
    /// Of a group of blocks: weights and gradients of scores as right factors, pairs of queries,
    /// `[tile][block][16 pairs][16][2]`.
    weight_pairs: *mut u16,
    gradient_pairs: *mut u16,
    /// Of a block: gradients of scores as a left factor, `[query][weight_stride]`.
    gradient_rows: *mut u16,
    /// The sums of d_k (times a factor) and d_v, `[tile][channel][16 keys]`, with keys at
    /// [`paired_column`].
    d_k: *mut f32,
    d_v: *mut f32,
    /// q and d of a group of blocks, transposed and over the sums of the weights: left factors
    /// `[channel][transposed_stride]`.
    q_transposed: *mut u16,
    d_transposed: *mut u16,
    /// What scores start with, `[key]`.
    start: *mut f32,
    /// Of a block: one over the sums of the weights, and the weighted means of their gradients.
    inverse: *mut f32,
    dots: *mut f32,
}

/// Blocks of queries whose part of d_k and d_v is computed at once, so that these sums are rarely
/// loaded and stored: at most 256 queries, so that their weights stay in the core's second cache.
fn group(tiles: usize) -> usize {
    (tiles * LANES / BLOCK).min(8)
}

/// bf16 values from one channel of a transposed group of blocks to the next.
fn transposed_stride(tiles: usize) -> usize {
    (group(tiles) + 1) * STEP
}

/// f32 values of the parts of a [`Scratch`] for windows of `tiles` tiles.
fn sizes(tiles: usize) -> [usize; 21] {
    let keys = tiles * LANES;
    let (values, factor) = (keys * HEAD, as_floats(keys * STEP));
    let columns = as_floats((tiles + 1) * HALF_TILE);
    let scores = LANES * score_stride(tiles);
    [
        values,
        values,
        values,
        factor,
        factor,
        factor,
        columns,
        columns,
        as_floats(keys * HEAD),
        scores,
        scores,
        as_floats(tiles * group(tiles) * BF16_TILE),
        as_floats(tiles * group(tiles) * BF16_TILE),
        as_floats(BLOCK * weight_stride(tiles)),
        values,
        values,
        as_floats(HEAD * transposed_stride(tiles)),
        as_floats(HEAD * transposed_stride(tiles)),
        keys,
        BLOCK,
        BLOCK,
    ]
}

/// The layout of the workspace.
pub fn workspace_back(op: &WindowAttentionBack) -> Workspace {
    Workspace {
        scratch: sizes(key_tiles(&op.forward)).iter().sum(),
        ..Workspace::default()
    }
}

impl Scratch {
    /// # Safety
    /// The scratch has the layout of [`workspace_back`] for windows of `tiles` tiles.
    unsafe fn new(mut scratch: *mut f32, tiles: usize) -> Scratch {
        // SAFETY: `workspace_back` counts these parts
        let parts = sizes(tiles).map(|floats| unsafe { take(&mut scratch, floats) });
        Scratch {
            q: parts[0],
            d: parts[1],
            values: parts[2],
            q_rows: parts[3].cast(),
            d_rows: parts[4].cast(),
            rows: parts[5].cast(),
            k: parts[6].cast(),
            v: parts[7].cast(),
            k_pairs: parts[8].cast(),
            scores: parts[9],
            d_weights: parts[10],
            weight_pairs: parts[11].cast(),
            gradient_pairs: parts[12].cast(),
            gradient_rows: parts[13].cast(),
            d_k: parts[14],
            d_v: parts[15],
            q_transposed: parts[16].cast(),
            d_transposed: parts[17].cast(),
            start: parts[18],
            inverse: parts[19],
            dots: parts[20],
        }
    }

    /// The weights of 16 queries of a block, from `first` on, and the gradients of their scores.
    ///
    /// # Safety
    /// All parts are of `tiles` tiles and hold what their names state; the processor has the
    /// session's unit.
    #[inline(always)]
    unsafe fn scores(
        &self,
        session: &Session,
        start: Option<*const f32>,
        (block, first): (usize, usize),
        tiles: usize,
    ) {
        let rows = |values: *mut f32| Rows {
            values,
            stride: score_stride(tiles),
            vectors: tiles,
        };
        let (scores, d_weights) = (rows(self.scores), rows(self.d_weights));
        let query = (block * BLOCK + first) * STEP;
        let (row, stride) = (weight_stride(tiles), group(tiles) * BF16_TILE);
        // a row of pairs is two queries
        let at = block % group(tiles) * BF16_TILE + first * LANES;
        // SAFETY: the caller's contract
        unsafe {
            for (a, b, start, c) in [
                (self.q_rows, self.k, start, scores),
                (self.d_rows, self.v, None, d_weights),
            ] {
                session.half_step(&HalfStep {
                    a: a.add(query),
                    b,
                    tiles,
                    start,
                    c: c.values,
                    c_row: c.stride,
                });
            }
            let (inverse, dots) = (self.inverse.add(first), self.dots.add(first));
            softmax_pairs(
                (scores, d_weights),
                QUERY_FACTOR,
                (self.weight_pairs.add(at), stride),
                (inverse, dots),
            );
            score_gradients(
                (scores, d_weights),
                dots,
                (self.gradient_rows.add(first * row), row),
                (self.gradient_pairs.add(at), stride),
            );
        }
    }

    /// Transposes q and d of a block, over the sums of the weights.
    ///
    /// # Safety
    /// As [`Scratch::scores`].
    unsafe fn transpose(&self, block: usize, tiles: usize) {
        let (at, row) = (block % group(tiles) * STEP, transposed_stride(tiles));
        // SAFETY: the caller's contract
        unsafe {
            for (from, to) in [(self.q, self.q_transposed), (self.d, self.d_transposed)] {
                let from = from.add(block * BLOCK * HEAD);
                transpose_scaled(from, self.inverse, (to.add(at), row));
            }
        }
    }

    /// Adds what the group of blocks that ends with `block` adds to d_k and d_v, or begins the sums.
    ///
    /// # Safety
    /// As [`Scratch::scores`].
    unsafe fn add(&self, session: &Session, block: usize, tiles: usize) {
        let group = group(tiles);
        // SAFETY: the caller's contract
        unsafe {
            for (a, b, sums) in [
                (self.q_transposed, self.gradient_pairs, self.d_k),
                (self.d_transposed, self.weight_pairs, self.d_v),
            ] {
                for tile in (0..tiles).step_by(2) {
                    let product = BlockProduct {
                        a: &[a.cast_const()],
                        a_row: transposed_stride(tiles),
                        b: &[b.add(tile * group * BF16_TILE).cast_const()],
                        b_group: group * BF16_TILE,
                        steps: block % group + 1,
                        start: if block < group {
                            Start::Zero
                        } else {
                            Start::Sums
                        },
                        c: sums.add(tile * TILE),
                        c_row: LANES,
                        c_groups: (0, TILE),
                    };
                    session.product(&product, 1, 2);
                }
            }
        }
    }
}

/// The gradients of all heads in a window.
struct Backward<'a> {
    op: &'a WindowAttention,
    unit: Bf16Unit,
    parts: WorkspaceParts,
    qkv: Qkv,
    /// `[N, h, w, C]`
    d_output: SharedPtr<f32>,
    /// `[N, padded h, padded w, 3C]`
    d_qkv: Output,
}

impl Backward<'_> {
    /// Stores a vector as part `part` (0: q, 1: k, 2: v) of a head's gradients in a pixel.
    ///
    /// # Safety
    /// As [`Simd`], and the pixel is this task's.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, (part, head): (usize, usize), pixel: usize, value: S::V) {
        let at = pixel * self.qkv.stride() + self.qkv.channel(part, head);
        // SAFETY: the caller's contract
        unsafe { self.d_qkv.put::<S>(at, value) };
    }

    /// Rounds q, k, v and the output's gradient of a head.
    ///
    /// # Safety
    /// As [`Backward::head`].
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, window: &WindowPixels, s: &Scratch, head: usize) {
        let (tiles, values) = (window.tiles(), s.values);
        let (queries, keys) = (window.query_pixels(), window.key_pixels());
        let count = tiles * LANES;
        // SAFETY: the scratch has room for the window's tiles, and all buffers hold its pixels
        unsafe {
            self.qkv.gather::<S>((0, head), queries, 1.0, s.q, tiles);
            round_rows(s.q, count, s.q_rows);
            let d_output = self.d_output.at(head * HEAD);
            let inside = window.inside_pixels();
            gather::<S>(d_output, self.op.channels, inside, 1.0, s.d, tiles);
            round_rows(s.d, count, s.d_rows);
            self.qkv.gather::<S>((1, head), keys, 1.0, values, tiles);
            round_rows(values, count, s.rows);
            rows_as_columns(s.rows, count, s.k);
            round_pairs(values, count, s.k_pairs);
            self.qkv.gather::<S>((2, head), keys, 1.0, values, tiles);
            round_rows(values, count, s.rows);
            rows_as_columns(s.rows, count, s.v);
        }
    }

    /// The gradients of one head.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose window this is; the scratch is its thread's.
    #[inline(always)]
    unsafe fn head<S: Simd>(
        &self,
        session: &Session,
        window: &WindowPixels,
        s: &Scratch,
        head: usize,
    ) {
        let tiles = window.tiles();
        let (queries, keys) = (window.query_pixels(), window.key_pixels());
        let start = start_of(s.start, window.keys, tiles);
        // SAFETY: the scratch has room for the window's tiles, and all buffers hold its pixels
        unsafe {
            // the factor of q, without the logarithm
            let factor = S::splat(QUERY_FACTOR * std::f32::consts::LN_2);
            self.pack::<S>(window, s, head);
            for (block, pixels) in queries.chunks(BLOCK).enumerate() {
                for first in [0, LANES] {
                    s.scores(session, start, (block, first), tiles);
                }
                s.transpose(block, tiles);
                let last = (block + 1) * BLOCK >= queries.len();
                if last || (block + 1).is_multiple_of(group(tiles)) {
                    s.add(session, block, tiles);
                }
                multiply_keys(session, (s.gradient_rows, s.k_pairs), tiles, s.values);
                for (i, &pixel) in pixels.iter().enumerate() {
                    let inverse = S::mul(factor, S::splat(*s.inverse.add(i)));
                    let value = S::mul(S::load(s.values.add(i * HEAD)), inverse);
                    self.store::<S>((0, head), pixel, value);
                }
                if head + 1 < self.op.heads {
                    self.prefetch::<S>(window, block, head + 1);
                }
            }
            for &pixel in &keys[queries.len()..] {
                self.store::<S>((0, head), pixel, S::splat(0.0));
            }
            for (part, sums, factor) in [(1, s.d_k, factor), (2, s.d_v, S::splat(1.0))] {
                transpose_tiles::<S>(sums, sums, tiles);
                for (i, &pixel) in keys.iter().enumerate() {
                    let value = S::load(sums.add(paired_column(i) * HEAD));
                    self.store::<S>((part, head), pixel, S::mul(value, factor));
                }
            }
        }
    }

    /// Prefetches what a head reads in a block's keys and queries.
    ///
    /// # Safety
    /// As [`Simd`], and all buffers hold the head and the pixels.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, window: &WindowPixels, block: usize, head: usize) {
        let of = |pixels| <[usize]>::chunks(pixels, BLOCK).nth(block).unwrap_or(&[]);
        // SAFETY: the caller's contract
        unsafe {
            self.qkv.prefetch::<S>(head, of(window.key_pixels()));
            for pixel in of(window.inside_pixels()) {
                S::prefetch(self.d_output.at(pixel * self.op.channels + head * HEAD));
            }
        }
    }
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let window = WindowPixels::new(self.op, task);
        let session = Session::begin(self.unit);
        // SAFETY: windows are disjoint, so these pixels of the gradients are this task's, and the
        // scratch is its thread's; a head's channels are whole lines of 64 bytes
        unsafe {
            let scratch = Scratch::new(self.parts.scratch().at(0), window.tiles());
            start_scores(scratch.start, window.keys, window.tiles());
            for head in 0..self.op.heads {
                self.head::<S>(&session, &window, &scratch, head);
            }
            S::fence();
        }
    }
}

/// Runs the operation.
pub fn backward(ctx: &Context<'_>, op: &WindowAttentionBack, unit: Bf16Unit) {
    let forward = &op.forward;
    let task = Backward {
        op: forward,
        unit,
        parts: ctx.parts(op.workspace, workspace_back(op)),
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
