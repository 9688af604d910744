//! Events for workers: each goes to one of them, and again to another if it is not acknowledged.
//!
//! At least once. A worker has one event at a time; those with the same key (a connection, or a
//! channel) are given out one after the other, in order, so that two workers never overtake each
//! other. Bounded: when workers are behind, the newest events are dropped and counted.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::Notify;

use crate::descriptors;

/// See the module's documentation.
pub(crate) struct EventQueue {
    state: Mutex<State>,
    /// An event can be given out.
    ready: Condvar,
    /// The same, for those who do not block.
    pub(crate) arrived: Notify,
    /// The same, for a host's own loop.
    descriptor: OnceLock<OwnedFd>,
    limit: usize,
    lease: Duration,
}

#[derive(Default)]
struct State {
    /// By number; those that are leased stay until they are acknowledged.
    events: BTreeMap<u64, Queued>,
    /// By key, the numbers that wait or are leased: only the first of each may be given out.
    keys: HashMap<String, std::collections::VecDeque<u64>>,
    /// First of their key and not leased.
    free: std::collections::BTreeSet<u64>,
    /// Leases by their end.
    leases: std::collections::BTreeSet<(Instant, u64)>,
    next: u64,
    overflowed: u64,
    /// What the next reader is told of it.
    untold: u64,
    stopped: bool,
}

struct Queued {
    key: String,
    json: Box<RawValue>,
    leased_until: Option<Instant>,
    /// How often it has been given out.
    attempts: u32,
}

/// An event as a worker gets it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Leased {
    /// Names it in the acknowledgement, and tells a repeat.
    pub(crate) number: u64,
    /// 1 for the first time.
    pub(crate) attempt: u32,
    /// How many events were dropped since somebody was last told.
    pub(crate) dropped: u64,
    pub(crate) event: Box<RawValue>,
}

impl EventQueue {
    pub(crate) fn new(limit: usize, lease_ms: u64) -> Self {
        EventQueue {
            state: Mutex::default(),
            ready: Condvar::new(),
            arrived: Notify::new(),
            descriptor: OnceLock::new(),
            limit,
            lease: Duration::from_millis(lease_ms),
        }
    }

    pub(crate) fn push(&self, key: String, json: String) {
        let Ok(json) = RawValue::from_string(json) else { return };
        let mut state = self.state.lock();
        if state.events.len() >= self.limit {
            state.overflowed += 1;
            state.untold += 1;
            return;
        }
        let number = state.next;
        state.next += 1;
        let order = state.keys.entry(key.clone()).or_default();
        order.push_back(number);
        let is_first = order.len() == 1;
        state.events.insert(number, Queued { key, json, leased_until: None, attempts: 0 });
        if is_first {
            state.free.insert(number);
            self.wake();
        }
    }

    fn wake(&self) {
        self.ready.notify_one();
        self.arrived.notify_one();
        if let Some(descriptor) = self.descriptor.get() {
            // Full is readable, which is all that matters.
            let _ = rustix::io::write(descriptor, &1u64.to_ne_bytes());
        }
    }

    /// A descriptor that is readable when an event may be there. [`EventQueue::quiet`] resets it.
    pub(crate) fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        let descriptor = match self.descriptor.get() {
            Some(descriptor) => descriptor,
            None => {
                let made = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
                let descriptor = self.descriptor.get_or_init(|| made);
                descriptors::opened(descriptor.as_raw_fd());
                // What came before it was there.
                self.wake();
                descriptor
            }
        };
        Ok(descriptor.as_fd())
    }

    /// Called before the queue is looked at: what comes from then on makes the descriptor readable.
    pub(crate) fn quiet(&self) {
        if let Some(descriptor) = self.descriptor.get() {
            let _ = rustix::io::read(descriptor, &mut [0; 8]);
        }
    }

    /// Acknowledges an event.
    pub(crate) fn done(&self, number: u64) {
        let mut state = self.state.lock();
        self.forget(&mut state, number);
    }

    /// When an event may be given out again, if nobody acknowledges it.
    pub(crate) fn next_lease_end(&self) -> Option<Instant> {
        self.state.lock().leases.first().map(|(until, _)| *until)
    }

    /// Events that found no room.
    pub(crate) fn overflowed(&self) -> u64 {
        self.state.lock().overflowed
    }

    /// Acknowledges `done`, and waits for the next event. Blocks at most `timeout`.
    pub(crate) fn next(&self, done: Option<u64>, timeout: Duration) -> Option<Leased> {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        if let Some(number) = done {
            self.forget(&mut state, number);
        }
        loop {
            let now = Instant::now();
            state.end_leases(now);
            if let Some(number) = state.free.pop_first() {
                let until = now + self.lease;
                let dropped = std::mem::take(&mut state.untold);
                state.leases.insert((until, number));
                let queued = state.events.get_mut(&number)?;
                queued.leased_until = Some(until);
                queued.attempts += 1;
                let leased = Leased { number, attempt: queued.attempts, dropped, event: queued.json.clone() };
                if !state.free.is_empty() {
                    // Two arrivals may have woken one reader.
                    self.wake();
                }
                return Some(leased);
            }
            if state.stopped || now >= deadline {
                return None;
            }
            let wake = state.leases.first().map_or(deadline, |(until, _)| deadline.min(*until));
            self.ready.wait_until(&mut state, wake);
        }
    }

    /// A worker has gone without acknowledging what it had.
    pub(crate) fn give_back(&self, number: u64) {
        let mut state = self.state.lock();
        state.free_again(number);
        self.wake();
    }

    /// Ends all waits.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.ready.notify_all();
        self.arrived.notify_waiters();
    }

    fn forget(&self, state: &mut State, number: u64) {
        // One whose lease has ended may be somebody else's by now; it is done all the same.
        let Some(queued) = state.events.remove(&number) else { return };
        if let Some(until) = queued.leased_until {
            state.leases.remove(&(until, number));
        }
        state.free.remove(&number);
        let Some(order) = state.keys.get_mut(&queued.key) else { return };
        order.retain(|other| *other != number);
        match order.front() {
            Some(next) => {
                let next = *next;
                if state.events.get(&next).is_some_and(|queued| queued.leased_until.is_none()) {
                    state.free.insert(next);
                    self.wake();
                }
            }
            None => {
                state.keys.remove(&queued.key);
            }
        }
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        if let Some(descriptor) = self.descriptor.get() {
            descriptors::closing(descriptor.as_raw_fd());
        }
    }
}

