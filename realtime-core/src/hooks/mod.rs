//! What happens to connections and channels, for the application to hear of and to decide on.
//!
//! Ways out of the hub: programs that *handle* connections (`handlers`) are told of those
//! they have and may refuse; a *queue* (`queue`) informs workers, each event one of them, until it
//! is acknowledged; `webhooks` are posted to the application, and for Pusher's API in its own format (`pusher`).
//! Where none is asked for, an event costs one relaxed load.

mod delivery;
pub(crate) mod handlers;
pub(crate) mod pusher;
pub(crate) mod queue;
mod webhooks;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::config::{Config, ConfigError, WebhookEvent};
use crate::message::{Channel, ChannelMap, User, split_scope};
use crate::presence::{Change, Notice};
use handlers::Handlers;
use pusher::{Happened, PusherWebhooks, What};
use queue::EventQueue;
use webhooks::Webhooks;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A connection has come.
    Connect,
    /// A connection hears a channel.
    Subscribe,
    /// A user has come onto a channel that shows its users.
    Joined,
    /// A user has left one.
    Left,
    /// A client has sent something for the application.
    Message,
    /// A connection has said that it no longer wants to hear a channel.
    Unsubscribe,
    /// A connection has gone, and all of its subscriptions with it.
    Disconnect,
    /// A channel has its first subscriber.
    Occupied,
    /// A channel has lost its last one.
    Vacated,
}

/// Several of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kinds(u16);

impl Kinds {
    pub(crate) fn has(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u16) != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn and(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Kinds::default(), |all, kind| Kinds(all.0 | 1 << kind as u16))
    }
}

/// What the hub knows of something that has happened, as the application is told it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Event<'a> {
    /// What.
    pub(crate) kind: Kind,
    /// The app, unless it is the default one.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) app: &'a str,
    /// Socket id of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connection: Option<String>,
    /// Where the connection lives; to be given back with what is asked of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shard: Option<usize>,
    /// To be given back with a decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ticket: Option<&'a str>,
    /// Whose connection it is, or who came or left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_info: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) channel: Option<&'a str>,
    /// Path and query of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) query: Option<&'a str>,
    /// Name of a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) event: Option<&'a str>,
    /// JSON text of a message's data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<&'a RawValue>,
    /// A message that is a text as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<&'a str>,
    /// A message that is bytes, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<String>,
    /// A message's id, by which it may be answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<&'a RawValue>,
    /// Why a connection has gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
}

impl<'a> Event<'a> {
    pub(crate) fn new(kind: Kind) -> Self {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
        Event {
            kind,
            app: "",
            connection: None,
            shard: None,
            ticket: None,
            user_id: None,
            user_info: None,
            channel: None,
            path: None,
            query: None,
            event: None,
            data: None,
            text: None,
            bytes: None,
            id: None,
            reason: None,
            at_ms,
        }
    }

    pub(crate) fn of_user(self, user: Option<&'a User>) -> Self {
        let info = user.and_then(User::info).and_then(|info| serde_json::from_str(info).ok());
        Event { user_id: user.map(User::id), user_info: info, ..self }
    }

