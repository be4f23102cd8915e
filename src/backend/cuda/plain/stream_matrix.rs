//! The block of Stream of 32 features in half precision on tensor cores (kernels/stream_block.cu): the
//! forward pass as one launch, the data gradients of the backward pass as three. Depends on the
//! lowering's state; `super::stream` lowers the sums over pixels between them.

use super::super::arguments::{Act, Address, Gradient};
use super::super::constants::{
    STREAM_DEPTHWISE_WEIGHTS, STREAM_FEATURES, STREAM_PLANES, STREAM_REACHED_PLANES,
    STREAM_TURNED_FUSE, STREAM_TURNED_WEIGHTS, STREAM_WEIGHTS, TILE,
};
use super::super::launch::Shape;
use super::super::lowering::{Lowering, int};
use super::super::tiles::tiles;
use super::stream::LIMIT;
use super::stream_signatures::{
    STREAM_BLOCK, STREAM_BLOCK_BACK, STREAM_BLOCK_GRADIENTS, STREAM_BLOCK_INPUT_BACK,
    STREAM_BLOCK_PACK, STREAM_BLOCK_PROJ_BACK, StreamBlockArguments, StreamBlockGradientsArguments,
    StreamBlockInputBackArguments, StreamBlockPackArguments, StreamBlockProjBackArguments,
    StreamDepthwise,
};
use crate::plan::{ParamRange, Precision, StreamBlock, StreamBlockBack};
use anyhow::Result;

/// Bytes of shared memory of a block of stream_block and stream_block_back, of stream_block_proj_back and
/// of stream_block_input_back.
const SHARED: usize = STREAM_PLANES + STREAM_WEIGHTS;
const PROJ_SHARED: usize =
    STREAM_PLANES + STREAM_DEPTHWISE_WEIGHTS + STREAM_TURNED_WEIGHTS - STREAM_TURNED_FUSE;
const INPUT_SHARED: usize = STREAM_REACHED_PLANES + STREAM_DEPTHWISE_WEIGHTS + STREAM_TURNED_FUSE;

/// Whether these kernels compute a block.
pub(super) fn serves(o: &StreamBlock, precision: Precision) -> bool {
    precision != Precision::F32 && o.features == STREAM_FEATURES
}

/// What the backward pass keeps of a block, for all pixels, as `super::stream` names it; with the gradient
/// of gate's results, and room for packed weights.
pub(super) struct Kept {
    /// 64 channels.
    pub both: Address<Act>,
    /// 32 channels.
    pub t: Address<Act>,
    /// 128 channels.
    pub p: Address<Act>,
    /// 64 channels.
    pub m: Address<Act>,
    /// 128 channels.
    pub d_gate: Address<Act>,
    /// [`packed_bytes`].
    pub packed: Address<Act>,
}

/// Bytes of the packed weights of a pass.
pub(super) const fn packed_bytes(back: bool) -> usize {
    STREAM_WEIGHTS + if back { STREAM_TURNED_WEIGHTS } else { 0 }
}

/// Launches the packing of a block's parameters.
fn pack(l: &mut Lowering<'_>, o: &StreamBlock, packed: Address<Act>, back: bool) -> Result<()> {
    let (p, at) = (&o.params, |r: ParamRange| {
        l.parameter(o.parameters, r.offset)
    });
    let depthwise = |[weight, bias]: [ParamRange; 2]| StreamDepthwise {
        weight: at(weight),
        bias: at(bias),
    };
    let arguments = StreamBlockPackArguments {
        near: depthwise(p.dw1),
        far: depthwise(p.dw3),
        gate: depthwise(p.gate),
        fuse: at(p.fuse[0]),
        fuse_bias: at(p.fuse[1]),
        proj: at(p.proj[0]),
        proj_bias: at(p.proj[1]),
        out: at(p.out[0]),
        out_bias: at(p.out[1]),
        gamma: at(p.gamma),
        packed,
        back: back.into(),
        reserved: 0,
    };
    let words = packed_bytes(back) / 4;
    l.launch(
        &STREAM_BLOCK_PACK,
        Shape::of(words.div_ceil(256), 0),
        arguments,
    )
}

