//! A finished shard, opened by reading calls alone and held against everything that
//! `shards/FORMAT.md` says a reader must refuse. Depends on `format`, `manifest` and `files`.
//! Promises one judgement for opening a set, merging and verifying; that an error of the system is
//! retried and then stays one, and is never called damage; and that a process needs few file
//! descriptors, however many shards it has open.

use super::codec::Codec;
use super::format::{
    FOOTER_BYTES, Footer, Geometry, HEADER_BYTES, Header, INDEX_ENTRY_BYTES, IndexEntry, Newer,
    SourceEntry, check_sources, decode_source,
};
use super::manifest::{Manifest, ShardInfo, shard_name};
use crate::{support::failure, support::files, sys};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of an index that are read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Reads exactly `bytes.len()` bytes. Passing errors of the system are retried; a file that ends
/// before is damage.
pub(super) fn read_at(file: &File, bytes: &mut [u8], at: u64, what: &str) -> Result<()> {
    match failure::retry(|| sys::read_exact_at(file, bytes, at)) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            bail!("cannot read {what}: the file ends before that, it is cut short")
        }
        outcome => outcome.with_context(|| format!("cannot read {what}")),
    }
}

/// A buffer for part of a file, or an error where memory is short.
fn buffer(bytes: u64, what: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    out.try_reserve_exact(length)
        .map_err(|_| failure::no_memory(bytes, what))?;
    out.resize(length, 0);
    Ok(out)
}

/// The shard files of this process that are kept open for reading calls.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// How many shard files may be kept open: half of what the system allows this process. Those beyond
/// are opened for each reading.
fn most_kept() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| sys::open_files_limit().map_or(64, |limit| limit / 2))
}

struct Kept(File);

impl Kept {
    /// The file back where enough are kept.
    fn new(file: File) -> Result<Kept, File> {
        if KEPT.fetch_add(1, Ordering::Relaxed) < most_kept() {
            return Ok(Kept(file));
        }
        KEPT.fetch_sub(1, Ordering::Relaxed);
        Err(file)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What tells a shard file from another one of its name: nothing writes to a finished shard.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: sys::FileTime,
}

impl Stamp {
    fn of(about: &Metadata) -> Self {
        Stamp {
            bytes: about.len(),
            modified: sys::modified(about),
        }
    }
}

/// A shard whose header, footer, source table and index were checked.
pub(super) struct Tables {
    pub path: PathBuf,
    pub footer: Footer,
    /// Bytes of the longest record.
    pub longest: u32,
    stamp: Stamp,
    kept: OnceLock<Kept>,
}

impl Tables {
    /// Opens shard `number` of the set in `folder` and checks its structure; also gives the file,
    /// for mapping it.
    ///
    /// # Errors
    /// All name the file: an error of the system (as the cause), a newer format ([`Newer`]),
    /// otherwise damage.
    pub fn open(folder: &Path, manifest: &Manifest, number: usize) -> Result<(Tables, File)> {
        let path = folder.join(shard_name(number));
        let file = match failure::retry(|| files::open_regular(&path)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                bail!(
                    "{} is missing, though the manifest lists it; copy it back or make the set again",
                    path.display()
                )
            }
            Err(e) => return Err(e).with_context(|| format!("cannot open {}", path.display())),
        };
        let info = manifest
            .shards
            .get(number)
            .with_context(|| format!("the manifest lists no shard {number}"))?;
        let name = path.display().to_string();
        let tables = Self::check(&file, path, info, manifest, number).with_context(|| name)?;
        Ok((tables, file))
    }

