//! A client of the store that torchrun's agent hosts (PyTorch's TCPStore): its questions and answers
//! over one connection. Depends on nothing. Promises that no call blocks without a bound in time.
//!
//! A question is a byte with its kind, then its arguments: numbers of fixed size, and keys and values
//! with their lengths before them as 8 bytes. All numbers have the order of bytes of the processor,
//! which is little-endian wherever PyTorch runs. The store answers the questions of a connection in
//! their order. The first question names a magic number and has no answer, and neither has
//! [`Query::Set`].

use anyhow::{Context, Result, bail, ensure};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Largest value that is written or accepted, bytes. The store refuses more than 8 MiB.
pub const MOST_BYTES: usize = 1 << 20;
/// What a client says first.
const MAGIC: u32 = 0x3C85_F7CE;
/// How many bytes are read from the system at once.
const CHUNK: usize = 64 << 10;
/// Time between two looks at a connection while something is waited for.
const NAP: Duration = Duration::from_millis(1);
/// Longest time between two looks that counts: a process that was suspended must not blame the store.
const MOST_PASSED: Duration = Duration::from_secs(1);
/// How long the store may take to answer a new connection: the port may belong to another service.
const FIRST_ANSWER: Duration = Duration::from_secs(20);
/// Time between two attempts to connect.
const RETRY: Duration = Duration::from_millis(200);

