//! An opened CUDA device: its streams, its memory and the kernels loaded on it. It promises that a
//! device that cannot be used, or too little memory, is an error, never a panic. Depends on the
//! driver and the modules.

use super::driver::{Call, LEAST_CAPABILITY, device_count};
use super::module::Module;
use crate::backend::Error;
use crate::plan::Precision;
use crate::support::text::bytes_text;
use crate::sys::host_memory::HostBlock;
use anyhow::{Result, bail, ensure};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An opened device with its streams.
pub struct Device {
    /// As the driver names it.
    pub name: String,
    /// Compute capability x 10: 86 for sm_86.
    pub capability: i32,
    /// Multiprocessors.
    pub(super) processors: u32,
    pub(super) context: Arc<CudaContext>,
    modules: Mutex<HashMap<Precision, Arc<Module>>>,
    /// The main stream: launches in order, copies of metrics.
    pub(super) compute: Arc<CudaStream>,
    /// The side stream, for concurrent launches.
    pub(super) side: Arc<CudaStream>,
    /// Copies of batches to the device.
    pub(super) copies: Arc<CudaStream>,
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
        // SAFETY: without cudarc's event tracking, streams must be ordered by hand; the backend
        // does so with its own events
        unsafe { context.disable_event_tracking() };
        // a thread that waits for the device must leave its core to the loader
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
        let (compute, side, copies) = (stream()?, stream()?, stream()?);
        Ok(Arc::new(Device {
            name,
            capability,
            processors,
            context,
            modules: Mutex::default(),
            compute,
            side,
            copies,
        }))
    }

    /// Makes the device the current one of the calling thread, as every call of the driver needs.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().call("use the device")
    }

    /// The kernels for a type of activations; loaded once.
    ///
    /// # Errors
    /// As [`Module::load`].
    pub(super) fn module(&self, precision: Precision) -> Result<Arc<Module>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&precision) {
            return Ok(module.clone());
        }
        let module = Arc::new(Module::load(
            &self.context,
            &self.name,
            self.capability,
            precision,
        )?);
        modules.insert(precision, module.clone());
        Ok(module)
    }

    /// Loads the kernels for types of activations, then returns the bytes of the card's memory that
    /// are in use, by all programs, and those that are free.
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

    /// Bytes a second of a large copy inside the device's memory, counting reads and writes. The
    /// least bytes of a step divided by it are the least time that the step can take.
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
        // copy long enough for an idle card to reach its full clocks; what is timed after this
        // needs them, too
        while best.is_infinite() || begun.elapsed() < WARM_UP {
            let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            let start = self.context.new_event(timing).call("make an event")?;
            let end = self.context.new_event(timing).call("make an event")?;
            start.record(&self.compute).call("mark a copy")?;
            for _ in 0..COPIES {
                // SAFETY: both ranges were allocated above with this size, and live until the copy is
                // done, since the time taken below waits for it
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

    /// Waits for all work on the main stream.
    ///
    /// # Errors
    /// When some of it failed.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.compute.synchronize().call("finish the launched work")
    }

    /// A new event.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(super) fn event(&self) -> Result<CudaEvent> {
        self.context.new_event(None).call("make an event")
    }

    /// Makes launches on stream `then` from here on wait for all launches on stream `first` so far.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(super) fn order(&self, first: &CudaStream, then: &CudaStream) -> Result<()> {
        let event = self.event()?;
        event.record(first).call("mark a launch")?;
        then.wait(&event).call("wait for a launch")
    }

    /// Pinned host memory, zeroed: copies from it run beside all other work. It is not
    /// write-combined, since decoders read back what they have written.
    ///
    /// # Errors
    /// When the system cannot pin that much.
    pub fn pinned(self: &Arc<Self>, length: usize) -> Result<HostBlock> {
        self.bind()?;
        // SAFETY: the allocation has at least `length` bytes, is zeroed before it is handed out as
        // initialised bytes, and is freed once, by the block that owns it
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
pub(super) struct Memory {
    /// Its address.
    pub base: u64,
    /// Its size.
    pub bytes: u64,
    device: Arc<Device>,
}

impl Memory {
    /// Allocates and zeroes memory.
    ///
    /// # Errors
    /// When so much is not free.
    pub fn new(device: &Arc<Device>, bytes: u64) -> Result<Memory> {
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
        // SAFETY: the allocation is owned by the `Memory` made below, which frees it once, in drop
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
        // SAFETY: the range was allocated above with this size; it is waited for below
        unsafe { result::memset_d8_async(base, 0, bytes as usize, device.compute.cu_stream()) }
            .call("clear its memory")?;
        device.synchronize()?;
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` and freed here alone; nothing uses it any more, since
        // backends wait for their streams when dropped
        let _ = self
            .device
            .bind()
            .map(|()| unsafe { result::free_sync(self.base) });
    }
}
