//! Not a check but a measurement that is run by hand: conversion and loader on photographs
//! (`benches/codec.rs` measures the codec by itself). `cargo test --release --test it shard_measure
//! -- --ignored --nocapture --test-threads 1`

use crate::shard_common;

use paragon::shard::codec::Codec;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn shared() -> PathBuf {
    std::env::var_os("PARAGON_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    )
}

#[test]
#[ignore = "a measurement; run it by name"]
fn loader_on_photographs() {
    use paragon::loader::{Loader, LoaderConfig, bound};
    use paragon::shard::plan::BuildConfig;
    use paragon::shard::reader::ShardSet;
    use std::sync::Arc;
    let data = shared().join("datasets/bsds300/hr");
    if !data.is_dir() {
        println!("SKIP loader_on_photographs: no shared photographs (set PARAGON_SHARED)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for codec in [Codec::Raw, Codec::Predict] {
        let out = dir.path().join(codec.name());
        let sizes = BuildConfig {
            lq_size: 128,
            stride: 128,
            shard_bytes: 512 << 20,
            ..shard_common::config(&data, &out)
        };
        let report = shard_common::make(&BuildConfig {
            codec,
            host_memory: 2 << 30,
            ..sizes
        })
        .unwrap();
        println!(
            "{}: {} pairs, {:.4} of raw, made in {:.2} s ({:.0} pairs/s)",
            codec.name(),
            report.pairs,
            report.ratio,
            report.seconds,
            report.pairs_per_second
        );
        let set = Arc::new(ShardSet::open(&out).unwrap());
        for (threads, lq_size) in [(1, 128), (2, 128), (1, 96)] {
            let config = LoaderConfig {
                threads,
                slots: 6,
                ..LoaderConfig::new(16, lq_size, 1)
            };
            let bound = bound(&set.clone().into(), &config).unwrap();
            let mut loader =
                Loader::start(paragon::loader::Sources::from(set.clone()), config).unwrap();
            loader.next().unwrap();
            let (mut batches, start) = (0, Instant::now());
            while start.elapsed() < Duration::from_secs(2) {
                loader.next().unwrap();
                batches += 1;
            }
            let rate = f64::from(batches) * 16.0 / start.elapsed().as_secs_f64();
            println!(
                "  {threads} threads, LQ {lq_size}: {rate:6.0} pairs/s; bound {:.1} MiB; {:?}",
                bound.total() as f64 / (1 << 20) as f64,
                loader.stats()
            );
        }
    }
}
