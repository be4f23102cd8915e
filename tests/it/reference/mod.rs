//! A slow, plain f64 reference of the networks, their losses, their gradients and their training
//! step. Written from the published descriptions of the networks alone, it depends on nothing of
//! the crate under test, so that the fast code can be measured against it; it promises PyTorch's
//! names and layouts for every parameter.
//!
//! There are two references. `Reference` here is the Nano network (`paragonsr2_realtime`) with a
//! backward pass written by hand, on NHWC. `networks` has Nano again, Stream, Photo, Pro, Compact
//! and SPAN on a tape of plain operations (`plain`, `tape`), on NCHW. `golden` reads the files that
//! both are compared with.

pub mod differences;
pub mod erf;
pub mod golden;
pub mod networks;
pub mod ops;
pub mod plain;
pub mod similarity;
pub mod tape;
pub mod tensor;
pub mod training;

use ops::*;
use std::collections::BTreeMap;

/// Sharpening taps of Magic Kernel Sharp 2021 as the network uses them.
pub const SHARP: [f64; 7] = [
    -1.0 / 32.0,
    0.0,
    9.0 / 32.0,
    16.0 / 32.0,
    9.0 / 32.0,
    0.0,
    -1.0 / 32.0,
];
/// Blur taps after the nearest-neighbour upsampling.
pub const BLUR: [f64; 5] = [1.0 / 16.0, 4.0 / 16.0, 6.0 / 16.0, 4.0 / 16.0, 1.0 / 16.0];

/// Parameters by PyTorch state_dict name: shape and values (convolutions OIHW).
pub type Parameters = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

/// The network. `params` holds the frozen `base.*` taps too, as a checkpoint does; the forward pass
/// uses the constants.
#[derive(Clone)]
pub struct Reference {
    pub scale: usize,
    pub features: usize,
    pub blocks: usize,
    /// `upsampler_alpha`: the strength of the sharpening before the classical upsampling.
    pub alpha: f64,
    pub params: Parameters,
}

/// Pixel losses, all means over every value of the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    L1,
    /// sqrt((p - t)^2 + 1e-12)
    Charbonnier,
    Mse,
}

impl Loss {
    /// The loss and its gradient with respect to `pred`.
    pub fn evaluate(self, pred: &[f64], target: &[f64]) -> (f64, Vec<f64>) {
        assert_eq!(pred.len(), target.len());
        let share = 1.0 / pred.len() as f64;
        let mut total = 0.0;
        let mut grad = Vec::with_capacity(pred.len());
        for (p, t) in pred.iter().zip(target) {
            let d = p - t;
            let (value, slope) = match self {
                Loss::L1 => (d.abs(), if d == 0.0 { 0.0 } else { d.signum() }),
                Loss::Charbonnier => {
                    let root = (d * d + 1e-12).sqrt();
                    (root, d / root)
                }
                Loss::Mse => (d * d, 2.0 * d),
            };
            total += value;
            grad.push(slope * share);
        }
        (total * share, grad)
    }
}

/// What a backward pass returns. `params` has every trainable parameter, flat in its PyTorch
/// layout; `output` is [n, h*scale, w*scale, 3], `input` [n, h, w, 3].
pub struct Gradients {
    pub output: Vec<f64>,
    pub loss: f64,
    pub params: BTreeMap<String, Vec<f64>>,
    pub input: Vec<f64>,
}

/// What one block keeps for its backward.
struct BlockTrace {
    input: Picture,
    /// after conv1
    wide: Picture,
    /// after the depthwise convolution, before GELU
    filtered: Picture,
    activated: Picture,
    /// after conv2, before LayerScale
    branch: Picture,
}

struct Trace {
    input: Picture,
    blocks: Vec<BlockTrace>,
    body: Picture,
    mid: Picture,
    /// after the pixel shuffle, [n, h*s, w*s, features]
    shuffled: Picture,
    detail: Picture,
    output: Picture,
}

/// True for the parameters that training moves. Fixed are the taps of the classical upsampler, and
/// two things in the files of SPAN: a mark that it has no normalisation, and convolutions composed
/// from its other tensors.
pub fn trainable(name: &str) -> bool {
    !name.starts_with("base.") && name != "no_norm" && !name.contains("eval_conv.")
}

impl Reference {
    /// Nano at `scale` with the start values of `sized`.
    pub fn random(scale: usize, seed: u64) -> Reference {
        Reference::sized(scale, 16, 3, 0.3, seed)
    }

