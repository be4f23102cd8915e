//! Convolutions of any odd kernel, dilation and groups (kernels/plain_conv.cu). Those that
//! [`super::matrix_conv`] serves go there.

use super::super::arguments::{Act, Address, Parameter, Partial};
use super::super::constants::BLOCK_THREADS;
use super::super::launch::Shape;
use super::super::limits::{MOST_SHARED, most_sum_blocks};
use super::super::lowering::{Lowering, int};
use super::super::reduce::{self, Finish, Sums};
use super::matrix_conv::{self, Pass};
use super::signatures::{
    ChannelFunction, PLAIN_CONV, PLAIN_CONV_WEIGHTS, PLAIN_DEPTHWISE, PLAIN_DEPTHWISE_WEIGHTS,
    Place, PlainConvArguments, PlainConvWeightsArguments, PlainDepthwiseArguments,
    PlainDepthwiseWeightsArguments, View,
};
use super::{NO_FUNCTION, NO_NORM, NO_VIEW, SumSpace, buffer_view, function, place, sum_bytes};
use crate::plan::{
    Activation, BufferId, CHANNEL_GROUP, Conv, ConvBack, Extent, ParamRange, Precision,
};
use anyhow::{Result, ensure};

/// Shared memory that a block of the convolution takes if it can, bytes: four blocks fit on a
/// multiprocessor with 100 KiB.
const SHARED_GOAL: usize = 24 << 10;
/// Rows and columns of the pixels that a block of the weight gradients takes at a time.
const WEIGHT_TILE: (usize, usize) = (4, 16);
/// Units of 16 inputs that a block of the weight gradients sums.
const MOST_UNITS: usize = 9;
/// Most channels of a block of the weight gradients of a depthwise convolution, and rows of the strips
/// that its threads walk down.
const MOST_GROUP: usize = 64;
const STRIP_ROWS: usize = 12;
/// Inputs that a block of the weight gradients of a 1x1 convolution takes.
const POINTWISE_INPUTS: usize = 64;

/// The sizes of a convolution.
#[derive(Clone, Copy)]
pub(super) struct ConvShape {
    pub extent: Extent,
    pub cin: usize,
    pub cout: usize,
    pub kernel: usize,
    pub dilation: usize,
    pub groups: usize,
    /// Whether it is computed on tensor cores ([`matrix_conv`]).
    pub matrix: bool,
}

/// Weights and biases. A gain multiplies both, if it is not null.
#[derive(Clone, Copy)]
pub(super) struct ConvWeights {
    pub weight: Address<Parameter>,
    /// Null for none; the gradient of the input does not read it.
    pub bias: Address<Parameter>,
    pub gain: Address<Parameter>,
    /// Room for the packed weights of a direction, [`ConvShape::packed_bytes`]; null where there are none.
    pub packed: Address<Act>,
}

/// The function of the input, and whether its slopes have a gradient.
#[derive(Clone, Copy)]
pub(super) struct InputGradient {
    /// The input before the function; [`NO_VIEW`] without a function.
    pub z: View,
    pub function: ChannelFunction,
    /// `[blocks][cin]`, or null.
    pub slope_partials: Address<Partial>,
}

/// How a block of `plain_conv` is shaped.
#[derive(Clone, Copy)]
struct ConvTiles {
    octets: usize,
    chunk_bits: u32,
    shared: usize,
    /// Blocks for the outputs of a group.
    slabs: usize,
    /// Tiles of pixels.
    tiles: usize,
}

/// The largest of the numbers of outputs that a block can take which computes few outputs in vain.
fn outputs_of_a_block(outputs: usize, unit: usize, most: usize) -> usize {
    let computed = |each: usize| outputs.next_multiple_of(unit * each);
    let mut each = most;
    while each > 1 && 100 * computed(each) > 115 * computed(1) {
        each /= 2;
    }
    each
}

