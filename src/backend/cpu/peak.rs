//! The machine's multiply-add peak, measured, so that every speed can be given as a share of it.

use super::CpuOptions;
use super::simd::{Kernel, Simd};
use std::time::Instant;

/// Chains of dependent multiply-adds: enough to hide the latency of one, few enough for every register file.
const CHAINS: usize = 7;
const ROUNDS: usize = 500_000;

struct Burn<'a>(&'a mut f32);

impl Kernel for Burn<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: `Isa::run` picked S for this processor
        unsafe {
            let (a, b) = (S::splat(std::hint::black_box(0.999_99)), S::splat(std::hint::black_box(1e-9)));
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
            *self.0 = S::sum(sum);
        }
    }
}

/// FLOP/s of multiply-adds (two each) from registers on all threads of `options`, the best of three runs.
pub fn fma_peak(options: CpuOptions) -> f64 {
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
        (2 * 16 * CHAINS * ROUNDS * options.threads) as f64 / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}
