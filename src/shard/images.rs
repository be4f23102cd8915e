//! The images of a finished set: their list, the records of one, and the removal of a set. Depends
//! on `reader` and `output_folder`.

use super::manifest::{self, Manifest, held_out_folder};
use super::output_folder::{prepare, remove_set};
use super::reader::ShardSet;
use crate::dataset::scan::ENDINGS;
use crate::support::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// Largest number of similar names that an error lists.
const SIMILAR_NAMES: usize = 5;

/// An image of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedImage {
    /// Path below the folder of the images, without extension.
    pub name: String,
    /// Width of the HR image, pixels.
    pub width: u32,
    /// Height of the HR image, pixels.
    pub height: u32,
    /// Bytes of its file, or of its two files.
    pub file_bytes: u64,
    /// Number of the first of its pairs in its set.
    pub first_record: u64,
    /// Number of its pairs.
    pub patches: u64,
    /// Whether it is held out, in the set `val` inside the folder.
    pub held_out: bool,
}

/// The images of a set in the order of their pairs, and after them those that are held out.
///
/// # Errors
/// Those of [`ShardSet::open`] and [`ShardSet::sources`].
pub fn images(folder: &Path) -> Result<Vec<ListedImage>> {
    let mut all = Vec::new();
    list(folder, false, &mut all)?;
    let held_out = held_out_folder(folder);
    if manifest::is_in(&held_out)? {
        list(&held_out, true, &mut all)?;
    }
    Ok(all)
}

fn list(folder: &Path, held_out: bool, all: &mut Vec<ListedImage>) -> Result<()> {
    let mut first_record = 0;
    for (source, patches) in ShardSet::open(folder)?.sources()? {
        match all.last_mut() {
            // the pairs of an image go on in the next shard
            Some(last) if last.held_out == held_out && last.name == source.name => {
                last.patches += patches;
            }
            _ => all.push(ListedImage {
                name: source.name,
                width: source.width,
                height: source.height,
                file_bytes: source.bytes,
                first_record,
                patches,
                held_out,
            }),
        }
        first_record += patches;
    }
    Ok(())
}

/// A name without the ending of an image: sets hold names without it, and users copy those of
/// files.
fn without_ending(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((stem, ending)) if ENDINGS.iter().any(|e| e.eq_ignore_ascii_case(ending)) => stem,
        _ => name,
    }
}

/// Numbers of the records that were cut from an image, which is named with or without extension.
///
/// # Errors
/// The set has no image of this name; the error lists similar names.
pub fn records_of(set: &ShardSet, name: &str) -> Result<Vec<u64>> {
    let mut first = 0;
    let mut found = Vec::new();
    let mut of_stem = Vec::new();
    let mut alike = Vec::new();
    let stem = without_ending(name);
    // the records of one image follow one another, in the order of the source tables
    for (source, count) in set.sources()? {
        if source.name == name {
            found.extend(first..first + count);
        } else if source.name == stem {
            of_stem.extend(first..first + count);
        } else if source.name.contains(stem) && alike.len() < SIMILAR_NAMES {
            alike.push(source.name);
        }
        first += count;
    }
    if found.is_empty() {
        found = of_stem;
    }
    let hint = if alike.is_empty() {
        String::new()
    } else {
        format!("; like it are {}", alike.join(", "))
    };
    ensure!(
        !found.is_empty(),
        "no pair of {} was cut from an image called {stem}{hint}; `paragon shards list` lists the images",
        set.folder().display()
    );
    Ok(found)
}

/// Removes a set with its held-out part: manifests first, so that a set which is half removed is not
/// taken for a finished one. Other files in the folder stay; an empty folder is removed. Returns the
/// bytes of the shards.
///
/// # Errors
/// There is no set in the folder; another paragon is writing to it; an error of the system.
pub fn remove(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    if manifest::is_in(folder)? {
        // one that is damaged or of another version is removed, too
        bytes += Manifest::read(folder).map_or(0, |manifest| manifest.bytes());
        bytes += Manifest::read(&held_out_folder(folder)).map_or(0, |manifest| manifest.bytes());
    } else {
        // says whether the folder is missing, holds no set, or an unfinished one
        let error = Manifest::read(folder).err();
        let unfinished = super::output_folder::leftovers(folder, &Default::default())?;
        match error {
            Some(error) if unfinished.is_empty() => bail!(error),
            _ => {}
        }
    }
    let lock = prepare(folder, &Progress::hidden())?;
    let lock = lock.with_context(|| format!("{} cannot be written", folder.display()))?;
    remove_set(folder)?;
    drop(lock);
    // fails, rightly, where the folder holds other files
    let _ = fs::remove_dir(folder);
    Ok(bytes)
}
