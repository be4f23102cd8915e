//! The losses as operations: each reads the prediction and writes its gradient.

use super::{Access, Extent, Fusion, Op, Operation, Slice, read, update, write};
use crate::plan::{BatchLayout, BufferId, Class, PixelTerms, StructuralTerms};

/// Where a loss reads its target.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// The u8 HR patches of the staged batch, which [`Reconstruct`](super::Reconstruct) has
    /// subtracted already: the prediction's buffer holds prediction less target. A loss that needs
    /// the target itself reads it from the batch, with the patch's augmentation applied.
    Subtracted(BatchLayout),
    /// A buffer `[N, H, W, 3]`, f32.
    Float(BufferId),
}

impl Target {
    /// The buffer that holds the target.
    pub fn buffer(&self) -> BufferId {
        match *self {
            Target::Subtracted(batch) => batch.buffer,
            Target::Float(buffer) => buffer,
        }
    }
}

/// Weighted pixel losses and their gradient with respect to the prediction. Writes the gradient,
/// which may overwrite the prediction, and adds the loss to that of the iteration's earlier
/// micro-batches. It is the first loss of a plan: without any term it still clears both for
/// [`StructuralLoss`].
#[derive(Clone, Debug)]
pub struct PixelLoss {
    /// HR extent.
    pub extent: Extent,
    /// The losses and their weights.
    pub terms: PixelTerms,
    /// `[N, H, W, 3]`, f32: the prediction, or with a subtracted target the prediction less that.
    pub prediction: BufferId,
    /// Where the target is.
    pub target: Target,
    /// Gradient of the prediction, `[N, H, W, 3]`, f32; written.
    pub d_prediction: BufferId,
    /// [`METRICS`](crate::plan::METRICS) f64 values; the loss is updated.
    pub metrics: BufferId,
    /// The part of the micro-batch.
    pub slice: Slice,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// Weighted structural losses; adds to the gradient and the loss that [`PixelLoss`] wrote. Windows
/// read the prediction again and again, so the gradient needs a buffer of its own.
#[derive(Clone, Debug)]
pub struct StructuralLoss {
    /// HR extent.
    pub extent: Extent,
    /// The losses and their weights.
    pub terms: StructuralTerms,
    /// `[N, H, W, 3]`, f32: the prediction, or with a subtracted target the prediction less that.
    pub prediction: BufferId,
    /// Where the target is.
    pub target: Target,
    /// Gradient of the prediction, `[N, H, W, 3]`, f32; updated.
    pub d_prediction: BufferId,
    /// [`METRICS`](crate::plan::METRICS) f64 values; the loss is updated.
    pub metrics: BufferId,
    /// The part of the micro-batch.
    pub slice: Slice,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl Operation for PixelLoss {
    fn label(&self) -> &'static str {
        "pixel loss"
    }

    fn accesses(&self) -> Vec<Access> {
        let mut list = vec![
            read(self.prediction),
            write(self.d_prediction),
            update(self.metrics),
        ];
        if let Target::Float(target) = self.target {
            list.push(read(target));
        }
        list
    }

    workspace_field!();

    fn workspace_class(&self) -> Class {
        Class::Loss
    }

    slice_field!();

    fn largest_extent(&self) -> u64 {
        self.extent.values(3)
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.d_prediction, self.extent)]
    }

    /// Each value is read once, before its gradient is written.
    fn may_overwrite(&self) -> Option<BufferId> {
        Some(self.prediction)
    }

    /// A structural loss has the prediction less a u8 target in registers when it adds to the
    /// gradient, so it can compute that of the pixel losses first.
    fn fusion(&self, next: &Op) -> Option<Fusion> {
        let Op::StructuralLoss(loss) = next else {
            return None;
        };
        let same = loss.prediction == self.prediction && loss.d_prediction == self.d_prediction;
        let subtracted = matches!(self.target, Target::Subtracted(_));
        (same && subtracted).then_some(Fusion {
            not_read: Some(self.d_prediction),
            delayed: true,
            ..Fusion::default()
        })
    }
}

impl Operation for StructuralLoss {
    fn label(&self) -> &'static str {
        "structural loss"
    }

    fn accesses(&self) -> Vec<Access> {
        let target = match self.target {
            Target::Float(buffer) => read(buffer),
            Target::Subtracted(batch) => read(batch.buffer).moving(self.extent.values(3)),
        };
        vec![
            read(self.prediction),
            target,
            update(self.d_prediction),
            update(self.metrics),
        ]
    }

    workspace_field!();

    fn workspace_class(&self) -> Class {
        Class::Loss
    }

    slice_field!();

    fn largest_extent(&self) -> u64 {
        self.extent.values(3)
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.d_prediction, self.extent)]
    }
}
