//! The floor of a step: the fewest bytes that it must move and the fewest multiply-adds that it
//! must compute, operation by operation, if every input is read once and every output is written
//! once. Measured times are compared with the floor divided by the memory's bandwidth and the
//! processor's peak. Depends on the plan alone.

use super::op::Counted;
use super::{Access, Class, Fusion, PlanData};

/// The floor of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpFloor {
    /// Bytes read and written, workspace not counted.
    pub bytes: u64,
    /// Useful multiply-adds.
    pub multiply_adds: u64,
}

impl PlanData {
    /// The floor of operation `at`. Of an operation that may be fused with the one before it, the
    /// bytes that the pair does not move are not counted.
    ///
    /// # Panics
    /// If the plan has no operation `at`.
    pub fn floor_of(&self, at: usize) -> OpFloor {
        let op = &self.ops[at];
        let before = at.checked_sub(1).and_then(|before| self.fusion(before));
        let Fusion {
            not_read, absorbed, ..
        } = before.unwrap_or_default();
        let after = self.fusion(at).unwrap_or_default();
        let handed_on = after.not_read;
        let not_written = handed_on.filter(|&id| !self.used_after(id, at + 1));
        let accesses = op.accesses().into_iter();
        let moved = accesses
            .filter(|access| !absorbed && !after.delayed && Some(access.buffer) != not_written)
            .map(|access| Access {
                read: access.read && Some(access.buffer) != not_read,
                ..access
            });
        OpFloor {
            bytes: moved.map(|access| self.moved(access)).sum(),
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

    /// Bytes that one access moves.
    fn moved(&self, access: Access) -> u64 {
        let buffer = self.buffer(access.buffer);
        let once = match (access.bytes, buffer.class) {
            (Counted::Bytes(bytes), _) => bytes,
            (Counted::Whole, _) => buffer.bytes,
            (
                Counted::ByClass,
                Class::Workspace | Class::Metrics | Class::Parameters | Class::Gradients,
            ) => 0,
            (Counted::ByClass, _) => buffer.bytes,
        };
        once * (u64::from(access.read) + u64::from(access.write))
    }
}
