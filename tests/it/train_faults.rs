//! `paragon train` when something around it fails: slow disks, stopped processes, images that
//! disappear, signals at bad moments, files of an earlier run, folders that are removed. Every test
//! runs the real binary. Some load a small C library into it that slows system calls down or
//! records them.
#![cfg(target_os = "linux")]

use crate::{cli_common, fuzz_common, shard_common, train_common};

use cli_common::{Ran, paragon, run, text};
use paragon::support::rng::Rng;
use paragon::train::State;
use shard_common::{files, make_writable, picture, pictures};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use train_common::*;

/// A run that continues until it is stopped.
const ENDLESS: (&str, &str) = ("--iterations", "10000000");

/// A library that makes every `pread` take `SHIM_PREAD_MS` longer and writes to `SHIM_LOG` which
/// files are synced and renamed.
fn shim(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
    let code = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <time.h>
        #include <unistd.h>
        static void note(const char *what, const char *path) {
            const char *log = getenv("SHIM_LOG");
            FILE *f = log ? fopen(log, "a") : NULL;
            if (f) { fprintf(f, "%s %s\n", what, path); fclose(f); }
        }
        ssize_t pread64(int fd, void *to, size_t bytes, off_t at) {
            static ssize_t (*real)(int, void *, size_t, off_t);
            if (!real) real = dlsym(RTLD_NEXT, "pread64");
            const char *text = getenv("SHIM_PREAD_MS");
            long ms = text ? atol(text) : 0;
            struct timespec wait = {ms / 1000, ms % 1000 * 1000000};
            nanosleep(&wait, NULL);
            return real(fd, to, bytes, at);
        }
        int fdatasync(int fd) {
            static int (*real)(int);
            if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
            char link[64], path[4096];
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            ssize_t n = readlink(link, path, sizeof path - 1);
            if (n > 0) { path[n] = 0; note("synced", path); }
            return real(fd);
        }
        int rename(const char *from, const char *to) {
            static int (*real)(const char *, const char *);
            if (!real) real = dlsym(RTLD_NEXT, "rename");
            note("renamed", to);
            return real(from, to);
        }
    "#;
    fs::write(&source, code).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let arguments = [
        "-shared",
        "-fPIC",
        "-o",
        text(&library),
        text(&source),
        "-ldl",
    ];
    assert!(
        Command::new(compiler)
            .args(arguments)
            .status()
            .unwrap()
            .success()
    );
    library
}

fn best(out: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(out.join("models/best.json")).unwrap()).unwrap()
}

/// Names of the files in a folder of previews.
fn preview_names(out: &Path) -> Vec<String> {
    let Ok(folders) = fs::read_dir(out.join("previews")) else {
        return Vec::new();
    };
    folders
        .flat_map(|folder| files(&folder.unwrap().path()).into_keys())
        .collect()
}

/// Changes the newest state of a run and corrects its checksum.
fn change_state(out: &Path, change: impl FnOnce(&mut State)) {
    let path = states(out).pop().unwrap();
    let mut state = State::read(&path).unwrap();
    change(&mut state);
    state.write(&path).unwrap();
}

#[test]
fn slow_reads_do_not_end_a_healthy_training() {
    let (dir, set) = set();
    let (fast, slow) = (dir.path().join("fast"), dir.path().join("slow"));
    // A batch takes longer than the loader waits for slots that its caller holds.
    let flags: Flags = &[
        ("--io", "pread"),
        ("--slots", "1"),
        ("--loader-threads", "1"),
        ("--batch-size", "6"),
        ("--iterations", "2"),
        ("--log-every", "1"),
    ];
    train(&set, &fast, flags).ok();
    let mut command = paragon(&command(&set, &slow, flags));
    command
        .env("LD_PRELOAD", shim(dir.path()))
        .env("SHIM_PREAD_MS", "300");
    Ran::from(command.output().unwrap()).ok();
    let waited: f64 = log(&slow)
        .iter()
        .map(|line| line["data_wait"].as_f64().unwrap() / line["it_per_s"].as_f64().unwrap())
        .sum();
    assert!(waited > 3.0, "the reads were not slow: {waited} s");
    same(&outcome(&slow), &outcome(&fast), "slow reads");
}

