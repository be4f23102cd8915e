//! Dynamic loss scaling for fp16 (Micikevicius et al., "Mixed precision training", 2018): the loss
//! is multiplied by a factor that keeps small gradients from becoming 0; the factor halves if
//! gradients overflow and doubles after a long stretch without overflow. Depends on nothing.

use serde::{Deserialize, Serialize};

/// Steps without overflow after which the factor doubles.
const GROWTH_INTERVAL: u32 = 2000;

/// The factor, and the steps since it last changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// What the gradient of the loss is multiplied by.
    pub factor: f32,
    /// Steps without overflow since the factor last changed.
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
    /// Adapts the factor after a step; `skipped`: its gradients were not finite.
    pub fn after(&mut self, skipped: bool) {
        if skipped {
            *self = LossScale {
                factor: (self.factor / 2.0).max(1.0),
                good: 0,
            };
        } else {
            self.good = self.good.saturating_add(1);
            if self.good >= GROWTH_INTERVAL {
                *self = LossScale {
                    factor: (self.factor * 2.0).min(f32::MAX / 2.0),
                    good: 0,
                };
            }
        }
    }

    /// True if an overflow may be caused by the factor, because the factor is above its minimum.
    pub fn can_fall(&self) -> bool {
        self.factor > 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_at_once_and_doubles_after_two_thousand_steps_without_overflow() {
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
