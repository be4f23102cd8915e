//! Shards: immutable files of LQ/HR pairs, made once from a folder of photographs and read for months. Depends on
//! `dataset` for pictures and on `files` for safe writing. Promises that a set is either complete and checked or refused
//! with the reason.

pub mod codec;
mod convert;
pub mod file;
pub mod format;
pub mod manifest;
pub mod plan;
pub mod reader;
pub mod report;
mod resume;
pub mod tools;
pub mod writer;
