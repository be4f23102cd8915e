//! The sum of the gradients of all micro-batches of an iteration, added in the order of the
//! micro-batches whatever the number of ranks. Depends on the exchange of messages and the parts
//! that ranks own. Promises the bits of one process that adds whole gradients one after another.
//!
//! An iteration has one round for each micro-batch of a rank; in round `j`, rank `r` of `R` computes
//! micro-batch `j R + r`. Every rank owns an equal part of the parameters: it receives that part of
//! all gradients, adds them in order, and sends the sums to all after the last round. So a rank
//! sends and receives the bytes of one gradient for each round, and once more for the sums. Small
//! networks, where latency counts, are sent whole: every rank adds everything, and the exchange of
//! the sums is left out.

use super::{Exchange, Mail};
use crate::support::parts::{MOST_WHOLE, Parts};
use anyhow::{Result, ensure};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// Values of the [`Words`] in front of a message.
const WORDS: usize = size_of::<Words>() / 4;

/// What a rank says to all others with every gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Words {
    /// Number of the round since the training began, so that ranks which are not at the same place
    /// are noticed.
    pub round: u64,
    /// 1 if the rank was asked to stop.
    pub stop: u64,
    /// Loss of the micro-batch.
    pub loss: f64,
    /// Seconds that the rank waited for data since its last words.
    pub data_wait: f64,
    /// Seconds that it spent in exchanges since its last words.
    pub exchanged: f64,
    /// Seconds that it spent copying and adding gradients since its last words.
    pub packed: f64,
    /// Samples whose damaged record was replaced, since the rank began.
    pub substituted: u64,
}

/// The exchange and the sum of gradients.
pub struct OrderedSum {
    rank: usize,
    ranks: usize,
    parts: Parts,
    /// For each message its words and its values; all messages are one if gradients are sent whole.
    out: Vec<f32>,
    into: Vec<f32>,
    /// Sums of this rank's values.
    sums: Vec<f32>,
    rounds: u64,
    /// Time spent in exchanges, seconds.
    pub exchanged: f64,
}

impl OrderedSum {
    /// Sums of `values` gradients over all ranks of `exchange`.
    pub fn new(exchange: &dyn Exchange, values: usize) -> OrderedSum {
        OrderedSum::with_limit(exchange, values, MOST_WHOLE)
    }

    fn with_limit(exchange: &dyn Exchange, values: usize, most_whole: usize) -> OrderedSum {
        let (rank, ranks) = (exchange.rank(), exchange.ranks());
        let parts = Parts::with_limit(ranks, values, most_whole);
        let messages = if parts.whole() { 1 } else { ranks };
        OrderedSum {
            rank,
            ranks,
            parts,
            out: vec![0.0; messages * WORDS + values],
            into: vec![0.0; ranks * (WORDS + parts.longest())],
            sums: vec![0.0; parts.owned(rank).len()],
            rounds: 0,
            exchanged: 0.0,
        }
    }

    /// Bytes that a rank of `ranks` takes for `values` gradients.
    pub fn bytes(ranks: usize, values: usize) -> u64 {
        let parts = Parts::new(ranks, values);
        let messages = if parts.whole() { 1 } else { ranks };
        let all = messages * WORDS + values + ranks * (WORDS + parts.longest()) + parts.longest();
        all as u64 * 4
    }

    /// Where the message to a rank begins in `out`.
    fn message(&self, owner: usize) -> Range<usize> {
        if self.parts.whole() {
            return 0..self.out.len();
        }
        let owned = self.parts.owned(owner);
        let start = owner * WORDS + owned.start;
        start..start + WORDS + owned.len()
    }

    /// Where the message from a rank is placed in `into`.
    fn place(&self, from: usize) -> Range<usize> {
        let length = WORDS + self.sums.len();
        from * length..(from + 1) * length
    }

