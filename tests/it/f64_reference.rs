//! The CPU backend against the plain f64 reference, without files: outputs and gradients for every
//! instruction set, with shapes at the limits of its bands and vectors; u8 batches with every
//! augmentation; gradient accumulation; the optimizer over several steps; and equal bits for every
//! number of threads.

use crate::{network_common, reference};

use network_common::*;
use paragon::backend::cpu::Isa;
use paragon::backend::{Backend, Scalars};
use paragon::model::StepSpec;
use paragon::plan::LossKind;
use reference::{
    golden::relative_error,
    training::{Batch, Recipe, Schedule, Training},
};
use std::cell::Cell;

const PIXEL_KINDS: [LossKind; 3] = [LossKind::L1, LossKind::Charbonnier, LossKind::Mse];
const EVERY_LOSS: [(LossKind, f32); 5] = [
    (LossKind::L1, 0.6),
    (LossKind::Charbonnier, 0.3),
    (LossKind::Mse, 0.5),
    (LossKind::Ssim, 0.05),
    (LossKind::MsSsim, 0.08),
];

/// Largest relative error of an output: a few f32 rounding errors.
const OUTPUT: f64 = 1e-6;

/// Checks one scale over shapes (n, h, w): bands are at most 32 rows high, vectors at most 16 wide.
fn check_shapes(scale: usize, shapes: &[(usize, usize, usize)]) {
    let twin = Twin::new(scale, 40 + scale as u64);
    let mut base = twin.reference.clone();
    base.params
        .insert("detail_gain".into(), (vec![], vec![0.0]));
    let mut worst = [0f64; 3];
    for (i, &(n, h, w)) in shapes.iter().enumerate() {
        let input = noise(n * h * w * 3, i as u64);
        let expected = twin.reference.forward(&wide(&input), n, h, w);
        // The target is far from the output, so that rounding changes no sign of the L1 gradient.
        // It is on the side of the base, so that the gradient of detail_gain, a single number, is
        // not a small difference of large numbers.
        let base = base.forward(&wide(&input), n, h, w);
        let offset = |i: usize| {
            (0.25 + 0.05 * (i % 3) as f64) * if expected[i] > base[i] { -1.0 } else { 1.0 }
        };
        let target: Vec<f32> = expected
            .iter()
            .enumerate()
            .map(|(i, v)| (v + offset(i)) as f32)
            .collect();
        for isa in Isa::available() {
            let error = relative_error(
                &wide(&twin.infer(&input, (n, h, w), options(isa, 2))),
                &expected,
            );
            assert!(
                error < OUTPUT,
                "{isa} x{scale} {n}x{h}x{w}: the output is {error:e} away"
            );
            worst[0] = worst[0].max(error);
        }
        for kind in PIXEL_KINDS {
            let expected = twin.reference.gradients(
                &wide(&input),
                &wide(&target),
                n,
                h,
                w,
                reference_loss(kind),
            );
            for isa in Isa::available() {
                for direct in [false, true] {
                    let spec = StepSpec {
                        without_winograd: direct,
                        ..spec(n, (h, w), &[(kind, 1.0)], true)
                    };
                    let mut step = twin.load(&spec, options(isa, 2));
                    step.floats(&input, &target, &scalars());
                    let what = format!("{isa} x{scale} {n}x{h}x{w} {kind:?} direct {direct}");
                    let error = check_gradients(&what, &twin, &mut step, &expected);
                    worst[1 + usize::from(direct)] = worst[1 + usize::from(direct)].max(error);
                }
            }
        }
    }
    println!(
        "x{scale}: worst output {:.1e}, gradient {:.1e}, with direct convolutions {:.1e}",
        worst[0], worst[1], worst[2]
    );
}

#[test]
fn x2_matches_the_reference() {
    check_shapes(
        2,
        &[
            (1, 1, 1),
            (3, 1, 7),
            (1, 9, 1),
            (3, 6, 17),
            (1, 33, 19),
            (1, 70, 5),
            (1, 2, 50),
        ],
    );
}

#[test]
fn x3_matches_the_reference() {
    check_shapes(3, &[(1, 1, 1), (3, 5, 6), (1, 33, 7), (1, 3, 35)]);
}

