//! Writing a network file. Depends on the parameter table and on atomic files. Promises the same
//! bytes for the same network.

use super::METADATA_KEY;
use crate::model::{Error, InFile, Network, Settings};
use crate::plan::Precision;
use crate::support::files;
use anyhow::{Result, ensure};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// The metadata of a network file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelMeta {
    /// Canonical name of the network, e.g. `paragonsr2_realtime`.
    pub arch: String,
    /// HR pixels per LQ pixel along one side.
    pub scale: usize,
    /// The settings that no tensor shows.
    #[serde(flatten)]
    pub settings: Settings,
    /// Iterations trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iteration: Option<u64>,
}

/// Writes a network's parameters (`values`, in table order) as f32 tensors. The file appears
/// complete or not at all; an older file of that name stays as it is until then.
///
/// # Errors
/// When the file cannot be written ([`std::io::Error`] in the chain), when [`Network::check`]
/// refuses the network, or when the number of values is not the network's
/// ([`Error::ParameterCount`]).
pub fn write_model(
    path: &Path,
    net: &Network,
    values: &[f32],
    iteration: Option<u64>,
) -> Result<()> {
    let bytes = model_bytes(net, values, iteration, Precision::F32)?;
    files::write_atomic(path, |out| Ok(out.write_all(&bytes)?))
}

/// The bytes of a network file whose tensors are of type `precision`.
///
/// # Errors
/// As [`write_model`], but for the system.
pub(crate) fn model_bytes(
    net: &Network,
    values: &[f32],
    iteration: Option<u64>,
    precision: Precision,
) -> Result<Vec<u8>> {
    net.check()?;
    let table = net.params();
    let (given, expected) = (values.len(), table.len());
    ensure!(given == expected, Error::ParameterCount { given, expected });
    let meta = ModelMeta {
        arch: net.arch.clone(),
        scale: net.scale,
        settings: net
            .settings()
            .filter(|(spec, _)| spec.in_file == InFile::Metadata)
            .map(|(spec, value)| (spec.name.to_string(), value.clone()))
            .collect(),
        iteration,
    };
    let metadata = HashMap::from([(METADATA_KEY.to_string(), serde_json::to_string(&meta)?)]);
    let mut values = values.to_vec();
    net.derive(&table, &mut values);
    let halves: Vec<u16>;
    let (kind, data): (Dtype, &[u8]) = match precision {
        Precision::F32 => (Dtype::F32, bytemuck::cast_slice(&values)),
        Precision::Fp16 | Precision::Bf16 => {
            halves = values.iter().map(|&v| precision.narrow(v)).collect();
            let kind = if precision == Precision::Fp16 {
                Dtype::F16
            } else {
                Dtype::BF16
            };
            (kind, bytemuck::cast_slice(&halves))
        }
    };
    let each = precision.bytes() as usize;
    let views: Vec<(String, TensorView)> = table
        .params
        .iter()
        .map(|p| {
            let bytes = &data[p.range.offset * each..][..p.range.len * each];
            let view = TensorView::new(kind, p.shape.clone(), bytes)?;
            Ok((p.name.clone(), view))
        })
        .collect::<Result<_>>()?;
    Ok(safetensors::serialize(views, Some(metadata))?)
}
