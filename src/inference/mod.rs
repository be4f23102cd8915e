//! Uses a trained network: upscales images in tiles, and measures the results. Depends on `model`,
//! `plan`, `backend` and `dataset`, not on training. Promises that memory is known before it is
//! allocated.

pub mod eval;
pub mod metrics;
pub mod upscale;
