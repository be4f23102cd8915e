//! The networks: their parameter tables, the plans of training and inference, and
//! network files. Depends on the plan, on files and on random keys. Promises PyTorch's `state_dict`
//! names, shapes and order of elements, so that PyTorch loads a table that was written to a file.

mod architecture;
pub(crate) mod error;
mod file;
mod graph;
mod networks;
mod params;
mod recompute;
mod settings;
mod step;

pub use architecture::{Recipe, Stages, Tiling};
pub use error::{Error, Mismatch, Purpose};
pub use file::{
    LoadedModel, Located, ModelHints, ModelMeta, Pretrained, load_model, locate, read_model,
    read_pretrained, read_pretrained_or_network, write_model,
};
pub(crate) use file::{STATE_METADATA_KEY, model_bytes};
pub use params::{Init, Param, ParamTable};
pub use recompute::Recompute;
pub use settings::{InFile, Setting, SettingKind, SettingSpec, Settings};
pub use step::{InferenceSpec, StageSpec, StepSpec, inference_plan, stage_plan, training_plan};

use architecture::{ARCHITECTURES, Architecture, Row};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

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

/// A network: its architecture, its scale and the settings of its architecture.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Network {
    /// Canonical name, e.g. `paragonsr2_realtime`.
    pub arch: String,
    /// HR pixels per LQ pixel along one side.
    pub scale: usize,
    /// The settings of the architecture, every one of them.
    settings: Settings,
}

/// As one map: name, scale, and the settings in the order of the architecture's table, so that a
/// network is written as every version wrote it.
impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("arch", &self.arch)?;
        map.serialize_entry("scale", &self.scale)?;
        for (spec, value) in self.settings() {
            map.serialize_entry(spec.name, value)?;
        }
        map.end()
    }
}

/// The fields of a [`Network`] as they are stored: settings that an earlier version did not have
/// may be missing.
#[derive(Deserialize)]
struct Fields {
    arch: String,
    scale: usize,
    #[serde(flatten)]
    settings: Settings,
}

impl TryFrom<Fields> for Network {
    type Error = Error;

    fn try_from(fields: Fields) -> Result<Network, Error> {
        let mut net = Network::new(&fields.arch, fields.scale)?;
        for (name, value) in fields.settings {
            net.set(&name, value)?;
        }
        Ok(net)
    }
}

impl Network {
    /// A network by name or alias (any case) with its default settings.
    ///
    /// # Errors
    /// An unknown name, or a scale that the network cannot have.
    pub fn new(name: &str, scale: usize) -> Result<Network, Error> {
        let Some((row, alias)) = architecture::find(name) else {
            return Err(Error::UnknownArchitecture {
                name: name.to_string(),
            });
        };
        if !row.scales.contains(&scale) {
            return Err(Error::UnknownScale {
                scale,
                arch: row.name,
                scales: row.scales,
            });
        }
        let specs = row.settings.iter();
        let mut net = Network {
            arch: row.name.to_string(),
            scale,
            settings: specs.map(|s| (s.name.to_string(), s.default())).collect(),
        };
        for &(setting, value) in alias.map_or(&[][..], |alias| alias.sets) {
            net.set(setting, value)?;
        }
        Ok(net)
    }

    /// Checks that [`Network::new`] accepts name and scale: the fields are public and may have
    /// been changed.
    ///
    /// # Errors
    /// Those of [`Network::new`].
    pub fn check(&self) -> Result<(), Error> {
        let Network { arch, scale, .. } = self;
        let same = Network::new(arch, *scale)?.settings;
        if same.keys().eq(self.settings.keys()) {
            return Ok(());
        }
        Err(Error::UnknownArchitecture {
            name: format!("{arch} with the settings of another network"),
        })
    }

