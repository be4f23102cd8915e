//! Tiles of LQ pixels, as all kernels of the network's layers take them. Depends on the plan's
//! extents.

use super::constants::TILE;
use crate::plan::Extent;

/// Tiles of all images.
pub(super) fn tiles(e: Extent) -> usize {
    e.n * e.h.div_ceil(TILE) * e.w.div_ceil(TILE)
}

/// Pixels of a tile with `border` more on each side.
pub(super) fn tile_pixels(border: usize) -> usize {
    (TILE + 2 * border).pow(2)
}
