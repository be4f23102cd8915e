//! Recipes and whole chains.

use super::*;
use crate::support::isa::Isa;
use sha2::{Digest, Sha256};

/// A picture with smooth and detailed parts.
pub(super) fn picture(w: usize, h: usize) -> Vec<u8> {
    let value = |x: usize, y: usize, c: usize| {
        let (fx, fy) = (x as f64, y as f64);
        let wave = (fx * 0.21).sin() * (fy * 0.13 + c as f64).cos();
        let edge = if (x / 9 + y / 13).is_multiple_of(2) {
            30.0
        } else {
            -30.0
        };
        (128.0 + 70.0 * wave + edge) as u8
    };
    (0..w * h * 3)
        .map(|i| value(i / 3 % w, i / 3 / w, i % 3))
        .collect()
}

pub(super) fn recipe(steps: &str) -> Recipe {
    Recipe::parse(&format!("steps:\n{steps}"), "test.yml").unwrap()
}

fn degraded(recipe: &Recipe, scale: usize, hr: HrView, draws: Draws) -> Vec<u8> {
    let mut lq = vec![0; 3 * (hr.width / scale) * (hr.height / scale)];
    Degrader::new(recipe, scale, hr.width, hr.height)
        .apply(hr, &draws, &mut lq)
        .unwrap();
    lq
}

#[test]
fn presets_come_back_from_their_canonical_text() {
    for name in Recipe::presets() {
        let recipe = Recipe::load(name).unwrap();
        assert_eq!(recipe.name(), name);
        assert!(!recipe.about().is_empty());
        let again = Recipe::parse(recipe.canonical(), "a set").unwrap();
        assert_eq!((&again, again.hash()), (&recipe, recipe.hash()));
        assert_eq!(again.canonical(), recipe.canonical());
        let json = serde_json::to_string(&recipe).unwrap();
        assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
        for scale in 1..=8 {
            let margin = recipe.margin(scale);
            assert!(
                margin.is_multiple_of(scale) && margin <= 32 + scale,
                "{name} {margin}"
            );
            let least = 4 * 3 * 64 * 64 * (scale * scale) as u64;
            assert!(recipe.memory(64 * scale, 64 * scale, scale) > least);
        }
    }
}

#[test]
fn errors_name_file_line_key_and_the_nearest_word() {
    for (text, words) in [
        (
            "steps:\n- jpge: {quality: 3}",
            vec!["line 2", "unknown step jpge", "did you mean jpeg?"],
        ),
        (
            "steps:\n- jpeg:\n    qualty: 3",
            vec!["line 3", "steps[1].jpeg", "qualty", "did you mean quality?"],
        ),
        (
            "steps:\n- jpeg: {quality: 0}",
            vec!["steps[1].jpeg.quality", "within 1 to 100", "found 0"],
        ),
        ("steps:\n- jpeg: {quality: 30.5}", vec!["a whole number"]),
        ("steps:\n- jpeg: {quality: [50, 40]}", vec!["50 to 40"]),
        ("steps:\n- blur: {size: 8}", vec!["an odd number", "8"]),
        ("steps:\n- blur: {sigma: wide}", vec!["sigma", "'wide'"]),
        (
            "steps:\n- blur: {kernels: {isotropc: 1}}",
            vec!["isotropc", "did you mean isotropic?"],
        ),
        (
            "steps:\n- blur: {kernels: {isotropic: 0}}",
            vec!["a weight above 0"],
        ),
        (
            "steps:\n- blur: {kernels: {isotropic: -1}}",
            vec!["negative"],
        ),
        (
            "steps:\n- blur: {sigma: {range: [0, 1], distribution: log}}",
            vec!["log", "above 0"],
        ),
        (
            "steps:\n- blur: {sigma: {range: [1, 2], distribution: norml}}",
            vec!["did you mean normal?"],
        ),
        (
            "steps:\n- blur: {probability: 1.5}",
            vec!["probability", "0 to 1"],
        ),
        ("steps:\n- one_of: {choices: []}", vec!["choice"]),
        ("steps:\n- one_of:", vec!["choices"]),
        ("steps:\n- repeat: {times: 2}", vec!["steps"]),
        (
            "steps:\n- repeat:\n    times: 8\n    steps:\n    - repeat: {times: 8, steps: [jpeg, jpeg]}",
            vec!["100"],
        ),
        ("steps:\n- jpeg: {}\n  blur: {}", vec!["line 2", "2 keys"]),
        (
            "steps:\n- resize: {range: [1, 3]}\n- resize: {range: [1, 3]}",
            vec!["9.0 times"],
        ),
        ("steps: []", vec!["at least one step"]),
        ("stps: []", vec!["stps", "did you mean steps?"]),
        ("jpeg", vec!["recipe"]),
        ("", vec!["at least one step"]),
        ("steps: [", vec!["my.yml", "line 2"]),
    ] {
        let error = format!("{:#}", Recipe::parse(text, "my.yml").unwrap_err());
        assert!(error.contains("my.yml"), "{error}");
        for word in words {
            assert!(error.contains(word), "{text}\n{error} lacks {word}");
        }
    }
    let error = Recipe::load("real-esrgn").unwrap_err().to_string();
    assert!(error.contains("did you mean real-esrgan?"), "{error}");
}

