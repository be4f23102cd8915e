//! The static plan of a training step or of inference: operations over byte ranges of one arena, made before any device is
//! touched. Depends on nothing else in the crate. It promises that a backend which allocates exactly [`Plan::arena_bytes`]
//! never needs another byte, and that [`Plan::verify`] has checked every lifetime.

pub mod augment;
mod layout;
mod loss;
mod op;
mod report;

pub use loss::*;
pub use op::*;
pub use report::{MemoryLine, MemoryTable, bytes_text};

use std::ops::Range;

/// Alignment of every buffer in the arena, bytes: a cache line on the CPU, a full memory transaction on CUDA.
pub const ALIGNMENT: u64 = 256;

/// Names one buffer of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// What a buffer is for: the rows of the memory table, and whether its content outlives a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Network parameters, f32.
    Parameters,
    /// Gradients, f32, summed over the micro-batches of an iteration.
    Gradients,
    /// First and second moments of the optimizer, f32.
    Optimizer,
    /// Exponential moving average of the parameters, f32.
    Ema,
    /// One staged batch as it comes from the loader: u8 LQ, u8 HR and augmentation codes.
    Batch,
    /// Loss and gradient norm, read back by the host.
    Metrics,
    /// Values that flow forward between operations.
    Activations,
    /// Their gradients, flowing back.
    ActivationGradients,
    /// Packed weights, partial sums and per-thread rows of one operation.
    Workspace,
}

impl Class {
    /// All classes in the order of the memory table.
    pub const ALL: [Class; 9] = [
        Class::Parameters,
        Class::Gradients,
        Class::Optimizer,
        Class::Ema,
        Class::Batch,
        Class::Metrics,
        Class::Activations,
        Class::ActivationGradients,
        Class::Workspace,
    ];

    /// Persistent buffers keep their bytes from step to step and never share them.
    pub fn persistent(self) -> bool {
        !matches!(self, Class::Activations | Class::ActivationGradients | Class::Workspace)
    }

    /// The name shown to the user.
    pub fn label(self) -> &'static str {
        match self {
            Class::Parameters => "parameters",
            Class::Gradients => "gradients",
            Class::Optimizer => "optimizer moments",
            Class::Ema => "EMA",
            Class::Batch => "staged batch (u8)",
            Class::Metrics => "metrics",
            Class::Activations => "activations",
            Class::ActivationGradients => "activation gradients",
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
    /// First and last operation (indices into [`Plan::ops`]) that touch it; persistent buffers live throughout.
    pub live: Range<usize>,
    /// Where it lies in the arena, bytes.
    pub offset: u64,
}

/// A complete plan: what to allocate, and what to run over it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All buffers; [`BufferId`] indexes them.
    pub buffers: Vec<Buffer>,
    /// Operations in order. For training: `micro` once a micro-batch, then `update` once an iteration.
    pub ops: Vec<Op>,
    /// Forward, loss and backward of one micro-batch (or the whole of inference).
    pub micro: Range<usize>,
    /// The optimizer step; empty for inference.
    pub update: Range<usize>,
    /// Size of the arena, bytes.
    pub arena_bytes: u64,
    /// The batch this plan takes, where it takes one.
    pub batch: Option<BatchLayout>,
    /// Well-known buffers the host writes or reads.
    pub ports: Ports,
}

/// Where the parts of a staged batch lie inside the batch buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLayout {
    /// The buffer.
    pub buffer: BufferId,
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
        if self.with_hr { self.lq_bytes() * self.scale * self.scale } else { 0 }
    }

    /// Offset of the augmentation codes `[N]` u8, the last part.
    pub fn augment_offset(&self) -> usize {
        self.lq_bytes() + self.hr_bytes()
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
    /// Network output `[N, H, W, 3]` f32 (inference plans; in training the loss may overwrite it with its gradient).
    pub output: Option<BufferId>,
    /// Target `[N, H, W, 3]` f32, only in plans that take float inputs.
    pub target: Option<BufferId>,
    /// Gradient with respect to the input `[N, h, w, 3]` f32 in two parts to be added, through the base and through the
    /// features; only where asked for.
    pub input_gradients: [Option<BufferId>; 2],
    /// [`METRICS`] f64 values.
    pub metrics: Option<BufferId>,
}

/// Number of f64 values in the metrics buffer: weighted loss of the last micro-batch, gradient norm, 1.0 if the update was skipped.
pub const METRICS: usize = 3;

/// How many bytes of workspace an operation needs on the backend that will run it. The plan asks, so that it knows every
/// byte without knowing any backend.
pub trait Sizing {
    /// Workspace bytes for `op`.
    fn workspace(&self, op: &Op) -> u64;
}

/// Collects buffers and operations, then lays them out.
pub struct Builder<'a> {
    sizing: &'a dyn Sizing,
    buffers: Vec<Buffer>,
    ops: Vec<Op>,
}

impl<'a> Builder<'a> {
    /// An empty plan for a backend with the given workspace needs.
    pub fn new(sizing: &'a dyn Sizing) -> Self {
        Builder { sizing, buffers: Vec::new(), ops: Vec::new() }
    }

