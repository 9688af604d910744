//! A blocking connection with Redis, for publishers that are no hubs. Every step of it has a deadline.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, Parser, Pipeline, RedisError, Value};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::address::{Address, Cluster, Sentinels};
use super::servers::is_master;
use crate::config::Secret;
use crate::deadline::Deadline;
use crate::trust;
use crate::wire::{Outgoing, Resolve, Wire};

/// Where the server is that counts, and whom to trust.
#[derive(Clone)]
pub(super) struct Servers {
    address: Address,
    /// The sentinel that is asked first: the one that answered last.
    first: usize,
    /// The PEM file of whom to trust over TLS; empty for whom the system trusts.
    ca_file: String,
    /// Made of it with the first connection.
    trusted: Option<Arc<ClientConfig>>,
    resolve: Resolve,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Servers({})", self.address)
    }
}

impl Servers {
    /// Of `broker.url` and `broker.ca_file`; the error never repeats the first.
    pub(super) fn parse(url: &Secret, ca_file: &str, resolve: Resolve) -> Result<Self, String> {
        let address = Address::parse(url.expose()).map_err(|error| error.to_string())?;
        if let Address::Server(server) = &address
            && !matches!(server.addr(), ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { insecure: false, .. } | ConnectionAddr::Unix(_))
        {
            return Err("a connection over TLS that trusts anybody is not supported".into());
        }
        Ok(Servers { address, first: 0, ca_file: ca_file.to_owned(), trusted: None, resolve })
    }

    /// Host and port, the path, or the name of a master.
    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn cluster(&self) -> Option<&Cluster> {
        if let Address::Cluster(cluster) = &self.address { Some(cluster) } else { None }
    }

    /// A connection to the server that counts, or to this node of a cluster, made within `connecting`, and its answers to what `further` asks by the deadline.
    pub(super) fn open(
        &mut self,
        node: Option<&ConnectionInfo>,
        further: &Pipeline,
        connecting: Duration,
        deadline: &mut Deadline,
    ) -> io::Result<(Connection, Vec<Value>)> {
        match (node, self.address.clone()) {
            (Some(node), _) => self.introduce(node, further, connecting, deadline),
            (None, Address::Server(server)) => self.introduce(&server, further, connecting, deadline),
            (None, Address::Sentinels(sentinels)) => self.master(&sentinels, further, connecting, deadline),
            (None, Address::Cluster(_)) => Err(io::Error::other("a cluster has no one server")),
        }
    }

