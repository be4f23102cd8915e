//! Functions of single values. A convolution applies one while it reads its input (see
//! [`Conv`](super::Conv)), so that only the values before it are stored; where no convolution
//! reads the result, [`Activate`] is an operation of its own.

use super::access::write_or_add;
use super::{Access, Destination, Extent, Operation, ParamRange, Slice, Tape, read, update, write};
use crate::plan::{BufferId, Error};

/// A function of single values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// max(x, 0)
    Relu,
    /// x, or `slope * x` where x is negative
    LeakyRelu {
        /// The fixed slope.
        slope: f32,
    },
    /// x, or `slope[c] * x` where x is negative: one trainable slope a channel
    PRelu {
        /// The slopes, `[C]`.
        slopes: ParamRange,
    },
    /// x * sigmoid(x)
    Silu,
    /// 0.5 x (1 + erf(x / sqrt 2)), the exact form
    Gelu,
    /// `(x - mean[c]) * factor` for each of three channels
    Normalize {
        /// What is subtracted from R, G and B.
        mean: [f32; 3],
        /// The factor.
        factor: f32,
    },
}

impl Activation {
    /// The trainable slopes, if it has any.
    pub fn slopes(&self) -> Option<ParamRange> {
        match *self {
            Activation::PRelu { slopes } => Some(slopes),
            _ => None,
        }
    }
}

/// Applies an [`Activation`] to every value.
#[derive(Clone, Debug)]
pub struct Activate {
    /// Extent of input and output.
    pub extent: Extent,
    /// Channels C, without those that fill the last group.
    pub channels: usize,
    /// Channels of both buffers.
    pub stride: usize,
    /// The function.
    pub activation: Activation,
    /// The parameter buffer, f32, for the slopes.
    pub parameters: BufferId,
    /// x, `[N, h, w, stride]`, activation.
    pub input: BufferId,
    /// `[N, h, w, stride]`, activation.
    pub output: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// Gradients of [`Activate`] with respect to its input and its slopes.
#[derive(Clone, Debug)]
pub struct ActivateBack {
    /// The forward operation.
    pub forward: Activate,
    /// The gradient buffer, f32, for the slopes.
    pub gradients: BufferId,
    /// Gradient of the output.
    pub d_output: BufferId,
    /// Gradient of the input; written or added to.
    pub d_input: Destination,
    /// The part of the micro-batch.
    pub slice: Slice,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl Operation for Activate {
    fn label(&self) -> &'static str {
        "activation"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![read(self.parameters), read(self.input), write(self.output)]
    }

    workspace_field!();

    fn largest_extent(&self) -> u64 {
        self.extent.values(self.stride)
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent)]
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let d_output = tape.d_output(self.output)?;
        let Some(d_input) = tape.destination(self.input)? else {
            return Ok(());
        };
        let back = ActivateBack {
            forward: self.clone(),
            gradients: tape.gradients(self.parameters)?,
            d_output,
            d_input,
            slice: tape.slice(),
            workspace: None,
        };
        tape.push(back.into());
        Ok(())
    }
}

impl Operation for ActivateBack {
    fn label(&self) -> &'static str {
        "activation, backward"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![
            read(self.forward.parameters),
            read(self.forward.input),
            read(self.d_output),
            write_or_add(self.d_input.buffer, self.d_input.add),
            update(self.gradients),
        ]
    }

    workspace_field!();

    slice_field!();

    fn largest_extent(&self) -> u64 {
        self.forward.largest_extent()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.d_input.buffer, self.forward.extent)]
    }
}
