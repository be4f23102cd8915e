//! The plain operations against f64 formulas of one pixel and their finite differences: on every
//! instruction set, with any number of threads, whole and in slices.

use super::CpuOptions;
use super::operation::CpuOperation;
use super::tests_common::{
    Operations, activation, assert_close, assert_same_bits, every_isa, noise, scalars,
};
use crate::backend::Backend;
use crate::plan::{
    Accumulate, Activate, Activation, BatchLayout, BufferId, Concat, Destination, Error, Extent,
    Gate, GateKind, Op, ParamRange, ScaledSum, Shuffle, ShuffleBack, Slice, Tape,
};
use crate::support::augment;
use std::ops::Range;

/// The value of a pixel from those of the inputs and the parameters.
pub type Formula<'a> = &'a dyn Fn(&[Vec<f64>], &[f64]) -> Vec<f64>;

/// Makes a forward operation: extent, parameters, inputs, output.
pub type MakeOp<'a> = &'a dyn Fn(Extent, BufferId, &[BufferId], BufferId) -> Op;

/// The output and all gradients from the inputs, the parameters and the gradient of the output.
pub type Reference<'a> = &'a dyn Fn(&[Vec<f64>], &[f64], &[f64]) -> Results<f64>;

/// An operation whose output pixels each depend on the same pixel of its inputs. One whose pixels
/// depend on each other, or that has very many parameters, has a [`Reference`] and no formula.
pub struct Case<'a> {
    /// For messages.
    pub name: String,
    /// The whole micro-batch.
    pub extent: Extent,
    /// Channels of each input, without those that fill the last group.
    pub inputs: Vec<usize>,
    /// Inputs without a gradient.
    pub without_gradient: Vec<usize>,
    /// Whether the gradients of the inputs are always written and never added.
    pub overwrites: bool,
    /// Channels of the output.
    pub output: usize,
    /// Values of the inputs are noise times this.
    pub size: f32,
    /// Values of the trainable parameters, if it has any.
    pub parameters: Vec<f32>,
    /// Its value at a pixel; only used by [`Case::check`].
    pub formula: Formula<'a>,
    /// The forward operation on some images.
    pub operation: MakeOp<'a>,
}

/// Channels of a buffer.
pub fn stride_of(channels: usize) -> usize {
    channels.next_multiple_of(16)
}

/// What the runs of a case give, or should: the output, the inputs' gradients, the parameters'.
#[derive(Clone)]
pub struct Results<T> {
    /// `[N, h, w, C]`, as all activations.
    pub output: Vec<T>,
    /// Gradients of the inputs.
    pub d_inputs: Vec<Vec<T>>,
    /// Gradients of the parameters.
    pub d_parameters: Vec<T>,
}

/// A tape for one operation.
struct OneTape {
    slice: Slice,
    d_parameters: BufferId,
    d_output: BufferId,
    d_inputs: Vec<(BufferId, Option<Destination>)>,
    pushed: Option<Op>,
}

impl Tape for OneTape {
    fn slice(&self) -> Slice {
        self.slice
    }
    fn gradients(&self, _: BufferId) -> Result<BufferId, Error> {
        Ok(self.d_parameters)
    }
    fn accumulates(&self, _: BufferId) -> bool {
        true
    }
    fn shares_gradient(&mut self, _: ParamRange) -> bool {
        false
    }

    fn d_output(&mut self, _: BufferId) -> Result<BufferId, Error> {
        Ok(self.d_output)
    }
    fn destination(&mut self, value: BufferId) -> Result<Option<Destination>, Error> {
        let found = self.d_inputs.iter().find(|(input, _)| *input == value);
        Ok(found.expect("an input").1)
    }
    fn write_gradient(&mut self, value: BufferId) -> Result<BufferId, Error> {
        let destination = self.destination(value)?;
        Ok(destination.expect("a gradient").buffer)
    }
    fn input_gradient(&mut self, value: BufferId) -> Result<Option<BufferId>, Error> {
        let destination = self.destination(value)?;
        Ok(destination.map(|d| d.buffer))
    }
    fn push(&mut self, op: Op) {
        self.pushed = Some(op);
    }
}

