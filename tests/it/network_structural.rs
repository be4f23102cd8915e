//! The structural losses as part of a step: gradients of every parameter against the f64 reference,
//! which uses finite differences of the plain similarity, with and without pixel losses; and a NaN,
//! which must skip the update.

use crate::{network_common, reference};

use network_common::*;
use paragon::backend::Backend;
use paragon::backend::cpu::Isa;
use paragon::plan::LossKind;
use reference::{Reference, similarity};

/// The weighted losses of a batch [n, h, w, 3].
fn batch_loss(
    losses: &[(LossKind, f32)],
    output: &[f64],
    target: &[f64],
    (n, h, w): (usize, usize, usize),
) -> f64 {
    let image = h * w * 3;
    let term = |kind| {
        let mean_score = |score: &dyn Fn(&[f64], &[f64]) -> f64| {
            output
                .chunks_exact(image)
                .zip(target.chunks_exact(image))
                .map(|(p, t)| score(p, t))
                .sum::<f64>()
                / n as f64
        };
        match kind {
            LossKind::Ssim => 1.0 - mean_score(&|p, t| similarity::ssim(p, t, h, w)),
            LossKind::MsSsim => {
                1.0 - mean_score(&|p, t| similarity::multi_scale(p, t, h, w, false))
            }
            pixel => reference_loss(pixel).evaluate(output, target).0,
        }
    };
    losses
        .iter()
        .map(|&(kind, weight)| f64::from(weight) * term(kind))
        .sum()
}

/// Input, a target near the output so that their structure correlates, and a shift that keeps every
/// difference away from 0, where the gradient of L1 changes its sign.
fn pictures(reference: &Reference, (n, h, w): (usize, usize, usize)) -> (Vec<f32>, Vec<f32>) {
    let input = noise(n * h * w * 3, 3);
    let output = reference.forward(&wide(&input), n, h, w);
    let shift = |i: usize| if i.is_multiple_of(3) { -0.12 } else { 0.15 };
    let disturbed = output.iter().zip(noise(output.len(), 4)).enumerate();
    let target = disturbed
        .map(|(i, (v, r))| (v + shift(i) + 0.1 * (f64::from(r) - 0.5)) as f32)
        .collect();
    (input, target)
}

#[test]
fn gradients_match_differences_of_the_reference() {
    let (n, h, w) = (2, 6, 7); // HR 12 x 14: one level of whole windows, four smaller than a window
    let twin = Twin::new(2, 21);
    let (input, target) = pictures(&twin.reference, (n, h, w));
    let size = (n, 2 * h, 2 * w);
    let recipes: [&[(LossKind, f32)]; 4] = [
        &[(LossKind::L1, 1.0), (LossKind::Ssim, 0.05)],
        &[(LossKind::MsSsim, 0.08), (LossKind::Mse, 0.5)],
        &[(LossKind::Ssim, 1.0)],
        &[(LossKind::MsSsim, 0.3), (LossKind::Ssim, 0.7)],
    ];
    for losses in recipes {
        let expected = twin
            .reference
            .gradients_with(&wide(&input), n, h, w, |output| {
                let target = wide(&target);
                let mut moved = output.to_vec();
                let step = 1e-6;
                let slopes = (0..output.len()).map(|i| {
                    // Each value belongs to one image only.
                    let image = 12 * h * w;
                    let range = i / image * image..(i / image + 1) * image;
                    let mut at = |value: f64| {
                        moved[i] = value;
                        batch_loss(
                            losses,
                            &moved[range.clone()],
                            &target[range.clone()],
                            (1, size.1, size.2),
                        ) / n as f64
                    };
                    let slope = (at(output[i] + step) - at(output[i] - step)) / (2.0 * step);
                    moved[i] = output[i];
                    slope
                });
                let slopes = slopes.collect();
                (batch_loss(losses, output, &target, size), slopes)
            });
        for isa in Isa::available() {
            let mut step = twin.load(&spec(n, (h, w), losses, true), options(isa, 2));
            step.floats(&input, &target, &scalars());
            let worst = check_gradients(&format!("{isa} {losses:?}"), &twin, &mut step, &expected);
            println!("{isa} {losses:?}: worst gradient {worst:.1e}");
            // The gradient is added to that of the pixel losses, not to that of the previous step.
            let (loss, gradients) = (step.loss(), step.gradients());
            step.floats(&input, &target, &scalars());
            assert!(
                step.loss() == loss && step.gradients() == gradients,
                "{isa} {losses:?}: a second run differs"
            );
        }
    }
}

#[test]
fn larger_images_match_along_a_direction() {
    let (n, h, w) = (1, 33, 24); // HR 66 x 48: three levels of whole windows, odd sizes below
    let twin = Twin::new(2, 23);
    let (input, target) = pictures(&twin.reference, (n, h, w));
    let directions: Vec<f32> = noise(twin.params.len(), 9)
        .iter()
        .zip(&twin.params)
        .map(|(r, p)| (r - 0.5) * p)
        .collect();
    for kind in [LossKind::Ssim, LossKind::MsSsim] {
        let losses = [(LossKind::Mse, 0.5), (kind, 1.0)];
        let mut step = twin.load(&spec(n, (h, w), &losses, true), options(Isa::detect(), 2));
        step.floats(&input, &target, &scalars());
        let slope: f64 = step
            .gradients()
            .iter()
            .zip(&directions)
            .map(|(&g, &d)| f64::from(g) * f64::from(d))
            .sum();
        let at = |amount: f64| {
            let mut moved = twin.reference.clone();
            for p in twin.table.params.iter().filter(|p| p.trainable) {
                let values = &mut moved.params.get_mut(&p.name).unwrap().1;
                let direction = &directions[p.range.offset..];
                values
                    .iter_mut()
                    .zip(direction)
                    .for_each(|(v, &d)| *v += amount * f64::from(d));
            }
            batch_loss(
                &losses,
                &moved.forward(&wide(&input), n, h, w),
                &wide(&target),
                (n, 2 * h, 2 * w),
            )
        };
        let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
        let error = (slope - expected).abs() / expected.abs();
        println!("{kind:?}: slope {slope:.6e}, error {error:.1e}");
        assert!(error < 1e-5, "{kind:?}: {slope:e} for {expected:e}");
        let loss = (step.loss() - at(0.0)).abs() / at(0.0);
        assert!(loss < 1e-6, "{kind:?}: the loss differs by {loss:e}");
    }
}

#[test]
fn a_nan_skips_the_update() {
    let mut twin = Twin::new(2, 25);
    let (input, mut target) = pictures(&twin.reference, (1, 8, 8));
    let losses = [(LossKind::Ssim, 1.0)];
    twin.params[0] = f32::NAN; // detail_gain affects the whole prediction
    let mut step = twin.load(&spec(1, (8, 8), &losses, true), options(Isa::detect(), 1));
    target[5] = 0.5;
    step.floats(&input, &target, &scalars());
    step.backend.update(&scalars()).unwrap();
    let metrics = step.backend.metrics().unwrap();
    assert!(metrics.loss.is_nan() && metrics.skipped);
}
