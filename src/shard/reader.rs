//! Reading a finished set: every shard is checked from end to end of its structure before the map is trusted, and every
//! record by its checksum when it is read. Depends on `format`, `manifest` and `codec`. Promises no panic and no wrong
//! pixel on damaged files, errors that name shard, record and image, and no allocation per record.

pub use super::codec::Crop;
use super::codec::{Codec, Decoder};
use super::format::{FOOTER_BYTES, Footer, Geometry, HEADER_BYTES, Header, INDEX_ENTRY_BYTES, IndexEntry, SourceEntry, decode_source};
use super::manifest::{Manifest, ShardInfo, shard_name};
use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where a record was cut from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSource {
    /// Name of the image inside the dataset.
    pub image: String,
    /// Left edge of the LQ patch in the LQ image, pixels.
    pub x: u32,
    /// Top edge of the LQ patch in the LQ image, pixels.
    pub y: u32,
}

/// How records are read. Tables and indexes are in the map for everything but reading records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Straight out of the map: no copy, and nothing of its own in memory.
    Mmap,
    /// By reading calls: a failing disk or network is an error message, where a map would end the process.
    Pread,
}

/// What the kernel is told about records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// They are read soon: begin to fetch them.
    WillNeed,
    /// They are not read again soon: their pages may go.
    DontNeed,
}

/// One thread's room for reading; made by [`ShardSet::scratch`] and reused from record to record.
pub struct Scratch {
    decoder: Decoder,
    io: Io,
    payload: Vec<u8>,
}

struct Shard {
    path: PathBuf,
    file: File,
    map: Mmap,
    /// Bytes of the longest record.
    longest: u32,
    footer: Footer,
    /// Number of the shard's first record in the set.
    first: u64,
}

/// A finished set of shards, mapped into memory. Shared between threads.
pub struct ShardSet {
    folder: PathBuf,
    manifest: Manifest,
    geometry: Geometry,
    shards: Vec<Shard>,
    records: u64,
}

impl ShardSet {
    /// Opens the set in a folder and checks the structure of every shard: length, header, footer, source table, index.
    ///
    /// # Errors
    /// No finished set, a shard missing, cut short, damaged, from another set or in a newer format; the file is named.
    pub fn open(folder: &Path) -> Result<ShardSet> {
        let manifest = Manifest::read(folder)?;
        let geometry = Geometry::new(manifest.scale, manifest.lq_size)?;
        let mut shards = Vec::with_capacity(manifest.shards.len());
        let mut first = 0u64;
        for (number, info) in manifest.shards.iter().enumerate() {
            let path = folder.join(shard_name(number));
            let shard = Shard::open(path, info, &manifest, number as u32, first)?;
            first = first.checked_add(info.records).context("the manifest's record counts overflow")?;
            shards.push(shard);
        }
        ensure!(first > 0, "{}: the set holds no records", folder.display());
        Ok(ShardSet { folder: folder.to_path_buf(), geometry, shards, records: first, manifest })
    }

    /// Number of pairs.
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

    /// The folder it was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the set says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Identity of configuration and content: a resumed training run must find the same.
    pub fn fingerprint(&self) -> u64 {
        self.manifest.fingerprint()
    }

    /// Anonymous memory the open set holds, in bytes. The indexes and source tables stay in the mapped files.
    pub fn index_bytes(&self) -> u64 {
        let shards = self.shards.iter().map(|s| size_of::<Shard>() + s.path.as_os_str().len() + size_of::<ShardInfo>());
        (size_of::<ShardSet>() + shards.sum::<usize>()) as u64
    }

    /// Room for one thread to read with, out of the map.
    pub fn scratch(&self) -> Result<Scratch> {
        self.scratch_for(Io::Mmap)
    }

    /// Room for one thread to read with.
    pub fn scratch_for(&self, io: Io) -> Result<Scratch> {
        Ok(Scratch { decoder: Decoder::new(self.geometry)?, io, payload: Vec::new() })
    }

    /// What one scratch holds at most, in bytes.
    pub fn scratch_bytes(&self, io: Io) -> u64 {
        let payload = if io == Io::Pread { self.longest_record() } else { 0 };
        Decoder::bytes(self.geometry) + u64::from(payload)
    }

    fn longest_record(&self) -> u32 {
        self.shards.iter().map(|s| s.longest).max().unwrap_or(0)
    }

