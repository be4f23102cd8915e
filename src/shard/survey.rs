//! Measures the images of a plan and says what each criterion would leave out, for
//! `paragon shard --dry-run`. Depends on `criteria` and `dataset::measure`. Promises to write nothing,
//! the same numbers for any number of threads, and a memory that does not grow with the number of
//! images but for 8 bytes each.

use super::convert::{copy_patch, detail};
use super::criteria::Criteria;
use super::near_duplicates::nearest;
use super::plan::{BuildConfig, Job, Plan, pool, positions};
use crate::dataset::decode;
use crate::dataset::measure::{BlurMeasure, Luma, blockiness, entropy, noise, perceptual_hash};
use crate::support::failure;
use crate::support::progress::Progress;
use anyhow::{Context, Result};
use rayon::prelude::*;
use std::time::Instant;

mod distribution;
mod measure;

pub use distribution::{Distribution, Example, QUANTILES};
pub use measure::Measure;

/// Images of one group for each thread: enough that threads seldom wait for the end of a group.
const GROUP: usize = 8;

/// What was measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Survey {
    /// Images measured.
    pub images: u64,
    /// Images of the sample that cannot be used: damaged, or of another size than their header says.
    pub unreadable: u64,
    /// Patches measured.
    pub patches: u64,
    /// Images that no criterion leaves out.
    pub images_kept: u64,
    /// Patches of these images that no criterion leaves out. Duplicates are not looked for.
    pub patches_kept: u64,
    /// Wall time, seconds.
    pub seconds: f64,
    /// One entry for each measure, in the order of [`Measure::ALL`].
    pub measures: Vec<Distribution>,
}

/// The measures of one image.
struct Measured {
    blockiness: Option<f64>,
    noise: Option<f64>,
    hash: u64,
    patches: Vec<MeasuredPatch>,
}

struct MeasuredPatch {
    /// Left and upper edge in the HR, pixels.
    at: (u32, u32),
    detail: f64,
    entropy: f64,
    blur: Option<f64>,
}

impl MeasuredPatch {
    fn value(&self, measure: Measure) -> Option<f64> {
        match measure {
            Measure::Detail => Some(self.detail),
            Measure::Entropy => Some(self.entropy),
            _ => self.blur,
        }
    }
}

/// Measures the images of a plan, or about `sample` of them, spread evenly.
///
/// # Errors
/// An error of the system.
pub fn survey(
    config: &BuildConfig,
    plan: &Plan,
    sample: Option<u64>,
    progress: &Progress,
) -> Result<Survey> {
    let started = Instant::now();
    let step = sample.map_or(1, |n| plan.jobs.len().div_ceil(n.max(1) as usize).max(1));
    let chosen: Vec<usize> = (step / 2..plan.jobs.len()).step_by(step).collect();
    let pool = pool(config.threads)?;
    let mut run = Run::new(config);
    let most = pool.current_num_threads() * GROUP;
    let mut left = &chosen[..];
    while !left.is_empty() {
        let (group, rest) = left.split_at(group_size(config, plan, left, most));
        left = rest;
        let one = |&number: &usize| measure(&plan.jobs[number], config, plan);
        let measured = pool.install(|| group.par_iter().map(one).collect::<Result<Vec<_>>>())?;
        for (&number, measured) in group.iter().zip(measured) {
            run.add(number, measured);
        }
        progress.advance(group.len() as u64);
    }
    run.survey.seconds = started.elapsed().as_secs_f64();
    Ok(run.survey)
}

/// How many of the images `left` are measured at the same time: as many as `--host-memory` allows.
fn group_size(config: &BuildConfig, plan: &Plan, left: &[usize], most: usize) -> usize {
    let everything = Criteria {
        max_blockiness: Some(0.0),
        max_noise: Some(0.0),
        max_blur: Some(0.0),
        ..Criteria::default()
    };
    let mut held = 0;
    let fits = |&&number: &&usize| {
        let job = &plan.jobs[number];
        let pixels = u64::from(job.size.0) * u64::from(job.size.1);
        let measuring =
            3 * pixels + everything.image_bytes(pixels) + everything.patch_bytes(plan.geometry);
        held += job.memory.max(measuring);
        held <= config.host_memory
    };
    left.iter().take(most).take_while(fits).count().max(1)
}

