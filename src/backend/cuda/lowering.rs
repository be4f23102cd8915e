//! The state of a lowering: the launches collected so far, the sums that wait for the end of the
//! micro-batch, and the addresses of the plan's buffers. Depends on launches and the plan; the
//! families of operations are written on top of it.

use super::arguments::{Act, Address, CStruct, Code, Element, Folded, Gradient, Kernel};
use super::arguments::{Parameter, Partial, Total};
use super::choices::Choices;
use super::launch::{Launch, Order, Shape};
use super::signatures::{DeviceScalars, SumJob};
use crate::plan::{BufferId, PlanData, Precision};
use anyhow::{Context, Result, ensure};

/// Sums that are added up together at the end of a micro-batch, see [`super::reduce`].
#[derive(Default)]
pub(super) struct PendingSums {
    /// Each with the operation that it belongs to; where a job ends in the grid is not known yet.
    pub jobs: Vec<(usize, SumJob)>,
}

/// Collects the launches of one operation after another.
pub(super) struct Lowering<'a> {
    pub plan: &'a PlanData,
    /// What the card decides.
    pub choices: Choices,
    op: usize,
    /// Launches that depend on none of the others and go ahead of them.
    early: Vec<Launch>,
    launches: Vec<Launch>,
    /// Must be flushed before [`Lowering::finish`].
    pub pending: PendingSums,
}

