//! One row of a 3x3 convolution to three channels, with the input channels in the lanes.

use super::super::simd::{LANES, Registers, Simd};

/// P pixels of [`row_to_rgb`], from where `rows` and `out` point; C is `channels` as a constant, or
/// 0 for any number.
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
    // SAFETY: the caller guarantees that the rows hold `P + 2` pixels of `c` values and `weights`
    // 27 `c`, and that `out` has room for 3 P
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
            // summing the lanes of eight vectors costs little more than those of one
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

/// [`row_to_rgb`]; C is the number of channels as a constant, or 0 for any number.
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
    // SAFETY: no tile ends after pixel `w`; the rest is the caller's contract
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

/// One row of a 3x3 convolution to three channels, with the input channels in the lanes:
/// `out[p][o] = bias[o] + sum of rows[ky][p + kx][c] * weights[ky][kx][o][c]`, rows padded by one
/// pixel.
///
/// # Safety
/// As [`Simd`]. The rows hold `[w + 2, c]` values, `c` a multiple of 16, and `weights` holds
/// `[9, 3, c]`. `out` has room for `[w, 3]`, overlaps none of them, and no other thread uses it.
#[inline(always)]
pub unsafe fn row_to_rgb<S: Simd>(
    rows: [*const f32; 3],
    weights: *const f32,
    bias: [f32; 3],
    c: usize,
    w: usize,
    out: *mut f32,
) {
    // SAFETY: C is 0 or `c`; the rest is the caller's contract
    unsafe {
        match c {
            16 => dot_channels::<S, 16>(rows, weights, bias, c, w, out),
            _ => dot_channels::<S, 0>(rows, weights, bias, c, w, out),
        }
    }
}
