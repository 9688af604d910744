//! A blocking connection with Redis, for publishers that are no hubs. Every step of it has a deadline.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use redis::{ConnectionAddr, ConnectionInfo, Parser, Pipeline, RedisError, Value};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::address::Address;
use crate::config::Secret;
use crate::deadline::Deadline;
use crate::trust;
use crate::wire::{Outgoing, Resolve, Wire};

/// Where a server is and who we are to it.
#[derive(Clone)]
pub(super) struct Server {
    info: ConnectionInfo,
    /// Whom to trust over TLS, made with the first connection.
    trusted: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.address())
    }
}

impl Server {
    /// Of `broker.url`; the error never repeats it.
    pub(super) fn parse(url: &Secret) -> Result<Self, String> {
        let info = match Address::parse(url.expose()).map_err(|error| error.to_string())? {
            Address::Server(info) => *info,
            Address::Sentinels(_) => return Err("a process without a hub reaches one server, and asks no sentinels".into()),
        };
        match info.addr() {
            ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { insecure: false, .. } | ConnectionAddr::Unix(_) => {}
            _ => return Err("a connection over TLS that trusts anybody is not supported".into()),
        }
        Ok(Server { info, trusted: None })
    }

    /// Host and port, or the path.
    pub(super) fn address(&self) -> String {
        self.info.addr().to_string()
    }

    fn connect(&mut self, resolve: Resolve, connecting: &mut Deadline, deadline: &mut Deadline) -> io::Result<Wire> {
        let tcp = |host: &str, port: u16, connecting: &mut Deadline| {
            let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            Wire::tcp(&address, resolve, connecting)
        };
        match self.info.addr().clone() {
            ConnectionAddr::Unix(path) => Wire::unix(&path, connecting.left_or_timeout()?),
            ConnectionAddr::Tcp(host, port) => tcp(&host, port, connecting),
            ConnectionAddr::TcpTls { host, port, .. } => {
                let mut wire = tcp(&host, port, connecting)?;
                let invalid = |error: &dyn fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
                let name = ServerName::try_from(host).map_err(|error| invalid(&error))?;
                let session = ClientConnection::new(self.trusted()?, name).map_err(|error| invalid(&error))?;
                let refusal = |error: rustls::Error| io::Error::new(io::ErrorKind::PermissionDenied, format!("TLS: {error}"));
                wire.encrypt(session, refusal, deadline)?;
                Ok(wire)
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn trusted(&mut self) -> io::Result<Arc<ClientConfig>> {
        if let Some(trusted) = &self.trusted {
            return Ok(trusted.clone());
        }
        // What hubs trust too: the system's certificates.
        let roots = trust::roots("", "SSL_CERT_FILE").map_err(io::Error::other)?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
        let config = config.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
        Ok(self.trusted.insert(Arc::new(config)).clone())
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
    /// Connects within `connecting`, and introduces itself with whatever `further` asks by the deadline. Gives the answers to
    /// that, or what the server refused it with.
    pub(super) fn open(
        server: &mut Server,
        resolve: Resolve,
        further: &Pipeline,
        connecting: &mut Deadline,
        deadline: &mut Deadline,
    ) -> io::Result<(Self, Vec<Value>)> {
        let mut connection =
            Connection { wire: server.connect(resolve, connecting, deadline)?, parser: Parser::new(), received: Vec::new() };
        let mut pipeline = Pipeline::new();
        let settings = server.info.redis_settings();
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
                let text = format!("{} {}", error.code(), error.details().unwrap_or_default());
                Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
            }
            None => Ok((connection, further)),
        }
    }

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
        let mut incoming = Incoming { wire: &mut self.wire, received: &mut self.received, deadline, failure: None };
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
}

fn unreadable(error: RedisError) -> io::Error {
    if error.is_io_error() {
        return io::ErrorKind::UnexpectedEof.into();
    }
    io::Error::new(io::ErrorKind::InvalidData, "redis gave an answer that cannot be")
}

/// What comes, until the deadline.
struct Incoming<'a> {
    wire: &'a mut Wire,
    received: &'a mut Vec<u8>,
    deadline: &'a mut Deadline,
    /// What the parser does not tell of an error.
    failure: Option<io::Error>,
}

impl Incoming<'_> {
    fn fill(&mut self) -> io::Result<()> {
        while self.received.is_empty() {
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
        into[..count].copy_from_slice(&self.received[..count]);
        self.received.drain(..count);
        Ok(count)
    }
}
