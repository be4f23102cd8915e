//! Writes files so that a killed process or a full disk never leaves a half-written one under the
//! final name: write to another name in the same folder, sync, rename. Depends on
//! `sys`.

use crate::sys;
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Longest file name in bytes that nearly every file system accepts.
pub const MAX_NAME_BYTES: usize = 255;
/// Bytes that are buffered before each write to a file.
const BUFFER_BYTES: usize = 1 << 20;
/// After this many links a path counts as circular; Linux has the same limit.
const MAX_LINKS: usize = 40;

/// The file name `stem` + `ending`, of at most [`MAX_NAME_BYTES`] bytes. A stem that is too long is
/// cut and a hash of the whole stem is appended to it, so that two different long names stay
/// different.
pub fn bounded_name(stem: &str, ending: &str) -> String {
    if stem.len() + ending.len() <= MAX_NAME_BYTES {
        return format!("{stem}{ending}");
    }
    let hash = format!("~{:08x}", crc32fast::hash(stem.as_bytes()));
    let mut cut = MAX_NAME_BYTES
        .saturating_sub(ending.len() + hash.len())
        .min(stem.len());
    while !stem.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{hash}{ending}", &stem[..cut])
}

/// The path that a file has while it is written: in the same folder, so that the rename is atomic.
pub fn partial_path(path: &Path) -> PathBuf {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    path.with_file_name(bounded_name(
        &format!(".{name}"),
        &format!(".{}.partial", std::process::id()),
    ))
}

/// Removes the half-written files that a killed process left in a folder. Only the owner of the
/// folder may call this, because another process could be writing such a file.
pub fn remove_partials(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(".partial") {
            let _ = sys::remove_file(&entry.path()); // files that matter have their final names
        }
    }
}

/// Creates a new file: an older file or link of that name is never opened, whoever put it there,
/// but removed first (the link itself, never its target).
///
/// # Errors
/// Those of the system; `path` is a folder.
pub fn create_new(path: &Path) -> io::Result<File> {
    let create = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
    };
    match create() {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            sys::remove_file(path)?;
            create()
        }
        outcome => outcome,
    }
}

/// Opens a file with a name that paragon chose for writing, and creates it if it is missing. The
/// folder may come from somebody else: a symbolic link, a device or a FIFO of that name is refused,
/// and an existing file keeps its content.
///
/// # Errors
/// Those of the system; `path` is no regular file.
pub fn open_own(path: &Path) -> io::Result<File> {
    let about = fs::symlink_metadata(path);
    if about.is_ok_and(|about| !about.is_file()) {
        let text =
            "it is a link or no regular file, and paragon does not write through it; remove it";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    sys::open_without_waiting(&mut options, false); // the name may have become a link or FIFO by now
    options.open(path)
}

/// Opens a regular file for reading; links are followed. Everything else is refused: reading a FIFO
/// would wait for ever, and a device never ends.
///
/// # Errors
/// Those of the system; `path` leads to no regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    read_only(path, true)
}

/// Opens a file with a name that paragon chose for reading, in a folder that may come from somebody
/// else: like [`open_regular`], but a symbolic link is refused as well.
///
/// # Errors
/// Those of the system; `path` is no regular file.
pub fn read_own(path: &Path) -> io::Result<File> {
    if fs::symlink_metadata(path)?.is_symlink() {
        return Err(not_regular());
    }
    read_only(path, false)
}

fn read_only(path: &Path, follow: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    sys::open_without_waiting(&mut options, follow);
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(not_regular())
    }
}

fn not_regular() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is a link or no regular file, where paragon expects a file of its own; remove it",
    )
}

/// Writes `path` through `fill`: the bytes go to another file of the same folder, which is synced
/// and renamed to `path` only after everything succeeded. On any error the partial file is removed
/// and an older `path` keeps its content. For names that paragon chose: a link of that name is
/// replaced and not followed. For a path that the user typed use [`write_output`].
///
/// # Errors
/// Those of `fill` and of the system, with the path.
pub fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    beside(path, fill).with_context(|| format!("cannot write {}", path.display()))
}

fn beside(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let partial = partial_path(path);
    let written = (|| -> Result<()> {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, create_new(&partial)?);
        fill(&mut out)?;
        out.flush()?;
        out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        commit(&partial, path)
    })();
    if written.is_err() {
        let _ = sys::remove_file(&partial);
    }
    written
}

