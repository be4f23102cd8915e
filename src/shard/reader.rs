//! Reads a finished set. The structure of every shard (header, footer, source table, index) is
//! checked by read calls before its map is used, and every record by its checksum when it is read.
//! Depends on `mapped_shard`, `manifest` and `codec`. Promises no panic and no wrong pixel on
//! damaged files, errors that name shard, record and image, and no allocation per record. Only
//! records read with [`Io::Mmap`] touch the map; everything else uses read calls, so that a failing
//! disk gives an error message.

pub use super::codec::Crop;
use super::codec::{Codec, Decoder};
use super::error::{Error, Kind, marked};
use super::format::Geometry;
use super::manifest::{Manifest, ShardInfo, shard_name};
use super::mapped_shard::MappedShard;
pub use super::mapped_shard::{Advice, Io, RecordSource};
use super::source_table::SourceEntry;
use super::tables::known_codec;
use crate::support::failure;
use crate::sys;
use anyhow::Context;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Result of a call on a set.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes that the SIGBUS handler (`bus`) keeps for each map beside the path: a line of text and a
/// node of its list.
const WATCHED_BYTES: usize = 256;

/// Bits of an image number ([`ShardSet::image_of`]) for the source within its shard. A shard has at
/// most 2^24 records, and each of its sources has at least one.
const SOURCE_BITS: u32 = super::format::MAX_RECORDS.trailing_zeros();

/// Buffers for one reading thread; made by [`ShardSet::scratch`] and reused for every record.
pub struct Scratch {
    decoder: Decoder,
    io: Io,
    payload: Vec<u8>,
}

/// A finished set of shards, mapped into memory. Threads share it.
pub struct ShardSet {
    folder: PathBuf,
    manifest: Manifest,
    geometry: Geometry,
    /// LQ patches of every record.
    lqs: u16,
    shards: Vec<MappedShard>,
    records: u64,
}

impl ShardSet {
    /// Opens the set in a folder and checks the structure of every shard: length, header, footer,
    /// source table, index. No file stays open.
    ///
    /// # Errors
    /// No finished set, a shard that is missing, cut short, damaged, from another set or in a newer
    /// format, an error of the system. The error names the file.
    pub fn open(folder: &Path) -> Result<ShardSet> {
        let manifest = Manifest::read(folder)?;
        let of_set = |e| Error::classify(folder, e);
        let geometry = Geometry::new(manifest.scale, manifest.lq_size).map_err(of_set)?;
        let lqs = manifest.lqs().map_err(of_set)?;
        let mut shards = Vec::with_capacity(manifest.shards.len());
        let mut first = 0u64;
        for (number, info) in manifest.shards.iter().enumerate() {
            let shard = MappedShard::open(folder, &manifest, number, first)
                .map_err(|e| Error::classify(&folder.join(shard_name(number)), e))?;
            shards.push(shard);
            first = first
                .checked_add(info.records)
                .context("the manifest's record counts overflow")
                .map_err(of_set)?;
        }
        if first == 0 {
            let text = format!("{}: the set holds no records", folder.display());
            return Err(of_set(marked(Kind::Missing, text)));
        }
        Ok(ShardSet {
            folder: folder.to_path_buf(),
            geometry,
            lqs,
            shards,
            records: first,
            manifest,
        })
    }

    /// Number of records: HR patches, each with [`ShardSet::lqs`] LQ patches.
    #[allow(clippy::len_without_is_empty)] // an empty set does not open
    pub fn len(&self) -> u64 {
        self.records
    }

    /// HR side over LQ side.
    pub fn scale(&self) -> u32 {
        self.geometry.scale
    }

    /// LQ patch side as stored, pixels.
    pub fn lq_size(&self) -> u32 {
        self.geometry.lq_size
    }

    /// Side lengths of every pair.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// LQ patches of every record: 1, 0 for HR alone, or the number of variants.
    pub fn lqs(&self) -> u16 {
        self.lqs
    }

    /// The folder that the set was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The manifest of the set.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Identity of configuration and content. A resumed training run checks that it has not
    /// changed.
    pub fn fingerprint(&self) -> u64 {
        self.manifest.fingerprint()
    }

