//! Errors of the system while sets are made, read and checked: the call is retried, then the
//! command stops with the reason, and the error is never reported as a fault of an image or as
//! damage of a set. Also folders from others, and damage that is covered by correct checksums.
#![cfg(target_os = "linux")]

use crate::common::process::rerun;
use crate::shard_common::faults;
use crate::{cli_common, fuzz_common, shard_common};

use cli_common::{Ran, paragon, run, text};
use faults::inject;
use fuzz_common::{install, reseal};
use paragon::shard::codec::Codec;
use paragon::shard::manifest::Manifest;
use paragon::shard::merge::merge;
use paragon::shard::plan::BuildConfig;
use paragon::shard::reader::{Io, ShardSet};
use paragon::shard::tools;
use shard_common::{config, files, make, make_writable, picture, pictures, small_set};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

const EIO: i32 = libc::EIO;

fn nothing() -> paragon::support::progress::Progress {
    paragon::support::progress::Progress::hidden()
}

fn shard_arguments<'a>(data: &'a Path, out: &'a Path) -> Vec<&'a str> {
    vec![
        "shard",
        text(data),
        "--out",
        text(out),
        "--lq-size",
        "16",
        "--threads",
        "2",
        "--json",
    ]
}

/// Runs a command in which system calls fail.
fn faulty(arguments: &[&str], call: &str, errno: i32, when: (u64, i64), marker: &str) -> Ran {
    let mut command = paragon(arguments);
    inject(&mut command, call, errno, when, marker)
        .output()
        .unwrap()
        .into()
}

fn no_damage(ran: &Ran) {
    let all = format!("{}{}", ran.stdout, ran.stderr);
    for word in ["damaged", "--overwrite", "make the set again"] {
        assert!(!all.contains(word), "'{word}' in {all}");
    }
}

/// Images, and the files of the set that an undisturbed run makes from them.
fn expected() -> (
    tempfile::TempDir,
    PathBuf,
    PathBuf,
    std::collections::BTreeMap<String, Vec<u8>>,
) {
    let dir = tempfile::tempdir().unwrap();
    let (data, out, whole) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("whole"),
    );
    pictures(&data, 6);
    run(&shard_arguments(&data, &whole)).ok();
    let files = files(&whole);
    (dir, data, out, files)
}

#[test]
fn a_passing_error_of_the_system_changes_nothing() {
    let (_dir, data, out, whole) = expected();
    for (call, errno) in [
        ("read", EIO),
        ("open", libc::EMFILE),
        ("open", libc::ENFILE),
        ("read", libc::ENOMEM),
    ] {
        // While headers are read, and while images are converted.
        for skip in [0, 1, 2] {
            let _ = fs::remove_dir_all(&out);
            faulty(
                &shard_arguments(&data, &out),
                call,
                errno,
                (skip, 2),
                "p002.png",
            )
            .ok();
            assert!(files(&out) == whole, "{call} {errno} {skip}");
        }
    }
}

#[test]
fn a_lasting_error_of_the_system_stops_the_run_and_is_not_recorded() {
    let (_dir, data, out, whole) = expected();
    for errno in [EIO, libc::EMFILE, libc::EACCES, libc::ENOENT] {
        for skip in [0, 1] {
            let _ = fs::remove_dir_all(&out);
            let ran = faulty(
                &shard_arguments(&data, &out),
                "open",
                errno,
                (skip, -1),
                "p002.png",
            )
            .refused(1, &["p002.png", "system"]);
            no_damage(&ran);
            assert!(!ran.stderr.contains("rejected"), "{}", ran.stderr);
            assert!(!out.join("manifest.psm").exists());
            // The same command resumes, and uses that image.
            run(&shard_arguments(&data, &out)).ok();
            assert!(files(&out) == whole, "{errno} {skip}");
        }
    }
}

#[test]
fn a_picture_that_changes_or_goes_during_the_run_stops_it() {
    let (_dir, data, out, _) = expected();
    let path = data.join("p002.png");
    let whole = fs::read(&path).unwrap();
    let changes: [(&str, Option<&[u8]>); 4] = [
        ("grown", Some(&[&whole[..], b"more"].concat())),
        ("cut", Some(&whole[..whole.len() / 2])),
        ("emptied", Some(b"")),
        ("gone", None),
    ];
    for (what, bytes) in changes {
        fs::write(&path, &whole).unwrap();
        let wanted = config(&data, &out);
        let planned = paragon::shard::plan::plan(&wanted).unwrap();
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = format!(
            "{:#}",
            paragon::shard::writer::build(&wanted, planned, &nothing()).unwrap_err()
        );
        assert!(
            error.contains("p002.png") && error.contains("same command"),
            "{what}: {error}"
        );
        assert!(!out.join("manifest.psm").exists(), "{what}");
    }
    // With the image as it was planned, the run resumes.
    fs::write(&path, &whole).unwrap();
    assert_eq!(make(&config(&data, &out)).unwrap().rejected.len(), 0);
}

