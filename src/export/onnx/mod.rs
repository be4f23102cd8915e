//! ONNX files of networks, written without another program. The graph is lowered from the plan of
//! inference, operation by operation, so that a network exports as soon as its operations do; the
//! bytes are run by an interpreter and compared with this program's own result. Depends on the
//! plan, the networks and the CPU backend. Promises that no side of an image is fixed in a file.

mod attention;
mod check;
mod convolution;
mod emitter;
mod format;
mod image;
mod interpret;
mod layout;
mod lower;
mod operators;
mod proto;

pub(super) use check::own_difference;
pub use check::{Checked, check, least_psnr, own_result, run_file};

use crate::backend::cpu::CpuOptions;
use crate::model::{InFile, InferenceSpec, Network, inference_plan};
use crate::plan::Precision;
use anyhow::{Result, ensure};
use emitter::Emitter;
use format::DataType;

/// Version of the operators in f32 and fp16 files: the first one whose means take their axes as an
/// input, as all later ones do.
const OPSET: i64 = 18;
/// In bf16 files: the first version that has convolutions of bf16.
const OPSET_BF16: i64 = 22;

/// The version of ONNX's operators in files of a precision.
pub fn opset(precision: Precision) -> i64 {
    match precision {
        Precision::Bf16 => OPSET_BF16,
        Precision::F32 | Precision::Fp16 => OPSET,
    }
}

/// The bytes of a network's ONNX file: input `input` `[batch, 3, height, width]`, RGB in [0, 1];
/// output `output` `[batch, 3, scale height, scale width]`, not clamped. `parameters` are in table
/// order; `about` are more keys and values for the file's metadata.
///
/// # Errors
/// A network with an operation that has no counterpart in ONNX; the wrong number of parameters.
pub fn onnx_bytes(
    net: &Network,
    parameters: &[f32],
    precision: Precision,
    about: &[(String, String)],
) -> Result<Vec<u8>> {
    let (given, expected) = (parameters.len(), net.params().len());
    ensure!(
        given == expected,
        crate::model::Error::ParameterCount { given, expected }
    );
    // With one image of one pixel, sides that are filled up to a multiple show that multiple.
    let spec = InferenceSpec {
        batch: 1,
        lq: (1, 1),
        float_input: true,
    };
    let plan = inference_plan(net, &spec, &CpuOptions::new(1))?;
    let mut e = Emitter::new(&plan, net, parameters, DataType::from(precision));
    for op in &plan.ops {
        lower::lower(&mut e, op)?;
    }
    let output = plan.ports.output.ok_or_else(|| {
        crate::plan::Error::Invalid("the plan of inference has no output".to_string())
    })?;
    let result = e.read(output)?;
    let mut model = e.finish(&result, net, opset(precision));
    model.metadata = metadata(net, precision);
    model.metadata.extend(about.iter().cloned());
    Ok(model.encode())
}

/// What a file says about its network: name, scale, settings that decide the result, precision,
/// version.
fn metadata(net: &Network, precision: Precision) -> Vec<(String, String)> {
    let mut list = vec![
        ("network".to_string(), net.arch.clone()),
        ("scale".to_string(), net.scale.to_string()),
        ("precision".to_string(), precision.to_string()),
        (
            "paragon_version".to_string(),
            env!("CARGO_PKG_VERSION").to_string(),
        ),
    ];
    let settings = net.settings();
    list.extend(
        settings
            .filter(|(spec, _)| spec.in_file != InFile::StartValue)
            .map(|(spec, value)| (spec.name.to_string(), value.to_string())),
    );
    list
}

/// The operators in a file, sorted, each once.
///
/// # Errors
/// Bytes that are no ONNX file of this program.
pub fn operators_in(bytes: &[u8]) -> Result<Vec<String>> {
    let model = format::Model::decode(bytes)?;
    let mut list: Vec<String> = model.nodes.into_iter().map(|node| node.operator).collect();
    list.sort();
    list.dedup();
    Ok(list)
}