/// Measures one image. `None`: its content cannot be used.
fn measure(job: &Job, config: &BuildConfig, plan: &Plan) -> Result<Option<Measured>> {
    let path = &job.source.hr;
    let read = || -> Result<image::RgbImage> {
        let bytes = decode::load(path, &config.limits)?;
        Ok(decode::decode_loaded(path, &bytes, &config.limits)?.image)
    };
    let image = match read() {
        Ok(image) if image.dimensions() == job.size => image,
        Ok(_) => return Ok(None),
        Err(error) if failure::system_cause(&error).is_none() => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot measure {}", path.display()));
        }
    };
    let noise = noise(&image);
    let luma = Luma::new(&image);
    let (blockiness, hash) = (blockiness(&luma), perceptual_hash(&luma));
    drop(luma);
    let g = plan.geometry;
    let of_side = |length: u32| positions(length / g.scale, g.lq_size, config.stride);
    let (rows, columns) = (of_side(image.height()), of_side(image.width()));
    let mut blur = BlurMeasure::default();
    let mut patch = Vec::new();
    let mut patches = Vec::with_capacity(rows.len() * columns.len());
    for &y in &rows {
        for &x in &columns {
            let at = (x * g.scale, y * g.scale);
            patch.clear();
            copy_patch(&image, at.0, at.1, g.lq_size * g.scale, &mut patch);
            let luma = Luma::of_rows(&patch, g.hr());
            patches.push(MeasuredPatch {
                at,
                detail: detail(&patch, g.hr()),
                entropy: entropy(&luma),
                blur: blur.measure(&luma),
            });
        }
    }
    Ok(Some(Measured {
        blockiness,
        noise,
        hash,
        patches,
    }))
}

/// Collects measured images in input order.
struct Run {
    survey: Survey,
    /// The images that later ones are compared with: number and hash.
    numbers: Vec<usize>,
    hashes: Vec<u64>,
}

impl Run {
    fn new(config: &BuildConfig) -> Run {
        let of = |measure: &Measure| Distribution::new(*measure, measure.threshold(config));
        Run {
            survey: Survey {
                images: 0,
                unreadable: 0,
                patches: 0,
                images_kept: 0,
                patches_kept: 0,
                seconds: 0.0,
                measures: Measure::ALL.iter().map(of).collect(),
            },
            numbers: Vec::new(),
            hashes: Vec::new(),
        }
    }

    /// Adds a value to its distribution. Returns whether it is left out.
    fn count(&mut self, measure: Measure, value: Option<f64>, example: Example) -> bool {
        let distribution = self.survey.measures.iter_mut();
        let mut of_measure = distribution.filter(|d| d.measure == measure);
        of_measure.next().is_some_and(|d| d.add(value, example))
    }

    fn add(&mut self, number: usize, measured: Option<Measured>) {
        let Some(measured) = measured else {
            self.survey.unreadable += 1;
            return;
        };
        self.survey.images += 1;
        self.survey.patches += measured.patches.len() as u64;
        let example = Example {
            value: 0.0,
            image: number,
            at: None,
            resembles: None,
        };
        let noisy = self.count(Measure::Noise, measured.noise, example);
        let blocky = self.count(Measure::Blockiness, measured.blockiness, example);
        let kept = self.add_patches(&measured.patches, example);
        if noisy || blocky || kept == 0 {
            return;
        }
        let nearest = nearest(&self.hashes, measured.hash);
        let example = Example {
            resembles: nearest.map(|(at, _)| self.numbers[at]),
            ..example
        };
        let bits = nearest.map(|(_, bits)| f64::from(bits));
        if !self.count(Measure::Similarity, bits, example) {
            self.numbers.push(number);
            self.hashes.push(measured.hash);
            self.survey.images_kept += 1;
            self.survey.patches_kept += kept;
        }
    }

    /// Adds the patches of an image. Returns how many of them are not left out.
    fn add_patches(&mut self, patches: &[MeasuredPatch], example: Example) -> u64 {
        let mut kept = 0;
        for patch in patches {
            let example = Example {
                at: Some(patch.at),
                ..example
            };
            let mut dropped = false;
            for measure in [Measure::Detail, Measure::Entropy, Measure::Blur] {
                dropped |= self.count(measure, patch.value(measure), example);
            }
            kept += u64::from(!dropped);
        }
        kept
    }
}
