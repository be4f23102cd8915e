//! The fixed classical upsampler, Magic Kernel Sharp 2021: optional sharpening, nearest-neighbour upsampling, blur, all
//! separable and zero padded as in the published networks. A band of rows at a time, from plain loops over contiguous RGB.

use crate::plan::Extent;
use std::ops::Range;

/// Sharpening taps (symmetric, over 32), then blur taps (over 16).
const SHARP: [f32; 7] = [-1.0 / 32.0, 0.0, 9.0 / 32.0, 16.0 / 32.0, 9.0 / 32.0, 0.0, -1.0 / 32.0];
const BLUR: [f32; 5] = [1.0 / 16.0, 4.0 / 16.0, 6.0 / 16.0, 4.0 / 16.0, 1.0 / 16.0];

/// LQ rows above and below a band that its HR rows depend on: 1 for the blur, 3 for the sharpening.
const REACH: usize = 4;

/// f32 elements of scratch for a band of `rows` LQ rows of width `w`.
pub fn scratch(rows: usize, w: usize, scale: usize) -> usize {
    let wide = w * scale;
    // sharpened horizontally, sharpened, upsampled rows; one padded row; one upsampled row
    (rows + 2 * REACH) * w * 3 + (rows + 2) * w * 3 + (rows + 2) * wide * 3 + (wide + 6) * 3 + (wide + 6) * 3
}

/// `out[x] = sum of taps[k] * padded[x + k]` over interleaved RGB; `padded` holds `taps - 1` more pixels.
#[inline(always)]
fn correlate<const K: usize>(padded: &[f32], taps: &[f32; K], out: &mut [f32]) {
    let n = out.len();
    let parts: [&[f32]; K] = std::array::from_fn(|k| &padded[3 * k..][..n]);
    for i in 0..n {
        let mut sum = 0.0;
        for k in 0..K {
            sum += taps[k] * parts[k][i];
        }
        out[i] = sum;
    }
}

/// Base rows of a band of LQ rows of one image `[h][w][3]`, for a scale and a strength alpha: writes `[rows * scale][w * scale][3]` to
/// `out`; `scratch` has [`scratch`] elements.
#[inline(always)]
pub fn rows(image: &[f32], extent: Extent, (scale, alpha): (usize, f32), band: Range<usize>, scratch: &mut [f32], out: &mut [f32]) {
    let mix = |plain: f32, sharp: f32| plain + alpha * (sharp - plain);
    combine(image, extent, scale, band, (1.0, alpha > 0.0), mix, scratch, out);
}

/// The base of u8 pictures in units of 1/255, in two parts to be added: the blurred upsampling of the integers themselves, exact
/// in f32 (8 bits of pixel and 8 of taps), to `out`, and what sharpening adds, which is small, to `sharpening`.
#[inline(always)]
pub fn rows_in_units(
    image: &[f32],
    extent: Extent,
    (scale, alpha): (usize, f32),
    band: Range<usize>,
    scratch: &mut [f32],
    out: &mut [f32],
    sharpening: &mut [f32],
) {
    combine(image, extent, scale, band.clone(), (255.0, false), |plain, _| plain, scratch, out);
    if alpha > 0.0 {
        combine(image, extent, scale, band, (255.0, true), |plain, sharp| alpha * (sharp - plain), scratch, sharpening);
    } else {
        sharpening.fill(0.0);
    }
}

