//! Records plain operations while a network runs and multiplies their backward passes by the chain
//! rule, so that a reference network is its forward pass alone. Depends on `plain`; promises the
//! exact derivative of what was recorded, in f64.

use super::plain::{self, Activation, Convolution, Windows};
use super::tensor::Tensor;

/// A value on a [`Tape`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Var(usize);

/// From the input values and the gradient of the output to the gradients of the inputs.
type Backward = Box<dyn Fn(&[&Tensor], &Tensor) -> Vec<Tensor>>;

struct Node {
    value: Tensor,
    inputs: Vec<Var>,
    /// `None` for a leaf.
    backward: Option<Backward>,
}

/// The values of one forward pass, in the order in which they were computed.
#[derive(Default)]
pub struct Tape {
    nodes: Vec<Node>,
}

/// What [`Tape::backward`] returns.
pub struct TapeGradients(Vec<Option<Tensor>>);

impl TapeGradients {
    /// The gradient of a leaf; `None` where the output does not depend on it. The gradients of
    /// intermediate values are not kept.
    pub fn of(&self, var: Var) -> Option<&Tensor> {
        self.0[var.0].as_ref()
    }
}

impl Tape {
    /// A value from outside: an input, a parameter or a constant.
    pub fn leaf(&mut self, value: Tensor) -> Var {
        self.push(value, vec![], None)
    }

    pub fn value(&self, var: Var) -> &Tensor {
        &self.nodes[var.0].value
    }

    fn push(&mut self, value: Tensor, inputs: Vec<Var>, backward: Option<Backward>) -> Var {
        self.nodes.push(Node {
            value,
            inputs,
            backward,
        });
        Var(self.nodes.len() - 1)
    }

    /// Records an operation: `forward` computes its value from the values of `inputs`, `backward`
    /// their gradients (in the same order) from these values and the gradient of the result.
    pub fn apply(
        &mut self,
        inputs: &[Var],
        forward: impl FnOnce(&[&Tensor]) -> Tensor,
        backward: impl Fn(&[&Tensor], &Tensor) -> Vec<Tensor> + 'static,
    ) -> Var {
        let values: Vec<&Tensor> = inputs.iter().map(|&var| self.value(var)).collect();
        let value = forward(&values);
        self.push(value, inputs.to_vec(), Some(Box::new(backward)))
    }

    /// The gradients of a scalar with respect to every leaf, given its gradient with respect to
    /// `output`.
    pub fn backward(&self, output: Var, grad: Tensor) -> TapeGradients {
        assert_eq!(grad.shape, self.value(output).shape);
        let mut grads: Vec<Option<Tensor>> = vec![None; self.nodes.len()];
        grads[output.0] = Some(grad);
        for (i, node) in self.nodes.iter().enumerate().rev() {
            let Some(backward) = &node.backward else {
                continue;
            };
            let Some(grad) = grads[i].take() else {
                continue;
            };
            let values: Vec<&Tensor> = node.inputs.iter().map(|&var| self.value(var)).collect();
            let contributions = backward(&values, &grad);
            assert_eq!(contributions.len(), node.inputs.len());
            for (var, contribution) in node.inputs.iter().zip(contributions) {
                assert_eq!(contribution.shape, self.value(*var).shape);
                // a value that is used twice receives the sum
                match &mut grads[var.0] {
                    Some(sum) => sum.accumulate(&contribution),
                    empty => *empty = Some(contribution),
                }
            }
        }
        TapeGradients(grads)
    }
}

/// The operations of `plain`.
impl Tape {
    pub fn conv2d(&mut self, x: Var, weight: Var, bias: Var, settings: Convolution) -> Var {
        self.apply(
            &[x, weight, bias],
            |v| plain::conv2d(v[0], v[1], v[2], settings),
            move |v, grad| plain::conv2d_backward(v[0], v[1], grad, settings).into(),
        )
    }