#[test]
fn up_to_five_files_are_named_before_anything_is_made() {
    let (_dir, data, out, _) = expected();
    let ran = faulty(&shard_arguments(&data, &out), "read", EIO, (0, -1), ".png")
        .refused(1, &["run the same command again"]);
    let named = (0..6)
        .filter(|i| ran.stderr.contains(&format!("p00{i}.png")))
        .count();
    assert!((1..=5).contains(&named) && !out.exists(), "{}", ran.stderr);
    no_damage(&ran);
}

#[test]
fn a_finished_set_that_the_system_cannot_read_is_not_called_damaged() {
    let (_dir, data, out, whole) = expected();
    run(&shard_arguments(&data, &out)).ok();
    let append = [&shard_arguments(&data, &out)[..], &["--append"]].concat();
    for arguments in [shard_arguments(&data, &out), append] {
        for (call, errno, marker) in [
            ("open", libc::EMFILE, "shard-00000"),
            ("open", libc::EACCES, "manifest.psm"),
            ("pread", EIO, "shard-0"),
        ] {
            let ran =
                faulty(&arguments, call, errno, (0, -1), marker).refused(1, &["system", marker]);
            no_damage(&ran);
        }
    }
    assert!(files(&out) == whole);
}

#[test]
fn an_interrupted_set_that_the_system_cannot_read_is_not_begun_anew() {
    let (_dir, data, out, whole) = expected();
    // Interrupted by an error of the last image.
    faulty(
        &shard_arguments(&data, &out),
        "open",
        EIO,
        (1, -1),
        "p005.png",
    )
    .refused(1, &["p005.png"]);
    let left = files(&out);
    assert!(left.contains_key("journal.psj"));
    for (call, marker) in [
        ("read", "journal.psj"),
        ("read", ".psh.partial"),
        ("open", "journal.psj"),
    ] {
        if marker == ".psh.partial" && !left.keys().any(|n| n.ends_with(marker)) {
            continue;
        }
        let ran = faulty(&shard_arguments(&data, &out), call, EIO, (0, -1), marker);
        no_damage(&ran.refused(1, &["Input/output error"]));
        assert!(files(&out) == left, "{call} {marker}");
    }
    run(&shard_arguments(&data, &out)).ok();
    assert!(files(&out) == whole);
}

#[test]
fn verify_extract_and_sheet_name_a_failing_disk_and_not_damage() {
    let (_dir, out) = small_set(14, Codec::Predict);
    let records = ShardSet::open(&out).unwrap().len();
    for skip in [0, 12] {
        let verify = faulty(
            &["shards", "verify", text(&out), "--threads", "1"],
            "pread",
            EIO,
            (skip, -1),
            "shard-00000",
        );
        let verify = verify.refused(1, &["error of the system"]);
        assert!(
            verify.stdout.contains("shard-00000.psh")
                && verify.stdout.contains("Input/output error"),
            "{}",
            verify.stdout
        );
        no_damage(&verify);
    }
    let last = (records - 1).to_string();
    let pictures = out.with_file_name("pictures");
    let sheet = out.with_file_name("sheet.png");
    for arguments in [
        &[
            "shards",
            "extract",
            text(&out),
            "--record",
            &last,
            "--out",
            text(&pictures),
        ][..],
        &["shards", "sheet", text(&out), text(&sheet)],
        &["shards", "info", text(&out)],
    ] {
        no_damage(
            &faulty(arguments, "pread", EIO, (0, -1), ".psh")
                .refused(1, &["Input/output error", ".psh"]),
        );
    }
    // Many unreadable records end the check early, because retries would take hours; they are
    // counted.
    let many = faulty(
        &["shards", "verify", text(&out), "--threads", "4", "--json"],
        "pread",
        EIO,
        (40, -1),
        ".psh",
    );
    let found: serde_json::Value =
        serde_json::from_str(&many.refused(1, &["not looked at"]).stdout).unwrap();
    assert!(
        found["unchecked"].as_u64() > Some(0) && found["damaged"].as_array().unwrap().is_empty(),
        "{found}"
    );
    // A record is whole if a read fails first and then succeeds.
    faulty(
        &["shards", "verify", text(&out)],
        "pread",
        EIO,
        (9, 2),
        "shard-00000",
    )
    .ok();
    // A record that cannot be read does not hide the damage of another.
    let path = out.join("shard-00000.psh");
    let mut bytes = fs::read(&path).unwrap();
    bytes[70] ^= 1;
    make_writable(&path);
    fs::write(&path, bytes).unwrap();
    let both = faulty(
        &["shards", "verify", text(&out), "--threads", "1"],
        "pread",
        EIO,
        (0, -1),
        "shard-00001",
    );
    let both = both.refused(1, &["error of the system", "damaged"]);
    assert!(
        both.stdout.contains("cannot be read: ") && both.stdout.contains("damaged: "),
        "{}",
        both.stdout
    );
}

