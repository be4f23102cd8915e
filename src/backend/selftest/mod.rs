//! Compares a device with the CPU: every operation of a training step of each network on the same
//! inputs, and a short training of Nano, for every type of activations that the device has. Images are compared as a
//! whole and also row by row, column by column and in their corners, because kernels fail most
//! often at edges, which are a small share of an image. Depends on the networks and the backends.
//! Promises that a difference larger than rounding is reported.

mod buffers;
mod errors;
mod pair;
#[cfg(test)]
mod tests;

pub use buffers::{SharedBuffer, shared_buffers, stores_halves};

use crate::backend::Backend;
use crate::model::{Network, Recompute, StepSpec};
use crate::plan::OptimizerKind::{self, Adam, AdamW};
use crate::plan::{LossKind, Plan, Precision};
use anyhow::{Context, Result};
use pair::{BackendPair, Comparison};
use serde::Serialize;

/// Loads a plan on the device that is tested.
pub type Load<'a> = &'a dyn Fn(Plan) -> Result<Box<dyn Backend>>;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Type of activations.
    pub precision: Precision,
    /// Sizes, losses, recompute and optimizer of the step.
    pub case: String,
    /// What was compared.
    pub what: String,
    /// `|device - CPU| / |CPU|` in the L2 norm: the largest of all buffers, operations of the kind
    /// and, in a comparison of edges, regions of an image.
    pub error: f64,
    /// The largest error that rounding explains.
    pub tolerance: f64,
}

impl Check {
    /// Whether the error is within the tolerance; NaN is not.
    pub fn holds(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// Scale, batch, side of the LQ patch in pixels, losses, recompute, optimizer.
type Case = (
    usize,
    usize,
    usize,
    &'static [(LossKind, f32)],
    Recompute,
    OptimizerKind,
);

const CASES: [Case; 7] = [
    (2, 2, 9, &[(LossKind::L1, 1.0)], Recompute::Block, AdamW),
    (
        2,
        3,
        37,
        &[
            (LossKind::L1, 0.7),
            (LossKind::Charbonnier, 0.2),
            (LossKind::Mse, 0.5),
        ],
        Recompute::Block,
        Adam,
    ),
    (
        2,
        2,
        64,
        &[
            (LossKind::L1, 1.0),
            (LossKind::Ssim, 0.3),
            (LossKind::MsSsim, 0.2),
        ],
        Recompute::Block,
        AdamW,
    ),
    (3, 1, 20, &[(LossKind::L1, 1.0)], Recompute::Block, AdamW),
    (
        4,
        3,
        100,
        &[(LossKind::L1, 1.0), (LossKind::Ssim, 0.05)],
        Recompute::Full,
        AdamW,
    ),
    // more tiles than the kernel that adds up partial sums has blocks
    (2, 5, 121, &[(LossKind::L1, 1.0)], Recompute::Block, AdamW),
    // a slice of eight images and one of a single image
    (8, 9, 16, &[(LossKind::L1, 1.0)], Recompute::Full, Adam),
];
/// How many of [`CASES`] a quick run tests.
const QUICK: usize = 2;

/// A network, its settings, scale, batch, side of the LQ patch in pixels.
type NetworkCase = (
    &'static str,
    &'static [(&'static str, usize)],
    usize,
    usize,
    usize,
);

/// The networks other than Nano, whose operations the plain kernels compute: one small step each,
/// with numbers of channels that fill no whole group where a network can have them.
const NETWORKS: [NetworkCase; 7] = [
    ("compact", &[("num_feat", 20), ("num_conv", 2)], 2, 2, 19),
    ("compact", &[("num_feat", 64), ("num_conv", 2)], 4, 2, 40),
    ("span", &[("feature_channels", 52)], 2, 2, 33),
    ("paragonsr2_stream", &[], 2, 2, 35),
    ("paragonsr2_photo", &[("window_size", 16)], 2, 2, 40),
    ("paragonsr2_photo", &[("window_size", 7)], 4, 1, 18),
    ("paragonsr2_pro", &[("window_size", 8)], 2, 2, 19),
];
/// How many of [`NETWORKS`] a quick run tests.
const QUICK_NETWORKS: usize = 1;

/// Tolerance of rows, columns and corners, divided by that of a whole image: a region has few
/// values, so rounding errors do not average out (measured: up to 1.9 times the error of the
/// whole). A kernel that is wrong there is wrong by a tenth of the values or more.
const EDGES: f64 = 2.0;

/// Tolerances of (one operation, the loss of a short training, its parameters).
fn tolerances(precision: Precision) -> (f64, f64, f64) {
    match precision {
        Precision::F32 => (5e-6, 2e-5, 3e-4),
        Precision::Bf16 => (1.6e-2, 2e-2, 5e-2),
        Precision::Fp16 => (2e-3, 2e-2, 5e-2),
    }
}

/// Runs all checks for a type of activations (three small ones only if `quick`) and calls
/// `report` with each one as it is finished.
///
/// # Errors
/// When the device fails; a difference is not an error but a check that does not hold.
pub fn run(
    precision: Precision,
    load: Load<'_>,
    quick: bool,
    report: &mut dyn FnMut(&Check),
) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let mut add = |case: &str, comparisons: Vec<Comparison>| {
        for comparison in comparisons {
            let Comparison {
                what,
                error,
                tolerance,
            } = comparison;
            let check = Check {
                precision,
                case: case.to_string(),
                what,
                error,
                tolerance,
            };
            report(&check);
            checks.push(check);
        }
    };
    let count = if quick { QUICK } else { CASES.len() };
    for &(scale, batch, lq, losses, recompute, optimizer) in &CASES[..count] {
        let mut net = Network::new("nano", scale)?;
        // large enough that every layer changes the result
        net.set("layer_scale", 0.5)?;
        net.set("detail_gain", 0.5)?;
        let spec = StepSpec {
            optimizer,
            weight_decay: 1e-2,
            recompute,
            ..StepSpec::new(batch, (lq, lq), losses.to_vec())
        };
        let case =
            format!("x{scale}, {batch} x {lq} x {lq}, {losses:?}, {recompute}, {optimizer:?}");
        let comparisons = BackendPair::new(&net, &spec, precision, load)
            .and_then(|pair| pair.run(&net, &spec))
            .with_context(|| case.clone())?;
        add(&case, comparisons);
    }
    let count = if quick {
        QUICK_NETWORKS
    } else {
        NETWORKS.len()
    };
    for &(name, settings, scale, batch, lq) in &NETWORKS[..count] {
        let refused = match name {
            "span" | "paragonsr2_photo" => precision == Precision::Fp16,
            "paragonsr2_pro" => precision != Precision::F32,
            _ => false,
        };
        if refused {
            continue;
        }
        let mut net = Network::new(name, scale)?;
        for &(setting, value) in settings {
            net.set(setting, value)?;
        }
        for setting in ["layer_scale", "detail_gain"] {
            if net.spec(setting).is_ok() {
                net.set(setting, 0.5)?;
            }
        }
        let spec = StepSpec::new(batch, (lq, lq), vec![(LossKind::L1, 1.0)]);
        let case = format!("{name} x{scale}, {settings:?}, {batch} x {lq} x {lq}");
        let comparisons = BackendPair::new(&net, &spec, precision, load)
            .and_then(|pair| pair.run_operations(&net, &spec))
            .with_context(|| case.clone())?;
        add(&case, comparisons);
    }
    Ok(checks)
}
