//! Checks the f64 reference network, with which other tests compare: by central finite differences,
//! which need no file, and against golden numbers if the shared folder exists.

use crate::reference;

use reference::{
    Gradients, Loss, Parameters, Reference, base_taps, erf,
    golden::{self, recipe_of, relative_error},
    trainable,
    training::{Batch, Schedule, Training},
};

/// Pseudorandom numbers in 0..1, the same on every machine.
fn noise(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x2545_f491_4f6c_dd1d);
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64
        })
        .collect()
}

#[test]
fn erf_matches_known_values() {
    // correctly rounded from a 30-digit evaluation
    let known = [
        (0.0, 0.0),
        (1e-10, 1.1283791670955126e-10),
        (0.1, 0.1124629160182849),
        (0.5, 0.5204998778130465),
        (1.0, 0.8427007929497149),
        (2.0, 0.9953222650189527),
        (2.5, 0.999593047982555),
        (3.0, 0.9999779095030014),
        (4.0, 0.9999999845827421),
        (7.0, 1.0),
    ];
    for (x, expected) in known {
        assert!(
            (erf::erf(x) - expected).abs() <= 4e-16 * expected,
            "erf({x}) = {:e}",
            erf::erf(x)
        );
        assert_eq!(erf::erf(-x), -erf::erf(x));
    }
    // The two branches give the same value where they join.
    assert!((erf::erf(2.5 - 1e-12) - erf::erf(2.5)).abs() < 5e-15);
    for z in [-6.0, -1.0, -0.1, 0.0, 0.3, 2.0, 9.0] {
        let slope = (erf::gelu(z + 1e-5) - erf::gelu(z - 1e-5)) / 2e-5;
        assert!((slope - erf::gelu_slope(z)).abs() < 1e-9);
    }
}

/// Compares analytic gradients with central differences for some entries of every parameter and of
/// the input.
fn check_differences(network: &Reference, n: usize, h: usize, w: usize, loss: Loss) {
    let s = network.scale;
    let input = noise(n * h * w * 3, 1);
    // The target is so far from the output that no difference crosses the kink of L1.
    let offset = |i: usize| if i.is_multiple_of(3) { -0.25 } else { 0.35 };
    let output = network.forward(&input, n, h, w);
    let target: Vec<f64> = output
        .iter()
        .enumerate()
        .map(|(i, v)| v + offset(i))
        .collect();
    assert_eq!(output.len(), n * h * s * w * s * 3);
    let Gradients {
        params,
        input: input_grad,
        output: same,
        loss: value,
    } = network.gradients(&input, &target, n, h, w, loss);
    assert_eq!(same, output);
    assert_eq!(value, loss.evaluate(&output, &target).0);
    assert_eq!(
        params.len(),
        network.params.keys().filter(|name| trainable(name)).count()
    );

    let step = 1e-4;
    let loss_of = |network: &Reference, input: &[f64]| {
        loss.evaluate(&network.forward(input, n, h, w), &target).0
    };
    let mut largest = 0f64;
    let mut compare = |name: &str, analytic: f64, plus: f64, minus: f64, scale: f64| {
        let error = (analytic - (plus - minus) / (2.0 * step)).abs() / scale;
        assert!(
            error < 1e-6,
            "{name}: analytic {analytic:e}, differences {:e}",
            (plus - minus) / (2.0 * step)
        );
        largest = largest.max(error);
    };
    for (name, grad) in &params {
        let size = grad.iter().fold(1e-6f64, |m, g| m.max(g.abs()));
        let stride = grad.len().div_ceil(5);
        for j in (0..grad.len()).step_by(stride) {
            let mut moved = network.clone();
            moved.params.get_mut(name).unwrap().1[j] += step;
            let plus = loss_of(&moved, &input);
            moved.params.get_mut(name).unwrap().1[j] -= 2.0 * step;
            compare(name, grad[j], plus, loss_of(&moved, &input), size);
        }
    }
    let size = input_grad.iter().fold(0f64, |m, g| m.max(g.abs()));
    for j in (0..input.len()).step_by(7) {
        let mut moved = input.clone();
        moved[j] += step;
        let plus = loss_of(network, &moved);
        moved[j] -= 2.0 * step;
        compare("input", input_grad[j], plus, loss_of(network, &moved), size);
    }
    println!("{loss:?} x{s} {n}x{h}x{w}: gradients differ by {largest:.1e} of their largest entry");
}

