//! What the driver's assembler made of the kernels: registers, local memory and the blocks that a
//! multiprocessor holds at once, compared with the table that scripts/build_kernels.py wrote. The
//! driver compiles embedded PTX with its own assembler, which may need more registers, or spill
//! them, where the tested one did not. Depends on the plan's types.

use crate::plan::Precision;
use serde::Serialize;

/// The table of the kernels' registers on every generation of cards.
const TABLE: &str = include_str!("../../../kernels/ptx/RESOURCES.md");

/// A kernel as it was loaded, with the launch shape that it has in a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelResources {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Type of activations.
    pub precision: Precision,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Local memory of a thread, bytes: spilled registers, and arrays indexed at run time.
    pub local_bytes: u32,
    /// Blocks that a multiprocessor holds at once.
    pub blocks_at_once: u32,
    /// The registers in the table, for the nearest older generation; `None` if it has no row.
    pub listed_registers: Option<u32>,
    /// The bytes of local memory in the table.
    pub listed_local_bytes: Option<u32>,
    /// Blocks that fit with the listed registers; `None` if the card does not state its limits.
    pub expected_blocks: Option<u32>,
}

impl KernelResources {
    /// What is worse than the table, in words; `None` where nothing is.
    pub fn warning(&self) -> Option<String> {
        let mut worse = Vec::new();
        if let Some(listed) = self.listed_local_bytes.filter(|&l| self.local_bytes > l) {
            let local = self.local_bytes;
            worse.push(format!("{local} bytes of local memory, {listed} listed"));
        }
        if let Some(listed) = self.listed_registers.filter(|&l| self.registers > l) {
            worse.push(format!("{} registers, {listed} listed", self.registers));
        }
        if let Some(expected) = self.expected_blocks.filter(|&e| self.blocks_at_once < e) {
            let blocks = self.blocks_at_once;
            worse.push(format!("{blocks} blocks at once, {expected} expected"));
        }
        let (kernel, precision) = (self.kernel, self.precision);
        (!worse.is_empty()).then(|| format!("{kernel} ({precision}): {}", worse.join("; ")))
    }
}

