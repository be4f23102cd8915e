//! The memory of a run, known before its first step: the plan of the step, the loader's slots,
//! checkpoints, validation, and what the program and the driver take themselves. Depends on the
//! plan, the backends' sizing and the loader's bound. It promises that what `train` allocates is
//! what this table says.

use super::TrainConfig;
use crate::backend::cpu::CpuOptions;
use crate::backend::{CONTEXT_ESTIMATE, CudaSizing, DRIVER_HOST_ESTIMATE};
use crate::inference::upscale::{Tiles, least_room};
use crate::loader::LoaderBound;
use crate::model::{Recompute, training_plan};
use crate::plan::{MemoryLine, MemoryTable, Plan, Precision, Sizing};
use crate::support::text::bytes_text;
use anyhow::Result;
use serde::Serialize;

/// Anonymous memory of the program itself beside what is counted: data of libraries, stacks, the
/// log.
const PROCESS_BYTES: u64 = 24 << 20;
/// Bytes on the host while a run validates: a tile and its result, and images of up to so many HR
/// pixels.
///
/// # Errors
/// Never with the default tile.
pub fn validation_bytes(config: &TrainConfig, largest: u64) -> Result<u64> {
    Ok(Tiles::new(config.network.clone(), 0)?.bytes() + largest * PICTURE_BYTES)
}

/// Bytes for each pixel of a validation image: decoding takes up to 11 and the decoder's own
/// room; comparing takes 3 each for HR, ours and bicubic, and less for LQ and between.
const PICTURE_BYTES: u64 = 16;

/// Where the step runs.
#[derive(Clone, Copy, Debug)]
pub enum DevicePlace {
    /// On the CPU: the arena is host memory.
    Cpu(CpuOptions),
    /// On a CUDA device.
    Cuda {
        /// What its kernels need.
        sizing: CudaSizing,
        /// Bytes of the card in use before the step's arena, measured: context, kernels, other
        /// programs. An estimate stands in where there is no card.
        in_use: Option<u64>,
    },
}

impl DevicePlace {
    /// What the backend tells the plan.
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

    /// Whether the arena lies on a device of its own.
    pub fn is_device(&self) -> bool {
        matches!(self, DevicePlace::Cuda { .. })
    }

    /// The plan of a run's step here; with validation its arena has room for a tile between steps.
    ///
    /// # Errors
    /// Only on a bug in the plan's builder.
    pub fn plan(
        &self,
        config: &TrainConfig,
        recompute: Recompute,
        validates: bool,
    ) -> Result<Plan> {
        let mut plan = training_plan(&config.network, &config.step_spec(recompute), self.sizing())?;
        if validates {
            plan.reserve_between_steps(least_room(&config.network, self.inference().as_ref())?);
        }
        Ok(plan)
    }

    /// What inference needs here: in f32, also where training computes in halves.
    pub fn inference(&self) -> Box<dyn Sizing> {
        match *self {
            DevicePlace::Cpu(options) => Box::new(options),
            DevicePlace::Cuda { .. } => Box::new(CudaSizing {
                precision: Precision::F32,
            }),
        }
    }
}

/// The memory of a run.
#[derive(Clone, Debug, Serialize)]
pub struct RunMemory {
    /// The step by class, its peak moment and its floor.
    pub step: MemoryTable,
    /// Whether the step's arena lies on a device.
    pub on_device: bool,
    /// What the device holds beside the arena; empty on the CPU.
    pub device: Vec<MemoryLine>,
    /// What the host holds beside the arena.
    pub host: Vec<MemoryLine>,
    /// Everything on the device.
    pub device_bytes: u64,
    /// Everything on the host.
    pub host_bytes: u64,
}

fn line(what: impl Into<String>, bytes: u64) -> MemoryLine {
    MemoryLine {
        what: what.into(),
        bytes,
        shared: false,
    }
}

impl RunMemory {
    /// The table of a run; `validation` in bytes, 0 without.
    pub fn new(
        config: &TrainConfig,
        place: &DevicePlace,
        plan: &Plan,
        loader: &LoaderBound,
        validation: u64,
    ) -> RunMemory {
        let on_device = place.is_device();
        let slots = loader.slots as u64 * loader.slot_bytes;
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
                loader.threads as u64 * loader.scratch_bytes,
            ),
            line("shard index", loader.index_bytes),
            // four vectors read back, their bytes in one file, and the two network files after it
            line(
                "checkpoints while written",
                config.network.params().len() as u64 * 4 * 10,
            ),
        ];
        if validation > 0 {
            host.push(line("validation: images and a tile", validation));
        }
        host.push(line("the program itself (allowance)", PROCESS_BYTES));
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
        let sum = |lines: &[MemoryLine]| lines.iter().map(|l| l.bytes).sum::<u64>();
        let (mut device_bytes, mut host_bytes) = (sum(&device), sum(&host));
        *(if on_device {
            &mut device_bytes
        } else {
            &mut host_bytes
        }) += plan.arena_bytes;
        RunMemory {
            step: plan.memory(),
            on_device,
            device,
            host,
            device_bytes,
            host_bytes,
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

/// What a run may take.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct RunBudget {
    /// Most host memory, bytes.
    pub host: Option<u64>,
    /// Most device memory, bytes, what the context takes included.
    pub device: Option<u64>,
}

impl RunBudget {
    /// The smaller of two budgets, part by part.
    #[must_use]
    pub fn within(self, other: RunBudget) -> RunBudget {
        let least = |a: Option<u64>, b: Option<u64>| [a, b].into_iter().flatten().min();
        RunBudget {
            host: least(self.host, other.host),
            device: least(self.device, other.device),
        }
    }

    /// Whether a run stays inside.
    pub fn holds(&self, memory: &RunMemory) -> bool {
        self.host.is_none_or(|most| memory.host_bytes <= most)
            && self.device.is_none_or(|most| memory.device_bytes <= most)
    }

    /// `267.8 MiB of 200.0 MiB host memory`, for every limit there is.
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
