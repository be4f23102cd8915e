use super::*;
use crate::dataset::synth::synthetic_image;
use crate::shard::manifest::{Manifest, path_in};
use crate::shard::merge::merge;
use crate::shard::plan::{BuildConfig, plan};
use crate::shard::reader::{Crop, Io, ShardSet};
use crate::shard::report::Report;
use crate::shard::tools;
use crate::shard::writer::build;
use crate::support::progress::Progress;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A recipe that draws something of every kind.
pub const RECIPE: &str = "name: test\nsteps:\n  - blur: {sigma: [0.4, 1.5], size: 7}\n  \
     - gaussian_noise: {sigma: [2, 10]}\n  - jpeg: {quality: [40, 90]}\n";

pub fn recipe() -> Arc<Recipe> {
    Arc::new(Recipe::parse(RECIPE, "test").unwrap())
}

/// Writes `count` images of different sizes.
pub fn images(folder: &Path, count: u64) {
    fs::create_dir_all(folder).unwrap();
    for i in 0..count {
        let (width, height) = (70 + 9 * i as u32, 90 - 7 * i as u32);
        let image = synthetic_image(5, i, width, height);
        image.save(folder.join(format!("p{i}.png"))).unwrap();
    }
}

/// A set of LQ 16 with this recipe.
pub fn config(data: &Path, out: &Path, scale: u32) -> BuildConfig {
    BuildConfig {
        degrade: Some(recipe()),
        shard_bytes: 32 << 10,
        threads: 2,
        ..BuildConfig::new(data, out, scale, 16)
    }
}

pub fn make(config: &BuildConfig) -> Result<Report> {
    build(config, plan(config)?, &Progress::hidden())
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file());
    files
        .map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap()))
        .collect()
}

fn all_lqs(set: &ShardSet, record: u64) -> Vec<Vec<u8>> {
    let g = set.geometry();
    let mut scratch = set.scratch_for(Io::Pread).unwrap();
    let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
    let whole = Crop {
        x: 0,
        y: 0,
        size: g.lq(),
    };
    (0..set.lqs())
        .map(|variant| {
            let room = Some((variant, &mut lq[..]));
            set.read_part(record, whole, &mut scratch, room, &mut hr)
                .unwrap();
            lq.clone()
        })
        .collect()
}

#[test]
fn threads_parts_and_names_do_not_change_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    images(&data, 5);
    for (scale, variants) in [(2, 1), (1, 3)] {
        let at = |name: String| dir.path().join(format!("x{scale}-{name}"));
        let wanted = BuildConfig {
            variants,
            threads: 1,
            ..config(&data, &at("one".into()), scale)
        };
        make(&wanted).unwrap();
        let expected = files(&wanted.out);
        assert!(expected.len() > 2, "{:?}", expected.keys());
        for threads in [2, 5] {
            let out = at(threads.to_string());
            let again = BuildConfig {
                threads,
                out: out.clone(),
                ..wanted.clone()
            };
            make(&again).unwrap();
            assert!(files(&out) == expected, "{threads} threads");
        }
        let parts: Vec<PathBuf> = (1..=3).map(|i| at(format!("part{i}"))).collect();
        for (part, out) in (1..).zip(&parts) {
            let config = BuildConfig {
                part: Some((part, 3)),
                out: out.clone(),
                ..wanted.clone()
            };
            make(&config).unwrap();
        }
        let whole = at("merged".into());
        merge(&whole, &parts, false, &Progress::hidden()).unwrap();
        assert!(files(&whole) == expected, "merged parts");
        let other = BuildConfig {
            out: at("seed".into()),
            recipe: crate::dataset::recipe::Recipe {
                seed: 9,
                ..wanted.recipe
            },
            ..wanted.clone()
        };
        make(&other).unwrap();
        assert!(files(&other.out) != expected, "another seed");
    }
}

