//! Activations side by side along the channels.

use super::access::write_or_add;
use super::{Access, CHANNEL_GROUP, Destination, Extent, Operation, Tape, read, write};
use crate::plan::{BufferId, Error};

/// Copies the channels of several activations into one. The channels that fill the last group of a
/// part are left out.
#[derive(Clone, Debug)]
pub struct Concat {
    /// Extent of all parts and of the output.
    pub extent: Extent,
    /// The parts and their channels, `[N, h, w, channels rounded up]`, activation.
    pub parts: Vec<(BufferId, usize)>,
    /// `[N, h, w, sum of channels rounded up]`, activation.
    pub output: BufferId,
}

/// Gradients of [`Concat`] with respect to its parts.
#[derive(Clone, Debug)]
pub struct ConcatBack {
    /// The forward operation.
    pub forward: Concat,
    /// Gradient of the output.
    pub d_output: BufferId,
    /// Gradients of the parts, in their order; each written or added to, if it is needed.
    pub d_parts: Vec<Option<Destination>>,
}

impl Concat {
    /// Channels of the output, without those that fill the last group.
    pub fn channels(&self) -> usize {
        self.parts.iter().map(|&(_, channels)| channels).sum()
    }

    /// Channels of the output buffer.
    pub fn stride(&self) -> usize {
        self.channels().next_multiple_of(CHANNEL_GROUP)
    }
}

impl Operation for Concat {
    fn label(&self) -> &'static str {
        "concatenation"
    }

    fn accesses(&self) -> Vec<Access> {
        let parts = self.parts.iter().map(|&(part, _)| read(part));
        parts.chain([write(self.output)]).collect()
    }

    fn largest_extent(&self) -> u64 {
        self.extent.values(self.stride())
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent)]
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let d_output = tape.d_output(self.output)?;
        let parts = self.parts.iter();
        let d_parts = parts.map(|&(part, _)| tape.destination(part));
        let back = ConcatBack {
            forward: self.clone(),
            d_output,
            d_parts: d_parts.collect::<Result<_, _>>()?,
        };
        tape.push(back.into());
        Ok(())
    }
}

impl Operation for ConcatBack {
    fn label(&self) -> &'static str {
        "concatenation, backward"
    }

    fn accesses(&self) -> Vec<Access> {
        let parts = self.d_parts.iter().flatten();
        let writes = parts.map(|d| write_or_add(d.buffer, d.add));
        [read(self.d_output)].into_iter().chain(writes).collect()
    }

    fn largest_extent(&self) -> u64 {
        self.forward.largest_extent()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        let parts = self.d_parts.iter().flatten();
        parts.map(|d| (d.buffer, self.forward.extent)).collect()
    }
}
