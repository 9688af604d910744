//! What hubs tell publishers that are no hubs: what is kept of which channels, which apps there are, how large a message may be.
//!
//! A publisher's own settings could say something else than the hubs' do, and nobody would notice. So hubs write what they go by
//! into Redis, the one that started last wins, and a publisher that finds nothing there does not publish.

use parking_lot::Mutex;
use redis::Value;
use serde::{Deserialize, Serialize};

use super::address::Address;
use super::calls::Replicas;
use super::keys::Keys;
use super::scripts::{Call, Script, nonsense};
use crate::apps::{DEFAULT_APP, UnknownApp};
use crate::config::{Config, retention_where, wildcard_matches};
use crate::error::BrokerError;
use crate::history::Retention;
use crate::message::{APP_SEPARATOR, INTERNAL_PREFIX};
use crate::protocol::pusher::names;

/// Raised when a publisher that knows only what is here would do something wrong.
const VERSION: u32 = 1;

/// See the module's documentation. As JSON it is what stands in Redis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rules {
    version: u32,
    /// See `broker.fence`: two who disagree would begin an epoch with every publication.
    pub(super) fence: bool,
    /// Whether publications are announced to the subscribers of their slot, as in a cluster. Who differs would not be heard.
    #[serde(default)]
    pub(super) sharded: bool,
    /// See `broker.wait_replicas`.
    #[serde(default)]
    pub(super) replicas: Option<Replicas>,
    /// See `limits.publication_bytes`.
    pub(super) publication_bytes: usize,
    /// Their names.
    apps: Vec<String>,
    /// Whether Pusher's cache channels are kept.
    caches: bool,
    channels: Vec<ChannelRule>,
}

/// Of the channels whose names match, unless a rule before it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ChannelRule {
    #[serde(rename = "match")]
    pattern: String,
    keeps: Option<Retention>,
    conflates: bool,
    /// See `presence`.
    #[serde(default)]
    shows: bool,
}

impl Rules {
    /// What a hub goes by.
    pub(crate) fn of(config: &Config) -> Self {
        let rule = |policy: &crate::config::ChannelPolicy| ChannelRule {
            pattern: policy.pattern.clone(),
            keeps: policy.retention(),
            conflates: policy.conflate_ms > 0,
            shows: policy.presence,
        };
        Rules {
            version: VERSION,
            fence: config.broker.fence,
            sharded: matches!(Address::parse(config.broker.url.expose()), Ok(Address::Cluster(_))),
            replicas: Replicas::of(&config.broker),
            publication_bytes: config.limits.publication_bytes,
            apps: std::iter::once(DEFAULT_APP).chain(config.apps.iter().map(|app| app.name())).map(str::to_owned).collect(),
            caches: config.speaks_pusher(),
            channels: config.channels.iter().map(rule).collect(),
        }
    }

    /// Of the text in Redis; an error is what is wrong with it.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if version != VERSION {
            return Err(format!("the hubs' rules have version {version}, and this process knows version {VERSION}"));
        }
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    /// What is kept of a publication.
    pub(super) fn retention_of(&self, channel: &str, event: &str) -> Option<Retention> {
        retention_where(channel, Some(event), self.caches, || self.rule(channel).and_then(|rule| rule.keeps))
    }

    /// What is kept of a channel.
    pub(super) fn retention(&self, channel: &str) -> Option<Retention> {
        retention_where(channel, None, self.caches, || self.rule(channel).and_then(|rule| rule.keeps))
    }

    /// Whether the channel has windows, which are a hub's.
    pub(super) fn conflates(&self, channel: &str) -> bool {
        !channel.starts_with(INTERNAL_PREFIX) && self.rule(channel).is_some_and(|rule| rule.conflates)
    }

    /// Whether the channel shows its users, who are in Redis then.
    pub(super) fn shows(&self, channel: &str) -> bool {
        names::is_presence(channel) || self.rule(channel).is_some_and(|rule| rule.shows)
    }

    fn rule(&self, channel: &str) -> Option<&ChannelRule> {
        self.channels.iter().find(|rule| wildcard_matches(&rule.pattern, channel))
    }

    /// An app's name, empty for the default one, if the hubs have it.
    pub(super) fn app<'a>(&self, app: &'a str) -> Result<&'a str, UnknownApp> {
        match app {
            "" | DEFAULT_APP => Ok(DEFAULT_APP),
            app if self.apps.iter().any(|known| known == app) => Ok(app),
            app => Err(UnknownApp::among(app, self.apps.iter().map(String::as_str))),
        }
    }

    /// A channel of an app, as hubs and broker know it.
    pub(super) fn scope(&self, app: &str, channel: &str) -> Result<String, UnknownApp> {
        Ok(match self.app(app)? {
            DEFAULT_APP => channel.to_owned(),
            app => format!("{app}{APP_SEPARATOR}{channel}"),
        })
    }
}

