//! Lowering of the structural losses (SSIM, MS-SSIM), a group of images at a time, and of the pixel
//! losses that they compute on their way: kernels/structural.cu. Depends on the lowering's state,
//! the sums and the pixel losses.

use super::arguments::Address;
use super::constants::{
    BLOCK_THREADS, LEVELS, PATCH_H, PATCH_W, REACH_H, REACH_ROW, SLOPES, WINDOW,
};
use super::launch::Shape;
use super::limits::STRUCTURAL_FLOATS;
use super::lowering::{Lowering, int};
use super::pixels::{self, LossTerms};
use super::reduce::{self, BLOCK_SUM_BYTES, LossSum};
use super::signatures::{
    Predictions, STRUCTURAL_POOL, STRUCTURAL_SCORE, STRUCTURAL_SPREAD, STRUCTURAL_SPREAD_LOSSES,
    STRUCTURAL_WINDOWS, StructuralPoolArguments, StructuralScoreArguments,
    StructuralSpreadArguments, StructuralWindowsArguments,
};
use crate::plan::{Extent, PixelLoss, StructuralLoss, StructuralLossKind, Target};
use anyhow::Result;

/// Bytes of shared memory for a plane of the pixels that the windows on a block's pixels reach.
const REACH_BYTES: usize = 4 * REACH_H * REACH_ROW;
/// Bytes of shared memory for a sum of each warp, as two f32.
const WARP_BYTES: usize = 8 * BLOCK_THREADS / 32;

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

/// Blocks that a level of `h` x `w` pixels takes.
fn level_patches((h, w): (usize, usize)) -> usize {
    h.div_ceil(PATCH_H) * w.div_ceil(PATCH_W)
}

/// Blocks that the finest level of images of HR size takes.
pub(super) fn patches_of(e: Extent) -> usize {
    e.n * level_patches((e.h, e.w))
}

/// Blocks that write shares of a loss.
pub(super) fn finest_patches(o: &StructuralLoss) -> usize {
    patches_of(o.extent)
}

/// Windows on an image; one smaller than a window has a border of half a window.
fn windows(h: usize, w: usize) -> usize {
    let border = if h.min(w) < WINDOW { WINDOW - 1 } else { 0 };
    (h + border + 1 - WINDOW) * (w + border + 1 - WINDOW)
}

/// The numbers of a term, and where its workspace has what, in bytes from its start. The terms use
/// it one after another, and so do a term's groups of images; all add to the shares.
struct Layout {
    /// Images of a group.
    images: usize,
    /// Blocks that an image takes, in all its levels.
    patches: usize,
    /// f32 values of an image: slopes of all levels, and of the coarser ones s, d and gradient.
    floats: usize,
    /// Those of a group. The shares of all blocks in the loss, where the pixel losses do not keep
    /// them, are ahead of these.
    start: usize,
    factors: usize,
    partials: usize,
    scores: usize,
    bytes: usize,
}

fn layout(e: Extent, kind: StructuralLossKind) -> Layout {
    let patches: usize = levels(kind, e.h, e.w).map(level_patches).sum();
    let coarser = levels(kind, e.h, e.w).skip(1);
    let floats = patches * SLOPES + coarser.map(|(h, w)| 3 * h * w).sum::<usize>();
    let images = (STRUCTURAL_FLOATS / floats).clamp(1, e.n.max(1));
    let start = (8 * patches_of(e)).next_multiple_of(256);
    let factors = start + 4 * images * floats;
    let partials = (factors + 4 * images * LEVELS).next_multiple_of(8);
    let scores = partials + 8 * images * patches;
    Layout {
        images,
        patches,
        floats,
        start,
        factors,
        partials,
        scores,
        bytes: scores + 8 * images,
    }
}

/// Bytes of the workspace: what a group of images needs, and a share for every block.
pub(super) fn workspace(o: &StructuralLoss) -> u64 {
    let bytes = |&(kind, _): &(StructuralLossKind, f32)| layout(o.extent, kind).bytes as u64;
    o.terms.iter().map(bytes).max().unwrap_or(0)
}

/// Lowers the structural losses. With `pixel` they compute those pixel losses first, and leave all
/// shares in the loss where that operation adds them up; else they add to what the pixel losses
/// left, in the gradient and in the metrics.
pub(super) fn loss(
    l: &mut Lowering<'_>,
    o: &StructuralLoss,
    pixel: Option<&PixelLoss>,
) -> Result<()> {
    let workspace = l.workspace(o.workspace)?;
    for term in 0..o.terms.len() {
        let layout = layout(o.extent, o.terms[term].0);
        for start in (0..o.extent.n).step_by(layout.images) {
            let count = (o.extent.n - start).min(layout.images);
            Group::new(l, o, pixel, term, start, count)?.lower(l)?;
        }
    }
    if pixel.is_some() {
        return Ok(());
    }
    // the blocks have written shares of the mean
    let counts = (1, finest_patches(o));
    let sum = LossSum::new(l, workspace, o.slice.carry, o.metrics, counts);
    reduce::add_loss(l, &sum, o.slice)
}

/// One term on a few images.
struct Group<'a> {
    o: &'a StructuralLoss,
    pixel: Option<&'a PixelLoss>,
    /// Number of the term.
    term: usize,
    layout: Layout,
    /// Images of the group.
    count: usize,
    predictions: Predictions,
    d_prediction: Address<f32>,
    floats: Address<f32>,
    factors: Address<f32>,
    partials: Address<f64>,
    scores: Address<f64>,
    shares: Address<f64>,
}

