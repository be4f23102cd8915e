//! The memory of a run, known before its first step: the plan of the step, the loader's slots,
//! checkpoints, validation, and the memory of the program and the driver. Depends on the plan, the
//! sizing of the backends and the loader's bound. Promises that `train` allocates what this table
//! says.

use super::TrainConfig;
use crate::backend::cpu::{Bf16Unit, CpuOptions, Products};
use crate::backend::cuda::{NCCL_DEVICE_BYTES, NCCL_HOST_BYTES};
use crate::backend::{CONTEXT_ESTIMATE, CudaSizing, DRIVER_HOST_ESTIMATE};
use crate::inference::upscale::{LeastRoom, Tiler, least_room};
use crate::loader::LoaderBound;
use crate::model::{Recompute, StepSpec, training_plan};
use crate::plan::{MemoryLine, MemoryTable, Plan, Precision, Sizing};
use crate::ranks::{LIBRARY_BYTES, OrderedSum};
use crate::support::parts::Parts;
use crate::support::text::bytes_text;
use anyhow::Result;
use serde::Serialize;

/// Allowance for anonymous memory of the program that is not counted otherwise, bytes: data of
/// libraries, stacks, the log.
const PROCESS_BYTES: u64 = 24 << 20;
/// Host memory per HR pixel of a validation image, bytes. Decoding takes up to 11, besides the
/// decoder's own buffers. Comparing takes 3 each for HR, the network's result and bicubic, and less
/// for LQ and temporaries.
const IMAGE_BYTES: u64 = 16;

/// The sizes of the images that a run validates on.
#[derive(Clone, Debug, Default)]
pub struct ImageSizes {
    /// (width, height) of the LQ images, each size once.
    pub lq: Vec<(u32, u32)>,
    /// Pixels of the largest HR image.
    pub largest_hr: u64,
    /// Bytes that making the LQ by a degradation recipe takes; 0 for images that have one.
    pub degrade_bytes: u64,
}

/// The memory that validation takes; none for a run that does not validate.
#[derive(Clone, Copy, Debug, Default)]
pub struct ValidationMemory {
    /// Bytes on the host: the images, and a tile with its result.
    pub host: u64,
    /// What must be free in the arena of the step between steps.
    pub room: LeastRoom,
}

impl ValidationMemory {
    /// The memory for images of these sizes.
    ///
    /// # Errors
    /// The network has no tiles of the default size, or cannot be planned.
    pub fn new(
        config: &TrainConfig,
        place: &DevicePlace,
        sizes: &ImageSizes,
    ) -> Result<ValidationMemory> {
        let net = &config.network;
        let tiler = Tiler::new(net.clone(), 0)?;
        let images = sizes.largest_hr.saturating_mul(IMAGE_BYTES);
        Ok(ValidationMemory {
            host: tiler
                .bytes_for(&sizes.lq)
                .saturating_add(images)
                .saturating_add(sizes.degrade_bytes),
            room: least_room(net, place.inference().as_ref(), &sizes.lq)?,
        })
    }
}

/// The ranks of a run, and how their gradients travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Travel {
    /// Ranks that share the micro-batches of an iteration; 1 for a process that is alone.
    pub ranks: usize,
    /// Whether gradients go from card to card through NCCL and are summed there, and not on the
    /// host.
    pub by_nccl: bool,
}

impl Travel {
    /// A process that is alone.
    pub const ALONE: Travel = Travel {
        ranks: 1,
        by_nccl: false,
    };

    /// f32 values that a step's plan has for the gradients of other ranks.
    fn device_values(&self, config: &TrainConfig) -> usize {
        if self.by_nccl {
            Parts::new(self.ranks, config.network.params().trainable()).device_values()
        } else {
            0
        }
    }
}

/// Where the step runs.
#[derive(Clone, Copy, Debug)]
pub enum DevicePlace {
    /// On the CPU: the arena is host memory.
    Cpu(CpuOptions),
    /// On a CUDA device.
    Cuda {
        /// The sizing of its kernels.
        sizing: CudaSizing,
        /// Measured device memory in use before the arena of the step, bytes: context, kernels,
        /// other programs. `None`: there is no device, and an estimate is used.
        in_use: Option<u64>,
    },
}

impl DevicePlace {
    /// The sizing that the backend gives to the plan.
    pub fn sizing(&self) -> &dyn Sizing {
        match self {
            DevicePlace::Cpu(options) => options,
            DevicePlace::Cuda { sizing, .. } => sizing,
        }
    }

    /// Type of activations.
    pub fn precision(&self) -> Precision {
        self.sizing().precision()
    }

