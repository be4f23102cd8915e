//! Uses a trained network: upscales images in tiles, and measures the results. Depends on `model`,
//! `plan`, `backend`, `dataset` and `shard`, not on training. Promises that memory is known before it is
//! allocated.

pub mod compare;
pub mod eval;
pub mod eval_set;
pub mod metrics;
pub mod upscale;
