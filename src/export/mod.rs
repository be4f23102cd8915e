//! Files of a trained network for other programs: ONNX, safetensors with bare names, the entry of
//! OpenModelDB. Depends on the networks, the plan, the CPU backend and upscaling, never on the
//! command line. Promises that a network was compared with this program's own result before a file
//! of it is written.

pub mod digest;
pub mod examples;
pub mod model_db;
pub mod onnx;
mod source;
mod weights;

pub use source::{Source, file_stem, source};
pub use weights::safetensors_bytes;
