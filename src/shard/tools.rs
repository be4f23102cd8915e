//! Looking at a finished set: what is in it, whether every record is whole, its pairs as images.
//! Depends on `reader` and `report`. Promises to leave the set as it is, to name shard, record and
//! image of every damage, and to read by calls alone: a disk that cannot deliver a block is an
//! error of the system with a name, and never taken for damage.

use super::error::{Error, is_newer};
use super::manifest::{Manifest, shard_name};
use super::reader::{Io, RecordSource, ShardSet};
use super::shard_reader::ShardReader;
use crate::report::sheet::{Panel, comparison};
use crate::support::progress::Progress;
use crate::support::rng::Rng;
use crate::{support::failure, support::files};
use anyhow::{Result, ensure};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a set holds.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Version of the paragon that wrote it.
    pub paragon: String,
    /// Identity of the content, hexadecimal.
    pub fingerprint: String,
    /// Pairs.
    pub pairs: u64,
    /// HR side over LQ side.
    pub scale: u32,
    /// LQ patch side, pixels.
    pub lq_size: u32,
    /// Distance of neighbouring patches in the LQ image, pixels.
    pub stride: u32,
    /// How the LQ was made.
    pub lq_recipe: String,
    /// Images found when the set was made.
    pub images: u64,
    /// Images that gave pairs.
    pub used: u64,
    /// Shard files.
    pub shards: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Bytes of all pairs as pixels.
    pub bytes_raw: u64,
    /// By codec: how many pairs, and how large they are.
    pub codecs: BTreeMap<&'static str, Stored>,
    /// LQ patch side that training takes by default, pixels.
    pub crop: u32,
    /// Other options that decided the content.
    pub options: Vec<(String, String)>,
    /// Patches left out because they were flat, and as duplicates.
    pub dropped: (u64, u64),
    /// Images that gave no pairs, by kind of reason.
    pub rejected: BTreeMap<String, u64>,
    /// Part and number of parts, where this is one.
    pub part: Option<(u32, u32)>,
    /// Times that images were added.
    pub appended: u32,
    /// Stored bytes of a pair: the size that a tenth, half and nine tenths of them do not exceed.
    pub record_bytes: [u32; 3],
}

/// Pairs stored with one codec.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stored {
    /// How many.
    pub pairs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The smallest and the largest, bytes.
    pub range: (u32, u32),
}

/// Gathers what the manifest and the indexes say.
pub fn info(set: &ShardSet) -> Result<Info> {
    let manifest = set.manifest();
    let geometry = set.geometry();
    let mut codecs = BTreeMap::new();
    let mut sizes = Vec::with_capacity(set.len() as usize);
    set.each_stored(|codec, bytes| {
        let entry = codecs.entry(codec.name()).or_insert(Stored {
            range: (u32::MAX, 0),
            ..Stored::default()
        });
        entry.pairs += 1;
        entry.bytes += u64::from(bytes);
        entry.range = (entry.range.0.min(bytes), entry.range.1.max(bytes));
        sizes.push(bytes);
    })?;
    sizes.sort_unstable();
    let tenths = |n: usize| sizes[(sizes.len() - 1) * n / 10];
    let extra = &manifest.extra;
    Ok(Info {
        paragon: manifest.paragon.clone(),
        fingerprint: format!("{:016x}", set.fingerprint()),
        pairs: set.len(),
        scale: geometry.scale,
        lq_size: geometry.lq_size,
        stride: manifest.stride,
        lq_recipe: manifest.recipe_name.clone(),
        images: manifest.images,
        used: manifest.used,
        shards: manifest.shards.len() as u64,
        bytes: manifest.bytes(),
        bytes_raw: set.len() * (geometry.lq_bytes() + geometry.hr_bytes()) as u64,
        codecs,
        crop: manifest.crop(),
        options: extra.options.clone(),
        dropped: extra.dropped,
        rejected: extra.rejected.iter().cloned().collect(),
        part: (extra.part.0 > 0).then_some(extra.part),
        appended: extra.appended,
        record_bytes: [tenths(1), tenths(5), tenths(9)],
    })
}