#[test]
fn a_process_that_is_stopped_for_seconds_goes_on() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let child = spawn(&mut paragon(&command(
        &set,
        &out,
        &[
            ENDLESS,
            ("--slots", "1"),
            ("--batch-size", "16"),
            ("--log-every", "1"),
        ],
    )));
    wait_for_a_log_line(&out);
    signal(&child, libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(3));
    signal(&child, libc::SIGCONT);
    let before = log(&out).len();
    wait_until("line after the stop", || log(&out).len() > before + 2);
    signal(&child, libc::SIGTERM);
    assert_eq!(ended(child).code, Some(130));
}

#[test]
fn pictures_that_cannot_be_measured_are_found_before_the_first_step() {
    let (dir, set) = set();
    let pair = |folder: &Path, name: &str, hr: u32, lq: u32| {
        for (side, size) in [("HR", hr), ("LR", lq)] {
            fs::create_dir_all(folder.join(side)).unwrap();
            picture(size, size, 3)
                .save(folder.join(side).join(name))
                .unwrap();
        }
    };
    let (cut, sizes, small) = (
        dir.path().join("cut"),
        dir.path().join("sizes"),
        dir.path().join("small"),
    );
    pictures(&cut, 3);
    for name in ["p000.png", "p002.png"] {
        let bytes = fs::read(cut.join(name)).unwrap();
        fs::write(cut.join(name), &bytes[..bytes.len() / 2]).unwrap();
    }
    pair(&sizes, "good.png", 60, 30);
    pair(&sizes, "bad.png", 60, 40);
    pair(&small, "good.png", 60, 30);
    pair(&small, "tiny.png", 16, 8);
    // A held-out set with a damaged record.
    let held_out = dir.path().join("held_out");
    shard_common::make(&shard_common::config(&dir.path().join("data"), &held_out)).unwrap();
    let shard = held_out.join("shard-00000.psh");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[100] ^= 1;
    make_writable(&shard);
    fs::write(&shard, bytes).unwrap();
    let cases: [(&Path, &str, &[&str]); 5] = [
        (&cut, "2", &["2 of 3 images", "p000.png", "p002.png"]),
        (&sizes, "2", &["1 of 2 images", "bad.png", "60x60", "40x40"]),
        (
            &small,
            "3",
            &["1 of 2 images", "tiny.png", "16x16", "17x17"],
        ),
        (
            &cut.with_file_name("data"),
            "20",
            &["of 4 images", "p000.png", "--crop-border", "at least 51x51"],
        ),
        (&held_out, "2", &["shard-00000.psh", "record 0", "damaged"]),
    ];
    for (place, border, words) in cases {
        let out = dir.path().join("run");
        let ran = train(
            &set,
            &out,
            &[
                ("--val", text(place)),
                ("--val-every", "8"),
                ("--crop-border", border),
            ],
        );
        ran.refused(1, &[words, &["--val none"]].concat());
        assert!(
            states(&out).is_empty() && log(&out).is_empty(),
            "{}: training had begun",
            place.display()
        );
    }
}

