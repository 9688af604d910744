//! What can be asked over the bus, as JSON (`docs/protocol/bus.md`).

use serde::{Deserialize, Serialize};

use crate::hooks::Kind;

/// A question. Rare beside publications, so it travels as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[non_exhaustive]
pub enum BusQuery {
    /// Users subscribed to a channel.
    ChannelUsers {
        /// Which.
        channel: String,
    },
    /// What is kept of a channel.
    History {
        /// Which.
        channel: String,
        /// Only what followed this offset.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Since>,
        /// At most so many publications; absent: 100.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
        /// The newest first.
        #[serde(default)]
        reverse: bool,
    },
    /// Close a user's connections; owner and root only.
    DisconnectUser {
        /// Who.
        user: String,
        /// Close code.
        code: u16,
        /// Close reason.
        reason: String,
    },
    /// Close a user's connections and keep the user out for a while; owner and root only.
    BanUser {
        /// Who.
        user: String,
        /// For how long, in milliseconds.
        ban_ms: u64,
        /// Close code.
        code: u16,
        /// Close reason.
        reason: String,
    },
    /// Say whose a connection is; owner and root only.
    SetUser {
        /// The connection.
        socket: String,
        /// The user's id; absent: nobody.
        user: Option<String>,
        /// JSON text of the user's info.
        info: Option<String>,
    },
    /// Channels with subscribers.
    Channels,
    /// Counters.
    Stats,
    /// Counters, and which hub it is.
    Status,
    /// All hubs that share a broker: which they are, what they have, and which did not answer.
    Cluster,
    /// Users on a channel by number, and whether one of them is there.
    Presence {
        /// Which.
        channel: String,
        /// Whom to look for.
        user: Option<String>,
    },
    /// Handle connections from now on: the answer is a line of JSON an event, without end. Owner
    /// and root only, one a connection.
    Handle {
        /// What to be told of.
        hears: Vec<Kind>,
        /// What of it to decide: `connect`, `subscribe`.
        decides: Vec<Kind>,
    },
    /// Decide about a connection or a subscription. Owner and root only.
    Decide {
        /// From the event.
        ticket: String,
        /// Why not; absent: yes.
        refuse: Option<String>,
    },
    /// Do something with a connection. Owner and root only.
    Act {
        /// Its socket id.
        connection: String,
        /// Where an event said that it lives.
        shard: Option<usize>,
        /// What.
        act: BusAct,
    },
    /// Acknowledge an event and wait for the next one, of those that are queued for workers. Owner
    /// and root only.
    NextEvent {
        /// How long; at most half a second.
        timeout_ms: u64,
        /// Number of the event that is done.
        done: Option<u64>,
    },
    /// Acknowledge an event and take none; answers whether this connection had it. Owner and root only.
    EventDone {
        /// Its number.
        number: u64,
    },
    /// From here on this connection's channels and users are an app's.
    UseApp {
        /// Its name; empty is the default one.
        app: String,
    },
    /// What is published from now on, live; owner and root only. One a connection.
    Tail {
        /// A channel's name, or a pattern in which each `*` stands for any text.
        pattern: String,
    },
    /// Live as long as this process, if the hub lives as long as others; the hub's own user and root only.
    Follow {
        /// The process, as the hub's host numbers it.
        pid: u32,
    },
}

/// A position in a [`BusQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// As it was given out.
    pub epoch: String,
    /// The offset within it.
    pub offset: u64,
}

/// What can be done with a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
#[non_exhaustive]
pub enum BusAct {
    /// Send it a text.
    SendText {
        /// The event's name.
        event: String,
        /// The text.
        text: String,
    },
    /// Send it a JSON value.
    SendJson {
        /// The event's name.
        event: String,
        /// JSON text.
        json: String,
    },
    /// Send it bytes.
    SendBytes {
        /// The event's name.
        event: String,
        /// In hexadecimal.
        hex: String,
    },
    /// Answer its message.
    Answer {
        /// JSON text of the message's id.
        id: String,
        /// JSON text of the answer.
        json: String,
    },
    /// Refuse its message.
    RefuseMessage {
        /// JSON text of the message's id.
        id: String,
        /// Why.
        reason: String,
    },
    /// Subscribe it to a channel. Answered with `true`, or with why not.
    Join {
        /// Which.
        channel: String,
    },
    /// End a subscription. Answered with whether there was one.
    Leave {
        /// Which.
        channel: String,
    },
    /// Close it.
    Close {
        /// Close code, 1000 or 3000–4999.
        code: u16,
        /// Close reason.
        reason: String,
    },
}