/// Writes a file whose path the user typed. A device (`/dev/stdout`) or FIFO is written to and never
/// replaced; a symbolic link is followed, and its target is replaced as [`write_atomic`] does.
///
/// # Errors
/// Those of `fill` and of the system, with the path.
pub fn write_output(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let written = (|| -> Result<()> {
        let (target, through) = resolve(path)?;
        if !through {
            return beside(&target, fill);
        }
        let mut out =
            BufWriter::with_capacity(BUFFER_BYTES, OpenOptions::new().write(true).open(&target)?);
        fill(&mut out)?;
        Ok(out.flush()?)
    })();
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// The path that an output path leads to, and whether it is written to in place: a device, a FIFO,
/// an open file of a process (`/dev/stdout`).
fn resolve(path: &Path) -> io::Result<(PathBuf, bool)> {
    let mut at = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        if sys::is_process_file(&at) {
            return Ok((at, true));
        }
        match fs::symlink_metadata(&at) {
            Ok(about) if about.is_symlink() => {
                let link = fs::read_link(&at)?;
                at = at.parent().unwrap_or(Path::new("")).join(link);
            }
            Ok(about) if about.is_dir() => {
                return Err(io::Error::new(
                    io::ErrorKind::IsADirectory,
                    "it is a folder; give the name of a file",
                ));
            }
            Ok(about) => return Ok((at, !about.is_file())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((at, false)),
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("its symbolic links lead in a circle"))
}

/// Renames a finished, synced file to its final name and syncs the folder, so that the new name
/// survives a crash.
///
/// # Errors
/// Those of the system.
pub fn commit(partial: &Path, path: &Path) -> Result<()> {
    sys::rename_over(partial, path)?;
    sync_folder_of(path);
    Ok(())
}

/// Writes the entry of `path` in its folder to the disk. Windows cannot sync a folder.
fn sync_folder_of(path: &Path) {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if let Ok(dir) = File::open(folder) {
        let _ = dir.sync_all(); // some file systems refuse; the change itself is done
    }
}

/// Creates a folder and its parents. New folders are on the disk when this returns, so a file that is
/// synced in them is still found after a loss of power.
///
/// # Errors
/// Those of the system; `path` is a file. The message names the path.
pub fn create_folder(path: &Path) -> Result<()> {
    if path.exists() && !path.is_dir() {
        anyhow::bail!(
            "{} is a file where a folder is needed; choose another place",
            path.display()
        );
    }
    let new: Vec<&Path> = path
        .ancestors()
        .take_while(|p| !p.as_os_str().is_empty() && !p.exists())
        .collect();
    fs::create_dir_all(path)
        .with_context(|| format!("cannot create the folder {}", path.display()))?;
    new.into_iter().rev().for_each(sync_folder_of);
    Ok(())
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

    #[test]
    fn names_stay_within_the_bound_and_apart() {
        assert_eq!(bounded_name("a", ".png"), "a.png");
        let (a, b) = ("ü".repeat(200) + "a", "ü".repeat(200) + "b");
        let (a, b) = (bounded_name(&a, ".png"), bounded_name(&b, ".png"));
        assert!(
            a.len() <= MAX_NAME_BYTES && b.len() <= MAX_NAME_BYTES && a != b && a.ends_with(".png"),
            "{a}"
        );
        let dir = tempfile::tempdir().unwrap();
        write_atomic(&dir.path().join("x".repeat(MAX_NAME_BYTES)), |f| {
            Ok(f.write_all(b"long")?)
        })
        .unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn links_and_devices_are_never_replaced() {
        use crate::sys::symlink_file;
        let dir = tempfile::tempdir().unwrap();
        let (target, link, fifo) = (
            dir.path().join("target"),
            dir.path().join("link"),
            dir.path().join("fifo"),
        );
        fs::write(&target, "old").unwrap();
        symlink_file(Path::new("target"), &link).unwrap();
        write_output(&link, |f| Ok(f.write_all(b"new")?)).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).unwrap()
        });
        write_output(&fifo, |f| Ok(f.write_all(b"through")?)).unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(!fs::symlink_metadata(&fifo).unwrap().is_file());
        write_output(Path::new("/dev/null"), |f| Ok(f.write_all(b"gone")?)).unwrap();
        assert!(!fs::symlink_metadata("/dev/null").unwrap().is_file());
        let error = format!("{:#}", write_output(dir.path(), |_| Ok(())).unwrap_err());
        assert!(error.contains("folder"), "{error}");
        // somebody guessed the partial file's name and put a link there: the link is removed, its
        // target stays
        let new = dir.path().join("new");
        symlink_file(&target, &partial_path(&new)).unwrap();
        write_atomic(&new, |f| Ok(f.write_all(b"mine")?)).unwrap();
        assert_eq!(
            (fs::read(&target).unwrap(), fs::read(&new).unwrap()),
            (b"new".to_vec(), b"mine".to_vec())
        );
        assert!(open_own(&link).is_err() && open_own(&fifo).is_err());
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }
}
