//! The ring of slots: free -> being filled -> ready -> held by the caller (-> in flight to a
//! device) -> free, over bounded channels, filled by named threads. Depends on `order`, `slot` and
//! `shard::reader`. Promises delivery strictly in order, no deadlock, errors that reach the caller
//! in place of their batch, and that dropping the loader at any moment ends every thread.
//!
//! A thread takes a free slot first and a batch number second. So whoever has a number also has a
//! slot to fill, every number below the highest one taken is being worked on, and the batch that
//! the caller waits for always arrives.

use super::conversion::Converter;
use super::degrade::SampleDegrader;
use super::order::{Order, Sample};
use super::slot::{Batch, InFlight, Slot, SlotLayout, SlotReturn};
use super::{LoaderConfig, OnCorrupt, STACK_BYTES, Sources, Turns, bound};
use crate::shard::reader::{Advice, Crop, Scratch};
use crate::support::failure;
use crate::support::isa::Isa;
use crate::support::rng::key;
use crate::sys::host_memory::{Allocate, HostBlock};
use anyhow::{Context, Result, anyhow, bail, ensure};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, select};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long `next` waits for a batch before it checks the stop flag and who holds the slots.
const WAKE_INTERVAL: Duration = Duration::from_millis(100);
/// How many times in a row `next` finds every slot held by the caller before that is an error.
/// It is not an error at once, because another thread of the caller may be about to drop a batch;
/// waiting for ever would be a deadlock. The limit counts checks and not seconds, so that a process
/// that is suspended for an hour has made one check.
const MAX_HELD_CHECKS: u32 = 20;
/// How often `next` asks whether a device has finished with a slot.
const FENCE_INTERVAL: Duration = Duration::from_millis(1);
/// Records tried in place of a damaged one before that is an error. If this many in a row are
/// damaged, the whole set must be.
const SUBSTITUTES: u64 = 16;
/// Largest number of reports kept for the caller; counting continues beyond it.
const MAX_REPORTS: usize = 100;
/// If all records of a batch were in memory already, the next check comes this many batches later.
const CACHED_BATCHES: u64 = 32;
/// Separates the keys of substitutes from other keys.
const PURPOSE_SUBSTITUTE: u64 = 0x5355_4253;

/// Waiting times and counts since the start of a loader.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoaderStats {
    /// Batches delivered.
    pub batches: u64,
    /// Time the caller spent waiting in `next`.
    pub consumer_waited: Duration,
    /// Time the threads spent waiting for a free slot, summed over all threads.
    pub producers_waited: Duration,
    /// Samples whose damaged record was replaced by another one.
    pub substituted: u64,
    /// Time the threads spent making LQ crops by a degradation recipe, summed over all threads.
    pub degrading: Duration,
    /// Number of these crops.
    pub degraded: u64,
}

/// Number of a batch, its slot, and whether filling it succeeded.
type FilledSlot = (u64, Slot, Result<()>);

/// What the threads count and report, shared with the loader.
#[derive(Default)]
struct FillerCounters {
    /// Time spent waiting for a free slot, nanoseconds, summed over all threads.
    waited_nanos: AtomicU64,
    /// Time spent making LQ crops, nanoseconds, summed over all threads.
    degrading_nanos: AtomicU64,
    /// Number of these crops.
    degraded: AtomicU64,
    /// Samples whose damaged record was replaced.
    substituted: AtomicU64,
    damage: Mutex<DamageReports>,
}

/// Damaged records that were replaced.
#[derive(Default)]
struct DamageReports {
    /// Numbers of the records reported so far, counted through all sets.
    seen: BTreeSet<u64>,
    /// Reports that the caller has not taken yet.
    texts: Vec<String>,
}

