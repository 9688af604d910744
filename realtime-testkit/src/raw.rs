//! A client that writes its bytes by hand: handshakes that are wrong, frames that no library would send.
//!
//! Blocking, with a deadline on every read and write.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use realtime_core::Hub;
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};

use crate::wait::DEADLINE;

/// First byte of a frame that is a whole text message.
pub const TEXT: u8 = 0x81;
/// First byte of a frame that is a whole binary message.
pub const BINARY: u8 = 0x82;
/// First byte of a close frame.
pub const CLOSE: u8 = 0x88;
/// First byte of a ping.
pub const PING: u8 = 0x89;
/// First byte of a pong.
pub const PONG: u8 = 0x8a;
/// First byte of a text message's first fragment.
pub const TEXT_START: u8 = 0x01;
/// First byte of a fragment in the middle.
pub const MIDDLE: u8 = 0x00;
/// First byte of the last fragment.
pub const LAST: u8 = 0x80;

/// A key as RFC 6455 section 1.3 has it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer to that key (RFC 6455 section 1.3).
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// A small receive buffer. With one smaller than a segment of the loopback device the line would crawl from one window
/// probe to the next.
const NARROW_BYTES: usize = 128 << 10;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// See the module's documentation.
pub struct RawClient {
    stream: TcpStream,
    /// Read, from `taken` on not yet taken.
    buffer: Vec<u8>,
    taken: usize,
}

/// A frame from the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// First byte: final bit and opcode.
    pub first: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The payload as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }

    /// The payload as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap()
    }
}

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Headers in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Response {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// `error.code` of the body.
    pub fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        body["error"]["code"].as_str().unwrap().to_owned()
    }
}

/// Bytes of a masked frame.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, 0x80, payload.len());
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Bytes of a frame without mask, as only servers may send it.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, 0, payload.len());
    bytes.extend(payload);
    bytes
}

