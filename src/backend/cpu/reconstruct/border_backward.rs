//! The border's part of the backward operation: what border pixels contribute to the gradients of
//! features, `up` and `conv_out` in the folded convolution, but not in the network.

use super::super::border::{BorderPixel, BorderPixels, MAX_FEATURES, shape};
use super::super::simd::{LANES, Simd};
use super::backward::{Backward, Band, sums};
use crate::plan::Reconstruct;

impl Backward<'_> {
    /// Subtracts the contribution of border pixels, which zero padding excludes: from the gradient
    /// of the features in the band, and from the sums. Each border pixel's sums belong to one band.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose band this is.
    #[inline(always)]
    pub(super) unsafe fn subtract_border<S: Simd>(&self, band: &Band) {
        let Reconstruct { extent, scale, .. } = *self.op;
        let border = BorderPixels {
            op: self.op,
            convolutions: self.parameters.convolutions,
            features: self.features,
            image: band.image,
        };
        let (hh, s) = ((extent.h * scale) as isize, scale as isize);
        for at in border.pixels(
            (band.start as isize - 1) * s,
            (band.end as isize + 1) * s - 1,
        ) {
            let owner = at.y.clamp(0, hh - 1).div_euclid(s) as usize;
            let own = owner >= band.start && owner < band.end;
            let mut d = [0.0; MAX_FEATURES];
            // SAFETY: as the caller guarantees
            unsafe {
                self.border_gradient::<S>(&border, at, own, band, &mut d);
                self.subtract_border_pixel::<S>(&border, at, own, band, &d);
            }
        }
    }

    /// Writes to `d` the negative gradient with respect to the features of a border pixel. For an
    /// `own` pixel of the band, also subtracts its share of the sum of `conv_out`.
    ///
    /// # Safety
    /// As [`Backward::subtract_border`].
    #[inline(always)]
    unsafe fn border_gradient<S: Simd>(
        &self,
        border: &BorderPixels<'_>,
        at: BorderPixel,
        own: bool,
        band: &Band,
        d: &mut [f32; MAX_FEATURES],
    ) {
        let Reconstruct {
            extent,
            features: f,
            scale,
            ..
        } = *self.op;
        let (sums, out) = (sums(self.op), self.parameters.convolutions.out);
        let mut u = [0.0; MAX_FEATURES];
        // SAFETY: the partial is this task's, and `seen_by` gives pixels of the image. Features are
        // multiples of 16 up to MAX_FEATURES, so `u` and `d` have room for them. Weights and their
        // sums have the same order.
        unsafe {
            if own {
                border.features::<S>(at, u.as_mut_ptr());
            }
            for (tap, row, column) in border.seen_by(at) {
                let d_out = self.d_output.at(((band.image * extent.h * scale + row)
                    * extent.w
                    * scale
                    + column)
                    * 3);
                for o in 0..3 {
                    let slope = S::splat(-*d_out.add(o));
                    for lane in (0..f).step_by(LANES) {
                        let weight = (tap * 3 + o) * f + lane;
                        let to = d.as_mut_ptr().add(lane);
                        let w = S::load(out.as_ptr().add(weight));
                        S::store(to, S::fma(slope, w, S::load(to)));
                        if own {
                            let to = band.partial.at(sums.out + weight);
                            let u = S::load(u.as_ptr().add(lane));
                            S::store(to, S::fma(slope, u, S::load(to)));
                        }
                    }
                }
            }
        }
    }

    /// Adds what the negative gradient `d` of a border pixel's features contributes: to the
    /// features of the band, and for an `own` pixel to the sums of `up` and its bias.
    ///
    /// # Safety
    /// As [`Backward::subtract_border`].
    #[inline(always)]
    unsafe fn subtract_border_pixel<S: Simd>(
        &self,
        border: &BorderPixels<'_>,
        at: BorderPixel,
        own: bool,
        band: &Band,
        d: &[f32; MAX_FEATURES],
    ) {
        let Reconstruct {
            extent,
            features: f,
            scale,
            ..
        } = *self.op;
        let (shape, sums) = (shape(self.op), sums(self.op));
        let (lq, phase) = border.place(at);
        let up = self.parameters.convolutions.up;
        // SAFETY: the band's rows of `d_features` and the partial are this task's, and `inside`
        // gives pixels of the image. Features are multiples of 16. Weights and their sums have the
        // same order.
        unsafe {
            if own {
                for (channel, &d) in d[..f].iter().enumerate() {
                    let bias = (phase.0 * scale + phase.1) * f + channel;
                    *band.partial.at(sums.up_bias + bias) += d;
                }
            }
            for (t, row, column) in border.inside(lq) {
                let mine = row >= band.start && row < band.end;
                for lane in (0..f).step_by(LANES) {
                    let value = S::load(border.feature(row, column).add(lane));
                    let mut sum = S::splat(0.0);
                    for (channel, &d) in d[..f].iter().enumerate() {
                        let at = shape.up_at(phase, channel, t) + lane;
                        sum = S::fma(S::splat(d), S::load(up.as_ptr().add(at)), sum);
                        if own {
                            let to = band.partial.at(sums.up + at);
                            S::store(to, S::fma(S::splat(d), value, S::load(to)));
                        }
                    }
                    if mine {
                        let to = self
                            .d_features
                            .at(((band.image * extent.h + row) * extent.w + column) * f + lane);
                        S::store(to, S::fma(S::splat(self.parameters.gain), sum, S::load(to)));
                    }
                }
            }
        }
    }
}
