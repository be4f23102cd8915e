//! The library's errors as Python exceptions. Promises that the text is the whole chain, so that
//! shard, record and image are named.

use paragon::shard::Error as ShardError;
use paragon::support::failure::system_cause;
use pyo3::PyErr;
use pyo3::create_exception;
use pyo3::exceptions::{
    PyFileNotFoundError, PyMemoryError, PyOSError, PyRuntimeError, PyValueError,
};
use std::io::ErrorKind;

create_exception!(
    paragon,
    Error,
    PyRuntimeError,
    "An error of paragon that is none of the system and none of the arguments."
);
create_exception!(
    paragon,
    DamagedError,
    Error,
    "A shard or a record is damaged; the text names shard, record and image."
);

/// The exception for an error while reading or loading.
pub fn exception(error: &anyhow::Error) -> PyErr {
    let text = format!("{error:#}");
    let shard = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ShardError>());
    let system = system_cause(error);
    match (shard, system) {
        (Some(ShardError::Damaged(_)), _) => DamagedError::new_err(text),
        (Some(ShardError::Missing(_)), _) => PyFileNotFoundError::new_err(text),
        (Some(ShardError::OutOfMemory(_)), _) => PyMemoryError::new_err(text),
        (_, Some(io)) if io.kind() == ErrorKind::NotFound => PyFileNotFoundError::new_err(text),
        (_, Some(_)) => PyOSError::new_err(text),
        _ => Error::new_err(text),
    }
}

/// The exception for arguments that cannot be used; errors of the system stay what they are.
pub fn wrong_argument(error: &anyhow::Error) -> PyErr {
    let of_set = error.chain().any(|cause| cause.is::<ShardError>());
    if of_set || system_cause(error).is_some() {
        exception(error)
    } else {
        PyValueError::new_err(format!("{error:#}"))
    }
}
