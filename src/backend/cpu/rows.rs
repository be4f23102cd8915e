//! The inner loops: one output row of a convolution, of its weight gradient, and of a depthwise
//! convolution, on NHWC rows that contain their zero padding. Larger operations are built from
//! these. Depends on the vectors alone. Each output value is one chain of multiply-adds in a fixed
//! order, so the tiling over pixels never changes a bit.

mod depthwise;
mod outer;
mod rgb;

pub use depthwise::{row_depthwise, row_depthwise_outer};
pub use outer::{row_outer, row_outer_strided};
pub use rgb::row_to_rgb;

use super::simd::{LANES, Registers, Simd};

/// The start values of an output row.
#[derive(Clone, Copy)]
pub enum RowStart {
    /// The same vector of `lanes` values at every pixel.
    Bias(*const f32),
    /// A whole row `[w][lanes]` plus the vector.
    RowPlusBias(*const f32, *const f32),
}

/// A row product: `out[p][l] = start + sum over rows r and taps j of rows[r][p * stride + j] *
/// weights[r][j][l]`.
#[derive(Clone, Copy)]
pub struct RowProduct<'a> {
    /// Padded input rows; pixel 0 of the output reads from the beginning of each.
    pub rows: &'a [*const f32],
    /// f32 values from one pixel to the next in the input rows.
    pub stride: usize,
    /// Taps per row: kernel width x input channels, contiguous.
    pub taps: usize,
    /// `[rows][taps][lanes]`.
    pub weights: *const f32,
    /// Output channels, a multiple of 16.
    pub lanes: usize,
    /// RowStart values.
    pub start: RowStart,
    /// Output row `[w][lanes]`.
    pub out: *mut f32,
    /// Pixels in the row.
    pub w: usize,
    /// Whether to store past the caches; the row must then begin at a multiple of 64 bytes.
    pub non_temporal: bool,
}

/// Pixels `pixel..pixel + P` of a [`RowProduct`], in the V vectors of lanes from `lane` on.
///
/// # Safety
/// As [`row_product`]; these pixels and lanes lie inside the row.
#[inline(always)]
unsafe fn product_tile<S: Simd, const P: usize, const V: usize, const STRIDE: usize>(
    r: &RowProduct<'_>,
    pixel: usize,
    lane: usize,
) {
    // SAFETY: the pixels and lanes lie inside the row, so inputs, weights, start values and output
    // hold them by the contract of `row_product`
    unsafe {
        let stride = if STRIDE == 0 { r.stride } else { STRIDE };
        let mut acc: [[S::V; V]; P] = [[S::splat(0.0); V]; P];
        for (p, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                let at = lane + v * LANES;
                *acc = match r.start {
                    RowStart::Bias(bias) => S::load(bias.add(at)),
                    RowStart::RowPlusBias(row, bias) => S::add(
                        S::load(row.add((pixel + p) * r.lanes + at)),
                        S::load(bias.add(at)),
                    ),
                };
            }
        }
        let mut weights = r.weights.add(lane);
        for row in r.rows {
            let mut x = row.add(pixel * stride);
            for _ in 0..r.taps {
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
                weights = weights.add(r.lanes);
            }
        }
        for (p, acc) in acc.iter().enumerate() {
            for (v, &acc) in acc.iter().enumerate() {
                let to = r.out.add((pixel + p) * r.lanes + lane + v * LANES);
                if r.non_temporal {
                    S::stream(to, acc)
                } else {
                    S::store(to, acc)
                }
            }
        }
    }
}

/// All pixels of a [`RowProduct`], in the V vectors of lanes from `lane` on.
///
/// # Safety
/// As [`row_product`]; these lanes lie inside the row.
#[inline(always)]
unsafe fn product_lanes<S: Simd, const P: usize, const V: usize, const STRIDE: usize>(
    r: &RowProduct<'_>,
    lane: usize,
) {
    // SAFETY: no tile begins before pixel 0 or ends after pixel `w`; the rest is the caller's
    // contract
    unsafe {
        let mut pixel = 0;
        while pixel + P <= r.w {
            product_tile::<S, P, V, STRIDE>(r, pixel, lane);
            pixel += P;
        }
        if P > 4 {
            while pixel + 4 <= r.w {
                product_tile::<S, 4, V, STRIDE>(r, pixel, lane);
                pixel += 4;
            }
        }
        while pixel < r.w {
            product_tile::<S, 1, V, STRIDE>(r, pixel, lane);
            pixel += 1;
        }
    }
}

