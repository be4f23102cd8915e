//! Pixel shuffle to an image, and the enlarged input.

use super::operation::CpuOperation;
use super::tasks::Context;
use crate::plan::{Shuffle, ShuffleBack};
use anyhow::{Result, bail};

impl CpuOperation for Shuffle {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}

impl CpuOperation for ShuffleBack {
    fn check(&self) -> Result<()> {
        bail!("the CPU has no kernel for it yet")
    }

    fn run(&self, _: &Context<'_>) {}
}
