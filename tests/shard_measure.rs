//! Not a check but a measurement, run by hand: size and speed of the codec on photographs, beside PNG in the same run.
//! `cargo test --release --test shard_measure -- --ignored --nocapture --test-threads 1`

mod shard_common;

use image::codecs::png::{CompressionType, FilterType, PngDecoder, PngEncoder};
use image::{ExtendedColorType, ImageDecoder, ImageEncoder, RgbImage, imageops};
use paragon::shard::codec::{Codec, Decoder, Encoder};
use paragon::shard::format::Geometry;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn shared() -> PathBuf {
    std::env::var_os("PARAGON_SHARED").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from)
}

/// Pairs cut from the middle of every photograph.
fn pairs(g: Geometry) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let folder = shared().join("datasets/bsds300/hr");
    let mut files: Vec<_> = std::fs::read_dir(&folder).ok()?.map(|e| e.unwrap().path()).collect();
    files.sort();
    let cut = |path: &PathBuf| {
        let photo = image::open(path).unwrap().to_rgb8();
        let size = g.hr() as u32;
        let (x, y) = ((photo.width() - size) / 2, (photo.height() - size) / 2);
        let hr: RgbImage = imageops::crop_imm(&photo, x, y, size, size).to_image();
        let lq = imageops::resize(&hr, g.lq_size, g.lq_size, imageops::FilterType::CatmullRom);
        (lq.into_raw(), hr.into_raw())
    };
    Some(files.iter().map(cut).collect())
}

/// The best of three runs over all pairs.
fn best(mut f: impl FnMut()) -> Duration {
    (0..3)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed()
        })
        .min()
        .unwrap()
}

#[test]
#[ignore = "a measurement; run it by name"]
fn codec_on_photographs() {
    let g = Geometry { scale: 2, lq_size: 128 };
    let Some(pairs) = pairs(g) else {
        println!("SKIP codec_on_photographs: no shared photographs (set PARAGON_SHARED)");
        return;
    };
    let raw: usize = pairs.iter().map(|(l, h)| l.len() + h.len()).sum();
    let report = |name: &str, bytes: usize, encode: Duration, decode: Duration| {
        let speed = |t: Duration| raw as f64 / 1e6 / t.as_secs_f64();
        println!(
            "{name:10} {:8.0} bytes a pair  {:.4} of raw  encode {:6.0} MB/s  decode {:6.0} MB/s  {:6.0} pairs/s",
            bytes as f64 / pairs.len() as f64,
            bytes as f64 / raw as f64,
            speed(encode),
            speed(decode),
            pairs.len() as f64 / decode.as_secs_f64()
        );
    };
    println!("{} pairs, {:.1} MB raw, one thread, best of 3", pairs.len(), raw as f64 / 1e6);
    for codec in [Codec::Raw, Codec::Predict] {
        let mut encoder = Encoder::new(g).unwrap();
        let mut payloads = vec![Vec::new(); pairs.len()];
        let encode = best(|| {
            for ((lq, hr), out) in pairs.iter().zip(&mut payloads) {
                out.clear();
                encoder.encode(codec, lq, hr, out).unwrap();
            }
        });
        let mut decoder = Decoder::new(g).unwrap();
        let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
        let decode = best(|| {
            for payload in &payloads {
                let used = if payload.len() == lq.len() + hr.len() { Codec::Raw } else { Codec::Predict };
                decoder.decode(used, payload, &mut lq, &mut hr).unwrap();
            }
        });
        report(codec.name(), payloads.iter().map(Vec::len).sum(), encode, decode);
    }
    let png = |pixels: &[u8], size: usize| {
        let mut out = Vec::new();
        PngEncoder::new_with_quality(&mut out, CompressionType::Level(6), FilterType::Adaptive)
            .write_image(pixels, size as u32, size as u32, ExtendedColorType::Rgb8)
            .unwrap();
        out
    };
    let start = Instant::now();
    let files: Vec<_> = pairs.iter().map(|(l, h)| (png(l, g.lq()), png(h, g.hr()))).collect();
    let encode = start.elapsed();
    let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
    let decode = best(|| {
        for (l, h) in &files {
            PngDecoder::new(std::io::Cursor::new(l)).unwrap().read_image(&mut lq).unwrap();
            PngDecoder::new(std::io::Cursor::new(h)).unwrap().read_image(&mut hr).unwrap();
        }
    });
    report("png-6", files.iter().map(|(l, h)| l.len() + h.len()).sum(), encode, decode);
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
        let sizes = BuildConfig { lq_size: 128, stride: 128, shard_bytes: 512 << 20, ..shard_common::config(&data, &out) };
        let report = shard_common::make(&BuildConfig { codec, host_memory: 2 << 30, ..sizes }).unwrap();
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
            let config = LoaderConfig { threads, slots: 6, ..LoaderConfig::new(16, lq_size, 1) };
            let bound = bound(&set.clone().into(), &config).unwrap();
            let mut loader = Loader::start(paragon::loader::Sources::from(set.clone()), config).unwrap();
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
