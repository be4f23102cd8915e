//! How an operation is cut into tasks, and the layout of its workspace. Depends on the plan, the
//! arena and the vectors. The cut depends on shapes alone, never on the number of threads, and
//! partial sums are added in the order of the tasks; so the bits of a result do not depend on the
//! number of threads.

use super::arena::{Arena, SharedPtr};
use super::bf16::Products;
use super::simd::{Kernel, LANES, Simd};
use crate::backend::Scalars;
use crate::plan::{BufferId, Extent, ParamRange, Plan, Slice};
use crate::support::isa::Isa;
use rayon::prelude::*;

/// Most rows of one task: enough to amortise the halo, few enough to keep all threads busy.
const BAND_ROWS: usize = 32;

/// The tasks of an operation over images: each takes a band of rows of one image.
#[derive(Clone, Copy, Debug)]
pub struct Bands {
    h: usize,
    per_image: usize,
    rows: usize,
    n: usize,
}

impl Bands {
    /// Cuts images into bands of at most [`BAND_ROWS`] rows, as equal as possible.
    pub fn new(extent: Extent) -> Bands {
        let per_image = extent.h.div_ceil(BAND_ROWS).max(1);
        Bands {
            h: extent.h,
            per_image,
            rows: extent.h.div_ceil(per_image),
            n: extent.n,
        }
    }

    /// The same number of bands, each beginning at a multiple of `rows` rows.
    pub fn aligned(self, rows: usize) -> Bands {
        Bands {
            rows: self.rows.next_multiple_of(rows),
            ..self
        }
    }

    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.n * self.per_image
    }

    /// Most rows of a task.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// (image, first row, row after the last) of a task.
    pub fn task(&self, task: usize) -> (usize, usize, usize) {
        let start = (task % self.per_image) * self.rows;
        (
            task / self.per_image,
            start.min(self.h),
            (start + self.rows).min(self.h),
        )
    }
}

/// The layout of an operation's workspace, in f32 elements: a shared part, the sum of all partials,
/// one partial for each task, and scratch for each thread, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Workspace {
    /// Values that all tasks read: packed weights.
    pub shared: usize,
    /// Values of the partial result of one task: gradients, or a loss.
    pub partial: usize,
    /// Number of tasks with a partial.
    pub tasks: usize,
    /// Values that one thread works in.
    pub scratch: usize,
}

/// Whether an activation of `c` channels is so large that the caches would have lost it when the
/// next operation reads it. It is then stored past the caches, which saves reading the lines that
/// are overwritten.
pub fn exceeds_cache(extent: Extent, c: usize) -> bool {
    const CACHE_BYTES: usize = 8 << 20;
    4 * c * extent.n * extent.h * extent.w > CACHE_BYTES
}

/// Rounds up to whole vectors of f32, so that every part of a workspace begins at a multiple of 64
/// bytes.
pub fn round_up_to_lanes(elements: usize) -> usize {
    elements.next_multiple_of(LANES)
}

impl Workspace {
    /// Bytes of the sums that are carried from slice to slice: an f64 for every element of a
    /// partial.
    pub fn carry_bytes(&self) -> u64 {
        8 * self.partial as u64
    }

    /// Bytes of the whole workspace for a number of threads.
    pub fn bytes(&self, threads: usize) -> u64 {
        4 * (round_up_to_lanes(self.shared)
            + round_up_to_lanes(self.partial) * (self.tasks + 1)
            + round_up_to_lanes(self.scratch) * threads) as u64
    }
}

/// The environment in which operations run. Only `CpuBackend` makes one, and the unsafe code of all
/// operations relies on the following guarantees of `CpuBackend`:
///
/// - The plan comes from the planner and was verified: buffers lie inside the arena, buffers that
///   live at the same time do not overlap, and each is as large as the shapes of the operations
///   that name it. No operation reads a buffer that it writes, except for a pixel loss, which may
///   write the gradient over the prediction.
/// - Every operation is one whose `CpuOperation::check` passed, and has at least the workspace of its layout
///   for as many threads as the pool has, and room for the sums that it carries from slice to
///   slice.
/// - Only operations of the plan run, one after the other and on the pool. Nothing else uses the
///   arena meanwhile.
pub struct Context<'a> {
    /// The plan that runs.
    pub plan: &'a Plan,
    /// The memory of its buffers.
    pub arena: &'a Arena,
    /// The instruction set of all kernels.
    pub isa: Isa,
    /// How the products of dense convolutions and of window attention are computed.
    pub products: Products,
    /// The scalars of this step.
    pub scalars: Scalars,
}

