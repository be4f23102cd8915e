//! The fixed parts of a shard file: header, index and footer, as `shards/FORMAT.md` defines them.
//! Depends on CRC32 and `error`. Promises that everything it parses was checked: sizes, checksums,
//! ranges and bounds. Each error says what was expected and what was found.

use super::error::{Kind, marked};
use anyhow::{Result, ensure};
use std::cmp::Ordering;

/// First eight bytes of every shard.
pub const SHARD_MAGIC: [u8; 8] = *b"PGNSHARD";
/// Last eight bytes of every finished shard.
pub const FOOTER_MAGIC: [u8; 8] = *b"PGNSHEND";
/// A reader refuses any other major version.
pub const MAJOR: u16 = 1;
/// A reader accepts any minor version; feature bits announce what a minor version adds. Shards
/// without such a feature are written as version 1.0, so that every reader accepts them.
pub const MINOR: u16 = 1;
/// Feature bit of 1.1: the header gives the number of LQ patches of a record, which is not 1.
pub const FEATURE_LQS: u32 = 1;
/// Feature bits that this program understands. A reader must know all that are set.
pub const KNOWN_INCOMPATIBLE: u32 = FEATURE_LQS;
/// Largest number of LQ patches (variants) of a record: the largest record then takes 3.05 GiB, and
/// its length is a 32-bit number.
pub const MAX_LQS: u16 = 64;

/// The header: fixed, so that the first record starts at a known place.
pub const HEADER_BYTES: usize = 64;
/// Bytes of one index entry.
pub const INDEX_ENTRY_BYTES: usize = 32;
/// Bytes of one entry of the source table; the names follow all entries.
pub const SOURCE_ENTRY_BYTES: usize = 32;
/// The footer: fixed, found from the end of the file.
pub const FOOTER_BYTES: usize = 72;
/// Bytes of the footer before its own checksum.
const FOOTER_CHECKED_BYTES: usize = 60;
/// The only colour layout of 1.0: R, G, B in this order, 8 bits each, rows top to bottom.
pub const LAYOUT_RGB8: u8 = 1;

/// Largest scale: at a larger one the LQ holds too little for a network to work from.
pub const MAX_SCALE: u32 = 16;
/// Smallest LQ patch: networks downsample by up to 8, and in a smaller patch every pixel is near
/// the border.
pub const MIN_LQ_SIZE: u32 = 8;
/// Largest HR patch side in pixels: one raw record then stays under 64 MiB (96 MiB at scale 1), far
/// inside the 32-bit record length.
pub const MAX_HR_SIZE: u32 = 4096;
/// Largest number of records in one shard: it bounds the index at 512 MiB.
pub const MAX_RECORDS: u64 = 1 << 24;
/// Largest source table of one shard, bytes: its name offsets are 32 bits wide.
pub const MAX_SOURCE_TABLE_BYTES: u64 = u32::MAX as u64;

/// Side lengths of one LQ/HR pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// HR side over LQ side; 1 for pairs of equal size (restoration).
    pub scale: u32,
    /// LQ patch side in pixels, as stored.
    pub lq_size: u32,
}

impl Geometry {
    /// Checks the limits of the format.
    ///
    /// # Errors
    /// A scale or a patch side out of range.
    pub fn new(scale: u32, lq_size: u32) -> Result<Self> {
        ensure!(
            (1..=MAX_SCALE).contains(&scale),
            "the scale is {scale}; it must be 1 to {MAX_SCALE}"
        );
        ensure!(
            lq_size >= MIN_LQ_SIZE,
            "the LQ patch is {lq_size} pixels wide; the least is {MIN_LQ_SIZE}"
        );
        let most = MAX_HR_SIZE / scale;
        ensure!(
            lq_size <= most,
            "the LQ patch is {lq_size} pixels wide; at scale {scale} the most is {most} (an HR patch of {MAX_HR_SIZE})"
        );
        Ok(Geometry { scale, lq_size })
    }

    /// LQ patch side in pixels.
    pub fn lq(&self) -> usize {
        self.lq_size as usize
    }

    /// HR patch side in pixels.
    pub fn hr(&self) -> usize {
        (self.lq_size * self.scale) as usize
    }

