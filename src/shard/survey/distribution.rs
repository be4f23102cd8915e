//! The distribution of one measure in fine classes, so that its memory does not grow with the number
//! of values, and the examples that a sheet shows.

use super::measure::Measure;
use serde::ser::{Serialize, SerializeStruct, Serializer};

/// Most examples of one kind that are kept.
pub const EXAMPLES: usize = 12;
/// The quantiles of the report.
pub const QUANTILES: [f64; 7] = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99];
/// Most bars of a histogram.
const BARS: usize = 12;

/// An image or patch with its value.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Example {
    /// What was measured.
    pub value: f64,
    /// Number of the image in the plan.
    pub image: usize,
    /// Left and upper edge of a patch in the HR, pixels; `None` for a whole image.
    pub at: Option<(u32, u32)>,
    /// Number of the earlier image that it resembles most.
    pub resembles: Option<usize>,
}

/// All values of one measure.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// What was measured.
    pub measure: Measure,
    /// From where on values are left out.
    pub threshold: Option<f64>,
    /// Number of values.
    pub count: u64,
    /// Images or patches without a value: too small, too flat, clipped, or the first of all.
    pub without: u64,
    /// Values left out.
    pub left_out: u64,
    /// Smallest and largest value.
    pub span: Option<(f64, f64)>,
    /// The values that are left out first, from the most extreme one on.
    pub extremes: Vec<Example>,
    /// The values that are left out last: those nearest to the threshold.
    pub borderline: Vec<Example>,
    classes: Vec<u64>,
}

impl Distribution {
    pub(super) fn new(measure: Measure, threshold: Option<f64>) -> Distribution {
        let classes = (measure.last_class() / measure.class()).round() as usize + 1;
        Distribution {
            measure,
            threshold,
            count: 0,
            without: 0,
            left_out: 0,
            span: None,
            extremes: Vec::new(),
            borderline: Vec::new(),
            classes: vec![0; classes],
        }
    }

    /// Adds a value. Returns whether it is left out.
    pub(super) fn add(&mut self, value: Option<f64>, example: Example) -> bool {
        let Some(value) = value else {
            self.without += 1;
            return false;
        };
        self.count += 1;
        let (low, high) = self.span.unwrap_or((value, value));
        self.span = Some((low.min(value), high.max(value)));
        let class = (value / self.measure.class()) as usize;
        let last = self.classes.len() - 1;
        self.classes[class.min(last)] += 1;
        let example = Example { value, ..example };
        let first = if self.measure.drops_large() {
            -1.0
        } else {
            1.0
        };
        let left_out = self.threshold.map(|t| self.measure.drops(value, t));
        if left_out != Some(false) {
            keep(&mut self.extremes, example, |e| first * e.value);
        }
        if left_out == Some(true) {
            self.left_out += 1;
            keep(&mut self.borderline, example, |e| -first * e.value);
        }
        left_out == Some(true)
    }

    /// The value that a share of all values does not exceed, within the width of a class. `None` if
    /// there is no value.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let (low, high) = self.span?;
        let rank = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count);
        let mut below = 0;
        for (class, &count) in self.classes.iter().enumerate() {
            if below + count >= rank {
                let within = match self.measure {
                    Measure::Similarity => 0.0,
                    _ => (rank - below) as f64 / count as f64,
                };
                return Some(((class as f64 + within) * self.measure.class()).clamp(low, high));
            }
            below += count;
        }
        Some(high)
    }

    /// The bars of a histogram from 0 to the 99 % quantile, or a little more: the lower end of each,
    /// and the number of values from there to the next one. The last bar has all that are larger.
    pub fn bars(&self) -> Vec<(f64, u64)> {
        let (Some((low, high)), Some(most)) = (self.span, self.quantile(0.99)) else {
            return Vec::new();
        };
        // entropy is high, and a histogram from 0 would be empty on the left
        let least = match self.measure {
            Measure::Entropy => self.quantile(0.01).unwrap_or(low),
            _ => 0.0,
        };
        let class = self.measure.class();
        let width = nice((most.min(high) - least).max(class) / (BARS - 1) as f64).max(class);
        let start = (least / width).floor() * width;
        let mut bars: Vec<(f64, u64)> = (0..BARS).map(|i| (start + i as f64 * width, 0)).collect();
        for (number, &count) in self.classes.iter().enumerate().filter(|(_, c)| **c > 0) {
            // the middle of a class decides: its lower end may round to either side
            let middle = (number as f64 + 0.5) * class;
            let bar = ((middle - start) / width).max(0.0) as usize;
            bars[bar.min(BARS - 1)].1 += count;
        }
        while bars.len() > 1 && bars.last().is_some_and(|bar| bar.1 == 0) {
            bars.pop();
        }
        bars
    }
}

