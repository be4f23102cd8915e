//! The store of torchrun's agent as the channel of the ranks: a message is a key, which its receiver
//! removes. Depends on `client`, `channel` and `launcher`. Promises that ranks of different starts
//! never hear each other, that the store holds a bounded number of messages, and that no wait is without
//! a bound.
//!
//! The keys of a message are `paragon/SESSION/TAG/FROM/TO/NUMBER`, one for each piece of at most 1 MiB.
//! torchrun's agents count restarts separately, and the store outlives them. So rank 0 makes a session
//! with a name of its own, and tells it to every rank that answers in this session
//! ([`Store::join`]).
//!
//! For the messages of an exchange a second connection waits, because the store answers nothing else
//! on a connection that waits. Words are asked for from time to time.

mod client;

use super::channel::{Channel, Flight, Mail, Tag, parts};
use super::launcher::Launcher;
use anyhow::{Context, Result, bail, ensure};
use client::{Answer, Connection, MOST_BYTES, Query, READY};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Most bytes that are queued for the store, and most bytes of values that are asked of it at once.
const WINDOW_BYTES: usize = 4 * MOST_BYTES;
/// A word is sent when its receiver has taken the one that came so many before it.
const WINDOW_WORDS: u64 = 4;
/// Shortest time between two questions for the word of a rank; so many ranks add up to one millisecond
/// for each.
const LEAST_POLL: Duration = Duration::from_millis(50);
/// Shortest time between two looks at the connections.
const PAUSE: Duration = Duration::from_micros(20);
/// Time between two questions while ranks join.
const NAP: Duration = Duration::from_millis(10);
/// How long the end of the channel waits for the store.
const FINALIZE: Duration = Duration::from_secs(2);
/// How long [`Channel::abort`] lets the process end by itself.
const PARTING: Duration = Duration::from_millis(500);

/// What the answer to a question is for.
enum Purpose {
    /// Nothing waits for it.
    None,
    /// Whether the next message of this flight is there.
    Here(usize),
    /// The next value of this flight.
    Value(usize),
    /// Whether the receiver has taken an earlier word than that of this flight.
    Taken(usize),
}

/// A piece of a message.
struct Piece {
    key: String,
    range: Range<usize>,
}

/// A question that is asked from time to time.
#[derive(Default)]
struct Poll {
    asked: bool,
    next: Option<Instant>,
}

impl Poll {
    /// Whether to ask now.
    fn is_due(&mut self) -> bool {
        let due = !self.asked && self.next.is_none_or(|next| Instant::now() >= next);
        self.asked |= due;
        due
    }

    /// After an answer: when to ask again.
    fn again(&mut self, after: Duration) {
        self.asked = false;
        self.next = Some(Instant::now() + after);
    }
}

/// Messages on their way.
struct Progress {
    tag: Tag,
    /// Pieces that are not in the queue yet.
    sends: VecDeque<Piece>,
    /// Pieces that have not been asked for, the first of which is in the store if `here`.
    receives: VecDeque<Piece>,
    here: bool,
    poll: Poll,
    /// Pieces that were asked for, and their values.
    asked: VecDeque<Range<usize>>,
    values: VecDeque<(Range<usize>, Vec<u8>)>,
    /// Words that the receivers must have taken before those of this flight count as sent, and whether
    /// they must (otherwise the question only shows that the store has the word).
    earlier: VecDeque<(String, bool)>,
}

impl Progress {
    fn is_complete(&self) -> bool {
        self.sends.is_empty()
            && self.receives.is_empty()
            && self.asked.is_empty()
            && self.values.is_empty()
            && self.earlier.is_empty()
    }
}

/// An open channel over the store.
pub(super) struct Store {
    rank: usize,
    size: usize,
    /// `host:port`.
    place: String,
    session: String,
    main: Connection<Purpose>,
    /// Waits for the messages of one exchange: the number of its flight.
    waiting: Connection<usize>,
    waits: bool,
    flights: HashMap<usize, Progress>,
    last_flight: usize,
    /// How many pieces were sent to, and asked for from, each rank.
    sent: HashMap<(Tag, usize), u64>,
    received: HashMap<(Tag, usize), u64>,
    poll: Duration,
    looked: Instant,
}

