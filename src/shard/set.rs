//! Distributes the records of one set over shard files, and finds duplicate pairs. Depends on
//! `file` and `manifest`. Promises that the records alone decide where a shard ends, so that a set
//! that is replayed from a journal, or merged from parts, has the same files.

use super::file::{Record, ShardWriter};
use super::format::{FOOTER_BYTES, Footer, Header, INDEX_ENTRY_BYTES, IndexEntry};
use super::manifest::{ShardInfo, shard_name};
use super::source_table::{SOURCE_ENTRY_BYTES, SourceEntry, decode_source};
use super::tables::{known_codec, read_at};
use crate::support::failure;
use crate::support::files;
use crate::support::rng::mix;
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Largest number of shards in one set: about as many as fit a manifest of 64 MiB, at 40 bytes
/// each.
const MAX_SHARDS: usize = 1_600_000;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordLocation {
    /// In the held-out set, not in the set to train on.
    pub held_out: bool,
    pub shard: usize,
    /// First byte in the shard.
    pub offset: u64,
}

/// Appends records to a set and begins a new shard when one is full.
pub(super) struct SetWriter {
    folder: PathBuf,
    header: Header,
    /// Largest size of a shard, bytes.
    limit: u64,
    held_out: bool,
    /// Finished shards.
    pub shards: Vec<ShardInfo>,
    /// The shard that records are appended to.
    current: Option<ShardWriter>,
    /// Whether the source table of `current` has the image that records are added for.
    named: bool,
    /// Records of an earlier run are replayed: they are counted and not written.
    counting: bool,
    /// For each source of `current`, the number of its journal entry.
    entries: Vec<u64>,
    /// First journal entry of the first replayed shard that is not there as it should be.
    missing: Option<u64>,
    /// Bytes appended since the last flush.
    pub unflushed: u64,
}

impl SetWriter {
    /// A set in `folder` that has the finished shards `shards`, perhaps none.
    pub fn new(
        folder: PathBuf,
        header: Header,
        limit: u64,
        held_out: bool,
        shards: Vec<ShardInfo>,
    ) -> Self {
        SetWriter {
            folder,
            header,
            limit,
            held_out,
            shards,
            current: None,
            named: false,
            counting: false,
            entries: Vec::new(),
            missing: None,
            unflushed: 0,
        }
    }

    /// Begins a replay: records are counted and not written until [`SetWriter::attach`].
    pub fn count_again(&mut self) {
        self.counting = true;
    }

    /// Bytes of the shards, the unfinished one included.
    pub fn bytes(&self) -> u64 {
        let finished: u64 = self.shards.iter().map(|s| s.bytes).sum();
        finished + self.current.as_ref().map_or(0, ShardWriter::position)
    }

    /// Says that the next records are of another image.
    pub fn begin_image(&mut self) {
        self.named = false;
    }

    /// Whether a record of `length` bytes does not fit the current shard and begins the next one.
    pub fn ends_shard(&self, source: &SourceEntry, length: u32) -> bool {
        let named = if self.named {
            0
        } else {
            (SOURCE_ENTRY_BYTES + source.name.len()) as u64
        };
        self.current
            .as_ref()
            .is_some_and(|shard| !shard.fits(u64::from(length) + named, self.limit))
    }

    /// Appends a record; in a replay there is no payload. `entry` is the number of the image's
    /// journal entry.
    ///
    /// # Errors
    /// Too many shards; an error of the system.
    pub fn add(
        &mut self,
        source: &SourceEntry,
        record: &Record,
        payload: Option<&[u8]>,
        entry: u64,
    ) -> Result<RecordLocation> {
        if self.ends_shard(source, record.length) {
            self.end_shard()?;
        }
        if self.current.is_none() {
            ensure!(
                self.shards.len() < MAX_SHARDS,
                "the set has {MAX_SHARDS} shards, and no more fit; use a larger --shard-size"
            );
            self.header.number = self.shards.len() as u32;
            let path = self.folder.join(shard_name(self.shards.len()));
            self.current = Some(if self.counting {
                ShardWriter::recount(&path, &self.header)
            } else {
                crate::support::files::create_folder(&self.folder)?;
                ShardWriter::create(&path, &self.header)?
            });
        }
        let shard = self.current.as_mut().context("no shard is open")?;
        if !self.named {
            shard.begin_source(source.clone());
            self.entries.push(entry);
            self.named = true;
        }
        let offset = shard.position();
        shard.append(record, payload)?;
        self.unflushed += u64::from(record.length);
        Ok(RecordLocation {
            held_out: self.held_out,
            shard: self.shards.len(),
            offset,
        })
    }

