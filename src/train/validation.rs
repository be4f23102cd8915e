//! Validation within a run: images are upscaled in the arena of the step. Depends on the validation
//! set, the metrics and upscaling. Promises to take no device memory beyond that of the step, to
//! end within one image of a stop request, and that an image that cannot be measured is a warning:
//! a run does not end because its validation fails.

use super::keeping::MeasuredOn;
use super::{DevicePlace, ImageSizes, RunOptions, TrainConfig, ValidationSet, previews};
use crate::backend::Backend;
use crate::inference::eval::{Scores, evaluate_pair, mean};
use crate::inference::upscale::{LentUpscaler, Tiler, largest_tile};
use crate::plan::{Plan, Sizing};
use crate::sys::anonymous_memory;
use anyhow::{Context, Result};
use std::sync::atomic::Ordering;

/// The validation of a run. Images are upscaled in the arena of the step, whose content is not
/// needed between steps.
pub(super) struct Validation {
    pub images: ValidationSet,
    tiler: Tiler,
    /// Sizing of inference on the device of the run.
    sizing: Box<dyn Sizing>,
    /// Iterations between validations.
    pub every: u64,
    /// Sizes of the images.
    pub sizes: ImageSizes,
    /// HR pixels that the metrics leave out at each edge.
    crop: u32,
    /// Peak anonymous memory seen while images were in memory, bytes.
    pub peak: u64,
}

/// The scores of a validation, means over all pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct ValidationScores {
    pub network: Scores,
    /// Of the bicubic upscaling; at scale 1 of the LQ itself.
    pub bicubic: Scores,
}

/// The result of a validation.
pub(super) enum ValidationOutcome {
    /// Means over all pairs.
    Scores(ValidationScores),
    /// An image could not be measured. A mean over the others could not be compared with other
    /// validations.
    Failed,
    /// The run was stopped meanwhile.
    Stopped,
}

impl Validation {
    /// Opens the validation of a run; `None` without one.
    ///
    /// # Errors
    /// There is nothing to validate on.
    pub fn new(
        config: &TrainConfig,
        options: &RunOptions,
        place: &DevicePlace,
    ) -> Result<Option<Validation>> {
        let Some(folder) = &options.validation else {
            return Ok(None);
        };
        let images = ValidationSet::open(folder, config.network.scale)?;
        let images = images.with_degrade(config.degrade_recipe()?)?;
        let sizes = images.sizes()?;
        let tiler = Tiler::new(config.network.clone(), 0)?;
        let crop = options.crop_border.unwrap_or(config.network.scale as u32);
        let every = options.validate_every.max(1);
        Ok(Some(Validation {
            images,
            tiler,
            sizing: place.inference(),
            every,
            sizes,
            crop,
            peak: 0,
        }))
    }

    /// Chooses the largest tiles with which every image can be upscaled in the arena of the step.
    ///
    /// # Errors
    /// Only on a bug: the plan has the room that [`ValidationMemory`](super::ValidationMemory) asked
    /// for.
    pub fn fit_tiles(&mut self, config: &TrainConfig, plan: &Plan) -> Result<()> {
        let room = plan.free_between_steps();
        let (net, room) = (&config.network, room.end - room.start);
        let side = largest_tile(net, self.sizing.as_ref(), &self.sizes.lq, room)?;
        self.tiler = Tiler::new(config.network.clone(), side)?;
        Ok(())
    }

    /// Loads every image once, before the first step. Returns what scores will be measured on;
    /// `None` if the run was stopped meanwhile.
    ///
    /// # Errors
    /// An image cannot be measured; the message names it.
    pub fn check(&mut self, options: &RunOptions) -> Result<Option<MeasuredOn>> {
        let (stop, peak) = (&options.stop, &mut self.peak);
        let checksum = self.images.check(self.crop, &mut || {
            *peak = (*peak).max(anonymous_memory().unwrap_or(0));
            !stop.load(Ordering::Relaxed)
        })?;
        let place = options
            .validation
            .as_deref()
            .map(|place| std::path::absolute(place).unwrap_or_else(|_| place.to_path_buf()));
        Ok(checksum.map(|checksum| MeasuredOn {
            place: place.map_or_else(String::new, |place| place.display().to_string()),
            pairs: self.images.len() as u64,
            crop_border: self.crop,
            checksum,
        }))
    }

    /// Measures a network, and keeps previews of the first images for the report.
    pub fn measure(
        &mut self,
        backend: &mut dyn Backend,
        params: &[f32],
        options: &RunOptions,
        iteration: u64,
        warn: &mut dyn FnMut(String),
    ) -> ValidationOutcome {
        let mut upscaler = LentUpscaler {
            tiler: &mut self.tiler,
            host: backend,
            sizing: self.sizing.as_ref(),
            params,
        };
        let mut scores = Vec::with_capacity(self.images.len());
        let mut previews_failed = false;
        for index in 0..self.images.len() {
            if options.stop.load(Ordering::Relaxed) {
                return ValidationOutcome::Stopped;
            }
            let measured = self.images.pair(index).and_then(|(name, pair)| {
                let measured = evaluate_pair(&mut upscaler, &name, &pair, self.crop)
                    .with_context(|| self.images.place(index))?;
                Ok((pair, measured))
            });
            // Measured while the images are in memory, which is the peak of a validation.
            self.peak = self.peak.max(anonymous_memory().unwrap_or(0));
            let (pair, measured) = match measured {
                Ok(measured) => measured,
                Err(error) => {
                    warn(format!(
                        "this validation has no scores, and training goes on: {error:#}"
                    ));
                    return ValidationOutcome::Failed;
                }
            };
            if let Err(error) = previews::keep(&options.out, iteration, index, &measured, &pair)
                && !std::mem::replace(&mut previews_failed, true)
            {
                warn(format!(
                    "the previews of this validation are not all kept: {error:#}"
                ));
            }
            scores.push((measured.result.network, measured.result.bicubic));
        }
        ValidationOutcome::Scores(ValidationScores {
            network: mean(scores.iter().map(|(network, _)| *network)),
            bicubic: mean(scores.iter().map(|(_, bicubic)| *bicubic)),
        })
    }
}
