//! The backend allocates exactly the planned bytes, and a training step allocates nothing. The
//! global allocator of the test program counts allocations of all threads, so this test runs alone
//! in a process of its own.

use crate::common::process::in_own_process;
use crate::network_common;

use network_common::{Twin, options, scalars, spec};
use paragon::backend::Backend;
use paragon::backend::cpu::Isa;
use paragon::model::Recompute;
use paragon::plan::LossKind;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Counts allocations and keeps the size of the largest.
struct Counting;
/// Set by the test that counts, so that other tests do not slow each other down by shared counters.
static COUNTING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
static LARGEST: AtomicU64 = AtomicU64::new(0);

fn count(bytes: usize) {
    if COUNTING.load(Relaxed) {
        COUNT.fetch_add(1, Relaxed);
        LARGEST.fetch_max(bytes as u64, Relaxed);
    }
}

// SAFETY: all calls are passed to the system's allocator, which fulfils the contract; counting
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller fulfils the contract of `GlobalAlloc`, which `System` has as well.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller fulfils the contract of `GlobalAlloc`, which `System` has as well.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller fulfils the contract of `GlobalAlloc`, which `System` has as well.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller fulfils the contract of `GlobalAlloc`, which `System` has as well.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A step enters the thread pool through a queue, which allocates a new block (under 2 KiB) after
/// this number of jobs.
const JOBS_OF_A_BLOCK: u64 = 31;
const BLOCK_BYTES: u64 = 2048;
const STEPS: u64 = 200;

/// The numbers of this process's threads; empty if the system does not list them.
fn threads() -> Vec<String> {
    let list = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let mut list: Vec<String> = list
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    list.sort();
    list
}

#[test]
fn the_arena_is_what_was_planned_and_steps_allocate_nothing() {
    if !in_own_process(concat!(
        module_path!(),
        "::the_arena_is_what_was_planned_and_steps_allocate_nothing"
    )) {
        return;
    }
    COUNTING.store(true, Relaxed);
    let twin = Twin::new(2, 3);
    let losses = [
        (LossKind::L1, 1.0),
        (LossKind::Ssim, 0.05),
        (LossKind::MsSsim, 0.1),
    ];
    for (batch, lq, level) in [(2, 24, Recompute::Block), (3, 192, Recompute::Full)] {
        let mut spec = spec(batch, (lq, lq), &losses, false);
        spec.recompute = level;
        LARGEST.store(0, Relaxed);
        let mut step = twin.load(&spec, options(Isa::detect(), 2));
        let planned = step.backend.plan().arena_bytes;
        assert_eq!(step.backend.allocated(), planned);
        assert_eq!(
            LARGEST.load(Relaxed),
            planned,
            "the arena is the largest allocation and exactly what was planned"
        );
        let (lq_bytes, hr_bytes) = (
            vec![90; batch * lq * lq * 3],
            vec![91; batch * lq * lq * 12],
        );
        let codes = vec![5; batch];
        let mut run = |steps: u64| {
            for _ in 0..steps {
                step.bytes(&lq_bytes, &hr_bytes, &codes, &scalars());
                step.backend.update(&scalars()).unwrap();
                step.backend.metrics().unwrap();
            }
        };
        let steps = if lq > 100 { STEPS / 10 } else { STEPS };
        run(40); // lets threads start and queues grow to their final size
        let threads = threads();
        COUNT.store(0, Relaxed);
        LARGEST.store(0, Relaxed);
        run(steps);
        let (count, largest) = (COUNT.load(Relaxed), LARGEST.load(Relaxed));
        println!("{level}: {count} allocations in {steps} steps, the largest of {largest} bytes");
        // A thread that was started and has ended would appear as an allocation.
        assert_eq!(self::threads(), threads, "a step starts no thread");
        assert!(
            largest <= BLOCK_BYTES,
            "{largest} bytes were allocated inside a step"
        );
        assert!(
            count <= 2 * steps / JOBS_OF_A_BLOCK + 2,
            "{count} allocations in {steps} steps"
        );
    }
}