#[test]
fn gradients_match_finite_differences() {
    check_differences(&Reference::random(2, 3), 1, 4, 5, Loss::L1);
    check_differences(
        &Reference::sized(3, 4, 2, 0.4, 5),
        2,
        5,
        3,
        Loss::Charbonnier,
    );
    check_differences(&Reference::sized(4, 5, 1, 0.0, 7), 1, 2, 7, Loss::Mse);
    check_differences(&Reference::sized(1, 3, 1, 0.3, 9), 1, 1, 1, Loss::Mse);
}

#[test]
fn losses_at_the_kink() {
    let (value, grad) = Loss::L1.evaluate(&[0.5, 0.5], &[0.5, 0.25]);
    assert_eq!((value, grad), (0.125, vec![0.0, 0.5]));
    let (value, grad) = Loss::Charbonnier.evaluate(&[0.5], &[0.5]);
    assert_eq!((value, grad), (1e-6, vec![0.0]));
}

#[test]
fn learning_rate_and_average_follow_their_closed_forms() {
    let mut recipe = recipe_of(&serde_json::json!({
        "lr": 1.0, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.0, "warmup_iter": 4, "milestones": [6, 8], "gamma": 0.5,
        "grad_clip_max_norm": null, "ema_decay": 0.7, "ema_power": 0.75
    }));
    let rates: Vec<f64> = (1..=9).map(|i| recipe.lr_at(i)).collect();
    assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25]);
    recipe.warmup = 0;
    recipe.schedule = Schedule::Cosine {
        period: 10,
        floor: 0.2,
    };
    for (i, expected) in [(1, 1.0), (6, 0.6), (11, 0.2), (12, 0.2)] {
        assert!((recipe.lr_at(i) - expected).abs() < 1e-15);
    }
    assert_eq!(recipe.ema_at(1), 0.0);
    assert_eq!(recipe.ema_at(2), 1.0 - 2f64.powf(-0.75));
    assert_eq!(recipe.ema_at(100), 0.7);
}

#[test]
fn agrees_with_golden_networks() {
    for scale in [2, 4] {
        for shape in ["1x33x17", "2x20x28"] {
            let file = format!("realtime_x{scale}_{shape}.safetensors");
            let Some(golden) = golden::open("agrees_with_golden_networks", &file) else {
                continue;
            };
            let network = Reference::from_params(0.3, golden.parameters("param."));
            assert_eq!(
                (network.scale, network.features, network.blocks),
                (scale, 16, 3)
            );
            for (name, (shape, taps)) in base_taps() {
                assert_eq!(network.params[&name], (shape, taps), "{name}");
            }
            let (n, h, w, input) = golden.picture("input");
            let (_, _, _, target) = golden.picture("target");
            let (_, _, _, output) = golden.picture("output");
            let got = network.gradients(&input, &target, n, h, w, Loss::L1);
            let error = relative_error(&got.output, &output);
            assert!(error < 1e-6, "{file}: output differs by {error:e}");
            let loss_error = (got.loss - golden.tensor("loss.l1").1[0]).abs() / got.loss;
            let charbonnier = Loss::Charbonnier.evaluate(&got.output, &target).0;
            let charbonnier_error =
                (charbonnier - golden.tensor("loss.charbonnier").1[0]).abs() / charbonnier;
            assert!(
                loss_error < 1e-6 && charbonnier_error < 1e-6,
                "{file}: {loss_error:e} {charbonnier_error:e}"
            );
            let expected: Parameters = golden.parameters("grad.");
            assert_eq!(
                expected.keys().collect::<Vec<_>>(),
                got.params.keys().collect::<Vec<_>>()
            );
            let mut worst = (0f64, "");
            for (name, grad) in &got.params {
                let error = relative_error(grad, &expected[name].1);
                assert!(
                    error < 1e-5,
                    "{file}: gradient of {name} differs by {error:e}"
                );
                worst = if error > worst.0 {
                    (error, name)
                } else {
                    worst
                };
            }
            let (_, _, _, expected) = golden.picture("grad_input");
            let input_error = relative_error(&got.input, &expected);
            assert!(
                input_error < 1e-5,
                "{file}: grad_input differs by {input_error:e}"
            );
            println!(
                "{file}: output {error:.1e}, l1 {loss_error:.1e}, charbonnier {charbonnier_error:.1e}, \
                 grad_input {input_error:.1e}, worst gradient {:.1e} ({})",
                worst.0, worst.1
            );
        }
    }
}

