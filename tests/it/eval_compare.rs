//! `paragon eval` with several networks, on a set of shards, and on folders with images that
//! cannot be used.
#![cfg(unix)]

use crate::cli_common::{model, run, text};
use crate::shard_common::{config, make, picture};
use paragon::model::{Network, write_model};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Nano x2 with other start values than those of `cli_common::model`.
fn other_model(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("other.safetensors");
    let mut net = Network::new("nano", 2).unwrap();
    net.set("detail_gain", 0.01).unwrap();
    write_model(&path, &net, &net.params().start_values(8), None).unwrap();
    path
}

#[test]
fn networks_are_compared_side_by_side_and_image_by_image() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (model(dir.path()), other_model(dir.path()));
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    for i in 0..4 {
        picture(40 + 2 * i, 36, u64::from(i))
            .save(data.join(format!("{i}.png")))
            .unwrap();
    }
    let eval = |models: &[&Path], more: &[&str]| {
        let models: Vec<&str> = models.iter().flat_map(|m| ["-m", text(m)]).collect();
        run(&[&["eval", text(&data)], &models[..], more].concat())
    };
    let json = |models: &[&Path]| -> Value {
        serde_json::from_str(&eval(models, &["--json"]).ok().stdout).unwrap()
    };
    let (both, one, two) = (json(&[&a, &b]), json(&[&a]), json(&[&b]));
    assert_eq!(both["models"][0]["mean"], one["mean"]["network"]);
    assert_eq!(both["models"][1]["images"], two["images"]);
    assert_eq!(both["mean"]["bicubic"], one["mean"]["bicubic"]);
    let psnr =
        |report: &Value, i: usize| report["images"][i]["network"]["psnr_y"].as_f64().unwrap();
    let better = (0..4).filter(|&i| psnr(&two, i) > psnr(&one, i)).count() as u64;
    let found = &both["comparisons"][0];
    assert_eq!(
        (found["images"].as_u64(), found["better"].as_u64()),
        (Some(4), Some(better))
    );
    let mean = (0..4).map(|i| psnr(&two, i) - psnr(&one, i)).sum::<f64>() / 4.0;
    assert!((found["psnr_y"].as_f64().unwrap() - mean).abs() < 1e-9);
    let said = eval(&[&a, &b, &a], &[]).ok().stdout;
    assert!(
        said.contains("other.safetensors against")
            && said.contains(&format!("better on {better} of 4 images"))
            && said.contains("nano.safetensors against")
            && said.contains("better on 0 of 4 images, worse on 0 (sign test p = 1.00): no clear")
            && said.contains("LQ made from the HR by antialiased bicubic; 2 pixels cut off"),
        "{said}"
    );
    let x4 = dir.path().join("x4.safetensors");
    let net = Network::new("nano", 4).unwrap();
    write_model(&x4, &net, &net.params().start_values(8), None).unwrap();
    eval(&[&a, &x4], &[]).refused(1, &["x4.safetensors", "scale 4", "scale 2"]);
    let saved = dir.path().join("saved");
    eval(&[&a, &b], &["--save", text(&saved)]).refused(1, &["--save", "one network"]);
}

#[test]
fn the_pairs_of_shards_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    let (data, set, a) = (
        dir.path().join("data"),
        dir.path().join("set"),
        model(dir.path()),
    );
    fs::create_dir(&data).unwrap();
    for i in 0..3 {
        picture(100, 90, i)
            .save(data.join(format!("{i}.png")))
            .unwrap();
    }
    let made = make(&config(&data, &set)).unwrap();
    let ran = run(&["eval", text(&set), "-m", text(&a), "--json"]).ok();
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let images = report["images"].as_array().unwrap();
    assert_eq!(images.len() as u64, made.pairs);
    assert!(images[0]["name"] == "0_x0_y0" && report["lq"].as_str().unwrap().contains("shards"));
    let planned = report["memory_planned"].as_u64().unwrap();
    assert!(planned > 1 << 20, "{planned}");
    run(&["eval", text(&set), "-m", text(&a), "--lq", "x"]).refused(1, &["set of shards", "--lq"]);
    let x4 = dir.path().join("x4.safetensors");
    let net = Network::new("nano", 4).unwrap();
    write_model(&x4, &net, &net.params().start_values(8), None).unwrap();
    run(&["eval", text(&set), "-m", text(&x4)]).refused(1, &["scale 2", "network 4"]);
}

/// Images without a partner are left out of the mean and listed, like damaged ones.
#[test]
fn images_without_a_partner_do_not_end_an_evaluation() {
    let dir = tempfile::tempdir().unwrap();
    let (data, a) = (dir.path().join("data"), model(dir.path()));
    for side in ["hr", "lq"] {
        fs::create_dir_all(data.join(side)).unwrap();
    }
    for (name, size) in [("hr/a.png", 40), ("lq/a.png", 20), ("hr/b.png", 40)] {
        picture(size, size, 1).save(data.join(name)).unwrap();
    }
    let ran = run(&["eval", text(&data), "-m", text(&a), "--json"]);
    let ran = ran.refused(1, &["left out of the mean", "b.png", "1 of 2 images"]);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["images"].as_array().unwrap().len(), 1);
    assert_eq!(report["left_out"].as_array().unwrap().len(), 1);
    assert!(report["lq"].as_str().unwrap().contains("lq"));
}