impl Case<'_> {
    /// The values of an input.
    pub fn input(&self, i: usize) -> Vec<f32> {
        let (pixels, channels) = (self.extent.pixels(), self.inputs[i]);
        let mut values = activation(pixels, channels, stride_of(channels), 10 + i as u64);
        values.iter_mut().for_each(|v| *v *= self.size);
        values
    }

    /// The gradient of the output.
    pub fn d_output(&self) -> Vec<f32> {
        let (pixels, channels) = (self.extent.pixels(), self.output);
        activation(pixels, channels, stride_of(channels), 2)
    }

    /// What is in the gradient of an input before the backward pass.
    fn before(&self, i: usize) -> Vec<f32> {
        let (pixels, channels) = (self.extent.pixels(), self.inputs[i]);
        activation(pixels, channels, stride_of(channels), 30 + i as u64)
    }

    /// The results from the formula, without what was in the gradients before.
    fn expected(&self) -> Results<f64> {
        const H: f64 = 1e-5;
        let stride = stride_of(self.output);
        let mut results = Results {
            output: Vec::new(),
            d_inputs: vec![Vec::new(); self.inputs.len()],
            d_parameters: vec![0.0; self.parameters.len()],
        };
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| v.into()).collect() };
        let (d_output, mut parameters) = (wide(&self.d_output()), wide(&self.parameters));
        let inputs: Vec<_> = (0..self.inputs.len())
            .map(|i| wide(&self.input(i)))
            .collect();
        for p in 0..self.extent.pixels() {
            let mut pixel: Vec<Vec<f64>> = inputs
                .iter()
                .zip(&self.inputs)
                .map(|(x, &c)| x[p * stride_of(c)..][..c].to_vec())
                .collect();
            let d = &d_output[p * stride..][..self.output];
            let product = |pixel: &[Vec<f64>], parameters: &[f64]| -> f64 {
                let value = (self.formula)(pixel, parameters);
                value.iter().zip(d).map(|(v, d)| v * d).sum()
            };
            results.output.extend((self.formula)(&pixel, &parameters));
            results.output.resize((p + 1) * stride, 0.0);
            for (i, &channels) in self.inputs.iter().enumerate() {
                for c in 0..channels {
                    let at = pixel[i][c];
                    let [above, below] = [at + H, at - H].map(|x| {
                        pixel[i][c] = x;
                        product(&pixel, &parameters)
                    });
                    pixel[i][c] = at;
                    results.d_inputs[i].push((above - below) / (2.0 * H));
                }
                results.d_inputs[i].resize((p + 1) * stride_of(channels), 0.0);
            }
            for i in 0..parameters.len() {
                let at = parameters[i];
                let [above, below] = [at + H, at - H].map(|x| {
                    parameters[i] = x;
                    product(&pixel, &parameters)
                });
                parameters[i] = at;
                results.d_parameters[i] += (above - below) / (2.0 * H);
            }
        }
        results
    }

    /// Runs the operation and its backward pass, the micro-batch in these parts.
    fn run(&self, options: &CpuOptions, add: bool, parts: &[Range<usize>]) -> Results<f32> {
        let (mut ops, of) = (Operations::new(options), self.extent.n);
        let parameters = match self.parameters.is_empty() {
            true => vec![0.0], // a buffer may not be empty
            false => self.parameters.clone(),
        };
        let d_parameters = ops.floats(vec![0.25; parameters.len()]);
        let parameters = ops.floats(parameters);
        let inputs: Vec<_> = (0..self.inputs.len())
            .map(|i| ops.floats(self.input(i)))
            .collect();
        let values = self.extent.pixels() * stride_of(self.output);
        let (output, d_output) = (ops.output(values), ops.floats(self.d_output()));
        let d_inputs: Vec<_> = (0..inputs.len())
            .map(|i| match add {
                true => ops.floats(self.before(i)),
                false => ops.output(self.before(i).len()),
            })
            .collect();
        for back in [false, true] {
            ops.push_slices(of, parts, |ops, part, slice| {
                let mut view = |id: BufferId| ops.builder.images(id, &part, of);
                let extent = Extent {
                    n: part.len(),
                    ..self.extent
                };
                let views: Vec<_> = inputs.iter().map(|&id| view(id)).collect();
                let forward = (self.operation)(extent, parameters, &views, view(output));
                if !back {
                    return forward;
                }
                let destination = |(i, &buffer): (usize, &BufferId)| {
                    let wanted = !self.without_gradient.contains(&i);
                    let buffer = wanted.then(|| view(buffer));
                    (views[i], buffer.map(|buffer| Destination { buffer, add }))
                };
                let mut tape = OneTape {
                    slice,
                    d_parameters,
                    d_inputs: d_inputs.iter().enumerate().map(destination).collect(),
                    d_output: ops.builder.images(d_output, &part, of),
                    pushed: None,
                };
                forward.backward(&mut tape).unwrap();
                tape.pushed.expect("a backward operation")
            });
        }
        let mut loaded = ops.load();
        loaded.backend.micro_step(&scalars(add)).unwrap();
        Results {
            output: loaded.read(output),
            d_inputs: d_inputs.iter().map(|&id| loaded.read(id)).collect(),
            d_parameters: loaded.read(d_parameters),
        }
    }

    /// Compares the operation with the formula.
    pub fn check(&self, tolerance: f64) {
        self.check_against(&self.expected(), tolerance);
    }

    /// Compares the operation with the reference, and the reference's gradients with finite
    /// differences of its output.
    pub fn check_whole(&self, reference: Reference<'_>, tolerance: f64) {
        const H: f64 = 1e-5;
        let wide = |values: Vec<f32>| -> Vec<f64> { values.iter().map(|&v| v.into()).collect() };
        let (d_output, parameters) = (wide(self.d_output()), wide(self.parameters.clone()));
        let inputs: Vec<_> = (0..self.inputs.len())
            .map(|i| wide(self.input(i)))
            .collect();
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let expected = reference(&inputs, &parameters, &d_output);
        // along some directions: of one input each, then of all parameters
        for seed in 0..3 * (inputs.len() + 1) {
            let which = seed % (inputs.len() + 1);
            let (values, gradient) = match inputs.get(which) {
                Some(input) => (input, &expected.d_inputs[which]),
                None => (&parameters, &expected.d_parameters),
            };
            let mut direction = wide(noise(values.len(), 100 + seed as u64));
            if let Some(&channels) = self.inputs.get(which) {
                for pixel in direction.chunks_exact_mut(stride_of(channels)) {
                    pixel[channels..].fill(0.0);
                }
            }
            let [above, below] = [H, -H].map(|h| {
                let (mut inputs, mut parameters) = (inputs.clone(), parameters.clone());
                let moved = inputs.get_mut(which).unwrap_or(&mut parameters);
                moved
                    .iter_mut()
                    .zip(&direction)
                    .for_each(|(v, d)| *v += h * d);
                dot(
                    &reference(&inputs, &parameters, &d_output).output,
                    &d_output,
                )
            });
            let difference = (above - below) / (2.0 * H);
            let slope = dot(gradient, &direction);
            let size = dot(gradient, gradient).sqrt().max(1e-6);
            assert!(
                (difference - slope).abs() < 1e-6 * size,
                "{}, gradient {which}: {slope} for {difference}",
                self.name
            );
        }
        self.check_against(&expected, tolerance);
    }

    /// Compares the operation with these results. The gradients may differ by more than the
    /// output's `tolerance`: the inputs' by 4 times as much, the parameters' by 20 times.
    pub fn check_against(&self, expected: &Results<f64>, tolerance: f64) {
        let whole = vec![0..self.extent.n];
        for options in every_isa(1) {
            for add in [false, true] {
                let what = format!("{}, {}, add {add}", self.name, options.isa());
                let results = self.run(&options, add, &whole);
                self.compare(&what, &results, expected, add, tolerance);
                let mut others = vec![];
                for threads in [2, 5] {
                    let options = CpuOptions::new(threads).with_isa(options.isa());
                    others.push(self.run(&options, add, &whole));
                }
                if self.extent.n > 1 {
                    let mut parts: Vec<_> = (1..self.extent.n).map(|i| i..i + 1).collect();
                    parts.insert(0, 0..1);
                    others.push(self.run(&options, add, &parts));
                }
                for other in others {
                    assert_same_bits(&what, &results.output, &other.output);
                    for i in 0..self.inputs.len() {
                        assert_same_bits(&what, &results.d_inputs[i], &other.d_inputs[i]);
                    }
                    assert_same_bits(&what, &results.d_parameters, &other.d_parameters);
                }
            }
        }
    }

    fn compare(
        &self,
        what: &str,
        results: &Results<f32>,
        expected: &Results<f64>,
        add: bool,
        tolerance: f64,
    ) {
        let whole_groups = |values: &[f32], channels: usize| {
            for pixel in values.chunks_exact(stride_of(channels)) {
                assert!(
                    pixel[channels..].iter().all(|&v| v == 0.0),
                    "{what}: {pixel:?}"
                );
            }
        };
        whole_groups(&results.output, self.output);
        assert_close(what, &results.output, &expected.output, tolerance);
        for (i, d_input) in results.d_inputs.iter().enumerate() {
            if self.without_gradient.contains(&i) {
                let before = self.before(i);
                let untouched = |(d, b): (&f32, &f32)| if add { d == b } else { d.is_nan() };
                assert!(d_input.iter().zip(&before).all(untouched), "{what}");
                continue;
            }
            whole_groups(d_input, self.inputs[i]);
            let mut expected = expected.d_inputs[i].clone();
            if add && !self.overwrites {
                let before = self.before(i);
                let sums = expected.iter_mut().zip(&before);
                sums.for_each(|(e, &b)| *e += f64::from(b));
            }
            let what = format!("{what}, gradient of input {i}");
            assert_close(&what, d_input, &expected, 4.0 * tolerance);
        }
        if self.parameters.is_empty() {
            return assert_eq!(results.d_parameters, [0.25], "{what}");
        }
        let mut expected = expected.d_parameters.clone();
        if add {
            expected.iter_mut().for_each(|e| *e += 0.25);
        }
        let what = format!("{what}, gradient of the parameters");
        assert_close(&what, &results.d_parameters, &expected, 20.0 * tolerance);
    }
}

