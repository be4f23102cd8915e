//! The structural losses of the CPU backend against a plain f64 version, finite differences of that
//! version, and, if the shared folder exists, golden losses, gradients and a training trajectory.

use crate::reference;

use paragon::backend::cpu::Isa;
use paragon::backend::cpu::structural::{
    Similarity, loss, score, score_and_gradient, scratch_floats,
};
use reference::{
    Loss, Reference,
    golden::{self, relative_error},
    similarity,
    training::{Batch, Recipe, Schedule, Training},
};

const KINDS: [Similarity; 3] = [
    Similarity::Ssim,
    Similarity::MultiScale { luminance: false },
    Similarity::MultiScale { luminance: true },
];

/// The rows of an NHWC prediction minus its target, and of the target.
fn rows<'a>(
    pred: &'a [f32],
    target: &'a [f32],
    w: usize,
) -> impl Fn(usize, &mut [f32], &mut [f32]) + 'a {
    move |y, difference, row| {
        row.copy_from_slice(&target[y * w * 3..][..w * 3]);
        difference
            .iter_mut()
            .zip(&pred[y * w * 3..])
            .zip(row)
            .for_each(|((d, p), t)| *d = p - *t);
    }
}

/// Score and gradient of one image in new buffers; the scratch memory is filled with NaN first.
fn run(
    kind: Similarity,
    pred: &[f32],
    target: &[f32],
    h: usize,
    w: usize,
    slope: f64,
) -> (f64, Vec<f32>) {
    let mut scratch = vec![f32::NAN; scratch_floats(kind, h, w).unwrap()];
    let mut grad = vec![0.0; pred.len()];
    let value = score_and_gradient(
        Isa::detect(),
        kind,
        rows(pred, target, w),
        (h, w),
        slope,
        &mut grad,
        &mut scratch,
    )
    .unwrap();
    scratch.fill(f32::NAN);
    assert_eq!(
        value.to_bits(),
        score(
            Isa::detect(),
            kind,
            rows(pred, target, w),
            (h, w),
            &mut scratch
        )
        .unwrap()
        .to_bits()
    );
    (value, grad)
}

/// A smooth target with texture, and a prediction that differs from it by `noise` and is partly
/// outside 0..1.
fn pictures(h: usize, w: usize, noise: f32) -> (Vec<f32>, Vec<f32>) {
    let mut state = 12345u32;
    let mut draw = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut target = vec![];
    let mut pred = vec![];
    for y in 0..h {
        for x in 0..w {
            for c in 0..3 {
                let wave = (0.7 * x as f32 + c as f32).sin() * (0.4 * y as f32).cos();
                let t = (0.5 + 0.45 * wave + 0.2 * draw()).clamp(0.0, 1.0);
                target.push(t);
                pred.push(0.9 * t + 0.08 + noise * draw());
            }
        }
    }
    (pred, target)
}

