//! The forward pass of window attention. Depends on `tiles` and on what both passes share.

use super::super::elementwise::{Output, Store};
use super::super::simd::{LANES, Simd};
use super::super::tasks::{Context, Task, Workspace, WorkspaceParts};
use super::tiles::{self, Scores, TILE, compute, softmax, sum_products};
use super::{HEAD, Qkv, WindowPixels, chunk, key_tiles, start_scores, take};
use crate::plan::WindowAttention;

/// The factor of q: one over the root of a head's channels, and the base-2 logarithm of e.
pub(super) const QUERY_FACTOR: f32 = std::f32::consts::LOG2_E / 4.0;
const _: () = assert!(
    HEAD == 16,
    "the factor of q is that of heads of 16 channels"
);

/// The parts of the scratch of a window's task. All are tiles.
struct Scratch {
    /// q times [`QUERY_FACTOR`], `[query][channel]`.
    q: *mut f32,
    /// k, `[tile][channel][16 keys]`.
    k: *mut f32,
    /// v, `[key][channel]`.
    v: *mut f32,
    /// Scores of sixteen queries, then their weights: `[tile][query][16 keys]`.
    scores: *mut f32,
    /// `[query][16]`: the largest scores, sums, outputs.
    rows: *mut f32,
    /// What scores start with, `[key]`, and one over the sums of 16 queries' weights.
    start: *mut f32,
    inverse: *mut f32,
}

/// The layout of the workspace.
pub(super) fn workspace(op: &WindowAttention) -> Workspace {
    let tiles = key_tiles(op);
    Workspace {
        scratch: (4 * tiles + 1) * TILE + tiles * LANES + LANES,
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
            let [q, k, v, scores, rows] =
                [tiles, tiles, tiles, tiles, 1].map(|tiles| take(rest, tiles));
            Scratch {
                q,
                k,
                v,
                scores,
                rows,
                start: scratch,
                inverse: scratch.add(tiles * LANES),
            }
        }
    }
}

/// The outputs of all heads in a window.
struct Forward<'a> {
    op: &'a WindowAttention,
    parts: WorkspaceParts,
    qkv: Qkv,
    /// `[N, h, w, C]`
    output: Output,
}

impl Forward<'_> {
    /// The outputs of one head.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose window this is; the scratch is its thread's.
    #[inline(always)]
    unsafe fn head<S: Simd>(&self, window: &WindowPixels, scratch: &Scratch, head: usize) {
        let tiles = window.tiles();
        let (queries, keys) = (window.query_pixels(), window.key_pixels());
        // SAFETY: the scratch has room for the window's tiles, and all buffers hold its pixels
        unsafe {
            self.qkv
                .gather::<S>((0, head), queries, QUERY_FACTOR, scratch.q, tiles);
            self.qkv
                .gather_transposed::<S>((1, head), keys, scratch.k, tiles);
            self.qkv.gather::<S>((2, head), keys, 1.0, scratch.v, tiles);
            for (block, outputs) in window.inside_pixels().chunks(LANES).enumerate() {
                let scores = Scores {
                    q: scratch.q.add(block * TILE),
                    k: scratch.k,
                    start: scratch.start,
                    scores: scratch.scores,
                    largest: scratch.rows,
                };
                compute::<S, _>(scores, tiles);
                softmax::<S>(scratch.scores, tiles, scratch.rows, scratch.inverse);
                sum_products::<S>(scratch.scores, scratch.v, tiles, scratch.rows);
                tiles::scale_rows::<S>(scratch.rows, scratch.inverse, scratch.rows);
                for (i, &pixel) in outputs.iter().enumerate() {
                    let value = S::load(scratch.rows.add(i * LANES));
                    let at = pixel * self.op.channels + head * HEAD;
                    self.output.put::<S>(at, value);
                }
                if head + 1 < self.op.heads {
                    self.qkv.prefetch::<S>(head + 1, chunk(keys, block));
                }
            }
        }
    }
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let window = WindowPixels::new(self.op, task);
        // SAFETY: windows are disjoint, so these pixels of the output are this task's, and the
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
pub(super) fn forward(ctx: &Context<'_>, op: &WindowAttention) {
    let task = Forward {
        op,
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
