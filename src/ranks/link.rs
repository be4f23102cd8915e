//! The thread that owns the channel between ranks. It exchanges the messages of the training, and once a
//! second a word with every other rank, also while the training computes or validates. So a slow
//! rank is waited for, however long it takes, and one that is dead, stopped or cut off is noticed
//! within the time limit. Depends on `channel`, `word`, `mpi` and `store`. Promises that no wait is without a bound.

use super::channel::{Channel, Flight, Mail, Tag};
use super::error::RankError;
use super::launcher::{Launcher, LauncherKind};
use super::mpi::LIBRARY_VARIABLE;
use super::word::{Failure, Word};
use super::{LEAST_TIMEOUT, MOST_TIMEOUT, mpi, store};
use anyhow::{Context, Result, anyhow, bail, ensure};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Time between two words to a rank.
const WORD_INTERVAL: Duration = Duration::from_secs(1);
/// How long the thread sleeps while nothing is exchanged.
const IDLE: Duration = Duration::from_millis(20);
/// How long it asks without sleeping whether an exchange is complete, and then between two questions.
const EAGER: Duration = Duration::from_micros(500);
const NAP: Duration = Duration::from_micros(50);
/// Longest silence of a rank when the training was asked to stop: launchers that end all ranks because
/// one has died send a signal first, and kill the rest half a minute later.
const STOPPING: Duration = Duration::from_secs(10);
/// How long a rank that failed waits for the others to end by themselves.
const GRACE: Duration = Duration::from_secs(10);
/// How much earlier than the others the rank that prints an error ends the job.
const HEAD_START: Duration = Duration::from_secs(5);
/// How long the channel may take to end.
const FINALIZE: Duration = Duration::from_secs(10);

/// What the training asks of the thread.
enum Request {
    Exchange(Mail, Sender<Result<Mail, RankError>>),
    /// Says to all ranks that this one has failed; returns whether rank 0 said the same text.
    Fail(Failure, Sender<bool>),
    /// Ends the channel together with the other ranks.
    Leave(Sender<Result<(), RankError>>),
}

/// What the thread shows to the training at any moment.
#[derive(Default)]
struct Shown {
    /// Counts the turns of the thread: while it stands still, the channel does not return from a call.
    turns: AtomicU64,
    /// Whether an exchange would fail.
    troubled: AtomicBool,
    /// The ranks with their hosts, once they are known.
    names: Mutex<Vec<String>>,
    /// Whether the training was asked to stop, once it can be.
    stop: OnceLock<Arc<AtomicBool>>,
}

/// The training's end of the thread.
pub(super) struct Link {
    requests: Sender<Request>,
    shown: Arc<Shown>,
    timeout: Duration,
    /// What carries the messages, for the user.
    channel: &'static str,
    pub rank: usize,
    pub size: usize,
    pub description: String,
}

impl Link {
    /// Starts the thread, which loads MPI or connects to the store of torchrun; returns when all ranks have
    /// done so.
    ///
    /// # Errors
    /// The channel cannot be loaded or opened, takes longer than the time limit, or sees another number of
    /// ranks than the launcher.
    pub fn open(launcher: Launcher, timeout: Duration) -> Result<Link> {
        let (requests, incoming) = unbounded();
        let (started, start) = bounded(1);
        let shown = Arc::new(Shown::default());
        let of_thread = shown.clone();
        std::thread::Builder::new()
            .name("ranks".into())
            .spawn(move || match open(launcher, timeout) {
                Err(error) => drop(started.send(Err(error))),
                Ok(channel) => {
                    let facts = (channel.rank(), channel.size(), channel.description());
                    if let Err(error) = check_size(launcher, &facts) {
                        let _ = started.send(Err(error));
                        return;
                    }
                    let _ = started.send(Ok(facts));
                    Post::new(channel, of_thread, timeout).run(&incoming);
                }
            })
            .context("cannot start the thread of the ranks")?;
        let channel = launcher.kind.channel();
        // The store of torchrun keeps the limit itself, and says who is missing.
        let started = match start.recv_timeout(timeout + WORD_INTERVAL) {
            Ok(started) => started?,
            Err(_) => bail!(
                "{channel} has not started within {} s (--rank-timeout): not every rank was started, or the hosts cannot reach each other",
                timeout.as_secs()
            ),
        };
        let (rank, size, description) = started;
        Ok(Link {
            requests,
            shown,
            timeout,
            channel,
            rank,
            size,
            description,
        })
    }

