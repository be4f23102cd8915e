//! The whole CUDA backend on a machine without a GPU: a stand-in driver that runs kernels on fibers
//! replaces libcuda. Its streams run as late as they may, which makes missing waits visible.

use crate::{cli_common, kernels_common, machine_code, shard_common};

use cli_common::{paragon, text};
use kernels_common::driver;
use shard_common::{config, make, pictures};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Output;

/// A measurement of a small step, as JSON.
const BENCH_STEP: [&str; 11] = [
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

/// Runs the program with the stand-in driver; the variables `card` describe the card.
fn with_driver(args: &[&str], card: &[(&str, &str)]) -> Option<Output> {
    let folder = driver()?;
    let mut command = paragon(args);
    command.env("LD_LIBRARY_PATH", folder);
    // a program that was built with machine code makes the same calls as one without
    command.env("PARAGON_CUDA_PTX", "1");
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
            && said.contains("pinned")
            // validation runs on the device too
            && !said.contains("no scores")
            && said.contains("PSNR"),
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
    let output = with_driver(&BENCH_STEP, &[("FAKE_CUDA_MEMORY", "2000000000")]).unwrap();
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

/// A training of a few iterations on the stand-in in f32; the variables are those of the driver and the
/// program's switches.
fn short_training(
    set: &Path,
    out: &Path,
    iterations: &str,
    variables: &[(&str, &str)],
) -> Option<Output> {
    short_training_in(set, out, ("cuda", "f32"), iterations, variables)
}

/// The same on a device in a type of activations.
fn short_training_in(
    set: &Path,
    out: &Path,
    (device, precision): (&str, &str),
    iterations: &str,
    variables: &[(&str, &str)],
) -> Option<Output> {
    let args = [
        "train",
        "--shards",
        text(set),
        "--out",
        text(out),
        "--lq-size",
        "12",
        "--batch-size",
        "2",
        "--warmup",
        "0",
        "--loss",
        "l1",
        "--schedule",
        "constant",
        "--log-every",
        "1",
        "--checkpoint-every",
        "1",
        "--device",
        device,
        "--precision",
        precision,
        "-v",
        "--iterations",
        iterations,
    ];
    with_driver(&args, variables)
}

/// Variables of the stand-in, and words that the answer must contain.
type LoadCase = (
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

#[test]
fn kernels_that_the_driver_does_not_load_are_refused_with_what_to_try() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let cases: [LoadCase; 5] = [
        (
            &[("FAKE_CUDA_FAIL", "cuModuleLoadData:1:222")],
            &["error 222", "530"],
        ),
        (
            &[("FAKE_CUDA_FAIL", "cuModuleLoadData:1:221")],
            &["libnvidia-ptxjitcompiler", "container"],
        ),
        (
            &[
                ("FAKE_CUDA_FAIL", "cuModuleLoadData:1:223"),
                ("CUDA_DISABLE_PTX_JIT", "1"),
            ],
            &["CUDA_DISABLE_PTX_JIT", "unset it"],
        ),
        (
            &[
                ("FAKE_CUDA_FAIL", "cuModuleLoadData:1:200"),
                ("CUDA_CACHE_PATH", "/somewhere/cache"),
            ],
            &["/somewhere/cache", "CUDA_CACHE_DISABLE=1"],
        ),
        (
            &[("FAKE_CUDA_FAIL", "cuModuleGetFunction:2:500")],
            &["find a kernel"],
        ),
    ];
    for (variables, words) in cases {
        let out = dir.path().join("run");
        let Some(output) = short_training(&set, &out, "1", variables) else {
            return;
        };
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            words.iter().all(|w| said.contains(w)) && !said.contains("panicked"),
            "{variables:?}: {said}"
        );
    }
}

#[test]
fn a_lost_device_is_named_and_the_run_goes_on_from_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let (whole, lost) = (dir.path().join("whole"), dir.path().join("lost"));
    let Some(output) = short_training(&set, &whole, "4", &[]) else {
        return;
    };
    assert!(output.status.success(), "{}", said(&output));
    let model = |run: &Path| std::fs::read(run.join("model.safetensors")).unwrap();
    // a step has about 20 kernels: the device is lost in the third iteration
    for (variables, words) in [
        (
            &[("FAKE_CUDA_FAIL", "kernel:52:700")][..],
            &["the GPU is lost", "CUDA error 700", "illegal memory access"][..],
        ),
        (
            &[
                ("FAKE_CUDA_FAIL", "kernel:52:719"),
                ("PARAGON_CUDA_SYNC", "1"),
            ],
            &["CUDA error 719", "Xid", "kernel ", "of operation"],
        ),
        // a copy that fails while the one before it still reads the batch
        (
            &[("FAKE_CUDA_FAIL", "cuMemcpyHtoDAsync:12:1")],
            &["copy a batch", "invalid argument"],
        ),
    ] {
        let output = short_training(&set, &lost, "4", variables).unwrap();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for word in words.iter().chain(&["checkpoint of iteration"]) {
            assert!(
                text.contains(word),
                "{variables:?}: no \"{word}\" in {text}"
            );
        }
        assert!(!text.contains("panicked"), "{text}");
        let output = short_training(&set, &lost, "4", &[]).unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert!(
            model(&lost) == model(&whole),
            "a resumed run gives other bits"
        );
        std::fs::remove_dir_all(&lost).unwrap();
    }
}

