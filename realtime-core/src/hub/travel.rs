//! A connection's journey from one shard to another, without its client noticing.
//!
//! Before it leaves its shard, the next one hears its channels; it leaves when it has got at least what the next one may lack; it
//! arrives when the next one is as far; what came in between was retained for it.

use std::sync::mpsc::{self, SendError, Sender};
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ask::QUERY_TIMEOUT;
use super::counted::Counted;
use super::fanout::ConnectionKey;
use super::node::Node;
use super::query::{Query, tell};
use super::resume::Visit;
use super::roster::Seat;
use super::shard::{Connection, Phase, Shard};
use crate::auth::Grant;
use crate::error::QueryError;
use crate::message::SocketId;
use crate::session::heartbeat::Heartbeat;
use crate::session::outbox::Outbox;
use crate::session::rights::Rights;
use crate::session::{FROZEN_VERSION, FrozenSession, SessionState};
use crate::transport::link::Link;

/// How far a channel's subscribers on one shard have been served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reached {
    /// Offset of the newest publication.
    pub(crate) offset: u64,
    /// Version of the newest change of its users.
    pub(crate) version: u64,
}

impl Reached {
    fn covers(self, other: Reached) -> bool {
        self.offset >= other.offset && self.version >= other.version
    }
}

/// A connection between two shards.
pub(crate) struct Frozen {
    place: Counted,
    link: Box<dyn Link>,
    /// [`FrozenSession`], encoded.
    session: Vec<u8>,
    /// Its places, by channel.
    seats: Vec<(String, Seat)>,
    visit: Option<Box<Visit>>,
}

impl Node {
    /// See [`super::Hub::move_connection`].
    pub(super) fn move_connection(&self, socket: SocketId, to: usize) -> Result<bool, QueryError> {
        let to = to % self.shards.len();
        let described = self.ask(|answer| Query::Describe { socket, answer })?;
        let Some((from, channels)) = described.into_iter().find_map(|(shard, names)| Some((shard, names?))) else {
            return Ok(false);
        };
        if from == to {
            return Ok(true);
        }
        // Half of what the questions may take, so that an answer that is given is also heard.
        let deadline = Instant::now() + QUERY_TIMEOUT / 2;
        let forget = |channels: Vec<String>| self.shards[to].inbox.push(Query::Forget { channels }.into());
        if let Err(error) = self.ask_one(to, |answer| Query::Expect { channels: channels.clone(), answer }) {
            // It may only be late, and stands in the queue before this.
            forget(channels);
            return Err(error);
        }
        let reached = self.ask_one(to, |answer| Query::Positions { channels: channels.clone(), deadline, answer });
        let reached = match reached {
            Ok(reached) => reached,
            Err(error) => {
                forget(channels);
                return Err(error);
            }
        };
        let mut frozen = match self.ask_one(from, |answer| Query::Freeze { socket, reached, deadline, answer }) {
            Ok(Some(frozen)) => frozen,
            Ok(None) => {
                forget(channels);
                return Ok(false);
            }
            Err(error) => {
                forget(channels);
                return Err(error);
            }
        };
        frozen.place.move_to(to);
        self.ask_one(to, |answer| Query::Thaw { frozen: Box::new(frozen), expected: channels, answer })
    }
}

impl Shard {
    /// The channels of a connection; `None`: it is not here.
    pub(super) fn channels_of(&self, socket: SocketId) -> Option<Vec<String>> {
        self.by_socket.get(&socket).and_then(|index| self.connections.get(*index as usize)).map(|connection| {
            connection
                .session
                .subscriptions
                .iter()
                .map(|subscription| self.channels[subscription.channel as usize].channel.scoped().to_owned())
                .collect()
        })
    }

    /// How far a channel's subscribers here have been served; `None` until it is live.
    fn reached(&self, channel: &str) -> Option<Reached> {
        let index = self.find_channel(self.node.channel_ref(channel))?;
        self.channels[index].reached()
    }

    pub(super) fn tell_positions(&mut self, channels: Vec<String>, deadline: Instant, answer: Sender<Vec<(String, Reached)>>) {
        let positions: Option<Vec<_>> = channels.iter().map(|channel| Some((channel.clone(), self.reached(channel)?))).collect();
        match positions {
            Some(positions) => tell(&answer, positions),
            // Dropped past the deadline: the asker is gone, or learns that it was in vain.
            None if Instant::now() >= deadline => {}
            None => self.postponed.push(Query::Positions { channels, deadline, answer }),
        }
    }

