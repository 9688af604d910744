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
use tokio_rustls::TlsAcceptor;

use super::frame::{
    ANSWER_CHUNK_BYTES, BusAct, BusFrameError, BusPublish, BusQuery, FailureCode, OLDEST_VERSION, Request, Response, Since, VERSION,
    frame_length,
};
use super::seal::TAG_BYTES;
use super::socket::BusSocket;
use super::stream::{HandshakeError, Seals, Stream, shake_hands};
use super::tls::Certificate;
use crate::apps::AppId;
use crate::broker::Reply;
use crate::close::is_application_code;
use crate::descriptors;
use crate::error::{PublishError, QueryError};
use crate::history::{self, Keeping};
use crate::hooks::handlers::{Handler, MAX_HANDLERS};
use crate::hooks::queue::EventQueue;
use crate::hooks::{Kind, Kinds};
use crate::hub::Node;
use crate::hub::hooks::{Act, Acted, Verdict, parse_ticket};
use crate::hub::query::Query;
use crate::hub::tap::{MAX_TAPS, Tap};
use crate::message::{
    ChannelInfo, ChannelUser, NO_EPOCH, Payload, Position, Publish, Receipt, SocketId, User, validate_channel, validate_json,
};
use crate::protocol::RequestId;

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
/// Longest wait for an event in one question.
const EVENT_WAIT: Duration = Duration::from_millis(500);
/// How long a shard has for what a program wants done.
const ACT_TIMEOUT: Duration = Duration::from_millis(800);
const NO_EVENTS: &str = "this hub queues no events: name those that are wanted in hooks.events";
const ONLY_TRUSTED: &str = "only the hub's own user and root may do that";

/// What the bus is served on; at least one of the two.
pub(crate) struct Listeners {
    pub(crate) socket: Option<BusSocket>,
    pub(crate) tcp: Option<std::net::TcpListener>,
    /// With it peers over TCP speak TLS.
    pub(crate) tls: Option<Certificate>,
}

/// The bus thread's work.
pub(crate) struct BusServer {
    node: Arc<Node>,
    unix: Option<(std::os::unix::net::UnixListener, Noted)>,
    tcp: Option<(std::net::TcpListener, Noted)>,
    tls: Option<Certificate>,
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
    pub(crate) fn new(node: Arc<Node>, Listeners { mut socket, tcp, tls }: Listeners) -> io::Result<(Self, Stop)> {
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
        Ok((BusServer { node, unix, tcp, tls, socket, runtime, stop }, Stop(sender)))
    }

