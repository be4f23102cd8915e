//! The memory table of a plan: bytes by class, by layer and over time, the peak moment, the floor.
//! Text for people; the numbers are plain fields for programs. Depends on the plan alone.

use super::{ALIGNMENT, Buffer, Class, PlanData, Precision};
use serde::Serialize;

/// One row: what, bytes, and whether its bytes are shared with other rows by lifetime.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryLine {
    /// What the bytes are for.
    pub what: String,
    /// How many.
    pub bytes: u64,
    /// Live-time sharing makes the arena smaller than the sum of its rows; rows with `shared` take
    /// part in that.
    pub shared: bool,
}

/// A buffer that is live at a moment.
#[derive(Clone, Debug, Serialize)]
pub struct LiveBuffer {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub class: &'static str,
    /// Its bytes, aligned.
    pub bytes: u64,
}

/// One operation of a step, and what lives while it runs.
#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    /// Number of the operation.
    pub operation: usize,
    /// What it does.
    pub label: &'static str,
    /// Live bytes.
    pub bytes: u64,
    /// The live buffers that come and go within a step, largest first.
    pub live: Vec<LiveBuffer>,
}

/// One activation, gradient or loss buffer of a step.
#[derive(Clone, Debug, Serialize)]
pub struct LayerLine {
    /// The layer it is the output (or `d`, the gradient) of.
    pub name: String,
    /// What it is for.
    pub class: &'static str,
    /// Its bytes.
    pub bytes: u64,
    /// First and last operation that touch it.
    pub live: (usize, usize),
    /// Where it lies in the arena.
    pub offset: u64,
}

/// The table of one plan.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryTable {
    /// Type of activations.
    pub precision: Precision,
    /// Rows by class; shared rows give the largest sum live at one moment.
    pub lines: Vec<MemoryLine>,
    /// What is allocated, exactly.
    pub arena_bytes: u64,
    /// What outlives a step, and the buffers of its greediest operation: no order of these
    /// operations needs less.
    pub floor_bytes: u64,
    /// The moment with most live bytes: the lower bound of any layout.
    pub peak: Moment,
}

impl PlanData {
    /// The name of a class in this plan.
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

    /// What lives while an operation runs.
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

    /// Every buffer that comes and goes within a step, workspace left out, in the order of their
    /// first use.
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

    fn floor(&self) -> u64 {
        let persistent: u64 = self
            .buffers
            .iter()
            .filter(|b| b.class.persistent())
            .map(Buffer::room)
            .sum();
        let needs = self.ops.iter().map(|op| {
            let mut ids: Vec<_> = op.accesses().map(|a| a.buffer).collect();
            ids.sort_unstable();
            ids.dedup();
            let passing = ids
                .into_iter()
                .map(|id| self.buffer(id))
                .filter(|b| !b.class.persistent());
            passing
                .map(|b| b.bytes.next_multiple_of(ALIGNMENT))
                .sum::<u64>()
        });
        persistent + needs.max().unwrap_or(0)
    }
}
