//! Reads a damaged input in every way there is, for the plain fuzzer in `shard_fuzz.rs` and the
//! guided ones in `fuzz/`. For any input the result must be pixels or an error; anything else ends
//! the process.
#![allow(dead_code)] // each fuzz target includes the whole file and uses a part of it

pub mod checkpoint;
pub mod model;
pub mod options;

use paragon::dataset::decode::{self as picture, Limits};
use paragon::shard::codec::{Codec, Crop, Decoder};
use paragon::shard::format::{FOOTER_BYTES, Geometry, HEADER_BYTES, INDEX_ENTRY_BYTES};
use paragon::shard::manifest::{MANIFEST_NAME, Manifest, ShardInfo};
use paragon::shard::reader::ShardSet;
use std::fs;
use std::path::Path;

/// Prefix of a manifest: magic, versions, length, CRC32.
const MANIFEST_PREFIX: usize = 20;

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}

fn put(b: &mut [u8], at: usize, value: u32) {
    b[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Decodes bytes as an image file, in every way there is. `folder` is where the file for the header
/// is written. Returns whether the bytes gave pixels.
pub fn picture(input: &[u8], folder: &Path) -> bool {
    let limits = Limits {
        max_pixels: 1 << 20,
    };
    let path = folder.join("picture");
    fs::write(&path, input).unwrap();
    let header = picture::read_header(&path, &limits);
    let decoded = picture::decode_loaded(&path, input, &limits);
    if let Ok(decoded) = &decoded {
        let header = header.expect("an image that decodes has a header");
        assert_eq!(header.size, decoded.image.dimensions());
        assert!(header.metadata_bytes < 1 << 28);
        decoded
            .notes
            .iter()
            .for_each(|note| assert!(!note.to_string().is_empty()));
        let (again, alpha) = picture::decode_with_alpha(&path, &limits).unwrap();
        assert!(
            again.image == decoded.image
                && alpha.is_none_or(|plane| plane.dimensions() == again.image.dimensions())
        );
    }
    decoded.is_ok()
}

/// Decodes a payload, whole and in part. The first three bytes select scale, LQ size, codec and
/// crop. Returns whether the payload gave pixels.
pub fn decode(input: &[u8]) -> bool {
    let Some((&[a, b, c], payload)) = input.split_first_chunk() else {
        return false;
    };
    let g = Geometry {
        scale: 1 + u32::from(a % 4),
        lq_size: 8 + u32::from(b % 32),
    };
    let codec = if c & 1 == 0 {
        Codec::Predict
    } else {
        Codec::Raw
    };
    let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
    let mut decoder = Decoder::new(g).unwrap();
    let whole = decoder.decode(codec, payload, &mut lq, &mut hr).is_ok();
    let size = 1 + usize::from(c >> 1) % g.lq();
    let most = g.lq() - size;
    let crop = Crop {
        x: usize::from(a >> 2).min(most),
        y: usize::from(b >> 5).min(most),
        size,
    };
    let scaled = size * g.scale as usize;
    let (mut lq_part, mut hr_part) = (vec![0; size * size * 3], vec![0; scaled * scaled * 3]);
    let part = decoder
        .decode_crop(codec, payload, crop, &mut lq_part, &mut hr_part)
        .is_ok();
    assert_eq!(
        whole, part,
        "only one of crop and whole payload can be read"
    );
    if whole {
        let cut = |image: &[u8], width: usize, x: usize, y: usize, size: usize| -> Vec<u8> {
            let rows = image.chunks_exact(width * 3).skip(y).take(size);
            rows.flat_map(|row| row[x * 3..(x + size) * 3].to_vec())
                .collect()
        };
        let scale = g.scale as usize;
        assert!(
            cut(&lq, g.lq(), crop.x, crop.y, size) == lq_part,
            "the LQ crop is not part of the LQ"
        );
        assert!(
            cut(&hr, g.hr(), crop.x * scale, crop.y * scale, scaled) == hr_part,
            "the HR crop is not part of the HR"
        );
    }
    whole
}

/// Corrects every checksum of a damaged shard, as far as its sections can be found, so that the
/// damage gets past the checksums.
pub fn reseal(shard: &mut [u8]) {
    if shard.len() < HEADER_BYTES + FOOTER_BYTES {
        return;
    }
    let header_crc = crc32fast::hash(&shard[..HEADER_BYTES - 4]);
    put(shard, HEADER_BYTES - 4, header_crc);
    let footer = shard.len() - FOOTER_BYTES;
    let (records, sources_at, index_at) = (
        u64_at(shard, footer),
        u64_at(shard, footer + 16),
        u64_at(shard, footer + 24),
    );
    let (Ok(sources_at), Ok(index_at)) = (usize::try_from(sources_at), usize::try_from(index_at))
    else {
        return;
    };
    let index_end = (records as usize)
        .saturating_mul(INDEX_ENTRY_BYTES)
        .saturating_add(index_at);
    if sources_at <= index_at && index_end <= footer {
        for entry in (index_at..index_end).step_by(INDEX_ENTRY_BYTES) {
            let (start, length) = (
                u64_at(shard, entry) as usize,
                u32_at(shard, entry + 8) as usize,
            );
            if let Some(payload) = start
                .checked_add(length)
                .and_then(|end| shard.get(start..end))
            {
                let crc = crc32fast::hash(payload);
                put(shard, entry + 12, crc);
            }
        }
        let (sources, index) = (
            crc32fast::hash(&shard[sources_at..index_at]),
            crc32fast::hash(&shard[index_at..index_end]),
        );
        put(shard, footer + 40, sources);
        put(shard, footer + 44, index);
    }
    let crc = crc32fast::hash(&shard[footer..footer + 60]);
    put(shard, footer + 60, crc);
}

/// Reads a set in every way: pairs, crops, sources. Returns whether all of it was read.
pub fn read_set(folder: &Path) -> bool {
    let Ok(set) = ShardSet::open(folder) else {
        return false;
    };
    let Ok(mut scratch) = set.scratch() else {
        return false;
    };
    let g = set.geometry();
    let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
    let mut good = set.sources().is_ok();
    for record in 0..set.len() {
        good &= set.read(record, &mut scratch, &mut lq, &mut hr).is_ok();
        good &= set.source(record).is_ok();
        good &= set.stored(record).is_ok();
        let size = 1 + record as usize % g.lq();
        let crop = Crop {
            x: g.lq() - size,
            y: (g.lq() - size) / 2,
            size,
        };
        let scaled = size * g.scale as usize;
        let part = set.read_crop(
            record,
            crop,
            &mut scratch,
            &mut lq[..size * size * 3],
            &mut hr[..scaled * scaled * 3],
        );
        good &= part.is_ok();
    }
    good
}

/// Replaces the first shard of a set and writes a manifest that matches it.
pub fn install(folder: &Path, manifest: &Manifest, shard: &[u8]) {
    let path = folder.join("shard-00000.psh");
    let _ = fs::remove_file(&path);
    fs::write(&path, shard).unwrap();
    if let Some(footer) = shard.len().checked_sub(FOOTER_BYTES) {
        let info = ShardInfo {
            records: u64_at(shard, footer),
            sources: u64_at(shard, footer + 8),
            bytes: shard.len() as u64,
            sources_crc: u32_at(shard, footer + 40),
            index_crc: u32_at(shard, footer + 44),
        };
        let _ = fs::remove_file(folder.join(MANIFEST_NAME));
        Manifest {
            shards: vec![info],
            ..manifest.clone()
        }
        .write(folder)
        .unwrap();
    }
}

/// Corrects the checksum and the length of a damaged manifest.
pub fn reseal_manifest(manifest: &mut [u8]) {
    if manifest.len() >= MANIFEST_PREFIX {
        let (length, crc) = (
            (manifest.len() - MANIFEST_PREFIX) as u32,
            crc32fast::hash(&manifest[MANIFEST_PREFIX..]),
        );
        put(manifest, 12, length);
        put(manifest, 16, crc);
    }
}

/// Corrects the checksum of a damaged state, if its head can be found.
pub fn reseal_state(state: &mut Vec<u8>) {
    let Some((length, rest)) = state.split_first_chunk() else {
        return;
    };
    let Some(header) = usize::try_from(u64::from_le_bytes(*length))
        .ok()
        .and_then(|n| rest.get(..n))
    else {
        return;
    };
    let data = &rest[header.len()..];
    let Ok(mut tree) = serde_json::from_slice::<serde_json::Value>(header) else {
        return;
    };
    let mut hasher = crc32fast::Hasher::new();
    for name in ["parameters", "moment1", "moment2", "ema"] {
        let offset = |i: usize| tree[name]["data_offsets"][i].as_u64().map(|at| at as usize);
        let (Some(start), Some(end)) = (offset(0), offset(1)) else {
            return;
        };
        let Some(bytes) = data.get(start..end) else {
            return;
        };
        hasher.update(bytes);
    }
    let Some(head) = tree["__metadata__"]["paragon_state"].as_str() else {
        return;
    };
    let Some(at) = head.rfind(",\"crc32\":") else {
        return;
    };
    let before = head[..at + 9].to_string();
    hasher.update(before.as_bytes());
    hasher.update(b"0}");
    tree["__metadata__"]["paragon_state"] = format!("{before}{}}}", hasher.finalize()).into();
    let mut header = tree.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    *state = [&(header.len() as u64).to_le_bytes()[..], &header, data].concat();
}

/// Reads bytes as the state of a run, from memory and from a file. Returns whether they are one.
pub fn read_state(bytes: &[u8]) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = paragon::train::state_path(dir.path(), 1);
    fs::create_dir(dir.path().join("states")).unwrap();
    fs::write(&path, bytes).unwrap();
    let whole = paragon::train::State::from_bytes(bytes).is_ok();
    let file = paragon::train::State::read(&path).is_ok();
    assert!(
        whole || !file,
        "the file is accepted, but its bytes are not"
    );
    assert_eq!(
        paragon::train::newest_state(dir.path())
            .unwrap()
            .0
            .is_some(),
        file
    );
    file
}

/// Reads bytes as the log of a run; returns the number of its lines.
pub fn read_log(bytes: &[u8]) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("log.jsonl"), bytes).unwrap();
    let digest = paragon::train::read_log(dir.path()).unwrap().unwrap();
    assert_eq!(digest.count == 0, digest.lines.is_empty());
    // A log that is opened by a resumed run keeps the lines of the iterations that are done, and
    // they can be read again.
    paragon::train::Log::open(dir.path(), u64::MAX).unwrap();
    assert_eq!(
        paragon::train::read_log(dir.path()).unwrap().unwrap().count,
        digest.count
    );
    digest.count
}