#[test]
fn a_patch_is_made_from_what_surrounds_it() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    images(&data, 2);
    make(&config(&data, &out, 2)).unwrap();
    let set = ShardSet::open(&out).unwrap();
    let mut seen = BTreeSet::new();
    for record in 0..set.len() {
        let source = set.source(record).unwrap();
        let image = image::open(data.join(format!("{}.png", source.image))).unwrap();
        let image = image.to_rgb8();
        let (w, h) = (image.width() & !1, image.height() & !1);
        let image = image::imageops::crop_imm(&image, 0, 0, w, h).to_image();
        let mut patches = PatchDegrader::new(&recipe(), 2, 16, usize::MAX);
        let pixels = HrPixels {
            pixels: image.as_raw(),
            width: w as usize,
            height: h as usize,
        };
        let (x, y) = (source.x as usize, source.y as usize);
        let draws = draws_of_patch(0, pixel_key(&image), source.x, source.y, 0);
        let mut lq = vec![0; 16 * 16 * 3];
        let patch = LqPatch { x, y, size: 16 };
        patches.make(pixels, patch, &draws, &mut lq).unwrap();
        assert!(all_lqs(&set, record)[0] == lq, "record {record}");
        seen.insert(lq);
    }
    assert_eq!(seen.len() as u64, set.len());
}

#[test]
fn variants_differ_and_share_their_hr() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    images(&data, 3);
    fs::copy(data.join("p1.png"), data.join("p9.png")).unwrap();
    let several = BuildConfig {
        variants: 4,
        ..config(&data, &out, 2)
    };
    let report = make(&several).unwrap();
    // a copy of an image has the same draws, and its pairs are found as duplicates
    assert!(
        report.duplicates > 0 && report.rejected.len() == 1,
        "{report}"
    );
    let single = dir.path().join("single");
    make(&config(&data, &single, 2)).unwrap();
    let (set, one) = (
        ShardSet::open(&out).unwrap(),
        ShardSet::open(&single).unwrap(),
    );
    assert_eq!((set.lqs(), set.len()), (4, one.len()));
    for record in 0..set.len() {
        let lqs = all_lqs(&set, record);
        assert!(lqs[0] == all_lqs(&one, record)[0]);
        assert_eq!(lqs.iter().collect::<BTreeSet<_>>().len(), 4);
    }
    // the HR is stored once
    let (several, one) = (set.bytes(), one.bytes());
    assert!(10 * several < 9 * 4 * one, "{several} {one}");
    let verified = tools::verify(&out, &Progress::hidden()).unwrap();
    assert!(verified.damaged.is_empty() && verified.pairs == set.len());
    let info = tools::info(&set).unwrap();
    let degrade = info.degrade.unwrap();
    assert_eq!((info.variants, degrade.seed), (4, Some(0)));
    assert_eq!(degrade.text, recipe().canonical());
    assert_eq!(degrade.hash, Some(format!("{:016x}", recipe().hash())));
    let pairs = dir.path().join("pairs");
    tools::extract(&set, &[0, 2], &pairs).unwrap();
    assert_eq!(fs::read_dir(&pairs).unwrap().count(), 10);
    #[cfg(feature = "report")]
    tools::sheet(&set, 3, 0, &dir.path().join("sheet.png")).unwrap();
}

