//! The recipe by which the LQ of a set is made: one filter for all patches, or one drawn for each
//! patch, with or without a slight blur before. Depends on `degrade` and `rng`. Promises that a
//! patch is a pure function of the HR image, its name, its position and the recipe; the order in
//! which patches are made does not matter.

use super::degrade::{Filter, Resampler};
use crate::support::rng::{Rng, key};
use anyhow::{Result, bail, ensure};
#[cfg(feature = "cli")]
use clap::builder::PossibleValue;
use image::RgbImage;
use std::fmt;

/// Recipe number of an LQ that came with the images.
pub const RECIPE_GIVEN: u8 = 0;
/// Recipe number of a filter drawn for each patch.
pub const RECIPE_RANDOM: u8 = 7;
/// Recipe number of an LQ that a degradation recipe made, whose text is in the manifest.
pub const RECIPE_DEGRADED: u8 = 8;
/// Recipe number of a set that holds HR alone.
pub const RECIPE_HR_ONLY: u8 = 9;
/// Largest standard deviation of the blur, HR pixels: with more, the LQ has less than half of the
/// detail that its pixels could show.
pub const MAX_BLUR: f64 = 8.0;
/// The filters that a random recipe draws from: those that do not alias.
const DRAWN: [Filter; 5] = [
    Filter::Bicubic,
    Filter::Bilinear,
    Filter::Lanczos3,
    Filter::Box,
    Filter::Magic,
];
/// The weights of the blur are integers with this sum.
const BLUR_ONE: u32 = 1 << 14;

/// Which filter makes the LQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LqFilter {
    /// The same for every patch.
    Fixed(Filter),
    /// For each patch one of the antialiased filters.
    Random,
}

#[cfg(feature = "cli")]
impl clap::ValueEnum for LqFilter {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [LqFilter; 7] = [
            LqFilter::Fixed(Filter::Bicubic),
            LqFilter::Fixed(Filter::Bilinear),
            LqFilter::Fixed(Filter::Lanczos3),
            LqFilter::Fixed(Filter::Box),
            LqFilter::Fixed(Filter::Nearest),
            LqFilter::Fixed(Filter::Magic),
            LqFilter::Random,
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            LqFilter::Fixed(filter) => filter.to_possible_value(),
            LqFilter::Random => Some(
                PossibleValue::new("random")
                    .help("For each patch one of the others but nearest, drawn by --seed"),
            ),
        }
    }
}

/// How every LQ patch of a set is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// The filter of the reduction.
    pub filter: LqFilter,
    /// Largest standard deviation of the Gaussian blur before the reduction, HR pixels. Each patch
    /// draws its own between 0 and this. 0 = no blur.
    pub blur: f64,
    /// Seed of all draws.
    pub seed: u64,
}

impl Recipe {
    /// One filter for all, without blur.
    pub fn fixed(filter: Filter) -> Self {
        Recipe {
            filter: LqFilter::Fixed(filter),
            blur: 0.0,
            seed: 0,
        }
    }

    /// Checks the blur.
    ///
    /// # Errors
    /// It is out of range.
    pub fn check(&self) -> Result<()> {
        ensure!(
            (0.0..=MAX_BLUR).contains(&self.blur),
            "the blur is {}; it must be 0 to {MAX_BLUR} HR pixels",
            self.blur
        );
        Ok(())
    }

    /// The number of the recipe in files.
    pub fn id(&self) -> u8 {
        match self.filter {
            LqFilter::Fixed(filter) => filter.id(),
            LqFilter::Random => RECIPE_RANDOM,
        }
    }

    /// The filter that makes the whole LQ image at once. `None` if patches differ.
    pub fn whole(&self) -> Option<Filter> {
        match self.filter {
            LqFilter::Fixed(filter) if self.blur == 0.0 => Some(filter),
            _ => None,
        }
    }

