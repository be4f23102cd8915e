//! Blurring: the kernels of Real-ESRGAN's degradation (Gaussian, generalised and plateau-shaped,
//! isotropic or not, and the sinc filter that rings), motion, and the median. Kernels are made in
//! f64 with `libm`, so they are the same on every machine.

use super::canvas::{Canvas, Sides, reflect};
use super::draws::Stream;
use super::keys::{Keys, Numbers, Range, Weights};
use super::lanes::dispatch;
use serde_json::{Value as Json, json};
use std::f64::consts::PI;
use std::fmt;

/// Largest side of a kernel.
const MOST_TAPS: f64 = 51.0;
/// Outer rows and columns of a kernel are left out while all that is left out weighs less than this,
/// 1/40,000 of a level of 8 bits.
const NEGLIGIBLE: f64 = 1e-7;
/// Sinc kernels from this size on may cut off lower frequencies.
const WIDE_SINC: u32 = 13;
/// Samples of a line of motion for each pixel of its length.
const MOTION_SAMPLES: f64 = 8.0;

/// The shape of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Isotropic,
    Anisotropic,
    GeneralisedIsotropic,
    GeneralisedAnisotropic,
    PlateauIsotropic,
    PlateauAnisotropic,
    Sinc,
    Motion,
    Median,
}

const SHAPES: &[(&str, Shape)] = &[
    ("isotropic", Shape::Isotropic),
    ("anisotropic", Shape::Anisotropic),
    ("generalised_isotropic", Shape::GeneralisedIsotropic),
    ("generalised_anisotropic", Shape::GeneralisedAnisotropic),
    ("plateau_isotropic", Shape::PlateauIsotropic),
    ("plateau_anisotropic", Shape::PlateauAnisotropic),
    ("sinc", Shape::Sinc),
    ("motion", Shape::Motion),
    ("median", Shape::Median),
];

impl Shape {
    fn word(self) -> &'static str {
        let word = SHAPES.iter().find(|(_, shape)| *shape == self);
        word.map_or("", |(word, _)| word)
    }
}

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

/// A drawn kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnKernel {
    pub(crate) shape: Shape,
    size: u32,
    sigma: [f64; 2],
    rotation: f64,
    beta: f64,
    cutoff: f64,
    length: f64,
}

impl DrawnKernel {
    /// An isotropic Gaussian.
    pub(crate) fn gaussian(size: u32, sigma: f64) -> DrawnKernel {
        DrawnKernel {
            shape: Shape::Isotropic,
            size,
            sigma: [sigma, sigma],
            rotation: 0.0,
            beta: 1.0,
            cutoff: 0.0,
            length: 0.0,
        }
    }

    /// The weights, `[size, size]`, which sum to 1.
    pub(crate) fn weights(&self) -> Vec<f64> {
        let n = self.size as i64;
        let middle = n / 2;
        let at = |i: i64| ((i % n - middle) as f64, (i / n - middle) as f64);
        let mut weights: Vec<f64> = match self.shape {
            Shape::Sinc => (0..n * n).map(|i| sinc(self.cutoff, at(i))).collect(),
            Shape::Motion => motion(self.size as usize, self.length, self.rotation),
            _ => {
                let form = QuadraticForm::new(self.sigma, self.rotation);
                (0..n * n).map(|i| self.profile(form.at(at(i)))).collect()
            }
        };
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
        weights
    }

    /// Side of the kernel.
    #[cfg(test)]
    pub(crate) fn side(&self) -> usize {
        self.size as usize
    }

    /// The kernel with the parameters that [`DrawnKernel::json`] writes.
    #[cfg(test)]
    pub(crate) fn from_json(json: &Json) -> DrawnKernel {
        let word = json["kernel"].as_str().expect("a word");
        let number = |value: &Json| value.as_f64().unwrap_or(1.0);
        DrawnKernel {
            shape: SHAPES
                .iter()
                .find(|(name, _)| *name == word)
                .expect("a shape")
                .1,
            size: number(&json["size"]) as u32,
            sigma: [0, 1].map(|i| number(&json["sigma"][i])),
            rotation: number(&json["rotation"]).to_radians(),
            beta: number(&json["beta"]),
            cutoff: PI * number(&json["cutoff"]),
            length: 0.0,
        }
    }