    /// Sets the names of the ranks for messages.
    pub fn set_names(&self, names: Vec<String>) {
        *lock(&self.shown.names) = names;
    }

    /// Says to the other ranks when the training was asked to stop, and sets this flag when one of them
    /// was. So a rank that computes or validates for minutes learns of it within a second or two.
    pub fn share_stop(&self, stop: Arc<AtomicBool>) {
        let _ = self.shown.stop.set(stop);
    }

    /// Exchanges messages with other ranks.
    pub fn exchange(&self, mail: Mail) -> Result<Mail, RankError> {
        let (reply, answer) = bounded(1);
        self.ask(Request::Exchange(mail, reply), &answer)?
    }

    /// Whether the next exchange would fail.
    pub fn is_troubled(&self) -> bool {
        self.shown.troubled.load(Ordering::Relaxed)
    }

    /// Says to all ranks that this one has failed and exits with `code`. Returns whether rank 0 has said the
    /// same.
    pub fn fail(&self, text: String, code: u8) -> bool {
        let (reply, answer) = bounded(1);
        self.ask(Request::Fail(Failure { text, code }, reply), &answer)
            .unwrap_or(false)
    }

    /// Leaves together with the other ranks and ends the channel, which is given up on where it does not
    /// end in time: nothing is lost by then.
    pub fn leave(&self) -> Result<(), RankError> {
        let (reply, answer) = bounded(1);
        let left = self.ask(Request::Leave(reply), &answer)?;
        // After these errors the thread ends the job. Otherwise it drops its end when the channel has
        // ended: a launcher may report a rank that ends meanwhile as failed.
        if !matches!(left, Err(RankError::Lost { .. } | RankError::Library(_))) {
            let _ = answer.recv_timeout(FINALIZE);
        }
        left
    }

    /// Waits for an answer for as long as the thread runs.
    fn ask<T>(&self, request: Request, answer: &Receiver<T>) -> Result<T, RankError> {
        let gone = || RankError::Library("the thread of the ranks has ended".into());
        self.requests.send(request).map_err(|_| gone())?;
        let (mut turns, mut stuck) = (0, 0);
        loop {
            match answer.recv_timeout(WORD_INTERVAL) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                Err(RecvTimeoutError::Timeout) => {
                    let now = self.shown.turns.load(Ordering::Relaxed);
                    stuck = if now == turns { stuck + 1 } else { 0 };
                    turns = now;
                }
            }
            // Counts waits and not seconds: a process that was suspended has made one.
            let most = self.timeout.as_secs() + 1;
            if stuck > most {
                return Err(RankError::Library(format!(
                    "{} has not returned from a call for {most} s",
                    self.channel
                )));
            }
        }
    }
}

