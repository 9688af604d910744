//! Presence within one process.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Change, Entered, Entry, Notice, Notify, Presence, Present, user_bytes};
use crate::broker::Reply;
use crate::error::BrokerError;
use crate::message::{ChannelUser, User, channel_hash};

const STRIPES: usize = 64;

/// See the module's documentation.
pub struct Memory {
    /// Where notices go; set by `start`.
    notify: OnceLock<Arc<dyn Notify>>,
    stripes: Box<[Mutex<Stripe>]>,
    /// Of the last change on any channel.
    version: AtomicU64,
    /// Those who may have to be let go, soonest first. Never locked together with a stripe.
    graces: Mutex<BinaryHeap<Reverse<Grace>>>,
    /// Set by `stop`; read under a stripe's lock.
    stopped: AtomicBool,
}

#[derive(Default)]
struct Stripe {
    rooms: HashMap<Box<str>, Room>,
}

/// A channel that somebody is on.
#[derive(Default)]
struct Room {
    connections: usize,
    members: HashMap<Arc<str>, Member>,
    /// Sum of [`user_bytes`].
    bytes: usize,
}

/// A user on a channel, shown as the first connection said.
struct Member {
    user: User,
    connections: usize,
    joined: u64,
    /// When to let go, while there is no connection.
    until: Option<Instant>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Grace {
    until: Instant,
    channel: Box<str>,
    user: Arc<str>,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            notify: OnceLock::new(),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            version: AtomicU64::new(0),
            graces: Mutex::default(),
            stopped: AtomicBool::new(false),
        }
    }
}

impl Memory {
    fn stripe(&self, channel: &str) -> &Mutex<Stripe> {
        &self.stripes[(channel_hash(channel) >> 58) as usize % STRIPES]
    }

    fn with_room<T>(&self, channel: &str, look: impl FnOnce(&Room) -> T) -> Option<T> {
        self.stripe(channel).lock().rooms.get(channel).map(look)
    }

    /// Gives the change its version and tells of it, under the lock of the channel's stripe.
    fn tell(&self, channel: &str, change: Change, user: User) -> u64 {
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(notify) = self.notify.get().filter(|_| !self.stopped.load(Ordering::Relaxed)) {
            notify.notify(channel, Notice { version, change, user, here: true });
        }
        version
    }

    fn let_go(&self, channel: &str, room: &mut Room, id: &str) {
        if let Some(member) = room.members.remove(id) {
            room.bytes -= user_bytes(&member.user);
            self.tell(channel, Change::Left, member.user);
        }
    }
}

impl Stripe {
    fn forget_if_empty(&mut self, channel: &str) {
        if self.rooms.get(channel).is_some_and(|room| room.connections == 0 && room.members.is_empty()) {
            self.rooms.remove(channel);
        }
        if self.rooms.is_empty() {
            // Gives back what a crowd needed.
            self.rooms = HashMap::new();
        }
    }
}

impl Presence for Memory {
    fn start(&self, notify: Arc<dyn Notify>) -> Result<(), BrokerError> {
        self.notify.set(notify).map_err(|_| BrokerError::Unavailable { reason: "already started".into() })
    }

    fn watch(&self, channel: &str) -> Reply<Present> {
        let stripe = self.stripe(channel).lock();
        let users = stripe.rooms.get(channel).map(|room| room.members.values().map(|member| member.user.clone()).collect());
        // The channel changes under this lock: its last change had this version or one before it,
        // also if it has been forgotten since.
        Reply::Now(Ok(Present { version: self.version.load(Ordering::Relaxed), users: users.unwrap_or_default() }))
    }

    fn unwatch(&self, _channel: &str) {}

