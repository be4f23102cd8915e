//! Shards: immutable files of LQ/HR pairs, made once from a folder of photographs and read for
//! months. Depends on `dataset` for images and on `files` for safe writing. Promises that a set
//! is either complete and checked or refused with the reason.

mod assembly;
pub mod codec;
mod convert;
pub mod estimate;
pub mod file;
pub mod format;
mod journal;
pub mod manifest;
pub mod merge;
pub mod plan;
pub mod reader;
pub mod report;
mod resume;
mod set;
mod tables;
mod tally;
pub mod tools;
pub mod writer;

pub use convert::detail as convert_detail;
pub use resume::foretell;
