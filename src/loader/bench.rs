//! Measures a loader on this machine: pairs per second, waiting on both sides, memory. Depends on
//! `ring` and `sys`. The consumer does nothing with a batch but hold it for the given time, so that
//! the figures are those of the loader.

use super::{Loader, LoaderConfig, Sources, bound};
use crate::shard::reader::{Advice, Io};
use crate::support::rng::{key, mix};
use crate::sys;
use anyhow::Result;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often memory is measured.
const MEMORY_INTERVAL: Duration = Duration::from_millis(5);
/// Largest number of waiting times kept for the percentiles: 4 MiB of them.
const MAX_WAITS: usize = 1 << 20;
/// Records that are checked for being in memory before the start.
const CACHE_SAMPLES: u64 = 512;

/// How long to measure, and how.
#[derive(Clone, Debug)]
pub struct BenchConfig {
    /// Length of the measurement in epochs; `None` measures for `seconds`.
    pub epochs: Option<f64>,
    /// Length of the measurement in seconds, if `epochs` is `None`.
    pub seconds: f64,
    /// Drop the shards from the page cache first.
    pub cold: bool,
    /// How long the consumer holds each batch, as a training step would.
    pub step: Duration,
    /// Compute [`LoaderMeasurement::content`]; it costs the consumer time.
    pub content: bool,
}

/// The figures of one run of a loader.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LoaderMeasurement {
    /// Loader threads.
    pub threads: usize,
    /// Pairs delivered.
    pub pairs: u64,
    /// Seconds from the start of the loader to the last batch.
    pub seconds: f64,
    /// Pairs per second, from the first batch on.
    pub pairs_per_second: f64,
    /// Pixels of both patches per second, in 10^6 bytes of u8 RGB.
    pub megabytes_per_second: f64,
    /// Time from the start of the loader to the first batch, milliseconds.
    pub first_batch_ms: f64,
    /// Time waiting for a batch, milliseconds: median, 99th percentile, maximum; the first batch is
    /// left out.
    pub latency_ms: [f64; 3],
    /// Share of its time that the consumer waited for batches.
    pub consumer_waited: f64,
    /// Share of their time that the threads waited for a free slot.
    pub producers_waited: f64,
    /// Peak anonymous memory of the process minus that before the start, bytes.
    pub peak_anonymous: Option<u64>,
    /// The memory bound computed before the start, bytes.
    pub bound: u64,
    /// Time of a thread for making one LQ crop by a degradation recipe, milliseconds, and the share of
    /// the threads' time that all of them took; `None` without a recipe.
    pub degrade: Option<DegradeCost>,
    /// Samples whose damaged record was replaced.
    pub substituted: u64,
    /// Share of the records that were in memory at the start; `None` if the system cannot say.
    pub cached: Option<f64>,
    /// Sum over all samples of a hash of record, pixels and augmentation, in hexadecimal: the same
    /// for any number of threads, and summed over ranks for any number of ranks.
    pub content: Option<String>,
}

/// What making the LQ by a degradation recipe costs.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct DegradeCost {
    /// Milliseconds of a thread for one LQ crop.
    pub pair_ms: f64,
    /// Share of the threads' time.
    pub share: f64,
}

/// Runs a loader once.
///
/// # Errors
/// Those of the loader.
pub fn measure(
    sources: &Arc<Sources>,
    config: &LoaderConfig,
    how: &BenchConfig,
) -> Result<LoaderMeasurement> {
    let bound = bound(sources, config)?;
    if how.cold {
        sources
            .sets()
            .for_each(|set| set.advise(0..set.len(), Advice::DontNeed, Io::Mmap));
    }
    let cached = cached_share(sources);
    let own_epoch =
        sources.len() / config.ranks + u64::from(config.rank < sources.len() % config.ranks);
    let limit = how.epochs.map(|e| (e * own_epoch as f64).round() as u64);

    let before = sys::anonymous_memory();
    let started = Instant::now();
    let mut loader = Loader::start(sources.clone(), config.clone())?;
    let mut consumed = consume(&mut loader, config, how, limit, started)?;
    let seconds = started.elapsed().as_secs_f64();
    let peak = consumed.peak.max(before).max(sys::anonymous_memory());
    let stats = loader.stats();
    drop(loader);

    let pairs = consumed.pairs;
    // The rate from the first batch to the last: the pairs of the first batch do not count.
    let later_pairs = pairs.saturating_sub(config.batch as u64) as f64;
    let rate = if later_pairs > 0.0 {
        later_pairs / (seconds - consumed.first_batch.as_secs_f64()).max(1e-9)
    } else {
        pairs as f64 / seconds
    };
    let pair_bytes = bound.slot_bytes as f64 / config.batch as f64 - (1 + size_of::<u64>()) as f64;
    consumed.waits.sort_by(f32::total_cmp);
    Ok(LoaderMeasurement {
        threads: config.threads,
        pairs,
        seconds,
        pairs_per_second: rate,
        megabytes_per_second: rate * pair_bytes / 1e6,
        first_batch_ms: consumed.first_batch.as_secs_f64() * 1e3,
        latency_ms: [0.5, 0.99, 1.0].map(|share| percentile(&consumed.waits, share)),
        consumer_waited: stats.consumer_waited.as_secs_f64() / seconds,
        producers_waited: stats.producers_waited.as_secs_f64() / (seconds * config.threads as f64),
        peak_anonymous: peak.zip(before).map(|(peak, before)| peak - before),
        bound: bound.total(),
        degrade: config.degrade.as_ref().map(|_| {
            let spent = stats.degrading.as_secs_f64();
            DegradeCost {
                pair_ms: spent * 1e3 / stats.degraded.max(1) as f64,
                share: spent / (seconds * config.threads as f64),
            }
        }),
        substituted: stats.substituted,
        cached,
        content: how.content.then(|| format!("{:016x}", consumed.content)),
    })
}

