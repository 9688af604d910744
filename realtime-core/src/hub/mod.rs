//! The hub: a handle for hosts, shards that own connections, and what they share.
//!
//! A publication's path: [`Hub::publish`] checks it and waits for room → the broker gives it its
//! place → `Routes::deliver` looks up who hears the channel and queues it to those shards → each
//! shard batches, encodes once per format and writes (`fanout`, `shard`).

mod access;
mod commands;
mod connections;
mod counts;
mod delivery;
mod fanout;
pub(crate) mod hooks;
mod inbox;
mod ingress;
mod interest;
#[cfg(interleavings)]
pub mod interleavings;
mod lost_time;
mod manners;
pub(crate) mod others;
pub(crate) mod query;
mod recovery;
mod resume;
mod roster;
mod routes;
mod shard;
mod slices;
mod stats;
mod subscriptions;
pub(crate) mod tap;
mod watchlists;
mod windows;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc as mpsc_async, watch};

use crate::api;
use crate::apps::{AppId, Apps, UnknownApp};
use crate::auth::{Admission, Authenticator, Users};
use crate::broker::memory::Memory;
use crate::broker::{Broker, Published, Reply};
use crate::bus;
use crate::bus::address::BusAddress;
use crate::bus::server::Peer;
use crate::bus::server::{BusServer, Listeners};
use crate::bus::socket::BusSocket;
use crate::bus::tls::Certificate;
use crate::close::is_application_code;
use crate::config::Config;
#[cfg(not(feature = "redis"))]
use crate::config::ConfigError;
use crate::error::{BrokerError, PublishError, QueryError, StartError};
use crate::history::{self, History, Page, Range};
use crate::hooks::Hooks;
use crate::message::{
    Channel, ChannelInfo, ChannelRef, ChannelUser, Payload, Position, Publish, Receipt, SocketId, User, channel_hash, validate_channel,
};
use crate::patience::Patience;
use crate::presence::{self, Presence};
use crate::protocol::native::Native;
use crate::protocol::pusher::Pusher;
use crate::protocol::{Command, Format, Opening, Protocol};
use crate::sync::Mutex;
use crate::transport::link::{Link, SinkLink};
use crate::transport::websocket::WebSocket;
use crate::transport::{FrameSink, Framing, http};
use inbox::Inbox;
use ingress::{ChannelLoad, Full};
use query::Query;
use roster::Attendance;
use routes::Routes;
use shard::{Accepted, Job, Poller, Shard};
use stats::ShardCounters;
pub use stats::Stats;
use windows::Windows;

/// Sockets that the host may hand over before the control thread has taken them.
const ARRIVING: usize = 4_096;
/// How long a stop waits for the bus at least.
const BUS_GRACE: Duration = Duration::from_millis(100);
/// How long a question to the shards may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long threads may take to end when the time of a stop is over.
const LAST_TURN: Duration = Duration::from_secs(1);
/// Longest reason in a close frame (RFC 6455 section 5.5).
const MAX_REASON_BYTES: usize = 123;

