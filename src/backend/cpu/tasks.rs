//! How an operation is cut into tasks and where its workspace lies. The cut depends on shapes
//! alone, never on the number of threads, and partial sums are added in task order, so bits do not
//! depend on the threads either.

use super::arena::{Arena, SharedPtr};
use super::simd::{Kernel, LANES, Simd};
use crate::backend::Scalars;
use crate::plan::{BufferId, Extent, ParamRange, Plan, Slice};
use crate::support::isa::Isa;
use rayon::prelude::*;

/// Rows of one task, at most: enough to amortise the halo, small enough to share out.
const BAND_ROWS: usize = 32;

/// Tasks of an operation over images: (image, band of rows).
#[derive(Clone, Copy, Debug)]
pub struct Bands {
    h: usize,
    per_image: usize,
    rows: usize,
    n: usize,
}

impl Bands {
    /// Bands of an activation, of at most [`BAND_ROWS`] rows, as even as they can be.
    pub fn new(extent: Extent) -> Bands {
        let per_image = extent.h.div_ceil(BAND_ROWS).max(1);
        Bands {
            h: extent.h,
            per_image,
            rows: extent.h.div_ceil(per_image),
            n: extent.n,
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

    /// (image, first row, row behind the last) of a task.
    pub fn task(&self, task: usize) -> (usize, usize, usize) {
        let start = (task % self.per_image) * self.rows;
        (
            task / self.per_image,
            start.min(self.h),
            (start + self.rows).min(self.h),
        )
    }
}

/// Workspace of an operation in f32 elements: shared (packed weights and sums), one part per task
/// (partial gradients), one per thread (rows in flight).
#[derive(Clone, Copy, Debug, Default)]
pub struct Workspace {
    /// Read by all tasks.
    pub shared: usize,
    /// Per task.
    pub partial: usize,
    /// Number of tasks with a partial.
    pub tasks: usize,
    /// Per thread.
    pub scratch: usize,
}

/// Whether an activation of `c` channels is so large that nothing of it would still be in a cache
/// when the next operation reads it: then it is stored past the caches, which spares reading what
/// is overwritten.
pub fn exceeds_cache(extent: Extent, c: usize) -> bool {
    const CACHE_BYTES: usize = 8 << 20;
    4 * c * extent.n * extent.h * extent.w > CACHE_BYTES
}

/// Rounds up to whole vectors, so that every part starts aligned.
pub fn round_up_to_lanes(elements: usize) -> usize {
    elements.next_multiple_of(LANES)
}

impl Workspace {
    /// Bytes of the sums that wait between slices: an f64 for every element of a partial.
    pub fn carry_bytes(&self) -> u64 {
        8 * self.partial as u64
    }

    /// Total bytes for a number of threads. The sums of the partials lie behind the shared part.
    pub fn bytes(&self, threads: usize) -> u64 {
        4 * (round_up_to_lanes(self.shared)
            + round_up_to_lanes(self.partial) * (self.tasks + 1)
            + round_up_to_lanes(self.scratch) * threads) as u64
    }
}

/// What an operation needs while it runs. Everything unsafe in the operations rests on what
/// `CpuBackend`, which alone makes it, promises:
///
/// - The plan is the planner's and verified: buffers lie inside the arena, those that live together
///   apart from each other, and each is as large as the shapes of the operations that name it say.
///   What an operation writes it does not read as well, but for a pixel loss, which may leave the
///   gradient on the prediction.
/// - The operations that are run are the plan's, one after another and on the pool, and nothing
///   else touches the arena meanwhile.
/// - The workspace of each is at least what its layout asks for as many threads as the pool has,
///   and sums carried from slice to slice have the room that the layout asks.
pub struct Context<'a> {
    pub plan: &'a Plan,
    pub arena: &'a Arena,
    pub isa: Isa,
    pub scalars: Scalars,
}

/// An operation's workspace in the arena, from [`Context::parts`]: as large as its layout asks.
#[derive(Clone, Copy)]
pub struct WorkspaceParts {
    base: SharedPtr<f32>,
    layout: Workspace,
}

impl WorkspaceParts {
    /// Packed weights and the like.
    pub fn shared(&self) -> SharedPtr<f32> {
        self.base
    }

