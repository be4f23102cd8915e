//! SPAN's Conv3XC in its composed form: three convolutions in a row and a 1x1 convolution beside
//! them are linear, so together they are one 3x3 convolution.

use super::{Access, Extent, Operation, ParamRange, Tape, read, update, write};
use crate::plan::{BufferId, Error};

/// Parameter ranges of a Conv3XC from a to b channels; weights in PyTorch's order.
#[derive(Clone, Copy, Debug)]
pub struct ComposeParams {
    /// The 1x1 convolution beside the others: weight `[b, a, 1, 1]` and bias `[b]`.
    pub skip: [ParamRange; 2],
    /// 1x1: weight `[2a, a, 1, 1]` and bias `[2a]`.
    pub first: [ParamRange; 2],
    /// 3x3 without padding of its own: weight `[2b, 2a, 3, 3]` and bias `[2b]`.
    pub middle: [ParamRange; 2],
    /// 1x1: weight `[b, 2b, 1, 1]` and bias `[b]`.
    pub last: [ParamRange; 2],
}

/// Computes weight and bias of the 3x3 convolution with zero padding that equals
/// `last(middle(first(pad(x)))) + skip(x)`, where `pad` adds one ring of zeros.
#[derive(Clone, Debug)]
pub struct ComposeConv {
    /// Input channels a.
    pub cin: usize,
    /// Output channels b.
    pub cout: usize,
    /// Ranges of the eight tensors.
    pub params: ComposeParams,
    /// The parameter buffer, f32.
    pub parameters: BufferId,
    /// The composed weight `[b, a, 3, 3]`, then the bias `[b]`, f32.
    pub output: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// The chain rule of [`ComposeConv`]: gradients of the eight tensors from that of the composed
/// weight and bias.
#[derive(Clone, Debug)]
pub struct ComposeConvBack {
    /// The forward operation.
    pub forward: ComposeConv,
    /// Gradient of the composed weight and bias, f32, laid out as [`ComposeConv::output`].
    pub d_output: BufferId,
    /// The gradient buffer of the parameters, f32.
    pub gradients: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl ComposeConv {
    /// Elements of the composed weight.
    pub fn weight_len(&self) -> usize {
        9 * self.cin * self.cout
    }

    /// Multiply-adds of the composition.
    fn cost(&self) -> u64 {
        let (a, b) = (self.cin as u64, self.cout as u64);
        9 * (2 * a) * (2 * b) * a + 9 * a * (2 * b) * b
    }
}

impl Operation for ComposeConv {
    fn label(&self) -> &'static str {
        "composed weights"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![read(self.parameters), write(self.output)]
    }

    workspace_field!();

    fn largest_extent(&self) -> u64 {
        36 * self.cin as u64 * self.cout as u64
    }

    fn multiply_adds(&self) -> u64 {
        self.cost()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        Vec::new()
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let back = ComposeConvBack {
            forward: self.clone(),
            d_output: tape.gradients(self.output)?,
            gradients: tape.gradients(self.parameters)?,
            workspace: None,
        };
        tape.push(back.into());
        Ok(())
    }
}

impl Operation for ComposeConvBack {
    fn label(&self) -> &'static str {
        "composed weights, backward"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![
            read(self.forward.parameters),
            read(self.d_output),
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
        Vec::new()
    }
}
