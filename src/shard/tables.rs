//! Opens a finished shard by read calls (no memory map) and checks it for everything that
//! `shards/FORMAT.md` tells a reader to refuse. Depends on `format`, `manifest` and `files`.
//! Promises that opening a set, merging and verifying apply the same checks; that an error of the
//! operating system is retried and never reported as damage; and that a process keeps few file
//! descriptors open, however many shards it uses.

use super::codec::Codec;
use super::error::{Kind, marked};
use super::format::{
    FOOTER_BYTES, Footer, Geometry, HEADER_BYTES, Header, INDEX_ENTRY_BYTES, IndexEntry,
};
use super::manifest::{Manifest, ShardInfo, shard_name};
use super::source_table::{SourceEntry, check_sources, decode_source};
use crate::{support::failure, support::files, sys};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The index is read in chunks of this many bytes: 32768 entries.
const CHUNK_BYTES: usize = 1 << 20;

/// Shard files kept open if the system does not report its limit on file descriptors.
const KEPT_BY_DEFAULT: usize = 64;

/// Reads exactly `bytes.len()` bytes at offset `at`; `what` names them in the error. Temporary
/// errors of the system are retried; a file that ends too early is damage.
pub(super) fn read_at(file: &File, bytes: &mut [u8], at: u64, what: &str) -> Result<()> {
    match failure::retry(|| sys::read_exact_at(file, bytes, at)) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            bail!("cannot read {what}: the file ends before that, it is cut short")
        }
        outcome => outcome.with_context(|| format!("cannot read {what}")),
    }
}

/// Allocates a zeroed buffer for part of a file; too little memory is an error and not an abort.
fn buffer(bytes: u64, what: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    out.try_reserve_exact(length)
        .map_err(|_| failure::no_memory(bytes, what))?;
    out.resize(length, 0);
    Ok(out)
}

/// Number of shard files that this process keeps open for read calls.
static KEPT_OPEN: AtomicUsize = AtomicUsize::new(0);

/// How many shard files may be kept open: half of the file descriptors that the system allows this
/// process. Any further file is opened anew for each read.
fn max_kept_open() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| sys::open_files_limit().map_or(KEPT_BY_DEFAULT, |limit| limit / 2))
}

/// A shard file that stays open; it counts in [`KEPT_OPEN`] until it is dropped.
struct KeptFile(File);

impl KeptFile {
    /// Returns the file as the error if [`max_kept_open`] files are open already.
    fn new(file: File) -> Result<KeptFile, File> {
        if KEPT_OPEN.fetch_add(1, Ordering::Relaxed) < max_kept_open() {
            return Ok(KeptFile(file));
        }
        KEPT_OPEN.fetch_sub(1, Ordering::Relaxed);
        Err(file)
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        KEPT_OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Size and modification time of a shard file. Nothing writes to a finished shard, so a difference
/// means that another file has taken its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    bytes: u64,
    modified: sys::FileTime,
}

impl FileStamp {
    fn of(about: &Metadata) -> Self {
        FileStamp {
            bytes: about.len(),
            modified: sys::modified(about),
        }
    }
}

/// A shard whose header, footer, source table and index were checked. The tables themselves stay
/// on the disk and are read when they are needed.
pub(super) struct Tables {
    pub path: PathBuf,
    pub footer: Footer,
    /// Bytes of the longest record.
    pub longest: u32,
    stamp: FileStamp,
    kept: OnceLock<KeptFile>,
}

impl Tables {
    /// Opens shard `number` of the set in `folder` and checks its structure. Also returns the open
    /// file, so that the caller can map it.
    ///
    /// # Errors
    /// Every error names the file. It is an error of the system (found as the cause), a missing
    /// file, a newer format, or otherwise damage.
    pub fn open(folder: &Path, manifest: &Manifest, number: usize) -> Result<(Tables, File)> {
        let path = folder.join(shard_name(number));
        let file = match failure::retry(|| files::open_regular(&path)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let text = format!(
                    "{} is missing, though the manifest lists it; copy it back or make the set again",
                    path.display()
                );
                return Err(marked(Kind::Missing, text));
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
        let stamp = FileStamp::of(&file.metadata().context("cannot look at the file")?);
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
        let lqs = manifest.lqs()?;
        ensure!(
            header.lqs == lqs,
            "the shard has {} LQ patches in a record where the manifest says {lqs}",
            header.lqs
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
        tables.longest = tables.check_index(file, expected.record_bytes(lqs))?;
        Ok(tables)
    }

    /// Checks the index: the records must follow one another from the header to the source table
    /// without a gap, so that a checksum covers every byte of the file. `raw_bytes` are the pixels of
    /// a record. Returns the length of the longest record.
    fn check_index(&self, file: &File, raw_bytes: usize) -> Result<u32> {
        let f = &self.footer;
        let longest = u32::try_from(raw_bytes).context("a record is too large")?;
        let (mut end, mut most, mut source, mut i) = (HEADER_BYTES as u64, 0, None, 0u64);
        let mut crc = crc32fast::Hasher::new();
        let mut fault = None;
        // a wrong checksum is the better message, but it is known only at the end: the first
        // fault of an entry is kept until then
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

    /// Calls `each` with the whole index, in chunks of whole entries.
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

    /// Calls `work` with the shard's file, and opens it first if it is not kept open.
    ///
    /// # Errors
    /// Another file has taken the shard's name, an error of the system, or that of `work`.
    pub fn with_file<T>(&self, work: impl FnOnce(&File) -> Result<T>) -> Result<T> {
        if let Some(kept) = self.kept.get() {
            return work(&kept.0);
        }
        let file = failure::retry(|| files::open_regular(&self.path))
            .context("cannot open the file again")?;
        let now = FileStamp::of(&file.metadata().context("cannot look at the file")?);
        ensure!(
            now == self.stamp,
            "the file was replaced or changed since the set was opened"
        );
        match KeptFile::new(file) {
            Ok(kept) => work(&self.kept.get_or_init(|| kept).0),
            Err(file) => work(&file),
        }
    }

    /// Reads bytes of the file by a read call.
    pub fn read(&self, bytes: &mut [u8], at: u64, what: &str) -> Result<()> {
        self.with_file(|file| read_at(file, bytes, at, what))
    }

    /// Reads one index entry by a read call. Keeping all entries would take 32 bytes of memory for
    /// every record, and the call takes about a thousandth of the time of decoding a record.
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

    /// Reads the source table.
    pub fn source_table(&self) -> Result<Vec<u8>> {
        self.with_file(|file| self.source_table_of(file))
    }

    /// Reads one entry of the source table.
    pub fn source(&self, i: u32) -> Result<SourceEntry> {
        decode_source(&self.source_table()?, self.footer.sources, i)
    }

    /// Returns every image of the shard with the number of its records.
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

/// Returns the codec of an index entry.
///
/// # Errors
/// A codec that this program does not know: it needs a newer paragon.
pub(super) fn known_codec(id: u8) -> Result<Codec> {
    Codec::from_id(id).ok_or_else(|| {
        let text = format!("codec {id} is not known to this paragon; use a newer paragon");
        marked(Kind::Newer, text)
    })
}
