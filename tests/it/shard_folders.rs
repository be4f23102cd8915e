//! `paragon shard` with several folders, with the folders of an option file, with a set that is
//! added to, and stopped; what is said about files that give no pairs; `paragon shards list` and
//! `remove`.

use crate::{cli_common, shard_common};

use cli_common::{run, text};
use serde_json::Value;
use shard_common::{picture, pictures};
use std::fs;
use std::path::Path;

/// Runs `paragon shard` with LQ patches of 16, and returns its JSON report.
fn shard(arguments: &[&str]) -> Value {
    let base = ["shard", "--threads", "2", "--json"];
    let ran = run(&[&base[..], arguments].concat()).ok();
    serde_json::from_str(&ran.stdout).unwrap()
}

fn list(set: &Path) -> Vec<Value> {
    let ran = run(&["shards", "list", text(set), "--json"]).ok();
    serde_json::from_str(&ran.stdout).unwrap()
}

fn names(set: &Path) -> Vec<String> {
    let name = |image: Value| image["name"].as_str().unwrap().to_string();
    list(set).into_iter().map(name).collect()
}

#[test]
fn several_folders_are_one_set_and_names_begin_with_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, out) = (
        dir.path().join("a"),
        dir.path().join("b"),
        dir.path().join("set"),
    );
    pictures(&a, 3);
    picture(70, 60, 99).save(a.join("other.png")).unwrap();
    fs::create_dir(&b).unwrap();
    // the same name in both folders, with other pixels
    picture(64, 64, 98).save(b.join("p000.png")).unwrap();
    let arguments = [text(&b), text(&a), "--out", text(&out), "--lq-size", "16"];
    let report = shard(&arguments);
    assert_eq!(report["used"], 5, "{report}");
    assert_eq!(
        names(&out),
        ["a/other", "a/p000", "a/p001", "a/p002", "b/p000"]
    );
    // in any order, and from another place, it is the same set
    let moved = dir.path().join("moved");
    fs::create_dir(&moved).unwrap();
    let (a2, b2) = (moved.join("a"), moved.join("b"));
    fs::rename(&a, &a2).unwrap();
    fs::rename(&b, &b2).unwrap();
    let again = shard(&[text(&a2), text(&b2), "--out", text(&out), "--lq-size", "16"]);
    assert_eq!(again["already_complete"], true, "{again}");
    run(&["shard", text(&a2), text(&moved), "--out", "x"]).refused(1, &["lie in one another"]);
    run(&["shard", text(&a2), text(&a2), "--out", "x"]).refused(1, &["given twice"]);
    run(&["shard", text(&a2), text(&b2), "--hr", "x", "--out", "x"])
        .refused(1, &["--hr and --lq name the sides of one folder"]);
}

