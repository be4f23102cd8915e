//! Compares a device with the CPU: every operation of a training step on the same inputs, then a
//! short training, for every type of activations that the device has. Images are compared as a
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

/// Runs all checks for a type of activations (the first two cases only if `quick`) and calls
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
        for comparison in comparisons {
            let Comparison {
                what,
                error,
                tolerance,
            } = comparison;
            let check = Check {
                precision,
                case: case.clone(),
                what,
                error,
                tolerance,
            };
            report(&check);
            checks.push(check);
        }
    }
    Ok(checks)
}
