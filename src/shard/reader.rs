//! Reading a finished set: every shard is checked from end to end of its structure before the map is trusted, and every
//! record by its checksum when it is read. Depends on `format`, `manifest` and `codec`. Promises no panic and no wrong
//! pixel on damaged files, errors that name shard, record and image, and no allocation per record.

use super::codec::{Codec, Decoder};
use super::format::{FOOTER_BYTES, Footer, Geometry, HEADER_BYTES, Header, INDEX_ENTRY_BYTES, IndexEntry, SourceEntry, decode_source};
use super::manifest::{Manifest, ShardInfo, shard_name};
use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
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

/// A square inside the stored LQ patch, in LQ pixels; the HR square is `scale` times that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Left edge.
    pub x: usize,
    /// Top edge.
    pub y: usize,
    /// Side.
    pub size: usize,
}

/// One thread's room for reading; made by [`ShardSet::scratch`] and reused from record to record.
pub struct Scratch {
    decoder: Decoder,
    lq: Vec<u8>,
    hr: Vec<u8>,
}

struct Shard {
    path: PathBuf,
    map: Mmap,
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

    /// Room for one thread to read with.
    pub fn scratch(&self) -> Result<Scratch> {
        Ok(Scratch { decoder: Decoder::new(self.geometry)?, lq: Vec::new(), hr: Vec::new() })
    }

    /// What one scratch holds at most, in bytes: for whole patches, or for crops out of them.
    pub fn scratch_bytes(&self, crops: bool) -> u64 {
        let whole = if crops { self.geometry.lq_bytes() + self.geometry.hr_bytes() } else { 0 };
        Decoder::bytes(self.geometry) + whole as u64
    }

    /// The image and the place that a record was cut from.
    pub fn source(&self, record: u64) -> Result<RecordSource> {
        let (shard, i) = self.find(record)?;
        shard.source(i).with_context(|| format!("{}, record {i}", shard.path.display()))
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
        let (shard, i) = self.find(record)?;
        shard.read(i, &mut scratch.decoder, lq, hr).with_context(|| shard.describe(i, record))
    }

    /// Reads an aligned square of a pair. The slices have the size of the crop.
    ///
    /// # Errors
    /// Those of [`ShardSet::read`], and a crop that does not lie inside the patch.
    pub fn read_crop(&self, record: u64, crop: Crop, scratch: &mut Scratch, lq: &mut [u8], hr: &mut [u8]) -> Result<()> {
        let (size, scale) = (self.geometry.lq(), self.geometry.scale as usize);
        let inside = |at: usize| at.checked_add(crop.size).is_some_and(|end| end <= size);
        ensure!(inside(crop.x) && inside(crop.y), "the crop {crop:?} does not lie in a patch of {size} x {size}");
        let (lq_bytes, hr_bytes) = (crop.size * crop.size * 3, crop.size * crop.size * scale * scale * 3);
        ensure!(lq.len() == lq_bytes && hr.len() == hr_bytes, "the room for the crop {crop:?} has another size");
        if crop.size == size {
            return self.read(record, scratch, lq, hr);
        }
        let Scratch { decoder, lq: whole_lq, hr: whole_hr } = scratch;
        whole_lq.resize(self.geometry.lq_bytes(), 0);
        whole_hr.resize(self.geometry.hr_bytes(), 0);
        let (shard, i) = self.find(record)?;
        shard.read(i, decoder, whole_lq, whole_hr).with_context(|| shard.describe(i, record))?;
        copy_square(whole_lq, size, crop.x, crop.y, crop.size, lq);
        copy_square(whole_hr, size * scale, crop.x * scale, crop.y * scale, crop.size * scale, hr);
        Ok(())
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
        let shard = Shard { path, map, footer, first };
        shard.check_tables(expected)?;
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

    fn check_tables(&self, geometry: Geometry) -> Result<()> {
        let f = &self.footer;
        ensure!(crc32fast::hash(self.source_table()) == f.sources_crc, "the source table is damaged (checksum mismatch)");
        ensure!(crc32fast::hash(self.index()) == f.index_crc, "the index is damaged (checksum mismatch)");
        // records lie one behind the other from the header to the source table: no byte is outside a checksum
        let longest = (geometry.lq_bytes() + geometry.hr_bytes()) as u32;
        let mut end = HEADER_BYTES as u64;
        for i in 0..f.records as usize {
            let e = self.entry(i);
            ensure!(e.offset == end, "record {i} begins at byte {} where {end} is expected", e.offset);
            ensure!(e.length <= longest, "record {i} has {} bytes; a raw pair has {longest}", e.length);
            ensure!(u64::from(e.source) < f.sources, "record {i} names source {} of {}", e.source, f.sources);
            known_codec(e.codec).with_context(|| format!("record {i}"))?;
            end += u64::from(e.length);
        }
        ensure!(end == f.sources_at, "the records end at byte {end} where {} is expected", f.sources_at);
        Ok(())
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

    fn source(&self, i: usize) -> Result<RecordSource> {
        let entry = self.entry(i);
        let source = decode_source(self.source_table(), self.footer.sources, entry.source)?;
        Ok(RecordSource { image: source.name, x: entry.x, y: entry.y })
    }

    fn read(&self, i: usize, decoder: &mut Decoder, lq: &mut [u8], hr: &mut [u8]) -> Result<()> {
        let entry = self.entry(i);
        let payload = &self.map[entry.offset as usize..][..entry.length as usize];
        let crc = crc32fast::hash(payload);
        ensure!(crc == entry.crc, "the record is damaged (checksum {crc:08x} where {:08x} is expected)", entry.crc);
        decoder.decode(known_codec(entry.codec)?, payload, lq, hr)
    }

    /// Names a record for an error: where it lies and what it was cut from.
    fn describe(&self, i: usize, record: u64) -> String {
        let source = match self.source(i) {
            Ok(s) => format!("image {}, LQ patch at {}, {}", s.image, s.x, s.y),
            Err(e) => format!("image unknown: {e}"),
        };
        format!("{}, record {i} ({record} in the set; {source})", self.path.display())
    }
}

fn known_codec(id: u8) -> Result<Codec> {
    Codec::from_id(id).with_context(|| format!("codec {id} is not known to this paragon; use a newer one"))
}

fn copy_square(from: &[u8], width: usize, x: usize, y: usize, size: usize, to: &mut [u8]) {
    for (row, out) in from.chunks_exact(width * 3).skip(y).zip(to.chunks_exact_mut(size * 3)) {
        out.copy_from_slice(&row[x * 3..(x + size) * 3]);
    }
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