    /// Draws the filter and the standard deviation of the blur for the patch at (x, y) of the image
    /// with this key.
    fn draw(&self, image: u64, x: u32, y: u32) -> (Filter, f64) {
        let mut rng = Rng::new(&[self.seed, image, u64::from(x), u64::from(y)]);
        let drawn = DRAWN[rng.below(DRAWN.len() as u64) as usize];
        let filter = match self.filter {
            LqFilter::Fixed(filter) => filter,
            LqFilter::Random => drawn,
        };
        (filter, self.blur * rng.unit())
    }
}

/// In words, with everything that decides the pixels.
impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.filter {
            LqFilter::Fixed(filter) => write!(f, "{filter}")?,
            LqFilter::Random => f.write_str(RANDOM)?,
        }
        if self.blur > 0.0 {
            write!(f, ", {BLURRED}{}{HR_PIXELS}", self.blur)?;
        }
        if self.whole().is_none() {
            write!(f, ", seed {}", self.seed)
        } else {
            Ok(())
        }
    }
}

impl std::str::FromStr for Recipe {
    type Err = anyhow::Error;

    /// Reads what [`Recipe`]'s `Display` writes.
    fn from_str(text: &str) -> Result<Recipe> {
        let mut parts = text.split(", ");
        let filter = parts.next().unwrap_or_default();
        let filters = [
            Filter::Bicubic,
            Filter::Bilinear,
            Filter::Lanczos3,
            Filter::Box,
            Filter::Nearest,
            Filter::Magic,
        ];
        let fixed = filters.into_iter().find(|f| f.to_string() == filter);
        let filter = match fixed {
            Some(fixed) => LqFilter::Fixed(fixed),
            None if filter == RANDOM => LqFilter::Random,
            None => bail!("'{text}' is no recipe of an LQ"),
        };
        let mut recipe = Recipe {
            filter,
            blur: 0.0,
            seed: 0,
        };
        for part in parts {
            let blur = part
                .strip_prefix(BLURRED)
                .and_then(|rest| rest.strip_suffix(HR_PIXELS));
            match (blur, part.strip_prefix("seed ")) {
                (Some(blur), _) => recipe.blur = blur.parse()?,
                (None, Some(seed)) => recipe.seed = seed.parse()?,
                (None, None) => bail!("'{part}' is no part of the recipe of an LQ"),
            }
        }
        Ok(recipe)
    }
}

/// Words of a recipe.
const RANDOM: &str = "random filter";
const BLURRED: &str = "blurred by up to ";
const HR_PIXELS: &str = " HR pixels";

/// The key of an image for [`PatchMaker::make`].
pub fn image_key(name: &str) -> u64 {
    let words = name
        .as_bytes()
        .chunks(8)
        .map(|c| c.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b)));
    key(&std::iter::once(name.len() as u64)
        .chain(words)
        .collect::<Vec<_>>())
}

/// Makes LQ patches one by one and keeps its buffers between them. Each thread has its own.
#[derive(Default)]
pub struct PatchMaker {
    between: Vec<u8>,
}

impl PatchMaker {
    /// Makes the LQ patch of `size` pixels at (x, y) of the LQ image and appends it to `out`
    /// (`[size, size, 3]`). It reads only the part of `hr` that the filter and the blur reach; the
    /// result is the same as that of reducing the whole image.
    ///
    /// # Errors
    /// Those of [`Resampler::downscale`].
    pub fn make(
        &mut self,
        resampler: &mut Resampler,
        hr: &RgbImage,
        scale: u32,
        recipe: &Recipe,
        (image, x, y, size): (u64, u32, u32, u32),
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let (filter, sigma) = recipe.draw(image, x, y);
        let reach = filter.support().ceil() as u32 + (radius(sigma) as u32).div_ceil(scale);
        let (left, top) = (x.saturating_sub(reach), y.saturating_sub(reach));
        let (right, bottom) = (
            (x + size + reach).min(hr.width() / scale),
            (y + size + reach).min(hr.height() / scale),
        );
        let (w, h) = ((right - left) * scale, (bottom - top) * scale);
        let mut part = image::imageops::crop_imm(hr, left * scale, top * scale, w, h).to_image();
        blur(&mut part, sigma, &mut self.between);
        let small = resampler.downscale(&part, scale, filter)?;
        let stride = small.width() as usize * 3;
        for row in small
            .as_raw()
            .chunks_exact(stride)
            .skip((y - top) as usize)
            .take(size as usize)
        {
            out.extend_from_slice(&row[(x - left) as usize * 3..][..size as usize * 3]);
        }
        Ok(())
    }
}

