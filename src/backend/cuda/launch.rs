//! Kernel launches, as a plan is lowered to them: their arguments name ranges of the plan's
//! buffers. Depends on the arguments; knows neither operations nor a device.

use super::arguments::{Arguments, CStruct, Kernel};
use super::limits::MOST_SHARED;
use anyhow::{Result, ensure};

/// Which launches a launch waits for, and which wait for it. Small launches leave most of a card
/// idle, so those whose results are needed late run beside others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Order {
    /// Runs on the main stream, after the launches before it that are not `Concurrent`.
    #[default]
    InOrder,
    /// Runs on a side stream, after all launches before it. Later launches do not wait for it until
    /// a `Join` or the end of the list.
    Concurrent,
    /// Runs on the main stream, after all launches before it, `Concurrent` ones too.
    Join,
}

/// One kernel launch. Blocks are one-dimensional and whole warps.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The operation of the plan that it belongs to; `None` where it serves several.
    pub op: Option<usize>,
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Persistent kernel: each block loops over tiles, so any grid size is correct. A device
    /// launches as many blocks as it runs at once, so that each prepares its weights once.
    pub persistent: bool,
    /// What it waits for.
    pub order: Order,
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// The struct that the kernel takes.
    pub arguments: Arguments,
}

/// Blocks and shared memory of a launch.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Blocks.
    pub grid: [usize; 3],
    /// Bytes of shared memory.
    pub shared: usize,
}

impl Shape {
    /// `blocks` blocks with `shared` bytes of shared memory each.
    pub fn of(blocks: usize, shared: usize) -> Shape {
        Shape {
            grid: [blocks, 1, 1],
            shared,
        }
    }
}

impl Launch {
    /// A launch with the most threads that the kernel takes, in order.
    ///
    /// # Errors
    /// When it is larger than a device allows.
    pub(super) fn new<A: CStruct>(
        op: Option<usize>,
        kernel: &Kernel<A>,
        half: bool,
        Shape { grid, shared }: Shape,
        arguments: A,
    ) -> Result<Launch> {
        let (name, threads) = (kernel.name, kernel.threads[usize::from(half)]);
        let limits = [i32::MAX as usize, 65_535, 65_535];
        ensure!(
            grid.iter()
                .zip(limits)
                .all(|(&g, limit)| (1..=limit).contains(&g)),
            "{name} would need a grid of {grid:?} blocks"
        );
        ensure!(
            threads.is_multiple_of(32) && (32..=1024).contains(&threads),
            "{name} would need blocks of {threads} threads"
        );
        let shared = u32::try_from(shared)?;
        ensure!(
            shared <= MOST_SHARED,
            "{name} would need {shared} bytes of shared memory"
        );
        Ok(Launch {
            op,
            kernel: name,
            grid: grid.map(|g| g as u32),
            persistent: false,
            order: Order::InOrder,
            block: threads as u32,
            shared,
            arguments: Arguments::of(arguments),
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
