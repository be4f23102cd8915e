//! Sums of activations: a residual with LayerScale, and the sum of two gradients of one value.

use super::access::write_or_add;
use super::{Access, Destination, Extent, Operation, ParamRange, Slice, Tape, read, update, write};
use crate::plan::{BufferId, Error};

/// `a + gamma * b`, with one trainable gamma a channel, or 1.
#[derive(Clone, Debug)]
pub struct ScaledSum {
    /// Extent of inputs and output.
    pub extent: Extent,
    /// Channels C, without those that fill the last group.
    pub channels: usize,
    /// Channels of the buffers.
    pub stride: usize,
    /// gamma, `[C]`; `None` for a plain sum.
    pub gamma: Option<ParamRange>,
    /// The parameter buffer, f32.
    pub parameters: BufferId,
    /// `[N, h, w, stride]`, activation.
    pub a: BufferId,
    /// `[N, h, w, stride]`, activation.
    pub b: BufferId,
    /// `[N, h, w, stride]`, activation.
    pub output: BufferId,
}

/// Gradients of [`ScaledSum`] with respect to its inputs and gamma.
#[derive(Clone, Debug)]
pub struct ScaledSumBack {
    /// The forward operation.
    pub forward: ScaledSum,
    /// The gradient buffer of the parameters, f32.
    pub gradients: BufferId,
    /// Whether gamma's gradient is added to that of another operation with the same gamma.
    pub adds_gamma: bool,
    /// Gradient of the output.
    pub d_output: BufferId,
    /// Gradient of a; written or added to.
    pub d_a: Option<Destination>,
    /// Gradient of b; written or added to.
    pub d_b: Option<Destination>,
    /// The part of the micro-batch.
    pub slice: Slice,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl Operation for ScaledSum {
    fn label(&self) -> &'static str {
        "sum"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![
            read(self.parameters),
            read(self.a),
            read(self.b),
            write(self.output),
        ]
    }

    fn largest_extent(&self) -> u64 {
        self.extent.values(self.stride)
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent)]
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let back = ScaledSumBack {
            forward: self.clone(),
            gradients: tape.gradients(self.parameters)?,
            adds_gamma: self.gamma.is_some_and(|gamma| tape.shares_gradient(gamma)),
            d_output: tape.d_output(self.output)?,
            d_a: tape.destination(self.a)?,
            d_b: tape.destination(self.b)?,
            slice: tape.slice(),
            workspace: None,
        };
        tape.push(back.into());
        Ok(())
    }
}

impl Operation for ScaledSumBack {
    fn label(&self) -> &'static str {
        "sum, backward"
    }

    fn accesses(&self) -> Vec<Access> {
        let mut list = vec![
            read(self.forward.parameters),
            read(self.forward.b),
            read(self.d_output),
            update(self.gradients),
        ];
        let outputs = [self.d_a, self.d_b].into_iter().flatten();
        list.extend(outputs.map(|d| write_or_add(d.buffer, d.add)));
        list
    }

    workspace_field!();

    slice_field!();

    fn largest_extent(&self) -> u64 {
        self.forward.largest_extent()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        let outputs = [self.d_a, self.d_b].into_iter().flatten();
        outputs.map(|d| (d.buffer, self.forward.extent)).collect()
    }
}

/// Adds one buffer of activations' gradients to another, where two operations read one value.
#[derive(Clone, Debug)]
pub struct Accumulate {
    /// Extent of both.
    pub extent: Extent,
    /// Channels of both buffers.
    pub stride: usize,
    /// Added; `[N, h, w, stride]`, activation.
    pub from: BufferId,
    /// Added to; `[N, h, w, stride]`, activation.
    pub into: BufferId,
}

impl Operation for Accumulate {
    fn label(&self) -> &'static str {
        "sum of gradients"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![read(self.from), update(self.into)]
    }

    fn largest_extent(&self) -> u64 {
        self.extent.values(self.stride)
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.into, self.extent)]
    }
}
