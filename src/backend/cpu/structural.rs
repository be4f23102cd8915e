//! The structural losses of one image on the CPU: SSIM (Wang, Bovik, Sheikh, Simoncelli 2004) and
//! MS-SSIM (Wang, Simoncelli, Bovik 2003), with the gradient with respect to the prediction. Plain
//! functions over slices; they depend on `simd` for the choice of the instruction set
//! alone. They allocate nothing and give the same bits for the same image on every instruction set.
//!
//! Every image of a batch is scored by itself, so a caller may score images on any threads. With
//! `slope = -weight / batch` the gradient of each image is its share of the gradient of the batch's
//! loss, and [`loss`] of the mean of the scores, summed in a fixed order, is the batch's loss. (The
//! clamp inside [`loss`] never changes a mean of scores in 0..=1, so it does not couple the
//! images.)
//!
//! The definitions are those of the common training frameworks: both images are clamped to [0, 1],
//! the luma is that of BT.601, the window is an 11x11 Gaussian of deviation 1.5, C1 = 1e-4, C2 =
//! 9e-4, and contrast-structure is never below 0. Windows lie inside the image. A level that is
//! smaller than a window gets a border of zeros, and windows reach into it. MS-SSIM halves the luma
//! four times by 2x2 means; an image of odd size gets a row or column of zeros in front, and these
//! zeros count in the means.
//!
//! The arithmetic uses s = x + y - 1 and d = x - y of the two lumas x and y. With the variances of
//! these, cs = 1 - 2 var_d / (var_s + var_d + 2 C2): the distance from 1, which is small and
//! matters, is computed from small numbers without cancellation. f32 is therefore precise enough,
//! and four filtered fields suffice in place of five.

mod window;

use super::simd::{Kernel, Simd};
use crate::backend::formulas::{LUMA, MS_SSIM_EXPONENTS as EXPONENTS};
use crate::plan::MAX_SIDE;
use crate::support::isa::Isa;
use anyhow::{Result, ensure};
use window::Frame;

/// The value of s outside the image, where both lumas are 0.
const OUTSIDE_SUM: f32 = -1.0;

/// A structural similarity of two images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Similarity {
    /// Mean SSIM of the luma: luminance times contrast-structure. The loss `ssimloss` is 1 - this.
    Ssim,
    /// Multi-scale SSIM of the luma. The loss `mssimloss` is 1 - this.
    MultiScale {
        /// Multiplies the luminance term into the last, coarsest level; off by default in the
        /// frameworks.
        luminance: bool,
    },
}

impl Similarity {
    /// Exponents of the levels, finest first.
    fn exponents(self) -> &'static [f64] {
        match self {
            Similarity::Ssim => &[1.0],
            Similarity::MultiScale { .. } => &EXPONENTS,
        }
    }

    /// Whether `level` includes the luminance term.
    fn has_luminance(self, level: usize) -> bool {
        match self {
            Similarity::Ssim => true,
            Similarity::MultiScale { luminance } => luminance && level + 1 == EXPONENTS.len(),
        }
    }
}

/// One resolution: its size and the place of its three planes (s, d, gradient) in the scratch.
#[derive(Clone, Copy, Default)]
struct Level {
    h: usize,
    w: usize,
    /// Width of the border of zeros around the image in its planes: 0, or half a window if the
    /// image is smaller than a window.
    pad: usize,
    frame: Frame,
    /// First float of the planes in the scratch.
    start: usize,
}

impl Level {
    fn new(h: usize, w: usize, start: usize) -> Level {
        let pad = if h.min(w) < window::TAPS {
            window::TAPS / 2
        } else {
            0
        };
        Level {
            h,
            w,
            pad,
            frame: Frame::new(h + 2 * pad, w + 2 * pad),
            start,
        }
    }

    /// The float after the last one of the planes.
    fn end(&self) -> usize {
        self.start + 3 * self.frame.floats()
    }

