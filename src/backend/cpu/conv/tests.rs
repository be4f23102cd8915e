//! Convolutions of every class of shapes against plain f64 loops, and the promises about bits.

use super::super::tests_common::*;
use super::super::{Backend, CpuOptions};
use crate::plan::{
    Activation, BufferId, Conv, ConvBack, Destination, Extent, ParamRange, Precision, Slice,
};
use std::ops::Range;

/// A convolution to test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) extent: (usize, usize, usize),
    pub(super) cin: usize,
    pub(super) cout: usize,
    pub(super) kernel: usize,
    pub(super) dilation: usize,
    pub(super) groups: usize,
    pub(super) activation: Option<Activation>,
    pub(super) tile_invariant: bool,
    /// Whether the gradient of the input is added to what is there.
    pub(super) add: bool,
    /// Whether all values are bf16, also those that an activation gives.
    pub(super) rounded: bool,
}

/// The nearest bf16.
fn nearest_bf16(value: f64) -> f64 {
    f64::from(Precision::Bf16.widen(Precision::Bf16.narrow(value as f32)))
}

/// A dense 3x3 convolution.
pub(super) fn dense(extent: (usize, usize, usize), cin: usize, cout: usize) -> Case {
    Case {
        extent,
        cin,
        cout,
        kernel: 3,
        dilation: 1,
        groups: 1,
        activation: None,
        tile_invariant: false,
        add: false,
        rounded: false,
    }
}

pub(super) const PRELU: Activation = Activation::PRelu {
    slopes: ParamRange { offset: 0, len: 0 }, // set by `Case::operation`
};
const NORMALIZE: Activation = Activation::Normalize {
    mean: [0.4488, 0.4371, 0.4040],
    factor: 255.0,
};

/// Everything that a convolution computes.
pub(super) struct Results<T> {
    pub(super) output: Vec<T>,
    pub(super) d_parameters: Vec<T>,
    pub(super) d_input: Vec<T>,
}

impl Case {
    pub(super) fn stride(channels: usize) -> usize {
        if channels == 3 {
            3
        } else {
            channels.next_multiple_of(16)
        }
    }

    fn pixels(&self) -> usize {
        self.extent.0 * self.extent.1 * self.extent.2
    }

    pub(super) fn weights(&self) -> usize {
        self.cout * (self.cin / self.groups) * self.kernel * self.kernel
    }

    /// Values as this case has them.
    fn values(&self, mut values: Vec<f32>) -> Vec<f32> {
        if self.rounded {
            for value in &mut values {
                *value = nearest_bf16(f64::from(*value)) as f32;
            }
        }
        values
    }

    /// Weights, biases, slopes.
    fn parameters(&self) -> Vec<f32> {
        self.values(noise(self.weights() + self.cout + self.cin, 1))
    }

    fn input(&self) -> Vec<f32> {
        let mut input = activation(self.pixels(), self.cin, Case::stride(self.cin), 2);
        input[0] = 0.0; // the derivative at 0
        self.values(input)
    }

    pub(super) fn output_stride(&self) -> usize {
        self.cout.next_multiple_of(16)
    }

    fn d_output(&self) -> Vec<f32> {
        self.values(activation(
            self.pixels(),
            self.cout,
            self.output_stride(),
            3,
        ))
    }

    /// What `d_input` holds before.
    fn before(&self) -> Vec<f32> {
        activation(self.pixels(), self.cin, Case::stride(self.cin), 4)
    }

    /// The operation on `images` images.
    fn operation(
        &self,
        images: usize,
        parameters: BufferId,
        input: BufferId,
        output: BufferId,
    ) -> Conv {
        let range = |offset, len| ParamRange { offset, len };
        let (weights, cout) = (self.weights(), self.cout);
        Conv {
            extent: Extent {
                n: images,
                h: self.extent.1,
                w: self.extent.2,
            },
            cin: self.cin,
            cout,
            input_stride: Case::stride(self.cin),
            output_stride: self.output_stride(),
            kernel: self.kernel,
            dilation: self.dilation,
            groups: self.groups,
            activation: self.activation.map(|a| match a {
                Activation::PRelu { .. } => Activation::PRelu {
                    slopes: range(weights + cout, self.cin),
                },
                other => other,
            }),
            tile_invariant: self.tile_invariant,
            tile_alignment: 1,
            weight: range(0, weights),
            bias: range(weights, cout),
            parameters,
            slopes: parameters,
            input,
            output,
            workspace: None,
        }
    }