/// What the consumer saw.
struct Consumed {
    pairs: u64,
    /// Time from the start of the loader to the first batch.
    first_batch: Duration,
    /// Waiting times of the later batches, milliseconds.
    waits: Vec<f32>,
    /// See [`LoaderMeasurement::content`].
    content: u64,
    /// Peak anonymous memory of the process, bytes.
    peak: Option<u64>,
}

/// Takes batches until `limit` pairs were delivered, or without a limit until the time is over.
fn consume(
    loader: &mut Loader,
    config: &LoaderConfig,
    how: &BenchConfig,
    limit: Option<u64>,
    started: Instant,
) -> Result<Consumed> {
    let mut consumed = Consumed {
        pairs: 0,
        first_batch: Duration::ZERO,
        waits: Vec::new(),
        content: 0,
        peak: None,
    };
    let size = config.batch as u64;
    let mut memory_measured = started;
    loop {
        let asked = Instant::now();
        let batch = loader.next()?;
        if consumed.pairs == 0 {
            consumed.first_batch = started.elapsed();
        } else if consumed.waits.len() < MAX_WAITS {
            consumed.waits.push(asked.elapsed().as_secs_f32() * 1e3);
        }
        let count = limit.map_or(size, |limit| (limit - consumed.pairs).min(size));
        if how.content {
            let content = content_of(&batch, config.batch, count as usize);
            consumed.content = consumed.content.wrapping_add(content);
        }
        consumed.pairs += count;
        if !how.step.is_zero() {
            std::thread::sleep(how.step);
        }
        drop(batch);
        if memory_measured.elapsed() > MEMORY_INTERVAL {
            consumed.peak = consumed.peak.max(sys::anonymous_memory());
            memory_measured = Instant::now();
        }
        let done = match limit {
            Some(limit) => consumed.pairs >= limit,
            None => started.elapsed().as_secs_f64() >= how.seconds,
        };
        if done {
            return Ok(consumed);
        }
    }
}

/// The value below which a share of the sorted values lies; 0 without values.
fn percentile(sorted: &[f32], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |&value| f64::from(value))
}

/// Share of some evenly spread records that are in memory. `None` if the system cannot say it of any
/// of them.
fn cached_share(sources: &Sources) -> Option<f64> {
    let (mut cached, checked) = (0u64, sources.len().min(CACHE_SAMPLES));
    let mut known = false;
    for nth in 0..checked {
        let record = (u128::from(nth) * u128::from(sources.len()) / u128::from(checked)) as u64;
        if let Ok((set, record)) = sources.locate(record)
            && let Some(whole) = set.is_cached(record, Io::Mmap)
        {
            known = true;
            cached += u64::from(whole);
        }
    }
    known.then(|| cached as f64 / checked as f64)
}

/// Sum over the first `count` samples of a batch of `size` of a hash of record, pixels and
/// augmentation.
fn content_of(batch: &super::Batch, size: usize, count: usize) -> u64 {
    let (lq, hr) = (batch.lq().len() / size, batch.hr().len() / size);
    let sample = |i: usize| {
        let (lq, hr) = (
            crc32fast::hash(&batch.lq()[i * lq..][..lq]),
            crc32fast::hash(&batch.hr()[i * hr..][..hr]),
        );
        mix(key(&[
            batch.records()[i],
            u64::from(lq),
            u64::from(hr),
            u64::from(batch.augment()[i]),
        ]))
    };
    (0..count).map(sample).fold(0, u64::wrapping_add)
}
