//! What CUDA has for each operation of a plan, and the table of all operations. A new operation is
//! one file with an implementation of [`CudaOperation`], and one row in [`of`].

use super::lowering::Lowering;
use super::{conv, nano, optimizer, pixels, reconstruct, structural};
use crate::plan::{
    Conv, ConvBack, NanoBlock, NanoBlockBack, Op, PixelLoss, Precision, Reconstruct,
    ReconstructBack, StructuralLoss, Unpack, Update,
};
use anyhow::{Result, ensure};

/// An operation of a plan as CUDA runs it.
pub(super) trait CudaOperation {
    /// Checks that there is a kernel for the operation's shape.
    ///
    /// # Errors
    /// The property that no kernel is written for.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Workspace bytes.
    fn workspace(&self) -> u64 {
        0
    }

    /// Bytes in which the operation keeps its running sums between slices.
    fn carry(&self) -> u64 {
        0
    }

    /// Bytes of what the operation computes from parameters alone and keeps for all slices and for
    /// its backward pass.
    fn prepared(&self, _: Precision) -> u64 {
        0
    }

    /// Whether partial sums are added up only after the last operation of a micro-batch.
    fn defers_sums(&self) -> bool {
        false
    }

    /// Appends the launches.
    ///
    /// # Errors
    /// When there is no kernel for the operation's shape, or a launch would be too large.
    fn lower(&self, l: &mut Lowering<'_>) -> Result<()>;
}

/// CUDA's side of an operation; `None` if it has none yet.
pub(super) fn of(op: &Op) -> Option<&dyn CudaOperation> {
    match op {
        Op::Unpack(o) => Some(o),
        Op::Conv(o) => Some(o),
        Op::ConvBack(o) => Some(o),
        Op::NanoBlock(o) => Some(o),
        Op::NanoBlockBack(o) => Some(o),
        Op::Reconstruct(o) => Some(o),
        Op::ReconstructBack(o) => Some(o),
        Op::PixelLoss(o) => Some(o),
        Op::StructuralLoss(o) => Some(o),
        Op::Update(o) => Some(o),
        Op::Activate(_)
        | Op::ActivateBack(_)
        | Op::Gate(_)
        | Op::GateBack(_)
        | Op::Concat(_)
        | Op::ConcatBack(_)
        | Op::ScaledSum(_)
        | Op::ScaledSumBack(_)
        | Op::Accumulate(_)
        | Op::Shuffle(_)
        | Op::ShuffleBack(_)
        | Op::ComposeConv(_)
        | Op::ComposeConvBack(_)
        | Op::RmsNorm(_)
        | Op::RmsNormBack(_)
        | Op::WindowAttention(_)
        | Op::WindowAttentionBack(_)
        | Op::ChannelAttention(_)
        | Op::ChannelAttentionBack(_)
        | Op::TokenAttention(_)
        | Op::TokenAttentionBack(_)
        | Op::StreamBlock(_)
        | Op::StreamBlockBack(_) => None,
    }
}

impl CudaOperation for Unpack {
    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        pixels::unpack(l, self)
    }
}

impl CudaOperation for Conv {
    fn check(&self) -> Result<()> {
        ensure!(
            self.is_plain_3x3(),
            "only plain 3x3 convolutions are supported"
        );
        conv::check_channels(self)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        conv::forward(l, self, None)
    }
}

impl CudaOperation for ConvBack {
    fn check(&self) -> Result<()> {
        ensure!(
            self.accumulates && self.d_input.is_none_or(|d| !d.add),
            "gradients that are added to others are not supported"
        );
        self.forward.check()
    }

    fn workspace(&self) -> u64 {
        conv::workspace(self)
    }

    fn carry(&self) -> u64 {
        8 * conv::sum_count(self) as u64
    }

    /// The sums of the last slice; those of an earlier slice are added to the carried totals at once.
    fn defers_sums(&self) -> bool {
        self.slice.last
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        conv::backward(l, self)
    }
}

impl CudaOperation for NanoBlock {
    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        nano::forward(l, self)
    }
}

impl CudaOperation for NanoBlockBack {
    fn workspace(&self) -> u64 {
        nano::workspace(self)
    }

    fn defers_sums(&self) -> bool {
        true
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        nano::backward(l, self)
    }
}

impl CudaOperation for Reconstruct {
    fn prepared(&self, precision: Precision) -> u64 {
        reconstruct::folded_bytes(self, precision)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        reconstruct::forward(l, self, None)
    }
}

impl CudaOperation for ReconstructBack {
    fn workspace(&self) -> u64 {
        reconstruct::workspace(self)
    }

    fn carry(&self) -> u64 {
        8 * reconstruct::sum_count(self) as u64
    }

    fn prepared(&self, precision: Precision) -> u64 {
        self.forward.prepared(precision)
    }

    /// As for [`ConvBack`].
    fn defers_sums(&self) -> bool {
        self.slice.last
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        reconstruct::backward(l, self)
    }
}

impl CudaOperation for PixelLoss {
    fn workspace(&self) -> u64 {
        pixels::loss_workspace()
    }

    fn carry(&self) -> u64 {
        8
    }

    /// As for [`ConvBack`].
    fn defers_sums(&self) -> bool {
        self.slice.last
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        pixels::loss(l, self)
    }
}

impl CudaOperation for StructuralLoss {
    fn workspace(&self) -> u64 {
        structural::workspace(self)
    }

    fn carry(&self) -> u64 {
        8 * self.terms.len() as u64
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        structural::loss(l, self)
    }
}

impl CudaOperation for Update {
    fn workspace(&self) -> u64 {
        optimizer::workspace(self)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        optimizer::update(l, self)
    }
}
