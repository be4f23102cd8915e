//! Writes one shard file: header, records in order of arrival, then source table, index and footer.
//! At the end the file is synced, made read-only and renamed. Depends on `format` and `files`.
//! Promises that an unfinished shard never has its final name, and that an unfinished shard of an
//! earlier run is continued only after every record in it was checked.

use super::codec::Codec;
use super::format::{
    FOOTER_BYTES, Footer, HEADER_BYTES, Header, INDEX_ENTRY_BYTES, IndexEntry, MAX_RECORDS,
    MAX_SOURCE_TABLE_BYTES,
};
use super::manifest::ShardInfo;
use super::source_table::{MAX_NAME_BYTES, SOURCE_ENTRY_BYTES, SourceEntry, encode_sources};
use super::tables::read_at;
use crate::{support::failure, support::files, sys};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Most bytes that one image takes in the source table.
const LONGEST_SOURCE: u64 = (SOURCE_ENTRY_BYTES + MAX_NAME_BYTES) as u64;
/// Bytes that are buffered before a write call.
const BUFFER_BYTES: usize = 1 << 20;

/// One encoded pair, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Left edge of the LQ patch in the LQ image, pixels.
    pub x: u32,
    /// Top edge of the LQ patch in the LQ image, pixels.
    pub y: u32,
    /// How the payload is encoded.
    pub codec: Codec,
    /// CRC32 of the payload.
    pub crc: u32,
    /// Bytes of the payload.
    pub length: u32,
}

/// A shard that is being written, or replayed without a file: the records of a journal give the
/// same sizes and tables as the records themselves.
pub struct ShardWriter {
    path: PathBuf,
    /// Name until the shard is finished.
    partial: PathBuf,
    /// The file; `None` in a replay.
    out: Option<BufWriter<File>>,
    /// Bytes so far: where the next record begins.
    at: u64,
    records: u64,
    sources: Vec<SourceEntry>,
    /// Bytes of the source table so far.
    source_bytes: u64,
    index: Vec<u8>,
    header: [u8; HEADER_BYTES],
}

/// The name of a shard until it is finished. It is the same for every run, so that the next run
/// finds the file and continues it.
pub fn partial_name(path: &Path) -> PathBuf {
    path.with_file_name(format!(
        ".{}.partial",
        path.file_name().unwrap_or_default().to_string_lossy()
    ))
}