    /// Bytes of a whole LQ patch.
    pub fn lq_bytes(&self) -> usize {
        self.lq() * self.lq() * 3
    }

    /// Bytes of a whole HR patch.
    pub fn hr_bytes(&self) -> usize {
        self.hr() * self.hr() * 3
    }

    /// Bytes of the pixels of a record with `lqs` LQ patches.
    pub fn record_bytes(&self, lqs: u16) -> usize {
        usize::from(lqs) * self.lq_bytes() + self.hr_bytes()
    }
}

/// The first [`HEADER_BYTES`] bytes of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Side lengths of every pair in the shard.
    pub geometry: Geometry,
    /// How the LQ was made: 0 = it came with the images, otherwise the identifier of the filter or
    /// of the kind of recipe.
    pub recipe: u8,
    /// LQ patches of every record: 1, 0 for HR alone, or the number of variants.
    pub lqs: u16,
    /// Hash of everything that decides the bytes of the set; equal in all shards of a set.
    pub config: u64,
    /// Number of the shard in its set, from 0.
    pub number: u32,
}

impl Header {
    /// Returns the header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut b = [0u8; HEADER_BYTES];
        b[0..8].copy_from_slice(&SHARD_MAGIC);
        b[8..10].copy_from_slice(&MAJOR.to_le_bytes());
        if self.lqs != 1 {
            b[10..12].copy_from_slice(&MINOR.to_le_bytes());
            b[12..16].copy_from_slice(&FEATURE_LQS.to_le_bytes());
            b[30..32].copy_from_slice(&self.lqs.to_le_bytes());
        }
        // 16..20 compatible features: none is defined
        b[20..24].copy_from_slice(&self.geometry.scale.to_le_bytes());
        b[24..28].copy_from_slice(&self.geometry.lq_size.to_le_bytes());
        b[28] = LAYOUT_RGB8;
        b[29] = self.recipe;
        b[32..40].copy_from_slice(&self.config.to_le_bytes());
        b[40..44].copy_from_slice(&self.number.to_le_bytes());
        seal(&mut b);
        b
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// Another kind of file, a version or feature that this program does not know (the error names
    /// it), a damaged header, sizes out of range.
    pub fn decode(b: &[u8]) -> Result<Self> {
        ensure!(
            b.len() >= HEADER_BYTES,
            "the file has {} bytes; a shard's header alone has {HEADER_BYTES}",
            b.len()
        );
        let b = &b[..HEADER_BYTES];
        if b[0..8] != SHARD_MAGIC {
            let text = "this is not a paragon shard (it does not start with PGNSHARD)";
            return Err(marked(Kind::NotAShard, text));
        }
        let seal = check_seal("header", b);
        let version = check_version("shard", u16_at(b, 8), u16_at(b, 10), MAJOR);
        if let (Err(_), Err(e)) = (&seal, &version) {
            // the checksum covers the version too: a newer header may also put it elsewhere
            let text = format!("{e}, unless the header is damaged (checksum mismatch)");
            return Err(marked(Kind::Newer, text));
        }
        version.and(seal)?;
        let unknown = u32_at(b, 12) & !KNOWN_INCOMPATIBLE;
        if unknown != 0 {
            let (major, minor) = (u16_at(b, 8), u16_at(b, 10));
            let text = format!(
                "the shard (format {major}.{minor}) uses features this paragon does not know (bits {unknown:#010x}); \
                 read it with a paragon that knows format {major}.{minor}"
            );
            return Err(marked(Kind::Newer, text));
        }
        let geometry = Geometry::new(u32_at(b, 20), u32_at(b, 24))?;
        let lqs = match u32_at(b, 12) & FEATURE_LQS {
            0 => 1,
            _ => u16_at(b, 30),
        };
        check_lqs(lqs)?;
        ensure!(
            b[28] == LAYOUT_RGB8,
            "the colour layout is {}; this paragon reads {LAYOUT_RGB8} (RGB, 8 bits)",
            b[28]
        );
        Ok(Header {
            geometry,
            recipe: b[29],
            lqs,
            config: u64_at(b, 32),
            number: u32_at(b, 40),
        })
    }
}

