//! The CUDA backend. `lower` turns a plan into launches without any device, in one file for each
//! family of operations, as in `kernels/`; a device, or in the tests the host's fibers, runs the
//! launches and needs nothing else. Depends on the plan.
//!
//! Inside, each file depends only on files further down this list: `rank_sum`, `nccl`, `profile`, `arena`,
//! `launching`, `backend`, `batch`, `device`, `module`, `driver`, `resources`, `switches`, `machine_code`, `fingerprint`; `lower`, `sizing`, the families (`conv`, `nano`, `reconstruct`, `structural`,
//! `optimizer`, `pixels`, `plain`), `reduce`, `lowering`, `scalars`, `launch`, `signatures`, `arguments`,
//! `tiles`, `choices`, `limits`, `constants`.

mod arena;
mod arguments;
mod backend;
mod batch;
mod choices;
mod constants;
mod conv;
mod device;
mod driver;
mod fingerprint;
#[cfg(test)]
mod interface;
mod launch;
mod launching;
mod limits;
mod lower;
mod lowering;
mod machine_code;
mod module;
mod nano;
mod nccl;
mod operation;
mod optimizer;
mod pixels;
mod plain;
mod profile;
mod rank_sum;
mod reconstruct;
mod reduce;
mod resources;
mod scalars;
mod signatures;
mod sizing;
mod structural;
mod switches;
mod tiles;

pub use arena::CudaArena;
// what the tests need to run the kernels without a device
#[doc(hidden)]
pub use arguments::{Arguments, Pointer};
pub use backend::CudaBackend;
#[doc(hidden)]
pub use choices::{Choices, Depthwise};
pub use device::{CopySpeed, Device, RESERVED_BYTES};
pub use driver::device_count;
#[doc(hidden)]
pub use launch::{Launch, Order, Program};
#[doc(hidden)]
pub use limits::MOST_SHARED;
#[doc(hidden)]
pub use lower::{lower, lower_range, lower_range_for};
pub use module::Loading;
pub use nccl::{NCCL_DEVICE_BYTES, NCCL_HOST_BYTES, NCCL_VARIABLE, Nccl, nccl_is_off};
pub use profile::LaunchTime;
#[doc(hidden)]
pub use rank_sum::add_gradients;
pub use rank_sum::{Joining, RankCheck, RankSum};
pub use resources::KernelResources;
#[doc(hidden)]
pub use scalars::{SCALARS_BYTES, scalars_launch};
pub use sizing::{CONTEXT_ESTIMATE, CudaSizing, DRIVER_HOST_ESTIMATE};
