//! RMSNorm, also together with the 1x1 convolution after it, and channel attention
//! (kernels/plain_norm.cu, kernels/matrix_pointwise.cu).

use super::super::arguments::{Address, Partial};
use super::super::constants::BLOCK_THREADS;
use super::super::launch::Shape;
use super::super::limits::{MOST_SHARED, most_sum_blocks};
use super::super::lowering::{Lowering, int};
use super::super::operation::CudaOperation;
use super::super::reduce::{self, Finish};
use super::conv::{shape_of, weights_of};
use super::matrix_conv::{self, Pass};
use super::matrix_signatures::PixelNorm;
use super::signatures::{
    PLAIN_CHANNEL_FACTORS, PLAIN_CHANNEL_SCALE, PLAIN_CHANNEL_SUMS, PLAIN_RMS_NORM,
    PLAIN_RMS_NORM_BACK, PlainChannelFactorsArguments, PlainChannelScaleArguments,
    PlainChannelSumsArguments, PlainRmsNormArguments, PlainRmsNormBackArguments,
};
use super::{
    ALIGNMENT, NO_FUNCTION, NO_VIEW, SumSpace, buffer_view, channel_sum_bytes, check_stride, piece,
    piece_blocks, place, sum_bytes,
};
use crate::plan::{
    BufferId, ChannelAttention, ChannelAttentionBack, Conv, Extent, PlanData, Precision, RmsNorm,
    RmsNormBack,
};
use anyhow::{Result, ensure};

/// Pixels that a block of the RMSNorm takes at a time.
const NORM_PIXELS: usize = 32;
/// Pixels that a thread of the backward pass has at a time.
const THREAD_PIXELS: usize = 2;
/// Most channels of a pixel: a warp has 32 pieces, of four values in f32.
const MOST_NORM_CHANNELS: usize = 128;

impl CudaOperation for RmsNorm {
    fn check(&self) -> Result<()> {
        ensure!(
            self.stride() <= MOST_NORM_CHANNELS,
            "RMSNorm of {} channels; the CUDA kernels take up to {MOST_NORM_CHANNELS}",
            self.channels
        );
        Ok(())
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let (e, padded) = (self.extent, self.padded);
        let arguments = PlainRmsNormArguments {
            input: l.activations(self.input),
            output: l.activations(self.output),
            scale: l.parameter(self.parameters, self.scale.offset),
            bias: l.parameter(self.parameters, self.bias.offset),
            images: int(e.n)?,
            h: int(e.h)?,
            w: int(e.w)?,
            padded_h: int(padded.h)?,
            padded_w: int(padded.w)?,
            channels: int(self.channels)?,
            stride: int(self.stride())?,
            epsilon: self.epsilon,
        };
        let blocks = padded.pixels().div_ceil(NORM_PIXELS);
        l.launch_persistent(&PLAIN_RMS_NORM, blocks, 0, arguments)
    }
}

/// Whether one launch computes operation `at`, this norm, and the convolution after it. The two are
/// one pass over the pixels, so the plan must not give the norm's input to the convolution's output.
pub(in super::super) fn joins_conv(
    plan: &PlanData,
    at: usize,
    norm: &RmsNorm,
    conv: &Conv,
) -> bool {
    let c = shape_of(conv, plan.precision);
    norm.stride() == norm.channels
        && matrix_conv::takes_norm(&c, conv.activation)
        && plan.used_after(norm.input, at)
}

/// Lowers a norm and the convolution after it, operation `at`, as one launch. The normalised values
/// are written only if a later operation uses them.
pub(in super::super) fn lower_with_conv(
    l: &mut Lowering<'_>,
    at: usize,
    norm: &RmsNorm,
    conv: &Conv,
) -> Result<()> {
    let c = shape_of(conv, l.plan.precision);
    let weights = weights_of(l, conv, &c, conv.workspace)?;
    let pass = Pass {
        input: buffer_view(l, norm.input, norm.stride())?,
        function: NO_FUNCTION,
        output: place(buffer_view(l, conv.output, conv.output_stride)?, false),
        filled: conv.output_stride,
        transposed: false,
        z: NO_VIEW,
        back: NO_FUNCTION,
        slope_partials: Address::NULL,
        norm: PixelNorm {
            scale: l.parameter(norm.parameters, norm.scale.offset),
            bias: l.parameter(norm.parameters, norm.bias.offset),
            output: if l.plan.used_after(norm.output, at) {
                l.activations(norm.output)
            } else {
                Address::NULL
            },
            h: int(norm.extent.h)?,
            w: int(norm.extent.w)?,
            epsilon: norm.epsilon,
            reserved: 0,
        },
    };
    matrix_conv::multiply(l, &c, weights, pass)
}