/// A running loader.
pub struct Loader {
    ready: Receiver<FilledSlot>,
    slot_return: SlotReturn,
    /// Slots that batches returned with a fence, not moved to `in_flight` yet.
    released: Receiver<InFlight>,
    /// Slots that a device still reads, oldest first.
    in_flight: VecDeque<InFlight>,
    slots: usize,
    /// Batches that arrived before their turn, by number.
    early: BTreeMap<u64, (Slot, Result<()>)>,
    layout: SlotLayout,
    /// Number of the batch that `next` delivers.
    next: u64,
    delivered: u64,
    /// Time spent waiting in `next`.
    waited: Duration,
    counters: Arc<FillerCounters>,
    /// Dropped to stop the threads.
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Allocates the slots on the heap and starts the threads.
    ///
    /// # Errors
    /// Those of [`bound`]; the system refuses threads or memory.
    pub fn start(sources: impl Into<Arc<Sources>>, config: LoaderConfig) -> Result<Loader> {
        Self::start_in(sources, config, &HostBlock::heap)
    }

    /// As [`Loader::start`], with slots from `allocate`: locked or pinned memory.
    ///
    /// # Errors
    /// Those of [`bound`]; the system refuses threads or memory.
    pub fn start_in(
        sources: impl Into<Arc<Sources>>,
        config: LoaderConfig,
        allocate: Allocate<'_>,
    ) -> Result<Loader> {
        let sources: Arc<Sources> = sources.into();
        bound(&sources, &config)?;
        check_start(&config)?;
        let layout = SlotLayout::new(&config, &sources);
        let (free, free_slots) = bounded(config.slots);
        let (filled, ready) = bounded(config.slots);
        let (to_flight, released) = bounded(config.slots);
        let (stop, stopped) = bounded::<()>(0);
        hand_out_slots(&free, &layout, &config, allocate)?;
        sources.sets().for_each(|set| set.expect_random_access());
        let next = Arc::new(AtomicU64::new(config.start));
        let counters = Arc::new(FillerCounters::default());
        let specs = sources.set_specs(config.lq_size, config.window);
        let order = Order::new(&specs, config.draws())?;
        let mut loader = Loader {
            ready,
            slot_return: SlotReturn {
                free,
                in_flight: to_flight,
                held: Arc::new(AtomicUsize::new(0)),
            },
            released,
            in_flight: VecDeque::with_capacity(config.slots),
            slots: config.slots,
            early: BTreeMap::new(),
            layout,
            next: config.start,
            delivered: 0,
            waited: Duration::ZERO,
            counters: counters.clone(),
            stop: Some(stop),
            threads: Vec::new(),
        };
        for i in 0..config.threads {
            let filler = Filler {
                scratch: scratch_for_thread(&sources, &config)?,
                degrader: SampleDegrader::new(&sources, &config)?,
                converter: config.conversion.map(|conversion| {
                    let scale = sources.scale() as usize;
                    Converter::new(conversion, config.lq_size, scale, Isa::detect())
                }),
                order: order.clone(),
                sources: sources.clone(),
                config: config.clone(),
                layout,
                free: free_slots.clone(),
                filled: filled.clone(),
                stopped: stopped.clone(),
                next: next.clone(),
                counters: counters.clone(),
                cached_until: 0,
            };
            // On an error the loader is dropped here, which ends the threads started so far.
            loader.threads.push(filler.spawn(i)?);
        }
        Ok(loader)
    }

    /// The next batch in order; waits until it is filled, however long the disk takes.
    ///
    /// # Errors
    /// This batch could not be read (shard, record and image are named); later batches can still be
    /// delivered. Also if the caller holds every slot and so waits for itself.
    #[allow(clippy::should_implement_trait)] // unlike an iterator it can fail, and it never ends
    pub fn next(&mut self) -> Result<Batch> {
        let batch = self.next_unless(&AtomicBool::new(false))?;
        batch.context("the loader stopped without a stop request")
    }

    /// As [`Loader::next`], but returns `None` as soon as `stop` is set. The next call then
    /// delivers the batch.
    ///
    /// # Errors
    /// Those of [`Loader::next`].
    pub fn next_unless(&mut self, stop: &AtomicBool) -> Result<Option<Batch>> {
        self.next_until(|| stop.load(Ordering::Relaxed))
    }