    /// Asks one sentinel after the other. What one says may be old: the server has to say itself that it is a master.
    fn master(
        &mut self,
        sentinels: &Sentinels,
        further: &Pipeline,
        connecting: Duration,
        deadline: &mut Deadline,
    ) -> io::Result<(Connection, Vec<Value>)> {
        let mut question = Pipeline::new();
        question.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&sentinels.name);
        let mut introduction = Pipeline::new();
        introduction.cmd("ROLE");
        for command in further.cmd_iter() {
            introduction.add_command(command.clone());
        }
        let count = sentinels.sentinels.len();
        let mut failure = io::ErrorKind::NotFound.into();
        for step in 0..count {
            let at = (self.first + step) % count;
            // One that does not answer leaves time for the others.
            let share = connecting.min(deadline.left() / (count - step + 1) as u32);
            let sentinel = &sentinels.sentinels[at];
            let mut ask = || {
                let (_, mut answers) = self.introduce(sentinel, &question, share, &mut Deadline::new(share))?;
                let named: Option<(String, String)> = redis::from_redis_value(answers.pop().unwrap_or_default()).map_err(unreadable)?;
                let (host, port) = named.ok_or_else(|| io::Error::other(format!("knows no master `{}`", sentinels.name)))?;
                let server = sentinels.server(&host, &port).ok_or_else(|| io::Error::other("names something that is no server"))?;
                let (connection, mut answers) = self.introduce(&server, &introduction, share, deadline)?;
                if !answers.first().is_some_and(is_master) {
                    return Err(io::Error::other(format!("{} is no master", server.addr())));
                }
                answers.remove(0);
                Ok((connection, answers))
            };
            match ask() {
                Ok(opened) => {
                    self.first = at;
                    return Ok(opened);
                }
                Err(error) => failure = io::Error::new(error.kind(), format!("sentinel {}: {error}", sentinel.addr())),
            }
        }
        Err(failure)
    }

    /// Connects, and says who we are.
    fn introduce(
        &mut self,
        server: &ConnectionInfo,
        further: &Pipeline,
        connecting: Duration,
        deadline: &mut Deadline,
    ) -> io::Result<(Connection, Vec<Value>)> {
        let connecting = connecting.min(deadline.left());
        let wire = self.connect(server.addr(), &mut Deadline::new(connecting), deadline)?;
        let mut connection = Connection { wire, parser: Parser::new(), received: Vec::new() };
        let mut pipeline = Pipeline::new();
        let settings = server.redis_settings();
        if let Some(password) = settings.password() {
            let auth = pipeline.cmd("AUTH");
            if let Some(user) = settings.username() {
                auth.arg(user);
            }
            auth.arg(password);
        }
        if settings.db() != 0 {
            pipeline.cmd("SELECT").arg(settings.db());
        }
        let own = pipeline.len();
        for command in further.cmd_iter() {
            pipeline.add_command(command.clone());
        }
        let mut answers = connection.ask(&pipeline, deadline).map_err(|(_, Broke::Unsent(error) | Broke::Uncertain(error))| error)?;
        let further = answers.split_off(own);
        match answers.iter().find_map(super::scripts::server_error) {
            Some(error) => {
                // A server that does not know AUTH repeats what it was told.
                let details = error.details().filter(|text| settings.password().is_none_or(|password| !text.contains(password)));
                let text = format!("{} {}", error.code(), details.unwrap_or("does not take the password"));
                Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
            }
            None => Ok((connection, further)),
        }
    }

    fn connect(&mut self, address: &ConnectionAddr, connecting: &mut Deadline, deadline: &mut Deadline) -> io::Result<Wire> {
        let resolve = self.resolve;
        let tcp = |host: &str, port: u16, connecting: &mut Deadline| {
            let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            Wire::tcp(&address, resolve, connecting)
        };
        match address {
            ConnectionAddr::Unix(path) => Wire::unix(path, connecting.left_or_timeout()?),
            ConnectionAddr::Tcp(host, port) => tcp(host, *port, connecting),
            ConnectionAddr::TcpTls { host, port, .. } => {
                let mut wire = tcp(host, *port, connecting)?;
                let invalid = |error: &dyn fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
                let name = ServerName::try_from(host.clone()).map_err(|error| invalid(&error))?;
                let session = ClientConnection::new(self.trusted()?, name).map_err(|error| invalid(&error))?;
                let refusal = |error: rustls::Error| io::Error::new(io::ErrorKind::PermissionDenied, format!("TLS: {error}"));
                wire.encrypt(session, refusal, deadline).inspect_err(|_| {
                    // Whom to trust may have changed: the next attempt reads it again.
                    self.trusted = None;
                })?;
                Ok(wire)
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn trusted(&mut self) -> io::Result<Arc<ClientConfig>> {
        if let Some(trusted) = &self.trusted {
            return Ok(trusted.clone());
        }
        let roots = trust::roots(&self.ca_file, "broker.ca_file").map_err(io::Error::other)?;
        let config = trust::client(roots).map_err(io::Error::other)?;
        Ok(self.trusted.insert(config).clone())
    }
}

/// What came of a pipeline.
#[derive(Debug)]
pub(super) enum Broke {
    /// Nothing of it can have reached the server.
    Unsent(io::Error),
    /// Some of it may have been carried out.
    Uncertain(io::Error),
}

/// See the module's documentation.
pub(super) struct Connection {
    wire: Wire,
    parser: Parser,
    received: Vec<u8>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Connection {
    /// Whether the server has ended it; what is asked now would be lost.
    pub(super) fn has_ended(&self) -> bool {
        self.wire.has_ended().unwrap_or(true)
    }

    /// Sends commands together and waits for all answers. Where that fails it gives those that came; the connection is of no use
    /// any more then.
    pub(super) fn ask(&mut self, pipeline: &Pipeline, deadline: &mut Deadline) -> Result<Vec<Value>, (Vec<Value>, Broke)> {
        let bytes = pipeline.get_packed_pipeline();
        let mut message = Outgoing::new([&bytes, b"", b""]);
        if let Err(error) = self.wire.send(&mut message, deadline) {
            let broke = if message.sent == 0 { Broke::Unsent(error) } else { Broke::Uncertain(error) };
            return Err((Vec::new(), broke));
        }
        let mut answers = Vec::with_capacity(pipeline.len());
        let mut incoming = Incoming { wire: &mut self.wire, received: &mut self.received, deadline, room: usize::MAX, failure: None };
        while answers.len() < pipeline.len() {
            match self.parser.parse_value(&mut incoming) {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    let failure = incoming.failure.take().unwrap_or_else(|| unreadable(error));
                    return Err((answers, Broke::Uncertain(failure)));
                }
            }
        }
        Ok(answers)
    }

    /// What the server says next by itself; more than about so many bytes are an error. After an error the connection is of no use
    /// any more.
    pub(super) fn hear(&mut self, limit: usize, deadline: &mut Deadline) -> io::Result<Value> {
        let mut incoming = Incoming { wire: &mut self.wire, received: &mut self.received, deadline, room: limit, failure: None };
        let said = self.parser.parse_value(&mut incoming);
        said.map_err(|error| incoming.failure.take().unwrap_or_else(|| unreadable(error)))
    }
}

pub(super) fn unreadable(error: impl Into<RedisError>) -> io::Error {
    if error.into().is_io_error() {
        return io::ErrorKind::UnexpectedEof.into();
    }
    io::Error::new(io::ErrorKind::InvalidData, "redis gave an answer that cannot be")
}

/// What comes, until the deadline.
struct Incoming<'a> {
    wire: &'a mut Wire,
    received: &'a mut Vec<u8>,
    deadline: &'a mut Deadline,
    /// Bytes that may still come.
    room: usize,
    /// What the parser does not tell of an error.
    failure: Option<io::Error>,
}

impl Incoming<'_> {
    fn fill(&mut self) -> io::Result<()> {
        while self.received.is_empty() {
            if self.room == 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "redis says more than can be"));
            }
            let left = self.deadline.left_or_timeout()?;
            match self.wire.receive(self.received, Some(left)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Err(error) = self.fill() {
            let kind = error.kind();
            self.failure = Some(error);
            return Err(kind.into());
        }
        let count = into.len().min(self.received.len());
        self.room = self.room.saturating_sub(count);
        into[..count].copy_from_slice(&self.received[..count]);
        self.received.drain(..count);
        Ok(count)
    }
}
