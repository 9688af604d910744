//! Counters, each written by one thread and read by anybody.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use serde::Serialize;

use super::node::Node;
use crate::close::CloseReason;

/// What one shard counts.
#[derive(Default)]
pub(crate) struct ShardCounters {
    /// Connections that are on the shard, or on their way to it.
    pub(crate) connections: AtomicUsize,
    /// Of the connections on the shard, those of each format, by its number.
    pub(crate) by_format: Box<[AtomicUsize]>,
    pub(crate) subscriptions: AtomicUsize,
    /// As of the shard's last look at its connections.
    pub(crate) delivered: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) protocol_errors: AtomicU64,
    pub(crate) relays_refused: AtomicU64,
    pub(crate) interrupted: AtomicU64,
    pub(crate) resumed: AtomicU64,
    pub(crate) resume_failed: AtomicU64,
    pub(crate) panics: AtomicU64,
    closed_slow: AtomicU64,
    closed_pong: AtomicU64,
    closed_protocol: AtomicU64,
    closed: AtomicU64,
}

impl ShardCounters {
    pub(crate) fn new(formats: usize) -> Self {
        ShardCounters { by_format: (0..formats).map(|_| AtomicUsize::new(0)).collect(), ..ShardCounters::default() }
    }

    /// Counts a connection that is on the shard from now on, or no longer.
    pub(crate) fn count_format(&self, format: u16, comes: bool) {
        let Some(count) = self.by_format.get(usize::from(format)) else { return };
        if comes {
            count.fetch_add(1, Relaxed)
        } else {
            count.fetch_sub(1, Relaxed)
        };
    }

    pub(crate) fn count_close(&self, reason: CloseReason) {
        self.closed.fetch_add(1, Relaxed);
        match reason {
            CloseReason::SlowClient => self.closed_slow.fetch_add(1, Relaxed),
            CloseReason::PongTimeout => self.closed_pong.fetch_add(1, Relaxed),
            CloseReason::Protocol | CloseReason::InvalidUtf8 | CloseReason::TooLarge | CloseReason::TooManyErrors => {
                self.closed_protocol.fetch_add(1, Relaxed)
            }
            _ => 0,
        };
    }
}

/// What the hub has counted since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Open connections.
    pub connections: u64,
    /// Subscriptions of those connections.
    pub subscriptions: u64,
    /// Channels with subscribers.
    pub channels: u64,
    /// Publications accepted.
    pub published: u64,
    /// Publications written to subscribers, or queued for them: one counts as often as it is delivered. Some
    /// milliseconds behind.
    pub delivered: u64,
    /// Bytes of their frames, without what a compression or TLS makes of them.
    pub delivered_bytes: u64,
    /// Publications refused because the ingress queue was full.
    pub queue_full: u64,
    /// Bytes accepted and not yet fanned out.
    pub ingress_bytes: u64,
    /// Bytes of memory of publications that are kept for those who come back; 0 where the broker
    /// keeps them elsewhere.
    pub history_bytes: u64,
    /// Publications that never went out because a newer one of the same name came within their window
    /// (`conflate_ms`).
    pub conflated: u64,
    /// Bytes that windows hold.
    pub held_bytes: u64,
    /// Subscriptions that ended because publications of a channel with a history were missed.
    pub interrupted: u64,
    /// Subscriptions of Pusher clients that went on where their page had left off (`resume_ms`).
    pub resumed: u64,
    /// Those that could not, because more was missed than the history has. Pages of which the hub knows nothing do not count.
    pub resume_failed: u64,
    /// Bytes of memory of what is known of pages without a connection.
    pub resume_bytes: u64,
    /// Messages from clients.
    pub received: u64,
    /// Faults in what clients sent.
    pub protocol_errors: u64,
    /// Messages of raw clients that no channel's policy allowed to relay.
    pub relays_refused: u64,
    /// Requests to the application about connections and channels that are under way.
    pub callbacks: u64,
    /// Those that wait for their turn.
    pub callbacks_queued: u64,
    /// Requests refused before they became connections.
    pub refused: u64,
    /// Connections on the bus that were closed because of what they sent.
    pub bus_errors: u64,
    /// Publications over the bus that were refused.
    pub bus_refused: u64,
    /// Events that found no room in the queue of workers or of a program.
    pub events_dropped: u64,
    /// Connections that have ended, for whatever reason.
    pub closed: u64,
    /// Of those: the client read too slowly.
    pub closed_slow: u64,
    /// Of those: no answer to a ping.
    pub closed_pong_timeout: u64,
    /// Of those: the client broke the protocol or a limit.
    pub closed_protocol: u64,
    /// Handlers that panicked; each cost one connection.
    pub panics: u64,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
}

impl Stats {
    fn add(&mut self, counters: &ShardCounters) {
        self.subscriptions += counters.subscriptions.load(Relaxed) as u64;
        self.delivered += counters.delivered.load(Relaxed);
        self.delivered_bytes += counters.sent_bytes.load(Relaxed);
        self.received += counters.received.load(Relaxed);
        self.protocol_errors += counters.protocol_errors.load(Relaxed);
        self.relays_refused += counters.relays_refused.load(Relaxed);
        self.interrupted += counters.interrupted.load(Relaxed);
        self.resumed += counters.resumed.load(Relaxed);
        self.resume_failed += counters.resume_failed.load(Relaxed);
        self.panics += counters.panics.load(Relaxed);
        self.closed += counters.closed.load(Relaxed);
        self.closed_slow += counters.closed_slow.load(Relaxed);
        self.closed_pong_timeout += counters.closed_pong.load(Relaxed);
        self.closed_protocol += counters.closed_protocol.load(Relaxed);
    }
}

impl Node {
    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats {
            connections: self.connections.load(Relaxed) as u64,
            published: self.published.load(Relaxed),
            queue_full: self.queue_full.load(Relaxed),
            ingress_bytes: self.routes.ingress.queued() as u64,
            history_bytes: self.broker.history_bytes() as u64,
            held_bytes: self.windows.as_ref().map_or(0, |windows| windows.held_bytes() as u64),
            resume_bytes: self.pages.as_ref().map_or(0, |pages| pages.away_bytes() as u64),
            conflated: self.windows.as_ref().map_or(0, |windows| windows.conflated.load(Relaxed)),
            refused: self.refused.load(Relaxed),
            bus_errors: self.bus_errors.load(Relaxed),
            bus_refused: self.bus_refused.load(Relaxed),
            events_dropped: self.hooks.dropped(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            panics: self.broker.failures(),
            ..Stats::default()
        };
        if let Some(callback) = &self.auth.callback {
            (stats.callbacks, stats.callbacks_queued) = callback.load();
        }
        self.routes.interest.for_each(|channel, subscribers| {
            stats.channels += u64::from(subscribers > 0 && !channel.is_internal());
        });
        for shard in &self.shards {
            stats.add(&shard.counters);
        }
        stats
    }
}
