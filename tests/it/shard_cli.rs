//! The command `paragon shard`: exit codes, messages that name the file, full disks.

use crate::shard_common;

#[cfg(unix)]
use crate::cli_common::limit_files;
#[cfg(unix)]
use shard_common::paragon;
use shard_common::{files, picture, pictures, run};
use std::fs;
use std::path::Path;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs `paragon shard DATA --out OUT` for small patches, with the arguments `more`.
fn shard(data: &Path, out: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let base = [
        "shard",
        text(data),
        "--out",
        text(out),
        "--lq-size",
        "16",
        "--threads",
        "2",
    ];
    run(&[&base[..], more].concat())
}

/// Expects exit code 1, one error line that contains every word, and no panic.
fn refused(result: (Option<i32>, String, String), words: &[&str]) {
    let (code, stdout, stderr) = result;
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(
        stderr.contains("error: ") && !stderr.contains("panicked"),
        "{stderr}"
    );
    for word in words {
        assert!(stderr.contains(word), "{word} is missing in: {stderr}");
    }
}

#[test]
fn makes_a_set_and_reports_it() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 3);
    fs::write(data.join("bad.png"), "this is text").unwrap();
    let (code, stdout, stderr) = shard(&data, &out, &["--dry-run"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("dry run") && !out.exists());
    let (code, stdout, stderr) = shard(&data, &out, &["--json"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stderr.contains("rejected") && stderr.contains("bad.png"),
        "{stderr}"
    );
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (report["images"].as_u64(), report["used"].as_u64()),
        (Some(4), Some(3))
    );
    assert_eq!(report["rejected"].as_array().unwrap().len(), 1);
    assert!(report["pairs"].as_u64() > Some(3) && report["ratio"].as_f64() < Some(1.0));
    let (code, stdout, _) = shard(&data, &out, &[]);
    assert!(
        code == Some(0) && stdout.contains("the same set was there already"),
        "{stdout}"
    );
    refused(
        shard(&data, &out, &["--scale", "4"]),
        &["another set", "--overwrite"],
    );
    let (code, ..) = shard(&data, &out, &["--codec", "raw", "--overwrite"]);
    assert_eq!(code, Some(0));
}

/// If the working folder is also the data set, the outputs of earlier commands in it are not used
/// as data, and a message says so.
#[test]
fn leaves_its_own_output_out_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("data/shards"));
    pictures(&data, 3);
    assert_eq!(shard(&data, &out, &[]).0, Some(0));
    let before = files(&out);
    let (code, _, stderr) = run(&[
        "shards",
        "extract",
        text(&out),
        "--record",
        "0",
        "--out",
        text(&data),
    ]);
    assert_eq!(code, Some(0), "{stderr}");
    fs::create_dir_all(data.join("runs/x/previews")).unwrap();
    fs::write(data.join("runs/x/log.jsonl"), "").unwrap();
    picture(64, 64, 5)
        .save(data.join("runs/x/previews/1_0.png"))
        .unwrap();
    fs::create_dir_all(data.join("#recycle")).unwrap();
    picture(64, 64, 6)
        .save(data.join("#recycle/gone.png"))
        .unwrap();
    for (more, images) in [
        (&["--append", "--json"][..], 0),
        (&["--dry-run", "--json"], 3),
        (&["--json"], 3),
    ] {
        let (code, stdout, stderr) = shard(&data, &out, more);
        assert_eq!(code, Some(0), "{stderr}");
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(
            report["images"], images,
            "the outputs are not new images: {stdout}"
        );
        let own = report["left_out"]
            .as_array()
            .unwrap()
            .iter()
            .find(|l| l["reason"] == "own_output")
            .unwrap();
        assert_eq!(
            (&own["pictures"], &own["folders"]),
            (&2.into(), &2.into()),
            "{stdout}"
        );
        assert!(
            stderr.contains("note: 2 images and 2 folders left out: paragon's own output"),
            "{stderr}"
        );
        assert!(stderr.contains("#recycle"), "{stderr}");
    }
    assert_eq!(before, files(&out));
    let (_, stdout, _) = shard(&data, &out, &[]);
    assert!(
        stdout.contains("1 folder left out: thumbnails and waste bins"),
        "{stdout}"
    );
}

