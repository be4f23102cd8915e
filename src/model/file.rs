//! Network files: safetensors with PyTorch's `state_dict` names and shapes, so that they load there
//! with `strict=True`, and what cannot be read off the tensors (variant, scale, alpha) as one JSON
//! string in the metadata. Depends on the networks' tables and on files. Promises that a file is
//! read in one way only: what could be meant in two ways is refused with both.

use crate::model::{Network, Param};
use crate::plan::Precision;
use crate::support::failure::retry;
use crate::support::file_kind::{HEAD_BYTES, Remedy, look};
use crate::support::files;
use crate::support::text::brief;
use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Key of the metadata entry; its value is JSON. One entry only, since more would come out in a
/// different order every time.
const METADATA_KEY: &str = "paragon";

/// The metadata key of a training state, by which a state given as a network is recognised.
pub(crate) const STATE_METADATA_KEY: &str = "paragon_state";

/// The largest network of the family has a few tens of MiB; something larger is another file.
const MAX_MODEL_BYTES: u64 = 1 << 30;
/// Bytes of a header (names, shapes, metadata) at most: that of a network of the family has some
/// tens of KiB, and reading one takes several times its length in memory.
const MAX_HEADER_BYTES: u64 = 4 << 20;
/// Tensors at most: the largest network of the family has under a thousand.
const MAX_TENSORS: usize = 20_000;
/// How a PyTorch file becomes a safetensors file; docs/training.md says the same.
const CONVERT: &str = "import torch, safetensors.torch as s; n = torch.load('net.pth', map_location='cpu', weights_only=True); \
                       n = n.get('params_ema', n.get('params', n)); \
                       s.save_file({k: v.clone() for k, v in n.items()}, 'net.safetensors')";

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
pub fn write_model(
    path: &Path,
    net: &Network,
    values: &[f32],
    iteration: Option<u64>,
) -> Result<()> {
    let table = net.params();
    ensure!(
        values.len() == table.len(),
        "{} values for a network of {}",
        values.len(),
        table.len()
    );
    let meta = ModelMeta {
        arch: net.arch.clone(),
        scale: net.scale,
        upsampler_alpha: net.upsampler_alpha,
        iteration,
    };
    let metadata = HashMap::from([(METADATA_KEY.to_string(), serde_json::to_string(&meta)?)]);
    let views: Vec<(String, TensorView)> = table
        .params
        .iter()
        .map(|p| {
            let bytes = bytemuck::cast_slice(&values[p.range.offset..][..p.range.len]);
            Ok((
                p.name.clone(),
                TensorView::new(Dtype::F32, p.shape.clone(), bytes)?,
            ))
        })
        .collect::<Result<_>>()?;
    let bytes = safetensors::serialize(views, Some(metadata))?;
    files::write_atomic(path, |out| Ok(out.write_all(&bytes)?))
}

/// Reads a network file: the network and its parameters in table order.
///
/// # Errors
/// When the file is damaged, of another variant, or lacks metadata that no hint gives; the message
/// lists what does not match.
pub fn read_model(
    path: &Path,
    hints: &ModelHints,
) -> Result<(Network, Vec<f32>, Option<ModelMeta>)> {
    let bytes = read_bytes(path)?;
    read_model_bytes(&bytes, hints)
        .with_context(|| format!("cannot use {} as a model", path.display()))
}

/// Parts of a key that frameworks put anywhere into it, where they wrap a module: torch.compile,
/// DataParallel, FSDP, checkpointing.
const WRAPPERS: [&str; 5] = [
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
];

/// Beginnings of keys under which trainers keep a whole network.
const CONTAINERS: [&str; 18] = [
    "params",
    "params_ema",
    "state_dict",
    "model_state_dict",
    "weights",
    "model",
    "model_ema",
    "ema",
    "ema_model",
    "net",
    "network",
    "net_g",
    "net_g_ema",
    "network_g",
    "netG",
    "generator",
    "generator_ema",
    "g_ema",
];

