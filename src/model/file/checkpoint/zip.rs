//! The zip archive that `torch.save` writes: its directory, the pickle, and the storages, which
//! are not compressed. Depends on CRC-32. Promises that every entry has bytes of its own within
//! the file.

use super::pickle::{MAX_PICKLE, Storage};
use super::{checked, damaged, unusual};
use crate::model::Error;
use crate::support::text::brief;
use std::collections::HashMap;
use std::ops::Range;

/// Most entries: one for each tensor, and a few more.
const MAX_ENTRIES: u64 = 100_000;
/// Bytes of the record that ends an archive, without its comment.
const END_BYTES: usize = 22;
/// Bytes of the 64-bit record, and of its locator, which precede that.
const END64_BYTES: usize = 56;
const LOCATOR_BYTES: usize = 20;
/// Bytes of an entry of the directory, and of the header before an entry's data, without names.
const CENTRAL_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;

/// Whether a file begins as a zip archive.
pub(super) fn is_zip(head: &[u8]) -> bool {
    head.starts_with(b"PK\x03\x04")
}

/// One file of an archive.
struct Entry {
    /// Of its data in the archive.
    range: Range<usize>,
    /// Whether the data are as they were, neither compressed nor encrypted.
    stored: bool,
    /// CRC-32 of the data; PyTorch writes 0 if it was told not to compute it.
    crc: u32,
}

/// An archive whose directory was checked.
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    entries: HashMap<&'a [u8], Entry>,
    /// The folder that all entries are in, with the slash.
    root: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let found = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_le_bytes(*found))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let found = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*found))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let found = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*found))
}

/// Where the directory is, and how many entries it has.
fn directory(bytes: &[u8]) -> Option<(Range<usize>, u64)> {
    let first = bytes
        .len()
        .saturating_sub(END_BYTES + usize::from(u16::MAX));
    let last = bytes.len().checked_sub(END_BYTES)?;
    let end = (first..=last).rev().find(|&at| {
        bytes[at..].starts_with(b"PK\x05\x06")
            && u16_at(bytes, at + 20)
                .is_some_and(|n| at + END_BYTES + usize::from(n) == bytes.len())
    })?;
    let mut count = u64::from(u16_at(bytes, end + 10)?);
    let mut size = u64::from(u32_at(bytes, end + 12)?);
    let mut offset = u64::from(u32_at(bytes, end + 16)?);
    let locator = end.checked_sub(LOCATOR_BYTES);
    if let Some(locator) = locator.filter(|&at| bytes[at..].starts_with(b"PK\x06\x07")) {
        let at = usize::try_from(u64_at(bytes, locator + 8)?).ok()?;
        let record = bytes.get(at..)?.get(..END64_BYTES)?;
        if !record.starts_with(b"PK\x06\x06") {
            return None;
        }
        (count, size, offset) = (
            u64_at(record, 32)?,
            u64_at(record, 40)?,
            u64_at(record, 48)?,
        );
    }
    let stop = offset.checked_add(size)?;
    let range = usize::try_from(offset).ok()?..usize::try_from(stop).ok()?;
    (range.end <= end).then_some((range, count))
}

/// Reads the fields that are too large for 32 bits from an entry's extra data, in their order.
fn widen(extra: &[u8], fields: [&mut u64; 3]) -> Option<()> {
    let mut wide = fields
        .into_iter()
        .filter(|field| **field == u64::from(u32::MAX));
    let Some(mut field) = wide.next() else {
        return Some(());
    };
    let mut at = 0;
    loop {
        let (id, len) = (u16_at(extra, at)?, usize::from(u16_at(extra, at + 2)?));
        let data = extra.get(at + 4..at + 4 + len)?;
        at += 4 + len;
        if id != 1 {
            continue;
        }
        let mut from = 0;
        loop {
            *field = u64_at(data, from)?;
            from += 8;
            match wide.next() {
                Some(next) => field = next,
                None => return Some(()),
            }
        }
    }
}

/// Reads one entry of the directory at `at`; returns its name, the entry, where its header is, and
/// where the next entry of the directory begins.
fn entry(bytes: &[u8], at: usize, end: usize) -> Option<(&[u8], Entry, usize, usize)> {
    let header = bytes.get(at..end)?;
    if !header.starts_with(b"PK\x01\x02") {
        return None;
    }
    let (flags, method, crc) = (u16_at(header, 8)?, u16_at(header, 10)?, u32_at(header, 16)?);
    let mut packed = u64::from(u32_at(header, 20)?);
    let mut unpacked = u64::from(u32_at(header, 24)?);
    let mut offset = u64::from(u32_at(header, 42)?);
    let lengths = [28, 30, 32].map(|place| u16_at(header, place).map(usize::from));
    let [Some(name), Some(extra), Some(comment)] = lengths else {
        return None;
    };
    let text = header.get(CENTRAL_BYTES..CENTRAL_BYTES + name)?;
    let more = header.get(CENTRAL_BYTES + name..CENTRAL_BYTES + name + extra)?;
    widen(more, [&mut unpacked, &mut packed, &mut offset])?;
    let start = usize::try_from(offset).ok()?;
    let local = bytes.get(start..)?;
    if !local.starts_with(b"PK\x03\x04") {
        return None;
    }
    let names = usize::from(u16_at(local, 26)?) + usize::from(u16_at(local, 28)?);
    let from = start.checked_add(LOCAL_BYTES + names)?;
    let range = from..from.checked_add(usize::try_from(packed).ok()?)?;
    if range.end > bytes.len() {
        return None;
    }
    let stored = method == 0 && flags & 1 == 0 && packed == unpacked;
    let entry = Entry { range, stored, crc };
    Some((
        text,
        entry,
        start,
        at + CENTRAL_BYTES + name + extra + comment,
    ))
}

