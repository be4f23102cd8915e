//! The operations of a plan: coarse and fused, each naming its inputs, outputs and parameters as
//! ranges of the arena. Blocks of other variants (attention, gating) are further variants of [`Op`]
//! beside the ones here. All activations are NHWC, in the plan's precision.

use super::{BatchLayout, BufferId, PixelLoss, StructuralLoss, Target};

/// A run of f32 elements in the parameter buffer; the gradient, moment and EMA buffers use the same
/// positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamRange {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// Images, height and width of an activation at LQ resolution; the channel count stands with each
/// operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Images in the micro-batch.
    pub n: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
}

impl Extent {
    /// Pixels in all images.
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

/// The part of a micro-batch that an operation takes where the plan runs a stretch of the network
/// slice by slice, a few images at a time. Sums over the micro-batch go on from slice to slice in
/// f64 and in the order of the images, and are used after the last one: the bits are those of one
/// operation over all images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Images of the whole micro-batch: what means are taken over.
    pub of: usize,
    /// No slice came before this one.
    pub first: bool,
    /// No slice follows.
    pub last: bool,
    /// Where the sums wait; nothing where there is one slice only.
    pub carry: Option<BufferId>,
}

impl Slice {
    /// The whole micro-batch at once.
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

/// u8 patches through the augmentation index map to `[N, h, w, 3]` f32 in [0, 1].
#[derive(Clone, Debug)]
pub struct Unpack {
    pub batch: BatchLayout,
    pub output: BufferId,
}

/// 3x3 convolution with bias and zero padding, `cin -> cout`: output `[N, h, w, cout]`. Weights in
/// PyTorch's `[cout, cin, 3, 3]`.
#[derive(Clone, Debug)]
pub struct Conv {
    pub extent: Extent,
    pub cin: usize,
    pub cout: usize,
    /// The bits of an output may not depend on where in a larger image it lies (inference in
    /// overlapping tiles), which rules out methods that work on blocks of pixels.
    pub tile_invariant: bool,
    pub weight: ParamRange,
    pub bias: ParamRange,
    pub parameters: BufferId,
    pub input: BufferId,
    pub output: BufferId,
    pub workspace: Option<BufferId>,
}

/// Gradients of [`Conv`] with respect to weights, bias and (where `d_input` is given) input.
#[derive(Clone, Debug)]
pub struct ConvBack {
    pub forward: Conv,
    pub gradients: BufferId,
    pub d_output: BufferId,
    pub d_input: Option<BufferId>,
    pub slice: Slice,
    pub workspace: Option<BufferId>,
}

/// Parameter ranges of a Nano block: 1x1 convolution F to 2F, depthwise 3x3, 1x1 convolution 2F to
/// F, LayerScale.
#[derive(Clone, Copy, Debug)]
pub struct NanoParams {
    pub conv1_weight: ParamRange,
    pub conv1_bias: ParamRange,
    pub dw_weight: ParamRange,
    pub dw_bias: ParamRange,
    pub conv2_weight: ParamRange,
    pub conv2_bias: ParamRange,
    pub gamma: ParamRange,
}

/// `x + gamma * conv2(gelu(dw(conv1(x))))`: 1x1 `F -> 2F`, depthwise 3x3, exact GELU, 1x1 `2F ->
/// F`, LayerScale, residual. Only the block's input is kept; the backward recomputes the rest.
#[derive(Clone, Debug)]
pub struct NanoBlock {
    pub extent: Extent,
    pub features: usize,
    pub params: NanoParams,
    pub parameters: BufferId,
    pub input: BufferId,
    pub output: BufferId,
    pub workspace: Option<BufferId>,
}

/// Gradients of [`NanoBlock`].
#[derive(Clone, Debug)]
pub struct NanoBlockBack {
    pub forward: NanoBlock,
    pub gradients: BufferId,
    pub d_output: BufferId,
    pub d_input: BufferId,
    pub workspace: Option<BufferId>,
}

/// The network's end: `base(x) + detail_gain * conv_out(shuffle(up.0(f)))`, with the Magic Kernel
/// base of strength `alpha`. Between the two convolutions nothing is nonlinear, so a backend
/// computes them as one of the LQ features, and features at HR never exist.
#[derive(Clone, Debug)]
pub struct Reconstruct {
    /// LQ extent; `output` is `scale` times larger.
    pub extent: Extent,
    pub scale: usize,
    pub features: usize,
    pub alpha: f32,
    /// Weight of the upsampling convolution, `[F * scale^2, F, 3, 3]`.
    pub up_weight: ParamRange,
    pub up_bias: ParamRange,
    /// `conv_out`.
    pub weight: ParamRange,
    pub bias: ParamRange,
    pub gain: ParamRange,
    pub parameters: BufferId,
    /// As in [`Conv`].
    pub tile_invariant: bool,
    /// Network input `[N, h, w, 3]`.
    pub input: BufferId,
    /// `[N, h, w, F]`.
    pub features_in: BufferId,
    /// `[N, H, W, 3]`: the prediction, or with `target` the prediction less its target.
    pub output: BufferId,
    /// Subtract the u8 HR patches while base and target are still exact numbers: in f32 the
    /// difference of two pixels near each other keeps few bits, and the slope of L1 is its sign.
    pub target: Option<BatchLayout>,
    /// Where a backend keeps the one convolution from the first slice's forward pass to the last
    /// one's backward, if it does.
    pub folded: Option<FoldedConv>,
    pub workspace: Option<BufferId>,
}

/// Where the folded convolution lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldedConv {
    pub buffer: BufferId,
    /// The operation is the first to use it, and makes it.
    pub first: bool,
}

