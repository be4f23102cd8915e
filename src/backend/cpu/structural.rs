//! The structural losses, SSIM (Wang, Bovik, Sheikh, Simoncelli 2004) and MS-SSIM (Wang,
//! Simoncelli, Bovik 2003), of one image on the CPU, with the gradient with respect to the
//! prediction. Pure functions over slices that depend on nothing; they allocate nothing, and
//! promise the same bits for the same image whatever the machine's vector width.
//!
//! Every image of a batch is scored by itself, so a caller may run images on any threads: with
//! `slope = -weight / batch` each image's gradient is its share of the batch's loss, and [`loss`]
//! of the scores' mean, summed in a fixed order, is the batch's loss. (The clamp inside it cannot
//! act on a mean of scores that lie in 0..=1, so nothing couples the images.)
//!
//! The definitions are those users of the common frameworks have: both images clamped to [0, 1],
//! luma of BT.601, an 11x11 Gaussian of deviation 1.5, C1 = 1e-4, C2 = 9e-4, contrast-structure
//! never below 0. Windows lie inside the image, or, where a level is smaller than a window, reach
//! into a border of zeros. MS-SSIM halves the luma four times by 2x2 means; an odd size gets a row
//! or column of zeros in front, which counts.
//!
//! The arithmetic works on s = x + y - 1 and d = x - y of the two lumas instead of on x and y. With
//! variances of those, cs = 1 - 2 var_d / (var_s + var_d + 2 C2): what is small and matters, the
//! distance from 1, is computed from small numbers without cancellation, so that f32 suffices, and
//! four filters do instead of five.

mod window;

use crate::backend::formulas::{LUMA, MS_SSIM_EXPONENTS as EXPONENTS};
use crate::support::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::support::isa::Set;
use window::Frame;

/// What s is where both images are 0: outside the image.
const OUTSIDE_SUM: f32 = -1.0;

/// Which structural similarity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Similarity {
    /// Mean SSIM of the luma: luminance times contrast-structure. The loss `ssimloss` is 1 - this.
    Ssim,
    /// Multi-scale SSIM of the luma, the loss `mssimloss` is 1 - this. `luminance` (off by default
    /// in the frameworks) multiplies the luminance term into the last, coarsest level.
    MultiScale { luminance: bool },
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

/// One resolution: its size, and its three planes (s, d, gradient) one after another in the
/// scratch.
#[derive(Clone, Copy, Default)]
struct Level {
    h: usize,
    w: usize,
    /// Width of the border of zeros around the image in its planes: 0, or half a window where the
    /// image is too small.
    pad: usize,
    frame: Frame,
    /// Where the planes begin in the scratch, in floats.
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

    fn end(&self) -> usize {
        self.start + 3 * self.frame.floats()
    }

    /// Index in a plane of the image's pixel (y, 0).
    fn row(&self, y: usize) -> usize {
        (y + self.pad) * self.frame.stride + self.pad
    }
}

/// The levels of an h x w image and the number of floats that their planes take, behind the work
/// space.
fn levels(kind: Similarity, h: usize, w: usize) -> ([Level; EXPONENTS.len()], usize) {
    assert!(h > 0 && w > 0, "an image without pixels has no similarity");
    let mut all = [Level::default(); EXPONENTS.len()];
    let (mut h, mut w, mut floats) = (h, w, 0);
    for level in &mut all[..kind.exponents().len()] {
        *level = Level::new(h, w, floats);
        floats = level.end();
        (h, w) = (h.div_ceil(2), w.div_ceil(2));
    }
    (all, floats)
}

/// Floats of scratch that one image of `h` x `w` pixels needs in [`score`] and
/// [`score_and_gradient`].
pub fn scratch_floats(kind: Similarity, h: usize, w: usize) -> usize {
    let (all, floats) = levels(kind, h, w);
    // the padded coarse levels of a thin image may be wider than the finest; two rows of pixels are
    // needed before and after
    let work = all
        .iter()
        .map(|level| level.frame.work_floats())
        .max()
        .unwrap_or(0);
    floats + work.max(6 * w)
}

/// The loss of a batch from the mean of its images' scores.
pub fn loss(mean_score: f64) -> f64 {
    1.0 - mean_score.clamp(0.0, 1.0)
}

