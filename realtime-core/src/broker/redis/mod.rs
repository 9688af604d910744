//! The broker of many nodes: order, positions, histories and idempotency keys in Redis 7 or newer.
//!
//! Each publication is one script: it counts, keeps and announces in one step. A node subscribes to
//! what its clients hear, and compares what is announced with what it has handed on; where something
//! is missing it reads the history, and says so if that does not have it either.
//!
//! One thread does all this (`link`); what is asked of the broker is queued to it. While Redis cannot
//! be reached everything fails at once, and local clients stay.

mod address;
pub(crate) mod calls;
mod cluster;
mod commands;
mod connection;
mod ear;
mod envelope;
mod heard;
pub(crate) mod keys;
mod link;
pub mod publisher;
pub(crate) mod rules;
pub(crate) mod scripts;
mod servers;
mod shards;
mod slots;
mod subscriptions;

use std::collections::HashMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::redis::Value;
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{Broker, Deliver, Published, Reply, Resolver, promise};
use crate::config::{BrokerConfig, Config};
use crate::error::BrokerError;
use crate::history::{Page, Range};
use crate::message::{Channel, Position, Publish};
use crate::patience::Patience;
use address::Address;
use heard::Early;
use keys::Keys;
use rules::{Announcement, Rules};
use scripts::{Call, Script};
use servers::Servers;

/// Requests that may wait for Redis; past it new ones fail. A full pipeline needs some hundreds.
const MAX_WAITING: usize = 65_536;
/// How long a stop waits for what is under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an unused subscription is kept: who reloads a page comes back to it.
const LINGER: Duration = Duration::from_secs(2);

/// See the module's documentation.
pub struct Redis {
    shared: Arc<Shared>,
    address: Address,
    /// See `broker.ca_file`.
    trusted: Option<Vec<u8>>,
    /// What this hub goes by, if it is one.
    announcement: Option<Arc<Announcement>>,
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
    /// By topic.
    listeners: Mutex<HashMap<String, Arc<dyn Listener>>>,
    /// Held once by each request that waits.
    places: Arc<()>,
    /// Questions about channels that have been asked: see [`Subscribed::question`].
    questions: AtomicU64,
    /// Whether there is a connection for commands, and one for subscriptions.
    connected: [AtomicBool; 2],
    /// Announcements and entries that were not publications.
    malformed: AtomicU64,
    /// Panics of the thread.
    failures: AtomicU64,
    /// What the thread has been asked for is its last.
    is_stopping: AtomicBool,
}

/// A channel that this node hears, or did a moment ago.
struct Subscribed {
    channel: Channel,
    /// Since when nobody needs it.
    unused_since: Option<Instant>,
    /// Offset that the last check found and that nothing was known of: the announcement may have
    /// been on its way. If it has not come by the next check it is lost.
    suspect: Option<u64>,
    /// Number of the question that was asked last: answers to those before it come too late.
    question: u64,
    state: State,
}

enum State {
    /// The server has not confirmed it. `again`: a line has ended meanwhile, and it is asked for over the next one, once.
    Asked { waiting: Vec<Resolver<Position>>, early: Early, again: bool },
    /// What has been handed on; what follows will be.
    Live(Position),
    /// Something may be missing behind this position: it is being looked for. What is announced
    /// meanwhile waits. `asked`: an answer is to come.
    Checking { position: Position, early: Early, asked: bool },
}

/// For the link of commands.
enum Command {
    Run(Call, Owed, Way),
    /// To whoever hears the topic, without an answer.
    Tell {
        topic: String,
        payload: Vec<u8>,
    },
    /// The link of subscriptions' own topic is told nothing: from another server each time, where there are several.
    Probe {
        topic: String,
    },
    /// Behind everything that was asked before, from every server that was asked: the topic is told how many those are.
    Farewell {
        topic: String,
    },
    /// To whoever hears a channel's topic in a cluster, without an answer.
    Whisper {
        topic: String,
        payload: Vec<u8>,
    },
    /// A node of a cluster has said where a slot is.
    Moved {
        slot: usize,
        host: String,
        port: String,
    },
    /// Slots of a cluster may be elsewhere than they were.
    Troubled,
    /// Does nothing, and says when its turn has come.
    Passing(cluster::Passing),
}

