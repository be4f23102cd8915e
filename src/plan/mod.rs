//! The static plan of a training step or of inference: operations over byte ranges of one arena,
//! made before any device is touched. Depends on nothing else in the crate. It promises that a
//! backend which allocates exactly [`PlanData::arena_bytes`] never needs another byte, and that
//! [`PlanData::verify`] has checked every lifetime.

mod floor;
mod layout;
mod loss;
mod op;
mod report;
mod sizing;
mod verify;

pub use floor::OpFloor;
pub use loss::*;
pub use op::*;
pub use report::{LayerLine, LiveBuffer, MemoryLine, MemoryTable, Moment};
pub use sizing::{Precision, Sizing};

use std::ops::Range;

/// Alignment of every buffer in the arena, bytes: a cache line on the CPU, a full memory
/// transaction on CUDA.
pub const ALIGNMENT: u64 = 256;

/// Most images at once, and most pixels of a side at HR, that a plan is made for. No product of
/// sizes within these bounds leaves 64 bits.
pub const MAX_IMAGES: usize = 1 << 16;
/// See [`MAX_IMAGES`].
pub const MAX_SIDE: usize = 1 << 17;

/// Names one buffer of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// What a buffer is for: the rows of the memory table, and whether its content outlives a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Network parameters, f32: the master weights where activations are halves.
    Parameters,
    /// Gradients, f32, summed over the micro-batches of an iteration.
    Gradients,
    /// First and second moments of the optimizer, f32.
    Optimizer,
    /// Exponential moving average of the parameters, f32.
    Ema,
    /// Staged batches as they come from the loader: u8 LQ, u8 HR and augmentation codes.
    Batch,
    /// Loss and gradient norm, read back by the host, and on a device the learning rate and the
    /// like.
    Metrics,
    /// Values that flow forward between operations.
    Activations,
    /// Their gradients, flowing back.
    ActivationGradients,
    /// The prediction, its gradient, and what the losses need to compute it.
    Loss,
    /// Packed weights, partial sums and per-thread rows of one operation; sums carried from slice
    /// to slice.
    Workspace,
}

impl Class {
    /// All classes in the order of the memory table.
    pub const ALL: [Class; 10] = [
        Class::Parameters,
        Class::Gradients,
        Class::Optimizer,
        Class::Ema,
        Class::Batch,
        Class::Metrics,
        Class::Activations,
        Class::ActivationGradients,
        Class::Loss,
        Class::Workspace,
    ];

    /// Persistent buffers keep their bytes from step to step and never share them.
    pub fn persistent(self) -> bool {
        !matches!(
            self,
            Class::Activations | Class::ActivationGradients | Class::Loss | Class::Workspace
        )
    }

    /// The name shown to the user.
    pub fn label(self) -> &'static str {
        match self {
            Class::Parameters => "parameters",
            Class::Gradients => "gradients",
            Class::Optimizer => "optimizer moments",
            Class::Ema => "EMA",
            Class::Batch => "staged batches (u8)",
            Class::Metrics => "metrics and scalars",
            Class::Activations => "activations",
            Class::ActivationGradients => "activation gradients",
            Class::Loss => "loss",
            Class::Workspace => "workspace",
        }
    }
}

/// One range of the arena.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// For people: `body.0.blocks.1`, `d up.0` ...
    pub name: String,
    /// What it is for.
    pub class: Class,
    /// Size in bytes, before alignment.
    pub bytes: u64,
    /// First and last operation (indices into [`PlanData::ops`]) that touch it; persistent buffers
    /// live throughout.
    pub live: Range<usize>,
    /// Where it lies in the arena, bytes.
    pub offset: u64,
    /// A view is a range of another buffer, from this many bytes on: the images of one slice. It
    /// takes no room of its own.
    pub parent: Option<(BufferId, u64)>,
}

impl Buffer {
    /// Bytes it takes in the arena; none for a view.
    pub fn room(&self) -> u64 {
        if self.parent.is_some() {
            0
        } else {
            self.bytes.next_multiple_of(ALIGNMENT)
        }
    }
}

/// A complete plan that was verified: what to allocate, and what to run over it. Only the planner
/// makes one, and nothing but the size of its arena changes afterwards (upwards): that is what
/// backends rely on when they write through it. It is read as [`PlanData`].
#[derive(Clone, Debug)]
pub struct Plan(PlanData);

impl std::ops::Deref for Plan {
    type Target = PlanData;

    fn deref(&self) -> &PlanData {
        &self.0
    }
}