impl<'a> Archive<'a> {
    /// Reads the directory.
    ///
    /// # Errors
    /// It is damaged, entries share bytes, or it is no archive of `torch.save`.
    pub fn open(bytes: &'a [u8]) -> Result<Archive<'a>, Error> {
        let cut = "the zip archive is cut short or damaged; copy or fetch the file again";
        let (range, count) = directory(bytes).ok_or_else(|| damaged(cut))?;
        if count > MAX_ENTRIES {
            return Err(damaged(format!(
                "the zip archive has {count} entries, and a network has at most {MAX_ENTRIES}"
            )));
        }
        let mut entries = HashMap::new();
        let mut places = Vec::new();
        let mut at = range.start;
        for _ in 0..count {
            let (name, entry, start, next) =
                entry(bytes, at, range.end).ok_or_else(|| damaged(cut))?;
            at = next;
            places.push(start..entry.range.end);
            if entries.insert(name, entry).is_some() {
                let name = brief(String::from_utf8_lossy(name));
                return Err(damaged(format!("the zip archive holds {name} twice")));
            }
        }
        places.sort_unstable_by_key(|place| (place.start, place.end));
        let limit = places.iter().skip(1).map(|place| place.start);
        let limit = limit.chain([range.start]);
        if places
            .iter()
            .zip(limit)
            .any(|(place, next)| place.end > next)
        {
            return Err(damaged(
                "entries of the zip archive overlap, which no program writes by accident",
            ));
        }
        let root = root_of(&entries)?;
        Ok(Archive {
            bytes,
            entries,
            root,
        })
    }

    /// The data of an entry below the archive's folder.
    fn data(&self, name: &str) -> Result<Option<&'a [u8]>, Error> {
        let full = [self.root, name.as_bytes()].concat();
        let Some(entry) = self.entries.get(full.as_slice()) else {
            return Ok(None);
        };
        if !entry.stored {
            return Err(unusual(format!(
                "its entry {} is compressed or encrypted, which torch.save does not do",
                brief(name)
            )));
        }
        let data = &self.bytes[entry.range.clone()];
        if entry.crc != 0 && crc32fast::hash(data) != entry.crc {
            return Err(damaged(format!(
                "the checksum of its entry {} is wrong; copy or fetch the file again",
                brief(name)
            )));
        }
        Ok(Some(data))
    }

    /// The pickle that names the tensors.
    ///
    /// # Errors
    /// It is missing, compressed, damaged or too large, or the numbers are big-endian.
    pub fn pickle(&self) -> Result<&'a [u8], Error> {
        if self
            .data("byteorder")?
            .is_some_and(|order| order != b"little")
        {
            return Err(unusual("its numbers are big-endian"));
        }
        let pickle = self.data("data.pkl")?;
        let pickle = pickle.ok_or_else(|| damaged("it holds no data.pkl"))?;
        if pickle.len() > MAX_PICKLE {
            return Err(damaged(format!(
                "its data.pkl has {} bytes, and that of a network has at most {MAX_PICKLE}",
                pickle.len()
            )));
        }
        Ok(pickle)
    }

    /// The bytes of a storage.
    ///
    /// # Errors
    /// It is missing, compressed, damaged, or of another length than the pickle states.
    pub fn storage(&self, storage: &Storage) -> Result<&'a [u8], Error> {
        let name = format!("data/{}", storage.key);
        let data = self.data(&name)?;
        let data = data.ok_or_else(|| damaged(format!("its entry {} is missing", brief(&name))))?;
        checked(storage, data)
    }
}

/// The folder of the archive that holds `data.pkl`.
fn root_of<'a>(entries: &HashMap<&'a [u8], Entry>) -> Result<&'a [u8], Error> {
    let roots = entries
        .keys()
        .filter_map(|name| name.strip_suffix(b"data.pkl"));
    let mut roots = roots.filter(|root| root.is_empty() || root.ends_with(b"/"));
    let (Some(root), None) = (roots.next(), roots.next()) else {
        return Err(Error::OtherFormat {
            found: Some("a zip archive without the data.pkl of torch.save"),
            advice: "if the model is inside, unpack it first",
        });
    };
    let has = |name: &str| {
        let full = [root, name.as_bytes()].concat();
        entries.keys().any(|entry| entry.starts_with(&full))
    };
    if has("constants.pkl") || has("code/") {
        return Err(Error::OtherFormat {
            found: Some("a TorchScript program"),
            advice: "give the checkpoint (.pth) that it was made from",
        });
    }
    Ok(root)
}
