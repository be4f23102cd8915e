//! Scale 1, restoration: pairs of equal size through `paragon shard`, the tools, merging, resuming,
//! the loader and validation; and everything that is refused because no LQ can be made from an HR
//! of the same size.

use crate::{cli_common, shard_common};

use image::codecs::jpeg::JpegEncoder;
use image::{RgbImage, imageops};
use paragon::dataset::decode::{Limits, decode};
use paragon::dataset::scan::Source;
use paragon::inference::eval::{evaluate, load_pair};
use paragon::inference::upscale::Upscale;
use paragon::loader::{Loader, LoaderConfig, Sources};
use paragon::shard::codec::Codec;
use paragon::shard::merge::merge;
use paragon::shard::plan::BuildConfig;
use paragon::shard::reader::ShardSet;
use paragon::shard::tools;
use paragon::support::progress::Progress;
use paragon::support::rng::Rng;
use paragon::train::ValidationSet;
use shard_common::{files, make, paragon, picture, pictures, run};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes an HR image as PNG and its LQ as JPEG of the same size.
fn write_pair(data: &Path, name: &str, hr: &RgbImage, quality: u8) {
    for side in ["hr", "lq"] {
        fs::create_dir_all(data.join(side)).unwrap();
    }
    hr.save(data.join("hr").join(format!("{name}.png")))
        .unwrap();
    let mut jpeg = Vec::new();
    hr.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, quality))
        .unwrap();
    fs::write(data.join("lq").join(format!("{name}.jpg")), jpeg).unwrap();
}

/// Writes `count` pairs of odd and even sizes (at least 33 x 33) and JPEG qualities from 20 to 95.
fn pairs(data: &Path, count: u64) {
    for i in 0..count {
        let mut rng = Rng::new(&[78, i]);
        let (w, h) = (33 + rng.below(40) as u32, 33 + rng.below(40) as u32);
        let quality = 20 + (i * 25 % 76) as u8;
        write_pair(data, &format!("p{i:03}"), &picture(w, h, i), quality);
    }
}

/// Patches of 16, shards of 64 KiB.
fn config(dataset: &Path, out: &Path) -> BuildConfig {
    BuildConfig {
        scale: 1,
        ..shard_common::config(dataset, out)
    }
}

/// `paragon shard DATA --out OUT --scale 1` for small patches, with more arguments.
fn arguments<'a>(data: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let base = ["shard", text(data), "--out", text(out), "--scale", "1"];
    let small = ["--lq-size", "16", "--threads", "2"];
    [&base[..], &small, more].concat()
}

/// Expects exit code 1, no set, and one error line that holds every word.
fn refused(data: &Path, more: &[&str], words: &[&str]) {
    let out = data.with_file_name("refused");
    let (code, stdout, stderr) = run(&arguments(data, &out, more));
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(!stderr.contains("panicked") && !out.join("manifest.psm").exists());
    for word in words {
        assert!(stderr.contains(word), "{word} is missing in: {stderr}");
    }
}

