//! A shard's connections: taken in, read, written to, closed.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use bytes::Bytes;
use mio::Token;
use slab::Slab;

use super::counted::Counted;
use super::fanout::ConnectionKey;
use super::pacing::Pace;
use super::shard::{Accepted, CLOSE_MS, Connection, Phase, READ_BYTES, Shard};
use crate::auth::jwt::MAX_TOKEN_BYTES;
use crate::close::{CloseCode, CloseReason};
use crate::message::SocketId;
use crate::protocol::{Command, ProtocolError, Push};
use crate::session::SessionState;
use crate::session::outbox::Written;
use crate::transport::link::Link;
use crate::transport::{Event, InboundLimits};

/// Reads in a row from one connection before others have their turn.
const MAX_READS: usize = 4;
/// Bytes of one message from a connection that has yet to authenticate: the longest token, and what
/// is around it.
const MAX_BYTES_OF_STRANGERS: usize = MAX_TOKEN_BYTES + 1_024;

impl Shard {
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
    pub(super) fn guard(&mut self, key: ConnectionKey, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            tracing::error!(shard = self.index, "a connection's handler panicked; the connection is closed");
            self.counters().panics.fetch_add(1, Relaxed);
            self.buffer.resize(READ_BYTES, 0);
            self.close(key, CloseReason::Internal, "");
        }
    }

    pub(crate) fn token(key: ConnectionKey) -> Token {
        Token(key.index as usize | (key.generation as usize) << 32)
    }

    pub(super) fn accept(&mut self, accepted: Accepted) {
        if self.draining.is_some() {
            return;
        }
        let Accepted { place, link, format, opening, admission, early } = accepted;
        let Ok(socket_id) = SocketId::random() else {
            return tracing::error!("no random numbers; connection refused");
        };
        let session = SessionState::new(socket_id, opening.app, format, opening.state, self.now_ms);
        let Some(key) = self.insert(link, session, place) else { return };
        if let Some(refused) = opening.refused {
            self.guard(key, |shard| shard.turn_away(key, refused.code, &refused.message));
            return;
        }
        let connection = &mut self.connections[key.index as usize];
        if !connection.place.admit(opening.app) {
            let code = self.node.formats[usize::from(format)].protocol.close_code(CloseReason::OverQuota);
            let limit = self.node.apps.of(opening.app).config().max_connections;
            let message = format!("the app may have {limit} connections on this hub");
            self.guard(key, |shard| shard.turn_away(key, code, &message));
            return;
        }
        if let (Some(page), Some(pages)) = (&opening.page, &self.node.pages) {
            connection.visit = Some(Box::new(pages.visit(opening.app, page, socket_id)));
        }
        self.guard(key, |shard| match shard.begin(key, admission, opening.commands) {
            Ok(commands) => shard.arrived(key, opening.request.as_deref(), commands, &early),
            Err(denied) => {
                let code = shard.node.formats[usize::from(format)].protocol.close_code(denied.reason);
                shard.turn_away(key, code, &denied.message);
            }
        });
    }

    /// Says why a connection is not wanted, and closes it.
    fn turn_away(&mut self, key: ConnectionKey, code: CloseCode, message: &str) {
        tracing::info!(code = code.code, message = %message.escape_debug(), "connection refused");
        self.node.refused.fetch_add(1, Relaxed);
        self.push(key, &Push::Refused { code, message });
        // RFC 6455 section 5.5 leaves 123 bytes for it.
        let reason = if message.len() <= 123 { message } else { code.reason };
        self.close_as(key, CloseReason::Application { code: code.code }, code, reason);
    }

    /// Takes a connection in and polls it.
    pub(crate) fn insert(&mut self, mut link: Box<dyn Link>, session: SessionState, mut place: Counted) -> Option<ConnectionKey> {
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
            return None;
        }
        self.by_socket.insert(session.socket_id, key.index);
        place.arrive(session.format);
        entry.insert(Box::new(Connection {
            link,
            session,
            generation: key.generation,
            phase: Phase::Open,
            lagging: false,
            crowded: false,
            place,
            handler: None,
            held: None,
            announced: false,
            visit: None,
            pace: Pace::default(),
        }));
        Some(key)
    }

    /// Reads what is there. `to_the_end`: the peer's end may be behind it, of which there will be no further event.
    pub(super) fn read(&mut self, key: ConnectionKey, to_the_end: bool) {
        // What it sends while it waits for a decision, or for room, waits in its socket.
        if self.connection(key).is_none_or(|connection| connection.is_not_read()) {
            return;
        }
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
                    if self.connection(key).is_some_and(|connection| connection.is_not_read()) {
                        break None;
                    }
                    // More would be an event of its own, but the end may have come with this one.
                    if received < READ_BYTES && !to_the_end {
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
    pub(super) fn consume(&mut self, key: ConnectionKey, mut input: &mut [u8]) {
        let node = self.node.clone();
        let mut limits =
            InboundLimits { max_message_bytes: node.config.limits.max_message_bytes, max_fragments: node.config.limits.max_fragments };
        let Some(connection) = self.connection(key) else { return };
        if connection.session.rights.as_ref().is_some_and(|rights| rights.awaiting.is_some()) {
            limits.max_message_bytes = limits.max_message_bytes.min(MAX_BYTES_OF_STRANGERS);
        }
        let format = &node.formats[usize::from(connection.session.format)];
        let mut inbound = connection.session.inbound.take().map(|inbound| *inbound).unwrap_or_default();
        loop {
            let Some(phase) = self.connection(key).map(|connection| connection.phase) else { return };
            if let Phase::Closing { finished, .. } = phase {
                // Of what comes behind our close frame only the peer's counts: then the server ends the
                // connection (section 7.1.1), and clients wait for that.
                match format.framing.next(&mut inbound, &mut input, &limits) {
                    Ok(Some(Event::Close(_))) if finished => return self.remove(key, CloseReason::Peer),
                    Ok(Some(_)) => continue,
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
            if self.keep_input_back(key, input) || self.pace_input(key, input) {
                break;
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
                    if self.connection(key).is_some_and(|connection| !connection.session.outbox.is_blocked()) {
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

    pub(super) fn on_writable(&mut self, key: ConnectionKey) {
        let now_ms = self.now_ms;
        let Some(connection) = self.connection(key) else { return };
        connection.session.outbox.unblock();
        if connection.session.outbox.is_empty() {
            return;
        }
        let written = connection.session.outbox.flush(&mut *connection.link, now_ms);
        if connection.session.outbox.is_empty() {
            connection.lagging = false;
        }
        if connection.session.outbox.progress_ms() == now_ms {
            // Who takes bytes is alive, even if our ping is still behind them.
            connection.session.heartbeat.heard(now_ms);
        }
        self.settle(key, written);
        self.go_on_if_room(key);
    }

    /// Sends a frame to one connection, or queues it.
    pub(crate) fn write(&mut self, key: ConnectionKey, frame: &Bytes) {
        let now_ms = self.now_ms;
        let Some(connection) = self.connection(key) else { return };
        let written = connection.session.outbox.write(&mut *connection.link, frame, now_ms);
        self.settle(key, written);
    }

    /// Acts on how a write ended: counts, closes a slow client, finishes a close.
    pub(super) fn settle(&mut self, key: ConnectionKey, written: Written) {
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
    pub(super) fn finish_closing(&mut self, key: ConnectionKey) {
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
        self.push_if_known(key, push);
    }

    /// The same; false: the protocol has no words for it.
    pub(super) fn push_if_known(&mut self, key: ConnectionKey, push: &Push<'_>) -> bool {
        let node = self.node.clone();
        let mut scratch = std::mem::take(&mut self.scratch);
        let frame = self.connection(key).filter(|connection| connection.phase == Phase::Open).and_then(|connection| {
            let format = &node.formats[usize::from(connection.session.format)];
            scratch.seal(format, |out| format.protocol.push(&connection.session.protocol, push, out))
        });
        self.scratch = scratch;
        if let Some(frame) = &frame {
            self.write(key, frame);
        }
        frame.is_some()
    }

    pub(crate) fn protocol_error(&mut self, key: ConnectionKey, error: &ProtocolError) {
        let limit = self.node.config.limits.max_protocol_errors;
        if error.is_fault {
            self.counters().protocol_errors.fetch_add(1, Relaxed);
        }
        self.push(key, &Push::Error(error));
        if !error.is_fault {
            return;
        }
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

    pub(super) fn close_as(&mut self, key: ConnectionKey, reason: CloseReason, code: CloseCode, text: &str) {
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
        connection.session.rights = None;
        self.departed(key, reason);
        self.node.shards[self.index].counters.count_close(reason);
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        if reason != CloseReason::Shutdown {
            // What was gathered for it was published before. If the link is broken, the close frame finds that out.
            let _ = connection.session.outbox.flush(&mut *connection.link, now_ms);
            connection.session.outbox.abandon();
        }
        let mut frame = Vec::new();
        node.formats[usize::from(connection.session.format)].framing.close(code, text, &mut frame);
        connection.link.unbound();
        connection.session.outbox.queue(Bytes::from(frame), now_ms);
        connection.session.outbox.unblock();
        let written = connection.session.outbox.flush(&mut *connection.link, now_ms);
        if let Some(connection) = self.connections.get_mut(key.index as usize) {
            note_crowding(connection, &mut self.crowded, limit);
        }
        // Who is thrown out does not come back to a place.
        self.leave_all(key, matches!(reason, CloseReason::Application { .. }));
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
            self.departed(key, reason);
        }
        self.leave_all(key, false);
        self.unwatch(key);
        let Some(mut connection) = self.connections.try_remove(key.index as usize) else { return };
        self.crowded -= usize::from(connection.crowded);
        self.by_socket.remove(&connection.session.socket_id);
        if let Some(user) = &connection.session.user {
            self.node.user_leaves(connection.session.app, &user.shared_id(), self.index);
        }
        connection.link.deregister(self.poll.registry());
        drop(connection);
        if self.connections.is_empty() {
            self.note_deliveries();
            // Gives back what a crowd needed.
            self.connections = Slab::new();
            self.by_socket = HashMap::new();
        }
    }

    /// Takes a connection out without ending it: it goes on elsewhere.
    pub(crate) fn take_out(&mut self, key: ConnectionKey) -> Option<Box<Connection>> {
        self.leave_all(key, false);
        let mut connection = self.connections.try_remove(key.index as usize)?;
        self.crowded -= usize::from(connection.crowded);
        self.by_socket.remove(&connection.session.socket_id);
        connection.link.deregister(self.poll.registry());
        Some(connection)
    }

    /// Those who want to hear of its end hear that a connection goes with its shard.
    pub(super) fn lose(&mut self, key: ConnectionKey) {
        if self.connection(key).is_some_and(|connection| connection.phase == Phase::Open) {
            self.counters().count_close(CloseReason::Internal);
            self.departed(key, CloseReason::Internal);
        }
    }

    pub(super) fn carry_out(&mut self, key: ConnectionKey, command: Command) {
        if self.connection(key).is_none_or(|connection| connection.phase != Phase::Open) {
            return;
        }
        let Some(command) = self.keep_back(key, command) else { return };
        let Some(command) = self.pace_command(key, command) else { return };
        if let Err(error) = self.apply(key, command) {
            self.protocol_error(key, &error);
        }
    }
}

/// Keeps the shard's count of connections whose outbox is more than half full.
pub(super) fn note_crowding(connection: &mut Connection, crowded: &mut usize, limit: usize) {
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