    /// A new buffer of `bytes`; lifetimes follow from the operations that name it.
    pub fn buffer(&mut self, name: impl Into<String>, class: Class, bytes: u64) -> BufferId {
        self.buffers.push(Buffer { name: name.into(), class, bytes, live: 0..0, offset: 0 });
        BufferId(self.buffers.len() as u32 - 1)
    }

    /// A new buffer of `count` f32 values.
    pub fn floats(&mut self, name: impl Into<String>, class: Class, count: usize) -> BufferId {
        self.buffer(name, class, count as u64 * 4)
    }

    /// Appends an operation and gives it its workspace.
    pub fn push(&mut self, mut op: Op) {
        let bytes = self.sizing.workspace(&op);
        if bytes > 0 {
            let id = self.buffer(format!("workspace of {} {}", self.ops.len(), op.label()), Class::Workspace, bytes);
            op.set_workspace(id);
        }
        self.ops.push(op);
    }

    /// Number of operations so far: marks the border between `micro` and `update`.
    pub fn position(&self) -> usize {
        self.ops.len()
    }

    /// Computes lifetimes and offsets and checks the result.
    pub fn finish(self, micro: Range<usize>, update: Range<usize>, batch: Option<BatchLayout>, ports: Ports) -> anyhow::Result<Plan> {
        let Builder { mut buffers, ops, .. } = self;
        // what the host writes before the first operation, or reads after the last
        let host_in = [ports.input, ports.target];
        let host_out = [ports.output, ports.input_gradients[0], ports.input_gradients[1]];
        for (i, buffer) in buffers.iter_mut().enumerate() {
            let id = BufferId(i as u32);
            let touched = |op: &Op| op.accesses().any(|a| a.buffer == id);
            if buffer.class.persistent() {
                buffer.live = 0..ops.len();
                continue;
            }
            let first = if host_in.contains(&Some(id)) { Some(0) } else { ops.iter().position(touched) };
            let last = if host_out.contains(&Some(id)) { ops.len().checked_sub(1) } else { ops.iter().rposition(touched) };
            match (first, last) {
                (Some(first), Some(last)) => buffer.live = first..last + 1,
                _ => anyhow::bail!("the plan has a buffer that no operation uses: {}", buffer.name),
            }
        }
        let arena_bytes = layout::assign(&mut buffers);
        let plan = Plan { buffers, ops, micro, update, arena_bytes, batch, ports };
        plan.verify()?;
        Ok(plan)
    }
}

impl Plan {
    /// The buffer behind an id.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }

    /// Checks what every backend relies on: buffers inside the arena and aligned, no two live ones overlapping, and nothing
    /// read before it was written.
    ///
    /// # Errors
    /// Names the buffers and the operation; such an error is a bug in a plan builder, never the user's fault.
    pub fn verify(&self) -> anyhow::Result<()> {
        for buffer in &self.buffers {
            anyhow::ensure!(buffer.offset % ALIGNMENT == 0, "{} is not aligned", buffer.name);
            anyhow::ensure!(buffer.offset + buffer.bytes <= self.arena_bytes, "{} ends outside the arena", buffer.name);
        }
        for (i, a) in self.buffers.iter().enumerate() {
            for b in &self.buffers[i + 1..] {
                let together = a.live.start < b.live.end && b.live.start < a.live.end;
                let overlap = a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
                anyhow::ensure!(!(together && overlap), "{} and {} are live together and share bytes", a.name, b.name);
            }
        }
        let host_in = [self.ports.input, self.ports.target];
        let mut written: Vec<bool> = (0u32..)
            .zip(&self.buffers)
            .map(|(i, b)| {
                let from_host = host_in.contains(&Some(BufferId(i)))
                    && !self.ops.iter().any(|op| matches!(op, Op::Unpack(u) if u.output == BufferId(i)));
                b.class.persistent() || b.class == Class::Workspace || from_host
            })
            .collect();
        for (i, op) in self.ops.iter().enumerate() {
            if let Op::StructuralLoss(o) = op {
                let name = &self.buffer(o.prediction).name;
                anyhow::ensure!(o.prediction != o.d_prediction, "operation {i} ({}) would overwrite {name} while reading it", op.label());
            }
            for access in op.accesses().filter(|a| a.read) {
                let buffer = self.buffer(access.buffer);
                anyhow::ensure!(
                    written[access.buffer.0 as usize],
                    "operation {i} ({}) reads {} before it is written",
                    op.label(),
                    buffer.name
                );
            }
            op.accesses().filter(|a| a.write).for_each(|a| written[a.buffer.0 as usize] = true);
        }
        Ok(())
    }

    /// The largest sum of live bytes over the operations, aligned: no layout can be smaller. Returns (bytes, operation).
    pub fn peak(&self) -> (u64, usize) {
        (0..self.ops.len().max(1))
            .map(|i| {
                let live = self.buffers.iter().filter(|b| b.live.contains(&i)).map(|b| b.bytes.next_multiple_of(ALIGNMENT)).sum();
                (live, i)
            })
            .max_by_key(|&(bytes, i)| (bytes, std::cmp::Reverse(i)))
            .unwrap_or((0, 0))
    }
}
