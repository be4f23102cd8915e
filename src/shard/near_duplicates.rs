//! Finds images that resemble earlier ones, by their perceptual hashes, and stores the hashes beside
//! the manifest for `--append` and for merging parts. Depends on `set` and `files`. Promises that the
//! first image in input order stays, so that the choice does not depend on threads, kills or parts.

use super::criteria::HASH_BITS;
use super::format::{u32_at, u64_at};
use super::manifest::shard_name;
use super::set::{RecordLocation, first_records};
use crate::support::failure;
use crate::support::files;
use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Name of the file of hashes in the folder of a set: [`MAGIC`], the number of images (u64), for each
/// image in the order of the set its hash (u64) and the number of its patches that were left out
/// (u32), and the CRC32 of all before it. All are little-endian.
pub(super) const HASHES_NAME: &str = "hashes.psi";
/// First eight bytes of the file.
const MAGIC: [u8; 8] = *b"PGNHASH1";
/// Bytes before the hashes.
const PREFIX_BYTES: usize = 16;
/// Bytes for each image.
const ENTRY_BYTES: usize = 12;
/// Bytes after the hashes.
const CRC_BYTES: usize = 4;
/// Most images in one file; more are not read, so that a wrong file does not take the memory.
const MOST: u64 = 1 << 32;

/// An image as the file of hashes describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashedImage {
    pub hash: u64,
    /// Number of patches left out by `--min-detail`, `--min-entropy` or `--max-blur`. If a merge
    /// leaves out the image, they no longer count.
    pub flat: u32,
}

/// The hashes of the images of a set and of its held-out part. They take 20 bytes of memory for each
/// image, and finding the nearest takes about a nanosecond for each.
pub(super) struct NearDuplicates {
    /// Largest number of different bits of near duplicates. `None`: the hashes are only collected, as
    /// in a part of a set, where earlier images may be in another part.
    limit: Option<u32>,
    sets: [Hashes; 2],
}

#[derive(Default)]
struct Hashes {
    hashes: Vec<u64>,
    flats: Vec<u32>,
    /// Where the first record of each image is, packed.
    locations: Vec<u64>,
}

impl NearDuplicates {
    pub fn new(limit: Option<u32>) -> Self {
        NearDuplicates {
            limit,
            sets: Default::default(),
        }
    }

    /// Adds an image that gave pairs.
    pub fn note(&mut self, image: HashedImage, first_record: RecordLocation) {
        let set = &mut self.sets[usize::from(first_record.held_out)];
        set.hashes.push(image.hash);
        set.flats.push(image.flat);
        set.locations.push(first_record.pack());
    }

    /// The nearest earlier image, if it is a near duplicate, and by how many bits the hashes differ.
    pub fn find(&self, hash: u64) -> Option<(RecordLocation, u32)> {
        let limit = self.limit?;
        let nearest = |set: &Hashes| {
            let (at, bits) = nearest(&set.hashes, hash)?;
            Some((set.locations[at], bits))
        };
        let [train, held_out] = self.sets.each_ref().map(nearest);
        let found = [train, held_out].into_iter().flatten();
        let (location, bits) = found.min_by_key(|&(_, bits)| bits)?;
        (bits <= limit).then(|| (RecordLocation::unpack(location), bits))
    }

    /// Reads the hashes of the `shards` finished shards in a folder.
    ///
    /// # Errors
    /// The file of hashes or a shard is missing, damaged or cannot be read.
    pub fn load(&mut self, folder: &Path, held_out: bool, shards: usize) -> Result<()> {
        if shards == 0 {
            return Ok(());
        }
        // a run that was killed before its manifest may have left more hashes than the set has images
        let hashes = read(folder)?;
        let mut last = None;
        let mut count = 0;
        for shard in 0..shards {
            for (name, offset) in first_records(&folder.join(shard_name(shard)))? {
                if last.as_ref() == Some(&name) {
                    continue; // an image that goes on in this shard
                }
                let image = hashes.get(count).copied();
                let image = image.with_context(|| {
                    format!("{} lacks the hash of {name}", path_in(folder).display())
                })?;
                let location = RecordLocation {
                    held_out,
                    shard,
                    offset,
                };
                self.note(image, location);
                (last, count) = (Some(name), count + 1);
            }
        }
        Ok(())
    }

    /// Writes the hashes of the set to train on, or of the held-out set, into its folder.
    ///
    /// # Errors
    /// An error of the system.
    pub fn write(&self, folder: &Path, held_out: bool) -> Result<()> {
        let set = &self.sets[usize::from(held_out)];
        let count = set.hashes.len();
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + ENTRY_BYTES * count + CRC_BYTES);
        bytes.extend(MAGIC);
        bytes.extend((count as u64).to_le_bytes());
        for (hash, flat) in set.hashes.iter().zip(&set.flats) {
            bytes.extend(hash.to_le_bytes());
            bytes.extend(flat.to_le_bytes());
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        files::write_atomic(&path_in(folder), |out| {
            out.write_all(&bytes)?;
            Ok(sys::make_read_only(out.get_ref())?)
        })
    }
}