    /// Serves until stopped.
    pub(crate) fn run(self) {
        let BusServer { node, unix, tcp, tls, mut socket, runtime, stop } = self;
        let outcome = runtime.block_on(serve(node, unix, tcp, tls, socket.as_mut(), stop));
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
    tls: Option<Certificate>,
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
                    Ok(permit) => {
                        let tls = tls.as_ref().map(Certificate::acceptor);
                        drop(peers.spawn(let_in(node.clone(), stream, from, tls, permit, stop.clone())));
                    }
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
    tls: Option<TlsAcceptor>,
    permit: tokio::sync::OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) {
    let noted = Noted::new(stream.as_raw_fd());
    let shaken = tokio::select! {
        shaken = shake_hands(&mut stream, tls, node.config.secret.expose()) => shaken,
        // It has not published anything.
        _ = stop.changed() => return,
    };
    drop(permit);
    match shaken {
        Ok(shaken) => {
            let (stream, seals) = shaken.over(stream);
            Peer::remote(node, stream, noted, seals).run(stop).await;
        }
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
pub(crate) struct Peer {
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
    /// Whose channels and users it means.
    app: AppId,
    /// It cannot choose another: its system user belongs to this one.
    bound: bool,
    /// It reads no answers any more: it has sent what it had to send, and has ended.
    deaf: bool,
    watching: Option<Watching>,
    leased: Option<Lease>,
    stop: watch::Receiver<bool>,
}

/// Lines that a peer is sent without asking for each, until its connection ends.
struct Watching {
    node: Arc<Node>,
    source: Source,
    /// The request that its lines answer.
    request: u32,
}

/// Where the lines come from.
#[derive(Clone)]
enum Source {
    /// It watches what is published.
    Tap(Arc<Tap>),
    /// It handles connections.
    Handler(Arc<Handler>),
}

impl Source {
    fn ready(&self) -> &tokio::sync::Notify {
        match self {
            Source::Tap(tap) => &tap.ready,
            Source::Handler(handler) => &handler.ready,
        }
    }

    fn take_lines(&self, limit: usize, out: &mut Vec<u8>) -> bool {
        match self {
            Source::Tap(tap) => tap.take_lines(limit, out),
            Source::Handler(handler) => handler.take_lines(limit, out),
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        match &self.source {
            Source::Tap(tap) => self.node.routes.taps.close(tap),
            Source::Handler(handler) => self.node.hooks.handlers.detach(handler),
        }
    }
}

/// The event that a worker has; somebody else gets it if the worker goes without a word.
struct Lease {
    queue: Arc<EventQueue>,
    number: Option<u64>,
}

impl Lease {
    /// The number, if it is that of the event at hand, which there is none from here on. A worker may have had another one of
    /// a connection before: of a hub that is gone, and whose numbers are others' here.
    fn end(&mut self, number: Option<u64>) -> Option<u64> {
        if number == self.number { self.number.take() } else { None }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.queue.give_back(number);
        }
    }
}

/// Ends when there is something to show; never without a tap.
async fn seen(watching: Option<&Watching>) {
    match watching {
        Some(watching) => watching.source.ready().notified().await,
        None => std::future::pending().await,
    }
}

impl Peer {
    pub(crate) fn local(node: Arc<Node>, stream: UnixStream) -> Self {
        let trusted = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw());
        let noted = Noted::new(stream.as_raw_fd());
        let bound = stream.peer_cred().ok().and_then(|peer| node.apps.by_uid(peer.uid()));
        // Who is bound to an app sees nothing of the others: that takes away what the hub's own user may.
        let peer = Peer::new(node, Stream::Unix(stream), noted, None, trusted && bound.is_none());
        Peer { app: bound.unwrap_or_default(), bound: bound.is_some(), ..peer }
    }

    fn remote(node: Arc<Node>, stream: Stream, noted: Noted, seals: Seals) -> Self {
        Peer::new(node, stream, noted, Some(seals), true)
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
            app: AppId::DEFAULT,
            bound: false,
            deaf: false,
            watching: None,
            leased: None,
            // Replaced when it runs.
            stop: watch::channel(false).1,
        }
    }

    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        self.stop = stop.clone();
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

    fn as_publish<'a>(&'a self, publish: &'a BusPublish<'_>, channel: &'a str) -> Publish<'a> {
        let app = (self.app != AppId::DEFAULT).then(|| self.node.apps.of(self.app).name());
        let Keeping { history, ttl_ms } = publish.keeping;
        Publish { app, except: &publish.except, id: publish.id, history, ttl_ms, ..Publish::new(channel, publish.event, publish.payload) }
    }

    /// Moves to another app, if this peer may.
    fn use_app(&mut self, name: &str) -> Result<String, (FailureCode, String)> {
        let app = self.node.apps.by_name(name).map_err(|error| (FailureCode::InvalidMessage, error.to_string()))?;
        if self.bound && app != self.app {
            let own = self.node.apps.of(self.app).name();
            return Err((FailureCode::Unauthorized, format!("this system user is in the app `{own}` and in no other")));
        }
        self.app = app;
        Ok("true".into())
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
        self.node.check(&self.as_publish(publish, publish.target))
    }

    async fn publish(&self, publish: &BusPublish<'_>) -> Result<Receipt, PublishError> {
        self.check(publish)?;
        let user_channel = publish.to_user.then(|| User::channel_name(publish.target));
        let message = self.as_publish(publish, user_channel.as_deref().unwrap_or(publish.target));
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
            self.watching = Some(Watching { node: self.node.clone(), source: Source::Tap(tap), request });
            // Says that it has begun.
            Response::Answer { request, more: true, part: b"" }.write(&mut self.answers);
            return;
        } else {
            (FailureCode::Unavailable, format!("{MAX_TAPS} watch already"))
        };
        Response::Failure { request, code: refused.0, message: &refused.1 }.write(&mut self.answers);
    }

