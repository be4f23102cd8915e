//! What a plan is lowered to: kernel launches whose arguments name ranges of the plan's buffers,
//! and the block of numbers that change from step to step. Depends on the plan; knows no device.

use super::reduce::Waiting;
use crate::backend::Scalars;
use crate::plan::{BufferId, Op, OptimizerKind, PlanData, Update};
use anyhow::{Result, ensure};

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// An address: this many bytes into a buffer.
    At(BufferId, u64),
    /// No address.
    Null,
    /// An `int`.
    Int(i32),
    /// A `float`.
    Float(f32),
}

/// When a launch may run. Small ones leave most of a card idle, so they run beside others where
/// nobody waits for them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Turn {
    /// After those before it that are not aside.
    #[default]
    Next,
    /// After all before it; those behind do not wait for it, until one that meets it, or the end of
    /// the list.
    Aside,
    /// After all before it, those aside too.
    Meets,
}

/// Most dynamic shared memory of a block, bytes: a multiprocessor with 100 KiB, of which every
/// block takes one more, holds two.
pub const MOST_SHARED: u32 = 49 << 10;

/// One kernel launch. Blocks are one-dimensional and whole warps.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The operation of the plan it belongs to; none where it works for several.
    pub op: Option<usize>,
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Blocks walk over tiles, and fewer do the same: a device takes as many as it runs at once, so
    /// that each prepares its weights once.
    pub walkers: bool,
    /// Its turn beside the launches around it.
    pub turn: Turn,
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// In the kernel's order. A structure, which only the last may be, stands here word by word, of
    /// eight bytes each.
    pub args: Vec<Arg>,
}

impl Launch {
    /// A launch that every device allows.
    pub(super) fn new(
        op: Option<usize>,
        kernel: &'static str,
        grid: [usize; 3],
        block: u32,
        shared: usize,
        args: Vec<Arg>,
    ) -> Result<Launch> {
        let limits = [i32::MAX as usize, 65_535, 65_535];
        ensure!(
            grid.iter()
                .zip(limits)
                .all(|(&g, limit)| (1..=limit).contains(&g)),
            "{kernel} would need a grid of {grid:?} blocks"
        );
        ensure!(
            block.is_multiple_of(32) && (32..=1024).contains(&block),
            "{kernel} would need blocks of {block} threads"
        );
        let shared = u32::try_from(shared)?;
        ensure!(
            shared <= MOST_SHARED,
            "{kernel} would need {shared} bytes of shared memory"
        );
        Ok(Launch {
            op,
            kernel,
            grid: grid.map(|g| g as u32),
            walkers: false,
            turn: Turn::Next,
            block,
            shared,
            args,
        })
    }
}

/// The launches of a plan.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Those of a micro-batch.
    pub micro: Vec<Launch>,
    /// Those of the optimizer.
    pub update: Vec<Launch>,
}

/// Collects the launches of one operation after another.
pub(super) struct Lowering<'a> {
    pub plan: &'a PlanData,
    op: usize,
    /// Those that need nothing of the others, ahead of them.
    early: Vec<Launch>,
    launches: Vec<Launch>,
    /// Sums that are added up together later, see [`super::reduce`].
    pub waiting: Waiting,
}

