//! Options that decide which pairs a set contains: held-out images, flat patches, duplicates,
//! margins, parts, images added later; and extracting from a finished set.

use crate::shard_common;

use paragon::shard::manifest::Manifest;
use paragon::shard::merge::merge;
use paragon::shard::plan::{BuildConfig, HeldOut, positions};
use paragon::shard::reader::{Crop, ShardSet};
use paragon::shard::{convert_detail, images, tools};
use shard_common::{config, files, make, make_writable, paragon, picture, pictures, run};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn sources(folder: &Path) -> BTreeSet<String> {
    ShardSet::open(folder)
        .unwrap()
        .sources()
        .unwrap()
        .into_iter()
        .map(|(s, _)| s.name)
        .collect()
}

fn nothing() -> paragon::support::progress::Progress {
    paragon::support::progress::Progress::hidden()
}

/// Files of a set and of its held-out part.
fn all_files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (prefix, folder) in [("", folder.to_path_buf()), ("val/", folder.join("val"))] {
        for entry in fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .map(|e| e.unwrap())
            .filter(|e| e.path().is_file())
        {
            all.push((
                format!("{prefix}{}", entry.file_name().to_str().unwrap()),
                fs::read(entry.path()).unwrap(),
            ));
        }
    }
    all.sort();
    all
}

#[test]
fn held_out_images_are_whole_and_chosen_by_name_and_seed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    pictures(&data, 30);
    let out = |name: &str| dir.path().join(name);
    let set = |name: &str, val, seed| {
        let mut wanted = BuildConfig {
            val: Some(val),
            ..config(&data, &out(name))
        };
        wanted.recipe.seed = seed;
        make(&wanted).unwrap()
    };
    let report = set("a", HeldOut::Count(7), 0);
    let (train, val) = (sources(&out("a")), sources(&out("a/val")));
    assert_eq!((train.len(), val.len()), (23, 7));
    assert!(train.is_disjoint(&val));
    let held_out = report.held_out.clone().unwrap();
    assert_eq!((report.images, report.used, held_out.images), (30, 30, 7));
    assert_eq!(
        report.patches,
        report.pairs + held_out.pairs + report.flat + report.duplicates
    );
    set("b", HeldOut::Count(7), 1);
    assert_ne!(sources(&out("b/val")), val);
    // With a share, an image stays held out when other images are added or removed.
    set("c", HeldOut::Share(0.3), 0);
    let share = sources(&out("c/val"));
    assert!((3..16).contains(&share.len()), "{share:?}");
    fs::remove_file(data.join("p000.png")).unwrap();
    fs::remove_file(data.join("p001.png")).unwrap();
    set("d", HeldOut::Share(0.3), 0);
    let left: BTreeSet<_> = share
        .iter()
        .filter(|n| !["p000", "p001"].contains(&n.as_str()))
        .cloned()
        .collect();
    assert_eq!(sources(&out("d/val")), left);
    // A shard of the held-out set is not accepted in the main set.
    let shard = "shard-00000.psh";
    make_writable(&out("a").join(shard));
    fs::copy(out("a/val").join(shard), out("a").join(shard)).unwrap();
    assert!(format!("{:#}", ShardSet::open(&out("a")).err().unwrap()).contains("another set"));
    let error = make(&BuildConfig {
        val: Some(HeldOut::Count(28)),
        ..config(&data, &out("e"))
    })
    .unwrap_err();
    assert!(
        format!("{error:#}").contains("28 images are to be held out of 28"),
        "{error:#}"
    );
}