#[test]
fn a_validation_that_fails_under_way_is_a_warning() {
    let (dir, set) = set();
    type Break = (&'static str, fn(&Path, &Path));
    let cases: [Break; 3] = [
        ("the image is gone", |data, _| {
            fs::remove_file(data.join("p001.png")).unwrap()
        }),
        ("the image is another one", |data, _| {
            picture(8, 8, 1).save(data.join("p001.png")).unwrap()
        }),
        ("previews cannot be written", |_, out| {
            fs::write(out.join("previews"), "a file").unwrap()
        }),
    ];
    for (number, (what, change)) in cases.into_iter().enumerate() {
        let (data, out) = (
            dir.path().join(format!("val{number}")),
            dir.path().join(format!("run{number}")),
        );
        pictures(&data, 3);
        let flags: Flags = &[
            ("--val", text(&data)),
            ("--val-every", "100"),
            ("--checkpoint-every", "100"),
            ("--iterations", "200"),
            ("--log-every", "1"),
        ];
        let child = spawn(&mut paragon(&command(&set, &out, flags)));
        wait_for_a_log_line(&out);
        signal(&child, libc::SIGSTOP);
        assert!(log(&out).len() < 100, "the run was too fast for this test");
        change(&data, &out);
        signal(&child, libc::SIGCONT);
        let ran = ended(child).ok();
        let previews = what.contains("previews");
        let words = if previews {
            "the previews of this validation are not all kept"
        } else {
            "this validation has no scores, and training goes on"
        };
        assert_eq!(
            ran.stderr.matches(words).count(),
            2,
            "{what}: {}",
            ran.stderr
        );
        assert!(
            ran.stderr.contains("warning: iteration 100: ")
                && (previews || ran.stderr.contains("p001.png")),
            "{what}: {}",
            ran.stderr
        );
        assert_eq!(states(&out).len(), 2, "{what}");
        let lines = log(&out);
        assert_eq!(lines.len(), 200);
        assert!(
            lines
                .iter()
                .filter(|line| !line["val_psnr_y"].is_null())
                .count()
                == if previews { 2 } else { 0 },
            "{what}"
        );
        assert_eq!(out.join("models/best.json").exists(), previews, "{what}");
    }
}

#[test]
fn an_iteration_is_saved_before_its_validation_and_a_killed_one_is_done_again() {
    let (dir, set) = set();
    let (data, whole, out) = (
        dir.path().join("val"),
        dir.path().join("whole"),
        dir.path().join("run"),
    );
    pictures(&data, 20);
    let flags: Flags = &[
        ("--val", text(&data)),
        ("--val-every", "8"),
        ("--checkpoint-every", "8"),
        ("--log-every", "5"),
        ("--iterations", "16"),
    ];
    train(&set, &whole, flags).ok();
    let expected = outcome(&whole);
    for (number, in_validation) in [
        (libc::SIGKILL, 8),
        (libc::SIGTERM, 8),
        (libc::SIGKILL, 16),
        (libc::SIGTERM, 16),
    ] {
        let child = spawn(&mut paragon(&command(&set, &out, flags)));
        let begun = out.join(format!("previews/3_p003/{in_validation:08}.png"));
        wait_until("validation", || begun.exists());
        signal(&child, number);
        let ran = ended(child);
        let name = format!("state_{in_validation:09}.safetensors");
        assert!(
            states(&out)
                .pop()
                .is_some_and(|state| state.ends_with(&name)),
            "{ran:?}"
        );
        assert!(
            log(&out).last().unwrap()["iteration"].as_u64().unwrap() < in_validation,
            "the validation had ended"
        );
        if number == libc::SIGTERM {
            assert!(
                ran.code == Some(130)
                    && ran
                        .stderr
                        .contains(&format!("saved iteration {in_validation}")),
                "{ran:?}"
            );
            fs::remove_file(&begun).unwrap();
        } else {
            fs::remove_dir_all(out.join("previews")).unwrap();
        }
    }
    train(&set, &out, flags).ok();
    let found = outcome(&out);
    same(&found, &expected, "killed and stopped within validations");
    assert!(found.networks == expected.networks, "network files differ");
}

#[test]
fn a_stop_within_an_accumulated_iteration_goes_back_to_the_last_whole_one() {
    let (dir, set) = set();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("run"));
    let flags: Flags = &[
        ("--accum-iter", "80"),
        ("--iterations", "2"),
        ("--log-every", "1"),
        ("--threads", "1"),
        ("--lq-size", "8"),
    ];
    train(&set, &whole, flags).ok();
    let child = spawn(&mut paragon(&command(&set, &out, flags)));
    wait_for_a_log_line(&out);
    signal(&child, libc::SIGTERM);
    let ran = ended(child);
    assert!(
        ran.code == Some(130) && ran.stderr.contains("saved iteration 1"),
        "{ran:?}"
    );
    train(&set, &out, flags).ok();
    same(
        &outcome(&out),
        &outcome(&whole),
        "stopped within an iteration",
    );
    // Before the first iteration is done there is nothing to save, and a message says so.
    let out = dir.path().join("early");
    let child = spawn(&mut paragon(&command(
        &set,
        &out,
        &[("--accum-iter", "60000"), ("--iterations", "2")],
    )));
    wait_until("log", || out.join("log.jsonl").exists());
    signal(&child, libc::SIGTERM);
    let ran = ended(child);
    assert!(
        ran.code == Some(130) && ran.stdout.contains("before the first iteration"),
        "{ran:?}"
    );
    assert!(states(&out).is_empty());
}

