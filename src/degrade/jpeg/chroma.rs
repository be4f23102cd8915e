//! Chroma of a smaller size as libjpeg makes and enlarges it: means of two or four pixels whose
//! rounding alternates, and a triangle filter on the way back.

use super::super::lanes::dispatch;
use super::Component;

/// Pairs of columns that are halved at a time, an even number.
const PAIRS_AT_ONCE: usize = 64;

/// Halves a component in its place along x, and along y if `down` is 2. Beyond the border the last
/// column and row are repeated before the means are taken.
pub(super) fn downsample(
    plane: &mut [u8],
    (w, h): (usize, usize),
    stride: usize,
    small: &Component,
    down: usize,
) {
    for y in 0..small.height {
        let rows = [y * down, (y * down + down - 1).min(h - 1)];
        // the last column may be overwritten before it is read for the last time
        let last = rows.map(|row| u32::from(plane[row * stride + w - 1]));
        let to = y * small.stride;
        // the outputs of whole pairs; each block is read before its place is written
        for x in (0..w / 2).step_by(PAIRS_AT_ONCE) {
            let count = PAIRS_AT_ONCE.min(w / 2 - x);
            let pairs = rows.map(|row| &plane[row * stride + 2 * x..][..2 * count]);
            let mut means = [0; PAIRS_AT_ONCE];
            halve(pairs, down == 2, &mut means[..count]);
            plane[to + x..to + x + count].copy_from_slice(&means[..count]);
        }
        for x in w / 2..small.stride {
            let odd = (x & 1) as u32;
            let mean = match down {
                2 => (2 * last[0] + 2 * last[1] + 1 + odd) >> 2,
                _ => (2 * last[0] + odd) >> 1,
            };
            plane[to + x] = mean as u8;
        }
    }
}

dispatch! {
    /// The means of pairs of columns, and of the two rows if `both`. The first column has an even
    /// number.
    fn halve(rows: [&[u8]; 2], both: bool, out: &mut [u8]) {
        let pairs = rows[0].chunks_exact(2).zip(rows[1].chunks_exact(2));
        for (x, (out, (upper, lower))) in out.iter_mut().zip(pairs).enumerate() {
            let sum = |pair: &[u8]| u16::from(pair[0]) + u16::from(pair[1]);
            let odd = (x & 1) as u16;
            let mean = if both {
                (sum(upper) + sum(lower) + 1 + odd) >> 2
            } else {
                (sum(upper) + odd) >> 1
            };
            *out = mean as u8;
        }
    }
}

/// One row of the enlarged component; `out` holds at least one pixel more than the image is wide.
pub(super) fn upsampled_row(
    plane: &[u8],
    small: &Component,
    y: usize,
    (across, down): (usize, usize),
    out: &mut [i32],
) {
    let n = small.width;
    let row = |y: usize| &plane[y * small.stride..][..n];
    if across == 1 {
        for (out, value) in out.iter_mut().zip(row(y)) {
            *out = i32::from(*value);
        }
        return;
    }
    let near = row(y / down);
    if n <= 2 {
        for (pair, value) in out.chunks_mut(2).zip(near) {
            pair.fill(i32::from(*value));
        }
        return;
    }
    let far = match (down, y % 2) {
        (1, _) => near,
        (_, 0) => row((y / 2).saturating_sub(1)),
        _ => row((y / 2 + 1).min(small.height - 1)),
    };
    enlarge(near, far, down == 2, out);
}

dispatch! {
    /// Weights 3 and 1 along y if `both`, then along x; the rounding of the two outputs of a pixel
    /// differs. There are at least three pixels; the last column of an image of odd width has no
    /// second output.
    fn enlarge(near: &[u8], far: &[u8], both: bool, out: &mut [i32]) {
        let (shift, bias) = if both { (4, [8, 7]) } else { (2, [1, 2]) };
        let weights = if both { [3, 1] } else { [1, 0] };
        let n = near.len();
        let (far, inner) = (&far[..n], &mut out[2..]);
        let column = |x: usize| weights[0] * i32::from(near[x]) + weights[1] * i32::from(far[x]);
        for (x, pair) in inner.chunks_exact_mut(2).enumerate().take(n - 2) {
            let this = 3 * column(x + 1);
            pair[0] = (this + column(x) + bias[0]) >> shift;
            pair[1] = (this + column(x + 2) + bias[1]) >> shift;
        }
        out[0] = (4 * column(0) + bias[0]) >> shift;
        out[1] = (3 * column(0) + column(1) + bias[1]) >> shift;
        out[2 * n - 2] = (3 * column(n - 1) + column(n - 2) + bias[0]) >> shift;
        if let Some(second) = out.get_mut(2 * n - 1) {
            *second = (4 * column(n - 1) + bias[1]) >> shift;
        }
    }
}