    /// A network of any width and depth. Weights and biases start as in PyTorch (+-1/sqrt(fan_in)),
    /// but LayerScale is drawn from 0.2..0.8 and detail_gain is 0.3, so that no gradient is too
    /// small to be checked.
    pub fn sized(scale: usize, features: usize, blocks: usize, alpha: f64, seed: u64) -> Reference {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut uniform = move || {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut params = Parameters::new();
        let mut convolution = |name: &str, out: usize, per_group: usize, k: usize| {
            let fan_in = per_group * k * k;
            let bound = 1.0 / (fan_in as f64).sqrt();
            // rounded to f32, so that an f32 implementation can be given the very same numbers
            let mut draw = |count| {
                (0..count)
                    .map(|_| ((2.0 * uniform() - 1.0) * bound) as f32 as f64)
                    .collect::<Vec<_>>()
            };
            params.insert(
                format!("{name}.weight"),
                (vec![out, per_group, k, k], draw(out * fan_in)),
            );
            params.insert(format!("{name}.bias"), (vec![out], draw(out)));
        };
        let (f, e) = (features, 2 * features);
        convolution("conv_in", f, 3, 3);
        for i in 0..blocks {
            convolution(&format!("body.0.blocks.{i}.conv1"), e, f, 1);
            convolution(&format!("body.0.blocks.{i}.dw"), e, 1, 3);
            convolution(&format!("body.0.blocks.{i}.conv2"), f, e, 1);
        }
        convolution("conv_mid", f, f, 3);
        convolution("up.0", f * scale * scale, f, 3);
        convolution("conv_out", 3, f, 3);
        for i in 0..blocks {
            let gamma = (0..f)
                .map(|_| (0.2 + 0.6 * uniform()) as f32 as f64)
                .collect();
            params.insert(
                format!("body.0.blocks.{i}.scale.gamma"),
                (vec![1, f, 1, 1], gamma),
            );
        }
        params.insert("detail_gain".into(), (vec![], vec![0.3f32 as f64]));
        params.extend(base_taps());
        Reference {
            scale,
            features,
            blocks,
            alpha,
            params,
        }
    }

    /// A network from parameters read somewhere; width, depth and scale are taken from their
    /// shapes.
    pub fn from_params(alpha: f64, params: Parameters) -> Reference {
        let features = params["conv_in.weight"].0[0];
        let blocks = (0..)
            .take_while(|i| params.contains_key(&format!("body.0.blocks.{i}.conv1.weight")))
            .count();
        let area = params["up.0.weight"].0[0] / features;
        let scale = (1..=area)
            .find(|s| s * s == area)
            .expect("up.0 has features * scale^2 outputs");
        Reference {
            scale,
            features,
            blocks,
            alpha,
            params,
        }
    }

    /// The values of a parameter.
    pub fn param(&self, name: &str) -> &[f64] {
        &self
            .params
            .get(name)
            .unwrap_or_else(|| panic!("no parameter {name}"))
            .1
    }

    /// [n, h, w, 3] -> [n, h*scale, w*scale, 3], not clamped.
    pub fn forward(&self, input: &[f64], n: usize, h: usize, w: usize) -> Vec<f64> {
        self.trace(input, n, h, w).output.data
    }

    /// Forward and backward of a pixel loss.
    pub fn gradients(
        &self,
        input: &[f64],
        target: &[f64],
        n: usize,
        h: usize,
        w: usize,
        loss: Loss,
    ) -> Gradients {
        self.gradients_with(input, n, h, w, |output| loss.evaluate(output, target))
    }

    /// Forward and backward of any loss: `loss` is given the output and returns its value and the
    /// gradient with respect to the output.
    pub fn gradients_with(
        &self,
        input: &[f64],
        n: usize,
        h: usize,
        w: usize,
        loss: impl FnOnce(&[f64]) -> (f64, Vec<f64>),
    ) -> Gradients {
        let trace = self.trace(input, n, h, w);
        let (value, grad) = loss(&trace.output.data);
        let grad = trace.output.like(grad);
        let mut params = BTreeMap::new();
        let mut keep = |name: &str, g: ConvGradients| {
            params.insert(format!("{name}.weight"), g.weight);
            params.insert(format!("{name}.bias"), g.bias);
            g.input
        };

        let gain = self.param("detail_gain")[0];
        let gain_grad = grad
            .data
            .iter()
            .zip(&trace.detail.data)
            .map(|(g, d)| g * d)
            .sum();
        let detail_grad = grad.like(grad.data.iter().map(|g| g * gain).collect());
        let g = keep(
            "conv_out",
            conv_backward(
                &trace.shuffled,
                self.param("conv_out.weight"),
                &detail_grad,
                3,
            ),
        );
        let g = pixel_unshuffle(&g, self.scale);
        let g = keep(
            "up.0",
            conv_backward(&trace.mid, self.param("up.0.weight"), &g, 3),
        );
        let mut g = keep(
            "conv_mid",
            conv_backward(&trace.body, self.param("conv_mid.weight"), &g, 3),
        );
        let mut gammas = vec![];
        for (i, block) in trace.blocks.iter().enumerate().rev() {
            let name = |part: &str| format!("body.0.blocks.{i}.{part}");
            let gamma = self.param(&name("scale.gamma"));
            // y = x + gamma * branch
            gammas.push((
                name("scale.gamma"),
                channel_sums(&g.like(product(&g.data, &block.branch.data))),
            ));
            let branch_grad = g.like(
                g.data
                    .iter()
                    .enumerate()
                    .map(|(j, v)| v * gamma[j % g.c])
                    .collect(),
            );
            let weight = self.param(&name("conv2.weight"));
            let d = keep(
                &name("conv2"),
                conv_backward(&block.activated, weight, &branch_grad, 1),
            );
            let slopes: Vec<f64> = block
                .filtered
                .data
                .iter()
                .map(|z| erf::gelu_slope(*z))
                .collect();
            let d = d.like(product(&d.data, &slopes));
            let d = keep(
                &name("dw"),
                depthwise_backward(&block.wide, self.param(&name("dw.weight")), &d),
            );
            let d = keep(
                &name("conv1"),
                conv_backward(&block.input, self.param(&name("conv1.weight")), &d, 1),
            );
            g.data.iter_mut().zip(&d.data).for_each(|(a, b)| *a += b);
        }
        let g = keep(
            "conv_in",
            conv_backward(&trace.input, self.param("conv_in.weight"), &g, 3),
        );
        params.extend(gammas);
        params.insert("detail_gain".into(), vec![gain_grad]);

        // the classical branch, transposed: blur, gather, then x + alpha (sharp x - x), whose
        // matrix is symmetric
        let low = nearest_backward(&filter(&grad, &BLUR), self.scale);
        let base = self.sharpen(&low);
        let input_grad = g.data.iter().zip(&base.data).map(|(a, b)| a + b).collect();
        Gradients {
            output: trace.output.data,
            loss: value,
            params,
            input: input_grad,
        }
    }

    fn sharpen(&self, picture: &Picture) -> Picture {
        if self.alpha <= 0.0 {
            return picture.clone();
        }
        let sharp = filter(picture, &SHARP);
        picture.like(
            picture
                .data
                .iter()
                .zip(&sharp.data)
                .map(|(x, s)| x + self.alpha * (s - x))
                .collect(),
        )
    }

    fn trace(&self, input: &[f64], n: usize, h: usize, w: usize) -> Trace {
        assert_eq!(input.len(), n * h * w * 3);
        let input = Picture {
            n,
            h,
            w,
            c: 3,
            data: input.to_vec(),
        };
        let convolve = |x: &Picture, name: &str, k| {
            conv(
                x,
                self.param(&format!("{name}.weight")),
                self.param(&format!("{name}.bias")),
                k,
            )
        };
        let mut features = convolve(&input, "conv_in", 3);
        let mut blocks = vec![];
        for i in 0..self.blocks {
            let name = |part: &str| format!("body.0.blocks.{i}.{part}");
            let wide = convolve(&features, &name("conv1"), 1);
            let filtered = depthwise(
                &wide,
                self.param(&name("dw.weight")),
                self.param(&name("dw.bias")),
            );
            let activated = filtered.like(filtered.data.iter().map(|z| erf::gelu(*z)).collect());
            let branch = convolve(&activated, &name("conv2"), 1);
            let gamma = self.param(&name("scale.gamma"));
            let sums = features
                .data
                .iter()
                .enumerate()
                .map(|(j, x)| x + gamma[j % features.c] * branch.data[j]);
            let next = features.like(sums.collect());
            blocks.push(BlockTrace {
                input: features,
                wide,
                filtered,
                activated,
                branch,
            });
            features = next;
        }
        let mid = convolve(&features, "conv_mid", 3);
        let shuffled = pixel_shuffle(&convolve(&mid, "up.0", 3), self.scale);
        let detail = convolve(&shuffled, "conv_out", 3);
        let base = filter(&nearest(&self.sharpen(&input), self.scale), &BLUR);
        let gain = self.param("detail_gain")[0];
        let output = base.like(
            base.data
                .iter()
                .zip(&detail.data)
                .map(|(b, d)| b + gain * d)
                .collect(),
        );
        Trace {
            input,
            blocks,
            body: features,
            mid,
            shuffled,
            detail,
            output,
        }
    }
}

fn product(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// The frozen taps under the names a checkpoint carries.
pub fn base_taps() -> Parameters {
    let mut taps = Parameters::new();
    for (name, kernel) in [("sharp", &SHARP[..]), ("blur", &BLUR[..])] {
        let k = kernel.len();
        let thrice: Vec<f64> = kernel.iter().copied().cycle().take(3 * k).collect();
        taps.insert(format!("base.{name}.kernel"), (vec![k], kernel.to_vec()));
        taps.insert(
            format!("base.{name}.h.weight"),
            (vec![3, 1, 1, k], thrice.clone()),
        );
        taps.insert(format!("base.{name}.v.weight"), (vec![3, 1, k, 1], thrice));
    }
    taps
}
