//! One source for several instruction sets: [`dispatch`] compiles a plain loop for each, which the
//! compiler vectorises, and a loop over [`Lanes`] names the registers itself. Loops of [`dispatch`]
//! fuse nothing, those over [`Lanes`] fuse every product with its sum, and nothing is reordered, so
//! every set gives the same bits. Depends on `support::isa`.

/// Defines a function whose body is compiled for AVX-512, AVX2 and the base instruction set, and
/// which calls the one that [`Isa::detect`](crate::support::isa::Isa::detect) chose.
macro_rules! dispatch {
    ($(#[$about:meta])* fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $body:block) => {
        $(#[$about])*
        pub(super) fn $name($($arg: $kind),*) {
            #[inline(always)]
            fn plain($($arg: $kind),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $kind),*) { plain($($arg),*) }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $kind),*) { plain($($arg),*) }
                match $crate::degrade::lanes::set() {
                    // SAFETY: an `Isa` exists only for instruction sets that the processor has
                    $crate::support::isa::Set::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above
                    $crate::support::isa::Set::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            plain($($arg),*);
        }
    };
}

pub(super) use dispatch;

/// The instruction set, detected once.
#[cfg(target_arch = "x86_64")]
pub(super) fn set() -> crate::support::isa::Set {
    use crate::support::isa::{Isa, Set};
    use std::sync::OnceLock;
    static SET: OnceLock<Set> = OnceLock::new();
    #[cfg(test)]
    if let Some(set) = FORCED.with(std::cell::Cell::get) {
        return set;
    }
    *SET.get_or_init(|| Isa::detect().set())
}

#[cfg(test)]
thread_local! {
    /// The instruction set that a test runs this thread with.
    pub(super) static FORCED: std::cell::Cell<Option<crate::support::isa::Set>> = const { std::cell::Cell::new(None) };
}

/// A register of f32 values, for loops that keep many sums in registers. In the plain form of such a
/// loop the compiler reads a weight from memory for each product, which takes 1.3 times as long on
/// AVX-512.
///
/// # Safety
/// Every function requires a processor with the instructions of the implementing type.
pub(super) trait Lanes: Copy {
    /// Values in a register.
    const COUNT: usize;
    /// Loads `COUNT` values.
    ///
    /// # Safety
    /// As [`Lanes`], and `p` points to `COUNT` values that may be read, in any alignment of f32.
    unsafe fn load(p: *const f32) -> Self;
    /// Stores `COUNT` values.
    ///
    /// # Safety
    /// As [`Lanes`], and `p` points to `COUNT` values that may be written, in any alignment of f32.
    unsafe fn store(self, p: *mut f32);
    /// `x` in every lane.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn splat(x: f32) -> Self;
    /// `a + b`.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn add(a: Self, b: Self) -> Self;
    /// `sum + a * b`, rounded once.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn add_product(sum: Self, a: Self, b: Self) -> Self;
}

/// Plain code for every processor.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 4]);

