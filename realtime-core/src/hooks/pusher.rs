//! Webhooks in Pusher's format: what happens on an app's channels, posted to the application.
//!
//! Channels and members that go are held back for a moment: who is back by then was never away. Bounded: past
//! the limits events are dropped and counted.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::delivery::{Delivery, Format, MAX_BATCH, Outgoing};
use crate::auth::signature::sign;
use crate::config::{Config, ConfigError, Secret, WebhookEvent};
use crate::outbound::{Address, Tls, header_value};

/// How long what has gone may come back without anybody hearing of it.
const GRACE: Duration = Duration::from_secs(3);
/// Events on their way to the dispatcher, and again to each address.
const QUEUE: usize = 10_000;
/// Channels and members that are held back at once.
const MAX_HELD: usize = 100_000;

/// Something that has happened on a channel.
#[derive(Debug)]
pub(crate) struct Happened {
    /// Name of the app; empty for the default one.
    pub(crate) app: String,
    pub(crate) channel: String,
    pub(crate) what: What,
}

/// What.
#[derive(Debug)]
pub(crate) enum What {
    Occupied,
    Vacated,
    Added { user: String },
    Removed { user: String },
    ClientEvent { event: String, data: String, socket: String, user: Option<String> },
    CacheMiss,
    Count(usize),
}

impl What {
    fn kind(&self) -> WebhookEvent {
        match self {
            What::Occupied => WebhookEvent::ChannelOccupied,
            What::Vacated => WebhookEvent::ChannelVacated,
            What::Added { .. } => WebhookEvent::MemberAdded,
            What::Removed { .. } => WebhookEvent::MemberRemoved,
            What::ClientEvent { .. } => WebhookEvent::ClientEvent,
            What::CacheMiss => WebhookEvent::CacheMiss,
            What::Count(_) => WebhookEvent::SubscriptionCount,
        }
    }
}

/// An app's address.
struct Target {
    app: String,
    kinds: Vec<WebhookEvent>,
    outgoing: Arc<Outgoing>,
    /// Taken by the thread that posts.
    waiting: Mutex<Option<(Delivery<Signed>, mpsc::Receiver<String>)>>,
}

/// A hub's webhooks in Pusher's format.
pub(crate) struct PusherWebhooks {
    /// By app, which events some address of it wants.
    wanted: HashMap<String, Vec<WebhookEvent>>,
    happened: mpsc::Sender<Happened>,
    /// Taken by the thread that posts.
    waiting: Mutex<Option<mpsc::Receiver<Happened>>>,
    targets: Vec<Target>,
    dropped: AtomicU64,
}