/// The position of the hash that differs least from `hash`, the first of equals, and by how many bits.
pub(super) fn nearest(hashes: &[u64], hash: u64) -> Option<(usize, u32)> {
    let mut best = (0, HASH_BITS + 1);
    for (at, other) in hashes.iter().enumerate() {
        let bits = (other ^ hash).count_ones();
        if bits < best.1 {
            best = (at, bits);
        }
    }
    (!hashes.is_empty()).then_some(best)
}

fn path_in(folder: &Path) -> PathBuf {
    folder.join(HASHES_NAME)
}

/// Reads the hashes of the images of the set in a folder, in their order.
///
/// # Errors
/// The file is missing or damaged; an error of the system.
pub(super) fn read(folder: &Path) -> Result<Vec<HashedImage>> {
    let path = path_in(folder);
    let most = (PREFIX_BYTES + CRC_BYTES) as u64 + ENTRY_BYTES as u64 * MOST;
    let read = || {
        let mut bytes = Vec::new();
        files::open_regular(&path)?
            .take(most)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = match failure::retry(read) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!(
            "{} is missing: the set was made with --near-duplicates, and the hashes of its images are needed; copy the file \
             back or make the set anew (--overwrite)",
            path.display()
        ),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    decode(&bytes).with_context(|| path.display().to_string())
}

fn decode(bytes: &[u8]) -> Result<Vec<HashedImage>> {
    ensure!(
        bytes.starts_with(&MAGIC),
        "this is not a file of perceptual hashes (it does not start with PGNHASH1)"
    );
    ensure!(
        bytes.len() >= PREFIX_BYTES + CRC_BYTES,
        "the file is cut short: {DAMAGED}"
    );
    let count = u64_at(bytes, MAGIC.len());
    let length = (PREFIX_BYTES + CRC_BYTES) as u64 + ENTRY_BYTES as u64 * count.min(MOST);
    ensure!(
        bytes.len() as u64 == length,
        "the file has {} bytes where {count} images take {length}: {DAMAGED}",
        bytes.len()
    );
    let (content, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
    ensure!(
        crc32fast::hash(content).to_le_bytes() == crc,
        "the file is damaged (checksum mismatch): {DAMAGED}"
    );
    let entry = |bytes: &[u8]| HashedImage {
        hash: u64_at(bytes, 0),
        flat: u32_at(bytes, 8),
    };
    let entries = content[PREFIX_BYTES..].chunks_exact(ENTRY_BYTES);
    Ok(entries.map(entry).collect())
}

/// What to do if the file of hashes is damaged.
const DAMAGED: &str = "copy it back or make the set anew (--overwrite)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::rng::mix;

    fn image(i: u64) -> HashedImage {
        HashedImage {
            hash: mix(i),
            flat: i as u32,
        }
    }

    #[test]
    fn every_length_and_every_flipped_byte_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut near = NearDuplicates::new(Some(3));
        for i in 0..5 {
            let location = RecordLocation {
                held_out: i == 3,
                shard: i,
                offset: 9,
            };
            near.note(image(i as u64), location);
        }
        near.write(dir.path(), false).unwrap();
        let wanted = [0, 1, 2, 4].map(image).to_vec();
        assert_eq!(read(dir.path()).unwrap(), wanted);
        let bytes = std::fs::read(path_in(dir.path())).unwrap();
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            assert!(decode(&bytes).is_err(), "byte {at}");
        }
        assert!(decode(&[bytes, vec![0]].concat()).is_err());
    }

    #[test]
    fn the_nearest_earlier_image_within_the_limit_is_found() {
        let place = |held_out, shard| RecordLocation {
            held_out,
            shard,
            offset: 0,
        };
        let of = |hash| HashedImage { hash, flat: 0 };
        let mut near = NearDuplicates::new(Some(4));
        assert_eq!(near.find(0), None);
        near.note(of(0b1111_0000), place(false, 1));
        near.note(of(0b0000_0111), place(true, 2));
        near.note(of(0b0000_0111), place(false, 3));
        assert_eq!(near.find(0b1111_0000), Some((place(false, 1), 0)));
        assert_eq!(
            near.find(0b0000_0011),
            Some((place(false, 3), 1)),
            "of equals, the one to train on"
        );
        assert_eq!(near.find(u64::MAX), None);
        assert_eq!(NearDuplicates::new(None).find(0), None);
    }
}
