//! Lowering of the structural losses (SSIM, MS-SSIM), a few images' planes at a time:
//! kernels/structural.cu.

use super::launch::{Arg, Lowering, int};
use super::sizing::STRUCTURAL_IMAGES;
use crate::plan::{StructuralLoss, StructuralLossKind, Target};
use anyhow::Result;

/// Pixels that a block takes: rows, columns.
const PATCH: (usize, usize) = (16, 32);
/// And what the windows on them reach.
const REACH: usize = (PATCH.0 + 10) * (PATCH.1 + 10);
/// Planes of a level: s, d, gradient, three slopes.
const PLANES: usize = 6;
const LEVELS: usize = 5;

fn level_count(kind: StructuralLossKind) -> usize {
    match kind {
        StructuralLossKind::Ssim => 1,
        StructuralLossKind::MultiScale => LEVELS,
    }
}

/// Sizes of the levels of an image.
fn levels(kind: StructuralLossKind, h: usize, w: usize) -> impl Iterator<Item = (usize, usize)> {
    std::iter::successors(Some((h, w)), |&(h, w)| Some((h.div_ceil(2), w.div_ceil(2))))
        .take(level_count(kind))
}

/// The workspace of an operation, in bytes from its start: a score for every image of every term, a
/// total for every term, the partial sums of the images at work, their factors, their planes. Terms
/// take turns in the last three.
struct Layout {
    totals: usize,
    partials: usize,
    factors: usize,
    planes: usize,
    bytes: usize,
}

fn patches(kind: StructuralLossKind, h: usize, w: usize) -> usize {
    levels(kind, h, w)
        .map(|(h, w)| h.div_ceil(PATCH.0) * w.div_ceil(PATCH.1))
        .sum()
}

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

/// See [`Layout`].
pub(super) fn workspace(o: &StructuralLoss) -> u64 {
    layout(o).bytes as u64
}

pub(super) fn loss(l: &mut Lowering<'_>, o: &StructuralLoss) -> Result<()> {
    // it adds to the loss that the pixel losses leave
    l.add_up()?;
    let workspace = l.workspace(o.workspace)?;
    for term in 0..o.terms.len() {
        for start in (0..o.extent.n).step_by(STRUCTURAL_IMAGES) {
            images(
                l,
                o,
                term,
                start,
                (o.extent.n - start).min(STRUCTURAL_IMAGES),
            )?;
        }
        let total = match o.slice.carry {
            Some(carry) => l.at_bytes(carry, 8 * term),
            None => l.at_bytes(workspace, layout(o).totals + 8 * term),
        };
        let flags = i32::from(!o.slice.first) | i32::from(o.slice.last) << 1;
        let mut args = vec![
            l.at_bytes(workspace, 8 * term * o.extent.n),
            total,
            l.at(o.metrics),
            int(o.extent.n)?,
            Arg::Int(flags),
        ];
        args.extend([Arg::Float(o.terms[term].1), int(o.slice.of)?, l.scalars()?]);
        l.launch("finish_structural", [1, 1, 1], 32, 0, args)?;
    }
    Ok(())
}

/// One term of `count` images from `start` on.
fn images(
    l: &mut Lowering<'_>,
    o: &StructuralLoss,
    term: usize,
    start: usize,
    count: usize,
) -> Result<()> {
    let (e, at, workspace) = (o.extent, layout(o), l.workspace(o.workspace)?);
    let (kind, weight) = o.terms[term];
    let (h, w, each) = (int(e.h)?, int(e.w)?, int(floats(kind, e.h, e.w))?);
    let before = 4 * start * e.h * e.w * 3;
    let (bytes, codes, target) = match o.target {
        Target::Subtracted(b) => (
            l.at_bytes(b.buffer, b.hr_of(start)),
            l.at_bytes(b.buffer, b.augment_of(start)),
            Arg::Null,
        ),
        Target::Float(buffer) => (Arg::Null, Arg::Null, l.at_bytes(buffer, before)),
    };
    let (prediction, d_prediction) = (
        l.at_bytes(o.prediction, before),
        l.at_bytes(o.d_prediction, before),
    );
    let (planes, partials) = (
        l.at_bytes(workspace, at.planes),
        l.at_bytes(workspace, at.partials),
    );
    let (scores, factors) = (
        l.at_bytes(workspace, 8 * (term * e.n + start)),
        l.at_bytes(workspace, at.factors),
    );
    let pixels = [(count * e.h * e.w).div_ceil(256), 1, 1];
    let args = vec![
        prediction,
        bytes,
        codes,
        target,
        planes,
        int(count)?,
        h,
        w,
        each,
    ];
    l.launch("structural_planes", pixels, 256, 0, args)?;
    for (level, (coarse_h, coarse_w)) in levels(kind, e.h, e.w).enumerate().skip(1) {
        l.launch(
            "structural_pool",
            [(coarse_h * coarse_w).div_ceil(256), count, 1],
            256,
            0,
            vec![planes, h, w, int(level)?, each],
        )?;
    }
    let patches = patches(kind, e.h, e.w);
    let luminance = Arg::Int((kind == StructuralLossKind::Ssim).into());
    let along = (PATCH.0 + 10) * PATCH.1;
    l.launch(
        "structural_windows",
        [patches, count, 1],
        256,
        4 * (2 * REACH + 4 * along),
        vec![planes, partials, h, w, luminance, each],
    )?;
    l.launch(
        "structural_spread",
        [patches, count, 1],
        256,
        4 * 3 * (REACH + along),
        vec![planes, h, w, each],
    )?;
    let mut args = vec![
        partials,
        scores,
        factors,
        h,
        w,
        int(level_count(kind))?,
        int(patches)?,
    ];
    args.extend([Arg::Float(weight), int(o.slice.of)?, l.scalars()?]);
    l.launch("structural_score", [count, 1, 1], 256, 256 * 8, args)?;
    let args = vec![
        prediction,
        bytes,
        codes,
        target,
        d_prediction,
        planes,
        factors,
        int(count)?,
        h,
        w,
        int(level_count(kind))?,
        each,
    ];
    l.launch("structural_gradient", pixels, 256, 0, args)
}
