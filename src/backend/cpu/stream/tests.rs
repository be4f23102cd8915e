//! The Stream block against plain loops in f64, and its bits for threads, slices and tiles.

mod reference;

use super::super::tests_common::{
    Loaded, Operations, activation, assert_close, assert_same_bits, every_isa, noise, scalars,
};
use super::super::{CpuOptions, operation};
use super::{FEATURES as F, HIDDEN as E};
use crate::backend::Backend;
use crate::plan::{
    BufferId, Extent, ParamRange, Slice, StreamBlock, StreamBlockBack, StreamParams,
};
use reference::reference;
use std::ops::Range;

/// Sizes of the parameters in the order of their ranges: weights and biases of dw1, dw3, fuse,
/// proj, gate and out, and gamma.
const SIZES: [usize; 13] = [
    9 * F,
    F,
    9 * F,
    F,
    2 * F * F,
    F,
    2 * E * F,
    2 * E,
    9 * 2 * E,
    2 * E,
    E * F,
    F,
    F,
];
const NAMES: [&str; 13] = [
    "dw1.weight",
    "dw1.bias",
    "dw3.weight",
    "dw3.bias",
    "fuse.weight",
    "fuse.bias",
    "proj.weight",
    "proj.bias",
    "gate.weight",
    "gate.bias",
    "out.weight",
    "out.bias",
    "gamma",
];
/// Values before each parameter that belong to none.
const GAP: usize = 3;

fn ranges() -> [ParamRange; 13] {
    let mut at = 0;
    SIZES.map(|len| {
        at += GAP + len;
        let offset = at - len;
        ParamRange { offset, len }
    })
}

fn params() -> StreamParams {
    let r = ranges();
    StreamParams {
        dw1: [r[0], r[1]],
        dw3: [r[2], r[3]],
        fuse: [r[4], r[5]],
        proj: [r[6], r[7]],
        gate: [r[8], r[9]],
        out: [r[10], r[11]],
        gamma: r[12],
    }
}

/// Values of an extent's images.
fn values(extent: Extent) -> usize {
    extent.pixels() * F
}

/// Parameters, input and gradient of the output.
struct Case {
    extent: Extent,
    parameters: Vec<f32>,
    x: Vec<f32>,
    d_output: Vec<f32>,
}

impl Case {
    fn new(n: usize, h: usize, w: usize) -> Case {
        let extent = Extent { n, h, w };
        let all = ranges();
        let mut parameters = noise(all[12].offset + F, 1);
        // as after a start: weights within 1 / sqrt(fan-in), and products of a useful size
        for (range, scale) in all.iter().zip([
            0.33, 0.33, 0.33, 0.33, 0.2, 0.2, 0.3, 0.3, 0.5, 0.5, 0.2, 0.2, 1.0,
        ]) {
            let part = &mut parameters[range.offset..][..range.len];
            part.iter_mut().for_each(|v| *v *= scale);
        }
        Case {
            extent,
            parameters,
            x: activation(extent.pixels(), F, F, 2),
            d_output: activation(extent.pixels(), F, F, 3),
        }
    }

    fn parameter(&self, number: usize) -> Vec<f64> {
        let ParamRange { offset, len } = ranges()[number];
        f64s(&self.parameters[offset..][..len])
    }
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// What a block and its backward pass give.
struct Outcome<T> {
    output: Vec<T>,
    d_input: Vec<T>,
    /// One for each of [`NAMES`].
    gradients: Vec<Vec<T>>,
}

/// The buffers of a loaded case.
struct Buffers {
    output: BufferId,
    d_input: BufferId,
    gradients: BufferId,
}

/// Loads the forward pass of a case, and the backward pass if asked for, in parts of that many
/// images.
fn load(case: &Case, options: &CpuOptions, parts: &[usize], backward: bool) -> (Loaded, Buffers) {
    let mut ops = Operations::new(options);
    let of = case.extent.n;
    let parameters = ops.floats(case.parameters.clone());
    let gradients = ops.output(case.parameters.len());
    let (input, d_output) = (
        ops.floats(case.x.clone()),
        ops.floats(case.d_output.clone()),
    );
    let (output, d_input) = (
        ops.output(values(case.extent)),
        ops.output(values(case.extent)),
    );
    let mut end = 0;
    let parts: Vec<Range<usize>> = parts
        .iter()
        .map(|n| {
            end += n;
            end - n..end
        })
        .collect();
    let block = |ops: &mut Operations<'_>, part: &Range<usize>| StreamBlock {
        extent: Extent {
            n: part.len(),
            ..case.extent
        },
        features: F,
        params: params(),
        parameters,
        input: ops.builder.images(input, part, of),
        output: ops.builder.images(output, part, of),
        workspace: None,
    };
    for part in &parts {
        let forward = block(&mut ops, part);
        ops.push(forward);
    }
    let slices = if backward { &parts[..] } else { &[] };
    ops.push_slices(of, slices, |ops, part, slice: Slice| {
        let forward = block(ops, &part);
        let back = StreamBlockBack {
            forward,
            gradients,
            d_output: ops.builder.images(d_output, &part, of),
            d_input: ops.builder.images(d_input, &part, of),
            slice,
            workspace: None,
        };
        back.into()
    });
    let buffers = Buffers {
        output,
        d_input,
        gradients,
    };
    (ops.load(), buffers)
}