    pub(super) fn pin(&mut self, channels: &[String]) {
        for channel in channels {
            let name = self.node.clone().channel_ref(channel);
            let index = self.find_channel(name).unwrap_or_else(|| self.open_channel(name));
            self.channels[index].pins += 1;
        }
    }

    pub(super) fn unpin(&mut self, channels: &[String]) {
        for channel in channels {
            if let Some(index) = self.find_channel(self.node.channel_ref(channel)) {
                let channel = &mut self.channels[index];
                channel.pins -= 1;
                if channel.pins == 0 {
                    channel.retained = Vec::new();
                }
                self.close_channel_if_unused(index);
            }
        }
    }

    pub(super) fn freeze(&mut self, socket: SocketId, reached: Vec<(String, Reached)>, deadline: Instant, answer: Sender<Option<Frozen>>) {
        let Some(key) = self.by_socket.get(&socket).and_then(|index| self.key(*index as usize)) else {
            tell(&answer, None);
            return;
        };
        let ready = |shard: &Self| {
            reached.iter().all(|(name, expected)| {
                shard.find_channel(shard.node.channel_ref(name)).is_none_or(|index| {
                    let channel = &shard.channels[index];
                    channel.is_between_batches()
                        && channel.reached().is_some_and(|reached| reached.covers(*expected))
                        // What it was told ahead of the others has reached them.
                        && channel.roster.as_ref().is_none_or(|roster| !roster.is_ahead(key.index))
                })
            })
        };
        let settled = self.connection(key).is_some_and(|connection| {
            let session = &connection.session;
            connection.phase == Phase::Open
                && session.joining == 0
                && connection.held.is_none()
                && connection.pace.is_settled()
                && session.rights.as_ref().is_none_or(|rights| rights.is_settled())
        });
        // A batch that is under way may or may not have reached this connection.
        let between = self.connections[key.index as usize]
            .session
            .subscriptions
            .iter()
            .all(|subscription| self.channels[subscription.channel as usize].is_between_batches());
        // One that it has joined since it was described is not expected where it would go.
        let expected = self.connections[key.index as usize].session.subscriptions.iter().all(|subscription| {
            let name = self.channels[subscription.channel as usize].channel.scoped();
            reached.iter().any(|(expected, _)| expected == name)
        });
        if !settled || !expected {
            tell(&answer, None);
            return;
        }
        if !between || !ready(self) {
            if Instant::now() < deadline {
                self.postponed.push(Query::Freeze { socket, reached, deadline, answer });
            } else {
                tell(&answer, None);
            }
            return;
        }
        let subscriptions: Vec<(String, Reached)> = self.connections[key.index as usize]
            .session
            .subscriptions
            .iter()
            .map(|subscription| {
                let channel = &self.channels[subscription.channel as usize];
                (channel.channel.scoped().to_owned(), channel.reached().unwrap_or(Reached { offset: 0, version: 0 }))
            })
            .collect();
        // Its channels stay until somebody has it.
        let names: Vec<String> = subscriptions.iter().map(|(name, _)| name.clone()).collect();
        self.pin(&names);
        // They go with it: nobody sees it leave.
        let seats = self.seats_of(key);
        let watchlist = self.connection(key).and_then(|connection| connection.session.watchlist.clone());
        self.unwatch(key);
        let Some(connection) = self.take_out(key) else {
            self.unpin(&names);
            return;
        };
        let Connection { place, link, session, visit, .. } = *connection;
        if let Some(user) = &session.user {
            self.node.user_sets_out(session.app, &user.shared_id(), self.index);
        }
        let (outbox, outbox_begun) = session.outbox.to_bytes();
        let frozen = FrozenSession {
            version: FROZEN_VERSION,
            socket_id: session.socket_id,
            app: self.node.apps.of(session.app).name().to_owned(),
            format: session.format,
            protocol: session.protocol,
            grant: session.rights.map(|rights| rights.grant).unwrap_or_default(),
            user: session.user.map(|user| *user),
            inbound: session.inbound.map(|inbound| *inbound),
            outbox,
            outbox_begun,
            subscriptions,
            watchlist: watchlist.map(|list| list.entries()).unwrap_or_default(),
            protocol_errors: session.protocol_errors,
        };
        let frozen = postcard::to_stdvec(&frozen).ok().map(|session| Frozen { place, link, session, seats, visit });
        match answer.send(frozen) {
            // The asker has given up by now: the connection goes on here.
            Err(SendError(Some(frozen))) => self.thaw(Box::new(frozen), names, mpsc::channel().0),
            _ => self.unpin(&names),
        }
    }

