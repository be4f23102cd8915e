//! Window attention on bf16 factors, on every unit of this processor, against a plain f64 loop over
//! inputs that are bf16 already, so that only the weights and the gradients of scores are rounded;
//! and the promises about bits.

use super::super::super::bf16::{Bf16Unit, Products};
use super::super::super::tests_common::{assert_close, assert_same_bits};
use super::super::super::{CpuOptions, Isa};
use super::super::tests::{Case, case};
use crate::plan::Precision;

/// Options for every unit, with `threads` threads.
fn every_unit(threads: usize) -> impl Iterator<Item = CpuOptions> {
    let isa = Isa::available()[0];
    let options = CpuOptions::new(threads).with_isa(isa);
    let all = Bf16Unit::available(isa).into_iter();
    all.map(move |unit| options.with_products(Products::Bf16(unit)))
}

fn rounded(values: &[f32]) -> Vec<f32> {
    let nearest = |&v: &f32| Precision::Bf16.widen(Precision::Bf16.narrow(v));
    values.iter().map(nearest).collect()
}

/// The case with inputs that are bf16 already.
fn exact(case: &Case) -> Case {
    Case {
        round: rounded,
        ..*case
    }
}

fn check(case: &Case, tolerance: f64) {
    let case = exact(case);
    let expected = case.expected(&case.wide());
    for options in every_unit(2) {
        let what = |part: &str| format!("{:?}, {case:?}: {part}", options.products());
        let got = case.run(&options);
        assert_close(&what("output"), &got.output, &expected.output, tolerance);
        assert_close(&what("d_qkv"), &got.d_qkv, &expected.d_qkv, tolerance);
    }
}

#[test]
fn windows_of_any_size_shift_and_padding() {
    for (extent, window, shift) in [
        ((1, 1, 1), 2, 0),
        ((2, 5, 4), 2, 1),
        ((1, 7, 4), 3, 2),
        ((1, 4, 6), 5, 1),
        ((3, 13, 19), 8, 4),
        ((1, 17, 16), 8, 0),
        ((1, 1, 1), 16, 8),
        ((1, 13, 19), 16, 0),
        ((1, 17, 16), 16, 8),
        ((1, 3, 33), 32, 16),
    ] {
        check(&case(extent, window, shift), 4e-3);
    }
    for (window, extent, heads) in [(8, (1, 13, 9), 3), (16, (2, 9, 16), 4)] {
        let one = case(extent, window, window / 2);
        check(&Case { heads, ..one }, 4e-3);
    }
}

/// Scores of a hundred and more: most weights vanish.
#[test]
fn large_scores() {
    let small = case((1, 13, 16), 8, 4);
    check(
        &Case {
            size: 10.0,
            ..small
        },
        1e-2,
    );
}

#[test]
fn scores_of_any_size_give_means() {
    for size in [1e4, 1e15] {
        let small = case((1, 8, 8), 8, 4);
        let case = Case { size, ..small };
        for options in every_unit(1) {
            let results = case.run(&options);
            let all = |values: &[f32], limit: f32| values.iter().all(|v| v.abs() <= limit);
            assert!(
                all(&results.output, 1.01 * size),
                "{:?}",
                options.products()
            );
            assert!(all(&results.d_qkv, f32::MAX), "{:?}", options.products());
        }
    }
}

/// The values of equal keys are averaged, and equal values have weights without a gradient.
#[test]
fn equal_pixels_give_their_value_and_no_gradient_of_scores() {
    let same = case((1, 16, 16), 16, 0);
    let case = Case {
        round: |values| vec![values[0]; values.len()],
        ..same
    };
    let value = f64::from(case.qkv()[0]);
    for options in every_unit(1) {
        let results = case.run(&options);
        let rounded = |v: &f32| (f64::from(*v) / value - 1.0).abs() < 8e-3;
        assert!(results.output.iter().all(rounded), "{:?}", results.output);
        let c = case.channels();
        let (all, d) = (results.d_qkv.chunks(3 * c), case.d_output()[0].abs());
        for pixel in all {
            assert!(
                pixel[..2 * c].iter().all(|v| v.abs() < 1e-2 * d),
                "{pixel:?}"
            );
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for case in [
        case((3, 13, 19), 8, 4),
        case((1, 9, 33), 16, 8),
        case((2, 5, 7), 2, 1),
    ] {
        let case = Case { heads: 2, ..case };
        for options in every_unit(1) {
            let one = case.run(&options);
            for threads in [2, 5] {
                let more = CpuOptions::new(threads).with_isa(options.isa());
                let other = case.run(&more.with_products(options.products()));
                assert_same_bits("output", &one.output, &other.output);
                assert_same_bits("d_qkv", &one.d_qkv, &other.d_qkv);
            }
        }
    }
}
