//! The bus: how processes that do not hold the hub reach it (`docs/protocol/bus.md`).
//!
//! A Unix stream socket, or TCP with a shared secret and TLS where it is wanted, with length-prefixed
//! frames. [`client`] blocks, with deadlines; the server runs on a thread of its own in the hub;
//! [`frame`] and [`seal`] are pure; [`address`] says where a bus is, [`socket`] is the Unix socket's file.

pub mod address;
pub mod client;
pub mod frame;
mod link;
pub mod seal;
pub(crate) mod server;
pub mod socket;
mod stream;
pub(crate) mod tls;

use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::time::{Duration, Instant};

use self::address::BusAddress;
use crate::error::StartError;
use crate::transport::http;

/// Listens on `host:port` for peers over TCP or TLS.
pub(crate) fn bind(address: &BusAddress) -> Result<TcpListener, StartError> {
    let unusable = |source: io::Error| StartError::BusTcp { address: address.to_string(), source };
    let (BusAddress::Tcp(place) | BusAddress::Tls(place)) = address else { return Err(unusable(io::ErrorKind::Unsupported.into())) };
    let found = place.to_socket_addrs().map_err(unusable)?.next().ok_or_else(|| unusable(io::ErrorKind::NotFound.into()))?;
    http::bind(found).map_err(unusable)
}

/// How long something may take. Its clock starts with the first wait, because most calls have none.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    budget: Duration,
    started: Option<Instant>,
}

impl Deadline {
    fn new(budget: Duration) -> Self {
        Deadline { budget, started: None }
    }

    /// What is left, counted from the first call of this.
    fn left(&mut self) -> Duration {
        match self.started {
            Some(started) => self.budget.saturating_sub(started.elapsed()),
            None => {
                self.started = Some(Instant::now());
                self.budget
            }
        }
    }

    /// The same, an error when nothing is left.
    fn left_or_timeout(&mut self) -> io::Result<Duration> {
        let left = self.left();
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}
