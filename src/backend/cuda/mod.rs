//! The CUDA backend. `lower` turns a plan into launches without any device, one file per family of operations as in
//! `kernels/`; what runs them (a device, or the host's fibers in the tests) takes nothing else. Depends on the plan.

mod conv;
mod head;
mod launch;
mod lower;
mod nano;
mod optimizer;
mod pixels;
mod reduce;
mod sizing;
mod structural;

pub use launch::{Arg, Launch, Program, SCALARS_BYTES, device_scalars};
pub use lower::{lower, lower_range};
pub use sizing::{CONTEXT_ESTIMATE, CudaSizing, DRIVER_HOST_ESTIMATE, STRUCTURAL_IMAGES, SUM_BLOCKS};
