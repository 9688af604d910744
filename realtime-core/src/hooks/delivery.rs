//! Posting events to the application: one request after the other, each again until it is accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::Method;
use hyper::header::HeaderMap;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::outbound::{self, Address, Request, Tls};

/// Events in one request.
pub(crate) const MAX_BATCH: usize = 100;
/// Bytes of the events in one request, unless the first alone has more. PHP takes 8 MiB.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// How long an address has for its answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a request is tried again.
const PATIENCE: Duration = Duration::from_secs(300);

/// How events are written to an address.
pub(crate) trait Format: Send + 'static {
    /// A body with these events, which stays as it is when it is sent again. `lost` were dropped since the body before.
    fn body(&mut self, events: &[String], lost: u64) -> String;

    /// What goes with it, this time.
    fn headers(&self, body: &str) -> HeaderMap;
}

/// An address and how it wants its events.
pub(crate) struct Delivery<F> {
    pub(crate) address: Address,
    pub(crate) tls: Tls,
    /// What the log calls it.
    pub(crate) name: String,
    /// How long events are collected for one request, beside those that wait already.
    pub(crate) collect: Duration,
    /// How many of them at most.
    pub(crate) batch: usize,
    pub(crate) format: F,
}

/// Events that wait for an address. Bounded: past the limit they are dropped and counted.
pub(crate) struct Outgoing {
    events: mpsc::Sender<String>,
    /// Since the hub began.
    dropped: AtomicU64,
    /// Since the address was last told.
    untold: AtomicU64,
}

impl Outgoing {
    pub(crate) fn new(limit: usize) -> (Arc<Self>, mpsc::Receiver<String>) {
        let (events, receiver) = mpsc::channel(limit);
        (Arc::new(Outgoing { events, dropped: AtomicU64::new(0), untold: AtomicU64::new(0) }), receiver)
    }

    /// An event for the address, as JSON. Never waits.
    pub(crate) fn push(&self, event: String) {
        if self.events.try_send(event).is_err() {
            self.lose(1);
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn lose(&self, count: u64) {
        self.dropped.fetch_add(count, Relaxed);
        self.untold.fetch_add(count, Relaxed);
    }
}

/// The events of one request.
struct Batch {
    events: Vec<String>,
    bytes: usize,
    most: usize,
}

impl Batch {
    fn new(most: usize, first: String) -> Self {
        Batch { bytes: first.len(), events: vec![first], most }
    }

    fn is_full(&self) -> bool {
        self.events.len() >= self.most
    }

    /// Gives the event back if it is too long to go with the others.
    fn add(&mut self, event: String) -> Option<String> {
        if self.bytes + event.len() > MAX_BATCH_BYTES {
            return Some(event);
        }
        self.bytes += event.len();
        self.events.push(event);
        None
    }
}

impl<F: Format> Delivery<F> {
    /// Posts what comes, until nothing can come any more.
    pub(crate) async fn run(mut self, outgoing: Arc<Outgoing>, mut events: mpsc::Receiver<String>) {
        let mut carried = None;
        loop {
            let first = match carried.take() {
                Some(event) => event,
                None => match events.recv().await {
                    Some(event) => event,
                    None => return,
                },
            };
            let mut batch = Batch::new(self.batch, first);
            let end = Instant::now() + self.collect;
            while carried.is_none() && !batch.is_full() {
                let next = match events.try_recv() {
                    Ok(event) => Some(event),
                    Err(_) if self.collect.is_zero() => None,
                    Err(_) => timeout_at(end, events.recv()).await.ok().flatten(),
                };
                let Some(next) = next else { break };
                carried = batch.add(next);
            }
            let batch = batch.events;
            let lost = outgoing.untold.swap(0, Relaxed);
            let body = self.format.body(&batch, lost);
            if !self.post(&body, batch.len()).await {
                outgoing.untold.fetch_add(lost, Relaxed);
                outgoing.lose(batch.len() as u64);
            }
        }
    }

    /// Whether the address has accepted it.
    async fn post(&self, body: &str, events: usize) -> bool {
        let end = Instant::now() + PATIENCE;
        let mut pause = Duration::from_secs(1);
        loop {
            let headers = self.format.headers(body);
            let request = Request { method: Method::POST, query: String::new(), headers, body: body.as_bytes().to_vec(), client: None };
            let reason = match timeout(ANSWER, outbound::send(&self.address, &self.tls, request)).await {
                Ok(Ok(response)) if (200..300).contains(&response.status) => return true,
                Ok(Ok(response)) => format!("status {}", response.status),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", ANSWER.as_secs()),
            };
            if Instant::now() + pause > end {
                tracing::error!(url = self.name, reason, events, "webhook given up");
                return false;
            }
            tracing::warn!(url = self.name, reason, retry_s = pause.as_secs(), "webhook failed");
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(60));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_so_many_events_and_bytes_and_the_first_however_long() {
        let mut batch = Batch::new(3, "a".into());
        assert_eq!((batch.add("b".into()), batch.is_full()), (None, false));
        assert_eq!((batch.add("c".into()), batch.is_full()), (None, true));
        for (bytes, fits) in [(MAX_BATCH_BYTES - 2, true), (MAX_BATCH_BYTES - 1, true), (MAX_BATCH_BYTES, false)] {
            let mut batch = Batch::new(3, "a".into());
            assert_eq!(batch.add("x".repeat(bytes)).is_none(), fits, "{bytes}");
        }
        let mut batch = Batch::new(3, "x".repeat(MAX_BATCH_BYTES + 1));
        assert_eq!(batch.add("a".into()).as_deref(), Some("a"));
    }
}
