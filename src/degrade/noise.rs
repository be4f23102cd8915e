//! Noise as Real-ESRGAN adds it. Every pixel has random bits of its own, a pure function of the
//! draw's key and the pixel's number, so that the noise does not depend on an order.

use super::canvas::{Canvas, to_byte};
use super::draws::{Normals, Stream, field_bits};
use super::keys::{Keys, Numbers, Range};
use serde_json::{Value as Json, json};
use std::fmt;

/// Means from here on are drawn by an expansion of the normal quantile; smaller ones by inversion.
const EXPANSION_FROM: f64 = 16.0;
/// Weights of red, green and blue in the grey image (torchvision's `rgb_to_grayscale`).
const GREY: [f32; 3] = [0.2989, 0.587, 0.114];

/// The ranges of Gaussian noise.
#[derive(Clone, Debug)]
pub(crate) struct GaussianNoise {
    sigma: Range,
    grey: f64,
}

impl Default for GaussianNoise {
    fn default() -> GaussianNoise {
        GaussianNoise {
            sigma: Range::new(1.0, 30.0),
            grey: 0.4,
        }
    }
}

const GREY_ABOUT: &str = "probability that all channels get the same noise";

impl GaussianNoise {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        let about = "standard deviation in levels of 8 bits";
        keys.range("sigma", &mut self.sigma, Numbers::Real, (0.0, 255.0), about);
        keys.number("grey", &mut self.grey, (0.0, 1.0), GREY_ABOUT);
    }

    /// Draws the noise.
    pub fn draw(&self, stream: &mut Stream) -> DrawnNoise {
        DrawnNoise {
            poisson: false,
            amount: self.sigma.draw(stream),
            grey: stream.chance(self.grey),
            field: stream.field(),
        }
    }
}

/// The ranges of Poisson noise.
#[derive(Clone, Debug)]
pub(crate) struct PoissonNoise {
    scale: Range,
    grey: f64,
}

impl Default for PoissonNoise {
    fn default() -> PoissonNoise {
        PoissonNoise {
            scale: Range::new(0.05, 3.0),
            grey: 0.4,
        }
    }
}

impl PoissonNoise {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        let about = "factor of the noise; 1 = that of as many photons as the image has levels";
        keys.range("scale", &mut self.scale, Numbers::Real, (0.0, 20.0), about);
        keys.number("grey", &mut self.grey, (0.0, 1.0), GREY_ABOUT);
    }

    /// Draws the noise.
    pub fn draw(&self, stream: &mut Stream) -> DrawnNoise {
        DrawnNoise {
            poisson: true,
            amount: self.scale.draw(stream),
            grey: stream.chance(self.grey),
            field: stream.field(),
        }
    }
}

/// Drawn noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnNoise {
    poisson: bool,
    amount: f64,
    grey: bool,
    field: u64,
}

impl DrawnNoise {
    /// The name of the step.
    pub(crate) fn name(&self) -> &'static str {
        if self.poisson {
            "poisson_noise"
        } else {
            "gaussian_noise"
        }
    }

    /// Its parameters for a program.
    pub(crate) fn json(&self) -> Json {
        let key = if self.poisson { "scale" } else { "sigma" };
        json!({key: self.amount, "grey": self.grey})
    }
}

impl fmt::Display for DrawnNoise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = if self.poisson { "scale" } else { "sigma" };
        let colour = if self.grey { "grey" } else { "colour" };
        write!(f, "{key} {:.2}, {colour}", self.amount)
    }
}

impl Canvas {
    /// Adds noise and clamps to 0 to 1.
    pub(super) fn add_noise(&mut self, noise: &DrawnNoise) {
        match noise.poisson {
            true => self.add_poisson(noise),
            false => self.add_gaussian(noise),
        }
    }

    fn add_gaussian(&mut self, noise: &DrawnNoise) {
        let normals = Normals::new();
        let sigma = (noise.amount / 255.0) as f32;
        let n = self.width * self.height;
        let values = self.values();
        let same = if noise.grey { n } else { values.len() };
        for channel in values.chunks_exact_mut(same) {
            for (at, pair) in channel.chunks_mut(2).enumerate() {
                let bits = field_bits(noise.field, at);
                for (value, half) in pair.iter_mut().zip([bits as u32, (bits >> 32) as u32]) {
                    *value = (*value + sigma * normals.at(half)).clamp(0.0, 1.0);
                }
            }
        }
    }

