//! The names under which trainers store a network's tensors, and how they become the names of the
//! parameter table. Depends on nothing but the file's tensors.

use super::tensors::FileTensor;
use crate::model::Error;
use std::collections::BTreeMap;

/// Tensors by their plain names.
pub(super) type Tensors<'a> = BTreeMap<String, FileTensor<'a>>;

/// Parts of a key that frameworks insert at any position when they wrap a module: torch.compile,
/// DataParallel, FSDP, checkpointing.
const WRAPPERS: [&str; 5] = [
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
];

/// First parts of a key under which trainers keep a whole network.
const CONTAINERS: [&str; 19] = [
    "params",
    "params-ema",
    "params_ema",
    "state_dict",
    "model_state_dict",
    "weights",
    "model",
    "model_ema",
    "ema",
    "ema_model",
    "net",
    "network",
    "net_g",
    "net_g_ema",
    "network_g",
    "netG",
    "generator",
    "generator_ema",
    "g_ema",
];

/// A key without the parts that frameworks add, and whether it belongs to an average (EMA).
fn plain_name(name: &str) -> (String, bool) {
    let parts: Vec<&str> = name
        .split('.')
        .filter(|part| !WRAPPERS.contains(part))
        .collect();
    let containers = parts
        .iter()
        .take_while(|part| CONTAINERS.contains(part))
        .count()
        .min(parts.len().saturating_sub(1));
    let averaged = parts[..containers].iter().any(|part| part.contains("ema"));
    (parts[containers..].join("."), averaged)
}

/// The tensors of a file by their plain names. If the file holds a network and its average, only
/// the average's tensors are returned: a mixture of both would be a third network.
///
/// # Errors
/// When two tensors have the same plain name ([`Error::Ambiguous`]).
pub(super) fn plain_tensors<'a>(
    tensors: impl IntoIterator<Item = (String, FileTensor<'a>)>,
) -> Result<Tensors<'a>, Error> {
    // sorted, since the order of the safetensors crate changes from run to run
    let all: Tensors = tensors.into_iter().collect();
    // not averaged, averaged; each with the key in the file
    let mut groups: [BTreeMap<String, (String, FileTensor)>; 2] = Default::default();
    for (key, view) in all {
        let (plain, averaged) = plain_name(&key);
        // the counter of torch.optim.swa_utils.AveragedModel
        if plain == "n_averaged" {
            continue;
        }
        let group = &mut groups[usize::from(averaged)];
        if let Some((other, _)) = group.get(&plain) {
            return Err(Error::Ambiguous {
                first: other.clone(),
                second: key,
                name: plain,
            });
        }
        group.insert(plain, (key, view));
    }
    let [mut raw, averaged] = groups;
    if averaged.keys().any(|name| raw.contains_key(name)) {
        raw.clear();
    }
    raw.extend(averaged);
    Ok(raw
        .into_iter()
        .map(|(plain, (_, view))| (plain, view))
        .collect())
}