fn outcome(loaded: &mut Loaded, buffers: &Buffers) -> Outcome<f32> {
    let gradients = loaded.read(buffers.gradients);
    let part = |r: ParamRange| gradients[r.offset..][..r.len].to_vec();
    Outcome {
        output: loaded.read(buffers.output),
        d_input: loaded.read(buffers.d_input),
        gradients: ranges().map(part).to_vec(),
    }
}

/// Loads and runs a case in parts of that many images.
fn run(case: &Case, options: &CpuOptions, parts: &[usize]) -> Outcome<f32> {
    let (mut loaded, buffers) = load(case, options, parts, true);
    loaded.backend.micro_step(&scalars(false)).unwrap();
    outcome(&mut loaded, &buffers)
}

fn assert_outcome(what: &str, got: &Outcome<f32>, expected: &Outcome<f64>) {
    assert_close(
        &format!("{what}: output"),
        &got.output,
        &expected.output,
        1e-6,
    );
    let d_input = format!("{what}: gradient of the input");
    assert_close(&d_input, &got.d_input, &expected.d_input, 2e-6);
    for ((name, got), expected) in NAMES.iter().zip(&got.gradients).zip(&expected.gradients) {
        assert_close(&format!("{what}: {name}"), got, expected, 5e-6);
    }
}

fn assert_same_outcome(what: &str, a: &Outcome<f32>, b: &Outcome<f32>) {
    assert_same_bits(what, &a.output, &b.output);
    assert_same_bits(what, &a.d_input, &b.d_input);
    for (a, b) in a.gradients.iter().zip(&b.gradients) {
        assert_same_bits(what, a, b);
    }
}

#[test]
fn stream_block_is_the_reference() {
    for (n, h, w) in [
        (2, 1, 1),
        (1, 2, 3),
        (2, 3, 6),
        (3, 7, 5),
        (1, 13, 11),
        (2, 33, 9),
        (1, 67, 2),
        (1, 4, 67),
        (1, 33, 130),
        (1, 2, 261),
    ] {
        let case = Case::new(n, h, w);
        let expected = reference(&case);
        for options in every_isa(2) {
            let got = run(&case, &options, &[n]);
            let what = format!("{n} images of {h}x{w} pixels, {}", options.isa());
            assert_outcome(&what, &got, &expected);
        }
    }
}

#[test]
fn stream_block_clamps_products_and_their_gradients() {
    let mut case = Case::new(1, 6, 9);
    let [bias, gamma] = [9, 12].map(|i| ranges()[i].offset);
    // products beyond the bound with both signs, and some about the bound
    for (channel, [a, b]) in [
        (3, [300.0, 300.0]),
        (20, [-300.0, 300.0]),
        (41, [256.0, 255.7]),
    ] {
        case.parameters[bias + channel] = a;
        case.parameters[bias + E + channel] = b;
    }
    case.parameters[gamma..][..F]
        .iter_mut()
        .for_each(|v| *v *= 1e-3);
    let expected = reference(&case);
    for options in every_isa(1) {
        let got = run(&case, &options, &[1]);
        let [got_bias, expected_bias] = [
            got.gradients[9].iter().map(|&v| f64::from(v)).collect(),
            expected.gradients[9].clone(),
        ];
        for channel in [3, 20] {
            let both: [&Vec<f64>; 2] = [&got_bias, &expected_bias];
            assert!(
                both.iter()
                    .all(|b| b[channel] == 0.0 && b[E + channel] == 0.0)
            );
        }
        assert_close("output", &got.output, &expected.output, 1e-6);
        assert_close(
            "gradient of the input",
            &got.d_input,
            &expected.d_input,
            5e-5,
        );
    }
}

#[test]
fn stream_reference_has_the_gradients_of_differences() {
    let case = Case::new(1, 5, 4);
    let expected = reference(&case);
    let loss = |case: &Case| -> f64 {
        let output = reference(case).output;
        output
            .iter()
            .zip(f64s(&case.d_output))
            .map(|(a, b)| a * b)
            .sum()
    };
    let slope = |change: &dyn Fn(&mut Case, f32)| {
        // a power of two, so that the changed f32 values are exact enough
        let step = 1.0 / 1024.0;
        let [up, down] = [step, -step].map(|step| {
            let mut changed = Case::new(1, 5, 4);
            change(&mut changed, step);
            loss(&changed)
        });
        (up - down) / (2.0 * f64::from(step))
    };
    for (number, range) in ranges().into_iter().enumerate() {
        for i in [0, range.len / 2, range.len - 1] {
            let got = slope(&|case, step| case.parameters[range.offset + i] += step);
            let expected = expected.gradients[number][i];
            let close = (got - expected).abs() <= 1e-3 * expected.abs().max(0.1);
            assert!(close, "{} {i}: {got} for {expected}", NAMES[number]);
        }
    }
    for i in [0, 100, case.x.len() - 1] {
        let got = slope(&|case, step| case.x[i] += step);
        let expected = expected.d_input[i];
        assert!((got - expected).abs() <= 1e-3 * expected.abs().max(0.1));
    }
}

