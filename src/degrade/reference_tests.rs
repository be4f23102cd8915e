//! Steps against numbers of other programs, which `scripts/check_degrade.py` explains: libjpeg
//! (through Pillow), torch and SciPy.

use super::area::{Area, Span};
use super::bound::Bound;
use super::canvas::{Canvas, Layout};
use super::jpeg::{DrawnJpeg, Sampling};
use super::kernel::DrawnKernel;
use super::resize::DrawnResize;
use super::table::{Line, Table};
use super::{HrView, Recipe};
use serde_json::Value as Json;

/// Size of the image in `jpeg.bin`.
const SIZE: (usize, usize) = (35, 29);

fn canvas(data: &[u8], (w, h): (usize, usize)) -> Canvas {
    let mut canvas = Canvas::new(&Layout::new(&Bound::of(&[], 1), w, h));
    canvas.read(&HrView::packed(data, w, h), Area::whole((w, h)));
    canvas
}

fn json(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

fn numbers(list: &Json) -> Vec<f64> {
    let list = list.as_array().unwrap().iter();
    list.map(|v| v.as_f64().unwrap()).collect()
}

/// The image, then what libjpeg makes of it: 4:4:4, 4:2:2 and 4:2:0, each at quality 5, 50 and 92.
#[test]
fn jpeg_is_that_of_libjpeg_to_the_bit() {
    let data = include_bytes!("../../tests/data/degrade/jpeg.bin");
    let mut images = data.chunks_exact(3 * SIZE.0 * SIZE.1);
    let image = images.next().unwrap();
    for sampling in [Sampling::S444, Sampling::S422, Sampling::S420] {
        for quality in [5, 50, 92] {
            let expected = images.next().unwrap();
            let mut canvas = canvas(image, SIZE);
            canvas.jpeg(DrawnJpeg { quality, sampling });
            let mut out = vec![0; image.len()];
            canvas.write(&mut out);
            let wrong = out.iter().zip(expected).filter(|(a, b)| a != b).count();
            assert_eq!(wrong, 0, "{sampling:?} at quality {quality}");
        }
    }
    assert!(images.next().is_none());
}

#[test]
fn resizing_is_that_of_torch() {
    let reference = json(include_str!("../../tests/data/degrade/resize.json"));
    let line = numbers(&reference["line"]);
    for case in reference["resized"].as_array().unwrap() {
        let expected = numbers(&case["values"]);
        let antialias = case["antialias"].as_bool().unwrap();
        let word = case["filter"].as_str().unwrap();
        let drawn = DrawnResize::named(word, antialias, (line.len(), 2), (expected.len(), 2));
        let mut canvas = canvas(&vec![0; line.len() * 40 * 3], (line.len(), 40));
        canvas.crop(Area::whole((line.len(), 2)));
        canvas.whole = (line.len(), 2);
        for row in canvas.values().chunks_exact_mut(line.len()) {
            row.iter_mut().zip(&line).for_each(|(v, x)| *v = *x as f32);
        }
        canvas.resize(&drawn, Area::whole(drawn.to));
        for (value, wanted) in canvas.values()[..expected.len()].iter().zip(&expected) {
            assert!((f64::from(*value) - wanted).abs() < 1e-6, "{case}: {value}");
        }
    }
}

#[test]
fn kernels_are_those_of_scipy() {
    let reference = json(include_str!("../../tests/data/degrade/kernels.json"));
    for case in reference["kernels"].as_array().unwrap() {
        let weights = DrawnKernel::from_json(case).weights();
        let expected = numbers(&case["weights"]);
        assert_eq!(weights.len(), expected.len());
        for (weight, wanted) in weights.iter().zip(&expected) {
            assert!((weight - wanted).abs() < 1e-9, "{case}");
        }
    }
}

/// A filter of two dimensions, factors, and borders against a plain double loop.
#[test]
fn filters_are_plain_sums_with_mirrored_borders() {
    let data: Vec<u8> = (0..3 * 11 * 6).map(|i| (i * 37 % 251) as u8).collect();
    for kernel in ["isotropic", "anisotropic", "motion"] {
        let recipe = format!("steps: [blur: {{kernels: {kernel}, size: 21, sigma: [1, 4]}}]");
        let recipe = Recipe::parse(&recipe, "test").unwrap();
        let draws = super::Draws::new(0, 0, 0, 0);
        let drawn = super::Degrader::new(&recipe, 1, 11, 6).explain(&draws, 11, 6);
        let super::DrawnStep::Blur(kernel) = drawn[0] else {
            panic!("a blur")
        };
        let (weights, size) = super::kernel::trimmed(&kernel.weights(), kernel.side());
        let mut filtered = Canvas::new(&recipe.layout(11, 6, 1));
        filtered.read(&HrView::packed(&data, 11, 6), Area::whole((11, 6)));
        filtered.blur(&kernel);
        let mirrored = |i: isize, n: isize| {
            let mut i = i;
            while !(0..n).contains(&i) {
                i = if i < 0 { -i } else { 2 * (n - 1) - i };
            }
            i as usize
        };
        let radius = size as isize / 2;
        for (i, value) in filtered.values().iter().enumerate() {
            let (channel, y, x) = (i / 66, i / 11 % 6, i % 11);
            let sum: f64 = weights
                .iter()
                .enumerate()
                .map(|(tap, weight)| {
                    let sy = mirrored(y as isize + (tap / size) as isize - radius, 6);
                    let sx = mirrored(x as isize + (tap % size) as isize - radius, 11);
                    weight * f64::from(data[(sy * 11 + sx) * 3 + channel]) / 255.0
                })
                .sum();
            assert!((f64::from(*value) - sum).abs() < 3e-6, "{i} {value} {sum}");
        }
    }
}

/// Every output of a resize averages: its weights sum to 1.
#[test]
fn weights_of_a_resize_sum_to_one() {
    for word in [
        "area",
        "box",
        "bilinear",
        "bicubic",
        "lanczos",
        "nearest_exact",
    ] {
        for antialias in [true, false] {
            for (from, to) in [(1, 1), (1, 7), (7, 1), (13, 5), (5, 13), (256, 39)] {
                let filter = DrawnResize::named(word, antialias, (1, 1), (1, 1)).filter;
                let line = Line {
                    filter,
                    antialias,
                    from,
                    to,
                };
                let all = |end| Span { start: 0, end };
                for sum in Table::new(line, all(from), all(to)).sums() {
                    assert!((sum - 1.0).abs() < 1e-5, "{word} {from} {to}");
                }
            }
        }
    }
}

/// The documentation has every step with all keys, defaults and ranges.
#[test]
fn the_documentation_has_every_key() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/degradation.md");
    let text = std::fs::read_to_string(path).unwrap();
    for step in Recipe::reference() {
        let heading = format!("### {}\n", step.name);
        assert!(text.contains(&heading), "{path} lacks {heading}");
        for [key, default, accepted, about] in step.keys {
            let row = format!("| `{key}` | {default} | {accepted} | {about} |");
            assert!(text.contains(&row), "{path} lacks the row\n{row}");
        }
    }
    for name in Recipe::presets() {
        assert!(text.contains(&format!("### Preset {name}\n")), "{name}");
    }
}
