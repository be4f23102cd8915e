//! The block of ParagonSR2 Stream as one operation: two depthwise convolutions of different
//! dilation, 1x1, a gate, 1x1, LayerScale and the residual.

use super::{Access, Extent, Operation, ParamRange, Slice, Tape, read, update, write};
use crate::plan::{BufferId, Error};

/// Parameter ranges of a Stream block; weights in PyTorch's order. F features, E = 2F hidden
/// channels.
#[derive(Clone, Copy, Debug)]
pub struct StreamParams {
    /// Depthwise 3x3 convolution: weight `[F, 1, 3, 3]` and bias `[F]`.
    pub dw1: [ParamRange; 2],
    /// Depthwise 3x3 convolution with dilation 3: weight `[F, 1, 3, 3]` and bias `[F]`.
    pub dw3: [ParamRange; 2],
    /// 1x1 convolution of both, dw1's channels first: weight `[F, 2F, 1, 1]` and bias `[F]`.
    pub fuse: [ParamRange; 2],
    /// 1x1 convolution F to 2E: weight `[2E, F, 1, 1]` and bias `[2E]`.
    pub proj: [ParamRange; 2],
    /// Depthwise 3x3 convolution: weight `[2E, 1, 3, 3]` and bias `[2E]`.
    pub gate: [ParamRange; 2],
    /// 1x1 convolution E to F: weight `[F, E, 1, 1]` and bias `[F]`.
    pub out: [ParamRange; 2],
    /// LayerScale, `[1, F, 1, 1]`.
    pub gamma: ParamRange,
}

/// `x + gamma * out(m)` with `m = clamp(a * b, -65504, 65504)`, where a and b are the halves of the
/// channels of `gate(proj(fuse(concat(dw1(x), dw3(x)))))`. Only the block's input is kept; the
/// backward pass recomputes the rest.
#[derive(Clone, Debug)]
pub struct StreamBlock {
    /// LQ extent of input and output.
    pub extent: Extent,
    /// F.
    pub features: usize,
    /// Ranges of the block's parameters.
    pub params: StreamParams,
    /// The parameter buffer, f32.
    pub parameters: BufferId,
    /// x, `[N, h, w, F]`, activation.
    pub input: BufferId,
    /// Output `[N, h, w, F]`, activation.
    pub output: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// Gradients of [`StreamBlock`] with respect to its parameters and its input.
#[derive(Clone, Debug)]
pub struct StreamBlockBack {
    /// The forward operation.
    pub forward: StreamBlock,
    /// The gradient buffer, f32; the ranges are those of the parameters.
    pub gradients: BufferId,
    /// Gradient of the output, `[N, h, w, F]`, activation.
    pub d_output: BufferId,
    /// Gradient of the input, `[N, h, w, F]`, activation; written.
    pub d_input: BufferId,
    /// The part of the micro-batch.
    pub slice: Slice,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl StreamBlock {
    /// Multiply-adds of the forward pass.
    fn cost(&self) -> u64 {
        let f = self.features;
        let weights = 2 * 9 * f + 2 * f * f + 4 * f * f + 9 * 4 * f + 2 * f * f;
        self.extent.values(weights)
    }
}

impl Operation for StreamBlock {
    fn label(&self) -> &'static str {
        "stream block"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![read(self.parameters), read(self.input), write(self.output)]
    }

    workspace_field!();

    fn largest_extent(&self) -> u64 {
        self.extent.values(4 * self.features)
    }

    fn multiply_adds(&self) -> u64 {
        self.cost()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent)]
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let d_output = tape.d_output(self.output)?;
        let back = StreamBlockBack {
            forward: self.clone(),
            gradients: tape.gradients(self.parameters)?,
            d_output,
            d_input: tape.write_gradient(self.input)?,
            slice: tape.slice(),
            workspace: None,
        };
        tape.push(back.into());
        Ok(())
    }
}

impl Operation for StreamBlockBack {
    fn label(&self) -> &'static str {
        "stream block, backward"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![
            read(self.forward.parameters),
            read(self.forward.input),
            read(self.d_output),
            write(self.d_input),
            update(self.gradients),
        ]
    }

    workspace_field!();

    slice_field!();

    fn largest_extent(&self) -> u64 {
        self.forward.largest_extent()
    }

    fn multiply_adds(&self) -> u64 {
        2 * self.forward.cost()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.d_input, self.forward.extent)]
    }
}
