//! Reading a finished set: every shard is checked by reading calls from end to end of its structure
//! before its map is trusted, and every record by its checksum when it is read. Depends on
//! `tables`, `sys`, `manifest` and `codec`. Promises no panic and no wrong pixel on damaged files,
//! errors that name shard, record and image, and no allocation per record. The map is touched only
//! where records are read by [`Io::Mmap`]; everything else reads by calls, so that a failing disk
//! is an error message.

pub use super::codec::Crop;
use super::codec::{Codec, Decoder};
use super::format::{Geometry, INDEX_ENTRY_BYTES, IndexEntry, SourceEntry};
use super::manifest::{Manifest, ShardInfo};
use super::tables::{Tables, known_codec};
use crate::support::failure;
use crate::sys::{self, WatchedMap};
use anyhow::{Context, Result, ensure};
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where a record was cut from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSource {
    /// Name of the image inside the dataset.
    pub image: String,
    /// Left edge of the LQ patch in the LQ image, pixels.
    pub x: u32,
    /// Top edge of the LQ patch in the LQ image, pixels.
    pub y: u32,
}

/// How records are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Straight out of the map: no copy, and nothing of its own in memory. A failing disk or
    /// network, or a shard that another program cuts, ends the process with a line that names the
    /// shard.
    Mmap,
    /// By reading calls: a failing disk or network is an error.
    Pread,
}

/// What the kernel is told about records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// They are read soon: begin to fetch them.
    WillNeed,
    /// They are not read again soon: their pages may go.
    DontNeed,
}

/// What the handler of failing maps keeps for each, beside the path: its line and its place in a
/// list.
const WATCHED_BYTES: usize = 256;

/// One thread's room for reading; made by [`ShardSet::scratch`] and reused from record to record.
pub struct Scratch {
    decoder: Decoder,
    io: Io,
    payload: Vec<u8>,
}

struct Shard {
    /// Before the map, since it must be dropped before.
    _watched: WatchedMap,
    map: Mmap,
    tables: Tables,
    /// Number of the shard's first record in the set.
    first: u64,
}

/// A finished set of shards, mapped into memory. Shared between threads.
pub struct ShardSet {
    folder: PathBuf,
    manifest: Manifest,
    geometry: Geometry,
    shards: Vec<Shard>,
    records: u64,
}

impl ShardSet {
    /// Opens the set in a folder and checks the structure of every shard: length, header, footer,
    /// source table, index. No file stays open.
    ///
    /// # Errors
    /// No finished set, a shard missing, cut short, damaged, from another set or in a newer format,
    /// an error of the system; the file is named.
    pub fn open(folder: &Path) -> Result<ShardSet> {
        let manifest = Manifest::read(folder)?;
        let geometry = Geometry::new(manifest.scale, manifest.lq_size)?;
        let mut shards = Vec::with_capacity(manifest.shards.len());
        let mut first = 0u64;
        for (number, info) in manifest.shards.iter().enumerate() {
            let (tables, file) = Tables::open(folder, &manifest, number)?;
            let map = map(&file, info.bytes).with_context(|| tables.path.display().to_string())?;
            shards.push(Shard {
                _watched: WatchedMap::new(&tables.path, &map),
                map,
                tables,
                first,
            });
            first = first
                .checked_add(info.records)
                .context("the manifest's record counts overflow")?;
        }
        ensure!(first > 0, "{}: the set holds no records", folder.display());
        Ok(ShardSet {
            folder: folder.to_path_buf(),
            geometry,
            shards,
            records: first,
            manifest,
        })
    }

    /// Number of pairs.
    #[allow(clippy::len_without_is_empty)] // an empty set does not open
    pub fn len(&self) -> u64 {
        self.records
    }

    /// HR side over LQ side.
    pub fn scale(&self) -> u32 {
        self.geometry.scale
    }

    /// LQ patch side as stored, pixels.
    pub fn lq_size(&self) -> u32 {
        self.geometry.lq_size
    }

    /// Side lengths of every pair.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The folder it was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the set says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Identity of configuration and content: a resumed training run must find the same.
    pub fn fingerprint(&self) -> u64 {
        self.manifest.fingerprint()
    }

    /// Anonymous memory the open set holds, in bytes. The indexes and source tables stay in the
    /// mapped files.
    pub fn index_bytes(&self) -> u64 {
        let path = |s: &Shard| s.tables.path.as_os_str().len();
        let shards = self
            .shards
            .iter()
            .map(|s| size_of::<Shard>() + 2 * path(s) + WATCHED_BYTES + size_of::<ShardInfo>());
        (size_of::<ShardSet>() + shards.sum::<usize>()) as u64
    }

    /// Room for one thread to read with, out of the map.
    pub fn scratch(&self) -> Result<Scratch> {
        self.scratch_for(Io::Mmap)
    }

    /// Room for one thread to read with.
    pub fn scratch_for(&self, io: Io) -> Result<Scratch> {
        Ok(Scratch {
            decoder: Decoder::new(self.geometry)?,
            io,
            payload: Vec::new(),
        })
    }