#[test]
fn flat_patches_are_left_out_by_the_stated_rule() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    pictures(&data, 12);
    image::RgbImage::from_pixel(64, 64, image::Rgb([9, 9, 9]))
        .save(data.join("level.png"))
        .unwrap();
    let all = make(&config(&data, &dir.path().join("all"))).unwrap();
    assert_eq!((all.flat, all.duplicates), (0, 3)); // `level` gives one pair four times
    let least = 12.0;
    let out = dir.path().join("some");
    let some = make(&BuildConfig {
        min_detail: least,
        ..config(&data, &out)
    })
    .unwrap();
    assert!(
        some.flat > 8 && some.pairs > 8,
        "{} {}",
        some.flat,
        some.pairs
    );
    assert_eq!(some.patches, all.patches);
    assert_eq!(some.patches, some.pairs + some.flat + some.duplicates);
    assert_eq!(some.images, some.used + some.rejected.len() as u64);
    assert!(
        some.rejected
            .iter()
            .any(|r| r.kind == "flat" && r.file.ends_with("level.png")),
        "{:?}",
        some.rejected
    );
    // Every kept pair reaches the bound, and every pair that reaches it is kept.
    let details = |folder: &Path| -> Vec<f64> {
        let set = ShardSet::open(folder).unwrap();
        (0..set.len())
            .map(|i| convert_detail(tools::pair(&set, i).unwrap().1.as_raw(), 32))
            .collect()
    };
    assert!(details(&out).iter().all(|&d| d >= least));
    let enough = details(&dir.path().join("all"))
        .iter()
        .filter(|&&d| d >= least)
        .count() as u64;
    assert_eq!(enough, some.pairs);
    assert_eq!(convert_detail(&[5; 32 * 32 * 3], 32), 0.0);
    let stripes: Vec<u8> = (0..32 * 32)
        .flat_map(|i| [if i % 2 == 0 { 0 } else { 200 }; 3])
        .collect();
    assert!((convert_detail(&stripes, 32) - 200.0 * 31.0 / 32.0).abs() < 1e-9);
}

#[test]
fn the_first_of_equal_pairs_stays_whatever_the_threads_and_sets() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    pictures(&data, 20);
    for (from, to) in [
        ("p003", "a_copy"),
        ("p003", "p003_copy"),
        ("p011", "zz/copy"),
    ] {
        fs::create_dir_all(data.join(to).parent().unwrap()).unwrap();
        fs::copy(
            data.join(format!("{from}.png")),
            data.join(format!("{to}.png")),
        )
        .unwrap();
    }
    let out = |n: usize| dir.path().join(n.to_string());
    let wanted = |threads| BuildConfig {
        threads,
        val: Some(HeldOut::Share(0.4)),
        ..config(&data, &out(threads))
    };
    let reports: Vec<_> = [1, 2, 5]
        .into_iter()
        .map(|threads| make(&wanted(threads)).unwrap())
        .collect();
    assert!(all_files(&out(1)) == all_files(&out(2)) && all_files(&out(1)) == all_files(&out(5)));
    let report = &reports[0];
    assert_eq!(
        (report.images, report.used, report.reasons.get("duplicate")),
        (23, 20, Some(&3))
    );
    assert!(report.duplicates >= 3);
    let names: BTreeSet<_> = sources(&out(1))
        .into_iter()
        .chain(sources(&out(1).join("val")))
        .collect();
    assert!(
        names.contains("a_copy")
            && !names.contains("p003")
            && !names.contains("p003_copy")
            && !names.contains("zz/copy")
    );
    let kept = make(&BuildConfig {
        keep_duplicates: true,
        val: None,
        ..config(&data, &dir.path().join("kept"))
    })
    .unwrap();
    assert_eq!((kept.used, kept.duplicates), (23, 0));
    let again = make(&wanted(1)).unwrap();
    assert!(
        again.already_complete
            && again.duplicates == report.duplicates
            && again.patches == report.patches
    );
    assert_eq!(
        (again.images, again.used, again.rejected.len()),
        (23, 20, 3)
    );
}

#[test]
fn a_margin_is_stored_and_the_crop_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 4);
    let base = [
        "shard",
        text(&data),
        "--out",
        text(&out),
        "--lq-size",
        "16",
        "--margin",
        "4",
    ];
    let (code, stdout, stderr) = run(&base);
    assert!(
        code == Some(0) && stdout.contains("LQ 20 / HR 40 (for crops of 16)"),
        "{stdout}{stderr}"
    );
    let set = ShardSet::open(&out).unwrap();
    assert_eq!(
        (set.lq_size(), set.manifest().crop(), set.manifest().stride),
        (20, 16, 20)
    );
    let (mut scratch, mut lq, mut hr) = (
        set.scratch().unwrap(),
        vec![0; 16 * 16 * 3],
        vec![0; 32 * 32 * 3],
    );
    set.read_crop(
        0,
        Crop {
            x: 4,
            y: 3,
            size: 16,
        },
        &mut scratch,
        &mut lq,
        &mut hr,
    )
    .unwrap();
    let (code, _, stderr) = run(&[&base[..5], &["15", "--margin", "4294967295"]].concat());
    assert!(code == Some(1) && stderr.contains("--margin"), "{stderr}");
}

