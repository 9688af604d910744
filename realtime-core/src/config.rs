//! One configuration for every way of running the hub: defaults < file < INI < environment < code.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::level_filters::LevelFilter;

use crate::apps::DEFAULT_APP;
use crate::bus::address::BusAddress;
use crate::bus::seal::MIN_SECRET_BYTES;
use crate::bus::socket::default_path;
use crate::history::Retention;
use crate::message::INTERNAL_PREFIX;
use crate::protocol::pusher::names;

mod auth;
mod hooks;

pub use auth::{AuthConfig, AuthMode, AuthModes, CallbackConfig, FastCgiConfig, JwtAlgorithm, JwtConfig, JwtKeyConfig};
pub use hooks::{HooksConfig, HooksWebhookConfig};

/// Everything that can be set. Durations are `_ms`, sizes are `_bytes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port to listen on; port 0 takes a free one. Default `127.0.0.1:8080`. An address
    /// that others can reach needs `auth.mode` written out, be it `none`.
    pub listen: String,
    /// Below which path everything is served: with `/realtime` it is `/realtime/ws`, `/realtime/app/…` and so on. Pusher's
    /// clients call it `wsPath`. Default empty: everything at the root.
    pub path: String,
    /// Where the bus is: the path of a Unix socket, `tcp://host:port` (needs `secret`), the same as
    /// `tls://host:port` (needs `socket_cert` and `socket_key` too), or a path and one of these, separated
    /// by a comma. Empty: no bus. Absent: none for who makes this structure, the usual path for who uses
    /// [`ConfigBuilder`].
    pub socket: Option<String>,
    /// What the hub and its peers on a bus over TCP know; at least 32 bytes. Who knows it may do
    /// everything that the bus offers. Default none.
    pub secret: Secret,
    /// Rights of the bus socket, in octal. Default `0660`: the hub's user and group.
    pub socket_mode: String,
    /// For a hub that serves `tls://`: the PEM file of its certificate, and behind it of those between it and what
    /// its clients trust. A file that was replaced is read with the next connection. Default none.
    pub socket_cert: String,
    /// The PEM file of that certificate's private key. Default none.
    pub socket_key: String,
    /// For those who use `tls://`: the PEM file of the certificates to trust. Default: the system's.
    pub socket_ca: String,
    /// Who may connect.
    pub auth: AuthConfig,
    /// Origins that may open connections: `https://app.example.com`, `https://*.example.com`, or
    /// `*`. Default empty: the host that the request names, whatever its port; any for protocols
    /// whose clients send nothing by which a browser could speak for its user (Pusher's). The entry
    /// `default` keeps that beside others. A request without an `Origin` header does not come from
    /// a browser and is always allowed.
    pub allowed_origins: Vec<String>,
    /// Addresses or networks (`10.0.0.0/8`) of proxies whose `X-Forwarded-For` is believed. Default:
    /// loopback.
    pub trusted_proxies: Vec<String>,
    /// Threads that own connections. Default 0: one a core.
    pub shards: usize,
    /// Liveness of connections.
    pub heartbeat: HeartbeatConfig,
    /// What a peer may make the hub hold or do.
    pub limits: Limits,
    /// How long a publish waits for room in the ingress queue. Default 1,000; 0 refuses at once.
    pub publish_timeout_ms: u64,
    /// How long a stop waits for clients to take what is queued and to close. Default 5,000.
    pub drain_timeout_ms: u64,
    /// Apps whose channels and users do not meet. The one called `default` is meant where none is
    /// named, and is there without an entry.
    pub apps: Vec<AppConfig>,
    /// How long a user whose last connection to a channel broke still counts as present there, so
    /// that a page's reload makes no noise. Default 3,000; 0: not at all. A policy may say otherwise.
    pub presence_grace_ms: u64,
    /// Where publications get their order.
    pub broker: BrokerConfig,
    /// What the application hears of connections and channels.
    pub hooks: HooksConfig,
    /// Where the hub is watched.
    pub monitoring: MonitoringConfig,
    /// Policies by channel name, the first match wins.
    pub channels: Vec<ChannelPolicy>,
    /// How long a hub that follows a process (`realtime serve --follow`) stays for its connections after that process has
    /// ended, unless another one takes its place. Default 30,000; without connections it leaves at once.
    pub linger_ms: u64,
    /// File that the server program, and hubs inside PHP, append their log to. Default none: the server's goes to stderr,
    /// that of a hub inside PHP nowhere.
    pub log: Option<PathBuf>,
    /// What is logged. Default `info`. The host of a library decides for itself.
    pub log_level: LogLevel,
    /// How the log is written. Default `text`.
    pub log_format: LogFormat,
}

/// A token of so many bytes is not guessed.
const MIN_TOKEN_BYTES: usize = 16;

/// Where the hub is watched.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitoringConfig {
    /// Address and port at which `/health`, `/ready` and `/metrics` answer to anybody who can reach it. Default empty: the first two
    /// are where clients connect, and so is `/metrics` if there is a `token`.
    pub listen: String,
    /// What `/metrics` has to be asked with (`Authorization: Bearer …`), wherever it is; at least 16 bytes. Default none: it is
    /// at `listen` only.
    pub token: Secret,
}

/// The least important records that are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What needs somebody now.
    Error,
    /// And what may need somebody soon.
    Warn,
    /// And starts, stops and refusals, with their reasons.
    #[default]
    Info,
    /// And what helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level as `tracing` has it.
    pub fn filter(self) -> LevelFilter {
        match self {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

/// How log records are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// Liveness of connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeartbeatConfig {
    /// A connection that has been silent this long gets a ping. Default 25,000, below the idle
    /// timeouts of usual proxies (nginx: 60 s). The shortest is 50.
    pub ping_interval_ms: u64,
    /// A pinged connection that stays silent this long is closed. Default 10,000. The shortest is 50.
    pub pong_timeout_ms: u64,
    /// What Pusher clients are told: after so long without a message they ping by themselves. Default
    /// 30,000; counted in whole seconds, rounded up.
    pub activity_timeout_ms: u64,
}

/// What a peer may make the hub hold or do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections on this hub. Default 100,000; past it new ones get 503.
    pub max_connections: usize,
    /// Processes on the bus. Default 4,096; past it new ones are dropped.
    pub max_bus_connections: usize,
    /// Bytes of one inbound message. Default 64 KiB; past it the connection is closed with 1009.
    pub max_message_bytes: usize,
    /// Frames that one inbound message may be split into. Default 64; past it 1009.
    pub max_fragments: usize,
    /// Bytes of a request's head. Default 16 KiB, at least 8 KiB; past it 431.
    pub max_header_bytes: usize,
    /// Headers in a request. Default 64; past it 431.
    pub max_headers: usize,
    /// Bytes of the body of one HTTP API request. Default 1 MiB; past it 413. All bodies under way
    /// may hold 64 times as much; past that 503.
    pub max_request_bytes: usize,
    /// Time to send a complete request head, and again a complete body. Default 5,000.
    pub handshake_timeout_ms: u64,
    /// Connections that have not been upgraded, plain HTTP ones included. Default 4,096; past it
    /// new ones are dropped.
    pub max_handshakes: usize,
    /// Subscriptions of one connection. Default 1,024.
    pub max_subscriptions: usize,
    /// Connections of one user on this hub. Default 0: no limit, because a wall of dashboards can
    /// be one user. Past it new ones are closed with a code that tells them to come back later.
    pub max_user_connections: usize,
    /// Users that all connections together may watch, each counted once a watcher. Default 1,000,000; past it a watchlist
    /// is refused.
    pub watches: usize,
    /// Protocol errors after which a connection is closed. Default 10.
    pub max_protocol_errors: u8,
    /// Bytes of one publication's body. Default 256 KiB, at most a quarter of `outbox_bytes`.
    pub publication_bytes: usize,
    /// Bytes that may wait for one connection. Default 1 MiB; past it the connection is closed
    /// with a code that tells it to come back.
    pub outbox_bytes: usize,
    /// Age of the oldest byte that waits for one connection. Default 30,000.
    pub outbox_age_ms: u64,
    /// Bytes of publications that are accepted and not yet fanned out. Default 64 MiB. One channel
    /// may hold a quarter of it.
    pub ingress_bytes: usize,
    /// Channels without subscribers whose position is remembered. Default 100,000; the ones that
    /// were silent longest are forgotten first and start a new epoch.
    pub idle_channels: usize,
    /// Idempotency keys that are remembered, each for five minutes. Default 100,000; past it a
    /// channel's oldest are forgotten first.
    pub idempotency_keys: usize,
    /// Bytes of memory of all kept publications, in the memory broker. Default 64 MiB; past it
    /// those of the channels that were silent longest go first.
    pub history_bytes: usize,
    /// Bytes of memory of what is known of pages that may come back (`resume_ms`). Default 16 MiB; past it those whose time
    /// is over first are forgotten first.
    pub resume_bytes: usize,
    /// Bytes of the ids and infos of the users who are present on one channel, which every newcomer
    /// is sent at once. Default 256 KiB, at most a quarter of `outbox_bytes`; past it a further user
    /// is refused.
    pub presence_bytes: usize,
}

