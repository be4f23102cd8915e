//! The fixed classical upsampler, Magic Kernel Sharp 2021: optional sharpening, nearest-neighbour
//! upsampling, blur, all separable and zero padded as in the published networks. Sharpening is done
//! at LQ size for a band of rows; upsampling and blur are one step, three LQ pixels for each HR
//! pixel in either direction, a row at a time. Plain loops over contiguous RGB.

use super::arena::SharedPtr;
use super::pixels::subtract_row;
use super::tasks::{Bands, round_up_to_lanes};
use crate::plan::{Extent, Reconstruct};
use std::ops::Range;

/// Sharpening taps (symmetric, over 32), then blur taps (over 16).
const SHARP: [f32; 7] = [
    -1.0 / 32.0,
    0.0,
    9.0 / 32.0,
    16.0 / 32.0,
    9.0 / 32.0,
    0.0,
    -1.0 / 32.0,
];
const BLUR: [f32; 5] = [1.0 / 16.0, 4.0 / 16.0, 6.0 / 16.0, 4.0 / 16.0, 1.0 / 16.0];

/// LQ rows above and below a band that its HR rows depend on: 1 for the blur, 3 for the sharpening.
const REACH: usize = 4;

/// What an LQ row is multiplied by on its way to HR: scales are at least 2, so the blur of a
/// repeated pixel reaches one neighbour.
fn phase(scale: usize, phase: usize) -> [f32; 3] {
    let mut taps = [0.0; 3];
    for (k, &tap) in BLUR.iter().enumerate() {
        // place of the tap in repeated pixels, counted from the first copy of the neighbour before
        taps[(scale + phase + k - 2) / scale] += tap;
    }
    taps
}

/// f32 elements of a padded LQ row.
fn padded(w: usize) -> usize {
    (w + 2) * 3
}

/// f32 elements of prepared rows of a band of `rows` LQ rows of width `w`.
pub fn prepared(rows: usize, w: usize) -> usize {
    (rows + 2) * padded(w)
}

/// f32 elements of scratch that [`prepare`] needs.
pub fn scratch(rows: usize, w: usize) -> usize {
    // horizontally sharpened rows, one padded row
    (rows + 2 * REACH) * w * 3 + (w + 6) * 3
}

/// f32 elements of scratch that [`upsample`] needs.
pub fn line(w: usize, scale: usize) -> usize {
    // a blurred LQ row, and its phases
    padded(w) + scale * (w * 3 + 1)
}

/// Whether values are taken as they are, or as the integers 0..=255 that they came from: then the
/// base without sharpening is exact in f32 (8 bits of pixel and 8 of taps).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// 0..=1.
    One,
    /// 0..=255.
    Level,
}

/// LQ rows `band.start - 1 ..= band.end` of one image `[h][w][3]` with a zero pixel on either side
/// and zero rows outside the image: the image itself to `plain`, and what sharpening of
/// strength `alpha` adds to it to `added`. Both have [`prepared`] elements.
#[inline(always)]
pub fn prepare(
    image: &[f32],
    extent: Extent,
    (alpha, unit): (f32, Unit),
    band: Range<usize>,
    scratch: &mut [f32],
    plain: &mut [f32],
    added: &mut [f32],
) {
    let (h, w, start) = (extent.h, extent.w, band.start);
    let (row, stride, count) = (w * 3, padded(w), band.end - band.start);
    let source = |y: isize| (y >= 0 && y < h as isize).then(|| &image[y as usize * row..][..row]);
    let copy = |from: &[f32], to: &mut [f32]| match unit {
        Unit::One => to.copy_from_slice(from),
        Unit::Level => to
            .iter_mut()
            .zip(from)
            .for_each(|(o, &x)| *o = (x * 255.0).round_ties_even()),
    };
    for (i, out) in plain.chunks_exact_mut(stride).enumerate() {
        out.fill(0.0);
        if let Some(x) = source((start + i) as isize - 1) {
            copy(x, &mut out[3..3 + row]);
        }
    }
    added.fill(0.0);
    if alpha == 0.0 {
        return;
    }
    let (across, line) = scratch.split_at_mut((count + 2 * REACH) * row);
    line[..9].fill(0.0);
    line[9 + row..18 + row].fill(0.0);
    for (i, out) in across.chunks_exact_mut(row).enumerate() {
        match source((start + i) as isize - REACH as isize) {
            Some(x) => {
                copy(x, &mut line[9..9 + row]);
                correlate(std::array::from_fn(|k| &line[3 * k..][..row]), &SHARP, out);
            }
            None => out.fill(0.0),
        }
    }
    for (i, (out, plain)) in added
        .chunks_exact_mut(stride)
        .zip(plain.chunks_exact(stride))
        .enumerate()
    {
        // rows outside the image stay the zero padding of the blur
        if source((start + i) as isize - 1).is_some() {
            let out = &mut out[3..3 + row];
            correlate(
                std::array::from_fn(|k| &across[(i + k) * row..][..row]),
                &SHARP,
                out,
            );
            out.iter_mut()
                .zip(&plain[3..3 + row])
                .for_each(|(o, &p)| *o = alpha * (*o - p));
        }
    }
}

