//! The optimizer step in one operation: global gradient norm, clip, Adam (Kingma and Ba, 2015) or
//! AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019), both in PyTorch's
//! order of operations, and EMA. Depends on the tasks alone.

use super::arena::SharedPtr;
use super::simd::Simd;
use super::tasks::{Context, Task, Workspace, WorkspaceParts};
use crate::plan::{OptimizerKind, Update};

/// Parameters of one task.
const CHUNK: usize = 4096;

/// Workspace: one f64 a task.
pub fn workspace(op: &Update) -> Workspace {
    Workspace {
        partial: 2,
        tasks: op.trainable.div_ceil(CHUNK),
        ..Workspace::default()
    }
}

struct SquareSum {
    parts: WorkspaceParts,
    gradients: SharedPtr<f32>,
    len: usize,
}

impl Task for SquareSum {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        // SAFETY: the tasks read disjoint chunks of the `len` gradients; a partial has room for an
        // f64, and begins aligned as a whole vector does
        unsafe {
            let start = task * CHUNK;
            let chunk = self.gradients.slice(start, CHUNK.min(self.len - start));
            *self.parts.partial(task).at(0).cast::<f64>() =
                chunk.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        }
    }
}

struct Step {
    len: usize,
    parameters: SharedPtr<f32>,
    gradients: SharedPtr<f32>,
    moment1: SharedPtr<f32>,
    moment2: SharedPtr<f32>,
    ema: SharedPtr<f32>,
    /// Clip factor on the gradient.
    clip: f32,
    /// AdamW: 1 - lr x weight decay; 1 for Adam
    keep: f32,
    /// Adam: weight decay; 0 for AdamW
    penalty: f32,
    /// beta and 1 - beta: the difference is formed in f64, since in f32 that of 0.999 would be
    /// wrong in its fifth digit
    beta1: (f32, f32),
    beta2: (f32, f32),
    epsilon: f32,
    /// lr / bias correction of the first moment
    step_size: f32,
    /// sqrt of the bias correction of the second moment
    root_correction: f32,
    ema_decay: (f32, f32),
}

impl Task for Step {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let start = task * CHUNK;
        let len = CHUNK.min(self.len - start);
        // SAFETY: the five buffers hold `len` values each, and the tasks take disjoint chunks of
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

fn with_rest(share: f64) -> (f32, f32) {
    (share as f32, (1.0 - share) as f32)
}

/// Runs the optimizer step. A gradient norm or loss that is not finite skips it and is reported in
/// the metrics.
pub fn update(ctx: &Context<'_>, op: &Update) {
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
    // SAFETY: the tasks are done, a partial of each holds an f64, and the metrics hold three
    let skipped = unsafe {
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
    let norm = skipped;
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
