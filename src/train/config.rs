//! The configuration of a training run: one plain structure, saved with every state and compared
//! when a run is resumed. Depends on the types of network, plan and schedule. Promises that equal
//! configurations give equal weights, given the same shards, start values, device and precision.

use super::{Decay, Schedule};
use crate::degrade::Recipe;
use crate::model::{Network, Recompute, StepSpec};
use crate::plan::{LossKind, OptimizerKind};
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::sync::Arc;

/// Splits of an iteration that are tried for a message.
const MOST_SPLITS: usize = 10_000;

/// One loss and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossTerm {
    /// Which loss.
    pub kind: LossKind,
    /// Its weight in the sum of the losses.
    pub weight: f32,
}

/// Everything that decides the weights that a run produces. Threads, intervals and folders are not
/// part of it and may change when a run is resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// The network and the settings of its start values.
    pub network: Network,
    /// Side of the LQ patch, pixels.
    pub lq_size: usize,
    /// Patches in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in an iteration.
    pub accum_iter: usize,
    /// Random horizontal flips.
    pub use_hflip: bool,
    /// Random vertical flips and quarter turns.
    pub use_rot: bool,
    /// Weighted losses.
    pub losses: Vec<LossTerm>,
    /// The optimizer; AdamW in states of versions that had no other.
    #[serde(default)]
    pub optimizer: OptimizerKind,
    /// Beta1 and beta2 of the optimizer.
    pub betas: (f64, f64),
    /// Epsilon of the optimizer.
    pub epsilon: f64,
    /// Weight decay; see [`OptimizerKind`] for how it is applied.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 for no clipping.
    pub grad_clip: f64,
    /// Learning rate over the iterations.
    pub schedule: Schedule,
    /// Iterations of the whole run.
    pub total_iter: u64,
    /// Largest weight of the old average in the EMA, see [`super::ema_decay`].
    pub ema_decay: f64,
    /// Power of the EMA's warm-up, see [`super::ema_decay`].
    pub ema_power: f64,
    /// Seed of start values, order, crops and flips.
    pub seed: u64,
    /// Bytes of shards that are shuffled at a time; `None` shuffles everything.
    #[serde(default)]
    pub window: Option<u64>,
    /// Text of the degradation recipe that makes the LQ while it is loaded; `None`: the LQ is in the
    /// shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degrade: Option<String>,
}

impl TrainConfig {
    /// Checks that every one of `ranks` ranks computes as many micro-batches of an iteration.
    ///
    /// # Errors
    /// The micro-batches cannot be shared; the message names numbers that fit, and which a stored run
    /// accepts: it keeps the patches of an iteration.
    pub fn check_ranks(&self, ranks: usize) -> Result<()> {
        let (micro_batches, patches) = (self.accum_iter, self.effective_batch());
        if micro_batches.is_multiple_of(ranks) {
            return Ok(());
        }
        let splits = (ranks..=patches).step_by(ranks).take(MOST_SPLITS);
        let nearest = splits
            .filter(|split| patches.is_multiple_of(*split))
            .min_by_key(|split| (split.abs_diff(micro_batches), Reverse(*split)));
        let split = match nearest {
            Some(split) => format!(
                "--accum-iter {split} --batch-size {}, which keeps the {patches} patches of an iteration",
                patches / split
            ),
            None => format!(
                "--accum-iter {} if the run is a new one (a stored run keeps the {patches} patches of an iteration)",
                micro_batches.next_multiple_of(ranks)
            ),
        };
        let fewer = (1..ranks).filter(|&fewer| micro_batches.is_multiple_of(fewer));
        let fewer = fewer.max().unwrap_or(1);
        bail!(
            "an iteration of {micro_batches} micro-batches (--accum-iter) cannot be shared by {ranks} ranks, which compute as many each: give \
             {split}, or start {fewer} rank{}",
            if fewer == 1 { "" } else { "s" }
        )
    }

