//! The command `paragon train`, killed, stopped and started again, with damaged files: in every
//! case the run must end with the same bits (network, state, log) as one that was never
//! interrupted. Every test runs the real binary on a set of a few synthetic patches.

use crate::{cli_common, shard_common, train_common};

#[cfg(unix)]
use cli_common::{Ran, limit_files, paragon};
use cli_common::{run, text};
use paragon::support::rng::Rng;
use shard_common::{config, files, make, pictures};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use train_common::*;

/// Kills of each case; two cases make fifty.
const KILLS: u64 = 25;

#[test]
fn killed_at_fifty_random_moments_it_ends_in_the_bits_of_an_unbroken_run() {
    let (dir, set) = set();
    let data = dir.path().join("data");
    let cases: [(&str, Flags); 2] = [
        (
            "a checkpoint every iteration",
            &[("--checkpoint-every", "1")],
        ),
        (
            "accumulation, crops, cosine, validation",
            &[
                ("--checkpoint-every", "3"),
                ("--accum-iter", "2"),
                ("--lq-size", "12"),
                ("--schedule", "cosine"),
                ("--batch-size", "4"),
                ("--keep-models", "2"),
                ("--keep-every", "6"),
                ("--val-every", "8"),
                ("--val", text(&data)),
            ],
        ),
    ];
    for (number, (what, flags)) in cases.into_iter().enumerate() {
        let whole = dir.path().join(format!("whole{number}"));
        let started = Instant::now();
        train(&set, &whole, flags).ok();
        let time = started.elapsed().as_secs_f64();
        let expected = outcome(&whole);
        let mut rng = Rng::new(&[0x4B49_4C4C, number as u64]);
        let (mut kills, mut runs, mut resumed) = (0, 0, 0);
        while kills < KILLS {
            // The run is killed and resumed until a process reaches its end.
            let out = dir.path().join(format!("killed{number}_{runs}"));
            runs += 1;
            loop {
                let before = states(&out).len();
                let mut child = start(&set, &out, flags);
                std::thread::sleep(Duration::from_secs_f64(time * rng.unit()));
                if let Some(status) = child.try_wait().unwrap() {
                    assert!(status.success(), "{what}: {status}");
                    break;
                }
                child.kill().unwrap(); // SIGKILL
                child.wait().unwrap();
                kills += 1;
                resumed += u32::from(before > 0);
                if kills == KILLS {
                    train(&set, &out, flags).ok();
                    break;
                }
            }
            let found = outcome(&out);
            same(&found, &expected, what);
            assert!(
                found.networks == expected.networks,
                "{what}: the network files that are kept differ"
            );
            no_litter(&out);
        }
        println!("{what}: {kills} kills in {runs} runs, {resumed} of them in a resumed run");
        assert!(resumed > 0, "no kill came after a checkpoint");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_sigterm_and_a_closed_terminal_save_and_the_same_command_goes_on() {
    let (dir, set) = set();
    let flags: Flags = &[
        ("--iterations", "300"),
        ("--batch-size", "16"),
        ("--checkpoint-every", "1000"),
        ("--threads", "1"),
    ];
    let whole = dir.path().join("whole");
    train(&set, &whole, flags).ok();
    let expected = outcome(&whole);
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let out = dir.path().join(format!("stopped{number}"));
        let child = spawn(&mut paragon(&command(&set, &out, flags)));
        wait_for_a_log_line(&out);
        signal(&child, number);
        let ran = ended(child);
        assert_eq!(ran.code, Some(130), "{ran:?}");
        assert!(
            ran.stderr.contains("goes on from here") && ran.stdout.contains("stopped at iteration"),
            "{ran:?}"
        );
        assert_eq!(states(&out).len(), 1);
        assert!(
            outcome(&out).state.0 < expected.state.0,
            "the run ended before the signal"
        );
        let ran = train(&set, &out, flags).ok();
        assert!(ran.stderr.contains("resuming"), "{}", ran.stderr);
        same(&outcome(&out), &expected, "signal");
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (dir, set) = set();
    for (accum, lq) in [("1", "16"), ("3", "11")] {
        let mut expected = None;
        for (threads, loaders, slots) in [
            ("1", "1", "1"),
            ("2", "1", "4"),
            ("5", "3", "2"),
            ("1", "3", "7"),
        ] {
            let out = dir.path().join(format!("t{threads}_{loaders}_{accum}"));
            let flags: Flags = &[
                ("--threads", threads),
                ("--loader-threads", loaders),
                ("--slots", slots),
                ("--accum-iter", accum),
                ("--lq-size", lq),
                ("--batch-size", "5"),
                ("--iterations", "12"),
                ("--loss", "charbonnier:0.5"),
            ];
            train(&set, &out, flags).ok();
            let found = outcome(&out);
            same(
                &found,
                expected.get_or_insert(outcome(&out)),
                &format!("{threads} threads, {loaders} loaders, accumulation {accum}"),
            );
        }
    }
}

#[test]
fn a_damaged_state_falls_back_to_the_one_before() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    train(&set, &out, &[]).ok();
    let expected = outcome(&out);
    type Damage<'a> = (&'a str, fn(&mut Vec<u8>));
    let damage: [Damage; 4] = [
        ("cut", |b| b.truncate(b.len() / 2)),
        ("empty", Vec::clear),
        ("a bit in the vectors", |b| *b.last_mut().unwrap() ^= 1),
        ("a digit of the iteration", |b| {
            let at = b.windows(11).position(|w| w == br#"iteration\""#).unwrap() + 12;
            b[at] = b'1'; // this changes 24 to 14
        }),
    ];
    for (what, damage) in damage {
        let newest = states(&out).pop().unwrap();
        let mut bytes = fs::read(&newest).unwrap();
        damage(&mut bytes);
        fs::write(&newest, bytes).unwrap();
        let ran = train(&set, &out, &[]).ok();
        for words in [
            "warning: ",
            "state_000000024",
            "taking the one before it",
            "after iteration 20",
        ] {
            assert!(
                ran.stderr.contains(words),
                "{what}: '{words}' is missing in {}",
                ran.stderr
            );
        }
        same(&outcome(&out), &expected, what);
    }
    // No state is whole: no file is changed until the user asks for it.
    for state in states(&out) {
        fs::write(&state, "text").unwrap();
    }
    let before = states(&out);
    train(&set, &out, &[]).refused(1, &[text(&out), "no intact state", "--restart"]);
    assert_eq!(states(&out), before);
    train(&set, &out, &[("--restart", "")]).ok();
    same(&outcome(&out), &expected, "restart");
}

#[test]
fn a_resumed_run_keeps_its_shape_and_its_data() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    train(&set, &out, &[]).ok();
    let before = files(&out.join("states"));
    let more: (&str, &str) = ("--iterations", "30");
    train(&set, &out, &[more, ("--batch-size", "3")]).refused(
        1,
        &[text(&out), "--batch-size 2 -> 3", "--name", "--restart"],
    );
    train(&set, &out, &[more, ("--seed", "7")]).refused(1, &["--seed 1024 -> 7"]);
    train(&set, &out, &[more, ("--accum-iter", "2")]).refused(1, &["--accum-iter 1 -> 2"]);
    train(&set, &out, &[more, ("--alpha", "0.1")]).refused(1, &["--alpha "]);
    let (other_dir, other) = (dir.path().join("other_data"), dir.path().join("other"));
    pictures(&other_dir, 3);
    make(&config(&other_dir, &other)).unwrap();
    train(&other, &out, &[more]).refused(1, &["other shards", text(&other), "--restart"]);
    // A command that is refused because of its memory keeps the old run as well.
    train(
        &set,
        &out,
        &[more, ("--restart", ""), ("--host-memory", "1M")],
    )
    .refused(1, &["1.0 MiB", "--slots"]);
    assert!(
        files(&out.join("states")) == before,
        "a refused command changed the states"
    );
    // Another recipe needs the user's word.
    train(&set, &out, &[more, ("--lr", "5e-4")]).refused(
        1,
        &["--lr 0.001 -> 5e-4", "--continue", "--name", "--restart"],
    );
    assert!(
        files(&out.join("states")) == before,
        "a refused command changed the states"
    );
    let changed: Flags = &[more, ("--lr", "5e-4"), ("--continue", "")];
    let ran = train(&set, &out, changed).ok();
    for words in [
        "changed: --lr 0.001 -> 5e-4",
        "changed: --iterations 24 -> 30",
        "goes from 1.00e-3 at iteration 24 to 5.00e-4 at iteration 25",
    ] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("betas"), "{}", ran.stderr);
    assert_eq!(log(&out).last().unwrap()["lr"], 5e-4);
    // A finished run is reported as finished.
    let ran = train(&set, &out, &[more, ("--lr", "5e-4")]).ok();
    assert!(
        ran.stderr
            .contains("this run has its 30 iterations already"),
        "{}",
        ran.stderr
    );
}

