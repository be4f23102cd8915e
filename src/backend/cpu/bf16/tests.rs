//! The rounding, products of half a step on every unit, and the passes of a softmax.

use super::*;
use crate::backend::cpu::tests_common::{assert_close, noise};
use crate::plan::Precision;
use crate::support::isa::Isa;

/// Every unit of this processor.
fn units() -> Vec<Bf16Unit> {
    Bf16Unit::available(Isa::available()[0])
}

fn rounded(values: &[f32]) -> Vec<f32> {
    let nearest = |&v: &f32| Precision::Bf16.widen(Precision::Bf16.narrow(v));
    values.iter().map(nearest).collect()
}

#[test]
fn values_are_rounded_to_nearest_even() {
    if units().is_empty() {
        return;
    }
    let mut values = noise(95, 1);
    values.extend([0.0, -0.0, 1e38, f32::MAX, f32::INFINITY, f32::NEG_INFINITY]);
    // halfway between two bf16, where the lower one is even, and where the upper one is
    values.extend([0x3f80_8000, 0x3f81_8000, 0x3f80_8001].map(f32::from_bits));
    for count in [values.len(), 1, 15, 16, 17, 31, 32, 33, 48] {
        let mut bits = vec![7u16; values.len()];
        // SAFETY: both hold `count` values, and the processor has a unit
        unsafe { round_values(values.as_ptr(), count, bits.as_mut_ptr()) };
        for (i, (&bits, &value)) in bits.iter().zip(&values).enumerate() {
            let expected = if i < count {
                Precision::Bf16.narrow(value)
            } else {
                7
            };
            assert_eq!(bits, expected, "{value}");
        }
    }
    let mut nan = [0u16];
    // SAFETY: as above
    unsafe { round_values([f32::NAN].as_ptr(), 1, nan.as_mut_ptr()) };
    assert!(Precision::Bf16.widen(nan[0]).is_nan());
}

/// Rows of a softmax: tiles of columns, and values of a row with its padding.
const TILES: usize = 4;
const ROW: usize = (TILES + 1) * LANES;
const FACTOR: f32 = 0.36;

fn rows(values: &mut [f32]) -> Rows {
    Rows {
        values: values.as_mut_ptr(),
        stride: ROW,
        vectors: TILES,
    }
}

/// The weights of a softmax before the division, and their sum.
fn expected_weights(scores: &[f32]) -> (Vec<f64>, f64) {
    let largest = scores.iter().copied().fold(f32::MIN, f32::max);
    let distance = |&s: &f32| f64::from(FACTOR) * (f64::from(s) - f64::from(largest));
    let weights: Vec<f64> = scores
        .iter()
        .map(|s| distance(s).max(-63.0).exp2())
        .collect();
    let sum = weights.iter().sum();
    (weights, sum)
}

#[test]
fn half_steps_are_products_of_sixteen_channels() {
    for unit in units() {
        let (x, y) = (noise(LANES * LANES, 1), noise(TILES * LANES * LANES, 2));
        let start = noise(TILES * LANES, 3);
        let mut a = vec![0xffff_u16; LANES * STEP];
        let mut packed = vec![0xffff_u16; TILES * LANES * STEP];
        let mut b = vec![0xffff_u16; (TILES + 1) * HALF_TILE];
        let session = Session::begin(unit);
        for start in [None, Some(&start)] {
            let mut c = vec![f32::NAN; LANES * ROW];
            // SAFETY: all buffers are as large as the functions ask for
            unsafe {
                round_rows(x.as_ptr(), LANES, a.as_mut_ptr());
                round_rows(y.as_ptr(), TILES * LANES, packed.as_mut_ptr());
                rows_as_columns(packed.as_ptr(), TILES * LANES, b.as_mut_ptr());
                session.half_step(&HalfStep {
                    a: a.as_ptr(),
                    b: b.as_ptr(),
                    tiles: TILES,
                    start: start.map(|row| row.as_ptr()),
                    c: c.as_mut_ptr(),
                    c_row: ROW,
                });
            }
            let (x, y) = (rounded(&x), rounded(&y));
            for (i, row) in c.chunks(ROW).enumerate() {
                let expected: Vec<f64> = (0..TILES * LANES)
                    .map(|j| {
                        let pair = |k: usize| [x[i * LANES + k], y[j * LANES + k]].map(f64::from);
                        let sum: f64 = (0..LANES).map(pair).map(|[x, y]| x * y).sum();
                        sum + start.map_or(0.0, |start| f64::from(start[j]))
                    })
                    .collect();
                assert_close(&unit.to_string(), &row[..TILES * LANES], &expected, 1e-6);
            }
        }
    }
}

#[test]
fn softmax_and_its_gradients_are_rounded_into_both_layouts() {
    if units().is_empty() {
        return;
    }
    let scores: Vec<f32> = noise(LANES * ROW, 1).iter().map(|v| 40.0 * v).collect();
    let mut d = noise(LANES * ROW, 2);
    let (mut plain, mut values) = (scores.clone(), scores.clone());
    let row = TILES * LANES;
    let (mut left, mut gradients) = (vec![0u16; LANES * row], vec![0u16; LANES * row]);
    let mut pairs = [vec![0u16; TILES * TILE], vec![0u16; TILES * TILE]];
    let (mut inverse, mut other, mut dots) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    // SAFETY: all buffers are as large as the functions ask for
    unsafe {
        softmax(
            rows(&mut plain),
            FACTOR,
            (left.as_mut_ptr(), row),
            inverse.as_mut_ptr(),
        );
        let both = (rows(&mut values), rows(&mut d));
        softmax_pairs(
            both,
            FACTOR,
            (pairs[0].as_mut_ptr(), TILE),
            (other.as_mut_ptr(), dots.as_mut_ptr()),
        );
        score_gradients(
            both,
            dots.as_ptr(),
            (gradients.as_mut_ptr(), row),
            (pairs[1].as_mut_ptr(), TILE),
        );
    }
    let widen = |bits: u16| f64::from(Precision::Bf16.widen(bits));
    for i in 0..LANES {
        let (weights, sum) = expected_weights(&scores[i * ROW..][..row]);
        for inverse in [inverse[i], other[i]] {
            assert!((sum * f64::from(inverse) - 1.0).abs() < 1e-5);
        }
        let products = weights
            .iter()
            .zip(&d[i * ROW..])
            .map(|(w, &d)| w * f64::from(d));
        let dot = products.sum::<f64>() / sum;
        for (j, &weight) in weights.iter().enumerate() {
            let close = |bits: u16, value: f64, what: &str| {
                let error = (widen(bits) - value).abs();
                assert!(
                    error <= value.abs() / 250.0 + 1e-6,
                    "{what} {i} {j}: {error:e}"
                );
            };
            let column = paired_column(j);
            let at = column / LANES * TILE + i / 2 * STEP + column % LANES * 2 + i % 2;
            close(left[i * row + j], weight, "weight");
            close(pairs[0][at], weight, "paired weight");
            let gradient = weight * (f64::from(d[i * ROW + j]) - dot);
            close(gradients[i * row + j], gradient, "gradient");
            assert_eq!(gradients[i * row + j], pairs[1][at]);
        }
    }
}
