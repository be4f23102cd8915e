//! `paragon export`: the files it writes and their names, OpenModelDB's entry, examples, and what it
//! refuses.

use crate::cli_common::{model, run, text};
use paragon::dataset::synth::synthetic_image;
use paragon::export::digest::sha256;
use paragon::model::{ModelHints, Network, read_model, write_model};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

/// The run that version 0.1.0 wrote; its shards are not where its option file says.
fn old_run() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/0.1.0/run")
}

/// Names of the files in a folder, sorted.
fn listing(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn save(path: &Path, net: &Network) {
    write_model(path, net, &net.params().start_values(7), Some(9)).unwrap();
}

#[test]
fn a_network_leaves_in_every_form() {
    let place = tempfile::tempdir().unwrap();
    let (network, out) = (model(place.path()), place.path().join("out"));
    let ran = run(&[
        "export",
        text(&network),
        "--onnx",
        "--precision",
        "f32,fp16,bf16",
        "--safetensors",
        "--half",
        "--name",
        "2xTest one",
        "--out",
        text(&out),
        "--json",
    ])
    .ok();
    let expected = [
        "2x_Test_one_bf16_op22.onnx",
        "2x_Test_one_fp16.safetensors",
        "2x_Test_one_fp16_op18.onnx",
        "2x_Test_one_fp32_op18.onnx",
    ];
    assert_eq!(listing(&out), expected);
    let json: Json = serde_json::from_str(&ran.stdout).unwrap();
    let files = json["files"].as_array().unwrap();
    assert_eq!(files.len(), 4);
    for file in files {
        let bytes = std::fs::read(file["path"].as_str().unwrap()).unwrap();
        assert_eq!(file["bytes"], bytes.len());
        assert_eq!(file["sha256"], sha256(&bytes));
        let least = if file["precision"] == "f32" {
            80.0
        } else {
            50.0
        };
        assert!(file["psnr"].as_f64().unwrap() >= least, "{file}");
    }
    // the halves are those of the network
    let (_, original, _) = read_model(&network, &ModelHints::default()).unwrap();
    let half = out.join("2x_Test_one_fp16.safetensors");
    let (net, halves, _) = read_model(&half, &ModelHints::default()).unwrap();
    assert_eq!(net.number("upsampler_alpha"), 0.3);
    let off = original
        .iter()
        .zip(&halves)
        .map(|(a, b)| (a - b).abs() / a.abs().max(1e-4));
    let most = off.fold(0.0, f32::max);
    assert!(most > 0.0 && most < 1e-3, "{most}");
}

#[test]
fn the_entry_of_a_run_has_its_recipe_and_a_list_of_blanks() {
    let place = tempfile::tempdir().unwrap();
    let (out, images) = (place.path().join("out"), place.path().join("lq"));
    std::fs::create_dir(&images).unwrap();
    for i in 0..2 {
        let image = synthetic_image(3, i, 31, 20);
        image.save(images.join(format!("{i}.png"))).unwrap();
    }
    let ran = run(&[
        "export",
        text(&old_run()),
        "--onnx",
        "--openmodeldb",
        "--author",
        "me,you",
        "--license",
        "MIT",
        "--examples",
        text(&images),
        "--out",
        text(&out),
    ])
    .ok();
    for words in [
        "description",
        "tags",
        "a URL for each file",
        "paragonsr2",
        "datasetSize",
    ] {
        assert!(ran.stdout.contains(words), "{words}: {}", ran.stdout);
    }
    assert!(!ran.stdout.contains("--author"), "{}", ran.stdout);
    assert_eq!(
        listing(&out),
        ["2x-run.json", "2x_run_fp32_op18.onnx", "examples"]
    );
    let content = std::fs::read_to_string(out.join("2x-run.json")).unwrap();
    assert!(content.starts_with("{\n    \"name\": \"run\",\n") && content.ends_with("\n}"));
    let json: Json = serde_json::from_str(&content).unwrap();
    assert_eq!(json["author"], serde_json::json!(["me", "you"]));
    assert_eq!(
        (&json["license"], &json["tags"][0]),
        (&"MIT".into(), &"FILL IN".into())
    );
    assert_eq!(
        (&json["scale"], &json["inputChannels"]),
        (&2.into(), &3.into())
    );
    assert_eq!(json["trainingIterations"], 8);
    assert_eq!(
        (&json["trainingBatchSize"], &json["trainingHRSize"]),
        (&2.into(), &32.into())
    );
    assert_eq!(json["dataset"], "set");
    let description = json["description"].as_str().unwrap();
    assert!(
        description.contains("8 iterations, batch 2"),
        "{description}"
    );
    let resource = &json["resources"][0];
    let file = std::fs::read(out.join("2x_run_fp32_op18.onnx")).unwrap();
    assert_eq!(
        (&resource["platform"], &resource["type"]),
        (&"onnx".into(), &"onnx".into())
    );
    assert_eq!(
        (&resource["size"], &resource["sha256"]),
        (&file.len().into(), &sha256(&file).into())
    );
    assert_eq!(json["images"].as_array().unwrap().len(), 2);
    let side = image::open(out.join("examples/0_side_by_side.png")).unwrap();
    assert_eq!((side.width(), side.height()), (2 * 62 + 8, 40));
    assert_eq!(listing(&out.join("examples")).len(), 6);
}

#[test]
fn the_best_network_of_a_run_is_taken() {
    let place = tempfile::tempdir().unwrap();
    let (source, out) = (place.path().join("nomos"), place.path().join("out"));
    std::fs::create_dir_all(source.join("models")).unwrap();
    std::fs::copy(old_run().join("config.yml"), source.join("config.yml")).unwrap();
    let net = Network::new("nano", 2).unwrap();
    save(&source.join("model.safetensors"), &net);
    let best = source.join("models/best_net_g_ema.safetensors");
    save(&best, &net);
    let export = |from: &Path| {
        let ran = run(&[
            "export",
            text(from),
            "--safetensors",
            "--out",
            text(&out),
            "--json",
        ])
        .ok();
        let json: Json = serde_json::from_str(&ran.stdout).unwrap();
        json["source"].as_str().unwrap().to_string()
    };
    assert_eq!(export(&source), text(&best));
    std::fs::remove_file(&best).unwrap();
    assert_eq!(export(&source), text(&source.join("model.safetensors")));
    // a file of a run is called as the run
    export(&source.join("model.safetensors"));
    assert_eq!(listing(&out), ["2x_nomos.safetensors"]);
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let network = model(place.path());
    let out = place.path().join("out");
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let all = [&["export"], arguments, &["--out", text(&out)]].concat();
        run(&all).refused(code, words);
        assert!(!out.exists());
    };
    refused(
        &[text(&network)],
        1,
        &["--onnx, --safetensors or --openmodeldb"],
    );
    refused(&["nothing", "--onnx"], 1, &["nothing does not exist"]);
    let empty = place.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    refused(
        &[text(&empty), "--onnx"],
        1,
        &["empty", "model.safetensors"],
    );
    std::fs::copy(old_run().join("config.yml"), empty.join("config.yml")).unwrap();
    refused(
        &[text(&empty), "--onnx"],
        1,
        &["a folder without a network"],
    );
    refused(&[text(&network), "--half", "--onnx"], 2, &["--safetensors"]);
    refused(
        &[text(&network), "--onnx", "--precision", "int8"],
        2,
        &["f32", "bf16"],
    );
    refused(&[text(&network), "--onnx", "--name", "..."], 1, &["--name"]);

    let mut net = Network::new("compact", 2).unwrap();
    net.set("num_conv", 1).unwrap();
    net.set("act_type", "relu").unwrap();
    let relu = place.path().join("relu.safetensors");
    save(&relu, &net);
    refused(&[text(&relu), "--safetensors"], 1, &["PReLU", "--onnx"]);

    net.set("act_type", "prelu").unwrap();
    let large = place.path().join("large.safetensors");
    let mut values = net.params().start_values(7);
    values[5] = 1e5;
    write_model(&large, &net, &values, None).unwrap();
    refused(
        &[text(&large), "--safetensors", "--half"],
        1,
        &["body.0.weight", "65504"],
    );
    refused(
        &[text(&large), "--onnx", "--precision", "fp16"],
        1,
        &["--precision f32"],
    );
}