/// The parts of an operation's workspace in the arena, from [`Context::parts`].
#[derive(Clone, Copy)]
pub struct WorkspaceParts {
    base: SharedPtr<f32>,
    layout: Workspace,
}

impl WorkspaceParts {
    /// The part that all tasks read.
    pub fn shared(&self) -> SharedPtr<f32> {
        self.base
    }

    /// The sum of all partials, which [`Context::reduce`] writes.
    pub fn sums(&self) -> SharedPtr<f32> {
        // SAFETY: the sums follow the shared part, inside the workspace by `Workspace::bytes`
        SharedPtr::new(unsafe { self.base.at(round_up_to_lanes(self.layout.shared)) })
    }

    /// The partial of a task, which is below the layout's number of tasks.
    pub fn partial(&self, task: usize) -> SharedPtr<f32> {
        // SAFETY: the partials follow the sums, one for each of the layout's tasks, inside the
        // workspace by `Workspace::bytes`
        SharedPtr::new(unsafe {
            self.base.at(round_up_to_lanes(self.layout.shared)
                + round_up_to_lanes(self.layout.partial) * (task + 1))
        })
    }

    /// The scratch of the calling thread. No other task uses it until the caller's task ends, since
    /// no task waits for work on the pool.
    pub fn scratch(&self) -> SharedPtr<f32> {
        let thread = rayon::current_thread_index().unwrap_or(0);
        let before = round_up_to_lanes(self.layout.shared)
            + round_up_to_lanes(self.layout.partial) * (self.layout.tasks + 1);
        // SAFETY: the scratches follow the partials, one for each thread of the pool, by the
        // guarantees of `Context`
        SharedPtr::new(unsafe {
            self.base
                .at(before + round_up_to_lanes(self.layout.scratch) * thread)
        })
    }
}

/// One task of an operation, compiled for every instruction set. The tasks of an operation run in
/// parallel, so each writes only memory of its own: its rows of its image as [`Bands::task`] gives
/// them (or its image, or its chunk), its partial, and the scratch of its thread. No task of the
/// operation writes the other memory that it reads.
pub trait Task: Sync {
    /// Runs task number `task`.
    ///
    /// # Safety
    /// As [`Simd`]. The task was made for an operation of a [`Context`], from its buffers and from
    /// a workspace with the layout of the operation's `workspace` or `workspace_back`, and the
    /// operation's packed weights are in it. `task` is below the number of tasks, and no other
    /// thread runs the same number at the same time.
    unsafe fn run<S: Simd>(&self, task: usize);
}

/// One task as a [`Kernel`].
struct RunTask<'a, T: Task>(&'a T, usize);

impl<T: Task> Kernel for RunTask<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: `Isa::run` chose S for this processor, and `Context::parallel` runs each task of
        // an operation once
        unsafe { self.0.run::<S>(self.1) }
    }
}

/// Calls `run` for every number below `tasks`, in parallel. It takes a pointer to the function: rayon's
/// code is then compiled once, and not for every operation.
fn for_each_task(tasks: usize, run: &(dyn Fn(usize) + Sync)) {
    (0..tasks).into_par_iter().with_max_len(1).for_each(run);
}

/// Sums partials element by element, in the order of the tasks and in f64, and continues the sums
/// of the earlier slices.
struct Reduce {
    parts: WorkspaceParts,
    len: usize,
    tasks: usize,
    slice: Slice,
    carry: Option<SharedPtr<f64>>,
}

/// Elements of one reduction task.
const REDUCE_CHUNK: usize = 512;

impl Task for Reduce {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, chunk: usize) {
        let start = chunk * REDUCE_CHUNK;
        let len = REDUCE_CHUNK.min(self.len - start);
        let mut sum = [0f64; REDUCE_CHUNK];
        // SAFETY: the carry holds an f64 for every element of a partial, and chunks are disjoint
        let carry = self.carry.map(|carry| unsafe { carry.slice(start, len) });
        if let Some(carry) = carry.as_ref().filter(|_| !self.slice.first) {
            sum[..len].copy_from_slice(carry);
        }
        for task in 0..self.tasks {
            // SAFETY: each partial has `len` elements, chunks are disjoint, and the tasks that
            // wrote them have finished
            let partial = unsafe { self.parts.partial(task).slice(start, len) };
            sum.iter_mut()
                .zip(&*partial)
                .for_each(|(s, &p)| *s += f64::from(p));
        }
        if let Some(carry) = carry.filter(|_| !self.slice.last) {
            carry.copy_from_slice(&sum[..len]);
            return;
        }
        // SAFETY: the sums have `len` elements, as a partial has, and chunks are disjoint
        let out = unsafe { self.parts.sums().slice(start, len) };
        out.iter_mut().zip(&sum).for_each(|(o, &s)| *o = s as f32);
    }
}