/// What shards, transport and handle share.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) apps: Apps,
    pub(crate) auth: Authenticator,
    users: Users,
    /// Who of them are watched, and by whom.
    watchlists: watchlists::Watchlists,
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
    broker: Arc<dyn Broker>,
    /// The hubs that share the broker.
    #[cfg(feature = "redis")]
    cluster: Option<Arc<crate::cluster::Cluster>>,
    pub(crate) attendance: Arc<Attendance>,
    /// Which channels' subscribers are to be told how many they are.
    counts: counts::Counts,
    pub(crate) hooks: Arc<Hooks>,
    /// The control thread's, once it runs.
    pub(crate) runtime: OnceLock<tokio::runtime::Handle>,
    /// Ends the bus connections of this process itself.
    inner_bus_stop: watch::Sender<bool>,
    pub(crate) routes: Arc<Routes>,
    /// Whether any channel has a history: else no publication looks for its policy.
    keeps_history: bool,
    /// Where any channel has `conflate_ms`.
    windows: Option<Windows>,
    /// Where any channel has `resume_ms`.
    pub(super) pages: Option<Arc<resume::Pages>>,
    /// Serialises "shard gains or loses a channel" with the broker call that follows from it;
    /// publications do not take it.
    membership: Box<[Mutex<()>]>,
    pub(crate) started: Instant,
    pub(crate) connections: AtomicUsize,
    pub(crate) refused: AtomicU64,
    /// Bodies of API requests under way.
    pub(crate) bodies: api::Bodies,
    pub(crate) bus_errors: AtomicU64,
    pub(crate) bus_refused: AtomicU64,
    /// Sockets that the host has accepted, on their way to the control thread.
    arriving: mpsc_async::Sender<TcpStream>,
    published: AtomicU64,
    queue_full: AtomicU64,
    stopping: AtomicBool,
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
    failed: AtomicBool,
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

    fn load(&self, channel: &str) -> Option<Arc<ChannelLoad>> {
        // Below this no channel can have used up its share, and nobody needs to look.
        if !self.routes.ingress.is_busy() {
            return None;
        }
        self.routes.interest.with(self.channel_ref(channel), |heard| heard.load.clone())
    }

    pub(crate) fn check(&self, publish: &Publish<'_>) -> Result<(), PublishError> {
        publish.check(self.config.limits.publication_bytes)
    }

    fn publish(&self, publish: &Publish<'_>, wait: Duration) -> Result<Reply<Published>, PublishError> {
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

    /// The shard with the fewest connections, with a place on it taken; `None` when the hub is full.
    pub(crate) fn place(&self) -> Option<usize> {
        let taken = self.connections.fetch_add(1, Ordering::Relaxed);
        if taken >= self.config.limits.max_connections {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let working = self.shards.iter().enumerate().filter(|(_, shard)| !shard.failed.load(Ordering::Relaxed));
        let Some((index, shard)) = working.min_by_key(|(_, shard)| shard.counters.connections.load(Ordering::Relaxed)) else {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        shard.counters.connections.fetch_add(1, Ordering::Relaxed);
        Some(index)
    }

    /// A panic outside a connection's handler has ended a shard. Its connections are gone, and come
    /// back to the others; publications no longer wait for it.
    fn shard_failed(&self, index: usize) {
        let shard = &self.shards[index];
        tracing::error!(shard = index, "a shard has failed; its connections are closed");
        shard.failed.store(true, Ordering::Relaxed);
        shard.counters.panics.fetch_add(1, Ordering::Relaxed);
        shard.inbox.close();
        self.users.clear(index);
        self.watchlists.clear(index);
        self.connections.fetch_sub(shard.counters.connections.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Gives a place back that no connection took.
    pub(crate) fn give_back(&self, shard: usize) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.shards[shard].counters.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Hands a connection to the shard on which it has a place.
    pub(crate) fn hand_over(&self, shard: usize, link: Box<dyn Link>, format: u16, opening: Opening, admission: Admission, early: Bytes) {
        if !self.shards[shard].inbox.push(Job::Accept(Box::new(Accepted { link, format, opening, admission, early }))) {
            self.give_back(shard);
        }
    }
}

/// Chooses what a hub is made of.
pub struct HubBuilder {
    config: Config,
    broker: Option<Arc<dyn Broker>>,
    presence: Option<Arc<dyn Presence>>,
    formats: Vec<Format>,
    listener: Option<TcpListener>,
    bus_listener: Option<UnixListener>,
    bus_socket: Option<BusSocket>,
    follow: Option<Follow>,
}

impl HubBuilder {
    /// The protocols of this crate and the memory broker.
    pub fn new(config: Config) -> Self {
        let pusher = Pusher::new(config.heartbeat.activity_timeout_ms);
        let builder = HubBuilder {
            config,
            broker: None,
            presence: None,
            formats: Vec::new(),
            listener: None,
            bus_listener: None,
            bus_socket: None,
            follow: None,
        };
        builder.protocol(Native, WebSocket).protocol(pusher, WebSocket)
    }

    /// Adds a protocol that is spoken over a framing. Requests are offered to protocols in the
    /// order in which they were added, the native one first.
    pub fn protocol(mut self, protocol: impl Protocol, framing: impl Framing) -> Self {
        self.formats.push(Format { protocol: Arc::new(protocol), framing: Arc::new(framing) });
        self
    }

    /// Replaces the memory broker.
    pub fn broker(mut self, broker: Arc<dyn Broker>) -> Self {
        self.broker = Some(broker);
        self
    }

    /// Replaces the presence of this process alone.
    pub fn presence(mut self, presence: Arc<dyn Presence>) -> Self {
        self.presence = Some(presence);
        self
    }

    /// Serves clients on a listener that is bound already, by a supervisor for example. It takes
    /// the place of `listen`: the rule that an address which others can reach needs its
    /// `auth.mode` holds for the listener's.
    pub fn listener(mut self, listener: TcpListener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Serves the bus on a listener that is bound already; `socket` and `socket_mode` are not
    /// looked at. Its file is neither locked nor removed, and what connects while no hub accepts
    /// waits for the next one.
    pub fn bus_listener(mut self, listener: UnixListener) -> Self {
        self.bus_listener = Some(listener);
        self
    }

    /// Serves the bus on a socket that is bound already and belongs to the hub from here on; `socket` and `socket_mode`
    /// are not looked at.
    pub fn bus_socket(mut self, socket: BusSocket) -> Self {
        self.bus_socket = Some(socket);
        self
    }

    /// What to do when a peer of the hub's own user asks it to live as long as a process; true: it will. Called on the
    /// bus' thread, which it must not hold up. Without it the hub lives for its own sake.
    pub fn on_follow(mut self, follow: impl Fn(u32) -> bool + Send + Sync + 'static) -> Self {
        self.follow = Some(Box::new(follow));
        self
    }

    /// Binds, starts the threads and returns once the hub listens.
    ///
    /// Threads inherit the caller's signal mask: a host with signal handlers blocks all signals
    /// around this call.
    pub fn start(self) -> Result<Hub, StartError> {
        let Assembled { node, pollers, listeners, arriving, bus_listeners } = self.assemble()?;
        match start_threads(&node, pollers, listeners, arriving, bus_listeners) {
            Ok(running) => Ok(Hub(Arc::new(HubInner { node, running: Mutex::new(Some(running)) }))),
            Err(error) => {
                // Those that have started must not go on for a hub that is not there.
                node.stopping.store(true, Ordering::Relaxed);
                for shard in &node.shards {
                    shard.inbox.push(Job::Drain { deadline: Instant::now() });
                }
                Err(error.into())
            }
        }
    }

    /// Everything but the threads.
    fn assemble(self) -> Result<Assembled, StartError> {
        let HubBuilder { mut config, broker, presence, formats, listener, bus_listener, bus_socket, follow } = self;
        if let Some(listener) = &listener {
            config.listen = listener.local_addr()?.to_string();
        }
        config.validate()?;
        let (auth, trusted_proxies) = (Authenticator::new(&config)?, config.trusted_networks()?);
        let listener = match listener {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                listener
            }
            None => {
                let address = config.listen_address()?;
                http::bind(address).map_err(|source| StartError::Bind { address, source })?
            }
        };
        let local_addr = listener.local_addr()?;
        let monitoring = match config.monitoring.address()? {
            Some(address) => Some(http::bind(address).map_err(|source| StartError::Bind { address, source })?),
            None => None,
        };
        let monitoring_addr = monitoring.as_ref().map(TcpListener::local_addr).transpose()?;
        let (path, tcp) = config.bus_addresses()?;
        let bus_socket = match (bus_socket, bus_listener, path) {
            (Some(socket), ..) => Some(socket),
            (None, Some(listener), _) => Some(BusSocket::activated(listener)?),
            (None, None, None) => None,
            (None, None, Some(path)) => Some(BusSocket::bind(&path, config.socket_mode()?)?),
        };
        let bus_tls =
            tcp.as_ref().filter(|address| matches!(address, BusAddress::Tls(_))).map(|_| Certificate::load(&config)).transpose()?;
        let bus_tcp = tcp.map(|address| bus::bind(&address)).transpose()?;
        let bus_addr = bus_tcp.as_ref().map(std::net::TcpListener::local_addr).transpose()?;
        let bus_listeners = Listeners { socket: bus_socket, tcp: bus_tcp, tls: bus_tls };
        let shared = match broker {
            Some(broker) => Shared::alone(broker),
            None if !config.broker.url.is_empty() => remote(&config)?,
            None => {
                let limits = &config.limits;
                Shared::alone(Arc::new(Memory::new(limits.idle_channels, limits.idempotency_keys, limits.history_bytes)?))
            }
        };
        let presence = presence.or(shared.presence).unwrap_or_else(|| Arc::new(presence::memory::Memory::default()));
        let count = match config.shards {
            0 => thread::available_parallelism().map_or(1, |cores| cores.get().min(64)),
            count => count,
        };
        let mut pollers = Vec::new();
        let mut shards = Vec::new();
        for _ in 0..count {
            let poll = Poller::new()?;
            let inbox = Arc::new(Inbox::new(poll.registry(), shard::WAKE)?);
            pollers.push((poll, inbox.clone()));
            shards.push(ShardHandle { inbox, counters: ShardCounters::new(formats.len()), failed: AtomicBool::new(false) });
        }
        let (to_control, arriving) = mpsc_async::channel(ARRIVING);
        let hooks = Arc::new(Hooks::new(&config)?);
        let node = Arc::new(Node {
            routes: Arc::new(Routes::new(
                shards.iter().map(|shard: &ShardHandle| shard.inbox.clone()).collect(),
                config.limits.ingress_bytes,
                hooks.clone(),
            )),
            hooks,
            runtime: OnceLock::new(),
            inner_bus_stop: watch::channel(false).0,
            formats,
            shards,
            broker: shared.broker,
            #[cfg(feature = "redis")]
            cluster: shared.cluster,
            windows: config.channels.iter().any(|policy| policy.conflate_ms > 0).then(|| Windows::new(config.limits.ingress_bytes)),
            pages: config
                .channels
                .iter()
                .any(|policy| policy.resume_ms > 0)
                .then(|| Arc::new(resume::Pages::new(config.limits.resume_bytes, config.limits.max_subscriptions))),
            keeps_history: config.speaks_pusher() || config.channels.iter().any(|policy| policy.retention().is_some()),
            attendance: Arc::new(Attendance { presence, alarm: Notify::new() }),
            counts: counts::Counts::default(),
            membership: (0..64).map(|_| Mutex::default()).collect(),
            started: Instant::now(),
            connections: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            bodies: api::Bodies::default(),
            bus_errors: AtomicU64::new(0),
            bus_refused: AtomicU64::new(0),
            arriving: to_control,
            published: AtomicU64::new(0),
            queue_full: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            follow,
            local_addr,
            monitoring_addr,
            bus_addr,
            apps: Apps::new(&config.apps),
            auth,
            users: Users::new(config.limits.max_user_connections, count),
            watchlists: watchlists::Watchlists::new(Duration::from_millis(config.presence_grace_ms), config.limits.watches, count),
            trusted_proxies,
            config,
        });
        node.broker.start(node.routes.clone())?;
        node.attendance.presence.start(node.routes.clone())?;
        #[cfg(feature = "redis")]
        if let Some(cluster) = &node.cluster {
            cluster.start(&node);
        }
        let listeners = http::Listeners { clients: listener, monitoring };
        Ok(Assembled { node, pollers, listeners, arriving, bus_listeners })
    }
}

/// What a hub shares with others, or could.
struct Shared {
    broker: Arc<dyn Broker>,
    presence: Option<Arc<dyn Presence>>,
    #[cfg(feature = "redis")]
    cluster: Option<Arc<crate::cluster::Cluster>>,
}

impl Shared {
    fn alone(broker: Arc<dyn Broker>) -> Self {
        Shared {
            broker,
            presence: None,
            #[cfg(feature = "redis")]
            cluster: None,
        }
    }
}

/// A hub whose threads have yet to be started.
struct Assembled {
    node: Arc<Node>,
    pollers: Vec<(Poller, Arc<Inbox<Job>>)>,
    listeners: http::Listeners,
    arriving: mpsc_async::Receiver<TcpStream>,
    bus_listeners: Listeners,
}

#[cfg(feature = "redis")]
fn remote(config: &Config) -> Result<Shared, StartError> {
    let broker = Arc::new(crate::broker::redis::Redis::of_hub(config)?);
    Ok(Shared {
        presence: Some(Arc::new(presence::redis::Redis::new(broker.clone()))),
        cluster: Some(crate::cluster::Cluster::new(broker.clone())),
        broker,
    })
}

#[cfg(not(feature = "redis"))]
fn remote(_: &Config) -> Result<Shared, StartError> {
    let reason = "this hub was built without brokers of many nodes".to_owned();
    Err(ConfigError::InvalidValue { key: "broker.url".into(), reason }.into())
}

fn start_threads(
    node: &Arc<Node>,
    pollers: Vec<(Poller, Arc<Inbox<Job>>)>,
    listeners: http::Listeners,
    arriving: mpsc_async::Receiver<TcpStream>,
    bus_listeners: Listeners,
) -> std::io::Result<Running> {
    let (ended, endings) = mpsc::channel();
    let mut threads = Vec::new();
    for (index, (poll, inbox)) in pollers.into_iter().enumerate() {
        let shard = Shard::new(index, node.clone(), inbox, poll);
        let node = node.clone();
        threads.push(spawn(format!("rt-shard-{index}"), &ended, move || {
            if catch_unwind(AssertUnwindSafe(|| shard.run())).is_err() {
                node.shard_failed(index);
            }
        })?);
    }
    let (control, control_stop) = http::Control::new(node.clone(), listeners, arriving)?;
    threads.push(spawn("rt-control".into(), &ended, move || control.run())?);
    let bus = if bus_listeners.socket.is_none() && bus_listeners.tcp.is_none() {
        None
    } else {
        let (server, stop) = BusServer::new(node.clone(), bus_listeners)?;
        let (ended, ending) = mpsc::channel();
        Some(Bus { stop, ending, thread: spawn("rt-bus".into(), &ended, move || server.run())? })
    };
    Ok(Running { threads, endings, control_stop, bus })
}

fn spawn(name: String, ended: &Sender<()>, work: impl FnOnce() + Send + 'static) -> std::io::Result<thread::JoinHandle<()>> {
    let ended = ended.clone();
    thread::Builder::new().name(name).spawn(move || {
        work();
        if ended.send(()).is_err() {
            tracing::debug!("nobody waits for this thread's end");
        }
    })
}

/// A running hub. Clones are handles to the same one; it runs until [`Hub::stop`] or until the last
/// handle is dropped, which stops it without waiting.
#[derive(Clone)]
pub struct Hub(Arc<HubInner>);

struct HubInner {
    node: Arc<Node>,
    /// What a stop takes.
    running: Mutex<Option<Running>>,
}

struct Running {
    threads: Vec<thread::JoinHandle<()>>,
    /// One message a thread that has ended.
    endings: Receiver<()>,
    control_stop: http::Stop,
    bus: Option<Bus>,
}

/// The bus' thread: it ends before the shards, so that what its peers have sent still goes out.
struct Bus {
    stop: bus::server::Stop,
    ending: Receiver<()>,
    thread: thread::JoinHandle<()>,
}

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopReport {
    /// Whether all threads have ended. If not they end by themselves, but later.
    pub complete: bool,
}

impl Hub {
    /// A hub with the native protocol and the memory broker; see [`HubBuilder::start`].
    pub fn start(config: Config) -> Result<Hub, StartError> {
        HubBuilder::new(config).start()
    }

    /// Where it listens, with the port that was given for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.node.local_addr
    }

    /// Where it is watched (`monitoring.listen`), if that is an address of its own, with the port that was given for port 0.
    pub fn monitoring_addr(&self) -> Option<SocketAddr> {
        self.0.node.monitoring_addr
    }

    /// Where the bus listens over TCP, if it does, with the port that was given for port 0.
    pub fn bus_addr(&self) -> Option<SocketAddr> {
        self.0.node.bus_addr
    }

    /// Where native clients connect.
    pub fn url(&self) -> String {
        let node = &self.0.node;
        format!("ws://{}{}/ws", node.local_addr, node.config.path)
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &Config {
        &self.0.node.config
    }

    /// Publishes to a channel. Waits for room in the ingress queue at most `publish_timeout_ms`;
    /// never waits for a subscriber. Must not be called from a hub thread.
    pub fn publish(&self, publish: &Publish<'_>) -> Result<Receipt, PublishError> {
        validate_channel(publish.channel)?;
        self.publish_checked(publish)
    }

    /// The app that hosts call `name`.
    pub fn app(&self, name: &str) -> Result<App<'_>, UnknownApp> {
        Ok(App { hub: self, id: self.0.node.apps.by_name(name)? })
    }

    /// Publishes to all connections of a user.
    pub fn publish_to_user(&self, user_id: &str, event: &str, payload: Payload<'_>, except: &[SocketId]) -> Result<Receipt, PublishError> {
        self.default_app().publish_to_user(user_id, event, payload, except)
    }

    fn default_app(&self) -> App<'_> {
        App { hub: self, id: AppId::DEFAULT }
    }

    fn publish_checked(&self, publish: &Publish<'_>) -> Result<Receipt, PublishError> {
        let node = &self.0.node;
        let timeout = node.config.publish_timeout();
        let published = match node.publish(publish, timeout)? {
            Reply::Now(result) => result,
            Reply::Later(promise) => promise.wait(timeout).ok_or(PublishError::Timeout { waited: timeout })?,
        };
        let published = published.map_err(|error| match error {
            BrokerError::Stopped => PublishError::Stopped,
            error => PublishError::Broker(error),
        })?;
        Ok(Receipt { position: published.position, matched: published.matched })
    }

    /// The users who are subscribed to a channel, ordered by id. Waits at most a second.
    pub fn channel_users(&self, channel: &str) -> Result<Vec<ChannelUser>, QueryError> {
        self.default_app().channel_users(channel)
    }

    /// How many users are subscribed to a channel. Waits at most a second.
    pub fn count_users(&self, channel: &str) -> Result<usize, QueryError> {
        self.default_app().count_users(channel)
    }

    /// One of the users who are subscribed to a channel. Waits at most a second.
    pub fn channel_user(&self, channel: &str, id: &str) -> Result<Option<ChannelUser>, QueryError> {
        self.default_app().channel_user(channel, id)
    }

    /// What is kept of a channel whose policy has `history` or `last_value`. Waits at most a second.
    pub fn history(&self, channel: &str, query: &history::Query) -> Result<History, QueryError> {
        self.default_app().history(channel, query)
    }

    /// Closes all connections of a user with a code of the application's choice; says how many.
    pub fn disconnect_user(&self, user_id: &str, code: u16, reason: &str) -> Result<usize, QueryError> {
        self.default_app().disconnect_user(user_id, code, reason)
    }

    /// Closes all connections of a user, and keeps the user out for so long whatever credential
    /// comes; says how many were closed. A hub that starts later, or did not hear it, knows nothing of the ban.
    pub fn ban_user(&self, user_id: &str, duration: Duration, code: u16, reason: &str) -> Result<usize, QueryError> {
        self.default_app().ban_user(user_id, duration, code, reason)
    }

    /// Says whose a connection is; `None` makes it nobody's. What a credential has said of it is
    /// over. False: there is no such connection, the user has as many as the limit allows, or the
    /// broker failed, and then the connection is nobody's.
    pub fn set_user(&self, socket: SocketId, user: Option<User>) -> Result<bool, QueryError> {
        self.default_app().set_user(socket, user)
    }

    /// The channels with subscribers on this hub, ordered by name.
    pub fn channels(&self) -> Vec<ChannelInfo> {
        self.default_app().channels()
    }

    /// The hubs that share a broker, this one first (`hubs`: `id`, `host`, `pid`, `listen`, `version`, `uptime_ms`,
    /// `connections`, `channels`), and the ids of those that did not answer in time (`missing`). Waits at most a second.
    pub fn cluster(&self) -> Result<serde_json::Value, QueryError> {
        self.0.node.cluster_status()
    }

    /// What has been counted since the start.
    pub fn stats(&self) -> Stats {
        self.0.node.stats()
    }

    /// A connection on the bus to this hub, for programs of this process that use it as others do:
    /// see [`crate::bus::client::Client::over`]. It ends with the hub.
    pub fn open_bus(&self) -> io::Result<std::os::unix::net::UnixStream> {
        let node = &self.0.node;
        let runtime = node.runtime.get().ok_or(io::ErrorKind::NotConnected)?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        let (node, stop) = (node.clone(), node.inner_bus_stop.subscribe());
        runtime.spawn(async move {
            match tokio::net::UnixStream::from_std(theirs) {
                Ok(stream) => Peer::local(node, stream).run(stop).await,
                Err(error) => tracing::error!(%error, "cannot serve this process on the bus"),
            }
        });
        Ok(ours)
    }

    /// Acknowledges the event with the number `done` and waits for the next one of those that are
    /// queued for workers (`hooks.events`): a JSON object with `number`, `attempt`, `dropped` and
    /// `event`. `None`: there was none in time.
    pub fn next_event(&self, done: Option<u64>, timeout: Duration) -> Result<Option<String>, QueryError> {
        let queue = self.0.node.hooks.queue.as_ref().ok_or(QueryError::NoEvents)?;
        queue.quiet();
        Ok(queue.next(done, timeout).and_then(|leased| serde_json::to_string(&leased).ok()))
    }

    /// A descriptor for a host's own loop: readable when [`Hub::next_event`] may have something. That call
    /// with a timeout of zero, until it has nothing, makes it wait again. It belongs to the hub.
    pub fn event_descriptor(&self) -> Result<BorrowedFd<'_>, QueryError> {
        let queue = self.0.node.hooks.queue.as_ref().ok_or(QueryError::NoEvents)?;
        queue.descriptor().map_err(|error| {
            tracing::error!(%error, "no descriptor for events");
            QueryError::NoEvents
        })
    }

    /// Acknowledges an event without asking for the next one.
    pub fn event_done(&self, number: u64) {
        if let Some(queue) = &self.0.node.hooks.queue {
            queue.done(number);
        }
    }

    /// Gives an event back that was not acknowledged: somebody else gets it.
    pub fn give_event_back(&self, number: u64) {
        if let Some(queue) = &self.0.node.hooks.queue {
            queue.give_back(number);
        }
    }

    /// Whether [`Hub::stop`] has not been called.
    pub fn is_running(&self) -> bool {
        !self.0.node.stopping.load(Ordering::Relaxed)
    }

    /// Moves a connection to another shard without its client noticing. False: it is not here, or
    /// it is closing, or joins a channel just now.
    ///
    /// # Panics
    ///
    /// Never; a shard number that does not exist is taken modulo their count.
    pub fn move_connection(&self, socket: SocketId, to: usize) -> Result<bool, QueryError> {
        let node = &self.0.node;
        let to = to % node.shards.len();
        let described = node.ask(|answer| Query::Describe { socket, answer })?;
        let Some((from, channels)) = described.into_iter().enumerate().find_map(|(shard, names)| Some((shard, names?))) else {
            return Ok(false);
        };
        if from == to {
            return Ok(true);
        }
        // Half of what the questions may take, so that an answer that is given is also heard.
        let deadline = Instant::now() + QUERY_TIMEOUT / 2;
        let forget = |channels: Vec<String>| node.shards[to].inbox.push(Query::Forget { channels }.into());
        if let Err(error) = node.ask_one(to, |answer| Query::Expect { channels: channels.clone(), answer }) {
            // It may only be late, and stands in the queue before this.
            forget(channels);
            return Err(error);
        }
        let reached = node.ask_one(to, |answer| Query::Positions { channels: channels.clone(), deadline, answer });
        let reached = match reached {
            Ok(reached) => reached,
            Err(error) => {
                forget(channels);
                return Err(error);
            }
        };
        let frozen = match node.ask_one(from, |answer| Query::Freeze { socket, reached, deadline, answer }) {
            Ok(Some(frozen)) => frozen,
            Ok(None) => {
                forget(channels);
                return Ok(false);
            }
            Err(error) => {
                forget(channels);
                return Err(error);
            }
        };
        node.shards[from].counters.connections.fetch_sub(1, Ordering::Relaxed);
        node.shards[to].counters.connections.fetch_add(1, Ordering::Relaxed);
        node.ask_one(to, |answer| Query::Thaw { frozen: Box::new(frozen), expected: channels, answer })
    }

    /// Adds a connection that only receives, through a sink of the host's: native frames of these
    /// channels. For measurements and for hosts with transports of their own.
    pub fn attach_sink(&self, channels: &[&str], sink: Box<dyn FrameSink>) -> Result<(), QueryError> {
        channels.iter().try_for_each(|channel| validate_channel(channel))?;
        let node = &self.0.node;
        let Some(shard) = node.place() else { return Err(QueryError::Stopped) };
        let subscribe = |channel: &&str| Command::Subscribe { id: None, channel: (*channel).to_owned(), recover: None, credentials: None };
        let opening = Opening { commands: channels.iter().map(subscribe).collect(), ..Opening::default() };
        node.hand_over(shard, Box::new(SinkLink(sink)), 0, opening, Admission::Nobody, Bytes::new());
        Ok(())
    }

    /// Serves a client that the host has accepted, from its HTTP request on. A socket that is not
    /// taken is given back.
    pub fn accept(&self, stream: TcpStream) -> Result<(), (QueryError, TcpStream)> {
        if let Err(error) = stream.set_nonblocking(true) {
            tracing::warn!(%error, "cannot take a socket over");
            return Err((QueryError::Stopped, stream));
        }
        self.0.node.arriving.try_send(stream).map_err(|error| match error {
            mpsc_async::error::TrySendError::Full(stream) => (QueryError::Timeout { waited: Duration::ZERO }, stream),
            mpsc_async::error::TrySendError::Closed(stream) => (QueryError::Stopped, stream),
        })
    }

    /// Stops: no new connections and publications; what was accepted goes out; clients are closed
    /// with 1001 and have until the timeout to take it. Blocks that long at most; a second call
    /// returns at once.
    pub fn stop(&self, timeout: Duration) -> StopReport {
        let Some(running) = self.0.running.lock().take() else { return StopReport { complete: true } };
        let deadline = Instant::now() + timeout;
        let mut complete = true;
        if let Some(Bus { stop, ending, thread }) = running.bus {
            stop.stop();
            // Even without a timeout: its path should be free for the next hub.
            complete = ending.recv_timeout((timeout / 2).max(BUS_GRACE)).is_ok() && thread.join().is_ok();
        }
        self.0.node.begin_stop(&running.control_stop, deadline);
        // The shards' own deadline comes first, so that this wait sees them end.
        let mut patience = Patience::new(deadline.saturating_duration_since(Instant::now()) + LAST_TURN);
        for _ in 0..running.threads.len() {
            if patience.wait(|part| running.endings.recv_timeout(part).ok()).is_none() {
                return StopReport { complete: false };
            }
        }
        for handle in running.threads {
            complete &= handle.join().is_ok();
        }
        StopReport { complete }
    }
}

/// One app of a hub: the same operations on its channels and users. Those of [`Hub`] itself mean the
/// default app.
#[derive(Clone, Copy)]
pub struct App<'a> {
    hub: &'a Hub,
    id: AppId,
}

