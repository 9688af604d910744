//! What every [`Broker`] promises, as tests that run on any of them: see [`broker_conformance!`](crate::broker_conformance).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use realtime_core::broker::{Broker, Deliver, Published, Reply};
use realtime_core::error::BrokerError;
use realtime_core::history::{Page, Range, Retention};
use realtime_core::message::Body;
use realtime_core::{Payload, Position, Publish, SocketId};

use crate::wait::{DEADLINE, eventually};

/// Makes the tests of the suite for one broker, each on a fresh one.
///
/// ```text
/// broker_conformance!(memory, || Arc::new(Memory::new(64, 64, 1 << 20).unwrap()), idempotency: true);
/// ```
#[macro_export]
macro_rules! broker_conformance {
    ($name:ident, $make:expr, idempotency: $idempotency:expr) => {
        mod $name {
            use super::*;
            use $crate::conformance as suite;

            $crate::broker_conformance!(@tests $make;
                offsets_are_dense_and_deliveries_in_their_order
                all_of_a_publication_is_delivered
                a_channel_counts_without_subscribers
                what_follows_a_subscriptions_position_is_delivered
                repeats_do_nothing_more
                an_unsubscribed_channel_is_silent_and_keeps_its_epoch
                eight_threads_get_one_order_that_keeps_each_ones_own
                channels_do_not_share_offsets
                nothing_is_delivered_after_the_stop
                a_history_is_the_newest_within_its_size
                a_history_is_read_in_parts_from_either_end
                a_history_is_bounded_in_bytes
                what_was_not_to_be_kept_is_no_gap
                what_expires_is_gone_and_its_absence_is_seen
                a_position_and_its_history_are_seen_together
            );

            #[test]
            fn a_repeated_id_is_one_publication_where_that_is_supported() {
                if $idempotency {
                    suite::a_repeated_id_is_one_publication(($make)());
                } else {
                    suite::an_id_is_accepted(($make)());
                }
            }
        }
    };
    (@tests $make:expr; $($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                suite::$test(($make)());
            }
        )*
    };
}

/// What a node was handed for the channels that it hears; like the node it drops the rest.
#[derive(Default)]
struct Recorder {
    heard: Mutex<HashSet<String>>,
    channels: Mutex<HashMap<String, Vec<Delivered>>>,
    /// Channels that are being delivered to at this moment.
    busy: Mutex<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Delivered {
    position: Position,
    event: String,
    body: Body,
    except: Vec<SocketId>,
    user_id: Option<String>,
}

impl Deliver for Recorder {
    fn deliver(&self, publish: &Publish<'_>, position: Position) -> usize {
        if !self.heard.lock().contains(publish.channel) {
            return 0;
        }
        {
            let mut busy = self.busy.lock();
            assert!(!busy.iter().any(|channel| channel == publish.channel), "two threads deliver to one channel at once");
            busy.push(publish.channel.into());
        }
        // Gives another thread the chance to break in.
        thread::yield_now();
        self.channels.lock().entry(publish.channel.into()).or_default().push(Delivered {
            position,
            event: publish.event.into(),
            body: publish.payload.into(),
            except: publish.except.to_vec(),
            user_id: publish.user_id.map(|id| id.to_string()),
        });
        self.busy.lock().retain(|channel| channel != publish.channel);
        1
    }

    fn interrupted(&self, channel: &str, position: Position) {
        panic!("{channel} was interrupted at {position:?}");
    }
}

impl Recorder {
    fn of(&self, channel: &str) -> Vec<Delivered> {
        self.channels.lock().get(channel).cloned().unwrap_or_default()
    }

    fn offsets(&self, channel: &str) -> Vec<u64> {
        self.of(channel).iter().map(|delivered| delivered.position.offset).collect()
    }

    fn wait_for(&self, channel: &str, offset: u64) {
        eventually(&format!("{channel} gets offset {offset}"), || self.offsets(channel).last() == Some(&offset));
    }
}

/// A started broker.
struct Subject {
    broker: Arc<dyn Broker>,
    recorder: Arc<Recorder>,
}

fn answer<T>(reply: Reply<T>) -> Result<T, BrokerError> {
    match reply {
        Reply::Now(result) => result,
        Reply::Later(promise) => promise.wait(DEADLINE).unwrap(),
    }
}

impl Subject {
    fn start(broker: Arc<dyn Broker>) -> Subject {
        let recorder = Arc::new(Recorder::default());
        broker.start(recorder.clone()).unwrap();
        Subject { broker, recorder }
    }