/// Every switch gives the bits of the usual way: with and without graphs, with concurrent launches
/// on the main stream, with a capture that fails half way.
#[test]
fn switches_do_not_change_the_bits() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let mut first: Option<Vec<u8>> = None;
    let cases: [(&str, &str, &str); 7] = [
        ("PARAGON_UNUSED", "1", "the step as one graph"),
        (
            "PARAGON_CUDA_FAIL_CAPTURE",
            "3",
            "PARAGON_CUDA_FAIL_CAPTURE=3",
        ),
        ("PARAGON_CUDA_GRAPH", "0", "kernel by kernel"),
        ("PARAGON_CUDA_SYNC", "1", "kernel by kernel"),
        ("PARAGON_CUDA_SIDE", "0", "the step as one graph"),
        ("PARAGON_CUDA_PRIORITY", "1", "the step as one graph"),
        ("PARAGON_CUDA_CARVEOUT", "44", "the step as one graph"),
    ];
    for (name, value, words) in cases {
        let out = dir.path().join(name);
        let Some(output) = short_training(&set, &out, "3", &[(name, value)]) else {
            return;
        };
        let said = said(&output);
        assert!(
            output.status.success() && said.contains(words),
            "{name}: {said}"
        );
        let model = std::fs::read(out.join("model.safetensors")).unwrap();
        assert!(
            *first.get_or_insert_with(|| model.clone()) == model,
            "{name} changes the bits"
        );
    }
    for (name, value) in [
        ("PARAGON_CUDA_SYNC", "yes"),
        ("PARAGON_CUDA_CARVEOUT", "101"),
        ("PARAGON_CUDA_SUM_BLOCKS", "8"),
    ] {
        let out = dir.path().join("wrong");
        let said = said(&short_training(&set, &out, "1", &[(name, value)]).unwrap());
        assert!(
            said.contains(name) && said.contains("expected a number from"),
            "{said}"
        );
    }
}

/// The kernels that `kernel` finds in the lines of the logs that the stand-in has written to `log-*` in a
/// folder, each once. The logs are deleted.
fn logged(folder: &Path, kernel: impl Fn(&str) -> Option<&str>) -> BTreeSet<String> {
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    let mut names = BTreeSet::new();
    for file in files.filter(|f| f.file_name().to_str().unwrap().starts_with("log-")) {
        let text = std::fs::read_to_string(file.path()).unwrap();
        names.extend(text.lines().filter_map(&kernel).map(str::to_string));
        std::fs::remove_file(file.path()).unwrap();
    }
    names
}

/// A type of activations, switches, and the kernels that start early.
type EarlyCase<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

