//! Host memory for batches on their way to a device: from the heap, locked into RAM, or pinned by a
//! backend. All three are one type, so the code that fills a block does not depend on its origin.
//! Promises page alignment, zeros at the start, and that every block is released exactly once.

use anyhow::{Context, Result, bail};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of heap and locked blocks, bytes: a page, the unit that memory is locked and
/// registered in.
pub const ALIGNMENT: usize = 4096;

type Release = Box<dyn FnOnce(NonNull<u8>, usize) + Send>;

/// A block of host memory, a plain byte slice to its users.
pub struct HostBlock {
    start: NonNull<u8>,
    length: usize,
    release: Option<Release>,
}

// SAFETY: the block is owned memory, and its release closure is `Send`
unsafe impl Send for HostBlock {}
// SAFETY: a shared reference only allows reading
unsafe impl Sync for HostBlock {}

/// How a loader allocates its blocks, from a number of bytes; a backend may supply its own function.
pub type Allocate<'a> = &'a dyn Fn(usize) -> Result<HostBlock>;

/// Marks the moment at which a device no longer reads a block, so that it may be overwritten.
pub trait Fence: Send {
    /// Whether that moment has passed.
    fn is_done(&self) -> bool;
    /// Returns after that moment.
    fn wait(&self);
}

fn layout(length: usize) -> Result<Layout> {
    Layout::from_size_align(length.max(1), ALIGNMENT)
        .context("the block is larger than the address space")
}

impl HostBlock {
    /// Zeroed memory of the heap.
    ///
    /// # Errors
    /// The system has no `length` bytes left.
    pub fn heap(length: usize) -> Result<HostBlock> {
        let layout = layout(length)?;
        // SAFETY: the layout is not empty
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            bail!("the system has no {length} bytes of memory left")
        };
        // SAFETY: allocated above with this layout, released once
        let release: Release = Box::new(move |start, _| unsafe { dealloc(start.as_ptr(), layout) });
        Ok(HostBlock {
            start,
            length,
            release: Some(release),
        })
    }

    /// Memory of the heap that is never swapped out.
    ///
    /// # Errors
    /// The system has no `length` bytes left, or does not let this user lock as many.
    pub fn locked(length: usize) -> Result<HostBlock> {
        let mut block = HostBlock::heap(length)?;
        // SAFETY: the block is `length` allocated bytes
        if let Err(reason) = unsafe { super::lock_memory(block.start, length) } {
            bail!(
                "cannot lock {length} bytes into memory ({reason}); {} or use plain memory",
                super::LOCK_ADVICE
            );
        }
        let free = block.release.take();
        block.release = Some(Box::new(move |start, length| {
            // SAFETY: locked above
            unsafe { super::unlock_memory(start, length) };
            if let Some(free) = free {
                free(start, length);
            }
        }));
        Ok(block)
    }

    /// Memory that the caller allocated; dropping the block calls `release`.
    ///
    /// # Safety
    /// `start` must point to `length` initialised bytes that nobody else uses until `release` is
    /// called.
    pub unsafe fn foreign(
        start: NonNull<u8>,
        length: usize,
        release: impl FnOnce(NonNull<u8>, usize) + Send + 'static,
    ) -> HostBlock {
        HostBlock {
            start,
            length,
            release: Some(Box::new(release)),
        }
    }
}

impl Deref for HostBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: owned, initialised memory
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for HostBlock {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: owned, initialised memory, borrowed mutably
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for HostBlock {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release(self.start, self.length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn blocks_are_zeroed_aligned_and_writable() {
        let locked = HostBlock::locked(5000);
        for mut block in [HostBlock::heap(5000).unwrap(), HostBlock::heap(0).unwrap()]
            .into_iter()
            .chain(locked)
        {
            assert!(
                block.as_ptr().addr().is_multiple_of(ALIGNMENT) && block.iter().all(|&b| b == 0)
            );
            block.fill(7);
            assert!(block.iter().all(|&b| b == 7));
        }
        assert!(HostBlock::heap(usize::MAX).is_err());
        assert!(
            HostBlock::heap(isize::MAX as usize - 2 * ALIGNMENT).is_err(),
            "no machine has that"
        );
    }

    #[test]
    fn foreign_memory_is_given_back_once() {
        let given_back = Arc::new(AtomicUsize::new(0));
        let count = given_back.clone();
        let memory = Box::leak(vec![1u8; 10].into_boxed_slice());
        let start = NonNull::new(memory.as_mut_ptr()).unwrap();
        // SAFETY: leaked above, freed in the closure
        let block = unsafe {
            HostBlock::foreign(start, 10, move |start, length| {
                count.fetch_add(length, Ordering::Relaxed);
                drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(
                    start.as_ptr(),
                    length,
                )));
            })
        };
        assert_eq!(block[..], [1; 10]);
        drop(block);
        assert_eq!(given_back.load(Ordering::Relaxed), 10);
    }
}
