//! Dense 3x3 and 1x1 convolutions in half precision on tensor cores (kernels/matrix_conv.cu and
//! kernels/matrix_pointwise.cu). The weights are packed into the operation's workspace ahead of every
//! launch that multiplies with them. Depends on the plain convolutions, which compute all others.

use super::super::arguments::{Address, Partial};
use super::super::constants::{
    BLOCK_THREADS, MATRIX_CONV_NARROW_TILE, MATRIX_CONV_TILE, MATRIX_CONV_WEIGHT_TILES,
    MATRIX_POINTWISE_DEEP_GROUPS, MATRIX_POINTWISE_GROUPS, MATRIX_POINTWISE_PIXELS,
    MATRIX_POINTWISE_SHARE, MATRIX_POINTWISE_SUMS, TAPS, TILE,
};
use super::super::launch::Shape;
use super::super::limits::MOST_SHARED;
use super::super::lowering::{Lowering, int};
use super::super::reduce::Sums;
use super::conv::{ConvShape, ConvWeights};
use super::matrix_signatures::{
    MATRIX_CONV, MATRIX_CONV_NARROW, MATRIX_CONV_PACK, MATRIX_CONV_WEIGHTS, MATRIX_POINTWISE,
    MATRIX_POINTWISE_DEEP, MATRIX_POINTWISE_NORM, MATRIX_POINTWISE_PACK, MATRIX_POINTWISE_WEIGHTS,
    MatrixConvArguments, MatrixConvPackArguments, MatrixConvWeightsArguments,
    MatrixPointwiseWeightsArguments, PixelNorm,
};
use super::signatures::{ChannelFunction, Place, View};
use super::{ALIGNMENT, SumSpace};
use crate::plan::{Activation, Precision};
use anyhow::Result;

/// Inputs of a 3x3 convolution that are multiplied at a time.
const CHUNK: usize = 16;
/// Inputs, and outputs, of a block of the weight gradients of a 3x3 convolution.
const WEIGHT_PART: usize = 32;
/// Fewest inputs, and outputs: with fewer, most of what tensor cores multiply would be zeros.
const FEWEST: (usize, usize) = (16, 8);

/// Inputs, and outputs, of a 1x1 convolution that are multiplied at a time.
const GROUP: usize = 32;
/// Outputs of a group that a lane has.
const LANE_OUTPUTS: usize = 8;
/// Most inputs that matrix_pointwise keeps in registers.
const HELD_INPUTS: usize = 64;
/// Bytes of shared memory for the scale and the bias of as many inputs.
const NORM_FACTORS: usize = 2 * 4 * HELD_INPUTS;
/// Inputs and outputs of a warp of matrix_pointwise_weights, and its blocks' warps.
const OUTER_PART: (usize, usize) = (32, 64);
const WARPS: usize = 8;

/// Whether these kernels compute a convolution, whose input has an activation, and its gradients.
pub(super) fn serves(c: &ConvShape, activation: Option<Activation>, precision: Precision) -> bool {
    let dense = (c.dilation, c.groups) == (1, 1) && c.cin >= FEWEST.0 && c.cout >= FEWEST.1;
    if precision == Precision::F32 || !dense {
        return false;
    }
    match (c.kernel, activation) {
        (_, Some(Activation::Normalize { .. })) | (3, Some(Activation::Gelu)) => false,
        (3, _) => true,
        (1, _) => {
            let slopes = matches!(activation, Some(Activation::PRelu { .. }));
            let passes = [(c.cin, c.cout, false), (c.cout, c.cin, slopes)];
            let shared = passes.map(|(from, to, slopes)| pointwise_shared(from, to, slopes));
            shared
                .into_iter()
                .all(|bytes| bytes <= MOST_SHARED as usize)
        }
        _ => false,
    }
}

/// Whether the sums of a 1x1 convolution's outputs stay in registers, and not its inputs.
fn is_deep(inputs: usize, slopes: bool) -> bool {
    inputs > HELD_INPUTS || slopes
}

/// Whether a 1x1 convolution that [`serves`] takes can normalise its input on the way: a pixel's
/// channels are then in the registers of four lanes.
pub(super) fn takes_norm(c: &ConvShape, activation: Option<Activation>) -> bool {
    c.matrix && c.kernel == 1 && c.cin <= HELD_INPUTS && activation.is_none()
}