/// The tasks of array jobs and launchers, by their variables alone: merged, their parts are the
/// undivided set.
#[test]
fn parts_by_the_variables_of_a_scheduler_are_merged_to_the_undivided_set() {
    const INDEXES: [&str; 10] = [
        "SLURM_ARRAY_TASK_ID",
        "PBS_ARRAY_INDEX",
        "LSB_JOBINDEX",
        "SGE_TASK_ID",
        "AWS_BATCH_JOB_ARRAY_INDEX",
        "JOB_COMPLETION_INDEX",
        "OMPI_COMM_WORLD_RANK",
        "PMI_RANK",
        "RANK",
        "SLURM_PROCID",
    ];
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    pictures(&data, 7);
    let shard = |out: &Path, more: &[&str], variables: &[(&str, &str)]| {
        let base = [
            "shard",
            text(&data),
            "--out",
            text(out),
            "--lq-size",
            "16",
            "--val",
            "2",
        ];
        let mut command = paragon(&[&base[..], more].concat());
        INDEXES.iter().for_each(|name| {
            command.env_remove(name);
        });
        command.envs(variables.iter().copied()).output().unwrap()
    };
    let whole = dir.path().join("whole");
    assert!(shard(&whole, &[], &[]).status.success());
    let slurm = [
        ("SLURM_ARRAY_TASK_MIN", "4"),
        ("SLURM_ARRAY_TASK_MAX", "8"),
        ("SLURM_ARRAY_TASK_STEP", "2"),
        ("SLURM_ARRAY_TASK_COUNT", "3"),
    ];
    for (name, flag, index, others) in [
        (
            "slurm",
            "auto",
            ("SLURM_ARRAY_TASK_ID", ["4", "6", "8"]),
            &slurm[..],
        ),
        (
            "kubernetes",
            "auto/3",
            ("JOB_COMPLETION_INDEX", ["0", "1", "2"]),
            &[],
        ),
        (
            "mpi",
            "auto",
            ("PMI_RANK", ["0", "1", "2"]),
            &[("PMI_SIZE", "3")],
        ),
    ] {
        let folders = [1, 2, 3].map(|i| dir.path().join(format!("{name}{i}")));
        for (i, folder) in folders.iter().enumerate() {
            let task = (index.0, index.1[i]);
            let made = shard(folder, &["--part", flag], &[&[task], others].concat());
            let stderr = String::from_utf8_lossy(&made.stderr);
            let said = format!("part {}/3, from {}={}", i + 1, task.0, task.1);
            assert!(made.status.success() && stderr.contains(&said), "{stderr}");
        }
        let out = dir.path().join(format!("{name}-merged"));
        merge(&out, &folders, false, &nothing()).unwrap();
        assert!(all_files(&out) == all_files(&whole), "{name}");
    }
    for (flag, variables, word) in [
        ("auto", &[][..], "none of SLURM_ARRAY_TASK_ID"),
        ("auto", &[("PBS_ARRAY_INDEX", "1")], "--part auto/8"),
        (
            "auto",
            &[("RANK", "one"), ("WORLD_SIZE", "2")],
            "RANK is `one`",
        ),
    ] {
        let out = dir.path().join("none");
        let refused = shard(&out, &["--part", flag], variables);
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(
            refused.status.code() == Some(1) && stderr.contains(word),
            "{stderr}"
        );
        assert!(!out.exists());
    }
}

