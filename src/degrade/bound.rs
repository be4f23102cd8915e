//! What a recipe may come to at most: sides, reach and number of steps. Memory and margins follow
//! from it.

use super::step::{Kind, Step};
use anyhow::{Result, bail};

/// Steps that a recipe may come to after its repetitions.
const MOST_STEPS: usize = 100;

/// The most that the steps of a recipe may come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// HR side over LQ side.
    pub scale: f64,
    /// Largest side at this point, over that of the HR.
    pub side: f64,
    /// Largest of all sides so far.
    pub peak: f64,
    /// Pixels that filters reach to each side, together, in HR pixels.
    pub reach: f64,
    /// Largest reach of one step in its own pixels.
    pub radius: f64,
    /// HR pixels that a pixel covers: 1 before the first resize, `scale` after it.
    pub pixel: f64,
    /// Steps.
    pub steps: usize,
    /// Whether WebP occurs.
    pub webp: bool,
}

impl Bound {
    /// That of a list of steps.
    pub fn of(steps: &[Step], scale: usize) -> Bound {
        let mut bound = Bound {
            scale: scale as f64,
            side: 1.0,
            peak: 1.0,
            reach: 0.0,
            radius: 2.0,
            pixel: 1.0,
            steps: 0,
            webp: false,
        };
        bound.all(steps);
        bound
    }

    /// Whether a recipe may have so many steps.
    ///
    /// # Errors
    /// It comes to more than [`MOST_STEPS`].
    pub fn check(&self, origin: &str) -> Result<()> {
        if self.steps > MOST_STEPS {
            bail!(
                "{origin}: the recipe may come to {} steps with its repetitions; at most {MOST_STEPS}",
                self.steps
            );
        }
        if self.peak > 4.0 {
            bail!(
                "{origin}: the recipe may enlarge an image to {:.1} times its HR size; at most 4, so that its memory is \
                 bounded: give resize a smaller range",
                self.peak
            );
        }
        Ok(())
    }

    fn resized(&mut self, side: f64) {
        self.side = side;
        self.peak = self.peak.max(side);
        self.pixel = self.scale;
    }

    fn all(&mut self, steps: &[Step]) {
        for step in steps {
            if self.steps <= MOST_STEPS {
                let before = self.side;
                step.bound(self);
                // a step that may be left out cannot be relied on to make the image smaller
                if step.probability < 1.0 {
                    self.side = self.side.max(before);
                }
            }
        }
    }

    /// What steps may come to if any of them may be the first.
    fn in_any_order(&mut self, steps: &[Step]) {
        let start = *self;
        for step in steps {
            // sizes that do not depend on the size before, as those relative to the LQ
            let mut alone = Bound { side: 0.0, ..start };
            step.bound(&mut alone);
            self.side = self.side.max(alone.side);
            self.pixel = self.pixel.max(alone.pixel);
        }
        for step in steps {
            let before = self.side;
            step.bound(self);
            self.side = self.side.max(before);
        }
    }

    /// The larger of what each list may come to.
    fn any<'a>(&mut self, lists: impl Iterator<Item = &'a [Step]>) {
        let start = *self;
        for list in lists {
            let mut one = start;
            one.all(list);
            self.side = self.side.max(one.side);
            self.peak = self.peak.max(one.peak);
            self.reach = self.reach.max(one.reach);
            self.radius = self.radius.max(one.radius);
            self.pixel = self.pixel.max(one.pixel);
            self.steps = self.steps.max(one.steps);
            self.webp |= one.webp;
        }
    }
}

impl Step {
    /// Adds what the step may come to.
    fn bound(&self, bound: &mut Bound) {
        let reach = match &self.kind {
            Kind::Blur(step) => step.reach(),
            Kind::Resize(step) => {
                bound.resized(step.largest(bound.side, bound.scale));
                2.0
            }
            Kind::ToLq(_) => {
                bound.resized(1.0 / bound.scale);
                2.0
            }
            Kind::Jpeg(_) => 16.0,
            Kind::Webp(_) => {
                bound.webp = true;
                16.0
            }
            Kind::Sharpen(step) => step.reach(),
            Kind::Halo(step) => step.reach(),
            Kind::ChromaShift(step) => step.reach(),
            Kind::Quantise(_)
            | Kind::GaussianNoise(_)
            | Kind::PoissonNoise(_)
            | Kind::Colour(_) => 0.0,
            Kind::OneOf(choices) => return bound.any(choices.iter().map(|c| &c.steps[..])),
            Kind::Shuffle(steps) => return bound.in_any_order(steps),
            Kind::Repeat(times, steps) => {
                let before = bound.side;
                (0..times.high as usize).for_each(|_| bound.all(steps));
                if times.low == 0.0 {
                    bound.side = bound.side.max(before);
                }
                return;
            }
        };
        bound.steps += 1;
        bound.radius = bound.radius.max(reach);
        bound.reach += reach * bound.pixel;
    }
}
