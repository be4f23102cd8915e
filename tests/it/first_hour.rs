//! What somebody sees who uses the program for the first time: which error comes first, what a wrong
//! word is answered with, what is said about files that are replaced, and screens of 60 to 200
//! columns. Every test runs the real binary.
#![cfg(unix)]

use crate::{cli_common, shard_common};

use cli_common::{Ran, model, paragon, run, text};
use paragon::model::{Network, write_model};
use shard_common::{config, make, picture, pictures};
use std::fs;
use std::path::{Path, PathBuf};

/// A set with held-out images.
fn set(folder: &Path) -> PathBuf {
    let (data, set) = (folder.join("data"), folder.join("set"));
    pictures(&data, 8);
    let val = Some(paragon::shard::plan::HeldOut::Count(2));
    let wanted = paragon::shard::plan::BuildConfig {
        val,
        ..config(&data, &set)
    };
    make(&wanted).unwrap();
    set
}

/// Runs in a folder, with so many columns.
fn run_in(folder: &Path, columns: usize, arguments: &[&str]) -> Ran {
    let mut command = paragon(arguments);
    command
        .current_dir(folder)
        .env("COLUMNS", columns.to_string());
    command.output().unwrap().into()
}

#[test]
fn a_network_that_cuda_cannot_train_is_refused_before_a_driver_is_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let out = dir.path().join("run");
    // the table of operations decides which networks train on CUDA
    for network in ["compact", "span", "photo", "pro", "stream", "nano"] {
        let common = ["--network", network, "--device", "cuda"];
        let planned = run(&[&["plan"], &common[..]].concat());
        let arguments = [
            "train",
            "--shards",
            text(&set),
            "--out",
            text(&out),
            "--iterations",
            "1",
        ];
        let ran = run(&[&arguments[..], &common].concat());
        if planned.code == Some(1) && planned.stderr.contains("CUDA cannot run") {
            ran.refused(1, &["CUDA cannot run the operation"]);
        } else {
            assert!(!ran.stderr.contains("CUDA cannot run"), "{}", ran.stderr);
        }
    }
}

#[test]
fn folders_of_an_option_file_are_not_listed_as_ignored_and_quiet_lists_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let file = dir.path().join("train.yml");
    let yaml = "name: x\nscale: 2\ndatasets:\n  train:\n    type: PairedImageDataset\n    dataroot_gt: a\n    dataroot_lq: b\n\
                network_g:\n  type: paragonsr2_nano\ntrain:\n  total_iter: 1\n  losses: [{type: l1loss}]\n  unknown_key: 3\n";
    fs::write(&file, yaml).unwrap();
    let train = |flag: &str| {
        run(&[
            "train",
            "--config",
            text(&file),
            "--shards",
            text(&set),
            "--out",
            text(&dir.path().join(flag)),
            "--network",
            "nano",
            "--val",
            "none",
            flag,
        ])
        .ok()
    };
    let told = train("-v").stderr;
    assert!(
        told.contains("dataroot_lq) are taken by `paragon shard --config"),
        "{told}"
    );
    assert!(
        !told.contains("not honoured: datasets.train.dataroot_gt"),
        "{told}"
    );
    assert!(told.contains("not honoured: train.unknown_key"), "{told}");
    let quiet = train("-q").stderr;
    assert!(!quiet.contains("honoured"), "{quiet}");
}

#[test]
fn nothing_new_to_append_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let data = dir.path().join("data");
    let append = ["shard", text(&data), "--out", text(&set), "--append"];
    let ran = run(&append).ok();
    assert!(
        ran.stdout
            .contains("nothing new was found; the set is unchanged"),
        "{}",
        ran.stdout
    );
    assert!(!ran.stdout.contains("0 found"), "{}", ran.stdout);
    fs::write(data.join("broken.png"), "no image").unwrap();
    let ran = run(&append).ok();
    assert!(
        ran.stdout.contains("(1 rejected); the set is unchanged"),
        "{}",
        ran.stdout
    );
    picture(60, 60, 1234).save(data.join("q.png")).unwrap();
    let ran = run(&append).ok();
    assert!(ran.stdout.contains("found = 1 used"), "{}", ran.stdout);
}

