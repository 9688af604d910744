//! What holds for which channels: who may subscribe, what is kept, who is counted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::invalid;
use super::{Config, ConfigError};
use crate::history::Retention;
use crate::message::INTERNAL_PREFIX;
use crate::protocol::pusher::names;

/// What is kept of a cache channel, as long as Pusher keeps it.
const CACHE_CHANNEL: Retention = Retention { size: 1, ttl_ms: 30 * 60_000, bytes: usize::MAX };
/// Longest window of a channel that floods: a minute.
const MAX_CONFLATE_MS: u64 = 60_000;
/// Longest time for which a page may be away: a day.
const MAX_RESUME_MS: u64 = 86_400_000;
/// Longest age of a kept publication: 30 days.
const MAX_HISTORY_TTL_MS: u64 = 30 * 86_400_000;
/// An hour.
const MAX_PRESENCE_GRACE_MS: u64 = 3_600_000;

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

impl Config {
    pub(super) fn validate_channels(&self) -> Result<(), ConfigError> {
        if let Some(at) = self.channels.iter().position(|policy| policy.access == Some(Access::Callback))
            && !self.auth.callback.is_set()
        {
            return invalid(format!("channels[{at}].access"), "`callback` needs `auth.callback`");
        }
        for (at, policy) in self.channels.iter().enumerate() {
            policy
                .check_history()
                .and_then(|()| policy.check_conflation())
                .and_then(|()| policy.check_resumption())
                .or_else(|reason| invalid(format!("channels[{at}]"), reason))?;
        }
        for (key, value) in [("presence_grace_ms".to_owned(), Some(self.presence_grace_ms))].into_iter().chain(
            self.channels.iter().enumerate().map(|(at, policy)| (format!("channels[{at}].presence_grace_ms"), policy.presence_grace_ms)),
        ) {
            if let Some(value) = value.filter(|value| *value > MAX_PRESENCE_GRACE_MS) {
                return invalid(key, format!("{value} is more than {MAX_PRESENCE_GRACE_MS}"));
            }
        }
        Ok(())
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

    /// Whether it is a cache channel of the Pusher protocol, and an app speaks that.
    fn is_cache(&self, channel: &str) -> bool {
        names::is_cache(channel) && self.speaks_pusher()
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

#[cfg(test)]
mod tests {
    use super::super::ConfigBuilder;
    use super::*;

    #[test]
    fn access_is_signed_by_name_and_else_as_the_first_policy_says() {
        let text = "[[channels]]\nmatch = \"room-*\"\naccess = \"authenticated\"\n[[channels]]\nmatch = \"*\"\naccess = \"public\"";
        let config = ConfigBuilder::new().toml(text).and_then(ConfigBuilder::build).expect("valid").config;
        assert_eq!((config.access("room-1"), config.access("news")), (Access::Authenticated, Access::Public));
        assert_eq!((config.access("private-a"), config.access("presence-a")), (Access::Signed, Access::Signed));
        assert_eq!(Config::default().access("room-1"), Access::Public);
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
