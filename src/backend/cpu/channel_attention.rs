//! Channel attention.

use super::operation::CpuOperation;
use super::tasks::Context;
use crate::plan::{ChannelAttention, ChannelAttentionBack};
use anyhow::Result;

impl CpuOperation for ChannelAttention {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn run(&self, _: &Context<'_>) {
        todo!()
    }
}

impl CpuOperation for ChannelAttentionBack {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn run(&self, _: &Context<'_>) {
        todo!()
    }
}