/// Odd sizes: less than a vector, several images, several bands of rows.
pub const EXTENTS: [Extent; 3] = [
    Extent { n: 1, h: 1, w: 1 },
    Extent { n: 3, h: 5, w: 7 },
    Extent { n: 2, h: 37, w: 3 },
];

/// Numbers of channels that do and do not fill the last group.
const CHANNELS: [usize; 4] = [52, 12, 27, 32];

fn sizes() -> impl Iterator<Item = (Extent, usize)> {
    EXTENTS
        .into_iter()
        .zip([3, 1, 0])
        .flat_map(|(extent, skipped)| {
            // most of the channels with every extent; the first extent is fast
            let channels = CHANNELS.into_iter().enumerate();
            channels
                .filter(move |&(i, _)| i != skipped)
                .map(move |(_, c)| (extent, c))
        })
}

/// The first `len` parameters.
pub fn range(len: usize) -> ParamRange {
    ParamRange { offset: 0, len }
}

/// 1 / (1 + exp(-x)).
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn activations_are_those_of_f64() {
    for (extent, channels) in sizes() {
        let slopes = Activation::PRelu {
            slopes: range(channels),
        };
        let leaky = |x: f64, slope: f64| if x > 0.0 { x } else { slope * x };
        let parameters = noise(channels, 5);
        let functions: [(Activation, Formula<'_>); 4] = [
            (Activation::Relu, &|x, _| {
                x[0].iter().map(|&x| x.max(0.0)).collect()
            }),
            (Activation::LeakyRelu { slope: 0.1 }, &|x, _| {
                x[0].iter().map(|&x| leaky(x, f64::from(0.1f32))).collect()
            }),
            (slopes, &|x, slopes| {
                x[0].iter()
                    .zip(slopes)
                    .map(|(&x, &s)| leaky(x, s))
                    .collect()
            }),
            (Activation::Silu, &|x, _| {
                x[0].iter().map(|&x| x * sigmoid(x)).collect()
            }),
        ];
        for (activation, formula) in functions {
            let parameters = match activation.slopes() {
                Some(_) => parameters.clone(),
                None => vec![],
            };
            let case = Case {
                name: format!("{activation:?} {channels}"),
                extent,
                inputs: vec![channels],
                without_gradient: vec![],
                overwrites: false,
                output: channels,
                size: 4.0,
                parameters,
                formula,
                operation: &|extent, parameters, inputs, output| {
                    Activate {
                        extent,
                        channels,
                        stride: stride_of(channels),
                        activation,
                        parameters,
                        input: inputs[0],
                        output,
                        workspace: None,
                    }
                    .into()
                },
            };
            case.check(4e-7);
        }
    }
}

#[test]
fn gates_are_those_of_f64() {
    for (extent, channels) in sizes() {
        let halves = channels.is_multiple_of(16);
        let attention: Formula<'_> = &|x, _| {
            let pairs = x[0].iter().zip(&x[1]);
            pairs.map(|(a, b)| (a + b) * (sigmoid(*a) - 0.5)).collect()
        };
        let gate: Formula<'_> = &|x, _| {
            let (first, second) = x[0].split_at(x[0].len() / 2);
            let pairs = first.iter().zip(second);
            pairs.map(|(x, y)| (x * y).clamp(-1.5, 1.5)).collect()
        };
        // small values test that the attention keeps their bits
        for (size, without_gradient) in [(0.01, vec![]), (5.0, vec![1])] {
            let case = Case {
                name: format!("attention {channels}"),
                extent,
                inputs: vec![channels; 2],
                without_gradient,
                overwrites: false,
                output: channels,
                size,
                parameters: vec![],
                formula: attention,
                operation: &|extent, _, inputs, output| {
                    Gate {
                        extent,
                        channels,
                        kind: GateKind::Attention,
                        a: inputs[0],
                        b: Some(inputs[1]),
                        output,
                    }
                    .into()
                },
            };
            case.check(4e-7);
        }
        let case = Case {
            name: format!("halves {channels}"),
            extent,
            inputs: vec![2 * channels],
            without_gradient: vec![],
            overwrites: false,
            output: channels,
            size: 2.0,
            parameters: vec![],
            formula: gate,
            operation: &|extent, _, inputs, output| {
                Gate {
                    extent,
                    channels,
                    kind: GateKind::Halves { limit: 1.5 },
                    a: inputs[0],
                    b: None,
                    output,
                }
                .into()
            },
        };
        if halves {
            case.check(4e-7);
        }
    }
}

