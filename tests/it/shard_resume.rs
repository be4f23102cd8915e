//! Interrupted conversions: SIGKILL at hundreds of random points, damage to the files that were
//! left, changed images and options. The next run gives the bytes of an unbroken one and does not
//! repeat finished work.
#![cfg(unix)]

use crate::{cli_common, shard_common};

use cli_common::limit_files;
use paragon::support::rng::Rng;
use shard_common::{make_writable, paragon, picture, run};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A small collection with flat patches, duplicates, and a file whose damage only decoding finds.
fn collection(folder: &Path, count: u64) {
    fs::create_dir_all(folder).unwrap();
    for i in 0..count {
        picture(220, 160, i)
            .save(folder.join(format!("p{i:02}.png")))
            .unwrap();
    }
    let whole = fs::read(folder.join("p03.png")).unwrap();
    fs::write(folder.join("p03_cut.png"), &whole[..whole.len() - 50]).unwrap();
    fs::copy(folder.join("p01.png"), folder.join("p05_copy.png")).unwrap();
    image::RgbImage::from_pixel(100, 100, image::Rgb([40; 3]))
        .save(folder.join("p06_flat.png"))
        .unwrap();
}

/// Shards of 1 MiB, the smallest size of the command line, so that a run finishes many.
fn arguments<'a>(data: &'a Path, out: &'a Path) -> Vec<&'a str> {
    let size = [
        "--lq-size",
        "32",
        "--shard-size",
        "1",
        "--threads",
        "2",
        "--codec",
        "raw",
    ];
    [
        &[
            "shard",
            text(data),
            "--out",
            text(out),
            "--val",
            "0.3",
            "--min-detail",
            "1",
            "--json",
        ],
        &size[..],
    ]
    .concat()
}

/// Files of a set and of its held-out part.
fn all_files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for (prefix, folder) in [("", folder.to_path_buf()), ("val/", folder.join("val"))] {
        for entry in fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .map(|e| e.unwrap())
            .filter(|e| e.path().is_file())
        {
            all.insert(
                format!("{prefix}{}", entry.file_name().to_str().unwrap()),
                fs::read(entry.path()).unwrap(),
            );
        }
    }
    all
}

fn report(stdout: &str) -> serde_json::Value {
    serde_json::from_str(stdout).unwrap()
}

/// Runs to the end; returns the report.
fn finish(data: &Path, out: &Path) -> serde_json::Value {
    let (code, stdout, stderr) = run(&arguments(data, out));
    assert_eq!(code, Some(0), "{stderr}");
    report(&stdout)
}

#[test]
fn killed_at_two_hundred_points_the_set_is_the_same_and_finished_work_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (data, whole) = (dir.path().join("data"), dir.path().join("whole"));
    collection(&data, 24);
    let unbroken = finish(&data, &whole);
    let expected = all_files(&whole);
    assert!(expected.len() > 5, "{:?}", expected.keys());
    assert!(unbroken["flat"].as_u64() > Some(3) && unbroken["duplicates"].as_u64() > Some(3));
    let started = Instant::now();
    finish(&data, &dir.path().join("timed"));
    let time = started.elapsed().as_secs_f64();
    let (mut kills, mut in_the_middle, mut resumed, mut kept, mut rounds) = (0, 0, 0, 0, 0u64);
    while kills < 200 {
        let out = dir.path().join(format!("killed{rounds}"));
        let mut finished: BTreeMap<String, std::time::SystemTime> = BTreeMap::new();
        for kill in 0..3 {
            let mut child = paragon(&arguments(&data, &out))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_secs_f64(
                time * Rng::new(&[rounds, kill]).range(0.05, 0.7),
            ));
            child.kill().unwrap(); // SIGKILL
            child.wait().unwrap();
            kills += 1;
            if out.join("manifest.psm").exists() {
                break;
            }
            in_the_middle += 1;
            // The last finished shard may contain a part of the image in progress; its records are
            // then cut off and written again.
            for number in 0..8 {
                let [path, next] =
                    [number, number + 1].map(|n| out.join(format!("shard-{n:05}.psh")));
                if let (Ok(modified), true) = (
                    fs::metadata(&path).and_then(|m| m.modified()),
                    next.exists(),
                ) {
                    finished.entry(text(&path).into()).or_insert(modified);
                }
            }
        }
        let last = finish(&data, &out);
        assert!(all_files(&out) == expected, "round {rounds}");
        if last["already_complete"] == false {
            for count in [
                "images",
                "used",
                "patches",
                "flat",
                "duplicates",
                "pairs",
                "reasons",
                "bytes_in",
                "stored_raw",
                "fingerprint",
            ] {
                assert_eq!(last[count], unbroken[count], "{count} in round {rounds}");
            }
            resumed += u64::from(last["resumed_images"].as_u64() > Some(0));
        }
        kept += finished.len();
        for (path, modified) in &finished {
            assert_eq!(
                fs::metadata(path).unwrap().modified().unwrap(),
                *modified,
                "{path} was written again"
            );
        }
        fs::remove_dir_all(&out).unwrap();
        rounds += 1;
    }
    println!(
        "{kills} kills, {in_the_middle} before the end, {resumed} of {rounds} last runs resumed, {kept} shards were kept"
    );
    assert!(
        in_the_middle > 60,
        "{in_the_middle} kills came before the end"
    );
    assert!(resumed > 5, "{resumed} runs resumed");
    assert!(kept > 5, "{kept} shards were finished before a kill");
}

