//! The thresholds by which images and patches are left out. Depends on `dataset::measure`. Promises
//! that a criterion that is not given changes nothing, neither the content nor the identity of a set.

use super::format::Geometry;
use crate::dataset::measure::{
    BlurMeasure, Luma, blockiness, entropy, noise, noise_bytes, perceptual_hash,
};
use anyhow::{Result, ensure};
use image::RgbImage;

/// Kind of an image whose JPEG blocks are too strong.
pub(super) const BLOCKY: &str = "blockiness";
/// Kind of an image with too much noise.
pub(super) const NOISY: &str = "noise";
/// Kind of an image that an earlier one resembles.
pub(super) const NEAR_DUPLICATE: &str = "near duplicate";

/// Bits of a perceptual hash.
pub const HASH_BITS: u32 = 64;

/// What is left out. Blockiness, noise and near duplicates are of whole images: the compression and
/// the sensor are those of a file, and one patch has too few block borders or flat places to measure
/// them. Entropy and blur (and detail, which has an option of its own) are of patches: they differ
/// within a photograph.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Criteria {
    /// Largest blockiness of an image, levels of luma ([`blockiness`]).
    pub max_blockiness: Option<f64>,
    /// Largest noise of an image, units of 1/255 ([`noise`]).
    pub max_noise: Option<f64>,
    /// Largest number of different bits in the hashes of two images of which the later one is left
    /// out ([`perceptual_hash`]).
    pub near_duplicates: Option<u32>,
    /// Largest blur of a patch, pixels of the HR ([`BlurMeasure::measure`]).
    pub max_blur: Option<f64>,
    /// Smallest entropy of a patch, bits ([`entropy`]).
    pub min_entropy: Option<f64>,
}

/// The names of the options, without `--`.
const MAX_BLOCKINESS: &str = "max-blockiness";
const MAX_NOISE: &str = "max-noise";
const NEAR_DUPLICATES: &str = "near-duplicates";
const MAX_BLUR: &str = "max-blur";
const MIN_ENTROPY: &str = "min-entropy";

impl Criteria {
    /// The criteria of a set, from the options in its manifest.
    pub fn from_options(options: &[(String, String)]) -> Criteria {
        let value = |name: &str| options.iter().find(|(n, _)| n == name).map(|(_, v)| v);
        let number = |name: &str| value(name).and_then(|v| v.parse().ok());
        Criteria {
            max_blockiness: number(MAX_BLOCKINESS),
            max_noise: number(MAX_NOISE),
            near_duplicates: value(NEAR_DUPLICATES).and_then(|v| v.parse().ok()),
            max_blur: number(MAX_BLUR),
            min_entropy: number(MIN_ENTROPY),
        }
    }

    /// These criteria, and those of `others` that are not given here.
    #[must_use]
    pub fn or(self, others: Criteria) -> Criteria {
        Criteria {
            max_blockiness: self.max_blockiness.or(others.max_blockiness),
            max_noise: self.max_noise.or(others.max_noise),
            near_duplicates: self.near_duplicates.or(others.near_duplicates),
            max_blur: self.max_blur.or(others.max_blur),
            min_entropy: self.min_entropy.or(others.min_entropy),
        }
    }

    /// The criteria as options of a manifest.
    pub(super) fn options(&self) -> Vec<(String, String)> {
        let number = |value: Option<f64>| value.map(|v| format!("{v:?}"));
        let all = [
            (MAX_BLOCKINESS, number(self.max_blockiness)),
            (MAX_NOISE, number(self.max_noise)),
            (NEAR_DUPLICATES, self.near_duplicates.map(|n| n.to_string())),
            (MAX_BLUR, number(self.max_blur)),
            (MIN_ENTROPY, number(self.min_entropy)),
        ];
        let given = |(name, value): (&str, Option<String>)| Some((name.to_string(), value?));
        all.into_iter().filter_map(given).collect()
    }