#[test]
fn nohup_is_respected() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let mut command = paragon(&command(&set, &out, &[ENDLESS, ("--log-every", "1")]));
    let ignore = || {
        // SAFETY: a system call that is allowed between fork and exec
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: see above
    let child = spawn(unsafe { command.pre_exec(ignore) });
    wait_for_a_log_line(&out);
    signal(&child, libc::SIGHUP);
    let before = log(&out).len();
    wait_until("line after the signal", || log(&out).len() > before + 50);
    signal(&child, libc::SIGTERM);
    assert_eq!(ended(child).code, Some(130));
}

#[test]
fn restart_and_a_fresh_start_take_nothing_of_an_earlier_run_for_their_own() {
    let (dir, set) = set();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    let val: Flags = &[
        ("--val", text(&data)),
        ("--val-every", "6"),
        ("--checkpoint-every", "6"),
    ];
    train(&set, &out, val).ok();
    assert!(
        out.join("models/best.json").exists()
            && !preview_names(&out).is_empty()
            && out.join("validation.svg").exists()
    );
    fs::write(out.join("models/mine.safetensors"), "mine").unwrap();
    let stop_after_a_line = |flags: Flags| {
        let child = spawn(&mut paragon(&command(&set, &out, flags)));
        wait_until("first line", || {
            log(&out).first().is_some_and(|line| line["iteration"] == 1)
        });
        signal(&child, libc::SIGTERM);
        assert_eq!(ended(child).code, Some(130));
    };
    let later: [(&str, &str); 5] = [
        ENDLESS,
        ("--log-every", "1"),
        ("--val", text(&data)),
        ("--val-every", "1000000"),
        ("--keep-models", "1"),
    ];
    stop_after_a_line(&[&later[..], &[("--restart", "")]].concat());
    let networks = files(&out.join("models"));
    assert_eq!(networks.len(), 3, "{:?}", networks.keys());
    assert!(
        networks.contains_key("mine.safetensors")
            && !networks
                .keys()
                .any(|name| name.contains("best") || name.contains("_24"))
    );
    assert!(preview_names(&out).is_empty() && !out.join("validation.svg").exists());
    assert_eq!(files(&out.join("tensorboard")).len(), 1);
    // Only the states were removed: another run begins, even without --restart.
    train(&set, &out, &[val, &[("--restart", "")]].concat()).ok();
    fs::remove_dir_all(out.join("states")).unwrap();
    stop_after_a_line(&later);
    assert!(!out.join("models/best.json").exists() && preview_names(&out).is_empty());
    assert!(
        out.join("models/net_g_24.safetensors").exists(),
        "networks go with --restart alone"
    );
}

