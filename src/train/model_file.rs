//! Network files: safetensors with PyTorch's `state_dict` names and shapes, so that they load there with `strict=True`, and
//! what cannot be read off the tensors (variant, scale, alpha) as one JSON string in the metadata.

use crate::files;
use crate::model::{Network, Param};
use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// Key of the metadata entry; its value is JSON. One entry only, since more would come out in a different order every time.
const METADATA_KEY: &str = "paragon";

/// The largest network of the family has a few tens of MiB; something larger is another file.
const MAX_MODEL_BYTES: u64 = 1 << 30;

/// What the metadata says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelMeta {
    /// Canonical variant name.
    pub arch: String,
    /// HR pixels per LQ pixel.
    pub scale: usize,
    /// Strength of the base's sharpening.
    pub upsampler_alpha: f32,
    /// Iterations trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iteration: Option<u64>,
}

/// What the command line may say about a file that does not say it itself.
#[derive(Clone, Debug, Default)]
pub struct ModelHints {
    /// Variant name or alias.
    pub arch: Option<String>,
    /// Scale.
    pub scale: Option<usize>,
    /// upsampler_alpha.
    pub alpha: Option<f32>,
}

/// Writes a network's parameters (in table order) atomically.
///
/// # Errors
/// When the file cannot be written; an older file of that name stays whole.
pub fn write_model(path: &Path, net: &Network, values: &[f32], iteration: Option<u64>) -> Result<()> {
    let table = net.params();
    ensure!(values.len() == table.len(), "{} values for a network of {}", values.len(), table.len());
    let meta = ModelMeta { arch: net.arch.clone(), scale: net.scale, upsampler_alpha: net.upsampler_alpha, iteration };
    let metadata = HashMap::from([(METADATA_KEY.to_string(), serde_json::to_string(&meta)?)]);
    let views: Vec<(String, TensorView)> = table
        .params
        .iter()
        .map(|p| {
            let bytes = bytemuck::cast_slice(&values[p.range.offset..][..p.range.len]);
            Ok((p.name.clone(), TensorView::new(Dtype::F32, p.shape.clone(), bytes)?))
        })
        .collect::<Result<_>>()?;
    let bytes = safetensors::serialize(views, Some(metadata))?;
    files::write_atomic(path, |out| Ok(out.write_all(&bytes)?))
}

/// Reads a network file: the network and its parameters in table order.
///
/// # Errors
/// When the file is damaged, of another variant, or lacks metadata that no hint gives; the message lists what does not match.
pub fn read_model(path: &Path, hints: &ModelHints) -> Result<(Network, Vec<f32>, Option<ModelMeta>)> {
    let bytes = read_bytes(path)?;
    read_model_bytes(&bytes, hints).with_context(|| format!("cannot use {} as a model", path.display()))
}

/// Key prefixes under which frameworks wrap a `state_dict`.
const PREFIXES: [&str; 3] = ["params_ema.", "params.", "module."];

fn plain_name(name: &str) -> &str {
    let mut name = name;
    while let Some(rest) = PREFIXES.iter().find_map(|p| name.strip_prefix(p)) {
        name = rest;
    }
    name
}

/// The tensors of a file by their plain names. Where it holds a network twice, the average (`params_ema`) is taken.
fn tensors_of<'a>(file: &SafeTensors<'a>) -> HashMap<String, TensorView<'a>> {
    let mut all = file.tensors();
    all.sort_by_key(|(name, _)| name.contains("params_ema."));
    all.into_iter().map(|(name, view)| (plain_name(&name).to_string(), view)).collect()
}

/// What does not fit between a file and a network: a line for each parameter that is missing, has another shape or type, or is
/// not part of the network; sorted.
fn mismatches(tensors: &HashMap<String, TensorView>, net: &Network) -> Vec<String> {
    let table = net.params();
    let mut wrong: Vec<String> = table.params.iter().filter_map(|p| misfit(tensors, p)).collect();
    let unknown = tensors.keys().filter(|name| table.get(name).is_none());
    wrong.extend(unknown.map(|name| format!("{name} is not part of {} x{}", net.arch, net.scale)));
    wrong.sort();
    wrong
}

fn misfit(tensors: &HashMap<String, TensorView>, p: &Param) -> Option<String> {
    match tensors.get(&p.name) {
        None => Some(format!("{} is missing", p.name)),
        Some(t) if t.shape() != p.shape => Some(format!("{} has shape {:?}, expected {:?}", p.name, t.shape(), p.shape)),
        Some(t) if !matches!(t.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) => Some(format!("{} has type {:?}", p.name, t.dtype())),
        Some(_) => None,
    }
}

/// Where a training starts from a file.
#[derive(Debug)]
pub struct Pretrained {
    /// Start values in table order.
    pub values: Vec<f32>,
    /// Parameters taken from the file.
    pub taken: usize,
    /// What did not fit; empty when strict.
    pub mismatches: Vec<String>,
}