/// Computes a [`RowProduct`]. `STRIDE` is its stride as a constant, which makes addresses constant,
/// or 0 for any stride.
///
/// # Safety
/// As [`Simd`]. All pointers are valid for the shapes that the fields state, and `lanes` is a
/// multiple of 16. `out` does not overlap the inputs, no other thread uses it, and with
/// `non_temporal` it is a multiple of 64.
#[inline(always)]
pub unsafe fn row_product<S: Simd, const STRIDE: usize>(r: &RowProduct<'_>) {
    debug_assert!(STRIDE == 0 || STRIDE == r.stride);
    // SAFETY: `lanes` is a multiple of 16, so the one or two vectors from `lane` on lie inside the
    // row; the rest is the caller's contract
    unsafe {
        let mut lane = 0;
        while lane + 2 * LANES <= r.lanes {
            match S::REGISTERS {
                Registers::Many => product_lanes::<S, 8, 2, STRIDE>(r, lane),
                // a loop, because a closure would not have the instruction set of the caller
                Registers::Eight => {
                    for v in [0, LANES] {
                        product_lanes::<S, 6, 1, STRIDE>(r, lane + v);
                    }
                }
                Registers::Few => product_lanes::<S, 1, 2, STRIDE>(r, lane),
            }
            lane += 2 * LANES;
        }
        if lane < r.lanes {
            match S::REGISTERS {
                Registers::Many => product_lanes::<S, 16, 1, STRIDE>(r, lane),
                Registers::Eight => product_lanes::<S, 6, 1, STRIDE>(r, lane),
                Registers::Few => product_lanes::<S, 1, 1, STRIDE>(r, lane),
            }
        }
    }
}

/// Adds the sums over the pixels of a row `[w][lanes]` to `sum[lanes]`: a bias gradient.
///
/// # Safety
/// As [`Simd`]. `y` holds `[w, lanes]`, `lanes` a multiple of 16. `sum` holds `[lanes]`, does not
/// overlap the row, and no other thread uses it.
#[inline(always)]
pub unsafe fn row_sum<S: Simd>(y: *const f32, lanes: usize, w: usize, sum: *mut f32) {
    // SAFETY: pixels stay below `w` and vectors below `lanes`, a multiple of 16; the caller
    // guarantees that row and sums hold them
    unsafe {
        for lane in (0..lanes).step_by(LANES) {
            // two chains hide half the latency of the additions
            let (mut even, mut odd) = (S::splat(0.0), S::splat(0.0));
            let mut p = 0;
            while p + 2 <= w {
                even = S::add(even, S::load(y.add(p * lanes + lane)));
                odd = S::add(odd, S::load(y.add((p + 1) * lanes + lane)));
                p += 2;
            }
            if p < w {
                even = S::add(even, S::load(y.add(p * lanes + lane)));
            }
            let at = sum.add(lane);
            S::store(at, S::add(S::load(at), S::add(even, odd)));
        }
    }
}

/// Copies a row of `len` values and writes `pad` zeros on either side of it; a missing row (one
/// outside the image) becomes zeros.
///
/// # Safety
/// The row holds `len` values. `out` has room for `len + 2 * pad`, does not overlap the row, and no
/// other thread uses it.
#[inline(always)]
pub unsafe fn pad_row(row: Option<*const f32>, pad: usize, len: usize, out: *mut f32) {
    // SAFETY: the caller guarantees that `out` has room for the values and both paddings, and that
    // the row holds `len`
    unsafe {
        match row {
            Some(row) => {
                out.write_bytes(0, pad);
                std::ptr::copy_nonoverlapping(row, out.add(pad), len);
                out.add(pad + len).write_bytes(0, pad);
            }
            None => out.write_bytes(0, len + 2 * pad),
        }
    }
}