#[test]
fn the_gradient_of_a_clamp_is_one_at_the_limit() {
    let extent = Extent { n: 1, h: 1, w: 1 };
    // products below, at and above the limits, and tiny steps beyond them
    let second = [
        1.0f32,
        2.0,
        -2.0,
        2.0f32.next_up(),
        (-2.0f32).next_down(),
        30.0,
        f32::NAN,
    ];
    let passes = [true, true, true, false, false, false];
    for options in every_isa(1) {
        let mut ops = Operations::new(&options);
        let mut values = vec![1.0; 32];
        values[16..16 + second.len()].copy_from_slice(&second);
        let a = ops.floats(values);
        let (output, d_output) = (ops.output(16), ops.floats(vec![3.0; 16]));
        let d_a = ops.output(32);
        let gate = Gate {
            extent,
            channels: 16,
            kind: GateKind::Halves { limit: 2.0 },
            a,
            b: None,
            output,
        };
        ops.push(gate.clone());
        ops.push(crate::plan::GateBack {
            forward: gate,
            d_output,
            d_a: Destination {
                buffer: d_a,
                add: false,
            },
            d_b: None,
        });
        let mut loaded = ops.run();
        let (output, d_a) = (loaded.read(output), loaded.read(d_a));
        assert_eq!(output[..6], [1.0, 2.0, -2.0, 2.0, -2.0, 2.0]);
        assert!(output[6].is_nan());
        for (i, &passes) in passes.iter().enumerate() {
            let expected = if passes {
                [3.0 * second[i], 3.0]
            } else {
                [0.0, 0.0]
            };
            assert_eq!(
                [d_a[i], d_a[16 + i]],
                expected,
                "{}: {}",
                options.isa(),
                second[i]
            );
        }
    }
}