    /// The weights, unless it is a median.
    pub(crate) fn filter_weights(&self) -> Option<Vec<f64>> {
        (self.shape != Shape::Median).then(|| self.weights())
    }

    /// The weight before normalisation, by the quadratic form of the covariance.
    fn profile(&self, q: f64) -> f64 {
        match self.shape {
            Shape::GeneralisedIsotropic | Shape::GeneralisedAnisotropic => {
                libm::exp(-0.5 * libm::pow(q, self.beta))
            }
            Shape::PlateauIsotropic | Shape::PlateauAnisotropic => {
                1.0 / (libm::pow(q, self.beta) + 1.0)
            }
            _ => libm::exp(-0.5 * q),
        }
    }

    /// Its parameters for a program.
    pub(crate) fn json(&self) -> Json {
        let mut out = json!({"kernel": self.shape.word(), "size": self.size});
        match self.shape {
            Shape::Sinc => out["cutoff"] = json!(self.cutoff / PI),
            Shape::Motion => {
                out["length"] = json!(self.length);
                out["rotation"] = json!(self.rotation.to_degrees());
            }
            Shape::Median => {}
            _ => {
                out["sigma"] = json!(self.sigma);
                out["rotation"] = json!(self.rotation.to_degrees());
                out["beta"] = json!(self.beta);
            }
        }
        out
    }
}

impl fmt::Display for DrawnKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} taps",
            self.shape.word().replace('_', " "),
            self.size
        )?;
        let [x, y] = self.sigma;
        match self.shape {
            Shape::Sinc => return write!(f, ", cutoff {:.2} pi", self.cutoff / PI),
            Shape::Median => return Ok(()),
            Shape::Motion => {
                let degrees = self.rotation.to_degrees();
                return write!(f, ", length {:.1} at {degrees:.0} degrees", self.length);
            }
            _ if x == y => write!(f, ", sigma {x:.2}")?,
            _ => {
                let degrees = self.rotation.to_degrees();
                write!(f, ", sigma {x:.2} and {y:.2} at {degrees:.0} degrees")?;
            }
        }
        if self.beta == 1.0 {
            Ok(())
        } else {
            write!(f, ", beta {:.2}", self.beta)
        }
    }
}

/// The quadratic form of the inverse covariance `U diag(sx^2, sy^2) U^T`, with U the rotation.
struct QuadraticForm {
    xx: f64,
    xy: f64,
    yy: f64,
}

impl QuadraticForm {
    fn new([sx, sy]: [f64; 2], rotation: f64) -> QuadraticForm {
        let (sin, cos) = (libm::sin(rotation), libm::cos(rotation));
        let (a, b) = (1.0 / (sx * sx), 1.0 / (sy * sy));
        QuadraticForm {
            xx: a * cos * cos + b * sin * sin,
            xy: (a - b) * sin * cos,
            yy: a * sin * sin + b * cos * cos,
        }
    }

    fn at(&self, (x, y): (f64, f64)) -> f64 {
        self.xx * x * x + 2.0 * self.xy * x * y + self.yy * y * y
    }
}

/// The circular low-pass filter, which rings: `c J1(c r) / (2 pi r)`.
fn sinc(cutoff: f64, (x, y): (f64, f64)) -> f64 {
    let r = libm::sqrt(x * x + y * y);
    if r == 0.0 {
        return cutoff * cutoff / (4.0 * PI);
    }
    cutoff * libm::j1(cutoff * r) / (2.0 * PI * r)
}

