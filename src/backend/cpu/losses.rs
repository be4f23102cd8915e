//! The losses as operations: pixel losses, which write the gradient of the prediction, and
//! structural losses, which add to it image by image. `Reconstruct` has already subtracted a u8
//! target. The windows of structural losses need the target itself as well, and read it through the
//! augmentation codes, so HR patches are never stored as floats. Depends on [`super::structural`]
//! for SSIM.

use super::arena::SharedPtr;
use super::operation::{CpuOperation, check_extent};
use super::pixels::read_row;
use super::simd::{LANES, Simd};
use super::structural::{self, Evaluation, Similarity};
use super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts};
use crate::backend::formulas::CHARBONNIER_EPSILON;
use crate::plan::{Extent, PixelLoss, PixelLossKind, StructuralLoss, StructuralLossKind, Target};
use crate::support::isa::Isa;
use anyhow::Result;

/// Workspace of the pixel losses: one f64 for each task.
fn pixel_workspace(op: &PixelLoss) -> Workspace {
    Workspace {
        partial: 2,
        tasks: Bands::new(op.extent).tasks(),
        ..Workspace::default()
    }
}

/// One loss term for a vector of differences: (loss, derivative with respect to the prediction).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn term<S: Simd>(kind: PixelLossKind, d: S::V) -> (S::V, S::V) {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        match kind {
            PixelLossKind::L1 => {
                // The sign of d: every value but zero, however small, exceeds 1 in magnitude after
                // two multiplications with 2^100, and is clamped to +-1.
                let huge = S::splat(f32::from_bits(0x7180_0000)); // 2^100
                let large = S::mul(S::mul(d, huge), huge);
                (
                    S::abs(d),
                    S::max(S::min(large, S::splat(1.0)), S::splat(-1.0)),
                )
            }
            PixelLossKind::Charbonnier => {
                let root = S::sqrt(S::fma(d, d, S::splat(CHARBONNIER_EPSILON)));
                (root, S::div(d, root))
            }
            PixelLossKind::Mse => (S::mul(d, d), S::add(d, d)),
        }
    }
}

/// The pixel losses of one band of rows.
struct PixelTask<'a> {
    op: &'a PixelLoss,
    parts: WorkspaceParts,
    bands: Bands,
    /// A float target `[N, H, W, 3]`; `None` if the target was subtracted already.
    target: Option<SharedPtr<f32>>,
    /// This and its gradient: `[N, H, W, 3]`.
    prediction: SharedPtr<f32>,
    d_prediction: SharedPtr<f32>,
    /// Factor on every gradient: micro scale / values of the micro-batch.
    scale: f32,
}

impl PixelTask<'_> {
    /// The loss of a vector of differences, and its gradient.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn vector<S: Simd>(&self, difference: S::V) -> (S::V, S::V) {
        // SAFETY: the caller guarantees that the processor has the instructions of S
        unsafe {
            let (mut loss, mut gradient) = (S::splat(0.0), S::splat(0.0));
            for &(kind, weight) in &self.op.terms {
                let (l, g) = term::<S>(kind, difference);
                loss = S::fma(S::splat(weight), l, loss);
                gradient = S::fma(S::splat(weight), g, gradient);
            }
            (loss, S::mul(gradient, S::splat(self.scale)))
        }
    }

    /// The loss of the `len` values from `at` on against `target` (zeros if `None`). Writes their
    /// gradients, which may overwrite the prediction: each value is read before it is written.
    ///
    /// # Safety
    /// As [`Simd`]; prediction, gradient and target hold these values, and no other thread uses the
    /// gradient's.
    #[inline(always)]
    unsafe fn values<S: Simd>(&self, at: usize, len: usize, target: Option<*const f32>) -> f64 {
        // SAFETY: whole vectors are read while at least 16 values are left, and the others one by
        // one; the arrays hold a vector
        unsafe {
            let (prediction, gradient) = (
                self.prediction.at(at).cast_const(),
                self.d_prediction.at(at),
            );
            let mut sum = S::splat(0.0);
            let mut i = 0;
            while i + LANES <= len {
                let p = S::load(prediction.add(i));
                let (loss, g) =
                    self.vector::<S>(target.map_or(p, |t| S::sub(p, S::load(t.add(i)))));
                sum = S::add(sum, loss);
                S::store(gradient.add(i), g);
                i += LANES;
            }
            if i < len {
                // The unused lanes have a difference of zero: no gradient, and no loss but that of
                // Charbonnier's epsilon, which is cleared below.
                let (mut difference, mut losses) = ([0.0; LANES], [0.0; LANES]);
                for (k, d) in difference.iter_mut().enumerate().take(len - i) {
                    *d = *prediction.add(i + k) - target.map_or(0.0, |t| *t.add(i + k));
                }
                let (loss, g) = self.vector::<S>(S::load(difference.as_ptr()));
                S::store(losses.as_mut_ptr(), loss);
                S::store(difference.as_mut_ptr(), g);
                losses[len - i..].fill(0.0);
                sum = S::add(sum, S::load(losses.as_ptr()));
                std::ptr::copy_nonoverlapping(difference.as_ptr(), gradient.add(i), len - i);
            }
            f64::from(S::sum(sum))
        }
    }
}