impl State {
    fn end_leases(&mut self, now: Instant) {
        while let Some((until, number)) = self.leases.first().copied().filter(|(until, _)| *until <= now) {
            self.leases.remove(&(until, number));
            self.free_again(number);
        }
    }

    fn free_again(&mut self, number: u64) {
        let Some(queued) = self.events.get_mut(&number) else { return };
        if let Some(until) = queued.leased_until.take() {
            self.leases.remove(&(until, number));
            self.free.insert(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(queue: &EventQueue, key: &str, value: u64) {
        queue.push(key.into(), value.to_string());
    }

    fn take(queue: &EventQueue, done: Option<&Leased>) -> Option<Leased> {
        queue.next(done.map(|leased| leased.number), Duration::ZERO)
    }

    fn value(leased: Option<&Leased>) -> Option<&str> {
        leased.map(|leased| leased.event.get())
    }

    #[test]
    fn an_event_goes_to_one_reader_and_in_the_order_of_its_key() {
        let queue = EventQueue::new(100, 60_000);
        for (key, number) in [("a", 1), ("a", 2), ("b", 3), ("a", 4)] {
            push(&queue, key, number);
        }
        let first = take(&queue, None);
        let second = take(&queue, None);
        assert_eq!((value(first.as_ref()), value(second.as_ref())), (Some("1"), Some("3")), "2 waits for 1");
        assert!(take(&queue, None).is_none(), "everything that may be given out is");
        let third = take(&queue, first.as_ref());
        assert_eq!(value(third.as_ref()), Some("2"));
        assert!(take(&queue, second.as_ref()).is_none(), "4 waits for 2");
        assert_eq!(value(take(&queue, third.as_ref()).as_ref()), Some("4"));
    }

    #[test]
    fn what_is_not_acknowledged_comes_again_to_somebody_else() {
        let queue = EventQueue::new(100, 0);
        push(&queue, "a", 1);
        push(&queue, "a", 2);
        let first = take(&queue, None).expect("there");
        let again = take(&queue, None).expect("its lease of no time has ended");
        assert_eq!((first.number, first.attempt, again.number, again.attempt), (0, 1, 0, 2));
        // The first reader was only slow: what it acknowledges is done.
        assert_eq!(value(take(&queue, Some(&first)).as_ref()), Some("2"));
        assert_eq!(value(take(&queue, Some(&again)).as_ref()), Some("2"));

        let queue = EventQueue::new(100, 60_000);
        push(&queue, "a", 1);
        let first = take(&queue, None).expect("there");
        queue.give_back(first.number);
        assert_eq!(take(&queue, None).expect("given back").attempt, 2);
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told() {
        for (count, dropped) in [(2, 0), (3, 0), (4, 1)] {
            let queue = EventQueue::new(3, 60_000);
            (0..count).for_each(|number| push(&queue, "a", number));
            let first = take(&queue, None).expect("there");
            assert_eq!((queue.overflowed(), first.dropped), (dropped, dropped), "{count}");
            assert_eq!(take(&queue, Some(&first)).expect("there").dropped, 0, "told once");
        }
    }

    #[test]
    fn a_reader_waits_for_an_event_for_a_lease_and_for_the_end() {
        let queue = std::sync::Arc::new(EventQueue::new(10, 60_000));
        let waits = |queue: &std::sync::Arc<EventQueue>| {
            let queue = queue.clone();
            std::thread::spawn(move || queue.next(None, Duration::from_secs(60)))
        };
        let reader = waits(&queue);
        push(&queue, "a", 1);
        let leased = reader.join().expect("joined").expect("an event");
        let reader = waits(&queue);
        queue.give_back(leased.number);
        assert_eq!(reader.join().expect("joined").expect("the same").attempt, 2);
        let reader = waits(&queue);
        queue.stop();
        assert!(reader.join().expect("joined").is_none());
    }
}
