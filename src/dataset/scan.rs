//! Finding the pictures of a data set and pairing HR with LQ.

use anyhow::Result;
use std::path::{Path, PathBuf};

/// One HR picture, with its LQ partner where the data set has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Path below the HR folder without its extension, with `/` between folders.
    pub name: String,
    /// The HR file.
    pub hr: PathBuf,
    /// The LQ file, or nothing where it is to be made.
    pub lq: Option<PathBuf>,
}

/// A file that takes no part, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The file.
    pub path: PathBuf,
    /// Why, in words for the user.
    pub reason: String,
}

/// What was found. Every picture file is in exactly one of `sources` and `rejected`:
/// `hr_files + lq_files == sources (1 or 2 files each) + rejected`.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Sorted by name.
    pub sources: Vec<Source>,
    /// Sorted by path.
    pub rejected: Vec<Reject>,
    /// The folder the HR pictures are in.
    pub hr_root: PathBuf,
    /// The folder the LQ pictures are in, or nothing where they are to be made.
    pub lq_root: Option<PathBuf>,
    /// Picture files seen below `hr_root`.
    pub hr_files: usize,
    /// Picture files seen below `lq_root`.
    pub lq_files: usize,
    /// Files without a picture's extension, left out and not listed.
    pub ignored: usize,
}

/// What to look for.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// HR side / LQ side.
    pub scale: u32,
    /// The HR folder, where it is not to be found by name.
    pub hr: Option<PathBuf>,
    /// The LQ folder, where it is not to be found by name.
    pub lq: Option<PathBuf>,
}

/// Finds the pictures below `root` and pairs them.
pub fn scan(root: &Path, options: &ScanOptions) -> Result<Scan> {
    let _ = options;
    anyhow::bail!("{}: scanning is not written yet", root.display())
}
