//! The load generator: one thread, one epoll, any number of subscribed connections, and what arrives on them.
//!
//! It competes with the servers for the machine's cores, so it copies and allocates nothing per frame: every connection is read into one
//! scratch buffer, and only a frame cut by the end of a read is kept with its connection.

use crate::clock::now_ns;
use crate::control::{Arrival, Collected, Dialect, LoadCommand, Snapshot, answer};
use crate::wire::{client_frame, find_stamp, first_frame};
use anyhow::{Context, Result, bail, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use serde_json::json;
use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpStream};

/// Edge-triggered: the kernel does not look again at sockets that were just read.
const INTEREST: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::RDHUP).union(epoll::EventFlags::ET);
const STDIN: u64 = u64::MAX;
const SCRATCH_BYTES: usize = 256 * 1024;
const EVENTS_PER_TURN: usize = 1024;
/// Unfinished handshakes at a time: below the accept backlog of every server here.
const HANDSHAKES_AT_ONCE: usize = 100;
const CONNECT_DEADLINE_NS: u64 = 120_000_000_000;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Runs until standard input closes.
pub(crate) fn run() -> Result<()> {
    let mut generator = Generator::new()?;
    while generator.turn()? {}
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Upgrading,
    /// Text frames to see before the connection is ready.
    Greeting(usize),
    Open,
    Closed,
}

struct Connection {
    socket: TcpStream,
    number: usize,
    phase: Phase,
    /// The start of a frame whose end was not read yet.
    partial: Vec<u8>,
}

/// The latencies of one publication.
struct Message {
    stamp_ns: u64,
    latencies: Vec<u64>,
}

#[derive(Default)]
struct Counters {
    stamps: bool,
    deliveries: u64,
    bytes: u64,
    closed: u64,
    messages: Vec<Message>,
    by_stamp: HashMap<u64, usize>,
    newest: usize,
}

impl Counters {
    fn reset(&mut self, stamps: bool) {
        *self = Self { stamps, ..Self::default() };
    }

    #[inline]
    fn arrived(&mut self, payload: &[u8], now: u64) {
        if !self.stamps {
            self.deliveries += 1;
            return;
        }
        let Some(stamp_ns) = find_stamp(payload) else { return };
        self.deliveries += 1;
        if self.messages.get(self.newest).is_none_or(|message| message.stamp_ns != stamp_ns) {
            self.newest = *self.by_stamp.entry(stamp_ns).or_insert_with(|| {
                let expected = self.messages.last().map_or(64, |message| message.latencies.len());
                self.messages.push(Message { stamp_ns, latencies: Vec::with_capacity(expected) });
                self.messages.len() - 1
            });
        }
        self.messages[self.newest].latencies.push(now.saturating_sub(stamp_ns));
    }

    fn collected(&mut self, complete: bool) -> Collected {
        let mut messages: Vec<Arrival> = self
            .messages
            .iter_mut()
            .map(|message| {
                message.latencies.sort_unstable();
                Arrival {
                    stamp_ns: message.stamp_ns,
                    received: message.latencies.len(),
                    median_ns: message.latencies[message.latencies.len() / 2],
                    last_ns: message.latencies.last().copied().unwrap_or(0),
                }
            })
            .collect();
        messages.sort_unstable_by_key(|arrival| arrival.stamp_ns);
        Collected { complete, deliveries: self.deliveries, closed: self.closed, messages }
    }
}

/// What every connection of one `Connect` command has in common.
struct Plan {
    dialect: Dialect,
    modulo: usize,
    send: Vec<String>,
    greetings: usize,
}

struct Generator {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    connections: Vec<Connection>,
    plan: Plan,
    ready: usize,
    counters: Counters,
    scratch: Vec<u8>,
    commands: Vec<u8>,
    /// A `Collect` that waits: the deliveries wanted and the moment to give up.
    waiting: Option<(u64, u64)>,
}