/// The upsampled and blurred band of `mix(plain, sharpened)`, of a picture times `unit` (255: rounded to the integers it came
/// from); `sharpen` tells whether the second value is needed.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn combine(
    image: &[f32],
    extent: Extent,
    scale: usize,
    band: Range<usize>,
    (unit, sharpen): (f32, bool),
    mix: impl Fn(f32, f32) -> f32,
    scratch: &mut [f32],
    out: &mut [f32],
) {
    let value = |x: f32| if unit == 1.0 { x } else { (x * unit).round_ties_even() };
    let (h, w, start, end) = (extent.h, extent.w, band.start, band.end);
    let (row, wide) = (w * 3, w * scale * 3);
    let count = end - start;
    let (sharp_h, rest) = scratch.split_at_mut((count + 2 * REACH) * row);
    let (sharp, rest) = rest.split_at_mut((count + 2) * row);
    let (upsampled, rest) = rest.split_at_mut((count + 2) * wide);
    let (padded, line) = rest.split_at_mut(wide + 18);
    let source = |y: isize| (y >= 0 && y < h as isize).then(|| &image[y as usize * row..][..row]);
    // sharpened (or plain) LQ rows start - 1 ..= end
    for i in 0..count + 2 {
        let y = (start + i) as isize - 1;
        let out = &mut sharp[i * row..][..row];
        match source(y) {
            Some(x) => out.iter_mut().zip(x).for_each(|(o, &x)| *o = value(x)),
            None => out.fill(0.0),
        }
    }
    if sharpen {
        for i in 0..count + 2 * REACH {
            let out = &mut sharp_h[i * row..][..row];
            let Some(x) = source((start + i) as isize - REACH as isize) else {
                out.fill(0.0);
                continue;
            };
            padded[..9].fill(0.0);
            padded[9..9 + row].iter_mut().zip(x).for_each(|(p, &x)| *p = value(x));
            padded[9 + row..18 + row].fill(0.0);
            correlate(&padded[..row + 18], &SHARP, out);
        }
        for i in 0..count + 2 {
            // rows outside the picture stay the zero padding of the blur
            if source((start + i) as isize - 1).is_none() {
                continue;
            }
            let parts: [&[f32]; 7] = std::array::from_fn(|k| &sharp_h[(i + k) * row..][..row]);
            let out = &mut sharp[i * row..][..row];
            for j in 0..row {
                let mut sum = 0.0;
                for k in 0..7 {
                    sum += SHARP[k] * parts[k][j];
                }
                out[j] = mix(out[j], sum);
            }
        }
    }
    for i in 0..count + 2 {
        let x = &sharp[i * row..][..row];
        line[..6].fill(0.0);
        for (pixel, to) in x.chunks_exact(3).zip(line[6..].chunks_exact_mut(3 * scale)) {
            to.chunks_exact_mut(3).for_each(|t| t.copy_from_slice(pixel));
        }
        line[6 + wide..12 + wide].fill(0.0);
        correlate(&line[..wide + 12], &BLUR, &mut upsampled[i * wide..][..wide]);
    }
    let last = (h * scale) as isize;
    for i in 0..count * scale {
        let y = (start * scale + i) as isize;
        let out = &mut out[i * wide..][..wide];
        out.fill(0.0);
        for (k, &tap) in BLUR.iter().enumerate() {
            let from = y + k as isize - 2;
            if from < 0 || from >= last {
                continue;
            }
            let lq = from as usize / scale + 1 - start;
            out.iter_mut().zip(&upsampled[lq * wide..][..wide]).for_each(|(o, &u)| *o += tap * u);
        }
    }
}

/// Gradient of the base with respect to its input, for one image: `d_out` `[H][W][3]` to `d_in` `[h][w][3]`. Plain and slow:
/// training never needs it, tests do.
pub fn backward(d_out: &[f32], extent: Extent, scale: usize, alpha: f32, d_in: &mut [f32]) {
    let (h, w) = (extent.h, extent.w);
    let (hh, ww) = (h * scale, w * scale);
    let at = |y: usize, x: usize, c: usize, w: usize| (y * w + x) * 3 + c;
    // the blur is symmetric, so its transpose is itself
    let blur = |g: &[f64], vertical: bool| -> Vec<f64> { correlate_plain(g, hh, ww, &BLUR, vertical) };
    let wide: Vec<f64> = d_out.iter().map(|&g| f64::from(g)).collect();
    let wide = blur(&blur(&wide, true), false);
    let mut low = vec![0f64; h * w * 3];
    for y in 0..hh {
        for x in 0..ww {
            for c in 0..3 {
                low[at(y / scale, x / scale, c, w)] += wide[at(y, x, c, ww)];
            }
        }
    }
    if alpha > 0.0 {
        let sharp = correlate_plain(&correlate_plain(&low, h, w, &SHARP, true), h, w, &SHARP, false);
        let alpha = f64::from(alpha);
        low.iter_mut().zip(&sharp).for_each(|(l, &s)| *l += alpha * (s - *l));
    }
    d_in.iter_mut().zip(&low).for_each(|(d, &l)| *d = l as f32);
}

fn correlate_plain(x: &[f64], h: usize, w: usize, taps: &[f32], vertical: bool) -> Vec<f64> {
    let reach = taps.len() as isize / 2;
    let mut out = vec![0.0; x.len()];
    for (i, out) in out.iter_mut().enumerate() {
        let (c, column, row) = (i % 3, (i / 3 % w) as isize, (i / 3 / w) as isize);
        for (k, &tap) in (-reach..).zip(taps) {
            let (y, x_at) = if vertical { (row + k, column) } else { (row, column + k) };
            if y >= 0 && y < h as isize && x_at >= 0 && x_at < w as isize {
                *out += f64::from(tap) * x[(y as usize * w + x_at as usize) * 3 + c];
            }
        }
    }
    out
}
