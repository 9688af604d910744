//! The local bus: how processes that do not hold the hub reach it (`docs/protocol/bus.md`).
//!
//! A Unix stream socket with length-prefixed frames. [`client`] blocks, with deadlines; the
//! server runs on a thread of its own in the hub; [`frame`] is pure; [`socket`] is the file.

pub mod client;
pub mod frame;
mod link;
pub(crate) mod server;
pub mod socket;
