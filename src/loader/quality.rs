//! How well an order mixes, in two figures that can be printed beside it. Depends on `order` and
//! the indexes of the sets; reads no record. A full shuffle scores 1 for the distance, and the
//! share of batches that chance gives for the other.

use super::order::Order;
use super::{LoaderConfig, Sources};
use anyhow::Result;
use std::collections::BTreeSet;

/// Samples looked at: enough for two digits.
const SAMPLES: u64 = 16_384;

/// What is known of an order.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Quality {
    /// Mean distance, in records, between neighbouring samples of one set, over that of a random
    /// order (a third of the set).
    pub distance: f64,
    /// Share of batches that hold two patches of one image.
    pub same_image: f64,
    /// Samples looked at.
    pub samples: u64,
}

/// Looks at samples of the first epoch, whole batches spread evenly over it.
///
/// # Errors
/// A damaged index.
pub fn quality(sources: &Sources, config: &LoaderConfig) -> Result<Quality> {
    let mut order = Order::new(
        &sources.parts(config.lq_size, config.window),
        config.draws(),
    );
    let batch = config.batch as u64;
    let batches = (sources.len() / batch).max(1);
    let looked = batches.min(SAMPLES.div_ceil(batch));
    let (mut distance, mut neighbours, mut doubled) = (0.0, 0u64, 0u64);
    for nth in 0..looked {
        let number = (u128::from(nth) * u128::from(batches) / u128::from(looked)) as u64;
        let mut images = BTreeSet::new();
        let mut twice = false;
        let mut before: Option<(usize, u64)> = None;
        for i in 0..batch {
            let sample = order.sample(number * batch + i);
            let set = sources.set(sample.set);
            twice |= !images.insert((sample.set, set.image_of(sample.record)?));
            if let Some((other, record)) = before
                && other == sample.set
                && set.len() > 1
            {
                // two different places among n lie (n + 1) / 3 apart on average
                distance += record.abs_diff(sample.record) as f64 / ((set.len() + 1) as f64 / 3.0);
                neighbours += 1;
            }
            before = Some((sample.set, sample.record));
        }
        doubled += u64::from(twice);
    }
    let distance = if neighbours > 0 {
        distance / neighbours as f64
    } else {
        1.0
    };
    Ok(Quality {
        distance,
        same_image: doubled as f64 / looked as f64,
        samples: looked * batch,
    })
}

impl std::fmt::Display for Quality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (distance, share) = (self.distance, 100.0 * self.same_image);
        write!(
            f,
            "neighbours {distance:.2} of a random order's distance apart, two patches of one image in {share:.1}% of the batches"
        )
    }
}