impl App<'_> {
    /// See [`Hub::publish`]; the app is this one, whatever `publish` names.
    pub fn publish(&self, publish: &Publish<'_>) -> Result<Receipt, PublishError> {
        validate_channel(publish.channel)?;
        self.publish_checked(publish)
    }

    /// See [`Hub::publish_to_user`].
    pub fn publish_to_user(&self, user_id: &str, event: &str, payload: Payload<'_>, except: &[SocketId]) -> Result<Receipt, PublishError> {
        User::new(user_id, None)?;
        let channel = User::channel_name(user_id);
        self.publish_checked(&Publish { except, ..Publish::new(&channel, event, payload) })
    }

    fn publish_checked(&self, publish: &Publish<'_>) -> Result<Receipt, PublishError> {
        let app = (self.id != AppId::DEFAULT).then(|| self.hub.0.node.apps.of(self.id).name());
        self.hub.publish_checked(&Publish { app, ..*publish })
    }

    /// See [`Hub::channel_users`].
    pub fn channel_users(&self, channel: &str) -> Result<Vec<ChannelUser>, QueryError> {
        self.hub.0.node.channel_users(self.id, channel)
    }

    /// See [`Hub::count_users`].
    pub fn count_users(&self, channel: &str) -> Result<usize, QueryError> {
        self.hub.0.node.count_users(self.id, channel)
    }

    /// See [`Hub::channel_user`].
    pub fn channel_user(&self, channel: &str, id: &str) -> Result<Option<ChannelUser>, QueryError> {
        self.hub.0.node.channel_user(self.id, channel, id)
    }

    /// See [`Hub::history`].
    pub fn history(&self, channel: &str, query: &history::Query) -> Result<History, QueryError> {
        self.hub.0.node.read_history(self.id, channel, query)
    }

    /// See [`Hub::disconnect_user`].
    pub fn disconnect_user(&self, user_id: &str, code: u16, reason: &str) -> Result<usize, QueryError> {
        self.hub.0.node.disconnect_user(self.id, user_id, code, reason)
    }

    /// See [`Hub::ban_user`].
    pub fn ban_user(&self, user_id: &str, duration: Duration, code: u16, reason: &str) -> Result<usize, QueryError> {
        self.hub.0.node.ban_user(self.id, user_id, duration, code, reason)
    }

    /// See [`Hub::set_user`]; a connection of another app is not found.
    pub fn set_user(&self, socket: SocketId, user: Option<User>) -> Result<bool, QueryError> {
        self.hub.0.node.set_user(self.id, socket, user)
    }

    /// See [`Hub::channels`].
    pub fn channels(&self) -> Vec<ChannelInfo> {
        self.hub.0.node.channels_here(self.id)
    }
}