    /// Bytes of all shard files.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.map.len() as u64).sum()
    }

    /// Tells the kernel about a range of records. Advice only: nothing fails, and what is read stays the same.
    pub fn advise(&self, records: Range<u64>, advice: Advice, io: Io) {
        let mut at = records.start;
        while at < records.end.min(self.records) {
            let Ok((shard, i)) = self.find(at) else { return };
            let end = records.end.min(shard.first + shard.footer.records);
            if let Ok(span) = shard.span(i, (end - shard.first) as usize - 1, io) {
                shard.advise(span, advice);
            }
            at = end;
        }
    }

    /// Whether every page of a record is in memory. `None` where the system does not say.
    pub fn is_cached(&self, record: u64, io: Io) -> Option<bool> {
        let (shard, i) = self.find(record).ok()?;
        let (start, length) = shard.pages(shard.span(i, i, io).ok()?);
        let mut pages = [0u8; 1024];
        for offset in (0..length).step_by(pages.len() * page_bytes()) {
            let length = (length - offset).min(pages.len() * page_bytes());
            // SAFETY: the range lies in the map, and `pages` has a byte for each of its pages
            let known =
                unsafe { libc::mincore(shard.map.as_ptr().add(start + offset).cast_mut().cast(), length, pages.as_mut_ptr().cast()) };
            if known != 0 {
                return None;
            }
            if pages[..length.div_ceil(page_bytes())].iter().any(|p| p & 1 == 0) {
                return Some(false);
            }
        }
        Some(true)
    }

    /// Says that records are read in no order: the kernel then fetches what is asked for and nothing around it.
    pub fn expect_random_access(&self) {
        for shard in &self.shards {
            let _ = shard.map.advise(memmap2::Advice::Random);
        }
    }

    /// The image and the place that a record was cut from.
    pub fn source(&self, record: u64) -> Result<RecordSource> {
        let (shard, i) = self.find(record)?;
        shard.source(i, Io::Mmap).with_context(|| format!("{}, record {i}", shard.path.display()))
    }

    /// The image of a record as a number: equal for records of one image in one shard, which costs no allocation to compare.
    pub fn image_of(&self, record: u64) -> Result<u64> {
        let (shard, i) = self.find(record)?;
        Ok(shard.first << 24 | u64::from(shard.entry(i).source))
    }

    /// Codec and stored bytes of a record.
    pub fn stored(&self, record: u64) -> Result<(Codec, u32)> {
        let (shard, i) = self.find(record)?;
        let entry = shard.entry(i);
        Ok((known_codec(entry.codec)?, entry.length))
    }

    /// Reads a whole pair: u8 RGB, `size x size x 3`, rows top to bottom.
    ///
    /// # Errors
    /// A record number out of range, damage (checksum or content); shard, record and image are named.
    pub fn read(&self, record: u64, scratch: &mut Scratch, lq: &mut [u8], hr: &mut [u8]) -> Result<()> {
        self.read_crop(record, Crop { x: 0, y: 0, size: self.geometry.lq() }, scratch, lq, hr)
    }

    /// Reads an aligned square of a pair. The slices have the size of the crop.
    ///
    /// # Errors
    /// Those of [`ShardSet::read`], and a crop that does not lie inside the patch.
    pub fn read_crop(&self, record: u64, crop: Crop, scratch: &mut Scratch, lq: &mut [u8], hr: &mut [u8]) -> Result<()> {
        let (shard, i) = self.find(record)?;
        let Scratch { decoder, io, payload } = scratch;
        shard.read(i, crop, (*io, payload), decoder, lq, hr).with_context(|| shard.describe(i, record, *io))
    }

    /// Every image of the set with the number of its records; one that was cut by a shard's end comes twice.
    pub fn sources(&self) -> Result<Vec<(SourceEntry, u64)>> {
        let mut out = Vec::new();
        for shard in &self.shards {
            out.extend(shard.sources().with_context(|| shard.path.display().to_string())?);
        }
        Ok(out)
    }

    fn find(&self, record: u64) -> Result<(&Shard, usize)> {
        ensure!(record < self.records, "record {record} is asked for; the set in {} has {}", self.folder.display(), self.records);
        let shard = &self.shards[self.shards.partition_point(|s| s.first <= record) - 1];
        Ok((shard, (record - shard.first) as usize))
    }
}