/// Kernels that start while the one ahead of them still runs give the same bits, with and without
/// graphs. The stand-in refuses such a launch where something else is directly ahead of it.
#[test]
fn kernels_that_start_early_do_not_change_the_bits() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let log = dir.path().join("log");
    let on = ("PARAGON_CUDA_OVERLAP", "1");
    // the first kernels, concurrent ones and those directly after them do not start early
    let in_f32 = [
        "adam",
        "conv",
        "conv_rgb_weights",
        "conv_weights",
        "nano_block",
        "nano_block_back",
        "reconstruct_back",
        "reduce_sums",
    ];
    let in_bf16 = [
        "adam",
        "conv",
        "conv_rgb_weights",
        "nano_block",
        "nano_block_back",
        "reconstruct_back_x2",
        "reduce_sums",
    ];
    let cases: [EarlyCase<'_>; 7] = [
        ("f32", &[], &[]),
        ("f32", &[on], &in_f32),
        ("f32", &[on, ("PARAGON_CUDA_GRAPH", "0")], &in_f32),
        ("f32", &[on, ("PARAGON_CUDA_FAIL_CAPTURE", "4")], &in_f32),
        ("f32", &[on, ("PARAGON_CUDA_SIDE", "0")], &[]),
        ("bf16", &[], &[]),
        ("bf16", &[on], &in_bf16),
    ];
    let mut models = std::collections::BTreeMap::<&str, Vec<u8>>::new();
    for (i, (precision, switches, expected)) in cases.into_iter().enumerate() {
        let out = dir.path().join(format!("run{i}"));
        let card = [
            ("FAKE_CUDA_CAPABILITY", "90"),
            ("FAKE_CUDA_LOG", text(&log)),
        ];
        let variables = [&card[..], switches].concat();
        let device = ("cuda", precision);
        let Some(output) = short_training_in(&set, &out, device, "3", &variables) else {
            return;
        };
        let said = said(&output);
        assert!(output.status.success(), "{switches:?}: {said}");
        let overlaps = said.contains("kernels start early");
        assert_eq!(overlaps, switches.contains(&on), "{said}");
        let found = logged(dir.path(), |line| line.strip_prefix("early "));
        if switches.contains(&("PARAGON_CUDA_SIDE", "0")) {
            // one stream, so that only the first kernels of the step and of the update do not
            assert!(found.is_superset(&in_f32.map(str::to_string).into()));
            for kernel in ["conv_rgb", "conv_data", "reconstruct", "unfold_gradients"] {
                assert!(found.contains(kernel), "{kernel}: {found:?}");
            }
            for kernel in ["set_scalars", "fold_conv", "gradient_squares"] {
                assert!(!found.contains(kernel), "{kernel}: {found:?}");
            }
        } else {
            let found: Vec<&str> = found.iter().map(String::as_str).collect();
            assert_eq!(found, expected, "{precision}, {switches:?}");
        }
        let model = std::fs::read(out.join("model.safetensors")).unwrap();
        assert!(
            *models.entry(precision).or_insert_with(|| model.clone()) == model,
            "{precision}, {switches:?}: other bits"
        );
    }
    let out = dir.path().join("older");
    let output = short_training(&set, &out, "1", &[on]).unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("PARAGON_CUDA_OVERLAP is \"1\", but fiber GPU is sm_86"),
        "{said}"
    );
}

