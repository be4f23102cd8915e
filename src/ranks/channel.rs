//! What carries messages between ranks: one trait, which MPI and the store of torchrun implement.
//! Depends on nothing. Promises that memory which a channel may still use is never freed.

use anyhow::{Result, ensure};
use std::ops::Range;

/// Messages to and from other ranks, and the memory that they are in.
#[derive(Debug, Default, PartialEq)]
pub struct Mail {
    /// Memory of the messages that are sent.
    pub out: Vec<f32>,
    /// For each message that is sent: the rank it goes to and its values in `out`. Several may send
    /// the same values.
    pub sends: Vec<(usize, Range<usize>)>,
    /// Memory of the messages that are received.
    pub into: Vec<f32>,
    /// For each message that is received: the rank it comes from and its place in `into`. The places
    /// are disjoint, and each has the length that the sender gave.
    pub receives: Vec<(usize, Range<usize>)>,
}

impl Mail {
    /// Refuses ranges outside the memory, and places that overlap.
    pub(super) fn check(&self) -> Result<()> {
        let inside = |list: &[(usize, Range<usize>)], length: usize| {
            list.iter()
                .all(|(_, range)| range.start <= range.end && range.end <= length)
        };
        let mut places: Vec<_> = self.receives.iter().map(|(_, range)| range).collect();
        places.sort_by_key(|range| range.start);
        ensure!(
            inside(&self.sends, self.out.len())
                && inside(&self.receives, self.into.len())
                && places.windows(2).all(|pair| pair[0].end <= pair[1].start),
            "messages of ranks outside their memory"
        );
        Ok(())
    }
}

/// What a message is for. Messages between two ranks arrive in order among those of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tag {
    /// A message of the training, which waits for it.
    Exchange,
    /// A word on the state of a rank, for which nobody waits.
    Word,
}

/// Messages on their way. Dropping it before all have arrived leaks their memory, because the channel
/// may still use it.
pub struct Flight {
    pub(super) mail: Option<Mail>,
    /// What is not complete, in numbers of the channel.
    pub(super) requests: Vec<usize>,
}

impl Flight {
    /// The memory, after [`Channel::test`] has returned true.
    pub fn landed(mut self) -> Option<Mail> {
        self.mail.take().filter(|_| self.requests.is_empty())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.requests.is_empty() {
            std::mem::forget(self.mail.take());
        }
    }
}

/// A way for messages between ranks that is open. All calls must come from the thread that opened it.
pub trait Channel {
    /// Number of this rank, from 0.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn size(&self) -> usize;
    /// Name and version of what carries the messages, and where it is.
    fn description(&self) -> String;
    /// Starts to send and to receive; messages between two ranks with one tag arrive in order.
    ///
    /// # Errors
    /// The channel refuses a message.
    fn start(&mut self, mail: Mail, tag: Tag) -> Result<Flight>;
    /// Whether all messages have arrived. Has to be called for messages to make progress.
    ///
    /// # Errors
    /// The channel reports an error.
    fn test(&mut self, flight: &mut Flight) -> Result<bool>;
    /// Ends the channel; every rank has to do so. Nothing of it may be used afterwards.
    fn finalize(&mut self);
    /// Makes the launcher end all ranks; usually does not return.
    fn abort(&mut self, code: i32);
}

/// Parts of a range with at most `most` values each.
pub(super) fn parts(range: &Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    let starts = range.clone().step_by(most);
    starts.map(move |start| start..(start + most).min(end))
}