impl PusherWebhooks {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let mut targets = Vec::new();
        let mut wanted: HashMap<String, Vec<WebhookEvent>> = HashMap::new();
        for app in &config.apps {
            let name = if app.name() == crate::apps::DEFAULT_APP { "" } else { app.name() };
            for webhook in &app.webhooks {
                let address = Address::http(&webhook.url).map_err(|reason| invalid(&reason))?;
                let tls = if address.is_secure() { Tls::new("").map_err(|reason| invalid(&reason))? } else { Tls::none() };
                wanted.entry(name.to_owned()).or_default().extend(&webhook.events);
                let (outgoing, events) = Outgoing::new(QUEUE);
                let delivery = Delivery {
                    address,
                    tls,
                    name: webhook.url.clone(),
                    collect: Duration::from_millis(webhook.batch_ms),
                    batch: if webhook.batch_ms == 0 { 1 } else { MAX_BATCH },
                    format: Signed { key: app.key.clone(), secret: app.secret.clone() },
                };
                let waiting = Mutex::new(Some((delivery, events)));
                targets.push(Target { app: name.to_owned(), kinds: webhook.events.clone(), outgoing, waiting });
            }
        }
        let (happened, receiver) = mpsc::channel(if targets.is_empty() { 1 } else { QUEUE });
        let waiting = Mutex::new((!targets.is_empty()).then_some(receiver));
        Ok(PusherWebhooks { wanted, happened, waiting, targets, dropped: AtomicU64::new(0) })
    }

    /// Whether some address wants to hear of this.
    pub(crate) fn wants(&self, app: &str, kind: WebhookEvent) -> bool {
        !self.wanted.is_empty() && self.wanted.get(app).is_some_and(|kinds| kinds.contains(&kind))
    }

    /// Whether some address wants to hear of first and last subscribers.
    pub(crate) fn count_subscribers(&self) -> bool {
        self.wanted.values().flatten().any(|kind| matches!(kind, WebhookEvent::ChannelOccupied | WebhookEvent::ChannelVacated))
    }

    /// Something has happened. Never waits.
    pub(crate) fn tell(&self, happened: Happened) {
        if self.happened.try_send(happened).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Events that found no room, or were accepted by nobody.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed) + self.targets.iter().map(|target| target.outgoing.dropped()).sum::<u64>()
    }

    /// Posts, until it is dropped. On the control thread.
    pub(crate) async fn run(&self) {
        let Some(mut happened) = self.waiting.lock().take() else { return pending().await };
        let mut deliveries = JoinSet::new();
        for target in &self.targets {
            if let Some((delivery, events)) = target.waiting.lock().take() {
                deliveries.spawn(delivery.run(target.outgoing.clone(), events));
            }
        }
        let mut held = Held::default();
        loop {
            let due = held.next();
            let told = tokio::select! {
                told = happened.recv() => match told {
                    Some(told) => held.take(told, Instant::now()),
                    None => return,
                },
                () = until(due) => held.expired(Instant::now()),
            };
            for Happened { app, channel, what } in told {
                let kind = what.kind();
                for target in self.targets.iter().filter(|target| target.app == app && target.kinds.contains(&kind)) {
                    target.outgoing.push(event(&channel, &what).to_string());
                }
            }
        }
    }
}