#[test]
fn an_option_file_names_folders_scale_and_patch() {
    let dir = tempfile::tempdir().unwrap();
    let (hr, lq) = (dir.path().join("gt"), dir.path().join("lr"));
    let (more, made) = (dir.path().join("more"), dir.path().join("made"));
    pictures(&hr, 2);
    fs::create_dir(&lq).unwrap();
    for entry in fs::read_dir(&hr).unwrap() {
        let path = entry.unwrap().path();
        let image = image::open(&path).unwrap().to_rgb8();
        let (w, h) = (image.width() / 2 * 2, image.height() / 2 * 2);
        let cut = image::imageops::crop_imm(&image, 0, 0, w, h).to_image();
        cut.save(&path).unwrap();
        image::imageops::resize(&cut, w / 2, h / 2, image::imageops::FilterType::Triangle)
            .save(lq.join(path.file_name().unwrap()))
            .unwrap();
    }
    pictures(&more, 3);
    let yaml = |name: &str, content: String| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let pairs = yaml(
        "pairs.yml",
        format!(
            "scale: 2\ndatasets:\n  train:\n    dataroot_gt: [{}]\n    dataroot_lq: [{}]\n    gt_size: 32\n",
            text(&hr),
            text(&lq)
        ),
    );
    let out = dir.path().join("set");
    let report = shard(&["--config", text(&pairs), "--out", text(&out)]);
    assert_eq!(
        (&report["lq_recipe"], &report["lq_size"], &report["used"]),
        (&"given".into(), &16.into(), &2.into()),
        "{report}"
    );
    let alone = yaml(
        "alone.yml",
        format!(
            "scale: 2\ndatasets: {{train: {{type: otf, dataroot_gt: [{}, {}], lq_size: 99}}}}\n",
            text(&hr),
            text(&more)
        ),
    );
    let ran = run(&[
        "shard",
        "--config",
        text(&alone),
        "--out",
        text(&made),
        "--lq-size",
        "16",
        "--json",
    ])
    .ok();
    assert!(ran.stderr.contains("degrades on the fly"), "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    // two of the images are there twice, once in each folder
    assert_eq!(report["images"], 5, "{report}");
    assert!(
        names(&made)
            .iter()
            .all(|name| name.starts_with("gt/") || name.starts_with("more/"))
    );
    let empty = yaml("empty.yml", "name: x\n".into());
    run(&["shard", "--config", text(&empty)]).refused(1, &["empty.yml", "datasets.train"]);
    run(&["shard", "x", "--config", text(&empty)]).refused(2, &["--config"]);
    run(&["shard"]).refused(2, &["<DATASET>"]);
}

/// Images that give no pairs for each reason, beside three that do.
fn mixed(data: &Path) {
    pictures(data, 3);
    fs::copy(data.join("p001.png"), data.join("twin.png")).unwrap();
    picture(20, 20, 5).save(data.join("little.png")).unwrap();
    fs::write(data.join("moving.png"), b"GIF89a\x01\0\x01\0\0\0\0").unwrap();
    let mut cut = fs::read(data.join("p000.png")).unwrap();
    cut.truncate(cut.len() / 2);
    fs::write(data.join("cut.png"), cut).unwrap();
    for name in ["a.heic", "b.gif", "c.GIF", "d.txt", "e"] {
        fs::write(data.join(name), "x").unwrap();
    }
}

#[test]
fn files_without_pairs_are_counted_by_kind_and_the_counts_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    mixed(&data);
    let arguments = [text(&data), "--out", text(&out), "--lq-size", "16"];
    let first = shard(&arguments);
    let expected = serde_json::json!({
        "damaged": 1, "duplicate": 1, "not supported": 1, "too small": 1
    });
    assert_eq!(first["reasons"], expected, "{first}");
    let reason = |report: &Value, name: &str| {
        let mut all = report["rejected"].as_array().unwrap().iter();
        let found = all.find(|r| r["file"].as_str().unwrap().ends_with(name));
        let found = found.unwrap_or_else(|| panic!("{name}: {report}"));
        (
            found["kind"].as_str().unwrap().to_string(),
            found["reason"].as_str().unwrap().to_string(),
        )
    };
    assert_eq!(
        reason(&first, "twin.png"),
        ("duplicate".into(), "same pixels as p001".into())
    );
    assert_eq!(reason(&first, "moving.png").0, "not supported");
    assert_eq!(reason(&first, "cut.png").0, "damaged");
    assert_eq!(
        first["ignored_endings"],
        serde_json::json!({ "": 1, "gif": 2, "heic": 1, "txt": 1 })
    );
    let again = shard(&arguments);
    assert_eq!(again["already_complete"], true);
    assert_eq!(again["reasons"], expected, "{again}");
    for name in ["twin.png", "moving.png", "cut.png", "little.png"] {
        assert_eq!(reason(&again, name).0, reason(&first, name).0, "{name}");
    }
    let shown = run(&[&["shard"], &arguments[..]].concat()).ok();
    assert!(
        shown
            .stdout
            .contains("ignored: 2 .gif, 1 .heic (convert to PNG or JPEG), 2 that are no images"),
        "{}",
        shown.stdout
    );
    // the path stands once, and the size that would take the small one is named
    let line = shown
        .stderr
        .lines()
        .find(|line| line.contains("moving.png"))
        .unwrap();
    assert_eq!(line.matches("moving.png").count(), 1, "{line}");
    assert!(
        shown
            .stderr
            .contains("would take the image that is too small")
            || shown.stderr.contains("try a smaller --lq-size"),
        "{}",
        shown.stderr
    );
}

