//! Defines what an image file is, and lists the images of a folder, for `shard`, `eval`, `upscale`
//! and validation. It goes by names and opens no file. Depends on the file system, `failure` and
//! `text`. Promises that every file with the ending of an image is listed, rejected with a reason,
//! or left out with its folder; that the order is the same on every machine; and that the time is
//! proportional to the number of entries.

use super::ignored::IgnoredFiles;
use crate::support::failure;
use crate::support::text::one_line;
use crate::sys::{self, ErrorClass, FileId};
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Endings of image files, in lower case; they are compared without regard to case. Those of
/// lossless formats come first.
pub const ENDINGS: [&str; 9] = [
    "png", "tif", "tiff", "bmp", "webp", "jpg", "jpeg", "jpe", "jfif",
];

/// Folders, in lower case, in which network storage devices and operating systems keep thumbnails,
/// deleted files and copies of files. Folders whose names begin with a dot need no entry, since
/// they are left out as hidden.
const SYSTEM_FOLDERS: [&str; 20] = [
    "@eadir", // Synology
    "#recycle",
    "#snapshot",
    "@sharebin",
    "@tmp",
    "@recycle", // QNAP
    "@recently-snapshot",
    "@transcode",
    "trashbox",     // Buffalo
    "$recycle.bin", // Windows
    "recycler",
    "recycled",
    "system volume information",
    "__macosx", // macOS
    "network trash folder",
    "temporary items",
    "thevolumesettingsfolder",
    "lost+found", // Linux
    "thumbs",     // programs for viewing images
    "thumbnails",
];

/// Why images are left out although nothing is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The name of the file or folder begins with a dot.
    Hidden,
    /// A folder in which a storage device or an operating system keeps thumbnails or deleted files.
    SystemFolder,
    /// Output of paragon: runs, sets of shards, demos, extracted pairs, and the output folder of
    /// this command.
    OwnOutput,
    /// The file is in a folder that is named for another side or scale.
    OtherScale,
    /// The file is below the root of the data set, but in none of the folders that were chosen.
    Outside,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Hidden => "hidden",
            Reason::SystemFolder => "thumbnails and waste bins",
            Reason::OwnOutput => "paragon's own output",
            Reason::OtherScale => "for another side or scale",
            Reason::Outside => "outside the chosen folders",
        })
    }
}

/// Images that were left out for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Why.
    pub reason: Reason,
    /// Number of image files that were left out.
    #[serde(rename = "pictures")]
    pub images: u64,
    /// Number of folders that were not listed; the images in them are not counted.
    pub folders: u64,
    /// The first file or folder that was left out.
    #[serde(serialize_with = "in_words")]
    pub first: PathBuf,
}

fn in_words<S: serde::Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

impl LeftOut {
    /// Whether a user may be surprised that these are left out, so that the command should say it
    /// at once.
    pub fn may_surprise(&self) -> bool {
        !matches!(self.reason, Reason::Hidden | Reason::OtherScale)
    }
}

/// `3 images and 1 folder left out: outside the chosen folders (the first is a/b.png)`.
impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let what = match (self.images, self.folders) {
            (n, 0) => count(n, "image"),
            (0, n) => count(n, "folder"),
            (n, m) => format!("{} and {}", count(n, "image"), count(m, "folder")),
        };
        write!(
            f,
            "{what} left out: {} (the first is {})",
            self.reason,
            one_line(self.first.display())
        )
    }
}

/// What was left out, one entry for each reason, in the order of the reasons.
#[derive(Clone, Debug, Default)]
pub(super) struct LeftOuts(Vec<LeftOut>);

impl LeftOuts {
    pub fn add(&mut self, reason: Reason, images: u64, folders: u64, first: &Path) {
        if images + folders == 0 {
            return;
        }
        match self.0.binary_search_by_key(&reason, |l| l.reason) {
            Ok(at) => {
                self.0[at].images += images;
                self.0[at].folders += folders;
            }
            Err(at) => self.0.insert(
                at,
                LeftOut {
                    reason,
                    images,
                    folders,
                    first: first.to_path_buf(),
                },
            ),
        }
    }

    pub fn merge(&mut self, others: &[LeftOut]) {
        for other in others {
            self.add(other.reason, other.images, other.folders, &other.first);
        }
    }

    pub fn into_vec(self) -> Vec<LeftOut> {
        self.0
    }
}

/// A file that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The file.
    pub path: PathBuf,
    /// Why, in words for the user.
    pub reason: String,
}

/// An image file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageFile {
    /// Path below the listed folder without the ending, with `/` between folders.
    pub name: String,
    /// The file, as it is to be opened.
    pub path: PathBuf,
}