    /// The architecture. A name that [`Network::check`] refuses is treated as the first one.
    fn architecture(&self) -> &'static dyn Architecture {
        architecture::by_name(&self.arch).unwrap_or(ARCHITECTURES[0])
    }

    /// The settings with their specifications, in the order of the help.
    pub fn settings(&self) -> impl Iterator<Item = (&'static SettingSpec, &Setting)> {
        let specs = self.architecture().row().settings.iter();
        specs.filter_map(|spec| Some((spec, self.settings.get(spec.name)?)))
    }

    /// Changes a setting.
    ///
    /// # Errors
    /// [`Error::NoSetting`] for a name that the architecture does not have,
    /// [`Error::SettingValue`] for a value that it cannot have.
    pub fn set(&mut self, name: &str, value: impl Into<Setting>) -> Result<(), Error> {
        let value = value.into();
        let spec = self.spec(name)?;
        let accepted = spec.accept(&value).ok_or_else(|| Error::SettingValue {
            arch: self.arch.clone(),
            name: spec.name,
            value: value.to_string(),
            allowed: spec.allowed(),
        })?;
        self.settings.insert(spec.name.to_string(), accepted);
        Ok(())
    }

    /// The specification of a setting.
    ///
    /// # Errors
    /// [`Error::NoSetting`] for a name that the architecture does not have.
    pub fn spec(&self, name: &str) -> Result<&'static SettingSpec, Error> {
        let specs = self.architecture().row().settings;
        let found = specs.iter().find(|spec| spec.name == name);
        found.ok_or_else(|| Error::NoSetting {
            arch: self.arch.clone(),
            name: name.to_string(),
            known: specs.iter().map(|spec| spec.name).collect(),
        })
    }

    /// The value of a setting that is a number; 0 if the network has none of that name.
    pub fn number(&self, name: &str) -> f32 {
        match self.settings.get(name) {
            Some(&Setting::Number(value)) => value,
            _ => 0.0,
        }
    }

    /// The value of a setting that is a whole number; 0 if the network has none of that name.
    pub fn whole(&self, name: &str) -> usize {
        match self.settings.get(name) {
            Some(&Setting::Whole(value)) => value,
            _ => 0,
        }
    }

    /// The value of a setting that is yes or no; no if the network has none of that name.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.settings.get(name), Some(Setting::Flag(true)))
    }

    /// The value of a setting that is one of some names; empty if the network has none of that
    /// name.
    pub fn choice(&self, name: &str) -> &str {
        match self.settings.get(name) {
            Some(Setting::Choice(value)) => value,
            _ => "",
        }
    }

    /// The parameter table: trainable parameters first, then fixed ones. Sizes may overflow for a
    /// scale that [`Network::check`] refuses.
    pub fn params(&self) -> ParamTable {
        let mut table = ParamTable::default();
        self.architecture().parameters(self, &mut table);
        table
    }

    /// Computes the parameters that follow from others, in table order.
    fn derive(&self, table: &ParamTable, values: &mut [f32]) {
        self.architecture().derive(self, table, values);
    }

    /// How images may be cut into tiles for this network.
    pub fn tiling(&self) -> Tiling {
        self.architecture().tiling(self)
    }

    /// The stages in which an image can be computed with the result of the whole image, if the
    /// network looks at the whole image.
    pub fn stages(&self) -> Option<Stages> {
        self.architecture().stages(self)
    }
}

/// A network that can be trained, for listings.
#[derive(Clone, Debug)]
pub struct KnownNetwork {
    /// Canonical name.
    pub name: &'static str,
    /// Other names, the usual ones first.
    pub aliases: Vec<&'static str>,
    /// What it is for, in a few words.
    pub about: &'static str,
    /// The scales that it can have.
    pub scales: &'static [usize],
    /// Its settings.
    pub settings: &'static [SettingSpec],
    /// What makes short runs of it learn fast.
    pub quick: Recipe,
}

impl From<&Row> for KnownNetwork {
    fn from(row: &Row) -> KnownNetwork {
        KnownNetwork {
            name: row.name,
            aliases: row.aliases.iter().map(|alias| alias.name).collect(),
            about: row.about,
            scales: row.scales,
            settings: row.settings,
            quick: row.quick,
        }
    }
}

/// All networks that can be trained.
pub fn known_networks() -> Vec<KnownNetwork> {
    let all = ARCHITECTURES.into_iter();
    all.map(|architecture| architecture.row().into()).collect()
}

/// A network by name or alias (any case); `None` if it is not known.
pub fn known_network(name: &str) -> Option<KnownNetwork> {
    architecture::find(name).map(|(row, _)| row.into())
}