    /// Anonymous memory that the open set holds, in bytes. The indexes and source tables stay in
    /// the mapped files.
    pub fn index_bytes(&self) -> u64 {
        let shard = |s: &MappedShard| {
            let path = s.tables.path.as_os_str().len();
            size_of::<MappedShard>() + 2 * path + WATCHED_BYTES + size_of::<ShardInfo>()
        };
        (size_of::<ShardSet>() + self.shards.iter().map(shard).sum::<usize>()) as u64
    }

    /// Makes the buffers of one thread that reads by [`Io::Mmap`].
    ///
    /// # Errors
    /// Too little memory.
    pub fn scratch(&self) -> Result<Scratch> {
        self.scratch_for(Io::Mmap)
    }

    /// Makes the buffers of one thread that reads by `io`.
    ///
    /// # Errors
    /// Too little memory.
    pub fn scratch_for(&self, io: Io) -> Result<Scratch> {
        let decoder = Decoder::with_lqs(self.geometry, self.lqs);
        Ok(Scratch {
            decoder: decoder.map_err(|e| Error::classify(&self.folder, e))?,
            io,
            payload: Vec::new(),
        })
    }

    /// Largest memory of one scratch, in bytes.
    pub fn scratch_bytes(&self, io: Io) -> u64 {
        let payload = if io == Io::Pread {
            self.longest_record()
        } else {
            0
        };
        Decoder::bytes(self.geometry) + u64::from(payload)
    }

    fn longest_record(&self) -> u32 {
        self.shards
            .iter()
            .map(|s| s.tables.longest)
            .max()
            .unwrap_or(0)
    }