/// Puts an example into a list in ascending order of `key`, which keeps the first ones.
fn keep(list: &mut Vec<Example>, example: Example, key: impl Fn(&Example) -> f64) {
    let at = list.partition_point(|e| key(e) <= key(&example));
    if at < EXAMPLES {
        list.insert(at, example);
        list.truncate(EXAMPLES);
    }
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
fn nice(width: f64) -> f64 {
    let power = 10f64.powf(width.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power);
    let fits = steps.into_iter().find(|step| *step >= width * 0.999_999);
    fits.unwrap_or(10.0 * power)
}

impl Serialize for Distribution {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let quantiles = QUANTILES
            .iter()
            .filter_map(|&q| Some((q, self.quantile(q)?)));
        let mut out = to.serialize_struct("Distribution", 12)?;
        out.serialize_field("measure", &self.measure)?;
        out.serialize_field("unit", self.measure.unit())?;
        out.serialize_field("of", self.measure.of())?;
        out.serialize_field("count", &self.count)?;
        out.serialize_field("without", &self.without)?;
        out.serialize_field("least", &self.span.map(|s| s.0))?;
        out.serialize_field("most", &self.span.map(|s| s.1))?;
        out.serialize_field("quantiles", &quantiles.collect::<Vec<_>>())?;
        out.serialize_field("histogram", &self.bars())?;
        out.serialize_field("option", self.measure.option())?;
        out.serialize_field("threshold", &self.threshold)?;
        out.serialize_field("left_out", &self.left_out)?;
        out.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::rng::mix;

    fn example(image: usize) -> Example {
        Example {
            value: 0.0,
            image,
            at: None,
            resembles: None,
        }
    }

    #[test]
    fn quantiles_bars_and_examples_are_those_of_a_sorted_list() {
        for measure in Measure::ALL {
            let threshold = measure.last_class() / 4.0;
            let mut found = Distribution::new(measure, Some(threshold));
            let mut all = Vec::new();
            for i in 0..3000 {
                let share = (mix(i as u64) % 10_000) as f64 / 10_000.0;
                let mut value = share * share * measure.last_class();
                if measure == Measure::Similarity {
                    value = value.floor();
                }
                let left_out = found.add(Some(value), example(i));
                assert_eq!(left_out, measure.drops(value, threshold));
                all.push(value);
            }
            all.sort_by(f64::total_cmp);
            assert!(!found.add(None, example(0)));
            assert_eq!((found.count, found.without), (3000, 1));
            for q in QUANTILES {
                let wanted = all[(3000.0 * q).ceil() as usize - 1];
                let quantile = found.quantile(q).unwrap();
                assert!(
                    (quantile - wanted).abs() <= measure.class(),
                    "{measure:?} {q}: {quantile} and {wanted}"
                );
            }
            let left_out = all.iter().filter(|v| measure.drops(**v, threshold));
            assert_eq!(found.left_out, left_out.count() as u64);
            let bars = found.bars();
            assert!(bars.len() <= BARS && bars.windows(2).all(|w| w[0].0 < w[1].0));
            assert_eq!(bars.iter().map(|b| b.1).sum::<u64>(), 3000);
            let values = |list: &[Example]| list.iter().map(|e| e.value).collect::<Vec<_>>();
            if measure.drops_large() {
                all.reverse();
            }
            assert_eq!(values(&found.extremes), all[..EXAMPLES]);
            let mut dropped: Vec<f64> = all.clone();
            dropped.retain(|v| measure.drops(*v, threshold));
            dropped.reverse();
            assert_eq!(values(&found.borderline), dropped[..EXAMPLES]);
        }
    }

    #[test]
    fn no_value_has_no_quantile_and_no_bar() {
        let found = Distribution::new(Measure::Blur, None);
        assert_eq!((found.quantile(0.5), found.bars()), (None, Vec::new()));
        let mut one = Distribution::new(Measure::Blockiness, None);
        assert!(!one.add(Some(1e9), example(0)));
        assert_eq!(one.quantile(0.5), Some(1e9));
        assert_eq!(one.bars().iter().map(|b| b.1).sum::<u64>(), 1);
    }
}
