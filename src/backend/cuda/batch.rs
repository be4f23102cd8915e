//! The places of a staged batch on the device: the next batch is copied to one while the step reads
//! the other. It promises that memory of the host is not given back while a copy still reads it.
//! Depends on the device and on launches.

use super::device::Device;
use super::driver::{Call, bind_to_release, settle};
use super::launch::Launch;
use super::launching::StepGraph;
use crate::backend::BatchView;
use crate::plan::{BatchLayout, BufferId, PlanData};
use crate::sys::host_memory::Fence;
use anyhow::Result;
use cudarc::driver::{CudaEvent, result};

/// Where a staged batch is kept on the device: the next batch is copied to one place while the step
/// reads the other.
pub(super) struct BatchPlace {
    /// The batch's buffer; `None` for a plan without a batch.
    pub batch: Option<BufferId>,
    /// Its address.
    at: u64,
    /// Passes when the last micro-batch that read it is done.
    pub used: CudaEvent,
    /// The launches of a micro-batch that reads it.
    pub launches: Vec<Launch>,
    /// The same, captured.
    pub graph: Option<StepGraph>,
}

/// A fence that passes when a copy from host memory is done. Dropping it waits, so that memory that
/// is still read is never reused.
struct CopyFence(CudaEvent);

impl Fence for CopyFence {
    fn is_done(&self) -> bool {
        // the calling thread may not have used the device yet
        bind_to_release(self.0.context());
        // after an error the device is lost and copies nothing any more
        self.0.try_is_complete().unwrap_or(true)
    }

    fn wait(&self) {
        bind_to_release(self.0.context());
        // an error of the device is reported by the next call that returns a result. cudarc's own
        // wait returns at once when it has an error to report
        // SAFETY: the event lives as long as the fence
        let _ = unsafe { result::event::synchronize(self.0.cu_event()) };
    }
}

impl Drop for CopyFence {
    fn drop(&mut self) {
        self.wait();
    }
}

impl BatchPlace {
    fn new(device: &Device, batch: Option<BufferId>, at: u64) -> Result<BatchPlace> {
        Ok(BatchPlace {
            batch,
            at,
            used: device.event()?,
            launches: Vec::new(),
            graph: None,
        })
    }

    /// The places of a plan's batches, with the launches that read each; one place without a batch
    /// where the plan takes none.
    pub fn all(
        device: &Device,
        plan: &PlanData,
        base: u64,
        micro: &[Launch],
    ) -> Result<Vec<BatchPlace>> {
        let batches = plan.batch.map(|b| b.buffer);
        let mut places = Vec::new();
        for buffer in batches.into_iter().chain(plan.ports.next_batch) {
            let at = base + plan.buffer(buffer).offset;
            places.push(BatchPlace::new(device, Some(buffer), at)?);
        }
        if places.is_empty() {
            places.push(BatchPlace::new(device, None, 0)?);
        }
        for place in &mut places {
            place.launches = place.reading(plan, micro);
        }
        Ok(places)
    }

    /// A plan's launches, reading the batch from here.
    pub fn reading(&self, plan: &PlanData, launches: &[Launch]) -> Vec<Launch> {
        let mut launches = launches.to_vec();
        if let (Some(from), Some(to)) = (plan.batch, self.batch) {
            launches
                .iter_mut()
                .flat_map(|l| l.arguments.pointers_mut())
                .filter(|pointer| pointer.buffer == from.buffer)
                .for_each(|pointer| pointer.buffer = to);
        }
        launches
    }

    /// Copies a batch to the place, once no micro-batch reads it, and makes later launches wait for
    /// it. The batch must not be overwritten before the fence has passed.
    ///
    /// # Errors
    /// When the driver refuses a part; no copy reads the batch then.
    pub fn copy(
        &self,
        device: &Device,
        layout: &BatchLayout,
        batch: BatchView<'_>,
    ) -> Result<Box<dyn Fence>> {
        let begun = self.begin_copy(device, layout, batch);
        if begun.is_err() {
            // copies that were started before the error still read the batch
            settle(&device.copies);
        }
        Ok(Box::new(CopyFence(begun?)))
    }

    /// As [`BatchPlace::copy`], but after an error some copies may still run.
    fn begin_copy(
        &self,
        device: &Device,
        layout: &BatchLayout,
        batch: BatchView<'_>,
    ) -> Result<CudaEvent> {
        // a new event, since the fence may outlive the place's next copy
        let copied = device.blocking_event()?;
        let stream = device.copies.cu_stream();
        device
            .copies
            .wait(&self.used)
            .call("wait for a batch's place")?;
        let codes = self.at + layout.augment_offset() as u64;
        let parts = [
            (self.at, batch.lq),
            (self.at + layout.lq_bytes() as u64, batch.hr),
            (codes, batch.augment),
        ];
        for (at, bytes) in parts {
            if !bytes.is_empty() {
                // SAFETY: the caller checked the sizes; the fence, or the caller after an error,
                // keeps the bytes until the copy is done
                unsafe { result::memcpy_htod_async(at, bytes, stream) }.call("copy a batch")?;
            }
        }
        if batch.augment.is_empty() {
            // SAFETY: the codes are the last part of the batch's buffer
            unsafe { result::memset_d8_async(codes, 0, layout.count, stream) }
                .call("clear the codes")?;
        }
        copied.record(&device.copies).call("mark a copy")?;
        device.compute.wait(&copied).call("wait for a batch")?;
        Ok(copied)
    }
}
