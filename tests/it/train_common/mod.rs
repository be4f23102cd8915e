//! Helpers for the tests of `paragon train`: a small set, the command with short runs, the files of
//! a run, and signals.

use crate::cli_common::{Ran, paragon, run, text};
use crate::shard_common::{config, files, make, pictures};
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::process::Command;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

pub type Flags<'a> = &'a [(&'a str, &'a str)];

/// Iterations of the common run. Its log lines and checkpoints are at different iterations on
/// purpose.
pub const BASE: Flags = &[
    ("--iterations", "24"),
    ("--batch-size", "2"),
    ("--lr", "1e-3"),
    ("--warmup", "4"),
    // Milestones follow the number of iterations, and these tests extend runs.
    ("--schedule", "constant"),
    ("--log-every", "4"),
    ("--checkpoint-every", "5"),
    ("--threads", "2"),
];

/// `paragon train` with the common flags, of which `flags` replaces some and adds others.
pub fn command(set: &Path, out: &Path, flags: Flags) -> Vec<String> {
    let mut all = vec![
        "train".to_string(),
        "--shards".into(),
        text(set).into(),
        "--out".into(),
        text(out).into(),
    ];
    let kept = BASE
        .iter()
        .filter(|(name, _)| flags.iter().all(|(other, _)| other != name));
    for (name, value) in kept.chain(flags) {
        all.push(name.to_string());
        if !value.is_empty() {
            all.push(value.to_string());
        }
    }
    all
}

pub fn train(set: &Path, out: &Path, flags: Flags) -> Ran {
    run(&command(set, out, flags))
}

pub fn start(set: &Path, out: &Path, flags: Flags) -> Child {
    paragon(&command(set, out, flags))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A set of LQ 16 in a temporary folder.
pub fn set() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (data, set) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 4);
    make(&config(&data, &set)).unwrap();
    (dir, set)
}

pub fn states(out: &Path) -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = fs::read_dir(out.join("states"))
        .map_or(Vec::new(), |d| d.map(|e| e.unwrap().path()).collect());
    list.sort();
    list
}

pub fn log(out: &Path) -> Vec<serde_json::Value> {
    let lines = fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
    lines
        .lines()
        .filter_map(|l| serde_json::from_str(l).ok())
        .collect()
}

/// The parts of a run that must be equal: networks, newest state, the log without its timings.
#[derive(PartialEq)]
pub struct Outcome {
    pub model: Vec<u8>,
    /// Names and bytes of all network files, the best one among them.
    pub networks: std::collections::BTreeMap<String, Vec<u8>>,
    pub state: (String, Vec<u8>),
    pub log: Vec<serde_json::Value>,
}

pub fn outcome(out: &Path) -> Outcome {
    let newest = states(out).pop().unwrap();
    let mut log = log(out);
    for line in &mut log {
        for timing in ["it_per_s", "data_wait", "seconds", "anonymous"] {
            line.as_object_mut().unwrap().remove(timing).unwrap();
        }
    }
    let name = newest.file_name().unwrap().to_str().unwrap().to_string();
    Outcome {
        model: fs::read(out.join("model.safetensors")).unwrap(),
        networks: files(&out.join("models")),
        state: (name, fs::read(&newest).unwrap()),
        log,
    }
}

#[track_caller]
pub fn same(found: &Outcome, expected: &Outcome, what: &str) {
    assert_eq!(found.log, expected.log, "{what}: the logs differ");
    assert_eq!(found.state.0, expected.state.0, "{what}");
    assert!(
        found.state.1 == expected.state.1,
        "{what}: the states differ"
    );
    assert!(found.model == expected.model, "{what}: the networks differ");
}

/// No half-written file is left anywhere.
#[track_caller]
pub fn no_litter(out: &Path) {
    for folder in [out.to_path_buf(), out.join("models"), out.join("states")] {
        for entry in fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.ends_with(".partial"), "{name} was left");
        }
    }
}

pub fn wait_for_a_log_line(out: &Path) {
    wait_until("a log line", || !log(out).is_empty());
}

/// Waits for up to five minutes: the machine may be busy.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(
            started.elapsed() < Duration::from_secs(300),
            "no {what} in five minutes"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Starts a command whose output is read at its end.
#[cfg(unix)]
pub fn spawn(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Sends a signal to a process that has not been waited for.
#[cfg(unix)]
pub fn signal(child: &Child, signal: i32) {
    // SAFETY: the child was not waited for, so no other process can have its number.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

/// Waits for the end of a process.
#[cfg(unix)]
pub fn ended(child: Child) -> Ran {
    child.wait_with_output().unwrap().into()
}
