//! The forward pass. Depends on the products of this module.

use super::super::super::bf16::{
    Bf16Unit, HALF_TILE, HalfStep, Rows, STEP, Session, as_floats, round_pairs, round_rows,
    rows_as_columns, softmax,
};
use super::super::super::elementwise::{Output, Store};
use super::super::super::simd::{LANES, Simd};
use super::super::super::tasks::{Context, Task, Workspace, WorkspaceParts};
use super::super::forward::QUERY_FACTOR;
use super::super::{HEAD, Qkv, WindowPixels, key_tiles, start_scores};
use super::{BLOCK, multiply_keys, score_stride, start_of, take, weight_stride};
use crate::plan::WindowAttention;

/// The parts of the scratch of a window's task.
struct Scratch {
    /// One of q, k and v in f32, `[pixel][channel]`; later the outputs of a block.
    values: *mut f32,
    /// q as a left factor, `[query][STEP]`.
    q: *mut u16,
    /// k as a left factor, and as the right factor of its transpose.
    k_rows: *mut u16,
    k: *mut u16,
    /// v as a right factor: pairs of keys.
    v: *mut u16,
    /// `[query][score_stride]`, of 16 queries.
    scores: *mut f32,
    /// `[query][weight_stride]`, of a block.
    weights: *mut u16,
    /// What scores start with, `[key]`.
    start: *mut f32,
    /// One over the sums of a block's weights, `[query]`.
    inverse: *mut f32,
}

/// f32 values of the parts of a [`Scratch`] for windows of `tiles` tiles.
fn sizes(tiles: usize) -> [usize; 9] {
    let keys = tiles * LANES;
    [
        keys * HEAD,
        as_floats(keys * STEP),
        as_floats(keys * STEP),
        as_floats((tiles + 1) * HALF_TILE),
        as_floats(keys * HEAD),
        LANES * score_stride(tiles),
        as_floats(BLOCK * weight_stride(tiles)),
        keys,
        BLOCK,
    ]
}

/// The layout of the workspace.
pub fn workspace(op: &WindowAttention) -> Workspace {
    Workspace {
        scratch: sizes(key_tiles(op)).iter().sum(),
        ..Workspace::default()
    }
}

impl Scratch {
    /// # Safety
    /// The scratch has the layout of [`workspace`] for windows of `tiles` tiles.
    unsafe fn new(mut scratch: *mut f32, tiles: usize) -> Scratch {
        // SAFETY: `workspace` counts these parts
        let [values, q, k_rows, k, v, scores, weights, start, inverse] =
            sizes(tiles).map(|floats| unsafe { take(&mut scratch, floats) });
        Scratch {
            values,
            q: q.cast(),
            k_rows: k_rows.cast(),
            k: k.cast(),
            v: v.cast(),
            scores,
            weights: weights.cast(),
            start,
            inverse,
        }
    }
}

/// The outputs of all heads in a window.
struct Forward<'a> {
    op: &'a WindowAttention,
    unit: Bf16Unit,
    parts: WorkspaceParts,
    qkv: Qkv,
    /// `[N, h, w, C]`
    output: Output,
}

impl Forward<'_> {
    /// Rounds q, k and v of a head.
    ///
    /// # Safety
    /// As [`Forward::head`].
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, window: &WindowPixels, scratch: &Scratch, head: usize) {
        let (tiles, to) = (window.tiles(), scratch.values);
        let (queries, keys) = (window.query_pixels(), window.key_pixels());
        // SAFETY: the scratch has room for the window's tiles, and all buffers hold its pixels
        unsafe {
            self.qkv.gather::<S>((0, head), queries, 1.0, to, tiles);
            round_rows(to, tiles * LANES, scratch.q);
            self.qkv.gather::<S>((1, head), keys, 1.0, to, tiles);
            round_rows(to, tiles * LANES, scratch.k_rows);
            rows_as_columns(scratch.k_rows, tiles * LANES, scratch.k);
            self.qkv.gather::<S>((2, head), keys, 1.0, to, tiles);
            round_pairs(to, tiles * LANES, scratch.v);
        }
    }

    /// The outputs of one head.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose window this is; the scratch is its thread's.
    #[inline(always)]
    unsafe fn head<S: Simd>(
        &self,
        session: &Session,
        window: &WindowPixels,
        scratch: &Scratch,
        head: usize,
    ) {
        let tiles = window.tiles();
        let scores = Rows {
            values: scratch.scores,
            stride: score_stride(tiles),
            vectors: tiles,
        };
        let start = start_of(scratch.start, window.keys, tiles);
        // SAFETY: the scratch has room for the window's tiles, and all buffers hold its pixels
        unsafe {
            self.pack::<S>(window, scratch, head);
            for (block, outputs) in window.inside_pixels().chunks(BLOCK).enumerate() {
                for first in [0, LANES] {
                    session.half_step(&HalfStep {
                        a: scratch.q.add((block * BLOCK + first) * STEP),
                        b: scratch.k,
                        tiles,
                        start,
                        c: scratch.scores,
                        c_row: scores.stride,
                    });
                    let row = weight_stride(tiles);
                    let weights = (scratch.weights.add(first * row), row);
                    let inverse = scratch.inverse.add(first);
                    softmax(scores, QUERY_FACTOR, weights, inverse);
                }
                multiply_keys(session, (scratch.weights, scratch.v), tiles, scratch.values);
                for (i, &pixel) in outputs.iter().enumerate() {
                    let value = S::load(scratch.values.add(i * LANES));
                    let value = S::mul(value, S::splat(*scratch.inverse.add(i)));
                    let at = pixel * self.op.channels + head * HEAD;
                    self.output.put::<S>(at, value);
                }
                if head + 1 < self.op.heads {
                    let keys = window.key_pixels().chunks(BLOCK).nth(block);
                    self.qkv.prefetch::<S>(head + 1, keys.unwrap_or(&[]));
                }
            }
        }
    }
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let window = WindowPixels::new(self.op, task);
        let session = Session::begin(self.unit);
        // SAFETY: windows are disjoint, so these pixels of the output are this task's, and the
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
pub fn forward(ctx: &Context<'_>, op: &WindowAttention, unit: Bf16Unit) {
    let task = Forward {
        op,
        unit,
        parts: ctx.parts(op.workspace, workspace(op)),
        qkv: Qkv {
            values: ctx.floats(op.qkv),
            channels: op.channels,
        },
        output: Output {
            values: ctx.floats(op.output),
            store: Store::new(op.extent, op.channels, false),
        },
    };
    ctx.parallel(WindowPixels::windows(op), &task);
}