#[test]
fn merged_parts_are_the_undivided_set_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    pictures(&data, 25);
    fs::write(data.join("p004x.png"), "no image").unwrap();
    picture(20, 90, 1).save(data.join("p010x.png")).unwrap(); // too small
    let cut = fs::read(data.join("p005.png")).unwrap();
    fs::write(data.join("p017x.png"), &cut[..cut.len() - 40]).unwrap(); // found only by decoding
    // A duplicate in another part.
    fs::copy(data.join("p002.png"), data.join("p022_copy.png")).unwrap();
    let whole = dir.path().join("whole");
    let wanted = |out: &Path| BuildConfig {
        val: Some(HeldOut::Count(4)),
        min_detail: 6.0,
        ..config(&data, out)
    };
    let report = make(&wanted(&whole)).unwrap();
    for parts in [1, 2, 3, 40] {
        let folders: Vec<PathBuf> = (1..=parts)
            .map(|i| dir.path().join(format!("{parts}-{i}")))
            .collect();
        for i in (1..=parts).rev() {
            let folder = &folders[i as usize - 1];
            make(&BuildConfig {
                part: Some((i, parts)),
                threads: 1,
                ..wanted(folder)
            })
            .unwrap();
        }
        let out = dir.path().join(format!("merged{parts}"));
        let mut shuffled = folders.clone();
        shuffled.rotate_left(parts as usize / 2);
        let merged = merge(&out, &shuffled, false, &nothing()).unwrap();
        assert!(all_files(&out) == all_files(&whole), "{parts} parts");
        assert_eq!(
            (merged.images, merged.used, merged.pairs),
            (report.images, report.used, report.pairs)
        );
        assert!(make(&wanted(&out)).unwrap().already_complete);
    }
    let part = |parts: u32, i: u32| dir.path().join(format!("{parts}-{i}"));
    let refused = |folders: &[PathBuf], word: &str| {
        let error = format!(
            "{:#}",
            merge(&dir.path().join("no"), folders, false, &nothing()).unwrap_err()
        );
        assert!(error.contains(word), "{word} is missing in: {error}");
    };
    refused(&[part(3, 1), part(3, 3)], "part 2/3 is missing");
    refused(
        &[part(2, 1), part(2, 1), part(2, 2)],
        "part 1/2 is there twice",
    );
    refused(&[part(2, 1), part(3, 2)], "not parts of one set");
    refused(std::slice::from_ref(&whole), "is a whole set");
    refused(&[dir.path().join("none")], "no folder");
    let error = merge(&part(2, 1), &[part(2, 1), part(2, 2)], false, &nothing()).unwrap_err();
    assert!(format!("{error:#}").contains("is one of the parts"));
    // A damaged part is named in the error, and no set is left.
    let shard = part(2, 2).join("shard-00000.psh");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[100] ^= 4;
    make_writable(&shard);
    fs::write(&shard, bytes).unwrap();
    refused(
        &[part(2, 1), part(2, 2)],
        "shard-00000.psh: record 0 (image",
    );
    assert!(!dir.path().join("no/manifest.psm").exists());
}

#[test]
fn appended_images_leave_the_old_shards_and_are_looked_up_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 12);
    let wanted = BuildConfig {
        val: Some(HeldOut::Share(0.3)),
        ..config(&data, &out)
    };
    let adding = BuildConfig {
        append: true,
        ..wanted.clone()
    };
    let none = format!("{:#}", make(&adding).unwrap_err());
    assert!(none.contains("no finished set to add to"), "{none}");
    let first = make(&wanted).unwrap();
    let old = all_files(&out);
    let nothing_new = make(&adding).unwrap();
    assert!(nothing_new.already_complete && all_files(&out) == old);
    for i in 20..30 {
        picture(80, 70, i)
            .save(data.join(format!("q{i}.png")))
            .unwrap();
    }
    fs::copy(data.join("p001.png"), data.join("q_copy.png")).unwrap();
    let hint = format!("{:#}", make(&wanted).unwrap_err());
    assert!(hint.contains("--append"), "{hint}");
    let other = format!(
        "{:#}",
        make(&BuildConfig {
            stride: 8,
            ..adding.clone()
        })
        .unwrap_err()
    );
    assert!(
        other.contains("the stride is 16 there and 8 here"),
        "{other}"
    );
    let report = make(&adding).unwrap();
    assert_eq!(
        (report.images, report.used, report.reasons.get("duplicate")),
        (11, 10, Some(&1))
    );
    assert!(report.pairs > first.pairs && report.fingerprint != first.fingerprint);
    let new = all_files(&out);
    for (name, bytes) in old.iter().filter(|(name, _)| name.ends_with(".psh")) {
        assert!(
            new.iter().any(|(n, b)| n == name && b == bytes),
            "{name} changed"
        );
    }
    let names: BTreeSet<_> = sources(&out)
        .into_iter()
        .chain(sources(&out.join("val")))
        .collect();
    assert_eq!(names.len(), 22);
    let manifest = Manifest::read(&out).unwrap();
    assert_eq!((manifest.images, manifest.extra.appended), (23, 1));
    for folder in [&out, &out.join("val")] {
        assert!(
            tools::verify(folder, &nothing())
                .unwrap()
                .damaged
                .is_empty()
        );
    }
    // A different image with an existing name.
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    picture(90, 90, 99)
        .save(elsewhere.join("p001.png"))
        .unwrap();
    let clash = format!(
        "{:#}",
        make(&BuildConfig {
            dataset: elsewhere,
            ..adding
        })
        .unwrap_err()
    );
    assert!(clash.contains("another image of the name p001"), "{clash}");
}

