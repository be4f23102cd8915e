//! Linux: how much memory this process may take (the machine's, that of every control group it is
//! in, versions 1 and 2, nested, and its own resource limits), its anonymous memory, network file
//! systems and the page cache. Promises the smallest of all memory limits together with its name,
//! so that a refusal can name the limit that it obeys.

use super::{MemoryRoom, Wanted, page_bytes};
use memmap2::Mmap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

/// See [`super::memory_left`].
pub(super) fn memory_room(wanted: Wanted) -> Option<MemoryRoom> {
    smallest(Path::new("/"), wanted)
}

/// See [`super::anonymous_memory`].
pub(super) fn anonymous_memory() -> Option<u64> {
    kilobytes(Path::new("/proc/self/status"), "RssAnon")
}

/// See [`super::is_network_file_system`].
pub(super) fn is_network_file_system(path: &Path) -> bool {
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
    // SAFETY: statfs is plain data, for which zeros are a valid value
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero, and `about` has room for the answer
    let known = unsafe { libc::statfs(path.as_ptr(), &mut about) } == 0;
    known && MAGIC.contains(&(about.f_type as u32))
}

/// See [`super::allow_tile_registers`]. The kernel saves tile registers only for processes that
/// asked for them, because they are large (Documentation/arch/x86/xstate.rst).
#[cfg(target_arch = "x86_64")]
pub(super) fn allow_tile_registers() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and only changes what this process may use
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

/// See [`super::drop_from_page_cache`].
pub(super) unsafe fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    const HUGE_PAGE: usize = 2 << 20;
    let before = start.as_ptr().align_offset(HUGE_PAGE);
    let whole = bytes.saturating_sub(before) / HUGE_PAGE * HUGE_PAGE;
    if whole > 0 {
        // SAFETY: the caller guarantees that the pages are allocated memory; the advice changes
        // none of their bytes, and a system that does not know it refuses it
        unsafe {
            let first = start.as_ptr().add(before);
            libc::madvise(first.cast(), whole, libc::MADV_HUGEPAGE);
        }
    }
}

pub(super) fn drop_from_page_cache(file: &File, start: usize, bytes: usize) {
    // SAFETY: a plain system call on an open file
    unsafe {
        libc::posix_fadvise(
            file.as_raw_fd(),
            start as i64,
            bytes as i64,
            libc::POSIX_FADV_DONTNEED,
        )
    };
}

/// See [`super::is_resident`].
pub(super) fn is_resident(map: &Mmap, start: usize, bytes: usize) -> Option<bool> {
    let part = map.get(start..start.checked_add(bytes)?)?;
    let mut pages = [0u8; 1024];
    for chunk in part.chunks(pages.len() * page_bytes()) {
        // SAFETY: the range lies in the map, and `pages` has a byte for each of its pages
        let known = unsafe {
            libc::mincore(
                chunk.as_ptr().cast_mut().cast(),
                chunk.len(),
                pages.as_mut_ptr().cast(),
            )
        };
        if known != 0 {
            return None;
        }
        let pages = &pages[..chunk.len().div_ceil(page_bytes())];
        if pages.iter().any(|page| page & 1 == 0) {
            return Some(false);
        }
    }
    Some(true)
}

/// Errors of a single block or connection that only this system has.
pub(super) fn is_disk_error(number: i32) -> bool {
    matches!(number, libc::EREMOTEIO | libc::EUCLEAN)
}

/// The smallest limit of a system whose root folder is `root` (the tests build their own).
fn smallest(root: &Path, wanted: Wanted) -> Option<MemoryRoom> {
    let key = if wanted == Wanted::Left {
        "MemAvailable"
    } else {
        "MemTotal"
    };
    let machine = kilobytes(&root.join("proc/meminfo"), key).map(|bytes| MemoryRoom {
        bytes,
        limit: "this machine".into(),
    });
    machine
        .into_iter()
        .chain(control_groups(root, wanted))
        .chain(resource_limits(root, wanted))
        .min_by_key(|room| room.bytes)
}

/// A number of kB from a line like `RssAnon:   123 kB`, in bytes.
fn kilobytes(path: &Path, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()
        .map(|kb| kb * 1024)
}

/// The names of the files of one version of control groups.
struct GroupVersion {
    /// Type of the file system in `mountinfo`.
    file_system: &'static str,
    /// Files that hold a limit.
    limits: &'static [&'static str],
    usage: &'static str,
    /// Lines of `memory.stat` with the file pages of a group and the groups below it.
    file_pages: [&'static str; 2],
}

