//! RMSNorm over channels, pixel by pixel.

use super::access::write_or_add;
use super::{
    Access, Destination, Extent, Fusion, Op, Operation, ParamRange, Slice, Tape, read, update,
    write,
};
use crate::plan::{BufferId, Error};

/// `scale * x / sqrt(mean(x^2) + epsilon) + bias`, where the mean is over the channels of a pixel.
/// The output may have more rows and columns than the input, which are 0: the padding of
/// [`WindowAttention`](super::WindowAttention).
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// LQ extent of the input.
    pub extent: Extent,
    /// LQ extent of the output: as many images, and at least as many rows and columns.
    pub padded: Extent,
    /// Channels C, without those that fill the last group.
    pub channels: usize,
    /// Added to the mean of the squares.
    pub epsilon: f32,
    /// `[C, 1, 1]`.
    pub scale: ParamRange,
    /// `[C, 1, 1]`.
    pub bias: ParamRange,
    /// The parameter buffer, f32.
    pub parameters: BufferId,
    /// x, `[N, h, w, C]`, activation.
    pub input: BufferId,
    /// `[N, padded h, padded w, C]`, activation.
    pub output: BufferId,
}

/// Gradients of [`RmsNorm`] with respect to its parameters and its input. Those of the padding are
/// ignored.
#[derive(Clone, Debug)]
pub struct RmsNormBack {
    /// The forward operation.
    pub forward: RmsNorm,
    /// The gradient buffer, f32; the ranges are those of the parameters.
    pub gradients: BufferId,
    /// Gradient of the output, `[N, padded h, padded w, C]`, activation.
    pub d_output: BufferId,
    /// Gradient of the input, `[N, h, w, C]`, activation; written or added to.
    pub d_input: Option<Destination>,
    /// The part of the micro-batch.
    pub slice: Slice,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl RmsNorm {
    /// Channels of both buffers.
    pub fn stride(&self) -> usize {
        self.channels.next_multiple_of(super::CHANNEL_GROUP)
    }
}

impl Operation for RmsNorm {
    fn label(&self) -> &'static str {
        "RMSNorm"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![read(self.parameters), read(self.input), write(self.output)]
    }

    fn largest_extent(&self) -> u64 {
        self.padded.values(self.stride())
    }

    fn multiply_adds(&self) -> u64 {
        3 * self.extent.values(self.channels)
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.padded)]
    }

    /// A 1x1 convolution has all channels of a pixel at once, so it may normalise them.
    fn fusion(&self, next: &Op) -> Option<Fusion> {
        let Op::Conv(conv) = next else {
            return None;
        };
        let pointwise = (conv.kernel, conv.groups) == (1, 1) && conv.activation.is_none();
        (conv.input == self.output && pointwise).then_some(Fusion {
            not_read: Some(self.output),
            halves: true,
            ..Fusion::default()
        })
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let back = RmsNormBack {
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

impl Operation for RmsNormBack {
    fn label(&self) -> &'static str {
        "RMSNorm, backward"
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
        7 * self.forward.extent.values(self.forward.channels)
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        let d_input = self.d_input.map(|d| (d.buffer, self.forward.extent));
        d_input.into_iter().collect()
    }
}
