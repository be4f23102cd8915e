//! The journal of a run under way: one entry for every image that is decided, in input order, with
//! the records that were kept of it or the reason for rejecting it. An error of the system is no
//! such reason and is never in it. Depends on bincode (bounded) and `files`. Promises that whatever
//! a kill, a full disk or damage leaves of it reads as its first whole entries, and that it is gone
//! once the set is finished.

use super::codec::Codec;
use super::file::Record;
use super::format::{SourceEntry, u32_at};
use super::manifest::Manifest;
use crate::{support::failure, support::files};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The journal's name in the folder of the set.
pub const JOURNAL_NAME: &str = "journal.psj";
const MAGIC: [u8; 8] = *b"PGNJRNL1";
/// Largest entry: an image of 200 million pixels cut at a stride of 8 has 3 million records of 17
/// bytes.
const MAX_ENTRY_BYTES: usize = 64 << 20;

/// What the run is about: another run goes on only with the same.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) struct Head {
    /// The manifest of the set to be, without shards.
    pub wanted: Manifest,
    /// Shards that were there before (of the set and of its held-out part), where images are added
    /// to a finished set.
    pub base: [u64; 2],
    /// Fingerprint of that set; 0 = none.
    pub base_fingerprint: u64,
    /// Whether the run was begun with `--overwrite`: what was there before is gone, and the same
    /// command goes on.
    pub overwrite: bool,
}

/// What became of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its number in the plan.
    pub job: u64,
    /// Stands for the sizes and times of its files when they were read.
    pub stamp: u64,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Rejected {
        lq: bool,
        kind: String,
        reason: String,
    },
    Used(Used),
}

/// An image that was decoded. One without records gave nothing but flat or repeated patches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub source: SourceEntry,
    pub notes: Vec<String>,
    /// Patches left out for want of detail.
    pub flat: u64,
    /// Patches left out because the same pair was there before.
    pub duplicates: u64,
    /// Those kept, in order.
    pub records: Vec<Record>,
}

type Source = (String, u32, u32, u64, u32);
type Kept = (u32, u32, u8, u32, u32);
type Wire = (
    u64,
    u64,
    Option<(Source, Vec<String>, u64, u64, Vec<Kept>)>,
    Option<(bool, String, String)>,
);

impl Entry {
    fn encode(&self) -> Result<Vec<u8>> {
        let kept = |r: &Record| (r.x, r.y, r.codec.id(), r.crc, r.length);
        let wire: Wire = match &self.outcome {
            Outcome::Rejected { lq, kind, reason } => (
                self.job,
                self.stamp,
                None,
                Some((*lq, kind.clone(), reason.clone())),
            ),
            Outcome::Used(u) => {
                let s = &u.source;
                let source = (s.name.clone(), s.width, s.height, s.bytes, s.crc);
                let used = (
                    source,
                    u.notes.clone(),
                    u.flat,
                    u.duplicates,
                    u.records.iter().map(kept).collect(),
                );
                (self.job, self.stamp, Some(used), None)
            }
        };
        bincode::encode_to_vec(wire, config()).context("cannot encode a journal entry")
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let ((job, stamp, used, rejected), _): (Wire, usize) =
            bincode::decode_from_slice(bytes, config()).ok()?;
        let outcome = match (used, rejected) {
            (Some(((name, width, height, bytes, crc), notes, flat, duplicates, kept)), None) => {
                let record = |(x, y, codec, crc, length)| {
                    Some(Record {
                        x,
                        y,
                        codec: Codec::from_id(codec)?,
                        crc,
                        length,
                    })
                };
                let records = kept.into_iter().map(record).collect::<Option<Vec<_>>>()?;
                Outcome::Used(Used {
                    source: SourceEntry {
                        name,
                        width,
                        height,
                        bytes,
                        crc,
                    },
                    notes,
                    flat,
                    duplicates,
                    records,
                })
            }
            (None, Some((lq, kind, reason))) => Outcome::Rejected { lq, kind, reason },
            _ => return None,
        };
        Some(Entry {
            job,
            stamp,
            outcome,
        })
    }
}

fn config() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Fixint,
    bincode::config::Limit<MAX_ENTRY_BYTES>,
> {
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<MAX_ENTRY_BYTES>()
}

/// The journal in a folder.
pub(super) fn path_in(folder: &Path) -> PathBuf {
    folder.join(JOURNAL_NAME)
}

/// A journal being written.
pub(super) struct Journal {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Journal {
    /// Begins a journal.
    pub fn create(folder: &Path, head: &Head) -> Result<Self> {
        let path = path_in(folder);
        let file = files::open_own(&path).and_then(|file| file.set_len(0).map(|()| file));
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let mut journal = Journal {
            path,
            out: BufWriter::with_capacity(1 << 16, file),
        };
        journal.put(&MAGIC)?;
        journal
            .frame(&bincode::encode_to_vec(head, config()).context("cannot encode the journal")?)?;
        journal.flush()?;
        Ok(journal)
    }

    /// Goes on behind byte `length`.
    pub fn resume(folder: &Path, length: u64) -> Result<Self> {
        let path = path_in(folder);
        let open = || -> std::io::Result<File> {
            let mut file = files::open_own(&path)?;
            file.set_len(length)?;
            file.seek(SeekFrom::Start(length))?;
            Ok(file)
        };
        let file = open().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Journal {
            out: BufWriter::with_capacity(1 << 16, file),
            path,
        })
    }

    /// Appends an entry; it may stay in memory until [`Journal::flush`].
    pub fn append(&mut self, entry: &Entry) -> Result<()> {
        self.frame(&entry.encode()?)
    }

