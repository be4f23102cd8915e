//! The composition and its chain rule against plain loops in f64, which finite differences check.

use super::super::CpuOptions;
use super::super::operation::CpuOperation;
use super::super::tests_common::{
    Operations, assert_close, assert_same_bits, every_isa, noise, scalars,
};
use crate::backend::Backend;
use crate::plan::{BufferId, ComposeConv, ComposeConvBack, ComposeParams, ParamRange};

/// Where the eight tensors begin, with something between them, and the number of all parameters.
fn params(a: usize, b: usize) -> (ComposeParams, usize) {
    let mut at = 5;
    let mut pair = |weight: usize, bias: usize| {
        [weight, bias].map(|len| {
            let range = ParamRange { offset: at, len };
            at += len + 3;
            range
        })
    };
    let params = ComposeParams {
        last: pair(2 * b * b, b),
        skip: pair(a * b, b),
        middle: pair(36 * a * b, 2 * b),
        first: pair(2 * a * a, 2 * a),
    };
    (params, at)
}

fn operation(a: usize, b: usize, parameters: BufferId, output: BufferId) -> ComposeConv {
    ComposeConv {
        cin: a,
        cout: b,
        params: params(a, b).0,
        parameters,
        output,
        workspace: None,
    }
}

fn of(values: &[f64], range: ParamRange) -> &[f64] {
    &values[range.offset..][..range.len]
}

/// `through[o][k][t]`, see the module.
fn through(a: usize, b: usize, values: &[f64]) -> Vec<f64> {
    let p = params(a, b).0;
    let (last, middle) = (of(values, p.last[0]), of(values, p.middle[0]));
    let row = 18 * a;
    let mut out = vec![0.0; b * row];
    for (o, m) in (0..b).flat_map(|o| (0..2 * b).map(move |m| (o, m))) {
        for n in 0..row {
            out[o * row + n] += last[o * 2 * b + m] * middle[m * row + n];
        }
    }
    out
}

/// The composed kernel, then the bias.
fn plain(a: usize, b: usize, values: &[f64]) -> Vec<f64> {
    let (p, through) = (params(a, b).0, through(a, b, values));
    let (first, fb) = (of(values, p.first[0]), of(values, p.first[1]));
    let (last, mb) = (of(values, p.last[0]), of(values, p.middle[1]));
    let mut out = vec![0.0; 9 * a * b + b];
    for o in 0..b {
        let mut bias = of(values, p.last[1])[o] + of(values, p.skip[1])[o];
        bias += (0..2 * b).map(|m| last[o * 2 * b + m] * mb[m]).sum::<f64>();
        for (k, t) in (0..2 * a).flat_map(|k| (0..9).map(move |t| (k, t))) {
            let x = through[(o * 2 * a + k) * 9 + t];
            bias += fb[k] * x;
            for i in 0..a {
                out[(o * a + i) * 9 + t] += first[k * a + i] * x;
            }
        }
        for i in 0..a {
            out[(o * a + i) * 9 + 4] += of(values, p.skip[0])[o * a + i];
        }
        out[9 * a * b + o] = bias;
    }
    out
}

