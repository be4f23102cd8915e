//! What a training run is: one plain structure, saved with every state file and compared when a run
//! is resumed.

use super::{Decay, Schedule};
use crate::model::{Network, Recompute, StepSpec};
use crate::plan::{LossKind, OptimizerKind};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// One loss and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossTerm {
    /// Which loss.
    pub kind: LossKind,
    /// Its weight.
    pub weight: f32,
}

/// Everything that decides the numbers of a run. Threads, intervals and folders are not part of it:
/// they may change freely.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// The network and its start values.
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
    /// What makes a step of a gradient; states from before there was a choice hold AdamW's.
    #[serde(default)]
    pub optimizer: OptimizerKind,
    /// Its beta1, beta2.
    pub betas: (f64, f64),
    /// Its epsilon.
    pub epsilon: f64,
    /// Weight decay; how it acts the optimizer says.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 for no clipping.
    pub grad_clip: f64,
    /// Learning rate over the iterations.
    pub schedule: Schedule,
    /// Iterations in all.
    pub total_iter: u64,
    /// EMA: largest weight of the old average, and the power of its warm-up.
    pub ema_decay: f64,
    /// See `ema_decay`.
    pub ema_power: f64,
    /// Seed of start values, order, crops and flips.
    pub seed: u64,
    /// Bytes of shards that are shuffled at a time; `None` shuffles everything.
    #[serde(default)]
    pub window: Option<u64>,
}

impl TrainConfig {
    /// Checks ranges, so that nothing odd reaches the first step.
    ///
    /// # Errors
    /// Names the value, what it may be, and its flag.
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
            self.lq_size >= 8,
            "LQ patches of {} pixels are smaller than the network looks; use at least 8 (--lq-size)",
            self.lq_size
        );
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
        let net = &self.network;
        ensure!(
            [net.upsampler_alpha, net.detail_gain, net.layer_scale]
                .iter()
                .all(|v| v.is_finite()),
            "the network's start values must be finite (--alpha, --detail-gain, --layer-scale)"
        );
        ensure!(
            self.ema_power.is_finite() && self.ema_power > 0.0,
            "the power of the EMA's warm-up must be above 0 (--ema-power)"
        );
        ensure!(
            self.total_iter >= 1,
            "at least one iteration is needed (--iterations)"
        );
        ensure!(
            (0.0..1.0).contains(&self.betas.0) && (0.0..1.0).contains(&self.betas.1),
            "betas must lie in [0, 1)"
        );
        ensure!(
            (0.0..1.0).contains(&self.ema_decay),
            "EMA decay must lie in [0, 1) (--ema-decay)"
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

    /// Patches in an iteration.
    pub fn effective_batch(&self) -> usize {
        self.batch_size * self.accum_iter
    }

    /// The plan this run needs, at a level of recomputation (which changes no bit).
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
        }
    }

    /// Differences between this (stored) configuration and a wanted one: `key: stored -> wanted`.
    pub fn differences(&self, wanted: &TrainConfig) -> Vec<(String, String)> {
        fn walk(
            path: &str,
            a: &serde_json::Value,
            b: &serde_json::Value,
            out: &mut Vec<(String, String)>,
        ) {
            match (a, b) {
                (serde_json::Value::Object(a), serde_json::Value::Object(b)) => {
                    let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
                    keys.sort();
                    keys.dedup();
                    for key in keys {
                        let inner = if path.is_empty() {
                            key.clone()
                        } else {
                            format!("{path}.{key}")
                        };
                        walk(
                            &inner,
                            a.get(key).unwrap_or(&serde_json::Value::Null),
                            b.get(key).unwrap_or(&serde_json::Value::Null),
                            out,
                        );
                    }
                }
                _ if a != b => out.push((path.to_string(), format!("{a} -> {b}"))),
                _ => {}
            }
        }
        let (Ok(a), Ok(b)) = (serde_json::to_value(self), serde_json::to_value(wanted)) else {
            return Vec::new();
        };
        let mut out = Vec::new();
        walk("", &a, &b, &mut out);
        out
    }
}

/// Keys that may not change when a run is resumed: they decide the shape of the state or the order
/// of the data.
const FIXED_ON_RESUME: [&str; 5] = [
    "network.arch",
    "network.scale",
    "network.upsampler_alpha",
    "seed",
    "window",
];
/// Keys of which only the product is fixed: the samples of an iteration.
const SPLIT: [&str; 2] = ["batch_size", "accum_iter"];

impl TrainConfig {
    /// Of [`TrainConfig::differences`], those with which a stored run cannot go on.
    pub fn obstacles(&self, wanted: &TrainConfig) -> Vec<(String, String)> {
        let same_samples = self.effective_batch() == wanted.effective_batch();
        let fixed =
            |key: &str| FIXED_ON_RESUME.contains(&key) || (SPLIT.contains(&key) && !same_samples);
        self.differences(wanted)
            .into_iter()
            .filter(|(key, _)| fixed(key))
            .collect()
    }
}
