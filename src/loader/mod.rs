//! The loader: its threads read records of one or more sets of shards into a fixed number of
//! batches, in an order that is a pure function of the seed. Depends on `shard::reader`,
//! `host_memory` and the augmentation codes. Promises a memory bound that is known before the
//! start, the same batches for any number of threads and ranks, and that no thread outlives the
//! loader.

#[doc(hidden)]
pub mod bench;
mod conversion;
mod degrade;
mod order;
mod permutation;
#[doc(hidden)]
pub mod quality;
mod quotas;
mod ring;
mod set_order;
mod slot;
mod sources;

pub use crate::sys::host_memory::Fence;
pub use conversion::{Conversion, ElementType, PixelLayout};
pub use ring::{Loader, LoaderStats};
pub use slot::Batch;
pub use sources::Sources;

use crate::degrade::Recipe;
use crate::shard::reader::Io;
use crate::support::limits::{MAX_LOADER_SLOTS, MAX_LOADER_THREADS};
use crate::support::text::bytes_text;
use crate::sys;
use anyhow::{Result, bail, ensure};
use conversion::Converter;
use degrade::SampleDegrader;
use order::Draws;
use std::sync::Arc;

/// Stack of a loader thread, bytes; decoding needs a few KiB of it.
pub const STACK_BYTES: usize = 512 << 10;

/// Slots that keep `threads` threads busy: each thread fills one, and of three more one is ready,
/// one is being copied to a device and one is being computed on.
pub fn usual_slots(threads: usize) -> usize {
    threads.saturating_add(3).min(MAX_LOADER_SLOTS)
}

/// How records are read from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum IoChoice {
    /// `Mmap` if the shards are on a local disk and fit into free memory, otherwise `Pread`.
    Auto,
    /// Through a memory map, without a copy; a disk error ends the process.
    Mmap,
    /// By system calls; a disk or network error becomes an error message.
    Pread,
}

/// What happens when a record is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum OnCorrupt {
    /// The batch is an error that names the record.
    #[default]
    Stop,
    /// Another record takes its place, always the same one; every substitution is counted and every
    /// damaged record is reported once.
    Substitute,
}

/// What the processes that share the samples take in turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turns {
    /// Samples: a batch of one process is spread over all of the order.
    #[default]
    Samples,
    /// Batches: batch `n` of rank `r` of `R` is batch `n R + r` of a process that is alone.
    Batches,
}

/// What a loader delivers, and how.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Pairs in a batch.
    pub batch: usize,
    /// Side of the LQ patches that are delivered, pixels; if it is below the stored size, an
    /// aligned random crop is drawn for every sample.
    pub lq_size: usize,
    /// Threads that read and decode.
    pub threads: usize,
    /// Batches that exist at once: being filled, ready, held by the caller, or being copied to a
    /// device.
    pub slots: usize,
    /// Key of the order and of all draws.
    pub seed: u64,
    /// Mirror left-right with probability 1/2.
    pub hflip: bool,
    /// Mirror top-bottom and swap rows and columns, each with probability 1/2.
    pub rot: bool,
    /// Number of the first batch: where a resumed run continues.
    pub start: u64,
    /// Number of this process among those that share the samples, from 0.
    pub rank: u64,
    /// Processes that share the samples: this one takes the samples `rank`, `rank + ranks`, ..., or
    /// the batches with these numbers, see [`LoaderConfig::turns`].
    pub ranks: u64,
    /// What the processes take in turns.
    pub turns: Turns,
    /// Bytes of shards that are shuffled at a time; `None` shuffles everything.
    pub window: Option<u64>,
    /// How records are read.
    pub io: Io,
    /// What happens when a record is damaged.
    pub on_corrupt: OnCorrupt,
    /// Makes the LQ of every sample anew from its HR, keyed by seed, epoch and position; `None`: the
    /// LQ is stored.
    pub degrade: Option<Arc<Recipe>>,
    /// Also turn every batch into another layout and element type, with flips and turns applied;
    /// the slots then hold both.
    pub conversion: Option<Conversion>,
}

