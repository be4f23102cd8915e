//! Writing files so that a killed process or a full disk never leaves a half-written one under the
//! final name: write beside, sync, rename. Depends on the standard library alone.

use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Bytes of a file's name at most, on nearly every file system.
pub const MAX_NAME_BYTES: usize = 255;
/// Bytes gathered before the file is written to.
const BUFFER_BYTES: usize = 1 << 20;
/// Links that are followed from one path before it is taken for a circle, as Linux does.
const MAX_LINKS: usize = 40;

/// A file name that is `stem` and `ending`, of at most [`MAX_NAME_BYTES`]. A stem that is too long
/// is cut, and a hash of the whole stem put in the place of what was cut, so that two long names
/// which differ stay apart.
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

/// The name a file has while it is being written, in the same folder so that the rename is atomic.
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

/// Removes what a killed process left half-written in a folder. Only for the owner of the folder:
/// another process may be at work on its own.
pub fn remove_partials(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(".partial") {
            let _ = fs::remove_file(entry.path()); // litter; what matters is under final names
        }
    }
}

/// Creates a file that must be new: neither an older file nor a link of that name is opened,
/// whoever put it there. What has the name is removed first (a link itself, never what it leads
/// to).
///
/// # Errors
/// Those of the system; a folder of that name.
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
            fs::remove_file(path)?;
            create()
        }
        outcome => outcome,
    }
}

/// Opens a file of our own name for writing, creating it where it is missing, in a folder that may
/// come from somebody else: a symbolic link, a device or a FIFO of that name is refused, and
/// nothing is emptied.
///
/// # Errors
/// Those of the system, and a name that is no regular file.
pub fn open_own(path: &Path) -> io::Result<File> {
    let about = fs::symlink_metadata(path);
    if about.is_ok_and(|about| !about.is_file()) {
        let text =
            "it is a link or no regular file, and paragon does not write through it; remove it";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // between the look above and this call the name may have become a link or a FIFO
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    options.open(path)
}

/// Opens a regular file for reading; links are followed. What is none is refused: a FIFO would wait
/// for ever, a device never ends.
///
/// # Errors
/// Those of the system, and a path that leads to no regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    read_only(path, 0)
}

/// Opens a file of our own name for reading, in a folder that may come from somebody else: as
/// [`open_regular`], but a symbolic link is refused as well.
///
/// # Errors
/// Those of the system, and a name that is no regular file.
pub fn read_own(path: &Path) -> io::Result<File> {
    if fs::symlink_metadata(path)?.is_symlink() {
        return Err(not_regular());
    }
    #[cfg(unix)]
    let flags = libc::O_NOFOLLOW;
    #[cfg(not(unix))]
    let flags = 0;
    read_only(path, flags)
}

fn read_only(path: &Path, flags: i32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(flags | libc::O_NONBLOCK); // no waiting for a FIFO's other end; regular files do not know the flag
    }
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

/// Writes `path` through `fill`: the bytes go to a file beside it, which is synced and renamed over
/// `path` only when everything succeeded. On any error the partial file is removed and an older
/// `path` is left whole. For names of our own in folders of our own: a link of that name is
/// replaced and not followed. For a path that the user has typed use [`write_output`].
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
        let _ = fs::remove_file(&partial);
    }
    written
}

/// Writes a file whose path the user has typed. What is no regular file (a device such as
/// `/dev/stdout`, a FIFO) is written to as it is, and never replaced; a symbolic link is followed,
/// and the file that it leads to is replaced as [`write_atomic`] does.
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

/// Where an output path leads, and whether it is written to in place: a device, a FIFO, an open
/// file of a process (`/dev/stdout`).
fn resolve(path: &Path) -> io::Result<(PathBuf, bool)> {
    let mut at = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        // the open files of a process are links of a kind of their own: what they show need not be
        // a path
        if at.starts_with("/proc") {
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
pub fn commit(partial: &Path, path: &Path) -> Result<()> {
    fs::rename(partial, path)?;
    sync_folder_of(path);
    Ok(())
}

/// Brings the entry of `path` in its folder to the disk.
fn sync_folder_of(path: &Path) {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if let Ok(dir) = File::open(folder) {
        let _ = dir.sync_all(); // some file systems refuse to sync a folder; the change itself is done
    }
}

/// Creates a folder and its parents, with an error that names it and says what stands in the way.
/// New folders are on the disk when this returns: a file that is synced within them is found again
/// after a loss of power.
///
/// # Errors
/// Those of the system; a file of that name.
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
        use std::os::unix::fs::{FileTypeExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (target, link, fifo) = (
            dir.path().join("target"),
            dir.path().join("link"),
            dir.path().join("fifo"),
        );
        fs::write(&target, "old").unwrap();
        symlink("target", &link).unwrap();
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
        assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
        write_output(Path::new("/dev/null"), |f| Ok(f.write_all(b"gone")?)).unwrap();
        assert!(
            fs::symlink_metadata("/dev/null")
                .unwrap()
                .file_type()
                .is_char_device()
        );
        let error = format!("{:#}", write_output(dir.path(), |_| Ok(())).unwrap_err());
        assert!(error.contains("folder"), "{error}");
        // a guessed name for the partial file leads elsewhere: the link goes, the file it leads to
        // stays
        let new = dir.path().join("new");
        symlink(&target, partial_path(&new)).unwrap();
        write_atomic(&new, |f| Ok(f.write_all(b"mine")?)).unwrap();
        assert_eq!(
            (fs::read(&target).unwrap(), fs::read(&new).unwrap()),
            (b"new".to_vec(), b"mine".to_vec())
        );
        assert!(open_own(&link).is_err() && open_own(&fifo).is_err());
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }
}
