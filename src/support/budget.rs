//! Compares the memory that a command has computed beforehand with the memory that it may use: what
//! the user allows, what the machine has free, and what the system grants this process (`ulimit
//! -v`, a strict overcommit policy). Depends on `sys` and `failure`. Work that does not fit is
//! refused with the numbers, before the system would end the process.

use crate::support::failure::no_memory;
use crate::support::text::bytes_text;
use crate::sys;
use anyhow::{Context, Result, ensure};

/// Anonymous memory of the program itself, in addition to what is computed: data of libraries,
/// stacks, what the allocator keeps.
pub const PROGRAM_BYTES: u64 = 24 << 20;

/// The most memory that a command may use.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Bytes; `None` where neither the user nor the system sets a limit.
    pub limit: Option<u64>,
    /// The source of the limit, as the message names it: `--host-memory allows`, `control group
    /// /box (memory.max) leaves`.
    whose: String,
}

impl Budget {
    /// A budget of `given` bytes, or of what this process may still allocate if that is less or
    /// nothing is given.
    pub fn new(given: Option<u64>) -> Budget {
        match sys::memory_left().filter(|left| given.is_none_or(|given| left.bytes < given)) {
            Some(left) => Budget {
                limit: Some(left.bytes),
                whose: format!("{} leaves", left.limit),
            },
            None => Budget {
                limit: given,
                whose: "--host-memory allows".to_string(),
            },
        }
    }

    /// Checks that `bytes`, which include the program's own, can be allocated now.
    ///
    /// # Errors
    /// When they exceed the limit, or when the system does not grant them. The message ends with
    /// `advice`.
    pub fn check(&self, bytes: u64, advice: &str) -> Result<()> {
        if let Some(limit) = self.limit {
            ensure!(
                bytes <= limit,
                "it takes {} of memory and {} {}; {advice}",
                bytes_text(bytes),
                self.whose,
                bytes_text(limit)
            );
        }
        let text = || {
            format!(
                "it takes {} of memory, which the system does not give (see `ulimit -v`); {advice}",
                bytes_text(bytes)
            )
        };
        probe(bytes.saturating_sub(PROGRAM_BYTES)).with_context(text)
    }
}

/// Requests memory from the system and returns it untouched. Decoders and encoders that cannot
/// report a failed allocation run after this.
fn probe(bytes: u64) -> std::io::Result<()> {
    let refused = || no_memory(bytes, "images and buffers");
    let length = usize::try_from(bytes).map_err(|_| refused())?;
    let mut memory = Vec::<u8>::new();
    memory.try_reserve_exact(length).map_err(|_| refused())?;
    std::hint::black_box(&mut memory); // an allocation that nobody looks at may be left out by the compiler
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_refused_with_the_numbers() {
        let budget = Budget::new(Some(100 << 20));
        budget.check(100 << 20, "cut it").unwrap();
        let text = format!("{:#}", budget.check(101 << 20, "cut it").unwrap_err());
        assert!(
            text.contains("101.0 MiB") && text.contains("--host-memory allows 100.0 MiB; cut it"),
            "{text}"
        );
        // nobody has as much, whatever the user allows
        let text = format!(
            "{:#}",
            Budget::new(Some(u64::MAX))
                .check(1 << 60, "cut it")
                .unwrap_err()
        );
        assert!(
            text.contains(" leaves ") && text.contains("cut it"),
            "{text}"
        );
    }
}