    /// As [`Loader::next`], but returns `None` as soon as `stop` returns true. It is called before
    /// the wait and then at least ten times a second.
    ///
    /// # Errors
    /// Those of [`Loader::next`].
    pub fn next_until(&mut self, mut stop: impl FnMut() -> bool) -> Result<Option<Batch>> {
        let started = Instant::now();
        let mut held_checks = 0;
        let (slot, outcome) = loop {
            if stop() {
                return Ok(None);
            }
            self.reclaim();
            if let Some(found) = self.early.remove(&self.next) {
                break found;
            }
            let timeout = if self.in_flight.is_empty() {
                WAKE_INTERVAL
            } else {
                FENCE_INTERVAL
            };
            match self.ready.recv_timeout(timeout) {
                Ok((number, slot, outcome)) => {
                    self.early.insert(number, (slot, outcome));
                }
                // A slot that a thread fills or a device reads returns by itself sooner or later;
                // only those of the caller may never return.
                Err(RecvTimeoutError::Timeout)
                    if self.slot_return.held.load(Ordering::Relaxed) < self.slots =>
                {
                    held_checks = 0
                }
                Err(RecvTimeoutError::Timeout) => {
                    held_checks += 1;
                    ensure!(
                        held_checks < MAX_HELD_CHECKS,
                        "all {} batches of the loader are held, so none can be filled; drop one first or use more slots",
                        self.slots
                    );
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the loader's threads are gone"),
            }
        };
        self.waited += started.elapsed();
        let number = self.next;
        self.next += 1;
        let batch = Batch::new(slot, self.layout, number, self.slot_return.clone());
        outcome.with_context(|| format!("cannot load batch {number}"))?;
        self.delivered += 1;
        Ok(Some(batch))
    }

    /// Frees the slots that devices have finished with.
    fn reclaim(&mut self) {
        self.in_flight.extend(self.released.try_iter());
        for _ in 0..self.in_flight.len() {
            let Some((slot, fence)) = self.in_flight.pop_front() else {
                return;
            };
            if fence.is_done() {
                let _ = self.slot_return.free.try_send(slot); // never full: it has room for every slot
            } else {
                self.in_flight.push_back((slot, fence));
            }
        }
    }

    /// Number of the batch that the next call of [`Loader::next`] delivers.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// Waiting times and counts so far.
    pub fn stats(&self) -> LoaderStats {
        LoaderStats {
            batches: self.delivered,
            consumer_waited: self.waited,
            producers_waited: Duration::from_nanos(
                self.counters.waited_nanos.load(Ordering::Relaxed),
            ),
            substituted: self.counters.substituted.load(Ordering::Relaxed),
            degrading: Duration::from_nanos(self.counters.degrading_nanos.load(Ordering::Relaxed)),
            degraded: self.counters.degraded.load(Ordering::Relaxed),
        }
    }

    /// Damaged records that were replaced since the last call: one message per record, for the
    /// first hundred records of a run.
    pub fn reports(&mut self) -> Vec<String> {
        std::mem::take(
            &mut self
                .counters
                .damage
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .texts,
        )
    }
}

/// Refuses a first batch that leaves fewer than 2^60 sample numbers.
fn check_start(config: &LoaderConfig) -> Result<()> {
    config
        .start
        .checked_mul(config.batch as u64)
        .and_then(|sample| sample.checked_mul(config.ranks))
        .and_then(|sample| sample.checked_add(1 << 60))
        .context("the number of the first batch is out of range")?;
    Ok(())
}

/// Allocates the slots and makes them available to the threads.
fn hand_out_slots(
    free: &Sender<Slot>,
    layout: &SlotLayout,
    config: &LoaderConfig,
    allocate: Allocate<'_>,
) -> Result<()> {
    for _ in 0..config.slots {
        free.send(layout.slot(config.batch, allocate)?)
            .context("cannot hand out a slot")?;
    }
    Ok(())
}

/// The memory in which a thread decodes records, one entry per set.
fn scratch_for_thread(sources: &Sources, config: &LoaderConfig) -> Result<Vec<Scratch>> {
    let scratch = sources.sets().map(|set| set.scratch_for(config.io));
    Ok(scratch.collect::<Result<_, _>>()?)
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Wakes every thread that waits for a slot; threads wait for nothing else.
        self.stop.take();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        // A device may still read these slots.
        self.in_flight.extend(self.released.try_iter());
        self.in_flight.iter().for_each(|(_, fence)| fence.wait());
    }
}

