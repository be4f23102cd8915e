//! Blurring: the ranges of kernels, and filtering with a kernel, with its factors where it has
//! them, or with a median.

use super::canvas::{Canvas, reflect};
use super::correlate::{BLOCK, ROWS_AT_ONCE, Taps, Target, correlate, pitch_of};
use super::draws::Stream;
use super::kernel::{DrawnKernel, SHAPES, Shape, separated, trimmed, without_smallest};
use super::keys::{Keys, Numbers, Range, Weights};
use super::table::ROWS;
use std::f64::consts::PI;

/// Largest side of a kernel.
const MOST_TAPS: f64 = 51.0;
/// Sinc kernels from this size on may cut off lower frequencies.
const WIDE_SINC: u32 = 13;
/// The ranges of a blur.
#[derive(Clone, Debug)]
pub(crate) struct Blur {
    kernels: Weights<Shape>,
    size: Range,
    sigma: Range,
    rotation: Range,
    beta_generalised: Range,
    beta_plateau: Range,
    cutoff: Range,
    wide_cutoff: bool,
    length: Range,
    median_size: Range,
}

impl Default for Blur {
    fn default() -> Blur {
        Blur {
            kernels: Weights::new(SHAPES, &[(Shape::Isotropic, 1.0)]),
            size: Range::new(7.0, 21.0),
            sigma: Range::new(0.2, 3.0),
            rotation: Range::new(-180.0, 180.0),
            beta_generalised: Range::new(0.5, 4.0),
            beta_plateau: Range::new(1.0, 2.0),
            cutoff: Range::new(1.0 / 3.0, 1.0),
            wide_cutoff: true,
            length: Range::new(3.0, 11.0),
            median_size: Range::new(3.0, 5.0),
        }
    }
}

impl Blur {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        use Numbers::{Odd, Real};
        keys.words("kernels", (&mut self.kernels).into(), "the shape");
        let about = "side of the kernel in pixels, an odd number";
        keys.range("size", &mut self.size, Odd, (1.0, MOST_TAPS), about);
        let about = "standard deviation in pixels; anisotropic kernels draw one for each axis";
        keys.range("sigma", &mut self.sigma, Real, (0.05, 20.0), about);
        let about = "angle of the first axis of an anisotropic kernel, or of a motion, in degrees";
        keys.range("rotation", &mut self.rotation, Real, (-180.0, 180.0), about);
        let about = "exponent of generalised kernels; below and above 1 are equally likely";
        let beta = (0.1, 20.0);
        keys.range(
            "beta_generalised",
            &mut self.beta_generalised,
            Real,
            beta,
            about,
        );
        let about = "exponent of plateau kernels; below and above 1 are equally likely";
        keys.range("beta_plateau", &mut self.beta_plateau, Real, beta, about);
        let about = "cutoff of sinc kernels as a share of the highest frequency";
        keys.range("cutoff", &mut self.cutoff, Real, (0.05, 1.0), about);
        let about = "whether sinc kernels of 13 and more taps draw the cutoff from 0.2 on";
        keys.flag("wide_cutoff", &mut self.wide_cutoff, about);
        let about = "length of a motion in pixels";
        keys.range("length", &mut self.length, Real, (0.0, 50.0), about);
        let about = "side of the window of the median, an odd number";
        keys.range("median_size", &mut self.median_size, Odd, (3.0, 7.0), about);
    }

    /// Pixels that the largest kernel reaches to each side.
    pub fn reach(&self) -> f64 {
        let of = |shape| match shape {
            Shape::Motion => (self.length.high / 2.0).ceil() + 1.0,
            Shape::Median => (self.median_size.high - 1.0) / 2.0,
            _ => (self.size.high - 1.0) / 2.0,
        };
        self.kernels.possible().map(of).fold(0.0, f64::max)
    }

    /// Draws a kernel. Every draw is made for every shape, so that the weights of the shapes do not
    /// change the parameters.
    pub fn draw(&self, stream: &mut Stream) -> DrawnKernel {
        let shape = self.kernels.draw(stream);
        let size = self.size.draw_odd(stream);
        let sigma = [self.sigma.draw(stream), self.sigma.draw(stream)];
        let rotation = self.rotation.draw(stream);
        let generalised = beta(&self.beta_generalised, stream);
        let plateau = beta(&self.beta_plateau, stream);
        let cutoff = match self.wide_cutoff && size >= WIDE_SINC {
            true => Range {
                low: self.cutoff.low.min(0.2),
                ..self.cutoff
            },
            false => self.cutoff,
        };
        let cutoff = PI * cutoff.draw(stream);
        let length = self.length.draw(stream);
        let median = self.median_size.draw_odd(stream);
        use Shape::{
            Anisotropic, GeneralisedAnisotropic, GeneralisedIsotropic, PlateauAnisotropic,
            PlateauIsotropic,
        };
        let isotropic = !matches!(
            shape,
            Anisotropic | GeneralisedAnisotropic | PlateauAnisotropic
        );
        DrawnKernel {
            shape,
            size: match shape {
                Shape::Median => median,
                Shape::Motion => 2 * (libm::ceil(length / 2.0) as u32 + 1) + 1,
                _ => size,
            },
            sigma: if isotropic {
                [sigma[0], sigma[0]]
            } else {
                sigma
            },
            rotation: if isotropic && shape != Shape::Motion {
                0.0
            } else {
                rotation.to_radians()
            },
            beta: match shape {
                GeneralisedIsotropic | GeneralisedAnisotropic => generalised,
                PlateauIsotropic | PlateauAnisotropic => plateau,
                _ => 1.0,
            },
            cutoff,
            length,
        }
    }
}

