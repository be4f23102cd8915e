//! Readers for image files: one keeps errors of the system that a decoder hides, one replaces the
//! beginning of a file. Depends on `failure` alone. Promises that a failed read of a disk is not
//! taken for damage of the image.

use crate::support::failure;
use std::io::{self, BufRead, Read, Seek, SeekFrom};

/// A reader that keeps the last error of the system. Decoders replace errors by their own.
pub(super) struct FailureRecorder<R> {
    inner: R,
    failed: Option<io::Error>,
}

impl<R> FailureRecorder<R> {
    pub fn new(inner: R) -> Self {
        FailureRecorder {
            inner,
            failed: None,
        }
    }

    /// The last error of the system, if there was one.
    pub fn take_failure(&mut self) -> Option<io::Error> {
        self.failed.take()
    }

    fn note<T>(&mut self, outcome: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &outcome
            && error.kind() != io::ErrorKind::Interrupted
            && failure::is_system(error)
        {
            self.failed = Some(copy_of(error));
        }
        outcome
    }
}

/// Copies an error; `io::Error` has no `Clone`.
pub(super) fn copy_of(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(
        || io::Error::new(error.kind(), error.to_string()),
        io::Error::from_raw_os_error,
    )
}

impl<R: Read> Read for FailureRecorder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let outcome = self.inner.read(buffer);
        self.note(outcome)
    }
}

impl<R: BufRead> BufRead for FailureRecorder<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        // called twice: the borrow checker does not allow noting an error while the buffer is
        // borrowed
        if let Err(error) = self.inner.fill_buf() {
            return self.note(Err(error));
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.inner.consume(bytes);
    }
}

impl<R: Seek> Seek for FailureRecorder<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let outcome = self.inner.seek(to);
        self.note(outcome)
    }

    fn seek_relative(&mut self, by: i64) -> io::Result<()> {
        let outcome = self.inner.seek_relative(by);
        self.note(outcome)
    }
}

/// A file whose first `skipped` bytes are replaced by `head`.
pub(super) struct ReplacedStart<R> {
    head: Vec<u8>,
    rest: R,
    skipped: u64,
    at: u64,
}

impl<R: BufRead + Seek> ReplacedStart<R> {
    /// Reads `head` first, then `rest` from offset `skipped` on.
    pub fn new(head: Vec<u8>, mut rest: R, skipped: u64) -> io::Result<Self> {
        rest.seek(SeekFrom::Start(skipped))?;
        Ok(ReplacedStart {
            head,
            rest,
            skipped,
            at: 0,
        })
    }
}

impl<R: BufRead + Seek> Read for ReplacedStart<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = match self.head.get(self.at as usize..) {
            Some(head) if !head.is_empty() => (&mut &*head).read(buffer)?,
            _ => self.rest.read(buffer)?,
        };
        self.at += taken as u64;
        Ok(taken)
    }
}

impl<R: BufRead + Seek> BufRead for ReplacedStart<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.head.get(self.at as usize..) {
            Some(head) if !head.is_empty() => Ok(head),
            _ => self.rest.fill_buf(),
        }
    }

    fn consume(&mut self, bytes: usize) {
        if self.at >= self.head.len() as u64 {
            self.rest.consume(bytes);
        }
        self.at += bytes as u64;
    }
}

impl<R: BufRead + Seek> Seek for ReplacedStart<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let head = self.head.len() as u64;
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.at.checked_add_signed(by).ok_or_else(invalid)?,
            SeekFrom::End(by) => {
                let end = self
                    .rest
                    .seek(SeekFrom::End(0))?
                    .saturating_sub(self.skipped)
                    + head;
                end.checked_add_signed(by).ok_or_else(invalid)?
            }
        };
        self.rest.seek(SeekFrom::Start(
            (at.max(head) - head).saturating_add(self.skipped),
        ))?;
        self.at = at;
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::decode::{Limits, decoder, head::Metadata};
    use image::ImageFormat;
    use std::io::{BufReader, Cursor};

    /// Number of the error that the disk below returns; EIO on Unix.
    const FAILED: i32 = 5;

    /// A disk that fails from some place on.
    struct Failing(Cursor<Vec<u8>>, u64);

    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.position() >= self.1 {
                return Err(io::Error::from_raw_os_error(FAILED));
            }
            let length = buffer.len().min((self.1 - self.0.position()) as usize);
            self.0.read(&mut buffer[..length])
        }
    }

    impl Seek for Failing {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn an_error_of_the_disk_is_found_behind_the_decoder() {
        let image = image::DynamicImage::ImageRgb8(image::RgbImage::from_fn(9, 9, |x, y| {
            image::Rgb([x as u8, y as u8, 5])
        }));
        for format in [
            ImageFormat::Png,
            ImageFormat::Jpeg,
            ImageFormat::WebP,
            ImageFormat::Tiff,
            ImageFormat::Bmp,
        ] {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, format).unwrap();
            for good in [0, 1, 10, 20] {
                let file = BufReader::with_capacity(
                    8,
                    Failing(Cursor::new(bytes.get_ref().clone()), good),
                );
                let mut file = FailureRecorder::new(file);
                let limits = Limits::default();
                let outcome = Metadata::read(&mut file, format, &limits).and_then(|head| {
                    let shown = ReplacedStart::new(head.replaced, &mut file, head.skipped)?;
                    decoder(shown, format, &limits).map(drop)
                });
                assert!(outcome.is_err(), "{format:?}, {good}");
                let failure = file.take_failure();
                assert_eq!(
                    failure.and_then(|e| e.raw_os_error()),
                    Some(FAILED),
                    "{format:?}, {good}"
                );
            }
        }
    }

    #[test]
    fn a_joined_file_reads_and_seeks_like_one() {
        let whole = b"HEADcdefghij";
        let mut joined =
            ReplacedStart::new(b"HEAD".to_vec(), Cursor::new(b"abcdefghij".to_vec()), 2).unwrap();
        let mut all = Vec::new();
        joined.read_to_end(&mut all).unwrap();
        assert_eq!(all, whole);
        for at in 0..whole.len() as u64 {
            joined.seek(SeekFrom::Start(at)).unwrap();
            let mut rest = Vec::new();
            joined.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, whole[at as usize..]);
            assert_eq!(
                joined.seek(SeekFrom::End(-(at as i64))).unwrap(),
                whole.len() as u64 - at
            );
        }
    }
}
