//! The keys of steps, each listed once: [`Keys`] visits the keys of a step, and its implementations
//! read them from YAML, write the canonical text and list them for `paragon degrade --steps`.
//! Depends on `config::yaml`. Every error names the file, the line, the key, what was expected and
//! what was found.

mod reader;
mod writer;

pub(crate) use reader::{Reader, found, nearest};
pub(crate) use writer::{Lister, Writer};

use super::draws::Stream;
use super::step::{Choice, Step};
use serde_json::{Value as Json, json};

/// How a number is drawn from its range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Distribution {
    /// Every value equally.
    Uniform,
    /// Every ratio equally: uniform in the logarithm.
    Log,
    /// Normal; values beyond the range become its ends.
    Normal { mean: f64, deviation: f64 },
}

/// The distributions by name.
const DISTRIBUTIONS: [&str; 3] = ["uniform", "log", "normal"];

/// A number that is drawn anew for each patch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Range {
    /// The least value.
    pub low: f64,
    /// The greatest value.
    pub high: f64,
    /// How it is drawn between them.
    pub distribution: Distribution,
}

/// What the values of a range must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// Any number.
    Real,
    /// Whole numbers.
    Whole,
    /// Odd whole numbers.
    Odd,
}

impl Range {
    /// Uniform from `low` to `high`.
    pub const fn new(low: f64, high: f64) -> Range {
        Range {
            low,
            high,
            distribution: Distribution::Uniform,
        }
    }

    /// Draws a number.
    pub fn draw(&self, stream: &mut Stream) -> f64 {
        let (low, high) = (self.low, self.high);
        match self.distribution {
            Distribution::Uniform => stream.between(low, high),
            Distribution::Log => {
                libm::exp(stream.between(libm::log(low), libm::log(high))).clamp(low, high)
            }
            Distribution::Normal { mean, deviation } => {
                (mean + deviation * stream.normal()).clamp(low, high)
            }
        }
    }

    /// Draws a whole number; both ends belong to the range.
    pub fn draw_whole(&self, stream: &mut Stream) -> u32 {
        let wide = Range {
            high: self.high + 1.0,
            ..*self
        };
        let drawn = match self.distribution {
            Distribution::Normal { .. } => libm::round(self.draw(stream)),
            _ => libm::floor(wide.draw(stream)),
        };
        drawn.clamp(self.low, self.high) as u32
    }

    /// Draws an odd number; both ends, which are odd, belong to the range.
    pub fn draw_odd(&self, stream: &mut Stream) -> u32 {
        let half = |x: f64| (x - 1.0) / 2.0;
        let distribution = match self.distribution {
            Distribution::Normal { mean, deviation } => Distribution::Normal {
                mean: half(mean),
                deviation: deviation / 2.0,
            },
            // the logarithm of half the size may be that of 0
            _ => Distribution::Uniform,
        };
        let halves = Range {
            low: half(self.low),
            high: half(self.high),
            distribution,
        };
        2 * halves.draw_whole(stream) + 1
    }

    fn json(&self) -> Json {
        let pair = json!([self.low, self.high]);
        match self.distribution {
            Distribution::Uniform if self.low == self.high => json!(self.low),
            Distribution::Uniform => pair,
            Distribution::Log => json!({"range": pair, "distribution": "log"}),
            Distribution::Normal { mean, deviation } => {
                json!({"range": pair, "distribution": "normal", "mean": mean, "deviation": deviation})
            }
        }
    }
}

/// A word that is drawn by weights. All words of the choice are known; those that a recipe does not
/// name have the weight 0.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weights<T: Copy + PartialEq + 'static> {
    words: &'static [(&'static str, T)],
    weights: Vec<f64>,
}

impl<T: Copy + PartialEq + 'static> Weights<T> {
    /// The words with their values, and the weights of some of them.
    pub fn new(words: &'static [(&'static str, T)], weights: &[(T, f64)]) -> Weights<T> {
        let weight = |word: &(&str, T)| {
            let of = weights.iter().find(|(value, _)| *value == word.1);
            of.map_or(0.0, |(_, weight)| *weight)
        };
        Weights {
            words,
            weights: words.iter().map(weight).collect(),
        }
    }

    /// Draws a value.
    pub fn draw(&self, stream: &mut Stream) -> T {
        self.words[pick(&self.weights, stream)].1
    }

    /// The values that can be drawn.
    pub fn possible(&self) -> impl Iterator<Item = T> {
        let words = self.words.iter().zip(&self.weights);
        words.filter(|(_, w)| **w > 0.0).map(|(word, _)| word.1)
    }
}

/// Draws an index by weights, at least one of which is above 0.
pub(crate) fn pick(weights: &[f64], stream: &mut Stream) -> usize {
    let mut left = stream.unit() * weights.iter().sum::<f64>();
    for (i, weight) in weights.iter().enumerate() {
        if left < *weight {
            return i;
        }
        left -= weight;
    }
    // rounding of the sum: the last that can be drawn
    weights.iter().rposition(|w| *w > 0.0).unwrap_or(0)
}

/// Words and weights without the type of their values, as [`Keys`] takes them.
pub(crate) struct WordWeights<'a> {
    words: Vec<&'static str>,
    weights: &'a mut Vec<f64>,
}

impl<'a, T: Copy + PartialEq> From<&'a mut Weights<T>> for WordWeights<'a> {
    fn from(weights: &'a mut Weights<T>) -> WordWeights<'a> {
        WordWeights {
            words: weights.words.iter().map(|(word, _)| *word).collect(),
            weights: &mut weights.weights,
        }
    }
}

/// A visitor of the keys of a step.
pub(crate) trait Keys {
    /// A number or a range within `bounds`.
    fn range(
        &mut self,
        key: &'static str,
        range: &mut Range,
        numbers: Numbers,
        bounds: (f64, f64),
        about: &'static str,
    );
    /// One number within `bounds`.
    fn number(
        &mut self,
        key: &'static str,
        number: &mut f64,
        bounds: (f64, f64),
        about: &'static str,
    );
    /// `true` or `false`.
    fn flag(&mut self, key: &'static str, flag: &mut bool, about: &'static str);
    /// One word, a list of words, or words with weights.
    fn words(&mut self, key: &'static str, words: WordWeights, about: &'static str);
    /// A list of steps.
    fn steps(&mut self, key: &'static str, steps: &mut Vec<Step>, about: &'static str);
    /// The choices of `one_of`.
    fn choices(&mut self, key: &'static str, choices: &mut Vec<Choice>, about: &'static str);
}
