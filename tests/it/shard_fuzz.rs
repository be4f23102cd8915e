//! Thousands of damaged payloads, shards and manifests, from a seeded generator:
//! `PARAGON_FUZZ_SECONDS=600 PARAGON_FUZZ_SEED=7 cargo test --release --test it shard_fuzz --
//! --nocapture`. Without the variables it runs for a short time with seed 1. The guided fuzzers in
//! `fuzz/` choose the inputs of the same checks by coverage.

use crate::{fuzz_common, shard_common};

use fuzz_common::{decode, install, read_set, reseal, reseal_manifest};
use paragon::shard::codec::{Codec, Encoder};
use paragon::shard::format::Geometry;
use paragon::shard::manifest::{MANIFEST_NAME, Manifest};
use paragon::shard::plan::BuildConfig;
use paragon::support::rng::Rng;
use shard_common::{config, make, picture};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

/// Values that often cause errors in lengths and offsets.
const EDGES: [u64; 12] = [
    0,
    1,
    2,
    7,
    8,
    64,
    255,
    1 << 16,
    1 << 24,
    1 << 31,
    u32::MAX as u64,
    u64::MAX,
];

/// Makes one to eight changes of any kind.
fn damage(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + rng.below(8) {
        if bytes.is_empty() {
            bytes.push(0);
        }
        let mut at = rng.below(bytes.len() as u64) as usize;
        // The structure is described at both ends.
        match rng.below(4) {
            0 => at = at.min(rng.below(100) as usize),
            1 => at = bytes.len() - 1 - rng.below(bytes.len().min(200) as u64) as usize,
            _ => {}
        }
        let length = 1 + rng.below((bytes.len() - at).min(40) as u64) as usize;
        let length = length.min(bytes.len() - at);
        match rng.below(9) {
            0 | 1 => bytes[at] ^= 1 << rng.below(8),
            2 => bytes[at] = rng.next_u64() as u8,
            3 | 4 => {
                let edge = EDGES[rng.below(EDGES.len() as u64) as usize]
                    .wrapping_add(rng.below(3))
                    .wrapping_sub(1);
                let wide = [1, 2, 4, 8][rng.below(4) as usize].min(bytes.len() - at);
                bytes[at..at + wide].copy_from_slice(&edge.to_le_bytes()[..wide]);
            }
            5 => drop(bytes.drain(at..at + length)),
            6 => {
                let copy = bytes[at..at + length].to_vec();
                bytes.splice(at..at, copy);
            }
            7 => bytes.truncate(at),
            _ => {
                let from = rng.below(other.len() as u64) as usize;
                let part = &other[from..(from + length).min(other.len())];
                bytes.splice(at..at + length, part.iter().copied());
            }
        }
    }
}

/// Payloads, each after the three bytes that select the geometry in [`decode`].
fn payloads() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (scale, lq_size) in [(2u8, 8u8), (2, 17), (1, 9), (3, 12), (4, 33)] {
        let g = Geometry {
            scale: scale.into(),
            lq_size: lq_size.into(),
        };
        let mut encoder = Encoder::new(g).unwrap();
        for kind in 0..4 {
            let hr = if kind == 3 {
                image::RgbImage::new(g.hr() as u32, g.hr() as u32)
            } else {
                picture(g.hr() as u32, g.hr() as u32, kind)
            };
            let lq = if kind == 1 {
                picture(g.lq_size, g.lq_size, 9)
            } else {
                image::imageops::resize(
                    &hr,
                    g.lq_size,
                    g.lq_size,
                    image::imageops::FilterType::Triangle,
                )
            };
            let mut out = vec![scale - 1, lq_size - 8, 0];
            let used = encoder
                .encode(Codec::Predict, lq.as_raw(), hr.as_raw(), &mut out)
                .unwrap();
            out[2] = u8::from(used == Codec::Raw) | 10;
            assert!(decode(&out), "an undamaged payload must be read");
            all.push(out);
        }
    }
    all
}

/// A folder in memory if the system has one, because every run writes files.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// A set of one shard, its manifest and the shard's bytes.
fn seed_set(root: &Path, codec: Codec, lq_size: u32) -> (PathBuf, Manifest, Vec<u8>) {
    let (data, out) = (
        root.join(format!("data{lq_size}")),
        root.join(format!("set-{}-{lq_size}", codec.name())),
    );
    fs::create_dir_all(&data).unwrap();
    for i in 0..3 {
        picture(2 * lq_size * 2 + 5, 2 * lq_size + 3, i)
            .save(data.join(format!("{i}.png")))
            .unwrap();
    }
    make(&BuildConfig {
        lq_size,
        stride: lq_size,
        codec,
        shard_bytes: 1 << 20,
        ..config(&data, &out)
    })
    .unwrap();
    let shard = fs::read(out.join("shard-00000.psh")).unwrap();
    (out.clone(), Manifest::read(&out).unwrap(), shard)
}

#[test]
fn damage_of_any_kind_gives_pixels_or_an_error() {
    let limit = Duration::from_secs(variable("PARAGON_FUZZ_SECONDS", 4));
    let mut rng = Rng::new(&[variable("PARAGON_FUZZ_SEED", 1)]);
    let payloads = payloads();
    let root = folder();
    let sets: Vec<_> = [(Codec::Predict, 8), (Codec::Predict, 13), (Codec::Raw, 8)]
        .map(|(c, s)| seed_set(root.path(), c, s))
        .into();
    // For each kind of input: the number of runs, and of inputs that were read to the end.
    let mut counts = [(0u64, 0u64); 4];
    let start = Instant::now();
    while start.elapsed() < limit {
        for _ in 0..20 {
            let mut payload = payloads[rng.below(payloads.len() as u64) as usize].clone();
            let other = &payloads[rng.below(payloads.len() as u64) as usize];
            damage(&mut rng, &mut payload, other);
            counts[0].0 += 1;
            counts[0].1 += u64::from(decode(&payload));
        }
        let (folder, manifest, shard) = &sets[rng.below(sets.len() as u64) as usize];
        let other = &sets[rng.below(sets.len() as u64) as usize].2;
        let mut damaged = shard.clone();
        damage(&mut rng, &mut damaged, other);
        // Without corrected checksums, every change must be found.
        install(folder, manifest, shard);
        fs::remove_file(folder.join("shard-00000.psh")).unwrap();
        fs::write(folder.join("shard-00000.psh"), &damaged).unwrap();
        counts[1].0 += 1;
        assert!(
            damaged == *shard || !read_set(folder),
            "damage was not found; run {}",
            counts[1].0
        );
        reseal(&mut damaged);
        install(folder, manifest, &damaged);
        counts[2].0 += 1;
        counts[2].1 += u64::from(read_set(folder));
        install(folder, manifest, shard);
        let mut bytes = fs::read(folder.join(MANIFEST_NAME)).unwrap();
        damage(&mut rng, &mut bytes, other);
        reseal_manifest(&mut bytes);
        fs::remove_file(folder.join(MANIFEST_NAME)).unwrap();
        fs::write(folder.join(MANIFEST_NAME), &bytes).unwrap();
        counts[3].0 += 1;
        counts[3].1 += u64::from(read_set(folder));
    }
    for (name, (runs, good)) in [
        "payloads",
        "shards",
        "shards, resealed",
        "manifests, resealed",
    ]
    .iter()
    .zip(counts)
    {
        println!("{name:20} {runs:9} runs, {good:9} read to the end");
    }
    assert!(counts.iter().all(|c| c.0 > 0) && counts[0].1 > 0 && counts[2].1 > 0);
}
