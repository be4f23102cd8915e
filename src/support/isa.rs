//! The instruction set of the hot loops. [`Isa`] is the only type that chooses one: the CPU backend
//! and the shard codec both take it. Depends on the standard library and anyhow. An [`Isa`] exists
//! only for instructions that the processor has, so safe code never runs others.

use anyhow::{Result, bail};
use std::fmt;

/// The environment variable that selects an instruction set other than the best one, for tests and
/// comparisons: `PARAGON_ISA=portable`.
pub const ISA_VARIABLE: &str = "PARAGON_ISA";

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Set);

/// The instruction sets that loops are written for. Only this module turns one into an [`Isa`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// Plain Rust, vectorised by the compiler: the readable reference.
    Portable,
    /// AVX2 with FMA.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Avx2,
    /// AVX-512 F/BW/DQ/VL, with AVX2 and FMA as well.
    Avx512,
    /// NEON of 64-bit Arm.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code))]
    Neon,
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Set::Portable => "portable",
            Set::Avx2 => "AVX2",
            Set::Avx512 => "AVX-512",
            Set::Neon => "NEON",
        })
    }
}

impl Isa {
    /// Every instruction set of this processor, best first; the portable one is always the last.
    pub fn available() -> Vec<Isa> {
        let mut list = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                list.push(Isa(Set::Avx512));
            }
            if avx2 {
                list.push(Isa(Set::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            list.push(Isa(Set::Neon));
        }
        list.push(Isa(Set::Portable));
        list
    }

    /// The instruction set that [`ISA_VARIABLE`] selects if this processor has it, else the best
    /// one.
    pub fn detect() -> Isa {
        Isa::asked()
            .ok()
            .flatten()
            .unwrap_or_else(|| Isa::available()[0])
    }

    /// The instruction set that [`ISA_VARIABLE`] selects; `None` if the variable is not set.
    ///
    /// # Errors
    /// If the name is unknown, or this processor lacks the instruction set.
    pub fn asked() -> Result<Option<Isa>> {
        let Some(name) = std::env::var_os(ISA_VARIABLE).filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        Isa::named(&name.to_string_lossy()).map(Some)
    }

    /// The instruction set with the name that [`Isa`] displays; case and hyphens do not matter.
    ///
    /// # Errors
    /// If the name is unknown, or this processor lacks the instruction set; the message lists those
    /// that it has.
    pub fn named(name: &str) -> Result<Isa> {
        let plain = |text: &str| text.to_lowercase().replace(['-', '_'], "");
        let available = Isa::available();
        if let Some(isa) = available
            .iter()
            .find(|isa| plain(&isa.to_string()) == plain(name))
        {
            return Ok(*isa);
        }
        let here: Vec<String> = available
            .iter()
            .map(|isa| isa.to_string().to_lowercase())
            .collect();
        bail!(
            "{ISA_VARIABLE}={name}: this processor has {}",
            here.join(", ")
        )
    }

    /// The set, to choose the code for it.
    pub(crate) fn set(self) -> Set {
        self.0
    }

    /// Whether loops written for AVX2 may run.
    pub(crate) fn has_avx2(self) -> bool {
        matches!(self.0, Set::Avx2 | Set::Avx512)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_found_by_name_and_never_beyond_what_is_there() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(&isa.to_string()).unwrap(), isa);
        }
        assert_eq!(Isa::named("PORTABLE").unwrap().set(), Set::Portable);
        let error = Isa::named("avx10").unwrap_err().to_string();
        assert!(error.contains("portable"), "{error}");
        let other = if cfg!(target_arch = "x86_64") {
            "neon"
        } else {
            "avx2"
        };
        assert!(Isa::named(other).is_err());
    }
}
