//! Hubs that share a Redis: which there are, and what they ask of each other.
//!
//! A hub says every second that it is there; whoever asks gets the list of those that have said so lately, asks them
//! all on one topic, and waits for as many answers, not longer than its deadline. Nobody is trusted: what is no question
//! and no answer is dropped and counted.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use crate::broker::redis::calls::number;
use crate::broker::redis::scripts::{Call, Script, nonsense};
use crate::broker::redis::{Listener, Redis};
use crate::broker::{Promise, Reply};
use crate::error::{BrokerError, QueryError};
use crate::hub::Node;
use crate::letters::{ANSWER_TIMEOUT, Answered, Content, Letter, Question};
use crate::message::Epoch;
use crate::patience::Patience;

/// How long it is believed that a hub is there, which it says each second.
const LEASE_MS: u64 = 10_000;
/// Questions of others that are being answered at once; more are dropped.
const MAX_BUSY: usize = 64;

/// Which hub has answered, and what; `None`: it could not.
type Told = (u64, Option<Value>);

/// See the module's documentation.
pub(crate) struct Cluster {
    broker: Arc<Redis>,
    hub: OnceLock<Weak<Node>>,
    asked: Mutex<HashMap<u64, Sender<Told>>>,
    number: AtomicU64,
    busy: AtomicUsize,
    stopped: AtomicBool,
}

/// A question that others are answering.
pub(crate) struct Asking<'a> {
    cluster: &'a Cluster,
    number: u64,
    waits_for: HashSet<u64>,
    answers: mpsc::Receiver<Told>,
    until: Duration,
}

impl Cluster {
    pub(crate) fn new(broker: Arc<Redis>) -> Arc<Self> {
        Arc::new(Cluster {
            broker,
            hub: OnceLock::new(),
            asked: Mutex::default(),
            number: AtomicU64::new(0),
            busy: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        })
    }

    /// Begins to answer for a hub. Its broker has been started.
    pub(crate) fn start(self: &Arc<Self>, hub: &Arc<Node>) {
        if self.hub.set(Arc::downgrade(hub)).is_ok() {
            for topic in [self.broker.keys().control(), self.broker.keys().control_of(self.id())] {
                self.broker.listen(topic, Arc::new(Door(Arc::downgrade(self))));
            }
        }
    }

    /// This hub among the others.
    pub(crate) fn id(&self) -> u64 {
        self.broker.node()
    }

    fn beat(&self, lease_ms: u64) -> Reply<Vec<u64>> {
        let arguments = vec![Epoch(self.id()).to_string().into_bytes(), number(lease_ms)];
        let call = Call { script: Script::Hubs, keys: vec![self.broker.keys().hubs()], arguments };
        self.broker.run(call, |answer| {
            let ids: Vec<String> = ::redis::from_redis_value(answer).map_err(|_| nonsense())?;
            // What is no id has been written by somebody else.
            Ok(ids.iter().filter_map(|id| id.parse::<Epoch>().ok().map(|id| id.0)).collect())
        })
    }

    /// Called about once a second.
    pub(crate) fn tick(&self) {
        if !self.stopped.load(Relaxed)
            && let Reply::Now(Err(error)) = self.beat(LEASE_MS)
        {
            tracing::debug!(%error, "other hubs are not told that this one is here");
        }
    }

    /// The others need not wait for this hub any more.
    pub(crate) fn stop(&self) {
        if !self.stopped.swap(true, Relaxed) {
            drop(self.beat(0));
        }
    }

