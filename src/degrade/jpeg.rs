//! JPEG compression. Entropy coding loses nothing, so it is left out; everything else is libjpeg's
//! arithmetic in integers (conversion of colours, chroma by means of pixels, the accurate integer
//! DCT, its tables, and on the way back the triangle filter that enlarges chroma), so that the result
//! is that of writing a file with libjpeg and reading it again, to the bit.

mod chroma;
mod dct;

use super::area::Area;
use super::canvas::{Canvas, to_byte};
use super::draws::Stream;
use super::keys::{Keys, Numbers, Range, Weights};
use super::lanes::dispatch;
use chroma::{downsample, upsampled_row};
use serde_json::{Value as Json, json};
use std::fmt;

/// Side of a block.
const SIDE: usize = 8;

/// How much smaller chroma is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sampling {
    /// 4:4:4, the same size.
    S444,
    /// 4:2:2, half as wide.
    S422,
    /// 4:2:0, half as wide and half as high.
    S420,
}

const SAMPLINGS: &[(&str, Sampling)] = &[
    ("444", Sampling::S444),
    ("422", Sampling::S422),
    ("420", Sampling::S420),
];

impl Sampling {
    /// Factors along x and y.
    fn factors(self) -> (usize, usize) {
        match self {
            Sampling::S444 => (1, 1),
            Sampling::S422 => (2, 1),
            Sampling::S420 => (2, 2),
        }
    }
}

/// The ranges of a JPEG compression.
#[derive(Clone, Debug)]
pub(crate) struct Jpeg {
    quality: Range,
    sampling: Weights<Sampling>,
}

impl Default for Jpeg {
    fn default() -> Jpeg {
        Jpeg {
            quality: Range::new(30.0, 95.0),
            sampling: Weights::new(SAMPLINGS, &[(Sampling::S420, 1.0)]),
        }
    }
}

impl Jpeg {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        let about = "quality of libjpeg, a whole number";
        keys.range(
            "quality",
            &mut self.quality,
            Numbers::Whole,
            (1.0, 100.0),
            about,
        );
        let about = "chroma sampling: 4:4:4, 4:2:2 or 4:2:0";
        keys.words("sampling", (&mut self.sampling).into(), about);
    }

    /// Draws quality and sampling.
    pub fn draw(&self, stream: &mut Stream) -> DrawnJpeg {
        DrawnJpeg {
            quality: self.quality.draw_whole(stream),
            sampling: self.sampling.draw(stream),
        }
    }
}

/// A drawn JPEG compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawnJpeg {
    pub(crate) quality: u32,
    pub(crate) sampling: Sampling,
}

impl DrawnJpeg {
    fn word(self) -> &'static str {
        let word = SAMPLINGS.iter().find(|(_, s)| *s == self.sampling);
        word.map_or("", |(word, _)| word)
    }

    /// The part of the image before it that decides `area` after it: whole blocks, and those beside them
    /// whose chroma the triangle filter reads.
    pub(super) fn input(self, whole: (usize, usize), area: Area) -> Area {
        let (across, down) = self.sampling.factors();
        let read = Area {
            x: area.x.grown(across - 1, whole.0),
            y: area.y.grown(down - 1, whole.1),
        };
        let mut blocks = read.aligned((across * SIDE, down * SIDE), whole);
        // libjpeg enlarges chroma of up to two columns in another way
        if blocks.x.len() <= 2 * across {
            blocks.x.start = blocks.x.start.saturating_sub(across * SIDE);
        }
        blocks
    }

    /// Its parameters for a program.
    pub(crate) fn json(self) -> Json {
        json!({"quality": self.quality, "sampling": self.word()})
    }
}

impl fmt::Display for DrawnJpeg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "q{}, {}", self.quality, self.word())
    }
}

/// Tables of the standard (annex K), in rows.
const LUMINANCE: [u16; 64] = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113,
    92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
];
const CHROMINANCE: [u16; 64] = [
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
];

/// A table at a quality, as libjpeg scales it for baseline files.
fn scaled(table: &[u16; 64], quality: u32) -> [i32; 64] {
    let percent = if quality < 50 {
        5000 / quality
    } else {
        200 - 2 * quality
    };
    table.map(|value| {
        (u32::from(value) * percent + 50)
            .div_euclid(100)
            .clamp(1, 255) as i32
    })
}

/// A component of an image within the buffer: its own size, and that of its whole blocks.
#[derive(Clone, Copy)]
struct Component {
    width: usize,
    height: usize,
    stride: usize,
    rows: usize,
}

impl Component {
    fn new(width: usize, height: usize) -> Component {
        Component {
            width,
            height,
            stride: width.next_multiple_of(SIDE),
            rows: height.next_multiple_of(SIDE),
        }
    }

    fn len(&self) -> usize {
        self.stride * self.rows
    }

    /// Repeats the last column into the rest of the blocks.
    fn extend_columns(&self, plane: &mut [u8]) {
        for row in plane.chunks_exact_mut(self.stride).take(self.height) {
            let last = row[self.width - 1];
            row[self.width..].fill(last);
        }
    }

