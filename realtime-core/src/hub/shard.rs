//! A thread that owns connections: it polls their sockets, reads, carries out commands, fans out.
//!
//! Everything here runs on the shard's own thread and takes no lock but its inbox's, for a swap.
//! The loop knows connections as links and sessions, channels as lists of connections, and nothing
//! of any protocol.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::{Events, Poll, Registry, Token};
use slab::Slab;

use super::Node;
use super::delivery::{Delivery, Scratch};
use super::fanout::{ConnectionKey, JoinRequest, Joining, LocalChannel, Progress, subscription};
use super::inbox::Inbox;
use super::query::Query;
use super::stats::ShardCounters;
use crate::broker::Reply;
use crate::close::{CloseCode, CloseReason};
use crate::descriptors;
use crate::error::BrokerError;
use crate::message::{Channel, ChannelMap, ChannelRef, Position, SocketId};
use crate::protocol::{Command, Opening, ProtocolError, Push};
use crate::session::SessionState;
use crate::session::heartbeat::Verdict;
use crate::session::outbox::Written;
use crate::transport::link::Link;
use crate::transport::{Event, InboundLimits};

/// The inbox's wake-up; connections' tokens are below it.
pub(crate) const WAKE: Token = Token(usize::MAX);
/// Bytes read at once, into a buffer that all connections of the shard share.
const READ_BYTES: usize = 64 << 10;
/// Reads in a row from one connection before others have their turn.
const MAX_READS: usize = 4;
/// Subscribers written to before the shard looks at its sockets and inbox again, and before the
/// next channel has its turn. The look costs a microsecond or two, some two hundredths of a slice.
const SLICE_WRITES: usize = 128;
/// The same as a time, for a machine or a moment in which a write is slow.
const SLICE_TIME: Duration = Duration::from_micros(250);
/// Subscribers written to between looks at the clock.
const CLOCK_WRITES: usize = 32;
/// How often a held channel's subscribers are looked at.
const HELD_POLL: Duration = Duration::from_millis(5);
/// How long a channel waits for subscribers that do not move.
const HOLD_MS: u64 = 1_000;
/// How long a peer has to answer a close frame.
const CLOSE_MS: u64 = 1_000;
/// A connection is looked at so many times within the shorter of ping interval and pong timeout.
const SWEEPS: u64 = 4;

/// What other threads ask of a shard.
pub(crate) enum Job {
    /// A publication for a channel that the shard has, or had, subscribers of.
    Deliver(Arc<Delivery>),
    /// Other shards to wake, see [`super::routes::Routes::wake`].
    Wake(u64),
    /// A new connection.
    Accept(Box<Accepted>),
    /// The broker's answer to a subscription.
    Subscribed { channel: Channel, opening: u64, result: Result<Position, BrokerError> },
    /// A client's publication was refused by the broker.
    Refused { connection: ConnectionKey, error: ProtocolError },
    /// A question, or an operation on connections.
    Query(Query),
    /// Finish what was accepted, say goodbye, end.
    Drain { deadline: Instant },
}

/// A connection as the transport hands it over.
pub(crate) struct Accepted {
    pub(crate) link: Box<dyn Link>,
    pub(crate) format: u16,
    pub(crate) opening: Opening,
    /// What the client sent behind its request.
    pub(crate) early: Bytes,
}

/// A connection: a link and what is known of the session.
pub(crate) struct Connection {
    pub(crate) link: Box<dyn Link>,
    pub(crate) session: SessionState,
    pub(crate) generation: u32,
    pub(crate) phase: Phase,
    /// Did not move while its channel waited for it: others no longer wait for it.
    stalled: bool,
    /// Counted in the shard's number of connections that are more than half full.
    crowded: bool,
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// A close frame is on its way, or the peer's has come; what it sends is not looked at.
    Closing {
        deadline_ms: u64,
        /// The write direction has been shut.
        finished: bool,
    },
}

/// See the module's documentation.
pub(crate) struct Shard {
    pub(crate) index: usize,
    pub(crate) node: Arc<Node>,
    inbox: Arc<Inbox<Job>>,
    poll: Poller,
    pub(crate) connections: Slab<Box<Connection>>,
    pub(crate) by_socket: HashMap<SocketId, u32>,
    pub(crate) channels: Slab<LocalChannel>,
    pub(crate) by_channel: ChannelMap<usize>,
    /// Channels opened so far.
    openings: u64,
    /// Channels whose next batch can begin.
    fresh: VecDeque<usize>,
    /// Channels in the middle of a batch.
    under_way: VecDeque<usize>,
    /// Channels whose next batch waits for their subscribers.
    held: Vec<usize>,
    /// Connections that broke while somebody else was being served.
    doomed: Vec<(ConnectionKey, CloseReason)>,
    /// Connections that had more to read than their turn allowed.
    unread: Vec<ConnectionKey>,
    /// Questions to ask again after the next turn.
    pub(crate) postponed: Vec<Query>,
    /// Connections whose outbox is more than half full.
    crowded: usize,
    buffer: Vec<u8>,
    pub(crate) scratch: Scratch,
    commands: Vec<Command>,
    next_generation: u32,
    pub(crate) now_ms: u64,
    /// When the next part of the sweep is due, and from which index it starts.
    sweep_due: Instant,
    sweep_phase: usize,
    last_turn: Instant,
    pub(crate) draining: Option<Instant>,
}