#[test]
fn the_same_bytes_for_every_instruction_set_and_every_degrader() {
    let hr = picture(96, 64);
    let view = HrView::packed(&hr, 96, 64);
    for name in Recipe::presets() {
        let recipe = Recipe::load(name).unwrap();
        let mut reused = Degrader::new(&recipe, 2, 128, 128);
        for variant in 0..4 {
            let draws = Draws::new(1, 2, 3, variant);
            let expected = degraded(&recipe, 2, view, draws);
            let mut lq = vec![0; expected.len()];
            reused.apply(view, &draws, &mut lq).unwrap();
            assert!(lq == expected, "{name}: a degrader that was used before");
            for isa in Isa::available() {
                lanes::FORCED.set(Some(isa.set()));
                assert!(
                    degraded(&recipe, 2, view, draws) == expected,
                    "{name}: {isa}"
                );
                lanes::FORCED.set(None);
            }
        }
        let other = degraded(&recipe, 2, view, Draws::new(1, 2, 4, 0));
        assert!(
            other != degraded(&recipe, 2, view, Draws::new(1, 2, 3, 0)),
            "{name}"
        );
    }
}

/// Sets that earlier versions made can be extended. (WebP is left out, because its bytes are
/// libwebp's.)
#[test]
fn the_bytes_of_recipes_do_not_change() {
    let (w, h) = (148, 116);
    let hr: Vec<u8> = (0..3 * w * h)
        .map(|i| {
            let (x, y, c) = (i / 3 % w, i / 3 / w, i % 3);
            let texture = (x * x + 3 * y * y + x * y * (c + 1)) / 16 % 64;
            let shape = if (x / 23 + y / 17) % 3 == c { 130 } else { 20 };
            (shape + texture) as u8
        })
        .collect();
    let all = recipe(
        "- blur: {kernels: {motion: 1, median: 1, plateau_anisotropic: 1, isotropic: 1}}\n- halo\n\
         - resize: {filters: [box, lanczos, nearest_exact]}\n- chroma_shift\n- colour\n\
         - one_of: {choices: [{steps: [poisson_noise]}, {steps: [gaussian_noise: {grey: 1}]}]}\n\
         - jpeg: {sampling: [422, 444]}\n- quantise\n",
    );
    let presets = ["real-esrgan", "real-esrgan-light", "jpeg", "denoise"];
    let recipes = presets.map(|name| Recipe::load(name).unwrap());
    let digests = recipes.iter().chain([&all]).map(|recipe| {
        let mut digest = Sha256::new();
        for scale in [1, 2, 4] {
            for variant in 0..12 {
                let draws = Draws::new(8, 9, 10, variant);
                digest.update(degraded(recipe, scale, HrView::packed(&hr, w, h), draws));
            }
        }
        let bytes = digest.finalize();
        bytes[..8]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    });
    let expected = [
        "c44cf362ba337ed1",
        "02d0fbe7aadf1050",
        "033ca8e03f93ca45",
        "b434fb5d24b20123",
        "d51dbb353ac35491",
    ];
    assert_eq!(digests.collect::<Vec<_>>(), expected);
}