#[test]
fn a_dry_run_foretells_counts_size_and_what_would_be_reused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 15);
    let base = ["shard", text(&data), "--out", text(&out), "--lq-size", "16"];
    let dry = |more: &[&str]| {
        let (code, stdout, stderr) = run(&[&base[..], &["--dry-run", "--json"], more].concat());
        assert_eq!(code, Some(0), "{stderr}");
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap()
    };
    let told = dry(&[]);
    assert!(!out.exists() && told["there"].as_str().unwrap().contains("nothing is there"));
    assert_eq!(run(&base).0, Some(0));
    let made: u64 = files(&out)
        .iter()
        .filter(|(n, _)| n.starts_with("shard"))
        .map(|(_, b)| b.len() as u64)
        .sum();
    let expected = told["estimate"]["bytes"].as_u64().unwrap();
    assert!(
        expected > made * 7 / 10 && expected < made * 13 / 10,
        "{expected} foretold, {made} made"
    );
    let pairs: usize = (0..15)
        .map(|i| image::image_dimensions(data.join(format!("p{i:03}.png"))).unwrap())
        .map(|(w, h)| positions(w / 2, 16, 16).len() * positions(h / 2, 16, 16).len())
        .sum();
    assert_eq!(told["pairs"].as_u64(), Some(pairs as u64));
    assert!(
        dry(&[])["there"]
            .as_str()
            .unwrap()
            .contains("this very set")
    );
    assert!(
        dry(&["--codec", "raw"])["there"]
            .as_str()
            .unwrap()
            .contains("the codec is predict there and raw here")
    );
    assert!(
        dry(&["--append"])["there"]
            .as_str()
            .unwrap()
            .contains("would be added")
    );
}

#[test]
fn pairs_come_back_as_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out, pngs) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("pngs"),
    );
    pictures(&data.join("sub"), 5);
    make(&config(&data, &out)).unwrap();
    let set = ShardSet::open(&out).unwrap();
    let (code, stdout, stderr) = run(&[
        "shards",
        "extract",
        text(&out),
        "--record",
        "3",
        "--out",
        text(&pngs),
    ]);
    assert!(code == Some(0) && stdout.contains("1 pair"), "{stderr}");
    let (lq, hr) = tools::pair(&set, 3).unwrap();
    assert!(image::open(pngs.join("00000003_lq.png")).unwrap().to_rgb8() == lq);
    assert!(image::open(pngs.join("00000003_hr.png")).unwrap().to_rgb8() == hr);
    let (code, ..) = run(&[
        "shards",
        "extract",
        text(&out),
        "--source",
        "sub/p002",
        "--out",
        text(&pngs),
    ]);
    assert_eq!(code, Some(0));
    for record in images::records_of(&set, "sub/p002").unwrap() {
        assert_eq!(set.source(record).unwrap().image, "sub/p002");
        assert!(pngs.join(format!("{record:08}_hr.png")).exists());
    }
    let (code, _, stderr) = run(&["shards", "extract", text(&out), "--source", "p002"]);
    assert!(code == Some(1) && stderr.contains("sub/p002"), "{stderr}");
    let (code, _, stderr) = run(&[
        "shards",
        "extract",
        text(&out),
        "--record",
        "99999",
        "--out",
        text(&pngs),
    ]);
    assert!(
        code == Some(1) && stderr.contains("record 99999"),
        "{stderr}"
    );
    assert_eq!(run(&["shards", "extract", text(&out)]).0, Some(2));
    let sheet = dir.path().join("sheet.png");
    let (code, _, stderr) = run(&[
        "shards",
        "sheet",
        text(&out),
        text(&sheet),
        "--count",
        "5",
        "--seed",
        "2",
    ]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(image::open(&sheet).unwrap().width() > 400);
}

