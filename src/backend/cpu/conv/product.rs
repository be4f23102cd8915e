//! One output row of a convolution in the direct form, for any number of taps and channels. Depends
//! on the vectors alone. Each output value is one chain of multiply-adds in a fixed order, so the
//! tiling over pixels and lanes never changes a bit.

use super::super::simd::{LANES, Registers, Simd};
use super::layout::chunks;

/// `out[p][l] = bias[l] + sum over rows r, segments s and j of rows[r][p * stride + s * step + j] *
/// weights[r][s][j][l]`.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Padded input rows, one for each row of taps; pixel 0 of the output reads from the beginning
    /// of each.
    pub rows: &'a [*const f32],
    /// f32 values from one pixel to the next in the input rows.
    pub stride: usize,
    /// Stretches of adjacent inputs that a pixel reads in each row.
    pub segments: usize,
    /// f32 values from one segment to the next.
    pub step: usize,
    /// Inputs of a segment.
    pub depth: usize,
    /// For each of the [`chunks`] of the lanes `[rows][segments][depth][lanes of the chunk]`.
    pub weights: *const f32,
    /// Output channels, a multiple of 16.
    pub lanes: usize,
    /// `[lanes]`.
    pub bias: *const f32,
    /// Output row: `lanes` values at every multiple of `out_stride`.
    pub out: *mut f32,
    /// f32 values from one output pixel to the next.
    pub out_stride: usize,
    /// Pixels in the row.
    pub w: usize,
    /// Whether to store past the caches; pixels must then begin at multiples of 64 bytes.
    pub non_temporal: bool,
}

/// V vectors of the lanes of a [`Product`].
#[derive(Clone, Copy)]
struct Lanes {
    /// The first lane.
    lane: usize,
    /// The weights of that lane.
    weights: *const f32,
    /// f32 values from one input's weights to the next.
    width: usize,
}

/// Pixels `pixel..pixel + P` of a [`Product`]. STRIDE is its stride as a constant, or 0 for any.
///
/// # Safety
/// As [`row_product`]; these pixels and lanes lie inside the row.
#[inline(always)]
unsafe fn tile<S: Simd, const P: usize, const V: usize, const STRIDE: usize>(
    r: &Product<'_>,
    l: Lanes,
    pixel: usize,
) {
    // SAFETY: the pixels and lanes lie inside the row, so inputs, weights, bias and output hold
    // them by the contract of `row_product`
    unsafe {
        let stride = if STRIDE == 0 { r.stride } else { STRIDE };
        let mut acc: [[S::V; V]; P] = [[S::splat(0.0); V]; P];
        for v in 0..V {
            let bias = S::load(r.bias.add(l.lane + v * LANES));
            for acc in &mut acc {
                acc[v] = bias;
            }
        }
        let mut weights = l.weights;
        for row in r.rows {
            for segment in 0..r.segments {
                let mut x = row.add(pixel * stride + segment * r.step);
                for _ in 0..r.depth {
                    let mut w = [S::splat(0.0); V];
                    for (v, w) in w.iter_mut().enumerate() {
                        *w = S::load(weights.add(v * LANES));
                    }
                    for (p, acc) in acc.iter_mut().enumerate() {
                        let x = S::splat(*x.add(p * stride));
                        for (acc, &w) in acc.iter_mut().zip(&w) {
                            *acc = S::fma(x, w, *acc);
                        }
                    }
                    x = x.add(1);
                    weights = weights.add(l.width);
                }
            }
        }
        for (p, acc) in acc.iter().enumerate() {
            for (v, &acc) in acc.iter().enumerate() {
                let to = r.out.add((pixel + p) * r.out_stride + l.lane + v * LANES);
                if r.non_temporal {
                    S::stream(to, acc)
                } else {
                    S::store(to, acc)
                }
            }
        }
    }
}

/// All pixels of V vectors of lanes, P at a time.
///
/// # Safety
/// As [`row_product`]; these lanes lie inside the row.
#[inline(always)]
unsafe fn lanes<S: Simd, const P: usize, const V: usize, const STRIDE: usize>(
    r: &Product<'_>,
    l: Lanes,
) {
    // SAFETY: no tile begins before pixel 0 or ends after pixel `w`; the rest is the caller's
    // contract
    unsafe {
        if r.w < P {
            for pixel in 0..r.w {
                tile::<S, 1, V, STRIDE>(r, l, pixel);
            }
            return;
        }
        for pixel in (0..r.w).step_by(P) {
            // the last tile computes some pixels again, which have the same bits
            tile::<S, P, V, STRIDE>(r, l, pixel.min(r.w - P));
        }
    }
}

/// Computes a [`Product`]. `STRIDE` is its stride as a constant, which makes addresses constant, or
/// 0 for any stride.
///
/// # Safety
/// As [`Simd`]. All pointers are valid for the shapes that the fields state, and `lanes` is a
/// multiple of 16. `out` does not overlap the inputs, no other thread uses it, and with
/// `non_temporal` its pixels begin at multiples of 64 bytes.
#[inline(always)]
pub unsafe fn row_product<S: Simd, const STRIDE: usize>(r: &Product<'_>) {
    debug_assert!(STRIDE == 0 || STRIDE == r.stride);
    let taps = r.rows.len() * r.segments * r.depth;
    // SAFETY: chunks stay below `lanes`, so their vectors lie inside the row; the rest is the
    // caller's contract
    unsafe {
        for (first, width) in chunks(r.lanes / LANES) {
            let l = Lanes {
                lane: first * LANES,
                weights: r.weights.add(first * LANES * taps),
                width: width * LANES,
            };
            match (S::REGISTERS, width) {
                (Registers::Many, 1) => lanes::<S, 16, 1, STRIDE>(r, l),
                (Registers::Many, 2) => lanes::<S, 12, 2, STRIDE>(r, l),
                (Registers::Many, 3) => lanes::<S, 8, 3, STRIDE>(r, l),
                (Registers::Many, _) => lanes::<S, 6, 4, STRIDE>(r, l),
                (registers, _) => {
                    for v in 0..width {
                        let l = Lanes {
                            lane: l.lane + v * LANES,
                            weights: l.weights.add(v * LANES),
                            ..l
                        };
                        if registers == Registers::Eight {
                            lanes::<S, 6, 1, STRIDE>(r, l)
                        } else {
                            lanes::<S, 1, 1, STRIDE>(r, l)
                        }
                    }
                }
            }
        }
    }
}
