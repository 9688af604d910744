//! Which shards hear which channel.
//!
//! The table is read once a publication and written when a shard gains its first or loses its last
//! subscriber of a channel; fan-out never touches it.

use std::sync::Arc;

use hashbrown::HashTable;

use super::ingress::ChannelLoad;
use crate::message::{Channel, ChannelRef};
use crate::sync::Mutex;
use crate::sync::atomic::Ordering;

const STRIPES: usize = 64;

/// See the module's documentation.
pub(crate) struct InterestTable {
    stripes: Box<[Mutex<HashTable<Entry>>]>,
}

/// Who hears a channel.
pub(crate) struct Entry {
    pub(crate) channel: Channel,
    /// Bit n: shard n has subscribers.
    pub(crate) shards: u64,
    pub(crate) load: Arc<ChannelLoad>,
}

impl InterestTable {
    pub(crate) fn new() -> Self {
        InterestTable { stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }

    fn stripe(&self, hash: u64) -> &Mutex<HashTable<Entry>> {
        &self.stripes[(hash >> 58) as usize % STRIPES]
    }

    /// Calls `f` with who hears the channel; `None` when nobody does. Under the stripe's lock, so
    /// that a publication need not count references for what it looks up.
    pub(crate) fn with<T>(&self, name: ChannelRef<'_>, f: impl FnOnce(&Entry) -> T) -> Option<T> {
        let stripe = self.stripe(name.hash).lock();
        stripe.find(name.hash, |entry| name.matches(&entry.channel)).map(f)
    }

    /// Notes that a shard hears the channel.
    pub(crate) fn add(&self, name: ChannelRef<'_>, shard: usize) -> (Channel, Arc<ChannelLoad>) {
        let mut stripe = self.stripe(name.hash).lock();
        let entry = stripe
            .entry(name.hash, |entry| name.matches(&entry.channel), |entry| entry.channel.hash())
            .or_insert_with(|| Entry { channel: name.to_channel(), shards: 0, load: Arc::default() })
            .into_mut();
        entry.shards |= 1 << shard;
        (entry.channel.clone(), entry.load.clone())
    }

    /// Notes that a shard no longer hears the channel; true when no shard does.
    pub(crate) fn remove(&self, channel: &Channel, shard: usize) -> bool {
        let mut stripe = self.stripe(channel.hash()).lock();
        let Ok(mut found) = stripe.find_entry(channel.hash(), |entry| entry.channel == *channel) else { return false };
        found.get_mut().shards &= !(1 << shard);
        let nobody = found.get().shards == 0;
        if nobody {
            found.remove();
        }
        nobody
    }

    /// Calls `f` with each channel that is heard and its number of subscriptions.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&Channel, usize)) {
        for stripe in &self.stripes {
            for entry in stripe.lock().iter() {
                f(&entry.channel, entry.load.subscribers.load(Ordering::Relaxed));
            }
        }
    }
}
