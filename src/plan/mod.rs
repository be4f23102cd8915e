//! The static plan of a training step or of inference: operations over byte ranges of one arena,
//! made before any device is touched. Depends on nothing else in the crate. Promises that a backend
//! which allocates exactly [`PlanData::arena_bytes`] never needs another byte of device memory, and
//! that [`PlanData::verify`] has checked every lifetime.

mod builder;
mod data;
mod error;
mod floor;
mod layout;
mod loss;
mod op;
mod report;
mod sizing;
mod verify;

pub(crate) use builder::Builder;
pub use error::Error;
pub use floor::OpFloor;
pub use loss::*;
pub use op::*;
pub use report::{LayerLine, LiveBuffer, MemoryLine, MemoryTable, Moment};
pub use sizing::{Precision, Sizing};

use std::ops::Range;

/// Alignment of every buffer in the arena, bytes: a cache line on the CPU, a full memory
/// transaction on CUDA.
pub const ALIGNMENT: u64 = 256;

/// Most images in a micro-batch. No product of sizes within this bound and [`MAX_SIDE`] overflows
/// 64 bits.
pub const MAX_IMAGES: usize = 1 << 16;
/// Most pixels of a side at HR resolution; see [`MAX_IMAGES`].
pub const MAX_SIDE: usize = 1 << 17;

/// The number of one buffer of a plan: an index into [`PlanData::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// What a buffer is for: the rows of the memory table, and whether its content outlives a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Network parameters, f32: the master weights if activations have 16 bits.
    Parameters,
    /// Gradients, f32, summed over the micro-batches of an iteration.
    Gradients,
    /// Gradients of other ranks and their sums, f32, where ranks exchange them between devices.
    Exchange,
    /// First and second moments of the optimizer, f32.
    Optimizer,
    /// Exponential moving average of the parameters, f32.
    Ema,
    /// Staged batches as they come from the loader: u8 LQ, u8 HR and augmentation codes.
    Batch,
    /// Loss and gradient norm, which the host reads, and on a device the block of scalars (learning
    /// rate etc.), which the host writes.
    Metrics,
    /// Values that one operation of the forward pass writes and others read.
    Activations,
    /// Gradients of the activations.
    ActivationGradients,
    /// The prediction, its gradient, and what the losses need to compute it.
    Loss,
    /// Packed weights, partial sums and per-thread rows of one operation; sums carried from slice
    /// to slice.
    Workspace,
}

impl Class {
    /// All classes in the order of the memory table.
    pub const ALL: [Class; 11] = [
        Class::Parameters,
        Class::Gradients,
        Class::Exchange,
        Class::Optimizer,
        Class::Ema,
        Class::Batch,
        Class::Metrics,
        Class::Activations,
        Class::ActivationGradients,
        Class::Loss,
        Class::Workspace,
    ];

    /// Whether buffers of this class keep their bytes from step to step. Such a buffer shares its
    /// bytes with no other.
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
            Class::Exchange => "gradients of other ranks",
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
    /// The name in tables and errors: `body.0.blocks.1`, `d up.0` ... Nothing depends on it.
    pub name: String,
    /// What the buffer is for.
    pub class: Class,
    /// Size in bytes, before alignment.
    pub bytes: u64,
    /// The operations (indices into [`PlanData::ops`]) from the first to the last that touches the
    /// buffer; all operations for a persistent buffer.
    pub live: Range<usize>,
    /// Offset in the arena, bytes.
    pub offset: u64,
    /// For a view: the buffer it is a part of, and the offset in it, bytes. A view is the images of
    /// one slice and takes no bytes of its own in the arena.
    pub parent: Option<(BufferId, u64)>,
}

impl Buffer {
    /// Bytes that the buffer takes in the arena, alignment included; 0 for a view.
    pub fn room(&self) -> u64 {
        if self.parent.is_some() {
            0
        } else {
            self.bytes.next_multiple_of(ALIGNMENT)
        }
    }
}

/// A complete, verified plan: what to allocate, and which operations to run over it. Only the
/// planner makes one, and afterwards nothing changes but the size of its arena, which can grow.
/// Backends rely on this when they write to the arena without further checks. Dereferences to
/// [`PlanData`] for reading.
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
    /// Grows the arena until at least `bytes` are free between steps.
    pub fn reserve_between_steps(&mut self, bytes: u64) {
        let free = self.0.free_between_steps();
        self.0.arena_bytes = free.end.max(free.start.saturating_add(bytes));
    }
}