#[test]
fn concatenations_copy_every_channel() {
    let all: [&[usize]; 4] = [&[48, 48], &[52, 52, 12, 27], &[12, 3, 1], &[5]];
    for (extent, parts) in EXTENTS
        .into_iter()
        .flat_map(|e| all.map(|parts| (e, parts)))
    {
        let case = Case {
            name: format!("concatenation {parts:?}"),
            extent,
            inputs: parts.to_vec(),
            without_gradient: if parts.len() == 3 { vec![1] } else { vec![] },
            overwrites: false,
            output: parts.iter().sum(),
            size: 1.0,
            parameters: vec![],
            formula: &|x, _| x.concat(),
            operation: &|extent, _, inputs, output| {
                Concat {
                    extent,
                    parts: inputs.iter().copied().zip(parts.iter().copied()).collect(),
                    output,
                }
                .into()
            },
        };
        case.check(1e-7);
    }
}

#[test]
fn sums_are_those_of_f64() {
    for (extent, channels) in sizes() {
        for (scaled, without_gradient) in [(true, vec![]), (true, vec![0]), (false, vec![1])] {
            let case = Case {
                name: format!("sum {channels}, scaled {scaled}"),
                extent,
                inputs: vec![channels; 2],
                without_gradient,
                overwrites: false,
                output: channels,
                size: 1.0,
                parameters: if scaled { noise(channels, 5) } else { vec![] },
                formula: &|x, gamma| {
                    let pairs = x[0].iter().zip(&x[1]).enumerate();
                    let factor = |c: usize| if scaled { gamma[c] } else { 1.0 };
                    pairs.map(|(c, (a, b))| a + factor(c) * b).collect()
                },
                operation: &|extent, parameters, inputs, output| {
                    ScaledSum {
                        extent,
                        channels,
                        stride: stride_of(channels),
                        gamma: scaled.then(|| range(channels)),
                        parameters,
                        a: inputs[0],
                        b: inputs[1],
                        output,
                    }
                    .into()
                },
            };
            case.check(4e-7);
        }
    }
}