/// An address that is told what happens on an app's channels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// `http://…` or `https://…`.
    pub url: String,
    /// What it is told. Default everything.
    #[serde(default = "WebhookEvent::all")]
    pub events: Vec<WebhookEvent>,
    /// How long events are collected for one request, 100 of them at most. Default 0: a request each.
    #[serde(default)]
    pub batch_ms: u64,
}

/// What a webhook can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WebhookEvent {
    /// A channel has its first subscriber.
    ChannelOccupied,
    /// A channel has had none for three seconds.
    ChannelVacated,
    /// A user has come onto a presence channel.
    MemberAdded,
    /// A user has been away from one for three seconds.
    MemberRemoved,
    /// A client has sent the others an event.
    ClientEvent,
    /// Somebody has subscribed to a cache channel that has nothing.
    CacheMiss,
    /// The number of a channel's subscriptions has changed, in an app with `subscription_count`.
    SubscriptionCount,
}

impl WebhookEvent {
    fn all() -> Vec<Self> {
        use WebhookEvent::*;
        vec![ChannelOccupied, ChannelVacated, MemberAdded, MemberRemoved, ClientEvent, CacheMiss, SubscriptionCount]
    }
}

/// An app: a site, or whatever else has channels of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AppConfig {
    /// What hosts call it (`realtime.app`, the option `app`). Default: its id.
    pub name: String,
    /// What signed HTTP requests call it.
    pub id: String,
    /// What clients call it; not a secret.
    pub key: String,
    /// Signs who may subscribe and who may call the HTTP API.
    pub secret: Secret,
    /// Turns connections and requests of the Pusher protocol away. Default false.
    pub disabled: bool,
    /// Connections of this app on this hub. Default 0: as many as the hub takes. Past it new ones are
    /// closed with 4004, which tells them to stay away.
    pub max_connections: usize,
    /// Whether members of `private-` and `presence-` channels may send each other client events in the
    /// Pusher protocol. Default true. A channel's policy can allow it where this does not.
    pub client_events: bool,
    /// Client events a second of one connection of the Pusher protocol. Default 10, Pusher's own; 0 is no limit.
    pub client_events_per_second: u32,
    /// Bytes of an event's data, from Pusher clients and through the HTTP API. Default 10 KiB, Pusher's own.
    pub event_bytes: usize,
    /// Whether subscribers of channels other than `presence-` ones are told how many they are on this hub, in the Pusher
    /// protocol. Default false, Pusher's own.
    pub subscription_count: bool,
    /// Whether users who sign in with a `watchlist` hear when those users come online on this hub and go offline, in the
    /// Pusher protocol. Default false, Pusher's own.
    pub watchlists: bool,
    /// Who is told what happens on the app's channels, in Pusher's format. Default nobody.
    pub webhooks: Vec<WebhookConfig>,
    /// System users whose processes are in this app when they use the hub's Unix socket, and in no
    /// other. Default none: processes are in the default app, and may choose another.
    pub uids: Vec<u32>,
}

impl Default for AppConfig {
    fn default() -> Self {
        AppConfig {
            name: String::new(),
            id: String::new(),
            key: String::new(),
            secret: Secret::default(),
            disabled: false,
            max_connections: 0,
            client_events: true,
            client_events_per_second: 10,
            event_bytes: 10 << 10,
            subscription_count: false,
            watchlists: false,
            webhooks: Vec::new(),
            uids: Vec::new(),
        }
    }
}

impl AppConfig {
    /// What hosts call it.
    pub fn name(&self) -> &str {
        if self.name.is_empty() { &self.id } else { &self.name }
    }
}

/// A text that is never shown: not in a log, not in what `realtime config` prints.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "\"\"" } else { "\"***\"" })
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_empty() { "" } else { "***" })
    }
}

/// Who may subscribe to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Access {
    /// Everybody who may connect.
    Public,
    /// Connections that are somebody's.
    Authenticated,
    /// Who has a signature made with the app's secret. Channels whose names begin with `private-`
    /// or `presence-` are always `signed`.
    Signed,
    /// Whom the application lets in when it is asked (`auth.callback`).
    Callback,
}

/// Policy of the channels whose name matches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelPolicy {
    /// A name, or a pattern in which each `*` stands for any text.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Who may subscribe. Default: `authenticated` where connections are authenticated, else
    /// `public`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// Whether subscribers may publish to the channel. Default false.
    #[serde(default)]
    pub client_events: bool,
    /// What is kept of the channel, so that clients which come back get what they have missed.
    /// Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<HistoryPolicy>,
    /// Whether who subscribes gets the newest publication at once. Default false.
    #[serde(default)]
    pub last_value: bool,
    /// Of what is published within so many milliseconds, subscribers get the newest publication of each
    /// event name, at the end of that time; after a silence the first one at once. 1–60,000. Default 0:
    /// everything goes out as it comes. Not together with `history`, which promises everything.
    #[serde(default)]
    pub conflate_ms: u64,
    /// For how long after its connection has ended a page of the Pusher protocol (`wsPath: '/resume/ID'`) can go on where
    /// it was; of several channels the longest counts. 1–86,400,000, a day; needs `history`. Default 0: it begins anew.
    #[serde(default)]
    pub resume_ms: u64,
    /// Whether subscribers are told who else is here. Default false; channels whose names begin
    /// with `presence-` always tell.
    #[serde(default)]
    pub presence: bool,
    /// Connections that may be subscribed at once. Default 0: no limit.
    #[serde(default)]
    pub max_members: usize,
    /// See [`Config::presence_grace_ms`], which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_grace_ms: Option<u64>,
}

