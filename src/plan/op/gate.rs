//! Products of activations that act as gates.

use super::access::write_or_add;
use super::{Access, Destination, Extent, Operation, Tape, read, write};
use crate::plan::{BufferId, Error};

/// Which product a [`Gate`] computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GateKind {
    /// SPAN's parameter-free attention of `a` with the block's input `b`:
    /// `(a + b) * (sigmoid(a) - 0.5)`
    Attention,
    /// Stream's gate: the product of the first and the second half of a's channels, clamped to
    /// `[-limit, limit]`. It has no `b`.
    Halves {
        /// The largest magnitude.
        limit: f32,
    },
}

/// A product of activations, value by value.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Extent of inputs and output.
    pub extent: Extent,
    /// Channels of the output, without those that fill the last group.
    pub channels: usize,
    /// The product.
    pub kind: GateKind,
    /// `[N, h, w, C]`, or `[N, h, w, 2C]` for [`GateKind::Halves`], activation. C is a whole number
    /// of groups for the latter.
    pub a: BufferId,
    /// `[N, h, w, C]`, activation, for [`GateKind::Attention`].
    pub b: Option<BufferId>,
    /// `[N, h, w, C]`, activation.
    pub output: BufferId,
}

/// Gradients of [`Gate`] with respect to its inputs.
#[derive(Clone, Debug)]
pub struct GateBack {
    /// The forward operation.
    pub forward: Gate,
    /// Gradient of the output.
    pub d_output: BufferId,
    /// Gradient of a; written or added to.
    pub d_a: Destination,
    /// Gradient of b; written or added to.
    pub d_b: Option<Destination>,
}

impl Gate {
    /// Channels of the output buffer.
    pub fn stride(&self) -> usize {
        self.channels.next_multiple_of(super::CHANNEL_GROUP)
    }
}

impl Operation for Gate {
    fn label(&self) -> &'static str {
        "gate"
    }

    fn accesses(&self) -> Vec<Access> {
        let inputs = [Some(self.a), self.b].into_iter().flatten().map(read);
        inputs.chain([write(self.output)]).collect()
    }

    fn largest_extent(&self) -> u64 {
        2 * self.extent.values(self.stride())
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent)]
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let d_output = tape.d_output(self.output)?;
        let unneeded = || Error::Invalid("a gate of values that need no gradient".into());
        let d_a = tape.destination(self.a)?.ok_or_else(unneeded)?;
        let d_b = match self.b {
            Some(b) => tape.destination(b)?,
            None => None,
        };
        let forward = self.clone();
        tape.push(
            GateBack {
                forward,
                d_output,
                d_a,
                d_b,
            }
            .into(),
        );
        Ok(())
    }
}

impl Operation for GateBack {
    fn label(&self) -> &'static str {
        "gate, backward"
    }

    fn accesses(&self) -> Vec<Access> {
        let inputs = [Some(self.forward.a), self.forward.b, Some(self.d_output)];
        let outputs = [Some(self.d_a), self.d_b];
        let reads = inputs.into_iter().flatten().map(read);
        let writes = outputs.into_iter().flatten();
        reads
            .chain(writes.map(|d| write_or_add(d.buffer, d.add)))
            .collect()
    }

    fn largest_extent(&self) -> u64 {
        self.forward.largest_extent()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        let outputs = [Some(self.d_a), self.d_b];
        let outputs = outputs.into_iter().flatten();
        outputs.map(|d| (d.buffer, self.forward.extent)).collect()
    }
}