/// Refuses a number of LQ patches of a record that is out of range.
///
/// # Errors
/// More than [`MAX_LQS`].
pub fn check_lqs(lqs: u16) -> Result<()> {
    ensure!(
        lqs <= MAX_LQS,
        "a record has {lqs} LQ patches; the most is {MAX_LQS}"
    );
    Ok(())
}

/// One entry of the index: where a record is, its checksum, and what it was cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// First byte of the record in the file.
    pub offset: u64,
    /// Stored bytes.
    pub length: u32,
    /// CRC32 of the stored bytes.
    pub crc: u32,
    /// Number of the image in the shard's source table.
    pub source: u32,
    /// Left edge of the LQ patch in the LQ image, pixels.
    pub x: u32,
    /// Top edge of the LQ patch in the LQ image, pixels.
    pub y: u32,
    /// Identifier of the codec (`Codec::id`).
    pub codec: u8,
}

impl IndexEntry {
    /// Returns the entry's bytes.
    pub fn encode(&self) -> [u8; INDEX_ENTRY_BYTES] {
        let mut b = [0u8; INDEX_ENTRY_BYTES];
        b[0..8].copy_from_slice(&self.offset.to_le_bytes());
        b[8..12].copy_from_slice(&self.length.to_le_bytes());
        b[12..16].copy_from_slice(&self.crc.to_le_bytes());
        b[16..20].copy_from_slice(&self.source.to_le_bytes());
        b[20..24].copy_from_slice(&self.x.to_le_bytes());
        b[24..28].copy_from_slice(&self.y.to_le_bytes());
        b[28] = self.codec;
        b
    }

    /// Reads entry `i` of an index.
    ///
    /// # Panics
    /// If the index has no entry `i`.
    pub fn decode(index: &[u8], i: usize) -> Self {
        let b = &index[i * INDEX_ENTRY_BYTES..(i + 1) * INDEX_ENTRY_BYTES];
        IndexEntry {
            offset: u64_at(b, 0),
            length: u32_at(b, 8),
            crc: u32_at(b, 12),
            source: u32_at(b, 16),
            x: u32_at(b, 20),
            y: u32_at(b, 24),
            codec: b[28],
        }
    }
}

/// The last [`FOOTER_BYTES`] bytes of a finished shard: they locate everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Pairs in the shard.
    pub records: u64,
    /// Images in the source table.
    pub sources: u64,
    /// First byte of the source table, which is also where the records end.
    pub sources_at: u64,
    /// First byte of the index, which is also where the source table ends.
    pub index_at: u64,
    /// Bytes of the whole file, this footer included.
    pub file_bytes: u64,
    /// CRC32 of the source table.
    pub sources_crc: u32,
    /// CRC32 of the index.
    pub index_crc: u32,
}