/// Pixels that a blur reaches to each side: three standard deviations, beyond which its weights are
/// negligible.
fn radius(sigma: f64) -> usize {
    (3.0 * sigma).ceil() as usize
}

/// Weights of the middle and of one side, as integers of which all sum to [`BLUR_ONE`], so that the
/// result is the same on every machine.
fn weights(sigma: f64) -> Vec<u32> {
    let ideal: Vec<f64> = (0..=radius(sigma))
        .map(|i| (-0.5 * (i as f64 / sigma).powi(2)).exp())
        .collect();
    let sum = 2.0 * ideal.iter().sum::<f64>() - ideal[0];
    let mut whole: Vec<u32> = ideal
        .iter()
        .map(|w| (w / sum * f64::from(BLUR_ONE)).round() as u32)
        .collect();
    whole[0] = BLUR_ONE - 2 * whole[1..].iter().sum::<u32>();
    whole
}

/// Blurs with a Gaussian of standard deviation `sigma` pixels, along x and then y. Beyond the
/// border the last pixel is repeated.
fn blur(image: &mut RgbImage, sigma: f64, between: &mut Vec<u8>) {
    let (w, h) = (image.width() as usize, image.height() as usize);
    if sigma < 1e-3 || w == 0 || h == 0 {
        return;
    }
    let weights = weights(sigma);
    between.resize(w * h * 3, 0);
    let mut sums = vec![0u32; w * 3];
    for (row, out) in image
        .as_raw()
        .chunks_exact(w * 3)
        .zip(between.chunks_exact_mut(w * 3))
    {
        let padded: Vec<u8> = (0..w + 2 * (weights.len() - 1))
            .flat_map(|i| {
                let x = i.saturating_sub(weights.len() - 1).min(w - 1);
                [row[x * 3], row[x * 3 + 1], row[x * 3 + 2]]
            })
            .collect();
        let middle = (weights.len() - 1) * 3;
        accumulate(&weights, &mut sums, out, |k, side| {
            if side {
                &padded[middle + k * 3..]
            } else {
                &padded[middle - k * 3..]
            }
        });
    }
    let stride = w * 3;
    for (y, out) in image.chunks_exact_mut(stride).enumerate() {
        accumulate(&weights, &mut sums, out, |k, side| {
            let row = if side {
                (y + k).min(h - 1)
            } else {
                y.saturating_sub(k)
            };
            &between[row * stride..][..stride]
        });
    }
}

