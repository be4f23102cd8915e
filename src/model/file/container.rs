//! A network file as a container: what can be refused from its first bytes, length and header,
//! before a tensor is looked at, and the tensors of a safetensors file or a checkpoint of PyTorch.
//! Depends on files and on the recognition of other formats. Promises that no file makes it read
//! more than [`MAX_MODEL_BYTES`].

use super::names::{Tensors, plain_tensors};
use super::tensors::FileTensor;
use super::{METADATA_KEY, STATE_METADATA_KEY, checkpoint};
use crate::model::{Error, Purpose};
use crate::support::failure::retry;
use crate::support::file_kind::{HEAD_BYTES, Remedy, look};
use crate::support::text::brief;
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The largest network of the family has a few tens of MiB; a larger file is something else.
const MAX_MODEL_BYTES: u64 = 1 << 30;
/// Most bytes of a header (names, shapes, metadata): that of a network of the family has some tens
/// of KiB, and reading one takes several times its length in memory.
const MAX_HEADER_BYTES: u64 = 4 << 20;
/// Most tensors: the largest network of the family has under a thousand.
pub(super) const MAX_TENSORS: usize = 20_000;

/// Adds the file's path and purpose to the reason why it cannot be used.
pub(super) fn refused(path: &Path, purpose: Purpose) -> impl Fn(Error) -> Error {
    move |reason| Error::File {
        path: path.to_path_buf(),
        purpose,
        reason: Box::new(reason),
    }
}

/// The bytes of a file that may be a network.
///
/// # Errors
/// When the system cannot read it, or it is a folder, a pipe, of another format, or far too large.
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |source: io::Error| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let refused = refused(path, Purpose::Model);
    let about = retry(|| std::fs::metadata(path)).map_err(unreadable)?;
    if !about.is_file() {
        let folder = about.is_dir();
        return Err(refused(Error::NotAFile { folder }));
    }
    let mut head = Vec::with_capacity(HEAD_BYTES);
    retry(|| {
        head.clear();
        File::open(path)?
            .take(HEAD_BYTES as u64)
            .read_to_end(&mut head)
    })
    .map_err(unreadable)?;
    if checkpoint::is_checkpoint(&head) {
        check_length(about.len()).map_err(refused)?;
    } else {
        check_start(&head, about.len()).map_err(refused)?;
    }
    retry(|| std::fs::read(path)).map_err(unreadable)
}

/// Refuses a file by its first bytes and its length, before it is read: other formats by their
/// name, and headers that are too large.
fn check_start(head: &[u8], length: u64) -> Result<(), Error> {
    let header = head
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let is_json = head.get(8) == Some(&b'{');
    if !is_json || header.checked_add(8).is_none_or(|end| end > length) {
        return Err(match look(head) {
            Some(found) => other_format(found.what, found.remedy),
            None if is_json => Error::Damaged(format!(
                "its header has {header} bytes and the file {length}; copy or fetch it again"
            )),
            None => Error::OtherFormat {
                found: None,
                advice: "",
            },
        });
    }
    if header > MAX_HEADER_BYTES {
        return Err(Error::TooLarge(format!(
            "its header has {header} bytes, and that of a network has at most {MAX_HEADER_BYTES}: expected a safetensors file of a network"
        )));
    }
    check_length(length)
}

fn check_length(length: u64) -> Result<(), Error> {
    if length > MAX_MODEL_BYTES {
        return Err(Error::TooLarge(format!(
            "it has {} MiB: expected a safetensors file or a PyTorch checkpoint of at most {} MiB",
            length >> 20,
            MAX_MODEL_BYTES >> 20
        )));
    }
    Ok(())
}

fn other_format(found: &'static str, remedy: Remedy) -> Error {
    let advice = match remedy {
        Remedy::Convert => "a checkpoint is read as torch.save writes it",
        Remedy::Fetch => {
            "it is not the network itself; fetch it again (with Git LFS: `git lfs pull`)"
        }
        Remedy::Unpack => "unpack it first",
        Remedy::Another => {
            "a network is read from safetensors and from PyTorch's checkpoints (.pth)"
        }
    };
    Error::OtherFormat {
        found: Some(found),
        advice,
    }
}

/// What a network file holds.
pub(super) struct Contents<'a> {
    /// Tensors by their plain names.
    pub tensors: Tensors<'a>,
    /// The text of this program's metadata entry; `None` in files of other programs.
    pub metadata: Option<String>,
    /// The entry of a checkpoint that the tensors were taken from, if it has several.
    pub taken: Option<String>,
}

/// The tensors of a complete file, a safetensors file or a checkpoint of PyTorch.
///
/// # Errors
/// When it is neither, damaged, too large to be a network, or the state of a training; when two of
/// its tensors have the same plain name.
pub(super) fn contents(bytes: &[u8]) -> Result<Contents<'_>, Error> {
    let head = &bytes[..bytes.len().min(HEAD_BYTES)];
    if checkpoint::is_checkpoint(head) {
        let found = checkpoint::read(bytes)?;
        return Ok(Contents {
            tensors: plain_tensors(found.tensors)?,
            metadata: None,
            taken: found.taken,
        });
    }
    let header = header_of(bytes)?;
    let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let tensors = file.tensors().into_iter();
    let metadata = header.metadata().as_ref();
    Ok(Contents {
        tensors: plain_tensors(tensors.map(|(name, view)| (name, FileTensor::from(view))))?,
        metadata: metadata.and_then(|m| m.get(METADATA_KEY)).cloned(),
        taken: None,
    })
}

/// The header of a complete safetensors file of a network.
///
/// # Errors
/// When it is no such file, too large to be one, or the state of a training.
fn header_of(bytes: &[u8]) -> Result<Metadata, Error> {
    check_start(&bytes[..bytes.len().min(HEAD_BYTES)], bytes.len() as u64)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let count = header.offset_keys().len();
    if count > MAX_TENSORS {
        return Err(Error::TooLarge(format!(
            "it holds {count} tensors, and a network has at most {MAX_TENSORS}"
        )));
    }
    let metadata = header.metadata().as_ref();
    if metadata.is_some_and(|m| m.contains_key(STATE_METADATA_KEY)) {
        return Err(Error::TrainingState);
    }
    Ok(header)
}

/// The safetensors crate's error, shortened: its text may contain a name of any length.
fn damaged(error: safetensors::SafeTensorError) -> Error {
    Error::Damaged(brief(error))
}