#[test]
fn many_shards_need_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 120);
    let made = make(&BuildConfig {
        shard_bytes: 8 << 10,
        codec: Codec::Raw,
        ..config(&data, &out)
    })
    .unwrap();
    assert!(made.shards > 70, "{}", made.shards);
    let limited = |arguments: &[&str]| -> Ran {
        let mut command = paragon(arguments);
        let limit = || {
            let limit = libc::rlimit {
                rlim_cur: 40,
                rlim_max: 40,
            };
            // SAFETY: a system call that is allowed between fork and exec
            if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        };
        // SAFETY: see above
        unsafe { command.pre_exec(limit) }.output().unwrap().into()
    };
    limited(&["shards", "verify", text(&out), "--threads", "2"]).ok();
    limited(&["shards", "info", text(&out)]).ok();
    let run_folder = dir.path().join("run");
    for io in ["pread", "mmap"] {
        let _ = fs::remove_dir_all(&run_folder);
        let flags = [
            "--iterations",
            "4",
            "--batch-size",
            "16",
            "--threads",
            "1",
            "--io",
            io,
        ];
        limited(
            &[
                &["train", "--shards", text(&out), "--out", text(&run_folder)][..],
                &flags,
            ]
            .concat(),
        )
        .ok();
    }
}

#[test]
fn a_shard_that_was_replaced_is_not_read_by_the_old_index() {
    let (_dir, out) = small_set(4, Codec::Raw);
    let set = ShardSet::open(&out).unwrap();
    let path = out.join("shard-00000.psh");
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    fs::write(&path, bytes).unwrap();
    let g = set.geometry();
    let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
    let error = set
        .read(
            0,
            &mut set.scratch_for(Io::Pread).unwrap(),
            &mut lq,
            &mut hr,
        )
        .unwrap_err();
    assert!(format!("{error:#}").contains("replaced"), "{error:#}");
    // The memory map is still that of the old file.
    set.read(0, &mut set.scratch_for(Io::Mmap).unwrap(), &mut lq, &mut hr)
        .unwrap();
}

#[test]
fn training_takes_no_other_record_for_one_that_the_system_cannot_read() {
    let (dir, out) = small_set(4, Codec::Raw);
    let run_folder = dir.path().join("run");
    let flags = [
        "--iterations",
        "200",
        "--batch-size",
        "2",
        "--threads",
        "1",
        "--io",
        "pread",
        "--on-corrupt",
        "substitute",
    ];
    let arguments = [
        &["train", "--shards", text(&out), "--out", text(&run_folder)][..],
        &flags,
    ]
    .concat();
    let ran = faulty(&arguments, "pread", EIO, (30, -1), ".psh")
        .refused(1, &["Input/output error", ".psh"]);
    assert!(!ran.stderr.contains("takes its place"), "{}", ran.stderr);
}