    /// Exchanges the gradients of one round and adds them; `first` is the first round of an
    /// iteration. `read` copies gradients from a value on. Returns the words of all ranks.
    ///
    /// # Errors
    /// Those of `read` and of the exchange; the ranks are not at the same round.
    pub fn round(
        &mut self,
        exchange: &dyn Exchange,
        first: bool,
        words: Words,
        read: &mut dyn FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<Vec<Words>> {
        self.rounds += 1;
        let words = Words {
            round: self.rounds,
            ..words
        };
        for owner in 0..if self.parts.whole() { 1 } else { self.ranks } {
            let (message, owned) = (self.message(owner), self.parts.owned(owner));
            let (head, values) = self.out[message].split_at_mut(WORDS);
            head.copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&words)));
            read(owned.start, values)?;
        }
        let others = || (0..self.ranks).filter(|&rank| rank != self.rank);
        let sends = others().map(|rank| (rank, self.message(rank))).collect();
        let receives = others().map(|rank| (rank, self.place(rank))).collect();
        self.send(exchange, sends, receives)?;
        // This rank's own message, which was not sent.
        let (message, place) = (self.message(self.rank), self.place(self.rank));
        let (out, into) = (&self.out, &mut self.into);
        into[place].copy_from_slice(&out[message]);
        let mut all = Vec::new();
        for from in 0..self.ranks {
            let place = self.place(from);
            let (head, values) = self.into[place].split_at(WORDS);
            all.push(bytemuck::pod_read_unaligned::<Words>(bytemuck::cast_slice(
                head,
            )));
            if first && from == 0 {
                self.sums.copy_from_slice(values);
            } else {
                let sums = self.sums.iter_mut().zip(values);
                sums.for_each(|(sum, value)| *sum += value);
            }
        }
        ensure!(
            all.iter().all(|other| other.round == self.rounds),
            "the ranks are not at the same iteration; this is a fault of the program"
        );
        Ok(all)
    }

    /// Gives the sums of the iteration to `write`, in parts, each from a value on.
    ///
    /// # Errors
    /// Those of `write` and of the exchange.
    pub fn finish(
        &mut self,
        exchange: &dyn Exchange,
        write: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        if self.parts.whole() {
            return write(0, &self.sums);
        }
        let others = || (0..self.ranks).filter(|&rank| rank != self.rank);
        let own = 0..self.sums.len();
        self.out[own.clone()].copy_from_slice(&self.sums);
        let sends = others().map(|rank| (rank, own.clone())).collect();
        // The sums of all ranks take as many values as the gradients, for which there is room.
        let receives = others()
            .map(|rank| (rank, self.parts.owned(rank)))
            .collect();
        self.send(exchange, sends, receives)?;
        for rank in 0..self.ranks {
            let owned = self.parts.owned(rank);
            let sums = if rank == self.rank {
                &self.sums[..]
            } else {
                &self.into[owned.clone()]
            };
            write(owned.start, sums)?;
        }
        Ok(())
    }

    fn send(
        &mut self,
        exchange: &dyn Exchange,
        sends: Vec<(usize, Range<usize>)>,
        receives: Vec<(usize, Range<usize>)>,
    ) -> Result<()> {
        let began = std::time::Instant::now();
        let mail = exchange.exchange(Mail {
            out: std::mem::take(&mut self.out),
            sends,
            into: std::mem::take(&mut self.into),
            receives,
        })?;
        (self.out, self.into) = (mail.out, mail.into);
        self.exchanged += began.elapsed().as_secs_f64();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::rng::Rng;
    use crossbeam_channel::{Receiver, Sender, unbounded};

    /// Ranks as threads of one process.
    struct Threads {
        rank: usize,
        /// To each rank, and from each rank.
        to: Vec<Sender<Vec<f32>>>,
        from: Vec<Receiver<Vec<f32>>>,
    }

    impl Exchange for Threads {
        fn rank(&self) -> usize {
            self.rank
        }

        fn ranks(&self) -> usize {
            self.to.len()
        }

        fn exchange(&self, mut mail: Mail) -> Result<Mail> {
            for (rank, range) in &mail.sends {
                self.to[*rank].send(mail.out[range.clone()].to_vec())?;
            }
            for (rank, range) in &mail.receives {
                let values = self.from[*rank].recv()?;
                mail.into[range.clone()].copy_from_slice(&values);
            }
            Ok(mail)
        }
    }

    fn threads(ranks: usize) -> Vec<Threads> {
        let mut all: Vec<Threads> = (0..ranks)
            .map(|rank| Threads {
                rank,
                to: Vec::new(),
                from: Vec::new(),
            })
            .collect();
        for to in 0..ranks {
            for from in 0..ranks {
                let (sender, receiver) = unbounded();
                all[from].to.push(sender);
                all[to].from.push(receiver);
            }
        }
        all
    }

    /// The gradient of a micro-batch, of very different sizes.
    fn gradient(micro: usize, values: usize) -> Vec<f32> {
        let mut rng = Rng::new(&[micro as u64]);
        let value = |_| (rng.unit() - 0.5) as f32 * 10f32.powi(rng.below(9) as i32);
        (0..values).map(value).collect()
    }

    /// The sums that each rank writes over two iterations of `micros` micro-batches.
    fn sums(ranks: usize, micros: usize, values: usize, most_whole: usize) -> Vec<Vec<f32>> {
        std::thread::scope(|scope| {
            let started: Vec<_> = threads(ranks)
                .into_iter()
                .map(|exchange| {
                    scope.spawn(move || {
                        let mut sum = OrderedSum::with_limit(&exchange, values, most_whole);
                        let mut result = vec![0.0; values];
                        for iteration in 0..2 {
                            for round in 0..micros / ranks {
                                let micro = iteration * micros + round * ranks + exchange.rank;
                                let own = gradient(micro, values);
                                let words = Words {
                                    loss: micro as f64,
                                    ..Words::default()
                                };
                                let all = sum
                                    .round(&exchange, round == 0, words, &mut |start, out| {
                                        out.copy_from_slice(&own[start..start + out.len()]);
                                        Ok(())
                                    })
                                    .unwrap();
                                let losses: Vec<f64> = all.iter().map(|w| w.loss).collect();
                                let first = (micro - exchange.rank) as f64;
                                let expected = (0..ranks).map(|rank| first + rank as f64);
                                assert!(losses.into_iter().eq(expected));
                            }
                            sum.finish(&exchange, &mut |start, part| {
                                result[start..start + part.len()].copy_from_slice(part);
                                Ok(())
                            })
                            .unwrap();
                        }
                        result
                    })
                })
                .collect();
            started.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    #[test]
    fn sums_have_the_bits_of_adding_whole_gradients_in_order() {
        let micros = 12;
        for values in [1, 5, 997] {
            let mut expected = gradient(micros, values);
            for micro in micros + 1..2 * micros {
                let gradient = gradient(micro, values);
                expected.iter_mut().zip(gradient).for_each(|(s, g)| *s += g);
            }
            for ranks in [1, 2, 3, 4, 6, 12] {
                for most_whole in [0, usize::MAX] {
                    for found in sums(ranks, micros, values, most_whole) {
                        let same = found
                            .iter()
                            .zip(&expected)
                            .all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{ranks} ranks, {values} values, {most_whole}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_memory_is_known_before() {
        for ranks in [2, 3, 8] {
            for values in [16_780, 3_000_001] {
                for exchange in &threads(ranks) {
                    let sum = OrderedSum::new(exchange, values);
                    let held = sum.out.len() + sum.into.len() + sum.sums.len();
                    let bytes = OrderedSum::bytes(ranks, values);
                    assert!(held as u64 * 4 <= bytes && bytes < held as u64 * 4 + 4096);
                }
            }
        }
    }

    #[test]
    fn ranks_at_different_rounds_are_noticed() {
        let pair = threads(2);
        std::thread::scope(|scope| {
            for exchange in &pair {
                scope.spawn(move || {
                    let mut sum = OrderedSum::new(exchange, 3);
                    sum.rounds = exchange.rank as u64;
                    let words = Words::default();
                    let outcome = sum.round(exchange, true, words, &mut |_, _| Ok(()));
                    assert!(outcome.is_err());
                });
            }
        });
    }
}
