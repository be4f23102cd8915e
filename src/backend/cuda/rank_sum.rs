//! The sum of the gradients of several ranks in the memory of their cards, in the order of the
//! micro-batches: what `ranks::OrderedSum` does on the host. Depends on NCCL, the device and the
//! launches. Promises that a wait ends when another rank is in trouble, and that a failed exchange is
//! aborted.
//!
//! Everything is queued on the main stream: sends and receives after the kernels of a micro-batch,
//! then the kernel that adds, then the next micro-batch. So memory needs no second copy, and nothing
//! is read before it is complete.

use super::CudaBackend;
use super::arguments::{Address, Pointer};
use super::constants::BLOCK_THREADS;
use super::device::{Device, Memory};
use super::driver::Call;
use super::launch::{Launch, Shape};
use super::launching::{Start, launch_kernel};
use super::lowering::int;
use super::module::Module;
use super::nccl::{Communicator, Nccl, Transfer};
use super::signatures::{ADD_GRADIENTS, AddGradientsArguments};
use crate::backend::Error;
use crate::plan::BufferId;
use crate::support::parts::Parts;
use anyhow::{Context, Result, bail, ensure};
use crossbeam_channel::{RecvTimeoutError, bounded};
use cudarc::driver::CudaEvent;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a wait asks without sleeping, and then between two questions.
const EAGER: Duration = Duration::from_millis(1);
const NAP: Duration = Duration::from_micros(50);
/// How often a wait for another thread asks whether another rank is in trouble.
const LOOK: Duration = Duration::from_millis(20);
/// How long NCCL may take to end.
const ENDING: Duration = Duration::from_secs(10);

/// Fails if another rank is in trouble.
pub type RankCheck<'a> = &'a dyn Fn() -> Result<()>;

/// What the ranks of a communicator have in common, and which of them this one is.
pub struct Joining<'a> {
    /// The loaded library.
    pub nccl: &'a Arc<Nccl>,
    /// The number of [`Nccl::unique_id`], made by one rank.
    pub id: Vec<u8>,
    /// This rank, from 0.
    pub rank: usize,
    /// The parts that ranks own.
    pub parts: Parts,
    /// How long the ranks may take to connect.
    pub timeout: Duration,
}

/// The sum of gradients over the cards of several ranks.
pub struct RankSum {
    device: Arc<Device>,
    module: Arc<Module>,
    /// Keeps the arena, which the buffers below are in.
    _memory: Arc<Memory>,
    /// Addresses of the buffers of the gradients and of the exchange.
    gradients_at: u64,
    exchange_at: u64,
    gradients: BufferId,
    exchange: BufferId,
    parts: Parts,
    rank: usize,
    /// `None` after a failure.
    communicator: Option<Communicator>,
    queued: CudaEvent,
}

/// Runs something in a thread that may never end, and waits for it for a while.
fn within<T: Send + 'static>(
    limit: Duration,
    check: RankCheck<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (sender, done) = bounded(1);
    let thread = std::thread::Builder::new().name("nccl".into());
    thread
        .spawn(move || drop(sender.send(work())))
        .context("cannot start a thread for NCCL")?;
    let begun = Instant::now();
    loop {
        match done.recv_timeout(LOOK) {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Timeout) if begun.elapsed() < limit => check()?,
            Err(_) => return Ok(None),
        }
    }
}

/// Where in the memory of the exchange the gradients of the other rank number `slot` are, values:
/// after the sums.
fn received(parts: Parts, slot: usize) -> usize {
    (1 + slot) * parts.stride()
}