#[test]
fn verification_names_every_damage_in_every_shard() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 25);
    assert!(
        make(&BuildConfig {
            val: Some(HeldOut::Count(3)),
            ..config(&data, &out)
        })
        .unwrap()
        .shards
            > 2
    );
    let damage = |name: &str, at: usize| {
        let path = out.join(name);
        let mut bytes = fs::read(&path).unwrap();
        let at = if at == 0 { bytes.len() - 80 } else { at };
        bytes[at] ^= 1;
        make_writable(&path);
        fs::write(&path, bytes).unwrap();
    };
    damage("shard-00000.psh", 70);
    damage("val/shard-00000.psh", 90);
    let verify = || {
        let (code, stdout, stderr) = run(&["shards", "verify", text(&out), "--threads", "2"]);
        assert_eq!(code, Some(1), "{stdout}{stderr}");
        stdout
    };
    let told = verify();
    assert!(
        told.lines().count() == 2
            && told.contains("image p0")
            && told.contains("val/shard-00000.psh"),
        "{told}"
    );
    // The tables of one shard are damaged; the other shards are checked nevertheless.
    damage("shard-00001.psh", 0);
    fs::remove_file(out.join("shard-00002.psh")).unwrap();
    let told = verify();
    for words in [
        "shard-00000.psh: record 0 (image p0",
        "shard-00001.psh",
        "shard-00002.psh",
        "val/shard-00000.psh",
    ] {
        assert!(told.contains(words), "{words} is missing in {told}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_not_utf8_are_told_and_do_no_harm() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let odd = |bytes: &[u8]| dir.path().join(std::ffi::OsStr::from_bytes(bytes));
    let (data, out) = (dir.path().join("data"), odd(b"s\xffet"));
    pictures(&data, 2);
    let folder = data.join(std::ffi::OsStr::from_bytes(b"b\xffad"));
    pictures(&folder, 1);
    let output =
        shard_common::paragon(&["shard", text(&data), "--lq-size", "16", "--json", "--out"])
            .arg(&out)
            .output()
            .unwrap();
    let (stdout, stderr) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["used"], 2);
    let reason = report["rejected"][0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("folder") && reason.contains("UTF-8"),
        "{reason}"
    );
}

/// A PNG with an additional chunk before its pixels.
fn with_chunk(image: &image::RgbImage, kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let body = [kind.as_slice(), data].concat();
    let length = (data.len() as u32).to_be_bytes();
    [
        &png.get_ref()[..33],
        &length,
        &body,
        &crc32fast::hash(&body).to_be_bytes(),
        &png.get_ref()[33..],
    ]
    .concat()
}

