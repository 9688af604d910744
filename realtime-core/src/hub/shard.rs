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
use super::access::Decision;
use super::commands::HistoryAnswer;
use super::counted::Counted;
use super::delivery::{Delivery, Scratch};
use super::fanout::{ConnectionKey, LocalChannel};
use super::hooks::Held;
use super::inbox::Inbox;
use super::lost_time::{LostTime, thread_time};
use super::manners::Manners;
use super::pacing::Pace;
use super::query::Query;
use super::recovery::{Cursor, CursorKey};
use super::resume::Visit;
use super::roster::Seat;
use super::slices::Gathered;
use super::stats::ShardCounters;
use crate::apps::AppId;
use crate::auth::{Admission, unix_ms};
use crate::close::CloseReason;
use crate::descriptors;
use crate::error::BrokerError;
use crate::history::Page;
use crate::hooks::handlers::Handler;
use crate::message::{Channel, ChannelMap, Position, SocketId};
use crate::presence::Present;
use crate::protocol::{Command, Opening, ProtocolError, Push};
use crate::session::SessionState;
use crate::session::heartbeat::Verdict;
use crate::session::rights::Over;
use crate::transport::link::Link;

/// The inbox's wake-up; connections' tokens are below it.
pub(crate) const WAKE: Token = Token(usize::MAX);
/// Bytes read at once, into a buffer that all connections of the shard share.
pub(super) const READ_BYTES: usize = 64 << 10;
/// How long a peer has to answer a close frame.
pub(super) const CLOSE_MS: u64 = 1_000;
/// How often a held channel's subscribers are looked at.
const HELD_POLL: Duration = Duration::from_millis(5);
/// A turn of the loop, beside its sleep, is shorter than this where the thread has a processor.
const LONG_TURN_MS: u64 = 10;
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
    /// The broker's answer to a cursor that asked for publications up to an offset.
    Page { cursor: CursorKey, until: u64, result: Result<Page, BrokerError> },
    /// The broker's answer to a client's question for a history.
    History { answer: Box<HistoryAnswer>, result: Result<Page, BrokerError> },
    /// The broker has lost track of a channel, and stands at this position.
    Interrupted { channel: Channel, position: Position },
    /// The broker's answer to a subscription.
    Subscribed { channel: Channel, opening: u64, result: Result<Position, BrokerError> },
    /// What subscribers are told of their channel.
    News(Arc<Delivery>),
    /// A user has come online or gone offline, whom these connections watch.
    Presence { app: AppId, user: Arc<str>, watchers: Vec<ConnectionKey> },
    /// Who is on a channel that the shard has begun to hear.
    Watched { channel: Channel, opening: u64, result: Result<Present, BrokerError> },
    /// A place on a channel, or why there is none.
    Entered { connection: ConnectionKey, channel: Channel, seat: Result<Seat, ProtocolError> },
    /// A client's publication was refused by the broker.
    Refused { connection: ConnectionKey, error: ProtocolError },
    /// The control thread's answer to a connection's question.
    Decided { connection: ConnectionKey, ticket: u64, decision: Box<Decision> },
    /// A question, or an operation on connections.
    Query(Query),
    /// Finish what was accepted, say goodbye, end.
    Drain { deadline: Instant },
}

/// A connection as the transport hands it over.
pub(crate) struct Accepted {
    pub(crate) place: Counted,
    pub(crate) link: Box<dyn Link>,
    pub(crate) format: u16,
    pub(crate) opening: Opening,
    pub(crate) admission: Admission,
    /// What the client sent behind its request.
    pub(crate) early: Bytes,
}

/// A connection: a link and what is known of the session.
pub(crate) struct Connection {
    pub(crate) link: Box<dyn Link>,
    pub(crate) session: SessionState,
    pub(crate) generation: u32,
    pub(crate) phase: Phase,
    /// Was too slow while its channel waited for it: nobody waits again until it has caught up.
    pub(super) lagging: bool,
    /// Counted in the shard's number of connections that are more than half full.
    pub(super) crowded: bool,
    pub(super) place: Counted,
    /// The program that handles it.
    pub(super) handler: Option<Arc<Handler>>,
    /// What it waits for a program to decide.
    pub(super) held: Option<Box<Held>>,
    /// The workers have been told of it.
    pub(super) announced: bool,
    /// Of a page that may come back.
    pub(super) visit: Option<Box<Visit>>,
    pub(super) pace: Pace,
}

