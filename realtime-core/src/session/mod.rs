//! One client's state: plain data that can be frozen on one shard and thawed on another.

pub(crate) mod heartbeat;
pub(crate) mod outbox;
pub(crate) mod rate;
pub(crate) mod rights;
pub(crate) mod watchlist;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::apps::AppId;
use crate::auth::Grant;
use crate::hub::travel::Reached;
use crate::message::{SocketId, User};
use crate::protocol::{FormatKey, ProtocolState};
use crate::transport::InboundState;
use heartbeat::Heartbeat;
use outbox::Outbox;
use rate::Rate;
use rights::Rights;
use watchlist::Watchlist;

/// Raised when [`FrozenSession`] changes its meaning.
pub(crate) const FROZEN_VERSION: u16 = 5;

/// Everything that a connection is, besides its link.
pub(crate) struct SessionState {
    /// Names the connection outside.
    pub(crate) socket_id: SocketId,
    /// The app it is in.
    pub(crate) app: AppId,
    /// Index into the node's formats.
    pub(crate) format: u16,
    /// The protocol's own facts.
    pub(crate) protocol: ProtocolState,
    /// Whose connection it is.
    pub(crate) user: Option<Box<User>>,
    /// What it may do; `None`: what everybody may.
    pub(crate) rights: Option<Box<Rights>>,
    /// Whom it watches.
    pub(crate) watchlist: Option<Box<Watchlist>>,
    /// Partial input; `None`, and without memory, between messages.
    pub(crate) inbound: Option<Box<InboundState>>,
    /// What the peer has not taken yet.
    pub(crate) outbox: Outbox,
    /// The channels it hears.
    pub(crate) subscriptions: Subscriptions,
    /// Subscriptions that wait for the broker.
    pub(crate) joining: u32,
    /// Faults so far; too many close the connection.
    pub(crate) protocol_errors: u8,
    /// When it was last heard.
    pub(crate) heartbeat: Heartbeat,
    /// How fast it sends client events.
    pub(crate) client_events: Rate,
}

impl SessionState {
    pub(crate) fn new(socket_id: SocketId, app: AppId, format: u16, protocol: ProtocolState, now_ms: u64) -> Self {
        SessionState {
            socket_id,
            app,
            format,
            protocol,
            user: None,
            rights: None,
            watchlist: None,
            inbound: None,
            outbox: Outbox::default(),
            subscriptions: Subscriptions::default(),
            joining: 0,
            protocol_errors: 0,
            heartbeat: Heartbeat::new(now_ms),
            client_events: Rate::default(),
        }
    }

    pub(crate) fn format_key(&self) -> FormatKey {
        FormatKey { format: self.format, variant: self.protocol.variant }
    }
}

/// A session on its way to another shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FrozenSession {
    /// [`FROZEN_VERSION`] of the writer.
    pub(crate) version: u16,
    pub(crate) socket_id: SocketId,
    /// Empty: the default one.
    pub(crate) app: String,
    pub(crate) format: u16,
    pub(crate) protocol: ProtocolState,
    pub(crate) user: Option<User>,
    pub(crate) grant: Grant,
    pub(crate) inbound: Option<InboundState>,
    /// Bytes that the peer has not taken, starting in the middle of a frame if one was cut.
    pub(crate) outbox: Vec<u8>,
    /// How many of them finish what has been begun on the wire.
    pub(crate) outbox_begun: usize,
    /// Channels with their app, and the newest of each that was sent or is in `outbox`.
    pub(crate) subscriptions: Vec<(String, Reached)>,
    /// Whom it watches, and whether it knows them to be online.
    pub(crate) watchlist: Vec<(String, bool)>,
    pub(crate) protocol_errors: u8,
}

/// A subscription as its connection sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subscription {
    /// Index of the channel on this shard.
    pub(crate) channel: u32,
    /// Index in that channel's list of subscribers.
    pub(crate) slot: u32,
}

/// Connections with more subscriptions than this look them up in a map.
const SCAN_LIMIT: usize = 16;

/// The subscriptions of one connection: a list, with an index once scanning it would cost.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    list: Vec<Subscription>,
    index: HashMap<u32, u32>,
}

impl Subscriptions {
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Subscription> + '_ {
        self.list.iter().copied()
    }

    /// Where the subscription to `channel` stands in the list.
    pub(crate) fn find(&self, channel: u32) -> Option<usize> {
        if self.index.is_empty() {
            self.list.iter().position(|subscription| subscription.channel == channel)
        } else {
            self.index.get(&channel).map(|at| *at as usize)
        }
    }

    /// Adds a subscription and says where it stands.
    pub(crate) fn push(&mut self, subscription: Subscription) -> u32 {
        let at = self.list.len() as u32;
        if self.list.is_empty() {
            // Most connections have one subscription; the usual first growth is to four.
            self.list.reserve_exact(1);
        }
        self.list.push(subscription);
        if !self.index.is_empty() {
            self.index.insert(subscription.channel, at);
        } else if self.list.len() > SCAN_LIMIT {
            self.index = self.list.iter().zip(0..).map(|(subscription, at)| (subscription.channel, at)).collect();
        }
        at
    }

    /// Takes the subscription out; the one that moved into its place is given, if one did.
    pub(crate) fn remove(&mut self, at: usize) -> (Subscription, Option<Subscription>) {
        let removed = self.list.swap_remove(at);
        let moved = self.list.get(at).copied();
        if !self.index.is_empty() {
            self.index.remove(&removed.channel);
            if let Some(moved) = moved {
                self.index.insert(moved.channel, at as u32);
            }
        }
        (removed, moved)
    }

    /// Notes that the subscriber has moved in its channel's list.
    pub(crate) fn set_slot(&mut self, at: u32, slot: u32) {
        if let Some(subscription) = self.list.get_mut(at as usize) {
            subscription.slot = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn subscriptions_agree_with_a_plain_map(operations in proptest::collection::vec((any::<bool>(), 0u32..64), 0..300)) {
            let mut subscriptions = Subscriptions::default();
            let mut model = HashMap::new();
            for (add, channel) in operations {
                match (add, subscriptions.find(channel)) {
                    (true, None) => {
                        subscriptions.push(Subscription { channel, slot: channel * 2 });
                        model.insert(channel, channel * 2);
                    }
                    (false, Some(at)) => {
                        let (removed, moved) = subscriptions.remove(at);
                        prop_assert_eq!(model.remove(&removed.channel), Some(removed.slot));
                        prop_assert!(moved.is_none_or(|moved| subscriptions.find(moved.channel) == Some(at)));
                    }
                    _ => {}
                }
                prop_assert_eq!(subscriptions.len(), model.len());
                for subscription in subscriptions.iter() {
                    prop_assert_eq!(model.get(&subscription.channel), Some(&subscription.slot));
                }
                for channel in 0..64 {
                    prop_assert_eq!(subscriptions.find(channel).is_some(), model.contains_key(&channel));
                }
            }
        }
    }
}