impl Shard {
    pub(crate) fn new(index: usize, node: Arc<Node>, inbox: Arc<Inbox<Job>>, poll: Poller) -> Self {
        let now = Instant::now();
        Shard {
            index,
            node,
            inbox,
            poll,
            connections: Slab::new(),
            by_socket: HashMap::new(),
            channels: Slab::new(),
            by_channel: ChannelMap::default(),
            openings: 0,
            fresh: VecDeque::new(),
            under_way: VecDeque::new(),
            held: Vec::new(),
            doomed: Vec::new(),
            unread: Vec::new(),
            postponed: Vec::new(),
            crowded: 0,
            buffer: vec![0; READ_BYTES],
            scratch: Scratch::default(),
            commands: Vec::new(),
            next_generation: 0,
            now_ms: 0,
            sweep_due: now,
            sweep_phase: 0,
            last_turn: now,
            draining: None,
        }
    }

    pub(crate) fn counters(&self) -> &ShardCounters {
        &self.node.shards[self.index].counters
    }

    /// Runs until drained.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut jobs = Vec::new();
        loop {
            let idle = !self.has_fan_out() && self.unread.is_empty();
            self.inbox.take(&mut jobs, idle);
            let busy = !idle || !jobs.is_empty();
            let timeout = if busy { Some(Duration::ZERO) } else { self.time_to_sleep() };
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != ErrorKind::Interrupted
            {
                tracing::error!(%error, shard = self.index, "poll failed, the shard ends");
                break;
            }
            self.tell_time();
            for event in &events {
                if event.token() != WAKE {
                    self.on_event(event);
                }
            }
            for connection in std::mem::take(&mut self.unread) {
                self.guard(connection, |shard| shard.read(connection));
            }
            for query in std::mem::take(&mut self.postponed) {
                self.answer(query);
            }
            for job in jobs.drain(..) {
                self.on_job(job);
            }
            self.fan_out();
            self.sweep();
            if let Some(deadline) = self.draining
                && self.is_drained(deadline)
            {
                break;
            }
        }
        self.end();
    }

    fn tell_time(&mut self) {
        let now = Instant::now();
        let turn_ms = now.duration_since(self.last_turn).as_millis() as u64;
        self.last_turn = now;
        self.now_ms = now.duration_since(self.node.started).as_millis() as u64;
        // The whole process stood still (SIGSTOP, a suspended machine): nobody else is to blame.
        let longest_sleep = self.sweep_interval().as_millis() as u64;
        if turn_ms > longest_sleep + 2_000 && !self.connections.is_empty() {
            for (_, connection) in &mut self.connections {
                connection.session.heartbeat.forgive(turn_ms);
                connection.session.outbox.forgive(turn_ms);
            }
        }
    }

    fn time_to_sleep(&self) -> Option<Duration> {
        let until_sweep = (!self.connections.is_empty()).then(|| self.sweep_due.saturating_duration_since(Instant::now()));
        let until_deadline = self.draining.map(|deadline| deadline.saturating_duration_since(Instant::now()).min(HELD_POLL * 4));
        let until_held = (!self.held.is_empty()).then_some(HELD_POLL);
        let until_postponed = (!self.postponed.is_empty()).then_some(Duration::from_millis(1));
        [until_sweep, until_deadline, until_held, until_postponed].into_iter().flatten().min()
    }

    // Connections

    pub(crate) fn key(&self, index: usize) -> Option<ConnectionKey> {
        let connection = self.connections.get(index)?;
        Some(ConnectionKey { index: index as u32, generation: connection.generation })
    }

    pub(crate) fn connection(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.connections
            .get_mut(key.index as usize)
            .map(|connection| &mut **connection)
            .filter(|connection| connection.generation == key.generation)
    }

    /// Runs one connection's work. A panic there costs that connection only.
    fn guard(&mut self, key: ConnectionKey, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            tracing::error!(shard = self.index, "a connection's handler panicked; the connection is closed");
            self.counters().panics.fetch_add(1, Relaxed);
            self.buffer.resize(READ_BYTES, 0);
            self.close(key, CloseReason::Internal, "");
        }
    }

    fn on_event(&mut self, event: &mio::event::Event) {
        let token = event.token().0;
        let key = ConnectionKey { index: token as u32, generation: (token >> 32) as u32 };
        if self.connection(key).is_none() {
            return;
        }
        if event.is_writable() {
            self.guard(key, |shard| shard.on_writable(key));
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.guard(key, |shard| shard.read(key));
        }
    }

    pub(crate) fn token(key: ConnectionKey) -> Token {
        Token(key.index as usize | (key.generation as usize) << 32)
    }

    fn accept(&mut self, accepted: Accepted) {
        if self.draining.is_some() {
            self.node.connections.fetch_sub(1, Relaxed);
            self.counters().connections.fetch_sub(1, Relaxed);
            return;
        }
        let Accepted { link, format, opening, early } = accepted;
        let Ok(socket_id) = SocketId::random() else {
            tracing::error!("no random numbers; connection refused");
            self.node.connections.fetch_sub(1, Relaxed);
            self.counters().connections.fetch_sub(1, Relaxed);
            return;
        };
        let session = SessionState::new(socket_id, format, opening.state, self.now_ms);
        let Some(key) = self.insert(link, session) else { return };
        self.guard(key, |shard| {
            let ping_interval_ms = shard.node.config.heartbeat.ping_interval_ms;
            shard.push(key, &Push::Connected { socket_id, ping_interval_ms, user_id: None });
            for command in opening.commands {
                shard.carry_out(key, command);
            }
            if !early.is_empty() {
                shard.consume(key, &mut early.to_vec());
            }
        });
    }

    /// Takes a connection in and polls it.
    pub(crate) fn insert(&mut self, mut link: Box<dyn Link>, session: SessionState) -> Option<ConnectionKey> {
        if self.connections.is_empty() {
            // The first connection after a rest starts the sweep anew.
            self.sweep_due = Instant::now() + self.sweep_interval();
        }
        let entry = self.connections.vacant_entry();
        // 31 bits: with the index the token stays below WAKE.
        self.next_generation = (self.next_generation + 1) & 0x7fff_ffff;
        let key = ConnectionKey { index: entry.key() as u32, generation: self.next_generation };
        if let Err(error) = link.register(self.poll.registry(), Self::token(key)) {
            tracing::error!(%error, "cannot poll a connection");
            self.node.connections.fetch_sub(1, Relaxed);
            self.counters().connections.fetch_sub(1, Relaxed);
            return None;
        }
        self.by_socket.insert(session.socket_id, key.index);
        entry.insert(Box::new(Connection {
            link,
            session,
            generation: key.generation,
            phase: Phase::Open,
            stalled: false,
            crowded: false,
        }));
        Some(key)
    }

    fn read(&mut self, key: ConnectionKey) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(READ_BYTES, 0);
        let mut turns = 0;
        let end = loop {
            let now_ms = self.now_ms;
            let Some(connection) = self.connection(key) else { break None };
            match connection.link.receive(&mut buffer) {
                Ok(0) => break Some(CloseReason::Peer),
                Ok(received) => {
                    connection.session.heartbeat.heard(now_ms);
                    self.consume(key, &mut buffer[..received]);
                    turns += 1;
                    if received < READ_BYTES {
                        break None;
                    }
                    if turns == MAX_READS {
                        self.unread.push(key);
                        break None;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break Some(CloseReason::Peer),
            }
        };
        self.buffer = buffer;
        if let Some(reason) = end {
            self.remove(key, reason);
        }
    }

    /// Decodes what came in and carries it out.
    fn consume(&mut self, key: ConnectionKey, mut input: &mut [u8]) {
        let node = self.node.clone();
        let limits =
            InboundLimits { max_message_bytes: node.config.limits.max_message_bytes, max_fragments: node.config.limits.max_fragments };
        let Some(connection) = self.connection(key) else { return };
        let format = &node.formats[usize::from(connection.session.format)];
        let mut inbound = connection.session.inbound.take().map(|inbound| *inbound).unwrap_or_default();
        loop {
            if self.connection(key).is_none_or(|connection| connection.phase != Phase::Open) {
                return;
            }
            match format.framing.next(&mut inbound, &mut input, &limits) {
                Ok(None) => break,
                Ok(Some(Event::Message(message))) => {
                    self.counters().received.fetch_add(1, Relaxed);
                    let mut commands = std::mem::take(&mut self.commands);
                    let Some(connection) = self.connection(key) else { return };
                    let outcome = format.protocol.decode(&mut connection.session.protocol, message, &mut commands);
                    for command in commands.drain(..) {
                        self.carry_out(key, command);
                    }
                    self.commands = commands;
                    if let Err(error) = outcome {
                        self.protocol_error(key, &error);
                    }
                }
                Ok(Some(Event::Ping(payload))) => {
                    // Section 5.5.3 allows to answer only the newest ping; a peer that does not
                    // read its pongs gets no more of them.
                    if self.connection(key).is_some_and(|connection| connection.session.outbox.is_empty()) {
                        let mut frame = Vec::new();
                        format.framing.pong(payload, &mut frame);
                        self.write(key, &Bytes::from(frame));
                    }
                }
                Ok(Some(Event::Pong)) => {}
                Ok(Some(Event::Close(code))) => {
                    self.close_as(key, CloseReason::Peer, CloseCode { code: code.unwrap_or(1000), reason: "" }, "");
                    return;
                }
                Err(error) => {
                    self.counters().protocol_errors.fetch_add(1, Relaxed);
                    self.close(key, error.into(), &error.to_string());
                    return;
                }
            }
        }
        if !inbound.is_idle()
            && let Some(connection) = self.connection(key)
        {
            connection.session.inbound = Some(Box::new(inbound));
        }
    }

    fn on_writable(&mut self, key: ConnectionKey) {
        let now_ms = self.now_ms;
        let Some(connection) = self.connection(key) else { return };
        connection.session.outbox.unblock();
        if connection.session.outbox.is_empty() {
            return;
        }
        let written = connection.session.outbox.flush(&mut *connection.link, now_ms);
        connection.stalled = false;
        self.settle(key, written);
    }

    /// Sends a frame to one connection, or queues it.
    pub(crate) fn write(&mut self, key: ConnectionKey, frame: &Bytes) {
        let now_ms = self.now_ms;
        let Some(connection) = self.connection(key) else { return };
        let written = connection.session.outbox.write(&mut *connection.link, frame, now_ms);
        self.settle(key, written);
    }

    /// Acts on how a write ended: counts, closes a slow client, finishes a close.
    fn settle(&mut self, key: ConnectionKey, written: Written) {
        let limit = self.node.config.limits.outbox_bytes;
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        note_crowding(connection, &mut self.crowded, limit);
        match written {
            Written::Broken => self.remove(key, CloseReason::Peer),
            Written::Part if connection.session.outbox.bytes() > limit => self.close(key, CloseReason::SlowClient, ""),
            Written::Part => {}
            Written::All => self.finish_closing(key),
        }
    }

    /// Shuts the write direction once the close frame is out; the peer's end, or the deadline,
    /// ends the connection. Closing at once could take the close frame with it (RST).
    fn finish_closing(&mut self, key: ConnectionKey) {
        let now_ms = self.now_ms;
        let Some(connection) = self.connection(key) else { return };
        if let Phase::Closing { deadline_ms, finished: finished @ false } = &mut connection.phase {
            *finished = true;
            *deadline_ms = (*deadline_ms).min(now_ms + CLOSE_MS);
            connection.link.finish();
        }
    }

    /// Tells one connection something in its protocol's words.
    pub(crate) fn push(&mut self, key: ConnectionKey, push: &Push<'_>) {
        let node = self.node.clone();
        let mut scratch = std::mem::take(&mut self.scratch);
        let frame = self.connection(key).filter(|connection| connection.phase == Phase::Open).and_then(|connection| {
            let format = &node.formats[usize::from(connection.session.format)];
            scratch.seal(format, |out| format.protocol.push(&connection.session.protocol, push, out))
        });
        self.scratch = scratch;
        if let Some(frame) = frame {
            self.write(key, &frame);
        }
    }

    pub(crate) fn protocol_error(&mut self, key: ConnectionKey, error: &ProtocolError) {
        let limit = self.node.config.limits.max_protocol_errors;
        self.push(key, &Push::Error(error));
        if !error.is_fault {
            return;
        }
        self.counters().protocol_errors.fetch_add(1, Relaxed);
        let Some(connection) = self.connection(key) else { return };
        connection.session.protocol_errors = connection.session.protocol_errors.saturating_add(1);
        if connection.session.protocol_errors >= limit {
            self.close(key, CloseReason::TooManyErrors, "");
        }
    }

    /// Closes with the code that the connection's protocol has for the reason.
    pub(crate) fn close(&mut self, key: ConnectionKey, reason: CloseReason, text: &str) {
        let node = self.node.clone();
        let Some(connection) = self.connection(key) else { return };
        let code = node.formats[usize::from(connection.session.format)].protocol.close_code(reason);
        let text = if text.is_empty() { code.reason } else { text };
        self.close_as(key, reason, code, text);
    }

    fn close_as(&mut self, key: ConnectionKey, reason: CloseReason, code: CloseCode, text: &str) {
        let node = self.node.clone();
        let (now_ms, limit) = (self.now_ms, self.node.config.limits.outbox_bytes);
        // What a drain still has to hand over may take as long as the drain.
        let drain = self.draining.filter(|_| reason == CloseReason::Shutdown);
        let deadline_ms = drain.map_or(now_ms + CLOSE_MS, |end| end.saturating_duration_since(node.started).as_millis() as u64);
        let Some(connection) = self.connection(key) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        connection.phase = Phase::Closing { deadline_ms, finished: false };
        self.node.shards[self.index].counters.count_close(reason);
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        if reason != CloseReason::Shutdown {
            connection.session.outbox.abandon();
        }
        let mut frame = Vec::new();
        node.formats[usize::from(connection.session.format)].framing.close(code, text, &mut frame);
        let written = connection.session.outbox.write(&mut *connection.link, &Bytes::from(frame), now_ms);
        if let Some(connection) = self.connections.get_mut(key.index as usize) {
            note_crowding(connection, &mut self.crowded, limit);
        }
        self.leave_all(key);
        match written {
            Written::Broken => self.remove(key, reason),
            Written::All => self.finish_closing(key),
            Written::Part => {}
        }
    }

    /// Ends a connection now: socket, then maps.
    pub(crate) fn remove(&mut self, key: ConnectionKey, reason: CloseReason) {
        let Some(connection) = self.connection(key) else { return };
        if connection.phase == Phase::Open {
            self.counters().count_close(reason);
        }
        self.leave_all(key);
        let Some(mut connection) = self.connections.try_remove(key.index as usize) else { return };
        self.crowded -= usize::from(connection.crowded);
        self.by_socket.remove(&connection.session.socket_id);
        connection.link.deregister(self.poll.registry());
        drop(connection);
        self.counters().connections.fetch_sub(1, Relaxed);
        self.node.connections.fetch_sub(1, Relaxed);
        if self.connections.is_empty() {
            // Gives back what a crowd needed.
            self.connections = Slab::new();
            self.by_socket = HashMap::new();
        }
    }

    /// Takes a connection out without ending it: it goes on elsewhere.
    pub(crate) fn take_out(&mut self, key: ConnectionKey) -> Option<Box<Connection>> {
        self.leave_all(key);
        let mut connection = self.connections.try_remove(key.index as usize)?;
        self.crowded -= usize::from(connection.crowded);
        self.by_socket.remove(&connection.session.socket_id);
        connection.link.deregister(self.poll.registry());
        Some(connection)
    }

    // Commands

    fn carry_out(&mut self, key: ConnectionKey, command: Command) {
        if self.connection(key).is_none_or(|connection| connection.phase != Phase::Open) {
            return;
        }
        if let Err(error) = self.apply(key, command) {
            self.protocol_error(key, &error);
        }
    }

    // Subscriptions

    /// Makes a connection a subscriber, at once or when the broker has answered.
    pub(crate) fn join(&mut self, key: ConnectionKey, name: &str, request: JoinRequest) {
        let node = self.node.clone();
        let name = node.channel_ref(name);
        let index = match self.find_channel(name) {
            Some(index) => index,
            None => self.open_channel(name),
        };
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        connection.session.joining += 1;
        self.channels[index].joining.push(Joining { connection: key, request });
        if self.channels[index].position.is_some() {
            self.admit(index);
            self.close_channel_if_unused(index);
        }
    }

    pub(crate) fn find_channel(&self, name: ChannelRef<'_>) -> Option<usize> {
        self.by_channel.get(&name).copied()
    }

    /// Starts to hear a channel. The broker's answer makes it live.
    pub(crate) fn open_channel(&mut self, name: ChannelRef<'_>) -> usize {
        let node = self.node.clone();
        let (channel, load, reply) = node.gain_interest(name, self.index);
        self.openings += 1;
        let opening = self.openings;
        let index = self.channels.insert(LocalChannel::new(channel.clone(), load, opening));
        self.by_channel.insert(channel.clone(), index);
        match reply {
            Reply::Now(Ok(position)) => self.channels[index].start_at(position),
            Reply::Now(Err(error)) => {
                // As if it came later: the caller has yet to add who joins.
                node.shards[self.index].inbox.push(Job::Subscribed { channel, opening, result: Err(error) });
            }
            Reply::Later(promise) => {
                let shard = self.index;
                let weak = Arc::downgrade(&node);
                promise.then(move |result| {
                    if let Some(node) = weak.upgrade() {
                        node.shards[shard].inbox.push(Job::Subscribed { channel, opening, result });
                    }
                });
            }
        }
        index
    }

    fn on_subscribed(&mut self, channel: &Channel, opening: u64, result: Result<Position, BrokerError>) {
        let Some(&index) = self.by_channel.get(channel) else { return };
        // An answer from before the channel was left and joined again does not know what was
        // missed in between.
        if self.channels[index].position.is_some() || self.channels[index].opening != opening {
            return;
        }
        match result {
            Ok(position) => {
                self.channels[index].start_at(position);
                self.admit(index);
                self.enqueue(index);
            }
            Err(error) => {
                for joining in std::mem::take(&mut self.channels[index].joining) {
                    if let Some(connection) = self.connection(joining.connection) {
                        connection.session.joining -= 1;
                    }
                    if let JoinRequest::Client { id, .. } = joining.request {
                        let error = ProtocolError::refusal("unavailable", format!("cannot subscribe now: broker {error}")).with_id(id);
                        self.push(joining.connection, &Push::Error(&error));
                    }
                }
            }
        }
        self.close_channel_if_unused(index);
    }

    /// Makes those who wait subscribers. The answer goes out before anything of the channel.
    fn admit(&mut self, index: usize) {
        // An answer can end the connection that it goes to, and with it the channel's last
        // subscriber: the channel stays until all have been answered.
        self.channels[index].pins += 1;
        for Joining { connection: key, request } in std::mem::take(&mut self.channels[index].joining) {
            let Some(connection) = self.connection(key) else { continue };
            connection.session.joining -= 1;
            if connection.phase != Phase::Open {
                continue;
            }
            if connection.session.subscriptions.find(index as u32).is_none() {
                self.add_subscriber(key, index);
            }
            if let JoinRequest::Client { id, recover } = request {
                self.push_subscribed(key, index, id.as_ref(), recover);
            }
        }
        self.channels[index].pins -= 1;
    }

    pub(crate) fn push_subscribed(&mut self, key: ConnectionKey, index: usize, id: Option<&crate::protocol::RequestId>, recover: bool) {
        let channel = self.channels[index].channel.clone();
        let Some(position) = self.channels[index].position else { return };
        // Nothing is kept to recover from yet, so a client that asks is told so.
        let recovered = recover.then_some(false);
        self.push(key, &Push::Subscribed { id, channel: channel.name(), position, recovered });
    }

    pub(crate) fn add_subscriber(&mut self, key: ConnectionKey, index: usize) {
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        let at = connection.session.subscriptions.len() as u32;
        let slot = self.channels[index].add(key.index, at);
        connection.session.subscriptions.push(subscription(index, slot));
        self.counters().subscriptions.fetch_add(1, Relaxed);
    }

    /// Ends one subscription.
    pub(crate) fn leave(&mut self, key: ConnectionKey, at: usize) {
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        let (subscription, moved) = connection.session.subscriptions.remove(at);
        if let Some(moved) = moved
            && let Some(subscriber) = self.channels[moved.channel as usize].subscribers.get_mut(moved.slot as usize)
        {
            subscriber.at = at as u32;
        }
        let index = subscription.channel as usize;
        if let Some(other) = self.channels[index].remove(subscription.slot)
            && let Some(connection) = self.connections.get_mut(other.connection as usize)
        {
            connection.session.subscriptions.set_slot(other.at, subscription.slot);
        }
        self.counters().subscriptions.fetch_sub(1, Relaxed);
        self.close_channel_if_unused(index);
    }

    fn leave_all(&mut self, key: ConnectionKey) {
        while let Some(last) = self.connection(key).and_then(|connection| connection.session.subscriptions.len().checked_sub(1)) {
            self.leave(key, last);
        }
    }

    /// Stops hearing a channel that nobody here needs.
    pub(crate) fn close_channel_if_unused(&mut self, index: usize) {
        let Some(channel) = self.channels.get(index) else { return };
        // A batch under way ends first, and looks here again.
        if !channel.is_unused() || !channel.is_between_batches() || channel.queued || channel.held_since_ms.is_some() {
            return;
        }
        let channel = self.channels.remove(index);
        self.by_channel.remove(&channel.channel);
        self.node.lose_interest(&channel.channel, self.index);
        if self.by_channel.is_empty() {
            self.channels = Slab::new();
            self.by_channel = ChannelMap::default();
        }
    }

    // Fan-out

    fn on_job(&mut self, job: Job) {
        match job {
            Job::Deliver(delivery) => {
                if let Some(&index) = self.by_channel.get(&delivery.publication.channel) {
                    self.channels[index].queue(delivery);
                    self.enqueue(index);
                }
            }
            Job::Wake(shards) => self.node.routes.wake_both_halves(shards),
            Job::Accept(accepted) => self.accept(*accepted),
            Job::Subscribed { channel, opening, result } => self.on_subscribed(&channel, opening, result),
            Job::Refused { connection, error } => self.push(connection, &Push::Error(&error)),
            Job::Query(query) => self.answer(query),
            Job::Drain { deadline } => self.draining = Some(deadline),
        }
    }

    fn has_fan_out(&self) -> bool {
        !self.fresh.is_empty() || !self.under_way.is_empty()
    }

    fn enqueue(&mut self, index: usize) {
        let channel = &mut self.channels[index];
        if !channel.queued && channel.held_since_ms.is_none() && channel.has_work() {
            channel.queued = true;
            if channel.is_between_batches() {
                self.fresh.push_back(index);
            } else {
                self.under_way.push_back(index);
            }
        }
    }

    /// Serves the channels that have work. Those about to begin a batch come first, so that a
    /// publication to a small channel does not queue behind a large one's fan-out; those in the
    /// middle of one have a slice of each turn for themselves, so that they always get on.
    fn fan_out(&mut self) {
        self.look_at_held();
        let mut slice = Slice::new();
        while !slice.is_over()
            && let Some(index) = self.fresh.pop_front()
        {
            self.channels[index].queued = false;
            match self.begin_batch(index) {
                Progress::More => self.run_slice(index, &mut slice),
                Progress::Idle => self.close_channel_if_unused(index),
            }
        }
        let mut slice = Slice::new();
        while !slice.is_over()
            && let Some(index) = self.under_way.pop_front()
        {
            self.channels[index].queued = false;
            self.run_slice(index, &mut slice);
        }
        for (key, reason) in std::mem::take(&mut self.doomed) {
            match reason {
                CloseReason::SlowClient => self.close(key, reason, ""),
                _ => self.remove(key, reason),
            }
        }
    }

    /// Goes on with a channel's batch until it or the slice is over.
    fn run_slice(&mut self, index: usize, slice: &mut Slice) {
        while !slice.is_over() {
            let served = self.serve(index, slice.writes.min(CLOCK_WRITES));
            slice.spend(served);
            if served == 0 {
                break;
            }
        }
        self.end_slice(index);
    }

    fn begin_batch(&mut self, index: usize) -> Progress {
        if self.crowded > 0 && self.must_wait(index) {
            self.channels[index].held_since_ms = Some(self.now_ms);
            self.held.push(index);
            return Progress::Idle;
        }
        let Shard { channels, by_socket, .. } = self;
        channels[index].begin_batch(|socket| by_socket.get(socket).copied());
        if channels[index].is_between_batches() { Progress::Idle } else { Progress::More }
    }

    /// Writes the batch to the next subscribers; says to how many.
    fn serve(&mut self, index: usize, writes: usize) -> usize {
        let Shard { channels, connections, node, scratch, doomed, crowded, now_ms, .. } = self;
        let limit = node.config.limits.outbox_bytes;
        let connections = std::cell::RefCell::new(connections);
        channels[index].run(
            writes,
            &node.formats,
            scratch,
            |at| {
                let connections = connections.borrow();
                let connection = connections.get(at as usize)?;
                (connection.phase == Phase::Open).then(|| connection.session.format_key())
            },
            |at, frame| {
                let mut connections = connections.borrow_mut();
                let Some(connection) = connections.get_mut(at as usize) else { return };
                let key = ConnectionKey { index: at, generation: connection.generation };
                match connection.session.outbox.write(&mut *connection.link, frame, *now_ms) {
                    Written::All => {}
                    Written::Broken => doomed.push((key, CloseReason::Peer)),
                    Written::Part => {
                        note_crowding(connection, crowded, limit);
                        if connection.session.outbox.bytes() > limit {
                            doomed.push((key, CloseReason::SlowClient));
                        }
                    }
                }
            },
        )
    }

    fn end_slice(&mut self, index: usize) {
        let Shard { channels, connections, node, .. } = self;
        let progress = channels[index].finish_batch(&node.routes.pool, |subscriber, slot| {
            if let Some(connection) = connections.get_mut(subscriber.connection as usize) {
                connection.session.subscriptions.set_slot(subscriber.at, slot);
            }
        });
        match progress {
            Progress::More => self.enqueue(index),
            Progress::Idle => self.close_channel_if_unused(index),
        }
    }

    /// Whether most of a channel's subscribers are more than half full and moving: its next batch
    /// waits for them, so that a healthy subscriber is not closed because a publisher was fast.
    fn must_wait(&self, index: usize) -> bool {
        let channel = &self.channels[index];
        let mut spare = channel.live() / 2;
        for subscriber in &channel.subscribers {
            let Some(connection) = self.connections.get(subscriber.connection as usize) else { continue };
            if connection.crowded && !connection.stalled && connection.phase == Phase::Open {
                match spare.checked_sub(1) {
                    Some(left) => spare = left,
                    None => return true,
                }
            }
        }
        false
    }

    /// Lets go of the held channels that need not, or may no longer, wait.
    fn look_at_held(&mut self) {
        let mut at = 0;
        while let Some(&index) = self.held.get(at) {
            let since = self.channels[index].held_since_ms.unwrap_or(0);
            let waits = self.must_wait(index);
            if waits && self.now_ms.saturating_sub(since) < HOLD_MS {
                at += 1;
                continue;
            }
            if waits {
                // Who took nothing all that time is not healthy; the others may wait again.
                let Shard { channels, connections, .. } = self;
                for subscriber in &channels[index].subscribers {
                    if let Some(connection) = connections.get_mut(subscriber.connection as usize) {
                        connection.stalled = connection.crowded && connection.session.outbox.progress_ms() <= since;
                    }
                }
            }
            self.held.swap_remove(at);
            self.channels[index].held_since_ms = None;
            self.enqueue(index);
            self.close_channel_if_unused(index);
        }
    }

    // Time

    fn sweep_interval(&self) -> Duration {
        let heartbeat = &self.node.config.heartbeat;
        let shortest = heartbeat.ping_interval_ms.min(heartbeat.pong_timeout_ms).min(CLOSE_MS * 2);
        Duration::from_millis((shortest / SWEEPS / SWEEP_PHASES as u64).max(5))
    }

    /// Looks at one part of the connections: pings, close deadlines, outboxes that do not move.
    fn sweep(&mut self) {
        if self.connections.is_empty() || self.last_turn < self.sweep_due {
            return;
        }
        self.sweep_due = self.last_turn + self.sweep_interval();
        let node = self.node.clone();
        let (heartbeat, limits) = (&node.config.heartbeat, &node.config.limits);
        let phase = self.sweep_phase;
        self.sweep_phase = (phase + 1) % SWEEP_PHASES;
        for index in (phase..self.connections.capacity()).step_by(SWEEP_PHASES) {
            let now_ms = self.now_ms;
            let Some(connection) = self.connections.get_mut(index) else { continue };
            let key = ConnectionKey { index: index as u32, generation: connection.generation };
            match connection.phase {
                Phase::Closing { deadline_ms, .. } => {
                    if now_ms >= deadline_ms {
                        self.remove(key, CloseReason::Peer);
                    }
                    continue;
                }
                Phase::Open => {}
            }
            if connection.session.outbox.stalled_ms(now_ms) >= limits.outbox_age_ms {
                self.close(key, CloseReason::SlowClient, "");
                continue;
            }
            match connection.session.heartbeat.check(now_ms, heartbeat.ping_interval_ms, heartbeat.pong_timeout_ms) {
                Verdict::Alive => {}
                Verdict::Dead => self.close(key, CloseReason::PongTimeout, ""),
                Verdict::Ping => {
                    let mut frame = Vec::new();
                    if node.formats[usize::from(connection.session.format)].framing.ping(&mut frame) {
                        self.write(key, &Bytes::from(frame));
                    }
                }
            }
        }
    }

    // The end

    /// Whether everything accepted is written and everybody is gone, or time is up.
    fn is_drained(&mut self, deadline: Instant) -> bool {
        if Instant::now() >= deadline {
            return true;
        }
        if self.has_fan_out() || !self.held.is_empty() {
            return false;
        }
        let open: Vec<ConnectionKey> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.phase == Phase::Open)
            .map(|(index, connection)| ConnectionKey { index: index as u32, generation: connection.generation })
            .collect();
        for key in open {
            self.close(key, CloseReason::Shutdown, "");
        }
        self.connections.is_empty()
    }

    fn end(mut self) {
        self.inbox.close();
        let keys: Vec<_> = (0..self.connections.capacity()).filter_map(|index| self.key(index)).collect();
        for key in keys {
            self.remove(key, CloseReason::Shutdown);
        }
    }
}

