//! Files of a trained network for other programs: ONNX, safetensors with bare names, the entry of
//! OpenModelDB. Depends on the networks, the plan and the CPU backend. Promises that a file was
//! compared with this program's own result before it is written.

pub mod onnx;
