//! Compares an ONNX file with this program's own result on a small image. Depends on the
//! interpreter and on the CPU backend.

use super::format::Model;
use super::interpret;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{Backend, Scalars, read_floats, write_floats};
use crate::dataset::synth::synthetic_image;
use crate::model::{InferenceSpec, Network, inference_plan};
use crate::plan::Precision;
use anyhow::{Context, Result, ensure};

/// Columns and rows of the image: odd, no multiple of a window, larger than one.
const SIZE: (u32, u32) = (37, 23);

/// The least PSNR in dB that a file of a precision must have.
pub fn least_psnr(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 80.0,
        Precision::Fp16 | Precision::Bf16 => 50.0,
    }
}

/// The result of [`check`].
#[derive(Clone, Copy, Debug)]
pub struct Checked {
    /// PSNR in dB of the file's image against this program's, both clamped to [0, 1].
    pub psnr: f64,
    /// Largest difference before clamping.
    pub largest: f32,
}

/// Runs a file on images `[N, 3, h, w]` by the interpreter: sides and values of its output.
///
/// # Errors
/// A file that the interpreter cannot run.
pub fn run_file(bytes: &[u8], dims: [usize; 4], input: &[f32]) -> Result<(Vec<usize>, Vec<f32>)> {
    interpret::run(&Model::decode(bytes)?, &dims, input)
}

/// From `[N, C, h, w]` to `[N, h, w, C]`, or back with `pixels` and `channels` swapped.
fn reordered(values: &[f32], channels: usize, pixels: usize) -> Vec<f32> {
    let images = values.chunks_exact(channels * pixels);
    images
        .flat_map(|image| {
            (0..channels * pixels).map(move |i| image[i % channels * pixels + i / channels])
        })
        .collect()
}

/// This program's result for images `[N, 3, h, w]`, in the same order.
///
/// # Errors
/// Images that no plan can be made for.
pub fn own_result(
    net: &Network,
    parameters: &[f32],
    [n, c, h, w]: [usize; 4],
    input: &[f32],
) -> Result<Vec<f32>> {
    let spec = InferenceSpec {
        batch: n,
        lq: (h, w),
        float_input: true,
    };
    let options = CpuOptions::new(0);
    let mut backend = CpuBackend::new(inference_plan(net, &spec, &options)?, options)?;
    let ports = backend.plan().ports;
    let port = |port: Option<_>| port.context("the plan of inference lacks a buffer");
    write_floats(&mut backend, port(ports.parameters)?, parameters)?;
    let pixels = reordered(input, c, h * w);
    write_floats(&mut backend, port(ports.input)?, &pixels)?;
    backend.micro_step(&Scalars {
        lr: 0.0,
        step: 1,
        clip: f64::INFINITY,
        ema_decay: 0.0,
        micro_scale: 1.0,
        loss_scale: 1.0,
        accumulate: false,
    })?;
    let large = h * w * net.scale * net.scale;
    let mut output = vec![0.0; n * large * 3];
    read_floats(&mut backend, port(ports.output)?, &mut output)?;
    Ok(reordered(&output, large, 3))
}

/// The test image `[1, 3, h, w]`, and its sides.
fn test_image() -> ([usize; 4], Vec<f32>) {
    let (w, h) = SIZE;
    let image = synthetic_image(1, 0, w, h);
    let pixels: Vec<f32> = image
        .as_raw()
        .iter()
        .map(|&b| f32::from(b) / 255.0)
        .collect();
    let (w, h) = (w as usize, h as usize);
    ([1, 3, h, w], reordered(&pixels, w * h, 3))
}

/// Compares a file with this program's result on an image of [`synthetic_image`].
///
/// # Errors
/// A file that cannot be run, or whose PSNR is below [`least_psnr`].
pub fn check(
    bytes: &[u8],
    net: &Network,
    parameters: &[f32],
    precision: Precision,
) -> Result<Checked> {
    let (dims, input) = test_image();
    let (_, found) = run_file(bytes, dims, &input)?;
    let expected = own_result(net, parameters, dims, &input)?;
    ensure!(
        found.len() == expected.len(),
        "the file gives {} values for an image of {dims:?}, expected {}",
        found.len(),
        expected.len()
    );
    judge(compare(&found, &expected), precision)
}

/// Compares the results of this program with two lists of parameters, `rounded` to `precision`.
///
/// # Errors
/// A PSNR below [`least_psnr`].
pub(in crate::export) fn own_difference(
    net: &Network,
    parameters: &[f32],
    rounded: &[f32],
    precision: Precision,
) -> Result<Checked> {
    let (dims, input) = test_image();
    let [expected, found] =
        [parameters, rounded].map(|values| own_result(net, values, dims, &input));
    judge(compare(&found?, &expected?), precision)
}

/// Refuses a PSNR that is too low.
fn judge(checked: Checked, precision: Precision) -> Result<Checked> {
    let least = least_psnr(precision);
    ensure!(
        checked.psnr >= least,
        "the {precision} file differs from this program's own result: {:.1} dB on a test image, at \
         least {least} dB were expected; the network's values do not fit the range or the digits of \
         {precision}, so export it in another precision (--precision f32)",
        checked.psnr
    );
    Ok(checked)
}

/// PSNR and largest difference; a value that is no number counts as a difference without bound.
fn compare(found: &[f32], expected: &[f32]) -> Checked {
    let pairs = found.iter().zip(expected);
    let square = |(a, b): (&f32, &f32)| {
        let difference = f64::from(a.clamp(0.0, 1.0)) - f64::from(b.clamp(0.0, 1.0));
        difference * difference
    };
    let mean = pairs.clone().map(square).sum::<f64>() / expected.len().max(1) as f64;
    let psnr = if mean.is_nan() {
        f64::NEG_INFINITY
    } else {
        -10.0 * mean.max(1e-20).log10()
    };
    let largest = pairs.map(|(a, b)| (a - b).abs());
    let largest = largest.fold(0.0, |most: f32, d| if d <= most { most } else { d });
    Checked { psnr, largest }
}
