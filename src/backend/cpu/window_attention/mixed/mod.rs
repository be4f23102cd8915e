//! Window attention on bf16 factors with f32 sums: q, k, v and the output's gradient are rounded
//! once for each head of a window, the weights and the gradients of the scores as soon as they are
//! computed. Softmax, sums and results are f32. Depends on the bf16 kernels and on what all forms of
//! window attention share. As in f32, a result does not depend on the position of its window.
//!
//! A head's 16 channels fill half a step of the sum over channels; zeros fill the rest.

mod backward;
mod forward;
#[cfg(test)]
mod tests;

pub(super) use backward::{backward, workspace_back};
pub(super) use forward::{forward, workspace};

use super::super::bf16::{BlockProduct, STEP, Session, Start};
use super::super::simd::LANES;

/// Queries whose weights are one step of a sum over queries.
const BLOCK: usize = STEP;
/// Of a query's scores to the next one's. A distance of 17 lines spreads the rows over the sets of
/// the nearest cache.
fn score_stride(tiles: usize) -> usize {
    (tiles + 1) * LANES
}

/// bf16 values from one row of weights to the next: the same distance in lines, for the same reason.
fn weight_stride(tiles: usize) -> usize {
    (tiles + 2) * LANES
}

/// A part of the scratch with room for `floats` values, which `*rest` then points past.
///
/// # Safety
/// The scratch has room for them.
unsafe fn take(rest: &mut *mut f32, floats: usize) -> *mut f32 {
    let start = *rest;
    // SAFETY: the caller's contract
    *rest = unsafe { start.add(floats.next_multiple_of(LANES)) };
    start
}

/// 32 queries times 16 channels, `[query][channel]`: the sums over all keys of `weights`, rows of
/// [`weight_stride`], and `values`, pairs of keys.
///
/// # Safety
/// The factors hold the queries and the keys of `tiles` tiles, `c` has room for the outputs, and no
/// other thread uses it.
unsafe fn multiply_keys(
    session: &Session,
    (weights, values): (*const u16, *const u16),
    tiles: usize,
    c: *mut f32,
) {
    let product = BlockProduct {
        a: &[weights],
        a_row: weight_stride(tiles),
        b: &[values],
        b_group: 0,
        steps: tiles / 2,
        start: Start::Zero,
        c,
        c_row: LANES,
        c_groups: (LANES * LANES, 0),
    };
    // SAFETY: the caller's contract
    unsafe { session.product(&product, 2, 1) };
}

/// What the scores of a window start with, if it has keys of padding: the values at `start`.
fn start_of(start: *const f32, keys: usize, tiles: usize) -> Option<*const f32> {
    (keys < tiles * LANES).then_some(start)
}
