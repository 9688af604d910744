//! What the application hears of connections and channels.

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::auth::FastCgiConfig;
use super::error::invalid;
use super::{ConfigError, Secret};
use crate::hooks::Kind;
use crate::outbound::Address;

/// What the application hears of connections and channels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HooksConfig {
    /// What is queued for workers, which read it with `Realtime\events()`. Default nothing.
    pub events: Vec<Kind>,
    /// Events that may wait for workers, and for each webhook. Default 10,000; past it new ones are dropped and counted.
    pub queue: usize,
    /// How long a worker has for an event before another one gets it. Default 30,000.
    pub lease_ms: u64,
    /// What is refused while no program is there to decide it: `connect`, `subscribe`. Default
    /// nothing; what a program has once decided stays so until the hub ends.
    pub required: Vec<Kind>,
    /// How long a program has to decide. Default 2,000; past it the answer is no.
    pub timeout_ms: u64,
    /// Where events are posted. Default nowhere; at most 16.
    pub webhooks: Vec<HooksWebhookConfig>,
}

impl Default for HooksConfig {
    fn default() -> Self {
        HooksConfig { events: Vec::new(), queue: 10_000, lease_ms: 30_000, required: Vec::new(), timeout_ms: 2_000, webhooks: Vec::new() }
    }
}

/// An address to which events are posted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HooksWebhookConfig {
    /// `http://…` or `https://…`.
    pub url: String,
    /// A script in a PHP-FPM pool, in place of `url`. One request at a time goes there.
    pub fastcgi: FastCgiConfig,
    /// What is posted there.
    pub events: Vec<Kind>,
    /// Signs each request: `whsec_` and 24–64 bytes in base64, or at least 32 bytes of any other text.
    pub secret: Secret,
    /// How long events are collected for one request, 100 of them or 1 MiB at most, beside those that wait already.
    /// Default 0, at most 60,000.
    pub batch_ms: u64,
    /// Certificates in PEM to trust in place of the system's.
    pub ca_file: String,
}

/// Addresses to which one hub posts.
const MAX_WEBHOOKS: usize = 16;
/// Longest time in which events are collected.
const MAX_BATCH_MS: u64 = 60_000;
/// What a secret begins with that is written as Standard Webhooks has it.
const PREFIX: &str = "whsec_";

impl HooksConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if let Some(kind) = self.required.iter().find(|kind| !matches!(kind, Kind::Connect | Kind::Subscribe)) {
            return invalid("hooks.required", format!("{kind:?} is not decided by anybody; only connect and subscribe are").to_lowercase());
        }
        for (key, value, highest) in [
            ("hooks.queue", self.queue as u64, 10_000_000),
            ("hooks.lease_ms", self.lease_ms, 86_400_000),
            ("hooks.timeout_ms", self.timeout_ms, 60_000),
        ] {
            if value == 0 || value > highest {
                return invalid(key, format!("{value} is not within 1–{highest}"));
            }
        }
        if self.webhooks.len() > MAX_WEBHOOKS {
            return invalid("hooks.webhooks", format!("there are {}, the limit is {MAX_WEBHOOKS}", self.webhooks.len()));
        }
        for (at, webhook) in self.webhooks.iter().enumerate() {
            webhook.check().or_else(|reason| invalid(format!("hooks.webhooks[{at}]"), reason))?;
        }
        Ok(())
    }
}

impl HooksWebhookConfig {
    fn check(&self) -> Result<(), String> {
        if self.events.is_empty() {
            return Err("`events` is empty: nothing would be posted".into());
        }
        if self.batch_ms > MAX_BATCH_MS {
            return Err(format!("`batch_ms` is {}, the limit is {MAX_BATCH_MS}", self.batch_ms));
        }
        self.signing_key()?;
        self.address().map(drop)
    }

    /// Where it is.
    pub(crate) fn address(&self) -> Result<Address, String> {
        match (self.url.is_empty(), self.fastcgi == FastCgiConfig::default()) {
            (false, true) => Address::http(&self.url),
            (true, false) if !self.fastcgi.subscribe_uri.is_empty() => Err("`subscribe_uri` is for callbacks; give `uri`".into()),
            (true, false) => self.fastcgi.address(&self.fastcgi.uri),
            _ => Err("give either `url` or `fastcgi`".into()),
        }
    }

    /// What requests are signed with (Standard Webhooks, "Signature scheme").
    pub(crate) fn signing_key(&self) -> Result<Vec<u8>, String> {
        let text = self.secret.expose();
        match text.strip_prefix(PREFIX) {
            Some(encoded) => {
                let key = BASE64.decode(encoded.as_bytes()).map_err(|_| format!("`secret` is not base64 behind {PREFIX}"))?;
                if (24..=64).contains(&key.len()) {
                    Ok(key)
                } else {
                    Err(format!("`secret` is {} bytes in base64, it must be 24–64", key.len()))
                }
            }
            None if text.len() < 32 => Err(format!("`secret` has {} bytes, it must be {PREFIX}… or at least 32", text.len())),
            None => Ok(text.as_bytes().to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(secret: &str) -> HooksWebhookConfig {
        let fastcgi = FastCgiConfig { socket: "/run/php.sock".into(), script: "/srv/hook.php".into(), ..FastCgiConfig::default() };
        HooksWebhookConfig { fastcgi, events: vec![Kind::Joined], secret: secret.into(), ..HooksWebhookConfig::default() }
    }

    #[test]
    fn a_webhook_is_complete_or_refused() {
        let good = webhook(&"s".repeat(32));
        assert_eq!(good.check(), Ok(()));
        type Spoil = fn(&mut HooksWebhookConfig);
        let wrong: [(&str, Spoil); 9] = [
            ("`events` is empty", |webhook| webhook.events.clear()),
            ("either `url` or `fastcgi`", |webhook| webhook.url = "http://a.test/".into()),
            ("either `url` or `fastcgi`", |webhook| webhook.fastcgi = FastCgiConfig::default()),
            ("absolute path", |webhook| webhook.fastcgi.script = "hook.php".into()),
            ("`socket` is missing", |webhook| webhook.fastcgi.socket.clear()),
            ("is for callbacks", |webhook| webhook.fastcgi.subscribe_uri = "/x".into()),
            ("does not begin with http", |webhook| (webhook.url, webhook.fastcgi) = ("ftp://a.test/".into(), FastCgiConfig::default())),
            ("has 31 bytes", |webhook| webhook.secret = "s".repeat(31).as_str().into()),
            ("`batch_ms` is 60001, the limit is 60000", |webhook| webhook.batch_ms = 60_001),
        ];
        for (reason, spoil) in wrong {
            let mut webhook = good.clone();
            spoil(&mut webhook);
            let said = webhook.check().expect_err(reason);
            assert!(said.contains(reason), "{said}");
        }
        let most = HooksConfig { webhooks: vec![good.clone(); 16], ..HooksConfig::default() };
        assert!(most.validate().is_ok());
        let more = HooksConfig { webhooks: vec![good; 17], ..HooksConfig::default() };
        assert!(more.validate().expect_err("17").to_string().contains("the limit is 16"));
    }

    #[test]
    fn a_secret_is_written_as_the_specification_has_it_or_long_enough() {
        for (bytes, good) in [(23, false), (24, true), (64, true), (65, false)] {
            let secret = format!("{PREFIX}{}", BASE64.encode(&vec![7; bytes]));
            assert_eq!(webhook(&secret).signing_key().ok(), good.then(|| vec![7; bytes]), "{bytes}");
        }
        assert!(webhook("whsec_!").signing_key().is_err());
    }
}
