//! The device of a run: the one the user chose, opened, with its type of activations and the
//! numbers that the memory table needs. Depends on the backends. Promises that a device which was
//! named is used or refused, and never replaced by another one.

use super::DevicePlace;
use crate::backend::Backend;
use crate::backend::CudaSizing;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::cuda::{CudaBackend, Device, Joining, RankCheck, RankSum, device_count};
use crate::plan::{Plan, Precision};
use anyhow::{Context, Result, ensure};
use std::str::FromStr;
use std::sync::Arc;

/// The device that the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device, or the CPU if there is none.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                number.map(DeviceChoice::Cuda).ok_or_else(|| {
                    format!("'{text}' is no device; known are auto, cpu, cuda and cuda:N")
                })
            }
        }
    }
}

impl DeviceChoice {
    /// The device of one of several ranks: the card of its number on its host (`local_rank` of
    /// `on_host`), or the only one that the launcher shows it. `cards`: how many the driver finds.
    ///
    /// # Errors
    /// There are fewer cards than ranks on the host, or all of them were given the same card.
    pub fn of_rank(self, local_rank: usize, on_host: usize, cards: usize) -> Result<DeviceChoice> {
        match self {
            DeviceChoice::Cpu => return Ok(DeviceChoice::Cpu),
            DeviceChoice::Auto if cards == 0 => return Ok(DeviceChoice::Cpu),
            DeviceChoice::Cuda(number) if number > 0 => {
                ensure!(
                    on_host == 1,
                    "--device cuda:{number} names one card for all {on_host} ranks of this host; give --device cuda, with which every rank takes the \
                     card of its number, and choose among the cards with CUDA_VISIBLE_DEVICES"
                );
                return Ok(self);
            }
            DeviceChoice::Auto | DeviceChoice::Cuda(_) => {}
        }
        // One card is the rank's own, or shared with others, which the ranks notice when they agree.
        if cards <= 1 {
            return Ok(DeviceChoice::Cuda(0));
        }
        ensure!(
            local_rank < cards,
            "rank number {local_rank} of this host (counted from 0) finds no card of its own: {on_host} ranks were started there and the driver finds \
             {cards} cards; start at most {cards} ranks on this host (mpirun --map-by ppr:{cards}:node, srun --ntasks-per-node={cards}), or \
             give --device cpu"
        );
        Ok(DeviceChoice::Cuda(local_rank))
    }
}

/// Device memory that is left to other programs and the driver if no limit is given, bytes.
const RESERVE: u64 = 256 << 20;

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
            vram: Some((in_use + free).saturating_sub(RESERVE)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_takes_the_card_of_its_number_on_its_host() {
        use DeviceChoice::{Auto, Cpu, Cuda};
        for (choice, local_rank, on_host, cards, expected) in [
            (Cuda(0), 0, 4, 4, Cuda(0)),
            (Cuda(0), 3, 4, 8, Cuda(3)),
            (Auto, 1, 2, 2, Cuda(1)),
            (Auto, 1, 2, 0, Cpu),
            (Cpu, 1, 2, 2, Cpu),
            // the launcher shows every rank one card
            (Cuda(0), 3, 4, 1, Cuda(0)),
            // opening it says that there is none
            (Cuda(0), 1, 2, 0, Cuda(0)),
            (Cuda(2), 0, 1, 4, Cuda(2)),
        ] {
            let found = choice.of_rank(local_rank, on_host, cards).unwrap();
            assert_eq!(found, expected, "{choice:?}, {local_rank} of {on_host}");
        }
        let error = Cuda(0).of_rank(2, 3, 2).unwrap_err().to_string();
        assert!(
            error.contains("3 ranks")
                && error.contains("2 cards")
                && error.contains("--device cpu"),
            "{error}"
        );
        let error = Cuda(1).of_rank(0, 2, 2).unwrap_err().to_string();
        assert!(error.contains("--device cuda,"), "{error}");
    }

    #[test]
    fn devices_are_named_as_users_write_them() {
        for (text, device) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(device));
        }
        assert!(
            ["gpu", "cuda:", "cuda:-1", "cuda:x"]
                .iter()
                .all(|t| t.parse::<DeviceChoice>().is_err())
        );
    }
}