/// A line through the middle, each sample of which is shared between its four nearest pixels.
fn motion(size: usize, length: f64, angle: f64) -> Vec<f64> {
    let mut weights = vec![0.0; size * size];
    let middle = (size / 2) as f64;
    let samples = libm::ceil(length * MOTION_SAMPLES) as usize + 1;
    for i in 0..samples {
        let along = length * ((i as f64 + 0.5) / samples as f64 - 0.5);
        let (x, y) = (
            middle + along * libm::cos(angle),
            middle + along * libm::sin(angle),
        );
        let (left, top) = (libm::floor(x), libm::floor(y));
        for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let share = (1.0 - (x - left - dx as f64).abs()) * (1.0 - (y - top - dy as f64).abs());
            if share > 0.0 {
                weights[(top as usize + dy) * size + left as usize + dx] += share;
            }
        }
    }
    weights
}

/// A kernel without the outer rows and columns that weigh next to nothing, still centred.
pub(super) fn trimmed(weights: &[f64], size: usize) -> (Vec<f64>, usize) {
    let mut left = 0;
    let mut dropped = 0.0;
    while size - 2 * left > 1 {
        let (low, high) = (left, size - 1 - left);
        let ring: f64 = (low..=high)
            .flat_map(|y| (low..=high).map(move |x| (x, y)))
            .filter(|&(x, y)| x == low || x == high || y == low || y == high)
            .map(|(x, y)| weights[y * size + x].abs())
            .sum();
        if dropped + ring >= NEGLIGIBLE {
            break;
        }
        dropped += ring;
        left += 1;
    }
    let rest = size - 2 * left;
    let rows = (left..left + rest).flat_map(|y| weights[y * size + left..][..rest].iter());
    (rows.copied().collect(), rest)
}

