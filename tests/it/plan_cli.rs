//! `paragon plan` and the choice of a fitting configuration: figures, budgets, refusals with their
//! list of smaller configurations, charts. `paragon train` with less memory than it needs by itself
//! must learn the same and stay within the printed amount.

use crate::{cli_common, shard_common};

use cli_common::{Ran, paragon, run, run_watched, text};
use serde_json::Value;
use shard_common::{config, make, picture, pictures};
use std::fs;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

fn json(arguments: &[&str]) -> Value {
    let ran = run(&[&["plan", "--json"], arguments].concat()).ok();
    serde_json::from_str(&ran.stdout).unwrap()
}

fn arena(plan: &Value) -> u64 {
    plan["memory"]["step"]["arena_bytes"].as_u64().unwrap()
}

const CUDA: [&str; 4] = ["--device", "cuda", "--precision", "bf16"];
const REALTIME: [&str; 8] = [
    "--lq-size",
    "256",
    "--batch-size",
    "64",
    "--loss",
    "l1",
    "--loss",
    "mssim:0.08",
];

#[test]
fn presets_take_the_promised_memory() {
    let nano = json(&[&CUDA[..], &["--preset", "lq128"]].concat());
    assert_eq!(
        (&nano["lq_size"], &nano["effective_batch"]),
        (&128.into(), &16.into())
    );
    assert!(arena(&nano) <= 150 * MIB, "{nano}");
    let full = json(&[&CUDA[..], &["--preset", "lq128", "--recompute", "full"]].concat());
    assert!(arena(&full) <= 80 * MIB, "{full}");
    let realtime = json(&[&CUDA[..], &REALTIME].concat());
    assert!(arena(&realtime) <= 2048 * MIB);
    let full = json(&[&CUDA[..], &REALTIME, &["--recompute", "full"]].concat());
    assert!(arena(&full) <= 1126 * MIB);
    // The preset for too little memory has a patch size, batch and accumulation of its own.
    let safe = json(&["--preset", "memory-safe"]);
    let choice = &safe["choice"];
    assert_eq!(
        (
            &safe["lq_size"],
            &choice["batch_size"],
            &choice["accum_iter"]
        ),
        (&96.into(), &8.into(), &2.into())
    );
    // Flags take precedence over a preset.
    assert_eq!(
        json(&["--preset", "memory-safe", "--lq-size", "64"])["lq_size"],
        64
    );
}

#[test]
fn a_table_adds_up() {
    for flags in [
        &["--val-megapixels", "2"][..],
        &[&CUDA[..], &["--layers", "--recompute", "full"]].concat(),
    ] {
        let plan = json(flags);
        let memory = &plan["memory"];
        let sum = |key: &str| {
            memory[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|l| l["bytes"].as_u64().unwrap())
                .sum::<u64>()
        };
        let on_device = memory["on_device"].as_bool().unwrap();
        let (device, host) = (sum("device"), sum("host"));
        assert_eq!(
            memory["device_bytes"].as_u64().unwrap(),
            if on_device { device + arena(&plan) } else { 0 }
        );
        assert_eq!(
            memory["host_bytes"].as_u64().unwrap(),
            host + if on_device { 0 } else { arena(&plan) }
        );
        let peak = memory["step"]["peak"]["bytes"].as_u64().unwrap();
        assert!(peak <= arena(&plan) && memory["step"]["floor_bytes"].as_u64().unwrap() <= peak);
    }
    let shown = run(&["plan", "--layers", "--val-megapixels", "2"])
        .ok()
        .stdout;
    for words in [
        "body.0.blocks.2",
        "peak: operation",
        "validation",
        "no setting goes below",
        "d output",
        "total",
    ] {
        assert!(shown.contains(words), "{words} is missing in: {shown}");
    }
}

#[test]
fn a_budget_is_fitted_or_refused_with_the_ladder() {
    let asked = json(&[])["memory"]["host_bytes"].as_u64().unwrap();
    let (mut before, mut levels) = (u64::MAX, Vec::new());
    for share in [100, 90, 55, 40, 25] {
        let budget = (asked * share / 100).to_string();
        let plan = json(&["--host-memory", &budget]);
        let bytes = plan["memory"]["host_bytes"].as_u64().unwrap();
        assert!(
            bytes <= asked * share / 100 && bytes <= before,
            "{share}%: {bytes}"
        );
        let choice = &plan["choice"];
        assert_eq!(
            choice["batch_size"].as_u64().unwrap() * choice["accum_iter"].as_u64().unwrap(),
            16
        );
        assert_eq!(plan["why"].is_null(), share == 100);
        levels.push((
            choice["recompute"].as_str().unwrap().to_string(),
            choice["batch_size"].as_u64().unwrap(),
        ));
        before = bytes;
    }
    // Recomputation is tried before a split.
    assert_eq!(
        levels[..2],
        [("block".to_string(), 16), ("full".to_string(), 16)],
        "{levels:?}"
    );
    let off = ["plan", "--host-memory", "100M", "--fit", "off"];
    run(&off).refused(
        1,
        &[
            "--fit off",
            "100.0 MiB",
            "--recompute full",
            "--batch-size 8 --accum-iter 2",
            "fits",
        ],
    );
    run(&["plan", "--host-memory", "30M", "--batch-size", "1"])
        .refused(1, &["--slots 2", "--lq-size 96", "another training"]);
    let ran = run(&[
        &["plan", "--json", "--vram", "320M"][..],
        &CUDA,
        &["--batch-size", "13", "--fit", "off"],
    ]
    .concat());
    let plan: Value =
        serde_json::from_str(&ran.refused(1, &["320.0 MiB device memory"]).stdout).unwrap();
    assert_eq!(plan["fits"], false);
    assert_eq!(
        plan["remedies"].as_array().unwrap().last().unwrap()["fits"],
        true
    );
}

