//! The error message for a page of a mapped shard that cannot be read, because another program cut
//! the file short or because the disk or network fails. The system then sends SIGBUS, which cannot
//! become an error of the reading thread. The handler here writes one line that names the shard and
//! ends the process with exit code 1. Depends on libc alone.
//!
//! The contract of the handler, which may interrupt any code at any point: it reads static atomics,
//! calls nothing but `write`, `_exit`, `pause`, `sigaction` and `raise` (all safe within a
//! handler), allocates nothing and takes no lock. The messages are built when a map is registered.
//! Nodes of the list are never freed, only reused, so the list can be traversed at any moment. A
//! node's message is freed only after its map is no longer in use, so the handler cannot be reading
//! it then. A SIGBUS at any other address is passed to the previous handler.

use crate::support::text::one_line;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Once, OnceLock};

/// One mapped file in the handler's list. `start` is 0 while the node is free.
struct Node {
    used: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    text: AtomicPtr<u8>,
    text_bytes: AtomicUsize,
    next: AtomicPtr<Node>,
}

/// First node of the list.
static NODES: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());
static PREVIOUS_ACTION: OnceLock<libc::sigaction> = OnceLock::new();
static REPORTED: AtomicBool = AtomicBool::new(false);

/// A map that the handler knows; see [`crate::sys::WatchedMap`].
pub(in crate::sys) struct WatchedMap {
    node: &'static Node,
}

impl WatchedMap {
    /// Registers the map of `path`, `bytes` long from `start`, and installs the handler the first
    /// time.
    pub fn new(path: &Path, start: *const u8, bytes: usize) -> WatchedMap {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        let text = format!(
            "\nerror: reading shard {} failed (the disk or network behind it): the file was cut or a block cannot be read; \
             run `paragon shards verify`, or train with --io pread\n",
            one_line(path.display())
        );
        let text: Box<[u8]> = text.into_bytes().into();
        let node = free_node();
        node.text_bytes.store(text.len(), Ordering::Relaxed);
        node.text
            .store(Box::into_raw(text).cast(), Ordering::Relaxed);
        node.end.store(start as usize + bytes, Ordering::Relaxed);
        node.start.store(start as usize, Ordering::Release); // from here on the handler finds it
        WatchedMap { node }
    }
}

impl Drop for WatchedMap {
    fn drop(&mut self) {
        self.node.start.store(0, Ordering::Release);
        let text = self.node.text.swap(ptr::null_mut(), Ordering::Relaxed);
        let bytes = self.node.text_bytes.swap(0, Ordering::Relaxed);
        if !text.is_null() {
            // SAFETY: pointer and length come from a box that `new` turned into a raw pointer, and
            // the swaps take them only once
            drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(text, bytes)) });
        }
        self.node.used.store(false, Ordering::Release);
    }
}

/// A node that is not in use: a free one of the list, or a new one that is added to the list.
fn free_node() -> &'static Node {
    let mut at = NODES.load(Ordering::Acquire);
    // SAFETY: nodes of the list are leaked boxes, which are never freed
    while let Some(node) = unsafe { at.as_ref() } {
        if node
            .used
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            return node;
        }
        at = node.next.load(Ordering::Acquire);
    }
    let node: &'static mut Node = Box::leak(Box::new(Node {
        used: AtomicBool::new(true),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        text: AtomicPtr::new(ptr::null_mut()),
        text_bytes: AtomicUsize::new(0),
        next: AtomicPtr::new(ptr::null_mut()),
    }));
    let new = ptr::from_mut(node);
    let mut first = NODES.load(Ordering::Acquire);
    // SAFETY: `new` is a leaked box, and only its atomics are used from here on
    let node: &'static Node = unsafe { &*new };
    loop {
        node.next.store(first, Ordering::Relaxed);
        match NODES.compare_exchange(first, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return node,
            Err(other) => first = other,
        }
    }
}

fn install() {
    // SAFETY: the pointers are valid for the calls, an all-zero sigaction is a valid value, and the
    // handler keeps the contract above
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, ptr::null(), &mut before) != 0 {
            return; // a SIGBUS then ends the process without a message
        }
        let _ = PREVIOUS_ACTION.set(before);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

extern "C" fn on_bus(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: see the contract above; the system passes a valid `info`
    unsafe {
        let from_the_system = (*info).si_code > 0;
        if from_the_system {
            report((*info).si_addr() as usize);
        }
        // the address is in none of our maps: the faulting instruction runs again and the previous
        // handler decides
        if let Some(before) = PREVIOUS_ACTION.get() {
            libc::sigaction(signal, before, ptr::null_mut());
        }
        if !from_the_system {
            libc::raise(signal);
        }
    }
}

/// Ends the process when `address` is in a registered map; otherwise returns.
unsafe fn report(address: usize) {
    let mut at = NODES.load(Ordering::Acquire);
    // SAFETY: nodes of the list are never freed
    while let Some(node) = unsafe { at.as_ref() } {
        let start = node.start.load(Ordering::Acquire);
        if start != 0 && (start..node.end.load(Ordering::Relaxed)).contains(&address) {
            // SAFETY: only calls that a handler may make; the text of a map in use is complete
            unsafe {
                while REPORTED.swap(true, Ordering::AcqRel) {
                    libc::pause(); // another thread writes its message and ends the process
                }
                let (mut text, mut left) = (
                    node.text.load(Ordering::Relaxed).cast_const(),
                    node.text_bytes.load(Ordering::Relaxed),
                );
                while left > 0 {
                    let written = libc::write(libc::STDERR_FILENO, text.cast(), left);
                    if written <= 0 {
                        break;
                    }
                    text = text.add(written as usize);
                    left -= written as usize;
                }
                libc::_exit(1);
            }
        }
        at = node.next.load(Ordering::Acquire);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_reused_and_found_while_they_are_in_use() {
        let known = |address: usize| {
            let mut at = NODES.load(Ordering::Acquire);
            // SAFETY: nodes are never freed, so that a pointer of the list is null or valid
            while let Some(node) = unsafe { at.as_ref() } {
                if (node.start.load(Ordering::Acquire)..node.end.load(Ordering::Relaxed))
                    .contains(&address)
                {
                    return node.start.load(Ordering::Acquire) != 0;
                }
                at = node.next.load(Ordering::Acquire);
            }
            false
        };
        let count = || {
            let (mut at, mut n) = (NODES.load(Ordering::Acquire), 0);
            // SAFETY: nodes are never freed, so that a pointer of the list is null or valid
            while let Some(node) = unsafe { at.as_ref() } {
                (at, n) = (node.next.load(Ordering::Acquire), n + 1);
            }
            n
        };
        let bytes = [0u8; 64];
        for _ in 0..100 {
            let a = WatchedMap::new(Path::new("a"), bytes.as_ptr(), 32);
            let b = WatchedMap::new(Path::new("b"), bytes[32..].as_ptr(), 32);
            assert!(known(bytes.as_ptr() as usize) && known(bytes.as_ptr() as usize + 63));
            drop((a, b));
        }
        assert!(!known(bytes.as_ptr() as usize));
        assert!(count() < 50, "nodes are not reused");
    }
}