#[test]
fn sets_of_hr_alone_are_read_with_a_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    images(&data, 3);
    let config = BuildConfig {
        hr_only: true,
        lq_size: 24,
        margin: 8,
        ..config(&data, &out, 2)
    };
    make(&config).unwrap();
    let set = ShardSet::open(&out).unwrap();
    assert_eq!((set.lqs(), set.manifest().crop()), (0, 16));
    let (lq, hr) = tools::pair(&set, 1).unwrap();
    assert_eq!((lq.dimensions(), hr.dimensions()), ((16, 16), (32, 32)));
    assert!(tools::pair(&set, 1).unwrap() == (lq, hr));
    let g = set.geometry();
    let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
    let mut scratch = set.scratch().unwrap();
    let error = set.read(0, &mut scratch, &mut lq, &mut hr).unwrap_err();
    assert!(error.to_string().contains("HR alone"), "{error}");
    assert!(
        tools::verify(&out, &Progress::hidden())
            .unwrap()
            .damaged
            .is_empty()
    );
    let without = dir.path().join("without");
    let config = BuildConfig {
        degrade: None,
        out: without.clone(),
        ..config
    };
    make(&config).unwrap();
    let set = ShardSet::open(&without).unwrap();
    let error = tools::pair(&set, 0).unwrap_err().to_string();
    assert!(error.contains("--degrade"), "{error}");
    let pairs = dir.path().join("pairs");
    tools::extract(&set, &[0], &pairs).unwrap();
    assert!(pairs.join("00000000_hr.png").is_file());
    assert!(!pairs.join("00000000_lq.png").exists());
}

#[test]
fn a_recipe_that_is_damaged_in_the_manifest_is_noticed_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    images(&data, 2);
    let config = BuildConfig {
        hr_only: true,
        ..config(&data, &out, 2)
    };
    make(&config).unwrap();
    let good = Manifest::read(&out).unwrap();
    assert_eq!(good.degrade().unwrap().unwrap().hash(), recipe().hash());
    let with = |text: String| {
        let mut manifest = good.clone();
        for (name, value) in &mut manifest.extra.options {
            if name == "degrade" {
                value.clone_from(&text);
            }
        }
        fs::remove_file(path_in(&out)).unwrap();
        manifest.write(&out).unwrap();
        let set = ShardSet::open(&out).unwrap();
        let info = tools::info(&set).unwrap().degrade.unwrap();
        assert_eq!((info.text, info.hash), (text, None));
        format!("{:#}", tools::pair(&set, 0).unwrap_err())
    };
    let other = Recipe::parse(&RECIPE.replace("40", "30"), "test").unwrap();
    let error = with(other.canonical().to_string());
    assert!(error.contains("another hash"), "{error}");
    for text in [
        "",
        "steps: [",
        "name: x\nsteps: [{frobnicate: {}}]",
        "\u{1}",
    ] {
        let error = with(text.to_string());
        assert!(error.contains("recipe in the manifest"), "{text}: {error}");
    }
}

#[test]
fn options_that_contradict_a_recipe_are_refused_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    images(&data, 2);
    let good = config(&data, &out, 2);
    let refused = |config: BuildConfig, words: &str| {
        let error = plan(&config).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains('\n'), "{error}");
    };
    let filter = crate::dataset::recipe::Recipe {
        blur: 1.0,
        ..good.recipe
    };
    type Change<'a> = &'a dyn Fn(&mut BuildConfig);
    let changed: [(Change<'_>, &str); 6] = [
        (&|c| c.lq = Some("lq".into()), "--lq"),
        (&|c| c.recipe = filter, "--lq-blur"),
        (&|c| (c.degrade, c.variants) = (None, 2), "needs --degrade"),
        (
            &|c| (c.hr_only, c.variants) = (true, 2),
            "do not go together",
        ),
        (&|c| c.variants = 65, "the most is 64"),
        (&|c| c.variants = 0, "--hr-only"),
    ];
    for (change, words) in changed {
        let mut config = good.clone();
        change(&mut config);
        refused(config, words);
    }
    let pairs = dir.path().join("pairs");
    for side in ["hr", "lq"] {
        images(&pairs.join(side), 2);
    }
    refused(config(&pairs, &out, 1), "has LQ images of its own");
    // the folder of the HR images by itself can be used
    make(&config(&pairs.join("hr"), &out, 1)).unwrap();
    let other = BuildConfig {
        degrade: Some(Arc::new(
            Recipe::parse(&RECIPE.replace("40", "30"), "test").unwrap(),
        )),
        append: true,
        ..config(&pairs.join("hr"), &out, 1)
    };
    let error = make(&other).unwrap_err().to_string();
    assert!(error.contains("the LQ recipe is test (recipe "), "{error}");
}