/// Where the store is, from a lookup of environment variables.
///
/// # Errors
/// torchrun has no store, or does not say where it is.
fn address(variable: &dyn Fn(&str) -> Option<String>) -> Result<(String, u16)> {
    let shared = variable("TORCHELASTIC_USE_AGENT_STORE");
    if shared.as_deref() != Some("True") {
        let found = shared.map_or("not set".into(), |value| format!("'{value}'"));
        bail!(
            "ranks that torchrun starts reach each other through the store of its agent, and there is none for them \
             (TORCHELASTIC_USE_AGENT_STORE is {found}, not 'True'). Use the torchrun of PyTorch 2.5 or newer, with --standalone, --rdzv-backend c10d \
             or --master-addr and --master-port, and without TORCH_DISABLE_SHARE_RDZV_TCP_STORE; or start the ranks with mpirun or srun"
        );
    }
    let text = |name: &str| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.with_context(|| format!("torchrun has not set {name}, where its store is"))
    };
    let (host, port) = (text("MASTER_ADDR")?, text("MASTER_PORT")?);
    let number = port.trim().parse();
    let number = number.with_context(|| format!("MASTER_PORT is '{port}', which is no port"))?;
    Ok((host, number))
}

/// Connects to the store of torchrun's agent; returns when all ranks have done so. `timeout` is the
/// longest time that this takes, and that the store may be silent later.
///
/// # Errors
/// There is no store, it cannot be reached or is none, or a rank does not come.
pub(super) fn open(launcher: Launcher, timeout: Duration) -> Result<Box<dyn Channel>> {
    let size = launcher.size.context("torchrun has not set WORLD_SIZE")?;
    ensure!(
        launcher.rank < size,
        "RANK is {}, with a WORLD_SIZE of {size}",
        launcher.rank
    );
    let (host, port) = address(&|name| std::env::var(name).ok())?;
    Ok(Box::new(Store::connect(
        launcher.rank,
        size,
        (&host, port),
        timeout,
    )?))
}

/// A name that no other process has.
fn unique() -> String {
    let random = std::hash::RandomState::new().build_hasher().finish();
    format!("{random:016x}-{}", std::process::id())
}

impl Store {
    fn connect(
        rank: usize,
        size: usize,
        (host, port): (&str, u16),
        timeout: Duration,
    ) -> Result<Store> {
        let until = Instant::now() + timeout;
        let milliseconds = Duration::from_millis(size as u64);
        let mut store = Store {
            rank,
            size,
            place: format!("{host}:{port}"),
            session: String::new(),
            main: Connection::open(host, port, timeout, Purpose::None)?,
            waiting: Connection::open(host, port, timeout, 0)?,
            waits: false,
            flights: HashMap::new(),
            last_flight: 0,
            sent: HashMap::new(),
            received: HashMap::new(),
            poll: LEAST_POLL.max(milliseconds),
            looked: Instant::now(),
        };
        store.session = store.join(until)?;
        Ok(store)
    }

    /// Agrees with rank 0 on a session. Every rank writes a unique name under its number, which may
    /// replace that of an earlier start. Rank 0 answers each name that it finds under a key with this
    /// name, until the rank has answered in the session.
    fn join(&mut self, until: Instant) -> Result<String> {
        let name = unique();
        if self.rank == 0 {
            self.welcome(&name, until)?;
            return Ok(name);
        }
        let answer = format!("paragon/welcome/{name}");
        self.set(&format!("paragon/hello/{}", self.rank), name.as_bytes());
        while !self.is_there(&answer)? {
            ensure!(
                Instant::now() < until,
                "rank 0 has not come to torchrun's store at {} in time (--rank-timeout): it has ended, or was not started as a rank of this job",
                self.place
            );
            std::thread::sleep(NAP);
        }
        let session = self.get(&answer)?;
        self.delete(&answer)?;
        let key = format!("paragon/{session}/here/{}", self.rank);
        self.set(&key, b"1");
        self.is_there(&key)?; // so that the store has it
        Ok(session)
    }