/// Draws an exponent: below and above 1 with the same probability where the range has both.
fn beta(range: &Range, stream: &mut Stream) -> f64 {
    let below = stream.chance(0.5);
    let mut part = *range;
    if range.low <= 1.0 && range.high >= 1.0 {
        if below {
            part.high = 1.0;
        } else {
            part.low = 1.0;
        }
    }
    part.draw(stream)
}

impl Canvas {
    /// Filters all channels, with mirrored borders.
    pub(super) fn blur(&mut self, kernel: &DrawnKernel) {
        if kernel.shape == Shape::Median {
            return self.median(kernel.size as usize);
        }
        let (weights, size) = trimmed(&kernel.weights(), kernel.size as usize);
        if size == 1 {
            return;
        }
        if let Some((column, row)) = separated(&weights, size) {
            return self.filter_separated(&column, &row);
        }
        let narrow = without_smallest(&weights);
        let (w, h) = (self.width, self.height);
        let taps = Taps::rows(&narrow, size, pitch_of(w + size - 1));
        for channel in 0..3 {
            self.pad(channel, size / 2);
            let out = &mut self.planes[channel * w * h..][..w * h];
            correlate(&self.padded, Target::packed(out, (w, h)), &taps);
        }
    }

    /// Filters all channels with a column times a row, with mirrored borders.
    pub(super) fn filter_separated(&mut self, column: &[f32], row: &[f32]) {
        for channel in 0..3 {
            self.filter_channel(channel, column, row);
        }
    }

    /// Filters one channel with a column times a row.
    fn filter_channel(&mut self, channel: usize, column: &[f32], row: &[f32]) {
        let size = (self.width, self.height);
        let n = size.0 * size.1;
        let plane = &mut self.planes[channel * n..][..n];
        let mut rows = FilteredRows::new(&mut self.padded, size, column.len() / 2);
        rows.fill(plane, row, self.lines.lines());
        rows.filter(column, plane);
    }

    /// The median of a window for each channel.
    fn median(&mut self, size: usize) {
        let (w, h, radius) = (self.width, self.height, size / 2);
        let mut window = [0.0f32; 49];
        let window = &mut window[..size * size];
        for channel in 0..3 {
            let stride = self.pad(channel, radius);
            for (i, out) in self.planes[channel * w * h..][..w * h]
                .iter_mut()
                .enumerate()
            {
                let (x, y) = (i % w, i / w);
                for (row, part) in window.chunks_exact_mut(size).enumerate() {
                    part.copy_from_slice(&self.padded[(y + row) * stride + x..][..size]);
                }
                let middle = window.len() / 2;
                *out = *window.select_nth_unstable_by(middle, f32::total_cmp).1;
            }
        }
    }

