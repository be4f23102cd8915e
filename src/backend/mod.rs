//! Backends run a plan. They offer a few coarse operations on whole batches and no tensors. Depends
//! on the plan alone: a backend knows nothing of shards, the loader or the networks. Promises that
//! a backend allocates exactly the plan's arena, once.

mod choice;
pub mod cpu;
pub mod cuda;
mod error;
mod formulas;
mod lent;
#[doc(hidden)]
pub mod selftest;

pub use choice::DeviceChoice;
pub use cuda::{CONTEXT_ESTIMATE, CudaSizing, DRIVER_HOST_ESTIMATE};
pub use error::Error;

use crate::plan::{BatchLayout, BufferId, METRICS, Plan};
use crate::sys::host_memory::{Fence, HostBlock};
use anyhow::Result;
use lent::LentBackend;

/// The numbers that change from step to step. On a device they are kept in memory, so that a
/// captured step (a CUDA graph) remains valid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scalars {
    /// Learning rate of this iteration.
    pub lr: f64,
    /// Iteration number for Adam's bias correction, from 1; counts applied updates only.
    pub step: u64,
    /// Largest global gradient norm; `f64::INFINITY` for no clipping.
    pub clip: f64,
    /// EMA weight of the old average, in 0..=1; 0 copies the parameters.
    pub ema_decay: f64,
    /// Factor on the loss gradient of each micro-batch: 1 / micro-batches per iteration.
    pub micro_scale: f32,
    /// Factor on every gradient until the optimizer divides by it, which keeps small fp16 gradients
    /// from becoming 0; 1 for other types.
    pub loss_scale: f32,
    /// Whether gradients are added to those of the iteration's earlier micro-batches; false for the
    /// first micro-batch.
    pub accumulate: bool,
}

/// The results of an update that the host reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMetrics {
    /// Weighted loss: the sum over the iteration's micro-batches, each divided by their number.
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Whether the update was skipped because loss or gradient norm was not finite.
    pub skipped: bool,
}

impl StepMetrics {
    /// From the values of the metrics buffer.
    fn from_values(values: [f64; METRICS]) -> StepMetrics {
        StepMetrics {
            loss: values[0],
            grad_norm: values[1],
            skipped: values[2] != 0.0,
        }
    }
}

/// One batch from the loader: u8 NHWC patches and one augmentation code per patch. N, h, w, H and W
/// are those of the plan's [`BatchLayout`].
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    /// LQ patches `[N, h, w, 3]`.
    pub lq: &'a [u8],
    /// HR patches `[N, H, W, 3]`; empty for inference.
    pub hr: &'a [u8],
    /// Augmentation codes `[N]`, see [`crate::support::augment`]; empty means no augmentation.
    pub augment: &'a [u8],
}

impl BatchView<'_> {
    /// Checks that the batch has the sizes of a plan's batch.
    ///
    /// # Errors
    /// [`Error::Misuse`], with what differs.
    fn check(&self, layout: &BatchLayout) -> Result<(), Error> {
        let (lq, hr) = (layout.lq_bytes(), layout.hr_bytes());
        if self.lq.len() != lq || self.hr.len() != hr {
            return Err(Error::Misuse(format!(
                "a batch of {} + {} bytes where the plan takes {lq} + {hr}",
                self.lq.len(),
                self.hr.len()
            )));
        }
        if !self.augment.is_empty() && self.augment.len() != layout.count {
            let text = "a batch needs one augmentation code a patch";
            return Err(Error::Misuse(text.into()));
        }
        let augmented = self.augment.iter().any(|&code| code != 0);
        if augmented && layout.lq.0 != layout.lq.1 {
            let text = "only square patches can be turned";
            return Err(Error::Misuse(text.into()));
        }
        Ok(())
    }
}

