//! A reader that was written from `shards/FORMAT.md` alone, value by value and without code of
//! paragon. If it reads what paragon writes, the description suffices to write other readers.

use crate::shard_common;

use paragon::degrade::Recipe;
use paragon::shard::codec::Codec;
use paragon::shard::plan::BuildConfig;
use paragon::shard::reader::{Crop, ShardSet};
use shard_common::{config, make, picture};
use std::fs;
use std::path::Path;
use std::sync::Arc;

fn int(b: &[u8], at: usize, bytes: usize) -> usize {
    (0..bytes)
        .rev()
        .fold(0, |value, i| value << 8 | usize::from(b[at + i]))
}

/// CRC32 of zip and PNG, bit by bit.
fn crc32(bytes: &[u8]) -> usize {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xEDB8_8320
            } else {
                crc >> 1
            };
        }
    }
    !crc as usize
}

struct Pair {
    image: String,
    left: usize,
    top: usize,
    /// The LQ patches one after the other.
    lq: Vec<u8>,
    hr: Vec<u8>,
}

fn pairs_of(file: &[u8]) -> Vec<Pair> {
    assert_eq!(&file[..8], b"PGNSHARD");
    assert_eq!((int(file, 8, 2), file[28]), (1, 1));
    let lqs = match int(file, 12, 4) {
        0 => 1,
        1 => int(file, 30, 2),
        other => panic!("features {other}"),
    };
    assert_eq!(int(file, 10, 2), usize::from(lqs != 1));
    assert_eq!(crc32(&file[..60]), int(file, 60, 4));
    let (scale, lq_side) = (int(file, 20, 4), int(file, 24, 4));
    let footer = &file[file.len() - 72..];
    assert_eq!(&footer[64..], b"PGNSHEND");
    assert_eq!(
        (crc32(&footer[..60]), int(footer, 32, 8)),
        (int(footer, 60, 4), file.len())
    );
    let (records, images) = (int(footer, 0, 8), int(footer, 8, 8));
    let (table, index) = (
        &file[int(footer, 16, 8)..int(footer, 24, 8)],
        &file[int(footer, 24, 8)..file.len() - 72],
    );
    assert_eq!(
        (crc32(table), crc32(index), index.len()),
        (int(footer, 40, 4), int(footer, 44, 4), records * 32)
    );
    let mut expected = 64;
    let mut out = Vec::new();
    for entry in index.chunks_exact(32) {
        let (start, length) = (int(entry, 0, 8), int(entry, 8, 4));
        assert_eq!(start, expected);
        expected += length;
        let record = &file[start..start + length];
        assert_eq!(crc32(record), int(entry, 12, 4));
        let source = &table[int(entry, 16, 4) * 32..];
        let names = &table[images * 32..];
        let image =
            String::from_utf8(names[int(source, 0, 4)..][..int(source, 4, 4)].to_vec()).unwrap();
        let hr_side = lq_side * scale;
        let (lq, hr) = match entry[28] {
            0 => (
                record[..lqs * lq_side * lq_side * 3].to_vec(),
                record[lqs * lq_side * lq_side * 3..].to_vec(),
            ),
            1 => unpredict(record, lqs, lq_side, hr_side),
            other => panic!("codec {other}"),
        };
        assert_eq!(
            (lq.len(), hr.len()),
            (lqs * lq_side * lq_side * 3, hr_side * hr_side * 3)
        );
        out.push(Pair {
            image,
            left: int(entry, 20, 4),
            top: int(entry, 24, 4),
            lq,
            hr,
        });
    }
    assert_eq!(expected, int(footer, 16, 8));
    out
}

/// A patch in bands.
struct Bands {
    side: usize,
    rows: usize,
}

impl Bands {
    fn plane(&self) -> usize {
        self.rows * self.side * 16
    }

    /// Offset of a pixel in a plane.
    fn at(&self, y: usize, x: usize) -> usize {
        (y % self.rows * self.side + x) * 16 + y / self.rows
    }
}

