//! Finds the network among the dictionaries of a checkpoint, and makes its tensors views of the
//! storages. Depends on the pickle reader.

use super::pickle::{Id, Machine, Storage, TensorRecord, Value};
use super::{Checkpoint, damaged};
use crate::model::Error;
use crate::model::file::container::MAX_TENSORS;
use crate::model::file::tensors::FileTensor;
use crate::support::text::brief;

/// Entries under which trainers store a network, the one that is taken first at the front: averages
/// (EMA) before the network that was trained.
const ENTRIES: [&str; 20] = [
    "params_ema",
    "params-ema",
    "model_ema",
    "net_g_ema",
    "generator_ema",
    "ema_model",
    "g_ema",
    "ema",
    "params",
    "model_state_dict",
    "state_dict",
    "model",
    "net",
    "net_g",
    "network_g",
    "netG",
    "generator",
    "network",
    "weights",
    "module",
];

/// Most dictionaries within each other.
const DEPTH: usize = 4;
/// Most names that a message or a note lists.
const NAMED: usize = 6;

type Entries<'a, 'm> = Vec<(&'a str, &'m Value<'a>)>;

/// The entries of a dictionary whose keys are texts.
fn entries<'a, 'm>(machine: &'m Machine<'a>, dict: &[(Id, Id)]) -> Entries<'a, 'm> {
    let named = dict
        .iter()
        .filter_map(|&(key, value)| match machine.value(key) {
            Value::Text(key) => Some((*key, machine.value(value))),
            _ => None,
        });
    named.collect()
}

/// Whether a value is a dictionary with tensors in it, or in a dictionary in it.
fn holds_tensors(machine: &Machine, value: &Value, depth: usize) -> bool {
    let Value::Dict(dict) = value else {
        return false;
    };
    // the order of a dictionary is that of the layers, so the first values show what it holds
    let first = dict
        .iter()
        .take(1000)
        .map(|&(_, value)| machine.value(value));
    first.into_iter().any(|value| match value {
        Value::Tensor(_) => true,
        Value::Dict(_) => depth > 0 && holds_tensors(machine, value, depth - 1),
        _ => false,
    })
}

/// The dictionary of a network in a checkpoint.
struct Found<'a, 'm> {
    entries: Entries<'a, 'm>,
    /// Keys that lead to it.
    path: Vec<&'a str>,
    /// Other entries of the checkpoint that hold a network.
    beside: Vec<&'a str>,
}

/// Finds the network's dictionary.
fn find<'a, 'm>(machine: &'m Machine<'a>) -> Result<Found<'a, 'm>, Error> {
    let mut value = machine.root();
    let (mut path, mut beside) = (Vec::new(), Vec::new());
    loop {
        let Value::Dict(dict) = value else {
            return Err(no_network(&[]));
        };
        let entries = entries(machine, dict);
        // a key that is set twice has its last value
        let named = |name: &'static str| {
            let entry = entries.iter().rev().find(|(key, _)| *key == name);
            entry.filter(|(_, value)| holds_tensors(machine, value, 1))
        };
        let holders: Entries = ENTRIES.into_iter().filter_map(named).copied().collect();
        let Some(&(key, inner)) = holders.first().filter(|_| path.len() < DEPTH) else {
            return Ok(Found {
                entries,
                path,
                beside,
            });
        };
        if path.is_empty() {
            beside = holders.iter().skip(1).map(|(key, _)| *key).collect();
        }
        path.push(key);
        value = inner;
    }
}

/// The tensors of the network in a checkpoint. `read` returns the bytes of a storage.
///
/// # Errors
/// There is no network in it, a storage cannot be read, or a tensor reaches beyond its storage.
pub(super) fn network<'a>(
    machine: &Machine<'a>,
    read: &mut dyn FnMut(&Storage<'a>) -> Result<&'a [u8], Error>,
) -> Result<Checkpoint<'a>, Error> {
    let found = find(machine)?;
    let tensors = found.entries.iter().filter_map(|(key, value)| match value {
        Value::Tensor(tensor) => Some((*key, tensor)),
        _ => None,
    });
    let count = tensors.clone().count();
    if count == 0 {
        let names: Vec<&str> = found.entries.iter().map(|(key, _)| *key).collect();
        return Err(no_network(&names));
    }
    if count > MAX_TENSORS {
        return Err(Error::TooLarge(format!(
            "it holds {count} tensors, and a network has at most {MAX_TENSORS}"
        )));
    }
    let mut views = Vec::with_capacity(count);
    for (key, tensor) in tensors {
        views.push((key.to_string(), view(machine, key, tensor, read)?));
    }
    Ok(Checkpoint {
        tensors: views,
        taken: taken(&found.path, &found.beside),
    })
}

/// A tensor as a view of its storage.
fn view<'a>(
    machine: &Machine<'a>,
    key: &str,
    tensor: &TensorRecord,
    read: &mut dyn FnMut(&Storage<'a>) -> Result<&'a [u8], Error>,
) -> Result<FileTensor<'a>, Error> {
    let Value::Storage(storage) = machine.value(tensor.storage) else {
        return Err(damaged("a tensor has no storage"));
    };
    let sizes = [tensor.shape, tensor.strides].map(|id| machine.sizes(id).unwrap_or_default());
    let [shape, strides] = &sizes;
    let data = read(storage)?;
    let view = FileTensor::strided(storage.dtype, (shape, strides), tensor.offset, data);
    view.ok_or_else(|| {
        damaged(format!(
            "{} reaches beyond its storage of {} elements (shape {shape:?}, strides {strides:?}, offset {})",
            brief(key),
            storage.count,
            tensor.offset
        ))
    })
}

/// Where the network was found, for a note.
fn taken(path: &[&str], beside: &[&str]) -> Option<String> {
    if path.is_empty() {
        return None;
    }
    let name = path.join(".");
    Some(match beside {
        [] => name,
        [one] => format!("{name} ({one} is there too)"),
        many => format!("{name} ({} are there too)", many.join(", ")),
    })
}

fn no_network(names: &[&str]) -> Error {
    let mut text = "it holds no network: expected a dictionary of tensors, or one under params_ema, params, state_dict or model".to_string();
    if !names.is_empty() {
        let shown: Vec<String> = names.iter().take(NAMED).map(brief).collect();
        let more = if names.len() > NAMED { ", ..." } else { "" };
        text.push_str(&format!("; its entries are {}{more}", shown.join(", ")));
    }
    damaged(text)
}