#[test]
fn a_side_below_the_data_set_wins_over_one_of_the_same_name_here() {
    let dir = tempfile::tempdir().unwrap();
    pictures(&dir.path().join("photos/big"), 2);
    pictures(&dir.path().join("big"), 5);
    let shard = |hr: &str| {
        let arguments = [
            "shard",
            "photos",
            "--hr",
            hr,
            "--lq-size",
            "16",
            "--dry-run",
            "--json",
        ];
        let ran = run_in(dir.path(), 100, &arguments).ok();
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        (report["images"].as_u64().unwrap(), ran.stderr)
    };
    let (images, told) = shard("big");
    assert_eq!(images, 2);
    assert!(
        told.contains("--hr big: photos/big is taken; write ./big"),
        "{told}"
    );
    fs::remove_dir_all(dir.path().join("photos/big")).unwrap();
    let (images, told) = shard("big");
    assert!(images == 5 && !told.contains("is taken"), "{images} {told}");
}

#[test]
fn completions_name_the_networks() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).ok().stdout;
        assert!(script.contains("paragonsr2_photo"), "{shell}");
    }
    let help = run(&["train", "--help"]).ok().stdout;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(!help.contains("[possible values: nano"), "{help}");
    assert!(help.contains("CosineAnnealingLR or cosine"), "{help}");
    run(&["plan", "--network", "no_such"]).refused(1, &["no_such"]);
}

#[test]
fn a_plan_begins_with_its_summary() {
    let ran = run(&["plan", "--time", "--lq-size", "32", "--batch-size", "1"]).ok();
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let line = |word: &str| lines.iter().position(|l| l.contains(word)).unwrap();
    assert!(line("GFLOP") < line("peak: operation"), "{}", ran.stdout);
    assert!(line("an iteration moves") < 4, "{}", ran.stdout);
    assert!(ran.stdout.contains("-v lists them"), "{}", ran.stdout);
    let more = run(&["plan", "-v"]).ok().stdout;
    assert!(more.lines().count() > lines.len() && !more.contains("-v lists them"));
    let quiet = run(&["plan", "-q"]).ok().stdout;
    assert!(
        quiet.lines().count() <= 4 && !quiet.contains("peak:"),
        "{quiet}"
    );
    run(&["plan", "--max", "--time", "--host-memory", "1G"])
        .refused(1, &["--time measures one batch and patch"]);
}

#[test]
fn replaced_and_existing_results_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let network = model(dir.path());
    let photos = dir.path().join("photos");
    fs::create_dir(&photos).unwrap();
    for i in 0..3 {
        picture(20, 16, i)
            .save(photos.join(format!("p{i}.png")))
            .unwrap();
    }
    fs::write(photos.join("moving.gif"), "GIF89a").unwrap();
    let out = dir.path().join("out");
    let base = ["upscale", text(&photos), text(&out), "-m", text(&network)];
    let upscale = |flags: &[&str]| run(&[&base[..], flags].concat());
    let first = upscale(&[]).ok().stderr;
    assert!(!first.contains("replaced"), "{first}");
    assert!(first.contains("1 .gif"), "{first}");
    assert!(
        upscale(&[])
            .ok()
            .stderr
            .contains("; 3 earlier results replaced")
    );
    fs::remove_file(out.join("p1.png")).unwrap();
    let before = fs::metadata(out.join("p0.png"))
        .unwrap()
        .modified()
        .unwrap();
    let third = upscale(&["--skip-existing"]).ok().stderr;
    assert!(
        third.contains("1 image,") && third.contains("2 left alone"),
        "{third}"
    );
    assert_eq!(
        fs::metadata(out.join("p0.png"))
            .unwrap()
            .modified()
            .unwrap(),
        before
    );
    let json = upscale(&["--skip-existing", "--json", "-q"]).ok();
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(
        report["existing"] == 3 && json.stderr.is_empty(),
        "{}",
        json.stderr
    );
    // a damaged file is named once
    fs::write(photos.join("broken.png"), "no image").unwrap();
    let failed = upscale(&["-q"]);
    assert_eq!(failed.code, Some(1));
    assert_eq!(
        failed.stderr.matches("broken.png").count(),
        1,
        "{}",
        failed.stderr
    );
    let one = [text(&photos.join("p0.png")), text(&out.join("p0.png"))].map(String::from);
    let single = run(&["upscale", &one[0], &one[1], "-m", text(&network)]).ok();
    assert!(
        single.stderr.contains("which was replaced"),
        "{}",
        single.stderr
    );
}