/// `out[i] = sum of taps[k] * parts[k][i]`.
#[inline(always)]
fn correlate<const K: usize>(parts: [&[f32]; K], taps: &[f32; K], out: &mut [f32]) {
    let n = out.len();
    let parts = parts.map(|part| &part[..n]);
    for i in 0..n {
        let mut sum = 0.0;
        for k in 0..K {
            sum += taps[k] * parts[k][i];
        }
        out[i] = sum;
    }
}

/// One HR row of a band: row `y`, counted from the band's first, of the upsampled and blurred
/// `prepared` rows. `out` has `w * scale * 3` elements, `line` as many as [`line`] says.
#[inline(always)]
pub fn upsample(
    prepared: &[f32],
    w: usize,
    scale: usize,
    y: usize,
    line: &mut [f32],
    out: &mut [f32],
) {
    let (stride, row) = (padded(w), w * 3);
    let (blurred, phases) = line.split_at_mut(stride);
    let around = &prepared[y / scale * stride..][..3 * stride];
    correlate(
        [
            &around[..stride],
            &around[stride..2 * stride],
            &around[2 * stride..],
        ],
        &phase(scale, y % scale),
        blurred,
    );
    for (p, part) in phases.chunks_exact_mut(row + 1).enumerate() {
        correlate(
            std::array::from_fn(|k| &blurred[3 * k..][..row]),
            &phase(scale, p),
            &mut part[..row],
        );
    }
    match scale {
        2 => interleave::<2>(phases, w, out),
        3 => interleave::<3>(phases, w, out),
        4 => interleave::<4>(phases, w, out),
        _ => interleave::<8>(phases, w, out),
    }
}

/// `out[x * S + p] = phases[p][x]` over RGB pixels; each phase holds one value more than its
/// pixels.
#[inline(always)]
fn interleave<const S: usize>(phases: &[f32], w: usize, out: &mut [f32]) {
    let (stride, wide) = (w * 3 + 1, w * S * 3);
    assert!(phases.len() >= S * stride && out.len() == wide);
    // a pixel is moved with the value behind it, which the next pixel overwrites: one move of four
    // instead of three of one
    for x in 0..w {
        for p in 0..S {
            let (from, to) = (p * stride + x * 3, (x * S + p) * 3);
            if to + 4 <= wide {
                // SAFETY: a pixel and the value behind it lie inside their phase, whose length was
                // checked above, as was the room in `out`
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        phases.as_ptr().add(from),
                        out.as_mut_ptr().add(to),
                        4,
                    )
                };
            } else {
                out[to..].copy_from_slice(&phases[from..from + 3]);
            }
        }
    }
}

/// f32 elements that a [`BaseBand`] works in.
pub fn base_scratch(op: &Reconstruct) -> usize {
    let (rows, w, wide) = (
        Bands::new(op.extent).rows(),
        op.extent.w,
        op.extent.w * op.scale,
    );
    round_up_to_lanes(wide * 3)
        + 2 * round_up_to_lanes(prepared(rows, w))
        + round_up_to_lanes(scratch(rows, w))
        + round_up_to_lanes(line(w, op.scale))
}

/// The base of a band of LQ rows, row by row at HR; less the target, where one is to be subtracted.
pub struct BaseBand<'a> {
    op: &'a Reconstruct,
    image: usize,
    /// HR row of the band's first.
    first: usize,
    plain: &'a mut [f32],
    added: &'a mut [f32],
    line: &'a mut [f32],
    sharpening: &'a mut [f32],
    bytes: SharedPtr<u8>,
}

