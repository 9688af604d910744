//! One configuration for every way of running the hub: defaults < file < env file < INI < environment < code.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

// A section is a file: its settings with unit and default, their checks, and what others ask of them. A setting's name and kind
// are read from the defaults (`schema`): a new one is a field, its default and its check.
mod apps;
mod auth;
mod broker;
mod channels;
mod error;
mod heartbeat;
mod hooks;
mod layers;
mod limits;
mod listen;
mod logging;
mod monitoring;
mod schema;
mod secret;

pub use apps::{AppConfig, WebhookConfig, WebhookEvent};
pub use auth::{AuthConfig, AuthMode, AuthModes, CallbackConfig, FastCgiConfig, JwtAlgorithm, JwtConfig, JwtKeyConfig};
pub use broker::BrokerConfig;
#[cfg(feature = "redis")]
pub(crate) use channels::retention_where;
pub use channels::{Access, ChannelPolicy, HistoryPolicy};
pub(crate) use channels::{RoomRules, wildcard_matches};
pub use error::ConfigError;
use error::invalid;
pub use heartbeat::HeartbeatConfig;
pub use hooks::{HooksConfig, HooksWebhookConfig};
pub use layers::{ConfigBuilder, EffectiveConfig, LARAVEL_VARIABLES, Source};
pub use limits::Limits;
pub use logging::{LogFormat, LogLevel};
pub use monitoring::MonitoringConfig;
pub use schema::nearest;
pub use secret::{Secret, check_secret};

/// Threads that own connections, at most.
const MAX_SHARDS: usize = 64;
/// A publication waits at least so long for its broker, so that one that is accepted is not called late.
const SHORTEST_RECEIPT: Duration = Duration::from_secs(1);

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
    /// `*`. Default empty: the host that the request names, whatever its port (`localhost`,
    /// `127.0.0.1` and `[::1]` are one host); any for protocols whose clients send nothing by which
    /// a browser could speak for its user (Pusher's). The entry `default` keeps that beside others.
    /// A request without an `Origin` header does not come from a browser and is always allowed.
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

impl Config {
    /// Checks what the types cannot: ranges, and that nobody is let in by omission.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let address = self.listen_address()?;
        self.validate_path()?;
        self.monitoring.validate()?;
        if self.auth.mode.is_none() && !address.ip().is_loopback() {
            return Err(ConfigError::UnsafeListen { address });
        }
        self.auth.validate()?;
        self.validate_origins()?;
        self.trusted_networks()?;
        self.socket_mode()?;
        self.bus_addresses()?;
        self.validate_apps()?;
        self.broker.validate()?;
        self.validate_channels()?;
        if self.shards > MAX_SHARDS {
            return invalid("shards", format!("{} is more than {MAX_SHARDS}", self.shards));
        }
        self.limits.validate()?;
        self.hooks.validate()?;
        self.heartbeat.validate()
    }

    pub(crate) fn publish_timeout(&self) -> Duration {
        Duration::from_millis(self.publish_timeout_ms)
    }

    /// How long a publication waits for its broker, and that for replicas.
    pub(crate) fn receipt_timeout(&self) -> Duration {
        self.publish_timeout().max(SHORTEST_RECEIPT) + self.broker.replicas_timeout()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