fn check_disconnect(user_id: &str, code: u16, reason: &str) -> Result<(), QueryError> {
    User::new(user_id, None)?;
    if !is_application_code(code) {
        return Err(QueryError::InvalidCloseCode { code });
    }
    if reason.len() > MAX_REASON_BYTES {
        return Err(QueryError::ReasonTooLong { bytes: reason.len(), limit: MAX_REASON_BYTES });
    }
    Ok(())
}

/// A user who is found in several places has the connections of all, and the info of the first. Ordered by id.
fn merged(found: impl Iterator<Item = ChannelUser>) -> Vec<ChannelUser> {
    let mut users: HashMap<String, ChannelUser> = HashMap::new();
    for found in found {
        let known = users.entry(found.user.id().to_owned());
        known.and_modify(|known| known.connections = known.connections.saturating_add(found.connections)).or_insert(found);
    }
    let mut users: Vec<_> = users.into_values().collect();
    users.sort_by(|a, b| a.user.id().cmp(b.user.id()));
    users
}

fn receive<T>(receiver: &Receiver<T>, patience: &mut Patience) -> Result<T, QueryError> {
    let received = patience.wait(|part| match receiver.recv_timeout(part) {
        Ok(answer) => Some(Ok(answer)),
        Err(mpsc::RecvTimeoutError::Timeout) => None,
        Err(mpsc::RecvTimeoutError::Disconnected) => Some(Err(QueryError::Stopped)),
    });
    received.unwrap_or(Err(QueryError::Timeout { waited: QUERY_TIMEOUT }))
}