    /// Index in a plane of pixel (y, 0) of the image.
    fn row(&self, y: usize) -> usize {
        (y + self.pad) * self.frame.stride + self.pad
    }
}

/// The levels of an h x w image, neither of which is 0, and the number of floats of all planes. The
/// work space follows the planes in the scratch.
fn levels(kind: Similarity, h: usize, w: usize) -> ([Level; EXPONENTS.len()], usize) {
    let mut all = [Level::default(); EXPONENTS.len()];
    let (mut h, mut w, mut floats) = (h, w, 0);
    for level in &mut all[..kind.exponents().len()] {
        *level = Level::new(h, w, floats);
        floats = level.end();
        (h, w) = (h.div_ceil(2), w.div_ceil(2));
    }
    (all, floats)
}

fn check_size(h: usize, w: usize) -> Result<()> {
    ensure!(
        (1..=MAX_SIDE).contains(&h) && (1..=MAX_SIDE).contains(&w),
        "an image of {h}x{w} pixels has no structural similarity: both sizes must be 1 to {MAX_SIDE}"
    );
    Ok(())
}

/// Floats of scratch that one image of `h` x `w` pixels needs in [`score`] and
/// [`score_and_gradient`].
///
/// # Errors
/// If a size is 0 or above [`MAX_SIDE`].
pub fn scratch_floats(kind: Similarity, h: usize, w: usize) -> Result<usize> {
    check_size(h, w)?;
    Ok(scratch_floats_of(kind, h, w))
}

/// As [`scratch_floats`], for sizes that were checked.
pub(super) fn scratch_floats_of(kind: Similarity, h: usize, w: usize) -> usize {
    let (all, floats) = levels(kind, h, w);
    // The padded coarse levels of a thin image may be wider than the finest, so the maximum is
    // taken. Two rows of pixels are needed before and after the levels.
    let work = all
        .iter()
        .map(|level| level.frame.work_floats())
        .max()
        .unwrap_or(0);
    floats + work.max(6 * w)
}

/// The loss of a batch, from the mean of the scores of its images.
pub fn loss(mean_score: f64) -> f64 {
    1.0 - mean_score.clamp(0.0, 1.0)
}

/// The similarity in 0..=1 of one image of `h` x `w` pixels. `rows(y, difference, target)` fills in
/// row y of two images, RGB `[w, 3]` each: the prediction (not clamped) less the target, and the
/// target in 0..=1. It is called for all rows in order. (A difference made of exact numbers keeps
/// bits that the prediction itself cannot hold.) `scratch` has [`scratch_floats`] floats of any
/// content. A NaN in a row gives NaN.
///
/// # Errors
/// If a size is 0 or above [`MAX_SIDE`], or the scratch is too short.
pub fn score(
    isa: Isa,
    kind: Similarity,
    rows: impl FnMut(usize, &mut [f32], &mut [f32]),
    (h, w): (usize, usize),
    scratch: &mut [f32],
) -> Result<f64> {
    check_size(h, w)?;
    check_scratch(kind, h, w, scratch)?;
    Ok(Evaluation::<_, false> {
        kind,
        rows,
        size: (h, w),
        slope: 0.0,
        gradient: &mut [],
        scratch,
    }
    .run(isa))
}

