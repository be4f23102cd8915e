//! Event files that TensorBoard reads: scalars over iterations. Depends on `crc32c` alone. Promises records that are whole or, after a
//! crash, recognisably cut: every one has its length and its content under a checksum.
//!
//! A file is a sequence of records (TFRecord: length, masked CRC-32C of the length, content, masked CRC-32C of the content), each a protobuf
//! message `Event`; only the few fields needed here are written, by hand.

use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Protobuf wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// An event file being written.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a file in `folder` for a run that goes on after `iteration`: TensorBoard then drops what earlier files of the folder say
    /// of later iterations.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(folder: &Path, iteration: u64) -> Result<EventFile> {
        crate::files::create_folder(folder)?;
        let now = now();
        // the name sorts by time, and the process keeps two starts within a second apart
        let path = folder.join(format!("events.out.tfevents.{:010}.{}.paragon", now as u64, std::process::id()));
        let file = OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = EventFile { path, file };
        let mut version = head(now, 0);
        field_bytes(&mut version, 3, b"brain.Event:2");
        events.record(&version)?;
        let mut start = head(now, iteration + 1);
        // SessionLog { status: START }
        field_bytes(&mut start, 7, &[(1 << 3 | VARINT) as u8, 1]);
        events.record(&start)?;
        Ok(events)
    }

    /// Writes named values of an iteration; those that are not finite are left out.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn scalars(&mut self, iteration: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (name, value) in values.iter().filter(|(_, v)| v.is_finite()) {
            let mut entry = Vec::new();
            field_bytes(&mut entry, 1, name.as_bytes());
            varint(&mut entry, 2 << 3 | FIXED32);
            entry.extend_from_slice(&(*value as f32).to_le_bytes());
            field_bytes(&mut summary, 1, &entry);
        }
        let mut event = head(now(), iteration);
        field_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, content: &[u8]) -> Result<()> {
        let length = (content.len() as u64).to_le_bytes();
        let mut out = Vec::with_capacity(content.len() + 16);
        out.extend_from_slice(&length);
        out.extend_from_slice(&masked(&length).to_le_bytes());
        out.extend_from_slice(content);
        out.extend_from_slice(&masked(content).to_le_bytes());
        // one call, so that readers never see half a record of a live run
        self.file.write_all(&out).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// The checksum of TFRecord: CRC-32C, turned and shifted, so that a checksum of checksums is none.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// An event's wall time and step.
fn head(time: f64, step: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, 1 << 3 | FIXED64);
    out.extend_from_slice(&time.to_le_bytes());
    varint(&mut out, 2 << 3 | VARINT);
    varint(&mut out, step);
    out
}

fn field_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    varint(out, number << 3 | BYTES);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        // what the mask is for: a checksum of bytes that hold a checksum is not a fixed value
        let (once, twice) = (masked(b"foo"), masked(&masked(b"foo").to_le_bytes()));
        assert!(once != crc32c::crc32c(b"foo") && twice != once);
    }

    /// Fields of a message: number, and its bytes or number.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7F) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        }
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                VARINT => {
                    out.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                FIXED64 => 8,
                FIXED32 => 4,
                _ => varint(&mut bytes) as usize,
            };
            out.push((key >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        out
    }

    #[test]
    fn records_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(dir.path(), 41).unwrap();
        events.scalars(300, &[("loss", 0.5), ("broken", f64::NAN), ("lr", 2e-4)]).unwrap();
        let bytes = std::fs::read(&events.path).unwrap();
        let mut rest = &bytes[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]).to_le_bytes());
            let content = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked(content).to_le_bytes());
            found.push(fields(content));
            rest = &rest[16 + length..];
        }
        assert_eq!(found[0][2], (3, b"brain.Event:2".to_vec()));
        assert_eq!(found[1][1..], [(2, 42u64.to_le_bytes().to_vec()), (7, vec![8, 1])]);
        assert_eq!(found[2][1], (2, 300u64.to_le_bytes().to_vec()));
        let values: Vec<_> = fields(&found[2][2].1).into_iter().map(|(_, entry)| fields(&entry)).collect();
        assert_eq!(values.len(), 2, "what is not finite is left out");
        assert_eq!(values[0], [(1, b"loss".to_vec()), (2, 0.5f32.to_le_bytes().to_vec())]);
        assert_eq!(values[1], [(1, b"lr".to_vec()), (2, 2e-4f32.to_le_bytes().to_vec())]);
    }
}
