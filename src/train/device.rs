//! The device of a run: the one the user chose, opened, with its type of activations and the
//! numbers that the memory table needs. Depends on the backends. Promises that a device which was
//! named is used or refused, and never replaced by another one.

use super::DevicePlace;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::cuda::{
    CudaBackend, Device, Joining, RESERVED_BYTES, RankCheck, RankSum, device_count,
};
use crate::backend::{Backend, CudaSizing, DeviceChoice};
use crate::plan::{Plan, Precision};
use anyhow::{Context, Result};
use std::sync::Arc;

/// The opened device of a run.
pub struct OpenedDevice {
    /// The device as the plan and the memory table see it.
    pub place: DevicePlace,
    /// Largest amount of device memory the run may take if the user set no limit, bytes, including
    /// memory that is already in use; `None` on the CPU.
    pub vram: Option<u64>,
    /// The CUDA device; `None` on the CPU.
    device: Option<Arc<Device>>,
    cpu: CpuOptions,
}

impl OpenedDevice {
    /// Opens the chosen device; `validates`: whether f32 inference will run on it too. The text says
    /// why the CPU is used although there is a CUDA device, or computes in f32 although bf16 was
    /// chosen.
    ///
    /// # Errors
    /// The device cannot be opened, or does not support the precision.
    pub fn new(
        choice: DeviceChoice,
        precision: Option<Precision>,
        cpu: CpuOptions,
        validates: bool,
    ) -> Result<(OpenedDevice, Option<String>)> {
        let on_cpu = || -> Result<(OpenedDevice, Option<String>)> {
            let (cpu, reason) = cpu.with_precision(precision)?;
            let opened = OpenedDevice {
                place: DevicePlace::Cpu(cpu),
                vram: None,
                device: None,
                cpu,
            };
            Ok((opened, reason))
        };
        let ordinal = match choice {
            DeviceChoice::Cpu => return on_cpu(),
            DeviceChoice::Cuda(ordinal) => ordinal,
            DeviceChoice::Auto if device_count().is_ok_and(|count| count > 0) => 0,
            DeviceChoice::Auto => return on_cpu(),
        };
        let opened = Device::open(ordinal)
            .and_then(|device| OpenedDevice::on(device, precision, cpu, validates));
        match (opened, choice) {
            (Ok(opened), _) => Ok((opened, None)),
            (Err(error), DeviceChoice::Auto) => {
                let (opened, reason) = on_cpu()?;
                let mut reasons = format!("computing on the CPU, because {error:#}");
                if let Some(reason) = reason {
                    reasons = format!("{reasons}\n{reason}");
                }
                Ok((opened, Some(reasons)))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The state of a CUDA device, with its kernels loaded.
    fn on(
        device: Arc<Device>,
        precision: Option<Precision>,
        cpu: CpuOptions,
        validates: bool,
    ) -> Result<OpenedDevice> {
        let precision = precision.unwrap_or_else(|| device.usual_precision());
        let modules = [precision, Precision::F32];
        let (in_use, free) = device.prepare(&modules[..1 + usize::from(validates)])?;
        let place = DevicePlace::Cuda {
            sizing: CudaSizing { precision },
            in_use: Some(in_use),
        };
        Ok(OpenedDevice {
            place,
            vram: Some((in_use + free).saturating_sub(RESERVED_BYTES)),
            device: Some(device),
            cpu,
        })
    }

    /// The options of the CPU backend, which is used if there is no CUDA device.
    pub fn cpu(&self) -> CpuOptions {
        self.cpu
    }

    /// The CUDA device; `None` on the CPU.
    pub fn device(&self) -> Option<&Arc<Device>> {
        self.device.as_ref()
    }

    /// A backend with a plan loaded, whose card is connected with those of the other ranks; `check`
    /// fails if one of them is in trouble.
    ///
    /// # Errors
    /// The arena cannot be allocated, there is no card, or the ranks cannot be connected.
    pub fn backend_of_rank(
        &self,
        plan: Plan,
        joining: Joining<'_>,
        check: RankCheck<'_>,
    ) -> Result<(Box<dyn Backend>, RankSum)> {
        let device = self.device.as_ref().context("there is no card")?;
        let backend = CudaBackend::new(device, plan)?;
        let sum = RankSum::join(&backend, joining, check)?;
        Ok((Box::new(backend), sum))
    }

    /// A backend with a plan loaded.
    ///
    /// # Errors
    /// The arena cannot be allocated.
    pub fn backend(&self, plan: Plan) -> Result<Box<dyn Backend>> {
        Ok(match &self.device {
            Some(device) => Box::new(CudaBackend::new(device, plan)?),
            None => Box::new(CpuBackend::new(plan, self.cpu)?),
        })
    }
}
