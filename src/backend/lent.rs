//! A backend in a part of another backend's arena: what [`Backend::lend`] returns. Depends on the
//! [`Backend`] trait alone.

use super::{Backend, BatchView, Scalars, StepMetrics};
use crate::plan::{BufferId, Plan};
use crate::sys::host_memory::Fence;
use anyhow::Result;
use std::marker::PhantomData;

/// A backend in a part of another backend's arena. It borrows the other one mutably, so that
/// nothing else uses the arena.
pub(super) struct LentBackend<'a, B> {
    backend: B,
    _owner: PhantomData<&'a mut B>,
}

impl<'a, B: Backend + 'a> LentBackend<'a, B> {
    /// Wraps `backend`, whose arena is a part of another's; it must not outlive `'a`.
    pub fn lend(backend: B) -> Box<dyn Backend + 'a> {
        Box::new(LentBackend {
            backend,
            _owner: PhantomData,
        })
    }
}

impl<B: Backend> Backend for LentBackend<'_, B> {
    fn description(&self) -> String {
        self.backend.description()
    }

    fn plan(&self) -> &Plan {
        self.backend.plan()
    }

    fn allocated(&self) -> u64 {
        0
    }

    fn write(&mut self, buffer: BufferId, offset: usize, bytes: &[u8]) -> Result<()> {
        self.backend.write(buffer, offset, bytes)
    }

    fn read(&mut self, buffer: BufferId, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.backend.read(buffer, offset, bytes)
    }

    fn lend(&mut self, plan: Plan) -> Result<Box<dyn Backend + '_>> {
        self.backend.lend(plan)
    }

    fn stage(&mut self, batch: BatchView<'_>) -> Result<Option<Box<dyn Fence>>> {
        self.backend.stage(batch)
    }

    fn micro_step(&mut self, scalars: &Scalars) -> Result<()> {
        self.backend.micro_step(scalars)
    }

    fn run_operation(&mut self, at: usize, scalars: &Scalars) -> Result<()> {
        self.backend.run_operation(at, scalars)
    }

    fn update(&mut self, scalars: &Scalars) -> Result<()> {
        self.backend.update(scalars)
    }

    fn metrics(&mut self) -> Result<StepMetrics> {
        self.backend.metrics()
    }

    fn metrics_survive_next_step(&self) -> bool {
        self.backend.metrics_survive_next_step()
    }
}