/// The similarity in 0..=1 of one image. `rows(y, difference, target)` fills in row y, RGB [w, 3]
/// each: of the prediction, not clamped, less the target, and of the target, in 0..=1; it is asked
/// for all rows in order. (A difference made of exact numbers keeps bits that the prediction itself
/// cannot hold.) `scratch` has [`scratch_floats`] floats; what is in it does not matter. A NaN
/// gives NaN.
pub fn score(
    isa: Isa,
    kind: Similarity,
    rows: impl FnMut(usize, &mut [f32], &mut [f32]),
    h: usize,
    w: usize,
    scratch: &mut [f32],
) -> f64 {
    evaluate::<false>(isa, kind, rows, h, w, 0.0, &mut [], scratch)
}

/// As [`score`], and adds `slope` times the gradient of the score with respect to the prediction to
/// `grad` [h, w, 3]; asks for all rows a second time. As in PyTorch's clamp, the gradient is 0
/// where the prediction lies outside [0, 1] and passes on the borders themselves. Where a level's
/// mean is exactly 0 the score is 0 and so is the whole gradient (its true limit is infinite or
/// undefined).
#[allow(clippy::too_many_arguments)]
pub fn score_and_gradient(
    isa: Isa,
    kind: Similarity,
    rows: impl FnMut(usize, &mut [f32], &mut [f32]),
    h: usize,
    w: usize,
    slope: f64,
    grad: &mut [f32],
    scratch: &mut [f32],
) -> f64 {
    assert_eq!(grad.len(), h * w * 3);
    evaluate::<true>(isa, kind, rows, h, w, slope, grad, scratch)
}

