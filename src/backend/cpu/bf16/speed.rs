//! Whether vectors of bf16 are faster than f32 on this processor. Depends on vectors of AVX-512 alone.

use super::own::halves;
use std::arch::x86_64::*;

/// Measures whether `vdpbf16ps`, which multiplies 32 pairs of values, is faster than two f32
/// multiply-adds of 16 by a fifth at least. (It has half their rate on Intel's processors up to
/// Granite Rapids, and twice their rate on AMD's from Zen 4 on, so that a busy machine does not change
/// the answer.) Takes about a millisecond.
pub fn vectors_beat_f32() -> bool {
    if !is_x86_feature_detected!("avx512bf16") {
        return false;
    }
    let mut best = [f64::INFINITY; 2];
    for _ in 0..20 {
        // SAFETY: the processor has the instructions
        unsafe {
            best[0] = best[0].min(time_of_chains::<false>());
            best[1] = best[1].min(time_of_chains::<true>());
        }
    }
    1.2 * best[1] < 2.0 * best[0]
}

/// Seconds of twelve independent chains of f32 multiply-adds, or of as many bf16 products.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn time_of_chains<const BF16: bool>() -> f64 {
    let factor = std::hint::black_box(_mm512_set1_ps(1.0));
    let bits = halves(_mm512_castps_si512(factor));
    let mut sums = [_mm512_setzero_ps(); 12];
    let start = std::time::Instant::now();
    for _ in 0..1000 {
        for sum in &mut sums {
            *sum = if BF16 {
                _mm512_dpbf16_ps(*sum, bits, bits)
            } else {
                _mm512_fmadd_ps(factor, factor, *sum)
            };
        }
    }
    std::hint::black_box(sums);
    start.elapsed().as_secs_f64()
}