/// Reads a set through the memory map after its first shard was truncated, in a process of its own.
#[test]
fn a_mapped_shard_that_is_cut_ends_the_process_with_its_name() {
    const NAME: &str = concat!(
        module_path!(),
        "::a_mapped_shard_that_is_cut_ends_the_process_with_its_name"
    );
    const VARIABLE: &str = "PARAGON_TEST_CUT_SET";
    if let Some(folder) = std::env::var_os(VARIABLE).map(PathBuf::from) {
        let set = ShardSet::open(&folder).unwrap();
        let path = folder.join("shard-00000.psh");
        make_writable(&path);
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        let g = set.geometry();
        let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
        let error = set
            .read(
                0,
                &mut set.scratch_for(Io::Pread).unwrap(),
                &mut lq,
                &mut hr,
            )
            .unwrap_err();
        assert!(
            format!("{error:#}").contains("shard-00000.psh"),
            "{error:#}"
        );
        let _ = set.read(0, &mut set.scratch_for(Io::Mmap).unwrap(), &mut lq, &mut hr);
        unreachable!("the map of an empty file was read");
    }
    let (_dir, out) = small_set(4, Codec::Raw);
    let ran: Ran = rerun(NAME).env(VARIABLE, &out).output().unwrap().into();
    ran.refused(
        1,
        &[
            "error: reading shard ",
            text(&out.join("shard-00000.psh")),
            "paragon shards verify",
            "--io pread",
        ],
    );
}

#[test]
fn training_by_map_on_a_shard_that_is_cut_ends_with_its_name() {
    let (dir, out) = small_set(4, Codec::Raw);
    let run_folder = dir.path().join("run");
    let flags = [
        "--iterations",
        "1000000",
        "--batch-size",
        "2",
        "--log-every",
        "1",
        "--threads",
        "1",
        "--io",
        "mmap",
    ];
    let arguments = [
        &["train", "--shards", text(&out), "--out", text(&run_folder)][..],
        &flags,
    ]
    .concat();
    let child = paragon(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !run_folder.join("log.jsonl").exists() && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(20));
    }
    for (name, _) in files(&out)
        .iter()
        .filter(|(name, _)| name.ends_with(".psh"))
    {
        make_writable(&out.join(name));
        fs::OpenOptions::new()
            .write(true)
            .open(out.join(name))
            .unwrap()
            .set_len(0)
            .unwrap();
    }
    let ran: Ran = child.wait_with_output().unwrap().into();
    ran.refused(1, &["reading shard ", ".psh", "--io pread"]);
}

#[test]
fn without_locks_shard_and_train_go_on_with_a_warning() {
    let (dir, data, out, whole) = expected();
    for errno in [libc::ENOLCK, libc::EOPNOTSUPP, libc::ENOSYS] {
        let _ = fs::remove_dir_all(&out);
        let ran = faulty(
            &shard_arguments(&data, &out),
            "flock",
            errno,
            (0, -1),
            ".lock",
        )
        .ok();
        assert!(ran.stderr.contains("has no locks"), "{}", ran.stderr);
        // The additional file is the lock file, which must not be removed without a lock.
        assert_eq!(files(&out).len(), whole.len() + 1);
    }
    let run_folder = dir.path().join("run");
    let flags = ["--iterations", "1", "--batch-size", "2", "--threads", "1"];
    let arguments = [
        &["train", "--shards", text(&out), "--out", text(&run_folder)][..],
        &flags,
    ]
    .concat();
    let ran = faulty(&arguments, "flock", libc::ENOLCK, (0, -1), ".lock").ok();
    assert!(
        ran.stderr.contains("has no locks") || ran.stdout.contains("has no locks"),
        "{}{}",
        ran.stdout,
        ran.stderr
    );
    // Any other error of locking is reported.
    let _ = fs::remove_dir_all(&out);
    faulty(
        &shard_arguments(&data, &out),
        "flock",
        EIO,
        (0, -1),
        ".lock",
    )
    .refused(1, &["cannot lock", ".lock"]);
}

#[test]
fn links_and_fifos_in_the_folder_of_a_set_are_neither_followed_nor_waited_for() {
    let (dir, data, out, whole) = expected();
    let precious = dir.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    for name in [
        "journal.psj",
        ".lock",
        ".shard-00000.psh.partial",
        "shard-00000.psh",
    ] {
        for fifo in [false, true] {
            let _ = fs::remove_dir_all(&out);
            fs::create_dir(&out).unwrap();
            let path = out.join(name);
            if fifo {
                assert!(
                    Command::new("mkfifo")
                        .arg(&path)
                        .status()
                        .unwrap()
                        .success()
                );
            } else {
                symlink(&precious, &path).unwrap();
            }
            let ran = run(&shard_arguments(&data, &out));
            assert_eq!(fs::read(&precious).unwrap(), b"precious", "{name}");
            // Either a file of paragon replaces it, or the command refuses it by name.
            match ran.code {
                Some(0) => assert!(files(&out) == whole, "{name}"),
                _ => drop(ran.refused(1, &[name])),
            }
        }
    }
    // Reading a device would never end.
    let _ = fs::remove_dir_all(&out);
    fs::create_dir(&out).unwrap();
    symlink("/dev/zero", out.join("manifest.psm")).unwrap();
    run(&shard_arguments(&data, &out)).refused(1, &["manifest.psm"]);
    run(&["shards", "verify", text(&out)]).refused(1, &["manifest.psm"]);
}

