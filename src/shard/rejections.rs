//! What can be said about images that gave no pairs: the kinds of those that an earlier run
//! rejected, and the patch size that would take images which are too small. Depends on `convert`.

use super::convert::Worker;
use super::criteria::NEAR_DUPLICATE;
use super::job::{DUPLICATE, FLAT, Rejected, TOO_SMALL};
use super::plan::{BuildConfig, Job, Plan, pool};
use anyhow::{Result, bail};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Most images that are converted again to find out why they gave no pairs.
const MOST_EXAMINED: usize = 256;
/// Smallest LQ patch that is proposed: smaller ones show a network nothing.
const SMALLEST_PATCH: u32 = 16;

/// The rejections of the images that gave no pairs when the set was made. `kinds` are the counts of
/// that run, by which most kinds are known; where more than one is possible, a few images are
/// converted again.
///
/// # Errors
/// An error of the system.
pub(super) fn of_an_earlier_run(
    config: &BuildConfig,
    plan: &Plan,
    jobs: &[&Job],
    kinds: &[(String, u64)],
) -> Result<Vec<Rejected>> {
    let mut left: BTreeMap<&str, u64> = kinds.iter().map(|(k, n)| (k.as_str(), *n)).collect();
    for rejected in &plan.rejected {
        if let Some(count) = left.get_mut(rejected.kind.as_str()) {
            *count = count.saturating_sub(1);
        }
    }
    left.retain(|_, count| *count > 0);
    if left.len() > 1 && jobs.len() <= MOST_EXAMINED {
        return examine(config, plan, jobs);
    }
    let possible: Vec<&str> = left.keys().copied().collect();
    let kind = match possible.as_slice() {
        [] => "no pairs".to_string(),
        possible => possible.join(" or "),
    };
    let rejected = |job: &&Job| earlier(job, &kind);
    Ok(jobs.iter().map(rejected).collect())
}

fn earlier(job: &Job, kind: &str) -> Rejected {
    Rejected {
        file: job.source.hr.clone(),
        kind: kind.to_string(),
        reason: format!("it gave no pairs when the set was made ({kind})"),
        lq_side: None,
    }
}

fn examine(config: &BuildConfig, plan: &Plan, jobs: &[&Job]) -> Result<Vec<Rejected>> {
    let one = |job: &&Job| -> Result<Rejected> {
        let outcome = Worker::new(plan.geometry, config)?.convert(job, config)?;
        Ok(match outcome {
            Err(rejected) => rejected,
            Ok(converted) if converted.records.is_empty() => earlier(job, FLAT),
            Ok(converted) if converted.hash.is_some() => {
                earlier(job, &format!("{DUPLICATE} or {NEAR_DUPLICATE}"))
            }
            Ok(_) => earlier(job, DUPLICATE),
        })
    };
    let work = || jobs.par_iter().map(one).collect::<Result<Vec<_>>>();
    match pool(config.threads)?.install(work) {
        Ok(rejected) => Ok(rejected),
        Err(error) => bail!(error.context("cannot look at an image that gave no pairs")),
    }
}

/// Which `--lq-size` would take the images that are too small for one patch. `None` where there are
/// none.
pub fn size_hint(config: &BuildConfig, images: u64, rejected: &[Rejected]) -> Option<String> {
    let small: Vec<u32> = rejected.iter().filter_map(|r| r.lq_side).collect();
    let smallest = *small.iter().min()?;
    let count = small.len() as u64;
    let whom = match count {
        n if n == images => format!("all {images}"),
        1 => "the image that is too small".to_string(),
        n => format!("the {n} that are too small, too"),
    };
    let size = smallest.saturating_sub(config.margin);
    Some(if size < SMALLEST_PATCH {
        format!(
            "try a smaller --lq-size for the images that are too small (the smallest LQ has {smallest} pixels)"
        )
    } else {
        format!("--lq-size {size} would take {whom}")
    })
}

/// Whether all images were rejected because they are too small.
pub(super) fn all_too_small(rejected: &[Rejected]) -> bool {
    rejected.iter().all(|r| r.kind == TOO_SMALL)
}
