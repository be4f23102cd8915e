//! Makes the LQ of samples while they are loaded. Depends on `shard::degraded`. Promises that a
//! sample is a pure function of its HR, the recipe, the seed, its epoch and its position.

use super::order::Sample;
use super::{LoaderConfig, Sources, largest_patch};
use crate::degrade::Recipe;
use crate::shard::degraded::{HrPixels, LqPatch, PatchDegrader, draws_of_sample};
use crate::shard::reader::{Crop, Scratch, ShardSet};
use crate::support::failure;
use anyhow::Result;
use std::time::{Duration, Instant};

/// The buffers of one thread.
pub(super) struct SampleDegrader {
    patches: PatchDegrader,
    /// A whole stored HR patch.
    hr: Vec<u8>,
    /// Key of the draws.
    seed: u64,
    /// LQ crop side, pixels.
    lq_size: usize,
    /// Time spent on making LQ crops since the caller took it last.
    pub spent: Duration,
    /// Number of these crops.
    pub made: u64,
}

impl SampleDegrader {
    /// Allocates for the samples of a loader; `None` if it delivers the stored LQ.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(sources: &Sources, config: &LoaderConfig) -> Result<Option<SampleDegrader>> {
        let Some(recipe) = &config.degrade else {
            return Ok(None);
        };
        let (scale, largest) = largest_patch(sources);
        let mut hr = Vec::new();
        let bytes = largest * largest * 3;
        hr.try_reserve_exact(bytes)
            .map_err(|_| failure::no_memory(bytes as u64, "HR patch"))?;
        hr.resize(bytes, 0);
        Ok(Some(SampleDegrader {
            patches: PatchDegrader::new(recipe, scale, config.lq_size, largest),
            hr,
            seed: config.seed,
            lq_size: config.lq_size,
            spent: Duration::ZERO,
            made: 0,
        }))
    }

    /// Bytes that [`SampleDegrader::new`] allocates, for stored HR patches of up to `hr_size` pixels.
    pub fn bytes(recipe: &Recipe, scale: u32, lq_size: usize, hr_size: usize) -> u64 {
        (hr_size * hr_size * 3) as u64 + PatchDegrader::bytes(recipe, scale, lq_size, hr_size)
    }

    /// Reads the HR crop of a record in place of `sample.record`, and makes its LQ with the draws of
    /// the sample.
    ///
    /// # Errors
    /// The record cannot be read; the recipe fails.
    pub fn read(
        &mut self,
        set: &ShardSet,
        record: u64,
        sample: &Sample,
        scratch: &mut Scratch,
        (lq, hr): (&mut [u8], &mut [u8]),
    ) -> Result<()> {
        let g = set.geometry();
        let stored = &mut self.hr[..g.hr_bytes()];
        let whole = Crop {
            x: 0,
            y: 0,
            size: g.lq(),
        };
        set.read_part(record, whole, scratch, None, stored)?;
        let (x, y) = (sample.x as usize, sample.y as usize);
        let scale = g.scale as usize;
        let row = self.lq_size * scale * 3;
        let lines = stored.chunks_exact(g.hr() * 3).skip(y * scale);
        for (line, out) in lines.zip(hr.chunks_exact_mut(row)) {
            out.copy_from_slice(&line[x * scale * 3..][..row]);
        }
        let pixels = HrPixels {
            pixels: stored,
            width: g.hr(),
            height: g.hr(),
        };
        let patch = LqPatch {
            x,
            y,
            size: self.lq_size,
        };
        let draws = draws_of_sample(self.seed, sample.epoch, sample.position);
        let started = Instant::now();
        let made = self.patches.make(pixels, patch, &draws, lq);
        self.spent += started.elapsed();
        self.made += 1;
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::{Loader, bound};
    use crate::shard::degraded::tests::{config as set_config, images, make, recipe};
    use crate::shard::plan::BuildConfig;
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::sync::Arc;

    /// A set in a temporary folder, with the options of `change`.
    fn set(change: impl Fn(&mut BuildConfig)) -> (tempfile::TempDir, Sources) {
        let dir = tempfile::tempdir().unwrap();
        let (data, out) = (dir.path().join("data"), dir.path().join("set"));
        images(&data, 4);
        let mut config = set_config(&data, &out, 2);
        change(&mut config);
        make(&config).unwrap();
        let sources = Sources::open(&[PathBuf::from(&out)], &[]).unwrap();
        (dir, sources)
    }

    /// LQ, HR, augmentation and records of a batch.
    type Content = (Vec<u8>, Vec<u8>, Vec<u8>, Vec<u64>);

    fn batches(sources: &Arc<Sources>, config: &LoaderConfig, count: usize) -> Vec<Content> {
        let mut loader = Loader::start(sources.clone(), config.clone()).unwrap();
        let one = |_| {
            let batch = loader.next().unwrap();
            let (lq, hr) = (batch.lq().to_vec(), batch.hr().to_vec());
            (lq, hr, batch.augment().to_vec(), batch.records().to_vec())
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn any_number_of_threads_and_any_start_give_the_same_batches() {
        let (_dir, sources) = set(|config| {
            config.hr_only = true;
            (config.lq_size, config.margin) = (24, 8);
        });
        let sources = Arc::new(sources);
        let config = LoaderConfig {
            degrade: Some(recipe()),
            ..LoaderConfig::new(3, 16, 7)
        };
        // more than two epochs, whose ends are inside batches
        let count = 2 * sources.len() as usize / 3 + 3;
        let expected = batches(&sources, &config, count);
        for threads in [2, 5] {
            let config = LoaderConfig {
                threads,
                slots: threads + 2,
                ..config.clone()
            };
            assert!(batches(&sources, &config, count) == expected, "{threads}");
        }
        for start in [1, count / 2, count - 2] {
            let config = LoaderConfig {
                start: start as u64,
                threads: 2,
                ..config.clone()
            };
            let found = batches(&sources, &config, count - start);
            assert!(found == expected[start..], "from {start}");
        }
        let other = LoaderConfig { seed: 8, ..config };
        assert!(batches(&sources, &other, 1) != expected[..1]);
    }

    #[test]
    fn a_record_is_degraded_in_another_way_in_every_epoch() {
        let (_dir, sources) = set(|config| config.hr_only = true);
        let records = sources.len() as usize;
        let sources = Arc::new(sources);
        let config = LoaderConfig {
            degrade: Some(recipe()),
            hflip: false,
            rot: false,
            ..LoaderConfig::new(1, 16, 7)
        };
        let mut seen: BTreeMap<u64, Vec<Content>> = BTreeMap::new();
        for batch in batches(&sources, &config, 3 * records) {
            seen.entry(batch.3[0]).or_default().push(batch);
        }
        for (record, batches) in seen {
            let [a, b, c] = &batches[..] else {
                panic!("record {record} came {} times", batches.len())
            };
            // the crop is the whole patch, so the HR is the same
            assert!(a.1 == b.1 && b.1 == c.1);
            assert!(a.0 != b.0 && b.0 != c.0 && a.0 != c.0, "record {record}");
        }
    }

    #[test]
    fn every_variant_is_delivered_in_as_many_epochs_as_there_are() {
        let (_dir, sources) = set(|config| config.variants = 3);
        let records = sources.len() as usize;
        let sources = Arc::new(sources);
        let config = LoaderConfig {
            threads: 2,
            ..LoaderConfig::new(1, 16, 7)
        };
        let mut seen: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
        for batch in batches(&sources, &config, 3 * records) {
            seen.entry(batch.3[0]).or_default().push(batch.0);
        }
        assert_eq!(seen.len(), records);
        for lqs in seen.values_mut() {
            assert_eq!(lqs.len(), 3);
            lqs.sort();
            lqs.dedup();
            assert_eq!(lqs.len(), 3);
        }
    }

    #[test]
    fn a_set_of_hr_alone_needs_a_recipe_whose_memory_counts() {
        let (_dir, sources) = set(|config| config.hr_only = true);
        let mut config = LoaderConfig::new(2, 16, 7);
        let error = bound(&sources, &config).unwrap_err().to_string();
        assert!(error.contains("--degrade real-esrgan"), "{error}");
        config.degrade = Some(recipe());
        config.threads = 3;
        let memory = bound(&sources, &config).unwrap();
        assert!(memory.degrade_bytes >= recipe().memory(32, 32, 2));
        let without =
            memory.slots as u64 * memory.slot_bytes + 3 * memory.scratch_bytes + memory.index_bytes;
        assert_eq!(memory.total(), without + 3 * memory.degrade_bytes);
    }
}