impl From<Plan> for PlanData {
    fn from(plan: Plan) -> PlanData {
        plan.0
    }
}

impl Plan {
    /// Grows the arena until so many bytes are free between steps.
    pub fn reserve_between_steps(&mut self, bytes: u64) {
        let free = self.0.free_between_steps();
        self.0.arena_bytes = free.end.max(free.start.saturating_add(bytes));
    }
}

/// A plan as plain data, for reading, tables and tests. Anybody may copy and change it; no backend
/// runs it.
#[derive(Clone, Debug)]
pub struct PlanData {
    /// All buffers; [`BufferId`] indexes them.
    pub buffers: Vec<Buffer>,
    /// Operations in order. For training: `micro` once a micro-batch, then `update` once an
    /// iteration.
    pub ops: Vec<Op>,
    /// Forward, loss and backward of one micro-batch (or the whole of inference).
    pub micro: Range<usize>,
    /// The optimizer step; empty for inference.
    pub update: Range<usize>,
    /// Size of the arena, bytes.
    pub arena_bytes: u64,
    /// What sums are made of ([`Op::sums`]) that is read once more after the last operation of
    /// `micro`, see [`Sizing::defers_sums`].
    pub deferred_sums: Vec<BufferId>,
    /// Type of activations and their gradients.
    pub precision: Precision,
    /// The batch this plan takes, where it takes one.
    pub batch: Option<BatchLayout>,
    /// Well-known buffers the host writes or reads.
    pub ports: Ports,
    /// The backend that its workspaces were sized for, in words.
    pub sized_for: String,
}

/// Where the parts of a staged batch lie inside the batch buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLayout {
    /// The buffer.
    pub buffer: BufferId,
    /// The image of the batch that an operation on a slice calls its first.
    pub first: usize,
    /// Patches in a micro-batch.
    pub count: usize,
    /// LQ height and width in pixels; HR is `scale` times that.
    pub lq: (usize, usize),
    /// HR pixels per LQ pixel along one side.
    pub scale: usize,
    /// Whether HR patches are staged (training) or only LQ (inference).
    pub with_hr: bool,
}

impl BatchLayout {
    /// Bytes of the LQ patches `[N, h, w, 3]` u8; they start at 0.
    pub fn lq_bytes(&self) -> usize {
        self.count * self.lq.0 * self.lq.1 * 3
    }

    /// Bytes of the HR patches `[N, H, W, 3]` u8, directly behind the LQ patches.
    pub fn hr_bytes(&self) -> usize {
        if self.with_hr {
            self.lq_bytes() * self.scale * self.scale
        } else {
            0
        }
    }

    /// Offset of the augmentation codes `[N]` u8, the last part.
    pub fn augment_offset(&self) -> usize {
        self.lq_bytes() + self.hr_bytes()
    }

    /// Where the HR patch of an operation's image begins, bytes.
    pub fn hr_of(&self, image: usize) -> usize {
        self.lq_bytes() + (self.first + image) * self.lq.0 * self.lq.1 * 3 * self.scale * self.scale
    }

    /// Where the LQ patch of an operation's image begins, bytes.
    pub fn lq_of(&self, image: usize) -> usize {
        (self.first + image) * self.lq.0 * self.lq.1 * 3
    }

    /// Where the augmentation code of an operation's image lies, bytes.
    pub fn augment_of(&self, image: usize) -> usize {
        self.augment_offset() + self.first + image
    }

    /// The whole buffer.
    pub fn bytes(&self) -> usize {
        self.augment_offset() + self.count
    }
}

/// The buffers a host may want to read or write by name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ports {
    /// All parameters, f32, in the order of the parameter table.
    pub parameters: Option<BufferId>,
    /// Their gradients, f32 (trainable ones only).
    pub gradients: Option<BufferId>,
    /// First moment, f32.
    pub moment1: Option<BufferId>,
    /// Second moment, f32.
    pub moment2: Option<BufferId>,
    /// EMA, f32.
    pub ema: Option<BufferId>,
    /// Network input `[N, h, w, 3]` f32.
    pub input: Option<BufferId>,
    /// Network output `[N, H, W, 3]` f32 (inference plans; in training the loss may overwrite it
    /// with its gradient).
    pub output: Option<BufferId>,
    /// Target `[N, H, W, 3]` f32, only in plans that take float inputs.
    pub target: Option<BufferId>,
    /// Gradient with respect to the input `[N, h, w, 3]` f32 in two parts to be added, through the
    /// base and through the features; only where asked for.
    pub input_gradients: [Option<BufferId>; 2],
    /// [`METRICS`] f64 values.
    pub metrics: Option<BufferId>,
    /// The numbers that change from step to step, on backends that read them from the arena.
    pub scalars: Option<BufferId>,
    /// A second place for a batch, on backends that copy the next one while they compute.
    pub next_batch: Option<BufferId>,
}