/// A question to the store.
#[derive(Debug, PartialEq)]
pub enum Query<'a> {
    /// First of all, for a server that many things connect to.
    Validate,
    /// Is answered with the same number.
    Ping(u32),
    /// Writes a value; is not answered.
    Set(&'a str, &'a [u8]),
    /// Reads the value of a key that is there.
    Get(&'a str),
    /// Asks whether a key is there; is answered with [`READY`] or another byte.
    Check(&'a str),
    /// Is answered with [`READY`] when all keys are there, however long that takes.
    Wait(&'a [String]),
    /// Removes a key; is answered with the number of keys that were removed.
    Delete(&'a str),
}

/// The byte that answers [`Query::Check`] and [`Query::Wait`] when the keys are there.
pub const READY: u8 = 0;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Byte,
    Nonce,
    Count,
    Value,
}

/// What the store answers.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// To [`Query::Check`] and [`Query::Wait`].
    Byte(u8),
    /// To [`Query::Ping`].
    Nonce(u32),
    /// To [`Query::Delete`].
    Count(i64),
    /// To [`Query::Get`].
    Value(Vec<u8>),
}

impl Query<'_> {
    /// Appends the question in the store's form; returns the form of its answer.
    fn encode(&self, out: &mut Vec<u8>) -> Option<Form> {
        let text = |out: &mut Vec<u8>, bytes: &[u8]| {
            out.extend((bytes.len() as u64).to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Query::Validate => {
                out.push(0);
                out.extend(MAGIC.to_le_bytes());
                None
            }
            Query::Set(key, value) => {
                out.push(1);
                text(out, key.as_bytes());
                text(out, value);
                None
            }
            Query::Get(key) => {
                out.push(3);
                text(out, key.as_bytes());
                Some(Form::Value)
            }
            Query::Check(key) => {
                out.push(5);
                out.extend(1u64.to_le_bytes());
                text(out, key.as_bytes());
                Some(Form::Byte)
            }
            Query::Wait(keys) => {
                out.push(6);
                out.extend((keys.len() as u64).to_le_bytes());
                for key in *keys {
                    text(out, key.as_bytes());
                }
                Some(Form::Byte)
            }
            Query::Delete(key) => {
                out.push(8);
                text(out, key.as_bytes());
                Some(Form::Count)
            }
            Query::Ping(nonce) => {
                out.push(13);
                out.extend(nonce.to_le_bytes());
                Some(Form::Nonce)
            }
        }
    }
}

impl Form {
    /// The first answer of this form in the bytes, and its length; `None` if it is not complete.
    fn decode(self, bytes: &[u8]) -> Result<Option<(Answer, usize)>> {
        let size = match self {
            Form::Byte => 1,
            Form::Nonce => 4,
            Form::Count | Form::Value => 8,
        };
        let Some(head) = bytes.get(..size) else {
            return Ok(None);
        };
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(head);
        let number = u64::from_le_bytes(wide);
        Ok(match self {
            Form::Byte => Some((Answer::Byte(head[0]), size)),
            Form::Nonce => Some((Answer::Nonce(number as u32), size)),
            Form::Count => Some((Answer::Count(number as i64), size)),
            Form::Value => {
                let length = usize::try_from(number).unwrap_or(usize::MAX);
                ensure!(
                    length <= MOST_BYTES,
                    "a value of {number} bytes, of at most {MOST_BYTES}"
                );
                let value = bytes.get(size..size + length);
                value.map(|value| (Answer::Value(value.to_vec()), size + length))
            }
        })
    }
}

/// A connection to the store. `T` says for each question what its answer is for.
pub struct Connection<T> {
    stream: TcpStream,
    /// `host:port`.
    name: String,
    timeout: Duration,
    /// Bytes to be written, of which the first `written` are.
    out: Vec<u8>,
    written: usize,
    /// Bytes that were read, of which the first `taken` are parts of earlier answers.
    input: Vec<u8>,
    taken: usize,
    /// The answers that are to come.
    expected: VecDeque<(Form, T)>,
    /// Whether an answer may take any time, as to [`Query::Wait`].
    patient: bool,
    /// Time without a byte from the store while it owed an answer, or without one taken by it.
    silence: Duration,
    looked: Instant,
}

impl<T> Connection<T> {
    /// Connects to the store, which must answer the first question within 20 s or `timeout`, if that is
    /// shorter. Later it may be silent for `timeout`.
    ///
    /// # Errors
    /// The host is unknown or cannot be reached, or the port belongs to something else.
    pub fn open(host: &str, port: u16, timeout: Duration, own: T) -> Result<Connection<T>> {
        let name = format!("{host}:{port}");
        let until = Instant::now() + timeout.min(FIRST_ANSWER);
        let stream = connect(host, port, until)?;
        let mut connection = Connection {
            stream,
            name,
            // the first answer has a limit of its own
            timeout: timeout + FIRST_ANSWER,
            out: Vec::new(),
            written: 0,
            input: Vec::new(),
            taken: 0,
            expected: VecDeque::new(),
            patient: false,
            silence: Duration::ZERO,
            looked: Instant::now(),
        };
        let nonce = std::process::id();
        connection.ask(&Query::Validate, None);
        connection.ask(&Query::Ping(nonce), Some(own));
        let answer = connection.answer_until(until);
        let right = matches!(&answer, Ok(Some((_, Answer::Nonce(found)))) if *found == nonce);
        ensure!(
            right,
            "what listens on {} (MASTER_ADDR and MASTER_PORT) is no store of torchrun's agent: {}. paragon needs the torchrun of PyTorch 2.5 or \
             newer",
            connection.name,
            match answer {
                Err(error) => format!("{error:#}"),
                Ok(Some(_)) => "it answers something else".to_string(),
                Ok(None) => "it does not answer".to_string(),
            }
        );
        connection.timeout = timeout;
        Ok(connection)
    }

    /// Puts a question into the queue. Those with an answer need to know what it is for.
    pub fn ask(&mut self, query: &Query<'_>, purpose: Option<T>) {
        self.patient |= matches!(query, Query::Wait(_));
        let form = query.encode(&mut self.out);
        debug_assert_eq!(form.is_some(), purpose.is_some());
        self.expected.extend(form.zip(purpose));
    }

    /// Bytes in the queue.
    pub fn queued(&self) -> usize {
        self.out.len() - self.written
    }

    /// Whether the store owes an answer, or questions are in the queue.
    pub fn is_busy(&self) -> bool {
        self.queued() > 0 || !self.expected.is_empty()
    }

    /// Writes and reads what is possible without waiting, and returns the next answer that is complete.
    ///
    /// # Errors
    /// The store has closed the connection, is silent for too long, or answers nonsense.
    pub fn answer(&mut self) -> Result<Option<(T, Answer)>> {
        if let Some(answer) = self.take()? {
            return Ok(Some(answer));
        }
        let moved = self.write()? | self.read()?;
        let passed = self.looked.elapsed().min(MOST_PASSED);
        self.looked = Instant::now();
        let owes = self.queued() > 0 || !(self.patient || self.expected.is_empty());
        self.silence = if moved || !owes {
            Duration::ZERO
        } else {
            self.silence + passed
        };
        if self.silence > self.timeout {
            bail!(
                "torchrun's store at {} has not answered for {} s (--rank-timeout): its agent has died or is stopped, or the network is cut",
                self.name,
                self.timeout.as_secs()
            );
        }
        self.take()
    }

    /// Waits for the next answer until a moment.
    ///
    /// # Errors
    /// Those of [`Connection::answer`].
    pub fn answer_until(&mut self, until: Instant) -> Result<Option<(T, Answer)>> {
        loop {
            let answer = self.answer()?;
            if answer.is_some() || Instant::now() >= until {
                return Ok(answer);
            }
            std::thread::sleep(NAP);
        }
    }

    fn take(&mut self) -> Result<Option<(T, Answer)>> {
        let Some((form, _)) = self.expected.front() else {
            ensure!(
                self.taken == self.input.len(),
                "{} sends what nobody asked for",
                self.name
            );
            return Ok(None);
        };
        let decoded = form.decode(&self.input[self.taken..]);
        let decoded = decoded.with_context(|| format!("the store at {} answers", self.name))?;
        let Some((answer, length)) = decoded else {
            return Ok(None);
        };
        self.taken += length;
        if self.taken == self.input.len() || self.taken > 4 * MOST_BYTES {
            self.input.drain(..self.taken);
            self.taken = 0;
        }
        let purpose = self.expected.pop_front().map(|(_, purpose)| purpose);
        self.patient = false;
        Ok(purpose.map(|purpose| (purpose, answer)))
    }

    /// Writes what the system takes; true if that was something.
    fn write(&mut self) -> Result<bool> {
        let before = self.written;
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(0) => return Err(self.gone("takes nothing more")),
                Ok(count) => self.written += count,
                Err(error) if is_later(&error) => break,
                Err(error) => return Err(self.gone(&error.to_string())),
            }
        }
        let moved = self.written > before;
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
        Ok(moved)
    }

    /// Reads what is there; true if that was something.
    fn read(&mut self) -> Result<bool> {
        let mut moved = false;
        let mut chunk = [0; CHUNK];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(self.gone("the connection was closed")),
                Ok(count) => {
                    self.input.extend_from_slice(&chunk[..count]);
                    moved = true;
                    // the rest is read when these answers were taken
                    if count < CHUNK || self.input.len() > 2 * MOST_BYTES {
                        return Ok(true);
                    }
                }
                Err(error) if is_later(&error) => return Ok(moved),
                Err(error) => return Err(self.gone(&error.to_string())),
            }
        }
    }

    fn gone(&self, why: &str) -> anyhow::Error {
        anyhow::anyhow!(
            "torchrun's store at {} is gone: {why}. Its agent, on the host of rank 0, has ended",
            self.name
        )
    }
}

/// Whether an operation that may not wait has to be tried again.
fn is_later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// A connection to the first address of the host that accepts one, with repeated attempts until a
/// moment: the queue of a store may be full for a while.
fn connect(host: &str, port: u16, until: Instant) -> Result<TcpStream> {
    loop {
        let mut failure = None;
        let addresses = (host, port).to_socket_addrs();
        let addresses = addresses
            .with_context(|| format!("the host of torchrun's store, {host} (MASTER_ADDR)"))?;
        for address in addresses {
            let left = until.saturating_duration_since(Instant::now()).max(NAP);
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_nonblocking(true)?;
                    return Ok(stream);
                }
                Err(error) => failure = Some(error),
            }
        }
        if Instant::now() + RETRY >= until {
            let failure = failure.map_or("it has no address".into(), |error| error.to_string());
            bail!(
                "cannot connect to torchrun's store at {host}:{port} (MASTER_ADDR and MASTER_PORT): {failure}. Its agent runs on the host of \
                 rank 0, which has to be reachable from here"
            );
        }
        std::thread::sleep(RETRY);
    }
}

#[cfg(test)]
mod tests;
