//! A CUDA device: finding it, its memory and streams, and the backend that runs a plan's launches
//! on it. One of the two files that call CUDA. It promises that a machine without a driver, a
//! device or enough memory gets an error, never a panic.

use super::launch::{Arg, Launch, Program, Turn, scalars_launch};
use super::module::{LEAST_CAPABILITY, Module};
use super::{lower, lower_range};
use crate::backend::{Backend, BatchView, Error, LentBackend, Scalars, StepMetrics};
use crate::plan::{BufferId, METRICS, Plan, PlanData, Precision};
use crate::support::text::bytes_text;
use crate::sys::host_memory::{Fence, HostBlock};
use anyhow::{Context, Result, bail, ensure};
use cudarc::driver::{CudaContext, CudaEvent, CudaGraph, CudaStream, DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The driver's version of CUDA that the kernels and calls need, as it reports it: 12.1, which came
/// with driver 530.
const LEAST_DRIVER: i32 = 12_010;

/// Turns a driver's error into one that says what was tried.
pub(super) trait Call<T> {
    fn call(self, what: &str) -> Result<T>;
}

impl<T> Call<T> for Result<T, DriverError> {
    fn call(self, what: &str) -> Result<T> {
        self.map_err(|e| {
            let text = e
                .error_string()
                .map(|s| s.to_string_lossy().into_owned())
                .unwrap_or_else(|_| format!("error {}", e.0 as u32));
            if e.0 == sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY {
                return Error::OutOfMemory(format!("CUDA could not {what}: {text}")).into();
            }
            let (action, code) = (what.to_string(), e.0 as u32);
            Error::Driver { action, code, text }.into()
        })
    }
}

/// Number of CUDA devices.
///
/// # Errors
/// When there is no driver, or one that is too old.
pub fn device_count() -> Result<usize> {
    // SAFETY: only opens the library
    ensure!(
        unsafe { sys::is_culib_present() },
        Error::NoDevice(
            "no NVIDIA driver was found (libcuda); install it, or use --device cpu".into()
        )
    );
    let mut version = 0;
    // SAFETY: writes one int; every driver has this call
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    ensure!(
        status == sys::cudaError_enum::CUDA_SUCCESS && version >= LEAST_DRIVER,
        Error::DeviceRefused(format!(
            "the NVIDIA driver supports CUDA {}.{} and this program needs {}.{} (driver 530 or newer); update it, or use --device cpu",
            version / 1000,
            version % 1000 / 10,
            LEAST_DRIVER / 1000,
            LEAST_DRIVER % 1000 / 10
        ))
    );
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count)?),
        Err(e) if e.0 == sys::cudaError_enum::CUDA_ERROR_NO_DEVICE => Ok(0),
        Err(e) => Err(e).call("count the devices"),
    }
}

/// An opened device with its streams.
pub struct Device {
    /// As the driver names it.
    pub name: String,
    /// Compute capability x 10: 86 for sm_86.
    pub capability: i32,
    /// Multiprocessors.
    processors: u32,
    pub(super) context: Arc<CudaContext>,
    modules: Mutex<HashMap<Precision, Arc<Module>>>,
    compute: Arc<CudaStream>,
    /// Launches that run beside those of `compute`.
    aside: Arc<CudaStream>,
    copies: Arc<CudaStream>,
}

