//! `paragon train` on sets of HR alone: the LQ is made in the loader, and a run that was killed or
//! computed with other threads ends in the same bits.

use crate::{cli_common, shard_common, train_common};

use cli_common::{run, text};
use paragon::support::rng::Rng;
use shard_common::pictures;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use train_common::*;

const RECIPE: &str = "name: mild\nsteps:\n  - blur: {sigma: [0.4, 1.5], size: 7}\n  \
     - gaussian_noise: {sigma: [2, 10]}\n";

/// A set of HR alone that names a recipe, with held-out images.
fn hr_set() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (data, set) = (dir.path().join("data"), dir.path().join("set"));
    let recipe = dir.path().join("mild.yml");
    pictures(&data, 6);
    fs::write(&recipe, RECIPE).unwrap();
    run(&[
        "shard",
        text(&data),
        "--out",
        text(&set),
        "--lq-size",
        "16",
        "--margin",
        "4",
        "--hr-only",
        "--degrade",
        text(&recipe),
        "--val",
        "1",
    ])
    .ok();
    (dir, set, recipe)
}

#[test]
fn killed_in_the_middle_of_an_epoch_it_ends_in_the_same_bits() {
    let (dir, set, _) = hr_set();
    let flags: Flags = &[("--checkpoint-every", "1"), ("--val-every", "12")];
    let whole = dir.path().join("whole");
    let started = Instant::now();
    let ran = train(&set, &whole, flags).ok();
    assert!(
        ran.stderr.contains("by the recipe mild ("),
        "{}",
        ran.stderr
    );
    let time = started.elapsed().as_secs_f64();
    let expected = outcome(&whole);
    let more: Flags = &[
        ("--checkpoint-every", "1"),
        ("--val-every", "12"),
        ("--loader-threads", "3"),
    ];
    let threads = dir.path().join("threads");
    train(&set, &threads, more).ok();
    same(&outcome(&threads), &expected, "three loader threads");
    let mut rng = Rng::new(&[0x4445_4752]);
    let mut resumed = 0;
    for round in 0..3 {
        let out = dir.path().join(format!("killed{round}"));
        for _ in 0..3 {
            let mut child = start(&set, &out, flags);
            std::thread::sleep(Duration::from_secs_f64(time * rng.range(0.3, 0.9)));
            child.kill().unwrap();
            child.wait().unwrap();
            resumed += u32::from(!states(&out).is_empty());
        }
        train(&set, &out, flags).ok();
        same(&outcome(&out), &expected, "killed");
    }
    assert!(resumed > 0, "no kill came after a checkpoint");
}

#[test]
fn another_recipe_stops_a_resumed_run_and_the_run_keeps_its_own() {
    let (dir, set, recipe) = hr_set();
    let out = dir.path().join("run");
    let flags: Flags = &[("--iterations", "4"), ("--checkpoint-every", "2")];
    train(&set, &out, flags).ok();
    let kept = fs::read_to_string(out.join("degrade.yml")).unwrap();
    assert!(kept.contains("gaussian_noise"), "{kept}");
    let other = dir.path().join("other.yml");
    fs::write(&other, RECIPE.replace("10]", "12]")).unwrap();
    let changed: Flags = &[("--iterations", "6"), ("--degrade", text(&other))];
    train(&set, &out, changed).refused(1, &["another recipe", "--degrade mild (", "--continue"]);
    // the recipe of the set, that of the file it was made with, and that of the run are the same
    let same: Flags = &[("--iterations", "6"), ("--degrade", text(&recipe))];
    train(&set, &out, same).ok();
    fs::write(&recipe, RECIPE.replace("10]", "12]")).unwrap();
    let config = out.join("config.yml");
    run(&["train", "--config", text(&config), "--iterations", "8"]).ok();
    let off: Flags = &[("--iterations", "9"), ("--degrade", "none")];
    train(&set, &out, off).refused(1, &["--degrade mild", "off"]);
    let fresh = dir.path().join("fresh");
    train(&set, &fresh, off).refused(1, &["holds HR alone", "--degrade"]);
}

#[test]
fn a_stored_lq_can_be_made_anew_and_memory_counts() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let flags: Flags = &[
        ("--iterations", "2"),
        ("--degrade", "real-esrgan"),
        ("-v", ""),
    ];
    let ran = train(&set, &out, flags).ok();
    assert!(
        ran.stderr.contains("degradation: 1 threads"),
        "{}",
        ran.stderr
    );
    let plan = ["plan", "--lq-size", "16", "--device", "cpu"];
    let with = [&plan[..], &["--degrade", "real-esrgan"]].concat();
    assert!(!run(&plan).ok().stdout.contains("degradation"));
    assert!(run(&with).ok().stdout.contains("degradation: 1 threads"));
    let small: Flags = &[("--degrade", "real-esrgan"), ("--host-memory", "1M")];
    train(&set, &dir.path().join("small"), small).refused(1, &["memory"]);
}
