//! Limits on what a host publishes and what the hub keeps, each at its border. Those of clients and handshakes are in
//! `frames`, `http` and `native_protocol`.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::{Condvar, Mutex};
use realtime_core::broker::memory::Memory;
use realtime_core::broker::{Broker, Deliver, Reply};
use realtime_core::hub::HubBuilder;
use realtime_core::message::Publication;
use realtime_core::protocol::{Command, Inbound, MessageKind, OpenRequest, Opening, Protocol, ProtocolError, ProtocolState, Push, Refusal};
use realtime_core::transport::FrameSink;
use realtime_core::transport::websocket::WebSocket;
use realtime_core::{Payload, Position, Publish, PublishError};
use realtime_testkit::hub::client_events;
use realtime_testkit::{Client, DEADLINE, Pipes, RawClient, config, eventually, start};
use serde_json::json;

/// What the hub charges for a publication beside its body.
const OVERHEAD: usize = 256;

#[tokio::test]
async fn publications_end_at_their_limit() {
    let limit = 1_000;
    let hub = start(|config| {
        config.limits.publication_bytes = limit;
        config.channels = vec![client_events("c")];
    });
    let mut client = Client::subscribed(&hub, "c").await;
    for size in [limit - 1, limit, limit + 1] {
        let (text, ok) = ("x".repeat(size), size <= limit);
        for payload in [Payload::Text(&text), Payload::Json(&text), Payload::Binary(text.as_bytes())] {
            match hub.publish(&Publish::new("quiet", "e", payload)) {
                Ok(_) => assert!(ok, "{size}"),
                Err(error) => {
                    assert!(matches!(error, PublishError::TooLarge { bytes, limit: l } if (bytes, l) == (size, limit)) && !ok, "{error}");
                }
            }
        }
        // As a client publishes it, with its quotes.
        client.send_json(json!({"action": "publish", "channel": "c", "event": "e", "data": "x".repeat(size - 2), "id": size})).await;
        match ok {
            true => client.expect_nothing().await,
            false => assert_eq!(client.expect_error("message_too_large").await["id"], size),
        }
    }
}

/// Pipes whose encoder waits: while the gate is shut, nothing that was accepted can be fanned out.
struct Gated(Pipes, Arc<Gate>);

#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock() = true;
        self.changed.notify_all();
    }
}

impl Protocol for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn open(&self, request: &OpenRequest<'_>) -> Option<Result<Opening, Refusal>> {
        self.0.open(request)
    }

    fn encode(&self, publication: &Publication, variant: u16, out: &mut Vec<u8>) -> MessageKind {
        let mut open = self.1.open.lock();
        assert!(!self.1.changed.wait_while_for(&mut open, |open| !*open, DEADLINE).timed_out(), "nobody opened the gate");
        self.0.encode(publication, variant, out)
    }

    fn push(&self, state: &ProtocolState, push: &Push<'_>, out: &mut Vec<u8>) -> Option<MessageKind> {
        self.0.push(state, push, out)
    }

    fn decode(&self, state: &mut ProtocolState, message: Inbound<'_>, commands: &mut Vec<Command>) -> Result<(), ProtocolError> {
        self.0.decode(state, message, commands)
    }
}