#[test]
fn pixels_come_back_and_the_tools_know_equal_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    pairs(&data, 6);
    for codec in [Codec::Raw, Codec::Predict] {
        let out = dir.path().join(codec.name());
        let wanted = BuildConfig {
            codec,
            stride: 11,
            keep_duplicates: true,
            ..config(&data, &out)
        };
        let report = make(&wanted).unwrap();
        assert_eq!((report.images, report.used), (6, 6), "{report:?}");
        assert_eq!((report.scale, report.lq_recipe.as_str()), (1, "given"));
        let set = ShardSet::open(&out).unwrap();
        let header = &fs::read(out.join("shard-00000.psh")).unwrap()[..64];
        assert_eq!(header[8..12], [1, 0, 0, 0], "format 1.0");
        assert_eq!(header[12..16], [0; 4], "no features are needed to read it");
        assert_eq!((header[20], header[24], header[29]), (1, 16, 0));
        for record in 0..set.len() {
            let at = set.source(record).unwrap();
            let part = |side: &str, ending: &str| {
                let path = data.join(side).join(format!("{}.{ending}", at.image));
                let image = decode(&path, &Limits::default()).unwrap().image;
                imageops::crop_imm(&image, at.x, at.y, 16, 16).to_image()
            };
            let (lq, hr) = tools::pair(&set, record).unwrap();
            assert!(lq == part("lq", "jpg") && hr == part("hr", "png"), "{at:?}");
        }
        let info = tools::info(&set).unwrap();
        assert_eq!((info.scale, info.pairs), (1, set.len()));
        assert_eq!(info.bytes_raw, set.len() * 2 * 16 * 16 * 3);
        let verified = tools::verify(&out, &Progress::hidden()).unwrap();
        assert!(verified.damaged.is_empty() && verified.pairs == set.len());
        let (code, stdout, _) = run(&["shards", "info", text(&out)]);
        assert!(
            code == Some(0) && stdout.contains("LQ 16 / HR 16"),
            "{stdout}"
        );
        let sheet = dir.path().join("sheet.png");
        assert_eq!(
            run(&["shards", "sheet", text(&out), text(&sheet)]).0,
            Some(0)
        );
    }
}

#[test]
fn extracted_pairs_make_a_set_of_the_same_pixels() {
    let dir = tempfile::tempdir().unwrap();
    let (data, set) = (dir.path().join("data"), dir.path().join("set"));
    pairs(&data, 2);
    make(&config(&data, &set)).unwrap();
    let (pngs, again) = (dir.path().join("pngs"), dir.path().join("again"));
    let first = ShardSet::open(&set).unwrap();
    let all: Vec<u64> = (0..first.len()).collect();
    tools::extract(&first, &all, &pngs).unwrap();
    make(&config(&pngs, &again)).unwrap();
    let second = ShardSet::open(&again).unwrap();
    assert_eq!(second.len(), first.len());
    for record in all {
        assert!(tools::pair(&first, record).unwrap() == tools::pair(&second, record).unwrap());
    }
}

#[test]
fn a_data_set_without_lq_images_is_refused_with_what_to_try() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    pictures(&data, 2);
    let words = ["no LQ images", "scale 1", "--lq", text(&data)];
    refused(&data, &[], &words);
    refused(&data, &["--dry-run"], &words);
    refused(&data, &["--lq-blur", "2"], &words);
    refused(&data, &["--lq-filter", "random"], &words);
    refused(&data, &["--hr", text(&data)], &words);
    fs::create_dir_all(data.join("degraded")).unwrap();
    refused(&data, &["--lq", "degraded"], &["no images in", "degraded"]);
    // with the folder of the LQ images named, the set is made
    pairs(&dir.path().join("named"), 2);
    let named = dir.path().join("named");
    fs::rename(named.join("hr"), named.join("clean")).unwrap();
    fs::rename(named.join("lq"), named.join("noisy")).unwrap();
    refused(&named, &[], &["--lq"]);
    let out = dir.path().join("set");
    let sides = ["--hr", "clean", "--lq", "noisy", "--json"];
    let (code, stdout, stderr) = run(&arguments(&named, &out, &sides));
    assert_eq!(code, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["scale"], &report["used"]), (&1.into(), &2.into()));
}

#[test]
fn pairs_of_different_sizes_are_rejected_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    write_pair(&data, "half", &picture(80, 60, 1), 80);
    picture(40, 30, 1).save(data.join("lq/half.jpg")).unwrap();
    let reason = "the HR is 80x60 and the LQ 40x30: at scale 1 both must have the same size";
    refused(&data, &[], &["half.png", reason]);
    write_pair(&data, "off", &picture(51, 37, 2), 80);
    picture(51, 38, 2).save(data.join("lq/off.jpg")).unwrap();
    write_pair(&data, "good", &picture(51, 37, 3), 80);
    picture(40, 40, 4).save(data.join("hr/alone.png")).unwrap();
    let (code, stdout, stderr) = run(&arguments(&data, &out, &["--json"]));
    assert_eq!(code, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["used"], &report["images"]), (&1.into(), &4.into()));
    for text in [reason, "51x38", "off.png", "no LQ image is named alone\n"] {
        assert!(stderr.contains(text), "{text} is missing in: {stderr}");
    }
    assert_eq!(
        ShardSet::open(&out).unwrap().source(0).unwrap().image,
        "good"
    );
}