fn invalid(reason: &str) -> ConfigError {
    ConfigError::InvalidValue { key: "apps.webhooks".into(), reason: reason.into() }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

fn event(channel: &str, what: &What) -> Value {
    match what {
        What::Occupied => json!({"name": "channel_occupied", "channel": channel}),
        What::Vacated => json!({"name": "channel_vacated", "channel": channel}),
        What::Added { user } => json!({"name": "member_added", "channel": channel, "user_id": user}),
        What::Removed { user } => json!({"name": "member_removed", "channel": channel, "user_id": user}),
        What::CacheMiss => json!({"name": "cache_miss", "channel": channel}),
        What::Count(count) => json!({"name": "subscription_count", "channel": channel, "subscription_count": count}),
        What::ClientEvent { event, data, socket, user } => {
            let mut value = json!({"name": "client_event", "channel": channel, "event": event, "data": data, "socket_id": socket});
            if let Some(user) = user {
                value["user_id"] = user.as_str().into();
            }
            value
        }
    }
}

/// App, channel, and a member or nobody; `true` for a cache miss.
type Key = (String, String, Option<String>, bool);

/// What is held back, and cache misses that have been told just now.
#[derive(Default)]
struct Held {
    since: HashMap<Key, Instant>,
    order: VecDeque<(Instant, Key)>,
}

impl Held {
    fn next(&self) -> Option<Instant> {
        self.order.front().map(|(due, _)| *due)
    }

    /// What is to be told at once.
    fn take(&mut self, happened: Happened, now: Instant) -> Vec<Happened> {
        let (user, is_miss, goes) = match &happened.what {
            What::Occupied => (None, false, false),
            What::Vacated => (None, false, true),
            What::Added { user } => (Some(user.clone()), false, false),
            What::Removed { user } => (Some(user.clone()), false, true),
            What::CacheMiss => (None, true, true),
            What::ClientEvent { .. } | What::Count(_) => return vec![happened],
        };
        let key = (happened.app.clone(), happened.channel.clone(), user, is_miss);
        if !goes {
            return if self.since.remove(&key).is_some() { Vec::new() } else { vec![happened] };
        }
        if is_miss && self.since.contains_key(&key) {
            return Vec::new();
        }
        if self.order.len() >= MAX_HELD {
            return vec![happened];
        }
        self.since.insert(key.clone(), now + GRACE);
        self.order.push_back((now + GRACE, key));
        if is_miss { vec![happened] } else { Vec::new() }
    }

    /// What has not come back.
    fn expired(&mut self, now: Instant) -> Vec<Happened> {
        let mut gone = Vec::new();
        while self.next().is_some_and(|due| due <= now) {
            let Some((due, key)) = self.order.pop_front() else { break };
            // It may have come back, and gone again later.
            if self.since.get(&key) != Some(&due) {
                continue;
            }
            self.since.remove(&key);
            let (app, channel, user, is_miss) = key;
            if !is_miss {
                let what = user.map_or(What::Vacated, |user| What::Removed { user });
                gone.push(Happened { app, channel, what });
            }
        }
        gone
    }
}

/// A body of events, signed with an app's secret.
struct Signed {
    key: String,
    secret: Secret,
}

impl Format for Signed {
    fn body(&mut self, events: &[String], _: u64) -> String {
        let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        format!("{{\"time_ms\":{time_ms},\"events\":[{}]}}", events.join(","))
    }

    fn headers(&self, body: &str) -> HeaderMap {
        HeaderMap::from_iter([
            // The SDK for Node takes exactly this.
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (HeaderName::from_static("x-pusher-key"), header_value(&self.key)),
            (HeaderName::from_static("x-pusher-signature"), header_value(&sign(self.secret.expose(), body))),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(held: &mut Held, at: Instant, channel: &str, what: What) -> Vec<Value> {
        let happened = Happened { app: String::new(), channel: channel.into(), what };
        held.take(happened, at).iter().map(|happened| event(&happened.channel, &happened.what)).collect()
    }

    fn expired(held: &mut Held, at: Instant) -> Vec<Value> {
        held.expired(at).iter().map(|happened| event(&happened.channel, &happened.what)).collect()
    }

    #[test]
    fn who_is_back_within_the_grace_was_never_away() {
        let (mut held, start) = (Held::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let ann = || "ann".to_owned();
        assert_eq!(told(&mut held, at(0), "c", What::Occupied).len(), 1);
        assert!(told(&mut held, at(10), "c", What::Vacated).is_empty());
        assert!(told(&mut held, at(3009), "c", What::Occupied).is_empty());
        assert!(told(&mut held, at(3010), "c", What::Vacated).is_empty());
        assert!(told(&mut held, at(3010), "c", What::Removed { user: ann() }).is_empty());
        assert!(expired(&mut held, at(3010)).is_empty(), "it has gone again since");
        assert!(expired(&mut held, at(6009)).is_empty());
        assert_eq!(
            expired(&mut held, at(6010)),
            [json!({"name": "channel_vacated", "channel": "c"}), json!({"name": "member_removed", "channel": "c", "user_id": "ann"})]
        );
        assert_eq!(told(&mut held, at(6011), "c", What::Added { user: ann() }).len(), 1);
        assert_eq!((held.next(), held.since.len()), (None, 0));
    }

    #[test]
    fn a_miss_is_told_once_for_all_who_miss() {
        let (mut held, start) = (Held::default(), Instant::now());
        assert_eq!(told(&mut held, start, "cache-c", What::CacheMiss).len(), 1);
        assert!(told(&mut held, start + Duration::from_secs(2), "cache-c", What::CacheMiss).is_empty());
        assert!(expired(&mut held, start + GRACE).is_empty());
        assert_eq!(told(&mut held, start + GRACE, "cache-c", What::CacheMiss).len(), 1);
    }

    #[test]
    fn a_signature_is_the_documented_one() {
        let body = r#"{"time_ms":1327078148132,"events":[{"name":"channel_occupied","channel":"my-channel"}]}"#;
        assert_eq!(sign("7ad3773142a6692b25b8", body), "c19001ae3963ccb13bf618e5b16ba9848e7e74df0993aa0689168e341c6833cf");
    }
}
