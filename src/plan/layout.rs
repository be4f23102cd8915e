//! Lifetimes to offsets: where each buffer of a plan lies in the arena. Persistent buffers stand first, one after another;
//! the others are placed largest first, each at the lowest gap among the buffers it lives together with (the "greedy by
//! size" heuristic of Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020).

use super::Buffer;

/// Sets every offset and returns the size of the arena in bytes.
pub(super) fn assign(buffers: &mut [Buffer]) -> u64 {
    let mut end = 0;
    for buffer in buffers.iter_mut().filter(|b| b.class.persistent()) {
        buffer.offset = end;
        end += buffer.room();
    }
    let base = end;
    let placed_by_time = |b: &Buffer| !b.class.persistent() && b.parent.is_none();
    let mut order: Vec<usize> = (0..buffers.len()).filter(|&i| placed_by_time(&buffers[i])).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].bytes), i));
    let mut placed: Vec<usize> = Vec::new();
    for i in order {
        let size = buffers[i].room();
        let mut busy: Vec<(u64, u64)> = placed
            .iter()
            .map(|&j| &buffers[j])
            .filter(|b| b.live.start < buffers[i].live.end && buffers[i].live.start < b.live.end)
            .map(|b| (b.offset, b.offset + b.room()))
            .collect();
        busy.sort_unstable();
        let mut offset = base;
        for (start, stop) in busy {
            if offset + size <= start {
                break;
            }
            offset = offset.max(stop);
        }
        buffers[i].offset = offset;
        end = end.max(offset + size);
        placed.push(i);
    }
    for i in 0..buffers.len() {
        if let Some((parent, at)) = buffers[i].parent {
            buffers[i].offset = buffers[parent.0 as usize].offset + at;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::super::{ALIGNMENT, Class};
    use super::*;
    use proptest::prelude::*;

    fn buffer(bytes: u64, live: std::ops::Range<usize>) -> Buffer {
        Buffer { name: String::new(), class: Class::Activations, bytes, live, offset: u64::MAX, parent: None }
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
