//! One loop, compiled for several instruction sets. The compiler vectorises the plain loop with the
//! instructions that are enabled; nothing is fused or reordered, so every set gives the same bits.
//! Depends on `support::isa`.

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
