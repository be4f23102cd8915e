//! A run on several ranks: the sum of their gradients, what they agree on in every round, and how
//! long they wait for each other. Depends on `ranks` and on the sum over cards. Promises that every rank updates its
//! parameters from the same bits, which are those of a process that is alone.

use super::cards::untroubled;
use crate::backend::cuda::RankSum;
use crate::backend::{Backend, Error};
use crate::plan::{BufferId, Plan, Ports};
use crate::ranks::{Alone, Exchange, OrderedSum, Ranks, Words};
use crate::train::RanksLine;
use crate::train::fit::adds_whole_gradients;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// This process's share of a run.
pub(super) struct Share<'a> {
    pub exchange: &'a dyn Exchange,
    /// The sum on the host; of no gradients where the cards sum them.
    sum: OrderedSum,
    /// The sum on the cards.
    on_cards: Option<RankSum>,
    gradients: BufferId,
    metrics: BufferId,
    /// Loss of the iteration so far.
    loss: f64,
    /// Seconds spent waiting for data, in exchanges, and copying since the last words.
    data_wait: f64,
    exchanged: f64,
    packed: f64,
    times: Times,
}

/// What a run exchanges gradients with: its ranks. `None` for a process that is alone, unless it adds
/// whole gradients as ranks do.
pub(super) fn exchange<'a>(
    ranks: Option<&'a Ranks>,
    plan: &Plan,
    micro_batches: usize,
) -> Option<&'a dyn Exchange> {
    match ranks {
        Some(ranks) => Some(ranks),
        None if adds_whole_gradients(plan, micro_batches) => Some(&Alone),
        None => None,
    }
}

/// How the ranks went together since the last log line.
#[derive(Default)]
struct Times {
    /// Seconds that each rank waited for data.
    data_wait: Vec<f64>,
    /// Seconds that each rank waited for others.
    gradient_wait: Vec<f64>,
    /// Seconds of the messages themselves.
    exchanged: f64,
    /// Seconds in which this rank copied and added.
    packed: f64,
    /// Samples of each rank, since it began, whose damaged record was replaced.
    substituted: Vec<u64>,
}

/// Number and value of the largest element.
fn largest(values: &[f64]) -> (usize, f64) {
    let all = values.iter().copied().enumerate();
    all.fold(
        (0, 0.0),
        |best, next| if next.1 > best.1 { next } else { best },
    )
}

