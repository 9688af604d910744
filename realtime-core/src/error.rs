//! What can go wrong, an enum per operation.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::apps::UnknownApp;
use crate::config::ConfigError;
use crate::message::InvalidChannel;

/// Why a publication was not accepted. Nothing of it reaches any client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// No app has that name.
    #[error(transparent)]
    App(#[from] UnknownApp),
    /// The channel's name breaks a rule.
    #[error(transparent)]
    InvalidChannel(#[from] InvalidChannel),
    /// The event's name is empty, too long, holds a control character or is reserved.
    #[error("event name {reason}")]
    InvalidEvent {
        /// Which rule.
        reason: &'static str,
    },
    /// A body that is said to be JSON is not.
    #[error("message is not valid JSON: {reason}")]
    InvalidJson {
        /// What the JSON parser said.
        reason: String,
    },
    /// The idempotency key is empty or too long.
    #[error("id has {bytes} bytes, it must have 1–{limit}")]
    InvalidId {
        /// Length of the refused key.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The user id is empty, too long or holds a control character.
    #[error(transparent)]
    InvalidUser(#[from] crate::message::InvalidUser),
    /// The body passes `limits.publication_bytes`.
    #[error("message has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Length of the refused body.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// No room in the ingress queue before the deadline: subscribers take longer than the
    /// publisher. Retry later.
    #[error("ingress queue holds {queued_bytes} of {limit} bytes, gave up after {} ms", waited.as_millis())]
    QueueFull {
        /// Bytes accepted and not yet fanned out.
        queued_bytes: usize,
        /// `limits.ingress_bytes`, or the channel's share of it.
        limit: usize,
        /// How long the call waited.
        waited: Duration,
    },
    /// The broker refused it or could not be reached.
    #[error("broker: {0}")]
    Broker(#[from] BrokerError),
    /// The broker did not answer in time; the publication may or may not have been accepted.
    #[error("no answer from the broker within {} ms", waited.as_millis())]
    Timeout {
        /// How long the call waited.
        waited: Duration,
    },
    /// The hub has been stopped.
    #[error("hub is stopped")]
    Stopped,
}

impl PublishError {
    /// Whether the same publication may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, PublishError::QueueFull { .. } | PublishError::Broker(_) | PublishError::Timeout { .. } | PublishError::Stopped)
    }
}

/// What a broker reports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The broker cannot be reached now.
    #[error("unavailable: {reason}")]
    Unavailable {
        /// For the log.
        reason: String,
    },
    /// The server has it, and fewer replicas than `broker.wait_replicas` have said in time that they have it too: it may or
    /// may not outlive the server.
    #[error("{replicas} of {wanted} replicas had it within {} ms; it may or may not have been accepted", waited.as_millis())]
    Unconfirmed {
        /// Replicas that have it.
        replicas: usize,
        /// `broker.wait_replicas`.
        wanted: usize,
        /// `broker.wait_timeout_ms`.
        waited: Duration,
    },
    /// The broker is stopped.
    #[error("stopped")]
    Stopped,
}

/// Why a question to the shards had no full answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// No app has that name.
    #[error(transparent)]
    App(#[from] UnknownApp),
    /// The channel's name breaks a rule.
    #[error(transparent)]
    InvalidChannel(#[from] InvalidChannel),
    /// The user id breaks a rule.
    #[error(transparent)]
    InvalidUser(#[from] crate::message::InvalidUser),
    /// The close code is not one an application may use.
    #[error("close code {code} is not 1000 or 3000–4999")]
    InvalidCloseCode {
        /// The refused code.
        code: u16,
    },
    /// The close reason is longer than a close frame can carry.
    #[error("close reason has {bytes} bytes, the limit is {limit}")]
    ReasonTooLong {
        /// Length of the refused reason.
        bytes: usize,
        /// 123: RFC 6455 section 5.5.
        limit: usize,
    },
    /// What keeps the users did not answer.
    #[error("presence: {0}")]
    Presence(#[source] BrokerError),
    /// Nothing is queued for workers.
    #[error("this hub queues no events: name those that are wanted in hooks.events")]
    NoEvents,
    /// There are as many bans as a hub keeps.
    #[error(transparent)]
    TooManyBans(#[from] crate::auth::TooManyBans),
    /// Nothing is kept of the channel.
    #[error("no policy gives channel `{channel}` a history")]
    NoHistory {
        /// The channel.
        channel: String,
    },
    /// A question for a history asks for too many publications, or for none.
    #[error("limit {limit} is not within 1–{max}")]
    Limit {
        /// What was asked for.
        limit: usize,
        /// The limit of the limit.
        max: usize,
    },
    /// The broker could not be asked.
    #[error("broker: {0}")]
    Broker(#[source] BrokerError),
    /// A shard, or the broker, did not answer within the deadline.
    #[error("no answer within {} ms", waited.as_millis())]
    Timeout {
        /// The deadline.
        waited: Duration,
    },
    /// The hub has been stopped.
    #[error("hub is stopped")]
    Stopped,
}

/// Why a hub did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address from `listen`.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The bus socket could not be taken.
    #[error(transparent)]
    Bus(#[from] crate::bus::socket::BusBindError),
    /// The bus' address over TCP or TLS could not be bound.
    #[error("cannot serve the bus on {address}: {source}")]
    BusTcp {
        /// The address from `socket`.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// A thread, poller or descriptor could not be made.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
    /// The broker refused to start.
    #[error("broker: {0}")]
    Broker(#[from] BrokerError),
}
