//! Channel attention against plain f64 formulas.

use super::super::operation::CpuOperation;
use super::super::plain_tests::{Case, EXTENTS, Results, sigmoid, stride_of};
use super::super::tests_common::noise;
use crate::plan::{BufferId, ChannelAttention, Extent, ParamRange};

/// erf in f64, by its Taylor series: arguments here are small.
fn erf(x: f64) -> f64 {
    assert!(x.abs() < 4.0);
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// The exact GELU and its derivative.
fn gelu(z: f64) -> (f64, f64) {
    let cdf = 0.5 * (1.0 + erf(z / 2f64.sqrt()));
    let density = (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt();
    (z * cdf, cdf + z * density)
}

/// The operation and its gradients in f64; parameters are `down`, then `up`.
fn reference(
    extent: Extent,
    channels: usize,
    x: &[f64],
    parameters: &[f64],
    d_output: &[f64],
) -> Results<f64> {
    let (stride, pixels) = (stride_of(channels), extent.h * extent.w);
    let (down, up) = parameters.split_at(parameters.len() / 2);
    let hidden = down.len() / channels;
    let mut results = Results {
        output: vec![0.0; x.len()],
        d_inputs: vec![vec![0.0; x.len()]],
        d_parameters: vec![0.0; parameters.len()],
    };
    for image in 0..extent.n {
        let at = |pixel: usize, c: usize| (image * pixels + pixel) * stride + c;
        let sum = |f: &dyn Fn(usize) -> f64| (0..pixels).map(f).sum::<f64>();
        let mean: Vec<f64> = (0..channels)
            .map(|c| sum(&|p| x[at(p, c)]) / pixels as f64)
            .collect();
        let z = |j: usize| -> f64 {
            (0..channels)
                .map(|c| down[j * channels + c] * mean[c])
                .sum()
        };
        let gelus: Vec<_> = (0..hidden).map(|j| gelu(z(j))).collect();
        let (d_down, d_up) = results.d_parameters.split_at_mut(down.len());
        let mut d_hidden = vec![0.0; hidden];
        let mut factors = vec![];
        for c in 0..channels {
            let u = (0..hidden).map(|j| up[c * hidden + j] * gelus[j].0).sum();
            let factor = sigmoid(u);
            factors.push(factor);
            let d_factor = sum(&|p| d_output[at(p, c)] * x[at(p, c)]);
            let d_u = d_factor * factor * (1.0 - factor);
            for j in 0..hidden {
                d_up[c * hidden + j] += d_u * gelus[j].0;
                d_hidden[j] += d_u * up[c * hidden + j];
            }
        }
        let d_z: Vec<f64> = d_hidden.iter().zip(&gelus).map(|(d, g)| d * g.1).collect();
        for c in 0..channels {
            let mut d_mean = 0.0;
            for j in 0..hidden {
                d_down[j * channels + c] += d_z[j] * mean[c];
                d_mean += d_z[j] * down[j * channels + c];
            }
            for p in 0..pixels {
                results.output[at(p, c)] = factors[c] * x[at(p, c)];
                let direct = factors[c] * d_output[at(p, c)];
                results.d_inputs[0][at(p, c)] = direct + d_mean / pixels as f64;
            }
        }
    }
    results
}

/// An operation whose parameters are `down`, then `up`.
fn attention(
    extent: Extent,
    (channels, hidden): (usize, usize),
    [parameters, input, output]: [BufferId; 3],
) -> ChannelAttention {
    let range = |offset| ParamRange {
        offset,
        len: hidden * channels,
    };
    ChannelAttention {
        extent,
        channels,
        down: range(0),
        up: range(hidden * channels),
        parameters,
        input,
        means: None,
        output,
        workspace: None,
    }
}

#[test]
fn channel_attention_is_that_of_f64() {
    let odd = Extent { n: 1, h: 7, w: 13 };
    let several_bands = Extent { n: 3, h: 70, w: 2 };
    let all = EXTENTS.into_iter().chain([odd, several_bands]);
    let shapes = [(16, 1), (24, 3), (64, 4), (80, 20)];
    for (extent, (channels, hidden)) in all.flat_map(|e| shapes.map(|s| (e, s))) {
        for without_gradient in [vec![], vec![0]] {
            let case = Case {
                name: format!("channel attention {channels}, {hidden}, {extent:?}"),
                extent,
                inputs: vec![channels],
                without_gradient,
                overwrites: false,
                output: channels,
                size: 1.0,
                parameters: noise(2 * hidden * channels, 5)
                    .iter()
                    .map(|p| 0.3 * p)
                    .collect(),
                formula: &|_, _| unreachable!("pixels depend on each other"),
                operation: &|extent, parameters, inputs, output| {
                    let buffers = [parameters, inputs[0], output];
                    attention(extent, (channels, hidden), buffers).into()
                },
            };
            case.check_whole(
                &|inputs, parameters, d_output| {
                    reference(extent, channels, &inputs[0], parameters, d_output)
                },
                4e-7,
            );
        }
    }
}

#[test]
fn sizes_without_a_kernel_are_refused() {
    let extent = Extent { n: 2, h: 3, w: 4 };
    let make = |channels, hidden| attention(extent, (channels, hidden), [BufferId(0); 3]);
    assert!(CpuOperation::check(&make(24, 3)).is_ok());
    let (mut other_up, mut uneven) = (make(24, 3), make(24, 3));
    other_up.up.len = 48;
    uneven.down.len += 1;
    uneven.up.len += 1;
    for refused in [make(24, 0), make(16, 5000), make(5000, 2), other_up, uneven] {
        assert!(CpuOperation::check(&refused).is_err());
    }
}