/// How a command has come to the server of a cluster that is to carry it out.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    /// The keys are on their way there.
    asking: bool,
    /// Servers that have sent it on.
    hops: u8,
    /// A connection has ended before its answer.
    again: bool,
}

impl Command {
    fn is_publication(&self) -> bool {
        matches!(self, Command::Run(Call { script: Script::Publish, .. }, ..))
    }

    /// Whether it may be sent again whose connection has ended before its answer: it only reads, and has not been sent again yet.
    fn ask_again(&mut self) -> bool {
        match self {
            Command::Run(Call { script: Script::Read | Script::Look, .. }, _, way) => !std::mem::replace(&mut way.again, true),
            _ => false,
        }
    }

    fn is_asking(&self) -> bool {
        matches!(self, Command::Run(_, _, Way { asking: true, .. }))
    }
}

/// Takes what the server said, or why it was not asked.
pub(crate) type Done = Box<dyn FnOnce(Result<Value, BrokerError>) + Send>;

/// An answer that somebody waits for, and gets: also where the thread fails that was to give it.
struct Owed {
    done: Option<Done>,
    _place: Arc<()>,
}

impl Owed {
    fn give(mut self, answer: Result<Value, BrokerError>) {
        if let Some(done) = self.done.take() {
            done(answer);
        }
    }

    /// Nobody waits after all.
    fn forget(mut self) {
        self.done = None;
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let Some(done) = self.done.take() else { return };
        if !std::thread::panicking() {
            return done(Err(BrokerError::Stopped));
        }
        // Whoever takes this answer may panic as well, and a second panic that gets out of here would end the process.
        drop(panic::catch_unwind(AssertUnwindSafe(|| done(Err(link::failed())))));
    }
}

/// Hears topics that are not a channel's publications, over the link of subscriptions. Called on its thread: never blocks.
pub(crate) trait Listener: Send + Sync {
    /// The topic is heard from now on, for the first time or again: what was said before may have been missed.
    fn begin(&self, topic: &str);

    /// Somebody said something, anybody who has the server's password.
    fn hear(&self, topic: &str, said: &[u8]);

    /// The topic is not heard until it begins again.
    fn lose(&self, topic: &str);
}

/// For the link of subscriptions.
enum Subscription {
    Begin(Box<str>),
    /// The position of a channel whose subscription has been confirmed, and the question's number.
    Confirmed(Box<str>, u64, Result<Position, BrokerError>),
    /// What is missing on a channel, and the question's number.
    Checked(Box<str>, u64, Result<Page, BrokerError>),
    /// A topic of a [`Listener`] is to be heard, or no longer.
    Listen(String),
    Unlisten(String),
    /// Stop when all that was published has been heard.
    Stop,
}

/// Why a text is no `broker.url`; nothing of the text is repeated.
pub(crate) fn check_url(url: &str) -> Result<(), String> {
    Address::parse(url).map(drop).map_err(|error| error.to_string())
}

impl Redis {
    /// A broker for what `config.url` names. Nothing is connected yet.
    pub fn new(config: &BrokerConfig) -> Result<Self, BrokerError> {
        let unavailable = |error: &dyn std::fmt::Display| BrokerError::Unavailable { reason: error.to_string() };
        let address = Address::parse(config.url.expose()).map_err(|error| unavailable(&format!("broker.url: {error}")))?;
        let trusted = match config.ca_file.as_str() {
            "" => None,
            file => {
                // What is no certificate is found out here and not with the first connection.
                crate::trust::roots(file, "broker.ca_file").map_err(|error| unavailable(&format!("broker.ca_file: {error}")))?;
                Some(std::fs::read(file).map_err(|error| unavailable(&format!("broker.ca_file: {error}")))?)
            }
        };
        Ok(Redis {
            shared: Arc::new(Shared {
                keys: Keys::new(&config.prefix),
                config: config.clone(),
                node: getrandom::u64().map_err(|error| unavailable(&error))?,
                channels: Mutex::default(),
                listeners: Mutex::default(),
                places: Arc::default(),
                questions: AtomicU64::new(0),
                connected: Default::default(),
                malformed: AtomicU64::new(0),
                failures: AtomicU64::new(0),
                is_stopping: AtomicBool::new(false),
            }),
            address,
            trusted,
            announcement: None,
            thread: Mutex::new(None),
            requests: Mutex::new(None),
        })
    }