    fn frame(&mut self, bytes: &[u8]) -> Result<()> {
        ensure!(
            bytes.len() <= MAX_ENTRY_BYTES,
            "one image gives {} bytes of journal where {MAX_ENTRY_BYTES} are the most; use a larger --stride",
            bytes.len()
        );
        self.put(&(bytes.len() as u32).to_le_bytes())?;
        self.put(&crc32fast::hash(bytes).to_le_bytes())?;
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Hands all entries to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        self.out
            .flush()
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Brings all entries to the disk: before a shard of theirs gets its name.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.out
            .get_ref()
            .sync_data()
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Removes the journal of a finished set.
    pub fn remove(self) -> Result<()> {
        let path = self.path.clone();
        let _ = self.out.into_parts();
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// Reads the whole entries of a journal.
pub(super) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    /// Bytes up to the end of the last entry given.
    pub at: u64,
}

impl Reader {
    /// Opens the journal of a folder. Nothing where there is none or its head is not whole: then
    /// nothing was done.
    ///
    /// # Errors
    /// Those of the system; a journal that is a link or no regular file.
    pub fn open(folder: &Path) -> Result<Option<(Head, Reader)>> {
        let path = path_in(folder);
        let file = match failure::retry(|| files::read_own(&path)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut reader = Reader {
            path,
            file: BufReader::with_capacity(1 << 16, file),
            at: 8,
        };
        if reader.take(8)?.is_none_or(|magic| magic != MAGIC) {
            return Ok(None);
        }
        let Some(mut bytes) = reader.frame()? else {
            return Ok(None);
        };
        bytes.push(0); // an older journal ends before `overwrite`, which was not there then
        let head = bincode::decode_from_slice(&bytes, config()).ok();
        Ok(head.map(|(head, _)| (head, reader)))
    }

    /// The next bytes, or nothing where fewer are left. An error of the system is not the journal's
    /// end.
    fn take(&mut self, length: usize) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            // what is there is handed out as it comes: a length that is damaged must not allocate
            // for nothing
            let there = failure::retry(|| self.file.fill_buf().map(<[u8]>::len));
            let there = there
                .with_context(|| format!("cannot read {}", self.path.display()))?
                .min(length - bytes.len());
            if there == 0 {
                return Ok(None);
            }
            bytes.extend_from_slice(&self.file.buffer()[..there]);
            self.file.consume(there);
        }
        Ok(Some(bytes))
    }

    fn frame(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(prefix) = self.take(8)? else {
            return Ok(None);
        };
        let length = u32_at(&prefix, 0) as usize;
        if length > MAX_ENTRY_BYTES {
            return Ok(None);
        }
        let Some(bytes) = self.take(length)? else {
            return Ok(None);
        };
        Ok((crc32fast::hash(&bytes) == u32_at(&prefix, 4)).then(|| {
            self.at += 8 + length as u64;
            bytes
        }))
    }

    /// The next entry; nothing where no whole one is left.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let before = self.at;
        let entry = self.frame()?.and_then(|bytes| Entry::decode(&bytes));
        if entry.is_none() {
            self.at = before;
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let source = SourceEntry {
            name: "a/b".into(),
            width: 70,
            height: 50,
            bytes: 999,
            crc: 7,
        };
        let record = |x| Record {
            x,
            y: 2,
            codec: Codec::Raw,
            crc: 9 + x,
            length: 33,
        };
        let used = Used {
            source,
            notes: vec!["grey".into()],
            flat: 1,
            duplicates: 2,
            records: (0..3).map(record).collect(),
        };
        let rejected = Outcome::Rejected {
            lq: true,
            kind: "unreadable".into(),
            reason: "cut short".into(),
        };
        vec![
            Entry {
                job: 0,
                stamp: 5,
                outcome: Outcome::Used(used),
            },
            Entry {
                job: 3,
                stamp: 6,
                outcome: rejected,
            },
        ]
    }

    #[test]
    fn every_length_and_every_flipped_byte_read_as_the_first_whole_entries() {
        let dir = tempfile::tempdir().unwrap();
        let wanted =
            Manifest::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("shards/golden")).unwrap();
        let head = Head {
            wanted,
            base: [0, 4],
            base_fingerprint: 8,
            overwrite: true,
        };
        let mut journal = Journal::create(dir.path(), &head).unwrap();
        let mut ends = vec![fs::metadata(path_in(dir.path())).unwrap().len()];
        for entry in entries() {
            journal.append(&entry).unwrap();
            journal.flush().unwrap();
            ends.push(fs::metadata(path_in(dir.path())).unwrap().len());
        }
        let whole = fs::read(path_in(dir.path())).unwrap();
        let read = |bytes: &[u8]| {
            fs::write(path_in(dir.path()), bytes).unwrap();
            let (found, mut reader) = Reader::open(dir.path()).unwrap()?;
            assert_eq!(found, head);
            let list: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
            Some((list, reader.at))
        };
        for length in 0..=whole.len() {
            let wanted = ends.iter().rposition(|&end| end <= length as u64);
            assert_eq!(
                read(&whole[..length]),
                wanted.map(|n| (entries()[..n].to_vec(), ends[n])),
                "{length} bytes"
            );
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            let wanted = ends.iter().position(|&end| end > at as u64).unwrap();
            assert_eq!(
                read(&bytes).map(|(list, _)| list),
                wanted.checked_sub(1).map(|n| entries()[..n].to_vec()),
                "byte {at}"
            );
        }
        read(&whole[..whole.len() - 1]);
        drop(journal); // Windows may keep the name of an open file
        let mut journal = Journal::resume(dir.path(), ends[1]).unwrap();
        journal.append(&entries()[1]).unwrap();
        journal.sync().unwrap();
        assert!(fs::read(path_in(dir.path())).unwrap() == whole);
        journal.remove().unwrap();
        assert!(Reader::open(dir.path()).unwrap().is_none());
    }
}
