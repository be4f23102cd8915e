//! Lowering of the 3x3 convolutions and their gradients: kernels/conv.cu for 16 channels to 16 x shuffle^2, kernels/conv_rgb.cu for
//! f32 RGB to 16.

use super::launch::{Arg, Lowering, int};
use super::reduce::{self, Sums};
use super::sizing::SUM_BLOCKS;
use crate::plan::{Conv, ConvBack, Extent, Precision};
use anyhow::{Result, ensure};

/// Side of the LQ tile that a block takes at a time.
const TILE: usize = 16;
/// The only number of channels there are kernels for.
const CHANNELS: usize = 16;
/// Blocks of a kernel that walks over tiles: a few for every multiprocessor, so that weights are loaded for several tiles.
const WALKERS: usize = 1024;
/// Shared memory that every device gives a block unasked.
const SHARED: usize = 48 << 10;

fn tiles(e: Extent) -> usize {
    e.n * e.h.div_ceil(TILE) * e.w.div_ceil(TILE)
}

/// Sums of one block: weights and bias, in the order of the parameters.
pub(super) fn sum_count(o: &ConvBack) -> usize {
    o.forward.weight.len + o.forward.bias.len
}

/// Blocks that each have a partial sum of everything; with a shuffle a group of blocks shares one.
fn sum_blocks(o: &ConvBack) -> usize {
    let subs = o.forward.shuffle * o.forward.shuffle;
    tiles(o.forward.extent).min((SUM_BLOCKS as usize / subs).max(1))
}

pub(super) fn workspace(o: &ConvBack) -> u64 {
    reduce::workspace(sum_count(o), sum_blocks(o))
}

/// Bytes of shared memory that a tile with `border` pixels around it takes, and a sub's 16 x 16 x 9 weights.
fn shared_sizes(precision: Precision) -> (impl Fn(usize) -> usize, usize) {
    // one 16-byte piece is left free against bank conflicts
    let pixel = CHANNELS * precision.bytes() as usize + 16;
    let tile = move |border: usize| (TILE + 2 * border) * (TILE + 2 * border) * pixel;
    (tile, CHANNELS * CHANNELS * 9 * precision.bytes() as usize)
}

/// Whether it is the RGB form.
fn check(o: &Conv) -> Result<bool> {
    let rgb = o.cin == 3 && o.shuffle == 1;
    ensure!(
        o.cout == CHANNELS && (rgb || o.cin == CHANNELS),
        "no CUDA kernel for a 3x3 convolution from {} to {} channels with a shuffle of {}",
        o.cin,
        o.cout,
        o.shuffle
    );
    Ok(rgb)
}

fn sizes(e: Extent) -> Result<[Arg; 3]> {
    Ok([int(e.n)?, int(e.h)?, int(e.w)?])
}

pub(super) fn forward(l: &mut Lowering<'_>, o: &Conv) -> Result<()> {
    let rgb = check(o)?;
    let (weight, bias) = (l.element(o.parameters, o.weight.offset), l.element(o.parameters, o.bias.offset));
    let mut args = vec![l.at(o.input), weight, bias, l.at(o.output)];
    args.extend(sizes(o.extent)?);
    let tiles = tiles(o.extent);
    if rgb {
        return l.launch("conv_rgb", [tiles.min(WALKERS), 1, 1], 256, 4 * (27 * CHANNELS + 18 * 18 * 3), args);
    }
    let subs = o.shuffle * o.shuffle;
    let (tile, weights) = shared_sizes(l.plan.precision);
    let shared = |group: usize| tile(1) + group * (weights + 4 * CHANNELS);
    let group = [4, 3, 2, 1].into_iter().find(|g| subs.is_multiple_of(*g) && shared(*g) <= SHARED).unwrap_or(1);
    args.extend([int(o.shuffle)?, int(group)?]);
    let groups = subs / group;
    l.launch("conv", [tiles.min(WALKERS.div_ceil(groups)), groups, 1], 256, shared(group), args)
}

pub(super) fn backward(l: &mut Lowering<'_>, o: &ConvBack) -> Result<()> {
    let c = &o.forward;
    let rgb = check(c)?;
    let (tiles, blocks, subs) = (tiles(c.extent), sum_blocks(o), c.shuffle * c.shuffle);
    let weight = l.element(c.parameters, c.weight.offset);
    let (tile, weights) = shared_sizes(l.plan.precision);
    let sums = Sums::new(l, l.workspace(o.workspace)?, o.slice, sum_count(o), blocks);
    let together = 2 * tile(1) + weights;
    if let Some(d_input) = o.d_input.filter(|_| !rgb && subs == 1 && together <= SHARED) {
        let mut args = vec![l.at(c.input), l.at(o.d_output), weight, l.at(d_input), sums.partials];
        args.extend(sizes(c.extent)?);
        l.launch("conv_gradients", [blocks, 1, 1], 256, together, args)?;
        return finish(l, o, &sums);
    }
    if let Some(d_input) = o.d_input {
        let mut args = vec![l.at(o.d_output), weight, l.at(d_input)];
        args.extend(sizes(c.extent)?);
        if rgb {
            l.launch("conv_rgb_data", [c.extent.pixels().div_ceil(256), 1, 1], 256, 0, args)?;
        } else {
            let resident = tile(1) + subs * weights <= SHARED;
            args.extend([int(c.shuffle)?, Arg::Int(resident.into())]);
            let shared = tile(1) + if resident { subs * weights } else { weights };
            l.launch("conv_data", [tiles.min(WALKERS), 1, 1], 256, shared, args)?;
        }
    }
    let mut args = vec![l.at(c.input), l.at(o.d_output), sums.partials];
    args.extend(sizes(c.extent)?);
    if rgb {
        l.launch("conv_rgb_weights", [blocks, 1, 1], 256, 4 * 16 * 28 * CHANNELS, args)?;
    } else {
        args.push(int(c.shuffle)?);
        l.launch("conv_weights", [blocks, subs, 1], 256, tile(1) + tile(0), args)?;
    }
    finish(l, o, &sums)
}

/// From the blocks' sums to the gradients of the parameters.
fn finish(l: &mut Lowering<'_>, o: &ConvBack, sums: &Sums) -> Result<()> {
    sums.reduce(l, o.slice)?;
    if o.slice.last {
        sums.store(l, o.gradients, 0, o.forward.weight)?;
        sums.store(l, o.gradients, o.forward.weight.len, o.forward.bias)?;
    }
    Ok(())
}
