//! The parameter table of a network: names, shapes, start values and where each parameter lies in
//! the parameter buffer.

use crate::plan::ParamRange;
use crate::support::rng::Rng;

/// How a parameter starts.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// Uniform in +-1/sqrt(fan_in), PyTorch's default for convolutions and their biases.
    FanIn(usize),
    /// One value everywhere.
    Constant(f32),
    /// Given values, repeated to fill the shape: the fixed taps of the base.
    Taps(&'static [f32]),
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// PyTorch's `state_dict` name.
    pub name: String,
    /// PyTorch's shape (convolutions: out, in / groups, height, width); `[]` for a scalar.
    pub shape: Vec<usize>,
    /// Start value.
    pub init: Init,
    /// Whether the optimizer changes it.
    pub trainable: bool,
    /// Where it lies.
    pub range: ParamRange,
}

/// All parameters of a network; trainable ones come first, so that `[0, trainable)` is the
/// optimizer's range.
#[derive(Clone, Debug, Default)]
pub struct ParamTable {
    /// In the order of the buffer.
    pub params: Vec<Param>,
}

impl ParamTable {
    /// Appends a parameter and says where it lies. Fixed ones must follow all trainable ones.
    pub(super) fn add(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        init: Init,
        trainable: bool,
    ) -> ParamRange {
        debug_assert!(!trainable || self.params.iter().all(|p| p.trainable));
        let range = ParamRange {
            offset: self.len(),
            len: shape.iter().product(),
        };
        self.params.push(Param {
            name: name.into(),
            shape: shape.to_vec(),
            init,
            trainable,
            range,
        });
        range
    }

    /// f32 elements in all.
    pub fn len(&self) -> usize {
        self.params
            .last()
            .map_or(0, |p| p.range.offset + p.range.len)
    }

    /// Whether the table has no parameter.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// f32 elements the optimizer changes; they come first.
    pub fn trainable(&self) -> usize {
        self.params
            .iter()
            .filter(|p| p.trainable)
            .map(|p| p.range.len)
            .sum()
    }

    /// A parameter by name.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|p| p.name == name)
    }

    /// Start values for a seed: each parameter draws from its own key, so adding one changes no
    /// other.
    pub fn start_values(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        for (i, param) in self.params.iter().enumerate() {
            let out = &mut values[param.range.offset..][..param.range.len];
            match param.init {
                Init::FanIn(fan_in) => {
                    let bound = 1.0 / (fan_in as f64).sqrt();
                    let mut rng = Rng::new(&[seed, 0x1417, i as u64]);
                    out.iter_mut()
                        .for_each(|v| *v = rng.range(-bound, bound) as f32);
                }
                Init::Constant(value) => out.fill(value),
                Init::Taps(taps) => out
                    .iter_mut()
                    .zip(taps.iter().cycle())
                    .for_each(|(v, &t)| *v = t),
            }
        }
        values
    }
}