impl Footer {
    /// Returns the footer's bytes.
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut b = [0u8; FOOTER_BYTES];
        let words = [
            self.records,
            self.sources,
            self.sources_at,
            self.index_at,
            self.file_bytes,
        ];
        for (i, w) in words.iter().enumerate() {
            b[i * 8..i * 8 + 8].copy_from_slice(&w.to_le_bytes());
        }
        b[40..44].copy_from_slice(&self.sources_crc.to_le_bytes());
        b[44..48].copy_from_slice(&self.index_crc.to_le_bytes());
        // 48..60 reserved, zero in 1.0
        let crc = crc32fast::hash(&b[..FOOTER_CHECKED_BYTES]);
        b[60..64].copy_from_slice(&crc.to_le_bytes());
        b[64..72].copy_from_slice(&FOOTER_MAGIC);
        b
    }

    /// Reads the footer of a file of `file_bytes` from its last [`FOOTER_BYTES`] and checks that
    /// every section it names lies inside the file, one after the other.
    ///
    /// # Errors
    /// A file that is cut short or still being written, a damaged footer, sections that do not fit.
    pub fn decode(b: &[u8], file_bytes: u64) -> Result<Self> {
        ensure!(
            b.len() == FOOTER_BYTES && file_bytes >= (HEADER_BYTES + FOOTER_BYTES) as u64,
            "the file has {file_bytes} bytes; an empty shard has {}: it is cut short",
            HEADER_BYTES + FOOTER_BYTES
        );
        ensure!(
            b[64..72] == FOOTER_MAGIC,
            "the end of the shard is missing (no PGNSHEND in the last 8 of {file_bytes} bytes): the file is cut short"
        );
        ensure!(
            crc32fast::hash(&b[..FOOTER_CHECKED_BYTES]) == u32_at(b, FOOTER_CHECKED_BYTES),
            "the footer is damaged (checksum mismatch)"
        );
        let f = Footer {
            records: u64_at(b, 0),
            sources: u64_at(b, 8),
            sources_at: u64_at(b, 16),
            index_at: u64_at(b, 24),
            file_bytes: u64_at(b, 32),
            sources_crc: u32_at(b, 40),
            index_crc: u32_at(b, 44),
        };
        ensure!(
            f.file_bytes == file_bytes,
            "the shard was written with {} bytes and has {file_bytes}: it is cut short or was appended to",
            f.file_bytes
        );
        ensure!(
            f.records <= MAX_RECORDS,
            "the footer claims {} records; the most is {MAX_RECORDS}",
            f.records
        );
        ensure!(
            f.sources <= f.records,
            "the footer claims {} sources for {} records",
            f.sources,
            f.records
        );
        let index_end = f.index_at.checked_add(f.records * INDEX_ENTRY_BYTES as u64);
        ensure!(
            f.sources_at >= HEADER_BYTES as u64
                && f.sources_at <= f.index_at
                && f.index_at - f.sources_at >= f.sources * SOURCE_ENTRY_BYTES as u64
                && f.index_at - f.sources_at <= MAX_SOURCE_TABLE_BYTES
                && index_end == Some(file_bytes - FOOTER_BYTES as u64),
            "the footer's sections do not fit the file ({f:?})"
        );
        Ok(f)
    }
}

/// Refuses a version of `what` (shard or manifest) that this program cannot read.
///
/// # Errors
/// Another major version than `known`, with what to do.
pub(super) fn check_version(what: &str, major: u16, minor: u16, known: u16) -> Result<()> {
    let found = format!("the {what} has format {major}.{minor}; this paragon reads {known}.x");
    match major.cmp(&known) {
        Ordering::Equal => Ok(()),
        Ordering::Greater => {
            let text = format!("{found}: use a newer paragon");
            Err(marked(Kind::Newer, text))
        }
        Ordering::Less => {
            let text = format!("{found}: make the set again with `paragon shard`");
            Err(marked(Kind::Older, text))
        }
    }
}

