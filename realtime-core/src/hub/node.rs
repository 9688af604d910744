//! What the threads of a hub share, and how publications and connections get to the shards.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::counts::Counts;
use super::inbox::Inbox;
use super::ingress::{ChannelLoad, Full};
use super::resume::Pages;
use super::roster::Attendance;
use super::routes::Routes;
use super::shard::Job;
use super::stats::ShardCounters;
use super::watchlists::Watchlists;
use super::windows::Windows;
use crate::api;
use crate::apps::Apps;
use crate::auth::{Authenticator, Users};
use crate::broker::{Broker, Published, Reply};
use crate::config::Config;
use crate::error::PublishError;
use crate::history::{Page, Range};
use crate::hooks::Hooks;
use crate::message::{Channel, ChannelRef, Position, Publish, channel_hash};
use crate::protocol::Format;
use crate::sync::Mutex;

/// What shards, transport and handle share.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) apps: Apps,
    pub(crate) auth: Authenticator,
    pub(super) users: Users,
    /// Who of them are watched, and by whom.
    pub(super) watchlists: Watchlists,
    /// Whose word about a client's address counts.
    pub(crate) trusted_proxies: Vec<ipnet::IpNet>,
    /// Where it listens, with the port that was given for port 0.
    pub(crate) local_addr: SocketAddr,
    /// Where it is watched, if not there.
    pub(crate) monitoring_addr: Option<SocketAddr>,
    /// Where the bus listens over TCP.
    pub(crate) bus_addr: Option<SocketAddr>,
    pub(crate) formats: Vec<Format>,
    pub(crate) shards: Vec<ShardHandle>,
    pub(super) broker: Arc<dyn Broker>,
    /// The hubs that share the broker.
    #[cfg(feature = "redis")]
    pub(super) cluster: Option<Arc<crate::cluster::Cluster>>,
    pub(crate) attendance: Arc<Attendance>,
    /// Which channels' subscribers are to be told how many they are.
    pub(super) counts: Counts,
    pub(crate) hooks: Arc<Hooks>,
    /// The control thread's, once it runs.
    pub(crate) runtime: OnceLock<tokio::runtime::Handle>,
    /// Ends the bus connections of this process itself.
    pub(super) inner_bus_stop: watch::Sender<bool>,
    pub(crate) routes: Arc<Routes>,
    /// Whether any channel has a history: else no publication looks for its policy.
    pub(super) keeps_history: bool,
    /// Where any channel has `conflate_ms`.
    pub(super) windows: Option<Windows>,
    /// Where any channel has `resume_ms`.
    pub(super) pages: Option<Arc<Pages>>,
    /// Serialises "shard gains or loses a channel" with the broker call that follows from it;
    /// publications do not take it.
    pub(super) membership: Box<[Mutex<()>]>,
    pub(crate) started: Instant,
    pub(crate) connections: AtomicUsize,
    pub(crate) refused: AtomicU64,
    /// Bodies of API requests under way.
    pub(crate) bodies: api::Bodies,
    pub(crate) bus_errors: AtomicU64,
    pub(crate) bus_refused: AtomicU64,
    /// Sockets that the host has accepted, on their way to the control thread.
    pub(super) arriving: mpsc::Sender<TcpStream>,
    pub(super) published: AtomicU64,
    pub(super) queue_full: AtomicU64,
    pub(super) stopping: AtomicBool,
    /// Asked when a peer on the bus wants the hub to live as long as a process.
    pub(crate) follow: Option<Follow>,
}

/// Whether the hub will live as long as the process with this number.
pub(crate) type Follow = Box<dyn Fn(u32) -> bool + Send + Sync>;

/// A shard as others see it.
pub(crate) struct ShardHandle {
    pub(crate) inbox: Arc<Inbox<Job>>,
    pub(crate) counters: ShardCounters,
    /// Set when a fault of the hub has ended the shard: it gets no more connections.
    pub(super) failed: AtomicBool,
}