/// Opens what carries messages between the ranks of a launcher.
fn open(launcher: Launcher, timeout: Duration) -> Result<Box<dyn Channel>> {
    match launcher.kind {
        LauncherKind::Torchrun => store::open(launcher, timeout),
        kind => mpi::open(kind),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses a library that does not see the ranks that the launcher started: that of another MPI,
/// which makes every process a world of its own.
fn check_size(launcher: Launcher, (rank, size, library): &(usize, usize, String)) -> Result<()> {
    let started = launcher.size.unwrap_or(*size);
    if started == *size && launcher.rank == *rank {
        return Ok(());
    }
    let advice = match launcher.kind {
        LauncherKind::Slurm => {
            "give srun the interface of this MPI (--mpi=pmix or --mpi=pmi2; `srun --mpi=list` shows which there are)".to_string()
        }
        _ => format!(
            "launcher and library must belong to the same MPI; use the mpirun of that library, or name the library of the launcher with \
             {LIBRARY_VARIABLE}=FILE"
        ),
    };
    Err(anyhow!(
        "{} started rank {} of {started}, but {library} sees rank {rank} of {size}: {advice}",
        launcher.kind.name(),
        launcher.rank
    ))
}

/// Another rank, as the thread knows it.
#[derive(Default)]
struct Peer {
    /// The word that is received next; `None` only for this rank itself and after the last word.
    incoming: Option<Flight>,
    /// The word on its way to the peer.
    outgoing: Option<Flight>,
    /// Time since the last word from the peer.
    silence: Duration,
    /// What it said last; `None` before its first word.
    said: Option<Word>,
    /// What it said when it failed.
    failed: Option<Failure>,
    /// Whether this rank's last word, [`Word::Left`], was sent.
    sent_left: bool,
}

impl Peer {
    fn has_left(&self) -> bool {
        matches!(self.said, Some(Word::Left { .. }))
    }
}

/// An exchange in progress.
struct Pending {
    flight: Flight,
    since: Instant,
    reply: Sender<Result<Mail, RankError>>,
}

/// The state of the thread.
struct Post {
    channel: Box<dyn Channel>,
    shown: Arc<Shown>,
    timeout: Duration,
    rank: usize,
    peers: Vec<Peer>,
    /// What this rank's words say.
    word: Word,
    /// The code with which this rank ends the job after a failure.
    code: u8,
    last_turn: Instant,
    last_words: Option<Instant>,
    pending: Option<Pending>,
    /// Why no exchange can succeed any more, and since when.
    trouble: Option<(RankError, Instant)>,
    /// Whether the training knows the trouble and will end by itself.
    trouble_taken: bool,
    /// Whether an exchange was given up, whose messages may still be on their way.
    gave_up: bool,
    /// An answer that waits for rank 0's word, until a moment.
    failing: Option<(Sender<bool>, Instant)>,
    leaving: Option<(Sender<Result<(), RankError>>, Instant)>,
}

impl Post {
    fn new(channel: Box<dyn Channel>, shown: Arc<Shown>, timeout: Duration) -> Post {
        let (rank, size) = (channel.rank(), channel.size());
        Post {
            channel,
            shown,
            timeout,
            rank,
            peers: (0..size).map(|_| Peer::default()).collect(),
            word: Word::Alive,
            code: 1,
            last_turn: Instant::now(),
            last_words: None,
            pending: None,
            trouble: None,
            trouble_taken: false,
            gave_up: false,
            failing: None,
            leaving: None,
        }
    }

    /// Turns until the channel has ended or the training is gone.
    fn run(mut self, requests: &Receiver<Request>) {
        loop {
            self.shown.turns.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = self.words() {
                self.troubled(RankError::Library(format!("{error:#}")));
            }
            self.exchange();
            self.fail();
            if self.leave() {
                return;
            }
            self.end_unattended();
            match self.next_request(requests) {
                Ok(Some(request)) => self.accept(request),
                Ok(None) => {}
                // The process ends without having left, as after a panic.
                Err(()) => return,
            }
        }
    }

    /// Waits for a request as long as an exchange in progress allows.
    fn next_request(&self, requests: &Receiver<Request>) -> Result<Option<Request>, ()> {
        let timeout = match &self.pending {
            Some(pending) if pending.since.elapsed() < EAGER => {
                std::thread::yield_now();
                return Ok(requests.try_recv().ok());
            }
            Some(_) => NAP,
            None if self.leaving.is_some() || self.failing.is_some() => NAP * 20,
            None => IDLE,
        };
        match requests.recv_timeout(timeout) {
            Ok(request) => Ok(Some(request)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) if self.leaving.is_some() => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(()),
        }
    }

    fn accept(&mut self, request: Request) {
        match request {
            Request::Exchange(_, reply) if self.trouble.is_some() => {
                self.trouble_taken = true;
                let error = self.trouble.as_ref().map(|(error, _)| error.clone());
                let _ = error.map(|error| reply.send(Err(error)));
            }
            Request::Exchange(mail, reply) => match self.channel.start(mail, Tag::Exchange) {
                Ok(flight) => {
                    self.pending = Some(Pending {
                        flight,
                        since: Instant::now(),
                        reply,
                    });
                    self.exchange();
                }
                Err(error) => {
                    let error = RankError::Library(format!("{error:#}"));
                    self.trouble_taken = true;
                    self.gave_up = true;
                    self.troubled(error.clone());
                    let _ = reply.send(Err(error));
                }
            },
            Request::Fail(failure, reply) => {
                self.code = failure.code;
                self.word = Word::Failed(failure);
                self.last_words = None;
                self.failing = Some((reply, Instant::now() + WORD_INTERVAL));
            }
            Request::Leave(reply) => self.leaving = Some((reply, Instant::now())),
        }
    }

    fn troubled(&mut self, error: RankError) {
        if self.trouble.is_none() {
            self.trouble = Some((error, Instant::now()));
            self.shown.troubled.store(true, Ordering::Relaxed);
        }
    }

    /// The other ranks.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.rank;
        (0..self.peers.len()).filter(move |&peer| peer != own)
    }

    fn name(&self, rank: usize) -> String {
        let names = lock(&self.shown.names);
        names
            .get(rank)
            .cloned()
            .unwrap_or_else(|| format!("rank {rank}"))
    }

    /// Receives and sends words, and notices ranks that say nothing.
    fn words(&mut self) -> Result<()> {
        // A process that was suspended must not blame the others for the time it has missed.
        let passed = self.last_turn.elapsed().min(WORD_INTERVAL);
        self.last_turn = Instant::now();
        if self.word == Word::Alive && self.is_stopping() {
            self.word = Word::Stopping;
            self.last_words = None;
        }
        let due = self
            .last_words
            .is_none_or(|last| last.elapsed() >= WORD_INTERVAL);
        for peer in self.others() {
            self.listen(peer, passed)?;
            self.say(peer, due)?;
        }
        if due {
            self.last_words = Some(Instant::now());
        }
        let limit = self.limit();
        let silent = |peer: &usize| self.peers[*peer].silence > limit;
        let lost: Vec<usize> = self.others().filter(silent).collect();
        if !lost.is_empty() && self.trouble.is_none() {
            self.troubled(RankError::Lost {
                names: lost.iter().map(|&rank| self.name(rank)).collect(),
                seconds: limit.as_secs(),
                stopping: self.is_stopping(),
            });
        }
        self.hear_failures();
        Ok(())
    }

    /// Whether the training was asked to stop, here or at another rank.
    fn is_stopping(&self) -> bool {
        let stop = self.shown.stop.get();
        stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// The longest silence of a rank that is accepted. After a stop it stays short while this rank
    /// leaves, which it says with another word.
    fn limit(&self) -> Duration {
        if self.is_stopping() {
            self.timeout.min(STOPPING)
        } else {
            self.timeout
        }
    }

    /// Takes note of ranks that have failed, once the names of all are known: a rank has sent its own
    /// before it can fail, so the exchange of the names succeeds.
    fn hear_failures(&mut self) {
        if lock(&self.shown.names).is_empty() {
            return;
        }
        let failed = |peer: &usize| self.peers[*peer].failed.is_some();
        if let Some(peer) = self.others().find(failed) {
            let Failure { text, code } = self.peers[peer].failed.clone().unwrap_or_default();
            self.code = code;
            self.troubled(RankError::Failed {
                name: self.name(peer),
                text,
                code,
            });
        }
    }

    fn listen(&mut self, peer: usize, passed: Duration) -> Result<()> {
        if self.peers[peer].has_left() {
            return Ok(());
        }
        if self.peers[peer].incoming.is_none() {
            let place = 0..Word::VALUES;
            let mail = Mail {
                into: vec![0.0; Word::VALUES],
                receives: vec![(peer, place)],
                ..Mail::default()
            };
            self.peers[peer].incoming = Some(self.channel.start(mail, Tag::Word)?);
        }
        let Some(mut flight) = self.peers[peer].incoming.take() else {
            return Ok(());
        };
        if !self.channel.test(&mut flight)? {
            self.peers[peer].incoming = Some(flight);
            self.peers[peer].silence += passed;
            return Ok(());
        }
        self.peers[peer].silence = Duration::ZERO;
        let word = flight.landed().map(|mail| Word::read(&mail.into));
        if let Some(Word::Failed(failure)) = &word {
            self.peers[peer].failed = Some(failure.clone());
        }
        if let (Some(Word::Stopping), Some(stop)) = (&word, self.shown.stop.get()) {
            stop.store(true, Ordering::Relaxed);
        }
        self.peers[peer].said = word;
        Ok(())
    }

    /// Sends a word to a rank if one is due and the last one has arrived.
    fn say(&mut self, peer: usize, due: bool) -> Result<()> {
        if let Some(mut flight) = self.peers[peer].outgoing.take()
            && !self.channel.test(&mut flight)?
        {
            self.peers[peer].outgoing = Some(flight);
            return Ok(());
        }
        let last = matches!(self.word, Word::Left { .. });
        if self.peers[peer].sent_left || !(due || last) {
            return Ok(());
        }
        let mail = Mail {
            out: self.word.values(),
            sends: vec![(peer, 0..Word::VALUES)],
            ..Mail::default()
        };
        self.peers[peer].outgoing = Some(self.channel.start(mail, Tag::Word)?);
        self.peers[peer].sent_left = last;
        Ok(())
    }

    /// Completes the exchange in progress, or ends it if it cannot succeed.
    fn exchange(&mut self) {
        let Some(mut pending) = self.pending.take() else {
            return;
        };
        match self.channel.test(&mut pending.flight) {
            Ok(true) => {
                let mail = pending.flight.landed().unwrap_or_default();
                let _ = pending.reply.send(Ok(mail));
                return;
            }
            // A rank may leave while the last messages are on their way to others.
            Ok(false) if pending.since.elapsed() > GRACE => {
                let left = |peer: &usize| self.peers[*peer].has_left();
                if let Some(peer) = self.others().find(left) {
                    self.troubled(RankError::Left {
                        name: self.name(peer),
                    });
                }
            }
            Ok(false) => {}
            Err(error) => self.troubled(RankError::Library(format!("{error:#}"))),
        }
        match &self.trouble {
            Some((error, _)) => {
                let _ = pending.reply.send(Err(error.clone()));
                self.trouble_taken = true;
                self.gave_up = true;
            }
            None => self.pending = Some(pending),
        }
    }

    /// Answers a training that has failed, once rank 0 has said something or a second has passed.
    fn fail(&mut self) {
        let Some((reply, until)) = self.failing.take() else {
            return;
        };
        let said = self.peers[0].failed.clone();
        if said.is_none() && Instant::now() < until && self.rank != 0 {
            self.failing = Some((reply, until));
            return;
        }
        let same = matches!((&self.word, said), (Word::Failed(own), Some(said)) if *own == said);
        self.trouble_taken = true;
        let _ = reply.send(same);
    }

    /// Whether an error is this rank's to print: it is the first that is not lost.
    fn is_first_alive(&self) -> bool {
        let limit = self.limit();
        (0..self.rank).all(|peer| self.peers[peer].silence > limit)
    }

    /// Ends the channel when all ranks are ready for it; true when that is done.
    fn leave(&mut self) -> bool {
        let Some((reply, since)) = self.leaving.take() else {
            return false;
        };
        let failed = matches!(self.word, Word::Failed(_));
        if let Some((error, _)) = &self.trouble
            && matches!(error, RankError::Lost { .. } | RankError::Library(_))
        {
            let wait = if self.is_first_alive() {
                Duration::ZERO
            } else {
                HEAD_START
            };
            if since.elapsed() >= wait {
                let _ = reply.send(Err(error.clone()));
                self.channel.abort(1);
                return true;
            }
            self.leaving = Some((reply, since));
            return false;
        }
        // A failure is said first: the other ranks must not read that this one has left.
        let heard = self.others().all(|peer| {
            let peer = &self.peers[peer];
            peer.sent_left || peer.has_left() || peer.failed.is_some()
        });
        if !failed || heard || since.elapsed() >= WORD_INTERVAL {
            self.word = Word::Left {
                whole: !self.gave_up,
            };
        }
        let done = self.others().all(|peer| {
            let peer = &self.peers[peer];
            peer.has_left() && peer.sent_left && peer.outgoing.is_none()
        });
        let troubled = self.trouble.is_some() || self.trouble_taken;
        if done {
            let _ = reply.send(self.trouble.take().map_or(Ok(()), |(error, _)| Err(error)));
            // With messages on their way, ending the channel could wait for ever. After a refusal that all ranks
            // have agreed on there are none, and some launchers report a rank that leaves MPI as killed.
            let whole = Some(Word::Left { whole: true });
            if !self.gave_up && self.others().all(|peer| self.peers[peer].said == whole) {
                self.channel.finalize();
            } else if self.trouble_taken {
                // MPICH's launcher invents an exit code for a rank that ends without MPI_Finalize and
                // MPI_Abort. A training that learns of the trouble only now still has to print it.
                self.channel.abort(self.code.into());
            }
            return true;
        }
        let all_left = self.others().all(|peer| self.peers[peer].has_left());
        if all_left && !troubled && since.elapsed() > GRACE {
            // A rank that was stopped after its last word does not take this one's. Ending without
            // the channel makes the launcher end it.
            let _ = reply.send(Ok(()));
            return true;
        }
        if troubled && since.elapsed() > GRACE {
            let _ = reply.send(Ok(()));
            self.channel.abort(self.code.into());
            return true;
        }
        self.leaving = Some((reply, since));
        false
    }

    /// Ends the job if a rank is lost and the training does not notice it, because it computes or
    /// validates.
    fn end_unattended(&mut self) {
        let Some((error @ (RankError::Lost { .. } | RankError::Library(_)), since)) = &self.trouble
        else {
            return;
        };
        let first = self.is_first_alive();
        let wait = if first { HEAD_START } else { 3 * HEAD_START };
        if self.trouble_taken || self.leaving.is_some() || since.elapsed() < wait {
            return;
        }
        if first {
            eprintln!("error: {error}; the last checkpoint is kept");
        }
        self.channel.abort(1);
        std::process::exit(1);
    }
}

/// The time limit for the silence of a rank, of a number of seconds.
pub(super) fn check_timeout(seconds: u64) -> Result<Duration> {
    ensure!(
        (LEAST_TIMEOUT..=MOST_TIMEOUT).contains(&seconds),
        "a time limit of {seconds} s for ranks; use {LEAST_TIMEOUT} to {MOST_TIMEOUT} (--rank-timeout)"
    );
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_of_another_mpi_is_refused() {
        let launcher = Launcher {
            kind: LauncherKind::OpenMpi,
            rank: 2,
            size: Some(4),
            local_rank: None,
        };
        check_size(launcher, &(2, 4, "Open MPI".into())).unwrap();
        let error = check_size(launcher, &(0, 1, "MPICH".into())).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("rank 2 of 4") && text.contains("rank 0 of 1"),
            "{text}"
        );
    }
}
