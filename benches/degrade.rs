//! Pairs per second of the presets, without and with their margin, and of single steps, on drawn HR patches:
//! `cargo bench --bench degrade -- [THREADS] [SECONDS]`. `scripts/degrade_peers.py` measures the same
//! chain by its parts in OpenCV and NumPy.

use paragon::dataset::synth::synthetic_image;
use paragon::degrade::{Degrader, Draws, HrView, LqPart, Recipe};
use std::time::{Duration, Instant};

/// Side of the HR patches, and the scale.
const SIDE: usize = 256;
const SCALE: usize = 4;
/// The largest margin at this scale, HR pixels, and the side of the images that patches are cut from.
const MOST_MARGIN: usize = 32;
const IMAGE: usize = SIDE + 2 * MOST_MARGIN;
/// Different HR patches.
const PATCHES: u64 = 16;

/// Single steps with fixed parameters, at the HR size.
const PARTS: [(&str, &str); 9] = [
    ("usm, 51 taps", "sharpen"),
    (
        "blur, 21 x 21",
        "blur: {kernels: plateau_anisotropic, size: 21, sigma: 3}",
    ),
    (
        "blur, isotropic",
        "blur: {kernels: isotropic, size: 21, sigma: 2}",
    ),
    (
        "resize, bicubic",
        "to_lq: {antialias: false, filters: bicubic}",
    ),
    ("gaussian noise", "gaussian_noise: {sigma: 15, grey: 0}"),
    ("poisson noise", "poisson_noise: {scale: 1, grey: 0}"),
    ("jpeg, 4:2:0", "jpeg: {quality: 60}"),
    ("webp", "webp: {quality: 60}"),
    ("nothing", "blur: {probability: 0}"),
];

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let threads = numbers.first().copied().unwrap_or(2) as usize;
    let seconds = numbers.get(1).copied().unwrap_or(5);
    let patches: Vec<Vec<u8>> = (0..PATCHES)
        .map(|i| synthetic_image(1, i, IMAGE as u32, IMAGE as u32).into_raw())
        .collect();
    println!(
        "HR {SIDE}, LQ {}, {threads} threads, {seconds} s each",
        SIDE / SCALE
    );
    for name in Recipe::presets() {
        let recipe = Recipe::load(name).expect("a preset");
        let margin = recipe.margin(SCALE);
        let [rate, within] =
            [0, margin].map(|margin| measure(&recipe, SCALE, &patches, margin, threads, seconds));
        let memory = recipe.memory(SIDE, SIDE, SCALE) >> 10;
        println!(
            "{name:<20} {rate:>9.1} pairs/s   {within:>9.1} with a margin of {margin}   {memory} KiB a thread"
        );
    }
    for (name, step) in PARTS {
        let scale = if step.starts_with("to_lq") { SCALE } else { 1 };
        let recipe = Recipe::parse(&format!("steps: [{step}]"), "bench").expect("a step");
        let rate = measure(&recipe, scale, &patches, 0, 1, 1);
        println!("{name:<20} {:>9.3} ms on one thread", 1000.0 / rate);
    }
}

/// Patches per second of all threads, each in the middle of a margin of so many HR pixels.
fn measure(
    recipe: &Recipe,
    scale: usize,
    patches: &[Vec<u8>],
    margin: usize,
    threads: usize,
    seconds: u64,
) -> f64 {
    let start = Instant::now();
    let end = start + Duration::from_secs(seconds);
    let work = |thread: usize| {
        let whole = SIDE + 2 * margin;
        let part = LqPart {
            x: margin / scale,
            y: margin / scale,
            width: SIDE / scale,
            height: SIDE / scale,
        };
        let mut degrader = Degrader::new(recipe, scale, whole, whole);
        let mut lq = vec![0; 3 * part.width * part.height];
        let mut done = 0u64;
        while Instant::now() < end {
            let hr = &patches[done as usize % patches.len()];
            let draws = Draws::new(7, thread as u64, done, 0);
            let view = HrView {
                data: &hr[(MOST_MARGIN - margin) * 3 * (IMAGE + 1)..],
                width: whole,
                height: whole,
                stride: 3 * IMAGE,
            };
            degrader
                .apply_part(view, &draws, part, &mut lq)
                .expect("sizes fit");
            done += 1;
        }
        done
    };
    let work = &work;
    let total: u64 = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|t| scope.spawn(move || work(t))).collect();
        all.into_iter().map(|t| t.join().expect("no panic")).sum()
    });
    total as f64 / start.elapsed().as_secs_f64()
}