impl Connection {
    /// Whether what its client sends stays in its socket for now.
    pub(super) fn is_not_read(&self) -> bool {
        self.held.is_some() || self.pace.holds_input()
    }
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
    /// Deliveries and their bytes, for the counters at the next sweep: fan-out itself touches nothing that others read.
    pub(super) delivered: u64,
    pub(super) sent_bytes: u64,
    pub(super) inbox: Arc<Inbox<Job>>,
    pub(super) poll: Poller,
    pub(crate) connections: Slab<Box<Connection>>,
    pub(crate) by_socket: HashMap<SocketId, u32>,
    pub(crate) channels: Slab<LocalChannel>,
    pub(crate) by_channel: ChannelMap<usize>,
    /// Channels opened so far.
    pub(super) openings: u64,
    /// Channels whose next batch can begin.
    pub(super) fresh: VecDeque<usize>,
    /// Channels in the middle of a batch.
    pub(super) under_way: VecDeque<usize>,
    /// What waits to be written to who hears several channels.
    pub(super) gathered: Gathered,
    /// Channels whose next batch waits for their subscribers.
    pub(super) held: Vec<usize>,
    /// Connections that broke while somebody else was being served.
    pub(super) doomed: Vec<(ConnectionKey, CloseReason)>,
    /// Connections that had more to read than their turn allowed.
    pub(super) unread: Vec<ConnectionKey>,
    /// Subscriptions on their way from the past, by connection.
    pub(super) cursors: HashMap<u32, Vec<Cursor>>,
    /// How many there have been.
    pub(super) cursors_made: u64,
    /// Those that can go on.
    pub(super) ready: VecDeque<CursorKey>,
    /// Questions to ask again after the next turn.
    pub(crate) postponed: Vec<Query>,
    /// Connections whose outbox is more than half full.
    pub(super) crowded: usize,
    pub(super) buffer: Vec<u8>,
    pub(crate) scratch: Scratch,
    pub(super) commands: Vec<Command>,
    /// Questions asked of programs so far.
    pub(super) tickets: u64,
    pub(super) next_generation: u32,
    pub(crate) now_ms: u64,
    /// When the next part of the sweep is due, and from which index it starts.
    pub(super) sweep_due: Instant,
    pub(super) sweep_phase: usize,
    pub(super) last_turn: Instant,
    /// How long this turn may sleep.
    planned_ms: u64,
    /// Time in which this thread had no processor.
    lost: LostTime,
    manners: Manners,
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
            gathered: Gathered::default(),
            held: Vec::new(),
            doomed: Vec::new(),
            unread: Vec::new(),
            cursors: HashMap::new(),
            cursors_made: 0,
            ready: VecDeque::new(),
            postponed: Vec::new(),
            crowded: 0,
            buffer: vec![0; READ_BYTES],
            scratch: Scratch::default(),
            commands: Vec::new(),
            tickets: 0,
            next_generation: 0,
            now_ms: 0,
            delivered: 0,
            sent_bytes: 0,
            sweep_due: now,
            sweep_phase: 0,
            last_turn: now,
            planned_ms: u64::MAX / 2,
            lost: LostTime::new(now),
            manners: Manners::default(),
            draining: None,
        }
    }

    pub(crate) fn counters(&self) -> &ShardCounters {
        &self.node.shards[self.index].counters
    }

    /// Runs until drained. After an error, or a panic, the shard is good for [`Shard::give_up`] alone.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut jobs = Vec::new();
        loop {
            let idle = !self.has_fan_out() && self.unread.is_empty() && self.ready.is_empty();
            self.inbox.take(&mut jobs, idle);
            let busy = !idle || !jobs.is_empty();
            let timeout = if busy { Some(Duration::ZERO) } else { self.time_to_sleep() };
            // Who sleeps until somebody comes loses nothing.
            self.planned_ms = timeout.map_or(u64::MAX / 2, |timeout| timeout.as_millis() as u64);
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != ErrorKind::Interrupted
            {
                tracing::error!(%error, shard = self.index, "poll failed");
                return Err(error);
            }
            self.tell_time();
            for event in &events {
                if event.token() != WAKE {
                    self.on_event(event);
                }
            }
            for connection in std::mem::take(&mut self.unread) {
                self.guard(connection, |shard| shard.read(connection, true));
            }
            for query in std::mem::take(&mut self.postponed) {
                self.answer(query);
            }
            for job in jobs.drain(..) {
                self.on_job(job);
            }
            self.fan_out();
            if self.is_under_way() {
                self.manners.give_way();
            }
            self.advance_cursors();
            self.sweep();
            if let Some(deadline) = self.draining
                && self.is_drained(deadline)
            {
                break;
            }
        }
        self.end();
        Ok(())
    }

    fn tell_time(&mut self) {
        let now = Instant::now();
        let turn_ms = now.duration_since(self.last_turn).as_millis() as u64;
        self.last_turn = now;
        self.now_ms = now.duration_since(self.node.started).as_millis() as u64;
        // The process stood still (SIGSTOP, a suspended machine), or the machine has more to do than it can: nobody is to
        // blame for what did not happen in that time, the readers of one busy process least of all.
        let excess_ms = turn_ms.saturating_sub(self.planned_ms);
        if excess_ms <= LONG_TURN_MS {
            return;
        }
        if let Some(lost_ms) = self.lost.take(excess_ms, now, thread_time()) {
            for (_, connection) in &mut self.connections {
                connection.session.heartbeat.forgive(lost_ms);
                connection.session.outbox.forgive(lost_ms);
            }
            for index in &self.held {
                if let Some(since) = &mut self.channels[*index].held_since_ms {
                    *since += lost_ms;
                }
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
            let ends = event.is_read_closed() || event.is_error();
            self.guard(key, |shard| shard.read(key, ends));
        }
    }

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
            Job::Page { cursor, until, result } => self.on_answer(cursor, until, result),
            Job::History { answer, result } => self.guard(answer.connection, |shard| shard.on_late_history(&answer, result)),
            Job::Interrupted { channel, position } => self.on_interrupted(&channel, position),
            Job::Subscribed { channel, opening, result } => self.on_subscribed(&channel, opening, result),
            Job::News(delivery) => {
                if let Some(&index) = self.by_channel.get(&delivery.publication.channel) {
                    self.channels[index].queue_news(delivery);
                    self.enqueue(index);
                }
            }
            Job::Presence { app, user, watchers } => self.on_presence(app, user, watchers),
            Job::Watched { channel, opening, result } => self.on_watched(&channel, opening, result),
            Job::Entered { connection, channel, seat } => self.on_entered(connection, &channel, seat),
            Job::Refused { connection, error } => self.push(connection, &Push::Error(&error)),
            Job::Decided { connection, ticket, decision } => {
                self.guard(connection, |shard| shard.on_decided(connection, ticket, *decision))
            }
            Job::Query(query) => self.answer(query),
            Job::Drain { deadline } => self.draining = Some(deadline),
        }
    }

    // Time

    pub(super) fn sweep_interval(&self) -> Duration {
        let heartbeat = &self.node.config.heartbeat;
        let shortest = heartbeat.ping_interval_ms.min(heartbeat.pong_timeout_ms).min(CLOSE_MS * 2);
        Duration::from_millis((shortest / SWEEPS / SWEEP_PHASES as u64).max(5))
    }

    /// Shows others what fan-out has counted.
    pub(super) fn note_deliveries(&self) {
        self.counters().delivered.store(self.delivered, Relaxed);
        self.counters().sent_bytes.store(self.sent_bytes, Relaxed);
    }

    /// Looks at one part of the connections: pings, close deadlines, outboxes that do not move.
    fn sweep(&mut self) {
        if self.connections.is_empty() || self.last_turn < self.sweep_due {
            return;
        }
        self.sweep_due = self.last_turn + self.sweep_interval();
        self.note_deliveries();
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
            if connection.held.as_ref().is_some_and(|held| now_ms >= held.deadline_ms) {
                self.give_up_waiting(key);
                continue;
            }
            if connection.session.outbox.stalled_ms(now_ms) >= limits.outbox_age_ms {
                self.close(key, CloseReason::SlowClient, "");
                continue;
            }
            if let Some(over) = connection.session.rights.as_ref().and_then(|rights| rights.over(now_ms, unix_ms)) {
                match over {
                    Over::Expired => self.close(key, CloseReason::Expired, ""),
                    Over::Unauthenticated => self.close(key, CloseReason::Unauthorized, "not authenticated in time"),
                }
                continue;
            }
            if connection.is_not_read() {
                // Its silence says nothing. What it waits for has a deadline of its own, or is the outbox, which has one above.
                connection.session.heartbeat.heard(now_ms);
            }
            let is_page = connection.visit.is_some();
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
            if is_page {
                self.ask_page(key);
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

    fn end(&mut self) {
        self.inbox.close();
        for key in self.keys() {
            self.remove(key, CloseReason::Shutdown);
        }
    }

    fn keys(&self) -> Vec<ConnectionKey> {
        (0..self.connections.capacity()).filter_map(|index| self.key(index)).collect()
    }

    /// The end of a shard that has failed: what others know of its connections and channels is taken back, and as much of it as
    /// another fault leaves. Connections' places, in counts and on channels, are objects, and go with them.
    pub(crate) fn give_up(mut self) {
        let index = self.index;
        let carefully = |work: &mut dyn FnMut()| {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!(shard = index, "another panic in what a failed shard leaves behind");
            }
        };
        for key in self.keys() {
            carefully(&mut || self.lose(key));
        }
        carefully(&mut || self.cursors.clear());
        for channel in 0..self.channels.capacity() {
            carefully(&mut || self.abandon_channel(channel));
        }
        let mut rest = Some(self);
        carefully(&mut || drop(rest.take()));
    }
}

/// Parts that a sweep is spread over, so that no turn looks at all connections.
const SWEEP_PHASES: usize = 4;

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

    #[cfg(not(interleavings))]
    fn poll(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        self.0.poll(events, timeout)
    }

    /// Lets others run instead of sleeping. Time stands still: only they can end a sleep, if it is not a short one.
    #[cfg(interleavings)]
    fn poll(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        loop {
            self.0.poll(events, Some(Duration::ZERO))?;
            shuttle::thread::yield_now();
            if !events.is_empty() || timeout.is_some_and(|timeout| timeout <= HELD_POLL * 4) {
                return Ok(());
            }
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        descriptors::closing(self.0.as_raw_fd());
    }
}
