//! Backends: what carries out a plan.

pub mod cpu;
