//! Inspects a finished set: what it holds, and whether every record is whole. Depends on `reader`
//! and `shard_reader`. Promises to change nothing in the set, to name
//! shard, record and image of every damage, and to use read calls only: a block that the disk
//! cannot deliver is an error of the system and is not reported as damage.

use super::error::{Error, is_newer};
use super::manifest::{DEGRADE, Manifest, shard_name};
#[cfg(feature = "report")]
pub use super::pairs::sheet;
pub use super::pairs::{PairReader, extract, pair, pair_name};
use super::reader::{Crop, Io, Scratch, ShardSet};
use super::shard_reader::ShardReader;
use crate::support::failure;
use crate::support::progress::Progress;
use crate::sys::{self, ErrorClass};
use anyhow::Result;
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
    /// Number of pairs; each of the variants of an LQ patch makes a pair of its own with the same HR,
    /// and they count as one.
    pub pairs: u64,
    /// LQ patches of every pair: 1, 0 for HR alone, or the number of variants.
    pub variants: u16,
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
    /// The degradation recipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degrade: Option<DegradeInfo>,
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

/// The degradation recipe of a set.
#[derive(Clone, Debug, Serialize)]
pub struct DegradeInfo {
    /// Its name; `None` if the text cannot be read.
    pub name: Option<String>,
    /// Hash of its text, hexadecimal; `None` if the text cannot be read.
    pub hash: Option<String>,
    /// Seed of the draws; `None` for HR alone, where the seed of a training counts.
    pub seed: Option<u64>,
    /// Its text.
    pub text: String,
    /// Why the text cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The degradation recipe of a set, in words also where this program cannot read it.
fn degrade_info(manifest: &Manifest) -> Option<DegradeInfo> {
    let text = manifest.option(DEGRADE)?.to_string();
    let (recipe, error) = match manifest.degrade() {
        Ok(recipe) => (recipe, None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    Some(DegradeInfo {
        name: recipe.as_ref().map(|recipe| recipe.name().to_string()),
        hash: recipe.map(|recipe| format!("{:016x}", recipe.hash())),
        seed: manifest.option("seed").and_then(|seed| seed.parse().ok()),
        text,
        error,
    })
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
        variants: set.lqs(),
        scale: geometry.scale,
        lq_size: geometry.lq_size,
        stride: manifest.stride,
        lq_recipe: manifest.recipe_name.clone(),
        images: manifest.images,
        used: manifest.used,
        shards: manifest.shards.len() as u64,
        bytes: manifest.bytes(),
        bytes_raw: set.len() * geometry.record_bytes(set.lqs()) as u64,
        codecs,
        crop: manifest.crop(),
        options: extra
            .options
            .iter()
            .filter(|(name, _)| name != DEGRADE)
            .cloned()
            .collect(),
        degrade: degrade_info(manifest),
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
        let outcome = every_patch(set, record, scratch, lq, hr);
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

/// Decodes the HR and every LQ patch of a record.
pub(super) fn every_patch(
    set: &ShardSet,
    record: u64,
    scratch: &mut Scratch,
    lq: &mut [u8],
    hr: &mut [u8],
) -> Result<(), Error> {
    let whole = Crop {
        x: 0,
        y: 0,
        size: set.geometry().lq(),
    };
    if set.lqs() == 0 {
        return set.read_part(record, whole, scratch, None, hr);
    }
    (0..set.lqs())
        .try_for_each(|variant| set.read_part(record, whole, scratch, Some((variant, lq)), hr))
}
