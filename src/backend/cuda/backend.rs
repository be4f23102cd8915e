//! The backend that runs a plan's launches on a CUDA device, as graphs where the driver can capture
//! them. It promises that a device that fails is an error, never a panic. Depends on the device,
//! the places of batches and the lowering; `launching.rs` has its launches.

use super::CudaSizing;
use super::batch::BatchPlace;
use super::device::{Device, Memory};
use super::driver::{Call, settle};
use super::launch::{Launch, Program};
use super::launching::StepGraph;
use super::lower::{lower, lower_range_for};
use super::module::Module;
use super::resources::{KernelResources, carveout, listed};
use super::scalars::scalars_launch;
use super::signatures::SET_SCALARS;
use crate::backend::{Backend, BatchView, Error, LentBackend, Scalars, StepMetrics};
use crate::plan::{BufferId, METRICS, Plan};
use crate::sys::host_memory::{Fence, HostBlock};
use anyhow::Result;
use cudarc::driver::{CudaEvent, result};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The metrics of an update, copied to the host asynchronously, so that the next step may start
/// before they are read.
struct MetricsCopy {
    /// Pinned; valid once `copied` has passed.
    values: HostBlock,
    copied: CudaEvent,
}

/// A plan loaded on a device.
pub struct CudaBackend {
    pub(super) plan: Plan,
    pub(super) device: Arc<Device>,
    /// Where the plan's arena begins: at the allocation's start, or inside the part that another
    /// backend lends.
    pub(super) base: u64,
    pub(super) memory: Arc<Memory>,
    pub(super) module: Arc<Module>,
    /// Two where the next batch is copied ahead, else one.
    pub(super) places: Vec<BatchPlace>,
    /// Index of the place that the next micro-batch reads.
    pub(super) current: usize,
    /// The launches of the optimizer, and the same captured.
    pub(super) update: Vec<Launch>,
    pub(super) update_graph: Option<StepGraph>,
    /// The launch that set the device's block of scalars last.
    pub(super) scalars: Option<Launch>,
    /// The metrics of the last update; `None` before the first.
    metrics_copy: Option<MetricsCopy>,
    /// Why the step is launched kernel by kernel; `None` where it is captured.
    pub(super) no_graph: Option<String>,
}

impl CudaBackend {
    /// Allocates the arena, loads the kernels and captures the step.
    ///
    /// # Errors
    /// When the plan was not made for a device, its arena does not fit, or the driver refuses
    /// something.
    pub fn new(device: &Arc<Device>, plan: Plan) -> Result<CudaBackend> {
        let memory = Arc::new(Memory::new(device, plan.arena_bytes)?);
        let mut backend = CudaBackend::load(device, plan, memory.clone(), memory.base)?;
        backend.capture();
        Ok(backend)
    }

    /// Loads a plan into memory that is there already, from the address `base` on. Its launches are
    /// not captured.
    ///
    /// # Errors
    /// Those of [`CudaBackend::new`], but for the memory.
    pub(super) fn load(
        device: &Arc<Device>,
        plan: Plan,
        memory: Arc<Memory>,
        base: u64,
    ) -> Result<CudaBackend> {
        plan.check_sized_for(&CudaSizing {
            precision: plan.precision,
        })
        .map_err(Error::Plan)?;
        let Program { micro, update } = lower(&plan, device.choices())?;
        let module = device.module(plan.precision)?;
        let places = BatchPlace::all(device, &plan, base, &micro)?;
        let backend = CudaBackend {
            plan,
            device: device.clone(),
            base,
            memory,
            module,
            places,
            current: 0,
            update,
            update_graph: None,
            scalars: None,
            metrics_copy: None,
            no_graph: None,
        };
        backend.load_kernels()?;
        // a lent backend's batch must not be copied over memory that a running step still uses
        backend
            .places
            .iter()
            .try_for_each(|p| p.used.record(&device.compute).call("mark a place"))?;
        Ok(backend)
    }

    /// Launches the kernel that sets the device's scalars, unless it holds these already.
    pub(super) fn set_scalars(&mut self, scalars: &Scalars) -> Result<()> {
        let Some(launch) = scalars_launch(&self.plan, scalars) else {
            return Ok(());
        };
        if self.scalars.as_ref() != Some(&launch) {
            self.launch(std::slice::from_ref(&launch))?;
            self.scalars = Some(launch);
        }
        Ok(())
    }

