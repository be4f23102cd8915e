//! The correction at the image's border for the folded convolution of `folded_conv`. In the
//! network, `conv_out` pads HR features with zeros; the folded convolution instead sees what `up`
//! would compute for the pixels around the image. This module lists these border pixels, the image
//! pixels that they affect, and computes their features, so that `reconstruct` can subtract them.
//! Depends on the vectors.

use super::arena::SharedPtr;
use super::folded_conv::{Convolutions, FoldedShape};
use super::simd::{LANES, Simd};
use crate::plan::Reconstruct;

/// Most features of a [`Reconstruct`]: the size of the arrays for those of one border pixel.
pub const MAX_FEATURES: usize = 64;

/// Scale and features of an operation's folded convolution.
pub fn shape(op: &Reconstruct) -> FoldedShape {
    FoldedShape {
        scale: op.scale,
        features: op.features,
    }
}

/// The pixels at HR that surround an image, one pixel wide.
pub struct BorderPixels<'a> {
    /// The operation, whose features passed its check.
    pub op: &'a Reconstruct,
    /// Its convolutions, packed.
    pub convolutions: Convolutions<'a>,
    /// LQ features `[N, h, w, F]`.
    pub features: SharedPtr<f32>,
    /// The image, below N.
    pub image: usize,
}

/// One border pixel at HR.
#[derive(Clone, Copy)]
pub struct BorderPixel {
    /// Row, from -1 to the height inclusive.
    pub y: isize,
    /// Column, from -1 to the width inclusive.
    pub x: isize,
}

impl BorderPixels<'_> {
    /// The border pixels in HR rows `first..=last`.
    pub fn pixels(&self, first: isize, last: isize) -> impl Iterator<Item = BorderPixel> + use<> {
        let (hh, ww) = self.hr();
        (first.max(-1)..=last.min(hh)).flat_map(move |y| {
            let step = if y == -1 || y == hh {
                1
            } else {
                ww as usize + 1
            };
            (-1..=ww).step_by(step).map(move |x| BorderPixel { y, x })
        })
    }

    /// Height and width of the image at HR.
    fn hr(&self) -> (isize, isize) {
        let Reconstruct { extent, scale, .. } = *self.op;
        ((extent.h * scale) as isize, (extent.w * scale) as isize)
    }

    /// (LQ row, LQ column) of a border pixel, and its phase (dy, dx) inside the LQ pixel.
    pub fn place(&self, at: BorderPixel) -> ((isize, isize), (usize, usize)) {
        let s = self.op.scale as isize;
        (
            (at.y.div_euclid(s), at.x.div_euclid(s)),
            (at.y.rem_euclid(s) as usize, at.x.rem_euclid(s) as usize),
        )
    }

    /// The taps of `up` at LQ pixel (y, x) that read a pixel of the image: (tap, LQ row, LQ
    /// column).
    pub fn inside(
        &self,
        (y, x): (isize, isize),
    ) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let (h, w) = (self.op.extent.h as isize, self.op.extent.w as isize);
        (0..9).filter_map(move |t| {
            let (row, column) = (y + t as isize / 3 - 1, x + t as isize % 3 - 1);
            (row >= 0 && row < h && column >= 0 && column < w).then_some((
                t,
                row as usize,
                column as usize,
            ))
        })
    }

    /// The image pixels whose `conv_out` reads the border pixel: (tap, HR row, HR column).
    pub fn seen_by(&self, at: BorderPixel) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
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

    /// The features `[F]` of an LQ pixel of the image.
    ///
    /// # Safety
    /// The features hold `[N, h, w, F]` as the operation says and are not written meanwhile; the
    /// pixel lies inside the image.
    #[inline(always)]
    pub unsafe fn feature(&self, row: usize, column: usize) -> *const f32 {
        let Reconstruct {
            extent, features, ..
        } = *self.op;
        // SAFETY: the caller guarantees that the pixel lies inside the image, and the features hold
        // every pixel
        unsafe {
            self.features
                .at(((self.image * extent.h + row) * extent.w + column) * features)
                .cast_const()
        }
    }

    /// Writes to `out` `[F]` what `up` computes for a border pixel.
    ///
    /// # Safety
    /// As [`BorderPixels::feature`] for every pixel of the image, and as [`Simd`]. `out` has room
    /// for F values, and the convolutions have the operation's shape.
    #[inline(always)]
    pub unsafe fn features<S: Simd>(&self, at: BorderPixel, out: *mut f32) {
        let (shape, c) = (shape(self.op), &self.convolutions);
        let (lq, phase) = self.place(at);
        // SAFETY: `inside` gives pixels of the image only. F is a multiple of 16, so a vector at
        // `lane` stays inside the F weights of one output and tap, and `first + i` stays below F.
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
