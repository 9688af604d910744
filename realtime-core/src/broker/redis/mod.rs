//! The broker of many nodes: order, positions, histories and idempotency keys in Redis 7 or newer.
//!
//! Each publication is one script: it counts, keeps and announces in one step. A node subscribes to
//! what its clients hear, and compares what is announced with what it has handed on; where something
//! is missing it reads the history, and says so if that does not have it either.
//!
//! One thread does all this (`link`); what is asked of the broker is queued to it. While Redis cannot
//! be reached everything fails at once, and local clients stay.

mod envelope;
mod keys;
mod link;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{Broker, Deliver, Published, Reply, Resolver, promise};
use crate::config::BrokerConfig;
use crate::error::BrokerError;
use crate::history::{Page, Range};
use crate::message::{Channel, Position, Publish};
use crate::patience::Patience;
use keys::Keys;

/// Requests that may wait for Redis; past it new ones fail. A full pipeline needs some hundreds.
const MAX_WAITING: usize = 65_536;
/// How long a stop waits for what is under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an unused subscription is kept: who reloads a page comes back to it.
const LINGER: Duration = Duration::from_secs(2);

/// See the module's documentation.
pub struct Redis {
    shared: Arc<Shared>,
    client: redis::Client,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Of the thread: it ends when this is dropped.
    requests: Mutex<Option<Senders>>,
}

#[derive(Clone)]
struct Senders {
    commands: UnboundedSender<Command>,
    subscriptions: UnboundedSender<Subscription>,
}

/// What the threads share.
struct Shared {
    keys: Keys,
    config: BrokerConfig,
    /// Names this broker's probes.
    node: u64,
    channels: Mutex<HashMap<Box<str>, Subscribed>>,
    waiting: AtomicUsize,
    /// Announcements and entries that were not publications.
    malformed: AtomicU64,
}

/// A channel that this node hears, or did a moment ago.
struct Subscribed {
    channel: Channel,
    /// Since when nobody needs it.
    unused_since: Option<Instant>,
    /// Offset that the last check found and that nothing was known of: the announcement may have
    /// been on its way. If it has not come by the next check it is lost.
    suspect: Option<u64>,
    state: State,
}

enum State {
    /// The server has not confirmed it.
    Asked { waiting: Vec<Resolver<Position>>, early: Vec<(Position, Vec<u8>)> },
    /// What has been handed on; what follows will be.
    Live(Position),
    /// Something may be missing behind this position: it is being looked for. What is announced
    /// meanwhile waits. `asked`: an answer is to come.
    Checking { position: Position, early: Vec<(Position, Vec<u8>)>, asked: bool },
}

/// For the link of commands.
enum Command {
    Publish {
        arguments: Box<PublishArguments>,
        resolver: Resolver<Published>,
    },
    Read {
        channel: Channel,
        range: Range,
        resolver: Resolver<Page>,
    },
    /// To see whether the link of subscriptions lives.
    Probe,
}

struct PublishArguments {
    keys: [String; 3],
    arguments: Vec<Vec<u8>>,
}

/// For the link of subscriptions.
enum Subscription {
    Begin(Box<str>),
    /// The position of a channel whose subscription has been confirmed.
    Confirmed(Box<str>, Result<Position, BrokerError>),
    /// What is missing on a channel.
    Checked(Box<str>, Result<Page, BrokerError>),
    /// Stop when all that was published has been heard.
    Stop,
}

impl Redis {
    /// A broker for the server that `config.url` names. Nothing is connected yet.
    pub fn new(config: &BrokerConfig) -> Result<Self, BrokerError> {
        let unavailable = |error: &dyn std::fmt::Display| BrokerError::Unavailable { reason: error.to_string() };
        let client = redis::Client::open(config.url.expose()).map_err(|error| unavailable(&format!("broker.url: {error}")))?;
        Ok(Redis {
            shared: Arc::new(Shared {
                keys: Keys::new(&config.prefix),
                config: config.clone(),
                node: getrandom::u64().map_err(|error| unavailable(&error))?,
                channels: Mutex::default(),
                waiting: AtomicUsize::new(0),
                malformed: AtomicU64::new(0),
            }),
            client,
            thread: Mutex::new(None),
            requests: Mutex::new(None),
        })
    }

    /// Announcements and entries in Redis that were not publications and were dropped.
    pub fn malformed(&self) -> u64 {
        self.shared.malformed.load(Ordering::Relaxed)
    }

    fn command<T>(&self, make: impl FnOnce(Resolver<T>) -> Command) -> Reply<T> {
        let senders = self.requests.lock();
        let Some(senders) = &*senders else { return Reply::Now(Err(BrokerError::Stopped)) };
        if self.shared.waiting.load(Ordering::Relaxed) >= MAX_WAITING {
            return Reply::Now(Err(BrokerError::Unavailable { reason: format!("{MAX_WAITING} requests wait for redis already") }));
        }
        let (resolver, pending) = promise();
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        match senders.commands.send(make(resolver)) {
            Ok(()) => Reply::Later(pending),
            Err(_) => Reply::Now(Err(BrokerError::Stopped)),
        }
    }
}

