//! The one allocation of the CPU backend, and the pointers into it that operations use. Depends on
//! the plan. The `unsafe` views of the arena are made here; they are sound because the plan was
//! verified: no two buffers that live at the same time share bytes.

use crate::plan::{ALIGNMENT, Plan};
use crate::sys;
use anyhow::{Result, bail};
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

/// Zeroed, aligned memory of the plan's size, or a part lent by another arena.
pub struct Arena {
    base: *mut u8,
    layout: Layout,
    lent: bool,
}

// SAFETY: the arena owns its memory, or has it on exclusive loan, and any thread may free it
unsafe impl Send for Arena {}
// SAFETY: no method reads or writes through the pointer; code that does so through `base` must
// itself exclude conflicts between threads
unsafe impl Sync for Arena {}

impl Arena {
    /// Allocates exactly the plan's arena.
    ///
    /// # Errors
    /// If the system does not have that much memory.
    pub fn new(plan: &Plan) -> Result<Arena> {
        let bytes = usize::try_from(plan.arena_bytes.max(ALIGNMENT))?;
        let layout = Layout::from_size_align(bytes, ALIGNMENT as usize)?;
        // SAFETY: the size is not zero
        let Some(base) = NonNull::new(unsafe { alloc(layout) }) else {
            bail!(crate::backend::Error::OutOfMemory(format!(
                "the system cannot give {} for the step's arena; try a smaller batch or patch",
                crate::support::text::bytes_text(plan.arena_bytes)
            )));
        };
        // SAFETY: the block was allocated with this size
        unsafe {
            // before the first write, which decides the size of the pages
            sys::advise_huge_pages(base, bytes);
            base.write_bytes(0, bytes);
        }
        Ok(Arena {
            base: base.as_ptr(),
            layout,
            lent: false,
        })
    }

    /// Lends `bytes` bytes from byte `offset` on as an arena of their own.
    ///
    /// # Errors
    /// If `bytes` is too large for a [`Layout`].
    ///
    /// # Safety
    /// The part lies inside this arena and begins at a multiple of [`ALIGNMENT`]. Nothing else uses
    /// it while the result lives, and this arena outlives the result.
    pub unsafe fn lend(&self, offset: usize, bytes: usize) -> Result<Arena> {
        // SAFETY: the caller guarantees that the part lies inside the arena
        let base = unsafe { self.base.add(offset) };
        Ok(Arena {
            base,
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
            // SAFETY: `new` allocated it with this layout, and a lent part is never freed
            unsafe { dealloc(self.base, self.layout) }
        }
    }
}

/// A pointer into the arena that tasks on several threads share: each task of an operation writes a
/// range of its own.
#[derive(Clone, Copy)]
pub struct SharedPtr<T>(*mut T);

// SAFETY: the pointer is only used through `at`, `slice` and `view`, whose callers must exclude
// conflicts between threads
unsafe impl<T> Send for SharedPtr<T> {}
// SAFETY: as above
unsafe impl<T> Sync for SharedPtr<T> {}

impl<T> SharedPtr<T> {
    /// Wraps a pointer into the arena.
    pub fn new(pointer: *mut T) -> Self {
        SharedPtr(pointer)
    }

    /// The pointer to element `offset`.
    ///
    /// # Safety
    /// The element lies inside the buffer, or is the one after its last.
    #[inline(always)]
    pub unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: the caller guarantees that the result stays inside the buffer
        unsafe { self.0.add(offset) }
    }

    /// The `len` elements from `offset` on.
    ///
    /// # Safety
    /// The range lies inside the buffer, which is aligned for `T`, and no other code reads or
    /// writes it while the slice lives.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice<'a>(self, offset: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller guarantees that the range lies inside the buffer and that nothing else
        // uses it; the arena was zeroed when it was allocated
        unsafe { std::slice::from_raw_parts_mut(self.0.add(offset), len) }
    }

    /// The `len` elements from `offset` on, for reading.
    ///
    /// # Safety
    /// The range lies inside the buffer, which is aligned for `T`, and nothing writes it while the
    /// slice lives.
    #[inline(always)]
    pub unsafe fn view<'a>(self, offset: usize, len: usize) -> &'a [T] {
        // SAFETY: the caller guarantees that the range lies inside the buffer and that nothing
        // writes it; the arena was zeroed when it was allocated
        unsafe { std::slice::from_raw_parts(self.0.add(offset), len) }
    }
}
