//! The block of Stream, and its gradients, as a composition of plain kernels over a workspace: the
//! values that the CPU keeps in rows exist here for all pixels at once. Where [`stream_matrix`] serves a
//! block, its forward pass and its data gradients are kernels of their own.

use super::super::arguments::{Act, Address};
use super::super::launch::Shape;
use super::super::lowering::{Lowering, int};
use super::super::operation::CudaOperation;
use super::super::reduce::{self, Finish};
use super::conv::{ConvShape, ConvWeights, InputGradient, forward, input_gradient, weight_sums};
use super::matrix_conv;
use super::signatures::{
    PLAIN_GATE, PLAIN_GATE_BACK, PLAIN_SUM, PLAIN_SUM_BACK, PlainGateArguments,
    PlainGateBackArguments, PlainSumArguments, PlainSumBackArguments, View,
};
use super::stream_matrix::{self, Kept};
use super::{
    ALIGNMENT, NO_FUNCTION, NO_VIEW, SumSpace, channel_sum_bytes, piece_blocks, place, sum_bytes,
    view,
};
use crate::plan::{BufferId, CHANNEL_GROUP, ParamRange, Precision, StreamBlock, StreamBlockBack};
use anyhow::{Result, ensure};

/// The largest magnitude of the gate's product: that of fp16.
pub(super) const LIMIT: f32 = 65504.0;

/// The convolutions of a block: both depthwise ones of the input, `fuse`, `proj`, `gate`, `out`.
struct BlockShapes {
    near: ConvShape,
    far: ConvShape,
    fuse: ConvShape,
    proj: ConvShape,
    gate: ConvShape,
    out: ConvShape,
}

impl BlockShapes {
    fn new(o: &StreamBlock, precision: Precision) -> BlockShapes {
        let f = o.features;
        let depthwise = |channels, dilation| ConvShape {
            extent: o.extent,
            cin: channels,
            cout: channels,
            kernel: 3,
            dilation,
            groups: channels,
            matrix: false,
        };
        let pointwise = |cin, cout| {
            let plain = ConvShape::pointwise(o.extent, cin, cout);
            let matrix = matrix_conv::serves(&plain, None, precision);
            ConvShape { matrix, ..plain }
        };
        BlockShapes {
            near: depthwise(f, 1),
            far: depthwise(f, 3),
            fuse: pointwise(2 * f, f),
            proj: pointwise(f, 4 * f),
            gate: depthwise(4 * f, 1),
            out: pointwise(2 * f, f),
        }
    }

    fn all(&self) -> [&ConvShape; 6] {
        [
            &self.near, &self.far, &self.fuse, &self.proj, &self.gate, &self.out,
        ]
    }

    /// Bytes of the packed weights of one convolution at a time, in one direction or in both.
    fn packed_bytes(&self, back: bool) -> usize {
        let most = |transposed| {
            self.all()
                .map(|c| c.packed_bytes(transposed))
                .into_iter()
                .max()
        };
        let bytes = if back { most(true) } else { None };
        bytes.max(most(false)).unwrap_or(0)
    }
}

/// Bytes of the packed weights of a pass.
fn packed_bytes(o: &StreamBlock, precision: Precision, back: bool) -> usize {
    if stream_matrix::serves(o, precision) {
        return stream_matrix::packed_bytes(back);
    }
    BlockShapes::new(o, precision).packed_bytes(back)
}

/// The values of a block in its workspace. Letters as in the operation's formula: `both` the two
/// depthwise results side by side, `t` after fuse, `p` after proj, `g` after gate, `m` their
/// product, `o` after out.
struct BlockValues {
    both: View,
    t: View,
    p: View,
    g: View,
    m: View,
    o: View,
    /// Room for packed weights.
    packed: Address<Act>,
}

/// Bytes of a value of `channels` channels.
fn value_bytes(o: &StreamBlock, channels: usize, precision: Precision) -> usize {
    (o.extent.pixels() * channels * precision.bytes() as usize).next_multiple_of(ALIGNMENT)
}

/// Channels of the values in the workspace, in the order of [`BlockValues`]: those of the forward pass
/// alone take the place of values that are not read again, or exist in the kernel alone, as `o` does in
/// the backward pass.
fn channels(o: &StreamBlock, precision: Precision, kept: bool) -> &'static [usize] {
    match (kept, stream_matrix::serves(o, precision)) {
        (false, true) => &[],
        (false, false) => &[2, 1, 4, 4],
        (true, true) => &[2, 1, 4, 4, 2],
        (true, false) => &[2, 1, 4, 4, 2, 1],
    }
}

