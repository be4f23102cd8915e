//! Validation within a run: held-out images, upscaled in the step's arena. Depends on the
//! held-out pairs, the metrics and upscaling. It promises to take no device memory beyond what the
//! step has, to end within an image of being told to stop, and that what goes wrong with an image
//! is a warning: a run does not end for what only measures it.

use super::keeping::MeasuredOn;
use super::{DevicePlace, RunOptions, TrainConfig, ValidationSet, previews};
use crate::backend::Backend;
use crate::inference::eval::{Scores, evaluate_pair, mean};
use crate::inference::upscale::{LentUpscaler, Tiles, largest_tile};
use crate::plan::{Plan, Sizing};
use crate::sys::anonymous_memory;
use anyhow::{Context, Result};
use std::sync::atomic::Ordering;

/// Images for validation. They are upscaled in the step's arena, which holds nothing of worth
/// between steps.
pub(super) struct Validation {
    pub held_out: ValidationSet,
    tiles: Tiles,
    sizing: Box<dyn Sizing>,
    /// Iterations between validations.
    pub every: u64,
    /// Pixels of the largest HR image.
    pub largest: u64,
    /// HR pixels left out at each edge.
    crop: u32,
    /// Most anonymous memory seen while images were held, bytes.
    pub peak: u64,
}

/// What came of a validation.
pub(super) enum ValidationOutcome {
    /// Means over all pairs.
    Scores(Scores),
    /// A pair could not be measured; means over the others could not be compared with those of
    /// other validations.
    Failed,
    /// The run was told to stop meanwhile.
    Stopped,
}

impl Validation {
    pub fn new(
        config: &TrainConfig,
        options: &RunOptions,
        place: &DevicePlace,
    ) -> Result<Option<Validation>> {
        let Some(folder) = &options.validation else {
            return Ok(None);
        };
        let held_out = ValidationSet::open(folder, config.network.scale)?;
        let largest = held_out.largest()?;
        let tiles = Tiles::new(config.network.clone(), 0)?;
        let crop = options.crop_border.unwrap_or(config.network.scale as u32);
        let every = options.validate_every.max(1);
        Ok(Some(Validation {
            held_out,
            tiles,
            sizing: place.inference(),
            every,
            largest,
            crop,
            peak: 0,
        }))
    }

    /// Takes the largest tiles that the plan of the step has room for.
    pub fn fit_tiles(&mut self, config: &TrainConfig, plan: &Plan) -> Result<()> {
        let room = plan.free_between_steps();
        let side = largest_tile(&config.network, self.sizing.as_ref(), room.end - room.start)?;
        self.tiles = Tiles::new(config.network.clone(), side)?;
        Ok(())
    }

    /// Loads every pair once, before the first step, and says what scores will be measured on;
    /// nothing where the run is stopped meanwhile.
    ///
    /// # Errors
    /// Names the pairs that cannot be measured.
    pub fn check(&mut self, options: &RunOptions) -> Result<Option<MeasuredOn>> {
        let (stop, peak) = (&options.stop, &mut self.peak);
        let checksum = self.held_out.check(self.crop, &mut || {
            *peak = (*peak).max(anonymous_memory().unwrap_or(0));
            !stop.load(Ordering::Relaxed)
        })?;
        let place = options
            .validation
            .as_deref()
            .map(|place| std::path::absolute(place).unwrap_or_else(|_| place.to_path_buf()));
        Ok(checksum.map(|checksum| MeasuredOn {
            place: place.map_or_else(String::new, |place| place.display().to_string()),
            pairs: self.held_out.len() as u64,
            crop_border: self.crop,
            checksum,
        }))
    }

    /// Measures a network; its images are kept for the report.
    pub fn measure(
        &mut self,
        backend: &mut dyn Backend,
        params: &[f32],
        options: &RunOptions,
        iteration: u64,
        warn: &mut dyn FnMut(String),
    ) -> ValidationOutcome {
        let mut upscaler = LentUpscaler {
            tiles: &mut self.tiles,
            host: backend,
            sizing: self.sizing.as_ref(),
            params,
        };
        let mut scores = Vec::with_capacity(self.held_out.len());
        let mut previews_failed = false;
        for index in 0..self.held_out.len() {
            if options.stop.load(Ordering::Relaxed) {
                return ValidationOutcome::Stopped;
            }
            let measured = self.held_out.pair(index).and_then(|(name, pair)| {
                let measured = evaluate_pair(&mut upscaler, &name, &pair, self.crop)
                    .with_context(|| self.held_out.place(index))?;
                Ok((pair, measured))
            });
            // while the images are held: this is the most that validation takes
            self.peak = self.peak.max(anonymous_memory().unwrap_or(0));
            let (pair, m) = match measured {
                Ok(measured) => measured,
                Err(error) => {
                    warn(format!(
                        "this validation has no scores, and training goes on: {error:#}"
                    ));
                    return ValidationOutcome::Failed;
                }
            };
            if let Err(error) = previews::keep(
                &options.out,
                iteration,
                index,
                &m.result,
                &m.ours,
                &m.bicubic,
                &pair,
            ) && !std::mem::replace(&mut previews_failed, true)
            {
                warn(format!(
                    "the previews of this validation are not all kept: {error:#}"
                ));
            }
            scores.push(m.result.network);
        }
        ValidationOutcome::Scores(mean(scores.into_iter()))
    }
}
