//! Windows. The contracts are those of the functions of the same name in [`super`]; what needs Unix
//! returns `None` or does nothing.

use super::{ErrorClass, FileId, FileTime, MemoryRoom, Wanted};
use anyhow::{Context, Result};
use memmap2::Mmap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use windows_sys::Win32::Foundation as codes;
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT,
    GetDiskFreeSpaceExW, GetFileInformationByHandle,
};
use windows_sys::Win32::System::Console::{CTRL_BREAK_EVENT, CTRL_C_EVENT, SetConsoleCtrlHandler};
use windows_sys::Win32::System::Memory::{VirtualLock, VirtualUnlock};
use windows_sys::Win32::System::ProcessStatus::{
    GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS, PROCESS_MEMORY_COUNTERS_EX,
};
use windows_sys::Win32::System::SystemInformation::{
    GetSystemInfo, GlobalMemoryStatusEx, MEMORYSTATUSEX, SYSTEM_INFO,
};
use windows_sys::Win32::System::Threading::{ExitProcess, GetCurrentProcess};

pub(super) const LOCK_ADVICE: &str = "close other programs";

/// Handles that a process may have open: the system's limit is 16 million, so this only bounds how
/// many shard files are kept open.
const OPEN_FILES: usize = 8192;

/// The memory of the machine; limits of job objects are not read.
pub(super) fn memory_room(wanted: Wanted) -> Option<MemoryRoom> {
    // SAFETY: plain data, for which zeros are a valid value
    let mut about: MEMORYSTATUSEX = unsafe { std::mem::zeroed() };
    about.dwLength = size_of::<MEMORYSTATUSEX>() as u32;
    // SAFETY: `about` has room for the answer and states its own size
    let known = unsafe { GlobalMemoryStatusEx(&mut about) } != 0;
    known.then(|| MemoryRoom {
        bytes: match wanted {
            Wanted::Left => about.ullAvailPhys,
            Wanted::Limit => about.ullTotalPhys,
        },
        limit: "this machine".into(),
    })
}

#[cfg(target_arch = "x86_64")]
pub(super) fn allow_tile_registers() -> bool {
    false
}

pub(super) fn anonymous_memory() -> Option<u64> {
    // SAFETY: plain data, for which zeros are a valid value
    let mut about: PROCESS_MEMORY_COUNTERS_EX = unsafe { std::mem::zeroed() };
    let bytes = size_of::<PROCESS_MEMORY_COUNTERS_EX>() as u32;
    about.cb = bytes;
    let place = (&raw mut about).cast::<PROCESS_MEMORY_COUNTERS>();
    // SAFETY: `about` has room for the `bytes` bytes of the answer
    let known = unsafe { GetProcessMemoryInfo(GetCurrentProcess(), place, bytes) } != 0;
    // both fields hold the same number, but Windows 7 leaves the first zero and Wine 8 the second
    known.then(|| about.PagefileUsage.max(about.PrivateUsage) as u64)
}

pub(super) fn free_space(path: &Path) -> Option<u64> {
    let name: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
    let (mut free, none) = (0, std::ptr::null_mut());
    // SAFETY: the name ends with a zero, and `free` has room for the answer
    let known = unsafe { GetDiskFreeSpaceExW(name.as_ptr(), &mut free, none, none) } != 0;
    known.then_some(free)
}

pub(super) fn is_network_file_system(_: &Path) -> bool {
    false
}

pub(super) fn page_bytes() -> usize {
    // SAFETY: plain data, for which zeros are a valid value
    let mut about: SYSTEM_INFO = unsafe { std::mem::zeroed() };
    // SAFETY: `about` has room for the answer
    unsafe { GetSystemInfo(&mut about) };
    about.dwPageSize as usize
}

pub(super) fn open_files_limit() -> Option<usize> {
    Some(OPEN_FILES)
}

