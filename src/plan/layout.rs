//! Assigns each buffer of a plan its offset in the arena, from the buffers' lifetimes. Persistent
//! buffers come first, one after another. The others are placed one by one, each in the lowest gap
//! among the placed buffers that are alive at the same time. The size of the arena depends on the
//! order of placement: largest first is the "greedy by size" heuristic of Pisarchyk and Lee
//! ("Efficient memory management for deep neural net inference", 2020). Several orders are tried,
//! each also with the highest buffer moved to its front a few times, until the arena is as small as
//! the lower bound; the best result is kept. Depends on the buffers alone.

use super::Buffer;
use std::cmp::Reverse;

/// From this many buffers on, a placement takes so long that fewer are tried, and that buffers which
/// live for most of the step are put below the others.
const MANY_BUFFERS: usize = 2000;

/// How often the highest buffer of an order is moved to its front.
const REPAIRS: usize = 8;

/// Sort key of an order of placement; its last part is the buffer's number, which makes it unique.
type Key = (Reverse<u64>, Reverse<u64>, usize);

/// The orders of placement that are tried; ties are placed by size, largest first.
#[derive(Clone, Copy)]
enum Order {
    /// Largest first.
    Size,
    /// Most bytes alive together with the buffer first: a large buffer with few such bytes finds a
    /// gap later.
    Company,
    /// Most live bytes at any operation of the buffer's lifetime first.
    Peak,
    /// Longest lifetime first.
    Length,
    /// Largest product of size and lifetime first.
    Area,
    /// Earliest first operation first.
    Start,
}

const ORDERS: [Order; 6] = [
    Order::Size,
    Order::Company,
    Order::Peak,
    Order::Length,
    Order::Area,
    Order::Start,
];

/// The buffers that are placed into gaps.
struct Transient<'a> {
    buffers: &'a [Buffer],
    /// The numbers of those that are put one after another, below the others.
    lasting: Vec<usize>,
    /// The numbers of the others.
    numbers: Vec<usize>,
    /// Sum of their bytes at each operation.
    live_bytes: Vec<u64>,
}

impl Transient<'_> {
    fn new(buffers: &[Buffer]) -> Transient<'_> {
        let operations = buffers.iter().map(|b| b.live.end).max().unwrap_or(0);
        let mut numbers: Vec<usize> = (0..buffers.len())
            .filter(|&i| !buffers[i].class.persistent() && buffers[i].parent.is_none())
            .collect();
        let mut lasting = Vec::new();
        if numbers.len() >= MANY_BUFFERS {
            let lasts = |&i: &usize| buffers[i].live.len() > operations / 2;
            (lasting, numbers) = numbers.into_iter().partition(lasts);
        }
        let mut live_bytes = vec![0u64; operations];
        for &i in &numbers {
            live_bytes[buffers[i].live.clone()]
                .iter_mut()
                .for_each(|sum| *sum += buffers[i].room());
        }
        Transient {
            buffers,
            lasting,
            numbers,
            live_bytes,
        }
    }

    fn key(&self, order: Order, i: usize) -> Key {
        let (live, room) = (&self.buffers[i].live, self.buffers[i].room());
        let first = match order {
            Order::Size => return (Reverse(room), Reverse(0), i),
            Order::Company => self
                .numbers
                .iter()
                .map(|&other| &self.buffers[other])
                .filter(|other| live.start < other.live.end && other.live.start < live.end)
                .map(Buffer::room)
                .sum(),
            Order::Peak => {
                let bytes = live.clone().map(|at| self.live_bytes[at]);
                bytes.max().unwrap_or(0)
            }
            Order::Length => live.len() as u64,
            Order::Area => room.saturating_mul(live.len() as u64),
            Order::Start => u64::MAX - live.start as u64,
        };
        (Reverse(first), Reverse(room), i)
    }

    /// The best placement above `base`: the end of the highest buffer, and all offsets.
    fn best_placement(&self, base: u64) -> (u64, Vec<u64>) {
        // no layout can be smaller
        let bound = base + self.live_bytes.iter().max().copied().unwrap_or(0);
        let mut best: Option<(u64, Vec<u64>)> = None;
        let many = self.numbers.len() >= MANY_BUFFERS;
        let (orders, repairs) = if many {
            (&ORDERS[..1], 0)
        } else {
            (&ORDERS[..], REPAIRS)
        };
        for &order in orders {
            let mut numbers = self.numbers.clone();
            numbers.sort_by_cached_key(|&i| self.key(order, i));
            for _ in 0..=repairs {
                let (end, offsets) = place(self.buffers, base, self.live_bytes.len(), &numbers);
                let highest = numbers
                    .iter()
                    .position(|&i| offsets[i] + self.buffers[i].room() == end);
                if end == bound {
                    return (end, offsets);
                }
                if best.as_ref().is_none_or(|(least, _)| end < *least) {
                    best = Some((end, offsets));
                }
                // the highest buffer found no gap: place it first
                match highest {
                    Some(at) if at > 0 => numbers[..=at].rotate_right(1),
                    _ => break,
                }
            }
        }
        best.unwrap_or_default()
    }
}

/// Sets every offset and returns the size of the arena in bytes.
pub(super) fn assign(buffers: &mut [Buffer]) -> u64 {
    let mut base = 0;
    for buffer in buffers.iter_mut().filter(|b| b.class.persistent()) {
        buffer.offset = base;
        base += buffer.room();
    }
    let transient = Transient::new(buffers);
    let mut lasting = Vec::new();
    for &i in &transient.lasting {
        lasting.push((i, base));
        base += buffers[i].room();
    }
    let (end, offsets) = transient.best_placement(base);
    let placed = transient.numbers.into_iter().map(|i| (i, offsets[i]));
    for (i, offset) in placed.chain(lasting) {
        buffers[i].offset = offset;
    }
    for i in 0..buffers.len() {
        if let Some((parent, at)) = buffers[i].parent {
            buffers[i].offset = buffers[parent.0 as usize].offset + at;
        }
    }
    end
}

/// Places buffers in the given order. Returns the end of the highest one, and all offsets.
fn place(buffers: &[Buffer], base: u64, operations: usize, order: &[usize]) -> (u64, Vec<u64>) {
    let (mut end, mut offsets) = (base, vec![0; buffers.len()]);
    // the placed byte ranges at each operation: faster than a list of all buffers, since slices are
    // many and short-lived
    let mut placed: Vec<Vec<(u64, u64)>> = vec![Vec::new(); operations];
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
