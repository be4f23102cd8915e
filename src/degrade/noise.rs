//! Noise as Real-ESRGAN adds it. Every pixel has random bits of its own, a pure function of the
//! draw's key and the pixel's number, so that the noise does not depend on an order.

use super::area::Area;
use super::canvas::{Canvas, to_byte};
use super::draws::{Normals, Stream, Two, field_bits};
use super::keys::{Keys, Numbers, Range};
use super::lanes::dispatch;
use serde_json::{Value as Json, json};
use std::fmt;

/// Means from here on are drawn by an expansion of the normal quantile; smaller ones by inversion.
const EXPANSION_FROM: f64 = 16.0;
/// Photons beyond which inversion does not count; for means below 16 more have a probability of
/// 1e-18.
const MOST_PHOTONS: usize = 64;
/// Pixels whose noise is computed at a time.
const PIXELS_AT_ONCE: usize = 64;
/// The same for Gaussian noise, whose rows may be cut.
const NORMALS_AT_ONCE: usize = 32;
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

    /// The part of the image before it that decides `area` after it: Poisson noise counts the levels of
    /// the whole image.
    pub(super) fn input(&self, whole: (usize, usize), area: Area) -> Area {
        if self.poisson {
            Area::whole(whole)
        } else {
            area
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
        let (w, h) = (self.width, self.height);
        let (area, whole) = (self.area, self.whole);
        // the numbers of the pixels of whole rows follow each other
        let run = if w == whole.0 { w * h } else { w };
        for (channel, plane) in self.values().chunks_exact_mut(w * h).enumerate() {
            let plane_at = if noise.grey {
                0
            } else {
                channel * whole.0 * whole.1
            };
            for (row, values) in plane.chunks_exact_mut(run).enumerate() {
                let at = plane_at + (area.y.start + row) * whole.0 + area.x.start;
                add_normal(values, noise.field, at, sigma, normals);
            }
        }
    }

    /// The noise is `(Poisson(x V) / V - x) scale`, with x the image rounded to 8 bits and V the
    /// number of its distinct values, rounded up to a power of two.
    fn add_poisson(&mut self, noise: &DrawnNoise) {
        let n = self.width * self.height;
        let scale = noise.amount as f32;
        let levels = &mut self.bytes[..3 * n];
        let planes = &mut self.planes[..3 * n];
        if noise.grey {
            grey_levels(planes, levels);
        } else {
            all_levels(planes, levels);
        }
        let same = if noise.grey { n } else { 3 * n };
        let photons = Photons::new(&levels[..same]);
        let added = &mut self.other[..same];
        add_counts(&levels[..same], added, noise.field, &photons);
        for channel in planes.chunks_exact_mut(same) {
            add_scaled(channel, added, scale);
        }
    }
}

dispatch! {
    /// Adds normal noise to pixels, the first of which has the number `at`, and clamps to 0 to 1. Two
    /// pixels share the 64 bits of a place of the field.
    fn add_normal(values: &mut [f32], field: u64, at: usize, sigma: f32, normals: Normals) {
        let add = |value: &mut f32, added: f32| *value = (*value + sigma * added).clamp(0.0, 1.0);
        let (first, rest) = values.split_at_mut(at & 1);
        for value in first {
            let [added] = normals.block(&[(field_bits(field, at / 2) >> 32) as u32]);
            add(value, added);
        }
        let place = at.div_ceil(2);
        let (blocks, last) = rest.as_chunks_mut::<NORMALS_AT_ONCE>();
        for (block, values) in blocks.iter_mut().enumerate() {
            let added = normals_at(field, place + block * NORMALS_AT_ONCE / 2, normals);
            for i in 0..NORMALS_AT_ONCE {
                add(&mut values[i], added[i]);
            }
        }
        if !last.is_empty() {
            let added = normals_at(field, place + blocks.len() * NORMALS_AT_ONCE / 2, normals);
            for (value, added) in last.iter_mut().zip(added) {
                add(value, added);
            }
        }
    }
}

/// The normal numbers of pixels, two for each place of the field from `place` on.
#[inline(always)]
fn normals_at(field: u64, place: usize, normals: Normals) -> [f32; NORMALS_AT_ONCE] {
    normals.block(&bits_at(field, place))
}

/// Random bits, two numbers for each place of the field from `place` on.
#[inline(always)]
fn bits_at<const N: usize>(field: u64, place: usize) -> [u32; N] {
    let mut bits = [0u32; N];
    for (i, pair) in bits.chunks_exact_mut(2).enumerate() {
        let both = field_bits(field, place + i);
        (pair[0], pair[1]) = (both as u32, (both >> 32) as u32);
    }
    bits
}

