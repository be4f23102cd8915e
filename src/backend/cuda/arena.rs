//! One allocation on a device that several plans use in turns, as inference does with tiles of
//! different sizes. Depends on the backend.

use super::backend::CudaBackend;
use super::device::{Device, Memory};
use crate::backend::Error;
use crate::plan::Plan;
use crate::support::text::bytes_text;
use anyhow::{Result, ensure};
use std::sync::Arc;

/// Memory on a device for the plans of inference, which use it in turns.
pub struct CudaArena {
    device: Arc<Device>,
    memory: Arc<Memory>,
}

impl CudaArena {
    /// Allocates `bytes`.
    ///
    /// # Errors
    /// When so much is not free.
    pub fn new(device: &Arc<Device>, bytes: u64) -> Result<CudaArena> {
        let work = ("a tile of the network", "give a smaller --tile");
        let memory = Arc::new(Memory::for_work(device, bytes, work)?);
        Ok(CudaArena {
            device: device.clone(),
            memory,
        })
    }

    /// Bytes that are allocated.
    pub fn bytes(&self) -> u64 {
        self.memory.bytes
    }

    /// A backend that runs a plan here. All backends of an arena use the same memory: after another
    /// one ran, the content of this one's buffers is undefined, its parameters included.
    ///
    /// # Errors
    /// When the plan was not made for a device, it is larger than the arena, or the driver refuses
    /// something.
    pub fn load(&self, plan: Plan) -> Result<CudaBackend> {
        ensure!(
            plan.arena_bytes <= self.memory.bytes,
            Error::Misuse(format!(
                "a plan of {} for an arena of {}",
                bytes_text(plan.arena_bytes),
                bytes_text(self.memory.bytes)
            ))
        );
        CudaBackend::load(&self.device, plan, self.memory.clone(), self.memory.base)
    }
}
