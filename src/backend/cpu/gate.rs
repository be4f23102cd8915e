//! Products of activations that act as gates.

use super::operation::CpuOperation;
use super::tasks::Context;
use crate::plan::{Gate, GateBack};
use anyhow::{Result, bail};

impl CpuOperation for Gate {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}

impl CpuOperation for GateBack {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}