/// Start values of a network from a file of ours or of PyTorch's (`params`, `params_ema` and `module.` prefixes are understood): all of
/// them, or (not `strict`) those that fit, the others from `start`. The network's own alpha stays.
///
/// # Errors
/// A file that cannot be read; when strict, tensors that do not fit; when not, a file of which nothing fits; values not finite.
pub fn read_pretrained(path: &Path, net: &Network, mut start: Vec<f32>, strict: bool) -> Result<Pretrained> {
    let bytes = read_bytes(path)?;
    let mut read = || -> Result<(usize, Vec<String>)> {
        let file = SafeTensors::deserialize(&bytes).context("it is not a whole safetensors file")?;
        let tensors = tensors_of(&file);
        let wrong = mismatches(&tensors, net);
        if strict && !wrong.is_empty() {
            bail!("its tensors are not those of {} x{}: {} (--lenient takes what fits)", net.arch, net.scale, shorten(&wrong));
        }
        let mut taken = 0;
        for p in net.params().params.iter().filter(|p| p.trainable && misfit(&tensors, p).is_none()) {
            let out = &mut start[p.range.offset..][..p.range.len];
            read_values(&tensors[&p.name], out);
            ensure!(out.iter().all(|v| v.is_finite()), "{} holds values that are not finite", p.name);
            taken += 1;
        }
        ensure!(taken > 0, "none of its tensors is one of {} x{}: {}", net.arch, net.scale, shorten(&wrong));
        Ok((taken, wrong))
    };
    let (taken, mismatches) = read().with_context(|| format!("cannot start from {}", path.display()))?;
    Ok(Pretrained { values: start, taken, mismatches })
}

fn shorten(wrong: &[String]) -> String {
    let more = wrong.len().saturating_sub(5);
    let shown = wrong[..wrong.len() - more].join("; ");
    if more > 0 { format!("{shown}; and {more} more") } else { shown }
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let about = std::fs::metadata(path).with_context(|| format!("cannot read the model {}", path.display()))?;
    ensure!(
        about.is_file() && about.len() <= MAX_MODEL_BYTES,
        "cannot use {} as a model: expected a safetensors file of at most {} MiB",
        path.display(),
        MAX_MODEL_BYTES >> 20
    );
    std::fs::read(path).with_context(|| format!("cannot read the model {}", path.display()))
}

fn read_model_bytes(bytes: &[u8], hints: &ModelHints) -> Result<(Network, Vec<f32>, Option<ModelMeta>)> {
    let (_, header) = SafeTensors::read_metadata(bytes).context("it is not a whole safetensors file")?;
    let meta: Option<ModelMeta> = match header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY)) {
        Some(text) => Some(serde_json::from_str(text).context("its metadata is not ours")?),
        None => None,
    };
    let file = SafeTensors::deserialize(bytes).context("it is not a whole safetensors file")?;
    let tensors = tensors_of(&file);
    let shape_of = |name: &str| tensors.get(name).map(|t| t.shape().to_vec());

    let arch = hints.arch.clone().or_else(|| meta.as_ref().map(|m| m.arch.clone())).unwrap_or_else(|| "paragonsr2_realtime".into());
    // the pixel shuffle's convolution tells the scale: [F * s * s, F, 3, 3]
    let from_shape = shape_of("up.0.weight").and_then(|s| {
        let (out, features) = (*s.first()?, *s.get(1)?);
        let scale = (out.checked_div(features)? as f64).sqrt() as usize;
        (scale * scale * features == out).then_some(scale)
    });
    let Some(scale) = hints.scale.or(meta.as_ref().map(|m| m.scale)).or(from_shape) else {
        bail!("it does not say its scale and its tensors do not either; give --scale (and check that it is a ParagonSR2 network)");
    };
    let mut net = Network::new(&arch, scale)?;
    let table = net.params();
    let wrong = mismatches(&tensors, &net);
    if !wrong.is_empty() {
        bail!("its tensors are not those of {} x{scale}: {}", net.arch, shorten(&wrong));
    }
    let Some(alpha) = hints.alpha.or(meta.as_ref().map(|m| m.upsampler_alpha)) else {
        bail!(
            "it does not say its upsampler_alpha, and no tensor does; give --alpha (the published {} uses {})",
            net.arch,
            net.upsampler_alpha
        );
    };
    net.upsampler_alpha = alpha;
    let mut values = vec![0.0; table.len()];
    for p in &table.params {
        let view = &tensors[&p.name];
        let out = &mut values[p.range.offset..][..p.range.len];
        read_values(view, out);
        if let crate::model::Init::Taps(taps) = p.init {
            let same = out.iter().zip(taps.iter().cycle()).all(|(&a, &b)| (a - b).abs() < 1e-6);
            ensure!(same, "its fixed taps {} are not those of Magic Kernel Sharp 2021, which is the only base there is", p.name);
        }
        if let Some(bad) = out.iter().find(|v| !v.is_finite()) {
            bail!("{} holds {bad}", p.name);
        }
    }
    Ok((net, values, meta))
}

/// F32, F16 or BF16 to f32.
fn read_values(view: &TensorView, out: &mut [f32]) {
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).zip(out).for_each(|(b, o)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Dtype::BF16 => {
            data.chunks_exact(2).zip(out).for_each(|(b, o)| *o = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
        }
        _ => data.chunks_exact(2).zip(out).for_each(|(b, o)| *o = half_to_f32(u16::from_le_bytes([b[0], b[1]]))),
    }
}

