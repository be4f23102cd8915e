//! Allocates buffers for pixels. Depends on `failure`. Promises that too little memory is an error
//! of the system and not an abort.

use crate::support::failure;
use anyhow::Result;

/// Allocates `len` zeros; `what` names them in the error.
///
/// # Errors
/// Too little memory, also after retries.
pub(super) fn zeroed<T: bytemuck::Zeroable + Clone>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut data = Vec::new();
    failure::retry(|| {
        data.try_reserve_exact(len)
            .map_err(|_| failure::no_memory(len * size_of::<T>(), what))
    })?;
    data.resize(len, T::zeroed());
    Ok(data)
}