/// Where publications get their order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// A Redis server, 7.0 or newer: `redis://user:password@host:6379/0`, `rediss://…` for TLS,
    /// `unix:///run/redis.sock`. Or sentinels that are asked which server is the master:
    /// `redis+sentinel://user:password@sentinel1:26379,sentinel2:26379/name/0`, `rediss+sentinel://…`. Or nodes of a cluster:
    /// `redis+cluster://user:password@node1:6379,node2:6379`, `rediss+cluster://…`.
    /// Default empty: the memory of this hub. Not shown, because it may hold a password.
    pub url: Secret,
    /// The PEM file of the certificates that servers over TLS must have one of, or one signed by them. Default empty: the
    /// system's certificates are trusted.
    pub ca_file: String,
    /// Before all names in Redis. Default `realtime`; hubs that share it share their channels.
    pub prefix: String,
    /// Whether a channel begins a new epoch when another server counts than before. Default true:
    /// a replica that took over, or a server that came back from an older state of its disk, would
    /// give out offsets again that clients have seen. False is for a single server that keeps
    /// everything (`appendfsync always`): then a restart costs no client its recovery.
    pub fence: bool,
    /// Replicas that must have a publication before it is acknowledged. Default 0; 0–64. With one or more it outlives the
    /// loss of the master; without them in time publishing fails with [`crate::BrokerError::Unconfirmed`].
    pub wait_replicas: usize,
    /// How long replicas are waited for. Default 500; 1–10,000.
    pub wait_timeout_ms: u64,
    /// How long users stay of a hub that has gone without a word, in milliseconds. Default 30,000; 1,000–600,000. Hubs say
    /// three times as often that they are there, for each channel with presence; a shorter time costs more of that, and a
    /// hub that stands still for longer has its users leave and come back.
    pub presence_ttl_ms: u64,
    /// How many times longer than usual an answer of the server may take. For tests, which have to pass on a machine
    /// that is busy with others.
    #[doc(hidden)]
    #[serde(skip)]
    pub patience: u32,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        BrokerConfig {
            url: Secret::default(),
            ca_file: String::new(),
            prefix: "realtime".into(),
            fence: true,
            wait_replicas: 0,
            wait_timeout_ms: 500,
            presence_ttl_ms: 30_000,
            patience: 1,
        }
    }
}

impl BrokerConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: String| Err(ConfigError::InvalidValue { key: format!("broker.{key}"), reason });
        #[cfg(feature = "redis")]
        if !self.url.is_empty()
            && let Err(reason) = crate::broker::redis::check_url(self.url.expose())
        {
            return invalid("url", reason);
        }
        if self.wait_replicas > MAX_REPLICAS {
            return invalid("wait_replicas", format!("{} is more than {MAX_REPLICAS}", self.wait_replicas));
        }
        if !(1..=MAX_REPLICAS_WAIT_MS).contains(&self.wait_timeout_ms) {
            return invalid("wait_timeout_ms", format!("{} is not within 1–{MAX_REPLICAS_WAIT_MS}", self.wait_timeout_ms));
        }
        if !(1_000..=600_000).contains(&self.presence_ttl_ms) {
            return invalid("presence_ttl_ms", format!("{} is not within 1000–600000", self.presence_ttl_ms));
        }
        Ok(())
    }
}

/// What is kept of a channel; what passes one of the bounds goes, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HistoryPolicy {
    /// Publications. Default 100; 1–100,000.
    pub size: usize,
    /// Their age. Default 300,000; 1 ms to 30 days.
    pub ttl_ms: u64,
    /// Their bytes of memory. Default 1 MiB, at least 1 KiB.
    pub bytes: usize,
}

impl Default for HistoryPolicy {
    fn default() -> Self {
        HistoryPolicy { size: 100, ttl_ms: 300_000, bytes: 1 << 20 }
    }
}

/// What is kept of a cache channel, as long as Pusher keeps it.
const CACHE_CHANNEL: Retention = Retention { size: 1, ttl_ms: 30 * 60_000, bytes: usize::MAX };
/// Replicas that a publication may wait for, and how long.
const MAX_REPLICAS: usize = 64;
const MAX_REPLICAS_WAIT_MS: u64 = 10_000;
/// Longest window of a channel that floods: a minute.
const MAX_CONFLATE_MS: u64 = 60_000;
/// Longest time for which a page may be away: a day.
const MAX_RESUME_MS: u64 = 86_400_000;
/// Longest age of a kept publication: 30 days.
const MAX_HISTORY_TTL_MS: u64 = 30 * 86_400_000;

impl ChannelPolicy {
    /// What has to be kept of such a channel.
    pub(crate) fn retention(&self) -> Option<Retention> {
        match (&self.history, self.last_value) {
            (Some(HistoryPolicy { size, ttl_ms, bytes }), _) => Some(Retention { size: *size, ttl_ms: *ttl_ms, bytes: *bytes }),
            (None, true) => Some(Retention { size: 1, ttl_ms: MAX_HISTORY_TTL_MS, bytes: usize::MAX }),
            (None, false) => None,
        }
    }

    fn check_conflation(&self) -> Result<(), String> {
        match (self.conflate_ms, &self.history) {
            (length, _) if length > MAX_CONFLATE_MS => Err(format!("conflate_ms {length} is not within 1–{MAX_CONFLATE_MS}")),
            (1.., Some(_)) => Err("conflate_ms leaves publications out, and a history promises all of them: choose one".to_owned()),
            _ => Ok(()),
        }
    }

    fn check_resumption(&self) -> Result<(), String> {
        match (self.resume_ms, &self.history) {
            (length, _) if length > MAX_RESUME_MS => Err(format!("resume_ms {length} is not within 1–{MAX_RESUME_MS}")),
            (1.., None) => Err("resume_ms needs a history: what a page has missed comes from there".to_owned()),
            _ => Ok(()),
        }
    }

    fn check_history(&self) -> Result<(), String> {
        let Some(HistoryPolicy { size, ttl_ms, bytes }) = &self.history else { return Ok(()) };
        if !(1..=100_000).contains(size) {
            return Err(format!("history.size {size} is not within 1–100000"));
        }
        if !(1..=MAX_HISTORY_TTL_MS).contains(ttl_ms) {
            return Err(format!("history.ttl_ms {ttl_ms} is not within 1–{MAX_HISTORY_TTL_MS}"));
        }
        if *bytes < 1 << 10 {
            return Err(format!("history.bytes {bytes} is less than 1024"));
        }
        Ok(())
    }
}

/// What is special about a channel that counts who is on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoomRules {
    /// Whether subscribers see each other.
    pub(crate) shows: bool,
    /// Connections at once; 0: no limit.
    pub(crate) max_members: usize,
    /// How long a user whose last connection broke stays.
    pub(crate) grace: Duration,
}

/// An hour.
const MAX_PRESENCE_GRACE_MS: u64 = 3_600_000;
/// Apps in one hub.
const MAX_APPS: usize = 1_000;
/// Longest name of an app, in bytes.
const MAX_APP_NAME_BYTES: usize = 64;

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: "127.0.0.1:8080".into(),
            path: String::new(),
            socket: None,
            secret: Secret::default(),
            socket_mode: "0660".into(),
            socket_cert: String::new(),
            socket_key: String::new(),
            socket_ca: String::new(),
            auth: AuthConfig::default(),
            allowed_origins: Vec::new(),
            trusted_proxies: vec!["127.0.0.0/8".into(), "::1".into()],
            shards: 0,
            heartbeat: HeartbeatConfig::default(),
            limits: Limits::default(),
            publish_timeout_ms: 1_000,
            drain_timeout_ms: 5_000,
            apps: Vec::new(),
            presence_grace_ms: 3_000,
            broker: BrokerConfig::default(),
            hooks: HooksConfig::default(),
            monitoring: MonitoringConfig::default(),
            channels: Vec::new(),
            linger_ms: 30_000,
            log: None,
            log_level: LogLevel::default(),
            log_format: LogFormat::default(),
        }
    }
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        HeartbeatConfig { ping_interval_ms: 25_000, pong_timeout_ms: 10_000, activity_timeout_ms: 30_000 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 100_000,
            max_bus_connections: 4_096,
            max_message_bytes: 64 << 10,
            max_fragments: 64,
            max_header_bytes: 16 << 10,
            max_headers: 64,
            max_request_bytes: 1 << 20,
            handshake_timeout_ms: 5_000,
            max_handshakes: 4_096,
            max_subscriptions: 1_024,
            max_user_connections: 0,
            watches: 1_000_000,
            max_protocol_errors: 10,
            publication_bytes: 256 << 10,
            outbox_bytes: 1 << 20,
            outbox_age_ms: 30_000,
            ingress_bytes: 64 << 20,
            idle_channels: 100_000,
            idempotency_keys: 100_000,
            history_bytes: 64 << 20,
            resume_bytes: 16 << 20,
            presence_bytes: 256 << 10,
        }
    }
}