/// A frame's header without the mask.
pub fn header(first: u8, masked: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![first];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => bytes.push(masked | short),
        (_, Ok(medium)) => {
            bytes.push(masked | 126);
            bytes.extend(medium.to_be_bytes());
        }
        _ => {
            bytes.push(masked | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes
}

/// The head of an upgrade that is in order, with further header lines.
pub fn upgrade(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
    )
}

impl RawClient {
    /// Connects and sends nothing.
    pub fn tcp(address: SocketAddr) -> RawClient {
        RawClient::over(TcpStream::connect_timeout(&address, DEADLINE).unwrap())
    }

    /// The same, with a receive buffer so small that the hub soon cannot write what is not read.
    pub fn tcp_narrow(address: SocketAddr) -> RawClient {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(NARROW_BYTES).unwrap();
        socket.connect(&address.into()).unwrap();
        RawClient::over(socket.into())
    }

    fn over(stream: TcpStream) -> RawClient {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        RawClient { stream, buffer: Vec::new(), taken: 0 }
    }

    /// Connects to a path and takes the greeting.
    pub fn connect(hub: &Hub, path: &str) -> (RawClient, Value) {
        RawClient::tcp(hub.local_addr()).shake_hands(path)
    }

    /// The same, with a small receive buffer.
    pub fn connect_narrow(hub: &Hub, path: &str) -> (RawClient, Value) {
        RawClient::tcp_narrow(hub.local_addr()).shake_hands(path)
    }

    fn shake_hands(mut self, path: &str) -> (RawClient, Value) {
        self.upgrade(path);
        let greeting = self.next_frame().json();
        assert_eq!(greeting["type"], "connected");
        (self, greeting)
    }

    /// Upgrades, without taking a greeting.
    pub fn upgrade(&mut self, path: &str) {
        self.write(upgrade(path, "").as_bytes());
        let response = self.response();
        assert_eq!((response.status, response.header("sec-websocket-accept")), (101, Some(ACCEPT)), "{response:?}");
    }

    /// Whether the hub takes an upgrade, rather than dropping the connection.
    pub fn upgrade_if_possible(&mut self, path: &str) -> bool {
        self.try_write(upgrade(path, "").as_bytes()).is_ok() && matches!(self.fill(), Ok(true)) && self.response().status == 101
    }

    /// Sends bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends bytes to a hub that may have closed already.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a text message.
    pub fn send_text(&mut self, text: &str) {
        self.write(&frame(TEXT, text.as_bytes()));
    }

    /// Subscribes and gives the answer.
    pub fn subscribe(&mut self, channel: &str) -> Value {
        self.send_text(&serde_json::json!({"action": "subscribe", "channel": channel}).to_string());
        let answer = self.next_frame().json();
        assert_eq!(answer["type"], "subscribed", "{answer}");
        answer
    }

    /// Reads more; false at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..std::mem::take(&mut self.taken));
        let mut chunk = [0; 64 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(received) => {
                    self.buffer.extend_from_slice(&chunk[..received]);
                    return Ok(received > 0);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What has been read and not been taken, at least so many bytes of it.
    fn want(&mut self, bytes: usize) -> &[u8] {
        while self.buffer.len() - self.taken < bytes {
            assert!(self.fill().unwrap(), "the stream ended inside something");
        }
        &self.buffer[self.taken..]
    }

    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let taken = self.want(bytes)[..bytes].to_vec();
        self.taken += bytes;
        taken
    }

    /// Reads so many bytes.
    pub fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        self.take(bytes)
    }

    /// Reads up to and including a byte.
    pub fn until(&mut self, end: u8) -> Vec<u8> {
        let mut least = 1;
        loop {
            let bytes = self.want(least);
            match bytes.iter().position(|byte| *byte == end) {
                Some(at) => return self.take(at + 1),
                None => least = bytes.len() + 1,
            }
        }
    }

    /// Reads an HTTP answer.
    pub fn response(&mut self) -> Response {
        let mut least = 4;
        let end = loop {
            let bytes = self.want(least);
            match bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => least = bytes.len() + 1,
            }
        };
        let head = String::from_utf8(self.take(end)).unwrap();
        let mut lines = head.trim_end().lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        let mut response = Response { status, headers, body: String::new() };
        let length = response.header("content-length").map_or(0, |length| length.parse().unwrap());
        response.body = String::from_utf8(self.take(length)).unwrap();
        response
    }

    /// Reads a frame; the hub's are never masked.
    pub fn next_frame(&mut self) -> Frame {
        let start = self.want(2);
        let (first, short) = (start[0], start[1]);
        assert_eq!(short & 0x80, 0, "the hub masked a frame");
        let (length, at) = match short {
            126 => (usize::from(u16::from_be_bytes(self.want(4)[2..4].try_into().unwrap())), 4),
            127 => (u64::from_be_bytes(self.want(10)[2..10].try_into().unwrap()) as usize, 10),
            short => (usize::from(short), 2),
        };
        self.want(at + length);
        self.taken += at;
        Frame { first, payload: self.take(length) }
    }

    /// The next message's payload; pings on the way are skipped.
    pub fn next_message(&mut self) -> Frame {
        loop {
            let frame = self.next_frame();
            if frame.first != PING {
                return frame;
            }
        }
    }

    /// The same, or `None` once the connection has ended, be it inside of a message.
    pub fn message_or_end(&mut self) -> Option<Frame> {
        loop {
            if self.has_frame() {
                match self.next_frame() {
                    frame if frame.first == PING => {}
                    frame => return Some(frame),
                }
                continue;
            }
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("neither a message nor an end: {error}"),
            }
        }
    }

    /// Whether a whole frame has been read and not been taken.
    fn has_frame(&self) -> bool {
        let bytes = &self.buffer[self.taken..];
        let length = match bytes {
            [_, 126, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
            [_, 127, long @ ..] if long.len() >= 8 => 10 + u64::from_be_bytes(long[..8].try_into().unwrap()) as usize,
            [_, 126 | 127, ..] | [] | [_] => return false,
            [_, short, ..] => 2 + usize::from(*short),
        };
        bytes.len() >= length
    }

    /// Reads until the hub's close frame and gives its code; pings are skipped.
    pub fn closed(&mut self) -> u16 {
        loop {
            let frame = self.next_frame();
            if frame.first == CLOSE {
                return u16::from_be_bytes([frame.payload[0], frame.payload[1]]);
            }
        }
    }

    /// Reads until the connection ends, however it does.
    ///
    /// # Panics
    ///
    /// When it does not end within the deadline.
    pub fn expect_end(&mut self) {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < DEADLINE, "the hub keeps the connection");
            match self.fill() {
                Ok(true) => self.buffer.clear(),
                Ok(false) => return,
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => return,
                Err(error) => panic!("the hub keeps the connection: {error}"),
            }
        }
    }

    /// A second handle to the same connection, to write while this one reads.
    pub fn another_end(&self) -> RawClient {
        RawClient { stream: self.stream.try_clone().unwrap(), buffer: Vec::new(), taken: 0 }
    }

    /// Sends bytes and the end of the stream in one segment.
    pub fn write_and_finish(&mut self, bytes: &[u8]) {
        SockRef::from(&self.stream).set_tcp_cork(true).unwrap();
        self.write(bytes);
        self.finish();
    }

    /// Says that nothing more comes from here.
    pub fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Cuts the line: the hub sees a reset.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }

    /// The socket, and what has been read from it and not been taken.
    pub fn into_parts(mut self) -> (TcpStream, Vec<u8>) {
        let rest = self.buffer.split_off(self.taken);
        (self.stream, rest)
    }
}
