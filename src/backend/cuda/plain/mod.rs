//! Lowering of every operation that has no kernels of its own shape: plain kernels
//! (kernels/plain*.cu), which take any number of channels and any type of activations. One file for
//! each family; each implements [`CudaOperation`](super::operation::CudaOperation) beside its
//! lowering. Depends on the lowering's state and the sums.
//!
//! A plain operation is one launch, or a few over a workspace that its `workspace` counts. Sums over
//! pixels are partial sums of at most [`most_sum_blocks`](super::limits::most_sum_blocks) blocks, which
//! `reduce_sums` adds up right after the launch, so the workspace is free again for the next
//! operation. An operation that is a composition (the block of Stream) calls the functions that the
//! plain convolutions are lowered with. Dense 3x3 and 1x1 convolutions and the block of Stream in half
//! precision have kernels for tensor cores (`matrix_conv.rs`, `stream_matrix.rs`).
//! kernels/plain.cuh says how such a kernel is written.

mod attention;
mod compose;
pub(super) mod conv;
mod matrix_conv;
mod matrix_signatures;
pub(super) mod norm;
mod signatures;
mod stream;
mod stream_matrix;
mod stream_signatures;
mod values;

use super::arguments::{Act, Address};
use super::constants::{
    FUNCTION_GELU, FUNCTION_LEAKY_RELU, FUNCTION_NONE, FUNCTION_NORMALIZE, FUNCTION_PRELU,
    FUNCTION_RELU, FUNCTION_SILU,
};
use super::limits::most_sum_blocks;
use super::lowering::{Lowering, int};
use super::reduce::{self, Sums, partial_bytes};
use crate::plan::{Activation, BufferId, Extent, Precision, Slice};
use anyhow::{Result, ensure};
use matrix_signatures::PixelNorm;
use signatures::{ChannelFunction, Place, View};

/// The C text of the plain kernels' arguments, for the generated header.
#[cfg(test)]
pub(super) fn c_text() -> String {
    signatures::c_text() + &matrix_signatures::c_text() + &stream_signatures::c_text()
}

/// Bytes that buffers inside a workspace are aligned to.
const ALIGNMENT: usize = 16;

/// No channels.
const NO_VIEW: View = View {
    values: Address::NULL,
    floats: Address::NULL,
    stride: 0,
    first: 0,
};

/// The identity.
const NO_FUNCTION: ChannelFunction = ChannelFunction {
    slopes: Address::NULL,
    kind: FUNCTION_NONE,
    channels: 0,
    slope: 0.0,
    mean: [0.0; 3],
    factor: 1.0,
    reserved: 0,
};

/// No norm.
const NO_NORM: PixelNorm = PixelNorm {
    scale: Address::NULL,
    bias: Address::NULL,
    output: Address::NULL,
    h: 0,
    w: 0,
    epsilon: 0.0,
    reserved: 0,
};

/// A view of activations with `stride` channels a pixel.
fn view(values: Address<Act>, stride: usize) -> Result<View> {
    Ok(View {
        values,
        stride: int(stride)?,
        ..NO_VIEW
    })
}

/// The activations of a view, to be written.
fn place(v: View, add: bool) -> Place {
    Place {
        values: v.values,
        floats: v.floats,
        stride: v.stride,
        first: v.first,
        add: add.into(),
        reserved: 0,
    }
}

/// A buffer of the plan: an image of f32 RGB where a pixel has three values, else activations.
fn buffer_view(l: &Lowering<'_>, buffer: BufferId, stride: usize) -> Result<View> {
    if stride == 3 {
        return Ok(View {
            floats: l.floats(buffer),
            stride: 3,
            ..NO_VIEW
        });
    }
    view(l.activations(buffer), stride)
}

