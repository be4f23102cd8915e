//! Sums of activations.

use super::operation::CpuOperation;
use super::tasks::Context;
use crate::plan::{Accumulate, ScaledSum, ScaledSumBack};
use anyhow::{Result, bail};

impl CpuOperation for Accumulate {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}

impl CpuOperation for ScaledSum {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}

impl CpuOperation for ScaledSumBack {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}
