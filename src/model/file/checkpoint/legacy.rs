//! The format that `torch.save` wrote before version 1.6: five pickles in a row (a magic number, a
//! version, facts about the machine, the object, the keys of its storages), then the storages, each
//! after the number of its elements. Depends on the pickle reader.

use super::pickle::{Machine, Storage, Value};
use super::{checked, damaged, unusual};
use crate::model::Error;
use crate::support::text::brief;
use std::collections::HashMap;

/// The number that the first pickle holds.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The first pickle is no longer than this, in any protocol.
const FIRST_BYTES: usize = 32;

/// Whether a file begins with the magic number of the older format.
pub(super) fn is_legacy(head: &[u8]) -> bool {
    matches!(head, [0x80, 2..=5, ..])
        && head[..head.len().min(FIRST_BYTES)]
            .windows(MAGIC.len())
            .any(|w| w == MAGIC)
}

/// A file of the older format.
pub(super) struct Legacy<'a> {
    /// The machine that has read the object.
    pub machine: Machine<'a>,
    storages: HashMap<&'a str, &'a [u8]>,
}

impl<'a> Legacy<'a> {
    /// The bytes of a storage.
    ///
    /// # Errors
    /// It is missing, or of another length than the pickle states.
    pub fn storage(&self, storage: &Storage) -> Result<&'a [u8], Error> {
        let data = self.storages.get(storage.key);
        let data =
            data.ok_or_else(|| damaged(format!("its storage {} is missing", brief(storage.key))))?;
        checked(storage, data)
    }
}

/// Reads a file of the older format.
///
/// # Errors
/// Those of [`Machine::run`]; the file is cut short or big-endian.
pub(super) fn read(bytes: &[u8]) -> Result<Legacy<'_>, Error> {
    let mut rest = bytes;
    let mut next = || -> Result<Machine<'_>, Error> {
        let machine = Machine::run(rest)?;
        rest = &rest[machine.end..];
        Ok(machine)
    };
    let (_magic, _version) = (next()?, next()?);
    let machine = next()?;
    if let Value::Dict(entries) = machine.root() {
        let big = entries.iter().any(|&(key, value)| {
            matches!(machine.value(key), Value::Text("little_endian"))
                && matches!(machine.value(value), Value::Flag(false))
        });
        if big {
            return Err(unusual("its numbers are big-endian"));
        }
    }
    let (machine, keys) = (next()?, next()?);
    let Value::List(list) = keys.root() else {
        return Err(damaged("the list of its storages is missing"));
    };
    let sizes: HashMap<&str, usize> = machine.storages().map(|s| (s.key, s.size())).collect();
    let mut storages = HashMap::new();
    for &key in list {
        let Value::Text(key) = *keys.value(key) else {
            return Err(damaged("the key of a storage is no text"));
        };
        let size = sizes.get(key).copied().unwrap_or(0) as u64;
        let data = rest.split_first_chunk::<8>().and_then(|(count, data)| {
            let bytes = u64::from_le_bytes(*count).checked_mul(size)?;
            data.split_at_checked(usize::try_from(bytes).ok()?)
        });
        let (data, after) =
            data.ok_or_else(|| damaged("it is cut short; copy or fetch the file again"))?;
        rest = after;
        storages.insert(key, data);
    }
    Ok(Legacy { machine, storages })
}