/// Folders whose names do not make clear what they contain, for every command that finds pairs.
#[test]
fn asks_where_a_layout_could_mean_two_things() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    for country in ["DE", "FR", "HR", "IT"] {
        pictures(&data.join(country), 2);
    }
    refused(shard(&data, &out, &[]), &["(6, such as ", "--hr"]);
    let hr = data.join("HR");
    let (code, stdout, stderr) = shard(&data, &out, &["--hr", text(&hr)]);
    assert!(
        code == Some(0) && stderr.contains("note: 6 images left out: outside"),
        "{stderr}"
    );
    assert!(
        stdout.contains("6 images left out: outside the chosen folders"),
        "{stdout}"
    );
    let set = dir.path().join("Set5");
    for (folder, side) in [("first", 64), ("second", 32)] {
        fs::create_dir_all(set.join(folder)).unwrap();
        picture(side, side, 1)
            .save(set.join(folder).join("baby.png"))
            .unwrap();
    }
    refused(
        shard(&set, &out, &["--overwrite"]),
        &[
            "different sizes",
            "first/baby.png (64x64)",
            "second/baby.png (32x32)",
            "--lq",
        ],
    );
}

#[test]
fn looks_into_a_set_and_finds_damage_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 3);
    refused(run(&["shards", "info", text(&out)]), &["no folder"]);
    assert_eq!(shard(&data, &out, &[]).0, Some(0));
    let (code, stdout, _) = run(&["shards", "info", text(&out)]);
    assert!(
        code == Some(0) && stdout.contains("3 used of 3 found") && stdout.contains("LQ 16 / HR 32"),
        "{stdout}"
    );
    let (code, stdout, _) = run(&["shards", "info", text(&out), "--json"]);
    let info: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(code == Some(0) && info["pairs"].as_u64() > Some(3));
    let (code, stdout, _) = run(&["shards", "verify", text(&out)]);
    assert!(code == Some(0) && stdout.contains("no damage"), "{stdout}");
    let path = out.join("shard-00000.psh");
    let mut bytes = fs::read(&path).unwrap();
    bytes[70] ^= 1;
    shard_common::make_writable(&path);
    fs::write(&path, bytes).unwrap();
    let (code, stdout, stderr) = run(&["shards", "verify", text(&out)]);
    assert!(
        stdout.contains("shard-00000.psh") && stdout.contains("image p000"),
        "{stdout}"
    );
    refused((code, stdout, stderr), &["1 of"]);
}

#[test]
fn rejects_an_empty_or_missing_folder_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    refused(shard(&data, &out, &[]), &["data"]);
    fs::create_dir(&data).unwrap();
    refused(shard(&data, &out, &[]), &["data"]);
    assert!(!out.exists());
}

#[test]
fn rejects_a_text_file_a_truncated_picture_and_too_small_ones_with_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("text.png"), "this is text").unwrap();
    picture(30, 80, 1).save(data.join("small.png")).unwrap();
    picture(80, 80, 1).save(data.join("cut.png")).unwrap();
    let whole = fs::read(data.join("cut.png")).unwrap();
    fs::write(data.join("cut.png"), &whole[..whole.len() / 2]).unwrap();
    refused(
        shard(&data, &out, &[]),
        &[
            "text.png",
            "small.png",
            "30x80",
            "cut.png",
            "none of the 3 images",
        ],
    );
    // With one good image the command succeeds and lists the others.
    picture(80, 80, 1).save(data.join("good.png")).unwrap();
    let (code, stdout, stderr) = shard(&data, &out, &[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("4 found = 1 used + 3 rejected"), "{stdout}");
    for name in ["text.png", "small.png", "cut.png"] {
        assert!(stderr.contains(name), "{stderr}");
    }
}

