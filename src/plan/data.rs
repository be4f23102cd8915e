//! Questions to a plan: its buffers, the ranges that are free, the bytes that are live, and which
//! operations a backend may fuse. Depends on the plan's data alone.

use super::{Buffer, BufferId, Error, Fusion, PlanData, Precision};
use std::ops::Range;

impl PlanData {
    /// How operation `at` and the next one may be computed at once; `None` if they may not.
    pub fn fusion(&self, at: usize) -> Option<Fusion> {
        let fusion = self.ops.get(at)?.fusion(self.ops.get(at + 1)?)?;
        (!fusion.halves || self.precision != Precision::F32).then_some(fusion)
    }

    /// Whether an operation after `at` uses a buffer or, if it is a view, any part of the buffer to
    /// which it belongs.
    ///
    /// # Panics
    /// As [`PlanData::buffer`].
    pub fn used_after(&self, id: BufferId, at: usize) -> bool {
        let owner = self.buffer(id).parent.map_or(id, |(owner, _)| owner);
        self.buffer(owner).live.end > at + 1
    }

    /// A buffer by its id.
    ///
    /// # Panics
    /// If `id` is not of this plan. The ids in a verified plan's operations and ports always are;
    /// for other ids use [`PlanData::get_buffer`].
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }

    /// A buffer by its id; `None` if the plan has no such buffer.
    pub fn get_buffer(&self, id: BufferId) -> Option<&Buffer> {
        self.buffers.get(id.0 as usize)
    }

    /// The offset in the arena of `len` bytes of a buffer that start at its byte `offset`.
    ///
    /// # Errors
    /// [`Error::NoSuchBuffer`], or [`Error::OutOfBuffer`] if the range is not inside the buffer.
    pub fn range_in(&self, id: BufferId, offset: usize, len: usize) -> Result<u64, Error> {
        let buffer = self.get_buffer(id).ok_or(Error::NoSuchBuffer {
            number: id.0,
            buffers: self.buffers.len(),
        })?;
        let end = (offset as u64).checked_add(len as u64);
        if end.is_none_or(|end| end > buffer.bytes) {
            return Err(Error::OutOfBuffer {
                name: buffer.name.clone(),
                bytes: buffer.bytes,
                offset,
                len,
            });
        }
        Ok(buffer.offset + offset as u64)
    }

    /// The range of the arena, in bytes, whose content is not needed between steps.
    pub fn free_between_steps(&self) -> Range<u64> {
        let persistent = self
            .buffers
            .iter()
            .filter(|b| b.class.persistent())
            .map(|b| b.offset + b.room())
            .max();
        persistent.unwrap_or(0)..self.arena_bytes
    }

    /// The offset in this plan's arena at which another plan may run between steps, bytes.
    ///
    /// # Errors
    /// [`Error::NoRoom`] if the other plan's arena is larger than what is free there.
    pub fn place_between_steps(&self, other: &PlanData) -> Result<u64, Error> {
        let range = self.free_between_steps();
        let (needed, free) = (other.arena_bytes, range.end - range.start);
        if needed > free {
            return Err(Error::NoRoom { needed, free });
        }
        Ok(range.start)
    }

    /// The largest sum of live bytes over the operations, aligned: no layout can be smaller.
    /// Returns (bytes, operation).
    pub fn peak(&self) -> (u64, usize) {
        let live = self.live_bytes(|_| true);
        live.into_iter()
            .enumerate()
            .map(|(i, bytes)| (bytes, i))
            .max_by_key(|&(bytes, i)| (bytes, std::cmp::Reverse(i)))
            .unwrap_or((0, 0))
    }

    /// Live bytes of the chosen buffers at every operation. A plan without operations has one
    /// entry, so that persistent buffers are counted.
    pub fn live_bytes(&self, chosen: impl Fn(&Buffer) -> bool) -> Vec<u64> {
        let mut change = vec![0i64; self.ops.len().max(1) + 1];
        for buffer in self.buffers.iter().filter(|b| chosen(b)) {
            change[buffer.live.start] += buffer.room() as i64;
            change[buffer.live.end.max(1)] -= buffer.room() as i64;
        }
        let mut sum = 0;
        change.pop();
        change
            .into_iter()
            .map(|delta| {
                sum += delta;
                sum as u64
            })
            .collect()
    }
}
