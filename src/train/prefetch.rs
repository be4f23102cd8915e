//! Loader threads and slots: the numbers the user gave, or defaults for the device of the run.
//! Depends on the loader's rule for its slots.

use super::DevicePlace;
use crate::loader::usual_slots;
use std::thread::available_parallelism;

/// Largest default number of loader threads.
const MAX_DEFAULT_THREADS: usize = 16;

/// The numbers that the user gave; `None` takes the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefetch {
    /// Loader threads.
    pub threads: Option<usize>,
    /// Slots of the loader: batches that exist at once.
    pub slots: Option<usize>,
}

impl Prefetch {
    /// The same for one of several ranks of a host, whose share of the cores is `cores`.
    #[must_use]
    pub fn among_ranks(self, place: &DevicePlace, cores: usize) -> Prefetch {
        let usual = place
            .is_device()
            .then_some(cores.clamp(1, MAX_DEFAULT_THREADS));
        Prefetch {
            threads: self.threads.or(usual),
            ..self
        }
    }

    /// Loader threads and slots. CPU: one loader thread, the other threads compute the step. CUDA:
    /// nothing else uses the CPU, so all cores load (at most 16).
    pub fn at(&self, place: &DevicePlace) -> (usize, usize) {
        let cores = || {
            available_parallelism()
                .map_or(1, usize::from)
                .min(MAX_DEFAULT_THREADS)
        };
        let threads = self
            .threads
            .unwrap_or_else(|| if place.is_device() { cores() } else { 1 });
        (threads, self.slots.unwrap_or(usual_slots(threads)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::CudaSizing;
    use crate::backend::cpu::CpuOptions;
    use crate::plan::Precision;

    #[test]
    fn given_numbers_are_kept_and_defaults_fit_the_device() {
        let cpu = DevicePlace::Cpu(CpuOptions::new(2));
        let gpu = DevicePlace::Cuda {
            sizing: CudaSizing {
                precision: Precision::Bf16,
            },
            in_use: None,
        };
        let defaults = Prefetch::default();
        assert_eq!(defaults.at(&cpu), (1, 4));
        let (threads, slots) = defaults.at(&gpu);
        assert!((1..=MAX_DEFAULT_THREADS).contains(&threads) && slots == threads + 3);
        assert_eq!(defaults.among_ranks(&gpu, 3).at(&gpu), (3, 6));
        assert_eq!(defaults.among_ranks(&cpu, 3).at(&cpu), (1, 4));
        assert_eq!(
            Prefetch {
                threads: Some(5),
                slots: None
            }
            .at(&gpu),
            (5, 8)
        );
        assert_eq!(
            Prefetch {
                threads: None,
                slots: Some(2)
            }
            .at(&cpu),
            (1, 2)
        );
    }
}
