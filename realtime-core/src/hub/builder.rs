//! What a hub is made of, before it runs.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};

use super::counts::Counts;
use super::handle::{Hub, HubInner};
use super::inbox::Inbox;
use super::node::{Follow, Node, ShardHandle};
use super::resume::Pages;
use super::roster::Attendance;
use super::routes::Routes;
use super::shard::{self, Job, Poller};
use super::stats::ShardCounters;
use super::threads::Running;
use super::watchlists::Watchlists;
use super::windows::Windows;
use crate::api;
use crate::apps::Apps;
use crate::auth::{Authenticator, Users};
use crate::broker::Broker;
use crate::broker::memory::Memory;
use crate::bus;
use crate::bus::address::BusAddress;
use crate::bus::server::Listeners;
use crate::bus::socket::BusSocket;
use crate::bus::tls::Certificate;
use crate::config::Config;
#[cfg(not(feature = "redis"))]
use crate::config::ConfigError;
use crate::error::StartError;
use crate::hooks::Hooks;
use crate::presence::{self, Presence};
use crate::protocol::native::Native;
use crate::protocol::pusher::Pusher;
use crate::protocol::{Format, Protocol};
use crate::sync::Mutex;
use crate::transport::websocket::WebSocket;
use crate::transport::{Framing, http};

/// Sockets that the host may hand over before the control thread has taken them.
const ARRIVING: usize = 4_096;

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
        match Running::start(&node, pollers, listeners, arriving, bus_listeners) {
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
    pub(super) fn assemble(self) -> Result<Assembled, StartError> {
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
        let bus_addr = bus_tcp.as_ref().map(TcpListener::local_addr).transpose()?;
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
        let (to_control, arriving) = mpsc::channel(ARRIVING);
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
                .then(|| Arc::new(Pages::new(config.limits.resume_bytes, config.limits.max_subscriptions))),
            keeps_history: config.speaks_pusher() || config.channels.iter().any(|policy| policy.retention().is_some()),
            attendance: Arc::new(Attendance { presence, alarm: Notify::new() }),
            counts: Counts::default(),
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
            watchlists: Watchlists::new(Duration::from_millis(config.presence_grace_ms), config.limits.watches, count),
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

/// A hub whose threads have yet to be started.
pub(super) struct Assembled {
    pub(super) node: Arc<Node>,
    pub(super) pollers: Vec<(Poller, Arc<Inbox<Job>>)>,
    listeners: http::Listeners,
    arriving: mpsc::Receiver<TcpStream>,
    bus_listeners: Listeners,
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
