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

/// The buffers of operation `at`, in the order in which [`Op::accesses`] lists them, without those
/// that a backend lays out for itself: workspace, carried sums and the folded convolution.
///
/// # Errors
/// [`Error::Misuse`] if the plans are not of the same step.
pub fn shared_buffers(cpu: &Plan, device: &Plan, at: usize) -> Result<Vec<SharedBuffer>> {
    let list = |plan: &Plan| -> Option<Vec<_>> {
        let op = plan.ops.get(at)?;
        let folded = if let Op::Reconstruct(reconstruct) = op {
            reconstruct.folded.map(|folded| folded.buffer)
        } else {
            None
        };
        let own: Vec<BufferId> = op.sums().chain(folded).collect();
        Some(op.accesses().filter(|a| !own.contains(&a.buffer)).collect())
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
    let (extent, written) = match op {
        Op::Unpack(o) => (
            Extent {
                n: o.batch.count,
                h: o.batch.lq.0,
                w: o.batch.lq.1,
            },
            [Some(o.output), None],
        ),
        Op::Conv(o) => (o.extent, [Some(o.output), None]),
        Op::ConvBack(o) => (o.forward.extent, [o.d_input, None]),
        Op::NanoBlock(o) => (o.extent, [Some(o.output), None]),
        Op::NanoBlockBack(o) => (o.forward.extent, [Some(o.d_input), None]),
        Op::Reconstruct(o) => (o.extent.scaled(o.scale), [Some(o.output), None]),
        Op::ReconstructBack(o) => (o.forward.extent, [Some(o.d_features), o.d_input]),
        Op::PixelLoss(o) => (o.extent, [Some(o.d_prediction), None]),
        Op::StructuralLoss(o) => (o.extent, [Some(o.d_prediction), None]),
        Op::Update(_) => return None,
    };
    written.contains(&Some(buffer)).then_some(extent)
}
