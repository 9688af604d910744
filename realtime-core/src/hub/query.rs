//! Questions that hosts ask of shards, and operations on connections; answered on the shard.

use std::collections::HashMap;
use std::sync::mpsc::{self, SendError, Sender};
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::apps::AppId;

use super::counted::Counted;
use super::fanout::{Asker, ConnectionKey};
use super::hooks::{Act, Told, Verdict};
use super::resume::Visit;
use super::roster::{Seat, SeatRequest};
use super::shard::{Connection, Job, Phase, Shard};
use crate::auth::Grant;
use crate::close::CloseReason;
use crate::config::RoomRules;
use crate::message::{ChannelUser, SocketId, User};
use crate::session::heartbeat::Heartbeat;
use crate::session::outbox::Outbox;
use crate::session::rights::Rights;
use crate::session::{FROZEN_VERSION, FrozenSession, SessionState};
use crate::transport::link::Link;

/// See the module's documentation.
pub(crate) enum Query {
    /// Gives a connection to a user, or to nobody. Answers whether it is here.
    SetUser { app: AppId, socket: SocketId, user: Option<User>, answer: Sender<bool> },
    /// Who is subscribed to a channel, named with its app.
    ChannelUsers { channel: String, answer: Sender<Vec<ChannelUser>> },
    /// Closes a user's connections; answers how many.
    DisconnectUser { app: AppId, user: String, code: u16, reason: String, answer: Sender<usize> },
    /// Hears these channels from now on, for a connection that is to come. Answers whether it can.
    Expect { channels: Vec<String>, answer: Sender<()> },
    /// No connection will come.
    Forget { channels: Vec<String> },
    /// Names the channels of a connection; `None`: it is not here.
    Describe { socket: SocketId, answer: Sender<Option<Vec<String>>> },
    /// Takes a connection out, once all of `reached` has been handed to it; past the deadline it
    /// stays, and `None` is the answer.
    Freeze { socket: SocketId, reached: Vec<(String, Reached)>, deadline: Instant, answer: Sender<Option<Frozen>> },
    /// Where the expected channels stand; answered once all are live, or not at all past the
    /// deadline.
    Positions { channels: Vec<String>, deadline: Instant, answer: Sender<Vec<(String, Reached)>> },
    /// See [`Shard::act`].
    Act { socket: SocketId, act: Act, told: Told, tried: u64 },
    /// A program has decided about a connection that waits.
    Verdict { connection: ConnectionKey, ticket: u64, verdict: Verdict },
    /// Takes a connection in, once this shard is as far as the connection.
    Thaw { frozen: Box<Frozen>, expected: Vec<String>, answer: Sender<bool> },
}

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
    pub(crate) place: Counted,
    pub(crate) link: Box<dyn Link>,
    /// [`FrozenSession`], encoded.
    pub(crate) session: Vec<u8>,
    /// Its places, by channel.
    pub(crate) seats: Vec<(String, Seat)>,
    pub(crate) visit: Option<Box<Visit>>,
}

impl Shard {
    pub(crate) fn answer(&mut self, query: Query) {
        match query {
            Query::SetUser { app, socket, user, answer } => {
                let found = self.by_socket.get(&socket).and_then(|index| self.key(*index as usize));
                let found = found.filter(|key| self.connection(*key).is_some_and(|connection| connection.session.app == app));
                match found {
                    Some(key) => self.set_user(key, user, Asker(Some(answer))),
                    None => tell(&answer, false),
                }
            }
            Query::ChannelUsers { channel, answer } => tell(&answer, self.channel_users(&channel)),
            Query::DisconnectUser { app, user, code, reason, answer } => tell(&answer, self.disconnect_user(app, &user, code, &reason)),
            Query::Expect { channels, answer } => {
                self.pin(&channels);
                tell(&answer, ());
            }
            Query::Forget { channels } => self.unpin(&channels),
            Query::Describe { socket, answer } => {
                let names = self.by_socket.get(&socket).and_then(|index| self.connections.get(*index as usize)).map(|connection| {
                    connection
                        .session
                        .subscriptions
                        .iter()
                        .map(|subscription| self.channels[subscription.channel as usize].channel.scoped().to_owned())
                        .collect()
                });
                tell(&answer, names);
            }
            Query::Positions { channels, deadline, answer } => {
                let positions: Option<Vec<_>> = channels.iter().map(|channel| Some((channel.clone(), self.reached(channel)?))).collect();
                match positions {
                    Some(positions) => tell(&answer, positions),
                    // Dropped past the deadline: the asker is gone, or learns that it was in vain.
                    None if Instant::now() >= deadline => {}
                    None => self.postponed.push(Query::Positions { channels, deadline, answer }),
                }
            }
            Query::Freeze { socket, reached, deadline, answer } => self.freeze(socket, reached, deadline, answer),
            Query::Act { socket, act, told, tried } => self.act(socket, act, told, tried),
            Query::Verdict { connection, ticket, verdict } => self.on_verdict(connection, ticket, verdict),
            Query::Thaw { frozen, expected, answer } => self.thaw(frozen, expected, answer),
        }
    }