impl Node {
    pub(crate) fn channel_ref<'a>(&self, name: &'a str) -> ChannelRef<'a> {
        ChannelRef::new(name)
    }

    fn membership(&self, hash: u64) -> &Mutex<()> {
        &self.membership[hash as usize % self.membership.len()]
    }

    /// A shard begins to hear a channel: first the interest, then the position, so that nothing
    /// falls between (contract of [`Broker::subscribe`]).
    pub(crate) fn gain_interest(&self, name: ChannelRef<'_>, shard: usize) -> (Channel, Arc<ChannelLoad>, Reply<Position>) {
        let _serial = self.membership(name.hash).lock();
        let (channel, load) = self.routes.interest.add(name, shard);
        let reply = self.broker.subscribe(channel.scoped());
        (channel, load, reply)
    }

    /// A shard no longer hears a channel.
    pub(crate) fn lose_interest(&self, channel: &Channel, shard: usize) {
        let _serial = self.membership(channel.hash()).lock();
        if self.routes.interest.remove(channel, shard) {
            self.broker.unsubscribe(channel.scoped());
            self.attendance.presence.unwatch(channel.scoped());
        }
    }

    pub(super) fn load(&self, channel: &str) -> Option<Arc<ChannelLoad>> {
        // Below this no channel can have used up its share, and nobody needs to look.
        if !self.routes.ingress.is_busy() {
            return None;
        }
        self.routes.interest.with(self.channel_ref(channel), |heard| heard.load.clone())
    }

    pub(crate) fn check(&self, publish: &Publish<'_>) -> Result<(), PublishError> {
        publish.check(self.config.limits.publication_bytes)
    }

    pub(super) fn publish(&self, publish: &Publish<'_>, wait: Duration) -> Result<Reply<Published>, PublishError> {
        self.check(publish)?;
        if self.stopping.load(Ordering::Relaxed) {
            return Err(PublishError::Stopped);
        }
        let channel = self.apps.scope_named(publish.app, publish.channel)?;
        if let Err(Full { queued, limit, waited }) = self.routes.ingress.wait_for_room(self.load(&channel).as_deref(), wait) {
            self.queue_full.fetch_add(1, Ordering::Relaxed);
            return Err(PublishError::QueueFull { queued_bytes: queued, limit, waited });
        }
        let retention = if self.keeps_history { self.config.retention_of(publish.channel, publish.event) } else { None };
        let hashed = Publish { channel: &channel, hash: channel_hash(&channel), retention, ..*publish };
        let reply = match &self.windows {
            Some(windows) => self.publish_in_window(windows, publish.channel, &hashed),
            None => self.broker.publish(&hashed),
        };
        if !matches!(reply, Reply::Now(Ok(Published { repeated: true, .. }))) {
            self.published.fetch_add(1, Ordering::Relaxed);
        }
        Ok(reply)
    }

    /// Publishes without waiting for room; for shards.
    pub(crate) fn try_publish(&self, publish: &Publish<'_>) -> Result<Reply<Published>, PublishError> {
        self.publish(publish, Duration::ZERO)
    }

    /// A shard has ended that was not told to. Its connections are gone, and come back to the others; publications no longer wait
    /// for it.
    pub(super) fn shard_failed(&self, index: usize) {
        let shard = &self.shards[index];
        tracing::error!(shard = index, "a shard has failed; its connections are closed");
        shard.failed.store(true, Ordering::Relaxed);
        shard.inbox.close();
        self.users.clear(index);
        self.watchlists.clear(index);
    }

    pub(super) fn has_failed(&self, shard: usize) -> bool {
        self.shards[shard].failed.load(Ordering::Relaxed)
    }

    /// Reads what is kept of a channel.
    pub(crate) fn read(&self, channel: &str, range: &Range) -> Reply<Page> {
        self.broker.read(channel, range)
    }

    pub(crate) fn tick(&self) {
        self.broker.tick();
        #[cfg(feature = "redis")]
        if let Some(cluster) = &self.cluster {
            cluster.tick();
        }
        if let Some(windows) = &self.windows {
            windows.tick(Instant::now());
        }
        if let Some(pages) = &self.pages {
            pages.forget(Instant::now());
        }
    }

    /// Lets go of users whose grace has passed, as long as it is polled.
    pub(crate) async fn keep_graces(&self) {
        loop {
            let alarm = self.attendance.alarm.notified();
            match self.attendance.presence.expire(Instant::now()) {
                None => alarm.await,
                Some(next) => drop(tokio::time::timeout_at(next.into(), alarm).await),
            }
        }
    }

    /// Whether publications can be taken and delivered.
    pub(crate) fn has_broker(&self) -> bool {
        self.broker.is_ready()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
