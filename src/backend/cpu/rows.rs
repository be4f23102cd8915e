//! The inner loops: one output row of a convolution, of its weight gradient, and of a depthwise
//! convolution, on NHWC rows with their zero padding in place. Everything heavier is built from
//! these. Depends on the vectors alone. Each output value is one chain of multiply-adds in a fixed
//! order, so tiling over pixels never changes a bit.

use super::simd::{LANES, Registers, Simd};

/// What an output row starts from.
#[derive(Clone, Copy)]
pub enum Start {
    /// The same vector of `lanes` values at every pixel.
    Bias(*const f32),
    /// A whole row `[w][lanes]` plus the vector.
    RowPlusBias(*const f32, *const f32),
}

/// A row product: `out[p][l] = start + sum over rows r and taps j of rows[r][p * stride + j] *
/// weights[r][j][l]`.
#[derive(Clone, Copy)]
pub struct RowProduct<'a> {
    /// Padded input rows; pixel 0 of the output reads from the start of each.
    pub rows: &'a [*const f32],
    /// f32 values from one pixel to the next in the input rows.
    pub stride: usize,
    /// Taps per row: kernel width x input channels, contiguous.
    pub taps: usize,
    /// `[rows][taps][lanes]`.
    pub weights: *const f32,
    /// Output channels, a multiple of 16.
    pub lanes: usize,
    /// Start values.
    pub start: Start,
    /// Output row `[w][lanes]`.
    pub out: *mut f32,
    /// Pixels in the row.
    pub w: usize,
    /// Whether to store past the caches; the row then begins on a vector's boundary.
    pub far: bool,
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
    // SAFETY: the pixels and lanes lie inside the row, so that inputs, weights, start and output
    // hold them, as `row_product` asks
    unsafe {
        let stride = if STRIDE == 0 { r.stride } else { STRIDE };
        let mut acc: [[S::V; V]; P] = [[S::splat(0.0); V]; P];
        for (p, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                let at = lane + v * LANES;
                *acc = match r.start {
                    Start::Bias(bias) => S::load(bias.add(at)),
                    Start::RowPlusBias(row, bias) => S::add(
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
                if r.far {
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
    // SAFETY: no tile begins before 0 or ends behind `w` pixels; the rest is the caller's word, as
    // for `row_product`
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

/// Computes a [`RowProduct`]. `STRIDE` is its stride where that is known when compiling (addresses
/// become constants), or 0.
///
/// # Safety
/// All pointers must be valid for the extents the fields describe, `lanes` a multiple of 16, `out`
/// apart from the inputs and nobody else's, and with `far` a multiple of 64; `STRIDE` is 0 or the
/// stride; and as [`Simd`].
#[inline(always)]
pub unsafe fn row_product<S: Simd, const STRIDE: usize>(r: &RowProduct<'_>) {
    debug_assert!(STRIDE == 0 || STRIDE == r.stride);
    // SAFETY: `lanes` is a multiple of 16, so that two vectors from `lane` on lie inside the row,
    // or one; the rest the caller says
    unsafe {
        let mut lane = 0;
        while lane + 2 * LANES <= r.lanes {
            match S::REGISTERS {
                Registers::Many => product_lanes::<S, 8, 2, STRIDE>(r, lane),
                Registers::Eight if S::MEMORY_OPERANDS => product_lanes::<S, 3, 2, STRIDE>(r, lane),
                Registers::Eight => [0, LANES]
                    .into_iter()
                    .for_each(|v| product_lanes::<S, 6, 1, STRIDE>(r, lane + v)),
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

/// J taps and V vectors of lanes of [`row_outer`], from where the pointers stand.
///
/// # Safety
/// As [`row_outer`]; these taps and lanes lie inside its own.
#[inline(always)]
unsafe fn outer_tile<S: Simd, const J: usize, const V: usize>(
    x: *const f32,
    stride: usize,
    y: *const f32,
    lanes: usize,
    w: usize,
    sum: *mut f32,
) {
    // SAFETY: the caller says that `w` pixels of `x` hold J taps, and those of `y` V vectors, as
    // does `sum` for each tap
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
            // behind the last pixel they may leave the arena
            x = x.wrapping_add(stride);
            y = y.wrapping_add(lanes);
        }
        for (j, acc) in acc.iter().enumerate() {
            for (v, &acc) in acc.iter().enumerate() {
                let at = sum.add(j * lanes + v * LANES);
                S::store(at, S::add(S::load(at), acc));
            }
        }
    }
}

/// All taps of [`row_outer`] for the V vectors of lanes from where the pointers stand.
///
/// # Safety
/// As [`row_outer`]; these lanes lie inside its own.
#[inline(always)]
unsafe fn outer_lanes<S: Simd, const J: usize, const V: usize>(
    x: *const f32,
    stride: usize,
    taps: usize,
    y: *const f32,
    lanes: usize,
    w: usize,
    sum: *mut f32,
) {
    // SAFETY: no tile ends behind `taps`; the rest is the caller's word, as for `row_outer`
    unsafe {
        let mut j = 0;
        while j + J <= taps {
            outer_tile::<S, J, V>(x.add(j), stride, y, lanes, w, sum.add(j * lanes));
            j += J;
        }
        while j + 9 <= taps && J > 9 {
            outer_tile::<S, 9, V>(x.add(j), stride, y, lanes, w, sum.add(j * lanes));
            j += 9;
        }
        while j + 3 <= taps && J > 3 {
            outer_tile::<S, 3, V>(x.add(j), stride, y, lanes, w, sum.add(j * lanes));
            j += 3;
        }
        while j < taps {
            outer_tile::<S, 1, V>(x.add(j), stride, y, lanes, w, sum.add(j * lanes));
            j += 1;
        }
    }
}

/// Adds a row's part of a weight gradient: `sum[j][l] += sum over p of x[p * stride + j] * y[p][l]`
/// for `taps` values of j. The row's own sum is formed first, which also keeps rounding small.
///
/// # Safety
/// As [`row_product`], for each of the `w` pixels of `x` and `y`; `sum` holds `[taps][lanes]`,
/// apart from them and nobody else's.
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
    // SAFETY: `lanes` is a multiple of 16, so that two vectors from `lane` on lie inside the rows,
    // or one; the rest the caller says
    unsafe {
        let mut lane = 0;
        while lane + 2 * LANES <= lanes {
            let (y, sum) = (y.add(lane), sum.add(lane));
            match S::REGISTERS {
                Registers::Many if taps.is_multiple_of(12) => {
                    outer_lanes::<S, 12, 2>(x, stride, taps, y, lanes, w, sum)
                }
                Registers::Many => outer_lanes::<S, 8, 2>(x, stride, taps, y, lanes, w, sum),
                Registers::Eight if S::MEMORY_OPERANDS => {
                    outer_lanes::<S, 3, 2>(x, stride, taps, y, lanes, w, sum)
                }
                Registers::Eight => [0, LANES].into_iter().for_each(|v| {
                    outer_lanes::<S, 6, 1>(x, stride, taps, y.add(v), lanes, w, sum.add(v))
                }),
                Registers::Few => outer_lanes::<S, 1, 2>(x, stride, taps, y, lanes, w, sum),
            }
            lane += 2 * LANES;
        }
        if lane < lanes {
            let (y, sum) = (y.add(lane), sum.add(lane));
            match S::REGISTERS {
                Registers::Many if taps == 12 => {
                    outer_lanes::<S, 12, 1>(x, stride, taps, y, lanes, w, sum)
                }
                Registers::Many => outer_lanes::<S, 16, 1>(x, stride, taps, y, lanes, w, sum),
                Registers::Eight => outer_lanes::<S, 6, 1>(x, stride, taps, y, lanes, w, sum),
                Registers::Few => outer_lanes::<S, 1, 1>(x, stride, taps, y, lanes, w, sum),
            }
        }
    }
}

/// Adds the column sums of a row `[w][lanes]` to `sum[lanes]`: a bias gradient.
///
/// # Safety
/// As [`row_product`]; `sum` holds `[lanes]`, apart from the row and nobody else's.
#[inline(always)]
pub unsafe fn row_sum<S: Simd>(y: *const f32, lanes: usize, w: usize, sum: *mut f32) {
    // SAFETY: pixels stay below `w` and vectors below `lanes`, a multiple of 16: the caller says
    // that row and sums hold them
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

/// P pixels of [`row_depthwise`] from where the pointers stand, in the vector of channels from
/// `lane` on.
///
/// # Safety
/// As [`row_depthwise`] for a row of P pixels; the vector lies inside the channels, and C is 0 or
/// their number.
#[inline(always)]
unsafe fn depthwise_tile<S: Simd, const P: usize, const C: usize>(
    rows: [*const f32; 3],
    weights: *const f32,
    bias: Option<*const f32>,
    channels: usize,
    lane: usize,
    out: *mut f32,
) {
    // SAFETY: the caller says that the rows hold `P + 2` pixels, `out` P, and weights and bias the
    // vector from `lane` on
    unsafe {
        let c = if C == 0 { channels } else { C };
        let start = match bias {
            Some(bias) => S::load(bias.add(lane)),
            None => S::splat(0.0),
        };
        let mut acc = [start; P];
        for (ky, row) in rows.iter().enumerate() {
            let tap = |kx: usize| weights.add((ky * 3 + kx) * c + lane);
            let w = [S::load(tap(0)), S::load(tap(1)), S::load(tap(2))];
            // a value is loaded once for the three pixels that see it
            for x in 0..P + 2 {
                let value = S::load(row.add(x * c + lane));
                for (kx, &w) in w.iter().enumerate() {
                    if x >= kx && x - kx < P {
                        acc[x - kx] = S::fma(value, w, acc[x - kx]);
                    }
                }
            }
        }
        for (p, &acc) in acc.iter().enumerate() {
            S::store(out.add(p * c + lane), acc);
        }
    }
}

/// [`row_depthwise`]; C is the number of channels where that is known when compiling, or 0.
///
/// # Safety
/// As [`row_depthwise`].
#[inline(always)]
unsafe fn depthwise_channels<S: Simd, const C: usize>(
    rows: [*const f32; 3],
    weights: *const f32,
    bias: Option<*const f32>,
    channels: usize,
    w: usize,
    out: *mut f32,
) {
    // SAFETY: no tile ends behind `w` pixels, and `c` is a multiple of 16; the rest is the caller's
    // word, as for `row_depthwise`
    unsafe {
        let c = if C == 0 { channels } else { C };
        for lane in (0..c).step_by(LANES) {
            let mut p = 0;
            while S::REGISTERS == Registers::Many && p + 8 <= w {
                depthwise_tile::<S, 8, C>(
                    rows.map(|r| r.add(p * c)),
                    weights,
                    bias,
                    channels,
                    lane,
                    out.add(p * c),
                );
                p += 8;
            }
            while S::REGISTERS == Registers::Eight && p + 4 <= w {
                depthwise_tile::<S, 4, C>(
                    rows.map(|r| r.add(p * c)),
                    weights,
                    bias,
                    channels,
                    lane,
                    out.add(p * c),
                );
                p += 4;
            }
            while p < w {
                depthwise_tile::<S, 1, C>(
                    rows.map(|r| r.add(p * c)),
                    weights,
                    bias,
                    channels,
                    lane,
                    out.add(p * c),
                );
                p += 1;
            }
        }
    }
}

/// One row of a depthwise 3x3: `out[p][c] = bias[c] + sum of rows[ky][p + kx][c] *
/// weights[ky][kx][c]`, rows padded by one pixel.
///
/// # Safety
/// The rows hold `w + 2` pixels of `c` channels, a multiple of 16, `weights` nine times and `bias`
/// once as many values, and `out`, apart from them and nobody else's, `w` pixels; and as [`Simd`].
#[inline(always)]
pub unsafe fn row_depthwise<S: Simd>(
    rows: [*const f32; 3],
    weights: *const f32,
    bias: Option<*const f32>,
    c: usize,
    w: usize,
    out: *mut f32,
) {
    // SAFETY: C is the `c` of the caller, whose word is handed on
    unsafe {
        match c {
            32 => depthwise_channels::<S, 32>(rows, weights, bias, c, w, out),
            _ => depthwise_channels::<S, 0>(rows, weights, bias, c, w, out),
        }
    }
}

/// [`row_depthwise_outer`]; C is the number of channels where that is known when compiling, or 0.
///
/// # Safety
/// As [`row_depthwise_outer`].
#[inline(always)]
unsafe fn depthwise_outer_channels<S: Simd, const C: usize>(
    rows: [*const f32; 3],
    y: *const f32,
    channels: usize,
    w: usize,
    sum: *mut f32,
) {
    // SAFETY: `x` stays below the `w + 2` pixels of the rows and is below `w` where `y` is read;
    // `c` is a multiple of 16
    unsafe {
        let c = if C == 0 { channels } else { C };
        for lane in (0..c).step_by(LANES) {
            let mut acc = [S::splat(0.0); 9];
            // a value is loaded once for the three gradients it meets: those of the two pixels
            // before, and of its own
            let (mut before, mut here) = (S::splat(0.0), S::splat(0.0));
            for x in 0..w + 2 {
                let next = if x < w {
                    S::load(y.add(x * c + lane))
                } else {
                    S::splat(0.0)
                };
                for (ky, row) in rows.iter().enumerate() {
                    let value = S::load(row.add(x * c + lane));
                    acc[ky * 3] = S::fma(value, next, acc[ky * 3]);
                    acc[ky * 3 + 1] = S::fma(value, here, acc[ky * 3 + 1]);
                    acc[ky * 3 + 2] = S::fma(value, before, acc[ky * 3 + 2]);
                }
                (before, here) = (here, next);
            }
            for (k, &acc) in acc.iter().enumerate() {
                let at = sum.add(k * c + lane);
                S::store(at, S::add(S::load(at), acc));
            }
        }
    }
}

/// Adds a row's part of a depthwise weight gradient: `sum[ky][kx][c] += sum over p of rows[ky][p +
/// kx][c] * y[p][c]`.
///
/// # Safety
/// The rows hold `w + 2` pixels of `c` channels, a multiple of 16, `y` holds `w`, and `sum`, apart
/// from them and nobody else's, nine; and as [`Simd`].
#[inline(always)]
pub unsafe fn row_depthwise_outer<S: Simd>(
    rows: [*const f32; 3],
    y: *const f32,
    c: usize,
    w: usize,
    sum: *mut f32,
) {
    // SAFETY: C is the `c` of the caller, whose word is handed on
    unsafe {
        match c {
            32 => depthwise_outer_channels::<S, 32>(rows, y, c, w, sum),
            _ => depthwise_outer_channels::<S, 0>(rows, y, c, w, sum),
        }
    }
}

/// P pixels of [`row_to_rgb`] from where the pointers stand; C as there.
///
/// # Safety
/// As [`row_to_rgb`] for a row of P pixels.
#[inline(always)]
unsafe fn dot_tile<S: Simd, const P: usize, const C: usize>(
    rows: [*const f32; 3],
    weights: *const f32,
    bias: [f32; 3],
    channels: usize,
    out: *mut f32,
) {
    // SAFETY: the caller says that the rows hold `P + 2` pixels of `c` values, `weights` 27 times
    // as many, and `out` the 3 P written here
    unsafe {
        let c = if C == 0 { channels } else { C };
        let mut acc = [[S::splat(0.0); 3]; P];
        for (ky, row) in rows.iter().enumerate() {
            for kx in 0..3 {
                for lane in (0..c).step_by(LANES) {
                    let w: [S::V; 3] = std::array::from_fn(|o| {
                        S::load(weights.add(((ky * 3 + kx) * 3 + o) * c + lane))
                    });
                    for (p, acc) in acc.iter_mut().enumerate() {
                        let x = S::load(row.add((p + kx) * c + lane));
                        for o in 0..3 {
                            acc[o] = S::fma(x, w[o], acc[o]);
                        }
                    }
                }
            }
        }
        for first in (0..3 * P).step_by(8) {
            // the sums of eight vectors cost little more than those of one
            let (mut eight, mut sums) = ([S::splat(0.0); 8], [0.0; 8]);
            let count = 8.min(3 * P - first);
            for (i, v) in eight.iter_mut().enumerate().take(count) {
                *v = acc[(first + i) / 3][(first + i) % 3];
            }
            S::sums(&eight, sums.as_mut_ptr());
            for (i, sum) in sums.iter().enumerate().take(count) {
                *out.add(first + i) = bias[(first + i) % 3] + sum;
            }
        }
    }
}

/// [`row_to_rgb`]; C is the number of channels where that is known when compiling, or 0.
///
/// # Safety
/// As [`row_to_rgb`].
#[inline(always)]
unsafe fn dot_channels<S: Simd, const C: usize>(
    rows: [*const f32; 3],
    weights: *const f32,
    bias: [f32; 3],
    channels: usize,
    w: usize,
    out: *mut f32,
) {
    // SAFETY: no tile ends behind `w` pixels; the rest is the caller's word, as for `row_to_rgb`
    unsafe {
        let c = if C == 0 { channels } else { C };
        let mut p = 0;
        while S::REGISTERS == Registers::Many && p + 8 <= w {
            dot_tile::<S, 8, C>(
                rows.map(|r| r.add(p * c)),
                weights,
                bias,
                channels,
                out.add(p * 3),
            );
            p += 8;
        }
        while S::REGISTERS == Registers::Eight && p + 2 <= w {
            dot_tile::<S, 2, C>(
                rows.map(|r| r.add(p * c)),
                weights,
                bias,
                channels,
                out.add(p * 3),
            );
            p += 2;
        }
        while p < w {
            dot_tile::<S, 1, C>(
                rows.map(|r| r.add(p * c)),
                weights,
                bias,
                channels,
                out.add(p * 3),
            );
            p += 1;
        }
    }
}

/// One row of a 3x3 convolution to three channels, where lanes run over the input channels:
/// `out[p][o] = bias[o] + sum of rows[ky][p + kx][c] * weights[ky][kx][o][c]`, rows padded by one
/// pixel.
///
/// # Safety
/// The rows hold `w + 2` pixels of `c` channels, a multiple of 16, `weights` 27 times `c` values,
/// and `out`, apart from them and nobody else's, `w` RGB pixels; and as [`Simd`].
#[inline(always)]
pub unsafe fn row_to_rgb<S: Simd>(
    rows: [*const f32; 3],
    weights: *const f32,
    bias: [f32; 3],
    c: usize,
    w: usize,
    out: *mut f32,
) {
    // SAFETY: C is the `c` of the caller, whose word is handed on
    unsafe {
        match c {
            16 => dot_channels::<S, 16>(rows, weights, bias, c, w, out),
            _ => dot_channels::<S, 0>(rows, weights, bias, c, w, out),
        }
    }
}

/// Copies a row of `len` values between `pad` zeros on either side; a missing row (outside the
/// image) becomes zeros.
///
/// # Safety
/// `out` has room for `len + 2 * pad` values, nobody else's, and the row, apart from it, holds
/// `len`.
#[inline(always)]
pub unsafe fn pad_row(row: Option<*const f32>, pad: usize, len: usize, out: *mut f32) {
    // SAFETY: the caller says that `out` has room for the values and both paddings, and that the
    // row holds `len`
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
