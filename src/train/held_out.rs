//! What a run is validated on: a folder of images, or a held-out set of shards. Depends on the
//! dataset and the shards' reader. It promises the same pairs in the same order at every
//! validation.

use crate::dataset::decode::{Limits, probe};
use crate::dataset::scan::{LeftOut, ScanOptions, Source};
use crate::inference::eval::{ImagePair, find, load_pair};
use crate::inference::metrics::WINDOW;
use crate::shard::manifest::MANIFEST_NAME;
use crate::shard::reader::ShardSet;
use crate::shard::tools::pair;
use crate::support::failure::system_cause;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// Pairs of a held-out set of shards that are measured at most, spread evenly over it: a thousand
/// times a run should not take hours.
pub const MOST_RECORDS: u64 = 256;
/// Images that an error names.
const MOST_NAMED: usize = 5;
/// Where `paragon shard --val` puts the held-out set, below the one to train on.
const FOLDER: &str = "val";

/// Pairs to validate on.
pub struct ValidationSet {
    pairs: Pairs,
    scale: usize,
    left_out: Vec<LeftOut>,
}

enum Pairs {
    Pictures(Vec<Source>),
    Shards {
        set: Box<ShardSet>,
        records: Vec<u64>,
    },
}

/// Whether a pair has pixels enough for every score.
fn fits(pair: &ImagePair, crop: u32) -> Result<()> {
    let (w, h) = pair.hr.dimensions();
    let least = u64::from(crop) * 2 + WINDOW as u64;
    ensure!(
        u64::from(w.min(h)) >= least,
        "it has {w}x{h} HR pixels, and with {crop} left out at each edge (--crop-border) SSIM needs at least {least}x{least}"
    );
    Ok(())
}

fn is_set(folder: &Path) -> bool {
    folder.join(MANIFEST_NAME).is_file()
}

impl ValidationSet {
    /// Opens a folder of images, or a set of shards.
    ///
    /// # Errors
    /// When it holds nothing that can be measured, or a set of another scale.
    pub fn open(place: &Path, scale: usize) -> Result<ValidationSet> {
        if !is_set(place) {
            let found = find(
                place,
                &ScanOptions {
                    scale: scale as u32,
                    hr: None,
                    lq: None,
                    out: None,
                },
            )?;
            return Ok(ValidationSet {
                pairs: Pairs::Pictures(found.sources),
                scale,
                left_out: found.left_out,
            });
        }
        let set = ShardSet::open(place)?;
        ensure!(
            set.len() > 0,
            "{} holds no pairs to validate on",
            place.display()
        );
        ensure!(
            set.scale() as usize == scale,
            "{} has scale {} and the network {scale}; they must agree",
            place.display(),
            set.scale()
        );
        let count = set.len().min(MOST_RECORDS);
        let records = (0..count)
            .map(|i| (u128::from(i) * u128::from(set.len()) / u128::from(count)) as u64)
            .collect();
        Ok(ValidationSet {
            pairs: Pairs::Shards {
                set: Box::new(set),
                records,
            },
            scale,
            left_out: Vec::new(),
        })
    }

    /// The held-out set that was made with a set to train on.
    pub fn beside(shards: &[PathBuf]) -> Option<PathBuf> {
        shards
            .iter()
            .map(|set| set.join(FOLDER))
            .find(|val| is_set(val))
    }

    /// Images below the folder that take no part, by reason.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// How many pairs.
    pub fn len(&self) -> usize {
        match &self.pairs {
            Pairs::Pictures(sources) => sources.len(),
            Pairs::Shards { records, .. } => records.len(),
        }
    }

    /// Whether there are none; never after opening.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// HR pixels of the largest pair.
    ///
    /// # Errors
    /// When an image cannot be read.
    pub fn largest(&self) -> Result<u64> {
        match &self.pairs {
            Pairs::Pictures(sources) => sources.iter().try_fold(0, |most, source| {
                let (w, h) = probe(&source.hr, &Limits::default())?;
                Ok(most.max(u64::from(w) * u64::from(h)))
            }),
            Pairs::Shards { set, .. } => Ok((set.geometry().hr() * set.geometry().hr()) as u64),
        }
    }

    /// Loads every pair once and looks whether it can be measured with `crop` HR pixels left out at
    /// each edge, so that no damaged file, no wrong size and no border that is too wide is found
    /// only hours later. `each` is called after every pair; once it says no, the rest is left.
    /// Returns the checksum of all sizes and pixels, or nothing where some were left.
    ///
    /// # Errors
    /// Names the first pairs that cannot be measured, how many more there are, and why. An error of
    /// the system ends the search.
    pub fn check(&self, crop: u32, each: &mut dyn FnMut() -> bool) -> Result<Option<u32>> {
        let mut hasher = crc32fast::Hasher::new();
        let mut found = Vec::new();
        for index in 0..self.len() {
            match self.pair(index).and_then(|(_, pair)| {
                fits(&pair, crop)
                    .map(|()| pair)
                    .with_context(|| self.place(index))
            }) {
                Ok(pair) => {
                    for picture in [&pair.lq, &pair.hr] {
                        hasher.update(
                            &[
                                picture.width().to_le_bytes(),
                                picture.height().to_le_bytes(),
                            ]
                            .concat(),
                        );
                        hasher.update(picture);
                    }
                }
                Err(error) if system_cause(&error).is_some() => {
                    return Err(error.context("cannot read an image to validate on"));
                }
                Err(error) => found.push(format!("{error:#}")),
            }
            if !each() {
                return Ok(None);
            }
        }
        let more = if found.len() > MOST_NAMED {
            format!("; and {} more", found.len() - MOST_NAMED)
        } else {
            String::new()
        };
        let named = found
            .iter()
            .take(MOST_NAMED)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("; ");
        ensure!(
            found.is_empty(),
            "{} of {} images to validate on cannot be measured: {named}{more}. Repair or remove them, choose others with --val, or --val none",
            found.len(),
            self.len()
        );
        Ok(Some(hasher.finalize()))
    }

    /// Where a pair is, for errors.
    pub fn place(&self, index: usize) -> String {
        match &self.pairs {
            Pairs::Pictures(sources) => sources
                .get(index)
                .map_or_else(String::new, |source| source.hr.display().to_string()),
            Pairs::Shards { set, records } => format!(
                "{}, record {}",
                set.folder().display(),
                records.get(index).copied().unwrap_or(0)
            ),
        }
    }

    /// Name and pixels of a pair.
    ///
    /// # Errors
    /// When it cannot be read; the image or the record is named.
    pub fn pair(&self, index: usize) -> Result<(String, ImagePair)> {
        match &self.pairs {
            Pairs::Pictures(sources) => {
                let source = sources
                    .get(index)
                    .with_context(|| format!("there is no image {index}"))?;
                Ok((source.name.clone(), load_pair(source, self.scale)?))
            }
            Pairs::Shards { set, records } => {
                let record = *records
                    .get(index)
                    .with_context(|| format!("there is no pair {index}"))?;
                let (lq, hr) = pair(set, record)?;
                Ok((format!("record {record}"), ImagePair { lq, hr }))
            }
        }
    }

    /// `70 pictures` or `256 of 2914 pairs`.
    pub fn text(&self) -> String {
        match &self.pairs {
            Pairs::Pictures(sources) => format!("{} images", sources.len()),
            Pairs::Shards { set, records } => {
                format!("{} of {} held-out pairs", records.len(), set.len())
            }
        }
    }
}
