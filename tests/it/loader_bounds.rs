//! The loader's memory: the figure computed before the start holds under a hard limit of the
//! system; memory does not grow with epochs, early ends or the size of the set; and a loader that
//! does not fit is refused.
#![cfg(target_os = "linux")]

use crate::common::process::{exclusive, in_own_process};
use crate::{cli_common, shard_common};

use cli_common::{Ran, paragon};
use image::{Rgb, RgbImage};
use paragon::loader::{Loader, LoaderConfig, Sources, bound};
use paragon::shard::codec::Codec;
use paragon::shard::reader::ShardSet;
use paragon::sys::anonymous_memory;
use shard_common::small_set;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that a process of paragon may take in addition to the loader's own figure: the program's
/// data, the stack of its first thread, argument parsing, JSON, and the allocator's reserve.
const PROCESS_BYTES: u64 = 12 << 20;

/// A set of many tiny pairs: one image of `side` pixels in patches of LQ 8.
fn many_pairs(side: u32) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    RgbImage::from_fn(side, side, |x, y| {
        Rgb([(x / 3) as u8, (y / 5) as u8, (x + y) as u8])
    })
    .save(data.join("a.png"))
    .unwrap();
    let out = dir.path().join("set");
    let flags = ["--lq-size", "8", "--keep-duplicates", "--out"].map(std::ffi::OsStr::new);
    let set = [
        &["shard".as_ref(), data.as_os_str()][..],
        &flags,
        &[out.as_os_str()],
    ]
    .concat();
    Ran::from(paragon(&set).output().unwrap()).ok();
    (dir, out)
}

/// `paragon bench loader --json` in a process that may have `limit` bytes of data; `None` for no
/// limit.
fn bench(set: &Path, flags: &[&str], limit: Option<u64>) -> Ran {
    let mut command = paragon(&["bench", "loader", "--json", "--shards"]);
    command.arg(set).args(flags);
    if let Some(bytes) = limit {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: bytes,
        };
        // SAFETY: a system call that is allowed between fork and exec
        unsafe {
            command.pre_exec(move || {
                if libc::setrlimit(libc::RLIMIT_DATA, &limit) == 0 {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            })
        };
    }
    command.output().unwrap().into()
}

fn report(ran: &Ran) -> serde_json::Value {
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn an_epoch_of_a_large_set_fits_the_printed_bound_under_a_hard_limit() {
    let _turn = exclusive();
    let (_dir, set) = many_pairs(4096);
    let flags = [
        "--batch",
        "4096",
        "--slots",
        "6",
        "--threads",
        "2",
        "--epochs",
        "1",
    ];
    let free = report(&bench(&set, &flags, None).ok());
    let computed = free["bound"].as_u64().unwrap();
    assert!(
        computed > 2 * PROCESS_BYTES,
        "{computed} bytes are too few for this test"
    );
    for io in ["mmap", "pread"] {
        let held = bench(
            &set,
            &[&flags[..], &["--io", io]].concat(),
            Some(computed + PROCESS_BYTES),
        )
        .ok();
        let run = &report(&held)["runs"][0];
        assert_eq!(run["pairs"], 65_536, "{run}");
        assert!(run["peak_anonymous"].as_u64().unwrap() <= computed, "{run}");
    }
    // The limit is effective: with less, the system refuses memory, which is reported as an error.
    bench(&set, &flags, Some(PROCESS_BYTES)).refused(1, &["memory left"]);
    bench(&set, &[&flags[..], &["--host-memory", "1M"]].concat(), None)
        .refused(1, &["--host-memory allows", "nothing was started"]);
}

#[test]
fn memory_does_not_depend_on_the_number_of_records() {
    let _turn = exclusive();
    let (_small_dir, small) = many_pairs(512);
    let (_large_dir, large) = many_pairs(4096);
    let flags = ["--batch", "64", "--threads", "2", "--seconds", "0.3"];
    let [small, large] = [small, large].map(|set| report(&bench(&set, &flags, None).ok()));
    assert!(
        small["records"] == 1024 && large["records"] == 65_536,
        "{small} {large}"
    );
    assert_eq!(small["bound"], large["bound"]);
    let peak = |r: &serde_json::Value| r["runs"][0]["peak_anonymous"].as_u64().unwrap();
    assert!(
        peak(&small).abs_diff(peak(&large)) < 512 << 10,
        "{small} {large}"
    );
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// The number of threads without those that were joined; the system lists a thread for a moment
/// after a join has returned. Waits for up to ten seconds while there are more than `expected`.
fn threads_after_join(expected: usize) -> usize {
    let started = Instant::now();
    while threads() > expected && started.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    threads()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_hundred_epochs_and_a_hundred_early_ends_leave_nothing_behind() {
    let _turn = exclusive();
    // Memory, threads and descriptors are counted for the whole process.
    if !in_own_process(concat!(
        module_path!(),
        "::a_hundred_epochs_and_a_hundred_early_ends_leave_nothing_behind"
    )) {
        return;
    }
    let (_dir, folder) = small_set(12, Codec::Predict);
    let sources = Arc::new(Sources::from(Arc::new(ShardSet::open(&folder).unwrap())));
    let config = LoaderConfig {
        threads: 3,
        ..LoaderConfig::new(8, 16, 5)
    };
    let computed = bound(&sources, &config).unwrap().total();
    let epoch = |loader: &mut Loader| {
        (0..sources.len().div_ceil(8)).for_each(|_| drop(loader.next().unwrap()))
    };
    let mut loader = Loader::start(sources.clone(), config.clone()).unwrap();
    epoch(&mut loader);
    let (memory, open) = (anonymous_memory().unwrap(), descriptors());
    for _ in 0..100 {
        epoch(&mut loader);
        assert!(
            anonymous_memory().unwrap() <= memory + computed / 4,
            "memory grows with epochs"
        );
        assert_eq!(descriptors(), open);
    }
    let working = threads();
    drop(loader);
    let before = threads_after_join(working - config.threads);
    for i in 0..100u64 {
        let mut loader = Loader::start(sources.clone(), config.clone()).unwrap();
        (0..i % 5).for_each(|_| drop(loader.next().unwrap()));
        drop(loader);
        assert_eq!(
            (threads_after_join(before), descriptors()),
            (before, open),
            "after early end {i}"
        );
    }
    let after = anonymous_memory().unwrap();
    assert!(
        after <= memory + computed / 2,
        "{after} bytes after a hundred early ends, {memory} before"
    );
}
