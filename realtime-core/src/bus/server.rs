//! The hub's side of the bus, on a thread of its own.
//!
//! Publications of one peer are carried out in order. A peer that publishes faster than the hub
//! takes is not read any further: its socket fills, and its calls run into their deadline. No
//! answer here ever depends on a callback into an application, because the application may be the
//! one that waits for it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::frame::{
    ANSWER_CHUNK_BYTES, BusFrameError, BusPublish, BusQuery, FailureCode, OLDEST_VERSION, Request, Response, Since, VERSION, frame_length,
};
use super::seal::TAG_BYTES;
use super::socket::BusSocket;
use super::stream::{HandshakeError, Seals, Stream, shake_hands};
use crate::apps::AppId;
use crate::broker::Reply;
use crate::descriptors;
use crate::error::{PublishError, QueryError};
use crate::history;
use crate::hub::Node;
use crate::hub::tap::{MAX_TAPS, Tap};
use crate::message::{
    ChannelInfo, ChannelUser, NO_EPOCH, Payload, Position, Publish, Receipt, SocketId, User, validate_channel, validate_json,
};

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// How long a peer may take to read its answers.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// Between looks at an ingress queue that was full.
const ROOM_POLL: Duration = Duration::from_millis(1);
/// How long accepting rests when descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Peers over TCP that have not proved yet that they know the secret; past it new ones are dropped.
const MAX_HANDSHAKES: usize = 128;
const ONLY_TRUSTED: &str = "only the hub's own user and root may do that";

/// What the bus is served on; at least one of the two.
pub(crate) struct Listeners {
    pub(crate) socket: Option<BusSocket>,
    pub(crate) tcp: Option<std::net::TcpListener>,
}

/// The bus thread's work.
pub(crate) struct BusServer {
    node: Arc<Node>,
    unix: Option<(std::os::unix::net::UnixListener, Noted)>,
    tcp: Option<(std::net::TcpListener, Noted)>,
    /// The file and its lock, given up last.
    socket: Option<BusSocket>,
    runtime: tokio::runtime::Runtime,
    stop: watch::Receiver<bool>,
}

/// Ends the bus thread: accepted peers are read dry first.
pub(crate) struct Stop(watch::Sender<bool>);

impl Stop {
    pub(crate) fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl BusServer {
    pub(crate) fn new(node: Arc<Node>, Listeners { mut socket, tcp }: Listeners) -> io::Result<(Self, Stop)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (sender, stop) = watch::channel(false);
        let unix = socket.as_mut().and_then(BusSocket::take_listener);
        let unix = unix.map(|listener| {
            let noted = Noted::new(listener.as_raw_fd());
            (listener, noted)
        });
        let tcp = tcp.map(|listener| {
            let noted = Noted::new(listener.as_raw_fd());
            (listener, noted)
        });
        Ok((BusServer { node, unix, tcp, socket, runtime, stop }, Stop(sender)))
    }

    /// Serves until stopped.
    pub(crate) fn run(self) {
        let BusServer { node, unix, tcp, mut socket, runtime, stop } = self;
        let outcome = runtime.block_on(serve(node, unix, tcp, socket.as_mut(), stop));
        drop(socket);
        if let Err(error) = outcome {
            tracing::error!(%error, "the bus has ended");
        }
        runtime.shutdown_timeout(Duration::ZERO);
    }
}

/// A connection that has just been accepted.
enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