    /// Events with the same key reach their readers in order.
    fn key(&self) -> String {
        match (&self.connection, self.channel) {
            (Some(connection), _) => connection.clone(),
            (None, Some(channel)) => format!("{}\0{channel}", self.app),
            (None, None) => String::new(),
        }
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A node's hooks.
pub(crate) struct Hooks {
    pub(crate) handlers: Handlers,
    /// Read by workers.
    pub(crate) queue: Option<Arc<EventQueue>>,
    /// What it holds.
    queued: Kinds,
    /// Posted to the application.
    webhooks: Webhooks,
    /// Posted in Pusher's format.
    pusher: PusherWebhooks,
    /// What is queued or posted.
    told: Kinds,
    /// Everything that somebody wants to hear of.
    wanted: AtomicU16,
    /// Subscribers of each channel, while somebody wants to hear of that.
    occupied: Mutex<ChannelMap<usize>>,
}

impl Hooks {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let pusher = PusherWebhooks::new(config)?;
        let config = &config.hooks;
        let webhooks = Webhooks::new(config)?;
        let queued: Kinds = config.events.iter().copied().collect();
        let required: Kinds = config.required.iter().copied().collect();
        let queue = (!queued.is_empty()).then(|| Arc::new(EventQueue::new(config.queue, config.lease_ms)));
        let told = queued.and(webhooks.kinds());
        Ok(Hooks {
            handlers: Handlers::new(required),
            queue,
            queued,
            webhooks,
            pusher,
            told,
            wanted: AtomicU16::new(told.and(required).0),
            occupied: Mutex::default(),
        })
    }

    /// Whether anybody wants to hear of this.
    pub(crate) fn wants(&self, kind: Kind) -> bool {
        Kinds(self.wanted.load(Relaxed)).has(kind)
    }

    /// Events that found no room.
    pub(crate) fn dropped(&self) -> u64 {
        self.handlers.overflowed.load(Relaxed)
            + self.queue.as_ref().map_or(0, |queue| queue.overflowed())
            + self.webhooks.dropped()
            + self.pusher.dropped()
    }

    /// Whether subscribers are counted, for those who want to hear of the first and the last.
    pub(crate) fn counts_subscribers(&self) -> bool {
        self.told.has(Kind::Occupied) || self.told.has(Kind::Vacated) || self.pusher.count_subscribers()
    }

    /// Whether [`Hooks::tell`] tells anybody of this.
    pub(crate) fn tells(&self, kind: Kind) -> bool {
        self.told.has(kind)
    }

    /// Posts what is to be posted, until it is dropped. On the control thread.
    pub(crate) async fn run(&self) {
        tokio::join!(self.webhooks.run(), self.pusher.run());
    }

    /// A program handles connections from now on.
    pub(crate) fn want(&self, kinds: Kinds) {
        self.wanted.fetch_or(kinds.0, Relaxed);
    }

    /// Queues an event for the workers and posts it, where they want to hear of it.
    pub(crate) fn tell(&self, event: &Event<'_>) {
        if !self.tells(event.kind) {
            return;
        }
        let json = event.to_json();
        self.webhooks.push(event, &json);
        if let Some(queue) = self.queue.as_ref().filter(|_| self.queued.has(event.kind)) {
            queue.push(event.key(), json);
        }
    }

    /// A change of a channel's users, in the order in which they change.
    pub(crate) fn noticed(&self, scoped: &str, notice: &Notice) {
        let kind = match notice.change {
            Change::Joined => Kind::Joined,
            Change::Left => Kind::Left,
        };
        if self.tells(kind) {
            let (app, channel) = split_scope(scoped);
            self.tell(&Event { app, channel: Some(channel), ..Event::new(kind) }.of_user(Some(&notice.user)));
        }
        let (app, channel) = split_scope(scoped);
        let user = || notice.user.id().to_owned();
        match notice.change {
            Change::Joined => self.post(app, channel, WebhookEvent::MemberAdded, || What::Added { user: user() }),
            Change::Left => self.post(app, channel, WebhookEvent::MemberRemoved, || What::Removed { user: user() }),
        }
    }

    /// Posts an event in Pusher's format, if an app wants to hear of it.
    pub(crate) fn post(&self, app: &str, channel: &str, kind: WebhookEvent, what: impl FnOnce() -> What) {
        if self.pusher.wants(app, kind) {
            self.pusher.tell(Happened { app: app.to_owned(), channel: channel.to_owned(), what: what() });
        }
    }

    /// A channel has a subscriber more.
    pub(crate) fn subscribed(&self, channel: &Channel) {
        let mut occupied = self.occupied.lock();
        let count = occupied.entry(channel.clone()).or_default();
        *count += 1;
        if *count == 1 {
            self.tell(&Event { app: channel.app(), channel: Some(channel.name()), ..Event::new(Kind::Occupied) });
            self.post(channel.app(), channel.name(), WebhookEvent::ChannelOccupied, || What::Occupied);
        }
    }

    /// A channel has so many subscribers less.
    pub(crate) fn unsubscribed(&self, channel: &Channel, subscribers: usize) {
        let mut occupied = self.occupied.lock();
        let Some(count) = occupied.get_mut(channel) else { return };
        *count -= subscribers;
        if *count == 0 {
            occupied.remove(channel);
            self.tell(&Event { app: channel.app(), channel: Some(channel.name()), ..Event::new(Kind::Vacated) });
            self.post(channel.app(), channel.name(), WebhookEvent::ChannelVacated, || What::Vacated);
        }
    }
}
