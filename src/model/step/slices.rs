//! The stretch of a plan that may run slice by slice, a few images at a time: conv_mid,
//! [`Reconstruct`], the losses, and the backward pass of both. Nothing of HR size then exists for
//! the whole micro-batch.

use super::{Body, PlanContext};
use crate::model::nano::FEATURES;
use crate::plan::{
    BatchLayout, BufferId, Builder, Class, Conv, ConvBack, Extent, FoldedConv, Op, PixelLoss,
    PixelTerms, Reconstruct, ReconstructBack, Slice, StructuralLoss, StructuralTerms, Target,
};
use std::ops::Range;

/// Where a training plan's target is.
#[derive(Clone, Copy)]
pub(super) enum SliceTarget {
    /// The HR patches of the staged batch, which [`Reconstruct`] subtracts.
    Batch(BatchLayout),
    /// A float buffer `[N, H, W, 3]` of the whole micro-batch.
    Float(BufferId),
}

impl SliceTarget {
    /// The float buffer, if it is one.
    pub fn float(self) -> Option<BufferId> {
        match self {
            SliceTarget::Batch(_) => None,
            SliceTarget::Float(buffer) => Some(buffer),
        }
    }

    /// The staged batch, if it is one.
    fn batch(self) -> Option<BatchLayout> {
        match self {
            SliceTarget::Batch(batch) => Some(batch),
            SliceTarget::Float(_) => None,
        }
    }
}

/// The forward operations of one slice that the backward pass needs.
pub(super) struct SliceForward {
    pub conv_mid: Conv,
    pub reconstruct: Reconstruct,
}

/// How a plan uses the prediction: the differences between inference and training.
pub(super) struct Prediction {
    /// Class of the prediction's buffer.
    pub class: Class,
    /// The batch whose HR patches are subtracted from the prediction.
    pub subtract: Option<BatchLayout>,
    /// The folded convolution that an earlier slice computed.
    pub folded: Option<FoldedConv>,
}

/// The LQ extent of some images of the micro-batch.
fn slice_extent(c: &PlanContext<'_>, images: &Range<usize>) -> Extent {
    Extent {
        n: images.len(),
        ..c.extent
    }
}

/// Appends conv_mid and [`Reconstruct`] for some images of the micro-batch, or for all.
pub(super) fn forward_slice(
    b: &mut Builder,
    c: &PlanContext<'_>,
    body: &Body,
    images: &Range<usize>,
    prediction: Prediction,
) -> SliceForward {
    let of = c.extent.n;
    let extent = slice_extent(c, images);
    let part = if images.len() == of {
        String::new()
    } else {
        format!(", images {} to {}", images.start, images.end - 1)
    };
    let features = b.images(body.output, images, of);
    let input = b.images(body.input, images, of);
    let mid = b.map(
        format!("conv_mid{part}"),
        Class::Activations,
        extent.pixels() * FEATURES,
    );
    let channels = (FEATURES, FEATURES);
    let conv_mid = c.conv(extent, channels, c.layers.conv_mid, features, mid);
    b.push(Op::Conv(conv_mid.clone()));
    let values = extent.scaled(c.net.scale).pixels() * 3;
    let output = b.floats(format!("output{part}"), prediction.class, values);
    let mut reconstruct = Reconstruct {
        extent,
        scale: c.net.scale,
        features: FEATURES,
        alpha: c.net.upsampler_alpha,
        up_weight: c.layers.up[0],
        up_bias: c.layers.up[1],
        weight: c.layers.conv_out[0],
        bias: c.layers.conv_out[1],
        gain: c.layers.gain,
        parameters: c.parameters,
        tile_invariant: c.tile_invariant,
        input,
        features_in: mid,
        output,
        target: prediction.subtract.map(|batch| BatchLayout {
            first: images.start,
            ..batch
        }),
        folded: prediction.folded.map(|folded| FoldedConv {
            first: false,
            ..folded
        }),
        workspace: None,
    };
    reconstruct.folded = reconstruct.folded.or_else(|| b.folded(&reconstruct));
    b.push(Op::Reconstruct(reconstruct.clone()));
    SliceForward {
        conv_mid,
        reconstruct,
    }
}