impl Device {
    /// Opens device number `ordinal`.
    ///
    /// # Errors
    /// When there is no driver or no such device, or the card is older than sm_75.
    pub fn open(ordinal: usize) -> Result<Arc<Device>> {
        let count = device_count()?;
        ensure!(
            count > 0,
            Error::NoDevice("the NVIDIA driver finds no device; use --device cpu".into())
        );
        ensure!(
            ordinal < count,
            Error::NoDevice(format!(
                "there is no device cuda:{ordinal}; the driver finds {count} (cuda:0 to cuda:{})",
                count - 1
            ))
        );
        let context = CudaContext::new(ordinal).call("open the device")?;
        // SAFETY: streams are ordered by our own events
        unsafe { context.disable_event_tracking() };
        // waiting for the device must leave the core to the loader
        context.set_blocking_synchronize().call("set how to wait")?;
        let name = context.name().call("ask for its name")?;
        let (major, minor) = context
            .compute_capability()
            .call("ask for its capability")?;
        let capability = major * 10 + minor;
        ensure!(
            capability >= LEAST_CAPABILITY,
            Error::DeviceRefused(format!(
                "{name} is sm_{capability} and the kernels need sm_{LEAST_CAPABILITY} (Turing, 2018) or newer"
            ))
        );
        let processors = context
            .attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        let processors = u32::try_from(processors.call("count its multiprocessors")?)?;
        let stream = || context.new_stream().call("make a stream");
        let (compute, aside, copies) = (stream()?, stream()?, stream()?);
        Ok(Arc::new(Device {
            name,
            capability,
            processors,
            context,
            modules: Mutex::default(),
            compute,
            aside,
            copies,
        }))
    }

    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().call("use the device")
    }

    /// The kernels for a type of activations; loaded once.
    fn module(&self, precision: Precision) -> Result<Arc<Module>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&precision) {
            return Ok(module.clone());
        }
        let module = Arc::new(Module::load(self, precision)?);
        modules.insert(precision, module.clone());
        Ok(module)
    }

    /// Loads the kernels for types of activations, then tells how many bytes of the card are in use
    /// by now, other programs included, and how many are free.
    ///
    /// # Errors
    /// As `Module::load`.
    pub fn prepare(&self, precisions: &[Precision]) -> Result<(u64, u64)> {
        precisions
            .iter()
            .try_for_each(|&p| self.module(p).map(|_| ()))?;
        self.bind()?;
        let (free, total) = self.context.mem_get_info().call("ask for its memory")?;
        Ok(((total - free) as u64, free as u64))
    }

    /// Bytes a second of a large copy inside the device's memory, reads and writes both counted:
    /// what floors are divided by.
    ///
    /// # Errors
    /// When there is no room for the copy.
    pub fn copy_bandwidth(self: &Arc<Self>) -> Result<f64> {
        const BYTES: usize = 256 << 20;
        const COPIES: usize = 20;
        const WARM_UP: Duration = Duration::from_millis(700);
        let (from, to) = (
            Memory::new(self, BYTES as u64)?,
            Memory::new(self, BYTES as u64)?,
        );
        let mut best = f64::INFINITY;
        let begun = Instant::now();
        // long enough for a card that was idle to reach its clocks, which whatever is timed after
        // this needs, too
        while best.is_infinite() || begun.elapsed() < WARM_UP {
            let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            let start = self.context.new_event(timing).call("make an event")?;
            let end = self.context.new_event(timing).call("make an event")?;
            start.record(&self.compute).call("mark a copy")?;
            for _ in 0..COPIES {
                // SAFETY: both ranges were allocated above
                unsafe {
                    result::memcpy_dtod_async(to.base, from.base, BYTES, self.compute.cu_stream())
                }
                .call("copy inside the device")?;
            }
            end.record(&self.compute).call("mark a copy")?;
            best = best.min(f64::from(start.elapsed_ms(&end).call("time a copy")?) / 1e3);
        }
        Ok((2 * BYTES * COPIES) as f64 / best)
    }

    fn synchronize(&self) -> Result<()> {
        self.compute.synchronize().call("finish the launched work")
    }

    fn event(&self) -> Result<CudaEvent> {
        self.context.new_event(None).call("make an event")
    }

    /// What is launched on one stream from here on waits for what was launched on another.
    fn order(&self, first: &CudaStream, then: &CudaStream) -> Result<()> {
        let event = self.event()?;
        event.record(first).call("mark a launch")?;
        then.wait(&event).call("wait for a launch")
    }

    /// Pinned host memory, zeroed: copies from it run beside everything else. Not write-combined,
    /// since decoders read what they write.
    ///
    /// # Errors
    /// When the system has not that much to pin.
    pub fn pinned(self: &Arc<Self>, length: usize) -> Result<HostBlock> {
        self.bind()?;
        // SAFETY: the memory is zeroed before it is handed out as bytes, and freed once
        unsafe {
            let start = result::malloc_host(length.max(1), 0)
                .call(&format!("pin {} of host memory", bytes_text(length as u64)))?;
            let Some(start) = NonNull::new(start.cast::<u8>()) else {
                bail!("CUDA pinned nothing")
            };
            start.as_ptr().write_bytes(0, length);
            let device = self.clone();
            Ok(HostBlock::foreign(start, length, move |start, _| {
                let _ = device
                    .bind()
                    .map(|()| result::free_host(start.as_ptr().cast::<c_void>()));
            }))
        }
    }
}