impl ConvShape {
    /// A dense 1x1 convolution without tensor cores.
    pub fn pointwise(extent: Extent, cin: usize, cout: usize) -> ConvShape {
        ConvShape {
            extent,
            cin,
            cout,
            kernel: 1,
            dilation: 1,
            groups: 1,
            matrix: false,
        }
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    fn weights(&self) -> usize {
        self.cout * (self.cin / self.groups) * self.taps()
    }

    /// Sums of the weight gradients: weights and biases.
    pub fn sum_count(&self) -> usize {
        self.weights() + self.cout
    }

    /// Pixels from a pixel to the last one that it depends on.
    fn reach(&self) -> usize {
        self.kernel / 2 * self.dilation
    }

    /// How `plain_conv` computes `outputs` channels of each group from `inputs`, with `fill` more
    /// that are 0.
    fn tiles(&self, inputs: usize, outputs: usize, fill: usize) -> ConvTiles {
        let octets = outputs_of_a_block(outputs + fill, 8, 8);
        let lanes = 256 / octets;
        let wide = if lanes >= 128 { 32 } else { 16 };
        let high = 4 * lanes / wide;
        let pixels = (high + 2 * self.reach()) * (wide + 2 * self.reach());
        let shared = |bits: u32| {
            let tile = ((pixels | 1) << bits).next_multiple_of(4);
            (4 * (tile + ((self.taps() * (8 * octets + 4)) << bits))).max(4 * 256 * 8)
        };
        let mut chunk_bits = 0;
        while chunk_bits < 5 && 1 << chunk_bits < inputs && shared(chunk_bits + 1) <= SHARED_GOAL {
            chunk_bits += 1;
        }
        let e = self.extent;
        ConvTiles {
            octets,
            chunk_bits,
            shared: shared(chunk_bits),
            slabs: (outputs + fill).div_ceil(8 * octets),
            tiles: e.n * e.h.div_ceil(high) * e.w.div_ceil(wide),
        }
    }

    /// The tiles of the gradient of the input.
    fn gradient_tiles(&self, fill: usize) -> ConvTiles {
        self.tiles(self.cout / self.groups, self.cin / self.groups, fill)
    }

    /// Blocks, of `most` in all, that each have a partial sum of the gradient of the slopes, where the
    /// input's buffer has `fill` channels more.
    fn slope_blocks(&self, fill: usize, most: usize) -> usize {
        if self.matrix {
            return self.matrix_slope_blocks(most);
        }
        let t = self.gradient_tiles(fill);
        t.tiles.min((most / (self.groups * t.slabs)).max(1))
    }

    /// Whether the kernels for single channels compute it.
    fn is_depthwise(&self) -> bool {
        let channels = self.cin.next_multiple_of(16);
        self.groups == self.cin
            && self.cin == self.cout
            && self.cin > 3
            && 4 * (self.taps() + 1) * channels <= MOST_SHARED as usize
    }

    /// Blocks, of `most` in all, that share the pixels for the weight gradients.
    fn splits(&self, most: usize) -> usize {
        if self.matrix {
            return self.matrix_splits(most);
        }
        if self.is_depthwise() {
            let d = self.depthwise_sums();
            return (most / d.parts).clamp(1, d.strips);
        }
        let s = self.weight_tiles();
        let parts = self.groups * s.output_tiles * s.input_tiles * s.chunks;
        let e = self.extent;
        let tiles = e.n * e.h.div_ceil(WEIGHT_TILE.0) * e.w.div_ceil(WEIGHT_TILE.1);
        (most / parts).clamp(1, tiles)
    }

    /// How the weight gradients of a depthwise convolution are divided among blocks.
    fn depthwise_sums(&self) -> DepthwiseSums {
        let channels = self.cin.next_multiple_of(2);
        let groups = channels.div_ceil(MOST_GROUP);
        let group = (channels / 2).div_ceil(groups) * 2;
        let columns = BLOCK_THREADS / (group / 2);
        let e = self.extent;
        let lines = e.h.div_ceil(self.dilation);
        DepthwiseSums {
            group,
            parts: groups * self.kernel.div_ceil(3).pow(2),
            strips: e.n * self.dilation * lines.div_ceil(STRIP_ROWS) * e.w.div_ceil(columns),
        }
    }

    fn weight_tiles(&self) -> WeightTiles {
        let (inputs, outputs) = (self.cin / self.groups, self.cout / self.groups);
        let quads = outputs_of_a_block(outputs, 4, 16);
        let tile_inputs = if self.kernel == 1 {
            inputs.next_multiple_of(16).min(POINTWISE_INPUTS)
        } else {
            16
        };
        let (h, w) = WEIGHT_TILE;
        let halo = (h + 2 * self.reach()) * (w + 2 * self.reach());
        WeightTiles {
            quads,
            output_tiles: outputs.div_ceil(4 * quads),
            tile_inputs,
            input_tiles: inputs.div_ceil(tile_inputs),
            chunks: self.taps().div_ceil(MOST_UNITS),
            shared: (4 * (h * w * 4 * quads + halo * tile_inputs)).max(16 * 256),
        }
    }

    /// Bytes of the partial sums of the weight gradients.
    pub fn sum_bytes(&self) -> usize {
        sum_bytes(self.sum_count(), self.splits(most_sum_blocks()))
    }
}

/// How `plain_depthwise_weights` is divided.
struct DepthwiseSums {
    /// Channels of a block.
    group: usize,
    /// Blocks for all channels and taps.
    parts: usize,
    /// Strips of pixels, which blocks share.
    strips: usize,
}

/// How a block of `plain_conv_weights` is shaped.
struct WeightTiles {
    quads: usize,
    output_tiles: usize,
    tile_inputs: usize,
    input_tiles: usize,
    chunks: usize,
    shared: usize,
}

/// Lowers a convolution. `output` is filled with zeros up to `filled` channels.
pub(super) fn forward(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    w: ConvWeights,
    (input, function): (View, ChannelFunction),
    output: Place,
    filled: usize,
) -> Result<()> {
    if c.matrix {
        let pass = Pass {
            input,
            function,
            output,
            filled,
            transposed: false,
            z: NO_VIEW,
            back: NO_FUNCTION,
            slope_partials: Address::NULL,
            norm: NO_NORM,
        };
        return matrix_conv::multiply(l, c, w, pass);
    }
    if c.is_depthwise() {
        return depthwise(
            l,
            c,
            w,
            (input, function),
            (NO_VIEW, NO_FUNCTION),
            output,
            false,
        );
    }
    let t = c.tiles(c.cin / c.groups, c.cout / c.groups, filled - c.cout);
    let arguments = PlainConvArguments {
        input,
        output,
        function,
        bias: w.bias,
        inputs: int(c.cin / c.groups)?,
        outputs: int(c.cout / c.groups)?,
        filled: int(filled)?,
        ..conv_arguments(c, w, &t)?
    };
    let shape = Shape::of(t.tiles * c.groups * t.slabs, t.shared);
    l.launch(&PLAIN_CONV, shape, arguments)
}

/// What both directions have in common.
fn conv_arguments(c: &ConvShape, w: ConvWeights, t: &ConvTiles) -> Result<PlainConvArguments> {
    let e = c.extent;
    Ok(PlainConvArguments {
        input: NO_VIEW,
        output: place(NO_VIEW, false),
        z: NO_VIEW,
        function: NO_FUNCTION,
        back: NO_FUNCTION,
        weight: w.weight,
        bias: Address::NULL,
        gain: w.gain,
        slope_partials: Address::NULL,
        images: int(e.n)?,
        h: int(e.h)?,
        w: int(e.w)?,
        inputs: 0,
        outputs: 0,
        groups: int(c.groups)?,
        kernel: int(c.kernel)?,
        dilation: int(c.dilation)?,
        transposed: 0,
        chunk_bits: t.chunk_bits.cast_signed(),
        octets: int(t.octets)?,
        slabs: int(t.slabs)?,
        filled: 0,
        reserved: 0,
    })
}

/// Lowers the gradient of the input, whose buffer has `filled` channels.
pub(super) fn input_gradient(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    w: ConvWeights,
    d_output: View,
    g: InputGradient,
    d_input: Place,
    filled: usize,
) -> Result<()> {
    if c.matrix {
        let pass = Pass {
            input: d_output,
            function: NO_FUNCTION,
            output: d_input,
            filled,
            transposed: true,
            z: g.z,
            back: g.function,
            slope_partials: g.slope_partials,
            norm: NO_NORM,
        };
        return matrix_conv::multiply(l, c, w, pass);
    }
    let slopes = g.slope_partials.place().is_some();
    if c.is_depthwise() && !slopes {
        let w = ConvWeights {
            bias: Address::NULL,
            ..w
        };
        let of = (d_output, NO_FUNCTION);
        return depthwise(l, c, w, of, (g.z, g.function), d_input, true);
    }
    let t = c.gradient_tiles(filled - c.cin);
    let arguments = PlainConvArguments {
        input: d_output,
        output: d_input,
        z: g.z,
        back: g.function,
        slope_partials: g.slope_partials,
        inputs: int(c.cout / c.groups)?,
        outputs: int(c.cin / c.groups)?,
        filled: int(filled)?,
        transposed: 1,
        ..conv_arguments(c, w, &t)?
    };
    let blocks = if slopes {
        c.slope_blocks(filled - c.cin, l.choices.sum_blocks)
    } else {
        t.tiles
    };
    let shape = Shape::of(blocks * c.groups * t.slabs, t.shared);
    l.launch(&PLAIN_CONV, shape, arguments)
}

fn depthwise(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    w: ConvWeights,
    (input, function): (View, ChannelFunction),
    (z, back): (View, ChannelFunction),
    output: Place,
    transposed: bool,
) -> Result<()> {
    let e = c.extent;
    let arguments = PlainDepthwiseArguments {
        input,
        output,
        z,
        function,
        back,
        weight: w.weight,
        bias: w.bias,
        images: int(e.n)?,
        h: int(e.h)?,
        w: int(e.w)?,
        channels: int(c.cin)?,
        kernel: int(c.kernel)?,
        dilation: int(c.dilation)?,
        transposed: transposed.into(),
        reserved: 0,
    };
    let channels = c.cin.next_multiple_of(16);
    let pieces = e.pixels() * channels / super::piece(l.plan.precision);
    let shared = 4 * (c.taps() + 1) * channels;
    l.launch_persistent(&PLAIN_DEPTHWISE, pieces.div_ceil(256), shared, arguments)
}

/// Lowers the partial sums of the gradients of weights and biases.
pub(super) fn weight_sums(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    (input, function): (View, ChannelFunction),
    d_output: View,
    space: &mut SumSpace,
) -> Result<Sums> {
    if c.matrix {
        return matrix_conv::weight_sums(l, c, (input, function), d_output, space);
    }
    let sums = space.sums(l, c.sum_count(), c.splits(l.choices.sum_blocks));
    let e = c.extent;
    let (images, h, w) = (int(e.n)?, int(e.h)?, int(e.w)?);
    if c.is_depthwise() {
        let d = c.depthwise_sums();
        // a block's number of a strip goes one round past the last one
        int(d.strips + sums.blocks)?;
        let arguments = PlainDepthwiseWeightsArguments {
            input,
            d_output,
            function,
            partials: sums.partials,
            images,
            h,
            w,
            channels: int(c.cin)?,
            kernel: int(c.kernel)?,
            dilation: int(c.dilation)?,
            group: int(d.group)?,
            splits: int(sums.blocks)?,
        };
        let shape = Shape::of(sums.blocks * d.parts, 8 * BLOCK_THREADS);
        l.launch(&PLAIN_DEPTHWISE_WEIGHTS, shape, arguments)?;
        return Ok(sums);
    }
    let t = c.weight_tiles();
    let arguments = PlainConvWeightsArguments {
        input,
        d_output,
        function,
        partials: sums.partials,
        images,
        h,
        w,
        inputs: int(c.cin / c.groups)?,
        outputs: int(c.cout / c.groups)?,
        groups: int(c.groups)?,
        kernel: int(c.kernel)?,
        dilation: int(c.dilation)?,
        quads: int(t.quads)?,
        output_tiles: int(t.output_tiles)?,
        tile_inputs: int(t.tile_inputs)?,
        input_tiles: int(t.input_tiles)?,
        chunks: int(t.chunks)?,
        splits: int(sums.blocks)?,
    };
    let parts = c.groups * t.output_tiles * t.input_tiles * t.chunks;
    l.launch(
        &PLAIN_CONV_WEIGHTS,
        Shape::of(sums.blocks * parts, t.shared),
        arguments,
    )?;
    Ok(sums)
}

/// The sizes of an operation.
pub(super) fn shape_of(o: &Conv, precision: Precision) -> ConvShape {
    let plain = ConvShape {
        extent: o.extent,
        cin: o.cin,
        cout: o.cout,
        kernel: o.kernel,
        dilation: o.dilation,
        groups: o.groups,
        matrix: false,
    };
    let whole = |stride: usize| stride.is_multiple_of(CHANNEL_GROUP);
    let matrix = whole(o.input_stride)
        && whole(o.output_stride)
        && matrix_conv::serves(&plain, o.activation, precision);
    ConvShape { matrix, ..plain }
}

/// Weights whose packed form goes to the start of a workspace.
pub(super) fn weights_of(
    l: &Lowering<'_>,
    o: &Conv,
    c: &ConvShape,
    workspace: Option<BufferId>,
) -> Result<ConvWeights> {
    let at = |range: ParamRange| l.parameter(o.parameters, range.offset);
    let packed = if c.matrix {
        l.activations_at(l.workspace(workspace)?, 0)
    } else {
        Address::NULL
    };
    Ok(ConvWeights {
        weight: at(o.weight),
        bias: at(o.bias),
        gain: Address::NULL,
        packed,
    })
}

/// Checks that a block's tile fits into shared memory.
///
/// # Errors
/// When the taps reach too far, or the sizes make no convolution.
pub(in super::super) fn check(o: &Conv) -> Result<()> {
    // the plain kernels compute f32, in which inference runs, so every shape must suit them
    let c = shape_of(o, Precision::F32);
    ensure!(
        c.kernel % 2 == 1
            && c.groups > 0
            && c.cin.is_multiple_of(c.groups)
            && c.cout.is_multiple_of(c.groups),
        "{} to {} channels in {} groups with {} taps a side",
        c.cin,
        c.cout,
        c.groups,
        c.kernel
    );
    let fill = o.output_stride - c.cout;
    let forward = c.tiles(c.cin / c.groups, c.cout / c.groups, fill).shared;
    let backward = c.gradient_tiles(o.input_stride - c.cin).shared;
    let needed = forward.max(backward).max(c.weight_tiles().shared);
    ensure!(
        needed <= MOST_SHARED as usize,
        "taps that reach {} pixels need {needed} bytes of shared memory, and a block has {MOST_SHARED}",
        c.reach()
    );
    Ok(())
}

/// Whether the gradient of trainable slopes is computed.
fn has_slopes(o: &Conv) -> bool {
    matches!(o.activation, Some(Activation::PRelu { .. }))
}

/// Workspace bytes of the forward pass: packed weights.
pub(in super::super) fn forward_workspace(o: &Conv, precision: Precision) -> u64 {
    shape_of(o, precision).packed_bytes(false) as u64
}

/// Bytes of packed weights that the gradients need, ahead of their sums.
fn packed_bytes(o: &ConvBack, c: &ConvShape) -> usize {
    if o.d_input.is_some() {
        c.packed_bytes(true)
    } else {
        0
    }
}

/// Workspace bytes of the gradients.
pub(in super::super) fn workspace(o: &ConvBack, precision: Precision) -> u64 {
    let (f, c) = (&o.forward, shape_of(&o.forward, precision));
    let slopes = if has_slopes(f) {
        sum_bytes(
            f.cin,
            c.slope_blocks(f.input_stride - f.cin, most_sum_blocks()),
        )
    } else {
        0
    };
    (packed_bytes(o, &c) + c.sum_bytes() + slopes) as u64
}

/// Bytes of the totals that slices carry.
pub(in super::super) fn carry(o: &ConvBack) -> u64 {
    let slopes = if has_slopes(&o.forward) {
        o.forward.cin
    } else {
        0
    };
    8 * (shape_of(&o.forward, Precision::F32).sum_count() + slopes) as u64
}

/// Lowers a [`Conv`].
pub(in super::super) fn lower(l: &mut Lowering<'_>, o: &Conv) -> Result<()> {
    let input = buffer_view(l, o.input, o.input_stride)?;
    let function = function(l, o.activation, o.slopes, o.cin)?;
    let output = place(buffer_view(l, o.output, o.output_stride)?, false);
    let c = shape_of(o, l.plan.precision);
    let weights = weights_of(l, o, &c, o.workspace)?;
    forward(l, &c, weights, (input, function), output, o.output_stride)
}

/// Lowers a [`ConvBack`].
pub(in super::super) fn lower_back(l: &mut Lowering<'_>, o: &ConvBack) -> Result<()> {
    let (f, c) = (&o.forward, shape_of(&o.forward, l.plan.precision));
    let workspace = l.workspace(o.workspace)?;
    let mut space = SumSpace::new(workspace, packed_bytes(o, &c), o.slice);
    let input = buffer_view(l, f.input, f.input_stride)?;
    let d_output = buffer_view(l, o.d_output, f.output_stride)?;
    let function = function(l, f.activation, f.slopes, f.cin)?;
    let sums = weight_sums(l, &c, (input, function), d_output, &mut space)?;
    let first = l.gradient(o.gradients, reduce::contiguous(&[f.weight, f.bias])?);
    let to = if o.accumulates {
        Finish::Gradients(first)
    } else {
        Finish::Values(first)
    };
    let mut finished = vec![(sums, to)];
    if let Some(d_input) = o.d_input {
        let mut slope_partials = Address::NULL;
        if let Some(slopes) = f.activation.and_then(|a| a.slopes()) {
            let blocks = c.slope_blocks(f.input_stride - f.cin, l.choices.sum_blocks);
            let sums = space.sums(l, f.cin, blocks);
            slope_partials = sums.partials;
            let to = l.gradient(o.slope_gradients, slopes.offset);
            finished.push((sums, Finish::Gradients(to)));
        }
        let to = place(buffer_view(l, d_input.buffer, f.input_stride)?, d_input.add);
        let gradient = InputGradient {
            z: input,
            function,
            slope_partials,
        };
        let weights = weights_of(l, f, &c, o.workspace)?;
        input_gradient(l, &c, weights, d_output, gradient, to, f.input_stride)?;
    }
    space.finish(l, &finished)
}
