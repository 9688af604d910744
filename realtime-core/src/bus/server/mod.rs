//! The hub's side of the bus, on a thread of its own.
//!
//! Publications of one peer are carried out in order. A peer that publishes faster than the hub
//! takes is not read any further: its socket fills, and its calls run into their deadline. No
//! answer here ever depends on a callback into an application, because the application may be the
//! one that waits for it.

mod acts;
mod events;
mod peer;
mod publishing;
mod queries;
mod watching;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::socket::BusSocket;
use super::stream::{HandshakeError, Tls, shake_hands};
use super::tls::Certificate;
use crate::descriptors;
use crate::hub::Node;
pub(crate) use peer::Peer;

/// How long accepting rests when descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Peers over TCP that have not proved yet that they know the secret; past it new ones wait in the backlog.
const MAX_HANDSHAKES: usize = 128;
/// How long one of them may take while there is no room for others: as long as a client waits for a call.
const CROWDED_TIMEOUT: Duration = Duration::from_secs(1);
/// Between looks whether there still is none.
const CROWD_POLL: Duration = Duration::from_millis(100);
/// Between lines in the log about connections that wait for a place.
const FULL_REPORT: Duration = Duration::from_secs(60);

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

/// A connection that has just been accepted, and the place that it has.
enum Accepted {
    Unix(UnixStream, OwnedSemaphorePermit),
    Tcp(TcpStream, SocketAddr, OwnedSemaphorePermit),
}

/// Who finds no place stays in the listener's backlog, with all that it has written.
#[derive(Clone)]
struct Places {
    /// Of peers.
    inside: Arc<Semaphore>,
    /// Of those over TCP that nobody knows yet.
    at_the_door: Arc<Semaphore>,
    limit: usize,
    /// When it was last reported that there is no place.
    reported: Arc<Mutex<Option<Instant>>>,
}

impl Places {
    fn new(limit: usize) -> Self {
        let inside = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Places { inside, at_the_door: Arc::new(Semaphore::new(MAX_HANDSHAKES)), limit, reported: Arc::default() }
    }

    async fn inside(&self) -> io::Result<OwnedSemaphorePermit> {
        if self.inside.available_permits() == 0 {
            let mut reported = self.reported.lock();
            if reported.is_none_or(|at| at.elapsed() >= FULL_REPORT) {
                *reported = Some(Instant::now());
                tracing::warn!(limit = self.limit, "limits.max_bus_connections is reached: further processes on the bus wait for a place");
            }
        }
        self.inside.clone().acquire_owned().await.map_err(io::Error::other)
    }

    async fn at_the_door(&self) -> io::Result<OwnedSemaphorePermit> {
        self.at_the_door.clone().acquire_owned().await.map_err(io::Error::other)
    }

    /// Ends for one at the door that keeps others out.
    async fn crowded(&self) {
        tokio::time::sleep(CROWDED_TIMEOUT).await;
        while self.at_the_door.available_permits() > 0 {
            tokio::time::sleep(CROWD_POLL).await;
        }
    }
}

async fn accept(unix: Option<&UnixListener>, tcp: Option<&TcpListener>, places: &Places) -> io::Result<Accepted> {
    let on_unix = async {
        let Some(listener) = unix else { return std::future::pending().await };
        let place = places.inside().await?;
        listener.accept().await.map(|(stream, _)| Accepted::Unix(stream, place))
    };
    let on_tcp = async {
        let Some(listener) = tcp else { return std::future::pending().await };
        let place = places.at_the_door().await?;
        listener.accept().await.map(|(stream, from)| Accepted::Tcp(stream, from, place))
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
    let places = Places::new(node.config.limits.max_bus_connections);
    let mut peers = JoinSet::new();
    while !*stop.borrow() {
        tokio::select! {
            accepted = accept(unix.as_ref(), tcp.as_ref(), &places) => match accepted {
                Ok(Accepted::Unix(stream, place)) => {
                    let serving = Peer::local(node.clone(), stream).run(stop.clone());
                    peers.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                Ok(Accepted::Tcp(stream, from, place)) => {
                    let tls = tls.as_ref().map(Certificate::tls);
                    peers.spawn(let_in(node.clone(), stream, from, tls, (places.clone(), place), stop.clone()));
                }
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
    stream: TcpStream,
    from: SocketAddr,
    tls: Option<Tls>,
    (places, at_the_door): (Places, OwnedSemaphorePermit),
    mut stop: watch::Receiver<bool>,
) {
    let noted = Noted::new(stream.as_raw_fd());
    let shaken = tokio::select! {
        shaken = shake_hands(stream, tls, node.config.secret.expose()) => shaken,
        () = places.crowded() => Err(HandshakeError::Crowded),
        // It has not published anything.
        _ = stop.changed() => return,
    };
    match shaken {
        Ok((stream, seals)) => {
            let place = tokio::select! {
                place = places.inside() => place,
                // It reads the welcome first.
                _ = stop.changed() => return,
            };
            drop(at_the_door);
            Peer::remote(node, stream, noted, seals).run(stop).await;
            drop(place);
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
