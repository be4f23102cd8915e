//! The Stream block in one pass forward and one backward.

use super::operation::CpuOperation;
use super::tasks::Context;
use crate::plan::{StreamBlock, StreamBlockBack};
use anyhow::{Result, bail};

impl CpuOperation for StreamBlock {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}

impl CpuOperation for StreamBlockBack {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}