/// Runs a golden trajectory and compares every step and both final states.
fn follow(
    test: &str,
    file: &str,
    loss: impl Fn(&[f64], &[f64], (usize, usize)) -> (f64, Vec<f64>),
) {
    let Some(golden) = golden::open(test, file) else {
        return;
    };
    let config = golden.config();
    let accum = config["accum_iter"].as_u64().unwrap() as usize;
    let steps = config["steps"].as_u64().unwrap() as usize;
    let network = Reference::from_params(0.3, golden.parameters("param_init."));
    let scale = network.scale;
    let mut training = Training::new(network, recipe_of(&config));
    let (losses, norms, rates) = (
        golden.tensor("loss").1,
        golden.tensor("grad_norm").1,
        golden.tensor("lr").1,
    );
    let mut worst = [0f64; 3];
    for step in 0..steps {
        let batches: Vec<Batch> = (step * accum..(step + 1) * accum)
            .map(|i| {
                let unit = |name: String| {
                    let (shape, values) = golden.tensor(&name);
                    (
                        shape,
                        values.iter().map(|v| v / 255.0).collect::<Vec<f64>>(),
                    )
                };
                let (shape, input) = unit(format!("lq.{i}"));
                Batch {
                    n: shape[0],
                    h: shape[1],
                    w: shape[2],
                    input,
                    target: unit(format!("hr.{i}")).1,
                }
            })
            .collect();
        let size = (batches[0].h * scale, batches[0].w * scale);
        let report = training.step_with(&batches, |output, target| loss(output, target, size));
        for (slot, (got, expected)) in [
            (report.loss, losses[step]),
            (report.grad_norm, norms[step]),
            (report.lr, rates[step]),
        ]
        .into_iter()
        .enumerate()
        {
            let error = (got - expected).abs() / expected.abs();
            assert!(
                error < 1e-5,
                "{file} step {step}, value {slot}: {got:e} for {expected:e}"
            );
            worst[slot] = worst[slot].max(error);
        }
    }
    let mut finals = [0f64; 2];
    for (slot, prefix) in ["param_final.", "ema_final."].into_iter().enumerate() {
        for (name, (_, expected)) in golden.parameters(prefix) {
            let got = if slot == 0 {
                training.network.param(&name)
            } else {
                &training.ema[&name]
            };
            let error = relative_error(got, &expected);
            assert!(error < 1e-5, "{file}: {prefix}{name} differs by {error:e}");
            finals[slot] = finals[slot].max(error);
        }
    }
    println!(
        "{file}: loss {:.1e}, gradient norm {:.1e}, lr {:.1e}, final parameters {:.1e}, EMA {:.1e}",
        worst[0], worst[1], worst[2], finals[0], finals[1]
    );
}

#[test]
fn follows_the_golden_trajectory() {
    for file in [
        "train_realtime_x2_first2.safetensors",
        "train_realtime_x2.safetensors",
    ] {
        follow("follows_the_golden_trajectory", file, |p, t, _| {
            Loss::L1.evaluate(p, t)
        });
    }
}

#[test]
fn follows_the_golden_trajectory_with_accumulation() {
    for file in [
        "train_realtime_x2_accum_first1.safetensors",
        "train_realtime_x2_accum.safetensors",
    ] {
        follow(
            "follows_the_golden_trajectory_with_accumulation",
            file,
            |p, t, _| Loss::L1.evaluate(p, t),
        );
    }
}
