//! `paragon shard` with a degradation recipe, variants, and sets of HR alone, as a user gives them:
//! kills, appended images, what is refused, what the other commands say about such sets.

use crate::{cli_common, shard_common};

use cli_common::{run, text};
use paragon::shard::reader::ShardSet;
use paragon::support::rng::Rng;
use shard_common::{files, paragon, picture, pictures};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const RECIPE: &str = "name: mild\nsteps:\n  - blur: {sigma: [0.4, 1.5], size: 7}\n  \
     - gaussian_noise: {sigma: [2, 10]}\n  - jpeg: {quality: [40, 90]}\n";

/// Images in `data` and a recipe beside them.
fn place(count: u64) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (data, recipe) = (dir.path().join("data"), dir.path().join("mild.yml"));
    pictures(&data, count);
    fs::write(&recipe, RECIPE).unwrap();
    (dir, data, recipe)
}

fn shard<'a>(data: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["shard", text(data), "--out", text(out), "--lq-size", "16"];
    all.extend(more);
    all
}

#[cfg(unix)]
#[test]
fn a_killed_run_with_variants_ends_in_the_same_bytes() {
    let (dir, data, recipe) = place(0);
    fs::create_dir_all(&data).unwrap();
    for i in 0..10 {
        let image = picture(180, 150, i);
        image.save(data.join(format!("p{i}.png"))).unwrap();
    }
    fs::copy(data.join("p2.png"), data.join("p4_copy.png")).unwrap();
    let recipe = text(&recipe).to_string();
    let flags = [
        "--degrade",
        &recipe,
        "--variants",
        "3",
        "--seed",
        "4",
        "--shard-size",
        "1",
        "--codec",
        "raw",
        "--threads",
        "2",
        "--val",
        "0.3",
    ];
    let whole = dir.path().join("whole");
    let started = Instant::now();
    run(&shard(&data, &whole, &flags)).ok();
    let time = started.elapsed().as_secs_f64();
    let expected = (files(&whole), files(&whole.join("val")));
    let mut in_the_middle = 0;
    for round in 0..8u64 {
        let out = dir.path().join(format!("killed{round}"));
        let mut child = paragon(&shard(&data, &out, &flags))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let share = Rng::new(&[77, round]).range(0.1, 0.9);
        std::thread::sleep(Duration::from_secs_f64(time * share));
        child.kill().unwrap();
        child.wait().unwrap();
        in_the_middle += u32::from(!out.join("manifest.psm").exists());
        run(&shard(&data, &out, &flags)).ok();
        let mut found = (files(&out), files(&out.join("val")));
        found.0.remove(".lock");
        assert!(found == expected, "round {round}");
    }
    assert!(
        in_the_middle > 2,
        "{in_the_middle} kills came before the end"
    );
}

#[test]
fn images_are_added_with_the_recipe_of_the_set() {
    let (dir, data, recipe) = place(4);
    let out = dir.path().join("set");
    let flags = ["--degrade", text(&recipe), "--variants", "2", "--seed", "6"];
    run(&shard(&data, &out, &flags)).ok();
    picture(70, 70, 99).save(data.join("q.png")).unwrap();
    run(&["shard", text(&data), "--out", text(&out), "--append"]).ok();
    // the recipe of the set is taken, not the file, and the bytes are those of one run
    let whole = dir.path().join("whole");
    run(&shard(&data, &whole, &flags)).ok();
    let (added, once) = (
        ShardSet::open(&out).unwrap(),
        ShardSet::open(&whole).unwrap(),
    );
    assert_eq!((added.lqs(), added.len()), (2, once.len()));
    fs::write(&recipe, RECIPE.replace("40", "30")).unwrap();
    let more = [&flags[..], &["--append"]].concat();
    picture(70, 70, 98).save(data.join("r.png")).unwrap();
    run(&shard(&data, &out, &more)).refused(1, &["same options", "the LQ recipe is mild (recipe"]);
    run(&shard(&data, &out, &flags)).refused(1, &["another set", "the LQ recipe is mild"]);
}

#[test]
fn parts_with_different_recipes_are_not_merged() {
    let (dir, data, recipe) = place(4);
    let parts = [1, 2].map(|i| dir.path().join(format!("part{i}")));
    let other = dir.path().join("other.yml");
    fs::write(&other, RECIPE.replace("40", "30")).unwrap();
    run(&shard(
        &data,
        &parts[0],
        &["--degrade", text(&recipe), "--part", "1/2"],
    ))
    .ok();
    run(&shard(
        &data,
        &parts[1],
        &["--degrade", text(&other), "--part", "2/2"],
    ))
    .ok();
    let whole = dir.path().join("whole");
    run(&[
        "shards",
        "merge",
        text(&whole),
        text(&parts[0]),
        text(&parts[1]),
    ])
    .refused(
        1,
        &["not parts of one set", "the LQ recipe is mild (recipe"],
    );
}

