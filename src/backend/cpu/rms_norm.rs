//! RMSNorm over channels.

use super::operation::CpuOperation;
use super::tasks::Context;
use crate::plan::{RmsNorm, RmsNormBack};
use anyhow::Result;

impl CpuOperation for RmsNorm {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn run(&self, _: &Context<'_>) {
        todo!()
    }
}

impl CpuOperation for RmsNormBack {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn run(&self, _: &Context<'_>) {
        todo!()
    }
}
