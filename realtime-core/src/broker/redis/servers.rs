//! Connections to the servers that count, whichever those are just now.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, TlsCertificates, Value, cmd};

use rustls::ClientConfig;
use tokio::sync::watch;

use super::address::{Address, Cluster, Sentinels};
use super::ear::Ear;
use super::link::{Lost, in_time};
use super::slots::Slots;
use crate::patience::Patience;
use crate::trust;
use crate::wire::{UNACKNOWLEDGED, keepalive};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// See the module's documentation.
pub(super) struct Servers {
    address: Address,
    /// Certificates to trust instead of the system's, in PEM.
    trusted: Option<Vec<u8>>,
    /// The sentinel that is asked first: the one that answered last.
    first: AtomicUsize,
    /// See [`Servers::heard_at`].
    heard_at: Mutex<Box<str>>,
    /// Masters of a cluster, as far as they were heard of.
    known: Mutex<Vec<ConnectionInfo>>,
    /// Who has which slots of a cluster, as far as is known.
    slots: watch::Sender<Option<Arc<Slots>>>,
    /// Whom connections trust that are not redis-rs', made with the first.
    tls: OnceLock<Arc<ClientConfig>>,
    /// How many times longer than usual a connection may take.
    patience: u32,
}

impl Servers {
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        if let Address::Cluster(cluster) = &self.address { Some(cluster) } else { None }
    }

    /// The node of a cluster on which subscriptions are.
    pub(super) fn heard_at(&self) -> Box<str> {
        self.heard_at.lock().clone()
    }

    /// Who has which slots, from now on.
    pub(super) fn learn(&self, slots: &Slots) {
        self.slots.send_if_modified(|known| {
            let is_new = known.as_deref() != Some(slots);
            if is_new {
                *known = Some(Arc::new(slots.clone()));
            }
            is_new
        });
    }

    /// What [`Servers::learn`] was told last.
    pub(super) fn known_slots(&self) -> watch::Receiver<Option<Arc<Slots>>> {
        self.slots.subscribe()
    }

    /// A connection with a node of a cluster on which sharded announcements are heard.
    pub(super) async fn ear(&self, node: &ConnectionInfo) -> Result<Ear, Lost> {
        let tls = match node.addr() {
            ConnectionAddr::TcpTls { .. } => Some(self.tls()?),
            _ => None,
        };
        match Patience::new(self.limit()).until(Ear::open(node, tls)).await {
            Some(ear) => ear.map_err(|error| error.to_string()),
            None => Err(format!("no connection within {} ms", self.limit().as_millis())),
        }
    }

    fn tls(&self) -> Result<&Arc<ClientConfig>, Lost> {
        if let Some(tls) = self.tls.get() {
            return Ok(tls);
        }
        let roots = match &self.trusted {
            Some(pem) => trust::roots_in(pem, "broker.ca_file")?,
            None => trust::roots("", "broker.ca_file")?,
        };
        let tls = trust::client(roots).map_err(|error| error.to_string())?;
        Ok(self.tls.get_or_init(|| tls))
    }

    /// Who has which slots, as one of the nodes knows it.
    pub(super) async fn slots(&self, cluster: &Cluster) -> Result<Slots, Lost> {
        let known: Vec<ConnectionInfo> = self.known.lock().clone();
        let nodes: Vec<&ConnectionInfo> = known.iter().chain(&cluster.nodes).collect();
        let first = self.first.fetch_add(1, Ordering::Relaxed);
        let mut reason = Lost::new();
        // Another one first each time: the one before may be cut off from the others.
        for at in 0..nodes.len() {
            let node = nodes[(first + at) % nodes.len()];
            match self.ask_slots(cluster, node).await {
                Ok(slots) => {
                    *self.known.lock() = slots.masters().values().cloned().collect();
                    return Ok(slots);
                }
                Err(why) => reason = format!("{}: {why}", node.addr()),
            }
        }
        Err(reason)
    }

    async fn ask_slots(&self, cluster: &Cluster, node: &ConnectionInfo) -> Result<Slots, Lost> {
        let mut connection = self.connect(node).await?;
        let answer: Value = in_time(self.limit(), cmd("CLUSTER").arg("SLOTS").query_async(&mut connection)).await?;
        let asked = match node.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.as_str(),
            _ => "",
        };
        Slots::parse(cluster, asked, answer).ok_or_else(|| "knows no slots".into())
    }

    pub(super) fn new(address: Address, trusted: Option<Vec<u8>>, patience: u32) -> Self {
        let (heard_at, known) = (Mutex::default(), Mutex::default());
        let (slots, tls) = (watch::Sender::new(None), OnceLock::new());
        Servers { address, trusted, first: AtomicUsize::new(0), heard_at, known, slots, tls, patience }
    }

    /// A connection for commands.
    pub(super) async fn commands(&self) -> Result<MultiplexedConnection, Lost> {
        match &self.address {
            Address::Server(server) => self.connect(server).await,
            Address::Sentinels(sentinels) => self.master(sentinels).await.map(|(_, connection)| connection),
            Address::Cluster(_) => Err("a cluster has no one server".into()),
        }
    }

    /// A connection for subscriptions.
    pub(super) async fn subscriptions(&self) -> Result<PubSub, Lost> {
        let server = match &self.address {
            Address::Server(server) => ConnectionInfo::clone(server),
            Address::Sentinels(sentinels) => self.master(sentinels).await?.0,
            // What concerns no channel is heard on all, whichever it is said to.
            Address::Cluster(cluster) => {
                let masters = self.slots(cluster).await?;
                let random = getrandom::u32().unwrap_or_default() as usize;
                let (name, server) = masters.masters().iter().nth(random % masters.masters().len()).ok_or("no masters")?;
                *self.heard_at.lock() = name.clone();
                server.clone()
            }
        };
        in_time(self.limit(), self.client(&server)?.get_async_pubsub()).await
    }

    fn client(&self, server: &ConnectionInfo) -> Result<Client, Lost> {
        let settings = TcpSettings::default().set_user_timeout(UNACKNOWLEDGED).set_keepalive(keepalive());
        let server = server.clone().set_tcp_settings(settings);
        let client = match &self.trusted {
            Some(pem) => Client::build_with_tls(server, TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) }),
            None => Client::open(server),
        };
        client.map_err(|error| error.to_string())
    }

    fn limit(&self) -> Duration {
        CONNECT_TIMEOUT * self.patience
    }

    pub(super) async fn connect(&self, server: &ConnectionInfo) -> Result<MultiplexedConnection, Lost> {
        // Its own deadlines would count time in which the process stands still.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        in_time(self.limit(), self.client(server)?.get_multiplexed_async_connection_with_config(&config)).await
    }

    /// The master, and a connection on which it has said that it is one: what a sentinel says may be old.
    async fn master(&self, sentinels: &Sentinels) -> Result<(ConnectionInfo, MultiplexedConnection), Lost> {
        let count = sentinels.sentinels.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut reason = Lost::new();
        for at in (first..first + count).map(|at| at % count) {
            let sentinel = &sentinels.sentinels[at];
            match self.ask(sentinels, sentinel).await {
                Ok(found) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(found);
                }
                Err(why) => reason = format!("sentinel {}: {why}", sentinel.addr()),
            }
        }
        Err(reason)
    }

    async fn ask(&self, sentinels: &Sentinels, sentinel: &ConnectionInfo) -> Result<(ConnectionInfo, MultiplexedConnection), Lost> {
        let mut connection = self.connect(sentinel).await?;
        let question = cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&sentinels.name).take();
        let named: Option<(String, String)> = in_time(self.limit(), question.query_async(&mut connection)).await?;
        let (host, port) = named.ok_or_else(|| format!("knows no master `{}`", sentinels.name))?;
        let server = sentinels.server(&host, &port).ok_or_else(|| format!("names `{host}` `{port}`, which is no server"))?;
        let place = server.addr().to_string();
        let mut connection = self.connect(&server).await.map_err(|why| format!("{place}: {why}"))?;
        let role: Value = in_time(self.limit(), cmd("ROLE").query_async(&mut connection)).await.map_err(|why| format!("{place}: {why}"))?;
        match is_master(&role) {
            true => Ok((server, connection)),
            false => Err(format!("{place} is no master")),
        }
    }
}

pub(super) fn is_master(role: &Value) -> bool {
    match role {
        Value::Array(parts) => matches!(parts.first(), Some(Value::BulkString(role)) if role == b"master"),
        _ => false,
    }
}
