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