#[test]
fn the_best_is_looked_for_anew_where_something_else_is_measured() {
    let (dir, set) = set();
    let (data, other, out) = (
        dir.path().join("data"),
        dir.path().join("other"),
        dir.path().join("run"),
    );
    pictures(&other, 3);
    let moved = dir.path().join("moved");
    let mut iterations = 6;
    let mut go_on = |place: &Path, border: &str| {
        let total = iterations.to_string();
        iterations += 6;
        let flags: Flags = &[
            ("--iterations", &total),
            ("--val", text(place)),
            ("--val-every", "6"),
            ("--crop-border", border),
        ];
        train(&set, &out, &[flags, &[("--schedule", "constant")]].concat())
            .ok()
            .stderr
    };
    let anew = "measured on other images or with another border";
    assert!(!go_on(&data, "2").contains(anew));
    assert_eq!(best(&out)["measured_on"]["pairs"], 4);
    // The same images in another folder count as the same.
    fs::create_dir(&moved).unwrap();
    for (name, bytes) in files(&data) {
        fs::write(moved.join(name), bytes).unwrap();
    }
    assert!(!go_on(&moved, "2").contains(anew));
    let said = go_on(&other, "2");
    assert!(
        said.contains(anew) && said.contains("4 images of"),
        "{said}"
    );
    assert!(best(&out)["measured_on"]["place"] == text(&other) && best(&out)["iteration"] == 18);
    assert!(go_on(&other, "6").contains(anew));
    assert_eq!(
        (
            &best(&out)["measured_on"]["crop_border"],
            &best(&out)["iteration"]
        ),
        (&6.into(), &24.into())
    );
    // The files of version 0.1.0 do not record which images were measured, and are accepted.
    fs::write(
        out.join("models/best.json"),
        r#"{"iteration":24,"psnr_y":99.0}"#,
    )
    .unwrap();
    assert!(!go_on(&other, "6").contains(anew));
    assert_eq!(best(&out)["psnr_y"], 99.0);
}

