//! Whether the image files of a job are those that an earlier run has read. Depends on `reader` and
//! `convert`. Promises that a file with another content is noticed, unless it has the same size and
//! times.

use super::convert::files_crc;
use super::hash::Hash64;
use super::journal::{Entry, Outcome};
use super::manifest::{Manifest, ShardInfo, held_out_folder, path_in};
use super::plan::Job;
use super::reader::ShardSet;
use super::source_table::SourceEntry;
use crate::support::failure;
use crate::sys;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

/// The images of a finished set.
pub(super) struct SetImages {
    /// By name.
    pub sources: HashMap<String, SourceEntry>,
    /// When the set was finished: seconds and nanoseconds.
    made: sys::FileTime,
}

/// Returns by name the images in the shards `shards`, the first ones of the set in `folder`.
///
/// # Errors
/// Those of [`ShardSet::open`] and [`ShardSet::sources`].
pub(super) fn images_of(
    folder: &Path,
    shards: &[ShardInfo],
) -> Result<HashMap<String, SourceEntry>> {
    let count = shards.iter().map(|s| s.sources as usize).sum();
    let sources = ShardSet::open(folder)?.sources()?;
    Ok(sources
        .into_iter()
        .take(count)
        .map(|(source, _)| (source.name.clone(), source))
        .collect())
}

impl SetImages {
    /// Reads the images of a set and of its held-out part.
    ///
    /// # Errors
    /// The set is damaged or cannot be read.
    pub fn read(out: &Path, main: &Manifest, held_out: Option<&Manifest>) -> Result<Self> {
        let mut sources = HashMap::new();
        for (folder, manifest) in [
            (out.to_path_buf(), Some(main)),
            (held_out_folder(out), held_out),
        ] {
            if manifest.is_some_and(|m| m.records() > 0) {
                sources.extend(images_of(&folder, manifest.map_or(&[], |m| &m.shards))?);
            }
        }
        let made = about(&path_in(out))?;
        Ok(SetImages {
            sources,
            made: sys::modified(&made),
        })
    }

    /// Whether the files of a job are those that a source was cut from. Sizes are compared first;
    /// the content only if a file was modified or changed since the set was made. (A file that is
    /// moved or restored keeps its modification time, but its change time (ctime) is new.)
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn is_same(&self, job: &Job, source: &SourceEntry) -> Result<bool> {
        if job.file_bytes != source.bytes {
            return Ok(false);
        }
        for path in files_of(job) {
            let about = about(path)?;
            if sys::modified(&about).max(sys::changed(&about)) >= self.made {
                return Ok(files_crc(job)? == source.crc);
            }
        }
        Ok(true)
    }
}

fn files_of(job: &Job) -> impl Iterator<Item = &PathBuf> {
    [Some(&job.source.hr), job.source.lq.as_ref()]
        .into_iter()
        .flatten()
}

fn about(path: &Path) -> Result<Metadata> {
    failure::retry(|| fs::metadata(path))
        .with_context(|| format!("cannot look at {}", path.display()))
}

/// Whether the files of a job are those that a journal entry was made from.
///
/// # Errors
/// A file cannot be read.
pub(super) fn unchanged(job: &Job, entry: &Entry) -> Result<bool> {
    let same = entry.stamp == stamp(job)?;
    match &entry.outcome {
        Outcome::Rejected { .. } => Ok(same),
        Outcome::Used(used) => {
            let source = &used.source;
            Ok(source.name == job.source.name
                && source.bytes == job.file_bytes
                && (same || files_crc(job)? == source.crc))
        }
    }
}

/// Hash of the sizes, modification times and change times of the files of a job. The change time is
/// new when another file takes the name.
///
/// # Errors
/// The system does not give the metadata of a file.
pub(super) fn stamp(job: &Job) -> Result<u64> {
    let mut hash = Hash64::default();
    for path in files_of(job) {
        let about = about(path)?;
        let (modified, changed) = (sys::modified(&about), sys::changed(&about));
        for word in [modified.0, modified.1, changed.0, changed.1] {
            hash.word(word as u64);
        }
        hash.word(about.len());
    }
    Ok(hash.finish())
}
