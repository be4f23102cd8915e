//! Vectors of sixteen f32 lanes behind one trait: every kernel is written once and compiled for
//! AVX-512, AVX2 with FMA, NEON and plain code. [`Isa::run`] is the one place that chooses between
//! them, at run time. Depends on `support::isa`. Each output value is one fixed chain of
//! operations, so its bits do not depend on its position in a row.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::support::isa::{Isa, Set};

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Sixteen f32 values and the operations the kernels need.
///
/// # Safety
/// Every function requires a processor with the instructions of the implementing type. Throughout
/// this backend, "as [`Simd`]" in a safety section means this requirement. It holds for every
/// kernel and task that receives the type as a parameter: the types are private to this module,
/// except for the plain one, which requires nothing, so only [`Isa::run`] passes them on. Pointers
/// need no alignment beyond that of f32.
pub trait Simd: Copy + Send + Sync + 'static {
    /// The vector.
    type V: Copy;
    /// Eight f64 values.
    type D: Copy;
    /// How many vectors the registers hold; the tile sizes of the kernels depend on it.
    const REGISTERS: Registers;
    /// Whether a multiply-add can read a factor from memory. If not, each factor needs a register
    /// of its own, and tiles that fill all other registers would spill.
    const MEMORY_OPERANDS: bool = true;
    /// Loads the 16 values from `p` on.
    ///
    /// # Safety
    /// As [`Simd`], and `p` points to 16 values that may be read.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Stores the 16 values to `p`.
    ///
    /// # Safety
    /// As [`Simd`], and `p` points to 16 values that may be written.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Prefetches the cache line at `p`, of an activation that will be read soon. It is only a
    /// hint: `p` may be any address.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn prefetch(_p: *const f32) {}
    /// Stores to memory past the caches, for values that are not read again soon.
    ///
    /// # Safety
    /// As [`Self::store`]; `p` is a multiple of 64, and the caller calls [`Self::fence`] before
    /// another thread reads the values.
    unsafe fn stream(p: *mut f32, v: Self::V) {
        // SAFETY: the contract of this function includes that of `store`
        unsafe { Self::store(p, v) }
    }
    /// Orders streamed values before all later memory accesses.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn fence() {}
    /// `x` in every lane.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn splat(x: f32) -> Self::V;
    /// a * b + c, with a single rounding if the processor has a fused multiply-add.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a + b.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a - b.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// a * b.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// Square roots.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn sqrt(x: Self::V) -> Self::V;
    /// The smaller of each pair; that of `b` where either is NaN.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The larger of each pair; that of `b` where either is NaN.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Absolute values.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn abs(x: Self::V) -> Self::V;
    /// The value of `a` where z > 0, otherwise (also where z is NaN) that of `b`.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn where_positive(z: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// `x` with its sign changed where that of `sign` is set.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn xor_sign(x: Self::V, sign: Self::V) -> Self::V;
    /// For each lane, the entry of `table` whose number is in the lane's three lowest bits.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn lookup(table: &LookupTable, at: Self::V) -> Self::V;
    /// x * 2^n for a whole number n; `at` is n + 1.5 * 2^23, whose lowest bits are those of n. The
    /// result must not leave the range of normal numbers, and x must not be 0.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn times_power_of_2(x: Self::V, at: Self::V) -> Self::V;
    /// The transpose of sixteen rows: lane j of row i becomes lane i of row j.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES] {
        let (mut from, mut to) = ([[0.0; LANES]; LANES], [[0.0; LANES]; LANES]);
        // SAFETY: as this function; each row of the arrays is one vector
        unsafe {
            for (from, &row) in from.iter_mut().zip(&rows) {
                Self::store(from.as_mut_ptr(), row);
            }
            for (i, from) in from.iter().enumerate() {
                for (to, &value) in to.iter_mut().zip(from) {
                    to[i] = value;
                }
            }
            let mut rows = rows;
            for (row, to) in rows.iter_mut().zip(&to) {
                *row = Self::load(to.as_ptr());
            }
            rows
        }
    }
    /// 2 to the power of n, from -126 to 127, where `at` is n + 12_583_039 (1.5 x 2^23 + 127) in
    /// each lane: the lowest bits of such a number become an exponent.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn power_of_two(at: Self::V) -> Self::V;
    /// The largest of the lanes. Where some are NaN it is any of the others, or NaN.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn largest(v: Self::V) -> f32;
    /// Sum of the lanes in a fixed order.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn sum(v: Self::V) -> f32;
    /// Writes the sums of the lanes of eight vectors to `out[0..8]`. The order of additions is the
    /// same for each of the eight.
    ///
    /// # Safety
    /// As [`Simd`], and `out` points to 8 values that may be written.
    unsafe fn sums(v: &[Self::V; 8], out: *mut f32);
    /// Loads the 8 values from `p` on.
    ///
    /// # Safety
    /// As [`Simd`], and `p` points to 8 values that may be read.
    unsafe fn load_doubles(p: *const f64) -> Self::D;
    /// Loads the 8 values from `p` on, and converts them to f64.
    ///
    /// # Safety
    /// As [`Self::load_doubles`].
    unsafe fn widen(p: *const f32) -> Self::D;
    /// Stores the 8 values to `p`.
    ///
    /// # Safety
    /// As [`Simd`], and `p` points to 8 values that may be written.
    unsafe fn store_doubles(p: *mut f64, v: Self::D);
    /// `x` in every one of the 8 values.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn splat_double(x: f64) -> Self::D;
    /// a * b + c of f64 values, with a single rounding if the processor has a fused multiply-add.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn fma_doubles(a: Self::D, b: Self::D, c: Self::D) -> Self::D;
}