/// As [`score`], and adds `slope` times the gradient of the score with respect to the prediction to
/// `gradient` `[h, w, 3]`; `rows` is called for all rows a second time. As in PyTorch's clamp, the
/// gradient is 0 where the prediction lies outside [0, 1], and passes on the limits themselves. If
/// the mean of a level is exactly 0, the score is 0 and so is the whole gradient (its true limit is
/// infinite or undefined).
///
/// # Errors
/// Those of [`score`], and a gradient that is not `h * w * 3` long.
pub fn score_and_gradient(
    isa: Isa,
    kind: Similarity,
    rows: impl FnMut(usize, &mut [f32], &mut [f32]),
    (h, w): (usize, usize),
    slope: f64,
    gradient: &mut [f32],
    scratch: &mut [f32],
) -> Result<f64> {
    check_size(h, w)?;
    check_scratch(kind, h, w, scratch)?;
    ensure!(
        gradient.len() == h * w * 3,
        "a gradient of {} values for an image of {h}x{w} pixels of 3",
        gradient.len()
    );
    Ok(Evaluation::<_, true> {
        kind,
        rows,
        size: (h, w),
        slope,
        gradient,
        scratch,
    }
    .run(isa))
}

fn check_scratch(kind: Similarity, h: usize, w: usize, scratch: &[f32]) -> Result<()> {
    let needed = scratch_floats_of(kind, h, w);
    ensure!(
        scratch.len() >= needed,
        "a scratch of {} floats where {needed} are needed",
        scratch.len()
    );
    Ok(())
}

/// One call of [`score`] or, if `GRADIENT`, [`score_and_gradient`], whose arguments the fields are.
/// Sizes and lengths were checked.
pub(super) struct Evaluation<'a, R, const GRADIENT: bool> {
    pub kind: Similarity,
    pub rows: R,
    /// Height and width.
    pub size: (usize, usize),
    pub slope: f64,
    /// `[h, w, 3]`; empty without `GRADIENT`.
    pub gradient: &'a mut [f32],
    pub scratch: &'a mut [f32],
}

impl<R: FnMut(usize, &mut [f32], &mut [f32]), const GRADIENT: bool> Evaluation<'_, R, GRADIENT> {
    /// Runs it with an instruction set and returns the score; all sets give the same bits.
    pub fn run(self, isa: Isa) -> f64 {
        let mut score = 0.0;
        isa.run(EvaluationKernel {
            evaluation: self,
            score: &mut score,
        });
        score
    }

    // Everything from here on is inlined into `Isa::run`, so that the compiler vectorises it for
    // the instruction set.

    #[inline(always)]
    fn evaluate(mut self) -> f64 {
        let (h, w) = self.size;
        let (all, floats) = levels(self.kind, h, w);
        let exponents = self.kind.exponents();
        let all = &all[..exponents.len()];
        let (planes, work) = self.scratch.split_at_mut(floats);

        fill_finest(&all[0], &mut self.rows, planes, &mut work[..6 * w]);
        let mut means = [0f64; EXPONENTS.len()];
        for (i, level) in all.iter().enumerate() {
            if i > 0 {
                pool(&all[i - 1], level, planes);
            }
            let (s, d, gradient) = split(&mut planes[level.start..], level.frame.floats());
            let luminance = self.kind.has_luminance(i);
            let distance =
                window::distance::<GRADIENT>(&level.frame, s, d, luminance, gradient, work);
            let mean = 1.0 - distance;
            means[i] = if mean < 0.0 { 0.0 } else { mean }; // rounding; a NaN stays
        }
        let score: f64 = means
            .iter()
            .zip(exponents)
            .map(|(mean, e)| mean.powf(*e))
            .product();
        if !GRADIENT {
            return score;
        }

        for (i, level) in all.iter().enumerate().rev() {
            let own = if score > 0.0 {
                self.slope * exponents[i] * score / means[i]
            } else {
                0.0
            };
            gather(level, own as f32, all.get(i + 1), planes);
        }
        let level = &all[0];
        let (_, _, gradient) = split(planes, level.frame.floats());
        let (difference, target) = work[..6 * w].split_at_mut(3 * w);
        for (y, out) in self.gradient.chunks_exact_mut(3 * w).enumerate() {
            (self.rows)(y, difference, target);
            add_luma_gradient(&gradient[level.row(y)..][..w], difference, target, out);
        }
        score
    }
}