#[test]
fn two_processes_do_not_share_a_run() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let mut first = start(
        &set,
        &out,
        &[
            ("--iterations", "10000000"),
            ("--threads", "1"),
            ("--checkpoint-every", "100000"),
        ],
    );
    wait_for_a_log_line(&out);
    let second = train(&set, &out, &[]);
    first.kill().unwrap();
    first.wait().unwrap();
    second.refused(1, &["another process", text(&out), "--out"]);
    train(&set, &out, &[]).ok(); // the lock ends with its process
}

#[test]
fn every_schedule_gives_its_learning_rates() {
    let (dir, set) = set();
    let warm = |i: f64| (i / 4.0).min(1.0) * 1e-3;
    let cosine = |i: f64| {
        1e-5 + (1e-3 - 1e-5) * 0.5 * (1.0 + (std::f64::consts::PI * (i - 1.0) / 24.0).cos())
    };
    type Rate<'a> = &'a dyn Fn(f64) -> f64;
    let cases: [(Flags, Rate); 3] = [
        (&[("--schedule", "constant")], &warm),
        (
            &[
                ("--schedule", "multistep"),
                ("--milestones", "10,20"),
                ("--gamma", "0.1"),
            ],
            &|i| {
                warm(i)
                    * if i > 20.0 {
                        0.01
                    } else if i > 10.0 {
                        0.1
                    } else {
                        1.0
                    }
            },
        ),
        (&[("--schedule", "cosine"), ("--eta-min", "1e-5")], &|i| {
            if i <= 4.0 { warm(i) } else { cosine(i) }
        }),
    ];
    for (number, (flags, rate)) in cases.into_iter().enumerate() {
        let out = dir.path().join(format!("run{number}"));
        train(&set, &out, &[flags, &[("--log-every", "1")]].concat()).ok();
        let lines = log(&out);
        assert_eq!(lines.len(), 24);
        for line in lines {
            let (i, lr) = (
                line["iteration"].as_f64().unwrap(),
                line["lr"].as_f64().unwrap(),
            );
            assert!(
                (lr - rate(i)).abs() < 1e-12,
                "{flags:?} iteration {i}: {lr}, expected {}",
                rate(i)
            );
            assert!(line["loss"].as_f64().unwrap() > 0.0);
        }
    }
}

