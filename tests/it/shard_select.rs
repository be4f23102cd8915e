//! Selecting images and patches by their measures: each criterion against the plain rule, the same
//! set after kills and from parts, the identity of sets, and what a dry run shows.

use crate::{cli_common, shard_common};

use cli_common::text;
use image::codecs::jpeg::JpegEncoder;
use image::{RgbImage, imageops};
use paragon::dataset::measure::{BlurMeasure, Luma, blockiness, entropy, noise, perceptual_hash};
use paragon::dataset::synth::synthetic_image;
use paragon::shard::criteria::Criteria;
use paragon::shard::manifest::Manifest;
use paragon::shard::merge::merge;
use paragon::shard::plan::{BuildConfig, HeldOut, positions};
use paragon::shard::reader::ShardSet;
use paragon::support::progress::Progress;
use paragon::support::rng::Rng;
use shard_common::{config, make, make_writable, run};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn jpeg(image: &RgbImage, quality: u8) -> RgbImage {
    let mut bytes = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
    image.write_with_encoder(encoder).unwrap();
    image::load_from_memory(&bytes).unwrap().into_rgb8()
}

fn noisy(image: &RgbImage) -> RgbImage {
    let mut rng = Rng::new(&[5]);
    let mut image = image.clone();
    for value in image.iter_mut() {
        let draw: i32 = (0..4).map(|_| rng.below(41) as i32 - 20).sum();
        *value = (i32::from(*value) + draw).clamp(0, 255) as u8;
    }
    image
}

/// Drawn photographs, and of some of them copies that are noisy, blocky, blurred, resized or
/// recompressed. Names decide the order: `b..` comes before `p..`.
fn collection(folder: &Path) -> BTreeMap<String, RgbImage> {
    fs::create_dir_all(folder).unwrap();
    let mut all = BTreeMap::new();
    for i in 0..10 {
        all.insert(format!("p{i:02}"), synthetic_image(4, i + 1, 200, 168));
    }
    let of = |i: u32| all[&format!("p{i:02}")].clone();
    let half = imageops::resize(&of(5), 100, 84, imageops::FilterType::CatmullRom);
    let copies = [
        ("b03_noisy", noisy(&of(3))),
        ("b04_blocky", jpeg(&of(4), 8)),
        ("p01_blurred", imageops::blur(&of(1), 3.0)),
        ("p02_again", jpeg(&of(2), 85)),
        ("p05_half", half),
        (
            "p07_flat",
            RgbImage::from_pixel(90, 70, image::Rgb([70; 3])),
        ),
    ];
    all.extend(copies.map(|(name, image)| (name.to_string(), image)));
    for (name, image) in &all {
        image.save(folder.join(format!("{name}.png"))).unwrap();
    }
    all
}

fn all_criteria() -> Criteria {
    Criteria {
        max_blockiness: Some(4.0),
        max_noise: Some(12.0),
        near_duplicates: Some(4),
        max_blur: Some(2.0),
        min_entropy: Some(5.0),
    }
}

/// What the criteria keep, by their definitions: the number of patches of each image, of all that
/// have any, and the kinds of the others.
fn plain(
    images: &BTreeMap<String, RgbImage>,
    criteria: &Criteria,
) -> (BTreeMap<String, u64>, BTreeMap<String, String>) {
    let (mut kept, mut rejected) = (BTreeMap::new(), BTreeMap::new());
    let mut hashes: Vec<u64> = Vec::new();
    for (name, image) in images {
        let luma = Luma::new(image);
        let above =
            |value: Option<f64>, most: Option<f64>| value.unwrap_or(0.0) > most.unwrap_or(1e9);
        let hash = perceptual_hash(&luma);
        let near = |limit| hashes.iter().any(|h| (h ^ hash).count_ones() <= limit);
        let mut patches = 0;
        for y in positions(image.height() / 2, 16, 16) {
            for x in positions(image.width() / 2, 16, 16) {
                let patch = imageops::crop_imm(image, 2 * x, 2 * y, 32, 32).to_image();
                let luma = Luma::new(&patch);
                let blurred = above(BlurMeasure::default().measure(&luma), criteria.max_blur);
                let plain = entropy(&luma) < criteria.min_entropy.unwrap_or(0.0);
                patches += u64::from(!blurred && !plain);
            }
        }
        let kind = if above(noise(image), criteria.max_noise) {
            "noise"
        } else if above(blockiness(&luma), criteria.max_blockiness) {
            "blockiness"
        } else if patches == 0 {
            "flat"
        } else if criteria.near_duplicates.is_some_and(near) {
            "near duplicate"
        } else {
            "kept"
        };
        if kind == "kept" {
            kept.insert(name.clone(), patches);
            hashes.push(hash);
        } else {
            rejected.insert(name.clone(), kind.to_string());
        }
    }
    (kept, rejected)
}