    /// The noise is `(Poisson(x V) / V - x) scale`, with x the image rounded to 8 bits and V the
    /// number of its distinct values, rounded up to a power of two.
    fn add_poisson(&mut self, noise: &DrawnNoise) {
        let n = self.width * self.height;
        let scale = noise.amount as f32;
        if !noise.grey {
            let photons = Photons::new(count_levels(self.values().iter().copied()));
            for (at, value) in self.values().iter_mut().enumerate() {
                let added = photons.noise(to_byte(*value), field_bits(noise.field, at));
                *value = (*value + scale * added).clamp(0.0, 1.0);
            }
            return;
        }
        let (red, rest) = self.planes[..3 * n].split_at_mut(n);
        let (green, blue) = rest.split_at_mut(n);
        let grey =
            |red: f32, green: f32, blue: f32| GREY[0] * red + GREY[1] * green + GREY[2] * blue;
        let pixels = || red.iter().zip(green.iter()).zip(blue.iter());
        let photons = Photons::new(count_levels(pixels().map(|((r, g), b)| grey(*r, *g, *b))));
        for (at, ((r, g), b)) in red.iter_mut().zip(green).zip(blue).enumerate() {
            let level = to_byte(grey(*r, *g, *b));
            let added = scale * photons.noise(level, field_bits(noise.field, at));
            [r, g, b]
                .into_iter()
                .for_each(|v| *v = (*v + added).clamp(0.0, 1.0));
        }
    }
}

/// How many of the 256 levels occur.
fn count_levels(values: impl Iterator<Item = f32>) -> usize {
    let mut seen = [false; 256];
    values.for_each(|value| seen[usize::from(to_byte(value))] = true);
    seen.iter().filter(|seen| **seen).count()
}

/// Poisson noise for each of the 256 levels.
struct Photons {
    levels: Box<[Level; 256]>,
    normals: Normals,
    vals: f32,
}

/// The parameters of one level.
#[derive(Clone, Copy, Default)]
struct Level {
    mean: f32,
    /// `e^-mean`, the probability of 0; 0 from [`EXPANSION_FROM`] on.
    none: f32,
    /// Square root of the variance, less that of rounding.
    deviation: f32,
}

impl Photons {
    fn new(distinct: usize) -> Photons {
        let vals = distinct.next_power_of_two() as f64;
        let level = |i: usize| {
            let mean = i as f64 / 255.0 * vals;
            let small = mean < EXPANSION_FROM;
            Level {
                mean: mean as f32,
                none: if small { libm::exp(-mean) as f32 } else { 0.0 },
                deviation: libm::sqrt((mean - 1.0 / 12.0).max(0.0)) as f32,
            }
        };
        Photons {
            levels: Box::new(std::array::from_fn(level)),
            normals: Normals::new(),
            vals: vals as f32,
        }
    }

    /// `Poisson(x V) / V - x` for a level of 8 bits.
    #[inline(always)]
    fn noise(&self, level: u8, bits: u64) -> f32 {
        let at = self.levels[usize::from(level)];
        let count = if at.none > 0.0 {
            invert(at, bits)
        } else {
            // Cornish and Fisher's expansion with the skewness and the kurtosis of the distribution
            let z = self.normals.at(bits as u32);
            let z2 = z * z;
            let bent = (z2 - 1.0) * (1.0 / 6.0) + z * (1.0 - z2) / (72.0 * at.deviation);
            ((at.mean + at.deviation * z + bent) + 12_582_912.0) - 12_582_912.0
        };
        (count.max(0.0) - at.mean) / self.vals
    }
}

/// The quantile of a Poisson distribution, by summing its probabilities.
#[inline]
fn invert(level: Level, bits: u64) -> f32 {
    let u = (bits >> 40) as f32 * (1.0 / (1u64 << 24) as f32) + 0.5 / (1u64 << 24) as f32;
    let (mut probability, mut sum, mut count) = (level.none, level.none, 0.0f32);
    while u > sum && count < 64.0 {
        count += 1.0;
        probability *= level.mean / count;
        sum += probability;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean, variance and skewness of Poisson counts for means on both sides of the change of
    /// method.
    #[test]
    fn poisson_counts_have_the_moments_of_their_distribution() {
        let photons = Photons::new(256);
        for level in [0u8, 1, 5, 14, 15, 16, 17, 30, 100, 255] {
            let mean = f64::from(level) / 255.0 * 256.0;
            let n = 200_000;
            let mut sums = [0.0f64; 3];
            for i in 0..n {
                let x = f64::from(photons.noise(level, field_bits(u64::from(level), i))) * 256.0;
                assert!(
                    (x + mean - (x + mean).round()).abs() < 1e-3,
                    "a whole count"
                );
                sums.iter_mut().zip(1..).for_each(|(s, k)| *s += x.powi(k));
            }
            let m = sums.map(|s| s / n as f64);
            let error = 5.0 * (mean.max(0.01) / n as f64).sqrt();
            assert!(m[0].abs() <= error, "{level}: mean {}", m[0]);
            let spread = 5.0 * (2.0 * mean * mean + mean).sqrt() / (n as f64).sqrt();
            assert!(
                (m[1] - mean).abs() <= spread + 1e-3 * mean,
                "{level}: {}",
                m[1]
            );
            if mean > 1.0 {
                let skewness = m[2] / m[1].powf(1.5);
                assert!(
                    (skewness - mean.powf(-0.5)).abs() < 0.04,
                    "{level}: {skewness}"
                );
            }
        }
    }
}
