//! The unit of the processor that multiplies bf16 values. A [`Bf16Unit`] exists only where the
//! processor has the instructions and the system lets this process use them. Depends on the
//! instruction sets and on `sys`, which asks the system.

use crate::support::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::support::isa::Set;
use anyhow::{Result, bail};
use std::fmt;
use std::sync::OnceLock;

/// The environment variable that selects a unit other than the best one, for tests and
/// comparisons: `PARAGON_BF16=avx512-bf16`.
pub const BF16_VARIABLE: &str = "PARAGON_BF16";

/// A unit of this processor that multiplies bf16 values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bf16Unit(pub(super) Kind);

/// The units that kernels are written for. Only this module turns one into a [`Bf16Unit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) enum Kind {
    /// Tile registers with `tdpbf16ps`; rounding needs AVX512-BF16 too.
    Amx,
    /// Vectors with `vdpbf16ps`.
    Avx512,
}

impl fmt::Display for Bf16Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Amx => "AMX",
            Kind::Avx512 => "AVX512-BF16",
        })
    }
}

impl Bf16Unit {
    /// Every unit of this processor that works together with the instruction set `isa`, best
    /// first.
    pub fn available(isa: Isa) -> Vec<Bf16Unit> {
        let mut list = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if isa.set() == Set::Avx512 && is_x86_feature_detected!("avx512bf16") {
            if has_amx() {
                list.push(Bf16Unit(Kind::Amx));
            }
            list.push(Bf16Unit(Kind::Avx512));
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (isa, &mut list);
        list
    }

    /// The unit that [`BF16_VARIABLE`] selects if it is available, else the best one if its products
    /// are faster than f32; `None` if there is none.
    pub fn detect(isa: Isa) -> Option<Bf16Unit> {
        let asked = Bf16Unit::asked(isa).ok().flatten();
        asked.or_else(|| {
            let best = Bf16Unit::available(isa).first().copied();
            best.filter(|unit| unit.beats_f32())
        })
    }

    /// Whether products of this unit are faster than those in f32. Tiles are; vectors are measured
    /// once.
    fn beats_f32(self) -> bool {
        static VECTORS: OnceLock<bool> = OnceLock::new();
        match self.0 {
            Kind::Amx => true,
            Kind::Avx512 => *VECTORS.get_or_init(super::speed::vectors_beat_f32),
        }
    }

    /// The unit that [`BF16_VARIABLE`] selects; `None` if the variable is not set.
    ///
    /// # Errors
    /// If the name is unknown, or the unit is not available with `isa`.
    pub fn asked(isa: Isa) -> Result<Option<Bf16Unit>> {
        let Some(name) = std::env::var_os(BF16_VARIABLE).filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        Bf16Unit::named(&name.to_string_lossy(), isa).map(Some)
    }

    /// The unit with the name that [`Bf16Unit`] displays; case and hyphens do not matter.
    ///
    /// # Errors
    /// If the name is unknown, or the unit is not available with `isa`; the message lists those
    /// that are.
    pub fn named(name: &str, isa: Isa) -> Result<Bf16Unit> {
        let plain = |text: &str| text.to_lowercase().replace(['-', '_'], "");
        let available = Bf16Unit::available(isa);
        if let Some(unit) = available
            .iter()
            .find(|unit| plain(&unit.to_string()) == plain(name))
        {
            return Ok(*unit);
        }
        if available.is_empty() {
            bail!("{BF16_VARIABLE}={name}: there is no unit for bf16 here");
        }
        let here: Vec<String> = available
            .iter()
            .map(|unit| unit.to_string().to_lowercase())
            .collect();
        bail!("{BF16_VARIABLE}={name}: available are {}", here.join(", "))
    }
}

/// Whether the processor has tiles with bf16 products (CPUID leaf 7, EDX bits 22 and 24), and the
/// system lets this process use them.
#[cfg(target_arch = "x86_64")]
fn has_amx() -> bool {
    const AMX: u32 = 1 << 22 | 1 << 24;
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| {
        // leaf 7 exists, since the processor has AVX-512
        let leaf = std::arch::x86_64::__cpuid_count(7, 0);
        leaf.edx & AMX == AMX && crate::sys::allow_tile_registers()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On the processors that the program was measured on.
    #[test]
    fn vectors_are_not_used_where_they_are_slower_than_f32() {
        let available = Bf16Unit::available(Isa::available()[0]);
        if available.contains(&Bf16Unit(Kind::Amx)) {
            assert!(Bf16Unit(Kind::Amx).beats_f32());
            assert!(!Bf16Unit(Kind::Avx512).beats_f32());
        }
    }

    #[test]
    fn units_are_found_by_name_and_need_their_instruction_set() {
        for isa in Isa::available() {
            for unit in Bf16Unit::available(isa) {
                assert_eq!(isa, Isa::available()[0]);
                assert_eq!(Bf16Unit::named(&unit.to_string(), isa).unwrap(), unit);
            }
            let error = Bf16Unit::named("abacus", isa).unwrap_err().to_string();
            assert!(error.contains("abacus"), "{error}");
        }
        let portable = Isa::named("portable").unwrap();
        assert!(Bf16Unit::available(portable).is_empty());
        assert!(Bf16Unit::named("amx", portable).is_err());
    }
}