#[test]
fn rejects_pairs_that_do_not_match_or_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    for side in ["hr", "lr_x2"] {
        fs::create_dir_all(data.join(side)).unwrap();
    }
    picture(80, 80, 1).save(data.join("hr/a.png")).unwrap();
    picture(40, 39, 1).save(data.join("lr_x2/a.png")).unwrap();
    picture(80, 80, 2).save(data.join("hr/alone.png")).unwrap();
    refused(
        shard(&data, &out, &[]),
        &["a.png", "80x80", "40x39", "80x78", "alone.png"],
    );
    picture(80, 80, 3).save(data.join("hr/good.png")).unwrap();
    picture(40, 40, 3)
        .save(data.join("lr_x2/good.png"))
        .unwrap();
    let (code, stdout, stderr) = shard(&data, &out, &["--json"]);
    assert_eq!(code, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["lq_recipe"], "given");
    assert_eq!(report["used"], 1);
    let found = report["images"].as_u64().unwrap();
    assert_eq!(
        found,
        1 + report["rejected"].as_array().unwrap().len() as u64
    );
}

#[cfg(unix)]
#[test]
fn rejects_an_output_that_is_a_file_or_cannot_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    pictures(&data, 1);
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    refused(shard(&data, &file, &[]), &["file"]);
    refused(shard(&data, &file.join("below"), &[]), &["below"]);
    assert_eq!(fs::read(&file).unwrap(), b"x");
    refused(
        shard(&data, Path::new("/proc/nowhere"), &[]),
        &["/proc/nowhere"],
    );
}

#[test]
fn rejects_options_out_of_range() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 1);
    for (option, value) in [
        ("--scale", "0"),
        ("--scale", "17"),
        ("--stride", "0"),
        ("--shard-size", "0"),
    ] {
        refused(shard(&data, &out, &[option, value]), &[]);
    }
    for (option, value) in [
        ("--filter", "nonsense"),
        ("--codec", "zip"),
        ("--host-memory", "2 apples"),
        ("--scale", "-1"),
    ] {
        let (code, ..) = shard(&data, &out, &[option, value]);
        assert_eq!(code, Some(2), "{option} {value}");
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_one_clear_error_and_leaves_finished_shards() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out, whole) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("whole"),
    );
    fs::create_dir(&data).unwrap();
    for i in 0..20 {
        picture(400, 300, i)
            .save(data.join(format!("p{i:02}.png")))
            .unwrap();
    }
    let arguments = |out: &Path| {
        [
            "shard",
            text(&data),
            "--out",
            text(out),
            "--lq-size",
            "32",
            "--codec",
            "raw",
            "--shard-size",
            "1",
        ]
        .map(String::from)
    };
    let limited = |bytes: u64| {
        let mut command = paragon(&arguments(&out).each_ref().map(String::as_str));
        let output = limit_files(&mut command, bytes).output().unwrap();
        (
            output.status.code(),
            String::new(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    refused(
        limited(500_000),
        &["shard-00000.psh", "run the same command again"],
    );
    let whole_shards = |folder: &Path| {
        files(folder)
            .into_iter()
            .filter(|(n, _)| n.starts_with("shard-"))
            .collect::<Vec<_>>()
    };
    assert!(whole_shards(&out).is_empty() && !out.join("manifest.psm").exists());
    let (code, _, stderr) = run(&arguments(&whole).each_ref().map(String::as_str));
    assert_eq!(code, Some(0), "{stderr}");
    let made = files(&whole);
    let sizes: Vec<u64> = made
        .iter()
        .filter(|(n, _)| n.starts_with("shard"))
        .map(|(_, b)| b.len() as u64)
        .collect();
    assert!(sizes.len() > 4 && sizes[0] < sizes[3], "{sizes:?}");
    refused(limited(sizes[3] - 1), &["run the same command again"]);
    let left = whole_shards(&out);
    assert!(!left.is_empty() && left.len() < sizes.len());
    assert!(
        left.iter().all(|(name, bytes)| &made[name] == bytes),
        "a finished shard was lost or changed"
    );
    let (code, _, stderr) = run(&arguments(&out).each_ref().map(String::as_str));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        files(&out) == files(&whole),
        "the run after a full disk gives a different set"
    );
}
