//! Why a backend refuses or fails. Depends on the plan's errors alone.

use crate::plan;
use std::fmt::{self, Display};

/// Why a backend refuses or fails.
///
/// Backends return [`anyhow::Error`]; `downcast_ref::<backend::Error>()` finds this type there, and
/// the text is written for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// There is no such device, or no driver for it.
    NoDevice(String),
    /// The device or its driver is too old for the kernels.
    DeviceRefused(String),
    /// The driver reports an error.
    Driver {
        /// What was tried: `copy a batch`.
        action: String,
        /// The driver's error code (`CUresult`).
        code: u32,
        /// The driver's own words.
        text: String,
    },
    /// The host or the device has too little memory for the arena.
    OutOfMemory(String),
    /// The plan, or a range of a buffer, does not fit this backend.
    Plan(plan::Error),
    /// The backend has no code for an operation of this kind or size.
    Unsupported(String),
    /// The caller gave a batch of other sizes, or asked for something that the plan does not have.
    Misuse(String),
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoDevice(text)
            | Error::DeviceRefused(text)
            | Error::OutOfMemory(text)
            | Error::Unsupported(text)
            | Error::Misuse(text) => f.write_str(text),
            Error::Driver { action, text, .. } => write!(f, "CUDA could not {action}: {text}"),
            Error::Plan(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<plan::Error> for Error {
    fn from(error: plan::Error) -> Error {
        Error::Plan(error)
    }
}
