//! The reference networks on the tape: each is a short function that a fast implementation is
//! compared with. Depends on `tape` and `plain`; promises PyTorch's parameter names and layouts,
//! and gradients of every trainable parameter and of the input.

pub mod compact;
pub mod paragonsr2;
pub mod span;
pub mod span_compose;

use super::plain::{Activation, Convolution};
use super::tape::{Tape, Var};
use super::tensor::Tensor;
use super::training::{LossFunction, Trainee};
use super::{Gradients, Parameters, base_taps, trainable};
use paragonsr2::Variant;
use std::collections::BTreeMap;

/// Which network, with the settings that the shapes of its parameters do not give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Architecture {
    /// `paragonsr2_realtime`
    Nano { alpha: f64 },
    /// `paragonsr2_stream`; `alpha` is `upsampler_alpha`, 0 by default.
    Stream { alpha: f64 },
    /// `paragonsr2_photo`; `alpha` is 0.4 by default, and `window`, the pixels along a side of an
    /// attention window, 16.
    Photo { alpha: f64, window: usize },
    /// `paragonsr2_pro`, with the settings of Photo.
    Pro { alpha: f64, window: usize },
    /// SRVGGNetCompact.
    Compact { activation: CompactActivation },
    /// SPAN. With `norm`, the means of the training images are subtracted from the input, which is
    /// then multiplied by 255.
    Span { norm: bool, form: SpanForm },
}

/// `act_type` of Compact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CompactActivation {
    /// One trainable slope for each channel, `body.{i}.weight` of shape `[F]`.
    Prelu,
    /// relu, or leakyrelu with the slope 0.1: no tensors.
    Fixed(Activation),
}

/// How the reference computes a `Conv3XC` of SPAN. Both forms have the same parameters and the
/// same gradients; they differ by rounding alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SpanForm {
    /// Four convolutions in the network, as SPAN's paper draws it.
    Expanded,
    /// One 3x3 convolution in the network. Its weight is composed from eight tensors before the
    /// forward pass, and the chain rule gives their gradients after the backward pass.
    Composed,
}

/// A reference network.
#[derive(Clone, Debug)]
pub struct PlainNetwork {
    pub architecture: Architecture,
    pub scale: usize,
    pub params: Parameters,
}

/// Sizes of a network with random parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizes {
    pub scale: usize,
    pub features: usize,
    /// Blocks for each group (ParagonSR2), or convolutions between the first and the last
    /// (Compact). SPAN always has 6 blocks.
    pub blocks: usize,
    /// ParagonSR2 only.
    pub groups: usize,
}

/// The result of [`PlainNetwork::gradients`]. `params` has every trainable parameter.
pub struct PlainGradients {
    pub output: Tensor,
    pub loss: f64,
    pub params: Parameters,
    pub input: Tensor,
}

impl PlainNetwork {
    /// A network with the shapes of its checkpoint and random values: weights and biases uniform in
    /// +-sqrt(3 / fan_in), so that a convolution keeps the variance of its input; LayerScale in
    /// 0.2..0.8, scales of RMSNorm in 0.5..1.5, tokens in -1..1, slopes of PReLU in 0.1..0.4 and the
    /// detail gain 0.3. PyTorch's start values are smaller, and give gradients too small to be
    /// checked.
    pub fn random(architecture: Architecture, sizes: Sizes, seed: u64) -> PlainNetwork {
        let shapes = match architecture {
            Architecture::Nano { .. } => paragonsr2::shapes(Variant::Nano, sizes),
            Architecture::Stream { .. } => paragonsr2::shapes(Variant::Stream, sizes),
            Architecture::Photo { .. } => paragonsr2::shapes(Variant::Photo, sizes),
            Architecture::Pro { .. } => paragonsr2::shapes(Variant::Pro, sizes),
            Architecture::Compact { activation } => compact::shapes(activation, sizes),
            Architecture::Span { .. } => span::shapes(sizes),
        };
        let mut params = Parameters::new();
        let mut bound = 0.0;
        for (i, (name, shape)) in shapes.into_iter().enumerate() {
            let [low, high] = if name == "detail_gain" {
                [0.3, 0.3]
            } else if name.ends_with(".gamma") {
                [0.2, 0.8]
            } else if name.ends_with(".scale") {
                [0.5, 1.5]
            } else if name.ends_with(".token_dict") {
                [-1.0, 1.0]
            } else if name.ends_with(".bias") {
                // that of the weight before it in the list
                [-bound, bound]
            } else if let [_, per_group, kh, kw] = shape[..] {
                bound = (3.0 / (per_group * kh * kw) as f64).sqrt();
                [-bound, bound]
            } else if let [_, inputs] = shape[..] {
                bound = (3.0 / inputs as f64).sqrt();
                [-bound, bound]
            } else {
                [0.1, 0.4] // the slopes of PReLU
            };
            let values = Tensor::random(&shape, low, high, seed.wrapping_mul(1000) + i as u64);
            params.insert(name, (shape, values.data));
        }
        let classical_base = !matches!(
            architecture,
            Architecture::Compact { .. } | Architecture::Span { .. }
        );
        if classical_base {
            params.extend(base_taps());
        }
        PlainNetwork {
            architecture,
            scale: sizes.scale,
            params,
        }
    }

    /// The values of a parameter.
    pub fn param(&self, name: &str) -> &[f64] {
        let found = self.params.get(name);
        &found.unwrap_or_else(|| panic!("no parameter {name}")).1
    }

