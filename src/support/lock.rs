//! One process at a time writes to a folder: a set of shards that is being made, or a run of
//! training. Depends on `files`. Promises that a second paragon is refused with the folder's name.
//! A file system without locks is no reason to refuse work: the caller gets a warning to print and
//! goes on without protection.

use crate::support::failure;
use crate::support::files;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The lock's name in its folder. The file is empty, is there while a process works and after one
/// that was killed, and means nothing by itself: what counts is the lock that the system keeps on
/// it and drops when the process ends.
pub const LOCK_NAME: &str = ".lock";
/// Tries to lock a file that the process before has just removed.
const ATTEMPTS: usize = 100;

/// A folder that belongs to this process until the value is dropped.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    file: Option<File>,
}

impl FolderLock {
    /// Looks whether the folder is still the one that was taken. Without the lock file another
    /// process may work there, and without the folder nothing is kept any more.
    ///
    /// # Errors
    /// The folder or its lock was removed, moved or replaced; the system cannot say.
    pub fn check(&self) -> Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        match failure::retry(|| fs::symlink_metadata(&self.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot look at {}", self.path.display()))
            }
            Ok(_) if is_at(file, &self.path) => Ok(()),
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
            .is_some_and(|file| is_at(file, &self.path))
        {
            // removed while it is still locked; who has opened it meanwhile sees that it is gone
            // and begins again
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes a folder for this process alone. `busy` begins the error for the case that another process
/// has it: `another paragon is writing to`. The text beside the lock is a warning to print, where
/// the file system has no locks.
///
/// # Errors
/// Another process has the folder; the lock file cannot be made there (with the reason of the
/// system as cause) or is a link or no regular file.
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
            Ok(()) if is_at(&file, &path) => {
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
                "{busy} {}; wait for it or use another --out",
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

/// Whether the open file still has its name.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Whether the error says that the file system knows no locks, or that the server which should keep
/// them does not run.
fn has_no_locks(error: &io::Error) -> bool {
    #[cfg(unix)]
    let by_number = matches!(
        error.raw_os_error(),
        Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL)
    );
    #[cfg(not(unix))]
    let by_number = false;
    by_number || error.kind() == io::ErrorKind::Unsupported
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
        std::os::unix::fs::symlink(&target, &name).unwrap();
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
