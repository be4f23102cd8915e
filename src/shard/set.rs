//! Records to shard after shard of one set, and the table that finds pairs which are there already.
//! Depends on `file` and `manifest`. Promises that where a shard ends depends on the records alone,
//! so that a set counted again from a journal, or put together from parts, has the same files.

use super::file::{Record, ShardWriter};
use super::format::{FOOTER_BYTES, Footer, Header, INDEX_ENTRY_BYTES, IndexEntry};
use super::manifest::{ShardInfo, shard_name};
use super::source_table::{SOURCE_ENTRY_BYTES, SourceEntry};
use super::tables::{known_codec, read_at};
use crate::support::failure;
use crate::support::files;
use crate::support::rng::mix;
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::path::{Path, PathBuf};

/// Shards of one set at most: as many as a manifest lists, and fewer than [`RecordLocation`] has bits for.
const MAX_SHARDS: usize = 1_600_000;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordLocation {
    /// In the held-out set, as against the one to train on.
    pub held_out: bool,
    pub shard: usize,
    pub offset: u64,
}

/// Appends records to shard after shard.
pub(super) struct SetWriter {
    folder: PathBuf,
    header: Header,
    limit: u64,
    held_out: bool,
    /// Finished shards.
    pub shards: Vec<ShardInfo>,
    current: Option<ShardWriter>,
    /// Whether the present image is in the present shard's source table.
    named: bool,
    /// Shards are counted again and not written.
    counting: bool,
    /// Journal entries that the sources of the present shard come from.
    entries: Vec<u64>,
    /// First entry of a shard that should be there finished and is not.
    missing: Option<u64>,
    /// Bytes appended since the last flush.
    pub unflushed: u64,
}

impl SetWriter {
    /// A set in `folder` whose first shards, perhaps none, are there already.
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

    /// Counts records from here on without writing them; [`SetWriter::attach`] ends it.
    pub fn count_again(&mut self) {
        self.counting = true;
    }

    /// Bytes of finished shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }

    /// The records that follow are of another image.
    pub fn begin_image(&mut self) {
        self.named = false;
    }

    /// Whether the next record of this size ends the present shard.
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

    /// Appends a record, which comes without its payload while counting. `entry` is the number of
    /// its image's journal entry.
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
                    // what is counted from here on is of no use; the number keeps the names apart
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

    /// The first journal entry whose records turned out not to be there while counting.
    pub fn missing(&self) -> Option<u64> {
        self.missing
    }

    /// Ends the counting: opens the shard that was under way and checks its records. Gives the
    /// first journal entry that cannot be gone on from, if any.
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

    /// Hands what was written to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        self.unflushed = 0;
        self.current.as_mut().map_or(Ok(()), ShardWriter::flush)
    }

    /// The payload of a record that was added before.
    fn read_back(&mut self, place: RecordLocation, length: u32) -> Result<Vec<u8>> {
        if place.shard == self.shards.len() {
            let shard = self
                .current
                .as_mut()
                .context("a pair is looked for in a shard that is not open")?;
            return shard.read_back(place.offset, length as usize);
        }
        let path = self.folder.join(shard_name(place.shard));
        let mut payload = vec![0; length as usize];
        let read = failure::retry(|| files::open_regular(&path)).context("cannot open the file");
        let read = read.and_then(|file| read_at(&file, &mut payload, place.offset, "the record"));
        read.with_context(|| format!("cannot read back {}", path.display()))?;
        Ok(payload)
    }

    /// Ends the last shard; the finished ones.
    pub fn finish(mut self) -> Result<Vec<ShardInfo>> {
        self.end_shard()?;
        Ok(std::mem::take(&mut self.shards))
    }

    /// Number of shards with the one under way.
    pub fn files(&self) -> usize {
        self.shards.len() + usize::from(self.current.is_some())
    }
}

/// Finds records that are there already. The codec gives the same bytes for the same pixels, so two
/// pairs are equal exactly when their payloads are; length and checksum find the candidate, whose
/// bytes are then read back and compared. Takes 20 to 39 bytes of memory a pair.
pub(super) struct Duplicates {
    /// Key (see [`key_of`]) to [`RecordLocation`] packed into one word.
    places: HashMap<u64, u64>,
}