/// The content of a folder.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Sorted by name, byte by byte.
    pub images: Vec<ImageFile>,
    /// Image files that cannot be used, and folders that cannot be listed.
    pub rejected: Vec<Reject>,
    /// What was left out by rule, one entry for each reason.
    pub left_out: Vec<LeftOut>,
    /// Number of files without the ending of an image; hidden ones are not counted.
    pub ignored: u64,
    /// The same by ending.
    pub ignored_files: IgnoredFiles,
    /// Number of folders that were not entered because the listing is not recursive. Those in
    /// `left_out` are not counted.
    pub subfolders: u64,
}

impl Listing {
    /// Number of image files, rejected ones included, that were not left out.
    pub fn files(&self) -> usize {
        self.images.len() + self.rejected.len()
    }
}

/// Whether a file of this name is an image: it has one of [`ENDINGS`] and is not hidden.
pub fn is_image_name(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    !name.starts_with('.') && split_ending(&name).is_some()
}

/// Splits the name of an image into stem and ending. `None` if the ending is not that of an image.
pub(super) fn split_ending(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.')
        .filter(|(_, ending)| ENDINGS.iter().any(|e| e.eq_ignore_ascii_case(ending)))
}

/// Lists the images of a folder and, if `recursive`, of all folders below it. Hidden files, the
/// folders in which storage devices and operating systems keep thumbnails and deleted files, and
/// the runs and sets of paragon are left out and counted. `folder` itself is always listed.
///
/// # Errors
/// A folder cannot be listed because of an error of the system: a failing disk, a missing
/// permission.
pub fn list_images(folder: &Path, recursive: bool) -> Result<Listing> {
    FolderLister::default().list(folder, recursive)
}

/// Identity of a folder, whatever path leads to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum FolderId {
    Number(FileId),
    Path(PathBuf),
}

impl FolderId {
    pub fn of(folder: &Path) -> io::Result<FolderId> {
        // some network file systems have no numbers; resolving the path costs more, but always
        // distinguishes folders
        match failure::retry(|| sys::file_id(folder))? {
            Some(id) => Ok(FolderId::Number(id)),
            None => Ok(FolderId::Path(failure::retry(|| folder.canonicalize())?)),
        }
    }
}

/// Lists folders. It enters each folder once, so that links which lead to a parent do no harm.
#[derive(Debug, Default)]
pub(super) struct FolderLister {
    /// Folders that were entered before, or must not be entered.
    pub entered: HashSet<FolderId>,
    /// The output folder of the command.
    pub out: Option<FolderId>,
    /// Whether folders that cannot be listed are skipped. For folders that no image is taken from.
    pub lenient: bool,
}

impl FolderLister {
    /// Does the work of [`list_images`], without the folders that were entered before.
    ///
    /// # Errors
    /// Those of [`list_images`].
    pub fn list(&mut self, top: &Path, recursive: bool) -> Result<Listing> {
        let mut listing = Listing::default();
        let mut left_out = LeftOuts::default();
        self.entered.insert(
            FolderId::of(top)
                .with_context(|| format!("cannot open the folder {}", top.display()))?,
        );
        // a stack and no recursion: a path of the longest length can have 2,000 folders
        let mut open = vec![(top.to_path_buf(), String::new())];
        while let Some((folder, below)) = open.pop() {
            let is_top = below.is_empty();
            let Some(entries) = self.entries(&folder, is_top, &mut listing, &mut left_out)? else {
                continue;
            };
            let mut subfolders = Vec::new();
            for entry in entries {
                if let Some(found) = self.sort_in(&entry, &below, &mut listing, &mut left_out)? {
                    subfolders.push(found);
                }
            }
            if recursive {
                open.extend(subfolders.into_iter().rev());
            } else {
                listing.subfolders += subfolders.len() as u64;
            }
        }
        listing.images.sort();
        listing.left_out = left_out.into_vec();
        Ok(listing)
    }

    /// Reads the entries of a folder in the order of their names. `None` if the folder is left out.
    fn entries(
        &mut self,
        folder: &Path,
        is_top: bool,
        listing: &mut Listing,
        left_out: &mut LeftOuts,
    ) -> Result<Option<Vec<fs::DirEntry>>> {
        let listed = (|| {
            if !is_top {
                let id = FolderId::of(folder)?;
                if self.out.as_ref() == Some(&id) {
                    left_out.add(Reason::OwnOutput, 0, 1, folder);
                    return Ok(None);
                }
                if !self.entered.insert(id) {
                    return Ok(None);
                }
            }
            failure::retry(|| fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()).map(Some)
        })();
        let mut entries = match listed {
            Ok(Some(entries)) => entries,
            Ok(None) => return Ok(None),
            Err(e) if is_top => {
                return Err(e)
                    .with_context(|| format!("cannot list the folder {}", folder.display()));
            }
            Err(_) if self.lenient => return Ok(None),
            Err(e) if is_of_names(&e) => {
                listing.rejected.push(Reject {
                    path: folder.to_path_buf(),
                    reason: format!("the folder cannot be listed: {e}"),
                });
                return Ok(None);
            }
            Err(e) => {
                let text =
                    "cannot list the folder; make it readable, or move it out of the data set";
                return Err(e).with_context(|| format!("{}: {text}", folder.display()));
            }
        };
        if !is_top && is_own_output(&entries) {
            left_out.add(Reason::OwnOutput, 0, 1, folder);
            return Ok(None);
        }
        entries.sort_by_key(fs::DirEntry::file_name);
        Ok(Some(entries))
    }

