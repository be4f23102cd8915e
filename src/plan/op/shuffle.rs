//! The end of networks without the Magic Kernel base: pixel shuffle, and the input enlarged by
//! nearest neighbour if the network adds that.

use super::{Access, Destination, Extent, Operation, Tape, read, write};
use crate::plan::{BatchLayout, BufferId, Error};

/// Pixel shuffle of `3 scale^2` channels to an image `scale` times larger: channel
/// `c * scale^2 + dy * scale + dx` goes to colour c at `(y * scale + dy, x * scale + dx)`. Adds the
/// input's pixel `(y, x)` if `base` is given.
#[derive(Clone, Debug)]
pub struct Shuffle {
    /// LQ extent; `output` is `scale` times larger along each side.
    pub extent: Extent,
    /// HR pixels per LQ pixel along one side.
    pub scale: usize,
    /// Channels of the input buffer: `3 scale^2` rounded up to a whole group.
    pub input_stride: usize,
    /// `[N, h, w, input_stride]`, activation.
    pub input: BufferId,
    /// The image that is enlarged by nearest neighbour and added, `[N, h, w, 3]`, f32.
    pub base: Option<BufferId>,
    /// `[N, H, W, 3]`, f32: the prediction, or with `target` the prediction less its target.
    pub output: BufferId,
    /// Subtracts the u8 HR patches of the batch, from the base first: the difference of base and
    /// target is exact or nearly so, and the gradient of L1 is the sign of the result.
    pub target: Option<BatchLayout>,
}

/// Gradients of [`Shuffle`] with respect to its inputs.
#[derive(Clone, Debug)]
pub struct ShuffleBack {
    /// The forward operation.
    pub forward: Shuffle,
    /// Gradient of the prediction, `[N, H, W, 3]`, f32.
    pub d_output: BufferId,
    /// Gradient of the input; written or added to.
    pub d_input: Destination,
    /// Gradient of the base, `[N, h, w, 3]`, f32; written if given.
    pub d_base: Option<BufferId>,
}

impl Operation for Shuffle {
    fn label(&self) -> &'static str {
        "pixel shuffle"
    }

    fn accesses(&self) -> Vec<Access> {
        let mut list = vec![read(self.input), write(self.output)];
        list.extend(self.base.map(read));
        let target = self.extent.scaled(self.scale).values(3);
        list.extend(self.target.map(|batch| read(batch.buffer).moving(target)));
        list
    }

    fn largest_extent(&self) -> u64 {
        self.extent.values(self.input_stride)
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent.scaled(self.scale))]
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let d_output = tape.d_output(self.output)?;
        let d_base = match self.base {
            Some(base) => tape.input_gradient(base)?,
            None => None,
        };
        let unneeded = || Error::Invalid("pixel shuffle of a value that needs no gradient".into());
        let d_input = tape.destination(self.input)?.ok_or_else(unneeded)?;
        let forward = self.clone();
        tape.push(
            ShuffleBack {
                forward,
                d_output,
                d_input,
                d_base,
            }
            .into(),
        );
        Ok(())
    }
}

impl Operation for ShuffleBack {
    fn label(&self) -> &'static str {
        "pixel shuffle, backward"
    }

    fn accesses(&self) -> Vec<Access> {
        let d_input = super::access::write_or_add(self.d_input.buffer, self.d_input.add);
        let mut list = vec![read(self.d_output), d_input];
        list.extend(self.d_base.map(write));
        list
    }

    fn largest_extent(&self) -> u64 {
        self.forward.largest_extent()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        let written = [Some(self.d_input.buffer), self.d_base];
        let written = written.into_iter().flatten();
        written.map(|id| (id, self.forward.extent)).collect()
    }
}