impl Generator {
    fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, std::io::stdin(), epoll::EventData::new_u64(STDIN), epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            events: Vec::with_capacity(EVENTS_PER_TURN),
            connections: Vec::new(),
            plan: Plan { dialect: Dialect::Websocket, modulo: 1, send: Vec::new(), greetings: 0 },
            ready: 0,
            counters: Counters::default(),
            scratch: vec![0; SCRATCH_BYTES],
            commands: Vec::new(),
            waiting: None,
        })
    }

    /// Handles what is ready now; false when standard input has closed.
    fn turn(&mut self) -> Result<bool> {
        self.wait_for_events()?;
        let mut open = true;
        for at in 0..self.events.len() {
            let epoll::Event { data, flags } = self.events[at];
            if data.u64() == STDIN {
                open = self.read_commands()?;
            } else {
                self.read_connection(usize::try_from(data.u64())?, flags)?;
            }
        }
        self.answer_collect()?;
        Ok(open)
    }

    fn wait_for_events(&mut self) -> Result<()> {
        let timeout = self.waiting.map(|(_, deadline)| {
            let left = deadline.saturating_sub(now_ns());
            Timespec { tv_sec: (left / 1_000_000_000) as i64, tv_nsec: (left % 1_000_000_000) as i64 }
        });
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn read_commands(&mut self) -> Result<bool> {
        let mut bytes = [0; 16 * 1024];
        let count = rustix::io::read(std::io::stdin(), &mut bytes)?;
        self.commands.extend_from_slice(&bytes[..count]);
        while let Some(end) = self.commands.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.commands.drain(..=end).collect();
            let command = serde_json::from_slice(&line).context("command line")?;
            self.execute(command)?;
        }
        Ok(count > 0)
    }

    fn execute(&mut self, command: LoadCommand) -> Result<()> {
        match command {
            LoadCommand::Connect { port, path, count, modulo, dialect, send, greetings } => {
                self.plan = Plan { dialect, modulo: modulo.max(1), send, greetings };
                self.connect(port, &path, count)?;
                answer(&json!({ "ready": self.ready }))
            }
            LoadCommand::Reset { stamps } => {
                self.counters.reset(stamps);
                Ok(())
            }
            LoadCommand::Collect { deliveries, timeout_ms } => {
                self.waiting = Some((deliveries, now_ns() + timeout_ms * 1_000_000));
                Ok(())
            }
            LoadCommand::Snapshot => answer(&Snapshot {
                at_ns: now_ns(),
                deliveries: self.counters.deliveries,
                bytes: self.counters.bytes,
                open: self.ready,
                closed: self.counters.closed,
            }),
        }
    }

    fn answer_collect(&mut self) -> Result<()> {
        let Some((wanted, deadline)) = self.waiting else { return Ok(()) };
        let complete = self.counters.deliveries >= wanted;
        if complete || now_ns() >= deadline {
            self.waiting = None;
            answer(&self.counters.collected(complete))?;
        }
        Ok(())
    }

    fn connect(&mut self, port: u16, path: &str, count: usize) -> Result<()> {
        let deadline = now_ns() + CONNECT_DEADLINE_NS;
        let goal = self.connections.len() + count;
        while self.ready < goal {
            while self.connections.len() < goal && self.connections.len() - self.ready < HANDSHAKES_AT_ONCE {
                self.open(port, path)?;
            }
            self.wait_for_events()?;
            for at in 0..self.events.len() {
                let epoll::Event { data, flags } = self.events[at];
                ensure!(data.u64() != STDIN, "a command came before the connections were ready");
                self.read_connection(usize::try_from(data.u64())?, flags)?;
            }
            ensure!(self.counters.closed == 0, "the server closed a connection during the handshake");
            ensure!(now_ns() < deadline, "only {} of {goal} connections became ready", self.ready);
        }
        Ok(())
    }

    fn open(&mut self, port: u16, path: &str) -> Result<()> {
        let number = self.connections.len();
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connecting")?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            self.numbered(path, number)
        );
        write(&socket, request.as_bytes())?;
        socket.set_nonblocking(true)?;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(number as u64), INTEREST)?;
        self.connections.push(Connection { socket, number, phase: Phase::Upgrading, partial: Vec::new() });
        Ok(())
    }

    fn numbered(&self, template: &str, number: usize) -> String {
        template.replace("{n}", &(number % self.plan.modulo).to_string())
    }

    /// Reads a connection until it has nothing more: a short read says so, unless its peer has left.
    fn read_connection(&mut self, at: usize, flags: epoll::EventFlags) -> Result<()> {
        let ends = flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        while self.connections[at].phase != Phase::Closed {
            let filled = self.read_once(at)?;
            if filled < SCRATCH_BYTES && !ends {
                break;
            }
        }
        Ok(())
    }

    /// One read and its frames; returns how much of the scratch buffer was used.
    fn read_once(&mut self, at: usize) -> Result<usize> {
        let connection = &mut self.connections[at];
        let kept = connection.partial.len();
        self.scratch[..kept].copy_from_slice(&connection.partial);
        connection.partial.clear();
        let filled = match rustix::io::read(&connection.socket, &mut self.scratch[kept..]) {
            Ok(0) | Err(Errno::CONNRESET) => {
                connection.phase = Phase::Closed;
                self.counters.closed += 1;
                epoll::delete(&self.epoll, &connection.socket)?;
                return Ok(0);
            }
            Ok(count) => {
                self.counters.bytes += count as u64;
                kept + count
            }
            Err(Errno::AGAIN | Errno::INTR) => kept,
            Err(error) => return Err(error).context("reading a connection"),
        };
        let now = now_ns();
        // The buffer leaves `self` for the loop, so that frames can borrow it while the counters change.
        let scratch = std::mem::take(&mut self.scratch);
        let used = self.consume(at, &scratch[..filled], now);
        self.connections[at].partial.extend_from_slice(&scratch[*used.as_ref().unwrap_or(&filled)..filled]);
        self.scratch = scratch;
        ensure!(self.connections[at].partial.len() < SCRATCH_BYTES, "a frame larger than the scratch buffer");
        used?;
        Ok(filled)
    }

    /// Handles every complete frame of `bytes`; returns how many bytes that were.
    fn consume(&mut self, at: usize, bytes: &[u8], now: u64) -> Result<usize> {
        let mut used = 0;
        if self.connections[at].phase == Phase::Upgrading {
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(0) };
            if !bytes.starts_with(b"HTTP/1.1 101 ") {
                bail!("no upgrade: {}", String::from_utf8_lossy(&bytes[..end]));
            }
            used = end + 4;
            self.upgraded(at)?;
        }
        while let Some(frame) = first_frame(&bytes[used..]) {
            used += frame.length;
            match (frame.opcode, self.connections[at].phase) {
                (TEXT, Phase::Open) if self.plan.dialect == Dialect::Websocket => self.counters.arrived(frame.payload, now),
                (TEXT, _) => self.text(at, frame.payload, now)?,
                (PING, _) => write(&self.connections[at].socket, &client_frame(PONG, frame.payload))?,
                (CLOSE, _) => write(&self.connections[at].socket, &client_frame(CLOSE, frame.payload))?,
                _ => {}
            }
        }
        Ok(used)
    }

    fn upgraded(&mut self, at: usize) -> Result<()> {
        let connection = &self.connections[at];
        let mut frames = Vec::new();
        for text in &self.plan.send {
            frames.extend_from_slice(&client_frame(TEXT, self.numbered(text, connection.number).as_bytes()));
        }
        write(&connection.socket, &frames)?;
        let greetings = self.plan.greetings;
        self.connections[at].phase = Phase::Greeting(greetings);
        if greetings == 0 {
            self.becomes_ready(at);
        }
        Ok(())
    }

    fn becomes_ready(&mut self, at: usize) {
        self.connections[at].phase = Phase::Open;
        self.ready += 1;
    }

    /// A text frame that is not simply a message on an open WebSocket.
    fn text(&mut self, at: usize, payload: &[u8], now: u64) -> Result<()> {
        let connection = &self.connections[at];
        match (self.plan.dialect, connection.phase, payload) {
            (Dialect::Websocket, Phase::Greeting(left), _) if left > 1 => self.connections[at].phase = Phase::Greeting(left - 1),
            (Dialect::Websocket, _, _) => self.becomes_ready(at),
            // Engine.IO: 0 open, 2 ping, 3 pong, 4 message; Socket.IO inside a message: 0 connect, 2 event.
            (Dialect::Socketio, _, [b'0', ..]) => write(&connection.socket, &client_frame(TEXT, b"40"))?,
            (Dialect::Socketio, _, [b'2', ..]) => write(&connection.socket, &client_frame(TEXT, b"3"))?,
            (Dialect::Socketio, Phase::Open, [b'4', b'2', ..]) => self.counters.arrived(payload, now),
            (Dialect::Socketio, Phase::Greeting(_), [b'4', b'0', ..]) => self.becomes_ready(at),
            (Dialect::Socketio, _, _) => {}
        }
        Ok(())
    }
}

/// Sends a small control message. What the generator sends always fits the socket's buffer; a peer that is gone shows on the next read.
fn write(socket: &TcpStream, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    match rustix::net::send(socket, bytes, rustix::net::SendFlags::NOSIGNAL) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(count) => bail!("only {count} of {} bytes were accepted", bytes.len()),
        Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
        Err(error) => Err(error).context("writing to a connection"),
    }
}