#[test]
fn a_run_that_is_lost_says_so_and_keeps_the_last_good_checkpoint() {
    let (dir, set) = set();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("run"));
    // A log line at iteration 5, because the first part of the run ends there with a line.
    let base: Flags = &[("--schedule", "constant"), ("--log-every", "5")];
    train(&set, &whole, base).ok();
    train(&set, &out, &[base, &[("--iterations", "5")]].concat()).ok();
    let good = files(&out.join("states"));
    let words = [
        "not finite 10 times in a row",
        "--lr",
        "the checkpoint of iteration 5 is kept",
    ];
    train(
        &set,
        &out,
        &[
            base,
            &[("--lr", "1e30"), ("--grad-clip", "0"), ("--continue", "")],
        ]
        .concat(),
    )
    .refused(1, &words);
    assert!(
        files(&out.join("states")) == good,
        "states were written after the loss became NaN"
    );
    // The log keeps its lines although JSON has no NaN, and the run can resume from the good
    // checkpoint.
    assert!(log(&out).len() > 1);
    train(&set, &out, base).ok();
    same(&outcome(&out), &outcome(&whole), "after a lost stretch");
    // Parameters that overflow in the first iteration are never saved.
    let out = dir.path().join("overflow");
    let ran = train(
        &set,
        &out,
        &[
            ("--lr", "1e300"),
            ("--warmup", "0"),
            ("--checkpoint-every", "1"),
        ],
    );
    ran.refused(1, &["not finite", "--lr"]);
    assert!(states(&out).is_empty() && !out.join("model.safetensors").exists());
}

