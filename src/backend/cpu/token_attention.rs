//! Attention to a dictionary of tokens.

use super::operation::CpuOperation;
use super::tasks::Context;
use crate::plan::{TokenAttention, TokenAttentionBack};
use anyhow::Result;

impl CpuOperation for TokenAttention {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn run(&self, _: &Context<'_>) {
        todo!()
    }
}

impl CpuOperation for TokenAttentionBack {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn run(&self, _: &Context<'_>) {
        todo!()
    }
}
