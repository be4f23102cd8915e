//! The ring of slots: free -> filling -> ready -> in the caller's hands (-> in flight to a device)
//! -> free, over bounded channels, filled by named threads. Depends on `order`, `slot` and
//! `shard::reader`. Promises delivery strictly in order, no deadlock, errors that reach the caller
//! in their place, and that dropping the loader at any moment ends every thread.
//!
//! A thread takes a free slot first and a batch number second. So whoever has a number also has a
//! slot to fill, every number below the highest one taken is being worked on, and the batch the
//! caller waits for always arrives.

use super::order::{Order, Sample};
use super::slot::{Batch, InFlight, Parts, Return, Slot};
use super::{LoaderConfig, OnCorrupt, STACK_BYTES, Sources, bound};
use crate::shard::reader::{Advice, Crop, Scratch};
use crate::support::failure;
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

/// How long `next` waits before it looks around: whether it is to stop, and who holds the slots.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How many times in a row `next` finds every slot in the caller's hands before that is an error.
/// Another thread of the caller may be about to drop one, so it is not an error at once; for ever
/// would be a deadlock. Looks are counted and not seconds: a process that is stopped for an hour
/// and goes on has looked once.
const HELD_LOOKS: u32 = 20;
/// How often `next` asks whether a device is done with a slot.
const FENCE_INTERVAL: Duration = Duration::from_millis(1);
/// Records tried in the place of a damaged one before it is an error after all: in a set where so
/// many are damaged in a row, the set is the fault.
const SUBSTITUTES: u64 = 16;
/// Reports kept for the caller; the count goes on.
const MAX_REPORTS: usize = 100;
/// Batches after which it is asked again whether the records to come are in memory, when they all
/// were.
const CACHED_BATCHES: u64 = 32;
/// Separates the keys of substitutes from other keys.
const PURPOSE_SUBSTITUTE: u64 = 0x5355_4253;

/// Who waited for whom, since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Batches delivered.
    pub batches: u64,
    /// Time the caller spent waiting in `next`.
    pub consumer_waited: Duration,
    /// Time the threads spent waiting for a free slot, summed over threads.
    pub producers_waited: Duration,
    /// Samples that took the place of damaged ones.
    pub substituted: u64,
}

type Filled = (u64, Slot, Result<()>);

/// What the threads tell beside batches.
#[derive(Default)]
struct Told {
    waited_nanos: AtomicU64,
    substituted: AtomicU64,
    reports: Mutex<Reports>,
}

#[derive(Default)]
struct Reports {
    /// Records reported before.
    seen: BTreeSet<u64>,
    texts: Vec<String>,
}

/// A running loader.
pub struct Loader {
    ready: Receiver<Filled>,
    back: Return,
    /// Slots that were released with a fence, on their way to `in_flight`.
    released: Receiver<InFlight>,
    /// Slots that a device reads from, oldest first.
    in_flight: VecDeque<InFlight>,
    slots: usize,
    early: BTreeMap<u64, (Slot, Result<()>)>,
    parts: Parts,
    next: u64,
    delivered: u64,
    waited: Duration,
    told: Arc<Told>,
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Allocates the slots on the heap and starts the threads.
    ///
    /// # Errors
    /// Those of [`bound`]; threads or memory that the system refuses.
    pub fn start(sources: impl Into<Arc<Sources>>, config: LoaderConfig) -> Result<Loader> {
        Self::start_in(sources, config, &HostBlock::heap)
    }