/// Gradients of [`Reconstruct`] with respect to both convolutions, `detail_gain`, the features and (for
/// tests) the network input.
#[derive(Clone, Debug)]
pub struct ReconstructBack {
    pub forward: Reconstruct,
    pub gradients: BufferId,
    /// `[N, H, W, 3]`.
    pub d_output: BufferId,
    /// `[N, h, w, F]`.
    pub d_features: BufferId,
    /// `[N, h, w, 3]`: written with the part of the gradient that flows through the base.
    pub d_input: Option<BufferId>,
    pub slice: Slice,
    pub workspace: Option<BufferId>,
}

/// How a gradient becomes a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum OptimizerKind {
    /// Weight decay on the parameters themselves.
    #[default]
    AdamW,
    /// Weight decay, if any, added to the gradient.
    Adam,
}

/// Global gradient norm, clip, Adam or AdamW and EMA over all trainable parameters, in one pass;
/// skipped when the norm is not finite.
#[derive(Clone, Debug)]
pub struct Update {
    /// Trainable elements: they come first in the parameter buffer.
    pub trainable: usize,
    pub optimizer: OptimizerKind,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    pub parameters: BufferId,
    pub gradients: BufferId,
    pub moment1: BufferId,
    pub moment2: BufferId,
    pub ema: BufferId,
    pub metrics: BufferId,
    pub workspace: Option<BufferId>,
}

/// One operation of a plan.
#[derive(Clone, Debug)]
pub enum Op {
    Unpack(Unpack),
    Conv(Conv),
    ConvBack(ConvBack),
    NanoBlock(NanoBlock),
    NanoBlockBack(NanoBlockBack),
    Reconstruct(Reconstruct),
    ReconstructBack(ReconstructBack),
    PixelLoss(PixelLoss),
    StructuralLoss(StructuralLoss),
    Update(Update),
}

/// One buffer an operation touches, and how.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub buffer: BufferId,
    pub read: bool,
    pub write: bool,
}

fn read(buffer: BufferId) -> Access {
    Access {
        buffer,
        read: true,
        write: false,
    }
}

fn write(buffer: BufferId) -> Access {
    Access {
        buffer,
        read: false,
        write: true,
    }
}

fn update(buffer: BufferId) -> Access {
    Access {
        buffer,
        read: true,
        write: true,
    }
}