/// Bytes of all values.
fn values_bytes(o: &StreamBlock, precision: Precision, kept: bool) -> usize {
    let bytes = channels(o, precision, kept)
        .iter()
        .map(|&c| value_bytes(o, c * o.features, precision));
    bytes.sum()
}

impl BlockValues {
    fn new(l: &Lowering<'_>, o: &StreamBlock, workspace: BufferId, kept: bool) -> Result<Self> {
        let (precision, mut at) = (l.plan.precision, 0);
        let mut views = Vec::new();
        for &c in channels(o, precision, kept) {
            views.push(view(l.activations_at(workspace, at), c * o.features)?);
            at += value_bytes(o, c * o.features, precision);
        }
        let number = |i: usize| views.get(i).copied();
        let (both, t) = (number(0).unwrap_or(NO_VIEW), number(1).unwrap_or(NO_VIEW));
        Ok(BlockValues {
            both,
            t,
            p: number(2).unwrap_or(NO_VIEW),
            g: number(3).unwrap_or(NO_VIEW),
            m: number(4).unwrap_or(both),
            o: number(5).unwrap_or(t),
            packed: l.activations_at(workspace, at),
        })
    }
}

fn weights(
    l: &Lowering<'_>,
    o: &StreamBlock,
    v: &BlockValues,
    [weight, bias]: [ParamRange; 2],
) -> ConvWeights {
    ConvWeights {
        weight: l.parameter(o.parameters, weight.offset),
        bias: l.parameter(o.parameters, bias.offset),
        gain: Address::NULL,
        packed: v.packed,
    }
}

/// The channels of `v` from number `first` on.
fn channels_from(v: View, first: usize) -> Result<View> {
    Ok(View {
        first: int(first)?,
        ..v
    })
}

/// Lowers everything but the residual.
fn recompute(l: &mut Lowering<'_>, o: &StreamBlock, v: &BlockValues) -> Result<()> {
    let (f, s) = (o.features, BlockShapes::new(o, l.plan.precision));
    let x = view(l.activations(o.input), f)?;
    let steps = [
        (&s.near, o.params.dw1, x, v.both),
        (&s.far, o.params.dw3, x, channels_from(v.both, f)?),
        (&s.fuse, o.params.fuse, v.both, v.t),
        (&s.proj, o.params.proj, v.t, v.p),
        (&s.gate, o.params.gate, v.p, v.g),
    ];
    for (c, ranges, from, to) in steps {
        let w = weights(l, o, v, ranges);
        forward(l, c, w, (from, NO_FUNCTION), place(to, false), c.cout)?;
    }
    let arguments = PlainGateArguments {
        a: v.g.values,
        b: Address::NULL,
        output: v.m.values,
        pixels: int(o.extent.pixels())?,
        stride: int(2 * f)?,
        limit: LIMIT,
        reserved: 0,
    };
    let blocks = piece_blocks(o.extent, 2 * f, l.plan.precision, false);
    l.launch(&PLAIN_GATE, Shape::of(blocks, 0), arguments)?;
    let w = weights(l, o, v, o.params.out);
    forward(l, &s.out, w, (v.m, NO_FUNCTION), place(v.o, false), f)
}

/// Lowers `a + gamma * b`, with 1 for a gamma that is null.
fn sum(
    l: &mut Lowering<'_>,
    o: &StreamBlock,
    (a, b): (Address<Act>, Address<Act>),
    gamma: Option<ParamRange>,
    output: Address<Act>,
) -> Result<()> {
    let arguments = PlainSumArguments {
        a,
        b,
        gamma: gamma.map_or(Address::NULL, |g| l.parameter(o.parameters, g.offset)),
        output,
        pixels: int(o.extent.pixels())?,
        stride: int(o.features)?,
        channels: int(o.features)?,
        reserved: 0,
    };
    let blocks = piece_blocks(o.extent, o.features, l.plan.precision, false);
    l.launch(&PLAIN_SUM, Shape::of(blocks, 0), arguments)
}

impl CudaOperation for StreamBlock {
    fn check(&self) -> Result<()> {
        ensure!(
            self.features.is_multiple_of(CHANNEL_GROUP) && self.features <= 256,
            "a Stream block of {} features; the CUDA kernels take multiples of {CHANNEL_GROUP} up to 256",
            self.features
        );
        Ok(())
    }

