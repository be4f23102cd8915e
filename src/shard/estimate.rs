//! Estimates size and time of a run: a few images are converted in memory and thrown away. Depends
//! on `convert` and `plan`. Promises to write nothing and to report the size of the sample.

use super::convert::Worker;
use super::plan::{BuildConfig, Job, Plan, pool};
use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::time::Instant;

/// Images converted for an estimate, spread evenly over the collection.
const SAMPLED: usize = 32;

/// An estimate of size and time.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Number of images in the sample.
    pub sampled_images: u64,
    /// Pairs that they would give; duplicates are not looked for.
    pub sampled_pairs: u64,
    /// Pairs expected in all.
    pub pairs: u64,
    /// Bytes of shards expected.
    pub bytes: u64,
    /// Seconds expected with these threads if the files are in the page cache; the disk may be
    /// slower.
    pub seconds: f64,
}

/// Converts a sample on the threads of the run. `None` if the sample gives no patches.
///
/// # Errors
/// An error of the system.
pub fn estimate(config: &BuildConfig, plan: &Plan) -> Result<Option<Estimate>> {
    let step = plan.jobs.len().div_ceil(SAMPLED).max(1);
    let most = config.host_memory / pool(config.threads)?.current_num_threads() as u64;
    let sample: Vec<&Job> = plan
        .jobs
        .iter()
        .skip(step / 2)
        .step_by(step)
        .filter(|job| job.memory <= most)
        .collect();
    let started = Instant::now();
    let convert = |job: &&Job| -> Result<(u64, u64, u64, u64, u64)> {
        let mut worker = Worker::new(plan.geometry, config)?;
        let made = worker
            .convert(job, config)
            .with_context(|| format!("cannot convert {}", job.source.hr.display()))?
            .ok();
        let (kept, bytes) =
            made.map_or((0, 0), |c| (c.records.len() as u64, c.payload.len() as u64));
        Ok((1, job.pairs, kept, bytes, work(job)))
    };
    let sums = pool(config.threads)?
        .install(|| sample.par_iter().map(convert).collect::<Result<Vec<_>>>())?;
    let seconds = started.elapsed().as_secs_f64();
    let (images, patches, kept, bytes, done) = sums.into_iter().fold((0, 0, 0, 0, 0), |a, b| {
        (a.0 + b.0, a.1 + b.1, a.2 + b.2, a.3 + b.3, a.4 + b.4)
    });
    if patches == 0 || done == 0 {
        return Ok(None);
    }
    let share = |part: u64, whole: u64| part as f64 / whole as f64;
    let all: u64 = plan.jobs.iter().map(work).sum();
    Ok(Some(Estimate {
        sampled_images: images,
        sampled_pairs: kept,
        pairs: (share(kept, patches) * plan.pairs() as f64).round() as u64,
        bytes: (share(bytes, patches) * plan.pairs() as f64) as u64,
        seconds: seconds * share(all, done),
    }))
}

/// A measure of the time that an image takes: its pixels and the bytes of its file.
fn work(job: &Job) -> u64 {
    u64::from(job.size.0) * u64::from(job.size.1) + job.file_bytes
}
