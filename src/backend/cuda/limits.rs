//! Limits that launches keep to, and numbers of blocks and images that workspaces are sized by.
//! Depends on nothing.

/// Most dynamic shared memory of a block, bytes: a multiprocessor with 100 KiB, of which every
/// block takes one more, holds two.
pub const MOST_SHARED: u32 = 49 << 10;

/// Blocks of a kernel that sums over pixels: nearly two for every multiprocessor of the largest
/// card in use. The number is the same on every card, so that sums have one order.
pub(super) const SUM_BLOCKS: usize = 256;

/// Images whose planes a structural loss holds at once: enough to fill a card with LQ 128, few
/// enough to stay in its cache.
pub(super) const STRUCTURAL_IMAGES: usize = 8;
