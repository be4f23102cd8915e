//! Several ranks that torchrun starts, over a stand-in for the store of its agent: equal bits for any
//! number of them, and how they end. With `PARAGON_TORCHRUN=FILE` one test runs PyTorch's own torchrun,
//! and otherwise prints SKIP.

#![cfg(unix)]

use crate::cli_common::{Ran, paragon};
use crate::ranks::{alone, process_of, result, saved, send, words};
use crate::store_common::Store;
use crate::train_common::{Flags, ended, no_litter, same, set, spawn, wait_until};
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A rank with the variables that torchrun sets. MPI, which is not needed, cannot be loaded.
pub fn rank(port: u16, rank: usize, size: usize, words: &[String]) -> Command {
    let mut command = paragon(words);
    let numbers = [
        ("RANK", rank),
        ("WORLD_SIZE", size),
        ("LOCAL_RANK", rank),
        ("LOCAL_WORLD_SIZE", size),
        ("GROUP_RANK", 0),
        ("TORCHELASTIC_RESTART_COUNT", 0),
        ("MASTER_PORT", usize::from(port)),
    ];
    command
        .envs(numbers.map(|(name, value)| (name, value.to_string())))
        .env("MASTER_ADDR", "localhost")
        .env("TORCHELASTIC_RUN_ID", "test")
        .env("TORCHELASTIC_USE_AGENT_STORE", "True")
        .env("PARAGON_MPI", "/missing");
    command
}

/// Starts some ranks with one command.
fn start(store: &Store, size: usize, words: &[String]) -> Vec<Child> {
    let of_rank = |number| spawn(&mut rank(store.port, number, size, words));
    (0..size).map(of_rank).collect()
}

fn end(ranks: Vec<Child>) -> Vec<Ran> {
    ranks.into_iter().map(ended).collect()
}

/// Starts two ranks that train for very long, and waits until they do.
fn endless(store: &Store, set: &Path, out: &Path, flags: Flags) -> Vec<Child> {
    let all: Vec<_> = [("--iterations", "1000000"), ("--checkpoint-every", "1")]
        .iter()
        .filter(|(name, _)| flags.iter().all(|(other, _)| other != name))
        .chain(flags)
        .copied()
        .collect();
    let ranks = start(store, 2, &words(set, out, &all));
    wait_until("state", || !saved(out).is_empty());
    ranks
}

fn signal(rank: &Child, signal: i32) {
    crate::train_common::signal(rank, signal);
}

/// Ends what a test has stopped.
fn kill(mut rank: Child) {
    rank.kill().unwrap();
    rank.wait().unwrap();
}