impl<'a> Lowering<'a> {
    pub fn new(plan: &'a PlanData) -> Lowering<'a> {
        Lowering {
            plan,
            op: 0,
            early: Vec::new(),
            launches: Vec::new(),
            waiting: Waiting::default(),
        }
    }

    /// What follows belongs to this operation.
    pub fn begin(&mut self, op: usize) {
        self.op = op;
    }

    /// The operation that is lowered.
    pub fn op(&self) -> usize {
        self.op
    }

    /// Appends a launch.
    ///
    /// # Errors
    /// When it is larger than any device allows.
    pub fn launch(
        &mut self,
        kernel: &'static str,
        grid: [usize; 3],
        block: u32,
        shared: usize,
        args: Vec<Arg>,
    ) -> Result<()> {
        let launch = Launch::new(Some(self.op), kernel, grid, block, shared, args)?;
        self.append(launch);
        Ok(())
    }

    /// Appends a launch whose blocks walk over tiles and sum nothing.
    ///
    /// # Errors
    /// As [`Lowering::launch`].
    pub fn walk(
        &mut self,
        kernel: &'static str,
        tiles: usize,
        block: u32,
        shared: usize,
        args: Vec<Arg>,
    ) -> Result<()> {
        let launch = Launch::new(Some(self.op), kernel, [tiles, 1, 1], block, shared, args)?;
        self.append(Launch {
            walkers: true,
            ..launch
        });
        Ok(())
    }

    /// Puts a launch ahead of all others, aside: one that needs nothing but parameters, and whose
    /// results have a place of their own.
    ///
    /// # Errors
    /// As [`Lowering::launch`].
    pub fn early(
        &mut self,
        kernel: &'static str,
        grid: [usize; 3],
        block: u32,
        shared: usize,
        args: Vec<Arg>,
    ) -> Result<()> {
        let launch = Launch::new(Some(self.op), kernel, grid, block, shared, args)?;
        self.early.push(Launch {
            turn: Turn::Aside,
            ..launch
        });
        Ok(())
    }

    /// Appends a launch that others need not wait for: what it reads and writes must keep its place
    /// until the end of the micro-batch.
    ///
    /// # Errors
    /// As [`Lowering::launch`].
    pub fn aside(
        &mut self,
        kernel: &'static str,
        grid: [usize; 3],
        block: u32,
        shared: usize,
        args: Vec<Arg>,
    ) -> Result<()> {
        let launch = Launch::new(Some(self.op), kernel, grid, block, shared, args)?;
        self.append(Launch {
            turn: Turn::Aside,
            ..launch
        });
        Ok(())
    }

    /// The launch appended last waits for those aside.
    pub fn meet(&mut self) {
        if let Some(launch) = self.launches.last_mut() {
            launch.turn = Turn::Meets;
        }
    }

    /// Appends one that was made before.
    pub fn append(&mut self, launch: Launch) {
        self.launches.push(launch);
    }

    /// All launches, those of the waiting sums at the end.
    pub fn finish(mut self) -> Result<Vec<Launch>> {
        self.add_up()?;
        self.early.append(&mut self.launches);
        Ok(self.early)
    }

    /// The address of a buffer's start, views resolved to the buffer they belong to.
    pub fn at(&self, buffer: BufferId) -> Arg {
        self.at_bytes(buffer, 0)
    }

    /// An address inside a buffer.
    pub fn at_bytes(&self, buffer: BufferId, bytes: usize) -> Arg {
        let (owner, start) = self.plan.buffer(buffer).parent.unwrap_or((buffer, 0));
        Arg::At(owner, start + bytes as u64)
    }

    /// The address of an element of the parameter (or gradient, or moment) buffer.
    pub fn element(&self, buffer: BufferId, offset: usize) -> Arg {
        self.at_bytes(buffer, offset * 4)
    }

    /// The device's block of scalars.
    ///
    /// # Errors
    /// When the plan has none (it was made for another backend).
    pub fn scalars(&self) -> Result<Arg> {
        self.plan
            .ports
            .scalars
            .map(|id| self.at(id))
            .ok_or_else(|| anyhow::anyhow!("the plan was not made for a device"))
    }

    /// The workspace of an operation.
    ///
    /// # Errors
    /// When the plan gave it none.
    pub fn workspace(&self, id: Option<BufferId>) -> Result<BufferId> {
        id.ok_or_else(|| anyhow::anyhow!("operation {} has no workspace", self.op))
    }
}

/// An `int` argument.
///
/// # Errors
/// When the number does not fit.
pub(super) fn int(value: usize) -> Result<Arg> {
    Ok(Arg::Int(i32::try_from(value)?))
}

/// Size of the block of scalars: `struct Scalars` of kernels/common.cuh.
pub const SCALARS_BYTES: u64 = 64;

/// The launch that puts a step's scalars where the kernels read them; none for a plan without. What
/// follows from betas, decay and step number is worked out here in f64.
pub fn scalars_launch(plan: &PlanData, scalars: &Scalars) -> Option<Launch> {
    let buffer = plan.ports.scalars?;
    let update = plan.ops.iter().find_map(|op| {
        if let Op::Update(u) = op {
            Some(u)
        } else {
            None
        }
    });
    let decay = |u: &Update| {
        if u.optimizer == OptimizerKind::AdamW {
            u.weight_decay
        } else {
            0.0
        }
    };
    let (beta1, beta2, decay) = update.map_or((0.0, 0.0, 0.0), |u| (u.beta1, u.beta2, decay(u)));
    let step = scalars.step as f64;
    let floats = [
        scalars.lr / (1.0 - beta1.powf(step)),
        (1.0 - beta2.powf(step)).sqrt(),
        1.0 - scalars.lr * decay,
        scalars.ema_decay,
        1.0 - scalars.ema_decay,
        scalars.clip,
        f64::from(scalars.loss_scale),
        f64::from(scalars.micro_scale),
    ];
    let mut args = vec![Arg::At(buffer, 0)];
    args.extend(floats.map(|value| Arg::Float(value as f32)));
    args.push(Arg::Int(scalars.accumulate.into()));
    Some(Launch {
        op: None,
        kernel: "set_scalars",
        grid: [1, 1, 1],
        walkers: false,
        turn: Turn::Next,
        block: 32,
        shared: 0,
        args,
    })
}