/// A record that cannot be read, or a whole shard.
#[derive(Clone, Debug, Serialize)]
pub struct Damage {
    /// Number of the record in the set; nothing where it is about the shard's own tables.
    pub record: Option<u64>,
    /// Shard, record, image and what is wrong, in words.
    pub error: String,
}

/// What a check found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    /// Pairs that the manifest lists.
    pub pairs: u64,
    /// Everything that is damaged, in order.
    pub damaged: Vec<Damage>,
    /// Everything that the disk or network behind the set did not deliver, in order: whether it is
    /// whole is not known.
    pub unreadable: Vec<Damage>,
    /// Pairs that were not looked at, since too many could not be read.
    pub unchecked: u64,
}

/// Records that the system may fail to read before a check gives up: each is tried for about 1.5 s.
const MOST_UNREADABLE: usize = 16;

/// What came of looking at one record or one shard's tables.
enum Found {
    Damaged(Damage),
    Unreadable(Damage),
    Unchecked,
}

/// Tells damage from a block that the disk or network does not deliver.
///
/// # Errors
/// What concerns the whole check: no permission, no descriptors, no memory, a newer format.
fn judge(record: Option<u64>, error: anyhow::Error) -> Result<Found> {
    let damage = || Damage {
        record,
        error: format!("{error:#}"),
    };
    match failure::system_cause(&error) {
        None if is_newer(&error) => Err(error),
        None => Ok(Found::Damaged(damage())),
        Some(cause) if is_of_the_disk(cause) => Ok(Found::Unreadable(damage())),
        Some(_) => Err(error.context(
            "an error of the system, which says nothing about the set; see to it and verify again",
        )),
    }
}

/// Whether an error is of one block or one connection, so that other records may well be read.
fn is_of_the_disk(error: &io::Error) -> bool {
    let by_kind = matches!(
        error.kind(),
        ErrorKind::TimedOut | ErrorKind::StaleNetworkFileHandle | ErrorKind::NetworkDown
    );
    by_kind
        || matches!(
            error.raw_os_error(),
            Some(libc::EIO | libc::EREMOTEIO | libc::EBADMSG | libc::EUCLEAN | libc::ENODATA)
        )
}

/// Checks a whole set on all threads of the current pool: every shard's structure, and every record
/// by decoding it. Where a shard's tables are damaged or it is missing, the records of the others
/// are still held against their checksums.
///
/// # Errors
/// No finished set, a manifest that cannot be read, a newer format, an error of the system that
/// concerns all of it. Damage and single blocks that cannot be read are no errors here.
pub fn verify(folder: &Path, progress: &Progress) -> Result<Verified, Error> {
    verify_set(folder, progress).map_err(|e| Error::classify(folder, e))
}

fn verify_set(folder: &Path, progress: &Progress) -> Result<Verified> {
    let manifest = Manifest::read(folder)?;
    let pairs = manifest.records();
    let unreadable = AtomicUsize::new(0);
    let shards: Vec<Option<Found>> = (0..manifest.shards.len())
        .into_par_iter()
        .map(|n| structure(folder, &manifest, n))
        .collect::<Result<_>>()?;
    let found: Vec<Found> = if pairs == 0 || shards.iter().any(Option::is_some) {
        let whole: Vec<bool> = shards.iter().map(Option::is_none).collect();
        let check = |n: usize| {
            if whole[n] {
                checksums(folder, &manifest, n, progress, &unreadable)
            } else {
                Ok(Vec::new())
            }
        };
        let records: Vec<Vec<Found>> = (0..whole.len())
            .into_par_iter()
            .map(check)
            .collect::<Result<_>>()?;
        shards
            .into_iter()
            .zip(records)
            .flat_map(|(shard, records)| shard.into_iter().chain(records))
            .collect()
    } else {
        match ShardSet::open(folder) {
            Ok(set) => records(&set, progress, &unreadable)?,
            Err(e) => vec![judge(None, e.into())?],
        }
    };
    let mut verified = Verified {
        pairs,
        ..Verified::default()
    };
    for found in found {
        match found {
            Found::Damaged(damage) => verified.damaged.push(damage),
            Found::Unreadable(damage) => verified.unreadable.push(damage),
            Found::Unchecked => verified.unchecked += 1,
        }
    }
    Ok(verified)
}