    fn publish(&self, channel: &str, text: &str) -> Published {
        answer(self.broker.publish(&Publish::new(channel, "e", Payload::Text(text)))).unwrap()
    }

    fn publish_id(&self, channel: &str, id: &str) -> Published {
        let mut publish = Publish::new(channel, "e", Payload::Text("x"));
        publish.id = Some(id);
        answer(self.broker.publish(&publish)).unwrap()
    }

    /// As the node does it: first it hears, then it asks.
    fn subscribe(&self, channel: &str) -> Position {
        self.recorder.heard.lock().insert(channel.into());
        answer(self.broker.subscribe(channel)).unwrap()
    }

    fn unsubscribe(&self, channel: &str) {
        self.recorder.heard.lock().remove(channel);
        self.broker.unsubscribe(channel);
    }

    fn keep(&self, channel: &str, text: &str, retention: Retention) -> Position {
        let mut publish = Publish::new(channel, "e", Payload::Text(text));
        publish.retention = Some(retention);
        answer(self.broker.publish(&publish)).unwrap().position
    }

    fn read(&self, channel: &str, range: Range) -> Page {
        answer(self.broker.read(channel, &range)).unwrap()
    }

    fn history(&self, channel: &str) -> Vec<u64> {
        offsets(&self.read(channel, Range::default()))
    }