    /// Kernel, threads of a block and bytes of shared memory of the plan's launches, each once.
    fn shapes(&self) -> BTreeSet<(&'static str, u32, u32)> {
        let launches = self.places[0].launches.iter().chain(&self.update);
        launches.map(|l| (l.kernel, l.block, l.shared)).collect()
    }

    /// Finds every kernel of the plan, so that a missing one is an error now and not at the first
    /// step, and divides the multiprocessors' cache: as much shared memory as the blocks that run at
    /// once use, the rest for loads. All kernels ask for the same, since a multiprocessor must be
    /// idle to change the division.
    fn load_kernels(&self) -> Result<()> {
        if self.plan.ports.scalars.is_some() {
            self.module.function(SET_SCALARS.name)?;
        }
        let reserved = u64::from(self.device.multiprocessor().reserved_bytes);
        let mut used = 0;
        let mut blocks = Vec::new();
        for (kernel, threads, shared) in self.shapes() {
            let function = self.module.function(kernel)?;
            // an earlier plan may have lowered it
            function.set_carveout(100);
            let fit = function.blocks_at_once(threads, shared)?;
            used = used.max(u64::from(fit) * (u64::from(shared) + reserved));
            blocks.push((kernel, threads, shared, fit));
        }
        let percent = self
            .device
            .switches
            .carveout
            .unwrap_or_else(|| carveout(self.device.capability, used));
        self.module.divide_cache(percent)?;
        // the driver decides what a percentage means: no kernel may lose blocks by it
        for (kernel, threads, shared, fit) in blocks {
            let function = self.module.function(kernel)?;
            if self.device.switches.carveout.is_none()
                && function.blocks_at_once(threads, shared)? < fit
            {
                return self.module.divide_cache(100);
            }
        }
        Ok(())
    }

    /// What the driver's assembler made of the plan's kernels.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn resources(&self) -> Result<Vec<KernelResources>> {
        use cudarc::driver::sys::CUfunction_attribute_enum as A;
        self.device.bind()?;
        let (precision, capability) = (self.plan.precision, self.device.capability);
        let limits = self.device.multiprocessor();
        let resources = self.shapes().into_iter().map(|(kernel, threads, shared)| {
            let function = self.module.function(kernel)?;
            let listed = listed(kernel, precision, capability);
            Ok(KernelResources {
                kernel,
                precision,
                threads,
                shared_bytes: shared,
                registers: function.attribute(A::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
                local_bytes: function.attribute(A::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
                blocks_at_once: function.blocks_at_once(threads, shared)?,
                listed_registers: listed.map(|(registers, _)| registers),
                listed_local_bytes: listed.map(|(_, local)| local),
                expected_blocks: listed
                    .and_then(|(registers, _)| limits.blocks(registers, threads, shared)),
            })
        });
        resources.collect()
    }

    /// Percent of a multiprocessor's cache that the kernels have as shared memory.
    pub fn carveout(&self) -> i32 {
        self.module.carveout()
    }

    fn range(&self, buffer: BufferId, offset: usize, len: usize) -> Result<u64> {
        let at = self
            .plan
            .range_in(buffer, offset, len)
            .map_err(Error::Plan)?;
        self.device.bind()?;
        Ok(self.base + at)
    }
}

impl Backend for CudaBackend {
    fn description(&self) -> String {
        let how = match &self.no_graph {
            None => "the step as one graph".to_string(),
            Some(why) => format!("kernel by kernel, since it could not be captured ({why})"),
        };
        let overlap = if self.overlaps() {
            ", kernels start early"
        } else {
            ""
        };
        format!(
            "{} (sm_{}), {}, {how}{overlap}",
            self.device.name, self.device.capability, self.plan.precision
        )
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn allocated(&self) -> u64 {
        self.memory.bytes
    }

    fn allocate(&self, bytes: usize) -> Result<HostBlock> {
        self.device.pinned(bytes)
    }

    fn write(&mut self, buffer: BufferId, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.range(buffer, offset, bytes.len())?;
        // SAFETY: the range was checked; `bytes` stays borrowed until the copy is waited for
        unsafe { result::memcpy_htod_async(to, bytes, self.device.compute.cu_stream()) }
            .call("copy to the device")?;
        self.device.synchronize()
    }

    fn read(&mut self, buffer: BufferId, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.range(buffer, offset, bytes.len())?;
        // SAFETY: the range was checked; `bytes` stays borrowed until the copy is waited for
        unsafe { result::memcpy_dtoh_async(bytes, from, self.device.compute.cu_stream()) }
            .call("copy from the device")?;
        self.device.synchronize()
    }

    fn lend(&mut self, plan: Plan) -> Result<Box<dyn Backend + '_>> {
        let start = self.plan.place_between_steps(&plan).map_err(Error::Plan)?;
        let backend =
            CudaBackend::load(&self.device, plan, self.memory.clone(), self.base + start)?;
        Ok(LentBackend::lend(backend))
    }