/// The factors of a kernel that is a column times a row, with all weights positive.
fn separated(weights: &[f64], size: usize) -> Option<(Vec<f32>, Vec<f32>)> {
    let column: Vec<f64> = (0..size)
        .map(|y| weights[y * size..][..size].iter().sum())
        .collect();
    let row: Vec<f64> = (0..size)
        .map(|x| (0..size).map(|y| weights[y * size + x]).sum())
        .collect();
    let sum: f64 = row.iter().sum();
    let equal = (0..size * size)
        .all(|i| (column[i / size] * row[i % size] / sum - weights[i]).abs() < 1e-9);
    let narrow = |list: Vec<f64>, by: f64| list.into_iter().map(|w| (w / by) as f32).collect();
    equal.then(|| (narrow(column, sum), narrow(row, 1.0)))
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
        let narrow: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
        let (w, h, radius) = (self.width, self.height, size / 2);
        for channel in 0..3 {
            self.pad(channel, Sides::all(radius));
            let stride = w + 2 * radius;
            let out = &mut self.planes[channel * w * h..][..w * h];
            filter(&self.padded, stride, out, (w, h), &narrow, size);
        }
    }

    /// Filters all channels with a column times a row, with mirrored borders.
    pub(super) fn filter_separated(&mut self, column: &[f32], row: &[f32]) {
        for channel in 0..3 {
            self.filter_channel(channel, column, row);
        }
    }

    /// Filters one channel with a column times a row.
    pub(super) fn filter_channel(&mut self, channel: usize, column: &[f32], row: &[f32]) {
        let (w, h, radius) = (self.width, self.height, row.len() / 2);
        self.pad(channel, Sides { x: radius, y: 0 });
        let out = &mut self.planes[channel * w * h..][..w * h];
        filter_row(&self.padded, w + 2 * radius, out, (w, h), row);
        let radius = column.len() / 2;
        self.pad(channel, Sides { x: 0, y: radius });
        let out = &mut self.planes[channel * w * h..][..w * h];
        filter_column(&self.padded, w, out, (w, h), column);
    }

    /// The median of a window for each channel.
    fn median(&mut self, size: usize) {
        let (w, h, radius) = (self.width, self.height, size / 2);
        let mut window = [0.0f32; 49];
        let window = &mut window[..size * size];
        for channel in 0..3 {
            self.pad(channel, Sides::all(radius));
            let stride = w + 2 * radius;
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

    /// Copies a channel with mirrored borders into the padded plane.
    fn pad(&mut self, channel: usize, sides: Sides) {
        let (w, h) = (self.width, self.height);
        let plane = &self.planes[channel * w * h..][..w * h];
        let stride = w + 2 * sides.x;
        for (y, out) in self.padded[..stride * (h + 2 * sides.y)]
            .chunks_exact_mut(stride)
            .enumerate()
        {
            let row = &plane[reflect(y as isize - sides.y as isize, h) * w..][..w];
            out[sides.x..sides.x + w].copy_from_slice(row);
            for x in 0..sides.x {
                out[x] = row[reflect(x as isize - sides.x as isize, w)];
                out[sides.x + w + x] = row[reflect((w + x) as isize, w)];
            }
        }
    }
}

/// Pixels that one pass over the taps computes; the padded plane has so many more at its end.
pub(super) const BLOCK: usize = 64;

dispatch! {
    /// Correlates a padded plane with a square kernel. The sum of a pixel runs over the taps in
    /// order, without fused multiply-adds, so that its bits are the same on every machine.
    fn filter(source: &[f32], stride: usize, out: &mut [f32], size: (usize, usize), weights: &[f32], taps: usize) {
        for y in 0..size.1 {
            for x in (0..size.0).step_by(BLOCK) {
                let mut sums = [0.0f32; BLOCK];
                for (ky, line) in weights.chunks_exact(taps).enumerate() {
                    let row = &source[(y + ky) * stride + x..][..taps - 1 + BLOCK];
                    for (kx, &weight) in line.iter().enumerate() {
                        let part: &[f32; BLOCK] = row[kx..kx + BLOCK].try_into().expect("of this length");
                        for (sum, value) in sums.iter_mut().zip(part) {
                            *sum += weight * value;
                        }
                    }
                }
                let count = BLOCK.min(size.0 - x);
                out[y * size.0 + x..][..count].copy_from_slice(&sums[..count]);
            }
        }
    }
}

dispatch! {
    /// Correlates rows with a symmetric kernel.
    fn filter_row(source: &[f32], stride: usize, out: &mut [f32], size: (usize, usize), weights: &[f32]) {
        let taps = weights.len();
        for y in 0..size.1 {
            for x in (0..size.0).step_by(BLOCK) {
                let row = &source[y * stride + x..][..taps - 1 + BLOCK];
                let mut sums = [0.0f32; BLOCK];
                for (kx, &weight) in weights.iter().enumerate() {
                    let part: &[f32; BLOCK] = row[kx..kx + BLOCK].try_into().expect("of this length");
                    for (sum, value) in sums.iter_mut().zip(part) {
                        *sum += weight * value;
                    }
                }
                let count = BLOCK.min(size.0 - x);
                out[y * size.0 + x..][..count].copy_from_slice(&sums[..count]);
            }
        }
    }
}

dispatch! {
    /// Correlates columns with a kernel.
    fn filter_column(source: &[f32], stride: usize, out: &mut [f32], size: (usize, usize), weights: &[f32]) {
        for y in 0..size.1 {
            for x in (0..size.0).step_by(BLOCK) {
                let mut sums = [0.0f32; BLOCK];
                for (ky, &weight) in weights.iter().enumerate() {
                    let part: &[f32; BLOCK] = source[(y + ky) * stride + x..][..BLOCK].try_into().expect("of this length");
                    for (sum, value) in sums.iter_mut().zip(part) {
                        *sum += weight * value;
                    }
                }
                let count = BLOCK.min(size.0 - x);
                out[y * size.0 + x..][..count].copy_from_slice(&sums[..count]);
            }
        }
    }
}
