//! `paragon`: from a folder of photographs to a trained ParagonSR2 network, with every byte of
//! memory known before the first step. The modules stand in the order the data flows through them:
//! dataset -> shard -> loader (order, ring) -> plan on a backend -> train (optimizer, checkpoint)
//! -> eval / upscale.

pub mod backend;
pub mod budget;
pub mod config;
pub mod dataset;
pub mod encode;
pub mod eval;
pub mod failure;
pub mod files;
pub mod foreign;
pub mod host_memory;
pub mod isa;
pub mod loader;
pub mod lock;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod progress;
pub mod report;
pub mod rng;
pub mod selftest;
pub mod shard;
pub mod system;
pub mod text;
pub mod train;
pub mod upscale;
