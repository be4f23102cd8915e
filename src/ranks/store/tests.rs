//! Tests of the channel over a stand-in for the store: order, pieces, what is left, and where the store
//! is.

use super::*;

#[path = "../../../tests/it/store_common/mod.rs"]
mod stand_in;

const LONG: Duration = Duration::from_secs(60);

fn join(server: &stand_in::Store, rank: usize, size: usize) -> Store {
    Store::connect(rank, size, ("localhost", server.port), LONG).unwrap()
}

/// Runs one thread for each rank.
fn all(server: &stand_in::Store, size: usize, work: impl Fn(&mut Store) + Sync) {
    std::thread::scope(|scope| {
        for rank in 0..size {
            let work = &work;
            scope.spawn(move || {
                let mut store = join(server, rank, size);
                work(&mut store);
                store.finalize();
            });
        }
    });
}

fn landed(store: &mut Store, mut flight: Flight) -> Mail {
    let began = Instant::now();
    while !store.test(&mut flight).unwrap() {
        assert!(began.elapsed() < LONG, "a message does not come");
        std::thread::yield_now();
    }
    flight.landed().unwrap()
}

fn send(store: &mut Store, to: usize, values: Vec<f32>, tag: Tag) -> Flight {
    let whole = 0..values.len();
    let mail = Mail {
        out: values,
        sends: vec![(to, whole)],
        ..Mail::default()
    };
    store.start(mail, tag).unwrap()
}

fn receive(store: &mut Store, from: usize, length: usize, tag: Tag) -> Vec<f32> {
    let mail = Mail {
        into: vec![0.0; length],
        receives: vec![(from, 0..length)],
        ..Mail::default()
    };
    let flight = store.start(mail, tag).unwrap();
    landed(store, flight).into
}

#[test]
fn messages_arrive_in_order_and_nothing_is_left() {
    let server = stand_in::Store::start();
    // left over from an earlier start
    let mut before = Connection::open("localhost", server.port, LONG, ()).unwrap();
    before.ask(
        &Query::Set("paragon/hello/1", b"a rank that has died"),
        None,
    );
    before.ask(&Query::Ping(1), Some(()));
    let until = Instant::now() + LONG;
    assert!(before.answer_until(until).unwrap().is_some());
    all(&server, 3, |store| {
        for round in 0..20u64 {
            let own = vec![(100 * store.rank as u64 + round) as f32; 3];
            let others: Vec<usize> = (0..3).filter(|&peer| peer != store.rank).collect();
            let mail = Mail {
                sends: others.iter().map(|&peer| (peer, 0..3)).collect(),
                out: own,
                into: vec![0.0; 9],
                receives: others.iter().map(|&p| (p, 3 * p..3 * p + 3)).collect(),
            };
            let flight = store.start(mail, Tag::Exchange).unwrap();
            let mail = landed(store, flight);
            for peer in others {
                let expected = [(100 * peer as u64 + round) as f32; 3];
                assert_eq!(mail.into[3 * peer..3 * peer + 3], expected);
            }
        }
        // words, and an exchange meanwhile, do not mix
        if store.rank == 0 {
            let word = send(store, 1, vec![1.0], Tag::Word);
            let message = send(store, 1, vec![2.0, 3.0], Tag::Exchange);
            landed(store, word);
            landed(store, message);
        } else if store.rank == 1 {
            assert_eq!(receive(store, 0, 2, Tag::Exchange), [2.0, 3.0]);
            assert_eq!(receive(store, 0, 1, Tag::Word), [1.0]);
        }
    });
    let left = server.keys();
    let welcome = |key: &String| key.starts_with("paragon/welcome/a rank that has died");
    assert!(left.iter().all(welcome), "{left:?}");
}

#[test]
fn large_messages_travel_in_pieces() {
    let server = stand_in::Store::start();
    let length = 3 * WINDOW_BYTES / 4 + 5;
    let value = |at: usize| (at % 9973) as f32;
    all(&server, 2, |store| {
        if store.rank == 0 {
            let flight = send(store, 1, (0..length).map(value).collect(), Tag::Exchange);
            landed(store, flight);
        } else {
            let found = receive(store, 0, length, Tag::Exchange);
            assert!(found.iter().enumerate().all(|(at, &v)| v == value(at)));
        }
    });
    assert!(server.keys().is_empty());
    assert_eq!(server.most_bytes().1, MOST_BYTES);
}

/// A rank that takes no words does not fill the store.
#[test]
fn words_wait_for_their_receiver() {
    let server = stand_in::Store::start();
    all(&server, 2, |store| {
        let word = |number: u64| vec![number as f32];
        if store.rank == 0 {
            for number in 0..WINDOW_WORDS {
                let flight = send(store, 1, word(number), Tag::Word);
                landed(store, flight);
            }
            let mut flight = send(store, 1, word(WINDOW_WORDS), Tag::Word);
            let until = Instant::now() + 5 * LEAST_POLL;
            while Instant::now() < until {
                assert!(!store.test(&mut flight).unwrap());
                std::thread::yield_now();
            }
            store.set("go", b"1");
            landed(store, flight);
        } else {
            while !store.is_there("go").unwrap() {
                std::thread::yield_now();
            }
            for number in 0..=WINDOW_WORDS {
                assert_eq!(receive(store, 0, 1, Tag::Word), word(number));
            }
        }
    });
    assert_eq!(server.keys(), ["go"]);
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let server = stand_in::Store::start();
    let short = Duration::from_secs(1);
    let first = Store::connect(0, 3, ("localhost", server.port), short);
    let text = first.err().unwrap().to_string();
    assert!(text.contains("--rank-timeout): 1, 2;"), "{text}");
    let other = Store::connect(2, 3, ("localhost", server.port), short);
    let text = other.err().unwrap().to_string();
    assert!(text.contains("rank 0 has not come"), "{text}");
}

#[test]
fn a_message_of_another_length_is_an_error() {
    let server = stand_in::Store::start();
    all(&server, 2, |store| {
        if store.rank == 0 {
            let flight = send(store, 1, vec![1.0; 4], Tag::Exchange);
            landed(store, flight);
            return;
        }
        let mail = Mail {
            into: vec![0.0; 3],
            receives: vec![(0, 0..3)],
            ..Mail::default()
        };
        let mut flight = store.start(mail, Tag::Exchange).unwrap();
        let error = loop {
            match store.test(&mut flight) {
                Ok(done) => assert!(!done),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("16 bytes") && error.contains("12 were expected"));
    });
}

#[test]
fn the_place_of_the_store_is_read_from_the_environment() {
    fn with(list: &[(&str, &str)]) -> Result<(String, u16)> {
        address(&|name| {
            let found = list.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.to_string())
        })
    }
    let shared = ("TORCHELASTIC_USE_AGENT_STORE", "True");
    let found = with(&[shared, ("MASTER_ADDR", "node1"), ("MASTER_PORT", "29500")]);
    assert_eq!(found.unwrap(), ("node1".to_string(), 29500));
    for (list, text) in [
        (&[][..], "TORCHELASTIC_USE_AGENT_STORE is not set"),
        (&[("TORCHELASTIC_USE_AGENT_STORE", "False")], "is 'False'"),
        (&[shared, ("MASTER_PORT", "1")], "MASTER_ADDR"),
        (&[shared, ("MASTER_ADDR", "a")], "MASTER_PORT"),
        (
            &[shared, ("MASTER_ADDR", "a"), ("MASTER_PORT", "70000")],
            "MASTER_PORT is '70000'",
        ),
    ] {
        let error = with(list).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}
