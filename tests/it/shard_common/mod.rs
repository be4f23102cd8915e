//! Helpers for the tests of shards and loader: small images and small sets, made in a temporary
//! folder.

#[cfg(target_os = "linux")]
pub mod faults;

use image::{Rgb, RgbImage};
use paragon::shard::codec::Codec;
use paragon::shard::plan::{BuildConfig, plan};
use paragon::shard::report::Report;
use paragon::shard::writer::build;
use paragon::support::progress::Progress;
use paragon::support::rng::Rng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// An image with slopes, edges and noise.
pub fn picture(width: u32, height: u32, seed: u64) -> RgbImage {
    let mut rng = Rng::new(&[seed]);
    let (a, b, edge) = (
        rng.below(7) as u32,
        rng.below(5) as u32,
        rng.below(u64::from(width)) as u32,
    );
    RgbImage::from_fn(width, height, |x, y| {
        let base = x * a + y * b + if x > edge { 90 } else { 0 } + rng.below(6) as u32;
        Rgb([base as u8, (base / 2) as u8, (base + 40) as u8])
    })
}

/// Writes `count` PNG images of different sizes (at least 40 x 40) into `folder`.
pub fn pictures(folder: &Path, count: u64) {
    std::fs::create_dir_all(folder).unwrap();
    for i in 0..count {
        let mut rng = Rng::new(&[77, i]);
        let (w, h) = (40 + rng.below(60) as u32, 40 + rng.below(60) as u32);
        picture(w, h, i)
            .save(folder.join(format!("p{i:03}.png")))
            .unwrap();
    }
}

/// LQ 16, HR 32, shards of 64 KiB.
pub fn config(dataset: &Path, out: &Path) -> BuildConfig {
    BuildConfig {
        threads: 2,
        shard_bytes: 64 << 10,
        host_memory: 1 << 30,
        ..BuildConfig::new(dataset, out, 2, 16)
    }
}

/// Makes a set.
pub fn make(config: &BuildConfig) -> anyhow::Result<Report> {
    build(config, plan(config)?, &Progress::hidden())
}

/// A temporary folder with `images` images in `data` and their set in `set`.
pub fn small_set(images: u64, codec: Codec) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, images);
    make(&BuildConfig {
        codec,
        ..config(&data, &out)
    })
    .unwrap();
    (dir, out)
}

/// Every file of a folder by name, without those of the folders in it.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    entries
        .filter(|e| !e.path().is_dir())
        .map(|e| {
            (
                e.file_name().into_string().unwrap(),
                std::fs::read(e.path()).unwrap(),
            )
        })
        .collect()
}

/// The `paragon` command.
pub fn paragon(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paragon"));
    command.args(arguments);
    command
}

/// Runs `paragon`; returns exit code, stdout and stderr.
pub fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = paragon(arguments).output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Makes a read-only file writable, so that a test can damage it.
pub fn make_writable(path: &Path) {
    paragon::sys::make_writable(path).unwrap();
}