/// The arena on the device: one allocation.
struct Memory {
    base: u64,
    bytes: u64,
    device: Arc<Device>,
}

impl Memory {
    fn new(device: &Arc<Device>, bytes: u64) -> Result<Memory> {
        device.bind()?;
        let (free, _) = device.context.mem_get_info().call("ask for its memory")?;
        ensure!(
            bytes <= free as u64,
            Error::OutOfMemory(format!(
                "the step needs {} and {} has {} free; close other programs, or give --vram, a smaller batch or --recompute full",
                bytes_text(bytes),
                device.name,
                bytes_text(free as u64)
            ))
        );
        // SAFETY: freed once, in drop
        let base = unsafe { result::malloc_sync(bytes as usize) }
            .call(&format!("allocate {}", bytes_text(bytes)))?;
        let memory = Memory {
            base,
            bytes,
            device: device.clone(),
        };
        ensure!(
            base.is_multiple_of(crate::plan::ALIGNMENT),
            "the device's memory is not aligned"
        );
        // SAFETY: the range was allocated above
        unsafe { result::memset_d8_async(base, 0, bytes as usize, device.compute.cu_stream()) }
            .call("clear its memory")?;
        device.synchronize()?;
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`; backends wait for their streams when dropped
        let _ = self
            .device
            .bind()
            .map(|()| unsafe { result::free_sync(self.base) });
    }
}

/// One of the two places of a batch on the device.
struct Place {
    /// The batch's buffer, where the plan takes one, and its address.
    batch: Option<BufferId>,
    at: u64,
    /// The last micro-batch that read it is done.
    used: CudaEvent,
    launches: Vec<Launch>,
    graph: Option<CudaGraph>,
}

/// Metrics that travel behind an update, so that the next step may begin before they are read.
struct Report {
    /// Pinned; read when `copied` is done.
    values: HostBlock,
    copied: CudaEvent,
}

/// A plan loaded on a device.
pub struct CudaBackend {
    plan: Plan,
    device: Arc<Device>,
    /// Where the plan's arena begins: the allocation's start, or a part that another backend lends.
    base: u64,
    memory: Arc<Memory>,
    module: Arc<Module>,
    places: Vec<Place>,
    /// Index of the place that the next micro-batch reads.
    current: usize,
    update: Vec<Launch>,
    update_graph: Option<CudaGraph>,
    /// What the device's block of scalars holds.
    scalars: Option<Launch>,
    /// The metrics of the last update on their way to the host, where there was one.
    report: Option<Report>,
    /// Why the step is launched kernel by kernel, where it is.
    no_graph: Option<String>,
}

/// Waits for a copy, at the latest when dropped: memory that is still read is never given back.
struct CopyFence(CudaEvent);

impl Fence for CopyFence {
    fn is_done(&self) -> bool {
        // any thread may ask, also one that has not used the device yet
        self.0.context().bind_to_thread().is_ok() && self.0.is_complete()
    }

    fn wait(&self) {
        let _ = self.0.synchronize(); // an error of the device comes back with the next call that has a result
    }
}

impl Drop for CopyFence {
    fn drop(&mut self) {
        self.wait();
    }
}

impl Place {
    fn new(device: &Device, batch: Option<BufferId>, at: u64) -> Result<Place> {
        Ok(Place {
            batch,
            at,
            used: device.event()?,
            launches: Vec::new(),
            graph: None,
        })
    }

    /// A plan's launches with the batch read from here.
    fn reading(&self, plan: &PlanData, launches: &[Launch]) -> Vec<Launch> {
        let mut launches = launches.to_vec();
        for arg in launches.iter_mut().flat_map(|l| &mut l.args) {
            if let (Arg::At(buffer, _), Some(from), Some(to)) = (arg, plan.batch, self.batch)
                && *buffer == from.buffer
            {
                *buffer = to;
            }
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
        plan.check_sized_for(&super::CudaSizing {
            precision: plan.precision,
        })
        .map_err(Error::Plan)?;
        let Program { micro, update } = lower(&plan)?;
        let module = device.module(plan.precision)?;
        let mut places = Vec::new();
        let batches = plan
            .batch
            .map(|b| b.buffer)
            .into_iter()
            .chain(plan.ports.next_batch);
        for buffer in batches {
            places.push(Place::new(
                device,
                Some(buffer),
                base + plan.buffer(buffer).offset,
            )?);
        }
        if places.is_empty() {
            places.push(Place::new(device, None, 0)?);
        }
        places
            .iter_mut()
            .for_each(|place| place.launches = place.reading(&plan, &micro));
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
            report: None,
            no_graph: None,
        };
        // a kernel that is missing is found now, not at the first step
        let names: Vec<&'static str> = backend.places[0]
            .launches
            .iter()
            .chain(&backend.update)
            .map(|l| l.kernel)
            .collect();
        names
            .into_iter()
            .try_for_each(|name| backend.module.function(name).map(|_| ()))?;
        // a lent backend's batch must not travel into memory that a step under way still uses
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

    /// Launches as a graph, as often as said one after another.
    fn graph(&self, launches: &[Launch], repeats: usize) -> Result<Option<CudaGraph>> {
        if launches.is_empty() {
            return Ok(None);
        }
        let stream = self.device.compute.clone();
        stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .call("begin a capture")?;
        let launched = (0..repeats).try_for_each(|_| self.launch(launches));
        // ended in any case, or the stream could not be used any more
        let graph = stream
            .end_capture(sys::CUgraphInstantiate_flags(0))
            .call("end a capture");
        launched?;
        graph
    }

    /// Launches kernels, each in its turn. What comes after them on the compute stream comes after
    /// all.
    fn launch(&self, launches: &[Launch]) -> Result<()> {
        self.device.bind()?;
        let Device { compute, aside, .. } = &*self.device;
        let mut apart = false;
        for l in launches {
            let stream = if l.turn == Turn::Aside {
                self.device.order(compute, aside)?;
                apart = true;
                aside
            } else {
                if l.turn == Turn::Meets && std::mem::take(&mut apart) {
                    self.device.order(aside, compute)?;
                }
                compute
            };
            let function = self.module.function(l.kernel)?;
            // every argument in eight bytes, side by side; the driver copies as many as the kernel
            // declares from where each begins
            let mut values: Vec<u64> = Vec::with_capacity(l.args.len());
            for arg in &l.args {
                values.push(match *arg {
                    Arg::At(buffer, at) => self.base + self.plan.buffer(buffer).offset + at,
                    Arg::Null => 0,
                    Arg::Int(value) => u64::from(value.cast_unsigned()),
                    Arg::Float(value) => u64::from(value.to_bits()),
                });
            }
            let mut pointers: Vec<*mut c_void> = values
                .iter_mut()
                .map(|v| std::ptr::from_mut(v).cast())
                .collect();
            let [mut x, y, z] = l.grid;
            if l.walkers {
                x = x.min(self.device.processors * function.blocks_at_once(l.block, l.shared)?);
            }
            // SAFETY: the lowering gives the kernel's own arguments, inside the plan's buffers;
            // tests replay the same launches on the host
            unsafe {
                result::launch_kernel(
                    function.0,
                    (x, y, z),
                    (l.block, 1, 1),
                    l.shared,
                    stream.cu_stream(),
                    &mut pointers,
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
        if apart {
            self.device.order(aside, compute)
        } else {
            Ok(())
        }
    }

    fn set_scalars(&mut self, scalars: &Scalars) -> Result<()> {
        let Some(launch) = scalars_launch(&self.plan, scalars) else {
            return Ok(());
        };
        if self.scalars.as_ref() != Some(&launch) {
            self.launch(std::slice::from_ref(&launch))?;
            self.scalars = Some(launch);
        }
        Ok(())
    }

    /// What every launch of a step adds to it: (operation, where it works for one alone; kernel;
    /// seconds). The first launches of the step are timed together, then one more and so on, so
    /// caches and the pauses between kernels are those of the step. Each time is the median of
    /// three graphs of `repeats` copies. The parameters do not survive it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn profile(
        &mut self,
        scalars: &Scalars,
        repeats: usize,
    ) -> Result<Vec<(Option<usize>, &'static str, f64)>> {
        self.set_scalars(scalars)?;
        let launches: Vec<Launch> = self.places[self.current]
            .launches
            .iter()
            .chain(&self.update)
            .cloned()
            .collect();
        let mut before = 0.0;
        let mut parts = Vec::new();
        for count in 1..=launches.len() {
            let together = self.time(&launches[..count], repeats)?;
            let last = &launches[count - 1];
            parts.push((last.op, last.kernel, f64::max(together - before, 0.0)));
            before = together;
        }
        Ok(parts)
    }

    /// Seconds of launches one after another, as often as said.
    fn time(&self, launches: &[Launch], repeats: usize) -> Result<f64> {
        let graph = if self.no_graph.is_none() {
            self.graph(launches, repeats)?
        } else {
            None
        };
        let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let mut times = Vec::new();
        for round in 0..4 {
            let start = self
                .device
                .context
                .new_event(timing)
                .call("make an event")?;
            let end = self
                .device
                .context
                .new_event(timing)
                .call("make an event")?;
            start.record(&self.device.compute).call("mark a launch")?;
            match &graph {
                Some(graph) => graph.launch().call("launch kernels")?,
                None => (0..repeats).try_for_each(|_| self.launch(launches))?,
            }
            end.record(&self.device.compute).call("mark a launch")?;
            let seconds = f64::from(start.elapsed_ms(&end).call("time a launch")?) / 1e3;
            if round > 0 {
                times.push(seconds / repeats as f64);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times[1])
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
        // SAFETY: in range; the bytes are borrowed until the copy is done
        unsafe { result::memcpy_htod_async(to, bytes, self.device.compute.cu_stream()) }
            .call("copy to the device")?;
        self.device.synchronize()
    }

    fn read(&mut self, buffer: BufferId, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.range(buffer, offset, bytes.len())?;
        // SAFETY: as in `write`
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
        // the place that the micro-batch under way does not read
        let next = (self.current + 1) % self.places.len();
        // an event of its own, since the fence outlives the place's next copy
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
                // SAFETY: the sizes were checked; the fence keeps the bytes until the copy is done,
                // and where there is no fence after all, the wait below does
                let begun =
                    unsafe { result::memcpy_htod_async(place.at + at as u64, bytes, stream) }
                        .call("copy a batch");
                if begun.is_err() {
                    let _ = self.device.copies.synchronize(); // copies that were begun before still read the batch
                    return begun.map(|()| None);
                }
            }
        }
        if batch.augment.is_empty() {
            // SAFETY: in range
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
        // metrics are then those on the device; what travels of an update before must have arrived
        self.device.synchronize()?;
        self.report = None;
        self.set_scalars(scalars)?;
        // by itself, so that its sums are added up, too
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
        let report = match &mut self.report {
            Some(report) => report,
            None => {
                // waiting for it leaves the core to the loader
                let copied = self
                    .device
                    .context
                    .new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC))
                    .call("make an event")?;
                self.report.insert(Report {
                    values: self.device.pinned(size_of::<[f64; METRICS]>())?,
                    copied,
                })
            }
        };
        let compute = &self.device.compute;
        // SAFETY: in range; the memory lives as long as the backend, which waits for its streams
        // when dropped
        unsafe { result::memcpy_dtoh_async(&mut report.values, from, compute.cu_stream()) }
            .call("copy the metrics")?;
        report.copied.record(compute).call("mark the metrics")
    }

    fn metrics(&mut self) -> Result<StepMetrics> {
        let mut values = [0f64; METRICS];
        if let Some(report) = &self.report {
            self.device.bind()?;
            report.copied.synchronize().call("wait for an update")?;
            bytemuck::cast_slice_mut(&mut values).copy_from_slice(&report.values);
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