/// Groups of outputs of a launch of a 1x1 convolution.
fn launch_groups(inputs: usize, outputs: usize, slopes: bool) -> usize {
    let most = if is_deep(inputs, slopes) {
        MATRIX_POINTWISE_DEEP_GROUPS
    } else {
        MATRIX_POINTWISE_GROUPS
    };
    outputs.div_ceil(GROUP).min(most)
}

/// Bytes of shared memory of such a launch: the weights and biases of its outputs, and with `slopes`
/// every thread's sums.
fn pointwise_shared(inputs: usize, outputs: usize, slopes: bool) -> usize {
    let groups = launch_groups(inputs, outputs, slopes);
    let sums = if slopes {
        4 * BLOCK_THREADS * LANE_OUTPUTS
    } else {
        0
    };
    groups * (inputs.div_ceil(GROUP) * MATRIX_POINTWISE_SHARE + 4 * GROUP + sums)
}

/// How one direction of a 3x3 convolution is divided among blocks.
#[derive(Clone, Copy)]
struct Division {
    /// Outputs of a block, and blocks for all outputs.
    slab_outputs: usize,
    slabs: usize,
    /// Rows of a tile of pixels.
    high: usize,
    /// Bytes of shared memory: a tile and the weights of a chunk.
    shared: usize,
    /// 16-byte pieces of the packed weights.
    pieces: usize,
}

impl Division {
    /// 64 outputs a block where this computes no more zeros than 32 do, which read the inputs more
    /// often.
    fn of((inputs, outputs): (usize, usize)) -> Division {
        let (slab_outputs, high, tile) =
            if outputs.next_multiple_of(64) == outputs.next_multiple_of(32) {
                (64, TILE, MATRIX_CONV_TILE)
            } else {
                (32, 2 * TILE, MATRIX_CONV_NARROW_TILE)
            };
        let slabs = outputs.div_ceil(slab_outputs);
        let chunk = TAPS * slab_outputs / 16 * 32;
        Division {
            slab_outputs,
            slabs,
            high,
            shared: tile + 16 * chunk,
            pieces: inputs.div_ceil(CHUNK) * slabs * chunk,
        }
    }
}

/// How the weight gradients of a 1x1 convolution are divided among blocks.
struct OuterDivision {
    /// Parts of a block: of inputs and of outputs.
    inputs: usize,
    outputs: usize,
    /// Blocks for the inputs and for the outputs.
    input_blocks: usize,
    output_blocks: usize,
    /// Pixels that are in shared memory at a time.
    tile: usize,
    /// Bytes of shared memory: a tile, later the sums of half of the warps.
    shared: usize,
}

impl OuterDivision {
    fn of(c: &ConvShape) -> OuterDivision {
        let parts = (c.cin.div_ceil(OUTER_PART.0), c.cout.div_ceil(OUTER_PART.1));
        let outputs = parts.1.min(WARPS / 2);
        let inputs = parts.0.min(WARPS / outputs);
        // a pixel has one 16-byte piece more than its inputs, and than its gradients
        let pixel = 2 * (inputs * OUTER_PART.0 + outputs * OUTER_PART.1) + 2 * 16;
        let tile = if 128 * pixel <= MOST_SHARED as usize {
            128
        } else {
            64
        };
        let sharing = WARPS / (inputs * outputs) / 2 * inputs * outputs;
        OuterDivision {
            inputs,
            outputs,
            input_blocks: parts.0.div_ceil(inputs),
            output_blocks: parts.1.div_ceil(outputs),
            tile,
            shared: (tile * pixel).max(sharing * 4 * 32 * MATRIX_POINTWISE_SUMS),
        }
    }

    fn blocks(&self) -> usize {
        self.input_blocks * self.output_blocks
    }
}

impl ConvShape {
    /// Tiles of the pixels of a 3x3 convolution.
    fn matrix_tiles(&self, high: usize) -> usize {
        let e = self.extent;
        e.n * e.h.div_ceil(high) * e.w.div_ceil(TILE)
    }

    fn pointwise_tiles(&self) -> usize {
        self.extent.pixels().div_ceil(MATRIX_POINTWISE_PIXELS)
    }

