//! The device of a command that applies a network: the flags, and what they open. Depends on the
//! backends and on `inference::upscale`. A device that was named is used or refused; `auto` takes the
//! CPU where the first GPU cannot be used, and says why.

use super::flags::tell;
use anyhow::{Result, ensure};
use paragon::backend::cpu::CpuOptions;
use paragon::backend::cuda::{Device, device_count};
use paragon::backend::{DRIVER_HOST_ESTIMATE, DeviceChoice};
use paragon::inference::upscale::{DeviceFit, DeviceTiles, TilePlace};
use paragon::plan::Precision;
use paragon::support::budget::{Budget, PROGRAM_BYTES};
use paragon::support::text::bytes_text;
use std::sync::Arc;

/// Where a network is applied.
#[derive(clap::Args)]
pub struct DeviceArgs {
    /// Device: auto (the first GPU, or the CPU if there is none), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Type of activations on a GPU: bf16 and fp16 are faster and round more coarsely [default: f32]
    #[arg(long, value_enum, value_name = "TYPE")]
    precision: Option<Precision>,
    /// Most memory of the GPU to use (12G), what the driver takes included; tiles are chosen to fit
    /// [default: what is free]
    #[arg(long, value_name = "SIZE", value_parser = paragon::config::parse_size)]
    vram: Option<u64>,
}

/// A GPU that was opened, and what may be used of it.
struct OpenedGpu {
    device: Arc<Device>,
    precision: Precision,
    /// Most bytes of the arena.
    room: u64,
}

/// Where a command computes.
pub struct InferencePlace {
    /// The GPU; `None`: the CPU computes.
    gpu: Option<OpenedGpu>,
    cpu: CpuOptions,
    /// Whether the CPU may take the place of the GPU.
    may_use_cpu: bool,
}

impl DeviceArgs {
    /// Opens the device. `cpu`: the options of the CPU, should it compute.
    ///
    /// # Errors
    /// A device that was named cannot be used, or a flag has no meaning where the CPU computes.
    pub fn open(&self, cpu: CpuOptions) -> Result<InferencePlace> {
        let precision = self.precision.unwrap_or(Precision::F32);
        let open = |ordinal| -> Result<OpenedGpu> {
            let device = Device::open(ordinal)?;
            let room = device.room(precision, self.vram)?;
            Ok(OpenedGpu {
                device,
                precision,
                room,
            })
        };
        let gpu = match self.device {
            DeviceChoice::Cpu => None,
            DeviceChoice::Cuda(ordinal) => Some(open(ordinal)?),
            DeviceChoice::Auto if device_count().is_ok_and(|count| count > 0) => {
                open(0).map_err(|error| tell_cpu(&error)).ok()
            }
            DeviceChoice::Auto => None,
        };
        ensure!(
            gpu.is_some() || precision == Precision::F32,
            "--precision {precision}: the CPU applies networks in f32 only; leave it out, or name a GPU with \
             --device cuda"
        );
        ensure!(
            self.vram.is_none() || self.device != DeviceChoice::Cpu,
            "--vram bounds the memory of a GPU; give --device cuda, or --host-memory for the CPU"
        );
        Ok(InferencePlace {
            gpu,
            cpu,
            may_use_cpu: self.device == DeviceChoice::Auto && precision == Precision::F32,
        })
    }
}

/// How many threads work on images, and the memory that they take.
pub struct Workers {
    /// Threads, each with an image of its own. One on the CPU, which computes with all its cores.
    pub threads: usize,
    /// Bytes of host memory at most.
    pub memory: u64,
}

impl Workers {
    /// For `images` images of which the largest takes `most` bytes, the program's own included. With a
    /// GPU (`on_device`) as many threads as there are cores (or `asked`) and images, and as the memory
    /// holds of the largest image.
    pub fn new(
        on_device: bool,
        (images, most): (usize, u64),
        budget: &Budget,
        asked: Option<usize>,
    ) -> Workers {
        if !on_device {
            return Workers {
                threads: 1,
                memory: most,
            };
        }
        let shared = PROGRAM_BYTES + DRIVER_HOST_ESTIMATE;
        let image = most.saturating_sub(shared).max(1);
        let room = budget.limit.unwrap_or(u64::MAX).saturating_sub(shared);
        let cores = CpuOptions::new(asked.unwrap_or(0)).threads();
        let threads = (room / image).min(cores.min(images) as u64).max(1);
        Workers {
            threads: threads as usize,
            memory: most + (threads - 1) * image,
        }
    }
}

/// What a GPU does, as one line for the user.
pub fn fit_text(device: &DeviceTiles, fit: DeviceFit, threads: usize) -> String {
    let at_once = match threads {
        1 => String::new(),
        n => format!("; {n} threads decode and encode images"),
    };
    format!(
        "{}: tiles of at most {} x {} pixels, {} of its memory{at_once}",
        device.description(),
        fit.tile.1,
        fit.tile.0,
        bytes_text(fit.bytes)
    )
}

/// What a GPU does, for `--json`.
pub fn fit_json(device: &DeviceTiles, fit: DeviceFit, threads: usize) -> serde_json::Value {
    serde_json::json!({
        "name": device.description(),
        "precision": device.precision(),
        "tile": [fit.tile.1, fit.tile.0],
        "memory": fit.bytes,
        "threads": threads,
    })
}

fn tell_cpu(error: &anyhow::Error) {
    tell(format_args!("computing on the CPU, because {error:#}"));
}

impl InferencePlace {
    /// The place of the tiles of one network.
    pub fn tiles(&self) -> TilePlace {
        match &self.gpu {
            Some(OpenedGpu {
                device,
                precision,
                room,
            }) => TilePlace::Device(Arc::new(DeviceTiles::new(
                device.clone(),
                *precision,
                *room,
            ))),
            None => self.cpu.into(),
        }
    }

    /// Whether the CPU may take the place of the GPU.
    pub fn may_use_cpu(&self) -> bool {
        self.may_use_cpu
    }

    /// The options of the CPU, to compute there because of an error of the GPU, which is told.
    ///
    /// # Errors
    /// The error itself, if the GPU was named.
    pub fn cpu_instead(&self, error: anyhow::Error) -> Result<CpuOptions> {
        if !self.may_use_cpu {
            return Err(error);
        }
        tell_cpu(&error);
        Ok(self.cpu)
    }
}