    /// Asks all others; what they say comes with [`Asking::wait`]. Blocks for one round trip to Redis.
    pub(crate) fn ask(&self, question: Question) -> Result<Asking<'_>, QueryError> {
        let until = ANSWER_TIMEOUT * self.broker.config().patience.max(1);
        // One that stops is not to be waited for by others.
        let hubs = match self.beat(if self.stopped.load(Relaxed) { 0 } else { LEASE_MS }) {
            Reply::Now(hubs) => hubs,
            Reply::Later(promise) => Promise::wait(promise, until).ok_or(QueryError::Timeout { waited: until })?,
        };
        let hubs = hubs.map_err(|error| match error {
            BrokerError::Stopped => QueryError::Stopped,
            error => QueryError::Broker(error),
        })?;
        let waits_for: HashSet<u64> = hubs.into_iter().filter(|id| *id != self.id()).collect();
        let (sender, answers) = mpsc::channel();
        let number = self.number.fetch_add(1, Relaxed) + 1;
        if !waits_for.is_empty() {
            self.asked.lock().insert(number, sender);
            self.say(self.broker.keys().control(), number, Content::Ask(question));
        }
        Ok(Asking { cluster: self, number, waits_for, answers, until })
    }

    fn say(&self, topic: String, number: u64, content: Content) {
        let letter = Letter { from: Epoch(self.id()), number, content };
        match letter.written() {
            Ok(bytes) => self.broker.tell(topic, bytes),
            Err(error) => tracing::warn!(error, "cannot be said to other hubs"),
        }
    }

    fn hear(self: &Arc<Self>, said: &[u8]) {
        let Some(letter) = Letter::read(said) else { return self.broker.count_malformed("control", "letter") };
        let Letter { from: Epoch(from), number, content } = letter;
        match content {
            Content::Ask(_) if from == self.id() || self.stopped.load(Relaxed) => {}
            Content::Ask(question) => self.answer(from, number, question),
            Content::Answer(answer) => {
                if let Some(asker) = self.asked.lock().get(&number) {
                    drop(asker.send((from, answer)));
                }
            }
        }
    }

    /// Answers on a thread that may wait for shards.
    fn answer(self: &Arc<Self>, from: u64, number: u64, question: Question) {
        let Some(hub) = self.hub.get().and_then(Weak::upgrade) else { return };
        let busy = Busy(self.clone());
        if self.busy.fetch_add(1, Relaxed) >= MAX_BUSY {
            tracing::warn!(limit = MAX_BUSY, "another hub asks more than this one can answer");
            return;
        }
        // Not one of the threads on which this hub's own questions wait for others: two hubs would wait for each other.
        let spawned = std::thread::Builder::new().name("rt-answer".into()).spawn(move || {
            let answer = hub.answer_hub(question);
            let Busy(cluster) = &busy;
            cluster.say(cluster.broker.keys().control_of(from), number, Content::Answer(answer));
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "another hub's question cannot be answered");
        }
    }
}

/// One of the answers that are being given.
struct Busy(Arc<Cluster>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Relaxed);
    }
}

/// Hears the topics for as long as the hub is there.
struct Door(Weak<Cluster>);

impl Listener for Door {
    fn begin(&self, _topic: &str) {}

    fn hear(&self, _topic: &str, said: &[u8]) {
        if let Some(cluster) = self.0.upgrade() {
            cluster.hear(said);
        }
    }

    fn lose(&self, _topic: &str) {}
}

impl Asking<'_> {
    /// Waits until all have answered, or the deadline.
    pub(crate) fn wait(mut self) -> Answered {
        let mut answered = Answered::default();
        let mut patience = Patience::new(self.until);
        while !self.waits_for.is_empty() {
            let received = patience.wait(|part| match self.answers.recv_timeout(part) {
                Ok(answer) => Some(Some(answer)),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(None),
            });
            let Some(Some((from, answer))) = received else { break };
            if self.waits_for.remove(&from) {
                match answer {
                    Some(answer) => answered.answers.push((from, answer)),
                    None => answered.missing.push(from),
                }
            }
        }
        answered.missing.extend(self.waits_for.drain());
        if !answered.missing.is_empty() {
            tracing::warn!(hubs = answered.missing.len(), "other hubs have not answered in time");
        }
        answered
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.cluster.asked.lock().remove(&self.number);
    }
}