/// Forward, loss and backward of the slices of a training step, in the order of the images.
pub(super) struct SlicedSteps {
    pub losses: (PixelTerms, StructuralTerms),
    /// The parameters' gradients.
    pub gradients: BufferId,
    pub metrics: BufferId,
    pub target: SliceTarget,
    /// Gradient of the body's output for the whole micro-batch, `[N, h, w, F]`.
    pub d_body: BufferId,
    /// Gradient of the network's input through the base, `[N, h, w, 3]`, if wanted.
    pub d_input: Option<BufferId>,
    /// The folded convolution that the first slice computes; `None` before it.
    pub folded: Option<FoldedConv>,
    /// The buffers that carry sums from slice to slice, in the order of a slice's operations;
    /// `None` before the first slice.
    pub carries: Option<Vec<Option<BufferId>>>,
}

impl SlicedSteps {
    /// Appends one slice.
    pub fn append(
        &mut self,
        b: &mut Builder,
        c: &PlanContext<'_>,
        body: &Body,
        images: Range<usize>,
    ) {
        let of = c.extent.n;
        let prediction = Prediction {
            class: Class::Loss,
            subtract: self.target.batch(),
            folded: self.folded,
        };
        let forward = forward_slice(b, c, body, &images, prediction);
        self.folded = forward.reconstruct.folded;
        let slice = Slice {
            of,
            first: images.start == 0,
            last: images.end == of,
            carry: None,
        };
        let (mut ops, d_output) = self.losses(b, &forward.reconstruct, &images, slice);
        ops.extend(self.backward(b, forward, &images, slice, d_output));
        if images.len() < of {
            let carries = self
                .carries
                .get_or_insert_with(|| ops.iter().map(|op| b.carry(op)).collect());
            ops.iter_mut()
                .zip(carries)
                .for_each(|(op, carry)| op.set_carry(*carry));
        }
        ops.into_iter().for_each(|op| b.push(op));
    }

    /// The losses, and the gradient of the prediction that they leave, `[N, H, W, 3]`.
    fn losses(
        &self,
        b: &mut Builder,
        forward: &Reconstruct,
        images: &Range<usize>,
        slice: Slice,
    ) -> (Vec<Op>, BufferId) {
        let (terms, structural) = self.losses.clone();
        let target = match self.target {
            SliceTarget::Batch(batch) => Target::Subtracted(BatchLayout {
                first: images.start,
                ..batch
            }),
            SliceTarget::Float(target) => Target::Float(b.images(target, images, slice.of)),
        };
        let extent = forward.extent.scaled(forward.scale);
        let prediction = forward.output;
        // a pixel loss reads each value once, so the gradient may overwrite it; windows read values
        // again and again
        let d_prediction = if structural.is_empty() {
            prediction
        } else {
            b.floats("d output", Class::Loss, extent.pixels() * 3)
        };
        let mut ops = vec![Op::PixelLoss(PixelLoss {
            extent,
            terms,
            prediction,
            target,
            d_prediction,
            metrics: self.metrics,
            slice,
            workspace: None,
        })];
        if !structural.is_empty() {
            ops.push(Op::StructuralLoss(StructuralLoss {
                extent,
                terms: structural,
                prediction,
                target,
                d_prediction,
                metrics: self.metrics,
                slice,
                workspace: None,
            }));
        }
        (ops, d_prediction)
    }

    /// The backward operations; `d_output` is the gradient of the prediction.
    fn backward(
        &self,
        b: &mut Builder,
        forward: SliceForward,
        images: &Range<usize>,
        slice: Slice,
        d_output: BufferId,
    ) -> [Op; 2] {
        let d_input = self.d_input.map(|id| b.images(id, images, slice.of));
        let count = forward.conv_mid.extent.pixels() * FEATURES;
        let d_mid = b.map("d conv_mid", Class::ActivationGradients, count);
        let reconstruct = ReconstructBack {
            forward: forward.reconstruct,
            gradients: self.gradients,
            d_output,
            d_features: d_mid,
            d_input,
            slice,
            workspace: None,
        };
        let conv_mid = ConvBack {
            forward: forward.conv_mid,
            gradients: self.gradients,
            d_output: d_mid,
            d_input: Some(b.images(self.d_body, images, slice.of)),
            slice,
            workspace: None,
        };
        [Op::ReconstructBack(reconstruct), Op::ConvBack(conv_mid)]
    }
}