/// One loader thread.
struct Filler {
    sources: Arc<Sources>,
    config: LoaderConfig,
    layout: SlotLayout,
    order: Order,
    /// One per set.
    scratch: Vec<Scratch>,
    /// `None` if the stored LQ is delivered.
    degrader: Option<SampleDegrader>,
    converter: Option<Converter>,
    free: Receiver<Slot>,
    filled: Sender<FilledSlot>,
    stopped: Receiver<()>,
    /// Number of the next batch that no thread has taken yet.
    next: Arc<AtomicU64>,
    counters: Arc<FillerCounters>,
    /// The records of batches below this number are assumed to be in memory.
    cached_until: u64,
}

impl Filler {
    /// Starts the thread with number `i`.
    fn spawn(self, i: usize) -> Result<JoinHandle<()>> {
        std::thread::Builder::new()
            .name(format!("loader-{i}"))
            .stack_size(STACK_BYTES)
            .spawn(move || self.run())
            .context("cannot start a loader thread")
    }

    /// Fills slots until the loader is dropped.
    fn run(mut self) {
        loop {
            let started = Instant::now();
            let slot = select! {
                recv(self.free) -> slot => slot,
                recv(self.stopped) -> _ => return,
            };
            self.counters
                .waited_nanos
                .fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
            let Ok(mut slot) = slot else { return };
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let outcome = catch_unwind(AssertUnwindSafe(|| self.fill(number, &mut slot)))
                .unwrap_or_else(|_| {
                    Err(anyhow!(
                        "a loader thread failed, which is a bug in paragon; please report it"
                    ))
                });
            if let Some(degrader) = &mut self.degrader {
                let spent = std::mem::take(&mut degrader.spent).as_nanos() as u64;
                self.counters
                    .degrading_nanos
                    .fetch_add(spent, Ordering::Relaxed);
                let made = std::mem::take(&mut degrader.made);
                self.counters.degraded.fetch_add(made, Ordering::Relaxed);
            }
            // The channel has room for every slot, so this never waits.
            if self.filled.send((number, slot, outcome)).is_err() {
                return;
            }
        }
    }

    /// The number, among all samples of all ranks, of sample `i` of a batch.
    fn sample_number(&self, batch: u64, i: usize) -> u64 {
        let LoaderConfig { rank, ranks, .. } = self.config;
        let (count, i) = (self.config.batch as u64, i as u64);
        match self.config.turns {
            Turns::Samples => (batch * count + i) * ranks + rank,
            Turns::Batches => (batch * ranks + rank) * count + i,
        }
    }

    /// The numbers of the samples that all ranks take with this batch.
    fn samples_of_all(&self, batch: u64) -> std::ops::Range<u64> {
        let all = self.config.batch as u64 * self.config.ranks;
        batch * all..(batch + 1) * all
    }

    /// Fills a slot with batch `number`.
    fn fill(&mut self, number: u64, slot: &mut Slot) -> Result<()> {
        let count = self.config.batch;
        self.fetch_ahead(number);
        let (lq, rest) = slot.block.split_at_mut(self.layout.lq);
        let (hr, augment) = rest.split_at_mut(self.layout.hr - self.layout.lq);
        let pairs = lq
            .chunks_exact_mut(lq.len() / count)
            .zip(hr.chunks_exact_mut(hr.len() / count));
        for (i, (lq, hr)) in pairs.enumerate() {
            // Checked between records, so that dropping the loader does not wait for a full batch.
            if let Err(TryRecvError::Disconnected) = self.stopped.try_recv() {
                bail!("the loader is being dropped");
            }
            let sample = self.order.sample(self.sample_number(number, i));
            augment[i] = sample.augment;
            let record = self.read(&sample, lq, hr)?;
            slot.records[i] = self.sources.global_number(sample.set, record);
            if let (Some(converter), Some(out)) = (&mut self.converter, &mut slot.converted) {
                let out = out.split_at_mut(self.layout.lq * self.layout.element_bytes);
                converter.convert_pair(i, sample.augment, (lq, hr), out);
            }
        }
        Ok(())
    }