    /// What one scratch holds at most, in bytes.
    pub fn scratch_bytes(&self, io: Io) -> u64 {
        let payload = if io == Io::Pread {
            self.longest_record()
        } else {
            0
        };
        Decoder::bytes(self.geometry) + u64::from(payload)
    }

    fn longest_record(&self) -> u32 {
        self.shards
            .iter()
            .map(|s| s.tables.longest)
            .max()
            .unwrap_or(0)
    }

    /// Bytes of all shard files.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.map.len() as u64).sum()
    }

    /// Tells the kernel about a range of records. Advice only: nothing fails, and what is read
    /// stays the same.
    pub fn advise(&self, records: Range<u64>, advice: Advice, io: Io) {
        let mut at = records.start;
        while at < records.end.min(self.records) {
            let Ok((shard, i)) = self.find(at) else {
                return;
            };
            let end = records.end.min(shard.first + shard.tables.footer.records);
            if let Ok(span) = shard.span(i, (end - shard.first) as usize - 1, io) {
                shard.advise(span, advice);
            }
            at = end;
        }
    }

    /// Whether every page of a record is in memory. `None` where the system does not say.
    pub fn is_cached(&self, record: u64, io: Io) -> Option<bool> {
        let (shard, i) = self.find(record).ok()?;
        let (start, length) = shard.pages(shard.span(i, i, io).ok()?);
        sys::is_resident(&shard.map, start, length)
    }

    /// Says that records are read in no order: the kernel then fetches what is asked for and
    /// nothing around it.
    pub fn expect_random_access(&self) {
        for shard in &self.shards {
            sys::advise_random(&shard.map);
        }
    }

    /// The image and the place that a record was cut from.
    pub fn source(&self, record: u64) -> Result<RecordSource> {
        let (shard, i) = self.find(record)?;
        shard
            .source(i)
            .with_context(|| format!("{}, record {i}", shard.tables.path.display()))
    }

    /// The image of a record as a number: equal for records of one image in one shard, which costs
    /// no allocation to compare.
    pub fn image_of(&self, record: u64) -> Result<u64> {
        let (shard, i) = self.find(record)?;
        let entry = shard
            .tables
            .entry(i)
            .with_context(|| format!("{}, record {i}", shard.tables.path.display()))?;
        Ok(shard.first << 24 | u64::from(entry.source))
    }

    /// Codec and stored bytes of a record.
    pub fn stored(&self, record: u64) -> Result<(Codec, u32)> {
        let (shard, i) = self.find(record)?;
        let entry = shard
            .tables
            .entry(i)
            .with_context(|| format!("{}, record {i}", shard.tables.path.display()))?;
        Ok((known_codec(entry.codec)?, entry.length))
    }

    /// Calls `each` with codec and stored bytes of every record, in order.
    pub fn each_stored(&self, mut each: impl FnMut(Codec, u32)) -> Result<()> {
        for shard in &self.shards {
            let mut unknown = None;
            let read = shard
                .tables
                .entries(|entry| match known_codec(entry.codec) {
                    Ok(codec) => each(codec, entry.length),
                    Err(e) => unknown = Some(e),
                });
            read.and(unknown.map_or(Ok(()), Err))
                .with_context(|| shard.tables.path.display().to_string())?;
        }
        Ok(())
    }

    /// Reads a whole pair: u8 RGB, `size x size x 3`, rows top to bottom.
    ///
    /// # Errors
    /// A record number out of range, damage (checksum or content); shard, record and image are
    /// named.
    pub fn read(
        &self,
        record: u64,
        scratch: &mut Scratch,
        lq: &mut [u8],
        hr: &mut [u8],
    ) -> Result<()> {
        self.read_crop(
            record,
            Crop {
                x: 0,
                y: 0,
                size: self.geometry.lq(),
            },
            scratch,
            lq,
            hr,
        )
    }

    /// Reads an aligned square of a pair. The slices have the size of the crop.
    ///
    /// # Errors
    /// Those of [`ShardSet::read`], and a crop that does not lie inside the patch.
    pub fn read_crop(
        &self,
        record: u64,
        crop: Crop,
        scratch: &mut Scratch,
        lq: &mut [u8],
        hr: &mut [u8],
    ) -> Result<()> {
        let (shard, i) = self.find(record)?;
        let Scratch {
            decoder,
            io,
            payload,
        } = scratch;
        shard
            .read(i, crop, (*io, payload), decoder, lq, hr)
            .map_err(|e| {
                let place = shard.describe(i, record, failure::system_cause(&e).is_none());
                e.context(place)
            })
    }

    /// Every image of the set with the number of its records; one that was cut by a shard's end
    /// comes twice.
    pub fn sources(&self) -> Result<Vec<(SourceEntry, u64)>> {
        let mut out = Vec::new();
        for shard in &self.shards {
            out.extend(
                shard
                    .tables
                    .sources()
                    .with_context(|| shard.tables.path.display().to_string())?,
            );
        }
        Ok(out)
    }

    fn find(&self, record: u64) -> Result<(&Shard, usize)> {
        ensure!(
            record < self.records,
            "record {record} is asked for; the set in {} has {}",
            self.folder.display(),
            self.records
        );
        let shard = &self.shards[self.shards.partition_point(|s| s.first <= record) - 1];
        Ok((shard, (record - shard.first) as usize))
    }
}

