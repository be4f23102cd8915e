//! The memory table of a plan: bytes by class, the arena, the peak moment. Text for people; the numbers are plain fields for
//! programs. Depends on the plan alone.

use super::{ALIGNMENT, Class, Plan};
use serde::Serialize;

/// One row: what, bytes, and whether it is part of the arena (rows outside it are host memory of the loader).
#[derive(Clone, Debug, Serialize)]
pub struct MemoryLine {
    /// What the bytes are for.
    pub what: String,
    /// How many.
    pub bytes: u64,
    /// Live-time sharing makes the arena smaller than the sum of its rows; rows with `shared` take part in that.
    pub shared: bool,
}

/// The table of one plan.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryTable {
    /// Rows by class; shared rows give the largest sum live at one moment.
    pub lines: Vec<MemoryLine>,
    /// What is allocated, exactly.
    pub arena_bytes: u64,
    /// The largest sum of live bytes: the lower bound of any layout.
    pub peak_bytes: u64,
    /// The operation at which it occurs.
    pub peak_operation: String,
}

impl Plan {
    /// The memory table.
    pub fn memory(&self) -> MemoryTable {
        let (peak_bytes, at) = self.peak();
        let lines = Class::ALL
            .iter()
            .filter_map(|&class| {
                let at_moment = |i: usize| -> u64 {
                    let live = self.buffers.iter().filter(|b| b.class == class && b.live.contains(&i));
                    live.map(|b| b.bytes.next_multiple_of(ALIGNMENT)).sum()
                };
                let bytes = (0..self.ops.len()).map(at_moment).max().unwrap_or(0);
                (bytes > 0).then(|| MemoryLine { what: class.label().to_string(), bytes, shared: !class.persistent() })
            })
            .collect();
        let peak_operation = self.ops.get(at).map(|op| format!("{at} {}", op.label())).unwrap_or_default();
        MemoryTable { lines, arena_bytes: self.arena_bytes, peak_bytes, peak_operation }
    }
}

/// Bytes as people read them: `5.9 MiB`; exact below 10 KiB.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 10 * 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::bytes_text;

    #[test]
    fn bytes_are_readable() {
        assert_eq!(bytes_text(10), "10 B");
        assert_eq!(bytes_text(1 << 20), "1.0 MiB");
        assert_eq!(bytes_text(12_488_000_000), "11.6 GiB");
    }
}
