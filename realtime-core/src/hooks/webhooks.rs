//! Events posted to the application, signed as [Standard Webhooks](https://www.standardwebhooks.com) are.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use sha2::Sha256;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::delivery::{Delivery, Format, MAX_BATCH, Outgoing};
use super::{Event, Kinds};
use crate::config::{ConfigError, HooksConfig};
use crate::outbound::{Tls, header_value};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// A hub's own webhooks.
pub(crate) struct Webhooks {
    targets: Vec<Target>,
    /// Begins the ids of this hub's events: no other hub has it, nor this one when it is started anew.
    run: u64,
    next: AtomicU64,
}

struct Target {
    kinds: Kinds,
    outgoing: Arc<Outgoing>,
    /// Taken by the thread that posts.
    waiting: Mutex<Option<(Delivery<Signed>, mpsc::Receiver<String>)>>,
}

impl Webhooks {
    pub(crate) fn new(config: &HooksConfig) -> Result<Self, ConfigError> {
        let mut targets = Vec::new();
        for (at, webhook) in config.webhooks.iter().enumerate() {
            let invalid = |reason| ConfigError::InvalidValue { key: format!("hooks.webhooks[{at}]"), reason };
            let address = webhook.address().map_err(invalid)?;
            let tls = if address.is_secure() { Tls::new(&webhook.ca_file).map_err(invalid)? } else { Tls::none() };
            let (outgoing, events) = Outgoing::new(config.queue);
            let format = Signed { key: webhook.signing_key().map_err(invalid)?, id: String::new() };
            let name = if webhook.url.is_empty() { &webhook.fastcgi.script } else { &webhook.url }.clone();
            let delivery = Delivery { address, tls, name, collect: Duration::from_millis(webhook.batch_ms), batch: MAX_BATCH, format };
            let kinds = webhook.events.iter().copied().collect();
            targets.push(Target { kinds, outgoing, waiting: Mutex::new(Some((delivery, events))) });
        }
        let run = if targets.is_empty() {
            0
        } else {
            getrandom::u64().map_err(|error| ConfigError::InvalidValue { key: "hooks.webhooks".into(), reason: error.to_string() })?
        };
        Ok(Webhooks { targets, run, next: AtomicU64::new(1) })
    }

    /// What some address wants to hear of.
    pub(crate) fn kinds(&self) -> Kinds {
        self.targets.iter().fold(Kinds::default(), |all, target| all.and(target.kinds))
    }

    /// Something has happened. Never waits.
    pub(crate) fn push(&self, event: &Event<'_>, json: &str) {
        let mut wanting = self.targets.iter().filter(|target| target.kinds.has(event.kind)).peekable();
        if wanting.peek().is_none() {
            return;
        }
        // An id for whoever has to tell a repeat.
        let number = self.next.fetch_add(1, Relaxed);
        let identified = format!("{{\"id\":\"{:016x}-{number}\",{}", self.run, &json[1..]);
        for target in wanting {
            target.outgoing.push(identified.clone());
        }
    }

    /// Events that found no room, or were accepted by nobody.
    pub(crate) fn dropped(&self) -> u64 {
        self.targets.iter().map(|target| target.outgoing.dropped()).sum()
    }

    /// Posts, until it is dropped. On the control thread.
    pub(crate) async fn run(&self) {
        let mut deliveries = JoinSet::new();
        for target in &self.targets {
            if let Some((delivery, events)) = target.waiting.lock().take() {
                deliveries.spawn(delivery.run(target.outgoing.clone(), events));
            }
        }
        // They end when this future is dropped.
        pending().await
    }
}

/// A body of events, and its signature.
struct Signed {
    key: Vec<u8>,
    /// Of the body that is being posted.
    id: String,
}

impl Format for Signed {
    fn body(&mut self, events: &[String], lost: u64) -> String {
        let first = events.first().map_or("", String::as_str);
        // Events begin with their id; a request that is sent again has the same first event.
        self.id = first.split('"').nth(3).unwrap_or_default().to_owned();
        format!("{{\"events\":[{}],\"dropped\":{lost}}}", events.join(","))
    }

    fn headers(&self, body: &str) -> HeaderMap {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (ID, header_value(&self.id)),
            (TIMESTAMP, HeaderValue::from(now)),
            (SIGNATURE, header_value(&sign(&self.key, &self.id, now, body))),
        ])
    }
}

/// `v1,` and the HMAC-SHA256 over id, time and body (Standard Webhooks, "Signature scheme").
fn sign(key: &[u8], id: &str, time: u64, body: &str) -> String {
    // HMAC takes a key of any length.
    let Ok(mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    let mac = mac.chain_update(format!("{id}.{time}.")).chain_update(body);
    format!("v1,{}", BASE64.encode(&mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_of_the_specification() {
        let key = BASE64.decode(b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("base64");
        let signature = sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