/// A key without what frameworks put around it, and whether it belongs to an average.
fn plain_name(name: &str) -> (String, bool) {
    let parts: Vec<&str> = name
        .split('.')
        .filter(|part| !WRAPPERS.contains(part))
        .collect();
    let outer = parts
        .iter()
        .take_while(|part| CONTAINERS.contains(part))
        .count()
        .min(parts.len().saturating_sub(1));
    let averaged = parts[..outer].iter().any(|part| part.contains("ema"));
    (parts[outer..].join("."), averaged)
}

/// The tensors of a file by their plain names. Where it holds a network and its average, the
/// average is taken, and nothing but it.
///
/// # Errors
/// When a name stands for two tensors; both are named.
fn tensors_of<'a>(file: &SafeTensors<'a>) -> Result<BTreeMap<String, TensorView<'a>>> {
    // sorted, since the crate's order changes from run to run
    let all: BTreeMap<String, TensorView> = file.tensors().into_iter().collect();
    let mut groups: [BTreeMap<String, (String, TensorView)>; 2] = Default::default();
    for (name, view) in all {
        let (plain, averaged) = plain_name(&name);
        // the counter of torch.optim.swa_utils.AveragedModel
        if plain == "n_averaged" {
            continue;
        }
        let group = &mut groups[usize::from(averaged)];
        if let Some((other, _)) = group.get(&plain) {
            let (plain, other, name) = (brief(plain), brief(other), brief(name));
            bail!(
                "it holds {plain} twice, as {other} and as {name}, and does not say which counts; write a file with one of them"
            );
        }
        group.insert(plain, (name, view));
    }
    let [mut raw, averaged] = groups;
    if averaged.keys().any(|name| raw.contains_key(name)) {
        raw.clear();
    }
    raw.extend(averaged);
    Ok(raw
        .into_iter()
        .map(|(plain, (_, view))| (plain, view))
        .collect())
}

/// The header of a whole safetensors file of a network.
///
/// # Errors
/// When it is no such file, too large to be one, or the state of a training.
fn header_of(bytes: &[u8]) -> Result<Metadata> {
    check_start(&bytes[..bytes.len().min(HEAD_BYTES)], bytes.len() as u64)?;
    let read = SafeTensors::read_metadata(bytes);
    // the crate's text may hold a name of any length
    let (_, header) =
        read.map_err(|error| anyhow!("it is not a whole safetensors file: {}", brief(error)))?;
    let count = header.offset_keys().len();
    ensure!(
        count <= MAX_TENSORS,
        "it holds {count} tensors, and a network has at most {MAX_TENSORS}"
    );
    if header
        .metadata()
        .as_ref()
        .is_some_and(|m| m.contains_key(STATE_METADATA_KEY))
    {
        bail!(
            "it is the state of a training (a folder `states`); give a network of the same run: model.safetensors or one of `models`"
        );
    }
    Ok(header)
}

fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>> {
    SafeTensors::deserialize(bytes)
        .map_err(|error| anyhow!("it is not a whole safetensors file: {}", brief(error)))
}

/// Refuses a file by its first bytes and its length, before it is read: other formats by their
/// name, headers that are too large.
fn check_start(head: &[u8], length: u64) -> Result<()> {
    let header = head
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let fits = header.checked_add(8).is_some_and(|end| end <= length);
    if head.get(8) != Some(&b'{') || !fits {
        if let Some(found) = look(head) {
            let remedy = match found.remedy {
                Remedy::Convert => format!(
                    "PyTorch's files are pickles, which can run code; convert it once: python -c \"{CONVERT}\" (docs/training.md, \
                     \"Starting from another network\")"
                ),
                Remedy::Fetch => {
                    "it is not the network itself; fetch it again (with Git LFS: `git lfs pull`)"
                        .into()
                }
                Remedy::Unpack => "unpack it first".into(),
                Remedy::Another => "a network is read from safetensors alone".into(),
            };
            bail!("it is {}, not a safetensors file; {remedy}", found.what);
        }
        ensure!(
            head.get(8) != Some(&b'{'),
            "it is not a whole safetensors file: its header has {header} bytes and the file {length}; copy or fetch it again"
        );
        bail!("it is not a safetensors file, and nothing else that is known");
    }
    ensure!(
        header <= MAX_HEADER_BYTES,
        "its header has {header} bytes, and that of a network has at most {MAX_HEADER_BYTES}: expected a safetensors file of a ParagonSR2 network"
    );
    ensure!(
        length <= MAX_MODEL_BYTES,
        "it has {} MiB: expected a safetensors file of at most {} MiB",
        length >> 20,
        MAX_MODEL_BYTES >> 20
    );
    Ok(())
}

