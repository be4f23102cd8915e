//! Several ranks that train together over MPI: equal bits for any number of them, and how they end.
//! Each MPI that is installed is used; a test without one prints SKIP.

#![cfg(unix)]

use crate::cli_common::{Ran, paragon, run};
use crate::shard_common::picture;
use crate::train_common::{
    Flags, Outcome, command, ended, no_litter, outcome, same, set, spawn, states, wait_until,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The launchers of Open MPI and of MPICH that are installed.
pub fn launchers() -> Vec<&'static str> {
    let known = ["mpirun.openmpi", "mpirun.mpich"];
    let found: Vec<&str> = known
        .into_iter()
        .filter(|name| Command::new(name).arg("--version").output().is_ok())
        .collect();
    if found.is_empty() {
        println!("SKIP: neither {} nor {} is installed", known[0], known[1]);
    }
    found
}

/// A command of some ranks: for each group its number and the words of `paragon`.
fn launch(launcher: &str, groups: &[(usize, Vec<String>)]) -> Command {
    let mut command = Command::new(launcher);
    command
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    if launcher.ends_with("openmpi") {
        command.args(["--oversubscribe", "--bind-to", "none"]);
    }
    for (at, (ranks, words)) in groups.iter().enumerate() {
        if at > 0 {
            command.arg(":");
        }
        command
            .args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_paragon")])
            .args(words);
    }
    command
}

/// Flags of the runs: a validation, checkpoints and log lines at different iterations, and a clip
/// that is reached.
pub const SHORT: Flags = &[
    ("--iterations", "6"),
    ("--batch-size", "1"),
    ("--grad-clip", "0.05"),
    ("--checkpoint-every", "4"),
    ("--log-every", "3"),
    ("--threads", "1"),
    ("--rank-timeout", "60"),
];

pub fn words(set: &Path, out: &Path, flags: Flags) -> Vec<String> {
    let kept = SHORT
        .iter()
        .filter(|(name, _)| flags.iter().all(|(other, _)| other != name));
    let all: Vec<_> = kept.chain(flags).copied().collect();
    command(set, out, &all)
}

fn ranks(launcher: &str, count: usize, set: &Path, out: &Path, flags: Flags) -> Ran {
    let words = words(set, out, flags);
    launch(launcher, &[(count, words)]).output().unwrap().into()
}

/// The outcome of a run without what depends on the number of ranks.
pub fn result(out: &Path) -> Outcome {
    let mut outcome = outcome(out);
    for line in &mut outcome.log {
        line.as_object_mut().unwrap().remove("ranks");
    }
    outcome
}

pub fn alone(set: &Path, out: &Path, flags: Flags) -> Outcome {
    run(&words(set, out, flags)).ok();
    result(out)
}

/// The process of a rank of a run.
pub fn process_of(out: &Path, rank: usize) -> i32 {
    let mut found = None;
    let wanted = [
        format!("OMPI_COMM_WORLD_RANK={rank}"),
        format!("PMI_RANK={rank}"),
        format!("RANK={rank}"),
    ];
    wait_until("process of the rank", || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        found = processes
            .filter_map(|entry| {
                let id: i32 = entry.file_name().to_str()?.parse().ok()?;
                let of_process = |name: &str| fs::read(entry.path().join(name)).ok();
                let command = of_process("cmdline")?;
                let mut words = command.split(|&b| b == 0);
                let is_rank = words.next()? == env!("CARGO_BIN_EXE_paragon").as_bytes()
                    && words.any(|word| word == out.as_os_str().as_encoded_bytes());
                let environment = of_process("environ")?;
                let mut variables = environment.split(|&b| b == 0);
                let is_number =
                    variables.any(|variable| wanted.iter().any(|w| w.as_bytes() == variable));
                (is_rank && is_number).then_some(id)
            })
            .next();
        found.is_some()
    });
    found.unwrap()
}

pub fn send(process: i32, signal: i32) {
    // SAFETY: the process is one that this test has started
    unsafe { libc::kill(process, signal) };
}

/// The complete states of a run, one of whose processes may be writing another one.
pub fn saved(out: &Path) -> Vec<PathBuf> {
    let mut all = states(out);
    all.retain(|path| path.extension().is_some_and(|kind| kind == "safetensors"));
    all
}

