//! The ParagonSR2 networks: their parameter tables, the plans of training and inference, and
//! network files. Depends on the plan, on files and on random keys. Promises PyTorch's `state_dict`
//! names, shapes and order of elements, so that PyTorch loads a table that was written to a file.

pub(crate) mod error;
mod file;
mod nano;
mod params;
mod recompute;
mod step;

pub use error::{Error, Mismatch, Purpose};
pub(crate) use file::STATE_METADATA_KEY;
pub use file::{ModelHints, ModelMeta, Pretrained, read_model, read_pretrained, write_model};
pub use params::{Init, Param, ParamTable};
pub use recompute::Recompute;
pub use step::{InferenceSpec, StepSpec, inference_plan, training_plan};

use serde::{Deserialize, Serialize};

/// Sharpening taps of the base upsampler, Magic Kernel Sharp 2021 (John Costella, "The Magic
/// Kernel"): applied to the LQ image along rows and columns.
pub const SHARP_TAPS: [f32; 7] = [
    -1.0 / 32.0,
    0.0,
    9.0 / 32.0,
    16.0 / 32.0,
    9.0 / 32.0,
    0.0,
    -1.0 / 32.0,
];
/// Blur taps of the base upsampler: applied to the HR image after nearest-neighbour upsampling; see
/// [`SHARP_TAPS`].
pub const BLUR_TAPS: [f32; 5] = [1.0 / 16.0, 4.0 / 16.0, 6.0 / 16.0, 4.0 / 16.0, 1.0 / 16.0];

/// A network of the family: its variant, its scale and the settings that a configuration may
/// change.
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

/// One row of the documentation's table of variants.
struct Variant {
    /// Canonical name.
    arch: &'static str,
    aliases: &'static [&'static str],
    /// Published start value of `detail_gain`.
    detail_gain: f32,
    /// Published `upsampler_alpha`.
    alpha: f32,
    /// Whether this version contains it.
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
    /// A network by name or alias (any case) with its published settings.
    ///
    /// # Errors
    /// An unknown name, a variant this version does not contain, or a scale outside [`SCALES`].
    pub fn new(name: &str, scale: usize) -> Result<Network, Error> {
        let lower = name.to_lowercase();
        let known = |v: &&Variant| v.arch == lower || v.aliases.contains(&lower.as_str());
        let variant = VARIANTS.iter().find(known);
        let variant = variant.ok_or_else(|| Error::UnknownArchitecture {
            name: name.to_string(),
        })?;
        if !variant.built {
            let arch = variant.arch;
            return Err(Error::NotBuilt { arch });
        }
        if !SCALES.contains(&scale) {
            return Err(Error::UnknownScale { scale });
        }
        Ok(Network {
            arch: variant.arch.to_string(),
            scale,
            upsampler_alpha: variant.alpha,
            detail_gain: variant.detail_gain,
            layer_scale: 1e-5,
        })
    }

    /// Checks that [`Network::new`] accepts the name and scale and that the settings are finite:
    /// the fields are public and may have been changed.
    ///
    /// # Errors
    /// Those of [`Network::new`], and [`Error::Settings`].
    pub fn check(&self) -> Result<(), Error> {
        Network::new(&self.arch, self.scale)?;
        let values = [self.upsampler_alpha, self.detail_gain, self.layer_scale];
        if values.iter().all(|v| v.is_finite()) {
            return Ok(());
        }
        Err(Error::Settings {
            arch: self.arch.clone(),
            values,
        })
    }

    /// The parameter table: trainable parameters first, then the fixed taps of the base. Sizes may
    /// overflow for a scale that [`Network::check`] refuses.
    pub fn params(&self) -> ParamTable {
        nano::table(self).0
    }

    /// Halo in LQ pixels: an output pixel depends on input pixels up to this far away. Tiles whose
    /// valid parts are this far from their inner borders give the same bits as one pass.
    pub fn receptive_field(&self) -> usize {
        nano::receptive_field()
    }
}
