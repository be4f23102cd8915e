//! Measures the machine's peak of multiply-adds, so that the speed of a step can be given as a
//! share of it. Depends on the vectors.

use super::CpuOptions;
use super::simd::{Kernel, LANES, Registers, Simd};
use std::time::Instant;

/// Multiply-adds in each chain of one measurement.
const ROUNDS: usize = 500_000;

/// Independent chains of multiply-adds, enough to hide the latency of one and few enough for the
/// registers: with [`Registers::Many`], and otherwise.
const CHAINS_OF_MANY: usize = 16;
const CHAINS_OF_FEW: usize = 7;

/// Runs [`ROUNDS`] multiply-adds in every chain and stores the number of chains.
struct Burn<'a> {
    chains: &'a mut usize,
}

impl Kernel for Burn<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: `Isa::run` chose S for this processor
        unsafe {
            if S::REGISTERS == Registers::Many {
                burn::<S, CHAINS_OF_MANY>();
                *self.chains = CHAINS_OF_MANY;
            } else {
                burn::<S, CHAINS_OF_FEW>();
                *self.chains = CHAINS_OF_FEW;
            }
        }
    }
}

/// Runs [`ROUNDS`] multiply-adds in each of `CHAINS` chains.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn burn<S: Simd, const CHAINS: usize>() {
    // SAFETY: the caller guarantees that the processor has the instructions of S
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
        std::hint::black_box(S::sum(sum));
    }
}

/// FLOP/s of multiply-adds (two FLOP each) on registers, on all threads of `options`; the best of
/// three measurements.
pub fn fma_peak(options: CpuOptions) -> f64 {
    let once = || {
        let start = Instant::now();
        let chains: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..options.threads)
                .map(|_| {
                    scope.spawn(|| {
                        let mut chains = 0;
                        options.isa.run(Burn {
                            chains: &mut chains,
                        });
                        chains
                    })
                })
                .collect();
            // a thread of this loop cannot panic; it would count as idle
            threads.into_iter().map(|t| t.join().unwrap_or(0)).sum()
        });
        (2 * LANES * chains * ROUNDS) as f64 / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}