/// A twin in a shard that is finished already is named, too.
#[test]
fn a_twin_is_named_across_shards_and_sets_that_are_added_to() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    fs::create_dir(&data).unwrap();
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        picture(640, 640, seed)
            .save(data.join(format!("{name}.png")))
            .unwrap();
    }
    fs::copy(data.join("a.png"), data.join("z.png")).unwrap();
    let arguments = [
        text(&data),
        "--out",
        text(&out),
        "--lq-size",
        "64",
        "--shard-size",
        "1",
    ];
    let report = shard(&arguments);
    assert!(report["shards"].as_u64() > Some(1), "{report}");
    assert_eq!(
        report["rejected"][0]["reason"], "same pixels as a",
        "{report}"
    );
    fs::copy(data.join("b.png"), data.join("y.png")).unwrap();
    picture(640, 640, 4).save(data.join("new.png")).unwrap();
    let report = shard(&[text(&data), "--out", text(&out), "--append"]);
    let reasons = report["rejected"].to_string();
    assert!(reasons.contains("same pixels as b"), "{report}");
}

#[test]
fn the_patch_that_would_take_all_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    for (name, width) in [("a", 321), ("b", 481)] {
        picture(width, 330, 1)
            .save(data.join(format!("{name}.png")))
            .unwrap();
    }
    let out = dir.path().join("set");
    run(&["shard", text(&data), "--scale", "4", "--out", text(&out)])
        .refused(1, &["--lq-size 80 would take all 2"]);
    run(&[
        "shard",
        text(&data),
        "--scale",
        "4",
        "--margin",
        "8",
        "--out",
        text(&out),
    ])
    .refused(1, &["--lq-size 72 would take all 2"]);
}

#[test]
fn appending_takes_the_options_of_the_set_and_counts_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 8);
    let base = [text(&data), "--out", text(&out)];
    let options = [
        "--lq-size",
        "12",
        "--margin",
        "4",
        "--val",
        "0.3",
        "--seed",
        "5",
        "--lq-filter",
        "random",
        "--lq-blur",
        "0.7",
        "--codec",
        "raw",
        "--min-detail",
        "0.01",
    ];
    shard(&[&base[..], &options].concat());
    let before = names(&out);
    fs::remove_file(data.join(format!("{}.png", before[0]))).unwrap();
    for i in 50..54 {
        picture(70, 70, i)
            .save(data.join(format!("q{i}.png")))
            .unwrap();
    }
    let report = shard(&[&base[..], &["--append"]].concat());
    assert_eq!(
        (&report["gone"], &report["images"]),
        (&1.into(), &4.into()),
        "{report}"
    );
    assert!(names(&out).len() > before.len());
    let info = run(&["shards", "info", text(&out)]).ok().stdout;
    assert!(
        info.contains("--seed 5") && info.contains("crops of 12"),
        "{info}"
    );
    let shown = run(&[&["shard"], &base[..], &["--append"]].concat())
        .ok()
        .stdout;
    assert!(
        shown.contains("1 image of the set is no longer in the folder; its pairs stay"),
        "{shown}"
    );
    run(&[&["shard"], &base[..], &["--append", "--seed", "6"]].concat())
        .refused(1, &["--seed is 5 there and 6 here"]);
}

#[test]
fn fewer_images_than_are_held_out_can_be_added() {
    let dir = tempfile::tempdir().unwrap();
    let (data, more, out) = (
        dir.path().join("data"),
        dir.path().join("more"),
        dir.path().join("set"),
    );
    pictures(&data, 6);
    fs::create_dir(&more).unwrap();
    picture(64, 64, 70).save(more.join("new.png")).unwrap();
    shard(&[
        text(&data),
        "--out",
        text(&out),
        "--lq-size",
        "16",
        "--val",
        "3",
    ]);
    let report = shard(&[text(&more), "--out", text(&out), "--append"]);
    assert_eq!(
        (&report["used"], &report["gone"]),
        (&1.into(), &6.into()),
        "{report}"
    );
    assert!(names(&out).contains(&"new".to_string()));
}

