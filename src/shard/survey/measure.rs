//! The six measures: names, units, options, and on which side of a threshold values are left out.

use crate::shard::plan::BuildConfig;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// Strength of JPEG's blocks, of an image.
    Blockiness,
    /// Deviation of the noise, of an image.
    Noise,
    /// Bits by which the hash differs from that of the nearest earlier image.
    Similarity,
    /// Mean difference of neighbouring pixels, of a patch.
    Detail,
    /// Entropy of the luma, of a patch.
    Entropy,
    /// Deviation of the blur, of a patch.
    Blur,
}

impl Measure {
    /// All measures, in the order in which they are shown.
    pub const ALL: [Measure; 6] = [
        Measure::Blockiness,
        Measure::Noise,
        Measure::Similarity,
        Measure::Detail,
        Measure::Entropy,
        Measure::Blur,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Measure::Blockiness => "blockiness",
            Measure::Noise => "noise",
            Measure::Similarity => "similarity",
            Measure::Detail => "detail",
            Measure::Entropy => "entropy",
            Measure::Blur => "blur",
        }
    }

    /// Its unit in words.
    pub fn unit(self) -> &'static str {
        match self {
            Measure::Blockiness => "levels of luma",
            Measure::Noise => "sigma in 1/255",
            Measure::Similarity => "bits to the nearest earlier image",
            Measure::Detail => "levels of luma",
            Measure::Entropy => "bits",
            Measure::Blur => "sigma in HR pixels",
        }
    }

    /// The option that sets its threshold.
    pub fn option(self) -> &'static str {
        match self {
            Measure::Blockiness => "--max-blockiness",
            Measure::Noise => "--max-noise",
            Measure::Similarity => "--near-duplicates",
            Measure::Detail => "--min-detail",
            Measure::Entropy => "--min-entropy",
            Measure::Blur => "--max-blur",
        }
    }

    /// Whether it is of patches; otherwise it is of images.
    pub fn of_patches(self) -> bool {
        matches!(self, Measure::Detail | Measure::Entropy | Measure::Blur)
    }

    /// What it is of, in the plural.
    pub fn of(self) -> &'static str {
        if self.of_patches() {
            "patches"
        } else {
            "images"
        }
    }

    /// Whether large values are left out; otherwise small ones are.
    pub fn drops_large(self) -> bool {
        matches!(self, Measure::Blockiness | Measure::Noise | Measure::Blur)
    }

    /// The threshold that a run has for it.
    pub(super) fn threshold(self, config: &BuildConfig) -> Option<f64> {
        let criteria = &config.criteria;
        match self {
            Measure::Blockiness => criteria.max_blockiness,
            Measure::Noise => criteria.max_noise,
            Measure::Similarity => criteria.near_duplicates.map(f64::from),
            Measure::Detail => (config.min_detail > 0.0).then_some(config.min_detail),
            Measure::Entropy => criteria.min_entropy,
            Measure::Blur => criteria.max_blur,
        }
    }

    /// Whether a value is left out at a threshold.
    pub fn drops(self, value: f64, threshold: f64) -> bool {
        match self {
            Measure::Similarity => value <= threshold,
            _ if self.drops_large() => value > threshold,
            _ => value < threshold,
        }
    }

    /// Width of a class of its distribution.
    pub(super) fn class(self) -> f64 {
        match self {
            Measure::Blockiness | Measure::Noise => 0.01,
            Measure::Similarity => 1.0,
            Measure::Detail => 0.02,
            Measure::Entropy | Measure::Blur => 0.005,
        }
    }

    /// The value at which the last class begins; larger values are counted in it.
    pub(super) fn last_class(self) -> f64 {
        match self {
            Measure::Blockiness | Measure::Noise => 60.0,
            Measure::Similarity => 64.0,
            Measure::Detail => 120.0,
            Measure::Entropy => 8.0,
            Measure::Blur => 10.0,
        }
    }
}
