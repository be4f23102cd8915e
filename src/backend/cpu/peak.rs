//! The machine's multiply-add peak, measured, so that every speed can be given as a share of it.

use super::CpuOptions;
use super::simd::{Kernel, Registers, Simd};
use crate::support::isa::Set;
use std::time::Instant;

const ROUNDS: usize = 500_000;

struct Burn<'a>(&'a mut f32);

impl Kernel for Burn<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: `Isa::run` picked S for this processor
        unsafe {
            // chains of dependent multiply-adds: enough to hide the latency of one, few enough for
            // the registers
            if S::REGISTERS == Registers::Many {
                burn::<S, MANY>(self.0)
            } else {
                burn::<S, FEW>(self.0)
            }
        }
    }
}

/// Chains where vectors have 32 registers, and where they have eight.
const MANY: usize = 16;
const FEW: usize = 7;

/// Runs of `ROUNDS` multiply-adds in each of `CHAINS` chains.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn burn<S: Simd, const CHAINS: usize>(sink: &mut f32) {
    // SAFETY: the caller says that the processor has the vectors of S
    unsafe {
        let (a, b) = (
            S::splat(std::hint::black_box(0.999_99)),
            S::splat(std::hint::black_box(1e-9)),
        );
        let mut chains = [S::splat(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for c in &mut chains {
                *c = S::fma(*c, a, b);
            }
        }
        let mut sum = chains[0];
        for &c in &chains[1..] {
            sum = S::add(sum, c);
        }
        *sink = S::sum(sum);
    }
}

/// FLOP/s of multiply-adds (two each) from registers on all threads of `options`, the best of three
/// runs.
pub fn fma_peak(options: CpuOptions) -> f64 {
    let chains = if options.isa.set() == Set::Avx512 {
        MANY
    } else {
        FEW
    };
    let once = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..options.threads {
                scope.spawn(|| {
                    let mut sink = 0.0;
                    options.isa.run(Burn(&mut sink));
                    std::hint::black_box(sink);
                });
            }
        });
        (2 * 16 * chains * ROUNDS * options.threads) as f64 / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}
