//! Several channels that have something to say at once cost a subscriber of them all one write.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use realtime_core::transport::FrameSink;
use realtime_core::{Hub, Payload, Publish};
use realtime_testkit::{DEADLINE, eventually, start};

/// Holds its shard in a write while it is shut.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Held>, Condvar)>);

#[derive(Default)]
struct Held {
    shut: bool,
    inside: bool,
}

impl Gate {
    /// A hub of one shard, held while `meanwhile` runs.
    fn hold(&self, hub: &Hub, meanwhile: impl FnOnce()) {
        let (held, changed) = &*self.0;
        held.lock().shut = true;
        publish(hub, "gate", "x");
        changed.wait_while_for(&mut held.lock(), |held| !held.inside, DEADLINE);
        assert!(held.lock().inside, "the shard is held");
        meanwhile();
        held.lock().shut = false;
        changed.notify_all();
    }
}

impl FrameSink for Gate {
    fn send(&mut self, frame: &[u8]) -> io::Result<usize> {
        let (held, changed) = &*self.0;
        let mut guard = held.lock();
        guard.inside = guard.shut;
        changed.notify_all();
        changed.wait_while_for(&mut guard, |held| held.shut, DEADLINE);
        guard.inside = false;
        Ok(frame.len())
    }

    fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(&frames.iter().flat_map(|frame| frame.iter().copied()).collect::<Vec<u8>>())
    }
}

/// What each write brought.
#[derive(Clone, Default)]
struct Writes {
    written: Arc<Mutex<Vec<String>>>,
    /// Takes half of each write, as a socket that is nearly full.
    halves: Arc<AtomicBool>,
}

impl Writes {
    /// The texts of the messages that came in each write.
    fn take(&self) -> Vec<Vec<String>> {
        let texts = |written: String| written.split("\"data\":\"").skip(1).map(|rest| rest[..rest.find('"').unwrap()].to_owned()).collect();
        std::mem::take(&mut *self.written.lock()).into_iter().map(texts).collect()
    }
}

impl FrameSink for Writes {
    fn send(&mut self, frame: &[u8]) -> io::Result<usize> {
        let taken = if self.halves.load(Ordering::Relaxed) { frame.len() / 2 } else { frame.len() };
        self.written.lock().push(String::from_utf8_lossy(&frame[..taken]).into_owned());
        Ok(taken)
    }

    fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(&frames.iter().flat_map(|frame| frame.iter().copied()).collect::<Vec<u8>>())
    }
}

fn hub() -> (Hub, Gate) {
    let hub = start(|config| {
        config.shards = 1;
        // The hub's own pings would be writes too.
        config.heartbeat.ping_interval_ms = 3_600_000;
    });
    let gate = Gate::default();
    hub.attach_sink(&["gate"], Box::new(gate.clone())).unwrap();
    eventually("the gate is subscribed", || hub.stats().subscriptions == 1);
    (hub, gate)
}

fn attach(hub: &Hub, channels: &[&str]) -> Writes {
    let before = hub.stats().subscriptions;
    let writes = Writes::default();
    hub.attach_sink(channels, Box::new(writes.clone())).unwrap();
    eventually("the sink is subscribed", || hub.stats().subscriptions == before + channels.len() as u64);
    writes.take();
    writes
}

fn publish(hub: &Hub, channel: &str, text: &str) {
    hub.publish(&Publish::new(channel, "e", Payload::Text(text))).unwrap();
}

fn delivered(hub: &Hub) {
    // Whoever waits in an outbox has had a further turn by the time that a question is answered.
    eventually("it is fanned out", || hub.stats().ingress_bytes == 0);
    hub.channel_users("gate").unwrap();
}

/// What all of them have been written, once they have what `texts` says in one write each. A slice may end between two
/// channels where the machine is busy, so it may take more than one time; what they get is always all, in order.
fn in_one_write(hub: &Hub, gate: &Gate, sinks: &[(&Writes, &[&str])], publishes: &[(&str, &str)]) {
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end {
        gate.hold(hub, || publishes.iter().for_each(|(channel, text)| publish(hub, channel, text)));
        delivered(hub);
        let writes: Vec<Vec<Vec<String>>> = sinks.iter().map(|(sink, _)| sink.take()).collect();
        for ((_, texts), writes) in sinks.iter().zip(&writes) {
            assert_eq!(writes.concat(), *texts);
        }
        if writes.iter().all(|writes| writes.len() == 1) {
            return;
        }
    }
    panic!("never in one write each");
}

#[test]
fn what_several_channels_say_at_once_is_one_write_to_each_subscriber() {
    let (hub, gate) = hub();
    let all = attach(&hub, &["a", "b", "c"]);
    let two = attach(&hub, &["a", "c"]);
    let one = attach(&hub, &["b"]);
    let publishes = [("a", "a1"), ("b", "b1"), ("a", "a2"), ("c", "c1"), ("b", "b2")];
    let sinks: [(&Writes, &[&str]); 3] = [(&all, &["a1", "a2", "b1", "b2", "c1"]), (&two, &["a1", "a2", "c1"]), (&one, &["b1", "b2"])];
    in_one_write(&hub, &gate, &sinks, &publishes);
    // Alone, each goes out at once.
    for (channel, text) in [("a", "a3"), ("b", "b3")] {
        publish(&hub, channel, text);
        delivered(&hub);
        assert_eq!(all.take(), [[text]]);
    }
}

#[test]
fn what_is_gathered_is_bounded() {
    let (hub, gate) = hub();
    let all = attach(&hub, &["a", "b", "c", "d"]);
    // As JSON it is only copied: a slice has time for three of them, however slow the build.
    let text = format!("\"{}\"", "x".repeat(6_000));
    let large = |channel: &&str| assert!(hub.publish(&Publish::new(channel, "e", Payload::Json(&text))).is_ok());
    let mut longest = 0;
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end {
        gate.hold(&hub, || ["a", "b", "c", "d"].iter().for_each(large));
        delivered(&hub);
        let writes = all.take();
        assert_eq!(writes.concat().len(), 4);
        longest = longest.max(writes.iter().map(Vec::len).max().unwrap());
        if longest >= 3 {
            break;
        }
    }
    assert_eq!(longest, 3, "16 KiB, and the one that passes it");
}

#[test]
fn who_takes_only_part_of_it_gets_the_rest_in_order() {
    let (hub, gate) = hub();
    let all = attach(&hub, &["a", "b"]);
    all.halves.store(true, Ordering::Relaxed);
    gate.hold(&hub, || {
        publish(&hub, "a", "a1");
        publish(&hub, "b", "b1");
    });
    delivered(&hub);
    let written = all.written.lock().clone();
    assert_eq!(written.len(), 1, "it is not asked again before it says that it has room");
    assert!(!written[0].contains("b1"), "{written:?}");
    assert_eq!(hub.stats().closed_slow, 0);
}