    /// Repeats the last row into the rest of the blocks.
    fn extend_rows(&self, plane: &mut [u8]) {
        for y in self.height..self.rows {
            let last = (self.height - 1) * self.stride;
            plane.copy_within(last..last + self.stride, y * self.stride);
        }
    }
}

impl Canvas {
    /// Compresses and decompresses; the image is rounded to 8 bits before.
    pub(super) fn jpeg(&mut self, drawn: DrawnJpeg) {
        let (w, h) = (self.width, self.height);
        let (across, down) = drawn.sampling.factors();
        let full = Component::new(w, h);
        let small = Component::new(w.div_ceil(across), h.div_ceil(down));
        let (luma, chroma) = self.bytes.split_at_mut(full.len());
        // chroma of full size is made in the place of the second component, and stays there in 4:4:4
        let (blue, red) = chroma.split_at_mut(full.len());
        let planes = &self.planes[..3 * w * h];
        to_components(planes, (w, h), [luma, blue, red], full.stride);
        full.extend_columns(luma);
        full.extend_rows(luma);
        for plane in [&mut *blue, &mut *red] {
            if drawn.sampling == Sampling::S444 {
                full.extend_columns(plane);
            } else {
                downsample(plane, (w, h), full.stride, &small, down);
            }
            small.extend_rows(plane);
        }
        let luminance = scaled(&LUMINANCE, drawn.quality);
        let chrominance = scaled(&CHROMINANCE, drawn.quality);
        dct::code(luma, full.stride, full.rows, &luminance);
        for plane in [&mut *blue, &mut *red] {
            dct::code(plane, small.stride, small.rows, &chrominance);
        }
        self.read_components(&full, &small, (across, down));
    }

    fn read_components(&mut self, full: &Component, small: &Component, factors: (usize, usize)) {
        let (w, h) = (self.width, self.height);
        let (luma, chroma) = self.bytes.split_at(full.len());
        let (blue, red) = chroma.split_at(full.len());
        let rows = bytemuck::cast_slice_mut(&mut self.padded[..2 * w + 4]);
        let (cb_row, cr_row) = rows.split_at_mut(w + 2);
        for y in 0..h {
            upsampled_row(blue, small, y, factors, cb_row);
            upsampled_row(red, small, y, factors, cr_row);
            let (r, rest) = self.planes.split_at_mut(w * h);
            let (g, b) = rest.split_at_mut(w * h);
            let row = y * w..(y + 1) * w;
            to_rgb(
                &luma[y * full.stride..][..w],
                &cb_row[..w],
                &cr_row[..w],
                &mut r[row.clone()],
                &mut g[row.clone()],
                &mut b[row],
            );
        }
    }
}

fn to_components(planes: &[f32], (w, h): (usize, usize), out: [&mut [u8]; 3], stride: usize) {
    let [luma, blue, red] = out;
    for y in 0..h {
        let row = |channel: usize| &planes[channel * w * h + y * w..][..w];
        let at = y * stride..y * stride + w;
        convert_row(
            row(0),
            row(1),
            row(2),
            &mut luma[at.clone()],
            &mut blue[at.clone()],
            &mut red[at],
        );
    }
}

dispatch! {
    /// Rounds a row to 8 bits and converts it to Y, Cb and Cr with 16 bits of fraction.
    fn convert_row(r: &[f32], g: &[f32], b: &[f32], y: &mut [u8], cb: &mut [u8], cr: &mut [u8]) {
        let (n, half) = (r.len(), 1 << 15);
        let centre = (128 << 16) + half - 1;
        let (g, b, y, cb, cr) = (&g[..n], &b[..n], &mut y[..n], &mut cb[..n], &mut cr[..n]);
        for i in 0..n {
            let [r, g, b] = [r[i], g[i], b[i]].map(|v| i32::from(to_byte(v)));
            y[i] = ((19_595 * r + 38_470 * g + 7_471 * b + half) >> 16) as u8;
            cb[i] = ((-11_059 * r - 21_709 * g + 32_768 * b + centre) >> 16) as u8;
            cr[i] = ((32_768 * r - 27_439 * g - 5_329 * b + centre) >> 16) as u8;
        }
    }
}

dispatch! {
    /// Converts a row of Y, Cb and Cr back.
    fn to_rgb(y: &[u8], cb: &[i32], cr: &[i32], r: &mut [f32], g: &mut [f32], b: &mut [f32]) {
        let (n, half) = (y.len(), 1 << 15);
        let (cb, cr, r, g, b) = (&cb[..n], &cr[..n], &mut r[..n], &mut g[..n], &mut b[..n]);
        for i in 0..n {
            let (y, cb, cr) = (i32::from(y[i]), cb[i] - 128, cr[i] - 128);
            let value = |v: i32| v.clamp(0, 255) as f32 / 255.0;
            r[i] = value(y + ((91_881 * cr + half) >> 16));
            g[i] = value(y + ((-22_554 * cb - 46_802 * cr + half) >> 16));
            b[i] = value(y + ((116_130 * cb + half) >> 16));
        }
    }
}
