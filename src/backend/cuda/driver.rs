//! The first calls of the CUDA driver: whether there is one, and its errors as text. Depends on
//! cudarc and the error of backends; every file that calls CUDA is built on it.

use crate::backend::Error;
use anyhow::{Result, ensure};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

/// The oldest generation of cards with kernels, compute capability x 10.
pub(super) const LEAST_CAPABILITY: i32 = 75;

/// The driver's version of CUDA that the kernels and calls need, as it reports it: 12.1, which came
/// with driver 530.
const LEAST_DRIVER: i32 = 12_010;

/// Turns a driver's error into one that says what the program tried to do.
pub(super) trait Call<T> {
    /// The value, or "CUDA could not `what`" with the driver's reason.
    ///
    /// # Errors
    /// When the call failed.
    fn call(self, what: &str) -> Result<T>;
}

impl<T> Call<T> for Result<T, DriverError> {
    fn call(self, what: &str) -> Result<T> {
        self.map_err(|e| {
            let text = e
                .error_string()
                .map(|s| s.to_string_lossy().into_owned())
                .unwrap_or_else(|_| format!("error {}", e.0 as u32));
            failure(e.0, what, text).into()
        })
    }
}

/// The error of a call that should have done `what`, with the driver's own words.
fn failure(error: sys::cudaError_enum, what: &str, text: String) -> Error {
    if error == sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY {
        return Error::OutOfMemory(format!("CUDA could not {what}: {text}"));
    }
    let (action, code) = (what.to_string(), error as u32);
    match lost(error) {
        Some(advice) => Error::DeviceLost {
            action,
            code,
            text,
            advice,
        },
        None => Error::Driver { action, code, text },
    }
}

/// What to do after an error that ends a context: every later call fails with it, so it is often
/// reported by a call that has nothing to do with it. `None` for other errors.
fn lost(error: sys::cudaError_enum) -> Option<&'static str> {
    use sys::cudaError_enum as E;
    match error {
        E::CUDA_ERROR_ILLEGAL_ADDRESS
        | E::CUDA_ERROR_ASSERT
        | E::CUDA_ERROR_HARDWARE_STACK_ERROR
        | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | E::CUDA_ERROR_MISALIGNED_ADDRESS
        | E::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | E::CUDA_ERROR_INVALID_PC => Some(
            "a kernel did something that it must not do; `paragon selftest` looks for it, and PARAGON_CUDA_SYNC=1 names the kernel for a bug report",
        ),
        E::CUDA_ERROR_LAUNCH_TIMEOUT => Some(
            "a kernel ran longer than the system allows a card with a display; use a smaller batch or patch, or a card without a display",
        ),
        E::CUDA_ERROR_ECC_UNCORRECTABLE => Some(
            "the card's memory has an error that it could not correct; look at `nvidia-smi -q -d ECC`, and reset or replace the card",
        ),
        E::CUDA_ERROR_LAUNCH_FAILED
        | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | E::CUDA_ERROR_CONTEXT_IS_DESTROYED => Some(
            "the card or its driver failed; look for \"Xid\" in `dmesg`, and run `paragon selftest` before the next training",
        ),
        _ => None,
    }
}

/// Makes a context the current one of the calling thread, in order to release something. An error
/// that cudarc has stored for the next call stays stored: releasing must not hide it, nor be
/// prevented by it.
pub(super) fn bind_to_release(context: &CudaContext) {
    if let Err(error) = context.bind_to_thread() {
        // the failing call has taken the stored error, so this one binds
        let _ = context.bind_to_thread();
        context.record_err::<()>(Err(error));
    }
}

/// Waits for all work on a stream, in order to release what it uses. Errors are left to the next call
/// that returns a result; cudarc's own wait would return at once when it has an error to report.
pub(super) fn settle(stream: &CudaStream) {
    bind_to_release(stream.context());
    // SAFETY: the stream lives as long as the reference
    let _ = unsafe { result::stream::synchronize(stream.cu_stream()) };
}

/// Number of CUDA devices.
///
/// # Errors
/// When there is no driver, or one that is too old.
pub fn device_count() -> Result<usize> {
    // SAFETY: the call only tries to open the library
    let present = unsafe { sys::is_culib_present() };
    ensure!(
        present,
        Error::NoDevice(
            "no NVIDIA driver was found (libcuda); install it, or use --device cpu".into()
        )
    );
    let mut version = 0;
    // SAFETY: the call writes one int, to a variable that outlives it; every driver has it
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    ensure!(
        status == sys::cudaError_enum::CUDA_SUCCESS && version >= LEAST_DRIVER,
        Error::DeviceRefused(format!(
            "the NVIDIA driver supports CUDA {}.{} and this program needs {}.{} (driver 530 or newer); update it, or use --device cpu",
            version / 1000,
            version % 1000 / 10,
            LEAST_DRIVER / 1000,
            LEAST_DRIVER % 1000 / 10
        ))
    );
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count)?),
        Err(e) if e.0 == sys::cudaError_enum::CUDA_ERROR_NO_DEVICE => Ok(0),
        Err(e) => Err(e).call("count the devices"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::cudaError_enum as E;

    #[test]
    fn a_lost_device_is_named_with_what_to_do() {
        let failed = |error| failure(error, "copy a batch", "some words".into());
        for (error, word) in [
            (E::CUDA_ERROR_ILLEGAL_ADDRESS, "PARAGON_CUDA_SYNC=1"),
            (E::CUDA_ERROR_LAUNCH_TIMEOUT, "display"),
            (E::CUDA_ERROR_ECC_UNCORRECTABLE, "ECC"),
            (E::CUDA_ERROR_LAUNCH_FAILED, "Xid"),
        ] {
            let error = failed(error);
            assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
            let text = error.to_string();
            for word in [word, "copy a batch", "last checkpoint"] {
                assert!(text.contains(word), "{text}");
            }
        }
        let other = failed(E::CUDA_ERROR_INVALID_VALUE);
        assert!(matches!(other, Error::Driver { code: 1, .. }), "{other}");
        let full = failed(E::CUDA_ERROR_OUT_OF_MEMORY);
        assert!(matches!(full, Error::OutOfMemory(_)), "{full}");
    }
}
