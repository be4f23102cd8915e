//! What runs a plan: a handful of coarse verbs, no tensors. Depends on the plan alone; it never
//! sees shards, the loader or the networks. A backend allocates exactly the plan's arena, once.

pub mod cpu;
pub mod cuda;
mod formulas;
pub mod selftest;

pub use cuda::{CONTEXT_ESTIMATE, CudaSizing, DRIVER_HOST_ESTIMATE};

use crate::plan::{BatchLayout, BufferId, METRICS, Plan};
use crate::sys::host_memory::{Fence, HostBlock};
use anyhow::{Result, ensure};
use std::marker::PhantomData;

/// The few numbers that change from step to step; on a device they live in memory so that a
/// captured step stays valid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scalars {
    /// Learning rate of this iteration.
    pub lr: f64,
    /// Iteration number for Adam's bias correction, from 1; counts applied updates only.
    pub step: u64,
    /// Largest global gradient norm; `f64::INFINITY` for no clipping.
    pub clip: f64,
    /// EMA weight of the old average; 0 copies.
    pub ema_decay: f64,
    /// Factor on the loss gradient of each micro-batch: 1 / accumulation.
    pub micro_scale: f32,
    /// fp16: the factor that every gradient carries until the optimizer divides by it, so that
    /// small ones are not lost; 1 otherwise.
    pub loss_scale: f32,
    /// Whether gradients add to those of the micro-batches before (false for the first).
    pub accumulate: bool,
}

/// What the host learns of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMetrics {
    /// Weighted loss summed over the iteration's micro-batches, each divided by their number.
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The update was skipped since loss or gradient norm was not finite.
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

/// One batch as the loader hands it over: u8 NHWC patches and one augmentation code each.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    /// `[N, h, w, 3]`
    pub lq: &'a [u8],
    /// `[N, H, W, 3]`; empty for inference.
    pub hr: &'a [u8],
    /// `[N]`, see [`crate::support::augment`]; empty means no augmentation.
    pub augment: &'a [u8],
}

impl BatchView<'_> {
    /// Whether it is what a plan takes.
    ///
    /// # Errors
    /// What differs.
    fn check(&self, layout: &BatchLayout) -> Result<()> {
        ensure!(
            self.lq.len() == layout.lq_bytes() && self.hr.len() == layout.hr_bytes(),
            "a batch of {} + {} bytes where the plan takes {} + {}",
            self.lq.len(),
            self.hr.len(),
            layout.lq_bytes(),
            layout.hr_bytes()
        );
        ensure!(
            self.augment.is_empty() || self.augment.len() == layout.count,
            "a batch needs one augmentation code a patch"
        );
        let turned = self.augment.iter().any(|&code| code != 0);
        ensure!(
            !turned || layout.lq.0 == layout.lq.1,
            "only square patches can be turned"
        );
        Ok(())
    }
}

/// Runs one plan.
pub trait Backend {
    /// What it is, for the user: device, instruction set, threads.
    fn description(&self) -> String;
    /// The plan it was loaded with.
    fn plan(&self) -> &Plan;
    /// Bytes really allocated for the arena.
    fn allocated(&self) -> u64;
    /// Copies `bytes` into a buffer at `offset` bytes.
    ///
    /// # Errors
    /// When the range leaves the buffer.
    fn write(&mut self, buffer: BufferId, offset: usize, bytes: &[u8]) -> Result<()>;
    /// Copies from a buffer at `offset` bytes.
    ///
    /// # Errors
    /// When the range leaves the buffer.
    fn read(&mut self, buffer: BufferId, offset: usize, bytes: &mut [u8]) -> Result<()>;
    /// A backend for an inference plan in the part of this one's arena that holds nothing between
    /// steps. What it wrote is gone with the next step.
    ///
    /// # Errors
    /// When the plan needs more than there is.
    fn lend(&mut self, plan: Plan) -> Result<Box<dyn Backend + '_>>;
    /// Host memory from which batches travel best; plain memory where nothing travels.
    ///
    /// # Errors
    /// When the system has not that much.
    fn allocate(&self, bytes: usize) -> Result<HostBlock> {
        HostBlock::heap(bytes)
    }

    /// Starts bringing a batch to where the next micro-batch reads it, beside what is under way.
    /// Returns what tells when the batch's memory may change again (it waits when dropped); nothing
    /// where that is now.
    ///
    /// # Errors
    /// When the batch has not the plan's sizes.
    fn stage(&mut self, batch: BatchView<'_>) -> Result<Option<Box<dyn Fence>>>;
    /// Runs the plan's `micro` operations on the batch staged last, or, where the plan takes none,
    /// on its float inputs. A device only starts them.
    ///
    /// # Errors
    /// When the device fails.
    fn micro_step(&mut self, scalars: &Scalars) -> Result<()>;
    /// Runs one operation of the plan on whatever its buffers hold: how backends are compared with
    /// each other.
    ///
    /// # Errors
    /// When the device fails.
    fn run_operation(&mut self, at: usize, scalars: &Scalars) -> Result<()>;
    /// Runs the plan's `update` operations.
    ///
    /// # Errors
    /// When the device fails.
    fn update(&mut self, scalars: &Scalars) -> Result<()>;
    /// Loss, gradient norm and whether the last update was skipped; waits for it.
    ///
    /// # Errors
    /// When the device fails.
    fn metrics(&mut self) -> Result<StepMetrics>;
    /// Whether `metrics` are still those of the last update while the next micro-batch is computed,
    /// and waits for no more than that update: the next may then be started before anybody has
    /// looked at them.
    fn metrics_survive_next_step(&self) -> bool {
        false
    }
}

/// Reads a whole f32 buffer.
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

/// A backend in a part of another one's arena, which stands still meanwhile.
struct LentBackend<'a, B> {
    backend: B,
    _host: PhantomData<&'a mut B>,
}

impl<'a, B: Backend + 'a> LentBackend<'a, B> {
    fn lend(backend: B) -> Box<dyn Backend + 'a> {
        Box::new(LentBackend {
            backend,
            _host: PhantomData,
        })
    }
}

impl<B: Backend> Backend for LentBackend<'_, B> {
    fn description(&self) -> String {
        self.backend.description()
    }

    fn plan(&self) -> &Plan {
        self.backend.plan()
    }

    fn allocated(&self) -> u64 {
        0
    }

    fn write(&mut self, buffer: BufferId, offset: usize, bytes: &[u8]) -> Result<()> {
        self.backend.write(buffer, offset, bytes)
    }

    fn read(&mut self, buffer: BufferId, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.backend.read(buffer, offset, bytes)
    }

    fn lend(&mut self, plan: Plan) -> Result<Box<dyn Backend + '_>> {
        self.backend.lend(plan)
    }

    fn stage(&mut self, batch: BatchView<'_>) -> Result<Option<Box<dyn Fence>>> {
        self.backend.stage(batch)
    }

    fn micro_step(&mut self, scalars: &Scalars) -> Result<()> {
        self.backend.micro_step(scalars)
    }

    fn run_operation(&mut self, at: usize, scalars: &Scalars) -> Result<()> {
        self.backend.run_operation(at, scalars)
    }

    fn update(&mut self, scalars: &Scalars) -> Result<()> {
        self.backend.update(scalars)
    }

    fn metrics(&mut self) -> Result<StepMetrics> {
        self.backend.metrics()
    }

    fn metrics_survive_next_step(&self) -> bool {
        self.backend.metrics_survive_next_step()
    }
}
