//! The memory that the CUDA kernels need beside the values that the plan counts: the workspace and
//! the carried sums of each operation, as its family says. Depends on the families and the plan; a
//! step is planned with it on a machine without a GPU.
//!
//! The families keep one rule: a kernel has its tile, halo and weights (converted to half precision
//! while they are loaded) in shared memory and needs no workspace, unless it sums over pixels. A
//! kernel that sums is launched with at most
//! [`most_sum_blocks`](super::limits::most_sum_blocks) blocks, each of which loops over many tiles in
//! a fixed order, and [`super::reduce`] adds up the sums.

use super::operation;
use super::scalars::SCALARS_BYTES;
use crate::plan::{Op, Precision, Sizing};
use anyhow::{Context, Result, ensure};

/// Device memory that a context, the driver and loaded modules take beside our own allocations. It
/// differs between cards and drivers, so this is an estimate until it is measured on the card:
/// figures published for programs without cuDNN and cuBLAS run from about 100 MiB (older cards) to
/// about 500 MiB (large ones).
pub const CONTEXT_ESTIMATE: u64 = 300 << 20;
/// Anonymous host memory that the driver's user-space part takes; an estimate for the same reason.
pub const DRIVER_HOST_ESTIMATE: u64 = 200 << 20;

/// Operations whose kernels were not shown to agree with the CPU in a type of activations, by the
/// label of the forward pass; they are refused in that type. Many gradients of the queries of Pro's
/// dictionary are below the smallest normal number of fp16, so they differ by a tenth.
const UNPROVEN: &[(&str, Precision)] = &[("token attention", Precision::Fp16)];

/// The sizes of a step on a CUDA device.
#[derive(Clone, Copy, Debug)]
pub struct CudaSizing {
    /// Type of activations.
    pub precision: Precision,
}

impl CudaSizing {
    fn check(&self, op: &Op) -> Result<()> {
        let label = op.label();
        let forward = label.strip_suffix(", backward").unwrap_or(label);
        ensure!(
            !UNPROVEN.contains(&(forward, self.precision)),
            "its kernels were not shown to agree with the CPU in {}; another --precision may do",
            self.precision
        );
        operation::of(op).check()
    }
}

impl Sizing for CudaSizing {
    fn name(&self) -> String {
        format!("CUDA in {}", self.precision)
    }

    fn supports(&self, op: &Op) -> Result<()> {
        self.check(op).with_context(|| {
            format!(
                "CUDA cannot run the operation \"{}\" of this network; --device cpu computes it",
                op.label()
            )
        })
    }

    fn workspace(&self, op: &Op) -> u64 {
        operation::of(op).workspace(self.precision)
    }

    fn carry(&self, op: &Op) -> u64 {
        operation::of(op).carry()
    }

    fn defers_sums(&self, op: &Op) -> bool {
        operation::of(op).defers_sums()
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn prepared(&self, op: &Op) -> u64 {
        operation::of(op).prepared(self.precision)
    }

    fn scalar_bytes(&self) -> u64 {
        SCALARS_BYTES
    }

    fn copies_ahead(&self) -> bool {
        true
    }
}