#[test]
fn accepted_bytes_end_at_a_channels_share_and_at_the_limit_of_all() {
    let charge = 1_024;
    let body = "x".repeat(charge - OVERHEAD);
    let limit = 64 * charge;
    // What one channel may hold is reached by its sixteenth publication, or missed by a byte and reached by the next.
    for (ingress_bytes, each, all) in [(limit - 4, 16, 64), (limit, 16, 64), (limit + 4, 17, 65)] {
        let gate = Arc::new(Gate::default());
        let config = config(|config| {
            config.shards = 1;
            config.publish_timeout_ms = 0;
            config.limits.publication_bytes = charge;
            config.limits.ingress_bytes = ingress_bytes;
        });
        let hub = HubBuilder::new(config).protocol(Gated(Pipes::default(), gate.clone()), WebSocket).start().unwrap();
        let mut clients = Vec::new();
        for channel in ["a", "b", "c", "d", "e"] {
            let mut client = RawClient::tcp(hub.local_addr());
            client.upgrade("/pipes");
            client.next_frame();
            client.send_text(&format!("sub|{channel}"));
            assert_eq!(client.next_frame().text(), format!("on|{channel}|0"));
            clients.push(client);
        }
        let fill = |channel: &str| {
            let mut accepted = 0;
            loop {
                match hub.publish(&Publish::new(channel, "e", Payload::Text(&body))) {
                    Ok(_) => accepted += 1,
                    Err(PublishError::QueueFull { queued_bytes, limit, .. }) => return (accepted, queued_bytes, limit),
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let mut total = 0;
        for channel in ["a", "b", "c"] {
            assert_eq!(fill(channel), (each, each * charge, ingress_bytes / 4), "{ingress_bytes}");
            total += each;
        }
        // The fourth fills its share, or what is left of the whole.
        total += fill("d").0;
        assert_eq!(fill("e").0, all - total);
        assert_eq!(hub.stats().ingress_bytes, (all * charge) as u64);
        assert_eq!(fill("e"), (0, all * charge, ingress_bytes));
        // Where nobody listens nothing is queued, but the limit is the hub's.
        assert!(matches!(hub.publish(&Publish::new("nobody", "e", Payload::Text(""))), Err(PublishError::QueueFull { .. })));

        gate.open();
        for (client, expected) in clients.iter_mut().zip([each, each, each]) {
            for offset in 1..=expected {
                assert_eq!(client.next_frame().text().split('|').nth(1), Some(offset.to_string().as_str()));
            }
        }
        eventually("all is given back", || hub.stats().ingress_bytes == 0);
        assert_eq!((hub.stats().published, hub.stats().closed), (all as u64, 0));
        assert!(hub.publish(&Publish::new("a", "e", Payload::Text(&body))).is_ok());
    }
}

#[test]
fn a_publisher_waits_for_room_as_long_as_it_may() {
    let gate = Arc::new(Gate::default());
    let config = config(|config| {
        config.shards = 1;
        config.publish_timeout_ms = 60_000;
        config.limits.publication_bytes = 1_024;
        config.limits.ingress_bytes = 4 << 10;
    });
    let hub = HubBuilder::new(config).protocol(Gated(Pipes::default(), gate.clone()), WebSocket).start().unwrap();
    let mut client = RawClient::tcp(hub.local_addr());
    client.upgrade("/pipes");
    client.next_frame();
    client.send_text("sub|c");
    client.next_frame();
    let publisher = hub.clone();
    let publishing = thread::spawn(move || {
        let publish = |_| publisher.publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap().position.offset;
        (0..50).map(publish).fold(0, u64::max)
    });
    // One publication is charged 257 bytes, a share is 1,024: the fifth waits.
    eventually("the publisher waits", || hub.stats().ingress_bytes == 4 * 257);
    assert!(!publishing.is_finished());
    gate.open();
    assert_eq!(publishing.join().unwrap(), 50);
    for offset in 1..=50 {
        assert_eq!(client.next_frame().text(), format!("c|{offset}|e|x"));
    }
    assert_eq!((hub.stats().published, hub.stats().queue_full), (50, 0));
}

/// A sink that keeps the length of what it is given, until it is shut: then it takes nothing.
#[derive(Clone, Default)]
struct Tap {
    shut: Arc<AtomicBool>,
    lengths: Arc<Mutex<Vec<usize>>>,
}

impl FrameSink for Tap {
    fn send(&mut self, frame: &[u8]) -> io::Result<usize> {
        if self.shut.load(Ordering::Relaxed) {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.lengths.lock().push(frame.len());
        Ok(frame.len())
    }

    fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut sent = 0;
        for frame in frames {
            sent += self.send(frame)?;
        }
        Ok(sent)
    }
}

#[test]
fn an_outbox_ends_at_its_limit() {
    let limit = 40_000;
    let hub = start(|config| {
        config.shards = 1;
        config.limits.outbox_bytes = limit;
        config.limits.publication_bytes = limit / 4;
        // The hub's own pings would be counted too.
        config.heartbeat.ping_interval_ms = 3_600_000;
        config.limits.outbox_age_ms = 3_600_000;
    });
    for (number, total) in [limit - 1, limit, limit + 1].into_iter().enumerate() {
        let channel = format!("channel {number}");
        let tap = Tap::default();
        hub.attach_sink(&[&channel], Box::new(tap.clone())).unwrap();
        let publish = |length| {
            assert_eq!(hub.publish(&Publish::new(&channel, "e", Payload::Text(&"x".repeat(length)))).unwrap().matched, 1);
            eventually("it is fanned out", || hub.stats().ingress_bytes == 0);
        };
        eventually("the sink is subscribed", || tap.lengths.lock().len() == 2);
        publish(5_000);
        let envelope = tap.lengths.lock()[2] - 5_000;
        tap.shut.store(true, Ordering::Relaxed);
        // Four in all have their number in one digit, so their envelopes are equal.
        let part = total / 5;
        for _ in 0..4 {
            publish(part - envelope);
        }
        assert_eq!(hub.stats().closed_slow, 0, "{total}");
        publish(total - 4 * part - envelope);
        let closed = u64::from(total > limit);
        // It is closed when all have been served.
        eventually("the shard has had a further turn", || hub.channel_users(&channel).is_ok());
        assert_eq!(hub.stats().closed_slow, closed, "{total} of {limit} bytes wait");
    }
}

#[test]
fn idempotency_keys_are_forgotten_past_their_number() {
    let hub = start(|config| config.limits.idempotency_keys = 3);
    let publish = |id: &str| {
        let mut publish = Publish::new("c", "e", Payload::Text("x"));
        publish.id = Some(id);
        hub.publish(&publish).unwrap().position.offset
    };
    assert_eq!([publish("a"), publish("b"), publish("c")], [1, 2, 3]);
    assert_eq!([publish("a"), publish("b"), publish("c")], [1, 2, 3]);
    assert_eq!(publish("d"), 4);
    assert_eq!([publish("b"), publish("c"), publish("d")], [2, 3, 4]);
    assert_eq!(publish("a"), 5);
}

#[test]
fn idle_channels_are_forgotten_past_their_number_and_subscribed_ones_never() {
    struct Nobody;
    impl Deliver for Nobody {
        fn deliver(&self, _: &Publish<'_>, _: Position) -> usize {
            0
        }

        fn interrupted(&self, _: &str, _: Position) {}
    }
    let broker = Memory::new(640, 1, 1 << 20).unwrap();
    broker.start(Arc::new(Nobody)).unwrap();
    let publish = |channel: &str| match broker.publish(&Publish::new(channel, "e", Payload::Text("x"))) {
        Reply::Now(published) => published.unwrap().position,
        Reply::Later(_) => panic!("the memory broker answers at once"),
    };
    let Reply::Now(Ok(subscribed)) = broker.subscribe("subscribed") else { panic!("not subscribed") };
    // The limit is kept in 64 parts of ten: as many as one part holds are never too many.
    for number in 0..10 {
        publish(&format!("idle {number}"));
    }
    broker.tick();
    assert!((0..10).all(|number| publish(&format!("idle {number}")).offset == 2));
    for number in 10..10_000 {
        publish(&format!("idle {number}"));
    }
    broker.tick();
    let remembered = (0..10_000).filter(|number| publish(&format!("idle {number}")).offset > 1).count();
    assert!((320..=640).contains(&remembered), "{remembered} of 10,000 are remembered");
    assert_eq!(publish("subscribed"), Position { epoch: subscribed.epoch, offset: 1 });
}
