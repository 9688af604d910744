//! The handle by which a host holds a hub.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;

use super::app::App;
use super::builder::HubBuilder;
use super::node::Node;
use super::stats::Stats;
use super::threads::{Running, StopReport};
use crate::apps::{AppId, UnknownApp};
use crate::auth::Admission;
use crate::broker::Reply;
use crate::bus::server::Peer;
use crate::config::Config;
use crate::error::{BrokerError, PublishError, QueryError, StartError};
use crate::history::{self, History};
use crate::message::{ChannelInfo, ChannelUser, Payload, Publish, Receipt, SocketId, User, validate_channel};
use crate::protocol::{Command, Opening};
use crate::sync::Mutex;
use crate::transport::FrameSink;
use crate::transport::link::SinkLink;

/// A running hub. Clones are handles to the same one; it runs until [`Hub::stop`] or until the last
/// handle is dropped, which stops it without waiting.
#[derive(Clone)]
pub struct Hub(pub(super) Arc<HubInner>);

pub(super) struct HubInner {
    pub(super) node: Arc<Node>,
    /// What a stop takes.
    pub(super) running: Mutex<Option<Running>>,
}

impl Hub {
    /// A hub with the native protocol and the memory broker; see [`HubBuilder::start`].
    pub fn start(config: Config) -> Result<Hub, StartError> {
        HubBuilder::new(config).start()
    }

