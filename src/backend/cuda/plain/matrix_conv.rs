//! Dense 3x3 convolutions in half precision on tensor cores (kernels/matrix_conv.cu). The weights are
//! packed into the operation's workspace ahead of every launch that multiplies with them. Depends on
//! the plain convolutions, which compute all others.

use super::super::arguments::{Address, Parameter};
use super::super::constants::{
    MATRIX_CONV_NARROW_TILE, MATRIX_CONV_TILE, MATRIX_CONV_WEIGHT_TILES, TAPS, TILE,
};
use super::super::launch::Shape;
use super::super::limits::most_sum_blocks;
use super::super::lowering::{Lowering, int};
use super::super::reduce::Sums;
use super::conv::{ConvShape, ConvWeights, InputGradient};
use super::signatures::{
    ChannelFunction, MATRIX_CONV, MATRIX_CONV_NARROW, MATRIX_CONV_PACK, MATRIX_CONV_WEIGHTS,
    MatrixConvArguments, MatrixConvPackArguments, MatrixConvWeightsArguments, Place, View,
};
use super::{ALIGNMENT, NO_FUNCTION, NO_VIEW, SumSpace};
use crate::plan::{Activation, BufferId, Conv, Precision};
use anyhow::Result;

/// Inputs that are multiplied at a time.
const CHUNK: usize = 16;
/// Inputs, and outputs, of a block of the weight gradients.
const WEIGHT_PART: usize = 32;
/// Fewest inputs, and outputs: with fewer, most of what tensor cores multiply would be zeros.
const FEWEST: (usize, usize) = (16, 8);

/// Whether these kernels compute a convolution and its gradients.
pub(super) fn serves(o: &Conv, precision: Precision) -> bool {
    precision != Precision::F32
        && (o.kernel, o.dilation, o.groups) == (3, 1, 1)
        && o.cin >= FEWEST.0
        && o.cout >= FEWEST.1
        && o.input_stride.is_multiple_of(CHUNK)
        && o.output_stride.is_multiple_of(CHUNK)
        && !matches!(
            o.activation,
            Some(Activation::Gelu | Activation::Normalize { .. })
        )
}

/// How one direction is divided among blocks.
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
    fn of(inputs: usize, outputs: usize) -> Division {
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

    fn packed_bytes(&self) -> usize {
        (16 * self.pieces).next_multiple_of(ALIGNMENT)
    }
}

impl ConvShape {
    fn forward_division(&self) -> Division {
        Division::of(self.cin, self.cout)
    }

    fn backward_division(&self) -> Division {
        Division::of(self.cout, self.cin)
    }

    fn matrix_tiles(&self, high: usize) -> usize {
        let e = self.extent;
        e.n * e.h.div_ceil(high) * e.w.div_ceil(TILE)
    }

    /// Blocks that each have a partial sum of the gradient of the slopes.
    pub(super) fn matrix_slope_blocks(&self) -> usize {
        let d = self.backward_division();
        let most = (most_sum_blocks() / d.slabs).max(1);
        self.matrix_tiles(d.high).min(most)
    }

    fn weight_parts(&self) -> usize {
        self.cin.div_ceil(WEIGHT_PART) * self.cout.div_ceil(WEIGHT_PART)
    }

    /// Blocks that share the pixels for the weight gradients.
    pub(super) fn matrix_splits(&self) -> usize {
        (most_sum_blocks() / self.weight_parts()).clamp(1, self.matrix_tiles(TILE))
    }

    /// Bytes of the packed weights of the forward pass.
    pub(super) fn packed_bytes(&self) -> usize {
        self.forward_division().packed_bytes()
    }

    /// The same of the gradient of the input.
    pub(super) fn packed_gradient_bytes(&self) -> usize {
        self.backward_division().packed_bytes()
    }
}

/// Launches the packing of the weights to byte `at` of a workspace.
fn pack(
    l: &mut Lowering<'_>,
    w: ConvWeights,
    (inputs, outputs): (usize, usize),
    transposed: bool,
    (workspace, at): (BufferId, usize),
) -> Result<Division> {
    let d = Division::of(inputs, outputs);
    let arguments = MatrixConvPackArguments {
        weight: w.weight,
        gain: w.gain,
        packed: l.activations_at(workspace, at),
        inputs: int(inputs)?,
        outputs: int(outputs)?,
        transposed: transposed.into(),
        slabs: int(d.slabs)?,
        slab_outputs: int(d.slab_outputs)?,
        reserved: 0,
    };
    let shape = Shape::of(d.pieces.div_ceil(256), 0);
    l.launch(&MATRIX_CONV_PACK, shape, arguments)?;
    Ok(d)
}

/// What one direction reads and writes.
struct Pass {
    input: View,
    function: ChannelFunction,
    output: Place,
    z: View,
    back: ChannelFunction,
    bias: Address<Parameter>,
    gradient: Option<InputGradient>,
    transposed: bool,
    filled: usize,
}

fn multiply(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    w: ConvWeights,
    p: Pass,
    (workspace, at): (BufferId, usize),
) -> Result<()> {
    let channels = if p.transposed {
        (c.cout, c.cin)
    } else {
        (c.cin, c.cout)
    };
    let d = pack(l, w, channels, p.transposed, (workspace, at))?;
    let slope_partials = p.gradient.map_or(Address::NULL, |g| g.slope_partials);
    let arguments = MatrixConvArguments {
        input: p.input,
        output: p.output,
        z: p.z,
        function: p.function,
        back: p.back,
        packed: l.activations_at(workspace, at),
        bias: p.bias,
        gain: w.gain,
        slope_partials,
        images: int(c.extent.n)?,
        h: int(c.extent.h)?,
        w: int(c.extent.w)?,
        inputs: int(channels.0)?,
        outputs: int(channels.1)?,
        filled: int(p.filled)?,
        slabs: int(d.slabs)?,
        reserved: 0,
    };
    let blocks = if slope_partials.place().is_some() {
        c.matrix_slope_blocks()
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

/// Lowers a convolution whose packed weights go to byte `space.1` of the workspace `space.0`.
/// `output` is filled with zeros up to `filled` channels.
pub(super) fn forward(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    w: ConvWeights,
    (input, function): (View, ChannelFunction),
    (output, filled): (Place, usize),
    space: (BufferId, usize),
) -> Result<()> {
    let pass = Pass {
        input,
        function,
        output,
        z: NO_VIEW,
        back: NO_FUNCTION,
        bias: w.bias,
        gradient: None,
        transposed: false,
        filled,
    };
    multiply(l, c, w, pass, space)
}

/// Lowers the gradient of the input, whose buffer has `filled` channels.
pub(super) fn input_gradient(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    w: ConvWeights,
    d_output: View,
    g: InputGradient,
    (d_input, filled): (Place, usize),
    space: (BufferId, usize),
) -> Result<()> {
    let pass = Pass {
        input: d_output,
        function: NO_FUNCTION,
        output: d_input,
        z: g.z,
        back: g.function,
        bias: Address::NULL,
        gradient: Some(g),
        transposed: true,
        filled,
    };
    multiply(l, c, w, pass, space)
}

/// Lowers the partial sums of the gradients of weights and biases.
pub(super) fn weight_sums(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    (input, function): (View, ChannelFunction),
    d_output: View,
    space: &mut SumSpace,
) -> Result<Sums> {
    let sums = space.sums(l, c.sum_count(), c.matrix_splits());
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