    fn check(
        file: &File,
        path: PathBuf,
        info: &ShardInfo,
        manifest: &Manifest,
        number: usize,
    ) -> Result<Tables> {
        let stamp = Stamp::of(&file.metadata().context("cannot look at the file")?);
        let length = stamp.bytes;
        let (mut header, mut footer) = ([0; HEADER_BYTES], [0; FOOTER_BYTES]);
        ensure!(
            length >= (HEADER_BYTES + FOOTER_BYTES) as u64,
            "the file has {length} bytes: it is cut short"
        );
        read_at(file, &mut header, 0, "the header")?;
        let header = Header::decode(&header)?;
        ensure!(
            header.config == manifest.config && header.number as usize == number,
            "the shard belongs to another set or place (shard {} of set {:016x}; shard {number} of {:016x} is expected)",
            header.number,
            header.config,
            manifest.config
        );
        read_at(
            file,
            &mut footer,
            length - FOOTER_BYTES as u64,
            "the footer",
        )?;
        let footer = Footer::decode(&footer, length)?;
        let expected = Geometry {
            scale: manifest.scale,
            lq_size: manifest.lq_size,
        };
        ensure!(
            header.geometry == expected,
            "the shard holds {:?} where the manifest says {expected:?}",
            header.geometry
        );
        let found = ShardInfo {
            records: footer.records,
            sources: footer.sources,
            bytes: length,
            sources_crc: footer.sources_crc,
            index_crc: footer.index_crc,
        };
        ensure!(
            *info == found,
            "the shard is not the one the manifest lists ({found:?} where {info:?} is expected)"
        );
        let mut tables = Tables {
            path,
            footer,
            longest: 0,
            stamp,
            kept: OnceLock::new(),
        };
        let sources = tables.source_table_of(file)?;
        ensure!(
            crc32fast::hash(&sources) == tables.footer.sources_crc,
            "the source table is damaged (checksum mismatch)"
        );
        check_sources(&sources, tables.footer.sources)?;
        drop(sources);
        tables.longest = tables.check_index(file, expected)?;
        Ok(tables)
    }

    /// Checks the index; returns the length of the longest record.
    fn check_index(&self, file: &File, geometry: Geometry) -> Result<u32> {
        let f = &self.footer;
        // records lie one behind the other from the header to the source table: no byte is outside
        // a checksum
        let longest = u32::try_from(geometry.lq_bytes() + geometry.hr_bytes())
            .context("a pair is too large")?;
        let (mut end, mut most, mut source, mut i) = (HEADER_BYTES as u64, 0, None, 0u64);
        let mut crc = crc32fast::Hasher::new();
        let mut fault = None;
        // the checksum is looked at before what the entries say: a fault found on the way waits for
        // it
        self.read_index(file, |chunk| {
            crc.update(chunk);
            for at in 0..chunk.len() / INDEX_ENTRY_BYTES {
                let e = IndexEntry::decode(chunk, at);
                let mut check = || -> Result<()> {
                    ensure!(
                        e.offset == end,
                        "record {i} begins at byte {} where {end} is expected",
                        e.offset
                    );
                    ensure!(
                        e.length <= longest,
                        "record {i} has {} bytes; a raw pair has {longest}",
                        e.length
                    );
                    ensure!(
                        u64::from(e.source) < f.sources,
                        "record {i} names source {} of {}",
                        e.source,
                        f.sources
                    );
                    let next = source.map_or(0, |s: u32| s + u32::from(e.source != s));
                    ensure!(
                        e.source == next,
                        "record {i} names source {} where {next} is expected",
                        e.source
                    );
                    known_codec(e.codec).with_context(|| format!("record {i}"))?;
                    end += u64::from(e.length);
                    Ok(())
                };
                if fault.is_none() {
                    fault = check().err();
                }
                source = Some(e.source);
                most = most.max(e.length);
                i += 1;
            }
        })?;
        ensure!(
            crc.finalize() == f.index_crc,
            "the index is damaged (checksum mismatch)"
        );
        fault.map_or(Ok(()), Err)?;
        ensure!(
            end == f.sources_at,
            "the records end at byte {end} where {} is expected",
            f.sources_at
        );
        let named = source.map_or(0, |s| u64::from(s) + 1);
        ensure!(
            named == f.sources,
            "the records name {named} sources where the footer says {}",
            f.sources
        );
        Ok(most)
    }

    /// Hands the whole index over in chunks of whole entries.
    fn read_index(&self, file: &File, mut each: impl FnMut(&[u8])) -> Result<()> {
        let bytes = self.footer.records * INDEX_ENTRY_BYTES as u64;
        let mut chunk = buffer(bytes.min(CHUNK_BYTES as u64), "index")?;
        let mut done = 0;
        while done < bytes {
            let length = usize::try_from(bytes - done)
                .unwrap_or(usize::MAX)
                .min(chunk.len());
            read_at(
                file,
                &mut chunk[..length],
                self.footer.index_at + done,
                "the index",
            )?;
            each(&chunk[..length]);
            done += length as u64;
        }
        Ok(())
    }