impl Context<'_> {
    /// Start of a buffer as f32.
    pub fn floats(&self, id: BufferId) -> SharedPtr<f32> {
        self.pointer(id)
    }

    /// Start of a buffer as any plain type. Buffers begin at multiples of 256 bytes, except for
    /// those that are a slice of the images of a larger buffer: they begin at a multiple of an
    /// image.
    pub fn pointer<T>(&self, id: BufferId) -> SharedPtr<T> {
        // SAFETY: the buffer lies inside the arena, by the guarantees of `Context`
        SharedPtr::new(
            unsafe { self.arena.base().add(self.plan.buffer(id).offset as usize) }.cast(),
        )
    }

    /// Start of a parameter (or its gradient).
    pub fn param(&self, buffer: BufferId, range: ParamRange) -> SharedPtr<f32> {
        // SAFETY: the parameter table keeps an operation's ranges inside the buffers of parameters
        // and gradients
        SharedPtr::new(unsafe { self.floats(buffer).at(range.offset) })
    }

    /// The workspace of an operation.
    pub fn parts(&self, workspace: Option<BufferId>, layout: Workspace) -> WorkspaceParts {
        let base = match workspace {
            Some(id) => self.floats(id),
            None => SharedPtr::new(std::ptr::null_mut()),
        };
        WorkspaceParts { base, layout }
    }

    /// Runs all `tasks` tasks of an operation on the pool of the calling thread, and returns when
    /// all have finished.
    pub fn parallel<T: Task>(&self, tasks: usize, task: &T) {
        for_each_task(tasks, &|i| self.isa.run(RunTask(task, i)));
    }

    /// Adds up the partials of an operation. Returns true after the last slice: the result is then
    /// at [`WorkspaceParts::sums`]. Before that the sums are carried to the next slice.
    #[must_use]
    pub fn reduce(&self, parts: WorkspaceParts, slice: Slice) -> bool {
        let Workspace { partial, tasks, .. } = parts.layout;
        let carry = slice.carry.map(|id| self.pointer(id));
        self.parallel(
            partial.div_ceil(REDUCE_CHUNK),
            &Reduce {
                parts,
                len: partial,
                tasks,
                slice,
                carry,
            },
        );
        slice.last
    }

    /// Adds the values that the tasks of a loss computed for its term number `at` to the sum of the
    /// earlier slices, and returns the new sum.
    pub fn sum_values(&self, slice: Slice, at: usize, values: impl Iterator<Item = f64>) -> f64 {
        let carry = slice.carry.map(|id| self.pointer::<f64>(id));
        // SAFETY: the carry holds an f64 for every term, and no task runs
        let before = carry
            .filter(|_| !slice.first)
            .map_or(0.0, |carry| unsafe { *carry.at(at) });
        let sum = values.fold(before, |sum, value| sum + value);
        if let Some(carry) = carry {
            // SAFETY: as above
            unsafe { *carry.at(at) = sum };
        }
        sum
    }

    /// Stores the gradient of a parameter: in place of the old one for the first micro-batch of an
    /// iteration, added to it for the others. `value(i)` gives element i in PyTorch's order.
    pub fn store_gradient(
        &self,
        gradients: BufferId,
        range: ParamRange,
        value: impl Fn(usize) -> f32,
    ) {
        self.store_or_add_gradient(gradients, range, self.scalars.accumulate, value);
    }

    /// As [`Context::store_gradient`], where `add` says whether to add to what is there.
    pub fn store_or_add_gradient(
        &self,
        gradients: BufferId,
        range: ParamRange,
        add: bool,
        value: impl Fn(usize) -> f32,
    ) {
        // SAFETY: the parameter table keeps the range inside the gradient buffer, and no task runs
        let out = unsafe { self.param(gradients, range).slice(0, range.len) };
        for (i, out) in out.iter_mut().enumerate() {
            *out = if add { *out + value(i) } else { value(i) };
        }
    }
}
