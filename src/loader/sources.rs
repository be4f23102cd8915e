//! The sets of shards that a loader reads: one, or several with weights. Depends on
//! `shard::reader`. Promises that the sets fit each other, and numbers their records through all
//! sets: the records of the second set follow those of the first.

use super::order::SetSpec;
use super::quotas::apportion;
use super::set_order::Shuffle;
use crate::shard::reader::{RecordSource, ShardSet};
use crate::support::rng::key;
use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of neighbouring records that a windowed order reads in one piece. At 4 MiB a disk that
/// seeks in 10 ms and reads 200 MB/s spends two thirds of its time reading.
const CHUNK_BYTES: u64 = 4 << 20;

/// One set and its share of an epoch.
struct SourceSet {
    set: Arc<ShardSet>,
    /// Samples that the set gives in an epoch.
    quota: u64,
    /// Number of its first record, counted through all sets.
    first_record: u64,
}

/// One or more sets of shards to load from.
pub struct Sources {
    sets: Vec<SourceSet>,
    weights: Vec<f64>,
    records: u64,
}

impl From<Arc<ShardSet>> for Sources {
    fn from(set: Arc<ShardSet>) -> Sources {
        let records = set.len();
        Sources {
            sets: vec![SourceSet {
                quota: records,
                first_record: 0,
                set,
            }],
            weights: Vec::new(),
            records,
        }
    }
}

impl Sources {
    /// Mixes several sets. Without weights an epoch holds every record once. With weights (one per
    /// set, above 0) an epoch has the same number of samples, shared out by weight: a set is then
    /// read several times in an epoch, or in part, in the order of its own epochs.
    ///
    /// # Errors
    /// There is no set, the sets have different scales, the weights do not match the sets, or a
    /// weight gives its set no sample.
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
        let mut first_record = 0;
        let mut sources = Vec::with_capacity(sets.len());
        for (set, quota) in sets.into_iter().zip(quotas) {
            ensure!(
                quota > 0,
                "the weight of {} gives it no sample in an epoch of {records}; raise it",
                set.folder().display()
            );
            let len = set.len();
            sources.push(SourceSet {
                quota,
                first_record,
                set,
            });
            first_record += len;
        }
        Ok(Sources {
            sets: sources,
            weights: weights.to_vec(),
            records,
        })
    }

    /// Opens the sets in `folders` and mixes them.
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

    /// The sets, in the order given.
    pub fn sets(&self) -> impl ExactSizeIterator<Item = &Arc<ShardSet>> {
        self.sets.iter().map(|s| &s.set)
    }

    /// The set with this number.
    pub(super) fn set(&self, number: usize) -> &ShardSet {
        &self.sets[number].set
    }

    /// Records of all sets; also the number of samples in an epoch.
    #[allow(clippy::len_without_is_empty)] // a set without records cannot be opened
    pub fn len(&self) -> u64 {
        self.records
    }

    /// Samples that each set gives in an epoch.
    pub fn quotas(&self) -> Vec<u64> {
        self.sets.iter().map(|s| s.quota).collect()
    }

    /// HR side over LQ side.
    pub fn scale(&self) -> u32 {
        self.sets[0].set.scale()
    }

    /// The smallest LQ patch stored in any set, pixels: the largest that can be delivered.
    pub fn lq_size(&self) -> u32 {
        self.sets().map(|s| s.lq_size()).min().unwrap_or(0)
    }

    /// The LQ crop that the sets were made for, pixels; smaller than the stored patch where the
    /// patches were cut with a margin.
    pub fn crop(&self) -> u32 {
        self.sets().map(|s| s.manifest().crop()).min().unwrap_or(0)
    }

    /// Bytes of all shard files of all sets.
    pub fn bytes(&self) -> u64 {
        self.sets().map(|s| s.bytes()).sum()
    }

    /// The folders of the sets, for messages.
    pub fn folders(&self) -> String {
        self.sets()
            .map(|s| s.folder().display().to_string())
            .collect::<Vec<_>>()
            .join(" and ")
    }

    /// A hash of configuration, content and weights; a resumed training run must find the same one.
    pub fn fingerprint(&self) -> u64 {
        match &self.sets[..] {
            [only] => only.set.fingerprint(),
            all => key(&all
                .iter()
                .flat_map(|s| [s.set.fingerprint(), s.quota])
                .collect::<Vec<_>>()),
        }
    }

    /// The weights that were given; empty if every record comes once in an epoch.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Number, counted through all sets, of record `record` of set `set`.
    pub(super) fn global_number(&self, set: usize, record: u64) -> u64 {
        self.sets[set].first_record + record
    }

    /// The set that holds a record numbered through all sets, and the number of the record there.
    ///
    /// # Errors
    /// There is no record with this number.
    pub fn locate(&self, record: u64) -> Result<(&ShardSet, u64)> {
        ensure!(
            record < self.records,
            "record {record} is asked for; there are {}",
            self.records
        );
        let at = self.sets.partition_point(|s| s.first_record <= record) - 1;
        let source = &self.sets[at];
        Ok((&source.set, record - source.first_record))
    }

    /// The image that a record was cut from, and the position of the patch in it.
    ///
    /// # Errors
    /// The number is out of range, or the source table is damaged.
    pub fn source(&self, record: u64) -> Result<RecordSource> {
        let (set, record) = self.locate(record)?;
        Ok(set.source(record)?)
    }

    /// What the order needs to know of every set, for LQ crops of `lq_size` pixels (at most
    /// [`Sources::lq_size`]) and a window of `window` bytes over all sets.
    pub(super) fn set_specs(&self, lq_size: usize, window: Option<u64>) -> Vec<SetSpec> {
        let all = self.bytes().max(1);
        let spec = |source: &SourceSet| {
            let (set, records) = (&source.set, source.set.len());
            let shuffle = match window {
                None => Shuffle::Full,
                Some(window) => {
                    let mean = (set.bytes() / records).max(1);
                    let chunk = (CHUNK_BYTES / mean).clamp(1, records);
                    // Half: the window and the next one, which is fetched meanwhile, share the
                    // memory. The sets share it by size.
                    let bytes =
                        (u128::from(window) * u128::from(set.bytes()) / u128::from(all)) as u64 / 2;
                    Shuffle::Window {
                        chunk,
                        chunks: (bytes / (chunk * mean)).max(1),
                    }
                }
            };
            SetSpec {
                records,
                quota: source.quota,
                crop_positions: (set.lq_size() as usize - lq_size + 1) as u64,
                shuffle,
                lqs: set.lqs(),
            }
        };
        self.sets.iter().map(spec).collect()
    }
}
