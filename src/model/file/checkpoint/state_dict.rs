//! Finds the network among the dictionaries of a checkpoint, and makes its tensors views of the
//! storages. Depends on the pickle reader.

use super::pickle::{Id, Machine, Storage, Value};
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

/// The tensors of the network in a checkpoint. `read` returns the bytes of a storage.
///
/// # Errors
/// There is no network in it, a storage cannot be read, or a tensor reaches beyond its storage.
pub(super) fn network<'a>(
    machine: &Machine<'a>,
    read: &mut dyn FnMut(&Storage<'a>) -> Result<&'a [u8], Error>,
) -> Result<Checkpoint<'a>, Error> {
    let mut value = machine.root();
    let mut path: Vec<String> = Vec::new();
    let mut beside: Vec<&str> = Vec::new();
    let found = loop {
        let Value::Dict(dict) = value else {
            return Err(no_network(&[]));
        };
        let found = entries(machine, dict);
        // a key that is set twice has its last value
        let named = |name: &'static str| {
            let entry = found.iter().rev().find(|(key, _)| *key == name);
            entry.filter(|(_, value)| holds_tensors(machine, value, 1))
        };
        let holders: Entries = ENTRIES.into_iter().filter_map(named).copied().collect();
        let preferred = holders.first();
        match preferred {
            Some(&(key, inner)) if path.len() < DEPTH => {
                if path.is_empty() {
                    let networks = holders.iter().map(|(key, _)| *key);
                    beside = networks.filter(|other| *other != key).collect();
                }
                path.push(key.to_string());
                value = inner;
            }
            _ => break found,
        }
    };
    let tensors = found.iter().filter_map(|(key, value)| match value {
        Value::Tensor(tensor) => Some((*key, tensor)),
        _ => None,
    });
    let count = tensors.clone().count();
    if count == 0 {
        let names: Vec<&str> = found.iter().map(|(key, _)| *key).collect();
        return Err(no_network(&names));
    }
    if count > MAX_TENSORS {
        return Err(Error::TooLarge(format!(
            "it holds {count} tensors, and a network has at most {MAX_TENSORS}"
        )));
    }
    let mut views = Vec::with_capacity(count);
    for (key, tensor) in tensors {
        let Value::Storage(storage) = machine.value(tensor.storage) else {
            return Err(damaged("a tensor has no storage"));
        };
        let data = read(storage)?;
        let sizes = [tensor.shape, tensor.strides].map(|id| machine.sizes(id).unwrap_or_default());
        let [shape, strides] = &sizes;
        let view = FileTensor::strided(storage.dtype, (shape, strides), tensor.offset, data);
        let view = view.ok_or_else(|| {
            damaged(format!(
                "{} reaches beyond its storage of {} elements (shape {:?}, strides {:?}, offset {})",
                brief(key),
                storage.count,
                shape,
                strides,
                tensor.offset
            ))
        })?;
        views.push((key.to_string(), view));
    }
    Ok(Checkpoint {
        tensors: views,
        taken: taken(&path, &beside),
    })
}

/// Where the network was found, for a note.
fn taken(path: &[String], beside: &[&str]) -> Option<String> {
    let (last, _) = path.split_last()?;
    let name = match path.len() {
        1 => last.clone(),
        _ => path.join("."),
    };
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
