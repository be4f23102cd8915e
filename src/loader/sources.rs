//! What a loader draws from: one set of shards, or several with weights. Depends on
//! `shard::reader`. Promises that every set fits the others, and numbers their records through:
//! those of the second set follow those of the first.

use super::order::{Part, Shuffle};
use super::quotas::apportion;
use crate::shard::reader::{RecordSource, ShardSet};
use crate::support::rng::key;
use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of neighbouring records that a windowed order reads in one piece: enough for a disk that
/// seeks in 10 ms and reads 200 MB/s to spend two thirds of its time reading.
const CHUNK_BYTES: u64 = 4 << 20;

/// One set and its part in an epoch.
struct Share {
    set: Arc<ShardSet>,
    quota: u64,
    /// Number of its first record among all.
    first: u64,
}

/// One or more sets to draw from.
pub struct Sources {
    shares: Vec<Share>,
    weights: Vec<f64>,
    records: u64,
}

impl From<Arc<ShardSet>> for Sources {
    fn from(set: Arc<ShardSet>) -> Sources {
        let records = set.len();
        Sources {
            shares: vec![Share {
                quota: records,
                first: 0,
                set,
            }],
            weights: Vec::new(),
            records,
        }
    }
}

impl Sources {
    /// Several sets. Without weights an epoch holds every record once; with weights (one a set,
    /// above 0) it has as many samples, shared out by weight: a set then comes several times in an
    /// epoch, or in part, in the order of its own epochs.
    ///
    /// # Errors
    /// No set, sets of different scales, weights that do not fit, a set whose share is no sample at
    /// all.
    pub fn mixed(sets: Vec<Arc<ShardSet>>, weights: &[f64]) -> Result<Sources> {
        let Some(first) = sets.first() else {
            bail!("there is no set of shards to load from")
        };
        let scale = first.scale();
        for set in &sets {
            ensure!(
                set.scale() == scale,
                "{} holds pairs of scale {} and {} of scale {scale}; sets that are mixed must agree",
                set.folder().display(),
                set.scale(),
                first.folder().display()
            );
        }
        ensure!(
            weights.is_empty() || weights.len() == sets.len(),
            "{} weights for {} sets of shards; give one for each, or none",
            weights.len(),
            sets.len()
        );
        ensure!(
            weights.iter().all(|w| w.is_finite() && *w > 0.0),
            "weights of sets must be above 0"
        );
        let records = sets
            .iter()
            .try_fold(0u64, |sum, s| sum.checked_add(s.len()))
            .context("the sets hold too many records")?;
        let quotas = if weights.is_empty() {
            sets.iter().map(|s| s.len()).collect()
        } else {
            apportion(records, weights)
        };
        let mut at = 0;
        let mut shares = Vec::with_capacity(sets.len());
        for (set, quota) in sets.into_iter().zip(quotas) {
            ensure!(
                quota > 0,
                "the weight of {} gives it no sample in an epoch of {records}; raise it",
                set.folder().display()
            );
            shares.push(Share {
                quota,
                first: at,
                set,
            });
            at += shares[shares.len() - 1].set.len();
        }
        Ok(Sources {
            shares,
            weights: weights.to_vec(),
            records,
        })
    }

    /// Opens the sets of some folders.
    ///
    /// # Errors
    /// Those of [`ShardSet::open`] and [`Sources::mixed`].
    pub fn open(folders: &[PathBuf], weights: &[f64]) -> Result<Sources> {
        let sets = folders
            .iter()
            .map(|f| ShardSet::open(f).map(Arc::new))
            .collect::<Result<_, _>>()?;
        Sources::mixed(sets, weights)
    }

    /// The sets.
    pub fn sets(&self) -> impl ExactSizeIterator<Item = &Arc<ShardSet>> {
        self.shares.iter().map(|s| &s.set)
    }

    pub(super) fn set(&self, number: usize) -> &ShardSet {
        &self.shares[number].set
    }

    /// Records of all sets, which also is the number of samples in an epoch.
    #[allow(clippy::len_without_is_empty)] // a set without records does not open
    pub fn len(&self) -> u64 {
        self.records
    }

    /// Samples that every set gives in an epoch.
    pub fn quotas(&self) -> Vec<u64> {
        self.shares.iter().map(|s| s.quota).collect()
    }

    /// HR side over LQ side.
    pub fn scale(&self) -> u32 {
        self.shares[0].set.scale()
    }

    /// The smallest LQ patch stored in any set, pixels: the largest that can be delivered.
    pub fn lq_size(&self) -> u32 {
        self.sets().map(|s| s.lq_size()).min().unwrap_or(0)
    }

    /// The LQ crop that the sets were made for, pixels: smaller than what is stored where they were
    /// cut with a margin.
    pub fn crop(&self) -> u32 {
        self.sets().map(|s| s.manifest().crop()).min().unwrap_or(0)
    }

    /// Bytes of all shard files.
    pub fn bytes(&self) -> u64 {
        self.sets().map(|s| s.bytes()).sum()
    }

    /// The folders, for messages.
    pub fn places(&self) -> String {
        self.sets()
            .map(|s| s.folder().display().to_string())
            .collect::<Vec<_>>()
            .join(" and ")
    }

    /// Identity of configuration, content and weights: a resumed training run must find the same.
    pub fn fingerprint(&self) -> u64 {
        match &self.shares[..] {
            [only] => only.set.fingerprint(),
            all => key(&all
                .iter()
                .flat_map(|s| [s.set.fingerprint(), s.quota])
                .collect::<Vec<_>>()),
        }
    }

    /// The weights asked for; empty where every record comes once.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Number among all records of record `record` of set `set`.
    pub(super) fn number(&self, set: usize, record: u64) -> u64 {
        self.shares[set].first + record
    }

    /// The set of a record numbered through all sets, and its number there.
    pub fn find(&self, record: u64) -> Result<(&ShardSet, u64)> {
        ensure!(
            record < self.records,
            "record {record} is asked for; there are {}",
            self.records
        );
        let share = &self.shares[self.shares.partition_point(|s| s.first <= record) - 1];
        Ok((&share.set, record - share.first))
    }

    /// The image and the place that a record was cut from.
    ///
    /// # Errors
    /// A number out of range, a damaged source table.
    pub fn source(&self, record: u64) -> Result<RecordSource> {
        let (set, record) = self.find(record)?;
        Ok(set.source(record)?)
    }

    /// How far every set is shuffled if `window` bytes of it may be in memory at a time, and how
    /// its crops are drawn.
    pub(super) fn parts(&self, lq_size: usize, window: Option<u64>) -> Vec<Part> {
        let all = self.bytes().max(1);
        let part = |share: &Share| {
            let (set, records) = (&share.set, share.set.len());
            let shuffle = match window {
                None => Shuffle::Full,
                Some(window) => {
                    let mean = (set.bytes() / records).max(1);
                    let chunk = (CHUNK_BYTES / mean).clamp(1, records);
                    // the window and the next one, which is fetched meanwhile, share the memory;
                    // sets share it by size
                    let bytes =
                        (u128::from(window) * u128::from(set.bytes()) / u128::from(all)) as u64 / 2;
                    Shuffle::Window {
                        chunk,
                        chunks: (bytes / (chunk * mean)).max(1),
                    }
                }
            };
            Part {
                records,
                quota: share.quota,
                places: (set.lq_size() as usize - lq_size + 1) as u64,
                shuffle,
            }
        };
        self.shares.iter().map(part).collect()
    }
}
