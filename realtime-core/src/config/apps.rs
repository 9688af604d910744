//! Apps: what each may do, and who is told what happens on its channels.

use serde::{Deserialize, Serialize};

use super::error::invalid;
use super::{Config, ConfigError, Secret};
use crate::apps::DEFAULT_APP;
use crate::protocol::pusher::names;

/// Apps in one hub.
const MAX_APPS: usize = 1_000;
/// Longest name of an app, in bytes.
const MAX_APP_NAME_BYTES: usize = 64;

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

impl Config {
    pub(super) fn validate_apps(&self) -> Result<(), ConfigError> {
        let invalid = |at: usize, reason: String| invalid(format!("apps[{at}]"), reason);
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

    /// Whether a channel's subscribers are told how many they are. `app` is empty for the default one.
    pub(crate) fn tells_count(&self, app: &str, channel: &str) -> bool {
        let app = if app.is_empty() { DEFAULT_APP } else { app };
        self.apps.iter().any(|configured| configured.subscription_count && configured.name() == app) && !names::is_presence(channel)
    }

    /// Whether clients of the Pusher protocol can connect at all.
    pub(crate) fn speaks_pusher(&self) -> bool {
        self.apps.iter().any(|app| !app.key.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{ConfigBuilder, Source};

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
}
