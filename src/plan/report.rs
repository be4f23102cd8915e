//! The memory table of a plan: bytes by class, by layer and by operation, the peak, and the floor.
//! The numbers are plain fields, which `paragon plan` prints. Depends on the plan alone.

use super::{ALIGNMENT, Buffer, Class, PlanData, Precision};
use serde::Serialize;

/// One row of the memory table.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryLine {
    /// What the bytes are for.
    pub what: String,
    /// Number of bytes.
    pub bytes: u64,
    /// Whether other buffers may use the same bytes at other times. Such rows add up to more than
    /// the arena.
    pub shared: bool,
}

/// A buffer that is live while an operation runs.
#[derive(Clone, Debug, Serialize)]
pub struct LiveBuffer {
    /// The buffer's name.
    pub name: String,
    /// The name of its class.
    pub class: &'static str,
    /// Its bytes, alignment included.
    pub bytes: u64,
}

/// One operation of a step, and the buffers that are live while it runs.
#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    /// Number of the operation.
    pub operation: usize,
    /// The operation's name ([`Operation::label`](super::Operation::label)).
    pub label: &'static str,
    /// Live bytes, persistent buffers included.
    pub bytes: u64,
    /// The live buffers that are not persistent, largest first.
    pub live: Vec<LiveBuffer>,
}

/// One activation, gradient or loss buffer of a step.
#[derive(Clone, Debug, Serialize)]
pub struct LayerLine {
    /// The layer whose output the buffer is, or with a leading `d` that output's gradient.
    pub name: String,
    /// The name of its class.
    pub class: &'static str,
    /// Its bytes.
    pub bytes: u64,
    /// The first and the last operation that touch it.
    pub live: (usize, usize),
    /// Offset in the arena, bytes.
    pub offset: u64,
}

/// The memory table of one plan.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryTable {
    /// Type of activations.
    pub precision: Precision,
    /// One row per class; for shared rows, the most bytes of the class that are live at one time.
    pub lines: Vec<MemoryLine>,
    /// The allocated bytes, exactly.
    pub arena_bytes: u64,
    /// The persistent buffers and those of the operation that needs most: no order of these
    /// operations needs less.
    pub floor_bytes: u64,
    /// The operation with most live bytes: a lower bound of the arena for this order.
    pub peak: Moment,
}

impl PlanData {
    /// The name of a class in this plan's memory table.
    pub fn class_label(&self, class: Class) -> &'static str {
        match class {
            Class::Parameters if self.precision != Precision::F32 => "master weights",
            _ => class.label(),
        }
    }

    /// The memory table.
    pub fn memory(&self) -> MemoryTable {
        let lines = Class::ALL
            .iter()
            .filter_map(|&class| {
                let bytes = self
                    .live_bytes(|b| b.class == class)
                    .into_iter()
                    .max()
                    .unwrap_or(0);
                (bytes > 0).then(|| MemoryLine {
                    what: self.class_label(class).to_string(),
                    bytes,
                    shared: !class.persistent(),
                })
            })
            .collect();
        MemoryTable {
            precision: self.precision,
            lines,
            arena_bytes: self.arena_bytes,
            floor_bytes: self.floor(),
            peak: self.moment(self.peak().1),
        }
    }

    /// The buffers that are live while an operation runs.
    pub fn moment(&self, operation: usize) -> Moment {
        let alive: Vec<&Buffer> = self
            .buffers
            .iter()
            .filter(|b| b.room() > 0 && b.live.contains(&operation))
            .collect();
        let mut live: Vec<LiveBuffer> = alive
            .iter()
            .filter(|b| !b.class.persistent())
            .map(|b| LiveBuffer {
                name: b.name.clone(),
                class: b.class.label(),
                bytes: b.room(),
            })
            .collect();
        live.sort_by_key(|b| std::cmp::Reverse(b.bytes));
        let label = self.ops.get(operation).map_or("nothing", |op| op.label());
        Moment {
            operation,
            label,
            bytes: alive.iter().map(|b| b.room()).sum(),
            live,
        }
    }

    /// Every buffer that is neither persistent nor workspace, in the order of first use.
    pub fn layers(&self) -> Vec<LayerLine> {
        let shown = |b: &&Buffer| {
            !b.class.persistent() && b.class != Class::Workspace && b.parent.is_none()
        };
        let mut lines: Vec<LayerLine> = self
            .buffers
            .iter()
            .filter(shown)
            .map(|b| LayerLine {
                name: b.name.clone(),
                class: b.class.label(),
                bytes: b.bytes,
                live: (b.live.start, b.live.end.saturating_sub(1)),
                offset: b.offset,
            })
            .collect();
        lines.sort_by_key(|l| l.live);
        lines
    }

    /// See [`MemoryTable::floor_bytes`].
    fn floor(&self) -> u64 {
        let persistent: u64 = self
            .buffers
            .iter()
            .filter(|b| b.class.persistent())
            .map(Buffer::room)
            .sum();
        let needs = self.ops.iter().map(|op| {
            let mut ids: Vec<_> = op.all_accesses().iter().map(|a| a.buffer).collect();
            ids.sort_unstable();
            ids.dedup();
            let transient = ids
                .into_iter()
                .map(|id| self.buffer(id))
                .filter(|b| !b.class.persistent());
            transient
                .map(|b| b.bytes.next_multiple_of(ALIGNMENT))
                .sum::<u64>()
        });
        persistent + needs.max().unwrap_or(0)
    }
}
