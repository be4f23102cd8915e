//! Reads the records of one shard in order, by read calls, for merging and verifying. Depends on
//! `tables`. Promises that the structure of the shard and the checksum of every record were
//! checked.

use super::format::IndexEntry;
use super::manifest::Manifest;
use super::source_table::{SourceEntry, decode_source};
use super::tables::Tables;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// A checked shard whose records are read one after the other.
pub(super) struct ShardReader {
    pub tables: Tables,
    /// The source table.
    sources: Vec<u8>,
    /// Number of the next record.
    pub at: usize,
}

impl ShardReader {
    /// Opens a shard of a set and checks its structure.
    ///
    /// # Errors
    /// Those of [`Tables::open`].
    pub fn open(folder: &Path, manifest: &Manifest, number: usize) -> Result<Self> {
        let (tables, _) = Tables::open(folder, manifest, number)?;
        let sources = tables
            .source_table()
            .with_context(|| tables.path.display().to_string())?;
        Ok(ShardReader {
            tables,
            sources,
            at: 0,
        })
    }

    /// Reads the next record with its image and index entry, and compares its checksum. Call it as
    /// often as the manifest lists records.
    ///
    /// # Errors
    /// A damaged record, an error of the system.
    pub fn record(&mut self) -> Result<(SourceEntry, IndexEntry, Vec<u8>)> {
        let number = self.at;
        self.at += 1;
        let entry = self.tables.entry(number)?;
        let source = decode_source(&self.sources, self.tables.footer.sources, entry.source)?;
        let mut payload = vec![0; entry.length as usize];
        self.tables
            .read(&mut payload, entry.offset, "the record")
            .with_context(|| format!("record {number}"))?;
        ensure!(
            crc32fast::hash(&payload) == entry.crc,
            "record {number} (image {}) is damaged (checksum mismatch)",
            source.name
        );
        Ok((source, entry, payload))
    }
}
