//! Output: paths that are devices, FIFOs or links; foreign strings on a terminal; terminals that
//! cannot move their cursor; and errors that name the step that failed. Every test runs the real
//! binary.
#![cfg(unix)]

use crate::{cli_common, shard_common};

use cli_common::{limit_files, on_terminal, paragon, run, text};
use shard_common::{config, make, picture, pictures};
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;

fn set(folder: &Path) -> std::path::PathBuf {
    let (data, set) = (folder.join("data"), folder.join("set"));
    pictures(&data, 3);
    make(&config(&data, &set)).unwrap();
    set
}

/// Every command that writes one file to a given path, with the arguments before that path.
fn writers(set: &Path) -> Vec<Vec<&str>> {
    vec![
        vec!["plan", "--chart"],
        vec!["shards", "sheet", text(set)],
        vec!["config", "init"],
    ]
}

#[test]
fn a_device_or_a_fifo_is_written_to_and_stays_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let fifo = dir.path().join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    for arguments in writers(&set) {
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).unwrap()
        });
        run(&[arguments.clone(), vec![text(&fifo)]].concat()).ok();
        assert!(!reader.join().unwrap().is_empty(), "{arguments:?}");
        assert!(
            fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo(),
            "{arguments:?}"
        );
        run(&[arguments.clone(), vec!["/dev/null"]].concat()).ok();
        assert!(
            fs::symlink_metadata("/dev/null")
                .unwrap()
                .file_type()
                .is_char_device(),
            "{arguments:?}"
        );
        // If the device is full, the error names it.
        run(&[arguments.clone(), vec!["/dev/full"]].concat())
            .refused(1, &["cannot write /dev/full", "No space left"]);
    }
    let chart = paragon(&["plan", "--chart", "/dev/stdout"])
        .output()
        .unwrap();
    assert!(chart.status.success() && String::from_utf8_lossy(&chart.stdout).contains("<svg"));
    assert!(fs::symlink_metadata("/dev/stdout").unwrap().is_symlink());
}

#[test]
fn a_redirected_stdout_gets_the_chart_and_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out");
    let status = paragon(&["plan", "--chart", "/dev/stdout"])
        .stdout(File::create(&file).unwrap())
        .status()
        .unwrap();
    let written = fs::read_to_string(&file).unwrap();
    assert!(status.success() && written.contains("</svg>"), "{written}");
}

#[test]
fn a_link_is_followed_and_stays_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let (target, link, circle) = (
        dir.path().join("target"),
        dir.path().join("link"),
        dir.path().join("circle"),
    );
    symlink("target", &link).unwrap();
    symlink("circle", &circle).unwrap();
    for arguments in writers(&set) {
        let _ = fs::remove_file(&target);
        run(&[arguments.clone(), vec![text(&link)]].concat()).ok();
        assert!(
            fs::symlink_metadata(&link).unwrap().is_symlink()
                && fs::metadata(&target).unwrap().len() > 0,
            "{arguments:?}"
        );
        run(&[arguments.clone(), vec![text(&circle)]].concat()).refused(1, &["circle"]);
        run(&[arguments.clone(), vec![text(dir.path())]].concat()).refused(1, &["folder"]);
    }
}

