//! The hub: a handle for hosts, shards that own connections, and what they share.
//!
//! A publication's path: [`Hub::publish`] checks it and waits for room → the broker gives it its
//! place → `Routes::deliver` looks up who hears the channel and queues it to those shards → each
//! shard batches, encodes once per format and writes (`fanout`, `shard`).

mod access;
mod app;
mod ask;
mod builder;
mod commands;
mod connections;
mod counted;
mod counts;
mod delivery;
mod fanout;
mod handle;
pub(crate) mod hooks;
mod inbox;
mod ingress;
mod interest;
#[cfg(interleavings)]
pub mod interleavings;
mod lost_time;
mod manners;
mod node;
pub(crate) mod others;
mod pacing;
pub(crate) mod query;
mod recovery;
mod resume;
mod roster;
mod routes;
mod shard;
mod slices;
mod stats;
mod subscriptions;
pub(crate) mod tap;
mod threads;
pub(crate) mod travel;
mod watchlists;
mod windows;

pub use app::App;
pub use builder::HubBuilder;
pub(crate) use counted::Counted;
pub use handle::Hub;
pub(crate) use node::Node;
pub use stats::Stats;
pub use threads::StopReport;