    /// The same, of a hub: publishers that are no hubs hear from it what it goes by.
    pub(crate) fn of_hub(config: &Config) -> Result<Self, BrokerError> {
        Ok(Redis { announcement: Some(Arc::new(Announcement::new(&Rules::of(config)))), ..Redis::new(&config.broker)? })
    }

    /// Announcements and entries in Redis that were not publications and were dropped.
    pub fn malformed(&self) -> u64 {
        self.shared.malformed.load(Ordering::Relaxed)
    }

    /// Names of things in Redis.
    pub(crate) fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    /// This broker among those of other hubs, for as long as it lives.
    pub(crate) fn node(&self) -> u64 {
        self.shared.node
    }

    pub(crate) fn config(&self) -> &BrokerConfig {
        &self.shared.config
    }

    /// Runs a script; `read` makes the answer of what the server says, on the link's thread.
    pub(crate) fn run<T, R>(&self, call: Call, read: R) -> Reply<T>
    where
        T: Send + 'static,
        R: FnOnce(Value) -> Result<T, BrokerError> + Send + 'static,
    {
        let senders = self.requests.lock();
        let Some(senders) = &*senders else { return Reply::Now(Err(BrokerError::Stopped)) };
        if let Err(error) = self.has_room() {
            return Reply::Now(Err(error));
        }
        let (resolver, pending) = promise();
        match self.shared.run(senders, call, Box::new(move |answer| resolver.resolve(answer.and_then(read)))) {
            Ok(()) => Reply::Later(pending),
            Err(error) => Reply::Now(Err(error)),
        }
    }

    /// The same where nobody waits: `done` is called once, on the link's thread, unless this fails.
    pub(crate) fn post(&self, call: Call, done: Done) -> Result<(), BrokerError> {
        let senders = self.requests.lock();
        let senders = senders.as_ref().ok_or(BrokerError::Stopped)?;
        self.has_room()?;
        self.shared.run(senders, call, done)
    }

    fn has_room(&self) -> Result<(), BrokerError> {
        if self.shared.waiting() < MAX_WAITING {
            return Ok(());
        }
        Err(BrokerError::Unavailable { reason: format!("{MAX_WAITING} requests wait for redis already") })
    }

    /// Something in Redis is not what a hub would have written there.
    pub(crate) fn count_malformed(&self, channel: &str, what: &str) {
        self.shared.count_malformed(channel, &what);
    }

    /// Says something to whoever hears a topic; lost where the server cannot be reached.
    pub(crate) fn tell(&self, topic: String, payload: Vec<u8>) {
        if let Some(senders) = &*self.requests.lock() {
            drop(senders.commands.send(Command::Tell { topic, payload }));
        }
    }

    /// Hears a topic until [`Redis::unlisten`].
    pub(crate) fn listen(&self, topic: String, listener: Arc<dyn Listener>) {
        let senders = self.requests.lock();
        let Some(senders) = &*senders else { return };
        self.shared.listeners.lock().insert(topic.clone(), listener);
        drop(senders.subscriptions.send(Subscription::Listen(topic)));
    }

    pub(crate) fn unlisten(&self, topic: &str) {
        let senders = self.requests.lock();
        self.shared.listeners.lock().remove(topic);
        if let Some(senders) = &*senders {
            drop(senders.subscriptions.send(Subscription::Unlisten(topic.to_owned())));
        }
    }
}

impl Broker for Redis {
    fn start(&self, deliver: Arc<dyn Deliver>) -> Result<(), BrokerError> {
        let (commands, command_queue) = unbounded_channel();
        let (subscriptions, subscription_queue) = unbounded_channel();
        let senders = Senders { commands, subscriptions };
        let servers = Servers::new(self.address.clone(), self.trusted.clone(), self.shared.patience());
        let link = link::Link { shared: self.shared.clone(), servers, senders: senders.clone(), deliver };
        let runtime = link::runtime()?;
        let thread = std::thread::Builder::new().name("rt-broker".into());
        let thread = thread.spawn(move || link.run(command_queue, subscription_queue, runtime));
        *self.thread.lock() = Some(thread.map_err(|error| BrokerError::Unavailable { reason: error.to_string() })?);
        *self.requests.lock() = Some(senders);
        self.tick();
        Ok(())
    }