#[test]
fn names_of_any_length_and_half_written_previews_do_no_harm() {
    let (dir, set) = set();
    let (data, out) = (dir.path().join("val"), dir.path().join("run"));
    // Paths of more than 255 bytes, one of them with letters of three bytes each.
    for (folder, seed) in [
        (data.join("x".repeat(120)).join("y".repeat(120)), 1),
        (data.join("東".repeat(80)).join("京".repeat(60)), 2),
    ] {
        fs::create_dir_all(&folder).unwrap();
        picture(50, 50, seed)
            .save(folder.join("zzzzzzzzzzzzzzzzzzzzzzzz.png"))
            .unwrap();
    }
    let flags: Flags = &[("--val", text(&data)), ("--val-every", "6")];
    let ran = train(&set, &out, &[flags, &[("--iterations", "12")]].concat()).ok();
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    let folders: Vec<PathBuf> = fs::read_dir(out.join("previews"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(folders.len(), 2);
    assert!(
        folders
            .iter()
            .all(|folder| folder.file_name().unwrap().len() <= 255
                && folder.join("00000012.png").exists())
    );
    // A file that a kill left, and a preview of a state that was lost.
    fs::write(folders[0].join(".00000018.png.999.partial"), "half").unwrap();
    fs::write(
        folders[0].join("00000015.png"),
        "of an iteration that will be repeated",
    )
    .unwrap();
    fs::write(folders[0].join("notes.txt"), "mine").unwrap();
    train(&set, &out, flags).ok();
    let left: Vec<String> = files(&folders[0]).into_keys().collect();
    let expected = [
        "00000006.png",
        "00000012.png",
        "00000018.png",
        "00000024.png",
        "bicubic.png",
        "hr.png",
        "notes.txt",
    ];
    assert_eq!(left, expected);
}

#[test]
fn previews_are_bounded_however_often_a_run_validates() {
    let (dir, set) = set();
    let (data, out) = (dir.path().join("val"), dir.path().join("run"));
    fs::create_dir(&data).unwrap();
    picture(24, 24, 1).save(data.join("a.png")).unwrap();
    train(
        &set,
        &out,
        &[
            ("--val", text(&data)),
            ("--val-every", "1"),
            ("--iterations", "120"),
            ("--checkpoint-every", "60"),
        ],
    )
    .ok();
    let names = preview_names(&out);
    assert!((20..=52).contains(&names.len()), "{}", names.len());
    assert!(names.contains(&"00000001.png".into()) && names.contains(&"00000120.png".into()));
}

#[test]
fn memory_at_most_counts_validation() {
    let (dir, set) = set();
    let data = dir.path().join("val");
    fs::create_dir(&data).unwrap();
    picture(600, 600, 1).save(data.join("a.png")).unwrap();
    let most = |out: &str, val: &str| {
        let out = dir.path().join(out);
        train(
            &set,
            &out,
            &[
                ("--iterations", "2"),
                ("--log-every", "1"),
                ("--val", val),
                ("--threads", "1"),
            ],
        )
        .ok();
        log(&out).last().unwrap()["anonymous"].as_u64().unwrap()
    };
    let (without, with) = (most("without", "none"), most("with", text(&data)));
    // HR, the network's result and the bicubic one are in memory at the same time.
    assert!(
        with > without + 3 * 600 * 600 * 3,
        "{with} with validation, {without} without"
    );
}

#[test]
fn a_folder_or_lock_that_is_taken_away_ends_the_run_in_words() {
    let (dir, set) = set();
    type Take = (&'static str, fn(&Path));
    let cases: [Take; 4] = [
        ("the folder is removed", |out| {
            fs::remove_dir_all(out).unwrap()
        }),
        ("the folder is moved", |out| {
            fs::rename(out, out.with_extension("moved")).unwrap()
        }),
        ("the lock is removed", |out| {
            fs::remove_file(out.join(".lock")).unwrap()
        }),
        ("the lock is replaced", |out| {
            fs::write(out.join("new"), "").unwrap();
            fs::rename(out.join("new"), out.join(".lock")).unwrap();
        }),
    ];
    for (number, (what, take)) in cases.into_iter().enumerate() {
        let out = dir.path().join(format!("run{number}"));
        let child = spawn(&mut paragon(&command(
            &set,
            &out,
            &[ENDLESS, ("--checkpoint-every", "20"), ("--log-every", "1")],
        )));
        // With two states, the first checkpoint is certainly complete.
        wait_until("states", || states(&out).len() > 1);
        signal(&child, libc::SIGSTOP);
        take(&out);
        signal(&child, libc::SIGCONT);
        let ran = ended(child).refused(
            1,
            &[
                "was removed, moved or replaced",
                text(&out),
                "the checkpoint of iteration",
            ],
        );
        assert!(
            !ran.stderr.contains("cannot write"),
            "{what}: {}",
            ran.stderr
        );
        assert!(
            number > 1 || !out.exists(),
            "{what}: the folder was made again"
        );
    }
    // A run continues if only its log or its event files are removed.
    let out = dir.path().join("other");
    let child = spawn(&mut paragon(&command(
        &set,
        &out,
        &[ENDLESS, ("--log-every", "1")],
    )));
    wait_for_a_log_line(&out);
    fs::remove_file(out.join("log.jsonl")).unwrap();
    wait_until("new log", || log(&out).len() > 10);
    signal(&child, libc::SIGTERM);
    let ran = ended(child);
    assert!(
        ran.code == Some(130) && ran.stderr.contains("was removed while the run went on"),
        "{ran:?}"
    );
    let blocked = dir.path().join("blocked");
    fs::create_dir(&blocked).unwrap();
    fs::write(blocked.join("tensorboard"), "a file").unwrap();
    let ran = train(&set, &blocked, &[]).ok();
    assert_eq!(
        ran.stderr
            .matches("no more figures for TensorBoard")
            .count(),
        1,
        "{}",
        ran.stderr
    );
}

#[test]
fn a_lock_that_is_a_link_empties_nothing() {
    let (dir, set) = set();
    let (out, target) = (dir.path().join("run"), dir.path().join("precious"));
    fs::create_dir(&out).unwrap();
    fs::write(&target, "precious").unwrap();
    symlink(&target, out.join(".lock")).unwrap();
    train(&set, &out, &[]).refused(1, &[".lock", "link"]);
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

#[test]
fn lines_of_the_log_are_on_the_disk_before_the_state_that_stands_for_them() {
    let (dir, set) = set();
    let (out, calls) = (dir.path().join("run"), dir.path().join("calls"));
    let mut command = paragon(&command(&set, &out, &[("--iterations", "10")]));
    command
        .env("LD_PRELOAD", shim(dir.path()))
        .env("SHIM_LOG", &calls);
    Ran::from(command.output().unwrap()).ok();
    let calls = fs::read_to_string(&calls).unwrap();
    let calls: Vec<&str> = calls
        .lines()
        .filter(|l| l.ends_with("log.jsonl") && l.starts_with("synced") || l.contains("/state_"))
        .collect();
    let kinds: Vec<&str> = calls
        .iter()
        .map(|call| call.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["synced", "renamed", "synced", "renamed"],
        "{calls:?}"
    );
}

#[test]
fn a_state_that_cannot_be_trained_on_is_damaged_and_one_that_cannot_be_read_is_not() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    train(&set, &out, &[]).ok();
    let expected = outcome(&out);
    let changes: [fn(&mut State); 2] = [|s| s.vectors[0][7] = f32::NAN, |s| s.vectors[2][3] = -1.0];
    for change in changes {
        change_state(&out, change);
        let ran = train(&set, &out, &[]).ok();
        assert!(
            ran.stderr
                .contains("which no training leaves behind; taking the one before it"),
            "{}",
            ran.stderr
        );
        same(
            &outcome(&out),
            &expected,
            "after a state that cannot be trained on",
        );
    }
    // A pipe with the name of the newest state is not read, since that could wait for ever.
    let pipe = out.join("states/state_000000099.safetensors");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let ran = train(&set, &out, &[]).ok();
    assert!(ran.stderr.contains("no regular file"), "{}", ran.stderr);
    fs::remove_file(&pipe).unwrap();
    // A folder of states that cannot be read does not show whether there is a run: the command
    // neither begins a run nor resumes one.
    let before = files(&out.join("states"));
    fs::rename(out.join("states"), out.join("kept")).unwrap();
    fs::write(out.join("states"), "no folder").unwrap();
    train(&set, &out, &[]).refused(1, &["cannot read the folder", "states"]);
    fs::remove_file(out.join("states")).unwrap();
    fs::rename(out.join("kept"), out.join("states")).unwrap();
    assert!(files(&out.join("states")) == before);
}

#[test]
fn skipped_updates_are_counted_on_across_processes() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    train(&set, &out, &[("--iterations", "5")]).ok();
    // Finite numbers whose sums are not finite.
    change_state(&out, |state| {
        state.vectors[0].fill(1e38);
        state.head.skipped_in_a_row = 7;
    });
    let ran = train(&set, &out, &[]).refused(
        1,
        &["not finite 10 times in a row", "stopped at iteration 8"],
    );
    assert!(
        ran.stderr.contains("the checkpoint of iteration 5 is kept"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_schedule_that_jumps_on_resume_is_told() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let cosine: (&str, &str) = ("--schedule", "cosine");
    train(&set, &out, &[cosine]).ok();
    let ran = train(&set, &out, &[cosine, ("--iterations", "48")]).ok();
    assert!(
        ran.stderr
            .contains("jumps up from 4.38e-6 at iteration 24 to 5.00e-4 at iteration 25"),
        "{}",
        ran.stderr
    );
    // A schedule that has fallen already continues without a jump.
    let steps: Flags = &[("--schedule", "multistep"), ("--milestones", "10")];
    let out = dir.path().join("steps");
    train(&set, &out, steps).ok();
    let ran = train(&set, &out, &[steps, &[("--iterations", "30")]].concat()).ok();
    assert!(
        ran.stderr.contains("the learning rate goes on at 5.00e-4"),
        "{}",
        ran.stderr
    );
    let ran = train(
        &set,
        &out,
        &[
            steps,
            &[
                ("--iterations", "36"),
                ("--gamma", "0.25"),
                ("--continue", ""),
            ],
        ]
        .concat(),
    )
    .ok();
    assert!(
        ran.stderr
            .contains("goes from 5.00e-4 at iteration 30 to 2.50e-4 at iteration 31"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_path_that_config_yml_cannot_hold_is_told_at_once() {
    let (dir, set) = set();
    for key in ["path.out", "data.shards"] {
        let odd = dir
            .path()
            .join(std::ffi::OsStr::from_bytes(b"n\xFFme"))
            .join(key);
        fs::create_dir_all(odd.parent().unwrap()).unwrap();
        let (set, out) = if key == "path.out" {
            (set.clone(), odd)
        } else {
            (odd, dir.path().join("run"))
        };
        if key == "data.shards" {
            fs::rename(dir.path().join("set"), &set).unwrap();
        }
        let mut command = paragon(&["train", "--iterations", "2", "--batch-size", "2"]);
        command.arg("--shards").arg(&set).arg("--out").arg(&out);
        let ran = Ran::from(command.output().unwrap()).ok();
        assert!(
            ran.stderr
                .contains(&format!("note: the path of {key} is not UTF-8")),
            "{}",
            ran.stderr
        );
        assert!(
            fs::read_to_string(out.join("config.yml"))
                .unwrap()
                .contains(&format!("# the path of {key} is not UTF-8"))
        );
    }
}

#[test]
fn the_page_of_a_run_is_made_whatever_a_kill_has_left() {
    let (dir, set) = set();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    train(&set, &out, &[("--val", text(&data)), ("--val-every", "6")]).ok();
    let places: Vec<PathBuf> = (0..4)
        .map(|i| out.join(format!("previews/{i}_p00{i}")))
        .collect();
    // A kill between HR and bicubic; a damaged version; an image of another size.
    fs::remove_file(places[0].join("bicubic.png")).unwrap();
    fs::write(places[1].join("00000024.png"), "no image").unwrap();
    picture(20, 20, 1)
        .save(places[2].join("00000006.png"))
        .unwrap();
    fs::write(places[2].join("99999999.png"), "later than the log").unwrap();
    let ran = run(&["report", text(&out)]).ok();
    assert_eq!(
        ran.stderr.matches("it is left out").count(),
        3,
        "{}",
        ran.stderr
    );
    for words in [
        "0_p000/bicubic.png",
        "1_p001/00000024.png",
        "has 20x20 pixels",
    ] {
        assert!(
            ran.stderr.contains(words),
            "'{words}' is missing in {}",
            ran.stderr
        );
    }
    assert!(ran.stdout.contains("3 previews"), "{}", ran.stdout);
    // A kill in the first validation leaves no log line, no state, and one or two previews.
    fs::write(out.join("log.jsonl"), "").unwrap();
    fs::remove_dir_all(out.join("states")).unwrap();
    let ran = run(&["report", text(&out)]).ok();
    assert!(ran.stdout.contains("0 log lines"), "{}", ran.stdout);
    assert!(
        fs::read_to_string(out.join("report.html"))
            .unwrap()
            .contains("before its first log line")
    );
}

#[test]
fn damaged_states_and_logs_are_read_or_refused() {
    let whole = fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/0.1.0/run/states/state_000000004.safetensors"),
    )
    .unwrap();
    assert!(fuzz_common::read_state(&whole));
    const JSON: &[u8] = b"0123456789,:{}[]\"\\eE+-.";
    let mut rng = Rng::new(&[0x5354_4154]);
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut read = 0;
    for round in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..=rng.below(3) {
            // Mostly within the header, which has to be parsed.
            let most = if rng.below(4) == 0 {
                bytes.len()
            } else {
                header
            };
            let at = rng.below(most as u64) as usize;
            bytes[at] = if rng.below(2) == 0 {
                rng.below(256) as u8
            } else {
                JSON[rng.below(JSON.len() as u64) as usize]
            };
        }
        if round % 2 == 0 {
            fuzz_common::reseal_state(&mut bytes);
        }
        read += u32::from(fuzz_common::read_state(&bytes));
    }
    assert!(read > 0, "no input got past the checksum");
    for _ in 0..200 {
        let mut text: Vec<u8> =
            br#"{"iteration":2,"loss":0.2,"grad_norm":0.01,"lr":1e-3,"it_per_s":3,"data_wait":0,"seconds":1,"skipped":0}"#.to_vec();
        text.push(b'\n');
        let mut text = text.repeat(3);
        for _ in 0..rng.below(6) {
            let at = rng.below(text.len() as u64) as usize;
            text[at] = rng.below(256) as u8;
        }
        assert!(fuzz_common::read_log(&text) <= 5);
    }
}
