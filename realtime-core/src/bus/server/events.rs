//! Events that wait for workers: a worker has one at a time, and somebody else gets it if the worker goes without a word.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::peer::Peer;
use crate::bus::frame::FailureCode;
use crate::hooks::queue::EventQueue;

/// Longest wait for an event in one question.
const EVENT_WAIT: Duration = Duration::from_millis(500);
const NO_EVENTS: &str = "this hub queues no events: name those that are wanted in hooks.events";

/// The event that a worker has; somebody else gets it if the worker goes without a word.
pub(super) struct Lease {
    queue: Arc<EventQueue>,
    number: Option<u64>,
}

impl Lease {
    /// The number, if it is that of the event at hand, which there is none from here on. A worker may have had another one of
    /// a connection before: of a hub that is gone, and whose numbers are others' here.
    fn end(&mut self, number: Option<u64>) -> Option<u64> {
        if number == self.number { self.number.take() } else { None }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.queue.give_back(number);
        }
    }
}

impl Peer {
    /// Acknowledges the event that the worker has, and waits for the next one.
    pub(super) async fn next_event(&mut self, timeout: Duration, done: Option<u64>) -> Result<String, (FailureCode, String)> {
        let Some(queue) = self.node.hooks.queue.clone() else {
            return Err((FailureCode::Unsupported, NO_EVENTS.into()));
        };
        let lease = self.leased.get_or_insert_with(|| Lease { queue: queue.clone(), number: None });
        let mut done = lease.end(done);
        let deadline = Instant::now() + timeout.min(EVENT_WAIT);
        loop {
            // Before the look, so that nothing falls between.
            let ready = queue.arrived.notified();
            if let Some(leased) = queue.next(done.take(), Duration::ZERO) {
                // One that it has not acknowledged goes to somebody else.
                if let Some(number) = lease.number.replace(leased.number) {
                    queue.give_back(number);
                }
                return serde_json::to_string(&leased).map_err(|error| (FailureCode::Unavailable, error.to_string()));
            }
            let wake = deadline.min(queue.next_lease_end().unwrap_or(deadline));
            if Instant::now() >= deadline || *self.stop.borrow() {
                return Ok("null".into());
            }
            tokio::select! {
                () = ready => {}
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = self.stop.changed() => {}
            }
        }
    }

    /// Acknowledges the event that the worker has; false: it has another one, or none.
    pub(super) fn event_done(&mut self, number: u64) -> bool {
        let Some(lease) = &mut self.leased else { return false };
        let had = lease.end(Some(number));
        if let Some(number) = had {
            lease.queue.done(number);
        }
        had.is_some()
    }
}
