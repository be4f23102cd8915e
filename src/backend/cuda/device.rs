//! An opened CUDA device: its streams, its memory and the kernels loaded on it. It promises that a
//! device that cannot be used, or too little memory, is an error, never a panic. Depends on the
//! driver and the modules.

use super::choices::Choices;
use super::driver::{Call, LEAST_CAPABILITY, bind_to_release, device_count};
use super::module::{Loading, Module};
use super::resources::Multiprocessor;
use super::switches::Switches;
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

/// Bytes of the copy that measures the memory's speed, if the card has room for two such ranges.
const LARGEST_COPY: u64 = 256 << 20;

/// The least bytes of that copy; the caches of current cards hold more, so the measured speed may
/// then be that of a cache.
const SMALLEST_COPY: u64 = 32 << 20;

/// Device memory that is left to other programs and the driver if no limit is given, bytes.
pub const RESERVED_BYTES: u64 = 256 << 20;

/// The speed of the device's memory.
#[derive(Clone, Copy, Debug)]
pub struct CopySpeed {
    /// Bytes a second of a copy, reads and writes counted.
    pub bytes_per_second: f64,
    /// Bytes of the copy.
    pub bytes: u64,
    /// Memory clock times width of the bus, bytes a second; `None` if the driver does not state
    /// them.
    pub peak_bytes_per_second: Option<f64>,
    /// Size of the card's cache, bytes; `None` if the driver does not state it.
    pub l2_bytes: Option<u64>,
}

impl CopySpeed {
    /// The share of the peak that the copy reaches, where it is so low (under three quarters) that
    /// the card is shared with another program, or throttled.
    pub fn suspicious_share(&self) -> Option<f64> {
        let share = self.bytes_per_second / self.peak_bytes_per_second?;
        (share < 0.75).then_some(share)
    }
}

/// Cards of compute capability 7.5 without tensor cores, by words of their names: half precision
/// gains nothing there.
const WITHOUT_TENSOR_CORES: [&str; 13] = [
    "1630", "1650", "1660", "T400", "T500", "T550", "T600", "T1000", "T1200", "T2000", "MX450",
    "MX550", "CMP",
];

