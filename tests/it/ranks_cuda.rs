//! Several ranks that train on cards: a stand-in driver and a stand-in for NCCL replace the real ones.
//! Equal bits for any number of ranks and either way of the gradients, the order of what happens on
//! a card, and how failures end. Where the MPI matters, each that is installed is used; a test without one,
//! or without a C++ compiler, prints SKIP.

#![cfg(unix)]

use crate::cli_common::Ran;
use crate::kernels_common::{driver, nccl};
use crate::ranks::{launchers, process_of, result, send};
use crate::ranks_torchrun;
use crate::store_common::Store;
use crate::train_common::{Flags, command, ended, no_litter, same, set, spawn, states};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Flags of the runs: a tiny Nano in f32, because kernels are slow on fibers.
const TINY: Flags = &[
    ("--device", "cuda"),
    ("--precision", "f32"),
    ("--iterations", "2"),
    ("--batch-size", "1"),
    ("--lq-size", "8"),
    ("--accum-iter", "4"),
    ("--loss", "l1"),
    ("--warmup", "0"),
    ("--log-every", "1"),
    ("--checkpoint-every", "1"),
    ("--threads", "1"),
    ("--rank-timeout", "60"),
];

type Variables<'a> = &'a [(&'a str, &'a str)];

/// A host with cards, NCCL and an MPI, and a set of shards.
struct Host {
    launcher: &'static str,
    libraries: String,
    dir: tempfile::TempDir,
    set: PathBuf,
}

