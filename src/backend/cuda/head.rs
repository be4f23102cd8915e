//! Lowering of the head, base + gain x conv_out, and its gradients.

use super::launch::{Arg, Lowering, int};
use super::nano::{FEATURES, halves, tiles};
use super::reduce::{self, Sums};
use super::sizing::SUM_BLOCKS;
use crate::plan::{Head, HeadBack};
use anyhow::{Result, ensure};

/// Rows and columns of one tile of HR pixels, which a block takes at a time.
const TILE: usize = 16;
/// f32 elements of conv_out's weights.
const WEIGHTS: usize = 27 * FEATURES;
/// Blocks of the forward kernel: enough for any device, few enough that the weights are seldom loaded.
const FORWARD_BLOCKS: usize = 4096;

/// Sums of one block: weights and bias; the gradient of the gain follows from them.
pub(super) fn sum_count(o: &HeadBack) -> usize {
    o.forward.weight.len + o.forward.bias.len
}

fn sum_blocks(o: &HeadBack) -> usize {
    let h = &o.forward;
    h.extent.scaled(h.scale).pixels().div_ceil(TILE * TILE).min(SUM_BLOCKS as usize)
}

pub(super) fn workspace(o: &HeadBack) -> u64 {
    reduce::workspace(sum_count(o), sum_blocks(o))
}

/// f32 elements of the base's arrays: `struct Base` of kernels/base.cuh.
fn base_elements(scale: usize) -> usize {
    let side = (18 + scale) / scale + 1;
    let wide = side + 6;
    8 * TILE + 3 * (wide * wide + wide * side + 2 * side * side + 2 * side * TILE)
}

fn check(o: &Head) -> Result<()> {
    ensure!(o.features == FEATURES, "the CUDA kernels of the head take {FEATURES} features, not {}", o.features);
    ensure!((2..=8).contains(&o.scale), "the CUDA kernels of the head take scales 2 to 8, not {}", o.scale);
    Ok(())
}

pub(super) fn forward(l: &mut Lowering<'_>, o: &Head) -> Result<()> {
    check(o)?;
    let (e, hr) = (o.extent, o.extent.scaled(o.scale));
    let [target, codes] = match o.target {
        Some(b) => [b.hr_of(0), b.augment_of(0)].map(|at| l.at_bytes(b.buffer, at)),
        None => [Arg::Null, Arg::Null],
    };
    let mut args: Vec<Arg> = [o.weight, o.bias, o.gain].iter().map(|r| l.element(o.parameters, r.offset)).collect();
    args.extend([l.at(o.input), l.at(o.features_in), l.at(o.output), target, codes]);
    args.extend([int(e.n)?, int(e.h)?, int(e.w)?, int(o.scale)?, Arg::Float(o.alpha)]);
    let around = (TILE + 2).pow(2);
    let shared = if halves(l, o.features_in, hr, FEATURES) {
        // features of the tile and a pixel around it, weights of 32 lanes, conv_out of the tile
        around * FEATURES * 2 + 9 * 32 * 8 + 4 * (TILE * TILE * 3 + base_elements(o.scale))
    } else {
        4 * (WEIGHTS + around * (FEATURES + 1) + base_elements(o.scale))
    };
    l.launch("head", [tiles(hr).min(FORWARD_BLOCKS), 1, 1], 256, shared, args)
}

pub(super) fn backward(l: &mut Lowering<'_>, o: &HeadBack) -> Result<()> {
    let f = &o.forward;
    check(f)?;
    let (e, hr) = (f.extent, f.extent.scaled(f.scale));
    let sums = Sums::new(l, l.workspace(o.workspace)?, o.slice, sum_count(o), sum_blocks(o));
    let parameter = |l: &Lowering<'_>, r: crate::plan::ParamRange| l.element(f.parameters, r.offset);
    let mut args = vec![parameter(l, f.weight), parameter(l, f.gain), l.at(f.features_in), l.at(o.d_output), l.at(o.d_features)];
    args.extend([sums.partials, int(hr.n)?, int(hr.h)?, int(hr.w)?]);
    let around = (TILE + 2).pow(2);
    let shared = if halves(l, f.features_in, hr, FEATURES) {
        // d_output of the tile and a pixel around it, four halves each; at the end the sums of eight warps
        (around * 4 * 2).max(8 * 4 * sum_count(o))
    } else {
        4 * (WEIGHTS + around * 3 + TILE * TILE * (FEATURES + 1))
    };
    l.launch("head_back", [sum_blocks(o), 1, 1], 256, shared, args)?;
    if let Some(d_input) = o.d_input {
        let args = vec![l.at(o.d_output), l.at(d_input), int(e.n)?, int(e.h)?, int(e.w)?, int(f.scale)?, Arg::Float(f.alpha)];
        l.launch("head_base_back", [(e.pixels() * 3).div_ceil(256), 1, 1], 256, 0, args)?;
    }
    sums.reduce(l, o.slice)?;
    if !o.slice.last {
        return Ok(());
    }
    let mut args = vec![sums.totals];
    args.extend([f.weight, f.bias, f.gain].map(|r| parameter(l, r)));
    args.extend([f.weight, f.bias, f.gain].map(|r| l.element(o.gradients, r.offset)));
    args.push(l.scalars()?);
    l.launch("finish_head", [1, 1, 1], 512, 512 * 8, args)
}