    fn stage(&mut self, batch: BatchView<'_>) -> Result<Option<Box<dyn Fence>>> {
        let layout = self
            .plan
            .batch
            .ok_or_else(|| Error::Misuse("the plan takes no batch".into()))?;
        batch.check(&layout)?;
        self.device.bind()?;
        // the place that the running micro-batch does not read
        let next = (self.current + 1) % self.places.len();
        let fence = self.places[next].copy(&self.device, &layout, batch)?;
        self.current = next;
        Ok(Some(fence))
    }

    fn micro_step(&mut self, scalars: &Scalars) -> Result<()> {
        self.device.bind()?;
        self.set_scalars(scalars)?;
        if let Some(graph) = &self.places[self.current].graph {
            graph.0.launch().call("launch a step")?;
        } else {
            self.launch(&self.places[self.current].launches)?;
        }
        self.places[self.current]
            .used
            .record(&self.device.compute)
            .call("mark a step")
    }

    fn run_operation(&mut self, at: usize, scalars: &Scalars) -> Result<()> {
        // from here on metrics are read from the device; an earlier copy of them must be done
        self.device.synchronize()?;
        self.metrics_copy = None;
        self.set_scalars(scalars)?;
        // lowered by itself, so that its sums are flushed, too
        let launches = lower_range_for(&self.plan, at..at + 1, self.device.choices())?;
        self.launch(&self.places[self.current].reading(&self.plan, &launches))
    }

    fn update(&mut self, scalars: &Scalars) -> Result<()> {
        self.device.bind()?;
        self.set_scalars(scalars)?;
        match &self.update_graph {
            Some(graph) => graph.0.launch().call("launch the optimizer")?,
            None => self.launch(&self.update)?,
        }
        let id = self
            .plan
            .ports
            .metrics
            .ok_or_else(|| Error::Misuse("an inference plan has no metrics".into()))?;
        let from = self.range(id, 0, size_of::<[f64; METRICS]>())?;
        let copy = match &mut self.metrics_copy {
            Some(copy) => copy,
            None => {
                let copied = self.device.blocking_event()?;
                self.metrics_copy.insert(MetricsCopy {
                    values: self.device.pinned(size_of::<[f64; METRICS]>())?,
                    copied,
                })
            }
        };
        let compute = &self.device.compute;
        // SAFETY: the range was checked; the pinned memory lives as long as the backend, which
        // waits for its streams when dropped
        unsafe { result::memcpy_dtoh_async(&mut copy.values, from, compute.cu_stream()) }
            .call("copy the metrics")?;
        copy.copied.record(compute).call("mark the metrics")
    }

    fn metrics(&mut self) -> Result<StepMetrics> {
        let mut values = [0f64; METRICS];
        if let Some(copy) = &self.metrics_copy {
            self.device.bind()?;
            copy.copied.synchronize().call("wait for an update")?;
            bytemuck::cast_slice_mut(&mut values).copy_from_slice(&copy.values);
        } else {
            let id = self
                .plan
                .ports
                .metrics
                .ok_or_else(|| Error::Misuse("an inference plan has no metrics".into()))?;
            self.read(id, 0, bytemuck::cast_slice_mut(&mut values))?;
        }
        Ok(StepMetrics::from_values(values))
    }

    fn metrics_survive_next_step(&self) -> bool {
        true
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // the side stream, too: a launch that fails leaves the concurrent ones before it running
        for stream in [&self.device.copies, &self.device.side, &self.device.compute] {
            settle(stream);
        }
    }
}