impl LoaderConfig {
    /// Batches of `batch` pairs with LQ patches of `lq_size` pixels, augmented, from one thread and
    /// four slots.
    pub fn new(batch: usize, lq_size: usize, seed: u64) -> LoaderConfig {
        LoaderConfig {
            batch,
            lq_size,
            threads: 1,
            slots: 4,
            seed,
            hflip: true,
            rot: true,
            start: 0,
            rank: 0,
            ranks: 1,
            turns: Turns::Samples,
            window: None,
            io: Io::Mmap,
            on_corrupt: OnCorrupt::Stop,
            degrade: None,
            conversion: None,
        }
    }

    /// The part of the configuration that the random draws depend on.
    fn draws(&self) -> Draws {
        Draws {
            seed: self.seed,
            hflip: self.hflip,
            rot: self.rot,
        }
    }
}

/// Whether to map the shards or to read them by calls, and the reason in words.
pub fn choose_io(sources: &Sources, choice: IoChoice) -> (Io, &'static str) {
    let network = || {
        sources
            .sets()
            .any(|set| sys::is_network_file_system(set.folder()))
    };
    let large = || sys::available_memory().is_some_and(|free| sources.bytes() > free / 2);
    match choice {
        IoChoice::Mmap => (Io::Mmap, "asked for"),
        IoChoice::Pread => (Io::Pread, "asked for"),
        IoChoice::Auto if network() => (Io::Pread, "the shards lie on a network file system"),
        IoChoice::Auto if large() => (
            Io::Pread,
            "the shards take more than half of the free memory",
        ),
        IoChoice::Auto => (Io::Mmap, "the shards fit into free memory"),
    }
}

/// Sets of this many bytes of shards or more are shuffled within windows by default: few machines
/// can keep them in memory.
const WINDOW_FROM: u64 = 32 << 30;
/// The default window of such sets, bytes.
const USUAL_WINDOW: u64 = 8 << 30;

/// The default window; `None` shuffles everything. It depends on the size of the shards alone and
/// never on the memory of this machine: the window decides the order of the samples, and the same
/// command must give the same network everywhere.
pub fn choose_window(sources: &Sources) -> Option<u64> {
    usual_window(sources.bytes())
}

/// The default window for a number of bytes of shards.
fn usual_window(bytes: u64) -> Option<u64> {
    (bytes >= WINDOW_FROM).then_some(USUAL_WINDOW)
}

/// What to try if the memory of this machine does not hold the shards that are shuffled at a time;
/// `None` if it does.
pub fn window_advice(sources: &Sources, window: Option<u64>) -> Option<String> {
    let memory = sys::memory_limit()?;
    let shuffled = window.unwrap_or(u64::MAX).min(sources.bytes());
    let holds = memory.bytes / 10 * 7;
    let better = memory.bytes / 3;
    (shuffled > holds).then(|| {
        format!(
            "{} of shards are shuffled at a time and memory is {memory}: records are read from the disk one by one. If that is too slow, \
             `--window {}M` reads large pieces one after another (it changes the order of the samples, and so the network)",
            bytes_text(shuffled),
            (better >> 20).max(1)
        )
    })
}

/// The anonymous memory of a loader, known before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LoaderBound {
    /// Batches that exist at once.
    pub slots: usize,
    /// Bytes of one batch: pixels (as stored, and converted if asked for), augmentation codes and
    /// record numbers.
    pub slot_bytes: u64,
    /// Threads that read and decode.
    pub threads: usize,
    /// Bytes of one thread: buffers to decode and convert in, and the stack.
    pub scratch_bytes: u64,
    /// Bytes of one thread for a degradation recipe; 0 without one.
    pub degrade_bytes: u64,
    /// Bytes that the open sets take outside the mapped files.
    pub index_bytes: u64,
}

impl LoaderBound {
    /// All bytes together.
    pub fn total(&self) -> u64 {
        let slots = (self.slots as u64).saturating_mul(self.slot_bytes);
        let each = self.scratch_bytes.saturating_add(self.degrade_bytes);
        let scratch = (self.threads as u64).saturating_mul(each);
        slots
            .saturating_add(scratch)
            .saturating_add(self.index_bytes)
    }
}

/// The scale of the sets, and the side of the largest HR patch that one of them stores.
fn largest_patch(sources: &Sources) -> (u32, usize) {
    let sides = sources.sets().map(|set| set.geometry().hr());
    (sources.scale(), sides.max().unwrap_or(0))
}