impl ShardWriter {
    /// Begins the shard that will be called `path`.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub fn create(path: &Path, header: &Header) -> Result<Self> {
        let mut writer = Self::recount(path, header);
        let file = files::create_new(&writer.partial)
            .with_context(|| format!("cannot write {}", path.display()))?;
        writer.out = Some(BufWriter::with_capacity(BUFFER_BYTES, file));
        writer.at = 0;
        writer.put(&header.encode())?;
        Ok(writer)
    }

    /// Begins the replay of a shard that an earlier run has written; [`ShardWriter::attach`] opens
    /// its file.
    pub fn recount(path: &Path, header: &Header) -> Self {
        ShardWriter {
            path: path.to_path_buf(),
            partial: partial_name(path),
            out: None,
            at: HEADER_BYTES as u64,
            records: 0,
            sources: Vec::new(),
            source_bytes: 0,
            index: Vec::new(),
            header: header.encode(),
        }
    }

    /// Ends the replay: opens the file of the shard, checks all replayed records and continues
    /// after the last one. If the file does not hold them all, it opens nothing and returns the
    /// number of the first source that is not whole.
    ///
    /// # Errors
    /// An error of the system.
    pub fn attach(&mut self) -> Result<Option<u32>> {
        let path = self.path.display().to_string();
        let is_file = |path: &Path| match failure::retry(|| fs::symlink_metadata(path)) {
            Ok(about) => Ok(about.is_file()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot look at {}", path.display())),
        };
        if !is_file(&self.partial)? && is_file(&self.path)? {
            // the shard was finished already: it becomes an unfinished one again
            sys::make_writable(&self.path).with_context(|| path.clone())?;
            fs::rename(&self.path, &self.partial).with_context(|| path.clone())?;
        }
        if !is_file(&self.partial)? {
            return Ok(Some(0));
        }
        let opened = failure::retry(|| files::open_own(&self.partial));
        let file = opened.with_context(|| format!("cannot open {}", self.partial.display()))?;
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, &file);
        // a file that ends too early is what a kill leaves behind; an error of the system says
        // nothing about the content
        let mut whole = |bytes: &mut [u8]| match reader.read_exact(bytes) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", self.partial.display())),
        };
        let mut header = [0; HEADER_BYTES];
        if !whole(&mut header)? || header != self.header {
            return Ok(Some(0));
        }
        let mut payload = Vec::new();
        for i in 0..self.records as usize {
            let entry = IndexEntry::decode(&self.index, i);
            payload.resize(entry.length as usize, 0);
            if !whole(&mut payload)? || crc32fast::hash(&payload) != entry.crc {
                return Ok(Some(entry.source));
            }
        }
        drop(reader);
        file.set_len(self.at).with_context(|| path.clone())?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        out.seek(SeekFrom::Start(self.at)).with_context(|| path)?;
        self.out = Some(out);
        Ok(None)
    }

    /// Passes everything appended so far to the operating system: from then on it survives the end
    /// of this process, though not a power failure.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        match &mut self.out {
            Some(out) => out
                .flush()
                .with_context(|| format!("cannot write {}", self.path.display())),
            None => Ok(()),
        }
    }

    /// Reads a record that was appended before.
    ///
    /// # Errors
    /// The file cannot be written or read.
    pub fn read_back(&mut self, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.flush()?;
        let mut payload = vec![0; length];
        if let Some(out) = &self.out {
            let read = sys::read_exact_at(out.get_ref(), &mut payload, offset);
            read.with_context(|| format!("cannot read back {}", self.partial.display()))?;
        }
        Ok(payload)
    }

    /// Offset of the next record, bytes.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The name of the image that the record at `offset` was cut from.
    pub fn image_at(&self, offset: u64) -> Option<String> {
        let mut entries = (0..self.records as usize).map(|i| IndexEntry::decode(&self.index, i));
        let entry = entries.find(|entry| entry.offset == offset)?;
        let source = self.sources.get(entry.source as usize)?;
        Some(source.name.clone())
    }

    /// Whether `length` more bytes fit a shard of `limit` bytes, together with the source table,
    /// the index and the footer. An empty shard accepts a record of any size.
    pub fn fits(&self, length: u64, limit: u64) -> bool {
        let tables = self.source_bytes
            + self.index.len() as u64
            + INDEX_ENTRY_BYTES as u64
            + FOOTER_BYTES as u64;
        let full = self.records >= MAX_RECORDS
            || self.source_bytes + LONGEST_SOURCE > MAX_SOURCE_TABLE_BYTES;
        self.records == 0 || (!full && self.at + length + tables <= limit)
    }

    /// Adds an image to the source table; the next records are of this image.
    pub fn begin_source(&mut self, source: SourceEntry) {
        self.source_bytes += (SOURCE_ENTRY_BYTES + source.name.len()) as u64;
        self.sources.push(source);
    }

    /// Appends one record of the image begun last. In a replay there is no payload.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, record: &Record, payload: Option<&[u8]>) -> Result<()> {
        debug_assert!(payload.is_none_or(|p| p.len() == record.length as usize));
        let entry = IndexEntry {
            offset: self.at,
            length: record.length,
            crc: record.crc,
            source: self.sources.len() as u32 - 1,
            x: record.x,
            y: record.y,
            codec: record.codec.id(),
        };
        match payload {
            Some(payload) => self.put(payload)?,
            None => self.at += u64::from(record.length),
        }
        self.index.extend_from_slice(&entry.encode());
        self.records += 1;
        Ok(())
    }

    /// Ends the file, syncs it, makes it read-only and gives it its final name. A shard that was
    /// only replayed must exist as a finished file; if it does not, the result is `None`.
    ///
    /// # Errors
    /// The file cannot be written, or (in a replay) read.
    pub fn finish(mut self) -> Result<Option<ShardInfo>> {
        let sources = encode_sources(&self.sources);
        let index = std::mem::take(&mut self.index);
        let sources_at = self.at;
        let index_at = sources_at + sources.len() as u64;
        let footer = Footer {
            records: self.records,
            sources: self.sources.len() as u64,
            sources_at,
            index_at,
            file_bytes: index_at + (index.len() + FOOTER_BYTES) as u64,
            sources_crc: crc32fast::hash(&sources),
            index_crc: crc32fast::hash(&index),
        };
        if self.out.is_none() && !self.exists_finished(&footer)? {
            return Ok(None);
        }
        for part in [&sources[..], &index, &footer.encode()] {
            self.put(part)?;
        }
        if let Some(out) = self.out.take() {
            let ended = (|| -> Result<()> {
                let file = out.into_inner().map_err(|e| e.into_error())?;
                sys::make_read_only(&file).context("cannot make it read-only")?;
                file.sync_all()?;
                files::commit(&self.partial, &self.path)
            })();
            ended.with_context(|| format!("cannot write {}", self.path.display()))?;
        }
        Ok(Some(ShardInfo {
            records: footer.records,
            sources: footer.sources,
            bytes: footer.file_bytes,
            sources_crc: footer.sources_crc,
            index_crc: footer.index_crc,
        }))
    }

    /// Whether the finished file exists. It compares length, header and footer; the footer holds
    /// the checksum of the index, and the index those of all records.
    fn exists_finished(&self, footer: &Footer) -> Result<bool> {
        let file = match failure::retry(|| files::read_own(&self.path)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound || !failure::is_system(&e) => {
                return Ok(false);
            }
            Err(e) => {
                return Err(e).with_context(|| format!("cannot open {}", self.path.display()));
            }
        };
        let read = || -> Result<bool> {
            if file.metadata().context("cannot look at the file")?.len() != footer.file_bytes {
                return Ok(false);
            }
            let (mut head, mut foot) = ([0; HEADER_BYTES], [0; FOOTER_BYTES]);
            read_at(&file, &mut head, 0, "the header")?;
            read_at(
                &file,
                &mut foot,
                footer.file_bytes - FOOTER_BYTES as u64,
                "the footer",
            )?;
            Ok(head == self.header && foot == footer.encode())
        };
        read().with_context(|| self.path.display().to_string())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(out) = &mut self.out {
            let written = out.write_all(bytes);
            written.with_context(|| {
                format!("cannot write {} (at byte {})", self.path.display(), self.at)
            })?;
        }
        self.at += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        if let Some(out) = self.out.take() {
            // no flush: a write may have failed before, and the next run checks what is there
            let _ = out.into_parts();
        }
    }
}