#[test]
fn gradients_are_added_up() {
    for (extent, stride) in EXTENTS.into_iter().flat_map(|e| [48, 3].map(|s| (e, s))) {
        let values = |seed| noise(extent.pixels() * stride, seed);
        let (a, b) = (values(1), values(2));
        let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| b + a).collect();
        for options in every_isa(2) {
            let mut ops = Operations::new(&options);
            let (from, into) = (ops.floats(a.clone()), ops.floats(b.clone()));
            ops.push(Accumulate {
                extent,
                stride,
                from,
                into,
            });
            assert_same_bits("sum", &ops.run().read(into), &expected);
        }
    }
}

/// A staged batch of noise as the values of a buffer of floats, and its bytes.
fn batch_values(batch: &BatchLayout) -> (Vec<f32>, Vec<u8>) {
    let bytes = noise(batch.bytes().next_multiple_of(4), 77).into_iter();
    let mut bytes: Vec<u8> = bytes.map(|v| (127.5 * (v + 1.0)) as u8).collect();
    for i in 0..batch.count {
        bytes[batch.augment_offset() + i] = if batch.lq.0 == batch.lq.1 {
            (3 * i + 1) as u8 & 7
        } else {
            0
        };
    }
    let values = bytes.as_chunks::<4>().0.iter();
    (
        values
            .map(|&b| f32::from_bits(u32::from_ne_bytes(b)))
            .collect(),
        bytes,
    )
}