/// The hierarchy of version 1 that accounts for memory. A group without a limit shows a number near
/// 2^63.
const V1: GroupVersion = GroupVersion {
    file_system: "cgroup",
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    file_pages: ["total_active_file", "total_inactive_file"],
};
/// GroupVersion 2. Above `memory.high` a group is slowed down until it hardly moves, so that counts as a
/// limit as well. No limit is `max`.
const V2: GroupVersion = GroupVersion {
    file_system: "cgroup2",
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    file_pages: ["active_file", "inactive_file"],
};

/// The limits of all control groups that this process is in.
fn control_groups(root: &Path, wanted: Wanted) -> Vec<MemoryRoom> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mut found = Vec::new();
    for line in groups.lines() {
        // hierarchy:controllers:path, where version 2 has number 0 and names no controllers
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) =
            (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let version = match (number, controllers) {
            ("0", "") => &V2,
            (_, names) if names.split(',').any(|name| name == "memory") => &V1,
            _ => continue,
        };
        if let Some((mounted, below)) = mount_of(&mounts, version, path) {
            found.extend(limits_upwards(root, &mounted, &below, version, wanted));
        }
    }
    found
}

/// Mount point of a version's hierarchy, and the path of the group `path` relative to it. Inside a
/// container the mount may begin at the container's own group while `path` is the one that the host
/// sees; a path that is not below the mount's root therefore yields the mount point itself.
fn mount_of(mounts: &str, version: &GroupVersion, path: &str) -> Option<(PathBuf, PathBuf)> {
    for line in mounts.lines() {
        // ID parent major:minor root mount-point options [optional fields] - type source
        // super-options
        let (Some(fields), Some((_, kind))) = (line.split(" - ").next(), line.split_once(" - "))
        else {
            continue;
        };
        let fields: Vec<&str> = fields.split(' ').collect();
        let kind: Vec<&str> = kind.split(' ').collect();
        let (Some(top), Some(point), Some(file_system), Some(options)) =
            (fields.get(3), fields.get(4), kind.first(), kind.get(2))
        else {
            continue;
        };
        let of_memory = version.file_system == V2.file_system
            || options.split(',').any(|option| option == "memory");
        if *file_system != version.file_system || !of_memory {
            continue;
        }
        let below = Path::new(path)
            .strip_prefix(top)
            .map(Path::to_path_buf)
            .unwrap_or_default();
        return Some((PathBuf::from(unescaped(point)), below));
    }
    None
}

/// A path of `mountinfo`, in which spaces and a few others are octal (`\040`).
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

/// The limits of a group and of all groups above it.
fn limits_upwards(
    root: &Path,
    mounted: &Path,
    below: &Path,
    version: &GroupVersion,
    wanted: Wanted,
) -> Vec<MemoryRoom> {
    let mut found = Vec::new();
    for group in below.ancestors() {
        let folder = root
            .join(mounted.strip_prefix("/").unwrap_or(mounted))
            .join(group);
        let number = |name: &str| {
            std::fs::read_to_string(folder.join(name))
                .ok()?
                .trim()
                .parse::<u64>()
                .ok()
        };
        for &name in version.limits {
            // "max" is no number; version 1 says 2^63 less a page
            let Some(limit) = number(name).filter(|&limit| limit < 1 << 62) else {
                continue;
            };
            let bytes = match wanted {
                Wanted::Limit => limit,
                Wanted::Left => {
                    let stat =
                        std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
                    let pages = |key: &str| -> u64 {
                        let value = stat.lines().find_map(|line| {
                            line.strip_prefix(key)?
                                .strip_prefix(' ')?
                                .trim()
                                .parse()
                                .ok()
                        });
                        value.unwrap_or(0)
                    };
                    let droppable: u64 = version.file_pages.iter().map(|key| pages(key)).sum();
                    limit.saturating_sub(
                        number(version.usage).unwrap_or(0).saturating_sub(droppable),
                    )
                }
            };
            found.push(MemoryRoom {
                bytes,
                limit: format!("control group /{} ({name})", group.display()),
            });
        }
    }
    found
}

/// The limits of this process on its address space and on its data.
fn resource_limits(root: &Path, wanted: Wanted) -> Vec<MemoryRoom> {
    let limits = std::fs::read_to_string(root.join("proc/self/limits")).unwrap_or_default();
    let status = root.join("proc/self/status");
    let rows = [
        ("Max address space", "VmSize", "ulimit -v (RLIMIT_AS)"),
        ("Max data size", "VmData", "ulimit -d (RLIMIT_DATA)"),
    ];
    let room = |(row, used, name): (&str, &str, &str)| {
        let soft = limits
            .lines()
            .find_map(|line| line.strip_prefix(row))?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()?;
        let used = if wanted == Wanted::Left {
            kilobytes(&status, used).unwrap_or(0)
        } else {
            0
        };
        Some(MemoryRoom {
            bytes: soft.saturating_sub(used),
            limit: name.to_string(),
        })
    };
    rows.into_iter().filter_map(room).collect()
}

