//! The CUDA backend from the flag to the kernel on a machine without a GPU: a driver made of fibers stands in for libcuda. Its streams run as
//! late as they may, so missing waits show.

mod cli_common;
mod kernels_common;
mod shard_common;

use cli_common::{paragon, text};
use kernels_common::driver;
use shard_common::{config, make, pictures};
use std::path::Path;
use std::process::Output;

/// Runs the program with the stand-in driver; more variables describe the card.
fn with_driver(args: &[&str], card: &[(&str, &str)]) -> Option<Output> {
    let folder = driver()?;
    let mut command = paragon(args);
    command.env("LD_LIBRARY_PATH", folder);
    command.envs(card.iter().copied());
    Some(command.output().unwrap())
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn set(dir: &Path) -> std::path::PathBuf {
    let (data, set) = (dir.join("data"), dir.join("set"));
    pictures(&data, 3);
    make(&config(&data, &set)).unwrap();
    set
}

#[test]
fn a_card_that_cannot_be_used_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (set, out) = (set(dir.path()), dir.path().join("run"));
    let train =
        ["train", "--shards", text(&set), "--out", text(&out), "--iterations", "1", "--lq-size", "16", "--batch-size", "2", "--device"];
    let cases: [(&str, &[(&str, &str)], &[&str]); 6] = [
        ("cuda:3", &[], &["cuda:3", "finds 1"]),
        ("cuda", &[("FAKE_CUDA_DEVICES", "0")], &["finds no device", "--device cpu"]),
        ("cuda", &[("FAKE_CUDA_CAPABILITY", "61")], &["sm_61", "sm_75"]),
        ("cuda", &[("FAKE_CUDA_DRIVER", "11040")], &["11.4", "12.1", "530"]),
        ("cuda", &[("FAKE_CUDA_MEMORY", "300000000")], &["device memory"]),
        ("gpu", &[], &["no device", "cuda:N"]),
    ];
    for (device, card, words) in cases {
        let Some(output) = with_driver(&[&train[..], &[device]].concat(), card) else { return };
        let said = said(&output);
        assert_eq!(output.status.code(), Some(if device == "gpu" { 2 } else { 1 }), "{said}");
        assert!(words.iter().all(|w| said.contains(w)) && !said.contains("panicked"), "{card:?}: {said}");
    }
    let Some(output) = with_driver(&[&train[..], &["cuda", "--precision", "bf16"]].concat(), &[("FAKE_CUDA_CAPABILITY", "75")]) else {
        return;
    };
    assert!(output.status.code() == Some(1) && said(&output).contains("has no bf16"), "{}", said(&output));
}
