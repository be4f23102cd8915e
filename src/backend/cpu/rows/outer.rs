//! The outer product of two rows: one row's part of the weight gradient of a convolution.

use super::super::simd::{LANES, Registers, Simd};
use std::mem::MaybeUninit;

/// Pixels of a [`Panel`]: 16 KiB, half of the nearest cache of most processors.
const PANEL: usize = 256;
/// Taps from which on copying lanes pays: each six of them are a pass over the lanes.
const PANEL_TAPS: usize = 18;

/// A vector of lanes for each of some pixels, in a cache line of its own.
#[repr(align(64))]
struct Panel([MaybeUninit<f32>; PANEL * LANES]);

/// J taps and V vectors of lanes of [`row_outer`], from where `x`, `y` and `sum` point.
///
/// # Safety
/// As [`row_outer`]; these taps and lanes lie inside the row's.
#[inline(always)]
unsafe fn outer_tile<S: Simd, const J: usize, const V: usize>(
    x: *const f32,
    stride: usize,
    y: *const f32,
    (y_stride, lanes): (usize, usize),
    w: usize,
    sum: *mut f32,
) {
    // SAFETY: the caller guarantees that each of `w` pixels holds J taps of `x` and V vectors of
    // `y`, and that `sum` holds V vectors for each tap
    unsafe {
        let mut acc: [[S::V; V]; J] = [[S::splat(0.0); V]; J];
        let (mut x, mut y) = (x, y);
        for _ in 0..w {
            let mut g = [S::splat(0.0); V];
            for (v, g) in g.iter_mut().enumerate() {
                *g = S::load(y.add(v * LANES));
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                let x = S::splat(*x.add(j));
                for (acc, &g) in acc.iter_mut().zip(&g) {
                    *acc = S::fma(x, g, *acc);
                }
            }
            // wrapping: after the last pixel the pointers may leave the arena
            x = x.wrapping_add(stride);
            y = y.wrapping_add(y_stride);
        }
        for (j, acc) in acc.iter().enumerate() {
            for (v, &acc) in acc.iter().enumerate() {
                let at = sum.add(j * lanes + v * LANES);
                S::store(at, S::add(S::load(at), acc));
            }
        }
    }
}

/// All taps of [`row_outer`] for V vectors of lanes, from where `y` and `sum` point.
///
/// # Safety
/// As [`row_outer`]; these lanes lie inside the row's.
#[inline(always)]
unsafe fn outer_lanes<S: Simd, const J: usize, const V: usize>(
    x: *const f32,
    stride: usize,
    taps: usize,
    y: *const f32,
    y_shape: (usize, usize),
    w: usize,
    sum: *mut f32,
) {
    let lanes = y_shape.1;
    // SAFETY: no tile ends after `taps`; the rest is the caller's contract
    unsafe {
        let mut j = 0;
        while j + J <= taps {
            outer_tile::<S, J, V>(x.add(j), stride, y, y_shape, w, sum.add(j * lanes));
            j += J;
        }
        while j + 9 <= taps && J > 9 {
            outer_tile::<S, 9, V>(x.add(j), stride, y, y_shape, w, sum.add(j * lanes));
            j += 9;
        }
        while j + 3 <= taps && J > 3 {
            outer_tile::<S, 3, V>(x.add(j), stride, y, y_shape, w, sum.add(j * lanes));
            j += 3;
        }
        while j < taps {
            outer_tile::<S, 1, V>(x.add(j), stride, y, y_shape, w, sum.add(j * lanes));
            j += 1;
        }
    }
}

/// [`outer_lanes`] of one vector of lanes, with 6 taps a tile. The lanes are first copied next to each
/// other: where pixels are a multiple of several cache lines apart, their lanes share a few sets of the
/// cache and evict each other in every pass. Rows are summed in pieces of [`PANEL`] pixels.
///
/// # Safety
/// As [`row_outer`]; these lanes lie inside the row's.
#[inline(always)]
unsafe fn outer_panel<S: Simd>(
    x: *const f32,
    stride: usize,
    taps: usize,
    y: *const f32,
    (y_stride, lanes): (usize, usize),
    w: usize,
    sum: *mut f32,
) {
    // SAFETY: pixels stay below `w`, and the panel holds the lanes of those that are copied; the rest
    // is the caller's contract
    unsafe {
        if y_stride == LANES || taps < PANEL_TAPS {
            outer_lanes::<S, 6, 1>(x, stride, taps, y, (y_stride, lanes), w, sum);
            return;
        }
        let mut panel = Panel([MaybeUninit::uninit(); PANEL * LANES]);
        let panel: *mut f32 = panel.0.as_mut_ptr().cast();
        for first in (0..w).step_by(PANEL) {
            let count = PANEL.min(w - first);
            for p in 0..count {
                let lanes = S::load(y.add((first + p) * y_stride));
                S::store(panel.add(p * LANES), lanes);
            }
            let x = x.add(first * stride);
            outer_lanes::<S, 6, 1>(x, stride, taps, panel, (LANES, lanes), count, sum);
        }
    }
}

