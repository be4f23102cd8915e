//! Convolutions on bf16 factors against f64 loops over values that are bf16 already, so that only
//! the order of the f32 sums differs; and the promises about bits. On every unit of this processor.

use super::super::super::bf16::{Bf16Unit, Products};
use super::super::super::tests_common::{assert_close, assert_same_bits};
use super::super::super::{CpuOptions, Isa};
use super::super::tests::{Case, PRELU, dense};
use crate::plan::Activation;

/// Options for every unit, with `threads` threads.
fn every_unit(threads: usize) -> impl Iterator<Item = CpuOptions> {
    let isa = Isa::available()[0];
    let options = CpuOptions::new(threads).with_isa(isa);
    let all = Bf16Unit::available(isa).into_iter();
    all.map(move |unit| options.with_products(Products::Bf16(unit)))
}

fn check(case: &Case, tolerance: f64) {
    let expected = case.expected();
    for options in every_unit(2) {
        let got = case.run(&options, &[0..case.extent.0]);
        let what = |part: &str| format!("{:?}, {case:?}: {part}", options.products());
        assert_close(&what("output"), &got.output, &expected.output, tolerance);
        assert_close(&what("input"), &got.d_input, &expected.d_input, tolerance);
        let at = case.weights();
        let slopes = got.d_parameters.len().min(at + case.cout);
        for (part, range) in [
            ("weight", 0..at),
            ("bias", at..at + case.cout),
            ("slopes", slopes..got.d_parameters.len()),
        ] {
            let expected = &expected.d_parameters[range.clone()];
            assert_close(&what(part), &got.d_parameters[range], expected, tolerance);
        }
        let padding = |values: &[f32], channels: usize, stride: usize| {
            let mut rest = values.chunks_exact(stride).flat_map(|p| &p[channels..]);
            rest.all(|&v| v == 0.0)
        };
        assert!(padding(&got.output, case.cout, case.output_stride()));
        assert!(padding(&got.d_input, case.cin, Case::stride(case.cin)));
    }
}

#[test]
fn every_width_and_size() {
    for (extent, cin, cout, kernel) in [
        ((1, 1, 1), 16, 16, 3),
        ((1, 1, 1), 64, 48, 1),
        ((2, 5, 3), 24, 52, 3),
        ((1, 7, 11), 52, 24, 3),
        ((2, 3, 13), 96, 16, 1),
        ((1, 35, 9), 16, 48, 3),
        ((1, 4, 37), 64, 64, 3),
        ((1, 3, 16), 48, 96, 3),
        ((3, 2, 17), 52, 20, 1),
        ((1, 9, 33), 24, 16, 3),
        ((1, 2, 70), 64, 64, 1),
        ((1, 3, 290), 16, 24, 3),
        ((1, 8, 10), 16, 20, 5),
    ] {
        for add in [false, true] {
            let case = Case {
                kernel,
                add,
                rounded: true,
                tile_invariant: add,
                ..dense(extent, cin, cout)
            };
            check(&case, 1e-5);
        }
    }
}

#[test]
fn activations_of_the_input() {
    let all = [
        (Activation::Relu, 1e-5),
        (Activation::LeakyRelu { slope: 0.25 }, 1e-5),
        (PRELU, 1e-5),
        // a value near the middle of two bf16 may be rounded to either
        (Activation::Silu, 1e-3),
        (Activation::Gelu, 1e-3),
    ];
    for ((activation, tolerance), add) in all
        .into_iter()
        .flat_map(|a| [false, true].map(|add| (a, add)))
    {
        let case = Case {
            activation: Some(activation),
            add,
            rounded: true,
            ..dense((2, 9, 7), 24, 48)
        };
        check(&case, tolerance);
        check(&Case { kernel: 1, ..case }, tolerance);
    }
    // more values than are activated at a time
    let case = Case {
        activation: Some(PRELU),
        rounded: true,
        ..dense((1, 2, 45), 52, 16)
    };
    check(&case, 1e-5);
}

#[test]
fn threads_and_slices_change_no_bit() {
    for (cin, cout, kernel, activation) in [
        (20, 24, 3, Some(PRELU)),
        (64, 48, 3, None),
        (32, 20, 1, Some(PRELU)),
    ] {
        let case = Case {
            kernel,
            activation,
            ..dense((3, 35, 5), cin, cout)
        };
        for one_thread in every_unit(1) {
            let one = case.run(&one_thread, &[0..3]);
            let threads = |threads: usize| {
                CpuOptions::new(threads)
                    .with_isa(one_thread.isa())
                    .with_products(one_thread.products())
            };
            for other in [
                case.run(&threads(2), &[0..3]),
                case.run(&threads(5), &[0..3]),
                case.run(&one_thread, &[0..2, 2..3]),
            ] {
                assert_same_bits("output", &one.output, &other.output);
                assert_same_bits("input", &one.d_input, &other.d_input);
                assert_same_bits("parameters", &one.d_parameters, &other.d_parameters);
            }
        }
    }
}

/// The same pixels in images of other shapes: with 1x1 taps all outputs are the same.
#[test]
fn the_place_of_a_pixel_changes_no_bit() {
    let image = |h: usize, w: usize| Case {
        kernel: 1,
        activation: Some(PRELU),
        ..dense((1, h, w), 24, 48)
    };
    for options in every_unit(1) {
        let one_row = image(1, 105).run(&options, &[0..1]);
        for (h, w) in [(105, 1), (15, 7), (5, 21), (3, 35)] {
            let other = image(h, w).run(&options, &[0..1]);
            assert_same_bits("output", &one_row.output, &other.output);
            assert_same_bits("input", &one_row.d_input, &other.d_input);
        }
    }
}
