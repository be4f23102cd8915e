//! The base, a fixed classical upsampler: Magic Kernel Sharp 2021 (John Costella, "The Magic
//! Kernel"). It consists of optional sharpening, nearest-neighbour upsampling and a blur, all
//! separable and with zero padding, as in the published networks. Sharpening runs at LQ size on a
//! band of rows. Upsampling and blur are one step, in which each HR pixel depends on three LQ
//! pixels in either direction; it runs row by row. Plain loops over contiguous RGB; depends on
//! `pixels` for the target.

use super::arena::SharedPtr;
use super::pixels::subtract_row;
use super::reconstruct::bands as reconstruct_bands;
use super::tasks::round_up_to_lanes;
use crate::backend::formulas::{BLUR_TAPS as BLUR, SHARP_TAPS as SHARP};
use crate::plan::{Extent, Reconstruct};
use std::ops::Range;

/// LQ rows above and below a band on which its HR rows depend: 1 for the blur, 3 for the
/// sharpening.
const REACH: usize = 4;

/// The taps on an LQ pixel and its two neighbours that give the HR pixel at `phase`. Scales are at
/// least 2, so the blur of repeated pixels reaches one neighbour on each side.
fn phase_taps(scale: usize, phase: usize) -> [f32; 3] {
    let mut taps = [0.0; 3];
    for (k, &tap) in BLUR.iter().enumerate() {
        // the tap's position in repeated pixels, counted from the first copy of the left neighbour
        taps[(scale + phase + k - 2) / scale] += tap;
    }
    taps
}

/// f32 values of an LQ row with one pixel of padding on either side.
fn padded(w: usize) -> usize {
    (w + 2) * 3
}

/// f32 values of the prepared rows of a band of `rows` LQ rows of width `w`.
pub fn prepared(rows: usize, w: usize) -> usize {
    (rows + 2) * padded(w)
}

/// f32 values of scratch that [`prepare`] needs.
pub fn scratch(rows: usize, w: usize) -> usize {
    // horizontally sharpened rows, and one row padded for the sharpening
    (rows + 2 * REACH) * w * 3 + (w + 6) * 3
}

/// f32 values of scratch that [`upsample`] needs.
pub fn line(w: usize, scale: usize) -> usize {
    // a vertically blurred LQ row, and its phases
    padded(w) + scale * (w * 3 + 1)
}

/// The unit of the prepared rows. With the integers 0..=255 that the values came from, the base
/// without sharpening is exact in f32 (8 bits of pixel and 8 bits of taps).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PixelUnit {
    /// The values as they are, 0..=1.
    One,
    /// Integers 0..=255.
    Byte,
}