/// Strides, all scales, sides of one pixel, and images smaller than every kernel.
#[test]
fn every_size_works() {
    for name in Recipe::presets() {
        let recipe = Recipe::load(name).unwrap();
        for scale in 1..=8 {
            for (w, h) in [(1, 1), (1, 5), (3, 2), (7, 9)] {
                let (w, h) = (w * scale, h * scale);
                let hr = picture(w + 3, h);
                let part = HrView {
                    data: &hr,
                    width: w,
                    height: h,
                    stride: 3 * (w + 3),
                };
                let rows: Vec<u8> = hr
                    .chunks_exact(3 * (w + 3))
                    .flat_map(|row| &row[..3 * w])
                    .copied()
                    .collect();
                for variant in 0..3 {
                    let draws = Draws::new(5, 0, 0, variant);
                    let packed = degraded(&recipe, scale, HrView::packed(&rows, w, h), draws);
                    assert!(packed == degraded(&recipe, scale, part, draws));
                }
            }
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let recipe = Recipe::load("jpeg").unwrap();
    let mut degrader = Degrader::new(&recipe, 2, 8, 8);
    let (hr, mut lq) = (picture(16, 16), vec![0; 16 * 16 * 3]);
    let draws = Draws::new(0, 0, 0, 0);
    for (w, h, bytes, word) in [
        (7, 8, 36, "multiples of the scale"),
        (16, 8, 96, "at most 8x8"),
        (8, 8, 47, "takes 48 bytes"),
        (0, 8, 0, "multiples"),
    ] {
        let result = degrader.apply(HrView::packed(&hr, w, h), &draws, &mut lq[..bytes]);
        assert!(result.unwrap_err().to_string().contains(word), "{word}");
    }
    for (x, width, bytes) in [(3, 2, 6), (usize::MAX, 2, 6), (1, 0, 0)] {
        let part = LqPart {
            x,
            y: 0,
            width,
            height: 1,
        };
        let hr = HrView::packed(&hr, 8, 8);
        let result = degrader.apply_part(hr, &draws, part, &mut lq[..bytes]);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("does not lie in"), "{error}");
    }
    let short = HrView::packed(&hr[..100], 8, 8);
    assert!(degrader.apply(short, &draws, &mut lq[..48]).is_err());
}

/// Without a step that changes values, the image comes back; and a level image stays level.
#[test]
fn level_images_stay_level() {
    let level = vec![100; 24 * 24 * 3];
    let all = recipe(
        "- blur: {kernels: {isotropic: 1, anisotropic: 1, plateau_anisotropic: 1, sinc: 1, motion: 1, median: 1}}\n\
         - resize\n- sharpen\n- halo\n- to_lq\n- chroma_shift\n- jpeg\n",
    );
    for variant in 0..20 {
        let lq = degraded(
            &all,
            2,
            HrView::packed(&level, 24, 24),
            Draws::new(3, 0, 0, variant),
        );
        assert!(lq.iter().all(|v| v.abs_diff(100) <= 1), "{variant}: {lq:?}");
    }
}

/// The buffers are large enough whatever is left out, repeated or done first.
#[test]
fn sizes_are_bounded_in_every_order() {
    let up = "resize: {directions: up, range: [1, 2]";
    for steps in [
        format!("- shuffle: {{steps: [to_lq, {up}}}]}}\n"),
        format!("- shuffle: {{steps: [{up}}}, {up}, relative_to: lq}}]}}\n"),
        format!("- to_lq: {{probability: 0.5}}\n- {up}}}\n"),
        format!("- repeat: {{times: [0, 1], steps: [to_lq]}}\n- {up}}}\n"),
        format!("- one_of: {{choices: [{{steps: [to_lq]}}, {{steps: []}}]}}\n- {up}}}\n"),
        format!("- {up}, relative_to: lq, keep_as_it_is: true}}\n- {up}}}\n- jpeg\n- sharpen\n"),
    ] {
        let recipe = recipe(&steps);
        for scale in [1, 4] {
            let hr = picture(8 * scale, 6 * scale);
            for variant in 0..40 {
                let view = HrView::packed(&hr, 8 * scale, 6 * scale);
                degraded(&recipe, scale, view, Draws::new(2, 0, 0, variant));
            }
        }
    }
}

/// Probability, weights, repetition and order, counted over many draws.
#[test]
fn draws_follow_the_probabilities_of_the_recipe() {
    let recipe = recipe(
        "- jpeg: {probability: 0.25, quality: 50}\n\
         - one_of:\n    choices:\n    - {weight: 3, steps: [webp: {quality: 10}]}\n    - {weight: 1, steps: [quantise: {levels: 4}]}\n\
         - repeat: {times: [0, 2], steps: [gaussian_noise: {sigma: [1, 2]}]}\n\
         - shuffle: {steps: [halo, sharpen]}\n",
    );
    let degrader = Degrader::new(&recipe, 1, 8, 8);
    let (n, mut counts, mut sigmas) = (4000u64, [0usize; 5], Vec::new());
    for variant in 0..n {
        let steps = degrader.explain(&Draws::new(0, 0, 0, variant), 8, 8);
        let names: Vec<&str> = steps.iter().map(DrawnStep::name).collect();
        for (count, name) in counts
            .iter_mut()
            .zip(["jpeg", "webp", "quantise", "gaussian_noise"])
        {
            *count += names.iter().filter(|n| **n == name).count();
        }
        let place = |name| names.iter().position(|n| *n == name).unwrap();
        counts[4] += usize::from(place("halo") < place("sharpen"));
        for step in steps.iter().filter(|s| s.name() == "gaussian_noise") {
            sigmas.push(step.json()["sigma"].as_f64().unwrap());
        }
    }
    let shares = counts.map(|count| count as f64 / n as f64);
    for (share, expected) in shares.iter().zip([0.25, 0.75, 0.25, 1.0, 0.5]) {
        assert!((share - expected).abs() < 0.04, "{shares:?}");
    }
    let mean = sigmas.iter().sum::<f64>() / sigmas.len() as f64;
    assert!((mean - 1.5).abs() < 0.02 && sigmas.iter().all(|s| (1.0..2.0).contains(s)));
    // repetitions draw anew
    assert!(sigmas.windows(2).all(|pair| pair[0] != pair[1]));
}

/// Changing one step leaves the draws of the others as they are.
#[test]
fn steps_have_streams_of_their_own() {
    let lines = |recipe: &Recipe| -> Vec<String> {
        let steps = Degrader::new(recipe, 1, 8, 8).explain(&Draws::new(1, 1, 1, 1), 8, 8);
        steps.iter().map(ToString::to_string).collect()
    };
    let a = lines(&recipe("- blur: {sigma: [1, 2]}\n- jpeg\n"));
    let b = lines(&recipe("- blur: {kernels: sinc, size: 9}\n- jpeg\n"));
    assert_ne!(a[0], b[0]);
    assert_eq!(a[1], b[1]);
}

/// The shift of an image by a step, in LQ pixels: a ramp is antisymmetric about the middle of the
/// image, so what a symmetric step makes of it is, too.
fn shift(recipe: &Recipe, scale: usize, side: usize, variant: u64) -> [f64; 2] {
    let n = side * scale;
    [false, true].map(|vertical| {
        // a smooth bump in the middle: its centre of mass shows a shift along the axis
        let bump = |x: usize, y: usize| {
            let centre = (n as f64 - 1.0) / 2.0;
            let (dx, dy) = (
                (x as f64 - centre) / scale as f64,
                (y as f64 - centre) / scale as f64,
            );
            230.0 * (-(dx * dx + dy * dy) / 50.0).exp()
        };
        let hr: Vec<u8> = (0..n * n)
            .flat_map(|i| [bump(i % n, i / n) as u8; 3])
            .collect();
        let lq = degraded(
            recipe,
            scale,
            HrView::packed(&hr, n, n),
            Draws::new(9, 0, 0, variant),
        );
        let (mut sum, mut moment) = (0.0, 0.0);
        for (i, pixel) in lq.chunks_exact(3).enumerate() {
            let weight = f64::from(pixel[1]);
            let place = if vertical { i / side } else { i % side };
            sum += weight;
            moment += weight * place as f64;
        }
        moment / sum - (side as f64 - 1.0) / 2.0
    })
}

#[test]
fn no_step_moves_the_image() {
    let filters = ["area", "box", "bilinear", "bicubic", "lanczos"];
    let resizes = filters.iter().flat_map(|filter| {
        [true, false].map(|antialias| {
            format!(
                "- resize: {{filters: {filter}, antialias: {antialias}, range: [0.3, 1.5]}}\n\
                 - to_lq: {{filters: {filter}, antialias: {antialias}}}\n"
            )
        })
    });
    let blurs = [
        "isotropic",
        "anisotropic",
        "generalised_anisotropic",
        "plateau_anisotropic",
        "sinc",
        "motion",
        "median",
    ];
    let others = blurs
        .iter()
        .map(|kernel| format!("- blur: {{kernels: {kernel}}}\n"))
        .chain(
            ["sharpen", "halo", "jpeg", "webp: {quality: 90}"].map(|step| format!("- {step}\n")),
        );
    for steps in resizes.chain(others) {
        let scales: &[usize] = if steps.contains("resize") {
            &[1, 2, 3, 4, 8]
        } else {
            &[1, 2]
        };
        for &scale in scales {
            for variant in 0..2 {
                let moved = shift(&recipe(&steps), scale, 32, variant);
                assert!(
                    moved.iter().all(|m| m.abs() < 0.1),
                    "{scale} {steps} {moved:?}"
                );
            }
        }
    }
}

#[test]
fn no_preset_moves_the_image() {
    // noise moves the centre of mass of a single draw by up to half a pixel, and of the mean of so
    // many by about 0.03
    const DRAWS: u64 = 96;
    for name in Recipe::presets() {
        let recipe = Recipe::load(name).unwrap();
        for scale in [1, 4] {
            let moved: Vec<[f64; 2]> = (0..DRAWS).map(|v| shift(&recipe, scale, 32, v)).collect();
            for axis in 0..2 {
                let mean = moved.iter().map(|m| m[axis]).sum::<f64>() / DRAWS as f64;
                assert!(mean.abs() < 0.1, "{name} x{scale}: {moved:?}");
            }
        }
    }
}

#[test]
fn chroma_moves_and_brightness_stays() {
    let hr: Vec<u8> = (0..32 * 32)
        .flat_map(|i| {
            if i % 32 < 16 {
                [200, 60, 60]
            } else {
                [60, 100, 160]
            }
        })
        .collect();
    let moved = recipe("- chroma_shift: {x: 3, y: 0}\n");
    let lq = degraded(
        &moved,
        1,
        HrView::packed(&hr, 32, 32),
        Draws::new(0, 0, 0, 0),
    );
    let luma =
        |p: &[u8]| 0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2]);
    for (i, (a, b)) in hr.chunks_exact(3).zip(lq.chunks_exact(3)).enumerate() {
        let inside = !(13..22).contains(&(i % 32));
        if inside {
            assert!((luma(a) - luma(b)).abs() < 1.0);
        }
        // right of the edge there are three columns of the chroma of the left
        if (16..19).contains(&(i % 32)) {
            assert!(b[0] > b[2], "{i} {b:?}");
        }
    }
}
