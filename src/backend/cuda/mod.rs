//! The CUDA backend. `lower` turns a plan into launches without any device, one file per family of
//! operations as in `kernels/`; what runs them (a device, or the host's fibers in the tests) takes
//! nothing else. Depends on the plan.

mod conv;
mod device;
mod launch;
mod lower;
mod module;
mod nano;
mod optimizer;
mod pixels;
mod reduce;
mod sizing;
mod structural;
mod up_head;

pub use device::{CudaBackend, Device, device_count};
pub use launch::{Arg, Launch, MOST_SHARED, Program, SCALARS_BYTES, Turn, scalars_launch};
pub use lower::{lower, lower_range};
pub use sizing::{CONTEXT_ESTIMATE, CudaSizing, DRIVER_HOST_ESTIMATE};