impl Op {
    /// Every buffer this operation reads or writes, its workspace included.
    pub fn accesses(&self) -> impl Iterator<Item = Access> {
        let mut list = match self {
            Op::Unpack(o) => vec![read(o.batch.buffer), write(o.output)],
            Op::Conv(o) => vec![read(o.parameters), read(o.input), write(o.output)],
            Op::ConvBack(o) => {
                let mut list = vec![
                    read(o.forward.parameters),
                    read(o.forward.input),
                    read(o.d_output),
                    update(o.gradients),
                ];
                list.extend(o.d_input.map(write));
                list.extend(o.slice.accesses());
                list
            }
            Op::NanoBlock(o) => vec![read(o.parameters), read(o.input), write(o.output)],
            Op::NanoBlockBack(o) => {
                vec![
                    read(o.forward.parameters),
                    read(o.forward.input),
                    read(o.d_output),
                    write(o.d_input),
                    update(o.gradients),
                ]
            }
            Op::Reconstruct(o) => {
                let mut list = vec![
                    read(o.parameters),
                    read(o.input),
                    read(o.features_in),
                    write(o.output),
                ];
                list.extend(o.target.map(|batch| read(batch.buffer)));
                list.extend(o.folded.map(|c| {
                    if c.first {
                        write(c.buffer)
                    } else {
                        read(c.buffer)
                    }
                }));
                list
            }
            Op::ReconstructBack(o) => {
                let f = &o.forward;
                let mut list = vec![
                    read(f.parameters),
                    read(f.features_in),
                    read(o.d_output),
                    write(o.d_features),
                    update(o.gradients),
                ];
                list.extend(o.d_input.map(write));
                list.extend(o.slice.accesses());
                list.extend(f.folded.map(|c| read(c.buffer)));
                list
            }
            Op::PixelLoss(o) => {
                let mut list = vec![read(o.prediction), write(o.d_prediction), update(o.metrics)];
                if let Target::Float(target) = o.target {
                    list.push(read(target));
                }
                list.extend(o.slice.accesses());
                list
            }
            Op::StructuralLoss(o) => {
                let mut list = vec![
                    read(o.prediction),
                    read(o.target.buffer()),
                    update(o.d_prediction),
                    update(o.metrics),
                ];
                list.extend(o.slice.accesses());
                list
            }
            Op::Update(o) => {
                vec![
                    update(o.parameters),
                    read(o.gradients),
                    update(o.moment1),
                    update(o.moment2),
                    update(o.ema),
                    update(o.metrics),
                ]
            }
        };
        list.extend(self.workspace().map(write));
        list.into_iter()
    }

    /// The workspace given by the builder, if the backend asked for one.
    pub fn workspace(&self) -> Option<BufferId> {
        match self {
            Op::Unpack(_) => None,
            Op::Conv(o) => o.workspace,
            Op::ConvBack(o) => o.workspace,
            Op::NanoBlock(o) => o.workspace,
            Op::NanoBlockBack(o) => o.workspace,
            Op::Reconstruct(o) => o.workspace,
            Op::ReconstructBack(o) => o.workspace,
            Op::PixelLoss(o) => o.workspace,
            Op::StructuralLoss(o) => o.workspace,
            Op::Update(o) => o.workspace,
        }
    }

    pub(super) fn set_workspace(&mut self, id: BufferId) {
        let place = match self {
            Op::Unpack(_) => return,
            Op::Conv(o) => &mut o.workspace,
            Op::ConvBack(o) => &mut o.workspace,
            Op::NanoBlock(o) => &mut o.workspace,
            Op::NanoBlockBack(o) => &mut o.workspace,
            Op::Reconstruct(o) => &mut o.workspace,
            Op::ReconstructBack(o) => &mut o.workspace,
            Op::PixelLoss(o) => &mut o.workspace,
            Op::StructuralLoss(o) => &mut o.workspace,
            Op::Update(o) => &mut o.workspace,
        };
        *place = Some(id);
    }

    /// Says where an operation on a slice keeps its sums; operations that sum nothing have none.
    pub fn set_carry(&mut self, carry: Option<BufferId>) {
        match self {
            Op::ConvBack(o) => o.slice.carry = carry,
            Op::ReconstructBack(o) => o.slice.carry = carry,
            Op::PixelLoss(o) => o.slice.carry = carry,
            Op::StructuralLoss(o) => o.slice.carry = carry,
            Op::Unpack(_)
            | Op::Conv(_)
            | Op::NanoBlock(_)
            | Op::NanoBlockBack(_)
            | Op::Reconstruct(_)
            | Op::Update(_) => {}
        }
    }

