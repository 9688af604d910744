//! Many subscribers that read as fast as they can and keep what they got.

use std::thread::JoinHandle;

use realtime_core::Hub;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::raw::RawClient;
use crate::wait::{eventually, on_time};

/// Subscribers of one channel with one envelope, all read by one thread: they get the same bytes.
pub struct Crowd {
    reader: JoinHandle<Vec<(Vec<u8>, std::net::TcpStream)>>,
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
                let mut tasks = Vec::new();
                for (stream, rest) in clients {
                    tasks.push(tokio::spawn(read(stream, rest, end.clone())));
                }
                let mut all = Vec::new();
                for task in tasks {
                    all.push(task.await.unwrap());
                }
                all
            })
        });
        Crowd { reader }
    }

    /// What each got, when all have got the end; and their connections, which are open as long as that is kept.
    pub fn received(self) -> (Vec<Vec<u8>>, Vec<std::net::TcpStream>) {
        self.reader.join().unwrap().into_iter().unzip()
    }
}

async fn read(stream: std::net::TcpStream, mut bytes: Vec<u8>, end: Vec<u8>) -> (Vec<u8>, std::net::TcpStream) {
    stream.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(stream).unwrap();
    while !bytes.ends_with(&end) {
        // An end that comes too early shows in what was received.
        match on_time("more for a subscriber", stream.read_buf(&mut bytes)).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    (bytes, stream.into_std().unwrap())
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
