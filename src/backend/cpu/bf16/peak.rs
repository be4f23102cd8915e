//! Measures the peak of bf16 products on values in the nearest cache, so that the speed of a step
//! can be given as a share of it. Depends on the kernels.

use super::{BlockProduct, LANES, STEP, SUMS, Session, Start, TILE};
use crate::backend::cpu::CpuOptions;
use std::time::Instant;

/// Products of one measurement, and steps of each.
const ROUNDS: usize = 20_000;
const STEPS: usize = 4;

/// A thread's matrices, from the start of a cache line.
#[repr(C, align(64))]
struct Matrices {
    a: [u16; 2 * LANES * STEPS * STEP],
    b: [u16; 2 * STEPS * TILE],
    c: [f32; 4 * SUMS],
}

/// FLOP/s of bf16 products (two FLOP for each multiply-add) on all threads of `options`; the best of
/// three measurements. `None` if products are f32.
pub fn bf16_peak(options: CpuOptions) -> Option<f64> {
    let unit = options.products().unit()?;
    let burn = || {
        let mut m = Matrices {
            a: [0; 2 * LANES * STEPS * STEP],
            b: [0; 2 * STEPS * TILE],
            c: [0.0; 4 * SUMS],
        };
        let session = Session::begin(unit);
        for _ in 0..ROUNDS {
            let product = BlockProduct {
                a: &[m.a.as_ptr()],
                a_row: STEPS * STEP,
                b: &[m.b.as_ptr()],
                b_group: STEPS * TILE,
                steps: STEPS,
                start: Start::Zero,
                c: m.c.as_mut_ptr(),
                c_row: LANES,
                c_groups: (2 * SUMS, SUMS),
            };
            // SAFETY: the matrices have two tiles of rows and of columns, and `STEPS` steps
            unsafe { session.product(&product, 2, 2) };
        }
        std::hint::black_box(m.c[0]);
    };
    let once = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..options.threads() {
                scope.spawn(burn);
            }
        });
        let products = 4 * STEPS * TILE * LANES * ROUNDS * options.threads();
        2.0 * products as f64 / start.elapsed().as_secs_f64()
    };
    Some((0..3).map(|_| once()).fold(0.0, f64::max))
}
