//! One row of a depthwise 3x3 convolution, and of its weight gradient.

use super::super::simd::{LANES, Registers, Simd};

/// P pixels of [`row_depthwise`], from where `rows` and `out` point, for the vector of channels
/// from `lane` on. C is `channels` as a constant, or 0 for any number.
///
/// # Safety
/// As [`row_depthwise`] for a row of P pixels; the vector lies inside the channels.
#[inline(always)]
unsafe fn depthwise_tile<S: Simd, const P: usize, const C: usize>(
    rows: [*const f32; 3],
    weights: *const f32,
    bias: Option<*const f32>,
    channels: usize,
    lane: usize,
    out: *mut f32,
) {
    // SAFETY: the caller guarantees that the rows hold `P + 2` pixels, `out` has room for P, and
    // weights and bias hold the vector from `lane` on
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
            // each value is loaded once for the three pixels that read it
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

/// [`row_depthwise`]; C is the number of channels as a constant, or 0 for any number.
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
    // SAFETY: no tile ends after pixel `w`, and `c` is a multiple of 16; the rest is the caller's
    // contract
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

/// One row of a depthwise 3x3 convolution: `out[p][c] = bias[c] + sum of rows[ky][p + kx][c] *
/// weights[ky][kx][c]`, rows padded by one pixel.
///
/// # Safety
/// As [`Simd`]. The rows hold `[w + 2, c]` values, `c` a multiple of 16; `weights` holds `[9, c]`
/// and `bias` `[c]`. `out` has room for `[w, c]`, overlaps none of them, and no other thread uses
/// it.
#[inline(always)]
pub unsafe fn row_depthwise<S: Simd>(
    rows: [*const f32; 3],
    weights: *const f32,
    bias: Option<*const f32>,
    c: usize,
    w: usize,
    out: *mut f32,
) {
    // SAFETY: C is 0 or `c`; the rest is the caller's contract
    unsafe {
        match c {
            32 => depthwise_channels::<S, 32>(rows, weights, bias, c, w, out),
            _ => depthwise_channels::<S, 0>(rows, weights, bias, c, w, out),
        }
    }
}

/// [`row_depthwise_outer`]; C is the number of channels as a constant, or 0 for any number.
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
    // SAFETY: `x` stays below the `w + 2` pixels of the rows, `y` is read at pixels below `w` only,
    // and `c` is a multiple of 16
    unsafe {
        let c = if C == 0 { channels } else { C };
        for lane in (0..c).step_by(LANES) {
            let mut acc = [S::splat(0.0); 9];
            // Each value is loaded once and multiplied with three gradients: its own pixel's and
            // those of the two pixels before.
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

/// Adds one row's part of a depthwise weight gradient: `sum[ky][kx][c] += sum over p of rows[ky][p
/// + kx][c] * y[p][c]`.
///
/// # Safety
/// As [`Simd`]. The rows hold `[w + 2, c]` values, `c` a multiple of 16, and `y` holds `[w, c]`.
/// `sum` holds `[9, c]`, overlaps none of them, and no other thread uses it.
#[inline(always)]
pub unsafe fn row_depthwise_outer<S: Simd>(
    rows: [*const f32; 3],
    y: *const f32,
    c: usize,
    w: usize,
    sum: *mut f32,
) {
    // SAFETY: C is 0 or `c`; the rest is the caller's contract
    unsafe {
        match c {
            32 => depthwise_outer_channels::<S, 32>(rows, y, c, w, sum),
            _ => depthwise_outer_channels::<S, 0>(rows, y, c, w, sum),
        }
    }
}
