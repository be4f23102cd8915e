//! The loader: threads of its own read records of a shard set into a fixed number of batches, in an order that is a pure
//! function. Depends on `shard::reader` and the augmentation codes. Promises bounded memory, known before the start, the
//! same batches for any number of threads, and that no thread outlives it.

pub mod order;
mod ring;

pub use ring::{Batch, Loader, Stats};

use crate::shard::reader::ShardSet;
use anyhow::{Result, ensure};

/// Most threads: beyond that the disk or the memory bus is the limit, and a mistyped number is likelier.
pub const MAX_THREADS: usize = 256;
/// Most slots, for the same reason.
pub const MAX_SLOTS: usize = 1024;
/// Stack of a loader thread, bytes: decoding needs a few KiB.
pub const STACK_BYTES: usize = 512 << 10;

/// What a loader delivers.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Pairs in a batch.
    pub batch: usize,
    /// LQ side delivered, pixels; below the stored size an aligned random crop is drawn for every sample.
    pub lq_size: usize,
    /// Threads that read and decode.
    pub threads: usize,
    /// Batches that exist at once: being filled, waiting, or in the caller's hands.
    pub slots: usize,
    /// Key of the order and of all draws.
    pub seed: u64,
    /// Mirror left-right with probability 1/2.
    pub hflip: bool,
    /// Mirror top-bottom and swap rows and columns, each with probability 1/2.
    pub rot: bool,
    /// Number of the first batch: where a resumed run goes on.
    pub start: u64,
}

/// The anonymous memory of a loader, known before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Batches that exist at once.
    pub slots: usize,
    /// Bytes of one batch: pixels, codes and record numbers.
    pub slot_bytes: u64,
    /// Threads that read and decode.
    pub threads: usize,
    /// Bytes of one thread: decoding room and stack.
    pub scratch_bytes: u64,
    /// Bytes of the open set outside the mapped files.
    pub index_bytes: u64,
}

impl Bound {
    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.slots as u64 * self.slot_bytes + self.threads as u64 * self.scratch_bytes + self.index_bytes
    }
}

/// Checks a configuration against a set and computes the memory it takes.
///
/// # Errors
/// A crop larger than the stored patch, nothing to deliver, absurd numbers.
pub fn bound(set: &ShardSet, config: &LoaderConfig) -> Result<Bound> {
    let stored = set.lq_size() as usize;
    ensure!(config.batch > 0, "the batch is 0 pairs");
    ensure!(config.lq_size > 0, "the LQ patch is 0 pixels");
    ensure!(
        config.lq_size <= stored,
        "the LQ patch is to be {} pixels and the set in {} stores {stored}; use at most {stored}, or make a set with \
         `paragon shard --lq-size {}`",
        config.lq_size,
        set.folder().display(),
        config.lq_size
    );
    ensure!((1..=MAX_THREADS).contains(&config.threads), "{} loader threads; use 1 to {MAX_THREADS}", config.threads);
    ensure!((1..=MAX_SLOTS).contains(&config.slots), "{} loader slots; use 1 to {MAX_SLOTS}", config.slots);
    let scale = set.scale() as u64;
    let lq = (config.lq_size * config.lq_size * 3) as u64;
    let pair = lq * (1 + scale * scale) + 1 + size_of::<u64>() as u64;
    let slot_bytes = pair.checked_mul(config.batch as u64).filter(|&b| b <= isize::MAX as u64);
    let Some(slot_bytes) = slot_bytes else { anyhow::bail!("a batch of {} pairs is too large", config.batch) };
    Ok(Bound {
        slots: config.slots,
        slot_bytes,
        threads: config.threads,
        scratch_bytes: set.scratch_bytes(config.lq_size < stored) + STACK_BYTES as u64,
        index_bytes: set.index_bytes(),
    })
}