fn unpredict(record: &[u8], lqs: usize, lq_side: usize, hr_side: usize) -> (Vec<u8>, Vec<u8>) {
    let rows = lq_side.div_ceil(16);
    let lq_bands = Bands {
        side: lq_side,
        rows,
    };
    let hr_bands = Bands {
        side: hr_side,
        rows: rows * (hr_side / lq_side),
    };
    let lengths = lqs.max(1).div_ceil(4) * 4;
    let mut at = lengths + 4 * (3 + lqs);
    let mut frame = |i: usize, size: usize| {
        let length = int(record, lengths + 4 * i, 4);
        at += length;
        zstd::bulk::decompress(&record[at - length..at], size).unwrap()
    };
    let residuals: Vec<u8> = (0..3).flat_map(|i| frame(i, hr_bands.plane())).collect();
    let lq_residuals: Vec<Vec<u8>> = (0..lqs)
        .map(|i| frame(3 + i, 3 * lq_bands.plane()))
        .collect();
    assert_eq!(at, record.len());
    let hr = inside(&residuals, &hr_bands);
    let lq = lq_residuals.iter().enumerate();
    let lq = lq.flat_map(|(i, residuals)| match record[i] {
        0 => inside(residuals, &lq_bands),
        way => from_hr(residuals, &lq_bands, way, &hr, hr_side),
    });
    (lq.collect(), hr)
}

/// Decodes a patch by itself: every value is its residual plus a prediction from its neighbours.
fn inside(residuals: &[u8], bands: &Bands) -> Vec<u8> {
    let side = bands.side;
    let mut out = vec![0; side * side * 3];
    let mut values = vec![[0i32; 3]; side * side];
    for y in 0..side {
        for x in 0..side {
            for p in 0..3 {
                let value = |y: usize, x: usize| values[y * side + x][p];
                let guess = match (y % bands.rows, x) {
                    (0, 0) => 128,
                    (0, _) => value(y, x - 1),
                    (_, 0) => value(y - 1, x),
                    _ => {
                        let (l, u, c) = (value(y, x - 1), value(y - 1, x), value(y - 1, x - 1));
                        l.min(u).max(l.max(u).min(l + u - c))
                    }
                };
                values[y * side + x][p] =
                    (guess + i32::from(residuals[p * bands.plane() + bands.at(y, x)])) & 255;
            }
            let [g, b, r] = values[y * side + x];
            let pixel = &mut out[(y * side + x) * 3..][..3];
            pixel.copy_from_slice(&[(r + g - 128) as u8, g as u8, (b + g - 128) as u8]);
        }
    }
    out
}

/// The LQ predicted from the HR.
fn from_hr(planes: &[u8], bands: &Bands, way: u8, hr: &[u8], hr_side: usize) -> Vec<u8> {
    let (side, scale) = (bands.side, hr_side / bands.side);
    let value = |y: usize, x: usize, c: usize| i64::from(hr[(y * hr_side + x) * 3 + c]);
    let weights = [-3, -9, 29, 111, 111, 29, -9, -3];
    let held = |at: usize, i: usize| (2 * at + i).saturating_sub(3).min(hr_side - 1);
    let filtered = |sum: i64| ((sum + 128) >> 8).clamp(0, 255);
    let mut out = vec![0; side * side * 3];
    for y in 0..side {
        for x in 0..side {
            let guess: [i64; 3] = std::array::from_fn(|c| match way {
                1 => {
                    let area = (scale * scale) as i64;
                    let sum: i64 = (0..scale * scale)
                        .map(|i| value(y * scale + i / scale, x * scale + i % scale, c))
                        .sum();
                    (sum + area / 2) / area
                }
                2 => {
                    assert_eq!(scale, 2);
                    let column = |row: usize| {
                        filtered((0..8).map(|i| weights[i] * value(row, held(x, i), c)).sum())
                    };
                    filtered((0..8).map(|i| weights[i] * column(held(y, i))).sum())
                }
                other => panic!("way {other}"),
            });
            let d = |p: usize| i64::from(planes[p * bands.plane() + bands.at(y, x)]);
            let (green, blue, red) = (d(0), d(0) + d(1), d(0) + d(2));
            for (c, d) in [red, green, blue].into_iter().enumerate() {
                out[(y * side + x) * 3 + c] = (guess[c] + d) as u8;
            }
        }
    }
    out
}