impl Host {
    fn new(launcher: &'static str) -> Option<Host> {
        let (driver, nccl) = (driver()?, nccl()?);
        let (dir, set) = set();
        fs::create_dir(dir.path().join("messages")).unwrap();
        Some(Host {
            launcher,
            libraries: format!("{}:{}", driver.display(), nccl.display()),
            dir,
            set,
        })
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn words(&self, out: &Path, flags: Flags) -> Vec<String> {
        let kept = TINY
            .iter()
            .filter(|(name, _)| flags.iter().all(|(other, _)| other != name));
        let all: Vec<_> = kept.chain(flags).copied().collect();
        let mut words = command(&self.set, out, &all);
        words.push("-v".into());
        words
    }

    /// A command of some ranks; each group has its number of them, its variables and its flags.
    fn launch(&self, out: &Path, groups: &[(usize, Variables<'_>, Flags<'_>)]) -> Command {
        let mut command = Command::new(self.launcher);
        command
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .env("LD_LIBRARY_PATH", &self.libraries)
            .env("FAKE_CUDA_DEVICES", "4")
            .env("FAKE_NCCL_FOLDER", self.out("messages"))
            .env_remove("PARAGON_NCCL");
        if self.launcher.ends_with("openmpi") {
            command.args(["--oversubscribe", "--bind-to", "none"]);
        }
        for (at, (ranks, variables, flags)) in groups.iter().enumerate() {
            if at > 0 {
                command.arg(":");
            }
            command.args(["-n", &ranks.to_string(), "env"]);
            let variables = variables.iter();
            command.args(variables.map(|(name, value)| format!("{name}={value}")));
            command.arg(env!("CARGO_BIN_EXE_paragon"));
            command.args(self.words(out, flags));
        }
        command
    }

    fn ranks(&self, count: usize, out: &Path, variables: Variables<'_>, flags: Flags) -> Ran {
        let mut command = self.launch(out, &[(count, variables, flags)]);
        command.output().unwrap().into()
    }

    /// A process that is alone, on a card.
    fn alone(&self, out: &Path, variables: Variables<'_>, flags: Flags) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paragon"));
        command
            .args(self.words(out, flags))
            .env("LD_LIBRARY_PATH", &self.libraries)
            .envs(variables.iter().copied());
        command.output().unwrap().into()
    }
}

/// A host for each MPI that is installed.
fn hosts() -> impl Iterator<Item = Host> {
    launchers().into_iter().filter_map(Host::new)
}

/// A host for one of them, where the test does not depend on the MPI.
fn one_host() -> impl Iterator<Item = Host> {
    hosts().take(1)
}

/// What the ranks of a run said about themselves.
fn said(ran: &Ran) -> String {
    format!("{}{}", ran.stdout, ran.stderr)
}

const BY_NCCL: &str = "gradients go from card to card through NCCL 2.21.5 (libnccl.so.2)";

#[test]
fn ranks_on_cards_give_the_bits_of_one() {
    for host in hosts() {
        let one = host.out("one");
        host.alone(&one, &[], &[]).ok();
        let expected = result(&one);
        let off: Variables<'_> = &[("PARAGON_NCCL", "off")];
        let through_host = "gradients travel through host memory, because rank 0 (";
        for (name, count, variables, words) in [
            ("two", 2, &[][..], BY_NCCL),
            ("four", 4, &[], BY_NCCL),
            ("off", 2, off, through_host),
            // work on the main stream at once, and as late as possible
            ("eager", 2, &[("FAKE_CUDA_EAGER", "0")], BY_NCCL),
            ("plain", 2, &[("PARAGON_CUDA_GRAPH", "0")], BY_NCCL),
        ] {
            let out = host.out(name);
            let ran = host.ranks(count, &out, variables, &[]).ok();
            let said = said(&ran);
            assert!(said.contains(words), "{name}: {said}");
            same(&result(&out), &expected, name);
            no_litter(&out);
            let rows = if name == "off" {
                [
                    "exchange of gradients: 2 ranks",
                    "MPI library or store (allowance)",
                ]
            } else {
                ["gradients of other ranks", "NCCL on the device (allowance)"]
            };
            assert!(rows.iter().all(|row| said.contains(row)), "{name}: {said}");
        }
        // messages that nobody has received
        let left = fs::read_dir(host.out("messages")).unwrap().flatten();
        let left: Vec<_> = left
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| !name.contains("joined"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// NCCL's id and all messages but gradients travel through the store of torchrun, which no MPI takes part
/// in.
#[test]
fn torchrun_starts_ranks_on_cards() {
    let Some(host) = Host::new("") else {
        return;
    };
    let one = host.out("one");
    host.alone(&one, &[], &[]).ok();
    for (nccl, words) in [("libnccl.so.2", BY_NCCL), ("off", "through host memory")] {
        let store = Store::start();
        let out = host.out(nccl);
        let ranks = [0, 1].map(|number| {
            let words = host.words(&out, &[]);
            let mut command = ranks_torchrun::rank(store.port, number, 2, &words);
            command
                .env("LD_LIBRARY_PATH", &host.libraries)
                .env("FAKE_CUDA_DEVICES", "4")
                .env("FAKE_NCCL_FOLDER", host.out("messages"))
                .env("PARAGON_NCCL", nccl);
            spawn(&mut command)
        });
        let ran = ranks.map(|rank| ended(rank).ok());
        let said = said(&ran[0]);
        assert!(said.contains(words), "{said}");
        same(&result(&out), &result(&one), nccl);
        no_litter(&out);
    }
}

/// With more parameters each rank adds a part of them, and the sums are gathered.
#[test]
fn parts_of_large_gradients_give_the_bits_of_one() {
    for host in one_host() {
        let flags: Flags = &[
            ("--network", "compact"),
            ("--num-feat", "64"),
            ("--num-conv", "8"),
            ("--accum-iter", "2"),
        ];
        let one = host.out("one");
        host.alone(&one, &[], flags).ok();
        let out = host.out("two");
        let ran = host.ranks(2, &out, &[], flags).ok();
        assert!(said(&ran).contains(BY_NCCL));
        same(&result(&out), &result(&one), "two ranks");
    }
}

/// In fp16 an overflow at one rank skips the update of all, and all have the same loss scale.
#[test]
fn an_overflow_skips_the_update_of_every_rank() {
    for host in one_host() {
        let card: Variables<'_> = &[("FAKE_CUDA_CAPABILITY", "75")];
        // the weight that makes some gradients overflow, and not all, depends on the network
        let mut compared = false;
        for weight in ["l1:300", "l1:3000", "l1:30000", "l1:300000"] {
            let flags: Flags = &[
                ("--precision", "fp16"),
                ("--loss", weight),
                ("--accum-iter", "2"),
                ("--iterations", "6"),
            ];
            let one = host.out(&format!("one-{weight}"));
            host.alone(&one, card, flags).ok();
            let log = crate::train_common::log(&one);
            let skipped = log.last().unwrap()["skipped"].as_u64().unwrap();
            if !(1..6).contains(&skipped) {
                continue;
            }
            let out = host.out("two");
            host.ranks(2, &out, card, flags).ok();
            same(&result(&out), &result(&one), "two ranks");
            compared = true;
            break;
        }
        assert!(compared, "no weight of the loss makes gradients overflow");
    }
}

/// What happened on the cards of a run, by process, in order.
fn events(log: &Path) -> Vec<Vec<String>> {
    let name = log.file_name().unwrap().to_str().unwrap();
    let files = fs::read_dir(log.parent().unwrap()).unwrap().flatten();
    files
        .filter(|entry| {
            let found = entry.file_name().into_string().unwrap();
            found.starts_with(&format!("{name}-"))
        })
        .map(|entry| {
            let text = fs::read_to_string(entry.path()).unwrap();
            text.lines().map(str::to_string).collect()
        })
        .collect()
}

#[test]
fn gradients_are_sent_complete_and_added_before_the_update() {
    for host in one_host() {
        for (name, network, gathers) in [
            ("nano", &[][..], false),
            (
                "compact",
                &[
                    ("--network", "compact"),
                    ("--num-feat", "64"),
                    ("--num-conv", "8"),
                ],
                true,
            ),
        ] {
            let (out, log) = (host.out(name), host.out(&format!("{name}-events")));
            let flags = [network, &[("--accum-iter", "2"), ("--iterations", "1")]].concat();
            let variables = [("FAKE_CUDA_LOG", log.to_str().unwrap())];
            host.ranks(2, &out, &variables, &flags).ok();
            let all = events(&log);
            assert_eq!(all.len(), 2, "{all:?}");
            for events in all {
                let places = |wanted: &str| -> Vec<usize> {
                    let found = events.iter().enumerate();
                    found
                        .filter(|(_, event)| event.starts_with(wanted))
                        .map(|(at, _)| at)
                        .collect()
                };
                let (sends, receives) = (places("send to"), places("receive from"));
                let (adds, norm) = (places("add_gradients"), places("gradient_squares"));
                let exchanges = 1 + usize::from(gathers);
                assert_eq!(
                    [sends.len(), receives.len(), adds.len(), norm.len()],
                    [exchanges, exchanges, 1, 1],
                    "{events:?}"
                );
                assert!(sends[0] < adds[0] && receives[0] < adds[0], "{events:?}");
                if gathers {
                    assert!(adds[0] < sends[1] && receives[1] < norm[0], "{events:?}");
                }
                assert!(
                    adds[0] < norm[0] && norm[0] < places("adam")[0],
                    "{events:?}"
                );
                // all that computes gradients is done before they are sent
                let after = &events[sends[0]..];
                let of_exchange = ["send to", "receive from", "add_gradients"];
                let of_update = ["set_scalars", "gradient_squares", "adam", "destroyed"];
                let known = |event: &&String| {
                    let mut all = of_exchange.iter().chain(&of_update);
                    all.any(|name| event.starts_with(name))
                };
                assert!(after.iter().all(|event| known(&event)), "{after:?}");
                assert!(sends[0] > 10, "{events:?}");
                assert_eq!(places("destroyed").len(), 1, "{events:?}");
            }
        }
    }
}

#[test]
fn cards_that_ranks_cannot_share_are_refused() {
    for host in one_host() {
        let out = host.out("run");
        let three: Flags = &[("--accum-iter", "3")];
        host.ranks(3, &out, &[("FAKE_CUDA_DEVICES", "2")], three)
            .refused(1, &["3 ranks", "2 cards", "--device cpu"]);
        let shared: Variables<'_> = &[("FAKE_CUDA_DEVICES", "1")];
        host.ranks(2, &out, shared, &[]).refused(
            1,
            &[
                "rank 0 (",
                "and rank 1 (",
                "have the same card",
                "--gpus-per-task=1",
            ],
        );
        host.ranks(2, &out, &[], &[("--device", "cuda:1")])
            .refused(1, &["--device cuda:1 names one card for all 2 ranks"]);
        let mut pair = host.launch(
            &out,
            &[
                (1, &[], &[]),
                (1, &[("FAKE_CUDA_NAME", "another GPU")], &[]),
            ],
        );
        Ran::from(pair.output().unwrap()).refused(
            1,
            &[
                "rank 1 (",
                "device: another GPU (sm_86), not fiber GPU (sm_86)",
            ],
        );
        assert!(!out.exists());
        // a launcher that shows every rank a card of its own
        let own: Variables<'_> = &[("FAKE_CUDA_DEVICES", "1"), ("FAKE_CUDA_UUID", "1")];
        let short: Flags = &[("--iterations", "1"), ("--accum-iter", "2")];
        let mut pair = host.launch(&out, &[(1, shared, short), (1, own, short)]);
        Ran::from(pair.output().unwrap()).ok();
    }
}

#[test]
fn without_nccl_gradients_travel_through_host_memory() {
    for host in one_host() {
        let short: Flags = &[("--iterations", "1"), ("--accum-iter", "2")];
        let out = host.out("missing");
        let driver = host.libraries.split(':').next().unwrap().to_string();
        let mut command = host.launch(&out, &[(2, &[], short)]);
        let ran = Ran::from(command.env("LD_LIBRARY_PATH", driver).output().unwrap()).ok();
        let sentence = "gradients travel through host memory, because rank 0 (";
        assert_eq!(ran.stderr.matches(sentence).count(), 1, "{}", ran.stderr);
        let out = host.out("versions");
        let older: Variables<'_> = &[("FAKE_NCCL_VERSION", "21805")];
        let mut command = host.launch(&out, &[(1, &[], short), (1, older, short)]);
        let ran = Ran::from(command.output().unwrap()).ok();
        assert!(
            ran.stderr.contains("has NCCL 2.18.5") && ran.stderr.contains("the same version"),
            "{}",
            ran.stderr
        );
        let named: Variables<'_> = &[("PARAGON_NCCL", "/missing/libnccl.so")];
        host.ranks(2, &host.out("named"), named, short)
            .refused(1, &["PARAGON_NCCL", "/missing/libnccl.so"]);
    }
}

#[test]
fn errors_of_nccl_end_the_run_with_their_text() {
    for host in one_host() {
        let cases: [(&str, &[&str]); 4] = [
            (
                "ncclSend:2:5",
                &["rank 1 (", "send gradients to rank 0", "invalid usage"],
            ),
            (
                "ncclCommInitRank:1:3",
                &["connect the cards", "internal error", "PARAGON_NCCL=off"],
            ),
            (
                "ncclGroupEnd:2:4",
                &["exchange gradients", "invalid argument"],
            ),
            // an error that another rank may have caused, where none has
            ("async:2:6", &["remote process exited", "PARAGON_NCCL=off"]),
        ];
        for (at, (fail, words)) in cases.into_iter().enumerate() {
            let out = host.out(&format!("run{at}"));
            let variables = [("FAKE_NCCL_FAIL", fail), ("FAKE_NCCL_RANK", "1")];
            let began = Instant::now();
            let ran = host.ranks(2, &out, &variables, &[("--rank-timeout", "5")]);
            ran.refused(1, words);
            assert!(began.elapsed() < Duration::from_secs(60), "{fail}");
        }
    }
}

/// A rank that stops in the middle of an exchange while the other waits on its card: the other one
/// ends in time and names it.
#[test]
fn a_rank_that_stops_while_others_wait_on_their_cards_is_named() {
    for host in one_host() {
        let out = host.out("run");
        let stop = format!("async:3:-{}", libc::SIGSTOP);
        let log = host.out("events");
        let variables = [
            ("FAKE_NCCL_FAIL", stop.as_str()),
            ("FAKE_NCCL_RANK", "1"),
            ("FAKE_CUDA_LOG", log.to_str().unwrap()),
        ];
        let flags: Flags = &[("--rank-timeout", "5"), ("--iterations", "1000000")];
        let began = Instant::now();
        let child = spawn(&mut host.launch(&out, &[(2, &variables, flags)]));
        let stopped = process_of(&out, 1);
        let ran = ended(child);
        send(stopped, libc::SIGKILL);
        assert_ne!(ran.code, Some(0));
        assert!(
            ran.stderr.contains("nothing was heard from rank 1 (")
                && ran.stderr.contains("the checkpoint of iteration 1 is kept"),
            "{}",
            ran.stderr
        );
        assert!(began.elapsed() < Duration::from_secs(90));
        let aborted = |events: &Vec<String>| events.iter().any(|event| event == "aborted");
        assert!(events(&log).iter().any(aborted));
        no_litter(&out);
    }
}

#[test]
fn a_run_goes_on_after_a_rank_was_killed_in_an_exchange() {
    for host in hosts() {
        let out = host.out("run");
        let kill = format!("async:3:-{}", libc::SIGKILL);
        let variables = [("FAKE_NCCL_FAIL", kill.as_str()), ("FAKE_NCCL_RANK", "1")];
        let ran = host.ranks(2, &out, &variables, &[]);
        assert_ne!(ran.code, Some(0), "{}", ran.stderr);
        assert!(!states(&out).is_empty());
        host.ranks(2, &out, &[], &[]).ok();
        let one = host.out("one");
        host.alone(&one, &[], &[]).ok();
        assert!(
            result(&out).state.1 == result(&one).state.1,
            "the states differ"
        );
    }
}

#[test]
fn the_plan_shows_what_a_card_holds_for_other_ranks() {
    let plan = |variables: Variables<'_>| -> serde_json::Value {
        let mut command =
            crate::cli_common::paragon(&["plan", "--device", "cuda", "--ranks", "4", "--json"]);
        command.env_remove("PARAGON_NCCL");
        let output = command.envs(variables.iter().copied()).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let bytes = |report: &serde_json::Value, place: &str, row: &str| -> Option<u64> {
        let mut lines = report["memory"]
            .pointer(place)
            .unwrap()
            .as_array()
            .unwrap()
            .iter();
        lines.find(|line| line["what"].as_str().unwrap().contains(row))?["bytes"].as_u64()
    };
    let (with, without) = (plan(&[]), plan(&[("PARAGON_NCCL", "off")]));
    let row = "gradients of other ranks";
    // the sums and the gradients of three other ranks, whole, each at a multiple of 32 values
    let network = paragon::model::Network::new("nano", 2).unwrap();
    let trainable = network.params().trainable();
    let expected = (4 * 4 * trainable.next_multiple_of(32)) as u64;
    let exchanged = bytes(&with, "/step/lines", row).unwrap();
    assert_eq!(exchanged, expected.next_multiple_of(256));
    assert_eq!(bytes(&without, "/step/lines", row), None);
    let arena = |report: &serde_json::Value| report["memory"]["step"]["arena_bytes"].as_u64();
    assert_eq!(arena(&with).unwrap(), arena(&without).unwrap() + exchanged);
    let nccl = bytes(&with, "/device", "NCCL").unwrap();
    assert!(nccl > 100 << 20 && bytes(&with, "/host", "NCCL").is_some());
    assert_eq!(bytes(&without, "/device", "NCCL"), None);
    assert!(bytes(&without, "/host", "exchange of gradients: 4 ranks").unwrap() > exchanged);
    assert!(bytes(&with, "/host", "words of 4 ranks").unwrap() < 4096);
}