fn structure(folder: &Path, manifest: &Manifest, number: usize) -> Result<Option<Found>> {
    ShardReader::open(folder, manifest, number)
        .err()
        .map(|e| judge(None, e))
        .transpose()
}

/// Counts a record that cannot be read.
fn counted(found: Found, unreadable: &AtomicUsize) -> Found {
    if matches!(found, Found::Unreadable(_)) {
        unreadable.fetch_add(1, Ordering::Relaxed);
    }
    found
}

/// Holds the records of one shard against their checksums without decoding them.
fn checksums(
    folder: &Path,
    manifest: &Manifest,
    number: usize,
    progress: &Progress,
    unreadable: &AtomicUsize,
) -> Result<Vec<Found>> {
    let first: u64 = manifest.shards[..number].iter().map(|s| s.records).sum();
    let mut shard = match ShardReader::open(folder, manifest, number) {
        Ok(shard) => shard,
        Err(e) => return Ok(vec![judge(None, e)?]),
    };
    let mut all = Vec::new();
    for i in 0..manifest.shards[number].records {
        if unreadable.load(Ordering::Relaxed) >= MOST_UNREADABLE {
            all.push(Found::Unchecked);
        } else if let Err(e) = shard.record() {
            let e = e.context(folder.join(shard_name(number)).display().to_string());
            all.push(counted(judge(Some(first + i), e)?, unreadable));
        }
        progress.advance(1);
    }
    Ok(all)
}

/// Reads and decodes every record; the damaged ones, in order.
fn records(set: &ShardSet, progress: &Progress, unreadable: &AtomicUsize) -> Result<Vec<Found>> {
    let geometry = set.geometry();
    let room = || -> Result<_> {
        Ok((
            set.scratch_for(Io::Pread)?,
            vec![0; geometry.lq_bytes()],
            vec![0; geometry.hr_bytes()],
        ))
    };
    let check = |room: &mut Result<_>, record: u64| -> Result<Option<Found>> {
        let (scratch, lq, hr): &mut (_, Vec<u8>, Vec<u8>) = match room {
            Ok(room) => room,
            Err(e) => anyhow::bail!("cannot set up a thread: {e:#}"),
        };
        if unreadable.load(Ordering::Relaxed) >= MOST_UNREADABLE {
            return Ok(Some(Found::Unchecked));
        }
        let outcome = set.read(record, scratch, lq, hr);
        progress.advance(1);
        let found = outcome
            .err()
            .map(|e| judge(Some(record), e.into()))
            .transpose()?;
        Ok(found.map(|found| counted(found, unreadable)))
    };
    let found: Result<Vec<Option<Found>>> = (0..set.len())
        .into_par_iter()
        .map_init(room, check)
        .collect();
    Ok(found?.into_iter().flatten().collect())
}

/// A pair as images, read by calls.
pub fn pair(set: &ShardSet, record: u64) -> Result<(RgbImage, RgbImage)> {
    let g = set.geometry();
    let (mut lq, mut hr) = (
        RgbImage::new(g.lq() as u32, g.lq() as u32),
        RgbImage::new(g.hr() as u32, g.hr() as u32),
    );
    set.read(record, &mut set.scratch_for(Io::Pread)?, &mut lq, &mut hr)?;
    Ok((lq, hr))
}

