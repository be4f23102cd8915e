//! The checks that every backend relies on. Depends on the plan alone.

use super::error::unsupported;
use super::{ALIGNMENT, Access, Buffer, BufferId, Error, Op, PlanData, Sizing};
use std::ops::Range;

/// The byte ranges of one buffer that operations have written so far.
#[derive(Clone, Default)]
struct Written(Vec<Range<u64>>);

impl Written {
    /// Adds a range and merges it with the ranges that it overlaps or touches.
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
        let inside = |have: &Range<u64>| have.start <= wanted.start && wanted.end <= have.end;
        wanted.is_empty() || self.0.iter().any(inside)
    }
}

/// [`Error::Invalid`] with this text unless `holds`.
fn require(holds: bool, text: impl FnOnce() -> String) -> Result<(), Error> {
    if holds {
        Ok(())
    } else {
        Err(Error::Invalid(text()))
    }
}

impl PlanData {
    /// Checks what every backend relies on: every buffer that is named exists, buffers are aligned
    /// and inside the arena, no two live ones overlap, no byte is read before it was written, and
    /// deferred sums are alive until they are added up.
    ///
    /// # Errors
    /// Names the buffers and the operation; such an error is a bug in a plan builder, never the
    /// user's fault.
    pub fn verify(&self) -> Result<(), Error> {
        self.verify_names()?;
        self.buffers
            .iter()
            .try_for_each(|buffer| self.verify_place(buffer))?;
        self.verify_overlaps()?;
        self.verify_order()?;
        self.verify_ranges()
    }

    /// Every buffer that an operation, a port or the batch names is one of the plan's.
    fn verify_names(&self) -> Result<(), Error> {
        let p = &self.ports;
        let ports = [
            p.parameters,
            p.gradients,
            p.moment1,
            p.moment2,
            p.ema,
            p.input,
            p.output,
            p.target,
            p.features,
            p.means,
            p.input_gradients[0],
            p.input_gradients[1],
            p.metrics,
            p.scalars,
            p.exchange,
            p.next_batch,
        ];
        let named = self
            .ops
            .iter()
            .flat_map(Op::all_accesses)
            .map(|access| access.buffer)
            .chain(ports.into_iter().flatten())
            .chain(self.batch.map(|batch| batch.buffer))
            .chain(self.deferred_sums.iter().copied())
            .chain(self.buffers.iter().filter_map(|b| Some(b.parent?.0)));
        for id in named {
            self.get_buffer(id).ok_or(Error::NoSuchBuffer {
                number: id.0,
                buffers: self.buffers.len(),
            })?;
        }
        Ok(())
    }

    /// The buffer is inside the arena and aligned, or a view inside a buffer that lives as long.
    fn verify_place(&self, buffer: &Buffer) -> Result<(), Error> {
        let end = buffer.offset.checked_add(buffer.bytes);
        require(end.is_some_and(|end| end <= self.arena_bytes), || {
            format!("{} ends outside the arena", buffer.name)
        })?;
        let Some((parent, at)) = buffer.parent else {
            return require(buffer.offset.is_multiple_of(ALIGNMENT), || {
                format!("{} is not aligned", buffer.name)
            });
        };
        let whole = self.buffer(parent);
        let end = at.checked_add(buffer.bytes);
        let inside = whole.parent.is_none()
            && end.is_some_and(|end| end <= whole.bytes)
            && whole.offset.checked_add(at) == Some(buffer.offset);
        require(inside, || {
            format!("{} is no part of {}", buffer.name, whole.name)
        })?;
        let lives = whole.live.start <= buffer.live.start && buffer.live.end <= whole.live.end;
        require(lives, || format!("{} outlives {}", buffer.name, whole.name))
    }

    /// The operations of `micro`, `update` and of every lifetime are operations of the plan.
    fn verify_ranges(&self) -> Result<(), Error> {
        let exists = |range: &Range<usize>| range.start <= range.end && range.end <= self.ops.len();
        for range in [&self.micro, &self.update] {
            require(exists(range), || {
                format!("operations {range:?} of a plan of {}", self.ops.len())
            })?;
        }
        for buffer in &self.buffers {
            require(exists(&buffer.live), || {
                format!("{} lives at operations that do not exist", buffer.name)
            })?;
        }
        Ok(())
    }

    /// What is written before the first operation: persistent buffers, and float inputs of the
    /// host.
    fn written_at_start(&self) -> Vec<Written> {
        let computed = |id: BufferId| {
            let writes = |op: &Op| op.accesses().iter().any(|a| a.write && a.buffer == id);
            self.ops.iter().any(writes)
        };
        let by_host = |id: BufferId| {
            let p = &self.ports;
            [p.input, p.target, p.features, p.means].contains(&Some(id)) && !computed(id)
        };
        (0u32..)
            .map(BufferId)
            .zip(&self.buffers)
            .map(|(id, buffer)| {
                let mut written = Written::default();
                if buffer.class.persistent() || by_host(id) {
                    written.add(0..buffer.bytes);
                }
                written
            })
            .collect()
    }

