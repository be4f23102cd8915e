//! The images that a run is validated on: a folder of images, or a held-out set of shards. Depends
//! on the dataset and the reader of shards. Promises the same pairs in the same order at every
//! validation.

use super::ImageSizes;
use crate::dataset::decode::{Limits, probe};
use crate::dataset::scan::{LeftOut, ScanOptions, Source};
use crate::degrade::Recipe;
use crate::inference::eval::{ImagePair, find, load_pair};
use crate::inference::metrics::WINDOW;
use crate::shard::manifest::MANIFEST_NAME;
use crate::shard::reader::ShardSet;
use crate::shard::tools::{PairReader, pair_name};
use crate::support::failure::system_cause;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest number of pairs of a set of shards that are measured, spread evenly over the set. A run
/// validates up to a thousand times, which should not take hours.
const MAX_RECORDS: u64 = 256;
/// Largest number of images that an error names.
const MAX_NAMED: usize = 5;
/// Folder of the held-out set that `paragon shard --val` makes, within the set to train on.
const FOLDER: &str = "val";

/// Pairs to validate on.
pub struct ValidationSet {
    pairs: Pairs,
    scale: usize,
    left_out: Vec<LeftOut>,
}

/// Where the pairs come from.
enum Pairs {
    Images(Vec<Source>),
    Shards {
        set: Box<ShardSet>,
        /// Numbers of the records that are measured.
        records: Vec<u64>,
        /// Makes the LQ of a set of HR alone; `None`: the recipe that the set names.
        degrade: Option<Arc<Recipe>>,
    },
}

/// Checks that a pair has enough pixels for every score, with `crop` HR pixels left out at each
/// edge.
fn fits(pair: &ImagePair, crop: u32) -> Result<()> {
    let (w, h) = pair.hr.dimensions();
    let least = u64::from(crop) * 2 + WINDOW as u64;
    ensure!(
        u64::from(w.min(h)) >= least,
        "it has {w}x{h} HR pixels, and with {crop} left out at each edge (--crop-border) SSIM needs at least {least}x{least}"
    );
    Ok(())
}

/// Whether a folder holds a set of shards.
fn is_set(folder: &Path) -> bool {
    folder.join(MANIFEST_NAME).is_file()
}