    /// The part of the micro-batch that a summing operation takes; nothing for the others.
    pub fn slice(&self) -> Option<Slice> {
        match self {
            Op::ConvBack(o) => Some(o.slice),
            Op::ReconstructBack(o) => Some(o.slice),
            Op::PixelLoss(o) => Some(o.slice),
            Op::StructuralLoss(o) => Some(o.slice),
            Op::Unpack(_)
            | Op::Conv(_)
            | Op::NanoBlock(_)
            | Op::NanoBlockBack(_)
            | Op::Reconstruct(_)
            | Op::Update(_) => None,
        }
    }

    /// The most values that one of its activations or images has: what a backend counts with.
    pub fn largest_extent(&self) -> u64 {
        let values = |e: Extent, channels: usize| e.pixels() as u64 * channels as u64;
        let conv = |o: &Conv| values(o.extent, o.cin.max(o.cout));
        let reconstruct =
            |o: &Reconstruct| values(o.extent.scaled(o.scale), 3).max(values(o.extent, o.features));
        match self {
            Op::Unpack(o) => o.batch.bytes() as u64,
            Op::Conv(o) => conv(o),
            Op::ConvBack(o) => conv(&o.forward),
            Op::NanoBlock(o) => values(o.extent, 2 * o.features),
            Op::NanoBlockBack(o) => values(o.forward.extent, 2 * o.forward.features),
            Op::Reconstruct(o) => reconstruct(o),
            Op::ReconstructBack(o) => reconstruct(&o.forward),
            Op::PixelLoss(o) => values(o.extent, 3),
            Op::StructuralLoss(o) => values(o.extent, 3),
            Op::Update(o) => o.trainable as u64,
        }
    }

    /// What comes and goes within a step and an operation's sums are made of: its workspace, sums
    /// carried from slice to slice, and the composition that tells the gradients of two layers
    /// apart.
    pub fn sums(&self) -> impl Iterator<Item = BufferId> {
        let (carry, folded) = match self {
            Op::ConvBack(o) => (o.slice.carry, None),
            Op::ReconstructBack(o) => (o.slice.carry, o.forward.folded),
            Op::PixelLoss(o) => (o.slice.carry, None),
            Op::StructuralLoss(o) => (o.slice.carry, None),
            Op::Unpack(_)
            | Op::Conv(_)
            | Op::NanoBlock(_)
            | Op::NanoBlockBack(_)
            | Op::Reconstruct(_)
            | Op::Update(_) => (None, None),
        };
        [self.workspace(), carry, folded.map(|c| c.buffer)]
            .into_iter()
            .flatten()
    }

    /// Short name for tables and errors.
    pub fn label(&self) -> &'static str {
        match self {
            Op::Unpack(_) => "unpack",
            Op::Conv(_) => "conv 3x3",
            Op::ConvBack(_) => "conv 3x3, backward",
            Op::NanoBlock(_) => "nano block",
            Op::NanoBlockBack(_) => "nano block, backward",
            Op::Reconstruct(_) => "reconstruct",
            Op::ReconstructBack(_) => "reconstruct, backward",
            Op::PixelLoss(_) => "pixel loss",
            Op::StructuralLoss(_) => "structural loss",
            Op::Update(_) => "optimizer",
        }
    }

    /// Useful multiply-adds of one run (recomputation not counted), for shares of peak.
    pub fn multiply_adds(&self) -> u64 {
        let conv = |c: &Conv| (c.extent.pixels() * c.cin * c.cout * 9) as u64;
        let block = |b: &NanoBlock| {
            (b.extent.pixels() * (2 * b.features * (2 * b.features) + 9 * 2 * b.features)) as u64
        };
        let reconstruct = |o: &Reconstruct| {
            (o.extent.pixels() * (o.up_weight.len + o.scale * o.scale * o.features * 27)) as u64
        };
        match self {
            Op::Unpack(_) | Op::PixelLoss(_) | Op::StructuralLoss(_) | Op::Update(_) => 0,
            Op::Conv(o) => conv(o),
            Op::ConvBack(o) => conv(&o.forward) * (1 + u64::from(o.d_input.is_some())),
            Op::NanoBlock(o) => block(o),
            Op::NanoBlockBack(o) => 2 * block(&o.forward),
            Op::Reconstruct(o) => reconstruct(o),
            Op::ReconstructBack(o) => 2 * reconstruct(&o.forward),
        }
    }
}
