//! The loader: threads of its own read records of one or more sets of shards into a fixed number of
//! batches, in an order that is a pure function. Depends on `shard::reader`, `host_memory` and the
//! augmentation codes. Promises bounded memory, known before the start, the same batches for any
//! number of threads and ranks, and that no thread outlives it.

pub mod bench;
pub mod order;
mod permutation;
pub mod quality;
mod quotas;
mod ring;
mod slot;
mod sources;

pub use crate::sys::host_memory::Fence;
pub use ring::{Loader, Stats};
pub use slot::Batch;
pub use sources::Sources;

use crate::shard::reader::Io;
use crate::support::limits::{MAX_LOADER_SLOTS, MAX_LOADER_THREADS};
use crate::support::text::bytes_text;
use crate::sys;
use anyhow::{Result, ensure};
use order::Draws;

/// Stack of a loader thread, bytes: decoding needs a few KiB.
pub const STACK_BYTES: usize = 512 << 10;

/// Slots that keep so many threads busy: each fills one by itself, and three more are ready, on
/// their way to a device, and computed from.
pub fn usual_slots(threads: usize) -> usize {
    (threads + 3).min(MAX_LOADER_SLOTS)
}

/// How records are read from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum IoChoice {
    /// From the map where the shards lie on a local disk and fit into free memory, by reading calls
    /// otherwise.
    Auto,
    /// Through a memory map: no copy; an error of the disk ends the process.
    Mmap,
    /// By reading calls: an error of the disk or the network is a message.
    Pread,
}

/// What happens when a record is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum OnCorrupt {
    /// The batch is an error that names the record.
    #[default]
    Stop,
    /// Another record takes its place, always the same one; each is reported and counted.
    Substitute,
}

/// What a loader delivers.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Pairs in a batch.
    pub batch: usize,
    /// LQ side delivered, pixels; below the stored size an aligned random crop is drawn for every
    /// sample.
    pub lq_size: usize,
    /// Threads that read and decode.
    pub threads: usize,
    /// Batches that exist at once: being filled, waiting, in the caller's hands, or on their way to
    /// a device.
    pub slots: usize,
    /// Key of the order and of all draws.
    pub seed: u64,
    /// Mirror left-right with probability 1/2.
    pub hflip: bool,
    /// Mirror top-bottom and swap rows and columns, each with probability 1/2.
    pub rot: bool,
    /// Number of the first batch: where a resumed run goes on.
    pub start: u64,
    /// This process among those that share the samples, from 0.
    pub rank: u64,
    /// How many processes share the samples: this one takes every such sample, from `rank` on.
    pub ranks: u64,
    /// Bytes of shards that may be read in turns before moving on; `None` shuffles everything.
    pub window: Option<u64>,
    /// How records are read.
    pub io: Io,
    /// What happens when a record is damaged.
    pub on_corrupt: OnCorrupt,
}

impl LoaderConfig {
    /// Batches of `batch` pairs of LQ side `lq_size`, augmented, with the usual ring.
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
            window: None,
            io: Io::Mmap,
            on_corrupt: OnCorrupt::Stop,
        }
    }

    pub(crate) fn draws(&self) -> Draws {
        Draws {
            seed: self.seed,
            hflip: self.hflip,
            rot: self.rot,
        }
    }
}

/// Whether to map or to read, and why, in words.
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

/// Sets from this many bytes of shards on are shuffled within windows where nothing else is said:
/// few machines keep them in memory.
const WINDOW_FROM: u64 = 32 << 30;
/// The window of such sets, bytes.
const USUAL_WINDOW: u64 = 8 << 30;

/// The default window, bytes; `None` shuffles everything. It depends on the shards alone and never
/// on this machine's memory: the window decides the order of the samples, and the same command must
/// give the same network everywhere.
pub fn choose_window(sources: &Sources) -> Option<u64> {
    window_of(sources.bytes())
}

/// The default window of sets with so many bytes.
fn window_of(bytes: u64) -> Option<u64> {
    (bytes >= WINDOW_FROM).then_some(USUAL_WINDOW)
}

/// What to try where this machine's memory does not hold the shards that are shuffled at a time;
/// nothing where it does.
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
pub struct Bound {
    /// Batches that exist at once.
    pub slots: usize,
    /// Bytes of one batch: pixels, codes and record numbers.
    pub slot_bytes: u64,
    /// Threads that read and decode.
    pub threads: usize,
    /// Bytes of one thread: decoding room and stack.
    pub scratch_bytes: u64,
    /// Bytes of the open sets outside the mapped files.
    pub index_bytes: u64,
}

impl Bound {
    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.slots as u64 * self.slot_bytes
            + self.threads as u64 * self.scratch_bytes
            + self.index_bytes
    }
}

/// Checks a configuration against its sets and computes the memory it takes.
///
/// # Errors
/// A crop larger than the stored patch, nothing to deliver, absurd numbers.
pub fn bound(sources: &Sources, config: &LoaderConfig) -> Result<Bound> {
    let stored = sources.lq_size() as usize;
    ensure!(config.batch > 0, "the batch is 0 pairs");
    ensure!(config.lq_size > 0, "the LQ patch is 0 pixels");
    ensure!(
        config.lq_size <= stored,
        "the LQ patch is to be {} pixels and the set in {} stores {stored}; use at most {stored}, or make a set with \
         `paragon shard --lq-size {}`",
        config.lq_size,
        sources.places(),
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
    let scale = u64::from(sources.scale());
    let lq = (config.lq_size * config.lq_size * 3) as u64;
    let pair = lq * (1 + scale * scale) + 1 + size_of::<u64>() as u64;
    let slot_bytes = pair
        .checked_mul(config.batch as u64)
        .filter(|&b| b <= isize::MAX as u64);
    let Some(slot_bytes) = slot_bytes else {
        anyhow::bail!("a batch of {} pairs is too large", config.batch)
    };
    let scratch: u64 = sources.sets().map(|set| set.scratch_bytes(config.io)).sum();
    Ok(Bound {
        slots: config.slots,
        slot_bytes,
        threads: config.threads,
        scratch_bytes: scratch + STACK_BYTES as u64,
        index_bytes: sources.sets().map(|set| set.index_bytes()).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_sets_are_shuffled_in_a_window_of_one_size() {
        const GIB: u64 = 1 << 30;
        assert_eq!(window_of(0), None);
        assert_eq!(window_of(32 * GIB - 1), None);
        assert_eq!(window_of(32 * GIB), Some(8 * GIB));
        assert_eq!(window_of(u64::MAX), Some(8 * GIB));
    }
}
