//! A lock that lets only one process at a time write to a folder: to a shard set, or to a training
//! run. Depends on `failure`, `files` and `sys`. Promises that a second paragon is refused with the
//! folder's name. On a file system without locks the caller gets a warning to print and continues
//! without protection.

use crate::support::failure;
use crate::support::files;
use crate::sys::{self, ErrorClass, is_same_file};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Name of the lock file. The file is empty and means nothing by itself (a killed process leaves it
/// behind): the lock is the one that the system holds on it and releases when the process ends.
pub const LOCK_NAME: &str = ".lock";
/// Attempts, because the previous owner may remove the file between our opening and locking it.
const ATTEMPTS: usize = 100;

/// A folder that belongs to this process until the value is dropped.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    file: Option<File>,
}

impl FolderLock {
    /// Checks that the folder is still the one that was locked. Without the lock file another process
    /// may write there, and without the folder nothing that is written is kept.
    ///
    /// # Errors
    /// The folder or its lock was removed, moved or replaced; the system cannot look at it.
    pub fn check(&self) -> Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        match failure::retry(|| fs::symlink_metadata(&self.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot look at {}", self.path.display()))
            }
            Ok(_) if is_same_file(file, &self.path) => Ok(()),
            _ => {
                let folder = self.path.parent().unwrap_or(&self.path);
                let gone = if folder.is_dir() { &self.path } else { folder };
                bail!(
                    "{} was removed, moved or replaced while this process worked there, so another process may be at work and nothing more is \
                     written; where the folder still holds its files the same command goes on from there",
                    gone.display()
                )
            }
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        if self
            .file
            .as_ref()
            .is_some_and(|file| is_same_file(file, &self.path))
        {
            // removed while it is still locked; a process that has opened it meanwhile finds it
            // gone and starts over
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Locks a folder for this process. `busy` begins the error message for a folder that another
/// process has locked: `another paragon is writing to`. The text returned beside the lock is a
/// warning to print, for a file system without locks.
///
/// # Errors
/// Another process has locked the folder; the lock file cannot be created (the system's error is the
/// cause), or it is a link or no regular file.
pub fn lock_folder(folder: &Path, busy: &str) -> Result<(FolderLock, Option<String>)> {
    let path = folder.join(LOCK_NAME);
    for _ in 0..ATTEMPTS {
        let file = failure::retry(|| files::open_own(&path))
            .with_context(|| format!("cannot write to {}", path.display()))?;
        ensure!(
            file.metadata().is_ok_and(|about| about.is_file()),
            "{} is no regular file; remove it",
            path.display()
        );
        match try_lock(&file) {
            Ok(()) if is_same_file(&file, &path) => {
                return Ok((
                    FolderLock {
                        path,
                        file: Some(file),
                    },
                    None,
                ));
            }
            Ok(()) => {} // removed by its last owner between opening and locking
            Err(TryLockError::WouldBlock) => bail!(
                "{busy} {}; wait for it or choose another folder (--name, --out)",
                folder.display()
            ),
            Err(TryLockError::Error(e)) if has_no_locks(&e) => {
                let warning = format!(
                    "warning: the file system of {} has no locks ({e}), so nothing stops a second paragon from writing there; \
                     see to it that none does",
                    folder.display()
                );
                return Ok((FolderLock { path, file: None }, Some(warning)));
            }
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
    bail!(
        "{} is removed again and again by another program; stop that or use another --out",
        path.display()
    )
}

fn try_lock(file: &File) -> Result<(), TryLockError> {
    loop {
        match file.try_lock() {
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Whether the error means that the file system has no locks, or that the server which keeps them
/// does not run.
fn has_no_locks(error: &io::Error) -> bool {
    sys::is_error(error, ErrorClass::NoLocks) || error.kind() == io::ErrorKind::Unsupported
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time_and_the_file_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, warning) = lock_folder(dir.path(), "another paragon is writing to").unwrap();
        assert!(warning.is_none());
        let error = format!(
            "{:#}",
            lock_folder(dir.path(), "another paragon is writing to").unwrap_err()
        );
        assert!(
            error.contains("another paragon is writing to") && error.contains("--out"),
            "{error}"
        );
        drop(lock);
        assert!(!dir.path().join(LOCK_NAME).exists());
        // one that a killed process left behind is no obstacle
        fs::write(dir.path().join(LOCK_NAME), "").unwrap();
        assert!(lock_folder(dir.path(), "another paragon is writing to").is_ok());
    }

    #[test]
    #[cfg(unix)]
    fn a_link_or_fifo_of_the_locks_name_is_refused_and_its_target_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let (target, name) = (dir.path().join("target"), dir.path().join(LOCK_NAME));
        fs::write(&target, "precious").unwrap();
        sys::symlink_file(&target, &name).unwrap();
        assert!(lock_folder(dir.path(), "busy").is_err());
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        fs::remove_file(&name).unwrap();
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&name)
                .status()
                .unwrap()
                .success()
        );
        assert!(lock_folder(dir.path(), "busy").is_err());
    }
}
