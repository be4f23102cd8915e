//! Runs and their folders, as a user meets them: names, changed recipes, extended and finished runs,
//! start values, schedules that follow the length, what is printed and kept, and the best network.
//! Every test runs the real binary.

use crate::{cli_common, shard_common, train_common};

use cli_common::{Ran, paragon, run, text};
use shard_common::pictures;
use std::fs;
use std::path::{Path, PathBuf};
use train_common::*;

/// Paths and content of all files below a folder.
fn tree(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut all = std::collections::BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(tree(&path));
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

/// `paragon train` in a working folder, without `--out`.
fn train_in(folder: &Path, set: &Path, flags: &[&str]) -> Ran {
    let base = [
        "train",
        "--shards",
        text(set),
        "--batch-size",
        "1",
        "--lq-size",
        "8",
        "--threads",
        "1",
        "--log-every",
        "4",
    ];
    paragon(&[&base[..], flags].concat())
        .current_dir(folder)
        .output()
        .unwrap()
        .into()
}

fn folders(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder).map_or(Vec::new(), |entries| {
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    });
    names.sort();
    names
}

#[test]
fn a_changed_recipe_is_another_run_unless_the_user_says_so() {
    let (dir, set) = set();
    let train = |flags: &[&str]| train_in(dir.path(), &set, flags);
    train(&["--iterations", "8"]).ok();
    let runs = dir.path().join("runs");
    assert_eq!(folders(&runs), ["paragonsr2_realtime_x2"]);
    let first = runs.join("paragonsr2_realtime_x2");
    let before = tree(&first);
    let changed = [
        "--iterations",
        "12",
        "--loss",
        "charbonnier:1",
        "--schedule",
        "cosine",
    ];
    let refused = train(&changed).refused(
        1,
        &[
            "runs/paragonsr2_realtime_x2 holds a run of 8 iterations with another recipe",
            "--loss l1:1 ssim:0.05 -> charbonnier:1",
            "--schedule multistep -> cosine",
            "--continue ",
            "--name NEW ",
            "--out DIR",
            "--restart ",
            "with --continue the learning rate",
        ],
    );
    for noise in ["{", "null", "0.05000", "eta", "--iterations 8"] {
        let error = refused.stderr.split("error: ").nth(1).unwrap();
        assert!(!error.contains(noise), "{noise}: {error}");
    }
    assert!(tree(&first) == before, "a refused command wrote something");
    // The three ways on.
    train(&[&changed[..], &["--name", "second"]].concat()).ok();
    assert_eq!(folders(&runs), ["paragonsr2_realtime_x2", "second"]);
    assert!(tree(&first) == before);
    let ran = train(&[&changed[..], &["--continue"]].concat()).ok();
    assert!(
        ran.stderr
            .contains("changed: --loss l1:1 ssim:0.05 -> charbonnier:1"),
        "{}",
        ran.stderr
    );
    assert_eq!(log(&first).last().unwrap()["iteration"], 12);
    train(&["--iterations", "4", "--restart"]).ok();
    assert_eq!(log(&first).last().unwrap()["iteration"], 4);
    // What does not change the weights needs no word.
    let ran = train(&["--iterations", "4", "--slots", "2", "--keep-models", "1"]).ok();
    assert!(ran.stderr.contains("nothing to do"), "{}", ran.stderr);
    // Both at once make no sense.
    train(&["--continue", "--restart"]).refused(2, &["--continue", "--restart"]);
}

#[test]
fn names_are_folders_in_runs() {
    let (dir, set) = set();
    let train = |flags: &[&str]| train_in(dir.path(), &set, flags);
    train(&["--iterations", "2", "--name", "a"]).ok();
    train(&["--iterations", "2", "--name", "b", "--out", "c"]).refused(1, &["--name", "--out"]);
    for name in ["../up", "/abs", "a/../../b", "."] {
        train(&["--iterations", "2", "--name", name]).refused(1, &["name of a run", "--out"]);
    }
    assert_eq!(folders(&dir.path().join("runs")), ["a"]);
    assert!(!dir.path().join("c").exists());
    // The configuration of one run begins another: the flag wins over the file's folder.
    let config = dir.path().join("runs/a/config.yml");
    train(&["--config", text(&config), "--name", "b", "--lr", "1e-3"]).ok();
    assert_eq!(folders(&dir.path().join("runs")), ["a", "b"]);
}