pub(super) unsafe fn lock_memory(start: NonNull<u8>, bytes: usize) -> io::Result<()> {
    // SAFETY: the caller owns the block
    match unsafe { VirtualLock(start.as_ptr().cast(), bytes) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

pub(super) unsafe fn unlock_memory(start: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller has locked the block
    unsafe { VirtualUnlock(start.as_ptr().cast(), bytes) };
}

pub(super) fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.seek_read(bytes, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                bytes = &mut bytes[read..];
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn advise_will_need(_: &Mmap, _: usize, _: usize) {}

pub(super) fn advise_dont_need(_: &Mmap, _: usize, _: usize) {}

pub(super) fn advise_random(_: &Mmap) {}

pub(super) unsafe fn advise_huge_pages(_: NonNull<u8>, _: usize) {}

pub(super) fn drop_from_page_cache(_: &File, _: usize, _: usize) {}

pub(super) fn is_resident(_: &Mmap, _: usize, _: usize) -> Option<bool> {
    None
}

/// Does nothing; see [`super::WatchedMap`].
pub(super) struct WatchedMap;

impl WatchedMap {
    pub(super) fn new(_: &Path, _: *const u8, _: usize) -> Self {
        WatchedMap
    }
}

/// Windows counts time in steps of 100 ns.
fn file_time(steps: u64) -> FileTime {
    const STEPS_A_SECOND: u64 = 10_000_000;
    (
        (steps / STEPS_A_SECOND) as i64,
        (steps % STEPS_A_SECOND * 100) as i64,
    )
}

pub(super) fn modified(about: &Metadata) -> FileTime {
    file_time(about.last_write_time())
}

pub(super) fn changed(about: &Metadata) -> FileTime {
    file_time(about.creation_time())
}

fn information(file: &File) -> io::Result<BY_HANDLE_FILE_INFORMATION> {
    // SAFETY: plain data, for which zeros are a valid value
    let mut about: BY_HANDLE_FILE_INFORMATION = unsafe { std::mem::zeroed() };
    // SAFETY: the handle is open, and `about` has room for the answer
    match unsafe { GetFileInformationByHandle(file.as_raw_handle(), &mut about) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(about),
    }
}

fn id_of(file: &File) -> io::Result<FileId> {
    let about = information(file)?;
    Ok(FileId {
        volume: u64::from(about.dwVolumeSerialNumber),
        number: u64::from(about.nFileIndexHigh) << 32 | u64::from(about.nFileIndexLow),
    })
}

/// Opens a file or folder to look at it, without access to its content.
fn open_to_look(path: &Path, flags: u32) -> io::Result<File> {
    OpenOptions::new()
        .access_mode(0)
        .custom_flags(FILE_FLAG_BACKUP_SEMANTICS | flags) // without this flag folders are refused
        .open(path)
}

pub(super) fn file_id(path: &Path) -> io::Result<Option<FileId>> {
    let id = id_of(&open_to_look(path, 0)?)?;
    Ok(Some(id).filter(|id| id.number != 0))
}

pub(super) fn is_same_file(file: &File, path: &Path) -> bool {
    let named = open_to_look(path, FILE_FLAG_OPEN_REPARSE_POINT).and_then(|named| id_of(&named));
    matches!((id_of(file), named), (Ok(a), Ok(b)) if a == b)
}

pub(super) fn is_removed(file: &File) -> bool {
    information(file).is_ok_and(|about| about.nNumberOfLinks == 0)
}

pub(super) fn open_without_waiting(options: &mut OpenOptions, follow: bool) {
    if !follow {
        options.custom_flags(FILE_FLAG_OPEN_REPARSE_POINT);
    }
}

pub(super) fn is_process_file(_: &Path) -> bool {
    false
}

pub(super) fn is_stdout(path: &Path) -> bool {
    path.as_os_str().eq_ignore_ascii_case("CONOUT$")
}

pub(super) fn make_writable(path: &Path) -> io::Result<()> {
    let mut permissions = fs::metadata(path)?.permissions();
    #[allow(clippy::permissions_set_readonly_false)] // that lint is about Unix
    permissions.set_readonly(false);
    fs::set_permissions(path, permissions)
}

/// A read-only file can neither be replaced nor removed here, so that flag goes first.
pub(super) fn allow_replacing(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|about| about.permissions().readonly()) {
        let _ = make_writable(path); // the call that follows reports the error
    }
}

/// The flag of [`stop_flag`], for the handler.
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
/// Exit code of a second Ctrl-C.
static EXIT_CODE: AtomicI32 = AtomicI32::new(0);

#[cfg(feature = "cli")]
pub(super) fn end_by_closed_pipe() {}

#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(super) fn stop_flag(exit_code: i32, _grace: Duration) -> Result<Arc<AtomicBool>> {
    let stop = STOP.get_or_init(Arc::default).clone();
    EXIT_CODE.store(exit_code, Ordering::Relaxed);
    // SAFETY: the handler may be called at any time from a thread of its own
    match unsafe { SetConsoleCtrlHandler(Some(on_console_event), 1) } {
        0 => Err(io::Error::last_os_error()).context("cannot watch for Ctrl-C"),
        _ => Ok(stop),
    }
}

/// The system runs this in a thread of its own.
unsafe extern "system" fn on_console_event(event: u32) -> i32 {
    let was_asked = STOP
        .get()
        .is_some_and(|stop| stop.swap(true, Ordering::Relaxed));
    if matches!(event, CTRL_C_EVENT | CTRL_BREAK_EVENT) {
        if was_asked {
            // SAFETY: ends the process, as asked for a second time
            unsafe { ExitProcess(EXIT_CODE.load(Ordering::Relaxed) as u32) }
        }
    } else {
        // the console closes, or the user logs off: the system ends the process when this function
        // returns, or after some seconds, and the run saves until then
        std::thread::sleep(Duration::from_secs(60));
    }
    1
}

pub(super) fn is_error(number: i32, class: ErrorClass) -> bool {
    const DISK: [u32; 6] = [
        codes::ERROR_CRC,
        codes::ERROR_READ_FAULT,
        codes::ERROR_IO_DEVICE,
        codes::ERROR_SECTOR_NOT_FOUND,
        codes::ERROR_NETNAME_DELETED,
        codes::ERROR_FILE_CORRUPT,
    ];
    // two programs that have one file open: scanners and indexers do that to new files
    const PASSING: [u32; 6] = [
        codes::ERROR_SHARING_VIOLATION,
        codes::ERROR_LOCK_VIOLATION,
        codes::ERROR_TOO_MANY_OPEN_FILES,
        codes::ERROR_NOT_ENOUGH_MEMORY,
        codes::ERROR_NO_SYSTEM_RESOURCES,
        codes::ERROR_WORKING_SET_QUOTA,
    ];
    let number = number as u32;
    match class {
        ErrorClass::Passing => PASSING.contains(&number) || DISK.contains(&number),
        ErrorClass::Disk => DISK.contains(&number),
        ErrorClass::NoFile => matches!(
            number,
            codes::ERROR_FILE_NOT_FOUND
                | codes::ERROR_PATH_NOT_FOUND
                | codes::ERROR_CANT_RESOLVE_FILENAME
        ),
        ErrorClass::BadName => matches!(
            number,
            codes::ERROR_INVALID_NAME
                | codes::ERROR_FILENAME_EXCED_RANGE
                | codes::ERROR_CANT_RESOLVE_FILENAME
        ),
        ErrorClass::NoLocks => matches!(
            number,
            codes::ERROR_INVALID_FUNCTION | codes::ERROR_NOT_SUPPORTED
        ),
    }
}

pub(super) fn host_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

pub(super) fn online_cores() -> Option<usize> {
    None
}

pub(super) fn usable_cores() -> Option<usize> {
    None
}
