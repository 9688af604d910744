//! Liveness of connections.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::error::invalid;

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

impl Default for HeartbeatConfig {
    fn default() -> Self {
        HeartbeatConfig { ping_interval_ms: 25_000, pong_timeout_ms: 10_000, activity_timeout_ms: 30_000 }
    }
}

impl HeartbeatConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [("heartbeat.ping_interval_ms", self.ping_interval_ms), ("heartbeat.pong_timeout_ms", self.pong_timeout_ms)] {
            if !(50..=86_400_000).contains(&value) {
                return invalid(key, format!("{value} is not within 50–86400000"));
            }
        }
        Ok(())
    }
}
