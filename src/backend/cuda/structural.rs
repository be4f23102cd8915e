//! Lowering of the structural losses (SSIM, MS-SSIM), a few images' planes at a time:
//! kernels/structural.cu. Depends on the lowering's state and the sums.

use super::arguments::Address;
use super::constants::{
    BLOCK_THREADS, LEVELS, PATCH_H, PATCH_W, PLANES, REACH_H, REACH_W, SLICE_CONTINUES, SLICE_LAST,
};
use super::launch::Shape;
use super::limits::STRUCTURAL_IMAGES;
use super::lowering::{Lowering, int};
use super::reduce::{self, BLOCK_SUM_BYTES};
use super::signatures::{
    FINISH_STRUCTURAL, FinishStructuralArguments, Predictions, STRUCTURAL_GRADIENT,
    STRUCTURAL_PLANES, STRUCTURAL_POOL, STRUCTURAL_SCORE, STRUCTURAL_SPREAD, STRUCTURAL_WINDOWS,
    StructuralGradientArguments, StructuralPlanesArguments, StructuralPoolArguments,
    StructuralScoreArguments, StructuralSpreadArguments, StructuralWindowsArguments,
};
use crate::plan::{StructuralLoss, StructuralLossKind, Target};
use anyhow::Result;

/// Pixels that the windows on a block's pixels reach.
const REACH: usize = REACH_H * REACH_W;
/// The same once they are filtered along rows.
const FILTERED: usize = REACH_H * PATCH_W;

fn level_count(kind: StructuralLossKind) -> usize {
    match kind {
        StructuralLossKind::Ssim => 1,
        StructuralLossKind::MultiScale => LEVELS,
    }
}

/// Sizes of the levels of an image of `h` x `w` HR pixels.
fn levels(kind: StructuralLossKind, h: usize, w: usize) -> impl Iterator<Item = (usize, usize)> {
    std::iter::successors(Some((h, w)), |&(h, w)| Some((h.div_ceil(2), w.div_ceil(2))))
        .take(level_count(kind))
}

/// The workspace of an operation, in bytes from its start: a score for every image of every term
/// (at 0), a total for every term, the partial sums of the images at work, their factors, their
/// planes. The terms use the last three one after another.
struct Layout {
    totals: usize,
    partials: usize,
    factors: usize,
    planes: usize,
    bytes: usize,
}

/// Blocks that an image takes, in all its levels.
fn patches(kind: StructuralLossKind, h: usize, w: usize) -> usize {
    levels(kind, h, w)
        .map(|(h, w)| h.div_ceil(PATCH_H) * w.div_ceil(PATCH_W))
        .sum()
}

/// f32 elements of an image's planes, in all its levels.
fn floats(kind: StructuralLossKind, h: usize, w: usize) -> usize {
    levels(kind, h, w).map(|(h, w)| PLANES * h * w).sum()
}

fn layout(o: &StructuralLoss) -> Layout {
    let e = o.extent;
    let images = e.n.min(STRUCTURAL_IMAGES);
    let most = |size: fn(StructuralLossKind, usize, usize) -> usize| {
        o.terms
            .iter()
            .map(|&(kind, _)| size(kind, e.h, e.w))
            .max()
            .unwrap_or(0)
    };
    let totals = 8 * o.terms.len() * e.n;
    let partials = totals + 8 * o.terms.len();
    let factors = partials + 8 * images * most(patches);
    let planes = factors + 4 * images * LEVELS;
    Layout {
        totals,
        partials,
        factors,
        planes,
        bytes: planes + 4 * images * most(floats),
    }
}

/// Bytes of the workspace: scores and totals of all images, partial sums and planes of
/// [`STRUCTURAL_IMAGES`].
pub(super) fn workspace(o: &StructuralLoss) -> u64 {
    layout(o).bytes as u64
}

/// Lowers the structural losses. Pending sums are flushed, because these losses are added to the
/// one that the pixel losses leave in the metrics.
pub(super) fn loss(l: &mut Lowering<'_>, o: &StructuralLoss) -> Result<()> {
    reduce::flush(l)?;
    let workspace = l.workspace(o.workspace)?;
    for term in 0..o.terms.len() {
        for start in (0..o.extent.n).step_by(STRUCTURAL_IMAGES) {
            let count = (o.extent.n - start).min(STRUCTURAL_IMAGES);
            images(l, o, term, start, count)?;
        }
        let continues = if o.slice.first { 0 } else { SLICE_CONTINUES };
        let last = if o.slice.last { SLICE_LAST } else { 0 };
        let arguments = FinishStructuralArguments {
            scores: l.doubles_at(workspace, 8 * term * o.extent.n),
            total: match o.slice.carry {
                Some(carry) => l.doubles_at(carry, 8 * term),
                None => l.doubles_at(workspace, layout(o).totals + 8 * term),
            },
            metrics: l.doubles_at(o.metrics, 0),
            scalars: l.scalars()?,
            images: int(o.extent.n)?,
            flags: continues | last,
            weight: o.terms[term].1,
            of: int(o.slice.of)?,
        };
        l.launch(&FINISH_STRUCTURAL, Shape::of(1, 0), arguments)?;
    }
    Ok(())
}