fn plain(kind: Similarity, pred: &[f64], target: &[f64], h: usize, w: usize) -> f64 {
    match kind {
        Similarity::Ssim => similarity::ssim(pred, target, h, w),
        Similarity::MultiScale { luminance } => {
            similarity::multi_scale(pred, target, h, w, luminance)
        }
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn scores_match_the_plain_version_at_any_size() {
    let mut worst = 0f64;
    for (h, w) in [
        (1, 1),
        (3, 40),
        (40, 3),
        (10, 11),
        (11, 11),
        (12, 27),
        (33, 26),
        (26, 43),
        (31, 64),
        (48, 47),
    ] {
        for noise in [0.1, 0.8] {
            let (pred, target) = pictures(h, w, noise);
            for kind in KINDS {
                let (got, _) = run(kind, &pred, &target, h, w, 1.0);
                let expected = plain(kind, &wide(&pred), &wide(&target), h, w);
                let error = (got - expected).abs();
                assert!(
                    error < 2e-6,
                    "{kind:?} {h}x{w} noise {noise}: {got} for {expected}"
                );
                worst = worst.max(error);
            }
        }
    }
    println!("largest difference of a score: {worst:.1e}");
}

#[test]
fn gradients_match_finite_differences() {
    for (h, w) in [(1, 2), (9, 14), (17, 30), (27, 25)] {
        let (pred, target) = pictures(h, w, 0.3);
        let (pred64, target64) = (wide(&pred), wide(&target));
        for kind in KINDS {
            let slope = -0.25;
            let (_, grad) = run(kind, &pred, &target, h, w, slope);
            let size = grad.iter().fold(0f32, |m, g| m.max(g.abs())) as f64;
            assert!(size > 0.0);
            let stride = pred.len().div_ceil(40);
            for j in (0..pred.len()).step_by(stride) {
                let step = 1e-5;
                if (pred64[j] - 0.5).abs() > 0.5 {
                    assert_eq!(grad[j], 0.0, "the clamp holds at {}", pred[j]);
                }
                if ((pred64[j] - 0.5).abs() - 0.5).abs() <= step {
                    continue; // finite differences are meaningless across the kink of the clamp
                }
                let at = |offset: f64| {
                    let mut moved = pred64.clone();
                    moved[j] += offset;
                    plain(kind, &moved, &target64, h, w)
                };
                let expected = slope * (at(step) - at(-step)) / (2.0 * step);
                let error = (f64::from(grad[j]) - expected).abs() / size;
                assert!(
                    error < 3e-5,
                    "{kind:?} {h}x{w} [{j}]: {} for {expected}",
                    grad[j]
                );
            }
        }
    }
}

#[test]
fn equal_images_score_one_without_a_gradient() {
    let (_, target) = pictures(20, 37, 0.1);
    for kind in KINDS {
        let (value, grad) = run(kind, &target, &target, 20, 37, 1.0);
        assert_eq!(value, 1.0);
        assert_eq!(loss(value), 0.0);
        assert!(grad.iter().all(|g| *g == 0.0));
    }
}

#[test]
fn a_level_mean_of_zero_gives_no_infinite_slope() {
    // An inverted checkerboard: no window correlates with that of the target.
    let (h, w) = (32, 32);
    let target: Vec<f32> = (0..h * w * 3)
        .map(|i| ((i / 3 % w + i / 3 / w) % 2) as f32)
        .collect();
    let pred: Vec<f32> = target.iter().map(|t| 1.0 - t).collect();
    for kind in KINDS {
        let (value, grad) = run(kind, &pred, &target, h, w, 1.0);
        assert_eq!(value, 0.0);
        assert!(grad.iter().all(|g| *g == 0.0));
    }
}

#[test]
fn the_gradient_is_added_and_the_clamp_passes_on_its_borders() {
    let (mut pred, target) = pictures(24, 24, 0.2);
    (pred[0], pred[3], pred[6], pred[9]) = (0.0, 1.0, -1e-6, 1.0 + 1e-6);
    let kind = Similarity::Ssim;
    let (_, grad) = run(kind, &pred, &target, 24, 24, 1.0);
    assert!(grad[0] != 0.0 && grad[3] != 0.0);
    assert_eq!((grad[6], grad[9]), (0.0, 0.0));
    let mut scratch = vec![0.0; scratch_floats(kind, 24, 24).unwrap()];
    let mut sum = vec![1.0; pred.len()];
    score_and_gradient(
        Isa::detect(),
        kind,
        rows(&pred, &target, 24),
        (24, 24),
        1.0,
        &mut sum,
        &mut scratch,
    )
    .unwrap();
    assert!(sum.iter().zip(&grad).all(|(s, g)| *s == 1.0 + g));
}

#[test]
fn a_nan_is_not_hidden() {
    let (mut pred, target) = pictures(24, 24, 0.2);
    pred[24 * 12 * 3] = f32::NAN;
    for kind in KINDS {
        assert!(run(kind, &pred, &target, 24, 24, 1.0).0.is_nan());
        assert!(loss(f64::NAN).is_nan());
    }
}

/// Loss and gradient of a batch [n, h, w, 3], combined as a backend combines them.
fn batch(
    kind: Similarity,
    pred: &[f32],
    target: &[f32],
    (n, h, w): (usize, usize, usize),
) -> (f64, Vec<f32>) {
    let mut grad = vec![];
    let mut total = 0.0;
    for (p, t) in pred
        .chunks_exact(h * w * 3)
        .zip(target.chunks_exact(h * w * 3))
    {
        let (score, image) = run(kind, p, t, h, w, -1.0 / n as f64);
        total += score;
        grad.extend(image);
    }
    (loss(total / n as f64), grad)
}

#[test]
fn agrees_with_golden_losses() {
    let Some(golden) = golden::open("agrees_with_golden_losses", "losses.safetensors") else {
        return;
    };
    for set in ["a", "b"] {
        let (n, h, w, pred) = golden.picture(&format!("{set}.pred"));
        let (_, _, _, target) = golden.picture(&format!("{set}.target"));
        let narrow = |v: &[f64]| v.iter().map(|v| *v as f32).collect::<Vec<f32>>();
        let (pred, target) = (narrow(&pred), narrow(&target));
        for (name, kind, sign) in [
            ("ssim_score", KINDS[0], -1.0),
            ("mssim", KINDS[1], 1.0),
            ("mssim_lum", KINDS[2], 1.0),
        ] {
            let (value, grad) = batch(kind, &pred, &target, (n, h, w));
            let expected = golden.tensor(&format!("{set}.{name}")).1[0];
            let expected = if sign < 0.0 { 1.0 - expected } else { expected };
            let (_, _, _, expected_grad) = golden.picture(&format!("{set}.{name}.grad"));
            let signed: Vec<f64> = grad.iter().map(|g| sign * f64::from(*g)).collect();
            let (error, grad_error) = (
                (value - expected).abs() / expected,
                relative_error(&signed, &expected_grad),
            );
            println!(
                "{set}.{name}: loss {value:.9}, relative error {error:.1e}; gradient {grad_error:.1e}"
            );
            assert!(error < 1e-5 && grad_error < 1e-5, "{set}.{name}");
        }
    }
}

#[test]
fn follows_the_golden_trajectory_with_ms_ssim() {
    for file in [
        "train_realtime_x2_mssim_first1.safetensors",
        "train_realtime_x2_mssim.safetensors",
    ] {
        follow_with_ms_ssim(file);
    }
}

fn follow_with_ms_ssim(file: &str) {
    let Some(golden) = golden::open("follows_the_golden_trajectory_with_ms_ssim", file) else {
        return;
    };
    let config = golden.config();
    let recipe = Recipe {
        lr: config["lr"].as_f64().unwrap(),
        betas: (0.9, 0.99),
        eps: 1e-8,
        weight_decay: config["weight_decay"].as_f64().unwrap(),
        warmup: 0,
        schedule: Schedule::MultiStep {
            milestones: vec![],
            gamma: 0.5,
        },
        clip: None,
        ema_decay: 0.999,
        ema_power: 0.75,
    };
    let weight = config["losses"]["mssim"].as_f64().unwrap();
    let mut training = Training::new(
        Reference::from_params(0.3, golden.parameters("param_init.")),
        recipe,
    );
    let (losses, norms) = (golden.tensor("loss").1, golden.tensor("grad_norm").1);
    let mut worst = [0f64; 3];
    for step in 0..config["steps"].as_u64().unwrap() as usize {
        let unit = |name: String| {
            golden
                .tensor(&name)
                .1
                .iter()
                .map(|v| v / 255.0)
                .collect::<Vec<f64>>()
        };
        let size = golden.tensor(&format!("lq.{step}")).0;
        let (h, w) = (size[1], size[2]);
        let one = Batch {
            n: 1,
            h,
            w,
            input: unit(format!("lq.{step}")),
            target: unit(format!("hr.{step}")),
        };
        let report = training.step_with(&[one], |output, target| {
            let (l1, mut grad) = Loss::L1.evaluate(output, target);
            let narrow = |v: &[f64]| v.iter().map(|v| *v as f32).collect::<Vec<f32>>();
            let kind = Similarity::MultiScale { luminance: false };
            let (score, structural) = run(
                kind,
                &narrow(output),
                &narrow(target),
                2 * h,
                2 * w,
                -weight,
            );
            grad.iter_mut()
                .zip(structural)
                .for_each(|(g, s)| *g += f64::from(s));
            (l1 + weight * loss(score), grad)
        });
        worst[0] = worst[0].max((report.loss - losses[step]).abs() / losses[step]);
        worst[1] = worst[1].max((report.grad_norm - norms[step]).abs() / norms[step]);
    }
    for (name, (_, expected)) in golden.parameters("param_final.") {
        worst[2] = worst[2].max(relative_error(training.network.param(&name), &expected));
    }
    println!(
        "loss {:.1e}, gradient norm {:.1e}, final parameters {:.1e}",
        worst[0], worst[1], worst[2]
    );
    assert!(worst[0] < 1e-5 && worst[1] < 1e-5 && worst[2] < 1e-4);
}