/// A consumer card computes the depthwise step of Nano in half precision by multiply-adds, other cards on
/// tensor cores, unless a switch says otherwise. Both follow the CPU.
#[test]
fn the_card_decides_which_unit_computes_the_depthwise_step() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path());
    let log = dir.path().join("log");
    let (tensor, plain) = (
        ["nano_block", "nano_block_back"],
        ["nano_block_back_plain", "nano_block_plain"],
    );
    let cases: [(&str, Option<&str>, [&str; 2]); 8] = [
        ("75", None, tensor),
        ("80", None, tensor),
        ("86", None, plain),
        ("89", None, plain),
        ("90", None, tensor),
        ("120", None, plain),
        ("86", Some("tensor"), tensor),
        ("90", Some("plain"), plain),
    ];
    let by_cpu = dir.path().join("cpu");
    let Some(output) = short_training_in(&set, &by_cpu, ("cpu", "f32"), "2", &[]) else {
        return;
    };
    assert!(output.status.success(), "{}", said(&output));
    let expected = losses(&by_cpu);
    assert_eq!(expected.len(), 2);
    for (capability, switch, kernels) in cases {
        let out = dir.path().join(format!("{capability}-{switch:?}"));
        let mut card = vec![
            ("FAKE_CUDA_CAPABILITY", capability),
            ("FAKE_CUDA_LOG", text(&log)),
        ];
        card.extend(switch.map(|unit| ("PARAGON_CUDA_DEPTHWISE", unit)));
        let precision = if capability == "75" { "fp16" } else { "bf16" };
        let output = short_training_in(&set, &out, ("cuda", precision), "2", &card).unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let names = logged(dir.path(), |line| {
            line.starts_with("nano_block").then_some(line)
        });
        let names: Vec<String> = names.into_iter().collect();
        assert_eq!(names, kernels, "sm_{capability}, {switch:?}");
        let found = losses(&out);
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= 2e-2 * b, "sm_{capability}: {a} for {b}");
        }
    }
    let wrong = [("PARAGON_CUDA_DEPTHWISE", "cores")];
    let said = said(&short_training(&set, &dir.path().join("wrong"), "1", &wrong).unwrap());
    assert!(
        said.contains("PARAGON_CUDA_DEPTHWISE is \"cores\"; expected tensor or plain"),
        "{said}"
    );
}

#[test]
fn a_turing_card_without_tensor_cores_trains_in_f32() {
    let dir = tempfile::tempdir().unwrap();
    let (set, out) = (set(dir.path()), dir.path().join("run"));
    let args = [
        "train",
        "--shards",
        text(&set),
        "--out",
        text(&out),
        "--lq-size",
        "12",
        "--batch-size",
        "2",
        "--iterations",
        "1",
        "--device",
        "cuda",
        "-v",
    ];
    let card = [
        ("FAKE_CUDA_CAPABILITY", "75"),
        ("FAKE_CUDA_NAME", "NVIDIA GeForce GTX 1660 Ti"),
    ];
    let Some(output) = with_driver(&args, &card) else {
        return;
    };
    let said = said(&output);
    assert!(
        output.status.success() && said.contains("GTX 1660 Ti (sm_75), f32"),
        "{said}"
    );
}