    /// Checks that all values are in range, so that wrong ones are refused before the first step.
    ///
    /// # Errors
    /// A value is out of range; the message names it, its range, and its flag.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.batch_size >= 1,
            "a batch needs at least one patch (--batch-size)"
        );
        ensure!(
            self.accum_iter >= 1,
            "accumulation needs at least one micro-batch (--accum-iter)"
        );
        ensure!(
            self.batch_size.checked_mul(self.accum_iter).is_some(),
            "an iteration of {} x {} patches is too large (--batch-size, --accum-iter)",
            self.accum_iter,
            self.batch_size
        );
        ensure!(
            self.lq_size >= 8,
            "LQ patches of {} pixels are too small for the network; use at least 8 (--lq-size)",
            self.lq_size
        );
        self.check_recipe()?;
        ensure!(
            self.total_iter >= 1,
            "at least one iteration is needed (--iterations)"
        );
        self.degrade_recipe()?;
        Ok(self.network.check()?)
    }

    /// Checks losses, schedule, optimizer and EMA.
    fn check_recipe(&self) -> Result<()> {
        ensure!(
            !self.losses.is_empty(),
            "at least one loss is needed (--loss)"
        );
        ensure!(
            self.losses
                .iter()
                .all(|l| l.weight.is_finite() && l.weight >= 0.0),
            "loss weights must be finite and not negative (--loss)"
        );
        ensure!(
            self.schedule.base_lr.is_finite() && self.schedule.base_lr > 0.0,
            "the learning rate must be above 0 (--lr)"
        );
        match &self.schedule.decay {
            Decay::Constant => {}
            Decay::MultiStep { gamma, .. } => {
                ensure!(
                    gamma.is_finite() && *gamma > 0.0,
                    "the factor at milestones must be above 0 (--gamma)"
                );
            }
            Decay::Cosine { eta_min, .. } => {
                ensure!(
                    eta_min.is_finite() && *eta_min >= 0.0,
                    "the last learning rate must be 0 or more (--eta-min)"
                );
            }
        }
        ensure!(
            self.ema_power.is_finite() && self.ema_power > 0.0,
            "the power of the EMA's warm-up must be above 0 (--ema-power)"
        );
        ensure!(
            (0.0..1.0).contains(&self.betas.0) && (0.0..1.0).contains(&self.betas.1),
            "betas must be in [0, 1)"
        );
        ensure!(
            (0.0..1.0).contains(&self.ema_decay),
            "EMA decay must be in [0, 1) (--ema-decay)"
        );
        ensure!(
            self.grad_clip.is_finite() && self.grad_clip >= 0.0,
            "the gradient clip must be 0 or more (--grad-clip)"
        );
        ensure!(
            self.weight_decay.is_finite() && self.weight_decay >= 0.0,
            "weight decay must be 0 or more (--weight-decay)"
        );
        Ok(())
    }

    /// The degradation recipe that makes the LQ while it is loaded; `None`: the LQ is in the shards.
    ///
    /// # Errors
    /// The text of the recipe cannot be read.
    pub fn degrade_recipe(&self) -> Result<Option<Arc<Recipe>>> {
        let parse = |text: &String| Recipe::parse(text, "the degradation recipe of this run");
        Ok(self.degrade.as_ref().map(parse).transpose()?.map(Arc::new))
    }

    /// Patches in an iteration.
    pub fn effective_batch(&self) -> usize {
        self.batch_size.saturating_mul(self.accum_iter)
    }

    /// What the network is compared with in validations: at scale 1 the bicubic upscaling of the LQ
    /// is the LQ itself.
    pub fn baseline(&self) -> &'static str {
        if self.network.scale == 1 {
            "LQ"
        } else {
            "bicubic"
        }
    }

    /// The step of this run, at a level of recomputation (which changes no bit).
    pub fn step_spec(&self, recompute: Recompute) -> StepSpec {
        StepSpec {
            batch: self.batch_size,
            lq: (self.lq_size, self.lq_size),
            losses: self.losses.iter().map(|l| (l.kind, l.weight)).collect(),
            optimizer: self.optimizer,
            betas: self.betas,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            float_input: false,
            input_gradient: false,
            without_winograd: false,
            recompute,
            exchange: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::state::tests::config;

    /// The numbers that the message names are accepted, by a stored run as well.
    #[test]
    fn advice_on_sharing_an_iteration_can_be_followed() {
        let split = |batch_size, accum_iter| TrainConfig {
            batch_size,
            accum_iter,
            ..config()
        };
        for (batch_size, accum_iter, ranks, advice) in [
            (16, 3, 2, "--accum-iter 4 --batch-size 12"),
            (8, 1, 4, "--accum-iter 4 --batch-size 2"),
            (4, 6, 4, "--accum-iter 8 --batch-size 3"),
            (1, 8, 3, "--accum-iter 9 if the run is a new one"),
        ] {
            let run = split(batch_size, accum_iter);
            let error = run.check_ranks(ranks).unwrap_err().to_string();
            assert!(error.contains(advice), "{error}");
            let number = |flag: &str| -> Option<usize> {
                let mut words = error.split([' ', ',']);
                words.find(|word| *word == flag)?;
                words.next()?.parse().ok()
            };
            let advised = split(
                number("--batch-size").unwrap_or(batch_size),
                number("--accum-iter").unwrap(),
            );
            advised.check_ranks(ranks).unwrap();
            if number("--batch-size").is_some() {
                assert_eq!(run.changes(&advised).obstacles, [""; 0]);
            }
            let fewer = error.split("or start ").nth(1).unwrap();
            let fewer = fewer.split(' ').next().unwrap().parse().unwrap();
            run.check_ranks(fewer).unwrap();
        }
    }

    #[test]
    fn an_iteration_that_cannot_be_counted_is_refused() {
        config().check().unwrap();
        let huge = TrainConfig {
            batch_size: usize::MAX,
            accum_iter: 2,
            ..config()
        };
        let error = huge.check().unwrap_err().to_string();
        assert!(error.contains("--accum-iter"), "{error}");
        assert_eq!(huge.effective_batch(), usize::MAX);
    }
}
