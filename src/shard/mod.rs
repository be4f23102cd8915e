//! Shards: immutable files of LQ/HR pairs, made once from a folder of photographs and read for
//! months. Depends on `dataset` for images and on `support` for safe writing. Promises that a set
//! is either complete and checked, or refused with the reason.

mod assembly;
pub mod codec;
mod config;
mod convert;
pub mod criteria;
pub(crate) mod degraded;
mod error;
#[doc(hidden)]
pub mod estimate;
pub(crate) mod file;
mod forecast;
#[doc(hidden)]
pub mod format;
pub(crate) mod hash;
mod headers;
pub mod images;
mod job;
mod journal;
pub mod manifest;
mod mapped_shard;
pub mod merge;
mod near_duplicates;
mod output_folder;
mod pairs;
pub mod plan;
pub mod reader;
mod rejections;
#[doc(hidden)]
pub mod report;
mod resume;
mod roots;
mod same_files;
mod selection;
mod set;
mod shard_reader;
pub(crate) mod source_table;
#[doc(hidden)]
pub mod survey;
mod tables;
mod tally;
pub mod tools;
pub mod writer;

pub use convert::detail as convert_detail;
pub use error::{Details, Error};
pub use forecast::forecast;
pub use output_folder::unusable;
pub use rejections::size_hint;