/// Starts two ranks that train for very long, and waits until they do.
fn endless(launcher: &str, set: &Path, out: &Path, flags: Flags) -> Child {
    let all: Vec<_> = [("--iterations", "1000000")]
        .iter()
        .chain(flags)
        .copied()
        .collect();
    let child = spawn(&mut launch(launcher, &[(2, words(set, out, &all))]));
    wait_until("state", || !saved(out).is_empty());
    child
}

#[test]
fn any_number_of_ranks_gives_the_bits_of_one() {
    let (dir, set) = set();
    let images = dir.path().join("data");
    let val = images.to_str().unwrap();
    // without optimisation a step of Photo takes ten seconds
    let photo = (!cfg!(debug_assertions)).then_some(("photo", "2", &[2][..]));
    let usual = [("nano", "4", &[2, 4][..]), ("stream", "3", &[3])];
    for (network, micro_batches, counts) in usual.into_iter().chain(photo) {
        let flags = [
            ("--network", network),
            ("--accum-iter", micro_batches),
            ("--val", val),
            ("--val-every", "4"),
        ];
        let mut expected = None;
        for launcher in launchers() {
            for &count in counts {
                let expected = expected.get_or_insert_with(|| {
                    alone(&set, &dir.path().join(format!("alone-{network}")), &flags)
                });
                let what = format!("{launcher}, {network}, {count} ranks");
                let out = dir.path().join(&what);
                let ran = ranks(launcher, count, &set, &out, &flags).ok();
                same(&result(&out), expected, &what);
                no_litter(&out);
                // rank 0 alone prints
                assert_eq!(ran.stdout.matches("done at iteration").count(), 1, "{what}");
                let line = &crate::train_common::log(&out)[0]["ranks"];
                assert_eq!(line["count"], count, "{what}: {line}");
            }
        }
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let Some(&launcher) = launchers().first() else {
        return;
    };
    let (dir, set) = set();
    let expected = alone(&set, &dir.path().join("alone"), &[("--accum-iter", "4")]);
    let out = dir.path().join("ranks");
    // four micro-batches because there are four ranks; the state keeps them
    ranks(launcher, 4, &set, &out, &[("--iterations", "2")]).ok();
    ranks(launcher, 2, &set, &out, &[("--iterations", "4")]).ok();
    run(&words(&set, &out, &[])).ok();
    let found = result(&out);
    assert!(found.state.1 == expected.state.1, "the states differ");
    let refused = ranks(launcher, 3, &set, &out, &[("--iterations", "8")]);
    refused.refused(1, &["--accum-iter 6", "start 2 ranks"]);
}

#[test]
fn a_signal_at_any_rank_saves_once_and_ends_all() {
    let (dir, set) = set();
    for launcher in launchers() {
        let out = dir.path().join(launcher);
        let child = endless(launcher, &set, &out, &[]);
        send(process_of(&out, 1), libc::SIGTERM);
        let ran = ended(child);
        assert_eq!(ran.code, Some(130), "{launcher}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("stopped; saved iteration"),
            "{launcher}"
        );
        no_litter(&out);
    }
}

/// A folder of many large images, whose validation takes much longer than a word between ranks.
fn long_validation(folder: &Path) {
    let count = if cfg!(debug_assertions) { 40 } else { 400 };
    fs::create_dir(folder).unwrap();
    let first = folder.join("000.png");
    picture(384, 384, 5).save(&first).unwrap();
    for image in 1..count {
        fs::hard_link(&first, folder.join(format!("{image:03}.png"))).unwrap();
    }
}

/// Rank 0 learns of it by the word of the other rank alone: no exchange comes before its validation is
/// done.
#[test]
fn a_signal_at_another_rank_ends_the_validation_of_rank_0() {
    let (dir, set) = set();
    let images = dir.path().join("images");
    long_validation(&images);
    for launcher in launchers() {
        let out = dir.path().join(launcher);
        let flags = [
            ("--iterations", "1000000"),
            ("--checkpoint-every", "1000000"),
            ("--val", images.to_str().unwrap()),
            ("--val-every", "2"),
        ];
        let child = spawn(&mut launch(launcher, &[(2, words(&set, &out, &flags))]));
        wait_until("preview of the first image", || {
            out.join("previews/0_000/00000002.png").exists()
        });
        assert!(states(&out).is_empty());
        send(process_of(&out, 1), libc::SIGTERM);
        let ran = ended(child);
        assert_eq!(ran.code, Some(130), "{launcher}: {}", ran.stderr);
        // a validation that is done has a line
        let lines = crate::train_common::log(&out);
        assert!(lines.is_empty(), "{launcher}: {lines:?}");
        let saved = ran.stderr.matches("stopped; saved iteration 2.").count();
        assert_eq!((saved, states(&out).len()), (1, 1), "{}", ran.stderr);
        no_litter(&out);
    }
}

#[test]
fn ranks_that_die_leave_a_run_that_goes_on_to_the_same_bits() {
    let (dir, set) = set();
    for (at, launcher) in launchers().into_iter().enumerate() {
        let out = dir.path().join(launcher);
        let child = endless(launcher, &set, &out, &[("--checkpoint-every", "1")]);
        std::thread::sleep(Duration::from_millis(37 * at as u64));
        send(process_of(&out, at), libc::SIGKILL);
        assert_ne!(ended(child).code, Some(0), "{launcher}");
        let newest = saved(&out).pop().unwrap();
        let name = newest.file_stem().unwrap().to_str().unwrap();
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        let total = (digits.parse::<u64>().unwrap() + 3).to_string();
        let flags = [("--iterations", total.as_str()), ("--accum-iter", "2")];
        ranks(launcher, 2, &set, &out, &flags).ok();
        let expected = alone(&set, &dir.path().join(format!("{launcher}-alone")), &flags);
        assert!(result(&out).state.1 == expected.state.1, "{launcher}");
    }
}

#[test]
fn a_rank_that_says_nothing_is_named_in_time() {
    let (dir, set) = set();
    for launcher in launchers() {
        let out = dir.path().join(launcher);
        let child = endless(launcher, &set, &out, &[("--rank-timeout", "5")]);
        let stopped = process_of(&out, 1);
        send(stopped, libc::SIGSTOP);
        let began = Instant::now();
        let ran = ended(child);
        send(stopped, libc::SIGKILL);
        assert_ne!(ran.code, Some(0));
        assert!(
            ran.stderr.contains("nothing was heard from rank 1 (")
                && ran.stderr.contains("the checkpoint of iteration"),
            "{launcher}: {}",
            ran.stderr
        );
        assert!(began.elapsed() < Duration::from_secs(60), "{launcher}");
        no_litter(&out);
    }
}

#[test]
fn ranks_that_were_started_differently_are_refused() {
    let Some(&launcher) = launchers().first() else {
        return;
    };
    let (dir, set) = set();
    let out = dir.path().join("run");
    let pair = |first: Vec<String>, second: Vec<String>| -> Ran {
        let mut command = launch(launcher, &[(1, first), (1, second)]);
        command.output().unwrap().into()
    };
    let usual = words(&set, &out, &[]);
    pair(usual.clone(), words(&set, &out, &[("--lr", "2e-3")])).refused(
        1,
        &[
            "rank 1 (",
            "was not started like rank 0",
            "--lr: 0.002, not 0.001",
        ],
    );
    // a rank that fails alone
    let ran = pair(usual, words(&dir.path().join("missing"), &out, &[]));
    assert_eq!(ran.stderr.matches("failed: ").count(), 1, "{}", ran.stderr);
    ran.refused(
        1,
        &["rank 1 (", "failed: ", "missing", "has failed and says why"],
    );
    assert!(!out.exists());
}

/// A command that cannot be understood is refused before anything is asked of MPI. The rank joins the
/// others all the same, which some launchers would leave waiting for it.
#[test]
fn wrong_usage_is_agreed_on_by_all_ranks() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let wrong: [(Flags<'_>, &str); 3] = [
        (&[("--bogus", "")], "unexpected argument '--bogus'"),
        (&[("--rank-timeout", "4")], "4 is not in 5..=86400"),
        (&[("--iterations", "few")], "invalid value 'few'"),
    ];
    let usual = words(&set, &out, &[("--rank-timeout", "600")]);
    for launcher in launchers() {
        for (flags, text) in wrong {
            let groups = [(1, usual.clone()), (1, words(&set, &out, flags))];
            let began = Instant::now();
            let ran: Ran = launch(launcher, &groups).output().unwrap().into();
            let said = &ran.stderr;
            // All ranks exit with the code of the one that failed: launchers combine the codes of their ranks, some
            // bit by bit.
            assert_eq!(ran.code, Some(2), "{launcher}: {said}");
            let all = [
                text,
                "the command of rank 1 (",
                "rank 1 (",
                ") has failed and says why",
            ];
            assert!(all.iter().all(|text| said.contains(text)), "{said}");
            assert!(began.elapsed() < Duration::from_secs(300), "{launcher}");
        }
        // all ranks, and the same without a flag
        let all = ranks(launcher, 2, &set, &out, wrong[0].0);
        let mut command = launch(launcher, &[(2, usual.clone())]);
        let unknown: Ran = command.env("PARAGON_ISA", "mmx").output().unwrap().into();
        for (ran, text) in [(all, wrong[0].1), (unknown, "mmx")] {
            let said = &ran.stderr;
            assert_eq!(ran.code, Some(2), "{launcher}: {said}");
            assert!(said.contains(text), "{launcher}: {said}");
        }
    }
    // MPI that cannot be joined does not hide what is wrong
    let alone = [("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("PARAGON_MPI", "/no")];
    let mut command = paragon(&words(&set, &out, wrong[0].0));
    let ran: Ran = command.envs(alone).output().unwrap().into();
    ran.refused(2, &[wrong[0].1]);
    assert!(!out.exists());
}

/// All ranks refuse the same thing, end MPI, and say it once.
#[test]
fn a_refusal_that_all_ranks_agree_on_is_said_once() {
    let (dir, set) = set();
    for launcher in launchers() {
        let out = dir.path().join(launcher);
        let ran = ranks(launcher, 2, &set, &out, &[("--accum-iter", "3")]);
        let said = ran.stderr.matches("cannot be shared by 2 ranks").count();
        assert_eq!(said, 1, "{launcher}: {}", ran.stderr);
        ran.refused(1, &["--accum-iter 4 if the run is a new one"]);
        assert!(!out.exists());
    }
}

#[test]
fn two_runs_without_ranks_do_not_share_a_folder() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    fs::create_dir(&out).unwrap();
    let lock = fs::File::create(out.join(".lock")).unwrap();
    lock.lock().unwrap();
    let mut command = paragon(&words(&set, &out, &[]));
    let of_launcher = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("PARAGON_MPI", "off")];
    let ran: Ran = command.envs(of_launcher).output().unwrap().into();
    ran.refused(
        1,
        &["PARAGON_MPI=off", "another process is training in", "--out"],
    );
}

#[test]
fn a_missing_or_foreign_library_is_explained() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let started = |variables: &[(&str, &str)]| -> Ran {
        let mut command = paragon(&words(&set, &out, &[]));
        command
            .envs(variables.iter().copied())
            .output()
            .unwrap()
            .into()
    };
    let of_launcher = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
    let with = |library| [of_launcher[0], of_launcher[1], ("PARAGON_MPI", library)];
    started(&with("/missing/libmpi.so")).refused(
        1,
        &[
            "mpirun of Open MPI",
            "/missing/libmpi.so",
            "libopenmpi3",
            "PARAGON_MPI",
        ],
    );
    started(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")]).refused(
        1,
        &[
            "torchrun",
            "TORCHELASTIC_USE_AGENT_STORE is not set",
            "PyTorch 2.5",
            "mpirun",
        ],
    );
    if launchers().contains(&"mpirun.mpich") {
        started(&with("libmpich.so.12"))
            .refused(1, &["rank 1 of 2", "sees rank 0 of 1", "same MPI"]);
    }
    assert!(!out.exists());
    // a plain start never loads MPI
    let lonely = [
        ("PMI_RANK", "0"),
        ("PMI_SIZE", "1"),
        ("PARAGON_MPI", "/missing"),
    ];
    started(&lonely).ok();
}