/// The gradients of all parameters.
fn plain_back(a: usize, b: usize, values: &[f64], d: &[f64]) -> Vec<f64> {
    let (p, through) = (params(a, b).0, through(a, b, values));
    let mut out = vec![0.0; values.len()];
    let (first, fb) = (of(values, p.first[0]), of(values, p.first[1]));
    let (last, middle) = (of(values, p.last[0]), of(values, p.middle[0]));
    let mb = of(values, p.middle[1]);
    let row = 18 * a;
    for o in 0..b {
        let d_bias = d[9 * a * b + o];
        out[p.last[1].offset + o] += d_bias;
        out[p.skip[1].offset + o] += d_bias;
        let mut d_through = vec![0.0; row];
        for (k, t) in (0..2 * a).flat_map(|k| (0..9).map(move |t| (k, t))) {
            let x = through[o * row + k * 9 + t];
            d_through[k * 9 + t] += d_bias * fb[k];
            out[p.first[1].offset + k] += d_bias * x;
            for i in 0..a {
                let d = d[(o * a + i) * 9 + t];
                d_through[k * 9 + t] += d * first[k * a + i];
                out[p.first[0].offset + k * a + i] += d * x;
            }
        }
        for i in 0..a {
            out[p.skip[0].offset + o * a + i] += d[(o * a + i) * 9 + 4];
        }
        for m in 0..2 * b {
            let weight = last[o * 2 * b + m];
            out[p.middle[1].offset + m] += weight * d_bias;
            let mut d_last = d_bias * mb[m];
            for (n, d) in d_through.iter().enumerate() {
                d_last += d * middle[m * row + n];
                out[p.middle[0].offset + m * row + n] += weight * d;
            }
            out[p.last[0].offset + o * 2 * b + m] += d_last;
        }
    }
    out
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn the_plain_gradients_are_the_differences() {
    const H: f64 = 1e-4;
    for (a, b) in [(1, 1), (3, 2), (2, 3)] {
        let mut values = wide(&noise(params(a, b).1, 1));
        let d = wide(&noise(9 * a * b + b, 2));
        let gradients = plain_back(a, b, &values, &d);
        for i in 0..values.len() {
            let at = values[i];
            let [above, below] = [at + H, at - H].map(|x| {
                values[i] = x;
                let out = plain(a, b, &values);
                out.iter().zip(&d).map(|(x, d)| x * d).sum::<f64>()
            });
            values[i] = at;
            let difference = (above - below) / (2.0 * H);
            assert!(
                (difference - gradients[i]).abs() < 1e-8,
                "{a} to {b}: parameter {i}"
            );
        }
    }
}

/// The composed kernel and bias, and the gradients after the forward and the backward pass.
fn run(a: usize, b: usize, options: &CpuOptions, add: bool) -> [Vec<f32>; 2] {
    let mut ops = Operations::new(options);
    let count = params(a, b).1;
    let parameters = ops.floats(noise(count, 1));
    let gradients = ops.floats(vec![0.5; count]);
    let output = ops.output(9 * a * b + b);
    let d_output = ops.floats(noise(9 * a * b + b, 2));
    let forward = operation(a, b, parameters, output);
    ops.push(forward.clone());
    ops.push(ComposeConvBack {
        forward,
        d_output,
        gradients,
        workspace: None,
    });
    let mut loaded = ops.load();
    loaded.backend.micro_step(&scalars(add)).unwrap();
    [output, gradients].map(|id| loaded.read(id))
}

#[test]
fn compositions_are_those_of_f64_rounded_once_and_gradients_are_close() {
    for (a, b) in [(1, 1), (3, 5), (3, 48), (13, 9), (20, 52), (16, 8)] {
        let (ranges, count) = params(a, b);
        let values = wide(&noise(count, 1));
        let composed = plain(a, b, &values);
        let gradients = plain_back(a, b, &values, &wide(&noise(9 * a * b + b, 2)));
        let largest = composed.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        for (options, add) in every_isa(1).flat_map(|o| [false, true].map(|add| (o, add))) {
            let what = format!("{a} to {b} channels, {}, add {add}", options.isa());
            let [output, found] = run(a, b, &options, add);
            for (i, (&got, &exact)) in output.iter().zip(&composed).enumerate() {
                let error = (f64::from(got) - exact).abs();
                let bound = 5.97e-8 * exact.abs() + 1e-14 * largest;
                assert!(error <= bound, "{what}: value {i} is {got} for {exact}");
            }
            let mut untouched = vec![true; count];
            let pairs = [ranges.skip, ranges.first, ranges.middle, ranges.last];
            for range in pairs.into_iter().flatten() {
                let place = range.offset..range.offset + range.len;
                untouched[place.clone()].fill(false);
                let before = if add { 0.5 } else { 0.0 };
                let expected: Vec<f64> = gradients[place.clone()]
                    .iter()
                    .map(|g| g + before)
                    .collect();
                assert_close(
                    &format!("{what}, {range:?}"),
                    &found[place],
                    &expected,
                    1e-6,
                );
            }
            let rest = found
                .iter()
                .zip(&untouched)
                .filter(|(_, untouched)| **untouched);
            rest.for_each(|(&value, _)| assert_eq!(value, 0.5, "{what}"));
            for threads in [2, 5] {
                let options = CpuOptions::new(threads).with_isa(options.isa());
                let [other_output, other] = run(a, b, &options, add);
                assert_same_bits(&what, &output, &other_output);
                assert_same_bits(&what, &found, &other);
            }
        }
    }
}

#[test]
fn tensors_of_other_sizes_are_refused() {
    let id = BufferId(0);
    assert!(CpuOperation::check(&operation(3, 48, id, id)).is_ok());
    let too_many = ComposeConv {
        cin: 5000,
        ..operation(3, 48, id, id)
    };
    assert!(CpuOperation::check(&too_many).is_err());
    let other = ComposeConv {
        cout: 47,
        ..operation(3, 48, id, id)
    };
    assert!(CpuOperation::check(&other).is_err());
}

/// Times of the two operations with the channels of SPAN.
#[test]
#[ignore = "a measurement"]
fn times() {
    for options in every_isa(1).chain(every_isa(2)) {
        let (a, b) = (48, 48);
        let mut ops = Operations::new(&options);
        let count = params(a, b).1;
        let parameters = ops.floats(noise(count, 1));
        let gradients = ops.floats(vec![0.0; count]);
        let output = ops.output(9 * a * b + b);
        let d_output = ops.floats(noise(9 * a * b + b, 2));
        let forward = operation(a, b, parameters, output);
        ops.push(forward.clone());
        ops.push(ComposeConvBack {
            forward,
            d_output,
            gradients,
            workspace: None,
        });
        let mut loaded = ops.load();
        let mut best = [f64::INFINITY; 2];
        for _ in 0..500 {
            let mut at = 0;
            loaded.backend.profile(&scalars(true), &mut |_, seconds| {
                best[at] = best[at].min(seconds);
                at += 1;
            });
        }
        println!(
            "{}, {} threads: {:.1} us, {:.1} us",
            options.isa(),
            options.threads(),
            best[0] * 1e6,
            best[1] * 1e6
        );
    }
}