async fn accept(unix: Option<&UnixListener>, tcp: Option<&TcpListener>) -> io::Result<Accepted> {
    let on_unix = async {
        match unix {
            Some(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
            None => std::future::pending().await,
        }
    };
    let on_tcp = async {
        match tcp {
            Some(listener) => listener.accept().await.map(|(stream, from)| Accepted::Tcp(stream, from)),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        accepted = on_unix => accepted,
        accepted = on_tcp => accepted,
    }
}

async fn serve(
    node: Arc<Node>,
    unix: Option<(std::os::unix::net::UnixListener, Noted)>,
    tcp: Option<(std::net::TcpListener, Noted)>,
    socket: Option<&mut BusSocket>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let (unix, unix_noted) = unix.unzip();
    let (tcp, tcp_noted) = tcp.unzip();
    let unix = unix.map(UnixListener::from_std).transpose()?;
    let tcp = tcp.map(TcpListener::from_std).transpose()?;
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let mut peers = JoinSet::new();
    while !*stop.borrow() {
        tokio::select! {
            accepted = accept(unix.as_ref(), tcp.as_ref()) => match accepted {
                Ok(_) if peers.len() >= node.config.limits.max_bus_connections => {
                    tracing::info!(limit = node.config.limits.max_bus_connections, "too many connections on the bus; one was dropped");
                }
                Ok(Accepted::Unix(stream)) => drop(peers.spawn(Peer::local(node.clone(), stream).run(stop.clone()))),
                Ok(Accepted::Tcp(stream, from)) => match handshakes.clone().try_acquire_owned() {
                    Ok(permit) => drop(peers.spawn(let_in(node.clone(), stream, from, permit, stop.clone()))),
                    Err(_) => tracing::info!(limit = MAX_HANDSHAKES, %from, "too many peers at the bus' door; one was dropped"),
                },
                Err(error) => {
                    tracing::warn!(%error, "accept on the bus failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = peers.join_next(), if !peers.is_empty() => {}
            _ = stop.changed() => {}
        }
    }
    // The notes go before the descriptors.
    drop(tcp_noted);
    drop(tcp);
    let unix = unix.map(UnixListener::into_std).transpose()?;
    if socket.is_some_and(BusSocket::withdraw)
        && let Some(listener) = &unix
    {
        // They have connected, and may have published: there is no other hub that could accept them.
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            peers.spawn(Peer::local(node.clone(), UnixStream::from_std(stream)?).run(stop.clone()));
        }
    }
    drop(unix_noted);
    drop(unix);
    while peers.join_next().await.is_some() {}
    Ok(())
}

/// Serves a peer over TCP once it has proved that it knows the secret.
async fn let_in(
    node: Arc<Node>,
    mut stream: TcpStream,
    from: SocketAddr,
    permit: tokio::sync::OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) {
    let noted = Noted::new(stream.as_raw_fd());
    let shaken = tokio::select! {
        shaken = shake_hands(&mut stream, node.config.secret.expose()) => shaken,
        // It has not published anything.
        _ = stop.changed() => return,
    };
    drop(permit);
    match shaken {
        Ok(seals) => Peer::remote(node, stream, noted, seals).run(stop).await,
        // Nobody that has said nothing is worth a line: a port scan, a health check.
        Err(HandshakeError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => {
            tracing::info!(%error, %from, "refused on the bus");
            node.bus_errors.fetch_add(1, Relaxed);
        }
    }
}

/// Notes a descriptor while it lives.
struct Noted(i32);

impl Noted {
    fn new(fd: i32) -> Self {
        descriptors::opened(fd);
        Noted(fd)
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        descriptors::closing(self.0);
    }
}

/// Why a peer's connection ends early.
#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error(transparent)]
    Frame(#[from] BusFrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One process that uses the bus.
struct Peer {
    node: Arc<Node>,
    // Before the stream: the note goes first.
    _noted: Noted,
    stream: Stream,
    /// Over TCP.
    seals: Option<Seals>,
    received: Vec<u8>,
    answers: Vec<u8>,
    greeted: bool,
    /// Whether it is the hub's own user, or root, or knows the secret: others may publish and ask only.
    trusted: bool,
    pid: u32,
    /// It reads no answers any more: it has sent what it had to send, and has ended.
    deaf: bool,
    watching: Option<Watching>,
}

/// A peer's tap, closed with its connection.
struct Watching {
    node: Arc<Node>,
    tap: Arc<Tap>,
    /// The request that its lines answer.
    request: u32,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.node.routes.taps.close(&self.tap);
    }
}

/// Ends when there is something to show; never without a tap.
async fn seen(watching: Option<&Watching>) {
    match watching {
        Some(watching) => watching.tap.ready.notified().await,
        None => std::future::pending().await,
    }
}

impl Peer {
    fn local(node: Arc<Node>, stream: UnixStream) -> Self {
        let trusted = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw());
        let noted = Noted::new(stream.as_raw_fd());
        Peer::new(node, Stream::Unix(stream), noted, None, trusted)
    }

    fn remote(node: Arc<Node>, stream: TcpStream, noted: Noted, seals: Seals) -> Self {
        Peer::new(node, Stream::Tcp(stream), noted, Some(seals), true)
    }

    fn new(node: Arc<Node>, stream: Stream, noted: Noted, seals: Option<Seals>, trusted: bool) -> Self {
        Peer {
            node,
            _noted: noted,
            stream,
            seals,
            received: Vec::new(),
            answers: Vec::new(),
            greeted: false,
            trusted,
            pid: 0,
            deaf: false,
            watching: None,
        }
    }

    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        if let Err(error) = self.serve(&mut stop).await {
            tracing::info!(%error, pid = self.pid, "bus connection closed");
            self.node.bus_errors.fetch_add(1, Relaxed);
        }
    }

    async fn serve(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), PeerError> {
        let mut buffer = vec![0; READ_BYTES];
        let mut stopping = false;
        // How long a peer that cannot know of the stop may stay silent before it is taken to have said all.
        let mut grace = None;
        loop {
            if *stop.borrow() && !stopping {
                stopping = true;
                // From here on the peer sends what it has to the next hub; what it has written is read, and then reads end.
                grace = self.stream.announce_end();
            }
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    self.consume().await?;
                    // One that always has more to say does not keep the others waiting.
                    tokio::task::yield_now().await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::select! {
                        ready = self.stream.readable() => ready?,
                        _ = stop.changed(), if !stopping => {}
                        () = seen(self.watching.as_ref()), if !stopping => self.show_seen(stop).await?,
                        () = tokio::time::sleep(grace.unwrap_or_default()), if grace.is_some() => return Ok(()),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Carries out the whole frames that have come.
    async fn consume(&mut self) -> Result<(), PeerError> {
        let received = std::mem::take(&mut self.received);
        let mut rest = &received[..];
        let tag_bytes = if self.seals.is_some() { TAG_BYTES } else { 0 };
        while let Some(length) = frame_length(rest)? {
            let Some((sealed, behind)) = rest.split_at_checked(length + tag_bytes) else { break };
            let (frame, tag) = sealed.split_at(length);
            if let Some(seals) = &mut self.seals
                && !seals.incoming.is_tag(frame, tag)
            {
                return Err(BusFrameError::Tag.into());
            }
            rest = behind;
            let request = Request::read(frame)?;
            if !self.greeted && !matches!(request, Request::Hello { .. }) {
                return Err(BusFrameError::NotHello.into());
            }
            self.carry_out(request).await?;
        }
        self.received = rest.to_vec();
        let answers = std::mem::take(&mut self.answers);
        if answers.is_empty() || self.deaf {
            return Ok(());
        }
        let answers = self.sealed(answers);
        match tokio::time::timeout(WRITE_TIMEOUT, self.stream.write_all(&answers)).await {
            Ok(Ok(())) => {}
            // What it has sent before its end is carried out all the same.
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => self.deaf = true,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answers").into()),
        }
        Ok(())
    }

    /// Frames as this peer's connection has them.
    fn sealed(&mut self, frames: Vec<u8>) -> Vec<u8> {
        match &mut self.seals {
            Some(seals) => seals.seal(&frames),
            None => frames,
        }
    }

    async fn carry_out(&mut self, request: Request<'_>) -> Result<(), PeerError> {
        match request {
            Request::Hello { oldest, newest, pid } => {
                self.pid = pid;
                self.greeted = oldest <= VERSION && newest >= OLDEST_VERSION;
                if self.greeted {
                    Response::Welcome { version: newest.min(VERSION) }.write(&mut self.answers);
                } else {
                    let message = format!("this hub speaks versions {OLDEST_VERSION}–{VERSION} of the bus");
                    Response::Failure { request: 0, code: FailureCode::Unsupported, message: &message }.write(&mut self.answers);
                }
            }
            Request::Publish { request, publish } => {
                let outcome = self.publish(&publish).await;
                self.report(request, outcome);
            }
            Request::Batch { request, publishes } => {
                // Checked together: none goes out if one is wrong.
                let mut outcome = publishes.iter().try_for_each(|publish| self.check(publish)).map(|()| None);
                if outcome.is_ok() {
                    for publish in &publishes {
                        outcome = self.publish(publish).await.map(Some);
                    }
                }
                match outcome {
                    Ok(Some(receipt)) => self.report(request, Ok(receipt)),
                    Ok(None) => {}
                    Err(error) => self.report(request, Err(error)),
                }
            }
            Request::Query { request, query } => self.answer(request, query).await,
            // Only at the very beginning over TCP.
            Request::Knock { .. } | Request::Proof { .. } => return Err(BusFrameError::NotHello.into()),
        }
        Ok(())
    }

    fn check(&self, publish: &BusPublish<'_>) -> Result<(), PublishError> {
        if publish.to_user {
            User::new(publish.target, None)?;
        } else {
            validate_channel(publish.target)?;
        }
        if let Payload::Json(text) = publish.payload {
            // It is written into frames as it is, and a peer may be mistaken.
            validate_json(text).map_err(|reason| PublishError::InvalidJson { reason })?;
        }
        self.node.check(&as_publish(publish, publish.target))
    }

    async fn publish(&self, publish: &BusPublish<'_>) -> Result<Receipt, PublishError> {
        self.check(publish)?;
        let user_channel = publish.to_user.then(|| User::channel_name(publish.target));
        let message = as_publish(publish, user_channel.as_deref().unwrap_or(publish.target));
        let timeout = self.node.config.publish_timeout();
        let start = Instant::now();
        let reply = loop {
            match self.node.try_publish(&message) {
                Err(PublishError::QueueFull { .. }) if start.elapsed() < timeout => tokio::time::sleep(ROOM_POLL).await,
                other => break other?,
            }
        };
        let published = match reply {
            Reply::Now(published) => published,
            Reply::Later(promise) => {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                promise.then(move |published| drop(sender.send(published)));
                match tokio::time::timeout(timeout, receiver).await {
                    Ok(Ok(published)) => published,
                    _ => return Err(PublishError::Timeout { waited: timeout }),
                }
            }
        };
        let published = published.map_err(PublishError::Broker)?;
        Ok(Receipt { position: published.position, matched: published.matched })
    }

    /// Answers a publication, if an answer is wanted; a failure that nobody waits for is counted.
    fn report(&mut self, request: u32, outcome: Result<Receipt, PublishError>) {
        match outcome {
            Ok(receipt) if request != 0 => Response::Receipt { request, receipt }.write(&mut self.answers),
            Ok(_) => {}
            Err(error) => {
                self.node.bus_refused.fetch_add(1, Relaxed);
                tracing::info!(%error, pid = self.pid, "publication over the bus refused");
                if request != 0 {
                    Response::Failure { request, code: publish_code(&error), message: &error.to_string() }.write(&mut self.answers);
                }
            }
        }
    }

    /// Opens a tap. Its lines are all that answers the request, unless it fails.
    fn watch(&mut self, request: u32, pattern: &str) {
        let refused = if !self.trusted {
            (FailureCode::Unauthorized, ONLY_TRUSTED.to_owned())
        } else if self.watching.is_some() {
            (FailureCode::InvalidMessage, "this connection watches already".to_owned())
        } else if let Some(tap) = self.node.routes.taps.open(pattern) {
            self.watching = Some(Watching { node: self.node.clone(), tap, request });
            // Says that it has begun.
            Response::Answer { request, more: true, part: b"" }.write(&mut self.answers);
            return;
        } else {
            (FailureCode::Unavailable, format!("{MAX_TAPS} watch already"))
        };
        Response::Failure { request, code: refused.0, message: &refused.1 }.write(&mut self.answers);
    }

    /// Writes what the tap has seen. Waits for a peer that reads slowly: its tap drops and counts meanwhile.
    async fn show_seen(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), PeerError> {
        let Some(Watching { tap, request, .. }) = &self.watching else { return Ok(()) };
        let (tap, request) = (tap.clone(), *request);
        let mut lines = Vec::new();
        while tap.take_lines(READ_BYTES, &mut lines) {
            let mut frame = Vec::new();
            Response::Answer { request, more: true, part: &lines }.write(&mut frame);
            lines.clear();
            let frame = self.sealed(frame);
            tokio::select! {
                written = self.stream.write_all(&frame) => if written.is_err() {
                    // It watches no longer.
                    self.watching = None;
                    return Ok(());
                },
                _ = stop.changed() => return Err(io::Error::new(io::ErrorKind::TimedOut, "stopped while the peer did not read").into()),
            }
        }
        Ok(())
    }

    async fn answer(&mut self, request: u32, query: &str) {
        let outcome = match serde_json::from_str::<BusQuery>(query) {
            Ok(BusQuery::Tail { pattern }) => return self.watch(request, &pattern),
            Ok(query) => self.ask(query).await,
            Err(error) => Err((FailureCode::Unsupported, error.to_string())),
        };
        match outcome {
            Ok(text) => {
                let mut parts = text.as_bytes().chunks(ANSWER_CHUNK_BYTES).peekable();
                while let Some(part) = parts.next() {
                    Response::Answer { request, more: parts.peek().is_some(), part }.write(&mut self.answers);
                }
            }
            Err((code, message)) => Response::Failure { request, code, message: &message }.write(&mut self.answers),
        }
    }

    async fn ask(&self, query: BusQuery) -> Result<String, (FailureCode, String)> {
        let privileged = matches!(query, BusQuery::DisconnectUser { .. } | BusQuery::SetUser { .. } | BusQuery::Follow { .. });
        if privileged && !self.trusted {
            return Err((FailureCode::Unauthorized, ONLY_TRUSTED.into()));
        }
        let node = self.node.clone();
        // Shards answer within a second; other peers go on meanwhile.
        let answered = tokio::task::spawn_blocking(move || node.answer_query(query)).await;
        match answered {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err((query_code(&error), error.to_string())),
            Err(error) => Err((FailureCode::Unavailable, error.to_string())),
        }
    }
}

impl Node {
    /// A bus query's answer, as JSON text. Blocks up to a second.
    fn answer_query(&self, query: BusQuery) -> Result<String, QueryError> {
        let answer: serde_json::Value = match query {
            BusQuery::ChannelUsers { channel } => {
                let users = self.channel_users(AppId::DEFAULT, &channel)?;
                return Ok(serde_json::to_string(&users.iter().map(ListedUser::from).collect::<Vec<_>>()).unwrap_or_default());
            }
            BusQuery::History { channel, since, limit, reverse } => {
                // A text that is no epoch is one that this hub does not have.
                let position = |since: Since| Position { epoch: since.epoch.parse().unwrap_or(NO_EPOCH), offset: since.offset };
                let limit = limit.unwrap_or(history::DEFAULT_LIMIT);
                let query = history::Query { since: since.map(position), limit, newest_first: reverse };
                let history = self.read_history(AppId::DEFAULT, &channel, &query)?;
                return Ok(serde_json::to_string(&history).unwrap_or_default());
            }
            BusQuery::DisconnectUser { user, code, reason } => self.disconnect_user(AppId::DEFAULT, &user, code, &reason)?.into(),
            BusQuery::SetUser { socket, user, info } => {
                let user = user.map(|id| User::new(&id, info.as_deref())).transpose()?;
                match socket.parse::<SocketId>() {
                    Ok(socket) => self.set_user(AppId::DEFAULT, socket, user)?.into(),
                    Err(_) => false.into(),
                }
            }
            BusQuery::Channels => self
                .channels(AppId::DEFAULT)
                .iter()
                .map(|ChannelInfo { name, subscribers }| serde_json::json!({"name": name, "subscribers": subscribers}))
                .collect(),
            BusQuery::Stats => serde_json::to_value(self.stats()).unwrap_or_default(),
            BusQuery::Status => {
                let mut status = serde_json::to_value(self.stats()).unwrap_or_default();
                status["version"] = env!("CARGO_PKG_VERSION").into();
                status["pid"] = std::process::id().into();
                status["listen"] = self.local_addr.to_string().into();
                status["memory_bytes"] = resident_bytes().into();
                status["open_files"] = open_files();
                status
            }
            BusQuery::Follow { pid } => self.follow.as_ref().is_some_and(|follow| follow(pid)).into(),
            // Answered by its connection.
            BusQuery::Tail { .. } => serde_json::Value::Null,
        };
        Ok(answer.to_string())
    }
}

/// This process' resident memory; `None` where the system does not say.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

/// How many descriptors this process may have, and has.
fn open_files() -> serde_json::Value {
    let used = std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    serde_json::json!({"used": used, "limit": limit})
}

/// A user as the answer has it: the info is the text that was given, its keys in their order.
#[derive(Serialize)]
struct ListedUser<'a> {
    id: &'a str,
    info: Option<&'a RawValue>,
    connections: usize,
}

impl<'a> From<&'a ChannelUser> for ListedUser<'a> {
    fn from(ChannelUser { user, connections }: &'a ChannelUser) -> Self {
        ListedUser { id: user.id(), info: user.info().and_then(|info| serde_json::from_str(info).ok()), connections: *connections }
    }
}

fn as_publish<'a>(publish: &'a BusPublish<'_>, channel: &'a str) -> Publish<'a> {
    Publish { except: &publish.except, id: publish.id, ..Publish::new(channel, publish.event, publish.payload) }
}

fn publish_code(error: &PublishError) -> FailureCode {
    match error {
        PublishError::InvalidChannel(_) => FailureCode::InvalidChannel,
        PublishError::TooLarge { .. } => FailureCode::TooLarge,
        PublishError::QueueFull { .. } => FailureCode::QueueFull,
        PublishError::Timeout { .. } => FailureCode::Timeout,
        PublishError::Broker(_) | PublishError::Stopped => FailureCode::Unavailable,
        PublishError::App(_)
        | PublishError::InvalidEvent { .. }
        | PublishError::InvalidJson { .. }
        | PublishError::InvalidId { .. }
        | PublishError::InvalidUser(_) => FailureCode::InvalidMessage,
    }
}

fn query_code(error: &QueryError) -> FailureCode {
    match error {
        QueryError::InvalidChannel(_) => FailureCode::InvalidChannel,
        QueryError::Timeout { .. } => FailureCode::Timeout,
        QueryError::Broker(_) => FailureCode::Unavailable,
        QueryError::Stopped => FailureCode::Unavailable,
        _ => FailureCode::InvalidMessage,
    }
}