impl Config {
    /// The address from `listen`, resolved.
    pub fn listen_address(&self) -> Result<SocketAddr, ConfigError> {
        let invalid = |reason: String| ConfigError::InvalidValue { key: "listen".into(), reason };
        self.listen
            .to_socket_addrs()
            .map_err(|error| invalid(format!("`{}` is not an address and port: {error}", self.listen)))?
            .next()
            .ok_or_else(|| invalid(format!("`{}` names no address", self.listen)))
    }

    /// The address from `monitoring.listen`, resolved; `None`: there is no listener for it.
    pub(crate) fn monitoring_address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let listen = &self.monitoring.listen;
        if listen.is_empty() {
            return Ok(None);
        }
        let invalid = |reason: String| ConfigError::InvalidValue { key: "monitoring.listen".into(), reason };
        let mut found = listen.to_socket_addrs().map_err(|error| invalid(format!("`{listen}` is not an address and port: {error}")))?;
        found.next().map(Some).ok_or_else(|| invalid(format!("`{listen}` names no address")))
    }

    /// Checks what the types cannot: ranges, and that nobody is let in by omission.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: String| Err(ConfigError::InvalidValue { key: key.into(), reason });
        let address = self.listen_address()?;
        check_path(&self.path).map_err(|reason| ConfigError::InvalidValue { key: "path".into(), reason })?;
        self.monitoring_address()?;
        if let length @ 1..MIN_TOKEN_BYTES = self.monitoring.token.expose().len() {
            return invalid(
                "monitoring.token",
                format!("{length} bytes can be guessed, it needs {MIN_TOKEN_BYTES}; `openssl rand -hex 16` makes one"),
            );
        }
        if !self.monitoring.token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            return invalid("monitoring.token", "a header carries letters, digits and signs, no blanks: nobody could present it".into());
        }
        if self.auth.mode.is_none() && !address.ip().is_loopback() {
            return Err(ConfigError::UnsafeListen { address });
        }
        self.auth.validate()?;
        if let Some(at) = self.channels.iter().position(|policy| policy.access == Some(Access::Callback))
            && !self.auth.callback.is_set()
        {
            return invalid(&format!("channels[{at}].access"), "`callback` needs `auth.callback`".into());
        }
        self.validate_origins()?;
        self.trusted_networks()?;
        self.socket_mode()?;
        self.bus_addresses()?;
        self.validate_apps()?;
        self.broker.validate()?;
        for (at, policy) in self.channels.iter().enumerate() {
            policy
                .check_history()
                .and_then(|()| policy.check_conflation())
                .and_then(|()| policy.check_resumption())
                .map_err(|reason| ConfigError::InvalidValue { key: format!("channels[{at}]"), reason })?;
        }
        let limits = &self.limits;
        if self.shards > 64 {
            return invalid("shards", format!("{} is more than 64", self.shards));
        }
        if limits.publication_bytes > limits.outbox_bytes / 4 {
            return invalid(
                "limits.publication_bytes",
                format!("{} is more than a quarter of limits.outbox_bytes ({})", limits.publication_bytes, limits.outbox_bytes),
            );
        }
        if limits.ingress_bytes / 4 < limits.publication_bytes {
            return invalid(
                "limits.ingress_bytes",
                format!("{} is less than four times limits.publication_bytes ({})", limits.ingress_bytes, limits.publication_bytes),
            );
        }
        for (key, value) in [("presence_grace_ms".to_owned(), Some(self.presence_grace_ms))].into_iter().chain(
            self.channels.iter().enumerate().map(|(at, policy)| (format!("channels[{at}].presence_grace_ms"), policy.presence_grace_ms)),
        ) {
            if let Some(value) = value.filter(|value| *value > MAX_PRESENCE_GRACE_MS) {
                return invalid(&key, format!("{value} is more than {MAX_PRESENCE_GRACE_MS}"));
            }
        }
        self.hooks.validate()?;
        if limits.max_header_bytes < 8 << 10 {
            return invalid("limits.max_header_bytes", format!("{} is less than 8192", limits.max_header_bytes));
        }
        for (key, value) in
            [("heartbeat.ping_interval_ms", self.heartbeat.ping_interval_ms), ("heartbeat.pong_timeout_ms", self.heartbeat.pong_timeout_ms)]
        {
            if !(50..=86_400_000).contains(&value) {
                return invalid(key, format!("{value} is not within 50–86400000"));
            }
        }
        for (key, value) in [
            ("limits.max_connections", limits.max_connections),
            ("limits.max_message_bytes", limits.max_message_bytes),
            ("limits.max_fragments", limits.max_fragments),
            ("limits.max_headers", limits.max_headers),
            ("limits.max_request_bytes", limits.max_request_bytes),
            ("limits.max_handshakes", limits.max_handshakes),
            ("limits.max_subscriptions", limits.max_subscriptions),
            ("limits.max_protocol_errors", usize::from(limits.max_protocol_errors)),
            ("limits.handshake_timeout_ms", usize::try_from(limits.handshake_timeout_ms).unwrap_or(usize::MAX)),
            ("limits.outbox_age_ms", usize::try_from(limits.outbox_age_ms).unwrap_or(usize::MAX)),
            ("limits.publication_bytes", limits.publication_bytes),
        ] {
            if value == 0 {
                return invalid(key, "must be at least 1".into());
            }
        }
        Ok(())
    }

    fn validate_apps(&self) -> Result<(), ConfigError> {
        let invalid = |at: usize, reason: String| Err(ConfigError::InvalidValue { key: format!("apps[{at}]"), reason });
        if self.apps.len() > MAX_APPS {
            return invalid(MAX_APPS, format!("there are more than {MAX_APPS} apps"));
        }
        for (at, app) in self.apps.iter().enumerate() {
            let name = app.name();
            if name.is_empty() {
                return invalid(at, "has neither a name nor an id".into());
            }
            if name.len() > MAX_APP_NAME_BYTES || name.contains(char::is_control) {
                return invalid(at, format!("its name must have 1–{MAX_APP_NAME_BYTES} bytes without control characters"));
            }
            if !app.webhooks.is_empty() && app.key.is_empty() {
                return invalid(at, "`webhooks` are signed: they need `key` and `secret`".into());
            }
            if app.key.is_empty() != app.secret.is_empty() {
                return invalid(at, "`key` and `secret` belong together, and one is missing".into());
            }
            for other in &self.apps[..at] {
                if let Some(uid) = app.uids.iter().find(|uid| other.uids.contains(uid)) {
                    return invalid(at, format!("user {uid} is in an app before it, and can be in one"));
                }
                for (what, mine, its) in [("name", name, other.name()), ("id", &app.id, &other.id), ("key", &app.key, &other.key)] {
                    if mine == its && !mine.is_empty() {
                        return invalid(at, format!("an app before it has the same {what}, `{mine}`"));
                    }
                }
            }
        }
        Ok(())
    }

    fn validate_origins(&self) -> Result<(), ConfigError> {
        for origin in &self.allowed_origins {
            if !origin.is_ascii() {
                return Err(ConfigError::InvalidValue {
                    key: "allowed_origins".into(),
                    reason: format!("`{origin}` is not how a browser writes it; international names are written `xn--…`"),
                });
            }
        }
        Ok(())
    }

    /// `trusted_proxies` as networks.
    pub(crate) fn trusted_networks(&self) -> Result<Vec<IpNet>, ConfigError> {
        self.trusted_proxies
            .iter()
            .map(|text| text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)))
            .zip(&self.trusted_proxies)
            .map(|(network, text)| {
                network.map_err(|_| ConfigError::InvalidValue {
                    key: "trusted_proxies".into(),
                    reason: format!("`{text}` is neither an address nor a network such as 10.0.0.0/8"),
                })
            })
            .collect()
    }

    /// Whether connections have to say whose they are.
    pub(crate) fn authenticates(&self) -> bool {
        self.auth.modes().iter().any(|mode| *mode != AuthMode::None)
    }

    /// Who may subscribe to a channel.
    pub(crate) fn access(&self, channel: &str) -> Access {
        if channel.starts_with("private-") || channel.starts_with("presence-") {
            return Access::Signed;
        }
        let default = if self.authenticates() { Access::Authenticated } else { Access::Public };
        self.channel_policy(channel).and_then(|policy| policy.access).unwrap_or(default)
    }

    /// How a channel counts who is on it; `None`: not at all. The name is without its app.
    pub(crate) fn room(&self, channel: &str) -> Option<RoomRules> {
        let policy = self.channel_policy(channel);
        let shows = policy.is_some_and(|policy| policy.presence) || channel.starts_with("presence-");
        let max_members = policy.map_or(0, |policy| policy.max_members);
        let grace = policy.and_then(|policy| policy.presence_grace_ms).unwrap_or(self.presence_grace_ms);
        (shows || max_members > 0).then_some(RoomRules { shows, max_members, grace: Duration::from_millis(grace) })
    }

    /// Bytes that the users of one channel may have together.
    pub(crate) fn presence_bytes(&self) -> usize {
        self.limits.presence_bytes.min(self.limits.outbox_bytes / 4)
    }

    /// Where the bus is to be served: a Unix socket, an address over TCP or TLS, both or neither.
    pub(crate) fn bus_addresses(&self) -> Result<(Option<PathBuf>, Option<BusAddress>), ConfigError> {
        let invalid = |key: &str, reason: String| ConfigError::InvalidValue { key: key.into(), reason };
        let (mut unix, mut tcp) = (None, None);
        for address in BusAddress::list(self.socket.as_deref().unwrap_or_default()).map_err(|error| invalid("socket", error.to_string()))? {
            let second = match address {
                BusAddress::Unix(path) => unix.replace(path).is_some(),
                address => tcp.replace(address).is_some(),
            };
            if second {
                return Err(invalid(
                    "socket",
                    "names two of a kind; a hub serves one path and one tcp:// or tls:// address at most".into(),
                ));
            }
        }
        check_secret(&self.secret, tcp.is_some()).map_err(|reason| invalid("secret", reason))?;
        Ok((unix, tcp))
    }

    pub(crate) fn socket_mode(&self) -> Result<u32, ConfigError> {
        u32::from_str_radix(&self.socket_mode, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| ConfigError::InvalidValue {
            key: "socket_mode".into(),
            reason: format!("`{}` is not three octal digits", self.socket_mode),
        })
    }

    pub(crate) fn publish_timeout(&self) -> Duration {
        Duration::from_millis(self.publish_timeout_ms)
    }

    /// What is kept of a channel; nothing of those that belong to the hub.
    pub(crate) fn retention(&self, channel: &str) -> Option<Retention> {
        retention_where(channel, None, self.speaks_pusher(), || self.channel_policy(channel)?.retention())
    }

    /// What is kept of a publication.
    pub(crate) fn retention_of(&self, channel: &str, event: &str) -> Option<Retention> {
        retention_where(channel, Some(event), self.speaks_pusher(), || self.channel_policy(channel)?.retention())
    }

    /// The length of a channel's windows, if it has any.
    pub(crate) fn conflation(&self, channel: &str) -> Option<Duration> {
        if channel.starts_with(INTERNAL_PREFIX) {
            return None;
        }
        let length = self.channel_policy(channel)?.conflate_ms;
        (length > 0).then(|| Duration::from_millis(length))
    }

    /// For how long pages may come back to a channel, if they may.
    pub(crate) fn resume_ms(&self, channel: &str) -> Option<u64> {
        self.channel_policy(channel).map(|policy| policy.resume_ms).filter(|length| *length > 0)
    }

    /// Whether who subscribes to a channel gets its newest publication.
    pub(crate) fn gives_last_value(&self, channel: &str) -> bool {
        self.channel_policy(channel).is_some_and(|policy| policy.last_value) || self.is_cache(channel)
    }

    /// Whether a channel's subscribers are told how many they are. `app` is empty for the default one.
    pub(crate) fn tells_count(&self, app: &str, channel: &str) -> bool {
        let app = if app.is_empty() { DEFAULT_APP } else { app };
        self.apps.iter().any(|configured| configured.subscription_count && configured.name() == app) && !names::is_presence(channel)
    }

    /// Whether it is a cache channel of the Pusher protocol, and an app speaks that.
    fn is_cache(&self, channel: &str) -> bool {
        names::is_cache(channel) && self.speaks_pusher()
    }

    /// Whether clients of the Pusher protocol can connect at all.
    pub(crate) fn speaks_pusher(&self) -> bool {
        self.apps.iter().any(|app| !app.key.is_empty())
    }

    /// The policy for a channel: the first pattern that matches, or none.
    pub(crate) fn channel_policy(&self, channel: &str) -> Option<&ChannelPolicy> {
        self.channels.iter().find(|policy| wildcard_matches(&policy.pattern, channel))
    }
}