#[test]
fn start_values_are_for_runs_that_begin() {
    let (dir, set) = set();
    let train = |flags: &[&str]| train_in(dir.path(), &set, flags);
    train(&["--iterations", "4", "--name", "a"]).ok();
    let model = dir.path().join("runs/a/model.safetensors");
    let fine = ["--iterations", "8", "--pretrain", text(&model)];
    // Into the run itself: there is nothing to start.
    train(&[&fine[..], &["--name", "a"]].concat()).refused(
        1,
        &[
            "runs/a holds a run of 4 iterations",
            "--name NEW",
            "start values",
        ],
    );
    let ran = train(&[&fine[..], &["--name", "fine"]].concat()).ok();
    assert!(
        ran.stderr.contains("starting from") && ran.stderr.contains("tensors fit)"),
        "{}",
        ran.stderr
    );
    // The same command again resumes; another file does not.
    let longer = [
        "--iterations",
        "12",
        "--pretrain",
        text(&model),
        "--name",
        "fine",
    ];
    let ran = train(&longer).ok();
    assert!(ran.stderr.contains("resuming"), "{}", ran.stderr);
    let other = dir.path().join("runs/fine/model.safetensors");
    train(&[
        "--iterations",
        "12",
        "--pretrain",
        text(&other),
        "--name",
        "fine",
    ])
    .refused(1, &["began from", text(&model)]);
}

#[test]
fn a_finished_run_has_nothing_to_do() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    train(&set, &out, &[("--iterations", "15")]).ok();
    let before = tree(&out);
    let ran = train(&set, &out, &[("--iterations", "5")]).ok();
    assert!(
        ran.stderr.contains(
            "this run has 15 iterations already, more than --iterations 5; nothing to do"
        ),
        "{}",
        ran.stderr
    );
    let lines = ran.stderr.lines().count() + ran.stdout.lines().count();
    assert!(lines <= 4, "{}{}", ran.stderr, ran.stdout);
    assert!(ran.stdout.contains("newest: "), "{}", ran.stdout);
    assert!(tree(&out) == before, "a finished run was changed");
    let summary = train(&set, &out, &[("--iterations", "15"), ("--json", "")]).ok();
    let summary: serde_json::Value = serde_json::from_str(&summary.stdout).unwrap();
    assert_eq!(
        (
            &summary["finished"],
            &summary["iteration"],
            &summary["iterations_here"]
        ),
        (&true.into(), &15.into(), &0.into())
    );
}

#[test]
fn failed_starts_leave_no_folder() {
    let (dir, set) = set();
    let other = |name: &str| dir.path().join("runs/deep").join(name);
    let cases: [Flags; 4] = [
        &[("--lq-size", "7")],
        &[("--pretrain", "nothing.safetensors")],
        &[("--val", "nothing")],
        &[("--host-memory", "1M")],
    ];
    for (number, flags) in cases.into_iter().enumerate() {
        let out = other(&number.to_string());
        assert_eq!(train(&set, &out, flags).code, Some(1), "{flags:?}");
    }
    assert!(!dir.path().join("runs").exists());
    // A folder that was there before stays.
    fs::create_dir_all(other("mine")).unwrap();
    assert_eq!(train(&set, &other("mine"), cases[1]).code, Some(1));
    assert!(folders(&other("mine")).is_empty() && other("mine").exists());
}