    /// Waits until everything asked of the broker so far has had its effect, as far as a caller can tell: something
    /// published later on other channels has arrived. On several: in a cluster one master's says nothing of another's.
    fn settle(&self) {
        for channel in ["settled 0", "settled 1", "settled 2", "settled 3"] {
            self.subscribe(channel);
            let offset = self.publish(channel, "").position.offset;
            self.recorder.wait_for(channel, offset);
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.broker.stop();
    }
}

/// Offsets start at 1, have no holes, share an epoch; deliveries come in their order.
pub fn offsets_are_dense_and_deliveries_in_their_order(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    let start = subject.subscribe("a");
    assert_eq!(start.offset, 0);
    for expected in 1..=50 {
        assert_eq!(subject.publish("a", "x").position, Position { epoch: start.epoch, offset: expected });
    }
    subject.recorder.wait_for("a", 50);
    assert_eq!(subject.recorder.offsets("a"), (1..=50).collect::<Vec<_>>());
    assert!(subject.recorder.of("a").iter().all(|delivered| delivered.position.epoch == start.epoch));
}

/// Event, body of every kind, exceptions and user arrive as they were given.
pub fn all_of_a_publication_is_delivered(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    subject.subscribe("a");
    let except: [SocketId; 2] = ["1.2".parse().unwrap(), "3.4".parse().unwrap()];
    let user = Arc::from("ada");
    let payloads = [Payload::Text("t\u{e9}"), Payload::Json("[1]"), Payload::Binary(&[0, 255, b'\n']), Payload::Text("")];
    for payload in payloads {
        let mut publish = Publish::new("a", "an event", payload);
        publish.except = &except;
        publish.user_id = Some(&user);
        answer(subject.broker.publish(&publish)).unwrap();
    }
    subject.recorder.wait_for("a", 4);
    for (delivered, payload) in subject.recorder.of("a").into_iter().zip(payloads) {
        assert_eq!(delivered.body, Body::from(payload));
        assert_eq!((delivered.event.as_str(), delivered.user_id.as_deref()), ("an event", Some("ada")));
        assert_eq!(delivered.except, except);
    }
}

/// A channel without a subscription counts its publications.
pub fn a_channel_counts_without_subscribers(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    for expected in 1..=3 {
        assert_eq!(subject.publish("quiet", "x").position.offset, expected);
    }
    assert_eq!(subject.subscribe("quiet").offset, 3);
    subject.settle();
    assert!(subject.recorder.of("quiet").is_empty());
}

/// While others publish, a subscription's position has nothing missing behind it.
pub fn what_follows_a_subscriptions_position_is_delivered(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    for round in 0..10 {
        let channel = format!("round {round}");
        thread::scope(|scope| {
            let publisher = scope.spawn(|| {
                for _ in 0..60 {
                    subject.publish(&channel, "x");
                }
            });
            let position = subject.subscribe(&channel);
            publisher.join().unwrap();
            let last = subject.publish(&channel, "end").position;
            assert_eq!((last.epoch, last.offset), (position.epoch, 61));
            subject.recorder.wait_for(&channel, 61);
            let mut offsets = subject.recorder.offsets(&channel);
            assert!(offsets.is_sorted(), "{offsets:?}");
            offsets.retain(|offset| *offset > position.offset);
            assert_eq!(offsets, (position.offset + 1..=61).collect::<Vec<_>>());
        });
    }
}

/// Subscribing twice delivers once; unsubscribing without a subscription does no harm.
pub fn repeats_do_nothing_more(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    subject.unsubscribe("a");
    let first = subject.subscribe("a");
    assert_eq!(subject.subscribe("a"), first);
    subject.publish("a", "x");
    subject.recorder.wait_for("a", 1);
    subject.unsubscribe("a");
    subject.unsubscribe("a");
    subject.settle();
    subject.publish("a", "x");
    subject.settle();
    assert_eq!(subject.recorder.offsets("a"), [1]);
}

/// An unsubscribed channel goes on counting, silently, in the same epoch.
pub fn an_unsubscribed_channel_is_silent_and_keeps_its_epoch(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    let epoch = subject.subscribe("a").epoch;
    subject.publish("a", "heard");
    subject.recorder.wait_for("a", 1);
    subject.unsubscribe("a");
    subject.settle();
    subject.publish("a", "unheard");
    subject.settle();
    assert_eq!(subject.subscribe("a"), Position { epoch, offset: 2 });
    subject.publish("a", "heard again");
    subject.recorder.wait_for("a", 3);
    assert_eq!(subject.recorder.offsets("a"), [1, 3]);
}

/// Concurrent publishers: one dense order, in which each thread's own publications keep theirs.
pub fn eight_threads_get_one_order_that_keeps_each_ones_own(broker: Arc<dyn Broker>) {
    const THREADS: usize = 8;
    const EACH: usize = 100;
    let subject = Subject::start(broker);
    subject.subscribe("a");
    let mut acknowledged: Vec<(u64, String)> = thread::scope(|scope| {
        let publishers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let subject = &subject;
                scope.spawn(move || {
                    let texts = (0..EACH).map(|number| format!("{thread} {number}"));
                    texts.map(|text| (subject.publish("a", &text).position.offset, text)).collect::<Vec<_>>()
                })
            })
            .collect();
        publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect()
    });
    subject.recorder.wait_for("a", (THREADS * EACH) as u64);
    let delivered = subject.recorder.of("a");
    assert_eq!(subject.recorder.offsets("a"), (1..=(THREADS * EACH) as u64).collect::<Vec<_>>());
    // What was answered is what was delivered.
    acknowledged.sort();
    for (delivered, (offset, text)) in delivered.iter().zip(&acknowledged) {
        assert_eq!((delivered.position.offset, &delivered.body), (*offset, &Body::Text(text.as_str().into())));
    }
    for thread in 0..THREADS {
        let own = acknowledged.iter().filter_map(|(_, text)| text.strip_prefix(&format!("{thread} ")));
        assert!(own.map(|number| number.parse::<usize>().unwrap()).eq(0..EACH), "thread {thread}");
    }
}

/// Each channel counts for itself.
pub fn channels_do_not_share_offsets(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    thread::scope(|scope| {
        for channel in 0..8 {
            let subject = &subject;
            scope.spawn(move || {
                let name = format!("channel {channel}");
                subject.subscribe(&name);
                for expected in 1..=40 {
                    assert_eq!(subject.publish(&name, "x").position.offset, expected);
                }
                subject.recorder.wait_for(&name, 40);
                assert_eq!(subject.recorder.offsets(&name), (1..=40).collect::<Vec<_>>());
            });
        }
    });
}