    fn seats_of(&mut self, key: ConnectionKey) -> Vec<(String, Seat)> {
        let Some(connection) = self.connection(key) else { return Vec::new() };
        let joined: Vec<u32> = connection.session.subscriptions.iter().map(|subscription| subscription.channel).collect();
        let mut seats = Vec::new();
        for index in joined {
            let channel = &mut self.channels[index as usize];
            if let Some(seat) = channel.roster.as_mut().and_then(|roster| roster.stand_up(key.index)) {
                seats.push((channel.channel.scoped().to_owned(), seat));
            }
        }
        seats
    }

    pub(super) fn thaw(&mut self, frozen: Box<Frozen>, expected: Vec<String>, answer: Sender<bool>) {
        let session: FrozenSession = match postcard::from_bytes(&frozen.session) {
            Ok(session) if matches!(session, FrozenSession { version: FROZEN_VERSION, .. }) => session,
            _ => {
                self.unpin(&expected);
                tell(&answer, false);
                return;
            }
        };
        let Ok(app) = self.node.apps.by_name(&session.app) else {
            self.unpin(&expected);
            tell(&answer, false);
            return;
        };
        let behind = session.subscriptions.iter().any(|(name, reached)| {
            let index = self.find_channel(self.node.channel_ref(name));
            index.is_none_or(|index| {
                let channel = &self.channels[index];
                !channel.is_between_batches() || channel.reached().is_none_or(|here| !here.covers(*reached))
            })
        });
        if behind {
            self.postponed.push(Query::Thaw { frozen, expected, answer });
            return;
        }
        let mut state = SessionState::new(session.socket_id, app, session.format, session.protocol, self.now_ms);
        state.user = session.user.map(Box::new);
        if session.grant != Grant::default() {
            state.rights = Some(Box::new(Rights::new(session.grant)));
        }
        if let Some(user) = &state.user {
            self.node.user_arrives(app, &user.shared_id(), self.index);
        }
        state.inbound = session.inbound.map(Box::new);
        state.outbox = Outbox::from_bytes(session.outbox, session.outbox_begun, self.now_ms);
        state.protocol_errors = session.protocol_errors;
        state.heartbeat = Heartbeat::new(self.now_ms);
        let arrived = self.insert(frozen.link, state, frozen.place);
        if let Some(key) = arrived {
            self.connections[key.index as usize].visit = frozen.visit;
            let mut seats = frozen.seats;
            for (name, reached) in &session.subscriptions {
                let Some(index) = self.find_channel(self.node.channel_ref(name)) else { continue };
                self.add_subscriber(key, index);
                if let Some(at) = seats.iter().position(|(channel, _)| channel == name)
                    && let Some(roster) = &mut self.channels[index].roster
                {
                    roster.sit_down(key.index, seats.swap_remove(at).1, true);
                }
                let missed: Vec<_> = self.channels[index]
                    .retained
                    .iter()
                    .filter(|delivery| match delivery.notice() {
                        None => delivery.publication.position.offset > reached.offset,
                        Some(notice) => notice.version > reached.version,
                    })
                    .cloned()
                    .collect();
                for delivery in missed {
                    let node = self.node.clone();
                    let Some(connection) = self.connection(key) else { break };
                    if delivery.publication.except.contains(&connection.session.socket_id) {
                        continue;
                    }
                    let format = connection.session.format_key();
                    let frame = Bytes::copy_from_slice(delivery.frame(&node.formats, format, &mut self.scratch));
                    if !frame.is_empty() {
                        self.write(key, &frame);
                    }
                }
            }
        }
        if let Some(key) = arrived {
            self.watch_again(key, session.watchlist);
        }
        self.unpin(&expected);
        tell(&answer, arrived.is_some());
    }
}
