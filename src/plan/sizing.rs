//! What a backend tells the plan about itself, so that the plan knows every byte without knowing any backend: workspace of each
//! operation, sums carried between slices, the type of activations, a second staged batch. Depends on the operations alone.

use super::Op;
use serde::{Deserialize, Serialize};

/// The type of the values that flow between operations. Parameters, gradients of parameters, moments, EMA, the network's
/// input, its prediction and every reduction stay f32 (or f64) whatever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
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

/// The bytes a backend needs beside the values the plan itself counts.
pub trait Sizing {
    /// Workspace bytes for `op`.
    fn workspace(&self, op: &Op) -> u64;

    /// Bytes in which `op` keeps its running sums between the slices of a micro-batch; 0 where it sums nothing.
    fn carry(&self, op: &Op) -> u64;

    /// Type of activations and their gradients.
    fn precision(&self) -> Precision {
        Precision::F32
    }

    /// Bytes of the numbers that change from step to step, where the backend reads them from the arena.
    fn scalar_bytes(&self) -> u64 {
        0
    }

    /// Whether the next batch is copied to the device while this one is computed on, which takes a second place for it.
    fn copies_ahead(&self) -> bool {
        false
    }
}