#[test]
fn kernels_that_are_worse_than_the_table_are_named() {
    let run = |more: &[(&str, &str)]| {
        let memory = ("FAKE_CUDA_MEMORY", "220000000");
        let card = [&[memory, ("FAKE_CUDA_LIMITS", "1")], more].concat();
        let output = with_driver(&[&BENCH_STEP[..], &["--step-only"]].concat(), &card)?;
        assert!(output.status.success(), "{}", said(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        Some((report, String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let Some((report, warnings)) = run(&[("FAKE_CUDA_BLOCKS", "16")]) else {
        return;
    };
    assert!(!warnings.contains("warning"), "{warnings}");
    let kernels = report["loaded"]["kernels"].as_array().unwrap();
    let block = kernels
        .iter()
        .find(|k| k["kernel"] == "nano_block_back_plain");
    let block = block.expect("the kernel of the block's backward pass");
    assert_eq!(block["registers"], 16, "{block}");
    assert_eq!(block["expected_blocks"], 2, "{block}");
    assert!(report["loaded"]["load_seconds"].as_f64().is_some());
    // the copies shrink until they fit
    assert_eq!(report["copy_bytes"], 64 << 20, "{report}");
    assert_eq!(report["copy_peak"], 360_048_000_000.0, "{report}");
    let worse = [
        ("FAKE_CUDA_BLOCKS", "1"),
        ("FAKE_CUDA_REGISTERS", "255"),
        ("FAKE_CUDA_LOCAL", "64"),
    ];
    let (_, warnings) = run(&worse).unwrap();
    for words in [
        "255 registers",
        "64 bytes of local memory, 0 listed",
        "1 blocks at once, ",
        "are worse than kernels/ptx/RESOURCES.md lists",
    ] {
        assert!(warnings.contains(words), "{words}: {warnings}");
    }
}

/// `scripts/gpu-check` on the stand-in: its first visit runs to the end and writes what it decides; a
/// part whose time is over, or that fails, leaves the others running.
#[test]
fn gpu_check_runs_without_a_gpu() {
    let Some(folder) = driver() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-check");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let run = |args: &[&str], card: &[(&str, &str)]| {
        let output = std::process::Command::new("python3")
            .arg(&script)
            .args(["--tiny", "--out", text(&out), "--paragon"])
            .arg(paragon::<&str>(&[]).get_program())
            .args(args)
            .env("LD_LIBRARY_PATH", &folder)
            .env("FAKE_CUDA_MEMORY", "450000000")
            .env("PARAGON_CUDA_PTX", "1")
            .envs(card.iter().copied())
            .output();
        match output {
            Ok(output) => Some(output),
            Err(error) => {
                println!("SKIP gpu-check: no python3 ({error})");
                None
            }
        }
    };
    let Some(output) = run(&["--first-visit"], &[("FAKE_CUDA_CAPABILITY", "90")]) else {
        return;
    };
    assert!(output.status.success(), "{}", said(&output));
    let decisions = std::fs::read_to_string(out.join("decisions.md")).unwrap();
    for what in [
        "| kernels of f32 as compiled by this driver | 0 of",
        "| selftest | 0 of",
        "| carve-out 100 % |",
        "| priorities |",
        "| no graphs |",
        "another number of blocks that sum (256)",
        "the other unit for the depthwise step (",
        "| kernels start early |",
        "| kernels start early, no graphs |",
        "| bits with and without graphs, concurrent kernels and early ones |",
        "Failed: nothing.",
    ] {
        assert!(decisions.contains(what), "{what}: {decisions}");
    }
    let report = std::fs::read_to_string(out.join("gpu-check.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["steps"].as_array().unwrap().len(), 6, "{report}");
    assert_eq!(report["switches"].as_array().unwrap().len(), 9, "{report}");
    assert_eq!(report["bits"].as_object().unwrap().len(), 5, "{report}");
    // one part has no time, one fails, and the last still runs
    let args = ["--only", "card,steps,bits", "--limit", "card=0"];
    let output = run(&args, &[("PARAGON_CUDA_SUM_BLOCKS", "wrong")]).unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for what in [
        "card: its 0 s are over",
        "PARAGON_CUDA_SUM_BLOCKS is \"wrong\"",
        "-- bits: ",
        "failed: card (took more than 0 s), step",
    ] {
        assert!(text.contains(what), "{what}: {text}");
    }
    // with machine code the card's part measures PTX as well
    let [folder, _] = machine_code::stand_ins(dir.path());
    let card = [("PARAGON_CUDA_CUBIN", &*folder), ("PARAGON_CUDA_PTX", "0")];
    let output = run(&["--only", "card"], &card).unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let decisions = std::fs::read_to_string(out.join("decisions.md")).unwrap();
    for what in ["| kernels of f32 as sm_86 | 0 of", " s with machine code, "] {
        assert!(decisions.contains(what), "{what}: {decisions}");
    }
    // a network by itself, and what an older card cannot do
    let output = run(&["--only", "bits,networks,compact"], &[]).unwrap();
    let text = said(&output);
    assert!(
        output.status.success() && text.contains("compact, f32: ") && !text.contains("span"),
        "{text}"
    );
    assert!(text.contains("ms an image of 8 x 8"), "{text}");
    assert!(
        text.contains("3 iterations with kernels that start early: not on this card"),
        "{text}"
    );
    // nothing is timed where the selftest cannot run
    let args = ["--only", "selftest,steps"];
    let fail = [("FAKE_CUDA_FAIL", "cuModuleLoadData:1:222")];
    let text = said(&run(&args, &fail).unwrap());
    assert!(
        text.contains("nothing is timed") && !text.contains("-- steps"),
        "{text}"
    );
    let output = run(&["--dry-run"], &[]).unwrap();
    let text = said(&output);
    assert!(
        output.status.success() && text.contains("would run (at most"),
        "{text}"
    );
}