/// Bytes that a thread of the loader takes to make LQ crops of `lq_size` pixels by a recipe, out of
/// stored HR patches with sides of `hr_size` pixels.
pub fn degrade_bytes(recipe: &Recipe, scale: u32, lq_size: usize, hr_size: usize) -> u64 {
    SampleDegrader::bytes(recipe, scale, lq_size, hr_size)
}

/// Checks a configuration against its sets and computes the memory that its loader takes.
///
/// # Errors
/// The crop is larger than the stored patch, a number is 0 or too large, or the rank is not below
/// the number of ranks.
pub fn bound(sources: &Sources, config: &LoaderConfig) -> Result<LoaderBound> {
    let stored = sources.lq_size() as usize;
    ensure!(config.batch > 0, "the batch is 0 pairs");
    ensure!(config.lq_size > 0, "the LQ patch is 0 pixels");
    ensure!(
        config.lq_size <= stored,
        "LQ patches of {} pixels were asked for and the set in {} stores {stored}; use at most {stored}, or make a set \
         with `paragon shard --lq-size {}`",
        config.lq_size,
        sources.folders(),
        config.lq_size
    );
    ensure!(
        (1..=MAX_LOADER_THREADS).contains(&config.threads),
        "{} loader threads; use 1 to {MAX_LOADER_THREADS}",
        config.threads
    );
    ensure!(
        (1..=MAX_LOADER_SLOTS).contains(&config.slots),
        "{} loader slots; use 1 to {MAX_LOADER_SLOTS}",
        config.slots
    );
    ensure!(
        config.rank < config.ranks,
        "rank {} of {}: ranks are counted from 0",
        config.rank,
        config.ranks
    );
    if config.degrade.is_none()
        && let Some(set) = sources.sets().find(|set| set.lqs() == 0)
    {
        bail!(
            "the set in {} holds HR alone; say how the LQ is made with --degrade, as in --degrade real-esrgan \
             (`paragon degrade --list` names the presets)",
            set.folder().display()
        );
    }
    let scale = u64::from(sources.scale());
    let lq = (config.lq_size * config.lq_size * 3) as u64;
    let pixels = lq * (1 + scale * scale);
    let element_bytes = config.conversion.map_or(0, |c| c.element.bytes() as u64);
    let pair = pixels * (1 + element_bytes) + 1 + size_of::<u64>() as u64;
    let slot_bytes = pair.checked_mul(config.batch as u64).filter(|bytes| {
        bytes
            .checked_mul(config.slots as u64)
            .is_some_and(|all| all <= isize::MAX as u64)
    });
    let Some(slot_bytes) = slot_bytes else {
        bail!(
            "{} batches of {} pairs are too large for the address space",
            config.slots,
            config.batch
        )
    };
    let decoders: u64 = sources.sets().map(|set| set.scratch_bytes(config.io)).sum();
    let converter = config.conversion.map_or(0, |conversion| {
        Converter::bytes(conversion, config.lq_size as u64 * scale)
    });
    let scratch = decoders + converter;
    Ok(LoaderBound {
        slots: config.slots,
        slot_bytes,
        threads: config.threads,
        scratch_bytes: scratch + STACK_BYTES as u64,
        degrade_bytes: config.degrade.as_ref().map_or(0, |recipe| {
            let largest = largest_patch(sources);
            degrade_bytes(recipe, largest.0, config.lq_size, largest.1)
        }),
        index_bytes: sources.sets().map(|set| set.index_bytes()).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sets_of_32_gib_and_more_get_a_window() {
        const GIB: u64 = 1 << 30;
        for bytes in [0, 1, 8 * GIB, 32 * GIB - 1] {
            assert_eq!(usual_window(bytes), None, "{bytes} bytes");
        }
        for bytes in [32 * GIB, 32 * GIB + 1, 1 << 50, u64::MAX] {
            assert_eq!(usual_window(bytes), Some(8 * GIB), "{bytes} bytes");
        }
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        assert_eq!([1, 8].map(usual_slots), [4, 11]);
        assert_eq!(usual_slots(usize::MAX), MAX_LOADER_SLOTS);
        let bound = LoaderBound {
            slots: usize::MAX,
            slot_bytes: u64::MAX,
            threads: usize::MAX,
            scratch_bytes: u64::MAX,
            degrade_bytes: u64::MAX,
            index_bytes: u64::MAX,
        };
        assert_eq!(bound.total(), u64::MAX);
    }
}