    /// The host says whose a connection is. What its credential said is over.
    fn set_user(&mut self, key: ConnectionKey, user: Option<User>, asker: Asker) {
        let is_somebody = user.is_some();
        if !self.give_user(key, user, Some(asker)) {
            return;
        }
        let Some(rights) = self.connection(key).and_then(|connection| connection.session.rights.as_mut()) else { return };
        rights.grant = Grant::default();
        // Who is nobody's still has to say whose it is.
        let awaiting = if is_somebody { rights.awaiting.take() } else { None };
        for command in awaiting.map(|awaiting| awaiting.commands).unwrap_or_default() {
            self.carry_out(key, command);
        }
    }

    /// Shows the connection's user where its subscriptions show it.
    pub(super) fn show_user(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connection(key) else { return };
        let user = connection.session.user.as_deref().cloned();
        let mut joined: Vec<u32> = connection.session.subscriptions.iter().map(|subscription| subscription.channel).collect();
        joined.extend(self.cursor_channels(key));
        for index in joined {
            let Some(channel) = self.channels.get(index as usize) else { continue };
            let Some(roster) = &channel.roster else { continue };
            if roster.seat(key.index).is_some_and(|seat| seat.follows() && seat.user() != user.as_ref()) {
                // It has a place already; the new one stands for the same connection.
                let rules = RoomRules { max_members: 0, ..roster.rules };
                self.request_seat(key, SeatRequest { channel: channel.channel.clone(), user: user.clone(), rules, follows: true });
            }
        }
    }

    fn channel_users(&self, channel: &str) -> Vec<ChannelUser> {
        let Some(index) = self.find_channel(self.node.channel_ref(channel)) else { return Vec::new() };
        let mut users: HashMap<&str, (&User, usize)> = HashMap::new();
        for subscriber in &self.channels[index].subscribers {
            if let Some(user) =
                self.connections.get(subscriber.connection as usize).and_then(|connection| connection.session.user.as_deref())
            {
                users.entry(user.id()).or_insert((user, 0)).1 += 1;
            }
        }
        users.into_values().map(|(user, connections)| ChannelUser { user: user.clone(), connections }).collect()
    }

    fn disconnect_user(&mut self, app: AppId, user: &str, code: u16, reason: &str) -> usize {
        let node = self.node.clone();
        let channel = User::channel_name(user);
        let Some(index) = self.find_channel(node.channel_ref(&node.apps.scope(app, &channel))) else { return 0 };
        let channel = &self.channels[index];
        // Those that wait for the broker are the user's already.
        let subscribers = channel.subscribers.iter().filter_map(|subscriber| self.key(subscriber.connection as usize));
        let mut keys: Vec<_> = subscribers.chain(channel.joining.iter().map(|joining| joining.connection)).collect();
        keys.retain(|key| self.connection(*key).is_some_and(|connection| connection.phase == Phase::Open));
        for key in &keys {
            self.close(*key, CloseReason::Application { code }, reason);
        }
        keys.len()
    }

    // A connection's journey. Before it leaves its shard, the next one hears its channels; it
    // leaves when it has got at least what the next one may lack; it arrives when the next one is
    // as far; what came in between was retained for it.

    /// How far a channel's subscribers here have been served; `None` until it is live.
    fn reached(&self, channel: &str) -> Option<Reached> {
        let index = self.find_channel(self.node.channel_ref(channel))?;
        self.channels[index].reached()
    }

    fn pin(&mut self, channels: &[String]) {
        for channel in channels {
            let name = self.node.clone().channel_ref(channel);
            let index = self.find_channel(name).unwrap_or_else(|| self.open_channel(name));
            self.channels[index].pins += 1;
        }
    }

    fn unpin(&mut self, channels: &[String]) {
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

    fn freeze(&mut self, socket: SocketId, reached: Vec<(String, Reached)>, deadline: Instant, answer: Sender<Option<Frozen>>) {
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

    fn thaw(&mut self, frozen: Box<Frozen>, expected: Vec<String>, answer: Sender<bool>) {
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

/// Answers; an asker that is gone is not an error.
pub(super) fn tell<T>(answer: &Sender<T>, value: T) {
    if answer.send(value).is_err() {
        tracing::debug!("nobody waits for an answer any more");
    }
}

impl From<Query> for Job {
    fn from(query: Query) -> Self {
        Job::Query(query)
    }
}
