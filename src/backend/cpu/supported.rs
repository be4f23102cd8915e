//! The one check of which operations the CPU kernels are written for. The planner and
//! `CpuBackend::new` call it through `Sizing::supports`, so the kernels may rely on these
//! properties. Depends on the plan's operations alone.

use super::border::MAX_FEATURES;
use super::nano;
use super::simd::LANES;
use crate::plan::{Conv, Extent, MAX_IMAGES, MAX_SIDE, NanoBlock, Op, Reconstruct};
use anyhow::{Context as _, Result, ensure};

/// Most channels of a 3x3 convolution. No network comes near; the bound keeps every workspace size
/// inside 64 bits.
const MAX_CHANNELS: usize = 1 << 12;

/// Scales that [`super::base`] and [`super::reconstruct`] have inner loops for.
const SCALES: [usize; 4] = [2, 3, 4, 8];

/// Checks that the CPU can run `op`.
///
/// # Errors
/// The operation, and the property that no kernel is written for.
pub fn check(op: &Op) -> Result<()> {
    let checked = match op {
        Op::Unpack(o) => check_extent(Extent {
            n: o.batch.count,
            h: o.batch.lq.0,
            w: o.batch.lq.1,
        }),
        Op::Conv(o) => check_conv(o),
        Op::ConvBack(o) => check_conv(&o.forward),
        Op::NanoBlock(o) => check_nano(o),
        Op::NanoBlockBack(o) => check_nano(&o.forward),
        Op::Reconstruct(o) => check_reconstruct(o),
        Op::ReconstructBack(o) => check_reconstruct(&o.forward),
        Op::PixelLoss(o) => check_extent(o.extent),
        Op::StructuralLoss(o) => check_extent(o.extent),
        Op::Update(_) => Ok(()),
    };
    checked.with_context(|| format!("the CPU cannot run the operation \"{}\"", op.label()))
}

fn check_extent(extent: Extent) -> Result<()> {
    let Extent { n, h, w } = extent;
    ensure!(
        n > 0 && h > 0 && w > 0,
        "{n} images of {h}x{w} pixels: none of the three may be 0"
    );
    ensure!(
        n <= MAX_IMAGES && h <= MAX_SIDE && w <= MAX_SIDE,
        "{n} images of {h}x{w} pixels are too large: at most {MAX_IMAGES} images of \
         {MAX_SIDE}x{MAX_SIDE} pixels are supported"
    );
    Ok(())
}

fn check_conv(op: &Conv) -> Result<()> {
    let Conv { cin, cout, .. } = *op;
    let whole_vectors = |channels: usize| {
        channels > 0 && channels <= MAX_CHANNELS && channels.is_multiple_of(LANES)
    };
    ensure!(
        (cin == 3 || whole_vectors(cin)) && whole_vectors(cout),
        "{cin} to {cout} channels: inputs of 3 or a multiple of {LANES} channels and outputs of a \
         multiple of {LANES} are supported, up to {MAX_CHANNELS}"
    );
    check_extent(op.extent)
}

fn check_nano(op: &NanoBlock) -> Result<()> {
    ensure!(
        op.features == nano::FEATURES,
        "{} features: only blocks of {} are supported",
        op.features,
        nano::FEATURES
    );
    check_extent(op.extent)
}

fn check_reconstruct(op: &Reconstruct) -> Result<()> {
    let Reconstruct {
        extent,
        scale,
        features,
        ..
    } = *op;
    ensure!(
        SCALES.contains(&scale),
        "scale {scale}: the scales {SCALES:?} are supported"
    );
    ensure!(
        features > 0 && features.is_multiple_of(LANES) && features <= MAX_FEATURES,
        "{features} features: multiples of {LANES} up to {MAX_FEATURES} are supported"
    );
    check_extent(extent)?;
    check_extent(extent.scaled(scale))
}