/// Duplicates are kept, so that the numbers are those of the criteria alone.
fn wanted(data: &Path, out: &Path, criteria: Criteria) -> BuildConfig {
    BuildConfig {
        criteria,
        keep_duplicates: true,
        ..config(data, out)
    }
}

/// The images of a set with the numbers of their pairs.
fn pairs(folder: &Path) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for (source, count) in ShardSet::open(folder).unwrap().sources().unwrap() {
        *all.entry(source.name).or_insert(0) += count;
    }
    all
}

#[test]
fn every_criterion_leaves_out_what_its_definition_says() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let images = collection(&data);
    let all = all_criteria();
    let one = Criteria::default;
    let cases = [
        one(),
        Criteria {
            max_blockiness: all.max_blockiness,
            ..one()
        },
        Criteria {
            max_noise: all.max_noise,
            ..one()
        },
        Criteria {
            near_duplicates: all.near_duplicates,
            ..one()
        },
        Criteria {
            max_blur: all.max_blur,
            ..one()
        },
        Criteria {
            min_entropy: all.min_entropy,
            ..one()
        },
        all,
    ];
    let mut kinds = Vec::new();
    for (i, criteria) in cases.into_iter().enumerate() {
        let out = dir.path().join(i.to_string());
        let report = make(&wanted(&data, &out, criteria)).unwrap();
        let (kept, rejected) = plain(&images, &criteria);
        assert_eq!(pairs(&out), kept, "{criteria:?}");
        let found: BTreeMap<String, String> = report
            .rejected
            .iter()
            .map(|r| {
                (
                    r.file.file_stem().unwrap().to_str().unwrap().into(),
                    r.kind.clone(),
                )
            })
            .collect();
        assert_eq!(found, rejected, "{criteria:?}");
        assert_eq!(report.images, report.used + report.rejected.len() as u64);
        assert_eq!(
            report.patches,
            report.pairs + report.flat + report.duplicates
        );
        kinds.push(found.len() as u64 * 1000 + report.flat);
        assert!(
            make(&wanted(&data, &out, criteria))
                .unwrap()
                .already_complete
        );
    }
    assert_eq!(kinds[0], 0, "no option, no effect");
    assert!(kinds[1..].iter().all(|n| *n > 0), "{kinds:?}");
    let (_, rejected) = plain(&images, &all);
    for (name, kind) in [
        ("b03_noisy", "noise"),
        ("b04_blocky", "blockiness"),
        ("p02_again", "near duplicate"),
        ("p05_half", "near duplicate"),
        ("p07_flat", "flat"),
    ] {
        assert_eq!(rejected.get(name).map(String::as_str), Some(kind), "{name}");
    }
    assert!(
        !rejected.contains_key("p03"),
        "only its noisy copy was left out"
    );
}

#[test]
fn criteria_that_are_not_given_leave_a_set_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    collection(&data);
    let manifest = |name: &str, criteria| {
        let out = dir.path().join(name);
        make(&BuildConfig {
            criteria,
            ..config(&data, &out)
        })
        .unwrap();
        assert_eq!(
            out.join("hashes.psi").exists(),
            criteria.near_duplicates.is_some()
        );
        Manifest::read(&out).unwrap()
    };
    let without = manifest("without", Criteria::default());
    assert_eq!(without.extra.options, Vec::new());
    let lenient = Criteria {
        max_blockiness: Some(255.0),
        ..Criteria::default()
    };
    let with = manifest("with", lenient);
    assert_eq!(with.records(), without.records());
    assert_ne!(with.config, without.config);
    assert_eq!(
        with.differences(&without),
        ["--max-blockiness is 255.0 there and not given here"]
    );
    assert_eq!(Criteria::from_options(&with.extra.options), lenient);
    let all = manifest("all", all_criteria());
    assert_eq!(Criteria::from_options(&all.extra.options), all_criteria());
}

/// Files of a set and of its held-out part.
fn all_files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = shard_common::files(&folder.join("val"))
        .into_iter()
        .map(|(name, bytes)| (format!("val/{name}"), bytes))
        .collect::<BTreeMap<_, _>>();
    for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_file() {
            let name = entry.file_name().unwrap().to_str().unwrap();
            all.insert(name.to_string(), fs::read(&entry).unwrap());
        }
    }
    all
}

/// Criteria, duplicates and held-out images together.
fn everything(data: &Path, out: &Path) -> BuildConfig {
    BuildConfig {
        criteria: all_criteria(),
        val: Some(HeldOut::Count(4)),
        ..config(data, out)
    }
}

