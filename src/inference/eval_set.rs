//! The pairs that an evaluation measures: a folder of images, or a set of shards. Depends on the
//! dataset's scan and the reader of shards. Promises that every image of a folder is a pair, is
//! rejected with a reason, or is counted as left out.

use super::eval::{ImagePair, NotMeasured, load_pair_with_notes, lq_size, pair_bytes};
use super::upscale::{Upscale, Upscaler};
use crate::dataset::scan::{LeftOut, ScanOptions, Source, scan};
use crate::shard::manifest::is_in;
use crate::shard::reader::ShardSet;
use crate::shard::tools;
use crate::support::budget::PROGRAM_BYTES;
use anyhow::{Result, ensure};
use std::path::Path;

/// Pairs to measure.
pub struct EvalSet {
    pairs: Pairs,
    /// Images of the folder that belong to no pair.
    pub rejected: Vec<NotMeasured>,
    /// Images of the folder that are left out by rule.
    pub left_out: Vec<LeftOut>,
    /// Where the LQ comes from, as half a sentence: `made from the HR by antialiased bicubic`.
    pub lq: String,
}

enum Pairs {
    Images(Vec<Source>),
    Shards(Box<ShardSet>),
}

impl EvalSet {
    /// Opens a folder of images or a set of shards, for networks of the scale in `options`.
    ///
    /// # Errors
    /// It holds no pair, a set of another scale, or cannot be read.
    pub fn open(place: &Path, options: &ScanOptions) -> Result<EvalSet> {
        if place.is_dir() && is_in(place)? {
            return EvalSet::of_shards(place, options);
        }
        let found = scan(place, options)?;
        let rejected = found.rejected.into_iter().map(|reject| NotMeasured {
            name: reject.path.display().to_string(),
            reason: format!("{}: {}", reject.path.display(), reject.reason),
        });
        let lq = match &found.lq_root {
            Some(folder) => format!("read from {}", folder.display()),
            None => "made from the HR by antialiased bicubic".to_string(),
        };
        Ok(EvalSet {
            rejected: rejected.collect(),
            left_out: found.left_out,
            lq,
            pairs: Pairs::Images(found.sources),
        })
    }

    fn of_shards(place: &Path, options: &ScanOptions) -> Result<EvalSet> {
        ensure!(
            options.hr.is_none() && options.lq.is_none(),
            "{} is a set of shards, which holds HR and LQ; --hr and --lq are for folders of images",
            place.display()
        );
        let set = ShardSet::open(place)?;
        ensure!(set.len() > 0, "{} holds no pairs", place.display());
        ensure!(
            set.scale() == options.scale,
            "{} has scale {} and the network {}; give shards of scale {2}, or another network",
            place.display(),
            set.scale(),
            options.scale
        );
        Ok(EvalSet {
            rejected: Vec::new(),
            left_out: Vec::new(),
            lq: format!("stored in the shards ({})", set.manifest().recipe_name),
            pairs: Pairs::Shards(Box::new(set)),
        })
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        match &self.pairs {
            Pairs::Images(sources) => sources.len(),
            Pairs::Shards(set) => set.len() as usize,
        }
    }

    /// True if there are no pairs, which opening refuses.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The image files, if the pairs are files.
    pub fn sources(&self) -> &[Source] {
        match &self.pairs {
            Pairs::Images(sources) => sources,
            Pairs::Shards(_) => &[],
        }
    }

    /// The name of a pair: that of its image, in a set of shards with the position of its patch.
    pub fn name(&self, index: usize) -> String {
        match &self.pairs {
            Pairs::Images(sources) => sources
                .get(index)
                .map_or_else(String::new, |source| source.name.clone()),
            Pairs::Shards(set) => tools::pair_name(set, index as u64),
        }
    }

    /// Reads a pair, with what decoding changed in each file.
    ///
    /// # Errors
    /// It cannot be read; the message names the file or the record.
    pub fn pair(&self, index: usize, scale: usize) -> Result<(ImagePair, Vec<String>)> {
        match &self.pairs {
            Pairs::Images(sources) => {
                ensure!(index < sources.len(), "there is no image {index}");
                load_pair_with_notes(&sources[index], scale)
            }
            Pairs::Shards(set) => {
                let (lq, hr) = tools::pair(set, index as u64)?;
                Ok((ImagePair { lq, hr }, Vec::new()))
            }
        }
    }

    /// (width, height) of the LQ images for networks of a scale, from the headers; without those of
    /// headers that cannot be read, which are reported when they are measured.
    pub fn lq_sizes(&self, scale: usize) -> Vec<(u32, u32)> {
        match &self.pairs {
            Pairs::Images(sources) => {
                let sizes = sources.iter().map(|source| lq_size(source, scale as u32));
                sizes.filter_map(Result::ok).collect()
            }
            Pairs::Shards(set) => vec![(set.lq_size(), set.lq_size())],
        }
    }

    /// Most bytes that measuring a pair needs, from the headers, and the file that needs them. A
    /// header that cannot be read is passed to `unreadable`, which decides whether that is an error.
    ///
    /// # Errors
    /// Those of `unreadable`.
    pub fn most_bytes(
        &self,
        upscaler: &Upscaler,
        unreadable: &dyn Fn(anyhow::Error) -> Result<()>,
    ) -> Result<(u64, Option<&Source>)> {
        let mut most = (PROGRAM_BYTES, None);
        match &self.pairs {
            Pairs::Images(sources) => {
                for source in sources {
                    match pair_bytes(upscaler, source) {
                        Ok(bytes) if bytes > most.0 => most = (bytes, Some(source)),
                        Ok(_) => {}
                        Err(error) => unreadable(error)?,
                    }
                }
            }
            Pairs::Shards(set) => {
                let lq = u64::from(set.lq_size());
                let scale = upscaler.scale() as u64;
                // the pair, its stored form, the network's image, the bicubic one and its half
                let mut images = 3 * lq * lq * (2 + 6 * scale * scale);
                if set.lqs() == 0
                    && let Some(recipe) = set.manifest().degrade()?
                {
                    images += tools::PairReader::degrade_bytes(set, &recipe);
                }
                let arena = upscaler.bytes_in_memory((set.lq_size(), set.lq_size()))?;
                most.0 += images + arena;
            }
        }
        Ok(most)
    }
}
