//! Event files that TensorBoard reads: scalars over iterations. Depends on `files` and `crc32c`.
//! After a crash a truncated record can be recognised, because length and content of every record
//! have checksums. Names and times never decrease within a folder: TensorBoard reads files in the
//! order of their names and would drop newer events if the clock had been set back.
//!
//! A file is a sequence of records (TFRecord: length, masked CRC-32C of the length, content, masked
//! CRC-32C of the content), each a protobuf message `Event`; only the few fields needed here are
//! written, by hand.

use crate::support::files;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Protobuf wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// The beginning of every event file's name; the time in seconds, ten digits, follows it.
const PREFIX: &str = "events.out.tfevents.";
/// The end of the names of files that paragon wrote.
const ENDING: &str = ".paragon";
/// Later times in names (after the year 2255) are ignored: names that follow them would have more
/// digits and be sorted before them.
const LATEST_TIME: u64 = 9_000_000_000;
/// Largest record that is read back, bytes; those of paragon have a few hundred.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// An event file being written.
pub struct EventFile {
    path: PathBuf,
    file: File,
    clock: Clock,
}

/// Seconds since 1970 that never decrease, even if the system's clock is set back.
struct Clock {
    last: f64,
    /// Seconds that are added to the system's clock.
    ahead: f64,
}

impl Clock {
    /// A clock that shows at least `least`.
    fn from(least: f64) -> Clock {
        Clock {
            last: least,
            ahead: 0.0,
        }
    }

    fn at(&mut self, system: f64) -> f64 {
        let mut time = system + self.ahead;
        if time < self.last {
            self.ahead = self.last - system;
            time = self.last;
        }
        self.last = time;
        time
    }

    fn now(&mut self) -> f64 {
        self.at(SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64()))
    }
}

/// The time in the name of an event file, seconds.
fn time_of(name: &str) -> Option<u64> {
    let time = name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()?;
    (time < LATEST_TIME).then_some(time)
}

/// The event files in a folder that paragon wrote.
pub fn own_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let own = |name: &str| name.starts_with(PREFIX) && name.ends_with(ENDING);
    entries
        .flatten()
        .filter(|e| e.file_name().to_str().is_some_and(own))
        .map(|e| e.path())
        .collect()
}

/// The latest time in a folder, seconds since 1970: in the names of the event files and in the last
/// event of the newest file.
fn latest_time(folder: &Path) -> Option<f64> {
    let entries = std::fs::read_dir(folder).ok()?;
    let named = entries
        .flatten()
        .filter_map(|e| Some((time_of(e.file_name().to_str()?)?, e.path())));
    let (time, path) = named.max()?;
    // The next file must have a later name, and names have whole seconds.
    let next = (time + 1) as f64;
    Some(
        last_event(&path)
            .filter(|&t| t.is_finite() && t < LATEST_TIME as f64)
            .map_or(next, |t| t.max(next)),
    )
}

/// Time of the last whole event of a file.
fn last_event(path: &Path) -> Option<f64> {
    let mut input = BufReader::new(files::open_regular(path).ok()?);
    let mut last = None;
    let mut content = Vec::new();
    loop {
        let mut head = [0; 12];
        if input.read_exact(&mut head).is_err() {
            return last;
        }
        let (length, check) = head.split_at(8);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(length);
        let count = u64::from_le_bytes(bytes);
        if masked(length).to_le_bytes() != check || count > MAX_RECORD_BYTES {
            return last;
        }
        content.clear();
        content.resize(count as usize + 4, 0);
        if input.read_exact(&mut content).is_err() {
            return last;
        }
        // An event begins with its time: see `head`.
        if let Some((&[key, ref time @ ..], _)) = content.split_first_chunk::<9>()
            && u64::from(key) == 1 << 3 | FIXED64
        {
            last = Some(f64::from_le_bytes(*time));
        }
    }
}

