//! What the CUDA kernels may use beside the values the plan counts, before there is a device: the launch geometry they have to
//! keep to, and the bytes that follow from it. Depends on the plan and on the planes of the structural losses; the plan of a
//! step is made from it on a machine without a GPU.
//!
//! The geometry: a kernel keeps its tile, halo and weights (converted to halves while they are loaded) in shared memory and asks for
//! no workspace, unless it sums over pixels. A kernel that does is launched with at most [`SUM_BLOCKS`] blocks, each walking over many
//! tiles in a fixed order with its sums in registers; every block writes one f32 partial, and a second kernel adds the partials in block
//! order in f64. No atomics, so the same bits in every run. Structural losses work on the planes of at most
//! [`STRUCTURAL_IMAGES`] images at once.

use super::cpu::structural::{Similarity, scratch_floats};
use crate::plan::{Conv, Op, Precision, Sizing, StructuralLossKind};

/// Blocks of a kernel that sums over pixels: two for every multiprocessor of the largest card in use, nearly.
pub const SUM_BLOCKS: u64 = 256;
/// LQ pixels of one tile, which a block takes at a time: 16 x 16 threads.
const TILE_PIXELS: u64 = 256;
/// Images whose planes a structural loss holds at once.
pub const STRUCTURAL_IMAGES: usize = 4;
/// Elements of one block of the optimizer's norm.
const NORM_ELEMENTS: u64 = 4096;

/// What a context, the driver and loaded modules take on the device beside what we allocate. We do not allocate it, it differs
/// between cards and drivers, and it is an estimate until it is measured on the card: figures published for programs without cuDNN and
/// cuBLAS run from about 100 MiB (older cards) to about 500 MiB (large ones).
pub const CONTEXT_ESTIMATE: u64 = 300 << 20;
/// What the driver's user-space part takes of anonymous host memory; an estimate for the same reason.
pub const DRIVER_HOST_ESTIMATE: u64 = 200 << 20;

/// A CUDA device to be planned for.
#[derive(Clone, Copy, Debug)]
pub struct CudaSizing {
    /// Type of activations.
    pub precision: Precision,
}

/// f32 sums a block keeps for weights and bias of a convolution.
fn conv_sums(c: &Conv) -> u64 {
    (c.cout * c.shuffle * c.shuffle * (9 * c.cin + 1)) as u64
}

/// (sums of one block, pixels that the blocks share) of an operation; none for one that sums nothing.
fn sums(op: &Op) -> Option<(u64, u64)> {
    match op {
        Op::Unpack(_) | Op::Conv(_) | Op::NanoBlock(_) | Op::Head(_) => None,
        Op::ConvBack(o) => Some((conv_sums(&o.forward), o.forward.extent.pixels() as u64)),
        Op::NanoBlockBack(o) => {
            let p = &o.forward.params;
            let ranges = [p.conv1_weight, p.conv1_bias, p.dw_weight, p.dw_bias, p.conv2_weight, p.conv2_bias];
            Some((ranges.iter().map(|r| r.len as u64).sum(), o.forward.extent.pixels() as u64))
        }
        Op::HeadBack(o) => {
            let h = &o.forward;
            Some(((h.weight.len + h.bias.len) as u64, h.extent.scaled(h.scale).pixels() as u64))
        }
        // an f64 a term
        Op::PixelLoss(o) => Some((2, o.extent.pixels() as u64)),
        Op::StructuralLoss(o) => Some((2 * o.terms.len() as u64, o.extent.pixels() as u64)),
        Op::Update(o) => Some((2, TILE_PIXELS * (o.trainable as u64).div_ceil(NORM_ELEMENTS))),
    }
}

impl Sizing for CudaSizing {
    fn workspace(&self, op: &Op) -> u64 {
        let partials = sums(op).map_or(0, |(each, pixels)| 4 * each * pixels.div_ceil(TILE_PIXELS).min(SUM_BLOCKS));
        let planes = match op {
            Op::StructuralLoss(o) => {
                let kind = |kind| match kind {
                    StructuralLossKind::Ssim => Similarity::Ssim,
                    StructuralLossKind::MultiScale => Similarity::MultiScale { luminance: false },
                };
                let image = o.terms.iter().map(|&(k, _)| scratch_floats(kind(k), o.extent.h, o.extent.w)).max().unwrap_or(0);
                4 * (image * o.extent.n.min(STRUCTURAL_IMAGES)) as u64
            }
            _ => 0,
        };
        partials + planes
    }

    fn carry(&self, op: &Op) -> u64 {
        sums(op).map_or(0, |(each, _)| 8 * each)
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn copies_ahead(&self) -> bool {
        true
    }
}