impl Node {
    /// The users who are subscribed to a channel, ordered by id. Waits at most a second.
    pub(crate) fn channel_users(&self, app: AppId, channel: &str) -> Result<Vec<ChannelUser>, QueryError> {
        validate_channel(channel)?;
        if self.shows(channel) {
            return self.presence_answer(self.attendance.presence.users(&self.apps.scope(app, channel)));
        }
        let asking = self.ask_others(|| others::Question::ChannelUsers { app: self.app_name(app), channel: channel.to_owned() })?;
        let mut users = self.channel_users_here(app, channel)?;
        let elsewhere = others::users_of(others::wait(asking));
        if !elsewhere.is_empty() {
            users = merged(users.into_iter().chain(elsewhere));
        }
        Ok(users)
    }

    /// Those who are on this hub, whatever the channel shows.
    fn channel_users_here(&self, app: AppId, channel: &str) -> Result<Vec<ChannelUser>, QueryError> {
        let channel = self.apps.scope(app, channel);
        let parts = self.ask(|answer| Query::ChannelUsers { channel: channel.clone().into_owned(), answer })?;
        Ok(merged(parts.into_iter().flatten()))
    }

    fn shows(&self, channel: &str) -> bool {
        self.config.room(channel).is_some_and(|rules| rules.shows)
    }

