//! Reading the start values of a training from a network file. Depends on the other parts of this
//! module.

use super::container::{Contents, contents, read_bytes, refused};
use super::foreign;
use super::read::{ModelHints, load_model_bytes};
use super::tensors::{label, mismatch, mismatches, read_values};
use crate::model::error::{Mismatch, Purpose};
use crate::model::{Error, Network};
use std::path::Path;

/// The start values of a training, read from a file.
#[derive(Debug)]
pub struct Pretrained {
    /// Start values in table order.
    pub values: Vec<f32>,
    /// Number of parameters (tensors) read from the file.
    pub taken: usize,
    /// Differences between the file and the network; empty after a strict read.
    pub mismatches: Vec<String>,
    /// The entry of a PyTorch checkpoint that the tensors were taken from, as in
    /// [`LoadedModel`](super::LoadedModel).
    pub source: Option<String>,
}

/// Start values of a network from one of this program's files or a checkpoint of PyTorch's
/// (prefixes that trainers add to the keys, such as `params_ema.module.`, are removed). A `strict`
/// read needs every tensor; a lenient one takes the tensors that fit, and `start` gives the values
/// of the others, in table order. The network's own alpha stays.
///
/// # Errors
/// When [`Network::check`] refuses `net`; when the file cannot be read; on a strict read, when any
/// tensor does not fit ([`Error::Tensors`]); on a lenient one, when no tensor fits
/// ([`Error::NoTensorFits`]); when a value is not finite.
pub fn read_pretrained(
    path: &Path,
    net: &Network,
    start: Vec<f32>,
    strict: bool,
) -> Result<Pretrained, Error> {
    read_pretrained_or_network(path, net, start, strict).map_err(|failed| failed.0)
}

/// [`read_pretrained`], whose error comes with the network that the file holds, where it can be
/// recognised. The file is read once.
///
/// # Errors
/// Those of [`read_pretrained`].
pub fn read_pretrained_or_network(
    path: &Path,
    net: &Network,
    mut start: Vec<f32>,
    strict: bool,
) -> Result<Pretrained, Box<(Error, Option<Network>)>> {
    net.check().map_err(|error| Box::new((error, None)))?;
    let bytes = read_bytes(path).map_err(|error| Box::new((error, None)))?;
    let taken = take_values(&bytes, net, &mut start, strict);
    let (taken, mismatches, source) = taken.map_err(|error| {
        let held = load_model_bytes(&bytes, &ModelHints::default()).ok();
        Box::new((refused(path, Purpose::Start)(error), held.map(|m| m.net)))
    })?;
    Ok(Pretrained {
        values: start,
        taken,
        mismatches: mismatches.iter().map(Mismatch::to_string).collect(),
        source,
    })
}

/// Writes the trainable parameters that `bytes` contain into `values` (in table order). Returns
/// their number, the differences, and the entry of a checkpoint that they were taken from.
fn take_values(
    bytes: &[u8],
    net: &Network,
    values: &mut [f32],
    strict: bool,
) -> Result<(usize, Vec<Mismatch>, Option<String>), Error> {
    let table = net.params();
    let (given, expected) = (values.len(), table.len());
    if given != expected {
        return Err(Error::ParameterCount { given, expected });
    }
    let Contents {
        tensors,
        taken: source,
        ..
    } = contents(bytes)?;
    let mismatches = mismatches(&tensors, net);
    if strict && !mismatches.is_empty() {
        foreign::check(&tensors, false)?;
        return Err(Error::Tensors {
            network: label(net),
            mismatches,
            lenient_helps: true,
        });
    }
    let mut taken = 0;
    for p in table.params.iter().filter(|p| p.trainable) {
        if mismatch(&tensors, p).is_some() {
            continue;
        }
        let out = &mut values[p.range.offset..][..p.range.len];
        read_values(&tensors[&p.name], out);
        if let Some(&value) = out.iter().find(|v| !v.is_finite()) {
            let name = p.name.clone();
            return Err(Error::NotFinite { name, value });
        }
        taken += 1;
    }
    if taken == 0 {
        foreign::check(&tensors, false)?;
        return Err(Error::NoTensorFits {
            network: label(net),
            mismatches,
        });
    }
    Ok((taken, mismatches, source))
}