/// What is kept of a channel, or of an event on it, where its policy keeps `policy` and Pusher's cache channels are kept or not.
pub(crate) fn retention_where(
    channel: &str,
    event: Option<&str>,
    caches: bool,
    policy: impl FnOnce() -> Option<Retention>,
) -> Option<Retention> {
    if channel.starts_with(INTERNAL_PREFIX) {
        return None;
    }
    // A cache channel remembers what the application has said.
    let is_from_client = || event.is_some_and(|event| event.starts_with("client-"));
    policy().or_else(|| (names::is_cache(channel) && caches && !is_from_client()).then_some(CACHE_CHANNEL))
}

/// Longest `path`, in bytes.
const MAX_PATH_BYTES: usize = 200;

/// Whether a text can stand before all paths: what no client and no proxy writes in two ways.
fn check_path(path: &str) -> Result<(), String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let Some(segments) = path.strip_prefix('/') else {
        return if path.is_empty() { Ok(()) } else { Err(format!("`{path}` does not begin with `/`")) };
    };
    if path.len() > MAX_PATH_BYTES {
        return Err(format!("has {} bytes, the limit is {MAX_PATH_BYTES}", path.len()));
    }
    for segment in segments.split('/') {
        if segment.is_empty() {
            return Err(format!("`{path}` has an empty part: write it without a `/` at its end, as in `/realtime`"));
        }
        if matches!(segment, "." | "..") || !segment.bytes().all(is_plain) {
            return Err(format!("`{segment}` may only have letters, digits, `-`, `.`, `_` and `~`, and not be a `.` or `..`"));
        }
    }
    Ok(())
}

/// Whether a secret is good enough for a bus; it may be absent where none is `needed`.
pub fn check_secret(secret: &Secret, needed: bool) -> Result<(), String> {
    match secret.expose().len() {
        0 if needed => Err(format!("a bus over TCP needs a secret of at least {MIN_SECRET_BYTES} bytes; `openssl rand -hex 32` makes one")),
        0 | MIN_SECRET_BYTES.. => Ok(()),
        bytes => Err(format!("has {bytes} bytes, and must have at least {MIN_SECRET_BYTES}; `openssl rand -hex 32` makes one")),
    }
}

