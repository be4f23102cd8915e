//! SPAN's convolutions in composed form.

use super::operation::CpuOperation;
use super::tasks::Context;
use crate::plan::{ComposeConv, ComposeConvBack};
use anyhow::{Result, bail};

impl CpuOperation for ComposeConv {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}

impl CpuOperation for ComposeConvBack {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}