    /// Tells all other ranks the name of the session.
    fn welcome(&mut self, session: &str, until: Instant) -> Result<()> {
        let mut missing: Vec<(usize, String)> =
            (1..self.size).map(|rank| (rank, String::new())).collect();
        while !missing.is_empty() {
            let mut left = Vec::new();
            for (rank, mut answered) in missing {
                let hello = format!("paragon/hello/{rank}");
                let here = format!("paragon/{session}/here/{rank}");
                if self.is_there(&here)? {
                    self.delete(&here)?;
                    self.delete(&hello)?;
                    continue;
                }
                if self.is_there(&hello)? {
                    let name = self.get(&hello)?;
                    if name != answered {
                        self.set(&format!("paragon/welcome/{name}"), session.as_bytes());
                        answered = name;
                    }
                }
                left.push((rank, answered));
            }
            missing = left;
            let names: Vec<String> = missing.iter().map(|(rank, _)| rank.to_string()).collect();
            ensure!(
                names.is_empty() || Instant::now() < until,
                "these ranks have not come to torchrun's store at {} in time (--rank-timeout): {}; they have ended, or their hosts cannot reach it",
                self.place,
                names.join(", ")
            );
            if !names.is_empty() {
                std::thread::sleep(NAP);
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &[u8]) {
        self.main.ask(&Query::Set(key, value), None);
    }

    /// The answer to a question, waited for. Only before the first message.
    fn demand(&mut self, query: &Query<'_>) -> Result<Answer> {
        self.main.ask(query, Some(Purpose::None));
        loop {
            // A store that says nothing is an error in the end.
            let until = Instant::now() + NAP;
            if let Some((_, answer)) = self.main.answer_until(until)? {
                return Ok(answer);
            }
        }
    }

    fn is_there(&mut self, key: &str) -> Result<bool> {
        Ok(self.demand(&Query::Check(key))? == Answer::Byte(READY))
    }

    fn get(&mut self, key: &str) -> Result<String> {
        match self.demand(&Query::Get(key))? {
            Answer::Value(text) => Ok(String::from_utf8(text)?),
            other => bail!("torchrun's store answers {other:?} to a question for a value"),
        }
    }

    fn delete(&mut self, key: &str) -> Result<()> {
        self.demand(&Query::Delete(key)).map(drop)
    }

    /// The key of a message.
    fn key(&self, tag: Tag, from: usize, to: usize, number: u64) -> String {
        let tag = match tag {
            Tag::Exchange => "exchange",
            Tag::Word => "word",
        };
        format!("paragon/{}/{tag}/{from}/{to}/{number}", self.session)
    }

    /// The pieces of a message to or from a rank, with the next numbers.
    fn pieces(&mut self, tag: Tag, peer: usize, range: &Range<usize>, sends: bool) -> Vec<Piece> {
        let own = self.rank;
        let counts = if sends {
            &mut self.sent
        } else {
            &mut self.received
        };
        let count = counts.entry((tag, peer)).or_default();
        let first = *count;
        let ranges: Vec<_> = parts(range, MOST_BYTES / 4).collect();
        *count += ranges.len() as u64;
        let (from, to) = if sends { (own, peer) } else { (peer, own) };
        (first..)
            .zip(ranges)
            .map(|(number, range)| Piece {
                key: self.key(tag, from, to, number),
                range,
            })
            .collect()
    }

    /// Writes and reads what is possible without waiting.
    fn look(&mut self) -> Result<()> {
        self.looked = Instant::now();
        while let Some((purpose, answer)) = self.main.answer()? {
            self.take(&purpose, answer)?;
        }
        while self.waits
            && let Some((flight, _)) = self.waiting.answer()?
        {
            self.waits = false;
            if let Some(progress) = self.flights.get_mut(&flight) {
                progress.here = true;
            }
        }
        Ok(())
    }

    fn take(&mut self, purpose: &Purpose, answer: Answer) -> Result<()> {
        let (Purpose::Here(number) | Purpose::Value(number) | Purpose::Taken(number)) = purpose
        else {
            return Ok(());
        };
        // Flights that were given up are gone.
        let Some(progress) = self.flights.get_mut(number) else {
            return Ok(());
        };
        match (purpose, answer) {
            (Purpose::Here(_), Answer::Byte(byte)) => {
                progress.here = byte == READY;
                progress.poll.again(self.poll);
            }
            (Purpose::Taken(_), Answer::Byte(byte)) => {
                let must = progress.earlier.front().is_some_and(|(_, must)| *must);
                if !(must && byte == READY) {
                    progress.earlier.pop_front();
                }
                progress.poll.again(self.poll);
            }
            (Purpose::Value(_), Answer::Value(value)) => {
                let range = progress.asked.pop_front().unwrap_or_default();
                ensure!(
                    value.len() == range.len() * 4,
                    "a message of {} bytes came from another rank, where {} were expected",
                    value.len(),
                    range.len() * 4
                );
                progress.values.push_back((range, value));
            }
            (_, other) => bail!("torchrun's store at {} answers {other:?}", self.place),
        }
        Ok(())
    }

    /// Sends and asks for what the windows allow.
    fn advance(&mut self, number: usize, mail: &mut Mail) {
        let Some(progress) = self.flights.get_mut(&number) else {
            return;
        };
        while let Some((range, value)) = progress.values.pop_front() {
            bytemuck::cast_slice_mut(&mut mail.into[range]).copy_from_slice(&value);
        }
        while self.main.queued() < WINDOW_BYTES
            && let Some(piece) = progress.sends.pop_front()
        {
            let value = bytemuck::cast_slice(&mail.out[piece.range]);
            self.main.ask(&Query::Set(&piece.key, value), None);
        }
        if progress.sends.is_empty()
            && let Some((key, _)) = progress.earlier.front()
            && progress.poll.is_due()
        {
            let purpose = Purpose::Taken(number);
            self.main.ask(&Query::Check(key), Some(purpose));
        }
        let asked = |progress: &Progress| -> usize { progress.asked.iter().map(Range::len).sum() };
        while progress.here
            && asked(progress) * 4 < WINDOW_BYTES
            && let Some(piece) = progress.receives.pop_front()
        {
            let purpose = Purpose::Value(number);
            self.main.ask(&Query::Get(&piece.key), Some(purpose));
            let purpose = Purpose::None;
            self.main.ask(&Query::Delete(&piece.key), Some(purpose));
            progress.asked.push_back(piece.range);
            progress.here = progress.tag == Tag::Exchange;
        }
        if progress.tag == Tag::Word
            && !progress.here
            && let Some(piece) = progress.receives.front()
            && progress.poll.is_due()
        {
            let purpose = Purpose::Here(number);
            self.main.ask(&Query::Check(&piece.key), Some(purpose));
        }
    }
}

impl Channel for Store {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn description(&self) -> String {
        format!("the store of torchrun at {}", self.place)
    }

    fn start(&mut self, mail: Mail, tag: Tag) -> Result<Flight> {
        mail.check()?;
        self.last_flight += 1;
        let number = self.last_flight;
        let mut progress = Progress {
            tag,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            here: false,
            poll: Poll::default(),
            asked: VecDeque::new(),
            values: VecDeque::new(),
            earlier: VecDeque::new(),
        };
        for (peer, range) in &mail.sends {
            let pieces = self.pieces(tag, *peer, range, true);
            let next = self.sent[&(tag, *peer)];
            if tag == Tag::Word && next > 0 {
                let last = next - 1;
                let must = last >= WINDOW_WORDS;
                let earlier = if must { last - WINDOW_WORDS } else { last };
                let key = self.key(tag, self.rank, *peer, earlier);
                progress.earlier.push_back((key, must));
            }
            progress.sends.extend(pieces);
        }
        for (peer, range) in &mail.receives {
            let pieces = self.pieces(tag, *peer, range, false);
            progress.receives.extend(pieces);
        }
        if tag == Tag::Exchange && !progress.receives.is_empty() {
            ensure!(!self.waits, "two exchanges of ranks at the same time");
            let keys: Vec<String> = progress.receives.iter().map(|p| p.key.clone()).collect();
            self.waiting.ask(&Query::Wait(&keys), Some(number));
            self.waits = true;
        }
        self.flights.insert(number, progress);
        Ok(Flight {
            mail: Some(mail),
            requests: vec![number],
        })
    }

    fn test(&mut self, flight: &mut Flight) -> Result<bool> {
        let (Some(&number), Some(mail)) = (flight.requests.first(), flight.mail.as_mut()) else {
            return Ok(true);
        };
        if self.looked.elapsed() >= PAUSE {
            self.look()?;
        }
        let queued = self.main.queued();
        self.advance(number, mail);
        if self.main.queued() > queued {
            self.look()?;
        }
        let done = self.flights.get(&number).is_none_or(Progress::is_complete);
        if done {
            self.flights.remove(&number);
            flight.requests.clear();
        }
        Ok(done)
    }

    /// Waits until the store has all that was sent.
    fn finalize(&mut self) {
        let until = Instant::now() + FINALIZE;
        while self.main.is_busy() && Instant::now() < until {
            if self.main.answer_until(Instant::now() + NAP).is_err() {
                return;
            }
        }
    }

    /// torchrun ends the other ranks when one ends with an error code.
    fn abort(&mut self, code: i32) {
        std::thread::sleep(PARTING);
        std::process::exit(code);
    }
}

#[cfg(test)]
mod tests;
