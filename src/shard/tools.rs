//! Inspects a finished set: what it holds, whether every record is whole, its pairs as images.
//! Depends on `reader`, `shard_reader` and `report`. Promises to change nothing in the set, to name
//! shard, record and image of every damage, and to use read calls only: a block that the disk
//! cannot deliver is an error of the system and is not reported as damage.

use super::error::{Error, is_newer};
use super::manifest::{Manifest, shard_name};
use super::reader::{Io, ShardSet};
use super::shard_reader::ShardReader;
use crate::support::progress::Progress;
use crate::sys::{self, ErrorClass};
use crate::{support::failure, support::files};
use anyhow::Result;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The content of a set in figures.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Version of the paragon that wrote it.
    pub paragon: String,
    /// Identity of the content, hexadecimal.
    pub fingerprint: String,
    /// Number of pairs.
    pub pairs: u64,
    /// HR side over LQ side.
    pub scale: u32,
    /// LQ patch side, pixels.
    pub lq_size: u32,
    /// Distance between neighbouring patches in the LQ image, pixels.
    pub stride: u32,
    /// How the LQ was made.
    pub lq_recipe: String,
    /// Number of images found when the set was made.
    pub images: u64,
    /// Number of images that gave pairs.
    pub used: u64,
    /// Number of shard files.
    pub shards: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Bytes of all pairs as pixels.
    pub bytes_raw: u64,
    /// Number and size of the pairs, by codec.
    pub codecs: BTreeMap<&'static str, CodecShare>,
    /// LQ patch side that training uses by default, pixels.
    pub crop: u32,
    /// Other options that decided the content.
    pub options: Vec<(String, String)>,
    /// Number of patches left out as flat, and of pairs left out as duplicates.
    pub dropped: (u64, u64),
    /// Number of images that gave no pairs, by kind of reason.
    pub rejected: BTreeMap<String, u64>,
    /// Number of this part, from 1, and number of parts, if the set is a part.
    pub part: Option<(u32, u32)>,
    /// How often images were added.
    pub appended: u32,
    /// 10th, 50th and 90th percentile of the stored bytes of a pair.
    pub record_bytes: [u32; 3],
}

/// The pairs stored with one codec.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CodecShare {
    /// Their number.
    pub pairs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the smallest and of the largest.
    pub range: (u32, u32),
}