/// The table's registers and bytes of local memory of a kernel, of the newest generation of cards
/// that is not newer than `capability` (compute capability x 10).
pub(super) fn listed(kernel: &str, precision: Precision, capability: i32) -> Option<(u32, u32)> {
    let rows = || TABLE.lines().filter(|line| line.starts_with('|'));
    let cells = |row: &'static str| row.split('|').map(|cell| cell.trim().trim_matches('`'));
    let column = cells(rows().next()?)
        .enumerate()
        .filter_map(|(at, cell)| Some((cell.strip_prefix("sm_")?.parse::<i32>().ok()?, at)))
        .filter(|&(generation, _)| generation <= capability)
        .max()?
        .1;
    let precision = precision.to_string();
    let cell = rows()
        .map(|row| cells(row).collect::<Vec<_>>())
        .find(|row| row[1] == kernel && row[2] == precision)?[column];
    let (registers, local) = cell.split_once('+').unwrap_or((cell, "0"));
    Some((registers.parse().ok()?, local.parse().ok()?))
}

/// What a multiprocessor has for the blocks that it holds at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Multiprocessor {
    /// Registers of 32 bits.
    pub registers: u32,
    /// Shared memory, bytes.
    pub shared_bytes: u32,
    /// Shared memory that the driver takes for every block, bytes.
    pub reserved_bytes: u32,
    /// Threads.
    pub threads: u32,
    /// Blocks.
    pub blocks: u32,
}

impl Multiprocessor {
    /// Blocks that fit, by the rules of the CUDA programming guide: a warp's registers come in units
    /// of 256 from one of four equal parts; shared memory comes in units of 128 bytes. `None` if the
    /// card does not state its limits.
    pub fn blocks(self, registers: u32, threads: u32, shared_bytes: u32) -> Option<u32> {
        if self.registers == 0 || self.shared_bytes == 0 || self.threads == 0 {
            return None;
        }
        let of_warp = (registers * 32).next_multiple_of(256).max(256);
        let by_registers = 4 * (self.registers / 4 / of_warp) / threads.div_ceil(32);
        let of_block = shared_bytes.next_multiple_of(128) + self.reserved_bytes;
        let by_shared = self.shared_bytes / of_block.max(1);
        let most = if self.blocks > 0 { self.blocks } else { 16 };
        let fit = by_registers.min(by_shared).min(self.threads / threads);
        Some(fit.min(most))
    }
}

/// Sizes of shared memory, KiB, between which a multiprocessor divides its cache, for a compute
/// capability x 10 (CUDA programming guide, "Compute Capabilities").
fn carveouts(capability: i32) -> &'static [u32] {
    match capability {
        ..80 => &[32, 64],
        80 | 87 => &[0, 8, 16, 32, 64, 100, 132, 164],
        86 | 89 | 120.. => &[0, 8, 16, 32, 64, 100],
        _ => &[0, 8, 16, 32, 64, 100, 132, 164, 196, 228],
    }
}

/// The percent of shared memory to ask for, so that a multiprocessor has `needed` bytes of it and
/// the rest of the cache is for loads. The driver rounds up to the next size that the card has, so
/// this rounds down from that size.
pub(super) fn carveout(capability: i32, needed: u64) -> i32 {
    let sizes = carveouts(capability);
    let most = sizes[sizes.len() - 1];
    let size = sizes
        .iter()
        .find(|&&size| u64::from(size) << 10 >= needed)
        .copied()
        .unwrap_or(most);
    (100 * size / most) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    const GA102: Multiprocessor = Multiprocessor {
        registers: 65_536,
        shared_bytes: 102_400,
        reserved_bytes: 1024,
        threads: 1536,
        blocks: 16,
    };

    #[test]
    fn the_table_is_read_for_the_nearest_older_card() {
        let of = |kernel, precision, capability| listed(kernel, precision, capability);
        let turing = of("nano_block", Precision::Fp16, 75).unwrap();
        let newest = of("nano_block", Precision::Bf16, 120).unwrap();
        assert!(turing.0 > 32 && turing.1 == 0, "{turing:?}");
        assert_eq!(Some(newest), of("nano_block", Precision::Bf16, 90));
        // bf16 has no column for sm_75
        assert_eq!(of("nano_block", Precision::Bf16, 75), None);
        assert_eq!(of("nano_block", Precision::Bf16, 70), None);
        assert_eq!(of("no_kernel", Precision::F32, 90), None);
        let score = of("structural_score", Precision::F32, 90).unwrap();
        assert_eq!(score.1, 40, "bytes of local memory");
    }

    #[test]
    fn blocks_at_once_follow_from_registers_shared_memory_and_threads() {
        // 116 registers: four warps in each quarter; and twice (50,088 + 1,024) of 102,400 bytes
        assert_eq!(GA102.blocks(116, 256, 50_088), Some(2));
        assert_eq!(GA102.blocks(116, 256, 50_300), Some(1));
        assert_eq!(GA102.blocks(129, 256, 0), Some(1));
        assert_eq!(GA102.blocks(80, 256, 27_000), Some(3));
        assert_eq!(GA102.blocks(32, 256, 0), Some(6));
        let unknown = Multiprocessor {
            registers: 0,
            ..GA102
        };
        assert_eq!(unknown.blocks(32, 256, 0), None);
    }

    #[test]
    fn what_is_worse_than_the_table_is_a_warning() {
        let right = KernelResources {
            kernel: "conv",
            precision: Precision::Bf16,
            threads: 256,
            shared_bytes: 0,
            registers: 60,
            local_bytes: 0,
            blocks_at_once: 4,
            listed_registers: Some(60),
            listed_local_bytes: Some(0),
            expected_blocks: Some(4),
        };
        assert_eq!(right.warning(), None);
        let wrong = KernelResources {
            registers: 72,
            local_bytes: 16,
            blocks_at_once: 3,
            ..right
        };
        let text = wrong.warning().unwrap();
        for words in [
            "conv (bf16)",
            "72 registers, 60",
            "16 bytes",
            "3 blocks at once, 4",
        ] {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn the_cache_is_divided_at_the_next_size_that_a_card_has() {
        let two_blocks = 2 * (50_088 + 1_024);
        assert_eq!(carveout(75, 64 << 10), 100);
        assert_eq!(carveout(80, two_blocks), 60);
        assert_eq!(carveout(86, two_blocks), 100);
        assert_eq!(carveout(90, two_blocks), 43);
        assert_eq!(carveout(90, (100 << 10) + 1), 57);
        assert_eq!(carveout(120, 33 << 10), 64);
        assert_eq!(carveout(90, 1 << 30), 100);
    }
}
