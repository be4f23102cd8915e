//! The ring of slots: free -> filling -> ready -> in the caller's hands -> free, over bounded channels, filled by named
//! threads. Depends on `order` and `shard::reader`. Promises delivery strictly in order, no deadlock, errors that reach
//! the caller in their place, and that dropping the loader at any moment ends every thread.
//!
//! A thread takes a free slot first and a batch number second. So whoever has a number also has a slot to fill, every
//! number below the highest one taken is being worked on, and the batch the caller waits for always arrives.

use super::order::{Draws, Order};
use super::{LoaderConfig, STACK_BYTES, bound};
use crate::shard::reader::{Crop, Scratch, ShardSet};
use anyhow::{Context, Result, anyhow, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, select};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long `next` waits while the caller holds every slot. Another thread of the caller may be about to drop one, so it is
/// not an error at once; for ever would be a deadlock.
const HELD_TIMEOUT: Duration = Duration::from_secs(2);

/// The memory of one batch, allocated once: LQ pixels, HR pixels, augmentation codes in one block, so that a device can
/// be given all of it in one copy.
struct Slot {
    block: Box<[u8]>,
    records: Box<[u64]>,
}

/// Where the parts of a block end.
#[derive(Clone, Copy)]
struct Parts {
    lq: usize,
    hr: usize,
    whole: usize,
}

impl Parts {
    fn new(config: &LoaderConfig, scale: usize) -> Self {
        let lq = config.batch * config.lq_size * config.lq_size * 3;
        let hr = lq + lq * scale * scale;
        Parts { lq, hr, whole: hr + config.batch }
    }
}

/// A filled batch. Dropping it gives its memory back to the loader's threads.
pub struct Batch {
    slot: Option<Slot>,
    parts: Parts,
    number: u64,
    free: Sender<Slot>,
    held: Arc<AtomicUsize>,
}

impl Batch {
    /// LQ pixels: `[N, h, w, 3]` u8 RGB.
    pub fn lq(&self) -> &[u8] {
        &self.block()[..self.parts.lq]
    }

    /// HR pixels: `[N, H, W, 3]` u8 RGB.
    pub fn hr(&self) -> &[u8] {
        &self.block()[self.parts.lq..self.parts.hr]
    }

    /// One augmentation code a sample (see `plan::augment`); the pixels are not turned yet.
    pub fn augment(&self) -> &[u8] {
        &self.block()[self.parts.hr..]
    }

    /// LQ, HR and codes, one behind the other.
    pub fn block(&self) -> &[u8] {
        self.slot.as_ref().map_or(&[], |slot| &slot.block)
    }

    /// The record numbers of the samples.
    pub fn records(&self) -> &[u64] {
        self.slot.as_ref().map_or(&[], |slot| &slot.records)
    }

    /// The batch's number, counted from the start of the training.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.held.fetch_sub(1, Ordering::Relaxed);
            let _ = self.free.try_send(slot); // a loader that is gone needs no slots
        }
    }
}

/// Who waited for whom, since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Batches delivered.
    pub batches: u64,
    /// Time the caller spent waiting in `next`.
    pub consumer_waited: Duration,
    /// Time the threads spent waiting for a free slot, summed over threads.
    pub producers_waited: Duration,
}

type Filled = (u64, Slot, Result<()>);

/// A running loader.
pub struct Loader {
    ready: Receiver<Filled>,
    free: Sender<Slot>,
    slots: usize,
    held: Arc<AtomicUsize>,
    early: BTreeMap<u64, (Slot, Result<()>)>,
    parts: Parts,
    next: u64,
    delivered: u64,
    waited: Duration,
    producers_waited: Arc<AtomicU64>,
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Allocates the slots and starts the threads.
    ///
    /// # Errors
    /// Those of [`bound`]; threads or memory that the system refuses.
    pub fn start(set: Arc<ShardSet>, config: LoaderConfig) -> Result<Loader> {
        bound(&set, &config)?;
        let first_sample = config.start.checked_mul(config.batch as u64);
        first_sample.and_then(|s| s.checked_add(1 << 60)).context("the number of the first batch is out of range")?;
        let parts = Parts::new(&config, set.scale() as usize);
        let (free, free_slots) = bounded(config.slots);
        let (filled, ready) = bounded(config.slots);
        let (stop, stopped) = bounded::<()>(0);
        for _ in 0..config.slots {
            let slot = Slot { block: vec![0; parts.whole].into_boxed_slice(), records: vec![0; config.batch].into_boxed_slice() };
            free.send(slot).context("cannot hand out a slot")?;
        }
        let next = Arc::new(AtomicU64::new(config.start));
        let producers_waited = Arc::new(AtomicU64::new(0));
        let mut loader = Loader {
            ready,
            free,
            slots: config.slots,
            held: Arc::new(AtomicUsize::new(0)),
            early: BTreeMap::new(),
            parts,
            next: config.start,
            delivered: 0,
            waited: Duration::ZERO,
            producers_waited: producers_waited.clone(),
            stop: Some(stop),
            threads: Vec::new(),
        };
        for i in 0..config.threads {
            let filler = Filler {
                scratch: set.scratch()?,
                order: Order::new(
                    set.len(),
                    Draws {
                        seed: config.seed,
                        hflip: config.hflip,
                        rot: config.rot,
                        places: (set.lq_size() as usize - config.lq_size + 1) as u64,
                    },
                ),
                set: set.clone(),
                config: config.clone(),
                parts,
                free: free_slots.clone(),
                filled: filled.clone(),
                stopped: stopped.clone(),
                next: next.clone(),
                waited: producers_waited.clone(),
            };
            let builder = std::thread::Builder::new().name(format!("loader-{i}")).stack_size(STACK_BYTES);
            // on an error the loader is dropped here, which ends the threads started so far
            loader.threads.push(builder.spawn(move || filler.run()).context("cannot start a loader thread")?);
        }
        Ok(loader)
    }