impl Lanes for Plain {
    const COUNT: usize = 4;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the contract of this function
        Plain(unsafe { p.cast::<[f32; 4]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the contract of this function
        unsafe { p.cast::<[f32; 4]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Plain([x; 4])
    }
    #[inline(always)]
    unsafe fn add(a: Self, b: Self) -> Self {
        Plain(std::array::from_fn(|i| a.0[i] + b.0[i]))
    }
    #[inline(always)]
    unsafe fn add_product(sum: Self, a: Self, b: Self) -> Self {
        Plain(std::array::from_fn(|i| fused(sum.0[i], a.0[i], b.0[i])))
    }
}

/// `sum + a * b`, rounded once, by the processor.
#[cfg(any(target_arch = "aarch64", target_feature = "fma"))]
#[inline(always)]
fn fused(sum: f32, a: f32, b: f32) -> f32 {
    a.mul_add(b, sum)
}

/// `sum + a * b`, rounded once, for finite values. Without an instruction for it the standard
/// library calls one function of the system for each value, which is not exact everywhere.
#[cfg(not(any(target_arch = "aarch64", target_feature = "fma")))]
#[inline(always)]
fn fused(sum: f32, a: f32, b: f32) -> f32 {
    // the product is exact in f64; the sum is, with its error
    let (product, sum) = (f64::from(a) * f64::from(b), f64::from(sum));
    let total = product + sum;
    let part = total - product;
    let error = (product - (total - part)) + (sum - part);
    // An inexact total is rounded to an odd last bit (Boldo and Melquiond, 2008), which keeps the
    // second rounding, to f32, from falling on the wrong side of a tie.
    let bits = total.to_bits();
    let odd = if error == 0.0 || bits & 1 == 1 {
        bits
    } else if (error > 0.0) == (total > 0.0) {
        bits + 1
    } else {
        bits - 1
    };
    f64::from_bits(odd) as f32
}

/// Implements [`Lanes`] by the instructions of x86.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_lanes {
    ($kind:ident, $count:literal, $load:ident, $store:ident, $splat:ident, $add:ident, $fused:ident) => {
        impl Lanes for std::arch::x86_64::$kind {
            const COUNT: usize = $count;
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Self {
                // SAFETY: the contract of this function
                unsafe { std::arch::x86_64::$load(p) }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32) {
                // SAFETY: the contract of this function
                unsafe { std::arch::x86_64::$store(p, self) }
            }
            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: the contract of this function
                unsafe { std::arch::x86_64::$splat(x) }
            }
            #[inline(always)]
            unsafe fn add(a: Self, b: Self) -> Self {
                // SAFETY: the contract of this function
                unsafe { std::arch::x86_64::$add(a, b) }
            }
            #[inline(always)]
            unsafe fn add_product(sum: Self, a: Self, b: Self) -> Self {
                // SAFETY: the contract of this function
                unsafe { std::arch::x86_64::$fused(a, b, sum) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86_lanes!(
    __m512,
    16,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_add_ps,
    _mm512_fmadd_ps
);
#[cfg(target_arch = "x86_64")]
x86_lanes!(
    __m256,
    8,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_add_ps,
    _mm256_fmadd_ps
);

/// A register of 32-bit sums, each of which takes two products of 16-bit numbers at a time.
///
/// # Safety
/// Every function requires a processor with the instructions of the implementing type.
pub(super) trait Products: Copy {
    /// Sums in a register.
    const COUNT: usize;
    /// Loads `COUNT` pairs, or sums.
    ///
    /// # Safety
    /// As [`Products`], and `p` points to `COUNT` values that may be read, in any alignment of i32.
    unsafe fn load(p: *const i32) -> Self;
    /// Stores `COUNT` sums.
    ///
    /// # Safety
    /// As [`Products`], and `p` points to `COUNT` values that may be written, in any alignment of i32.
    unsafe fn store(self, p: *mut i32);
    /// `x` in every lane.
    ///
    /// # Safety
    /// As [`Products`].
    unsafe fn splat(x: i32) -> Self;
    /// Adds the product of the lower halves and that of the upper halves, which wrap around.
    ///
    /// # Safety
    /// As [`Products`].
    unsafe fn add_products(sum: Self, a: Self, b: Self) -> Self;
}

/// Plain code for every processor.
#[derive(Clone, Copy)]
pub(super) struct Plain16([i32; 4]);

impl Products for Plain16 {
    const COUNT: usize = 4;
    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        // SAFETY: the contract of this function
        Plain16(unsafe { p.cast::<[i32; 4]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut i32) {
        // SAFETY: the contract of this function
        unsafe { p.cast::<[i32; 4]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        Plain16([x; 4])
    }
    #[inline(always)]
    unsafe fn add_products(sum: Self, a: Self, b: Self) -> Self {
        // the halves of i16 have products that fit i32
        let low = |x: i32| i32::from(x as i16);
        Plain16(std::array::from_fn(|i| {
            let (a, b) = (a.0[i], b.0[i]);
            let products = (low(a) * low(b)).wrapping_add((a >> 16) * (b >> 16));
            sum.0[i].wrapping_add(products)
        }))
    }
}

/// Implements [`Products`] by the instructions of x86.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_products {
    ($kind:ident, $count:literal, $load:ident, $store:ident, $splat:ident, $add:ident, $products:ident) => {
        impl Products for std::arch::x86_64::$kind {
            const COUNT: usize = $count;
            #[inline(always)]
            unsafe fn load(p: *const i32) -> Self {
                // SAFETY: the contract of this function
                unsafe { std::arch::x86_64::$load(p.cast()) }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut i32) {
                // SAFETY: the contract of this function
                unsafe { std::arch::x86_64::$store(p.cast(), self) }
            }
            #[inline(always)]
            unsafe fn splat(x: i32) -> Self {
                // SAFETY: the contract of this function
                unsafe { std::arch::x86_64::$splat(x) }
            }
            #[inline(always)]
            unsafe fn add_products(sum: Self, a: Self, b: Self) -> Self {
                // SAFETY: the contract of this function
                unsafe { std::arch::x86_64::$add(sum, std::arch::x86_64::$products(a, b)) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86_products!(
    __m512i,
    16,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_set1_epi32,
    _mm512_add_epi32,
    _mm512_madd_epi16
);
#[cfg(target_arch = "x86_64")]
x86_products!(
    __m256i,
    8,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_set1_epi32,
    _mm256_add_epi32,
    _mm256_madd_epi16
);

#[cfg(test)]
mod tests {
    use super::fused;

    /// Sums that cancel, ties, and values of very different sizes, against the library's function.
    #[test]
    fn products_are_added_with_one_rounding() {
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 32) as u32
        };
        let (mut ties, mut value) = (0, |exponents: u32| {
            let exponent = 127 - exponents / 2 + next() % exponents;
            let mantissa = next() & [0x7f_ffff, 0x7f_f000, 0x70_0000][next() as usize % 3];
            f32::from_bits((next() << 31) | (exponent << 23) | mantissa)
        });
        for i in 0..300_000 {
            let exponents = [2, 8, 60][i % 3];
            let (a, b) = (value(exponents), value(exponents));
            let sum = match i % 4 {
                0 => -(a * b),
                1 => a * b * 3.0,
                _ => value(exponents),
            };
            let expected = libm::fmaf(a, b, sum);
            assert_eq!(
                fused(sum, a, b).to_bits(),
                expected.to_bits(),
                "{sum} + {a} * {b}"
            );
            ties += u32::from(expected != (f64::from(a) * f64::from(b) + f64::from(sum)) as f32);
        }
        // where two roundings would have given another value
        assert!(ties > 0);
    }
}