fn seal(b: &mut [u8; HEADER_BYTES]) {
    let crc = crc32fast::hash(&b[..HEADER_BYTES - 4]);
    b[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn check_seal(what: &str, b: &[u8]) -> Result<()> {
    let (body, crc) = b.split_at(b.len() - 4);
    ensure!(
        crc32fast::hash(body) == u32_at(crc, 0),
        "the {what} is damaged (checksum mismatch)"
    );
    Ok(())
}

/// Little-endian integer at a byte offset; the caller has checked the length.
pub(crate) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

/// See [`u16_at`].
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// See [`u16_at`].
pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            geometry: Geometry {
                scale: 2,
                lq_size: 32,
            },
            recipe: 1,
            lqs: 1,
            config: 0x1234_5678_9ABC_DEF0,
            number: 3,
        }
    }

    fn error<T: std::fmt::Debug>(r: Result<T>) -> String {
        format!("{:#}", r.unwrap_err())
    }

    /// Changes one field of a valid header and seals it again.
    fn altered(at: usize, bytes: &[u8]) -> [u8; HEADER_BYTES] {
        let mut b = header().encode();
        b[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut b);
        b
    }

    #[test]
    fn header_footer_and_entries_come_back() {
        assert_eq!(Header::decode(&header().encode()).unwrap(), header());
        for lqs in [0, 2, MAX_LQS] {
            let several = Header { lqs, ..header() };
            let bytes = several.encode();
            assert_eq!(Header::decode(&bytes).unwrap(), several);
            assert_eq!((u16_at(&bytes, 10), u32_at(&bytes, 12)), (1, FEATURE_LQS));
        }
        // a set with one LQ has the bytes of 1.0
        assert_eq!(header().encode()[10..20], [0; 10]);
        let footer = Footer {
            records: 2,
            sources: 1,
            sources_at: 100,
            index_at: 140,
            file_bytes: 140 + 64 + FOOTER_BYTES as u64,
            sources_crc: 1,
            index_crc: 2,
        };
        assert_eq!(
            Footer::decode(&footer.encode(), footer.file_bytes).unwrap(),
            footer
        );
        let entry = IndexEntry {
            offset: 1 << 40,
            length: 2,
            crc: 3,
            source: 4,
            x: 5,
            y: 6,
            codec: 7,
        };
        assert_eq!(IndexEntry::decode(&entry.encode(), 0), entry);
    }

    #[test]
    fn rejects_every_flipped_bit_of_a_header_and_a_footer() {
        let good = header().encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut b = good;
            b[bit / 8] ^= 1 << (bit % 8);
            // a reader may ignore the minor version, but the checksum covers it too
            assert!(Header::decode(&b).is_err(), "bit {bit}");
        }
        let footer = Footer {
            records: 0,
            sources: 0,
            sources_at: 64,
            index_at: 64,
            file_bytes: 136,
            sources_crc: 0,
            index_crc: 0,
        };
        for bit in 0..FOOTER_BYTES * 8 {
            let mut b = footer.encode();
            b[bit / 8] ^= 1 << (bit % 8);
            assert!(Footer::decode(&b, 136).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn rejects_a_newer_major_version_and_names_it() {
        let e = error(Header::decode(&altered(8, &[2, 0, 5, 0])));
        assert!(e.contains("2.5") && e.contains("newer paragon"), "{e}");
    }

    #[test]
    fn accepts_a_newer_minor_version_and_unknown_compatible_features() {
        assert!(Header::decode(&altered(10, &[9, 0])).is_ok());
        assert!(Header::decode(&altered(16, &[1, 0, 0, 0x80])).is_ok());
    }

    #[test]
    fn rejects_unknown_incompatible_features_and_names_the_version_needed() {
        let e = error(Header::decode(&altered(10, &[3, 0, 0b100, 0, 0, 0])));
        assert!(e.contains("0x00000004") && e.contains("1.3"), "{e}");
    }

    #[test]
    fn rejects_more_variants_than_a_record_can_have() {
        let mut b = Header { lqs: 2, ..header() }.encode();
        b[30..32].copy_from_slice(&(MAX_LQS + 1).to_le_bytes());
        seal(&mut b);
        assert!(error(Header::decode(&b)).contains("the most is 64"));
    }

    #[test]
    fn rejects_another_colour_layout() {
        assert!(error(Header::decode(&altered(28, &[2]))).contains("colour layout"));
    }

    #[test]
    fn rejects_sizes_out_of_range() {
        for (scale, lq) in [(0, 32), (17, 32), (2, 7), (2, 2049), (1, 4097), (16, 257)] {
            assert!(Geometry::new(scale, lq).is_err(), "{scale} {lq}");
        }
        assert!(Geometry::new(16, 256).is_ok() && Geometry::new(1, 4096).is_ok());
        assert!(error(Header::decode(&altered(20, &17u32.to_le_bytes()))).contains("scale"));
    }

    #[test]
    fn rejects_footers_whose_sections_do_not_fit() {
        let good = Footer {
            records: 1,
            sources: 1,
            sources_at: 80,
            index_at: 120,
            file_bytes: 120 + 32 + 72,
            sources_crc: 0,
            index_crc: 0,
        };
        let size = good.file_bytes;
        assert!(Footer::decode(&good.encode(), size).is_ok());
        let cases: [fn(&mut Footer); 8] = [
            |f| f.records = 2,
            |f| f.records = u64::MAX,
            |f| f.sources = 2,
            |f| f.sources_at = 63,
            |f| f.sources_at = 121,
            |f| f.index_at = 100,
            |f| f.index_at = u64::MAX - 3,
            |f| f.file_bytes += 1,
        ];
        for (i, change) in cases.iter().enumerate() {
            let mut f = good.clone();
            change(&mut f);
            assert!(Footer::decode(&f.encode(), size).is_err(), "case {i}");
        }
    }
}
