//! The memory of one batch and its way back to the loader. Depends on `host_memory`. Promises that
//! a slot returns to the loader exactly once: when its batch is dropped, or when the device has
//! finished the copy that was started from it.

use super::{LoaderConfig, Sources};
use crate::sys::host_memory::{Allocate, Fence, HostBlock};
use anyhow::Result;
use crossbeam_channel::Sender;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The memory of one batch, allocated once. LQ pixels, HR pixels and augmentation codes are one
/// block, so that one copy takes all of it to a device.
pub(super) struct Slot {
    pub block: HostBlock,
    /// LQ and HR values after [`LoaderConfig::conversion`], if there is one.
    pub converted: Option<HostBlock>,
    /// Record number of every sample, counted through all sets.
    pub records: Box<[u64]>,
}

/// Offsets within the block of a slot, bytes.
#[derive(Clone, Copy)]
pub(super) struct SlotLayout {
    /// End of the LQ pixels.
    pub lq: usize,
    /// End of the HR pixels.
    pub hr: usize,
    /// End of the augmentation codes: the length of the block.
    end: usize,
    /// Bytes of a converted value; 0 if nothing is converted.
    pub element_bytes: usize,
}

impl SlotLayout {
    /// The layout of the batches of a loader.
    pub fn new(config: &LoaderConfig, sources: &Sources) -> Self {
        let scale = sources.scale() as usize;
        let lq = config.batch * config.lq_size * config.lq_size * 3;
        let hr = lq + lq * scale * scale;
        SlotLayout {
            lq,
            hr,
            end: hr + config.batch,
            element_bytes: config.conversion.map_or(0, |c| c.element.bytes()),
        }
    }

    /// Allocates a slot for `batch` samples. `allocate` is for what the caller takes: with a
    /// conversion the stored pixels stay on the heap.
    pub fn slot(&self, batch: usize, allocate: Allocate<'_>) -> Result<Slot> {
        let converts = self.element_bytes > 0;
        let values = || allocate(self.hr * self.element_bytes);
        Ok(Slot {
            block: if converts {
                HostBlock::heap(self.end)?
            } else {
                allocate(self.end)?
            },
            converted: converts.then(values).transpose()?,
            records: vec![0; batch].into_boxed_slice(),
        })
    }
}

/// A slot that a device still reads, and the fence that tells when it has finished.
pub(super) type InFlight = (Slot, Box<dyn Fence>);

/// The channels through which slots return to the loader.
#[derive(Clone)]
pub(super) struct SlotReturn {
    /// Slots that can be filled again.
    pub free: Sender<Slot>,
    /// Slots that a device still reads.
    pub in_flight: Sender<InFlight>,
    /// Slots in the caller's hands.
    pub held: Arc<AtomicUsize>,
}

/// A filled batch. Dropping it returns its memory to the loader's threads.
pub struct Batch {
    slot: Option<Slot>,
    layout: SlotLayout,
    number: u64,
    slot_return: SlotReturn,
}

impl Batch {
    pub(super) fn new(
        slot: Slot,
        layout: SlotLayout,
        number: u64,
        slot_return: SlotReturn,
    ) -> Batch {
        slot_return.held.fetch_add(1, Ordering::Relaxed);
        Batch {
            slot: Some(slot),
            layout,
            number,
            slot_return,
        }
    }

    /// LQ pixels: `[N, LQ height, LQ width, 3]`, u8 RGB.
    pub fn lq(&self) -> &[u8] {
        &self.block()[..self.layout.lq]
    }

    /// HR pixels: `[N, HR height, HR width, 3]`, u8 RGB.
    pub fn hr(&self) -> &[u8] {
        &self.block()[self.layout.lq..self.layout.hr]
    }

    /// One augmentation code per sample, `[N]` u8 (see [`crate::support::augment`]); the pixels are
    /// not augmented yet.
    pub fn augment(&self) -> &[u8] {
        &self.block()[self.layout.hr..]
    }

    /// LQ and HR values after [`LoaderConfig::conversion`], flips and turns applied; `None` without
    /// a conversion.
    pub fn converted(&self) -> Option<(&[u8], &[u8])> {
        let values = self.slot.as_ref()?.converted.as_ref()?;
        Some(values.split_at(self.layout.lq * self.layout.element_bytes))
    }

    /// LQ pixels, HR pixels and augmentation codes, contiguous.
    pub fn block(&self) -> &[u8] {
        self.slot.as_ref().map_or(&[], |slot| &slot.block)
    }

    /// Record number of every sample, `[N]`, counted through all sets.
    pub fn records(&self) -> &[u64] {
        self.slot.as_ref().map_or(&[], |slot| &slot.records)
    }

    /// Number of the batch, counted from the start of the training.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the memory to the loader once `fence` has passed, for asynchronous copies to a
    /// device. The slot is not filled before that.
    pub fn return_after(mut self, fence: Box<dyn Fence>) {
        let Some(slot) = self.slot.take() else { return };
        self.slot_return.held.fetch_sub(1, Ordering::Relaxed);
        // The channel has room for every slot, so a refusal means that the loader was dropped.
        if let Err(refused) = self.slot_return.in_flight.try_send((slot, fence)) {
            let (slot, fence) = refused.into_inner();
            fence.wait();
            drop(slot);
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.slot_return.held.fetch_sub(1, Ordering::Relaxed);
            let _ = self.slot_return.free.try_send(slot); // fails only if the loader was dropped
        }
    }
}
