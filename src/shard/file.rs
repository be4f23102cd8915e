//! Writing one shard file: header, records as they come, then source table, index and footer; synced, made read-only and
//! renamed at the end. Depends on `format` and `files`. Promises that an unfinished shard never has its final name and
//! that its partial file is removed on any error.

use super::codec::Codec;
use super::format::{
    FOOTER_BYTES, Footer, HEADER_BYTES, Header, INDEX_ENTRY_BYTES, IndexEntry, MAX_RECORDS, SOURCE_ENTRY_BYTES, SourceEntry, encode_sources,
};
use super::manifest::{ShardInfo, make_read_only};
use crate::files;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Bytes gathered before the file is written to.
const BUFFER_BYTES: usize = 1 << 20;

/// One encoded pair on its way to a shard.
#[derive(Clone, Debug)]
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

/// A shard being written.
pub struct ShardWriter {
    path: PathBuf,
    partial: PathBuf,
    out: Option<BufWriter<File>>,
    at: u64,
    records: u64,
    sources: Vec<SourceEntry>,
    source_bytes: u64,
    index: Vec<u8>,
}

impl ShardWriter {
    /// Begins the shard that will be called `path`.
    pub fn create(path: &Path, header: &Header) -> Result<Self> {
        let partial = files::partial_path(path);
        let file = File::create(&partial).with_context(|| format!("cannot write {}", path.display()))?;
        let mut writer = ShardWriter {
            path: path.to_path_buf(),
            partial,
            out: Some(BufWriter::with_capacity(BUFFER_BYTES, file)),
            at: 0,
            records: 0,
            sources: Vec::new(),
            source_bytes: 0,
            index: Vec::new(),
        };
        writer.put(&header.encode())?;
        Ok(writer)
    }

    /// Pairs written so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Whether a payload of `length` bytes still fits a shard of `limit` bytes with all that comes behind it. An empty
    /// shard takes anything.
    pub fn fits(&self, length: u64, limit: u64) -> bool {
        let behind = self.source_bytes + self.index.len() as u64 + INDEX_ENTRY_BYTES as u64 + FOOTER_BYTES as u64;
        self.records == 0 || (self.records < MAX_RECORDS && self.at + length + behind <= limit)
    }

    /// The records that follow are from this image.
    pub fn begin_source(&mut self, source: SourceEntry) {
        self.source_bytes += (SOURCE_ENTRY_BYTES + source.name.len()) as u64;
        self.sources.push(source);
    }

    /// Appends one record of the image begun last.
    pub fn append(&mut self, record: &Record, payload: &[u8]) -> Result<()> {
        debug_assert_eq!(record.length as usize, payload.len());
        let entry = IndexEntry {
            offset: self.at,
            length: record.length,
            crc: record.crc,
            source: self.sources.len() as u32 - 1,
            x: record.x,
            y: record.y,
            codec: record.codec.id(),
        };
        self.put(payload)?;
        self.index.extend_from_slice(&entry.encode());
        self.records += 1;
        Ok(())
    }

    /// Ends the file, syncs it, takes its write permission and gives it its name.
    pub fn finish(mut self) -> Result<ShardInfo> {
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
        for part in [&sources[..], &index, &footer.encode()] {
            self.put(part)?;
        }
        if let Some(out) = self.out.take() {
            let ended = (|| -> Result<()> {
                let file = out.into_inner().map_err(|e| e.into_error())?;
                make_read_only(&file)?;
                file.sync_all()?;
                files::commit(&self.partial, &self.path)
            })();
            if ended.is_err() {
                let _ = fs::remove_file(&self.partial);
            }
            ended.with_context(|| format!("cannot write {}", self.path.display()))?;
        }
        Ok(ShardInfo {
            records: footer.records,
            sources: footer.sources,
            bytes: footer.file_bytes,
            sources_crc: footer.sources_crc,
            index_crc: footer.index_crc,
        })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(out) = &mut self.out {
            let written = out.write_all(bytes);
            written.with_context(|| format!("cannot write {} (at byte {})", self.path.display(), self.at))?;
        }
        self.at += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        if let Some(out) = self.out.take() {
            let _ = out.into_parts(); // without flushing what could not be written anyway
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Bytes of a shard around its records: used to foretell sizes.
pub const FIXED_BYTES: u64 = (HEADER_BYTES + FOOTER_BYTES) as u64;