    /// Whether the arena is in the memory of a device.
    pub fn is_device(&self) -> bool {
        matches!(self, DevicePlace::Cuda { .. })
    }

    /// The plan of the training step here. Its arena has at least `room` bytes that are free between
    /// steps, for validation, and with `travel` the memory in which a device sums the gradients of
    /// ranks.
    ///
    /// # Errors
    /// The step cannot be planned, or has sizes that are too large.
    pub fn plan(
        &self,
        config: &TrainConfig,
        recompute: Recompute,
        room: u64,
        travel: &Travel,
    ) -> Result<Plan> {
        let spec = StepSpec {
            exchange: travel.device_values(config),
            ..config.step_spec(recompute)
        };
        let mut plan = training_plan(&config.network, &spec, self.sizing())?;
        plan.reserve_between_steps(room);
        Ok(plan)
    }

    /// The unit of the CPU that multiplies bf16 values; `None` if products are in the precision of
    /// the activations.
    pub fn bf16_unit(&self) -> Option<Bf16Unit> {
        match self {
            DevicePlace::Cpu(options) => options.products().unit(),
            DevicePlace::Cuda { .. } => None,
        }
    }

    /// The sizing of inference here, which is f32 also if training uses bf16 or fp16.
    pub fn inference(&self) -> Box<dyn Sizing> {
        match *self {
            DevicePlace::Cpu(options) => Box::new(options.with_products(Products::F32)),
            DevicePlace::Cuda { .. } => Box::new(CudaSizing {
                precision: Precision::F32,
            }),
        }
    }
}

/// The memory table of a run.
#[derive(Clone, Debug, Serialize)]
pub struct RunMemory {
    /// The arena of the step: its classes, its peak and its lower bound.
    pub step: MemoryTable,
    /// Whether the arena of the step is in the memory of a device.
    pub on_device: bool,
    /// What the device holds besides the arena; empty on the CPU.
    pub device: Vec<MemoryLine>,
    /// What the host holds besides the arena.
    pub host: Vec<MemoryLine>,
    /// Bytes on the device, all together.
    pub device_bytes: u64,
    /// Bytes on the host, all together.
    pub host_bytes: u64,
}

/// A row of the table.
fn line(what: impl Into<String>, bytes: u64) -> MemoryLine {
    MemoryLine {
        what: what.into(),
        bytes,
        shared: false,
    }
}

/// The rows of what the host holds besides the arena and the driver.
fn host_lines(
    config: &TrainConfig,
    on_device: bool,
    loader: &LoaderBound,
    validation: &ValidationMemory,
) -> Vec<MemoryLine> {
    let slots = (loader.slots as u64).saturating_mul(loader.slot_bytes);
    let what = if on_device { "pinned staging" } else { "ring" };
    let mut host = vec![
        line(
            format!(
                "{what}: {} slots of {}",
                loader.slots,
                bytes_text(loader.slot_bytes)
            ),
            slots,
        ),
        line(
            format!("loader scratch: {} threads", loader.threads),
            (loader.threads as u64).saturating_mul(loader.scratch_bytes),
        ),
        line("shard index", loader.index_bytes),
        // Ten times the parameters: four vectors that are read back (4), the bytes of the state
        // (4), and the two networks (2).
        line(
            "checkpoints while written",
            config.network.params().len() as u64 * 4 * 10,
        ),
    ];
    if loader.degrade_bytes > 0 {
        host.push(line(
            format!("degradation: {} threads", loader.threads),
            (loader.threads as u64).saturating_mul(loader.degrade_bytes),
        ));
    }
    if validation.host > 0 {
        host.push(line("validation: images and a tile", validation.host));
    }
    host.push(line("the program itself (allowance)", PROCESS_BYTES));
    host
}

impl RunMemory {
    /// The table of a run.
    pub fn new(
        config: &TrainConfig,
        place: &DevicePlace,
        plan: &Plan,
        loader: &LoaderBound,
        validation: &ValidationMemory,
    ) -> RunMemory {
        let on_device = place.is_device();
        let mut host = host_lines(config, on_device, loader, validation);
        let mut device = Vec::new();
        if on_device {
            device.push(match place {
                DevicePlace::Cuda {
                    in_use: Some(bytes),
                    ..
                } => line("context, kernels, other programs (measured)", *bytes),
                _ => line("CUDA context and driver (estimate)", CONTEXT_ESTIMATE),
            });
            host.push(line(
                "CUDA driver on the host (estimate)",
                DRIVER_HOST_ESTIMATE,
            ));
        }
        let sum = |lines: &[MemoryLine]| {
            lines
                .iter()
                .fold(0u64, |sum, line| sum.saturating_add(line.bytes))
        };
        let (mut device_bytes, mut host_bytes) = (sum(&device), sum(&host));
        let holder = if on_device {
            &mut device_bytes
        } else {
            &mut host_bytes
        };
        *holder = holder.saturating_add(plan.arena_bytes);
        let mut step = plan.memory();
        if validation.room.bytes > 0 {
            let (h, w) = validation.room.tile;
            step.lines.push(MemoryLine {
                shared: true,
                ..line(format!("validation: {w} x {h}"), validation.room.bytes)
            });
        }
        RunMemory {
            step,
            on_device,
            device,
            host,
            device_bytes,
            host_bytes,
        }
    }
}

