//! Taps: who watches what is published, live, for people who look for a fault.
//!
//! Without a watcher a publication costs one relaxed load. A watcher that reads slowly loses
//! publications, and is told how many; nobody ever waits for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::config::wildcard_matches;
use crate::message::{Payload, Position, Publish, User, split_scope};

/// Watchers at once.
pub(crate) const MAX_TAPS: usize = 16;
/// Publications that wait for one watcher.
const WAITING: usize = 1_024;
/// Bytes of a body that are shown.
const SHOWN_BYTES: usize = 4 << 10;

/// A node's watchers.
#[derive(Default)]
pub(crate) struct Taps {
    open: AtomicUsize,
    list: Mutex<Vec<Arc<Tap>>>,
}

impl Taps {
    /// Whether anybody watches.
    pub(crate) fn are_open(&self) -> bool {
        self.open.load(Relaxed) != 0
    }

    /// Adds a watcher of the channels that match; `None`: there are [`MAX_TAPS`] already.
    pub(crate) fn open(&self, pattern: &str) -> Option<Arc<Tap>> {
        let mut list = self.list.lock();
        if list.len() >= MAX_TAPS {
            return None;
        }
        let tap = Arc::new(Tap { pattern: pattern.to_owned(), queue: Mutex::default(), ready: Notify::new() });
        list.push(tap.clone());
        self.open.store(list.len(), Relaxed);
        Some(tap)
    }

    pub(crate) fn close(&self, tap: &Arc<Tap>) {
        let mut list = self.list.lock();
        list.retain(|other| !Arc::ptr_eq(other, tap));
        self.open.store(list.len(), Relaxed);
    }

    /// Queues a publication to the watchers of its channel.
    pub(crate) fn show(&self, publish: &Publish<'_>, position: Position, matched: usize) {
        for tap in self.list.lock().iter().filter(|tap| wildcard_matches(&tap.pattern, split_scope(publish.channel).1)) {
            let mut queue = tap.queue.lock();
            if queue.entries.len() < WAITING {
                let dropped = std::mem::take(&mut queue.dropped);
                if dropped > 0 {
                    queue.entries.push_back(Entry::Dropped(dropped));
                }
                queue.entries.push_back(Entry::Seen(Seen::new(publish, position, matched)));
            } else {
                queue.dropped += 1;
            }
            drop(queue);
            tap.ready.notify_one();
        }
    }
}

/// One watcher.
pub(crate) struct Tap {
    pattern: String,
    queue: Mutex<Queue>,
    /// Told when the queue is no longer empty.
    pub(crate) ready: Notify,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    /// Since the last entry.
    dropped: u64,
}

enum Entry {
    Seen(Seen),
    /// So many are missing here.
    Dropped(u64),
}

impl Tap {
    /// Appends what waits as lines of JSON, until `out` has about `limit` bytes; whether any did.
    pub(crate) fn take_lines(&self, limit: usize, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        while out.len() - start < limit {
            let entry = {
                let mut queue = self.queue.lock();
                queue.entries.pop_front().unwrap_or_else(|| Entry::Dropped(std::mem::take(&mut queue.dropped)))
            };
            let line = match entry {
                Entry::Seen(seen) => seen.to_json(),
                Entry::Dropped(0) => break,
                Entry::Dropped(dropped) => json!({"dropped": dropped}),
            };
            out.extend_from_slice(line.to_string().as_bytes());
            out.push(b'\n');
        }
        out.len() > start
    }
}

/// A publication as a watcher is shown it.
struct Seen {
    at_ms: u64,
    /// Empty: the default one.
    app: String,
    channel: String,
    event: String,
    position: Position,
    matched: usize,
    kind: &'static str,
    body: Vec<u8>,
    /// Of the whole body.
    bytes: usize,
}

impl Seen {
    fn new(publish: &Publish<'_>, position: Position, matched: usize) -> Self {
        let kind = match publish.payload {
            Payload::Text(_) => "text",
            Payload::Json(_) => "json",
            Payload::Binary(_) => "binary",
        };
        let body = publish.payload.as_bytes();
        let shown = if kind == "binary" { 0 } else { body.len().min(SHOWN_BYTES) };
        Seen {
            at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            app: split_scope(publish.channel).0.to_owned(),
            channel: split_scope(publish.channel).1.to_owned(),
            event: publish.event.to_owned(),
            position,
            matched,
            kind,
            body: body[..shown].to_vec(),
            bytes: body.len(),
        }
    }