    pub fn activate(&mut self, x: Var, activation: Activation) -> Var {
        self.apply(
            &[x],
            |v| plain::activate(v[0], activation),
            move |v, grad| vec![plain::activate_backward(v[0], grad, activation)],
        )
    }

    pub fn prelu(&mut self, x: Var, slopes: Var) -> Var {
        self.apply(
            &[x, slopes],
            |v| plain::prelu(v[0], v[1]),
            |v, grad| plain::prelu_backward(v[0], v[1], grad).into(),
        )
    }

    pub fn add(&mut self, a: Var, b: Var) -> Var {
        self.apply(
            &[a, b],
            |v| v[0].zip(v[1], |a, b| a + b),
            |_, grad| vec![grad.clone(), grad.clone()],
        )
    }

    /// Adds the same number to every value.
    pub fn offset(&mut self, x: Var, number: f64) -> Var {
        self.apply(
            &[x],
            |v| v[0].map(|x| x + number),
            |_, grad| vec![grad.clone()],
        )
    }

    pub fn product(&mut self, a: Var, b: Var, limit: f64) -> Var {
        self.apply(
            &[a, b],
            |v| plain::product(v[0], v[1], limit),
            move |v, grad| plain::product_backward(v[0], v[1], grad, limit).into(),
        )
    }

    pub fn channel_affine(&mut self, x: Var, scale: Var, shift: Var) -> Var {
        self.apply(
            &[x, scale, shift],
            |v| plain::channel_affine(v[0], v[1], v[2]),
            |v, grad| plain::channel_affine_backward(v[0], v[1], v[2], grad).into(),
        )
    }

    pub fn gain(&mut self, x: Var, gain: Var) -> Var {
        self.apply(
            &[x, gain],
            |v| plain::gain(v[0], v[1]),
            |v, grad| plain::gain_backward(v[0], v[1], grad).into(),
        )
    }

    pub fn concat(&mut self, parts: &[Var]) -> Var {
        self.apply(parts, plain::concat, |v, grad| {
            let channels: Vec<usize> = v.iter().map(|part| part.nchw()[1]).collect();
            plain::concat_backward(grad, &channels)
        })
    }

    pub fn select_channels(&mut self, x: Var, first: usize, count: usize) -> Var {
        self.apply(
            &[x],
            |v| plain::select_channels(v[0], first, count),
            move |v, grad| vec![plain::select_channels_backward(grad, first, v[0].nchw()[1])],
        )
    }

    pub fn pixel_shuffle(&mut self, x: Var, s: usize) -> Var {
        self.apply(
            &[x],
            |v| plain::pixel_shuffle(v[0], s),
            move |_, grad| vec![plain::pixel_shuffle_backward(grad, s)],
        )
    }

    pub fn nearest(&mut self, x: Var, s: usize) -> Var {
        self.apply(
            &[x],
            |v| plain::nearest(v[0], s),
            move |_, grad| vec![plain::nearest_backward(grad, s)],
        )
    }

    pub fn magic_kernel(&mut self, x: Var, s: usize, alpha: f64) -> Var {
        self.apply(
            &[x],
            |v| plain::magic_kernel(v[0], s, alpha),
            move |_, grad| vec![plain::magic_kernel_backward(grad, s, alpha)],
        )
    }

    pub fn rms_norm(&mut self, x: Var, scale: Var, bias: Var) -> Var {
        self.apply(
            &[x, scale, bias],
            |v| plain::rms_norm(v[0], v[1], v[2]),
            |v, grad| plain::rms_norm_backward(v[0], v[1], grad).into(),
        )
    }

    pub fn linear(&mut self, x: Var, weight: Var, bias: Option<Var>) -> Var {
        let inputs: Vec<Var> = [x, weight].into_iter().chain(bias).collect();
        self.apply(
            &inputs,
            |v| plain::linear(v[0], v[1], v.get(2).copied()),
            |v, grad| {
                let mut grads: Vec<Tensor> = plain::linear_backward(v[0], v[1], grad).into();
                grads.truncate(v.len());
                grads
            },
        )
    }