    fn source_table_of(&self, file: &File) -> Result<Vec<u8>> {
        let mut table = buffer(
            self.footer.index_at - self.footer.sources_at,
            "source table",
        )?;
        read_at(file, &mut table, self.footer.sources_at, "the source table")?;
        Ok(table)
    }

    /// Calls `work` with the shard's file, which is opened again where it is not kept open.
    pub fn with_file<T>(&self, work: impl FnOnce(&File) -> Result<T>) -> Result<T> {
        if let Some(kept) = self.kept.get() {
            return work(&kept.0);
        }
        let file = failure::retry(|| files::open_regular(&self.path))
            .context("cannot open the file again")?;
        let now = Stamp::of(&file.metadata().context("cannot look at the file")?);
        ensure!(
            now == self.stamp,
            "the file was replaced or changed since the set was opened"
        );
        match Kept::new(file) {
            Ok(kept) => work(&self.kept.get_or_init(|| kept).0),
            Err(file) => work(&file),
        }
    }

    /// Reads bytes of the file by a call.
    pub fn read(&self, bytes: &mut [u8], at: u64, what: &str) -> Result<()> {
        self.with_file(|file| read_at(file, bytes, at, what))
    }

    /// Reads one index entry by a call. Entries are 32 bytes of a file that is read anyway: keeping
    /// them all would cost memory for every record, and the call takes about a thousandth of
    /// decoding one.
    pub fn entry(&self, i: usize) -> Result<IndexEntry> {
        let mut bytes = [0; INDEX_ENTRY_BYTES];
        let at = self.footer.index_at + (i * INDEX_ENTRY_BYTES) as u64;
        self.read(&mut bytes, at, "the record's index entry")?;
        let entry = IndexEntry::decode(&bytes, 0);
        // the index was checked when the set was opened; it may have been overwritten since
        let inside = entry
            .offset
            .checked_add(entry.length.into())
            .is_some_and(|end| end <= self.footer.sources_at);
        ensure!(
            inside && entry.length <= self.longest,
            "the index has changed since the set was opened"
        );
        Ok(entry)
    }

    /// Calls `each` for every index entry, in order.
    pub fn entries(&self, mut each: impl FnMut(&IndexEntry)) -> Result<()> {
        self.with_file(|file| {
            self.read_index(file, |chunk| {
                for i in 0..chunk.len() / INDEX_ENTRY_BYTES {
                    each(&IndexEntry::decode(chunk, i));
                }
            })
        })
    }

    /// The bytes of the source table.
    pub fn source_table(&self) -> Result<Vec<u8>> {
        self.with_file(|file| self.source_table_of(file))
    }

    /// One image of the source table.
    pub fn source(&self, i: u32) -> Result<SourceEntry> {
        decode_source(&self.source_table()?, self.footer.sources, i)
    }

    /// Every image of the shard, with the number of its records.
    pub fn sources(&self) -> Result<Vec<(SourceEntry, u64)>> {
        let table = self.source_table()?;
        let mut counts = vec![0; self.footer.sources as usize];
        let mut outside = false;
        self.entries(|entry| match counts.get_mut(entry.source as usize) {
            Some(count) => *count += 1,
            None => outside = true,
        })?;
        ensure!(!outside, "the index has changed since the set was opened");
        let entry = |(i, count)| Ok((decode_source(&table, self.footer.sources, i as u32)?, count));
        counts.into_iter().enumerate().map(entry).collect()
    }
}

/// The codec of an index entry.
///
/// # Errors
/// One that this program does not know, as [`Newer`].
pub(super) fn known_codec(id: u8) -> Result<Codec> {
    Codec::from_id(id).ok_or_else(|| {
        Newer(format!(
            "codec {id} is not known to this paragon; use a newer paragon"
        ))
        .into()
    })
}
