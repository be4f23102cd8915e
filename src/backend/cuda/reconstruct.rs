//! Lowering of the reconstruction, base + gain x conv_out(shuffle(up.0)), and its gradients, for any
//! multiple of 16 features:
//! kernels/reconstruct.cu and kernels/folded_conv.cuh. Depends on the lowering's state, the sums
//! and the pixel losses, which it can compute on its way.

use super::arguments::Address;
use super::constants::{
    BACKWARD_TAPS, BASE_CELLS, BASE_RAW, BASE_ROWS, BASE_TAPS, EDGE_BYTES, EDGE_SUMS, EDGE_WARPS,
    ENTRIES, FEATURES, FLOAT_PLANE, FORWARD_TAPS, GROUP_FRAGMENTS, GROUP_SUMS, HALF_PLANE,
    INTERIOR_SUMS, PART_DATA, PART_SUMS,
};
use super::launch::Shape;
use super::limits;
use super::lowering::{Lowering, int};
use super::pixels;
use super::reduce::{self, BLOCK_SUM_BYTES, Sums};
use super::signatures::{
    BASE_BACK, BaseBackArguments, FOLD_CONV, FoldConvArguments, RECONSTRUCT, RECONSTRUCT_BACK,
    RECONSTRUCT_BACK_X2, RECONSTRUCT_X2, RECONSTRUCT_X2_DEEP, ReconstructArguments,
    ReconstructBackArguments, ReconstructGradients, ReconstructParameters, UNFOLD_GRADIENTS,
    UnfoldGradientsArguments,
};
use super::tiles::{tile_pixels, tiles};
use crate::plan::{BufferId, ParamRange, PixelLoss, Precision, Reconstruct, ReconstructBack};
use anyhow::{Context, Result, ensure};

/// Groups of 16 slots of an LQ pixel's square: four HR pixels each.
fn groups(o: &Reconstruct) -> usize {
    (o.scale * o.scale).div_ceil(4)
}

/// Chunks of [`FEATURES`] features, which the kernels take one after another.
fn chunks(o: &Reconstruct) -> usize {
    o.features / FEATURES
}

/// Units of the folded convolution: a group of slots and a chunk of features each.
fn units(o: &Reconstruct) -> usize {
    groups(o) * chunks(o)
}

/// Bytes of the folded convolution: f32 and, with half precision, the operands of both passes.
pub(super) fn folded_bytes(o: &Reconstruct, precision: Precision) -> u64 {
    let operands = if precision == Precision::F32 {
        0
    } else {
        16 * GROUP_FRAGMENTS
    };
    (units(o) * (4 * GROUP_SUMS + operands)) as u64
}

/// Sums of one block over all pixels, and of one over the pixels of edges.
fn sum_counts(o: &Reconstruct) -> (usize, usize) {
    (units(o) * INTERIOR_SUMS, units(o) * 4 * EDGE_SUMS)
}

/// Sums that are carried from slice to slice.
pub(super) fn sum_count(o: &ReconstructBack) -> usize {
    let (interior, edges) = sum_counts(&o.forward);
    interior + edges
}

/// Blocks, `most` at most, that each have a partial sum of all pixels, and of edges; where there are several
/// units, each has its share of the blocks.
fn sum_blocks(o: &Reconstruct, most: usize) -> (usize, usize) {
    let e = o.extent;
    let strips = e.n * e.h.max(e.w).div_ceil(16);
    let blocks = tiles(e).min((most / units(o)).max(1));
    // one edge a block
    (blocks, strips.min(blocks.div_ceil(4)))
}

/// Workspace of the backward pass: partial sums of all pixels, of edges, and their totals.
pub(super) fn workspace(o: &ReconstructBack) -> u64 {
    let (interior, edges) = sum_counts(&o.forward);
    let (blocks, edge_blocks) = sum_blocks(&o.forward, limits::most_sum_blocks());
    reduce::partial_bytes(interior, blocks) as u64
        + reduce::workspace(edges, edge_blocks)
        + 8 * interior as u64
}

/// Checks that there are kernels for the shape.
///
/// # Errors
/// When there are none.
pub(super) fn check(o: &Reconstruct) -> Result<()> {
    ensure!(
        o.features.is_multiple_of(FEATURES),
        "the CUDA kernels of the reconstruction take multiples of {FEATURES} features, not {}",
        o.features
    );
    ensure!(
        (2..=8).contains(&o.scale),
        "the CUDA kernels of the reconstruction take scales 2 to 8, not {}",
        o.scale
    );
    Ok(())
}

fn folded_buffer(o: &Reconstruct) -> Result<BufferId> {
    let folded = o.folded;
    Ok(folded
        .context("the plan keeps no folded convolution for the CUDA kernels")?
        .buffer)
}

fn parameters(l: &Lowering<'_>, o: &Reconstruct) -> ReconstructParameters {
    let at = |r: ParamRange| l.parameter(o.parameters, r.offset);
    ReconstructParameters {
        up_weight: at(o.up_weight),
        up_bias: at(o.up_bias),
        weight: at(o.weight),
        bias: at(o.bias),
        gain: at(o.gain),
    }
}

