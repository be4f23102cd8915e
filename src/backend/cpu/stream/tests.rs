//! The Stream block against plain loops in f64, and its bits for threads, slices and tiles.

use super::super::tests_common::{
    Loaded, Operations, activation, assert_close, assert_same_bits, every_isa, noise, scalars,
};
use super::super::{CpuOptions, operation};
use super::rows::CLAMP;
use super::{FEATURES as F, HIDDEN as E};
use crate::backend::Backend;
use crate::plan::{
    BufferId, Extent, ParamRange, Slice, StreamBlock, StreamBlockBack, StreamParams,
};
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

/// The pixel of the image that tap `tap` of a dilated 3x3 convolution reads for pixel `p`.
fn neighbour(extent: Extent, p: usize, tap: usize, dilation: usize) -> Option<usize> {
    let Extent { h, w, .. } = extent;
    let (x, y, image) = (p % w, p / w % h, p / w / h);
    let x = (x + tap % 3 * dilation).checked_sub(dilation)?;
    let y = (y + tap / 3 * dilation).checked_sub(dilation)?;
    (x < w && y < h).then_some((image * h + y) * w + x)
}

/// A depthwise 3x3 convolution on `[pixels][c]`.
fn depthwise(extent: Extent, x: &[f64], [weight, bias]: [&[f64]; 2], dilation: usize) -> Vec<f64> {
    let c = bias.len();
    let mut out = Vec::with_capacity(x.len());
    for p in 0..extent.pixels() {
        let mut sums = bias.to_vec();
        for tap in 0..9 {
            if let Some(q) = neighbour(extent, p, tap, dilation) {
                for (k, sum) in sums.iter_mut().enumerate() {
                    *sum += weight[k * 9 + tap] * x[q * c + k];
                }
            }
        }
        out.extend(sums);
    }
    out
}

/// Gradients of [`depthwise`] with respect to x, weight and bias.
fn depthwise_back(
    extent: Extent,
    x: &[f64],
    weight: &[f64],
    dilation: usize,
    dy: &[f64],
) -> [Vec<f64>; 3] {
    let c = weight.len() / 9;
    let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; 9 * c], vec![0.0; c]);
    for p in 0..extent.pixels() {
        for k in 0..c {
            db[k] += dy[p * c + k];
        }
        for tap in 0..9 {
            if let Some(q) = neighbour(extent, p, tap, dilation) {
                for k in 0..c {
                    dx[q * c + k] += dy[p * c + k] * weight[k * 9 + tap];
                    dw[k * 9 + tap] += dy[p * c + k] * x[q * c + k];
                }
            }
        }
    }
    [dx, dw, db]
}

/// A 1x1 convolution; weight `[cout][cin]`.
fn pointwise(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let cin = weight.len() / bias.len();
    let pixel = |x: &[f64], row: &[f64]| x.iter().zip(row).map(|(x, w)| x * w).sum::<f64>();
    x.chunks_exact(cin)
        .flat_map(|x| {
            let rows = weight.chunks_exact(cin).zip(bias);
            rows.map(move |(row, bias)| bias + pixel(x, row))
        })
        .collect()
}

/// Gradients of [`pointwise`] with respect to x, weight and bias.
fn pointwise_back(x: &[f64], weight: &[f64], cout: usize, dy: &[f64]) -> [Vec<f64>; 3] {
    let cin = weight.len() / cout;
    let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; weight.len()], vec![0.0; cout]);
    for (p, dy) in dy.chunks_exact(cout).enumerate() {
        for (o, &dy) in dy.iter().enumerate() {
            db[o] += dy;
            for i in 0..cin {
                dx[p * cin + i] += dy * weight[o * cin + i];
                dw[o * cin + i] += dy * x[p * cin + i];
            }
        }
    }
    [dx, dw, db]
}

