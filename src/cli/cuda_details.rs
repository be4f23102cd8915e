//! What `bench step` and `selftest` say about the kernels as the driver has loaded them. Depends
//! on the CUDA backend.

use super::flags::tell;
use paragon::backend::cuda::{Device, KernelResources, Loading};
use paragon::plan::Precision;
use serde::Serialize;

/// Most warnings that are printed; JSON has what they are made of.
const MOST_WARNINGS: usize = 8;

/// The kernels of one type of activations.
#[derive(Serialize)]
pub struct LoadedKernels {
    pub precision: Precision,
    /// Compute capability x 10 of the card.
    pub capability: i32,
    pub multiprocessors: u32,
    /// Largest clock of the multiprocessors, Hz.
    pub clock: Option<f64>,
    /// From what they were loaded, and how long it took.
    #[serde(flatten)]
    pub loading: Option<Loading>,
    /// Percent of a multiprocessor's cache that the kernels have as shared memory.
    pub shared_memory_percent: i32,
    pub kernels: Vec<KernelResources>,
}

impl LoadedKernels {
    /// As the driver has loaded them.
    pub fn new(
        device: &Device,
        precision: Precision,
        shared_memory_percent: i32,
        kernels: Vec<KernelResources>,
    ) -> LoadedKernels {
        LoadedKernels {
            precision,
            capability: device.capability,
            multiprocessors: device.multiprocessors(),
            clock: device.clock(),
            loading: device.loading(precision),
            shared_memory_percent,
            kernels,
        }
    }

    /// One line: how many there are, how long loading took and from what, and the extremes.
    pub fn text(&self) -> String {
        let count = self.kernels.len();
        let registers = self.kernels.iter().map(|k| k.registers).max().unwrap_or(0);
        let local = self.kernels.iter().filter(|k| k.local_bytes > 0).count();
        let worse = self.warnings().count();
        let verdict = if worse == 0 {
            "none above kernels/ptx/RESOURCES.md".to_string()
        } else {
            format!("{worse} above kernels/ptx/RESOURCES.md")
        };
        let loaded = self.loading.as_ref().map_or_else(String::new, loaded_text);
        format!(
            "{count} kernels in {}{loaded}: up to {registers} registers, {local} with local memory, {} % of the cache as shared memory; {verdict}",
            self.precision, self.shared_memory_percent
        )
    }

    /// Tells the user what is worse than in the table of tested kernels.
    pub fn warn(&self) {
        let all = self.warnings().count();
        for warning in self.warnings().take(MOST_WARNINGS) {
            tell(format_args!("warning: {warning}"));
        }
        if all > 0 {
            let machine_code = self.loading.as_ref().is_some_and(Loading::is_machine_code);
            let reason = if machine_code {
                "this driver gives the machine code less than a card of the table has"
            } else {
                "this driver's compiler differs from the tested one"
            };
            tell(format_args!(
                "{all} kernels of {} are worse than kernels/ptx/RESOURCES.md lists: {reason}. Results are right, times may be longer",
                self.precision
            ));
        }
    }

    fn warnings(&self) -> impl Iterator<Item = String> {
        self.kernels.iter().filter_map(KernelResources::warning)
    }
}

/// How long loading took, and whether it was machine code or PTX.
fn loaded_text(loading: &Loading) -> String {
    let kind = if loading.is_machine_code() {
        "machine code"
    } else {
        "PTX"
    };
    let refused = match &loading.machine_code_refused {
        Some(reason) => format!("; machine code was refused, {reason}"),
        None => String::new(),
    };
    format!(
        " loaded in {:.2} s ({kind} for {}{refused})",
        loading.load_seconds, loading.code
    )
}