    fn to_json(&self) -> Value {
        let mut line = json!({
            "at_ms": self.at_ms,
            "event": self.event,
            "kind": self.kind,
            "bytes": self.bytes,
            "matched": self.matched,
            "epoch": self.position.epoch.to_string(),
            "offset": self.position.offset,
        });
        match User::of_channel(&self.channel) {
            Some(user) => line["user"] = user.into(),
            None => line["channel"] = self.channel.as_str().into(),
        }
        if !self.app.is_empty() {
            line["app"] = self.app.as_str().into();
        }
        if self.kind == "binary" {
            return line;
        }
        let whole = self.body.len() == self.bytes;
        let parsed = if whole && self.kind == "json" { serde_json::from_slice(&self.body).ok() } else { None };
        // A character may be cut where the shown part ends.
        line["data"] = parsed.unwrap_or_else(|| String::from_utf8_lossy(&self.body).trim_end_matches('\u{fffd}').into());
        if !whole {
            line["cut"] = true.into();
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Epoch;

    fn lines(tap: &Tap) -> Vec<Value> {
        let mut out = Vec::new();
        while tap.take_lines(1 << 16, &mut out) {}
        out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| serde_json::from_slice(line).expect("JSON")).collect()
    }

    fn show(taps: &Taps, channel: &str, payload: Payload<'_>) {
        taps.show(&Publish::new(channel, "e", payload), Position { epoch: Epoch(1), offset: 1 }, 2);
    }

    #[test]
    fn a_watcher_sees_the_channels_that_match() {
        let taps = Taps::default();
        assert!(!taps.are_open());
        let tap = taps.open("a*").expect("a place");
        assert!(taps.are_open());
        show(&taps, "b", Payload::Text("x"));
        show(&taps, "ab", Payload::Json("{\"n\":1}"));
        show(&taps, "a", Payload::Binary(b"\xff\xff"));
        let seen = lines(&tap);
        assert_eq!((&seen[0]["channel"], &seen[0]["data"], &seen[0]["matched"]), (&json!("ab"), &json!({"n": 1}), &json!(2)));
        assert_eq!((&seen[1]["kind"], &seen[1]["bytes"], seen[1].get("data")), (&json!("binary"), &json!(2), None));
        taps.close(&tap);
        assert!(!taps.are_open());
    }

    #[test]
    fn what_a_slow_watcher_missed_is_counted() {
        let taps = Taps::default();
        let tap = taps.open("*").expect("a place");
        for _ in 0..WAITING + 7 {
            show(&taps, "c", Payload::Text("x"));
        }
        let seen = lines(&tap);
        assert_eq!(seen.len(), WAITING + 1);
        assert_eq!(seen[WAITING], json!({"dropped": 7}));
        show(&taps, "c", Payload::Text("y"));
        assert_eq!(lines(&tap)[0]["data"], "y");
    }

    #[test]
    fn a_long_body_is_cut_between_characters_and_users_are_named() {
        let taps = Taps::default();
        let tap = taps.open("#user:*").expect("a place");
        let long = format!("x{}", "é".repeat(SHOWN_BYTES));
        show(&taps, &User::channel_name("7"), Payload::Text(&long));
        let seen = lines(&tap);
        assert_eq!((&seen[0]["user"], &seen[0]["cut"], &seen[0]["bytes"]), (&json!("7"), &json!(true), &json!(long.len())));
        assert_eq!(seen[0]["data"].as_str().map(str::len), Some(SHOWN_BYTES - 1));
    }

    #[test]
    fn watchers_are_few() {
        let taps = Taps::default();
        let open: Vec<_> = (0..MAX_TAPS).map(|_| taps.open("*").expect("a place")).collect();
        assert!(taps.open("*").is_none());
        taps.close(&open[3]);
        assert!(taps.open("*").is_some());
    }
}
