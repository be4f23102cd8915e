//! How well an order mixes, in two figures that are printed before a run starts. Depends on `order`
//! and the indexes of the sets; reads no record. A full shuffle gives a distance of 1; the expected
//! share of batches with two patches of one image depends on the set.

use super::order::Order;
use super::{LoaderConfig, Sources, bound};
use anyhow::Result;
use std::collections::BTreeSet;

/// Samples that are examined: enough for two digits.
const SAMPLES: u64 = 16_384;

/// How well an order mixes.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct OrderQuality {
    /// Mean distance, in records, between neighbouring samples of one set, divided by that of a
    /// random order (a third of the set).
    pub distance: f64,
    /// Share of batches that hold two patches of one image.
    pub same_image: f64,
    /// Samples examined.
    pub samples: u64,
}

/// Examines samples of the first epoch: whole batches, spread evenly over it.
///
/// # Errors
/// Those of [`bound`]; a damaged index.
pub fn quality(sources: &Sources, config: &LoaderConfig) -> Result<OrderQuality> {
    bound(sources, config)?;
    let specs = sources.set_specs(config.lq_size, config.window);
    let mut order = Order::new(&specs, config.draws())?;
    let batch = config.batch as u64;
    let batches = (sources.len() / batch).max(1);
    let examined = batches.min(SAMPLES.div_ceil(batch));
    let (mut distance, mut neighbours, mut with_repeats) = (0.0, 0u64, 0u64);
    for nth in 0..examined {
        let number = (u128::from(nth) * u128::from(batches) / u128::from(examined)) as u64;
        let mut images = BTreeSet::new();
        let mut repeats = false;
        let mut previous: Option<(usize, u64)> = None;
        for i in 0..batch {
            let sample = order.sample(number * batch + i);
            let set = sources.set(sample.set);
            repeats |= !images.insert((sample.set, set.image_of(sample.record)?));
            if let Some((other, record)) = previous
                && other == sample.set
                && set.len() > 1
            {
                // Two different random positions among n are (n + 1) / 3 apart on average.
                distance += record.abs_diff(sample.record) as f64 / ((set.len() + 1) as f64 / 3.0);
                neighbours += 1;
            }
            previous = Some((sample.set, sample.record));
        }
        with_repeats += u64::from(repeats);
    }
    let distance = if neighbours > 0 {
        distance / neighbours as f64
    } else {
        1.0
    };
    Ok(OrderQuality {
        distance,
        same_image: with_repeats as f64 / examined as f64,
        samples: examined * batch,
    })
}

/// From this distance on, relative to a random order, an order is called good.
const GOOD_DISTANCE: f64 = 0.8;
/// From this share on of batches with two patches of one image, the text advises more images.
const MANY_REPEATS: f64 = 0.2;

impl std::fmt::Display for OrderQuality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (distance, share) = (self.distance, 100.0 * self.same_image);
        let verdict = if distance >= GOOD_DISTANCE {
            "good"
        } else {
            "weak"
        };
        write!(f, "{verdict} ({distance:.2} of random)")?;
        if self.same_image >= MANY_REPEATS {
            write!(
                f,
                "; {share:.0}% of the batches hold two patches of one image, more images would help"
            )?;
        }
        Ok(())
    }
}