impl<'a> BaseBand<'a> {
    /// Prepares the band's rows of `input` in `room`, of [`base_scratch`] elements.
    ///
    /// # Safety
    /// `input` holds the images of the extent and `bytes` the staged batch of the target, if there
    /// is one, and nobody writes them while the result lives; `image` is one of the images and
    /// `rows` a band of them; `room` is nobody else's.
    #[inline(always)]
    pub unsafe fn new(
        op: &'a Reconstruct,
        input: SharedPtr<f32>,
        bytes: SharedPtr<u8>,
        image: usize,
        rows: Range<usize>,
        room: SharedPtr<f32>,
    ) -> BaseBand<'a> {
        let Reconstruct {
            extent,
            scale,
            alpha,
            ..
        } = *op;
        let mut at = 0;
        let mut take = |len: usize| {
            at += round_up_to_lanes(len);
            // SAFETY: the pieces are those that `base_scratch` counts, one behind the other; the
            // caller says that the room is nobody else's
            unsafe { room.slice(at - round_up_to_lanes(len), len) }
        };
        let prepared = prepared(rows.len(), extent.w);
        let (sharpening, plain, added) =
            (take(extent.w * scale * 3), take(prepared), take(prepared));
        let (work, line) = (
            take(scratch(rows.len(), extent.w)),
            take(line(extent.w, scale)),
        );
        // SAFETY: the caller says that the image lies inside the input and that nobody writes it;
        // tasks of other bands read it, too
        let lq = unsafe { input.view(image * extent.h * extent.w * 3, extent.h * extent.w * 3) };
        let unit = if op.target.is_some() {
            Unit::Level
        } else {
            Unit::One
        };
        prepare(lq, extent, (alpha, unit), rows.clone(), work, plain, added);
        if op.target.is_none() {
            plain.iter_mut().zip(&*added).for_each(|(p, &a)| *p += a);
        }
        BaseBand {
            op,
            image,
            first: rows.start * scale,
            plain,
            added,
            line,
            sharpening,
            bytes,
        }
    }

    /// HR row `y` of the image, `[W][3]`.
    ///
    /// # Safety
    /// As [`BaseBand::new`], whose staged batch is still the same; `y` is a row of the band, and
    /// `out` a row long.
    #[inline(always)]
    pub unsafe fn row(&mut self, y: usize, out: &mut [f32]) {
        let Reconstruct { extent, scale, .. } = *self.op;
        upsample(self.plain, extent.w, scale, y - self.first, self.line, out);
        if let Some(batch) = self.op.target {
            // SAFETY: the batch holds patch and code of every image, by its layout, and the caller
            // says that `out` is a row
            unsafe {
                let (patch, code) = (
                    self.bytes.at(batch.hr_of(self.image)),
                    *self.bytes.at(batch.augment_of(self.image)),
                );
                subtract_row(patch, code, y, (extent.h * scale, extent.w * scale), out);
            }
            // the exact part has done its work: what is left is small, and f32 keeps it well
            upsample(
                self.added,
                extent.w,
                scale,
                y - self.first,
                self.line,
                self.sharpening,
            );
            out.iter_mut()
                .zip(&*self.sharpening)
                .for_each(|(b, &s)| *b = (*b + s) / 255.0);
        }
    }
}

/// [`backward`] for every image of a batch: `d_out` `[N][H][W][3]` to `d_in` `[N][h][w][3]`.
pub fn backward_batch(
    d_out: SharedPtr<f32>,
    extent: Extent,
    scale: usize,
    alpha: f32,
    d_in: SharedPtr<f32>,
) {
    let (lq, hr) = (
        extent.h * extent.w * 3,
        extent.h * extent.w * 3 * scale * scale,
    );
    for image in 0..extent.n {
        // SAFETY: the images lie inside their buffers, which are two, and no task runs
        let (d_out, d_in) = unsafe { (d_out.view(image * hr, hr), d_in.slice(image * lq, lq)) };
        backward(d_out, extent, scale, alpha, d_in);
    }
}

/// Gradient of the base with respect to its input, for one image: `d_out` `[H][W][3]` to `d_in`
/// `[h][w][3]`. Plain and slow: training never needs it, tests do.
fn backward(d_out: &[f32], extent: Extent, scale: usize, alpha: f32, d_in: &mut [f32]) {
    let (h, w) = (extent.h, extent.w);
    let (hh, ww) = (h * scale, w * scale);
    let at = |y: usize, x: usize, c: usize, w: usize| (y * w + x) * 3 + c;
    // the blur is symmetric, so its transpose is itself
    let blur =
        |g: &[f64], vertical: bool| -> Vec<f64> { correlate_plain(g, hh, ww, &BLUR, vertical) };
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
        let sharp = correlate_plain(
            &correlate_plain(&low, h, w, &SHARP, true),
            h,
            w,
            &SHARP,
            false,
        );
        let alpha = f64::from(alpha);
        low.iter_mut()
            .zip(&sharp)
            .for_each(|(l, &s)| *l += alpha * (s - *l));
    }
    d_in.iter_mut().zip(&low).for_each(|(d, &l)| *d = l as f32);
}

fn correlate_plain(x: &[f64], h: usize, w: usize, taps: &[f32], vertical: bool) -> Vec<f64> {
    let reach = taps.len() as isize / 2;
    let mut out = vec![0.0; x.len()];
    for (i, out) in out.iter_mut().enumerate() {
        let (c, column, row) = (i % 3, (i / 3 % w) as isize, (i / 3 / w) as isize);
        for (k, &tap) in (-reach..).zip(taps) {
            let (y, x_at) = if vertical {
                (row + k, column)
            } else {
                (row, column + k)
            };
            if y >= 0 && y < h as isize && x_at >= 0 && x_at < w as isize {
                *out += f64::from(tap) * x[(y as usize * w + x_at as usize) * 3 + c];
            }
        }
    }
    out
}