    /// In the order of the operations, nothing is read before it is written.
    fn verify_order(&self) -> Result<(), Error> {
        let mut written = self.written_at_start();
        for (i, op) in self.ops.iter().enumerate() {
            let label = op.label();
            let accesses = op.all_accesses();
            for read in accesses.iter().filter(|a| a.read && !a.write) {
                let overwrites = |a: &Access| a.write && a.buffer == read.buffer;
                let allowed = op.may_overwrite() == Some(read.buffer);
                require(allowed || !accesses.iter().any(overwrites), || {
                    let name = &self.buffer(read.buffer).name;
                    format!("operation {i} ({label}) would overwrite {name} while reading it")
                })?;
            }
            for Access { buffer, .. } in accesses.iter().copied().filter(|a| a.read) {
                let (owner, range) = self.bytes_of(buffer);
                require(written[owner.0 as usize].covers(&range), || {
                    let name = &self.buffer(buffer).name;
                    format!("operation {i} ({label}) reads {name} before it is written")
                })?;
            }
            for Access { buffer, .. } in accesses.into_iter().filter(|a| a.write) {
                let (owner, range) = self.bytes_of(buffer);
                written[owner.0 as usize].add(range);
            }
            if let Some(prepared) = op.prepared() {
                let buffer = self.buffer(prepared);
                require(buffer.live.start <= self.micro.start, || {
                    format!("{} is not alive when it is computed", buffer.name)
                })?;
            }
            if i + 1 == self.micro.end {
                self.verify_deferred(i, &written)?;
            }
        }
        Ok(())
    }

    /// After the last operation of `micro`, the deferred sums are written and alive.
    fn verify_deferred(&self, last: usize, written: &[Written]) -> Result<(), Error> {
        for &id in &self.deferred_sums {
            let (buffer, (owner, range)) = (self.buffer(id), self.bytes_of(id));
            require(written[owner.0 as usize].covers(&range), || {
                format!("{} is added up before it is written", buffer.name)
            })?;
            require(buffer.live.contains(&last), || {
                format!("{} does not live until it is added up", buffer.name)
            })?;
        }
        Ok(())
    }

    /// Checks that a backend which reports `sizing` finds the memory that it writes to: the type of
    /// activations, workspace and carried sums of every operation, the block of scalars, the second
    /// batch buffer, and sums that live until they are added up. A plan that was made for another
    /// backend or fewer threads has less.
    ///
    /// # Errors
    /// [`Error::OtherBackend`], with what does not fit, or [`Error::Unsupported`].
    pub fn check_sized_for(&self, sizing: &dyn Sizing) -> Result<(), Error> {
        let require = |holds: bool, difference: &dyn Fn() -> String| {
            if holds {
                return Ok(());
            }
            Err(Error::OtherBackend {
                made_for: self.sized_for.clone(),
                asked_of: sizing.name(),
                difference: difference(),
            })
        };
        require(self.precision == sizing.precision(), &|| {
            format!("it computes in {}", self.precision)
        })?;
        let bytes = |id: Option<BufferId>| {
            id.and_then(|id| self.get_buffer(id))
                .map_or(0, |buffer| buffer.bytes)
        };
        let room = |what: &str, op: &Op, has: u64, needed: u64| {
            require(has >= needed, &|| {
                let label = op.label();
                format!("the {what} of \"{label}\" has {has} bytes where {needed} are needed")
            })
        };
        for op in &self.ops {
            sizing.supports(op).map_err(unsupported)?;
            room("workspace", op, bytes(op.workspace()), sizing.workspace(op))?;
            if let Some(slice) = op.slice()
                && (slice.carry.is_some() || !(slice.first && slice.last))
            {
                room("carried sums", op, bytes(slice.carry), sizing.carry(op))?;
            }
            let needed = sizing.prepared(op);
            room("prepared weights", op, bytes(op.prepared()), needed)?;
        }
        let (trains, second) = (!self.update.is_empty(), self.ports.next_batch.is_some());
        // inference reads no scalars
        require(
            !trains || bytes(self.ports.scalars) >= sizing.scalar_bytes(),
            &|| "it has no block of scalars".to_string(),
        )?;
        require(
            second || !trains || self.batch.is_none() || !sizing.copies_ahead(),
            &|| "it has no second place for a batch".to_string(),
        )?;
        let micro = self.ops.get(self.micro.clone()).unwrap_or_default();
        for id in micro
            .iter()
            .filter(|op| sizing.defers_sums(op))
            .flat_map(Op::sums)
        {
            require(self.deferred_sums.contains(&id), &|| {
                let name = self.get_buffer(id).map_or("a buffer", |b| b.name.as_str());
                format!("{name} does not live until it is added up")
            })?;
        }
        Ok(())
    }

    /// The buffer that a view is a part of (or the buffer itself), and the range of its bytes.
    fn bytes_of(&self, id: BufferId) -> (BufferId, Range<u64>) {
        let buffer = self.buffer(id);
        let (owner, start) = buffer.parent.unwrap_or((id, 0));
        (owner, start..start + buffer.bytes)
    }

    /// No two buffers that are alive at the same operation share a byte.
    fn verify_overlaps(&self) -> Result<(), Error> {
        let mut starts: Vec<_> = self.buffers.iter().filter(|b| b.room() > 0).collect();
        starts.sort_by_key(|b| std::cmp::Reverse(b.live.start));
        let mut live: Vec<&Buffer> = Vec::new();
        for at in 0..self.ops.len() {
            live.retain(|b| at < b.live.end);
            while let Some(b) = starts.pop_if(|b| b.live.start <= at) {
                live.push(b);
            }
            live.sort_by_key(|b| b.offset);
            // sorted by offset, so each must end before the next begins
            for pair in live.windows(2) {
                let (first, second) = (pair[0], pair[1]);
                require(first.offset + first.bytes <= second.offset, || {
                    format!(
                        "{} and {} are live together and share bytes",
                        first.name, second.name
                    )
                })?;
            }
        }
        Ok(())
    }
}