    /// Where it listens, with the port that was given for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.node.local_addr
    }

    /// Where it is watched (`monitoring.listen`), if that is an address of its own, with the port that was given for port 0.
    pub fn monitoring_addr(&self) -> Option<SocketAddr> {
        self.0.node.monitoring_addr
    }

    /// Where the bus listens over TCP, if it does, with the port that was given for port 0.
    pub fn bus_addr(&self) -> Option<SocketAddr> {
        self.0.node.bus_addr
    }

    /// Where native clients connect.
    pub fn url(&self) -> String {
        let node = &self.0.node;
        format!("ws://{}{}/ws", node.local_addr, node.config.path)
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &Config {
        &self.0.node.config
    }

    /// Publishes to a channel. Waits for room in the ingress queue at most `publish_timeout_ms`;
    /// never waits for a subscriber. Must not be called from a hub thread.
    pub fn publish(&self, publish: &Publish<'_>) -> Result<Receipt, PublishError> {
        validate_channel(publish.channel)?;
        self.publish_checked(publish)
    }

    /// The app that hosts call `name`.
    pub fn app(&self, name: &str) -> Result<App<'_>, UnknownApp> {
        Ok(App { hub: self, id: self.0.node.apps.by_name(name)? })
    }

    /// Publishes to all connections of a user.
    pub fn publish_to_user(&self, user_id: &str, event: &str, payload: Payload<'_>, except: &[SocketId]) -> Result<Receipt, PublishError> {
        self.default_app().publish_to_user(user_id, event, payload, except)
    }

    fn default_app(&self) -> App<'_> {
        App { hub: self, id: AppId::DEFAULT }
    }

    pub(super) fn publish_checked(&self, publish: &Publish<'_>) -> Result<Receipt, PublishError> {
        let node = &self.0.node;
        let published = match node.publish(publish, node.config.publish_timeout())? {
            Reply::Now(result) => result,
            Reply::Later(promise) => {
                let timeout = node.config.receipt_timeout();
                promise.wait(timeout).ok_or(PublishError::Timeout { waited: timeout })?
            }
        };
        let published = published.map_err(|error| match error {
            BrokerError::Stopped => PublishError::Stopped,
            error => PublishError::Broker(error),
        })?;
        Ok(Receipt { position: published.position, matched: published.matched })
    }

    /// The users who are subscribed to a channel, ordered by id. Waits at most a second.
    pub fn channel_users(&self, channel: &str) -> Result<Vec<ChannelUser>, QueryError> {
        self.default_app().channel_users(channel)
    }

    /// How many users are subscribed to a channel. Waits at most a second.
    pub fn count_users(&self, channel: &str) -> Result<usize, QueryError> {
        self.default_app().count_users(channel)
    }

    /// One of the users who are subscribed to a channel. Waits at most a second.
    pub fn channel_user(&self, channel: &str, id: &str) -> Result<Option<ChannelUser>, QueryError> {
        self.default_app().channel_user(channel, id)
    }

    /// What is kept of a channel whose policy has `history` or `last_value`. Waits at most a second.
    pub fn history(&self, channel: &str, query: &history::Query) -> Result<History, QueryError> {
        self.default_app().history(channel, query)
    }

    /// Closes all connections of a user with a code of the application's choice; says how many.
    pub fn disconnect_user(&self, user_id: &str, code: u16, reason: &str) -> Result<usize, QueryError> {
        self.default_app().disconnect_user(user_id, code, reason)
    }

    /// Closes all connections of a user, and keeps the user out for so long whatever credential
    /// comes; says how many were closed. A hub that starts later, or did not hear it, knows nothing of the ban.
    pub fn ban_user(&self, user_id: &str, duration: Duration, code: u16, reason: &str) -> Result<usize, QueryError> {
        self.default_app().ban_user(user_id, duration, code, reason)
    }

    /// Says whose a connection is; `None` makes it nobody's. What a credential has said of it is
    /// over. False: there is no such connection, the user has as many as the limit allows, or the
    /// broker failed, and then the connection is nobody's.
    pub fn set_user(&self, socket: SocketId, user: Option<User>) -> Result<bool, QueryError> {
        self.default_app().set_user(socket, user)
    }

    /// The channels with subscribers on this hub, ordered by name.
    pub fn channels(&self) -> Vec<ChannelInfo> {
        self.default_app().channels()
    }

    /// The hubs that share a broker, this one first (`hubs`: `id`, `host`, `pid`, `listen`, `version`, `uptime_ms`,
    /// `connections`, `channels`), and the ids of those that did not answer in time (`missing`). Waits at most a second.
    pub fn cluster(&self) -> Result<serde_json::Value, QueryError> {
        self.0.node.cluster_status()
    }

    /// What has been counted since the start.
    pub fn stats(&self) -> Stats {
        self.0.node.stats()
    }

    /// A connection on the bus to this hub, for programs of this process that use it as others do:
    /// see [`crate::bus::client::Client::over`]. It ends with the hub.
    pub fn open_bus(&self) -> io::Result<UnixStream> {
        let node = &self.0.node;
        let runtime = node.runtime.get().ok_or(io::ErrorKind::NotConnected)?;
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        let (node, stop) = (node.clone(), node.inner_bus_stop.subscribe());
        runtime.spawn(async move {
            match tokio::net::UnixStream::from_std(theirs) {
                Ok(stream) => Peer::local(node, stream).run(stop).await,
                Err(error) => tracing::error!(%error, "cannot serve this process on the bus"),
            }
        });
        Ok(ours)
    }

    /// Acknowledges the event with the number `done` and waits for the next one of those that are
    /// queued for workers (`hooks.events`): a JSON object with `number`, `attempt`, `dropped` and
    /// `event`. `None`: there was none in time.
    pub fn next_event(&self, done: Option<u64>, timeout: Duration) -> Result<Option<String>, QueryError> {
        let queue = self.0.node.hooks.queue.as_ref().ok_or(QueryError::NoEvents)?;
        queue.quiet();
        Ok(queue.next(done, timeout).and_then(|leased| serde_json::to_string(&leased).ok()))
    }

    /// A descriptor for a host's own loop: readable when [`Hub::next_event`] may have something. That call
    /// with a timeout of zero, until it has nothing, makes it wait again. It belongs to the hub.
    pub fn event_descriptor(&self) -> Result<BorrowedFd<'_>, QueryError> {
        let queue = self.0.node.hooks.queue.as_ref().ok_or(QueryError::NoEvents)?;
        queue.descriptor().map_err(|error| {
            tracing::error!(%error, "no descriptor for events");
            QueryError::NoEvents
        })
    }

    /// Acknowledges an event without asking for the next one.
    pub fn event_done(&self, number: u64) {
        if let Some(queue) = &self.0.node.hooks.queue {
            queue.done(number);
        }
    }

    /// Gives an event back that was not acknowledged: somebody else gets it.
    pub fn give_event_back(&self, number: u64) {
        if let Some(queue) = &self.0.node.hooks.queue {
            queue.give_back(number);
        }
    }

    /// Whether [`Hub::stop`] has not been called.
    pub fn is_running(&self) -> bool {
        !self.0.node.stopping.load(Ordering::Relaxed)
    }

    /// Moves a connection to another shard without its client noticing. False: it is not here, or
    /// it is closing, or joins a channel just now.
    ///
    /// # Panics
    ///
    /// Never; a shard number that does not exist is taken modulo their count.
    pub fn move_connection(&self, socket: SocketId, to: usize) -> Result<bool, QueryError> {
        self.0.node.move_connection(socket, to)
    }

    /// Adds a connection that only receives, through a sink of the host's: native frames of these
    /// channels. For measurements and for hosts with transports of their own.
    pub fn attach_sink(&self, channels: &[&str], sink: Box<dyn FrameSink>) -> Result<(), QueryError> {
        channels.iter().try_for_each(|channel| validate_channel(channel))?;
        let node = &self.0.node;
        let Some(place) = node.place() else { return Err(QueryError::Stopped) };
        let subscribe = |channel: &&str| Command::Subscribe { id: None, channel: (*channel).to_owned(), recover: None, credentials: None };
        let opening = Opening { commands: channels.iter().map(subscribe).collect(), ..Opening::default() };
        node.hand_over(place, Box::new(SinkLink(sink)), 0, opening, Admission::Nobody, Bytes::new());
        Ok(())
    }

    /// Serves a client that the host has accepted, from its HTTP request on. A socket that is not
    /// taken is given back.
    pub fn accept(&self, stream: TcpStream) -> Result<(), (QueryError, TcpStream)> {
        if let Err(error) = stream.set_nonblocking(true) {
            tracing::warn!(%error, "cannot take a socket over");
            return Err((QueryError::Stopped, stream));
        }
        self.0.node.arriving.try_send(stream).map_err(|error| match error {
            TrySendError::Full(stream) => (QueryError::Timeout { waited: Duration::ZERO }, stream),
            TrySendError::Closed(stream) => (QueryError::Stopped, stream),
        })
    }

    /// Stops: no new connections and publications; what was accepted goes out; clients are closed
    /// with 1001 and have until the timeout to take it. Blocks that long at most; a second call
    /// returns at once.
    pub fn stop(&self, timeout: Duration) -> StopReport {
        let running = self.0.running.lock().take();
        running.map_or(StopReport { complete: true }, |running| running.stop(&self.0.node, timeout))
    }
}

impl Drop for HubInner {
    fn drop(&mut self) {
        if let Some(running) = self.running.lock().take() {
            running.abandon(&self.node);
        }
    }
}