/// The prediction in f64 as `[N, H, W, 3]`, of inputs in the operation's layout.
fn shuffled(op: &Shuffle, input: &[f32], base: &[f32], bytes: &[u8]) -> Vec<f64> {
    let (Extent { n, h, w }, s) = (op.extent, op.scale);
    let mut out = Vec::new();
    for (image, y) in (0..n).flat_map(|i| (0..h * s).map(move |y| (i, y))) {
        for (x, c) in (0..w * s).flat_map(|x| (0..3).map(move |c| (x, c))) {
            let pixel = (image * h + y / s) * w + x / s;
            let channel = c * s * s + y % s * s + x % s;
            let mut value = f64::from(input[pixel * op.input_stride + channel]);
            if op.base.is_some() {
                value += f64::from(base[pixel * 3 + c]);
            }
            if let Some(batch) = op.target {
                let code = bytes[batch.augment_of(image)];
                let (row, column) = match code {
                    0 => (y, x),
                    _ => augment::source(code, y, x, h * s),
                };
                let at = batch.hr_of(image) + (row * w * s + column) * 3 + c;
                value -= f64::from(bytes[at]) / 255.0;
            }
            out.push(value);
        }
    }
    out
}

/// A shuffle of each kind for a scale and an extent, in f64 and in parallel.
fn check_shuffle(extent: Extent, scale: usize, with_base: bool, with_target: bool) {
    let what = format!("{extent:?} x{scale}, base {with_base}, target {with_target}");
    let channels = 3 * scale * scale;
    let stride = stride_of(channels);
    let input = activation(extent.pixels(), channels, stride, 3);
    let byte = |v: &f32| ((v + 1.0) * 127.5).round_ties_even() / 255.0;
    let base: Vec<f32> = noise(extent.pixels() * 3, 4).iter().map(byte).collect();
    let d_output = noise(extent.scaled(scale).pixels() * 3, 5);
    for options in every_isa(1) {
        let run = |threads: usize, add: bool| {
            let options = CpuOptions::new(threads).with_isa(options.isa());
            let mut ops = Operations::new(&options);
            let layout = BatchLayout {
                buffer: BufferId(0),
                first: 1,
                count: extent.n + 1,
                lq: (extent.h, extent.w),
                scale,
                with_hr: true,
            };
            let (values, bytes) = batch_values(&layout);
            let buffer = ops.floats(values);
            let forward = Shuffle {
                extent,
                scale,
                input_stride: stride,
                input: ops.floats(input.clone()),
                base: Some(ops.floats(base.clone())).filter(|_| with_base),
                output: ops.output(d_output.len()),
                target: with_target.then_some(BatchLayout { buffer, ..layout }),
            };
            let before = vec![0.5; input.len()];
            let d_input = if add {
                ops.floats(before)
            } else {
                ops.output(input.len())
            };
            let back = ShuffleBack {
                forward: forward.clone(),
                d_output: ops.floats(d_output.clone()),
                d_input: Destination {
                    buffer: d_input,
                    add,
                },
                d_base: with_base.then(|| ops.output(base.len())),
            };
            ops.push(forward.clone());
            ops.push(back.clone());
            let mut loaded = ops.run();
            let d_base = back.d_base.map_or(vec![], |id| loaded.read(id));
            let read = (loaded.read(forward.output), loaded.read(d_input), d_base);
            (read, shuffled(&forward, &input, &base, &bytes))
        };
        for add in [false, true] {
            let ((output, d_input, d_base), expected) = run(1, add);
            assert_close(&what, &output, &expected, 2e-7);
            let (other, _) = run(5, add);
            assert_same_bits(&what, &output, &other.0);
            assert_same_bits(&what, &d_input, &other.1);
            assert_same_bits(&what, &d_base, &other.2);
            check_shuffle_gradients(&what, (extent, scale), &d_output, add, &d_input, &d_base);
        }
    }
}