#[cfg(unix)]
#[test]
fn a_full_disk_while_saving_loses_nothing() {
    let (dir, set) = set();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("run"));
    let log: (&str, &str) = ("--log-every", "5");
    train(&set, &whole, &[log]).ok();
    train(&set, &out, &[log, ("--iterations", "10")]).ok();
    let saved = files(&out.join("states"));
    // With the first limit networks fit (70 kB) and states (270 kB) do not; with the second,
    // neither.
    for (limit, word) in [(150_000, "state_000000015"), (30_000, "net_g_15")] {
        let ran: Ran = limit_files(&mut paragon(&command(&set, &out, &[log])), limit)
            .output()
            .unwrap()
            .into();
        ran.refused(
            1,
            &[
                "cannot write",
                word,
                "the checkpoint of iteration 10 is kept",
                "there is no room",
                "--keep-models",
            ],
        );
        assert!(files(&out.join("states")) == saved, "limit {limit}");
        let read = paragon::model::read_model(
            &out.join("model.safetensors"),
            &paragon::model::ModelHints::default(),
        );
        assert!(read.is_ok(), "the network is damaged");
        no_litter(&out);
    }
    train(&set, &out, &[log]).ok();
    same(&outcome(&out), &outcome(&whole), "after a full disk");
}

#[test]
fn checkpoints_that_cannot_fit_the_disk_are_refused_before_the_start() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let flags: Flags = &[
        ("--iterations", "1000000000000"),
        ("--checkpoint-every", "1"),
        ("--keep-every", "1"),
    ];
    train(&set, &out, flags).refused(
        1,
        &[text(&out), "free", "--keep-every", "--checkpoint-every"],
    );
    assert!(states(&out).is_empty() && log(&out).is_empty() && !out.join("config.yml").exists());
}