/// Bytes of a tile of 16 values a pixel with two pixels around it, as the kernels lay it out in
/// planes of 16-byte pieces.
fn tile_bytes(half: bool) -> usize {
    16 * if half {
        2 * HALF_PLANE
    } else {
        4 * FLOAT_PLANE
    }
}

/// Bytes of shared memory of the forward kernel.
fn forward_bytes(half: bool) -> usize {
    // f32 keeps its weights, those of four slots at a time, where the base's scratch was
    let weights = if half { 16 * FORWARD_TAPS } else { 0 };
    tile_bytes(half) + weights + 4 * (BASE_CELLS + BASE_TAPS + BASE_RAW + BASE_ROWS)
}

/// Blocks, `most` at most, of the forward kernel where it sums the losses.
pub(super) fn loss_blocks(o: &Reconstruct, most: usize) -> usize {
    tiles(o.extent).min(most)
}

/// Lowers the reconstruction; with `loss` it also computes that operation's gradient and sums, all
/// but the last step.
pub(super) fn forward(
    l: &mut Lowering<'_>,
    o: &Reconstruct,
    loss: Option<&PixelLoss>,
) -> Result<()> {
    let folded = folded_buffer(o)?;
    if o.folded.is_some_and(|c| c.first) {
        fold(l, o, folded)?;
    }
    let (target, codes) = match o.target {
        Some(b) => (
            l.pixels_at(b.buffer, b.hr_of(0)),
            l.codes_at(b.buffer, b.augment_of(0)),
        ),
        None => (Address::NULL, Address::NULL),
    };
    let (loss_partials, scalars) = match loss {
        Some(loss) => (l.doubles_at(l.workspace(loss.workspace)?, 0), l.scalars()?),
        None => (Address::NULL, Address::NULL),
    };
    let terms = loss
        .map(pixels::loss_terms)
        .transpose()?
        .unwrap_or_default();
    let arguments = ReconstructArguments {
        folded: l.folded(folded),
        gain: l.parameter(o.parameters, o.gain.offset),
        input: l.floats(o.input),
        features: l.activations(o.features_in),
        output: l.floats(o.output),
        target,
        codes,
        loss_partials,
        scalars,
        images: int(o.extent.n)?,
        h: int(o.extent.h)?,
        w: int(o.extent.w)?,
        scale: int(o.scale)?,
        alpha: o.alpha,
        whole: terms.whole,
        l1: terms.l1,
        charbonnier: terms.charbonnier,
        mse: terms.mse,
        chunks: int(chunks(o))?,
    };
    let shared = forward_bytes(l.half_precision());
    let kernel = match (l.half_precision() && o.scale == 2, chunks(o)) {
        (true, 1) => &RECONSTRUCT_X2,
        (true, _) => &RECONSTRUCT_X2_DEEP,
        (false, _) => &RECONSTRUCT,
    };
    if loss.is_some() {
        let blocks = loss_blocks(o, l.choices.sum_blocks);
        l.launch(kernel, Shape::of(blocks, shared), arguments)?;
    } else {
        l.launch_persistent(kernel, tiles(o.extent), shared, arguments)?;
    }
    // the folded convolution is made by a concurrent launch
    l.join();
    Ok(())
}

/// Folds up.0 and conv_out into one convolution, beside the first operations of the micro-batch.
fn fold(l: &mut Lowering<'_>, o: &Reconstruct, folded: BufferId) -> Result<()> {
    let arguments = FoldConvArguments {
        parameters: parameters(l, o),
        folded: l.folded(folded),
        scale: int(o.scale)?,
        chunks: int(chunks(o))?,
    };
    let shape = Shape {
        grid: [ENTRIES + 1, units(o), 1],
        shared: 0,
    };
    l.launch_early(&FOLD_CONV, shape, arguments)
}

/// Where the backward pass has its sums: over all pixels, over the pixels of edges.
fn sums_of(l: &Lowering<'_>, o: &ReconstructBack) -> Result<(Sums, Sums)> {
    let f = &o.forward;
    let ((interior, edges), (blocks, edge_blocks)) =
        (sum_counts(f), sum_blocks(f, l.choices.sum_blocks));
    let workspace = l.workspace(o.workspace)?;
    let partial_bytes = reduce::partial_bytes(interior, blocks);
    let edge_partial_bytes = reduce::partial_bytes(edges, edge_blocks);
    let (totals, at) = match o.slice.carry {
        Some(carry) => (carry, 0),
        None => (workspace, partial_bytes + edge_partial_bytes),
    };
    let interior_sums = Sums {
        partials: l.partials_at(workspace, 0),
        totals: l.totals_at(totals, at),
        count: interior,
        blocks,
    };
    let edge_sums = Sums {
        partials: l.partials_at(workspace, partial_bytes),
        totals: l.totals_at(totals, at + 8 * interior),
        count: edges,
        blocks: edge_blocks,
    };
    Ok((interior_sums, edge_sums))
}