dispatch! {
    /// Rounds to 8 bits.
    fn all_levels(values: &[f32], levels: &mut [u8]) {
        for (level, value) in levels.iter_mut().zip(values) {
            *level = to_byte(*value);
        }
    }
}

dispatch! {
    /// Rounds the brightness of three planes to 8 bits.
    fn grey_levels(planes: &[f32], levels: &mut [u8]) {
        let n = planes.len() / 3;
        let (red, rest) = planes.split_at(n);
        let (green, blue) = rest.split_at(n);
        for (((level, red), green), blue) in levels.iter_mut().zip(red).zip(green).zip(blue) {
            *level = to_byte(GREY[0] * red + GREY[1] * green + GREY[2] * blue);
        }
    }
}

dispatch! {
    /// Adds noise times a factor and clamps to 0 to 1.
    fn add_scaled(values: &mut [f32], added: &[f32], scale: f32) {
        for (value, added) in values.iter_mut().zip(added) {
            *value = (*value + scale * added).clamp(0.0, 1.0);
        }
    }
}

dispatch! {
    /// Writes `Poisson(x V) / V - x` for each level.
    fn add_counts(levels: &[u8], out: &mut [f32], field: u64, photons: &Photons) {
        let (blocks, last) = levels.as_chunks::<PIXELS_AT_ONCE>();
        let (outs, last_out) = out.as_chunks_mut::<PIXELS_AT_ONCE>();
        for (block, (levels, out)) in blocks.iter().zip(outs).enumerate() {
            photons.block(levels, out, field, block * PIXELS_AT_ONCE);
        }
        if !last.is_empty() {
            let (mut levels, mut out) = ([u8::MAX; PIXELS_AT_ONCE], [0.0; PIXELS_AT_ONCE]);
            levels[..last.len()].copy_from_slice(last);
            photons.block(&levels, &mut out, field, blocks.len() * PIXELS_AT_ONCE);
            last_out.copy_from_slice(&out[..last.len()]);
        }
    }
}

/// Poisson noise for each of the 256 levels.
pub(super) struct Photons {
    /// Means, and square roots of the variances less that of rounding.
    moments: Box<[Two; 256]>,
    /// The first level whose mean is at least [`EXPANSION_FROM`]; 256 if there is none.
    expanded_from: usize,
    /// For each level below it that occurs, the row of `sums`.
    rows: Box<[u8; 256]>,
    /// The probabilities of at most 0, 1, 2 ... photons.
    sums: Vec<[f32; MOST_PHOTONS]>,
    normals: Normals,
    /// 1 / V, a power of two.
    share: f32,
}

impl Photons {
    /// For an image with these levels.
    fn new(levels: &[u8]) -> Photons {
        let mut seen = [false; 256];
        levels
            .iter()
            .for_each(|level| seen[usize::from(*level)] = true);
        let distinct = seen.iter().filter(|seen| **seen).count();
        let vals = distinct.next_power_of_two() as f64;
        let mean = |level: usize| level as f64 / 255.0 * vals;
        let deviation = |level: usize| libm::sqrt((mean(level) - 1.0 / 12.0).max(0.0)) as f32;
        let expanded_from = (0..256).take_while(|i| mean(*i) < EXPANSION_FROM).count();
        let (mut rows, mut sums) = (Box::new([0; 256]), Vec::new());
        for level in (0..expanded_from).filter(|level| seen[*level]) {
            rows[level] = sums.len() as u8;
            sums.push(summed(mean(level)));
        }
        Photons {
            moments: Box::new(std::array::from_fn(|level| {
                Two::new(mean(level) as f32, deviation(level))
            })),
            expanded_from,
            rows,
            sums,
            normals: Normals::new(),
            share: (1.0 / vals) as f32,
        }
    }

    /// `Poisson(x V) / V - x` for the moments of a level from `expanded_from` on, by Cornish and Fisher's
    /// expansion with the skewness and the kurtosis of the distribution.
    #[inline(always)]
    fn expanded(&self, mean: f32, deviation: f32, z: f32) -> f32 {
        let z2 = z * z;
        let bent = (z2 - 1.0) * (1.0 / 6.0) + z * (1.0 - z2) / (72.0 * deviation);
        let count = ((mean + deviation * z + bent) + 12_582_912.0) - 12_582_912.0;
        (count.max(0.0) - mean) * self.share
    }