/// Gathers the figures of a set from its manifest and indexes.
///
/// # Errors
/// Those of [`ShardSet::each_stored`].
pub fn info(set: &ShardSet) -> Result<Info> {
    let manifest = set.manifest();
    let geometry = set.geometry();
    let mut codecs = BTreeMap::new();
    let mut sizes = Vec::with_capacity(set.len() as usize);
    set.each_stored(|codec, bytes| {
        let entry = codecs.entry(codec.name()).or_insert(CodecShare {
            range: (u32::MAX, 0),
            ..CodecShare::default()
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

/// A record or a whole shard that cannot be read.
#[derive(Clone, Debug, Serialize)]
pub struct Damage {
    /// Number of the record in the set; `None` if the tables of the shard are damaged.
    pub record: Option<u64>,
    /// Shard, record, image and what is wrong, in words.
    pub error: String,
}

/// The result of [`verify`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    /// Pairs that the manifest lists.
    pub pairs: u64,
    /// Everything that is damaged, in order.
    pub damaged: Vec<Damage>,
    /// Everything that the disk or network did not deliver, in order. It is not known whether it is
    /// whole.
    pub unreadable: Vec<Damage>,
    /// Number of pairs that were not checked, because too many others could not be read.
    pub unchecked: u64,
}

/// After this many unreadable records the other records are no longer checked: each failing read is
/// retried for about 1.5 s.
const MAX_UNREADABLE: usize = 16;

/// What is wrong with one record or with the tables of one shard.
enum Finding {
    Damaged(Damage),
    Unreadable(Damage),
    Unchecked,
}

/// Separates damage from a block that the disk or network does not deliver.
///
/// # Errors
/// An error that concerns the whole set: no permission, no descriptors, no memory, a newer format.
fn finding(record: Option<u64>, error: anyhow::Error) -> Result<Finding> {
    let damage = || Damage {
        record,
        error: format!("{error:#}"),
    };
    match failure::system_cause(&error) {
        None if is_newer(&error) => Err(error),
        None => Ok(Finding::Damaged(damage())),
        Some(cause) if is_of_the_disk(cause) => Ok(Finding::Unreadable(damage())),
        Some(_) => Err(error.context(
            "an error of the system, which says nothing about the set; remove the cause and verify again",
        )),
    }
}

/// Whether an error concerns one block or one connection, so that other records may be readable.
fn is_of_the_disk(error: &io::Error) -> bool {
    let by_kind = matches!(
        error.kind(),
        ErrorKind::TimedOut | ErrorKind::StaleNetworkFileHandle | ErrorKind::NetworkDown
    );
    by_kind || sys::is_error(error, ErrorClass::Disk)
}

/// Checks a whole set on all threads of the current rayon pool: the structure of every shard, and
/// every record by decoding it. If a shard is missing or its tables are damaged, the set cannot be
/// opened; then only the checksums of the records of the other shards are compared.
///
/// # Errors
/// No finished set, a manifest that cannot be read, a newer format, an error of the system that
/// concerns the whole set. Damage and single blocks that cannot be read are part of the result.
pub fn verify(folder: &Path, progress: &Progress) -> Result<Verified, Error> {
    verify_set(folder, progress).map_err(|e| Error::classify(folder, e))
}

fn verify_set(folder: &Path, progress: &Progress) -> Result<Verified> {
    let manifest = Manifest::read(folder)?;
    let pairs = manifest.records();
    let unreadable = AtomicUsize::new(0);
    let shards: Vec<Option<Finding>> = (0..manifest.shards.len())
        .into_par_iter()
        .map(|n| structure(folder, &manifest, n))
        .collect::<Result<_>>()?;
    let found: Vec<Finding> = if pairs == 0 || shards.iter().any(Option::is_some) {
        let whole: Vec<bool> = shards.iter().map(Option::is_none).collect();
        let check = |n: usize| {
            if whole[n] {
                checksums(folder, &manifest, n, progress, &unreadable)
            } else {
                Ok(Vec::new())
            }
        };
        let records: Vec<Vec<Finding>> = (0..whole.len())
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
            Err(e) => vec![finding(None, e.into())?],
        }
    };
    let mut verified = Verified {
        pairs,
        ..Verified::default()
    };
    for found in found {
        match found {
            Finding::Damaged(damage) => verified.damaged.push(damage),
            Finding::Unreadable(damage) => verified.unreadable.push(damage),
            Finding::Unchecked => verified.unchecked += 1,
        }
    }
    Ok(verified)
}

fn structure(folder: &Path, manifest: &Manifest, number: usize) -> Result<Option<Finding>> {
    ShardReader::open(folder, manifest, number)
        .err()
        .map(|e| finding(None, e))
        .transpose()
}

/// Counts the finding in `unreadable` if the record is unreadable.
fn counted(found: Finding, unreadable: &AtomicUsize) -> Finding {
    if matches!(found, Finding::Unreadable(_)) {
        unreadable.fetch_add(1, Ordering::Relaxed);
    }
    found
}

/// Compares the checksums of the records of one shard, without decoding them.
fn checksums(
    folder: &Path,
    manifest: &Manifest,
    number: usize,
    progress: &Progress,
    unreadable: &AtomicUsize,
) -> Result<Vec<Finding>> {
    let first: u64 = manifest.shards[..number].iter().map(|s| s.records).sum();
    let mut shard = match ShardReader::open(folder, manifest, number) {
        Ok(shard) => shard,
        Err(e) => return Ok(vec![finding(None, e)?]),
    };
    let mut all = Vec::new();
    for i in 0..manifest.shards[number].records {
        if unreadable.load(Ordering::Relaxed) >= MAX_UNREADABLE {
            all.push(Finding::Unchecked);
        } else if let Err(e) = shard.record() {
            let e = e.context(folder.join(shard_name(number)).display().to_string());
            all.push(counted(finding(Some(first + i), e)?, unreadable));
        }
        progress.advance(1);
    }
    Ok(all)
}

/// Reads and decodes every record. Returns the findings in order of the records.
fn records(set: &ShardSet, progress: &Progress, unreadable: &AtomicUsize) -> Result<Vec<Finding>> {
    let geometry = set.geometry();
    let room = || -> Result<_> {
        Ok((
            set.scratch_for(Io::Pread)?,
            vec![0; geometry.lq_bytes()],
            vec![0; geometry.hr_bytes()],
        ))
    };
    let check = |room: &mut Result<_>, record: u64| -> Result<Option<Finding>> {
        let (scratch, lq, hr): &mut (_, Vec<u8>, Vec<u8>) = match room {
            Ok(room) => room,
            Err(e) => anyhow::bail!("cannot set up a thread: {e:#}"),
        };
        if unreadable.load(Ordering::Relaxed) >= MAX_UNREADABLE {
            return Ok(Some(Finding::Unchecked));
        }
        let outcome = set.read(record, scratch, lq, hr);
        progress.advance(1);
        let found = outcome
            .err()
            .map(|e| finding(Some(record), e.into()))
            .transpose()?;
        Ok(found.map(|found| counted(found, unreadable)))
    };
    let found: Result<Vec<Option<Finding>>> = (0..set.len())
        .into_par_iter()
        .map_init(room, check)
        .collect();
    Ok(found?.into_iter().flatten().collect())
}

/// Reads a pair as two images, LQ and HR.
///
/// # Errors
/// Those of [`ShardSet::read`].
pub fn pair(set: &ShardSet, record: u64) -> Result<(RgbImage, RgbImage)> {
    let g = set.geometry();
    let (mut lq, mut hr) = (
        RgbImage::new(g.lq() as u32, g.lq() as u32),
        RgbImage::new(g.hr() as u32, g.hr() as u32),
    );
    set.read(record, &mut set.scratch_for(Io::Pread)?, &mut lq, &mut hr)?;
    Ok((lq, hr))
}

/// The name of a pair: that of its image and the position of its patch in the LQ image, as in
/// `2019/beach_x128_y64`; the number of the record if its tables cannot be read.
pub fn pair_name(set: &ShardSet, record: u64) -> String {
    match set.source(record) {
        Ok(source) => format!("{}_x{}_y{}", source.image, source.x, source.y),
        Err(_) => format!("record {record}"),
    }
}

/// Writes pairs as PNG files `NUMBER_lq.png` and `NUMBER_hr.png` into a folder.
///
/// # Errors
/// A record cannot be read, or a file not written.
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

/// Pairs in one row of a contact sheet.
#[cfg(feature = "report")]
const SHEET_COLUMNS: usize = 3;

/// Largest number of pixels of all images on a contact sheet, before they are enlarged for display:
/// about 150 MB while it is drawn.
#[cfg(feature = "report")]
const SHEET_PIXELS: u64 = 50_000_000;
/// Largest number of pairs on a contact sheet, however small they are.
#[cfg(feature = "report")]
const SHEET_PAIRS: u64 = 1000;
/// Separates the draws of a contact sheet from others with the same seed: "SHEE" in ASCII.
#[cfg(feature = "report")]
const PURPOSE_SHEET: u64 = 0x5348_4545;

/// Writes a contact sheet of `count` pairs drawn by `seed`. Each LQ, enlarged by repeating its
/// pixels, is shown beside its HR.
///
/// # Errors
/// No pair or too many pairs are asked for, a record cannot be read, the file cannot be written.
#[cfg(feature = "report")]
pub fn sheet(set: &ShardSet, count: u64, seed: u64, path: &Path) -> Result<()> {
    use super::reader::RecordSource;
    use crate::report::sheet::{Panel, comparison};
    use crate::support::rng::Rng;
    use std::collections::BTreeSet;

    anyhow::ensure!(count > 0, "a contact sheet needs at least one pair");
    let hr = set.geometry().hr() as u64;
    let most = (SHEET_PIXELS / (2 * hr * hr)).clamp(1, SHEET_PAIRS);
    anyhow::ensure!(
        count.min(set.len()) <= most,
        "--count {count} is more than a contact sheet holds: at most {most} pairs of HR {hr}x{hr}; give fewer, and another --seed for others"
    );
    let mut rng = Rng::new(&[PURPOSE_SHEET, seed]);
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
        [(lq.clone(), format!("#{record} LQ"), name.clone()), (hr.clone(), format!("#{record} HR"), format!("at {}, {}", source.x, source.y))]
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
