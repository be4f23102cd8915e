//! Linux and macOS: what the two share. The contracts are those of the functions of the same name
//! in [`super`].

mod bus;

pub(super) use bus::WatchedMap;

use super::{ErrorClass, FileId, FileTime};
#[cfg(feature = "cli")]
use anyhow::{Context, Result};
use memmap2::{Advice, Mmap, UncheckedAdvice};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::ptr::NonNull;
#[cfg(feature = "cli")]
use std::sync::Arc;
#[cfg(feature = "cli")]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(feature = "cli")]
use std::time::{Duration, Instant};

pub(super) const LOCK_ADVICE: &str = "raise the limit (`ulimit -l`)";

/// Permission bit: the owner may write.
const OWNER_WRITES: u32 = 0o200;

#[allow(clippy::unnecessary_cast)] // the fields have other widths on macOS
pub(super) fn free_space(path: &Path) -> Option<u64> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: statvfs is plain data, for which zeros are a valid value
    let mut about: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero, and `about` has room for the answer
    let known = unsafe { libc::statvfs(path.as_ptr(), &mut about) } == 0;
    known.then(|| (about.f_bavail as u64).saturating_mul(about.f_frsize as u64))
}

pub(super) fn page_bytes() -> usize {
    // SAFETY: the call only returns a number
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

pub(super) fn open_files_limit() -> Option<usize> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` has room for the answer
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    known.then(|| usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

pub(super) unsafe fn lock_memory(start: NonNull<u8>, bytes: usize) -> io::Result<()> {
    // SAFETY: the caller owns the block
    match unsafe { libc::mlock(start.as_ptr().cast(), bytes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(super) unsafe fn unlock_memory(start: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller has locked the block
    unsafe { libc::munlock(start.as_ptr().cast(), bytes) };
}

pub(super) fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(bytes, at)
}

pub(super) fn advise_will_need(map: &Mmap, start: usize, bytes: usize) {
    let _ = map.advise_range(Advice::WillNeed, start, bytes); // touches no page itself
}

pub(super) fn advise_dont_need(map: &Mmap, start: usize, bytes: usize) {
    // SAFETY: a map of a file that is only read loses nothing: its pages come back from the file
    let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, bytes) };
}

pub(super) fn advise_random(map: &Mmap) {
    let _ = map.advise(Advice::Random);
}

pub(super) fn modified(about: &Metadata) -> FileTime {
    (about.mtime(), about.mtime_nsec())
}

pub(super) fn changed(about: &Metadata) -> FileTime {
    (about.ctime(), about.ctime_nsec())
}

fn id_of(about: &Metadata) -> FileId {
    FileId {
        volume: about.dev(),
        number: about.ino(),
    }
}

pub(super) fn file_id(path: &Path) -> io::Result<Option<FileId>> {
    Ok(Some(id_of(&fs::metadata(path)?)).filter(|id| id.number != 0))
}

pub(super) fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => id_of(&a) == id_of(&b),
        _ => false,
    }
}

pub(super) fn is_removed(file: &File) -> bool {
    file.metadata().is_ok_and(|about| about.nlink() == 0)
}

pub(super) fn open_without_waiting(options: &mut OpenOptions, follow: bool) {
    let no_follow = if follow { 0 } else { libc::O_NOFOLLOW };
    options.custom_flags(no_follow | libc::O_NONBLOCK); // regular files ignore O_NONBLOCK
}

pub(super) fn is_process_file(path: &Path) -> bool {
    path.starts_with("/proc")
}

pub(super) fn is_stdout(path: &Path) -> bool {
    ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].contains(&path.to_string_lossy().as_ref())
}

pub(super) fn make_writable(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    fs::set_permissions(path, Permissions::from_mode(mode | OWNER_WRITES))
}

/// Nothing to do: replacing and removing depend on the folder's permissions alone.
pub(super) fn allow_replacing(_: &Path) {}

#[cfg(test)]
pub(super) fn symlink_file(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(feature = "cli")]
pub(super) fn end_by_closed_pipe() {
    // an error leaves the ordinary exit code
    let _ = signal_hook::low_level::emulate_default_handler(libc::SIGPIPE);
}

#[cfg(feature = "cli")]
pub(super) fn stop_flag(exit_code: i32, grace: Duration) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    // nanoseconds from `start` to the first signal; 0 before it
    let (start, first) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let (stop, first) = (stop.clone(), first.clone());
        let handle = move || {
            let now = start.elapsed().as_nanos().max(1) as u64;
            match first.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => stop.store(true, Ordering::Relaxed),
                Err(first) if u128::from(now.saturating_sub(first)) >= grace.as_nanos() => {
                    signal_hook::low_level::exit(exit_code)
                }
                Err(_) => {}
            }
        };
        // SAFETY: the handler reads a clock, changes atomics and ends the process without cleaning up,
        // all of which a signal handler may do
        unsafe { signal_hook::low_level::register(signal, handle) }
            .context("cannot watch for Ctrl-C")?;
    }
    if !is_ignored(libc::SIGHUP) {
        signal_hook::flag::register(libc::SIGHUP, stop.clone())
            .context("cannot watch for the end of the terminal")?;
    }
    Ok(stop)
}

/// Whether this process was started with a signal ignored.
#[cfg(feature = "cli")]
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: sigaction is plain data, and without a new action the call only writes the present
    // one to it
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

pub(super) fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the buffer has room for the length that is given, and its last byte stays 0
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
    if failed {
        return String::new();
    }
    let length = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..length]).into_owned()
}

pub(super) fn online_cores() -> Option<usize> {
    // SAFETY: the call only returns a number
    let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(cores).ok().filter(|&cores| cores > 0)
}

pub(super) fn is_error(number: i32, class: ErrorClass) -> bool {
    use libc::{
        EBADMSG, EINVAL, EIO, ELOOP, EMFILE, ENAMETOOLONG, ENFILE, ENOBUFS, ENODATA, ENODEV,
        ENOENT, ENOLCK, ENOMEM, ENOSYS, ENXIO, EOPNOTSUPP,
    };
    match class {
        ErrorClass::Passing => matches!(number, EIO | EMFILE | ENFILE | ENOMEM | ENOBUFS),
        ErrorClass::Disk => {
            matches!(number, EIO | EBADMSG | ENODATA) || super::own::is_disk_error(number)
        }
        ErrorClass::NoFile => matches!(number, ENOENT | ELOOP | ENXIO | ENODEV),
        ErrorClass::BadName => matches!(number, ELOOP | ENAMETOOLONG),
        ErrorClass::NoLocks => matches!(number, ENOLCK | ENOSYS | EOPNOTSUPP | EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_their_number() {
        let all = |class, numbers: &[i32]| numbers.iter().all(|&n| is_error(n, class));
        let none = |class, numbers: &[i32]| !numbers.iter().any(|&n| is_error(n, class));
        use ErrorClass::{BadName, Disk, NoFile, NoLocks, Passing};
        assert!(all(Passing, &[libc::EIO, libc::EMFILE, libc::ENOMEM]));
        assert!(none(Passing, &[libc::EACCES, libc::ENOENT]));
        assert!(all(BadName, &[libc::ELOOP, libc::ENAMETOOLONG]));
        assert!(none(
            BadName,
            &[
                libc::EIO,
                libc::EACCES,
                libc::EMFILE,
                libc::ENOMEM,
                libc::ESTALE
            ]
        ));
        assert!(all(Disk, &[libc::EIO]) && none(Disk, &[libc::EMFILE, libc::EACCES]));
        assert!(all(NoFile, &[libc::ENOENT, libc::ENXIO]) && none(NoFile, &[libc::EACCES]));
        assert!(all(NoLocks, &[libc::ENOLCK, libc::ENOSYS]) && none(NoLocks, &[libc::EIO]));
    }
}