#[test]
fn the_default_schedule_follows_the_length_and_stays_with_its_run() {
    let (dir, set) = set();
    let train = |flags: &[&str]| train_in(dir.path(), &set, flags);
    let kept = |name: &str| fs::read_to_string(dir.path().join(name).join("config.yml")).unwrap();
    let ran = train(&["--iterations", "8", "--out", "a"]).ok();
    assert!(!ran.stderr.contains("note:"), "{}", ran.stderr);
    for line in ["warmup_iter: 0\n", "milestones: [6, 7]\n"] {
        assert!(kept("a").contains(line), "{line}: {}", kept("a"));
    }
    assert_eq!(log(&dir.path().join("a")).last().unwrap()["lr"], 0.5e-4);
    // Extended, the run keeps its milestones, and says what the rate does.
    let ran = train(&["--iterations", "10", "--out", "a"]).ok();
    assert!(
        ran.stderr.contains("the learning rate goes on at 5.00e-5")
            && !ran.stderr.contains("--milestones"),
        "{}",
        ran.stderr
    );
    assert!(kept("a").contains("milestones: [6, 7]\n"));
    // So does a preset whose values follow the length.
    let quick = ["--preset", "quick", "--out", "q", "--iterations"];
    train(&[&quick[..], &["20"]].concat()).ok();
    let ran = train(&[&quick[..], &["40"]].concat()).ok();
    assert!(
        ran.stderr
            .contains("a cosine over 40 iterations is another one than over 20"),
        "{}",
        ran.stderr
    );
    assert!(kept("q").contains("warmup_iter: 1\n"), "{}", kept("q"));
    // The same command again, and a longer one, although the preset derives other values from 40.
    let ran = train(&[&quick[..], &["40"]].concat()).ok();
    assert!(ran.stderr.contains("nothing to do"), "{}", ran.stderr);
    train(&[&quick[..], &["44"]].concat()).ok();
    assert!(kept("q").contains("warmup_iter: 1\n"), "{}", kept("q"));
    // Without the preset it is another recipe; its own file has it.
    train(&["--out", "q", "--iterations", "48"]).refused(1, &["--config q/config.yml"]);
    train(&["--config", "q/config.yml", "--iterations", "48"]).ok();
    assert_eq!(log(&dir.path().join("q")).last().unwrap()["iteration"], 48);
    // What the user gives is kept, with a word.
    let given = [
        "--iterations",
        "8",
        "--warmup",
        "1000",
        "--milestones",
        "30000",
    ];
    let ran = train(&[&given[..], &["--out", "b"]].concat()).ok();
    assert!(
        ran.stderr
            .contains("the warm-up of 1000 iterations does not end within 8")
            && ran.stderr.contains("milestones 30000 are not reached"),
        "{}",
        ran.stderr
    );
    assert!(kept("b").contains("warmup_iter: 1000\n"));
}

/// A set with held-out pairs.
fn set_with_val(dir: &Path) -> PathBuf {
    let (data, set) = (dir.join("data"), dir.join("set"));
    pictures(&data, 6);
    let val = ["--lq-size", "16", "--val", "0.4"];
    run(&[&["shard", text(&data), "--out", text(&set)][..], &val].concat()).ok();
    set
}

#[test]
fn the_end_names_the_best_network_and_validation_names_bicubic() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_with_val(dir.path());
    let out = dir.path().join("run");
    let flags: Flags = &[("--val-every", "8"), ("--log-every", "8")];
    let ran = train(&set, &out, flags).ok();
    let lines = log(&out);
    let bicubic = lines[0]["val_bicubic_psnr_y"].as_f64().unwrap();
    assert!(bicubic > 10.0 && lines.iter().all(|l| l["val_bicubic_psnr_y"] == bicubic));
    assert!(lines[0]["val_bicubic_ssim"].as_f64().unwrap() > 0.0);
    let validated: Vec<&str> = ran
        .stderr
        .lines()
        .filter(|l| l.contains("val PSNR-Y"))
        .collect();
    assert_eq!(validated.len(), 3, "{}", ran.stderr);
    assert!(
        validated
            .iter()
            .all(|l| l.contains(&format!("(bicubic {bicubic:.3})")))
            && validated[0].ends_with("best"),
        "{validated:?}"
    );
    let best: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("models/best.json")).unwrap()).unwrap();
    let line = ran
        .stdout
        .lines()
        .find(|l| l.starts_with("best: "))
        .unwrap();
    let score = format!(
        "PSNR-Y {:.3} dB at iteration {} (bicubic {bicubic:.3})",
        best["psnr_y"].as_f64().unwrap(),
        best["iteration"]
    );
    assert!(
        line.contains(&score) && line.ends_with("best_net_g_ema.safetensors"),
        "{line} against {score}"
    );
    let line = ran
        .stdout
        .lines()
        .find(|l| l.starts_with("newest: "))
        .unwrap();
    assert!(
        line.contains("at iteration 24") && line.ends_with("model.safetensors"),
        "{line}"
    );
    // A finished run names them, too, and a program can read them.
    let again = train(&set, &out, &[flags, &[("--json", "")]].concat()).ok();
    let summary: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(summary["best"]["iteration"], best["iteration"]);
    assert_eq!(summary["best"]["psnr_y"], best["psnr_y"]);
    assert_eq!(summary["bicubic_psnr_y"], bicubic);
    assert!(summary["newest_psnr_y"].as_f64().unwrap() > 10.0);
}

