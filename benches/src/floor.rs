//! The floor: a bare loop of `send()` of one pre-encoded frame to every socket, on one thread. Nothing can fan out faster one message a write.

use crate::clock::{Schedule, now_ns};
use crate::control::{Done, Listening, ServerCommand, answer, serve};
use crate::wire::{Envelope, enveloped, find_mark, stamped, text_frame};
use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// Serves until standard input closes. `batch` messages share a write when saturating.
pub(crate) fn run(envelope: Envelope, batch: usize) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sockets = Arc::new(Mutex::new(Vec::new()));
    answer(&Listening { port: listener.local_addr()?.port(), pid: None })?;
    let accepted = Arc::clone(&sockets);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The thread sleeps in accept() once the clients are there; sending is done by the main thread alone. The lock is held while a client
            // is answered: who has been answered is a subscriber.
            let mut sockets = accepted.lock().unwrap_or_else(PoisonError::into_inner);
            if let Ok(socket) = upgrade(stream) {
                sockets.push(socket);
            }
        }
    });
    serve(|command| {
        let sockets = sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match command {
            ServerCommand::Publish { id, channel, channels, size, count, interval_us } => {
                ensure!(channels == 0, "the floor has one channel");
                let mut frame = StampedFrame::new(envelope, &channel, size);
                let schedule = Schedule::new(interval_us);
                for tick in 0..u64::from(count) {
                    frame.stamp(schedule.wait(tick));
                    for socket in sockets.iter() {
                        send_all(socket, &frame.bytes)?;
                    }
                }
                Done { id, published: u64::from(count), refused: 0 }
            }
            ServerCommand::Saturate { id, channel, size, ms } => {
                let frame = StampedFrame::new(envelope, &channel, size);
                let bytes = frame.bytes.repeat(batch);
                let deadline = now_ns() + ms * 1_000_000;
                let mut published = 0;
                while now_ns() < deadline {
                    for socket in sockets.iter() {
                        send_all(socket, &bytes)?;
                    }
                    published += batch as u64;
                }
                Done { id, published, refused: 0 }
            }
            ServerCommand::Collect { id } => Done { id, ..Done::default() },
        };
        answer(&done)
    })
}

/// An encoded frame whose stamp is overwritten in place.
struct StampedFrame {
    bytes: Vec<u8>,
    stamp_at: usize,
}

impl StampedFrame {
    fn new(envelope: Envelope, channel: &str, size: usize) -> Self {
        let bytes = text_frame(enveloped(envelope, channel, &stamped(size, 0), 1000).as_bytes());
        let stamp_at = find_mark(&bytes).unwrap_or(0);
        Self { bytes, stamp_at }
    }

    fn stamp(&mut self, now: u64) {
        self.bytes[self.stamp_at..self.stamp_at + 20].copy_from_slice(format!("{now:020}").as_bytes());
    }
}

/// Answers the opening handshake, [RFC 6455 section 4.2.2](https://www.rfc-editor.org/rfc/rfc6455#section-4.2.2).
fn upgrade(mut stream: TcpStream) -> Result<TcpStream> {
    let mut request = Vec::new();
    let mut bytes = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut bytes)?;
        ensure!(count > 0, "the client left during the handshake");
        request.extend_from_slice(&bytes[..count]);
    }
    let text = String::from_utf8_lossy(&request);
    let key = text
        .lines()
        .find_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key")))
        .context("a WebSocket key")?
        .1;
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn send_all(socket: &TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(socket, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error).context("sending"),
        }
    }
    Ok(())
}