#[test]
fn stream_block_has_the_same_bits_for_threads_and_slices() {
    let case = Case::new(3, 39, 10);
    for options in every_isa(1) {
        let whole = run(&case, &options, &[3]);
        for threads in [2, 5] {
            let options = CpuOptions::new(threads).with_isa(options.isa());
            let got = run(&case, &options, &[3]);
            assert_same_outcome(&format!("{threads} threads"), &got, &whole);
        }
        for parts in [&[1, 2][..], &[1, 1, 1]] {
            let got = run(&case, &options, parts);
            assert_same_outcome(&format!("slices {parts:?}"), &got, &whole);
        }
    }
}

#[test]
fn stream_block_adds_the_gradients_of_further_micro_batches() {
    let (case, options) = (Case::new(1, 4, 5), CpuOptions::new(1));
    let (mut loaded, buffers) = load(&case, &options, &[1], true);
    loaded.backend.micro_step(&scalars(false)).unwrap();
    let once = outcome(&mut loaded, &buffers);
    loaded.backend.micro_step(&scalars(true)).unwrap();
    let twice = outcome(&mut loaded, &buffers);
    for (once, twice) in once.gradients.iter().zip(&twice.gradients) {
        let doubled: Vec<f32> = once.iter().map(|v| 2.0 * v).collect();
        assert_same_bits("twice the gradient", twice, &doubled);
    }
    assert_same_bits("d input", &once.d_input, &twice.d_input);
}

#[test]
fn stream_block_has_the_same_bits_anywhere_in_an_image() {
    let forward = |case: &Case, options: &CpuOptions| {
        let (mut loaded, buffers) = load(case, options, &[1], false);
        loaded.backend.micro_step(&scalars(false)).unwrap();
        loaded.read(buffers.output)
    };
    // the tile is cut into other bands and strips than the image
    let (h, w, halo) = (37, 140, 4);
    let (y0, x0, th, tw) = (3, 5, 33, 133);
    let case = Case::new(1, h, w);
    let mut tile = Case::new(1, th, tw);
    for y in 0..th {
        let from = ((y0 + y) * w + x0) * F;
        tile.x[y * tw * F..][..tw * F].copy_from_slice(&case.x[from..][..tw * F]);
    }
    for options in every_isa(2) {
        let (whole, got) = (forward(&case, &options), forward(&tile, &options));
        for y in halo..th - halo {
            let range = |y: usize, x: usize, w: usize| {
                let start = (y * w + x) * F;
                start..start + (tw - 2 * halo) * F
            };
            assert_same_bits(
                "row of a tile",
                &got[range(y, halo, tw)],
                &whole[range(y0 + y, x0 + halo, w)],
            );
        }
    }
}

#[test]
fn stream_block_of_other_widths_is_refused() {
    let block = StreamBlock {
        extent: Extent { n: 1, h: 4, w: 4 },
        features: 48,
        params: params(),
        parameters: BufferId(0),
        input: BufferId(1),
        output: BufferId(2),
        workspace: None,
    };
    assert!(operation::check(&block.into()).is_err());
}

/// Times of both operations on the patches of a training step, as a share of the peak of
/// multiply-adds. Run with `CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo test --lib stream -- --ignored
/// --nocapture`.
#[test]
#[ignore = "a measurement"]
fn stream_block_speed() {
    let threads = 1;
    for options in every_isa(threads) {
        let case = Case::new(1, 128, 128);
        let (mut loaded, _) = load(&case, &options, &[1], true);
        let (mut best, mut counts) = ([f64::INFINITY; 2], [0.0; 2]);
        for _ in 0..8 {
            let mut at = 0;
            loaded.backend.profile(&scalars(false), &mut |op, seconds| {
                best[at] = best[at].min(seconds);
                counts[at] = op.multiply_adds() as f64;
                at += 1;
            });
        }
        let peak = super::super::fma_peak(options) / 2.0;
        let share = |count: f64, seconds: f64| 100.0 * count / seconds / peak;
        println!(
            "{}: peak {:.1} G multiply-adds/s; forward {:.2} ms, {:.1} %; backward {:.2} ms, \
             {:.1} %; both {:.1} %",
            options.isa(),
            peak / 1e9,
            best[0] * 1e3,
            share(counts[0], best[0]),
            best[1] * 1e3,
            share(counts[1], best[1]),
            share(counts[0] + counts[1], best[0] + best[1]),
        );
    }
}