/// The arguments that both passes have.
fn arguments(
    l: &Lowering<'_>,
    o: &StreamBlock,
    packed: Address<Act>,
) -> Result<StreamBlockArguments> {
    let e = o.extent;
    // the kernels number pixels up to the end of the last tile
    int(e.pixels() + TILE * (e.w + 1))?;
    Ok(StreamBlockArguments {
        input: l.activations(o.input),
        d_output: Address::NULL,
        packed,
        output: Address::NULL,
        both: Address::NULL,
        t: Address::NULL,
        p: Address::NULL,
        m: Address::NULL,
        d_gate: Address::NULL,
        images: int(e.n)?,
        h: int(e.h)?,
        w: int(e.w)?,
        limit: LIMIT,
    })
}

/// Lowers a block.
pub(super) fn forward(l: &mut Lowering<'_>, o: &StreamBlock, packed: Address<Act>) -> Result<()> {
    pack(l, o, packed, false)?;
    let arguments = StreamBlockArguments {
        output: l.activations(o.output),
        ..arguments(l, o, packed)?
    };
    l.launch_persistent(&STREAM_BLOCK, tiles(o.extent), SHARED, arguments)
}

/// Lowers the values that the backward pass reads, and the gradient of gate's results.
pub(super) fn recompute(l: &mut Lowering<'_>, op: &StreamBlockBack, kept: &Kept) -> Result<()> {
    let o = &op.forward;
    pack(l, o, kept.packed, true)?;
    let arguments = StreamBlockArguments {
        d_output: l.activations(op.d_output),
        both: kept.both,
        t: kept.t,
        p: kept.p,
        m: kept.m,
        d_gate: kept.d_gate,
        ..arguments(l, o, kept.packed)?
    };
    l.launch_persistent(&STREAM_BLOCK_BACK, tiles(o.extent), SHARED, arguments)
}

/// Lowers the gradient of p, in its place, and that of t, in the place of `m`, from that of gate's
/// results.
pub(super) fn proj_back(l: &mut Lowering<'_>, op: &StreamBlockBack, kept: &Kept) -> Result<()> {
    let e = op.forward.extent;
    let arguments = StreamBlockProjBackArguments {
        packed: kept.packed,
        d_gate: kept.d_gate,
        d_p: kept.p,
        d_t: kept.m,
        images: int(e.n)?,
        h: int(e.h)?,
        w: int(e.w)?,
        reserved: 0,
    };
    l.launch_persistent(&STREAM_BLOCK_PROJ_BACK, tiles(e), PROJ_SHARED, arguments)
}

/// Lowers the gradient of both, in its place, and that of the block's input, from that of t in the place
/// of `m`.
pub(super) fn input_back(l: &mut Lowering<'_>, op: &StreamBlockBack, kept: &Kept) -> Result<()> {
    let e = op.forward.extent;
    let arguments = StreamBlockInputBackArguments {
        packed: kept.packed,
        d_t: kept.m,
        d_output: l.activations(op.d_output),
        d_both: kept.both,
        d_input: l.activations(op.d_input),
        images: int(e.n)?,
        h: int(e.h)?,
        w: int(e.w)?,
        reserved: 0,
    };
    l.launch_persistent(&STREAM_BLOCK_INPUT_BACK, tiles(e), INPUT_SHARED, arguments)
}

/// Lowers the gradients of out and gamma. `sums`: over pixels, as if gamma were 1: out's weights, then
/// its biases.
pub(super) fn out_gradients(
    l: &mut Lowering<'_>,
    op: &StreamBlockBack,
    sums: Address<Gradient>,
) -> Result<()> {
    let (o, p) = (&op.forward, &op.forward.params);
    let at = |r: ParamRange| l.parameter(o.parameters, r.offset);
    let arguments = StreamBlockGradientsArguments {
        sums,
        weight: at(p.out[0]),
        bias: at(p.out[1]),
        gamma: at(p.gamma),
        d_out: l.gradient(op.gradients, p.out[0].offset),
        d_gamma: l.gradient(op.gradients, p.gamma.offset),
        scalars: l.scalars()?,
    };
    l.launch(&STREAM_BLOCK_GRADIENTS, Shape::of(1, 0), arguments)
}
