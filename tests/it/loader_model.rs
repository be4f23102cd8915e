//! Visits every state that a model of the loader's ring can reach. The model has its threads,
//! channels and slots, and the steps of `loader/ring.rs`: a thread takes a slot, then a number,
//! then fills the slot, then sends it; the caller receives, delivers, drops a batch or gives it to
//! a device; the device finishes; the loader is dropped at any moment. In no interleaving may
//! anything get stuck, out of order or lost, or a slot be in two places. The model has no pixels
//! and no time, and at most three of everything.

use std::collections::{HashSet, VecDeque};

/// Where one thread is in its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Thread {
    Waiting,
    /// Has a slot, no number yet.
    HasSlot(u8),
    /// Has a slot and a number: filling.
    Filling(u8, u8),
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// Channel of free slots.
    free: Vec<u8>,
    threads: Vec<Thread>,
    /// Next number that a thread takes.
    next: u8,
    /// Channel of filled slots: (number, slot), in order of sending.
    ready: Vec<(u8, u8)>,
    /// Received before their turn, sorted.
    early: Vec<(u8, u8)>,
    /// Number of the batch that the caller gets next.
    wanted: u8,
    /// Slots that the caller holds.
    held: Vec<u8>,
    /// Slots that a device reads.
    in_flight: Vec<u8>,
    /// For each slot in `in_flight`: whether the device has finished.
    done: Vec<bool>,
    /// The loader is being dropped.
    stopping: bool,
    /// The threads are joined, and no device reads a slot any more.
    gone: bool,
}

struct Ring {
    slots: usize,
    threads: usize,
    /// Number of batches after which the caller drops the loader.
    batches: u8,
    /// A faulty ring that the search must detect: the number is taken before the slot.
    number_first: bool,
    /// A faulty ring: a slot in flight is freed at once.
    frees_in_flight: bool,
}

impl Ring {
    fn start(&self) -> State {
        State {
            free: (0..self.slots as u8).collect(),
            threads: vec![Thread::Waiting; self.threads],
            next: 0,
            ready: Vec::new(),
            early: Vec::new(),
            wanted: 0,
            held: Vec::new(),
            in_flight: Vec::new(),
            done: Vec::new(),
            stopping: false,
            gone: false,
        }
    }

    /// All states that one step leads to.
    fn steps(&self, s: &State) -> Vec<State> {
        let mut out = Vec::new();
        let mut push = |change: &dyn Fn(&mut State)| {
            let mut next = s.clone();
            change(&mut next);
            // Threads are interchangeable, so their order is not part of the state.
            next.threads.sort();
            out.push(next);
        };
        for (t, &thread) in s.threads.iter().enumerate() {
            match thread {
                Thread::Waiting if self.number_first => {
                    push(&|n| {
                        n.threads[t] = Thread::Filling(u8::MAX, n.next);
                        n.next += 1;
                    });
                    if s.stopping {
                        push(&|n| n.threads[t] = Thread::Ended);
                    }
                }
                Thread::Filling(u8::MAX, number) => {
                    if !s.free.is_empty() {
                        push(&|n| n.threads[t] = Thread::Filling(n.free.remove(0), number));
                    }
                    if s.stopping {
                        push(&|n| n.threads[t] = Thread::Ended);
                    }
                }
                Thread::Waiting => {
                    // `select!` takes whichever is available, and any of the two if both are.
                    if !s.free.is_empty() {
                        push(&|n| n.threads[t] = Thread::HasSlot(n.free.remove(0)));
                    }
                    if s.stopping {
                        push(&|n| n.threads[t] = Thread::Ended);
                    }
                }
                Thread::HasSlot(slot) => push(&|n| {
                    n.threads[t] = Thread::Filling(slot, n.next);
                    n.next += 1;
                }),
                // Filling ends with pixels or an error (such as the drop of the loader); the slot
                // is sent in both cases.
                Thread::Filling(slot, number) => {
                    assert!(
                        s.ready.len() < self.slots,
                        "sending would wait: the channel is full"
                    );
                    push(&|n| {
                        n.ready.push((number, slot));
                        n.threads[t] = Thread::Waiting;
                    });
                }
                Thread::Ended => {}
            }
        }
        if !s.stopping {
            // The caller in `next`: deliver the batch that it waits for, or else receive.
            if let Some(at) = s.early.iter().position(|&(number, _)| number == s.wanted) {
                push(&|n| {
                    let (_, slot) = n.early.remove(at);
                    n.held.push(slot);
                    n.wanted += 1;
                });
            } else if !s.ready.is_empty() {
                push(&|n| {
                    let filled = n.ready.remove(0);
                    n.early.push(filled);
                    n.early.sort_unstable();
                });
            }
            for i in 0..s.held.len() {
                push(&|n| n.free.push(n.held.remove(i)));
                push(&|n| {
                    let slot = n.held.remove(i);
                    n.in_flight.push(slot);
                    n.done.push(false);
                    if self.frees_in_flight {
                        n.free.push(slot);
                    }
                });
            }
            // `reclaim`: slots that devices have finished with become free.
            for i in 0..s.in_flight.len() {
                if s.done[i] {
                    push(&|n| {
                        n.done.remove(i);
                        let slot = n.in_flight.remove(i);
                        if !self.frees_in_flight {
                            n.free.push(slot);
                        }
                    });
                }
            }
            // The loader may be dropped at any moment, and is dropped in the end.
            push(&|n| n.stopping = true);
        }
        for i in 0..s.in_flight.len() {
            if !s.done[i] {
                push(&|n| n.done[i] = true);
            }
        }
        // Dropping the loader joins every thread and then waits for the devices.
        if s.stopping
            && !s.gone
            && s.threads.iter().all(|t| *t == Thread::Ended)
            && s.done.iter().all(|d| *d)
        {
            push(&|n| n.gone = true);
        }
        out
    }

