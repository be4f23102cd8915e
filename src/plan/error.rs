//! Why a plan, or a use of one, is refused. Depends on nothing else in the crate.

use std::fmt::{self, Display};

/// Why a plan, or a use of one, is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The plan's workspaces were sized for another backend, precision or number of threads.
    OtherBackend {
        /// The backend that the plan was made for, in words.
        made_for: String,
        /// The backend that was to run it, in words.
        asked_of: String,
        /// What does not fit.
        difference: String,
    },
    /// The plan has no buffer of this number.
    NoSuchBuffer {
        /// The number of the [`BufferId`](super::BufferId).
        number: u32,
        /// How many buffers the plan has.
        buffers: usize,
    },
    /// A range is not inside a buffer.
    OutOfBuffer {
        /// The buffer's name.
        name: String,
        /// The buffer's size, bytes.
        bytes: u64,
        /// Start of the range, bytes.
        offset: usize,
        /// Length of the range, bytes.
        len: usize,
    },
    /// Another plan is too large for the part of the arena that is free between steps.
    NoRoom {
        /// What the other plan needs, bytes.
        needed: u64,
        /// What is free, bytes.
        free: u64,
    },
    /// The backend that the plan is made for has no kernel for one of its operations.
    Unsupported(String),
    /// The plan breaks a rule that every backend relies on: a bug in the code that built it.
    Invalid(String),
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::OtherBackend {
                made_for,
                asked_of,
                difference,
            } => write!(
                f,
                "the plan was made for {made_for} and cannot run on {asked_of}: {difference}"
            ),
            Error::NoSuchBuffer { number, buffers } => {
                write!(
                    f,
                    "the plan has {buffers} buffers and none of number {number}"
                )
            }
            Error::OutOfBuffer {
                name,
                bytes,
                offset,
                len,
            } => write!(
                f,
                "{len} bytes from byte {offset} on are not inside {name} of {bytes} bytes"
            ),
            Error::NoRoom { needed, free } => {
                write!(
                    f,
                    "a plan of {needed} bytes does not fit into {free} free ones"
                )
            }
            Error::Unsupported(why) | Error::Invalid(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

/// The error for what [`Sizing::supports`](super::Sizing::supports) refuses.
pub(super) fn unsupported(error: anyhow::Error) -> Error {
    Error::Unsupported(format!("{error:#}"))
}