#[test]
fn largest_batches_fill_the_budget_and_no_more() {
    let flags = ["--device", "cuda", "--vram", "1G"];
    let table = json(&[&flags[..], &["--max"]].concat());
    let rows = table.as_array().unwrap();
    assert_eq!(rows.len(), 14);
    for pair in rows.chunks(2) {
        let (block, full) = (
            pair[0]["batch_size"].as_u64().unwrap(),
            pair[1]["batch_size"].as_u64().unwrap(),
        );
        assert!(block >= 1 && full > block, "{pair:?}");
    }
    for row in &rows[8..12] {
        let (lq, level) = (
            row["lq_size"].to_string(),
            row["recompute"].as_str().unwrap(),
        );
        for (more, code) in [(0, 0), (1, 1)] {
            let batch = (row["batch_size"].as_u64().unwrap() + more).to_string();
            let plan = [
                "plan",
                "--fit",
                "off",
                "--lq-size",
                &lq,
                "--batch-size",
                &batch,
                "--recompute",
                level,
            ];
            let ran = run(&[&plan[..], &flags].concat());
            assert_eq!(
                ran.code,
                Some(code),
                "LQ {lq}, batch {batch}, {level}: {}",
                ran.stderr
            );
        }
    }
}

/// A limit of device memory alone is a question about a GPU; the time of a run is measured here.
#[test]
fn a_gpu_is_assumed_for_vram_and_a_time_is_measured() {
    let plan = run(&["plan", "--vram", "12G"]).ok().stdout;
    assert!(
        plan.contains("cuda, bf16") && plan.contains("fits: ") && plan.contains("of 12.0 GiB"),
        "{plan}"
    );
    let small = [
        "plan",
        "--device",
        "cpu",
        "--lq-size",
        "16",
        "--batch-size",
        "1",
        "--time",
    ];
    let time = run(&small).ok().stdout;
    assert!(time.contains("40,000 iterations: about "), "{time}");
    let time = json(&[&small[1..], &["--accum-iter", "2"]].concat());
    let (step, run) = (
        time["time"]["step"]["seconds"].as_f64().unwrap(),
        time["time"]["run_seconds"].as_f64().unwrap(),
    );
    assert!((run / (step * 80_000.0) - 1.0).abs() < 1e-9, "{step} {run}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    run(&["plan", "--precision", "fp16"]).refused(1, &["--device cuda"]);
    run(&["plan", "--device", "cpu", "--vram", "1G"]).refused(1, &["--host-memory"]);
    run(&["plan", "--max"]).refused(1, &["--vram"]);
    run(&["plan", "--scale", "5"]).refused(2, &["--scale", "1, 2, 3, 4, 8"]);
    run(&["plan", "--lq-size", "4"]).refused(1, &["--lq-size"]);
    run(&["plan", "--preset", "huge"]).refused(2, &["--preset"]);
    run(&["plan", "--recompute", "some"]).refused(2, &["--recompute"]);
}

#[test]
fn a_picture_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("arena.svg");
    run(&[
        &["plan", "--chart", text(&path)][..],
        &CUDA,
        &["--recompute", "full"],
    ]
    .concat())
    .ok();
    let svg = fs::read_to_string(&path).unwrap();
    for words in [
        "activation gradients",
        "master weights",
        "the arena",
        "the peak",
    ] {
        assert!(svg.contains(words), "{words}");
    }
    let gone = dir.path().join("no/such/folder/arena.svg");
    run(&["plan", "--chart", text(&gone)]).refused(1, &["no/such/folder"]);
}