impl<'a> Share<'a> {
    /// The share of this rank in a run with `trainable` gradients, which the cards sum where
    /// `on_cards` is given.
    ///
    /// # Errors
    /// The plan is not one of a training step.
    pub fn new(
        exchange: &'a dyn Exchange,
        ports: &Ports,
        trainable: usize,
        on_cards: Option<RankSum>,
    ) -> Result<Share<'a>> {
        let of_step = "the plan has no gradients, so it cannot train";
        let on_host = if on_cards.is_some() { 0 } else { trainable };
        Ok(Share {
            exchange,
            sum: OrderedSum::new(exchange, on_host),
            on_cards,
            gradients: ports.gradients.context(of_step)?,
            metrics: ports.metrics.context(of_step)?,
            loss: 0.0,
            data_wait: 0.0,
            exchanged: 0.0,
            packed: 0.0,
            times: Times::default(),
        })
    }

    /// Adds the gradients of a round's micro-batches, one of each rank; `first` and `last` are those
    /// of an iteration. `stop`: this rank was asked to stop. Returns whether any rank was.
    ///
    /// Cards exchange gradients after all ranks have said their words, so that none waits on its card
    /// for one that computes or validates, or that has ended.
    ///
    /// # Errors
    /// Another rank has failed or is lost.
    pub fn round(
        &mut self,
        backend: &mut dyn Backend,
        (first, last): (bool, bool),
        data_wait: f64,
        (stop, substituted): (bool, u64),
    ) -> Result<bool> {
        self.wait_for_card()?;
        let began = Instant::now();
        let before = self.sum.exchanged;
        let mut loss = [0u8; 8];
        backend.read(self.metrics, 0, &mut loss)?;
        self.data_wait += data_wait;
        let words = Words {
            stop: u64::from(stop),
            loss: f64::from_ne_bytes(loss),
            data_wait: std::mem::take(&mut self.data_wait),
            exchanged: std::mem::take(&mut self.exchanged),
            packed: std::mem::take(&mut self.packed),
            substituted,
            ..Words::default()
        };
        let gradients = self.gradients;
        let on_host = self.on_cards.is_none();
        let all = self
            .sum
            .round(self.exchange, first, words, &mut |start, values| {
                if on_host {
                    backend.read(gradients, start * 4, bytemuck::cast_slice_mut(values))?;
                }
                Ok(())
            })?;
        self.count(&all);
        for (rank, words) in all.iter().enumerate() {
            self.loss = if first && rank == 0 {
                words.loss
            } else {
                self.loss + words.loss
            };
        }
        self.pass(began, before);
        let stops = all.iter().any(|words| words.stop != 0);
        if let Some(cards) = self.on_cards.as_mut().filter(|_| !stops) {
            let queued = cards.round(first, last);
            queued.map_err(|error| self.verdict(error))?;
        }
        Ok(stops)
    }

    /// Waits until the card has done everything so far, without waiting for ranks that have ended.
    fn wait_for_card(&mut self) -> Result<()> {
        let Some(cards) = &mut self.on_cards else {
            return Ok(());
        };
        let exchange = self.exchange;
        let waited = cards.wait(&|| untroubled(exchange));
        waited.map_err(|error| self.verdict(error))
    }

    /// The error that names the rank, where NCCL notices before MPI that one has ended.
    fn verdict(&self, error: anyhow::Error) -> anyhow::Error {
        let remote = matches!(error.downcast_ref(), Some(Error::Nccl { remote: true, .. }));
        if !remote {
            return error;
        }
        let until = Instant::now() + self.exchange.timeout() + Duration::from_secs(2);
        while Instant::now() < until {
            if let Err(named) = untroubled(self.exchange) {
                return named;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        error
    }

    /// Ends the connection between the cards, after the last iteration.
    pub fn close(&mut self) {
        if let Some(cards) = self.on_cards.take() {
            cards.close();
        }
    }

    /// Writes the sums of the iteration to where the update reads them.
    ///
    /// # Errors
    /// Another rank has failed or is lost.
    pub fn finish(&mut self, backend: &mut dyn Backend) -> Result<()> {
        let began = Instant::now();
        let before = self.sum.exchanged;
        if let Some(cards) = &mut self.on_cards {
            let gathered = cards.gather();
            gathered.map_err(|error| self.verdict(error))?;
            self.wait_for_card()?;
            self.sum.exchanged += began.elapsed().as_secs_f64();
        } else {
            let gradients = self.gradients;
            self.sum.finish(self.exchange, &mut |start, values| {
                backend.write(gradients, start * 4, bytemuck::cast_slice(values))
            })?;
        }
        backend.write(self.metrics, 0, &self.loss.to_ne_bytes())?;
        self.pass(began, before);
        Ok(())
    }

    /// Makes the other ranks stop, which wait for the next round.
    ///
    /// # Errors
    /// Another rank has failed or is lost.
    pub fn stop_others(&mut self) -> Result<()> {
        let words = Words {
            stop: 1,
            ..Words::default()
        };
        self.sum
            .round(self.exchange, true, words, &mut |_, _| Ok(()))
            .map(drop)
    }

    /// Splits the time since `began` into exchanging and the rest.
    fn pass(&mut self, began: Instant, exchanged_before: f64) {
        let exchanged = self.sum.exchanged - exchanged_before;
        self.exchanged += exchanged;
        self.packed += began.elapsed().as_secs_f64() - exchanged;
    }

    fn count(&mut self, all: &[Words]) {
        let times = &mut self.times;
        times.data_wait.resize(all.len(), 0.0);
        times.gradient_wait.resize(all.len(), 0.0);
        times.substituted = all.iter().map(|words| words.substituted).collect();
        let least = all
            .iter()
            .map(|w| w.exchanged)
            .fold(f64::INFINITY, f64::min);
        for (rank, words) in all.iter().enumerate() {
            times.data_wait[rank] += words.data_wait;
            times.gradient_wait[rank] += words.exchanged - least;
        }
        times.exchanged += least;
        times.packed += all[0].packed;
    }

    /// Samples of all ranks whose damaged record was replaced.
    pub fn substituted(&self) -> u64 {
        self.times.substituted.iter().sum()
    }

    /// The figures for a log line over some seconds and iterations; the next line begins.
    /// `None` for a process that is alone.
    pub fn line(&mut self, seconds: f64, iterations: u64) -> Option<RanksLine> {
        let times = std::mem::take(&mut self.times);
        self.times.substituted = times.substituted;
        let (data_wait_rank, data_wait) = largest(&times.data_wait);
        let (gradient_wait_rank, gradient_wait) = largest(&times.gradient_wait);
        let per_iteration = 1e3 / iterations.max(1) as f64;
        let count = self.exchange.ranks();
        (count > 1).then_some(RanksLine {
            count,
            data_wait: data_wait / seconds,
            data_wait_rank,
            gradient_wait: gradient_wait / seconds,
            gradient_wait_rank,
            exchange_ms: times.exchanged * per_iteration,
            packing_ms: times.packed * per_iteration,
        })
    }
}
