//! The optimizer step: the last operation of an iteration.

use super::{Access, Extent, Operation, read, update};
use crate::plan::BufferId;

/// How gradients change the parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum OptimizerKind {
    /// Weight decay is applied to the parameters themselves (Loshchilov and Hutter, 2019).
    #[default]
    AdamW,
    /// Weight decay, if any, is added to the gradient.
    Adam,
}

/// Global gradient norm, clipping, Adam or AdamW, and EMA over all trainable parameters, in one
/// operation; nothing changes if the norm is not finite.
#[derive(Clone, Debug)]
pub struct Update {
    /// Trainable elements; they come first in the parameter buffer.
    pub trainable: usize,
    /// The rule.
    pub optimizer: OptimizerKind,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// All parameters, f32; the trainable ones are updated.
    pub parameters: BufferId,
    /// Gradients of the trainable parameters, f32.
    pub gradients: BufferId,
    /// First moments of the trainable parameters, f32; updated.
    pub moment1: BufferId,
    /// Second moments of the trainable parameters, f32; updated.
    pub moment2: BufferId,
    /// Moving average of all parameters, f32; updated.
    pub ema: BufferId,
    /// [`METRICS`](crate::plan::METRICS) f64 values; gradient norm and skipped are written.
    pub metrics: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl Operation for Update {
    fn label(&self) -> &'static str {
        "optimizer"
    }

    fn accesses(&self) -> Vec<Access> {
        // The floor counts all of the parameters and gradients here: the other operations each
        // read one layer's.
        vec![
            update(self.parameters).whole(),
            read(self.gradients).whole(),
            update(self.moment1),
            update(self.moment2),
            update(self.ema),
            update(self.metrics),
        ]
    }

    workspace_field!();

    fn largest_extent(&self) -> u64 {
        self.trainable as u64
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        Vec::new()
    }
}