/// A set of LQ `lq` from synthetic images.
fn set(dir: &Path, lq: u32) -> PathBuf {
    let (data, set) = (dir.join("data"), dir.join("set"));
    if lq == 16 {
        pictures(&data, 4);
    } else {
        fs::create_dir_all(&data).unwrap();
        (0..6).for_each(|i| {
            picture(2 * lq * 2, 2 * lq * 2, i)
                .save(data.join(format!("p{i}.png")))
                .unwrap()
        });
    }
    let mut config = config(&data, &set);
    (config.lq_size, config.stride) = (lq, lq);
    make(&config).unwrap();
    set
}

fn train(set: &Path, out: &Path, flags: &[&str]) -> Ran {
    let base = [
        "train",
        "--shards",
        text(set),
        "--out",
        text(out),
        "--warmup",
        "2",
        "--log-every",
        "2",
        "--threads",
        "2",
    ];
    run(&[&base[..], flags].concat())
}

fn losses(out: &Path) -> Vec<f64> {
    let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
    log.lines()
        .map(|l| {
            serde_json::from_str::<Value>(l).unwrap()["loss"]
                .as_f64()
                .unwrap()
        })
        .collect()
}

#[test]
fn a_run_in_less_memory_sees_the_same_samples() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path(), 48);
    let out = |name: &str| dir.path().join(name);
    let base = [
        "--iterations",
        "12",
        "--batch-size",
        "8",
        "--lq-size",
        "48",
        "--lr",
        "1e-3",
    ];
    train(&set, &out("asked"), &base).ok();
    let model = |name: &str| fs::read(out(name).join("model.safetensors")).unwrap();
    // The level of recomputation changes no bit.
    train(
        &set,
        &out("full"),
        &[&base[..], &["--recompute", "full"]].concat(),
    )
    .ok();
    assert!(model("full") == model("asked"));
    // With a split, every iteration has the same samples, so losses agree up to rounding.
    let less = [&base[..], &["--host-memory", "32M"]].concat();
    let ran = train(&set, &out("less"), &less).ok();
    assert!(
        ran.stderr.contains("fitted: ") && ran.stderr.contains("same samples"),
        "{}",
        ran.stderr
    );
    for (a, b) in losses(&out("asked")).iter().zip(losses(&out("less"))) {
        assert!((a - b).abs() <= 1e-4 * a, "{a} against {b}");
    }
    // A run can resume with another split: fitted, stated by flags, or without a limit (then it
    // keeps its split, for the same bits).
    for (flags, words) in [
        (
            [
                &["--iterations", "16"][..],
                &base[2..],
                &["--host-memory", "32M"],
            ]
            .concat(),
            "fitted: ",
        ),
        (
            [&["--iterations", "20"][..], &base[2..]].concat(),
            "the split of the run that is resumed",
        ),
        (
            vec![
                "--iterations",
                "24",
                "--batch-size",
                "1",
                "--accum-iter",
                "8",
                "--lr",
                "1e-3",
            ],
            "changed: --batch-size",
        ),
    ] {
        let ran = train(&set, &out("less"), &flags).ok();
        assert!(
            ran.stderr.contains(words),
            "{words} is missing in: {}",
            ran.stderr
        );
    }
    train(
        &set,
        &out("less"),
        &["--iterations", "28", "--batch-size", "4"],
    )
    .refused(1, &["--batch-size", "--restart"]);
    train(
        &set,
        &out("tiny"),
        &[&base[..], &["--host-memory", "25M"]].concat(),
    )
    .refused(1, &["25.0 MiB", "--slots 2"]);
}

#[test]
fn a_long_run_stays_inside_what_was_printed() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path(), 64);
    for (name, flags) in [
        (
            "asked",
            &[
                "--batch-size",
                "16",
                "--lq-size",
                "48",
                "--loader-threads",
                "2",
            ][..],
        ),
        (
            "fitted",
            &[
                "--batch-size",
                "16",
                "--lq-size",
                "64",
                "--host-memory",
                "64M",
                "--val",
                text(&dir.path().join("data")),
            ],
        ),
    ] {
        let out = dir.path().join(name);
        let base = [
            "train",
            "--shards",
            text(&set),
            "--out",
            text(&out),
            "--iterations",
            "300",
            "--json",
            "--threads",
            "2",
        ];
        let often = [
            "--checkpoint-every",
            "50",
            "--val-every",
            "100",
            "--log-every",
            "10",
        ];
        let (ran, peak) = run_watched(paragon(&[&base[..], &often, flags].concat()));
        let summary: Value = serde_json::from_str(&ran.ok().stdout).unwrap();
        let planned = summary["planned"].as_u64().unwrap();
        println!(
            "{name}: {:.1} MiB anonymous at most, {:.1} MiB planned",
            peak as f64 / MIB as f64,
            planned as f64 / MIB as f64
        );
        assert!(
            peak <= planned + 48 * MIB,
            "{name}: {peak} against {planned}"
        );
        // The planned figure is not much too large either.
        assert!(
            peak + 48 * MIB >= planned,
            "{name}: {peak} against {planned}"
        );
    }
}