/// Reads a set with paragon and with the reader above; returns the ways in which the LQ were
/// predicted.
fn compare(folder: &Path) {
    let set = ShardSet::open(folder).unwrap();
    let mut scratch = set.scratch().unwrap();
    let one = set.geometry().lq_bytes();
    let (mut lq, mut hr) = (
        vec![0; one * usize::from(set.lqs())],
        vec![0; set.geometry().hr_bytes()],
    );
    let whole = Crop {
        x: 0,
        y: 0,
        size: set.lq_size() as usize,
    };
    let mut record = 0;
    for number in 0.. {
        let Ok(file) = fs::read(folder.join(format!("shard-{number:05}.psh"))) else {
            break;
        };
        for pair in pairs_of(&file) {
            set.read_part(record, whole, &mut scratch, None, &mut hr)
                .unwrap();
            for (variant, lq) in lq.chunks_exact_mut(one).enumerate() {
                let lq = Some((variant as u16, lq));
                set.read_part(record, whole, &mut scratch, lq, &mut hr)
                    .unwrap();
            }
            let source = set.source(record).unwrap();
            assert_eq!(
                (source.image, source.x as usize, source.y as usize),
                (pair.image, pair.left, pair.top)
            );
            assert!(
                lq == pair.lq && hr == pair.hr,
                "record {record} of {}",
                folder.display()
            );
            record += 1;
        }
    }
    assert_eq!(record, set.len());
}

#[test]
fn the_description_is_enough_to_read_the_golden_set() {
    compare(&Path::new(env!("CARGO_MANIFEST_DIR")).join("shards/golden"));
}

#[test]
fn the_description_is_enough_to_read_any_set() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // at scale 1: an LQ that is close to its HR, an LQ without noise, and an unrelated one
    let pairs = dir.path().join("pairs");
    for folder in [data.clone(), pairs.join("hr"), pairs.join("lq")] {
        fs::create_dir_all(folder).unwrap();
    }
    for i in 0..3 {
        let name = format!("p{i}.png");
        let hr = picture(150, 130, i);
        hr.save(data.join(&name)).unwrap();
        hr.save(pairs.join("hr").join(&name)).unwrap();
        let lq = match i {
            0 => image::imageops::brighten(&hr, 1),
            1 => image::imageops::blur(&hr, 3.0),
            _ => picture(150, 130, i + 10),
        };
        lq.save(pairs.join("lq").join(&name)).unwrap();
    }
    for (scale, lq_size, codec) in [
        (2, 16, Codec::Predict),
        (2, 35, Codec::Predict),
        (3, 20, Codec::Predict),
        (1, 40, Codec::Raw),
        (1, 37, Codec::Predict),
        (1, 96, Codec::Predict),
    ] {
        let out = dir.path().join(format!("set{scale}-{lq_size}"));
        let data = if scale == 1 { &pairs } else { &data };
        make(&BuildConfig {
            scale,
            lq_size,
            stride: lq_size,
            codec,
            ..config(data, &out)
        })
        .unwrap();
        compare(&out);
    }
    // several LQ patches of an HR patch, or none
    let recipe = "name: x\nsteps: [gaussian_noise: {sigma: [1, 9]}]";
    for (scale, variants, hr_only) in [(1, 2, false), (2, 5, false), (2, 1, true)] {
        for codec in [Codec::Raw, Codec::Predict] {
            let name = format!("set{scale}-{variants}-{hr_only}-{}", codec.name());
            let out = dir.path().join(name);
            make(&BuildConfig {
                scale,
                codec,
                variants,
                hr_only,
                degrade: Some(Arc::new(Recipe::parse(recipe, "x").unwrap())),
                ..config(&data, &out)
            })
            .unwrap();
            compare(&out);
        }
    }
}