/// Lanes that share a pixel of the backward pass: one for each of its pieces.
fn norm_lanes(o: &RmsNorm, precision: Precision) -> usize {
    (o.stride() / piece(precision)).next_power_of_two()
}

/// Blocks of the backward pass, `most` at most, which sum the gradients of scale and bias.
fn norm_blocks(o: &RmsNorm, precision: Precision, most: usize) -> usize {
    let pixels = THREAD_PIXELS * BLOCK_THREADS / norm_lanes(o, precision);
    o.extent.pixels().div_ceil(pixels).min(most)
}

impl CudaOperation for RmsNormBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self, precision: Precision) -> u64 {
        let f = &self.forward;
        sum_bytes(2 * f.channels, norm_blocks(f, precision, most_sum_blocks())) as u64
    }

    fn carry(&self) -> u64 {
        16 * self.forward.channels as u64
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let (f, precision) = (&self.forward, l.plan.precision);
        let (e, padded) = (f.extent, f.padded);
        let workspace = l.workspace(self.workspace)?;
        let mut space = SumSpace::new(workspace, 0, self.slice);
        let blocks = norm_blocks(f, precision, l.choices.sum_blocks);
        let sums = space.sums(l, 2 * f.channels, blocks);
        let d_input = self.d_input;
        let arguments = PlainRmsNormBackArguments {
            input: l.activations(f.input),
            d_output: l.activations(self.d_output),
            d_input: d_input.map_or(Address::NULL, |d| l.activations(d.buffer)),
            scale: l.parameter(f.parameters, f.scale.offset),
            partials: sums.partials,
            images: int(e.n)?,
            h: int(e.h)?,
            w: int(e.w)?,
            padded_h: int(padded.h)?,
            padded_w: int(padded.w)?,
            channels: int(f.channels)?,
            stride: int(f.stride())?,
            epsilon: f.epsilon,
            add: d_input.is_some_and(|d| d.add).into(),
            lanes: int(norm_lanes(f, precision))?,
        };
        let shape = Shape::of(sums.blocks, channel_sum_bytes(precision));
        l.launch(&PLAIN_RMS_NORM_BACK, shape, arguments)?;
        let first = reduce::contiguous(&[f.scale, f.bias])?;
        let to = Finish::Gradients(l.gradient(self.gradients, first));
        space.finish(l, &[(sums, to)])
    }
}

/// Blocks that sum the channels of an image: the same number for any number of images, so that the
/// means have the same bits in slices.
fn image_blocks(o: &ChannelAttention, precision: Precision) -> usize {
    let image = Extent { n: 1, ..o.extent };
    piece_blocks(image, o.stride(), precision, true).min(most_sum_blocks() / 16)
}

/// Where the values of a channel attention are in its workspace, bytes: the sums, then from these on.
struct ChannelSpace {
    factors: usize,
    d_means: usize,
    end: usize,
}

fn channel_space(o: &ChannelAttention, precision: Precision) -> ChannelSpace {
    let images = o.extent.n * o.stride();
    let factors = (8 * images * image_blocks(o, precision)).next_multiple_of(ALIGNMENT);
    let d_means = factors + (4 * images).next_multiple_of(ALIGNMENT);
    ChannelSpace {
        factors,
        d_means,
        end: d_means + (4 * images).next_multiple_of(ALIGNMENT),
    }
}

/// Bytes of shared memory of the kernel that computes the factors.
fn factor_bytes(o: &ChannelAttention) -> usize {
    16 * o.stride() + 24 * o.hidden()
}