#[test]
fn parts_and_appended_images_give_the_set_of_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    pairs(&data, 9);
    let out = |name: &str| dir.path().join(name);
    make(&config(&data, &out("whole"))).unwrap();
    let parts: Vec<PathBuf> = (1..=3).map(|i| out(&format!("part{i}"))).collect();
    for (i, folder) in (1..).zip(&parts) {
        let part = Some((i, 3));
        make(&BuildConfig {
            part,
            ..config(&data, folder)
        })
        .unwrap();
    }
    merge(&out("merged"), &parts, false, &Progress::hidden()).unwrap();
    assert!(files(&out("merged")) == files(&out("whole")));
    for i in 9..12 {
        write_pair(&data, &format!("p{i:03}"), &picture(40, 45, i), 60);
    }
    let report = make(&BuildConfig {
        append: true,
        ..config(&data, &out("merged"))
    })
    .unwrap();
    assert_eq!((report.images, report.used), (3, 3), "{report:?}");
    let verified = tools::verify(&out("merged"), &Progress::hidden()).unwrap();
    assert!(verified.damaged.is_empty() && verified.pairs == report.pairs);
    // a set of another scale is not appended to
    let other = BuildConfig {
        append: true,
        scale: 2,
        ..config(&data, &out("merged"))
    };
    let error = format!("{:#}", make(&other).unwrap_err());
    assert!(!error.is_empty());
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for i in 0..20 {
        write_pair(&data, &format!("p{i:02}"), &picture(220, 161, i), 75);
    }
    let (whole, out) = (dir.path().join("whole"), dir.path().join("set"));
    let more = ["--shard-size", "1", "--codec", "raw"];
    assert_eq!(run(&arguments(&data, &whole, &more)).0, Some(0));
    let expected: BTreeMap<String, Vec<u8>> = files(&whole);
    let sizes: Vec<usize> = expected
        .iter()
        .filter(|(name, _)| name.starts_with("shard"))
        .map(|(_, bytes)| bytes.len())
        .collect();
    assert!(sizes.len() > 2, "{sizes:?}");
    // the run stops where the first shard becomes larger than half of what it should be
    let stopped = cli_common::limit_files(&mut paragon(&arguments(&data, &out, &more)), {
        sizes[0] as u64 / 2
    })
    .output()
    .unwrap();
    assert_eq!(stopped.status.code(), Some(1));
    assert!(out.join("journal.psj").exists() && !out.join("manifest.psm").exists());
    assert_eq!(run(&arguments(&data, &out, &more)).0, Some(0));
    let found = files(&out);
    assert!(expected.iter().all(|(name, bytes)| &found[name] == bytes));
}