/// Checks the gradients of a shuffle: the transpose of its formula.
fn check_shuffle_gradients(
    what: &str,
    (extent, s): (Extent, usize),
    d_output: &[f32],
    add: bool,
    d_input: &[f32],
    d_base: &[f32],
) {
    let stride = stride_of(3 * s * s);
    let mut expected = vec![if add { 0.5 } else { 0.0 }; d_input.len()];
    let mut of_base = vec![0.0; extent.pixels() * 3];
    for (i, &d) in d_output.iter().enumerate() {
        let (c, x, row) = (i % 3, i / 3 % (extent.w * s), i / 3 / (extent.w * s));
        let pixel = row / s * extent.w + x / s;
        expected[pixel * stride + c * s * s + row % s * s + x % s] += f64::from(d);
        of_base[pixel * 3 + c] += f64::from(d);
    }
    assert_close(what, d_input, &expected, 1e-7);
    if !d_base.is_empty() {
        assert_close(what, d_base, &of_base, 1e-6);
    }
}

#[test]
fn shuffles_are_those_of_f64_at_every_scale() {
    let square = Extent { n: 2, h: 5, w: 5 };
    for (scale, extent) in [1, 2, 3, 4, 8].into_iter().flat_map(|s| {
        let [first, second, third] = EXTENTS;
        [first, second, third, square].map(|extent| (s, extent))
    }) {
        for (base, target) in [(true, true), (true, false), (false, true), (false, false)] {
            check_shuffle(extent, scale, base, target);
        }
    }
}

#[test]
fn sizes_without_a_kernel_are_refused() {
    let (extent, id) = (Extent { n: 1, h: 2, w: 2 }, BufferId(0));
    let shuffle = |extent, scale, input_stride| Shuffle {
        extent,
        scale,
        input_stride,
        input: id,
        base: None,
        output: id,
        target: None,
    };
    assert!(CpuOperation::check(&shuffle(extent, 2, 16)).is_ok());
    let too_large = Extent {
        w: 1 << 17,
        ..extent
    };
    for (extent, scale, stride) in [
        (extent, 5, 80),
        (extent, 0, 16),
        (extent, 2, 12),
        (too_large, 2, 16),
        (Extent { n: 0, ..extent }, 2, 16),
    ] {
        assert!(CpuOperation::check(&shuffle(extent, scale, stride)).is_err());
    }
    let activate = |channels, stride, activation| Activate {
        extent,
        channels,
        stride,
        activation,
        parameters: id,
        input: id,
        output: id,
        workspace: None,
    };
    assert!(CpuOperation::check(&activate(52, 64, Activation::Silu)).is_ok());
    let normalize = Activation::Normalize {
        mean: [0.0; 3],
        factor: 1.0,
    };
    for (channels, stride, activation) in [
        (52, 52, Activation::Silu),
        (0, 0, Activation::Silu),
        (5000, 5008, Activation::Silu),
        (16, 16, Activation::PRelu { slopes: range(15) }),
        (3, 16, normalize),
    ] {
        assert!(CpuOperation::check(&activate(channels, stride, activation)).is_err());
    }
    let gate = |channels, kind, b| Gate {
        extent,
        channels,
        kind,
        a: id,
        b,
        output: id,
    };
    let halves = GateKind::Halves { limit: 1.0 };
    assert!(CpuOperation::check(&gate(52, GateKind::Attention, Some(id))).is_ok());
    assert!(CpuOperation::check(&gate(48, halves, None)).is_ok());
    assert!(CpuOperation::check(&gate(52, GateKind::Attention, None)).is_err());
    assert!(CpuOperation::check(&gate(52, halves, None)).is_err());
    let concat = |parts: &[usize]| Concat {
        extent,
        parts: parts.iter().map(|&channels| (id, channels)).collect(),
        output: id,
    };
    assert!(CpuOperation::check(&concat(&[52, 3])).is_ok());
    for parts in [&[][..], &[16, 0], &[4000, 1000]] {
        assert!(CpuOperation::check(&concat(parts)).is_err());
    }
}
