//! One image of a run, either as a job to convert or as rejected. Depends on `dataset::scan`.

use crate::dataset::scan::Source;
use std::path::{Path, PathBuf};

/// Kind of an image that needs more memory than is allowed.
pub(super) const MEMORY: &str = "memory";

/// A file that gives no pairs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rejected {
    /// The file.
    #[serde(serialize_with = "super::report::path_in_words")]
    pub file: PathBuf,
    /// The kind of reason, by which rejected files are counted.
    pub kind: String,
    /// The reason in words.
    pub reason: String,
}

impl Rejected {
    /// Makes a rejection. A path at the start of the reason is cut off, since file and reason are
    /// shown together.
    pub(super) fn new(file: &Path, kind: &str, reason: String) -> Rejected {
        let reason = match reason.strip_prefix(&format!("{}: ", file.display())) {
            Some(rest) => rest.to_string(),
            None => reason,
        };
        Rejected {
            file: file.to_path_buf(),
            kind: kind.to_string(),
            reason,
        }
    }
}

/// One image to be converted.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its files and name.
    pub source: Source,
    /// HR width and height from the file's header, pixels.
    pub size: (u32, u32),
    /// Bytes of its file, or of its two files.
    pub file_bytes: u64,
    /// Number of patches it is cut into.
    pub pairs: u64,
    /// Whether it is held out.
    pub held_out: bool,
    /// Largest memory while it is converted, bytes.
    pub memory: u64,
}
