//! Activations side by side along the channels.

use super::operation::CpuOperation;
use super::tasks::Context;
use crate::plan::{Concat, ConcatBack};
use anyhow::{Result, bail};

impl CpuOperation for Concat {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}

impl CpuOperation for ConcatBack {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}