    /// Blocks, of `most` in all, that each have a partial sum of the gradient of the slopes.
    pub(super) fn matrix_slope_blocks(&self, most: usize) -> usize {
        if self.kernel == 1 {
            return self.pointwise_tiles().min(most);
        }
        let d = Division::of((self.cout, self.cin));
        let most = (most / d.slabs).max(1);
        self.matrix_tiles(d.high).min(most)
    }

    fn weight_parts(&self) -> usize {
        self.cin.div_ceil(WEIGHT_PART) * self.cout.div_ceil(WEIGHT_PART)
    }

    /// Blocks, of `most` in all, that share the pixels for the weight gradients.
    pub(super) fn matrix_splits(&self, most: usize) -> usize {
        if self.kernel == 1 {
            let d = OuterDivision::of(self);
            let tiles = self.extent.pixels().div_ceil(d.tile);
            return (most / d.blocks()).clamp(1, tiles);
        }
        (most / self.weight_parts()).clamp(1, self.matrix_tiles(TILE))
    }

    /// 16-byte pieces of the packed weights from `channels.0` inputs to `channels.1` outputs.
    fn packed_pieces(&self, channels: (usize, usize)) -> usize {
        if self.kernel == 1 {
            let shares = channels.0.div_ceil(GROUP) * channels.1.div_ceil(GROUP);
            return shares * MATRIX_POINTWISE_SHARE / 16;
        }
        Division::of(channels).pieces
    }

    /// Bytes of the packed weights of a direction, 0 where tensor cores do not compute it.
    pub(super) fn packed_bytes(&self, transposed: bool) -> usize {
        if !self.matrix {
            return 0;
        }
        (16 * self.packed_pieces(self.direction(transposed))).next_multiple_of(ALIGNMENT)
    }

    /// Inputs and outputs of the convolution or, `transposed`, of the gradient of its input.
    fn direction(&self, transposed: bool) -> (usize, usize) {
        if transposed {
            (self.cout, self.cin)
        } else {
            (self.cin, self.cout)
        }
    }
}

/// Launches the packing of the weights.
fn pack(l: &mut Lowering<'_>, c: &ConvShape, w: ConvWeights, transposed: bool) -> Result<()> {
    let channels = c.direction(transposed);
    let d = Division::of(channels);
    let arguments = MatrixConvPackArguments {
        weight: w.weight,
        gain: w.gain,
        packed: w.packed,
        inputs: int(channels.0)?,
        outputs: int(channels.1)?,
        transposed: transposed.into(),
        slabs: int(d.slabs)?,
        slab_outputs: int(d.slab_outputs)?,
        reserved: 0,
    };
    let kernel = if c.kernel == 1 {
        &MATRIX_POINTWISE_PACK
    } else {
        &MATRIX_CONV_PACK
    };
    let shape = Shape::of(c.packed_pieces(channels).div_ceil(256), 0);
    l.launch(kernel, shape, arguments)
}

/// What one direction of a convolution reads and writes.
pub(super) struct Pass {
    pub input: View,
    /// Applied to the input.
    pub function: ChannelFunction,
    pub output: Place,
    /// Channels of the output's buffer, those that fill it included.
    pub filled: usize,
    /// The gradient of the input: multiplied with the derivative of `back` at `z`.
    pub transposed: bool,
    pub z: View,
    pub back: ChannelFunction,
    /// Null for none.
    pub slope_partials: Address<Partial>,
    /// Ahead of the convolution, where [`takes_norm`] says so; else [`super::NO_NORM`].
    pub norm: PixelNorm,
}

/// Lowers a convolution or the gradient of its input.
pub(super) fn multiply(l: &mut Lowering<'_>, c: &ConvShape, w: ConvWeights, p: Pass) -> Result<()> {
    pack(l, c, w, p.transposed)?;
    let channels = c.direction(p.transposed);
    let d = Division::of(channels);
    let arguments = MatrixConvArguments {
        input: p.input,
        output: p.output,
        z: p.z,
        function: p.function,
        back: p.back,
        norm: p.norm,
        packed: w.packed,
        bias: if p.transposed { Address::NULL } else { w.bias },
        gain: w.gain,
        slope_partials: p.slope_partials,
        images: int(c.extent.n)?,
        h: int(c.extent.h)?,
        w: int(c.extent.w)?,
        inputs: int(channels.0)?,
        outputs: int(channels.1)?,
        filled: int(p.filled)?,
        slabs: int(d.slabs)?,
        first: 0,
    };
    if c.kernel == 1 {
        return multiply_pointwise(l, c, channels, arguments);
    }
    let blocks = if p.slope_partials.place().is_some() {
        c.matrix_slope_blocks(l.choices.sum_blocks)
    } else {
        c.matrix_tiles(d.high)
    };
    let kernel = if d.slab_outputs == 64 {
        &MATRIX_CONV
    } else {
        &MATRIX_CONV_NARROW
    };
    l.launch(kernel, Shape::of(blocks * d.slabs, d.shared), arguments)
}

