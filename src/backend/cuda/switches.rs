//! Switches by environment variables, for measurements and tests; `docs/cuda.md` lists them. A run
//! needs none of them. Depends on the limits, the choices and the machine code.

use super::choices::Depthwise;
use super::limits;
use super::machine_code;
use crate::backend::Error;
use crate::plan::Precision;
use anyhow::{Result, bail};
use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// The oldest generation of cards that starts a kernel while the one ahead of it still runs, compute
/// capability x 10.
pub(super) const OVERLAP_CAPABILITY: i32 = 90;

/// What the variables say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Switches {
    /// `PARAGON_CUDA_SYNC=1`: waits after every launch, so that an error names the kernel.
    pub sync: bool,
    /// `PARAGON_CUDA_GRAPH=0`: launches kernel by kernel.
    pub no_graph: bool,
    /// `PARAGON_CUDA_SIDE=0`: runs concurrent launches on the main stream.
    pub no_side: bool,
    /// `PARAGON_CUDA_PRIORITY=1`: launches of the main stream go ahead of those of the side stream.
    pub priority: bool,
    /// `PARAGON_CUDA_OVERLAP=1`: kernels start while the one ahead of them still runs.
    pub overlap: bool,
    /// `PARAGON_CUDA_CARVEOUT=0..100`: percent of a multiprocessor's cache that is shared memory.
    pub carveout: Option<i32>,
    /// `PARAGON_CUDA_DEPTHWISE=tensor|plain`: the unit of the depthwise step of Nano's kernels.
    pub depthwise: Option<Depthwise>,
    /// `PARAGON_CUDA_SUM_BLOCKS=N`: blocks of a kernel that sums, whatever the card.
    pub sum_blocks: Option<usize>,
    /// `PARAGON_CUDA_FAIL_CAPTURE=N`: launch number N of every capture fails.
    pub fail_capture: Option<usize>,
    /// `PARAGON_CUDA_PTX=1`: machine code is not used.
    pub ptx: bool,
    /// `PARAGON_CUDA_CUBIN=FOLDER`: machine code comes from this folder.
    pub cubin: Option<PathBuf>,
}

impl Switches {
    /// Reads the environment.
    ///
    /// # Errors
    /// When a variable has a value that it cannot have.
    pub fn read() -> Result<Switches> {
        let flag = |name: &str| -> Result<Option<bool>> {
            Ok(number(name, 0..=1)?.map(|value| value == 1))
        };
        Ok(Switches {
            sync: flag("PARAGON_CUDA_SYNC")?.unwrap_or(false),
            no_graph: flag("PARAGON_CUDA_GRAPH")? == Some(false),
            no_side: flag("PARAGON_CUDA_SIDE")? == Some(false),
            priority: flag("PARAGON_CUDA_PRIORITY")?.unwrap_or(false),
            overlap: flag("PARAGON_CUDA_OVERLAP")?.unwrap_or(false),
            carveout: number("PARAGON_CUDA_CARVEOUT", 0..=100)?.map(|percent| percent as i32),
            depthwise: depthwise()?,
            sum_blocks: number(limits::SUM_BLOCKS_VARIABLE, limits::SUM_BLOCKS_RANGE)?,
            fail_capture: number("PARAGON_CUDA_FAIL_CAPTURE", 1..=1_000_000)?,
            ptx: flag("PARAGON_CUDA_PTX")?.unwrap_or(false),
            cubin: cubin()?,
        })
    }

    /// Checks that a card can do what the variables ask for: `name` is the card's, `capability` its
    /// compute capability x 10.
    ///
    /// # Errors
    /// [`Error::Misuse`], with the variable that asks for too much.
    pub fn check(&self, name: &str, capability: i32) -> Result<()> {
        if self.overlap && capability < OVERLAP_CAPABILITY {
            bail!(Error::Misuse(format!(
                "PARAGON_CUDA_OVERLAP is \"1\", but {name} is sm_{capability}, and only cards from sm_{OVERLAP_CAPABILITY} on start a kernel while another one runs; leave it unset"
            )));
        }
        Ok(())
    }

    /// The generation and the file of the machine code to try, as [`machine_code::find`].
    pub fn machine_code(
        &self,
        precision: Precision,
        capability: i32,
    ) -> Option<(i32, Cow<'static, [u8]>)> {
        if self.ptx {
            return None;
        }
        machine_code::find(precision, capability, self.cubin.as_deref())
    }

    /// Why the step is not captured as graphs, where a switch asks for that.
    pub fn without_graphs(&self) -> Option<&'static str> {
        if self.sync {
            Some("PARAGON_CUDA_SYNC=1")
        } else if self.no_graph {
            Some("PARAGON_CUDA_GRAPH=0")
        } else {
            None
        }
    }
}

/// What `PARAGON_CUDA_DEPTHWISE` says; `None` if it is not set.
fn depthwise() -> Result<Option<Depthwise>> {
    let name = "PARAGON_CUDA_DEPTHWISE";
    let Some(text) = std::env::var_os(name) else {
        return Ok(None);
    };
    match text.to_string_lossy().as_ref() {
        "tensor" => Ok(Some(Depthwise::Tensor)),
        "plain" => Ok(Some(Depthwise::Plain)),
        other => bail!(Error::Misuse(format!(
            "{name} is \"{other}\"; expected tensor or plain, or leave it unset"
        ))),
    }
}

/// The folder that `PARAGON_CUDA_CUBIN` names; `None` if it is not set.
fn cubin() -> Result<Option<PathBuf>> {
    let folder = std::env::var_os("PARAGON_CUDA_CUBIN").map(PathBuf::from);
    if let Some(missing) = folder.as_ref().filter(|folder| !folder.is_dir()) {
        bail!(Error::Misuse(format!(
            "PARAGON_CUDA_CUBIN is \"{}\", which is no folder; expected one with machine code, or leave it unset",
            missing.display()
        )));
    }
    Ok(folder)
}

/// The number in a variable; `None` if it is not set.
fn number(name: &str, allowed: RangeInclusive<usize>) -> Result<Option<usize>> {
    let Some(text) = std::env::var_os(name) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    match text.parse().ok().filter(|value| allowed.contains(value)) {
        Some(value) => Ok(Some(value)),
        None => bail!(Error::Misuse(format!(
            "{name} is \"{text}\"; expected a number from {} to {}, or leave it unset",
            allowed.start(),
            allowed.end()
        ))),
    }
}