    /// Refuses thresholds out of range.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value, most) in [
            (MAX_BLOCKINESS, self.max_blockiness, 255.0),
            (MAX_NOISE, self.max_noise, 255.0),
            (MAX_BLUR, self.max_blur, 10.0),
            (MIN_ENTROPY, self.min_entropy, 8.0),
        ] {
            if let Some(value) = value {
                ensure!(
                    (0.0..=most).contains(&value),
                    "--{name} is {value}; it goes from 0 to {most}"
                );
            }
        }
        if let Some(bits) = self.near_duplicates {
            ensure!(
                bits <= HASH_BITS / 2,
                "--near-duplicates is {bits}; it goes from 0 to {} of {HASH_BITS} bits, by which unrelated images differ",
                HASH_BITS / 2
            );
        }
        Ok(())
    }

    /// Whether whole images are measured.
    fn of_images(&self) -> bool {
        self.max_blockiness.is_some() || self.max_noise.is_some() || self.near_duplicates.is_some()
    }

    /// Measures an image. Returns its perceptual hash, if it is needed.
    ///
    /// # Errors
    /// The kind and the reason of the rejection: a threshold is exceeded.
    pub(super) fn hash_or_reject(
        &self,
        image: &RgbImage,
    ) -> Result<Option<u64>, (&'static str, String)> {
        if !self.of_images() {
            return Ok(None);
        }
        if let Some(most) = self.max_noise
            && let Some(found) = noise(image).filter(|&found| found > most)
        {
            let reason = format!("its noise of {found:.2} is more than --max-noise {most}");
            return Err((NOISY, reason));
        }
        let luma = Luma::new(image);
        if let Some(most) = self.max_blockiness
            && let Some(found) = blockiness(&luma).filter(|&found| found > most)
        {
            let reason =
                format!("its blockiness of {found:.2} is more than --max-blockiness {most}");
            return Err((BLOCKY, reason));
        }
        Ok(self.near_duplicates.map(|_| perceptual_hash(&luma)))
    }

    /// Whether a patch of the HR (`[side, side, 3]`) is left out.
    pub(super) fn drops(&self, patch: &[u8], side: usize, blur: &mut BlurMeasure) -> bool {
        if self.min_entropy.is_none() && self.max_blur.is_none() {
            return false;
        }
        let luma = Luma::of_rows(patch, side);
        self.min_entropy.is_some_and(|least| entropy(&luma) < least)
            || self
                .max_blur
                .is_some_and(|most| blur.measure(&luma).is_some_and(|found| found > most))
    }

    /// Memory that measuring an image of `pixels` pixels takes besides the image, bytes.
    pub(super) fn image_bytes(&self, pixels: u64) -> u64 {
        let luma = if self.max_blockiness.is_some() || self.near_duplicates.is_some() {
            pixels
        } else {
            0
        };
        let noise = self.max_noise.map_or(0, |_| noise_bytes(pixels));
        luma.max(noise)
    }

    /// Memory that measuring a patch takes besides the patch, bytes.
    pub(super) fn patch_bytes(&self, g: Geometry) -> u64 {
        let side = g.hr() as u64;
        match (self.max_blur, self.min_entropy) {
            (Some(_), _) => BlurMeasure::bytes(side),
            (None, Some(_)) => side * side,
            (None, None) => 0,
        }
    }

    /// The given options that patches are left out by: `--min-detail`, or `--min-entropy or
    /// --max-blur`.
    pub(super) fn patch_options(&self, min_detail: f64) -> String {
        let all = [
            ("min-detail", (min_detail > 0.0).then_some(min_detail)),
            (MIN_ENTROPY, self.min_entropy),
            (MAX_BLUR, self.max_blur),
        ];
        let given = all.iter().filter(|(_, value)| value.is_some());
        let names: Vec<String> = given.map(|(name, _)| format!("--{name}")).collect();
        names.join(" or ")
    }
}