impl Broker for Redis {
    fn start(&self, deliver: Arc<dyn Deliver>) -> Result<(), BrokerError> {
        let (commands, command_queue) = unbounded_channel();
        let (subscriptions, subscription_queue) = unbounded_channel();
        let senders = Senders { commands, subscriptions };
        let link = link::Link { shared: self.shared.clone(), client: self.client.clone(), senders: senders.clone(), deliver };
        let thread = std::thread::Builder::new().name("rt-broker".into()).spawn(move || link.run(command_queue, subscription_queue));
        *self.thread.lock() = Some(thread.map_err(|error| BrokerError::Unavailable { reason: error.to_string() })?);
        *self.requests.lock() = Some(senders);
        Ok(())
    }

    fn publish(&self, publish: &Publish<'_>) -> Reply<Published> {
        let arguments = Box::new(self.shared.publish_arguments(publish));
        self.command(|resolver| Command::Publish { arguments, resolver })
    }

    fn subscribe(&self, channel: &str) -> Reply<Position> {
        let senders = self.requests.lock();
        let Some(senders) = &*senders else { return Reply::Now(Err(BrokerError::Stopped)) };
        let mut channels = self.shared.channels.lock();
        if let Some(subscribed) = channels.get_mut(channel) {
            subscribed.unused_since = None;
            return match &mut subscribed.state {
                State::Asked { waiting, .. } => {
                    let (resolver, pending) = promise();
                    waiting.push(resolver);
                    Reply::Later(pending)
                }
                // What follows it will be handed on.
                State::Live(position) | State::Checking { position, .. } => Reply::Now(Ok(*position)),
            };
        }
        let (resolver, pending) = promise();
        let name: Box<str> = channel.into();
        let state = State::Asked { waiting: vec![resolver], early: Vec::new() };
        let known = Channel::new(channel, crate::message::channel_hash(channel));
        channels.insert(name.clone(), Subscribed { channel: known, unused_since: None, suspect: None, state });
        match senders.subscriptions.send(Subscription::Begin(name)) {
            Ok(()) => Reply::Later(pending),
            Err(_) => Reply::Now(Err(BrokerError::Stopped)),
        }
    }

    fn unsubscribe(&self, channel: &str) {
        if let Some(subscribed) = self.shared.channels.lock().get_mut(channel) {
            subscribed.unused_since = Some(Instant::now());
        }
    }

    fn read(&self, channel: &str, range: &Range) -> Reply<Page> {
        let channel = Channel::new(channel, crate::message::channel_hash(channel));
        self.command(|resolver| Command::Read { channel, range: *range, resolver })
    }

    fn stop(&self) {
        let Some(senders) = self.requests.lock().take() else { return };
        // The link of commands ends when all senders have gone, after what is queued.
        drop(senders.subscriptions.send(Subscription::Stop));
        drop(senders);
        let Some(thread) = self.thread.lock().take() else { return };
        let ended = Patience::new(self.shared.patient(STOP_TIMEOUT)).wait(|part| {
            let until = Instant::now() + part;
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
            thread.is_finished().then_some(())
        });
        if ended.is_some() {
            drop(thread.join());
        }
    }
}

impl Shared {
    /// Life of a channel's counts after its newest publication.
    const META_TTL_MS: u64 = 31 * 86_400_000;
    /// How long an idempotency key is remembered.
    const ID_WINDOW_MS: u64 = 300_000;

    /// How long something may take, as the configuration stretches it.
    fn patient(&self, usual: Duration) -> Duration {
        usual * self.patience()
    }

    fn patience(&self) -> u32 {
        self.config.patience.max(1)
    }

    fn fenced(&self) -> &'static str {
        if self.config.fence { "1" } else { "0" }
    }

    fn publish_arguments(&self, publish: &Publish<'_>) -> PublishArguments {
        let channel = publish.channel;
        let envelope = envelope::encode(publish);
        let cost = envelope.len() + crate::history::OVERHEAD;
        let text = |text: String| text.into_bytes();
        let mut arguments = vec![
            text(self.keys.topic(channel)),
            envelope,
            text(link::new_epoch()),
            text(self.fenced().into()),
            text(Self::META_TTL_MS.to_string()),
            text(publish.id.map(|_| Self::ID_WINDOW_MS.to_string()).unwrap_or_default()),
        ];
        match &publish.retention {
            Some(kept) => {
                arguments.extend([kept.size, kept.ttl_ms as usize, kept.bytes].map(|number| text(number.to_string())));
                arguments.push(text(u8::from(publish.history).to_string()));
                arguments.push(text(publish.ttl_ms.map(|ttl| ttl.to_string()).unwrap_or_default()));
                arguments.push(text(cost.to_string()));
            }
            None => arguments.extend(vec![Vec::new(); 6]),
        }
        // A channel without a key names its counts twice: scripts get the same number of keys.
        let id = publish.id.map_or_else(|| self.keys.meta(channel), |id| self.keys.id(channel, id));
        PublishArguments { keys: [self.keys.meta(channel), self.keys.log(channel), id], arguments }
    }
}