/// The launch that adds the gradients of a round at a rank; `None` where it owns no values. `buffers`:
/// the gradients, and the memory of the exchange, f32 `[parts.ranks()][parts.stride()]`, which has the
/// sums and then what the other ranks have sent, in their order. `first` and `last` are the rounds of an
/// iteration; the last one writes the sums to where the rank's own gradients were.
///
/// # Errors
/// There are more values than a kernel counts.
pub fn add_gradients(
    (gradients, exchange): (BufferId, BufferId),
    parts: Parts,
    rank: usize,
    (first, last): (bool, bool),
) -> Result<Option<Launch>> {
    let values = parts.owned(rank);
    if values.is_empty() {
        return Ok(None);
    }
    let own = Address::new(gradients, 4 * values.start as u64);
    let sums = Address::new(exchange, 0);
    let arguments = AddGradientsArguments {
        own,
        received: Address::new(exchange, 4 * received(parts, 0) as u64),
        sums,
        out: if last { own } else { sums },
        count: int(values.len())?,
        stride: int(parts.stride())?,
        ranks: int(parts.ranks())?,
        rank: int(rank)?,
        first: i32::from(first),
    };
    let blocks = Shape::of(values.len().div_ceil(BLOCK_THREADS), 0);
    Launch::new(None, &ADD_GRADIENTS, false, blocks, arguments).map(Some)
}

impl RankSum {
    /// Connects the card of a backend with those of the other ranks; returns when all have joined.
    ///
    /// # Errors
    /// The plan has no memory for the exchange, NCCL reports an error or takes too long, or `check`
    /// fails meanwhile.
    pub fn join(
        backend: &CudaBackend,
        joining: Joining<'_>,
        check: RankCheck<'_>,
    ) -> Result<RankSum> {
        let plan = &backend.plan;
        let no_memory = || Error::Misuse("the plan has no memory for an exchange".into());
        let gradients = plan.ports.gradients.ok_or_else(no_memory)?;
        let exchange = plan.ports.exchange.ok_or_else(no_memory)?;
        let (parts, rank) = (joining.parts, joining.rank);
        let needed = [
            (gradients, parts.values()),
            (exchange, parts.device_values()),
        ];
        ensure!(
            needed
                .iter()
                .all(|(id, values)| plan.buffer(*id).bytes >= *values as u64 * 4),
            no_memory()
        );
        let device = backend.device.clone();
        backend.module.function(ADD_GRADIENTS.name)?;
        let (nccl, id, bound) = (joining.nccl.clone(), joining.id, device.clone());
        let joined = within(joining.timeout, check, move || {
            bound.bind()?;
            nccl.join(&id, rank, parts.ranks())
        })?;
        let Some(communicator) = joined else {
            bail!(
                "NCCL has not connected the cards of {} ranks within {} s (--rank-timeout): the hosts cannot reach each other in the way that NCCL chose; \
                 NCCL_DEBUG=INFO shows which, NCCL_SOCKET_IFNAME chooses another network, and PARAGON_NCCL=off sums gradients in host memory",
                parts.ranks(),
                joining.timeout.as_secs()
            )
        };
        let address = |id: BufferId| backend.base + plan.buffer(id).offset;
        Ok(RankSum {
            module: backend.module.clone(),
            _memory: backend.memory.clone(),
            gradients_at: address(gradients),
            exchange_at: address(exchange),
            gradients,
            exchange,
            parts,
            rank,
            communicator: Some(communicator?),
            queued: device.event()?,
            device,
        })
    }

    /// Waits until everything that was queued on the main stream is done.
    ///
    /// # Errors
    /// The device or NCCL fails, or `check` does; the exchange is then aborted.
    pub fn wait(&mut self, check: RankCheck<'_>) -> Result<()> {
        let waited = self.wait_for_all(check);
        self.or_abort(waited)
    }

    fn wait_for_all(&self, check: RankCheck<'_>) -> Result<()> {
        self.device.bind()?;
        self.queued
            .record(&self.device.compute)
            .call("mark an exchange")?;
        let begun = Instant::now();
        while !self.queued.try_is_complete().call("wait for an exchange")? {
            self.communicator()?.state()?;
            check()?;
            if begun.elapsed() < EAGER {
                std::thread::yield_now();
            } else {
                std::thread::sleep(NAP);
            }
        }
        Ok(())
    }

