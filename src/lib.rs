//! `paragon`: from a folder of photographs to a trained ParagonSR2 network, with every byte of
//! memory known before the first step. The modules stand in the order the data flows through them:
//! dataset -> shard -> loader (order, ring) -> plan on a backend -> train (optimizer, checkpoint)
//! -> eval / upscale.

pub mod backend;
pub mod config;
pub mod dataset;
pub mod inference;
pub mod loader;
pub mod model;
pub mod plan;
pub mod report;
pub mod shard;
pub mod support;
pub mod sys;
pub mod train;
