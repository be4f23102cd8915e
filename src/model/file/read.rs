//! Reading a network file in order to run the network. Depends on the other parts of this module.

use super::container::{Contents, contents, read_bytes, refused};
use super::foreign;
use super::names::Tensors;
use super::tensors::{label, mismatches, read_values};
use super::write::ModelMeta;
use crate::model::architecture::{ARCHITECTURES, Found, Shapes};
use crate::model::error::Purpose;
use crate::model::{Error, InFile, Init, Network, Param, Settings};
use crate::support::text::brief;
use std::path::Path;

/// Settings from the command line; each one given replaces what the file's metadata says.
#[derive(Clone, Debug, Default)]
pub struct ModelHints {
    /// Variant name or alias.
    pub arch: Option<String>,
    /// HR pixels per LQ pixel along one side.
    pub scale: Option<usize>,
    /// Settings of the network, as `upsampler_alpha`.
    pub settings: Settings,
}

/// The network used where neither the file nor the caller names one.
const DEFAULT_ARCH: &str = "paragonsr2_realtime";

/// Largest difference between a file's fixed taps and this program's: they are stored as f32 or
/// halves of multiples of 1/32, which are exact.
const TAPS_TOLERANCE: f32 = 1e-6;

/// A network that was read from a file.
#[derive(Clone, Debug)]
pub struct LoadedModel {
    /// The network.
    pub net: Network,
    /// Its parameters in table order.
    pub values: Vec<f32>,
    /// The metadata, in files of this program.
    pub meta: Option<ModelMeta>,
    /// The entry of a PyTorch checkpoint that the tensors were taken from, and which others are
    /// beside it: `params_ema (params is there too)`. `None`: there was nothing to choose.
    pub taken: Option<String>,
}

/// Reads a network file: the network, its parameters in table order, and its metadata if it has
/// any.
///
/// # Errors
/// Those of [`load_model`].
pub fn read_model(
    path: &Path,
    hints: &ModelHints,
) -> Result<(Network, Vec<f32>, Option<ModelMeta>), Error> {
    let LoadedModel {
        net, values, meta, ..
    } = load_model(path, hints)?;
    Ok((net, values, meta))
}

/// Reads a network file, a safetensors file or a checkpoint of PyTorch.
///
/// # Errors
/// When the file cannot be read, is damaged, of another variant, or lacks metadata that no hint
/// gives; the message lists what does not match.
pub fn load_model(path: &Path, hints: &ModelHints) -> Result<LoadedModel, Error> {
    let bytes = read_bytes(path)?;
    load_model_bytes(&bytes, hints).map_err(refused(path, Purpose::Model))
}

/// As [`load_model`], from the file's bytes.
pub(super) fn load_model_bytes(bytes: &[u8], hints: &ModelHints) -> Result<LoadedModel, Error> {
    let Contents {
        tensors,
        metadata,
        taken,
    } = contents(bytes)?;
    let meta = metadata_of(metadata.as_deref())?;
    let net = network_of(&tensors, meta.as_ref(), hints)?;
    let table = net.params();
    let mut values = vec![0.0; table.len()];
    for p in table.params.iter().filter(|p| p.init != Init::Derived) {
        let out = &mut values[p.range.offset..][..p.range.len];
        read_values(&tensors[&p.name], out);
        check_values(p, out)?;
    }
    net.derive(&table, &mut values);
    Ok(LoadedModel {
        net,
        values,
        meta,
        taken,
    })
}

/// The metadata entry of this program; `None` in files of other programs.
fn metadata_of(entry: Option<&str>) -> Result<Option<ModelMeta>, Error> {
    entry
        .map(serde_json::from_str)
        .transpose()
        .map_err(|error| Error::Metadata(brief(error)))
}

/// The network that a file holds. Afterwards every parameter of its table is among `tensors`.
fn network_of(
    tensors: &Tensors,
    meta: Option<&ModelMeta>,
    hints: &ModelHints,
) -> Result<Network, Error> {
    let arch = hints.arch.as_deref().or(meta.map(|m| m.arch.as_str()));
    let (seen_arch, seen_scale, seen_settings) = recognise(tensors).unwrap_or_default();
    if seen_arch.is_none() && meta.is_none() {
        // even if the caller names a network: these tensors are not its
        foreign::check(tensors, arch.is_none())?;
    }
    let arch = arch.or(seen_arch).unwrap_or(DEFAULT_ARCH);
    let scale = hints.scale.or(meta.map(|m| m.scale));
    let scale = scale.or(seen_scale).ok_or(Error::NoScale)?;
    let mut net = Network::new(arch, scale)?;
    let mut given = Settings::new();
    if seen_arch == Some(net.arch.as_str()) {
        given.extend(seen_settings);
    }
    given.extend(meta.map(|m| m.settings.clone()).unwrap_or_default());
    given.extend(hints.settings.clone());
    for (name, value) in &given {
        net.set(name, value.clone())?;
    }
    let mismatches = mismatches(tensors, &net);
    if !mismatches.is_empty() {
        return Err(Error::Tensors {
            network: label(&net),
            mismatches,
            lenient_helps: false,
        });
    }
    let mut missing = net
        .settings()
        .filter(|(spec, _)| spec.in_file == InFile::Metadata && !given.contains_key(spec.name));
    if let Some((spec, usual)) = missing.next() {
        return Err(Error::SettingMissing {
            arch: net.arch.clone(),
            name: spec.name,
            usual: usual.to_string(),
        });
    }
    drop(missing);
    Ok(net)
}

impl Shapes for Tensors<'_> {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.get(name).map(|tensor| tensor.shape())
    }
}

/// The architecture that has tensors like these, the scale if it can be seen, and settings.
fn recognise(tensors: &Tensors) -> Option<(Option<&'static str>, Option<usize>, Settings)> {
    ARCHITECTURES.into_iter().find_map(|architecture| {
        let Found { scale, settings } = architecture.recognise(tensors)?;
        let settings = settings.into_iter();
        let settings = settings.map(|(name, value)| (name.to_string(), value));
        Some((Some(architecture.row().name), scale, settings.collect()))
    })
}

/// Refuses fixed taps other than those of the one base there is, and values that are not finite.
fn check_values(p: &Param, values: &[f32]) -> Result<(), Error> {
    let name = || p.name.clone();
    if let Init::Taps(taps) = p.init {
        let mut pairs = values.iter().zip(taps.iter().cycle());
        if !pairs.all(|(a, b)| (a - b).abs() < TAPS_TOLERANCE) {
            return Err(Error::OtherTaps { name: name() });
        }
    }
    match values.iter().find(|v| !v.is_finite()) {
        Some(&value) => Err(Error::NotFinite {
            name: name(),
            value,
        }),
        None => Ok(()),
    }
}
