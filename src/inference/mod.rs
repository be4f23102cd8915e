//! The use of a network: upscaling images in tiles, and measuring the results. Depends on `model`,
//! `plan`, `backend` and `dataset`; nothing of training.

pub mod eval;
pub mod metrics;
pub mod upscale;