/// Prepares LQ rows `band.start - 1 ..= band.end` of one image `[h, w, 3]`: writes the rows to
/// `plain`, and what sharpening of strength `alpha` adds to them to `added`. Both have [`prepared`]
/// values: rows with a zero pixel on either side, and rows of zeros outside the image.
#[inline(always)]
pub fn prepare(
    image: &[f32],
    extent: Extent,
    (alpha, unit): (f32, PixelUnit),
    band: Range<usize>,
    scratch: &mut [f32],
    plain: &mut [f32],
    added: &mut [f32],
) {
    let (h, w, start) = (extent.h, extent.w, band.start);
    let (row, stride, count) = (w * 3, padded(w), band.end - band.start);
    let source = |y: isize| (y >= 0 && y < h as isize).then(|| &image[y as usize * row..][..row]);
    let copy = |from: &[f32], to: &mut [f32]| match unit {
        PixelUnit::One => to.copy_from_slice(from),
        PixelUnit::Byte => to
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
        // rows outside the image remain zeros, the padding of the blur
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

/// Writes to `out` `[w * scale, 3]` the HR row `y`, counted from the band's first, of the upsampled
/// and blurred `prepared` rows. `line` has [`line`] values.
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
        &phase_taps(scale, y % scale),
        blurred,
    );
    for (p, part) in phases.chunks_exact_mut(row + 1).enumerate() {
        correlate(
            std::array::from_fn(|k| &blurred[3 * k..][..row]),
            &phase_taps(scale, p),
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

/// `out[x * S + p] = phases[p][x]` over RGB pixels. Each phase holds one value more than its
/// pixels.
#[inline(always)]
fn interleave<const S: usize>(phases: &[f32], w: usize, out: &mut [f32]) {
    let (stride, wide) = (w * 3 + 1, w * S * 3);
    assert!(phases.len() >= S * stride && out.len() == wide);
    // Each pixel is copied together with the value after it, which the next pixel overwrites: one
    // copy of four values is faster than three of one.
    for x in 0..w {
        for p in 0..S {
            let (from, to) = (p * stride + x * 3, (x * S + p) * 3);
            if to + 4 <= wide {
                // SAFETY: a pixel and the value after it lie inside their phase, whose length was
                // checked above, as was the length of `out`
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

/// f32 values of the memory that a [`BaseBand`] works in.
pub fn base_scratch(op: &Reconstruct) -> usize {
    let (rows, w, wide) = (
        reconstruct_bands(op).rows(),
        op.extent.w,
        op.extent.w * op.scale,
    );
    round_up_to_lanes(wide * 3)
        + 2 * round_up_to_lanes(prepared(rows, w))
        + round_up_to_lanes(scratch(rows, w))
        + round_up_to_lanes(line(w, op.scale))
}

/// The base of a band of LQ rows, computed row by row at HR; less the target, if the operation has
/// one.
pub struct BaseBand<'a> {
    op: &'a Reconstruct,
    image: usize,
    /// First HR row of the band.
    first: usize,
    /// The rows of [`prepare`].
    plain: &'a mut [f32],
    added: &'a mut [f32],
    line: &'a mut [f32],
    /// One HR row of the upsampled sharpening.
    sharpening: &'a mut [f32],
    /// The staged batch, if there is a target.
    bytes: SharedPtr<u8>,
}

impl<'a> BaseBand<'a> {
    /// Prepares LQ rows `rows` of `input` `[N, h, w, 3]` in `room`, which has [`base_scratch`]
    /// values.
    ///
    /// # Safety
    /// `input` holds all images, and `bytes` the staged batch if the operation has a target; no
    /// thread writes them while the result lives. `image` is below N, and `rows` is a band of its
    /// rows. No other thread uses `room`.
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
            // SAFETY: the pieces follow each other and are those that `base_scratch` counts; the
            // caller guarantees that nothing else uses the room
            unsafe { room.slice(at - round_up_to_lanes(len), len) }
        };
        let prepared = prepared(rows.len(), extent.w);
        let (sharpening, plain, added) =
            (take(extent.w * scale * 3), take(prepared), take(prepared));
        let (work, line) = (
            take(scratch(rows.len(), extent.w)),
            take(line(extent.w, scale)),
        );
        // SAFETY: the caller guarantees that the image lies inside the input and that nothing
        // writes it; tasks of other bands also read it
        let lq = unsafe { input.view(image * extent.h * extent.w * 3, extent.h * extent.w * 3) };
        let unit = if op.target.is_some() {
            PixelUnit::Byte
        } else {
            PixelUnit::One
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

    /// Writes HR row `y` of the image to `out`, `[W, 3]`.
    ///
    /// # Safety
    /// The contract of [`BaseBand::new`] still holds. `y` is an HR row of the band, and `out` has
    /// `W * 3` values.
    #[inline(always)]
    pub unsafe fn row(&mut self, y: usize, out: &mut [f32]) {
        let Reconstruct { extent, scale, .. } = *self.op;
        upsample(self.plain, extent.w, scale, y - self.first, self.line, out);
        if let Some(batch) = self.op.target {
            // SAFETY: the batch holds patch and code of every image by its layout, and the caller
            // guarantees the length of `out`
            unsafe {
                let (patch, code) = (
                    self.bytes.at(batch.hr_of(self.image)),
                    *self.bytes.at(batch.augment_of(self.image)),
                );
                subtract_row(patch, code, y, (extent.h * scale, extent.w * scale), out);
            }
            // The difference of the exact part is small, so f32 represents its sum with the
            // sharpening well.
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

/// Runs [`backward`] for every image of a batch: `d_out` is `[N, H, W, 3]`, `d_in` is `[N, h, w,
/// 3]`.
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
        // SAFETY: the images lie inside their buffers, which do not overlap, and no task runs
        let (d_out, d_in) = unsafe { (d_out.view(image * hr, hr), d_in.slice(image * lq, lq)) };
        backward(d_out, extent, scale, alpha, d_in);
    }
}

/// The gradient of the base with respect to its input, for one image: `d_out` is `[H, W, 3]`,
/// `d_in` is `[h, w, 3]`. Plain and slow, since only tests need it, never training.
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

/// Correlates `[h, w, 3]` with an odd number of taps along one side, with zero padding, in f64.
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
