//! The block of ParagonSR2 Nano as one operation: 1x1, depthwise 3x3, GELU, 1x1, LayerScale and
//! the residual.

use super::{Access, Extent, Operation, ParamRange, Tape, read, update, write};
use crate::plan::{BufferId, Error};

/// Parameter ranges of a Nano block; weights in PyTorch's order.
#[derive(Clone, Copy, Debug)]
pub struct NanoParams {
    /// 1x1 convolution F to 2F: `[2F, F, 1, 1]`.
    pub conv1_weight: ParamRange,
    /// Its bias, `[2F]`.
    pub conv1_bias: ParamRange,
    /// Depthwise 3x3 convolution: `[2F, 1, 3, 3]`.
    pub dw_weight: ParamRange,
    /// Its bias, `[2F]`.
    pub dw_bias: ParamRange,
    /// 1x1 convolution 2F to F: `[F, 2F, 1, 1]`.
    pub conv2_weight: ParamRange,
    /// Its bias, `[F]`.
    pub conv2_bias: ParamRange,
    /// LayerScale, `[1, F, 1, 1]`.
    pub gamma: ParamRange,
}

/// `x + gamma * conv2(gelu(dw(conv1(x))))`: 1x1 `F -> 2F`, depthwise 3x3 with zero padding, exact
/// GELU, 1x1 `2F -> F`, LayerScale, residual. Only the block's input is kept; the backward pass
/// recomputes the rest.
#[derive(Clone, Debug)]
pub struct NanoBlock {
    /// LQ extent of input and output.
    pub extent: Extent,
    /// F.
    pub features: usize,
    /// Ranges of the block's parameters.
    pub params: NanoParams,
    /// The parameter buffer, f32.
    pub parameters: BufferId,
    /// x, `[N, h, w, F]`, activation.
    pub input: BufferId,
    /// Output `[N, h, w, F]`, activation.
    pub output: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// Gradients of [`NanoBlock`] with respect to its parameters and its input.
#[derive(Clone, Debug)]
pub struct NanoBlockBack {
    /// The forward operation.
    pub forward: NanoBlock,
    /// The gradient buffer, f32; the ranges are those of the parameters.
    pub gradients: BufferId,
    /// Gradient of the output, `[N, h, w, F]`, activation.
    pub d_output: BufferId,
    /// Gradient of the input, `[N, h, w, F]`, activation; written.
    pub d_input: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl NanoBlock {
    /// Multiply-adds of the forward pass.
    fn cost(&self) -> u64 {
        let hidden = 2 * self.features;
        (self.extent.pixels() * (hidden * hidden + 9 * hidden)) as u64
    }
}

impl Operation for NanoBlock {
    fn label(&self) -> &'static str {
        "nano block"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![read(self.parameters), read(self.input), write(self.output)]
    }

    workspace_field!();

    fn largest_extent(&self) -> u64 {
        self.extent.values(2 * self.features)
    }

    fn multiply_adds(&self) -> u64 {
        self.cost()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent)]
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let d_output = tape.d_output(self.output)?;
        let back = NanoBlockBack {
            forward: self.clone(),
            gradients: tape.gradients(self.parameters)?,
            d_output,
            d_input: tape.write_gradient(self.input)?,
            workspace: None,
        };
        tape.push(back.into());
        Ok(())
    }
}

impl Operation for NanoBlockBack {
    fn label(&self) -> &'static str {
        "nano block, backward"
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