impl<'a> Lowering<'a> {
    /// An empty lowering.
    ///
    /// # Errors
    /// When the plan has more buffers, or larger ones, than addresses can name.
    pub fn new(plan: &'a PlanData, choices: Choices) -> Result<Lowering<'a>> {
        let (buffers, bytes) = Address::<f32>::LIMITS;
        ensure!(
            plan.buffers.len() as u64 <= buffers && plan.buffers.iter().all(|b| b.bytes < bytes),
            "a plan of {} buffers, or one of its buffers, is too large for the CUDA backend",
            plan.buffers.len()
        );
        Ok(Lowering {
            plan,
            choices,
            op: 0,
            early: Vec::new(),
            launches: Vec::new(),
            pending: PendingSums::default(),
        })
    }

    /// Launches from here on belong to this operation.
    pub fn begin(&mut self, op: usize) {
        self.op = op;
    }

    /// The operation that is being lowered.
    pub fn op(&self) -> usize {
        self.op
    }

    /// Whether activations are stored in half precision (bf16 or fp16), which goes through tensor
    /// cores; else f32.
    pub fn half_precision(&self) -> bool {
        self.plan.precision != Precision::F32
    }

    /// A launch of the current operation.
    fn make<A: CStruct>(&self, kernel: &Kernel<A>, shape: Shape, arguments: A) -> Result<Launch> {
        Launch::new(
            Some(self.op),
            kernel,
            self.half_precision(),
            shape,
            arguments,
        )
    }

    /// Appends a launch.
    ///
    /// # Errors
    /// When it is larger than any device allows.
    pub fn launch<A: CStruct>(
        &mut self,
        kernel: &Kernel<A>,
        shape: Shape,
        arguments: A,
    ) -> Result<()> {
        let launch = self.make(kernel, shape, arguments)?;
        self.append(launch);
        Ok(())
    }

    /// Appends a launch whose blocks loop over `tiles` tiles and sum nothing, so that a device may
    /// launch fewer blocks.
    ///
    /// # Errors
    /// As [`Lowering::launch`].
    pub fn launch_persistent<A: CStruct>(
        &mut self,
        kernel: &Kernel<A>,
        tiles: usize,
        shared: usize,
        arguments: A,
    ) -> Result<()> {
        let launch = self.make(kernel, Shape::of(tiles, shared), arguments)?;
        self.append(Launch {
            persistent: true,
            ..launch
        });
        Ok(())
    }

    /// Puts a concurrent launch ahead of all others: one that reads parameters alone, and whose
    /// results have memory of their own from the start.
    ///
    /// # Errors
    /// As [`Lowering::launch`].
    pub fn launch_early<A: CStruct>(
        &mut self,
        kernel: &Kernel<A>,
        shape: Shape,
        arguments: A,
    ) -> Result<()> {
        let launch = self.make(kernel, shape, arguments)?;
        self.early.push(Launch {
            order: Order::Concurrent,
            ..launch
        });
        Ok(())
    }

    /// Appends a launch that later ones do not wait for: the memory that it reads and writes must
    /// stay its own until the end of the micro-batch.
    ///
    /// # Errors
    /// As [`Lowering::launch`].
    pub fn launch_concurrent<A: CStruct>(
        &mut self,
        kernel: &Kernel<A>,
        shape: Shape,
        arguments: A,
    ) -> Result<()> {
        let launch = self.make(kernel, shape, arguments)?;
        self.append(Launch {
            order: Order::Concurrent,
            ..launch
        });
        Ok(())
    }

    /// Makes the launch appended last wait for the concurrent ones.
    pub fn join(&mut self) {
        if let Some(launch) = self.launches.last_mut() {
            launch.order = Order::Join;
        }
    }

    /// Appends a launch that was made elsewhere.
    pub fn append(&mut self, launch: Launch) {
        self.launches.push(launch);
    }

    /// All launches, early ones first.
    ///
    /// # Errors
    /// When sums are still pending.
    pub fn finish(mut self) -> Result<Vec<Launch>> {
        ensure!(
            self.pending.jobs.is_empty(),
            "some sums of the plan were never added up"
        );
        self.early.append(&mut self.launches);
        Ok(self.early)
    }

    /// An address inside a buffer; views are resolved to the buffer they belong to.
    fn at<T: Element>(&self, buffer: BufferId, bytes: usize) -> Address<T> {
        let (owner, start) = self.plan.buffer(buffer).parent.unwrap_or((buffer, 0));
        Address::new(owner, start + bytes as u64)
    }

    /// Activations `[n][h][w][features]`, or their gradient.
    pub fn activations(&self, buffer: BufferId) -> Address<Act> {
        self.at(buffer, 0)
    }

    /// Activations from byte `bytes` of a workspace on.
    pub fn activations_at(&self, buffer: BufferId, bytes: usize) -> Address<Act> {
        self.at(buffer, bytes)
    }

    /// f32 values that are neither parameters nor activations: RGB images, planes.
    pub fn floats(&self, buffer: BufferId) -> Address<f32> {
        self.at(buffer, 0)
    }

    /// The same from byte `bytes` of the buffer on.
    pub fn floats_at(&self, buffer: BufferId, bytes: usize) -> Address<f32> {
        self.at(buffer, bytes)
    }

    /// f64 values from byte `bytes` of the buffer on.
    pub fn doubles_at(&self, buffer: BufferId, bytes: usize) -> Address<f64> {
        self.at(buffer, bytes)
    }

    /// Totals over all blocks from byte `bytes` of the buffer on.
    pub fn totals_at(&self, buffer: BufferId, bytes: usize) -> Address<Total> {
        self.at(buffer, bytes)
    }

    /// u8 patches from byte `bytes` of a staged batch on.
    pub fn pixels_at(&self, buffer: BufferId, bytes: usize) -> Address<u8> {
        self.at(buffer, bytes)
    }

    /// Augmentation codes from byte `bytes` of a staged batch on.
    pub fn codes_at(&self, buffer: BufferId, bytes: usize) -> Address<Code> {
        self.at(buffer, bytes)
    }

    /// Element `offset` of a buffer of parameters.
    pub fn parameter(&self, buffer: BufferId, offset: usize) -> Address<Parameter> {
        self.at(buffer, 4 * offset)
    }

    /// Element `offset` of a buffer of gradients of parameters.
    pub fn gradient(&self, buffer: BufferId, offset: usize) -> Address<Gradient> {
        self.at(buffer, 4 * offset)
    }

    /// Partial sums of blocks from byte `bytes` of a workspace on.
    pub fn partials_at(&self, buffer: BufferId, bytes: usize) -> Address<Partial> {
        self.at(buffer, bytes)
    }

    /// A folded convolution.
    pub fn folded(&self, buffer: BufferId) -> Address<Folded> {
        self.at(buffer, 0)
    }

    /// The device's block of scalars.
    ///
    /// # Errors
    /// When the plan has none (it was made for another backend).
    pub fn scalars(&self) -> Result<Address<DeviceScalars>> {
        let buffer = self.plan.ports.scalars;
        Ok(self.at(buffer.context("the plan was not made for a device")?, 0))
    }

    /// The workspace of an operation.
    ///
    /// # Errors
    /// When the plan gave it none.
    pub fn workspace(&self, id: Option<BufferId>) -> Result<BufferId> {
        id.with_context(|| format!("operation {} has no workspace", self.op))
    }
}

/// An `int` argument.
///
/// # Errors
/// When the number does not fit.
pub(super) fn int(value: usize) -> Result<i32> {
    i32::try_from(value).with_context(|| format!("{value} does not fit a kernel's int"))
}