/// Number of f64 values in the metrics buffer: weighted loss (the mean over the micro-batches of an
/// iteration so far), gradient norm, 1.0 if the update was skipped.
pub const METRICS: usize = 3;

/// Collects buffers and operations, then lays them out. Within the crate alone: what an operation
/// says of its buffers is taken at its word.
pub(crate) struct Builder<'a> {
    sizing: &'a dyn Sizing,
    /// Asked once: all activations have one type, whatever a sizing answers later.
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

    /// A new buffer of `bytes`; lifetimes follow from the operations that name it.
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

    /// A new buffer of `count` f32 values.
    pub fn floats(&mut self, name: impl Into<String>, class: Class, count: usize) -> BufferId {
        self.buffer(name, class, count as u64 * 4)
    }

    /// A new buffer of `count` values in the type of the activations.
    pub fn map(&mut self, name: impl Into<String>, class: Class, count: usize) -> BufferId {
        self.buffer(name, class, count as u64 * self.precision.bytes())
    }

    /// Images `images` of a buffer that holds those of the whole micro-batch, `of` in all; the
    /// buffer itself for all of them.
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

    /// Room for the sums that `op` carries from slice to slice, if it sums anything.
    pub fn carry(&mut self, op: &Op) -> Option<BufferId> {
        let bytes = self.sizing.carry(op);
        (bytes > 0).then(|| self.buffer(format!("sums of {}", op.label()), Class::Workspace, bytes))
    }

    /// Room for the folded convolution, if the backend keeps one; `op` is the first to
    /// use it.
    pub fn folded(&mut self, op: &Reconstruct) -> Option<FoldedConv> {
        let bytes = self.sizing.folded(op);
        (bytes > 0).then(|| FoldedConv {
            buffer: self.buffer("folded up.0 and conv_out", Class::Workspace, bytes),
            first: true,
        })
    }

    /// Bytes of the block of scalars; none on a backend that is handed them.
    pub fn scalar_bytes(&self) -> u64 {
        self.sizing.scalar_bytes()
    }

    /// Whether the next batch is staged while this one is computed on.
    pub fn copies_ahead(&self) -> bool {
        self.sizing.copies_ahead()
    }

    /// Appends an operation and gives it its workspace.
    pub fn push(&mut self, mut op: Op) {
        let bytes = self.sizing.workspace(&op);
        if bytes > 0 {
            let class = if matches!(op, Op::PixelLoss(_) | Op::StructuralLoss(_)) {
                Class::Loss
            } else {
                Class::Workspace
            };
            let id = self.buffer(
                format!("workspace of {} {}", self.ops.len(), op.label()),
                class,
                bytes,
            );
            op.set_workspace(id);
        }
        self.ops.push(op);
    }

    /// Number of operations so far: marks the border between `micro` and `update`.
    pub fn position(&self) -> usize {
        self.ops.len()
    }

    /// Computes lifetimes and offsets and checks the result.
    pub fn finish(
        self,
        micro: Range<usize>,
        update: Range<usize>,
        batch: Option<BatchLayout>,
        ports: Ports,
    ) -> anyhow::Result<Plan> {
        let Builder {
            mut buffers,
            ops,
            sizing,
            precision,
        } = self;
        ops.iter().try_for_each(|op| sizing.supports(op))?;
        let last = ops.len().saturating_sub(1);
        let mut live: Vec<Option<(usize, usize)>> = vec![None; buffers.len()];
        let mut touch = |id: BufferId, at: usize| {
            for id in
                std::iter::once(id).chain(buffers[id.0 as usize].parent.map(|(parent, _)| parent))
            {
                let (start, end) = live[id.0 as usize].get_or_insert((at, at));
                (*start, *end) = ((*start).min(at), (*end).max(at));
            }
        };
        for (at, op) in ops.iter().enumerate() {
            op.accesses().for_each(|access| touch(access.buffer, at));
        }
        let late = ops[micro.clone()]
            .iter()
            .filter(|op| sizing.defers_sums(op));
        let deferred_sums: Vec<BufferId> = late.flat_map(Op::sums).collect();
        deferred_sums
            .iter()
            .for_each(|&id| touch(id, micro.end - 1));
        // a loss computed one operation earlier has its sums there, too
        for (at, loss) in (0..ops.len()).filter_map(|at| Some((at, loss_on_the_way(&ops, at)?))) {
            loss.workspace.into_iter().for_each(|id| touch(id, at));
        }
        // a composition needs nothing but parameters, so a device makes it beside the first
        // operations
        for op in &ops {
            if let Op::Reconstruct(Reconstruct {
                folded: Some(folded),
                ..
            }) = op
            {
                touch(folded.buffer, micro.start);
            }
        }
        // what the host writes before the first operation, or reads after the last
        for id in [ports.input, ports.target].into_iter().flatten() {
            touch(id, 0);
        }
        for id in [
            ports.output,
            ports.input_gradients[0],
            ports.input_gradients[1],
        ]
        .into_iter()
        .flatten()
        {
            touch(id, last);
        }
        for (buffer, live) in buffers.iter_mut().zip(live) {
            buffer.live = match live {
                _ if buffer.class.persistent() => 0..ops.len(),
                Some((first, last)) => first..last + 1,
                None => anyhow::bail!(
                    "the plan has a buffer that no operation uses: {}",
                    buffer.name
                ),
            };
        }
        let arena_bytes = layout::assign(&mut buffers);
        let sized_for = sizing.name();
        let plan = PlanData {
            buffers,
            ops,
            micro,
            update,
            arena_bytes,
            deferred_sums,
            precision,
            batch,
            ports,
            sized_for,
        };
        plan.verify()?;
        Ok(Plan(plan))
    }
}

