//! Learning rate and EMA weight as pure functions of the iteration. Depends on nothing. Promises
//! that a resumed run cannot differ from an unbroken one.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Decay {
    /// No decay.
    Constant,
    /// Multiplies the rate by `gamma` at each milestone, from the iteration after it on (as
    /// PyTorch's MultiStepLR, stepped after the update).
    MultiStep {
        /// Iterations after which the rate falls.
        milestones: Vec<u64>,
        /// Factor at each milestone.
        gamma: f64,
    },
    /// From the base rate to `eta_min` along half a cosine (Loshchilov and Hutter, "SGDR", 2017),
    /// in closed form.
    Cosine {
        /// Iterations of the half period.
        total: u64,
        /// Rate at the end of the half period.
        eta_min: f64,
    },
}

/// The learning rate over the iterations: warm-up, then decay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Rate after the warm-up.
    pub base_lr: f64,
    /// Iterations of linear warm-up; 0 for none.
    pub warmup: u64,
    /// What follows the warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// Learning rate of iteration `i` = 1, 2, ... (0 is treated as 1).
    pub fn lr(&self, i: u64) -> f64 {
        let i = i.max(1);
        if i <= self.warmup {
            return self.base_lr * i as f64 / self.warmup as f64;
        }
        match &self.decay {
            Decay::Constant => self.base_lr,
            Decay::MultiStep { milestones, gamma } => {
                self.base_lr * gamma.powi(milestones.iter().filter(|&&m| i > m).count() as i32)
            }
            Decay::Cosine { total, eta_min } => {
                // The scheduler has stepped i - 1 times when iteration i runs.
                let share = (i - 1).min(*total) as f64 / (*total).max(1) as f64;
                eta_min
                    + (self.base_lr - eta_min) * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
            }
        }
    }
}

/// Iterations of warm-up for a run of `total` iterations, unless the user gives a number: a fortieth,
/// as in the published recipe (1,000 of 40,000), and never more than that recipe has.
pub fn usual_warmup(total: u64) -> u64 {
    (total / 40).min(1000)
}

/// Milestones for a run of `total` iterations, unless the user gives them: after three quarters and
/// seven eighths of the run, as in the published recipe (30,000 and 35,000 of 40,000).
pub fn usual_milestones(total: u64) -> [u64; 2] {
    let after = |eighths: u64| (u128::from(total) * u128::from(eighths) / 8) as u64;
    [after(6), after(7)]
}

/// Weight of the old average in the EMA at update `k` = 1, 2, ...: 0 for the first update, which
/// copies the parameters, then min(decay, 1 - k^-power).
pub fn ema_decay(k: u64, decay: f64, power: f64) -> f64 {
    if k <= 1 {
        0.0
    } else {
        decay.min(1.0 - (k as f64).powf(-power))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_then_halves_after_each_milestone() {
        let s = Schedule {
            base_lr: 2e-4,
            warmup: 10,
            decay: Decay::MultiStep {
                milestones: vec![20, 30],
                gamma: 0.5,
            },
        };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-18, "{a} {b}");
        close(s.lr(1), 2e-5);
        close(s.lr(10), 2e-4);
        close(s.lr(20), 2e-4);
        close(s.lr(21), 1e-4);
        close(s.lr(30), 1e-4);
        close(s.lr(31), 5e-5);
    }

    #[test]
    fn cosine_starts_at_the_base_and_ends_at_its_floor() {
        let s = Schedule {
            base_lr: 1.0,
            warmup: 0,
            decay: Decay::Cosine {
                total: 100,
                eta_min: 0.1,
            },
        };
        assert_eq!(s.lr(1), 1.0);
        assert!((s.lr(51) - 0.55).abs() < 1e-12);
        assert!((s.lr(101) - 0.1).abs() < 1e-12 && (s.lr(1000) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn iteration_0_is_treated_as_1() {
        for decay in [
            Decay::Constant,
            Decay::Cosine {
                total: 0,
                eta_min: 0.0,
            },
        ] {
            for warmup in [0, 5] {
                let s = Schedule {
                    base_lr: 1e-3,
                    warmup,
                    decay: decay.clone(),
                };
                assert!(s.lr(0) == s.lr(1) && s.lr(0) > 0.0, "{s:?}");
            }
        }
    }

    #[test]
    fn the_published_recipe_is_scaled_with_the_run() {
        let of = |total| (usual_warmup(total), usual_milestones(total));
        assert_eq!(of(40_000), (1000, [30_000, 35_000]));
        assert_eq!(of(300), (7, [225, 262]));
        assert_eq!(of(200_000), (1000, [150_000, 175_000]));
        assert_eq!(of(u64::MAX).0, 1000);
    }

    #[test]
    fn ema_copies_first_and_approaches_its_decay() {
        assert_eq!(ema_decay(1, 0.999, 0.75), 0.0);
        assert!((ema_decay(2, 0.999, 0.75) - (1.0 - 2f64.powf(-0.75))).abs() < 1e-15);
        assert_eq!(ema_decay(1_000_000, 0.999, 0.75), 0.999);
    }
}