#[test]
fn x4_matches_the_reference() {
    check_shapes(4, &[(1, 1, 1), (3, 4, 5), (1, 33, 3), (1, 2, 17)]);
}

#[test]
fn x8_matches_the_reference() {
    check_shapes(8, &[(1, 1, 1), (2, 3, 4), (1, 5, 2)]);
}

/// The image after flipping and rotating it step by step.
fn turn(code: u8, picture: &[u8], size: usize) -> Vec<u8> {
    let mut rows: Vec<Vec<[u8; 3]>> = picture
        .chunks_exact(size * 3)
        .map(|row| row.as_chunks().0.to_vec())
        .collect();
    if code & 1 != 0 {
        rows.iter_mut().for_each(|row| row.reverse());
    }
    if code & 2 != 0 {
        rows.reverse();
    }
    if code & 4 != 0 {
        rows = (0..size)
            .map(|y| (0..size).map(|x| rows[x][y]).collect())
            .collect();
    }
    rows.into_iter().flatten().flatten().collect()
}

#[test]
fn every_augmentation_is_that_of_pictures_turned_by_hand() {
    let size = 9;
    let codes: Vec<u8> = (0..8).collect();
    let n = codes.len();
    for scale in [2, 3] {
        let twin = Twin::new(scale, 7);
        let lq = bytes(n * size * size * 3, 1);
        let turned = |pictures: &[u8], size: usize| -> Vec<u8> {
            pictures
                .chunks_exact(size * size * 3)
                .zip(&codes)
                .flat_map(|(p, &code)| turn(code, p, size))
                .collect()
        };
        let lq_turned = turned(&lq, size);
        let input = unit(&lq_turned);
        let output = twin.reference.forward(&input, n, size, size);
        // A target so far from every output value that rounding does not change the gradient of L1
        // or Charbonnier.
        let pick = |seed| {
            let hr = bytes(output.len(), seed);
            let turned = turned(&hr, size * scale);
            let clear = output
                .iter()
                .zip(unit(&turned))
                .all(|(p, t)| (p - t).abs() > 2e-5);
            clear.then_some((hr, turned))
        };
        let (hr, hr_turned) = (2..50)
            .find_map(pick)
            .expect("one of many targets is clear of the output");
        let target = unit(&hr_turned);
        for isa in Isa::available() {
            for kind in PIXEL_KINDS {
                let expected =
                    twin.reference
                        .gradients(&input, &target, n, size, size, reference_loss(kind));
                let mut step = twin.load(
                    &spec(n, (size, size), &[(kind, 1.0)], false),
                    options(isa, 2),
                );
                step.bytes(&lq, &hr, &codes, &scalars());
                check_gradients(
                    &format!("{isa} x{scale} {kind:?}, augmented"),
                    &twin,
                    &mut step,
                    &expected,
                );
            }
            // With all losses at once, the bits are the same as for images that were stored turned;
            // floats are subtracted after rounding.
            let mut results = Vec::new();
            for way in 0..3 {
                let mut step = twin.load(
                    &spec(n, (size, size), &EVERY_LOSS, way == 2),
                    options(isa, 2),
                );
                match way {
                    0 => step.bytes(&lq, &hr, &codes, &scalars()),
                    1 => step.bytes(&lq_turned, &hr_turned, &[], &scalars()),
                    _ => {
                        let as_stored = |bytes: &[u8]| {
                            bytes
                                .iter()
                                .map(|&b| f32::from(b) / 255.0)
                                .collect::<Vec<f32>>()
                        };
                        step.floats(&as_stored(&lq_turned), &as_stored(&hr_turned), &scalars());
                    }
                }
                results.push((step.loss(), step.gradients()));
            }
            let [stored, turned, floats] = [0, 1, 2].map(|way: usize| &results[way]);
            assert!(
                stored.0.to_bits() == turned.0.to_bits() && bits(&stored.1) == bits(&turned.1),
                "{isa} x{scale}: turned images differ from augmentation codes"
            );
            assert!(
                (floats.0 - stored.0).abs() < 1e-6 * stored.0,
                "{isa} x{scale}: loss {} of floats, {} of bytes",
                floats.0,
                stored.0
            );
            let stored = wide(&stored.1);
            let (error, name) = twin.worst(&floats.1, |name| {
                let range = twin.table.get(name).unwrap().range;
                &stored[range.offset..][..range.len]
            });
            println!("{isa} x{scale}: floats against bytes, worst gradient {error:.1e} ({name})");
            // MS-SSIM does not depend on a constant added to an image: sums of its gradient cancel
            // and keep few correct bits.
            assert!(
                error < 1e-4,
                "{isa} x{scale}: the gradient of {name} differs by {error:e} between floats and bytes"
            );
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn micro_batches_add_up_to_the_large_batch() {
    let twin = Twin::new(2, 5);
    // A power of two, so that 1 / k is exact. MS-SSIM does not depend on a constant added to an
    // image, so sums of its gradient cancel and would amplify a rounding error of the factor.
    let (size, micro, k) = (12, 2, 4);
    let (lq, hr) = (
        bytes(k * micro * size * size * 3, 3),
        bytes(k * micro * size * size * 12, 4),
    );
    let losses = EVERY_LOSS
        .map(|loss| vec![loss])
        .into_iter()
        .chain([EVERY_LOSS.to_vec()]);
    for losses in losses {
        let mut whole = twin.load(
            &spec(k * micro, (size, size), &losses, false),
            options(Isa::detect(), 2),
        );
        whole.bytes(&lq, &hr, &[], &scalars());
        let mut parts = twin.load(
            &spec(micro, (size, size), &losses, false),
            options(Isa::detect(), 2),
        );
        // Twice, because the first micro-batch of an iteration must discard the gradients of the
        // previous iteration.
        for i in 0..2 * k {
            let scalars = Scalars {
                micro_scale: 1.0 / k as f32,
                loss_scale: 1.0,
                accumulate: i % k > 0,
                ..scalars()
            };
            let (a, b) = (lq.len() / k, hr.len() / k);
            parts.bytes(&lq[i % k * a..][..a], &hr[i % k * b..][..b], &[], &scalars);
        }
        let (a, b) = (parts.loss(), whole.loss());
        assert!((a - b).abs() < 1e-6 * b, "{losses:?}: loss {a} for {b}");
        let whole = wide(&whole.gradients());
        let gradients = parts.gradients();
        let range = |name: &str| twin.table.get(name).unwrap().range;
        let (error, name) = twin.worst(&gradients, |name| {
            &whole[range(name).offset..][..range(name).len]
        });
        println!(
            "{losses:?}: loss {:.1e}, worst gradient {error:.1e}",
            (a - b).abs() / b
        );
        assert!(
            error < 1e-5,
            "{losses:?}: the gradient of {name} is {error:e} away"
        );
    }
}

#[test]
fn a_trajectory_follows_the_reference() {
    let (size, batch, accum, steps) = (8, 2, 2, 8);
    let recipe = Recipe {
        lr: 1e-3,
        betas: (0.9, 0.99),
        eps: 1e-8,
        weight_decay: 1e-2,
        warmup: 3,
        schedule: Schedule::MultiStep {
            milestones: vec![5],
            gamma: 0.5,
        },
        clip: Some(0.02),
        ema_decay: 0.6,
        ema_power: 0.75,
    };
    let schedule = paragon::train::Schedule {
        base_lr: recipe.lr,
        warmup: recipe.warmup as u64,
        decay: paragon::train::Decay::MultiStep {
            milestones: vec![5],
            gamma: 0.5,
        },
    };
    for kind in [LossKind::Mse, LossKind::L1] {
        let twin = Twin::new(2, 11);
        let mut training = Training::new(twin.reference.clone(), recipe.clone());
        let mut step = twin.load(
            &spec(batch, (size, size), &[(kind, 1.0)], false),
            options(Isa::detect(), 2),
        );
        let mut worst = [0f64; 2];
        let mut clipped = 0;
        let nearest = Cell::new(f64::INFINITY);
        for i in 1..=steps {
            let scalars = |micro: usize| Scalars {
                lr: schedule.lr(i),
                step: i,
                clip: recipe.clip.unwrap(),
                ema_decay: paragon::train::ema_decay(i, recipe.ema_decay, recipe.ema_power),
                micro_scale: 1.0 / accum as f32,
                loss_scale: 1.0,
                accumulate: micro > 0,
            };
            let mut batches = Vec::new();
            for micro in 0..accum {
                let seed = 100 * i + micro as u64;
                let (lq, hr) = (
                    bytes(batch * size * size * 3, seed),
                    bytes(batch * size * size * 12, seed + 50),
                );
                step.bytes(&lq, &hr, &[], &scalars(micro));
                batches.push(Batch {
                    n: batch,
                    h: size,
                    w: size,
                    input: unit(&lq),
                    target: unit(&hr),
                });
            }
            step.backend.update(&scalars(0)).unwrap();
            let report = training.step_with(&batches, |output, target| {
                nearest.set(
                    output
                        .iter()
                        .zip(target)
                        .map(|(p, t)| (p - t).abs())
                        .fold(nearest.get(), f64::min),
                );
                reference_loss(kind).evaluate(output, target)
            });
            let metrics = step.backend.metrics().unwrap();
            assert!(!metrics.skipped);
            worst[0] = worst[0].max((metrics.loss - report.loss).abs() / report.loss);
            worst[1] =
                worst[1].max((metrics.grad_norm - report.grad_norm).abs() / report.grad_norm);
            assert!((schedule.lr(i) - report.lr).abs() < 1e-12 * report.lr);
            clipped += u64::from(report.grad_norm > recipe.clip.unwrap());
        }
        let (params, name) = twin.worst(&step.parameters(), |name| training.network.param(name));
        let (ema, _) = twin.worst(&step.ema(), |name| of(&training.ema, name));
        println!(
            "{kind:?}: loss {:.1e}, gradient norm {:.1e}, parameters {params:.1e} ({name}), EMA {ema:.1e}; {clipped} of {steps} clipped, nearest |p - t| {:.1e}",
            worst[0],
            worst[1],
            nearest.get()
        );
        assert!(
            kind != LossKind::L1 || nearest.get() > 1e-6,
            "choose another seed: an L1 sign hangs on rounding"
        );
        assert!(
            0 < clipped && clipped < steps,
            "the clip must act at some iterations and not at others"
        );
        assert!(worst[0] < 1e-6 && worst[1] < 1e-5 && params < 1e-5 && ema < 1e-5);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (size, batch) = (40, 3); // Each image has two bands.
    let twin = Twin::new(2, 13);
    let (lq, hr) = (
        bytes(batch * size * size * 3, 1),
        bytes(batch * size * size * 12, 2),
    );
    let input: Vec<f32> = narrow(&unit(&lq));
    for isa in Isa::available() {
        let mut first = None;
        for threads in [1, 2, 5] {
            let options = options(isa, threads);
            let mut step = twin.load(&spec(batch, (size, size), &EVERY_LOSS, false), options);
            let mut losses = Vec::new();
            for i in 1..=3 {
                let scalars = |accumulate| Scalars {
                    lr: 1e-3,
                    step: i,
                    clip: 0.5,
                    ema_decay: 0.5,
                    micro_scale: 0.5,
                    loss_scale: 1.0,
                    accumulate,
                };
                step.bytes(&lq, &hr, &[0, 3, 6], &scalars(false));
                step.bytes(&lq, &hr, &[5, 0, 7], &scalars(true));
                step.backend.update(&scalars(false)).unwrap();
                let metrics = step.backend.metrics().unwrap();
                losses.push((metrics.loss.to_bits(), metrics.grad_norm.to_bits()));
            }
            let [moment1, moment2] = step.moments();
            let all = [
                step.gradients(),
                step.parameters(),
                step.ema(),
                moment1,
                moment2,
                twin.infer(&input, (batch, size, size), options),
            ];
            let result = (losses, all.map(|values| bits(&values)));
            assert!(
                first.get_or_insert_with(|| result.clone()) == &result,
                "{isa}: {threads} threads give other bits than one"
            );
        }
    }
}