/// Launches a 1x1 convolution, once for as many outputs as a launch takes.
fn multiply_pointwise(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    (inputs, outputs): (usize, usize),
    arguments: MatrixConvArguments,
) -> Result<()> {
    // the kernels number pixels up to the end of the last tile
    int(c.pointwise_tiles() * MATRIX_POINTWISE_PIXELS)?;
    let slopes = arguments.slope_partials.place().is_some();
    let normed = arguments.norm.scale.place().is_some();
    let (kernel, factors) = match (is_deep(inputs, slopes), normed) {
        (true, _) => (&MATRIX_POINTWISE_DEEP, 0),
        (false, true) => (&MATRIX_POINTWISE_NORM, NORM_FACTORS),
        (false, false) => (&MATRIX_POINTWISE, 0),
    };
    let shared = pointwise_shared(inputs, outputs, slopes) + factors;
    let groups = launch_groups(inputs, outputs, slopes);
    for first in (0..outputs.div_ceil(GROUP)).step_by(groups) {
        let arguments = MatrixConvArguments {
            first: int(first)?,
            ..arguments
        };
        if slopes {
            let shape = Shape::of(c.matrix_slope_blocks(l.choices.sum_blocks), shared);
            l.launch(kernel, shape, arguments)?;
        } else {
            l.launch_persistent(kernel, c.pointwise_tiles(), shared, arguments)?;
        }
    }
    Ok(())
}

/// Lowers the partial sums of the gradients of weights and biases.
pub(super) fn weight_sums(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    (input, function): (View, ChannelFunction),
    d_output: View,
    space: &mut SumSpace,
) -> Result<Sums> {
    let sums = space.sums(l, c.sum_count(), c.matrix_splits(l.choices.sum_blocks));
    if c.kernel == 1 {
        pointwise_weight_sums(l, c, (input, function), d_output, &sums)?;
        return Ok(sums);
    }
    let arguments = MatrixConvWeightsArguments {
        input,
        d_output,
        function,
        partials: sums.partials,
        images: int(c.extent.n)?,
        h: int(c.extent.h)?,
        w: int(c.extent.w)?,
        inputs: int(c.cin)?,
        outputs: int(c.cout)?,
        input_tiles: int(c.cin.div_ceil(WEIGHT_PART))?,
        splits: int(sums.blocks)?,
        reserved: 0,
    };
    let shape = Shape::of(sums.blocks * c.weight_parts(), MATRIX_CONV_WEIGHT_TILES);
    l.launch(&MATRIX_CONV_WEIGHTS, shape, arguments)?;
    Ok(sums)
}

fn pointwise_weight_sums(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    (input, function): (View, ChannelFunction),
    d_output: View,
    sums: &Sums,
) -> Result<()> {
    let d = OuterDivision::of(c);
    // a block's number of a pixel goes one round past the last one
    int(c.extent.pixels() + sums.blocks * d.tile)?;
    let arguments = MatrixPointwiseWeightsArguments {
        input,
        d_output,
        function,
        partials: sums.partials,
        pixels: int(c.extent.pixels())?,
        inputs: int(c.cin)?,
        outputs: int(c.cout)?,
        part_inputs: int(d.inputs)?,
        part_outputs: int(d.outputs)?,
        input_parts: int(d.input_blocks)?,
        tile: int(d.tile)?,
        splits: int(sums.blocks)?,
    };
    let shape = Shape::of(sums.blocks * d.blocks(), d.shared);
    l.launch(&MATRIX_POINTWISE_WEIGHTS, shape, arguments)
}
