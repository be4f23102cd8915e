//! What a backend reports about itself, so that the planner counts every byte without depending on
//! a backend: the workspace of each operation, sums carried between slices, the type of
//! activations, a second batch buffer. Depends on the operations alone.

use super::Op;
use serde::{Deserialize, Serialize};

/// The type of activations and their gradients. Parameters and their gradients, moments, EMA, the
/// network's input, its prediction and every sum are f32 or f64 with each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits
    #[default]
    F32,
    /// bfloat16: 8 bits of exponent
    Bf16,
    /// IEEE half: 5 bits of exponent, needs loss scaling
    Fp16,
}

impl Precision {
    /// Bytes of one value.
    pub fn bytes(self) -> u64 {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 | Precision::Fp16 => 2,
        }
    }

    /// The bits of the nearest value with 16 bits, ties to even; [`Precision::F32`], which has no
    /// such values, gives those of bf16.
    pub fn narrow(self, value: f32) -> u16 {
        let bits = value.to_bits();
        let sign = (bits >> 16) as u16 & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        match self {
            Precision::Fp16 if magnitude > 0x7f80_0000 => sign | 0x7e00,
            Precision::Fp16 if magnitude >= 0x477f_f000 => sign | 0x7c00, // rounds to 65536 or more
            // subnormal: adding 0.5 rounds to a multiple of 2^-24
            Precision::Fp16 if magnitude < 0x3880_0000 => {
                sign | ((f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000) as u16
            }
            Precision::Fp16 => {
                sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x3800_0000) >> 13) as u16
            }
            _ if magnitude > 0x7f80_0000 => sign | 0x7fc0,
            _ => ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16,
        }
    }

    /// The value of 16 bits; [`Precision::F32`] reads them as bf16.
    pub fn widen(self, bits: u16) -> f32 {
        if self != Precision::Fp16 {
            return f32::from_bits(u32::from(bits) << 16);
        }
        let sign = u32::from(bits & 0x8000) << 16;
        let (exponent, fraction) = (u32::from(bits >> 10 & 31), u32::from(bits & 0x3ff));
        match exponent {
            0 => f32::from_bits((fraction as f32 * 2f32.powi(-24)).to_bits() | sign),
            31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
            _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Fp16 => "fp16",
        })
    }
}

/// What a backend needs from a plan, besides the values that the planner itself counts.
pub trait Sizing {
    /// The backend in words, for the error about a plan that was made for another one.
    fn name(&self) -> String {
        "an unknown backend".to_string()
    }

    /// Checks that the backend has a kernel for `op`. [`Sizing::workspace`] and [`Sizing::carry`]
    /// must not panic for any operation, whatever this returns.
    ///
    /// # Errors
    /// The property of `op` that the backend does not support.
    fn supports(&self, _op: &Op) -> anyhow::Result<()> {
        Ok(())
    }

    /// Workspace bytes for `op`.
    fn workspace(&self, op: &Op) -> u64;

    /// Bytes in which `op` keeps its running sums between the slices of a micro-batch; 0 if it sums
    /// nothing.
    fn carry(&self, op: &Op) -> u64;

    /// Whether the backend adds up `op`'s partial sums only after the last operation of a
    /// micro-batch, together with those of other operations. Their buffers ([`Op::sums`]) then stay
    /// alive until then.
    fn defers_sums(&self, _op: &Op) -> bool {
        false
    }

    /// Type of activations and their gradients.
    fn precision(&self) -> Precision {
        Precision::F32
    }

    /// Bytes of what `op` computes from parameters alone and keeps for all slices and for its
    /// backward pass (a folded convolution); 0 if each operation computes its own.
    fn prepared(&self, _op: &Op) -> u64 {
        0
    }

    /// Bytes of the block of scalars (learning rate etc.), if the backend reads it from the arena.
    fn scalar_bytes(&self) -> u64 {
        0
    }

    /// Whether the next batch is copied to the device while it computes on this one, which needs a
    /// second batch buffer.
    fn copies_ahead(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_the_nearest_and_come_back() {
        for precision in [Precision::Bf16, Precision::Fp16] {
            for bits in 0..=u16::MAX {
                let value = precision.widen(bits);
                if value.is_nan() {
                    assert!(precision.widen(precision.narrow(value)).is_nan());
                    continue;
                }
                assert_eq!(precision.narrow(value), bits, "{precision} {bits:#x}");
                // halfway to the next: to the even one; a little less or more: to the nearer one
                let next = precision.widen(bits.wrapping_add(1));
                if bits & 0x7fff < 0x7bff && next.is_finite() {
                    let middle = ((f64::from(value) + f64::from(next)) / 2.0) as f32;
                    assert_eq!(
                        precision.narrow(middle),
                        bits + (bits & 1),
                        "{precision} {bits:#x}"
                    );
                    assert_eq!(precision.narrow(f32::from_bits(middle.to_bits() - 1)), bits);
                    assert_eq!(
                        precision.narrow(f32::from_bits(middle.to_bits() + 1)),
                        bits + 1
                    );
                }
            }
        }
        assert_eq!(Precision::Fp16.widen(0x3c00), 1.0);
        assert_eq!(Precision::Fp16.widen(0x7bff), 65504.0);
        assert_eq!(Precision::Fp16.narrow(65520.0), 0x7c00);
        assert_eq!(Precision::Bf16.widen(0x3f80), 1.0);
    }
}