#[test]
fn batches_hold_both_sides_at_one_size() {
    let dir = tempfile::tempdir().unwrap();
    let (data, folder) = (dir.path().join("data"), dir.path().join("set"));
    pairs(&data, 4);
    make(&config(&data, &folder)).unwrap();
    let set = Arc::new(ShardSet::open(&folder).unwrap());
    let side = 16 * 16 * 3;
    let start = |threads, lq_size| {
        let config = LoaderConfig {
            threads,
            ..LoaderConfig::new(3, lq_size, 11)
        };
        Loader::start(Sources::from(set.clone()), config).unwrap()
    };
    let (mut one, mut many) = (start(1, 16), start(3, 16));
    let mut scratch = set.scratch().unwrap();
    let (mut lq, mut hr) = (vec![0; side], vec![0; side]);
    for _ in 0..=set.len() / 3 {
        let (batch, same) = (one.next().unwrap(), many.next().unwrap());
        assert!(batch.block() == same.block());
        assert_eq!((batch.lq().len(), batch.hr().len()), (3 * side, 3 * side));
        for (i, &record) in batch.records().iter().enumerate() {
            set.read(record, &mut scratch, &mut lq, &mut hr).unwrap();
            assert!(batch.lq()[i * side..][..side] == lq && batch.hr()[i * side..][..side] == hr);
        }
    }
    // a crop lies at one place in both sides
    let small = 9 * 9 * 3;
    let batch = start(2, 9).next().unwrap();
    for (i, &record) in batch.records().iter().enumerate() {
        set.read(record, &mut scratch, &mut lq, &mut hr).unwrap();
        let inside = |image: &[u8], x: usize, y: usize, crop: &[u8]| {
            (0..9).all(|row| image[((y + row) * 16 + x) * 3..][..27] == crop[row * 27..][..27])
        };
        let (low, high) = (&batch.lq()[i * small..], &batch.hr()[i * small..]);
        let found = (0..8 * 8).any(|at| {
            let (x, y) = (at % 8, at / 8);
            inside(&lq, x, y, low) && inside(&hr, x, y, high)
        });
        assert!(found, "record {record}");
    }
}

/// A network that returns its input.
struct Unchanged;

impl Upscale for Unchanged {
    fn scale(&self) -> usize {
        1
    }

    fn upscale(&mut self, lq: &RgbImage) -> anyhow::Result<RgbImage> {
        Ok(lq.clone())
    }
}

#[test]
fn validation_and_eval_compare_with_the_lq_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (data, folder) = (dir.path().join("data"), dir.path().join("set"));
    pairs(&data, 3);
    make(&config(&data, &folder)).unwrap();
    for place in [&data, &folder] {
        let set = ValidationSet::open(place, 1).unwrap();
        assert!(set.check(1, &mut || true).unwrap().is_some());
        for index in 0..set.len() {
            let (_, pair) = set.pair(index).unwrap();
            assert_eq!(pair.lq.dimensions(), pair.hr.dimensions());
        }
    }
    let error = format!("{:#}", ValidationSet::open(&folder, 2).err().unwrap());
    assert!(
        error.contains("scale 1") && error.contains("must agree"),
        "{error}"
    );
    let alone = format!(
        "{:#}",
        ValidationSet::open(&data.join("hr"), 1).err().unwrap()
    );
    assert!(alone.contains("no LQ images"), "{alone}");
    let source = |name: &str| Source {
        name: name.into(),
        hr: data.join(format!("hr/{name}.png")),
        lq: Some(data.join(format!("lq/{name}.jpg"))),
    };
    let all = ["p000", "p001", "p002"].map(source);
    let each = &mut |result: &paragon::inference::eval::ImageResult,
                     ours: &RgbImage,
                     baseline: &RgbImage,
                     pair: &paragon::inference::eval::ImagePair| {
        assert!(ours == &pair.lq && baseline == &pair.lq);
        assert!(result.network == result.bicubic && result.network.psnr_y < 60.0);
        Ok(())
    };
    let evaluation = evaluate(&mut Unchanged, &all, 1, each).unwrap();
    assert_eq!(
        (evaluation.results.len(), evaluation.left_out.len()),
        (3, 0)
    );
    // no LQ file, and an LQ of another size
    let [mut first, mut second, _] = all;
    first.lq = None;
    let error = format!("{:#}", load_pair(&first, 1).err().unwrap());
    assert!(
        error.contains("p000.png") && error.contains("scale 1"),
        "{error}"
    );
    second.lq = Some(data.join("lq/p002.jpg"));
    let error = format!("{:#}", load_pair(&second, 1).err().unwrap());
    assert!(
        error.contains("p001.png") && error.contains("the same size"),
        "{error}"
    );
}
