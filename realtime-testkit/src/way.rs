//! A way to a server on which a test stands: it sees what passes, and may keep it back or cut it off.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// What has come to a test that stands on the way.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Which connection, counted from 0.
    pub connection: usize,
    /// Whether the server says it.
    pub is_answer: bool,
    /// What is said, as it came from the socket; nothing when the connection begins.
    pub bytes: &'a [u8],
}

impl Part<'_> {
    /// Whether a text is among what is said.
    pub fn has(&self, text: &str) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It reaches the other side.
    Passes,
    /// It is lost, and the connection stays.
    IsLost,
    /// The connection ends.
    Ends,
}

/// A way to a port of this host; gives its own. `judge` is called on the connection's threads, and what it waits for its
/// connection waits for.
pub fn way_to(port: u16, judge: impl Fn(Part<'_>) -> Fate + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let judge = Arc::new(judge);
    thread::spawn(move || {
        for (connection, client) in listener.incoming().map_while(Result::ok).enumerate() {
            if judge(Part { connection, is_answer: false, bytes: &[] }) != Fate::Passes {
                continue;
            }
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            let ways = [(client.try_clone().unwrap(), server.try_clone().unwrap(), false), (server, client, true)];
            for (from, to, is_answer) in ways {
                let judge = judge.clone();
                thread::spawn(move || carry(from, to, |bytes| judge(Part { connection, is_answer, bytes })));
            }
        }
    });
    own
}

fn carry(mut from: TcpStream, mut to: TcpStream, judge: impl Fn(&[u8]) -> Fate) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let went = match judge(&bytes[..count]) {
            Fate::Passes => to.write_all(&bytes[..count]).is_ok(),
            Fate::IsLost => true,
            Fate::Ends => false,
        };
        if !went {
            break;
        }
    }
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}
