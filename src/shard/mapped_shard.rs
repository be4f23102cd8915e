//! One shard of an open set: its checked tables and its memory map. Depends on `tables`, `sys` and
//! `codec`. Promises that a record is decoded only after its checksum was compared, and that only
//! [`Io::Mmap`] touches the map.

use super::codec::{Crop, Decoder};
use super::error::{Error, Kind, marked};
use super::format::{INDEX_ENTRY_BYTES, IndexEntry};
use super::manifest::Manifest;
use super::tables::{Tables, known_codec};
use crate::sys::{self, WatchedMap};
use anyhow::{Context, Result, ensure};
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

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
    /// From the memory map: no copy and no buffer. If the disk or network fails, or another program
    /// cuts the shard, the process ends with a line that names the shard.
    Mmap,
    /// By read calls (`pread`): a failing disk or network is an error.
    Pread,
}

/// Advice to the kernel about a range of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// The records are read soon: start to fetch them.
    WillNeed,
    /// The records are not read again soon: their pages may be dropped.
    DontNeed,
}

/// A shard whose structure was checked, mapped into memory.
pub(super) struct MappedShard {
    /// Declared before the map, since fields are dropped in order and it must be dropped first.
    _watched: WatchedMap,
    pub map: Mmap,
    pub tables: Tables,
    /// Number of the shard's first record in the set.
    pub first: u64,
}

impl MappedShard {
    /// Checks shard `number` of the set in `folder` and maps it.
    ///
    /// # Errors
    /// Those of [`Tables::open`]; the system refuses the map.
    pub fn open(folder: &Path, manifest: &Manifest, number: usize, first: u64) -> Result<Self> {
        let (tables, file) = Tables::open(folder, manifest, number)?;
        let bytes = manifest.shards[number].bytes;
        let map = map(&file, bytes).with_context(|| tables.path.display().to_string())?;
        Ok(MappedShard {
            _watched: WatchedMap::new(&tables.path, &map),
            map,
            tables,
            first,
        })
    }

    /// The error of a caller, about the whole shard.
    pub fn error(&self, error: anyhow::Error) -> Error {
        let path = &self.tables.path;
        Error::classify(path, error.context(path.display().to_string()))
    }

    /// The error of a caller, about record `i` of the shard.
    pub fn error_at(&self, i: usize, error: anyhow::Error) -> Error {
        let path = &self.tables.path;
        Error::classify(
            path,
            error.context(format!("{}, record {i}", path.display())),
        )
    }

    /// Reads an index entry from the map, or by a read call for [`Io::Pread`], whose callers must
    /// not touch the map: the disk or network behind its pages may have failed.
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

    /// The image that record `i` was cut from, and where.
    pub fn source(&self, i: usize) -> Result<RecordSource> {
        let entry = self.tables.entry(i)?;
        let source = self.tables.source(entry.source)?;
        Ok(RecordSource {
            image: source.name,
            x: entry.x,
            y: entry.y,
        })
    }

    /// Byte range of records `first..=last` in the file.
    pub fn span(&self, first: usize, last: usize, io: Io) -> Result<Range<u64>> {
        let last = self.entry_for(last, io)?;
        let span = self.entry_for(first, io)?.offset..last.offset + u64::from(last.length);
        ensure!(
            span.start < span.end && span.end <= self.tables.footer.sources_at,
            "the index has changed since the set was opened"
        );
        Ok(span)
    }

    /// Extends a span down to the start of a page: first byte and length in the map.
    fn pages(&self, span: Range<u64>) -> (usize, usize) {
        let start = span.start as usize / sys::page_bytes() * sys::page_bytes();
        (start, span.end as usize - start)
    }

    /// Whether every page of a span is in memory. `None` if the system does not say.
    pub fn is_cached(&self, span: Range<u64>) -> Option<bool> {
        let (start, length) = self.pages(span);
        sys::is_resident(&self.map, start, length)
    }

    /// Gives the kernel advice about a span. A hint: failure is ignored.
    pub fn advise(&self, span: Range<u64>, advice: Advice) {
        let (start, length) = self.pages(span);
        match advice {
            Advice::WillNeed => sys::advise_will_need(&self.map, start, length),
            Advice::DontNeed => {
                // the pages leave this process first, since the page cache keeps pages that are
                // still mapped
                sys::advise_dont_need(&self.map, start, length);
                let _ = self.tables.with_file(|file| {
                    sys::drop_from_page_cache(file, start, length);
                    Ok(())
                });
            }
        }
    }

    /// Reads record `i`, compares its checksum and decodes the crop of the HR and, where `lq` is
    /// given, of the LQ patch with this number. `buffer` is used by [`Io::Pread`] alone.
    pub fn read(
        &self,
        i: usize,
        crop: Crop,
        (io, buffer): (Io, &mut Vec<u8>),
        decoder: &mut Decoder,
        lq: Option<(u16, &mut [u8])>,
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
                buffer.resize(self.tables.longest.max(buffer.len() as u32) as usize, 0);
                let payload = &mut buffer[..entry.length as usize];
                self.tables.read(payload, entry.offset, "the record")?;
                payload
            }
        };
        let crc = crc32fast::hash(payload);
        ensure!(
            crc == entry.crc,
            "the record is damaged (checksum {crc:08x} where {:08x} is expected)",
            entry.crc
        );
        decoder.decode_part(known_codec(entry.codec)?, payload, crop, lq, hr)
    }

    /// Names record `i` for an error message: its shard and number and, if the file is `readable`,
    /// the image that it was cut from.
    pub fn describe(&self, i: usize, record: u64, readable: bool) -> String {
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
/// The contract of a map is that nobody changes or shortens the file as long as the map exists.
/// Shards are written under another name, synced, made read-only and renamed, and paragon never
/// opens one for writing again; the length was checked on this file handle. Two cases remain:
/// another program cuts a shard that is in use, against the file's permissions, or a disk or
/// network cannot deliver a page. The system then sends SIGBUS, which `bus` handles.
fn map(file: &File, length: u64) -> Result<Mmap> {
    let text = "the shard is larger than the address space";
    let length = usize::try_from(length).map_err(|_| marked(Kind::TooLarge, text))?;
    // SAFETY: see the contract above; the slice is only read, as plain bytes
    let map = unsafe { memmap2::MmapOptions::new().len(length).map(file) };
    map.context("cannot map the shard into memory")
}