/// Offsets in the shard of [`part`] that [`spoil`] changes.
struct Layout {
    sources_at: usize,
    index_at: usize,
    footer: usize,
}

/// A set that is the only part of a larger one, so that it can be opened, verified and merged.
fn part() -> (tempfile::TempDir, PathBuf, Manifest, Vec<u8>, Layout) {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    fs::create_dir_all(&data).unwrap();
    for i in 0..3 {
        picture(70, 64, i)
            .save(data.join(format!("picture{i}.png")))
            .unwrap();
    }
    make(&BuildConfig {
        part: Some((1, 1)),
        codec: Codec::Raw,
        shard_bytes: 1 << 20,
        ..config(&data, &out)
    })
    .unwrap();
    let shard = fs::read(out.join("shard-00000.psh")).unwrap();
    let footer = shard.len() - 72;
    let at = |place: usize| {
        u64::from_le_bytes(
            shard[footer + place..footer + place + 8]
                .try_into()
                .unwrap(),
        ) as usize
    };
    let layout = Layout {
        sources_at: at(16),
        index_at: at(24),
        footer,
    };
    let manifest = Manifest::read(&out).unwrap();
    (dir, out, manifest, shard, layout)
}

#[test]
fn what_a_reader_must_refuse_is_refused_by_open_verify_and_merge() {
    let (dir, out, manifest, shard, at) = part();
    let whole = dir.path().join("whole");
    merge(&whole, std::slice::from_ref(&out), false, &nothing()).unwrap();
    type Spoil = Box<dyn Fn(&mut Vec<u8>)>;
    let put = |place: usize, bytes: &'static [u8]| -> Spoil {
        Box::new(move |b: &mut Vec<u8>| b[place..place + bytes.len()].copy_from_slice(bytes))
    };
    let names = at.sources_at + 3 * 32;
    let (index, name_length) = (at.index_at, at.sources_at + 4);
    let cases: Vec<(&str, Spoil)> = vec![
        ("another scale", Box::new(|b| b[20] = 1)),
        ("another LQ side", Box::new(|b| b[24] = 8)),
        ("another number", Box::new(|b| b[40] = 1)),
        (
            "records that overlap",
            Box::new(move |b| b[index + 32] -= 1),
        ),
        (
            "the first record after a gap",
            Box::new(move |b| b[index] += 1),
        ),
        (
            "a record that is too large",
            Box::new(move |b| {
                b[index + 8..index + 12].copy_from_slice(&(1u32 << 20).to_le_bytes())
            }),
        ),
        (
            "a record beyond the file",
            Box::new(move |b| b[index..index + 8].copy_from_slice(&u64::MAX.to_le_bytes())),
        ),
        (
            "a source that does not exist",
            Box::new(move |b| b[index + 16] = 3),
        ),
        ("sources out of order", Box::new(move |b| b[index + 16] = 1)),
        ("an unknown codec", Box::new(move |b| b[index + 28] = 9)),
        ("an escape code in a name", put(names, b"\x1b[2J")),
        ("a new line in a name", put(names + 2, b"\n")),
        ("a name that leads out", put(names, b"../x")),
        ("a name that leads out further down", put(names, b"a/../b")),
        ("a name from the root", put(names, b"/")),
        ("a name that is not UTF-8", put(names, b"\xff")),
        ("a name beyond the table", put(name_length, b"\xff\x0f\0\0")),
        ("a C1 control in a name", put(names, "\u{9b}2J".as_bytes())),
    ];
    for (what, spoil) in cases {
        let mut bytes = shard.clone();
        spoil(&mut bytes);
        reseal(&mut bytes);
        assert!(at.footer < bytes.len());
        install(&out, &manifest, &bytes);
        assert!(ShardSet::open(&out).is_err(), "{what}: opened");
        match tools::verify(&out, &nothing()) {
            Ok(found) => assert!(
                !found.damaged.is_empty() && found.unreadable.is_empty(),
                "{what}: verified"
            ),
            Err(e) => assert!(format!("{e:#}").contains("newer"), "{what}: {e:#}"),
        }
        let merged = dir.path().join("merged");
        assert!(
            merge(&merged, std::slice::from_ref(&out), false, &nothing()).is_err(),
            "{what}: merged"
        );
        let verify = run(&["shards", "verify", text(&out)]).refused(1, &[]);
        assert!(
            !verify.stdout.contains(['\x1b', '\u{9b}'])
                && !verify.stderr.contains(['\x1b', '\u{9b}']),
            "{what}"
        );
    }
    // Manifests with impossible counts.
    install(&out, &manifest, &shard);
    let good = Manifest::read(&out).unwrap();
    let spoiled: [fn(&mut Manifest); 4] = [
        |m| m.extra.crop = 17,
        |m| m.extra.part = (3, 2),
        |m| {
            m.shards = vec![
                paragon::shard::manifest::ShardInfo {
                    records: u64::MAX,
                    ..m.shards[0].clone()
                };
                2
            ]
        },
        |m| m.shards[0].sources += 1,
    ];
    for (i, spoil) in spoiled.iter().enumerate() {
        let mut bad = good.clone();
        spoil(&mut bad);
        fs::remove_file(out.join("manifest.psm")).unwrap();
        bad.write(&out).unwrap();
        assert!(ShardSet::open(&out).is_err(), "manifest {i}");
        run(&["shards", "verify", text(&out)]).refused(1, &[]);
        assert!(
            merge(
                &dir.path().join("merged"),
                std::slice::from_ref(&out),
                false,
                &nothing()
            )
            .is_err(),
            "manifest {i}"
        );
    }
}