    /// Adds an entry of a folder to the listing or to what is left out. If the entry is a folder to
    /// be entered, returns its path and the prefix of the names in it.
    fn sort_in(
        &self,
        entry: &fs::DirEntry,
        below: &str,
        listing: &mut Listing,
        left_out: &mut LeftOuts,
    ) -> Result<Option<(PathBuf, String)>> {
        let (path, file_name) = (entry.path(), entry.file_name());
        let name = file_name.to_string_lossy();
        let kind = failure::retry(|| {
            let kind = entry.file_type()?;
            if kind.is_symlink() {
                Ok(fs::metadata(&path)?.file_type())
            } else {
                Ok(kind)
            }
        });
        let kind = match kind {
            // whatever its ending, the entry may be a link to a folder of images
            Err(e) if !self.lenient && !is_of_names(&e) && !name.starts_with('.') => {
                return Err(e)
                    .with_context(|| format!("{}: cannot look at the file", path.display()));
            }
            kind => kind,
        };
        if kind.as_ref().is_ok_and(fs::FileType::is_dir) {
            match reason_of_folder(&name) {
                Some(reason) => left_out.add(reason, 0, 1, &path),
                None => return Ok(Some((path, format!("{below}{name}/")))),
            }
            return Ok(None);
        }
        let Some((stem, _)) = split_ending(&name) else {
            if !name.starts_with('.') {
                listing.ignored += 1;
                listing.ignored_files.add(&name);
            }
            return Ok(None);
        };
        if name.starts_with('.') {
            left_out.add(Reason::Hidden, 1, 0, &path);
            return Ok(None);
        }
        let reason = match kind {
            Ok(kind) if !kind.is_file() => "not a regular file".to_string(),
            Err(e) => {
                format!("a link that leads nowhere, or a file that was removed just now: {e}")
            }
            Ok(_) if file_name.to_str().is_none() => "its name is not UTF-8; rename it".to_string(),
            // only folders below the listed one matter: the path to it is not part of names
            Ok(_) if below.contains(char::REPLACEMENT_CHARACTER) => {
                "the name of a folder it lies in is not UTF-8; rename that folder".to_string()
            }
            Ok(_) => {
                listing.images.push(ImageFile {
                    name: format!("{below}{stem}"),
                    path,
                });
                return Ok(None);
            }
        };
        listing.rejected.push(Reject { path, reason });
        Ok(None)
    }
}

/// Why a folder of this name is left out; `None` if it is entered.
pub(super) fn reason_of_folder(name: &str) -> Option<Reason> {
    if name.starts_with('.') {
        return Some(Reason::Hidden);
    }
    let name = name.to_lowercase();
    // files recovered by a check of a Windows disk: FOUND.000, FOUND.001 ...
    let found = name
        .strip_prefix("found.")
        .is_some_and(|n| n.len() == 3 && n.bytes().all(|b| b.is_ascii_digit()));
    (found || SYSTEM_FOLDERS.contains(&name.as_str())).then_some(Reason::SystemFolder)
}

/// Whether a folder with these entries is a training run, a set of shards (perhaps unfinished) or a
/// demo.
fn is_own_output(entries: &[fs::DirEntry]) -> bool {
    const MARKS: [&str; 10] = [
        "manifest.psm",
        "journal.psj",
        ".paragon-demo",
        "log.jsonl",
        "states",
        "models",
        "config.yml",
        "previews",
        "tensorboard",
        ".lock",
    ];
    let mark = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        MARKS.into_iter().find(|mark| name == *mark)
    };
    let found: HashSet<&str> = entries.iter().filter_map(mark).collect();
    let any = |names: &[&str]| names.iter().any(|name| found.contains(name));
    let both = found.contains("states") && found.contains("models");
    let is_run = (found.contains("log.jsonl") && found.len() > 1) || (both && found.len() > 2);
    is_run || any(&["manifest.psm", "journal.psj", ".paragon-demo"])
}

/// Whether an error is a property of the path and so permanent: the file does not exist, links form
/// a circle, the path is too long. All others are errors of the system.
fn is_of_names(error: &io::Error) -> bool {
    sys::is_error(error, ErrorClass::BadName)
        || matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_that_lie_in_a_name_are_listed_and_others_stop_the_work() {
        let of = |kind: &io::ErrorKind| is_of_names(&io::Error::from(*kind));
        use io::ErrorKind::{NotADirectory, NotFound, OutOfMemory, PermissionDenied, TimedOut};
        assert!([NotFound, NotADirectory].iter().all(of));
        assert!(![PermissionDenied, OutOfMemory, TimedOut].iter().any(of));
    }
}