/// The iteration of a state.
fn iteration(state: &Path) -> u64 {
    let name = state.file_stem().unwrap().to_str().unwrap();
    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn any_number_of_ranks_gives_the_bits_of_one() {
    let (dir, set) = set();
    let images = dir.path().join("data");
    let flags = [
        ("--accum-iter", "4"),
        ("--val", images.to_str().unwrap()),
        ("--val-every", "4"),
    ];
    let expected = alone(&set, &dir.path().join("alone"), &flags);
    for count in [2, 4] {
        let store = Store::start();
        let out = dir.path().join(count.to_string());
        for (at, ran) in end(start(&store, count, &words(&set, &out, &flags)))
            .into_iter()
            .enumerate()
        {
            let ran = ran.ok();
            // rank 0 alone prints
            let lines = ran.stdout.matches("done at iteration").count();
            assert_eq!(lines, usize::from(at == 0), "{}", ran.stderr);
        }
        same(&result(&out), &expected, &format!("{count} ranks"));
        no_litter(&out);
        assert!(store.keys().is_empty(), "{:?}", store.keys());
        // gradients of Nano are 67 kB, and whole ones travel: those of two exchanges at the most
        let (most, _) = store.most_bytes();
        assert!(most < 2 * count * count * (67_500 + 5_000), "{most} bytes");
    }
}

/// What torchrun does with `--max-restarts` when a rank dies: SIGTERM for the others, then all are
/// started again, with the same store.
#[test]
fn a_rank_that_dies_leaves_a_run_that_is_started_again() {
    let (dir, set) = set();
    let store = Store::start();
    let run = |waits: bool| dir.path().join(if waits { "run" } else { "at once" });
    // At once, when the dead rank's part of an iteration may be there, which is then saved; and when
    // rank 0 waits for the next part.
    for waits in [false, true] {
        let out = run(waits);
        let mut ranks = endless(&store, &set, &out, &[]);
        kill(ranks.pop().unwrap());
        let newest = || saved(&out).pop();
        let mut last = None;
        while waits && last != newest() {
            last = newest();
            std::thread::sleep(Duration::from_secs(2));
        }
        let began = Instant::now();
        signal(&ranks[0], libc::SIGTERM);
        let ran = ended(ranks.pop().unwrap());
        let said = &ran.stderr;
        assert!(began.elapsed() < Duration::from_secs(45), "{said}");
        assert!(!waits || !said.contains("stopped; saved"), "{said}");
        ran.refused(1, &["nothing was heard from rank 1 (", "asked to stop"]);
    }
    assert!(!store.keys().is_empty());
    let out = run(true);
    let total = (iteration(&saved(&out).pop().unwrap()) + 3).to_string();
    let flags = [("--iterations", total.as_str()), ("--accum-iter", "2")];
    for ran in end(start(&store, 2, &words(&set, &out, &flags))) {
        ran.ok();
    }
    let expected = alone(&set, &dir.path().join("alone"), &flags);
    assert!(
        result(&out).state.1 == expected.state.1,
        "the states differ"
    );
}

#[test]
fn a_rank_that_says_nothing_is_named_in_time() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let store = Store::start();
    let mut ranks = endless(&store, &set, &out, &[("--rank-timeout", "5")]);
    let stopped = ranks.pop().unwrap();
    signal(&stopped, libc::SIGSTOP);
    let began = Instant::now();
    let ran = ended(ranks.pop().unwrap());
    kill(stopped);
    assert!(began.elapsed() < Duration::from_secs(60), "{}", ran.stderr);
    ran.refused(
        1,
        &[
            "nothing was heard from rank 1 (",
            "for 5 s (--rank-timeout)",
            "the checkpoint of iteration",
        ],
    );
    no_litter(&out);
}

#[test]
fn a_signal_at_any_rank_saves_once_and_ends_all() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let store = Store::start();
    let ranks = endless(&store, &set, &out, &[]);
    signal(&ranks[1], libc::SIGTERM);
    let ran = end(ranks);
    let saves = |ran: &Ran| ran.stderr.matches("stopped; saved iteration").count();
    for (at, ran) in ran.iter().enumerate() {
        assert_eq!(ran.code, Some(130), "{}", ran.stderr);
        assert_eq!(saves(ran), usize::from(at == 0), "{}", ran.stderr);
    }
    no_litter(&out);
    assert!(store.keys().is_empty(), "{:?}", store.keys());
}

#[test]
fn a_store_that_goes_away_ends_all_ranks() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let store = Store::start();
    let ranks = endless(&store, &set, &out, &[]);
    store.close();
    for ran in end(ranks) {
        let place = format!("torchrun's store at localhost:{} is gone", store.port);
        ran.refused(1, &[&place, "on the host of rank 0"]);
    }
    assert!(!saved(&out).is_empty());
    no_litter(&out);
}

#[test]
fn errors_of_ranks_are_said_once_and_wrong_usage_is_told_to_all() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let store = Store::start();
    // all refuse the same
    let ran = end(start(
        &store,
        2,
        &words(&set, &out, &[("--accum-iter", "3")]),
    ));
    let said: String = ran.iter().map(|ran| ran.stderr.as_str()).collect();
    let count = said.matches("cannot be shared by 2 ranks").count();
    assert_eq!(count, 1, "{said}");
    assert!(ran.iter().all(|ran| ran.code == Some(1)), "{said}");
    // one has a wrong flag, then all
    let usual = words(&set, &out, &[]);
    let wrong = words(&set, &out, &[("--bogus", "")]);
    for first in [&usual, &wrong] {
        let ranks = [(0, first), (1, &wrong)];
        let ranks = ranks.map(|(number, words)| spawn(&mut rank(store.port, number, 2, words)));
        let ran = end(ranks.into());
        let said: String = ran.iter().map(|ran| ran.stderr.as_str()).collect();
        assert!(said.contains("unexpected argument '--bogus'"), "{said}");
        let codes: Vec<_> = ran.iter().map(|ran| ran.code).collect();
        assert_eq!(codes, [Some(2), Some(2)], "{said}");
        if first == &usual {
            assert!(said.contains("the command of rank 1 ("), "{said}");
            assert!(said.contains("has failed and says why"), "{said}");
        }
    }
    assert!(!out.exists());
}