#[test]
fn a_newer_format_asks_for_a_newer_paragon_and_not_for_a_new_set() {
    let (_dir, out, manifest, shard, at) = part();
    let newer: [(&str, usize, u8); 3] = [
        ("major version", 8, 2),
        ("feature", 12, 4),
        ("codec", at.index_at + 28, 7),
    ];
    for (what, place, value) in newer {
        let mut bytes = shard.clone();
        bytes[place] = value;
        reseal(&mut bytes);
        install(&out, &manifest, &bytes);
        let ran = run(&["shards", "verify", text(&out)]).refused(1, &["paragon"]);
        assert!(
            !ran.stderr.contains("make the set again")
                && ran.stderr.contains("paragon that knows") | ran.stderr.contains("newer paragon"),
            "{what}: {}",
            ran.stderr
        );
    }
    install(&out, &manifest, &shard);
    let path = out.join("manifest.psm");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    make_writable(&path);
    fs::write(&path, bytes).unwrap();
    let ran = run(&["shards", "verify", text(&out)]).refused(1, &["newer paragon"]);
    assert!(!ran.stderr.contains("make the set again"), "{}", ran.stderr);
    let data = out.with_file_name("data");
    let ran = run(&shard_arguments(&data, &out)).refused(1, &["newer paragon"]);
    no_damage(&ran);
}

#[test]
fn a_picture_with_a_control_character_in_its_name_is_rejected_and_not_stored() {
    let (_dir, data, out, _) = expected();
    for name in ["esc\x1b[31m.png", "two\nlines.png"] {
        fs::copy(data.join("p000.png"), data.join(name)).unwrap();
    }
    let ran = run(&shard_arguments(&data, &out)).ok();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["reasons"]["name"], 2);
    assert!(ShardSet::open(&out).is_ok());
}

#[test]
fn a_picture_replaced_by_an_older_one_of_the_same_size_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out, other) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("other.bmp"),
    );
    fs::create_dir(&data).unwrap();
    for i in 0..4 {
        picture(70, 64, i)
            .save(data.join(format!("p{i}.bmp")))
            .unwrap();
    }
    let long_ago = SystemTime::now() - Duration::from_secs(1_000_000);
    let replace = |seed: u64, way: &str| {
        picture(70, 64, seed).save(&other).unwrap();
        fs::File::options()
            .write(true)
            .open(&other)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        let target = data.join("p1.bmp");
        match way {
            "moved" => fs::rename(&other, &target).unwrap(),
            _ => {
                fs::copy(&other, &target).unwrap();
                fs::File::options()
                    .write(true)
                    .open(&target)
                    .unwrap()
                    .set_modified(long_ago)
                    .unwrap();
            }
        }
    };
    for (seed, way) in [(50, "moved"), (51, "restored")] {
        make(&BuildConfig {
            overwrite: true,
            ..config(&data, &out)
        })
        .unwrap();
        std::thread::sleep(Duration::from_millis(20));
        replace(seed, way);
        let error = format!("{:#}", make(&config(&data, &out)).unwrap_err());
        assert!(
            error.contains("p1.bmp") && error.contains("changed"),
            "{way}: {error}"
        );
        let error = format!(
            "{:#}",
            make(&BuildConfig {
                append: true,
                ..config(&data, &out)
            })
            .unwrap_err()
        );
        assert!(error.contains("p1.bmp"), "{way}: {error}");
    }
    // Replacing a file by a file with the same content is no change.
    make(&BuildConfig {
        overwrite: true,
        ..config(&data, &out)
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(20));
    replace(51, "moved");
    assert!(make(&config(&data, &out)).unwrap().already_complete);
}

