//! The bound on what is accepted and not yet fanned out: publishers wait here, subscribers never.

use std::time::{Duration, Instant};

use crate::patience::Patience;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex};

/// Bytes in flight between publishers and shards.
pub(crate) struct Ingress {
    queued: AtomicUsize,
    limit: usize,
    /// Publishers that wait for room.
    waiting: AtomicUsize,
    lock: Mutex<()>,
    room: Condvar,
}

/// What one channel has in flight, and how many subscriptions it has on this node.
#[derive(Default)]
pub(crate) struct ChannelLoad {
    pub(crate) queued: AtomicUsize,
    pub(crate) subscribers: AtomicUsize,
}

/// No room before the deadline.
pub(crate) struct Full {
    pub(crate) queued: usize,
    pub(crate) limit: usize,
    pub(crate) waited: Duration,
}

impl Ingress {
    pub(crate) fn new(limit: usize) -> Self {
        Ingress { queued: AtomicUsize::new(0), limit, waiting: AtomicUsize::new(0), lock: Mutex::new(()), room: Condvar::new() }
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Whether one channel may have filled its share; below this nobody needs to look.
    pub(crate) fn is_busy(&self) -> bool {
        self.queued() >= self.channel_limit()
    }

    fn channel_limit(&self) -> usize {
        self.limit / 4
    }

    fn full(&self, load: Option<&ChannelLoad>) -> Option<(usize, usize)> {
        let queued = self.queued.load(Ordering::SeqCst);
        if queued >= self.limit {
            return Some((queued, self.limit));
        }
        let queued = load.map_or(0, |load| load.queued.load(Ordering::SeqCst));
        (queued >= self.channel_limit()).then_some((queued, self.channel_limit()))
    }

    /// Waits until there is room for a publication to a channel with this load. One that finds
    /// room is let in whatever its size, so the bound is passed by at most one message a publisher.
    pub(crate) fn wait_for_room(&self, load: Option<&ChannelLoad>, timeout: Duration) -> Result<(), Full> {
        if self.full(load).is_none() {
            return Ok(());
        }
        let start = Instant::now();
        let mut guard = self.lock.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let has_room = Patience::new(timeout).wait(|part| {
            let timed_out = self.room.wait_while_for(&mut guard, |()| self.full(load).is_some(), part).timed_out();
            (!timed_out).then_some(())
        });
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        match (has_room, self.full(load)) {
            (None, Some((queued, limit))) => Err(Full { queued, limit, waited: start.elapsed() }),
            _ => Ok(()),
        }
    }

    pub(crate) fn charge(&self, load: &ChannelLoad, bytes: usize) {
        self.queued.fetch_add(bytes, Ordering::Relaxed);
        load.queued.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn release(&self, load: &ChannelLoad, bytes: usize) {
        load.queued.fetch_sub(bytes, Ordering::SeqCst);
        self.queued.fetch_sub(bytes, Ordering::SeqCst);
        // Sequentially consistent on both sides: either this load sees the waiter, or the waiter
        // sees the room.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock());
            self.room.notify_all();
        }
    }
}