#[test]
fn what_is_no_store_is_refused() {
    let (dir, set) = set();
    let out = dir.path().join("run");
    let words = words(&set, &out, &[("--rank-timeout", "5")]);
    // a service that closes what it does not understand
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 10]);
    });
    let ran: Ran = rank(port, 1, 2, &words).output().unwrap().into();
    service.join().unwrap();
    let place = format!("localhost:{port}");
    ran.refused(
        1,
        &[&place, "is no store of torchrun's agent", "PyTorch 2.5"],
    );
    // nothing listens there any more
    let ran: Ran = rank(port, 1, 2, &words).output().unwrap().into();
    ran.refused(1, &["cannot connect to torchrun's store at", &place]);
    // torchrun whose agent does not share its store
    let mut command = rank(port, 1, 2, &words);
    command.env("TORCHELASTIC_USE_AGENT_STORE", "False");
    let ran: Ran = command.output().unwrap().into();
    ran.refused(1, &["is 'False'", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"]);
    // processes that train alone do not ask for it
    let alone = words.clone();
    let mut command = rank(port, 0, 2, &alone);
    let ran: Ran = command.env("PARAGON_MPI", "off").output().unwrap().into();
    ran.ok();
}

/// PyTorch's torchrun with these arguments for itself and for `paragon`.
fn torchrun(file: &Path, own: &[&str], words: &[String]) -> Command {
    let mut command = Command::new(file);
    command
        .args(["--standalone", "--nproc-per-node", "2", "--no-python"])
        .args(own)
        .arg(env!("CARGO_BIN_EXE_paragon"))
        .args(words);
    command
}

#[test]
fn torchrun_of_pytorch_starts_and_restarts_ranks() {
    let Some(file) = std::env::var_os("PARAGON_TORCHRUN").map(PathBuf::from) else {
        println!("SKIP: PARAGON_TORCHRUN does not name the torchrun of PyTorch");
        return;
    };
    let (dir, set) = set();
    let flags = [("--accum-iter", "2")];
    let expected = alone(&set, &dir.path().join("alone"), &flags);
    let out = dir.path().join("ranks");
    let ran: Ran = torchrun(&file, &[], &words(&set, &out, &flags))
        .output()
        .unwrap()
        .into();
    ran.ok();
    same(&result(&out), &expected, "torchrun");

    // a rank that dies, a restart, and a signal to torchrun
    let out = dir.path().join("restarted");
    let long = [("--iterations", "1000000"), ("--checkpoint-every", "1")];
    let long = words(&set, &out, &long);
    let agent = spawn(&mut torchrun(&file, &["--max-restarts", "1"], &long));
    wait_until("state", || !saved(&out).is_empty());
    let died = process_of(&out, 1);
    send(died, libc::SIGKILL);
    let mut last = None;
    wait_until("restart", || {
        let newest = saved(&out).pop().map(|state| iteration(&state));
        let again = process_of(&out, 1) != died;
        last = last.or(newest.filter(|_| again));
        again && newest > last.map(|last| last + 1)
    });
    crate::train_common::signal(&agent, libc::SIGTERM);
    let ran = ended(agent);
    let saves = ran.stderr.matches("stopped; saved iteration").count();
    assert_eq!(saves, 1, "{}", ran.stderr);
    let total = (iteration(&saved(&out).pop().unwrap()) + 3).to_string();
    let flags = [("--iterations", total.as_str()), ("--accum-iter", "2")];
    let ran: Ran = torchrun(&file, &[], &words(&set, &out, &flags))
        .output()
        .unwrap()
        .into();
    ran.ok();
    let expected = alone(&set, &dir.path().join("alone again"), &flags);
    assert!(
        result(&out).state.1 == expected.state.1,
        "the states differ"
    );
}
