//! The checks every backend relies on. Depends on the plan alone.

use super::{ALIGNMENT, Access, BufferId, Op, Plan, UpHead};
use anyhow::ensure;
use std::ops::Range;

/// Which bytes of a buffer have been written.
#[derive(Clone, Default)]
struct Written(Vec<Range<u64>>);

impl Written {
    fn add(&mut self, mut new: Range<u64>) {
        self.0.retain(|old| {
            let apart = old.end < new.start || new.end < old.start;
            if !apart {
                new = new.start.min(old.start)..new.end.max(old.end);
            }
            apart
        });
        self.0.push(new);
    }

    fn covers(&self, wanted: &Range<u64>) -> bool {
        wanted.is_empty() || self.0.iter().any(|have| have.start <= wanted.start && wanted.end <= have.end)
    }
}

impl Plan {
    /// Checks what every backend relies on: buffers inside the arena and aligned, no two live ones overlapping, no byte
    /// read before it was written, and late sums alive until they are added up.
    ///
    /// # Errors
    /// Names the buffers and the operation; such an error is a bug in a plan builder, never the user's fault.
    pub fn verify(&self) -> anyhow::Result<()> {
        for buffer in &self.buffers {
            ensure!(buffer.offset + buffer.bytes <= self.arena_bytes, "{} ends outside the arena", buffer.name);
            match buffer.parent {
                None => ensure!(buffer.offset % ALIGNMENT == 0, "{} is not aligned", buffer.name),
                Some((id, at)) => {
                    let whole = self.buffer(id);
                    let inside = whole.parent.is_none() && at + buffer.bytes <= whole.bytes && buffer.offset == whole.offset + at;
                    ensure!(inside, "{} is no part of {}", buffer.name, whole.name);
                    let lives = whole.live.start <= buffer.live.start && buffer.live.end <= whole.live.end;
                    ensure!(lives, "{} outlives {}", buffer.name, whole.name);
                }
            }
        }
        self.verify_overlaps()?;
        let mut written: Vec<Written> = vec![Written::default(); self.buffers.len()];
        for (id, buffer) in (0u32..).map(BufferId).zip(&self.buffers) {
            let by_host = [self.ports.input, self.ports.target].contains(&Some(id));
            let unpacked = || self.ops.iter().any(|op| matches!(op, Op::Unpack(u) if u.output == id));
            if buffer.class.persistent() || (by_host && !unpacked()) {
                written[id.0 as usize].add(0..buffer.bytes);
            }
        }
        for (i, op) in self.ops.iter().enumerate() {
            if let Op::StructuralLoss(o) = op {
                let name = &self.buffer(o.prediction).name;
                ensure!(o.prediction != o.d_prediction, "operation {i} ({}) would overwrite {name} while reading it", op.label());
            }
            for Access { buffer, .. } in op.accesses().filter(|a| a.read) {
                let (owner, range) = self.bytes_of(buffer);
                let known = written[owner.0 as usize].covers(&range);
                ensure!(known, "operation {i} ({}) reads {} before it is written", op.label(), self.buffer(buffer).name);
            }
            for Access { buffer, .. } in op.accesses().filter(|a| a.write) {
                let (owner, range) = self.bytes_of(buffer);
                written[owner.0 as usize].add(range);
            }
            if let Op::UpHead(UpHead { composed: Some(composed), .. }) = op {
                let buffer = self.buffer(composed.buffer);
                ensure!(buffer.live.start <= self.micro.start, "{} has no place when it is made", buffer.name);
            }
            if i + 1 == self.micro.end {
                for &id in &self.late_sums {
                    let (buffer, (owner, range)) = (self.buffer(id), self.bytes_of(id));
                    ensure!(written[owner.0 as usize].covers(&range), "{} is added up before it is written", buffer.name);
                    ensure!(buffer.live.contains(&i), "{} does not live until it is added up", buffer.name);
                }
            }
        }
        Ok(())
    }

    /// The buffer that owns the bytes, and which of its bytes they are.
    fn bytes_of(&self, id: BufferId) -> (BufferId, Range<u64>) {
        let buffer = self.buffer(id);
        let (owner, start) = buffer.parent.unwrap_or((id, 0));
        (owner, start..start + buffer.bytes)
    }

    /// No two buffers that live together share a byte: at every operation, each ends before the next begins.
    fn verify_overlaps(&self) -> anyhow::Result<()> {
        let mut starts: Vec<_> = self.buffers.iter().filter(|b| b.room() > 0).collect();
        starts.sort_by_key(|b| std::cmp::Reverse(b.live.start));
        let mut live: Vec<_> = Vec::new();
        for at in 0..self.ops.len() {
            live.retain(|b: &&super::Buffer| at < b.live.end);
            while let Some(b) = starts.pop_if(|b| b.live.start <= at) {
                live.push(b);
            }
            live.sort_by_key(|b| b.offset);
            for pair in live.windows(2) {
                let apart = pair[0].offset + pair[0].bytes <= pair[1].offset;
                ensure!(apart, "{} and {} are live together and share bytes", pair[0].name, pair[1].name);
            }
        }
        Ok(())
    }
}