    /// `[N, 3, H, W]` to `[N, 3, H * scale, W * scale]`, not clamped.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let mut graph = Graph::new(self.parameters_in_use());
        let x = graph.tape.leaf(input.clone());
        let output = self.build(&mut graph, x);
        graph.tape.value(output).clone()
    }

    /// Forward and backward of any loss, which is given the output and returns its value and its
    /// gradient with respect to the output.
    pub fn gradients(
        &self,
        input: &Tensor,
        loss: impl FnOnce(&Tensor) -> (f64, Tensor),
    ) -> PlainGradients {
        let mut graph = Graph::new(self.parameters_in_use());
        let x = graph.tape.leaf(input.clone());
        let output = self.build(&mut graph, x);
        let output_value = graph.tape.value(output).clone();
        let (loss, grad) = loss(&output_value);
        let grads = graph.tape.backward(output, grad);
        let of = |var| {
            grads
                .of(var)
                .expect("the output depends on every leaf")
                .clone()
        };
        let mut params: Parameters = graph
            .leaves
            .iter()
            .map(|(name, &var)| (name.clone(), of(var)))
            .map(|(name, grad)| (name, (grad.shape, grad.data)))
            .collect();
        if self.composed() {
            params = span_compose::expand_gradients(&self.params, params);
        }
        PlainGradients {
            output: output_value,
            loss,
            params,
            input: of(x),
        }
    }

    fn composed(&self) -> bool {
        matches!(
            self.architecture,
            Architecture::Span {
                form: SpanForm::Composed,
                ..
            }
        )
    }

    /// The parameters of the forward pass, with the convolutions that are composed for it.
    fn parameters_in_use(&self) -> Parameters {
        if self.composed() {
            span_compose::compose_all(&self.params)
        } else {
            self.params.clone()
        }
    }

    fn build(&self, graph: &mut Graph, x: Var) -> Var {
        let scale = self.scale;
        match self.architecture {
            Architecture::Nano { alpha } => {
                paragonsr2::network(graph, x, scale, alpha, |graph, x, name, _| {
                    paragonsr2::nano_block(graph, x, name)
                })
            }
            Architecture::Stream { alpha } => {
                paragonsr2::network(graph, x, scale, alpha, |graph, x, name, _| {
                    paragonsr2::stream_block(graph, x, name)
                })
            }
            Architecture::Photo { alpha, window } => {
                paragonsr2::network(graph, x, scale, alpha, |graph, x, name, number| {
                    paragonsr2::photo_block(graph, x, name, number, window)
                })
            }
            Architecture::Pro { alpha, window } => {
                paragonsr2::network(graph, x, scale, alpha, |graph, x, name, number| {
                    paragonsr2::pro_block(graph, x, name, number, window)
                })
            }
            Architecture::Compact { activation } => compact::network(graph, x, scale, activation),
            Architecture::Span { norm, form } => span::network(graph, x, scale, norm, form),
        }
    }
}

impl Trainee for PlainNetwork {
    fn params(&self) -> &Parameters {
        &self.params
    }

    fn params_mut(&mut self) -> &mut Parameters {
        &mut self.params
    }

    fn gradients_of(&self, input: &[f64], [n, h, w]: [usize; 3], loss: &LossFunction) -> Gradients {
        let got = self.gradients(&Tensor::from_nhwc([n, h, w, 3], input), |output| {
            let [n, c, h, w] = output.nchw();
            let (value, grad) = loss(&output.to_nhwc());
            (value, Tensor::from_nhwc([n, h, w, c], &grad))
        });
        let params = got.params.into_iter();
        Gradients {
            output: got.output.to_nhwc(),
            loss: got.loss,
            params: params
                .filter(|(name, _)| trainable(name))
                .map(|(name, (_, values))| (name, values))
                .collect(),
            input: got.input.to_nhwc(),
        }
    }
}

/// Shapes of a convolution's weight and bias.
fn conv_shapes(name: &str, out: usize, per_group: usize, k: usize) -> [(String, Vec<usize>); 2] {
    [
        (format!("{name}.weight"), vec![out, per_group, k, k]),
        (format!("{name}.bias"), vec![out]),
    ]
}

/// A tape, and the parameters by name: a parameter becomes a leaf when it is first used.
pub struct Graph {
    pub tape: Tape,
    params: Parameters,
    leaves: BTreeMap<String, Var>,
}

impl Graph {
    fn new(params: Parameters) -> Graph {
        Graph {
            tape: Tape::default(),
            params,
            leaves: BTreeMap::new(),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.params.contains_key(name)
    }

    /// Whether a parameter belongs to the part of the network with this name.
    pub fn has_part(&self, name: &str) -> bool {
        let prefix = format!("{name}.");
        let next = self.params.range(prefix.clone()..).next();
        next.is_some_and(|(name, _)| name.starts_with(&prefix))
    }

    pub fn param(&mut self, name: &str) -> Var {
        if let Some(&var) = self.leaves.get(name) {
            return var;
        }
        let found = self.params.get(name);
        let (shape, values) = found.unwrap_or_else(|| panic!("no parameter {name}"));
        let var = self.tape.leaf(Tensor::new(shape, values.clone()));
        self.leaves.insert(name.to_string(), var);
        var
    }

    /// The convolution `{name}.weight`, `{name}.bias`.
    pub fn conv(&mut self, x: Var, name: &str, settings: Convolution) -> Var {
        let [weight, bias] = self.weight_and_bias(name);
        self.tape.conv2d(x, weight, bias, settings)
    }

    /// `{name}.weight` and `{name}.bias`.
    pub fn weight_and_bias(&mut self, name: &str) -> [Var; 2] {
        ["weight", "bias"].map(|part| self.param(&format!("{name}.{part}")))
    }

    /// The number of channels of a value.
    pub fn channels(&self, x: Var) -> usize {
        self.tape.value(x).nchw()[1]
    }
}