    /// Bytes of all shard files.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.map.len() as u64).sum()
    }

    /// Gives the kernel advice about a range of records. It is only a hint: it cannot fail and does
    /// not change what is read.
    pub fn advise(&self, records: Range<u64>, advice: Advice, io: Io) {
        let mut at = records.start;
        while at < records.end.min(self.records) {
            let Ok((shard, i)) = self.find(at) else {
                return;
            };
            let end = records.end.min(shard.first + shard.tables.footer.records);
            if let Ok(span) = shard.span(i, (end - shard.first) as usize - 1, io) {
                shard.advise(span, advice);
            }
            at = end;
        }
    }

    /// Whether every page of a record is in memory. `None` if the system does not say.
    pub fn is_cached(&self, record: u64, io: Io) -> Option<bool> {
        let (shard, i) = self.find(record).ok()?;
        shard.is_cached(shard.span(i, i, io).ok()?)
    }

    /// Tells the kernel that records are read in random order, so that it fetches only the pages
    /// that are asked for.
    pub fn expect_random_access(&self) {
        for shard in &self.shards {
            sys::advise_random(&shard.map);
        }
    }

    /// The image that a record was cut from, and where.
    ///
    /// # Errors
    /// A record number out of range, damage, an error of the system.
    pub fn source(&self, record: u64) -> Result<RecordSource> {
        let (shard, i) = self.find(record)?;
        shard.source(i).map_err(|e| shard.error_at(i, e))
    }

    /// Number of the image of a record. Two records of one shard have the same number exactly if
    /// they were cut from the same image. Comparing numbers needs no allocation, unlike names.
    ///
    /// # Errors
    /// A record number out of range, damage, an error of the system.
    pub fn image_of(&self, record: u64) -> Result<u64> {
        let (shard, i) = self.find(record)?;
        let entry = shard.tables.entry(i).map_err(|e| shard.error_at(i, e))?;
        Ok(shard.first << SOURCE_BITS | u64::from(entry.source))
    }

    /// Codec and stored bytes of a record.
    ///
    /// # Errors
    /// A record number out of range, damage, an error of the system, an unknown codec.
    pub fn stored(&self, record: u64) -> Result<(Codec, u32)> {
        let (shard, i) = self.find(record)?;
        let entry = shard.tables.entry(i).map_err(|e| shard.error_at(i, e))?;
        let codec = known_codec(entry.codec).map_err(|e| Error::classify(&shard.tables.path, e))?;
        Ok((codec, entry.length))
    }

    /// Calls `each` with codec and stored bytes of every record, in order.
    ///
    /// # Errors
    /// An error of the system, an unknown codec.
    pub fn each_stored(&self, mut each: impl FnMut(Codec, u32)) -> Result<()> {
        for shard in &self.shards {
            let mut unknown = None;
            let read = shard
                .tables
                .entries(|entry| match known_codec(entry.codec) {
                    Ok(codec) => each(codec, entry.length),
                    Err(e) => unknown = Some(e),
                });
            read.and(unknown.map_or(Ok(()), Err))
                .map_err(|e| shard.error(e))?;
        }
        Ok(())
    }

    /// Reads a whole pair (the first variant, if there are several) into `lq`
    /// (`[lq_size, lq_size, 3]`) and `hr` (`[lq_size * scale, lq_size * scale, 3]`): u8 RGB, rows top
    /// to bottom.
    ///
    /// # Errors
    /// A record number out of range, damage (checksum or content), an error of the system, a set of
    /// HR alone. Errors name shard, record and image.
    pub fn read(
        &self,
        record: u64,
        scratch: &mut Scratch,
        lq: &mut [u8],
        hr: &mut [u8],
    ) -> Result<()> {
        self.read_crop(
            record,
            Crop {
                x: 0,
                y: 0,
                size: self.geometry.lq(),
            },
            scratch,
            lq,
            hr,
        )
    }

    /// Reads a square crop of a pair: `lq` is `[crop.size, crop.size, 3]`, and `hr` is the same
    /// crop at `scale` times the size.
    ///
    /// # Errors
    /// Those of [`ShardSet::read`]; a crop that does not lie inside the patch, slices of another
    /// size.
    pub fn read_crop(
        &self,
        record: u64,
        crop: Crop,
        scratch: &mut Scratch,
        lq: &mut [u8],
        hr: &mut [u8],
    ) -> Result<()> {
        self.read_part(record, crop, scratch, Some((0, lq)), hr)
    }

    /// Reads a square crop of the HR patch of a record and, where `lq` is given, of its LQ patch
    /// with this number (`[crop.size, crop.size, 3]`).
    ///
    /// # Errors
    /// Those of [`ShardSet::read_crop`]; a record has no LQ patch with this number.
    pub fn read_part(
        &self,
        record: u64,
        crop: Crop,
        scratch: &mut Scratch,
        lq: Option<(u16, &mut [u8])>,
        hr: &mut [u8],
    ) -> Result<()> {
        let (shard, i) = self.find(record)?;
        if lq.is_some() && self.lqs == 0 {
            let text = format!(
                "the set in {} holds HR alone; its LQ is made by a recipe while it is read (--degrade)",
                self.folder.display()
            );
            return Err(Error::classify(&self.folder, marked(Kind::Misuse, text)));
        }
        let Scratch {
            decoder,
            io,
            payload,
        } = scratch;
        shard
            .read(i, crop, (*io, payload), decoder, lq, hr)
            .map_err(|e| {
                let place = shard.describe(i, record, failure::system_cause(&e).is_none());
                Error::classify(&shard.tables.path, e.context(place))
            })
    }

    /// Returns every image of the set with the number of its records. An image whose records go on
    /// in the next shard is listed twice.
    ///
    /// # Errors
    /// Damage, an error of the system.
    pub fn sources(&self) -> Result<Vec<(SourceEntry, u64)>> {
        let mut out = Vec::new();
        for shard in &self.shards {
            out.extend(shard.tables.sources().map_err(|e| shard.error(e))?);
        }
        Ok(out)
    }

    /// The shard of a record, and the record's number within it.
    fn find(&self, record: u64) -> Result<(&MappedShard, usize)> {
        if record >= self.records {
            let text = format!(
                "record {record} is asked for; the set in {} has {}",
                self.folder.display(),
                self.records
            );
            return Err(Error::classify(&self.folder, marked(Kind::Misuse, text)));
        }
        let shard = &self.shards[self.shards.partition_point(|s| s.first <= record) - 1];
        Ok((shard, (record - shard.first) as usize))
    }
}
