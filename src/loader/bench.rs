//! What a loader delivers on this machine: pairs a second, waiting on both sides, memory. Depends
//! on `ring` and `system`. The consumer does nothing with a batch but hold it as long as it is told
//! to, so that the figures are the loader's own.

use super::{Loader, LoaderConfig, Sources, bound};
use crate::shard::reader::{Advice, Io};
use crate::support::rng::{key, mix};
use crate::sys;
use anyhow::Result;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often memory is looked at.
const MEMORY_INTERVAL: Duration = Duration::from_millis(5);

/// How long to measure, and how.
#[derive(Clone, Debug)]
pub struct BenchConfig {
    /// Batches of so many epochs; `None` measures by the clock.
    pub epochs: Option<f64>,
    /// Without epochs: seconds to measure for.
    pub seconds: f64,
    /// Have the kernel forget the shards first.
    pub cold: bool,
    /// Time that a training step holds each batch.
    pub step: Duration,
    /// Sum up the content of all samples (this costs the consumer time).
    pub content: bool,
}

/// What one run delivered.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Measured {
    /// Loader threads.
    pub threads: usize,
    /// Pairs delivered.
    pub pairs: u64,
    /// Seconds from the start of the loader to the last batch.
    pub seconds: f64,
    /// Pairs a second, from the first batch on.
    pub pairs_per_second: f64,
    /// Pixels of both patches a second, bytes of u8 RGB / 10^6.
    pub megabytes_per_second: f64,
    /// From the start of the loader to the first batch, milliseconds.
    pub first_batch_ms: f64,
    /// Waiting for a batch, milliseconds: median, 99th percentile, longest (without the first).
    pub latency_ms: [f64; 3],
    /// Share of its time that the consumer waited for batches.
    pub consumer_waited: f64,
    /// Share of their time that the threads waited for a free slot.
    pub producers_waited: f64,
    /// Peak anonymous memory of the process above that before the start, bytes.
    pub peak_anonymous: Option<u64>,
    /// What was computed before the start, bytes.
    pub bound: u64,
    /// Samples that took the place of damaged ones.
    pub substituted: u64,
    /// Share of the records in memory before the start; `None` where the system cannot say.
    pub cached: Option<f64>,
    /// Sum over all samples of a hash of their pixels and augmentation: the same for any number of
    /// threads and ranks.
    pub content: Option<String>,
}

/// Runs a loader once.
///
/// # Errors
/// Those of the loader.
pub fn measure(
    sources: &Arc<Sources>,
    config: &LoaderConfig,
    how: &BenchConfig,
) -> Result<Measured> {
    let computed = bound(sources, config)?;
    if how.cold {
        sources
            .sets()
            .for_each(|set| set.advise(0..set.len(), Advice::DontNeed, Io::Mmap));
    }
    let cached = cached_share(sources);
    let own_epoch =
        sources.len() / config.ranks + u64::from(config.rank < sources.len() % config.ranks);
    let batches = how.epochs.map(|e| {
        ((e * own_epoch as f64) / config.batch as f64)
            .ceil()
            .max(1.0) as u64
    });
    let limit = batches.map(|_| (how.epochs.unwrap_or(1.0) * own_epoch as f64).round() as u64);

    let before = sys::anonymous_memory();
    let mut peak = before;
    let started = Instant::now();
    let mut loader = Loader::start(sources.clone(), config.clone())?;
    let mut waits = Vec::new();
    let (mut first, mut looked, mut pairs, mut content) = (Duration::ZERO, started, 0u64, 0u64);
    loop {
        let asked = Instant::now();
        let batch = loader.next()?;
        if pairs == 0 {
            first = started.elapsed();
        } else if waits.len() < MAX_WAITS {
            waits.push(asked.elapsed().as_secs_f32() * 1e3);
        }
        let count = limit.map_or(config.batch as u64, |l| {
            (l - pairs).min(config.batch as u64)
        });
        if how.content {
            content = content.wrapping_add(content_of(&batch, config.batch, count as usize));
        }
        pairs += count;
        if !how.step.is_zero() {
            std::thread::sleep(how.step);
        }
        drop(batch);
        if looked.elapsed() > MEMORY_INTERVAL {
            peak = peak.max(sys::anonymous_memory());
            looked = Instant::now();
        }
        let done = match limit {
            Some(limit) => pairs >= limit,
            None => started.elapsed().as_secs_f64() >= how.seconds,
        };
        if done {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    peak = peak.max(sys::anonymous_memory());
    let stats = loader.stats();
    drop(loader);
    // from the first batch to the last, there is one batch less to wait for
    let flowing = (pairs.saturating_sub(config.batch as u64)) as f64
        / (seconds - first.as_secs_f64()).max(1e-9);
    let rate = if pairs > config.batch as u64 {
        flowing
    } else {
        pairs as f64 / seconds
    };
    let pair_bytes =
        computed.slot_bytes as f64 / config.batch as f64 - (1 + size_of::<u64>()) as f64;
    waits.sort_by(f32::total_cmp);
    let at = |share: f64| {
        waits
            .get(((waits.len() as f64 * share) as usize).min(waits.len().saturating_sub(1)))
            .map_or(0.0, |&w| f64::from(w))
    };
    Ok(Measured {
        threads: config.threads,
        pairs,
        seconds,
        pairs_per_second: rate,
        megabytes_per_second: rate * pair_bytes / 1e6,
        first_batch_ms: first.as_secs_f64() * 1e3,
        latency_ms: [at(0.5), at(0.99), at(1.0)],
        consumer_waited: stats.consumer_waited.as_secs_f64() / seconds,
        producers_waited: stats.producers_waited.as_secs_f64() / (seconds * config.threads as f64),
        peak_anonymous: peak.zip(before).map(|(peak, before)| peak - before),
        bound: computed.total(),
        substituted: stats.substituted,
        cached,
        content: how.content.then(|| format!("{content:016x}")),
    })
}

/// Waits kept for the percentiles: 4 MiB of them.
const MAX_WAITS: usize = 1 << 20;

/// Share of some records, evenly spread, that are in memory. `None` where the system cannot say of
/// any of them.
fn cached_share(sources: &Sources) -> Option<f64> {
    let (mut cached, looked) = (0u64, sources.len().min(512));
    let mut known = false;
    for nth in 0..looked {
        let record = (u128::from(nth) * u128::from(sources.len()) / u128::from(looked)) as u64;
        if let Ok((set, record)) = sources.find(record)
            && let Some(whole) = set.is_cached(record, Io::Mmap)
        {
            known = true;
            cached += u64::from(whole);
        }
    }
    known.then(|| cached as f64 / looked as f64)
}

/// Sum over the first samples of a batch of a hash of record, pixels and augmentation.
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