impl<'a> Group<'a> {
    /// `count` images from `start` on.
    fn new(
        l: &Lowering<'_>,
        o: &'a StructuralLoss,
        pixel: Option<&'a PixelLoss>,
        term: usize,
        start: usize,
        count: usize,
    ) -> Result<Group<'a>> {
        let (e, workspace) = (o.extent, l.workspace(o.workspace)?);
        let layout = layout(e, o.terms[term].0);
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
        let shares = match pixel {
            Some(pixel) => l.workspace(pixel.workspace)?,
            None => workspace,
        };
        Ok(Group {
            o,
            pixel,
            term,
            count,
            predictions: Predictions {
                values: l.floats_at(o.prediction, first_byte),
                target_bytes,
                codes,
                target_floats,
                h: int(e.h)?,
                w: int(e.w)?,
            },
            d_prediction: l.floats_at(o.d_prediction, first_byte),
            floats: l.floats_at(workspace, layout.start),
            factors: l.floats_at(workspace, layout.factors),
            partials: l.doubles_at(workspace, layout.partials),
            scores: l.doubles_at(workspace, layout.scores),
            shares: l.doubles_at(shares, 8 * start * level_patches((e.h, e.w))),
            layout,
        })
    }

    fn kind(&self) -> StructuralLossKind {
        self.o.terms[self.term].0
    }

    /// A block for each of `patches` patches of every image.
    fn a_block_a_patch(&self, patches: usize, shared: usize) -> Shape {
        Shape {
            grid: [patches, self.count, 1],
            shared,
        }
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        // the kernels count the floats of a group in an int
        int(self.count * self.layout.floats)?;
        self.pool(l)?;
        self.compare_windows(l)?;
        let finest = level_patches((self.o.extent.h, self.o.extent.w));
        if self.kind() == StructuralLossKind::MultiScale {
            self.score(l)?;
            self.spread(l, finest, self.layout.patches - finest)?;
        }
        self.spread(l, 0, finest)
    }

    /// s and d of the coarser levels.
    fn pool(&self, l: &mut Lowering<'_>) -> Result<()> {
        let sizes = levels(self.kind(), self.o.extent.h, self.o.extent.w);
        for (level, (h, w)) in sizes.enumerate().skip(1) {
            let arguments = StructuralPoolArguments {
                predictions: self.predictions,
                floats: self.floats,
                level: int(level)?,
                floats_each: int(self.layout.floats)?,
            };
            let blocks = (h * w).div_ceil(BLOCK_THREADS);
            l.launch(&STRUCTURAL_POOL, self.a_block_a_patch(blocks, 0), arguments)?;
        }
        Ok(())
    }

    /// Similarity and slopes of all windows.
    fn compare_windows(&self, l: &mut Lowering<'_>) -> Result<()> {
        let arguments = StructuralWindowsArguments {
            predictions: self.predictions,
            floats: self.floats,
            partials: self.partials,
            luminance: (self.kind() == StructuralLossKind::Ssim).into(),
            floats_each: int(self.layout.floats)?,
        };
        let shared = 4 * REACH_BYTES + WARP_BYTES;
        let shape = self.a_block_a_patch(self.layout.patches, shared);
        l.launch(&STRUCTURAL_WINDOWS, shape, arguments)
    }

    /// The scores of MS-SSIM, and the factors of the levels' gradients.
    fn score(&self, l: &mut Lowering<'_>) -> Result<()> {
        let arguments = StructuralScoreArguments {
            partials: self.partials,
            scores: self.scores,
            factors: self.factors,
            scalars: l.scalars()?,
            h: self.predictions.h,
            w: self.predictions.w,
            levels: int(level_count(self.kind()))?,
            patches: int(self.layout.patches)?,
            weight: self.o.terms[self.term].1,
            of: int(self.o.slice.of)?,
        };
        let shape = Shape::of(self.count, 2 * BLOCK_SUM_BYTES);
        l.launch(&STRUCTURAL_SCORE, shape, arguments)
    }

    /// The transposed filter of `patches` patches from `first` on, all of the finest level or all of
    /// the coarser ones; at the finest level also the gradient of the prediction and the shares.
    fn spread(&self, l: &mut Lowering<'_>, first: usize, patches: usize) -> Result<()> {
        let (e, (kind, weight)) = (self.o.extent, self.o.terms[self.term]);
        let of_image = f64::from(weight) / self.o.slice.of as f64;
        let single = kind == StructuralLossKind::Ssim;
        let with_pixels = self.pixel.filter(|_| self.term == 0 && first == 0);
        let (terms, per_value) = match with_pixels {
            Some(pixel) => {
                let terms = pixels::loss_terms(pixel)?;
                let per_value = 1.0 / f64::from(terms.whole);
                (terms, per_value)
            }
            None => (LossTerms::default(), 0.0),
        };
        let arguments = StructuralSpreadArguments {
            predictions: self.predictions,
            d_prediction: self.d_prediction,
            floats: self.floats,
            partials: self.partials,
            scores: if single { Address::NULL } else { self.scores },
            factors: if single { Address::NULL } else { self.factors },
            shares: self.shares,
            scalars: l.scalars()?,
            share: if single {
                of_image / windows(e.h, e.w) as f64
            } else {
                of_image
            },
            slope: -of_image,
            per_value,
            first: int(first)?,
            floats_each: int(self.layout.floats)?,
            adds: (self.term > 0).into(),
            l1: terms.l1,
            charbonnier: terms.charbonnier,
            mse: terms.mse,
        };
        let shared = 3 * REACH_BYTES + 8 + WARP_BYTES;
        let kernel = match with_pixels {
            Some(_) => &STRUCTURAL_SPREAD_LOSSES,
            None => &STRUCTURAL_SPREAD,
        };
        l.launch(kernel, self.a_block_a_patch(patches, shared), arguments)
    }
}
