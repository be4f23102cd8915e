//! LQ recipes: every recipe gives the promised LQ, with the same bytes for any number of threads.

use crate::shard_common;

use paragon::dataset::degrade::{Filter, downscale};
use paragon::dataset::recipe::{LqFilter, Recipe};
use paragon::shard::plan::BuildConfig;
use paragon::shard::reader::ShardSet;
use shard_common::{config, files, make, picture, pictures, run};
use std::path::Path;

/// Image, position, LQ and HR pixels.
type Pair = (String, u32, u32, Vec<u8>, Vec<u8>);

/// Every pair of a set.
fn pairs(folder: &Path) -> Vec<Pair> {
    let set = ShardSet::open(folder).unwrap();
    let (g, mut scratch) = (set.geometry(), set.scratch().unwrap());
    let pair = |i| {
        let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
        set.read(i, &mut scratch, &mut lq, &mut hr).unwrap();
        let s = set.source(i).unwrap();
        (s.image, s.x, s.y, lq, hr)
    };
    (0..set.len()).map(pair).collect()
}

#[test]
fn a_random_recipe_draws_for_each_patch_the_same_on_any_machine() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    pictures(&data, 12);
    let make = |name: &str, threads, seed, blur| {
        let out = dir.path().join(name);
        let recipe = Recipe {
            filter: LqFilter::Random,
            blur,
            seed,
        };
        let report = make(&BuildConfig {
            recipe,
            threads,
            ..config(&data, &out)
        })
        .unwrap();
        (out, report.lq_recipe)
    };
    let (one, words) = make("one", 1, 5, 0.0);
    assert!(
        words.contains("random") && words.contains("seed 5"),
        "{words}"
    );
    assert!(files(&one) == files(&make("three", 3, 5, 0.0).0));
    let (other, (blurred, words)) = (make("other", 2, 6, 0.0).0, make("blurred", 2, 5, 1.5));
    assert!(words.contains("1.5"), "{words}");
    let (one, other, blurred) = (pairs(&one), pairs(&other), pairs(&blurred));
    assert!(
        one.iter().zip(&other).any(|(a, b)| a.3 != b.3),
        "another seed gives the same LQ"
    );
    assert!(
        one.iter().zip(&blurred).filter(|(a, b)| a.3 == b.3).count() < one.len() / 4,
        "the blur changes nothing"
    );
    // Each LQ is the result of exactly one of the filters for the whole image, and every filter
    // occurs.
    let mut drawn = [0; 5];
    for (name, x, y, lq, hr) in &one {
        let image = image::open(data.join(format!("{name}.png")))
            .unwrap()
            .to_rgb8();
        let image =
            image::imageops::crop_imm(&image, 0, 0, image.width() & !1, image.height() & !1)
                .to_image();
        assert!(
            *hr == image::imageops::crop_imm(&image, x * 2, y * 2, 32, 32)
                .to_image()
                .into_raw()
        );
        let filters = [
            Filter::Bicubic,
            Filter::Bilinear,
            Filter::Lanczos3,
            Filter::Box,
            Filter::Magic,
        ];
        let cut = |f| {
            image::imageops::crop_imm(&downscale(&image, 2, f).unwrap(), *x, *y, 16, 16)
                .to_image()
                .into_raw()
        };
        let which = filters
            .iter()
            .position(|&f| cut(f) == *lq)
            .unwrap_or_else(|| panic!("{name} {x} {y}: no filter gives this LQ"));
        drawn[which] += 1;
    }
    assert!(drawn.iter().all(|&n| n > 2), "{drawn:?}");
}

#[test]
fn every_filter_is_known_to_the_command_line_and_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 1);
    let base = [
        "shard",
        data.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--lq-size",
        "16",
        "--overwrite",
    ];
    for filter in [
        "bicubic", "bilinear", "lanczos3", "box", "nearest", "magic", "random",
    ] {
        let (code, stdout, stderr) = run(&[&base[..], &["--lq-filter", filter]].concat());
        assert!(
            code == Some(0) && stdout.contains(&format!("LQ {filter}")),
            "{stdout}{stderr}"
        );
        let (_, stdout, _) = run(&["shards", "info", out.to_str().unwrap()]);
        assert!(stdout.contains(&format!("LQ {filter}")), "{stdout}");
    }
    let (code, _, stderr) = run(&[&base[..], &["--lq-blur", "99"]].concat());
    assert!(
        code == Some(1) && stderr.contains("the blur is 99"),
        "{stderr}"
    );
    assert_eq!(run(&[&base[..], &["--lq-blur", "-1"]].concat()).0, Some(2));
}

#[test]
fn rejects_a_random_recipe_for_images_that_have_an_lq() {
    let dir = tempfile::tempdir().unwrap();
    for (side, size) in [("hr", 64), ("lr_x2", 32)] {
        std::fs::create_dir_all(dir.path().join(side)).unwrap();
        picture(size, size, 1)
            .save(dir.path().join(side).join("a.png"))
            .unwrap();
    }
    let recipe = Recipe {
        filter: LqFilter::Random,
        blur: 0.0,
        seed: 0,
    };
    let error = make(&BuildConfig {
        recipe,
        ..config(dir.path(), &dir.path().join("set"))
    })
    .unwrap_err();
    assert!(
        format!("{error:#}").contains("LQ images of its own"),
        "{error:#}"
    );
}