impl Task for PixelTask<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Extent { h, w, .. } = self.op.extent;
        let (image, start, end) = self.bands.task(task);
        let mut total = 0f64;
        // SAFETY: rows `start..end` of `image` are this task's in all buffers; its partial has room
        // for an f64 and begins at a multiple of 64 bytes
        unsafe {
            for y in start..end {
                let at = (image * h + y) * w * 3;
                total += self.values::<S>(
                    at,
                    w * 3,
                    self.target.map(|target| target.at(at).cast_const()),
                );
            }
            *self.parts.partial(task).at(0).cast::<f64>() = total;
        }
    }
}

/// Runs the pixel losses. Writes the weighted mean to the metrics, or adds it to that of the
/// earlier micro-batches.
fn pixel(ctx: &Context<'_>, op: &PixelLoss) {
    let parts = ctx.parts(op.workspace, pixel_workspace(op));
    let values = op.slice.of * op.extent.h * op.extent.w * 3;
    let bands = Bands::new(op.extent);
    let task = PixelTask {
        op,
        parts,
        bands,
        target: match op.target {
            Target::Float(target) => Some(ctx.floats(target)),
            Target::Subtracted(_) => None,
        },
        prediction: ctx.floats(op.prediction),
        d_prediction: ctx.floats(op.d_prediction),
        scale: (f64::from(ctx.scalars.micro_scale) / values as f64) as f32,
    };
    ctx.parallel(bands.tasks(), &task);
    // SAFETY: the tasks have finished, the partial of each holds an f64, and the first value of the
    // metrics is an f64
    unsafe {
        let total = ctx.sum_values(
            op.slice,
            0,
            (0..bands.tasks()).map(|t| *parts.partial(t).at(0).cast::<f64>()),
        );
        if !op.slice.last {
            return;
        }
        let loss = total / values as f64 * f64::from(ctx.scalars.micro_scale);
        let metrics = ctx.pointer::<f64>(op.metrics).at(0);
        *metrics = if ctx.scalars.accumulate {
            *metrics + loss
        } else {
            loss
        };
    }
}

/// The similarity that a structural loss is computed from.
fn similarity(kind: StructuralLossKind) -> Similarity {
    match kind {
        StructuralLossKind::Ssim => Similarity::Ssim,
        StructuralLossKind::MultiScale => Similarity::MultiScale { luminance: false },
    }
}

/// Workspace of the structural losses: one f64 for each image and term, and the planes of one image
/// for each thread.
fn structural_workspace(op: &StructuralLoss) -> Workspace {
    let Extent { n, h, w } = op.extent;
    let scratch = op
        .terms
        .iter()
        .map(|&(kind, _)| structural::scratch_floats_of(similarity(kind), h, w))
        .max();
    Workspace {
        partial: 2 * op.terms.len(),
        tasks: n,
        scratch: scratch.unwrap_or(0),
        ..Workspace::default()
    }
}

/// The structural losses of one image.
struct StructuralTask<'a> {
    op: &'a StructuralLoss,
    isa: Isa,
    parts: WorkspaceParts,
    /// The target's buffer as bytes: the staged batch, if the target was subtracted.
    bytes: SharedPtr<u8>,
    /// The target's buffer as floats, `[N, H, W, 3]`, if it is one of floats.
    target: SharedPtr<f32>,
    /// This and its gradient: `[N, H, W, 3]`.
    prediction: SharedPtr<f32>,
    d_prediction: SharedPtr<f32>,
    /// Factor on the gradient of a score, besides the term's weight: -1 / images of the iteration.
    slope: f64,
}

