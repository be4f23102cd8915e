//! RMSNorm against its f64 formula, and with padding against RMSNorm without it.

use super::super::CpuOptions;
use super::super::operation::CpuOperation;
use super::super::plain_tests::{Case, EXTENTS, stride_of};
use super::super::tests_common::{
    Operations, activation, assert_same_bits, every_isa, noise, scalars,
};
use crate::backend::Backend;
use crate::plan::{BufferId, Destination, Extent, ParamRange, RmsNorm, RmsNormBack, Slice};

const EPSILON: f32 = 1e-6;

/// RMSNorm without padding, whose parameters are scale, then bias.
fn rms_norm(
    extent: Extent,
    channels: usize,
    [parameters, input, output]: [BufferId; 3],
) -> RmsNorm {
    let range = |offset| ParamRange {
        offset,
        len: channels,
    };
    RmsNorm {
        extent,
        padded: extent,
        channels,
        epsilon: EPSILON,
        scale: range(0),
        bias: range(channels),
        parameters,
        input,
        output,
    }
}

/// The formula at a pixel.
fn normalized(x: &[f64], scale_and_bias: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let root = (mean + f64::from(EPSILON)).sqrt();
    let (scale, bias) = scale_and_bias.split_at(x.len());
    let values = x.iter().zip(scale).zip(bias);
    values.map(|((x, s), b)| s * x / root + b).collect()
}

#[test]
fn rms_norm_is_that_of_f64() {
    let wide = Extent { n: 1, h: 2, w: 35 };
    let odd = Extent { n: 1, h: 7, w: 13 };
    let all = EXTENTS.into_iter().chain([wide, odd]);
    for (extent, channels) in all.flat_map(|e| [16, 24, 64].map(|c| (e, c))) {
        // small values test epsilon's part
        for (size, without_gradient) in [(1.0, vec![]), (2e-3, vec![]), (1.0, vec![0])] {
            let case = Case {
                name: format!("RMSNorm {channels} of {size}, {extent:?}"),
                extent,
                inputs: vec![channels],
                without_gradient,
                overwrites: false,
                output: channels,
                size,
                parameters: noise(2 * channels, 5),
                formula: &|x, parameters| normalized(&x[0], parameters),
                operation: &|extent, parameters, inputs, output| {
                    rms_norm(extent, channels, [parameters, inputs[0], output]).into()
                },
            };
            // finite differences of small values lose digits
            case.check(if size < 1.0 { 2e-5 } else { 4e-7 });
        }
    }
}

/// What a run of both directions gives.
struct Run {
    output: Vec<f32>,
    d_input: Vec<f32>,
    d_parameters: Vec<f32>,
}

/// Runs both directions with an output of these sizes.
fn run(options: &CpuOptions, forward: &RmsNorm, d_output: Vec<f32>) -> Run {
    let (channels, stride) = (forward.channels, forward.stride());
    let mut ops = Operations::new(options);
    let mut forward = forward.clone();
    forward.parameters = ops.floats(noise(2 * channels, 1));
    forward.input = ops.floats(activation(forward.extent.pixels(), channels, stride, 2));
    forward.output = ops.output(d_output.len());
    let gradients = ops.output(2 * channels);
    let d_input = ops.output(forward.extent.pixels() * stride);
    let back = RmsNormBack {
        forward: forward.clone(),
        gradients,
        d_output: ops.floats(d_output),
        d_input: Some(Destination {
            buffer: d_input,
            add: false,
        }),
        slice: Slice::whole(forward.extent.n),
        workspace: None,
    };
    let output = forward.output;
    ops.push(forward);
    ops.push(back);
    let mut loaded = ops.load();
    loaded.backend.micro_step(&scalars(false)).unwrap();
    Run {
        output: loaded.read(output),
        d_input: loaded.read(d_input),
        d_parameters: loaded.read(gradients),
    }
}

/// The rows and columns inside the image of values `[N, padded h, padded w, stride]`, and the
/// others.
fn split(values: &[f32], op: &RmsNorm) -> (Vec<f32>, Vec<f32>) {
    let (mut inside, mut outside) = (vec![], vec![]);
    for (i, pixel) in values.chunks_exact(op.stride()).enumerate() {
        let (x, y) = (i % op.padded.w, i / op.padded.w % op.padded.h);
        match y < op.extent.h && x < op.extent.w {
            true => inside.extend_from_slice(pixel),
            false => outside.extend_from_slice(pixel),
        }
    }
    (inside, outside)
}

#[test]
fn padding_is_zero_and_its_gradient_is_ignored() {
    let id = BufferId(0);
    for extent in EXTENTS {
        for (rows, columns) in [(0, 5), (3, 0), (70, 17)] {
            let channels = 24;
            let plain = rms_norm(extent, channels, [id; 3]);
            let padded = RmsNorm {
                padded: Extent {
                    n: extent.n,
                    h: extent.h + rows,
                    w: extent.w + columns,
                },
                ..plain.clone()
            };
            let stride = stride_of(channels);
            let d_output = activation(padded.padded.pixels(), channels, stride, 3);
            let (inside, _) = split(&d_output, &padded);
            for options in every_isa(2) {
                let what = format!("{extent:?}, {rows} rows and {columns} columns");
                let expected = run(&options, &plain, inside.clone());
                let got = run(&options, &padded, d_output.clone());
                let (output, padding) = split(&got.output, &padded);
                assert_same_bits(&what, &output, &expected.output);
                assert!(padding.iter().all(|&v| v == 0.0), "{what}");
                assert_same_bits(&what, &got.d_input, &expected.d_input);
                assert_same_bits(&what, &got.d_parameters, &expected.d_parameters);
            }
        }
    }
}

#[test]
fn sizes_without_a_kernel_are_refused() {
    let (extent, id) = (Extent { n: 2, h: 3, w: 4 }, BufferId(0));
    let plain = rms_norm(extent, 24, [id; 3]);
    assert!(CpuOperation::check(&plain).is_ok());
    let padded = |padded| RmsNorm {
        padded,
        ..plain.clone()
    };
    let (mut scale, mut epsilon) = (plain.clone(), plain.clone());
    scale.scale.len = 23;
    epsilon.epsilon = 0.0;
    for refused in [
        padded(Extent { n: 1, ..extent }),
        padded(Extent { h: 2, ..extent }),
        padded(Extent { w: 3, ..extent }),
        scale,
        epsilon,
        rms_norm(extent, 5000, [id; 3]),
    ] {
        assert!(CpuOperation::check(&refused).is_err());
    }
}