    /// How many users are subscribed to a channel. Waits at most a second.
    pub(crate) fn count_users(&self, app: AppId, channel: &str) -> Result<usize, QueryError> {
        validate_channel(channel)?;
        if self.shows(channel) {
            return self.presence_answer(self.attendance.presence.count(&self.apps.scope(app, channel)));
        }
        Ok(self.channel_users(app, channel)?.len())
    }

    /// One of the users who are subscribed to a channel. Waits at most a second.
    pub(crate) fn channel_user(&self, app: AppId, channel: &str, id: &str) -> Result<Option<ChannelUser>, QueryError> {
        validate_channel(channel)?;
        if self.shows(channel) {
            return self.presence_answer(self.attendance.presence.user(&self.apps.scope(app, channel), id));
        }
        Ok(self.channel_users(app, channel)?.into_iter().find(|found| found.user.id() == id))
    }

    fn presence_answer<T>(&self, reply: Reply<T>) -> Result<T, QueryError> {
        let answer = match reply {
            Reply::Now(answer) => answer,
            Reply::Later(promise) => promise.wait(QUERY_TIMEOUT).ok_or(QueryError::Timeout { waited: QUERY_TIMEOUT })?,
        };
        answer.map_err(QueryError::Presence)
    }

    /// Closes all connections of a user with a code of the application's choice; says how many.
    pub(crate) fn disconnect_user(&self, app: AppId, user_id: &str, code: u16, reason: &str) -> Result<usize, QueryError> {
        check_disconnect(user_id, code, reason)?;
        let question =
            || others::Question::DisconnectUser { app: self.app_name(app), user: user_id.to_owned(), code, reason: reason.to_owned() };
        let asking = self.ask_others(question);
        // Also where the others cannot be asked.
        let here = self.disconnect_here(app, user_id, code, reason)?;
        Ok(here.saturating_add(others::sum_of(&others::wait(asking?))))
    }

