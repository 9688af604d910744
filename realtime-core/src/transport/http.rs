//! The listener and everything on it that is not yet a connection: plain requests and upgrades.
//!
//! Runs on the control thread, never on a shard. An accepted upgrade leaves as a socket for a
//! shard; what the client sent behind its request goes with it.

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc};
use tungstenite::handshake::derive_accept_key;

use super::link::TcpLink;
use super::stay::{Bounded, Stay};
use super::{monitoring, origin};
use crate::api;
use crate::auth::Admission;
use crate::auth::connect::{ConnectRequest, FromPage, chosen_subprotocol, client_address};
use crate::descriptors;
use crate::hooks::Kind;
use crate::hub::{Counted, Node};
use crate::protocol::{OpenRequest, Opening, Refusal, Refused};

/// Connections that the kernel keeps while the control thread is busy.
const BACKLOG: i32 = 4096;
/// Threads that wait for the shards' answers to API requests, while there are some.
const BLOCKING_THREADS: usize = 4;
/// How long accepting rests when descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between looks whether the clients of a hub that stops have gone.
const DRAIN_POLL: Duration = Duration::from_millis(5);
/// Connections of those who watch the hub; past it new ones are dropped.
const MAX_WATCHING: usize = 64;

/// Binds the listener, so that a port in use is an error of the start.
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of the last run in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What the control thread listens on.
pub(crate) struct Listeners {
    pub(crate) clients: std::net::TcpListener,
    /// For those who watch the hub, if they have an address of their own.
    pub(crate) monitoring: Option<std::net::TcpListener>,
}

/// The control thread's work.
pub(crate) struct Control {
    node: Arc<Node>,
    listeners: Listeners,
    /// Sockets that the host has accepted.
    arriving: mpsc::Receiver<std::net::TcpStream>,
    runtime: tokio::runtime::Runtime,
    stop: Arc<(Notify, OnceLock<Instant>)>,
}

/// Ends the control thread.
pub(crate) struct Stop(Arc<(Notify, OnceLock<Instant>)>);

impl Stop {
    /// Nothing is accepted from now on. Who watches the hub is answered until its clients have gone, or until the deadline.
    pub(crate) fn stop(&self, deadline: Instant) {
        self.0.1.get_or_init(|| deadline);
        self.0.0.notify_one();
    }
}

impl Control {
    pub(crate) fn new(node: Arc<Node>, listeners: Listeners, arriving: mpsc::Receiver<std::net::TcpStream>) -> io::Result<(Self, Stop)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("rt-control-ask")
            .build()?;
        // A hub has one control thread.
        drop(node.runtime.set(runtime.handle().clone()));
        let stop = Arc::new((Notify::new(), OnceLock::new()));
        let Listeners { clients, monitoring } = &listeners;
        [Some(clients), monitoring.as_ref()].into_iter().flatten().for_each(|listener| descriptors::opened(listener.as_raw_fd()));
        Ok((Control { node, listeners, arriving, runtime, stop: stop.clone() }, Stop(stop)))
    }

    /// Accepts until stopped. Requests under way then are dropped.
    pub(crate) fn run(self) {
        let Control { node, listeners: Listeners { clients, monitoring }, arriving, runtime, stop } = self;
        let fd = clients.as_raw_fd();
        // A thread that is started once has set it once.
        drop(node.auth.runtime.set(runtime.handle().clone()));
        runtime.block_on(async {
            let ticking = {
                let node = node.clone();
                async move {
                    let mut second = tokio::time::interval(Duration::from_secs(1));
                    loop {
                        second.tick().await;
                        node.tick();
                    }
                }
            };
            let watched = monitoring.map(|listener| {
                let fd = listener.as_raw_fd();
                (fd, tokio::spawn(monitor(node.clone(), listener)))
            });
            match TcpListener::from_std(clients) {
                Ok(listener) => tokio::select! {
                    () = stop.0.notified() => {}
                    () = ticking => {}
                    () = node.keep_graces() => {}
                    () = node.keep_windows() => {}
                    () = node.tell_counts() => {}
                    () = node.keep_watchlists() => {}
                    () = node.hooks.run() => {}
                    () = accept(node.clone(), listener, arriving) => {}
                },
                Err(error) => tracing::error!(%error, "cannot listen"),
            }
            descriptors::closing(fd);
            if let Some((fd, watched)) = watched {
                while node.connections.load(Ordering::Relaxed) > 0 && stop.1.get().is_some_and(|deadline| Instant::now() < *deadline) {
                    tokio::time::sleep(DRAIN_POLL).await;
                }
                watched.abort();
                descriptors::closing(fd);
            }
        });
        runtime.shutdown_timeout(Duration::ZERO);
    }
}

