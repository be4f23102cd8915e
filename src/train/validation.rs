//! Validation within a run: held-out pictures, upscaled in the step's arena. Depends on the held-out pairs, the metrics and upscaling. It promises
//! to take no device memory beyond what the step has.

use super::{HeldOut, Place, RunOptions, TrainConfig, previews};
use crate::backend::Backend;
use crate::eval::{Scores, evaluate_pair, mean};
use crate::plan::{Plan, Sizing};
use crate::upscale::{Guest, Tiles, largest_tile};
use anyhow::{Context, Result};

/// Pictures for validation. They are upscaled in the step's arena, which holds nothing of worth between steps.
pub(super) struct Validation {
    pub held_out: HeldOut,
    tiles: Tiles,
    sizing: Box<dyn Sizing>,
    /// Iterations between validations.
    pub every: u64,
    /// Pixels of the largest HR picture.
    pub largest: u64,
}

impl Validation {
    pub fn new(config: &TrainConfig, options: &RunOptions, place: &Place) -> Result<Option<Validation>> {
        let Some(folder) = &options.validation else { return Ok(None) };
        let held_out = HeldOut::open(folder, config.network.scale)?;
        let largest = held_out.largest()?;
        let tiles = Tiles::new(config.network.clone(), 0)?;
        Ok(Some(Validation { held_out, tiles, sizing: place.inference(), every: options.validate_every.max(1), largest }))
    }

    /// Takes the largest tiles that the plan of the step has room for.
    pub fn fit_tiles(&mut self, config: &TrainConfig, plan: &Plan) -> Result<()> {
        let room = plan.free_between_steps();
        let side = largest_tile(&config.network, self.sizing.as_ref(), room.end - room.start)?;
        self.tiles = Tiles::new(config.network.clone(), side)?;
        Ok(())
    }

    /// Mean scores of a network; its pictures are kept for the report.
    pub fn measure(
        &mut self,
        backend: &mut dyn Backend,
        params: &[f32],
        config: &TrainConfig,
        options: &RunOptions,
        iteration: u64,
    ) -> Result<Scores> {
        let crop = options.crop_border.unwrap_or(config.network.scale as u32);
        let mut guest = Guest { tiles: &mut self.tiles, host: backend, sizing: self.sizing.as_ref(), params };
        let mut scores = Vec::with_capacity(self.held_out.len());
        for index in 0..self.held_out.len() {
            let (name, pair) = self.held_out.pair(index)?;
            let m = evaluate_pair(&mut guest, &name, &pair, crop).with_context(|| self.held_out.place(index))?;
            previews::keep(&options.out, iteration, index, &m.result, &m.ours, &m.bicubic, &pair)?;
            scores.push(m.result.network);
        }
        Ok(mean(scores.into_iter()))
    }
}