    fn disconnect_here(&self, app: AppId, user_id: &str, code: u16, reason: &str) -> Result<usize, QueryError> {
        check_disconnect(user_id, code, reason)?;
        if let Some(callback) = &self.auth.callback {
            callback.forget(self.apps.of(app).name(), user_id);
        }
        let counts = self.ask(|answer| Query::DisconnectUser { app, user: user_id.to_owned(), code, reason: reason.to_owned(), answer })?;
        Ok(counts.into_iter().sum())
    }

    /// See [`Hub::ban_user`].
    pub(crate) fn ban_user(&self, app: AppId, user_id: &str, duration: Duration, code: u16, reason: &str) -> Result<usize, QueryError> {
        check_disconnect(user_id, code, reason)?;
        let question = || others::Question::BanUser {
            app: self.app_name(app),
            user: user_id.to_owned(),
            ban_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            code,
            reason: reason.to_owned(),
        };
        let asking = self.ask_others(question);
        let here = self.ban_here(app, user_id, duration, code, reason)?;
        Ok(here.saturating_add(others::sum_of(&others::wait(asking?))))
    }

    fn ban_here(&self, app: AppId, user_id: &str, duration: Duration, code: u16, reason: &str) -> Result<usize, QueryError> {
        check_disconnect(user_id, code, reason)?;
        // First, so that whoever comes now is either banned or found.
        self.auth.bans.add(app, user_id, duration)?;
        self.disconnect_here(app, user_id, code, reason)
    }

