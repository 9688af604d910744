//! The broker of a single node: order, positions, histories and idempotency keys in memory.
//!
//! Publications of one channel are sequenced under the lock of the channel's stripe, which is held
//! for "next offset, queue to the interested shards" (`docs/adr` says what else was measured).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hashbrown::HashTable;

use super::{Broker, Deliver, Published, Reply};
use crate::error::BrokerError;
use crate::history::{Log, Page, Range};
use crate::message::{Channel, ChannelRef, Epoch, Position, Publication, Publish, channel_hash};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Locks that channels share; many more than threads that publish at once.
const STRIPES: usize = 64;
/// How long an idempotency key is remembered.
const ID_WINDOW: Duration = Duration::from_secs(300);

/// See the module's documentation.
pub struct Memory {
    /// Where publications go once they are sequenced; set by `start`.
    deliver: OnceLock<Arc<dyn Deliver>>,
    stripes: Box<[Mutex<Stripe>]>,
    /// The next channel's epoch: random at the start and never repeated.
    next_epoch: AtomicU64,
    /// Idle channels that one stripe remembers.
    idle_channels: usize,
    /// Idempotency keys that are remembered, over all stripes.
    idempotency_keys: usize,
    /// How many are.
    known_ids: AtomicUsize,
    /// Bytes of kept publications, over all stripes.
    history_bytes: usize,
    /// How many there are.
    kept_bytes: AtomicUsize,
    /// The stripe that gives up histories next.
    next_trim: AtomicUsize,
    /// What ages are counted from.
    started: Instant,
    /// Set by `stop`; read under a stripe's lock.
    stopped: AtomicBool,
}

#[derive(Default)]
struct Stripe {
    channels: HashTable<Entry>,
    /// Keys of (channel, id) and what was answered.
    ids: HashMap<(Box<str>, Box<str>), (Position, Instant)>,
    /// The same keys, oldest first.
    id_order: VecDeque<(Instant, Box<str>, Box<str>)>,
    /// Bytes of publications that it keeps.
    kept_bytes: usize,
}

struct Entry {
    name: Box<str>,
    hash: u64,
    position: Position,
    subscribed: bool,
    /// Seconds since the broker's start.
    last_used: u32,
    /// What is kept of it; `None` until something was to be kept.
    history: Option<Box<History>>,
}

struct History {
    channel: Channel,
    log: Log,
    /// When it was last added to.
    touched_ms: u64,
}

impl Memory {
    /// A broker that remembers at most so many idle channels and idempotency keys, and so many bytes
    /// of publications.
    pub fn new(idle_channels: usize, idempotency_keys: usize, history_bytes: usize) -> Result<Self, BrokerError> {
        let first = getrandom::u64().map_err(|error| BrokerError::Unavailable { reason: error.to_string() })?;
        Ok(Memory {
            deliver: OnceLock::new(),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            next_epoch: AtomicU64::new(first.max(1)),
            idle_channels: idle_channels.div_ceil(STRIPES),
            idempotency_keys,
            known_ids: AtomicUsize::new(0),
            history_bytes,
            kept_bytes: AtomicUsize::new(0),
            next_trim: AtomicUsize::new(0),
            started: Instant::now(),
            stopped: AtomicBool::new(false),
        })
    }

    /// High bits of the hash pick the stripe, low bits the bucket.
    fn stripe(&self, hash: u64) -> &Mutex<Stripe> {
        &self.stripes[(hash >> 58) as usize % STRIPES]
    }

    fn age(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn entry<'s>(&self, stripe: &'s mut Stripe, channel: &str, hash: u64) -> &'s mut Entry {
        stripe
            .channels
            .entry(hash, |entry| entry.hash == hash && &*entry.name == channel, |entry| entry.hash)
            .or_insert_with(|| Entry {
                name: channel.into(),
                hash,
                position: Position { epoch: Epoch(self.next_epoch.fetch_add(1, Ordering::Relaxed)), offset: 0 },
                subscribed: false,
                last_used: 0,
                history: None,
            })
            .into_mut()
    }
}

