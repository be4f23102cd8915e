//! Lowering of the fused Nano block and its gradients.

use super::launch::{Arg, Lowering, int};
use super::reduce::{self, Sums, To};
use super::sizing::SUM_BLOCKS;
use crate::plan::{BufferId, Extent, NanoBlock, NanoBlockBack, NanoParams, ParamRange, Slice};
use anyhow::{Result, ensure};

/// Rows and columns of one tile, which a block takes at a time.
const TILE: usize = 16;
/// Features the kernels are written for.
pub(super) const FEATURES: usize = 16;
/// Hidden channels.
const HIDDEN: usize = 2 * FEATURES;
/// f32 elements of all weights of a block, gamma multiplied in.
const WEIGHTS: usize = HIDDEN * (FEATURES + 1 + 9 + 1 + FEATURES) + FEATURES;
/// Bytes of weights beside tensor cores, `struct NanoWeights` of kernels/nano_mma.cuh: conv1 as
/// halves, conv2 as operands, nine depthwise taps and their bias with zeros, conv1's biases.
const MMA_WEIGHTS: usize = 2 * HIDDEN * 16 + 4 * 32 * 8 + (HIDDEN + 1) * 10 * 4 + 4 * HIDDEN;
/// The forward kernel has conv2's biases, too.
const MMA_FORWARD_WEIGHTS: usize = MMA_WEIGHTS + 4 * FEATURES;

/// Sums of one block: everything but gamma, whose gradient follows from them.
pub(super) fn sum_count(o: &NanoBlockBack) -> usize {
    ranges(&o.forward.params)[..6].iter().map(|r| r.len).sum()
}

/// Tiles of a block of the backward kernel: neighbours one after another, whose halos it need not
/// work out twice.
fn run_of_tiles(o: &NanoBlockBack) -> usize {
    tiles(o.forward.extent).div_ceil(SUM_BLOCKS as usize)
}

/// Blocks of the backward kernel, each with a tile at least.
fn sum_blocks(o: &NanoBlockBack) -> usize {
    tiles(o.forward.extent).div_ceil(run_of_tiles(o))
}

pub(super) fn workspace(o: &NanoBlockBack) -> u64 {
    reduce::partial_bytes(sum_count(o), sum_blocks(o)) as u64
}

/// Bytes of the hidden channels, as halves, of a tile and so many pixels around it: `plane_pieces`
/// of kernels/nano_mma.cuh.
fn plane_bytes(around: usize) -> usize {
    HIDDEN / 8 * ((TILE + 2 * around).pow(2) + 2) * 16
}

/// Whether an activation of so many values a pixel is kept in halves.
pub(super) fn halves(l: &Lowering<'_>, id: BufferId, extent: Extent, channels: usize) -> bool {
    l.plan.buffer(id).bytes == 2 * (extent.pixels() * channels) as u64
}

/// Tiles of all images.
pub(super) fn tiles(e: Extent) -> usize {
    e.n * e.h.div_ceil(TILE) * e.w.div_ceil(TILE)
}

/// As the kernels take them, and as the sums stand.
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

fn weights(l: &Lowering<'_>, o: &NanoBlock) -> Vec<Arg> {
    ranges(&o.params)
        .iter()
        .map(|r| l.element(o.parameters, r.offset))
        .collect()
}

pub(super) fn forward(l: &mut Lowering<'_>, o: &NanoBlock) -> Result<()> {
    ensure!(
        o.features == FEATURES,
        "the CUDA kernels of a Nano block take {FEATURES} features, not {}",
        o.features
    );
    let e = o.extent;
    let mut args = weights(l, o);
    args.extend([
        l.at(o.input),
        l.at(o.output),
        int(e.n)?,
        int(e.h)?,
        int(e.w)?,
    ]);
    let shared = if halves(l, o.input, e, FEATURES) {
        // all hidden channels of the tile and one pixel around it
        plane_bytes(1) + MMA_FORWARD_WEIGHTS
    } else {
        // 16 of them at a time
        4 * (WEIGHTS + (TILE + 2).pow(2) * 17)
    };
    l.walk("nano_block", tiles(e), 256, shared, args)
}

pub(super) fn backward(l: &mut Lowering<'_>, o: &NanoBlockBack) -> Result<()> {
    let (f, p) = (&o.forward, &o.forward.params);
    ensure!(
        f.features == FEATURES,
        "the CUDA kernels of a Nano block take {FEATURES} features, not {}",
        f.features
    );
    let (e, slice) = (f.extent, Slice::whole(f.extent.n));
    let blocks = sum_blocks(o);
    let sums = Sums::of(l, l.workspace(o.workspace)?, slice, sum_count(o), blocks);
    let mut args = weights(l, f);
    args.extend([
        l.at(f.input),
        l.at(o.d_output),
        l.at(o.d_input),
        sums.partials,
        int(e.n)?,
        int(e.h)?,
        int(e.w)?,
    ]);
    args.push(int(run_of_tiles(o))?);
    let around = |pixels: usize| (TILE + 2 * pixels).pow(2);
    let shared = if halves(l, f.input, e, FEATURES) {
        // hidden channels of the tile and two pixels around it, their gradient with one; at the end
        // the sums of eight warps
        (plane_bytes(2) + plane_bytes(1) + MMA_WEIGHTS).max(8 * 4 * sum_count(o))
    } else {
        // 8 of them at a time, and one more value of the tile's pixels
        4 * (WEIGHTS + (around(2) + around(1) + around(0)) * 9)
    };
    l.launch("nano_block_back", [blocks, 1, 1], 256, shared, args)?;
    let first = reduce::adjacent(&ranges(p))?;
    sums.later(
        l,
        slice,
        To::NanoBlock {
            parameters: l.element(f.parameters, first),
            gradients: l.element(o.gradients, first),
        },
    )
}
