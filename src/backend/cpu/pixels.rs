//! Between bytes and floats: unpacking a staged batch through its augmentation codes, and the pixel losses, which read their
//! u8 target the same way so that the HR picture is never stored in float. Depends on the plan's index map.

use super::arena::Shared;
use super::simd::Simd;
use super::tasks::{Bands, Context, Parts, Task, Workspace};
use crate::plan::{BatchLayout, Extent, PixelLoss, PixelLossKind, Target, Unpack, augment};

/// One row of an augmented patch, without moving it: where it starts and how far one pixel is from the next, in pixels.
#[inline(always)]
fn row_walk(code: u8, y: usize, h: usize, w: usize) -> (isize, isize) {
    if code == 0 {
        return ((y * w) as isize, 1);
    }
    // augmented patches are square; see `BatchView`
    let at = |x: usize| {
        let (row, column) = augment::source(code, y, x, h);
        (row * w + column) as isize
    };
    let first = at(0);
    (first, if w > 1 { at(1) - first } else { 1 })
}

struct UnpackTask {
    batch: BatchLayout,
    bytes: Shared<u8>,
    output: Shared<f32>,
    bands: Bands,
}

impl Task for UnpackTask {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (h, w) = self.batch.lq;
        let (image, start, end) = self.bands.task(task);
        unsafe {
            let code = *self.bytes.at(self.batch.augment_offset() + image);
            for y in start..end {
                let (first, step) = row_walk(code, y, h, w);
                let source = self.bytes.at(image * h * w * 3).cast_const();
                let out = self.output.slice((image * h + y) * w * 3, w * 3);
                for (x, out) in out.chunks_exact_mut(3).enumerate() {
                    let pixel = source.offset((first + step * x as isize) * 3);
                    for (c, out) in out.iter_mut().enumerate() {
                        *out = f32::from(*pixel.add(c)) / 255.0;
                    }
                }
            }
        }
    }
}

/// Runs the unpacking.
pub fn unpack(ctx: &Context<'_>, op: &Unpack) {
    let extent = Extent { n: op.batch.count, h: op.batch.lq.0, w: op.batch.lq.1 };
    let bands = Bands::new(extent);
    let task = UnpackTask { batch: op.batch, bytes: ctx.pointer(op.batch.buffer), output: ctx.floats(op.output), bands };
    ctx.parallel(bands.tasks(), &task);
}

/// Workspace of the loss: one f64 a task.
pub fn workspace(op: &PixelLoss) -> Workspace {
    Workspace { partial: 2, tasks: Bands::new(op.extent).tasks(), ..Workspace::default() }
}

/// Epsilon of Charbonnier, under the root.
const CHARBONNIER_EPSILON: f32 = 1e-12;

/// A loss term at one value: (loss, slope with respect to the prediction).
#[inline(always)]
fn term(kind: PixelLossKind, difference: f32) -> (f32, f32) {
    match kind {
        PixelLossKind::L1 => (
            difference.abs(),
            if difference > 0.0 {
                1.0
            } else if difference < 0.0 {
                -1.0
            } else {
                0.0
            },
        ),
        PixelLossKind::Charbonnier => {
            let root = (difference * difference + CHARBONNIER_EPSILON).sqrt();
            (root, difference / root)
        }
        PixelLossKind::Mse => (difference * difference, 2.0 * difference),
    }
}

struct LossTask<'a> {
    op: &'a PixelLoss,
    parts: Parts,
    bands: Bands,
    bytes: Shared<u8>,
    target: Shared<f32>,
    prediction: Shared<f32>,
    d_prediction: Shared<f32>,
    scale: f32,
}

impl LossTask<'_> {
    /// Loss and gradient of one value.
    #[inline(always)]
    fn value(&self, prediction: f32, target: f32, sum: &mut f32) -> f32 {
        let mut gradient = 0.0;
        let mut loss = 0.0;
        for &(kind, weight) in &self.op.terms {
            let (l, g) = term(kind, prediction - target);
            loss += weight * l;
            gradient += weight * g;
        }
        *sum += loss;
        gradient * self.scale
    }
}

impl Task for LossTask<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Extent { h, w, .. } = self.op.extent;
        let (image, start, end) = self.bands.task(task);
        let mut total = 0f64;
        unsafe {
            for y in start..end {
                let at = (image * h + y) * w * 3;
                let mut sums = [0f32; 3];
                // the gradient may lie on the prediction, so each value is read before it is written, through pointers
                let (prediction, gradient) = (self.prediction.at(at).cast_const(), self.d_prediction.at(at));
                match self.op.target {
                    Target::Batch(batch) => {
                        let (first, step) = row_walk(*self.bytes.at(batch.augment_offset() + image), y, h, w);
                        let source = self.bytes.at(batch.lq_bytes() + image * h * w * 3).cast_const();
                        for x in 0..w {
                            let pixel = source.offset((first + step * x as isize) * 3);
                            for (c, sum) in sums.iter_mut().enumerate() {
                                let target = f32::from(*pixel.add(c)) / 255.0;
                                *gradient.add(x * 3 + c) = self.value(*prediction.add(x * 3 + c), target, sum);
                            }
                        }
                    }
                    Target::Float(_) => {
                        let target = self.target.at(at);
                        for x in 0..w * 3 {
                            *gradient.add(x) = self.value(*prediction.add(x), *target.add(x), &mut sums[x % 3]);
                        }
                    }
                }
                total += sums.iter().map(|&s| f64::from(s)).sum::<f64>();
            }
            *self.parts.partial(task).at(0).cast::<f64>() = total;
        }
    }
}

/// Runs the pixel losses; adds the weighted mean to the metrics.
pub fn loss(ctx: &Context<'_>, op: &PixelLoss) {
    let layout = workspace(op);
    let parts = ctx.parts(op.workspace, layout);
    let values = op.extent.pixels() * 3;
    let (bytes, target) = match op.target {
        Target::Batch(batch) => (ctx.pointer(batch.buffer), ctx.floats(batch.buffer)),
        Target::Float(id) => (ctx.pointer(id), ctx.floats(id)),
    };
    let bands = Bands::new(op.extent);
    let task = LossTask {
        op,
        parts,
        bands,
        bytes,
        target,
        prediction: ctx.floats(op.prediction),
        d_prediction: ctx.floats(op.d_prediction),
        scale: (f64::from(ctx.scalars.micro_scale) / values as f64) as f32,
    };
    ctx.parallel(bands.tasks(), &task);
    // SAFETY: the tasks are done
    unsafe {
        let total: f64 = (0..bands.tasks()).map(|t| *parts.partial(t).at(0).cast::<f64>()).sum();
        let loss = total / values as f64 * f64::from(ctx.scalars.micro_scale);
        let metrics = ctx.pointer::<f64>(op.metrics).at(0);
        *metrics = if ctx.scalars.accumulate { *metrics + loss } else { loss };
    }
}
