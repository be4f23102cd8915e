//! Chroma of a smaller size as libjpeg makes and enlarges it: means of two or four pixels whose
//! rounding alternates, and a triangle filter on the way back.

use super::Component;

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
        let last = rows.map(|row| plane[row * stride + w - 1]);
        for x in 0..small.stride {
            let pair = |which: usize| {
                let at = |column: usize| match column + 1 < w {
                    true => plane[rows[which] * stride + column],
                    false => last[which],
                };
                u32::from(at(2 * x)) + u32::from(at(2 * x + 1))
            };
            let odd = (x & 1) as u32;
            let mean = match down {
                2 => (pair(0) + pair(1) + 1 + odd) >> 2,
                _ => (pair(0) + odd) >> 1,
            };
            plane[y * small.stride + x] = mean as u8;
        }
    }
}

/// One row of the enlarged component; `out` holds at least one pixel more than the image is wide.
pub(super) fn upsampled_row(
    plane: &[u8],
    small: &Component,
    y: usize,
    (across, down): (usize, usize),
    out: &mut [f32],
) {
    let n = small.width;
    let row = |y: usize| &plane[y * small.stride..][..n];
    if across == 1 {
        for (out, value) in out.iter_mut().zip(row(y)) {
            *out = f32::from(*value);
        }
        return;
    }
    let near = row(y / down);
    if n <= 2 {
        for (pair, value) in out.chunks_mut(2).zip(near) {
            pair.fill(f32::from(*value));
        }
        return;
    }
    let far = match (down, y % 2) {
        (1, _) => near,
        (_, 0) => row((y / 2).saturating_sub(1)),
        _ => row((y / 2 + 1).min(small.height - 1)),
    };
    // weights 3 and 1 along y, then along x; the rounding of the two outputs of a pixel differs
    let (shift, bias) = if down == 2 { (4, [8, 7]) } else { (2, [1, 2]) };
    let column = |x: usize| match down {
        2 => 3 * u32::from(near[x]) + u32::from(far[x]),
        _ => u32::from(near[x]),
    };
    for x in 0..n {
        let this = column(x);
        let left = if x == 0 { this } else { column(x - 1) };
        let right = if x + 1 == n { this } else { column(x + 1) };
        out[2 * x] = ((3 * this + left + bias[0]) >> shift) as f32;
        // the last column of an image of odd width has no second pixel
        if let Some(second) = out.get_mut(2 * x + 1) {
            *second = ((3 * this + right + bias[1]) >> shift) as f32;
        }
    }
}
