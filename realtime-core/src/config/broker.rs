//! Where publications get their order.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::invalid;
use super::{ConfigError, Secret};

/// Replicas that a publication may wait for, and how long.
const MAX_REPLICAS: usize = 64;
const MAX_REPLICAS_WAIT_MS: u64 = 10_000;

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
    /// How long a publication waits for replicas.
    pub(super) fn replicas_timeout(&self) -> Duration {
        Duration::from_millis(if self.wait_replicas > 0 { self.wait_timeout_ms } else { 0 })
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: String| invalid(format!("broker.{key}"), reason);
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