    fn enter(&self, entry: &Entry<'_>) -> Reply<Entered> {
        let mut stripe = self.stripe(entry.channel).lock();
        if !stripe.rooms.contains_key(entry.channel) {
            stripe.rooms.insert(entry.channel.into(), Room::default());
        }
        let Some(room) = stripe.rooms.get_mut(entry.channel) else { return Reply::Now(Err(BrokerError::Stopped)) };
        if entry.max_members > 0 && room.connections >= entry.max_members {
            return Reply::Now(Ok(Entered::Full { limit: entry.max_members }));
        }
        let Some(user) = entry.user else {
            room.connections += 1;
            return Reply::Now(Ok(Entered::In { version: 0 }));
        };
        let version = match room.members.get_mut(user.id()) {
            Some(member) => {
                member.connections += 1;
                member.until = None;
                member.joined
            }
            None => {
                let bytes = user_bytes(user);
                if room.bytes + bytes > entry.max_user_bytes {
                    stripe.forget_if_empty(entry.channel);
                    return Reply::Now(Ok(Entered::TooManyUsers { limit: entry.max_user_bytes }));
                }
                room.bytes += bytes;
                let joined = self.tell(entry.channel, Change::Joined, user.clone());
                room.members.insert(user.shared_id(), Member { user: user.clone(), connections: 1, joined, until: None });
                joined
            }
        };
        room.connections += 1;
        Reply::Now(Ok(Entered::In { version }))
    }

    fn leave(&self, channel: &str, user: Option<&User>, grace: Duration) -> Option<Instant> {
        let mut stripe = self.stripe(channel).lock();
        let room = stripe.rooms.get_mut(channel)?;
        room.connections = room.connections.saturating_sub(1);
        let mut again = None;
        if let Some(user) = user
            && let Some(member) = room.members.get_mut(user.id())
        {
            member.connections = member.connections.saturating_sub(1);
            if member.connections == 0 {
                if grace.is_zero() {
                    self.let_go(channel, room, user.id());
                } else {
                    let until = Instant::now() + grace;
                    member.until = Some(until);
                    again = Some(Grace { until, channel: channel.into(), user: member.user.shared_id() });
                }
            }
        }
        stripe.forget_if_empty(channel);
        drop(stripe);
        let grace = again?;
        let until = grace.until;
        let mut graces = self.graces.lock();
        let is_sooner = graces.peek().is_none_or(|Reverse(next)| until < next.until);
        graces.push(Reverse(grace));
        is_sooner.then_some(until)
    }

    fn expire(&self, now: Instant) -> Option<Instant> {
        loop {
            let due = {
                let mut graces = self.graces.lock();
                match graces.peek() {
                    None => {
                        *graces = BinaryHeap::new();
                        return None;
                    }
                    Some(Reverse(next)) if next.until > now => return Some(next.until),
                    Some(_) => graces.pop(),
                }
            };
            let Reverse(Grace { until, channel, user }) = due?;
            let mut stripe = self.stripe(&channel).lock();
            if let Some(room) = stripe.rooms.get_mut(&*channel)
                // Who has come back since has no end, or a later one.
                && room.members.get(&user).is_some_and(|member| member.until == Some(until))
            {
                self.let_go(&channel, room, &user);
                stripe.forget_if_empty(&channel);
            }
        }
    }

    fn users(&self, channel: &str) -> Reply<Vec<ChannelUser>> {
        let mut users = self
            .with_room(channel, |room| {
                let users = room.members.values();
                users.map(|member| ChannelUser { user: member.user.clone(), connections: member.connections }).collect::<Vec<_>>()
            })
            .unwrap_or_default();
        users.sort_unstable_by(|a, b| a.user.id().cmp(b.user.id()));
        Reply::Now(Ok(users))
    }

    fn user(&self, channel: &str, id: &str) -> Reply<Option<ChannelUser>> {
        let member = self.with_room(channel, |room| {
            room.members.get(id).map(|member| ChannelUser { user: member.user.clone(), connections: member.connections })
        });
        Reply::Now(Ok(member.flatten()))
    }

    fn count(&self, channel: &str) -> Reply<usize> {
        Reply::Now(Ok(self.with_room(channel, |room| room.members.len()).unwrap_or_default()))
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Whoever got in before holds a stripe; after this nobody is told.
        for stripe in &self.stripes {
            drop(stripe.lock());
        }
    }
}
