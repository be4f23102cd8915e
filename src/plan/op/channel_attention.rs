//! Channel attention: each channel is multiplied by a factor that follows from the means of all
//! channels over the whole image.

use super::access::write_or_add;
use super::{Access, Destination, Extent, Operation, ParamRange, Slice, Tape, read, update, write};
use crate::plan::{BufferId, Error};

/// `x * sigmoid(up * gelu(down * m))`, where m is the mean of each channel over all pixels of an
/// image, and gelu the exact form. Neither product has a bias.
#[derive(Clone, Debug)]
pub struct ChannelAttention {
    /// LQ extent of input and output.
    pub extent: Extent,
    /// Channels C, without those that fill the last group.
    pub channels: usize,
    /// Weight `[hidden, C]`.
    pub down: ParamRange,
    /// Weight `[C, hidden]`.
    pub up: ParamRange,
    /// The parameter buffer, f32.
    pub parameters: BufferId,
    /// x, `[N, h, w, C]`, activation.
    pub input: BufferId,
    /// The means, f64 `[N, C]`, where the input is a part of an image whose means are known. `None`:
    /// they are computed from the input. Inference only: the backward pass always computes them.
    pub means: Option<BufferId>,
    /// `[N, h, w, C]`, activation.
    pub output: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// Gradients of [`ChannelAttention`] with respect to its weights and its input. Means and factors
/// are computed again.
#[derive(Clone, Debug)]
pub struct ChannelAttentionBack {
    /// The forward operation.
    pub forward: ChannelAttention,
    /// The gradient buffer, f32; the ranges are those of the parameters.
    pub gradients: BufferId,
    /// Gradient of the output, `[N, h, w, C]`, activation.
    pub d_output: BufferId,
    /// Gradient of the input, `[N, h, w, C]`, activation; written or added to.
    pub d_input: Option<Destination>,
    /// The part of the micro-batch.
    pub slice: Slice,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl ChannelAttention {
    /// Channels of both buffers.
    pub fn stride(&self) -> usize {
        self.channels.next_multiple_of(super::CHANNEL_GROUP)
    }

    /// Values between the two products.
    pub fn hidden(&self) -> usize {
        self.down.len / self.channels.max(1)
    }

    /// Multiply-adds of the two products.
    fn products(&self) -> u64 {
        self.extent.n as u64 * (self.down.len + self.up.len) as u64
    }
}

impl Operation for ChannelAttention {
    fn label(&self) -> &'static str {
        "channel attention"
    }

    fn accesses(&self) -> Vec<Access> {
        let mut list = vec![read(self.parameters), read(self.input), write(self.output)];
        list.extend(self.means.map(read));
        list
    }

    workspace_field!();

    fn largest_extent(&self) -> u64 {
        self.extent.values(self.stride())
    }

    fn multiply_adds(&self) -> u64 {
        let passes = if self.means.is_some() { 1 } else { 2 };
        passes * self.extent.values(self.channels) + self.products()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent)]
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let back = ChannelAttentionBack {
            forward: self.clone(),
            gradients: tape.gradients(self.parameters)?,
            d_output: tape.d_output(self.output)?,
            d_input: tape.destination(self.input)?,
            slice: tape.slice(),
            workspace: None,
        };
        tape.push(back.into());
        Ok(())
    }
}

impl Operation for ChannelAttentionBack {
    fn label(&self) -> &'static str {
        "channel attention, backward"
    }

    fn accesses(&self) -> Vec<Access> {
        let mut list = vec![
            read(self.forward.parameters),
            read(self.forward.input),
            read(self.d_output),
            update(self.gradients),
        ];
        list.extend(self.d_input.map(|d| write_or_add(d.buffer, d.add)));
        list
    }

    workspace_field!();

    slice_field!();

    fn largest_extent(&self) -> u64 {
        self.forward.largest_extent()
    }

    fn multiply_adds(&self) -> u64 {
        2 * self.forward.extent.values(self.forward.channels) + 2 * self.forward.products()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        let d_input = self.d_input.map(|d| (d.buffer, self.forward.extent));
        d_input.into_iter().collect()
    }
}
