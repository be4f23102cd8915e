//! safetensors for other programs: PyTorch's names without a prefix and no tensor that a `strict`
//! load would refuse, as f32 or half. Depends on network files.

use super::onnx::{Checked, own_difference};
use crate::model::{Network, model_bytes};
use crate::plan::Precision;
use anyhow::{Context, Result, ensure};

/// The bytes of a network's safetensors file with f32 or fp16 tensors, and how its image differs
/// from that of the f32 parameters. The metadata entry keeps what no tensor shows, for paragon.
///
/// # Errors
/// A network that spandrel cannot open from its tensors; a value beyond the range of fp16.
pub fn safetensors_bytes(
    net: &Network,
    parameters: &[f32],
    iteration: Option<u64>,
    half: bool,
) -> Result<(Vec<u8>, Option<Checked>)> {
    ensure!(
        !["relu", "leakyrelu"].contains(&net.choice("act_type")),
        "{} with act_type {} cannot be opened from its tensors: other programs build it with PReLU; \
         export it as ONNX (--onnx)",
        net.arch,
        net.choice("act_type")
    );
    if !half {
        return Ok((
            model_bytes(net, parameters, iteration, Precision::F32)?,
            None,
        ));
    }
    let precision = Precision::Fp16;
    let rounded = parameters
        .iter()
        .map(|&v| precision.widen(precision.narrow(v)));
    let rounded: Vec<f32> = rounded.collect();
    let infinite = rounded.iter().position(|v| !v.is_finite());
    if let Some(at) = infinite {
        let params = net.params().params;
        let of =
            |p: &crate::model::Param| (p.range.offset..p.range.offset + p.range.len).contains(&at);
        let name = params.iter().find(|p| of(p)).map(|p| p.name.clone());
        let name = name.context("no tensor")?;
        anyhow::bail!(
            "the tensor {name} has the value {}, which fp16 cannot hold (largest 65504); export without --half",
            parameters[at]
        );
    }
    let checked = own_difference(net, parameters, &rounded, precision)?;
    let bytes = model_bytes(net, parameters, iteration, precision)?;
    Ok((bytes, Some(checked)))
}