    /// As [`Loader::start`], with slots from elsewhere: locked or pinned memory.
    ///
    /// # Errors
    /// Those of [`bound`]; threads or memory that the system refuses.
    pub fn start_in(
        sources: impl Into<Arc<Sources>>,
        config: LoaderConfig,
        allocate: Allocate<'_>,
    ) -> Result<Loader> {
        let sources: Arc<Sources> = sources.into();
        bound(&sources, &config)?;
        let first_sample = config
            .start
            .checked_mul(config.batch as u64)
            .and_then(|s| s.checked_mul(config.ranks));
        first_sample
            .and_then(|s| s.checked_add(1 << 60))
            .context("the number of the first batch is out of range")?;
        let parts = Parts::new(&config, &sources);
        let (free, free_slots) = bounded(config.slots);
        let (filled, ready) = bounded(config.slots);
        let (to_flight, released) = bounded(config.slots);
        let (stop, stopped) = bounded::<()>(0);
        for _ in 0..config.slots {
            free.send(parts.slot(config.batch, allocate)?)
                .context("cannot hand out a slot")?;
        }
        sources.sets().for_each(|set| set.expect_random_access());
        let next = Arc::new(AtomicU64::new(config.start));
        let told = Arc::new(Told::default());
        let mut loader = Loader {
            ready,
            back: Return {
                free,
                in_flight: to_flight,
                held: Arc::new(AtomicUsize::new(0)),
            },
            released,
            in_flight: VecDeque::with_capacity(config.slots),
            slots: config.slots,
            early: BTreeMap::new(),
            parts,
            next: config.start,
            delivered: 0,
            waited: Duration::ZERO,
            told: told.clone(),
            stop: Some(stop),
            threads: Vec::new(),
        };
        for i in 0..config.threads {
            let filler = Filler {
                scratch: sources
                    .sets()
                    .map(|set| set.scratch_for(config.io))
                    .collect::<Result<_, _>>()?,
                order: Order::new(
                    &sources.parts(config.lq_size, config.window),
                    config.draws(),
                ),
                sources: sources.clone(),
                config: config.clone(),
                parts,
                free: free_slots.clone(),
                filled: filled.clone(),
                stopped: stopped.clone(),
                next: next.clone(),
                told: told.clone(),
                cached_until: 0,
            };
            let builder = std::thread::Builder::new()
                .name(format!("loader-{i}"))
                .stack_size(STACK_BYTES);
            // on an error the loader is dropped here, which ends the threads started so far
            loader.threads.push(
                builder
                    .spawn(move || filler.run())
                    .context("cannot start a loader thread")?,
            );
        }
        Ok(loader)
    }

    /// The next batch in order; waits until it is filled, however long the disk takes.
    ///
    /// # Errors
    /// What went wrong while this batch was read (shard, record and image are named); the batches
    /// behind it are still to be had. Also when the caller holds every slot and so waits for
    /// itself.
    #[allow(clippy::should_implement_trait)] // it fails, and it never ends
    pub fn next(&mut self) -> Result<Batch> {
        let batch = self.next_unless(&AtomicBool::new(false))?;
        batch.context("the loader was told to stop while nobody could tell it")
    }

