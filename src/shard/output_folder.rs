//! The output folder of a run: its lock, its finished and unfinished files, and their removal.
//! Depends on `manifest`, `files` and `lock`. Promises that two runs never write to one folder at
//! the same time, and that only files of paragon are removed.

use super::error::is_newer;
use super::format::{HEADER_BYTES, Header};
use super::journal;
use super::manifest::{self, Manifest, ShardInfo, held_out_folder, is_shard_name, shard_name};
use super::near_duplicates::HASHES_NAME;
use super::plan::{BuildConfig, Plan};
use crate::support::failure;
use crate::support::files;
use crate::support::lock::{FolderLock, lock_folder};
use crate::support::progress::Progress;
use crate::sys;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Manifests of a finished set and of its held-out part; `None` if there is no such set.
pub(super) type SetManifests = [Option<Manifest>; 2];

/// Creates the folder, locks it for this process and removes half-written manifests. The lock ends
/// when the returned value is dropped. There is no lock if the folder is read-only and holds a
/// finished set, which is then only read.
///
/// # Errors
/// Another process has the lock; an error of the system.
pub(super) fn prepare(out: &Path, progress: &Progress) -> Result<Option<FolderLock>> {
    files::create_folder(out)?;
    let (lock, warning) = match lock_folder(out, "another paragon is writing to") {
        Ok(taken) => taken,
        Err(e) if is_read_only(&e) && manifest::is_in(out)? => return Ok(None),
        Err(e) => return Err(e),
    };
    warning.iter().for_each(|warning| progress.line(warning));
    for folder in [out.to_path_buf(), held_out_folder(out)] {
        remove(&folder, |name| {
            (name.starts_with(".manifest.psm.") || name.starts_with(".hashes.psi."))
                && name.ends_with(".partial")
        })?;
    }
    Ok(Some(lock))
}

fn is_read_only(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    failure::system_cause(error)
        .is_some_and(|cause| matches!(cause.kind(), PermissionDenied | ReadOnlyFilesystem))
}

/// Removes the files of a folder whose names match; the folder need not exist.
///
/// # Errors
/// An error of the system.
pub(super) fn remove(folder: &Path, matches: impl Fn(&str) -> bool) -> Result<()> {
    for path in list(folder)? {
        if path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(&matches)
        {
            sys::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Paths in a folder, sorted; none if the folder does not exist.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || {
        fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()
    };
    match failure::retry(read) {
        Ok(mut paths) => {
            paths.sort();
            Ok(paths)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("cannot read the folder {}", folder.display())),
    }
}

/// Whether a file name is that of an unfinished shard.
pub(super) fn is_partial_shard(name: &str) -> bool {
    name.starts_with(".shard-") && name.ends_with(".partial")
}

/// Removes a set, finished or not. The manifest is removed first, so that a set which is half
/// removed is not taken for a finished one.
///
/// # Errors
/// An error of the system.
pub(super) fn remove_set(out: &Path) -> Result<()> {
    for folder in [out.to_path_buf(), held_out_folder(out)] {
        remove(&folder, |name| name == manifest::MANIFEST_NAME)?;
        remove(&folder, |name| {
            is_shard_name(name)
                || is_partial_shard(name)
                || [journal::JOURNAL_NAME, HASHES_NAME].contains(&name)
        })?;
    }
    let _ = fs::remove_dir(held_out_folder(out)); // fails, rightly, if the folder holds other files
    Ok(())
}

/// Reads the manifests of the finished set in a folder.
///
/// # Errors
/// Those of [`Manifest::read`].
pub(super) fn finished(out: &Path) -> Result<SetManifests> {
    let read = |folder: &Path| -> Result<Option<Manifest>> {
        let there = manifest::is_in(folder)?;
        Ok(there.then(|| Manifest::read(folder)).transpose()?)
    };
    let main = read(out)?;
    let held_out = if main.is_some() {
        read(&held_out_folder(out))?
    } else {
        None
    };
    Ok([main, held_out])
}

/// What to do if the folder holds another set.
pub(super) const ADVICE: &str = "use --overwrite to replace it or choose another --out";

/// Says why the set in `out` cannot be used. Only damage is a reason to replace the set: an error
/// of the system says nothing about it, and a set in a newer format is whole.
pub fn unusable(error: anyhow::Error, out: &Path, what: &str) -> anyhow::Error {
    let out = out.display();
    if failure::system_cause(&error).is_some() {
        error.context(format!(
            "the set in {out} cannot be read because of an error of the system, which says nothing about the set; remove the cause and \
             run the same command again"
        ))
    } else if is_newer(&error) {
        error.context(format!("{out} holds a set that this paragon cannot read"))
    } else {
        error.context(format!("{out} {what}; {ADVICE}"))
    }
}

/// Lists the shard files, finished and unfinished, that are not among the shards `base` of the set
/// and of its held-out part.
///
/// # Errors
/// An error of the system.
pub(super) fn leftovers(out: &Path, base: &[Vec<ShardInfo>; 2]) -> Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    for (folder, base) in [out.to_path_buf(), held_out_folder(out)]
        .into_iter()
        .zip(base)
    {
        let listed: Vec<String> = (0..base.len()).map(shard_name).collect();
        left.extend(list(&folder)?.into_iter().filter(|path| {
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            is_partial_shard(name) || (is_shard_name(name) && !listed.iter().any(|l| l == name))
        }));
    }
    Ok(left)
}

/// Whether one of the shards `left` has the configuration hash of another set.
///
/// # Errors
/// An error of the system.
pub(super) fn foreign(left: &[PathBuf], ours: &[u64]) -> Result<bool> {
    for path in left {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        let mut read = || {
            header.clear();
            files::open_regular(path)?
                .take(HEADER_BYTES as u64)
                .read_to_end(&mut header)
        };
        match failure::retry(&mut read) {
            Ok(_) => {}
            Err(e) if !failure::is_system(&e) => continue, // a link or folder of this name
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
        if Header::decode(&header).is_ok_and(|h| !ours.contains(&h.config)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Empties the folder for a set that is merged from parts. Leftovers of the same set are removed.
///
/// # Errors
/// The folder holds another set and `overwrite` is not given; an error of the system.
pub(super) fn clear(config: &BuildConfig, plan: &Plan, overwrite: bool) -> Result<()> {
    let out = &config.out;
    if !overwrite {
        if manifest::is_in(out)? {
            bail!("{} holds another set already; {ADVICE}", out.display());
        }
        let left = leftovers(out, &[Vec::new(), Vec::new()])?;
        if foreign(&left, &[plan.config(false), plan.config(true)])? {
            bail!(
                "{} is left from another unfinished set; {ADVICE}",
                left[0].display()
            );
        }
    }
    remove_set(out)
}
