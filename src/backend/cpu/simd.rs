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
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn abs(x: Self::V) -> Self::V;
    /// `x` with its sign changed where that of `sign` is set.
    unsafe fn xor_sign(x: Self::V, sign: Self::V) -> Self::V;
    /// The entry of `table` that the three lowest bits of each lane number.
    unsafe fn lookup(table: &Table, at: Self::V) -> Self::V;
    /// Sum of the lanes in a fixed order.
    unsafe fn sum(v: Self::V) -> f32;
    /// The sums of eight vectors to `out[0..8]`, each in the same order whatever its place.
    unsafe fn sums(v: &[Self::V; 8], out: *mut f32);
}

/// Eight values, twice, so that a vector of any width up to sixteen lanes holds whole copies.
#[repr(align(64))]
pub struct Table(pub [f32; LANES]);

impl Table {
    /// A table of eight values.
    pub const fn new(values: [f32; 8]) -> Table {
        let mut twice = [0.0; LANES];
        let mut i = 0;
        while i < LANES {
            twice[i] = values[i % 8];
            i += 1;
        }
        Table(twice)
    }
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
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        map(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        map(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn abs(x: Self::V) -> Self::V {
        map(|i| x[i].abs())
    }
    #[inline(always)]
    unsafe fn xor_sign(x: Self::V, sign: Self::V) -> Self::V {
        map(|i| f32::from_bits(x[i].to_bits() ^ (sign[i].to_bits() & 1 << 31)))
    }
    #[inline(always)]
    unsafe fn lookup(table: &Table, at: Self::V) -> Self::V {
        map(|i| table.0[(at[i].to_bits() & 7) as usize])
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
    #[inline(always)]
    unsafe fn sums(v: &[Self::V; 8], out: *mut f32) {
        for (i, &v) in v.iter().enumerate() {
            unsafe { *out.add(i) = Self::sum(v) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Registers, Simd, Table};
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
        unsafe fn min(a: Pair, b: Pair) -> Pair {
            unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn max(a: Pair, b: Pair) -> Pair {
            unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn abs(x: Pair) -> Pair {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, x[0]), _mm256_andnot_ps(sign, x[1])]
        }
        #[inline(always)]
        unsafe fn xor_sign(x: Pair, sign: Pair) -> Pair {
            let bit = _mm256_set1_ps(-0.0);
            [_mm256_xor_ps(x[0], _mm256_and_ps(sign[0], bit)), _mm256_xor_ps(x[1], _mm256_and_ps(sign[1], bit))]
        }
        #[inline(always)]
        unsafe fn lookup(table: &Table, at: Pair) -> Pair {
            unsafe {
                let table = _mm256_load_ps(table.0.as_ptr());
                [_mm256_permutevar8x32_ps(table, _mm256_castps_si256(at[0])), _mm256_permutevar8x32_ps(table, _mm256_castps_si256(at[1]))]
            }
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
        #[inline(always)]
        unsafe fn sums(v: &[Pair; 8], out: *mut f32) {
            let [a, b, c, d, e, f, g, h] = v.map(|v| _mm256_add_ps(v[0], v[1]));
            let four = |a, b, c, d| _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let (low, high) = (four(a, b, c, d), four(e, f, g, h));
            let sum = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high));
            unsafe { _mm256_storeu_ps(out, sum) };
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
        unsafe fn min(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn abs(x: __m512) -> __m512 {
            unsafe { _mm512_abs_ps(x) }
        }
        #[inline(always)]
        unsafe fn xor_sign(x: __m512, sign: __m512) -> __m512 {
            unsafe { _mm512_xor_ps(x, _mm512_and_ps(sign, _mm512_set1_ps(-0.0))) }
        }
        #[inline(always)]
        unsafe fn lookup(table: &Table, at: __m512) -> __m512 {
            unsafe { _mm512_permutexvar_ps(_mm512_castps_si512(at), _mm512_load_ps(table.0.as_ptr())) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m512) -> f32 {
            unsafe { Avx2::sum([_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)]) }
        }
        #[inline(always)]
        unsafe fn sums(v: &[__m512; 8], out: *mut f32) {
            unsafe {
                // halves, quarters, pairs, and the last two lanes: the vectors left are halved each time
                let halves = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
                let quarters = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                let low = quarters(halves(v[0], v[1]), halves(v[2], v[3]));
                let high = quarters(halves(v[4], v[5]), halves(v[6], v[7]));
                let pairs = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(low, high), _mm512_shuffle_ps::<0xee>(low, high));
                let sum = _mm512_add_ps(pairs, _mm512_shuffle_ps::<0xf5>(pairs, pairs));
                let order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
                _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sum)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Check;

    impl Kernel for Check {
        #[inline(always)]
        fn run<S: Simd>(self) {
            let values: Vec<f32> = (0..8 * LANES).map(|i| (i as f32 * 0.7).sin()).collect();
            unsafe {
                let vectors: [S::V; 8] = std::array::from_fn(|i| S::load(values[i * LANES..].as_ptr()));
                let mut sums = [0.0; 8];
                S::sums(&vectors, sums.as_mut_ptr());
                for (i, &sum) in sums.iter().enumerate() {
                    let expected: f64 = values[i * LANES..][..LANES].iter().map(|&v| f64::from(v)).sum();
                    assert!((f64::from(sum) - expected).abs() < 1e-6, "{sum} {expected}");
                    assert!((f64::from(S::sum(vectors[i])) - expected).abs() < 1e-6);
                }
                // the order of additions is the same for each of the eight
                let mut same = [0.0; 8];
                S::sums(&[vectors[3]; 8], same.as_mut_ptr());
                assert!(same.iter().all(|s| s.to_bits() == sums[3].to_bits()));
                let table = Table::new(std::array::from_fn(|i| 10.0 + i as f32));
                let at: [f32; LANES] = std::array::from_fn(|i| 12_582_912.0 + (i * 5) as f32);
                let (mut found, mut signs) = ([0.0; LANES], [0.0; LANES]);
                S::store(found.as_mut_ptr(), S::lookup(&table, S::load(at.as_ptr())));
                assert_eq!(found, std::array::from_fn(|i| 10.0 + (i * 5 % 8) as f32));
                S::store(signs.as_mut_ptr(), S::xor_sign(S::abs(vectors[1]), vectors[1]));
                assert_eq!(signs, values[LANES..2 * LANES]);
            }
        }
    }

    #[test]
    fn sums_lookups_and_signs_on_every_instruction_set() {
        Isa::available().into_iter().for_each(|isa| isa.run(Check));
    }
}