/// Runs until a limit on file sizes stops the run; the journal, the finished shards and the one in
/// progress are left.
fn stopped(data: &Path, out: &Path, bytes: u64) {
    let output = limit_files(&mut paragon(&arguments(data, out)), bytes)
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A stopped run with at least one finished shard, and the files and report of an unbroken run.
fn interrupted() -> (
    tempfile::TempDir,
    PathBuf,
    PathBuf,
    BTreeMap<String, Vec<u8>>,
) {
    let dir = tempfile::tempdir().unwrap();
    let (data, out, whole) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("whole"),
    );
    collection(&data, 24);
    finish(&data, &whole);
    let expected = all_files(&whole);
    let sizes: Vec<usize> = expected
        .iter()
        .filter(|(n, _)| n.starts_with("shard"))
        .map(|(_, b)| b.len())
        .collect();
    // Shards are about as large as their limit allows, with small differences.
    let limit = (1..sizes.len() - 1)
        .filter(|&i| sizes[i] > *sizes[..i].iter().max().unwrap())
        .map(|i| sizes[i] - 1)
        .next_back();
    stopped(&data, &out, limit.unwrap_or(sizes[0] - 1) as u64);
    assert!(out.join("journal.psj").exists() && !out.join("manifest.psm").exists());
    (dir, data, out, expected)
}

#[test]
fn every_kind_of_damage_to_what_was_left_is_noticed_and_made_good() {
    let (_dir, data, out, expected) = interrupted();
    let left = all_files(&out);
    let restore = || {
        for (name, bytes) in &left {
            let path = out.join(name);
            let _ = fs::remove_file(&path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
        }
    };
    let first = finish(&data, &out);
    assert!(first["resumed_images"].as_u64() > Some(0) && all_files(&out) == expected);
    let names: Vec<&String> = left
        .iter()
        .filter(|(_, bytes)| !bytes.is_empty())
        .map(|(name, _)| name)
        .collect();
    for (number, name) in names.iter().enumerate() {
        let whole = &left[*name];
        for way in 0..6u64 {
            let _ = fs::remove_dir_all(&out);
            restore();
            let path = out.join(name);
            let mut rng = Rng::new(&[number as u64, way]);
            let at = rng.below(whole.len() as u64) as usize;
            match way {
                0 => fs::remove_file(&path).unwrap(),
                1 | 2 => fs::write(&path, &whole[..at]).unwrap(),
                3 => fs::write(&path, [&whole[..], &[7; 999]].concat()).unwrap(),
                _ => {
                    // In a finished shard, damage outside of header and footer would not be noticed
                    // before `verify`.
                    let at = if name.contains(".psh") && !name.contains("partial") {
                        whole.len() - 1 - at % 64
                    } else {
                        at
                    };
                    let mut bytes = whole.clone();
                    bytes[at] ^= 1 << (way % 8);
                    fs::write(&path, bytes).unwrap();
                }
            }
            let _ = finish(&data, &out);
            assert!(all_files(&out) == expected, "{name}, damage {way}");
        }
    }
}

#[test]
fn changed_images_and_options_are_noticed_and_explained() {
    let (dir, data, out, _) = interrupted();
    let refused = |more: &[&str], words: &[&str]| {
        let before = all_files(&out);
        let (code, _, stderr) = run(&[&arguments(&data, &out)[..], more].concat());
        assert_eq!(code, Some(1), "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "{word} is missing in {stderr}");
        }
        assert!(all_files(&out) == before, "a file was changed");
    };
    refused(
        &["--scale", "4"],
        &[
            "unfinished set with other options",
            "the scale is 2 there and 4 here",
            "--overwrite",
        ],
    );
    refused(&["--seed", "9"], &["--seed is 0 there and 9 here"]);
    refused(
        &["--keep-duplicates"],
        &["--keep-duplicates is not given there and yes here"],
    );
    let (_, stdout, _) = run(&[&arguments(&data, &out)[..], &["--dry-run"]].concat());
    let told = report(&stdout);
    assert!(
        told["there"]
            .as_str()
            .unwrap()
            .contains("an interrupted run has done"),
        "{told}"
    );
    // An image whose content changed is converted again, and so are all images after it.
    let changed = data.join("p04.png");
    let size = fs::metadata(&changed).unwrap().len();
    let mut bytes = fs::read(data.join("p04.png")).unwrap();
    bytes.truncate(bytes.len() - 30);
    bytes.resize(size as usize, 0);
    fs::write(&changed, bytes).unwrap();
    let fresh = dir.path().join("fresh");
    finish(&data, &out);
    finish(&data, &fresh);
    assert!(all_files(&out) == all_files(&fresh));
    // Images that were added after the set was complete are noticed.
    picture(100, 100, 77).save(data.join("new.png")).unwrap();
    refused(&[], &["the images are not the same", "--append"]);
}

#[test]
fn an_interrupted_append_goes_on_and_another_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out, straight) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("straight"),
    );
    collection(&data, 8);
    for out in [&out, &straight] {
        finish(&data, out);
    }
    for i in 50..75 {
        picture(220, 160, i)
            .save(data.join(format!("q{i}.png")))
            .unwrap();
    }
    let appending = |out| [&arguments(&data, out)[..], &["--append"]].concat();
    let started = Instant::now();
    assert_eq!(run(&appending(&straight)).0, Some(0));
    let time = started.elapsed().as_secs_f64();
    let old = all_files(&out);
    for kill in 0..30 {
        let mut child = paragon(&appending(&out))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs_f64(
            time * Rng::new(&[5, kill]).range(0.2, 0.8),
        ));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = all_files(&out);
        // At every moment, the old set or the new set is complete.
        assert!(paragon::shard::reader::ShardSet::open(&out).is_ok());
        assert!(
            old.iter()
                .filter(|(n, _)| n.ends_with(".psh"))
                .all(|(n, b)| now.get(n) == Some(b)),
            "an old shard changed"
        );
    }
    let (code, _, stderr) = run(&appending(&out));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(all_files(&out) == all_files(&straight));
}