#[test]
fn a_set_is_listed_looked_into_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("shards"));
    pictures(&data, 6);
    shard(&[
        text(&data),
        "--out",
        text(&out),
        "--lq-size",
        "16",
        "--val",
        "2",
    ]);
    let all = list(&out);
    assert_eq!(all.len(), 6);
    assert_eq!(
        all.iter().filter(|image| image["held_out"] == true).count(),
        2
    );
    let shown = run(&["shards", "list", text(&out)]).ok().stdout;
    assert!(
        shown.contains("p000")
            && shown.contains("4 images,")
            && shown.contains("held out: 2 images"),
        "{shown}"
    );
    let patches: u64 = all
        .iter()
        .map(|image| image["patches"].as_u64().unwrap())
        .sum();
    let name = all[0]["name"].as_str().unwrap();
    // without a folder, commands look at shards/; names may have their extension
    let here = |arguments: &[&str]| -> cli_common::Ran {
        cli_common::paragon(arguments)
            .current_dir(dir.path())
            .output()
            .unwrap()
            .into()
    };
    here(&[
        "shards",
        "extract",
        "--source",
        &format!("{name}.png"),
        "--out",
        "pairs",
    ])
    .ok();
    let written = fs::read_dir(dir.path().join("pairs")).unwrap().count() as u64;
    assert_eq!(written, 2 * all[0]["patches"].as_u64().unwrap());
    here(&["shards", "sheet", "sheet.png"]).ok();
    assert!(dir.path().join("sheet.png").is_file() && patches > 6);
    here(&["shards", "extract", "--source", "zebra"]).refused(1, &["zebra", "paragon shards list"]);
    // an image cannot be taken out; the command that makes the set without it is shown
    let how = here(&["shards", "remove", "--source", name]).ok().stdout;
    assert!(
        how.contains("--scale 2 --lq-size 16") && how.contains("--val 2 --seed 0 --overwrite"),
        "{how}"
    );
    here(&["shards", "remove"]).refused(1, &["nothing is deleted without --yes"]);
    assert!(out.join("manifest.psm").is_file());
    fs::write(out.join("notes.txt"), "mine").unwrap();
    here(&["shards", "remove", "--yes"]).ok();
    let left: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["notes.txt"]);
    here(&["shards", "remove", "--yes"]).refused(1, &["no shard set"]);
    here(&["shards", "remove", "nowhere", "--yes"]).refused(1, &["no folder nowhere"]);
    assert!(!dir.path().join("nowhere").exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_done_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out, whole) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("whole"),
    );
    fs::create_dir(&data).unwrap();
    for i in 0..60 {
        picture(400, 400, i)
            .save(data.join(format!("p{i:02}.png")))
            .unwrap();
    }
    let arguments = [
        "shard",
        text(&data),
        "--lq-size",
        "32",
        "--threads",
        "1",
        "--out",
    ];
    let mut child = cli_common::paragon(&[&arguments[..], &[text(&out)]].concat())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let begun = out.join(".shard-00000.psh.partial");
    while !begun.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let killed = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    let ran: cli_common::Ran = child.wait_with_output().unwrap().into();
    assert_eq!(ran.code, Some(130), "{}{}", ran.stdout, ran.stderr);
    assert!(
        ran.stderr
            .contains("of 60 images are done. The same command goes on from here."),
        "{}",
        ran.stderr
    );
    let ran = run(&[&arguments[..], &[text(&out)]].concat()).ok();
    assert!(
        ran.stderr.contains("were done by an interrupted run"),
        "{}",
        ran.stderr
    );
    run(&[&arguments[..], &[text(&whole)]].concat()).ok();
    let bytes = |set: &Path| fs::read(set.join("shard-00000.psh")).unwrap();
    assert!(bytes(&out) == bytes(&whole));
}
