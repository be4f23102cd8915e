//! Writing files so that a killed process or a full disk never leaves a half-written one under the final name: write
//! beside, sync, rename. Depends on the standard library alone.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The name a file has while it is being written, in the same folder so that the rename is atomic.
pub fn partial_path(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}.partial", std::process::id()))
}

/// Removes what a killed process left half-written in a folder. Only for the owner of the folder: another process may be at
/// work on its own.
pub fn remove_partials(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(".partial") {
            let _ = fs::remove_file(entry.path()); // litter; what matters is under final names
        }
    }
}

/// Writes `path` through `fill`: the bytes go to a file beside it, which is synced and renamed over `path` only when
/// everything succeeded. On any error the partial file is removed and an older `path` is left whole.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let partial = partial_path(path);
    let written = (|| -> Result<()> {
        let file = File::create(&partial)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        fill(&mut out)?;
        out.flush()?;
        out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        commit(&partial, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Renames a finished, synced file to its final name and syncs the folder, so that the new name survives a crash.
pub fn commit(partial: &Path, path: &Path) -> Result<()> {
    fs::rename(partial, path)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(dir) = File::open(folder) {
        let _ = dir.sync_all(); // some file systems refuse to sync a folder; the rename itself is done
    }
    Ok(())
}

/// Creates a folder and its parents, with an error that names it and says what stands in the way.
pub fn create_folder(path: &Path) -> Result<()> {
    if path.exists() && !path.is_dir() {
        anyhow::bail!("{} is a file where a folder is needed; choose another place", path.display());
    }
    fs::create_dir_all(path).with_context(|| format!("cannot create the folder {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_partial() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomic(&path, |f| Ok(f.write_all(b"old")?)).unwrap();
        let error = write_atomic(&path, |f| {
            f.write_all(b"new")?;
            anyhow::bail!("the disk is full")
        });
        assert!(format!("{:#}", error.unwrap_err()).contains("a.txt"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