    pub fn token_rows(&mut self, tokens: Var) -> Var {
        self.apply(
            &[tokens],
            |v| plain::token_rows(v[0]),
            |_, grad| vec![plain::token_rows_backward(grad)],
        )
    }

    pub fn pad(&mut self, x: Var, size: [usize; 2]) -> Var {
        self.apply(
            &[x],
            |v| plain::pad(v[0], size),
            |v, grad| {
                let [.., h, w] = v[0].nchw();
                vec![plain::pad_backward(grad, [h, w])]
            },
        )
    }

    pub fn crop(&mut self, x: Var, size: [usize; 2]) -> Var {
        self.apply(
            &[x],
            |v| plain::crop(v[0], size),
            |v, grad| {
                let [.., h, w] = v[0].nchw();
                vec![plain::crop_backward(grad, [h, w])]
            },
        )
    }

    pub fn channel_means(&mut self, x: Var) -> Var {
        self.apply(
            &[x],
            |v| plain::channel_means(v[0]),
            |v, grad| {
                let [.., h, w] = v[0].nchw();
                vec![plain::channel_means_backward(grad, [h, w])]
            },
        )
    }

    pub fn image_factors(&mut self, x: Var, factors: Var) -> Var {
        self.apply(
            &[x, factors],
            |v| plain::image_factors(v[0], v[1]),
            |v, grad| plain::image_factors_backward(v[0], v[1], grad).into(),
        )
    }

    pub fn window_attention(&mut self, qkv: Var, windows: Windows) -> Var {
        self.apply(
            &[qkv],
            |v| plain::window_attention(v[0], windows),
            move |v, grad| vec![plain::window_attention_backward(v[0], grad, windows)],
        )
    }

    pub fn token_attention(&mut self, queries: Var, keys: Var, values: Var) -> Var {
        self.apply(
            &[queries, keys, values],
            |v| plain::token_attention(v[0], v[1], v[2]),
            |v, grad| plain::token_attention_backward(v[0], v[1], v[2], grad).into(),
        )
    }
}

/// Attention layers made of the operations above.
impl Tape {
    /// `x * sigmoid(up gelu(down m))` with `m` the means of the channels of each image; `down` is
    /// `[hidden, C]`, `up` `[C, hidden]`.
    pub fn channel_attention(&mut self, x: Var, down: Var, up: Var) -> Var {
        let means = self.channel_means(x);
        let hidden = self.linear(means, down, None);
        let hidden = self.activate(hidden, Activation::Gelu);
        let factors = self.linear(hidden, up, None);
        let factors = self.activate(factors, Activation::Sigmoid);
        self.image_factors(x, factors)
    }

    /// [`Tape::window_attention`] for an input of any size, between two linear layers, each a weight
    /// and a bias. The input is padded with zeros to whole windows; a padded pixel takes part, with
    /// the bias of `qkv` as its query, key and value.
    pub fn padded_window_attention(
        &mut self,
        x: Var,
        qkv: [Var; 2],
        proj: [Var; 2],
        windows: Windows,
    ) -> Var {
        let [.., h, w] = self.value(x).nchw();
        let padded = self.pad(x, [h, w].map(|size| size.next_multiple_of(windows.window)));
        let qkv = self.linear(padded, qkv[0], Some(qkv[1]));
        let mixed = self.window_attention(qkv, windows);
        let projected = self.linear(mixed, proj[0], Some(proj[1]));
        self.crop(projected, [h, w])
    }

    /// [`Tape::token_attention`] with the queries `x` to `tokens`, `[1, T, F]`, whose keys and values
    /// are linear layers of them, each a weight and a bias.
    pub fn dictionary_attention(
        &mut self,
        queries: Var,
        tokens: Var,
        key: [Var; 2],
        value: [Var; 2],
    ) -> Var {
        let tokens = self.token_rows(tokens);
        let [keys, values] =
            [key, value].map(|[weight, bias]| self.linear(tokens, weight, Some(bias)));
        self.token_attention(queries, keys, values)
    }
}
