//! The memory of one batch, and who has it. Depends on `host_memory`. Promises that a slot goes
//! back to the loader exactly once: when its batch is dropped, or when the device is done with the
//! copy that was started from it.

use super::{LoaderConfig, Sources};
use crate::sys::host_memory::{Allocate, Fence, HostBlock};
use anyhow::Result;
use crossbeam_channel::Sender;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The memory of one batch, allocated once: LQ pixels, HR pixels, augmentation codes in one block,
/// so that a device can be given all of it in one copy.
pub(super) struct Slot {
    pub block: HostBlock,
    pub records: Box<[u64]>,
}

/// Where the parts of a block end.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub lq: usize,
    pub hr: usize,
    whole: usize,
}

impl Parts {
    pub fn new(config: &LoaderConfig, sources: &Sources) -> Self {
        let scale = sources.scale() as usize;
        let lq = config.batch * config.lq_size * config.lq_size * 3;
        let hr = lq + lq * scale * scale;
        Parts {
            lq,
            hr,
            whole: hr + config.batch,
        }
    }

    pub fn slot(&self, batch: usize, allocate: Allocate<'_>) -> Result<Slot> {
        Ok(Slot {
            block: allocate(self.whole)?,
            records: vec![0; batch].into_boxed_slice(),
        })
    }
}

/// A slot that a device still reads from.
pub(super) type InFlight = (Slot, Box<dyn Fence>);

/// The way of slots back to the loader.
#[derive(Clone)]
pub(super) struct Return {
    pub free: Sender<Slot>,
    pub in_flight: Sender<InFlight>,
    /// Slots in the caller's hands.
    pub held: Arc<AtomicUsize>,
}

/// A filled batch. Dropping it gives its memory back to the loader's threads.
pub struct Batch {
    slot: Option<Slot>,
    parts: Parts,
    number: u64,
    back: Return,
}

impl Batch {
    pub(super) fn new(slot: Slot, parts: Parts, number: u64, back: Return) -> Batch {
        back.held.fetch_add(1, Ordering::Relaxed);
        Batch {
            slot: Some(slot),
            parts,
            number,
            back,
        }
    }

    /// LQ pixels: `[N, h, w, 3]` u8 RGB.
    pub fn lq(&self) -> &[u8] {
        &self.block()[..self.parts.lq]
    }

    /// HR pixels: `[N, H, W, 3]` u8 RGB.
    pub fn hr(&self) -> &[u8] {
        &self.block()[self.parts.lq..self.parts.hr]
    }

    /// One augmentation code a sample (see `support::augment`); the pixels are not turned yet.
    pub fn augment(&self) -> &[u8] {
        &self.block()[self.parts.hr..]
    }

    /// LQ, HR and codes, one behind the other.
    pub fn block(&self) -> &[u8] {
        self.slot.as_ref().map_or(&[], |slot| &slot.block)
    }

    /// The record numbers of the samples, counted through all sets.
    pub fn records(&self) -> &[u64] {
        self.slot.as_ref().map_or(&[], |slot| &slot.records)
    }

    /// The batch's number, counted from the start of the training.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Gives the memory back as soon as a device is done with it: for copies that were started and
    /// not waited for. The slot is not filled again before.
    pub fn return_after(mut self, fence: Box<dyn Fence>) {
        let Some(slot) = self.slot.take() else { return };
        self.back.held.fetch_sub(1, Ordering::Relaxed);
        // there is a place for every slot; what comes back is that of a loader that is gone
        if let Err(refused) = self.back.in_flight.try_send((slot, fence)) {
            let (slot, fence) = refused.into_inner();
            fence.wait();
            drop(slot);
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.back.held.fetch_sub(1, Ordering::Relaxed);
            let _ = self.back.free.try_send(slot); // a loader that is gone needs no slots
        }
    }
}