#[test]
fn exported_files_that_replace_others_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let network = model(dir.path());
    let out = dir.path().join("out");
    let export = || {
        run(&[
            "export",
            text(&network),
            "--safetensors",
            "--out",
            text(&out),
        ])
        .ok()
    };
    assert!(!export().stdout.contains("replaced"));
    assert!(export().stdout.contains(", replaced"));
}

#[test]
fn plausible_subcommands_are_answered() {
    for (words, answer) in [
        (&["shards", "check"][..], "`shards verify`"),
        (&["shards", "stats"], "`shards info`"),
        (&["shards", "ls"], "`shards list`"),
        (&["shards", "rm"], "`shards remove`"),
        (&["info"], "`shards`"),
        (&["stats"], "`shards`"),
        (&["ls"], "`shards`"),
        (&["rm"], "`shards`"),
        (&["test"], "`eval`"),
        (&["validate"], "`eval`"),
        (&["infer"], "`upscale`"),
        (&["resume"], "`train`"),
    ] {
        run(words).refused(2, &[answer]);
    }
}

#[test]
fn the_folder_of_runs_lists_them() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        fs::create_dir_all(dir.path().join("runs").join(name)).unwrap();
        fs::write(dir.path().join("runs").join(name).join("log.jsonl"), "").unwrap();
    }
    run_in(dir.path(), 100, &["report", "runs"])
        .refused(1, &["holds 2 runs", "runs/one", "runs/two", "compare them"]);
    run_in(dir.path(), 100, &["report", "."]).refused(1, &["holds no log"]);
}

#[test]
fn held_out_pairs_have_the_names_of_their_images() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let network = model(dir.path());
    let val = set.join("val");
    let ran = run(&["eval", text(&val), "-m", text(&network), "--json"]).ok();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let names: Vec<&str> = report["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["name"].as_str().unwrap())
        .collect();
    assert!(
        names[0].starts_with('p') && names[0].ends_with("_x0_y0"),
        "{names:?}"
    );
    let different: std::collections::HashSet<_> = names.iter().collect();
    assert_eq!(different.len(), names.len());
}

#[test]
fn start_values_of_another_network_name_it_and_the_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let other = Network::new("compact", 2).unwrap();
    let file = dir.path().join("other.safetensors");
    write_model(&file, &other, &other.params().start_values(1), None).unwrap();
    let out = dir.path().join("run");
    let arguments = [
        "train",
        "--shards",
        text(&set),
        "--out",
        text(&out),
        "--pretrain",
        text(&file),
    ];
    run(&arguments).refused(
        1,
        &[
            "the file holds compact x2",
            "its tensors are not those of paragonsr2_realtime x2",
            "missing",
        ],
    );
}

#[test]
fn screens_of_every_width_fit() {
    let dir = tempfile::tempdir().unwrap();
    set(dir.path());
    let network = model(dir.path());
    let long = dir
        .path()
        .join("a_rather_long_folder_name/of/a/run/best_network");
    fs::create_dir_all(long.parent().unwrap()).unwrap();
    fs::copy(&network, &long).unwrap();
    let folder = dir.path();
    let data = folder.join("data");
    let commands: [&[&str]; 6] = [
        &["networks"],
        &["plan", "-q"],
        &["shards", "info", "set"],
        &["eval", "set/val", "-m", text(&network)],
        &["eval", "set/val", "-m", text(&network), "-m", text(&long)],
        &["shard", text(&data), "--out", "other", "--lq-size", "16"],
    ];
    for columns in [60, 100, 200] {
        for command in commands {
            let _ = fs::remove_dir_all(folder.join("other"));
            let shown = run_in(folder, columns, command).ok().stdout;
            for line in shown.lines() {
                let fits = line.chars().count() <= columns;
                // a path without a space is not cut in a sentence
                let one_word = line
                    .split_whitespace()
                    .any(|word| word.len() + 14 > columns);
                assert!(fits || one_word, "{command:?} at {columns}: {line}");
            }
        }
        let two = run_in(folder, columns, commands[4]).ok().stdout;
        assert!(
            two.contains("best_network "),
            "the end of a path stays: {two}"
        );
    }
    let piped = paragon(&["networks"])
        .env_remove("COLUMNS")
        .output()
        .unwrap();
    let text = String::from_utf8(piped.stdout).unwrap();
    assert!(
        text.lines().any(|line| line.len() > 100),
        "a pipe gets whole lines"
    );
}
