//! The optimizer step as one operation: global gradient norm, clipping, Adam (Kingma and Ba, 2015)
//! or AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019), both in
//! PyTorch's order of operations, and EMA. Depends on the tasks alone.

use super::arena::SharedPtr;
use super::operation::CpuOperation;
use super::simd::Simd;
use super::tasks::{Context, Task, Workspace, WorkspaceParts};
use crate::plan::{OptimizerKind, Update};
use anyhow::Result;

/// Parameters of one task.
const CHUNK: usize = 4096;

/// Workspace: one f64 for each task.
fn workspace(op: &Update) -> Workspace {
    Workspace {
        partial: 2,
        tasks: op.trainable.div_ceil(CHUNK),
        ..Workspace::default()
    }
}

/// Sums the squares of the gradients, one chunk a task.
struct SquareSum {
    parts: WorkspaceParts,
    gradients: SharedPtr<f32>,
    len: usize,
}

impl Task for SquareSum {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        // SAFETY: the tasks read disjoint chunks of the `len` gradients; a partial has room for an
        // f64 and begins at a multiple of 64 bytes
        unsafe {
            let start = task * CHUNK;
            let chunk = self.gradients.slice(start, CHUNK.min(self.len - start));
            *self.parts.partial(task).at(0).cast::<f64>() =
                chunk.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        }
    }
}

/// Updates parameters, moments and EMA, one chunk a task.
struct Step {
    /// Trainable parameters.
    len: usize,
    parameters: SharedPtr<f32>,
    gradients: SharedPtr<f32>,
    moment1: SharedPtr<f32>,
    moment2: SharedPtr<f32>,
    ema: SharedPtr<f32>,
    /// Factor on the gradient that clips its norm.
    clip: f32,
    /// AdamW: 1 - lr x weight decay. Adam: 1.
    keep: f32,
    /// Adam: weight decay. AdamW: 0.
    penalty: f32,
    /// (beta, 1 - beta), like `beta2` and `ema_decay`. The difference is computed in f64: in f32
    /// the one of 0.999 would be wrong in its fifth digit.
    beta1: (f32, f32),
    beta2: (f32, f32),
    epsilon: f32,
    /// lr / bias correction of the first moment.
    step_size: f32,
    /// Square root of the bias correction of the second moment.
    root_correction: f32,
    ema_decay: (f32, f32),
}

impl Task for Step {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let start = task * CHUNK;
        let len = CHUNK.min(self.len - start);
        // SAFETY: the five buffers hold `len` values each, and the tasks use disjoint chunks of
        // them
        unsafe {
            let parameters = self.parameters.slice(start, len);
            let gradients = self.gradients.slice(start, len);
            let (moment1, moment2) = (
                self.moment1.slice(start, len),
                self.moment2.slice(start, len),
            );
            let ema = self.ema.slice(start, len);
            for i in 0..len {
                let g = gradients[i] * self.clip + self.penalty * parameters[i];
                let m = self.beta1.0 * moment1[i] + self.beta1.1 * g;
                let v = self.beta2.0 * moment2[i] + self.beta2.1 * g * g;
                let p = parameters[i] * self.keep
                    - self.step_size * m / (v.sqrt() / self.root_correction + self.epsilon);
                (moment1[i], moment2[i], parameters[i]) = (m, v, p);
                ema[i] = self.ema_decay.0 * ema[i] + self.ema_decay.1 * p;
            }
        }
    }
}

/// (share, 1 - share), the difference computed in f64.
fn with_rest(share: f64) -> (f32, f32) {
    (share as f32, (1.0 - share) as f32)
}

/// Runs the optimizer step. If the gradient norm or the loss is not finite, the step is skipped;
/// the metrics report the norm and whether it was skipped.
fn update(ctx: &Context<'_>, op: &Update) {
    let parts = ctx.parts(op.workspace, workspace(op));
    let tasks = op.trainable.div_ceil(CHUNK);
    let gradients = ctx.floats(op.gradients);
    ctx.parallel(
        tasks,
        &SquareSum {
            parts,
            gradients,
            len: op.trainable,
        },
    );
    let s = ctx.scalars;
    // SAFETY: the tasks have finished, the partial of each holds an f64, and the metrics hold three
    let norm = unsafe {
        let norm = (0..tasks)
            .map(|t| *parts.partial(t).at(0).cast::<f64>())
            .sum::<f64>()
            .sqrt();
        let metrics = ctx
            .pointer::<f64>(op.metrics)
            .slice(0, crate::plan::METRICS);
        metrics[1] = norm;
        let skipped = !norm.is_finite() || !metrics[0].is_finite();
        metrics[2] = f64::from(u8::from(skipped));
        if skipped {
            return;
        }
        norm
    };
    let clip = if s.clip.is_finite() {
        (s.clip / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    };
    let step = s.step as f64;
    let (decoupled, penalty) = match op.optimizer {
        OptimizerKind::AdamW => (op.weight_decay, 0.0),
        OptimizerKind::Adam => (0.0, op.weight_decay),
    };
    let task = Step {
        len: op.trainable,
        parameters: ctx.floats(op.parameters),
        gradients,
        moment1: ctx.floats(op.moment1),
        moment2: ctx.floats(op.moment2),
        ema: ctx.floats(op.ema),
        clip: clip as f32,
        keep: (1.0 - s.lr * decoupled) as f32,
        penalty: penalty as f32,
        beta1: with_rest(op.beta1),
        beta2: with_rest(op.beta2),
        epsilon: op.epsilon as f32,
        step_size: (s.lr / (1.0 - op.beta1.powf(step))) as f32,
        root_correction: (1.0 - op.beta2.powf(step)).sqrt() as f32,
        ema_decay: with_rest(s.ema_decay),
    };
    ctx.parallel(tasks, &task);
}

impl CpuOperation for Update {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn workspace(&self) -> Workspace {
        workspace(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        update(ctx, self);
    }
}