/// Computes one row of a blur: the weighted sum of a line and its neighbours on both sides,
/// rounded.
fn accumulate<'a>(
    weights: &[u32],
    sums: &mut [u32],
    out: &mut [u8],
    line: impl Fn(usize, bool) -> &'a [u8],
) {
    for (sum, v) in sums.iter_mut().zip(line(0, true)) {
        *sum = BLUR_ONE / 2 + weights[0] * u32::from(*v);
    }
    for (k, &weight) in weights.iter().enumerate().skip(1) {
        for ((sum, a), b) in sums.iter_mut().zip(line(k, false)).zip(line(k, true)) {
            *sum += weight * (u32::from(*a) + u32::from(*b));
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = (*sum / BLUR_ONE) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn a_recipe_comes_back_from_its_words() {
        for filter in [
            LqFilter::Fixed(Filter::Bicubic),
            LqFilter::Fixed(Filter::Box),
            LqFilter::Random,
        ] {
            for blur in [0.0, 1.5, 0.1 + 0.2] {
                let recipe = Recipe {
                    filter,
                    blur,
                    seed: 7,
                };
                let read: Recipe = recipe.to_string().parse().unwrap();
                // a seed that decides nothing is not in the words
                let seed = if recipe.whole().is_some() { 0 } else { 7 };
                assert_eq!(read, Recipe { seed, ..recipe });
            }
        }
        assert!("given".parse::<Recipe>().is_err() && "box, x".parse::<Recipe>().is_err());
    }

    fn pattern(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([0, 1, 2].map(|c| ((x * 37 + y * 91 + c * 53 + x * y * 7) % 256) as u8))
        })
    }

    fn patch(hr: &RgbImage, recipe: &Recipe, at: (u64, u32, u32, u32)) -> Vec<u8> {
        let mut out = Vec::new();
        PatchMaker::default()
            .make(&mut Resampler::new(), hr, 2, recipe, at, &mut out)
            .unwrap();
        out
    }

    /// A patch that is made alone is the same as that part of the whole LQ image.
    #[test]
    fn a_patch_is_a_piece_of_the_whole_image() {
        let hr = pattern(120, 100);
        for filter in DRAWN {
            let whole = Resampler::new().downscale(&hr, 2, filter).unwrap();
            for (x, y) in [(0, 0), (20, 17), (44, 34)] {
                let wanted = image::imageops::crop_imm(&whole, x, y, 16, 16)
                    .to_image()
                    .into_raw();
                assert_eq!(
                    patch(&hr, &Recipe::fixed(filter), (1, x, y, 16)),
                    wanted,
                    "{filter} {x} {y}"
                );
            }
        }
        let mut blurred = hr.clone();
        blur(&mut blurred, 1.3, &mut Vec::new());
        let (part, (x, y)) = (
            image::imageops::crop_imm(&hr, 20, 10, 60, 60).to_image(),
            (30, 30),
        );
        let mut seen = part.clone();
        blur(&mut seen, 1.3, &mut Vec::new());
        assert_eq!(seen.get_pixel(x, y), blurred.get_pixel(20 + x, 10 + y));
    }

    #[test]
    fn draws_depend_on_seed_image_and_place_and_use_every_filter() {
        let random = Recipe {
            filter: LqFilter::Random,
            blur: 0.8,
            seed: 1,
        };
        let draw = |seed, image, x| Recipe { seed, ..random }.draw(image, x, 0);
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        for other in [draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0)] {
            assert_ne!(draw(1, 2, 3).1, other.1);
        }
        let drawn: Vec<_> = (0..500).map(|x| draw(1, 2, x)).collect();
        assert!(
            DRAWN
                .iter()
                .all(|f| drawn.iter().filter(|d| d.0 == *f).count() > 60)
        );
        assert!(
            drawn.iter().all(|d| (0.0..0.8).contains(&d.1)) && drawn.iter().any(|d| d.1 > 0.75)
        );
        assert!(
            random.whole().is_none() && Recipe::fixed(Filter::Box).whole() == Some(Filter::Box)
        );
        assert_ne!(image_key("a/b"), image_key("a/c"));
        assert_ne!(image_key("a"), image_key("a\0"));
    }

    #[test]
    fn the_blur_keeps_level_images_and_spreads_a_point_as_a_bell() {
        let mut level = RgbImage::from_pixel(9, 7, Rgb([3, 128, 255]));
        blur(&mut level, 2.0, &mut Vec::new());
        assert!(level.pixels().all(|p| p.0 == [3, 128, 255]));
        let mut point = RgbImage::new(31, 31);
        point.put_pixel(15, 15, Rgb([255; 3]));
        let sigma = 1.2;
        blur(&mut point, sigma, &mut Vec::new());
        for (x, y) in [(15, 15), (14, 15), (15, 17), (13, 13)] {
            let d = f64::from((15i32 - x as i32).pow(2) + (15i32 - y as i32).pow(2));
            let wanted =
                255.0 * (-0.5 * d / sigma / sigma).exp() / (std::f64::consts::TAU * sigma * sigma);
            assert!(
                (f64::from(point.get_pixel(x, y).0[1]) - wanted).abs() < 1.5,
                "{x} {y}"
            );
        }
        // weights of a deviation next to nothing are still a whole
        for sigma in [0.01, 0.3, 8.0] {
            let w = weights(sigma);
            assert_eq!(w[0] + 2 * w[1..].iter().sum::<u32>(), BLUR_ONE, "{sigma}");
        }
    }
}
