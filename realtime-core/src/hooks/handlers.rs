//! Programs that handle connections: each connection is one program's, which hears what happens to
//! it in order and may refuse it, its subscriptions and its messages.
//!
//! What a program has once been asked to decide is never let through without it: when none is
//! there, or it does not answer in time, the answer is no.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Event, Kind, Kinds};

/// Events that wait for one program, and their bytes; past either, what it would decide is refused.
const WAITING: usize = 4_096;
const WAITING_BYTES: usize = 8 << 20;
/// Programs at once.
pub(crate) const MAX_HANDLERS: usize = 256;

/// A node's programs.
pub(crate) struct Handlers {
    list: Mutex<Vec<Arc<Handler>>>,
    /// What is decided by a program, and stays so when there is none.
    decided: AtomicU16,
    /// Events that found no room.
    pub(crate) overflowed: AtomicU64,
}

impl Handlers {
    pub(super) fn new(required: Kinds) -> Self {
        Handlers { list: Mutex::default(), decided: AtomicU16::new(required.0), overflowed: AtomicU64::new(0) }
    }

    /// Whether a program has to allow this.
    pub(crate) fn decide(&self, kind: Kind) -> bool {
        Kinds(self.decided.load(Relaxed)).has(kind)
    }

    /// Adds a program; `None`: there are [`MAX_HANDLERS`] already.
    pub(crate) fn attach(&self, hears: Kinds, decides: Kinds) -> Option<Arc<Handler>> {
        let mut list = self.list.lock();
        if list.len() >= MAX_HANDLERS {
            return None;
        }
        let handler = Arc::new(Handler {
            hears,
            decides,
            queue: Mutex::default(),
            ready: Notify::new(),
            connections: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
        });
        list.push(handler.clone());
        self.decided.fetch_or(decides.0, Relaxed);
        Some(handler)
    }

    pub(crate) fn detach(&self, handler: &Arc<Handler>) {
        handler.gone.store(true, Relaxed);
        self.list.lock().retain(|other| !Arc::ptr_eq(other, handler));
    }

    /// The program that has the fewest connections.
    pub(crate) fn choose(&self) -> Option<Arc<Handler>> {
        let list = self.list.lock();
        let handler = list.iter().min_by_key(|handler| handler.connections.load(Relaxed))?.clone();
        handler.connections.fetch_add(1, Relaxed);
        Some(handler)
    }
}

/// One program.
pub(crate) struct Handler {
    hears: Kinds,
    decides: Kinds,
    queue: Mutex<Queue>,
    /// Told when the queue is no longer empty.
    pub(crate) ready: Notify,
    /// Connections that are its.
    connections: AtomicUsize,
    gone: AtomicBool,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Handler {
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    pub(crate) fn hears(&self, kind: Kind) -> bool {
        self.hears.has(kind)
    }

    pub(crate) fn decides(&self, kind: Kind) -> bool {
        self.decides.has(kind)
    }

    /// A connection is no longer its.
    pub(crate) fn give_back(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Queues an event; false: there is no room, or nobody.
    pub(crate) fn tell(&self, event: &Event<'_>) -> bool {
        if self.is_gone() {
            return false;
        }
        let line = event.to_json();
        let mut queue = self.queue.lock();
        // That a connection has gone is always told: a program that does not hear of it keeps it.
        let is_end = event.kind == Kind::Disconnect;
        if !is_end && (queue.lines.len() >= WAITING || queue.bytes >= WAITING_BYTES) {
            return false;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        drop(queue);
        self.ready.notify_one();
        true
    }

    /// Appends what waits as lines, until `out` has about `limit` bytes; whether any did.
    pub(crate) fn take_lines(&self, limit: usize, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let mut queue = self.queue.lock();
        while out.len() - start < limit {
            let Some(line) = queue.lines.pop_front() else { break };
            queue.bytes -= line.len();
            out.extend_from_slice(line.as_bytes());
            out.push(b'\n');
        }
        if queue.lines.is_empty() {
            queue.lines = VecDeque::new();
        }
        out.len() > start
    }
}