#[test]
fn everything_printed_is_kept_and_less_or_more_is_printed_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_with_val(dir.path());
    let out = dir.path().join("run");
    let kept = |out: &Path| fs::read_to_string(out.join("train.log")).unwrap();
    let usual = train(&set, &out, &[("--iterations", "12")]).ok();
    let first = kept(&out);
    for line in usual.stderr.lines().chain(usual.stdout.lines()) {
        assert!(first.contains(line), "{line} is missing in {first}");
    }
    // One line for the memory; the table goes into the file only.
    assert!(
        usual.stderr.contains("planned; -v shows the table")
            && !usual.stderr.contains("step arena"),
        "{}",
        usual.stderr
    );
    assert!(first.contains("step arena") && first.contains("reading shards"));
    assert!(!first.contains('\x1b') && first.starts_with("=== "));
    // Every line that --log-every asks for, in a pipe as well.
    let count = |ran: &Ran| {
        ran.stderr
            .lines()
            .filter(|l| l.starts_with("iter ") && l.contains("loss"))
            .count()
    };
    assert_eq!(count(&usual), 3, "{}", usual.stderr);
    // Resumed, the file goes on.
    train(&set, &out, &[("--iterations", "16")]).ok();
    assert!(kept(&out).starts_with(&first) && kept(&out).matches("=== ").count() == 2);
    let loud = train(&set, &dir.path().join("loud"), &[("--verbose", "")]).ok();
    assert!(
        loud.stderr.contains("step arena") && loud.stderr.contains("reading shards"),
        "{}",
        loud.stderr
    );
    let quiet = dir.path().join("quiet");
    let ran = train(&set, &quiet, &[("-q", ""), ("--warmup", "99")]).ok();
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(
        ran.stderr.starts_with("note: the warm-up"),
        "{}",
        ran.stderr
    );
    assert!(ran.stdout.contains("best: "), "{}", ran.stdout);
    assert!(kept(&quiet).contains("iter 4/24"));
    // A new run in the place of the old one begins a new file.
    train(&set, &out, &[("--restart", "")]).ok();
    assert_eq!(kept(&out).matches("=== ").count(), 1);
    for words in [
        "Nano x2 (paragonsr2_realtime), 12 iterations, batch 2",
        "patches of 16 x 16 LQ pixels",
        "shuffle: ",
    ] {
        assert!(first.contains(words), "{words}: {first}");
    }
    assert!(first.contains("training waited") && first.contains("used at most"));
}

/// The columns of a terminal on which a command ran, by what it wrote there: lines, and frames of
/// the bar.
#[cfg(unix)]
#[test]
fn no_line_of_a_run_is_wider_than_its_terminal() {
    let (dir, set) = set();
    let data = dir.path().join("data");
    for columns in [60u16, 100, 200] {
        let out = dir.path().join(columns.to_string());
        let flags: Flags = &[
            ("--iterations", "40"),
            ("--val", text(&data)),
            ("--val-every", "20"),
            ("--log-every", "10"),
        ];
        let shown =
            cli_common::on_terminal(&mut paragon(&command(&set, &out, flags)), "xterm", columns);
        // Escape codes move and clear; what is between them is text on one row.
        let mut rows: Vec<String> = vec![String::new()];
        let mut rest = shown.chars();
        while let Some(c) = rest.next() {
            match c {
                '\x1b' => {
                    let _ = rest.by_ref().find(|c| c.is_ascii_alphabetic());
                    rows.push(String::new());
                }
                '\r' | '\n' => rows.push(String::new()),
                c => rows.last_mut().unwrap().push(c),
            }
        }
        let progress: Vec<&String> = rows
            .iter()
            .filter(|row| row.starts_with("iter ") || row.starts_with("train ["))
            .collect();
        assert!(
            progress.iter().any(|row| row.starts_with("train [")),
            "{shown:?}"
        );
        assert!(
            progress
                .iter()
                .any(|row| row.contains("40/40") && row.contains("loss"))
        );
        for row in &progress {
            assert!(
                row.chars().count() <= usize::from(columns),
                "{columns} columns: {row:?} has {}",
                row.chars().count()
            );
        }
        // the last line has no time that is left, so more fits on it
        let has = |word: &str| {
            let mut lines = progress.iter().filter(|row| row.starts_with("iter "));
            lines.any(|row| row.contains(" left") && row.contains(word))
        };
        assert!(has("it/s") && has(" left"), "{progress:?}");
        assert_eq!(
            (has("pairs/s"), has("lr ")),
            (columns > 100, columns > 60),
            "{progress:?}"
        );
        // Nothing of the bar is left at the end.
        let end = &shown[shown.rfind("train [").unwrap()..];
        assert!(
            end.contains("\x1b[2K") || end.contains("\x1b[J") || end.contains("\x1b[K"),
            "{end:?}"
        );
    }
}
