//! Everything that depends on the operating system, behind one set of functions: `unix.rs` (Linux
//! and macOS), `linux.rs` and `macos.rs` (where those two differ), `windows.rs`. The functions have
//! equal signatures on every system, so no other module names a system call, a signal or an errno.
//! Depends on nothing of the crate but names of bytes for messages. Where a system cannot answer,
//! the function returns `None` or does nothing; its docstring says so.

pub mod host_memory;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as own;

#[cfg(all(unix, not(target_os = "linux")))]
mod macos;
#[cfg(all(unix, not(target_os = "linux")))]
use macos as own;

#[cfg(unix)]
mod unix;
#[cfg(unix)]
use unix as system;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
use windows as own;
#[cfg(windows)]
use windows as system;

#[cfg(feature = "cli")]
use anyhow::Result;
use memmap2::Mmap;
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::path::Path;
use std::ptr::NonNull;
#[cfg(feature = "cli")]
use std::sync::Arc;
#[cfg(feature = "cli")]
use std::sync::atomic::AtomicBool;
#[cfg(feature = "cli")]
use std::time::Duration;

/// An amount of memory and the limit that it follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryRoom {
    /// Bytes.
    pub bytes: u64,
    /// The limit in words: `this machine`, `control group /box (memory.max)`, `ulimit -v
    /// (RLIMIT_AS)`.
    pub limit: String,
}

impl fmt::Display for MemoryRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({})",
            crate::support::text::bytes_text(self.bytes),
            self.limit
        )
    }
}

/// Which number of a memory limit is asked for.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    /// The bytes that are not used up now.
    Left,
    /// The limit itself.
    Limit,
}

/// The memory that this process may still allocate now, as the smallest over all limits with the
/// name of that limit. Of the machine: the memory that is available. Of a control group: its limit
/// less the memory of its processes (file pages do not count, because the kernel drops them on
/// demand). Of a resource limit: its unused part. Control groups and resource limits exist on
/// Linux; other systems return the machine's memory.
pub fn memory_left() -> Option<MemoryRoom> {
    own::memory_room(Wanted::Left)
}

/// The memory that this process may allocate at most, whatever is free at the moment: a number that
/// stays the same from run to run. Same limits as [`memory_left`].
pub fn memory_limit() -> Option<MemoryRoom> {
    own::memory_room(Wanted::Limit)
}

/// Bytes of [`memory_left`].
pub fn available_memory() -> Option<u64> {
    memory_left().map(|room| room.bytes)
}

/// Anonymous memory of this process in bytes: heap and stacks, without mapped files (whose pages
/// the kernel may drop). On Windows the private bytes of the process; `None` on macOS.
pub fn anonymous_memory() -> Option<u64> {
    own::anonymous_memory()
}

/// Asks the system for the tile registers of x86 processors (AMX), and returns whether this process
/// may use them. Once it may, all of its threads may. Only Linux is asked; elsewhere `false`.
#[cfg(target_arch = "x86_64")]
pub fn allow_tile_registers() -> bool {
    own::allow_tile_registers()
}

/// Name of this host; empty where the system does not say it.
pub fn host_name() -> String {
    system::host_name()
}

/// Processor cores of this host that are switched on, whichever of them this process may use; `None`
/// where the system does not say it (Windows).
pub fn online_cores() -> Option<usize> {
    system::online_cores()
}

/// Processor cores that this process may run on, whatever its control group allows; `None` where the
/// system does not say it (macOS, Windows).
pub fn usable_cores() -> Option<usize> {
    own::usable_cores()
}

/// Bytes that this user may still write to the disk that holds `path`.
pub fn free_space(path: &Path) -> Option<u64> {
    system::free_space(path)
}

/// Whether `path` is on a network file system, where a failed read through a map would end the
/// process. `false` where the system cannot say (macOS, Windows).
pub fn is_network_file_system(path: &Path) -> bool {
    own::is_network_file_system(path)
}

/// Bytes of a memory page.
pub fn page_bytes() -> usize {
    system::page_bytes()
}

/// How many files this process may have open; `None` where the system cannot say.
pub fn open_files_limit() -> Option<usize> {
    system::open_files_limit()
}

/// Locks memory into RAM, so that it is never swapped out.
///
/// # Safety
/// `start` must point to `bytes` allocated bytes.
///
/// # Errors
/// The system refuses: most limit how much a user may lock.
unsafe fn lock_memory(start: NonNull<u8>, bytes: usize) -> io::Result<()> {
    // SAFETY: the caller's promise
    unsafe { system::lock_memory(start, bytes) }
}

/// Undoes [`lock_memory`].
///
/// # Safety
/// The block must have been locked by [`lock_memory`] with the same arguments.
unsafe fn unlock_memory(start: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller's promise
    unsafe { system::unlock_memory(start, bytes) }
}

/// What a user can do when [`lock_memory`] is refused, for an error message.
const LOCK_ADVICE: &str = system::LOCK_ADVICE;