/// Whether a card of compute capability 7.5 has tensor cores.
fn has_tensor_cores(name: &str) -> bool {
    !name
        .split_whitespace()
        .any(|word| WITHOUT_TENSOR_CORES.contains(&word))
}

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
    pub(super) switches: Switches,
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
    /// When there is no driver or no such device, the card is older than sm_75, or a variable of
    /// the environment has a wrong value or asks for what the card cannot do.
    pub fn open(ordinal: usize) -> Result<Arc<Device>> {
        let switches = Switches::read()?;
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
        switches.check(&name, capability)?;
        let processors = context
            .attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        let processors = u32::try_from(processors.call("count its multiprocessors")?)?;
        let stream = || context.new_stream().call("make a stream");
        let (compute, side) = if switches.priority {
            let (least, greatest) =
                result::stream::get_priority_range().call("ask for priorities")?;
            let stream = |priority| context.new_stream_with_priority(priority);
            (
                stream(greatest).call("make a stream")?,
                stream(least).call("make a stream")?,
            )
        } else {
            (stream()?, stream()?)
        };
        let copies = stream()?;
        Ok(Arc::new(Device {
            name,
            capability,
            processors,
            context,
            modules: Mutex::default(),
            switches,
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
        // an error that was stored when memory or an event was released, on any thread
        self.context
            .check_err()
            .call("complete an earlier call that released something")?;
        self.context.bind_to_thread().call("use the device")
    }

    /// What identifies the card, or the slice of one, on its host.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn identity(&self) -> Result<String> {
        let mut id = sys::CUuuid { bytes: [0; 16] };
        self.bind()?;
        // SAFETY: the call writes 16 bytes, to a variable that outlives it; unlike the first
        // version, the second one tells the slices of a card apart
        unsafe { sys::cuDeviceGetUuid_v2(&mut id, self.context.cu_device()) }
            .result()
            .call("ask for the card's identity")?;
        let bytes = id.bytes.iter();
        Ok(bytes.map(|byte| format!("{byte:02x}")).collect())
    }

    /// The kind of card: name and generation. Cards of one kind give the same bits.
    pub fn kind(&self) -> String {
        format!("{} (sm_{})", self.name, self.capability)
    }

    /// The type of activations that the card is fastest with.
    pub fn usual_precision(&self) -> Precision {
        if self.capability >= 80 {
            Precision::Bf16
        } else if has_tensor_cores(&self.name) {
            Precision::Fp16
        } else {
            Precision::F32
        }
    }

    /// What a lowering chooses by this card, unless switches say otherwise.
    pub fn choices(&self) -> Choices {
        let card = Choices::of_card(self.capability, self.processors);
        Choices {
            depthwise: self.switches.depthwise.unwrap_or(card.depthwise),
            sum_blocks: self.switches.sum_blocks.unwrap_or(card.sum_blocks),
        }
    }

    /// How the kernels for a type of activations were loaded; `None` before [`Device::prepare`] or
    /// a plan has loaded them.
    pub fn loading(&self, precision: Precision) -> Option<Loading> {
        let modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        Some(modules.get(&precision)?.loading.clone())
    }

    /// A property of the card that its driver may not state, as 0.
    fn attribute(&self, attribute: sys::CUdevice_attribute) -> u64 {
        let value = self.context.attribute(attribute).unwrap_or(0);
        u64::try_from(value).unwrap_or(0)
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.processors
    }

    /// The largest clock of the multiprocessors, Hz; `None` if the driver does not state it.
    pub fn clock(&self) -> Option<f64> {
        let khz = self.attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_CLOCK_RATE);
        (khz > 0).then_some(1e3 * khz as f64)
    }

    /// What a multiprocessor has for the blocks that it holds.
    pub(super) fn multiprocessor(&self) -> Multiprocessor {
        use sys::CUdevice_attribute_enum as A;
        let of = |attribute| u32::try_from(self.attribute(attribute)).unwrap_or(0);
        Multiprocessor {
            registers: of(A::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR),
            shared_bytes: of(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
            reserved_bytes: of(A::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK),
            threads: of(A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR),
            blocks: of(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR),
        }
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
            &self.switches,
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

    /// Bytes that an arena for kernels of this type may take: what is left of `limit`, which counts
    /// the memory that is in use already, or of the card's memory without [`RESERVED_BYTES`].
    ///
    /// # Errors
    /// When the kernels cannot be loaded, or nothing is left.
    pub fn room(&self, precision: Precision, limit: Option<u64>) -> Result<u64> {
        let (in_use, free) = self.prepare(&[precision])?;
        let room = match limit {
            Some(limit) => limit.saturating_sub(in_use).min(free),
            None => free.saturating_sub(RESERVED_BYTES),
        };
        ensure!(
            room > 0,
            Error::OutOfMemory(match limit {
                Some(limit) => format!(
                    "--vram allows {} and {} of {} are in use already; allow more, or close other programs",
                    bytes_text(limit),
                    bytes_text(in_use),
                    self.name
                ),
                None => format!(
                    "{} has {} of memory free, of which {} stay free for the driver and other programs; close other programs, or name a limit with --vram",
                    self.name,
                    bytes_text(free),
                    bytes_text(RESERVED_BYTES)
                ),
            })
        );
        Ok(room)
    }

    /// The speed of a large copy inside the device's memory. The least bytes of a step divided by
    /// it are the least time that the step can take, unless they fit the card's cache.
    ///
    /// # Errors
    /// When there is no room even for a small copy.
    pub fn copy_speed(self: &Arc<Self>) -> Result<CopySpeed> {
        use sys::CUdevice_attribute_enum as A;
        let mut bytes = LARGEST_COPY;
        let (from, to) = loop {
            let pair =
                Memory::new(self, bytes).and_then(|from| Ok((from, Memory::new(self, bytes)?)));
            match pair {
                Ok(pair) => break pair,
                // a small or busy card
                Err(_) if bytes > SMALLEST_COPY => bytes /= 2,
                Err(error) => return Err(error),
            }
        };
        // two transfers a clock; kHz and bits
        let clock = 1e3 * self.attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE) as f64;
        let width = self.attribute(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH) as f64 / 8.0;
        let l2_bytes = self.attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
        Ok(CopySpeed {
            bytes_per_second: self.time_copies(&from, &to)?,
            bytes,
            peak_bytes_per_second: (clock * width > 0.0).then_some(2.0 * clock * width),
            l2_bytes: (l2_bytes > 0).then_some(l2_bytes),
        })
    }

    /// Bytes a second of copies from one range to another of the same size, reads and writes
    /// counted.
    fn time_copies(&self, from: &Memory, to: &Memory) -> Result<f64> {
        const COPIES: usize = 20;
        const WARM_UP: Duration = Duration::from_millis(700);
        let bytes = from.bytes.min(to.bytes) as usize;
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
                // SAFETY: both ranges have this size, and live until the copy is done, since the
                // time taken below waits for it
                unsafe {
                    result::memcpy_dtod_async(to.base, from.base, bytes, self.compute.cu_stream())
                }
                .call("copy inside the device")?;
            }
            end.record(&self.compute).call("mark a copy")?;
            best = best.min(f64::from(start.elapsed_ms(&end).call("time a copy")?) / 1e3);
        }
        Ok((2 * bytes * COPIES) as f64 / best)
    }

    /// Waits for all work on the main stream.
    ///
    /// # Errors
    /// When some of it failed.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.compute.synchronize().call("finish the launched work")
    }

    /// A new event that only streams wait for.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(super) fn event(&self) -> Result<CudaEvent> {
        self.context.new_event(None).call("make an event")
    }

    /// A new event that a thread waits for: the wait leaves the core to the loader.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(super) fn blocking_event(&self) -> Result<CudaEvent> {
        self.context
            .new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC))
            .call("make an event")
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
                bind_to_release(&device.context);
                let _ = result::free_host(start.as_ptr().cast::<c_void>());
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
    /// Allocates and zeroes memory for a training step.
    ///
    /// # Errors
    /// When so much is not free.
    pub fn new(device: &Arc<Device>, bytes: u64) -> Result<Memory> {
        let advice = "give --vram, a smaller batch or --recompute full";
        Memory::for_work(device, bytes, ("the step", advice))
    }

    /// Allocates and zeroes memory; `work` is what needs it, and how that could need less.
    ///
    /// # Errors
    /// When so much is not free.
    pub fn for_work(device: &Arc<Device>, bytes: u64, work: (&str, &str)) -> Result<Memory> {
        device.bind()?;
        let (free, _) = device.context.mem_get_info().call("ask for its memory")?;
        ensure!(
            bytes <= free as u64,
            Error::OutOfMemory(format!(
                "{} needs {} and {} has {} free; close other programs, or {}",
                work.0,
                bytes_text(bytes),
                device.name,
                bytes_text(free as u64),
                work.1
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
        bind_to_release(&self.device.context);
        // SAFETY: allocated in `new` and freed here alone; nothing uses it any more, since
        // backends wait for their streams when dropped
        let _ = unsafe { result::free_sync(self.base) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turing_cards_without_tensor_cores_are_known_by_name() {
        for name in [
            "NVIDIA GeForce GTX 1650 SUPER",
            "NVIDIA GeForce GTX 1660 Ti with Max-Q Design",
            "NVIDIA T600 Laptop GPU",
            "Quadro T2000",
            "NVIDIA GeForce MX450",
        ] {
            assert!(!has_tensor_cores(name), "{name}");
        }
        for name in [
            "Tesla T4",
            "NVIDIA GeForce RTX 2060",
            "Quadro RTX 4000",
            "NVIDIA TITAN RTX",
        ] {
            assert!(has_tensor_cores(name), "{name}");
        }
    }
}