/// Adds one row's part of a weight gradient: `sum[j][l] += sum over p of x[p * stride + j] *
/// y[p][l]` for `taps` values of j. The sum over the row is computed first and then added to `sum`,
/// which also keeps rounding errors small.
///
/// # Safety
/// As [`Simd`]. `x` holds `taps` values from each of `w` multiples of `stride` on, and `y` holds
/// `[w, lanes]`, `lanes` a multiple of 16. `sum` holds `[taps, lanes]`, overlaps neither, and no
/// other thread uses it.
#[inline(always)]
pub unsafe fn row_outer<S: Simd>(
    x: *const f32,
    stride: usize,
    taps: usize,
    y: *const f32,
    lanes: usize,
    w: usize,
    sum: *mut f32,
) {
    // SAFETY: by the caller's contract
    unsafe { row_outer_strided::<S>(x, (stride, taps), y, (lanes, lanes), w, sum) }
}

/// As [`row_outer`], for `lanes` of the `y_stride` values of each pixel of `y`; `x_shape` is
/// (stride, taps) and `y_shape` is (y_stride, lanes).
///
/// # Safety
/// As [`row_outer`], but `y` holds `lanes` values from each of `w` multiples of `y_stride` on.
#[inline(always)]
pub unsafe fn row_outer_strided<S: Simd>(
    x: *const f32,
    (stride, taps): (usize, usize),
    y: *const f32,
    y_shape: (usize, usize),
    w: usize,
    sum: *mut f32,
) {
    let lanes = y_shape.1;
    // SAFETY: `lanes` is a multiple of 16, so the one or two vectors from `lane` on lie inside the
    // rows; the rest is the caller's contract
    unsafe {
        let mut lane = 0;
        while lane + 2 * LANES <= lanes {
            let (y, sum) = (y.add(lane), sum.add(lane));
            match S::REGISTERS {
                Registers::Many if taps.is_multiple_of(12) => {
                    outer_lanes::<S, 12, 2>(x, stride, taps, y, y_shape, w, sum)
                }
                Registers::Many => outer_lanes::<S, 8, 2>(x, stride, taps, y, y_shape, w, sum),
                // a loop, because a closure would not have the instruction set of the caller
                Registers::Eight => {
                    for v in [0, LANES] {
                        outer_panel::<S>(x, stride, taps, y.add(v), y_shape, w, sum.add(v));
                    }
                }
                Registers::Few => outer_lanes::<S, 1, 2>(x, stride, taps, y, y_shape, w, sum),
            }
            lane += 2 * LANES;
        }
        if lane < lanes {
            let (y, sum) = (y.add(lane), sum.add(lane));
            match S::REGISTERS {
                Registers::Many if taps == 12 => {
                    outer_lanes::<S, 12, 1>(x, stride, taps, y, y_shape, w, sum)
                }
                Registers::Many => outer_lanes::<S, 16, 1>(x, stride, taps, y, y_shape, w, sum),
                Registers::Eight => outer_panel::<S>(x, stride, taps, y, y_shape, w, sum),
                Registers::Few => outer_lanes::<S, 1, 1>(x, stride, taps, y, y_shape, w, sum),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::simd::Kernel;
    use super::*;
    use crate::support::isa::Isa;

    struct Outer<'a> {
        x: &'a [f32],
        x_shape: (usize, usize),
        y: &'a [f32],
        y_shape: (usize, usize),
        w: usize,
        sum: &'a mut [f32],
    }

    impl Kernel for Outer<'_> {
        #[inline(always)]
        fn run<S: Simd>(self) {
            let (x, y, sum) = (self.x.as_ptr(), self.y.as_ptr(), self.sum.as_mut_ptr());
            // SAFETY: the test makes rows and sums of these shapes; `Isa::run` chose S
            unsafe { row_outer_strided::<S>(x, self.x_shape, y, self.y_shape, self.w, sum) }
        }
    }

    /// Every rest of taps and lanes, rows around the length of a panel, and pixels that are further apart
    /// than their values, against sums in f64.
    #[test]
    fn sums_are_those_of_a_plain_loop() {
        let value = |i: usize| (i * 7919 % 1009) as f32 / 1009.0 - 0.3;
        for (taps, lanes) in [(1, 16), (5, 32), (17, 48), (18, 48), (64, 16), (27, 80)] {
            for w in [1, 7, PANEL - 1, PANEL, PANEL + 1, 2 * PANEL + 3] {
                let (stride, y_stride) = (taps + 3, lanes + 16);
                let x: Vec<f32> = (0..w * stride).map(value).collect();
                let y: Vec<f32> = (0..w * y_stride).map(|i| value(i + 5)).collect();
                for isa in Isa::available() {
                    let mut sum = vec![0.5; taps * lanes];
                    isa.run(Outer {
                        x: &x,
                        x_shape: (stride, taps),
                        y: &y,
                        y_shape: (y_stride, lanes),
                        w,
                        sum: &mut sum,
                    });
                    for (i, sum) in sum.iter().enumerate() {
                        let (j, l) = (i / lanes, i % lanes);
                        let product = |p: usize| {
                            f64::from(x[p * stride + j]) * f64::from(y[p * y_stride + l])
                        };
                        let expected = 0.5 + (0..w).map(product).sum::<f64>();
                        let error = (f64::from(*sum) - expected).abs();
                        let place = format!("{isa}: {taps}x{lanes}, {w} pixels, {j}, {l}");
                        assert!(error < 1e-4, "{place}: {sum} instead of {expected}");
                    }
                }
            }
        }
    }
}
