//! Where a bus is: a Unix socket's path, `tcp://host:port`, or `tls://host:port`.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How an address over TCP begins.
const TCP: &str = "tcp://";
/// The same with TLS.
const TLS: &str = "tls://";

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusAddress {
    /// A Unix stream socket on this host.
    Unix(PathBuf),
    /// A host, by name or address, and a port: `hub:7100`, `[::1]:7100`.
    Tcp(String),
    /// The same, with TLS.
    Tls(String),
}

/// Why a text is no address of a bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidBusAddress {
    /// It has another scheme than `tcp` and `tls`.
    #[error("`{address}` is neither a path nor tcp://host:port or tls://host:port")]
    Scheme {
        /// The text.
        address: String,
    },
    /// Host or port is missing.
    #[error("`{address}` names no host and port, as in tcp://hub:7100")]
    HostAndPort {
        /// The text.
        address: String,
    },
}

impl BusAddress {
    /// The addresses in a text that separates them with commas; none in an empty one.
    pub fn list(text: &str) -> Result<Vec<BusAddress>, InvalidBusAddress> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::parse).collect()
    }

    /// The path, of a Unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            BusAddress::Unix(path) => Some(path),
            BusAddress::Tcp(_) | BusAddress::Tls(_) => None,
        }
    }

    /// Where it is after it was bound, for one with a name or port 0.
    pub fn bound_to(&self, bound: SocketAddr) -> BusAddress {
        match self {
            BusAddress::Tls(_) => BusAddress::Tls(bound.to_string()),
            BusAddress::Tcp(_) | BusAddress::Unix(_) => BusAddress::Tcp(bound.to_string()),
        }
    }
}

/// The host in `host:port`, an IPv6 address without its brackets.
pub(super) fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

impl FromStr for BusAddress {
    type Err = InvalidBusAddress;

    fn from_str(text: &str) -> Result<Self, InvalidBusAddress> {
        let (rest, kind): (_, fn(String) -> BusAddress) = match (text.strip_prefix(TCP), text.strip_prefix(TLS)) {
            (Some(rest), _) => (rest, BusAddress::Tcp),
            (None, Some(rest)) => (rest, BusAddress::Tls),
            (None, None) if text.contains("://") => return Err(InvalidBusAddress::Scheme { address: text.into() }),
            (None, None) => return Ok(BusAddress::Unix(text.into())),
        };
        match rest.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !rest.contains('/') && port.parse::<u16>().is_ok() => Ok(kind(rest.into())),
            _ => Err(InvalidBusAddress::HostAndPort { address: text.into() }),
        }
    }
}

impl fmt::Display for BusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BusAddress::Unix(path) => path.display().fmt(f),
            BusAddress::Tcp(address) => write!(f, "{TCP}{address}"),
            BusAddress::Tls(address) => write!(f, "{TLS}{address}"),
        }
    }
}

impl From<&Path> for BusAddress {
    fn from(path: &Path) -> Self {
        BusAddress::Unix(path.into())
    }
}

impl From<PathBuf> for BusAddress {
    fn from(path: PathBuf) -> Self {
        BusAddress::Unix(path)
    }
}

/// The socket addresses of `host:port`, or `TimedOut`.
///
/// The system's resolver may take many seconds and cannot be called off. A name is therefore looked
/// up on a thread of its own, which ends when the resolver does; an address needs none.
pub fn resolve(address: &str, timeout: Duration) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let (sender, receiver) = mpsc::channel();
    let name = address.to_owned();
    thread::Builder::new().name("rt-resolve".into()).spawn(move || {
        // Nobody waits any more once the deadline has passed.
        drop(sender.send(name.to_socket_addrs().map(Iterator::collect)));
    })?;
    let found: Vec<SocketAddr> = receiver.recv_timeout(timeout).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if found.is_empty() { Err(io::Error::new(io::ErrorKind::NotFound, format!("`{address}` has no address"))) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_hosts_with_a_port() {
        let parsed = BusAddress::list("/run/a.sock, tcp://hub:7100,tcp://[::1]:1, tls://hub:7101, ").expect("valid");
        let expected = [
            BusAddress::Unix("/run/a.sock".into()),
            BusAddress::Tcp("hub:7100".into()),
            BusAddress::Tcp("[::1]:1".into()),
            BusAddress::Tls("hub:7101".into()),
        ];
        assert_eq!(parsed, expected);
        assert_eq!(
            parsed.iter().map(BusAddress::to_string).collect::<Vec<_>>(),
            ["/run/a.sock", "tcp://hub:7100", "tcp://[::1]:1", "tls://hub:7101"]
        );
        assert_eq!(["hub:7100", "[::1]:1", "10.0.0.1:2"].map(host), ["hub", "::1", "10.0.0.1"]);
        assert_eq!(BusAddress::list(""), Ok(vec![]));
        for text in ["tcp://", "tcp://hub", "tcp://:1", "tcp://hub:65536", "tcp://hub:x", "tcp://hub:1/x", "tls://", "tls://hub"] {
            assert!(matches!(BusAddress::list(text), Err(InvalidBusAddress::HostAndPort { .. })), "{text}");
        }
        for text in ["http://hub:1", "unix:///run/a.sock"] {
            assert!(matches!(BusAddress::list(text), Err(InvalidBusAddress::Scheme { .. })), "{text}");
        }
    }

    #[test]
    fn names_are_looked_up_and_addresses_are_not() {
        let zero = Duration::ZERO;
        assert_eq!(resolve("127.0.0.1:5", zero).expect("an address"), ["127.0.0.1:5".parse().expect("valid")]);
        assert!(resolve("localhost:5", Duration::from_secs(60)).expect("a name").iter().all(|found| found.port() == 5));
        assert!(resolve("nobody.invalid:5", Duration::from_secs(60)).is_err());
    }
}
