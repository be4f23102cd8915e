//! The fibers that run kernels on the host (`kernels/host`): launches that break a rule of the device are
//! reported, and the twins of its instructions have exact results.

use crate::kernels_common::{ORDERS, Order, fibers, replay};
use crate::network_common;
use paragon::plan::Precision;
use std::path::Path;

/// Runs a kernel of `kernels/host/fibers_test.cpp` in one block of two warps on `data`.
fn run(
    program: &Path,
    order: Order,
    kernel: &str,
    shared: usize,
    data: &[u8],
) -> Result<Vec<u8>, String> {
    let text = format!("1\n{}\n1\n{kernel} 1 1 1 64 {shared} 8 b 0 0\n", data.len());
    replay(program, order, None, &[text.as_bytes(), data].concat())
}

#[test]
fn what_a_device_does_not_allow_is_reported() {
    let Some(program) = fibers(Precision::Bf16, false) else {
        return;
    };
    let not_all = "some lanes of a warp do not reach a warp operation";
    let different = "lanes of a warp wait at different warp operations";
    for (kernel, shared, words) in [
        ("a_lane_ends_before_an_operation", 0, not_all),
        ("lanes_at_different_operations", 0, different),
        ("products_of_different_depths", 0, different),
        (
            "a_warp_ends_before_a_barrier",
            0,
            "while others wait at a barrier",
        ),
        (
            "a_row_outside_shared_memory",
            16 * 63,
            "outside the block's shared memory",
        ),
        (
            "lanes_without_rows_have_other_addresses",
            16 * 32,
            "another address than lane i % 16",
        ),
    ] {
        for order in ORDERS {
            let error = run(&program, order, kernel, shared, &[0; 128]).unwrap_err();
            assert!(error.contains(words), "{kernel}, {order:?}: {error}");
        }
    }
    let inside = run(
        &program,
        Order::Mixed,
        "a_row_outside_shared_memory",
        16 * 64,
        &[0; 128],
    );
    inside.unwrap();
}

/// What lies next to an array is poisoned on the stack of every fiber, also after other fibers ran. Where
/// fibers are contexts of the C library, the sanitizer forgets this at every switch.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_sanitizer_sees_the_stacks_of_fibers_and_shared_memory() {
    let Some(program) = fibers(Precision::Bf16, true) else {
        return;
    };
    for (kernel, shared, words) in [
        ("after_an_array", 0, "stack-buffer-overflow"),
        ("after_shared_memory", 16, "heap-buffer-overflow"),
        ("more_stack_than_there_is", 0, "stack-overflow"),
    ] {
        for order in ORDERS {
            let error = run(&program, order, kernel, shared, &[4; 128]).unwrap_err();
            assert!(error.contains(words), "{kernel}, {order:?}: {error}");
        }
        if kernel.starts_with("after") {
            run(&program, Order::Mixed, kernel, shared, &[0; 128]).unwrap();
        }
    }
}

/// Products and their sums are rounded to f32 one after the other, in the order of k.
#[test]
fn products_have_the_bits_of_sums_in_order() {
    for precision in [Precision::Bf16, Precision::Fp16] {
        let Some(program) = fibers(precision, false) else {
            return;
        };
        let mut words: Vec<u32> = Vec::new();
        for warp in 0..2 {
            let halves = network_common::noise(384, warp).into_iter();
            let halves: Vec<u32> = halves
                .map(|v| u32::from(precision.narrow(v - 0.5)))
                .collect();
            words.extend(halves.chunks_exact(2).map(|pair| pair[0] | pair[1] << 16));
            words.extend(
                network_common::noise(128, 9 + warp)
                    .iter()
                    .map(|v| v.to_bits()),
            );
        }
        let value = |warp: usize, lane: usize, word: usize, k: usize| {
            let word = words[320 * warp + 6 * lane + word];
            precision.widen((word >> (k % 2 * 16)) as u16)
        };
        let mut want = words.clone();
        for (warp, lane, i) in (0..256).map(|at| (at / 128, at / 4 % 32, at % 4)) {
            let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            let mut sum = 0f32;
            for k in 0..16 {
                let holder = k % 8 / 2;
                let left = value(warp, row % 8 * 4 + holder, row / 8 + k / 8 * 2, k);
                let right = value(warp, column * 4 + holder, 4 + k / 8, k);
                sum += left * right;
            }
            let at = 320 * warp + 192 + 4 * lane + i;
            want[at] = (f32::from_bits(words[at]) + sum).to_bits();
        }
        let bytes = |words: &[u32]| -> Vec<u8> {
            let bytes = words.iter().flat_map(|w| w.to_le_bytes());
            bytes.collect()
        };
        for order in ORDERS {
            let got = run(&program, order, "products", 0, &bytes(&words)).unwrap();
            assert!(got == bytes(&want), "{precision}, {order:?}");
        }
    }
}

#[test]
fn halves_are_those_of_the_library() {
    for precision in [Precision::Bf16, Precision::Fp16] {
        let Some(program) = fibers(precision, false) else {
            return;
        };
        let memory = vec![0; 6 * 65536];
        let got = run(&program, Order::Mixed, "every_half", 0, &memory).unwrap();
        let (floats, halves) = got.split_at(4 * 65536);
        for half in 0..=u16::MAX {
            let at = usize::from(half);
            let float = f32::from_bits(u32::from_le_bytes(
                floats[4 * at..4 * at + 4].try_into().unwrap(),
            ));
            let back = u16::from_le_bytes(halves[2 * at..2 * at + 2].try_into().unwrap());
            assert_eq!(float.to_bits(), precision.widen(half).to_bits(), "{half:x}");
            // every NaN becomes the device's
            let want = if float.is_nan() { 0x7fff } else { half };
            assert_eq!(back, want, "{half:x}");
        }
    }
}
