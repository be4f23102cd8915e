//! The least that a step must move and compute, operation by operation: every input read once,
//! every output written once, nothing else. What a step takes is compared with this divided by
//! bandwidth and peak. Depends on the plan alone.

use super::{Access, Class, Op, PlanData};

/// The floor of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpFloor {
    /// Bytes read and written, workspace not counted.
    pub bytes: u64,
    /// Useful multiply-adds.
    pub multiply_adds: u64,
}

impl PlanData {
    /// The floor of operation `at`; nothing for a loss that the operation before computes on its
    /// way, nor for reading what is unpacked on the way.
    pub fn floor_of(&self, at: usize) -> OpFloor {
        let op = &self.ops[at];
        if at > 0 && self.loss_on_the_way(at - 1).is_some() {
            return OpFloor {
                bytes: 0,
                multiply_adds: op.multiply_adds(),
            };
        }
        let on_the_way = at > 0 && self.unpacks_on_the_way(at - 1);
        let moves = |access: &Access| match op {
            Op::Conv(conv) => !on_the_way || access.buffer != conv.input,
            _ => true,
        };
        let bytes = op
            .accesses()
            .filter(moves)
            .map(|access| self.moved(op, access))
            .sum();
        OpFloor {
            bytes,
            multiply_adds: op.multiply_adds(),
        }
    }

    /// The floor of the whole step: one micro-batch and the update.
    pub fn floor_of_step(&self) -> OpFloor {
        (0..self.ops.len()).map(|at| self.floor_of(at)).fold(
            OpFloor {
                bytes: 0,
                multiply_adds: 0,
            },
            |a, b| OpFloor {
                bytes: a.bytes + b.bytes,
                multiply_adds: a.multiply_adds + b.multiply_adds,
            },
        )
    }

    fn moved(&self, op: &Op, access: Access) -> u64 {
        let buffer = self.buffer(access.buffer);
        let times = u64::from(access.read) + u64::from(access.write);
        let once = match (op, buffer.class) {
            (_, Class::Workspace | Class::Metrics) => 0,
            // a layer's weights are a few KiB of a buffer that holds all layers'
            (Op::Update(_), Class::Parameters | Class::Gradients) => buffer.bytes,
            (_, Class::Parameters | Class::Gradients) => 0,
            (Op::Unpack(o), Class::Batch) => o.batch.lq_bytes() as u64,
            (Op::Reconstruct(o), Class::Batch) => 3 * o.extent.scaled(o.scale).pixels() as u64,
            (Op::StructuralLoss(o), Class::Batch) => 3 * o.extent.pixels() as u64,
            (Op::StructuralLoss(o), _) if o.workspace == Some(access.buffer) => 0,
            (Op::PixelLoss(o), _) if o.workspace == Some(access.buffer) => 0,
            _ => buffer.bytes,
        };
        once * times
    }
}
