//! Sixteen f32 lanes behind one trait, so that every kernel is written once and compiled for AVX-512, AVX2+FMA and plain
//! code; the instruction set is chosen at run time. Depends on nothing. A kernel gives the same bits whatever its place in
//! a row, since each output value is one fixed chain of operations.

use std::fmt;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Sixteen f32 values and the operations the kernels need.
///
/// # Safety
/// Every function may only run on a processor with the instructions of the implementing type; [`Isa::run`] sees to that.
/// Loads and stores take unaligned pointers to 16 valid values.
#[allow(clippy::missing_safety_doc)] // one contract for all, stated above
pub trait Simd: Copy + Send + Sync + 'static {
    /// The vector.
    type V: Copy;
    /// How many vectors registers hold: tile sizes follow from it.
    const REGISTERS: Registers;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn splat(x: f32) -> Self::V;
    /// a * b + c, in one rounding where the processor can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// 2^x for integral x in [-126, 127].
    unsafe fn exp2_integral(x: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    unsafe fn round(x: Self::V) -> Self::V;
    /// Sum of the lanes in a fixed order.
    unsafe fn sum(v: Self::V) -> f32;
}

/// Room for vectors of sixteen lanes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Registers {
    /// None to speak of: tiles of one, which also keeps plain code small.
    Few,
    /// Eight (sixteen halves).
    Eight,
    /// Thirty-two.
    Many,
}

/// Work to be compiled for every instruction set.
pub trait Kernel {
    /// Runs it with the given vectors; implementations are `#[inline(always)]` so that the code lands inside the function
    /// that enables the instructions.
    fn run<S: Simd>(self);
}

/// The instruction sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, vectorised as the compiler can: the readable reference.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F/BW/DQ/VL.
    Avx512,
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "AVX2",
            Isa::Avx512 => "AVX-512",
        })
    }
}

impl Isa {
    /// Every instruction set this processor has, best first.
    pub fn available() -> Vec<Isa> {
        let mut list = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                list.push(Isa::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                list.push(Isa::Avx2);
            }
        }
        list.push(Isa::Portable);
        list
    }

    /// The best one here.
    pub fn detect() -> Isa {
        Isa::available()[0]
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) {
        match self {
            Isa::Portable => kernel.run::<Portable>(),
            // SAFETY: an `Isa` other than Portable is only made by `available`, after the processor was asked
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::run_avx512(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => kernel.run::<Portable>(),
        }
    }
}

/// Plain code.
#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn map(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (i, o) in out.iter_mut().enumerate() {
        *o = f(i);
    }
    out
}

impl Simd for Portable {
    type V = [f32; LANES];
    const REGISTERS: Registers = Registers::Few;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        map(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        map(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        map(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        map(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        map(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        map(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        map(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn exp2_integral(x: Self::V) -> Self::V {
        map(|i| f32::from_bits((((x[i] as i32) + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn round(x: Self::V) -> Self::V {
        // adding and taking away 1.5 * 2^23 rounds to the nearest integer without a library call
        const MAGIC: f32 = 12_582_912.0;
        map(|i| (x[i] + MAGIC) - MAGIC)
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut half: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
        for width in [4, 2, 1] {
            for i in 0..width {
                half[i] += half[i + width];
            }
        }
        half[0]
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Registers, Simd};
    use std::arch::x86_64::*;

    /// # Safety
    /// The processor must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn run_avx2<K: Kernel>(kernel: K) {
        kernel.run::<Avx2>();
    }

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

    type Pair = [__m256; 2];

    impl Simd for Avx2 {
        type V = Pair;
        const REGISTERS: Registers = Registers::Eight;
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Pair {
            unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Pair) {
            unsafe {
                _mm256_storeu_ps(p, v[0]);
                _mm256_storeu_ps(p.add(8), v[1]);
            }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Pair {
            unsafe {
                let v = _mm256_set1_ps(x);
                [v, v]
            }
        }
        #[inline(always)]
        unsafe fn fma(a: Pair, b: Pair, c: Pair) -> Pair {
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        unsafe fn add(a: Pair, b: Pair) -> Pair {
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn sub(a: Pair, b: Pair) -> Pair {
            unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn mul(a: Pair, b: Pair) -> Pair {
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn div(a: Pair, b: Pair) -> Pair {
            unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn min(a: Pair, b: Pair) -> Pair {
            unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn max(a: Pair, b: Pair) -> Pair {
            unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn exp2_integral(x: Pair) -> Pair {
            unsafe {
                let one = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127))));
                [one(x[0]), one(x[1])]
            }
        }
        #[inline(always)]
        unsafe fn round(x: Pair) -> Pair {
            const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            unsafe { [_mm256_round_ps::<MODE>(x[0]), _mm256_round_ps::<MODE>(x[1])] }
        }
        #[inline(always)]
        unsafe fn sum(v: Pair) -> f32 {
            unsafe {
                let eight = _mm256_add_ps(v[0], v[1]);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
    }

    impl Simd for Avx512 {
        type V = __m512;
        const REGISTERS: Registers = Registers::Many;
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn exp2_integral(x: __m512) -> __m512 {
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(127)))) }
        }
        #[inline(always)]
        unsafe fn round(x: __m512) -> __m512 {
            unsafe { _mm512_roundscale_ps::<0>(x) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m512) -> f32 {
            unsafe { Avx2::sum([_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)]) }
        }
    }
}
