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
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::socket::BusSocket;
use super::stream::{HandshakeError, shake_hands};
use super::tls::Certificate;
use crate::descriptors;
use crate::hub::Node;
pub(crate) use peer::Peer;

/// How long accepting rests when descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Peers over TCP that have not proved yet that they know the secret; past it new ones are dropped.
const MAX_HANDSHAKES: usize = 128;

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
