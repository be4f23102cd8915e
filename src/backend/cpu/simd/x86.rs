//! The vectors of AVX2 with FMA, two registers each, and of AVX-512, one register each. All
//! operations but the fused multiply-add give the bits of the plain version.

use super::{Kernel, LookupTable, Registers, Simd};
use std::arch::x86_64::*;

/// Runs a kernel compiled for AVX2.
///
/// # Safety
/// The processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn run_avx2<K: Kernel>(kernel: K) {
    kernel.run::<Avx2>();
}

/// Runs a kernel compiled for AVX-512, which implies AVX2 and FMA.
///
/// # Safety
/// The processor must have AVX-512 F, BW, DQ, VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub unsafe fn run_avx512<K: Kernel>(kernel: K) {
    kernel.run::<Avx512>();
}

/// Two 256-bit registers.
#[derive(Clone, Copy)]
pub struct Avx2;

/// One 512-bit register.
#[derive(Clone, Copy)]
pub struct Avx512;

type YmmPair = [__m256; 2];
type DoublePair = [__m256d; 2];

impl Simd for Avx2 {
    type V = YmmPair;
    type D = DoublePair;
    const REGISTERS: Registers = Registers::Eight;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA, and that 16 values can
        // be read at `p`
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: YmmPair) {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA, and that 16 values can
        // be written at `p`
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: a hint that reads nothing, on any address
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
    }
    #[inline(always)]
    unsafe fn stream(p: *mut f32, v: YmmPair) {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA, and that `p`, a
        // multiple of 64, has room for 16 values
        unsafe {
            _mm256_stream_ps(p, v[0]);
            _mm256_stream_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn fence() {
        // SAFETY: every processor of this architecture has the instruction
        unsafe { _mm_sfence() };
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe {
            let v = _mm256_set1_ps(x);
            [v, v]
        }
    }
    #[inline(always)]
    unsafe fn fma(a: YmmPair, b: YmmPair, c: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn add(a: YmmPair, b: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: YmmPair, b: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: YmmPair, b: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: YmmPair, b: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sqrt(x: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe { [_mm256_sqrt_ps(x[0]), _mm256_sqrt_ps(x[1])] }
    }
    #[inline(always)]
    unsafe fn min(a: YmmPair, b: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: YmmPair, b: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn abs(x: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, x[0]), _mm256_andnot_ps(sign, x[1])]
        }
    }
    #[inline(always)]
    unsafe fn where_positive(z: YmmPair, a: YmmPair, b: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe {
            let zero = _mm256_setzero_ps();
            [
                _mm256_blendv_ps(b[0], a[0], _mm256_cmp_ps::<_CMP_GT_OQ>(z[0], zero)),
                _mm256_blendv_ps(b[1], a[1], _mm256_cmp_ps::<_CMP_GT_OQ>(z[1], zero)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn xor_sign(x: YmmPair, sign: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe {
            let bit = _mm256_set1_ps(-0.0);
            [
                _mm256_xor_ps(x[0], _mm256_and_ps(sign[0], bit)),
                _mm256_xor_ps(x[1], _mm256_and_ps(sign[1], bit)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn lookup(table: &LookupTable, at: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA; a table is 16 values,
        // aligned to 64 bytes
        unsafe {
            let table = _mm256_load_ps(table.0.as_ptr());
            [
                _mm256_permutevar8x32_ps(table, _mm256_castps_si256(at[0])),
                _mm256_permutevar8x32_ps(table, _mm256_castps_si256(at[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn times_power_of_2(x: YmmPair, at: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe {
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(at[0]));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(at[1]));
            [
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x[0]), low)),
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x[1]), high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn power_of_two(at: YmmPair) -> YmmPair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe {
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(at[0]))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(at[1]))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn largest(v: YmmPair) -> f32 {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe {
            let eight = _mm256_max_ps(v[0], v[1]);
            let four = _mm_max_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn sum(v: YmmPair) -> f32 {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe {
            let eight = _mm256_add_ps(v[0], v[1]);
            let four = _mm_add_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn sums(v: &[YmmPair; 8], out: *mut f32) {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA, and that 8 values can
        // be written at `out`
        unsafe {
            let fold = |v: YmmPair| _mm256_add_ps(v[0], v[1]);
            let two = |a: YmmPair, b: YmmPair| _mm256_hadd_ps(fold(a), fold(b));
            let low = _mm256_hadd_ps(two(v[0], v[1]), two(v[2], v[3]));
            let high = _mm256_hadd_ps(two(v[4], v[5]), two(v[6], v[7]));
            let sum = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(low, high),
                _mm256_permute2f128_ps::<0x31>(low, high),
            );
            _mm256_storeu_ps(out, sum);
        }
    }
    #[inline(always)]
    unsafe fn load_doubles(p: *const f64) -> DoublePair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA, and that 8 values can be
        // read at `p`
        unsafe { [_mm256_loadu_pd(p), _mm256_loadu_pd(p.add(4))] }
    }
    #[inline(always)]
    unsafe fn widen(p: *const f32) -> DoublePair {
        // SAFETY: as above
        unsafe {
            [
                _mm256_cvtps_pd(_mm_loadu_ps(p)),
                _mm256_cvtps_pd(_mm_loadu_ps(p.add(4))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_doubles(p: *mut f64, v: DoublePair) {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA, and that 8 values can be
        // written at `p`
        unsafe {
            _mm256_storeu_pd(p, v[0]);
            _mm256_storeu_pd(p.add(4), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn splat_double(x: f64) -> DoublePair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe { [_mm256_set1_pd(x); 2] }
    }
    #[inline(always)]
    unsafe fn fma_doubles(a: DoublePair, b: DoublePair, c: DoublePair) -> DoublePair {
        // SAFETY: the caller guarantees that the processor has AVX2 and FMA
        unsafe {
            [
                _mm256_fmadd_pd(a[0], b[0], c[0]),
                _mm256_fmadd_pd(a[1], b[1], c[1]),
            ]
        }
    }
}

impl Simd for Avx512 {
    type V = __m512;
    type D = __m512d;
    const REGISTERS: Registers = Registers::Many;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512, and that 16 values can be
        // read at `p`
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: the caller guarantees that the processor has AVX-512, and that 16 values can be
        // written at `p`
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: a hint that reads nothing, on any address
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
    }
    #[inline(always)]
    unsafe fn stream(p: *mut f32, v: __m512) {
        // SAFETY: the caller guarantees that the processor has AVX-512, and that `p`, a multiple of
        // 64, has room for 16 values
        unsafe { _mm512_stream_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn fence() {
        // SAFETY: every processor of this architecture has the instruction
        unsafe { _mm_sfence() };
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(x: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_sqrt_ps(x) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(x: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_abs_ps(x) }
    }
    #[inline(always)]
    unsafe fn where_positive(z: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe {
            let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(z, _mm512_setzero_ps());
            _mm512_mask_blend_ps(positive, b, a)
        }
    }
    #[inline(always)]
    unsafe fn xor_sign(x: __m512, sign: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_xor_ps(x, _mm512_and_ps(sign, _mm512_set1_ps(-0.0))) }
    }
    #[inline(always)]
    unsafe fn lookup(table: &LookupTable, at: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512; a table is 16 values,
        // aligned to 64 bytes
        unsafe { _mm512_permutexvar_ps(_mm512_castps_si512(at), _mm512_load_ps(table.0.as_ptr())) }
    }
    #[inline(always)]
    unsafe fn times_power_of_2(x: __m512, at: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(at));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent))
        }
    }
    #[inline(always)]
    unsafe fn transpose(r: [__m512; 16]) -> [__m512; 16] {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe {
            // within quarters of four lanes: single lanes of two rows, then pairs of four rows
            let mut columns = r;
            for i in (0..16).step_by(4) {
                let (a, b) = (
                    _mm512_unpacklo_ps(r[i], r[i + 1]),
                    _mm512_unpackhi_ps(r[i], r[i + 1]),
                );
                let (c, d) = (
                    _mm512_unpacklo_ps(r[i + 2], r[i + 3]),
                    _mm512_unpackhi_ps(r[i + 2], r[i + 3]),
                );
                columns[i] = _mm512_shuffle_ps::<0x44>(a, c);
                columns[i + 1] = _mm512_shuffle_ps::<0xee>(a, c);
                columns[i + 2] = _mm512_shuffle_ps::<0x44>(b, d);
                columns[i + 3] = _mm512_shuffle_ps::<0xee>(b, d);
            }
            // the quarters: those of row 4 i + j hold the columns j, j + 4, j + 8 and j + 12
            let mut out = r;
            for j in 0..4 {
                let [a, b, c, d] = [0, 4, 8, 12].map(|i| columns[i + j]);
                let (low, high) = (
                    _mm512_shuffle_f32x4::<0x44>(a, b),
                    _mm512_shuffle_f32x4::<0xee>(a, b),
                );
                let (next_low, next_high) = (
                    _mm512_shuffle_f32x4::<0x44>(c, d),
                    _mm512_shuffle_f32x4::<0xee>(c, d),
                );
                out[j] = _mm512_shuffle_f32x4::<0x88>(low, next_low);
                out[j + 4] = _mm512_shuffle_f32x4::<0xdd>(low, next_low);
                out[j + 8] = _mm512_shuffle_f32x4::<0x88>(high, next_high);
                out[j + 12] = _mm512_shuffle_f32x4::<0xdd>(high, next_high);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn power_of_two(at: __m512) -> __m512 {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(at))) }
    }
    #[inline(always)]
    unsafe fn largest(v: __m512) -> f32 {
        // SAFETY: the caller guarantees that the processor has AVX-512, which implies AVX2
        unsafe { Avx2::largest([_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)]) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        // SAFETY: the caller guarantees that the processor has AVX-512, which implies AVX2
        unsafe { Avx2::sum([_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)]) }
    }
    #[inline(always)]
    unsafe fn sums(v: &[__m512; 8], out: *mut f32) {
        // SAFETY: the caller guarantees that the processor has AVX-512, and that 8 values can be
        // written at `out`
        unsafe {
            // halves, quarters, pairs, and the last two lanes: the vectors left are halved each
            // time
            let halves = |a, b| {
                _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0x44>(a, b),
                    _mm512_shuffle_f32x4::<0xee>(a, b),
                )
            };
            let quarters = |a, b| {
                _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0x88>(a, b),
                    _mm512_shuffle_f32x4::<0xdd>(a, b),
                )
            };
            let low = quarters(halves(v[0], v[1]), halves(v[2], v[3]));
            let high = quarters(halves(v[4], v[5]), halves(v[6], v[7]));
            let pairs = _mm512_add_ps(
                _mm512_shuffle_ps::<0x44>(low, high),
                _mm512_shuffle_ps::<0xee>(low, high),
            );
            let sum = _mm512_add_ps(pairs, _mm512_shuffle_ps::<0xf5>(pairs, pairs));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
            _mm256_storeu_ps(
                out,
                _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sum)),
            );
        }
    }
    #[inline(always)]
    unsafe fn load_doubles(p: *const f64) -> __m512d {
        // SAFETY: the caller guarantees that the processor has AVX-512, and that 8 values can be
        // read at `p`
        unsafe { _mm512_loadu_pd(p) }
    }
    #[inline(always)]
    unsafe fn widen(p: *const f32) -> __m512d {
        // SAFETY: as above
        unsafe { _mm512_cvtps_pd(_mm256_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn store_doubles(p: *mut f64, v: __m512d) {
        // SAFETY: the caller guarantees that the processor has AVX-512, and that 8 values can be
        // written at `p`
        unsafe { _mm512_storeu_pd(p, v) }
    }
    #[inline(always)]
    unsafe fn splat_double(x: f64) -> __m512d {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_set1_pd(x) }
    }
    #[inline(always)]
    unsafe fn fma_doubles(a: __m512d, b: __m512d, c: __m512d) -> __m512d {
        // SAFETY: the caller guarantees that the processor has AVX-512
        unsafe { _mm512_fmadd_pd(a, b, c) }
    }
}