#[test]
fn every_command_understands_variants_and_hr_alone() {
    let (dir, data, recipe) = place(4);
    let (several, alone) = (dir.path().join("several"), dir.path().join("alone"));
    let degrade = ["--degrade", text(&recipe)];
    let flags = [&degrade[..], &["--variants", "3"]].concat();
    let made = run(&shard(&data, &several, &flags)).ok();
    assert!(
        made.stdout.contains("3 variants, seed 0"),
        "{}",
        made.stdout
    );
    let info = run(&["shards", "info", text(&several)]).ok().stdout;
    assert!(
        info.contains("3 LQ patches of every HR patch") && info.contains("degrade    mild (hash "),
        "{info}"
    );
    let json = run(&["shards", "info", text(&several), "--json"])
        .ok()
        .stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["variants"], &json["degrade"]["seed"]),
        (&3.into(), &0.into())
    );
    assert!(
        json["degrade"]["text"]
            .as_str()
            .unwrap()
            .contains("gaussian_noise")
    );
    run(&["shards", "verify", text(&several)]).ok();
    run(&[
        "bench",
        "loader",
        "--shards",
        text(&several),
        "--lq-size",
        "12",
        "--json",
        "--epochs",
        "1",
    ])
    .ok();
    let flags = [&degrade[..], &["--hr-only", "--val", "1"]].concat();
    run(&shard(&data, &alone, &flags)).ok();
    let info = run(&["shards", "info", text(&alone)]).ok().stdout;
    assert!(
        info.contains("LQ         none is stored") && info.contains("of LQ 24"),
        "{info}"
    );
    run(&["shards", "verify", text(&alone)]).ok();
    let bench = [
        "bench",
        "loader",
        "--shards",
        text(&alone),
        "--json",
        "--epochs",
        "1",
        "--content",
    ];
    let content = |threads: &str| {
        let ran = run(&[&bench[..], &["--threads", threads]].concat()).ok();
        let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(json["degrade"]["name"], "mild");
        json["runs"][0]["content"].clone()
    };
    assert_eq!(content("1"), content("3"));
    let pairs = dir.path().join("pairs");
    run(&[
        "shards",
        "extract",
        text(&alone),
        "--record",
        "0",
        "--out",
        text(&pairs),
    ])
    .ok();
    assert!(pairs.join("00000000_lq.png").is_file());
}

#[test]
fn restoration_needs_no_given_lq() {
    let (dir, data, _) = place(3);
    let out = dir.path().join("set");
    run(&shard(&data, &out, &["--degrade", "jpeg", "--scale", "1"])).ok();
    let set = ShardSet::open(&out).unwrap();
    assert_eq!((set.scale(), set.lqs()), (1, 1));
    let none = dir.path().join("none");
    run(&shard(&data, &none, &["--scale", "1"])).refused(1, &["no LQ images", "--degrade jpeg"]);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let (dir, data, recipe) = place(3);
    let out = dir.path().join("set");
    for (flags, words) in [
        (vec!["--degrade", "jpeg", "--lq", "x"], "--lq"),
        (
            vec!["--degrade", "jpeg", "--lq-filter", "box"],
            "--lq-filter",
        ),
        (vec!["--hr-only", "--lq-blur", "1"], "--lq-blur"),
        (
            vec!["--hr-only", "--degrade", "jpeg", "--variants", "2"],
            "--variants",
        ),
        (vec!["--degrade", "jpeg", "--variants", "65"], "64"),
    ] {
        run(&shard(&data, &out, &flags)).refused(2, &[words]);
    }
    run(&shard(&data, &out, &["--variants", "2"])).refused(1, &["needs --degrade"]);
    run(&shard(&data, &out, &["--degrade", "jpg"])).refused(1, &["jpg", "jpeg"]);
    fs::write(&recipe, "steps:\n  - blurr: {}\n").unwrap();
    run(&shard(&data, &out, &["--degrade", text(&recipe)]))
        .refused(1, &["mild.yml, line 2", "did you mean blur?"]);
    assert!(!out.exists());
}