#[test]
fn overwriting_is_gone_on_with_after_an_interruption() {
    let (_dir, data, out, whole) = expected();
    // A set with other options exists.
    run(&[&shard_arguments(&data, &out)[..], &["--codec", "raw"]].concat()).ok();
    let overwrite = [&shard_arguments(&data, &out)[..], &["--overwrite"]].concat();
    faulty(&overwrite, "open", EIO, (1, -1), "p005.png").refused(1, &["p005.png"]);
    assert!(files(&out).contains_key("journal.psj"));
    let dry = run(&[&overwrite[..], &["--dry-run"]].concat()).ok();
    assert!(
        dry.stdout.contains("an interrupted run has done"),
        "{}",
        dry.stdout
    );
    let ran = run(&overwrite).ok();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(report["resumed_images"].as_u64() > Some(2), "{report}");
    assert!(files(&out) == whole);
    // With other options the conversion begins anew, and so it does if the interrupted run had no
    // --overwrite.
    faulty(&overwrite, "open", EIO, (1, -1), "p005.png").refused(1, &["p005.png"]);
    let ran = run(&[&overwrite[..], &["--codec", "raw"]].concat()).ok();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["resumed_images"], 0);
    fs::remove_dir_all(&out).unwrap();
    faulty(
        &shard_arguments(&data, &out),
        "open",
        EIO,
        (1, -1),
        "p005.png",
    )
    .refused(1, &["p005.png"]);
    let ran = run(&overwrite).ok();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["resumed_images"], 0);
    assert!(files(&out) == whole);
}

#[test]
fn a_merge_given_again_is_already_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (data, whole) = (dir.path().join("data"), dir.path().join("whole"));
    pictures(&data, 12);
    // A duplicate across parts.
    fs::copy(data.join("p001.png"), data.join("p011_copy.png")).unwrap();
    let parts: Vec<PathBuf> = (1..=3)
        .map(|i| dir.path().join(format!("part{i}")))
        .collect();
    for (i, out) in parts.iter().enumerate() {
        make(&BuildConfig {
            part: Some((i as u32 + 1, 3)),
            ..config(&data, out)
        })
        .unwrap();
    }
    let arguments = [
        &["shards", "merge", text(&whole)][..],
        &parts.iter().map(|p| text(p)).collect::<Vec<_>>(),
    ]
    .concat();
    run(&arguments).ok();
    let made = files(&whole);
    let again = run(&arguments).ok();
    assert!(
        again.stdout.contains("already complete"),
        "{}",
        again.stdout
    );
    assert!(files(&whole) == made);
    no_damage(&faulty(&arguments, "pread", EIO, (0, -1), "whole/shard").refused(1, &["system"]));
    // A part that was made again, from a different image of the same name and size, differs from
    // the merged set.
    let bmp = dir.path().join("bmp");
    fs::create_dir(&bmp).unwrap();
    for i in 0..4 {
        picture(70, 64, i)
            .save(bmp.join(format!("p{i}.bmp")))
            .unwrap();
    }
    let (part, out) = (dir.path().join("part"), dir.path().join("out"));
    make(&BuildConfig {
        part: Some((1, 1)),
        ..config(&bmp, &part)
    })
    .unwrap();
    let arguments = ["shards", "merge", text(&out), text(&part)];
    run(&arguments).ok();
    picture(70, 64, 90).save(bmp.join("p2.bmp")).unwrap();
    make(&BuildConfig {
        part: Some((1, 1)),
        overwrite: true,
        ..config(&bmp, &part)
    })
    .unwrap();
    run(&arguments).refused(1, &["--overwrite"]);
    run(&[&arguments[..], &["--overwrite"]].concat()).ok();
}

