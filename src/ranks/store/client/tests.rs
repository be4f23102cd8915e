//! Tests of the client: the bytes of questions and answers, and servers that are no store.

use super::*;
use std::net::TcpListener;

fn bytes(query: &Query<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    query.encode(&mut out);
    out
}

#[test]
fn questions_have_the_bytes_of_the_protocol() {
    assert_eq!(bytes(&Query::Validate), [0, 0xce, 0xf7, 0x85, 0x3c]);
    assert_eq!(bytes(&Query::Ping(258)), [13, 2, 1, 0, 0]);
    let set = bytes(&Query::Set("ab", &[7, 8, 9]));
    assert_eq!(
        set,
        b"\x01\x02\0\0\0\0\0\0\0ab\x03\0\0\0\0\0\0\0\x07\x08\x09"
    );
    assert_eq!(bytes(&Query::Get("k")), b"\x03\x01\0\0\0\0\0\0\0k");
    assert_eq!(bytes(&Query::Delete("k")), b"\x08\x01\0\0\0\0\0\0\0k");
    assert_eq!(
        bytes(&Query::Check("k")),
        b"\x05\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0k"
    );
    let keys = ["a".to_string(), "bc".to_string()];
    assert_eq!(
        bytes(&Query::Wait(&keys)),
        b"\x06\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a\x02\0\0\0\0\0\0\0bc"
    );
}

#[test]
fn answers_are_taken_when_they_are_complete() {
    let value = b"\x03\0\0\0\0\0\0\0xyz and more";
    for end in 0..11 {
        assert_eq!(Form::Value.decode(&value[..end]).unwrap(), None);
    }
    let answer = (Answer::Value(b"xyz".to_vec()), 11);
    assert_eq!(Form::Value.decode(value).unwrap(), Some(answer));
    let count = Form::Count.decode(&(-2i64).to_le_bytes()).unwrap();
    assert_eq!(count, Some((Answer::Count(-2), 8)));
    let byte = Form::Byte.decode(&[1, 2]).unwrap();
    assert_eq!(byte, Some((Answer::Byte(1), 1)));
    assert_eq!(Form::Nonce.decode(&[1, 2, 3]).unwrap(), None);
    // text of another service, read as a length
    assert!(Form::Value.decode(b"HTTP/1.1 400").is_err());
}

const LONG: Duration = Duration::from_secs(60);

/// What a client says of a server that does this with its first connection.
fn said_of(timeout: Duration, serve: impl FnOnce(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || serve(listener.accept().unwrap().0));
    let error = Connection::open("127.0.0.1", port, timeout, ()).err();
    server.join().unwrap();
    error.unwrap().to_string()
}

#[test]
fn what_is_no_store_is_refused() {
    let http = said_of(LONG, |mut stream| {
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    assert!(http.contains("it answers something else"), "{http}");
    let older = said_of(LONG, |mut stream| {
        let _ = stream.read(&mut [0; 10]);
    });
    assert!(older.contains("closed"), "{older}");
    let silent = said_of(Duration::from_millis(50), |mut stream| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
    });
    assert!(silent.contains("it does not answer"), "{silent}");
    for text in [http, older, silent] {
        assert!(text.contains("PyTorch 2.5") && text.contains("MASTER_PORT"));
    }
}

#[test]
fn a_port_where_nothing_listens_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let timeout = Duration::from_millis(10);
    let error = Connection::open("127.0.0.1", port, timeout, ()).err();
    let text = error.unwrap().to_string();
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
}
