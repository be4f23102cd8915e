//! The output of a run for people: the page, the previews, the event files.

use crate::{cli_common, shard_common};

use cli_common::{run, text};
use shard_common::{config, make, pictures};

#[test]
fn a_run_becomes_one_page() {
    let dir = tempfile::tempdir().unwrap();
    let (data, set, out) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("a <run>"),
    );
    pictures(&data, 5);
    make(&config(&data, &set)).unwrap();
    let (data, set, place) = (text(&data), text(&set), text(&out));
    let flags = [
        "--iterations",
        "12",
        "--batch-size",
        "2",
        "--log-every",
        "3",
        "--val-every",
        "6",
        "--checkpoint-every",
        "6",
        "--threads",
        "2",
    ];
    run(&[
        &["train", "--shards", set, "--out", place, "--val", data][..],
        &flags,
    ]
    .concat())
    .ok();
    let said = run(&["report", place]).ok().stdout;
    assert!(
        said.contains("4 log lines") && said.contains("4 previews"),
        "{said}"
    );
    let html = std::fs::read_to_string(out.join("report.html")).unwrap();
    for part in [
        "a &lt;run&gt;",
        "Training loss",
        "PSNR-Y",
        "iteration 12",
        "iteration 6",
        "--loss",
        "p000",
    ] {
        assert!(html.contains(part), "{part} is missing");
    }
    assert!(!html.contains("a <run>") && html.trim_end().ends_with("</html>"));
    assert_eq!(std::fs::read_dir(out.join("previews")).unwrap().count(), 4);
    assert_eq!(
        std::fs::read_dir(out.join("tensorboard")).unwrap().count(),
        1
    );
    // Another output file, and folders that are no runs.
    let other = dir.path().join("page.html");
    run(&["report", place, "--out", text(&other)]).ok();
    assert!(std::fs::read_to_string(&other).unwrap() == html);
    run(&["report", data]).refused(1, &["holds no log"]);
    run(&["report", text(&dir.path().join("nothing"))]).refused(1, &["no folder of a run"]);
    run(&["report", place, "--out", "/nonexistent/page.html"]).refused(1, &["cannot write"]);
}

/// TensorBoard's own reader finds the values of the log in the event files. Needs a Python with
/// tensorboard, named by `PARAGON_PYTHON`.
#[test]
fn tensorboard_reads_the_event_files() {
    let Some(python) = std::env::var_os("PARAGON_PYTHON") else {
        println!(
            "SKIP tensorboard_reads_the_event_files: PARAGON_PYTHON names no Python with tensorboard"
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (data, set, out) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("run"),
    );
    pictures(&data, 5);
    make(&config(&data, &set)).unwrap();
    let flags = [
        "--batch-size",
        "2",
        "--log-every",
        "3",
        "--val-every",
        "6",
        "--checkpoint-every",
        "6",
        "--threads",
        "2",
    ];
    // In two parts: the event file of the resumed run continues where the first one ends.
    for iterations in ["9", "18"] {
        let train = [
            "train",
            "--shards",
            text(&set),
            "--out",
            text(&out),
            "--val",
            text(&data),
            "--iterations",
            iterations,
        ];
        run(&[&train[..], &flags].concat()).ok();
    }
    let script =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/check_tensorboard.py");
    let found = std::process::Command::new(python)
        .arg(script)
        .arg(&out)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&found.stdout);
    assert!(
        found.status.success() && said.contains("agree"),
        "{said}{}",
        String::from_utf8_lossy(&found.stderr)
    );
}

#[test]
fn runs_are_compared_on_one_page() {
    let dir = tempfile::tempdir().unwrap();
    let (data, set) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 5);
    make(&config(&data, &set)).unwrap();
    let train = |out: &std::path::Path, flags: &[&str]| {
        let base = [
            "train",
            "--shards",
            text(&set),
            "--val",
            text(&data),
            "--out",
            text(out),
            "--batch-size",
            "1",
            "--log-every",
            "4",
            "--val-every",
            "4",
            "--threads",
            "2",
        ];
        run(&[&base[..], flags].concat()).ok();
    };
    let (a, b) = (dir.path().join("first"), dir.path().join("se<cond>"));
    train(&a, &["--iterations", "8"]);
    train(
        &b,
        &[
            "--iterations",
            "8",
            "--loss",
            "charbonnier:1",
            "--crop-border",
            "4",
        ],
    );
    let page = dir.path().join("page.html");
    let ran = run(&["report", text(&a), text(&b), "--out", text(&page), "--json"]).ok();
    let figures: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(figures.as_array().unwrap().len(), 2);
    assert_eq!(figures[0]["settings"]["--loss"], "l1:1 ssim:0.05");
    assert!(figures[1]["best"]["psnr_y"].as_f64().unwrap() > 10.0);
    assert!(figures[1]["bicubic_psnr_y"].as_f64().unwrap() > 10.0);
    let html = std::fs::read_to_string(&page).unwrap();
    for part in [
        "first and se&lt;cond&gt;",
        "cannot be compared", // they have different borders
        "Settings that differ",
        "<td>--loss</td><td>l1:1 ssim:0.05</td><td>charbonnier:1</td>",
        "The same crops",
        "first, iteration 8",
        "se&lt;cond&gt;, iteration 8",
        "bicubic",
        "best_net_g_ema.safetensors",
    ] {
        assert!(html.contains(part), "{part} is missing");
    }
    for noise in ["0.0500000", "{&quot;", "null", "--threads", "<cond>"] {
        assert!(!html.contains(noise), "{noise}");
    }
    // A run that goes on makes its page again, if it has one.
    run(&["report", text(&a)]).ok();
    train(&a, &["--iterations", "12"]);
    let html = std::fs::read_to_string(a.join("report.html")).unwrap();
    assert!(html.contains("iterations 4 to 12") && html.contains("prefers-color-scheme:dark"));
    for part in [
        "validation set",
        "shards",
        "best network",
        "PSNR-Y of bicubic",
    ] {
        assert!(html.contains(part), "{part} is missing");
    }
    assert!(!b.join("report.html").exists());
    run(&["report", text(&a), text(&data)]).refused(1, &["holds no log"]);
}
