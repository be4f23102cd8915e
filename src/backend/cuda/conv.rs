//! Lowering of the 3x3 convolutions and their gradients: kernels/conv.cu for 16 features to 16,
//! kernels/conv_rgb.cu for f32 RGB to 16. Depends on the lowering's state and the sums.

use super::arguments::Address;
use super::constants::{BANK_GAP, FEATURES, ODD_COLUMNS, TAPS, TILE};
use super::launch::Shape;
use super::limits::most_sum_blocks;
use super::lowering::{Lowering, int};
use super::reduce::{self, Sums, To};
use super::signatures::{
    CONV, CONV_DATA, CONV_GRADIENTS, CONV_RGB, CONV_RGB_DATA, CONV_RGB_WEIGHTS, CONV_WEIGHTS,
    ConvArguments, ConvDataArguments, ConvGradientsArguments, ConvRgbArguments,
    ConvRgbDataArguments, ConvRgbWeightsArguments, ConvWeightsArguments,
};
use super::tiles::{tile_pixels, tiles};
use crate::plan::{BufferId, Conv, ConvBack, Precision, Unpack};
use anyhow::{Context, Result};

/// Sums of one block: weights and bias, in the order of the parameters.
pub(super) fn sum_count(o: &ConvBack) -> usize {
    o.forward.weight.len + o.forward.bias.len
}

/// Blocks, `most` at most, that each have a partial sum of everything.
fn sum_blocks(o: &ConvBack, most: usize) -> usize {
    tiles(o.forward.extent).min(most)
}

pub(super) fn workspace(o: &ConvBack) -> u64 {
    reduce::partial_bytes(sum_count(o), sum_blocks(o, most_sum_blocks())) as u64
}

/// Bytes of shared memory of a tile with `border` pixels around it (kernels/conv.cu, `TileLayout`).
fn tile_bytes(precision: Precision, border: usize) -> usize {
    let pixel = FEATURES * precision.bytes() as usize;
    let side = TILE + 2 * border;
    match precision {
        Precision::F32 => side * side * (pixel + BANK_GAP),
        Precision::Bf16 | Precision::Fp16 => side * (ODD_COLUMNS + side / 2) * pixel,
    }
}

/// Bytes of shared memory of the 16 x 16 x 9 weights.
fn weight_bytes(precision: Precision) -> usize {
    FEATURES * FEATURES * TAPS * precision.bytes() as usize
}

/// Bytes of shared memory of an RGB tile with one pixel around it: f32 or, in half precision, four
/// halves a pixel.
fn rgb_tile_bytes(precision: Precision) -> usize {
    let pixel = if precision == Precision::F32 {
        3 * 4
    } else {
        4 * 2
    };
    tile_pixels(1) * pixel
}

/// Whether the kernels of this file compute a convolution; [`super::plain`] has those for all others.
pub(super) fn is_tuned(o: &Conv) -> bool {
    let rgb = o.cin == 3 && o.input_stride == 3;
    o.is_plain_3x3() && o.cout == FEATURES && (rgb || o.cin == FEATURES)
}

/// Whether the kernels of this file compute the gradients of a convolution.
pub(super) fn is_tuned_back(o: &ConvBack) -> bool {
    let written = o.d_input.is_none_or(|d| !d.add);
    is_tuned(&o.forward) && o.accumulates && written && (o.forward.cin == 3 || o.d_input.is_some())
}

/// Whether a convolution is the one that reads RGB.
fn reads_rgb(o: &Conv) -> bool {
    o.cin == 3
}

/// Lowers a convolution; with `unpack` it also does that operation, whose output it reads.
pub(super) fn forward(l: &mut Lowering<'_>, o: &Conv, unpack: Option<&Unpack>) -> Result<()> {
    let (e, precision) = (o.extent, l.plan.precision);
    let weight = l.parameter(o.parameters, o.weight.offset);
    let bias = l.parameter(o.parameters, o.bias.offset);
    if reads_rgb(o) {
        let (patches, codes) = match unpack.map(|u| u.batch) {
            Some(b) => (
                l.pixels_at(b.buffer, b.lq_of(0)),
                l.codes_at(b.buffer, b.augment_of(0)),
            ),
            None => (Address::NULL, Address::NULL),
        };
        let arguments = ConvRgbArguments {
            input: l.floats(o.input),
            weight,
            bias,
            output: l.activations(o.output),
            images: int(e.n)?,
            h: int(e.h)?,
            w: int(e.w)?,
            units: l.plan.batch.is_some().into(),
            patches,
            codes,
        };
        // with tensor cores the weights stay in registers
        let weights = if l.half_precision() {
            0
        } else {
            4 * 3 * TAPS * FEATURES
        };
        let shared = rgb_tile_bytes(precision) + weights;
        return l.launch_persistent(&CONV_RGB, tiles(e), shared, arguments);
    }
    let arguments = ConvArguments {
        input: l.activations(o.input),
        weight,
        bias,
        output: l.activations(o.output),
        images: int(e.n)?,
        h: int(e.h)?,
        w: int(e.w)?,
    };
    let shared = tile_bytes(precision, 1) + weight_bytes(precision) + 4 * FEATURES;
    l.launch_persistent(&CONV, tiles(e), shared, arguments)
}

