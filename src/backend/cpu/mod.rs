//! The CPU backend: one file per family of operations.

pub mod structural;