/// Eight values, stored twice, so that a vector register of any width up to sixteen lanes holds
/// whole copies.
#[repr(align(64))]
pub struct LookupTable(pub [f32; LANES]);

impl LookupTable {
    /// A table of eight values.
    pub const fn new(values: [f32; 8]) -> LookupTable {
        let mut twice = [0.0; LANES];
        let mut i = 0;
        while i < LANES {
            twice[i] = values[i % 8];
            i += 1;
        }
        LookupTable(twice)
    }
}

/// How many vectors of sixteen lanes the registers of an instruction set hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Registers {
    /// Hardly any: kernels use tiles of one pixel, which also keeps plain code small.
    Few,
    /// Eight: sixteen registers of half a vector, or thirty-two of a quarter.
    Eight,
    /// Thirty-two: a register holds a vector.
    Many,
}

/// A piece of work that is compiled for every instruction set.
pub trait Kernel {
    /// Runs the work with the vectors S, whose instructions this processor has: see [`Simd`].
    /// Implementations are `#[inline(always)]`, so that the code becomes part of the function that
    /// enables the instructions.
    fn run<S: Simd>(self);
}

impl Isa {
    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self.set() {
            // SAFETY: an `Isa` exists only for instruction sets that the processor has
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { x86::run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above
            Set::Avx512 => unsafe { x86::run_avx512(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above
            Set::Neon => unsafe { neon::run(kernel) },
            // plain code; the sets of other processors never occur
            _ => kernel.run::<Portable>(),
        }
    }
}

/// Plain code, without explicit vectors.
#[derive(Clone, Copy)]
pub struct Portable;

/// An array with `f(i)` in lane `i`.
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
    type D = [f64; LANES / 2];
    const REGISTERS: Registers = Registers::Few;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller guarantees that 16 values can be read at `p`
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller guarantees that 16 values can be written at `p`
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
    unsafe fn sqrt(x: Self::V) -> Self::V {
        map(|i| x[i].sqrt())
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
    unsafe fn where_positive(z: Self::V, a: Self::V, b: Self::V) -> Self::V {
        map(|i| if z[i] > 0.0 { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn xor_sign(x: Self::V, sign: Self::V) -> Self::V {
        map(|i| f32::from_bits(x[i].to_bits() ^ (sign[i].to_bits() & 1 << 31)))
    }
    #[inline(always)]
    unsafe fn lookup(table: &LookupTable, at: Self::V) -> Self::V {
        map(|i| table.0[(at[i].to_bits() & 7) as usize])
    }
    #[inline(always)]
    unsafe fn times_power_of_2(x: Self::V, at: Self::V) -> Self::V {
        map(|i| f32::from_bits(x[i].to_bits().wrapping_add(at[i].to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn power_of_two(at: Self::V) -> Self::V {
        map(|i| f32::from_bits(at[i].to_bits() << 23))
    }
    #[inline(always)]
    unsafe fn largest(v: Self::V) -> f32 {
        let mut half: [f32; 8] = std::array::from_fn(|i| v[i].max(v[i + 8]));
        for width in [4, 2, 1] {
            for i in 0..width {
                half[i] = half[i].max(half[i + width]);
            }
        }
        half[0]
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
            // SAFETY: the caller guarantees that eight values can be written at `out`, and plain
            // code runs on every processor
            unsafe { *out.add(i) = Self::sum(v) };
        }
    }
    #[inline(always)]
    unsafe fn load_doubles(p: *const f64) -> Self::D {
        // SAFETY: the caller guarantees that 8 values can be read at `p`
        unsafe { p.cast::<Self::D>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn widen(p: *const f32) -> Self::D {
        // SAFETY: the caller guarantees that 8 values can be read at `p`
        unsafe { p.cast::<[f32; LANES / 2]>().read_unaligned() }.map(f64::from)
    }
    #[inline(always)]
    unsafe fn store_doubles(p: *mut f64, v: Self::D) {
        // SAFETY: the caller guarantees that 8 values can be written at `p`
        unsafe { p.cast::<Self::D>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn splat_double(x: f64) -> Self::D {
        [x; LANES / 2]
    }
    #[inline(always)]
    unsafe fn fma_doubles(a: Self::D, b: Self::D, c: Self::D) -> Self::D {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::any::TypeId;

    struct Check;

    impl Kernel for Check {
        #[inline(always)]
        fn run<S: Simd>(self) {
            let values: Vec<f32> = (0..8 * LANES).map(|i| (i as f32 * 0.7).sin()).collect();
            // SAFETY: `Isa::run` chose S for this processor; every load and store is of a whole
            // vector of the arrays, and sums are written to eight values
            unsafe {
                let vectors: [S::V; 8] =
                    std::array::from_fn(|i| S::load(values[i * LANES..].as_ptr()));
                let mut sums = [0.0; 8];
                S::sums(&vectors, sums.as_mut_ptr());
                for (i, &sum) in sums.iter().enumerate() {
                    let expected: f64 = values[i * LANES..][..LANES]
                        .iter()
                        .map(|&v| f64::from(v))
                        .sum();
                    assert!((f64::from(sum) - expected).abs() < 1e-6, "{sum} {expected}");
                    assert!((f64::from(S::sum(vectors[i])) - expected).abs() < 1e-6);
                }
                for (rotation, vector) in vectors.iter().enumerate() {
                    let mut lanes = [0.0; LANES];
                    S::store(lanes.as_mut_ptr(), *vector);
                    lanes.rotate_left(2 * rotation);
                    let largest = S::largest(S::load(lanes.as_ptr()));
                    assert_eq!(largest, lanes.into_iter().fold(f32::MIN, f32::max));
                }
                // the order of additions is the same for each of the eight
                let mut same = [0.0; 8];
                S::sums(&[vectors[3]; 8], same.as_mut_ptr());
                assert!(same.iter().all(|s| s.to_bits() == sums[3].to_bits()));
                let table = LookupTable::new(std::array::from_fn(|i| 10.0 + i as f32));
                let at: [f32; LANES] = std::array::from_fn(|i| 12_582_912.0 + (i * 5) as f32);
                let (mut found, mut signs) = ([0.0; LANES], [0.0; LANES]);
                S::store(found.as_mut_ptr(), S::lookup(&table, S::load(at.as_ptr())));
                assert_eq!(found, std::array::from_fn(|i| 10.0 + (i * 5 % 8) as f32));
                S::store(
                    signs.as_mut_ptr(),
                    S::xor_sign(S::abs(vectors[1]), vectors[1]),
                );
                assert_eq!(signs, values[LANES..2 * LANES]);
                let n: [f32; LANES] = std::array::from_fn(|i| 12_582_912.0 + (8.0 - i as f32));
                let scaled = S::times_power_of_2(S::splat(-0.75), S::load(n.as_ptr()));
                S::store(found.as_mut_ptr(), scaled);
                let powers = std::array::from_fn(|i| -0.75 * 2f32.powi(8 - i as i32));
                assert_eq!(found, powers);
                let number = |i: usize, j: usize| (i * LANES + j) as f32;
                let rows = std::array::from_fn(|i| {
                    let row: [f32; LANES] = std::array::from_fn(|j| number(i, j));
                    S::load(row.as_ptr())
                });
                for (j, &row) in S::transpose(rows).iter().enumerate() {
                    S::store(found.as_mut_ptr(), row);
                    assert_eq!(found, std::array::from_fn(|i| number(i, j)));
                }
            }
        }
    }

    /// All pairs of some numbers: both signs, many sizes, zeros, infinities and NaN.
    fn pairs() -> (Vec<f32>, Vec<f32>) {
        let values = [
            0.0,
            -0.0,
            1.0,
            -1.5,
            3.3,
            1e-40,
            -1e-30,
            7e20,
            -2e38,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            -f32::NAN,
        ];
        let count = (values.len() * values.len()).next_multiple_of(LANES);
        let pick = |i: usize| values[i % values.len()];
        (0..count)
            .map(|i| (pick(i), pick(i / values.len())))
            .unzip()
    }

    struct Compare;

    impl Kernel for Compare {
        #[inline(always)]
        fn run<S: Simd>(self) {
            let (a, b) = pairs();
            let same = |what: &str, got: S::V, expected: [f32; LANES]| {
                #[repr(align(64))]
                struct Line([f32; LANES]);
                let mut line = Line([0.0; LANES]);
                // SAFETY: `line` is aligned and has room for a vector
                unsafe {
                    S::stream(line.0.as_mut_ptr(), got);
                    S::fence();
                }
                let equal =
                    |(g, e): (&f32, &f32)| g.to_bits() == e.to_bits() || g.is_nan() && e.is_nan();
                assert!(
                    line.0.iter().zip(&expected).all(equal),
                    "{what}: {:?} for {expected:?}",
                    line.0
                );
            };
            for (a, b) in a
                .as_chunks::<LANES>()
                .0
                .iter()
                .zip(b.as_chunks::<LANES>().0)
            {
                // SAFETY: `Isa::run` chose S for this processor
                unsafe {
                    let (x, y) = (S::load(a.as_ptr()), S::load(b.as_ptr()));
                    same("add", S::add(x, y), Portable::add(*a, *b));
                    same("sub", S::sub(x, y), Portable::sub(*a, *b));
                    same("mul", S::mul(x, y), Portable::mul(*a, *b));
                    same("div", S::div(x, y), Portable::div(*a, *b));
                    same("sqrt", S::sqrt(x), Portable::sqrt(*a));
                    same("min", S::min(x, y), Portable::min(*a, *b));
                    same("max", S::max(x, y), Portable::max(*a, *b));
                    same("abs", S::abs(x), Portable::abs(*a));
                    same(
                        "where_positive",
                        S::where_positive(x, y, S::splat(3.0)),
                        Portable::where_positive(*a, *b, [3.0; LANES]),
                    );
                    same("xor_sign", S::xor_sign(x, y), Portable::xor_sign(*a, *b));
                    same("splat", S::splat(a[3]), [a[3]; LANES]);
                    let table = LookupTable::new(std::array::from_fn(|i| (i as f32).exp()));
                    same("lookup", S::lookup(&table, x), Portable::lookup(&table, *a));
                    same(
                        "times_power_of_2",
                        S::times_power_of_2(x, y),
                        Portable::times_power_of_2(*a, *b),
                    );
                }
            }
            for start in 0..100 {
                let numbers: [f32; LANES] =
                    std::array::from_fn(|i| ((start * LANES + i) as f32 * 1.7).cos());
                // SAFETY: as above
                unsafe {
                    let v = S::load(numbers.as_ptr());
                    assert_eq!(S::sum(v).to_bits(), Portable::sum(numbers).to_bits());
                    if TypeId::of::<S>() != TypeId::of::<Portable>() {
                        // `f32::mul_add` is not exact where MinGW's C library computes it; in f64
                        // the product is exact
                        let fused = std::array::from_fn(|i| {
                            let [x, y, z] = [numbers[i], 0.3_f32, 1.0 / 3.0].map(f64::from);
                            (x * y + z) as f32
                        });
                        same("fma", S::fma(v, S::splat(0.3), S::splat(1.0 / 3.0)), fused);
                    }
                }
            }
        }
    }

    /// Every power of two that is a normal number.
    struct Powers;

    impl Kernel for Powers {
        #[inline(always)]
        fn run<S: Simd>(self) {
            for n in -126..=127 {
                let mut powers = [0.0; LANES];
                // SAFETY: `Isa::run` chose S for this processor
                unsafe {
                    let at = S::splat(12_583_039.0 + n as f32);
                    S::store(powers.as_mut_ptr(), S::power_of_two(at));
                }
                assert_eq!(powers, [2f32.powi(n); LANES]);
            }
        }
    }

    #[test]
    fn powers_of_two_on_every_instruction_set() {
        Isa::available().into_iter().for_each(|isa| isa.run(Powers));
    }

    #[test]
    fn every_operation_is_the_plain_one_to_the_bit() {
        Isa::available()
            .into_iter()
            .for_each(|isa| isa.run(Compare));
    }

    #[test]
    fn sums_lookups_and_signs_on_every_instruction_set() {
        Isa::available().into_iter().for_each(|isa| isa.run(Check));
    }
}