#[test]
fn threads_and_parts_give_the_same_set() {
    let dir = tempfile::tempdir().unwrap();
    let (data, whole) = (dir.path().join("data"), dir.path().join("whole"));
    let images = collection(&data);
    // a pair of a near duplicate that a later image has too: only the whole set knows whether the
    // later image is the first that has it
    let mut shares = images["p09"].clone();
    let part = imageops::crop_imm(&images["p02_again"], 32, 32, 128, 96).to_image();
    imageops::replace(&mut shares, &part, 32, 32);
    shares.save(data.join("p03_shares.png")).unwrap();
    let report = make(&everything(&data, &whole)).unwrap();
    assert!(
        report.reasons["near duplicate"] >= 2,
        "{:?}",
        report.reasons
    );
    let expected = all_files(&whole);
    assert!(expected.contains_key("val/hashes.psi"));
    for threads in [1, 5] {
        let out = dir.path().join(format!("threads{threads}"));
        make(&BuildConfig {
            threads,
            ..everything(&data, &out)
        })
        .unwrap();
        assert!(all_files(&out) == expected, "{threads} threads");
    }
    for parts in [1, 2, 3, 20] {
        let folders: Vec<PathBuf> = (1..=parts)
            .map(|i| dir.path().join(format!("{parts}-{i}")))
            .collect();
        for (i, folder) in (1..).zip(&folders) {
            make(&BuildConfig {
                part: Some((i, parts)),
                ..everything(&data, folder)
            })
            .unwrap();
        }
        let out = dir.path().join(format!("merged{parts}"));
        let merged = merge(&out, &folders, false, &Progress::hidden()).unwrap();
        assert!(all_files(&out) == expected, "{parts} parts");
        assert_eq!(merged.near_duplicates, report.reasons["near duplicate"]);
        let again = merge(&out, &folders, false, &Progress::hidden()).unwrap();
        assert!(again.already_complete, "{parts} parts");
        assert!(make(&everything(&data, &out)).unwrap().already_complete);
    }
    let hashes = dir.path().join("3-1/hashes.psi");
    make_writable(&hashes);
    fs::write(&hashes, "PGNHASH1").unwrap();
    let folders: Vec<PathBuf> = (1..=3).map(|i| dir.path().join(format!("3-{i}"))).collect();
    let error = merge(&dir.path().join("no"), &folders, false, &Progress::hidden()).unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("hashes.psi") && error.contains("cut short"),
        "{error}"
    );
}

#[test]
fn images_that_are_added_are_compared_with_those_of_the_set() {
    let dir = tempfile::tempdir().unwrap();
    let (data, later, out) = (
        dir.path().join("data"),
        dir.path().join("later"),
        dir.path().join("set"),
    );
    collection(&data);
    fs::create_dir(&later).unwrap();
    for name in ["p02", "p06", "b03_noisy"] {
        fs::rename(data.join(format!("{name}.png")), later.join(name)).unwrap();
    }
    make(&everything(&data, &out)).unwrap();
    for name in ["p02", "p06", "b03_noisy"] {
        fs::rename(later.join(name), data.join(format!("{name}.png"))).unwrap();
    }
    // the criteria are those of the set
    let (code, stdout, stderr) = run(&[
        "shard",
        text(&data),
        "--out",
        text(&out),
        "--append",
        "--json",
    ]);
    assert_eq!(code, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(
        stderr.contains("p02.png: it resembles p02_again"),
        "the copy was there first: {stderr}"
    );
    let there = pairs(&out);
    assert!(
        there.contains_key("p06") && !there.contains_key("p02"),
        "{there:?}"
    );
    assert!(report["reasons"]["noise"] == 1, "{report}");
    let hashes = out.join("hashes.psi");
    make_writable(&hashes);
    let mut bytes = fs::read(&hashes).unwrap();
    bytes[20] ^= 1;
    fs::write(&hashes, bytes).unwrap();
    synthetic_image(9, 9, 200, 168)
        .save(data.join("q.png"))
        .unwrap();
    let (code, _, stderr) = run(&["shard", text(&data), "--out", text(&out), "--append"]);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("hashes.psi") && stderr.contains("damaged"),
        "{stderr}"
    );
}