/// An [`Evaluation`] to be compiled for every instruction set.
struct EvaluationKernel<'a, 'b, R, const GRADIENT: bool> {
    evaluation: Evaluation<'a, R, GRADIENT>,
    score: &'b mut f64,
}

impl<R: FnMut(usize, &mut [f32], &mut [f32]), const GRADIENT: bool> Kernel
    for EvaluationKernel<'_, '_, R, GRADIENT>
{
    #[inline(always)]
    fn run<S: Simd>(self) {
        *self.score = self.evaluation.evaluate();
    }
}

/// The chain rule through luma and clamp for one row: adds the gradient of the RGB prediction to
/// `out` `[w, 3]`, from the gradient of the luma `[w]`.
#[inline(always)]
fn add_luma_gradient(gradient: &[f32], difference: &[f32], target: &[f32], out: &mut [f32]) {
    let pixels = difference.chunks_exact(3).zip(target.chunks_exact(3));
    for ((out, (d, t)), g) in out.chunks_exact_mut(3).zip(pixels).zip(gradient) {
        for c in 0..3 {
            let passes = (d[c] >= -t[c]) & (d[c] <= 1.0 - t[c]);
            out[c] += if passes { LUMA[c] * g } else { 0.0 };
        }
    }
}

/// The planes s, d and gradient of a level that begins at `planes[0]`.
#[inline(always)]
fn split(planes: &mut [f32], floats: usize) -> (&mut [f32], &mut [f32], &mut [f32]) {
    let (s, rest) = planes.split_at_mut(floats);
    let (d, rest) = rest.split_at_mut(floats);
    (s, d, &mut rest[..floats])
}

/// Fills s and d of the finest level from the rows of the images, clamped and converted to luma.
/// `room` holds one row of each image.
#[inline(always)]
fn fill_finest(
    level: &Level,
    rows: &mut impl FnMut(usize, &mut [f32], &mut [f32]),
    planes: &mut [f32],
    room: &mut [f32],
) {
    let (difference, target) = room.split_at_mut(3 * level.w);
    let (s, d, _) = split(planes, level.frame.floats());
    s.fill(OUTSIDE_SUM);
    d.fill(0.0);
    for y in 0..level.h {
        let at = level.row(y);
        rows(y, difference, target);
        combine(
            difference,
            target,
            &mut s[at..][..level.w],
            &mut d[at..][..level.w],
        );
    }
}

/// Computes s and d `[w]` of one row of pixels `[w, 3]`.
#[inline(always)]
fn combine(difference: &[f32], target: &[f32], s: &mut [f32], d: &mut [f32]) {
    let pairs = difference.chunks_exact(3).zip(target.chunks_exact(3));
    for ((v, t), (s, d)) in pairs.zip(s.iter_mut().zip(d.iter_mut())) {
        let (mut sum, mut difference) = (OUTSIDE_SUM, 0.0);
        for c in 0..3 {
            // The difference of the clamped prediction. Comparisons keep a NaN; min and max would
            // not.
            let (v, low, high) = (v[c], -t[c], 1.0 - t[c]);
            let v = if v < low { low } else { v };
            let v = if v > high { high } else { v };
            sum += LUMA[c] * (2.0 * t[c] + v);
            difference += LUMA[c] * v;
        }
        (*s, *d) = (sum, difference);
    }
}