/// IEEE half to single precision.
fn half_to_f32(bits: u16) -> f32 {
    let sign = if bits & 0x8000 != 0 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1F), f32::from(bits & 0x3FF));
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (tempfile::TempDir, std::path::PathBuf, Network, Vec<f32>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let net = Network::new("nano", 2).unwrap();
        let values = net.params().start_values(5);
        write_model(&path, &net, &values, Some(7)).unwrap();
        (dir, path, net, values)
    }

    #[test]
    fn a_model_survives_the_round_trip_and_repeats_its_bytes() {
        let (_dir, path, net, values) = sample();
        let (read_net, read_values, meta) = read_model(&path, &ModelHints::default()).unwrap();
        assert_eq!((&read_net, &read_values), (&net, &values));
        assert_eq!(meta.unwrap().iteration, Some(7));
        let first = std::fs::read(&path).unwrap();
        write_model(&path, &net, &values, Some(7)).unwrap();
        assert_eq!(first, std::fs::read(&path).unwrap());
    }

    #[test]
    fn rejects_a_truncated_file_another_scale_and_missing_metadata() {
        let (dir, path, net, values) = sample();
        let bytes = std::fs::read(&path).unwrap();
        for len in [0, 7, 100, bytes.len() - 1] {
            assert!(read_model_bytes(&bytes[..len], &ModelHints::default()).is_err(), "{len} bytes were accepted");
        }
        let other = ModelHints { scale: Some(4), ..ModelHints::default() };
        let error = format!("{:#}", read_model(&path, &other).unwrap_err());
        assert!(error.contains("up.0.weight") && error.contains("m.safetensors"), "{error}");

        let plain = dir.path().join("plain.safetensors");
        let table = net.params();
        let views = table.params.iter().map(|p| {
            let bytes = bytemuck::cast_slice(&values[p.range.offset..][..p.range.len]);
            (format!("params_ema.{}", p.name), TensorView::new(Dtype::F32, p.shape.clone(), bytes).unwrap())
        });
        std::fs::write(&plain, safetensors::serialize(views, None).unwrap()).unwrap();
        let error = format!("{:#}", read_model(&plain, &ModelHints::default()).unwrap_err());
        assert!(error.contains("--alpha"), "{error}");
        let hints = ModelHints { alpha: Some(0.3), ..ModelHints::default() };
        assert_eq!(read_model(&plain, &hints).unwrap().1, values);
    }

    #[test]
    fn training_starts_from_what_fits() {
        let (dir, path, net, values) = sample();
        let fresh = net.params().start_values(9);
        let all = read_pretrained(&path, &net, fresh.clone(), true).unwrap();
        assert!(all.values == values && all.mismatches.is_empty());
        // of another scale the pixel shuffle's convolution does not fit, and everything else does
        let other = Network::new("nano", 4).unwrap();
        let error = format!("{:#}", read_pretrained(&path, &other, other.params().start_values(9), true).unwrap_err());
        assert!(error.contains("up.0.weight") && error.contains("--lenient") && error.contains("m.safetensors"), "{error}");
        let part = read_pretrained(&path, &other, other.params().start_values(9), false).unwrap();
        assert!(part.mismatches.len() == 2 && part.mismatches.iter().all(|m| m.contains("up.0")), "{:?}", part.mismatches);
        let at = |net: &Network, name: &str| net.params().get(name).unwrap().range;
        let (here, there) = (at(&net, "conv_in.weight"), at(&other, "conv_in.weight"));
        assert_eq!(part.values[there.offset..][..there.len], values[here.offset..][..here.len]);
        // a file that holds the network twice: the average counts
        let table = net.params();
        let views = ["params", "params_ema"].into_iter().flat_map(|prefix| {
            let values = if prefix == "params" { &fresh } else { &values };
            table.params.iter().map(move |p| {
                let bytes = bytemuck::cast_slice(&values[p.range.offset..][..p.range.len]);
                (format!("{prefix}.module.{}", p.name), TensorView::new(Dtype::F32, p.shape.clone(), bytes).unwrap())
            })
        });
        let twice = dir.path().join("twice.safetensors");
        std::fs::write(&twice, safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()).unwrap();
        assert_eq!(read_pretrained(&twice, &net, fresh.clone(), true).unwrap().values, values);
        let foreign = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        std::fs::write(&twice, safetensors::serialize([("x", foreign)], None).unwrap()).unwrap();
        assert!(format!("{:#}", read_pretrained(&twice, &net, fresh, false).unwrap_err()).contains("none of its tensors"));
    }

    #[test]
    fn half_precision_values_are_exact() {
        for (bits, value) in [(0x3C00, 1.0), (0xC000, -2.0), (0x3555, 0.333_251_95), (0x0001, 5.960_464_5e-8), (0x7BFF, 65504.0)] {
            assert_eq!(half_to_f32(bits), value);
        }
    }
}