    /// Runs forward and backward; the backward pass in parts of the images.
    pub(super) fn run(&self, options: &CpuOptions, parts: &[Range<usize>]) -> Results<f32> {
        let (n, h, w) = self.extent;
        let mut ops = Operations::new(options);
        let parameters = ops.floats(self.parameters());
        let gradients = ops.output(self.parameters().len());
        let input = ops.floats(self.input());
        let output = ops.output(self.pixels() * self.output_stride());
        let d_output = ops.floats(self.d_output());
        let d_input = match self.add {
            true => ops.floats(self.before()),
            false => ops.output(self.input().len()),
        };
        ops.push(self.operation(n, parameters, input, output));
        ops.push_slices(n, parts, |ops, part, slice| {
            let mut view = |id: BufferId| ops.builder.images(id, &part, n);
            let (input, d_output, d_input) = (view(input), view(d_output), view(d_input));
            let forward = self.operation(part.len(), parameters, input, output);
            let back = ConvBack {
                forward,
                gradients,
                accumulates: true,
                slope_gradients: gradients,
                d_output,
                d_input: Some(Destination {
                    buffer: d_input,
                    add: self.add,
                }),
                slice,
                workspace: None,
            };
            back.into()
        });
        let mut loaded = ops.run();
        let mut d_parameters = loaded.read(gradients);
        if !matches!(self.activation, Some(Activation::PRelu { .. })) {
            d_parameters.truncate(self.weights() + self.cout);
        }
        assert_eq!(h * w * n, self.pixels());
        Results {
            output: loaded.read(output),
            d_parameters,
            d_input: loaded.read(d_input),
        }
    }

    /// Value and derivative of the activation for channel `c`.
    fn activated(&self, parameters: &[f32], c: usize, z: f64) -> (f64, f64) {
        let leaky = |slope: f64| {
            if z > 0.0 {
                (z, 1.0)
            } else {
                (slope * z, slope)
            }
        };
        let slope = f64::from(parameters[self.weights() + self.cout + c]);
        match self.activation {
            None => (z, 1.0),
            Some(Activation::Relu) => leaky(0.0),
            Some(Activation::LeakyRelu { slope }) => leaky(f64::from(slope)),
            Some(Activation::PRelu { .. }) => leaky(slope),
            Some(Activation::Silu) => {
                let s = 1.0 / (1.0 + (-z).exp());
                (z * s, s * (1.0 + z * (1.0 - s)))
            }
            Some(Activation::Gelu) => {
                let (cdf, density) = normal(z);
                (z * cdf, cdf + z * density)
            }
            Some(Activation::Normalize { mean, factor }) => {
                let factor = f64::from(factor);
                ((z - f64::from(mean[c])) * factor, factor)
            }
        }
    }

    /// Calls `visit` with (weight, output value, input value) of every product.
    fn each_product(&self, mut visit: impl FnMut(usize, (usize, usize), (usize, usize))) {
        let ((n, h, w), k) = (self.extent, self.kernel);
        let (inputs, outputs) = (self.cin / self.groups, self.cout / self.groups);
        let reach = (self.dilation * (k / 2)) as isize;
        for (image, y, x) in (0..n * h * w).map(|i| (i / w / h, i / w % h, i % w)) {
            for (ky, kx) in (0..k * k).map(|t| (t / k, t % k)) {
                let from = |at: usize, tap: usize| (at + tap * self.dilation) as isize - reach;
                let (iy, ix) = (from(y, ky), from(x, kx));
                if iy < 0 || iy >= h as isize || ix < 0 || ix >= w as isize {
                    continue;
                }
                let pixel = (image * h + iy as usize) * w + ix as usize;
                for co in 0..self.cout {
                    for i in 0..inputs {
                        let weight = ((co * inputs + i) * k + ky) * k + kx;
                        let ci = co / outputs * inputs + i;
                        visit(weight, ((image * h + y) * w + x, co), (pixel, ci));
                    }
                }
            }
        }
    }

