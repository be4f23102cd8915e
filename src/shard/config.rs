//! The options of `paragon shard` as a library caller sets them. Depends on `codec`, `criteria` and
//! `dataset::recipe`. Promises that [`BuildConfig::new`] has the defaults of the command line.

use super::codec::Codec;
use super::criteria::Criteria;
use crate::dataset::decode::Limits;
use crate::dataset::degrade::Filter;
use crate::dataset::recipe::Recipe;
use crate::degrade;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Largest size of a shard, bytes: the offset of a record is packed into 40 bits (`set`).
pub const MAX_SHARD_BYTES: u64 = 1 << 40;

/// The options of a run of `paragon shard`.
#[derive(Clone, Debug)]
pub struct BuildConfig {
    /// Folder of the images.
    pub dataset: PathBuf,
    /// Further folders of images. With more than one folder, the name of an image begins with that
    /// of its folder.
    pub more: Vec<DatasetFolder>,
    /// Folder for the set.
    pub out: PathBuf,
    /// HR side over LQ side. At 1 a filter makes no LQ: the data set has LQ images, or `degrade` or
    /// `hr_only` is given.
    pub scale: u32,
    /// LQ patch side as stored, pixels.
    pub lq_size: u32,
    /// Part of the patch side in which training moves its crop, LQ pixels: the crop of training is
    /// `lq_size - margin` by default.
    pub margin: u32,
    /// Distance between neighbouring patches in the LQ image, pixels.
    pub stride: u32,
    /// The HR folder; `None` = it is found by its name.
    pub hr: Option<PathBuf>,
    /// The LQ folder; `None` = it is found by its name.
    pub lq: Option<PathBuf>,
    /// How the LQ is made if the data set has none.
    pub recipe: Recipe,
    /// The degradation recipe that makes the LQ in place of `recipe.filter`; with `hr_only`, the one
    /// that training takes by default. Its draws are keyed by `recipe.seed`.
    pub degrade: Option<Arc<degrade::Recipe>>,
    /// Number of different LQ patches that `degrade` makes of every HR patch.
    pub variants: u16,
    /// Whether no LQ is stored: training makes it.
    pub hr_only: bool,
    /// Patches whose HR has less detail than this are left out (see `convert::detail`); 0 keeps
    /// all.
    pub min_detail: f64,
    /// What else is left out.
    pub criteria: Criteria,
    /// Whether duplicate pairs are stored too.
    pub keep_duplicates: bool,
    /// How many images are held out in a set of their own, `out/val`.
    pub val: Option<HeldOut>,
    /// Number of this part, from 1, and number of parts, if several machines make the set.
    pub part: Option<(u32, u32)>,
    /// Whether images are added to a finished set.
    pub append: bool,
    /// How pairs are stored.
    pub codec: Codec,
    /// Number of threads that convert; 0 = one for each core.
    pub threads: usize,
    /// Largest size of a shard, bytes; a record that does not fit begins the next shard.
    pub shard_bytes: u64,
    /// Bound on the memory of images that are being converted, bytes.
    pub host_memory: u64,
    /// If the user has not stated `host_memory`: the limit of the machine that it was derived from,
    /// in words. An image that needs more than this stops the run, since the content of a set must
    /// not depend on the machine that makes it.
    pub memory_limit: Option<String>,
    /// Whether another set in `out` is removed first.
    pub overwrite: bool,
    /// Bounds on single image files.
    pub limits: Limits,
    /// Set from outside to stop the run: what is done is kept, and the next run goes on from there.
    pub stop: Arc<AtomicBool>,
}

/// One of several folders of images, with its sides where they are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatasetFolder {
    /// The folder.
    pub dataset: PathBuf,
    /// The HR folder; `None` = it is found by its name.
    pub hr: Option<PathBuf>,
    /// The LQ folder; `None` = it is found by its name.
    pub lq: Option<PathBuf>,
}

impl BuildConfig {
    /// The defaults of the command line.
    pub fn new(
        dataset: impl Into<PathBuf>,
        out: impl Into<PathBuf>,
        scale: u32,
        lq_size: u32,
    ) -> Self {
        BuildConfig {
            dataset: dataset.into(),
            more: Vec::new(),
            out: out.into(),
            scale,
            lq_size,
            margin: 0,
            min_detail: 0.0,
            criteria: Criteria::default(),
            keep_duplicates: false,
            val: None,
            part: None,
            append: false,
            stride: lq_size,
            hr: None,
            lq: None,
            recipe: Recipe::fixed(Filter::Bicubic),
            degrade: None,
            variants: 1,
            hr_only: false,
            codec: Codec::Predict,
            threads: 0,
            shard_bytes: 512 << 20,
            host_memory: 2 << 30,
            memory_limit: None,
            overwrite: false,
            limits: Limits::default(),
            stop: Arc::default(),
        }
    }

    /// Whether the LQ does not come from the data set nor from a filter: HR images alone take part.
    pub(super) fn needs_hr_alone(&self) -> bool {
        self.hr_only || self.degrade.is_some()
    }

    /// LQ patches of every record.
    pub(super) fn lqs(&self) -> u16 {
        if self.hr_only { 0 } else { self.variants }
    }

    /// All folders of images, the first one included.
    pub(super) fn folders(&self) -> Vec<DatasetFolder> {
        let first = DatasetFolder {
            dataset: self.dataset.clone(),
            hr: self.hr.clone(),
            lq: self.lq.clone(),
        };
        std::iter::once(first).chain(self.more.clone()).collect()
    }

    /// The folders of images for a message: `A and 2 more folders`.
    pub(super) fn dataset_text(&self) -> String {
        let first = self.dataset.display();
        match self.more.as_slice() {
            [] => first.to_string(),
            [second] => format!("{first} and {}", second.dataset.display()),
            more => format!("{first} and {} more folders", more.len()),
        }
    }
}

/// How many images are held out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeldOut {
    /// This many, and the other tiles of their photographs. Images that are added later all go to
    /// the set to train on.
    Count(u64),
    /// About this share. The name of the photograph and the seed alone decide whether an image is
    /// held out.
    Share(f64),
}

impl std::fmt::Display for HeldOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HeldOut::Count(n) => write!(f, "{n}"),
            HeldOut::Share(share) => write!(f, "{share:?}"),
        }
    }
}
