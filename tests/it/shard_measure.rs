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

/// Bytes of restoration pairs whose LQ is a JPEG file of the HR: the HR and the LQ stored by
/// themselves, and as the codec stores the pair.
#[test]
#[ignore = "a measurement; run it by name"]
fn restoration_pairs_of_photographs() {
    use image::codecs::jpeg::JpegEncoder;
    use paragon::shard::codec::Encoder;
    use paragon::shard::format::Geometry;
    let data = shared().join("datasets/bsds300/hr");
    if !data.is_dir() {
        println!(
            "SKIP restoration_pairs_of_photographs: no shared photographs (set PARAGON_SHARED)"
        );
        return;
    }
    let mut paths: Vec<_> = std::fs::read_dir(&data)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    for side in [128u32, 256] {
        let geometry = Geometry::new(1, side).unwrap();
        let mut encoder = Encoder::new(geometry).unwrap();
        println!(
            "side {side}: quality, LQ predicted from HR, HR, LQ alone, LQ of the pair, pair / both alone, / raw"
        );
        for quality in [10, 30, 50, 75, 90, 95, 98, 100] {
            let (mut hr_bytes, mut alone, mut of_pair, mut from_hr, mut count) = (0, 0, 0, 0, 0);
            for path in paths.iter().step_by(6) {
                let hr = image::open(path).unwrap().to_rgb8();
                let mut jpeg = Vec::new();
                let writer = JpegEncoder::new_with_quality(&mut jpeg, quality);
                hr.write_with_encoder(writer).unwrap();
                let lq = image::load_from_memory(&jpeg).unwrap().to_rgb8();
                let patch = |image: &image::RgbImage| {
                    let (x, y) = ((image.width() - side) / 2, (image.height() - side) / 2);
                    image::imageops::crop_imm(image, x, y, side, side)
                        .to_image()
                        .into_raw()
                };
                let (lq, hr) = (patch(&lq), patch(&hr));
                let mut encode = |lq: &[u8], hr: &[u8]| {
                    let mut payload = Vec::new();
                    encoder
                        .encode(Codec::Predict, lq, hr, &mut payload)
                        .unwrap();
                    let lengths: Vec<usize> = payload[4..20]
                        .chunks_exact(4)
                        .map(|b| u32::from_le_bytes(b.try_into().unwrap()) as usize)
                        .collect();
                    (payload[0], lengths[..3].iter().sum::<usize>(), lengths[3])
                };
                let (mode, hr_frames, lq_frame) = encode(&lq, &hr);
                hr_bytes += hr_frames;
                of_pair += lq_frame;
                alone += encode(&hr, &lq).1;
                from_hr += usize::from(mode != 0);
                count += 1;
            }
            let pair = (hr_bytes + of_pair) as f64;
            println!(
                "{quality:3} {from_hr:3}/{count} {:7} {:7} {:7} {:.3} {:.3}",
                hr_bytes / count,
                alone / count,
                of_pair / count,
                pair / (hr_bytes + alone) as f64,
                pair / (count * geometry.hr_bytes() * 2) as f64,
            );
        }
    }
}
