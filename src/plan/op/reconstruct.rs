//! The end of the ParagonSR2 networks as one operation: up.0, pixel shuffle and conv_out on top of
//! the Magic Kernel upsampling of the input.

use super::{Access, Extent, Fusion, Op, Operation, ParamRange, Slice, Tape, read, update, write};
use crate::plan::{BatchLayout, BufferId, Error, Target};

/// From features and input to the prediction: `base(x) + detail_gain * conv_out(shuffle(up.0(f)))`,
/// where base is the Magic Kernel upsampler with sharpening of strength `alpha`. There is nothing
/// nonlinear between the two convolutions, so a backend computes them as one convolution of the LQ
/// features (see [`FoldedConv`]), and features at HR resolution never exist.
#[derive(Clone, Debug)]
pub struct Reconstruct {
    /// LQ extent; `output` is `scale` times larger along each side.
    pub extent: Extent,
    /// HR pixels per LQ pixel along one side.
    pub scale: usize,
    /// F.
    pub features: usize,
    /// Strength of the base's sharpening; 0 skips it.
    pub alpha: f32,
    /// Weight of the upsampling convolution up.0, `[F * scale^2, F, 3, 3]`.
    pub up_weight: ParamRange,
    /// Bias of up.0, `[F * scale^2]`.
    pub up_bias: ParamRange,
    /// Weight of conv_out, `[3, F, 3, 3]`.
    pub weight: ParamRange,
    /// Bias of conv_out, `[3]`.
    pub bias: ParamRange,
    /// `detail_gain`, one value.
    pub gain: ParamRange,
    /// The parameter buffer, f32.
    pub parameters: BufferId,
    /// As in [`Conv`](super::Conv).
    pub tile_invariant: bool,
    /// As in [`Conv`](super::Conv).
    pub tile_alignment: usize,
    /// x, the network's input `[N, h, w, 3]`, f32.
    pub input: BufferId,
    /// f, the features `[N, h, w, F]`, activation.
    pub features_in: BufferId,
    /// `[N, H, W, 3]`, f32: the prediction, or with `target` the prediction less its target.
    pub output: BufferId,
    /// Subtracts the u8 HR patches of the batch before the sum is rounded: base and target are then
    /// still exact numbers. The f32 difference of two nearly equal pixels would keep few bits, and
    /// the gradient of L1 is the sign of that difference.
    pub target: Option<BatchLayout>,
    /// Where a backend keeps the folded convolution from the first slice's forward pass to the last
    /// slice's backward pass, if it does.
    pub folded: Option<FoldedConv>,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// The buffer of the folded convolution: conv_out after pixel shuffle after up.0, as one
/// convolution of the LQ features. Its layout is the backend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldedConv {
    /// The buffer.
    pub buffer: BufferId,
    /// Whether this operation is the first to use it, and computes it from the parameters.
    pub first: bool,
}

/// Gradients of [`Reconstruct`] with respect to both convolutions, `detail_gain`, the features and
/// (for tests) the network's input.
#[derive(Clone, Debug)]
pub struct ReconstructBack {
    /// The forward operation.
    pub forward: Reconstruct,
    /// The gradient buffer, f32; the ranges are those of the parameters.
    pub gradients: BufferId,
    /// Gradient of the prediction, `[N, H, W, 3]`, f32.
    pub d_output: BufferId,
    /// Gradient of the features, `[N, h, w, F]`, activation; written.
    pub d_features: BufferId,
    /// The part of the input's gradient that flows through the base, `[N, h, w, 3]`, f32; written
    /// if given.
    pub d_input: Option<BufferId>,
    /// The part of the micro-batch.
    pub slice: Slice,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl Reconstruct {
    /// Multiply-adds of the two convolutions.
    fn cost(&self) -> u64 {
        let hr = self.scale * self.scale * self.features * 27;
        (self.extent.pixels() * (self.up_weight.len + hr)) as u64
    }
}

impl Operation for Reconstruct {
    fn label(&self) -> &'static str {
        "reconstruct"
    }

    fn accesses(&self) -> Vec<Access> {
        let mut list = vec![
            read(self.parameters),
            read(self.input),
            read(self.features_in),
            write(self.output),
        ];
        let target = self.extent.scaled(self.scale).values(3);
        list.extend(self.target.map(|batch| read(batch.buffer).moving(target)));
        list.extend(self.folded.map(|folded| {
            if folded.first {
                write(folded.buffer)
            } else {
                read(folded.buffer)
            }
        }));
        list
    }

    workspace_field!();

    fn largest_extent(&self) -> u64 {
        let hr = self.extent.scaled(self.scale).values(3);
        hr.max(self.extent.values(self.features))
    }

    fn multiply_adds(&self) -> u64 {
        self.cost()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent.scaled(self.scale))]
    }

    fn prepared(&self) -> Option<BufferId> {
        self.folded.map(|folded| folded.buffer)
    }

    /// A pixel loss that alone reads the output and overwrites it with the gradient can be computed
    /// while each value is in a register; the loss operation then only adds up its sums.
    fn fusion(&self, next: &Op) -> Option<Fusion> {
        let Op::PixelLoss(loss) = next else {
            return None;
        };
        let in_place = loss.prediction == self.output && loss.d_prediction == self.output;
        let subtracted = self.target.is_some() && matches!(loss.target, Target::Subtracted(_));
        (in_place && subtracted).then_some(Fusion {
            absorbed: true,
            ..Fusion::default()
        })
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let back = ReconstructBack {
            forward: self.clone(),
            gradients: tape.gradients(self.parameters)?,
            d_output: tape.d_output(self.output)?,
            d_features: tape.write_gradient(self.features_in)?,
            d_input: tape.input_gradient(self.input)?,
            slice: tape.slice(),
            workspace: None,
        };
        tape.push(back.into());
        Ok(())
    }
}

impl Operation for ReconstructBack {
    fn label(&self) -> &'static str {
        "reconstruct, backward"
    }

    fn accesses(&self) -> Vec<Access> {
        let f = &self.forward;
        let mut list = vec![
            read(f.parameters),
            read(f.features_in),
            read(self.d_output),
            write(self.d_features),
            update(self.gradients),
        ];
        list.extend(self.d_input.map(write));
        list.extend(f.folded.map(|folded| read(folded.buffer)));
        list
    }

    workspace_field!();

    slice_field!();

    fn largest_extent(&self) -> u64 {
        self.forward.largest_extent()
    }

    fn multiply_adds(&self) -> u64 {
        2 * self.forward.cost()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        let extent = self.forward.extent;
        let d_input = self.d_input.map(|id| (id, extent));
        [(self.d_features, extent)]
            .into_iter()
            .chain(d_input)
            .collect()
    }

    fn prepared(&self) -> Option<BufferId> {
        self.forward.prepared()
    }

    /// The gradients of up.0 and conv_out are computed from that of the folded convolution.
    fn summed_with(&self) -> Option<BufferId> {
        self.forward.prepared()
    }
}
