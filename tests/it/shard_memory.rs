//! `paragon shard` stays within `--host-memory` for a collection of very small and very large
//! images, with any number of threads.
#![cfg(target_os = "linux")]

use crate::shard_common;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use shard_common::{paragon, picture};
use std::fs;
use std::path::Path;
use std::process::Stdio;

const MIB: u64 = 1 << 20;
/// Bytes that are not counted in `--host-memory`: the program, the encoders of its threads, buffers
/// of writers, and the allocator's reserve.
const CONSTANT: u64 = 48 * MIB;

/// A PNG of repeating rows, written without a second copy in memory.
fn large(path: &Path, width: u32, height: u32, shift: u8) {
    let row: Vec<u8> = (0..width)
        .flat_map(|x| [(x / 16) as u8, (x / 40) as u8, (x / 7) as u8])
        .collect();
    let mut pixels = Vec::with_capacity(row.len() * height as usize);
    for y in 0..height {
        let start = pixels.len();
        pixels.extend_from_slice(&row);
        pixels[start..start + 300].fill((y as u8).wrapping_add(shift));
    }
    let out = std::io::BufWriter::new(fs::File::create(path).unwrap());
    let encoder = PngEncoder::new_with_quality(out, CompressionType::Fast, FilterType::Sub);
    encoder
        .write_image(&pixels, width, height, ExtendedColorType::Rgb8)
        .unwrap();
}

/// Runs to the end; returns the largest anonymous memory in bytes, and the report.
fn measured(arguments: &[&str]) -> (u64, serde_json::Value) {
    let mut child = paragon(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let kb: Option<u64> = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
        most = most.max(kb.unwrap_or(0) * 1024);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    (most, serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn the_memory_bound_holds_for_tiny_and_huge_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    fs::create_dir(&data).unwrap();
    for i in 0..60 {
        picture(64, 64, i)
            .save(data.join(format!("a{i:02}.png")))
            .unwrap();
        picture(64, 64, 100 + i)
            .save(data.join(format!("n{i:02}.png")))
            .unwrap();
    }
    large(&data.join("m_huge.png"), 12_000, 9_000, 0);
    for i in 0..6u32 {
        large(&data.join(format!("l{i}.png")), 2000 + i, 1500, i as u8);
    }
    for (limit, threads, fits) in [(1200, "1", true), (1200, "2", true), (200, "2", false)] {
        let limit_text = format!("{limit}M");
        let base = [
            "shard",
            data.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
            "--overwrite",
            "--keep-duplicates",
            "--json",
        ];
        let (most, report) = measured(
            &[
                &base[..],
                &[
                    "--lq-size",
                    "32",
                    "--host-memory",
                    &limit_text,
                    "--threads",
                    threads,
                ],
            ]
            .concat(),
        );
        println!(
            "--host-memory {limit} MiB, {threads} thread(s): at most {} MiB anonymous",
            most / MIB
        );
        assert!(
            most > 20 * MIB && most <= limit * MIB + CONSTANT,
            "{} MiB of {limit}",
            most / MIB
        );
        let rejected = report["rejected"].as_array().unwrap();
        assert!(report["memory_in_flight"].as_u64().unwrap() <= limit * MIB);
        if fits {
            assert!(rejected.is_empty(), "{rejected:?}");
        } else {
            assert_eq!(rejected.len(), 1);
            let (file, reason) = (
                rejected[0]["file"].as_str().unwrap(),
                rejected[0]["reason"].as_str().unwrap(),
            );
            assert!(
                file.ends_with("m_huge.png")
                    && reason.contains("12000x9000")
                    && reason.contains("--host-memory"),
                "{reason}"
            );
        }
    }
}