    /// As [`Loader::next`], or nothing as soon as `stop` is set. The batch is then delivered by the
    /// next call.
    ///
    /// # Errors
    /// Those of [`Loader::next`].
    pub fn next_unless(&mut self, stop: &AtomicBool) -> Result<Option<Batch>> {
        let started = Instant::now();
        let mut held_looks = 0;
        let (slot, outcome) = loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            self.reclaim();
            if let Some(found) = self.early.remove(&self.next) {
                break found;
            }
            let patience = if self.in_flight.is_empty() {
                LOOK_INTERVAL
            } else {
                FENCE_INTERVAL
            };
            match self.ready.recv_timeout(patience) {
                Ok((number, slot, outcome)) => {
                    self.early.insert(number, (slot, outcome));
                }
                // a slot that a thread fills or a device reads comes back by itself, sooner or
                // later; only the caller's do not
                Err(RecvTimeoutError::Timeout)
                    if self.back.held.load(Ordering::Relaxed) < self.slots =>
                {
                    held_looks = 0
                }
                Err(RecvTimeoutError::Timeout) => {
                    held_looks += 1;
                    ensure!(
                        held_looks < HELD_LOOKS,
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
        let batch = Batch::new(slot, self.parts, number, self.back.clone());
        outcome.with_context(|| format!("cannot load batch {number}"))?;
        self.delivered += 1;
        Ok(Some(batch))
    }

    /// Frees the slots that devices are done with.
    fn reclaim(&mut self) {
        self.in_flight.extend(self.released.try_iter());
        for _ in 0..self.in_flight.len() {
            let Some((slot, fence)) = self.in_flight.pop_front() else {
                return;
            };
            if fence.is_done() {
                let _ = self.back.free.try_send(slot); // there is a place for every slot
            } else {
                self.in_flight.push_back((slot, fence));
            }
        }
    }

    /// Who waited for whom so far.
    pub fn stats(&self) -> Stats {
        Stats {
            batches: self.delivered,
            consumer_waited: self.waited,
            producers_waited: Duration::from_nanos(self.told.waited_nanos.load(Ordering::Relaxed)),
            substituted: self.told.substituted.load(Ordering::Relaxed),
        }
    }

    /// What was found damaged and replaced since the last call: one text a record, the first
    /// hundred of a run.
    pub fn reports(&mut self) -> Vec<String> {
        std::mem::take(
            &mut self
                .told
                .reports
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .texts,
        )
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.take(); // every thread that waits for a slot sees this; none waits for anything else
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        // a device may still read from these
        self.in_flight.extend(self.released.try_iter());
        self.in_flight.iter().for_each(|(_, fence)| fence.wait());
    }
}

/// What one thread has.
struct Filler {
    sources: Arc<Sources>,
    config: LoaderConfig,
    parts: Parts,
    order: Order,
    /// One a set.
    scratch: Vec<Scratch>,
    free: Receiver<Slot>,
    filled: Sender<Filled>,
    stopped: Receiver<()>,
    next: Arc<AtomicU64>,
    told: Arc<Told>,
    /// Batch up to which the records are taken to be in memory.
    cached_until: u64,
}

impl Filler {
    fn run(mut self) {
        loop {
            let started = Instant::now();
            let slot = select! {
                recv(self.free) -> slot => slot,
                recv(self.stopped) -> _ => return,
            };
            self.told
                .waited_nanos
                .fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
            let Ok(mut slot) = slot else { return };
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let outcome = catch_unwind(AssertUnwindSafe(|| self.fill(number, &mut slot)))
                .unwrap_or_else(|_| {
                    Err(anyhow!(
                        "a fault of paragon in a loader thread; please report it"
                    ))
                });
            // there are as many places as slots, so this never waits
            if self.filled.send((number, slot, outcome)).is_err() {
                return;
            }
        }
    }

    /// The number, among all samples of all ranks, of sample `i` of a batch.
    fn sample_number(&self, batch: u64, i: usize) -> u64 {
        (batch * self.config.batch as u64 + i as u64) * self.config.ranks + self.config.rank
    }

    fn fill(&mut self, number: u64, slot: &mut Slot) -> Result<()> {
        let count = self.config.batch;
        self.fetch_ahead(number);
        let (lq, rest) = slot.block.split_at_mut(self.parts.lq);
        let (hr, augment) = rest.split_at_mut(self.parts.hr - self.parts.lq);
        let pairs = lq
            .chunks_exact_mut(lq.len() / count)
            .zip(hr.chunks_exact_mut(hr.len() / count));
        for (i, (lq, hr)) in pairs.enumerate() {
            // between records, so that dropping the loader does not wait for a whole batch
            if let Err(TryRecvError::Disconnected) = self.stopped.try_recv() {
                bail!("the loader is being dropped");
            }
            let sample = self.order.sample(self.sample_number(number, i));
            augment[i] = sample.augment;
            let record = self.read(&sample, lq, hr)?;
            slot.records[i] = self.sources.number(sample.set, record);
        }
        Ok(())
    }

    /// Reads a sample, or what stands for it; returns the number of the record in its set.
    fn read(&mut self, sample: &Sample, lq: &mut [u8], hr: &mut [u8]) -> Result<u64> {
        let set = self.sources.set(sample.set);
        let crop = Crop {
            x: sample.x as usize,
            y: sample.y as usize,
            size: self.config.lq_size,
        };
        let scratch = &mut self.scratch[sample.set];
        let Err(damage) = set.read_crop(sample.record, crop, scratch, lq, hr) else {
            return Ok(sample.record);
        };
        let damage = anyhow::Error::from(damage);
        // an error of the system says nothing about the record, so no other one takes its place
        if self.config.on_corrupt == OnCorrupt::Stop || failure::system_cause(&damage).is_some() {
            return Err(damage);
        }
        for attempt in 0..SUBSTITUTES {
            // a function of the damaged record alone: the same for any thread, and after a restart
            let record = key(&[
                PURPOSE_SUBSTITUTE,
                self.config.seed,
                sample.set as u64,
                sample.record,
                attempt,
            ]) % set.len();
            if set.read_crop(record, crop, scratch, lq, hr).is_ok() {
                self.told.substituted.fetch_add(1, Ordering::Relaxed);
                let mut reports = self
                    .told
                    .reports
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if reports.seen.len() < MAX_REPORTS
                    && reports
                        .seen
                        .insert(self.sources.number(sample.set, sample.record))
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

    /// Has the kernel fetch what is read next while this batch is decoded. Where everything is in
    /// memory already, it asks again only now and then.
    fn fetch_ahead(&mut self, number: u64) {
        let (ahead, io) = (number + self.config.threads as u64, self.config.io);
        for i in 0..self.config.batch {
            if let Some(turn) = self.order.window_change(self.sample_number(number, i)) {
                let set = self.sources.set(turn.set);
                turn.needed
                    .into_iter()
                    .flatten()
                    .for_each(|records| set.advise(records, Advice::WillNeed, io));
                turn.done
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