    fn end_shard(&mut self) -> Result<()> {
        if let Some(shard) = self.current.take() {
            match shard.finish()? {
                Some(info) => self.shards.push(info),
                None => {
                    // the replay stops at `missing`; the placeholder only keeps the shard numbers
                    // right until then
                    self.missing = self.missing.or(self.entries.first().copied());
                    self.shards.push(ShardInfo {
                        records: 0,
                        sources: 0,
                        bytes: 0,
                        sources_crc: 0,
                        index_crc: 0,
                    });
                }
            }
        }
        self.entries.clear();
        self.named = false;
        Ok(())
    }

    /// The first journal entry that the replay found without its records.
    pub fn missing(&self) -> Option<u64> {
        self.missing
    }

    /// Ends the replay: opens the unfinished shard and checks its records. Returns the first
    /// journal entry whose records are not all there; the run must replay again and stop before it.
    pub fn attach(&mut self) -> Result<Option<u64>> {
        self.counting = false;
        if self.missing.is_some() {
            return Ok(self.missing);
        }
        let Some(shard) = &mut self.current else {
            return Ok(None);
        };
        Ok(shard.attach()?.map(|source| self.entries[source as usize]))
    }

    /// Passes all buffered bytes to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        self.unflushed = 0;
        self.current.as_mut().map_or(Ok(()), ShardWriter::flush)
    }

    /// Reads the payload of a record that was added before.
    fn read_back(&mut self, location: RecordLocation, length: u32) -> Result<Vec<u8>> {
        if location.shard == self.shards.len() {
            let shard = self
                .current
                .as_mut()
                .context("a pair is looked for in a shard that is not open")?;
            return shard.read_back(location.offset, length as usize);
        }
        let path = self.folder.join(shard_name(location.shard));
        let mut payload = vec![0; length as usize];
        let read = failure::retry(|| files::open_regular(&path)).context("cannot open the file");
        let read =
            read.and_then(|file| read_at(&file, &mut payload, location.offset, "the record"));
        read.with_context(|| format!("cannot read back {}", path.display()))?;
        Ok(payload)
    }

    /// The name of the image that a record was cut from.
    ///
    /// # Errors
    /// The tables of its shard cannot be read.
    pub fn image_at(&self, location: RecordLocation) -> Result<String> {
        if location.shard == self.shards.len() {
            let shard = self.current.as_ref();
            let name = shard.and_then(|shard| shard.image_at(location.offset));
            return name.context("a pair is looked for in a shard that is not open");
        }
        let path = self.folder.join(shard_name(location.shard));
        let read = || -> Result<String> {
            let file =
                failure::retry(|| files::open_regular(&path)).context("cannot open the file")?;
            let (footer, index) = read_index(&file)?;
            let entry = index.iter().find(|entry| entry.offset == location.offset);
            let entry = entry.context("no record begins where one was found before")?;
            let mut table = vec![0; (footer.index_at - footer.sources_at) as usize];
            read_at(&file, &mut table, footer.sources_at, "the source table")?;
            Ok(decode_source(&table, footer.sources, entry.source)?.name)
        };
        read().with_context(|| path.display().to_string())
    }

    /// Ends the last shard and returns all shards.
    pub fn finish(mut self) -> Result<Vec<ShardInfo>> {
        self.end_shard()?;
        Ok(std::mem::take(&mut self.shards))
    }

    /// Number of shard files, the unfinished one included.
    pub fn files(&self) -> usize {
        self.shards.len() + usize::from(self.current.is_some())
    }
}

