//! One source for several instruction sets: [`dispatch`] compiles a plain loop for each, which the
//! compiler vectorises, and a loop over [`Lanes`] names the registers itself. Nothing is fused or
//! reordered, so every set gives the same bits. Depends on `support::isa`.

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
    /// `sum + a * b`, each rounded.
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
    unsafe fn add_product(sum: Self, a: Self, b: Self) -> Self {
        Plain(std::array::from_fn(|i| sum.0[i] + a.0[i] * b.0[i]))
    }
}

/// Implements [`Lanes`] by the instructions of x86.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_lanes {
    ($kind:ident, $count:literal, $load:ident, $store:ident, $splat:ident, $add:ident, $mul:ident) => {
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
            unsafe fn add_product(sum: Self, a: Self, b: Self) -> Self {
                use std::arch::x86_64::{$add, $mul};
                // SAFETY: the contract of this function
                unsafe { $add(sum, $mul(a, b)) }
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
    _mm512_mul_ps
);
#[cfg(target_arch = "x86_64")]
x86_lanes!(
    __m256,
    8,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_add_ps,
    _mm256_mul_ps
);
