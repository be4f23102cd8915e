//! Network files: safetensors with PyTorch's `state_dict` names and shapes, so that PyTorch loads
//! them with `strict=True`; variant, scale and alpha, which the tensors do not contain, are one
//! JSON string in the metadata. PyTorch's own checkpoints are read as well. Depends on the networks'
//! parameter tables and on files. Promises that a file has one reading only: if its tensors can be
//! read in two ways, the file is refused and both are named.

mod checkpoint;
mod container;
mod foreign;
mod locate;
mod names;
mod pretrained;
mod read;
mod tensors;
mod write;

#[cfg(test)]
mod tests;

pub use locate::{Located, locate};
pub use pretrained::{Pretrained, read_pretrained, read_pretrained_or_network};
pub use read::{LoadedModel, ModelHints, load_model, read_model};
pub(crate) use write::model_bytes;
pub use write::{ModelMeta, write_model};

/// Key of the metadata entry; its value is JSON ([`ModelMeta`]). It is the only entry, since the
/// safetensors crate writes several entries in an order that changes from run to run.
const METADATA_KEY: &str = "paragon";

/// Key of the metadata entry of a training state: it identifies a state that is given as a network.
pub(crate) const STATE_METADATA_KEY: &str = "paragon_state";