    /// Checks what must hold in every state.
    fn check(&self, s: &State) -> Result<(), String> {
        let in_threads = s.threads.iter().filter_map(|t| match t {
            Thread::HasSlot(slot) | Thread::Filling(slot, _) if *slot != u8::MAX => Some(*slot),
            _ => None,
        });
        let boxed = s.ready.iter().chain(&s.early).map(|&(_, slot)| slot);
        let mut slots: Vec<u8> = s
            .free
            .iter()
            .chain(&s.held)
            .chain(&s.in_flight)
            .copied()
            .chain(in_threads)
            .chain(boxed)
            .collect();
        slots.sort_unstable();
        if !slots.iter().copied().eq(0..self.slots as u8) {
            return Err(format!(
                "slots are lost or in two places: {slots:?} in {s:?}"
            ));
        }
        // Every number that was taken must be in one place: being filled, sent, received, or
        // delivered.
        let taken = s.threads.iter().filter_map(|t| {
            if let Thread::Filling(_, number) = t {
                Some(*number)
            } else {
                None
            }
        });
        let mut numbers: Vec<u8> = (0..s.wanted)
            .chain(taken)
            .chain(s.ready.iter().chain(&s.early).map(|&(number, _)| number))
            .collect();
        numbers.sort_unstable();
        if !self.number_first && !numbers.iter().copied().eq(0..s.next) {
            return Err(format!("a batch is lost or doubled: {numbers:?} in {s:?}"));
        }
        Ok(())
    }

    /// Whether the caller waits in `next` for ever: it holds no slot, every device has finished,
    /// and no thread can make a step towards its batch.
    fn stuck(&self, s: &State) -> bool {
        let idle = !s.stopping && s.held.is_empty() && s.in_flight.is_empty();
        let there = s.early.iter().any(|&(number, _)| number == s.wanted) || !s.ready.is_empty();
        let working = s.threads.iter().any(|t| match t {
            Thread::Waiting => !s.free.is_empty() || self.number_first,
            Thread::Filling(u8::MAX, _) => !s.free.is_empty(),
            Thread::HasSlot(_) | Thread::Filling(..) => true,
            Thread::Ended => false,
        });
        idle && !there && !working
    }

    /// Visits all states; returns their number, or an error of one of them.
    fn visit_all(&self) -> Result<usize, String> {
        let start = self.start();
        let mut seen = HashSet::from([start.clone()]);
        let mut open = VecDeque::from([start]);
        let mut ended = 0;
        while let Some(state) = open.pop_front() {
            self.check(&state)?;
            if self.stuck(&state) {
                return Err(format!("the caller waits for ever: {state:?}"));
            }
            let bounded =
                |s: &State| s.wanted <= self.batches && s.next <= self.batches + self.slots as u8;
            let steps = self.steps(&state);
            if steps.is_empty() && !state.gone {
                return Err(format!(
                    "no step is possible, and the loader has not ended: {state:?}"
                ));
            }
            ended += usize::from(state.gone);
            for next in steps.into_iter().filter(bounded) {
                if seen.insert(next.clone()) {
                    open.push_back(next);
                }
            }
        }
        if ended == 0 {
            return Err("the loader never ends".into());
        }
        Ok(seen.len())
    }
}

fn ring(slots: usize, threads: usize, batches: u8) -> Ring {
    Ring {
        slots,
        threads,
        batches,
        number_first: false,
        frees_in_flight: false,
    }
}

#[test]
fn no_interleaving_breaks_the_ring() {
    for (slots, threads, batches) in [
        (1, 1, 4),
        (1, 3, 4),
        (2, 2, 4),
        (2, 3, 3),
        (3, 2, 3),
        (3, 3, 3),
    ] {
        let states = ring(slots, threads, batches)
            .visit_all()
            .unwrap_or_else(|e| panic!("{slots} slots, {threads} threads: {e}"));
        println!("{slots} slots, {threads} threads, {batches} batches: {states} states");
        assert!(states > 30);
    }
}

#[test]
fn faulty_rings_are_detected() {
    // A thread that takes its number before its slot can starve the thread that the caller waits
    // for.
    let starving = Ring {
        number_first: true,
        ..ring(1, 2, 3)
    };
    assert!(starving.visit_all().unwrap_err().contains("for ever"));
    let careless = Ring {
        frees_in_flight: true,
        ..ring(2, 1, 3)
    };
    assert!(careless.visit_all().unwrap_err().contains("two places"));
}
