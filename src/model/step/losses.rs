//! The losses of a training step, appended for a slice of the micro-batch.

use crate::model::graph::Graph;
use crate::plan::{
    BatchLayout, BufferId, Class, LossKind, Op, PixelLoss, PixelTerms, StructuralLoss,
    StructuralTerms, Tape, Target, split_losses,
};
use std::ops::Range;

/// Where a training plan's target is.
#[derive(Clone, Copy)]
pub(super) enum TrainingTarget {
    /// The HR patches of the staged batch, which the network's last operation subtracts.
    Batch(BatchLayout),
    /// A float buffer `[N, H, W, 3]` of the whole micro-batch.
    Float(BufferId),
}

impl TrainingTarget {
    /// The float buffer, if it is one.
    pub fn float(self) -> Option<BufferId> {
        match self {
            TrainingTarget::Batch(_) => None,
            TrainingTarget::Float(buffer) => Some(buffer),
        }
    }
}

/// The losses of a step.
pub(super) struct Losses {
    pixel: PixelTerms,
    structural: StructuralTerms,
    target: TrainingTarget,
    metrics: BufferId,
}

impl Losses {
    /// The user's list of losses with their weights.
    pub fn new(losses: &[(LossKind, f32)], target: TrainingTarget, metrics: BufferId) -> Losses {
        let (pixel, structural) = split_losses(losses);
        Losses {
            pixel,
            structural,
            target,
            metrics,
        }
    }

    /// Appends the losses of the slice's `prediction` `[N, H, W, 3]`, and gives the graph the
    /// gradient that they leave.
    pub fn append(&self, g: &mut Graph<'_, '_>, prediction: BufferId, images: Range<usize>) {
        let extent = g.extent().scaled(g.net().scale);
        let slice = g.slice();
        let target = match self.target {
            TrainingTarget::Batch(batch) => Target::Subtracted(BatchLayout {
                first: images.start,
                ..batch
            }),
            TrainingTarget::Float(target) => {
                Target::Float(g.builder.images(target, &images, slice.of))
            }
        };
        // a pixel loss reads each value once, so the gradient may overwrite it; windows read values
        // again and again
        let d_prediction = if self.structural.is_empty() {
            prediction
        } else {
            let values = extent.pixels() * 3;
            g.builder.floats("d output", Class::Loss, values)
        };
        g.push_summed(Op::PixelLoss(PixelLoss {
            extent,
            terms: self.pixel.clone(),
            prediction,
            target,
            d_prediction,
            metrics: self.metrics,
            slice,
            workspace: None,
        }));
        if !self.structural.is_empty() {
            g.push_summed(Op::StructuralLoss(StructuralLoss {
                extent,
                terms: self.structural.clone(),
                prediction,
                target,
                d_prediction,
                metrics: self.metrics,
                slice,
                workspace: None,
            }));
        }
        g.set_gradient(prediction, "output", d_prediction);
    }
}
