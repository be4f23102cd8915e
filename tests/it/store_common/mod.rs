//! A stand-in for the store that torchrun's agent hosts: the server's side of the protocol of PyTorch's
//! TCPStore, as far as ranks use it. Depends on the standard library alone, because unit tests of the
//! library use it too.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct State {
    values: HashMap<String, Vec<u8>>,
    connections: Vec<TcpStream>,
    most_bytes: usize,
    largest: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A store that listens on a port of this host until it is closed.
pub struct Store {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Store {
    pub fn start() -> Store {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut state = of_thread.state.lock().unwrap();
                if state.closed {
                    return;
                }
                state.connections.push(stream.try_clone().unwrap());
                drop(state);
                let shared = of_thread.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Store { port, shared }
    }

    pub fn keys(&self) -> Vec<String> {
        let state = self.shared.state.lock().unwrap();
        state.values.keys().cloned().collect()
    }

    /// Most bytes of values that it held at a time, and the largest value.
    pub fn most_bytes(&self) -> (usize, usize) {
        let state = self.shared.state.lock().unwrap();
        (state.most_bytes, state.largest)
    }

    /// Ends all connections, as when the agent ends.
    pub fn close(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.closed = true;
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
        drop(state);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

fn number(stream: &mut TcpStream) -> Option<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn bytes(stream: &mut TcpStream, most: u64) -> Option<Vec<u8>> {
    let length = number(stream).filter(|&length| length <= most)?;
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// Longest key and largest value of PyTorch's store.
const KEY: u64 = 8 << 10;
const VALUE: u64 = 8 << 20;

fn key(stream: &mut TcpStream) -> Option<String> {
    String::from_utf8(bytes(stream, KEY)?).ok()
}

fn keys(stream: &mut TcpStream) -> Option<Vec<String>> {
    (0..number(stream)?).map(|_| key(stream)).collect()
}

/// Answers one connection until it ends or asks what the store does not know, which closes it.
fn serve(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut first = true;
    loop {
        let mut kind = [0];
        stream.read_exact(&mut kind).ok()?;
        // a connection that does not begin with the magic number is no client
        if first != (kind[0] == 0) {
            let _ = stream.shutdown(Shutdown::Both);
            return None;
        }
        first = false;
        let answer = match kind[0] {
            0 => {
                let mut magic = [0; 4];
                stream.read_exact(&mut magic).ok()?;
                assert_eq!(u32::from_le_bytes(magic), 0x3C85_F7CE);
                Vec::new()
            }
            1 => {
                let (key, value) = (key(&mut stream)?, bytes(&mut stream, VALUE)?);
                let mut state = shared.state.lock().unwrap();
                state.largest = state.largest.max(value.len());
                state.values.insert(key, value);
                let total = state.values.values().map(Vec::len).sum();
                state.most_bytes = state.most_bytes.max(total);
                shared.changed.notify_all();
                Vec::new()
            }
            3 => {
                let key = key(&mut stream)?;
                let state = shared.state.lock().unwrap();
                let value = state.values.get(&key).cloned().unwrap_or_default();
                let mut answer = (value.len() as u64).to_le_bytes().to_vec();
                answer.extend(value);
                answer
            }
            5 => {
                let keys = keys(&mut stream)?;
                let state = shared.state.lock().unwrap();
                let there = keys.iter().all(|key| state.values.contains_key(key));
                vec![u8::from(!there)]
            }
            6 => {
                let keys = keys(&mut stream)?;
                let mut state = shared.state.lock().unwrap();
                while !keys.iter().all(|key| state.values.contains_key(key)) {
                    if state.closed {
                        return None;
                    }
                    state = shared.changed.wait(state).unwrap();
                }
                vec![0]
            }
            8 => {
                let key = key(&mut stream)?;
                let removed = shared.state.lock().unwrap().values.remove(&key);
                i64::from(removed.is_some()).to_le_bytes().to_vec()
            }
            13 => {
                let mut nonce = vec![0; 4];
                stream.read_exact(&mut nonce).ok()?;
                nonce
            }
            _ => return stream.shutdown(Shutdown::Both).ok(),
        };
        stream.write_all(&answer).ok()?;
    }
}
