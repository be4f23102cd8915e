//! The floor of a step: the fewest bytes that it must move and the fewest multiply-adds that it
//! must compute, operation by operation, if every input is read once and every output is written
//! once. Measured times are compared with the floor divided by the memory's bandwidth and the
//! processor's peak. Depends on the plan alone.

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
    /// The floor of operation `at`. It has no bytes for a loss that is fused into the operation
    /// before it, and none for reading the input of a convolution that is fused with
    /// [`Op::Unpack`].
    ///
    /// # Panics
    /// If the plan has no operation `at`.
    pub fn floor_of(&self, at: usize) -> OpFloor {
        let op = &self.ops[at];
        if at > 0 && self.fused_loss(at - 1).is_some() {
            return OpFloor {
                bytes: 0,
                multiply_adds: op.multiply_adds(),
            };
        }
        let fused = at > 0 && self.fuses_unpack(at - 1);
        let moves = |access: &Access| match op {
            Op::Conv(conv) => !fused || access.buffer != conv.input,
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

    /// Bytes that one access of an operation moves.
    fn moved(&self, op: &Op, access: Access) -> u64 {
        let buffer = self.buffer(access.buffer);
        let times = u64::from(access.read) + u64::from(access.write);
        let once = match (op, buffer.class) {
            (_, Class::Workspace | Class::Metrics) => 0,
            // the buffer holds all layers, and one layer's weights are a few KiB
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
