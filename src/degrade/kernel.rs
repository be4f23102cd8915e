//! The kernels of blurs: Gaussian, generalised and plateau-shaped ones as in Real-ESRGAN's
//! degradation, the sinc filter that rings, and motion. They are made in f64 with `libm`, so they are
//! the same on every machine.

use serde_json::{Value as Json, json};
use std::f64::consts::PI;
use std::fmt;

/// Outer rows and columns of a kernel are left out while all that is left out weighs less than this,
/// 1/40,000 of a level of 8 bits.
const NEGLIGIBLE: f64 = 1e-7;
/// The weights that are left out of a kernel that has no factors add up to less than this, a quarter of
/// a thousandth of a level of 8 bits. What is left of a slanted Gaussian has two thirds of its taps.
const SMALLEST: f64 = 1e-6;
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

pub(super) const SHAPES: &[(&str, Shape)] = &[
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

/// A drawn kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnKernel {
    pub(super) shape: Shape,
    pub(super) size: u32,
    pub(super) sigma: [f64; 2],
    pub(super) rotation: f64,
    pub(super) beta: f64,
    pub(super) cutoff: f64,
    pub(super) length: f64,
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
        let form = QuadraticForm::new(self.sigma, self.rotation);
        let weight = |i: i64| match self.shape {
            Shape::Sinc => sinc(self.cutoff, at(i)),
            _ => self.profile(form.at(at(i))),
        };
        let mut weights: Vec<f64> = match self.shape {
            Shape::Motion => motion(self.size as usize, self.length, self.rotation),
            // all other kernels are the same turned by half a turn, to the bit
            _ => (0..=n * n / 2).map(weight).collect(),
        };
        let rest = (n * n) as usize - weights.len();
        weights.extend_from_within(..rest);
        let second = weights.len() - rest;
        weights[second..].reverse();
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
        weights
    }

    /// Pixels that it reaches to each side.
    pub(crate) fn reach(&self) -> usize {
        self.size as usize / 2
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

/// Sets the smallest weights to 0 as long as they add up to next to nothing.
pub(super) fn without_smallest(weights: &[f64]) -> Vec<f32> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*a].abs().total_cmp(&weights[*b].abs()));
    let mut kept: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
    let mut left_out = 0.0;
    for i in order {
        left_out += weights[i].abs();
        if left_out >= SMALLEST {
            break;
        }
        kept[i] = 0.0;
    }
    kept
}

/// The factors of a kernel that is a column times a row, with all weights positive.
pub(super) fn separated(weights: &[f64], size: usize) -> Option<(Vec<f32>, Vec<f32>)> {
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
