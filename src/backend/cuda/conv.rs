//! Lowering of the 3x3 convolutions and their gradients: kernels/conv.cu for 16 channels to 16,
//! kernels/conv_rgb.cu for f32 RGB to 16.

use super::launch::{Arg, Lowering, int};
use super::reduce::{self, Sums, To};
use super::sizing::SUM_BLOCKS;
use crate::plan::{Conv, ConvBack, Extent, Precision, Unpack};
use anyhow::{Context, Result, ensure};

/// Side of the LQ tile that a block takes at a time.
const TILE: usize = 16;
/// The only number of channels there are kernels for.
const CHANNELS: usize = 16;

fn tiles(e: Extent) -> usize {
    e.n * e.h.div_ceil(TILE) * e.w.div_ceil(TILE)
}

/// Sums of one block: weights and bias, in the order of the parameters.
pub(super) fn sum_count(o: &ConvBack) -> usize {
    o.forward.weight.len + o.forward.bias.len
}

/// Blocks that each have a partial sum of everything.
fn sum_blocks(o: &ConvBack) -> usize {
    tiles(o.forward.extent).min(SUM_BLOCKS as usize)
}

pub(super) fn workspace(o: &ConvBack) -> u64 {
    reduce::partial_bytes(sum_count(o), sum_blocks(o)) as u64
}

/// Bytes of shared memory that a tile with `border` pixels around it takes, and the 16 x 16 x 9
/// weights.
fn shared_sizes(precision: Precision) -> (impl Fn(usize) -> usize, usize) {
    // one 16-byte piece is left free against bank conflicts
    let pixel = CHANNELS * precision.bytes() as usize + 16;
    let tile = move |border: usize| (TILE + 2 * border) * (TILE + 2 * border) * pixel;
    (tile, CHANNELS * CHANNELS * 9 * precision.bytes() as usize)
}

/// Whether it is the RGB form.
fn check(o: &Conv) -> Result<bool> {
    let rgb = o.cin == 3;
    ensure!(
        o.cout == CHANNELS && (rgb || o.cin == CHANNELS),
        "no CUDA kernel for a 3x3 convolution from {} to {} channels",
        o.cin,
        o.cout
    );
    Ok(rgb)
}

/// For the RGB form: whether the input is a staged picture, in 255ths; bytes of a tile with the
/// pixel around it.
fn rgb_form(l: &Lowering<'_>) -> (Arg, usize) {
    let pixel = if l.plan.precision == Precision::F32 {
        3 * 4
    } else {
        4 * 2
    };
    (Arg::Int(l.plan.batch.is_some().into()), 18 * 18 * pixel)
}

fn sizes(e: Extent) -> Result<[Arg; 3]> {
    Ok([int(e.n)?, int(e.h)?, int(e.w)?])
}

/// `unpack`: on the way.
pub(super) fn forward(l: &mut Lowering<'_>, o: &Conv, unpack: Option<&Unpack>) -> Result<()> {
    let rgb = check(o)?;
    let (weight, bias) = (
        l.element(o.parameters, o.weight.offset),
        l.element(o.parameters, o.bias.offset),
    );
    let mut args = vec![l.at(o.input), weight, bias, l.at(o.output)];
    args.extend(sizes(o.extent)?);
    let tiles = tiles(o.extent);
    if rgb {
        let (units, shared) = rgb_form(l);
        args.push(units);
        args.extend(match unpack.map(|u| u.batch) {
            Some(b) => [b.lq_of(0), b.augment_of(0)].map(|at| l.at_bytes(b.buffer, at)),
            None => [Arg::Null, Arg::Null],
        });
        let weights = if l.plan.precision == Precision::F32 {
            4 * 27 * CHANNELS
        } else {
            0
        };
        return l.walk("conv_rgb", tiles, 256, shared + weights, args);
    }
    let (tile, weights) = shared_sizes(l.plan.precision);
    l.walk("conv", tiles, 256, tile(1) + weights + 4 * CHANNELS, args)
}

pub(super) fn backward(l: &mut Lowering<'_>, o: &ConvBack) -> Result<()> {
    let c = &o.forward;
    let rgb = check(c)?;
    let (tiles, blocks) = (tiles(c.extent), sum_blocks(o));
    let weight = l.element(c.parameters, c.weight.offset);
    let (tile, weights) = shared_sizes(l.plan.precision);
    let sums = Sums::of(l, l.workspace(o.workspace)?, o.slice, sum_count(o), blocks);
    let (input, d_output) = (l.at(c.input), l.at(o.d_output));
    let with_sizes = |mut args: Vec<Arg>| -> Result<Vec<Arg>> {
        args.extend(sizes(c.extent)?);
        Ok(args)
    };
    if rgb {
        if let Some(d_input) = o.d_input {
            let args = with_sizes(vec![d_output, weight, l.at(d_input)])?;
            l.launch(
                "conv_rgb_data",
                [c.extent.pixels().div_ceil(256), 1, 1],
                256,
                0,
                args,
            )?;
        }
        let (units, tile) = rgb_form(l);
        let mut args = with_sizes(vec![input, d_output, sums.partials])?;
        args.push(units);
        // at the end the sums of 16 rows, or of eight warps
        let sums_of = if l.plan.precision == Precision::F32 {
            16
        } else {
            8
        };
        l.launch(
            "conv_rgb_weights",
            [blocks, 1, 1],
            256,
            tile.max(4 * sums_of * 28 * CHANNELS),
            args,
        )?;
        return finish(l, o, &sums);
    }
    let d_input = l.at(o
        .d_input
        .context("a convolution inside the network has a gradient of its input")?);
    if l.plan.precision == Precision::F32 {
        let args = with_sizes(vec![d_output, weight, d_input])?;
        l.walk("conv_data", tiles, 256, tile(1) + weights, args)?;
        let args = with_sizes(vec![input, d_output, sums.partials])?;
        l.launch("conv_weights", [blocks, 1, 1], 256, tile(1) + tile(0), args)?;
    } else {
        let args = with_sizes(vec![input, d_output, weight, d_input, sums.partials])?;
        // at the end the sums of four pairs of warps, and biases
        let sums_of = 4 * 4 * (9 * CHANNELS + 1) * CHANNELS;
        l.launch(
            "conv_gradients",
            [blocks, 1, 1],
            256,
            (2 * tile(1) + weights).max(sums_of),
            args,
        )?;
    }
    finish(l, o, &sums)
}

/// From the blocks' sums to the gradients of the parameters.
fn finish(l: &mut Lowering<'_>, o: &ConvBack, sums: &Sums) -> Result<()> {
    let first = reduce::adjacent(&[o.forward.weight, o.forward.bias])?;
    sums.later(l, o.slice, To::Gradients(l.element(o.gradients, first)))
}
