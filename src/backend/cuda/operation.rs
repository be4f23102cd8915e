//! What CUDA has for each operation of a plan, and the table of all operations. A new operation is
//! one file with an implementation of [`CudaOperation`], and one row in [`of`]. Some operations have
//! kernels for one shape only, those of Nano; all other shapes are computed by [`super::plain`].

use super::lowering::Lowering;
use super::{conv, nano, optimizer, pixels, plain, reconstruct, structural};
use crate::plan::{
    Conv, ConvBack, NanoBlock, NanoBlockBack, Op, PixelLoss, Precision, Reconstruct,
    ReconstructBack, StructuralLoss, Unpack, Update,
};
use anyhow::Result;

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
    fn workspace(&self, _: Precision) -> u64 {
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

/// CUDA's side of an operation.
pub(super) fn of(op: &Op) -> &dyn CudaOperation {
    match op {
        Op::Unpack(o) => o,
        Op::Conv(o) => o,
        Op::ConvBack(o) => o,
        Op::NanoBlock(o) => o,
        Op::NanoBlockBack(o) => o,
        Op::Reconstruct(o) => o,
        Op::ReconstructBack(o) => o,
        Op::PixelLoss(o) => o,
        Op::StructuralLoss(o) => o,
        Op::Update(o) => o,
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
        Op::StreamBlock(o) => o,
        Op::StreamBlockBack(o) => o,
    }
}

impl CudaOperation for Unpack {
    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        pixels::unpack(l, self)
    }
}

impl CudaOperation for Conv {
    fn check(&self) -> Result<()> {
        if conv::is_tuned(self) {
            return Ok(());
        }
        plain::conv::check(self)
    }

    fn workspace(&self, precision: Precision) -> u64 {
        if conv::is_tuned(self) {
            return 0;
        }
        plain::conv::forward_workspace(self, precision)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        if conv::is_tuned(self) {
            return conv::forward(l, self, None);
        }
        plain::conv::lower(l, self)
    }
}

impl CudaOperation for ConvBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self, precision: Precision) -> u64 {
        if conv::is_tuned_back(self) {
            return conv::workspace(self);
        }
        plain::conv::workspace(self, precision)
    }

    fn carry(&self) -> u64 {
        if conv::is_tuned_back(self) {
            return 8 * conv::sum_count(self) as u64;
        }
        plain::conv::carry(self)
    }

    /// The sums of the last slice; those of an earlier slice are added to the carried totals at
    /// once, and those of the plain kernels always.
    fn defers_sums(&self) -> bool {
        self.slice.last && conv::is_tuned_back(self)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        if conv::is_tuned_back(self) {
            return conv::backward(l, self);
        }
        plain::conv::lower_back(l, self)
    }
}

impl CudaOperation for NanoBlock {
    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        nano::forward(l, self)
    }
}

impl CudaOperation for NanoBlockBack {
    fn workspace(&self, _: Precision) -> u64 {
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
    fn check(&self) -> Result<()> {
        reconstruct::check(self)
    }

    fn prepared(&self, precision: Precision) -> u64 {
        reconstruct::folded_bytes(self, precision)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        reconstruct::forward(l, self, None)
    }
}

impl CudaOperation for ReconstructBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self, _: Precision) -> u64 {
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
    fn workspace(&self, _: Precision) -> u64 {
        pixels::loss_workspace(self)
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
    fn workspace(&self, _: Precision) -> u64 {
        structural::workspace(self)
    }

    fn carry(&self) -> u64 {
        8
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        structural::loss(l, self, None)
    }
}

impl CudaOperation for Update {
    fn workspace(&self, _: Precision) -> u64 {
        optimizer::workspace(self)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        optimizer::update(l, self)
    }
}