/// Writes the 2x2 means of `fine` to `coarse`. With an odd size the first cell begins one row or
/// column before the image; the zeros there count in the mean.
#[inline(always)]
fn pool(fine: &Level, coarse: &Level, planes: &mut [f32]) {
    let (fine_planes, coarse_planes) = planes.split_at_mut(coarse.start);
    let (s, d, _) = split(&mut fine_planes[fine.start..], fine.frame.floats());
    let (coarse_s, coarse_d, _) = split(coarse_planes, coarse.frame.floats());
    let (odd_y, odd_x) = (fine.h % 2, fine.w % 2);
    for (from, to, outside) in [(s, coarse_s, OUTSIDE_SUM), (d, coarse_d, 0.0)] {
        to.fill(outside);
        for y in 0..coarse.h {
            let row = |y: usize| (y >= odd_y).then(|| &from[fine.row(y - odd_y)..][..fine.w]);
            let (upper, lower) = (row(2 * y), row(2 * y + 1));
            let (upper, lower) = (upper.unwrap_or(&[]), lower.unwrap_or(&[]));
            let out = &mut to[coarse.row(y)..][..coarse.w];
            if odd_x == 0 && upper.len() == lower.len() {
                for ((out, a), b) in out
                    .iter_mut()
                    .zip(upper.chunks_exact(2))
                    .zip(lower.chunks_exact(2))
                {
                    *out = 0.25 * ((a[0] + a[1]) + (b[0] + b[1]));
                }
                continue;
            }
            let at = |row: &[f32], x: usize| {
                if x >= odd_x {
                    row.get(x - odd_x).copied().unwrap_or(outside)
                } else {
                    outside
                }
            };
            for (x, out) in out.iter_mut().enumerate() {
                let (a, b) = (2 * x, 2 * x + 1);
                *out = 0.25 * ((at(upper, a) + at(upper, b)) + (at(lower, a) + at(lower, b)));
            }
        }
    }
}

/// Turns the gradient of a level's mean into the gradient of the whole score, in place: `own` times
/// the level's gradient, plus a quarter of the finished gradient of the coarser pixel into which
/// the pixel was pooled.
#[inline(always)]
fn gather(level: &Level, own: f32, coarser: Option<&Level>, planes: &mut [f32]) {
    let (planes, after) = planes.split_at_mut(level.end());
    let (_, _, gradient) = split(&mut planes[level.start..], level.frame.floats());
    for y in 0..level.h {
        let row = &mut gradient[level.row(y)..][..level.w];
        let Some(coarser) = coarser else {
            row.iter_mut().for_each(|g| *g *= own);
            continue;
        };
        let start = 2 * coarser.frame.floats() + coarser.row((y + level.h % 2) / 2);
        let from = &after[start..][..coarser.w];
        if level.w.is_multiple_of(2) {
            for (pair, g) in row.chunks_exact_mut(2).zip(from) {
                pair[0] = own * pair[0] + 0.25 * g;
                pair[1] = own * pair[1] + 0.25 * g;
            }
        } else {
            for (x, out) in row.iter_mut().enumerate() {
                *out = own * *out + 0.25 * from[x.div_ceil(2)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (h, w) = (37, 90);
        let image = |seed: u64| -> Vec<f32> {
            let mut rng = crate::support::rng::Rng::new(&[seed]);
            (0..h * w * 3)
                .map(|_| rng.range(-0.1, 1.1) as f32)
                .collect()
        };
        let (pred, target) = (image(1), image(2));
        let rows = |y: usize, difference: &mut [f32], row: &mut [f32]| {
            row.copy_from_slice(&target[y * w * 3..][..w * 3]);
            difference
                .iter_mut()
                .zip(&pred[y * w * 3..])
                .zip(row)
                .for_each(|((d, p), t)| *d = p - *t);
        };
        for kind in [Similarity::Ssim, Similarity::MultiScale { luminance: true }] {
            let mut scratch = vec![0.0; scratch_floats(kind, h, w).unwrap()];
            let mut results = vec![];
            for isa in Isa::available() {
                let mut gradient = vec![0.0f32; pred.len()];
                let score =
                    score_and_gradient(isa, kind, rows, (h, w), 0.7, &mut gradient, &mut scratch)
                        .unwrap();
                results.push((
                    score.to_bits(),
                    gradient.iter().map(|g| g.to_bits()).collect::<Vec<_>>(),
                ));
            }
            assert!(results.iter().all(|r| *r == results[0]));
        }
    }
}
