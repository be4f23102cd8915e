//! PyTorch's checkpoints (`.pth`, `.pt`, `.ckpt`): files of `torch.save`, in its zip format and in
//! the older one. Depends on nothing but the file's bytes. Promises that nothing of the file is
//! run, that tensors are views of the file's own bytes, so that the memory besides them is bounded
//! by [`pickle::MAX_PICKLE`], and that everything else is refused with the reason.

mod globals;
mod legacy;
mod pickle;
mod state_dict;
mod zip;

use super::tensors::FileTensor;
use crate::model::Error;
use pickle::{Machine, Storage};
use std::collections::HashMap;

/// The tensors of a checkpoint's network.
pub(super) struct Checkpoint<'a> {
    /// The tensors by their keys.
    pub tensors: Vec<(String, FileTensor<'a>)>,
    /// Which entry of the file they were taken from: `params_ema (params is there too)`. `None`:
    /// the file is the network's dictionary itself.
    pub taken: Option<String>,
}

/// Whether the first bytes are those of a checkpoint.
pub(super) fn is_checkpoint(head: &[u8]) -> bool {
    zip::is_zip(head) || legacy::is_legacy(head)
}

/// Reads a file for which [`is_checkpoint`] holds.
///
/// # Errors
/// [`Error::ForbiddenName`] if its pickle asks for anything but tensors, [`Error::Checkpoint`] if
/// it is damaged or of another kind.
pub(super) fn read(bytes: &[u8]) -> Result<Checkpoint<'_>, Error> {
    if zip::is_zip(bytes) {
        let archive = zip::Archive::open(bytes)?;
        let machine = Machine::run(archive.pickle()?)?;
        let mut cache = HashMap::new();
        state_dict::network(&machine, &mut |storage| {
            if let Some(&known) = cache.get(storage.key) {
                return Ok(known);
            }
            let data = archive.storage(storage)?;
            cache.insert(storage.key, data);
            Ok(data)
        })
    } else {
        let file = legacy::read(bytes)?;
        state_dict::network(&file.machine, &mut |storage| file.storage(storage))
    }
}

/// Checks that a storage has the bytes that its number of elements takes.
fn checked<'a>(storage: &Storage, data: &'a [u8]) -> Result<&'a [u8], Error> {
    let expected = storage.bytes();
    if expected == Some(data.len() as u64) {
        return Ok(data);
    }
    Err(damaged(format!(
        "storage {} has {} bytes, and {} elements of {:?} take {}",
        crate::support::text::brief(storage.key),
        data.len(),
        storage.count,
        storage.dtype,
        expected.map_or("more than a file can have".to_string(), |n| n.to_string())
    )))
}

/// The file is damaged or was made to do harm.
fn damaged(why: impl Into<String>) -> Error {
    Error::Checkpoint {
        why: why.into(),
        convert: false,
    }
}

/// The file may be whole, but it uses something that is not read here and that PyTorch knows.
fn unusual(why: impl Into<String>) -> Error {
    Error::Checkpoint {
        why: why.into(),
        convert: true,
    }
}
