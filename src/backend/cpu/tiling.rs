//! What the operations in Winograd's form share: tiles of a row, rows with zeros outside the
//! image, and weights packed for the products. Depends on the transforms of `winograd`.

use super::arena::Shared;
use super::simd::LANES;
use super::winograd::{GROUP, POINTS, transform_weights};

/// Tiles of `OUT` pixels that cover a row of `w`.
pub fn tiles<const OUT: usize>(w: usize) -> usize {
    w.div_ceil(OUT)
}

/// Lanes `0..n` in the groups that are multiplied together: (first lane, whether two vectors).
pub fn groups(n: usize) -> impl Iterator<Item = (usize, bool)> {
    (0..n)
        .step_by(GROUP)
        .map(move |lane| (lane, lane + GROUP <= n))
}

/// Writes weights `[point][k][lanes of a group]`, group behind group, for `lanes` lanes;
/// `value(lane, k, tap)` gives the taps.
pub fn pack<const TAPS: usize>(
    out: &mut [f32],
    k: usize,
    lanes: usize,
    value: impl Fn(usize, usize, usize) -> f64,
) {
    for (first, two) in groups(lanes) {
        let width = if two { GROUP } else { LANES };
        let group = &mut out[first * POINTS * k..];
        for (i, lane) in (0..k * width).map(|at| (at / width, at % width)) {
            let transformed =
                transform_weights::<TAPS>(|y, x| value(first + lane, i, y * TAPS + x));
            transformed
                .into_iter()
                .enumerate()
                .for_each(|(point, value)| group[(point * k + i) * width + lane] = value);
        }
    }
}

/// Rows `[w][c]` of one image of an activation.
#[derive(Clone, Copy)]
pub struct Rows {
    /// The activation `[N][h][w][c]`.
    pub source: Shared<f32>,
    /// A row of zeros, for those outside.
    pub zeros: *const f32,
    /// Which image.
    pub image: usize,
    /// Its rows.
    pub h: usize,
    /// Its columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Rows {
    /// `N` rows from `first` on; those at `end` and behind, and those before the image, are
    /// zeros.
    ///
    /// # Safety
    /// The activation must have `h` rows of `w` pixels of `c` channels for every image up to this
    /// one, `zeros` be a row long, and `end` at most `h`.
    #[inline(always)]
    pub unsafe fn get<const N: usize>(&self, first: isize, end: usize) -> [*const f32; N] {
        std::array::from_fn(|k| {
            let row = first + k as isize;
            if row < 0 || row >= end as isize {
                return self.zeros;
            }
            let at = (self.image * self.h + row as usize) * self.w * self.c;
            // SAFETY: row `row` is one of the image's `h`, and the caller says that the activation
            // holds them
            unsafe { self.source.at(at).cast_const() }
        })
    }
}
