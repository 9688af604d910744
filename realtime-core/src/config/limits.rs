//! What a peer may make the hub hold or do.

use serde::{Deserialize, Serialize};

use super::error::invalid;
use super::{Config, ConfigError};

/// What a peer may make the hub hold or do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections on this hub. Default 100,000; past it new ones get 503.
    pub max_connections: usize,
    /// Processes on the bus. Default 4,096; past it new ones wait until one of them ends: what they publish is carried out
    /// then, and calls that wait for an answer run into their deadline.
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
    /// Time to send a complete request head, again a complete body, and to take the answer. A connection on which nobody has
    /// shown a credential for so long gets one more answer and is closed. Default 5,000.
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

impl Limits {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.publication_bytes > self.outbox_bytes / 4 {
            return invalid(
                "limits.publication_bytes",
                format!("{} is more than a quarter of limits.outbox_bytes ({})", self.publication_bytes, self.outbox_bytes),
            );
        }
        if self.ingress_bytes / 4 < self.publication_bytes {
            return invalid(
                "limits.ingress_bytes",
                format!("{} is less than four times limits.publication_bytes ({})", self.ingress_bytes, self.publication_bytes),
            );
        }
        if self.max_header_bytes < 8 << 10 {
            return invalid("limits.max_header_bytes", format!("{} is less than 8192", self.max_header_bytes));
        }
        for (key, value) in [
            ("limits.max_connections", self.max_connections),
            ("limits.max_bus_connections", self.max_bus_connections),
            ("limits.max_message_bytes", self.max_message_bytes),
            ("limits.max_fragments", self.max_fragments),
            ("limits.max_headers", self.max_headers),
            ("limits.max_request_bytes", self.max_request_bytes),
            ("limits.max_handshakes", self.max_handshakes),
            ("limits.max_subscriptions", self.max_subscriptions),
            ("limits.max_protocol_errors", usize::from(self.max_protocol_errors)),
            ("limits.handshake_timeout_ms", usize::try_from(self.handshake_timeout_ms).unwrap_or(usize::MAX)),
            ("limits.outbox_age_ms", usize::try_from(self.outbox_age_ms).unwrap_or(usize::MAX)),
            ("limits.publication_bytes", self.publication_bytes),
        ] {
            if value == 0 {
                return invalid(key, "must be at least 1");
            }
        }
        Ok(())
    }
}

impl Config {
    /// Bytes that the users of one channel may have together.
    pub(crate) fn presence_bytes(&self) -> usize {
        self.limits.presence_bytes.min(self.limits.outbox_bytes / 4)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{ConfigBuilder, Source};

    #[test]
    fn sizes_that_contradict_each_other_are_refused_at_their_border() {
        let build = |publication: usize| {
            ConfigBuilder::new()
                .layer(Source::Code, json!({"limits": {"publication_bytes": publication, "outbox_bytes": 4000}}))
                .and_then(ConfigBuilder::build)
        };
        assert!(build(999).is_ok() && build(1000).is_ok() && build(1001).is_err() && build(0).is_err());
    }
}
