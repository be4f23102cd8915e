//! The whole CUDA backend on a machine without a GPU: a stand-in driver that runs kernels on fibers
//! replaces libcuda. Its streams run as late as they may, which makes missing waits visible.

use crate::{cli_common, kernels_common, shard_common};

use cli_common::{paragon, text};
use kernels_common::driver;
use shard_common::{config, make, pictures};
use std::path::Path;
use std::process::Output;

/// Runs the program with the stand-in driver; the variables `card` describe the card.
fn with_driver(args: &[&str], card: &[(&str, &str)]) -> Option<Output> {
    let folder = driver()?;
    let mut command = paragon(args);
    command.env("LD_LIBRARY_PATH", folder);
    command.envs(card.iter().copied());
    Some(command.output().unwrap())
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn set(dir: &Path) -> std::path::PathBuf {
    let (data, set) = (dir.join("data"), dir.join("set"));
    pictures(&data, 3);
    make(&config(&data, &set)).unwrap();
    set
}

/// `--device`, variables that describe the card, and words that the answer must contain.
type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

#[test]
fn a_card_that_cannot_be_used_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (set, out) = (set(dir.path()), dir.path().join("run"));
    let train = [
        "train",
        "--shards",
        text(&set),
        "--out",
        text(&out),
        "--iterations",
        "1",
        "--lq-size",
        "16",
        "--batch-size",
        "2",
        "--device",
    ];
    let cases: [Case; 6] = [
        ("cuda:3", &[], &["cuda:3", "finds 1"]),
        (
            "cuda",
            &[("FAKE_CUDA_DEVICES", "0")],
            &["finds no device", "--device cpu"],
        ),
        (
            "cuda",
            &[("FAKE_CUDA_CAPABILITY", "61")],
            &["sm_61", "sm_75"],
        ),
        (
            "cuda",
            &[("FAKE_CUDA_DRIVER", "11040")],
            &["11.4", "12.1", "530"],
        ),
        (
            "cuda",
            &[("FAKE_CUDA_MEMORY", "300000000")],
            &["device memory"],
        ),
        ("gpu", &[], &["expected one of", "cuda"]),
    ];
    for (device, card, words) in cases {
        let Some(output) = with_driver(&[&train[..], &[device]].concat(), card) else {
            return;
        };
        let said = said(&output);
        assert_eq!(
            output.status.code(),
            Some(if device == "gpu" { 2 } else { 1 }),
            "{said}"
        );
        assert!(
            words.iter().all(|w| said.contains(w)) && !said.contains("panicked"),
            "{card:?}: {said}"
        );
    }
    let Some(output) = with_driver(
        &[&train[..], &["cuda", "--precision", "bf16"]].concat(),
        &[("FAKE_CUDA_CAPABILITY", "75")],
    ) else {
        return;
    };
    assert!(
        output.status.code() == Some(1) && said(&output).contains("has no bf16"),
        "{}",
        said(&output)
    );
}

/// The losses of a run's log.
fn losses(run: &Path) -> Vec<f64> {
    let log = std::fs::read_to_string(run.join("log.jsonl")).unwrap();
    log.lines()
        .map(|l| {
            serde_json::from_str::<serde_json::Value>(l).unwrap()["loss"]
                .as_f64()
                .unwrap()
        })
        .collect()
}