impl Shard {
    fn open(path: PathBuf, info: &ShardInfo, manifest: &Manifest, number: u32, first: u64) -> Result<Shard> {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                bail!("{} is missing, though the manifest lists it; copy it back or make the set again", path.display())
            }
            Err(e) => return Err(e).with_context(|| format!("cannot open {}", path.display())),
        };
        Self::check(file, path.clone(), info, manifest, number, first).with_context(|| path.display().to_string())
    }

    fn check(mut file: File, path: PathBuf, info: &ShardInfo, manifest: &Manifest, number: u32, first: u64) -> Result<Shard> {
        let length = file.metadata().context("cannot look at the file")?.len();
        // header and footer by plain reads: nothing is mapped before the length is known to be right
        let mut header = [0; HEADER_BYTES];
        let mut footer = [0; FOOTER_BYTES];
        ensure!(length >= (HEADER_BYTES + FOOTER_BYTES) as u64, "the file has {length} bytes: it is cut short");
        file.read_exact(&mut header).context("cannot read the header")?;
        let header = Header::decode(&header)?;
        ensure!(
            header.config == manifest.config && header.number == number,
            "the shard belongs to another set or place (shard {} of set {:016x}; shard {number} of {:016x} is expected)",
            header.number,
            header.config,
            manifest.config
        );
        file.seek(SeekFrom::Start(length - FOOTER_BYTES as u64)).context("cannot read the footer")?;
        file.read_exact(&mut footer).context("cannot read the footer")?;
        let footer = Footer::decode(&footer, length)?;
        let expected = Geometry { scale: manifest.scale, lq_size: manifest.lq_size };
        ensure!(header.geometry == expected, "the shard holds {:?} where the manifest says {expected:?}", header.geometry);
        let found = ShardInfo {
            records: footer.records,
            sources: footer.sources,
            bytes: length,
            sources_crc: footer.sources_crc,
            index_crc: footer.index_crc,
        };
        ensure!(*info == found, "the shard is not the one the manifest lists ({found:?} where {info:?} is expected)");
        let map = map(&file, length)?;
        let mut shard = Shard { path, file, map, longest: 0, footer, first };
        shard.longest = shard.check_tables(expected)?;
        Ok(shard)
    }

    /// Every image of the shard, with the number of its records.
    fn sources(&self) -> Result<Vec<(SourceEntry, u64)>> {
        let mut counts = vec![0; self.footer.sources as usize];
        for i in 0..self.footer.records as usize {
            counts[self.entry(i).source as usize] += 1;
        }
        let entry = |(i, count)| Ok((decode_source(self.source_table(), self.footer.sources, i as u32)?, count));
        counts.into_iter().enumerate().map(entry).collect()
    }

    /// Checks source table and index; returns the length of the longest record.
    fn check_tables(&self, geometry: Geometry) -> Result<u32> {
        let f = &self.footer;
        ensure!(crc32fast::hash(self.source_table()) == f.sources_crc, "the source table is damaged (checksum mismatch)");
        ensure!(crc32fast::hash(self.index()) == f.index_crc, "the index is damaged (checksum mismatch)");
        // records lie one behind the other from the header to the source table: no byte is outside a checksum
        let longest = (geometry.lq_bytes() + geometry.hr_bytes()) as u32;
        let (mut end, mut most) = (HEADER_BYTES as u64, 0);
        for i in 0..f.records as usize {
            let e = self.entry(i);
            ensure!(e.offset == end, "record {i} begins at byte {} where {end} is expected", e.offset);
            ensure!(e.length <= longest, "record {i} has {} bytes; a raw pair has {longest}", e.length);
            ensure!(u64::from(e.source) < f.sources, "record {i} names source {} of {}", e.source, f.sources);
            known_codec(e.codec).with_context(|| format!("record {i}"))?;
            end += u64::from(e.length);
            most = most.max(e.length);
        }
        ensure!(end == f.sources_at, "the records end at byte {end} where {} is expected", f.sources_at);
        Ok(most)
    }

    fn source_table(&self) -> &[u8] {
        &self.map[self.footer.sources_at as usize..self.footer.index_at as usize]
    }

    fn index(&self) -> &[u8] {
        &self.map[self.footer.index_at as usize..][..self.footer.records as usize * INDEX_ENTRY_BYTES]
    }

    fn entry(&self, i: usize) -> IndexEntry {
        IndexEntry::decode(self.index(), i)
    }

    /// An index entry without touching the map, whose pages may have gone with the disk or network behind them.
    fn entry_for(&self, i: usize, io: Io) -> Result<IndexEntry> {
        if io == Io::Mmap {
            return Ok(self.entry(i));
        }
        let mut bytes = [0; INDEX_ENTRY_BYTES];
        let at = self.footer.index_at + (i * INDEX_ENTRY_BYTES) as u64;
        self.file.read_exact_at(&mut bytes, at).context("cannot read the record's index entry")?;
        Ok(IndexEntry::decode(&bytes, 0))
    }

    fn source(&self, i: usize, io: Io) -> Result<RecordSource> {
        let entry = self.entry_for(i, io)?;
        let source = match io {
            Io::Mmap => decode_source(self.source_table(), self.footer.sources, entry.source)?,
            Io::Pread => {
                let mut table = vec![0; (self.footer.index_at - self.footer.sources_at) as usize];
                self.file.read_exact_at(&mut table, self.footer.sources_at).context("cannot read the source table")?;
                decode_source(&table, self.footer.sources, entry.source)?
            }
        };
        Ok(RecordSource { image: source.name, x: entry.x, y: entry.y })
    }

    /// The bytes of records `first..=last` in the file.
    fn span(&self, first: usize, last: usize, io: Io) -> Result<Range<u64>> {
        let last = self.entry_for(last, io)?;
        let span = self.entry_for(first, io)?.offset..last.offset + u64::from(last.length);
        ensure!(span.start < span.end && span.end <= self.footer.sources_at, "the index has changed since the set was opened");
        Ok(span)
    }

    /// The whole pages that hold a span: first byte and length in the map.
    fn pages(&self, span: Range<u64>) -> (usize, usize) {
        let start = span.start as usize / page_bytes() * page_bytes();
        (start, span.end as usize - start)
    }

    fn advise(&self, span: Range<u64>, advice: Advice) {
        let (start, length) = self.pages(span);
        match advice {
            Advice::WillNeed => {
                let _ = self.map.advise_range(memmap2::Advice::WillNeed, start, length); // touches no page itself
            }
            Advice::DontNeed => {
                use std::os::fd::AsRawFd;
                // first out of this process, then out of the page cache, which keeps pages that are still mapped
                // SAFETY: a map of a file that is only read loses nothing: its pages come back from the file
                let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length) };
                // SAFETY: plain system call on an open file
                unsafe { libc::posix_fadvise(self.file.as_raw_fd(), start as i64, length as i64, libc::POSIX_FADV_DONTNEED) };
            }
        }
    }

    fn read(
        &self,
        i: usize,
        crop: Crop,
        (io, room): (Io, &mut Vec<u8>),
        decoder: &mut Decoder,
        lq: &mut [u8],
        hr: &mut [u8],
    ) -> Result<()> {
        let entry = self.entry_for(i, io)?;
        let payload = match io {
            Io::Mmap => &self.map[entry.offset as usize..][..entry.length as usize],
            Io::Pread => {
                // the index was checked when the set was opened; it may have been overwritten since
                ensure!(entry.length <= self.longest, "the index has changed since the set was opened");
                room.resize(self.longest.max(room.len() as u32) as usize, 0);
                let room = &mut room[..entry.length as usize];
                self.file.read_exact_at(room, entry.offset).context("cannot read the record")?;
                room
            }
        };
        let crc = crc32fast::hash(payload);
        ensure!(crc == entry.crc, "the record is damaged (checksum {crc:08x} where {:08x} is expected)", entry.crc);
        decoder.decode_crop(known_codec(entry.codec)?, payload, crop, lq, hr)
    }

    /// Names a record for an error: where it lies and what it was cut from.
    fn describe(&self, i: usize, record: u64, io: Io) -> String {
        let source = match self.source(i, io) {
            Ok(s) => format!("image {}, LQ patch at {}, {}", s.image, s.x, s.y),
            Err(e) => format!("image unknown: {e}"),
        };
        format!("{}, record {i} ({record} in the set; {source})", self.path.display())
    }
}

fn known_codec(id: u8) -> Result<Codec> {
    Codec::from_id(id).with_context(|| format!("codec {id} is not known to this paragon; use a newer one"))
}

fn page_bytes() -> usize {
    // SAFETY: a plain question to the system
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Maps a whole finished shard for reading.
///
/// The contract of a map is that nobody changes or shortens the file while it lives. Shards are written under another
/// name, synced, made read-only and renamed, and paragon never opens one for writing again; the length was checked on
/// this very handle. What remains is another program cutting a shard while it is in use, against the file's permissions:
/// the kernel then ends the process with SIGBUS, as it would for any program's own executable.
fn map(file: &File, length: u64) -> Result<Mmap> {
    let length = usize::try_from(length).context("the shard is larger than the address space")?;
    // SAFETY: see the contract above; the slice is only ever read, and as plain bytes
    let map = unsafe { memmap2::MmapOptions::new().len(length).map(file) };
    map.context("cannot map the shard into memory")
}
