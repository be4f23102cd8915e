//! Threads that load and slots of the ring: what the user said, or what suits the place where the
//! run computes. Depends on the loader's rule for its slots.

use super::DevicePlace;
use crate::loader::usual_slots;
use std::thread::available_parallelism;

/// Most threads that load where nobody said how many.
const MOST_THREADS: usize = 16;

/// What the user said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefetch {
    /// Threads that load.
    pub threads: Option<usize>,
    /// Batches in the ring.
    pub slots: Option<usize>,
}

impl Prefetch {
    /// Threads and slots at a place. On the CPU one thread loads, since the step wants the others;
    /// beside a device nothing else computes, so all cores do.
    pub fn at(&self, place: &DevicePlace) -> (usize, usize) {
        let cores = || {
            available_parallelism()
                .map_or(1, usize::from)
                .min(MOST_THREADS)
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
    fn what_is_said_is_kept_and_the_rest_suits_the_place() {
        let cpu = DevicePlace::Cpu(CpuOptions::new(2));
        let gpu = DevicePlace::Cuda {
            sizing: CudaSizing {
                precision: Precision::Bf16,
            },
            in_use: None,
        };
        let unsaid = Prefetch::default();
        assert_eq!(unsaid.at(&cpu), (1, 4));
        let (threads, slots) = unsaid.at(&gpu);
        assert!((1..=MOST_THREADS).contains(&threads) && slots == threads + 3);
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