    /// See [`Hub::set_user`].
    pub(crate) fn set_user(&self, app: AppId, socket: SocketId, user: Option<User>) -> Result<bool, QueryError> {
        let found = self.ask(|answer| Query::SetUser { app, socket, user: user.clone(), answer })?;
        Ok(found.into_iter().any(|here| here))
    }

    /// Subscriptions to a channel on this node.
    fn subscribers_here(&self, app: AppId, channel: &str) -> usize {
        let channel = self.apps.scope(app, channel);
        self.routes.interest.with(self.channel_ref(&channel), |heard| heard.load.subscribers.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// The channels with subscribers on this node, ordered by name.
    pub(crate) fn channels_here(&self, app: AppId) -> Vec<ChannelInfo> {
        let mut channels = Vec::new();
        let app = if app == AppId::DEFAULT { "" } else { self.apps.of(app).name() };
        self.routes.interest.for_each(|channel, subscribers| {
            if subscribers > 0 && channel.app() == app && !channel.is_internal() {
                channels.push(ChannelInfo { name: channel.name().to_owned(), subscribers });
            }
        });
        channels.sort_by(|a, b| a.name.cmp(&b.name));
        channels
    }

    /// Asks every shard; the answers are in the shards' order.
    fn ask<T>(&self, question: impl Fn(Sender<T>) -> Query) -> Result<Vec<T>, QueryError> {
        let receivers: Vec<_> = (0..self.shards.len()).map(|shard| self.send(shard, &question)).collect();
        let mut patience = Patience::new(QUERY_TIMEOUT);
        receivers.into_iter().map(|receiver| receive(&receiver, &mut patience)).collect()
    }

    fn ask_one<T>(&self, shard: usize, question: impl FnOnce(Sender<T>) -> Query) -> Result<T, QueryError> {
        let receiver = self.send(shard, question);
        receive(&receiver, &mut Patience::new(QUERY_TIMEOUT))
    }

    fn send<T>(&self, shard: usize, question: impl FnOnce(Sender<T>) -> Query) -> Receiver<T> {
        let (sender, receiver) = mpsc::channel();
        self.shards[shard].inbox.push(question(sender).into());
        receiver
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats {
            connections: self.connections.load(Ordering::Relaxed) as u64,
            published: self.published.load(Ordering::Relaxed),
            queue_full: self.queue_full.load(Ordering::Relaxed),
            ingress_bytes: self.routes.ingress.queued() as u64,
            history_bytes: self.broker.history_bytes() as u64,
            held_bytes: self.windows.as_ref().map_or(0, |windows| windows.held_bytes() as u64),
            resume_bytes: self.pages.as_ref().map_or(0, |pages| pages.away_bytes() as u64),
            conflated: self.windows.as_ref().map_or(0, |windows| windows.conflated.load(Ordering::Relaxed)),
            refused: self.refused.load(Ordering::Relaxed),
            bus_errors: self.bus_errors.load(Ordering::Relaxed),
            bus_refused: self.bus_refused.load(Ordering::Relaxed),
            events_dropped: self.hooks.dropped(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            panics: self.broker.failures(),
            ..Stats::default()
        };
        if let Some(callback) = &self.auth.callback {
            (stats.callbacks, stats.callbacks_queued) = callback.load();
        }
        self.routes.interest.for_each(|channel, subscribers| {
            stats.channels += u64::from(subscribers > 0 && !channel.is_internal());
        });
        for shard in &self.shards {
            stats.add(&shard.counters);
        }
        stats
    }

    /// Asks for what is kept of a channel.
    pub(crate) fn history(&self, app: AppId, channel: &str, query: &history::Query) -> Result<Reply<Page>, QueryError> {
        validate_channel(channel)?;
        if self.config.retention(channel).is_none() {
            return Err(QueryError::NoHistory { channel: channel.to_owned() });
        }
        if !(1..=history::MAX_LIMIT).contains(&query.limit) {
            return Err(QueryError::Limit { limit: query.limit, max: history::MAX_LIMIT });
        }
        // Written as JSON, escapes included, the answer still fits into an outbox.
        let bytes = self.config.limits.outbox_bytes / 8;
        Ok(self.read(&self.apps.scope(app, channel), &query.range(bytes)))
    }

    /// The same, with the answer. Waits at most a second.
    pub(crate) fn read_history(&self, app: AppId, channel: &str, query: &history::Query) -> Result<History, QueryError> {
        let page = match self.history(app, channel, query)? {
            Reply::Now(page) => page,
            Reply::Later(promise) => promise.wait(QUERY_TIMEOUT).ok_or(QueryError::Timeout { waited: QUERY_TIMEOUT })?,
        };
        page.map(|page| query.answer(page)).map_err(|error| match error {
            BrokerError::Stopped => QueryError::Stopped,
            error => QueryError::Broker(error),
        })
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

    fn begin_stop(self: &Arc<Self>, control_stop: &http::Stop, deadline: Instant) {
        self.stopping.store(true, Ordering::Relaxed);
        control_stop.stop(deadline);
        self.stop_publications(deadline);
    }

    /// What was accepted goes out, and then the shards end.
    fn stop_publications(self: &Arc<Self>, deadline: Instant) {
        if let Some(windows) = &self.windows {
            self.flush_windows(windows, true);
        }
        // They go through the broker.
        #[cfg(feature = "redis")]
        if let Some(cluster) = &self.cluster {
            cluster.stop();
        }
        self.attendance.presence.stop();
        self.broker.stop();
        if let Some(queue) = &self.hooks.queue {
            queue.stop();
        }
        self.inner_bus_stop.send_replace(true);
        for shard in &self.shards {
            shard.inbox.push(Job::Drain { deadline });
        }
    }
}

impl Drop for HubInner {
    fn drop(&mut self) {
        if let Some(running) = self.running.lock().take() {
            if let Some(bus) = &running.bus {
                bus.stop.stop();
            }
            self.node.begin_stop(&running.control_stop, Instant::now());
        }
    }
}
