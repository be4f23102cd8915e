//! Builds a plan: collects buffers and operations, computes lifetimes and has the arena laid out.
//! Depends on the plan's data and on what the backend reports about itself ([`Sizing`]).

use super::error::unsupported;
use super::{
    BatchLayout, Buffer, BufferId, Class, Error, Op, Plan, PlanData, Ports, Precision, Sizing,
    layout,
};
use std::ops::Range;

/// Collects buffers and operations, then assigns offsets. It is not public: it does not check that
/// an operation's buffers have the sizes that the operation implies.
pub(crate) struct Builder<'a> {
    sizing: &'a dyn Sizing,
    /// [`Sizing::precision`], asked once so that all activations have one type.
    precision: Precision,
    buffers: Vec<Buffer>,
    ops: Vec<Op>,
}

impl<'a> Builder<'a> {
    /// An empty plan for a backend with the given workspace needs.
    pub fn new(sizing: &'a dyn Sizing) -> Self {
        Builder {
            sizing,
            precision: sizing.precision(),
            buffers: Vec::new(),
            ops: Vec::new(),
        }
    }

    /// Adds a buffer of `bytes`; its lifetime follows from the operations that name it.
    pub fn buffer(&mut self, name: impl Into<String>, class: Class, bytes: u64) -> BufferId {
        self.add(Buffer {
            name: name.into(),
            class,
            bytes,
            live: 0..0,
            offset: 0,
            parent: None,
        })
    }

    fn add(&mut self, buffer: Buffer) -> BufferId {
        self.buffers.push(buffer);
        BufferId(self.buffers.len() as u32 - 1)
    }

    /// Takes back a buffer that no operation uses.
    pub fn discard(&mut self, buffer: BufferId) {
        self.buffers[buffer.0 as usize].bytes = 0;
    }

    /// Adds a buffer of `count` f32 values.
    pub fn floats(&mut self, name: impl Into<String>, class: Class, count: usize) -> BufferId {
        self.buffer(name, class, count as u64 * 4)
    }

    /// Adds a buffer of `count` values of the activations' type.
    pub fn map(&mut self, name: impl Into<String>, class: Class, count: usize) -> BufferId {
        self.buffer(name, class, count as u64 * self.precision.bytes())
    }

    /// Adds a view of some images of a buffer that holds a micro-batch of `of` images; returns the
    /// buffer itself if they are all of them.
    pub fn images(&mut self, buffer: BufferId, images: &Range<usize>, of: usize) -> BufferId {
        if images.len() == of {
            return buffer;
        }
        let whole = &self.buffers[buffer.0 as usize];
        let each = whole.bytes / of as u64;
        let view = Buffer {
            name: format!(
                "{}, images {} to {}",
                whole.name,
                images.start,
                images.end - 1
            ),
            class: whole.class,
            bytes: each * images.len() as u64,
            live: 0..0,
            offset: 0,
            parent: Some((buffer, each * images.start as u64)),
        };
        self.add(view)
    }

    /// Adds the buffer for the sums that `op` carries from slice to slice, if it sums anything.
    pub fn carry(&mut self, op: &Op) -> Option<BufferId> {
        let bytes = self.sizing.carry(op);
        (bytes > 0).then(|| self.buffer(format!("sums of {}", op.label()), Class::Workspace, bytes))
    }

    /// Adds the buffer that `op` computes from parameters alone and keeps for all slices and for
    /// its backward pass, if the backend wants one.
    pub fn prepared(&mut self, name: &str, op: &Op) -> Option<BufferId> {
        let bytes = self.sizing.prepared(op);
        (bytes > 0).then(|| self.buffer(name, Class::Workspace, bytes))
    }

    /// Bytes of the block of scalars; 0 if the backend gets them as arguments.
    pub fn scalar_bytes(&self) -> u64 {
        self.sizing.scalar_bytes()
    }

    /// Whether the backend copies the next batch while it computes on this one.
    pub fn copies_ahead(&self) -> bool {
        self.sizing.copies_ahead()
    }

    /// Appends an operation and adds its workspace.
    pub fn push(&mut self, mut op: Op) {
        let bytes = self.sizing.workspace(&op);
        if bytes > 0 {
            let name = format!("workspace of {} {}", self.ops.len(), op.label());
            let id = self.buffer(name, op.workspace_class(), bytes);
            op.set_workspace(id);
        }
        self.ops.push(op);
    }