pub(super) fn usable_cores() -> Option<usize> {
    // SAFETY: a set of cores is plain data; the call writes one whose size it is given
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let done = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) == 0;
        done.then(|| libc::CPU_COUNT(&set) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A root folder with the files of a system: 8 GiB of memory, 6 of them free, and `files`.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal:        8388608 kB\nMemFree:  1 kB\nMemAvailable:    6291456 kB\n";
        for (path, text) in [("proc/meminfo", meminfo)].iter().chain(files) {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    fn both(dir: &tempfile::TempDir) -> [(u64, String); 2] {
        [Wanted::Limit, Wanted::Left].map(|wanted| {
            smallest(dir.path(), wanted)
                .map(|room| (room.bytes / MIB, room.limit))
                .unwrap()
        })
    }

    #[test]
    fn without_limits_the_machine_counts() {
        assert_eq!(
            both(&system(&[])),
            [(8192, "this machine".into()), (6144, "this machine".into())]
        );
    }

    #[test]
    fn the_smallest_of_nested_groups_of_version_2_counts() {
        let mounts =
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let dir = system(&[
            ("proc/self/cgroup", "0::/box/job\n"),
            ("proc/self/mountinfo", mounts),
            ("sys/fs/cgroup/box/memory.max", "536870912\n"),
            ("sys/fs/cgroup/box/memory.high", "max\n"),
            ("sys/fs/cgroup/box/memory.current", "314572800\n"),
            (
                "sys/fs/cgroup/box/memory.stat",
                "anon 1\nactive_file 20971520\ninactive_file 83886080\n",
            ),
            ("sys/fs/cgroup/box/job/memory.max", "max\n"),
        ]);
        let limit = "control group /box (memory.max)".to_string();
        // 300 MiB are held, of which 100 are file pages
        assert_eq!(both(&dir), [(512, limit.clone()), (312, limit)]);
        std::fs::write(
            dir.path().join("sys/fs/cgroup/box/job/memory.high"),
            "104857600",
        )
        .unwrap();
        assert_eq!(
            both(&dir)[0],
            (100, "control group /box/job (memory.high)".into())
        );
    }

    #[test]
    fn version_1_counts_inside_and_outside_of_a_container() {
        let limit = [
            ("memory.limit_in_bytes", "268435456\n"),
            ("memory.usage_in_bytes", "10485760\n"),
        ];
        // from outside: the whole hierarchy is mounted
        let outside = system(&[
            (
                "proc/self/cgroup",
                "9:name=systemd:/\n4:memory:/docker/abc\n0::/\n",
            ),
            (
                "proc/self/mountinfo",
                "40 30 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n41 30 0:34 / /sys/fs/u rw - cgroup2 none rw\n",
            ),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            (
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes",
                limit[0].1,
            ),
            (
                "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes",
                limit[1].1,
            ),
        ]);
        let name = "control group /docker/abc (memory.limit_in_bytes)".to_string();
        assert_eq!(both(&outside), [(256, name.clone()), (246, name)]);
        // from inside: the mount begins at the container's group; its mount point has a space
        let inside = system(&[
            ("proc/self/cgroup", "4:cpu,memory:/docker/abc\n"),
            (
                "proc/self/mountinfo",
                "40 30 0:33 /docker/abc /sys/fs/c\\040g rw - cgroup cgroup rw,cpu,memory\n",
            ),
            ("sys/fs/c g/memory.limit_in_bytes", limit[0].1),
            ("sys/fs/c g/memory.usage_in_bytes", limit[1].1),
        ]);
        assert_eq!(
            both(&inside)[1],
            (246, "control group / (memory.limit_in_bytes)".into())
        );
        // a path as the host sees it
        std::fs::write(
            inside.path().join("proc/self/cgroup"),
            "4:memory:/../other\n",
        )
        .unwrap();
        assert_eq!(both(&inside)[0].0, 256);
    }

    #[test]
    fn resource_limits_count() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max data size             unlimited            unlimited            bytes     \n\
                      Max address space         209715200            unlimited            bytes     \n";
        let dir = system(&[
            ("proc/self/limits", limits),
            (
                "proc/self/status",
                "VmSize:\t   51200 kB\nVmData:\t 100 kB\n",
            ),
        ]);
        assert_eq!(
            both(&dir),
            [
                (200, "ulimit -v (RLIMIT_AS)".into()),
                (150, "ulimit -v (RLIMIT_AS)".into())
            ]
        );
    }
}
