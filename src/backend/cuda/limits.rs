//! Limits that launches keep to, and numbers of blocks and images that workspaces are sized by.
//! Depends on nothing.

use std::ops::RangeInclusive;
use std::sync::OnceLock;

/// Most dynamic shared memory of a block, bytes: a multiprocessor with 100 KiB, of which every
/// block takes one more, holds two.
pub const MOST_SHARED: u32 = 49 << 10;

/// Most blocks of a kernel that sums over pixels, unless [`SUM_BLOCKS_VARIABLE`] says otherwise: nearly
/// two for every multiprocessor of the largest card in use. Smaller cards launch fewer
/// ([`super::choices`]).
const SUM_BLOCKS: usize = 256;

/// Sets the number of these blocks, for measurements: it changes the order of sums, so also the last
/// bits of a training.
pub(super) const SUM_BLOCKS_VARIABLE: &str = "PARAGON_CUDA_SUM_BLOCKS";

/// Numbers that it may have: a layer divides them among up to 16 groups.
pub(super) const SUM_BLOCKS_RANGE: RangeInclusive<usize> = 16..=1024;

/// Blocks of a kernel that sums over pixels that plans have room for. The number is the same for every card,
/// so that a plan can be made before a card is known; it never changes while the program runs.
pub(super) fn most_sum_blocks() -> usize {
    static BLOCKS: OnceLock<usize> = OnceLock::new();
    *BLOCKS.get_or_init(|| {
        // a wrong value is reported when a device is opened
        let text = std::env::var(SUM_BLOCKS_VARIABLE).unwrap_or_default();
        let asked = text.parse().ok();
        asked
            .filter(|blocks| SUM_BLOCKS_RANGE.contains(blocks))
            .unwrap_or(SUM_BLOCKS)
    })
}

/// f32 values that a structural loss holds at once, unless a single image has more: those of 16 images
/// of 256 x 256 pixels fill a large card and stay in its cache.
pub(super) const STRUCTURAL_FLOATS: usize = 3 << 20;
