//! The Nano block in one pass forward and one backward: 1x1 convolution, depthwise 3x3, GELU, 1x1
//! convolution, LayerScale, residual. The rows between the steps stay in small rings that fit into
//! the caches; only the block's input is read from memory. Depends on the row kernels and GELU.

mod backward;
mod pack;

use super::arena::SharedPtr;
use super::gelu::gelu;
use super::operation::{CpuOperation, check_extent};
use super::rows::{RowProduct, RowStart, row_depthwise, row_product};
use super::simd::{LANES, Simd};
use super::tasks::{
    Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache, round_up_to_lanes,
};
use crate::plan::{NanoBlock, NanoBlockBack};
use anyhow::{Result, ensure};
use pack::{pack, packed};

/// Features F of a Nano block, a constant so that the inner loops are compiled for it.
pub const FEATURES: usize = 16;
/// Hidden channels E of a Nano block.
const HIDDEN: usize = 2 * FEATURES;
/// Pixels of a row that go through all steps at a time, so that the values between the steps stay
/// in the first-level cache.
const SPAN: usize = 64;

/// The pieces of a row of `w` pixels: (first pixel, number of pixels).
fn spans(w: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..w).step_by(SPAN).map(move |x| (x, SPAN.min(w - x)))
}

/// A ring of the three latest padded rows `[w + 2, E]` after `conv1`, in the scratch of a task.
struct HiddenRows<'a> {
    op: &'a NanoBlock,
    /// The packed weights.
    shared: SharedPtr<f32>,
    ring: SharedPtr<f32>,
    /// `[N, h, w, F]`
    input: SharedPtr<f32>,
    /// The image, below N.
    image: usize,
}

impl HiddenRows<'_> {
    /// The place of a row, at least -3, in the ring.
    ///
    /// # Safety
    /// The ring holds three padded rows.
    #[inline(always)]
    unsafe fn row(&self, row: isize) -> *mut f32 {
        let len = round_up_to_lanes((self.op.extent.w + 2) * HIDDEN);
        // SAFETY: the remainder is below 3, and the ring holds as many rows
        unsafe { self.ring.at((row + 3) as usize % 3 * len) }
    }

    /// The three rows around row `centre`, each from the left neighbour of pixel `x` on.
    ///
    /// # Safety
    /// As [`HiddenRows::row`] for all three; `x` is a pixel of the row.
    #[inline(always)]
    unsafe fn rows(&self, centre: isize, x: usize) -> [*const f32; 3] {
        // SAFETY: pixel `x` of a padded row is the left neighbour of pixel `x` of the image
        unsafe {
            std::array::from_fn(|k| {
                self.row(centre - 1 + k as isize)
                    .add(x * HIDDEN)
                    .cast_const()
            })
        }
    }

    /// Computes conv1 of one row of the input into the ring. A row outside the image becomes zeros:
    /// the padding of the depthwise convolution.
    ///
    /// # Safety
    /// As [`Simd`] and [`HiddenRows::row`]. The fields point to arrays of the shapes they state,
    /// and no other thread uses the ring.
    #[inline(always)]
    unsafe fn fill<S: Simd>(&self, row: isize) {
        let (f, e, w, h) = (FEATURES, HIDDEN, self.op.extent.w, self.op.extent.h);
        let p = packed(f);
        // SAFETY: a row of the ring has room for `w + 2` pixels of E values, an image of the input
        // holds `h` rows of `w` pixels of F values, and `pack` wrote the weights
        unsafe {
            let out = self.row(row);
            if row < 0 || row >= h as isize {
                out.write_bytes(0, (w + 2) * e);
                return;
            }
            out.write_bytes(0, e);
            out.add((w + 1) * e).write_bytes(0, e);
            let input = self
                .input
                .at((self.image * h + row as usize) * w * f)
                .cast_const();
            row_product::<S, FEATURES>(&RowProduct {
                rows: &[input],
                stride: f,
                taps: f,
                weights: self.shared.at(p.conv1),
                lanes: e,
                start: RowStart::Bias(self.shared.at(p.conv1_bias)),
                out: out.add(e),
                w,
                non_temporal: false,
            });
        }
    }
}

/// Workspace of the forward operation.
fn workspace(op: &NanoBlock) -> Workspace {
    let (e, w) = (HIDDEN, op.extent.w);
    Workspace {
        shared: packed(FEATURES).len,
        scratch: 3 * round_up_to_lanes((w + 2) * e) + SPAN * e,
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a NanoBlock,
    parts: WorkspaceParts,
    bands: Bands,
    /// This and the output: `[N, h, w, F]`.
    input: SharedPtr<f32>,
    output: SharedPtr<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (f, e, w, h) = (FEATURES, HIDDEN, self.op.extent.w, self.op.extent.h);
        let (image, start, end) = self.bands.task(task);
        let non_temporal = exceeds_cache(self.op.extent, FEATURES);
        let (p, shared) = (packed(f), self.parts.shared());
        // SAFETY: rows `start..end` of the output are this task's. A pixel is F = 16 values, so
        // pixels begin at multiples of 64 bytes. The rest is the contract of `Task::run`.
        unsafe {
            let ring = self.parts.scratch();
            let hidden = HiddenRows {
                op: self.op,
                shared,
                ring,
                input: self.input,
                image,
            };
            let active = ring.at(3 * round_up_to_lanes((w + 2) * e));
            for row in start as isize - 2..end as isize {
                hidden.fill::<S>(row + 1);
                if row < start as isize {
                    continue; // the first output row needs three rows in the ring
                }
                let y = row as usize;
                for (x, n) in spans(w) {
                    let around = hidden.rows(y as isize, x);
                    let (dw, bias) = (shared.at(p.dw), Some(shared.at(p.dw_bias).cast_const()));
                    row_depthwise::<S>(around, dw, bias, e, n, active);
                    let at = ((image * h + y) * w + x) * f;
                    let ahead = self.input.at(at).cast_const();
                    for i in (0..n * e).step_by(LANES) {
                        S::prefetch(ahead.wrapping_add(2 * w * f + i / 2));
                        S::store(active.add(i), gelu::<S>(S::load(active.add(i))));
                    }
                    row_product::<S, HIDDEN>(&RowProduct {
                        rows: &[active.cast_const()],
                        stride: e,
                        taps: e,
                        weights: shared.at(p.conv2),
                        lanes: f,
                        start: RowStart::RowPlusBias(self.input.at(at), shared.at(p.conv2_bias)),
                        out: self.output.at(at),
                        w: n,
                        non_temporal,
                    });
                }
            }
            S::fence();
        }
    }
}

/// Runs the forward operation.
fn forward(ctx: &Context<'_>, op: &NanoBlock) {
    let parts = ctx.parts(op.workspace, workspace(op));
    pack(ctx, op, parts, false);
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

impl CpuOperation for NanoBlock {
    fn check(&self) -> Result<()> {
        ensure!(
            self.features == FEATURES,
            "{} features: only blocks of {FEATURES} are supported",
            self.features
        );
        check_extent(self.extent)
    }

    fn workspace(&self) -> Workspace {
        workspace(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        forward(ctx, self);
    }
}

impl CpuOperation for NanoBlockBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        backward::workspace_back(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        backward::backward(ctx, self);
    }
}
