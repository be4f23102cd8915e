//! One image of a run, either as a job to convert or as rejected. Depends on `dataset::scan`.

use crate::dataset::decode;
use crate::dataset::scan::Source;
use std::path::{Path, PathBuf};

/// Kind of an image that needs more memory than is allowed.
pub(super) const MEMORY: &str = "memory";

/// Kind of an image whose LQ is smaller than a patch.
pub(super) const TOO_SMALL: &str = "too small";
/// Kind of an image whose patches are all in the set already.
pub(super) const DUPLICATE: &str = "duplicate";
/// Kind of an image whose patches all show too little detail.
pub(super) const FLAT: &str = "flat";

/// Kind of a file whose content cannot be used.
pub(super) fn kind_of_fault(error: &anyhow::Error) -> &'static str {
    if decode::is_not_supported(error) {
        "not supported"
    } else {
        "damaged"
    }
}

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
    /// Shorter side of the LQ of an image that is too small, pixels.
    #[serde(skip)]
    pub lq_side: Option<u32>,
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
            lq_side: None,
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