/// Lowers the factors of all images, and with `back` (the gradient of the output, and where the
/// partial sums of the weights' gradients go) what the backward pass needs.
fn factors(
    l: &mut Lowering<'_>,
    o: &ChannelAttention,
    workspace: BufferId,
    back: Option<(BufferId, Address<Partial>)>,
) -> Result<()> {
    let precision = l.plan.precision;
    let (e, space) = (o.extent, channel_space(o, precision));
    let blocks = image_blocks(o, precision);
    let (pixels, stride) = (int(e.h * e.w)?, int(o.stride())?);
    let sums = PlainChannelSumsArguments {
        input: l.activations(o.input),
        d_output: back.map_or(Address::NULL, |(d, _)| l.activations(d)),
        partials: l.partials_at(workspace, 0),
        pixels,
        stride,
    };
    let shape = Shape {
        grid: [blocks, e.n, 1],
        shared: channel_sum_bytes(precision),
    };
    l.launch(&PLAIN_CHANNEL_SUMS, shape, sums)?;
    let arguments = PlainChannelFactorsArguments {
        sums: l.partials_at(workspace, 0),
        down: l.parameter(o.parameters, o.down.offset),
        up: l.parameter(o.parameters, o.up.offset),
        factors: l.floats_at(workspace, space.factors),
        d_means: match back {
            Some(_) => l.floats_at(workspace, space.d_means),
            None => Address::NULL,
        },
        partials: back.map_or(Address::NULL, |(_, partials)| partials),
        pixels,
        stride,
        channels: int(o.channels)?,
        hidden: int(o.hidden())?,
        blocks: int(blocks)?,
        reserved: 0,
    };
    let shape = Shape::of(e.n, factor_bytes(o));
    l.launch(&PLAIN_CHANNEL_FACTORS, shape, arguments)
}

/// Lowers the product of an activation and the factors. `back`: the input is the gradient of the
/// output, that of the means is added, and with `true` the sum is added to what is there.
fn scale(
    l: &mut Lowering<'_>,
    o: &ChannelAttention,
    workspace: BufferId,
    (input, output): (BufferId, BufferId),
    back: Option<bool>,
) -> Result<()> {
    let precision = l.plan.precision;
    let (e, space) = (o.extent, channel_space(o, precision));
    let arguments = PlainChannelScaleArguments {
        input: l.activations(input),
        factors: l.floats_at(workspace, space.factors),
        d_means: match back {
            Some(_) => l.floats_at(workspace, space.d_means),
            None => Address::NULL,
        },
        output: l.activations(output),
        pixels: int(e.h * e.w)?,
        stride: int(o.stride())?,
        add: back.unwrap_or(false).into(),
        reserved: 0,
    };
    let blocks = piece_blocks(Extent { n: 1, ..e }, o.stride(), precision, false);
    let shape = Shape {
        grid: [blocks, e.n, 1],
        shared: 0,
    };
    l.launch(&PLAIN_CHANNEL_SCALE, shape, arguments)
}

impl CudaOperation for ChannelAttention {
    fn check(&self) -> Result<()> {
        check_stride(self.stride())?;
        ensure!(
            self.means.is_none(),
            "channel attention with given means runs on the CPU only: CUDA computes the means from \
             the input"
        );
        let shared = factor_bytes(self);
        ensure!(
            shared <= MOST_SHARED as usize,
            "channel attention of {} channels with {} between the products needs {shared} bytes \
             of shared memory, and a block has {MOST_SHARED}",
            self.channels,
            self.hidden()
        );
        Ok(())
    }

    fn workspace(&self, precision: Precision) -> u64 {
        channel_space(self, precision).end as u64
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let workspace = l.workspace(self.workspace)?;
        factors(l, self, workspace, None)?;
        scale(l, self, workspace, (self.input, self.output), None)
    }
}

impl CudaOperation for ChannelAttentionBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self, precision: Precision) -> u64 {
        let f = &self.forward;
        let sums = sum_bytes(f.down.len + f.up.len, f.extent.n);
        (channel_space(f, precision).end + sums) as u64
    }

    fn carry(&self) -> u64 {
        8 * (self.forward.down.len + self.forward.up.len) as u64
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let f = &self.forward;
        let workspace = l.workspace(self.workspace)?;
        let end = channel_space(f, l.plan.precision).end;
        let mut space = SumSpace::new(workspace, end, self.slice);
        let sums = space.sums(l, f.down.len + f.up.len, f.extent.n);
        factors(l, f, workspace, Some((self.d_output, sums.partials)))?;
        if let Some(d) = self.d_input {
            scale(l, f, workspace, (self.d_output, d.buffer), Some(d.add))?;
        }
        let first = reduce::contiguous(&[f.down, f.up])?;
        let to = Finish::Gradients(l.gradient(self.gradients, first));
        space.finish(l, &[(sums, to)])
    }
}