#[test]
fn training_on_the_device_follows_the_cpu_and_resumes_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (set, val) = (set(dir.path()), dir.path().join("val"));
    std::fs::create_dir(&val).unwrap();
    shard_common::picture(50, 36, 9)
        .save(val.join("a.png"))
        .unwrap();
    let base = [
        "train",
        "--shards",
        text(&set),
        "--lq-size",
        "12",
        "--batch-size",
        "2",
        "--warmup",
        "0",
        "--lr",
        "1e-3",
        "--loss",
        "l1",
    ];
    let train = |name: &str, iterations: &str, flags: &[&str], card: &[(&str, &str)]| {
        let out = dir.path().join(name);
        // Without a log line or a checkpoint between them, iterations follow each other without
        // waiting.
        let every = if name == "ahead" { "4" } else { "1" };
        let more = [
            "--layer-scale",
            "0.5",
            "--log-every",
            every,
            "--checkpoint-every",
            every,
            "--accum-iter",
            "2",
            "--slots",
            "3",
            // the usual milestones follow the length, and runs of several lengths are compared
            "--schedule",
            "constant",
            "-v",
        ];
        let all = [
            &base[..],
            &more[..],
            &["--out", text(&out), "--iterations", iterations],
            flags,
        ]
        .concat();
        let output = with_driver(&all, card)?;
        let said = said(&output);
        assert!(output.status.success(), "{name}: {said}");
        Some((out, said))
    };
    let model = |run: &Path| std::fs::read(run.join("model.safetensors")).unwrap();
    let validated = ["--val", text(&val), "--val-every", "2"];
    let Some((device, said)) = train(
        "device",
        "4",
        &[&["--device", "cuda", "--precision", "f32"][..], &validated].concat(),
        &[],
    ) else {
        return;
    };
    assert!(
        said.contains("fiber GPU (sm_86), f32, the step as one graph")
            && said.contains("(measured)")
            && said.contains("pinned"),
        "{said}"
    );
    let (cpu, _) = train(
        "cpu",
        "4",
        &[&["--device", "cpu"][..], &validated].concat(),
        &[],
    )
    .unwrap();
    for (a, b) in losses(&device).iter().zip(losses(&cpu)) {
        assert!(
            (a - b).abs() < 2e-5 * b,
            "the loss is {a} on the device and {b} on the CPU"
        );
    }
    // Without graphs; stopped half way; and with each stream (the compute stream, the side stream,
    // the copy stream) far ahead of the others.
    let cuda = ["--device", "cuda", "--precision", "f32"];
    let (single, said) = train(
        "single",
        "4",
        &cuda,
        &[("FAKE_CUDA_CAPTURE", "0"), ("FAKE_CUDA_EAGER", "0")],
    )
    .unwrap();
    assert!(
        said.contains("kernel by kernel") && said.contains("operation not supported"),
        "{said}"
    );
    assert!(
        model(&single) == model(&device),
        "launching kernel by kernel gives other bits"
    );
    let (halves, _) = train("parts", "2", &cuda, &[]).unwrap();
    train("parts", "4", &cuda, &[("FAKE_CUDA_EAGER", "1")]).unwrap();
    assert!(
        model(&halves) == model(&device),
        "a resumed run gives other bits"
    );
    let (ahead, _) = train("ahead", "4", &cuda, &[("FAKE_CUDA_EAGER", "2")]).unwrap();
    assert!(
        model(&ahead) == model(&device),
        "copies that run ahead give other bits"
    );
    // A run that diverges: the device has begun the next iteration when this is noticed, and still
    // stops at the same iteration as the CPU.
    let stopped = |name: &str, device: &[&str]| {
        let (out, set) = (dir.path().join(name), text(&set).to_string());
        let all = [
            "train",
            "--shards",
            &set,
            "--lq-size",
            "12",
            "--batch-size",
            "2",
            "--warmup",
            "0",
            "--lr",
            "1e30",
            "--loss",
            "l1",
        ];
        let more = [
            "--out",
            text(&out),
            "--iterations",
            "40",
            "--log-every",
            "40",
        ];
        let said = self::said(&with_driver(&[&all[..], &more, device].concat(), &[]).unwrap());
        assert!(
            said.contains("not finite 10 times in a row"),
            "{name}: {said}"
        );
        said[said.find("training stopped at iteration").unwrap()..]
            .lines()
            .next()
            .unwrap()
            .to_string()
    };
    assert_eq!(
        stopped("broken", &cuda),
        stopped("broken-cpu", &["--device", "cpu"])
    );
    // A card of an older generation trains in fp16, with a loss scale.
    let (old, said) = train(
        "old",
        "4",
        &["--device", "cuda"],
        &[("FAKE_CUDA_CAPABILITY", "75")],
    )
    .unwrap();
    assert!(said.contains("sm_75), fp16"), "{said}");
    for (a, b) in losses(&old).iter().zip(losses(&cpu)) {
        assert!(
            (a - b).abs() < 2e-2 * b,
            "the loss is {a} in fp16 and {b} on the CPU"
        );
    }
}

/// Every network other than Nano, whose steps are made of plain kernels, follows the CPU.
#[test]
fn every_network_trains_on_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let (set, val) = (set(dir.path()), dir.path().join("val"));
    std::fs::create_dir(&val).unwrap();
    shard_common::picture(24, 20, 9)
        .save(val.join("a.png"))
        .unwrap();
    let networks: [&[&str]; 5] = [
        &["compact", "--num-feat", "20", "--num-conv", "1"],
        &["span", "--feature-channels", "12"],
        &["paragonsr2_stream"],
        &["paragonsr2_photo", "--window-size", "4"],
        &["paragonsr2_pro", "--window-size", "4"],
    ];
    for network in networks {
        let mut all = Vec::new();
        for device in ["cpu", "cuda"] {
            let out = dir.path().join(format!("{}-{device}", network[0]));
            let run = [
                "train",
                "--shards",
                text(&set),
                "--out",
                text(&out),
                "--lq-size",
                "8",
                "--batch-size",
                "2",
                "--iterations",
                "2",
                "--log-every",
                "1",
                "--warmup",
                "0",
                "--loss",
                "l1",
                "--val",
                text(&val),
                "--device",
                device,
                "--precision",
                "f32",
                "--network",
            ];
            let Some(output) = with_driver(&[&run[..], network].concat(), &[]) else {
                return;
            };
            assert!(output.status.success(), "{network:?}: {}", said(&output));
            all.push(losses(&out));
        }
        assert!(
            all[0].len() == 2 && all[1].len() == 2,
            "{network:?}: {all:?}"
        );
        for (cpu, cuda) in all[0].iter().zip(&all[1]) {
            assert!(
                (cpu - cuda).abs() < 2e-5 * cpu,
                "{network:?}: the loss is {cuda} on the device and {cpu} on the CPU"
            );
        }
    }
}

#[test]
fn the_selftest_finds_every_kernel_right_and_a_step_is_measured() {
    let Some(output) = with_driver(&["selftest", "--quick", "--json"], &[]) else {
        return;
    };
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["wrong"], 0, "{said}");
    assert!(report["checks"].as_u64().unwrap() >= 60, "{said}");
    let bench = [
        "bench",
        "step",
        "--device",
        "cuda",
        "--batch-size",
        "1",
        "--lq-size",
        "8",
        "--steps",
        "1",
        "--json",
    ];
    let output = with_driver(&bench, &[("FAKE_CUDA_MEMORY", "2000000000")]).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["planned_bytes"], report["allocated_bytes"]);
    let kernels = report["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|k| k["kernel"] == "adam"), "{report}");
    assert!(
        kernels
            .iter()
            .any(|k| k["kernel"] == "reduce_sums" && k["operation"].is_null()),
        "{report}"
    );
}