    fn workspace(&self, precision: Precision) -> u64 {
        let bytes = values_bytes(self, precision, false) + packed_bytes(self, precision, false);
        bytes as u64
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let workspace = l.workspace(self.workspace)?;
        let v = BlockValues::new(l, self, workspace, false)?;
        if stream_matrix::serves(self, l.plan.precision) {
            return stream_matrix::forward(l, self, v.packed);
        }
        recompute(l, self, &v)?;
        let (x, output) = (l.activations(self.input), l.activations(self.output));
        sum(l, self, (x, v.o.values), Some(self.params.gamma), output)
    }
}

/// Where the sums of the backward pass begin in its workspace, bytes.
fn sums_at(o: &StreamBlock, precision: Precision) -> usize {
    values_bytes(o, precision, true) + packed_bytes(o, precision, true)
}

/// Blocks that sum the gradient of gamma.
fn gamma_blocks(o: &StreamBlock, precision: Precision) -> usize {
    piece_blocks(o.extent, o.features, precision, true)
}

/// Lowers the sums over pixels for the gradients of a convolution's weights and biases.
fn sum_weights(
    l: &mut Lowering<'_>,
    c: &ConvShape,
    (input, d_output): (View, View),
    to: Finish,
    space: &mut SumSpace,
) -> Result<()> {
    let start = space.at;
    let sums = weight_sums(l, c, (input, NO_FUNCTION), d_output, space)?;
    space.finish(l, &[(sums, to)])?;
    space.reuse(start);
    Ok(())
}

/// Lowers the gradients of one convolution, with its input's gradient at `d_input`, which may be
/// where its input is.
fn conv_back(
    l: &mut Lowering<'_>,
    op: &StreamBlockBack,
    (c, ranges): (&ConvShape, [ParamRange; 2]),
    (input, d_output): (View, View),
    (d_input, add): (View, bool),
    (v, space): (&BlockValues, &mut SumSpace),
) -> Result<()> {
    let first = reduce::contiguous(&ranges)?;
    let to = Finish::Gradients(l.gradient(op.gradients, first));
    sum_weights(l, c, (input, d_output), to, space)?;
    let gradient = InputGradient {
        z: NO_VIEW,
        function: NO_FUNCTION,
        slope_partials: Address::NULL,
    };
    let w = weights(l, &op.forward, v, ranges);
    input_gradient(l, c, w, d_output, gradient, place(d_input, add), c.cin)
}

/// Lowers the gradients of gamma and of the result that it multiplies.
fn gamma_back(
    l: &mut Lowering<'_>,
    op: &StreamBlockBack,
    v: &BlockValues,
    space: &mut SumSpace,
) -> Result<()> {
    let (f, precision) = (&op.forward, l.plan.precision);
    let (start, gamma) = (space.at, f.params.gamma.offset);
    let sums = space.sums(l, f.features, gamma_blocks(f, precision));
    let arguments = PlainSumBackArguments {
        b: v.o.values,
        d_output: l.activations(op.d_output),
        gamma: l.parameter(f.parameters, gamma),
        d_a: Address::NULL,
        d_b: v.o.values,
        partials: sums.partials,
        pixels: int(f.extent.pixels())?,
        stride: int(f.features)?,
        channels: int(f.features)?,
        add_a: 0,
        add_b: 0,
        reserved: 0,
    };
    let shape = Shape::of(sums.blocks, channel_sum_bytes(precision));
    l.launch(&PLAIN_SUM_BACK, shape, arguments)?;
    let to = Finish::Gradients(l.gradient(op.gradients, gamma));
    space.finish(l, &[(sums, to)])?;
    space.reuse(start);
    Ok(())
}

/// Lowers the gradients of the gate's two halves, in the place of these.
fn gate_back(l: &mut Lowering<'_>, o: &StreamBlock, v: &BlockValues) -> Result<()> {
    let arguments = PlainGateBackArguments {
        a: v.g.values,
        b: Address::NULL,
        d_output: v.m.values,
        d_a: v.g.values,
        d_b: Address::NULL,
        pixels: int(o.extent.pixels())?,
        stride: int(2 * o.features)?,
        limit: LIMIT,
        add_a: 0,
        add_b: 0,
        reserved: 0,
    };
    let blocks = piece_blocks(o.extent, 2 * o.features, l.plan.precision, false);
    l.launch(&PLAIN_GATE_BACK, Shape::of(blocks, 0), arguments)
}

/// Where out's sums over pixels are as f32 in the workspace of a block that [`stream_matrix`] serves, bytes;
/// the partial sums of other convolutions follow.
fn out_sums_bytes(o: &StreamBlock, precision: Precision) -> usize {
    if !stream_matrix::serves(o, precision) {
        return 0;
    }
    (4 * BlockShapes::new(o, precision).out.sum_count()).next_multiple_of(ALIGNMENT)
}