/// EXIF data that contain only the orientation.
fn exif(orientation: u8) -> Vec<u8> {
    [
        b"II\x2A\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(),
        &[orientation, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat()
}

/// Makes a set of one pair; returns the rejection of the pair (`None` if it is used) and the
/// report.
fn shard_pair(hr: &[u8], lq: &[u8]) -> (Option<(String, String)>, paragon::shard::report::Report) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for (folder, bytes) in [("hr", hr), ("lq", lq)] {
        fs::create_dir_all(data.join(folder)).unwrap();
        fs::write(data.join(folder).join("a.png"), bytes).unwrap();
        // A valid pair beside it, so that there is a set.
        let side = if folder == "hr" { 64 } else { 32 };
        picture(side, side, 5)
            .save(data.join(folder).join("z.png"))
            .unwrap();
    }
    let report = make(&config(&data, &dir.path().join("set"))).unwrap();
    let rejected = report
        .rejected
        .first()
        .map(|r| (r.kind.clone(), r.reason.clone()));
    (rejected, report)
}

fn halved(image: &image::RgbImage) -> image::RgbImage {
    image::imageops::resize(
        image,
        image.width() / 2,
        image.height() / 2,
        image::imageops::FilterType::Triangle,
    )
}

fn plain(image: &image::RgbImage) -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

#[test]
fn a_pair_of_which_one_side_was_turned_is_rejected() {
    use image::metadata::Orientation;
    for (width, height, orientation) in [
        (64, 64, 6),
        (64, 64, 8),
        (64, 64, 5),
        (96, 64, 3),
        (96, 64, 2),
        (64, 96, 4),
    ] {
        let stored = picture(width, height, 9);
        let turned = with_chunk(&stored, b"eXIf", &exif(orientation));
        let (rejected, _) = shard_pair(&turned, &plain(&halved(&stored)));
        let (kind, reason) = rejected.unwrap();
        assert!(
            kind == "mismatch" && reason.contains(&format!("is {orientation}")),
            "{orientation}: {kind}, {reason}"
        );
        // The LQ is turned instead.
        let (rejected, _) = shard_pair(
            &plain(&stored),
            &with_chunk(&halved(&stored), b"eXIf", &exif(orientation)),
        );
        assert!(
            rejected.is_some_and(|r| r.0 == "mismatch"),
            "LQ {orientation}"
        );
        // An LQ that was made from the upright image is valid, and so is an LQ with the same
        // orientation as the HR.
        let mut upright = image::DynamicImage::ImageRgb8(stored.clone());
        upright.apply_orientation(Orientation::from_exif(orientation).unwrap());
        let (rejected, report) = shard_pair(&turned, &plain(&halved(&upright.into_rgb8())));
        assert_eq!((rejected, report.used), (None, 2), "{orientation}");
        let (rejected, report) = shard_pair(
            &turned,
            &with_chunk(&halved(&stored), b"eXIf", &exif(orientation)),
        );
        assert_eq!((rejected, report.used), (None, 2), "{orientation}");
        // Notes name a file, and say so if it is the LQ.
        let (note, file) = report
            .note_examples
            .iter()
            .find(|(note, _)| note.ends_with(" (LQ)"))
            .unwrap();
        assert!(
            note.contains("orientation")
                && Path::new(file).ends_with("lq/a.png")
                && report.to_string().contains("lq/a.png")
        );
        assert!(
            report
                .note_examples
                .iter()
                .any(|(_, file)| Path::new(file).ends_with("hr/a.png"))
        );
    }
}

#[test]
fn a_pair_of_which_one_side_was_converted_from_its_profile_is_rejected() {
    let p3 = [12, 13, 0, 1];
    let stored = image::RgbImage::from_fn(64, 64, |x, y| {
        image::Rgb([(x * 4) as u8, (y * 4) as u8, (x + y) as u8])
    });
    let tagged = with_chunk(&stored, b"cICP", &p3);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.png"), &tagged).unwrap();
    let limits = paragon::dataset::decode::Limits::default();
    let converted = paragon::dataset::decode::decode(&dir.path().join("a.png"), &limits)
        .unwrap()
        .image;
    let (rejected, _) = shard_pair(&tagged, &plain(&halved(&stored)));
    assert!(
        rejected.is_some_and(|r| r.0 == "mismatch" && r.1.contains("the HR has a colour profile"))
    );
    let (rejected, _) = shard_pair(&plain(&stored), &with_chunk(&halved(&stored), b"cICP", &p3));
    assert!(
        rejected.is_some_and(|r| r.0 == "mismatch" && r.1.contains("the LQ has a colour profile"))
    );
    let (rejected, report) = shard_pair(&tagged, &plain(&halved(&converted)));
    assert_eq!((rejected, report.used), (None, 2));
}
