//! Who hears what on a shard: subscriptions begin, wait for the broker, end.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use slab::Slab;

use super::fanout::{ConnectionKey, JoinRequest, Joining, LocalChannel, subscription};
use super::shard::{Job, Phase, Shard};
use crate::broker::Reply;
use crate::error::BrokerError;
use crate::message::{Channel, ChannelMap, ChannelRef, Position};
use crate::protocol::{ProtocolError, Push};

impl Shard {
    /// Makes a connection a subscriber, at once or when the broker has answered.
    pub(crate) fn join(&mut self, key: ConnectionKey, name: &str, request: JoinRequest) {
        let node = self.node.clone();
        let name = node.channel_ref(name);
        let index = match self.find_channel(name) {
            Some(index) => index,
            None => self.open_channel(name),
        };
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        connection.session.joining += 1;
        self.channels[index].joining.push(Joining { connection: key, request });
        if self.channels[index].position.is_some() {
            self.admit(index);
            self.close_channel_if_unused(index);
        }
    }

    pub(crate) fn find_channel(&self, name: ChannelRef<'_>) -> Option<usize> {
        self.by_channel.get(&name).copied()
    }

    /// Starts to hear a channel. The broker's answer makes it live.
    pub(crate) fn open_channel(&mut self, name: ChannelRef<'_>) -> usize {
        let node = self.node.clone();
        let (channel, load, reply) = node.gain_interest(name, self.index);
        self.openings += 1;
        let opening = self.openings;
        let index = self.channels.insert(LocalChannel::new(channel.clone(), load, opening));
        self.by_channel.insert(channel.clone(), index);
        match reply {
            Reply::Now(Ok(position)) => self.channels[index].start_at(position),
            Reply::Now(Err(error)) => {
                // As if it came later: the caller has yet to add who joins.
                node.shards[self.index].inbox.push(Job::Subscribed { channel, opening, result: Err(error) });
            }
            Reply::Later(promise) => {
                let shard = self.index;
                let weak = Arc::downgrade(&node);
                promise.then(move |result| {
                    if let Some(node) = weak.upgrade() {
                        node.shards[shard].inbox.push(Job::Subscribed { channel, opening, result });
                    }
                });
            }
        }
        index
    }

    pub(super) fn on_subscribed(&mut self, channel: &Channel, opening: u64, result: Result<Position, BrokerError>) {
        let Some(&index) = self.by_channel.get(channel) else { return };
        // An answer from before the channel was left and joined again does not know what was
        // missed in between.
        if self.channels[index].position.is_some() || self.channels[index].opening != opening {
            return;
        }
        match result {
            Ok(position) => {
                self.channels[index].start_at(position);
                self.admit(index);
                self.enqueue(index);
            }
            Err(error) => {
                for joining in std::mem::take(&mut self.channels[index].joining) {
                    if let Some(connection) = self.connection(joining.connection) {
                        connection.session.joining -= 1;
                    }
                    if let JoinRequest::Client { id, .. } = joining.request {
                        let error = ProtocolError::refusal("unavailable", format!("cannot subscribe now: broker {error}")).with_id(id);
                        self.push(joining.connection, &Push::Error(&error));
                    }
                }
            }
        }
        self.close_channel_if_unused(index);
    }

    /// Makes those who wait subscribers. The answer goes out before anything of the channel.
    pub(super) fn admit(&mut self, index: usize) {
        // An answer can end the connection that it goes to, and with it the channel's last
        // subscriber: the channel stays until all have been answered.
        self.channels[index].pins += 1;
        for Joining { connection: key, request } in std::mem::take(&mut self.channels[index].joining) {
            let Some(connection) = self.connection(key) else { continue };
            connection.session.joining -= 1;
            if connection.phase != Phase::Open {
                continue;
            }
            if connection.session.subscriptions.find(index as u32).is_none() {
                self.add_subscriber(key, index);
            }
            if let JoinRequest::Client { id, recover } = request {
                self.push_subscribed(key, index, id.as_ref(), recover.is_some());
            }
        }
        self.channels[index].pins -= 1;
    }

    pub(crate) fn push_subscribed(&mut self, key: ConnectionKey, index: usize, id: Option<&crate::protocol::RequestId>, recover: bool) {
        let channel = self.channels[index].channel.clone();
        let Some(position) = self.channels[index].position else { return };
        // Nothing is kept to recover from yet, so a client that asks is told so.
        let recovered = recover.then_some(false);
        self.push(key, &Push::Subscribed { id, channel: channel.name(), position, recovered });
    }

    pub(crate) fn add_subscriber(&mut self, key: ConnectionKey, index: usize) {
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        let at = connection.session.subscriptions.len() as u32;
        let slot = self.channels[index].add(key.index, at);
        connection.session.subscriptions.push(subscription(index, slot));
        self.counters().subscriptions.fetch_add(1, Relaxed);
    }

    /// Ends one subscription.
    pub(crate) fn leave(&mut self, key: ConnectionKey, at: usize) {
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        let (subscription, moved) = connection.session.subscriptions.remove(at);
        if let Some(moved) = moved
            && let Some(subscriber) = self.channels[moved.channel as usize].subscribers.get_mut(moved.slot as usize)
        {
            subscriber.at = at as u32;
        }
        let index = subscription.channel as usize;
        if let Some(other) = self.channels[index].remove(subscription.slot)
            && let Some(connection) = self.connections.get_mut(other.connection as usize)
        {
            connection.session.subscriptions.set_slot(other.at, subscription.slot);
        }
        self.counters().subscriptions.fetch_sub(1, Relaxed);
        self.close_channel_if_unused(index);
    }

    pub(super) fn leave_all(&mut self, key: ConnectionKey) {
        while let Some(last) = self.connection(key).and_then(|connection| connection.session.subscriptions.len().checked_sub(1)) {
            self.leave(key, last);
        }
    }

    /// Stops hearing a channel that nobody here needs.
    pub(crate) fn close_channel_if_unused(&mut self, index: usize) {
        let Some(channel) = self.channels.get(index) else { return };
        // A batch under way ends first, and looks here again.
        if !channel.is_unused() || !channel.is_between_batches() || channel.queued || channel.held_since_ms.is_some() {
            return;
        }
        let channel = self.channels.remove(index);
        self.by_channel.remove(&channel.channel);
        self.node.lose_interest(&channel.channel, self.index);
        if self.by_channel.is_empty() {
            self.channels = Slab::new();
            self.by_channel = ChannelMap::default();
        }
    }
}
