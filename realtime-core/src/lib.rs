//! A realtime hub as a library: publish in one thread, frames on every subscribed client.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`hub`] | the handle, the shards, fan-out, drain |
//! | [`protocol`] | bytes to commands, publications to bytes; no I/O |
//! | [`transport`] | listener, upgrade, framing; knows no channel |
//! | [`broker`] | where publications get their order |
//! | [`presence`] | who is on which channel |
//! | [`hooks`] | what the application hears of connections and channels |
//! | [`bus`] | how other processes of the host reach the hub |
//! | `api` | the signed HTTP API of the Pusher protocol |
//! | [`apps`] | names of channels and users that do not meet |
//! | [`history`] | what is kept of a channel |
//! | [`auth`] | who may do what |
//! | [`message`] | channels, publications, users, positions |
//! | [`config`] | every setting, its unit and its default |
//! | [`close`], [`error`] | why connections end, what can go wrong |
//! | [`descriptors`] | what a forked child has to close |
//!
//! ```no_run
//! use realtime_core::{Config, Hub, Payload, Publish};
//!
//! let hub = Hub::start(Config::default())?;
//! println!("listening on {}", hub.url());
//! let receipt = hub.publish(&Publish::new("orders", "shipped", Payload::Json(r#"{"id":42}"#)))?;
//! println!("offset {} for {} subscribers", receipt.position.offset, receipt.matched);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! None is on by default. Turning one on compiles code; what happens is decided by the configuration.
//!
//! | feature | what it adds |
//! | --- | --- |
//! | `redis` | `broker.url = "redis://…"`: several hubs as one |
//!
//! # Versions
//!
//! Semantic versioning; before 1.0 a new minor version may break. Enums and structures that may grow
//! are `#[non_exhaustive]`. serde, serde_json and tracing are part of what is seen here: a new major
//! version of theirs is a new one of this crate.

mod api;
pub mod apps;
pub mod auth;
pub mod broker;
pub mod bus;
pub mod close;
#[cfg(feature = "redis")]
mod cluster;
pub mod config;
mod deadline;
pub mod descriptors;
pub mod error;
pub mod history;
pub mod hooks;
pub mod hub;
mod letters;
pub mod message;
mod outbound;
mod patience;
pub mod presence;
pub mod protocol;
mod session;
mod sync;
pub mod transport;
mod trust;
mod wire;

pub use apps::{AppId, Apps};
pub use config::{Config, ConfigBuilder, ConfigError, EffectiveConfig, Source};
pub use error::{BrokerError, PublishError, QueryError, StartError};
pub use hub::{App, Hub, HubBuilder, Stats, StopReport};
pub use message::{ChannelInfo, ChannelUser, Epoch, InvalidChannel, InvalidUser, Payload, Position, Publish, Receipt, SocketId, User};
