//! macOS: memory of the machine. The contracts are those of the functions of the same name in
//! [`super`]; what needs Linux returns `None` or does nothing.

use super::{MemoryRoom, Wanted};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;
use std::ptr::NonNull;

/// The limit is the machine's memory (`hw.memsize`). The memory left is read as free, inactive and
/// purgeable pages, which the system hands out on demand.
pub(super) fn memory_room(wanted: Wanted) -> Option<MemoryRoom> {
    let bytes = match wanted {
        Wanted::Limit => machine_memory()?,
        Wanted::Left => available_pages()?.saturating_mul(super::page_bytes() as u64),
    };
    Some(MemoryRoom {
        bytes,
        limit: "this machine".into(),
    })
}

fn machine_memory() -> Option<u64> {
    let (mut bytes, mut size) = (0u64, size_of::<u64>());
    // SAFETY: the name ends with a zero, and `bytes` has room for the `size` bytes of the answer
    let known = unsafe {
        libc::sysctlbyname(
            c"hw.memsize".as_ptr(),
            (&raw mut bytes).cast(),
            &mut size,
            std::ptr::null_mut(),
            0,
        )
    } == 0;
    known.then_some(bytes)
}

fn available_pages() -> Option<u64> {
    // SAFETY: plain data, for which zeros are a valid value
    let mut about: libc::vm_statistics64 = unsafe { std::mem::zeroed() };
    let mut words = libc::HOST_VM_INFO64_COUNT;
    // SAFETY: `about` has room for the `words` integers of the answer
    #[allow(deprecated)] // libc refers to another crate for mach_host_self; the call is the same
    let known = unsafe {
        libc::host_statistics64(
            libc::mach_host_self(),
            libc::HOST_VM_INFO64,
            (&raw mut about).cast(),
            &mut words,
        )
    } == libc::KERN_SUCCESS;
    known.then(|| {
        [
            about.free_count,
            about.inactive_count,
            about.purgeable_count,
        ]
        .into_iter()
        .map(u64::from)
        .sum()
    })
}

pub(super) fn anonymous_memory() -> Option<u64> {
    None
}

#[cfg(target_arch = "x86_64")]
pub(super) fn allow_tile_registers() -> bool {
    false
}

pub(super) fn is_network_file_system(_: &Path) -> bool {
    false
}

pub(super) unsafe fn advise_huge_pages(_: NonNull<u8>, _: usize) {}

pub(super) fn drop_from_page_cache(_: &File, _: usize, _: usize) {}

pub(super) fn is_resident(_: &Mmap, _: usize, _: usize) -> Option<bool> {
    None
}

/// Errors of a single block or connection that only this system has: none.
pub(super) fn is_disk_error(_: i32) -> bool {
    false
}

pub(super) fn usable_cores() -> Option<usize> {
    None
}