    /// Queues the exchange of the gradients of a round, and their sum; `first` and `last` are the
    /// rounds of an iteration. After the last one, [`RankSum::gather`] completes the gradients.
    ///
    /// # Errors
    /// The device or NCCL refuses; the exchange is then aborted.
    pub fn round(&mut self, first: bool, last: bool) -> Result<()> {
        let queued = self.queue_round(first, last);
        self.or_abort(queued)
    }

    fn queue_round(&self, first: bool, last: bool) -> Result<()> {
        let sends = self.others().map(|peer| self.part_of(peer, peer));
        let values = self.parts.owned(self.rank).len();
        let receives = self.others().enumerate().map(|(slot, peer)| Transfer {
            peer,
            at: self.exchange_at + 4 * received(self.parts, slot) as u64,
            values,
        });
        self.transfer(sends, receives)?;
        let buffers = (self.gradients, self.exchange);
        let Some(launch) = add_gradients(buffers, self.parts, self.rank, (first, last))? else {
            return Ok(());
        };
        let address = |p: &Pointer| {
            let buffer = if p.buffer == self.gradients {
                self.gradients_at
            } else {
                self.exchange_at
            };
            buffer + p.bytes
        };
        launch_kernel(
            &self.device,
            &self.module,
            &launch,
            address,
            &self.device.compute,
            Start::AfterAll,
        )
        .context("kernel add_gradients")
    }

    /// Queues the exchange of the sums, so that every rank has all of them where its gradients were.
    ///
    /// # Errors
    /// The device or NCCL refuses; the exchange is then aborted.
    pub fn gather(&mut self) -> Result<()> {
        if self.parts.whole() {
            return Ok(());
        }
        let sends = self.others().map(|peer| self.part_of(self.rank, peer));
        let receives = self.others().map(|peer| self.part_of(peer, peer));
        let queued = self.transfer(sends, receives);
        self.or_abort(queued)
    }

    /// The other ranks.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.rank;
        (0..self.parts.ranks()).filter(move |&rank| rank != own)
    }

    /// A message to or from `peer` of the part of the gradients that `owner` owns.
    fn part_of(&self, owner: usize, peer: usize) -> Transfer {
        let owned = self.parts.owned(owner);
        Transfer {
            peer,
            at: self.gradients_at + 4 * owned.start as u64,
            values: owned.len(),
        }
    }

    fn communicator(&self) -> Result<&Communicator> {
        let ended = || Error::Misuse("the exchange of gradients was aborted".into());
        Ok(self.communicator.as_ref().ok_or_else(ended)?)
    }

    /// Queues messages, those of empty parts left out.
    fn transfer(
        &self,
        sends: impl Iterator<Item = Transfer>,
        receives: impl Iterator<Item = Transfer>,
    ) -> Result<()> {
        let sends: Vec<Transfer> = sends.filter(|t| t.values > 0).collect();
        let receives: Vec<Transfer> = receives.filter(|t| t.values > 0).collect();
        if sends.is_empty() && receives.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        let stream = self.device.compute.cu_stream().cast();
        // SAFETY: the ranges are inside buffers whose sizes were checked, in memory that is kept;
        // what is received goes to parts of other ranks, or to a place for each of them
        unsafe { self.communicator()?.exchange(stream, &sends, &receives) }
    }

    /// Ends the connection, after the last exchange is done.
    pub fn close(mut self) {
        self.end(Communicator::close);
    }

    /// Aborts the exchange after an error, so that the work on the stream ends.
    fn or_abort(&mut self, outcome: Result<()>) -> Result<()> {
        if outcome.is_err() {
            self.end(Communicator::abort);
        }
        outcome
    }

    /// Ends the communicator in a thread, because NCCL may wait for other ranks.
    fn end(&mut self, how: fn(Communicator)) {
        if let Some(communicator) = self.communicator.take() {
            let device = self.device.clone();
            let _ = within(ENDING, &|| Ok(()), move || {
                let _ = device.bind();
                how(communicator);
            });
        }
    }
}

impl Drop for RankSum {
    fn drop(&mut self) {
        self.end(Communicator::abort);
    }
}