/// Whether `text` matches `pattern`, in which each `*` stands for any text.
pub(crate) fn wildcard_matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(previous) = last.replace(part) {
            match rest.find(previous) {
                Some(at) => rest = &rest[at + previous.len()..],
                None => return false,
            }
        }
    }
    match last {
        None => rest.is_empty(),
        Some(suffix) => rest.ends_with(suffix),
    }
}

/// Where a value came from, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The value built in.
    Default,
    /// The TOML file.
    File,
    /// A `.env` file of an application (`realtime serve --env-file`).
    EnvFile,
    /// A `realtime.*` INI setting.
    Ini,
    /// A `REALTIME_*` variable.
    Environment,
    /// An array or struct that the program gave.
    Code,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Default => "default",
            Source::File => "file",
            Source::EnvFile => "env file",
            Source::Ini => "php.ini",
            Source::Environment => "environment",
            Source::Code => "code",
        })
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No setting has this name.
    #[error("{origin}: unknown setting `{key}`{}", suggestion.as_ref().map(|s| format!(", did you mean `{s}`?")).unwrap_or_default())]
    UnknownKey {
        /// The name as it was written, with its tables.
        key: String,
        /// The nearest name that exists.
        suggestion: Option<String>,
        /// The layer that held it.
        origin: Source,
    },
    /// The value has the wrong type or is out of range.
    #[error("setting `{key}`: {reason}")]
    InvalidValue {
        /// Which setting.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Others could reach the address and nothing says that they may.
    #[error("listening on {address} would let in anybody who can reach it: set `auth.mode` (\"none\" says that this is meant)")]
    UnsafeListen {
        /// The address from `listen`.
        address: SocketAddr,
    },
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("not valid TOML: {reason}")]
    Syntax {
        /// The parser's message, with line and column.
        reason: String,
    },
}

/// A configuration with the origin of each value that was set.
#[derive(Debug, Clone)]
pub struct EffectiveConfig {
    /// The values.
    pub config: Config,
    /// Dotted key to the layer that set it; what is absent is a default.
    pub origins: BTreeMap<String, Source>,
    /// What was ignored, for the log.
    pub warnings: Vec<String>,
}

/// Puts layers on top of each other. Within one builder the stronger [`Source`] wins, whatever the
/// order of the calls.
#[derive(Debug, Clone, Default)]
pub struct ConfigBuilder {
    layers: BTreeMap<Source, Map<String, Value>>,
    warnings: Vec<String>,
}

impl ConfigBuilder {
    /// Defaults only.
    pub fn new() -> Self {
        ConfigBuilder::default()
    }

    /// Reads a TOML file.
    pub fn file(self, path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.into(), source })?;
        self.toml(&text)
    }

    /// Reads TOML text as the file's layer.
    pub fn toml(self, text: &str) -> Result<Self, ConfigError> {
        let value: Value = toml::from_str(text).map_err(|error| ConfigError::Syntax { reason: error.to_string() })?;
        self.layer(Source::File, value)
    }

    /// Takes `REALTIME_*` variables: `REALTIME_LISTEN`, `REALTIME_LIMITS__OUTBOX_BYTES`. One that
    /// names no setting becomes a warning, because orchestrators inject some of their own.
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let schema = schema();
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix("REALTIME_") else { continue };
            let path: Vec<String> = rest.to_ascii_lowercase().split("__").map(str::to_owned).collect();
            let Some(template) = lookup(&schema, &path) else {
                self.warnings.push(format!("ignored {name}: no such setting"));
                continue;
            };
            let value = parse_text(template, &text);
            insert(self.layers.entry(Source::Environment).or_default(), &path, value);
        }
        self
    }

    /// Takes one setting by its dotted name (`limits.outbox_bytes`), with its value as text, as a
    /// command line has it.
    pub fn text(mut self, source: Source, key: &str, text: &str) -> Result<Self, ConfigError> {
        let schema = schema();
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        let Some(template) = lookup(&schema, &path) else {
            let mut names = Vec::new();
            leaf_names(&schema, "", &mut names);
            let suggestion = nearest(key, names.iter().map(String::as_str)).map(str::to_owned);
            return Err(ConfigError::UnknownKey { key: key.into(), suggestion, origin: source });
        };
        let value = parse_text(template, text);
        insert(self.layers.entry(source).or_default(), &path, value);
        Ok(self)
    }

    /// Takes a tree of settings, named as in the file. Strings are accepted where a number or a
    /// truth value is meant, because INI values are strings.
    pub fn layer(mut self, source: Source, values: Value) -> Result<Self, ConfigError> {
        let Value::Object(mut values) = values else {
            return Err(ConfigError::InvalidValue { key: String::new(), reason: "expected a table of settings".into() });
        };
        check_keys(&values, &schema(), "", source)?;
        if source == Source::Ini {
            from_text(&mut values, &schema());
        }
        merge(self.layers.entry(source).or_default(), values);
        Ok(self)
    }

    /// What the strongest layer that has it says of one setting, by its dotted name. For programs
    /// that need a setting and not a hub: nothing else is validated.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.layers.values().rev().find_map(|layer| {
            let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
            let value = layer.get(first)?;
            rest.map_or(Some(value), |rest| rest.split('.').try_fold(value, |value, key| value.get(key)))
        })
    }

    /// Merges the layers and validates the result. A hub that is told nothing of a bus socket
    /// serves the usual one ([`default_path`]).
    pub fn build(self) -> Result<EffectiveConfig, ConfigError> {
        let mut merged = Map::new();
        let mut origins = BTreeMap::new();
        for (source, layer) in self.layers {
            record_origins(&layer, "", source, &mut origins);
            merge(&mut merged, layer);
        }
        let mut config = parse(merged)?;
        config.socket.get_or_insert_with(|| default_path().to_string_lossy().into_owned());
        config.validate()?;
        Ok(EffectiveConfig { config, origins, warnings: self.warnings })
    }
}

/// The settings that exist, as the defaults written out; it tells known names from unknown ones.
fn schema() -> Map<String, Value> {
    match serde_json::to_value(Config::default()) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn parse(merged: Map<String, Value>) -> Result<Config, ConfigError> {
    // Top-level keys one by one, so that an error can name its setting.
    for (key, value) in &merged {
        let mut single = Map::new();
        single.insert(key.clone(), value.clone());
        if let Err(error) = serde_json::from_value::<Config>(Value::Object(single)) {
            if let Value::Object(table) = value {
                for (inner, inner_value) in table {
                    let nested = Value::Object(Map::from_iter([(
                        key.clone(),
                        Value::Object(Map::from_iter([(inner.clone(), inner_value.clone())])),
                    )]));
                    if let Err(error) = serde_json::from_value::<Config>(nested) {
                        return Err(ConfigError::InvalidValue { key: format!("{key}.{inner}"), reason: error.to_string() });
                    }
                }
            }
            return Err(ConfigError::InvalidValue { key: key.clone(), reason: error.to_string() });
        }
    }
    serde_json::from_value(Value::Object(merged))
        .map_err(|error| ConfigError::InvalidValue { key: String::new(), reason: error.to_string() })
}

fn check_keys(values: &Map<String, Value>, schema: &Map<String, Value>, prefix: &str, origin: Source) -> Result<(), ConfigError> {
    for (key, value) in values {
        match (schema.get(key), value) {
            (None, _) => {
                let suggestion = nearest(key, schema.keys().map(String::as_str)).map(|name| format!("{prefix}{name}"));
                return Err(ConfigError::UnknownKey { key: format!("{prefix}{key}"), suggestion, origin });
            }
            (Some(Value::Object(inner)), Value::Object(table)) => check_keys(table, inner, &format!("{prefix}{key}."), origin)?,
            _ => {}
        }
    }
    Ok(())
}

/// The candidate that is most like `name`, if any is like it at all.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The dotted names of all settings.
fn leaf_names(schema: &Map<String, Value>, prefix: &str, names: &mut Vec<String>) {
    for (key, value) in schema {
        match value {
            Value::Object(inner) => leaf_names(inner, &format!("{prefix}{key}."), names),
            _ => names.push(format!("{prefix}{key}")),
        }
    }
}

fn lookup<'a>(schema: &'a Map<String, Value>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = schema.get(first)?;
    match (rest.is_empty(), value) {
        (true, Value::Object(_)) => None,
        (true, leaf) => Some(leaf),
        (false, Value::Object(inner)) => lookup(inner, rest),
        (false, _) => None,
    }
}