#[test]
fn strings_of_others_never_control_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    picture(60, 60, 1).save(data.join("good.png")).unwrap();
    // A window title, a colour, a line break, the C1 form of an escape, and right-to-left text.
    for name in [
        "\x1b]0;title\x07.png",
        "\x1b[31mred.png",
        "two\nlines.png",
        "\u{9b}2J.png",
        "\u{202e}gnp.exe.png",
    ] {
        fs::write(data.join(name), "no image").unwrap();
    }
    let out = dir.path().join("out");
    let shard = run(&["shard", text(&data), "--out", text(&out), "--lq-size", "16"]).ok();
    let shown = format!("{}{}", shard.stdout, shard.stderr);
    assert!(
        shown
            .chars()
            .all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'),
        "{shown:?}"
    );
    assert!(
        shown.contains("\\u{1b}[31mred.png") && shown.contains("two\\nlines.png"),
        "{shown:?}"
    );
    // JSON output has the exact name.
    let json = run(&[
        "shard",
        text(&data),
        "--out",
        text(&dir.path().join("again")),
        "--lq-size",
        "16",
        "--json",
    ])
    .ok()
    .stdout;
    assert!(
        json.chars()
            .all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'),
        "{json:?}"
    );
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let files: Vec<&str> = report["rejected"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|r| r["file"].as_str())
        .collect();
    assert!(
        files
            .iter()
            .any(|file| file.ends_with("\u{202e}gnp.exe.png")),
        "{files:?}"
    );
    // Keys and values of an option file.
    let options = dir.path().join("options.yml");
    fs::write(&options, "\"\\e[2Jkey\": 1\nname: \"\\e[31mx\"\n").unwrap();
    let refused = run(&["train", "--shards", text(&out), "--config", text(&options)]);
    assert!(
        refused.code != Some(0) && !refused.stderr.contains('\x1b'),
        "{:?}",
        refused.stderr
    );
    // A value of a megabyte is shortened.
    fs::write(
        &options,
        format!("train: {{ total_iter: {} }}\n", "9".repeat(1 << 20)),
    )
    .unwrap();
    let refused = run(&["train", "--shards", text(&out), "--config", text(&options)]);
    assert!(
        refused.code != Some(0) && refused.stderr.len() < 20_000,
        "{} bytes",
        refused.stderr.len()
    );
}

#[test]
fn a_terminal_that_cannot_move_its_cursor_gets_plain_lines() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let train = |name: &str, term: &str| {
        let out = dir.path().join(name);
        let arguments = [
            "train",
            "--shards",
            text(&set),
            "--out",
            text(&out),
            "--iterations",
            "2",
            "--batch-size",
            "1",
            "--warmup",
            "0",
        ];
        on_terminal(&mut paragon(&arguments), term, 80)
    };
    let dumb = train("dumb", "dumb");
    assert!(
        dumb.contains("iter 2/2") && !dumb.contains('\x1b'),
        "{dumb:?}"
    );
    assert!(train("xterm", "xterm").contains('\x1b'));
}

#[test]
fn a_full_disk_names_the_file_once_and_says_what_failed() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let sheet = dir.path().join("sheet.png");
    let mut command = paragon(&["shards", "sheet", text(&set), text(&sheet)]);
    let ran: cli_common::Ran = limit_files(&mut command, 100).output().unwrap().into();
    let error = ran
        .refused(1, &["cannot write", "sheet.png", "File too large"])
        .stderr;
    assert_eq!(error.matches("sheet.png").count(), 1, "{error}");
    // The line of a rejected image names it once.
    let bad = dir.path().join("bad");
    fs::create_dir(&bad).unwrap();
    picture(60, 60, 1).save(bad.join("good.png")).unwrap();
    fs::write(bad.join("text.png"), "no image").unwrap();
    fs::write(bad.join("cut.jpg"), b"\xff\xd8\xff\xd9").unwrap();
    let shown = run(&[
        "shard",
        text(&bad),
        "--out",
        text(&dir.path().join("bad-set")),
        "--lq-size",
        "16",
    ])
    .ok()
    .stderr;
    let named: Vec<usize> = ["text.png", "cut.jpg"]
        .iter()
        .map(|name| shown.matches(name).count())
        .collect();
    assert_eq!(named, [1, 1], "{shown}");
    // stdout is full.
    for arguments in [
        vec!["shards", "info", text(&set)],
        vec!["plan"],
        vec!["shard", text(&dir.path().join("data")), "--dry-run"],
    ] {
        let full = paragon(&arguments)
            .stdout(File::options().write(true).open("/dev/full").unwrap())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&full.stderr).into_owned();
        assert!(
            full.status.code() == Some(1) && error.contains("cannot write to stdout"),
            "{arguments:?}: {error}"
        );
    }
}
