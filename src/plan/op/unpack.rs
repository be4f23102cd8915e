//! Staged u8 patches to floats: the first operation of a step.

use super::{Access, Extent, Fusion, Op, Operation, read, write};
use crate::plan::{BatchLayout, BufferId};

/// Converts the u8 LQ patches of the staged batch to floats in [0, 1], with each patch's
/// augmentation applied.
#[derive(Clone, Debug)]
pub struct Unpack {
    /// The staged batch.
    pub batch: BatchLayout,
    /// The network's input `[N, h, w, 3]`, f32.
    pub output: BufferId,
}

impl Operation for Unpack {
    fn label(&self) -> &'static str {
        "unpack"
    }

    fn accesses(&self) -> Vec<Access> {
        let bytes = self.batch.lq_bytes() as u64;
        vec![read(self.batch.buffer).moving(bytes), write(self.output)]
    }

    fn largest_extent(&self) -> u64 {
        self.batch.bytes() as u64
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.batch.extent())]
    }

    /// A convolution may convert the pixels while it loads them.
    fn fusion(&self, next: &Op) -> Option<Fusion> {
        match next {
            Op::Conv(conv) if conv.input == self.output => Some(Fusion {
                not_read: Some(self.output),
                ..Fusion::default()
            }),
            _ => None,
        }
    }
}
