//! The image between the steps: three planes of f32 with values from 0 to 1, and all scratch, of
//! sizes that follow from the recipe. Nothing larger than a few lines is allocated afterwards.

use super::HrView;
use super::area::Area;
use super::bound::Bound;
use super::correlate::{BLOCK, ROWS_AT_ONCE, pitch_of};
use super::lanes::dispatch;
use super::table::ROWS;
use bytemuck::{Pod, Zeroable};
use std::ops::{Deref, DerefMut};

/// The index that a mirrored border shows at `i` (the border pixel itself is not repeated); a small
/// image is mirrored again and again.
pub(super) fn reflect(i: isize, n: usize) -> usize {
    if n == 1 {
        return 0;
    }
    let last = n as isize - 1;
    if (-last..=2 * last).contains(&i) {
        // without a division
        return (last - (last - i.abs()).abs()) as usize;
    }
    let period = 2 * last;
    let i = i.rem_euclid(period);
    i.min(period - i) as usize
}

/// Lengths of all buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    plane: usize,
    padded: usize,
    lines: usize,
    bytes: usize,
    webp: usize,
}

/// Bytes that libwebp takes for a pixel while it encodes and decodes, and bytes that do not depend on
/// the size: an estimate from above of its planes, its output and the decoded pixels.
const WEBP_BYTES: (usize, usize) = (24, 2 << 20);
/// Bytes of a resize table for each pixel along an axis: the windows, and the weights of a lanczos
/// filter, which reach 3 pixels to each side of what an output covers.
const TABLE_BYTES: usize = 2 * (8 + 8 * 8);

impl Layout {
    /// For patches of at most these sides.
    pub fn new(bound: &Bound, hr_w: usize, hr_h: usize) -> Layout {
        let side = |n: usize| (n as f64 * bound.peak).ceil() as usize + 1;
        let (w, h) = (side(hr_w), side(hr_h));
        let border = 2 * bound.radius.ceil() as usize;
        Layout {
            plane: w * h,
            padded: pitch_of(w + border) * (h + border + ROWS_AT_ONCE) + BLOCK,
            // those of a resize, or the padded rows that a separable filter reads
            lines: w.max((ROWS_AT_ONCE * pitch_of(w + border + BLOCK)).div_ceil(ROWS)),
            // three components of whole blocks of 16
            bytes: 3 * w.next_multiple_of(16) * h.next_multiple_of(16),
            webp: if bound.webp {
                w * h * WEBP_BYTES.0 + WEBP_BYTES.1
            } else {
                0
            },
        }
    }

    /// Bytes of all buffers.
    pub fn total(&self) -> u64 {
        let planes = 2 * (3 * self.plane).next_multiple_of(ROWS);
        let floats = planes + self.padded.next_multiple_of(ROWS) + ROWS * self.lines;
        (4 * floats + self.bytes + self.webp + 2 * TABLE_BYTES * self.lines) as u64
    }
}

/// A cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct CacheLine([f32; ROWS]);

/// Values that begin at a cache line, so that no load of a register from the beginning of a row crosses
/// one, where rows are whole lines apart.
pub(crate) struct Values(Vec<CacheLine>);

impl Values {
    /// At least so many zeros: up to a whole line.
    fn new(count: usize) -> Values {
        Values(vec![CacheLine([0.0; ROWS]); count.div_ceil(ROWS)])
    }

