//! Dynamic loss scaling for fp16 (Micikevicius et al., "Mixed precision training", 2018): gradients
//! carry a factor that keeps small ones from vanishing; it halves when they overflow and doubles
//! after a long stretch without. Depends on nothing.

use serde::{Deserialize, Serialize};

/// Good steps after which the factor doubles.
const GROWTH_INTERVAL: u32 = 2000;

/// The factor and how long it has been good.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// What the gradient of the loss is multiplied by.
    pub factor: f32,
    good: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale {
            factor: 65536.0,
            good: 0,
        }
    }
}

impl LossScale {
    /// Takes a step into account.
    pub fn after(&mut self, skipped: bool) {
        if skipped {
            *self = LossScale {
                factor: (self.factor / 2.0).max(1.0),
                good: 0,
            };
        } else {
            self.good += 1;
            if self.good == GROWTH_INTERVAL {
                *self = LossScale {
                    factor: (self.factor * 2.0).min(f32::MAX / 2.0),
                    good: 0,
                };
            }
        }
    }

    /// Whether an overflow may still be the factor's fault.
    pub fn can_fall(&self) -> bool {
        self.factor > 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_at_once_and_doubles_after_two_thousand_good_steps() {
        let mut scale = LossScale::default();
        scale.after(true);
        assert_eq!(scale.factor, 32768.0);
        for _ in 0..1999 {
            scale.after(false);
        }
        assert_eq!(scale.factor, 32768.0);
        scale.after(false);
        assert_eq!(scale.factor, 65536.0);
        for _ in 0..1999 {
            scale.after(false);
        }
        scale.after(true);
        scale.after(false);
        assert_eq!(scale.factor, 32768.0, "an overflow starts the count again");
        for _ in 0..40 {
            scale.after(true);
        }
        assert!(scale.factor == 1.0 && !scale.can_fall());
    }
}
