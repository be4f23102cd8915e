//! What a run finds in its output folder: nothing, the same set already complete, shards of an interrupted run to go on
//! from, or another set that it must not touch. Depends on `reader` and `manifest`. Promises that two runs never write to
//! one folder at once and that nothing is removed but leftovers of an unfinished run, unless `--overwrite` says so.

use super::convert::files_crc;
use super::format::SourceEntry;
use super::manifest::{Manifest, ShardInfo, is_shard_name, path_in, shard_name};
use super::plan::{BuildConfig, Job, Plan, Rejected};
use super::reader::{ShardSet, inspect};
use super::writer::remove_set;
use crate::files;
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Shards of an interrupted run, and how far they go.
#[derive(Default)]
pub(super) struct Done {
    /// The leading shards that are whole.
    pub shards: Vec<ShardInfo>,
    /// For every job: the records that are in those shards already, or nothing where it has none there.
    pub skip: Vec<Option<u64>>,
    pairs: Vec<u64>,
}

impl Done {
    /// Images all of whose records are there.
    pub fn whole_images(&self) -> u64 {
        self.skip.iter().zip(&self.pairs).filter(|(skip, pairs)| skip.is_some_and(|n| n >= **pairs)).count() as u64
    }
}

/// What stands in the output folder.
pub(super) enum Found {
    /// The very set that is asked for, with the images that gave nothing when it was made.
    Complete(Box<Manifest>, Vec<Rejected>),
    /// Room to write, perhaps with shards to go on from.
    Shards(Done),
}

/// Creates the folder, takes it for this process alone and clears partial files; the lock ends with the returned handle.
pub(super) fn prepare(out: &Path) -> Result<File> {
    files::create_folder(out)?;
    let lock = File::open(out).with_context(|| format!("cannot open the folder {}", out.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("another paragon is writing to {}; wait for it or choose another --out", out.display()),
        Err(TryLockError::Error(_)) => {} // a file system without locks: go on unprotected
    }
    for entry in fs::read_dir(out).with_context(|| format!("cannot read the folder {}", out.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if (name.starts_with(".shard-") || name.starts_with(".manifest.psm.")) && name.ends_with(".partial") {
            fs::remove_file(entry.path()).with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(lock)
}

/// Finished shard files of a folder, in order of their names.
pub(super) fn shard_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_shard_name) {
            out.push(entry.path());
        }
    }
    out.sort();
    Ok(out)
}

/// Judges what is in the output folder.
pub(super) fn find(config: &BuildConfig, plan: &Plan) -> Result<Found> {
    let out = &config.out;
    let wanted = &plan.manifest;
    if config.overwrite {
        remove_set(out)?;
    } else if path_in(out).exists() {
        let advice = "use --overwrite to replace it or choose another --out";
        let there = Manifest::read(out).with_context(|| format!("{} holds a set that cannot be read; {advice}", out.display()))?;
        if there.config != wanted.config {
            let mut why = there.differences(wanted);
            if why.is_empty() || there.inputs != wanted.inputs {
                why.push("the images are not the same (names or sizes)".to_string());
            }
            bail!("{} holds another set ({}); {advice}", out.display(), why.join("; "));
        }
        let set = ShardSet::open(out).with_context(|| format!("{} holds this set, but damaged; {advice}", out.display()))?;
        let made = fs::metadata(path_in(out)).and_then(|m| m.modified()).ok();
        let sources: HashMap<String, SourceEntry> = set.sources()?.into_iter().map(|(source, _)| (source.name.clone(), source)).collect();
        let mut rejected = Vec::new();
        for job in &plan.jobs {
            match sources.get(&job.source.name) {
                Some(source) if unchanged(job, source, made) => {}
                Some(_) => bail!("{} has changed since the set in {} was made; {advice}", job.source.hr.display(), out.display()),
                None => rejected.push(Rejected {
                    file: job.source.hr.clone(),
                    kind: "unreadable",
                    reason: "it gave no pairs when the set was made".to_string(),
                }),
            }
        }
        return Ok(Found::Complete(Box::new(set.manifest().clone()), rejected));
    }
    let mut done = Done { shards: Vec::new(), skip: vec![None; plan.jobs.len()], pairs: plan.jobs.iter().map(|j| j.pairs).collect() };
    let leftovers = shard_files(out)?;
    let mut job = 0;
    for number in 0..leftovers.len() {
        let path = out.join(shard_name(number));
        if !path.exists() || !take(&path, number as u32, plan, &mut job, &mut done)? {
            break;
        }
    }
    for path in leftovers.iter().filter(|p| !(0..done.shards.len()).any(|n| **p == out.join(shard_name(n)))) {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(Found::Shards(done))
}

/// Adds the records of one leftover shard to what is done. False where it is of no use: damaged, or cut from files that
/// have changed since.
fn take(path: &Path, number: u32, plan: &Plan, job: &mut usize, done: &mut Done) -> Result<bool> {
    let inspected = match inspect(path, &plan.manifest, number) {
        Ok(inspected) => inspected,
        Err(e) if e.foreign => bail!(
            "{} is left from an unfinished set with other options or images; use --overwrite to remove it or choose \
             another --out",
            path.display()
        ),
        Err(_) => return Ok(false),
    };
    let made = fs::metadata(path).and_then(|m| m.modified()).ok();
    let mut skip = done.skip.clone();
    let mut at = *job;
    for (source, records) in &inspected.sources {
        while at < plan.jobs.len() && plan.jobs[at].source.name != source.name {
            at += 1;
        }
        let Some(found) = plan.jobs.get(at) else { return Ok(false) };
        let so_far = skip[at].unwrap_or(0) + records;
        if so_far > found.pairs || !unchanged(found, source, made) {
            return Ok(false);
        }
        skip[at] = Some(so_far);
    }
    *job = at;
    done.skip = skip;
    done.shards.push(inspected.info);
    Ok(true)
}

/// Whether the files of a job are those that a source was cut from: by size, and by content where they were written to
/// since.
fn unchanged(job: &Job, source: &SourceEntry, made: Option<SystemTime>) -> bool {
    let newer = |path: &PathBuf| match (fs::metadata(path).and_then(|m| m.modified()), made) {
        (Ok(modified), Some(made)) => modified >= made,
        _ => true,
    };
    let touched = newer(&job.source.hr) || job.source.lq.as_ref().is_some_and(newer);
    job.file_bytes == source.bytes && (!touched || files_crc(job).is_ok_and(|crc| crc == source.crc))
}