impl Shard {
    /// An index entry out of the map, or by a call where the pages of the map may have gone with
    /// the disk or network behind them.
    fn entry_for(&self, i: usize, io: Io) -> Result<IndexEntry> {
        if io == Io::Pread {
            return self.tables.entry(i);
        }
        let at = self.tables.footer.index_at as usize + i * INDEX_ENTRY_BYTES;
        let entry = self
            .map
            .get(at..at + INDEX_ENTRY_BYTES)
            .context("the record has no index entry")?;
        Ok(IndexEntry::decode(entry, 0))
    }

    fn source(&self, i: usize) -> Result<RecordSource> {
        let entry = self.tables.entry(i)?;
        let source = self.tables.source(entry.source)?;
        Ok(RecordSource {
            image: source.name,
            x: entry.x,
            y: entry.y,
        })
    }

    /// The bytes of records `first..=last` in the file.
    fn span(&self, first: usize, last: usize, io: Io) -> Result<Range<u64>> {
        let last = self.entry_for(last, io)?;
        let span = self.entry_for(first, io)?.offset..last.offset + u64::from(last.length);
        ensure!(
            span.start < span.end && span.end <= self.tables.footer.sources_at,
            "the index has changed since the set was opened"
        );
        Ok(span)
    }

    /// The whole pages that hold a span: first byte and length in the map.
    fn pages(&self, span: Range<u64>) -> (usize, usize) {
        let start = span.start as usize / sys::page_bytes() * sys::page_bytes();
        (start, span.end as usize - start)
    }

    fn advise(&self, span: Range<u64>, advice: Advice) {
        let (start, length) = self.pages(span);
        match advice {
            Advice::WillNeed => sys::advise_will_need(&self.map, start, length),
            Advice::DontNeed => {
                // first out of this process, then out of the page cache, which keeps pages that are
                // still mapped
                sys::advise_dont_need(&self.map, start, length);
                let _ = self.tables.with_file(|file| {
                    sys::drop_from_page_cache(file, start, length);
                    Ok(())
                }); // advice
            }
        }
    }

    fn read(
        &self,
        i: usize,
        crop: Crop,
        (io, room): (Io, &mut Vec<u8>),
        decoder: &mut Decoder,
        lq: &mut [u8],
        hr: &mut [u8],
    ) -> Result<()> {
        let entry = self.entry_for(i, io)?;
        let payload = match io {
            Io::Mmap => {
                let payload = self
                    .map
                    .get(entry.offset as usize..)
                    .and_then(|rest| rest.get(..entry.length as usize));
                payload.context("the index has changed since the set was opened")?
            }
            Io::Pread => {
                room.resize(self.tables.longest.max(room.len() as u32) as usize, 0);
                let room = &mut room[..entry.length as usize];
                self.tables.read(room, entry.offset, "the record")?;
                room
            }
        };
        let crc = crc32fast::hash(payload);
        ensure!(
            crc == entry.crc,
            "the record is damaged (checksum {crc:08x} where {:08x} is expected)",
            entry.crc
        );
        decoder.decode_crop(known_codec(entry.codec)?, payload, crop, lq, hr)
    }

    /// Names a record for an error: where it lies and, where the file can be read, what it was cut
    /// from.
    fn describe(&self, i: usize, record: u64, readable: bool) -> String {
        let source = match readable.then(|| self.source(i)) {
            Some(Ok(s)) => format!("; image {}, LQ patch at {}, {}", s.image, s.x, s.y),
            Some(Err(e)) => format!("; image unknown: {e}"),
            None => String::new(),
        };
        format!(
            "{}, record {i} ({record} in the set{source})",
            self.tables.path.display()
        )
    }
}

/// Maps a whole finished shard for reading.
///
/// The contract of a map is that nobody changes or shortens the file while it lives. Shards are
/// written under another name, synced, made read-only and renamed, and paragon never opens one for
/// writing again; the length was checked on this very handle. What remains is another program
/// cutting a shard while it is in use, against the file's permissions, and pages that a disk or
/// network cannot deliver: the system then sends SIGBUS, for which see [`WatchedMap`].
fn map(file: &File, length: u64) -> Result<Mmap> {
    let length = usize::try_from(length).context("the shard is larger than the address space")?;
    // SAFETY: see the contract above; the slice is only ever read, and as plain bytes
    let map = unsafe { memmap2::MmapOptions::new().len(length).map(file) };
    map.context("cannot map the shard into memory")
}
