//! Lowering of the fused Nano block and its gradients: kernels/nano_block.cu. Depends on the
//! lowering's state and the sums.

use super::choices::Depthwise;
use super::constants::{FEATURES, HIDDEN, MMA_WEIGHTS, NANO_COUNT};
use super::constants::{PLAIN_BACKWARD, PLAIN_FORWARD, PLANE_GAP};
use super::launch::Shape;
use super::limits::most_sum_blocks;
use super::lowering::{Lowering, int};
use super::reduce::{self, To};
use super::signatures::{NANO_BLOCK, NANO_BLOCK_BACK, NANO_BLOCK_BACK_PLAIN, NANO_BLOCK_PLAIN};
use super::signatures::{NanoBlockArguments, NanoBlockBackArguments, NanoParameters};
use super::tiles::{tile_pixels, tiles};
use crate::plan::{NanoBlock, NanoBlockBack, NanoParams, ParamRange, Slice};
use anyhow::{Result, ensure};

/// Sums of one block: everything but gamma, whose gradient follows from them.
pub(super) fn sum_count(o: &NanoBlockBack) -> usize {
    ranges(&o.forward.params)[..6].iter().map(|r| r.len).sum()
}

/// Tiles that each of `most` blocks of the backward kernel takes: neighbours one after another, so that what
/// their halos share is computed once.
fn tiles_of_a_block(o: &NanoBlockBack, most: usize) -> usize {
    tiles(o.forward.extent).div_ceil(most)
}

/// Blocks of the backward kernel, each with at least one tile.
fn sum_blocks(o: &NanoBlockBack, most: usize) -> usize {
    tiles(o.forward.extent).div_ceil(tiles_of_a_block(o, most))
}

pub(super) fn workspace(o: &NanoBlockBack) -> u64 {
    reduce::partial_bytes(sum_count(o), sum_blocks(o, most_sum_blocks())) as u64
}

/// Bytes of shared memory of a tile's hidden channels, as halves, with `border` pixels around it:
/// `plane_pieces` of kernels/nano_mma.cuh.
fn plane_bytes(border: usize) -> usize {
    HIDDEN / 8 * (tile_pixels(border) + PLANE_GAP) * 16
}

/// In the order of the sums.
fn ranges(p: &NanoParams) -> [ParamRange; 7] {
    [
        p.conv1_weight,
        p.conv1_bias,
        p.dw_weight,
        p.dw_bias,
        p.conv2_weight,
        p.conv2_bias,
        p.gamma,
    ]
}

fn parameters(l: &Lowering<'_>, o: &NanoBlock) -> Result<NanoParameters> {
    ensure!(
        o.features == FEATURES,
        "the CUDA kernels of a Nano block take {FEATURES} features, not {}",
        o.features
    );
    let (p, at) = (&o.params, |r: ParamRange| {
        l.parameter(o.parameters, r.offset)
    });
    Ok(NanoParameters {
        w1: at(p.conv1_weight),
        b1: at(p.conv1_bias),
        dw: at(p.dw_weight),
        db: at(p.dw_bias),
        w2: at(p.conv2_weight),
        b2: at(p.conv2_bias),
        gamma: at(p.gamma),
    })
}

/// Whether the kernels that compute the depthwise step without tensor cores are launched; f32 has one
/// kernel.
fn multiply_adds(l: &Lowering<'_>) -> bool {
    l.half_precision() && l.choices.depthwise == Depthwise::Plain
}

/// Lowers a Nano block.
pub(super) fn forward(l: &mut Lowering<'_>, o: &NanoBlock) -> Result<()> {
    let e = o.extent;
    let arguments = NanoBlockArguments {
        parameters: parameters(l, o)?,
        input: l.activations(o.input),
        output: l.activations(o.output),
        images: int(e.n)?,
        h: int(e.h)?,
        w: int(e.w)?,
    };
    let shared = if l.half_precision() {
        // all hidden channels of the tile and one pixel around it; conv2's biases, too
        plane_bytes(1) + MMA_WEIGHTS + 4 * FEATURES
    } else {
        // some of the hidden channels at a time; one value a pixel more, against bank conflicts
        4 * (NANO_COUNT + tile_pixels(1) * (PLAIN_FORWARD + 1))
    };
    let kernel = if multiply_adds(l) {
        &NANO_BLOCK_PLAIN
    } else {
        &NANO_BLOCK
    };
    l.launch_persistent(kernel, tiles(e), shared, arguments)
}

/// Lowers the gradients of a Nano block.
pub(super) fn backward(l: &mut Lowering<'_>, o: &NanoBlockBack) -> Result<()> {
    let (f, e) = (&o.forward, o.forward.extent);
    let most = l.choices.sum_blocks;
    let (slice, blocks) = (Slice::whole(e.n), sum_blocks(o, most));
    let workspace = l.workspace(o.workspace)?;
    let sums = reduce::sums_in(l, workspace, slice, sum_count(o), blocks);
    let arguments = NanoBlockBackArguments {
        parameters: parameters(l, f)?,
        input: l.activations(f.input),
        d_output: l.activations(o.d_output),
        d_input: l.activations(o.d_input),
        partials: sums.partials,
        images: int(e.n)?,
        h: int(e.h)?,
        w: int(e.w)?,
        tiles: int(tiles_of_a_block(o, most))?,
    };
    let shared = if l.half_precision() {
        // hidden channels of the tile and two pixels around it, their gradient with one; at the end
        // the sums of eight warps
        (plane_bytes(2) + plane_bytes(1) + MMA_WEIGHTS).max(8 * 4 * sum_count(o))
    } else {
        // the same for some of the hidden channels at a time, and one more value of the tile
        let pixels = tile_pixels(2) + tile_pixels(1) + tile_pixels(0);
        4 * (NANO_COUNT + pixels * (PLAIN_BACKWARD + 1))
    };
    let kernel = if multiply_adds(l) {
        &NANO_BLOCK_BACK_PLAIN
    } else {
        &NANO_BLOCK_BACK
    };
    l.launch(kernel, Shape::of(blocks, shared), arguments)?;
    let first = reduce::contiguous(&ranges(&f.params))?;
    let to = To::NanoBlock {
        parameters: l.parameter(f.parameters, first),
        gradients: l.gradient(o.gradients, first),
    };
    reduce::defer(l, &sums, slice, to)
}