/// Numbers of the records that were cut from an image.
///
/// # Errors
/// No image of this name; names like it are told.
pub fn records_of(set: &ShardSet, name: &str) -> Result<Vec<u64>> {
    let mut first = 0;
    let mut found = Vec::new();
    let mut alike = Vec::new();
    // records of one image lie together, in the order of the source tables
    for (source, count) in set.sources()? {
        if source.name == name {
            found.extend(first..first + count);
        } else if source.name.contains(name) && alike.len() < 5 {
            alike.push(source.name);
        }
        first += count;
    }
    let hint = if alike.is_empty() {
        String::new()
    } else {
        format!("; like it are {}", alike.join(", "))
    };
    ensure!(
        !found.is_empty(),
        "no pair of {} was cut from an image called {name} (names have no extension){hint}",
        set.folder().display()
    );
    Ok(found)
}

/// Writes pairs as PNG files `NUMBER_lq.png` and `NUMBER_hr.png` into a folder.
pub fn extract(set: &ShardSet, records: &[u64], out: &Path) -> Result<()> {
    files::create_folder(out)?;
    for &record in records {
        let (lq, hr) = pair(set, record)?;
        for (side, image) in [("lq", lq), ("hr", hr)] {
            files::write_atomic(&out.join(format!("{record:08}_{side}.png")), |to| {
                let (width, height) = image.dimensions();
                Ok(PngEncoder::new(to).write_image(
                    image.as_raw(),
                    width,
                    height,
                    ExtendedColorType::Rgb8,
                )?)
            })?;
        }
    }
    Ok(())
}

/// Pairs side by side in one line of a contact sheet.
const SHEET_COLUMNS: usize = 3;

/// Pixels of all images on a contact sheet at most, before they are enlarged for the eye: about
/// 150 MB while it is drawn.
const SHEET_PIXELS: u64 = 50_000_000;
/// Pairs on a contact sheet at most, however small.
const SHEET_PAIRS: u64 = 1000;

/// Writes a contact sheet of `count` pairs drawn by `seed`: LQ, enlarged by repeating its pixels,
/// beside HR.
///
/// # Errors
/// None or too many pairs, records that cannot be read, a file that cannot be written.
pub fn sheet(set: &ShardSet, count: u64, seed: u64, path: &Path) -> Result<()> {
    ensure!(count > 0, "a contact sheet needs at least one pair");
    let hr = set.geometry().hr() as u64;
    let most = (SHEET_PIXELS / (2 * hr * hr)).clamp(1, SHEET_PAIRS);
    ensure!(
        count.min(set.len()) <= most,
        "--count {count} is more than a contact sheet holds: at most {most} pairs of HR {hr}x{hr}; give fewer, and another --seed for others"
    );
    let mut rng = Rng::new(&[0x5348_4545, seed]);
    let mut drawn = BTreeSet::new();
    while (drawn.len() as u64) < count.min(set.len()) {
        drawn.insert(rng.below(set.len()));
    }
    let mut shown = Vec::new();
    for &record in &drawn {
        let (lq, hr) = pair(set, record)?;
        let large = RgbImage::from_fn(hr.width(), hr.height(), |x, y| {
            *lq.get_pixel(x / set.scale(), y / set.scale())
        });
        shown.push((record, set.source(record)?, large, hr));
    }
    let panels = |(record, source, lq, hr): &'_ (u64, RecordSource, RgbImage, RgbImage)| -> [(RgbImage, String, String); 2] {
        let name = source.image.rsplit('/').next().unwrap_or_default().to_string();
        [(lq.clone(), format!("#{record} LQ"), name.clone()), (hr.clone(), format!("#{record} HR"), format!("{} {}", source.x, source.y))]
    };
    let rows: Vec<Vec<(RgbImage, String, String)>> = shown
        .chunks(SHEET_COLUMNS)
        .map(|row| row.iter().flat_map(panels).collect())
        .collect();
    let rows: Vec<Vec<Panel>> = rows
        .iter()
        .map(|row| {
            row.iter()
                .map(|(image, title, note)| Panel {
                    image,
                    title: title.clone(),
                    note: note.clone(),
                })
                .collect()
        })
        .collect();
    comparison(&rows, path)
}
