//! The ring of HR pixels around an image, whose features the composition of `folded_conv` sees and
//! the network does not: which pixels of the image see which of them, and what they would be.
//! Depends on the vectors; `reconstruct` takes their part away.

use super::arena::Shared;
use super::folded_conv::{Convolutions, Shape};
use super::simd::{LANES, Simd};
use crate::plan::Reconstruct;

/// Most features: room for those of one pixel of the ring.
pub const MOST_FEATURES: usize = 64;

/// Scale and features of the composition.
pub fn shape(head: &Reconstruct) -> Shape {
    assert!(
        head.features.is_multiple_of(LANES) && head.features <= MOST_FEATURES,
        "{} features",
        head.features
    );
    Shape {
        scale: head.scale,
        features: head.features,
    }
}

/// The ring of HR pixels around the image: what `up` makes of the edge there counts in the
/// composition, but not in the network.
pub struct Ring<'a> {
    pub head: &'a Reconstruct,
    pub convolutions: Convolutions<'a>,
    /// LQ features `[N][h][w][F]`.
    pub features: Shared<f32>,
    /// One of the N.
    pub image: usize,
}

/// A pixel of the ring.
#[derive(Clone, Copy)]
pub struct Outside {
    /// HR row, -1 to the height.
    pub y: isize,
    /// HR column.
    pub x: isize,
}

impl Ring<'_> {
    /// The ring's pixels in rows `first..=last` of HR.
    pub fn pixels(&self, first: isize, last: isize) -> impl Iterator<Item = Outside> + use<> {
        let (hh, ww) = self.hr();
        (first.max(-1)..=last.min(hh)).flat_map(move |y| {
            let step = if y == -1 || y == hh {
                1
            } else {
                ww as usize + 1
            };
            (-1..=ww).step_by(step).map(move |x| Outside { y, x })
        })
    }

    fn hr(&self) -> (isize, isize) {
        let Reconstruct { extent, scale, .. } = *self.head;
        ((extent.h * scale) as isize, (extent.w * scale) as isize)
    }

    /// LQ pixel and phase of a pixel of the ring.
    pub fn place(&self, at: Outside) -> ((isize, isize), (usize, usize)) {
        let s = self.head.scale as isize;
        (
            (at.y.div_euclid(s), at.x.div_euclid(s)),
            (at.y.rem_euclid(s) as usize, at.x.rem_euclid(s) as usize),
        )
    }

    /// Taps of `up` there that meet the image: (tap, LQ row, LQ column).
    pub fn inside(
        &self,
        (y, x): (isize, isize),
    ) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let (h, w) = (self.head.extent.h as isize, self.head.extent.w as isize);
        (0..9).filter_map(move |t| {
            let (row, column) = (y + t as isize / 3 - 1, x + t as isize % 3 - 1);
            (row >= 0 && row < h && column >= 0 && column < w).then_some((
                t,
                row as usize,
                column as usize,
            ))
        })
    }

    /// Pixels of the image that see it: (tap of `conv_out`, HR row, HR column).
    pub fn seen_by(&self, at: Outside) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let (hh, ww) = self.hr();
        (0..9).filter_map(move |tap| {
            let (row, column) = (at.y - tap as isize / 3 + 1, at.x - tap as isize % 3 + 1);
            (row >= 0 && row < hh && column >= 0 && column < ww).then_some((
                tap,
                row as usize,
                column as usize,
            ))
        })
    }

    /// Features of an LQ pixel of the image.
    ///
    /// # Safety
    /// The features must be as large as the head says and not be written meanwhile, and the pixel
    /// must lie inside the image.
    #[inline(always)]
    pub unsafe fn feature(&self, row: usize, column: usize) -> *const f32 {
        let Reconstruct {
            extent, features, ..
        } = *self.head;
        // SAFETY: the caller says that the pixel lies inside the image, and the features hold
        // every pixel
        unsafe {
            self.features
                .at(((self.image * extent.h + row) * extent.w + column) * features)
                .cast_const()
        }
    }

    /// What `up` makes of the image's edge at a pixel of the ring, `[F]`, to `out`.
    ///
    /// # Safety
    /// As [`Ring::feature`] for any pixel inside, and as [`Simd`]; `out` has room for the features,
    /// and the convolutions are those of the head's shape.
    #[inline(always)]
    pub unsafe fn features<S: Simd>(&self, at: Outside, out: *mut f32) {
        let (shape, c) = (shape(self.head), &self.convolutions);
        let (lq, phase) = self.place(at);
        // SAFETY: `inside` gives pixels of the image only; `shape` says that features are whole
        // vectors, so weights are read within those of one feature and tap, and `first + i` stays
        // below the features that `out` has room for
        unsafe {
            for first in (0..shape.features).step_by(8) {
                let (mut acc, mut sums) = ([S::splat(0.0); 8], [0.0; 8]);
                for (t, row, column) in self.inside(lq) {
                    for lane in (0..shape.features).step_by(LANES) {
                        let value = S::load(self.feature(row, column).add(lane));
                        for (i, acc) in acc.iter_mut().enumerate() {
                            let weight = c.up.as_ptr().add(shape.up_at(phase, first + i, t) + lane);
                            *acc = S::fma(S::load(weight), value, *acc);
                        }
                    }
                }
                S::sums(&acc, sums.as_mut_ptr());
                for (i, sum) in sums.iter().enumerate() {
                    *out.add(first + i) = sum
                        + c.up_bias[(phase.0 * shape.scale + phase.1) * shape.features + first + i];
                }
            }
        }
    }
}
