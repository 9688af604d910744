//! systemd's two protocols: `Type=notify-reload` and socket activation. Without systemd both do nothing.

use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use listenfd::ListenFd;
use rustix::time::{ClockId, clock_gettime};

/// The name of a descriptor that is no listener.
const LOCK: &str = "lock";

/// Tells the service manager, if there is one (`sd_notify(3)`).
pub(crate) fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return };
    let sent = || -> io::Result<()> {
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
    };
    if let Err(error) = sent() {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Says that a reload begins; `READY=1` ends it.
pub(crate) fn notify_reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    let microseconds = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000;
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
}

/// What was handed over: at most one listener of each kind.
#[derive(Default)]
pub(crate) struct Handed {
    pub(crate) clients: Option<TcpListener>,
    pub(crate) bus: Option<UnixListener>,
}

/// Takes the listeners that systemd has bound (`sd_listen_fds(3)`). Their kind says what they are for: TCP for clients,
/// a Unix socket for the bus.
pub(crate) fn listeners() -> io::Result<Handed> {
    // Before they are taken out of the environment.
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut given = ListenFd::from_env();
    let mut handed = Handed::default();
    for index in 0..given.len() {
        let name = names.split(':').nth(index).filter(|name| !name.is_empty()).unwrap_or("unnamed");
        // The bus socket's, from the worker that spawned this hub: it is kept by not being closed.
        if name == LOCK {
            continue;
        }
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("socket activation: `{name}` is {what}"));
        if let Ok(Some(listener)) = given.take_tcp_listener(index) {
            if handed.clients.replace(listener).is_some() {
                return Err(invalid("a second TCP socket; the hub listens on one"));
            }
        } else if let Ok(Some(listener)) = given.take_unix_listener(index) {
            if handed.bus.replace(listener).is_some() {
                return Err(invalid("a second Unix socket; the bus has one"));
            }
        } else {
            return Err(invalid("neither a TCP nor a Unix stream socket"));
        }
    }
    Ok(handed)
}