/// A plan as plain data, for reading, tables and tests. Anybody may copy and change it, but no
/// backend runs it: backends take a [`Plan`]. Methods other than [`PlanData::verify`],
/// [`PlanData::check_sized_for`], [`PlanData::range_in`] and [`PlanData::get_buffer`] expect data
/// that `verify` accepts, and may panic otherwise.
#[derive(Clone, Debug)]
pub struct PlanData {
    /// All buffers; [`BufferId`] indexes them.
    pub buffers: Vec<Buffer>,
    /// Operations in order. For training: those of `micro` once per micro-batch, then those of
    /// `update` once per iteration.
    pub ops: Vec<Op>,
    /// Forward, loss and backward of one micro-batch (or the whole of inference).
    pub micro: Range<usize>,
    /// The optimizer step; empty for inference.
    pub update: Range<usize>,
    /// Size of the arena, bytes.
    pub arena_bytes: u64,
    /// Buffers of sums ([`Op::sums`]) that the backend reads once more after the last operation of
    /// `micro`, see [`Sizing::defers_sums`]; they stay alive until then.
    pub deferred_sums: Vec<BufferId>,
    /// Type of activations and their gradients.
    pub precision: Precision,
    /// The staged u8 batch; `None` for plans with float inputs.
    pub batch: Option<BatchLayout>,
    /// Buffers that the host writes or reads.
    pub ports: Ports,
    /// The backend that the workspaces were sized for, in words ([`Sizing::name`]).
    pub sized_for: String,
}

/// The layout of a staged batch inside the batch buffer: LQ patches, HR patches, augmentation
/// codes. An operation on a slice has a copy whose `first` is the slice's first image; the methods
/// that take an `image` count from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLayout {
    /// The buffer.
    pub buffer: BufferId,
    /// Number in the batch of the first image that the operation works on.
    pub first: usize,
    /// Patches in a micro-batch (N).
    pub count: usize,
    /// LQ height and width in pixels; HR is `scale` times that.
    pub lq: (usize, usize),
    /// HR pixels per LQ pixel along one side.
    pub scale: usize,
    /// Whether HR patches are staged (training) or only LQ (inference).
    pub with_hr: bool,
}

impl BatchLayout {
    /// Bytes of the LQ patches `[N, h, w, 3]` u8, the first part of the buffer.
    pub fn lq_bytes(&self) -> usize {
        self.count * self.lq.0 * self.lq.1 * 3
    }

    /// Bytes of the HR patches `[N, H, W, 3]` u8, which follow the LQ patches; 0 without them.
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

    /// Offset of the HR patch of the operation's image number `image`, bytes.
    pub fn hr_of(&self, image: usize) -> usize {
        self.lq_bytes() + (self.first + image) * self.lq.0 * self.lq.1 * 3 * self.scale * self.scale
    }

    /// Offset of the LQ patch of the operation's image number `image`, bytes.
    pub fn lq_of(&self, image: usize) -> usize {
        (self.first + image) * self.lq.0 * self.lq.1 * 3
    }

    /// Offset of the augmentation code of the operation's image number `image`, bytes.
    pub fn augment_of(&self, image: usize) -> usize {
        self.augment_offset() + self.first + image
    }

    /// Patches, and LQ height and width.
    pub fn extent(&self) -> Extent {
        Extent {
            n: self.count,
            h: self.lq.0,
            w: self.lq.1,
        }
    }

    /// Size of the buffer, bytes.
    pub fn bytes(&self) -> usize {
        self.augment_offset() + self.count
    }
}

/// The buffers that the host reads or writes. `None`: the plan has no such buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ports {
    /// All parameters, f32, in the order of the parameter table.
    pub parameters: Option<BufferId>,
    /// Their gradients, f32 (trainable ones only).
    pub gradients: Option<BufferId>,
    /// First moments of the trainable parameters, f32.
    pub moment1: Option<BufferId>,
    /// Second moments of the trainable parameters, f32.
    pub moment2: Option<BufferId>,
    /// Moving average of all parameters, f32.
    pub ema: Option<BufferId>,
    /// Network input `[N, h, w, 3]` f32.
    pub input: Option<BufferId>,
    /// Network output `[N, H, W, 3]` f32 (inference plans; in training the loss may overwrite it
    /// with its gradient), or the features `[N, h, w, C]` f32 that a stage ends with.
    pub output: Option<BufferId>,
    /// The features `[N, h, w, C]` f32 that a stage of a network begins with, see
    /// [`StageSpec`](crate::model::StageSpec); C is rounded up to [`CHANNEL_GROUP`].
    pub features: Option<BufferId>,
    /// Their means over the whole image, f64 `[N, C]`.
    pub means: Option<BufferId>,
    /// Target `[N, H, W, 3]` f32, only in plans that take float inputs.
    pub target: Option<BufferId>,
    /// Gradient with respect to the input, `[N, h, w, 3]` f32, in two parts to be added: through
    /// the base and through the features; only if asked for.
    pub input_gradients: [Option<BufferId>; 2],
    /// [`METRICS`] f64 values.
    pub metrics: Option<BufferId>,
    /// The block of scalars (learning rate etc.), for backends that read them from the arena.
    pub scalars: Option<BufferId>,
    /// Where a device receives the gradients of other ranks and keeps their sums, f32: see
    /// [`Parts::device_values`](crate::support::parts::Parts::device_values).
    pub exchange: Option<BufferId>,
    /// A second batch buffer, for backends that copy the next batch while they compute.
    pub next_batch: Option<BufferId>,
}

/// Number of f64 values in the metrics buffer: the weighted loss (of an iteration's micro-batches
/// so far, each divided by their number), the gradient norm before clipping, and 1.0 if the update
/// was skipped, else 0.0.
pub const METRICS: usize = 3;
