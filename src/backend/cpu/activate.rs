//! Activations as operations of their own.

use super::operation::CpuOperation;
use super::tasks::Context;
use crate::plan::{Activate, ActivateBack};
use anyhow::{Result, bail};

impl CpuOperation for Activate {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}

impl CpuOperation for ActivateBack {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}