    /// Number of operations so far: the boundary between `micro` and `update`.
    pub fn position(&self) -> usize {
        self.ops.len()
    }

    /// Computes lifetimes and offsets, and verifies the result.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the backend has no kernel for an operation; [`Error::Invalid`]: a bug
    /// in the code that called the builder.
    pub fn finish(
        mut self,
        micro: Range<usize>,
        update: Range<usize>,
        batch: Option<BatchLayout>,
        ports: Ports,
    ) -> Result<Plan, Error> {
        for op in &self.ops {
            self.sizing.supports(op).map_err(unsupported)?;
        }
        let deferred_sums: Vec<BufferId> = self.ops[micro.clone()]
            .iter()
            .filter(|op| self.sizing.defers_sums(op))
            .flat_map(Op::sums)
            .collect();
        let lifetimes = self.lifetimes(&micro, &deferred_sums, &ports);
        let all = 0..self.ops.len();
        for (buffer, lifetime) in self.buffers.iter_mut().zip(&lifetimes) {
            let of_whole = buffer
                .parent
                .and_then(|(whole, _)| lifetimes[whole.0 as usize].clone());
            buffer.live = match (lifetime, of_whole) {
                _ if buffer.class.persistent() => all.clone(),
                (Some(range), _) => range.clone(),
                // a network need not read what it is given for every slice
                (None, Some(whole)) => whole.start..whole.start,
                (None, None) if buffer.bytes == 0 => 0..0,
                (None, None) => {
                    return Err(Error::Invalid(format!(
                        "the plan has a buffer that no operation uses: {}",
                        buffer.name
                    )));
                }
            };
        }
        let arena_bytes = layout::assign(&mut self.buffers);
        let plan = PlanData {
            buffers: self.buffers,
            ops: self.ops,
            micro,
            update,
            arena_bytes,
            deferred_sums,
            precision: self.precision,
            batch,
            ports,
            sized_for: self.sizing.name(),
        };
        plan.verify()?;
        Ok(Plan(plan))
    }

    /// The operations from the first to the last at which each buffer's content is needed; `None`
    /// for a buffer that nothing touches.
    fn lifetimes(
        &self,
        micro: &Range<usize>,
        deferred_sums: &[BufferId],
        ports: &Ports,
    ) -> Vec<Option<Range<usize>>> {
        let ops = &self.ops;
        let mut live: Vec<Option<Range<usize>>> = vec![None; self.buffers.len()];
        let mut touch = |id: BufferId, at: usize| {
            let parent = self.buffers[id.0 as usize].parent;
            for id in std::iter::once(id).chain(parent.map(|(parent, _)| parent)) {
                let range = live[id.0 as usize].get_or_insert(at..at + 1);
                *range = range.start.min(at)..range.end.max(at + 1);
            }
        };
        for (at, op) in ops.iter().enumerate() {
            let accesses = op.all_accesses().into_iter();
            accesses.for_each(|access| touch(access.buffer, at));
        }
        for &id in deferred_sums {
            touch(id, micro.end - 1);
        }
        // an operation that is absorbed by the one before it has its sums written there, and one that
        // is delayed has them written by the one after it
        for (at, pair) in ops.windows(2).enumerate() {
            let fusion = pair[0].fusion(&pair[1]).unwrap_or_default();
            let absorbed = pair[1].workspace().filter(|_| fusion.absorbed);
            absorbed.into_iter().for_each(|id| touch(id, at));
            let delayed = pair[0].workspace().filter(|_| fusion.delayed);
            delayed.into_iter().for_each(|id| touch(id, at + 1));
        }
        // a device may compute what depends on parameters only while the first operations run
        let prepared = ops.iter().filter_map(|op| op.prepared());
        prepared.for_each(|id| touch(id, micro.start));
        // what the host writes before the first operation, or reads after the last
        let [through_base, through_features] = ports.input_gradients;
        let last = ops.len().saturating_sub(1);
        for (port, at) in [
            (ports.input, 0),
            (ports.target, 0),
            (ports.features, 0),
            (ports.means, 0),
            (ports.output, last),
            (through_base, last),
            (through_features, last),
        ] {
            port.into_iter().for_each(|id| touch(id, at));
        }
        live
    }
}