/// Fills `bytes` from position `at` of the file. May move the file's own position.
///
/// # Errors
/// Those of the system; [`io::ErrorKind::UnexpectedEof`] where the file ends earlier.
pub fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    system::read_exact_at(file, bytes, at)
}

/// Asks the system to load part of a map into memory. Advice only; nothing happens on Windows.
pub fn advise_will_need(map: &Mmap, start: usize, bytes: usize) {
    system::advise_will_need(map, start, bytes);
}

/// Releases the pages of part of a map of a file that is only read; they are loaded again when they
/// are used. Advice only; nothing happens on Windows.
pub fn advise_dont_need(map: &Mmap, start: usize, bytes: usize) {
    system::advise_dont_need(map, start, bytes);
}

/// Says that a map is read in random order, so that the system loads only the pages that are used.
/// Advice only; nothing happens on Windows.
pub fn advise_random(map: &Mmap) {
    system::advise_random(map);
}

/// Asks the system to back a block of allocated memory with huge pages (2 MiB), which takes fewer
/// page faults and fewer entries of the processor's address cache. Pages that lie only partly inside
/// the block stay small, so the block takes no more memory. Advice only; works on Linux.
///
/// # Safety
/// The block is allocated memory, and no other thread releases it.
pub unsafe fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller's contract
    unsafe { own::advise_huge_pages(start, bytes) };
}

/// Drops part of a file from the page cache, which keeps pages that are still mapped. Advice only;
/// works on Linux.
pub fn drop_from_page_cache(file: &File, start: usize, bytes: usize) {
    own::drop_from_page_cache(file, start, bytes);
}

/// Whether every page of part of a map is in memory; `start` must be the first byte of a page.
/// `None` where the system cannot say (macOS, Windows).
pub fn is_resident(map: &Mmap, start: usize, bytes: usize) -> Option<bool> {
    own::is_resident(map, start, bytes)
}

/// A map whose failing pages end the process with an error message that names the file; drop it
/// before the map, when nobody reads the map any more. On Windows the value does nothing: a page
/// that cannot be read ends the process without this message.
pub struct WatchedMap {
    _watched: system::WatchedMap,
}

impl WatchedMap {
    /// Watches the map of `path`.
    pub fn new(path: &Path, map: &Mmap) -> Self {
        WatchedMap {
            _watched: system::WatchedMap::new(path, map.as_ptr(), map.len()),
        }
    }
}

/// Time of a file as seconds and nanoseconds. The origin depends on the system, so only times of
/// one system can be compared.
pub type FileTime = (i64, i64);

/// Time of the last write to a file.
pub fn modified(about: &Metadata) -> FileTime {
    system::modified(about)
}

/// Time at which a file last changed in any way: content, name, permissions. On Windows the time of
/// its creation, which moves when a copy takes the file's name.
pub fn changed(about: &Metadata) -> FileTime {
    system::changed(about)
}

/// Identity of a file: equal for two paths or handles exactly when they lead to the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    volume: u64,
    number: u64,
}

/// The identity of the file or folder that `path` leads to, links being followed. `None` where the
/// file system has no numbers (some network file systems).
///
/// # Errors
/// Those of the system.
pub fn file_id(path: &Path) -> io::Result<Option<FileId>> {
    system::file_id(path)
}

/// Whether `path` itself (a link is not followed) is the open file. `false` when either cannot be
/// looked at.
pub fn is_same_file(file: &File, path: &Path) -> bool {
    system::is_same_file(file, path)
}

/// Whether an open file has lost its last name in the file system.
pub fn is_removed(file: &File) -> bool {
    system::is_removed(file)
}

/// Sets up opening a file that may turn out to be a FIFO or device: the call does not wait for the
/// other end. With `follow` false a symbolic link is not followed: it is refused, or (Windows) the
/// link itself is opened, which is no regular file.
pub fn open_without_waiting(options: &mut OpenOptions, follow: bool) {
    system::open_without_waiting(options, follow);
}

/// Whether `path` names an open file of a process (`/proc/self/fd/1`), which must be written to as
/// it is: the link that it shows need not be a path. Always `false` on Windows.
pub fn is_process_file(path: &Path) -> bool {
    system::is_process_file(path)
}

/// Whether `path` is a name of standard output.
pub fn is_stdout(path: &Path) -> bool {
    system::is_stdout(path)
}

/// Takes the write permission from a file.
///
/// # Errors
/// Those of the system.
pub fn make_read_only(file: &File) -> io::Result<()> {
    let mut permissions = file.metadata()?.permissions();
    permissions.set_readonly(true);
    file.set_permissions(permissions)
}

/// Gives the owner of a file the permission to write to it.
///
/// # Errors
/// Those of the system.
pub fn make_writable(path: &Path) -> io::Result<()> {
    system::make_writable(path)
}

/// Renames a file, replacing a file of the new name even when that one is read-only.
///
/// # Errors
/// Those of the system.
pub fn rename_over(from: &Path, to: &Path) -> io::Result<()> {
    system::allow_replacing(to);
    fs::rename(from, to)
}

