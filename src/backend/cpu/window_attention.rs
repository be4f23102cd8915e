//! Attention within windows.

use super::operation::CpuOperation;
use super::tasks::Context;
use crate::plan::{WindowAttention, WindowAttentionBack};
use anyhow::Result;

impl CpuOperation for WindowAttention {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn run(&self, _: &Context<'_>) {
        todo!()
    }
}

impl CpuOperation for WindowAttentionBack {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn run(&self, _: &Context<'_>) {
        todo!()
    }
}