    /// The same in f64.
    pub(super) fn expected(&self) -> Results<f64> {
        let (parameters, input) = (self.parameters(), self.input());
        let (from, to) = (Case::stride(self.cin), self.output_stride());
        let activated: Vec<(f64, f64)> = (0..input.len())
            .map(|i| match i % from {
                c if c < self.cin => {
                    let (value, slope) = self.activated(&parameters, c, f64::from(input[i]));
                    let value = if self.rounded {
                        nearest_bf16(value)
                    } else {
                        value
                    };
                    (value, slope)
                }
                _ => (0.0, 0.0),
            })
            .collect();
        let mut output = vec![0.0; self.pixels() * to];
        for pixel in output.chunks_exact_mut(to) {
            for (co, value) in pixel[..self.cout].iter_mut().enumerate() {
                *value = f64::from(parameters[self.weights() + co]);
            }
        }
        let d_output = self.d_output();
        let mut d_activated = vec![0.0; input.len()];
        let mut d_parameters = vec![0.0; self.weights() + self.cout];
        self.each_product(|weight, (out, co), (pixel, ci)| {
            let (o, i) = (out * to + co, pixel * from + ci);
            let (value, d) = (f64::from(parameters[weight]), f64::from(d_output[o]));
            output[o] += value * activated[i].0;
            d_parameters[weight] += d * activated[i].0;
            d_activated[i] += d * value;
        });
        for (o, &d) in d_output
            .iter()
            .enumerate()
            .filter(|(o, _)| o % to < self.cout)
        {
            d_parameters[self.weights() + o % to] += f64::from(d);
        }
        if matches!(self.activation, Some(Activation::PRelu { .. })) {
            let mut slopes = vec![0.0; self.cin];
            for (i, d) in d_activated
                .iter()
                .enumerate()
                .filter(|(i, _)| i % from < self.cin)
            {
                slopes[i % from] += d * f64::from(input[i]).min(0.0);
            }
            d_parameters.extend(slopes);
        }
        let before = self.before();
        let d_input = (0..input.len())
            .map(|i| {
                let before = if self.add { f64::from(before[i]) } else { 0.0 };
                before + d_activated[i] * activated[i].1
            })
            .collect();
        Results {
            output,
            d_parameters,
            d_input,
        }
    }

    /// Compares with f64 on every instruction set.
    fn check(&self) {
        let expected = self.expected();
        for options in every_isa(2) {
            let what = |part: &str| format!("{}, {self:?}: {part}", options.isa());
            let got = self.run(&options, &[0..self.extent.0]);
            assert_close(&what("output"), &got.output, &expected.output, 2e-6);
            assert_close(&what("input"), &got.d_input, &expected.d_input, 2e-6);
            let at = self.weights();
            let slopes = got.d_parameters.len().min(at + self.cout);
            for (part, range) in [
                ("weight", 0..at),
                ("bias", at..at + self.cout),
                ("slopes", slopes..got.d_parameters.len()),
            ] {
                let (got, expected) = (
                    &got.d_parameters[range.clone()],
                    &expected.d_parameters[range],
                );
                assert_close(&what(part), got, expected, 3e-6);
            }
            // the channels that fill the last vector
            let padding = |values: &[f32], channels: usize, stride: usize| {
                let mut rest = values.chunks_exact(stride).flat_map(|p| &p[channels..]);
                rest.all(|&v| v == 0.0)
            };
            assert!(
                padding(&got.output, self.cout, self.output_stride()),
                "{}",
                what("padding")
            );
            assert!(
                padding(&got.d_input, self.cin, Case::stride(self.cin)),
                "{}",
                what("padding")
            );
        }
    }

    /// Threads and slices change no bit.
    fn check_bits(&self) {
        let n = self.extent.0;
        for options in every_isa(1) {
            let one = self.run(&options, &[0..n]);
            let mut others = vec![
                self.run(&CpuOptions::new(2).with_isa(options.isa()), &[0..n]),
                self.run(&CpuOptions::new(5).with_isa(options.isa()), &[0..n]),
            ];
            if n > 2 {
                others.push(self.run(&options, &[0..2, 2..n]));
            }
            for other in others {
                assert_same_bits("output", &one.output, &other.output);
                assert_same_bits("input", &one.d_input, &other.d_input);
                assert_same_bits("parameters", &one.d_parameters, &other.d_parameters);
            }
        }
    }
}

/// The normal distribution's cumulative function and density, by Simpson's rule.
fn normal(z: f64) -> (f64, f64) {
    let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let (steps, mut sum) = (200, density(0.0) + density(z));
    for i in 1..steps {
        let weight = if i % 2 == 1 { 4.0 } else { 2.0 };
        sum += weight * density(z * f64::from(i) / f64::from(steps));
    }
    (0.5 + sum * z / f64::from(steps) / 3.0, density(z))
}