/// A stop may hand out what it had acknowledged; when it has returned, nothing comes any more and publishing fails.
pub fn nothing_is_delivered_after_the_stop(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    subject.subscribe("a");
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut accepted = 0;
                    while let Ok(published) = answer(subject.broker.publish(&Publish::new("a", "e", Payload::Text("x")))) {
                        accepted = published.position.offset;
                    }
                    accepted
                })
            })
            .collect();
        eventually("traffic flows", || subject.recorder.of("a").len() > 20);
        subject.broker.stop();
        let delivered = subject.recorder.offsets("a");
        let accepted = publishers.into_iter().map(|publisher| publisher.join().unwrap()).max().unwrap();
        assert_eq!(subject.recorder.offsets("a"), delivered);
        // Nothing acknowledged is lost.
        assert!(delivered.last() >= Some(&accepted), "{delivered:?}, accepted {accepted}");
    });
    let refused = answer(subject.broker.publish(&Publish::new("a", "e", Payload::Text("x"))));
    assert_eq!(refused, Err(BrokerError::Stopped));
}

const KEPT: Retention = Retention { size: 1_000, ttl_ms: 600_000, bytes: 1 << 20 };

fn offsets(page: &Page) -> Vec<u64> {
    page.publications.iter().map(|publication| publication.position.offset).collect()
}

/// The newest publications are there as they were given; the floor says from where on.
pub fn a_history_is_the_newest_within_its_size(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    let retention = Retention { size: 3, ..KEPT };
    let empty = subject.read("a", Range::default());
    assert!(empty.publications.is_empty() && empty.continues(empty.top), "{empty:?}");
    for (published, first, floor) in [(1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 2, 1), (5, 3, 2)] {
        let top = subject.keep("a", "x", retention);
        assert_eq!(top, Position { epoch: empty.top.epoch, offset: published });
        let page = subject.read("a", Range::default());
        assert_eq!((offsets(&page), page.floor, page.top, page.more), ((first..=published).collect(), floor, top, false));
        let continues = |offset| page.continues(Position { offset, ..top });
        assert!(continues(floor) && continues(published) && !continues(published + 1));
        assert!(floor == 0 || !continues(floor - 1));
    }
    let other = Position { epoch: realtime_core::Epoch(empty.top.epoch.0.wrapping_add(1)), offset: 5 };
    assert!(!subject.read("a", Range::default()).continues(other));

    let except: [SocketId; 1] = ["1.2".parse().unwrap()];
    let user = Arc::from("ada");
    let payloads = [Payload::Text("t\u{e9}\0"), Payload::Json("[1]"), Payload::Binary(&[0, 255, b'\n'])];
    for payload in payloads {
        let mut publish = Publish::new("a", "an event", payload);
        (publish.except, publish.user_id, publish.retention) = (&except, Some(&user), Some(retention));
        answer(subject.broker.publish(&publish)).unwrap();
    }
    let page = subject.read("a", Range::default());
    assert_eq!(page.publications.len(), 3);
    for (kept, payload) in page.publications.iter().zip(payloads) {
        assert_eq!((kept.channel.name(), kept.event.as_str(), kept.user_id.as_deref()), ("a", "an event", Some("ada")));
        assert_eq!((&kept.body, &kept.except[..]), (&Body::from(payload), &except[..]));
    }
}

/// Bounds of a range hold at both ends, and `more` says when something was left out.
pub fn a_history_is_read_in_parts_from_either_end(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    for _ in 0..6 {
        subject.keep("a", &"x".repeat(1_000), KEPT);
    }
    let all = Range::default();
    for (range, expected, more) in [
        (Range { after: 2, ..all }, vec![3, 4, 5, 6], false),
        (Range { after: 6, ..all }, vec![], false),
        (Range { after: u64::MAX, ..all }, vec![], false),
        (Range { after: 2, until: 4, ..all }, vec![3, 4], false),
        (Range { after: 4, until: 2, ..all }, vec![], false),
        (Range { limit: 5, ..all }, vec![1, 2, 3, 4, 5], true),
        (Range { limit: 6, ..all }, vec![1, 2, 3, 4, 5, 6], false),
        (Range { limit: 2, newest_first: true, ..all }, vec![6, 5], true),
        (Range { after: 2, until: 5, limit: 3, newest_first: true, ..all }, vec![5, 4, 3], false),
        (Range { bytes: 1, ..all }, vec![1], true),
        (Range { bytes: 1_500, ..all }, vec![1, 2], true),
        (Range { after: 5, bytes: 1, ..all }, vec![6], false),
    ] {
        let page = subject.read("a", range);
        assert_eq!((offsets(&page), page.more), (expected, more), "{range:?}");
    }
}

