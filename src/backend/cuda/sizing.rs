//! What the CUDA kernels use beside the values the plan counts: the workspace and the carried sums
//! that each family states for its operations. Depends on the families and the plan; a step is
//! planned from it on a machine without a GPU.
//!
//! The rule the families keep: a kernel has its tile, halo and weights (converted to halves while
//! they are loaded) in shared memory and asks for no workspace, unless it sums over pixels. One
//! that does is launched with at most [`SUM_BLOCKS`] blocks, each walking over many tiles in a
//! fixed order, and the sums are added up as [`super::reduce`] says.

use super::{conv, nano, optimizer, pixels, structural, up_head};
use crate::plan::{Op, Precision, Reconstruct, Sizing};

/// Blocks of a kernel that sums over pixels: two for every multiprocessor of the largest card in
/// use, nearly.
pub(super) const SUM_BLOCKS: u64 = 256;
/// Images whose planes a structural loss holds at once: enough to fill a card with LQ 128, few
/// enough to stay in its cache.
pub(super) const STRUCTURAL_IMAGES: usize = 8;

/// What a context, the driver and loaded modules take on the device beside what we allocate. We do
/// not allocate it, it differs between cards and drivers, and it is an estimate until it is
/// measured on the card: figures published for programs without cuDNN and cuBLAS run from about 100
/// MiB (older cards) to about 500 MiB (large ones).
pub const CONTEXT_ESTIMATE: u64 = 300 << 20;
/// What the driver's user-space part takes of anonymous host memory; an estimate for the same
/// reason.
pub const DRIVER_HOST_ESTIMATE: u64 = 200 << 20;

/// A CUDA device to be planned for.
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
            Op::ReconstructBack(o) => up_head::workspace(o),
            Op::PixelLoss(_) => pixels::loss_workspace(),
            Op::StructuralLoss(o) => structural::workspace(o),
            Op::Update(o) => optimizer::workspace(o),
        }
    }

    fn carry(&self, op: &Op) -> u64 {
        match op {
            Op::ConvBack(o) => 8 * conv::sum_count(o) as u64,
            Op::ReconstructBack(o) => 8 * up_head::sum_count(o) as u64,
            Op::PixelLoss(_) => 8,
            Op::StructuralLoss(o) => 8 * o.terms.len() as u64,
            _ => 0,
        }
    }

    /// Those that nothing of the micro-batch adds to any more; what a slice before the last sums
    /// goes to the carried sums at once.
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
        up_head::folded(op, self.precision)
    }

    fn scalar_bytes(&self) -> u64 {
        super::SCALARS_BYTES
    }

    fn copies_ahead(&self) -> bool {
        true
    }
}
