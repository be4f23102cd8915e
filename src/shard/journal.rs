//! The journal of an unfinished run: one entry for every processed image, in input order, with the
//! records that were kept or the reason for rejecting the image. An error of the system is no such
//! reason and is never written to it. Depends on bincode (with a size limit) and `files`. Promises
//! that a journal which a kill, a full disk or damage has cut is read up to its last whole entry,
//! and that it is removed when the set is finished.

use super::codec::Codec;
use super::file::Record;
use super::format::u32_at;
use super::manifest::Manifest;
use super::source_table::SourceEntry;
use crate::{support::failure, support::files};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The journal's name in the folder of the set.
pub const JOURNAL_NAME: &str = "journal.psj";
/// First eight bytes of a journal.
const MAGIC: [u8; 8] = *b"PGNJRNL1";
/// Length (u32) and CRC32 (u32) before every entry.
const FRAME_PREFIX_BYTES: usize = 8;
/// Largest entry: an image of 200 million pixels cut at a stride of 8 has 3 million records of 17
/// bytes.
const MAX_ENTRY_BYTES: usize = 64 << 20;
/// Bytes that are buffered before a write call or read at a time.
const BUFFER_BYTES: usize = 1 << 16;

/// The first entry of the journal: the set that the run makes. Another run continues it only if it
/// makes the same set.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) struct Head {
    /// The manifest of the set that is being made, without shards.
    pub wanted: Manifest,
    /// If images are added to a finished set: how many shards that set and its held-out part have.
    pub base: [u64; 2],
    /// Fingerprint of the finished set; 0 = none.
    pub base_fingerprint: u64,
    /// Whether the run was begun with `--overwrite`. The earlier set is removed already, so the
    /// same command with `--overwrite` continues this run and does not begin again.
    pub overwrite: bool,
}

/// The outcome of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Number of the image in the plan.
    pub job: u64,
    /// Hash of the sizes and times of its files when they were read (`resume::stamp`).
    pub stamp: u64,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Rejected {
        /// Whether the reason is about the LQ file, not about the HR file.
        lq: bool,
        kind: String,
        reason: String,
    },
    Used(Used),
}

/// An image that was decoded. It has no records if all its patches were flat or duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub source: SourceEntry,
    pub notes: Vec<String>,
    /// Its perceptual hash, if near duplicates are looked for.
    pub hash: Option<u64>,
    /// Number of patches left out by `--min-detail`, `--min-entropy` or `--max-blur`.
    pub flat: u64,
    /// Number of pairs left out as duplicates.
    pub duplicates: u64,
    /// The pairs that were kept, in order.
    pub records: Vec<Record>,
}

/// A source as bincode writes it: name, width, height, bytes, CRC32.
type SourceFields = (String, u32, u32, u64, u32);
/// A record as bincode writes it: x, y, codec, CRC32, length.
type RecordFields = (u32, u32, u8, u32, u32);
/// An entry as bincode writes it: job, stamp, one of the two outcomes, and the perceptual hash, which
/// older journals do not have.
type EntryFields = (
    u64,
    u64,
    Option<(SourceFields, Vec<String>, u64, u64, Vec<RecordFields>)>,
    Option<(bool, String, String)>,
    Option<u64>,
);

impl Entry {
    fn encode(&self) -> Result<Vec<u8>> {
        let kept = |r: &Record| (r.x, r.y, r.codec.id(), r.crc, r.length);
        let fields: EntryFields = match &self.outcome {
            Outcome::Rejected { lq, kind, reason } => (
                self.job,
                self.stamp,
                None,
                Some((*lq, kind.clone(), reason.clone())),
                None,
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
                (self.job, self.stamp, Some(used), None, u.hash)
            }
        };
        bincode::encode_to_vec(fields, config()).context("cannot encode a journal entry")
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        // an entry of an older journal has no hash: the byte after it reads as `None`
        let bytes = [bytes, &[0]].concat();
        let ((job, stamp, used, rejected, hash), _): (EntryFields, usize) =
            bincode::decode_from_slice(&bytes, config()).ok()?;
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
                    hash,
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

/// Path of the journal in a folder.
pub(super) fn path_in(folder: &Path) -> PathBuf {
    folder.join(JOURNAL_NAME)
}

/// A journal that is being written.
pub(super) struct Journal {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Journal {
    /// Creates the journal of a new run; an older journal is emptied.
    pub fn create(folder: &Path, head: &Head) -> Result<Self> {
        let path = path_in(folder);
        let file = files::open_own(&path).and_then(|file| file.set_len(0).map(|()| file));
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let mut journal = Journal {
            path,
            out: BufWriter::with_capacity(BUFFER_BYTES, file),
        };
        journal.put(&MAGIC)?;
        journal
            .frame(&bincode::encode_to_vec(head, config()).context("cannot encode the journal")?)?;
        journal.flush()?;
        Ok(journal)
    }

    /// Opens a journal to append after its first `length` bytes; the rest is cut off.
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
            out: BufWriter::with_capacity(BUFFER_BYTES, file),
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

    /// Passes all entries to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        self.out
            .flush()
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Writes all entries to the disk. It must be called before a shard with their records gets its
    /// final name.
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
    /// Bytes up to the end of the last entry that was returned.
    pub at: u64,
}

impl Reader {
    /// Opens the journal of a folder. `None` if there is no journal, or its first entry is not
    /// whole: then no image was processed yet.
    ///
    /// # Errors
    /// An error of the system; a journal that is a link or no regular file.
    pub fn open(folder: &Path) -> Result<Option<(Head, Reader)>> {
        let path = path_in(folder);
        let file = match failure::retry(|| files::read_own(&path)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut reader = Reader {
            path,
            file: BufReader::with_capacity(BUFFER_BYTES, file),
            at: MAGIC.len() as u64,
        };
        if reader.take(MAGIC.len())?.is_none_or(|magic| magic != MAGIC) {
            return Ok(None);
        }
        let Some(mut bytes) = reader.frame()? else {
            return Ok(None);
        };
        bytes.push(0); // an older journal has no `overwrite`: this reads as `false`
        let head = bincode::decode_from_slice(&bytes, config()).ok();
        Ok(head.map(|(head, _)| (head, reader)))
    }

    /// Reads the next `length` bytes. `None` if fewer are left; an error of the system is returned
    /// as such and not taken for the end.
    fn take(&mut self, length: usize) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            // the buffer grows with what is really there: a damaged length must not allocate much
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
        let Some(prefix) = self.take(FRAME_PREFIX_BYTES)? else {
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
            self.at += (FRAME_PREFIX_BYTES + length) as u64;
            bytes
        }))
    }

    /// Reads the next entry. `None` if no whole entry is left.
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
            hash: Some(77),
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