/// Kills an append between its two manifests: as soon as the held-out one has changed and while the
/// main one is still the old one.
fn kill_between_the_manifests(args: &[&str], out: &Path) {
    let manifests = || {
        [out.join("val/manifest.psm"), out.join("manifest.psm")]
            .map(|path| fs::read(path).unwrap_or_default())
    };
    let (old, start) = (manifests(), all_files(out));
    for _ in 0..200 {
        let mut child = paragon(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while child.try_wait().unwrap().is_none()
            && fs::read(out.join("val/manifest.psm")).unwrap_or_default() == old[0]
        {}
        let _ = child.kill();
        child.wait().unwrap();
        let now = manifests();
        if now[0] != old[0] && now[1] == old[1] {
            return;
        }
        // The kill came too late: restore the files and try again.
        for name in all_files(out).keys() {
            fs::remove_file(out.join(name)).unwrap();
        }
        start
            .iter()
            .for_each(|(name, bytes)| fs::write(out.join(name), bytes).unwrap());
    }
    panic!("no kill came between the manifests");
}

#[test]
fn an_append_killed_between_its_manifests_is_gone_on_with() {
    // Before the append, no image was held out (8 images), or some were (24 images).
    for (count, others) in [(8, false), (8, true), (24, false), (24, true)] {
        let dir = tempfile::tempdir().unwrap();
        let (data, out, straight) = (
            dir.path().join("data"),
            dir.path().join("set"),
            dir.path().join("straight"),
        );
        collection(&data, count);
        for out in [&out, &straight] {
            finish(&data, out);
        }
        assert_eq!(out.join("val/manifest.psm").exists(), count > 8);
        for i in 50..75 {
            picture(220, 160, i)
                .save(data.join(format!("q{i}.png")))
                .unwrap();
        }
        let appending = |out| [&arguments(&data, out)[..], &["--append"]].concat();
        kill_between_the_manifests(&appending(&out), &out);
        if others {
            // The images differ from those of the first try.
            fs::remove_file(data.join("q60.png")).unwrap();
            picture(220, 160, 99).save(data.join("q99.png")).unwrap();
        }
        for out in [&straight, &out] {
            let (code, _, stderr) = run(&appending(out));
            assert_eq!(code, Some(0), "{stderr}");
        }
        assert!(
            all_files(&out) == all_files(&straight),
            "{count} images, other ones: {others}"
        );
    }
}

#[test]
fn shards_without_their_journal_are_made_again_and_foreign_ones_are_left() {
    let (_dir, data, out, expected) = interrupted();
    fs::remove_file(out.join("journal.psj")).unwrap();
    let kept = all_files(&out);
    let (code, _, stderr) = run(&[&arguments(&data, &out)[..], &["--scale", "3"]].concat());
    assert!(
        code == Some(1) && stderr.contains("unfinished set with other options"),
        "{stderr}"
    );
    assert!(all_files(&out) == kept);
    finish(&data, &out);
    assert!(all_files(&out) == expected);
    // Finished files are read-only.
    for name in expected.keys() {
        assert!(
            fs::metadata(out.join(name))
                .unwrap()
                .permissions()
                .readonly(),
            "{name}"
        );
    }
    make_writable(&out.join("manifest.psm"));
}
