//! Questions that hosts ask of shards, and operations on connections; answered on the shard.

use std::collections::HashMap;
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::fanout::{Asker, ConnectionKey};
use super::hooks::{Act, Told, Verdict};
use super::roster::SeatRequest;
use super::shard::{Job, Phase, Shard};
use super::travel::{Frozen, Reached};
use crate::apps::AppId;
use crate::auth::Grant;
use crate::close::CloseReason;
use crate::config::RoomRules;
use crate::message::{ChannelUser, SocketId, User};

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
            Query::Describe { socket, answer } => tell(&answer, self.channels_of(socket)),
            Query::Positions { channels, deadline, answer } => self.tell_positions(channels, deadline, answer),
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
