//! The checks every backend relies on. Depends on the plan alone.

use super::{ALIGNMENT, Access, BufferId, Op, PlanData, Reconstruct, ReconstructBack, Sizing};
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
        wanted.is_empty()
            || self
                .0
                .iter()
                .any(|have| have.start <= wanted.start && wanted.end <= have.end)
    }
}

impl PlanData {
    /// Checks what every backend relies on: buffers inside the arena and aligned, no two live ones
    /// overlapping, no byte read before it was written, and late sums alive until they are added
    /// up.
    ///
    /// # Errors
    /// Names the buffers and the operation; such an error is a bug in a plan builder, never the
    /// user's fault.
    pub fn verify(&self) -> anyhow::Result<()> {
        for buffer in &self.buffers {
            let inside = buffer
                .offset
                .checked_add(buffer.bytes)
                .is_some_and(|end| end <= self.arena_bytes);
            ensure!(inside, "{} ends outside the arena", buffer.name);
            match buffer.parent {
                None => ensure!(
                    buffer.offset % ALIGNMENT == 0,
                    "{} is not aligned",
                    buffer.name
                ),
                Some((id, at)) => {
                    let whole = self.buffer(id);
                    let ends = at
                        .checked_add(buffer.bytes)
                        .is_some_and(|end| end <= whole.bytes);
                    let inside =
                        whole.parent.is_none() && ends && buffer.offset == whole.offset + at;
                    ensure!(inside, "{} is no part of {}", buffer.name, whole.name);
                    let lives =
                        whole.live.start <= buffer.live.start && buffer.live.end <= whole.live.end;
                    ensure!(lives, "{} outlives {}", buffer.name, whole.name);
                }
            }
        }
        self.verify_overlaps()?;
        let mut written: Vec<Written> = vec![Written::default(); self.buffers.len()];
        for (id, buffer) in (0u32..).map(BufferId).zip(&self.buffers) {
            let by_host = [self.ports.input, self.ports.target].contains(&Some(id));
            let unpacked = || {
                self.ops
                    .iter()
                    .any(|op| matches!(op, Op::Unpack(u) if u.output == id))
            };
            if buffer.class.persistent() || (by_host && !unpacked()) {
                written[id.0 as usize].add(0..buffer.bytes);
            }
        }
        for (i, op) in self.ops.iter().enumerate() {
            if let Op::StructuralLoss(o) = op {
                let name = &self.buffer(o.prediction).name;
                ensure!(
                    o.prediction != o.d_prediction,
                    "operation {i} ({}) would overwrite {name} while reading it",
                    op.label()
                );
            }
            for Access { buffer, .. } in op.accesses().filter(|a| a.read) {
                let (owner, range) = self.bytes_of(buffer);
                let known = written[owner.0 as usize].covers(&range);
                ensure!(
                    known,
                    "operation {i} ({}) reads {} before it is written",
                    op.label(),
                    self.buffer(buffer).name
                );
            }
            for Access { buffer, .. } in op.accesses().filter(|a| a.write) {
                let (owner, range) = self.bytes_of(buffer);
                written[owner.0 as usize].add(range);
            }
            if let Op::Reconstruct(Reconstruct {
                folded: Some(folded),
                ..
            }) = op
            {
                let buffer = self.buffer(folded.buffer);
                ensure!(
                    buffer.live.start <= self.micro.start,
                    "{} has no place when it is made",
                    buffer.name
                );
            }
            if i + 1 == self.micro.end {
                for &id in &self.deferred_sums {
                    let (buffer, (owner, range)) = (self.buffer(id), self.bytes_of(id));
                    ensure!(
                        written[owner.0 as usize].covers(&range),
                        "{} is added up before it is written",
                        buffer.name
                    );
                    ensure!(
                        buffer.live.contains(&i),
                        "{} does not live until it is added up",
                        buffer.name
                    );
                }
            }
        }
        Ok(())
    }

    /// Checks that a backend which asks for `sizing` finds the room that it writes to: type of
    /// activations, workspace and carried sums of every operation, the block of scalars, the second
    /// place for a batch, sums that live until they are added up. A plan that was made for other
    /// threads or another backend has less.
    ///
    /// # Errors
    /// Names for whom the plan was made, and what is missing; or the operation that the backend does
    /// not support.
    pub fn check_sized_for(&self, sizing: &dyn Sizing) -> anyhow::Result<()> {
        let other = || {
            format!(
                "the plan was made for {} and cannot run on {}",
                self.sized_for,
                sizing.name()
            )
        };
        ensure!(
            self.precision == sizing.precision(),
            "{}: it computes in {}",
            other(),
            self.precision
        );
        let bytes = |id: Option<BufferId>| {
            id.and_then(|id| self.buffers.get(id.0 as usize))
                .map_or(0, |buffer| buffer.bytes)
        };
        let room = |what: &str, op: &Op, has: u64, needed: u64| {
            ensure!(
                has >= needed,
                "{}: the {what} of \"{}\" has {has} bytes where {needed} are needed",
                other(),
                op.label()
            );
            Ok(())
        };
        for op in &self.ops {
            sizing.supports(op)?;
            room("workspace", op, bytes(op.workspace()), sizing.workspace(op))?;
            if let Some(slice) = op.slice()
                && (slice.carry.is_some() || !(slice.first && slice.last))
            {
                room("carried sums", op, bytes(slice.carry), sizing.carry(op))?;
            }
            if let Op::Reconstruct(head)
            | Op::ReconstructBack(ReconstructBack { forward: head, .. }) = op
            {
                room(
                    "folded kernel",
                    op,
                    bytes(head.folded.map(|c| c.buffer)),
                    sizing.folded(head),
                )?;
            }
        }
        ensure!(
            bytes(self.ports.scalars) >= sizing.scalar_bytes(),
            "{}: it has no block of scalars",
            other()
        );
        let (trains, second) = (!self.update.is_empty(), self.ports.next_batch.is_some());
        ensure!(
            second || !trains || self.batch.is_none() || !sizing.copies_ahead(),
            "{}: it has no second place for a batch",
            other()
        );
        let late = self
            .ops
            .get(self.micro.clone())
            .unwrap_or_default()
            .iter()
            .filter(|op| sizing.defers_sums(op))
            .flat_map(Op::sums);
        for id in late {
            ensure!(
                self.deferred_sums.contains(&id),
                "{}: {} does not live until it is added up",
                other(),
                self.buffer(id).name
            );
        }
        Ok(())
    }

    /// The buffer that owns the bytes, and which of its bytes they are.
    fn bytes_of(&self, id: BufferId) -> (BufferId, Range<u64>) {
        let buffer = self.buffer(id);
        let (owner, start) = buffer.parent.unwrap_or((id, 0));
        (owner, start..start + buffer.bytes)
    }

    /// No two buffers that live together share a byte: at every operation, each ends before the
    /// next begins.
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
                ensure!(
                    apart,
                    "{} and {} are live together and share bytes",
                    pair[0].name,
                    pair[1].name
                );
            }
        }
        Ok(())
    }
}
