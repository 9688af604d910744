//! The thread that speaks with Redis: it carries out commands over one connection (`commands`), and hears announcements on another
//! (`subscriptions`); in a cluster over one of each for every master, and one for what concerns no channel.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use redis::RedisError;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::cluster::Router;
use super::keys;
use super::servers::Servers;
use super::shards::Shards;
use super::{Command, Deliver, Listener, Senders, Shared, Subscription};
use crate::error::BrokerError;
use crate::patience::Patience;

/// While a connection is being made requests wait for so long; later ones fail at once.
pub(super) const GRACE: Duration = Duration::from_millis(500);
/// How long to wait for an answer: what is not answered by then may or may not have happened.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_millis(900);
/// Between attempts to connect: at most this, and at random, so that nodes do not come all at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// After a panic.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// See the module's documentation.
pub(super) struct Link {
    pub(super) shared: Arc<Shared>,
    pub(super) servers: Servers,
    pub(super) senders: Senders,
    pub(super) deliver: Arc<dyn Deliver>,
}

/// Why a connection is made anew.
pub(super) type Lost = String;

impl Link {
    /// Until the broker stops. What panics in between (whoever is called from here) costs what was under way, and is begun anew.
    pub(super) fn run(self, commands: UnboundedReceiver<Command>, subscriptions: UnboundedReceiver<Subscription>, first: Runtime) {
        self.go_on(commands, subscriptions, first);
        // Who still waits for a line that will not come.
        self.refuse_asked(&BrokerError::Stopped, false);
    }

    fn go_on(&self, mut commands: UnboundedReceiver<Command>, mut subscriptions: UnboundedReceiver<Subscription>, first: Runtime) {
        let mut next = Some(first);
        loop {
            let served = panic::catch_unwind(AssertUnwindSafe(|| {
                let runtime = match next.take() {
                    Some(first) => first,
                    None => {
                        self.forget_connections();
                        runtime()?
                    }
                };
                runtime.block_on(async {
                    tokio::select! {
                        () = self.serve(&mut commands) => {}
                        () = self.hear(&mut subscriptions) => {}
                    }
                });
                runtime.shutdown_timeout(Duration::ZERO);
                Ok::<_, BrokerError>(())
            }));
            match served {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::error!(%error, "the broker's thread cannot go on"),
                Err(_) => {
                    let count = self.shared.failures.fetch_add(1, Relaxed) + 1;
                    tracing::error!(count, "the broker's thread has panicked, and begins anew");
                }
            }
            for connected in &self.shared.connected {
                connected.store(false, Relaxed);
            }
            // What makes it fail may come again.
            std::thread::sleep(AFTER_FAILURE);
            if self.shared.is_stopping.load(Relaxed) {
                return;
            }
        }
    }

    async fn serve(&self, queue: &mut UnboundedReceiver<Command>) {
        match self.servers.cluster() {
            Some(cluster) => Router::serve(self, cluster, queue).await,
            None => self.serve_commands(queue, None).await,
        }
    }

    async fn hear(&self, queue: &mut UnboundedReceiver<Subscription>) {
        if self.servers.cluster().is_none() {
            return self.serve_subscriptions(queue).await;
        }
        let (others, mut theirs) = unbounded_channel();
        tokio::join!(Shards::serve(self, queue, others), self.serve_subscriptions(&mut theirs));
    }

    /// Whether a topic is heard on the one link of subscriptions, and not where its channel is.
    pub(super) fn is_central(&self, topic: &str) -> bool {
        self.servers.cluster().is_none() || !keys::is_of_a_channel(topic)
    }

    /// Everything has to be heard anew: who waits is refused, what was heard is asked for again.
    fn forget_connections(&self) {
        self.refuse_asked(&failed(), false);
        let listeners: Vec<(String, Arc<dyn Listener>)> =
            self.shared.listeners.lock().iter().map(|(topic, listener)| (topic.clone(), listener.clone())).collect();
        listeners.iter().for_each(|(topic, listener)| listener.lose(topic));
        if self.servers.cluster().is_some() {
            // The one link of subscriptions knows what it has to hear; those of the masters are told.
            let names: Vec<Box<str>> = self.shared.channels.lock().keys().cloned().collect();
            let channels = names.into_iter().map(Subscription::Begin);
            let topics = listeners.into_iter().filter(|(topic, _)| !self.is_central(topic)).map(|(topic, _)| Subscription::Listen(topic));
            channels.chain(topics).for_each(|request| drop(self.senders.subscriptions.send(request)));
        }
    }

    pub(super) fn note_connected(&self, connected: bool) {
        self.shared.connected[0].store(connected, Relaxed);
    }

    /// The slots may be elsewhere than they were.
    pub(super) fn trouble(&self) {
        drop(self.senders.commands.send(Command::Troubled));
    }

    pub(super) fn patience(&self) -> u32 {
        self.shared.patience()
    }
}

/// What the thread runs on.
pub(super) fn runtime() -> Result<Runtime, BrokerError> {
    let made = tokio::runtime::Builder::new_current_thread().enable_all().build();
    made.map_err(|error| BrokerError::Unavailable { reason: format!("no runtime for redis: {error}") })
}

/// To those whose answer went with a panic.
pub(super) fn failed() -> BrokerError {
    uncertainty("the thread that speaks with it has failed")
}

pub(super) fn uncertainty(reason: &str) -> BrokerError {
    BrokerError::Unavailable { reason: format!("redis: {reason}; it may or may not have been accepted") }
}

pub(super) async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, RedisError>>) -> Result<T, Lost> {
    answer_to(limit, work).await.map_err(|unanswered| unanswered.reason)
}

/// Why there is no answer, and whether it would have come too late.
pub(super) struct Unanswered {
    pub(super) reason: Lost,
    pub(super) is_late: bool,
}

pub(super) async fn answer_to<T>(limit: Duration, work: impl Future<Output = Result<T, RedisError>>) -> Result<T, Unanswered> {
    match Patience::new(limit).until(work).await {
        Some(answer) => answer.map_err(|error| Unanswered { reason: error.to_string(), is_late: false }),
        None => Err(Unanswered { reason: format!("no answer within {} ms", limit.as_millis()), is_late: true }),
    }
}

/// How long to wait between attempts, and what the log is told.
pub(super) struct Pause<'l> {
    failures: u32,
    /// Told of either.
    connected: &'l AtomicBool,
}

impl<'l> Pause<'l> {
    pub(super) fn of(connected: &'l AtomicBool) -> Self {
        Pause { failures: 0, connected }
    }

    pub(super) fn succeeded(&mut self, what: &str) {
        self.connected.store(true, Relaxed);
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!("{what}: connected again");
        }
    }

    /// Whether there was a connection until now.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Relaxed)
    }

    pub(super) fn failed(&mut self, what: &str, reason: &str) -> Duration {
        self.connected.store(false, Relaxed);
        if self.failures == 0 {
            tracing::warn!(reason, "{what}: not connected");
        }
        self.failures = self.failures.saturating_add(1);
        let longest = LONGEST_PAUSE.min(Duration::from_millis(25) * 2_u32.saturating_pow(self.failures.min(8)));
        let share = getrandom::u32().unwrap_or(u32::MAX) as f32 / u32::MAX as f32;
        longest.mul_f32(share.max(0.05))
    }
}