    /// Writes what there is to see. Waits for a peer that reads slowly: what it is shown drops and counts meanwhile.
    async fn show_seen(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), PeerError> {
        let Some(Watching { source, request, .. }) = &self.watching else { return Ok(()) };
        let (source, request) = (source.clone(), *request);
        let mut lines = Vec::new();
        while source.take_lines(READ_BYTES, &mut lines) {
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

    /// Makes the peer a program that handles connections.
    fn handle(&mut self, request: u32, hears: Vec<Kind>, decides: Vec<Kind>) {
        let (hears, decides): (Kinds, Kinds) = (hears.into_iter().collect(), decides.into_iter().collect());
        let refused = if !self.trusted {
            (FailureCode::Unauthorized, ONLY_TRUSTED.to_owned())
        } else if self.watching.is_some() {
            (FailureCode::InvalidMessage, "this connection watches already".to_owned())
        } else if let Some(handler) = self.node.hooks.handlers.attach(hears, decides) {
            self.node.hooks.want(hears);
            self.watching = Some(Watching { node: self.node.clone(), source: Source::Handler(handler), request });
            // Says that it has begun.
            Response::Answer { request, more: true, part: b"" }.write(&mut self.answers);
            return;
        } else {
            (FailureCode::Unavailable, format!("{MAX_HANDLERS} programs handle connections already"))
        };
        Response::Failure { request, code: refused.0, message: &refused.1 }.write(&mut self.answers);
    }

    /// Acknowledges the event that the worker has, and waits for the next one.
    async fn next_event(&mut self, timeout: Duration, done: Option<u64>) -> Result<String, (FailureCode, String)> {
        let Some(queue) = self.node.hooks.queue.clone() else {
            return Err((FailureCode::Unsupported, NO_EVENTS.into()));
        };
        let lease = self.leased.get_or_insert_with(|| Lease { queue: queue.clone(), number: None });
        let mut done = lease.end(done);
        let deadline = Instant::now() + timeout.min(EVENT_WAIT);
        loop {
            // Before the look, so that nothing falls between.
            let ready = queue.arrived.notified();
            if let Some(leased) = queue.next(done.take(), Duration::ZERO) {
                // One that it has not acknowledged goes to somebody else.
                if let Some(number) = lease.number.replace(leased.number) {
                    queue.give_back(number);
                }
                return serde_json::to_string(&leased).map_err(|error| (FailureCode::Unavailable, error.to_string()));
            }
            let wake = deadline.min(queue.next_lease_end().unwrap_or(deadline));
            if Instant::now() >= deadline || *self.stop.borrow() {
                return Ok("null".into());
            }
            tokio::select! {
                () = ready => {}
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = self.stop.changed() => {}
            }
        }
    }

    /// Acknowledges the event that the worker has; false: it has another one, or none.
    fn event_done(&mut self, number: u64) -> bool {
        let Some(lease) = &mut self.leased else { return false };
        let had = lease.end(Some(number));
        if let Some(number) = had {
            lease.queue.done(number);
        }
        had.is_some()
    }

    /// Does something with a connection; waits for what becomes of it where somebody wants to know.
    async fn act(&self, request: u32, connection: &str, shard: Option<usize>, act: BusAct) -> Result<String, (FailureCode, String)> {
        let act = act_of(act, self.node.config.limits.publication_bytes)?;
        // Socket ids may come from clients: one that is none names no connection.
        let Ok(socket) = connection.parse::<SocketId>() else { return Ok("false".into()) };
        let shard = shard.filter(|shard| *shard < self.node.shards.len()).unwrap_or(0);
        if request == 0 {
            self.node.shards[shard].inbox.push(Query::Act { socket, act, told: None, tried: 0 }.into());
            return Ok(String::new());
        }
        let (told, outcome) = std::sync::mpsc::channel();
        self.node.shards[shard].inbox.push(Query::Act { socket, act, told: Some(told), tried: 0 }.into());
        let outcome = tokio::task::spawn_blocking(move || outcome.recv_timeout(ACT_TIMEOUT)).await;
        match outcome {
            Ok(Ok(Acted::Done)) => Ok("true".into()),
            Ok(Ok(Acted::Not)) => Ok("false".into()),
            Ok(Ok(Acted::Refused(code, message))) => Ok(serde_json::json!({"code": code, "message": message}).to_string()),
            Ok(Err(_)) => Err((FailureCode::Timeout, "the connection's thread did not answer".into())),
            Err(error) => Err((FailureCode::Unavailable, error.to_string())),
        }
    }

    async fn answer(&mut self, request: u32, query: &str) {
        let outcome = match serde_json::from_str::<BusQuery>(query) {
            Ok(BusQuery::Tail { pattern }) => return self.watch(request, &pattern),
            Ok(BusQuery::Handle { hears, decides }) => return self.handle(request, hears, decides),
            Ok(BusQuery::Decide { .. } | BusQuery::Act { .. } | BusQuery::NextEvent { .. } | BusQuery::EventDone { .. })
                if !self.trusted =>
            {
                Err((FailureCode::Unauthorized, ONLY_TRUSTED.into()))
            }
            Ok(BusQuery::Decide { ticket, refuse }) => {
                if let Some((shard, connection, ticket)) = parse_ticket(&ticket)
                    && let Some(shard) = self.node.shards.get(shard)
                {
                    let verdict = refuse.map_or(Verdict::Allow, |reason| Verdict::Refuse { reason });
                    shard.inbox.push(Query::Verdict { connection, ticket, verdict }.into());
                }
                Ok("null".into())
            }
            Ok(BusQuery::Act { connection, shard, act }) => self.act(request, &connection, shard, act).await,
            Ok(BusQuery::NextEvent { timeout_ms, done }) => self.next_event(Duration::from_millis(timeout_ms), done).await,
            Ok(BusQuery::EventDone { number }) => Ok(self.event_done(number).to_string()),
            Ok(BusQuery::UseApp { app }) => self.use_app(&app),
            Ok(query) => self.ask(query).await,
            Err(error) => Err((FailureCode::Unsupported, error.to_string())),
        };
        match outcome {
            // Nobody waits for an answer.
            _ if request == 0 => {}
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
        let privileged = matches!(
            query,
            BusQuery::DisconnectUser { .. } | BusQuery::BanUser { .. } | BusQuery::SetUser { .. } | BusQuery::Follow { .. }
        );
        if privileged && !self.trusted {
            return Err((FailureCode::Unauthorized, ONLY_TRUSTED.into()));
        }
        let (node, app) = (self.node.clone(), self.app);
        // Shards answer within a second; other peers go on meanwhile.
        let answered = tokio::task::spawn_blocking(move || node.answer_query(app, query)).await;
        match answered {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err((query_code(&error), error.to_string())),
            Err(error) => Err((FailureCode::Unavailable, error.to_string())),
        }
    }
}

impl Node {
    /// A bus query's answer, as JSON text. Blocks up to a second.
    fn answer_query(&self, app: AppId, query: BusQuery) -> Result<String, QueryError> {
        let answer: serde_json::Value = match query {
            BusQuery::ChannelUsers { channel } => {
                let users = self.channel_users(app, &channel)?;
                return Ok(serde_json::to_string(&users.iter().map(ListedUser::from).collect::<Vec<_>>()).unwrap_or_default());
            }
            BusQuery::History { channel, since, limit, reverse } => {
                // A text that is no epoch is one that this hub does not have.
                let position = |since: Since| Position { epoch: since.epoch.parse().unwrap_or(NO_EPOCH), offset: since.offset };
                let limit = limit.unwrap_or(history::DEFAULT_LIMIT);
                let query = history::Query { since: since.map(position), limit, newest_first: reverse };
                let history = self.read_history(app, &channel, &query)?;
                return Ok(serde_json::to_string(&history).unwrap_or_default());
            }
            BusQuery::DisconnectUser { user, code, reason } => self.disconnect_user(app, &user, code, &reason)?.into(),
            BusQuery::BanUser { user, ban_ms, code, reason } => {
                self.ban_user(app, &user, Duration::from_millis(ban_ms), code, &reason)?.into()
            }
            BusQuery::SetUser { socket, user, info } => {
                let user = user.map(|id| User::new(&id, info.as_deref())).transpose()?;
                match socket.parse::<SocketId>() {
                    Ok(socket) => self.set_user(app, socket, user)?.into(),
                    Err(_) => false.into(),
                }
            }
            BusQuery::Channels => self
                .channels_here(app)
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
            BusQuery::Cluster => self.cluster_status()?,
            BusQuery::Follow { pid } => self.follow.as_ref().is_some_and(|follow| follow(pid)).into(),
            BusQuery::Presence { channel, user } => {
                let is_there = match user {
                    Some(user) => Some(self.channel_user(app, &channel, &user)?.is_some()),
                    None => None,
                };
                let count = if is_there.is_some() { None } else { Some(self.count_users(app, &channel)?) };
                serde_json::json!({"count": count, "has": is_there})
            }
            // Answered by their connection.
            BusQuery::Tail { .. }
            | BusQuery::Handle { .. }
            | BusQuery::Decide { .. }
            | BusQuery::Act { .. }
            | BusQuery::NextEvent { .. }
            | BusQuery::EventDone { .. }
            | BusQuery::UseApp { .. } => serde_json::Value::Null,
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

/// What a program does, as shards know it.
fn act_of(act: BusAct, limit: usize) -> Result<Act, (FailureCode, String)> {
    let send = |event: String, payload: Payload<'_>| {
        Publish::new("", &event, payload).check(limit).map_err(|error| (publish_code(&error), error.to_string()))?;
        Ok(Act::Send { body: payload.into(), event })
    };
    let json = |text: &str| validate_json(text).map_err(|reason| (FailureCode::InvalidMessage, format!("not valid JSON: {reason}")));
    match act {
        BusAct::SendText { event, text } => send(event, Payload::Text(&text)),
        BusAct::SendJson { event, json: text } => {
            json(&text)?;
            send(event, Payload::Json(&text))
        }
        BusAct::SendBytes { event, hex } => match hex::decode(hex) {
            Ok(bytes) => send(event, Payload::Binary(&bytes)),
            Err(error) => Err((FailureCode::InvalidMessage, error.to_string())),
        },
        BusAct::Answer { id, json: text } => {
            json(&id)?;
            json(&text)?;
            Ok(Act::Answer { id: RequestId(id), data: Ok(text) })
        }
        BusAct::RefuseMessage { id, reason } => {
            json(&id)?;
            Ok(Act::Answer { id: RequestId(id), data: Err(reason) })
        }
        BusAct::Join { channel } => Ok(Act::Join { channel }),
        BusAct::Leave { channel } => Ok(Act::Leave { channel }),
        BusAct::Close { code, reason } => {
            if !is_application_code(code) {
                return Err((FailureCode::InvalidMessage, QueryError::InvalidCloseCode { code }.to_string()));
            }
            Ok(Act::Close { code, reason })
        }
    }
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
        QueryError::InvalidChannel(_) | QueryError::NoHistory { .. } => FailureCode::InvalidChannel,
        QueryError::Timeout { .. } => FailureCode::Timeout,
        QueryError::Broker(_) => FailureCode::Unavailable,
        QueryError::Stopped => FailureCode::Unavailable,
        _ => FailureCode::InvalidMessage,
    }
}