/// Removes a file, even a read-only one (which Unix does anyway).
///
/// # Errors
/// Those of the system.
pub fn remove_file(path: &Path) -> io::Result<()> {
    system::allow_replacing(path);
    fs::remove_file(path)
}

/// Creates a symbolic link to a file.
///
/// # Errors
/// Those of the system.
#[cfg(all(test, unix))]
pub(crate) fn symlink_file(target: &Path, link: &Path) -> io::Result<()> {
    system::symlink_file(target, link)
}

/// Ends the process as one whose output was closed by its reader: by SIGPIPE (which Rust programs
/// ignore from their start on), so that a shell sees 141. Returns on a system without that signal.
#[cfg(feature = "cli")]
pub fn end_by_closed_pipe() {
    system::end_by_closed_pipe();
}

/// A flag that the first request to stop raises: Ctrl-C everywhere, SIGTERM and SIGHUP (the
/// terminal is closed) on Unix, Ctrl-Break and the closing of the console on Windows. A second
/// Ctrl-C or SIGTERM ends the process at once with `exit_code`; on Unix one that comes less than
/// `grace` after the first counts as the same request. A SIGHUP never does, because
/// closing a terminal sends several, and it is left alone where it was ignored from the start
/// (`nohup`).
///
/// # Errors
/// The system refuses to install the handlers.
#[cfg(feature = "cli")]
pub fn stop_flag(exit_code: i32, grace: Duration) -> Result<Arc<AtomicBool>> {
    system::stop_flag(exit_code, grace)
}

/// Errors whose meaning the standard library has no [`io::ErrorKind`] for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// May be gone a moment later: a failed read, no free descriptor, no memory.
    Passing,
    /// Concerns one block of a disk or one connection; other reads may well succeed.
    Disk,
    /// The name leads to nothing that could be a file: nothing there, links in a circle, a socket.
    NoFile,
    /// The fault is in the name itself: links in a circle, or it is too long.
    BadName,
    /// The file system has no locks, or the server that keeps them does not run.
    NoLocks,
}

/// Whether the system's number of an error belongs to a class. The classes overlap. `false` for an
/// error without a number.
pub fn is_error(error: &io::Error, class: ErrorClass) -> bool {
    error
        .raw_os_error()
        .is_some_and(|number| system::is_error(number, class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_by_position_up_to_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"0123456789").unwrap();
        let file = File::open(&path).unwrap();
        let mut bytes = [0; 4];
        for (at, expected) in [(6, b"6789"), (0, b"0123"), (3, b"3456")] {
            read_exact_at(&file, &mut bytes, at).unwrap();
            assert_eq!(&bytes, expected);
        }
        let error = read_exact_at(&file, &mut bytes, 7).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn read_only_files_are_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        fs::write(&old, "old").unwrap();
        make_read_only(&File::options().write(true).open(&old).unwrap()).unwrap();
        assert!(fs::metadata(&old).unwrap().permissions().readonly());
        fs::write(&new, "new").unwrap();
        make_read_only(&File::options().write(true).open(&new).unwrap()).unwrap();
        rename_over(&new, &old).unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"new");
        make_writable(&old).unwrap();
        fs::write(&old, "again").unwrap();
        make_read_only(&File::options().write(true).open(&old).unwrap()).unwrap();
        remove_file(&old).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_is_recognised_by_handle_and_path() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for path in [&a, &b] {
            fs::write(path, "same").unwrap();
        }
        let file = File::open(&a).unwrap();
        assert!(is_same_file(&file, &a) && !is_same_file(&file, &b) && !is_removed(&file));
        assert!(!is_same_file(&file, &dir.path().join("none")));
        let inside = dir.path().join("sub");
        fs::create_dir(&inside).unwrap();
        let id = file_id(dir.path()).unwrap();
        assert_eq!(id, file_id(&inside.join("..")).unwrap());
        assert_ne!(id, file_id(&inside).unwrap());
        assert!(file_id(&dir.path().join("none")).is_err());
    }

    #[test]
    fn the_machine_has_memory_pages_and_a_disk() {
        let (left, limit) = (memory_left().unwrap(), memory_limit().unwrap());
        assert!(
            left.bytes > 0 && left.bytes <= limit.bytes,
            "{left}, {limit}"
        );
        assert!(page_bytes().is_power_of_two() && page_bytes() >= 4096);
        assert!(free_space(&std::env::temp_dir()).unwrap() > 0);
        assert!(anonymous_memory().is_none_or(|bytes| bytes > 0));
        assert!(open_files_limit().is_none_or(|files| files > 2));
    }

    #[test]
    fn times_of_a_file_move_forward() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "a").unwrap();
        let before = fs::metadata(&path).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        fs::write(&path, "b").unwrap();
        let after = fs::metadata(&path).unwrap();
        assert!(modified(&after) > modified(&before));
        assert!(changed(&after) >= changed(&before));
    }
}