    /// Reads a sample, or a substitute for a damaged one; returns the number of the record in its
    /// set.
    fn read(&mut self, sample: &Sample, lq: &mut [u8], hr: &mut [u8]) -> Result<u64> {
        let Err(damage) = self.read_record(sample.record, sample, lq, hr) else {
            return Ok(sample.record);
        };
        // A system error does not mean that the record is damaged, so the record is not replaced.
        if self.config.on_corrupt == OnCorrupt::Stop || failure::system_cause(&damage).is_some() {
            return Err(damage);
        }
        for attempt in 0..SUBSTITUTES {
            // A function of the damaged record alone: the same in any thread and after a restart.
            let record = key(&[
                PURPOSE_SUBSTITUTE,
                self.config.seed,
                sample.set as u64,
                sample.record,
                attempt,
            ]) % self.sources.set(sample.set).len();
            if self.read_record(record, sample, lq, hr).is_ok() {
                self.counters.substituted.fetch_add(1, Ordering::Relaxed);
                let mut reports = self
                    .counters
                    .damage
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if reports.seen.len() < MAX_REPORTS
                    && reports
                        .seen
                        .insert(self.sources.global_number(sample.set, sample.record))
                {
                    reports.texts.push(format!(
                        "{damage:#}; record {record} of the set takes its place"
                    ));
                }
                return Ok(record);
            }
        }
        Err(damage.context(format!(
            "{SUBSTITUTES} records tried in its place are damaged as well"
        )))
    }

    /// Reads a record, the one of the sample or its substitute, with the crop, the variant and the
    /// degradation of the sample.
    fn read_record(
        &mut self,
        record: u64,
        sample: &Sample,
        lq: &mut [u8],
        hr: &mut [u8],
    ) -> Result<()> {
        let set = self.sources.set(sample.set);
        let scratch = &mut self.scratch[sample.set];
        if let Some(degrader) = &mut self.degrader {
            return degrader.read(set, record, sample, scratch, (lq, hr));
        }
        let crop = Crop {
            x: sample.x as usize,
            y: sample.y as usize,
            size: self.config.lq_size,
        };
        Ok(set.read_part(record, crop, scratch, Some((sample.variant, lq)), hr)?)
    }

    /// Asks the kernel to fetch the next records while this batch is decoded. If all of them are in
    /// memory already, it skips the check for some batches.
    fn fetch_ahead(&mut self, number: u64) {
        let (ahead, io) = (number + self.config.threads as u64, self.config.io);
        // A window changes at one sample, which another rank may take.
        for sample in self.samples_of_all(number) {
            if let Some(change) = self.order.window_change(sample) {
                let set = self.sources.set(change.set);
                change
                    .needed
                    .into_iter()
                    .flatten()
                    .for_each(|records| set.advise(records, Advice::WillNeed, io));
                change
                    .done
                    .into_iter()
                    .flatten()
                    .for_each(|records| set.advise(records, Advice::DontNeed, io));
            }
        }
        if ahead < self.cached_until {
            return;
        }
        let mut all_cached = true;
        for i in 0..self.config.batch {
            let sample = self.order.sample(self.sample_number(ahead, i));
            let set = self.sources.set(sample.set);
            if set.is_cached(sample.record, io) == Some(false) {
                set.advise(sample.record..sample.record + 1, Advice::WillNeed, io);
                all_cached = false;
            }
        }
        if all_cached {
            self.cached_until = ahead + CACHED_BATCHES;
        }
    }
}
