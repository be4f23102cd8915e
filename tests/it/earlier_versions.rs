//! Files of earlier versions: this program resumes, appends to, merges, verifies, trains on and
//! applies the files in each folder of tests/data that `scripts/make-samples` made with a released
//! program, and gives the bits that the old program would have given.

use crate::cli_common;

use cli_common::{Ran, run, text};
use paragon::backend::cpu::Isa;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The samples of every released version.
fn versions() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    found.retain(|path| path.join("expected.json").is_file());
    found.sort();
    assert!(
        !found.is_empty(),
        "the samples of released versions are part of the repository"
    );
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// A writable copy of a version's samples.
fn samples(version: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(version, dir.path());
    dir
}

fn shard(pictures: &Path, out: &Path, more: &[&str]) -> Value {
    let common = [
        "shard",
        text(pictures),
        "--out",
        text(out),
        "--lq-size",
        "16",
        "--host-memory",
        "64M",
        "--threads",
        "1",
        "--json",
    ];
    serde_json::from_str(&run(&[&common[..], more].concat()).ok().stdout).unwrap()
}

/// The shard files of a folder, one after another.
fn shards(folder: &Path) -> Vec<u8> {
    let mut names: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    names.retain(|path| path.extension().is_some_and(|e| e == "psh"));
    names.sort();
    names
        .iter()
        .flat_map(|path| fs::read(path).unwrap())
        .collect()
}

fn sha256(bytes: &[u8], folder: &Path) -> String {
    let file = folder.join("to-be-hashed");
    fs::write(&file, bytes).unwrap();
    let output = std::process::Command::new("sha256sum")
        .arg(&file)
        .output()
        .expect("sha256sum is a standard tool");
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_string()
}

#[test]
fn sets_are_whole_complete_and_added_to() {
    for version in versions() {
        let dir = samples(&version);
        let (pictures, set) = (dir.path().join("pictures"), dir.path().join("set"));
        run(&["shards", "verify", text(&set)]).ok();
        let before = shards(&set);
        let again = shard(&pictures, &set, &["--val", "1"]);
        assert_eq!(again["already_complete"], true, "{again}");
        copy(&dir.path().join("more"), &pictures);
        let added = shard(&pictures, &set, &["--val", "1", "--append"]);
        assert_eq!(
            (&added["used"], &added["already_complete"]),
            (&Value::from(1), &Value::from(false)),
            "{added}"
        );
        let after = shards(&set);
        assert!(
            after.len() > before.len() && after.starts_with(&before),
            "existing shards have changed"
        );
        run(&["shards", "verify", text(&set)]).ok();
    }
}

#[test]
fn sets_made_now_have_the_bytes_of_then() {
    for version in versions() {
        let dir = samples(&version);
        let fresh = dir.path().join("fresh");
        shard(&dir.path().join("pictures"), &fresh, &["--val", "1"]);
        for part in ["", "val"] {
            assert!(
                shards(&fresh.join(part)) == shards(&dir.path().join("set").join(part)),
                "{}: {part}",
                version.display()
            );
        }
    }
}

#[test]
fn parts_are_merged_and_interrupted_conversions_go_on() {
    for version in versions() {
        let dir = samples(&version);
        let at = |name: &str| dir.path().join(name);
        let fresh = at("fresh");
        shard(&at("pictures"), &fresh, &[]);
        let (merged, unfinished) = (at("merged"), at("unfinished"));
        run(&[
            "shards",
            "merge",
            text(&merged),
            text(&at("part-1")),
            text(&at("part-2")),
        ])
        .ok();
        let resumed = shard(&at("pictures"), &unfinished, &[]);
        assert!(
            resumed["resumed_images"].as_u64() > Some(0),
            "nothing of the interrupted conversion was kept: {resumed}"
        );
        for set in [&merged, &unfinished] {
            assert!(shards(set) == shards(&fresh), "{} differs", set.display());
            run(&["shards", "verify", text(set)]).ok();
        }
    }
}

#[test]
fn a_run_goes_on_to_the_same_bits() {
    for version in versions() {
        let dir = samples(&version);
        let at = |name: &str| dir.path().join(name);
        let expected: Value =
            serde_json::from_slice(&fs::read(at("expected.json")).unwrap()).unwrap();
        fs::remove_file(at("run/model.safetensors")).unwrap();
        let more = "--batch-size 2 --lr 1e-3 --warmup 2 --loss l1:1,ssim:0.05 --iterations 8 --log-every 1 --checkpoint-every 4 --threads 1";
        let (set, out) = (at("set"), at("run"));
        let mut arguments = vec![
            "train",
            "--shards",
            text(&set),
            "--out",
            text(&out),
            "--val",
            "none",
        ];
        arguments.extend(more.split(' '));
        let ran: Ran = run(&arguments).ok();
        assert!(
            ran.stderr.contains("after iteration 4") && ran.stdout.contains("iteration 8"),
            "{}{}",
            ran.stderr,
            ran.stdout
        );
        let log = fs::read_to_string(at("run/log.jsonl")).unwrap();
        assert_eq!(log.lines().count(), 8, "{log}");
        if expected["processor"] == Isa::detect().to_string() {
            let model = fs::read(at("run/model.safetensors")).unwrap();
            assert_eq!(
                sha256(&model, dir.path()),
                expected["model_sha256"].as_str().unwrap()
            );
        } else {
            println!(
                "SKIP the bits of the network: they were recorded on a processor with {}",
                expected["processor"]
            );
        }
        run(&["report", text(&out)]).ok();
    }
}

#[test]
fn networks_and_options_are_read() {
    for version in versions() {
        let dir = samples(&version);
        let at = |name: &str| dir.path().join(name);
        let model = at("run/model.safetensors");
        run(&[
            "upscale",
            text(&at("pictures/000000.png")),
            text(&at("large.png")),
            "-m",
            text(&model),
        ])
        .ok();
        run(&["eval", text(&at("pictures")), "-m", text(&model)]).ok();
        run(&["plan", "--config", text(&at("run/config.yml"))]).ok();
    }
}