impl RunMemory {
    /// Adds what one of several ranks holds besides: the messages with gradients, what carries them,
    /// and NCCL where it is used. `adds`: whether a process that is alone adds gradients as ranks do.
    pub fn add_ranks(&mut self, config: &TrainConfig, travel: &Travel, adds: bool) {
        let ranks = travel.ranks;
        // with NCCL, messages on the host have words and no gradients
        let values = if travel.by_nccl {
            self.device
                .push(line("NCCL on the device (allowance)", NCCL_DEVICE_BYTES));
            self.device_bytes = self.device_bytes.saturating_add(NCCL_DEVICE_BYTES);
            0
        } else {
            config.network.params().trainable()
        };
        let bytes = OrderedSum::bytes(ranks, values);
        let mut lines = match ranks {
            1 if adds => vec![line("sum of gradients", bytes)],
            1 => return,
            _ => vec![
                line(format!("exchange of gradients: {ranks} ranks"), bytes),
                line("MPI library or store (allowance)", LIBRARY_BYTES),
            ],
        };
        if travel.by_nccl {
            lines[0].what = format!("words of {ranks} ranks");
            lines.push(line("NCCL on the host (allowance)", NCCL_HOST_BYTES));
        }
        for line in lines {
            self.host_bytes = self.host_bytes.saturating_add(line.bytes);
            let program = self.host.len().saturating_sub(1);
            self.host.insert(program, line);
        }
    }
}

impl std::fmt::Display for RunMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut row = |indent: &str, what: &str, bytes: u64| {
            writeln!(
                f,
                "  {:42}{:>12}",
                format!("{indent}{what}"),
                bytes_text(bytes)
            )
        };
        row("", "step arena, allocated once", self.step.arena_bytes)?;
        for line in &self.step.lines {
            row(
                "  ",
                &format!(
                    "{}{}",
                    line.what,
                    if line.shared {
                        " (at most, shared)"
                    } else {
                        ""
                    }
                ),
                line.bytes,
            )?;
        }
        if self.on_device {
            self.device
                .iter()
                .try_for_each(|line| row("", &line.what, line.bytes))?;
            row("", "device total", self.device_bytes)?;
        }
        self.host
            .iter()
            .try_for_each(|line| row("", &line.what, line.bytes))?;
        let total = if self.on_device {
            "host total"
        } else {
            "total"
        };
        write!(f, "  {total:42}{:>12}", bytes_text(self.host_bytes))
    }
}

/// Limits on the memory of a run; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct RunBudget {
    /// Largest amount of host memory, bytes.
    pub host: Option<u64>,
    /// Largest amount of device memory, bytes, including that of the context.
    pub device: Option<u64>,
}

impl RunBudget {
    /// The smaller limit of two budgets, for host and device separately.
    #[must_use]
    pub fn within(self, other: RunBudget) -> RunBudget {
        let least = |a: Option<u64>, b: Option<u64>| [a, b].into_iter().flatten().min();
        RunBudget {
            host: least(self.host, other.host),
            device: least(self.device, other.device),
        }
    }

    /// Whether a run stays within the limits.
    pub fn holds(&self, memory: &RunMemory) -> bool {
        self.host.is_none_or(|most| memory.host_bytes <= most)
            && self.device.is_none_or(|most| memory.device_bytes <= most)
    }

    /// `267.8 MiB of 200.0 MiB host memory`, for every limit that is set.
    pub fn compare(&self, memory: &RunMemory) -> String {
        let part = |most: Option<u64>, bytes: u64, what: &str| {
            most.map(|most| {
                format!(
                    "{} of {} {what} memory",
                    bytes_text(bytes),
                    bytes_text(most)
                )
            })
        };
        let device = part(
            self.device.filter(|_| memory.on_device),
            memory.device_bytes,
            "device",
        );
        let host = part(self.host, memory.host_bytes, "host");
        [device, host]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ")
    }
}