/// A function of `channels` channels, with the slopes in the buffer `parameters`.
fn function(
    l: &Lowering<'_>,
    activation: Option<Activation>,
    parameters: BufferId,
    channels: usize,
) -> Result<ChannelFunction> {
    let mut f = ChannelFunction {
        channels: int(channels)?,
        ..NO_FUNCTION
    };
    match activation {
        None => {}
        Some(Activation::Relu) => f.kind = FUNCTION_RELU,
        Some(Activation::LeakyRelu { slope }) => (f.kind, f.slope) = (FUNCTION_LEAKY_RELU, slope),
        Some(Activation::PRelu { slopes }) => {
            f.kind = FUNCTION_PRELU;
            f.slopes = l.parameter(parameters, slopes.offset);
        }
        Some(Activation::Silu) => f.kind = FUNCTION_SILU,
        Some(Activation::Gelu) => f.kind = FUNCTION_GELU,
        Some(Activation::Normalize { mean, factor }) => {
            (f.kind, f.mean, f.factor) = (FUNCTION_NORMALIZE, mean, factor);
        }
    }
    Ok(f)
}

/// Values of a 16-byte piece of a pixel.
fn piece(precision: Precision) -> usize {
    16 / precision.bytes() as usize
}

/// Most channels of a pixel that the kernels which take pieces of pixels have threads for.
const MOST_CHANNELS: usize = 1024;

/// Checks that the kernels that take pieces of pixels can take this many channels.
///
/// # Errors
/// When they cannot.
fn check_stride(stride: usize) -> Result<()> {
    ensure!(
        stride <= MOST_CHANNELS,
        "{stride} channels; the CUDA kernels take up to {MOST_CHANNELS}"
    );
    Ok(())
}

/// Blocks of a kernel that takes pieces of pixels of `stride` channels: one for as many pixels as
/// its threads have at a time, a bounded number where it sums.
fn piece_blocks(e: Extent, stride: usize, precision: Precision, sums: bool) -> usize {
    let lanes = (256 * piece(precision) / stride).max(1);
    let blocks = e.pixels().div_ceil(lanes);
    if sums {
        blocks.min(most_sum_blocks())
    } else {
        blocks
    }
}

/// Bytes of shared memory in which such a kernel adds up the sums of its channels.
fn channel_sum_bytes(precision: Precision) -> usize {
    256 * piece(precision) * 4
}

/// Hands out the partial sums of an operation, one after another, in its workspace and in the buffer
/// that carries totals between slices.
struct SumSpace {
    workspace: BufferId,
    slice: Slice,
    /// Bytes of the workspace that are taken.
    at: usize,
    /// Bytes of the carried totals that are taken.
    carried: usize,
}

impl SumSpace {
    /// Partial sums from byte `at` of a workspace on.
    fn new(workspace: BufferId, at: usize, slice: Slice) -> SumSpace {
        SumSpace {
            workspace,
            slice,
            at,
            carried: 0,
        }
    }

    /// Room for `count` sums of `blocks` blocks.
    fn sums(&mut self, l: &Lowering<'_>, count: usize, blocks: usize) -> Sums {
        let totals = match self.slice.carry {
            Some(carry) => l.totals_at(carry, self.carried),
            None => Address::NULL,
        };
        let sums = Sums {
            partials: l.partials_at(self.workspace, self.at),
            totals,
            count,
            blocks,
        };
        self.at += partial_bytes(count, blocks).next_multiple_of(ALIGNMENT);
        self.carried += 8 * count;
        sums
    }

    /// Starts over in the workspace, after the sums so far were added up.
    fn reuse(&mut self, at: usize) {
        self.at = at;
    }

    /// Adds up sums; after the last slice they become gradients.
    fn finish(&self, l: &mut Lowering<'_>, sums: &[(Sums, reduce::Finish)]) -> Result<()> {
        reduce::finish(l, self.slice, sums)
    }
}

/// Bytes that `count` sums of `blocks` blocks take in a [`SumSpace`].
fn sum_bytes(count: usize, blocks: usize) -> usize {
    partial_bytes(count, blocks).next_multiple_of(ALIGNMENT)
}
