//! What the CPU has for each operation of a plan, and the table of all operations. A new operation
//! is one file with an implementation of [`CpuOperation`], and one row in [`of`].

use super::bf16::Products;
use super::tasks::{Context, Workspace};
use crate::plan::{Extent, MAX_IMAGES, MAX_SIDE, Op};
use anyhow::{Context as _, Result, ensure};

/// Most channels of an activation. No network comes near; the bound keeps every workspace size
/// inside 64 bits.
pub const MAX_CHANNELS: usize = 1 << 12;

/// An operation of a plan as the CPU runs it.
pub trait CpuOperation {
    /// Checks the properties that the kernels rely on. The planner and `CpuBackend::new` ask this
    /// before anything else.
    ///
    /// # Errors
    /// The property that no kernel is written for.
    fn check(&self) -> Result<()>;

    /// The layout of the workspace; only asked of operations that passed the check.
    fn workspace(&self) -> Workspace {
        Workspace::default()
    }

    /// The layout of the workspace if products are computed as stated; operations without a kernel
    /// for bf16 have one layout.
    fn workspace_for(&self, _products: Products) -> Workspace {
        self.workspace()
    }

    /// Runs the operation.
    fn run(&self, ctx: &Context<'_>);
}

/// The CPU's side of an operation.
pub fn of(op: &Op) -> &dyn CpuOperation {
    match op {
        Op::Unpack(o) => o,
        Op::Conv(o) => o,
        Op::ConvBack(o) => o,
        Op::Activate(o) => o,
        Op::ActivateBack(o) => o,
        Op::Gate(o) => o,
        Op::GateBack(o) => o,
        Op::Concat(o) => o,
        Op::ConcatBack(o) => o,
        Op::ScaledSum(o) => o,
        Op::ScaledSumBack(o) => o,
        Op::Accumulate(o) => o,
        Op::Shuffle(o) => o,
        Op::ShuffleBack(o) => o,
        Op::ComposeConv(o) => o,
        Op::ComposeConvBack(o) => o,
        Op::RmsNorm(o) => o,
        Op::RmsNormBack(o) => o,
        Op::WindowAttention(o) => o,
        Op::WindowAttentionBack(o) => o,
        Op::ChannelAttention(o) => o,
        Op::ChannelAttentionBack(o) => o,
        Op::TokenAttention(o) => o,
        Op::TokenAttentionBack(o) => o,
        Op::NanoBlock(o) => o,
        Op::NanoBlockBack(o) => o,
        Op::StreamBlock(o) => o,
        Op::StreamBlockBack(o) => o,
        Op::Reconstruct(o) => o,
        Op::ReconstructBack(o) => o,
        Op::PixelLoss(o) => o,
        Op::StructuralLoss(o) => o,
        Op::Update(o) => o,
    }
}

/// Checks that the CPU can run `op`.
///
/// # Errors
/// The operation, and the property that no kernel is written for.
pub fn check(op: &Op) -> Result<()> {
    let checked = of(op).check();
    checked.with_context(|| format!("the CPU cannot run the operation \"{}\"", op.label()))
}

/// Checks that sizes of an activation are within the bounds that all kernels rely on.
///
/// # Errors
/// The size that is not.
pub fn check_extent(extent: Extent) -> Result<()> {
    let Extent { n, h, w } = extent;
    ensure!(
        n > 0 && h > 0 && w > 0,
        "{n} images of {h}x{w} pixels: none of the three may be 0"
    );
    ensure!(
        n <= MAX_IMAGES && h <= MAX_SIDE && w <= MAX_SIDE,
        "{n} images of {h}x{w} pixels are too large: at most {MAX_IMAGES} images of \
         {MAX_SIDE}x{MAX_SIDE} pixels are supported"
    );
    Ok(())
}