/// Finds duplicate records. The codec gives the same bytes for the same pixels, so two pairs are
/// equal exactly if their payloads are. Length and checksum find the candidates; their bytes are
/// read back and compared. The table takes 20 to 39 bytes of memory for each pair.
pub(super) struct Duplicates {
    /// Packed [`RecordLocation`] by key (see [`key_of`]).
    locations: HashMap<u64, u64>,
}

/// Distance to the next key to try if different records share length and checksum. It is odd, so
/// that the steps reach every key: 2^64 divided by the golden ratio.
const NEXT_KEY: u64 = 0x9E37_79B9_7F4A_7C15;

fn key_of(record: &Record) -> u64 {
    mix(u64::from(record.crc) << 32 | u64::from(record.length))
}

/// A packed location has 40 bits for the offset within a shard, which holds at most
/// [`super::plan::MAX_SHARD_BYTES`] = 2^40 bytes,
const OFFSET_BITS: u32 = 40;
/// 1 bit, the highest, for the set,
const HELD_OUT_BITS: u32 = 1;
/// and the 23 bits between them for the number of the shard: 8.4 million, more than [`MAX_SHARDS`].
const SHARD_BITS: u32 = u64::BITS - HELD_OUT_BITS - OFFSET_BITS;
const HELD_OUT_SHIFT: u32 = OFFSET_BITS + SHARD_BITS;
const _: () =
    assert!(MAX_SHARDS < 1 << SHARD_BITS && super::plan::MAX_SHARD_BYTES <= 1 << OFFSET_BITS);

impl RecordLocation {
    /// Packs the location into one word: the set, the shard and the offset, from the highest bit.
    pub fn pack(self) -> u64 {
        u64::from(self.held_out) << HELD_OUT_SHIFT
            | (self.shard as u64) << OFFSET_BITS
            | self.offset
    }

    pub fn unpack(word: u64) -> Self {
        RecordLocation {
            held_out: word >> HELD_OUT_SHIFT == 1,
            shard: (word >> OFFSET_BITS & ((1 << SHARD_BITS) - 1)) as usize,
            offset: word & ((1 << OFFSET_BITS) - 1),
        }
    }
}

impl Duplicates {
    /// Allocates for `pairs` pairs.
    pub fn new(pairs: u64) -> Self {
        Duplicates {
            locations: HashMap::with_capacity(pairs as usize),
        }
    }

    /// Adds a record that differs from all records before it.
    pub fn note(&mut self, record: &Record, location: RecordLocation) {
        let mut key = key_of(record);
        loop {
            match self.locations.entry(key) {
                Slot::Vacant(slot) => {
                    slot.insert(location.pack());
                    return;
                }
                Slot::Occupied(_) => key = key.wrapping_add(NEXT_KEY),
            }
        }
    }

    /// Where a record with the same payload is that was added before.
    ///
    /// # Errors
    /// A record cannot be read back.
    pub fn seen(
        &self,
        record: &Record,
        payload: &[u8],
        sets: &mut [SetWriter; 2],
    ) -> Result<Option<RecordLocation>> {
        let mut key = key_of(record);
        while let Some(&word) = self.locations.get(&key) {
            let location = RecordLocation::unpack(word);
            let set = &mut sets[usize::from(location.held_out)];
            if set.read_back(location, record.length)? == payload {
                return Ok(Some(location));
            }
            key = key.wrapping_add(NEXT_KEY);
        }
        Ok(None)
    }