/// Runs one plan.
///
/// A training iteration is, for each micro-batch, [`stage`](Backend::stage) and
/// [`micro_step`](Backend::micro_step), then one [`update`](Backend::update). A device runs
/// asynchronously: these calls return when the work is queued, and [`read`](Backend::read) and
/// [`metrics`](Backend::metrics) wait for it. Errors that a caller can act on are [`Error`] in the
/// chain of [`anyhow::Error`]. After an error of the device, the content of the arena is undefined.
pub trait Backend {
    /// Device, instruction set and threads, for the user.
    fn description(&self) -> String;
    /// The plan that was loaded.
    fn plan(&self) -> &Plan;
    /// Bytes allocated for the arena; 0 for a backend that [`lend`](Backend::lend) returned.
    fn allocated(&self) -> u64;
    /// Copies `bytes` into a buffer, starting at the buffer's byte `offset`.
    ///
    /// # Errors
    /// [`Error::Plan`] if the range is not inside the buffer, or an error of the device.
    fn write(&mut self, buffer: BufferId, offset: usize, bytes: &[u8]) -> Result<()>;
    /// Copies from a buffer, starting at the buffer's byte `offset`. Waits for the work that was
    /// queued before.
    ///
    /// # Errors
    /// [`Error::Plan`] if the range is not inside the buffer, or an error of the device.
    fn read(&mut self, buffer: BufferId, offset: usize, bytes: &mut [u8]) -> Result<()>;
    /// Loads an inference plan into the part of this backend's arena that is free between steps
    /// ([`PlanData::free_between_steps`](crate::plan::PlanData::free_between_steps)), so that
    /// validation allocates nothing. This backend cannot be used while the returned one exists; its
    /// next step overwrites what the returned one wrote.
    ///
    /// # Errors
    /// [`Error::Plan`] if the plan was sized for another backend or is larger than the free part.
    fn lend(&mut self, plan: Plan) -> Result<Box<dyn Backend + '_>>;
    /// Allocates host memory for batches: pinned memory if the backend copies batches to a device,
    /// else ordinary memory.
    ///
    /// # Errors
    /// When the system does not have that much memory.
    fn allocate(&self, bytes: usize) -> Result<HostBlock> {
        HostBlock::heap(bytes)
    }

    /// Starts to copy a batch to where the next micro-batch is read from; a device copies while it
    /// computes. Returns a fence: the batch must not be overwritten before it has passed (dropping
    /// it waits). `None`: the batch was copied already.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the batch does not have the plan's sizes, or an error of the device.
    fn stage(&mut self, batch: BatchView<'_>) -> Result<Option<Box<dyn Fence>>>;
    /// Runs the plan's `micro` operations on the batch that was staged last, or on the float input
    /// buffers of a plan without batches. A device only queues them.
    ///
    /// # Errors
    /// When the device fails.
    fn micro_step(&mut self, scalars: &Scalars) -> Result<()>;
    /// Runs operation `at` of the plan alone, on the current content of its buffers: to compare
    /// backends with each other.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the plan has no such operation, or an error of the device.
    fn run_operation(&mut self, at: usize, scalars: &Scalars) -> Result<()>;
    /// Runs the plan's `update` operations. A device only queues them.
    ///
    /// # Errors
    /// When the device fails.
    fn update(&mut self, scalars: &Scalars) -> Result<()>;
    /// Loss and gradient norm of the last update, and whether it was skipped. Waits for the update.
    ///
    /// # Errors
    /// [`Error::Misuse`] for an inference plan, or an error of the device.
    fn metrics(&mut self) -> Result<StepMetrics>;
    /// True if [`metrics`](Backend::metrics) may be called after the next micro-step was launched,
    /// and then still returns the previous update's values, waiting for that update only. The
    /// caller can then launch the next micro-step before it looks at the metrics, and the device
    /// does not become idle.
    fn metrics_survive_next_step(&self) -> bool {
        false
    }
}

/// Reads f32 values from the start of a buffer.
///
/// # Errors
/// As [`Backend::read`].
pub fn read_floats(backend: &mut dyn Backend, buffer: BufferId, out: &mut [f32]) -> Result<()> {
    backend.read(buffer, 0, bytemuck::cast_slice_mut(out))
}

/// Writes f32 values from the start of a buffer.
///
/// # Errors
/// As [`Backend::write`].
pub fn write_floats(backend: &mut dyn Backend, buffer: BufferId, values: &[f32]) -> Result<()> {
    backend.write(buffer, 0, bytemuck::cast_slice(values))
}