/// The pixel loss behind a network's end, if it is only read there and its gradient takes the place
/// of the prediction: the network's end may then compute it while it has each value at hand.
fn loss_on_the_way(ops: &[Op], at: usize) -> Option<&PixelLoss> {
    let (Op::Reconstruct(end), Op::PixelLoss(loss)) = (ops.get(at)?, ops.get(at + 1)?) else {
        return None;
    };
    let in_place = loss.prediction == end.output && loss.d_prediction == end.output;
    (in_place && end.target.is_some() && matches!(loss.target, Target::Subtracted(_)))
        .then_some(loss)
}

impl PlanData {
    /// Whether operation `at` unpacks the batch for the convolution behind it, which may then do so
    /// on its way.
    pub fn unpacks_on_the_way(&self, at: usize) -> bool {
        let pair = (self.ops.get(at), self.ops.get(at + 1));
        matches!(pair, (Some(Op::Unpack(unpack)), Some(Op::Conv(conv))) if conv.input == unpack.output)
    }

    /// The pixel loss that operation `at`, a network's end, may compute on its way: the next
    /// operation then has nothing left to do but to add up sums.
    pub fn loss_on_the_way(&self, at: usize) -> Option<&PixelLoss> {
        loss_on_the_way(&self.ops, at)
    }

    /// The buffer behind an id.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }

    /// Where in the arena `len` bytes of a buffer lie, from its byte `offset` on.
    ///
    /// # Errors
    /// A buffer that the plan has not, or bytes outside it.
    pub fn range_in(&self, id: BufferId, offset: usize, len: usize) -> anyhow::Result<u64> {
        let Some(buffer) = self.buffers.get(id.0 as usize) else {
            anyhow::bail!(
                "the plan has {} buffers and none of number {}",
                self.buffers.len(),
                id.0
            );
        };
        let inside = (offset as u64)
            .checked_add(len as u64)
            .is_some_and(|end| end <= buffer.bytes);
        anyhow::ensure!(
            inside,
            "{len} bytes from byte {offset} on lie outside {} of {} bytes",
            buffer.name,
            buffer.bytes
        );
        Ok(buffer.offset + offset as u64)
    }

    /// The bytes of the arena that hold nothing between steps.
    pub fn free_between_steps(&self) -> Range<u64> {
        let persistent = self
            .buffers
            .iter()
            .filter(|b| b.class.persistent())
            .map(|b| b.offset + b.room())
            .max();
        persistent.unwrap_or(0)..self.arena_bytes
    }

    /// Where in the arena a plan may run between steps, bytes.
    ///
    /// # Errors
    /// When there is not room for it.
    pub fn place_between_steps(&self, guest: &PlanData) -> anyhow::Result<u64> {
        let free = self.free_between_steps();
        let room = free.end - free.start;
        anyhow::ensure!(
            guest.arena_bytes <= room,
            "a plan of {} bytes in {room} free ones",
            guest.arena_bytes
        );
        Ok(free.start)
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

    /// Live bytes of the chosen buffers at every operation (at least one moment, so that persistent
    /// buffers count).
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
