//! The ParagonSR2 networks as builders of plans, with their parameter tables. Depends on the plan
//! and on random keys. It promises PyTorch's `state_dict` names, shapes and order of elements, so
//! that a table written to a file loads there.

mod file;
mod nano;
mod params;
mod recompute;

pub(crate) use file::STATE_METADATA_KEY;
pub use file::{ModelHints, ModelMeta, Pretrained, read_model, read_pretrained, write_model};
pub use nano::{InferenceSpec, StepSpec, inference_plan, training_plan};
pub use params::{Init, Param, ParamTable};
pub use recompute::Recompute;

use crate::support::text::brief;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// The taps of the Magic Kernel Sharp 2021 base (John Costella, "The Magic Kernel"): sharpening,
/// then blur.
pub const SHARP_TAPS: [f32; 7] = [
    -1.0 / 32.0,
    0.0,
    9.0 / 32.0,
    16.0 / 32.0,
    9.0 / 32.0,
    0.0,
    -1.0 / 32.0,
];
/// The blur after nearest-neighbour upsampling; see [`SHARP_TAPS`].
pub const BLUR_TAPS: [f32; 5] = [1.0 / 16.0, 4.0 / 16.0, 6.0 / 16.0, 4.0 / 16.0, 1.0 / 16.0];

/// A network of the family: variant, scale and the two numbers a configuration may change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Canonical name, e.g. `paragonsr2_realtime`.
    pub arch: String,
    /// HR pixels per LQ pixel along one side: 2, 3, 4 or 8.
    pub scale: usize,
    /// Strength of the base's sharpening, 0 to skip it.
    pub upsampler_alpha: f32,
    /// Start value of the trainable `detail_gain`.
    pub detail_gain: f32,
    /// Start value of LayerScale (`*.gamma`); the published value is 1e-5.
    pub layer_scale: f32,
}

/// What the table of variants in the documentation says of one of them.
struct Variant {
    arch: &'static str,
    aliases: &'static [&'static str],
    detail_gain: f32,
    alpha: f32,
    built: bool,
}

const VARIANTS: [Variant; 4] = [
    Variant {
        arch: "paragonsr2_realtime",
        aliases: &["nano", "paragonsr2_nano", "realtime"],
        detail_gain: 0.05,
        alpha: 0.3,
        built: true,
    },
    Variant {
        arch: "paragonsr2_stream",
        aliases: &["tiny", "stream"],
        detail_gain: 0.1,
        alpha: 0.0,
        built: false,
    },
    Variant {
        arch: "paragonsr2_photo",
        aliases: &["base", "photo"],
        detail_gain: 0.1,
        alpha: 0.4,
        built: false,
    },
    Variant {
        arch: "paragonsr2_pro",
        aliases: &["pro"],
        detail_gain: 0.1,
        alpha: 0.4,
        built: false,
    },
];

/// Scales for which networks are published or make sense.
pub const SCALES: [usize; 4] = [2, 3, 4, 8];

impl Network {
    /// A network by name or alias with its published defaults.
    ///
    /// # Errors
    /// An unknown name, a variant this version cannot train yet, or a scale outside [`SCALES`].
    pub fn new(name: &str, scale: usize) -> Result<Network> {
        let lower = name.to_lowercase();
        let Some(variant) = VARIANTS
            .iter()
            .find(|v| v.arch == lower || v.aliases.contains(&lower.as_str()))
        else {
            let known: Vec<&str> = VARIANTS.iter().map(|v| v.arch).collect();
            bail!(
                "unknown network '{}'; known are {}, and nano for paragonsr2_realtime",
                brief(name),
                known.join(", ")
            );
        };
        if !variant.built {
            bail!(
                "{} is not available in this version; paragonsr2_realtime (nano) is",
                variant.arch
            );
        }
        if !SCALES.contains(&scale) {
            bail!("scale {scale} is not one of 2, 3, 4, 8");
        }
        Ok(Network {
            arch: variant.arch.to_string(),
            scale,
            upsampler_alpha: variant.alpha,
            detail_gain: variant.detail_gain,
            layer_scale: 1e-5,
        })
    }

    /// Whether this is a network that [`Network::new`] gives: its fields are public and may have
    /// been changed.
    ///
    /// # Errors
    /// Those of [`Network::new`], and numbers that are not finite.
    pub fn check(&self) -> Result<()> {
        Network::new(&self.arch, self.scale)?;
        let numbers = [self.upsampler_alpha, self.detail_gain, self.layer_scale];
        anyhow::ensure!(
            numbers.iter().all(|n| n.is_finite()),
            "alpha, detail gain and LayerScale of {} must be finite: {numbers:?}",
            self.arch
        );
        Ok(())
    }

    /// The parameter table: trainable parameters first, then the fixed taps of the base.
    pub fn params(&self) -> ParamTable {
        nano::params(self)
    }

    /// How far (in LQ pixels) an output pixel sees: tiles that overlap by this much give the same
    /// bits as one pass.
    pub fn receptive_field(&self) -> usize {
        nano::receptive_field(self)
    }
}
