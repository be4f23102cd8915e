//! The one allocation of the CPU backend, and the pointers the operations get into it. This is
//! where `unsafe` views of the arena are made: the plan's verification (no two live buffers share
//! bytes) is what makes them sound.

use crate::plan::{ALIGNMENT, Plan};
use anyhow::{Result, bail};
use std::alloc::{Layout, alloc_zeroed, dealloc};

/// Zeroed, aligned memory of the plan's size; or a part of another arena, lent.
pub struct Arena {
    base: *mut u8,
    layout: Layout,
    lent: bool,
}

// SAFETY: the arena owns its memory, or was lent it for itself alone, and any thread may free it
unsafe impl Send for Arena {}
// SAFETY: no method reads or writes behind the pointer; who does so through it answers for other
// threads
unsafe impl Sync for Arena {}

impl Arena {
    /// Allocates exactly the plan's arena.
    ///
    /// # Errors
    /// When the system has not that much memory.
    pub fn new(plan: &Plan) -> Result<Arena> {
        let bytes = usize::try_from(plan.arena_bytes.max(ALIGNMENT))?;
        let layout = Layout::from_size_align(bytes, ALIGNMENT as usize)?;
        // SAFETY: the size is not zero
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            bail!(
                "the system cannot give {} for the step's arena; try a smaller batch or patch",
                crate::support::text::bytes_text(plan.arena_bytes)
            );
        }
        Ok(Arena {
            base,
            layout,
            lent: false,
        })
    }

    /// A part of an arena, from `offset` on.
    ///
    /// # Safety
    /// The part must lie inside and begin at a multiple of [`ALIGNMENT`], nothing else may use it
    /// while the result lives, and this arena must outlive it.
    pub unsafe fn lend(&self, offset: usize, bytes: usize) -> Result<Arena> {
        // SAFETY: the caller says that the part lies inside the arena
        Ok(Arena {
            base: unsafe { self.base.add(offset) },
            layout: Layout::from_size_align(bytes, ALIGNMENT as usize)?,
            lent: true,
        })
    }

    /// Start of the arena.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> u64 {
        self.layout.size() as u64
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if !self.lent {
            // SAFETY: it was allocated with this layout in `new`, and a lent part is not freed
            unsafe { dealloc(self.base, self.layout) }
        }
    }
}

/// A pointer that may cross threads: tasks of one operation write disjoint ranges behind it.
#[derive(Clone, Copy)]
pub struct SharedPtr<T>(*mut T);

// SAFETY: it is a number until `at`, `slice` or `view` is called, whose callers answer for what
// other threads do there
unsafe impl<T> Send for SharedPtr<T> {}
// SAFETY: as above
unsafe impl<T> Sync for SharedPtr<T> {}

impl<T> SharedPtr<T> {
    /// Wraps a pointer into the arena.
    pub fn new(pointer: *mut T) -> Self {
        SharedPtr(pointer)
    }

    /// The pointer, `offset` elements on.
    ///
    /// # Safety
    /// The result must stay inside the buffer, or be its end.
    #[inline(always)]
    pub unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: the caller says that the result stays inside the buffer
        unsafe { self.0.add(offset) }
    }

    /// A slice of `len` elements from `offset` on.
    ///
    /// # Safety
    /// The range must lie inside the buffer, which is aligned for `T`, and nobody else may touch it
    /// while the slice lives.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice<'a>(self, offset: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller says that the range lies inside the buffer and is nobody else's; the
        // arena is initialised from the start
        unsafe { std::slice::from_raw_parts_mut(self.0.add(offset), len) }
    }

    /// A slice of `len` elements from `offset` on, to read.
    ///
    /// # Safety
    /// The range must lie inside the buffer, which is aligned for `T`, and nobody may write it
    /// while the slice lives.
    #[inline(always)]
    pub unsafe fn view<'a>(self, offset: usize, len: usize) -> &'a [T] {
        // SAFETY: the caller says that the range lies inside the buffer and that nobody writes it;
        // the arena is initialised from the start
        unsafe { std::slice::from_raw_parts(self.0.add(offset), len) }
    }
}
