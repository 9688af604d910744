//! Who is on which channel: the seam between one node and many.

pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::Reply;
use crate::error::BrokerError;
use crate::message::{ChannelUser, User};
use crate::protocol::Push;

/// Counts connections and keeps the set of users of each channel that is asked about.
///
/// Channels are named with their app, as the hub knows them inside. One implementation serves one
/// node; what several nodes share (leases in Redis, say) is behind it.
///
/// # Contract
///
/// - **Exact pairs.** The hub calls [`Presence::leave`] once for every [`Entered::In`], whatever
///   becomes of the connection, and never without one. An implementation need not know connections
///   by name.
/// - **First and last.** A user joins with the first connection and leaves with the last one, when
///   the grace that was given with it has passed and none has come back. Joins and leaves of one
///   user on one channel alternate.
/// - **One order.** [`Notify::notify`] is called by one thread at a time for a channel, with versions
///   that rise for as long as the implementation lives, also over times in which nobody was there.
/// - **No gap, no repeat.** What [`Presence::watch`] answers is the set after the notice with its
///   version: a change after it is notified, one before it is in the set. The node drops notices
///   that are not above the version that it has.
/// - **Notified before entered.** The notice of the user's own joining has been given when
///   [`Presence::enter`] reports success, so that nobody hears the user before hearing of the user.
/// - **Atomic limits.** Of connections that enter at the same moment as many get in as there are
///   places.
/// - **Never blocks.** Every method is called from shard threads and returns at once; a network's
///   round trip answers [`Reply::Later`]. None may be called from [`Notify::notify`].
pub trait Presence: Send + Sync + 'static {
    /// Called once, before anything else.
    fn start(&self, notify: Arc<dyn Notify>) -> Result<(), BrokerError>;

    /// The set of now, and notices of its changes from now on. Each shard that hears a channel asks.
    fn watch(&self, channel: &str) -> Reply<Present>;

    /// Nobody on this node hears the channel any more. Also called for channels never watched.
    fn unwatch(&self, channel: &str);

    /// A connection comes onto a channel.
    fn enter(&self, entry: &Entry<'_>) -> Reply<Entered>;

    /// A connection has gone that had entered with `user`. Without grace the user leaves now if it
    /// was the last one. Gives when [`Presence::expire`] has to be called because of that, if
    /// that is sooner than was known.
    fn leave(&self, channel: &str, user: Option<&User>, grace: Duration) -> Option<Instant>;

    /// Lets go of those whose grace has passed; gives when to call it next, if ever.
    fn expire(&self, now: Instant) -> Option<Instant>;

    /// The users of a channel in the order of their ids, those in their grace with 0 connections.
    fn users(&self, channel: &str) -> Reply<Vec<ChannelUser>>;

    /// One of them.
    fn user(&self, channel: &str, id: &str) -> Reply<Option<ChannelUser>>;

    /// How many there are, without looking at each.
    fn count(&self, channel: &str) -> Reply<usize>;

    /// Called once, last. Nothing is notified after it returns.
    fn stop(&self) {}
}

/// A connection that wants onto a channel.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Name of the channel, with its app.
    pub channel: &'a str,
    /// Whom it shows there; `None`: it is counted, and shown to nobody.
    pub user: Option<&'a User>,
    /// Connections that may be on the channel at once; 0: no limit.
    pub max_members: usize,
    /// Bytes that the channel's users may have together, see [`user_bytes`].
    pub max_user_bytes: usize,
    /// How long its user stays when the node ends without a [`Presence::leave`] for each.
    pub grace: Duration,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It is on the channel.
    In {
        /// Version of the notice with which its user joined; 0 without a user.
        version: u64,
    },
    /// All places are taken.
    Full {
        /// How many there are.
        limit: usize,
    },
    /// The list of users would become too long.
    TooManyUsers {
        /// Its limit in bytes.
        limit: usize,
    },
}

/// The users of a channel at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// Of the last change; 0: there was none yet.
    pub version: u64,
    /// In no order.
    pub users: Vec<User>,
}

/// The node's side.
pub trait Notify: Send + Sync {
    /// Tells all of the node's subscribers of the channel. Never blocks.
    fn notify(&self, channel: &str, notice: Notice);
}

/// A change of a channel's users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Above that of every earlier change of the channel.
    pub version: u64,
    /// Which change.
    pub change: Change,
    /// Of whom.
    pub user: User,
    /// Whether it happened through this node: of all nodes one says so, and its application is told.
    pub here: bool,
}

/// See [`Notice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The user's first connection has come.
    Joined,
    /// The user's last connection has gone, and the grace has passed.
    Left,
}

impl Notice {
    /// What subscribers are told.
    pub(crate) fn push<'a>(&'a self, channel: &'a str) -> Push<'a> {
        match self.change {
            Change::Joined => Push::Joined { channel, user: &self.user },
            Change::Left => Push::Left { channel, user: &self.user },
        }
    }
}

/// What a user counts for in the list that newcomers are sent.
pub fn user_bytes(user: &User) -> usize {
    // Some protocols write the id twice; the rest is punctuation.
    2 * user.id().len() + user.info().map_or(0, str::len) + 16
}
