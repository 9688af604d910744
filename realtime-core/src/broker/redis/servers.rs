//! Connections to the server that counts, whichever that is just now.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, TlsCertificates, Value, cmd};

use super::address::{Address, Sentinels};
use super::link::{Lost, in_time};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// See the module's documentation.
pub(super) struct Servers {
    address: Address,
    /// Certificates to trust instead of the system's, in PEM.
    trusted: Option<Vec<u8>>,
    /// The sentinel that is asked first: the one that answered last.
    first: AtomicUsize,
    /// How many times longer than usual a connection may take.
    patience: u32,
}

impl Servers {
    pub(super) fn new(address: Address, trusted: Option<Vec<u8>>, patience: u32) -> Self {
        Servers { address, trusted, first: AtomicUsize::new(0), patience }
    }

    /// A connection for commands.
    pub(super) async fn commands(&self) -> Result<MultiplexedConnection, Lost> {
        match &self.address {
            Address::Server(server) => self.connect(server).await,
            Address::Sentinels(sentinels) => self.master(sentinels).await.map(|(_, connection)| connection),
        }
    }

    /// A connection for subscriptions.
    pub(super) async fn subscriptions(&self) -> Result<PubSub, Lost> {
        let server = match &self.address {
            Address::Server(server) => ConnectionInfo::clone(server),
            Address::Sentinels(sentinels) => self.master(sentinels).await?.0,
        };
        in_time(self.limit(), self.client(&server)?.get_async_pubsub()).await
    }

    fn client(&self, server: &ConnectionInfo) -> Result<Client, Lost> {
        let client = match &self.trusted {
            Some(pem) => Client::build_with_tls(server.clone(), TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) }),
            None => Client::open(server.clone()),
        };
        client.map_err(|error| error.to_string())
    }

    fn limit(&self) -> Duration {
        CONNECT_TIMEOUT * self.patience
    }

    async fn connect(&self, server: &ConnectionInfo) -> Result<MultiplexedConnection, Lost> {
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