    /// The same, a cache line at a time.
    pub fn lines(&mut self) -> &mut [[f32; ROWS]] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for Values {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// A part of an image and the scratch of all steps.
pub(crate) struct Canvas {
    /// Size of the part.
    pub width: usize,
    pub height: usize,
    /// The part, in the whole image.
    pub area: Area,
    /// Size of the whole image.
    pub whole: (usize, usize),
    /// `[3, height, width]`, then unused.
    pub planes: Values,
    /// As `planes`: the target of a resize, and a second image.
    pub other: Values,
    /// A plane with borders, or between the two passes of a resize.
    pub padded: Values,
    /// Sixteen rows, pixel by pixel.
    pub lines: Values,
    /// Components of a codec.
    pub bytes: Vec<u8>,
}

impl Canvas {
    /// Allocates everything.
    pub fn new(layout: &Layout) -> Canvas {
        Canvas {
            width: 0,
            height: 0,
            area: Area::whole((0, 0)),
            whole: (0, 0),
            planes: Values::new(3 * layout.plane),
            other: Values::new(3 * layout.plane),
            padded: Values::new(layout.padded),
            lines: Values::new(ROWS * layout.lines),
            bytes: vec![0; layout.bytes],
        }
    }

    /// Takes the pixels of a part of an image.
    pub fn read(&mut self, hr: &HrView, area: Area) {
        (self.area, self.whole) = (area, (hr.width, hr.height));
        (self.width, self.height) = area.size();
        let (w, n) = (self.width, self.width * self.height);
        let (red, rest) = self.planes.split_at_mut(n);
        let (green, blue) = rest.split_at_mut(n);
        for (y, from) in (area.y.start..area.y.end).enumerate() {
            let row = y * w..(y + 1) * w;
            read_row(
                &hr.data[from * hr.stride + 3 * area.x.start..][..3 * w],
                &mut red[row.clone()],
                &mut green[row.clone()],
                &mut blue[row],
            );
        }
    }

    /// Keeps the pixels of `area`, which lies in the part, and drops the others.
    pub fn crop(&mut self, area: Area) {
        if area == self.area {
            return;
        }
        let ((w, h), (new_w, new_h)) = ((self.width, self.height), area.size());
        let (left, top) = (
            area.x.start - self.area.x.start,
            area.y.start - self.area.y.start,
        );
        for (row, out) in (0..3 * new_h).zip((0..).step_by(new_w)) {
            let from = (row / new_h * h + top + row % new_h) * w + left;
            self.planes.copy_within(from..from + new_w, out);
        }
        self.area = area;
        (self.width, self.height) = (new_w, new_h);
    }

    /// Writes `[height, width, 3]`, clamped and rounded.
    pub fn write(&self, out: &mut [u8]) {
        let n = self.width * self.height;
        for (i, pixel) in out.chunks_exact_mut(3).enumerate().take(n) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = to_byte(self.planes[channel * n + i]);
            }
        }
    }

    /// The values of all channels.
    pub fn values(&mut self) -> &mut [f32] {
        let n = self.width * self.height;
        &mut self.planes[..3 * n]
    }

    /// Clamps all values to 0 to 1.
    pub fn clamp(&mut self) {
        self.values()
            .iter_mut()
            .for_each(|v| *v = v.clamp(0.0, 1.0));
    }
}

dispatch! {
    /// Splits a row of pixels into its channels.
    fn read_row(pixels: &[u8], red: &mut [f32], green: &mut [f32], blue: &mut [f32]) {
        let channels = red.iter_mut().zip(green).zip(blue);
        for (pixel, ((red, green), blue)) in pixels.chunks_exact(3).zip(channels) {
            *red = f32::from(pixel[0]) / 255.0;
            *green = f32::from(pixel[1]) / 255.0;
            *blue = f32::from(pixel[2]) / 255.0;
        }
    }
}

/// A value of 0 to 1 as 8 bits: clamped, and rounded to the nearest, to even where two are equally
/// near.
#[inline(always)]
pub(super) fn to_byte(value: f32) -> u8 {
    // adding 1.5 * 2^23 leaves the rounded number in the low bits
    let rounded = value.clamp(0.0, 1.0) * 255.0 + 12_582_912.0;
    rounded.to_bits() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Planes begin at cache lines, and are no larger than the plan says.
    #[test]
    fn planes_begin_at_cache_lines() {
        for (w, h) in [(1, 1), (17, 5), (256, 256)] {
            let layout = Layout::new(&Bound::of(&[], 1), w, h);
            let canvas = Canvas::new(&layout);
            let planes = [&canvas.planes, &canvas.other, &canvas.padded, &canvas.lines];
            let starts = planes.map(|values| values.as_ptr() as usize % align_of::<CacheLine>());
            assert_eq!(starts, [0; 4]);
            let floats: usize = planes.iter().map(|values| values.len()).sum();
            let others = layout.bytes + layout.webp + 2 * TABLE_BYTES * layout.lines;
            assert_eq!(layout.total(), (4 * floats + others) as u64);
        }
    }
}
