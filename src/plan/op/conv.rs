//! Convolutions of any kernel size, groups and dilation, with the activation of their input.

use super::access::write_or_add;
use super::{
    Access, Activation, Destination, Extent, Operation, ParamRange, Slice, Tape, read, update,
    write,
};
use crate::plan::{BufferId, Error};

/// Convolution with bias, stride 1 and zero padding that keeps the size, `cin -> cout` channels at
/// LQ resolution, of the input or of an [`Activation`] of it. Padding counts as 0 after the
/// activation.
#[derive(Clone, Debug)]
pub struct Conv {
    /// LQ extent of input and output.
    pub extent: Extent,
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// Channels of the input buffer: 3 for an image, otherwise `cin` rounded up to a whole group.
    pub input_stride: usize,
    /// Channels of the output buffer: `cout` rounded up to a whole group.
    pub output_stride: usize,
    /// Taps along each side, odd.
    pub kernel: usize,
    /// Pixels from tap to tap.
    pub dilation: usize,
    /// Groups of channels: an output sees the `cin / groups` inputs of its group.
    pub groups: usize,
    /// Applied to the input while it is read.
    pub activation: Option<Activation>,
    /// The bits of an output must not depend on where the pixel is in a larger image (inference in
    /// overlapping tiles). This excludes methods that work on blocks of pixels (Winograd), unless
    /// tiles are aligned with the blocks.
    pub tile_invariant: bool,
    /// Tiles begin at multiples of this many pixels, if bits must not depend on the tile.
    pub tile_alignment: usize,
    /// Weights in PyTorch's order, `[cout, cin / groups, kernel, kernel]`.
    pub weight: ParamRange,
    /// Bias `[cout]`.
    pub bias: ParamRange,
    /// The buffer of weight and bias, f32: the parameters, or weights that an operation composed.
    pub parameters: BufferId,
    /// The parameter buffer, f32, for the slopes of the activation.
    pub slopes: BufferId,
    /// Input `[N, h, w, input_stride]`: f32 for an image, otherwise activation.
    pub input: BufferId,
    /// Output `[N, h, w, output_stride]`, activation.
    pub output: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// Gradients of [`Conv`] with respect to weights, bias, the slopes of its activation and (if
/// `d_input` is given) the input before the activation.
#[derive(Clone, Debug)]
pub struct ConvBack {
    /// The forward operation.
    pub forward: Conv,
    /// The gradient buffer of weight and bias, f32; the ranges are those of the parameters.
    pub gradients: BufferId,
    /// Whether the gradients of weight and bias are summed over the micro-batches of an iteration;
    /// otherwise they replace those of the micro-batch before.
    pub accumulates: bool,
    /// The gradient buffer of the slopes, f32.
    pub slope_gradients: BufferId,
    /// Gradient of the output, `[N, h, w, output_stride]`, activation.
    pub d_output: BufferId,
    /// Gradient of the input, `[N, h, w, input_stride]`, of the input's type; written or added to
    /// if given.
    pub d_input: Option<Destination>,
    /// The part of the micro-batch.
    pub slice: Slice,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl Conv {
    /// Whether it is a dense 3x3 convolution of the input as it is.
    pub fn is_plain_3x3(&self) -> bool {
        (self.kernel, self.dilation, self.groups) == (3, 1, 1) && self.activation.is_none()
    }

    /// Multiply-adds of the forward pass.
    fn cost(&self) -> u64 {
        self.extent.pixels() as u64 * self.weight.len as u64
    }
}

impl Operation for Conv {
    fn label(&self) -> &'static str {
        match (self.kernel, self.groups > 1) {
            (1, false) => "conv 1x1",
            (3, false) => "conv 3x3",
            (_, false) => "conv",
            (_, true) => "conv in groups",
        }
    }

    fn accesses(&self) -> Vec<Access> {
        let mut list = vec![read(self.parameters), read(self.input), write(self.output)];
        if self.activation.is_some_and(|a| a.slopes().is_some()) {
            list.push(read(self.slopes));
        }
        list
    }

    workspace_field!();

    fn largest_extent(&self) -> u64 {
        self.extent
            .values(self.input_stride.max(self.output_stride))
    }

    fn multiply_adds(&self) -> u64 {
        self.cost()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent)]
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let back = ConvBack {
            forward: self.clone(),
            gradients: tape.gradients(self.parameters)?,
            accumulates: tape.accumulates(self.parameters),
            slope_gradients: tape.gradients(self.slopes)?,
            d_output: tape.d_output(self.output)?,
            d_input: tape.destination(self.input)?,
            slice: tape.slice(),
            workspace: None,
        };
        tape.push(back.into());
        Ok(())
    }
}

impl Operation for ConvBack {
    fn label(&self) -> &'static str {
        match self.forward.label() {
            "conv 1x1" => "conv 1x1, backward",
            "conv 3x3" => "conv 3x3, backward",
            "conv in groups" => "conv in groups, backward",
            _ => "conv, backward",
        }
    }

    fn accesses(&self) -> Vec<Access> {
        let mut list = vec![
            read(self.forward.parameters),
            read(self.forward.input),
            read(self.d_output),
            write_or_add(self.gradients, self.accumulates),
        ];
        list.extend(self.d_input.map(|d| write_or_add(d.buffer, d.add)));
        if self
            .forward
            .activation
            .is_some_and(|a| a.slopes().is_some())
        {
            list.extend([read(self.forward.slopes), update(self.slope_gradients)]);
        }
        list
    }

    workspace_field!();

    slice_field!();

    fn largest_extent(&self) -> u64 {
        self.forward.largest_extent()
    }

    fn multiply_adds(&self) -> u64 {
        self.forward.cost() * (1 + u64::from(self.d_input.is_some()))
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        let d_input = self.d_input.map(|d| (d.buffer, self.forward.extent));
        d_input.into_iter().collect()
    }
}