impl EventFile {
    /// Starts a file in `folder` for a run that continues after `iteration`. TensorBoard then drops
    /// the events of later iterations in earlier files of the folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(folder: &Path, iteration: u64) -> Result<EventFile> {
        files::create_folder(folder)?;
        let mut clock = Clock::from(latest_time(folder).unwrap_or(0.0));
        let now = clock.now();
        let path = folder.join(format!(
            "{PREFIX}{:010}.{}{ENDING}",
            now as u64,
            std::process::id()
        ));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = EventFile { path, file, clock };
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
        let mut event = head(self.clock.now(), iteration);
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
        // One call, so that readers never see half a record of a live run.
        self.file
            .write_all(&out)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The masked checksum of TFRecord: CRC-32C, rotated, plus a constant. Without the mask, the
/// checksum of data followed by their own checksum would always be the same.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xA282_EAD8)
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
        // With the mask, the checksum of a checksum is not a special value.
        let (once, twice) = (masked(b"foo"), masked(&masked(b"foo").to_le_bytes()));
        assert!(once != crc32c::crc32c(b"foo") && twice != once);
    }

    /// The fields of a message: number of the field, and its bytes.
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
        events
            .scalars(300, &[("loss", 0.5), ("broken", f64::NAN), ("lr", 2e-4)])
            .unwrap();
        let bytes = std::fs::read(&events.path).unwrap();
        let mut rest = &bytes[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]).to_le_bytes());
            let content = &rest[12..12 + length];
            assert_eq!(
                rest[12 + length..16 + length],
                masked(content).to_le_bytes()
            );
            found.push(fields(content));
            rest = &rest[16 + length..];
        }
        assert_eq!(found[0][2], (3, b"brain.Event:2".to_vec()));
        assert_eq!(
            found[1][1..],
            [(2, 42u64.to_le_bytes().to_vec()), (7, vec![8, 1])]
        );
        assert_eq!(found[2][1], (2, 300u64.to_le_bytes().to_vec()));
        let values: Vec<_> = fields(&found[2][2].1)
            .into_iter()
            .map(|(_, entry)| fields(&entry))
            .collect();
        assert_eq!(
            values.len(),
            2,
            "values that are not finite must be left out"
        );
        assert_eq!(
            values[0],
            [(1, b"loss".to_vec()), (2, 0.5f32.to_le_bytes().to_vec())]
        );
        assert_eq!(
            values[1],
            [(1, b"lr".to_vec()), (2, 2e-4f32.to_le_bytes().to_vec())]
        );
    }
    #[test]
    fn names_and_times_go_on_from_the_newest_file_where_the_clock_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
        let mut first = EventFile::create(dir.path(), 0).unwrap();
        // The first file was written while the clock was a day ahead, and its run continued for an
        // hour.
        let ahead = first.clock.now() + 86_400.0;
        let moved = dir
            .path()
            .join(format!("{PREFIX}{:010}.77{ENDING}", ahead as u64));
        std::fs::rename(&first.path, &moved).unwrap();
        first.clock = Clock::from(ahead + 3600.0);
        first.scalars(5, &[("loss", 1.0)]).unwrap();
        // Names with impossible times do not count.
        for other in ["99999999999.1.host", "9999999999.1.host", "x.1.host"] {
            std::fs::write(dir.path().join(format!("{PREFIX}{other}")), "").unwrap();
        }
        let second = EventFile::create(dir.path(), 5).unwrap();
        assert!(name(&second.path) > name(&moved), "{:?}", second.path);
        assert!(last_event(&second.path).unwrap() >= last_event(&moved).unwrap());
        let third = EventFile::create(dir.path(), 5).unwrap();
        assert!(
            name(&third.path) > name(&second.path),
            "two starts within a second"
        );
        assert_eq!(own_files(dir.path()).len(), 3);
    }

    #[test]
    fn a_clock_set_back_under_way_goes_on_from_where_it_was() {
        let mut clock = Clock::from(100.0);
        assert_eq!(
            [90.0, 91.0, 50.0, 53.0, 500.0].map(|system| clock.at(system)),
            [100.0, 101.0, 101.0, 104.0, 551.0]
        );
    }
}
