//! Connections that a program handles: what it is told, what it decides, what it does with them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use serde_json::value::RawValue;

use super::commands::check_channel;
use super::fanout::{ConnectionKey, JoinRequest};
use super::query::{Query, tell};
use super::shard::{Connection, Job, Phase, Shard};
use crate::close::CloseReason;
use crate::hooks::handlers::Handler;
use crate::hooks::{Event, Kind};
use crate::message::{Body, Channel, Epoch, EventName, Position, Publication, SocketId, channel_hash, validate_channel};
use crate::protocol::{Command, ProtocolError, Push, RelayBody, RequestId};

/// The event under which raw messages reach a program.
const RAW_EVENT: &str = "message";
/// The channel that what is sent to one connection is said to be on: no client is shown it.
const DIRECT_CHANNEL: &str = "#connection";

/// A connection that waits for a program to decide. What its client sends meanwhile waits too.
pub(super) struct Held {
    ticket: u64,
    step: Step,
    commands: VecDeque<Command>,
    input: Vec<u8>,
    pub(super) deadline_ms: u64,
}

/// What is to be decided.
enum Step {
    Connect { greeted: bool },
    Subscribe(Command),
}

/// What a program has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow,
    Refuse { reason: String },
}

/// What a program does with a connection.
pub(crate) enum Act {
    /// Sends it a message.
    Send {
        event: String,
        body: Body,
    },
    /// Answers a message by its id.
    Answer {
        id: RequestId,
        data: Result<String, String>,
    },
    Join {
        channel: String,
    },
    Leave {
        channel: String,
    },
    Close {
        code: u16,
        reason: String,
    },
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Acted {
    Done,
    /// There is no such connection, or it has nothing of that kind.
    Not,
    /// With the code and words that a client would get.
    Refused(&'static str, String),
}

/// Who is told what became of it; nobody, for what cannot be answered in time anyway.
pub(crate) type Told = Option<Sender<Acted>>;

/// Names a decision outside: shard, connection, and the number of the question.
fn ticket_text(shard: usize, key: ConnectionKey, ticket: u64) -> String {
    format!("{shard}:{}:{}:{ticket}", key.index, key.generation)
}

/// The shard, and what it asks itself about the decision.
pub(crate) fn parse_ticket(text: &str) -> Option<(usize, ConnectionKey, u64)> {
    let mut parts = text.split(':');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (shard, index, generation, ticket) = (number()?, number()?, number()?, number()?);
    let key = ConnectionKey { index: u32::try_from(index).ok()?, generation: u32::try_from(generation).ok()? };
    Some((usize::try_from(shard).ok()?, key, ticket))
}

impl Shard {
    fn event_of<'a>(connection: &'a Connection, node: &'a super::Node, shard: usize, kind: Kind) -> Event<'a> {
        let session = &connection.session;
        let app = if session.app == crate::apps::AppId::DEFAULT { "" } else { node.apps.of(session.app).name() };
        Event { app, connection: Some(session.socket_id.to_string()), shard: Some(shard), ..Event::new(kind) }
            .of_user(session.user.as_deref())
    }

    /// The program whose connection this is; one is chosen if it has none.
    fn handler(&mut self, key: ConnectionKey) -> Option<Arc<Handler>> {
        let node = self.node.clone();
        let connection = self.connection(key)?;
        if let Some(handler) = &connection.handler {
            if !handler.is_gone() {
                return Some(handler.clone());
            }
            handler.give_back();
            connection.handler = None;
        }
        let handler = node.hooks.handlers.choose()?;
        connection.handler = Some(handler.clone());
        Some(handler)
    }

    /// Queues for the workers what happened to a connection on a channel.
    pub(super) fn queue_of(&mut self, key: ConnectionKey, kind: Kind, channel: &str) {
        let node = self.node.clone();
        let shard = self.index;
        let Some(connection) = self.connection(key) else { return };
        node.hooks.tell(&Event { channel: Some(channel), ..Shard::event_of(connection, &node, shard, kind) });
    }

    /// A connection has said that it does not want to hear a channel any more.
    pub(super) fn unsubscribed(&mut self, key: ConnectionKey, channel: &str) {
        let node = self.node.clone();
        if !node.hooks.wants(Kind::Unsubscribe) {
            return;
        }
        let shard = self.index;
        let Some(connection) = self.connection(key) else { return };
        let event = Event { channel: Some(channel), ..Shard::event_of(connection, &node, shard, Kind::Unsubscribe) };
        node.hooks.tell(&event);
        // A program that has not heard of the connection yet need not hear of this.
        if let Some(handler) = connection.handler.as_ref().filter(|handler| handler.hears(Kind::Unsubscribe))
            && !handler.tell(&event)
        {
            node.hooks.handlers.overflowed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Lets a new connection begin, or asks a program first.
    pub(super) fn arrived(&mut self, key: ConnectionKey, request: Option<&(String, String)>, commands: Vec<Command>, early: &[u8]) {
        let node = self.node.clone();
        let decided = node.hooks.handlers.decide(Kind::Connect);
        if !node.hooks.wants(Kind::Connect) {
            self.let_in(key, commands, early);
            return;
        }
        let handler = self.handler(key).filter(|handler| handler.hears(Kind::Connect));
        let asks = handler.as_ref().is_some_and(|handler| handler.decides(Kind::Connect));
        if decided && !asks {
            self.refuse_connection(key, "nobody is there who could let the connection in");
            return;
        }
        let ticket = self.next_ticket();
        let shard = self.index;
        let Some(connection) = self.connection(key) else { return };
        let name = ticket_text(shard, key, ticket);
        let (path, query) = request.map_or((None, None), |(path, query)| (Some(&**path), Some(&**query)));
        let event = Event { path, query, ticket: asks.then_some(&*name), ..Shard::event_of(connection, &node, shard, Kind::Connect) };
        let told = handler.is_none_or(|handler| handler.tell(&event));
        if asks && !told {
            self.refuse_connection(key, "too many connections wait to be let in");
            return;
        }
        if asks {
            self.hold(key, ticket, Step::Connect { greeted: false }, commands, early);
        } else {
            self.let_in(key, commands, early);
        }
    }

    fn let_in(&mut self, key: ConnectionKey, commands: impl IntoIterator<Item = Command>, early: &[u8]) {
        self.greet(key);
        for command in commands {
            self.carry_out(key, command);
        }
        self.go_on(key, early);
    }

    /// The greeting, with which a connection is one for everybody.
    fn greet(&mut self, key: ConnectionKey) {
        let ping_interval_ms = self.node.config.heartbeat.ping_interval_ms;
        let Some(connection) = self.connection(key) else { return };
        connection.announced = true;
        let user = connection.session.user.clone();
        let socket_id = connection.session.socket_id;
        self.push(key, &Push::Connected { socket_id, ping_interval_ms, user_id: user.as_deref().map(crate::message::User::id) });
        if self.node.hooks.tells(Kind::Connect) {
            let node = self.node.clone();
            let shard = self.index;
            let Some(connection) = self.connection(key) else { return };
            node.hooks.tell(&Shard::event_of(connection, &node, shard, Kind::Connect));
        }
    }

    fn go_on(&mut self, key: ConnectionKey, input: &[u8]) {
        if input.is_empty() {
            return;
        }
        match self.connection(key).and_then(|connection| connection.held.as_mut()) {
            Some(held) => held.input.extend_from_slice(input),
            None => self.consume(key, &mut input.to_vec()),
        }
    }

    fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    fn hold(&mut self, key: ConnectionKey, ticket: u64, step: Step, commands: Vec<Command>, input: &[u8]) {
        let deadline_ms = self.now_ms + self.node.config.hooks.timeout_ms;
        if let Some(connection) = self.connection(key) {
            let held = Held { ticket, step, commands: commands.into(), input: input.to_vec(), deadline_ms };
            connection.held = Some(Box::new(held));
        }
    }

    /// Keeps a command back while its connection waits for a decision.
    pub(super) fn keep_back(&mut self, key: ConnectionKey, command: Command) -> Option<Command> {
        match self.connection(key).and_then(|connection| connection.held.as_mut()) {
            Some(held) => {
                held.commands.push_back(command);
                None
            }
            None => Some(command),
        }
    }

    /// Keeps input back while its connection waits for a decision; false: it does not wait.
    pub(super) fn keep_input_back(&mut self, key: ConnectionKey, input: &[u8]) -> bool {
        match self.connection(key).and_then(|connection| connection.held.as_mut()) {
            Some(held) => {
                held.input.extend_from_slice(input);
                true
            }
            None => false,
        }
    }

    /// Asks a program whether a connection may hear a channel, where that is decided so. `None`:
    /// it has been asked, and the connection waits.
    pub(super) fn ask_for_subscription(&mut self, key: ConnectionKey, command: Command) -> Result<Option<Command>, ProtocolError> {
        let node = self.node.clone();
        if !node.hooks.handlers.decide(Kind::Subscribe) {
            return Ok(Some(command));
        }
        let Command::Subscribe { id, channel, .. } = &command else { return Ok(Some(command)) };
        if let Err(error) = check_channel(channel) {
            return Err(self.subscription_refused(key, channel, error.with_id(id.clone())));
        }
        let refuse = |shard: &mut Self, reason: &str| {
            let error = ProtocolError::refusal("unauthorized", reason).with_id(id.clone());
            Err(shard.subscription_refused(key, channel, error))
        };
        let Some(handler) = self.handler(key).filter(|handler| handler.decides(Kind::Subscribe)) else {
            return refuse(self, "nobody is there who could allow it");
        };
        let ticket = self.next_ticket();
        let shard = self.index;
        let Some(connection) = self.connection(key) else { return Ok(None) };
        let name = ticket_text(shard, key, ticket);
        let event = Event { channel: Some(channel), ticket: Some(&name), ..Shard::event_of(connection, &node, shard, Kind::Subscribe) };
        if !handler.tell(&event) {
            return refuse(self, "too many subscriptions wait to be allowed");
        }
        self.hold(key, ticket, Step::Subscribe(command), Vec::new(), &[]);
        Ok(None)
    }

    /// Hands a client's message to a program.
    pub(super) fn message(&mut self, key: ConnectionKey, id: Option<&RequestId>, event: &str, data: &str) -> Result<(), ProtocolError> {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).ok();
        let (data, id) = (raw(data), id.and_then(|RequestId(id)| raw(id)));
        self.hand_message(key, |described| Event { event: Some(event), data: data.as_deref(), id: id.as_deref(), ..described })
    }

    /// The same for one that is no request; false: nobody wants it.
    pub(super) fn raw_message(&mut self, key: ConnectionKey, body: &RelayBody) -> Option<Result<(), ProtocolError>> {
        if !self.node.hooks.wants(Kind::Message) {
            return None;
        }
        Some(match body {
            RelayBody::Text(text) => self.hand_message(key, |described| Event { event: Some(RAW_EVENT), text: Some(text), ..described }),
            RelayBody::Binary(bytes) => {
                let bytes = hex::encode(bytes);
                self.hand_message(key, |described| Event { event: Some(RAW_EVENT), bytes: Some(bytes), ..described })
            }
        })
    }

    fn hand_message<'e>(&mut self, key: ConnectionKey, describe: impl FnOnce(Event<'e>) -> Event<'e>) -> Result<(), ProtocolError> {
        let node = self.node.clone();
        if !node.hooks.wants(Kind::Message) {
            return Err(ProtocolError::refusal("not_available", "this hub does not offer a handler for messages"));
        }
        let handler = self.handler(key).filter(|handler| handler.hears(Kind::Message));
        let shard = self.index;
        let Some(connection) = self.connection(key) else { return Ok(()) };
        let session = &connection.session;
        let (app, user) = (session.app, session.user.clone());
        let app = if app == crate::apps::AppId::DEFAULT { "" } else { node.apps.of(app).name() }.to_owned();
        let described =
            describe(Event { connection: Some(session.socket_id.to_string()), shard: Some(shard), ..Event::new(Kind::Message) });
        let event = Event { app: &app, ..described }.of_user(user.as_deref());
        node.hooks.tell(&event);
        match handler {
            Some(handler) if handler.tell(&event) => Ok(()),
            Some(_) => Err(ProtocolError::refusal("queue_full", "the handler for messages is behind")),
            None if node.hooks.tells(Kind::Message) => Ok(()),
            None => Err(ProtocolError::refusal("unavailable", "no handler for messages is there now")),
        }
    }

    /// A program has decided.
    pub(super) fn on_verdict(&mut self, key: ConnectionKey, ticket: u64, verdict: Verdict) {
        let waits = |connection: &mut Connection| connection.held.take_if(|held| held.ticket == ticket);
        let Some(held) = self.connection(key).and_then(waits) else { return };
        self.guard(key, |shard| shard.decide(key, *held, verdict));
    }

    fn decide(&mut self, key: ConnectionKey, held: Held, verdict: Verdict) {
        let Held { step, commands, input, .. } = held;
        match (step, verdict) {
            (Step::Connect { greeted }, Verdict::Allow) => {
                if !greeted {
                    self.greet(key);
                }
            }
            (Step::Connect { .. }, Verdict::Refuse { reason }) => {
                self.refuse_connection(key, &reason);
                return;
            }
            (Step::Subscribe(command), Verdict::Allow) => {
                if let Err(error) = self.subscribe_now(key, command) {
                    self.protocol_error(key, &error);
                }
            }
            (Step::Subscribe(command), Verdict::Refuse { reason }) => {
                let Command::Subscribe { id, channel, .. } = command else { return };
                let error =
                    ProtocolError::refusal("unauthorized", if reason.is_empty() { "the application refuses it".into() } else { reason });
                let error = self.subscription_refused(key, &channel, error.with_id(id));
                self.protocol_error(key, &error);
            }
        }
        for command in commands {
            self.carry_out(key, command);
        }
        self.go_on(key, &input);
        // Its socket has not been read meanwhile.
        self.unread.push(key);
    }

    /// Time is up for a connection that waits: nobody has allowed it.
    pub(super) fn give_up_waiting(&mut self, key: ConnectionKey) {
        let Some(held) = self.connection(key).and_then(|connection| connection.held.take()) else { return };
        tracing::warn!("a program has not decided in time; refused");
        self.decide(key, *held, Verdict::Refuse { reason: "the application did not answer in time".into() });
    }

    fn refuse_connection(&mut self, key: ConnectionKey, reason: &str) {
        // The program that refuses it need not hear that it has gone.
        if let Some(handler) = self.connection(key).and_then(|connection| connection.handler.take()) {
            handler.give_back();
        }
        self.close(key, CloseReason::Refused, shorten(reason));
    }

    /// A connection ends: its program and the workers hear of it, once.
    pub(super) fn departed(&mut self, key: ConnectionKey, reason: CloseReason) {
        let node = self.node.clone();
        let shard = self.index;
        let Some(connection) = self.connection(key) else { return };
        connection.held = None;
        connection.pace.drop_input();
        let announced = std::mem::take(&mut connection.announced);
        let handler = connection.handler.take();
        if let Some(handler) = &handler {
            handler.give_back();
        }
        if !node.hooks.wants(Kind::Disconnect) {
            return;
        }
        let event = Event { reason: Some(reason.name()), ..Shard::event_of(connection, &node, shard, Kind::Disconnect) };
        if announced {
            node.hooks.tell(&event);
        }
        if let Some(handler) = handler.filter(|handler| handler.hears(Kind::Disconnect)) {
            handler.tell(&event);
        }
    }

    /// Does something with a connection, here or on the shard that has it.
    pub(super) fn act(&mut self, socket: SocketId, act: Act, told: Told, tried: u64) {
        let found = self.by_socket.get(&socket).and_then(|index| self.key(*index as usize));
        let Some(key) = found.filter(|key| self.connection(*key).is_some_and(|connection| connection.phase == Phase::Open)) else {
            let tried = tried | 1 << self.index;
            match (0..self.node.shards.len()).find(|shard| tried & (1 << shard) == 0) {
                Some(next) => drop(self.node.shards[next].inbox.push(Job::Query(Query::Act { socket, act, told, tried }))),
                None => answer(told, Acted::Not),
            }
            return;
        };
        self.guard(key, |shard| shard.act_here(key, act, told));
    }

    fn act_here(&mut self, key: ConnectionKey, act: Act, told: Told) {
        // A connection that is just being let in is greeted before it is told anything else.
        if !matches!(act, Act::Close { .. })
            && let Some(held) = self.connection(key).and_then(|connection| connection.held.as_mut())
            && let Step::Connect { greeted: greeted @ false } = &mut held.step
        {
            *greeted = true;
            self.greet(key);
        }
        match act {
            Act::Send { event, body } => {
                self.send_to(key, &event, body);
                answer(told, Acted::Done);
            }
            Act::Answer { id, data } => {
                match &data {
                    Ok(data) => self.push(key, &Push::Answer { id: &id, data }),
                    Err(reason) => {
                        let error = ProtocolError::refusal("refused", reason.clone()).with_id(Some(id));
                        self.push(key, &Push::Error(&error));
                    }
                }
                answer(told, Acted::Done);
            }
            Act::Join { channel } => self.join_for(key, &channel, told),
            Act::Leave { channel } => {
                let left = self.unsubscribe(key, None, &channel);
                answer(told, if left.is_ok() { Acted::Done } else { Acted::Not });
            }
            Act::Close { code, reason } => {
                self.close(key, CloseReason::Application { code }, shorten(&reason));
                answer(told, Acted::Done);
            }
        }
    }

    fn send_to(&mut self, key: ConnectionKey, event: &str, body: Body) {
        let node = self.node.clone();
        let publication = Publication {
            channel: Channel::new(DIRECT_CHANNEL, channel_hash(DIRECT_CHANNEL)),
            event: EventName::from(event),
            body,
            except: Vec::new(),
            user_id: None,
            position: Position { epoch: Epoch(0), offset: 0 },
        };
        let Some(format) = self.connection(key).map(|connection| connection.session.format_key()) else { return };
        let mut scratch = std::mem::take(&mut self.scratch);
        let protocol = &node.formats[usize::from(format.format)];
        let frame = scratch.seal(protocol, |out| Some(protocol.protocol.encode(&publication, format.variant, out)));
        self.scratch = scratch;
        if let Some(frame) = frame {
            self.write(key, &frame);
        }
    }

    /// Makes a connection a subscriber because a program wants it: the channel's access is not looked at.
    fn join_for(&mut self, key: ConnectionKey, channel: &str, told: Told) {
        if let Err(error) = validate_channel(channel) {
            answer(told, Acted::Refused("invalid_channel", error.to_string()));
            return;
        }
        let node = self.node.clone();
        let rules = node.config.room(channel);
        let Some(connection) = self.connection(key) else { return };
        let session = &connection.session;
        let limit = node.config.limits.max_subscriptions;
        let own = usize::from(session.user.is_some());
        if (session.subscriptions.len() + session.joining as usize).saturating_sub(own) >= limit {
            answer(told, Acted::Refused("too_many_subscriptions", format!("a connection may have {limit} subscriptions")));
            return;
        }
        let scoped = node.apps.scope(session.app, channel);
        let index = self.find_channel(node.channel_ref(&scoped));
        if index.is_some_and(|index| self.hears(key, index)) {
            answer(told, Acted::Done);
            return;
        }
        let request = JoinRequest::Program { told };
        match rules {
            None => self.join(key, &scoped, request),
            Some(rules) => self.enter(key, &scoped, rules, None, request),
        }
    }
}

pub(super) fn answer(told: Told, acted: Acted) {
    if let Some(told) = told {
        tell(&told, acted);
    }
}

/// As much of a reason as a close frame carries (RFC 6455 section 5.5).
fn shorten(reason: &str) -> &str {
    let end = (0..=reason.len().min(123)).rev().find(|at| reason.is_char_boundary(*at));
    &reason[..end.unwrap_or(0)]
}
