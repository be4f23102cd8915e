//! Products of small matrices on every unit, and the rounding.

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

#[test]
fn products_of_small_matrices() {
    for unit in units() {
        for (m, k, n) in [
            (1, 1, 1),
            (64, 30, 64),
            (64, 64, 16),
            (17, 33, 49),
            (100, 10, 100),
        ] {
            for transposed in 0..4 {
                product((m, k, n), (transposed & 1 > 0, transposed & 2 > 0), unit);
            }
        }
    }
}

fn product((m, k, n): (usize, usize, usize), turned: (bool, bool), unit: Bf16Unit) {
    let matrix = |rows: usize, columns: usize, transposed: bool, values: &[f32]| {
        let (rows, columns) = if transposed {
            (columns, rows)
        } else {
            (rows, columns)
        };
        Matrix {
            values: values.as_ptr(),
            stride: columns + 3,
            rows,
            columns,
            transposed,
        }
    };
    let size = |rows: usize, columns: usize, transposed: bool| {
        if transposed {
            columns * (rows + 3)
        } else {
            rows * (columns + 3)
        }
    };
    let (x, y) = (
        noise(size(m, k, turned.0), 1),
        noise(size(k, n, turned.1), 2),
    );
    let (x_matrix, y_matrix) = (matrix(m, k, turned.0, &x), matrix(k, n, turned.1, &y));
    let (x, y) = (rounded(&x), rounded(&y));
    let bias = noise(n.next_multiple_of(LANES), 3);
    let at = |matrix: &Matrix, values: &[f32], i: usize, j: usize| {
        let (i, j) = if matrix.transposed { (j, i) } else { (i, j) };
        f64::from(values[i * matrix.stride + j])
    };
    let mut expected = Vec::new();
    for (i, j) in (0..m * n).map(|at| (at / n, at % n)) {
        let sum: f64 = (0..k)
            .map(|l| at(&x_matrix, &x, i, l) * at(&y_matrix, &y, l, j))
            .sum();
        expected.push(2.0 * sum + f64::from(bias[j]));
    }
    let c_row = n.next_multiple_of(LANES);
    let mut a = vec![0xffff_u16; packed_rows(m, k)];
    let mut b = vec![0xffff_u16; packed_columns(k, n)];
    let mut room = vec![0xffff_u16; a.len().max(b.len())];
    let mut c = vec![f32::NAN; m.next_multiple_of(LANES) * c_row];
    let session = Session::begin(unit);
    // SAFETY: all buffers are as large as the functions ask for
    unsafe {
        x_matrix.pack_rows(a.as_mut_ptr(), room.as_mut_ptr());
        y_matrix.pack_columns(b.as_mut_ptr(), room.as_mut_ptr());
        for start in [Start::Row(bias.as_ptr()), Start::Sums] {
            multiply(
                &session,
                (m, k, n),
                (a.as_ptr(), b.as_ptr()),
                start,
                (c.as_mut_ptr(), c_row),
            );
        }
    }
    drop(session);
    let got: Vec<f32> = c
        .chunks_exact(c_row)
        .take(m)
        .flat_map(|row| row[..n].to_vec())
        .collect();
    assert_close(
        &format!("{unit} {m} {k} {n} {turned:?}"),
        &got,
        &expected,
        1e-5,
    );
}
