//! Assigns each buffer of a plan its offset in the arena, from the buffers' lifetimes. Persistent
//! buffers come first, one after another. The others are placed one by one, each in the lowest gap
//! among the placed buffers that are alive at the same time. The size of the arena depends on the
//! order of placement: largest first is the "greedy by size" heuristic of Pisarchyk and Lee
//! ("Efficient memory management for deep neural net inference", 2020). Several orders are tried,
//! each also with the highest buffer moved to its front a few times, until the arena is as small as
//! the lower bound; the best result is kept. Depends on the buffers alone.

use super::Buffer;
use std::cmp::Reverse;

/// How often the highest buffer of an order is moved to its front.
const REPAIRS: usize = 8;

/// Sort key of an order of placement; its last part is the buffer's number, which makes it unique.
type Key = (Reverse<u64>, Reverse<u64>, usize);

/// Sets every offset and returns the size of the arena in bytes.
pub(super) fn assign(buffers: &mut [Buffer]) -> u64 {
    let mut base = 0;
    for buffer in buffers.iter_mut().filter(|b| b.class.persistent()) {
        buffer.offset = base;
        base += buffer.room();
    }
    let moments = buffers.iter().map(|b| b.live.end).max().unwrap_or(0);
    let mut live_bytes = vec![0u64; moments];
    let transient: Vec<usize> = (0..buffers.len())
        .filter(|&i| !buffers[i].class.persistent() && buffers[i].parent.is_none())
        .collect();
    for &i in &transient {
        live_bytes[buffers[i].live.clone()]
            .iter_mut()
            .for_each(|sum| *sum += buffers[i].room());
    }
    // no layout can be smaller
    let bound = base + live_bytes.iter().max().copied().unwrap_or(0);
    // the most live bytes at any operation of the buffer's lifetime
    let crowd = |i: usize| {
        buffers[i]
            .live
            .clone()
            .map(|at| live_bytes[at])
            .max()
            .unwrap_or(0)
    };
    let size = |i: usize| Reverse(buffers[i].room());
    let length = |i: usize| Reverse(buffers[i].live.len());
    let live_together = |a: usize, b: usize| {
        buffers[a].live.start < buffers[b].live.end && buffers[b].live.start < buffers[a].live.end
    };
    // bytes of all buffers that are alive together with this one
    let company = |i: usize| {
        transient
            .iter()
            .filter(|&&other| live_together(i, other))
            .map(|&other| buffers[other].room())
            .sum()
    };
    let orders: [&dyn Fn(usize) -> Key; 6] = [
        &|i| (size(i), Reverse(0), i),
        // most bytes alive together first: a large buffer with few such bytes finds a gap later
        &|i| (Reverse(company(i)), size(i), i),
        // those that are alive at the peak first
        &|i| (Reverse(crowd(i)), size(i), i),
        &|i| (Reverse(length(i).0 as u64), size(i), i),
        &|i| {
            (
                Reverse(buffers[i].room().saturating_mul(length(i).0 as u64)),
                size(i),
                i,
            )
        },
        &|i| (Reverse(u64::MAX - buffers[i].live.start as u64), size(i), i),
    ];
    let mut best: Option<(u64, Vec<u64>)> = None;
    'orders: for key in orders {
        let mut order = transient.clone();
        order.sort_by_cached_key(|&i| key(i));
        for _ in 0..=REPAIRS {
            let (end, offsets) = place(buffers, base, moments, &order);
            let highest = order
                .iter()
                .position(|&i| offsets[i] + buffers[i].room() == end);
            if best.as_ref().is_none_or(|(least, _)| end < *least) {
                best = Some((end, offsets));
            }
            if end == bound {
                break 'orders;
            }
            // the highest buffer found no gap: place it first
            match highest {
                Some(at) if at > 0 => order[..=at].rotate_right(1),
                _ => break,
            }
        }
    }
    let (end, offsets) = best.unwrap_or_default();
    for &i in &transient {
        buffers[i].offset = offsets[i];
    }
    for i in 0..buffers.len() {
        if let Some((parent, at)) = buffers[i].parent {
            buffers[i].offset = buffers[parent.0 as usize].offset + at;
        }
    }
    end
}

/// Places buffers in the given order. Returns the end of the highest one, and all offsets.
fn place(buffers: &[Buffer], base: u64, moments: usize, order: &[usize]) -> (u64, Vec<u64>) {
    let (mut end, mut offsets) = (base, vec![0; buffers.len()]);
    // the placed byte ranges at each operation: faster than a list of all buffers, since slices are
    // many and short-lived
    let mut placed: Vec<Vec<(u64, u64)>> = vec![Vec::new(); moments];
    let mut busy = Vec::new();
    for &i in order {
        let size = buffers[i].room();
        busy.clear();
        busy.extend(placed[buffers[i].live.clone()].iter().flatten().copied());
        busy.sort_unstable();
        let mut offset = base;
        for &(start, stop) in &busy {
            if offset + size <= start {
                break;
            }
            offset = offset.max(stop);
        }
        offsets[i] = offset;
        end = end.max(offset + size);
        placed[buffers[i].live.clone()]
            .iter_mut()
            .for_each(|at| at.push((offset, offset + size)));
    }
    (end, offsets)
}

#[cfg(test)]
mod tests {
    use super::super::{ALIGNMENT, Class};
    use super::*;
    use proptest::prelude::*;

    fn buffer(bytes: u64, live: std::ops::Range<usize>) -> Buffer {
        Buffer {
            name: String::new(),
            class: Class::Activations,
            bytes,
            live,
            offset: u64::MAX,
            parent: None,
        }
    }

    proptest! {
        #[test]
        fn live_buffers_never_overlap_and_dead_ones_share(sizes in prop::collection::vec((1u64..100_000, 0usize..20, 1usize..8), 1..40)) {
            let mut buffers: Vec<Buffer> = sizes.iter().map(|&(b, s, l)| buffer(b, s..s + l)).collect();
            let end = assign(&mut buffers);
            for (i, a) in buffers.iter().enumerate() {
                prop_assert!(a.offset % ALIGNMENT == 0 && a.offset + a.bytes <= end);
                for b in &buffers[i + 1..] {
                    let together = a.live.start < b.live.end && b.live.start < a.live.end;
                    prop_assert!(!together || a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset);
                }
            }
            let sum: u64 = buffers.iter().map(|b| b.bytes.next_multiple_of(ALIGNMENT)).sum();
            prop_assert!(end <= sum);
        }
    }

    #[test]
    fn a_chain_needs_only_two_buffers_at_a_time() {
        let mut buffers: Vec<Buffer> = (0..10).map(|i| buffer(1024, i..i + 2)).collect();
        assert_eq!(assign(&mut buffers), 2048);
    }
}