impl Memory {
    fn count_kept(&self, before: usize, after: usize) {
        if after >= before {
            self.kept_bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.kept_bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    /// Makes room where histories together pass their limit: stripes above their share give up what
    /// has been silent longest, down to three quarters of it, so that this is rare.
    fn trim_histories(&self) {
        let share = self.history_bytes / STRIPES;
        for _ in 0..STRIPES {
            if self.kept_bytes.load(Ordering::Relaxed) <= self.history_bytes {
                return;
            }
            let next = self.next_trim.fetch_add(1, Ordering::Relaxed) % STRIPES;
            let mut stripe = self.stripes[next].lock();
            if stripe.kept_bytes > share {
                let before = stripe.kept_bytes;
                stripe.trim_histories(share / 4 * 3);
                self.count_kept(before, stripe.kept_bytes);
            }
        }
    }
}

impl Entry {
    /// Keeps a publication; says how many bytes the history had and has.
    fn keep(&mut self, publish: &Publish<'_>, position: Position, now_ms: u64) -> (usize, usize) {
        let history = self.history.get_or_insert_with(|| {
            let channel = Channel::new(&self.name, self.hash);
            // What was published before may have been meant to be kept.
            Box::new(History { channel, log: Log::new(position.offset - 1), touched_ms: 0 })
        });
        let before = history.log.bytes();
        if let Some(retention) = publish.retention.filter(|_| publish.history) {
            let publication = Arc::new(Publication::on(history.channel.clone(), publish, position));
            history.log.append(publication, &retention, publish.ttl_ms, now_ms);
            history.touched_ms = now_ms;
        }
        (before, history.log.bytes())
    }
}

impl Stripe {
    fn expire(&mut self, now_ms: u64) {
        let mut kept = 0;
        for history in self.channels.iter_mut().filter_map(|entry| entry.history.as_mut()) {
            history.log.expire(now_ms);
            kept += history.log.bytes();
        }
        self.kept_bytes = kept;
    }

    /// Forgets kept publications until no more than `bytes` are left.
    fn trim_histories(&mut self, bytes: usize) {
        let mut histories: Vec<&mut History> = self.channels.iter_mut().filter_map(|entry| entry.history.as_deref_mut()).collect();
        histories.sort_unstable_by_key(|history| history.touched_ms);
        for history in histories {
            while self.kept_bytes > bytes {
                let before = history.log.bytes();
                if !history.log.drop_oldest() {
                    break;
                }
                self.kept_bytes -= before - history.log.bytes();
            }
        }
    }

    fn known_id(&self, channel: &str, id: &str, now: Instant) -> Option<Position> {
        let (position, at) = self.ids.get(&(Box::from(channel), Box::from(id)))?;
        (now.duration_since(*at) < ID_WINDOW).then_some(*position)
    }

    /// Remembers a key. Past `limit` keys over all stripes the stripe forgets its own oldest, down
    /// to its share: one busy channel may use what the others leave, and cannot take their shares.
    fn remember_id(&mut self, channel: &str, id: &str, position: Position, now: Instant, known: &AtomicUsize, limit: usize) {
        self.ids.insert((channel.into(), id.into()), (position, now));
        self.id_order.push_back((now, channel.into(), id.into()));
        known.fetch_add(1, Ordering::Relaxed);
        while self.id_order.len() > limit.div_ceil(STRIPES) && known.load(Ordering::Relaxed) > limit {
            self.forget_oldest_id(known);
        }
    }

    fn forget_oldest_id(&mut self, known: &AtomicUsize) {
        if let Some((at, channel, id)) = self.id_order.pop_front() {
            known.fetch_sub(1, Ordering::Relaxed);
            let key = (channel, id);
            // A key that was used again after its window has a younger entry of its own.
            if self.ids.get(&key).is_some_and(|(_, remembered)| *remembered == at) {
                self.ids.remove(&key);
            }
        }
    }
}

impl Broker for Memory {
    fn start(&self, deliver: Arc<dyn Deliver>) -> Result<(), BrokerError> {
        self.deliver.set(deliver).map_err(|_| BrokerError::Unavailable { reason: "already started".into() })
    }

    fn publish(&self, publish: &Publish<'_>) -> Reply<Published> {
        let Some(deliver) = self.deliver.get() else { return Reply::Now(Err(BrokerError::Stopped)) };
        let hash = ChannelRef::of(publish).hash;
        let mut stripe = self.stripe(hash).lock();
        if self.stopped.load(Ordering::Relaxed) {
            return Reply::Now(Err(BrokerError::Stopped));
        }
        let known = publish.id.map(|id| (id, Instant::now()));
        if let Some((id, now)) = known
            && let Some(position) = stripe.known_id(publish.channel, id, now)
        {
            return Reply::Now(Ok(Published { position, matched: 0, repeated: true }));
        }
        let entry = self.entry(&mut stripe, publish.channel, hash);
        entry.position.offset += 1;
        if !entry.subscribed {
            entry.last_used = self.age();
        }
        let position = entry.position;
        if publish.retention.is_some() {
            let (before, after) = entry.keep(publish, position, self.now_ms());
            stripe.kept_bytes = stripe.kept_bytes + after - before;
            self.count_kept(before, after);
        }
        if let Some((id, now)) = known {
            stripe.remember_id(publish.channel, id, position, now, &self.known_ids, self.idempotency_keys);
        }
        let matched = deliver.deliver(publish, position);
        drop(stripe);
        if publish.retention.is_some() && self.kept_bytes.load(Ordering::Relaxed) > self.history_bytes {
            self.trim_histories();
        }
        Reply::Now(Ok(Published { position, matched, repeated: false }))
    }

    fn subscribe(&self, channel: &str) -> Reply<Position> {
        let hash = channel_hash(channel);
        let mut stripe = self.stripe(hash).lock();
        let entry = self.entry(&mut stripe, channel, hash);
        entry.subscribed = true;
        Reply::Now(Ok(entry.position))
    }

    fn unsubscribe(&self, channel: &str) {
        let hash = channel_hash(channel);
        let mut stripe = self.stripe(hash).lock();
        let age = self.age();
        if let Some(entry) = stripe.channels.find_mut(hash, |entry| entry.hash == hash && &*entry.name == channel) {
            entry.subscribed = false;
            entry.last_used = age;
        }
    }

    fn read(&self, channel: &str, range: &Range) -> Reply<Page> {
        let hash = channel_hash(channel);
        let now_ms = self.now_ms();
        let mut stripe = self.stripe(hash).lock();
        let entry = self.entry(&mut stripe, channel, hash);
        if !entry.subscribed {
            entry.last_used = (now_ms / 1_000) as u32;
        }
        let top = entry.position;
        let Some(history) = &mut entry.history else {
            return Reply::Now(Ok(Page { top, floor: top.offset, publications: Vec::new(), more: false }));
        };
        let before = history.log.bytes();
        let page = history.log.read(range, top, now_ms);
        let after = history.log.bytes();
        stripe.kept_bytes = stripe.kept_bytes + after - before;
        self.count_kept(before, after);
        Reply::Now(Ok(page))
    }

    fn history_bytes(&self) -> usize {
        self.kept_bytes.load(Ordering::Relaxed)
    }

    fn tick(&self) {
        let now = Instant::now();
        let now_ms = self.now_ms();
        for stripe in &self.stripes {
            let mut stripe = stripe.lock();
            if stripe.kept_bytes > 0 {
                let kept = stripe.kept_bytes;
                stripe.expire(now_ms);
                self.count_kept(kept, stripe.kept_bytes);
            }
            while stripe.id_order.front().is_some_and(|(at, _, _)| now.duration_since(*at) >= ID_WINDOW) {
                stripe.forget_oldest_id(&self.known_ids);
            }
            let mut idle: Vec<u32> = stripe.channels.iter().filter(|entry| !entry.subscribed).map(|entry| entry.last_used).collect();
            if idle.len() > self.idle_channels {
                // Forget down to three quarters, so that the next tick has nothing to do.
                let surplus = idle.len() - self.idle_channels * 3 / 4;
                let (_, cutoff, _) = idle.select_nth_unstable(surplus - 1);
                let cutoff = *cutoff;
                let mut left = surplus;
                let mut forgotten = 0;
                stripe.channels.retain(|entry| {
                    let forget = left > 0 && !entry.subscribed && entry.last_used <= cutoff;
                    left -= usize::from(forget);
                    if forget {
                        forgotten += entry.history.as_ref().map_or(0, |history| history.log.bytes());
                    }
                    !forget
                });
                stripe.kept_bytes -= forgotten;
                self.count_kept(forgotten, 0);
            }
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Whoever got in before holds a stripe; after this nobody delivers.
        for stripe in &self.stripes {
            drop(stripe.lock());
        }
    }
}