/// The block and its backward pass in plain loops.
fn reference(case: &Case) -> Outcome<f64> {
    let (extent, x, d_output) = (case.extent, f64s(&case.x), f64s(&case.d_output));
    let p: Vec<Vec<f64>> = (0..13).map(|i| case.parameter(i)).collect();
    let pair = |i: usize| [&p[i][..], &p[i + 1][..]];
    let u1 = depthwise(extent, &x, pair(0), 1);
    let u3 = depthwise(extent, &x, pair(2), 3);
    let both = u1.chunks_exact(F).zip(u3.chunks_exact(F));
    let u: Vec<f64> = both.flat_map(|(a, b)| [a, b].concat()).collect();
    let t = pointwise(&u, &p[4], &p[5]);
    let projected = pointwise(&t, &p[6], &p[7]);
    let gate = depthwise(extent, &projected, pair(8), 1);
    let bound = f64::from(CLAMP);
    let products: Vec<f64> = gate
        .chunks_exact(2 * E)
        .flat_map(|g| (0..E).map(|k| g[k] * g[E + k]))
        .collect();
    let m: Vec<f64> = products.iter().map(|v| v.clamp(-bound, bound)).collect();
    let out = pointwise(&m, &p[10], &p[11]);
    let gamma = &p[12];
    let output = (0..x.len()).map(|i| x[i] + gamma[i % F] * out[i]).collect();

    let mut d_gamma = vec![0.0; F];
    (0..x.len()).for_each(|i| d_gamma[i % F] += d_output[i] * out[i]);
    let d_out: Vec<f64> = (0..x.len()).map(|i| d_output[i] * gamma[i % F]).collect();
    let [d_m, out_weight, out_bias] = pointwise_back(&m, &p[10], F, &d_out);
    let mut d_gate = vec![0.0; gate.len()];
    for (i, &product) in products
        .iter()
        .enumerate()
        .filter(|(_, v)| v.abs() <= bound)
    {
        let (a, b) = (i / E * 2 * E + i % E, i / E * 2 * E + E + i % E);
        debug_assert_eq!(product, gate[a] * gate[b]);
        (d_gate[a], d_gate[b]) = (d_m[i] * gate[b], d_m[i] * gate[a]);
    }
    let [d_projected, gate_weight, gate_bias] =
        depthwise_back(extent, &projected, &p[8], 1, &d_gate);
    let [d_t, proj_weight, proj_bias] = pointwise_back(&t, &p[6], 2 * E, &d_projected);
    let [d_u, fuse_weight, fuse_bias] = pointwise_back(&u, &p[4], F, &d_t);
    let half = |i: usize| -> Vec<f64> {
        let pixels = d_u.chunks_exact(2 * F);
        pixels.flat_map(|u| u[i * F..][..F].to_vec()).collect()
    };
    let [d_x1, dw1_weight, dw1_bias] = depthwise_back(extent, &x, &p[0], 1, &half(0));
    let [d_x3, dw3_weight, dw3_bias] = depthwise_back(extent, &x, &p[2], 3, &half(1));
    let d_input = (0..x.len())
        .map(|i| d_output[i] + d_x1[i] + d_x3[i])
        .collect();
    Outcome {
        output,
        d_input,
        gradients: vec![
            dw1_weight,
            dw1_bias,
            dw3_weight,
            dw3_bias,
            fuse_weight,
            fuse_bias,
            proj_weight,
            proj_bias,
            gate_weight,
            gate_bias,
            out_weight,
            out_bias,
            d_gamma,
        ],
    }
}

/// The buffers of a loaded case.
struct Buffers {
    output: BufferId,
    d_input: BufferId,
    gradients: BufferId,
}

/// Loads a case, forward and backward, in these parts of its images.
fn load(case: &Case, options: &CpuOptions, parts: &[Range<usize>]) -> (Loaded, Buffers) {
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
    for part in parts {
        let forward = block(&mut ops, part);
        ops.push(forward);
    }
    ops.push_slices(of, parts, |ops, part, slice: Slice| {
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

/// Loads and runs a case.
fn run(case: &Case, options: &CpuOptions, parts: &[Range<usize>]) -> Outcome<f32> {
    let (mut loaded, buffers) = load(case, options, parts);
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
        (1, 35, 131),
        (1, 3, 261),
    ] {
        let case = Case::new(n, h, w);
        let expected = reference(&case);
        for options in every_isa(2) {
            let got = run(&case, &options, &[0..n]);
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
        let got = run(&case, &options, &[0..1]);
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
        let whole = run(&case, &options, &[0..3]);
        for threads in [2, 5] {
            let options = CpuOptions::new(threads).with_isa(options.isa());
            let got = run(&case, &options, &[0..3]);
            assert_same_outcome(&format!("{threads} threads"), &got, &whole);
        }
        for parts in [&[0..1, 1..3][..], &[0..1, 1..2, 2..3]] {
            let got = run(&case, &options, parts);
            assert_same_outcome(&format!("slices {parts:?}"), &got, &whole);
        }
    }
}

#[test]
fn stream_block_adds_the_gradients_of_further_micro_batches() {
    let (case, options) = (Case::new(1, 4, 5), CpuOptions::new(1));
    let (mut loaded, buffers) = load(&case, &options, &[0..1]);
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
    let (h, w, halo) = (45, 150, 4);
    let case = Case::new(1, h, w);
    for options in every_isa(2) {
        let whole = run(&case, &options, &[0..1]).output;
        let (y0, x0, th, tw) = (5, 7, 36, 141);
        let mut tile = Case::new(1, th, tw);
        for y in 0..th {
            let from = ((y0 + y) * w + x0) * F;
            tile.x[y * tw * F..][..tw * F].copy_from_slice(&case.x[from..][..tw * F]);
        }
        let got = run(&tile, &options, &[0..1]).output;
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
        let case = Case::new(2, 128, 128);
        let (mut loaded, _) = load(&case, &options, &[0..2]);
        let mut best = [f64::INFINITY; 2];
        for _ in 0..8 {
            let mut at = 0;
            loaded.backend.profile(&scalars(false), &mut |_, seconds| {
                best[at] = best[at].min(seconds);
                at += 1;
            });
        }
        let peak = super::super::fma_peak(options) / 2.0;
        let forward = 9920.0 * case.extent.pixels() as f64;
        println!(
            "{}: peak {:.1} G multiply-adds/s; forward {:.2} ms, {:.1} %; backward {:.2} ms, \
             {:.1} %; both {:.1} %",
            options.isa(),
            peak / 1e9,
            best[0] * 1e3,
            100.0 * forward / best[0] / peak,
            best[1] * 1e3,
            100.0 * 2.0 * forward / best[1] / peak,
            100.0 * 3.0 * forward / (best[0] + best[1]) / peak,
        );
    }
}
