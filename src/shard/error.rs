//! The error of a caller who opens, reads or verifies a set: one enum to match on. Inside `shard`,
//! errors are `anyhow` chains; [`Error::classify`] gives such a chain its variant at the border.
//! Depends on `failure`. Promises that no error of the operating system is called damage, and that
//! the texts stay those of the chain: `{}` prints its first line, `{:#}` all of it.

use crate::support::failure::system_cause;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a shard set cannot be opened, read or verified.
///
/// ```no_run
/// use paragon::shard::{Error, reader::ShardSet};
/// use std::path::Path;
///
/// match ShardSet::open(Path::new("shards")).map(|set| set.len()) {
///     Ok(pairs) => println!("{pairs} pairs"),
///     Err(Error::Damaged(about)) => println!("copy {} back", about.file().display()),
///     Err(error) => println!("{error:#}"),
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The file is not what was written: cut short, overwritten, or taken from another set.
    Damaged(Details),
    /// There is no finished set in the folder, or one of its shard files is not there.
    Missing(Details),
    /// The file is none of a shard set: it does not begin like one, or is no regular file.
    NotAShard(Details),
    /// The file was written in a version of the format that this paragon does not read.
    UnsupportedVersion(Details),
    /// The operating system failed: a disk, a permission, too few file descriptors. It says nothing
    /// about the set; [`Error::io`] is the reason.
    System(Details),
    /// There is not enough memory, or the set is larger than the address space.
    OutOfMemory(Details),
    /// The caller asked for what does not exist: a record beyond the last one, a crop that does not
    /// lie inside the patch, buffers of another size than the crop.
    Misuse(Details),
}

/// What an [`Error`] is about.
#[derive(Debug)]
pub struct Details {
    file: PathBuf,
    chain: anyhow::Error,
}

impl Details {
    /// The shard, the manifest, or the folder of the set.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

impl Error {
    /// Gives an error inside `shard` its variant. `file` is named where the chain does not hold an
    /// [`Error`] with a file of its own.
    pub(crate) fn classify(file: &Path, chain: anyhow::Error) -> Error {
        let inner = chain.chain().find_map(|e| e.downcast_ref::<Error>());
        let file = inner.map_or(file, Error::file).to_path_buf();
        let mark = chain.chain().find_map(|e| e.downcast_ref::<Marked>());
        let variant = match (mark.map(|m| m.kind), system_cause(&chain)) {
            (Some(Kind::Newer | Kind::Older), _) => Error::UnsupportedVersion,
            (Some(Kind::NotAShard), _) => Error::NotAShard,
            (Some(Kind::Missing), _) => Error::Missing,
            (Some(Kind::Misuse), _) => Error::Misuse,
            (Some(Kind::TooLarge), _) => Error::OutOfMemory,
            (None, Some(e)) if e.kind() == io::ErrorKind::OutOfMemory => Error::OutOfMemory,
            (None, Some(_)) => Error::System,
            (None, None) if is_no_regular_file(&chain) => Error::NotAShard,
            (None, None) => Error::Damaged,
        };
        variant(Details { file, chain })
    }

    fn details(&self) -> &Details {
        match self {
            Error::Damaged(about)
            | Error::Missing(about)
            | Error::NotAShard(about)
            | Error::UnsupportedVersion(about)
            | Error::System(about)
            | Error::OutOfMemory(about)
            | Error::Misuse(about) => about,
        }
    }

    /// The shard, the manifest, or the folder of the set.
    pub fn file(&self) -> &Path {
        self.details().file()
    }

    /// The error of the operating system behind [`Error::System`] and most of
    /// [`Error::OutOfMemory`].
    pub fn io(&self) -> Option<&io::Error> {
        system_cause(&self.details().chain)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.details().chain, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let mut chain = self.details().chain.chain();
        match chain.next() {
            // where the chain is a single `io::Error`, it must stay visible to `system_cause`
            Some(only) if chain.len() == 0 && only.is::<io::Error>() => Some(only),
            _ => chain.next(),
        }
    }
}

/// Files are refused with this kind by `support::files::open_regular`.
fn is_no_regular_file(chain: &anyhow::Error) -> bool {
    chain
        .chain()
        .filter_map(|e| e.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::InvalidInput)
}

/// The variant that a text inside `shard` asks for, where it is not damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Missing,
    NotAShard,
    /// Only a newer paragon can read it: it is whole, and making the set again is no remedy.
    Newer,
    Older,
    TooLarge,
    Misuse,
}

/// One link of an `anyhow` chain, with the variant it asks for.
#[derive(Debug)]
pub(super) struct Marked {
    kind: Kind,
    text: String,
}

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Marked {}

/// An error of a kind, in words.
pub(super) fn marked(kind: Kind, text: impl Into<String>) -> anyhow::Error {
    Marked {
        kind,
        text: text.into(),
    }
    .into()
}

/// Whether an error says that a newer paragon is needed.
pub(super) fn is_newer(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<Marked>())
        .any(|mark| mark.kind == Kind::Newer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    #[cfg(unix)] // the number of the error is that of Unix
    fn the_reason_of_the_system_and_the_words_survive() {
        const NO_SPACE: i32 = 28; // ENOSPC
        let disk = || io::Error::from_raw_os_error(NO_SPACE);
        for chain in [
            anyhow::Error::from(disk()),
            anyhow::Error::from(disk()).context("set/shard-00000.psh"),
        ] {
            let words = format!("{chain:#}");
            let error = Error::classify(Path::new("f"), chain);
            assert!(matches!(error, Error::System(_)), "{error:?}");
            assert_eq!(error.io().and_then(io::Error::raw_os_error), Some(NO_SPACE));
            assert_eq!(format!("{error:#}"), words);
            let above = Err::<(), _>(error).context("above").unwrap_err();
            assert!(system_cause(&above).is_some());
        }
        let chain = anyhow::Error::msg("the record is damaged").context("f");
        let above = anyhow::Error::from(Error::classify(Path::new("f"), chain)).context("above");
        assert_eq!(format!("{above:#}"), "above: f: the record is damaged");
    }

    #[test]
    fn marks_and_files_are_found_through_other_errors() {
        let inner = Error::classify(
            Path::new("shard"),
            marked(Kind::Newer, "use a newer paragon").context("shard"),
        );
        let outer = Error::classify(Path::new("set"), anyhow::Error::from(inner).context("set"));
        assert!(matches!(outer, Error::UnsupportedVersion(_)), "{outer:?}");
        assert_eq!(outer.file(), Path::new("shard"));
    }
}
