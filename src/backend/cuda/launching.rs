//! Launching: a plan's launches in their orders, one by one or captured as graphs. Depends on the
//! backend and the device.

use super::arguments::Pointer;
use super::backend::CudaBackend;
use super::device::Device;
use super::driver::Call;
use super::launch::{Launch, Order};
use super::module::{Function, Module};
use anyhow::{Context, Result, ensure};
use cudarc::driver::{CudaGraph, CudaStream, DriverError, result, sys};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

/// Graphs whose nodes keep the priorities of the streams that they were captured on
/// (`CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY`).
const NODE_PRIORITY: u32 = 8;

/// A captured step.
pub(super) struct StepGraph(pub CudaGraph);

// SAFETY: the driver asks only that no two threads use a graph at once. The type is not `Sync`, and
// every launch binds the context to its thread first
unsafe impl Send for StepGraph {}

/// When a kernel may start.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Start {
    /// When all work before it on its stream is complete.
    AfterAll,
    /// While the kernel ahead of it on its stream still runs, once all blocks of that one have begun.
    /// Kernels of a module that [waits](Module::waits) then wait for it themselves, before they read
    /// anything. Nothing but that kernel may be directly ahead: no event that was recorded or waited
    /// for, no copy.
    Early,
}

/// Launches a kernel on a stream, and waits for it where a switch asks for that. `address` says
/// where the buffers are; they have the sizes that the launch was made for.
pub(super) fn launch_kernel(
    device: &Device,
    module: &Module,
    l: &Launch,
    address: impl Fn(&Pointer) -> u64,
    stream: &Arc<CudaStream>,
    start: Start,
) -> Result<()> {
    let function = module.function(l.kernel)?;
    let mut arguments = l.arguments.words(address);
    let [mut x, y, z] = l.grid;
    if l.persistent {
        x = x.min(device.processors * function.blocks_at_once(l.block, l.shared)?);
    }
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: l.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: l.shared,
        hStream: stream.cu_stream(),
        attrs: null_mut(),
        numAttrs: 0,
    };
    // SAFETY: the arguments are the struct that the kernel declares (both come from one
    // declaration) and outlive the call; their addresses are inside the plan's buffers, which
    // tests show by replaying the same launches on the host. A kernel starts early only where it
    // waits itself
    unsafe { start_kernel(function, config, &mut arguments, start) }.call("launch a kernel")?;
    if device.switches.sync {
        stream.synchronize().call("complete a kernel")?;
    }
    Ok(())
}

/// Launches a kernel with its arguments, a struct.
///
/// # Safety
/// The struct is the one that the kernel declares, its addresses are valid, and the kernel may start
/// when `start` says.
unsafe fn start_kernel(
    function: Function,
    mut config: sys::CUlaunchConfig,
    arguments: &mut [u64],
    start: Start,
) -> Result<(), DriverError> {
    // one parameter, the struct; the driver copies as many bytes as the kernel declares
    let mut parameters: [*mut c_void; 1] = [arguments.as_mut_ptr().cast()];
    if start == Start::AfterAll {
        // SAFETY: promised by the caller
        return unsafe {
            result::launch_kernel(
                function.0,
                (config.gridDimX, config.gridDimY, config.gridDimZ),
                (config.blockDimX, config.blockDimY, config.blockDimZ),
                config.sharedMemBytes,
                config.hStream,
                &mut parameters,
            )
        };
    }
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { pad: [0; 64] },
    };
    attribute.value.programmaticStreamSerializationAllowed = 1;
    config.attrs = &mut attribute;
    config.numAttrs = 1;
    // SAFETY: promised by the caller; the attribute outlives the call
    unsafe { sys::cuLaunchKernelEx(&config, function.0, parameters.as_mut_ptr(), null_mut()) }
        .result()
}

impl CudaBackend {
    /// Captures the step as graphs; where that fails, it is launched kernel by kernel.
    pub(super) fn capture(&mut self) {
        if let Some(switch) = self.device.switches.without_graphs() {
            self.no_graph = Some(switch.to_string());
            return;
        }
        let graphs: Result<Vec<_>> = self
            .places
            .iter()
            .map(|p| &p.launches)
            .chain([&self.update])
            .map(|l| self.graph(l, 1))
            .collect();
        match graphs {
            Ok(mut graphs) => {
                self.update_graph = graphs.pop().flatten().map(StepGraph);
                self.places
                    .iter_mut()
                    .zip(graphs)
                    .for_each(|(place, graph)| place.graph = graph.map(StepGraph));
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
        let fails_at = self.device.switches.fail_capture;
        let launched = (0..repeats).try_for_each(|_| self.launch_until(launches, fails_at));
        let flags = if self.device.switches.priority {
            NODE_PRIORITY
        } else {
            0
        };
        // a capture must be ended even after an error, or the stream is unusable
        let graph = stream
            .end_capture(sys::CUgraphInstantiate_flags(flags))
            .call("end a capture");
        launched?;
        graph
    }

    /// Whether kernels start while the one ahead of them still runs.
    pub(super) fn overlaps(&self) -> bool {
        self.device.switches.overlap && self.module.waits
    }

    /// Launches kernels in their orders. Later work on the main stream waits for all of them.
    pub(super) fn launch(&self, launches: &[Launch]) -> Result<()> {
        self.launch_until(launches, None)
    }

    /// As [`CudaBackend::launch`]; launch number `fails_at` (from 1) is an error.
    fn launch_until(&self, launches: &[Launch], fails_at: Option<usize>) -> Result<()> {
        self.device.bind()?;
        let (compute, side) = (&self.device.compute, &self.device.side);
        let mut side_in_use = false;
        // whether the last work on the main stream is a kernel of this list
        let mut after_kernel = false;
        for (i, l) in launches.iter().enumerate() {
            let (stream, start) = if l.order == Order::Concurrent && !self.device.switches.no_side {
                self.device.order(compute, side)?;
                (side_in_use, after_kernel) = (true, false);
                (side, Start::AfterAll)
            } else {
                if l.order == Order::Join && std::mem::take(&mut side_in_use) {
                    self.device.order(side, compute)?;
                    after_kernel = false;
                }
                let early = std::mem::replace(&mut after_kernel, true) && self.overlaps();
                let start = if early { Start::Early } else { Start::AfterAll };
                (compute, start)
            };
            ensure!(
                fails_at != Some(i + 1),
                "PARAGON_CUDA_FAIL_CAPTURE={}",
                i + 1
            );
            self.launch_one(l, stream, start)
                .with_context(|| self.name_of(l))?;
        }
        if side_in_use {
            self.device.order(side, compute)
        } else {
            Ok(())
        }
    }

    /// Launches a kernel of the plan on a stream.
    fn launch_one(&self, l: &Launch, stream: &Arc<CudaStream>, start: Start) -> Result<()> {
        let address = |p: &Pointer| self.base + self.plan.buffer(p.buffer).offset + p.bytes;
        launch_kernel(&self.device, &self.module, l, address, stream, start)
    }

    /// A launch in words.
    fn name_of(&self, l: &Launch) -> String {
        match l.op {
            Some(op) => {
                let label = self.plan.ops[op].label();
                format!("kernel {} of operation {op} ({label})", l.kernel)
            }
            None => format!("kernel {}", l.kernel),
        }
    }
}