    /// Copies a channel with mirrored borders into the padded plane. Returns the distance of its rows.
    fn pad(&mut self, channel: usize, radius: usize) -> usize {
        let (w, h) = (self.width, self.height);
        let plane = &self.planes[channel * w * h..][..w * h];
        let pitch = pitch_of(w + 2 * radius);
        let rows = self.padded.chunks_exact_mut(pitch).take(h + 2 * radius);
        for (y, out) in rows.enumerate() {
            let row = reflect(y as isize - radius as isize, h);
            mirror_row(&plane[row * w..][..w], radius, out);
        }
        pitch
    }
}

/// The first pass of a filter that is a column times a row: a plane whose rows are filtered, with
/// mirrored rows above and below.
pub(super) struct FilteredRows<'a> {
    padded: &'a mut [f32],
    size: (usize, usize),
    pitch: usize,
    radius: usize,
}

impl<'a> FilteredRows<'a> {
    /// In the padded plane of a canvas, for a column that reaches `radius` pixels to each side.
    pub fn new(padded: &'a mut [f32], size: (usize, usize), radius: usize) -> FilteredRows<'a> {
        FilteredRows {
            padded,
            size,
            pitch: pitch_of(size.0),
            radius,
        }
    }

    /// Filters the rows of `plane`; `lines` is scratch for a few rows.
    pub fn fill(&mut self, plane: &[f32], row: &[f32], lines: &mut [[f32; ROWS]]) {
        let ((w, h), pitch, radius) = (self.size, self.pitch, self.radius);
        let lines = lines.as_flattened_mut();
        let line = pitch_of(w + row.len() - 1 + BLOCK);
        let taps = Taps::row(row, line);
        for (first, from) in (0..h)
            .step_by(ROWS_AT_ONCE)
            .zip(plane.chunks(ROWS_AT_ONCE * w))
        {
            for (from, to) in from.chunks_exact(w).zip(lines.chunks_exact_mut(line)) {
                mirror_row(from, row.len() / 2, to);
            }
            let target = Target {
                values: &mut self.padded[(radius + first) * pitch..],
                pitch,
                size: (w, from.len() / w),
            };
            correlate(lines, target, &taps);
        }
        for y in (0..radius).chain(radius + h..2 * radius + h) {
            let from = radius + reflect(y as isize - radius as isize, h);
            self.padded
                .copy_within(from * pitch..from * pitch + w, y * pitch);
        }
    }

    /// Filters the columns into `out`.
    pub fn filter(&self, column: &[f32], out: &mut [f32]) {
        let target = Target::packed(out, self.size);
        correlate(self.padded, target, &Taps::column(column, self.pitch));
    }
}

/// Copies a row with mirrored borders of `radius` pixels.
fn mirror_row(row: &[f32], radius: usize, out: &mut [f32]) {
    let whole = row.len() + 2 * radius;
    out[radius..radius + row.len()].copy_from_slice(row);
    mirror_ends(&mut out[..whole], radius);
}

/// Writes the first and the last `radius` values of a line: those between them, mirrored.
#[inline(always)]
pub(super) fn mirror_ends<T: Copy>(line: &mut [T], radius: usize) {
    let w = line.len() - 2 * radius;
    if radius < w {
        let (left, row) = line.split_at_mut(radius);
        let (row, right) = row.split_at_mut(w);
        for (out, value) in left.iter_mut().rev().zip(&row[1..]) {
            *out = *value;
        }
        for (out, value) in right.iter_mut().zip(row[..w - 1].iter().rev()) {
            *out = *value;
        }
        return;
    }
    for x in 0..radius {
        line[x] = line[radius + reflect(x as isize - radius as isize, w)];
        line[radius + w + x] = line[radius + reflect((w + x) as isize, w)];
    }
}
