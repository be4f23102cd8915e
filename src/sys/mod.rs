//! What the operating system says of this process: memory that cannot be dropped, the machine's
//! size, room on a disk. Linux only; other systems get `None`.

pub mod host_memory;
mod memory;

use memory::kilobytes;
pub use memory::{MemoryRoom, memory_left, memory_limit};

/// Anonymous memory of this process in bytes: heap and stacks, without mapped files (whose pages
/// the kernel may drop).
pub fn anonymous_memory() -> Option<u64> {
    kilobytes(std::path::Path::new("/proc/self/status"), "RssAnon")
}

/// Memory that this process could still take, bytes; see [`memory_left`].
pub fn available_memory() -> Option<u64> {
    memory_left().map(|room| room.bytes)
}

/// Bytes of the disk a path lies on that this user may still take.
#[cfg(unix)]
pub fn free_space(path: &std::path::Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: statvfs is plain data, and the path ends with a zero
    let mut about: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: as above
    let known = unsafe { libc::statvfs(path.as_ptr(), &mut about) } == 0;
    known.then(|| (about.f_bavail as u64).saturating_mul(about.f_frsize as u64))
}

/// See the Unix version.
#[cfg(not(unix))]
pub fn free_space(_: &std::path::Path) -> Option<u64> {
    None
}

/// Whether a path lies on a file system whose errors come from a network: reading through a map
/// would turn them into the end of the process. False where the system does not say.
#[cfg(target_os = "linux")]
pub fn is_network_file_system(path: &std::path::Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    /// NFS, SMB, CIFS, SMB2, 9p, FUSE (sshfs and others), Ceph, Lustre, GPFS, AFS: magic numbers of
    /// statfs(2).
    const MAGIC: [u32; 10] = [
        0x6969,
        0x517B,
        0xFF53_4D42,
        0xFE53_4D42,
        0x0102_1997,
        0x6573_5546,
        0x00C3_6400,
        0x0BD0_0BD0,
        0x4750_4653,
        0x5346_414F,
    ];
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: statfs is plain data, and the path ends with a zero
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: as above
    let known = unsafe { libc::statfs(path.as_ptr(), &mut about) } == 0;
    known && MAGIC.contains(&(about.f_type as u32))
}

/// See the Linux version.
#[cfg(not(target_os = "linux"))]
pub fn is_network_file_system(_: &std::path::Path) -> bool {
    false
}