/// Bytes bound a history too; a publication that passes the bound alone is not kept, and seen to be missing.
pub fn a_history_is_bounded_in_bytes(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    let retention = Retention { bytes: 4_096, ..KEPT };
    for _ in 0..40 {
        subject.keep("a", &"x".repeat(500), retention);
    }
    let page = subject.read("a", Range::default());
    let count = page.publications.len() as u64;
    assert!((4..=8).contains(&count), "{count}");
    assert_eq!((offsets(&page), page.floor), ((41 - count..=40).collect(), 40 - count));
    subject.keep("a", &"x".repeat(5_000), retention);
    let page = subject.read("a", Range::default());
    assert_eq!((offsets(&page), page.floor), (vec![], 41));
    subject.keep("a", "small", retention);
    assert_eq!(subject.history("a"), [42]);
}

/// A publication that is not to be kept takes its place, and nobody misses it.
pub fn what_was_not_to_be_kept_is_no_gap(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    subject.subscribe("a");
    for history in [true, false, true, false] {
        let mut publish = Publish::new("a", "e", Payload::Text("x"));
        (publish.retention, publish.history) = (Some(KEPT), history);
        answer(subject.broker.publish(&publish)).unwrap();
    }
    subject.recorder.wait_for("a", 4);
    assert_eq!(subject.recorder.offsets("a"), [1, 2, 3, 4]);
    let page = subject.read("a", Range::default());
    assert_eq!((offsets(&page), page.floor, page.top.offset), (vec![1, 3], 0, 4));
}

/// Age ends a publication. Its absence is seen, unless its publisher had set its end.
pub fn what_expires_is_gone_and_its_absence_is_seen(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    let mut fleeting = Publish::new("a", "e", Payload::Text("x"));
    (fleeting.retention, fleeting.ttl_ms) = (Some(KEPT), Some(1));
    subject.keep("a", "x", KEPT);
    answer(subject.broker.publish(&fleeting)).unwrap();
    subject.keep("a", "x", KEPT);
    eventually("the fleeting one has gone", || subject.history("a") == [1, 3]);
    assert_eq!(subject.read("a", Range::default()).floor, 0);

    subject.keep("b", "x", Retention { ttl_ms: 1, ..KEPT });
    eventually("the old one has gone", || subject.history("b").is_empty());
    assert_eq!(subject.read("b", Range::default()).floor, 1);
}

/// Whoever sees a position sees what is kept up to it, while others publish.
pub fn a_position_and_its_history_are_seen_together(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..60 {
                        subject.keep("a", "x", Retention { size: 50, ..KEPT });
                    }
                })
            })
            .collect();
        while publishers.iter().any(|publisher| !publisher.is_finished()) {
            let page = subject.read("a", Range::default());
            assert_eq!(offsets(&page), (page.floor + 1..=page.top.offset).collect::<Vec<_>>());
        }
    });
}

/// For brokers without idempotency: a key is no fault.
pub fn an_id_is_accepted(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    assert_eq!(subject.publish_id("a", "key").position.offset, 1);
}

/// A key names one publication of its channel.
pub fn a_repeated_id_is_one_publication(broker: Arc<dyn Broker>) {
    let subject = Subject::start(broker);
    subject.subscribe("a");
    let first = subject.publish_id("a", "key");
    assert_eq!(subject.publish("a", "between").position.offset, 2);
    let repeat = subject.publish_id("a", "key");
    assert_eq!((repeat.position, first.repeated, repeat.repeated), (first.position, false, true));
    assert_eq!(subject.publish_id("a", "other key").position.offset, 3);
    // The same key elsewhere is another key.
    assert_eq!(subject.publish_id("b", "key").position.offset, 1);
    // Used by eight threads at once it still names one.
    let raced: Vec<u64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| subject.publish_id("a", "raced").position.offset)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(raced, [4; 8]);
    subject.publish("a", "end");
    subject.recorder.wait_for("a", 5);
    assert_eq!(subject.recorder.offsets("a"), [1, 2, 3, 4, 5]);
}
