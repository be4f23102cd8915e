//! The parameter table of a network: names, shapes, start values and each parameter's range in the
//! parameter buffer. Depends on random keys. Promises that start values depend on the seed and the
//! parameter's number only.

use crate::plan::ParamRange;
use crate::support::rng::Rng;

/// How a parameter starts.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// Uniform in +-1/sqrt(fan_in), PyTorch's default for convolutions and their biases.
    FanIn(usize),
    /// One value everywhere.
    Constant(f32),
    /// Normal with mean 0 and this deviation.
    Normal(f32),
    /// The given values, repeated until the shape is full: the fixed taps of the base.
    Taps(&'static [f32]),
    /// Zero; computed from other parameters when a file is written, and never read.
    Derived,
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
    /// Its range in the parameter buffer.
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
    /// Appends a parameter and returns its range. Fixed parameters must follow all trainable ones.
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

    /// Appends weight `[out, input, kernel, kernel]` and bias `[out]` of a convolution, with
    /// PyTorch's start values; `input` is the number of inputs that one output sees.
    pub(super) fn conv(&mut self, name: &str, out: usize, input: usize, kernel: usize) {
        let init = Init::FanIn(input * kernel * kernel);
        let shape = [out, input, kernel, kernel];
        self.add(format!("{name}.weight"), &shape, init.clone(), true);
        self.add(format!("{name}.bias"), &[out], init, true);
    }

    /// Appends weight `[out, input]` and bias `[out]` of a linear layer, with PyTorch's start values.
    pub(super) fn linear(&mut self, name: &str, out: usize, input: usize) {
        let init = Init::FanIn(input);
        self.add(format!("{name}.weight"), &[out, input], init.clone(), true);
        self.add(format!("{name}.bias"), &[out], init, true);
    }

    /// Number of f32 elements of all parameters.
    pub fn len(&self) -> usize {
        self.params
            .last()
            .map_or(0, |p| p.range.offset + p.range.len)
    }

    /// Whether the table has no parameter.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// Number of f32 elements that the optimizer changes; they come first.
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

    /// Start values for a seed, in table order. Each parameter has a random key of its own, so that
    /// adding a parameter at the end changes no other one's values.
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
                Init::Normal(deviation) => {
                    let mut rng = Rng::new(&[seed, 0x1417, i as u64]);
                    let deviation = f64::from(deviation);
                    out.iter_mut()
                        .for_each(|v| *v = (deviation * rng.normal()) as f32);
                }
                Init::Constant(value) => out.fill(value),
                Init::Derived => out.fill(0.0),
                Init::Taps(taps) => out
                    .iter_mut()
                    .zip(taps.iter().cycle())
                    .for_each(|(v, &t)| *v = t),
            }
        }
        values
    }
}