/// Step from a key to the next where two different records share length and checksum; odd, so that
/// all keys are reached.
const NEXT_KEY: u64 = 0x9E37_79B9_7F4A_7C15;

fn key_of(record: &Record) -> u64 {
    mix(u64::from(record.crc) << 32 | u64::from(record.length))
}

/// Bits of a packed place for an offset within a shard, and for the shard's number.
const OFFSET_BITS: u32 = 40;
const SHARD_BITS: u32 = 23;
const _: () =
    assert!(MAX_SHARDS < 1 << SHARD_BITS && super::plan::MAX_SHARD_BYTES <= 1 << OFFSET_BITS);

impl RecordLocation {
    fn pack(self) -> u64 {
        u64::from(self.held_out) << 63 | (self.shard as u64) << OFFSET_BITS | self.offset
    }

    fn unpack(word: u64) -> Self {
        RecordLocation {
            held_out: word >> 63 == 1,
            shard: (word >> OFFSET_BITS & ((1 << SHARD_BITS) - 1)) as usize,
            offset: word & ((1 << OFFSET_BITS) - 1),
        }
    }
}

impl Duplicates {
    /// Room for `pairs`.
    pub fn new(pairs: u64) -> Self {
        Duplicates {
            places: HashMap::with_capacity(pairs as usize),
        }
    }

    /// Notes a record that is known to be unlike those before it.
    pub fn note(&mut self, record: &Record, place: RecordLocation) {
        let mut key = key_of(record);
        loop {
            match self.places.entry(key) {
                Slot::Vacant(slot) => {
                    slot.insert(place.pack());
                    return;
                }
                Slot::Occupied(_) => key = key.wrapping_add(NEXT_KEY),
            }
        }
    }

    /// Whether the same payload was noted before.
    pub fn seen(&self, record: &Record, payload: &[u8], sets: &mut [SetWriter; 2]) -> Result<bool> {
        let mut key = key_of(record);
        while let Some(&word) = self.places.get(&key) {
            let place = RecordLocation::unpack(word);
            if sets[usize::from(place.held_out)].read_back(place, record.length)? == payload {
                return Ok(true);
            }
            key = key.wrapping_add(NEXT_KEY);
        }
        Ok(false)
    }

    /// Notes every record of a finished shard.
    pub fn note_shard(&mut self, path: &Path, held_out: bool, shard: usize) -> Result<()> {
        for e in read_index(path)? {
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

/// The index of a finished shard, whose checksum is looked at.
fn read_index(path: &Path) -> Result<Vec<IndexEntry>> {
    let read = || -> Result<Vec<IndexEntry>> {
        let file = failure::retry(|| files::open_regular(path)).context("cannot open the file")?;
        let length = file.metadata().context("cannot look at the file")?.len();
        let mut footer = [0; FOOTER_BYTES];
        read_at(
            &file,
            &mut footer,
            length.saturating_sub(FOOTER_BYTES as u64),
            "the footer",
        )?;
        let footer = Footer::decode(&footer, length)?;
        let mut index = vec![0; footer.records as usize * INDEX_ENTRY_BYTES];
        read_at(&file, &mut index, footer.index_at, "the index")?;
        ensure!(
            crc32fast::hash(&index) == footer.index_crc,
            "the index is damaged (checksum mismatch)"
        );
        Ok((0..footer.records as usize)
            .map(|i| IndexEntry::decode(&index, i))
            .collect())
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
        // the checksum is said to be the same for all: only the bytes tell
        let record = Record {
            x: 0,
            y: 0,
            codec: Codec::Raw,
            crc: 5,
            length: 400,
        };
        let payloads: Vec<Vec<u8>> = (0..6u8).map(|i| vec![i; 400]).collect();
        for (i, payload) in payloads.iter().enumerate() {
            assert!(!table.seen(&record, payload, &mut sets).unwrap());
            let place = sets[i % 2].add(&source, &record, Some(payload), 0).unwrap();
            assert_eq!(RecordLocation::unpack(place.pack()), place);
            table.note(&record, place);
        }
        for payload in &payloads {
            assert!(table.seen(&record, payload, &mut sets).unwrap());
        }
        assert!(!table.seen(&record, &[9; 400], &mut sets).unwrap());
    }
}
