use super::*;
use crate::dataset::synth::synthetic_image;
use crate::support::rng::mix;
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, Rgb, imageops};

/// Drawn photographs. Image 0 of this seed is left out: it is nearly all black and white.
fn photographs() -> impl Iterator<Item = RgbImage> {
    (1..5).map(|i| synthetic_image(4, i, 512, 384))
}

fn jpeg(image: &RgbImage, quality: u8) -> RgbImage {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode_image(image)
        .unwrap();
    image::load_from_memory_with_format(&bytes, ImageFormat::Jpeg)
        .unwrap()
        .into_rgb8()
}

/// A number in 0..1 that depends on its place in the sequence alone.
fn uniform(at: u64) -> f64 {
    (mix(at) >> 11) as f64 / (1u64 << 53) as f64
}

/// A normal variable of deviation 1, by Box and Muller.
fn normal(at: u64) -> f64 {
    let (u, v) = (1.0 - uniform(2 * at), uniform(2 * at + 1));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

fn with_noise(image: &RgbImage, sigma: f64, grey: bool) -> RgbImage {
    let mut noisy = image.clone();
    for (i, value) in noisy.iter_mut().enumerate() {
        let draw = if grey { i / 3 } else { i } as u64;
        *value = (f64::from(*value) + sigma * normal(draw + (1 << 40)))
            .round()
            .clamp(0.0, 255.0) as u8;
    }
    noisy
}

fn random_luma(width: usize, height: usize, spread: u64) -> Luma {
    let value = |i: usize| (100 + mix(i as u64 + 77) % spread) as u8;
    Luma {
        width,
        height,
        values: (0..width * height).map(value).collect(),
    }
}

/// The definition of blockiness, word for word.
fn plain_blockiness(luma: &Luma) -> f64 {
    let at = |x: usize, y: usize| f64::from(luma.values[y * luma.width + x]);
    let direction = |along: usize, other: usize, at: &dyn Fn(usize, usize) -> f64| {
        let mut means: Vec<f64> = (0..8)
            .map(|offset| {
                let mut steps = Vec::new();
                for o in 0..other {
                    for x in (offset..along - 3).step_by(8) {
                        let change = |i: usize| at(x + i + 1, o) - at(x + i, o);
                        if change(0).abs() + change(2).abs() <= 12.0 {
                            steps.push((change(1) - (change(0) + change(2)) / 2.0).abs());
                        }
                    }
                }
                steps.iter().sum::<f64>() / steps.len() as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        means[7] - (means[3] + means[4]) / 2.0
    };
    let across = direction(luma.width, luma.height, &|x, y| at(x, y));
    let down = direction(luma.height, luma.width, &|y, x| at(x, y));
    (across + down) / 2.0
}

#[test]
fn blockiness_is_its_definition() {
    for (width, height) in [(64, 64), (83, 71), (200, 65)] {
        for spread in [4, 12, 30] {
            let luma = random_luma(width, height, spread);
            let (ours, plain) = (blockiness(&luma).unwrap(), plain_blockiness(&luma));
            assert!((ours - plain).abs() < 1e-9, "{ours} and {plain}");
        }
    }
    assert_eq!(blockiness(&random_luma(12, 12, 4)), None);
    assert_eq!(blockiness(&random_luma(3, 2, 4)), None);
    assert_eq!(
        blockiness(&random_luma(96, 96, 150)),
        None,
        "texture everywhere"
    );
}

#[test]
fn blockiness_rises_as_the_quality_falls_wherever_the_grid_begins() {
    for image in photographs() {
        let of = |image: &RgbImage| blockiness(&Luma::new(image)).unwrap();
        let clean = of(&image);
        assert!(clean < 0.3, "{clean} without JPEG");
        let mut last = clean;
        for quality in [90, 75, 60, 40, 20, 10] {
            let coded = jpeg(&image, quality);
            let whole = of(&coded);
            assert!(
                whole > last,
                "quality {quality}: {whole} after {last} before"
            );
            for (x, y) in [(3, 5), (7, 1)] {
                let crop = imageops::crop_imm(&coded, x, y, 500, 370).to_image();
                let of_crop = of(&crop);
                assert!(
                    (of_crop - whole).abs() < 0.1 * whole + 0.1,
                    "quality {quality}, cropped at {x}, {y}: {of_crop}, whole {whole}"
                );
            }
            last = whole;
        }
        assert!(last > 3.0, "{last} at quality 10");
    }
}

#[test]
fn the_noise_that_was_added_is_measured() {
    for (number, image) in photographs().enumerate() {
        for sigma in [2.0, 3.0, 5.0, 10.0, 20.0, 30.0] {
            for grey in [false, true] {
                let measured = noise(&with_noise(&image, sigma, grey)).unwrap();
                assert!(
                    (measured / sigma - 1.0).abs() < 0.15,
                    "image {number}: {measured} for {sigma}, grey {grey}"
                );
            }
        }
        let clean = noise(&image).unwrap();
        assert!(clean < 1.0, "image {number}: {clean} without noise");
    }
}

#[test]
fn noise_needs_places_that_are_not_clipped() {
    assert_eq!(noise(&RgbImage::new(300, 300)), None, "black");
    assert_eq!(noise(&RgbImage::from_pixel(40, 40, Rgb([90; 3]))), None);
    let level = RgbImage::from_pixel(128, 128, Rgb([90; 3]));
    let measured = noise(&level).unwrap();
    assert!(measured < 0.15, "{measured}");
}

fn blur(image: &RgbImage) -> Option<f64> {
    BlurMeasure::default().measure(&Luma::new(image))
}

#[test]
fn blur_ranks_by_sigma() {
    for (number, image) in photographs().enumerate() {
        let image = imageops::crop_imm(&image, 40, 30, 256, 256).to_image();
        let Some(sharp) = blur(&image) else { continue };
        assert!(sharp < 1.1, "image {number}: {sharp} for a sharp image");
        let mut last = sharp;
        for sigma in [1.0, 1.5, 2.0, 3.0, 4.0] {
            let measured = blur(&imageops::blur(&image, sigma)).unwrap();
            assert!(
                measured > last,
                "image {number}: {measured} after {last} at {sigma}"
            );
            last = measured;
        }
    }
}

#[test]
fn blur_is_that_of_an_edge_and_flat_patches_have_none() {
    assert_eq!(blur(&RgbImage::from_pixel(128, 128, Rgb([90; 3]))), None);
    let sky = RgbImage::from_fn(128, 128, |x, y| Rgb([(60 + x / 2 + y / 3) as u8; 3]));
    assert_eq!(blur(&sky), None);
    assert_eq!(blur(&RgbImage::new(2, 2)), None);
    let step = RgbImage::from_fn(128, 128, |x, _| Rgb([if x < 64 { 60 } else { 180 }; 3]));
    let sharp = blur(&step).unwrap();
    assert!(sharp < 0.6, "{sharp} for an ideal step");
    for sigma in [1.0, 2.0, 3.0, 4.0] {
        let measured = blur(&imageops::blur(&step, sigma)).unwrap();
        assert!(
            (measured / f64::from(sigma) - 1.0).abs() < 0.1,
            "{measured} for {sigma}"
        );
    }
}

#[test]
fn buffers_of_one_patch_do_not_matter_to_the_next() {
    let all: Vec<RgbImage> = photographs().collect();
    let mut kept = BlurMeasure::default();
    for image in &all {
        let small = imageops::crop_imm(image, 9, 9, 100, 64).to_image();
        for image in [image, &small] {
            assert_eq!(kept.measure(&Luma::new(image)), blur(image));
        }
    }
}

#[test]
fn the_memory_is_what_is_stated() {
    for image in photographs() {
        let luma = Luma::new(&image);
        let pixels = u64::from(image.width()) * u64::from(image.height());
        assert_eq!(luma.values.len() as u64, pixels);
        let patch = imageops::crop_imm(&image, 0, 0, 256, 256).to_image();
        let patch = Luma::new(&patch);
        let mut blur = BlurMeasure::default();
        blur.measure(&patch);
        let taken = patch.values.len() + blur.bytes_taken();
        assert!(taken as u64 <= BlurMeasure::bytes(256), "{taken}");
    }
}

#[test]
fn entropy_is_exact() {
    let of = |values: Vec<u8>| {
        entropy(&Luma {
            width: values.len(),
            height: 1,
            values,
        })
    };
    assert_eq!(of(vec![7; 100]), 0.0);
    assert_eq!(of((0..=255).collect()), 8.0);
    assert_eq!(of([0, 0, 1, 1].repeat(9)), 1.0);
    assert_eq!(of(vec![0, 0, 1, 2]), 1.5);
    let thirds = of(vec![1, 2, 3]);
    assert!((thirds - 3f64.log2()).abs() < 1e-12, "{thirds}");
    assert_eq!(of(Vec::new()), 0.0);
}

fn distance(a: &RgbImage, b: &RgbImage) -> u32 {
    let of = |image: &RgbImage| perceptual_hash(&Luma::new(image));
    (of(a) ^ of(b)).count_ones()
}

#[test]
fn copies_share_a_hash_and_other_images_do_not() {
    let all: Vec<RgbImage> = photographs().collect();
    for (i, image) in all.iter().enumerate() {
        let coded = distance(image, &jpeg(image, 80));
        assert!(coded <= 2, "image {i}: {coded} bits at quality 80");
        let half = imageops::resize(image, 256, 192, imageops::FilterType::CatmullRom);
        let resized = distance(image, &half);
        assert!(resized <= 2, "image {i}: {resized} bits at half the size");
        let odd = imageops::resize(image, 251, 189, imageops::FilterType::CatmullRom);
        assert!(distance(image, &odd) <= 4, "image {i} at an odd size");
        for (j, other) in all.iter().enumerate().skip(i + 1) {
            let apart = distance(image, other);
            assert!(apart > 12, "images {i} and {j}: {apart} bits");
        }
    }
}

#[test]
fn the_hash_is_that_of_a_plain_transform() {
    for image in photographs() {
        // every 32 x 32 part has a whole number of pixels
        let luma = Luma::new(&imageops::crop_imm(&image, 0, 0, 320, 256).to_image());
        let mean = |x: usize, y: usize| {
            let pixels = (0..80).map(|i| luma.row(y * 8 + i / 10)[x * 10 + i % 10]);
            pixels.map(f64::from).sum::<f64>() / 80.0
        };
        let mut plain = [0f64; 64];
        for (i, sum) in plain.iter_mut().enumerate().skip(1) {
            let wave = |at: usize, frequency: usize| {
                (std::f64::consts::PI * frequency as f64 * (at as f64 + 0.5) / 32.0).cos()
            };
            for y in 0..32 {
                for x in 0..32 {
                    *sum += mean(x, y) * wave(x, i % 8) * wave(y, i / 8);
                }
            }
        }
        let mut sorted = plain;
        sorted.sort_by(f64::total_cmp);
        let bits = plain.iter().enumerate();
        let plain: u64 = bits.map(|(i, &c)| u64::from(c > sorted[32]) << i).sum();
        let apart = (plain ^ perceptual_hash(&luma)).count_ones();
        assert!(apart <= 1, "{apart} bits: rounding may decide one");
    }
}