    /// The next batch in order; waits until it is filled.
    ///
    /// # Errors
    /// What went wrong while this batch was read (shard, record and image are named); the batches behind it are still to
    /// be had. Also when the caller holds every slot and so waits for itself.
    #[allow(clippy::should_implement_trait)] // it fails, and it never ends
    pub fn next(&mut self) -> Result<Batch> {
        let started = Instant::now();
        let (slot, outcome) = loop {
            if let Some(found) = self.early.remove(&self.next) {
                break found;
            }
            let (number, slot, outcome) = match self.ready.recv_timeout(HELD_TIMEOUT) {
                Ok(filled) => filled,
                Err(RecvTimeoutError::Timeout) if self.held.load(Ordering::Relaxed) < self.slots => continue,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("all {} batches of the loader are held, so none can be filled; drop one first or use more slots", self.slots)
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the loader's threads are gone"),
            };
            self.early.insert(number, (slot, outcome));
        };
        self.waited += started.elapsed();
        let number = self.next;
        self.next += 1;
        self.held.fetch_add(1, Ordering::Relaxed);
        let (free, held) = (self.free.clone(), self.held.clone());
        let batch = Batch { slot: Some(slot), parts: self.parts, number, free, held };
        outcome.with_context(|| format!("cannot load batch {number}"))?;
        self.delivered += 1;
        Ok(batch)
    }

    /// Who waited for whom so far.
    pub fn stats(&self) -> Stats {
        Stats {
            batches: self.delivered,
            consumer_waited: self.waited,
            producers_waited: Duration::from_nanos(self.producers_waited.load(Ordering::Relaxed)),
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.take(); // every thread that waits for a slot sees this; none waits for anything else
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What one thread has.
struct Filler {
    set: Arc<ShardSet>,
    config: LoaderConfig,
    parts: Parts,
    order: Order,
    scratch: Scratch,
    free: Receiver<Slot>,
    filled: Sender<Filled>,
    stopped: Receiver<()>,
    next: Arc<AtomicU64>,
    waited: Arc<AtomicU64>,
}

impl Filler {
    fn run(mut self) {
        loop {
            let started = Instant::now();
            let slot = select! {
                recv(self.free) -> slot => slot,
                recv(self.stopped) -> _ => return,
            };
            self.waited.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
            let Ok(mut slot) = slot else { return };
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let outcome = catch_unwind(AssertUnwindSafe(|| self.fill(number, &mut slot)))
                .unwrap_or_else(|_| Err(anyhow!("a fault of paragon in a loader thread; please report it")));
            // there are as many places as slots, so this never waits
            if self.filled.send((number, slot, outcome)).is_err() {
                return;
            }
        }
    }

    fn fill(&mut self, number: u64, slot: &mut Slot) -> Result<()> {
        let count = self.config.batch;
        let (lq, rest) = slot.block.split_at_mut(self.parts.lq);
        let (hr, augment) = rest.split_at_mut(self.parts.hr - self.parts.lq);
        let pairs = lq.chunks_exact_mut(lq.len() / count).zip(hr.chunks_exact_mut(hr.len() / count));
        for (i, (lq, hr)) in pairs.enumerate() {
            // between records, so that dropping the loader does not wait for a whole batch
            if let Err(TryRecvError::Disconnected) = self.stopped.try_recv() {
                bail!("the loader is being dropped");
            }
            let sample = self.order.sample(number * count as u64 + i as u64);
            augment[i] = sample.augment;
            slot.records[i] = sample.record;
            let crop = Crop { x: sample.x as usize, y: sample.y as usize, size: self.config.lq_size };
            self.set.read_crop(sample.record, crop, &mut self.scratch, lq, hr)?;
        }
        Ok(())
    }
}