#[test]
fn dense_3x3_of_any_width_in_both_forms() {
    for tile_invariant in [false, true] {
        for (extent, cin, cout) in [
            ((1, 1, 1), 16, 16),
            ((1, 1, 1), 48, 64),
            ((2, 5, 3), 3, 24),
            ((1, 7, 11), 24, 12),
            ((2, 6, 13), 52, 27),
            ((1, 35, 9), 16, 48),
            ((1, 4, 37), 64, 64),
            ((1, 3, 5), 96, 12),
            ((1, 2, 7), 27, 192),
            // more than a group of blocks in a row
            ((1, 6, 150), 16, 16),
            ((1, 5, 139), 24, 32),
            // a strip of several rows of tiles beside a strip of one row
            ((1, 10, 110), 24, 64),
        ] {
            for add in [false, true] {
                Case {
                    tile_invariant,
                    add,
                    ..dense(extent, cin, cout)
                }
                .check();
            }
        }
    }
}

#[test]
fn activations_of_the_input() {
    let all = [
        Activation::Relu,
        Activation::LeakyRelu { slope: 0.1 },
        PRELU,
        Activation::Silu,
        Activation::Gelu,
    ];
    for (activation, tile_invariant, add) in all
        .into_iter()
        .flat_map(|a| [false, true].map(|t| (a, t)))
        .flat_map(|(a, t)| [false, true].map(|add| (a, t, add)))
    {
        let case = Case {
            activation: Some(activation),
            tile_invariant,
            add,
            ..dense((2, 9, 7), 24, 48)
        };
        case.check();
        Case { kernel: 1, ..case }.check();
    }
    for add in [false, true] {
        Case {
            activation: Some(NORMALIZE),
            add,
            ..dense((2, 5, 7), 3, 48)
        }
        .check();
    }
}

#[test]
fn other_kernels_dilations_and_groups() {
    for (cin, cout, kernel, dilation, groups) in [
        (208, 52, 1, 1, 1),
        (3, 20, 1, 1, 1),
        (3, 16, 5, 1, 1),
        (20, 32, 5, 1, 1),
        (16, 32, 3, 3, 1),
        (52, 16, 3, 2, 1),
        (32, 32, 3, 1, 32),
        (40, 40, 3, 1, 40),
        (40, 40, 3, 3, 40),
        (24, 48, 3, 1, 24),
        (48, 24, 3, 1, 6),
        (36, 24, 5, 2, 3),
        (3, 3, 3, 1, 3),
    ] {
        for (extent, activation, add) in [
            ((1, 1, 1), None, false),
            ((2, 5, 11), (cin != 3).then_some(PRELU), true),
        ] {
            Case {
                kernel,
                dilation,
                groups,
                activation,
                add,
                ..dense(extent, cin, cout)
            }
            .check();
        }
    }
}

#[test]
fn threads_and_slices_change_no_bit() {
    for (cin, cout, kernel, activation, tile_invariant) in [
        (20, 24, 3, Some(PRELU), false),
        (20, 24, 3, Some(Activation::Silu), true),
        (16, 16, 3, None, false),
        (3, 16, 3, None, true),
        (32, 20, 1, Some(PRELU), false),
    ] {
        Case {
            tile_invariant,
            kernel,
            activation,
            ..dense((3, 35, 5), cin, cout)
        }
        .check_bits();
    }
}

/// Gradients replace what is there, or are added to it.
#[test]
fn gradients_accumulate_only_where_they_should() {
    let case = Case {
        activation: Some(PRELU),
        ..dense((1, 4, 4), 16, 16)
    };
    let once = case.run(&CpuOptions::new(1), &[0..1]).d_parameters;
    for accumulates in [true, false] {
        let options = CpuOptions::new(1);
        let mut ops = Operations::new(&options);
        let parameters = ops.floats(case.parameters());
        let gradients = ops.floats(vec![1.0; once.len()]);
        let input = ops.floats(case.input());
        let d_output = ops.floats(case.d_output());
        let output = ops.output(case.pixels() * 16);
        let d_input = ops.output(case.input().len());
        let forward = case.operation(1, parameters, input, output);
        ops.push(ConvBack {
            forward,
            gradients,
            accumulates,
            slope_gradients: gradients,
            d_output,
            d_input: Some(Destination {
                buffer: d_input,
                add: false,
            }),
            slice: Slice::whole(1),
            workspace: None,
        });
        let mut loaded = ops.load();
        loaded.backend.micro_step(&scalars(true)).unwrap();
        let slopes = case.weights() + case.cout;
        for (i, (got, once)) in loaded.read(gradients).iter().zip(&once).enumerate() {
            let added = accumulates || i >= slopes;
            let expected = if added { 1.0 + once } else { *once };
            assert_eq!(*got, expected, "gradient {i}");
        }
    }
}