#[cfg(unix)]
#[test]
fn killed_at_forty_points_the_set_is_the_same() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};
    let dir = tempfile::tempdir().unwrap();
    let (data, whole) = (dir.path().join("data"), dir.path().join("whole"));
    collection(&data);
    let arguments = |out: &Path| -> Vec<String> {
        let fixed = "--lq-size 16 --threads 2 --val 4 --max-blockiness 4 --max-noise 12 --near-duplicates 4 --max-blur 2 \
                     --min-entropy 5 --shard-size 1 --codec raw --json";
        let paths = ["shard", text(&data), "--out", text(out)].map(String::from);
        paths
            .into_iter()
            .chain(fixed.split(' ').map(String::from))
            .collect()
    };
    let finish = |out: &Path| -> serde_json::Value {
        let arguments = arguments(out);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (code, stdout, stderr) = run(&arguments);
        assert_eq!(code, Some(0), "{stderr}");
        serde_json::from_str(&stdout).unwrap()
    };
    let started = Instant::now();
    let unbroken = finish(&whole);
    let time = started.elapsed().as_secs_f64();
    let expected = all_files(&whole);
    let mut in_the_middle = 0;
    for round in 0..40 {
        let out = dir.path().join(format!("killed{round}"));
        let mut child = cli_common::paragon(&arguments(&out))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let share = Rng::new(&[round]).below(1000) as f64 / 1000.0;
        std::thread::sleep(Duration::from_secs_f64(share * time));
        child.kill().unwrap();
        child.wait().unwrap();
        in_the_middle += u64::from(out.join("journal.psj").exists());
        let report = finish(&out);
        assert!(all_files(&out) == expected, "round {round}");
        for field in ["images", "used", "patches", "flat", "duplicates", "reasons"] {
            assert_eq!(report[field], unbroken[field], "{field} in round {round}");
        }
        fs::remove_dir_all(&out).unwrap();
    }
    assert!(in_the_middle >= 5, "{in_the_middle}");
}

#[test]
fn a_dry_run_shows_how_values_are_distributed_and_what_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let images = collection(&data);
    let out = dir.path().join("set");
    let sheet = dir.path().join("sheet.html");
    let base = [
        "shard",
        text(&data),
        "--out",
        text(&out),
        "--lq-size",
        "16",
        "--dry-run",
    ];
    let (code, stdout, _) = run(&[&base[..], &["--measure"]].concat());
    assert_eq!(code, Some(0));
    for line in stdout.lines().skip_while(|l| !l.contains("measured")) {
        assert!(
            line.chars().count() <= 60 || line.starts_with("  folder"),
            "{line}"
        );
    }
    for word in [
        "16 images",
        "quantiles",
        "blockiness of images: levels of luma",
        "###",
    ] {
        assert!(stdout.contains(word), "{word} is missing in {stdout}");
    }
    let criteria =
        "--max-blockiness 4 --max-noise 12 --near-duplicates 4 --max-blur 2 --min-entropy 5 --json";
    let criteria: Vec<&str> = criteria.split(' ').collect();
    let arguments = [&base[..], &criteria[..], &["--sheet", text(&sheet)]].concat();
    let (code, stdout, stderr) = run(&arguments);
    assert_eq!(code, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let found = &report["selection"];
    let (kept, rejected) = plain(&images, &all_criteria());
    assert_eq!(found["images"], 16);
    assert_eq!(found["images_kept"], kept.len());
    assert_eq!(found["patches_kept"], kept.values().sum::<u64>());
    let measures = found["measures"].as_array().unwrap();
    assert_eq!(measures.len(), 6);
    for measure in measures {
        let bars = measure["histogram"].as_array().unwrap();
        let sum: u64 = bars.iter().map(|bar| bar[1].as_u64().unwrap()).sum();
        assert_eq!(sum, measure["count"].as_u64().unwrap(), "{measure}");
    }
    for (number, kind) in [(0, "blockiness"), (1, "noise"), (2, "near duplicate")] {
        let count = rejected.values().filter(|k| *k == kind).count();
        assert_eq!(measures[number]["left_out"], count, "{kind}");
    }
    let html = fs::read_to_string(&sheet).unwrap();
    for word in [
        "<svg",
        "resembles",
        "p02_again",
        "b04_blocky",
        "Distributions",
        "--max-blur 2",
    ] {
        assert!(html.contains(word), "{word} is missing in the sheet");
    }
    assert!(!out.exists(), "a dry run writes no set");
    let png = dir.path().join("sheet.png");
    let (code, _, stderr) = run(&[&base[..], &["--measure=5", "--sheet", text(&png)]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    assert!(image::open(&png).unwrap().width() > 1000);
    for (arguments, word) in [
        (vec!["--sheet", "x.gif"], ".png or .html"),
        (vec!["--max-blur", "11"], "from 0 to 10"),
        (vec!["--min-entropy", "9"], "from 0 to 8"),
    ] {
        let (code, _, stderr) = run(&[&base[..], &arguments].concat());
        assert!(
            code == Some(1) && stderr.contains(word),
            "{code:?} {stderr}"
        );
    }
    let (code, _, stderr) = run(&["shard", text(&data), "--measure"]);
    assert!(code == Some(2) && stderr.contains("--dry-run"), "{stderr}");
}
