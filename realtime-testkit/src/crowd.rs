//! Many subscribers that read as fast as they can, and see that all got the same.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use realtime_core::Hub;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::raw::RawClient;
use crate::wait::{eventually, on_time};

/// Subscribers of one channel with one envelope, all read by one thread: they get the same bytes. Those are kept once, so
/// that the readers are as quick as the machine allows and its memory plays no part.
pub struct Crowd {
    reader: JoinHandle<(Vec<u8>, Vec<std::net::TcpStream>)>,
}

impl Crowd {
    /// Connects so many subscribers, the first of their channel. Each reads until the end of what it has got is `end`, or until the connection ends.
    pub fn gather(hub: &Hub, count: usize, channel: &str, end: &str) -> Crowd {
        let clients: Vec<_> = (0..count)
            .map(|_| {
                let mut client = RawClient::tcp(hub.local_addr());
                client.upgrade(&format!("/ws/{channel}?envelope=raw"));
                client.into_parts()
            })
            .collect();
        eventually("the crowd is subscribed", || {
            let channels = hub.channels();
            channels.iter().any(|known| known.name == channel && known.subscribers == count)
        });
        let end = end.as_bytes().to_vec();
        let reader = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let longest = Arc::new(Mutex::new(Vec::new()));
                let mut tasks = Vec::new();
                for (index, (stream, rest)) in clients.into_iter().enumerate() {
                    tasks.push(tokio::spawn(read(stream, rest, end.clone(), index, longest.clone())));
                }
                let (mut lengths, mut open) = (Vec::new(), Vec::new());
                for task in tasks {
                    let (length, stream) = task.await.unwrap();
                    lengths.push(length);
                    open.push(stream);
                }
                let all = std::mem::take(&mut *longest.lock());
                for (index, length) in lengths.into_iter().enumerate() {
                    assert_eq!(length, all.len(), "subscriber {index} got less than others");
                }
                (all, open)
            })
        });
        Crowd { reader }
    }

    /// What everybody got, when all have got the end; and their connections, which are open as long as that is kept.
    ///
    /// # Panics
    ///
    /// When somebody got something else than the others, or less.
    pub fn received(self) -> (Vec<u8>, Vec<std::net::TcpStream>) {
        self.reader.join().unwrap()
    }
}

/// Reads to the end; says how much that was.
async fn read(
    stream: std::net::TcpStream,
    rest: Vec<u8>,
    end: Vec<u8>,
    index: usize,
    longest: Arc<Mutex<Vec<u8>>>,
) -> (usize, std::net::TcpStream) {
    stream.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(stream).unwrap();
    let mut length = follow(&mut longest.lock(), 0, &rest, index);
    let mut buffer = vec![0; 64 << 10];
    while !longest.lock()[..length].ends_with(&end) {
        // An end that comes too early shows in what was received.
        match on_time("more for a subscriber", stream.read(&mut buffer)).await {
            Ok(0) | Err(_) => break,
            Ok(count) => length = follow(&mut longest.lock(), length, &buffer[..count], index),
        }
    }
    (length, stream.into_std().unwrap())
}

/// What one got behind its first `at` bytes, beside what others got there; gives how much it has now.
fn follow(longest: &mut Vec<u8>, at: usize, bytes: &[u8], index: usize) -> usize {
    let known = bytes.len().min(longest.len() - at);
    assert!(longest[at..at + known] == bytes[..known], "subscriber {index} got another sequence than others");
    longest.extend_from_slice(&bytes[known..]);
    at + bytes.len()
}

/// The payloads of a stream of unmasked frames.
pub fn payloads(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut payloads = Vec::new();
    while let [_, short, rest @ ..] = stream {
        let (length, at) = match short {
            126 => (usize::from(u16::from_be_bytes(rest[..2].try_into().unwrap())), 4),
            127 => (u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize, 10),
            short => (usize::from(*short), 2),
        };
        payloads.push(&stream[at..at + length]);
        stream = &stream[at + length..];
    }
    payloads
}