#[test]
fn held_out_shards_are_found_measured_and_the_best_network_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (data, set) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 6);
    run(&[
        "shard",
        text(&data),
        "--out",
        text(&set),
        "--lq-size",
        "16",
        "--val",
        "0.4",
    ])
    .ok();
    let flags: Flags = &[
        ("--val-every", "4"),
        ("--layer-scale", "0.1"),
        ("--schedule", "constant"),
        ("--warmup", "0"),
    ];
    let out = dir.path().join("run");
    let ran = train(&set, &out, flags).ok();
    assert!(
        ran.stderr.contains("held out") && ran.stderr.contains("held-out pairs"),
        "{}",
        ran.stderr
    );
    let lines = log(&out);
    let measured: Vec<_> = lines
        .iter()
        .filter(|line| !line["val_psnr_y"].is_null())
        .collect();
    assert_eq!(measured.len(), 6);
    for line in &measured {
        let at = |key: &str| line[key].as_f64().unwrap();
        assert!(
            at("val_psnr") > 10.0
                && at("val_psnr_y") > at("val_psnr")
                && (0.1..1.0).contains(&at("val_ssim")),
            "{line}"
        );
    }
    let best = |out: &Path| -> serde_json::Value {
        serde_json::from_slice(&fs::read(out.join("models/best.json")).unwrap()).unwrap()
    };
    let highest = measured
        .iter()
        .max_by(|a, b| {
            a["val_psnr_y"]
                .as_f64()
                .unwrap()
                .total_cmp(&b["val_psnr_y"].as_f64().unwrap())
        })
        .unwrap();
    assert_eq!(
        (&best(&out)["iteration"], &best(&out)["psnr_y"]),
        (&highest["iteration"], &highest["val_psnr_y"])
    );
    // A run that becomes worse after it resumes keeps the best network.
    let kept = fs::read(out.join("models/best_net_g_ema.safetensors")).unwrap();
    let worse: Flags = &[
        ("--iterations", "36"),
        ("--lr", "0.05"),
        ("--grad-clip", "0"),
        ("--ema-decay", "0"),
        ("--continue", ""),
    ];
    train(&set, &out, &[flags, worse].concat()).ok();
    assert_eq!(best(&out)["iteration"], highest["iteration"]);
    assert!(fs::read(out.join("models/best_net_g_ema.safetensors")).unwrap() == kept);
    // A wider crop border gives other scores, and no validation gives none.
    let other = dir.path().join("border");
    train(&set, &other, &[flags, &[("--crop-border", "6")]].concat()).ok();
    assert_ne!(log(&other)[0]["val_psnr_y"], lines[0]["val_psnr_y"]);
    let none = dir.path().join("none");
    train(&set, &none, &[flags, &[("--val", "none")]].concat()).ok();
    assert!(
        log(&none).iter().all(|line| line["val_psnr_y"].is_null())
            && !none.join("models/best.json").exists()
    );
    // The set's own held-out images can be named explicitly.
    let named = dir.path().join("named");
    train(
        &set,
        &named,
        &[flags, &[("--val", text(&set.join("val")))]].concat(),
    )
    .ok();
    assert_eq!(log(&named)[3]["val_psnr_y"], lines[3]["val_psnr_y"]);
}

#[test]
fn mixed_windowed_and_with_damaged_records_it_goes_on_in_the_same_bits() {
    let (dir, set) = set();
    let second = dir.path().join("second");
    make(&config(&dir.path().join("data"), &second)).unwrap();
    // The second set has a damaged record, which both runs read.
    let shard = second.join("shard-00000.psh");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[100] ^= 1;
    shard_common::make_writable(&shard);
    fs::write(&shard, bytes).unwrap();
    let mix: Flags = &[
        ("--shards", text(&second)),
        ("--weights", "1,3"),
        ("--window", "40K"),
        ("--batch-size", "8"),
    ];
    let whole = dir.path().join("whole");
    train(&set, &whole, mix).refused(1, &["shard-00000.psh", "record 0", "damaged"]);
    let mix = [mix, &[("--on-corrupt", "substitute"), ("--restart", "")]].concat();
    let ran = train(&set, &whole, &mix).ok();
    assert!(
        ran.stderr.contains("warning: ") && ran.stderr.contains("takes its place"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stdout.contains("stood in for damaged records"),
        "{}",
        ran.stdout
    );
    let out = dir.path().join("parts");
    let mix = &mix[..mix.len() - 1];
    train(&set, &out, &[mix, &[("--iterations", "12")]].concat()).ok();
    // Without a window option the run keeps its window; neither the window nor the weights may
    // change.
    let without: Vec<_> = mix
        .iter()
        .copied()
        .filter(|(name, _)| *name != "--window")
        .collect();
    train(&set, &out, &[&without[..], &[("--window", "off")]].concat())
        .refused(1, &["window", "--restart"]);
    let other: Vec<_> = mix
        .iter()
        .map(|&(name, value)| (name, if name == "--weights" { "1,2" } else { value }))
        .collect();
    train(&set, &out, &other).refused(1, &["other shards"]);
    train(&set, &out, &without).ok();
    same(&outcome(&out), &outcome(&whole), "in two parts");
}