    /// Where [`Context::reduce`] leaves the sum of all partials.
    pub fn sums(&self) -> SharedPtr<f32> {
        // SAFETY: the sums lie behind the shared part, inside the workspace by `Workspace::bytes`
        SharedPtr::new(unsafe { self.base.at(round_up_to_lanes(self.layout.shared)) })
    }

    /// The partial of a task, which is one of the layout's.
    pub fn partial(&self, task: usize) -> SharedPtr<f32> {
        // SAFETY: the partials lie behind the sums, one for each of the layout's tasks, inside the
        // workspace by `Workspace::bytes`
        SharedPtr::new(unsafe {
            self.base.at(round_up_to_lanes(self.layout.shared)
                + round_up_to_lanes(self.layout.partial) * (task + 1))
        })
    }

    /// The rows of the thread that asks: nobody else's until its task ends, since no task waits for
    /// others on the pool.
    pub fn scratch(&self) -> SharedPtr<f32> {
        let thread = rayon::current_thread_index().unwrap_or(0);
        let before = round_up_to_lanes(self.layout.shared)
            + round_up_to_lanes(self.layout.partial) * (self.layout.tasks + 1);
        // SAFETY: the scratches lie behind the partials, one for each thread of the pool, by the
        // promises of `Context`
        SharedPtr::new(unsafe {
            self.base
                .at(before + round_up_to_lanes(self.layout.scratch) * thread)
        })
    }
}

/// One task of an operation; compiled for every instruction set. The tasks of an operation run side
/// by side, so each writes only what is its own: its rows of its image as [`Bands::task`] gives
/// them (or its image, or its chunk), its partial, and the scratch of its thread. What it reads
/// beside these, no task of the operation writes.
pub trait Task: Sync {
    /// Runs task number `task`.
    ///
    /// # Safety
    /// As [`Simd`]. The task was made for an operation of a [`Context`]: from its buffers, and from
    /// a workspace that is laid out as the operation's `workspace` or `workspace_back` says and
    /// holds what was packed for it. `task` is below the number of its tasks, and no other call
    /// runs the same number meanwhile.
    unsafe fn run<S: Simd>(&self, task: usize);
}

struct RunTask<'a, T: Task>(&'a T, usize);

impl<T: Task> Kernel for RunTask<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: `Isa::run` picked S for this processor, and `Context::parallel` runs an
        // operation's tasks, each once
        unsafe { self.0.run::<S>(self.1) }
    }
}

/// Sums partials element by element, in task order, in f64; goes on from the slices before.
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
            // wrote them are done
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

    /// Start of a buffer as any plain type; offsets are multiples of 256 bytes, but for those of a
    /// slice's images within a whole buffer, which are multiples of an image.
    pub fn pointer<T>(&self, id: BufferId) -> SharedPtr<T> {
        // SAFETY: the buffer lies inside the arena, by the promises of `Context`
        SharedPtr::new(
            unsafe { self.arena.base().add(self.plan.buffer(id).offset as usize) }.cast(),
        )
    }

    /// Start of a parameter (or its gradient).
    pub fn param(&self, buffer: BufferId, range: ParamRange) -> SharedPtr<f32> {
        // SAFETY: the operation's ranges lie inside the buffers of parameters and gradients, by the
        // parameter table
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

    /// Runs `tasks` tasks, all that the operation has, on the pool this is called from; they are
    /// done when it returns.
    pub fn parallel<T: Task>(&self, tasks: usize, task: &T) {
        (0..tasks)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|i| self.isa.run(RunTask(task, i)));
    }

    /// Adds up the partials of an operation. Once all slices are in, the result lies at
    /// [`WorkspaceParts::sums`] and this is true.
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

    /// Adds the values of a loss's tasks, number `at` of its terms, to those of the slices before.
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

    /// Writes a gradient: over the old one for the first micro-batch of an iteration, else added to
    /// it. `value(i)` gives element i in PyTorch's order.
    pub fn store_gradient(
        &self,
        gradients: BufferId,
        range: ParamRange,
        value: impl Fn(usize) -> f32,
    ) {
        // SAFETY: the range lies inside the gradient buffer by the parameter table, and no task
        // runs
        let out = unsafe { self.param(gradients, range).slice(0, range.len) };
        for (i, out) in out.iter_mut().enumerate() {
            *out = if self.scalars.accumulate {
                *out + value(i)
            } else {
                value(i)
            };
        }
    }
}