/// How much of a turn has been spent on fan-out.
struct Slice {
    writes: usize,
    end: Instant,
    out_of_time: bool,
}

impl Slice {
    fn new() -> Self {
        Slice { writes: SLICE_WRITES, end: Instant::now() + SLICE_TIME, out_of_time: false }
    }

    fn is_over(&self) -> bool {
        self.writes == 0 || self.out_of_time
    }

    fn spend(&mut self, writes: usize) {
        // A channel without subscribers left must not hold the turn for ever.
        self.writes = self.writes.saturating_sub(writes.max(1));
        self.out_of_time = Instant::now() >= self.end;
    }
}

/// Parts that a sweep is spread over, so that no turn looks at all connections.
const SWEEP_PHASES: usize = 4;

/// Keeps the shard's count of connections whose outbox is more than half full.
fn note_crowding(connection: &mut Connection, crowded: &mut usize, limit: usize) {
    let is = connection.session.outbox.bytes() > limit / 2;
    if is != connection.crowded {
        connection.crowded = is;
        if is {
            *crowded += 1;
        } else {
            *crowded -= 1;
        }
    }
}

/// A shard's poller, noted in [`descriptors`].
pub(crate) struct Poller(Poll);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        descriptors::opened(poll.as_raw_fd());
        Ok(Poller(poll))
    }

    pub(crate) fn registry(&self) -> &Registry {
        self.0.registry()
    }

    fn poll(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        self.0.poll(events, timeout)
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        descriptors::closing(self.0.as_raw_fd());
    }
}