/// What a hub says of itself, again and again: a server may forget it.
pub(super) struct Announcement {
    text: Vec<u8>,
    state: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    /// An answer is to come.
    is_under_way: bool,
    /// When the server first heard it, by its clock; empty until then.
    since: String,
    /// What another hub goes by, as far as the log has been told.
    other: Vec<u8>,
}

impl Announcement {
    pub(super) fn new(rules: &Rules) -> Self {
        Announcement { text: serde_json::to_vec(rules).unwrap_or_default(), state: Mutex::default() }
    }

    /// What to run now; [`announced`] reads the answer, which goes to [`Announcement::settle`].
    pub(super) fn call(&self, keys: &Keys) -> Option<Call> {
        let mut said = self.state.lock();
        if std::mem::replace(&mut said.is_under_way, true) {
            return None;
        }
        let arguments = vec![self.text.clone(), said.since.clone().into_bytes()];
        Some(Call { script: Script::Rules, keys: vec![keys.rules()], arguments })
    }

    /// Takes the answer. A failure is no news: the links tell the log of it.
    pub(super) fn settle(&self, answer: Result<(String, Vec<u8>), BrokerError>) {
        let mut said = self.state.lock();
        said.is_under_way = false;
        let Ok((since, standing)) = answer else { return };
        said.since = since;
        if standing != self.text && standing != said.other {
            tracing::warn!(
                standing = %String::from_utf8_lossy(&standing),
                "a hub that started later has other channels, apps, limits or another kind of address; processes without a hub publish by its rules"
            );
            said.other = standing;
        }
    }
}

/// When a hub's rules were first said, and which stand there now: its own, or those of a hub that started later.
pub(super) fn announced(answer: Value) -> Result<(String, Vec<u8>), BrokerError> {
    redis::from_redis_value(answer).map_err(|_| nonsense())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::Apps;
    use crate::config::{AppConfig, ChannelPolicy, HistoryPolicy};

    fn config() -> Config {
        let policy = |pattern: &str| ChannelPolicy { pattern: pattern.into(), ..ChannelPolicy::default() };
        let app = |name: &str, key: &str| AppConfig { name: name.into(), key: key.into(), ..AppConfig::default() };
        Config {
            channels: vec![
                ChannelPolicy { conflate_ms: 100, ..policy("flood-*") },
                ChannelPolicy { history: Some(HistoryPolicy { size: 3, ttl_ms: 4, bytes: 5 }), presence: true, ..policy("h*") },
                ChannelPolicy { last_value: true, conflate_ms: 1, ..policy("*") },
            ],
            apps: vec![app("shop", "k")],
            ..Config::default()
        }
    }

    #[test]
    fn a_publisher_keeps_what_a_hub_keeps() {
        let mut config = config();
        for remove in 0..4 {
            let rules = Rules::parse(&serde_json::to_vec(&Rules::of(&config)).expect("JSON")).expect("as written");
            assert_eq!(rules, Rules::of(&config));
            for channel in ["h1", "flood-1", "cache-a", "private-cache-a", "presence-cache-hh", "other", "#user:1", ""] {
                for event in ["e", "client-e"] {
                    assert_eq!(rules.retention_of(channel, event), config.retention_of(channel, event), "{channel} {event} {remove}");
                }
                assert_eq!(rules.retention(channel), config.retention(channel), "{channel} {remove}");
                assert_eq!(rules.conflates(channel), config.conflation(channel).is_some(), "{channel} {remove}");
                assert_eq!(rules.shows(channel), config.room(channel).is_some_and(|room| room.shows), "{channel} {remove}");
            }
            match remove {
                0 => drop(config.channels.pop()),
                1 => config.channels.clear(),
                _ => config.apps.clear(),
            }
        }
    }

    #[test]
    fn apps_are_the_hubs_apps() {
        let (config, rules) = (config(), Rules::of(&config()));
        let apps = Apps::new(&config.apps);
        for name in ["", "default", "shop", "shp"] {
            let hubs = apps.scope_named(Some(name), "c").map(|scoped| scoped.into_owned());
            assert_eq!(rules.scope(name, "c").map_err(|error| error.to_string()), hubs.map_err(|error| error.to_string()));
        }
    }

    #[test]
    fn rules_of_another_version_are_refused_and_further_fields_are_not() {
        let text = String::from_utf8(serde_json::to_vec(&Rules::of(&config())).expect("JSON")).expect("text");
        let more = text.replacen('{', "{\"further\":[1],", 1);
        assert_eq!(Rules::parse(more.as_bytes()), Ok(Rules::of(&config())));
        let newer = text.replacen("\"version\":1", "\"version\":2,\"channels\":7", 1);
        assert_eq!(Rules::parse(newer.as_bytes()), Err("the hubs' rules have version 2, and this process knows version 1".into()));
        assert!(Rules::parse(b"nonsense").is_err() && Rules::parse(b"{}").is_err() && Rules::parse(b"").is_err());
    }
}
