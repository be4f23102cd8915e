//! Token attention against plain f64 formulas.

use super::super::operation::CpuOperation;
use super::super::plain_tests::{Case, EXTENTS, Results, stride_of};
use super::super::tests_common::noise;
use crate::plan::{BufferId, Extent, ParamRange, TokenAttention, TokenParams};

/// Sizes of an operation: tokens T, channels F and channels of a query D.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    tokens: usize,
    channels: usize,
    query: usize,
}

impl Sizes {
    /// Values of each parameter: tokens, weight and bias of keys, weight and bias of values.
    fn parameters(&self) -> [usize; 5] {
        let Sizes {
            tokens,
            channels,
            query,
        } = *self;
        [
            tokens * channels,
            query * channels,
            query,
            channels * channels,
            channels,
        ]
    }

    /// The operation whose parameters follow each other in this order.
    fn operation(
        &self,
        extent: Extent,
        [parameters, query, output]: [BufferId; 3],
    ) -> TokenAttention {
        let mut offset = 0;
        let [tokens, key, key_bias, value, value_bias] = self.parameters().map(|len| {
            offset += len;
            ParamRange {
                offset: offset - len,
                len,
            }
        });
        TokenAttention {
            extent,
            channels: self.channels,
            query_channels: self.query,
            params: TokenParams {
                tokens,
                key: [key, key_bias],
                value: [value, value_bias],
            },
            parameters,
            query,
            output,
            workspace: None,
        }
    }

    /// The five parameters in `values`.
    fn split<'a>(&self, mut values: &'a mut [f64]) -> [&'a mut [f64]; 5] {
        self.parameters().map(|len| {
            let (first, rest) = std::mem::take(&mut values).split_at_mut(len);
            values = rest;
            first
        })
    }
}

/// `[rows, F]` times a weight `[outputs, F]`, plus a bias.
fn linear(x: &[f64], weight: &[f64], bias: &[f64], channels: usize) -> Vec<f64> {
    let rows = x.chunks_exact(channels);
    rows.flat_map(|x| {
        let outputs = weight.chunks_exact(channels).zip(bias);
        outputs.map(move |(w, b)| b + w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>())
    })
    .collect()
}

/// The gradients of [`linear`], added to those of its arguments.
fn linear_back(
    d: &[f64],
    (x, weight): (&[f64], &[f64]),
    [d_x, d_weight, d_bias]: [&mut [f64]; 3],
    channels: usize,
) {
    let outputs = d_bias.len();
    for (i, &d) in d.iter().enumerate() {
        let (row, output) = (i / outputs * channels, i % outputs);
        d_bias[output] += d;
        for c in 0..channels {
            d_x[row + c] += d * weight[output * channels + c];
            d_weight[output * channels + c] += d * x[row + c];
        }
    }
}

/// The operation and its gradients in f64.
fn reference(sizes: Sizes, query: &[f64], parameters: &[f64], d_output: &[f64]) -> Results<f64> {
    let (channels, count) = (sizes.channels, sizes.query);
    let (stride, query_stride) = (stride_of(channels), stride_of(count));
    let mut parameters = parameters.to_vec();
    let [tokens, key, key_bias, value, value_bias] = sizes.split(&mut parameters);
    let keys = linear(tokens, key, key_bias, channels);
    let values = linear(tokens, value, value_bias, channels);
    let scale = 1.0 / (count as f64).sqrt();
    let mut output = vec![0.0; d_output.len()];
    let mut d_query = vec![0.0; query.len()];
    let (mut d_keys, mut d_values) = (vec![0.0; keys.len()], vec![0.0; values.len()]);
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    for pixel in 0..query.len() / query_stride {
        let q = &query[pixel * query_stride..][..count];
        let d = &d_output[pixel * stride..][..channels];
        let scores: Vec<f64> = keys
            .chunks_exact(count)
            .map(|k| scale * dot(q, k))
            .collect();
        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
        let mut weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
        let d_weights: Vec<f64> = values.chunks_exact(channels).map(|v| dot(d, v)).collect();
        let mean = dot(&weights, &d_weights);
        for t in 0..sizes.tokens {
            let d_score = scale * weights[t] * (d_weights[t] - mean);
            for c in 0..channels {
                output[pixel * stride + c] += weights[t] * values[t * channels + c];
                d_values[t * channels + c] += weights[t] * d[c];
            }
            for c in 0..count {
                d_query[pixel * query_stride + c] += d_score * keys[t * count + c];
                d_keys[t * count + c] += d_score * q[c];
            }
        }
    }
    let mut d_parameters = vec![0.0; parameters.len()];
    let [tokens, key, _, value, _] = sizes.split(&mut parameters);
    let [d_tokens, d_key, d_key_bias, d_value, d_value_bias] = sizes.split(&mut d_parameters);
    let d_key = [&mut *d_tokens, d_key, d_key_bias];
    linear_back(&d_keys, (tokens, key), d_key, channels);
    let d_value = [d_tokens, d_value, d_value_bias];
    linear_back(&d_values, (tokens, value), d_value, channels);
    Results {
        output,
        d_inputs: vec![d_query],
        d_parameters,
    }
}

#[test]
fn token_attention_is_that_of_f64() {
    // more pixels than a chunk, and more rows than a band
    let odd = Extent { n: 1, h: 7, w: 5 };
    let several_bands = Extent { n: 2, h: 34, w: 1 };
    let sizes = |tokens, channels, query| Sizes {
        tokens,
        channels,
        query,
    };
    for (sizes, extents) in [
        (sizes(64, 64, 16), vec![odd, several_bands]),
        (sizes(64, 24, 10), EXTENTS.to_vec()),
        (sizes(20, 16, 32), vec![odd]),
        (sizes(1, 16, 1), EXTENTS.to_vec()),
        (sizes(80, 70, 16), vec![EXTENTS[0], EXTENTS[1]]),
    ] {
        for extent in extents {
            let count = sizes.parameters().iter().sum();
            let case = Case {
                name: format!("{sizes:?}, {extent:?}"),
                extent,
                inputs: vec![sizes.query],
                without_gradient: vec![],
                overwrites: true,
                output: sizes.channels,
                size: 2.0,
                parameters: noise(count, 5).iter().map(|p| 0.5 * p).collect(),
                formula: &|_, _| unreachable!("there are too many parameters"),
                operation: &|extent, parameters, inputs, output| {
                    let buffers = [parameters, inputs[0], output];
                    sizes.operation(extent, buffers).into()
                },
            };
            case.check_whole(
                &|inputs, parameters, d_output| reference(sizes, &inputs[0], parameters, d_output),
                1e-6,
            );
        }
    }
}

#[test]
fn sizes_without_a_kernel_are_refused() {
    let extent = Extent { n: 2, h: 3, w: 4 };
    let sizes = Sizes {
        tokens: 20,
        channels: 24,
        query: 10,
    };
    let op = sizes.operation(extent, [BufferId(0); 3]);
    assert!(CpuOperation::check(&op).is_ok());
    let refused = |change: fn(&mut TokenAttention)| {
        let mut op = op.clone();
        change(&mut op);
        assert!(CpuOperation::check(&op).is_err());
    };
    refused(|op| op.channels = 5000);
    refused(|op| op.query_channels = 0);
    refused(|op| op.params.tokens.len = 0);
    refused(|op| op.params.tokens.len += 1);
    refused(|op| op.params.key[0].len += 1);
    refused(|op| op.params.key[1].len += 1);
    refused(|op| op.params.value[0].len += 1);
    refused(|op| op.params.value[1].len += 1);
}
