//! The backend that runs a plan's launches on a CUDA device, as graphs where the driver can capture
//! them. It promises that a device that fails is an error, never a panic. Depends on the device
//! and on the lowering.

use super::CudaSizing;
use super::device::{Device, Memory};
use super::driver::Call;
use super::launch::{Launch, Order, Program};
use super::lower::{lower, lower_range};
use super::module::Module;
use super::scalars::scalars_launch;
use crate::backend::{Backend, BatchView, Error, LentBackend, Scalars, StepMetrics};
use crate::plan::{BufferId, METRICS, Plan, PlanData};
use crate::sys::host_memory::{Fence, HostBlock};
use anyhow::{Context, Result};
use cudarc::driver::{CudaEvent, CudaGraph, result, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// Where a staged batch is kept on the device: the next batch is copied to one place while the step
/// reads the other.
pub(super) struct BatchPlace {
    /// The batch's buffer; `None` for a plan without a batch.
    batch: Option<BufferId>,
    /// Its address.
    at: u64,
    /// Passes when the last micro-batch that read it is done.
    used: CudaEvent,
    /// The launches of a micro-batch that reads it.
    pub(super) launches: Vec<Launch>,
    /// The same, captured.
    graph: Option<CudaGraph>,
}

/// The metrics of an update, copied to the host asynchronously, so that the next step may start
/// before they are read.
struct MetricsCopy {
    /// Pinned; valid once `copied` has passed.
    values: HostBlock,
    copied: CudaEvent,
}

/// A plan loaded on a device.
pub struct CudaBackend {
    plan: Plan,
    pub(super) device: Arc<Device>,
    /// Where the plan's arena begins: at the allocation's start, or inside the part that another
    /// backend lends.
    base: u64,
    memory: Arc<Memory>,
    module: Arc<Module>,
    /// Two where the next batch is copied ahead, else one.
    pub(super) places: Vec<BatchPlace>,
    /// Index of the place that the next micro-batch reads.
    pub(super) current: usize,
    /// The launches of the optimizer, and the same captured.
    pub(super) update: Vec<Launch>,
    update_graph: Option<CudaGraph>,
    /// The launch that set the device's block of scalars last.
    scalars: Option<Launch>,
    /// The metrics of the last update; `None` before the first.
    metrics_copy: Option<MetricsCopy>,
    /// Why the step is launched kernel by kernel; `None` where it is captured.
    pub(super) no_graph: Option<String>,
}

/// A fence that passes when a copy from host memory is done. Dropping it waits, so that memory that
/// is still read is never reused.
struct CopyFence(CudaEvent);

impl Fence for CopyFence {
    fn is_done(&self) -> bool {
        // the calling thread may not have used the device yet
        self.0.context().bind_to_thread().is_ok() && self.0.is_complete()
    }

    fn wait(&self) {
        // an error of the device is reported by the next call that returns a result
        let _ = self.0.synchronize();
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
    fn all(
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
    fn reading(&self, plan: &PlanData, launches: &[Launch]) -> Vec<Launch> {
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

    fn load(
        device: &Arc<Device>,
        plan: Plan,
        memory: Arc<Memory>,
        base: u64,
    ) -> Result<CudaBackend> {
        plan.check_sized_for(&CudaSizing {
            precision: plan.precision,
        })
        .map_err(Error::Plan)?;
        let Program { micro, update } = lower(&plan)?;
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
        // a missing kernel is an error now, not at the first step
        let names: Vec<&'static str> = backend.places[0]
            .launches
            .iter()
            .chain(&backend.update)
            .map(|l| l.kernel)
            .collect();
        names
            .into_iter()
            .try_for_each(|name| backend.module.function(name).map(|_| ()))?;
        // a lent backend's batch must not be copied over memory that a running step still uses
        backend
            .places
            .iter()
            .try_for_each(|p| p.used.record(&device.compute).call("mark a place"))?;
        Ok(backend)
    }

    /// Captures the step as graphs; where that fails, it is launched kernel by kernel.
    fn capture(&mut self) {
        let graphs: Result<Vec<_>> = self
            .places
            .iter()
            .map(|p| &p.launches)
            .chain([&self.update])
            .map(|l| self.graph(l, 1))
            .collect();
        match graphs {
            Ok(mut graphs) => {
                self.update_graph = graphs.pop().flatten();
                self.places
                    .iter_mut()
                    .zip(graphs)
                    .for_each(|(place, graph)| place.graph = graph);
            }
            Err(error) => self.no_graph = Some(format!("{error:#}")),
        }
    }

    /// Captures `repeats` copies of some launches, one after another, as a graph; `None` for no
    /// launches.
    pub(super) fn graph(&self, launches: &[Launch], repeats: usize) -> Result<Option<CudaGraph>> {
        if launches.is_empty() {
            return Ok(None);
        }
        let stream = self.device.compute.clone();
        stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .call("begin a capture")?;
        let launched = (0..repeats).try_for_each(|_| self.launch(launches));
        // a capture must be ended even after an error, or the stream is unusable
        let graph = stream
            .end_capture(sys::CUgraphInstantiate_flags(0))
            .call("end a capture");
        launched?;
        graph
    }

    /// Launches kernels in their orders. Later work on the main stream waits for all of them.
    pub(super) fn launch(&self, launches: &[Launch]) -> Result<()> {
        self.device.bind()?;
        let Device { compute, side, .. } = &*self.device;
        let mut side_in_use = false;
        for l in launches {
            let stream = if l.order == Order::Concurrent {
                self.device.order(compute, side)?;
                side_in_use = true;
                side
            } else {
                if l.order == Order::Join && std::mem::take(&mut side_in_use) {
                    self.device.order(side, compute)?;
                }
                compute
            };
            let function = self.module.function(l.kernel)?;
            let mut arguments = l
                .arguments
                .words(|p| self.base + self.plan.buffer(p.buffer).offset + p.bytes);
            // one parameter, the struct; the driver copies as many bytes as the kernel declares
            let mut parameters: [*mut c_void; 1] = [arguments.as_mut_ptr().cast()];
            let [mut x, y, z] = l.grid;
            if l.persistent {
                x = x.min(self.device.processors * function.blocks_at_once(l.block, l.shared)?);
            }
            // SAFETY: the arguments are the struct that the kernel declares (both come from one
            // declaration) and outlive the call; their addresses are inside the plan's buffers,
            // which tests show by replaying the same launches on the host
            unsafe {
                result::launch_kernel(
                    function.0,
                    (x, y, z),
                    (l.block, 1, 1),
                    l.shared,
                    stream.cu_stream(),
                    &mut parameters,
                )
            }
            .call("launch a kernel")
            .with_context(|| {
                l.op.map_or_else(
                    || l.kernel.to_string(),
                    |op| format!("{} of operation {op}", l.kernel),
                )
            })?;
        }
        if side_in_use {
            self.device.order(side, compute)
        } else {
            Ok(())
        }
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
        format!(
            "{} (sm_{}), {}, {how}",
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
        // a new event, since the fence may outlive the place's next copy
        let copied = self.device.event()?;
        let place = &self.places[next];
        let stream = self.device.copies.cu_stream();
        self.device
            .copies
            .wait(&place.used)
            .call("wait for a batch's place")?;
        let parts = [
            (0, batch.lq),
            (layout.lq_bytes(), batch.hr),
            (layout.augment_offset(), batch.augment),
        ];
        for (at, bytes) in parts {
            if !bytes.is_empty() {
                // SAFETY: the sizes were checked; the fence keeps the bytes until the copy is done.
                // Without a fence, after an error, the wait below does
                let begun =
                    unsafe { result::memcpy_htod_async(place.at + at as u64, bytes, stream) }
                        .call("copy a batch");
                if begun.is_err() {
                    // copies that were started before still read the batch
                    let _ = self.device.copies.synchronize();
                    return begun.map(|()| None);
                }
            }
        }
        if batch.augment.is_empty() {
            // SAFETY: the codes are the last part of the batch's buffer
            unsafe {
                result::memset_d8_async(
                    place.at + layout.augment_offset() as u64,
                    0,
                    layout.count,
                    stream,
                )
            }
            .call("clear the codes")?;
        }
        copied.record(&self.device.copies).call("mark a copy")?;
        self.device.compute.wait(&copied).call("wait for a batch")?;
        self.current = next;
        Ok(Some(Box::new(CopyFence(copied))))
    }

    fn micro_step(&mut self, scalars: &Scalars) -> Result<()> {
        self.device.bind()?;
        self.set_scalars(scalars)?;
        if let Some(graph) = &self.places[self.current].graph {
            graph.launch().call("launch a step")?;
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
        let launches = lower_range(&self.plan, at..at + 1)?;
        self.launch(&self.places[self.current].reading(&self.plan, &launches))
    }

    fn update(&mut self, scalars: &Scalars) -> Result<()> {
        self.device.bind()?;
        self.set_scalars(scalars)?;
        match &self.update_graph {
            Some(graph) => graph.launch().call("launch the optimizer")?,
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
                // a blocking wait leaves the core to the loader
                let copied = self
                    .device
                    .context
                    .new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC))
                    .call("make an event")?;
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
        let _ = self.device.copies.synchronize();
        let _ = self.device.compute.synchronize();
    }
}