impl ValidationSet {
    /// Opens a folder of images or a set of shards, for a network of `scale`.
    ///
    /// # Errors
    /// It holds nothing that can be measured, or a set of another scale.
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
                pairs: Pairs::Images(found.sources),
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
        let count = set.len().min(MAX_RECORDS);
        let records = (0..count)
            .map(|i| (u128::from(i) * u128::from(set.len()) / u128::from(count)) as u64)
            .collect();
        Ok(ValidationSet {
            pairs: Pairs::Shards {
                set: Box::new(set),
                records,
                degrade: None,
            },
            scale,
            left_out: Vec::new(),
        })
    }

    /// Gives the recipe that makes the LQ of a set of HR alone. Its draws depend on the record alone,
    /// so scores can be compared between validations and between runs.
    ///
    /// # Errors
    /// The set holds HR alone, and neither the set nor `recipe` says how the LQ is made.
    pub fn with_degrade(mut self, recipe: Option<Arc<Recipe>>) -> Result<ValidationSet> {
        if let Pairs::Shards { set, degrade, .. } = &mut self.pairs
            && set.lqs() == 0
        {
            *degrade = match recipe {
                Some(recipe) => Some(recipe),
                None => set.manifest().degrade()?.map(Arc::new),
            };
            ensure!(
                degrade.is_some(),
                "{} holds HR alone and names no recipe that makes the LQ; give one with --degrade",
                set.folder().display()
            );
        }
        Ok(self)
    }

    /// The held-out set that was made together with one of the sets `shards` to train on.
    pub fn beside(shards: &[PathBuf]) -> Option<PathBuf> {
        shards
            .iter()
            .map(|set| set.join(FOLDER))
            .find(|val| is_set(val))
    }

    /// Images of the folder that are left out, by reason.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        match &self.pairs {
            Pairs::Images(sources) => sources.len(),
            Pairs::Shards { records, .. } => records.len(),
        }
    }

    /// True if there are no pairs, which opening refuses.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sizes of the pairs, from their headers.
    ///
    /// # Errors
    /// An image cannot be read.
    pub fn sizes(&self) -> Result<ImageSizes> {
        let mut sizes = ImageSizes::default();
        match &self.pairs {
            Pairs::Images(sources) => {
                let scale = self.scale as u32;
                for source in sources {
                    let (w, h) = probe(&source.hr, &Limits::default())?;
                    let pixels = u64::from(w) * u64::from(h);
                    sizes.largest_hr = sizes.largest_hr.max(pixels);
                    sizes.lq.push(match &source.lq {
                        Some(lq) => probe(lq, &Limits::default())?,
                        None => (w / scale, h / scale),
                    });
                }
            }
            Pairs::Shards { set, degrade, .. } => {
                let (mut lq, hr) = (set.geometry().lq(), set.geometry().hr());
                sizes.largest_hr = (hr * hr) as u64;
                if let Some(recipe) = degrade {
                    lq = set.manifest().crop() as usize;
                    sizes.degrade_bytes = PairReader::degrade_bytes(set, recipe);
                }
                sizes.lq.push((lq as u32, lq as u32));
            }
        }
        sizes.lq.sort_unstable();
        sizes.lq.dedup();
        Ok(sizes)
    }

    /// Loads every pair once and checks that it can be measured with `crop` HR pixels left out at
    /// each edge, so that a damaged file, a wrong size or too wide a border is found before
    /// training. `each` is called after every pair; if it returns false, the remaining pairs are
    /// not checked. Returns the checksum of all sizes and pixels, or `None` if pairs were not
    /// checked.
    ///
    /// # Errors
    /// Pairs cannot be measured; the message names the first ones, their number, and the reasons. A
    /// system error ends the check at once.
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
                    for image in [&pair.lq, &pair.hr] {
                        hasher.update(
                            &[image.width().to_le_bytes(), image.height().to_le_bytes()].concat(),
                        );
                        hasher.update(image);
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
        let more = if found.len() > MAX_NAMED {
            format!("; and {} more", found.len() - MAX_NAMED)
        } else {
            String::new()
        };
        let named = found
            .iter()
            .take(MAX_NAMED)
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

    /// The path or record of a pair, for messages.
    pub fn place(&self, index: usize) -> String {
        match &self.pairs {
            Pairs::Images(sources) => sources
                .get(index)
                .map_or_else(String::new, |source| source.hr.display().to_string()),
            Pairs::Shards { set, records, .. } => format!(
                "{}, record {}",
                set.folder().display(),
                records.get(index).copied().unwrap_or(0)
            ),
        }
    }

    /// Name and pixels of a pair.
    ///
    /// # Errors
    /// It cannot be read; the message names the image or the record.
    pub fn pair(&self, index: usize) -> Result<(String, ImagePair)> {
        match &self.pairs {
            Pairs::Images(sources) => {
                let source = sources
                    .get(index)
                    .with_context(|| format!("there is no image {index}"))?;
                Ok((source.name.clone(), load_pair(source, self.scale)?))
            }
            Pairs::Shards {
                set,
                records,
                degrade,
            } => {
                let record = *records
                    .get(index)
                    .with_context(|| format!("there is no pair {index}"))?;
                let (lq, hr) = PairReader::new(set, degrade.as_deref())?.read(record, 0)?;
                Ok((pair_name(set, record), ImagePair { lq, hr }))
            }
        }
    }

    /// `70 images` or `256 of 2914 held-out pairs`.
    pub fn text(&self) -> String {
        match &self.pairs {
            Pairs::Images(sources) => format!("{} images", sources.len()),
            Pairs::Shards { set, records, .. } => {
                format!("{} of {} held-out pairs", records.len(), set.len())
            }
        }
    }
}