/// Runs the form compiled for an instruction set; all give the same bits.
#[allow(clippy::too_many_arguments)]
fn evaluate<const GRADIENT: bool>(
    isa: Isa,
    kind: Similarity,
    rows: impl FnMut(usize, &mut [f32], &mut [f32]),
    h: usize,
    w: usize,
    slope: f64,
    grad: &mut [f32],
    scratch: &mut [f32],
) -> f64 {
    #[cfg(target_arch = "x86_64")]
    match isa.set() {
        // SAFETY: an `Isa` exists only for instructions that the processor has
        Set::Avx512 => {
            return unsafe { evaluate_avx512::<GRADIENT>(kind, rows, h, w, slope, grad, scratch) };
        }
        // SAFETY: as above
        Set::Avx2 => {
            return unsafe { evaluate_avx2::<GRADIENT>(kind, rows, h, w, slope, grad, scratch) };
        }
        Set::Portable | Set::Neon => {}
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    evaluate_plain::<GRADIENT>(kind, rows, h, w, slope, grad, scratch)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[allow(clippy::too_many_arguments)]
fn evaluate_avx512<const GRADIENT: bool>(
    kind: Similarity,
    rows: impl FnMut(usize, &mut [f32], &mut [f32]),
    h: usize,
    w: usize,
    slope: f64,
    grad: &mut [f32],
    scratch: &mut [f32],
) -> f64 {
    evaluate_plain::<GRADIENT>(kind, rows, h, w, slope, grad, scratch)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[allow(clippy::too_many_arguments)]
fn evaluate_avx2<const GRADIENT: bool>(
    kind: Similarity,
    rows: impl FnMut(usize, &mut [f32], &mut [f32]),
    h: usize,
    w: usize,
    slope: f64,
    grad: &mut [f32],
    scratch: &mut [f32],
) -> f64 {
    evaluate_plain::<GRADIENT>(kind, rows, h, w, slope, grad, scratch)
}

// Everything from here on is inlined into the functions above, so that the compiler vectorises it
// for their features.

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn evaluate_plain<const GRADIENT: bool>(
    kind: Similarity,
    mut rows: impl FnMut(usize, &mut [f32], &mut [f32]),
    h: usize,
    w: usize,
    slope: f64,
    grad: &mut [f32],
    scratch: &mut [f32],
) -> f64 {
    let (all, floats) = levels(kind, h, w);
    let exponents = kind.exponents();
    let all = &all[..exponents.len()];
    let (planes, work) = scratch.split_at_mut(floats);

    fill_finest(&all[0], &mut rows, planes, &mut work[..6 * w]);
    let mut means = [0f64; EXPONENTS.len()];
    for (i, level) in all.iter().enumerate() {
        if i > 0 {
            pool(&all[i - 1], level, planes);
        }
        let (s, d, gradient) = split(&mut planes[level.start..], level.frame.floats());
        let distance =
            window::distance::<GRADIENT>(&level.frame, s, d, kind.has_luminance(i), gradient, work);
        let mean = 1.0 - distance;
        means[i] = if mean < 0.0 { 0.0 } else { mean }; // rounding; NaN stays
    }
    let score: f64 = means
        .iter()
        .zip(exponents)
        .map(|(mean, e)| mean.powf(*e))
        .product();

    if GRADIENT {
        for (i, level) in all.iter().enumerate().rev() {
            let own = if score > 0.0 {
                slope * exponents[i] * score / means[i]
            } else {
                0.0
            };
            gather(level, own as f32, all.get(i + 1), planes);
        }
        let level = &all[0];
        let (_, _, gradient) = split(planes, level.frame.floats());
        let (difference, target) = work[..6 * w].split_at_mut(3 * w);
        for (y, out) in grad.chunks_exact_mut(3 * w).enumerate() {
            rows(y, difference, target);
            add_luma_gradient(&gradient[level.row(y)..][..w], difference, target, out);
        }
    }
    score
}

/// The chain through luma and clamp for one row.
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

/// Clamp, luma, sum and difference of the full-size images; `room` is for a row of each.
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

/// s and d of one row of pixels.
#[inline(always)]
fn combine(difference: &[f32], target: &[f32], s: &mut [f32], d: &mut [f32]) {
    let pairs = difference.chunks_exact(3).zip(target.chunks_exact(3));
    for ((v, t), (s, d)) in pairs.zip(s.iter_mut().zip(d.iter_mut())) {
        let (mut sum, mut difference) = (OUTSIDE_SUM, 0.0);
        for c in 0..3 {
            // of the clamped prediction; comparisons, so that a NaN stays
            let (v, low, high) = (v[c], -t[c], 1.0 - t[c]);
            let v = if v < low { low } else { v };
            let v = if v > high { high } else { v };
            sum += LUMA[c] * (2.0 * t[c] + v);
            difference += LUMA[c] * v;
        }
        (*s, *d) = (sum, difference);
    }
}

/// 2x2 means of `fine` into `coarse`. An odd size begins half a cell early, on zeros that count.
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

/// Turns the gradient of a level's mean into the gradient of the whole score: its own, times `own`,
/// and a quarter of the finished gradient of the coarser level's pixel that it was pooled into.
#[inline(always)]
fn gather(level: &Level, own: f32, coarser: Option<&Level>, planes: &mut [f32]) {
    let (planes, behind) = planes.split_at_mut(level.end());
    let (_, _, gradient) = split(&mut planes[level.start..], level.frame.floats());
    for y in 0..level.h {
        let row = &mut gradient[level.row(y)..][..level.w];
        let Some(coarser) = coarser else {
            row.iter_mut().for_each(|g| *g *= own);
            continue;
        };
        let start = 2 * coarser.frame.floats() + coarser.row((y + level.h % 2) / 2);
        let from = &behind[start..][..coarser.w];
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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn every_vector_width_gives_the_same_bits() {
        let (h, w) = (37, 90);
        let picture = |seed: u64| -> Vec<f32> {
            let mut rng = crate::support::rng::Rng::new(&[seed]);
            (0..h * w * 3)
                .map(|_| rng.range(-0.1, 1.1) as f32)
                .collect()
        };
        let (pred, target) = (picture(1), picture(2));
        let rows = |y: usize, difference: &mut [f32], row: &mut [f32]| {
            row.copy_from_slice(&target[y * w * 3..][..w * 3]);
            difference
                .iter_mut()
                .zip(&pred[y * w * 3..])
                .zip(row)
                .for_each(|((d, p), t)| *d = p - *t);
        };
        for kind in [Similarity::Ssim, Similarity::MultiScale { luminance: true }] {
            let mut scratch = vec![0.0; scratch_floats(kind, h, w)];
            let mut results = vec![];
            for way in 0..3 {
                let mut grad = vec![0.0f32; pred.len()];
                let score = match way {
                    0 => evaluate_plain::<true>(kind, rows, h, w, 0.7, &mut grad, &mut scratch),
                    // SAFETY: the processor was just asked for what the function was compiled for.
                    1 if is_x86_feature_detected!("avx2") => unsafe {
                        evaluate_avx2::<true>(kind, rows, h, w, 0.7, &mut grad, &mut scratch)
                    },
                    // SAFETY: as above.
                    2 if is_x86_feature_detected!("avx512f") => unsafe {
                        evaluate_avx512::<true>(kind, rows, h, w, 0.7, &mut grad, &mut scratch)
                    },
                    _ => continue,
                };
                results.push((
                    score.to_bits(),
                    grad.iter().map(|g| g.to_bits()).collect::<Vec<_>>(),
                ));
            }
            assert!(results.iter().all(|r| *r == results[0]));
        }
    }
}
