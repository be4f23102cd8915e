//! Where the epochs begin among the batches. Batches cross the ends of epochs, as in the program; an
//! epoch has the batches whose first sample, of rank 0, belongs to it. So every rank gives the same
//! number of batches.

/// The lengths that decide it.
#[derive(Clone, Copy)]
pub struct Epochs {
    /// Samples of an epoch.
    pub samples: u64,
    /// Samples that one batch takes from all ranks together.
    pub step: u64,
}

impl Epochs {
    /// The epoch of a batch.
    pub fn of(self, batch: u64) -> u64 {
        (u128::from(batch) * u128::from(self.step) / u128::from(self.samples)) as u64
    }

    /// Number of the first batch of an epoch.
    pub fn first(self, epoch: u64) -> u64 {
        let sample = u128::from(epoch) * u128::from(self.samples);
        sample.div_ceil(u128::from(self.step)) as u64
    }

    /// Number of the batch that follows the last one of the epoch of `batch`.
    pub fn end(self, batch: u64) -> u64 {
        self.first(self.of(batch) + 1)
    }

    /// Batches of the epoch of `batch`.
    pub fn len(self, batch: u64) -> u64 {
        let epoch = self.of(batch);
        self.first(epoch + 1) - self.first(epoch)
    }
}