    fn publish(&self, publish: &Publish<'_>) -> Reply<Published> {
        self.run(calls::publish(&self.shared.keys, self.shared.config.fence, publish), calls::published)
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
        let state = State::Asked { waiting: vec![resolver], early: Early::default(), again: false };
        let known = Channel::new(channel, crate::message::channel_hash(channel));
        channels.insert(name.clone(), Subscribed { channel: known, unused_since: None, suspect: None, question: 0, state });
        match senders.subscriptions.send(Subscription::Begin(name)) {
            Ok(()) => Reply::Later(pending),
            Err(refused) => {
                // Who comes next is not to wait for an answer to this.
                if let Subscription::Begin(name) = refused.0 {
                    channels.remove(&name);
                }
                Reply::Now(Err(BrokerError::Stopped))
            }
        }
    }

    fn unsubscribe(&self, channel: &str) {
        if let Some(subscribed) = self.shared.channels.lock().get_mut(channel) {
            subscribed.unused_since = Some(Instant::now());
        }
    }

    fn read(&self, channel: &str, range: &Range) -> Reply<Page> {
        let call = calls::read(&self.shared.keys, self.shared.config.fence, channel, range);
        let (channel, shared) = (Channel::new(channel, crate::message::channel_hash(channel)), self.shared.clone());
        self.run(call, move |answer| shared.page(&channel, answer))
    }

    fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::Relaxed)
    }

    fn is_ready(&self) -> bool {
        self.shared.connected.iter().all(|connected| connected.load(Ordering::Relaxed))
    }

    fn tick(&self) {
        let Some(announcement) = &self.announcement else { return };
        let Some(call) = announcement.call(&self.shared.keys) else { return };
        match self.run(call, rules::announced) {
            Reply::Now(answer) => announcement.settle(answer),
            Reply::Later(promise) => {
                let announcement = announcement.clone();
                promise.then(move |answer| announcement.settle(answer));
            }
        }
    }

    fn stop(&self) {
        let Some(senders) = self.requests.lock().take() else { return };
        self.shared.is_stopping.store(true, Ordering::Relaxed);
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
    /// How long something may take, as the configuration stretches it.
    fn patient(&self, usual: Duration) -> Duration {
        usual * self.patience()
    }

    fn patience(&self) -> u32 {
        self.config.patience.max(1)
    }

    fn run(&self, senders: &Senders, call: Call, done: Done) -> Result<(), BrokerError> {
        let owed = Owed { done: Some(done), _place: self.places.clone() };
        senders.commands.send(Command::Run(call, owed, Way::default())).map_err(|refused| {
            if let Command::Run(_, owed, _) = refused.0 {
                owed.forget();
            }
            BrokerError::Stopped
        })
    }

    /// Requests that wait for an answer.
    fn waiting(&self) -> usize {
        Arc::strong_count(&self.places) - 1
    }

    fn page(&self, channel: &Channel, answer: Value) -> Result<Page, BrokerError> {
        calls::page(channel, answer, |error| self.count_malformed(channel.scoped(), &error))
    }

    fn count_malformed(&self, channel: &str, error: &dyn std::fmt::Display) {
        let count = self.malformed.fetch_add(1, Ordering::Relaxed);
        if count.is_multiple_of(1_000) {
            tracing::warn!(%error, channel = %channel.escape_debug(), count, "redis holds something that no hub has written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_answered_although_what_another_answer_leads_to_panics() {
        let (said, heard) = std::sync::mpsc::channel();
        let owed = |done: Done| Owed { done: Some(done), _place: Arc::default() };
        let outcome = panic::catch_unwind(AssertUnwindSafe(move || {
            let _waits = owed(Box::new(move |answer| drop(said.send(answer))));
            let _panics = owed(Box::new(|_| panic!("as the test wants it")));
            panic!("the thread fails");
        }));
        assert!(outcome.is_err());
        let answer = heard.recv().expect("an answer");
        assert!(answer.is_err_and(|error| error.to_string().contains("may or may not")));
    }
}