/// Lowers the gradients of a convolution.
pub(super) fn backward(l: &mut Lowering<'_>, o: &ConvBack) -> Result<()> {
    let c = &o.forward;
    let workspace = l.workspace(o.workspace)?;
    let blocks = sum_blocks(o, l.choices.sum_blocks);
    let sums = reduce::sums_in(l, workspace, o.slice, sum_count(o), blocks);
    if reads_rgb(c) {
        rgb_gradients(l, o, &sums)?;
    } else {
        let d_input = o.d_input.map(|d| d.buffer);
        let d_input =
            d_input.context("a convolution inside the network has a gradient of its input")?;
        gradients(l, o, d_input, &sums)?;
    }
    let first = reduce::contiguous(&[c.weight, c.bias])?;
    let to = To::Gradients(l.gradient(o.gradients, first));
    reduce::defer(l, &sums, o.slice, to)
}

fn rgb_gradients(l: &mut Lowering<'_>, o: &ConvBack, sums: &Sums) -> Result<()> {
    let (c, e) = (&o.forward, o.forward.extent);
    let d_output = l.activations(o.d_output);
    if let Some(d_input) = o.d_input.map(|d| d.buffer) {
        let arguments = ConvRgbDataArguments {
            d_output,
            weight: l.parameter(c.parameters, c.weight.offset),
            d_input: l.floats(d_input),
            images: int(e.n)?,
            h: int(e.h)?,
            w: int(e.w)?,
        };
        let shape = Shape::of(e.pixels().div_ceil(256), 0);
        l.launch(&CONV_RGB_DATA, shape, arguments)?;
    }
    let arguments = ConvRgbWeightsArguments {
        input: l.floats(c.input),
        d_output,
        partials: sums.partials,
        images: int(e.n)?,
        h: int(e.h)?,
        w: int(e.w)?,
        units: l.plan.batch.is_some().into(),
    };
    // at the end the memory holds the sums of 16 rows, or of eight warps
    let copies = if l.half_precision() { 8 } else { 16 };
    let shared = rgb_tile_bytes(l.plan.precision).max(4 * copies * (3 * TAPS + 1) * FEATURES);
    l.launch(&CONV_RGB_WEIGHTS, Shape::of(sums.blocks, shared), arguments)
}

fn gradients(l: &mut Lowering<'_>, o: &ConvBack, d_input: BufferId, sums: &Sums) -> Result<()> {
    let (c, e, precision) = (&o.forward, o.forward.extent, l.plan.precision);
    let input = l.activations(c.input);
    let d_output = l.activations(o.d_output);
    let weight = l.parameter(c.parameters, c.weight.offset);
    let d_input = l.activations(d_input);
    let (images, h, w) = (int(e.n)?, int(e.h)?, int(e.w)?);
    let (own, tile) = (tile_bytes(precision, 0), tile_bytes(precision, 1));
    let weights = weight_bytes(precision);
    if l.half_precision() {
        let arguments = ConvGradientsArguments {
            input,
            d_output,
            weight,
            d_input,
            partials: sums.partials,
            images,
            h,
            w,
        };
        // at the end the memory holds the sums of four pairs of warps, and biases
        let final_sums = 4 * 4 * (TAPS * FEATURES + 1) * FEATURES;
        let shape = Shape::of(sums.blocks, (own + tile + weights).max(final_sums));
        return l.launch(&CONV_GRADIENTS, shape, arguments);
    }
    let arguments = ConvDataArguments {
        d_output,
        weight,
        d_input,
        images,
        h,
        w,
    };
    l.launch_persistent(&CONV_DATA, tiles(e), tile + weights, arguments)?;
    let arguments = ConvWeightsArguments {
        input,
        d_output,
        partials: sums.partials,
        images,
        h,
        w,
    };
    let shape = Shape::of(sums.blocks, own + tile);
    l.launch(&CONV_WEIGHTS, shape, arguments)
}
