//! The operations of a plan: coarse and fused, each naming its inputs, outputs and parameters as
//! buffers and ranges of the arena. A new kind of block (attention, gating) is a further variant of
//! [`Op`]. Depends on the plan's buffers alone.
//!
//! Sizes in the comments: N images in a micro-batch (or in a slice of it), h x w pixels at LQ
//! resolution, H x W = `scale` times that at HR resolution, F features. Every activation is NHWC,
//! that is `[N, h, w, C]` with the channels adjacent. Values are in the plan's [`Precision`]
//! (`activation` below) or always f32, as said with each buffer; a gradient has the shape and type
//! of the value it belongs to.
//!
//! [`Precision`]: super::Precision

mod properties;

pub use properties::Access;
pub(super) use properties::{update, write};

use super::{BatchLayout, BufferId, PixelLoss, StructuralLoss};

/// A range of f32 elements in the parameter buffer; the gradient, moment and EMA buffers use the
/// same positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamRange {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// Images, height and width of an activation. The channel count is given with each operation, and
/// whether the pixels are LQ or HR with each field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Images (N): of the micro-batch, or of the slice that the operation works on.
    pub n: usize,
    /// Rows of one image.
    pub h: usize,
    /// Columns of one image.
    pub w: usize,
}

impl Extent {
    /// Pixels in all images: `n * h * w`.
    pub fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }

    /// The same images at `scale` times the resolution.
    pub fn scaled(&self, scale: usize) -> Extent {
        Extent {
            n: self.n,
            h: self.h * scale,
            w: self.w * scale,
        }
    }
}

/// The part of a micro-batch that an operation works on, in plans that run a stretch of the network
/// slice by slice, a few images at a time. An operation that sums over the micro-batch continues
/// its sums from slice to slice, in f64 and in the order of the images, and uses them in the last
/// slice: the result has the bits of one operation over all images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Images of the whole micro-batch: the divisor of means.
    pub of: usize,
    /// Whether this is the first slice: sums start at 0.
    pub first: bool,
    /// Whether this is the last slice: sums are complete and are used.
    pub last: bool,
    /// The buffer that carries the sums to the next slice; `None` if the plan has one slice only.
    pub carry: Option<BufferId>,
}

impl Slice {
    /// The one slice of a plan that runs all `images` of the micro-batch at once.
    pub fn whole(images: usize) -> Slice {
        Slice {
            of: images,
            first: true,
            last: true,
            carry: None,
        }
    }

    pub(super) fn accesses(&self) -> Option<Access> {
        self.carry.map(if self.first { write } else { update })
    }
}

/// Converts the u8 LQ patches of the staged batch to floats in [0, 1], with each patch's
/// augmentation applied.
#[derive(Clone, Debug)]
pub struct Unpack {
    /// The staged batch.
    pub batch: BatchLayout,
    /// The network's input `[N, h, w, 3]`, f32.
    pub output: BufferId,
}

/// 3x3 convolution with bias, stride 1 and zero padding, `cin -> cout` channels at LQ resolution.
#[derive(Clone, Debug)]
pub struct Conv {
    /// LQ extent of input and output.
    pub extent: Extent,
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// The bits of an output must not depend on where the pixel is in a larger image (inference in
    /// overlapping tiles). This excludes methods that work on blocks of pixels (Winograd).
    pub tile_invariant: bool,
    /// Weights in PyTorch's order, `[cout, cin, 3, 3]`.
    pub weight: ParamRange,
    /// Bias `[cout]`.
    pub bias: ParamRange,
    /// The parameter buffer, f32.
    pub parameters: BufferId,
    /// Input `[N, h, w, cin]`: f32 for the network's input, otherwise activation.
    pub input: BufferId,
    /// Output `[N, h, w, cout]`, activation.
    pub output: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// Gradients of [`Conv`] with respect to weights, bias and (if `d_input` is given) input.
#[derive(Clone, Debug)]
pub struct ConvBack {
    /// The forward operation.
    pub forward: Conv,
    /// The gradient buffer, f32; the ranges are those of the parameters.
    pub gradients: BufferId,
    /// Gradient of the output, `[N, h, w, cout]`, activation.
    pub d_output: BufferId,
    /// Gradient of the input, `[N, h, w, cin]`, of the input's type; written if given.
    pub d_input: Option<BufferId>,
    /// The part of the micro-batch.
    pub slice: Slice,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// Parameter ranges of a Nano block; weights in PyTorch's order.
#[derive(Clone, Copy, Debug)]
pub struct NanoParams {
    /// 1x1 convolution F to 2F: `[2F, F, 1, 1]`.
    pub conv1_weight: ParamRange,
    /// Its bias, `[2F]`.
    pub conv1_bias: ParamRange,
    /// Depthwise 3x3 convolution: `[2F, 1, 3, 3]`.
    pub dw_weight: ParamRange,
    /// Its bias, `[2F]`.
    pub dw_bias: ParamRange,
    /// 1x1 convolution 2F to F: `[F, 2F, 1, 1]`.
    pub conv2_weight: ParamRange,
    /// Its bias, `[F]`.
    pub conv2_bias: ParamRange,
    /// LayerScale, `[1, F, 1, 1]`.
    pub gamma: ParamRange,
}

/// `x + gamma * conv2(gelu(dw(conv1(x))))`: 1x1 `F -> 2F`, depthwise 3x3 with zero padding, exact
/// GELU, 1x1 `2F -> F`, LayerScale, residual. Only the block's input is kept; the backward pass
/// recomputes the rest.
#[derive(Clone, Debug)]
pub struct NanoBlock {
    /// LQ extent of input and output.
    pub extent: Extent,
    /// F.
    pub features: usize,
    /// Ranges of the block's parameters.
    pub params: NanoParams,
    /// The parameter buffer, f32.
    pub parameters: BufferId,
    /// x, `[N, h, w, F]`, activation.
    pub input: BufferId,
    /// Output `[N, h, w, F]`, activation.
    pub output: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// Gradients of [`NanoBlock`] with respect to its parameters and its input.
#[derive(Clone, Debug)]
pub struct NanoBlockBack {
    /// The forward operation.
    pub forward: NanoBlock,
    /// The gradient buffer, f32; the ranges are those of the parameters.
    pub gradients: BufferId,
    /// Gradient of the output, `[N, h, w, F]`, activation.
    pub d_output: BufferId,
    /// Gradient of the input, `[N, h, w, F]`, activation; written.
    pub d_input: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

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
    /// As in [`Conv`].
    pub tile_invariant: bool,
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
    /// [`METRICS`](super::METRICS) f64 values; gradient norm and skipped are written.
    pub metrics: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// One operation of a plan.
#[derive(Clone, Debug)]
pub enum Op {
    /// See [`Unpack`].
    Unpack(Unpack),
    /// See [`Conv`].
    Conv(Conv),
    /// See [`ConvBack`].
    ConvBack(ConvBack),
    /// See [`NanoBlock`].
    NanoBlock(NanoBlock),
    /// See [`NanoBlockBack`].
    NanoBlockBack(NanoBlockBack),
    /// See [`Reconstruct`].
    Reconstruct(Reconstruct),
    /// See [`ReconstructBack`].
    ReconstructBack(ReconstructBack),
    /// See [`PixelLoss`].
    PixelLoss(PixelLoss),
    /// See [`StructuralLoss`].
    StructuralLoss(StructuralLoss),
    /// See [`Update`].
    Update(Update),
}
