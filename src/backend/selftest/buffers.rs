//! Which buffers of an operation two backends have in common. Depends on the plan alone.

use crate::backend::Error;
use crate::plan::{BufferId, Extent, Op, Plan};
use anyhow::{Result, bail};

/// A buffer of an operation that the CPU's plan and the device's plan both have.
#[derive(Clone, Copy, Debug)]
pub struct SharedBuffer {
    /// Its id in the CPU's plan.
    pub cpu: BufferId,
    /// Its id in the device's plan.
    pub device: BufferId,
    /// Whether the operation reads it.
    pub read: bool,
    /// Whether the operation writes it.
    pub write: bool,
}

/// The buffers of operation `at`, in the order in which [`Op::all_accesses`] lists them, without those
/// that a backend lays out for itself: workspace, carried sums and the folded convolution.
///
/// # Errors
/// [`Error::Misuse`] if the plans are not of the same step.
pub fn shared_buffers(cpu: &Plan, device: &Plan, at: usize) -> Result<Vec<SharedBuffer>> {
    let list = |plan: &Plan| -> Option<Vec<_>> {
        let op = plan.ops.get(at)?;
        let own: Vec<BufferId> = op.sums().chain(op.prepared()).collect();
        let accesses = op.all_accesses().into_iter();
        Some(accesses.filter(|a| !own.contains(&a.buffer)).collect())
    };
    let (a, b) = match (list(cpu), list(device)) {
        (Some(a), Some(b)) if a.len() == b.len() => (a, b),
        _ => bail!(Error::Misuse("the plans are not of the same step".into())),
    };
    Ok(a.iter()
        .zip(&b)
        .map(|(a, b)| SharedBuffer {
            cpu: a.buffer,
            device: b.buffer,
            read: a.read,
            write: a.write,
        })
        .collect())
}

/// Whether the device stores with 16 bits the values that the CPU stores as f32.
///
/// # Panics
/// If a buffer is not of its plan.
pub fn stores_halves(cpu: &Plan, a: BufferId, device: &Plan, b: BufferId) -> bool {
    cpu.buffer(a).bytes == 2 * device.buffer(b).bytes
}

/// The extent of an activation or image that an operation writes; `None` for parameters, gradients
/// and metrics.
pub(super) fn written_extent(op: &Op, buffer: BufferId) -> Option<Extent> {
    let written = op.written();
    let found = written.into_iter().find(|&(id, _)| id == buffer);
    found.map(|(_, extent)| extent)
}