async fn accept(node: Arc<Node>, listener: TcpListener, mut arriving: mpsc::Receiver<std::net::TcpStream>) {
    let handshakes = Arc::new(Semaphore::new(node.config.limits.max_handshakes.min(Semaphore::MAX_PERMITS)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted.map(|(stream, _)| stream),
            Some(stream) = arriving.recv() => TcpStream::from_std(stream),
        };
        match accepted {
            Ok(stream) => {
                let peer = stream.peer_addr().map_or(IpAddr::from([0; 4]), |peer| peer.ip());
                let stream = Tracked::new(stream);
                // Past the limit the newest is dropped: the others end by their deadlines (`Stay`, `http1`).
                let Ok(permit) = handshakes.clone().try_acquire_owned() else {
                    node.refused.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(limit = node.config.limits.max_handshakes, "too many handshakes at once; connection dropped");
                    continue;
                };
                let node = node.clone();
                tokio::spawn(async move {
                    serve(node, stream, peer).await;
                    drop(permit);
                });
            }
            // The peer gave up between its connect and our accept.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers those who watch the hub, where they have an address of their own.
async fn monitor(node: Arc<Node>, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen for those who watch the hub"),
    };
    let places = Arc::new(Semaphore::new(MAX_WATCHING));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let stream = Tracked::new(stream);
                let Ok(place) = places.clone().try_acquire_owned() else { continue };
                let node = node.clone();
                tokio::spawn(async move {
                    let stay = stay(&node);
                    let service = service_fn(|request: Request<Incoming>| {
                        let answer = monitoring::answer(&node, request.uri().path(), &request, &stay)
                            .unwrap_or_else(|| Err(refusal(404, "not_found", "nothing is served on this path")));
                        let mut answer = answer.unwrap_or_else(|refusal| refused(&refusal));
                        stay.settle(&mut answer);
                        std::future::ready(Ok::<_, Infallible>(answer))
                    });
                    let stream = Bounded::new(stream, stay.clone());
                    if let Err(error) = http1(&node).serve_connection(TokioIo::new(stream), service).await {
                        tracing::debug!(%error, "a request of who watches the hub was not served");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A socket that is noted in [`descriptors`] while it is here.
struct Tracked(Option<TcpStream>);

impl Tracked {
    fn new(stream: TcpStream) -> Self {
        descriptors::opened(stream.as_raw_fd());
        Tracked(Some(stream))
    }

    /// Hands the socket on; it stays noted.
    fn into_std(mut self) -> io::Result<std::net::TcpStream> {
        match self.0.take() {
            Some(stream) => {
                let fd = stream.as_raw_fd();
                stream.into_std().inspect_err(|_| descriptors::closing(fd))
            }
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        match &mut self.get_mut().0 {
            Some(stream) => Ok(Pin::new(stream)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            descriptors::closing(stream.as_raw_fd());
        }
    }
}

impl AsyncRead for Tracked {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}

async fn serve(node: Arc<Node>, stream: Tracked, peer: IpAddr) {
    let stay = stay(&node);
    let service = service_fn(|request| {
        let (node, stay) = (node.clone(), stay.clone());
        async move {
            let mut answer = respond(&node, peer, request, &stay).await;
            stay.settle(&mut answer);
            Ok::<_, Infallible>(answer)
        }
    });
    let stream = Bounded::new(stream, stay.clone());
    if let Err(error) = http1(&node).serve_connection(TokioIo::new(stream), service).with_upgrades().await {
        node.refused.fetch_add(1, Ordering::Relaxed);
        let cause = error.source().map(tracing::field::display);
        tracing::info!(%peer, %error, cause, "request refused");
    }
}

fn stay(node: &Node) -> Arc<Stay> {
    Arc::new(Stay::new(Duration::from_millis(node.config.limits.handshake_timeout_ms)))
}

/// HTTP/1.1 within the limits.
fn http1(node: &Node) -> hyper::server::conn::http1::Builder {
    let limits = &node.config.limits;
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.handshake_timeout_ms))
        .max_buf_size(limits.max_header_bytes)
        .max_headers(limits.max_headers);
    builder
}

/// The answer to a plain request. Its body may go on for as long as the client listens.
pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

type Handling = Pin<Box<dyn Future<Output = Result<Answer, Refusal>> + Send>>;

/// Plain HTTP on some paths.
struct Route {
    serves: fn(&str) -> bool,
    /// Called on the control thread, which it must not block.
    handle: fn(Arc<Node>, Asked) -> Handling,
}

/// A request, who sent it, and its path below [`crate::Config::path`].
pub(crate) struct Asked {
    pub(crate) client: IpAddr,
    pub(crate) path: String,
    pub(crate) request: Request<Incoming>,
    pub(crate) stay: Arc<Stay>,
}

/// Asked in order, before the protocols.
const ROUTES: [Route; 2] = [
    Route { serves: monitoring::serves, handle: |node, asked| Box::pin(async move { monitoring::among_clients(&node, &asked) }) },
    Route { serves: api::serves, handle: |node, asked| Box::pin(async move { Ok(api::serve(node, asked).await) }) },
];

async fn respond(node: &Arc<Node>, peer: IpAddr, request: Request<Incoming>, stay: &Arc<Stay>) -> Answer {
    let client = client_address(peer, request.headers(), &node.trusted_proxies);
    let target = request.uri().clone();
    let answer = match below(target.path(), &node.config.path) {
        Some(path) => match ROUTES.iter().find(|route| (route.serves)(path)) {
            Some(route) => (route.handle)(node.clone(), Asked { client, path: path.to_owned(), request, stay: stay.clone() }).await,
            None => open(node, request, path, client).await,
        },
        None => Err(refusal(404, "not_found", format!("everything is served below {}", node.config.path))),
    };
    answer.unwrap_or_else(|refusal| {
        node.refused.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            %client,
            path = %target.path().escape_debug(),
            status = refusal.status,
            code = refusal.code,
            reason = %refusal.message.escape_debug(),
            "request refused"
        );
        refused(&refusal)
    })
}

/// What is below a prefix; `None`: it is not.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| prefix.is_empty() || rest.starts_with('/'))
}

fn refused(refusal: &Refusal) -> Answer {
    let mut response = json(
        StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST),
        &serde_json::json!({"error": {"code": refusal.code, "message": refusal.message}}),
    );
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    match refusal.status {
        // RFC 6455 section 4.4.
        426 => {
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        405 => {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        503 => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        _ => {}
    }
    response
}

/// Finds the protocol that a connection on this path speaks.
async fn open(node: &Arc<Node>, request: Request<Incoming>, path: &str, client: IpAddr) -> Result<Answer, Refusal> {
    let open = OpenRequest { path, query: request.uri().query().unwrap_or_default(), apps: &node.apps };
    let opened = node.formats.iter().enumerate().find_map(|(index, format)| Some((index, format.protocol.open(&open)?)));
    match opened {
        Some((format, opening)) => upgrade(node, request, client, format, opening).await,
        None => Err(refusal(404, "not_found", "nothing is served on this path")),
    }
}

/// A body that is there at once.
pub(crate) fn full(bytes: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, Infallible> {
    Full::new(bytes.into()).boxed_unsync()
}

pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Answer {
    let mut response = Response::new(full(format!("{body}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn refusal(status: u16, code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { status, code, message: message.into() }
}

/// Checks an upgrade, answers it and arranges for the socket to reach a shard.
async fn upgrade(
    node: &Arc<Node>,
    mut request: Request<Incoming>,
    client: IpAddr,
    format: usize,
    opening: Result<Opening, Refusal>,
) -> Result<Answer, Refusal> {
    let accept = check_upgrade(&request)?;
    let headers = request.headers();
    let host = single(headers, header::HOST)?;
    let origin = single(headers, header::ORIGIN)?;
    let protocol = &node.formats[format].protocol;
    let allowed = &node.config.allowed_origins;
    let anywhere = origin::has_default(allowed) && !protocol.needs_same_host();
    let opening = if anywhere || origin::is_allowed(origin, host, allowed) {
        opening
    } else {
        let text = format!(
            "origin {} may not connect to {}: see `allowed_origins`",
            origin.unwrap_or_default(),
            host.unwrap_or("a hub without a name")
        );
        Err(refusal(403, "origin_not_allowed", text))
    };
    let mut opening = opening.or_else(|refusal| match protocol.refuse(&refusal) {
        Some(code) => Ok(Opening { refused: Some(Box::new(Refused { code, message: refusal.message })), ..Opening::default() }),
        None => Err(refusal),
    })?;
    if node.hooks.wants(Kind::Connect) {
        let uri = request.uri();
        opening.request = Some(Box::new((uri.path().to_owned(), uri.query().unwrap_or_default().to_owned())));
    }
    let from_page = FromPage(origin.is_some() && !anywhere);
    let subprotocol = chosen_subprotocol(headers)
        .map(|name| HeaderValue::from_str(name).map_err(|_| refusal(400, "bad_header", "the subprotocol is not text")))
        .transpose()?;
    if node.is_stopping() {
        return Err(refusal(503, "stopping", "this hub is stopping"));
    }
    let (opening, admission) = admit(node, &request, client, format, opening, from_page).await?;
    let format = u16::try_from(format).map_err(|_| refusal(500, "internal", "too many formats"))?;
    let Some(place) = node.place() else {
        return Err(refusal(503, "too_many_connections", format!("this hub takes {} connections", node.config.limits.max_connections)));
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let hub = node.clone();
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => hand_over(&hub, place, upgraded, format, opening, admission),
            Err(error) => tracing::info!(%error, "upgrade not completed"),
        }
    });
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(subprotocol) = subprotocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
    Ok(response)
}

/// Finds out whose a connection is. One that is refused is opened and closed: a page learns nothing of
/// an upgrade's HTTP status, but it does of a close code.
async fn admit(
    node: &Node,
    request: &Request<Incoming>,
    client: IpAddr,
    format: usize,
    opening: Opening,
    from_page: FromPage,
) -> Result<(Opening, Admission), Refusal> {
    if !node.config.authenticates() || opening.refused.is_some() {
        return Ok((opening, Admission::Nobody));
    }
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let asking = ConnectRequest::new(opening.app, client, path, query, request.headers(), from_page, &node.config.auth.callback)
        .map_err(|reason| refusal(400, "bad_credential", reason))?;
    match node.auth.admit(&node.apps, &asking, opening.authentication).await {
        Ok(admission) => Ok((opening, admission)),
        Err(denied) => {
            tracing::info!(%client, reason = %denied.message.escape_debug(), "not authenticated");
            let code = node.formats[format].protocol.close_code(denied.reason);
            let refused = Some(Box::new(Refused { code, message: denied.message }));
            Ok((Opening { refused, ..opening }, Admission::Nobody))
        }
    }
}

fn hand_over(node: &Node, place: Counted, upgraded: hyper::upgrade::Upgraded, format: u16, opening: Opening, admission: Admission) {
    let Ok(parts) = upgraded.downcast::<TokioIo<Bounded<Tracked>>>() else {
        return tracing::error!("an upgraded connection is not a TCP socket");
    };
    match parts.io.into_inner().into_inner().into_std() {
        Ok(stream) => node.hand_over(place, Box::new(TcpLink::new(stream)), format, opening, admission, parts.read_buf),
        Err(error) => tracing::warn!(%error, "cannot hand a socket over"),
    }
}

/// The header's value; more than one of it, or one that is not text, is refused.
fn single(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(&name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(refusal(400, "duplicate_header", format!("more than one `{name}` header")));
    }
    first.map(|value| value.to_str().map_err(|_| refusal(400, "bad_header", format!("`{name}` is not text")))).transpose()
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// RFC 6455 section 4.2.1. Gives the value of `Sec-WebSocket-Accept`.
fn check_upgrade(request: &Request<Incoming>) -> Result<HeaderValue, Refusal> {
    let headers = request.headers();
    if *request.method() != Method::GET {
        return Err(refusal(405, "method_not_allowed", "a WebSocket is opened with GET"));
    }
    if !has_token(headers, header::UPGRADE, "websocket") {
        return Err(refusal(426, "upgrade_required", "this path speaks WebSocket; the request has no `Upgrade: websocket`"));
    }
    if request.version() != Version::HTTP_11 {
        return Err(refusal(400, "bad_version", "a WebSocket needs HTTP/1.1"));
    }
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(refusal(400, "bad_connection_header", "the request has no `Connection: Upgrade`; does a proxy strip it?"));
    }
    if single(headers, header::HOST)?.is_none() {
        return Err(refusal(400, "missing_host", "the request has no `Host`"));
    }
    // A body would be read as frames.
    if headers.contains_key(header::TRANSFER_ENCODING) || !request.body().is_end_stream() {
        return Err(refusal(400, "unexpected_body", "an upgrade request has no body"));
    }
    if single(headers, header::SEC_WEBSOCKET_VERSION)?.map(str::trim) != Some("13") {
        return Err(refusal(426, "unsupported_version", "`Sec-WebSocket-Version` must be 13"));
    }
    let key = single(headers, header::SEC_WEBSOCKET_KEY)?.unwrap_or_default();
    // 16 bytes in base64 (section 4.1).
    let valid = key.len() == 24 && key.ends_with("==") && key[..22].bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'));
    if !valid {
        return Err(refusal(400, "bad_key", "`Sec-WebSocket-Key` must be 16 bytes in base64"));
    }
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| refusal(400, "bad_key", "`Sec-WebSocket-Key` is not usable"))
}