impl StructuralTask<'_> {
    /// Fills in row `y` of an image, RGB `[w, 3]` each: the prediction less its target, and the
    /// target in 0..=1.
    ///
    /// # Safety
    /// As [`Task::run`] for the task of this image. `y` is one of its rows, and `difference` and
    /// `row` have `w * 3` values.
    #[inline(always)]
    unsafe fn row(&self, image: usize, y: usize, difference: &mut [f32], row: &mut [f32]) {
        let Extent { h, w, .. } = self.op.extent;
        let at = (image * h + y) * w * 3;
        // SAFETY: the buffers hold the image's rows, and no task writes them, since the gradient is
        // another buffer in a verified plan; the batch holds patch and code of every image by its
        // layout
        unsafe {
            difference.copy_from_slice(std::slice::from_raw_parts(self.prediction.at(at), w * 3));
            match self.op.target {
                Target::Subtracted(batch) => {
                    let code = *self.bytes.at(batch.augment_of(image));
                    read_row(self.bytes.at(batch.hr_of(image)), code, y, (h, w), row);
                }
                Target::Float(_) => {
                    let target = std::slice::from_raw_parts(self.target.at(at), w * 3);
                    row.iter_mut()
                        .zip(target)
                        .for_each(|(r, t)| *r = t.clamp(0.0, 1.0));
                    difference.iter_mut().zip(row).for_each(|(d, t)| *d -= *t);
                }
            }
        }
    }

    /// Computes all terms of one image. Not inlined: [`Evaluation::run`] dispatches to the
    /// instruction set itself, so one copy of this function suffices.
    ///
    /// # Safety
    /// As [`Task::run`] for the task of this image.
    #[inline(never)]
    unsafe fn image(&self, image: usize) {
        let Extent { h, w, .. } = self.op.extent;
        let size = h * w * 3;
        // SAFETY: the gradient of the image and the partial are this task's, and the partial has
        // room for an f64 for each term
        let (gradient, partial) = unsafe {
            (
                self.d_prediction.slice(image * size, size),
                self.parts.partial(image).at(0).cast::<f64>(),
            )
        };
        for (i, &(kind, weight)) in self.op.terms.iter().enumerate() {
            let kind = similarity(kind);
            let slope = self.slope * f64::from(weight);
            // SAFETY: the scratch is this thread's and large enough for every term, and `row` is
            // called for rows of this image
            unsafe {
                let scratch = self
                    .parts
                    .scratch()
                    .slice(0, structural::scratch_floats_of(kind, h, w));
                let rows = |y: usize, difference: &mut [f32], target: &mut [f32]| {
                    self.row(image, y, difference, target)
                };
                *partial.add(i) = Evaluation::<_, true> {
                    kind,
                    rows,
                    size: (h, w),
                    slope,
                    gradient,
                    scratch,
                }
                .run(self.isa);
            }
        }
    }
}

impl Task for StructuralTask<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        // SAFETY: there is one task for each image, and this is the task of image `task`
        unsafe { self.image(task) }
    }
}

/// Runs the structural losses: adds to the gradient, and to the loss in the metrics.
fn structural(ctx: &Context<'_>, op: &StructuralLoss) {
    let parts = ctx.parts(op.workspace, structural_workspace(op));
    let images = op.extent.n;
    let task = StructuralTask {
        isa: ctx.isa,
        op,
        parts,
        bytes: ctx.pointer(op.target.buffer()),
        target: ctx.floats(op.target.buffer()),
        prediction: ctx.floats(op.prediction),
        d_prediction: ctx.floats(op.d_prediction),
        slope: -f64::from(ctx.scalars.micro_scale) / op.slice.of as f64,
    };
    ctx.parallel(images, &task);
    // SAFETY: the tasks have finished, the partial of each holds an f64 for each term, and the
    // first value of the metrics is an f64
    unsafe {
        let metrics = ctx.pointer::<f64>(op.metrics).at(0);
        for (i, &(_, weight)) in op.terms.iter().enumerate() {
            let scores = (0..images).map(|image| *parts.partial(image).at(0).cast::<f64>().add(i));
            let total = ctx.sum_values(op.slice, i, scores);
            if op.slice.last {
                *metrics += f64::from(weight)
                    * structural::loss(total / op.slice.of as f64)
                    * f64::from(ctx.scalars.micro_scale);
            }
        }
    }
}

impl CpuOperation for PixelLoss {
    fn check(&self) -> Result<()> {
        check_extent(self.extent)
    }

    fn workspace(&self) -> Workspace {
        pixel_workspace(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        pixel(ctx, self);
    }
}

impl CpuOperation for StructuralLoss {
    fn check(&self) -> Result<()> {
        check_extent(self.extent)
    }

    fn workspace(&self) -> Workspace {
        structural_workspace(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        structural(ctx, self);
    }
}