/// Lowers the gradients of the reconstruction.
pub(super) fn backward(l: &mut Lowering<'_>, o: &ReconstructBack) -> Result<()> {
    let (sums, edge_sums) = sums_of(l, o)?;
    passes(l, o, &sums, &edge_sums)?;
    base_back(l, o)?;
    reduce::add_to_totals(l, o.slice, &[sums, edge_sums])?;
    if o.slice.last {
        unfold(l, o, &sums, &edge_sums)?;
    }
    Ok(())
}

/// Lowers the gradient of the input through the base, if it is wanted.
fn base_back(l: &mut Lowering<'_>, o: &ReconstructBack) -> Result<()> {
    let (f, Some(d_input)) = (&o.forward, o.d_input) else {
        return Ok(());
    };
    let arguments = BaseBackArguments {
        d_output: l.floats(o.d_output),
        d_input: l.floats(d_input),
        images: int(f.extent.n)?,
        h: int(f.extent.h)?,
        w: int(f.extent.w)?,
        scale: int(f.scale)?,
        alpha: f.alpha,
    };
    let blocks = (f.extent.pixels() * 3).div_ceil(256);
    l.launch(&BASE_BACK, Shape::of(blocks, 0), arguments)
}

/// The gradient of the features and the partial sums: in one pass at scale 2 in half precision,
/// else in two.
fn passes(l: &mut Lowering<'_>, o: &ReconstructBack, sums: &Sums, edge_sums: &Sums) -> Result<()> {
    let f = &o.forward;
    let half = l.half_precision();
    let arguments = ReconstructBackArguments {
        folded: l.folded(folded_buffer(f)?),
        gain: l.parameter(f.parameters, f.gain.offset),
        features: l.activations(f.features_in),
        d_output: l.floats(o.d_output),
        d_features: l.activations(o.d_features),
        partials: sums.partials,
        edge_partials: edge_sums.partials,
        images: int(f.extent.n)?,
        h: int(f.extent.h)?,
        w: int(f.extent.w)?,
        scale: int(f.scale)?,
        part: PART_DATA | PART_SUMS,
        edge_blocks: int(edge_sums.blocks)?,
        chunks: int(chunks(f))?,
    };
    let tile = tile_bytes(half);
    // operands of all slots, or f32 weights of four at a time
    let with_weights = if half {
        2 * tile + 16 * BACKWARD_TAPS
    } else {
        tile + 25 * FEATURES * 16
    };
    let sums_shape = |shared: usize| Shape {
        grid: [sums.blocks, units(f), 1],
        shared,
    };
    if half && f.scale == 2 {
        let shape = sums_shape(with_weights.max(EDGE_WARPS * EDGE_BYTES));
        return l.launch(&RECONSTRUCT_BACK_X2, shape, arguments);
    }
    let data = ReconstructBackArguments {
        part: PART_DATA,
        ..arguments
    };
    let shape = Shape {
        grid: [tiles(f.extent), chunks(f), 1],
        shared: with_weights,
    };
    l.launch(&RECONSTRUCT_BACK, shape, data)?;
    let only_sums = ReconstructBackArguments {
        part: PART_SUMS,
        ..arguments
    };
    // f32 sums have the 16 slots of the tile's gradients beside its features
    let shared = if half {
        (2 * tile).max(EDGE_WARPS * EDGE_BYTES)
    } else {
        tile + tile_pixels(0) * 16 * 4
    };
    l.launch(&RECONSTRUCT_BACK, sums_shape(shared), only_sums)
}

/// From the totals to the gradients of both convolutions and the gain. Nothing of the micro-batch
/// reads them, so this runs concurrently.
fn unfold(l: &mut Lowering<'_>, o: &ReconstructBack, sums: &Sums, edge_sums: &Sums) -> Result<()> {
    let f = &o.forward;
    let at = |r: ParamRange| l.gradient(o.gradients, r.offset);
    let arguments = UnfoldGradientsArguments {
        interior: sums.totals,
        edges: edge_sums.totals,
        parameters: parameters(l, f),
        folded: l.folded(folded_buffer(f)?),
        gradients: ReconstructGradients {
            up_weight: at(f.up_weight),
            up_bias: at(f.up_bias),
            weight: at(f.weight),
            bias: at(f.bias),
            gain: at(f.gain),
        },
        scalars: l.scalars()?,
        scale: int(f.scale)?,
        chunks: int(chunks(f))?,
    };
    // weights of up.0, a warp for each of conv_out's, biases, the gain
    let blocks = f.up_weight.len.div_ceil(256) + f.weight.len / 8 + 2;
    let shape = Shape::of(blocks, BLOCK_SUM_BYTES);
    l.launch_concurrent(&UNFOLD_GRADIENTS, shape, arguments)
}