#[test]
fn absurd_counts_and_sizes_are_refused_in_words() {
    let (dir, out) = small_set(40, Codec::Predict);
    let sheet = dir.path().join("sheet.png");
    let data = dir.path().join("data");
    let large = dir.path().join("large");
    run(&[
        "shard",
        text(&data),
        "--out",
        text(&large),
        "--lq-size",
        "8",
        "--stride",
        "2",
    ])
    .ok();
    for (folder, count) in [(&large, "18446744073709551615"), (&large, "1001")] {
        run(&[
            "shards",
            "sheet",
            text(folder),
            text(&sheet),
            "--count",
            count,
        ])
        .refused(1, &["--count", "at most"]);
    }
    run(&["shards", "sheet", text(&out), text(&sheet), "--count", "0"])
        .refused(1, &["at least one"]);
    for size in ["1048577", "17592186044415", "18446744073709551615"] {
        run(&[
            &shard_arguments(&data, &dir.path().join("x"))[..],
            &["--shard-size", size],
        ]
        .concat())
        .refused(1, &["--shard-size"]);
    }
    run(&[
        &shard_arguments(&data, &dir.path().join("y"))[..],
        &["--shard-size", "1048576"],
    ]
    .concat())
    .ok();
}

#[test]
fn a_caller_can_match_on_the_error() {
    use paragon::shard::Error;
    use paragon::shard::reader::Crop;
    let (_dir, out) = small_set(4, Codec::Raw);
    let path = out.join("shard-00000.psh");
    let whole = fs::read(&path).unwrap();
    let install = |bytes: &[u8]| {
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).unwrap();
    };
    let changed = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes
    };
    let opened = |bytes: &[u8]| {
        install(bytes);
        ShardSet::open(&out).err().unwrap()
    };
    assert!(matches!(opened(&whole[..100]), Error::Damaged(about) if about.file() == path));
    assert!(matches!(opened(&changed(0, b'x')), Error::NotAShard(about) if about.file() == path));
    let error = opened(&changed(8, 9));
    assert!(matches!(&error, Error::UnsupportedVersion(about) if about.file() == path));
    assert!(format!("{error:#}").contains("newer paragon") && error.io().is_none());

    fs::remove_file(&path).unwrap();
    let error = ShardSet::open(&out).err().unwrap();
    assert!(
        matches!(&error, Error::Missing(_)) && error.file() == path,
        "{error:?}"
    );
    assert!(matches!(
        ShardSet::open(&out.join("none")).err().unwrap(),
        Error::Missing(_)
    ));
    // A folder with the name of the file is no shard. If a file has the name of the set's folder,
    // the system refuses the path.
    fs::create_dir(&path).unwrap();
    let error = ShardSet::open(&out).err().unwrap();
    assert!(matches!(&error, Error::NotAShard(_)), "{error:?}");
    let error = ShardSet::open(&out.join("manifest.psm")).err().unwrap();
    assert!(matches!(&error, Error::System(_)), "{error:?}");
    assert_eq!(error.io().unwrap().raw_os_error(), Some(libc::ENOTDIR));
    fs::remove_dir(&path).unwrap();

    // Damage in a record is found when it is read.
    let first_record = 64;
    install(&changed(first_record, !whole[first_record]));
    let set = ShardSet::open(&out).unwrap();
    let g = set.geometry();
    let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
    for io in [Io::Mmap, Io::Pread] {
        let mut scratch = set.scratch_for(io).unwrap();
        let error = set.read(0, &mut scratch, &mut lq, &mut hr).unwrap_err();
        assert!(matches!(&error, Error::Damaged(about) if about.file() == path));
        assert!(format!("{error:#}").contains("image p000"), "{error:#}");
        let error = set.read(set.len(), &mut scratch, &mut lq, &mut hr);
        assert!(matches!(error, Err(Error::Misuse(_))), "{error:?}");
        let outside = Crop {
            x: 1,
            y: 0,
            size: g.lq(),
        };
        let error = set.read_crop(1, outside, &mut scratch, &mut lq, &mut hr);
        assert!(matches!(error, Err(Error::Misuse(_))), "{error:?}");
        let error = set.read(1, &mut scratch, &mut lq[1..], &mut hr);
        assert!(matches!(error, Err(Error::Misuse(_))), "{error:?}");
    }
    let found = tools::verify(&out, &nothing()).unwrap();
    assert_eq!(found.damaged.len(), 1);
    // The error type is found below the context that callers add.
    let above = anyhow::Error::from(set.source(set.len()).unwrap_err()).context("above");
    assert!(above.chain().any(|cause| cause.is::<Error>()));
}
