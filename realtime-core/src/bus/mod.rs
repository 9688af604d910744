//! The bus: how processes that do not hold the hub reach it (`docs/protocol/bus.md`).
//!
//! A Unix stream socket, or TCP with a shared secret and TLS where it is wanted, with length-prefixed
//! frames. [`client`] blocks, with deadlines; the server runs on a thread of its own in the hub;
//! [`frame`] and [`seal`] are pure; [`address`] says where a bus is, [`socket`] is the Unix socket's file.

pub mod address;
pub mod client;
pub mod frame;
mod link;
mod questions;
pub mod seal;
pub(crate) mod server;
pub mod socket;
mod stream;
pub(crate) mod tls;

use std::io;
use std::net::{TcpListener, ToSocketAddrs};

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