fn insert(map: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => {}
        [leaf] => {
            map.insert(leaf.clone(), value);
        }
        [table, rest @ ..] => {
            if let Value::Object(inner) = map.entry(table.clone()).or_insert_with(|| Value::Object(Map::new())) {
                insert(inner, rest, value);
            }
        }
    }
}

/// Reads a text as the kind of value that the template has; what does not fit stays text, so that
/// the error names it.
fn parse_text(template: &Value, text: &str) -> Value {
    match template {
        Value::Number(_) => text.trim().parse::<u64>().map_or_else(|_| text.into(), Value::from),
        Value::Bool(_) => match text.trim().to_ascii_lowercase().as_str() {
            "1" | "true" | "on" | "yes" => true.into(),
            "0" | "false" | "off" | "no" | "" => false.into(),
            _ => text.into(),
        },
        Value::Array(_) => match serde_json::from_str::<Value>(text) {
            Ok(list @ Value::Array(_)) => list,
            _ => text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect(),
        },
        _ => text.into(),
    }
}

fn from_text(values: &mut Map<String, Value>, schema: &Map<String, Value>) {
    for (key, value) in values.iter_mut() {
        match (schema.get(key), &mut *value) {
            (Some(Value::Object(inner)), Value::Object(table)) => from_text(table, inner),
            (Some(template), Value::String(text)) => *value = parse_text(template, text),
            _ => {}
        }
    }
}

fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(existing)), Value::Object(table)) => merge(existing, table),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn record_origins(layer: &Map<String, Value>, prefix: &str, source: Source, origins: &mut BTreeMap<String, Source>) {
    for (key, value) in layer {
        let path = format!("{prefix}{key}");
        match value {
            Value::Object(table) => record_origins(table, &format!("{path}."), source, origins),
            _ => {
                origins.insert(path, source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn the_stronger_layer_wins_whatever_the_order_of_calls() {
        let effective = ConfigBuilder::new()
            .layer(Source::Code, json!({"shards": 4}))
            .and_then(|b| b.toml("shards = 1\nlisten = \"127.0.0.1:1\"\n[limits]\nmax_fragments = 3"))
            .map(|b| b.environment(env(&[("REALTIME_LISTEN", "127.0.0.1:2"), ("REALTIME_LIMITS__OUTBOX_BYTES", "2097152")])))
            .and_then(ConfigBuilder::build)
            .expect("valid");
        assert_eq!((effective.config.shards, effective.config.listen.as_str()), (4, "127.0.0.1:2"));
        assert_eq!(effective.config.limits.max_fragments, 3);
        assert_eq!(effective.config.limits.outbox_bytes, 2 << 20);
        assert_eq!(effective.origins["shards"], Source::Code);
        assert_eq!(effective.origins["limits.outbox_bytes"], Source::Environment);
        assert_eq!(effective.origins.get("socket"), None);
    }

    #[test]
    fn an_unknown_key_is_an_error_that_suggests_the_nearest() {
        let error = ConfigBuilder::new().toml("lissten = \"x\"").expect_err("unknown");
        assert_eq!(error.to_string(), "file: unknown setting `lissten`, did you mean `listen`?");
        let error = ConfigBuilder::new().layer(Source::Code, json!({"limits": {"outbox_byte": 1}})).expect_err("unknown");
        assert_eq!(error.to_string(), "code: unknown setting `limits.outbox_byte`, did you mean `limits.outbox_bytes`?");
        let error = ConfigBuilder::new()
            .toml("[[channels]]\nmatch = \"a\"\nclient_event = true")
            .and_then(ConfigBuilder::build)
            .expect_err("unknown");
        assert!(error.to_string().contains("client_event"), "{error}");
    }

    #[test]
    fn an_unknown_variable_is_a_warning() {
        let effective = ConfigBuilder::new().environment(env(&[("REALTIME_PORT", "tcp://1"), ("HOME", "/")])).build().expect("valid");
        assert_eq!(effective.warnings, ["ignored REALTIME_PORT: no such setting"]);
    }

    #[test]
    fn a_setting_can_be_given_by_its_dotted_name() {
        let set = |key: &str, value: &str| ConfigBuilder::new().text(Source::Code, key, value);
        let effective = set("limits.max_fragments", "3")
            .and_then(|b| b.text(Source::Code, "auth.mode", "none"))
            .and_then(|b| b.text(Source::Code, "log_level", "debug"))
            .and_then(ConfigBuilder::build)
            .expect("valid");
        assert_eq!((effective.config.limits.max_fragments, effective.config.log_level), (3, LogLevel::Debug));
        assert_eq!(effective.config.auth.mode, Some(AuthModes::One(AuthMode::None)));
        assert_eq!(effective.origins["limits.max_fragments"], Source::Code);
        let error = set("limits.max_fragment", "3").expect_err("unknown");
        assert_eq!(error.to_string(), "code: unknown setting `limits.max_fragment`, did you mean `limits.max_fragments`?");
        assert!(set("limits", "3").is_err(), "a table is not a setting");
    }

    #[test]
    fn a_wrong_type_names_its_setting() {
        let error = ConfigBuilder::new().toml("[limits]\nmax_fragments = \"many\"").and_then(ConfigBuilder::build).expect_err("wrong type");
        assert!(error.to_string().starts_with("setting `limits.max_fragments`:"), "{error}");
        assert!(matches!(ConfigBuilder::new().toml("listen ="), Err(ConfigError::Syntax { .. })));
    }

    #[test]
    fn an_open_address_needs_its_auth_mode_written_out() {
        let build = |text: &str| ConfigBuilder::new().toml(text).and_then(ConfigBuilder::build);
        assert!(matches!(build("listen = \"0.0.0.0:0\""), Err(ConfigError::UnsafeListen { .. })));
        assert!(build("listen = \"0.0.0.0:0\"\n[auth]\nmode = \"none\"").is_ok());
        assert!(build("listen = \"0.0.0.0:0\"\n[auth]\nmode = [\"none\"]").is_ok());
        assert!(build("listen = \"0.0.0.0:0\"\n[auth]\nmode = []").is_err());
        assert!(build("listen = \"[::1]:0\"").is_ok());
        assert!(build("listen = \"nonsense\"").is_err());
    }

    #[test]
    fn sizes_that_contradict_each_other_are_refused_at_their_border() {
        let build = |publication: usize| {
            ConfigBuilder::new()
                .layer(Source::Code, json!({"limits": {"publication_bytes": publication, "outbox_bytes": 4000}}))
                .and_then(ConfigBuilder::build)
        };
        assert!(build(999).is_ok() && build(1000).is_ok() && build(1001).is_err() && build(0).is_err());
    }

    #[test]
    fn apps_must_be_told_apart_and_their_secrets_are_not_shown() {
        let build = |text: &str| ConfigBuilder::new().toml(text).and_then(ConfigBuilder::build);
        let effective = build("[[apps]]\nid = \"1\"\nkey = \"k\"\nsecret = \"geheim\"\n[[apps]]\nname = \"shop\"").expect("valid");
        let shown = format!("{:?} {}", effective.config, serde_json::to_string(&effective.config).expect("JSON"));
        assert!(!shown.contains("geheim") && shown.contains("***"), "{shown}");
        assert_eq!(effective.config.apps[0].secret.expose(), "geheim");
        for (text, fault) in [
            ("[[apps]]\nkey = \"k\"\nsecret = \"s\"", "neither a name nor an id"),
            ("[[apps]]\nid = \"1\"\nkey = \"k\"", "one is missing"),
            ("[[apps]]\nid = \"1\"\n[[apps]]\nname = \"1\"", "same name, `1`"),
            ("[[apps]]\nid = \"1\"\n[[apps]]\nname = \"x\"\nid = \"1\"", "same id, `1`"),
            ("[[apps]]\nid = \"1\"\nkey = \"k\"\nsecret = \"s\"\n[[apps]]\nid = \"2\"\nkey = \"k\"\nsecret = \"t\"", "same key, `k`"),
        ] {
            let error = build(text).expect_err(text).to_string();
            assert!(error.contains(fault), "{error}");
        }
        for (length, ok) in [(63, true), (64, true), (65, false)] {
            assert_eq!(build(&format!("[[apps]]\nname = \"{}\"", "n".repeat(length))).is_ok(), ok, "{length}");
        }
        for (count, ok) in [(999, true), (1_000, true), (1_001, false)] {
            let apps: Vec<_> = (0..count).map(|n| json!({"name": format!("a{n}")})).collect();
            assert_eq!(
                ConfigBuilder::new().layer(Source::Code, json!({"apps": apps})).and_then(ConfigBuilder::build).is_ok(),
                ok,
                "{count}"
            );
        }
    }

    #[test]
    fn access_is_signed_by_name_and_else_as_the_first_policy_says() {
        let text = "[[channels]]\nmatch = \"room-*\"\naccess = \"authenticated\"\n[[channels]]\nmatch = \"*\"\naccess = \"public\"";
        let config = ConfigBuilder::new().toml(text).and_then(ConfigBuilder::build).expect("valid").config;
        assert_eq!((config.access("room-1"), config.access("news")), (Access::Authenticated, Access::Public));
        assert_eq!((config.access("private-a"), config.access("presence-a")), (Access::Signed, Access::Signed));
        assert_eq!(Config::default().access("room-1"), Access::Public);
    }

    #[test]
    fn authentication_is_written_out_and_complete_or_refused() {
        let build = |text: &str| ConfigBuilder::new().toml(text).and_then(ConfigBuilder::build);
        let fastcgi = |rest: &str| format!("[auth]\nmode = \"callback\"\n[auth.callback]\nfastcgi = {{ {rest} }}");
        for text in [
            "[auth]\nmode = \"jwt\"\n[auth.jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"".to_owned(),
            "[auth]\nmode = [\"callback\"]\n[auth.callback]\nurl = \"https://app.test/auth\"".into(),
            fastcgi("socket = \"/run/php.sock\", script = \"/srv/auth.php\""),
            fastcgi("socket = \"php:9000\", script = \"/srv/auth.php\", uri = \"/realtime/auth\""),
            "allowed_origins = [\"https://xn--bcher-kva.test\"]\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]".into(),
        ] {
            assert!(build(&text).is_ok(), "{text}: {:?}", build(&text).err());
        }
        for (text, fault) in [
            ("[auth]\nmode = \"jwt\"".to_owned(), "needs `secret` or `keys`"),
            ("[auth]\nmode = \"callback\"".into(), "needs `url` or `fastcgi`"),
            ("[auth]\nmode = [\"jwt\", \"none\"]".into(), "stands alone"),
            ("[auth]\nmode = [\"jwt\", \"jwt\"]".into(), "named twice"),
            ("[auth]\nmode = \"jwt\"\n[auth.jwt]\nsecret = \"short\"".into(), "HS256 needs 32"),
            ("[auth.jwt]\nleeway_ms = 30001".into(), "more than 30000"),
            ("[auth.callback]\nurl = \"ftp://a.test/\"".into(), "does not begin with http"),
            ("[auth.callback]\nurl = \"http://a/\"\nheaders = [\"Proxy\"]".into(), "`Proxy` is not passed on"),
            (fastcgi("script = \"/srv/auth.php\""), "`socket` is missing"),
            (fastcgi("socket = \"/run/php.sock\", script = \"auth.php\""), "absolute path"),
            ("[[channels]]\nmatch = \"*\"\naccess = \"callback\"".into(), "needs `auth.callback`"),
            ("allowed_origins = [\"https://bücher.test\"]".into(), "xn--"),
            ("trusted_proxies = [\"the proxy\"]".into(), "neither an address nor a network"),
        ] {
            // What only the hub reads when it starts is an error of the start.
            let error =
                build(&text).and_then(|built| crate::auth::Authenticator::new(&built.config).map(drop)).expect_err(&text).to_string();
            assert!(error.contains(fault), "{text}: {error}");
        }
        let shown = serde_json::to_string(&build("[auth.jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"").expect("valid").config)
            .expect("JSON");
        assert!(!shown.contains("0123456789abcdef"), "{shown}");
    }

    #[test]
    fn ini_strings_become_numbers() {
        let effective = ConfigBuilder::new()
            .layer(Source::Ini, json!({"shards": "3", "allowed_origins": "https://a.test, https://b.test"}))
            .and_then(ConfigBuilder::build)
            .expect("valid");
        assert_eq!(effective.config.shards, 3);
        assert_eq!(effective.config.allowed_origins, ["https://a.test", "https://b.test"]);
    }

    #[test]
    fn a_path_has_one_way_to_be_written() {
        let build = |path: &str| ConfigBuilder::new().text(Source::Code, "path", path).and_then(ConfigBuilder::build);
        for path in ["", "/realtime", "/a/b-c_d.e~f", "/1"] {
            assert!(build(path).is_ok(), "{path}");
        }
        for path in ["/", "realtime", "/a/", "//a", "/a//b", "/a b", "/a?b", "/a%20b", "/../a", "/é", "/a#b", "/a\n"] {
            let error = build(path).expect_err(path).to_string();
            assert!(error.starts_with("setting `path`: "), "{error}");
        }
        for (length, ok) in [(199, true), (200, true), (201, false)] {
            assert_eq!(build(&format!("/{}", "x".repeat(length - 1))).is_ok(), ok, "{length}");
        }
        for (length, ok) in [(0, true), (1, false), (15, false), (16, true), (17, true)] {
            let token = ConfigBuilder::new().text(Source::Code, "monitoring.token", &"x".repeat(length)).and_then(ConfigBuilder::build);
            assert_eq!(token.is_ok(), ok, "{length}");
        }
        for token in [" 0123456789abcdef", "0123456789abcdef\t", "0123456789 abcdef", "0123456789abcdé"] {
            let built = ConfigBuilder::new().text(Source::Code, "monitoring.token", token).and_then(ConfigBuilder::build);
            assert!(built.is_err_and(|error| error.to_string().starts_with("setting `monitoring.token`: ")), "{token}");
        }
        let monitor = |listen: &str| ConfigBuilder::new().text(Source::Code, "monitoring.listen", listen).and_then(ConfigBuilder::build);
        assert!(monitor("").is_ok() && monitor("127.0.0.1:0").is_ok() && monitor("0.0.0.0:9100").is_ok() && monitor("nonsense").is_err());
    }

    #[test]
    fn patterns_match_as_written() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*", "", true),
            ("*b", "ab", true),
            ("*b", "ba", false),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "abcd", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "acb", false),
            ("*a*", "xay", true),
            ("a*a", "a", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(wildcard_matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