    /// The same for a level below: the quantile, by the sums of the probabilities.
    #[inline(always)]
    fn inverted(&self, level: u8, bits: u32) -> f32 {
        let level = usize::from(level);
        let u = (bits >> 8) as f32 * (1.0 / (1u32 << 24) as f32) + 0.5 / (1u32 << 24) as f32;
        let sums = &self.sums[usize::from(self.rows[level])];
        let mut count = 0;
        sums.iter().for_each(|sum| count += i32::from(u > *sum));
        (count as f32 - self.moments[level].first()) * self.share
    }

    /// The noise for `levels`, the first of which has the number `at`, an even one. Two levels share the
    /// 64 bits of a place of the field.
    #[inline(always)]
    fn block(
        &self,
        levels: &[u8; PIXELS_AT_ONCE],
        out: &mut [f32; PIXELS_AT_ONCE],
        field: u64,
        at: usize,
    ) {
        let bits: [u32; PIXELS_AT_ONCE] = bits_at(field, at / 2);
        let normal = self.normals.block(&bits);
        let (mut means, mut deviations) = ([0.0; PIXELS_AT_ONCE], [0.0; PIXELS_AT_ONCE]);
        for i in 0..PIXELS_AT_ONCE {
            let moments = self.moments[usize::from(levels[i])];
            (means[i], deviations[i]) = (moments.first(), moments.second());
        }
        for i in 0..PIXELS_AT_ONCE {
            out[i] = self.expanded(means[i], deviations[i], normal[i]);
        }
        let lowest = levels
            .iter()
            .fold(u8::MAX, |lowest, level| lowest.min(*level));
        if usize::from(lowest) >= self.expanded_from {
            return;
        }
        for ((out, &level), bits) in out.iter_mut().zip(levels).zip(bits) {
            if usize::from(level) < self.expanded_from {
                *out = self.inverted(level, bits);
            }
        }
    }
}

/// Probabilities of at most 0, 1, 2 ... photons of a Poisson distribution.
fn summed(mean: f64) -> [f32; MOST_PHOTONS] {
    let mut probability = libm::exp(-mean) as f32;
    let (mean, mut sum) = (mean as f32, probability);
    std::array::from_fn(|count| {
        if count > 0 {
            probability *= mean / count as f32;
            sum += probability;
        }
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::degrade::lanes::FORCED;
    use crate::support::isa::Isa;

    /// The noise of a pixel is that of its number, wherever it lies among the pixels that are computed
    /// at once, and has the same bits for every instruction set.
    #[test]
    fn noise_belongs_to_the_number_of_a_pixel() {
        let (n, field) = (201, 11);
        let normals = Normals::new();
        let levels: Vec<u8> = (0..n).map(|i| (i * 37 % 256) as u8).collect();
        let photons = Photons::new(&levels);
        let mut single = vec![0.5f32; n];
        for (i, value) in single.iter_mut().enumerate() {
            add_normal(std::slice::from_mut(value), field, i, 0.1, normals);
        }
        let mut counts = vec![9.0; n];
        add_counts(&levels, &mut counts, field, &photons);
        for isa in Isa::available() {
            FORCED.set(Some(isa.set()));
            for (start, end) in [(0, 1), (0, 32), (1, 64), (3, 70), (64, 201), (0, 201)] {
                let mut values = vec![0.5f32; end - start];
                add_normal(&mut values, field, start, 0.1, normals);
                assert!(values == single[start..end], "{isa}: {start} to {end}");
                let mut some = vec![9.0; end];
                add_counts(&levels[..end], &mut some, field, &photons);
                assert!(some == counts[..end], "{isa}: {end} levels");
            }
            FORCED.set(None);
        }
    }

    /// Mean, variance and skewness of Poisson counts for means on both sides of the change of
    /// method.
    #[test]
    fn poisson_counts_have_the_moments_of_their_distribution() {
        let all: Vec<u8> = (0..=255).collect();
        let photons = Photons::new(&all);
        for level in [0u8, 1, 5, 14, 15, 16, 17, 30, 100, 255] {
            let mean = f64::from(level) / 255.0 * 256.0;
            let n = 200_000;
            let mut sums = [0.0f64; 3];
            let (levels, mut noise) = (vec![level; n], vec![0.0; n]);
            add_counts(&levels, &mut noise, u64::from(level), &photons);
            for noise in noise {
                let x = f64::from(noise) * 256.0;
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
