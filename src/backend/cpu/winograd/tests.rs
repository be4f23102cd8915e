//! The transforms against sums over the taps.

use super::super::simd::Portable;
use super::multiply::store_outputs;
use super::*;

fn draw(seed: u64) -> f32 {
    crate::support::rng::Rng::new(&[seed]).range(-1.0, 1.0) as f32
}

fn draw_points() -> [f32; POINTS] {
    std::array::from_fn(|i| draw(100 + i as u64))
}

/// Gradients at the points to gradients of the taps, G^T u G, plainly.
fn gather_weights(u: [f32; POINTS], taps: usize) -> Vec<f32> {
    let g = |point: usize, tap: usize| interpolation(point, tap, taps);
    let value = |y: usize, x: usize| {
        (0..POINTS)
            .map(|i| g(i / IN, y) * f64::from(u[i]) * g(i % IN, x))
            .sum::<f64>() as f32
    };
    (0..taps * taps)
        .map(|i| value(i / taps, i % taps))
        .collect()
}

fn check_weights<const TAPS: usize>() {
    // <transform(g), u> = <g, gather(scaled u)> for all g and u
    let g: Vec<f32> = (0..TAPS * TAPS).map(|i| draw(i as u64)).collect();
    let u = draw_points();
    let scaled: [f32; POINTS] =
        std::array::from_fn(|i| (SCALE[i / IN] * SCALE[i % IN]) as f32 * u[i]);
    let transformed = transform_weights::<TAPS>(|y, x| f64::from(g[y * TAPS + x]));
    let a: f32 = transformed.iter().zip(&u).map(|(a, b)| a * b).sum();
    let b: f32 = gather_weights(scaled, TAPS)
        .iter()
        .zip(&g)
        .map(|(a, b)| a * b)
        .sum();
    assert!((a - b).abs() < 1e-5, "{a} {b}");
    let lanes: Vec<f32> = u.iter().flat_map(|&u| [u; LANES]).collect();
    let mut taps = vec![0.0; TAPS * TAPS * LANES];
    // SAFETY: there is a vector for each of the points and of the taps, and plain code runs
    // everywhere
    unsafe { gather_lanes::<Portable, TAPS>(lanes.as_ptr(), LANES, taps.as_mut_ptr(), LANES) };
    for (lanes, tap) in taps.chunks_exact(LANES).zip(gather_weights(u, TAPS)) {
        assert!((lanes[5] - tap).abs() < 1e-5, "{} {tap}", lanes[5]);
    }
}

#[test]
fn weights_and_their_gradients_are_transposes_of_each_other() {
    check_weights::<3>();
    check_weights::<5>();
}

/// Rows of the input of [`tile_row`].
const ROWS: usize = 6;
/// Its pixels.
const W: usize = 11;

/// `OUT` output rows `[W][LANES]` of tiles from `pixels` `[ROWS][W][LANES]`, with the same weights
/// in every lane and no sum over channels.
fn tile_row<const OUT: usize>(pixels: &[f32], transformed: [f32; POINTS]) -> Vec<f32> {
    let tiles = W.div_ceil(OUT);
    let mut v = vec![0.0; POINTS * point_stride(CHUNK * LANES)];
    let mut m = vec![0.0; POINTS * point_stride(CHUNK * LANES)];
    let mut out = vec![0.0; OUT * W * LANES];
    // SAFETY: `pixels` holds rows of W pixels; points, products and outputs have the sizes of CHUNK
    // tiles, and a row of eleven pixels has at most six; plain code runs on every processor
    unsafe {
        let source: [*const f32; IN] = std::array::from_fn(|k| pixels[k * W * LANES..].as_ptr());
        let points = Points {
            base: v.as_mut_ptr(),
            point_stride: point_stride(CHUNK * LANES),
            tile_stride: LANES,
        };
        let span = Span {
            first: 0,
            count: tiles,
            w: W,
            c: LANES,
        };
        transform_input::<Portable, OUT>(source, span, points);
        for (i, m) in m.iter_mut().enumerate() {
            *m = v[i] * transformed[i / point_stride(CHUNK * LANES)];
        }
        let chunk = Chunk {
            v: v.as_ptr(),
            k: LANES,
            count: tiles,
            m: m.as_mut_ptr(),
        };
        let output = Output {
            rows: std::array::from_fn(|y| Some(out[y * W * LANES..].as_mut_ptr())),
            stride: LANES,
            x: 0,
            w: W,
            non_temporal: false,
        };
        store_outputs::<Portable, 1, OUT>(&chunk, 0, [0.0; LANES], output);
    }
    out
}

/// Compares a row of tiles of one vector of lanes with the sum over the taps.
fn check_row<const OUT: usize, const TAPS: usize>() {
    let pixels: Vec<f32> = (0..ROWS * W)
        .flat_map(|i| [draw(1000 + i as u64); LANES])
        .collect();
    let g: Vec<f32> = (0..TAPS * TAPS).map(|i| draw(i as u64)).collect();
    let transformed = transform_weights::<TAPS>(|y, x| f64::from(g[y * TAPS + x]));
    let out = tile_row::<OUT>(&pixels, transformed);
    for (y, x) in (0..OUT * W).map(|i| (i / W, i % W)) {
        let reach =
            (0..TAPS * TAPS).map(|t| (y + t / TAPS, (x + t % TAPS).wrapping_sub(TAPS / 2), g[t]));
        let expected: f32 = reach
            .filter(|&(_, x, _)| x < W)
            .map(|(y, x, g)| g * pixels[(y * W + x) * LANES])
            .sum();
        let got = out[(y * W + x) * LANES + 3];
        assert!(
            (got - expected).abs() < 1e-5,
            "{got} {expected} at {y}, {x}"
        );
    }
}

#[test]
fn rows_of_tiles_are_correlations() {
    check_row::<4, 3>();
    check_row::<2, 5>();
}