/// What the launches of one term on a few images have in common.
struct ImageGroup {
    kind: StructuralLossKind,
    weight: f32,
    /// Images of the group.
    count: usize,
    /// Where the RGB of the first image starts in an f32 buffer, bytes.
    first_byte: usize,
    predictions: Predictions,
    planes: Address<f32>,
    partials: Address<f64>,
    scores: Address<f64>,
    factors: Address<f32>,
    /// HR size.
    h: i32,
    w: i32,
    floats_each: i32,
}

/// Lowers one term's scores and gradients of `count` images from `start` on.
fn images(
    l: &mut Lowering<'_>,
    o: &StructuralLoss,
    term: usize,
    start: usize,
    count: usize,
) -> Result<()> {
    let (e, at, workspace) = (o.extent, layout(o), l.workspace(o.workspace)?);
    let (kind, weight) = o.terms[term];
    let (h, w) = (int(e.h)?, int(e.w)?);
    let first_byte = 4 * start * e.h * e.w * 3;
    let (target_bytes, codes, target_floats) = match o.target {
        Target::Subtracted(b) => (
            l.pixels_at(b.buffer, b.hr_of(start)),
            l.codes_at(b.buffer, b.augment_of(start)),
            Address::NULL,
        ),
        Target::Float(buffer) => (
            Address::NULL,
            Address::NULL,
            l.floats_at(buffer, first_byte),
        ),
    };
    let group = ImageGroup {
        kind,
        weight,
        count,
        first_byte,
        predictions: Predictions {
            values: l.floats_at(o.prediction, first_byte),
            target_bytes,
            codes,
            target_floats,
            h,
            w,
        },
        planes: l.floats_at(workspace, at.planes),
        partials: l.doubles_at(workspace, at.partials),
        scores: l.doubles_at(workspace, 8 * (term * e.n + start)),
        factors: l.floats_at(workspace, at.factors),
        h,
        w,
        floats_each: int(floats(kind, e.h, e.w))?,
    };
    make_planes(l, o, &group)?;
    compare_windows(l, o, &group)?;
    gradient(l, o, &group)
}

/// A thread for each pixel of the group's images.
fn a_thread_a_pixel(o: &StructuralLoss, group: &ImageGroup) -> Shape {
    Shape::of(
        (group.count * o.extent.h * o.extent.w).div_ceil(BLOCK_THREADS),
        0,
    )
}

/// s and d of all levels.
fn make_planes(l: &mut Lowering<'_>, o: &StructuralLoss, group: &ImageGroup) -> Result<()> {
    let arguments = StructuralPlanesArguments {
        predictions: group.predictions,
        planes: group.planes,
        images: int(group.count)?,
        floats_each: group.floats_each,
    };
    l.launch(&STRUCTURAL_PLANES, a_thread_a_pixel(o, group), arguments)?;
    let sizes = levels(group.kind, o.extent.h, o.extent.w);
    for (level, (coarse_h, coarse_w)) in sizes.enumerate().skip(1) {
        let arguments = StructuralPoolArguments {
            planes: group.planes,
            h: group.h,
            w: group.w,
            level: int(level)?,
            floats_each: group.floats_each,
        };
        let shape = Shape {
            grid: [
                (coarse_h * coarse_w).div_ceil(BLOCK_THREADS),
                group.count,
                1,
            ],
            shared: 0,
        };
        l.launch(&STRUCTURAL_POOL, shape, arguments)?;
    }
    Ok(())
}

/// Similarity and slopes of all windows, their transposed filter, and the images' scores.
fn compare_windows(l: &mut Lowering<'_>, o: &StructuralLoss, group: &ImageGroup) -> Result<()> {
    let &ImageGroup {
        kind,
        planes,
        partials,
        h,
        w,
        floats_each,
        ..
    } = group;
    let patches = patches(kind, o.extent.h, o.extent.w);
    let a_block_a_patch = |shared| Shape {
        grid: [patches, group.count, 1],
        shared,
    };
    let arguments = StructuralWindowsArguments {
        planes,
        partials,
        h,
        w,
        luminance: (kind == StructuralLossKind::Ssim).into(),
        floats_each,
    };
    let shape = a_block_a_patch(4 * (2 * REACH + 4 * FILTERED));
    l.launch(&STRUCTURAL_WINDOWS, shape, arguments)?;
    let arguments = StructuralSpreadArguments {
        planes,
        h,
        w,
        floats_each,
    };
    let shape = a_block_a_patch(4 * 3 * (REACH + FILTERED));
    l.launch(&STRUCTURAL_SPREAD, shape, arguments)?;
    let arguments = StructuralScoreArguments {
        partials,
        scores: group.scores,
        factors: group.factors,
        scalars: l.scalars()?,
        h,
        w,
        levels: int(level_count(kind))?,
        patches: int(patches)?,
        weight: group.weight,
        of: int(o.slice.of)?,
    };
    let shape = Shape::of(group.count, BLOCK_SUM_BYTES);
    l.launch(&STRUCTURAL_SCORE, shape, arguments)
}

/// The gradient of the prediction.
fn gradient(l: &mut Lowering<'_>, o: &StructuralLoss, group: &ImageGroup) -> Result<()> {
    let arguments = StructuralGradientArguments {
        predictions: group.predictions,
        d_prediction: l.floats_at(o.d_prediction, group.first_byte),
        planes: group.planes,
        factors: group.factors,
        images: int(group.count)?,
        levels: int(level_count(group.kind))?,
        floats_each: group.floats_each,
    };
    l.launch(&STRUCTURAL_GRADIENT, a_thread_a_pixel(o, group), arguments)
}
