//! Distinguishes three kinds of errors, because each needs a different reaction. An error of the
//! *system* (a disk, a network, too many open files, no memory) says nothing about the data: it is
//! retried where that helps, then the work stops with the reason, and nothing about the data is
//! recorded. *Damage of the content* is reported with file, record and source. A *mistake of the
//! user* is answered with what to type instead. Depends on `sys`. An error of the system is never reported as damage.

use crate::sys::{self, ErrorClass};
use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::time::Duration;

/// Attempts at one system call, including the first. With the waits between them a call gives up
/// after about 1.5 s: long enough for a passing fault (a descriptor that another thread is about to
/// close, a path that is switched over), short enough for a person.
const ATTEMPTS: u32 = 6;
/// The wait before the second attempt; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// Whether an error comes from the operating system, and not from what a file holds. A file that
/// ends too early ([`ErrorKind::UnexpectedEof`]) and data that a decoder refuses
/// ([`ErrorKind::InvalidData`]) are content.
pub fn is_system(error: &io::Error) -> bool {
    error.raw_os_error().is_some() || error.kind() == ErrorKind::OutOfMemory
}

/// The system's error in the chain of `error`. `None`: the cause is content or a mistake of the
/// user.
pub fn system_cause(error: &anyhow::Error) -> Option<&io::Error> {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .find(|cause| is_system(cause))
}

/// Whether an error of the system may be transient: an interrupted call, a failed read of
/// a disk or network, no free descriptor or memory. A missing file or a missing permission is
/// not.
pub fn may_pass(error: &io::Error) -> bool {
    let by_kind = matches!(
        error.kind(),
        ErrorKind::Interrupted
            | ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::ResourceBusy
            | ErrorKind::StaleNetworkFileHandle
            | ErrorKind::OutOfMemory
    );
    by_kind || sys::is_error(error, ErrorClass::Passing)
}

/// Calls `work` again, after a growing wait, while it fails with an error that [`may_pass`]. `work`
/// must be safe to repeat.
///
/// # Errors
/// The last error of `work`.
pub fn retry<T>(mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut wait = FIRST_WAIT;
    for _ in 1..ATTEMPTS {
        match work() {
            Err(error) if may_pass(&error) => std::thread::sleep(wait),
            outcome => return outcome,
        }
        wait *= 2;
    }
    work()
}

/// The error for memory that the system does not grant: `no memory for 12 bytes of pixels`.
pub fn no_memory(bytes: impl Display, what: &str) -> io::Error {
    io::Error::new(
        ErrorKind::OutOfMemory,
        format!("no memory for {bytes} bytes of {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn system_and_content_are_told_apart() {
        // Linux: EIO, EMFILE, ENOMEM, EACCES, ENOENT; any number makes an error the system's
        for number in [5, 24, 12, 13, 2] {
            let error = io::Error::from_raw_os_error(number);
            let error = Err::<(), _>(error)
                .context("while reading a.png")
                .unwrap_err();
            assert!(system_cause(&error).is_some(), "{error:#}");
        }
        for kind in [ErrorKind::UnexpectedEof, ErrorKind::InvalidData] {
            let error = anyhow::Error::from(io::Error::from(kind)).context("a.png");
            assert!(system_cause(&error).is_none(), "{error:#}");
        }
        assert!(system_cause(&no_memory(7, "pixels").into()).is_some());
    }

    #[test]
    fn what_may_pass_is_tried_again_and_the_rest_is_not() {
        let mut calls = 0;
        let outcome = retry(|| {
            calls += 1;
            if calls < 3 {
                Err(io::Error::from(ErrorKind::TimedOut))
            } else {
                Ok(calls)
            }
        });
        assert_eq!(outcome.unwrap(), 3);
        calls = 0;
        let outcome = retry(|| -> io::Result<()> {
            calls += 1;
            Err(io::Error::from(ErrorKind::NotFound))
        });
        assert!(outcome.is_err() && calls == 1);
    }
}
