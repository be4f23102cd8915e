//! The command line for someone who comes from another trainer: words that are answered, help with
//! examples, completions and manual pages, and the end of a pipe that is closed early.

use crate::cli_common;

use cli_common::{paragon, run, text};
use std::fs;

#[test]
fn flags_of_other_trainers_are_answered_with_ours() {
    for (arguments, words, not) in [
        (
            &["train", "--gt_size", "256"][..],
            "tip: paragon has --lq-size, the side of the LQ patch (gt_size / scale)",
            "--shard-size",
        ),
        (
            &["train", "--opt", "x.yml"],
            "paragon has --config",
            "--optimizer",
        ),
        (
            &["train", "-opt", "x.yml"],
            "paragon has --config",
            "--optimizer",
        ),
        (
            &["train", "--resume"],
            "the same command goes on",
            "--preset",
        ),
        (
            &["train", "--epochs=100"],
            "epochs x pairs / batch",
            "similar",
        ),
        (
            &["train", "--gpus", "2"],
            "one process trains on one device",
            "similar",
        ),
        (
            &["train", "--val-freq", "9"],
            "paragon has --val-every",
            "'--val'",
        ),
        (&["train", "--workers", "9"], "--loader-threads", "similar"),
        (
            &["train", "--scale-factor", "4"],
            "`paragon shard` has --scale",
            "similar",
        ),
        (
            &["shard", "x", "--epochs", "9"],
            "`paragon train` has --iterations",
            "similar",
        ),
        (
            &["shard", "x", "--degradation", "otf"],
            "--degrade",
            "--version",
        ),
        (&["test", "x"], "paragon has `eval`", "similar"),
    ] {
        let ran = run(arguments).refused(2, &[words]);
        assert!(!ran.stderr.contains(not), "{arguments:?}: {}", ran.stderr);
    }
    // our own words are still corrected by their letters
    run(&["train", "--lq_size", "64"]).refused(2, &["'--lq-size'"]);
    let ran = run(&["train", "--zebra"]).refused(2, &["--zebra"]);
    assert!(!ran.stderr.contains("paragon has"), "{}", ran.stderr);
}

#[test]
fn a_word_is_explained_without_its_path() {
    for (word, parts) in [
        (
            "lr",
            &["train.optim_g.lr\n", "usual    1e-4 to 1e-3", "advice"][..],
        ),
        ("--iterations", &["train.total_iter\n", "default  40000"]),
        (
            "gt_size",
            &["gt_size: paragon has --lq-size", "data.lq_size\n", "advice"],
        ),
        ("gt-size", &["data.lq_size\n"]),
        ("ema", &["train.ema_decay\n"]),
        (
            "train.optim_g",
            &["train.optim_g.betas\n", "train.optim_g.eps\n"],
        ),
        ("quick", &["quick"]),
        ("wandb", &["TensorBoard"]),
        ("dataroot_gt", &["--hr"]),
    ] {
        let ran = run(&["config", "explain", word]).ok();
        for part in parts {
            assert!(ran.stdout.contains(part), "{word}: {part}: {}", ran.stdout);
        }
    }
    assert!(
        !run(&["config", "explain", "lr"])
            .ok()
            .stdout
            .contains("paragon has")
    );
    run(&["config", "explain", "zebra"]).refused(1, &["unknown key zebra"]);
    run(&["config", "explain", "train.lr"]).refused(1, &["did you mean train.optim_g.lr?"]);
}

/// Output for a reader that has gone, as in `paragon plan --json | head -1`.
#[cfg(unix)]
#[test]
fn a_closed_pipe_ends_without_a_word() {
    use std::os::unix::process::ExitStatusExt;
    const SIGPIPE: i32 = 13;
    for arguments in [
        &["plan", "--json"][..],
        &["networks"],
        &["config", "schema"],
        &["config", "reference"],
        &["completions", "bash"],
        &["man"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let out = paragon(arguments).stdout(writer).output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(
            out.status.signal(),
            Some(SIGPIPE),
            "{arguments:?}: {stderr}"
        );
        assert!(
            !stderr.contains("error") && !stderr.contains("ipe"),
            "{stderr}"
        );
    }
}

#[test]
fn shells_and_man_get_their_files() {
    for (shell, words) in [
        ("bash", "complete -F _paragon"),
        ("zsh", "#compdef paragon"),
        ("fish", "complete -c paragon"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let ran = run(&["completions", shell]).ok();
        assert!(
            ran.stdout.contains(words) && ran.stdout.contains("lq-size"),
            "{shell}: {}",
            ran.stdout
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("man1");
    run(&["man", "--out", text(&out)]).ok();
    let page = fs::read_to_string(out.join("paragon-shards-list.1")).unwrap();
    assert!(
        page.contains(".TH paragon") && page.contains("EXTRA"),
        "{page}"
    );
    let names: Vec<_> = fs::read_dir(&out).unwrap().collect();
    assert!(names.len() > 20, "{}", names.len());
    let one = run(&["man", "shards", "list"]).ok().stdout;
    assert_eq!(one, page);
    run(&["man", "shards", "zebra"]).refused(1, &["no command zebra", "paragon shards --help"]);
}

#[test]
fn help_ends_with_examples_and_the_program_alone_says_how_to_start() {
    let alone = run::<&str>(&[]);
    assert_eq!(alone.code, Some(2));
    for words in [
        "Start with: paragon demo",
        "paragon shard Photos",
        "paragon train",
    ] {
        assert!(alone.stderr.contains(words), "{}", alone.stderr);
    }
    for command in [
        &["shard", "--help"][..],
        &["train", "-h"],
        &["bench", "step", "--help"],
    ] {
        let shown = run(command).ok().stdout;
        assert!(shown.contains("Examples:\n  paragon "), "{shown}");
    }
}