    /// Adds every record of a finished shard.
    ///
    /// # Errors
    /// The shard's index cannot be read or is damaged.
    pub fn note_shard(&mut self, path: &Path, held_out: bool, shard: usize) -> Result<()> {
        let file = failure::retry(|| files::open_regular(path)).context("cannot open the file");
        let index = file.and_then(|file| read_index(&file));
        for e in index.with_context(|| path.display().to_string())?.1 {
            let codec = known_codec(e.codec).with_context(|| path.display().to_string())?;
            let record = Record {
                x: e.x,
                y: e.y,
                codec,
                crc: e.crc,
                length: e.length,
            };
            self.note(
                &record,
                RecordLocation {
                    held_out,
                    shard,
                    offset: e.offset,
                },
            );
        }
        Ok(())
    }
}

/// Reads the footer and the index of a finished shard, and compares the index's checksum.
fn read_index(file: &File) -> Result<(Footer, Vec<IndexEntry>)> {
    let length = file.metadata().context("cannot look at the file")?.len();
    let mut footer = [0; FOOTER_BYTES];
    read_at(
        file,
        &mut footer,
        length.saturating_sub(FOOTER_BYTES as u64),
        "the footer",
    )?;
    let footer = Footer::decode(&footer, length)?;
    let mut index = vec![0; footer.records as usize * INDEX_ENTRY_BYTES];
    read_at(file, &mut index, footer.index_at, "the index")?;
    ensure!(
        crc32fast::hash(&index) == footer.index_crc,
        "the index is damaged (checksum mismatch)"
    );
    let entries = (0..footer.records as usize).map(|i| IndexEntry::decode(&index, i));
    let entries = entries.collect();
    Ok((footer, entries))
}

/// The images of a finished shard, in order: the name, and the offset of the first record that was cut
/// from it.
///
/// # Errors
/// The shard's tables cannot be read or are damaged.
pub(super) fn first_records(path: &Path) -> Result<Vec<(String, u64)>> {
    let read = || -> Result<Vec<(String, u64)>> {
        let file = failure::retry(|| files::open_regular(path)).context("cannot open the file")?;
        let (footer, index) = read_index(&file)?;
        let mut table = vec![0; (footer.index_at - footer.sources_at) as usize];
        read_at(&file, &mut table, footer.sources_at, "the source table")?;
        let mut images = Vec::new();
        let mut last = None;
        for entry in index
            .iter()
            .filter(|e| last.replace(e.source) != Some(e.source))
        {
            let source = decode_source(&table, footer.sources, entry.source)?;
            images.push((source.name, entry.offset));
        }
        Ok(images)
    };
    read().with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::codec::Codec;
    use crate::shard::format::Geometry;

    #[test]
    fn equal_length_and_checksum_alone_make_no_duplicate() {
        let dir = tempfile::tempdir().unwrap();
        let header = Header {
            geometry: Geometry {
                scale: 2,
                lq_size: 8,
            },
            recipe: 1,
            lqs: 1,
            config: 1,
            number: 0,
        };
        let set = |held_out: bool| {
            SetWriter::new(
                dir.path().join(held_out.to_string()),
                header.clone(),
                1000,
                held_out,
                Vec::new(),
            )
        };
        let mut sets = [set(false), set(true)];
        let mut table = Duplicates::new(4);
        let source = SourceEntry {
            name: "a".into(),
            width: 1,
            height: 1,
            bytes: 1,
            crc: 1,
        };
        // all records claim the same length and checksum: only their bytes differ
        let record = Record {
            x: 0,
            y: 0,
            codec: Codec::Raw,
            crc: 5,
            length: 400,
        };
        let payloads: Vec<Vec<u8>> = (0..6u8).map(|i| vec![i; 400]).collect();
        for (i, payload) in payloads.iter().enumerate() {
            assert!(table.seen(&record, payload, &mut sets).unwrap().is_none());
            let place = sets[i % 2].add(&source, &record, Some(payload), 0).unwrap();
            assert_eq!(RecordLocation::unpack(place.pack()), place);
            table.note(&record, place);
        }
        for payload in &payloads {
            assert!(table.seen(&record, payload, &mut sets).unwrap().is_some());
        }
        assert!(table.seen(&record, &[9; 400], &mut sets).unwrap().is_none());
    }
}