/// Lowers a backward pass whose data gradients are kernels of their own.
fn back_at_once(
    l: &mut Lowering<'_>,
    op: &StreamBlockBack,
    v: &BlockValues,
    space: &mut SumSpace,
) -> Result<()> {
    let (f, s) = (&op.forward, BlockShapes::new(&op.forward, l.plan.precision));
    let kept = Kept {
        both: v.both.values,
        t: v.t.values,
        p: v.p.values,
        m: v.m.values,
        d_gate: v.g.values,
        packed: v.packed,
    };
    stream_matrix::recompute(l, op, &kept)?;
    let (x, d_output) = (
        view(l.activations(f.input), f.features)?,
        view(l.activations(op.d_output), f.features)?,
    );
    let values = l.gradient(space.workspace, space.at / 4);
    let sums_at = space.at;
    space.reuse(sums_at + out_sums_bytes(f, l.plan.precision));
    sum_weights(l, &s.out, (v.m, d_output), Finish::Values(values), space)?;
    if space.slice.last {
        stream_matrix::out_gradients(l, op, values)?;
    }
    let mut sums = |l: &mut Lowering<'_>, c, ranges: [ParamRange; 2], views| {
        let to = Finish::Gradients(l.gradient(op.gradients, reduce::contiguous(&ranges)?));
        sum_weights(l, c, views, to, space)
    };
    sums(l, &s.gate, f.params.gate, (v.p, v.g))?;
    stream_matrix::proj_back(l, op, &kept)?;
    let d_t = view(kept.m, f.features)?;
    sums(l, &s.proj, f.params.proj, (v.t, v.p))?;
    sums(l, &s.fuse, f.params.fuse, (v.both, d_t))?;
    stream_matrix::input_back(l, op, &kept)?;
    sums(l, &s.near, f.params.dw1, (x, v.both))?;
    let far = channels_from(v.both, f.features)?;
    sums(l, &s.far, f.params.dw3, (x, far))
}

impl CudaOperation for StreamBlockBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self, precision: Precision) -> u64 {
        let f = &self.forward;
        let gamma = sum_bytes(f.features, gamma_blocks(f, precision));
        let shapes = BlockShapes::new(f, precision);
        let sums = shapes.all().map(ConvShape::sum_bytes).into_iter().max();
        let sums = sums.unwrap_or(0).max(gamma) + out_sums_bytes(f, precision);
        (sums_at(f, precision) + sums) as u64
    }

    fn carry(&self) -> u64 {
        let shapes = BlockShapes::new(&self.forward, Precision::F32);
        let sums: usize = shapes.all().iter().map(|c| c.sum_count()).sum();
        8 * (sums + self.forward.features) as u64
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let (f, precision) = (&self.forward, l.plan.precision);
        let workspace = l.workspace(self.workspace)?;
        let v = BlockValues::new(l, f, workspace, true)?;
        let mut space = SumSpace::new(workspace, sums_at(f, precision), self.slice);
        if stream_matrix::serves(f, precision) {
            return back_at_once(l, self, &v, &mut space);
        }
        recompute(l, f, &v)?;
        // each gradient takes the place of its value, which nothing reads any more
        gamma_back(l, self, &v, &mut space)?;
        let (s, p) = (BlockShapes::new(f, precision), &f.params);
        let mut back = |l: &mut Lowering<'_>, c, ranges, value, d| {
            let to = (value, false);
            conv_back(l, self, (c, ranges), (value, d), to, (&v, &mut space))
        };
        back(l, &s.out, p.out, v.m, v.o)?;
        gate_back(l, f, &v)?;
        back(l, &s.gate, p.gate, v.p, v.g)?;
        back(l, &s.proj, p.proj, v.t, v.p)?;
        back(l, &s.fuse, p.fuse, v.both, v.t)?;
        let x = view(l.activations(f.input), f.features)?;
        let d_x = view(l.activations(self.d_input), f.features)?;
        let near = (x, v.both);
        let of = (&s.near, p.dw1);
        conv_back(l, self, of, near, (d_x, false), (&v, &mut space))?;
        let (of, far) = ((&s.far, p.dw3), (x, channels_from(v.both, f.features)?));
        conv_back(l, self, of, far, (d_x, true), (&v, &mut space))?;
        let d_output = l.activations(self.d_output);
        sum(l, f, (d_x.values, d_output), None, d_x.values)
    }
}
