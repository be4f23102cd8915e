//! The memory that the CUDA kernels need beside the values that the plan counts: the workspace and
//! the carried sums of each operation, as its family says. Depends on the families and the plan; a
//! step is planned with it on a machine without a GPU.
//!
//! The families keep one rule: a kernel has its tile, halo and weights (converted to half precision
//! while they are loaded) in shared memory and needs no workspace, unless it sums over pixels. A
//! kernel that sums is launched with at most `SUM_BLOCKS` blocks, each of which loops over many
//! tiles in a fixed order, and [`super::reduce`] adds up the sums.

use super::scalars::SCALARS_BYTES;
use super::{conv, nano, optimizer, pixels, reconstruct, structural};
use crate::plan::{Op, Precision, Reconstruct, Sizing};

/// Device memory that a context, the driver and loaded modules take beside our own allocations. It
/// differs between cards and drivers, so this is an estimate until it is measured on the card:
/// figures published for programs without cuDNN and cuBLAS run from about 100 MiB (older cards) to
/// about 500 MiB (large ones).
pub const CONTEXT_ESTIMATE: u64 = 300 << 20;
/// Anonymous host memory that the driver's user-space part takes; an estimate for the same reason.
pub const DRIVER_HOST_ESTIMATE: u64 = 200 << 20;

/// The sizes of a step on a CUDA device.
#[derive(Clone, Copy, Debug)]
pub struct CudaSizing {
    /// Type of activations.
    pub precision: Precision,
}

impl Sizing for CudaSizing {
    fn name(&self) -> String {
        format!("CUDA in {}", self.precision)
    }

    fn workspace(&self, op: &Op) -> u64 {
        match op {
            Op::Unpack(_) | Op::Conv(_) | Op::NanoBlock(_) | Op::Reconstruct(_) => 0,
            Op::ConvBack(o) => conv::workspace(o),
            Op::NanoBlockBack(o) => nano::workspace(o),
            Op::ReconstructBack(o) => reconstruct::workspace(o),
            Op::PixelLoss(_) => pixels::loss_workspace(),
            Op::StructuralLoss(o) => structural::workspace(o),
            Op::Update(o) => optimizer::workspace(o),
        }
    }

    fn carry(&self, op: &Op) -> u64 {
        match op {
            Op::ConvBack(o) => 8 * conv::sum_count(o) as u64,
            Op::ReconstructBack(o) => 8 * reconstruct::sum_count(o) as u64,
            Op::PixelLoss(_) => 8,
            Op::StructuralLoss(o) => 8 * o.terms.len() as u64,
            _ => 0,
        }
    }

    /// The sums of the last slice; those of an earlier slice are added to the carried totals at once.
    fn defers_sums(&self, op: &Op) -> bool {
        match op {
            Op::NanoBlockBack(_) => true,
            Op::ConvBack(o) => o.slice.last,
            Op::ReconstructBack(o) => o.slice.last,
            Op::PixelLoss(o) => o.slice.last,
            _ => false,
        }
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn folded(&self, op: &Reconstruct) -> u64 {
        reconstruct::folded_bytes(op, self.precision)
    }

    fn scalar_bytes(&self) -> u64 {
        SCALARS_BYTES
    }

    fn copies_ahead(&self) -> bool {
        true
    }
}