/// What does not fit between a file and a network: a line for each parameter that is missing, has
/// another shape or type, or is not part of the network; sorted.
fn mismatches(tensors: &BTreeMap<String, TensorView>, net: &Network) -> Vec<String> {
    let table = net.params();
    let mut wrong: Vec<String> = table
        .params
        .iter()
        .filter_map(|p| misfit(tensors, p))
        .collect();
    let unknown = tensors.keys().filter(|name| table.get(name).is_none());
    wrong.extend(
        unknown.map(|name| format!("{} is not part of {} x{}", brief(name), net.arch, net.scale)),
    );
    wrong.sort();
    wrong
}

/// A shape without the sides of 1, which do not change what lies where: PyTorch takes a scalar of
/// shape [1] too.
fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|side| *side != 1).collect()
}

fn misfit(tensors: &BTreeMap<String, TensorView>, p: &Param) -> Option<String> {
    match tensors.get(&p.name) {
        None => Some(format!("{} is missing", p.name)),
        Some(t) if squeezed(t.shape()) != squeezed(&p.shape) => Some(format!(
            "{} has shape {}, expected {:?}",
            p.name,
            brief(format!("{:?}", t.shape())),
            p.shape
        )),
        Some(t) if !matches!(t.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
            Some(format!("{} has type {:?}", p.name, t.dtype()))
        }
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

/// Start values of a network from a file of ours or of PyTorch's (what trainers put around the
/// keys, as `params_ema.module.`, is understood): all of them, or (not `strict`) those that fit,
/// the others from `start`. The network's own alpha stays.
///
/// # Errors
/// A file that cannot be read; when strict, tensors that do not fit; when not, a file of which
/// nothing fits; values not finite.
pub fn read_pretrained(
    path: &Path,
    net: &Network,
    mut start: Vec<f32>,
    strict: bool,
) -> Result<Pretrained> {
    let bytes = read_bytes(path)?;
    let mut read = || -> Result<(usize, Vec<String>)> {
        header_of(&bytes)?;
        let file = parse(&bytes)?;
        let tensors = tensors_of(&file)?;
        let wrong = mismatches(&tensors, net);
        if strict && !wrong.is_empty() {
            bail!(
                "its tensors are not those of {} x{}: {} (--lenient takes what fits)",
                net.arch,
                net.scale,
                shorten(&wrong)
            );
        }
        let mut taken = 0;
        for p in net
            .params()
            .params
            .iter()
            .filter(|p| p.trainable && misfit(&tensors, p).is_none())
        {
            let out = &mut start[p.range.offset..][..p.range.len];
            read_values(&tensors[&p.name], out);
            ensure!(
                out.iter().all(|v| v.is_finite()),
                "{} holds values that are not finite",
                p.name
            );
            taken += 1;
        }
        ensure!(
            taken > 0,
            "none of its tensors is one of {} x{}: {}",
            net.arch,
            net.scale,
            shorten(&wrong)
        );
        Ok((taken, wrong))
    };
    let (taken, mismatches) =
        read().with_context(|| format!("cannot start from {}", path.display()))?;
    Ok(Pretrained {
        values: start,
        taken,
        mismatches,
    })
}

fn shorten(wrong: &[String]) -> String {
    let more = wrong.len().saturating_sub(5);
    let shown = wrong[..wrong.len() - more].join("; ");
    if more > 0 {
        format!("{shown}; and {more} more")
    } else {
        shown
    }
}

/// The bytes of a file that may be a network: not those of a folder or pipe, of another format, or
/// of something far too large.
fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read the model {}", path.display());
    let about = retry(|| std::fs::metadata(path)).with_context(cannot)?;
    let refused = || format!("cannot use {} as a model", path.display());
    if !about.is_file() {
        let found = if about.is_dir() {
            "a folder; give the file in it, as model.safetensors"
        } else {
            "no regular file"
        };
        return Err(anyhow!("it is {found}")).with_context(refused);
    }
    let mut head = Vec::with_capacity(HEAD_BYTES);
    retry(|| {
        head.clear();
        File::open(path)?
            .take(HEAD_BYTES as u64)
            .read_to_end(&mut head)
    })
    .with_context(cannot)?;
    check_start(&head, about.len()).with_context(refused)?;
    retry(|| std::fs::read(path)).with_context(cannot)
}

fn read_model_bytes(
    bytes: &[u8],
    hints: &ModelHints,
) -> Result<(Network, Vec<f32>, Option<ModelMeta>)> {
    let header = header_of(bytes)?;
    let meta: Option<ModelMeta> = match header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY))
    {
        Some(text) => Some(
            serde_json::from_str(text)
                .map_err(|error| anyhow!("its metadata is not ours: {}", brief(error)))?,
        ),
        None => None,
    };
    let file = parse(bytes)?;
    let tensors = tensors_of(&file)?;
    let shape_of = |name: &str| tensors.get(name).map(|t| squeezed(t.shape()));

    let arch = hints
        .arch
        .clone()
        .or_else(|| meta.as_ref().map(|m| m.arch.clone()))
        .unwrap_or_else(|| "paragonsr2_realtime".into());
    // the pixel shuffle's convolution tells the scale: [F * s * s, F, 3, 3]
    let from_shape = shape_of("up.0.weight").and_then(|s| {
        let (out, features) = (*s.first()?, *s.get(1)?);
        let scale = (out.checked_div(features)? as f64).sqrt() as usize;
        (scale * scale * features == out).then_some(scale)
    });
    let Some(scale) = hints
        .scale
        .or(meta.as_ref().map(|m| m.scale))
        .or(from_shape)
    else {
        bail!(
            "it does not say its scale and its tensors do not either; give --scale (and check that it is a ParagonSR2 network)"
        );
    };
    let mut net = Network::new(&arch, scale)?;
    let table = net.params();
    let wrong = mismatches(&tensors, &net);
    if !wrong.is_empty() {
        bail!(
            "its tensors are not those of {} x{scale}: {}",
            net.arch,
            shorten(&wrong)
        );
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
            let same = out
                .iter()
                .zip(taps.iter().cycle())
                .all(|(&a, &b)| (a - b).abs() < 1e-6);
            ensure!(
                same,
                "its fixed taps {} are not those of Magic Kernel Sharp 2021, which is the only base there is",
                p.name
            );
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
        Dtype::F32 => data
            .chunks_exact(4)
            .zip(out)
            .for_each(|(b, o)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Dtype::BF16 => data
            .chunks_exact(2)
            .zip(out)
            .for_each(|(b, o)| *o = Precision::Bf16.widen(u16::from_le_bytes([b[0], b[1]]))),
        _ => data
            .chunks_exact(2)
            .zip(out)
            .for_each(|(b, o)| *o = Precision::Fp16.widen(u16::from_le_bytes([b[0], b[1]]))),
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
            assert!(
                read_model_bytes(&bytes[..len], &ModelHints::default()).is_err(),
                "{len} bytes were accepted"
            );
        }
        let other = ModelHints {
            scale: Some(4),
            ..ModelHints::default()
        };
        let error = format!("{:#}", read_model(&path, &other).unwrap_err());
        assert!(
            error.contains("up.0.weight") && error.contains("m.safetensors"),
            "{error}"
        );

        let plain = dir.path().join("plain.safetensors");
        let table = net.params();
        let views = table.params.iter().map(|p| {
            let bytes = bytemuck::cast_slice(&values[p.range.offset..][..p.range.len]);
            (
                format!("params_ema.{}", p.name),
                TensorView::new(Dtype::F32, p.shape.clone(), bytes).unwrap(),
            )
        });
        std::fs::write(&plain, safetensors::serialize(views, None).unwrap()).unwrap();
        let error = format!(
            "{:#}",
            read_model(&plain, &ModelHints::default()).unwrap_err()
        );
        assert!(error.contains("--alpha"), "{error}");
        let hints = ModelHints {
            alpha: Some(0.3),
            ..ModelHints::default()
        };
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
        let error = format!(
            "{:#}",
            read_pretrained(&path, &other, other.params().start_values(9), true).unwrap_err()
        );
        assert!(
            error.contains("up.0.weight")
                && error.contains("--lenient")
                && error.contains("m.safetensors"),
            "{error}"
        );
        let part = read_pretrained(&path, &other, other.params().start_values(9), false).unwrap();
        assert!(
            part.mismatches.len() == 2 && part.mismatches.iter().all(|m| m.contains("up.0")),
            "{:?}",
            part.mismatches
        );
        let at = |net: &Network, name: &str| net.params().get(name).unwrap().range;
        let (here, there) = (at(&net, "conv_in.weight"), at(&other, "conv_in.weight"));
        assert_eq!(
            part.values[there.offset..][..there.len],
            values[here.offset..][..here.len]
        );
        // a file that holds the network twice: the average counts
        let table = net.params();
        let views = ["params", "params_ema"].into_iter().flat_map(|prefix| {
            let values = if prefix == "params" { &fresh } else { &values };
            table.params.iter().map(move |p| {
                let bytes = bytemuck::cast_slice(&values[p.range.offset..][..p.range.len]);
                (
                    format!("{prefix}.module.{}", p.name),
                    TensorView::new(Dtype::F32, p.shape.clone(), bytes).unwrap(),
                )
            })
        });
        let twice = dir.path().join("twice.safetensors");
        std::fs::write(
            &twice,
            safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap(),
        )
        .unwrap();
        assert_eq!(
            read_pretrained(&twice, &net, fresh.clone(), true)
                .unwrap()
                .values,
            values
        );
        let foreign = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        std::fs::write(
            &twice,
            safetensors::serialize([("x", foreign)], None).unwrap(),
        )
        .unwrap();
        assert!(
            format!(
                "{:#}",
                read_pretrained(&twice, &net, fresh, false).unwrap_err()
            )
            .contains("none of its tensors")
        );
    }

    /// A file of these tensors of one value each.
    fn file_of(path: &Path, list: &[(String, Vec<usize>, f32)]) {
        let bytes: Vec<Vec<u8>> = list
            .iter()
            .map(|(_, shape, v)| v.to_le_bytes().repeat(shape.iter().product()))
            .collect();
        let views = list.iter().zip(&bytes).map(|((name, shape, _), b)| {
            (name, TensorView::new(Dtype::F32, shape.clone(), b).unwrap())
        });
        std::fs::write(
            path,
            safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap(),
        )
        .unwrap();
    }

    /// A whole Nano x2 of one value, its names changed.
    fn named(name: impl Fn(&str) -> String, value: f32) -> Vec<(String, Vec<usize>, f32)> {
        let table = Network::new("nano", 2).unwrap().params();
        table
            .params
            .iter()
            .filter(|p| p.trainable)
            .map(|p| (name(&p.name), p.shape.clone(), value))
            .collect()
    }

    /// The value of every parameter that training starts from, or the error.
    fn started(path: &Path) -> Result<f32, String> {
        let net = Network::new("nano", 2).unwrap();
        let table = net.params();
        let read = read_pretrained(path, &net, vec![0.0; table.len()], false)
            .map_err(|e| format!("{e:#}"))?;
        let values: Vec<f32> = read.values[..table.trainable()].to_vec();
        assert_eq!(
            read.taken,
            table.params.iter().filter(|p| p.trainable).count(),
            "{:?}",
            read.mismatches
        );
        assert!(
            values.iter().all(|v| *v == values[0]),
            "a mixture of two networks"
        );
        Ok(values[0])
    }

    #[test]
    fn keys_of_wrapped_networks_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.safetensors");
        for prefix in [
            "_orig_mod.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "params.module.",
            "params_ema._orig_mod.module.",
            "net_g.",
            "state_dict.generator.",
            "model_state_dict.netG.module.",
            "_forward_module.model.",
        ] {
            file_of(&path, &named(|n| format!("{prefix}{n}"), 0.25));
            assert_eq!(started(&path), Ok(0.25), "{prefix}");
        }
        // where parts of a network were wrapped by themselves
        file_of(
            &path,
            &named(
                |n| {
                    n.replace(
                        "body.0.blocks.",
                        "body._orig_mod.0._fsdp_wrapped_module.blocks.",
                    )
                },
                0.25,
            ),
        );
        assert_eq!(started(&path), Ok(0.25));
        // and the counter of an average
        let mut list = named(|n| format!("module.{n}"), 0.25);
        list.push(("n_averaged".into(), vec![], 7.0));
        file_of(&path, &list);
        assert_eq!(started(&path), Ok(0.25));
    }

    #[test]
    fn a_name_that_stands_for_two_tensors_is_refused_with_both() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.safetensors");
        let twice = |a: &str, b: &str| {
            let list = [
                named(|n| format!("{a}{n}"), 0.25),
                named(|n| format!("{b}{n}"), 0.5),
            ]
            .concat();
            file_of(&path, &list);
            started(&path)
        };
        for (a, b) in [
            ("", "module."),
            ("params.", "_orig_mod."),
            ("params_ema.", "net_g_ema."),
            ("net_g.", "generator."),
        ] {
            let error = twice(a, b).unwrap_err();
            assert!(
                error.contains(&format!("{a}body.0"))
                    && error.contains(&format!("{b}body.0"))
                    && error.contains("twice"),
                "{error}"
            );
        }
        // an average wins, and never lends single tensors
        assert_eq!(twice("params.", "params_ema."), Ok(0.5));
        assert_eq!(twice("g_ema.", ""), Ok(0.25));
        let mut list = named(|n| format!("params.{n}"), 0.25);
        list.push(("params_ema.conv_in.bias".into(), vec![16], 0.5));
        file_of(&path, &list);
        let net = Network::new("nano", 2).unwrap();
        let part = read_pretrained(&path, &net, vec![0.0; net.params().len()], false).unwrap();
        assert_eq!(part.taken, 1);
        assert!(
            format!(
                "{:#}",
                read_pretrained(&path, &net, part.values, true).unwrap_err()
            )
            .contains("is missing")
        );
    }

    #[test]
    fn sides_of_one_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.safetensors");
        let mut list = named(str::to_string, 0.25);
        for (name, shape, _) in &mut list {
            match name.as_str() {
                "detail_gain" => *shape = vec![1],
                "body.0.blocks.0.scale.gamma" => *shape = vec![16],
                "body.0.blocks.1.conv1.weight" => *shape = vec![32, 16],
                _ => {}
            }
        }
        file_of(&path, &list);
        assert_eq!(started(&path), Ok(0.25));
        for wrong in [vec![2], vec![0], vec![1, 2]] {
            list.iter_mut()
                .find(|(name, ..)| name == "detail_gain")
                .unwrap()
                .1 = wrong.clone();
            file_of(&path, &list);
            let net = Network::new("nano", 2).unwrap();
            let read = read_pretrained(&path, &net, vec![0.0; net.params().len()], false).unwrap();
            let line = format!("detail_gain has shape {wrong:?}, expected []");
            assert!(read.mismatches.contains(&line), "{:?}", read.mismatches);
        }
    }

    #[test]
    fn other_files_are_named_with_what_helps() {
        let (dir, path, net, values) = sample();
        let other = dir.path().join("other.bin");
        let whole = std::fs::read(&path).unwrap();
        let huge = [&(5u64 << 20).to_le_bytes()[..], b"{", &vec![b' '; 5 << 20]].concat();
        let many: String = (0..30_000)
            .map(|i| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}},"))
            .collect();
        let many = format!("{{{}}}", many.trim_end_matches(','));
        let many = [&(many.len() as u64).to_le_bytes()[..], many.as_bytes()].concat();
        for (content, words) in [
            (
                &b"PK\x03\x04\0\0\0\0\0\0archive/data.pkl"[..],
                &["torch.save", "torch.load", "docs/training.md"][..],
            ),
            (
                b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
                &["pickle", "torch.load", "docs/training.md"],
            ),
            (b"GGUF\x03\0\0\0\0\0", &["GGUF", "safetensors alone"]),
            (b"\x08\x08\x12\x07pytorch\x1a\x05", &["ONNX"]),
            (b"\x89HDF\r\n\x1a\n", &["HDF5"]),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
                &["Git LFS pointer", "git lfs pull"],
            ),
            (b"<!DOCTYPE html>\n<html>", &["web page", "fetch it again"]),
            (b"404: Not Found", &["text file"]),
            (b"\x1f\x8b\x08\0", &["gzip", "unpack"]),
            (b"", &["empty"]),
            (&[0; 64], &["zeros"]),
            (
                b"\x01\x02\x03\x04\x05\x06\x07\x08\x09",
                &["not a safetensors file"],
            ),
            (&whole[..whole.len() - 1], &["not a whole safetensors file"]),
            (&whole[..200], &["not a whole safetensors file", "200"]),
            (&huge, &["header has 5242880 bytes"]),
            (&many, &["30000 tensors"]),
        ] {
            std::fs::write(&other, content).unwrap();
            let fresh = net.params().start_values(1);
            for error in [
                read_model(&other, &ModelHints::default()).unwrap_err(),
                read_pretrained(&other, &net, fresh, false).unwrap_err(),
            ] {
                let error = format!("{error:#}");
                assert!(
                    error.contains("other.bin") && words.iter().all(|word| error.contains(word)),
                    "{words:?}: {error}"
                );
            }
        }
        // a header of 640 bytes begins as a pickle does, and is one of ours
        let mut padded = whole[8..].to_vec();
        let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let wanted = length.next_multiple_of(0x10000) + 0x0280;
        padded.splice(length..length, vec![b' '; wanted - length]);
        std::fs::write(
            &other,
            [&(wanted as u64).to_le_bytes()[..], &padded].concat(),
        )
        .unwrap();
        assert_eq!(
            read_model(&other, &ModelHints::default()).unwrap().1,
            values
        );
        let error = format!(
            "{:#}",
            read_model(dir.path(), &ModelHints::default()).unwrap_err()
        );
        assert!(
            error.contains("a folder") && error.contains("model.safetensors"),
            "{error}"
        );
    }

    #[test]
    fn the_line_that_converts_is_that_of_the_documentation() {
        let page =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/training.md"))
                .unwrap();
        assert!(
            page.contains(CONVERT),
            "docs/training.md does not hold: {CONVERT}"
        );
    }

    #[test]
    fn the_state_of_a_training_is_no_network() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state_1.safetensors");
        let zero = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        let metadata = HashMap::from([(STATE_METADATA_KEY.to_string(), "{}".to_string())]);
        std::fs::write(
            &path,
            safetensors::serialize([("parameters", zero)], Some(metadata)).unwrap(),
        )
        .unwrap();
        let error = format!(
            "{:#}",
            read_model(&path, &ModelHints::default()).unwrap_err()
        );
        assert!(
            error.contains("the state of a training") && error.contains("model.safetensors"),
            "{error}"
        );
    }

    #[test]
    fn half_precision_values_are_exact() {
        for (bits, value) in [
            (0x3C00, 1.0),
            (0xC000, -2.0),
            (0x3555, 0.333_251_95),
            (0x0001, 5.960_464_5e-8),
            (0x7BFF, 65504.0),
        ] {
            assert_eq!(Precision::Fp16.widen(bits), value);
        }
    }
}
