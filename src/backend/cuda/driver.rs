//! The first calls of the CUDA driver: whether there is one, and its errors as text. Depends on
//! cudarc and the error of backends; every file that calls CUDA is built on it.

use crate::backend::Error;
use anyhow::{Result, ensure};
use cudarc::driver::{CudaContext, DriverError, sys};

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
            if e.0 == sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY {
                return Error::OutOfMemory(format!("CUDA could not {what}: {text}")).into();
            }
            let (action, code) = (what.to_string(), e.0 as u32);
            Error::Driver { action, code, text }.into()
        })
    }
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
